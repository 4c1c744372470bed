"""The interface of everything that ranks: a module's `fit` learns a `Model` from `TrainData`.

Items are integers: the index of the item in the catalogue, which is sorted by item id. Users are rows of `ItemLists`.

Legend: B histories in a batch, n items of the catalogue, k items of a list.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import sparse

from pixrec_core import files, prompts
from pixrec_core.data.item_features import ItemFeatures, read_features, read_photo_features
from pixrec_core.data.sequences import read_all_histories, read_items
from pixrec_core.errors import ArtefactError, MissingArtefactError
from pixrec_core.evaluation.leaks import read_checked_sequences
from pixrec_core.evaluation.validation import tuning_users
from pixrec_core.paths import DatasetPaths
from pixrec_core.ranking_table import id_indices, popularity_ranks, row_batches, top_items
from pixrec_core.schemas import ITEM, ITEMS, TIMESTAMPS, TRAIN, VALIDATION

Scores = NDArray[np.float32]

SCORES_PER_BLOCK: Final = 4_000_000  # users x items that are scored at once; about 150 MB while they are sorted
ARRAYS: Final = "arrays.safetensors"
SETTINGS: Final = "model.json"
CSR_PARTS: Final = ("data", "indices", "indptr", "shape")


@dataclass(frozen=True)
class ItemLists:
    """Concatenated lists of item indices, one list per user.

    Attributes:
        values: the items of all lists.
        offsets: (users + 1,); user u's list is `values[offsets[u]:offsets[u + 1]]`, oldest item first.
        times: (values,) milliseconds since 1970; None if they are unknown or the method does not need them.
        same_visit: (users,) whether the request comes during the visit of the newest item, as on the page of a basket;
            None means a later visit, for all users.
    """

    values: NDArray[np.int64]
    offsets: NDArray[np.int64]
    times: NDArray[np.int64] | None = None
    same_visit: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls, values: NDArray[np.integer], lengths: NDArray[np.integer], times: NDArray[np.int64] | None = None
    ) -> "ItemLists":
        """Build from concatenated lists and the length of each."""
        return cls(values.astype(np.int64), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), times)

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> "ItemLists":
        """Build from Python lists."""
        flat = [item for items in lists for item in items]
        return cls.of(np.array(flat, np.int64), np.array([len(items) for items in lists], np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> NDArray[np.int64]:
        """(values,) the user of each value."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def from_newest(self) -> NDArray[np.int64]:
        """(values,) number of items of the same user after each value; 0 is the newest item."""
        return self.offsets[1:][self.rows] - 1 - np.arange(len(self.values))

    def filter(self, mask: NDArray[np.bool_]) -> "ItemLists":
        """Keep the values where `mask` (values,) is true; a list may become empty."""
        times = None if self.times is None else self.times[mask]
        lists = ItemLists.of(self.values[mask], np.bincount(self.rows[mask], minlength=len(self)), times)
        return replace(lists, same_visit=self.same_visit)

    def batches(self, size: int, most_cells: int = sys.maxsize) -> Iterator[tuple[slice, "ItemLists"]]:
        """Yield at most `size` users at a time, with their slice of all users; `most_cells` as for `row_batches`."""
        for users in row_batches(np.diff(self.offsets), size, most_cells):
            offsets = self.offsets[users.start : users.stop + 1]
            values = slice(offsets[0], offsets[-1])
            times = None if self.times is None else self.times[values]
            same_visit = None if self.same_visit is None else self.same_visit[users]
            yield users, ItemLists(self.values[values], offsets - offsets[0], times, same_visit)

    def matrix(self, n_items: int, weights: NDArray[np.float32]) -> sparse.csr_array:
        """Return (users, n_items) with the weight (values,) of each value; weights of a repeated item add up."""
        # copy=True, because `sum_duplicates` works in place and would change `values`.
        matrix = sparse.csr_array((weights, self.values, self.offsets), shape=(len(self), n_items), copy=True)
        matrix.sum_duplicates()
        return matrix

    def incidence(self, n_items: int) -> sparse.csr_array:
        """Return (users, n_items) with 1 where the user has the item, once or more."""
        matrix = self.matrix(n_items, np.ones(len(self.values), np.float32))
        matrix.data[:] = 1
        return matrix


