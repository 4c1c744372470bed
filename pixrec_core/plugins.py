"""Plug-ins are modules of a package: a new file is a new plug-in.

An installed distribution adds plug-ins by entry points, whose group is the full name of the package:

    [project.entry-points."pixrec_core.recommenders"]
    also_bought = "also_bought"
"""

import hashlib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from pixrec_core.errors import SettingsError, did_you_mean


def plugin_names(package: str) -> list[str]:
    """Names of the plug-ins of a package, sorted; modules whose names start with an underscore are left out."""
    paths = importlib.import_module(package).__path__
    own = {m.name for m in pkgutil.iter_modules(paths) if not m.name.startswith("_")}
    return sorted(own | outside_plugins(package).keys())


def outside_plugins(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of installed distributions in a group, by name."""
    return _outside_plugins(group, tuple(sys.path))


@cache
def _outside_plugins(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:  # noqa: ARG001  # where to look
    """Cached, because the search reads a file of every installed distribution."""
    return {each.name: each for each in sorted(entry_points(group=group), key=lambda each: each.name)}


def load_outside(entry: EntryPoint) -> Any:
    """Import what an entry point names: a module, or an object of one.

    Raises:
        SettingsError: it cannot be imported.
    """
    try:
        return entry.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        source = entry.dist.name if entry.dist else "an installed distribution"
        raise SettingsError(
            f"the plug-in {entry.name!r} of {source} ({entry.group}) cannot be loaded: {error}; "
            "correct its entry point, or uninstall it"
        ) from error


def outside_files(group: str) -> Iterator[Path]:
    """Yield the source files of the entry points in a group, without importing the modules themselves."""
    for entry in outside_plugins(group).values():
        with suppress(ModuleNotFoundError):  # its package is missing; `load_plugin` says so
            spec = find_spec(entry.module)
            if spec and spec.origin and Path(spec.origin).is_file():
                yield Path(spec.origin)


def code_digest(package: str, keep: Callable[[str], bool] = lambda _: True, outside: str | None = None) -> str:
    """Return the SHA-256 of the source of a package's modules, without importing them.

    A stage that runs every plug-in of a package depends on it: a new or changed file makes its artefact stale.

    `keep` decides by the name of a module whether it counts; `outside` is a group of entry points whose files count
    too.
    """
    spec = find_spec(package)
    assert spec, f"{package} is a package of this project"
    digest = hashlib.sha256()
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder).rglob("*.py")):
            if keep(path.stem):
                source = path.read_bytes()
                digest.update(f"{path.relative_to(folder)} {len(source)}\n".encode() + source)
    for path in outside_files(outside) if outside else ():
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def load_plugin(package: str, name: str) -> ModuleType:
    """Import a plug-in of a package.

    Raises:
        SettingsError: the package has no such plug-in, and the message has a similar name or lists those it has; or
            one from outside cannot be loaded.
    """
    names = plugin_names(package)
    if name not in names:
        kind = package.rpartition(".")[2].rstrip("s")
        raise SettingsError(f"unknown {kind} {name!r}{did_you_mean(name, names)}")
    if (entry := outside_plugins(package).get(name)) is None:
        return importlib.import_module(f"{package}.{name}")
    if entry.value.rpartition(".")[2] != name:
        raise SettingsError(f"the plug-in {name!r} ({package}) is {entry.value!r}; give it the name of its module")
    module: ModuleType = load_outside(entry)
    return module
