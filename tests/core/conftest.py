"""Fixtures of the core's tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a shop after the data stages. Copy it; do not change it."""
    from tests.core.shop import open_shop  # imports torch, which tests of data do not need

    folder = tmp_path_factory.mktemp("shop")
    open_shop(folder)
    return folder
