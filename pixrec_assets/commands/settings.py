"""`pixrec settings`."""

import click

from pixrec_assets.settings_page import settings_page
from pixrec_assets.terminal import echo


@click.command()
def settings() -> None:
    """Print every setting with its type, default and unit, as Markdown: docs/settings.md.

    `pixrec doctor` checks the pixrec.toml of this folder.
    """
    echo(settings_page())
