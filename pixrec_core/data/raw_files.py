"""The raw stage: a source's files, their checksums, and where later stages find them."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pixrec_core import files
from pixrec_core.data.sources import RawFiles
from pixrec_core.errors import SettingsError, SourceError
from pixrec_core.paths import DatasetPaths
from pixrec_core.plugins import load_plugin
from pixrec_core.settings import SourceSettings, error_lines

SOURCES = "pixrec_core.data.sources"


def _options(source: SourceSettings) -> tuple[Any, Any]:
    """The source's module and its checked options."""
    module = load_plugin(SOURCES, source.kind)
    try:
        return module, module.Options.model_validate(source.options)
    except ValidationError as error:
        raise SettingsError(f"source {source.kind!r}: {'; '.join(error_lines(error, module.Options))}") from None


def describe(source: SourceSettings, root: Path) -> Any:
    """Size and time of the local files that a source reads in place: a cheap sign of change."""
    return files.stat_snapshot(watched(source, root))


def watched(source: SourceSettings, root: Path) -> list[Path]:
    """The local files that a source reads in place, reviews before metadata; none where it brings its own.

    Raises:
        SettingsError: unknown kind of source, or wrong options for it.
        SourceError: there is no telling which files are meant.
    """
    module, options = _options(source)
    found: list[Path] = module.watched(options, root)
    return found


def urls(source: SourceSettings) -> tuple[str, ...]:
    """Where a source downloads from; none where it reads local files or makes its own.

    Raises:
        SettingsError: unknown kind of source, or wrong options for it.
    """
    _, options = _options(source)
    return getattr(options, "urls", None) or ()


def fetch(source: SourceSettings, root: Path, paths: DatasetPaths) -> dict[str, Any]:
    """Bring the raw files and write their manifest.

    Raises:
        SettingsError: unknown kind of source, or wrong options for it.
        SourceError: a file is missing or empty.
    """
    module, options = _options(source)
    found: RawFiles = module.fetch(options, root, paths.raw)
    reviews = _entry(found.reviews, found.reviews_stand_for, paths)
    metadata = _entry(found.metadata, found.metadata_stand_for, paths)
    photos = _place(found.photos, paths) if found.photos else None
    files.write_json(paths.raw_manifest, {"reviews": reviews, "metadata": metadata, "photos": photos})
    return {
        "reviews_bytes": reviews["bytes"],
        "reviews_sha256": reviews["sha256"],
        "metadata_bytes": metadata["bytes"],
        "metadata_sha256": metadata["sha256"],
        "source": source.kind,
    }


def _entry(path: Path, stands_for: Path | None, paths: DatasetPaths) -> dict[str, Any]:
    if not path.is_file():
        raise SourceError(f"{path} is not there; check the folder in [datasets.<name>.source] of pixrec.toml")
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty; it must hold one JSON object a line")
    entry = {"path": _place(path, paths), "bytes": path.stat().st_size, "sha256": files.sha256_file(path)}
    return entry | ({"stands_for": str(stands_for)} if stands_for else {})


def _place(path: Path, paths: DatasetPaths) -> str:
    """Relative where it lies inside the dataset's own folder, so that the folder can be moved."""
    return str(path.relative_to(paths.root) if path.is_relative_to(paths.root) else path)


def locate(paths: DatasetPaths) -> RawFiles:
    """Where the raw files lie.

    Raises:
        MissingArtefactError: the raw stage has not run.
    """
    manifest = files.read_json(paths.raw_manifest)
    reviews, metadata, photos = manifest["reviews"], manifest["metadata"], manifest["photos"]
    return RawFiles(
        paths.root / reviews["path"],
        paths.root / metadata["path"],
        paths.root / photos if photos else None,
        _stood_for(reviews),
        _stood_for(metadata),
    )


def _stood_for(entry: dict[str, Any]) -> Path | None:
    return Path(entry["stands_for"]) if "stands_for" in entry else None


def digest(paths: DatasetPaths) -> str:
    """Checksums of both files: the data version that decides whether later stages are stale."""
    manifest = files.read_json(paths.raw_manifest)
    return f"{manifest['reviews']['sha256']}-{manifest['metadata']['sha256']}"
