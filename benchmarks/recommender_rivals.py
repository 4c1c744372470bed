"""Recommenders of RecTools and implicit, fitted on arrays; `benchmarks.recommenders` runs this in their environment.

    python recommender_rivals.py INPUTS.npz OUTPUTS.npz METHOD ...

Each method has a small grid of settings. NDCG@10 on the tuning users chooses, as for our methods. This file imports
nothing of PixRec, whose pins of NumPy and pandas differ.
"""

import copy
import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender
from rectools.dataset import Dataset, IdMap, Interactions
from rectools.models import EASEModel, SASRecModel
from scipy.sparse import csr_matrix

EPOCHS, EPOCHS_PER_CHECK, PATIENCE = 60, 2, 5  # of SASRec; patience counts checks

Table = dict[str, np.ndarray]  # user, item and time of interactions, sorted by user and time
Rank = Callable[[Table, np.ndarray, int], np.ndarray]  # interactions, users, k -> (users, k) items


def counts(table: Table, n_users: int, n_items: int) -> csr_matrix:
    """Return (users, items) 1 where a user has an item."""
    matrix = csr_matrix((np.ones(len(table["user"]), np.float32), (table["user"], table["item"])), (n_users, n_items))
    matrix.data[:] = 1
    return matrix


def implicit_als(data: Any) -> Iterator[tuple[str, Rank]]:
    """Weighted matrix factorisation (Hu et al. 2008); factors of a history are solved for when ranking."""
    shape = data["n_users"], data["n_items"]
    for factors, penalty, alpha in itertools.product((64, 128), (0.01, 1.0), (1.0, 20.0)):
        model = AlternatingLeastSquares(factors, regularization=penalty, alpha=alpha, random_state=0, num_threads=1)
        model.fit(counts(data["train"], *shape), show_progress=False)

        def rank(table: Table, users: np.ndarray, k: int, model: Any = model) -> np.ndarray:
            rows = counts(table, *shape)[users]
            return model.recommend(users, rows, k, filter_already_liked_items=False, recalculate_user=True)[0]

        yield f"factors {factors}, penalty {penalty:g}, alpha {alpha:g}", rank


def implicit_knn(data: Any) -> Iterator[tuple[str, Rank]]:
    """Item kNN by the cosine of plain, TF-IDF or BM25 weights."""
    shape = data["n_users"], data["n_items"]
    for kind, neighbours in itertools.product((CosineRecommender, TFIDFRecommender, BM25Recommender), (50, 200, 500)):
        model = kind(neighbours, num_threads=1)
        model.fit(counts(data["train"], *shape), show_progress=False)

        def rank(table: Table, users: np.ndarray, k: int, model: Any = model) -> np.ndarray:
            rows = counts(table, *shape)[users]
            return model.recommend(users, rows, k, filter_already_liked_items=False)[0]

        yield f"{kind.__name__}, {neighbours} neighbours", rank


def implicit_bpr(data: Any) -> Iterator[tuple[str, Rank]]:
    """Matrix factorisation by BPR (Rendle et al. 2009). It has factors of trained users only, so ranking fits again."""
    shape = data["n_users"], data["n_items"]
    for factors, rate, penalty in itertools.product((64, 128), (0.01, 0.05), (0.01, 0.1)):

        def rank(table: Table, users: np.ndarray, k: int, settings: Any = (factors, rate, penalty)) -> np.ndarray:
            known = np.isin(data["train"]["user"], users, invert=True)
            rest = {name: np.concatenate([column[known], table[name]]) for name, column in data["train"].items()}
            model = BayesianPersonalizedRanking(*settings, iterations=100, random_state=0, num_threads=1)
            model.fit(counts(rest, *shape), show_progress=False)
            rows = counts(table, *shape)[users]
            return model.recommend(users, rows, k, filter_already_liked_items=False)[0]

        yield f"factors {factors}, rate {rate:g}, penalty {penalty:g}", rank


def dataset_of(data: Any, table: Table) -> Dataset:
    """Return a RecTools dataset whose item ids are our indices."""
    frame = pd.DataFrame(
        {
            "user_id": table["user"],
            "item_id": table["item"],
            "weight": 1.0,
            "datetime": pd.to_datetime(table["time"], unit="ms"),
        }
    )
    users, items = IdMap(np.unique(table["user"])), IdMap(np.arange(data["n_items"]))
    return Dataset(users, items, Interactions.from_raw(frame, users, items))


def lists_of(found: pd.DataFrame, users: np.ndarray, k: int) -> np.ndarray:
    """Return (users, k) items of a RecTools table; -1 after the end of a list."""
    items = np.full((len(users), k), -1, np.int64)
    items[np.searchsorted(users, found["user_id"]), found["rank"] - 1] = found["item_id"]
    return items


