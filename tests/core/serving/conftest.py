"""Promoted checkpoints of a small dataset: built once, copied for tests that change them."""

import shutil
from pathlib import Path

import pytest
import torch

from pixrec_core.serving import Recommender
from pixrec_core.stages import Work
from tests.core.shop import open_shop, served_shop

VARIANTS = ("collaborative", "text_only", "image_only")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Work]:
    """The dataset by variant; tests must not change it."""
    folder = tmp_path_factory.mktemp("served")
    return {variant: served_shop(folder, variant) for variant in VARIANTS}


@pytest.fixture(scope="session")
def recommenders(served: dict[str, Work]) -> dict[str, Recommender]:
    return {name: Recommender.load(work.variant_paths.promoted.root) for name, work in served.items()}


@pytest.fixture
def shop(served: dict[str, Work], tmp_path: Path) -> Work:
    """A copy of the text-only dataset without hard links, so that tests can damage single files."""
    shutil.copytree(served["text_only"].settings.root, tmp_path, dirs_exist_ok=True)
    return open_shop(tmp_path, "text_only")
