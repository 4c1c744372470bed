"""The towers of the model tests, whose language models rank here, on one thread."""

from tests.core.models.conftest import _one_thread, tower

__all__ = ["_one_thread", "tower"]
