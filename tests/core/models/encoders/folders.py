"""Small embedding models of every kind with random weights, saved as on the hub."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import set_seed

from pixrec_core.models.backbones import tiny
from tests.core.models import families

TEXTS = ["Wool scarf, red", "wool SCARF", "Garden hose", "A long text about a garden hose " * 20]
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = SIZE | {"image_size": 28, "patch_size": 14, "initializer_range": 0.25}
ST = "sentence_transformers.models."


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    return tiny._tokenizer(TEXTS)


def text_config(vocabulary: int) -> dict:
    return SIZE | {
        "vocab_size": vocabulary,
        "max_position_embeddings": 64,
        "initializer_range": 0.25,
        "pad_token_id": 0,
    }


def save_text(folder: Path, kind: str) -> None:
    words = tokenizer()
    config = text_config(len(words)) | ({"num_key_value_heads": 1} if kind == "Llama" else {})
    getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config)).save_pretrained(folder)
    words.save_pretrained(folder)


def save_sentence_transformer(folder: Path) -> None:
    """BERT with a prompt, the first token as pooling, a dense layer and normalisation."""
    save_text(folder, "Bert")
    kinds = ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")
    modules = [{"idx": n, "name": str(n), "path": path, "type": ST + kind} for n, (path, kind) in enumerate(kinds)]
    settings = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 16},
        "config_sentence_transformers.json": {"prompts": {"item": "garden "}, "default_prompt_name": "item"},
        "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        "2_Dense/config.json": {"in_features": 32, "out_features": 12, "bias": True},
    }
    for name, content in settings.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    weights = {"linear.weight": torch.randn(12, 32), "linear.bias": torch.randn(12)}
    save_file(weights, folder / "2_Dense" / "model.safetensors")


def save_vision(folder: Path, kind: str) -> None:
    if kind == "ConvNext":
        config = transformers.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=28)
        processor = transformers.ConvNextImageProcessorPil(size={"shortest_edge": 28}, crop_pct=1.0)
        transformers.ConvNextModel(config).save_pretrained(folder)
    else:
        # A classifier has no pooler: its first token is what was trained.
        transformers.ViTForImageClassification(transformers.ViTConfig(**VISION)).save_pretrained(folder)
        processor = transformers.ViTImageProcessorPil(size={"height": 28, "width": 28})
    processor.save_pretrained(folder)


def save_dual(folder: Path, kind: str) -> None:
    words = tokenizer()
    text = text_config(len(words)) | {"max_position_embeddings": 24, "eos_token_id": 1, "bos_token_id": 2}
    text |= {"projection_size": 32} if kind == "Siglip" else {}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=VISION)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    words.save_pretrained(folder)
    size = {"height": 28, "width": 28}
    getattr(transformers, f"{kind}ImageProcessorPil")(
        size=size, **({"crop_size": size} if kind == "CLIP" else {})
    ).save_pretrained(folder)


def save_vision_language(folder: Path, family: str) -> None:
    families.save(family, folder)
    template = (
        "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    if family == "qwen3_vl":
        (folder / "chat_template.jinja").write_text(template)


FOLDERS: dict[str, Callable[[Path], None]] = {
    "bert": lambda folder: save_text(folder, "Bert"),
    "llama": lambda folder: save_text(folder, "Llama"),
    "sentence_transformer": save_sentence_transformer,
    "vit": lambda folder: save_vision(folder, "ViT"),
    "convnext": lambda folder: save_vision(folder, "ConvNext"),
    "clip": lambda folder: save_dual(folder, "CLIP"),
    "siglip": lambda folder: save_dual(folder, "Siglip"),
    "smolvlm": lambda folder: save_vision_language(folder, "smolvlm"),
    "qwen3_vl": lambda folder: save_vision_language(folder, "qwen3_vl"),
}


def save(name: str, folder: Path) -> Path:
    set_seed(0)
    folder.mkdir()
    FOLDERS[name](folder)
    return folder
