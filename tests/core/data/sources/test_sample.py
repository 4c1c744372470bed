"""The sample is reproducible, resembles real data with its faults, and does not describe looks in texts."""

import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pixrec_core.data.raw_files import fetch as fetch_stage
from pixrec_core.data.raw_files import locate
from pixrec_core.data.sample.catalogue import COLOURS, PATTERNS, Product
from pixrec_core.data.sample.shoppers import Purchase, purchases
from pixrec_core.data.sample.words import CATEGORIES
from pixrec_core.data.sources import RawFiles, sample
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import SourceSettings

OPTIONS = sample.Options(users=200, items=288, seed=7)

LOOK_WORDS = (
    "amber", "aqua", "beige", "black", "blue", "bright", "brown", "charcoal", "check", "checked", "checkered",
    "color", "colored", "colour", "coloured", "copper", "coral", "cream", "crimson", "cyan", "dark", "dot",
    "dots", "dotted", "gold", "golden", "gray", "green", "grey", "indigo", "ivory", "lavender", "lilac", "lime",
    "magenta", "maroon", "mint", "mustard", "navy", "ochre", "olive", "orange", "pattern", "patterned", "peach",
    "pink", "plain", "polka", "print", "printed", "purple", "red", "rose", "ruby", "scarlet", "silver", "solid",
    "spot", "spots", "spotted", "stripe", "striped", "stripes", "teal", "turquoise", "violet", "white",
    "yellow",
)  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> RawFiles:
    folder = tmp_path_factory.mktemp("sample")
    return sample.fetch(OPTIONS, folder, folder / "raw")


@pytest.fixture(scope="module")
def products() -> dict[str, Product]:
    return {product.item: product for product in sample.catalogue(OPTIONS)}


def lines_of(path: Path) -> list[bytes]:
    return gzip.decompress(path.read_bytes()).splitlines()


def records_of(path: Path) -> tuple[list[dict], int]:
    """Return records and the number of malformed lines."""
    records, malformed = [], 0
    for line in lines_of(path):
        try:
            records.append(json.loads(line))
        except ValueError:
            malformed += 1
    return records, malformed


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_fetching_again_gives_the_same_bytes_and_another_seed_others(tmp_path):
    options = sample.Options(users=20, items=48, seed=3)
    for name, seed in (("once", 3), ("again", 3), ("other", 4)):
        sample.fetch(options.model_copy(update={"seed": seed}), tmp_path, tmp_path / name)
    once, again, other = (bytes_below(tmp_path / name) for name in ("once", "again", "other"))
    assert once == again
    assert len(once) == 48 + 2
    assert once["reviews.jsonl.gz"] != other["reviews.jsonl.gz"]
    assert sample.watched(options, tmp_path) == []


def test_the_raw_stage_accepts_the_sample(tmp_path):
    paths = DatasetPaths.of(tmp_path, "sample")
    source = SourceSettings.model_validate({"kind": "sample", "users": 10, "items": 32})
    assert fetch_stage(source, tmp_path, paths)["source"] == "sample"
    assert locate(paths) == RawFiles(paths.raw / "reviews.jsonl.gz", paths.raw / "meta.jsonl.gz", photos=paths.raw)


@pytest.mark.parametrize("wrong", [{"items": 31}, {"users": 0}, {"sed": 1}])
def test_options_out_of_range_are_rejected(wrong):
    with pytest.raises(ValidationError):
        sample.Options.model_validate(wrong)


@pytest.mark.parametrize(("ours", "real"), [("reviews", "reviews.jsonl"), ("metadata", "meta.jsonl")])
def test_every_record_has_the_keys_of_real_ones_in_their_order(raw, shared_data, ours, real):
    line = (shared_data / "amazon-2023-lines" / real).read_text(encoding="utf-8").splitlines()[0]
    records, _ = records_of(getattr(raw, ours))
    assert {tuple(record) for record in records} == {tuple(json.loads(line))}


def test_image_entries_have_the_keys_of_real_ones(raw, shared_data):
    line = (shared_data / "amazon-2023-lines" / "meta.jsonl").read_text(encoding="utf-8").splitlines()[0]
    records, _ = records_of(raw.metadata)
    expected = tuple(json.loads(line)["images"][0])
    assert {tuple(image) for record in records for image in record["images"]} == {expected}


