"""Latency of the blend on a synthetic catalogue: one user at a time, and users per CPU second in batches of 512.

    OMP_NUM_THREADS=1 python -m benchmarks.blend_latency [--items 10000] [--users 4000] [--calls 200] [--without NAME]

The blend orders the candidates of all baselines, none of them dropped. Latency depends on the sizes of models and
catalogue and not on their quality, so each method is fitted with one setting and one epoch. Dual towers are left out:
`benchmarks.recommend` times theirs. `OMP_NUM_THREADS=1` gives the figures of one core.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from unittest import mock

import numpy as np
import polars as pl

from pixrec_core import recommenders
from pixrec_core.data.item_features import ItemFeatures
from pixrec_core.plugins import load_plugin
from pixrec_core.recommenders import _blend_training, _sequence_training, ease
from pixrec_core.recommenders._blend_features import DAY_MS, ItemTable, MethodLists, find_candidates
from pixrec_core.recommenders._blend_training import TrainingUsers, train_blend
from pixrec_core.recommenders.base import ItemLists, Method, TrainData
from pixrec_core.recommenders.blend import Blend
from pixrec_core.schemas import CATEGORIES, HAS_IMAGE, ITEM, PRICE
from pixrec_core.serving.methods import BlendMethod

CATEGORIES_OF_SHOP = 50
K = 100  # candidates of each method, the default of `blend.candidates`
BLEND_USERS = 1_000
BATCH = 512

#: Module -> constants that make its fit short.
SHORT = (
    (ease, {"PENALTIES": (250.0,)}),
    (_sequence_training, {"EPOCHS": 1}),
)


def draw_histories(random: np.random.Generator, users: int, n_items: int) -> ItemLists:
    """Histories of 3 to 20 items: popular ones by a power law, half of them of one category per user, a day apart."""
    popularity = 1 / np.arange(1, n_items + 1) ** 0.7
    lists = []
    for _ in range(users):
        length = int(random.integers(3, 21))
        items = random.choice(n_items, length, p=popularity / popularity.sum())
        favourite = int(random.integers(CATEGORIES_OF_SHOP))
        moved = items - items % CATEGORIES_OF_SHOP + favourite
        lists.append(np.where((random.random(length) < 0.5) & (moved < n_items), moved, items).tolist())
    values = ItemLists.from_lists(lists)
    return ItemLists(values.values, values.offsets, 20_000 * DAY_MS - values.from_newest * DAY_MS)


def without_target(lists: ItemLists) -> ItemLists:
    """Histories without their newest item."""
    return lists.filter(lists.from_newest > 0)


def catalogue_of(n_items: int) -> pl.DataFrame:
    """Columns that the blend reads."""
    return pl.DataFrame(
        {
            ITEM: [f"i{n:06}" for n in range(n_items)],
            CATEGORIES: [[f"category {n % CATEGORIES_OF_SHOP}"] for n in range(n_items)],
            PRICE: [float(n % 97) for n in range(n_items)],
            HAS_IMAGE: [False] * n_items,
        }
    )


def fit_methods(train: TrainData, left_out: Sequence[str]) -> dict[str, Method]:
    """All baselines but those that need photos, each fitted briefly."""
    models: dict[str, Method] = {}
    with ExitStack() as stack:
        for module, constants in SHORT:
            for name, value in constants.items():
                stack.enter_context(mock.patch.object(module, name, value))
        for name in recommenders.baseline_names():
            if name not in left_out:
                start = time.perf_counter()
                models[name] = load_plugin(recommenders.__name__, name).fit(train)
                print(f"fitted {name:18} {time.perf_counter() - start:6.1f} s", flush=True)
    return models


def train(models: Mapping[str, Method], table: ItemTable, users: ItemLists) -> Blend:
    """A blend that keeps all methods."""
    histories = without_target(users)
    lists = {name: MethodLists(*model.candidates(histories, K + 20)) for name, model in models.items()}
    found = find_candidates(lists, histories, table, K)
    targets = users.values[users.offsets[1:] - 1]
    with mock.patch.object(_blend_training, "MIN_GAIN", np.inf):  # nothing is dropped
        trained = train_blend(TrainingUsers(found, targets), np.zeros(len(users), np.bool_))
    assert trained, "too few targets are candidates"
    return Blend(trained.final, K, table)


def milliseconds(method: Method, users: ItemLists, calls: int) -> tuple[list[float], float]:
    """Duration of each call for one user, after a first call that is not counted, and the mean CPU time."""
    first, *parts = [part for _, part in users.batches(1)][: calls + 1]
    method.candidates(first, 10)
    times, cpu = [], time.process_time()
    for part in parts:
        start = time.perf_counter()
        method.candidates(part, 10)
        times.append(1000 * (time.perf_counter() - start))
    return times, 1000 * (time.process_time() - cpu) / len(times)


def main() -> None:
    """Parse the command line, fit everything and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=4_000, help="whose histories train the methods")
    parser.add_argument("--calls", type=int, default=200, help="users that are asked one by one")
    parser.add_argument("--without", nargs="*", default=[], help="methods to leave out, which saves their fit")
    given = parser.parse_args()
    random = np.random.default_rng(0)
    users, tuning, stacking = (draw_histories(random, n, given.items) for n in (given.users, 200, BLEND_USERS))
    catalogue = catalogue_of(given.items)
    texts = [
        f"thing {n % 997} of category {n % CATEGORIES_OF_SHOP} colour {n % 31} size {n % 7}" for n in range(given.items)
    ]
    assert users.times is not None
    known = np.ones(given.items, bool)
    data = TrainData(
        n_items=given.items,
        train=users,
        times=users.times,
        validation=without_target(tuning),
        targets=tuning.values[tuning.offsets[1:] - 1],
        texts=texts,
        text_features=lambda: ItemFeatures(np.zeros((given.items, 2), np.float32), ~known),
        photo_features=lambda: ItemFeatures(np.zeros((given.items, 2), np.float32), ~known),
    )
    models = fit_methods(data, ["image_knn", *given.without])
    trained = train(models, ItemTable.of(catalogue, users.values, users.times), stacking)
    blended = BlendMethod.of(trained, models)
    asked = draw_histories(random, max(given.calls + 1, 2 * BATCH), given.items)
    for name, method in {**models, "blend": blended}.items():
        times, cpu = milliseconds(method, asked, given.calls)
        start = time.process_time()
        for _, part in asked.batches(BATCH):
            method.candidates(part, 10)
        speed = len(asked) / (time.process_time() - start)
        median, high = np.median(times), np.quantile(times, 0.95)
        print(
            f"{name:18} one user {median:6.2f} ms median, {high:6.2f} ms p95, {cpu:6.2f} ms CPU; "
            f"{speed:7,.0f} users per CPU second"
        )


if __name__ == "__main__":
    main()
