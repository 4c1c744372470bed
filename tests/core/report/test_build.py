import base64
import io
import re
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from pixrec_core import files
from pixrec_core.errors import ArtefactError, MissingArtefactError
from pixrec_core.paths import DatasetPaths
from pixrec_core.report.build import build_report
from pixrec_core.report.inputs import read_inputs
from tests.core.photo_bytes import with_size
from tests.core.report import example
from tests.core.report.html_page import Page

BOTH = ("multimodal", "text_only")


def page(paths: DatasetPaths, variants: tuple[str, ...] = BOTH) -> Page:
    return Page(Path(build_report("shop", paths, variants)["html"]).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[DatasetPaths, dict, str]:
    """A dataset with a report that no test changes, the stats of its stage, and its HTML."""
    paths = example.write_all(DatasetPaths(tmp_path_factory.mktemp("built") / "a [b] folder" / "shop"))
    stats = build_report("shop", paths, BOTH)
    return paths, stats, (paths.report / "index.html").read_text(encoding="utf-8")


def test_the_stats_of_the_stage(built):
    paths, stats, _ = built
    assert stats["html_bytes"] == (paths.report / "index.html").stat().st_size
    assert stats["users_shown"] == 6
    assert stats["unreadable_photos"] == 0
    assert stats["multimodal Recall@10"] == 0.14
    assert stats["verdict"].startswith("Better with photos")
    assert sorted(p.name for p in paths.report.iterdir()) == ["index.html", "report.md"]


def test_same_inputs_same_bytes(paths):
    build_report("shop", paths, BOTH)
    before = {p.name: p.read_bytes() for p in paths.report.iterdir()}
    build_report("shop", paths, BOTH)
    assert before == {p.name: p.read_bytes() for p in paths.report.iterdir()}


def test_hostile_titles_stay_text(built):
    read = Page(built[2])
    assert "script" not in read.elements
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    printable = {
        **example.HOSTILE,
        "i03": "x" * 200 + "…",
        "i04": "i04",  # an id replaces a missing title
        "i06": "two lines and a bell",
    }
    history = example.BOUGHT["u0"][:-1][-8:]
    assert {printable[item] for item in history} <= read.titles
    assert {printable[item] for item in history} <= {image["alt"] for image in read.images}
    assert printable["i00"] in read.titles  # it is in the list of u1


def test_the_page_is_self_contained(built):
    read = Page(built[2])
    assert not {"script", "iframe", "object"} & set(read.elements)
    assert [
        value for name, value in read.attributes if name == "href" and not str(value).startswith(("#", "data:"))
    ] == []
    for image in read.images:
        head, _, body = str(image["src"]).partition(",")
        assert head == "data:image/jpeg;base64"
        assert max(Image.open(io.BytesIO(base64.b64decode(body))).size) == 96


def test_ids_are_unique_and_found(built):
    html = built[2]
    attributes = Page(html).attributes
    ids = [value for name, value in attributes if name == "id"]
    wanted = {str(v)[1:] for name, v in attributes if name in ("href", "xlink:href") and str(v).startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert wanted <= set(ids)
    sections = [i for i in ids if i in {"methods", "ablation", "users", "neighbours", "groups", "training", "data"}]
    assert len(sections) == len(set(sections)) == 7


def test_shows_the_data(built):
    text = Page(built[2]).text
    for fact in (
        "1970-01-01 to 1970-01-02",
        "1,234",
        "12.50 %",
        "reasons: no title",
        "Search index of Multimodal kind hnsw share of the exact top 10 found 0.9625 measured with 6 validation users",
        "✓ passed",
        "✗ failed (warning)",
    ):
        assert fact in text
    assert "ab12" not in text
    assert "2,345,678 parameters" in text
    assert "pixrec run shop" in text


@pytest.mark.parametrize(("source", "banner"), [("sample", True), ("tables", False)])
def test_synthetic_data_is_marked(paths, source, banner):
    example.write_counts(paths, source)
    assert ("Synthetic data." in page(paths).text) is banner
    assert ("Synthetic data." in (paths.report / "report.md").read_text(encoding="utf-8")) is banner


def test_markdown_has_the_headline(built):
    text = (built[0].report / "report.md").read_text(encoding="utf-8")
    assert "| co_occurrence | **20.00** (19.00 \N{EN DASH} 21.00) |" in text
    assert "| multimodal | 14.00 (13.00 \N{EN DASH} 15.00) |" in text
    times = "\N{MULTIPLICATION SIGN}1.40"
    assert f"Recall@10 of text and photos relative to text alone: {times} measured, {times} in the paper" in text


def test_a_variant_that_was_not_trained(tmp_path):
    paths = DatasetPaths(tmp_path / "shop")
    example.write_metrics(paths, ["popularity", "multimodal"])
    example.write_sequences(paths, example.BOUGHT)
    example.write_ranking(paths, "multimodal", example.RANKED["multimodal"])
    text = page(paths, ("multimodal",)).text
    assert "The effect of photos was not measured" in text
    assert "Found only with photos" not in text
    assert "Multimodal is the best of 2 methods: ten recommendations contain the next item for 14.00 % of users" in text


def test_metrics_and_sequences_are_enough(tmp_path):
    paths = DatasetPaths(tmp_path / "shop")
    example.write_metrics(paths)
    example.write_sequences(paths, example.BOUGHT)
    read = page(paths)
    assert read.images == []
    for line in ("No variant has ranked", "No item vectors", "No epochs", "No checks"):
        assert line in read.text


def test_no_photos_at_all(paths):
    for item in example.ITEMS:
        files.remove(paths.image(item))
    read = page(paths)
    assert read.images == []
    assert "<script>alert('hi')</script>" in read.text  # the placeholder has the title


def test_a_damaged_photo_is_counted_and_left_out(paths):
    jpeg = paths.image("i08").read_bytes()
    for damaged in (b"<html>404</html>", with_size(jpeg, 65_500)):
        paths.image("i08").write_bytes(damaged)
        assert build_report("shop", paths, BOTH)["unreadable_photos"] == 1


def test_no_users_at_all(paths):
    metrics = files.read_json(paths.metrics)
    empty = {"users": 0, "left_out": 6, "methods": {}, "groups": {}, "paired": []}
    files.write_json(paths.metrics, metrics | {"protocols": {"seen_allowed": empty}})
    text = page(paths).text
    assert "No method found the next item" in text
    assert "No groups were evaluated" in text


def test_timestamps_outside_the_calendar(paths):
    pl.DataFrame({"timestamp": [-(10**15), 10**15]}).write_parquet(paths.interactions)
    assert "33658" in page(paths).text


def test_before_evaluation(tmp_path):
    with pytest.raises(MissingArtefactError, match=r"metrics\.json"):
        build_report("shop", DatasetPaths(tmp_path), BOTH)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is damaged"), ("{}", "users: Field required"), ('{"users": "many"}', "users: Input should be a valid int")],
)
def test_damaged_metrics_are_named(paths, content, message):
    paths.metrics.write_text(content)
    with pytest.raises(ArtefactError, match=rf"metrics\.json.*{message}"):
        build_report("shop", paths, BOTH)


def test_a_failed_build_leaves_the_old_page(paths):
    build_report("shop", paths, BOTH)
    before = (paths.report / "index.html").read_bytes()
    paths.metrics.write_text("{")
    with pytest.raises(ArtefactError):
        build_report("shop", paths, BOTH)
    assert (paths.report / "index.html").read_bytes() == before


def test_shows_generative_rankings_with_their_speed(paths, monkeypatch):
    assert "Users per second" not in page(paths).text
    metrics = files.read_json(paths.metrics)
    speeds = {"dense": 1234.5, "beams": 7.654}
    monkeypatch.setattr(example, "RECALL", {"dense": 0.14, "beams": 0.12})
    protocols = {"seen_allowed": example.protocol(list(speeds))}
    generative = {"users": 4, "users_per_second": speeds, "protocols": protocols}
    files.write_json(paths.metrics, metrics | {"generative": {"multimodal": generative}})
    text = page(paths).text
    assert "Multimodal: generative rankings" in text
    assert "4 of the 6 test users" in text
    for words in ("Beams beam search over texts of the catalogue 12.00", "1,234", "7.65"):
        assert words in text
    markdown = (paths.report / "report.md").read_text()
    assert "| beams | 12.00 (11.00 \N{EN DASH} 13.00) | 12.00" in markdown
    assert "| 7.65 |" in markdown


def test_the_served_method_is_marked_and_shown_first(paths):
    example.write_promotion(paths, "text_only")
    html = Path(build_report("shop", paths, BOTH)["html"]).read_text(encoding="utf-8")
    text = Page(html).text
    assert "Text only serves: ten recommendations contain the next item for 10.00 % of users. Compared with" in text
    assert text.count("Text only serves PixRec, text only") == 4  # two protocols, each with all metrics too
    assert 'class="line-1 served"' in html
    lists = re.findall(r'<section class="list">\s*<h4>(.*?) <svg', html)
    assert lists[:2] == ["Text only", "Multimodal"]
    assert "| text_only (serves) |" in (paths.report / "report.md").read_text(encoding="utf-8")


def test_a_served_method_outside_the_ablation_is_shown_too(paths):
    example.write_promotion(paths, "collaborative")
    example.write_ranking(paths, "collaborative", example.RANKED["multimodal"])
    inputs = read_inputs("shop", paths, (*BOTH, "collaborative", "image_only"))
    assert (inputs.served, list(inputs.rankings)) == ("collaborative", ["collaborative", *BOTH])


def test_a_served_blend_is_shown_too(paths):
    example.write_promotion(paths, "blend")
    example.write_ranking(paths, "multimodal", example.RANKED["multimodal"])
    paths.blend.root.mkdir()
    paths.blend.ranking.write_bytes(paths.variant("text_only").ranking.read_bytes())
    inputs = read_inputs("shop", paths, BOTH)
    assert (inputs.served, list(inputs.rankings), list(inputs.training)) == ("blend", ["blend", *BOTH], [*BOTH])
    assert build_report("shop", paths, BOTH)["users_shown"]


def test_inputs_of_too_few_users_have_no_table(paths):
    metrics = files.read_json(paths.metrics)
    metrics["inputs"]["protocols"]["seen_filtered"] = {}
    files.write_json(paths.metrics, metrics)
    html = Path(build_report("shop", paths, BOTH)["html"]).read_text(encoding="utf-8")
    assert html.count("Not measured: too few users.") == 1
    assert html.count('aria-label="Worth of inputs"') == 1
    markdown = (paths.report / "report.md").read_text(encoding="utf-8")
    assert markdown.count("not measured, too few users.") == 1


def test_the_worth_of_inputs_is_on_both_pages(built):
    paths, _, html = built
    text = " ".join(html.split())
    assert "What each input is worth" in text
    assert "category: &lt;b&gt;|x" in text
    assert "category: <b>" not in text
    assert "svg" in Page(html).elements
    markdown = (paths.report / "report.md").read_text(encoding="utf-8")
    assert "| co_occurrence | +5.00 (+2.00 to +8.00) | +5.00 (+2.00 to +8.00) |" in markdown
    assert "| category: &lt;b>\\|x | 40 | \N{MINUS SIGN}2.00" in markdown
