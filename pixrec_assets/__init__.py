"""PixRec in Dagster: assets, jobs, schedules and sensors, and the command line `pixrec`.

`build_definitions` is for projects that have PixRec's assets together with their own.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dagster as dg

    from pixrec_core.settings import Settings

#: Settings of this process's definitions; None: those of pixrec.toml, read when the definitions are first imported.
_given: "Settings | None" = None


def build_definitions(settings: "Settings | None" = None) -> "dg.Definitions":
    """Return all definitions of PixRec, to merge into those of another project.

    The datasets of `settings` are the partitions; without settings, pixrec.toml and the environment are read. A process
    can have the definitions of one `settings` only.

    Raises:
        SettingsError: the definitions of this process were built from other settings, or pixrec.toml is wrong.
    """
    global _given  # noqa: PLW0603  # partitions are module constants, since Dagster loads modules
    if f"{__name__}.partitions" not in sys.modules:
        _given = settings
    from pixrec_assets.definitions import create_definitions
    from pixrec_assets.partitions import SETTINGS
    from pixrec_core.errors import SettingsError

    if settings is not None and settings != SETTINGS:
        raise SettingsError("the definitions of this process were built from other settings; build them once")
    return create_definitions()  # with the executor of the other project
