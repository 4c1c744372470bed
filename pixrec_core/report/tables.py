"""Tables and sentences of the page; pure functions of the metrics."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from pixrec_core.evaluation.inputs import EVERYONE, PHOTOS, POOR_TEXT
from pixrec_core.evaluation.inputs import GROUPS as INPUT_GROUPS
from pixrec_core.evaluation.lists import IMAGE_DIVERSITY, NOVELTY, REPEATS, TEXT_DIVERSITY
from pixrec_core.evaluation.protocol import COVERAGE
from pixrec_core.paths import BLEND
from pixrec_core.printable import markdown_cell
from pixrec_core.report.inputs import (
    MULTIMODAL,
    SHUFFLED_IMAGES,
    TEXT_ONLY,
    Difference,
    Estimate,
    InputGroup,
    Metrics,
    Protocol,
)

MAIN_METRICS: Final = ("Recall@1", "Recall@10", "NDCG@10", "MRR")
#: Order of methods in tables, as in the terminal and at promotion.
SORT_METRIC: Final = "NDCG@10"
MAIN_METRIC: Final = "Recall@10"
#: Ratios of text and photos to text alone in the paper.
PAPER: Final = {"Recall@1": 3.0, "Recall@10": 1.4}
#: Title and description of methods. Another method is shown under its own name.
METHODS: Final = {
    MULTIMODAL: ("Multimodal", "PixRec, text and photos"),
    TEXT_ONLY: ("Text only", "PixRec, text only"),
    "collaborative": ("Collaborative", "PixRec, text, photos and an item-id embedding"),
    "image_only": ("Image only", "PixRec, photos only"),
    "shuffled_images": ("Shuffled images", "PixRec, text with another item's photo"),
    "popularity": ("Popularity", "most interactions"),
    "repeat_last": ("Repeat last", "items of the history, newest first"),
    "co_occurrence": ("Co-occurrence", "items of the same users"),
    "markov_chain": ("Markov chain", "next items after the same recent items in training"),
    "recent_popularity": ("Recent popularity", "most interactions of late"),
    "bm25_text": ("BM25 text", "similar words"),
    "image_knn": ("Image kNN", "similar colours and edges"),
    "ease": ("EASE", "linear item-item model"),
    "gru4rec": ("GRU4Rec", "recurrent network over item ids"),
    "sasrec": ("SASRec", "self-attention over item ids"),
    "semantic_ids": ("Semantic ids", "network that writes codes of item texts"),
    "blend": ("Blend", "learned order of the candidates of all methods"),
    "dense": ("Dense", "nearest item vectors"),
    "beams": ("Beams", "beam search over texts of the catalogue"),
    "generate_bm25": ("Generate, BM25", "generated texts, searched with BM25"),
    "hybrid": ("Hybrid", "nearest items, re-ranked by text likelihood"),
}
#: Metrics that describe lists; higher is not better.
DESCRIPTIVE: Final = frozenset({COVERAGE, NOVELTY, REPEATS, TEXT_DIVERSITY, IMAGE_DIVERSITY})
#: Descriptions of the evaluation's groups of users, in the order of the page.
GROUPS: Final = {
    "warm": "next item seen in training",
    "cold": "next item never seen in training",
    "head": "next item among the most popular",
    "tail": "next item among the rest",
    "with image": "next item has a photo",
    "without image": "next item has no photo",
    "tied": "next item has the timestamp of another",
    "not tied": "next item has a unique timestamp",
    "repeat": "next item is in the history",
    "history 1-2": "items in the history",
    "history 3-5": "items in the history",
    "history 6-10": "items in the history",
    "history 11+": "items in the history",
}
#: Inputs that are not one method, and the methods that depend on them.
INPUT_KINDS: Final = {
    PHOTOS: "all methods that read photos",
    "text": "all methods that read texts",
    "behaviour": "all methods that learn from other people",
}
PROTOCOLS: Final = {
    "seen_allowed": "Seen items allowed",
    "seen_filtered": "Seen items filtered",
}
#: Headings of the data section, and titles of facts that need more than their key.
STAGES: Final = {
    "raw": "Raw files",
    "items": "Items",
    "interactions": "Interactions",
    "images": "Photos",
    "sequences": "Sequences",
}
FACTS: Final = {"recall@10": "share of the exact top 10 found", "recall_queries": "measured with"}
#: Names of durations and checksums. Reasons for rejected rows are sentences and may end in the same words.
_UNSHOWN: Final = re.compile(r"(\w+_)?(sha256|seconds|s)")


@dataclass(frozen=True)
class Cell:
    """One value: its estimate, whether it is the best, and value and interval on a bar in percent of the bar."""

    metric: str
    estimate: Estimate
    best: bool
    at: float
    start: float
    end: float


@dataclass(frozen=True)
class Interval:
    """One group's loss: its estimate, and value, interval and zero on a common axis in percent of the axis."""

    group: str
    users: int
    loss: Estimate
    at: float
    start: float
    end: float
    zero: float


