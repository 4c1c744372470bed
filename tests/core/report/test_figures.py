from xml.etree import ElementTree

from pixrec_core.report.figures import plot_curves
from pixrec_core.report.inputs import Training

RUN = Training(
    epochs=[
        {"epoch": 1, "loss": 2.0, "item_item": 0.0, "ndcg@10": 0.1},
        {"epoch": 2, "loss": 1.0, "item_item": 0.0, "ndcg@10": None},
    ],
    best_epoch=1,
)


def test_one_panel_per_recorded_term_that_is_not_always_0():
    assert [title for title, _ in plot_curves({"multimodal": RUN}, {"multimodal": 1})] == [
        "Validation NDCG@10",
        "Total loss (weighted)",
    ]


def test_without_epochs_there_are_no_panels():
    assert plot_curves({"multimodal": Training()}, {"multimodal": 1}) == []
    assert plot_curves({}, {}) == []


def test_svg_is_labelled_scalable_and_in_the_colours_of_the_page():
    svg = plot_curves({"multimodal": RUN, "text_only": RUN}, {"multimodal": 2, "text_only": 3})[1][1]
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == "Total loss (weighted)"
    assert root.get("viewBox")
    assert root.get("width") is root.get("height") is None
    assert {"var(--line-2)", "var(--line-3)", "currentColor"} <= {w.strip(" ;") for w in svg.replace('"', " ").split()}
    assert "var(--line-1)" not in svg
    assert "#0102" not in svg


def test_same_curves_same_bytes():
    assert plot_curves({"multimodal": RUN}, {"multimodal": 1}) == plot_curves({"multimodal": RUN}, {"multimodal": 1})