def rectools_ease(data: Any) -> Iterator[tuple[str, Rank]]:
    """EASE (Steck 2019)."""
    unique = pd.DataFrame(data["train"]).drop_duplicates(["user", "item"], keep="last")
    for penalty in (50, 100, 250, 500, 1000):
        model = EASEModel(penalty, recommend_n_threads=1, recommend_use_gpu_ranking=False)
        model.fit(dataset_of(data, {name: unique[name].to_numpy() for name in unique}))

        def rank(table: Table, users: np.ndarray, k: int, model: Any = model) -> np.ndarray:
            last = pd.DataFrame(table).drop_duplicates(["user", "item"], keep="last")
            dataset = dataset_of(data, {name: last[name].to_numpy() for name in last})
            return lists_of(model.recommend(users, dataset, k, filter_viewed=False), users, k)

        yield f"penalty {penalty}", rank


def rectools_sasrec(data: Any) -> Iterator[tuple[str, Rank]]:
    """SASRec with RecTools' softmax over the catalogue; it stops by NDCG@10 on the tuning users, as ours does."""
    known = np.unique(data["train"]["item"])
    batch = 128 if data["n_users"] > 2000 else 32  # few users: more steps per epoch
    for factors, dropout in ((64, 0.1), (64, 0.3), (128, 0.2)):
        np.random.seed(0)  # noqa: NPY002  # RecTools and Lightning read the global generator
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(1)
        model = SASRecModel(
            n_factors=factors, n_blocks=2, n_heads=1, dropout_rate=dropout, session_max_len=100, batch_size=batch,
            recommend_torch_device="cpu", recommend_n_threads=1, deterministic=True,
        )  # fmt: skip

        def rank(table: Table, users: np.ndarray, k: int, model: Any = model) -> np.ndarray:
            readable = np.isin(table["item"], known)
            table = {name: column[readable] for name, column in table.items()}
            with_history = np.intersect1d(users, table["user"])
            k = min(k, len(known))
            found = model.recommend(with_history, dataset_of(data, table), k, filter_viewed=False)
            return lists_of(found, users, k)

        train, best, since, epochs, chosen = dataset_of(data, data["train"]), -1.0, 0, 0, 0
        while epochs < EPOCHS and since < PATIENCE:
            model.fit_partial(train, min_epochs=EPOCHS_PER_CHECK, max_epochs=EPOCHS_PER_CHECK)
            epochs, since = epochs + EPOCHS_PER_CHECK, since + 1
            if (ndcg := tuning_ndcg(data, rank)) > best:
                best, since, chosen = ndcg, 0, epochs
                state = copy.deepcopy(model.lightning_model.torch_model.state_dict())
        model.lightning_model.torch_model.load_state_dict(state)
        yield f"factors {factors}, dropout {dropout:g}, epochs {chosen}", rank


def tuning_ndcg(data: Any, rank: Rank) -> float:
    """Return the mean NDCG@10 over the tuning users."""
    found = rank(data["tuning"], data["tuning_users"], 10) == data["tuning_targets"][:, None]
    return float((found[:, :10] / np.log2(2 + np.arange(10))[: found.shape[1]]).sum(axis=1).mean())


METHODS = {each.__name__: each for each in (implicit_knn, implicit_als, implicit_bpr, rectools_ease, rectools_sasrec)}


def main() -> None:
    """Fit the methods and write the lists of the best setting of each."""
    warnings.filterwarnings("ignore")
    loaded = dict(np.load(sys.argv[1]))
    data: dict[str, Any] = {name: loaded[name] for name in ("tuning_users", "tuning_targets", "test_users")}
    data |= {name: int(loaded[name]) for name in ("n_users", "n_items", "k")}
    for part in ("train", "tuning", "test"):
        data[part] = {name: loaded[f"{part}.{name}"] for name in ("user", "item", "time")}
    lists = {}
    for method in sys.argv[3:]:
        start, best = time.process_time(), -1.0
        for settings, rank in METHODS[method](data):
            ndcg = tuning_ndcg(data, rank)
            print(f"  {method}: {settings}: NDCG@10 {ndcg:.4f} on tuning users", flush=True)
            if ndcg > best:
                best, chosen = ndcg, settings
                lists[method] = rank(data["test"], data["test_users"], data["k"])
        print(f"{method}: {chosen}; {time.process_time() - start:.0f} CPU s", flush=True)
    np.savez(sys.argv[2], **lists)


if __name__ == "__main__":
    main()
