"""The blend: a learned order of the candidates of all methods.

Candidates are the union of each method's best items. A linear model over each method's scores and ranks orders them.
With enough users, a LightGBM ensemble of trees over `_blend_features` (Ke et al. 2017, "LightGBM: A Highly Efficient
Gradient Boosting Decision Tree") corrects its scores; it is trained with LambdaRank (Burges 2010, "From RankNet to
LambdaRank to LambdaMART", MSR-TR-2010-82) to put each validation target first.

It learns from stacking users: validation users on whom no method chose a setting. A part of them, the held-out users,
stops the training and decides which methods are dropped. Another part, the selection users, only measures the blend,
before the last fit on all stacking users. The blend never reads a test target.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pyarrow import parquet
from safetensors import SafetensorError

from pixrec_core import files
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.errors import ArtefactError, SettingsError
from pixrec_core.evaluation import metrics
from pixrec_core.evaluation.validation import selection_users, stacking_users
from pixrec_core.paths import BLEND, DatasetPaths, MethodPaths
from pixrec_core.ranking_table import to_ranking, write_ranking
from pixrec_core.recommenders._blend_features import (
    Candidates,
    Floats,
    Ints,
    ItemTable,
    MethodLists,
    Queries,
    concatenate,
    feature_names,
    find_candidates,
    linear_feature_names,
)
from pixrec_core.schemas import ITEM, ITEMS, RANK, RANKING_SCHEMA, SCORE, TEST, TIMESTAMPS, USER, VALIDATION
from pixrec_core.settings import BlendSettings, RetrievalSettings
from pixrec_core.stages import Stats

if TYPE_CHECKING:
    import lightgbm  # imports scikit-learn, a second that a blend without trees does not need

log = logging.getLogger(__name__)

MODEL: Final = "model.txt"
ITEM_TABLE: Final = "items.safetensors"
DESCRIPTION: Final = "blend.json"

MIN_USERS: Final = 50  # stacking users with their target among the candidates; a blend of fewer is noise
PARTS: Final = 4  # of the stacking users that are no selection users; one is held out at a time
MIN_TREE_USERS: Final = 2_000  # such users; fewer gained nothing from trees (fashion purchases) or lost (film ratings)
LINEAR_PENALTY: Final = 100.0  # of the squared weights of standardised features, for all users together
SEEN_PENALTY_SHARE: Final = 0.01  # of `LINEAR_PENALTY`, for the feature `seen`
NEGATIVE_SHARE: Final = 0.3  # of the other candidates of a user, drawn for training
NEW_VISIT_WEIGHT: Final = 2.0  # of a user whose target is later than the history; see `_user_weights`
TOLERANCE: Final = 0.0005  # NDCG@10 on held-out users that dropping a method may cost
ROUNDS: Final = 500  # trees at most
PATIENCE: Final = 30  # trees without a better NDCG@10 on held-out users
USERS_PER_BATCH: Final = 512  # about 100 MB of features
SEED: Final = 0

#: The best of few settings of learning rate, leaves, `lambda_l2` and truncation on validation users of one
#: data set, fashion purchases. One thread, so that sums have one order.
PARAMETERS: Final[Mapping[str, Any]] = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [10],
    "lambdarank_truncation_level": 30,
    "learning_rate": 0.1,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "lambda_l2": 5.0,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "max_bin": 63,
    "seed": SEED,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbose": -1,
}


@dataclass(frozen=True)
class TrainingUsers:
    """Candidates of stacking users, and the item that each user chose next.

    Attributes:
        candidates: of B users.
        targets: (B,) items.
        weights: (B,) of the users in the objective.
    """

    candidates: Candidates
    targets: Ints
    weights: Floats

    @property
    def is_target(self) -> NDArray[np.bool_]:
        """(m,) whether a candidate is its user's target."""
        found: NDArray[np.bool_] = self.candidates.items == self.targets[self.candidates.rows]
        return found


