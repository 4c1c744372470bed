"""Any Hugging Face model that encodes texts, photos or both, by hub name or local folder; frozen.

- Dual encoders (CLIP, SigLIP, SigLIP 2) encode both into one space.
- Text models are pooled as the `modules.json` of sentence-transformers says; without one, by the mean of all tokens.
- Vision models (ViT, DINOv2, ConvNeXt) give their pooled output, or the first token if the pooler was not trained.
- Vision-language models (Qwen3-VL-Embedding, SmolVLM) read a text or a photo within their chat template; the vector is
  the last hidden state of the last token, through the same adapters that train (`models.backbones`).

Only safetensors and GGUF are read, and no code of a model's folder is run. A saved encoder is a reference to the model,
with a digest of its files, so that weights of gigabytes are not copied.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixrec_core import files, hub
from pixrec_core.errors import ArtefactError, BackboneError
from pixrec_core.models.backbones import Processor, adapter_of
from pixrec_core.models.checkpoint import device
from pixrec_core.models.encoders.base import ENCODER_FILE, ItemEncoder, Modality, Vectors, unit_length
from pixrec_core.models.length_batches import length_batches, to_numpy
from pixrec_core.models.loading import create_backbone
from pixrec_core.pretrained import SAFE, check_folder

BATCH_TOKENS: Final = 2_048  # padded tokens of a batch
BATCH_PHOTOS: Final = 16
INSTRUCTION: Final = "Represent the user's input."  # of Qwen3-VL-Embedding
VERSION: Final = 2  # raised when the code computes other vectors with the same model
SETTINGS: Final = "model.text_encoder or model.photo_encoder"  # which name a model
LARGE: Final = 10_000_000  # weights; with fewer, bfloat16 costs more than it saves

_SAMPLE: Final = 1 << 20  # bytes at each end of a file of weights that its digest covers
_POOLINGS: Final = ("cls", "mean", "max", "lasttoken", "mean_sqrt_len", "weightedmean")


class HuggingFace(ItemEncoder):
    """A model, which each process loads when it first uses it.

    Args:
        name: name on the hub, or a local folder.
        commit: commit on the hub; None for a local folder.
        max_tokens: most tokens of a text, if the model has no lower limit.
        digest: digest of the model's files; computed by default.
    """

    def __init__(self, name: str, commit: str | None, max_tokens: int, digest: str | None = None) -> None:
        self.name, self.commit, self.max_tokens = name, commit, max_tokens
        self.digest = digest or digest_of(self._folder)

    @cached_property
    def _folder(self) -> Path:
        return hub.download_backbone(self.name, self.commit, SETTINGS)

    @cached_property
    def _network(self) -> "_Network":
        return _open(self.name, self._folder, self.max_tokens)

    @cached_property
    def modalities(self) -> frozenset[Modality]:  # type: ignore[override]
        return self._network.modalities

    @property
    def description(self) -> dict[str, Any]:
        return {
            "encoder": "hugging_face",
            "name": self.name,
            "commit": self.commit,
            "digest": self.digest,
            "max_tokens": self.max_tokens,
            "version": VERSION,
        }

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        rows = [row for row, text in enumerate(texts) if text.strip()]
        with self._network.precision():
            found = self._network.encode_texts([texts[row] for row in rows] or ["a"])
        vectors = np.zeros((len(texts), found.shape[1]), np.float32)
        vectors[rows] = unit_length(found[: len(rows)])
        return vectors

    def encode_photos(self, photos: Sequence[Image.Image]) -> Vectors:
        batches = [photos[start : start + BATCH_PHOTOS] for start in range(0, len(photos), BATCH_PHOTOS)]
        with self._network.precision():
            found = [self._network.encode_photos(batch) for batch in batches]
        return unit_length(np.concatenate(found) if found else np.zeros((0, self.dimensions["photo"])))

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("name", "commit", "max_tokens", "digest")}


def create(name: str, _texts: Callable[[], Sequence[str]], max_tokens: int) -> ItemEncoder:
    """Return the encoder of a hub name or local folder.

    Raises:
        BackboneError: the model was not found, or PixRec cannot use it.
    """
    return HuggingFace(name, hub.resolve_commit(name, None, SETTINGS), max_tokens)


def load(folder: Path) -> ItemEncoder:
    """Return the encoder that a saved one refers to.

    Raises:
        MissingArtefactError: the folder holds none.
        ArtefactError: the files of the model have changed.
        BackboneError: the model was not found.
    """
    saved = files.read_json(folder / ENCODER_FILE)
    encoder = HuggingFace(saved["name"], saved["commit"], saved["max_tokens"])
    check_digest(encoder, saved["digest"])
    return encoder


def check_digest(encoder: HuggingFace, saved: str) -> None:
    """Raise an ArtefactError if the files of a model are not those that encoded the items."""
    if encoder.digest != saved:
        raise ArtefactError(
            f"the model {encoder.name!r} is not the one that encoded the items: its files have changed. Restore them, "
            "or run the stage `item_features` and those after it again"
        )


def digest_of(folder: Path) -> str:
    """Return a hash of a model's files: of names, sizes, all small files, and both ends of large ones."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in {".json", ".txt", ".safetensors", ".gguf"}):
        size = path.stat().st_size
        with path.open("rb") as file:
            content = file.read(_SAMPLE)
            file.seek(max(_SAMPLE, size - _SAMPLE))
            content += file.read()
        digest.update(f"{path.relative_to(folder)} {size} ".encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


class _Network:
    """A loaded model; vectors have any length."""

    modalities: frozenset[Modality]
    model: Any

    def precision(self) -> torch.autocast:
        """Return the context of encoding: matrix products in bfloat16 if the model is large and the device has them.

        CPUs without these instructions emulate them, which is slow.
        """
        name = self.model.device.type
        supported = torch.cuda.is_bf16_supported() if name == "cuda" else torch.cpu._is_avx512_bf16_supported()
        return torch.autocast(name, torch.bfloat16, enabled=supported and self.model.num_parameters() > LARGE)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        raise NotImplementedError

    def encode_photos(self, photos: Sequence[Image.Image]) -> Vectors:
        raise NotImplementedError


class _TextModel(_Network):
    """A text model with the pooling of sentence-transformers.

    Args:
        folder: a folder of sentence-transformers, which may have the model in a subfolder, or the folder of a model.
        modules: content of modules.json; empty without one.
        model: a model of transformers.
        options: further arguments of `from_pretrained`.
        max_tokens: most tokens of a text, if the model has no lower limit.
    """

    modalities: frozenset[Modality] = frozenset({"text"})

    def __init__(
        self, folder: Path, modules: Sequence[dict[str, Any]], model: Any, options: dict[str, Any], max_tokens: int
    ) -> None:
        from transformers import AutoTokenizer

        inner = folder / (modules[0]["path"] if modules else "")
        self.model, self.layers = model, list[Callable[[Tensor], Tensor]]()
        self.tokenizer = AutoTokenizer.from_pretrained(inner, **options)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        limits = [max_tokens, self.tokenizer.model_max_length]
        positions = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
        padding = getattr(positions, "padding_idx", None)
        unused = 0 if padding is None else padding + 1  # RoBERTa counts positions from the one behind that of padding
        limits.append((getattr(model.config, "max_position_embeddings", None) or max_tokens) - unused)
        limit_file = inner / "sentence_bert_config.json"
        limits.append((files.read_json(limit_file) if limit_file.exists() else {}).get("max_seq_length") or max_tokens)
        self.max_tokens = min(limits)
        self.prefix, self.pooling = _prefix(folder), "mean"
        for module in modules[1:]:
            kind, path = module["type"].rpartition(".")[2], folder / module["path"]
            if kind == "Pooling":
                self.pooling = _pooling(path)
            elif kind == "Dense":
                self.layers.append(_dense(path).to(model.device))
            elif kind != "Normalize":  # all vectors get unit length
                raise BackboneError(
                    f"{folder} has a module {kind} in modules.json; PixRec has Pooling, Dense and Normalize"
                )

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        texts = [self.prefix + text for text in texts]
        ids = self.tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]

        def encode(rows: Sequence[list[int]]) -> Tensor:
            batch = self.tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
            batch = batch.to(self.model.device)
            states = self.model(**batch).last_hidden_state
            vectors = pool(states, batch["attention_mask"], self.pooling)
            for layer in self.layers:
                vectors = layer(vectors)
            return vectors

        return _encode_by_length(encode, ids)


