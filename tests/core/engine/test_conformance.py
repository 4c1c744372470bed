"""What every engine owes, whichever it is."""

import threading

import numpy as np
import pytest

from pixrec_core import engine as package
from pixrec_core.engine import LOCAL, choose
from pixrec_core.errors import ContractError
from pixrec_core.plugins import plugin_names
from pixrec_core.settings import EngineSettings
from tests.core.engine import work

pytestmark = pytest.mark.slow


def test_the_settings_name_every_engine():
    kinds = EngineSettings.model_json_schema()["properties"]["kind"]["enum"]
    assert sorted(kinds) == plugin_names(package.__name__)
    assert choose(EngineSettings()) is LOCAL


def test_results_come_in_the_order_of_the_shards(engine):
    shards = list(range(20))
    assert list(engine.map_shards(work.doubled, shards)) == [2 * shard for shard in shards]
    assert list(engine.map_shards(work.slow_at_first, shards)) == shards


def test_no_shards_no_results(engine):
    assert list(engine.map_shards(work.doubled, [])) == []


def test_arrays_stay_what_they_are(engine):
    shards = [np.arange(n, dtype=np.float16).reshape(n, 1) for n in range(4)]
    for shard, result in zip(shards, engine.map_shards(work.doubled, shards), strict=True):
        assert result.dtype == np.float16
        assert result.shape == shard.shape
        assert (result == 2 * shard).all()


def test_what_a_shard_raises_is_raised_as_it_was(engine):
    results = engine.map_shards(work.broken_at_two, [0, 1, 2, 3])
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ContractError) as raised:
        next(results)
    assert type(raised.value) is ContractError
    assert str(raised.value) == "items: 7 of 9 have no title; mend `items.csv`"


def test_an_end_ahead_of_time_leaves_the_engine_whole(engine):
    results = engine.map_shards(work.doubled, [1, 2, 3])
    assert next(iter(results)) == 2
    del results
    assert list(engine.map_shards(work.doubled, [4])) == [8]


def test_it_serves_threads_besides_the_first(engine):
    """Dagster runs some of its steps in threads."""
    got = []
    thread = threading.Thread(target=lambda: got.extend(engine.map_shards(work.doubled, [1, 2])))
    thread.start()
    thread.join()
    assert got == [2, 4]
