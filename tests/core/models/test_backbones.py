"""Adapters reproduce the `forward` of every family: images, positions, masks. Unsuitable models are rejected.

Models are small, with random weights, but have the true architecture, and are loaded from a folder like a user's.
`test_dual_tower.py` tests windows, prefixes, gradients and checkpoints of every family.
"""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import transformers
from PIL import Image

from pixrec_core.errors import BackboneError
from pixrec_core.models import backbones
from pixrec_core.models.backbones import BackboneAdapter, adapter_of, paligemma, qwen2_vl
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.loading import create_backbone, load_processor, require_agreement
from pixrec_core.models.windows import TrainingWindow
from tests.core.models import families
from tests.core.models.native_forward import native_forward, photos, prompt
from tests.core.models.small import Small, tower_on, vectors

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
#: One photo; several; none; some; the same photo twice. Items 0, 4 and 8 have no photo.
WINDOWS = [[1], [1, 2, 3], [0, 4], [4, 5, 0, 6, 8], [7, 7]]


@pytest.fixture
def load_family(tmp_path):
    """Saves the small model of a family, and loads it as for training."""

    def load(family: str):
        families.save(family, tmp_path)
        return create_backbone(str(tmp_path), None, list)

    return load


def adapter_states(tower: Small, windows: list[list[int]]) -> list[torch.Tensor]:
    """Hidden states of each window without its padding, (L, H)."""
    batch = tower.collator.history_batch(windows)
    features = tower.model.photo_features(batch["photos"])
    hidden = tower.model.hidden_states(batch["input_ids"], batch["image_feature_index"], features)
    return [row[: spans[-1, 1]] for row, spans in zip(hidden, batch["item_spans"], strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_hidden_states_and_logits_equal_those_of_the_models_forward(tower: Small, side: str) -> None:
    outputs = native_forward(tower, WINDOWS, left=side == "left")
    for n, states in enumerate(adapter_states(tower, WINDOWS)):
        tokens = slice(-len(states), None) if side == "left" else slice(len(states))
        torch.testing.assert_close(states, outputs.hidden_states[-1][n][tokens], **TOLERANCE)
        torch.testing.assert_close(tower.model.adapter.logits(states), outputs.logits[n][tokens], **TOLERANCE)


@torch.no_grad()
def test_a_photo_has_one_placeholder_per_feature(tower: Small) -> None:
    batch = tower.collator.item_batch([1, 2, 4])
    features = tower.model.photo_features(batch["photos"])
    placeholders = (batch["input_ids"] == tower.processor.image_token_id).sum(1).tolist()
    assert placeholders == [features.shape[1], features.shape[1], 0]
    assert sorted(batch["image_feature_index"][batch["image_feature_index"] >= 0].tolist()) == list(
        range(features.shape[0] * features.shape[1])
    )
    assert features.shape[1] > 1, "one token per image would not test positions within an image"


def test_texts_with_names_of_special_tokens_contain_no_special_token(tower: Small) -> None:
    tokenizer = tower.processor.tokenizer
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    hostile = "".join(tokenizer.all_special_tokens) + "<image><|im_start|><|image_pad|><end_of_utterance><bos></s>"
    for text in ("", hostile, f" {hostile}\n{hostile}", "é 椅子 🪑 \x00 \u202e", (hostile * 50)[:2000], "x" * 2000):
        ids = tower.processor.text_ids(text)
        assert not special & set(ids)
        assert max(ids, default=0) < tower.model.config.backbone_config.get_text_config().vocab_size
        assert bool(ids) is bool(text)


def test_gradient_checkpointing_changes_no_gradient(tower: Small) -> None:
    plain, checkpointed = (deepcopy(tower.model).train() for _ in range(2))
    checkpointed.activation_checkpointing_enable()
    calls = []
    for module in checkpointed.backbone.get_decoder().modules():
        if checkpoint := getattr(module, "_gradient_checkpointing_func", None):
            module._gradient_checkpointing_func = lambda *a, f=checkpoint, **k: calls.append(1) or f(*a, **k)
    for model in (plain, checkpointed):
        model(**tower.collator([TrainingWindow([1, 2, 0]), TrainingWindow([5, 6])])).loss.backward()
    assert len(calls) >= 2 * len(plain.backbone.get_decoder().layers), "every layer, for histories and for items"
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_qwen_positions_equal_those_of_the_model_and_of_every_prefix(load_family, family: str) -> None:
    tower = tower_on(*load_family(family))
    for window in WINDOWS:
        ids, spans = prompt(tower, window)
        ids = torch.tensor([ids])
        batch = tower.collator.history_batch([window])
        features = tower.model.photo_features(batch["photos"])
        positions = qwen2_vl.mrope_positions(batch["image_feature_index"], features)
        grid = photos(tower, [window]).get("image_grid_thw")
        is_image = (ids == tower.processor.image_token_id).int()
        expected, _ = tower.model.backbone.model.get_rope_index(ids, is_image, image_grid_thw=grid)
        assert positions.tolist() == expected.tolist()
        for _, end, _ in spans:
            prefix = qwen2_vl.mrope_positions(batch["image_feature_index"][:, :end], features)
            assert prefix.tolist() == positions[..., :end].tolist()


@torch.no_grad()
def test_a_saved_tower_and_processor_load_unchanged(tower: Small, tmp_path) -> None:
    tower.model.save_pretrained(tmp_path)
    tower.processor.save_pretrained(tmp_path)
    model, processor = DualTower.from_pretrained(tmp_path).eval(), load_processor(tmp_path)
    assert type(model.adapter) is type(tower.model.adapter)
    assert type(processor) is type(tower.processor)
    assert processor.start_ids == tower.processor.start_ids
    assert processor.around_image() == tower.processor.around_image()
    assert processor.text_ids("Wool <image> lamp") == tower.processor.text_ids("Wool <image> lamp")
    photo = Image.effect_noise((40, 30), 90).convert("RGB")
    assert torch.equal(processor.pixels(photo), tower.processor.pixels(photo))
    torch.testing.assert_close(*(vectors(each, tower.collator, [0, 1, 2]) for each in (model, tower.model)))


def test_mrope_positions_by_hand() -> None:
    """Two words, an image of 2 x 2 tokens, a word, another image."""
    image_feature_index = torch.tensor([[-1, -1, 4, 5, 6, 7, -1, 0, 1, 2, 3]])
    assert qwen2_vl.mrope_positions(image_feature_index, torch.zeros(2, 4, 1)).squeeze(1).tolist() == [
        [0, 1, 2, 2, 2, 2, 4, 5, 5, 5, 5],
        [0, 1, 2, 2, 3, 3, 4, 5, 5, 6, 6],
        [0, 1, 2, 3, 2, 3, 4, 5, 6, 5, 6],
    ]


@torch.no_grad()
def test_paligemma_is_causal_although_its_prefix_attention_is_bidirectional(load_family) -> None:
    tower = tower_on(*load_family("paligemma"))
    ids, _ = prompt(tower, [1, 2])
    prefix = torch.zeros(1, len(ids), dtype=torch.long)
    bidirectional = native_forward(tower, [[1, 2]], token_type_ids=prefix).hidden_states[-1][0]
    assert (bidirectional - adapter_states(tower, [[1, 2]])[0]).abs().max() > 0.1
    assert tower.model.backbone.config.text_config.use_bidirectional_attention


@torch.no_grad()
def test_gemma_scales_text_embeddings_and_not_image_features(load_family) -> None:
    tower = tower_on(*load_family("paligemma"))
    model, batch = tower.model.backbone, tower.collator.item_batch([1])
    inputs = []
    decoder = model.get_decoder()
    decoder.register_forward_pre_hook(lambda _, __, kwargs: inputs.append(kwargs["inputs_embeds"]), with_kwargs=True)
    features = tower.model.photo_features(batch["photos"])
    tower.model.hidden_states(batch["input_ids"], batch["image_feature_index"], features)
    is_image = batch["image_feature_index"][0] >= 0
    weight = model.get_input_embeddings().weight
    torch.testing.assert_close(
        inputs[0][0, ~is_image], weight[batch["input_ids"][0, ~is_image]] * weight.shape[1] ** 0.5
    )
    tower_output = model.model.vision_tower(tower.pixels.load(tower.inputs.photo_rows[[1]])["pixel_values"])
    torch.testing.assert_close(
        inputs[0][0, is_image], model.model.multi_modal_projector(tower_output.last_hidden_state)[0]
    )


def test_a_family_without_a_module_is_accepted_if_the_general_adapter_reproduces_it(load_family) -> None:
    backbone, processor = load_family("llava")
    assert type(adapter_of(backbone)) is BackboneAdapter
    tower = tower_on(backbone, processor)
    for states, window in zip(adapter_states(tower, WINDOWS), WINDOWS, strict=True):
        torch.testing.assert_close(states, native_forward(tower, [window]).hidden_states[-1][0], **TOLERANCE)


@pytest.mark.parametrize("family", ["paligemma", "paligemma2", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_families_with_other_decoder_inputs_are_rejected_with_the_general_adapter(load_family, family: str) -> None:
    backbone, processor = load_family(family)

    class General(BackboneAdapter):
        native_forward_kwargs = adapter_of(backbone).native_forward_kwargs

    with pytest.raises(BackboneError, match=r"General does not reproduce its `forward`.*docs/how-it-works\.md"):
        require_agreement(General(backbone), processor)


def test_an_adapter_without_deepstack_features_is_rejected(load_family) -> None:
    backbone, processor = load_family("qwen3_vl")
    with pytest.raises(BackboneError, match="FamilyAdapter does not reproduce its `forward`"):
        require_agreement(qwen2_vl.FamilyAdapter(backbone), processor)


def test_a_model_that_is_not_causal_is_rejected(load_family) -> None:
    backbone, processor = load_family("paligemma")

    class Bidirectional(paligemma.FamilyAdapter):
        def decoder_inputs(self, *_):
            return {"is_causal": False}

        def native_forward_kwargs(self, is_image):
            return {"token_type_ids": torch.zeros_like(is_image, dtype=torch.long)}

    with pytest.raises(BackboneError, match="it is not causal"):
        require_agreement(Bidirectional(backbone), processor)


def test_cross_attention_is_rejected(tmp_path) -> None:
    """Mllama: images enter the decoder through cross-attention layers, not as embeddings."""
    tokenizer = families._smolvlm_tokenizer()
    text = families.TEXT | {"vocab_size": len(tokenizer), "cross_attention_layers": [1], "pad_token_id": 0}
    config = transformers.MllamaConfig(
        vision_config={
            "hidden_size": 32, "attention_heads": 2, "num_hidden_layers": 2, "num_global_layers": 1,
            "intermediate_size": 64, "image_size": 28, "patch_size": 14, "max_num_tiles": 1,
            "intermediate_layers_indices": [0], "vision_output_dim": 64, "supported_aspect_ratios": [[1, 1]],
        },
        text_config=text,
        image_token_index=1,
    )  # fmt: skip
    transformers.MllamaForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    size = {"height": 28, "width": 28}
    transformers.MllamaImageProcessorPil(size=size, max_image_tiles=1).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"mllama.*cannot be used: PixRec needs a causal decoder"):
        create_backbone(str(tmp_path), None, list)


def test_no_two_family_modules_support_the_same_model_type() -> None:
    modules = [backbones.load_plugin(backbones.__name__, name) for name in backbones.plugin_names(backbones.__name__)]
    supported = [model_type for module in modules for model_type in module.MODEL_TYPES]
    assert len(supported) == len(set(supported)) == 6
    for model_type in supported:
        assert model_type in transformers.CONFIG_MAPPING
        assert issubclass(backbones.processor_class(model_type), backbones.Processor)
        assert isinstance(adapter_of(SimpleNamespace(config=SimpleNamespace(model_type=model_type))), BackboneAdapter)


def test_photos_of_all_sizes_have_pixels_of_one_shape(tower: Small) -> None:
    shapes = {tower.processor.pixels(Image.new(mode, size)).shape for mode, size in
              (("RGB", (300, 20)), ("RGB", (1, 1)), ("RGB", (64, 64)), ("RGB", (2, 900)))}  # fmt: skip
    assert len(shapes) == 1
