"""Where the shards of a heavy stage are worked on: in this process, or by workers of Ray.

An engine maps and knows nothing of what it maps: what a stage makes is the same whichever engine it has.
Each one is a file with a function `make`.
"""

from pixrec_core.engine._contract import Engine
from pixrec_core.engine.local import LOCAL
from pixrec_core.plugins import load_plugin
from pixrec_core.settings import EngineSettings

__all__ = ["LOCAL", "Engine", "choose"]


def choose(settings: EngineSettings) -> Engine:
    """The engine that the settings name. Nothing is started yet.

    Raises:
        SettingsError: its library is not installed.
    """
    engine: Engine = load_plugin(__name__, settings.kind).make(settings)
    return engine
