"""Plug-ins: each module of a package is one."""

import pytest

from pixrec_core.errors import SettingsError
from pixrec_core.plugins import load_plugin, plugin_names


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