@dataclass(frozen=True)
class Claim:
    """One row of the ablation: the ratio in the paper and the measured values."""

    metric: str
    text_only: float
    multimodal: float
    paper: float
    difference: Difference | None

    @property
    def ratio(self) -> float | None:
        """Measured ratio; None if text alone finds nothing."""
        return self.multimodal / self.text_only if self.text_only else None


def method_title(method: str) -> str:
    """A method's name on the page."""
    return METHODS[method][0] if method in METHODS else method.replace("_", " ").capitalize()


def percent(share: float | None) -> str:
    """A share (0 to 1) in percent with two decimals, without the percent sign."""
    return "\N{EN DASH}" if share is None else f"{100 * share:z.2f}"


def format_metric(metric: str, value: float | None) -> str:
    """A metric's value: novelty in bits with one decimal, other metrics in percent."""
    return f"{value:.1f}" if metric == NOVELTY and value is not None else percent(value)


def points(difference: float) -> str:
    """A signed difference of two shares in percentage points."""
    return f"{100 * difference:+z.2f}".replace("-", "\N{MINUS SIGN}")


def format_number(value: float) -> str:
    """A number with thousands separators and at most four decimals, without trailing zeros."""
    return f"{value:,.4f}".rstrip("0").rstrip(".")


def format_speed(value: float) -> str:
    """Users per second with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def methods_table(protocol: Protocol, metrics: Iterable[str]) -> dict[str, dict[str, Cell]]:
    """Method to metric to cell, best methods first."""
    order = sorted(protocol.methods, key=lambda m: (-_value(protocol, m, SORT_METRIC), m))
    return {m: {k: _cell(protocol, m, k) for k in metrics if k in protocol.methods[m]} for m in order}


def all_metrics(protocol: Protocol) -> list[str]:
    """All metrics of a protocol, in the order of the metrics file."""
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


def paired_difference(protocol: Protocol, a: str, b: str, metric: str = MAIN_METRIC) -> Difference | None:
    """Method `a` minus method `b`; None if the evaluation did not compare them."""
    for pair in protocol.paired:
        if pair.metric == metric and (pair.a, pair.b) == (a, b):
            return pair
        if pair.metric == metric and (pair.a, pair.b) == (b, a):
            return Difference(a=a, b=b, metric=metric, difference=-pair.difference, low=-pair.high, high=-pair.low)
    return None


def photo_effect(pair: Difference) -> str:
    """Effect of photos in a few words, from the interval of multimodal minus text only."""
    if pair.low > 0:
        return "Better with photos"
    return "Worse with photos" if pair.high < 0 else "No significant effect of photos"


def photo_sentence(protocol: Protocol) -> str:
    """One sentence on photos compared with text alone."""
    pair = paired_difference(protocol, MULTIMODAL, TEXT_ONLY)
    if pair is None:
        return "The effect of photos was not measured: it takes a multimodal and a text-only variant."
    full, text = (percent(_value(protocol, method, MAIN_METRIC)) for method in (MULTIMODAL, TEXT_ONLY))
    return (
        f"{photo_effect(pair)}: ten recommendations contain the next item for {full}\u00a0% of users with text and "
        f"photos and for {text}\u00a0% with text alone ({_interval(pair)}).{_control(protocol) if pair.low > 0 else ''}"
    )


def _control(protocol: Protocol) -> str:
    """Whether a gain comes from what the photos show: any vector of an item's own tells items apart, as an id does."""
    pair = paired_difference(protocol, MULTIMODAL, SHUFFLED_IMAGES)
    if pair is None:
        return f" Whether what they show matters is not measured: it takes the variant {SHUFFLED_IMAGES}."
    shown = "is" if pair.low > 0 else "is not shown to be"
    return f" The gain {shown} due to what they show: compared with photos of other items, {_interval(pair)}."


