"""The command line: `pixrec run`, `pixrec status`, `pixrec recommend` and others."""

import atexit
import io
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Final

import click
from rich.markup import escape

from pixrec_assets.commands.compare import compare
from pixrec_assets.commands.doctor import doctor
from pixrec_assets.commands.export import export, push
from pixrec_assets.commands.photos import photos
from pixrec_assets.commands.recommend import recommend
from pixrec_assets.commands.refresh import refresh
from pixrec_assets.commands.rollback import rollback
from pixrec_assets.commands.run import backfill, demo, run
from pixrec_assets.commands.serve import serve
from pixrec_assets.commands.settings import settings
from pixrec_assets.commands.status import status
from pixrec_assets.commands.tune import tune
from pixrec_assets.terminal import err, prepare_streams, stopped_by_signals, use_utf8
from pixrec_core.errors import PixRecError
from pixrec_core.settings import CONFIG_VARIABLE

EXAMPLES: Final = """\b
Examples:
  pixrec doctor                        # check this machine and the settings
  pixrec demo                          # the whole pipeline on generated data
  pixrec run books                     # one dataset of pixrec.toml, from raw files to the report
  pixrec run --workers 2               # all of them
  pixrec recommend books --text 'a short history of the sea'
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXAMPLES)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Settings file; by default $PIXREC_CONFIG, else pixrec.toml in this folder.",
)
@click.version_option(package_name="pixrec")
def cli(config: Path | None) -> None:
    """Next-item recommendations from text and photos."""
    if config:
        os.environ[CONFIG_VARIABLE] = str(config.resolve())


for command in (
    backfill, compare, demo, doctor, export, photos, push, recommend, refresh, rollback, run, serve, settings,
    status, tune,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Entry point. An error that the user can fix is printed as one message, without a traceback."""
    use_utf8()
    prepare_streams()
    with stopped_by_signals() as signals:
        try:
            sys.exit(cli.main(standalone_mode=False) or 0)
        except click.ClickException as error:
            shown = io.StringIO()
            error.show(shown)
            err.print(shown.getvalue(), end="", markup=False)
            sys.exit(error.exit_code)
        except PixRecError as error:
            err.print(f"[red]{escape(str(error))}[/]")
            sys.exit(1)
        except (KeyboardInterrupt, click.Abort):
            code = 128 + signals.last  # the convention of shells: 130, 143
            err.print("interrupted; finished artefacts are kept")
            sys.exit(code)
        except Exception:
            err.print(traceback.format_exc(), markup=False)
            err.print("[red]This is unexpected; please report it with the lines above.[/]")
            sys.exit(1)


def run_process() -> None:
    """Run `main` as the only work of this process, which ends without the last part of the interpreter's clean-up.

    There DuckDB would report its own objects as leaked, on dozens of lines, if PyTorch is loaded.
    """
    code = 1

    def leave() -> None:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)  # before any library, so that it runs last
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


if __name__ == "__main__":
    run_process()
