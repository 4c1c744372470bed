"""A small model of each family with its true architecture and random weights, saved by `save_pretrained`.

The standard deviation of weights is large enough that positions, masks and images have an effect that tests can see:
with the usual 0.02, a small model hardly attends to anything.
"""

import json
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import set_seed

from pixrec_core import prompts
from pixrec_core.models.backbones import tiny

EDGE = 28  # pixels of a photo: two patches; twice as many for Qwen, which merges four patches into one token
STD = 0.25  # standard deviation of weights

#: Training texts of the tokenizers.
TEXTS = [prompts.FIRST, prompts.NEXT, "Title: Wool cushion Category: Home", "Title: Item number Category: Shop, Kind"]

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 8192,
    "initializer_range": STD,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "initializer_range": STD}
SIGLIP = VISION | {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": EDGE, "patch_size": 14}
QWEN = VISION | {"depth": 4, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}

#: Class of the image processor in the repositories of each family on the hub.
HUB_NAMES = {
    "smolvlm": "SmolVLMImageProcessor",
    "idefics3": "Idefics3ImageProcessor",
    "paligemma": "SiglipImageProcessor",
    "paligemma2": "SiglipImageProcessorFast",
    "qwen2_vl": "Qwen2VLImageProcessor",
    "qwen2_5_vl": "Qwen2VLImageProcessorFast",
    "qwen3_vl": "Qwen2VLImageProcessorFast",
    "llava": "CLIPImageProcessor",
}
FAMILIES = tuple(
    family for family in HUB_NAMES if family != "llava"
)  # llava has no module; it uses the general adapter


def save(family: str, folder: Path) -> None:
    """Save the model of a family with its tokenizer and image processor."""
    set_seed(0)
    tokenizer = _TOKENIZERS[family.partition("_")[0]]()
    model = _model(family, tokenizer)
    # Some families initialise layers with zeros or ones, which would hide errors.
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(parameter.data.mean().item(), 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _image_processor(family).save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_processor_type": HUB_NAMES[family]}))


def _model(family: str, tokenizer) -> transformers.PreTrainedModel:
    def token(text: str) -> int:
        return tokenizer.convert_tokens_to_ids(text)

    text = TEXT | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    match family:
        case "smolvlm" | "idefics3":
            name = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[family]
            config = getattr(transformers, f"{name}Config")(
                vision_config=SIGLIP | {"patch_size": 7},
                text_config=text | {"model_type": "llama", "eos_token_id": None},
                scale_factor=2,
                image_token_id=token(tiny.IMAGE),
                pad_token_id=tokenizer.pad_token_id,
            )
        case "paligemma" | "paligemma2":
            name = "PaliGemma"
            gemma = {"paligemma": "gemma", "paligemma2": "gemma2"}[family]
            capped = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0, "sliding_window": 64}
            config = transformers.PaliGemmaConfig(
                vision_config=SIGLIP | {"model_type": "siglip_vision_model", "vision_use_head": False},
                text_config=text | {"model_type": gemma} | (capped if family == "paligemma2" else {}),
                image_token_index=token("<image>"),
                projection_dim=text["hidden_size"],
                hidden_size=text["hidden_size"],
                vocab_size=len(tokenizer),
            )
        case "llava":
            name = "Llava"
            config = transformers.LlavaConfig(
                vision_config=SIGLIP | {"model_type": "clip_vision_model", "projection_dim": 32},
                text_config=text | {"model_type": "llama", "eos_token_id": None},
                image_token_index=token(tiny.IMAGE),
            )
        case _:
            name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
            width = {
                "qwen2_vl": {"embed_dim": 32, "hidden_size": text["hidden_size"], "mlp_ratio": 2},
                "qwen2_5_vl": {"out_hidden_size": text["hidden_size"], "fullatt_block_indexes": [1, 3]},
                "qwen3_vl": {"out_hidden_size": text["hidden_size"], "deepstack_visual_indexes": [0, 2]},
            }[family]
            config = getattr(transformers, f"{name}Config")(
                vision_config=QWEN | width,
                text_config=text | {"rope_parameters": MROPE},
                image_token_id=token("<|image_pad|>"),
                video_token_id=token("<|video_pad|>"),
                vision_start_token_id=token("<|vision_start|>"),
                vision_end_token_id=token("<|vision_end|>"),
            )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def _image_processor(family: str):
    match family:
        case "smolvlm" | "idefics3":
            edge = {"longest_edge": EDGE}
            name = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[family]
            return getattr(transformers, f"{name}ImageProcessorPil")(size=edge, max_image_size=edge)
        case "paligemma" | "paligemma2":
            return transformers.SiglipImageProcessorPil(size={"height": EDGE, "width": EDGE})
        case "llava":
            return transformers.CLIPImageProcessorPil(size={"shortest_edge": EDGE}, crop_size=EDGE)
        case _:
            pixels = {"shortest_edge": (2 * EDGE) ** 2, "longest_edge": (2 * EDGE) ** 2}
            return transformers.Qwen2VLImageProcessorPil(size=pixels, patch_size=14, merge_size=2)


def _smolvlm_tokenizer():
    return tiny._tokenizer(TEXTS)


def _gemma_tokenizer():
    """Like Gemma's, with byte fallback."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    spelled = [text.replace(" ", "▁") for text in TEXTS]
    alphabet = ["▁", "\n", *map(chr, range(33, 127))]
    vocabulary, merges = _train(spelled, None, special, alphabet)
    tokenizer = transformers.GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    return tokenizer


def _qwen_tokenizer():
    """Like Qwen's, byte-level."""
    words = transformers.Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    vocabulary, merges = _train(TEXTS, words, ["<|endoftext|>"], sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    markers = ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<|{marker}|>" for marker in markers]})
    return tokenizer


def _train(texts, words, special, alphabet) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a trained byte-pair encoding."""
    tokenizer = Tokenizer(models.BPE())
    if words:
        tokenizer.pre_tokenizer = words
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


_TOKENIZERS = {
    "smolvlm": _smolvlm_tokenizer,
    "idefics3": _smolvlm_tokenizer,
    "llava": _smolvlm_tokenizer,
    "paligemma": _gemma_tokenizer,
    "paligemma2": _gemma_tokenizer,
    "qwen2": _qwen_tokenizer,
    "qwen3": _qwen_tokenizer,
}
