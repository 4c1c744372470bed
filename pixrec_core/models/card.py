"""The model card of a checkpoint, as on the Hugging Face hub, from the record of its training."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from huggingface_hub import ModelCardData

INPUTS: Final = {
    "multimodal": "the texts and photos of items",
    "collaborative": "the texts and photos of items, and a learned vector of each item with training interactions",
    "text_only": "the texts of items, without photos",
    "image_only": "the photos of items, without texts",
    "shuffled_images": "the text of each item with the photo of another one, as a control experiment; do not serve it",
}

GET_STARTED: Final = {
    "items": """\
```python
from pixrec_core.models import checkpoint

model, encoders = checkpoint.load(folder)           # `ItemsTower`, and what makes its inputs
```""",
    "tokens": """\
```python
from pixrec_core.models.dual_tower import DualTower
from transformers import AutoImageProcessor, AutoTokenizer

model = DualTower.from_pretrained(folder)           # or transformers' AutoModel, after this import
tokenizer = AutoTokenizer.from_pretrained(folder)
image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
```""",
}

REFIT: Final = "These weights were fitted again on all interactions, those of validation and test included"

USES: Final = """\
The model ranks the items of one shop for users with at least one interaction there. It can also rank items without \
interactions, from their texts and photos."""

LIMITATIONS: Final = """\
The model does not use stock or the time of year. It reproduces biases of its training data, such as a preference for \
popular items, and it does not explain its recommendations. The validation metrics are optimistic, because they chose \
the epoch; see the evaluation on test users, which compares the model with baselines."""


def model_card(settings: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """README.md of a checkpoint, with the YAML metadata of the Hugging Face hub.

    Args:
        settings: `variant`, and the sections `model` and `training` as plain values.
        record: training record: `data` with counts per dataset, `epochs` with their metrics, `best_epoch`,
            `parameters`, `trained_parameters`, `backbone` and `started_from`; of a refit also `refit`, with its own
            `data` and `epochs`.
    """
    return "\n\n".join(
        [
            f"---\n{_metadata(settings, record).to_yaml()}\n---",
            f"# PixRec dual tower, {settings['variant']}",
            f"## Model details\n\n{_details(settings, record)}",
            f"## Uses\n\n{USES}",
            f"## Bias, risks and limitations\n\n{LIMITATIONS}",
            f"## How to get started with the model\n\n{GET_STARTED[settings['model']['user_encoder']]}",
            f"## Training data\n\n{_training_data(record)}",
            f"## Evaluation\n\n{_evaluation(settings, record)}",
            f"## Training hyperparameters\n\n{_hyperparameters(settings, record)}\n",
        ]
    )


def _metadata(settings: Mapping[str, Any], record: Mapping[str, Any]) -> ModelCardData:
    kind, name = record["backbone"]["kind"], record["backbone"]["name"]
    return ModelCardData(
        library_name="pixrec",
        base_model=name if kind == "hub" else None,
        tags=["recommendation", "next-item-prediction", "dual-tower", settings["variant"], *record["data"]],
    )


def _details(settings: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    backbone = record["backbone"]
    origin = {
        "frozen": f"frozen encoders of texts and photos ({backbone['name']})",
        "embedded": "the backbone `tiny`, trained from random weights with a tokenizer trained on the item texts",
        "folder": "a backbone from a local folder",
        "hub": f"the backbone `{backbone['name']}`, revision {backbone['revision']}",
    }[backbone["kind"]]
    form = {
        "tokens": "one causal vision-language backbone reads the whole history (PixRec, 2026; CALRec, RecSys 2024)",
        "items": "each item is encoded once, and the user's vector is made from item vectors",
    }[settings["model"]["user_encoder"]]
    started = record["started_from"]
    joint = f" Training started from a joint checkpoint of {', '.join(started['datasets'])}." if started else ""
    return (
        f"The model encodes users and items as vectors for next-item recommendation: {form}. Its inputs are "
        f"{INPUTS[settings['variant']]}. It uses {origin}.{joint} It has {record['parameters']:,} parameters, of which "
        f"{record['trained_parameters']:,} were trained."
    )


def _training_data(record: Mapping[str, Any]) -> str:
    refit = record.get("refit")
    columns = ["users", "examples", "items", "items_with_photo", *(["validation_users"] if refit is None else [])]
    data = (refit or record)["data"]
    rows = [(name, *(f"{counts[column]:,}" for column in columns)) for name, counts in data.items()]
    used = (
        "Training did not use the targets of validation and test."
        if refit is None
        else f"{REFIT}, for {len(refit['epochs'])} epochs and with the settings that validation chose."
    )
    return f"{_table(['dataset', *columns], rows)}\n\nAn example is a history and its next item. {used}"


def _evaluation(settings: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    epochs: Sequence[Mapping[str, float]] = record["epochs"]
    # Sorted, because a resumed training reads its first epochs from JSON, which has another order.
    columns = ["epoch", *sorted(epochs[0].keys() - {"epoch", "seconds"})]
    rows = [[f"{epoch[column]:.4g}" if column in epoch else "-" for column in columns] for epoch in epochs]
    metric = settings["training"]["metric_for_best_model"]
    several = " With several datasets, metrics are means over them." if len(record["data"]) > 1 else ""
    refit = record.get("refit")
    before = "" if refit is None else f"{REFIT}. They were not measured: the figures are of the training before.\n\n"
    of_weights = "The weights are" if refit is None else "Its weights were"
    return (
        f"{before}{_table(columns, rows)}\n\n"
        f"{of_weights} those of epoch {record['best_epoch']}, which has the best {metric} on validation users. "
        f"Targets are ranked among the whole catalogue, items of the history included.{several}"
    )


def _hyperparameters(settings: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """All settings, without the path of a local backbone folder."""
    model = settings["model"] | {"backbone": record["backbone"]["name"]}
    sections = {"model": model, "training": settings["training"]}
    rows = [(f"{name}.{key}", f"`{value}`") for name, section in sections.items() for key, value in section.items()]
    return _table(("setting", "value"), rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
