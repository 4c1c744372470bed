"""The examples run, on a small shop: as their user runs them, each in a process of its own."""

import json
import os
import shutil
import sys
import tomllib
from pathlib import Path

import polars as pl
import pytest

from tests.forks import run_command

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
SMALL = {
    "PIXREC_DATASETS__SAMPLE__SOURCE": json.dumps({"kind": "sample", "users": 60, "items": 40}),
    "PIXREC_VARIANTS": '["multimodal"]',
    "PIXREC_TRAINING__EPOCHS": "1",
    "PIXREC_MODEL__EMBEDDING_DIM": "16",
    "PIXREC_RETRIEVAL__BASELINES": '["also_bought", "ease", "popularity"]',
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of a machine with the custom method installed: pip leaves the module and its entry points."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(EXAMPLES / "custom_method" / "also_bought.py", site)
    project = tomllib.loads((EXAMPLES / "custom_method" / "pyproject.toml").read_text())["project"]
    info = site / "also_bought-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [line for group, entries in project["entry-points"].items()
             for line in (f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()))]  # fmt: skip
    (info / "entry_points.txt").write_text("\n".join(lines))
    names = ("PIXREC_", "DAGSTER_", "PYTHON")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return inherited | SMALL | {"PATH": path, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, environment):
    """Where the notebook has run."""
    folder = tmp_path_factory.mktemp("notebook")
    cells = json.loads((EXAMPLES / "shop.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    run(f"{code}\nfigure.savefig('shelf.png', dpi=60)", folder, environment)
    return folder


def run(code, folder, environment, *arguments):
    done = run_command(["python", "-c", code, *arguments], folder, environment)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_the_notebook_ends_with_a_shelf(folder):
    assert (folder / "shelf.png").stat().st_size > 20_000
    assert (folder / "data" / "shop" / "report" / "index.html").exists()


def test_the_custom_method_and_metric_are_among_the_others(folder):
    metrics = pl.read_csv(folder / "data" / "shop" / "evaluation" / "metrics.csv")
    assert {"also_bought", "ease", "multimodal"} <= set(metrics["method"])
    (value,) = metrics.filter(protocol="seen_allowed", method="also_bought", metric="RBP")["value"]
    assert 0 < value < 0.2


def test_seeds_share_what_does_not_depend_on_them(folder, environment):
    options = ["--seeds", "0", "1", "--reference", "popularity"]
    text = run((EXAMPLES / "seeds.py").read_text(), folder, environment, "shop", *options)
    built = {
        name: [json.loads((folder / data / "shop" / "stamps" / f"{name}.json").read_text())["finished_at"]
               for data in ("data", "data-seed1")]
        for name in ("sequences", "baselines", "evaluation")
    }  # fmt: skip
    assert [len(set(times)) for times in built.values()] == [1, 1, 2]
    table = pl.read_csv(folder / "seeds.csv").filter(metric="Recall@10")
    assert table["runs"].to_list() == [2] * len(table)
    assert table.filter(method="ease")["deviation"].item() is None, "no seed has another EASE"
    assert table["minus"].drop_nulls().unique().to_list() == ["popularity"]
    assert "\\begin{tabular}{lrrrr}" in text
    assert "minus popularity" in text


def test_a_project_of_its_own_has_the_assets(folder, environment):
    code = """if True:
        import sys
        import dagster as dg
        sys.path.insert(0, sys.argv[1])
        from definitions import defs, weekly_mail
        keys = {key.to_user_string() for key in defs.resolve_all_asset_keys()}
        assert {"weekly_mail", "promoted", "raw_reviews"} <= keys, keys
        assert defs.resolve_job_def("train")
        assert dg.materialize([weekly_mail], partition_key="shop").success
    """
    run(code, folder, environment, str(EXAMPLES / "dagster_project"))
    mail = pl.read_parquet(folder / "data" / "shop" / "mail.parquet")
    assert mail["items"].list.len().to_list() == [5] * 60
