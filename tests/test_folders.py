"""The whole pipeline in a folder whose name has the syntax of globs, URLs and SQL, and under a locale of ASCII only."""

import ast
import importlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pixrec_assets.home import VARIABLE, dagster_home
from pixrec_core.data import database
from pixrec_core.settings import load_settings

#: A pattern of Polars and DuckDB, the query and an escape of an SQLite URL, a quote of SQL, and letters beyond ASCII.
NAME = "b[a]x q?x p%20x it's é長"

TOML = """
variants = ["text_only"]
model = { embedding_dim = 16, item_tokens = 8 }
training = { epochs = 1, max_history_len = 4 }
retrieval = { baselines = ["ease", "popularity"] }

[datasets.sample.source]
kind = "tables"
interactions = "orders.csv"
items = "products.parquet"
interaction_columns = { user = "user", item = "sku", timestamp = "time" }
item_columns = { item = "sku", title = "name" }
"""


@pytest.fixture
def project(tmp_path: Path, assets_anew: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / NAME
    folder.mkdir()
    chosen, items = random.Random(0), [f"sku {n} é" for n in range(20)]
    orders = [
        {"user": f"ü{user}", "sku": item, "time": f"2024-03-{day + 1:02} 10:00:00"}
        for user in range(40)
        for day, item in enumerate(chosen.sample(items, 6))
    ]
    pl.DataFrame(orders).write_csv(folder / "orders.csv")
    names = [f"{colour} Träger 長 {n}" for n, colour in enumerate(["red", "blue"] * 10)]
    pl.DataFrame({"sku": items, "name": names}).write_parquet(folder / "products.parquet")
    (folder / "pixrec.toml").write_text(TOML)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in [name for name in os.environ if name.startswith(("PIXREC_", "DAGSTER_"))]:
        del os.environ[name]
    os.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    monkeypatch.chdir(folder)
    return folder


def pixrec(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pixrec", *arguments])
        with pytest.raises(SystemExit) as end:
            importlib.import_module("pixrec_assets.cli").main()
    return int(end.value.code or 0)


def test_the_whole_pipeline_runs_in_a_folder_of_any_name(project: Path, capsys) -> None:
    before = set(project.parent.iterdir())
    assert pixrec("run") == 0, capsys.readouterr().err
    assert f"report: {project / 'data' / 'sample' / 'report' / 'index.html'}" in capsys.readouterr().out
    assert pixrec("run") == 0
    assert "building" not in capsys.readouterr().out
    assert pixrec("status") == 0
    assert pixrec("recommend", "sample", "--items", "sku 1 é") == 0
    assert set(project.parent.iterdir()) <= before | {project.parent / "cache"}, "nothing was written elsewhere"
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "pixrec_assets.cli", "recommend", "--user", "ü1", "--top", "3"]
    done = subprocess.run(command, env=os.environ | ascii_only, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Träger 長" in done.stdout.decode()


def test_a_database_is_in_its_folder_whatever_the_name(project: Path) -> None:
    with database.create_database(project / "x.duckdb") as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS n")
    with database.open_read_only(project / "x.duckdb") as connection:
        assert connection.execute("FROM t").fetchall() == [(1,)]
    assert database.ReadOnlyDatabase(project / "x.duckdb").rows("FROM t", {}) == [(1,)]
    assert (project / "x.duckdb").is_file()


def test_a_backslash_in_the_data_folder_is_refused(project: Path, capsys) -> None:
    os.environ["PIXREC_DATA_DIR"] = "a\\b"
    assert pixrec("status") == 1
    assert "takes a backslash for `/`" in capsys.readouterr().err


def test_a_folder_whose_name_is_not_utf8_is_refused(project: Path, monkeypatch, capsys) -> None:
    """Neither JSON nor Parquet nor DuckDB can name a file in it."""
    folder = project / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    shutil.copy("pixrec.toml", folder)
    monkeypatch.chdir(folder)
    assert pixrec("status") == 1
    assert r'caf\udce9" is not UTF-8; rename it' in capsys.readouterr().err


def test_dagster_and_its_processes_have_the_link(project: Path) -> None:
    home = dagster_home(load_settings())
    assert os.environ[VARIABLE] == str(home)
    assert home.resolve() == (project / "data" / ".dagster").resolve()
    assert not set("?%") & set(str(home))


def test_a_deleted_working_folder_is_reported(project: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert pixrec("status") == 1
    assert "the working folder no longer exists" in capsys.readouterr().err
    os.chdir(project)


def test_polars_expands_no_path() -> None:
    """Each call says so: by default `[`, `*` and `?` in a path are a pattern."""
    calls = [
        (path.name, node.lineno)
        for folder in ("pixrec_core", "pixrec_assets")
        for path in (Path(__file__).parents[1] / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("pl.scan_parquet", "pl.read_parquet", "pl.read_parquet_schema")
        and not any(each.arg == "glob" for each in node.keywords)
    ]
    assert calls == []
