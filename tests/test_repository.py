"""Files for contributors and services agree with the project: versions, commands, links."""

import re
import tomllib
from datetime import date
from pathlib import Path

import pytest
import yaml

from pixrec_core import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs():
    for path in WORKFLOWS:
        yield from yaml.safe_load(path.read_text())["jobs"].values()


def test_the_matrix_has_the_supported_versions():
    matrices = [job.get("strategy", {}).get("matrix", {}) for job in jobs()]
    (matrix,) = [each["python"] for each in matrices if "python" in each]
    supported = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", each)]
    assert matrix == supported
    assert PROJECT["requires-python"] == f">={matrix[0]}"


def test_workflows_run_targets_that_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    steps = [step.get("run", "") for job in jobs() for step in job["steps"]]
    called = {target for step in steps for target in re.findall(r"make (\w+)", step)}
    assert {"lint", "test", "docs"} <= called <= targets
    assert (ROOT / ".ci" / "nightly").stat().st_mode & 0o100


def test_files_of_services_are_yaml():
    for path in (*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


def test_one_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    releases = re.findall(r"^## \[([^\]]+)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert [name for name, _ in releases][:2] == ["Unreleased", __version__]
    assert all(date.fromisoformat(day) <= date.today() for _, day in releases[1:])  # noqa: DTZ011


def test_a_release_finds_the_version_in_every_file_that_has_it():
    release = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["bumpversion"]
    assert release["current_version"] == __version__
    changed = set()
    for each in release["files"]:
        search = each["search"].format(current_version=__version__)
        found = {path for path in ROOT.glob(each.get("filename") or each["glob"]) if search in path.read_text()}
        assert found, each
        changed |= found
    deployed = [path for path in (ROOT / "deploy").iterdir() if re.search(rf"\b{__version__}\b", path.read_text())]
    assert set(deployed) <= changed


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md"])
def test_links_of_other_pages_lead_to_files(name):
    path = ROOT / name
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        assert "://" in link or (path.parent / link).exists(), link


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 800
