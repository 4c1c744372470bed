"""Engines: where the shards of heavy stages are processed and where training processes run.

An engine knows nothing of the work, and a stage builds the same artefact with any engine. Each engine is a file with a
function `make`.
"""

from pixrec_core.engine._contract import Engine, Launcher, Report
from pixrec_core.engine.local import LOCAL
from pixrec_core.plugins import load_plugin
from pixrec_core.settings import EngineSettings

__all__ = ["LOCAL", "Engine", "Launcher", "Report", "create_engine"]


def create_engine(settings: EngineSettings) -> Launcher:
    """Return the engine that the settings name. It starts nothing until it is used.

    Raises:
        SettingsError: its library is not installed.
    """
    engine: Launcher = load_plugin(__name__, settings.kind).make(settings)
    return engine
