"""The folder of Dagster's history of runs."""

import os
from pathlib import Path
from typing import Final

from pixrec_core import files
from pixrec_core.errors import SettingsError
from pixrec_core.settings import Settings

VARIABLE: Final = "DAGSTER_HOME"
INSTANCE_FILE: Final = "dagster.yaml"
#: For installations without a checkout.
SHIPPED_INSTANCE: Final = Path(__file__).with_name(INSTANCE_FILE)


def dagster_home(settings: Settings) -> Path:
    """`$DAGSTER_HOME`; else the folder of `pixrec.toml` where it holds a `dagster.yaml`; else `<data_dir>/.dagster`.

    The last is created if it does not exist. The variable is set for Dagster and for processes that it starts.

    Raises:
        SettingsError: the variable is not the absolute path of a folder.
    """
    home = Path(os.environ.get(VARIABLE) or _default(settings))
    if not home.is_absolute() or not home.is_dir():
        raise SettingsError(f"{VARIABLE} is {str(home)!r}; set it to the absolute path of an existing folder")
    os.environ[VARIABLE] = str(home)
    return home


def _default(settings: Settings) -> Path:
    if (settings.root / INSTANCE_FILE).is_file():
        return settings.root
    home = settings.data_dir / ".dagster"
    if not (home / INSTANCE_FILE).exists():
        with files.replacing(home / INSTANCE_FILE) as temporary:
            temporary.write_bytes(SHIPPED_INSTANCE.read_bytes())
    return home
