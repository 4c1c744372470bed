"""What a refit gains on the following days, and what it costs.

    python -m benchmarks.refit --dataset NAME [--share 0.3] [--variants text_only] [--baselines ease co_occurrence ...]

It takes the items and interactions that `pixrec run NAME --up-to item_features` left, and forgets everything from a cut
on. Methods are trained, measured and promoted on the rest with the settings of the dataset, as on the day of the cut.
Then what serves is refreshed, and refitted. All three promotions answer the same users, from the same histories up to
the cut; the item to find is the first one that each user buys from the cut on.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core import files, pipeline, recommenders
from pixrec_core.data.sequences import read_items
from pixrec_core.evaluation import metrics
from pixrec_core.evaluation.bootstrap import interval, resampled_means
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import DAY_MS, ITEM, ITEMS, TIMESTAMP, TIMESTAMPS, USER
from pixrec_core.serving import Recommender
from pixrec_core.serving.promotion import read_promotion
from pixrec_core.settings import load_settings
from pixrec_core.stages import StageInputs, Work

K = 10
USERS_PER_BATCH = 2_000
BASELINES = ("bm25_text", "co_occurrence", "ease", "gru4rec", "markov_chain", "popularity", "recent_popularity")
STAGES = (pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX, pipeline.RANKING)
COMPARED_STAGES = (pipeline.BASELINES, pipeline.BLEND, pipeline.PROMOTED)
TARGET = "target"


def copy_data(source: DatasetPaths, target: DatasetPaths, share: float) -> tuple[pl.DataFrame, int]:
    """Copy the data artefacts of a dataset without the newest interactions.

    Args:
        source: of the dataset.
        target: of the copy.
        share: of the interactions that are left out, at least; those of one time stay together.

    Returns:
        All interactions in order, and the first time that is left out.
    """
    interactions = pl.read_parquet(files.require(source.interactions)).sort(USER, TIMESTAMP, "position")
    newest = interactions[TIMESTAMP].sort(descending=True)
    cut = int(newest[round(share * len(newest))])
    for path in (source.items, source.images_manifest):
        files.link(files.require(path), target.root / path.name)
    (target.root / source.images.name).symlink_to(source.images.absolute())
    interactions.filter(pl.col(TIMESTAMP) < cut).write_parquet(target.interactions)
    return interactions, cut


def train(work: Work, baselines: Sequence[str]) -> None:
    """Train and promote; what was measured serves."""
    recommenders.baseline_names = lambda: list(baselines)
    pipeline.sequences(work)
    pipeline.item_features(work)
    for variant in work.settings.variants:
        pipeline.CHECKPOINT.run(work.with_variant(variant), StageInputs("measured", {}))
        for stage in STAGES:
            stage.run(work.with_variant(variant))
    for stage in COMPARED_STAGES:
        stage.run(work)


def following_days(interactions: pl.DataFrame, cut: int, catalogue: pl.Series) -> pl.DataFrame:
    """Return one row per user with a history and a later purchase: `ITEMS`, `TIMESTAMPS`, `TARGET` and its time."""
    known = interactions.filter(pl.col(ITEM).is_in(catalogue.implode()))
    histories = known.filter(pl.col(TIMESTAMP) < cut).group_by(USER, maintain_order=True)
    later = interactions.filter(pl.col(TIMESTAMP) >= cut).group_by(USER, maintain_order=True)
    return histories.agg(pl.col(ITEM).alias(ITEMS), pl.col(TIMESTAMP).alias(TIMESTAMPS)).join(
        later.agg(pl.col(ITEM).first().alias(TARGET), pl.col(TIMESTAMP).first()), on=USER
    )


def measure(promoted: Path, method: str, test: pl.DataFrame) -> NDArray[np.float64]:
    """Return (users, 2) Recall@10 and NDCG@10 of a promoted method."""
    recommender, ranks = Recommender.load(promoted), []
    for part in test.iter_slices(USERS_PER_BATCH):
        histories, times = part[ITEMS].to_list(), part[TIMESTAMPS].to_list()
        lists = recommender.for_histories(histories, K, times=times, method=method)
        for target, found in zip(part[TARGET], lists, strict=True):
            ranked = [each.item for each in found]
            ranks.append(ranked.index(target) + 1 if target in ranked else np.inf)
    return np.column_stack([metric(np.array(ranks), K) for metric in (metrics.recall, metrics.ndcg)])


def main() -> None:
    """Train, refresh, refit and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="of pixrec.toml, with its data stages built")
    parser.add_argument("--share", type=float, default=0.3, help="of the interactions, which the following days have")
    parser.add_argument("--variants", nargs="*", default=["text_only"], help="dual towers to train")
    parser.add_argument("--baselines", nargs="+", default=BASELINES, help="baselines to fit")
    args = parser.parse_args()
    original = Work(load_settings(), args.dataset)
    with tempfile.TemporaryDirectory(prefix="pixrec-refit-") as name:
        changes = {"data_dir": Path(name), "variants": tuple(args.variants)}
        work = Work(original.settings.model_copy(update=changes), args.dataset)
        compare(work, original.paths, args.share, args.baselines)


def compare(work: Work, source: DatasetPaths, share: float, baselines: Sequence[str]) -> None:
    """Print the metrics of every method before and after, with paired intervals."""
    paths, seconds = work.paths, {}

    def keep(name: str, function: Callable[[], object]) -> None:
        """Run, take the CPU time, and copy what serves afterwards."""
        start = time.process_time()
        function()
        seconds[name] = time.process_time() - start
        shutil.copytree(paths.promoted.root, paths.root / name)

    interactions, cut = copy_data(source, paths, share)
    keep("measured", lambda: train(work, baselines))
    keep("refreshed", lambda: pipeline.refresh(work))
    keep("refitted", lambda: pipeline.refit(work, StageInputs("benchmark", {})))

    test = following_days(interactions, cut, read_items(paths)[ITEM])
    days = (test[TIMESTAMP].max() - cut) / DAY_MS + 1  # type: ignore[operator]
    day = datetime.fromtimestamp(cut / 1000, UTC).date()
    print(f"{test.height:,} users with a history who buy within {days:.0f} days from {day} on")
    print("CPU seconds: " + ", ".join(f"{name} {each:.0f}" for name, each in seconds.items()))
    print("Recall@10 and NDCG@10 as measured; gain by a refresh; by the refit; of the refit over the refresh")
    promotion = read_promotion(paths.promoted)
    for method in sorted(promotion.methods, key=lambda each: -(promotion.methods[each] or 1)):
        values = {name: measure(paths.root / name, method, test) for name in seconds}
        pairs = (("refreshed", "measured"), ("refitted", "measured"), ("refitted", "refreshed"))
        cells = [gain(values[a] - values[b]) for a, b in pairs]
        recall, ndcg = values["measured"].mean(0)
        serves = (
            " (serves)" if method == promotion.method else "" if method in promotion.refitted_at else " (not refitted)"
        )
        print(f"{method + serves:28} {recall:.4f} {ndcg:.4f}   {'   '.join(cells)}", flush=True)


def gain(difference: NDArray[np.float64]) -> str:
    """Mean differences (2,) of (users, 2) values with their paired 95 % intervals."""
    low, high = interval(resampled_means(difference))
    return " ".join(f"{m:+.4f} ({a:+.4f} to {b:+.4f})" for m, a, b in zip(difference.mean(0), low, high, strict=True))


if __name__ == "__main__":
    main()
