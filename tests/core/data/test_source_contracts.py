"""The data contracts of items, interactions and images: their profiles, and each rule broken once."""

import json
from pathlib import Path

import polars as pl
import pytest

from pixrec_core.data import contract, profile
from pixrec_core.data.contract import RULES
from pixrec_core.errors import ArtefactError, ContractError, MissingArtefactError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_SCHEMA, INTERACTION_SCHEMA, ITEM_SCHEMA

ARTEFACTS = ("items", "interactions", "images")


@pytest.fixture
def paths(tmp_path: Path) -> DatasetPaths:
    """Four items, two with a photo and one whose photo failed; three users, two of them with tied interactions."""
    paths = DatasetPaths(tmp_path)
    empty = dict.fromkeys(ITEM_SCHEMA)
    catalogue = [empty | {"item": i, "title": f"Item {i}", "image_url": f"http://h/{i}.jpg"} for i in "abc"]
    catalogue.append(empty | {"item": "d", "title": "", "price": 2.5})
    pl.DataFrame(catalogue, schema=ITEM_SCHEMA).write_parquet(paths.items)

    interactions = [("u1", "a", 10), ("u1", "b", 10), ("u1", "a", 20), ("u2", "c", 5), ("u2", "d", 5), ("u3", "a", 7)]
    rows = [(user, item, time, 4.0, position) for position, (user, item, time) in enumerate(interactions, start=1)]
    pl.DataFrame(rows, schema=INTERACTION_SCHEMA, orient="row").write_parquet(paths.interactions)

    photos = [(i, f"http://h/{i}.jpg", "ok", None, "0f" * 32, 40, 20, 100, 1, [f"http://h/{i}.jpg"]) for i in "ab"]
    photos.append(("c", "http://h/c.jpg", "failed", "http 404", None, None, None, None, 4, ["http://h/c.jpg"]))
    pl.DataFrame(photos, schema=IMAGE_SCHEMA, orient="row").write_parquet(paths.images_manifest)
    for item in "ab":
        paths.image(item).parent.mkdir(parents=True, exist_ok=True)
        paths.image(item).touch()
    return paths


def table(paths: DatasetPaths, artefact: str) -> Path:
    return {"items": paths.items, "interactions": paths.interactions, "images": paths.images_manifest}[artefact]


