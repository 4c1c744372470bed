"""PixRec as a component of a `dg` project: a folder with `defs.yaml` and pixrec.toml."""

import os

import dagster as dg

from pixrec_assets import build_definitions
from pixrec_core.settings import CONFIG_VARIABLE


class PixRecComponent(dg.Component, dg.Model, dg.Resolvable):
    """All assets, jobs, schedules and sensors of the datasets in a settings file.

    Attributes:
        config: the settings file, relative to the folder of `defs.yaml`; a project has one.
    """

    config: str = "pixrec.toml"

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Read the settings file, also in the processes of steps, and return the definitions."""
        os.environ[CONFIG_VARIABLE] = str((context.path / self.config).resolve())
        return build_definitions()