@dataclass(frozen=True)
class TrainData:
    """Everything that a method may learn from. It holds no test target and no validation target of a stacking user.

    Attributes:
        n_items: n, items of the catalogue.
        train: training sequences, one per user.
        times: milliseconds since 1970, one per value of `train`.
        validation: histories of the tuning users, only to choose settings.
        targets: (tuning users,) the item that follows each of these histories.
        texts: (n,) item texts.
        text_features: reads the vectors of the texts; raises a MissingArtefactError if `item_features` has not run, and
            an ArtefactError if a file is damaged.
        photo_features: the same of the photos.
        chosen: settings to fit with, chosen in an earlier fit; None to choose them.
    """

    n_items: int
    train: ItemLists
    times: NDArray[np.int64]
    validation: ItemLists
    targets: NDArray[np.int64]
    texts: Sequence[str]
    text_features: Callable[[], ItemFeatures]
    photo_features: Callable[[], ItemFeatures]
    chosen: Mapping[str, float] | None = None

    @classmethod
    def read(cls, paths: DatasetPaths) -> Self:
        """Read sequences.duckdb; item features are read when a method asks for them.

        Raises:
            MissingArtefactError: the stage `sequences` has not run.
            ContractError: sequences hold held-out items.
        """
        sequences = read_checked_sequences(paths)
        validation = sequences[VALIDATION]
        return cls._from_sequences(paths, sequences[TRAIN], validation.filter(tuning_users(validation.height)))

    @classmethod
    def read_all(cls, paths: DatasetPaths) -> Self:
        """Read all interactions as training sequences, held-out ones included: only to serve, never to measure.

        Raises:
            MissingArtefactError: the stage `sequences` has not run.
        """
        histories = read_all_histories(paths)
        return cls._from_sequences(paths, histories, histories.clear())

    @classmethod
    def _from_sequences(cls, paths: DatasetPaths, train: pl.DataFrame, tuning: pl.DataFrame) -> Self:
        catalogue = read_items(paths)
        return cls(
            n_items=catalogue.height,
            train=index_lists(train[ITEMS], catalogue[ITEM]),
            times=train[TIMESTAMPS].explode(empty_as_null=False).to_numpy(),
            validation=index_lists(before_target(tuning), catalogue[ITEM]),
            targets=index_lists(tuning.select(pl.col(ITEMS).list.tail(1)).to_series(), catalogue[ITEM]).values,
            texts=[prompts.item_text(item) for item in catalogue.iter_rows(named=True)],
            text_features=partial(read_features, paths.item_features, "text"),
            photo_features=partial(read_photo_features, paths),
        )

    @cached_property
    def train_counts(self) -> NDArray[np.int64]:
        """(n,) occurrences of each item in training sequences."""
        return np.bincount(self.train.values, minlength=self.n_items)

    @cached_property
    def popularity_ranks(self) -> NDArray[np.int64]:
        """(n,) position of each item in the popularity order, which breaks ties."""
        return popularity_ranks(self.train_counts)


@dataclass(frozen=True, eq=False, kw_only=True)
class Method(ABC):
    """Ranks the catalogue for any history: a fitted model, a dual tower or the blend.

    Equal scores are ordered by training popularity, then by item id. So a history without an item that the method knows
    gets the popularity order.

    Attributes:
        popularity_ranks: (n,) position of each item in the popularity order.
    """

    popularity_ranks: NDArray[np.int64]

    @property
    def n_items(self) -> int:
        return len(self.popularity_ranks)

    @abstractmethod
    def scores(self, histories: ItemLists) -> Scores:
        """Return finite float32 scores (B, n) of all items; higher is better. A history may be empty."""

    def candidates(
        self, histories: ItemLists, k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], Scores]:
        """Return the k best items of each history and their scores, both (B, k), best first. Seen items are included.

        Item -1 fills lists if fewer than k items are `allowed` (n,); None allows all. Memory is bounded by
        `SCORES_PER_BLOCK` for any number of histories.
        """
        items = np.full((len(histories), k), -1, np.int64)
        scores = np.zeros((len(histories), k), np.float32)
        ids = np.arange(self.n_items) if allowed is None else np.flatnonzero(allowed)
        if not (found := min(k, len(ids))):
            return items, scores
        ranks = self.popularity_ranks if allowed is None else np.argsort(np.argsort(self.popularity_ranks[ids]))
        for block, part in histories.batches(max(1, SCORES_PER_BLOCK // self.n_items)):
            values = self.scores(part) if allowed is None else self.scores(part)[:, ids]
            best, scores[block, :found] = top_items(values, np.full(len(part), found), ranks)
            items[block, :found] = ids[best]
        return items, scores


@dataclass(frozen=True, eq=False, kw_only=True)
class Model(Method):
    """A method that `fit` returns.

    A subclass is a frozen dataclass. Its fields are arrays, CSR matrices, mappings from names to arrays, and JSON
    values, so that `save` and `load` work without further code.

    Attributes:
        chosen: settings that were chosen on validation targets, with their metric; empty for a method without settings.
    """

    chosen: Mapping[str, float] = field(default_factory=dict)

    def save(self, folder: Path, catalogue: str = "") -> None:
        """Replace the folder by the model as safetensors and JSON.

        `catalogue` is the digest of the items that the model ranks: see `data.sequences.catalogue_digest`.
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        settings = {name: value for name, value in values.items() if _array_parts(value) is None}
        arrays = flatten_arrays({name: value for name, value in values.items() if name not in settings})
        with files.replacing(folder) as temporary:
            temporary.mkdir()
            save_file(arrays, temporary / ARRAYS)
            method = type(self).__module__.rpartition(".")[2]
            shapes = {name: [str(array.dtype), *array.shape] for name, array in arrays.items()}
            description = {"method": method, "catalogue": catalogue, "settings": settings, "arrays": shapes}
            files.write_json(temporary / SETTINGS, description)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a model that `save` wrote. It gives the same scores.

        Raises:
            MissingArtefactError: the folder holds no model.
            ArtefactError: a file is damaged, or the model has other fields.
        """
        content = _read_settings(folder)
        try:
            arrays = load_file(files.require(folder / ARRAYS))
            _require_shapes(arrays, content["arrays"])
            return cls(**content["settings"], **join_arrays(arrays))
        except Exception as error:  # safetensors raises its own type, derived from Exception only
            if isinstance(error, MissingArtefactError):
                raise
            message = f"{folder} holds no model of {cls.__name__} ({error}); run the stage `baselines` with --force"
            raise ArtefactError(message) from error


def model_method(folder: Path) -> str:
    """Return the name of the method, which is its module, of a saved model.

    Raises:
        MissingArtefactError: the folder holds no model.
        ArtefactError: model.json is damaged.
    """
    return str(_read_settings(folder)["method"])


def model_catalogue(folder: Path) -> str:
    """Return the digest of the catalogue that a saved model ranks.

    Raises:
        MissingArtefactError: the folder holds no model.
        ArtefactError: model.json is damaged.
    """
    return str(_read_settings(folder)["catalogue"])


def _read_settings(folder: Path) -> dict[str, Any]:
    content = files.read_json(folder / SETTINGS)
    if not isinstance(content, dict) or not {"method", "catalogue", "settings", "arrays"} <= content.keys():
        raise ArtefactError(f"{folder / SETTINGS} describes no model; run the stage `baselines` with --force")
    return content


def _require_shapes(arrays: Mapping[str, NDArray[Any]], expected: Mapping[str, list[Any]]) -> None:
    """Raise a ValueError that names the arrays that differ from the recorded ones."""
    found = {name: [str(array.dtype), *array.shape] for name, array in arrays.items()}
    if wrong := sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)):
        name = wrong[0]
        more = f", and {len(wrong) - 1} more arrays differ" if len(wrong) > 1 else ""
        raise ValueError(f"{name} is {found.get(name, 'missing')}, {SETTINGS} says {expected.get(name, 'none')}{more}")


