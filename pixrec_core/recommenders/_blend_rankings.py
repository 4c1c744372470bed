"""Rankings of methods, read as candidates of users."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pyarrow import ArrowInvalid, parquet

from pixrec_core import files
from pixrec_core.errors import ArtefactError, SettingsError
from pixrec_core.paths import BLEND, DatasetPaths, MethodPaths
from pixrec_core.ranking_table import row_batches
from pixrec_core.recommenders._blend_features import (
    Candidates,
    Ints,
    ItemTable,
    MethodLists,
    concatenate,
    find_candidates,
    timed_histories,
)
from pixrec_core.recommenders._blend_training import TrainingUsers
from pixrec_core.recommenders.base import ItemLists
from pixrec_core.schemas import ITEM, ITEMS, RANK, RANKING_SCHEMA, SCORE, USER
from pixrec_core.settings import BlendSettings

USERS_PER_BATCH: Final = 512  # about 100 MB of features
CELLS_PER_BATCH: Final = 256_000  # users x items of the longest history; each method's lists are longer than those


def find_methods(settings: BlendSettings, paths: DatasetPaths, variants: Sequence[str]) -> dict[str, MethodPaths]:
    """Return the artefacts of each method that feeds the blend.

    Raises:
        MissingArtefactError: the stage `baselines` has not run.
        SettingsError: a method of the settings has not been built.
    """
    files.require(paths.baselines)
    ranked = paths.ranked_methods(variants)
    found = {name: each for name, each in ranked.items() if name != BLEND and each.validation_ranking.exists()}
    if unknown := sorted(set(settings.methods) - set(found)):
        raise SettingsError(
            f"blend.methods names {', '.join(unknown)}, which has not been built; there are: {', '.join(found)}"
        )
    return {name: found[name] for name in (settings.methods or found)}


def read_training_users(
    methods: Mapping[str, MethodPaths], k: int, stacking: pl.DataFrame, item_ids: pl.Series, table: ItemTable
) -> TrainingUsers | None:
    """Return the stacking users with their candidates; None where there are no users.

    Users whose target is no candidate have none: no training uses them, and their NDCG is 0 whatever the blend. They
    are most of the users of a large catalogue, and their candidates would be most of the memory.
    """
    if stacking.is_empty():
        return None
    targets = last_items(stacking, item_ids)
    rankings = {method: each.validation_ranking for method, each in methods.items()}
    found: list[Candidates] = []
    sizes: list[int] = []
    for lists, histories in read_batches(rankings, stacking, item_ids):
        candidates = find_candidates(lists, histories, table, k)
        is_target = candidates.items == targets[sum(sizes) :][candidates.rows]
        hit = np.bincount(candidates.rows[is_target], minlength=len(histories)) > 0
        found.append(candidates.take(hit[candidates.rows]))
        sizes.append(len(histories))
    return TrainingUsers(concatenate(found, sizes), targets)


def last_items(sequences: pl.DataFrame, item_ids: pl.Series) -> Ints:
    """Return (users,) the index of the last item of each sequence."""
    last = sequences[ITEMS].list.last().cast(pl.Enum(item_ids)).to_physical()
    return last.to_numpy().astype(np.int64)


def read_batches(
    rankings: Mapping[str, Path],
    sequences: pl.DataFrame,
    item_ids: pl.Series,
    selected: NDArray[np.bool_] | None = None,
) -> Iterator[tuple[dict[str, MethodLists], ItemLists]]:
    """Yield the lists of each method and the histories of the selected users, among a few hundred users at a time.

    Raises:
        ArtefactError: a ranking is not one of these users.
    """
    chosen = np.ones(sequences.height, np.bool_) if selected is None else selected
    batches = list(row_batches(sequences[ITEMS].list.len().to_numpy(), USERS_PER_BATCH, CELLS_PER_BATCH))
    readers = [_read_lists(path, method, sequences[USER], item_ids, batches) for method, path in rankings.items()]
    for batch, *lists in zip(batches, *readers, strict=True):
        part = chosen[batch]
        users = sequences[batch].filter(pl.Series(part))
        if users.height:
            found = {
                m: MethodLists(each.items[part], each.scores[part]) for m, each in zip(rankings, lists, strict=True)
            }
            yield found, timed_histories(users, item_ids)


def _read_lists(
    path: Path, method: str, users: pl.Series, item_ids: pl.Series, batches: Sequence[slice]
) -> Iterator[MethodLists]:
    """Yield a ranking as arrays, one batch of users at a time: there may be millions of users.

    Args:
        path: of a ranking in the order of `users`.
        method: its name.
        users: (U,) ids, sorted.
        item_ids: (n,) ids of the catalogue.
        batches: consecutive slices of the users.

    Raises:
        ArtefactError: the ranking is of other users or items, in another order, or damaged.
    """
    fault = ArtefactError(f"the ranking {path} of {method} is of other users or items; rank them again")
    indices = pl.Enum(item_ids)
    frames = _read_frames(path, method)
    table = RANKING_SCHEMA.to_frame()
    for batch in batches:
        part = users[batch]
        while (table.is_empty() or table[USER][-1] <= part[-1]) and (more := next(frames, None)) is not None:
            table = pl.concat([table, more])
        in_part = table.filter(pl.col(USER) <= part[-1])
        table = table[in_part.height :]
        items = in_part[ITEM].cast(indices, strict=False).to_physical()
        runs = in_part[USER].rle().struct
        if not runs.field("value").equals(part) or items.null_count():
            raise fault
        lengths, columns = runs.field("len").to_numpy(), in_part[RANK].to_numpy() - 1
        shape = (len(part), int(columns.max(initial=-1)) + 1)
        lists = MethodLists(np.full(shape, -1, np.int64), np.zeros(shape, np.float32))
        rows = np.repeat(np.arange(len(part)), lengths)
        lists.items[rows, columns] = items.to_numpy()
        lists.scores[rows, columns] = in_part[SCORE].to_numpy()
        yield lists
    if table.height or next(frames, None) is not None:
        raise fault


def _read_frames(path: Path, method: str) -> Iterator[pl.DataFrame]:
    """Yield the rows of a ranking, some at a time.

    Raises:
        ArtefactError: the file is damaged.
    """
    try:
        with parquet.ParquetFile(files.require(path)) as file:
            for rows in file.iter_batches(columns=list(RANKING_SCHEMA)):
                yield pl.DataFrame(pl.from_arrow(rows))
    except (ArrowInvalid, OSError) as error:
        raise ArtefactError(f"the ranking {path} of {method} is damaged ({error}); rank again with --force") from error
