"""Candidate rules: which items a list may have, before it is cut to its length."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core.errors import QueryError
from pixrec_core.schemas import CATEGORIES, DAY_MS, IN_STOCK, ITEM, MAIN_CATEGORY, PRICE, STORE, clean_id
from pixrec_core.settings import CandidateRules

log = logging.getLogger(__name__)

NO_GROUP: Final = -1  # of an item without category or brand; not limited
_OF_IDS: Final = ("allow", "deny", "pin")  # rules that name items

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ItemRules:
    """Rules applied to a catalogue of n items.

    Attributes:
        allowed: (n,) whether an item may be in any list.
        pins: items that come first, in this order; all of them are allowed.
        limits: for each limited kind of group, the group of each item (n,) and how many items of it a list may have.
        filter_seen: whether items of the history are left out.
        bought_within_days: items of the history that are newer are left out.
    """

    allowed: Mask
    pins: Ints
    limits: tuple[tuple[Ints, int], ...]
    filter_seen: bool
    bought_within_days: float

    @classmethod
    def of(cls, catalogue: pl.DataFrame, settings: CandidateRules, query: CandidateRules) -> Self:
        """Apply the rules of the settings file and those of a query together.

        An unknown item in the settings file is ignored, since the catalogue changes from day to day.

        `catalogue` has `CATALOGUE_SCHEMA`, sorted by item.

        Raises:
            QueryError: the query's `allow` or `pin` names an item that the catalogue lacks, or its `categories` a
                category that no item has.
        """
        rules = settings, query = _with_clean_ids(settings), _with_clean_ids(query)
        _require_known(catalogue, query)
        allowed: Mask = catalogue.select(_allowed(settings) & _allowed(query)).to_series().to_numpy()
        items = catalogue[ITEM].to_list()
        numbers = {item: number for number, item in enumerate(items)} if settings.pin or query.pin else {}
        pins = np.array(
            [numbers[item] for item in dict.fromkeys((*query.pin, *settings.pin)) if item in numbers], np.int64
        )
        limits = []
        for name, group in (("max_per_category", _CATEGORY), ("max_per_brand", pl.col(STORE))):
            if given := [limit for each in rules if (limit := getattr(each, name)) is not None]:
                limits.append((_group_numbers(catalogue, group), min(given)))
        return cls(
            allowed,
            pins[allowed[pins]],
            tuple(limits),
            any(each.filter_seen for each in rules),
            max(each.bought_within_days for each in rules),
        )

    @property
    def mask(self) -> Mask | None:
        """`allowed`, or None if that is every item."""
        return None if self.allowed.all() else self.allowed

    def excluded(self, history: Ints, times: Ints | None) -> set[int]:
        """Return the items of a history that its list may not have.

        Args:
            history: items.
            times: milliseconds since 1970 of each; None if unknown, so that each may have been bought just now.
        """
        if self.filter_seen or (self.bought_within_days and times is None):
            return set(history.tolist())
        if not self.bought_within_days or times is None:
            return set()
        since = time.time() * 1000 - self.bought_within_days * DAY_MS
        return set(history[times >= since].tolist())

    def select(
        self, items: Sequence[int], scores: Sequence[float], excluded: set[int], top: int
    ) -> tuple[list[tuple[int, float]], bool]:
        """Return the first `top` items that may be in one list, pinned ones first, and their scores.

        A pinned item has the score NaN, and counts towards the limits of its groups without being subject to them.

        Args:
            items: allowed ones, best first; -1 ends them.
            scores: one per item.
            excluded: items that this list may not have.
            top: length of the list.

        Returns:
            The list, and whether it is complete: more items could not extend it.
        """
        pins = [pin for pin in self.pins.tolist() if pin not in excluded][:top]
        counts: list[dict[int, int]] = [{} for _ in self.limits]
        for pin in pins:
            self._count(pin, counts)
        chosen, taken = [(pin, float("nan")) for pin in pins], excluded.union(pins)
        for item, score in zip(items, scores, strict=True):
            if len(chosen) >= top or item < 0:
                return chosen, True
            if item not in taken and self._fits(item, counts):
                self._count(item, counts)
                chosen.append((item, score))
        return chosen, len(chosen) >= top

    def _fits(self, item: int, counts: Sequence[dict[int, int]]) -> bool:
        return all(
            (group := int(groups[item])) == NO_GROUP or count.get(group, 0) < limit
            for (groups, limit), count in zip(self.limits, counts, strict=True)
        )

    def _count(self, item: int, counts: Sequence[dict[int, int]]) -> None:
        for (groups, _), count in zip(self.limits, counts, strict=True):
            group = int(groups[item])
            count[group] = count.get(group, 0) + 1


#: The most specific category, else the main one.
_CATEGORY: Final = pl.coalesce(pl.col(CATEGORIES).list.last(), pl.col(MAIN_CATEGORY))


def _allowed(rules: CandidateRules) -> pl.Expr:
    """Return whether an item may be in any list. The expression is as long as the catalogue."""
    allowed = pl.col(ITEM).is_not_null()
    if rules.allow:
        allowed &= pl.col(ITEM).is_in(rules.allow)
    if rules.deny:
        allowed &= ~pl.col(ITEM).is_in(rules.deny)
    if rules.categories:
        allowed &= _has_category(rules.categories)
    if rules.deny_categories:
        allowed &= ~_has_category(rules.deny_categories)
    if rules.min_price is not None:
        allowed &= (pl.col(PRICE) >= rules.min_price).fill_null(value=False)
    if rules.max_price is not None:
        allowed &= (pl.col(PRICE) <= rules.max_price).fill_null(value=False)
    if rules.in_stock:
        allowed &= pl.col(IN_STOCK).fill_null(value=True)
    return allowed


def _has_category(names: Sequence[str]) -> pl.Expr:
    listed = pl.col(CATEGORIES).list.eval(pl.element().is_in(list(names))).list.any().fill_null(value=False)
    return listed | pl.col(MAIN_CATEGORY).is_in(list(names)).fill_null(value=False)


def _group_numbers(catalogue: pl.DataFrame, group: pl.Expr) -> Ints:
    """Return a number for each distinct name (n,); `NO_GROUP` for an empty one."""
    number = pl.when(group.fill_null("") != "").then(group.rank("dense").cast(pl.Int64)).otherwise(NO_GROUP)
    numbers: Ints = catalogue.select(number).to_series().to_numpy()
    return numbers


def _with_clean_ids(rules: CandidateRules) -> CandidateRules:
    """Return the rules with ids as the catalogue has them."""
    return rules.model_copy(update={name: tuple(map(clean_id, getattr(rules, name))) for name in _OF_IDS})


def _require_known(catalogue: pl.DataFrame, query: CandidateRules) -> None:
    for rule in ("allow", "pin"):
        if items := getattr(query, rule):
            given = pl.Series(items, dtype=pl.String)
            unknown = given.filter(~given.is_in(catalogue[ITEM].implode()))
            if len(unknown):
                raise QueryError(
                    f"rule `{rule}`: unknown item {unknown[0]!r}; {len(unknown):,} of {len(items):,} unknown"
                )
    for found in _unknown_categories(catalogue, query.categories):
        raise QueryError(f"rule `categories`: {found}")


def warn_of_unknown_categories(catalogue: pl.DataFrame, settings: CandidateRules) -> None:
    """Log a warning for each category in the settings that no item has.

    They are no errors, since the catalogue changes from day to day; but a misspelt one allows or denies nothing.
    """
    for rule in ("categories", "deny_categories"):
        for found in _unknown_categories(catalogue, getattr(settings, rule)):
            log.warning("warning: rules.%s: %s; correct it in pixrec.toml. Queries continue", rule, found)


def _unknown_categories(catalogue: pl.DataFrame, names: Sequence[str]) -> Iterator[str]:
    """Yield a message for each name that is no category of an item."""
    if not names:
        return
    known = pl.concat([catalogue[CATEGORIES].explode(), catalogue[MAIN_CATEGORY]]).drop_nulls().unique().to_list()
    for name in sorted(set(names).difference(known)):
        same = [each for each in known if each.casefold() == name.casefold()]
        yield f"no item has the category {name!r}" + (f", but there is {min(same)!r}" if same else "")