class _DualEncoder(_Network):
    """A model with one vector space for texts and photos."""

    modalities: frozenset[Modality] = frozenset({"text", "photo"})

    def __init__(self, folder: Path, model: Any, max_tokens: int) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        self.model = model
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **SAFE)
        self.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **SAFE)
        self.longest = int(model.config.text_config.max_position_embeddings)
        self.max_tokens = min(max_tokens, self.longest)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        # SigLIP was trained on texts padded to one length, without a mask: its vector is the last state.
        fixed = self.model.config.model_type.startswith("siglip")

        def encode(rows: Sequence[list[int]]) -> Tensor:
            padding = {"padding": "max_length", "max_length": self.longest} if fixed else {}
            batch = self.tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt", **padding)
            mask = {} if fixed else {"attention_mask": batch["attention_mask"].to(self.model.device)}
            return _tensor(self.model.get_text_features(input_ids=batch["input_ids"].to(self.model.device), **mask))

        return _encode_by_length(encode, ids)

    @torch.inference_mode()
    def encode_photos(self, photos: Sequence[Image.Image]) -> Vectors:
        inputs = self.image_processor(list(photos), return_tensors="pt").to(self.model.device)
        return to_numpy(_tensor(self.model.get_image_features(**inputs)))


class _VisionModel(_Network):
    """A model of photos; `has_pooler` is whether its pooled output was trained."""

    modalities: frozenset[Modality] = frozenset({"photo"})

    def __init__(self, folder: Path, model: Any, *, has_pooler: bool) -> None:
        from transformers import AutoImageProcessor

        self.model, self.has_pooler = model, has_pooler
        self.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **SAFE)

    @torch.inference_mode()
    def encode_photos(self, photos: Sequence[Image.Image]) -> Vectors:
        inputs = self.image_processor(list(photos), return_tensors="pt").to(self.model.device)
        output = self.model(**inputs)
        pooled = getattr(output, "pooler_output", None) if self.has_pooler else None
        if pooled is None:
            states = output.last_hidden_state
            pooled = states.mean(dim=(2, 3)) if states.dim() == 4 else states[:, 0]
        return to_numpy(pooled.flatten(1))


