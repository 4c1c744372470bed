"""`pixrec compare`: its four formats."""

import csv
import io

import polars as pl
import pytest
from click.testing import CliRunner

from pixrec_assets.cli import cli
from pixrec_assets.commands.compare import _cells
from pixrec_core.schemas import OUTCOME_SCHEMA


@pytest.fixture
def folders(tmp_path):
    for name, ranks in {"a": [1, 2, 1, 2], "b": [1, 1, 1, 2]}.items():
        folder = tmp_path / name
        folder.mkdir()
        rows = [(method, f"u{n}", "i", rank) for method in ("text_only", "ease") for n, rank in enumerate(ranks)]
        rows += [("ease", "u4", "i", None), ("text_only", "u4", "i", 1)]
        pl.DataFrame(rows, OUTCOME_SCHEMA, orient="row").write_parquet(folder / "outcomes.parquet")
    return [str(tmp_path / name) for name in "ab"]


def compare(*arguments):
    result = CliRunner().invoke(cli, ["compare", "--metric", "Recall@1", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_table(folders):
    text = compare(*folders)
    assert "2 runs, 5 users, seen items allowed" in text
    assert "0.7000 ± 0.1414" in text
    assert "+20.0 (0.0 to 60.0)" in text
    assert text.count("minus best other") == 1


def test_markdown(folders):
    lines = compare(*folders, "--format", "markdown", "--reference", "ease").splitlines()
    assert lines[:2] == ["| method | Recall@1 | minus ease |", "|---|---|---|"]
    assert lines[2].startswith("| text_only | 0.7000 ± 0.1414 | +20.0 (")
    assert lines[3] == "| ease | 0.5000 ± 0.1414 |  |"


def test_latex(folders):
    text = compare(*folders, "--format", "latex")
    assert text.startswith("\\begin{tabular}{lrr}\n\\toprule\nmethod & Recall@1 & minus best other \\\\\n\\midrule\n")
    assert "text\\_only & 0.7000 $\\pm$ 0.1414 & " in text
    assert text.endswith("\\bottomrule\n\\end{tabular}\n")


def test_latex_has_escaped_names_and_minus_signs(folders):
    lines = compare(*folders, "--format", "latex", "--reference", "text_only").splitlines()
    assert lines[2] == "method & Recall@1 & minus text\\_only \\\\"
    assert " & $-$20.0 ($-$60.0 to 0.0) " in lines[5]


def test_a_difference_that_rounds_to_zero_has_no_minus_sign():
    row = {"mean": 0.5, "deviation": None, "difference": -1e-5, "low": -0.0, "high": -1e-9}
    assert _cells(row) == ("0.5000", "+0.0 (0.0 to 0.0)")


def test_one_thing_is_subtracted(folders):
    result = CliRunner().invoke(cli, ["compare", folders[1], "--versus", folders[0], "--reference", "ease"])
    assert (result.exit_code, "give --versus or --reference, not both" in result.output) == (2, True)


def test_csv_of_two_settings(folders):
    rows = list(csv.DictReader(io.StringIO(compare(folders[1], "--versus", folders[0], "--format", "csv"))))
    assert [row["method"] for row in rows] == ["text_only", "ease"]
    assert [float(row["difference"]) for row in rows] == pytest.approx([0.2, 0.2])
