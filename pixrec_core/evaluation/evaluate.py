"""Rankings and targets -> metrics.json, metrics.csv and outcomes.parquet, under two protocols.

`seen_allowed`: unchanged lists, all users. `seen_filtered`: lists without the items of the user's history, without the
users with a target in their history. See docs/how-it-works.md.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pixrec_core import files
from pixrec_core.data.sequences import read_items
from pixrec_core.evaluation.inputs import InputRanks, summarise_inputs
from pixrec_core.evaluation.lists import ItemFacts, describe_lists
from pixrec_core.evaluation.protocol import COVERAGE_K, Outcome, summarise
from pixrec_core.evaluation.rankings import coverage, listed_ranks, read_ranking, without_seen
from pixrec_core.evaluation.runs import metric_rows
from pixrec_core.evaluation.targets import ITEM_INDEX, REPEAT, Targets
from pixrec_core.paths import DatasetPaths, VariantPaths
from pixrec_core.ranking_table import DENSE, SPEEDS
from pixrec_core.schemas import ITEM, METHOD, OUTCOME_SCHEMA, RANK, USER
from pixrec_core.settings import RetrievalSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

SEEN_ALLOWED = "seen_allowed"
SEEN_FILTERED = "seen_filtered"


def evaluate_rankings(
    settings: RetrievalSettings, paths: DatasetPaths, variants: Sequence[str], inputs: InputRanks | None = None
) -> Stats:
    """Evaluate every baseline, and each of `variants` that has rankings, those of generative rankers included.

    `inputs` are ranks without each input of the blend, for the table of what each is worth.

    Raises:
        MissingArtefactError: sequences, item features or baselines have not been built.
        ContractError: sequences hold held-out items.
        ArtefactError: a ranking does not fit the test split, or a file of item features is damaged.
    """
    targets = Targets.read(paths)
    catalogue = read_items(paths)
    item_facts = ItemFacts.read(paths, catalogue)
    files.require(paths.baselines)
    rankings = {method: each.ranking for method, each in paths.ranked_methods(variants).items()}
    outcomes = _outcomes(rankings, targets, item_facts, settings.depth)
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
    if inputs:
        metrics["inputs"] = summarise_inputs(inputs, targets, catalogue)
    with files.replacing(paths.metrics_table) as temporary:
        metric_rows(metrics).write_csv(temporary)
    files.write_json(paths.metrics, metrics)
    headline = {method: values["NDCG@10"]["value"] for method, values in protocols[SEEN_ALLOWED]["methods"].items()}
    return {**facts, "ndcg@10": headline}


def _generative(
    paths: VariantPaths, targets: Targets, item_facts: ItemFacts, depth: int
) -> tuple[dict[str, Any], pl.DataFrame]:
    """Return metrics of the generative rankers and of the dense ranking for the same users, and their outcomes.

    The outcomes leave out the dense ranking, which the variant's rows have already.
    """
    folder = paths.generative
    speeds = files.read_json(folder / SPEEDS)
    rankings = {method: folder / f"{method}.parquet" for method in speeds}
    ranked_users = targets.of_users(pl.read_parquet(rankings[DENSE], columns=[USER], glob=False)[USER].unique())
    outcomes = _outcomes(rankings, ranked_users, item_facts, depth)
    protocols = _protocols(outcomes, ranked_users, [m for m in speeds if m != DENSE])
    named = {f"{paths.variant}/{m}": outcome for m, outcome in outcomes[SEEN_ALLOWED].items() if m != DENSE}
    values = {"users": len(ranked_users.users), "users_per_second": speeds, "protocols": protocols}
    return values, _table(named, ranked_users)


def _outcomes(
    rankings: Mapping[str, Path], targets: Targets, item_facts: ItemFacts, depth: int
) -> dict[str, dict[str, Outcome]]:
    """Return the outcome of each method by protocol."""
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
    groups, repeat = targets.groups(), targets.table[REPEAT].to_numpy()
    return {
        SEEN_ALLOWED: summarise(outcomes[SEEN_ALLOWED], np.ones_like(repeat), groups, variants),
        SEEN_FILTERED: summarise(outcomes[SEEN_FILTERED], ~repeat, groups, variants),
    }


def _outcome(ranking: pl.DataFrame, targets: Targets, item_facts: ItemFacts, depth: int) -> Outcome:
    return Outcome(
        listed_ranks(ranking, targets, depth),
        describe_lists(ranking, targets, item_facts),
        coverage(ranking, targets, COVERAGE_K),
    )


def _table(outcomes: Mapping[str, Outcome], targets: Targets) -> pl.DataFrame:
    """Return `OUTCOME_SCHEMA`: target and rank, one row per method and user, seen items allowed."""
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
