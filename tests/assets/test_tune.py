"""`pixrec tune`: its text, its file, and wrong calls."""

import os
import sys
import tomllib

import pytest

from pixrec_assets.cli import cli
from pixrec_assets.commands import tune as commands
from pixrec_core import pipeline
from pixrec_core.errors import SettingsError
from pixrec_core.settings import Settings, load_settings

pytest.importorskip("optuna", reason="install .[tune]")

TOML = """
[datasets.sample]
source = { kind = "sample", users = 60, items = 40 }
model = { embedding_dim = 16 }
training = { epochs = 1, batch_size = 64 }
"""
BETTER = {"training.learning_rate": 0.00281, "model.user_pooling": "gru", "model.embedding_dim": 16}
FOUND = {
    "trials": [
        {
            "values": BETTER | {"training.learning_rate": 1.5e-3, "model.user_pooling": "mean"},
            "validation_ndcg@10": 0.1,
        },
        {"values": BETTER, "validation_ndcg@10": 0.1234},
    ],
    "validation_users": 1234,
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "pixrec.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {name: v for name, v in os.environ.items() if name != "DAGSTER_HOME"})
    return tmp_path


def tune(*arguments: str) -> None:
    cli.main(["tune", *arguments], standalone_mode=False)


@pytest.mark.slow
def test_it_prepares_the_data_and_trains_the_present_settings_first(project, capsys) -> None:
    tune("sample", "--minutes", "0")
    assert "sample|multimodal: no training has been tried" in capsys.readouterr().out
    tune("sample", "--minutes", "0.00001", "--variant", "text_only")
    shown = capsys.readouterr().out
    assert "sample|text_only: 1 training, NDCG@10 on 30 validation users: present settings 0." in shown
    assert "No other settings were better" in shown
    assert not (project / "data/sample/promoted").exists()


def test_the_best_settings_can_be_pasted(project, capsys, monkeypatch) -> None:
    monkeypatch.setattr(commands, "run_or_exit", lambda *_: None)
    monkeypatch.setattr(pipeline, "tune", lambda *_: FOUND)
    tune("sample", "--minutes", "0")
    shown = capsys.readouterr().out
    assert "2 trainings, NDCG@10 on 1,234 validation users: present settings 0.1000, best 0.1234" in shown
    assert "so expect a smaller gain on others" in shown
    block = (project / "data/sample/variants/multimodal/tune/best.toml").read_text()
    assert shown.endswith(block)
    assert tomllib.loads(block) == {
        "training": {"learning_rate": 0.00281},
        "model": {"user_pooling": "gru"},
    }
    monkeypatch.setattr(pipeline, "tune", lambda *_: FOUND | {"trials": FOUND["trials"][:1]})
    tune("sample", "--minutes", "0")
    assert not (project / "data/sample/variants/multimodal/tune/best.toml").exists()


def test_the_block_works_for_the_sample_without_a_settings_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = commands._toml(
        load_settings(), "sample", {"training": {"temperature": 0.05}, "model": {"user_pooling": "gru"}}
    )
    (tmp_path / "pixrec.toml").write_text(block)
    settings: Settings = load_settings()
    assert settings.dataset("sample").training.temperature == 0.05
    assert settings.dataset("sample").model.user_pooling == "gru"


def test_wrong_calls_say_so_before_any_work(project, monkeypatch) -> None:
    with pytest.raises(SettingsError, match="unknown dataset 'samplee': did you mean `sample`"):
        tune("samplee")
    with pytest.raises(SettingsError, match="unknown variant 'text'"):
        tune("sample", "--variant", "text")
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setitem(sys.modules, "optuna.distributions", None)
    with pytest.raises(SettingsError, match=r"pip install '\.\[tune\]'"):
        tune("sample")
    assert not (project / "data").exists()
