"""Which variant of a dataset answers."""

from collections.abc import Sequence

from pixrec_core.errors import MissingArtefactError, SettingsError
from pixrec_core.paths import DatasetPaths, PromotedPaths
from pixrec_core.serving import promoted


def choose(dataset: str, paths: DatasetPaths, variants: Sequence[str], wanted: str | None = None) -> PromotedPaths:
    """The promoted folder of the wanted variant; without one, of that with the best NDCG@10 when it was promoted.

    Of equals, the first in the settings answers.

    Raises:
        SettingsError: the settings do not know the wanted variant.
        MissingArtefactError: it has not been promoted, or none has.
        ArtefactError: the manifest of a promoted one is damaged.
    """
    if wanted is not None and wanted not in variants:
        raise SettingsError(f"unknown variant {wanted!r}; known: {', '.join(variants)}")
    folders = [paths.variant(variant).promoted for variant in ([wanted] if wanted else variants)]
    there = [folder for folder in folders if folder.manifest.exists()]
    if not there:
        told = f"variant {wanted}" if wanted else "no variant"
        verb = "has not been promoted" if wanted else "has been promoted"
        raise MissingArtefactError(f"{told} of {dataset} {verb} yet; run `pixrec run {dataset}` first")
    return max(there, key=lambda folder: promoted.read(folder).score)
