"""Model tests use one thread: small tensors do not gain from more, and parallel tests would compete for cores."""

import pytest
from transformers import set_seed

from pixrec_core.models.loading import create_backbone
from tests.core.models import families
from tests.core.models.small import Small, small, tower_on


@pytest.fixture(scope="session", params=["tiny", *families.FAMILIES])
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A dual tower on each family of backbones; a test with this fixture runs once per family."""
    if request.param == "tiny":
        return small()
    folder = tmp_path_factory.mktemp(request.param)
    families.save(request.param, folder)
    backbone, processor = create_backbone(str(folder), None, list)
    set_seed(0)
    return tower_on(backbone, processor)
