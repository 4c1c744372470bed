"""A promoted folder: numbered copies of all that serving needs, and the manifest that names the copy that serves.

The manifest is written last and replaced atomically, so a promotion that is killed leaves the served copy as it was.
Each copy has its own manifest too, so that an earlier promotion can serve again.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pixrec_core import files
from pixrec_core.errors import ArtefactError, MissingArtefactError, QueryError
from pixrec_core.evaluation.comparison import Comparison
from pixrec_core.paths import BLEND, DatasetPaths, MethodPaths, PromotedPaths

log = logging.getLogger(__name__)

#: Files that every method reads.
SHARED: Final = ("sequences.duckdb", "images.parquet")


class Promotion(BaseModel):
    """The manifest of a promoted folder.

    Attributes:
        number: of the promotion, from 1; names its folder.
        dataset: of the catalogue and the users.
        method: that serves.
        methods: all that can be queried, each with its NDCG@10 on selection users; None where it was not measured.
        selection_users: number of validation users who chose the method.
        towers: methods that are dual towers, the best on selection users first.
        promoted_at: UTC.
        measured: number of the promotion that was measured; a smaller one if this one was refreshed since.
        trained_at: UTC; when that promotion was made.
        refitted_at: UTC, by method: when it was fitted on all interactions, those of validation and test included. A
            method that is not listed has the weights that were measured. Figures are always those of the measured
            promotion.
        checkpoint_sha256: checksum of the weights of each tower.
        score: NDCG@10 of `method` over all test users, seen items allowed.
        comparison: with the previous promotion; None where there was nothing to compare.
        photo_size: longest edge of a stored photo, pixels.
        max_pixels: largest width x height of a photo in a query.
        files: path within the folder -> SHA-256.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    dataset: str
    method: str
    methods: dict[str, float | None]
    selection_users: int
    towers: tuple[str, ...]
    promoted_at: str
    measured: int
    trained_at: str
    refitted_at: dict[str, str] = {}
    checkpoint_sha256: dict[str, str]
    score: float
    comparison: Comparison | None
    photo_size: int
    max_pixels: int
    files: dict[str, str]

    @model_validator(mode="after")
    def _require_complete(self) -> "Promotion":
        """Every method has files of its own, and every file is within the folder."""
        if self.method not in self.methods or not self.methods.keys() >= set(self.towers):
            raise ValueError("`methods` lacks the method that serves or a tower")
        if outside := [name for name in self.files if PurePath(name).is_absolute() or ".." in PurePath(name).parts]:
            raise ValueError(f"`files` names {outside[0]!r}, which is outside the folder")
        for part in (*SHARED, *(parts_of_method(self, method)[0] for method in self.methods)):
            if not any(name.startswith(part) for name in self.files):
                raise ValueError(f"`files` lists nothing of {part}")
        return self

    def require_method(self, method: str) -> str:
        """Return `method`.

        Raises:
            QueryError: it has not been promoted.
        """
        if method not in self.methods:
            raise QueryError(
                f"unknown method {method!r}; promoted of {self.dataset}: {', '.join(sorted(self.methods))}"
            )
        return method


