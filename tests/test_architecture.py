"""Imports go down only, and heavy libraries are imported where they are used."""

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

#: From the top down; the modules of one layer do not import each other.
LAYERS = (
    ("pixrec_assets",),
    ("pixrec_core.pipeline",),
    ("pixrec_core.report", "pixrec_core.training"),
    ("pixrec_core.serving",),
    ("pixrec_core.recommenders",),
    ("pixrec_core.retrieval",),
    ("pixrec_core.models", "pixrec_core.evaluation"),
    ("pixrec_core.data", "pixrec_core.losses", "pixrec_core.prompts"),
    ("pixrec_core.ranking_table", "pixrec_core.stages", "pixrec_core.hub", "pixrec_core.pretrained"),
    ("pixrec_core.engine",),
    ("pixrec_core.settings",),
    ("pixrec_core.paths", "pixrec_core.schemas", "pixrec_core.files", "pixrec_core.plugins", "pixrec_core.progress"),
    ("pixrec_core.child_process", "pixrec_core.blas"),
    ("pixrec_core.errors",),
    ("pixrec_core.printable",),
)
HEAVY = {"torch", "transformers", "great_expectations", "faiss", "matplotlib", "ray"}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("pixrec_core", "pixrec_assets", include_external_packages=True, cache_dir=None)


def test_imports_go_down_only(graph):
    layers = [grimp.Layer(*modules, independent=True) for modules in LAYERS]
    illegal = graph.find_illegal_dependencies_for_layers(layers=layers)
    assert not illegal, "\n".join(f"{each.importer} imports {each.imported}" for each in illegal)


def test_every_module_of_the_core_is_in_a_layer(graph):
    known = {module for layer in LAYERS for module in layer}
    assert graph.find_children("pixrec_core") <= known


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("pixrec_core", "dagster"),
        ("pixrec_core", "pixrec_assets"),
        ("pixrec_core.data", "torch"),
        ("pixrec_core.data", "transformers"),
        ("pixrec_core.evaluation", "torch"),
        ("pixrec_core.evaluation", "transformers"),
        ("pixrec_core.evaluation", "pixrec_core.models"),
        ("pixrec_core.recommenders", "pixrec_core.models"),
    ],
)
def test_forbidden_imports(graph, importer, imported):
    if imported in graph.modules:
        assert not graph.find_shortest_chains(importer=importer, imported=imported, as_packages=True)


#: Code -> what it must not import; `pixrec status` uses `models.checkpoint` to describe checkpoints.
LIGHT = {
    "import pixrec_assets.definitions": HEAVY,
    "import pixrec_core.models.checkpoint": HEAVY | {"dagster"},
    "from pixrec_assets.cli import cli; cli(['--help'], standalone_mode=False)": HEAVY
    | {"dagster", "polars", "duckdb"},
    "import pixrec_core.serving.recommender, pixrec_core.report.answer": HEAVY | {"dagster", "lightgbm", "sklearn"},
}


@pytest.mark.parametrize("code", LIGHT)
def test_light_code_imports_no_heavy_library(code, tmp_path):
    command = [sys.executable, "-W", "error", "-c", f"import sys; {code}; print(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert not loaded & LIGHT[code]


def test_definitions_stay_short():
    path = Path(__file__).resolve().parents[1] / "pixrec_assets" / "definitions.py"
    assert len(path.read_text().splitlines()) < 60
