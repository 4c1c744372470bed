"""Where Dagster keeps the history of runs when nobody said where."""

import os
from pathlib import Path
from typing import Final

from pixrec_core import files
from pixrec_core.errors import SettingsError
from pixrec_core.settings import Settings

VARIABLE: Final = "DAGSTER_HOME"
INSTANCE_FILE: Final = "dagster.yaml"
#: The project's own, for people who have PixRec as a package alone.
SHIPPED_INSTANCE: Final = Path(__file__).with_name(INSTANCE_FILE)


def dagster_home(settings: Settings) -> Path:
    """`$DAGSTER_HOME`; else the folder of `pixrec.toml` where it holds a `dagster.yaml`; else `<data_dir>/.dagster`.

    The last is made where it is not there. The variable is set, for Dagster and for processes that it starts.

    Raises:
        SettingsError: the variable names no folder, or not by its absolute path.
    """
    home = Path(os.environ.get(VARIABLE) or _default(settings))
    if not home.is_absolute() or not home.is_dir():
        raise SettingsError(f"{VARIABLE} is {str(home)!r}; it must be the absolute path of a folder that exists")
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
