"""The towers of the model tests, whose language models rank here."""

from tests.core.models.conftest import tower

__all__ = ["tower"]
