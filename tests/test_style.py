"""No file of the project uses a word that `banned-words` in pyproject.toml lists; the changelog may."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "deploy", "docs", "pixrec_assets", "pixrec_core", "tests")
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".html"}


def test_no_banned_words():
    words = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pixrec"]["banned-words"]
    banned = re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE)
    paths = [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    paths = [path for path in paths if path.suffix in SUFFIXES and path.name != "CHANGELOG.md"]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for match in banned.finditer(line)
        if not line.startswith("banned-words")
    ]
    assert not found, "\n".join(found)
