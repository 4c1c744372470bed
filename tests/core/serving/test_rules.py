"""Candidate rules, compared with a filter of the whole list in plain Python."""

import math
import time

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixrec_core.data.sequences import read_sequences
from pixrec_core.errors import QueryError
from pixrec_core.schemas import CATALOGUE_SCHEMA, CATEGORIES, IN_STOCK, ITEM, ITEMS, MAIN_CATEGORY, PRICE, STORE, TEST
from pixrec_core.serving import Recommender
from pixrec_core.serving.rules import ItemRules, warn_of_unknown_categories
from pixrec_core.settings import CandidateRules

NO_RULES = CandidateRules()
ROWS = [
    {ITEM: "a", CATEGORIES: ["home", "mugs"], MAIN_CATEGORY: "Kitchen", STORE: "Foo", PRICE: 5.0, IN_STOCK: True},
    {ITEM: "b", CATEGORIES: ["home", "mugs"], MAIN_CATEGORY: "Kitchen", STORE: "Bar", PRICE: 7.5, IN_STOCK: False},
    {ITEM: "c", CATEGORIES: [], MAIN_CATEGORY: "Garden", STORE: "", PRICE: None, IN_STOCK: None},
    {ITEM: "d", CATEGORIES: ["home", "hats"], MAIN_CATEGORY: "", STORE: "Foo", PRICE: 20.0, IN_STOCK: None},
    {ITEM: "e", CATEGORIES: ["hats"], MAIN_CATEGORY: None, STORE: None, PRICE: 1.0, IN_STOCK: None},
]
TABLE = pl.DataFrame(ROWS, schema_overrides={name: CATALOGUE_SCHEMA[name] for name in ROWS[0]})


def items_allowed(rules, more=NO_RULES):
    return "".join(np.array(list("abcde"))[ItemRules.of(TABLE, rules, more).allowed])


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, "abcde"),
        ({"allow": ("a", "d")}, "ad"),
        ({"deny": ("a", "unknown")}, "bcde"),
        ({"deny": (" a\u200b",), "allow": ("\ta", "b ")}, "b"),  # as pasted from a table
        ({"categories": ("mugs", "Garden")}, "abc"),
        ({"categories": ("hats",)}, "de"),
        ({"deny_categories": ("home",)}, "ce"),
        ({"deny_categories": ("Kitchen", "nothing")}, "cde"),
        ({"min_price": 5.0}, "abd"),
        ({"max_price": 5.0}, "ae"),
        ({"in_stock": True}, "acde"),
        ({"min_price": 5.0, "max_price": 8.0, "deny": ("b",)}, "a"),
    ],
)
def test_items_that_each_rule_allows(rules, expected):
    assert items_allowed(CandidateRules(**rules)) == expected
    assert items_allowed(NO_RULES, CandidateRules(**rules)) == expected


def test_rules_of_a_query_add_to_those_of_the_settings():
    settings_rules = CandidateRules(categories=("home",), max_price=10, max_per_brand=2, pin=("b", "gone"))
    query = CandidateRules(deny=("a",), max_price=50, max_per_brand=1, pin=("d",))
    applied = ItemRules.of(TABLE, settings_rules, query)
    assert "".join(np.array(list("abcde"))[applied.allowed]) == "b"
    assert applied.pins.tolist() == [1]  # the settings' price rule forbids item d
    assert [limit for _, limit in applied.limits] == [1]


@pytest.mark.parametrize("rule", ["allow", "pin"])
def test_an_unknown_item_in_a_query_is_named_and_in_the_settings_ignored(rule):
    rules = CandidateRules(**{rule: ("a", "nope")})
    with pytest.raises(QueryError, match=f"rule `{rule}`: unknown item 'nope'; 1 of 2 unknown"):
        ItemRules.of(TABLE, NO_RULES, rules)
    assert items_allowed(rules) == ("a" if rule == "allow" else "abcde")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mugs", "no item has the category 'Mugs', but there is 'mugs'"),
        ("garden", "no item has the category 'garden', but there is 'Garden'"),
        ("cups", "no item has the category 'cups'"),
    ],
)
def test_an_unknown_category_is_refused_in_a_query_and_logged_for_the_settings(caplog, name, message):
    rules = CandidateRules(categories=("hats", name))
    with pytest.raises(QueryError) as error:
        ItemRules.of(TABLE, NO_RULES, rules)
    assert str(error.value) == f"rule `categories`: {message}"
    assert items_allowed(rules) == "de"
    warn_of_unknown_categories(TABLE, CandidateRules(categories=("hats", name), deny_categories=(name, "Kitchen")))
    assert caplog.messages == [
        f"warning: rules.{rule}: {message}; correct it in pixrec.toml. Queries continue"
        for rule in ("categories", "deny_categories")
    ]


def test_ids_in_rules_may_have_another_unicode_form():
    table = TABLE.with_columns(pl.Series(ITEM, ["caf\u00e9", *"bcde"]))
    rules = ItemRules.of(table, CandidateRules(pin=("cafe\u0301",)), CandidateRules(allow=("cafe\u0301", "b")))
    assert (rules.pins.tolist(), rules.allowed.tolist()) == ([0], [True, True, False, False, False])


def test_items_without_category_or_brand_are_not_limited():
    brand = ItemRules.of(TABLE, NO_RULES, CandidateRules(max_per_brand=1))
    assert brand.select([0, 3, 2, 4, 1], [5.0, 4, 3, 2, 1], set(), 5)[0] == [(0, 5.0), (2, 3), (4, 2), (1, 1)]
    category = ItemRules.of(TABLE, NO_RULES, CandidateRules(max_per_category=1))
    assert [item for item, _ in category.select([0, 1, 3, 4, 2], [0.0] * 5, set(), 5)[0]] == [0, 3, 2]


