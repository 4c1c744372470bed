"""The tables of README and docs are those of docs/figures.json, which `make results` measures."""

import json
import re
import tomllib

import pytest

from benchmarks import results

FIGURES = json.loads(results.FIGURES.read_text())


@pytest.mark.parametrize("page", results.PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_the_file(page):
    text = page.read_text(encoding="utf-8")
    assert results.with_tables(text, FIGURES) == text, "python -m benchmarks.results --tables"
    assert len(results.TABLE.findall(text)) == len(re.findall(r"^<!-- (?:figures|differences) ", text, re.MULTILINE))


def test_every_figure_says_what_measured_it():
    datasets = tomllib.loads(results.SETTINGS.read_text())["datasets"]
    assert FIGURES.keys() <= datasets.keys()
    for name, figures in FIGURES.items():
        assert figures["command"].split()[-4:] == ["run", name, "--up-to", "evaluation"]
        assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?", figures["commit"])
        assert figures["users"] > 0


def test_a_changed_figure_changes_its_table():
    page = "before\n\n<!-- figures shop: ease -->\n\n| | old |\n|---|---|\n\n<!-- /figures -->\n\nafter\n"
    columns = [f"{metric} {protocol}" for protocol in results.PROTOCOLS for metric in results.METRICS]
    shop = {"methods": {"ease": {key: [0.2344, 0.225, 0.243] for key in columns}}}
    shop["differences"] = {"blend-ease": {key: [-0.0344, -0.041, 0.0021] for key in columns}}
    written = results.with_tables(page, {"shop": shop})
    assert "| `ease` | .234 (.225 to .243) | .234 (.225 to .243) |" in written
    assert written.startswith("before\n")
    assert written.endswith("\n\nafter\n")
    assert results.with_tables(written, {"shop": shop}) == written
    page = page.replace("figures shop: ease", "differences shop: blend-ease ease-blend")
    written = results.with_tables(page, {"shop": shop})
    assert "| `blend` minus `ease` | -3.4 (-4.1 to 0.2) |" in written
    assert "| `ease` minus `blend` | +3.4 (-0.2 to 4.1) |" in written
    assert results.with_tables(page, {"other": shop}) == page
    with pytest.raises(KeyError, match="no difference of blend and sasrec; there are blend-ease"):
        results.with_tables(page.replace("ease-blend", "blend-sasrec"), {"shop": shop})


def test_the_figures_are_taken_from_metrics():
    estimate = {"value": 0.123456, "low": 0.1, "high": 0.2}
    methods = {"ease": dict.fromkeys((*results.METRICS, "MRR"), estimate)}
    paired = [{"a": "blend", "b": "ease", "metric": metric, "difference": 0.01, "low": 0, "high": 0.02}
              for metric in (*results.METRICS, "MRR")]  # fmt: skip
    protocols = {key: {"methods": methods, "paired": paired} for key in results.PROTOCOLS}
    figures = results.collect({"users": 3, "items": 5, "protocols": protocols}, "pixrec run shop", "57efb95")
    assert (figures["commit"], figures["command"]) == ("57efb95", "pixrec run shop")
    assert figures["methods"]["ease"]["NDCG@10 seen_filtered"] == [0.12346, 0.1, 0.2]
    assert figures["differences"]["blend-ease"]["Recall@10 seen_allowed"] == [0.01, 0, 0.02]
    assert len(figures["methods"]["ease"]) == len(results.METRICS) * len(results.PROTOCOLS)
