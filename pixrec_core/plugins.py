"""Plug-ins are modules of a package: a new file is a new plug-in."""

import hashlib
import importlib
import pkgutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from pixrec_core.errors import SettingsError


def plugin_names(package: str) -> list[str]:
    """Names of the plug-ins in a package, sorted; modules whose names start with an underscore are left out."""
    paths = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(paths) if not m.name.startswith("_"))


def code_digest(package: str, keep: Callable[[str], bool] = lambda _: True) -> str:
    """Return the SHA-256 of the source of a package's modules, without importing them.

    A stage that runs every plug-in of a package depends on it: a new or changed file makes its artefact stale.

    Args:
        package: full name.
        keep: tells by the name of a module whether it counts.
    """
    spec = find_spec(package)
    assert spec, f"{package} is a package of this project"
    digest = hashlib.sha256()
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder).rglob("*.py")):
            if keep(path.stem):
                source = path.read_bytes()
                digest.update(f"{path.relative_to(folder)} {len(source)}\n".encode() + source)
    return digest.hexdigest()


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
