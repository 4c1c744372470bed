"""What each input of the blend is worth: the loss in metrics without it, by group of users, with paired intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core import prompts
from pixrec_core.evaluation.bootstrap import Floats, interval, resampled_means
from pixrec_core.evaluation.metrics import METRICS
from pixrec_core.evaluation.protocol import PAIRED_METRICS
from pixrec_core.evaluation.targets import ITEM_INDEX, REPEAT, Targets
from pixrec_core.printable import printable
from pixrec_core.schemas import CATEGORIES

ALL: Final = "all inputs"
PHOTOS: Final = "photos"
EVERYONE: Final = "everyone"
POOR_TEXT: Final = "poor text"
#: Groups of `Targets.groups` that are shown. Other groups are everyone, categories and lengths of the text.
GROUPS: Final = ("cold", "history 1-2", "repeat", "not tied")
TEXT_QUARTERS: Final = (
    "text: shortest quarter",
    "text: second quarter",
    "text: third quarter",
    "text: longest quarter",
)
TEXT_QUARTER_SHARES: Final = (0.1, 0.5)  # of the targets; with many texts of one length, a quarter has fewer or more
CATEGORIES_SHOWN: Final = 8
CATEGORY_SHARES: Final = (0.01, 0.7)  # lowest and highest share of the targets in a shown category
MIN_USERS: Final = 30  # of a group: a bootstrap of fewer covers far less than 95 %


@dataclass(frozen=True)
class InputRanks:
    """Ranks of test targets by the linear part of a blend, refitted without each input.

    Attributes:
        users: (U,) ids, sorted.
        ranks: by input that was left out, and with `ALL` of them, (U, 2) ranks of the targets with seen items allowed
            and filtered; infinity where the target is no candidate.
    """

    users: pl.Series
    ranks: Mapping[str, NDArray[np.float64]]


def summarise_inputs(found: InputRanks, targets: Targets, catalogue: pl.DataFrame) -> dict[str, Any]:
    """Return the part of metrics.json about inputs, one dictionary per protocol.

    `found` has ranks of some of the test users of `targets`; `catalogue` has `CATALOGUE_SCHEMA`, sorted by item.
    """
    targets = targets.of_users(found.users)
    groups = _groups(targets, catalogue)
    not_repeat = ~targets.table[REPEAT].to_numpy()
    return {
        "users": len(found.users),
        "protocols": {
            protocol: {
                name: _worth({input_: ranks[member & counted, column] for input_, ranks in found.ranks.items()})
                for name, member in groups.items()
                if (member & counted).sum() >= MIN_USERS
            }
            for column, (protocol, counted) in enumerate(
                {"seen_allowed": np.ones_like(not_repeat), "seen_filtered": not_repeat}.items()
            )
        },
    }


def _worth(ranks: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Return the metrics of one group with all inputs, and what is lost without each."""
    values = {
        name: np.stack([METRICS[metric](each) for metric in PAIRED_METRICS], axis=1) for name, each in ranks.items()
    }
    whole = values.pop(ALL)
    losses = {name: whole - without for name, without in values.items()}
    low, high = interval(resampled_means(np.concatenate([whole, *losses.values()], axis=1)))

    def estimates(values: Floats, at: int) -> dict[str, dict[str, float]]:
        columns = range(len(PAIRED_METRICS) * at, len(PAIRED_METRICS) * (at + 1))
        rows = zip(PAIRED_METRICS, values.mean(axis=0), columns, strict=True)
        return {m: {"value": float(v), "low": float(low[c]), "high": float(high[c])} for m, v, c in rows}

    return {
        "users": len(whole),
        "whole": estimates(whole, 0),
        "lost": {name: estimates(each, at) for at, (name, each) in enumerate(losses.items(), start=1)},
    }


def _groups(targets: Targets, catalogue: pl.DataFrame) -> dict[str, NDArray[np.bool_]]:
    """Return (users,) membership by name: everyone, a few groups, quarters of the text's length, and categories."""
    known = targets.groups()
    rows = catalogue[targets.table[ITEM_INDEX].to_list()]
    words = np.array([len(prompts.item_text(item).split()) for item in rows.iter_rows(named=True)])
    quarter = np.searchsorted(np.quantile(words, (0.25, 0.5, 0.75)), words) if len(words) else words
    low, high = (share * len(words) for share in TEXT_QUARTER_SHARES)
    quarters = {name: quarter == number for number, name in enumerate(TEXT_QUARTERS)}
    lengths = {name: members for name, members in quarters.items() if low <= members.sum() <= high}
    return {
        EVERYONE: np.ones(len(rows), np.bool_),
        **{name: known[name] for name in GROUPS},
        **({POOR_TEXT: lengths[TEXT_QUARTERS[0]]} if TEXT_QUARTERS[0] in lengths else {}),
        **lengths,
        **_category_groups(rows[CATEGORIES]),
    }


def _category_groups(categories: pl.Series) -> dict[str, NDArray[np.bool_]]:
    """Return (targets,) membership of the most frequent categories; a target may be in several."""
    table = pl.DataFrame({"name": categories}).with_row_index("row").explode("name").drop_nulls().unique()
    low, high = (share * len(categories) for share in CATEGORY_SHARES)
    counts = table.group_by("name").agg(pl.len(), pl.col("row")).filter(pl.col("len").is_between(low, high))
    shown = counts.sort(-pl.col("len").cast(pl.Int64), "name").head(CATEGORIES_SHOWN)
    return {
        f"category: {printable(' '.join(name.split()))}": np.isin(np.arange(len(categories)), rows)
        for name, rows in shown.select("name", "row").rows()
    }
