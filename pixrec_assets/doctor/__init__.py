"""The checks of `pixrec doctor`: this machine, the settings, folders and the network."""

from collections.abc import Iterator

from pixrec_assets.doctor import folders, machine, network
from pixrec_assets.doctor.finding import Finding, Level
from pixrec_core.errors import PixRecError
from pixrec_core.settings import Settings, config_path, load_settings


def check_all() -> Iterator[Finding]:
    """Yield findings, each as soon as it is known; without readable settings only those of the machine."""
    yield from machine.check_machine()
    try:
        settings = load_settings()
    except PixRecError as error:
        yield Finding(
            "settings", Level.FAULT, str(error), "correct the setting named there; docs/settings.md lists all settings"
        )
        return
    yield _settings(settings)
    yield from folders.check_folders(settings)
    yield from network.check_network(settings)


def _settings(settings: Settings) -> Finding:
    path = config_path()
    source = str(path) if path.is_file() else f"no {path}: only the sample dataset"
    return Finding("settings", Level.OK, f"{source}; datasets: {', '.join(settings.datasets)}")
