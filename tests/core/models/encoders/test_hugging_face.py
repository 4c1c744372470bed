"""Vectors by hand and by the models' own functions, for one text or photo at a time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants
from PIL import Image

from pixrec_core.errors import BackboneError
from pixrec_core.models.encoders import create_encoder, hugging_face
from pixrec_core.models.encoders.base import unit_length
from tests.core.models.encoders.folders import TEXTS, save, save_text, tokenizer

STATES = torch.tensor([[[1.0, 2.0], [3.0, -4.0], [9.0, 9.0]], [[2.0, 0.0], [0.0, 0.0], [4.0, 6.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("cls", [[1, 2], [2, 0]]),
        ("lasttoken", [[3, -4], [4, 6]]),
        ("mean", [[2, -1], [2, 2]]),
        ("max", [[3, 2], [4, 6]]),
        ("mean_sqrt_len", [[4 / 2**0.5, -2 / 2**0.5], [6 / 3**0.5, 6 / 3**0.5]]),
        ("weightedmean", [[7 / 3, -2], [14 / 6, 3]]),
    ],
)
def test_poolings_by_hand(pooling: str, expected: list[list[float]]) -> None:
    torch.testing.assert_close(hugging_face.pool(STATES, MASK, pooling), torch.tensor(expected, dtype=torch.float32))


def encoder(name: str, tmp_path: Path, max_tokens: int = 32) -> tuple[hugging_face.HuggingFace, str]:
    folder = str(save(name, tmp_path / name))
    return hugging_face.HuggingFace(folder, None, max_tokens), folder


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="this CPU has no bfloat16")
def test_large_models_multiply_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = encoder("sentence_transformer", tmp_path)
    exact = made.encode_texts(TEXTS)
    monkeypatch.setattr(hugging_face, "LARGE", 0)
    rounded = made.encode_texts(TEXTS)
    assert 1e-5 < np.abs(rounded - exact).max() < 0.05
    assert rounded.dtype == np.float32


@torch.inference_mode()
def test_a_sentence_transformer(tmp_path: Path) -> None:
    """The prompt, at most 16 tokens, the first token, a dense layer with tanh."""
    made, folder = encoder("sentence_transformer", tmp_path)
    model = transformers.BertModel.from_pretrained(folder)
    weights = hugging_face._dense(Path(folder) / "2_Dense")[0]
    ids = transformers.AutoTokenizer.from_pretrained(folder)("garden " + TEXTS[3], return_tensors="pt")["input_ids"]
    assert ids.shape[1] > 16
    first = model(ids[:, :16]).last_hidden_state[:, 0]
    expected = unit_length(torch.tanh(first @ weights.weight.T + weights.bias).numpy())
    np.testing.assert_allclose(made.encode_texts([TEXTS[3]]), expected, atol=1e-5)


@torch.inference_mode()
def test_roberta_has_fewer_positions_than_its_configuration_says(tmp_path: Path) -> None:
    """64, of which the first belongs to padding, so 63 tokens are read."""
    save_text(tmp_path, "Roberta")
    made = hugging_face.HuggingFace(str(tmp_path), None, 1_000)
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXTS[3], return_tensors="pt")["input_ids"]
    assert ids.shape[1] > 64
    states = transformers.RobertaModel.from_pretrained(tmp_path)(ids[:, :63]).last_hidden_state
    np.testing.assert_allclose(made.encode_texts([TEXTS[3]]), unit_length(states.mean(dim=1).numpy()), atol=1e-5)


def test_a_model_that_needs_more_than_tokens_is_an_error(tmp_path: Path) -> None:
    words = tokenizer()
    sizes = {"d_model": 8, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1}
    transformers.T5Model(transformers.T5Config(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"could not be loaded \(ValueError: .*input"):
        create_encoder(str(tmp_path), "text", list, 8)


@torch.inference_mode()
def test_siglip_reads_texts_of_one_length_without_a_mask(tmp_path: Path) -> None:
    made, folder = encoder("siglip", tmp_path, max_tokens=4)
    model = transformers.SiglipModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXTS[2])["input_ids"][:4]
    padded = torch.tensor([ids + [tokenizer.pad_token_id] * (24 - len(ids))])
    expected = unit_length(model.get_text_features(input_ids=padded).pooler_output.numpy())
    np.testing.assert_allclose(made.encode_texts([TEXTS[2]]), expected, atol=1e-5)


@torch.inference_mode()
def test_an_untrained_pooler_is_not_used(tmp_path: Path) -> None:
    made, folder = encoder("vit", tmp_path)
    photo = Image.new("RGB", (28, 28), "red")
    pixels = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")(photo, return_tensors="pt")
    model = transformers.ViTForImageClassification.from_pretrained(folder)
    expected = unit_length(model.vit(**pixels).last_hidden_state[:, 0].numpy())
    np.testing.assert_allclose(made.encode_photos([photo]), expected, atol=1e-5)


@torch.inference_mode()
def test_a_vision_language_model_reads_within_its_chat_template(tmp_path: Path) -> None:
    made, folder = encoder("qwen3_vl", tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [
        token
        for part in ("<system> Represent the user's input. <user> ", "hat", " <a>")
        for token in tokenizer(part, add_special_tokens=False)["input_ids"]
    ]
    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder)
    states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
    np.testing.assert_allclose(made.encode_texts(["hat"]), unit_length(states[:, -1].numpy()), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("modules.json", [{"path": "../other", "type": "x"}], "names the folder '../other', which is not in it"),
        ("modules.json", [{"path": "", "type": "Transformer"}, {"path": "1", "type": "x.LSTM"}], "has a module LSTM"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "has the pooling"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Bilinear"}, "has the activation Bilinear"),
    ],
)
def test_folders_that_cannot_be_used(name: str, content: object, reason: str, tmp_path: Path) -> None:
    made, folder = encoder("sentence_transformer", tmp_path)
    (Path(folder) / name).write_text(json.dumps(content))
    with pytest.raises(BackboneError, match=reason):
        made.encode_texts(["a"])


def test_a_model_that_is_not_found_is_named_with_its_setting(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        BackboneError, match=r"^model\.text_encoder or model\.photo_encoder = 'no/such-model', revision"
    ):
        create_encoder("no/such-model", "text", list, 8)