def _interval(pair: Difference) -> str:
    return f"{points(pair.difference)} points, 95\u00a0% interval {points(pair.low)} to {points(pair.high)}"


EARLIER_SERVES: Final = "An earlier promotion serves, whose figures are not these."


def served_sentence(protocol: Protocol, served: str | None, *, is_measured: bool = True) -> str:
    """The serving method and its gain over the best other method, the blend and text only; else the best method.

    `is_measured` is whether the figures are of what serves.
    """
    if served is not None and not is_measured:
        return f"{served_sentence(protocol, None)} {EARLIER_SERVES}"
    values = {method: _value(protocol, method, MAIN_METRIC) for method in methods_table(protocol, [])}
    ranked = sorted((method for method, value in values.items() if value > 0), key=lambda method: -values[method])
    if not ranked:
        return "No method found the next item of any user among ten recommendations."
    shown = served if served in protocol.methods else None
    method = shown or ranked[0]
    share = percent(values[method])
    role = "serves" if shown else f"is the best of {len(protocol.methods)} methods"
    sentence = f"{method_title(method)} {role}: ten recommendations contain the next item for {share}\u00a0% of users"
    if shown is None:
        return f"{sentence}."
    best = next((other for other in ranked if other not in (shown, BLEND)), None)
    others = [
        other for other in dict.fromkeys((best, BLEND, TEXT_ONLY)) if other in protocol.methods and other != shown
    ]
    return f"{sentence}. {' '.join(_gain(protocol, shown, other, is_best=other == best) for other in others if other)}"


def _gain(protocol: Protocol, method: str, other: str, *, is_best: bool) -> str:
    """The gain over another method in a sentence."""
    pair = paired_difference(protocol, method, other)
    value = _interval(pair) if pair else f"{percent(_value(protocol, other, MAIN_METRIC))}\u00a0%"
    role = ", the best other single method" if is_best else ""
    return f"{'Gain over' if pair else 'Compared with'} {method_title(other)}{role}: {value}."


def claims(protocol: Protocol) -> list[Claim]:
    """The paper's claims with the measured values; empty if a side of the ablation is missing."""
    text, full = (protocol.methods.get(m) for m in (TEXT_ONLY, MULTIMODAL))
    if text is None or full is None:
        return []
    return [
        Claim(
            metric,
            text[metric].value,
            full[metric].value,
            ratio,
            paired_difference(protocol, MULTIMODAL, TEXT_ONLY, metric),
        )
        for metric, ratio in PAPER.items()
        if metric in text and metric in full
    ]


def groups_table(protocol: Protocol) -> list[tuple[str, int, dict[str, tuple[float | None, bool]]]]:
    """(group, users, method to (main metric, whether it is the group's best)), best methods first."""
    rows = []
    known = list(GROUPS)
    order = sorted(protocol.groups, key=lambda name: known.index(name) if name in GROUPS else len(known))
    for name in order:
        group = protocol.groups[name]
        values = {m: group.methods.get(m, {}).get(MAIN_METRIC) for m in methods_table(protocol, [])}
        top = max((v for v in values.values() if v), default=None)
        rows.append((name, group.users, {m: (v, v is not None and v == top) for m, v in values.items()}))
    return rows


