"""The gate between training and serving: a new checkpoint is promoted unless it is significantly worse.

The comparison takes the users whose history and next item have not changed since the previous promotion. A new
checkpoint is refused if the upper end of the 95 % interval of its gain in NDCG@10 (paired bootstrap) is below minus the
tolerance. See docs/serving.md.
"""

from dataclasses import asdict
from typing import Final

from pixrec_core import files
from pixrec_core.errors import ArtefactError
from pixrec_core.evaluation.comparison import METRIC, Answers, Comparison, compare
from pixrec_core.models import checkpoint
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.paths import VariantPaths
from pixrec_core.retrieval.encode import photo_features_path
from pixrec_core.retrieval.index import load_index
from pixrec_core.serving import promotion
from pixrec_core.serving.promotion import Promotion, copy_artefacts, read_promotion, verify_promotion
from pixrec_core.settings import DatasetSettings
from pixrec_core.stages import Stats

MIN_PAIRS: Final = 30  # a bootstrap of fewer users covers far less than 95 %


def promote_unless_worse(dataset: str, settings: DatasetSettings, paths: VariantPaths) -> Stats:
    """Promote the new checkpoint unless it is significantly worse; a refusal leaves the served one untouched.

    Args:
        dataset: its name.
        settings: of the dataset: the tolerance, and the limits of photos in queries.
        paths: of the variant.

    Returns:
        `promoted`, whether it was; `verdict`, the reason in a sentence; the score and the comparison.

    Raises:
        MissingArtefactError: the ranking or another artefact to promote is missing.
        ContractError: sequences contain held-out items.
        ArtefactError: the artefacts do not belong together, or those that serve are damaged.
    """
    new = Answers.read(paths)
    served = read_promotion(paths.promoted) if paths.promoted.manifest.exists() else None
    comparison = compare(Answers.read(verify_promotion(paths.promoted, served)), new) if served else None
    passed, verdict = _judge(served, comparison, len(new.targets.users), settings.promotion.tolerance)
    score = float(new.scores().mean())
    if passed:
        fields = {
            "number": served.number + 1 if served else 1,
            "dataset": dataset,
            "variant": paths.variant,
            "score": score,
            "comparison": comparison,
            "photo_size": settings.images.size,
            "max_pixels": settings.images.max_pixels,
        }
        _promote(paths, fields)
    else:
        verdict += (
            f". The promotion of {served.promoted_at if served else '-'} keeps serving; to promote this checkpoint "
            f"anyway: PIXREC_PROMOTION__TOLERANCE=1 pixrec run {dataset} --variant {paths.variant} "
            "--stage promoted"
        )
    return {"promoted": passed, "verdict": verdict, "ndcg@10": score, **(asdict(comparison) if comparison else {})}


def _judge(served: Promotion | None, comparison: Comparison | None, users: int, tolerance: float) -> tuple[bool, str]:
    """Whether the new checkpoint may serve, and the reason."""
    if served is None:
        return True, "promoted: the first one, with nothing to compare it with"
    pairs = comparison.pairs if comparison else 0
    if comparison is None or pairs < MIN_PAIRS:
        return True, (
            f"promoted without a comparison: only {pairs:,} of {users:,} test users have the same history and next "
            f"item as at {served.promoted_at}; a comparison needs {MIN_PAIRS}"
        )
    passed = comparison.high >= -tolerance
    return passed, (
        f"{'promoted' if passed else 'refused, as it is worse'}: {METRIC} {comparison.new:.4f}, before "
        f"{comparison.old:.4f} ({comparison.new - comparison.old:+.4f}, 95 % interval {comparison.low:+.4f} to "
        f"{comparison.high:+.4f}, {pairs:,} of {users:,} test users)"
    )


def _promote(paths: VariantPaths, fields: dict[str, object]) -> None:
    """Copy all that serving needs, check that the copies belong together, and make them serve."""
    copies = paths.promoted.copies(int(str(fields["number"])), paths.variant)
    copy_artefacts(paths, copies)
    item_index = load_index(copies)
    model, processor = checkpoint.load(copies.checkpoint)
    settings, _ = checkpoint.load_settings(copies.checkpoint)
    inputs = TowerInputs.load(copies, model.backbone, processor, settings.item_tokens)
    if inputs.items != item_index.items:
        raise ArtefactError(
            f"{paths.item_index} and {paths.dataset.sequences} have different items; materialise item_vectors again"
        )
    if source := photo_features_path(settings, paths, model, inputs):
        target = photo_features_path(settings, copies, model, inputs)
        if target and not target.exists():
            files.link(files.require(source), target)
    sha256 = checkpoint.weights_sha256(copies.checkpoint)
    promotion.write_promotion(paths.promoted, copies, fields | {"checkpoint_sha256": sha256})
