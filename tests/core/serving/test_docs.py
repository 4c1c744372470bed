"""The Python examples of README and docs/serving.md, run unchanged but for the user."""

import re
import shutil
from pathlib import Path

import pytest

from pixrec_core.evaluation.comparison import MIN_SELECTION_USERS
from pixrec_core.paths import PromotedPaths
from pixrec_core.serving import Recommendation, export
from pixrec_core.serving.gate import MIN_PAIRS
from pixrec_core.settings import PromotionSettings
from pixrec_core.stages import Work

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "serving.md"


def test_its_numbers_equal_those_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"fewer than {MIN_PAIRS} users" in text
    assert f"fewer than {MIN_SELECTION_USERS} selection users" in text
    assert f"tolerance = {PromotionSettings().tolerance} " in text


@pytest.fixture
def examples() -> list[str]:
    """First `pixrec_core.serving` alone, then with a vector database."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def names(examples: list[str], served: Work, tmp_path: Path, monkeypatch, capsys) -> dict:
    """Variables of the first example; its output is captured."""
    shutil.copytree(served.paths.promoted.root, tmp_path / "data/shop/promoted")
    shutil.copyfile(next(served.paths.images.rglob("*.jpg")), tmp_path / "mug.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(examples[0], str(PAGE), "exec"), names)
    return names


def test_the_example_runs(names: dict, capsys) -> None:
    assert re.fullmatch(r"(\S+ -?\d\.\d{3}\n){3}", capsys.readouterr().out)
    assert not {item for item, _ in names["next_items"]} & set(names["history"])
    assert [len(each) for each in names["many"] + [names["baseline"], names["popular"]]] == [5] * 4
    assert isinstance(names["similar"][0], Recommendation)


def test_the_example_of_the_readme_runs(names: dict, capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (user,) = names["recommender"].find_users("", 1)
    capsys.readouterr()
    exec(compile(code.replace("4711", user), "README.md", "exec"), shown := {})
    assert re.fullmatch(r"(\S+ -?\d\.\d{2}\n){5}", capsys.readouterr().out)
    assert len(shown["like_it"]) == 5


def test_a_vector_database_finds_what_the_index_finds(names: dict, examples: list[str], tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client", reason="the client of the vector database is not installed")
    export.export_items(PromotedPaths(tmp_path / "data/shop/promoted"), tmp_path / "shop-vectors")
    exec(compile(examples[1], str(PAGE), "exec"), names)
    unseen = names["recommender"].for_items(names["history"], 5, method=names["about"]["method"], filter_seen=True)
    found = {point.payload["item"]: point.score for point in names["found"]}
    expected = {each.item: pytest.approx(each.score, abs=1e-5) for each in unseen}
    assert {item: score for item, score in found.items() if item not in names["history"]} == {
        item: score for item, score in expected.items() if item in found
    }
    assert len(set(found) & set(expected)) >= 3