def inputs_table(groups: Mapping[str, InputGroup]) -> tuple[list[str], list[tuple[str, list[Estimate | None]]]]:
    """Names of the groups, and (input, loss of the main metric without it by group), the largest loss first.

    Photos, text and behaviour come before single methods.
    """
    names = [name for name in (EVERYONE, *INPUT_GROUPS, POOR_TEXT) if name in groups]
    if not names:
        return [], []
    lost = groups[names[0]].lost
    kinds = [name for name in INPUT_KINDS if name in lost]
    methods = sorted(lost.keys() - set(kinds), key=lambda name: (-lost[name][MAIN_METRIC].value, name))
    rows = [
        (name, [groups[group].lost[name][MAIN_METRIC] if name in groups[group].lost else None for group in names])
        for name in (*kinds, *methods)
    ]
    return names, rows


def photo_rows(groups: Mapping[str, InputGroup]) -> list[Interval]:
    """What photos are worth to each group, on one axis; empty if no method reads them."""
    measured = {name: group for name, group in groups.items() if PHOTOS in group.lost and name != POOR_TEXT}
    losses = {name: group.lost[PHOTOS][MAIN_METRIC] for name, group in measured.items()}
    bounds = [0.0, *(bound for each in losses.values() for bound in (each.low, each.high) if bound is not None)]
    low, width = min(bounds), max(max(bounds) - min(bounds), 1e-9)

    def at(value: float | None) -> float:
        return round(100 * ((value or 0.0) - low) / width, 2)

    return [
        Interval(name, measured[name].users, loss, at(loss.value), at(loss.low), at(loss.high), at(0.0))
        for name, loss in losses.items()
    ]


REFIT: Final = "After this measurement, what serves is fitted again on all interactions; no figure here measures that."


def held_out_sentence(stats: dict[str, Any], *, refit: bool) -> str | None:
    """The test items, from the stats of the sequences stage, and whether a refit follows; None without stats."""
    cut, drawn, users = (
        stats.get("cuts", {}).get("test"),
        stats.get("measured_users"),
        stats.get("test", {}).get("targets"),
    )
    if cut:
        tested = f"Tested on the first item of each user from {cut} on."
    elif "split" in stats:
        tested = "Tested on the last item of each user with three or more items."
    else:
        return None
    if drawn and drawn < users:
        tested += f" {drawn:,} of {users:,} such users are drawn."
    return f"{tested} {REFIT}" if refit else tested


def test_set_figures(metrics: Metrics) -> list[tuple[str, str]]:
    """(figure, description) of the test users, items and targets."""
    shares = [
        (metrics.share_repeat_targets, "of next items the user already has"),
        (metrics.share_cold, "of next items never seen in training"),
        (metrics.share_tied, "of next items have the timestamp of another"),
    ]
    counts = [(f"{metrics.users:,}", "test users"), (f"{metrics.items:,}", "items to choose from")]
    return counts + [(f"{100 * share:.1f}\u00a0%", text) for share, text in shares if share is not None]


def facts(stats: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of a stage's stats, without checksums, durations and what is false.

    Of a stage with a balance of rows, the balance and the profile are all that is shown: the other counts repeat them.
    """
    if "balance" in stats:
        shown = {name: stats["balance"].get(name) for name in ("read", "kept", "rejected", "dropped")}
    else:
        shown = {name: value for name, value in stats.items() if name != "profile"}
    rows: dict[str, str] = {}
    for key, value in (shown | stats.get("profile", {})).items():
        if _UNSHOWN.fullmatch(key) or value is None or value is False:
            continue
        if isinstance(value, dict):
            rows |= {f"{_words(key)}: {name}": text for name, text in facts(value)}
        else:
            rows[_words(key)] = _fact(key, value)
    return list(rows.items())


def _words(key: str) -> str:
    return FACTS.get(key, key.replace("_", " "))


def _fact(key: str, value: Any) -> str:
    if isinstance(value, float) and "share" in key:
        return f"{100 * value:.2f}\u00a0%"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format_number(value)
    return str(value)


def render_template(name: str, context: dict[str, Any]) -> str:
    """A page as text. Values are escaped in HTML, and an undefined name is an error."""
    return _templates().get_template(name).render(context)


@cache
def _templates() -> Environment:
    """The environment of the pages; it keeps templates, which take 30 ms or more to compile."""
    environment = Environment(
        loader=PackageLoader("pixrec_core.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "markdown_cell": markdown_cell}
    return environment
