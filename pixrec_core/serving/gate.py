"""The gate between training and serving: the best method is promoted unless it is significantly worse than before.

NDCG@10 on selection users chooses the method; no test target has a part in that. Where they are too few, the stacking
users choose among the single methods: the blend has learned from them. The comparison takes the test users
whose history and next item have not changed since the previous promotion. The new method is refused if the upper end of
the 95 % interval of its gain in NDCG@10 (paired bootstrap) is below minus the tolerance. See docs/serving.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from pixrec_core import files
from pixrec_core.data.sequences import catalogue_digest, read_items
from pixrec_core.errors import ArtefactError, MissingArtefactError
from pixrec_core.evaluation.comparison import (
    METRIC,
    MIN_SELECTION_USERS,
    Comparison,
    RankedTestSplit,
    compare,
    selection_scores,
)
from pixrec_core.models import checkpoint
from pixrec_core.paths import BLEND, BaselinePaths, DatasetPaths, MethodPaths, VariantPaths
from pixrec_core.recommenders.base import model_catalogue
from pixrec_core.recommenders.blend import Blend
from pixrec_core.retrieval.encode import photo_features_paths
from pixrec_core.retrieval.index import load_index
from pixrec_core.schemas import ITEM
from pixrec_core.serving import promotion
from pixrec_core.serving.promotion import (
    Promotion,
    copy_artefacts,
    list_promotions,
    next_number,
    read_promotion,
    verify_promotion,
)
from pixrec_core.settings import DatasetSettings
from pixrec_core.stages import Stats

MIN_PAIRS: Final = 30  # a bootstrap of fewer users covers far less than 95 %


def promote_unless_worse(
    dataset: str, settings: DatasetSettings, paths: DatasetPaths, variants: Sequence[str]
) -> Stats:
    """Promote all methods unless the best on validation is significantly worse than the method that serves.

    A refusal leaves what serves untouched.

    Returns:
        `promoted`, whether it was; `serves`, the method that serves now; `measured`, the number of the promotion
        whose figures count; `verdict`, the reason in a sentence;
        `warnings`, a sentence on each method that is ahead of what serves; scores and the comparison.

    Raises:
        MissingArtefactError: a ranking or another artefact to promote is missing.
        ContractError: sequences contain held-out items.
        ArtefactError: the artefacts do not belong together, or those that serve are damaged.
    """
    methods = paths.ranked_methods(variants)
    if not methods:
        raise MissingArtefactError(f"no method of {dataset} has a ranking; run `pixrec run {dataset} --up-to promoted`")
    measurable = {name: each.validation_ranking for name, each in methods.items() if each.validation_ranking.exists()}
    measured, users = selection_scores(paths, measurable)
    preferred = [name for name in dict.fromkeys((BLEND, *variants, *methods)) if name in methods]
    order = sort_methods(preferred, measured, users)
    chosen = order[0]
    unmeasured = BLEND in methods and BLEND not in measured and users >= MIN_SELECTION_USERS

    new = RankedTestSplit.read(paths, {name: each.ranking for name, each in methods.items()})
    served = read_promotion(paths.promoted) if paths.promoted.manifest.exists() else None
    old = _served_test_split(paths, served) if served else None
    comparison = compare(old, served.method, new, [chosen]).get(chosen) if served and old else None
    passed, verdict = _judge(chosen, served, comparison, len(new.targets.users), settings.promotion.tolerance)
    score = float(new.scores(chosen).mean())
    if passed:
        fields = {
            "dataset": dataset,
            "method": chosen,
            "methods": {name: measured.get(name) for name in methods},
            "selection_users": users,
            "towers": [name for name in order if name in variants],
            "score": score,
            "comparison": comparison,
            "photo_size": settings.images.size,
            "max_pixels": settings.images.max_pixels,
        }
        _promote(paths, methods, next_number(paths.promoted, served), fields)
    else:
        verdict += (
            f". The promotion of {served.promoted_at if served else '-'} keeps serving; to promote anyway: "
            f"PIXREC_PROMOTION__TOLERANCE=1 pixrec run {dataset} --stage promoted"
        )
    if unmeasured:
        verdict += f"; too few selection users measure the blend, so {users:,} validation users chose a single method"
    serves, reference = (chosen, new) if passed or not (served and old) else (served.method, old)
    now = read_promotion(paths.promoted)
    return {
        "promoted": passed,
        "serves": serves,
        "measured": now.measured,
        "trained_at": now.trained_at,
        "verdict": verdict,
        "warnings": _warnings(serves, reference, new, order, measured),
        "ndcg@10": score,
        "validation_ndcg@10": measured,
        "selection_users": users,
        **(asdict(comparison) if comparison else {}),
    }


def sort_methods(preferred: Sequence[str], scores: Mapping[str, float], users: int) -> list[str]:
    """Return all methods, the best score first; equal ones keep their order, and those without a score come last.

    Args:
        preferred: all methods.
        scores: NDCG@10 of each method that was measured.
        users: on whom; with fewer than `MIN_SELECTION_USERS` scores do not count.
    """
    if users < MIN_SELECTION_USERS:
        return sorted(preferred, key=lambda name: name == BLEND)
    return sorted(preferred, key=lambda name: -scores.get(name, -1.0))


def _served_test_split(paths: DatasetPaths, served: Promotion) -> RankedTestSplit:
    """Return the rankings of the copy that was measured: a refit or a refresh makes another one serve.

    Raises:
        ArtefactError: one of the two copies is damaged, or the measured one is missing. One without a manifest of its
            own cannot be checked.
    """
    copies = verify_promotion(paths.promoted, served)
    if served.measured != served.number:
        measured = list_promotions(paths.promoted).get(served.measured)
        copies = verify_promotion(paths.promoted, measured) if measured else paths.promoted.copies(served.measured)
    if (method := copies.ranked_methods(served.towers).get(served.method)) is None:
        raise ArtefactError(
            f"{copies.root}, which was measured, has no ranking of {served.method} to compare with; restore it, or "
            f"remove the folder {paths.promoted.root} and promote again"
        )
    return RankedTestSplit.read(copies, {served.method: method.ranking})


def _judge(
    chosen: str, served: Promotion | None, comparison: Comparison | None, users: int, tolerance: float
) -> tuple[bool, str]:
    """Whether the new method may serve, and the reason."""
    if served is None:
        return True, f"promoted: {chosen} serves; the first promotion, with nothing to compare it with"
    pairs = comparison.pairs if comparison else 0
    if comparison is None or pairs < MIN_PAIRS:
        return True, (
            f"promoted without a comparison: {chosen} serves; only {pairs:,} of {users:,} test users have the same "
            f"history and next item as at {served.promoted_at}; a comparison needs {MIN_PAIRS}"
        )
    passed = comparison.high >= -tolerance
    outcome = f"promoted: {chosen} serves" if passed else f"refused, as {chosen} is worse"
    return passed, (
        f"{outcome}: {METRIC} {comparison.new:.4f}, before "
        f"{comparison.old:.4f} by {served.method} ({_difference(comparison)}, {pairs:,} of {users:,} test users)"
    )


def _difference(comparison: Comparison) -> str:
    gain, low, high = (f"{x:+z.4f}" for x in (comparison.new - comparison.old, comparison.low, comparison.high))
    return f"{gain}, 95 % interval {low} to {high}"


def _warnings(
    serves: str, reference: RankedTestSplit, new: RankedTestSplit, methods: Sequence[str], measured: Mapping[str, float]
) -> list[str]:
    """A sentence on each method that is significantly ahead of the method that serves, the most first."""
    others = [name for name in methods if name != serves or reference is not new]
    ahead = {name: each for name, each in compare(reference, serves, new, others).items() if each.low > 0}
    return [
        f"warning: {name} is ahead of the served {serves} by {METRIC} {_difference(each)}, on {each.pairs:,} test users"
        + (
            f"; on validation they have {measured[name]:.4f} and {measured[serves]:.4f}"
            if reference is new and name in measured and serves in measured
            else ""
        )
        for name, each in sorted(ahead.items(), key=lambda item: item[1].old - item[1].new)
        if each.pairs >= MIN_PAIRS
    ]


def _promote(paths: DatasetPaths, methods: Mapping[str, MethodPaths], number: int, fields: dict[str, object]) -> None:
    """Copy all that serving needs, check that artefacts and copies belong together, and make them serve."""
    copies = paths.promoted.copies(number)
    copy_artefacts(paths, copies, methods.values())
    _check_methods(paths, methods)
    towers = [each for each in methods.values() if isinstance(each, VariantPaths)]
    sha256 = {tower.variant: _complete_tower(tower, copies.variant(tower.variant)) for tower in towers}
    promotion.write_promotion(paths.promoted, copies, fields | {"number": number, "checkpoint_sha256": sha256})


def _check_methods(paths: DatasetPaths, methods: Mapping[str, MethodPaths]) -> None:
    """Check that baselines and the blend rank the present catalogue, and that the blend's methods are promoted too."""
    digest = catalogue_digest(read_items(paths)[ITEM])
    for name, method in methods.items():
        if isinstance(method, BaselinePaths):
            folder, stage, catalogue = method.model, "baselines", model_catalogue(method.model)
        elif name == BLEND:
            folder, stage, blend = method.root, "blend", Blend.load(method.root)
            catalogue = blend.catalogue
            if missing := sorted(set(blend.methods) - set(methods)):
                raise ArtefactError(
                    f"the blend in {folder} reads {', '.join(missing)}, which has no ranking; "
                    "run the stage `blend` again"
                )
        else:
            continue
        if catalogue != digest:
            raise ArtefactError(f"{folder} is of other items than the catalogue; run the stage `{stage}` again")


def _complete_tower(paths: VariantPaths, copies: VariantPaths) -> str:
    """Check that a tower's copies belong together, link its photo features, and return the checksum of its weights."""
    item_index = load_index(copies)
    if read_items(copies.dataset)[ITEM].to_list() != item_index.items:
        raise ArtefactError(
            f"{paths.item_index} and {paths.dataset.sequences} have different items; "
            "run the stage `item_vectors` with --force"
        )
    if found := photo_features_paths(copies, paths):
        target, source = found
        if not target.exists():
            files.link(files.require(source), target)
    return checkpoint.weights_sha256(copies.checkpoint)