def test_texts_do_not_name_colours_or_patterns(raw):
    words = set()
    for path in (raw.metadata, raw.reviews):
        for record in records_of(path)[0]:
            text = json.dumps({key: value for key, value in record.items() if key != "images"})
            words |= set(re.findall(r"[a-z]+", text.lower()))
    assert words.isdisjoint(LOOK_WORDS)
    assert words.isdisjoint({*COLOURS, *PATTERNS})


def test_brands_are_independent_of_colours_and_titles_differ():
    """The mutual information of brand and colour is that of shuffled colours."""
    products = sample.catalogue(sample.Options(items=2000, seed=1))
    brands, colours = [p.brand for p in products], [p.colour for p in products]

    def information(xs: list[str], ys: list[str]) -> float:
        n, x, y = len(xs), Counter(xs), Counter(ys)
        return sum(c / n * np.log(c * n / (x[a] * y[b])) for (a, b), c in Counter(zip(xs, ys, strict=True)).items())

    rng = np.random.default_rng(0)
    by_chance = [information(brands, list(rng.permutation(colours))) for _ in range(50)]
    assert information(brands, colours) < max(by_chance)
    assert len({p.title for p in products}) > 0.75 * len(products)


def test_looks_are_spread_evenly_over_categories():
    kinds = Counter((p.category, p.colour, p.pattern) for p in sample.catalogue(OPTIONS))
    assert len(kinds) == len(CATEGORIES) * len(COLOURS) * len(PATTERNS) == 144
    assert set(kinds.values()) == {2}


def main_file(record: dict) -> str | None:
    urls = [image["large"] for image in record["images"] if image["variant"] == "MAIN"]
    return urls[0] if urls else None


def test_invalid_rows_of_the_metadata(raw, products):
    records, malformed = records_of(raw.metadata)
    items = [record["parent_asin"] for record in records]
    missing = [f for record in records if (f := main_file(record)) and not (raw.photos / f).is_file()]
    assert malformed / len(records) < 0.005
    assert malformed == 1
    assert set(items) == set(products)
    assert len(items) > len(set(items))
    assert any(not record["images"] for record in records)
    assert any(record["images"] and main_file(record) is None for record in records)
    assert any(image["hi_res"] is None for record in records for image in record["images"])
    assert any("&ndash;" in record["title"] and "<b>" in record["title"] for record in records)
    assert any(not record["categories"] for record in records)
    assert missing == ["images/gone.jpg"] * len(missing)
    assert len(set(missing)) == 1
    prices = [record["price"] for record in records]
    assert None in prices
    assert "" in prices
    assert any(isinstance(price, str) and re.fullmatch(r"from \d+\.99", price) for price in prices)
    assert sum(isinstance(price, float) for price in prices) > 0.7 * len(prices)


def test_invalid_rows_of_the_reviews(raw, products):
    records, malformed = records_of(raw.reviews)
    rows = Counter(json.dumps(record) for record in records)
    times = Counter((record["user_id"], record["timestamp"]) for record in records)
    assert malformed == 2
    assert malformed / len(records) < 0.005
    assert max(rows.values()) == 2
    assert 0 < sum(record["rating"] == 0 for record in records) < 0.01 * len(records)
    assert 0 < sum(record["parent_asin"] not in products for record in records) < 0.01 * len(records)
    assert 0.1 < sum(record["asin"] != record["parent_asin"] for record in records) / len(records) < 0.2
    assert max(times.values()) >= 2


def test_broken_utf8_is_among_the_malformed_lines(raw):
    with pytest.raises(UnicodeDecodeError):
        b"\n".join(lines_of(raw.reviews)).decode()


@pytest.fixture(scope="module")
def histories() -> list[list[Purchase]]:
    of_user = defaultdict(list)
    for purchase in purchases(sample.catalogue(OPTIONS), 500, seed=7):
        of_user[purchase.user].append(purchase)
    return list(of_user.values())


def test_users_buy_in_time_order_and_only_released_items(histories):
    assert len(histories) == 500
    for history in histories:
        assert 5 <= len(history) <= 14
        assert [p.timestamp for p in history] == sorted(p.timestamp for p in history)
        assert all(p.product.released <= p.timestamp for p in history)


