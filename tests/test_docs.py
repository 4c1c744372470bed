"""README and docs are correct: their commands run, their settings load, their links exist.

The tutorials run from top to bottom in a temporary folder, with the real command and real stages; only data and
trainings are smaller. The text below a command is compared with its output; `...` matches anything, as in doctests.
"""

import doctest
import functools
import gzip
import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from pixrec_assets.cli import cli
from pixrec_core.data import interactions, items, raw_files
from pixrec_core.data.sources import sample
from pixrec_core.plugins import load_plugin
from pixrec_core.recommenders.base import ItemLists
from pixrec_core.settings import IngestSettings, Settings
from tests.core.data import raw_shop
from tests.core.recommenders.train_data import make_train_data
from tests.forks import run_command

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IN_ONE_FOLDER = ("quick-start.md", "your-data.md")  # the second continues in the folder of the first
AMAZON = "amazon.md"
OPERATIONS = ROOT / "docs" / "operations.md"

#: Commands that no tutorial runs -> the file that runs them.
ELSEWHERE = {
    "make demo": "Makefile",  # `make setup`, then `pixrec demo`, which a tutorial runs
    "make test": ".ci/run",  # this run
    "pip install .": "tests/test_packaging.py",
    "export DAGSTER_HOME=$PWD": "tests/assets/test_daemon.py",
    "dagster dev": "tests/assets/test_daemon.py",
    "export DAGSTER_HOME=$PWD/data/.dagster": "tests/test_packaging.py",
    "dagster dev -m pixrec_assets.definitions": "tests/test_packaging.py",
    "dg launch --job prepare_data --partition sample": "tests/assets/test_launch.py",
    "dg launch --job train --partition 'sample|multimodal'": "tests/assets/test_launch.py",
    "dg launch --job train --partition 'sample|text_only'": "tests/assets/test_launch.py",
    "dg launch --job evaluate --partition sample": "tests/assets/test_launch.py",
    "dg launch --assets 'group:data' --partition sample": "tests/assets/test_launch.py",
    "pixrec export shop --method multimodal --output shop-vectors": "tests/assets/test_recommend.py",
    "pixrec export shop --format onnx --output shop-onnx": "tests/assets/test_serving_assets.py",
    "pixrec refresh shop": "tests/assets/test_serving_assets.py",
    "pixrec rollback shop": "tests/assets/test_serving_assets.py",
    "pixrec rollback shop --to 5": "tests/assets/test_serving_assets.py",
    "pixrec serve shop": "tests/assets/test_serve.py",
    """curl -s http://127.0.0.1:8000/datasets/shop/recommend -H 'Content-Type: application/json' -d '{"user": "4711", "top": 5}'""": "tests/assets/test_serve.py",  # noqa: E501
    "pixrec compare data/books data-seed1/books data-seed2/books": "tests/assets/test_compare.py",
    "pixrec compare with-photos/books --versus data/books --format latex": "tests/assets/test_compare.py",
    "pixrec tune books --variant multimodal --minutes 60": "tests/assets/test_tune.py",
    "pixrec run": "tests/assets/test_runner.py",
    "pixrec run books films --workers 2": "tests/assets/test_runner.py",
    "pixrec run books --variant text_only --up-to item_vectors": ("tests/assets/test_runner.py"),
}

#: Commands of tutorials that must fail.
REFUSED = {"pixrec run shop --stage raw"}

#: Environment in which a tutorial runs in seconds.
SMALL = {
    "PIXREC_VARIANTS": '["multimodal"]',
    "PIXREC_TRAINING__EPOCHS": "1",
    "PIXREC_TRAINING__MAX_HISTORY_LEN": "4",
    "PIXREC_MODEL__EMBEDDING_DIM": "16",
    "PIXREC_MODEL__ITEM_TOKENS": "8",
    "PIXREC_RETRIEVAL__BASELINES": '["co_occurrence", "ease", "image_knn", "popularity"]',
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "300",
}
SHOP = sample.Options(users=60, items=40)
ELLIPSIS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Command:
    """A command of a console block, and the output that the page shows below it."""

    text: str
    shown: str

    @classmethod
    def all_of(cls, block: str) -> Iterator["Command"]:
        """Yield the commands of a block, without comments and without `.venv/bin/`."""
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, shown = part.partition("\n")
            yield cls(re.sub(r"\s+#.*", "", line).strip().replace(".venv/bin/", ""), shown)


def tokens(page: Path) -> list[Token]:
    """Return the tokens of a page in GitHub's Markdown, each followed by its inline tokens."""
    parsed = MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
    return [inner for token in parsed for inner in [token, *(token.children or [])]]


