"""Metrics of whole rankings against ranx, an independent implementation."""

import numpy as np
import polars as pl
import pytest

from pixrec_core.evaluation.metrics import METRICS, per_user
from pixrec_core.evaluation.rankings import listed_ranks
from pixrec_core.evaluation.targets import Targets
from pixrec_core.schemas import TEST
from tests.core import sequences_file

ITEMS = [f"{i:02}" for i in range(40)]
DEPTH = 30
NAMES = {
    **{f"Recall@{k}": f"hit_rate@{k}" for k in (1, 5, 10, 20)},
    **{f"NDCG@{k}": f"ndcg@{k}" for k in (5, 10)},
    "MRR": f"mrr@{DEPTH}",
}


@pytest.mark.filterwarnings("default")
def test_all_metrics_equal_those_of_ranx():
    ranx = pytest.importorskip("ranx", reason="ranx is not installed; it is no dependency, for it brings numba")
    random = np.random.default_rng(7)
    bought = {f"u{user:03}": random.choice(ITEMS, 4, replace=False).tolist() for user in range(60)}
    lists = {user: random.permutation(ITEMS).tolist() for user in bought}
    test = sequences_file.sequences(bought).filter(pl.col("split") == TEST).drop("split")
    targets = Targets.of(sequences_file.catalogue([], ITEMS), test)
    rows = [(u, int(item), rank) for u, user in enumerate(bought) for rank, item in enumerate(lists[user], 1)]
    schema = {"user_index": pl.UInt32, "item_index": pl.UInt32, "rank": pl.Int32}
    ours = per_user(listed_ranks(pl.DataFrame(rows, schema, orient="row"), targets, DEPTH))

    relevant = ranx.Qrels({user: {items[-1]: 1} for user, items in bought.items()})
    run = ranx.Run({user: {item: 1 / rank for rank, item in enumerate(lists[user], 1)} for user in bought})
    theirs = ranx.evaluate(relevant, run, list(NAMES.values()))
    assert dict(zip(METRICS, ours.mean(axis=0), strict=True)) == {
        name: pytest.approx(theirs[NAMES[name]]) for name in METRICS
    }
