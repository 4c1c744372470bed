"""Promoted methods of a small dataset: built once, copied for tests that change them."""

import shutil
from pathlib import Path

import pytest

from pixrec_core.serving import Recommender
from pixrec_core.stages import Work
from tests.core.shop import open_shop, served_shop

VARIANTS = ("collaborative", "text_only", "image_only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Serve a tower of each user encoder, or of the `USER_ENCODERS` of a test module."""
    chosen = any(mark.args[0] == "served" for mark in metafunc.definition.iter_markers("parametrize"))
    if "served" in metafunc.fixturenames and not chosen:
        kinds = getattr(metafunc.module, "USER_ENCODERS", ("items", "tokens"))
        metafunc.parametrize("served", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Work:
    """A dataset with too few users to choose a method, so that the first variant serves; tests must not change it."""
    model = {"user_encoder": request.param}
    return served_shop(tmp_path_factory.mktemp("served"), *VARIANTS, baselines=["ease"], model=model)


@pytest.fixture(scope="session")
def recommender(served: Work) -> Recommender:
    return Recommender.load(served.paths.promoted.root)


@pytest.fixture(scope="session")
def blended(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A dataset with a blend, which serves; tests must not change it."""
    source = {"users": 320, "items": 60}
    baselines = ["co_occurrence", "ease", "popularity"]
    return served_shop(tmp_path_factory.mktemp("blended"), "text_only", baselines=baselines, source=source)


@pytest.fixture
def shop(served: Work, tmp_path: Path) -> Work:
    """A copy of the dataset without hard links, so that tests can damage single files."""
    shutil.copytree(served.settings.root, tmp_path, dirs_exist_ok=True)
    return open_shop(tmp_path, "text_only", model={"user_encoder": served.dataset_settings.model.user_encoder})
