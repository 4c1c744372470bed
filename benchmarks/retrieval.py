"""Users a second at inference: the index over item vectors, and rankers by the language model of the same checkpoint.

Dense: a history becomes a vector, the index knows its nearest items. The others read the same history and go on from
there: beams (texts of the catalogue by beam search), generate_bm25 (the paper's way: texts of the model's own, looked
up by BM25), hybrid (the nearest items in the order of texts and vectors). All are given the photos' features ready
made, and their users in batches of like length. `generate` is the paper's way as one would first write it, on
transformers' own beam search, a user and his photos at a time.

    python -m benchmarks.retrieval [--rounds 3] [--users 32] [--shoppers 300]

All list 100 items for the same users, in turns in one process, on a checkpoint of one epoch over the generated shop.
The rankers' own time includes the dense one, which they start from. Then the search alone, without the model, over
larger catalogues of random vectors and texts.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generated_shop import INDEX_STAGES, open_shop
from benchmarks.generation_rival import Generation
from pixrec_core import schemas
from pixrec_core.data.sequences import read_sequences
from pixrec_core.data.text_search import TextSearch
from pixrec_core.plugins import load_plugin, plugin_names
from pixrec_core.ranking_table import DENSE
from pixrec_core.retrieval import generative, kinds, rankers
from pixrec_core.retrieval.rank import Retriever
from pixrec_core.retrieval.rankers.generate_bm25 import hits, take_turns
from pixrec_core.settings import GenerativeSettings
from pixrec_core.stages import Work

DEPTH = 100  # items of a list
CATALOGUES = (400, 4_000, 100_000)


def compare(work: Work, users: int, rounds: int) -> None:
    """All rankers in turns."""
    shop = Retriever.read(work.variant_paths)
    catalogue = shop.catalogue(work.variant_paths)
    sequences = read_sequences(work.paths, schemas.TEST).sample(users, seed=0)[schemas.ITEMS]
    histories = [items[:-1] for items in shop.inputs.numbers(sequences).to_list()]
    lengths = np.full(users, DEPTH)

    def dense() -> Any:
        return shop.users(histories, shop.vectors(histories), lengths)

    def by_texts(name: str) -> Callable[[], Any]:
        ranker = load_plugin(rankers.__name__, name).make(catalogue, GenerativeSettings())

        def rank() -> Any:
            asked = dense()
            return [
                generative.complete(own, nearest, DEPTH).items
                for own, nearest in zip(generative.ranked(ranker, asked, name), asked.nearest, strict=True)
            ]

        return rank

    names = plugin_names(rankers.__name__)
    contenders: dict[str, Callable[[], Any]] = {DENSE: lambda: dense().nearest} | {n: by_texts(n) for n in names}
    rival = Generation(shop, catalogue, DEPTH)
    contenders["generate"] = lambda: rival(histories)
    for rank in contenders.values():
        rank()  # what is set up at first use is no part of the rate
    rates = {name: Rates() for name in contenders}
    for _ in range(rounds):
        for name, rank in contenders.items():
            lists = rates[name].time(rank, users)
            assert all(len(set(row.tolist())) == len(row) for row in lists), "an item stands twice in a list"
    print(f"{users} users, {len(catalogue.items)} items, lists of {DEPTH}")
    show(rates)


def search_alone(items: int, rounds: int) -> None:
    """Without the model: 32 vectors' nearest items against 32 users' texts, on a catalogue of any size."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(items, 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words = np.array([f"word{n}" for n in range(2_000)])
    texts = [" ".join(row) for row in random.choice(words, size=(items, 8))]
    search, places = TextSearch(texts), np.arange(items)
    users = [[texts[n] for n in random.choice(items, GenerativeSettings().beams)] for _ in range(32)]
    rates = {"index": Rates(), "BM25": Rates()}
    searcher = kinds.make("flat", vectors)
    searcher.search(vectors[:1], DEPTH)
    for _ in range(rounds):
        rates["index"].time(lambda: searcher.search(vectors[:32], DEPTH), 32)
        rates["BM25"].time(lambda: [take_turns(hits(search, own, places, DEPTH)) for own in users], 32)
    print(f"search alone, {items:,} items")
    show(rates)


class Rates:
    """Users a second of each round, and processor seconds a user, which other work on the machine blurs less."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.busy: list[float] = []

    def time(self, run: Callable[[], Any], users: int) -> Any:
        """Run once and note both."""
        start, busy = time.perf_counter(), time.process_time()
        result = run()
        self.rates.append(users / (time.perf_counter() - start))
        self.busy.append((time.process_time() - busy) / users)
        return result


def show(rates: Mapping[str, Rates]) -> None:
    """Medians, spread, and how many times as fast as each other the first is."""
    first = next(iter(rates.values()))
    for name, each in rates.items():
        ratios = [a / b for a, b in zip(first.rates, each.rates, strict=True)]
        busy = statistics.median(each.busy) / statistics.median(first.busy)
        print(
            f"  {name:13} {statistics.median(each.rates):10,.2f} users/s ({min(each.rates):,.2f} to "
            f"{max(each.rates):,.2f}), {1000 * statistics.median(each.busy):,.2f} ms of a processor a user; "
            f"1/{statistics.median(ratios):,.0f} of the first, by processor 1/{busy:,.0f}",
            flush=True,
        )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, default=32, help="users ranked in a round")
    parser.add_argument("--shoppers", type=int, default=300, help="users of the generated shop")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = open_shop(Path(folder), given.shoppers, INDEX_STAGES)
        compare(work, given.users, given.rounds)
    for items in CATALOGUES:
        search_alone(items, given.rounds)


if __name__ == "__main__":
    main()