class _VisionLanguageModel(_Network):
    """A causal vision-language model."""

    modalities: frozenset[Modality] = frozenset({"text", "photo"})

    def __init__(self, model: Any, processor: Processor, max_tokens: int) -> None:
        self.model, self.adapter, self.processor, self.max_tokens = model, adapter_of(model), processor, max_tokens
        self.before, self.after = _chat(processor)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        ids = [[*self.before, *self.processor.text_ids(text)[: self.max_tokens], *self.after] for text in texts]
        return _encode_by_length(lambda rows: self._last_states(rows, None), ids)

    @torch.inference_mode()
    def encode_photos(self, photos: Sequence[Image.Image]) -> Vectors:
        pixels = torch.cat([self.processor.pixels(photo) for photo in photos]).to(self.adapter.model.device)
        features = self.adapter.features(self.processor.image_inputs(pixels, len(photos)))
        start, end = self.processor.around_image()
        before, after = [*self.before, *start], [*end, *self.after]
        row = [*before, *[self.processor.image_token_id] * features.shape[1], *after]
        return to_numpy(self._last_states([row] * len(photos), features, len(before)))

    def _last_states(self, rows: Sequence[list[int]], features: Tensor | None, first: int = 0) -> Tensor:
        """Return (B, H) states of the last tokens; the placeholders of photo n are in row n, from token `first`."""
        device = self.adapter.model.device
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        index = torch.full_like(ids, -1)
        if features is not None:
            index[:, first : first + features.shape[1]] = torch.arange(features[..., 0].numel()).view(len(rows), -1)
        states = self.adapter.hidden_states(ids.to(device), index.to(device), features)
        return states[torch.arange(len(rows)), lengths - 1]


def _open(name: str, folder: Path, max_tokens: int) -> _Network:
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as VISION_LANGUAGE

    try:
        modules = _modules(folder)
        inner = folder / (modules[0]["path"] if modules else "")
        options = _options(inner)
        if "gguf_file" not in options:
            check_folder(inner)
        config = AutoConfig.from_pretrained(inner, **options)
        if config.model_type in VISION_LANGUAGE:
            backbone, processor = create_backbone(str(inner), None, list)
            return _VisionLanguageModel(backbone.eval().to(device()), processor, max_tokens)
        weights = {} if "gguf_file" in options else {"use_safetensors": True}
        model, loading = AutoModel.from_pretrained(
            inner, dtype="float32", output_loading_info=True, **options, **weights
        )
        missing = {key for key in loading["missing_keys"] if "pooler" not in key}
        if missing:
            raise ValueError(f"weights are missing: {', '.join(sorted(missing)[:3])}")
        model = model.eval().to(device())
        if hasattr(model, "get_text_features"):
            return _DualEncoder(inner, model, max_tokens)
        if model.main_input_name == "pixel_values":
            return _VisionModel(inner, model, has_pooler=not loading["missing_keys"])
        network = _TextModel(folder, modules, model, options, max_tokens)
        network.encode_texts(["a"])  # fails here if the model needs more than tokens, as T5 does
        return network
    except Exception as error:  # transformers raises anything for the files of others
        first_line = str(error).strip().split("\n")[0]
        raise BackboneError(
            f"encoder {name!r} could not be loaded ({type(error).__name__}: {first_line}). Set model.text_encoder or "
            "model.photo_encoder to a member such as `lsa` or `cnn`, or to the hub name or local folder of a text, "
            "vision or vision-language model with config.json, safetensors and a fast tokenizer or "
            "preprocessor_config.json. PixRec does not read pickled weights and does not run code from a model's folder"
        ) from error


