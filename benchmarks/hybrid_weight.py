"""Validation metrics of the hybrid ranker for several values of `generative.likelihood_weight`, one line per value.

A setting must not be chosen on test users, so this ranks for validation users, with the artefacts of a variant that has
an index. The likelihood of a text is computed once for all weights.

    python -m benchmarks.hybrid_weight --dataset sample [--variant multimodal] [--users 500] [--candidates 100]
"""

import argparse

import numpy as np
import torch

from pixrec_core import schemas
from pixrec_core.data.sequences import read_sequences
from pixrec_core.evaluation import metrics
from pixrec_core.retrieval.rankers import RankedItems, UserBatch
from pixrec_core.retrieval.rankers._trie import Trie
from pixrec_core.retrieval.rankers.hybrid import mix_scores, text_likelihoods
from pixrec_core.retrieval.ranking import rank_in_batches
from pixrec_core.retrieval.retriever import Retriever
from pixrec_core.settings import load_settings
from pixrec_core.stages import Work

WEIGHTS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@torch.inference_mode()
def compare(work: Work, users: int, candidates: int) -> None:
    """Print the metrics of every weight."""
    retriever = Retriever.load(work.variant_paths)
    encoder, catalogue = retriever.encoder, retriever.ranker_catalogue(work.variant_paths)
    trie = Trie.from_texts(catalogue.token_texts())
    validation = read_sequences(work.paths, schemas.VALIDATION)
    validation = validation.sample(min(users, validation.height), seed=0)
    sequences = encoder.inputs.numbers(validation[schemas.ITEMS]).to_list()
    histories, targets = [each[:-1] for each in sequences], np.array([each[-1] for each in sequences])
    batch = retriever.user_batch(histories, encoder.user_vectors(histories), np.full(len(histories), candidates))

    def rank(users: UserBatch) -> list[RankedItems]:
        texts = [trie.text_of[items] for items in users.nearest]
        found = text_likelihoods(catalogue.read(users.histories), trie, texts, encoder.model.device)
        return [
            RankedItems(items, values.astype(np.float32)) for items, values in zip(users.nearest, found, strict=True)
        ]

    found = rank_in_batches(rank, batch, "hybrid")
    print(f"{work.dataset}, {work.variant}: {len(targets)} validation users, {candidates} candidates")
    for weight in WEIGHTS:
        ranks = np.full(len(targets), np.inf)
        for user, (items, values) in enumerate(found):
            scores = mix_scores(batch.cosines[user], values.astype(np.float64), weight)
            position = np.flatnonzero(items[np.argsort(-scores, kind="stable")] == targets[user])
            ranks[user] = position[0] + 1 if len(position) else np.inf
        recall, ndcg = metrics.recall(ranks, 10).mean(), metrics.ndcg(ranks, 10).mean()
        print(f"  weight {weight:4}: Recall@10 {recall:.4f}, NDCG@10 {ndcg:.4f}", flush=True)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--variant", default="multimodal")
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--candidates", type=int, default=100, help="nearest items to re-rank")
    given = parser.parse_args()
    compare(Work(load_settings(), given.dataset, given.variant), given.users, given.candidates)


if __name__ == "__main__":
    main()
