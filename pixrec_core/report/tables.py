"""Figures as the page's tables and sentences; pure functions of the metrics."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, get_args

from pixrec_core.evaluation.lists import IMAGE_DIVERSITY, NOVELTY, REPEATS, TEXT_DIVERSITY
from pixrec_core.evaluation.protocol import COVERAGE
from pixrec_core.report.inputs import MULTIMODAL, TEXT_ONLY, Difference, Estimate, Metrics, Protocol
from pixrec_core.settings import Variant

HEADLINE: Final = ("Recall@1", "Recall@10", "NDCG@10", "MRR")
DECISIVE: Final = "Recall@10"
#: What the paper says that text and photos reach over text alone, as ratios.
PAPER: Final = {"Recall@1": 3.0, "Recall@10": 1.4}
#: Name in print and what it does. A baseline that is not here goes by its own name.
METHODS: Final = {
    MULTIMODAL: ("Multimodal", "PixRec, text and photos"),
    TEXT_ONLY: ("Text only", "PixRec, text alone"),
    "collaborative": ("Collaborative", "PixRec, text, photos and a vector an item"),
    "image_only": ("Image only", "PixRec, photos alone"),
    "shuffled_images": ("Shuffled images", "PixRec, text with another item's photo"),
    "popularity": ("Popularity", "what most users took"),
    "repeat_last": ("Repeat last", "the last item once more"),
    "co_occurrence": ("Co-occurrence", "taken by the same users"),
    "markov_chain": ("Memoriser", "a dictionary of training windows"),
    "recent_popularity": ("Recent popularity", "what most users took of late"),
    "bm25_text": ("BM25 text", "alike in words"),
    "image_knn": ("Image kNN", "alike in colours and edges"),
    "ease": ("EASE", "linear model of items on items"),
    "gru4rec": ("GRU4Rec", "recurrent network over item ids"),
    "sasrec": ("SASRec", "self-attention over item ids"),
    "dense": ("Dense", "nearest item vectors, from the index"),
    "beams": ("Beams", "texts of the catalogue, by beam search"),
    "generate_bm25": ("Generate, BM25", "texts of its own, looked up by BM25"),
    "hybrid": ("Hybrid", "nearest items in the order of texts and vectors"),
}
#: Figures that tell what lists are like: none is better for being higher.
DESCRIPTIVE: Final = frozenset({COVERAGE, NOVELTY, REPEATS, TEXT_DIVERSITY, IMAGE_DIVERSITY})
#: What the evaluation's groups of users hold, in the order of the page.
GROUPS: Final = {
    "warm": "next item seen in training",
    "cold": "next item never seen in training",
    "head": "next item among the most taken",
    "tail": "next item among the rest",
    "with image": "next item has a photo",
    "without image": "next item has no photo",
    "tied": "next item shares its time with another",
    "not tied": "next item has a time of its own",
    "history 1-2": "items before the next one",
    "history 3-5": "items before the next one",
    "history 6-10": "items before the next one",
    "history 11+": "items before the next one",
}
PROTOCOLS: Final = {
    "seen_allowed": "Every item is a candidate",
    "seen_filtered": "Without the items that the user already has",
}


@dataclass(frozen=True)
class Cell:
    """One figure: its estimate, whether no method is better, and its place on a bar, all in percent of the bar."""

    metric: str
    estimate: Estimate
    best: bool
    at: float
    start: float
    end: float


@dataclass(frozen=True)
class Claim:
    """One line of the ablation: what the paper says beside what was measured."""

    metric: str
    text_only: float
    multimodal: float
    paper: float
    difference: Difference | None

    @property
    def ratio(self) -> float | None:
        """Measured ratio; None where text alone finds nothing."""
        return self.multimodal / self.text_only if self.text_only else None


def label(method: str) -> str:
    """A method's name in print."""
    return METHODS[method][0] if method in METHODS else method.replace("_", " ").capitalize()


def percent(share: float | None) -> str:
    """A share (0 to 1) in percent, two decimals, without the sign."""
    return "\N{EN DASH}" if share is None else f"{100 * share:.2f}"


def figure(metric: str, value: float | None) -> str:
    """A metric's value in print: novelty in bits, one decimal; all others in percent."""
    return f"{value:.1f}" if metric == NOVELTY and value is not None else percent(value)


def points(difference: float) -> str:
    """A signed difference of two shares in percentage points."""
    return f"{100 * difference:+.2f}".replace("-", "\N{MINUS SIGN}")


def number(value: float) -> str:
    """A count or a measure: thousands apart, four decimals at most, none of them idle."""
    return f"{value:,.4f}".rstrip("0").rstrip(".")