def test_repeats_are_immediate(histories):
    repeats = 0
    for history in histories:
        items = [p.product.item for p in history]
        repeats += len(items) - len(set(items))
        assert all(items[i] == items[i - 1] for i in range(1, len(items)) if items[i] in items[:i])
    assert 0.02 < repeats / sum(map(len, histories)) < 0.06


def test_popularity_is_skewed_and_some_targets_are_cold(histories):
    counts = Counter(p.product.item for history in histories for p in history)
    top_tenth = sum(count for _, count in counts.most_common(len(counts) // 10))
    seen = {p.product.item for history in histories for p in history[:-2]}
    assert top_tenth / counts.total() > 0.2
    assert 0.01 < sum(history[-1].product.item not in seen for history in histories) / 500 < 0.15


Score = Callable[[Product, list[Product]], float]


def recall_at_10(histories: list[list[Purchase]], products: list[Product], score: Score) -> float:
    """Return the share of users whose last product is among the ten best unseen ones."""
    hits = 0
    for history in histories:
        owned, target = [p.product for p in history[:-1]], history[-1].product
        others = [p for p in products if p not in owned]
        hits += target in sorted(others, key=lambda p: score(p, owned), reverse=True)[:10]
    return hits / len(histories)


def recent_share(owned: list[Product], attribute: str, value: str) -> float:
    """Return the number of matches in the history, each step back with 0.8 times the weight."""
    return sum(0.8**age for age, p in enumerate(reversed(owned)) if getattr(p, attribute) == value)


def test_recommendations_by_look_are_much_better(histories):
    products = sample.catalogue(OPTIONS)
    counts = Counter(p.product.item for history in histories for p in history[:-2])

    def popularity(product: Product, _: list[Product]) -> float:
        return counts[product.item] + 0.5

    def category(product: Product, owned: list[Product]) -> float:
        same = 4 if owned[-1].category == product.category else 1
        return same * (0.3 + sum(p.category == product.category for p in owned)) * popularity(product, owned) ** 0.7

    def look(product: Product, owned: list[Product]) -> float:
        colour = recent_share(owned, "colour", product.colour)
        pattern = recent_share(owned, "pattern", product.pattern)
        return category(product, owned) * (0.05 + colour**2) * (0.1 + pattern**2)

    seeing, reading, counting = (recall_at_10(histories, products, s) for s in (look, category, popularity))
    assert counting < 0.15
    assert counting < reading < 0.3
    assert seeing > 0.45
    assert seeing > 2 * reading


def saturated(path: Path) -> np.ndarray:
    """Return the mean colour of a photo's saturated pixels, RGB, 0 to 255, without background, trim and pattern."""
    with Image.open(path) as image:
        assert image.size == (160, 160)
        pixels = np.asarray(image.convert("RGB"), dtype=float).reshape(-1, 3)
    spread = pixels.max(axis=1) - pixels.min(axis=1)
    return pixels[spread > 60].mean(axis=0)


def test_photos_show_the_colour(raw, products):
    """The nearest colour of the palette, regardless of brightness, is the product's."""
    palette = np.array(list(COLOURS.values()), dtype=float)
    names, right = list(COLOURS), 0

    def chromatic(rgb: np.ndarray) -> np.ndarray:
        return rgb / np.linalg.norm(rgb, axis=-1, keepdims=True)

    for product in products.values():
        mean = saturated(raw.photos / "images" / product.photo)
        right += names[np.argmin(np.linalg.norm(chromatic(palette) - chromatic(mean), axis=1))] == product.colour
    assert right / len(products) > 0.97


def test_photos_show_the_pattern(raw, products):
    """Patterns have edges: neighbouring pixels differ most in stripes and dots, and dots differ in both directions."""
    steps = {pattern: [] for pattern in PATTERNS}
    for product in products.values():
        if product.category == "cushion":
            with Image.open(raw.photos / "images" / product.photo) as image:
                centre = np.asarray(image.convert("L"), dtype=float)[50:110, 50:110]
            steps[product.pattern].append([np.abs(np.diff(centre, axis=axis)).mean() for axis in (0, 1)])
    down, across = ({p: np.mean(values, axis=0)[axis] for p, values in steps.items()} for axis in (0, 1))
    assert down["stripes"] > 5 * down["plain"]
    assert down["dots"] > 5 * down["plain"]
    assert across["dots"] > 5 * across["stripes"]
