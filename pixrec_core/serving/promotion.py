"""A promoted folder: numbered copies of all that serving needs, and the manifest that names the copy that serves.

The manifest is written last and replaced atomically, so a promotion that is killed leaves the served copy as it was.
The previous copy stays until the next promotion, for processes that are still reading it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pixrec_core import files
from pixrec_core.errors import ArtefactError, MissingArtefactError, SettingsError
from pixrec_core.evaluation.comparison import Comparison
from pixrec_core.paths import DatasetPaths, PromotedPaths, VariantPaths


class Promotion(BaseModel):
    """The manifest of a promoted folder.

    Attributes:
        number: of the promotion, from 1; names its folder.
        dataset: of the catalogue and the users.
        variant: determines which of text and photo the towers read.
        promoted_at: UTC.
        checkpoint_sha256: checksum of the weights.
        score: NDCG@10 over all test users, seen items allowed.
        comparison: with the previous promotion; None where there was nothing to compare.
        photo_size: longest edge of a stored photo, pixels.
        max_pixels: largest width x height of a photo in a query.
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


def read_promotion(paths: PromotedPaths) -> Promotion:
    """The manifest of the copy that serves.

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
        field = ".".join(map(str, first["loc"])) or "as a whole"
        raise ArtefactError(f"{paths.manifest} is damaged ({field}: {first['msg']}); {_remedy(paths)}") from None


def choose_promotion(
    dataset: str, paths: DatasetPaths, methods: Sequence[str], method: str | None = None
) -> PromotedPaths:
    """The promoted folder of a method; by default of the one with the best NDCG@10 at promotion.

    Of equal scores, the first of `methods` wins.

    Raises:
        SettingsError: the method is not among `methods`.
        MissingArtefactError: it has not been promoted, or no method has.
        ArtefactError: a manifest is damaged.
    """
    if method is not None and method not in methods:
        raise SettingsError(f"unknown variant {method!r}; known: {', '.join(methods)}")
    folders = [paths.variant(name).promoted for name in ([method] if method else methods)]
    promoted = [folder for folder in folders if folder.manifest.exists()]
    if not promoted:
        subject = f"variant {method} of {dataset} has not" if method else f"no variant of {dataset} has"
        raise MissingArtefactError(f"{subject} been promoted yet; run `pixrec run {dataset}` first")
    return max(promoted, key=lambda folder: read_promotion(folder).score)


def verify_promotion(paths: PromotedPaths, promotion: Promotion) -> VariantPaths:
    """Paths of the copy that serves, after a check of every file's checksum.

    Raises:
        ArtefactError: a file is missing or has changed; the message names it.
    """
    copies = paths.copies(promotion.number, promotion.variant)
    for name, sha256 in promotion.files.items():
        path = copies.root / name
        if not path.is_file():
            raise ArtefactError(f"{path} is missing; {_remedy(paths)}")
        if files.sha256_file(path) != sha256:
            raise ArtefactError(f"{path} is damaged: its checksum is not that of the promotion; {_remedy(paths)}")
    return copies


def _remedy(paths: PromotedPaths) -> str:
    return f"remove the folder {paths.root} and promote again (`pixrec run NAME --stage promoted`)"


def write_promotion(paths: PromotedPaths, copies: VariantPaths, fields: Mapping[str, object]) -> None:
    """Make a complete copy the one that serves: write the manifest, then delete all copies but it and the previous one.

    Args:
        paths: of the promoted folder.
        copies: the copy, in the folder of the promotion's number.
        fields: of `Promotion`, without `promoted_at` and `files`.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    checksums = {str(path.relative_to(copies.root)): files.sha256_file(path) for path in sorted(_files_in(copies.root))}
    promotion = Promotion.model_validate({**fields, "promoted_at": now, "files": checksums})
    files.write_json(paths.manifest, promotion.model_dump(mode="json"))
    for folder in paths.root.iterdir():
        if folder.is_dir() and folder.name not in {str(promotion.number), str(promotion.number - 1)}:
            files.remove(folder)


def copy_artefacts(paths: VariantPaths, copies: VariantPaths) -> None:
    """Hard-link all artefacts that serving needs, so that no later run can change them.

    Raises:
        MissingArtefactError: an artefact has not been built.
    """
    files.remove(copies.root)
    for source, target in (
        (paths.checkpoint, copies.checkpoint),
        (paths.item_vectors, copies.item_vectors),
        (paths.item_index, copies.item_index),
        (paths.ranking, copies.ranking),
        (paths.dataset.sequences, copies.dataset.sequences),
        (paths.dataset.images_manifest, copies.dataset.images_manifest),
    ):
        for path in _files_in(files.require(source)):
            files.link(path, target / path.relative_to(source))


def _files_in(path: Path) -> Iterator[Path]:
    """The file itself, or all files in a folder except locks."""
    yield from [path] if path.is_file() else (p for p in path.rglob("*") if p.is_file() and p.suffix != ".lock")