def _modules(folder: Path) -> list[dict[str, Any]]:
    """Return the modules of a folder of sentence-transformers; none for another folder."""
    path = folder / "modules.json"
    modules: list[dict[str, Any]] = files.read_json(path) if path.exists() else []
    for module in modules:
        parts = Path(module["path"]).parts
        if ".." in parts or Path(module["path"]).is_absolute():
            raise ValueError(f"{path} names the folder {module['path']!r}, which is not in it")
    return modules


def _options(folder: Path) -> dict[str, Any]:
    """Return arguments of `from_pretrained`: a folder without config.json may have one GGUF file."""
    found = [] if (folder / "config.json").exists() else [path.name for path in folder.glob("*.gguf")]
    return SAFE | ({"gguf_file": found[0]} if len(found) == 1 else {})


def _prefix(folder: Path) -> str:
    """Return the default prompt of sentence-transformers, which stands before every text."""
    path = folder / "config_sentence_transformers.json"
    settings = files.read_json(path) if path.exists() else {}
    return str((settings.get("prompts") or {}).get(settings.get("default_prompt_name"), ""))


def _pooling(folder: Path) -> str:
    """Return the pooling in a folder of sentence-transformers, in either form of its configuration."""
    settings = files.read_json(folder / "config.json")
    long_names = {"pooling_mode_" + name + suffix: name for name in _POOLINGS for suffix in ("", "_token", "_tokens")}
    found = [settings["pooling_mode"]] if "pooling_mode" in settings else []
    found += [name for key, name in long_names.items() if settings.get(key) is True]
    if len(found) != 1 or found[0] not in _POOLINGS:
        raise BackboneError(
            f"{folder / 'config.json'} has the pooling {found}; PixRec has one of {', '.join(_POOLINGS)}"
        )
    return str(found[0])


def _dense(folder: Path) -> torch.nn.Module:
    """Return a linear layer of sentence-transformers with its activation."""
    from safetensors.torch import load_file

    settings = files.read_json(folder / "config.json")
    weights = load_file(folder / "model.safetensors")
    size, inputs = weights["linear.weight"].shape
    linear = torch.nn.Linear(inputs, size, "linear.bias" in weights)
    linear.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in weights.items()})
    activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh").rpartition(".")[2]
    if activation not in {"Tanh", "Identity", "GELU", "ReLU"}:
        raise BackboneError(f"{folder / 'config.json'} has the activation {activation}; PixRec has Tanh, GELU and ReLU")
    return torch.nn.Sequential(linear, getattr(torch.nn, activation)()).eval()


def _chat(processor: Processor) -> tuple[list[int], list[int]]:
    """Return the token ids before and after a user's input: the chat template, or else the start token alone."""
    if not getattr(processor.tokenizer, "chat_template", None):
        return processor.start_ids, []
    mark = "\ue000"  # a character of private use, which no template contains
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": mark}]
    text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, found, after = text.partition(mark)
    if not found:
        return processor.start_ids, []
    ids = [processor.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after)]
    return ids[0], ids[1]


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool the last hidden states (B, L, H) of right-padded texts to (B, H), as sentence-transformers' Pooling does.

    `mask` (B, L) is 1 for a token and 0 for padding; `pooling` is one of `_POOLINGS`.
    """
    if pooling == "cls":
        return states[:, 0]
    if pooling == "lasttoken":
        return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]
    if pooling == "max":
        return states.masked_fill(mask[..., None] == 0, -torch.inf).amax(dim=1)
    weights = mask.to(states.dtype)
    if pooling == "weightedmean":
        weights = weights * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    sums, total = (states * weights[..., None]).sum(dim=1), weights.sum(dim=1, keepdim=True)
    return sums / (total.sqrt() if pooling == "mean_sqrt_len" else total)


@torch.inference_mode()
def _encode_by_length(encode: Callable[[Sequence[list[int]]], Tensor], rows: Sequence[list[int]]) -> Vectors:
    """Return the vectors of rows of token ids in their order; rows of similar length are encoded together."""
    batches = length_batches([len(row) for row in rows], BATCH_TOKENS)
    vectors = [to_numpy(encode([rows[row] for row in batch])) for batch in batches]
    return np.concatenate(vectors)[np.argsort(np.concatenate(batches))]


def _tensor(output: Any) -> Tensor:
    """Return the pooled output of `get_text_features` and `get_image_features`, which some versions wrap."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
