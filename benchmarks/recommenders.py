"""Quality of our baselines and of RecTools' and implicit's on the same splits, with the same metrics, in one run.

    python -m venv /tmp/rivals && /tmp/rivals/bin/pip install 'rectools[torch]' implicit
    python -m benchmarks.recommenders --dataset NAME --python /tmp/rivals/bin/python [--methods implicit_als ...]

Ours are the rankings that `pixrec run NAME --up-to baselines` left. Both learn from the training split, choose settings
on the tuning users and rank for the test users. See `benchmarks.recommender_rivals` for the grids.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core.data.sequences import read_sequences
from pixrec_core.evaluation import metrics
from pixrec_core.evaluation.bootstrap import interval, resampled_means
from pixrec_core.evaluation.rankings import listed_ranks, read_ranking, without_seen
from pixrec_core.evaluation.targets import ITEM_INDEX, REPEAT, USER_INDEX, Targets
from pixrec_core.evaluation.validation import tuning_users
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import ITEM, ITEMS, RANK, TEST, TIMESTAMPS, TRAIN, USER, VALIDATION
from pixrec_core.settings import load_settings
from pixrec_core.stages import Work

K = 10
#: Rival -> our method of the same kind.
OURS = {
    "implicit_knn": "co_occurrence",
    "implicit_als": "ease",
    "implicit_bpr": "ease",
    "rectools_ease": "ease",
    "rectools_sasrec": "sasrec",
}


def interactions(sequences: pl.DataFrame, users: pl.Series, item_ids: pl.Series) -> dict[str, NDArray[np.int64]]:
    """Return user, item and time of each interaction as integers."""
    table = sequences.select(
        pl.col(USER).cast(pl.Enum(users)).to_physical(), pl.col(ITEMS).alias(ITEM), pl.col(TIMESTAMPS).alias("time")
    ).explode(ITEM, "time")
    item = table[ITEM].cast(pl.Enum(item_ids)).to_physical()
    columns = {"user": table[USER], "item": item, "time": table["time"]}
    return {name: column.cast(pl.Int64).to_numpy() for name, column in columns.items()}


def write_inputs(paths: DatasetPaths, targets: Targets, path: Path) -> None:
    """Write the training split, histories and tuning targets as arrays."""
    splits = {split: read_sequences(paths, split) for split in (TRAIN, VALIDATION, TEST)}
    before = pl.col(ITEMS, TIMESTAMPS).list.head(pl.col(ITEMS).list.len() - 1)
    tuning = splits[VALIDATION].filter(tuning_users(splits[VALIDATION].height))
    parts = {"train": splits[TRAIN], "tuning": tuning.with_columns(before), "test": splits[TEST].with_columns(before)}
    users = pl.concat([each[USER] for each in parts.values()]).unique().sort()
    arrays = {
        f"{part}.{name}": column
        for part, each in parts.items()
        for name, column in interactions(each, users, targets.items).items()
    }
    last = interactions(tuning.with_columns(pl.col(ITEMS, TIMESTAMPS).list.tail(1)), users, targets.items)
    test = splits[TEST][USER].cast(pl.Enum(users)).to_physical().cast(pl.Int64).to_numpy()
    k = K + int(targets.seen.group_by(USER_INDEX).len()["len"].max() or 0)  # type: ignore[arg-type]
    np.savez(
        path, **arrays, tuning_users=last["user"], tuning_targets=last["item"], test_users=test,
        n_users=len(users), n_items=len(targets.items), k=min(k, len(targets.items)),
    )  # fmt: skip


def per_user(ranking: pl.DataFrame, targets: Targets) -> NDArray[np.float64]:
    """Return (users, 4) Recall@10 and NDCG@10, seen items allowed, then filtered."""
    ranks = [listed_ranks(each, targets, K) for each in (ranking, without_seen(ranking, targets))]
    return np.column_stack([metric(each, K) for each in ranks for metric in (metrics.recall, metrics.ndcg)])


def to_frame(items: NDArray[np.int64]) -> pl.DataFrame:
    """Return lists (users, k) as a ranking in integers; -1 ends a list."""
    rows, columns = np.nonzero(items >= 0)
    return pl.DataFrame(
        {USER_INDEX: rows, ITEM_INDEX: items[rows, columns], RANK: columns + 1},
        schema={USER_INDEX: pl.UInt32, ITEM_INDEX: pl.UInt32, RANK: pl.Int32},
    )


def show(name: str, allowed: NDArray[np.float64], filtered: NDArray[np.float64], *, signed: bool = False) -> None:
    """Print means (users, 2) with intervals under both protocols."""
    cells = []
    for values in (allowed, filtered):
        low, high = interval(resampled_means(values))
        sign = "+" if signed else ""
        cells += [
            f"{m:{sign}.4f} ({a:{sign}.4f} to {b:{sign}.4f})" for m, a, b in zip(values.mean(0), low, high, strict=True)
        ]
    print(f"{name:28} " + "  ".join(cells), flush=True)


def main() -> None:
    """Parse the command line, fit the rivals and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--python", required=True, help="interpreter that has rectools and implicit")
    parser.add_argument("--methods", nargs="*", default=list(OURS), choices=list(OURS))
    given = parser.parse_args()
    paths = Work(load_settings(), given.dataset).paths
    targets = Targets.read(paths)
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        write_inputs(paths, targets, inputs)
        command = [
            given.python,
            str(Path(__file__).with_name("recommender_rivals.py")),
            str(inputs),
            str(outputs),
            *given.methods,
        ]
        subprocess.run(command, check=True, cwd=folder)
        found = {name: per_user(to_frame(items), targets) for name, items in np.load(outputs).items()}
    counted = ~targets.table[REPEAT].to_numpy()
    print(f"{given.dataset}: Recall@10 and NDCG@10, seen items allowed; the same, seen items filtered")
    ours = {
        name: per_user(read_ranking(paths.baseline(name).ranking, name, targets, K), targets)
        for name in sorted({OURS[rival] for rival in found})
    }
    for name, values in {**ours, **found}.items():
        show(name, values[:, :2], values[counted, 2:])
    for rival, values in found.items():
        difference = ours[OURS[rival]] - values
        show(f"{OURS[rival]} - {rival}", difference[:, :2], difference[counted, 2:], signed=True)


if __name__ == "__main__":
    main()
