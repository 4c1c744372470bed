"""The raw stage: a source's files, their checksums, and where later stages find them."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import duckdb
from pydantic import ValidationError

from pixrec_core import files
from pixrec_core.data import raw_lines
from pixrec_core.data.raw_table import MACROS, RawTable
from pixrec_core.data.sources import RawFiles
from pixrec_core.errors import SettingsError, SourceError
from pixrec_core.paths import DatasetPaths
from pixrec_core.plugins import load_plugin
from pixrec_core.settings import SourceSettings, error_lines

SOURCES = "pixrec_core.data.sources"


def _options(source: SourceSettings) -> tuple[Any, Any]:
    """Return the source's module and its validated options."""
    module = load_plugin(SOURCES, source.kind)
    try:
        return module, module.Options.model_validate(source.options)
    except ValidationError as error:
        raise SettingsError(f"source {source.kind!r}: {'; '.join(error_lines(error, module.Options))}") from None


def describe(source: SourceSettings, root: Path) -> Any:
    """Return size and time of the local files that a source reads in place, and whether it finds local photos.

    Both show changes at little cost.
    """
    module, options = _options(source)
    found: dict[str, Any] = files.stat_snapshot(module.watched(options, root))
    has_photos = hasattr(module, "photos") and module.photos(options, root) is not None
    return found | {"photos": True} if has_photos else found


def watched(source: SourceSettings, root: Path) -> list[Path]:
    """Return the local files that a source reads in place, reviews before metadata; none if it brings its own.

    Raises:
        SettingsError: unknown kind of source, or wrong options for it.
        SourceError: it is not clear which files are meant.
    """
    module, options = _options(source)
    found: list[Path] = module.watched(options, root)
    return found


def preview(source: SourceSettings, root: Path, dataset: str) -> list[str]:
    """Return lines that show how the first rows of local files are read; none for other sources.

    Raises:
        SettingsError: unknown kind of source, or wrong options for it.
        SourceError: the files cannot be read.
    """
    module, options = _options(source)
    with _naming(dataset):
        return list(module.preview(options, root)) if hasattr(module, "preview") else []


@contextmanager
def _naming(dataset: str) -> Iterator[None]:
    """Put the dataset's name into errors of a source, which only knows a placeholder."""
    try:
        yield
    except SourceError as error:
        raise SourceError(str(error).replace("<name>", dataset)) from error


def urls(source: SourceSettings) -> tuple[str, ...]:
    """Return the URLs that a source downloads; none if it reads local files or generates its own.

    Raises:
        SettingsError: unknown kind of source, or wrong options for it.
    """
    _, options = _options(source)
    return getattr(options, "urls", None) or ()


def fetch(source: SourceSettings, root: Path, paths: DatasetPaths) -> dict[str, Any]:
    """Bring the raw files and write their manifest.

    Raises:
        SettingsError: unknown kind of source, or wrong options for it.
        SourceError: a file is missing or empty, or it is in the folder of the dataset's artefacts.
    """
    module, options = _options(source)
    with _naming(paths.root.name):
        found: RawFiles = module.fetch(options, root, paths.raw)
        _check_place(found, paths)
        reviews, metadata = (_entry(path, found.reading, paths) for path in (found.reviews, found.metadata))
    photos = _stored_path(found.photos, paths) if found.photos else None
    manifest = {"kind": source.kind, "reviews": reviews, "metadata": metadata, "photos": photos}
    files.write_json(paths.raw_manifest, manifest | {"reading": found.reading})
    return {
        "reviews_bytes": reviews["bytes"],
        "reviews_sha256": reviews["sha256"],
        "metadata_bytes": metadata["bytes"],
        "metadata_sha256": metadata["sha256"],
        "source": source.kind,
    }


def _check_place(found: RawFiles, paths: DatasetPaths) -> None:
    """Raise SourceError for files in the dataset's folder: later stages replace and remove what is there."""
    root, raw = paths.root.resolve(), paths.raw.resolve()
    for path in (found.reviews, found.metadata, found.photos):
        if path and path.resolve().is_relative_to(root) and not path.resolve().is_relative_to(raw):
            raise SourceError(
                f"{path} is in {paths.root}, where PixRec writes and removes the artefacts of the dataset; move it to "
                "another folder, and correct [datasets.<name>.source] of pixrec.toml"
            )


def _entry(path: Path, reading: dict[str, Any], paths: DatasetPaths) -> dict[str, Any]:
    """Return location, size, checksum and data version of the file or files of a table."""
    found = raw_lines.list_files(path)
    for file in found or [path]:
        raw_lines.require_content(file)
    checksums = [files.sha256_file(file) for file in found]
    sha256 = checksums[0] if found == [path] else hashlib.sha256("".join(checksums).encode()).hexdigest()
    settings = hashlib.sha256(json.dumps(reading, sort_keys=True).encode()).hexdigest()
    version = f"{sha256}-{settings}" if reading else sha256
    size = sum(file.stat().st_size for file in found)
    return {"path": _stored_path(path, paths), "bytes": size, "sha256": sha256, "version": version}


def _stored_path(path: Path, paths: DatasetPaths) -> str:
    """Return a path relative to the dataset's folder if it is inside of it, so that the folder can be moved."""
    return str(path.relative_to(paths.root) if path.is_relative_to(paths.root) else path)


def locate(paths: DatasetPaths) -> RawFiles:
    """Return where the raw files are.

    Raises:
        MissingArtefactError: the raw stage has not run.
    """
    manifest = files.read_json(paths.raw_manifest)
    reviews, metadata, photos = manifest["reviews"], manifest["metadata"], manifest["photos"]
    return RawFiles(
        paths.root / reviews["path"],
        paths.root / metadata["path"],
        paths.root / photos if photos else None,
        manifest.get("reading", {}),
    )


def loader(
    table: Literal["interactions", "items"], paths: DatasetPaths, max_expansion: float
) -> Callable[[duckdb.DuckDBPyConnection, Path], list[RawTable]]:
    """Return the function that loads raw files into a connection, with a folder for its temporary files.

    Raises:
        MissingArtefactError: the raw stage has not run.
    """
    raw = locate(paths)
    module = load_plugin(SOURCES, files.read_json(paths.raw_manifest).get("kind", "amazon_2023"))

    def load(db: duckdb.DuckDBPyConnection, folder: Path) -> list[RawTable]:
        db.execute(f"CREATE MACRO has_local_photos() AS {raw.photos is not None};" + MACROS)
        with _naming(paths.root.name):
            loaded: list[RawTable] = getattr(module, f"load_{table}")(db, raw, folder, max_expansion)
        return loaded

    return load


def digest(paths: DatasetPaths) -> str:
    """Return the data version of both files, which decides whether later stages are stale.

    It has a part for local photos, because a catalogue has paths of photos only if there are any.
    """
    manifest = files.read_json(paths.raw_manifest)
    versions = [entry.get("version", entry["sha256"]) for entry in (manifest["reviews"], manifest["metadata"])]
    return "-".join([*versions, *(["photos"] if manifest["photos"] else [])])