def fences(page: Path, *languages: str) -> list[Token]:
    return [token for token in tokens(page) if token.type == "fence" and token.info in languages]


def commands(page: Path) -> list[Command]:
    return [command for block in fences(page, "console") for command in Command.all_of(block.content)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub derives them."""
    titles = [text.content for before, text in pairwise(tokens(page)) if before.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def code_spans(page: Path) -> list[str]:
    return [token.content for token in tokens(page) if token.type == "code_inline"]


def pools() -> list[Command]:
    return [command for command in commands(OPERATIONS) if command.text.startswith("dagster instance ")]


by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@by_page
def test_every_block_has_a_known_language(page):
    known = {"console", "toml", "python", "pycon", "text", "yaml", "cron"}
    assert {token.info for token in fences(page, *known, "")} <= known | {""}
    assert len(fences(page, *known, "")) == sum(token.type == "fence" for token in tokens(page))


@by_page
def test_every_command_is_run(page):
    followed = [*pools(), *(each for name in (*IN_ONE_FOLDER, AMAZON) for each in commands(ROOT / "docs" / name))]
    followed = {command.text for command in followed}
    assert {command.text for command in commands(page)} <= followed | ELSEWHERE.keys()


def test_the_lists_of_commands_are_up_to_date():
    assert ELSEWHERE.keys() | REFUSED <= {command.text for page in PAGES for command in commands(page)}
    assert not [path for path in ELSEWHERE.values() if not (ROOT / path).is_file()]


@by_page
def test_every_option_exists(page):
    lines = [*(command.text for command in commands(page)), *code_spans(page)]
    for line in lines:
        for name, arguments in re.findall(r"\bpixrec ([a-z]+)([^|&]*)", line):
            options = {option for each in cli.commands[name].params for option in (*each.opts, *each.secondary_opts)}
            assert set(re.findall(r"(?<=\s)--?[a-z][\w-]*", arguments)) <= options, line
        for name, arguments in re.findall(r"\bpython -m (benchmarks\.\w+)(.*)", line):
            source = (ROOT / f"{name.replace('.', '/')}.py").read_text()
            assert not [option for option in re.findall(r"--[\w-]+", arguments) if f'"{option}"' not in source], line


@by_page
def test_every_file_and_link_exists(page):
    for token in tokens(page):
        link = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if link and "://" not in link:
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
    for path in code_spans(page):
        if re.fullmatch(r"(tests|pixrec_core|pixrec_assets|benchmarks)/[\w/]+\.py", path):
            assert (ROOT / path).is_file(), path


SNIPPETS = [
    pytest.param(block.content, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(fences(page, "toml"))
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_settings_are_valid(snippet, tmp_path, monkeypatch):
    """A dataset without a source in the snippet gets the sample."""
    monkeypatch.setenv("PIXREC_CONFIG", str(tmp_path / "none.toml"))
    given = tomllib.loads(snippet)
    datasets = given.setdefault("datasets", {})
    for joint in given.get("joint", {}).values():
        datasets |= {name: datasets.get(name, {}) for name in joint["datasets"]}
    for number, dataset in enumerate(datasets.values()):
        dataset.setdefault("source", {"kind": "sample", "seed": number})
    for dataset in Settings(root=tmp_path, **given).datasets.values():
        load_plugin(raw_files.SOURCES, dataset.source.kind).Options(**dataset.source.options)


def follow(
    page: str, folder: Path, environment: dict[str, str], changes: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Follow a page in `folder`: write its settings with some `changes`, run its commands and its Python."""
    names: dict[str, Any] = {}
    for block in fences(ROOT / "docs" / page, "console", "toml", "python", "pycon"):
        if block.info == "toml":
            text = functools.reduce(lambda text, change: text.replace(*change), changes.items(), block.content)
            (folder / "pixrec.toml").write_text(text)
        elif block.info == "console":
            for command in Command.all_of(block.content):
                if command.text not in ELSEWHERE:
                    check(command, folder, environment)
        elif block.info == "python":
            exec(compile(block.content, page, "exec"), names)
        else:
            test = doctest.DocTestParser().get_doctest(block.content, names, page, page, block.map[0])
            wrong: list[str] = []
            doctest.DocTestRunner(optionflags=ELLIPSIS).run(test, out=wrong.append, clear_globs=False)
            assert not wrong, "".join(wrong)


def check(command: Command, folder: Path, environment: dict[str, str]) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = own_environment() | {"PATH": path, "PYTHONPATH": str(ROOT)} | SMALL | environment
    if command.text.startswith("pixrec ") and not re.search("[|<>;&$*]", command.text):
        done = run_command(shlex.split(command.text), folder, environment)
    else:
        done = subprocess.run(
            ["bash", "-c", command.text],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    assert done.returncode == (command.text in REFUSED), f"{command.text}\n{done.stdout}"
    assert "Traceback" not in done.stdout
    if command.shown.strip():
        assert doctest.OutputChecker().check_output(command.shown, done.stdout, ELLIPSIS), done.stdout


def own_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PIXREC_", "DAGSTER_"))}


@pytest.mark.slow
def test_the_tutorials_on_the_sample_and_own_tables_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = {"kind": "sample"} | SHOP.model_dump()
    environment = {"PIXREC_DATASETS__SAMPLE__SOURCE": json.dumps(source)}
    for page in IN_ONE_FOLDER:
        (tmp_path / "pixrec.toml").unlink(missing_ok=True)
        follow(page, tmp_path, environment)
    assert (tmp_path / "like-it.html").stat().st_size > 10_000
    for command in pools():
        check(command, tmp_path, {"DAGSTER_HOME": str(tmp_path / "data" / ".dagster")})


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """URL of a server that has the sample as a category of Amazon Reviews 2023; a folder has both files too."""
    found = sample.fetch(SHOP, tmp_path, tmp_path / "mirror")
    (tmp_path / "downloads" / "magazines").mkdir(parents=True)
    handler = functools.partial(Quiet, directory=str(tmp_path / "mirror"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        for raw, name in ((found.reviews, "review_categories/"), (found.metadata, "meta_categories/meta_")):
            path = tmp_path / "mirror" / "raw" / f"{name}Magazine_Subscriptions.jsonl.gz"
            path.parent.mkdir(parents=True)
            lines = gzip.decompress(raw.read_bytes()).replace(
                b'"images/', b'"http://127.0.0.1:%d/images/' % server.server_port
            )
            path.write_bytes(gzip.compress(lines))
            (tmp_path / "downloads" / "magazines" / path.name).hardlink_to(path)
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.mark.slow
def test_the_tutorial_on_an_amazon_category_runs(tmp_path, mirror, monkeypatch):
    """By name, from a mirror on loopback instead of McAuley Lab's server, then from a folder."""
    monkeypatch.chdir(tmp_path)
    named = 'category = "Magazine_Subscriptions"'
    environment = {"PIXREC_IMAGES__ALLOW_PRIVATE_HOSTS": "true"}
    follow(AMAZON, tmp_path, environment, {named: f'{named}\nbase_url = "{mirror}"'})


def examples() -> dict[str, dict[str, Any]]:
    """Run the Python blocks of the page on extending; return the names that each defines, by heading."""
    found: dict[str, dict[str, Any]] = {}
    title = ""
    for before, token in pairwise(tokens(ROOT / "docs" / "extending.md")):
        title = token.content if before.type == "heading_open" else title
        if token.type == "fence" and token.info == "python":
            exec(compile(token.content, title, "exec"), found.setdefault(title, {}))
    return found


def test_the_shown_source_feeds_the_next_stages(tmp_path):
    names = examples()["A source"]
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n1::661::3::978302109\n")
    (tmp_path / "movies.dat").write_text("661::James (1996)::Animation|Children's\n1193::Cuckoo (1975)::Drama\n")
    options = names["Options"](folder=".")
    found = names["fetch"](options, tmp_path, tmp_path / "raw")
    paths = raw_shop.at(tmp_path, found.reviews, found.metadata)
    assert interactions.build_interactions(IngestSettings(), paths)["rows"] == 2
    assert items.build_items(IngestSettings(), paths)["rows"] == 2
    assert pl.read_parquet(paths.items)["categories"].to_list() == [["Drama"], ["Animation", "Children's"]]
    assert pl.read_parquet(paths.interactions)["timestamp"].to_list() == [978300760000, 978302109000]
    assert names["watched"](options, tmp_path) == [tmp_path / "ratings.dat", tmp_path / "movies.dat"]


def test_the_shown_method_counts_pairs():
    fitted = examples()["A method"]["fit"](make_train_data([[0, 1], [0, 2], [1, 0, 1]], 4))
    assert fitted.scores(ItemLists.from_lists([[2, 0], [3]])).tolist() == [[3, 2, 1, 0], [0, 0, 0, 0]]


def test_the_shown_metric_equals_values_by_hand():
    metric = examples()["A metric"]["rank_biased_precision"]
    assert np.allclose(metric(np.array([1, 3, np.inf])), [0.2, 0.2 * 0.64, 0])
