"""Is this machine fit to run PixRec? What `pixrec doctor` asks, and how each answer is mended."""

from collections.abc import Iterator

from pixrec_assets.doctor import machine, network, places
from pixrec_assets.doctor.finding import Finding, Level
from pixrec_core.errors import PixRecError
from pixrec_core.settings import Settings, config_path, load_settings


def examine() -> Iterator[Finding]:
    """Findings one after the other, each as soon as it is known; without readable settings only the machine's."""
    yield from machine.findings()
    try:
        settings = load_settings()
    except PixRecError as error:
        yield Finding("settings", Level.FAULT, str(error), "mend what is named there; docs/settings.md has every field")
        return
    yield _settings(settings)
    yield from places.findings(settings)
    yield from network.findings(settings)


def _settings(settings: Settings) -> Finding:
    path = config_path()
    where = str(path) if path.is_file() else f"no {path}; the sample dataset alone"
    return Finding("settings", Level.OK, f"{where}; datasets: {', '.join(settings.datasets)}")
