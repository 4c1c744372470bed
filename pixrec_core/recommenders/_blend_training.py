"""Training of a blend on stacking users: a linear part, methods dropped by it, and trees on top.

The linear part is a conditional logit (McFadden 1974, "Conditional logit analysis of qualitative choice behavior"). The
trees are a LightGBM ensemble (Ke et al. 2017, "LightGBM: A Highly Efficient Gradient Boosting Decision Tree") trained
with LambdaRank (Burges 2010, "From RankNet to LambdaRank to LambdaMART", MSR-TR-2010-82).

Legend: B users, m candidates of all users.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pixrec_core.evaluation import metrics
from pixrec_core.recommenders._blend_features import (
    LINEAR_COMMON,
    Candidates,
    Floats,
    Ints,
    feature_names,
    linear_feature_names,
)

if TYPE_CHECKING:
    import lightgbm  # imports scikit-learn, a second that a blend without trees does not need

log = logging.getLogger(__name__)

Mask = NDArray[np.bool_]

MIN_USERS: Final = 50  # stacking users with their target among the candidates; a blend of fewer is noise
PARTS: Final = 4  # of the stacking users that are no selection users; one is held out at a time
MIN_TREE_USERS: Final = 2_000  # such users; fewer gained nothing from trees (fashion purchases) or lost (film ratings)
LINEAR_PENALTY: Final = 100.0  # of the squared weights of standardised features, for all users together
PENALTY_SHARES: Final[Mapping[str, float]] = {"seen": 0.01, **dict.fromkeys(LINEAR_COMMON[1:], 0.1)}  # of it
NEGATIVE_SHARE: Final = 0.3  # of the other candidates of a user, drawn for training
COLD_SHARE: Final = 0.1  # of the items, which training treats as cold; see `pretend_cold`
#: Standard errors of the gain in NDCG@10 on held-out users from which a method or the trees are left out. With 0,
#: chance dropped six of thirteen methods of fashion purchases, which cost a point of Recall@10 on test users.
MIN_GAIN: Final = 2.0
ROUNDS: Final = 300  # trees at most
PATIENCE: Final = 50  # trees without a better NDCG@10 on held-out users
SEED: Final = 0

#: The best of few settings of learning rate, leaves, `lambda_l2` and truncation on validation users of one
#: data set, fashion purchases. With `deterministic`, any number of threads gives the same trees.
PARAMETERS: Final[Mapping[str, Any]] = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [10],
    "lambdarank_truncation_level": 30,
    "learning_rate": 0.03,  # on held-out users of these purchases, 40 to 300 trees are level
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
    "num_threads": 0,  # OpenMP's default: OMP_NUM_THREADS, else all cores
    "verbose": -1,
}


@dataclass(frozen=True)
class TrainingUsers:
    """Candidates of stacking users, and the item that each user chose next.

    Attributes:
        candidates: of B users.
        targets: (B,) items.
    """

    candidates: Candidates
    targets: Ints

    @cached_property
    def linear_matrix(self) -> Floats:
        """(m, linear features) of all methods."""
        return self.candidates.linear_matrix()

    @cached_property
    def is_target(self) -> Mask:
        """(m,) whether a candidate is its user's target."""
        found: Mask = self.candidates.items == self.targets[self.candidates.rows]
        return found

    @property
    def hit(self) -> Mask:
        """(B,) whether the target is a candidate."""
        return np.bincount(self.candidates.rows[self.is_target], minlength=len(self.targets)) > 0

    def take(self, mask: Mask) -> "TrainingUsers":
        """Return the users with the candidates where `mask` (m,) is true."""
        return replace(self, candidates=self.candidates.take(mask))

    def of(self, users: Mask, methods: Sequence[str]) -> "TrainingUsers":
        """Return the candidates of some users (B,), as they are with some of the methods only."""
        return replace(self, candidates=self.candidates.take(users[self.candidates.rows]).of_methods(methods))

    def with_target(self) -> "TrainingUsers":
        """Return the users without the candidates of those whose target is none of them."""
        return self.take(self.hit[self.candidates.rows])

    def ndcg(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """Return the NDCG@10 (B,) of each user."""
        values: NDArray[np.float64] = metrics.ndcg(ranks_among_candidates(self, scores), 10)
        return values


def ranks_among_candidates(users: TrainingUsers, scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return the rank (B,) of each target among its user's candidates, from 1; infinity where it is none of them.

    Equal scores rank before the target.
    """
    rows, hit = users.candidates.rows, users.is_target
    target_scores = np.full(len(users.targets), -np.inf)
    target_scores[rows[hit]] = scores[hit]
    before = np.bincount(rows[scores >= target_scores[rows]], minlength=len(users.targets)).astype(np.float64)
    return np.where(np.isfinite(target_scores), before, np.inf)


@dataclass(frozen=True)
class Learned:
    """What orders candidates: a linear part, corrected by trees.

    Attributes:
        methods: that feed it.
        weights: of `Candidates.linear_matrix`.
        booster: the trees over `Candidates.matrix`; None where they are not better, or where too few users would train
            them.
    """

    methods: tuple[str, ...]
    weights: Floats
    booster: "lightgbm.Booster | None" = None

    def score(self, candidates: Candidates) -> Floats:
        """Return (m,) scores; higher is better. They compare candidates of one user only."""
        scores = np.zeros(len(candidates))
        for column, weight in zip(candidates.linear_matrix().T, self.weights, strict=True):
            scores += weight * column  # BLAS would sum in an order that depends on the number of candidates
        if self.booster is not None and len(candidates):
            scores += np.asarray(self.booster.predict(candidates.matrix(), num_threads=1))
        return np.asarray(scores, np.float32)


@dataclass(frozen=True)
class Trained:
    """Result of `train_blend`.

    Attributes:
        final: learned from all stacking users.
        measured: learned without the selection users.
        ndcg: NDCG@10 on held-out users, who also chose the methods and the number of trees.
        linear_ndcg: the same of the linear part alone.
        importance: of each feature, highest first: its share (0 to 1) of the gain of the trees; without trees, of the
            sum of |weight| times standard deviation.
        dropped: NDCG@10 on held-out users that dropping each dropped method gained.
        kept: NDCG@10 on held-out users that dropping each kept method would lose.
    """

    final: Learned
    measured: Learned
    ndcg: float
    linear_ndcg: float
    importance: Mapping[str, float]
    dropped: Mapping[str, float]
    kept: Mapping[str, float]


def train_blend(users: TrainingUsers, selection: Mask) -> Trained | None:
    """Train on stacking users: drop methods by backward elimination, then add trees to the linear part.

    Every user but the selection users is held out once. Methods are tried in the order of their share of the weights,
    the lowest first. A method, with its candidates, or the trees are left out if the NDCG@10 of held-out users is
    higher without them by more than `MIN_GAIN` standard errors. At the end the blend is fitted on all users with the
    number of trees that was best.

    `selection` (B,) is whether a user is a selection user.

    Returns:
        The blend, or None where the target of too few users is a candidate.
    """
    hit, part = users.hit, np.full(len(users.targets), -1)
    part[~selection] = np.random.default_rng(SEED).permutation(len(selection) - selection.sum()) % PARTS
    if hit.sum() < MIN_USERS or any(not hit[part == each].any() for each in range(PARTS)):
        return None
    with_trees = hit.sum() >= MIN_TREE_USERS
    learning = draw_candidates(pretend_cold(users), NEGATIVE_SHARE if with_trees else 1)

    def linear_fit(methods: tuple[str, ...], start: _LinearFit | None = None) -> _LinearFit:
        return _fit_linear(learning, users, methods, part, start)

    best = linear_fit(users.candidates.methods)
    dropped, kept = {}, {}
    for method in _by_importance(best):
        remaining = tuple(each for each in best.methods if each != method)
        if not remaining:
            break
        without = linear_fit(remaining, best)
        gain = float((without.ndcg - best.ndcg).mean())
        log.info("blend without %s: NDCG@10 %.4f on held-out users, %+.4f", method, without.ndcg.mean(), gain)
        if is_significantly_better(without.ndcg, best.ndcg):
            dropped[method], best = gain, without
        else:
            kept[method] = -gain

    linear_ndcg = float(best.ndcg.mean())
    importance, ndcg, rounds = best.importance, linear_ndcg, 0
    if with_trees:
        rounds, with_them = _choose_rounds(users, learning, best, part)
        ndcg = float(with_them.mean())
        log.info("blend with %d trees: NDCG@10 %.4f on held-out users, %.4f without", rounds, ndcg, linear_ndcg)
        if is_significantly_better(best.ndcg, with_them):
            rounds, ndcg = 0, linear_ndcg
    measured, final = (_fit(learning, best, mask, rounds) for mask in (part >= 0, np.ones(len(part), np.bool_)))
    if final.booster is not None:
        gains = final.booster.feature_importance("gain").tolist()
        importance = _shares(dict(zip(final.booster.feature_name(), gains, strict=True)))
    return Trained(final, measured, ndcg, linear_ndcg, importance, dropped, kept)


def is_significantly_better(simple: NDArray[np.float64], full: NDArray[np.float64]) -> bool:
    """Return whether the NDCG@10 (B,) of a simpler blend is higher by more than `MIN_GAIN` standard errors."""
    gains = simple - full
    return bool(gains.mean() > MIN_GAIN * gains.std() / np.sqrt(len(gains)))


def pretend_cold(users: TrainingUsers) -> TrainingUsers:
    """Return the users as if `COLD_SHARE` of the items, drawn at random, had no training interactions.

    Few validation targets are cold, too few to learn from how well each method ranks cold items (Volkovs et al. 2017,
    "DropoutNet: Addressing Cold Start in Recommender Systems"). Unchanged where no candidate is cold.
    """
    candidates = users.candidates
    if not candidates.cold.any():
        return users
    drawn = np.random.default_rng(SEED).random(candidates.items.max() + 1) < COLD_SHARE
    mask = drawn[candidates.items] & (candidates.feature("seen") == 0)
    return replace(users, candidates=candidates.as_cold(mask))


def draw_candidates(users: TrainingUsers, share: float) -> TrainingUsers:
    """Return the users with a random share (0 to 1) of their candidates; targets stay."""
    drawn = np.random.default_rng(SEED).random(len(users.candidates)) < share
    return users.take(users.is_target | drawn)


def fit_weights(
    users: TrainingUsers, methods: Sequence[str] | None = None, mask: Mask | None = None, start: Floats | None = None
) -> Floats:
    """Return the weights (features,) of `Candidates.linear_matrix` that predict the targets best.

    The softmax over a user's candidates is the probability of the target. `LINEAR_PENALTY` times the sum of the squared
    weights of standardised features is added to the sum of the users' losses. Weights of `seen` and of its products are
    penalised less: where nobody repeats an item, seen items have to come last. All are 0 where no target is a
    candidate.

    Args:
        users: B users.
        methods: whose candidates and features count; None means all.
        mask: (B,) the users to learn from; None means all.
        start: (features,) weights from which the search starts.
    """
    from scipy import optimize

    candidates, methods = users.candidates, users.candidates.methods if methods is None else methods
    listed = candidates.listed_by(methods)
    hit = np.bincount(candidates.rows[users.is_target & listed], minlength=len(users.targets)) > 0
    hit &= True if mask is None else mask
    kept = listed & hit[candidates.rows]
    names, all_names = linear_feature_names(methods), linear_feature_names(candidates.methods)
    columns = np.array([all_names.index(name) for name in names])
    x = users.linear_matrix[kept][:, columns]
    if not len(x):
        return np.zeros(x.shape[1], np.float32)
    scale = x.std(axis=0, dtype=np.float64).astype(np.float32)
    scale[scale < 1e-6] = 1
    x /= scale
    is_target = users.is_target[kept]
    sizes = np.bincount(candidates.rows[kept], minlength=len(users.targets))[hit]
    starts, x_targets = np.cumsum(sizes) - sizes, x[is_target].sum(axis=0, dtype=np.float64)
    penalties = LINEAR_PENALTY * np.array([PENALTY_SHARES.get(name, 1.0) for name in names])

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores = x @ weights.astype(np.float32)
        highest = np.maximum.reduceat(scores, starts)
        shares = np.exp(scores - np.repeat(highest, sizes))
        sums = np.add.reduceat(shares, starts)
        shares /= np.repeat(sums, sizes)
        losses = np.log(sums) + highest - scores[is_target]
        gradient = shares @ x - x_targets + 2 * penalties * weights
        return float(losses.sum(dtype=np.float64) + penalties @ weights**2), gradient

    first = np.zeros(x.shape[1]) if start is None else start.astype(np.float64) * scale
    # Threads would wait for each other in thousands of short products: beside other work, minutes for 300 users.
    with threadpool_limits(1, "blas"):
        found = optimize.minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": 100, "ftol": 1e-6})
    return np.asarray(found.x / scale, np.float32)


@dataclass(frozen=True)
class _LinearFit:
    """Linear parts that some users were held out from.

    Attributes:
        methods: that feed them.
        parts: weights without the users of each part.
        ndcg: NDCG@10 of each user, by a fit that the user was held out from.
        importance: of each feature, highest first; see `Trained`.
    """

    methods: tuple[str, ...]
    parts: tuple[Floats, ...]
    ndcg: NDArray[np.float64]
    importance: Mapping[str, float]


def _fit_linear(
    learning: TrainingUsers,
    users: TrainingUsers,
    methods: tuple[str, ...],
    part: Ints,
    start: "_LinearFit | None" = None,
) -> _LinearFit:
    """Fit once for each part of the users, without the users of that part.

    Args:
        learning: `users` with the candidates to learn from.
        users: B users.
        methods: that feed the fits.
        part: (B,) of each user; users of none have -1.
        start: a fit with these methods and others, which is near.
    """
    weights, ndcg = [], []
    names = linear_feature_names(methods)
    for each in range(PARTS):
        near = None
        if start is not None:
            old = linear_feature_names(start.methods)
            near = start.parts[each][[old.index(name) for name in names]]
        fitted = fit_weights(learning, methods, (part >= 0) & (part != each), near)
        held = users.of(part == each, methods)
        matrix = held.candidates.linear_matrix()
        ndcg.append(held.ndcg(matrix @ fitted)[part == each])
        weights.append(fitted)
    deviations = matrix.std(axis=0) if len(matrix) else np.zeros(matrix.shape[1])
    importance = _shares(dict(zip(names, np.abs(weights[0]) * deviations, strict=True)))
    return _LinearFit(methods, tuple(weights), np.concatenate(ndcg), importance)


def _by_importance(fit: _LinearFit) -> list[str]:
    """Return the methods by the importance of their features, the lowest first."""
    shares = fit.importance.items()
    return sorted(fit.methods, key=lambda method: sum(share for name, share in shares if name.startswith(f"{method}.")))


def _shares(values: Mapping[str, float]) -> dict[str, float]:
    """Return the share (0 to 1) of each positive value in the sum, highest first."""
    total = max(sum(values.values()), 1e-12)
    ordered = sorted(values.items(), key=lambda each: -each[1])
    return {name: float(value / total) for name, value in ordered if value > 0}


def _choose_rounds(
    users: TrainingUsers, learning: TrainingUsers, linear: _LinearFit, part: Ints
) -> tuple[int, NDArray[np.float64]]:
    """Return the number of trees that is best on held-out users, and the NDCG@10 of each of them with it.

    Every part is held out once, from the linear part as from the trees.
    """
    import lightgbm

    data = learning.of(part >= 0, linear.methods).with_target()
    row_part = part[data.candidates.rows]
    matrix, scores = data.candidates.linear_matrix(), np.zeros(len(row_part))
    for each, weights in enumerate(linear.parts):
        scores[row_part == each] = matrix[row_part == each] @ weights
    folds = [(np.flatnonzero(row_part != each), np.flatnonzero(row_part == each)) for each in range(PARTS)]
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    found = lightgbm.cv(
        dict(PARAMETERS), _dataset(data, scores), ROUNDS, folds=folds, callbacks=[stop], return_cvbooster=True
    )
    boosters: Any = found["cvbooster"]
    ndcg = []
    for each, booster in enumerate(boosters.boosters):
        held = users.of(part == each, linear.methods)
        trees = booster.predict(held.candidates.matrix(), num_iteration=boosters.best_iteration)
        ndcg.append(held.ndcg(held.candidates.linear_matrix() @ linear.parts[each] + trees)[part == each])
    return boosters.best_iteration, np.concatenate(ndcg)


def _fit(learning: TrainingUsers, linear: _LinearFit, mask: Mask, rounds: int) -> Learned:
    """Learn the weights and `rounds` trees from the users of `mask` (B,)."""
    weights = fit_weights(learning, linear.methods, mask, linear.parts[0])
    if not rounds:
        return Learned(linear.methods, weights)
    import lightgbm

    data = learning.of(mask, linear.methods).with_target()
    dataset = _dataset(data, data.candidates.linear_matrix() @ weights)
    return Learned(linear.methods, weights, lightgbm.train(dict(PARAMETERS), dataset, rounds))


def _dataset(users: TrainingUsers, scores: NDArray[Any]) -> "lightgbm.Dataset":
    """Return one query per user with candidates, whose target must be one of them: the others give no gradient.

    Training starts from the scores (m,) of the linear part.
    """
    import lightgbm

    candidates, sizes = users.candidates, np.bincount(users.candidates.rows)
    return lightgbm.Dataset(
        candidates.matrix(),
        users.is_target.astype(np.int8),
        group=sizes[sizes > 0],
        init_score=scores,
        feature_name=feature_names(candidates.methods),
        params={name: PARAMETERS[name] for name in ("max_bin", "verbose", "num_threads", "seed")},
    )
