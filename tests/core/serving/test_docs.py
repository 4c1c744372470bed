"""The Python example of docs/serving.md, run as it stands."""

import re
import shutil
from pathlib import Path

import pytest

from pixrec_core.serving import Recommendation
from pixrec_core.serving.promotion import FEWEST_PAIRS
from pixrec_core.settings import PromotionSettings
from pixrec_core.stages import Work

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"


def test_its_numbers_are_those_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"fewer than {FEWEST_PAIRS} users" in text
    assert f"tolerance = {PromotionSettings().tolerance} " in text


def test_the_example_runs(served: dict[str, Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    work = served["collaborative"]
    shutil.copytree(work.variant_paths.promoted.root, tmp_path / "data/shop/variants/multimodal/promoted")
    shutil.copyfile(next(work.paths.images.rglob("*.jpg")), tmp_path / "mug.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert re.fullmatch(r"(\S+ -?\d\.\d{3}\n){3}", capsys.readouterr().out)
    assert not {item for item, _ in names["next_items"]} & set(names["history"])
    assert [len(each) for each in names["many"]] == [5, 5]
    assert isinstance(names["alike"][0], Recommendation)
