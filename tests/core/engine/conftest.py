"""One Ray for all tests of this folder: it takes seconds to start, and uses the processor as long as it runs."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from pixrec_core.engine import LOCAL, Engine, create_engine
from pixrec_core.settings import EngineSettings
from tests.core.training.conftest import shop  # noqa: F401  # a fixture

WORKERS = 2


def require_ray() -> None:
    """Skip if Ray is not installed; the engine must be the first to import it."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install '.[ray]'")


@pytest.fixture(scope="package")
def ray_engines() -> Iterator[dict[int, Engine]]:
    """Ray engines by their number of workers."""
    require_ray()
    widest = EngineSettings(kind="ray", workers=WORKERS)
    list(create_engine(widest).map_shards(abs, [0]))  # starts Ray with room for this number of workers
    yield {n: create_engine(EngineSettings(kind="ray", workers=n)) for n in (1, WORKERS)}
    import ray

    ray.shutdown()


@pytest.fixture(params=["local", "ray"])
def engine(request):
    """Every engine in turn."""
    return LOCAL if request.param == "local" else request.getfixturevalue("ray_engines")[WORKERS]
