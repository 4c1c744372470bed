"""The pages of docs/ build as a site without a warning, and a broken link is one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def build(folder: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", config, "--site-dir", folder]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_site_and_found_by_the_search(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"README"} | {"index"}
    assert {path.stem for path in site.glob("*.html")} - {"404"} == pages
    assert "quick-start.html" in (site / "search" / "search_index.json").read_text()


def test_the_reference_has_signatures_and_docstrings(site):
    page = (site / "api.html").read_text()
    assert 'id="pixrec_core.serving.Recommender.for_user"' in page
    assert "filter_seen" in page
    assert "leave out items of the history" in page


def test_the_site_asks_no_other_host_for_fonts(site):
    assert "fonts.googleapis.com" not in (site / "index.html").read_text()


def test_broken_links_fail_the_build(tmp_path):
    docs = shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (docs / "scale.md").open("a") as page:
        page.write("\n[a page](no-such-page.md), [a heading](concepts.md#no-such-heading)\n")
    settings = (ROOT / "mkdocs.yml").read_text()
    (tmp_path / "mkdocs.yml").write_text(settings.replace("paths: [.]", f"paths: ['{ROOT}']"))
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode == 1
    assert "no-such-page.md" in done.stderr
    assert "no-such-heading" in done.stderr
