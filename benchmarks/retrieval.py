"""Users per second at inference: the item index, and generative rankers with the language model of the same checkpoint.

Dense: the index finds the nearest items of the user vector. The generative rankers run the language model over the same
history: beams (beam search over texts of the catalogue), generate_bm25 (the paper's method: the model writes texts,
BM25 finds matching items), hybrid (re-ranks the nearest items by text likelihood and cosine). All use stored photo
features and batches of users with similar history lengths. `generate` is a direct implementation of the paper's
method with the beam search of transformers, one user at a time. `semantic_ids` is the method of that name, whose beams
are codes of items in place of texts; it needs no checkpoint and no dense ranking.

    python -m benchmarks.retrieval [--rounds 3] [--users 32] [--shoppers 300]

All rank 100 items for the same users, in turns in one process, with a checkpoint of one epoch on the sample dataset.
The time of a generative ranker includes the dense ranking, which it starts from. The network of `semantic_ids` has one
epoch too, which does not change its speed. Then only the search, without the
model, over larger catalogues of random vectors and texts.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.generated_shop import INDEX_STAGES, open_shop
from benchmarks.generation_rival import Generation
from pixrec_core import schemas
from pixrec_core.data.sequences import read_sequences
from pixrec_core.data.text_search import TextSearch
from pixrec_core.plugins import load_plugin, plugin_names
from pixrec_core.ranking_table import DENSE
from pixrec_core.recommenders import _sequence_training, semantic_ids
from pixrec_core.recommenders.base import ItemLists, TrainData
from pixrec_core.retrieval import faiss_index, rankers, ranking
from pixrec_core.retrieval.rankers.generate_bm25 import round_robin, search_texts
from pixrec_core.retrieval.retriever import Retriever
from pixrec_core.settings import GenerativeSettings
from pixrec_core.stages import Work

DEPTH = 100  # items of a list
CATALOGUES = (400, 4_000, 100_000)


def compare(work: Work, users: int, rounds: int) -> None:
    """Time all rankers in turns."""
    retriever = Retriever.load(work.variant_paths)
    catalogue = retriever.ranker_catalogue(work.variant_paths)
    sequences = read_sequences(work.paths, schemas.TEST).sample(users, seed=0)[schemas.ITEMS]
    histories = [items[:-1] for items in retriever.encoder.inputs.numbers(sequences).to_list()]
    lengths = np.full(users, DEPTH)

    def dense() -> Any:
        return retriever.user_batch(histories, retriever.encoder.user_vectors(histories), lengths)

    def by_texts(name: str) -> Callable[[], Any]:
        ranker = load_plugin(rankers.__name__, name).create_ranker(catalogue, GenerativeSettings())

        def rank() -> Any:
            users = dense()
            return [
                ranking.complete_list(ranked, nearest, DEPTH).items
                for ranked, nearest in zip(ranking.rank_in_batches(ranker, users, name), users.nearest, strict=True)
            ]

        return rank

    names = plugin_names(rankers.__name__)
    contenders: dict[str, Callable[[], Any]] = {DENSE: lambda: dense().nearest} | {n: by_texts(n) for n in names}
    rival = Generation(retriever, catalogue, DEPTH)
    contenders["generate"] = lambda: rival(histories)
    contenders["semantic_ids"] = semantic_ids_ranker(work, histories)
    for rank in contenders.values():
        rank()  # the first call includes one-time preparation
    rates = {name: Rates() for name in contenders}
    for _ in range(rounds):
        for name, rank in contenders.items():
            lists = rates[name].time(rank, users)
            assert all(len(set(row.tolist())) == len(row) for row in lists), "a list names an item twice"
    print(f"{users} users, {len(catalogue.items)} items, lists of {DEPTH}")
    show(rates)
    codes, texts = rates["semantic_ids"], rates["beams"]
    ratios = [a / b for a, b in zip(codes.rates, texts.rates, strict=True)]
    busy = [a / b for a, b in zip(texts.busy, codes.busy, strict=True)]
    print(
        f"  beams of codes are {statistics.median(ratios):,.1f} times as fast as beams of texts ({min(ratios):,.1f} to "
        f"{max(ratios):,.1f}); by CPU time {statistics.median(busy):,.1f} ({min(busy):,.1f} to {max(busy):,.1f})"
    )


def semantic_ids_ranker(work: Work, histories: list[list[int]]) -> Callable[[], Any]:
    """Return a function that ranks with the method `semantic_ids`."""
    with mock.patch.object(_sequence_training, "EPOCHS", 1):
        model = semantic_ids.fit(TrainData.read(work.paths))
    lists = ItemLists.from_lists(histories)
    return lambda: model.candidates(lists, DEPTH)[0]


def search_alone(items: int, rounds: int) -> None:
    """Time the nearest items of 32 vectors and the BM25 search of 32 users' texts, without the model."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(items, 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words = np.array([f"word{n}" for n in range(2_000)])
    texts = [" ".join(row) for row in random.choice(words, size=(items, 8))]
    search, tie_order = TextSearch(texts), np.arange(items)
    users = [[texts[n] for n in random.choice(items, GenerativeSettings().beams)] for _ in range(32)]
    rates = {"index": Rates(), "BM25": Rates()}
    searcher = faiss_index.create_index("flat", vectors)
    searcher.search(vectors[:1], DEPTH)
    for _ in range(rounds):
        rates["index"].time(lambda: searcher.search(vectors[:32], DEPTH), 32)
        rates["BM25"].time(lambda: [round_robin(search_texts(search, each, tie_order, DEPTH)) for each in users], 32)
    print(f"search alone, {items:,} items")
    show(rates)


class Rates:
    """Users per second of each round, and CPU seconds per user, which depend less on other work on the machine."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.busy: list[float] = []

    def time(self, run: Callable[[], Any], users: int) -> Any:
        """Run once and record both."""
        start, busy = time.perf_counter(), time.process_time()
        result = run()
        self.rates.append(users / (time.perf_counter() - start))
        self.busy.append((time.process_time() - busy) / users)
        return result


def show(rates: Mapping[str, Rates]) -> None:
    """Print medians and spread, and each rate as a fraction of the first."""
    first = next(iter(rates.values()))
    for name, each in rates.items():
        ratios = [a / b for a, b in zip(first.rates, each.rates, strict=True)]
        busy = statistics.median(each.busy) / statistics.median(first.busy)
        print(
            f"  {name:13} {statistics.median(each.rates):10,.2f} users/s ({min(each.rates):,.2f} to "
            f"{max(each.rates):,.2f}), {1000 * statistics.median(each.busy):,.2f} ms of CPU per user; "
            f"1/{statistics.median(ratios):,.1f} of the first, by CPU time 1/{busy:,.1f}",
            flush=True,
        )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, default=32, help="users ranked per round")
    parser.add_argument("--shoppers", type=int, default=300, help="users of the sample dataset")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = open_shop(Path(folder), given.shoppers, INDEX_STAGES)
        compare(work, given.users, given.rounds)
    for items in CATALOGUES:
        search_alone(items, given.rounds)


if __name__ == "__main__":
    main()
