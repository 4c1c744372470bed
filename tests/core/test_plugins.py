"""Plug-ins: each module of a package is one, and so is an entry point of an installed distribution."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pixrec_core.errors import SettingsError
from pixrec_core.plugins import code_digest, load_plugin, plugin_names

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("hexagon", "; known: round, square"),
        ("", "; known: round, square"),
        ("rund", ": did you mean `round`?"),
        ("round.x", ": did you mean `round`?"),
        ("..round", ": did you mean `round`?"),
        ("_shared", ": did you mean `square`?"),
    ],
)
def test_an_unknown_name_is_an_error_with_a_similar_known_one_or_all(package, name, end):
    with pytest.raises(SettingsError) as raised:
        load_plugin(package, name)
    assert str(raised.value) == f"unknown shape {name!r}{end}"


def install(folder, group, **entries):
    """Write what pip leaves of a distribution: its name, and its entry points."""
    info = folder / "shapes_of_a_user-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shapes-of-a-user\nVersion: 1.0\n")
    lines = (f"{name} = {value}" for name, value in entries.items())
    with (info / "entry_points.txt").open("a") as file:
        file.write("\n".join([f"[{group}]", *lines, ""]))


def test_an_entry_point_is_a_plugin(package, tmp_path, monkeypatch):
    site = tmp_path / "site"
    install(site, package, hexagon="hexagon", oval="no_such_package.oval", circle="hexagon")
    (site / "hexagon.py").write_text("NAME = 'hexagon'")
    before = code_digest(package, outside=package)
    monkeypatch.syspath_prepend(site)
    assert plugin_names(package) == ["circle", "hexagon", "oval", "round", "square"]
    assert load_plugin(package, "hexagon").NAME == "hexagon"
    with pytest.raises(SettingsError, match=r"the plug-in 'oval' of shapes-of-a-user .* cannot be loaded: No module"):
        load_plugin(package, "oval")
    with pytest.raises(SettingsError, match=r"the plug-in 'circle' .* is 'hexagon'; give it the name of its module"):
        load_plugin(package, "circle")
    digests = {before, code_digest(package, outside=package)}
    (site / "hexagon.py").write_text("NAME = 'changed'")
    digests.add(code_digest(package, outside=package))
    assert len(digests) == 3
    assert code_digest(package) == before


def test_a_method_and_a_metric_from_outside(tmp_path):
    """In a process of their own, since metrics are collected once."""
    install(tmp_path, "pixrec_core.recommenders", newest_first="newest_first")
    install(tmp_path, "pixrec_core.metrics", RBP="newest_first:rank_biased_precision")
    (tmp_path / "newest_first.py").write_text(
        "from pixrec_core.recommenders.base import Model\n"  # which imports the metrics
        "def rank_biased_precision(ranks):\n    return 0.2 * 0.8 ** (ranks - 1)\n"
    )
    code = """if True:
        import json
        from pixrec_core import recommenders
        from pixrec_core.evaluation.metrics import METRICS
        from pixrec_core.settings import RetrievalSettings
        recommenders.check_baselines(RetrievalSettings(baselines=("ease", "newest_first")))
        print(json.dumps(["newest_first" in recommenders.baseline_names(), list(METRICS), METRICS["RBP"](2)]))
    """
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found, metrics, value = json.loads(done.stdout)
    assert found
    assert metrics[-2:] == ["MRR", "RBP"]
    assert value == pytest.approx(0.16)