def speed(value: float) -> str:
    """Users a second, three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def headline(protocol: Protocol, metrics: Iterable[str]) -> dict[str, dict[str, Cell]]:
    """Method to metric to cell, methods that do better at the decisive metric first."""
    order = sorted(protocol.methods, key=lambda m: (-_value(protocol, m, DECISIVE), m))
    return {m: {k: _cell(protocol, m, k) for k in metrics if k in protocol.methods[m]} for m in order}


def all_metrics(protocol: Protocol) -> list[str]:
    """All metrics of a protocol, in the order that they were written."""
    return list(dict.fromkeys(metric for method in protocol.methods.values() for metric in method))


def _value(protocol: Protocol, method: str, metric: str) -> float:
    estimate = protocol.methods[method].get(metric)
    return estimate.value if estimate else 0.0


def _cell(protocol: Protocol, method: str, metric: str) -> Cell:
    estimate = protocol.methods[method][metric]
    column = [m[metric] for m in protocol.methods.values() if metric in m]
    full = max(e.value if e.high is None else e.high for e in column) or 1.0
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    highest = estimate.value > 0 and estimate.value == max(e.value for e in column)
    best = highest and metric not in DESCRIPTIVE
    at, start, end = (round(100 * max(x, 0.0) / full, 2) for x in (estimate.value, low, high))
    return Cell(metric, estimate, best, at, start, end)


def seeing(protocol: Protocol, metric: str = DECISIVE) -> Difference | None:
    """Multimodal minus text alone, whichever way round it was compared; None where it was not."""
    for pair in protocol.paired:
        if pair.metric == metric and (pair.a, pair.b) == (MULTIMODAL, TEXT_ONLY):
            return pair
        if pair.metric == metric and (pair.a, pair.b) == (TEXT_ONLY, MULTIMODAL):
            return Difference(
                a=pair.b, b=pair.a, metric=metric, difference=-pair.difference, low=-pair.high, high=-pair.low
            )
    return None


def answer(pair: Difference) -> str:
    """Does seeing help? In a few honest words, for `pair` as `seeing` gives it."""
    if pair.low > 0:
        return "Seeing helps"
    return "Seeing hurts here" if pair.high < 0 else "Cannot tell whether seeing helps"


def verdict(protocol: Protocol) -> str:
    """One sentence on photos against text alone, from the paired interval."""
    pair = seeing(protocol)
    if pair is None:
        return (
            "Whether seeing helps was not measured: it takes a multimodal and a text-only model, compared user by user."
        )
    shares = [percent(_value(protocol, m, DECISIVE)) for m in (MULTIMODAL, TEXT_ONLY)]
    interval = f"{points(pair.difference)} points (95\u00a0% interval {points(pair.low)} to {points(pair.high)})"
    doubt = ", which includes no difference at all" if pair.low <= 0 <= pair.high else ""
    return (
        f"{answer(pair)}: ten suggestions hold the next item for {shares[0]}\u00a0% of users with text and photos "
        f"and for {shares[1]}\u00a0% with text alone, {interval}{doubt}."
    )


def leader(protocol: Protocol) -> str:
    """One sentence on the best of all methods, ours or not."""
    for method, cells in headline(protocol, [DECISIVE]).items():
        if DECISIVE in cells and cells[DECISIVE].best:
            kind = "model" if method in get_args(Variant) else "baseline"
            share = percent(cells[DECISIVE].estimate.value)
            return f"Of all methods the best is a {kind}: {label(method)}, {share}\u00a0%."
    return "No method found any next item among its first ten."


def claims(protocol: Protocol) -> list[Claim]:
    """The paper's claims beside what was measured; empty where a variant is missing."""
    text, full = (protocol.methods.get(m) for m in (TEXT_ONLY, MULTIMODAL))
    if text is None or full is None:
        return []
    return [
        Claim(metric, text[metric].value, full[metric].value, ratio, seeing(protocol, metric))
        for metric, ratio in PAPER.items()
        if metric in text and metric in full
    ]


def by_group(protocol: Protocol) -> list[tuple[str, int, dict[str, tuple[float | None, bool]]]]:
    """(group, users, method to (decisive metric, whether it is the group's best)), methods in headline order."""
    rows = []
    known = list(GROUPS)
    order = sorted(protocol.groups, key=lambda name: known.index(name) if name in GROUPS else len(known))
    for name in order:
        group = protocol.groups[name]
        values = {m: group.methods.get(m, {}).get(DECISIVE) for m in headline(protocol, [DECISIVE])}
        top = max((v for v in values.values() if v), default=None)
        rows.append((name, group.users, {m: (v, v is not None and v == top) for m, v in values.items()}))
    return rows


def held_out(stats: dict[str, Any]) -> str | None:
    """What is tested on, from what the sequences stage counted; None where it left no count."""
    cut = stats.get("cuts", {}).get("test")
    if cut:
        return f"Tested on the first item of each user from {cut} on."
    return "Tested on the last item of each user." if "split" in stats else None


def key_figures(metrics: Metrics) -> list[tuple[str, str]]:
    """(figure, what it counts) of the test set."""
    shares = [
        (metrics.share_repeat_targets, "of next items the user already has"),
        (metrics.share_cold, "of next items never seen in training"),
        (metrics.share_tied, "of next items share their time with another"),
    ]
    counts = [(f"{metrics.users:,}", "test users"), (f"{metrics.items:,}", "items to choose from")]
    return counts + [(f"{100 * share:.1f}\u00a0%", what) for share, what in shares if share is not None]


def facts(stats: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what a data stage counted. Checksums say nothing to people, durations nothing of data."""
    rows: list[tuple[str, str]] = []
    for key, value in stats.items():
        if key.endswith(("sha256", "seconds", "_s")) or value is None:
            continue
        if isinstance(value, dict):
            rows += [(f"{_words(key)}: {name}", text) for name, text in facts(value)]
        else:
            rows.append((_words(key), _fact(key, value)))
    return rows


def _words(key: str) -> str:
    return key.replace("_", " ")


def _fact(key: str, value: Any) -> str:
    if isinstance(value, float) and "share" in key:
        return f"{100 * value:.2f}\u00a0%"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    return str(value)
