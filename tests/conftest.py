"""Fixtures that all tests share."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets that may stand beside a checkout; it is never part of it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data sets in {SHARED_DATA}")
    return SHARED_DATA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the whole first, then files with a timeout of their own: what is left at the end is short."""
    top, long = Path(__file__).parent, {item.path for item in items if item.get_closest_marker("timeout")}
    items.sort(key=lambda item: (item.path.parent != top, item.path not in long))
