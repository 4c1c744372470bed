"""Plug-ins are modules of a package: adding one is adding one file."""

import importlib
import pkgutil
from types import ModuleType

from pixrec_core.errors import SettingsError


def plugin_names(package: str) -> list[str]:
    """Names of the plug-ins in a package, sorted; modules that start with an underscore are not plug-ins."""
    paths = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(paths) if not m.name.startswith("_"))


def load_plugin(package: str, name: str) -> ModuleType:
    """Import one plug-in of a package.

    Raises:
        SettingsError: no module of that name; the message lists those there are.
    """
    names = plugin_names(package)
    if name not in names:
        kind = package.rpartition(".")[2].rstrip("s")
        raise SettingsError(f"unknown {kind} {name!r}; known: {', '.join(names)}")
    return importlib.import_module(f"{package}.{name}")
