"""The gate between training and serving: a new checkpoint serves unless it is surely worse than the one before.

The rule: of the users who were asked the same both times, the upper end of the 95 % interval of NDCG@10 (new -
old, paired bootstrap) must not lie below minus the tolerance. See docs/serving.md.
"""

from dataclasses import asdict
from typing import Final

from pixrec_core import files
from pixrec_core.errors import ArtefactError
from pixrec_core.evaluation.comparison import METRIC, Answers, Comparison, compare
from pixrec_core.models import checkpoint
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.paths import VariantPaths
from pixrec_core.retrieval import encode, index
from pixrec_core.serving import promoted
from pixrec_core.serving.promoted import Promotion
from pixrec_core.settings import DatasetSettings
from pixrec_core.stages import Stats

FEWEST_PAIRS: Final = 30  # below, the bootstrap of so few users covers far less than it says


def promote(dataset: str, settings: DatasetSettings, paths: VariantPaths) -> Stats:
    """Let the new checkpoint serve unless it is surely worse; what served before is left untouched then.

    Args:
        dataset: its name.
        settings: its own; the tolerance, and how photos are read.
        paths: of the variant.

    Returns:
        `promoted`, whether it was; `verdict`, why, in a sentence; the score and the comparison.

    Raises:
        MissingArtefactError: there is no ranking, or something else to promote.
        ContractError: sequences of a split know more than they may.
        ArtefactError: something to promote does not fit the rest, or what serves is damaged.
    """
    new = Answers.read(paths)
    served = promoted.read(paths.promoted) if paths.promoted.manifest.exists() else None
    comparison = compare(Answers.read(promoted.verify(paths.promoted, served)), new) if served else None
    passed, reason = _judge(served, comparison, len(new.targets.users), settings.promotion.tolerance)
    score = float(new.scores().mean())
    if passed:
        fields = {"dataset": dataset, "variant": paths.variant, "score": score, "comparison": comparison}
        photos = {"photo_size": settings.images.size, "max_pixels": settings.images.max_pixels}
        _serve(paths, fields | photos | {"number": served.number + 1 if served else 1})
    else:
        reason += (
            f". What was promoted at {served.promoted_at if served else '-'} goes on serving; to promote this one "
            f"nevertheless: PIXREC_PROMOTION__TOLERANCE=1 pixrec run {dataset} --variant {paths.variant} "
            "--stage promoted"
        )
    measured = asdict(comparison) if comparison else {}
    return {"promoted": passed, "verdict": reason, "ndcg@10": score, **measured}


def _judge(served: Promotion | None, compared: Comparison | None, users: int, tolerance: float) -> tuple[bool, str]:
    """Whether the new checkpoint may serve, and why."""
    if served is None:
        return True, "promoted: the first one, with nothing to compare it with"
    pairs = compared.pairs if compared else 0
    if compared is None or pairs < FEWEST_PAIRS:
        return True, (
            f"promoted without a comparison: only {pairs:,} of {users:,} test users have the history and the next item "
            f"that they had at {served.promoted_at}; it takes {FEWEST_PAIRS}"
        )
    told = (
        f"{METRIC} {compared.new:.4f}, before {compared.old:.4f} ({compared.new - compared.old:+.4f}, 95 % interval "
        f"{compared.low:+.4f} to {compared.high:+.4f}, {pairs:,} of {users:,} test users)"
    )
    passed = compared.high >= -tolerance
    return passed, f"{'promoted' if passed else 'refused, as it is worse'}: {told}"


def _serve(paths: VariantPaths, fields: dict[str, object]) -> None:
    """Copy what serving needs, see that the copies belong together, and let them serve."""
    copies = paths.promoted.copies(int(str(fields["number"])), paths.variant)
    promoted.copy(paths, copies)
    item_index = index.load_index(copies)
    model, processor = checkpoint.load(copies.checkpoint)
    settings, _ = checkpoint.load_settings(copies.checkpoint)
    inputs = TowerInputs.load(copies, model.backbone, processor, settings.item_tokens)
    if inputs.items != item_index.items:
        raise ArtefactError(
            f"{paths.item_index} does not hold the items of {paths.dataset.sequences}; materialise item_vectors again"
        )
    if source := encode.photo_features_path(settings, paths, model, inputs):
        target = encode.photo_features_path(settings, copies, model, inputs)
        if target and not target.exists():
            files.link(files.require(source), target)
    promoted.write(paths.promoted, copies, fields | {"checkpoint_sha256": checkpoint.digest(copies.checkpoint)})
