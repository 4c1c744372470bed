"""The installed package works without the checkout."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pixrec_core", "pixrec_assets")
SMALL = {"PIXREC_DATASETS__SAMPLE__SOURCE": '{"kind": "sample", "users": 20, "items": 32}'}

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without variables of this checkout; return its standard output."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DAGSTER_", "PIXREC_"))
    }
    done = subprocess.run(command, cwd=cwd, env=environment | SMALL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source distribution, built in a copy of the checkout that contains data."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in (*PACKAGES, "tests", "docs", "benchmarks"):
        copytree(ROOT / name, copy / name, ignore=ignore_patterns("__pycache__"), symlinks=True)
    for path in ROOT.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / "data").mkdir()
    (copy / "data" / "items.parquet").touch()
    run(sys.executable, "-c", "from setuptools import build_meta; build_meta.build_sdist('dist')", cwd=copy)
    (built,) = (copy / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel, built from the source distribution, which must therefore be complete."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet")
    run(*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, sdist, cwd=folder)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of a new environment with the wheel; a `.pth` file adds the dependencies of this environment."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--quiet", "--python", python)
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=home)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return home / "bin"


def modules_and_data() -> set[str]:
    """Return the files of both packages, without bytecode."""
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}


def test_the_sdist_contains_the_packages_without_tests_and_data(sdist):
    with tarfile.open(sdist) as packed:
        members = packed.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    files = {member.name.partition("/")[2] for member in members if member.isfile()}
    found = {name for name in files if not name.startswith("pixrec.egg-info/")}
    assert found == modules_and_data() | {
        *("pyproject.toml", "setup.cfg", "MANIFEST.in", "README.md", "LICENSE", "PKG-INFO")
    }


def test_the_wheel_contains_only_the_packages(wheel):
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        entry = packed.read(f"pixrec-{version('pixrec')}.dist-info/entry_points.txt").decode()
    assert {name for name in names if not name.startswith("pixrec-")} == modules_and_data()
    assert {"pixrec_core/py.typed", "pixrec_core/report/templates/index.html", "pixrec_assets/dagster.yaml"} <= names
    assert "pixrec = pixrec_assets.cli:run_process" in entry


def test_it_works_in_an_empty_folder(installed, tmp_path):
    code = "import pixrec_core; print(pixrec_core.__file__)"
    assert Path(run(installed / "python", "-c", code, cwd=tmp_path)).is_relative_to(installed.parent)
    pixrec = installed / "pixrec"
    assert version("pixrec") in run(pixrec, "--version", cwd=tmp_path)
    assert "pixrec demo" in run(pixrec, "--help", cwd=tmp_path)
    assert run(pixrec, "settings", cwd=tmp_path) == (ROOT / "docs" / "settings.md").read_text()
    assert "only the sample dataset" in run(pixrec, "doctor", cwd=tmp_path)
    assert "raw sample: built" in run(pixrec, "run", "sample", "--stage", "raw", cwd=tmp_path)
    assert (tmp_path / "data" / "sample" / "raw" / "reviews.jsonl.gz").is_file()
    home = tmp_path / "data" / ".dagster"
    assert (home / "dagster.yaml").read_bytes() == (ROOT / "dagster.yaml").read_bytes()
    dagster = (installed / "python", "-m", "dagster")  # `dagster dev -m` takes the same option
    run(*dagster, "definitions", "validate", "-m", "pixrec_assets.definitions", cwd=tmp_path)
