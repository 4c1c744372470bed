"""`pixrec settings`."""

import click

from pixrec_assets.settings_page import settings_page


@click.command()
def settings() -> None:
    """Every setting with its type, default and unit, as Markdown: docs/settings.md.

    What this folder's pixrec.toml comes to is checked by `pixrec doctor`.
    """
    click.echo(settings_page(), nl=False)