@dataclass(frozen=True)
class Blend:
    """A trained blend. It needs the lists of its methods to rank.

    Attributes:
        methods: whose lists it reads, in the order of its features.
        candidates: unseen items of each list that it reads.
        items: facts about the catalogue.
        weights: of the linear part; see `fit_weights`.
        booster: the trees; None without.
    """

    methods: tuple[str, ...]
    candidates: int
    items: ItemTable
    weights: Floats
    booster: "lightgbm.Booster | None"

    def rank(
        self,
        lists: Mapping[str, MethodLists],
        queries: Queries,
        lengths: Ints,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best items of each history, best first. Seen items are included.

        After the candidates follow all other allowed items in the popularity order; so an empty history, about which no
        method knows anything, gets the popularity order.

        Args:
            lists: of each of `methods`, for the B histories; each should have `candidates` unseen items.
            queries: B histories.
            lengths: (B,) items wanted; at most as many as are allowed.
            allowed: (n,) whether an item may be in the lists, which have no other items; None allows all.

        Returns:
            Items (B, k) and their scores (B, k), where k is the highest of `lengths`; -1 after a list's length.
        """
        n, k = len(self.items.counts), min(int(lengths.max(initial=0)), len(self.items.counts))
        found = find_candidates(
            {method: lists[method] for method in self.methods}, queries, self.items, self.candidates
        )
        known = np.diff(queries.histories.offsets)[found.rows] > 0
        found = found.take(known)
        scores = self.score(found)
        # Candidates, then every other item: sorted by user, whether it is a candidate, score and popularity.
        order = np.lexsort((self.items.popularity_ranks[found.items], -scores, found.rows))
        rows, columns = found.rows[order], _position_in_run(found.rows[order])
        items = np.full((len(queries), k), -1, np.int64)
        values = np.zeros((len(queries), k), np.float32)
        fits = columns < k
        items[rows[fits], columns[fits]] = found.items[order][fits]
        values[rows[fits], columns[fits]] = scores[order][fits]
        counts = np.bincount(found.rows, minlength=len(queries))
        short = np.flatnonzero(counts < k)
        by_popularity = np.argsort(self.items.popularity_ranks) if len(short) else np.zeros(0, np.int64)
        if allowed is not None:
            by_popularity = by_popularity[allowed[by_popularity]]
        for user in short:
            candidate = np.zeros(n, np.bool_)
            candidate[items[user, : counts[user]]] = True
            others = by_popularity[~candidate[by_popularity]][: k - counts[user]]
            items[user, counts[user] :] = others
            lowest = values[user, counts[user] - 1] if counts[user] else 0
            values[user, counts[user] :] = lowest - 1
        items[np.arange(k) >= lengths[:, None]] = -1
        return items, values

    def score(self, candidates: Candidates) -> Floats:
        """Return (m,) scores; higher is better. They compare candidates of one user only."""
        return _scores(candidates, self.weights, self.booster)

    def save(self, folder: Path) -> None:
        """Write LightGBM's text model, the item table, and JSON of methods, weights and features."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.booster is not None:
            (folder / MODEL).write_text(self.booster.model_to_string(), encoding="utf-8")
        self.items.save(folder / ITEM_TABLE)
        description = {
            "methods": self.methods,
            "candidates": self.candidates,
            "weights": dict(zip(linear_feature_names(self.methods), self.weights.tolist(), strict=True)),
            "trees": self.booster is not None,
            "sha256": files.sha256_file(folder / MODEL) if self.booster is not None else None,
            "features": feature_names(self.methods),
        }
        files.write_json(folder / DESCRIPTION, description)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a blend that `save` wrote. It gives the same scores.

        Raises:
            MissingArtefactError: the folder holds no blend.
            ArtefactError: a file of it is damaged, or it was trained on other features than this version computes.
        """
        files.require(folder / DESCRIPTION)
        try:
            description = files.read_json(folder / DESCRIPTION)
            methods = tuple(description["methods"])
            weights = np.array([description["weights"][name] for name in linear_feature_names(methods)], np.float32)
            booster = _booster(folder / MODEL, description.get("sha256")) if description["trees"] else None
            items = ItemTable.load(folder / ITEM_TABLE)
            blend = cls(methods, description["candidates"], items, weights, booster)
        except (ValueError, KeyError, TypeError, ArtefactError, SafetensorError) as error:
            message = f"the blend in {folder} is damaged ({error}); run the stage `blend` with --force"
            raise ArtefactError(message) from error
        names = feature_names(methods)
        if description["features"] != names or (booster is not None and booster.feature_name() != names):
            raise ArtefactError(f"the blend in {folder} has other features; run the stage `blend` with --force")
        return blend


def _booster(path: Path, sha256: str | None) -> "lightgbm.Booster":
    import lightgbm

    text = files.require(path).read_text(encoding="utf-8")
    # LightGBM ends the process on some damaged models. Earlier versions recorded no checksum.
    if not text.startswith("tree") or files.sha256_file(path) != (sha256 or files.sha256_file(path)):
        raise ValueError(f"{MODEL} is damaged or no LightGBM model")
    try:
        return lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as error:
        raise ValueError(str(error)) from error


def _position_in_run(sorted_rows: Ints) -> Ints:
    """Return the position of each value within its run of equal values."""
    return np.arange(len(sorted_rows)) - np.searchsorted(sorted_rows, sorted_rows)


@dataclass(frozen=True)
class Trained:
    """Result of `train_blend`.

    Attributes:
        methods: that feed it.
        weights: of the linear part; see `fit_weights`.
        booster: the trees; None where they are not better, or where too few users would train them.
        measured_weights: `weights` without the selection users and, if there are trees, without the held-out users.
        measured_booster: the same of `booster`.
        ndcg: NDCG@10 on held-out users, who also chose the methods and the number of trees.
        linear_ndcg: the same of the linear part alone.
        importance: of each feature, highest first: its share (0 to 1) of the gain of the trees; without trees, of the
            sum of |weight| times standard deviation.
        dropped: NDCG@10 on held-out users that dropping each dropped method gained.
        kept: NDCG@10 on held-out users that dropping each kept method would lose.
    """

    methods: tuple[str, ...]
    weights: Floats
    booster: "lightgbm.Booster | None"
    measured_weights: Floats
    measured_booster: "lightgbm.Booster | None"
    ndcg: float
    linear_ndcg: float
    importance: Mapping[str, float]
    dropped: Mapping[str, float]
    kept: Mapping[str, float]


def train_blend(users: TrainingUsers, selection: NDArray[np.bool_]) -> Trained | None:
    """Train on stacking users: drop methods by backward elimination, then add trees to the linear part.

    Every user is held out once from the linear part; of many users, only one part is held out. Methods are tried in the
    order of their share of the weights, the lowest first. A method is dropped unless the linear part without it, and
    without its candidates, has an NDCG@10 on held-out users that is more than `TOLERANCE` below the highest so far. At
    the end the blend is fitted on all users with the number of trees that was best.

    Args:
        users: B stacking users.
        selection: (B,) whether a user is a selection user.

    Returns:
        The blend, or None where the target of too few users is a candidate.
    """
    n_users = len(users.targets)
    hit = np.bincount(users.candidates.rows[users.is_target], minlength=n_users) > 0
    random = np.random.default_rng(SEED)
    part = np.full(n_users, -1)
    part[~selection] = random.permutation(n_users - selection.sum()) % PARTS
    with_trees = hit.sum() >= MIN_TREE_USERS
    if hit.sum() < MIN_USERS or any(not hit[part == each].any() for each in range(PARTS)):
        return None
    drawn = users.is_target | (random.random(len(users.candidates)) < (NEGATIVE_SHARE if with_trees else 1))
    unselected = drawn & ~selection[users.candidates.rows]

    def linear_fit(methods: tuple[str, ...]) -> _LinearFit:
        return _fit_linear(users, methods, part, 1 if with_trees else PARTS, unselected)

    best = linear_fit(users.candidates.methods)
    highest, dropped, kept = best.ndcg, {}, {}
    for method in _by_importance(best):
        remaining = tuple(each for each in best.methods if each != method)
        if not remaining:
            break
        without = linear_fit(remaining)
        difference = without.ndcg - best.ndcg
        log.info("blend without %s: NDCG@10 %.4f on held-out users, %+.4f", method, without.ndcg, difference)
        if without.ndcg < highest - TOLERANCE:
            kept[method] = -difference
        else:
            dropped[method], best = difference, without
            highest = max(highest, best.ndcg)

    training = _restrict(users, best.methods, drawn)
    weights, booster, importance = fit_weights(training), None, best.importance
    measured_weights, measured_booster, ndcg = best.weights, None, best.ndcg
    if with_trees:
        measured_booster, ndcg = _fit_trees(users, best, part == 0, unselected)
        log.info("blend with trees: NDCG@10 %.4f on held-out users, %.4f without", ndcg, best.ndcg)
        if ndcg <= best.ndcg:
            measured_booster, ndcg = None, best.ndcg
    if measured_booster is not None:
        import lightgbm

        booster = lightgbm.train(dict(PARAMETERS), _dataset(training, weights), measured_booster.best_iteration)
        gains = dict(zip(booster.feature_name(), booster.feature_importance("gain").tolist(), strict=True))
        importance = _shares(gains)
    else:
        measured_weights = fit_weights(_restrict(users, best.methods, unselected))
    return Trained(
        methods=best.methods,
        weights=weights,
        booster=booster,
        measured_weights=measured_weights,
        measured_booster=measured_booster,
        ndcg=ndcg,
        linear_ndcg=best.ndcg,
        importance=importance,
        dropped=dropped,
        kept=kept,
    )


def fit_weights(users: TrainingUsers) -> Floats:
    """Return the weights (features,) of `Candidates.linear_matrix` that predict the targets best.

    The model is a conditional logit (McFadden 1974, "Conditional logit analysis of qualitative choice behavior"): the
    softmax over a user's candidates is the probability of the target. `LINEAR_PENALTY` times the sum of the squared
    weights of standardised features is added to the sum of the users' losses. The weight of `seen` is hardly penalised:
    where nobody repeats an item, seen items have to come last. All are 0 where no target is a candidate.
    """
    from scipy import optimize

    rows = users.candidates.rows
    hit = np.bincount(rows[users.is_target], minlength=len(users.targets)) > 0
    mask = hit[rows]
    x = users.candidates.take(mask).linear_matrix().astype(np.float64)
    if not len(x):
        return np.zeros(x.shape[1], np.float32)
    scale = x.std(axis=0)
    scale[scale < 1e-9] = 1
    x /= scale
    is_target, user_weights = users.is_target[mask], users.weights[hit].astype(np.float64)
    sizes = np.bincount(rows[mask], minlength=len(users.targets))[hit]
    starts, x_targets = np.cumsum(sizes) - sizes, x[is_target]
    penalties = np.full(x.shape[1], LINEAR_PENALTY)
    penalties[-1] *= SEEN_PENALTY_SHARE

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores = x @ weights
        highest = np.maximum.reduceat(scores, starts)
        shares = np.exp(scores - np.repeat(highest, sizes))
        sums = np.add.reduceat(shares, starts)
        shares *= np.repeat(user_weights / sums, sizes)
        value = float(user_weights @ (np.log(sums) + highest - scores[is_target]) + penalties @ weights**2)
        return value, shares @ x - user_weights @ x_targets + 2 * penalties * weights

    found = optimize.minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 100})
    return np.asarray(found.x / scale, np.float32)


@dataclass(frozen=True)
class _LinearFit:
    """Linear parts that some users were held out from.

    Attributes:
        methods: that feed them.
        weights: of the first.
        ndcg: NDCG@10 on the held-out users of all.
        importance: of each feature, highest first; see `Trained`.
    """

    methods: tuple[str, ...]
    weights: Floats
    ndcg: float
    importance: Mapping[str, float]


def _fit_linear(
    users: TrainingUsers, methods: tuple[str, ...], part: Ints, parts: int, drawn: NDArray[np.bool_]
) -> _LinearFit:
    """Fit once for each of the first `parts` parts of the users, without the users of that part."""
    weights, ndcg = [], []
    in_part = part[users.candidates.rows]
    for each in range(parts):
        fitted = fit_weights(_restrict(users, methods, drawn & (in_part != each)))
        held = _restrict(users, methods, in_part == each)
        ndcg.append(_ndcg(held, held.candidates.linear_matrix() @ fitted)[part == each])
        weights.append(fitted)
    matrix = held.candidates.linear_matrix()
    deviations = matrix.std(axis=0) if len(matrix) else np.zeros(matrix.shape[1])
    importance = _shares(dict(zip(linear_feature_names(methods), np.abs(weights[0]) * deviations, strict=True)))
    return _LinearFit(methods, weights[0], float(np.concatenate(ndcg).mean()), importance)


def _fit_trees(
    users: TrainingUsers, linear: _LinearFit, held_out: NDArray[np.bool_], drawn: NDArray[np.bool_]
) -> tuple["lightgbm.Booster", float]:
    """Train trees on top of the linear part without the held-out users, until these no longer improve.

    Returns:
        The trees, and the NDCG@10 on held-out users.
    """
    import lightgbm

    in_held_out = held_out[users.candidates.rows]
    held = _restrict(users, linear.methods, in_held_out)
    booster = lightgbm.train(
        dict(PARAMETERS),
        _dataset(_restrict(users, linear.methods, drawn & ~in_held_out), linear.weights),
        ROUNDS,
        valid_sets=[_dataset(held, linear.weights)],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    scores = _scores(held.candidates, linear.weights, booster)
    return booster, float(_ndcg(held, scores)[held_out].mean())


def _ndcg(users: TrainingUsers, scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return the NDCG@10 (B,) of each user."""
    values: NDArray[np.float64] = metrics.ndcg(target_ranks(users, scores), 10)
    return values


def _scores(candidates: Candidates, weights: Floats, booster: "lightgbm.Booster | None") -> Floats:
    """Return (m,) scores: of the linear part, plus those of the trees."""
    scores = np.zeros(len(candidates))
    for column, weight in zip(candidates.linear_matrix().T, weights, strict=True):
        scores += weight * column  # BLAS would sum in an order that depends on the number of candidates
    if booster is not None and len(candidates):
        scores += np.asarray(booster.predict(candidates.matrix(), num_threads=1))
    return np.asarray(scores, np.float32)


def _shares(values: Mapping[str, float]) -> dict[str, float]:
    """Return the share (0 to 1) of each positive value in the sum, highest first."""
    total = max(sum(values.values()), 1e-12)
    ordered = sorted(values.items(), key=lambda each: -each[1])
    return {name: float(value / total) for name, value in ordered if value > 0}


def _restrict(users: TrainingUsers, methods: Sequence[str], mask: NDArray[np.bool_]) -> TrainingUsers:
    """Return the candidates where `mask` (m,) is true, as they are with some of the methods only."""
    return TrainingUsers(users.candidates.take(mask).of_methods(methods), users.targets, users.weights)


def _dataset(users: TrainingUsers, weights: Floats) -> "lightgbm.Dataset":
    """Return the users whose target is a candidate, one query each: the others give no gradient.

    Training starts from the scores of the linear part.
    """
    import lightgbm

    rows = users.candidates.rows
    hit = np.bincount(rows[users.is_target], minlength=len(users.targets)) > 0
    mask = hit[rows]
    sizes = np.bincount(rows[mask], minlength=len(users.targets))[hit]
    candidates = users.candidates.take(mask)
    return lightgbm.Dataset(
        candidates.matrix(),
        users.is_target[mask].astype(np.int8),
        group=sizes,
        weight=users.weights[rows[mask]],
        init_score=candidates.linear_matrix() @ weights,
        feature_name=feature_names(users.candidates.methods),
        params={name: PARAMETERS[name] for name in ("max_bin", "verbose", "num_threads", "seed")},
    )


def target_ranks(users: TrainingUsers, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank (B,) of each target among its user's candidates, from 1; infinity where it is none of them.

    Equal scores rank before the target.
    """
    rows, hit = users.candidates.rows, users.is_target
    target_scores = np.full(len(users.targets), -np.inf)
    target_scores[rows[hit]] = scores[hit]
    before = np.bincount(rows[scores >= target_scores[rows]], minlength=len(users.targets)).astype(np.float64)
    return np.where(np.isfinite(target_scores), before, np.inf)


def _by_importance(fit: _LinearFit) -> list[str]:
    """Return the methods by the importance of their features, the lowest first."""
    shares = fit.importance.items()
    return sorted(fit.methods, key=lambda method: sum(share for name, share in shares if name.startswith(f"{method}.")))


def _user_weights(queries: Queries, target_times: Ints) -> Floats:
    """Return (B,) `NEW_VISIT_WEIGHT` where the target is later than the whole history, else 1.

    A shop asks for recommendations before a visit. Under leave-one-out many targets belong to the same basket as the
    newest items of the history, where an item is hardly ever bought twice. Unweighted, the blend would learn to rank
    seen items last, and users who buy them again would lose.
    """
    newest = np.full(len(queries), np.iinfo(np.int64).min)
    np.maximum.at(newest, queries.histories.rows, queries.times)
    return np.where(target_times > newest, np.float32(NEW_VISIT_WEIGHT), np.float32(1))


def build_blend(
    settings: BlendSettings, retrieval: RetrievalSettings, paths: DatasetPaths, variants: Sequence[str]
) -> Stats:
    """Train a blend of all methods on stacking users, save it, and rank for test users and selection users.

    Without enough stacking users, or with `enabled` false, the folder has no model and no ranking.

    Args:
        settings: which methods feed the blend.
        retrieval: `depth` of the ranking.
        paths: of the dataset.
        variants: of the dual tower; those that were ranked are methods too.

    Raises:
        MissingArtefactError: `sequences` or `baselines` have not been built.
        SettingsError: `settings` names a method that has not been built.
    """
    with files.replacing(paths.blend.root) as folder:
        folder.mkdir()
        return _build_blend(settings, retrieval, paths, variants, folder)


def _build_blend(
    settings: BlendSettings, retrieval: RetrievalSettings, paths: DatasetPaths, variants: Sequence[str], folder: Path
) -> Stats:
    if not settings.enabled:
        return {"blended": False, "summary": "none: blend.enabled is false"}
    methods = _methods(settings, paths, variants)
    item_ids, table = read_items(paths)[ITEM], ItemTable.read(paths)
    candidates = min(settings.candidates, retrieval.depth)
    start = time.process_time()
    validation = read_sequences(paths, VALIDATION)
    is_stacking = stacking_users(validation.height)
    stacking, selection = validation.filter(is_stacking), selection_users(validation.height)[is_stacking]
    users = _training_users(methods, candidates, stacking, item_ids, table)
    trained = train_blend(users, selection) if users else None
    if trained is None:
        reason = f"the target of fewer than {MIN_USERS} validation users is a candidate"
        log.warning("warning: no blend is trained: %s; the run continues without one", reason)
        return {"blended": False, "summary": f"none: {reason}"}
    blend = Blend(trained.methods, candidates, table, trained.weights, trained.booster)
    blend.save(folder)
    training_seconds = time.process_time() - start
    measured = replace(blend, weights=trained.measured_weights, booster=trained.measured_booster)
    rankings = {method: methods[method].validation_ranking for method in blend.methods}
    frames = _rank(measured, rankings, stacking, item_ids, retrieval.depth, selection)
    write_ranking(folder / paths.blend.validation_ranking.name, frames)
    test = read_sequences(paths, TEST)
    rankings = {method: methods[method].ranking for method in blend.methods}
    write_ranking(folder / paths.blend.ranking.name, _rank(blend, rankings, test, item_ids, retrieval.depth))
    return {
        "blended": True,
        "summary": f"{len(blend.methods)} methods, NDCG@10 {trained.ndcg:.4f} on held-out users",
        "methods": list(blend.methods),
        "dropped": {name: round(value, 5) for name, value in trained.dropped.items()},
        "kept": {name: round(value, 5) for name, value in trained.kept.items()},
        "held_out_ndcg@10": round(trained.ndcg, 5),
        "held_out_linear_ndcg@10": round(trained.linear_ndcg, 5),
        "trees": trained.booster.num_trees() if trained.booster else 0,
        "importance": {name: round(share, 4) for name, share in trained.importance.items()},
        "training_users": len(users.targets) if users else 0,
        "users": test.height,
        "training_cpu_seconds": round(training_seconds, 1),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def _methods(settings: BlendSettings, paths: DatasetPaths, variants: Sequence[str]) -> dict[str, MethodPaths]:
    """Return the artefacts of each method that feeds the blend.

    Raises:
        MissingArtefactError: the stage `baselines` has not run.
        SettingsError: a method of the settings has not been built.
    """
    files.require(paths.baselines)
    ranked = paths.ranked_methods(variants)
    found = {name: each for name, each in ranked.items() if name != BLEND and each.validation_ranking.exists()}
    if unknown := sorted(set(settings.methods) - set(found)):
        raise SettingsError(
            f"blend.methods names {', '.join(unknown)}, which has not been built; there are: {', '.join(found)}"
        )
    return {name: found[name] for name in (settings.methods or found)}


def _training_users(
    methods: Mapping[str, MethodPaths], k: int, stacking: pl.DataFrame, item_ids: pl.Series, table: ItemTable
) -> TrainingUsers | None:
    """Return the stacking users with their candidates; None where there are no users.

    Users whose target is no candidate have none: no training uses them, and their NDCG is 0 whatever the blend. They
    are most of the users of a large catalogue, and their candidates would be most of the memory.
    """
    if stacking.is_empty():
        return None
    last = stacking.select(pl.col(ITEMS).list.last(), pl.col(TIMESTAMPS).list.last())
    targets = last[ITEMS].cast(pl.Enum(item_ids)).to_physical().to_numpy().astype(np.int64)
    rankings = {method: each.validation_ranking for method, each in methods.items()}
    found: list[Candidates] = []
    sizes: list[int] = []
    for lists, queries in _batches(rankings, stacking, item_ids):
        candidates = find_candidates(lists, queries, table, k)
        is_target = candidates.items == targets[sum(sizes) :][candidates.rows]
        hit = np.bincount(candidates.rows[is_target], minlength=len(queries)) > 0
        found.append(candidates.take(hit[candidates.rows]))
        sizes.append(len(queries))
    weights = _user_weights(Queries.of_sequences(stacking, item_ids), last[TIMESTAMPS].cast(pl.Int64).to_numpy())
    return TrainingUsers(concatenate(found, sizes), targets, weights)


def _rank(
    blend: Blend,
    rankings: Mapping[str, Path],
    sequences: pl.DataFrame,
    item_ids: pl.Series,
    depth: int,
    selected: NDArray[np.bool_] | None = None,
) -> Iterator[pl.DataFrame]:
    """Yield frames of `RANKING_SCHEMA`: `depth` items per user, and one more per distinct item of the history.

    Args:
        blend: to rank with.
        rankings: by each of its methods, of the users of `sequences`.
        sequences: U users.
        item_ids: (n,) ids of the catalogue.
        depth: items.
        selected: (U,) the users to rank for; None means all.
    """
    users, start = sequences[USER] if selected is None else sequences[USER].filter(pl.Series(selected)), 0
    for lists, queries in _batches(rankings, sequences, item_ids, selected):
        lengths = depth + np.diff(queries.histories.incidence(len(item_ids)).indptr).astype(np.int64)
        items, scores = blend.rank(lists, queries, lengths)
        yield to_ranking(users[start : start + len(queries)], item_ids, items, scores)
        start += len(queries)


def _batches(
    rankings: Mapping[str, Path],
    sequences: pl.DataFrame,
    item_ids: pl.Series,
    selected: NDArray[np.bool_] | None = None,
) -> Iterator[tuple[dict[str, MethodLists], Queries]]:
    """Yield the lists of each method and the histories of the selected users among `USERS_PER_BATCH` users at a time.

    Raises:
        ArtefactError: a ranking is not one of these users.
    """
    chosen = np.ones(sequences.height, np.bool_) if selected is None else selected
    readers = [_read_lists(path, method, sequences[USER], item_ids) for method, path in rankings.items()]
    start = 0
    for lists in zip(*readers, strict=True):
        part = chosen[start : start + USERS_PER_BATCH]
        users = sequences[start : start + USERS_PER_BATCH].filter(pl.Series(part))
        start += len(part)
        if users.height:
            found = {
                m: MethodLists(each.items[part], each.scores[part]) for m, each in zip(rankings, lists, strict=True)
            }
            yield found, Queries.of_sequences(users, item_ids)


def _read_lists(path: Path, method: str, users: pl.Series, item_ids: pl.Series) -> Iterator[MethodLists]:
    """Yield a ranking as arrays, `USERS_PER_BATCH` users at a time: there may be millions of users.

    Args:
        path: of a ranking in the order of `users`.
        method: its name.
        users: (U,) ids, sorted.
        item_ids: (n,) ids of the catalogue.

    Raises:
        ArtefactError: the ranking is of other users or items, or in another order.
    """
    fault = ArtefactError(f"the ranking {path} of {method} is of other users or items; rank them again")
    indices = pl.Enum(item_ids)
    with parquet.ParquetFile(files.require(path)) as file:
        frames = (pl.DataFrame(pl.from_arrow(rows)) for rows in file.iter_batches(columns=list(RANKING_SCHEMA)))
        table = RANKING_SCHEMA.to_frame()
        for start in range(0, len(users), USERS_PER_BATCH):
            part = users[start : start + USERS_PER_BATCH]
            while (table.is_empty() or table[USER][-1] <= part[-1]) and (more := next(frames, None)) is not None:
                table = pl.concat([table, more])
            in_part = table.filter(pl.col(USER) <= part[-1])
            table = table[in_part.height :]
            items = in_part[ITEM].cast(indices, strict=False).to_physical()
            runs = in_part[USER].rle().struct
            if not runs.field("value").equals(part) or items.null_count():
                raise fault
            lengths, columns = runs.field("len").to_numpy(), in_part[RANK].to_numpy() - 1
            shape = (len(part), int(columns.max(initial=-1)) + 1)
            lists = MethodLists(np.full(shape, -1, np.int64), np.zeros(shape, np.float32))
            rows = np.repeat(np.arange(len(part)), lengths)
            lists.items[rows, columns] = items.to_numpy()
            lists.scores[rows, columns] = in_part[SCORE].to_numpy()
            yield lists
        if table.height or next(frames, None) is not None:
            raise fault