def test_pinned_items_come_first_and_count_towards_the_limits():
    rules = ItemRules.of(TABLE, NO_RULES, CandidateRules(max_per_category=1, pin=("b", "a")))
    chosen, complete = rules.select([0, 1, 2, 3, -1], [4.0, 3, 2, 1, 0], set(), 4)
    assert [item for item, _ in chosen] == [1, 0, 2, 3]
    assert complete
    assert [math.isnan(score) for _, score in chosen] == [True, True, False, False]
    assert [item for item, _ in rules.select([0, 2], [4.0, 3], {1}, 1)[0]] == [0]


def test_items_bought_within_some_days_are_left_out():
    rules = ItemRules.of(TABLE, NO_RULES, CandidateRules(bought_within_days=7))
    now = time.time() * 1000
    times = np.array([now - 8 * 86_400_000, now - 6 * 86_400_000, now + 1000], np.int64)
    assert rules.excluded(np.array([0, 1, 2]), times) == {1, 2}
    assert rules.excluded(np.array([0, 1]), None) == {0, 1}  # they may have been bought today
    assert ItemRules.of(TABLE, NO_RULES, NO_RULES).excluded(np.array([0, 1]), None) == set()


@pytest.fixture(scope="module")
def recommender(blended):
    return Recommender.load(blended.paths.promoted.root)


@pytest.fixture(scope="module")
def history(blended):
    return max(read_sequences(blended.paths, TEST)[ITEMS].to_list(), key=len)[:-1]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("method", ["ease", "text_only"])
def test_a_list_is_the_whole_order_filtered_by_the_rules(recommender, history, method, data):
    catalogue = recommender.catalogue
    ids, names = catalogue[ITEM].to_list(), catalogue[CATEGORIES].explode().unique().drop_nulls().to_list()
    draw_items = st.lists(st.sampled_from(ids), unique=True, max_size=8).map(tuple)
    limits = st.none() | st.integers(1, 3)
    rules = data.draw(
        st.builds(
            CandidateRules,
            allow=st.just(()) | draw_items,
            deny=draw_items,
            categories=st.lists(st.sampled_from(names), max_size=2).map(tuple),
            max_price=st.none() | st.floats(5, 60),
            max_per_category=limits,
            max_per_brand=limits,
            filter_seen=st.booleans(),
        )
    )
    top = data.draw(st.integers(1, 15))
    whole = recommender.for_items(history, len(ids), method=method)
    found = recommender.for_items(history, top, method=method, rules=rules)
    assert [each.item for each in found] == plain_list(catalogue, [each.item for each in whole], history, rules, top)


def plain_list(catalogue, order, history, rules, top):
    """The first `top` items of `order` that satisfy the rules."""
    rows = {row[ITEM]: row for row in catalogue.iter_rows(named=True)}
    chosen, categories, brands = [], {}, {}
    for item in order:
        row = rows[item]
        category = row[CATEGORIES][-1] if row[CATEGORIES] else row[MAIN_CATEGORY]
        if (
            (rules.allow and item not in rules.allow)
            or item in rules.deny
            or (rules.categories and not {*row[CATEGORIES], row[MAIN_CATEGORY]} & set(rules.categories))
            or (rules.max_price is not None and (row[PRICE] is None or row[PRICE] > rules.max_price))
            or (rules.filter_seen and item in history)
            or (category and categories.get(category, 0) >= (rules.max_per_category or math.inf))
            or (row[STORE] and brands.get(row[STORE], 0) >= (rules.max_per_brand or math.inf))
        ):
            continue
        chosen.append(item)
        categories[category] = categories.get(category, 0) + 1
        brands[row[STORE]] = brands.get(row[STORE], 0) + 1
    return chosen[:top]


def test_rules_of_the_recommender_hold_for_every_kind_of_query(blended, history):
    plain = Recommender.load(blended.paths.promoted.root)
    denied = plain.for_items(history, 3)[0].item
    recommender = Recommender.load(blended.paths.promoted.root, CandidateRules(deny=(denied,)))
    n = len(recommender.catalogue)
    lists = [
        recommender.for_items(history, n),
        *recommender.for_histories([history, []], n, method="text_only"),
        recommender.for_text("red hat", n),
    ]
    for found in lists:
        assert len(found) == n - 1
        assert denied not in {each.item for each in found}


def test_an_unknown_category_in_the_settings_is_logged_once(blended, history, caplog):
    recommender = Recommender.load(blended.paths.promoted.root, CandidateRules(categories=("nope",)))
    for top in (1, 2):
        assert recommender.for_items(history, top, rules=CandidateRules(max_per_brand=top)) == []
    assert [message for message in caplog.messages if "no item has the category 'nope'" in message] == caplog.messages
    assert len(caplog.messages) == 1


def test_similar_items_are_those_with_the_nearest_vectors(recommender):
    tower = recommender.tower()
    items, vectors = recommender.catalogue[ITEM].to_list(), tower.retriever.item_index.vectors
    order = [items[i] for i in np.argsort(-(vectors @ vectors[3]), kind="stable") if i != 3]
    similar = recommender.similar_items(items[3], 5)
    expected = {items[i]: vectors[i] @ vectors[3] for i in range(len(items))}
    np.testing.assert_allclose([each.score for each in similar], [expected[item] for item in order[:5]], atol=1e-5)
    assert items[3] not in {each.item for each in recommender.similar_items(items[3], len(items))}
