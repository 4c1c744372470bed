"""A shop for each training test, copied from one that is built once."""

import shutil
from pathlib import Path

import pytest

from pixrec_core.stages import Work
from tests.core.shop import open_shop


@pytest.fixture
def shop(opened: Path, tmp_path: Path):
    """Opens a copy of the shop with some settings: `shop("text_only", training={"epochs": 1})`."""
    shutil.copytree(opened, tmp_path, dirs_exist_ok=True)

    def of(variant: str = "multimodal", **sections: dict) -> Work:
        return open_shop(tmp_path, variant, **sections)

    return of
