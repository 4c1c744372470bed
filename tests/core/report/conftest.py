"""A dataset with all inputs of a report."""

from pathlib import Path

import pytest

from pixrec_core.paths import DatasetPaths
from tests.core.report import example


@pytest.fixture
def paths(tmp_path: Path) -> DatasetPaths:
    return example.write_all(DatasetPaths(tmp_path / "a [b] folder" / "shop"))
