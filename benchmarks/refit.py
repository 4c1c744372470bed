"""What a refit gains on the following days, and what it costs.

    python -m benchmarks.refit --dataset NAME [--variants text_only] [--baselines ease co_occurrence ...]

The dataset's items and interactions, which `pixrec run NAME --up-to item_features` left, are split by time. Methods are
trained before the validation cut and promoted as usual. Then everything from the test cut on is removed, and what
serves is refreshed and refitted, as a shop would on that day. All three answer the same users, whose next purchase is
the first one after the test cut, from the same histories up to it.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core import files, pipeline, recommenders
from pixrec_core.data.sequences import read_cuts, read_sequences
from pixrec_core.data.splits import iso
from pixrec_core.evaluation import metrics
from pixrec_core.evaluation.bootstrap import interval, resampled_means
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import DAY_MS, ITEMS, TEST, TIMESTAMPS
from pixrec_core.serving import Recommender
from pixrec_core.serving.promotion import read_promotion
from pixrec_core.settings import load_settings
from pixrec_core.stages import StageInputs, Work

K = 10
USERS_PER_BATCH = 2_000
BASELINES = ("bm25_text", "co_occurrence", "ease", "gru4rec", "markov_chain", "popularity", "recent_popularity")
MODEL_STAGES = (pipeline.CHECKPOINT, pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX, pipeline.RANKING)
COMPARED_STAGES = (pipeline.BASELINES, pipeline.BLEND, pipeline.PROMOTED)


def copy_data(source: DatasetPaths, target: DatasetPaths) -> None:
    """Link the data artefacts of a dataset into another folder."""
    for path in (source.items, source.interactions, source.images_manifest):
        files.link(files.require(path), target.root / path.name)
    (target.root / source.images.name).symlink_to(source.images.absolute())


def train(work: Work, baselines: Sequence[str]) -> None:
    """Train on the time split and promote; what was measured serves."""
    recommenders.baseline_names = lambda: list(baselines)
    pipeline.sequences(work)
    pipeline.item_features(work)
    for variant in work.settings.variants:
        pipeline.CHECKPOINT.run(work.with_variant(variant), StageInputs("measured", {}))
        for stage in MODEL_STAGES[1:]:
            stage.run(work.with_variant(variant))
    for stage in COMPARED_STAGES:
        stage.run(work)


def forget_test(paths: DatasetPaths) -> None:
    """Remove everything from the test cut on."""
    cut = read_cuts(paths)[TEST]
    copy = paths.sequences.with_suffix(".copy")
    copy.write_bytes(paths.sequences.read_bytes())  # the promoted copy is a hard link of the file
    with duckdb.connect(copy) as connection:
        connection.execute("DELETE FROM interactions WHERE timestamp >= ?", [cut])
        connection.execute("DELETE FROM sequences WHERE split = ?", [TEST])
    copy.replace(paths.sequences)


def measure(promoted: Path, method: str, test: pl.DataFrame) -> NDArray[np.float64]:
    """Return (users, 2) Recall@10 and NDCG@10 of a promoted method on test sequences."""
    recommender, ranks = Recommender.load(promoted), []
    for part in test.iter_slices(USERS_PER_BATCH):
        items, times = part[ITEMS].to_list(), part[TIMESTAMPS].to_list()
        lists = recommender.for_histories(
            [each[:-1] for each in items], K, times=[each[:-1] for each in times], method=method
        )
        for target, found in zip(items, lists, strict=True):
            ranked = [each.item for each in found]
            ranks.append(ranked.index(target[-1]) + 1 if target[-1] in ranked else np.inf)
    return np.column_stack([metric(np.array(ranks), K) for metric in (metrics.recall, metrics.ndcg)])


def main() -> None:
    """Train, refresh, refit and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="of pixrec.toml, with its data stages built")
    parser.add_argument("--variants", nargs="*", default=["text_only"], help="dual towers to train")
    parser.add_argument("--baselines", nargs="+", default=BASELINES, help="baselines to fit")
    parser.add_argument("--validation-share", type=float, default=0.1, help="of the interactions, before the test cut")
    parser.add_argument("--test-share", type=float, default=0.1, help="of the interactions, after the test cut")
    args = parser.parse_args()
    original = Work(load_settings(), args.dataset)
    with tempfile.TemporaryDirectory(prefix="pixrec-refit-") as name:
        dataset = original.dataset_settings
        split = {"split": "time", "validation_share": args.validation_share, "test_share": args.test_share}
        sections = {"sequences": dataset.sequences.model_copy(update=split)}
        settings = original.settings.model_copy(
            update={
                "data_dir": Path(name),
                "datasets": {args.dataset: dataset.model_copy(update=sections)},
                "variants": tuple(args.variants),
            }
        )
        compare(Work(settings, args.dataset), original.paths, args.baselines)


def compare(work: Work, source: DatasetPaths, baselines: Sequence[str]) -> None:
    """Print the metrics of every method before and after, with paired intervals."""
    paths, seconds = work.paths, {}
    copy_data(source, paths)

    def keep(name: str, function: Callable[[], object]) -> None:
        """Run, take the CPU time, and copy what serves afterwards."""
        start = time.process_time()
        function()
        seconds[name] = time.process_time() - start
        shutil.copytree(paths.promoted.root, paths.root / name)

    keep("measured", lambda: train(work, baselines))
    cut, test = read_cuts(paths)[TEST], read_sequences(paths, TEST)
    forget_test(paths)
    keep("refreshed", lambda: pipeline.refresh(work))
    keep("refitted", lambda: pipeline.refit(work, StageInputs("benchmark", {})))

    days = (test[TIMESTAMPS].list.last().max() - cut) / DAY_MS  # type: ignore[operator]
    print(f"{test.height:,} users with a purchase within {days:.0f} days from {iso(cut)} on")
    print("CPU seconds: " + ", ".join(f"{name} {each:.0f}" for name, each in seconds.items()))
    print("gains of Recall@10 and NDCG@10 over the measured promotion by a refresh, by the refit; of the refit over it")
    promotion = read_promotion(paths.promoted)
    for method in sorted(promotion.methods, key=lambda each: -(promotion.methods[each] or 1)):
        values = {name: measure(paths.root / name, method, test) for name in seconds}
        cells = [
            gain(values[a] - values[b])
            for a, b in (("refreshed", "measured"), ("refitted", "measured"), ("refitted", "refreshed"))
        ]
        recall, ndcg = values["measured"].mean(0)
        print(f"{method:18} {recall:.4f} {ndcg:.4f}   {'   '.join(cells)}", flush=True)


def gain(difference: NDArray[np.float64]) -> str:
    """Mean differences (2,) of (users, 2) values with their paired 95 % intervals."""
    low, high = interval(resampled_means(difference))
    return " ".join(f"{m:+.4f} ({a:+.4f} to {b:+.4f})" for m, a, b in zip(difference.mean(0), low, high, strict=True))


if __name__ == "__main__":
    main()
