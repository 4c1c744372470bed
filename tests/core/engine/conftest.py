"""One Ray for all tests of a process: it takes seconds to start."""

from importlib.util import find_spec

import pytest
import torch

from pixrec_core.engine import LOCAL, choose
from pixrec_core.settings import EngineSettings

WORKERS = 2


def require_ray() -> None:
    """Skip without Ray; it is not imported here, since the engine prepares the environment for that."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install '.[ray]'")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_engines():
    """Engines of Ray by their number of workers."""
    require_ray()
    widest = EngineSettings(kind="ray", workers=WORKERS)
    list(choose(widest).map_shards(abs, [0]))  # the first map starts Ray, with room for so many workers
    return {n: choose(EngineSettings(kind="ray", workers=n)) for n in (1, WORKERS)}


@pytest.fixture(params=["local", "ray"])
def engine(request):
    """Every engine in turn."""
    return LOCAL if request.param == "local" else request.getfixturevalue("ray_engines")[WORKERS]
