"""The model card of a checkpoint: a pure function of what its training recorded."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from huggingface_hub import ModelCardData

READS: Final = {
    "multimodal": "texts and photos",
    "collaborative": "texts, photos, and a learned vector of each item that was trained on",
    "text_only": "texts alone",
    "image_only": "photos alone",
    "shuffled_images": "texts, each with another item's photo: a control, not for use",
}

USE: Final = """\
```python
from pixrec_core.models.dual_tower import DualTower
from transformers import AutoImageProcessor, AutoTokenizer

model = DualTower.from_pretrained(folder)           # or transformers' AutoModel, after this import
tokenizer = AutoTokenizer.from_pretrained(folder)
image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
```"""

LIMITS: Final = """\
It ranks items of a shop for people with at least one purchase or review there. It knows no price, stock or time \
of year, repeats whatever its data favour, and says nothing about why. The validation chose the epoch and so \
flatters it; what the model is worth stands in the evaluation on the test targets, beside baselines to beat."""


def model_card(settings: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """README.md of a checkpoint, with the metadata header of the Hugging Face hub.

    Args:
        settings: `variant`, and the sections `model` and `training` as plain values.
        record: `data` counts a dataset, `epochs` with their curves, `best_epoch`, `parameters`,
            `trained_parameters`, `backbone` and `started_from`.
    """
    return "\n\n".join(
        [
            f"---\n{_header(settings, record).to_yaml()}\n---",
            f"# PixRec dual tower, {settings['variant']}",
            _what(settings, record),
            f"## Data\n\n{_data(record)}",
            f"## Validation\n\n{_validation(settings, record)}",
            f"## Settings\n\n{_settings(settings, record)}",
            f"## Use\n\n{USE}",
            f"## Intended use and limits\n\n{LIMITS}\n",
        ]
    )


def _header(settings: Mapping[str, Any], record: Mapping[str, Any]) -> ModelCardData:
    kind, name = record["backbone"]["kind"], record["backbone"]["name"]
    return ModelCardData(
        library_name="pixrec",
        base_model=name if kind == "hub" else None,
        tags=["recommendation", "next-item-prediction", "dual-tower", settings["variant"], *record["data"]],
    )


def _what(settings: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    backbone = record["backbone"]
    origin = {
        "embedded": "the embedded backbone `tiny`, its weights begun from chance and its tokenizer from training texts",
        "folder": "a backbone from a local folder",
        "hub": f"the backbone `{backbone['name']}`, revision {backbone['revision']}",
    }[backbone["kind"]]
    started = record["started_from"]
    joint = f" It started from a joint training on {', '.join(started['datasets'])}." if started else ""
    return (
        "User and item vectors for next-item recommendation from one causal vision-language backbone (PixRec, 2026; "
        f"CALRec, RecSys 2024). It reads {READS[settings['variant']]}, on {origin}.{joint} It has "
        f"{record['parameters']:,} parameters, of which {record['trained_parameters']:,} were trained here."
    )


def _data(record: Mapping[str, Any]) -> str:
    columns = ("users", "examples", "items", "items_with_photo", "validation_users")
    rows = [(name, *(f"{counts[column]:,}" for column in columns)) for name, counts in record["data"].items()]
    return (
        f"{_table(('dataset', *columns), rows)}\n\n"
        "An example is a history and its next item. The targets of validation and test were kept from training; the "
        "validation below chose the epoch."
    )


def _validation(settings: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    epochs: Sequence[Mapping[str, float]] = record["epochs"]
    columns = [name for name in epochs[0] if name != "seconds"]
    rows = [[f"{epoch[column]:.4g}" if column in epoch else "-" for column in columns] for epoch in epochs]
    several = "; with several datasets, the mean over them" if len(record["data"]) > 1 else ""
    return (
        f"{_table(columns, rows)}\n\n"
        f"The weights are those of epoch {record['best_epoch']}, the best by {settings['training']['metric_for_best_model']}. Ranks "
        f"are among the whole catalogue, items of the history included{several}."
    )


def _settings(settings: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Every setting; a folder of the machine that trained it is nobody else's business."""
    model = settings["model"] | {"backbone": record["backbone"]["name"]}
    sections = {"model": model, "training": settings["training"]}
    rows = [(f"{name}.{key}", f"`{value}`") for name, section in sections.items() for key, value in section.items()]
    return _table(("setting", "value"), rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
