"""Nothing from a catalogue, a server or a failed stage controls the terminal."""

import json
import logging
import warnings

import polars as pl
import pytest
from rich.table import Table

from pixrec_assets import terminal
from pixrec_assets.commands.recommend import _plain_text
from pixrec_core.errors import SourceError
from pixrec_core.stages import Work
from tests.assets.test_cli import replace_stage
from tests.core.test_printable import HOSTILE, is_control


def is_text(printed: str) -> bool:
    return bool(printed) and not any(map(is_control, printed))


def test_a_table_in_a_terminal_and_in_a_file():
    table = Table("item", title=f"title {HOSTILE}")
    table.add_row(f"id {HOSTILE}")
    console = terminal.PrintableConsole(width=60, color_system=None)
    with console.capture() as captured:
        console.print(table)
    assert is_text(captured.get())
    assert is_text(_plain_text(table))


def test_styles_still_reach_a_terminal():
    console = terminal.PrintableConsole(force_terminal=True, color_system="standard", highlight=False)
    with console.capture() as captured:
        console.print(f"[red]{HOSTILE}[/]")
    assert captured.get().startswith("\x1b[31m")
    assert captured.get().count("\x1b") == 2, "one sequence to start the colour, and one to end it"


def test_log_lines(capsys, monkeypatch):
    log = logging.getLogger("pixrec_core")
    monkeypatch.setattr(log, "propagate", False)  # pytest-xdist cannot send the captured log: no UTF-8 has a surrogate
    before = log.handlers, log.level
    try:
        terminal.show_progress(f"shop|{HOSTILE}")
        logging.getLogger("pixrec_core.data").warning("photo %s", HOSTILE)
    finally:
        log.handlers, log.level = before
    assert is_text(capsys.readouterr().err)


def test_a_failed_stage_and_a_refused_promotion(pixrec, monkeypatch):
    def failing(_):
        raise SourceError(f"line 7: {HOSTILE}")

    replace_stage(monkeypatch, "items", run=failing)
    _, out, err = pixrec("run", "sample", "--up-to", "items")
    assert is_text(out)
    assert is_text(err)


def test_an_unexpected_error_is_a_traceback_without_controls(pixrec, monkeypatch):
    def failing(**_):
        raise ValueError(HOSTILE)

    monkeypatch.setattr("pixrec_assets.commands.status.load_settings", failing)
    code, _, err = pixrec("status")
    assert (code, "Traceback" in err, is_text(err)) == (1, True, True)


@pytest.mark.parametrize("arguments", [("run", HOSTILE), ("run", "--stage", HOSTILE), (HOSTILE,), ("photos", HOSTILE)])
def test_wrong_arguments(pixrec, arguments):
    code, _, err = pixrec(*arguments)
    assert code in (1, 2)
    assert is_text(err)


def test_photos_as_table_and_json(pixrec, settings):
    pixrec("run", "sample", "--up-to", "images")
    path = Work(settings, "sample").paths.images_manifest
    table = pl.read_parquet(path)
    hostile = HOSTILE.replace("\ud83d", "")  # Parquet has no half pairs
    reason = pl.when(pl.col("status") == "failed").then(pl.lit(hostile)).alias("reason")
    table.with_columns(reason, pl.lit(hostile).alias("url")).write_parquet(path)
    assert is_text(pixrec("photos", "sample", "--failed")[1])
    printed = pixrec("photos", "sample", "--failed", "--json")[1]
    assert is_text(printed)
    assert json.loads(printed)[0]["reason"] == hostile


def test_a_deprecated_setting_is_one_warning(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        terminal.prepare_streams()
        for _ in range(3):
            warnings.warn("the setting window is deprecated", FutureWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: the setting window is deprecated\n"


def test_documents_are_printed_as_they_are(capsys):
    terminal.echo("<p>[red]1[/red]</p>\n" + HOSTILE)
    out = capsys.readouterr().out
    assert out.startswith("<p>[red]1[/red]</p>\n")
    assert is_text(out)