def where(condition: pl.Expr, **values: object):
    """Return a function that sets columns to `values` in the rows that meet a condition."""

    def change(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(
            pl.when(condition).then(pl.lit(value, rows.schema[name])).otherwise(name).alias(name)
            for name, value in values.items()
        )

    return change


FIRST = pl.int_range(pl.len()) == 0
EVERY = pl.lit(value=True)

#: A change of the table that breaks each rule, and the number that is then observed.
BREAKS = {
    "items": {
        "rows": (lambda rows: rows.head(1), 1),
        "rows_without_id": (where(FIRST, item=""), 1),
        "rows_with_repeated_id": (lambda rows: pl.concat([rows, rows]), 4),
        "rows_with_impossible_price": (where(pl.col("item") == "d", price=0.0), 1),
        "share_with_title": (where(FIRST, title=None), 0.5),
        "share_with_image_url": (where(pl.col("item") != "a", image_url=None), 0.25),
    },
    "interactions": {
        "users": (where(EVERY, user="u1"), 1),
        "items": (where(EVERY, item="a"), 1),
        "rows_with_nulls": (where(FIRST, item=None), 1),
        "rows_without_id": (where(FIRST, user=""), 1),
        "rows_repeated": (lambda rows: pl.concat([rows, rows]), 6),
        "rows_with_impossible_time": (where(FIRST, timestamp=0), 1),
        "rows_with_impossible_rating": (where(FIRST, rating=float("nan")), 1),
        "rows_out_of_order": (lambda rows: rows.reverse(), 5),
        "share_of_known_items": (where(FIRST, item="z"), 5 / 6),
    },
    "images": {
        "rows_with_repeated_item": (where(FIRST, item="b"), 1),
        "rows_of_unknown_items": (where(FIRST, item="z"), 1),
        "rows_with_unknown_status": (where(FIRST, status="trying"), 1),
        "failures_without_reason": (where(EVERY, reason=None), 1),
        "photos_without_size": (where(FIRST, width=0), 1),
        "photos_without_sha256": (where(FIRST, sha256="abc"), 1),
        "photos_without_file": (where(pl.col("item") == "c", status="ok", width=1, height=1, bytes=1), 1),
        "share_failed": (where(FIRST, status="failed", reason="http 404"), 2 / 3),
        "image_coverage": (lambda rows: rows.clear(), 0),
    },
}
EACH = [(artefact, rule) for artefact in ARTEFACTS for rule in RULES[artefact]]


def break_rule(paths: DatasetPaths, artefact: str, name: str) -> float:
    change, observed = BREAKS[artefact][name]
    path = table(paths, artefact)
    change(pl.read_parquet(path)).write_parquet(path)
    return observed


def found(paths: DatasetPaths, artefact: str) -> dict[str, dict]:
    return {each["name"]: each for each in json.loads(paths.contract(artefact).read_text())}


def test_every_rule_is_broken_by_a_change():
    assert {artefact: list(breaks) for artefact, breaks in BREAKS.items()} == {
        artefact: [rule.name for rule in RULES[artefact]] for artefact in ARTEFACTS
    }


@pytest.mark.parametrize(("artefact", "rule"), EACH, ids=lambda each: getattr(each, "name", each))
def test_each_broken_rule_is_reported_and_errors_are_raised(paths, artefact, rule):
    observed = break_rule(paths, artefact, rule.name)
    if rule.severity == "error":
        with pytest.raises(ContractError, match=rf"{artefact} in .*\n(.*\n)*  {rule.name}: observed"):
            contract.require_valid(artefact, paths)
    else:
        contract.require_valid(artefact, paths)
    result = found(paths, artefact)[rule.name]
    assert not result["passed"]
    assert result["observed"] == pytest.approx(observed)


def test_profile_of_items(paths):
    assert contract.require_valid("items", paths) == {
        "rows": 4,
        "share_with_title": 0.75,
        "share_with_image_url": 0.75,
        "share_with_price": 0.25,
    }


def test_profile_of_interactions(paths):
    assert contract.require_valid("interactions", paths) == {
        "rows": 6,
        "users": 3,
        "items": 4,
        "user_rows_min": 1,
        "user_rows_median": 2,
        "user_rows_p90": 3,
        "user_rows_p99": 3,
        "user_rows_max": 3,
        "share_tied": 4 / 6,
        "density": 5 / 12,  # u1 with a, b; u2 with c, d; u3 with a
        "share_of_known_items": 1,
    }
    assert all(each["passed"] for each in found(paths, "interactions").values())


def test_profile_of_images(paths):
    assert contract.require_valid("images", paths) == {
        "rows": 3,
        "photos": 2,
        "share_failed": 1 / 3,
        "image_coverage": 0.5,
    }


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_empty_tables_have_a_profile_of_zeros(paths, artefact):
    for each in ARTEFACTS:
        pl.read_parquet(table(paths, each)).clear().write_parquet(table(paths, each))
    measured = getattr(profile, f"profile_{artefact}")(paths)
    assert {n for name, n in measured.items() if not name.startswith("user_rows_")} == {0}


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_errors_name_missing_and_damaged_artefacts(paths, artefact):
    path = table(paths, artefact)
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(ArtefactError, match=path.name):
        contract.require_valid(artefact, paths)
    path.unlink()
    with pytest.raises(MissingArtefactError, match=path.name):
        contract.require_valid(artefact, paths)


def test_a_warning_is_a_sentence_with_the_share(paths, caplog):
    contract.require_valid("images", paths)
    assert caplog.messages == ["warning: 33.3 % of photos failed (10 % or less is usual)"]
