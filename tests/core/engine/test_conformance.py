"""The contract of engines, tested with each of them."""

import threading

import numpy as np
import pytest

from pixrec_core import engine as package
from pixrec_core.engine import LOCAL, create_engine
from pixrec_core.errors import ContractError
from pixrec_core.plugins import plugin_names
from pixrec_core.settings import EngineSettings
from tests.core.engine import work

pytestmark = pytest.mark.slow


def test_the_settings_name_every_engine():
    kinds = EngineSettings.model_json_schema()["properties"]["kind"]["enum"]
    assert sorted(kinds) == plugin_names(package.__name__)
    assert create_engine(EngineSettings()) is LOCAL


def test_results_have_the_order_of_the_shards(engine):
    shards = list(range(20))
    assert list(engine.map_shards(work.doubled, shards)) == [2 * shard for shard in shards]
    assert list(engine.map_shards(work.slow_at_first, shards)) == shards


def test_no_shards_give_no_results(engine):
    assert list(engine.map_shards(work.doubled, [])) == []


def test_arrays_keep_dtype_and_shape(engine):
    shards = [np.arange(n, dtype=np.float16).reshape(n, 1) for n in range(4)]
    for shard, result in zip(shards, engine.map_shards(work.doubled, shards), strict=True):
        assert result.dtype == np.float16
        assert result.shape == shard.shape
        assert (result == 2 * shard).all()


def test_an_exception_of_a_shard_is_raised_unchanged(engine):
    results = engine.map_shards(work.broken_at_two, [0, 1, 2, 3])
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ContractError) as raised:
        next(results)
    assert type(raised.value) is ContractError
    assert str(raised.value) == "items: 7 of 9 have no title; correct `items.csv`"


def test_an_abandoned_map_leaves_the_engine_usable(engine):
    results = engine.map_shards(work.doubled, [1, 2, 3])
    assert next(iter(results)) == 2
    del results
    assert list(engine.map_shards(work.doubled, [4])) == [8]


def test_it_works_in_other_threads(engine):
    """Dagster runs some steps in threads."""
    got = []
    thread = threading.Thread(target=lambda: got.extend(engine.map_shards(work.doubled, [1, 2])))
    thread.start()
    thread.join()
    assert got == [2, 4]
