"""Users a second at inference: PixRec's vectors and index against generating texts and looking them up by BM25.

The alternative is the paper's: the same checkpoint's language model reads the same history, writes 32 texts
of the next item by beam search, and each text ranks the catalogue by BM25 (bm25s, its index built once). The
beams then take turns, the likeliest first, each naming its best item that is not in the list yet. It is given
the photos' features ready made and its users in batches of like length, as PixRec is.

    python -m benchmarks.retrieval [--rounds 3] [--users 32] [--shoppers 300]

Both list 100 items for the same users, in turns in one process, on a checkpoint of one epoch over the
generated shop. Then the search alone, without the model, over larger catalogues of random vectors and texts.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.training import DATA_STAGES
from pixrec_core import pipeline, prompts, schemas
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.models import checkpoint
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.retrieval import encode, index, kinds
from pixrec_core.settings import Settings
from pixrec_core.stages import Work

BEAMS = 32
DEPTH = 100  # items of a list
CATALOGUES = (400, 4_000, 100_000)
STAGES = (*DATA_STAGES, pipeline.CHECKPOINT, pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX)

Rows = NDArray[np.int64]
Histories = Sequence[Sequence[int]]


class Generator:
    """Beam search and BM25.

    Args:
        work: of a shop whose items have been encoded.
        at_a_time: users whose texts are generated in one batch.
    """

    def __init__(self, work: Work, at_a_time: int) -> None:
        paths = work.variant_paths
        self._model, processor = checkpoint.load(paths.checkpoint)
        self._inputs = TowerInputs.load(paths, self._model.backbone, processor, work.own.model.item_tokens)
        self._collator = self._inputs.collator(
            encode.history_features(work.own.model, paths, self._model, self._inputs)
        )
        self._tokenizer = processor.tokenizer
        self._next = torch.tensor(processor.text_ids(prompts.NEXT))
        self._tokens = round(statistics.median(block.text_length for block in self._inputs.inputs.blocks))
        self._texts = Texts([prompts.item_text(item) for item in read_items(work.paths).iter_rows(named=True)])
        self._at_a_time = at_a_time

    @torch.inference_mode()
    def rank(self, histories: Histories) -> Rows:
        """The items of each user's list, (U, 100)."""
        rows = np.empty((len(histories), DEPTH), np.int64)
        order = sorted(range(len(histories)), key=lambda user: len(histories[user]))
        for start in range(0, len(order), self._at_a_time):
            users = order[start : start + self._at_a_time]
            for user, texts in zip(users, self._generate([histories[n] for n in users]), strict=True):
                rows[user] = self._texts.rank(texts)
        return rows

    def _generate(self, histories: Histories) -> list[list[str]]:
        """32 texts of each user's next item, the likeliest first."""
        batch = self._collator.histories(histories)
        embeddings = self._embeddings(batch["ids"], batch["slots"], self._model.photo_features(batch["photos"]))
        lead = self._model.backbone.get_input_embeddings()(self._next)
        prompts_ = [torch.cat([row[: span[-1, 1]], lead]) for row, span in zip(embeddings, batch["spans"], strict=True)]
        longest = max(len(prompt) for prompt in prompts_)
        left = [torch.nn.functional.pad(prompt, (0, 0, longest - len(prompt), 0)) for prompt in prompts_]
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts_])
        ids = self._model.backbone.generate(
            inputs_embeds=torch.stack(left),
            attention_mask=mask,
            num_beams=BEAMS,
            num_return_sequences=BEAMS,
            max_new_tokens=self._tokens,
            do_sample=False,
        )
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [texts[start : start + BEAMS] for start in range(0, len(texts), BEAMS)]

    def _embeddings(self, ids: torch.Tensor, slots: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """What `DualTower.hidden_states` gives the language model."""
        embeddings = self._model.backbone.get_input_embeddings()(ids)
        assert features is not None, "the generated shop has photos"
        flat = features.reshape(-1, features.shape[-1])
        return torch.where((slots >= 0)[..., None], flat[slots.clamp(min=0)], embeddings)


class Texts:
    """BM25 over the catalogue's texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._bm25 = bm25s.BM25()
        self._bm25.index(bm25s.tokenize(list(texts), stopwords=None, show_progress=False), show_progress=False)

    def rank(self, generated: list[str]) -> Rows:
        """The list of one user, (100,): texts take turns, each with its best item that is not listed yet."""
        words = bm25s.tokenize(generated, stopwords=None, show_progress=False, return_ids=False)
        best, _ = self._bm25.retrieve(words, k=DEPTH, show_progress=False)
        listed: dict[int, None] = {}
        turns = [iter(row) for row in best.tolist()]
        while len(listed) < DEPTH:
            for turn in turns:
                listed[next(item for item in turn if item not in listed)] = None
                if len(listed) == DEPTH:
                    break
        return np.array(list(listed))


class Retriever:
    """PixRec's own path: histories to vectors, vectors to the index."""

    def __init__(self, work: Work) -> None:
        paths = work.variant_paths
        self._model, processor = checkpoint.load(paths.checkpoint)
        self._inputs = TowerInputs.load(paths, self._model.backbone, processor, work.own.model.item_tokens)
        self._photos = encode.history_features(work.own.model, paths, self._model, self._inputs)
        self._index = index.load(paths)

    def rank(self, histories: Histories) -> Rows:
        """The items of each user's list, (U, 100)."""
        vectors = encode.user_vectors(self._model, self._inputs, self._photos, histories)
        return self._index.nearest(vectors, DEPTH)[0]


def compare(work: Work, users: int, at_a_time: int, rounds: int) -> None:
    """Both paths in turns."""
    retriever, generator = Retriever(work), Generator(work, at_a_time)
    sequences = read_sequences(work.paths, schemas.TEST).sample(users, seed=0)[schemas.ITEMS]
    numbers = {item: n for n, item in enumerate(encode.read_item_ids(work.variant_paths.item_vectors))}
    histories = [[numbers[item] for item in items[-1 - work.own.training.window : -1]] for items in sequences]
    contenders = ((retriever.rank, Rates()), (generator.rank, Rates()))
    for rank, _ in contenders:
        rank(histories[:1])  # what is set up at first use is no part of the rate
    for _ in range(rounds):
        for rank, rates in contenders:
            lists = rates.time(lambda rank=rank: rank(histories), users)
            assert all(len(set(row)) == DEPTH for row in lists.tolist()), "an item stands twice in a list"
    print(f"{users} users, {len(numbers)} items, lists of {DEPTH}; {at_a_time} users a batch of beams")
    show(*(rates for _, rates in contenders))


def search_alone(items: int, rounds: int) -> None:
    """Without the model: 32 vectors' nearest items against 32 users' texts, on a catalogue of any size."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(items, 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words = np.array([f"word{n}" for n in range(2_000)])
    texts = [" ".join(row) for row in random.choice(words, size=(items, 8))]
    bm25 = Texts(texts)
    users = [[texts[n] for n in random.choice(items, BEAMS)] for _ in range(32)]
    ours, theirs = Rates(), Rates()
    searcher = kinds.make("flat", vectors)
    searcher.search(vectors[:1], DEPTH)
    for _ in range(rounds):
        ours.time(lambda: searcher.search(vectors[:32], DEPTH), 32)
        theirs.time(lambda: [bm25.rank(generated) for generated in users], 32)
    print(f"search alone, {items:,} items")
    show(ours, theirs)


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


def show(ours: Rates, theirs: Rates) -> None:
    """Medians, spread and ratios."""
    for name, each in (("pixrec", ours), ("beams + BM25", theirs)):
        print(
            f"  {name:13} {statistics.median(each.rates):10,.2f} users/s ({min(each.rates):,.2f} to "
            f"{max(each.rates):,.2f}), {1000 * statistics.median(each.busy):,.2f} ms of a processor a user"
        )
    ratios = [a / b for a, b in zip(ours.rates, theirs.rates, strict=True)]
    busy = statistics.median(theirs.busy) / statistics.median(ours.busy)
    spread = f"{min(ratios):,.0f} to {max(ratios):,.0f}"
    print(f"  ratio {statistics.median(ratios):,.0f}x ({spread}), by processor {busy:,.0f}x", flush=True)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, default=32, help="users ranked in a round")
    parser.add_argument("--at-a-time", type=int, default=8, help="users in a batch of beams")
    parser.add_argument("--shoppers", type=int, default=300, help="users of the generated shop")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sample = {"source": {"kind": "sample", "users": given.shoppers}, "model": {"item_tokens": 16}}
        own = sample | {"training": {"epochs": 1}}
        work = Work(
            Settings(root=Path(folder), data_dir=Path(folder), datasets={"sample": own}), "sample", "multimodal"
        )
        for stage in STAGES:
            stage.materialise(work)
        compare(work, given.users, given.at_a_time, given.rounds)
    for items in CATALOGUES:
        search_alone(items, given.rounds)


if __name__ == "__main__":
    main()
