"""Measure what README and docs show, keep it in docs/figures.json, and write their tables from that file.

`make results` runs every data set of benchmarks/results.toml whose files are there; the figures of the others stay.
`python -m benchmarks.results --collect hm=data/hm --commit 57efb95` takes an evaluation that was run before with that
commit, and `--tables` only writes the tables. A table stands between two comments:

    <!-- figures hm: blend ease -->               methods of a data set, or
    <!-- differences hm: blend-ease -->           paired differences in points
    <!-- /figures -->

A test compares all tables with the file. Tables of a data set that the file does not have stay as they are.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pixrec_core import __version__, files
from pixrec_core.settings import load_settings

ROOT: Final = Path(__file__).resolve().parents[1]
SETTINGS: Final = ROOT / "benchmarks" / "results.toml"
FIGURES: Final = ROOT / "docs" / "figures.json"
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

METRICS: Final = ("Recall@10", "NDCG@10")
PROTOCOLS: Final = {"seen_allowed": "", "seen_filtered": ", seen items filtered"}
TABLE: Final = re.compile(
    r"(?P<start>^<!-- (?P<kind>figures|differences) (?P<dataset>\w+): (?P<rows>[^>]+) -->\n)"
    r".*?(?P<end>^<!-- /figures -->)",
    re.DOTALL | re.MULTILINE,
)


def collect(metrics: Mapping[str, Any], command: str, commit: str) -> dict[str, Any]:
    """Return the figures of a data set: what its tables show of metrics.json, and where it comes from."""
    figures: dict[str, Any] = {"version": __version__, "commit": commit, "command": command}
    figures |= {"users": metrics["users"], "items": metrics["items"], "methods": {}, "differences": {}}
    for protocol in PROTOCOLS:
        found = metrics["protocols"][protocol]
        for method, values in found["methods"].items():
            for metric in METRICS:
                interval = [round(values[metric][end], 5) for end in ("value", "low", "high")]
                figures["methods"].setdefault(method, {})[f"{metric} {protocol}"] = interval
        for each in found["paired"]:
            if each["metric"] in METRICS:
                interval = [round(each[end], 5) for end in ("difference", "low", "high")]
                pair = figures["differences"].setdefault(f"{each['a']}-{each['b']}", {})
                pair[f"{each['metric']} {protocol}"] = interval
    return figures


def _commit() -> str:
    """Return the last commit of the product, marked if its files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments, "--", "pixrec_core"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    return git("log", "-1", "--format=%h") + ("-dirty" if git("status", "--porcelain") else "")


def table_of(figures: Mapping[str, Any], kind: str, rows: list[str]) -> str:
    """Return a Markdown table of methods or of paired differences, with 95 % intervals."""
    columns = {f"{metric} {protocol}": f"{metric}{note}" for protocol, note in PROTOCOLS.items() for metric in METRICS}
    lines = [f"| | {' | '.join(columns.values())} |", f"|---|{'---|' * len(columns)}"]
    for row in rows:
        found = figures["methods"][row] if kind == "figures" else _difference(figures["differences"], row)
        name = f"`{row}`" if kind == "figures" else " minus ".join(f"`{method}`" for method in row.split("-"))
        lines.append(f"| {name} | {' | '.join(_cell(found.get(column), kind) for column in columns)} |")
    return "\n".join(lines) + "\n"


def _difference(differences: Mapping[str, Mapping[str, list[float]]], row: str) -> dict[str, list[float]]:
    """Return the differences `a-b`, which metrics.json may have as `b-a`."""
    a, b = row.split("-")
    reverse = {column: [-value, -high, -low] for column, (value, low, high) in differences.get(f"{b}-{a}", {}).items()}
    if not (found := reverse | dict(differences.get(row, {}))):
        raise KeyError(f"no difference of {a} and {b}; there are {', '.join(sorted(differences))}")
    return found


def _cell(interval: list[float] | None, kind: str) -> str:
    if interval is None:
        return ""
    if kind == "figures":
        value, low, high = (f"{each:.3f}".removeprefix("0") for each in interval)
    else:
        value, low, high = (f"{100 * each:.1f}" for each in interval)
        value = value if value.startswith("-") else f"+{value}"
    return f"{value} ({low} to {high})"


def with_tables(page: str, figures: Mapping[str, Any]) -> str:
    """Return a page with its tables written from the figures; those of other data sets stay as they are."""

    def write(found: re.Match[str]) -> str:
        if found["dataset"] not in figures:
            return found[0]
        table = table_of(figures[found["dataset"]], found["kind"], found["rows"].split())
        return f"{found['start']}\n{table}\n{found['end']}"

    return TABLE.sub(write, page)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", action="append", default=[], metavar="NAME=FOLDER", help="data/<dataset> folders")
    parser.add_argument("--commit", help="of the product that ran the evaluations of --collect")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    options = parser.parse_args()
    if bool(options.collect) != bool(options.commit):
        parser.error("--collect needs --commit, which ran the evaluation, and --commit is for --collect only")
    commit = options.commit or _commit()  # before a run of hours, during which it may change
    figures: dict[str, Any] = files.read_json(FIGURES) if FIGURES.exists() else {}
    folders = dict(each.split("=", 1) for each in options.collect)
    if not folders and not options.tables:
        folders = run_all()
    for name, folder in folders.items():
        metrics = files.read_json(Path(folder) / "evaluation" / "metrics.json")
        command = f"pixrec --config benchmarks/results.toml run {name} --up-to evaluation"
        figures[name] = collect(metrics, command, commit)
    text = json.dumps(figures, indent=1, sort_keys=True)
    FIGURES.write_text(re.sub(r"\[\s+(\S+)\s+(\S+)\s+(\S+)\s+\]", r"[\1 \2 \3]", text) + "\n")  # an interval is a line
    for path in PAGES:
        path.write_text(with_tables(path.read_text(encoding="utf-8"), figures), encoding="utf-8")


def run_all() -> dict[str, str]:
    """Run every data set whose files are there; return its folder by name."""
    os.environ["PIXREC_CONFIG"] = str(SETTINGS)
    settings = load_settings()
    folders = {}
    for name, dataset in settings.datasets.items():
        folder = dataset.source.options.get("folder")
        if folder and not (settings.root / folder).is_dir():
            print(f"{name} is left out: {settings.root / folder} is no folder; its figures stay")
            continue
        command = [sys.executable, "-m", "pixrec_assets.cli", "run", name, "--up-to", "evaluation"]
        subprocess.run(command, cwd=ROOT, check=True)
        folders[name] = str(settings.data_dir / name)
    return folders


if __name__ == "__main__":
    main()
