"""Plug-ins are modules of a package: a new file is a new plug-in."""

import importlib
import pkgutil
from types import ModuleType

from pixrec_core.errors import SettingsError


def plugin_names(package: str) -> list[str]:
    """Names of the plug-ins in a package, sorted; modules whose names start with an underscore are left out."""
    paths = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(paths) if not m.name.startswith("_"))


def load_plugin(package: str, name: str) -> ModuleType:
    """Import a plug-in of a package.

    Raises:
        SettingsError: the package has no such plug-in; the message lists those it has.
    """
    names = plugin_names(package)
    if name not in names:
        kind = package.rpartition(".")[2].rstrip("s")
        raise SettingsError(f"unknown {kind} {name!r}; known: {', '.join(names)}")
    return importlib.import_module(f"{package}.{name}")
