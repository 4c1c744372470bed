"""A promoted folder: numbered copies, and the manifest that names the one that serves.

The manifest is written last and replaced in one step, so whenever a promotion is killed, what served before goes
on serving. The copy that served before stays until the next promotion, for those who are still reading it.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pixrec_core import files
from pixrec_core.errors import ArtefactError, MissingArtefactError
from pixrec_core.evaluation.comparison import Comparison
from pixrec_core.paths import PromotedPaths, VariantPaths


class Promotion(BaseModel):
    """What serves, and why.

    Attributes:
        number: of the promotion, from 1; names its folder.
        dataset: whose catalogue and users these are.
        variant: how items are read.
        promoted_at: UTC.
        checkpoint_sha256: of its weights.
        score: NDCG@10 over all test users, seen items allowed.
        comparison: with what served before; None where there was nothing to compare.
        photo_size: longest edge of a stored photo, pixels.
        max_pixels: of a photo that is asked by (width x height).
        files: path within the folder -> SHA-256.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    dataset: str
    variant: str
    promoted_at: str
    checkpoint_sha256: str
    score: float
    comparison: Comparison | None
    photo_size: int
    max_pixels: int
    files: dict[str, str]


def read(paths: PromotedPaths) -> Promotion:
    """What serves.

    Raises:
        MissingArtefactError: nothing has been promoted.
        ArtefactError: the manifest is damaged.
    """
    if not paths.manifest.exists():
        raise MissingArtefactError(f"{paths.manifest} is not there: nothing has been promoted; run `pixrec run` first")
    try:
        return Promotion.model_validate_json(paths.manifest.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "as a whole"
        raise ArtefactError(f"{paths.manifest} is damaged ({place}: {first['msg']}); {_mend(paths)}") from None


def verify(paths: PromotedPaths, promotion: Promotion) -> VariantPaths:
    """Where the copies lie, each of which is what was promoted.

    Raises:
        ArtefactError: one is missing or has changed; it is named.
    """
    copies = paths.copies(promotion.number, promotion.variant)
    for name, sha256 in promotion.files.items():
        path = copies.root / name
        if not path.is_file():
            raise ArtefactError(f"{path} is gone; {_mend(paths)}")
        if files.sha256_file(path) != sha256:
            raise ArtefactError(f"{path} is damaged: its checksum is not that of the promotion; {_mend(paths)}")
    return copies


def _mend(paths: PromotedPaths) -> str:
    return f"remove the folder {paths.root} and promote again (`pixrec run NAME --stage promoted`)"


def write(paths: PromotedPaths, copies: VariantPaths, promotion: Mapping[str, object]) -> None:
    """Let copies serve: the manifest with their checksums, then no more of those before the last.

    Args:
        paths: of the promoted folder.
        copies: all there, in the folder of the promotion's number.
        promotion: fields of `Promotion` but for `promoted_at` and `files`.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    sums = {str(path.relative_to(copies.root)): files.sha256_file(path) for path in sorted(_all_files(copies.root))}
    manifest = Promotion.model_validate({**promotion, "promoted_at": now, "files": sums})
    files.write_json(paths.manifest, manifest.model_dump(mode="json"))
    for folder in paths.root.iterdir():
        if folder.is_dir() and folder.name not in {str(manifest.number), str(manifest.number - 1)}:
            files.remove(folder)


def copy(paths: VariantPaths, copies: VariantPaths) -> None:
    """Give all that serving needs a second name, so that no later run can change it.

    Raises:
        MissingArtefactError: some of it has not been made.
    """
    files.remove(copies.root)
    for source, target in _sources(paths, copies):
        for path in _all_files(files.require(source)):
            files.link(path, target / path.relative_to(source))


def _sources(paths: VariantPaths, copies: VariantPaths) -> Iterator[tuple[Path, Path]]:
    yield paths.checkpoint, copies.checkpoint
    yield paths.item_vectors, copies.item_vectors
    yield paths.item_index, copies.item_index
    yield paths.ranking, copies.ranking
    yield paths.dataset.sequences, copies.dataset.sequences
    yield paths.dataset.images_manifest, copies.dataset.images_manifest


def _all_files(path: Path) -> Iterator[Path]:
    """A file itself, or all within a folder but locks."""
    yield from [path] if path.is_file() else (p for p in path.rglob("*") if p.is_file() and p.suffix != ".lock")
