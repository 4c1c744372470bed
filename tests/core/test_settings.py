"""Where a setting comes from, and what a wrong one says."""

from datetime import date
from pathlib import Path

import pytest

from pixrec_core.errors import SettingsError
from pixrec_core.settings import CONFIG_VARIABLE, load_settings

TOML = """
[training]
epochs = 7
seed = 3

[datasets.books.source]
kind = "sample"

[datasets.books.training]
epochs = 2

[datasets.toys.source]
kind = "sample"
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def of(text: str) -> Path:
        path = tmp_path / "pixrec.toml"
        path.write_text(text)
        monkeypatch.setenv(CONFIG_VARIABLE, str(path))
        return path

    return of


def test_a_dataset_overrides_what_all_share(write) -> None:
    write(TOML)
    settings = load_settings()
    assert (settings.dataset("books").training.epochs, settings.dataset("books").training.seed) == (2, 3)
    assert (settings.dataset("toys").training.epochs, settings.dataset("toys").training.seed) == (7, 3)


def test_the_environment_overrides_both(write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(TOML)
    monkeypatch.setenv("PIXREC_TRAINING__EPOCHS", "5")
    settings = load_settings()
    assert settings.dataset("books").training.epochs == settings.dataset("toys").training.epochs == 5
    assert settings.dataset("books").training.seed == 3


def test_dates_of_the_time_split_are_plain_toml_and_plain_variables(write, monkeypatch: pytest.MonkeyPatch) -> None:
    dates = (
        "[sequences]\nsplit = 'time'\nvalidation_from = 2020-01-02\ntest_from = 2020-03-04\nmin_user_interactions = 1"
    )
    write(f"{dates}\n{TOML}")
    own = load_settings().dataset("books").sequences
    assert (own.validation_from, own.test_from) == (date(2020, 1, 2), date(2020, 3, 4))
    monkeypatch.setenv("PIXREC_SEQUENCES__TEST_FROM", "2020-05-06")
    assert load_settings().dataset("books").sequences.test_from == date(2020, 5, 6)


def test_without_a_file_there_is_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert list(settings.datasets) == ["sample"]
    assert settings.data_dir == tmp_path.resolve() / "data"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[training]\nepochs = 0", r"training\.epochs: .*received 0"),
        ("[training]\nepoch = 3", r"training\.epoch: Extra inputs"),
        ("[trainings]\nepochs = 3", "trainings: Extra inputs"),
        ("[training]\nweight_item_item = 0.8\nweight_user_item = 0.8", "is over 1"),
        ("[sequences]\nmin_user_interactions = 2", "takes 3 interactions"),
        ("[sequences]\ntest_from = 2020-01-02", 'need split = "time"'),
        ("[sequences]\nsplit = 'time'\ntest_from = 2020-01-02", "come together"),
        ("[sequences]\nsplit = 'time'\nvalidation_from = 2020-01-02\ntest_from = 2020-01-02", "must lie before"),
        ("[sequences]\nsplit = 'time'\nvalidation_share = 0.5\ntest_share = 0.5", "training has the rest"),
        ("[sequences]\nsplit = 'time'\ntest_share = 0", r"sequences\.test_share: .*received 0"),
        ("[sequences]\nsplit = 'random'", r"sequences\.split: .*received 'random'"),
        ("[datasets.'../x'.source]\nkind = 'sample'", "pattern"),
        ("[datasets.x]\n", r"datasets\.x\.source: Field required"),
        ("no toml", "cannot be read"),
    ],
)
def test_a_wrong_setting_is_named(write, text: str, told: str) -> None:
    path = write(text)
    with pytest.raises(SettingsError, match=told) as error:
        load_settings()
    assert str(path) in str(error.value)


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "gone.toml"))
    with pytest.raises(SettingsError, match=r"gone\.toml, and no such file"):
        load_settings()


def test_an_unknown_dataset_is_told_with_the_known_ones(write) -> None:
    write(TOML)
    with pytest.raises(SettingsError, match=r"unknown dataset 'cars'.*books, toys"):
        load_settings().dataset("cars")