def read_promotion(paths: PromotedPaths) -> Promotion:
    """The manifest of the copy that serves.

    Raises:
        MissingArtefactError: nothing has been promoted.
        ArtefactError: the manifest is damaged.
    """
    if not paths.manifest.exists():
        dataset = paths.root.absolute().parent.name
        raise MissingArtefactError(
            f"{paths.manifest} does not exist: nothing of {dataset} has been promoted; "
            f"run `pixrec run {dataset} --up-to promoted`"
        )
    try:
        return Promotion.model_validate_json(paths.manifest.read_bytes())
    except OSError as error:
        raise ArtefactError(f"{paths.manifest} cannot be read ({error.strerror}); {_remedy(paths)}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "as a whole"
        raise ArtefactError(f"{paths.manifest} is damaged ({field}: {first['msg']}); {_remedy(paths)}") from None


def list_promotions(paths: PromotedPaths) -> dict[int, Promotion]:
    """All promotions that can serve, by number: with a manifest, and with the copy that the next gate compares with."""
    found = {}
    for manifest in paths.root.glob(f"*/{paths.manifest.name}"):
        try:
            promotion = Promotion.model_validate_json(manifest.read_bytes())
        except (OSError, ValidationError) as error:
            log.warning("%s cannot be read, so this promotion cannot serve again: %s", manifest, error)
            continue
        if paths.copies(promotion.measured).root.exists():
            found[promotion.number] = promotion
    return dict(sorted(found.items()))


def next_number(paths: PromotedPaths, served: Promotion | None) -> int:
    """The number of the next promotion, which no kept one has."""
    return max((served.number if served else 0, *list_promotions(paths))) + 1


def restore_promotion(paths: PromotedPaths, number: int) -> Promotion:
    """Let a kept promotion serve again, after a check of all its files. Running servers take it over.

    Raises:
        MissingArtefactError: nothing has been promoted.
        QueryError: there is no such promotion; the message lists those that are kept.
        ArtefactError: a file of it is missing, has changed or was added.
    """
    served, kept = read_promotion(paths), list_promotions(paths)
    if number not in kept:
        raise QueryError(
            f"promotion {number} of {served.dataset} is not kept in {paths.root}; "
            f"kept: {', '.join(map(str, kept)) or 'none'}"
        )
    verify_promotion(paths, kept[number])
    files.write_json(paths.manifest, kept[number].model_dump(mode="json"))
    return kept[number]


def verify_promotion(paths: PromotedPaths, promotion: Promotion, parts: Iterable[str] = ("",)) -> DatasetPaths:
    """Paths of the copy that serves, after a check of its files: those of the promotion, and no others.

    `parts` are starts of the names of the files to check; all by default.

    Raises:
        ArtefactError: a file is missing, has changed or was added; the message names it.
    """
    copies = paths.copies(promotion.number)
    if not copies.root.exists():
        if read_promotion(paths).number == promotion.number:
            raise ArtefactError(f"{copies.root}, which serves, does not exist; {_remedy(paths)}")
        raise ArtefactError(
            f"{copies.root} does not exist: later promotions have replaced it; load the recommender again"
        )
    present = {str(path.relative_to(copies.root)) for path in _files_in(copies.root)} - {paths.manifest.name}
    if extra := sorted(present - promotion.files.keys()):
        raise ArtefactError(f"{copies.root / extra[0]} is not part of the promotion; remove it, or {_remedy(paths)}")
    for name, sha256 in promotion.files.items():
        if not name.startswith(tuple(parts)):
            continue
        path = copies.root / name
        try:
            found = files.sha256_file(path)
        except OSError as error:
            raise ArtefactError(f"{path} is missing ({error.strerror}); {_remedy(paths)}") from error
        if found != sha256:
            raise ArtefactError(f"{path} is damaged: its checksum is not that of the promotion; {_remedy(paths)}")
    return copies


def parts_of_method(promotion: Promotion, method: str) -> list[str]:
    """Starts of the names of a method's files, for `verify_promotion`."""
    if method == BLEND:
        return ["blend/"]
    return [f"variants/{method}/", "cache/"] if method in promotion.towers else [f"baselines/{method}/"]


def _remedy(paths: PromotedPaths) -> str:
    return f"remove the folder {paths.root} and promote again (`pixrec run {paths.root.parent.name} --stage promoted`)"


def write_promotion(paths: PromotedPaths, copies: DatasetPaths, fields: Mapping[str, object]) -> None:
    """Make a complete copy the one that serves: write its manifest, then delete copies that are not kept.

    Kept are this promotion; the one that served until now, for processes that are reading it; the newest one of an
    earlier training; and the measured copy of each, for the next comparison.

    `copies` is the copy, in the folder of the promotion's number; `fields` are those of `Promotion` without
    `promoted_at` and `files`.
    """
    before = read_promotion(paths) if paths.manifest.exists() else None
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    checksums = {str(path.relative_to(copies.root)): files.sha256_file(path) for path in sorted(_files_in(copies.root))}
    measured = {"measured": fields["number"], "trained_at": now}  # a refresh gives those of the measured one
    promotion = Promotion.model_validate({**measured, **fields, "promoted_at": now, "files": checksums})
    for manifest in (copies.root / paths.manifest.name, paths.manifest):
        files.write_json(manifest, promotion.model_dump(mode="json"))
    earlier = [each for each in list_promotions(paths).values() if each.measured != promotion.measured]
    kept = [promotion, *([before] if before else []), *earlier[-1:]]
    numbers = {str(number) for each in kept for number in (each.number, each.measured)}
    for folder in paths.root.iterdir():
        if folder.is_dir() and folder.name not in numbers:
            files.remove(folder)


def copy_artefacts(paths: DatasetPaths, copies: DatasetPaths, methods: Iterable[MethodPaths]) -> None:
    """Hard-link all artefacts that serving needs, so that no later run can change them.

    Raises:
        MissingArtefactError: an artefact has not been built.
    """
    files.remove(copies.root)
    for source in (
        paths.sequences,
        paths.images_manifest,
        *(each for method in methods for each in method.for_serving),
    ):
        for path in _files_in(files.require(source)):
            files.link(path, copies.root / path.relative_to(paths.root))


def _files_in(path: Path) -> Iterator[Path]:
    """The file itself, or all files in a folder except locks and DuckDB's temporary files."""
    inside = [path] if path.is_file() else path.rglob("*")
    yield from (p for p in inside if p.is_file() and p.suffix != ".lock" and p.parent.suffix != ".tmp")
