"""Rankings and true targets -> metrics.json and outcomes.parquet, under two protocols at once.

`seen_allowed`: the lists as they are, all users. `seen_filtered`: the items of a user's history are
taken out of the list; users who bought one of them again cannot be served so and are left out.
See docs/metrics.md.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pixrec_core import files
from pixrec_core.data.sequences import read_items
from pixrec_core.evaluation.lists import ItemFacts, describe
from pixrec_core.evaluation.protocol import COVERAGE_K, Outcome, summarise
from pixrec_core.evaluation.rankings import coverage, read_ranking, target_ranks, without_seen
from pixrec_core.evaluation.targets import ITEM_INDEX, REPEAT, Targets
from pixrec_core.paths import DatasetPaths, VariantPaths
from pixrec_core.ranking_table import DENSE, SPEEDS
from pixrec_core.schemas import ITEM, METHOD, OUTCOME_SCHEMA, RANK, USER
from pixrec_core.settings import RetrievalSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

SEEN_ALLOWED = "seen_allowed"
SEEN_FILTERED = "seen_filtered"


def evaluate(settings: RetrievalSettings, paths: DatasetPaths, variants: Sequence[str]) -> Stats:
    """Score every baseline, and every one of `variants` that has been ranked, by its language model too if so.

    Raises:
        MissingArtefactError: sequences, photos or baselines have not been made.
        ContractError: training sequences hold what they must not.
        ArtefactError: a ranking does not fit the test split.
    """
    targets = Targets.read(paths)
    item_facts = ItemFacts.read(paths, read_items(paths))
    outcomes = _outcomes(_rankings(paths, variants), targets, item_facts, settings.depth)
    tables = [_table(outcomes[SEEN_ALLOWED], targets)]
    generative = {}
    for variant in variants:
        if paths.variant(variant).generative.exists():
            generative[variant], table = _generative(paths.variant(variant), targets, item_facts, settings.depth)
            tables.append(table)
    with files.replacing(paths.outcomes) as temporary:
        pl.concat(tables).write_parquet(temporary)
    facts = {"users": len(targets.users), "items": len(targets.items), **targets.shares()}
    protocols = _protocols(outcomes, targets, variants)
    metrics = {**facts, "depth": settings.depth, "protocols": protocols, "generative": generative}
    files.write_json(paths.metrics, metrics)
    headline = {method: figures["NDCG@10"]["value"] for method, figures in protocols[SEEN_ALLOWED]["methods"].items()}
    return {**facts, "ndcg@10": headline}


def _generative(
    paths: VariantPaths, targets: Targets, item_facts: ItemFacts, depth: int
) -> tuple[dict[str, Any], pl.DataFrame]:
    """Rankings by the language model against the dense one, of the users that have them; and what became of these.

    The table leaves the dense one out, as the variant's own rows are the same.
    """
    folder = paths.generative
    speeds = files.read_json(folder / SPEEDS)
    rankings = {method: folder / f"{method}.parquet" for method in speeds}
    some = targets.of_users(pl.read_parquet(rankings[DENSE], columns=[USER])[USER].unique())
    outcomes = _outcomes(rankings, some, item_facts, depth)
    protocols = _protocols(outcomes, some, [m for m in speeds if m != DENSE])
    named = {f"{paths.variant}/{m}": outcome for m, outcome in outcomes[SEEN_ALLOWED].items() if m != DENSE}
    return {"users": len(some.users), "users_per_second": speeds, "protocols": protocols}, _table(named, some)


def _outcomes(
    rankings: Mapping[str, Path], targets: Targets, item_facts: ItemFacts, depth: int
) -> dict[str, dict[str, Outcome]]:
    """Protocol -> method -> what it did."""
    outcomes: dict[str, dict[str, Outcome]] = {SEEN_ALLOWED: {}, SEEN_FILTERED: {}}
    for method, path in rankings.items():
        ranking = read_ranking(path, method, targets, depth)
        outcomes[SEEN_ALLOWED][method] = _outcome(ranking, targets, item_facts, depth)
        outcomes[SEEN_FILTERED][method] = _outcome(without_seen(ranking, targets), targets, item_facts, depth)
        log.info("evaluated %s: %s rows", method, f"{ranking.height:,}")
    return outcomes


def _protocols(
    outcomes: Mapping[str, dict[str, Outcome]], targets: Targets, variants: Sequence[str]
) -> dict[str, dict[str, Any]]:
    groups = {name: belongs.to_numpy() for name, belongs in targets.groups().items()}
    repeat = targets.table[REPEAT].to_numpy()
    return {
        SEEN_ALLOWED: summarise(outcomes[SEEN_ALLOWED], np.ones_like(repeat), groups, variants),
        SEEN_FILTERED: summarise(outcomes[SEEN_FILTERED], ~repeat, groups, variants),
    }


def _rankings(paths: DatasetPaths, variants: Sequence[str]) -> dict[str, Path]:
    """Method -> its ranking: baselines by name, then variants."""
    files.require(paths.baselines)
    return paths.baseline_rankings() | {
        v: paths.variant(v).ranking for v in variants if paths.variant(v).ranking.exists()
    }


def _outcome(ranking: pl.DataFrame, targets: Targets, item_facts: ItemFacts, depth: int) -> Outcome:
    return Outcome(
        target_ranks(ranking, targets, depth),
        describe(ranking, targets, item_facts),
        coverage(ranking, targets, COVERAGE_K),
    )


def _table(outcomes: Mapping[str, Outcome], targets: Targets) -> pl.DataFrame:
    """`OUTCOME_SCHEMA`: one row a method and user, seen items allowed: the target and its rank."""
    target = targets.items.gather(targets.table[ITEM_INDEX])
    frames = [
        pl.DataFrame(
            {METHOD: [method] * len(target), USER: targets.users, ITEM: target,
             RANK: pl.Series(outcome.ranks).cast(pl.Int32, strict=False)},
            schema_overrides=OUTCOME_SCHEMA,
        )
        for method, outcome in outcomes.items()
    ]  # fmt: skip
    return pl.concat([OUTCOME_SCHEMA.to_frame(), *frames])