def _array_parts(value: Any) -> dict[str, NDArray[Any]] | None:
    """Return the arrays of a field by the suffix of their names; None for a JSON value."""
    if isinstance(value, np.ndarray):
        return {"": value}
    if sparse.issparse(value):
        return {f".{part}": np.asarray(getattr(value, part)) for part in CSR_PARTS}
    if isinstance(value, Mapping) and value and all(isinstance(each, np.ndarray) for each in value.values()):
        return {f"/{name}": array for name, array in value.items()}
    return None


def flatten_arrays(values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return arrays, CSR matrices and mappings of arrays as arrays only, by name, for safetensors."""
    return {
        f"{name}{part}": np.ascontiguousarray(array)
        for name, value in values.items()
        for part, array in (_array_parts(value) or {}).items()
    }


def join_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return what `flatten_arrays` has made arrays of.

    Raises:
        KeyError: a part of a matrix is missing.
        ValueError: a matrix is damaged.
    """
    joined: dict[str, Any] = {}
    for name, array in arrays.items():
        whole, _, key = name.partition("/")
        if key:
            joined.setdefault(whole, {})[key] = array
        elif name.endswith(".data"):
            matrix = name.removesuffix(".data")
            data, indices, indptr, shape = (arrays[f"{matrix}.{part}"] for part in CSR_PARTS)
            joined[matrix] = sparse.csr_array((data, indices, indptr), shape=tuple(shape.tolist()))
            joined[matrix].check_format(full_check=True)  # SciPy would read any memory that a wrong index points to
        elif "." not in name:
            joined[name] = array
    return joined


def before_target(sequences: pl.DataFrame) -> pl.Series:
    """Return the items of each sequence without the last one."""
    return sequences.select(pl.col(ITEMS).list.slice(0, pl.col(ITEMS).list.len() - 1)).to_series()


def position_in_run(sorted_values: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the position of each value within its run of equal values, from 0."""
    return np.arange(len(sorted_values)) - np.searchsorted(sorted_values, sorted_values)


def index_lists(lists: pl.Series, item_ids: pl.Series) -> ItemLists:
    """Return lists of item ids as lists of indices into `item_ids`, which is sorted and holds all of them."""
    values = lists.explode(empty_as_null=False).to_frame(ITEM).select(id_indices(pl.col(ITEM), item_ids)).to_series()
    return ItemLists.of(values.to_numpy(), lists.list.len().to_numpy())
