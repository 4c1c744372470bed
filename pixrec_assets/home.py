"""The folder of Dagster's history of runs."""

import hashlib
import os
import tempfile
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
    A path that Dagster's SQLite URLs cannot hold is replaced by a link in the user's cache folder.

    Raises:
        SettingsError: the variable is not the absolute path of a folder.
    """
    home = Path(os.environ.get(VARIABLE) or _default(settings))
    if not home.is_absolute() or not home.is_dir():
        raise SettingsError(f"{VARIABLE} is {str(home)!r}; set it to the absolute path of an existing folder")
    home = _without_url_syntax(home)
    os.environ[VARIABLE] = str(home)
    return home


def _without_url_syntax(home: Path) -> Path:
    """Return a path of the folder without `?` and `%`: the folder, or a link to it that all processes share."""
    if not set("?%") & set(str(home)):
        return home
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    link = cache / "pixrec" / hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    if not (link.is_symlink() and link.readlink() == home):
        with files.replacing(link) as temporary:
            temporary.symlink_to(home)
    return link


def _default(settings: Settings) -> Path:
    if (settings.root / INSTANCE_FILE).is_file():
        return settings.root
    home = settings.data_dir / ".dagster"
    if not (home / INSTANCE_FILE).exists():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=home, delete=False
        ) as temporary:  # several first runs may write it at once
            temporary.write(SHIPPED_INSTANCE.read_bytes())
        Path(temporary.name).chmod(0o644)
        Path(temporary.name).replace(home / INSTANCE_FILE)
    return home
