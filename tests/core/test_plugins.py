"""Plug-ins: each module of a package is one."""

import pytest

from pixrec_core import pipeline
from pixrec_core.errors import SettingsError
from pixrec_core.plugins import code_digest, load_plugin, plugin_names
from pixrec_core.settings import Settings
from pixrec_core.stages import Work


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with plug-ins `round` and `square`; its name differs per test, since Python caches imports."""
    package = tmp_path.name
    folder = tmp_path / package / "shapes"
    folder.mkdir(parents=True)
    for name in ("__init__", "square", "round", "_shared"):
        (folder / f"{name}.py").write_text(f"NAME = {name!r}")
    (folder / "notes.txt").touch()
    (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return f"{package}.shapes"


def test_names_are_sorted_without_private_modules(package):
    assert plugin_names(package) == ["round", "square"]


def test_a_plugin_is_its_module(package):
    module = load_plugin(package, "round")
    assert (module.__name__, module.NAME) == (f"{package}.round", "round")


@pytest.mark.parametrize("name", ["rund", "_shared", "", "round.x", "..round"])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(package, name):
    with pytest.raises(SettingsError) as raised:
        load_plugin(package, name)
    assert str(raised.value) == f"unknown shape {name!r}; known: round, square"


def test_a_new_or_changed_module_changes_the_digest_of_its_package(tmp_path, monkeypatch) -> None:
    package = tmp_path / "methods_of_a_test"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    states = []
    for name, text in (("__init__", ""), ("first", "a = 1"), ("first", "a = 2"), ("blend", "b = 1")):
        (package / f"{name}.py").write_text(text)
        states.append(code_digest(package.name))
    assert len(set(states)) == 4
    assert code_digest(package.name) == states[-1]
    assert code_digest(package.name, lambda module: module != "blend") == states[-2]


@pytest.mark.parametrize(
    "stage", [pipeline.BASELINES, pipeline.BLEND, pipeline.EVALUATION], ids=lambda stage: stage.name
)
def test_stages_that_run_all_plug_ins_depend_on_their_code(stage, monkeypatch) -> None:
    work = Work(Settings(datasets={"shop": {"source": {"kind": "sample"}}}), "shop")
    before = stage.external_inputs(work)
    assert before == stage.external_inputs(work)
    monkeypatch.setattr(pipeline, "code_digest", lambda *_: "changed")
    assert stage.external_inputs(work) == "changed" != before
