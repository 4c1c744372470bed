"""Promises of docs/security.md that no other test checks, and that the tests named there exist."""

import ast
import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from pixrec_core import pipeline
from pixrec_core.errors import SettingsError
from pixrec_core.settings import Settings, load_settings
from pixrec_core.stages import Work

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = re.findall(r"`([\w/]+\.py(?:::\w+)+)`", PAGE)


def names(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    """Yield every function of a module or class, including nested classes."""
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from names(child, f"{prefix}{child.name}::")
        elif isinstance(child, ast.FunctionDef):
            yield prefix + child.name


@pytest.mark.parametrize("test", NAMED)
def test_every_test_named_on_the_page_exists(test):
    path, _, name = test.partition("::")
    assert name in set(names(ast.parse((ROOT / "tests" / path).read_text())))


def test_every_promise_names_a_test():
    rows = [row for row in re.findall(r"^\| (.*) \|$", PAGE, re.MULTILINE) if row != "promise | test"]
    assert len(rows) == 33
    assert all("::test_" in row for row in rows)


UNPICKLING = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
RUNNING = {"eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput", "yaml.load"}


def risks(code: str) -> list[str]:
    """Return calls and imports of a module that could run code from data: unpickling, eval, shells, code of models."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            found += [module for module in modules if module.partition(".")[0] in UNPICKLING]
        elif isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
            risky = called in RUNNING or (called == "torch.load" and given.get("weights_only") != "True")
            switched = [f"{k}={v}" for k, v in given.items() if k in SWITCHES and v != "False"]
            found += [called] if risky else switched
    return found


SWITCHES = {"trust_remote_code", "allow_pickle", "shell"}


@pytest.mark.parametrize(
    "code",
    [
        *("import pickle", "from joblib import load", "import os.path, dill"),
        *("torch.load(path)", "torch.load(path, weights_only=False)", "eval(text)", "os.system(text)"),
        *("Auto.from_pretrained(x, trust_remote_code=True)", "np.load(x, allow_pickle=True)", "run(x, shell=True)"),
    ],
)
def test_a_risk_is_found(code):
    assert risks(code)


@pytest.mark.parametrize("code", ["torch.load(x, weights_only=True)", "model.eval()", "f(trust_remote_code=False)"])
def test_safe_code_is_no_risk(code):
    assert risks(code) == []


@pytest.mark.parametrize("package", ["pixrec_core", "pixrec_assets"])
def test_no_module_runs_code_from_data(package):
    found = {str(path.relative_to(ROOT)): risks(path.read_text()) for path in (ROOT / package).rglob("*.py")}
    assert len(found) > 10
    assert {path: each for path, each in found.items() if each} == {}


HOSTILE = "../../../../hostile"


@pytest.mark.slow
def test_ids_that_look_like_paths_leave_the_data_folder_alone(tmp_path):
    """All data stages on a shop in which one item id is a path."""
    root = tmp_path / "a" / "b" / "c"
    drawn = {"source": {"kind": "sample", "users": 60, "items": 40}}
    pipeline.RAW.materialise(sample := Work(Settings(root=root, datasets={"drawn": drawn}), "drawn"))
    raw = sample.paths.raw.rename(root / "raw")
    item = re.search(rb'"parent_asin": ?"(\w+)"', gzip.decompress((raw / "reviews.jsonl.gz").read_bytes()))
    assert item
    for name in ("reviews.jsonl.gz", "meta.jsonl.gz"):
        lines = gzip.decompress((raw / name).read_bytes())
        renamed = lines.replace(b'"' + item[1] + b'"', b'"' + HOSTILE.encode() + b'"')
        assert renamed != lines
        (raw / name).write_bytes(gzip.compress(renamed))

    source = {"kind": "amazon_2023", "folder": "raw"}
    work = Work(Settings(root=root, datasets={"shop": {"source": source}}), "shop")
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(work.settings.data_dir)}
    for stage in pipeline.DATA:
        stage.materialise(work)
    manifest = pl.read_parquet(work.paths.images_manifest).filter(item=HOSTILE)
    assert manifest["status"].to_list() == ["ok"], "its photo is stored like any other"
    assert work.paths.image(HOSTILE).is_file()
    assert work.paths.image(HOSTILE).resolve().is_relative_to(work.paths.images.resolve())
    after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(work.settings.data_dir)}
    assert after == before
    assert not list(tmp_path.rglob("*hostile*"))


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc", ".", "..", ".hidden", "a\\b", "", "C:"])
def test_a_dataset_cannot_be_named_like_a_path(name, tmp_path, monkeypatch):
    quoted = name.replace("\\", "\\\\")
    (tmp_path / "pixrec.toml").write_text(f'[datasets."{quoted}".source]\nkind = "sample"\n')
    monkeypatch.setenv("PIXREC_CONFIG", str(tmp_path / "pixrec.toml"))
    with pytest.raises(SettingsError, match="must be a name of lower-case letters"):
        load_settings()
