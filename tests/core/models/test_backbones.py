"""Every family reads here as it reads by itself: images, positions, masks; and what does not fit is refused.

Models are tiny, with random weights, but of the true architecture, and come from a folder as a user's would.
`test_dual_tower.py` holds what follows from it: windows, prefixes, gradients, checkpoints.
"""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import transformers
from PIL import Image

from pixrec_core.errors import BackboneError
from pixrec_core.models import backbones
from pixrec_core.models.backbones import BackboneAdapter, adapter_of, paligemma, qwen2_vl, require_agreement
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.loading import create_backbone, load_processor
from pixrec_core.models.windows import TrainingWindow
from tests.core.models import families
from tests.core.models.own_forward import own_forward, photos, prompt
from tests.core.models.small import Small, tower_on, vectors

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
#: Items 0, 4 and 8 have no photo. One photo; several; none; photos and gaps; one photo twice.
WINDOWS = [[1], [1, 2, 3], [0, 4], [4, 5, 0, 6, 8], [7, 7]]


@pytest.fixture
def opened(tmp_path):
    """A family's backbone as a user gets it."""

    def of(family: str):
        families.save(family, tmp_path)
        return create_backbone(str(tmp_path), None, list)

    return of


def our_states(tower: Small, windows: list[list[int]]) -> list[torch.Tensor]:
    """Hidden states of each window without its padding, (L, H)."""
    batch = tower.collator.history_batch(windows)
    features = tower.model.photo_features(batch["photos"])
    hidden = tower.model.hidden_states(batch["input_ids"], batch["image_feature_index"], features)
    return [row[: spans[-1, 1]] for row, spans in zip(hidden, batch["item_spans"], strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_hidden_states_are_those_of_the_models_own_forward(tower: Small, side: str) -> None:
    outputs = own_forward(tower, WINDOWS, left=side == "left")
    for n, ours in enumerate(our_states(tower, WINDOWS)):
        own = outputs.hidden_states[-1][n]
        own = own[-len(ours) :] if side == "left" else own[: len(ours)]
        torch.testing.assert_close(ours, own, **TOLERANCE)
        logits = outputs.logits[n][-len(ours) :] if side == "left" else outputs.logits[n][: len(ours)]
        torch.testing.assert_close(tower.model.adapter.logits(ours), logits, **TOLERANCE)


@torch.no_grad()
def test_a_photo_has_as_many_placeholders_as_the_model_has_features(tower: Small) -> None:
    batch = tower.collator.item_batch([1, 2, 4])
    features = tower.model.photo_features(batch["photos"])
    counted = (batch["input_ids"] == tower.processor.image_token_id).sum(1).tolist()
    assert counted == [features.shape[1], features.shape[1], 0]
    assert sorted(batch["image_feature_index"][batch["image_feature_index"] >= 0].tolist()) == list(
        range(features.shape[0] * features.shape[1])
    )
    assert features.shape[1] > 1, "an image of one token would show nothing of positions within it"


def test_no_text_of_any_length_spells_a_special_token(tower: Small) -> None:
    tokenizer = tower.processor.tokenizer
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    hostile = "".join(tokenizer.all_special_tokens) + "<image><|im_start|><|image_pad|><end_of_utterance><bos></s>"
    for text in ("", hostile, f" {hostile}\n{hostile}", "é 椅子 🪑 \x00 \u202e", (hostile * 50)[:2000], "x" * 2000):
        ids = tower.processor.text_ids(text)
        assert not special & set(ids)
        assert max(ids, default=0) < tower.model.config.backbone_config.get_text_config().vocab_size
        assert bool(ids) is bool(text)


def test_checkpointed_activations_give_the_same_gradients(tower: Small) -> None:
    plain, checkpointed = (deepcopy(tower.model).train() for _ in range(2))
    checkpointed.activation_checkpointing_enable()
    calls = []
    for module in checkpointed.backbone.get_decoder().modules():
        if checkpoint := getattr(module, "_gradient_checkpointing_func", None):
            module._gradient_checkpointing_func = lambda *a, f=checkpoint, **k: calls.append(1) or f(*a, **k)
    for model in (plain, checkpointed):
        model(**tower.collator([TrainingWindow([1, 2, 0]), TrainingWindow([5, 6])])).loss.backward()
    assert len(calls) >= 2 * len(plain.backbone.get_decoder().layers), "histories and items, every layer"
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_qwens_positions_are_those_of_the_model_and_of_every_prefix(opened, family: str) -> None:
    tower = tower_on(*opened(family))
    for window in WINDOWS:
        ids, spans = prompt(tower, window)
        ids = torch.tensor([ids])
        batch = tower.collator.history_batch([window])
        image_tokens = tower.inputs.image_tokens
        ours = qwen2_vl.positions(batch["image_feature_index"], image_tokens)
        grid = photos(tower, [window]).get("image_grid_thw")
        is_image = (ids == tower.processor.image_token_id).int()
        own, _ = tower.model.backbone.model.get_rope_index(ids, is_image, image_grid_thw=grid)
        assert ours.tolist() == own.tolist()
        for _, end, _ in spans:
            assert (
                qwen2_vl.positions(batch["image_feature_index"][:, :end], image_tokens).tolist()
                == ours[..., :end].tolist()
            )


@torch.no_grad()
def test_a_checkpoint_comes_back_with_its_processor(tower: Small, tmp_path) -> None:
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


def test_positions_by_hand() -> None:
    """Two words, an image of 2 x 2 tokens, a word, another image."""
    image_feature_index = torch.tensor([[-1, -1, 4, 5, 6, 7, -1, 0, 1, 2, 3]])
    assert qwen2_vl.positions(image_feature_index, 4).squeeze(1).tolist() == [
        [0, 1, 2, 2, 2, 2, 4, 5, 5, 5, 5],
        [0, 1, 2, 2, 3, 3, 4, 5, 5, 6, 6],
        [0, 1, 2, 3, 2, 3, 4, 5, 6, 5, 6],
    ]


@torch.no_grad()
def test_paligemma_would_look_ahead_over_its_prefix_and_does_not_here(opened) -> None:
    tower = tower_on(*opened("paligemma"))
    ids, _ = prompt(tower, [1, 2])
    prefix = torch.zeros(1, len(ids), dtype=torch.long)
    ahead = own_forward(tower, [[1, 2]], token_type_ids=prefix).hidden_states[-1][0]
    assert (ahead - our_states(tower, [[1, 2]])[0]).abs().max() > 0.1
    assert tower.model.backbone.config.text_config.use_bidirectional_attention


@torch.no_grad()
def test_gemma_scales_embeddings_of_text_and_not_those_of_images(opened) -> None:
    tower = tower_on(*opened("paligemma"))
    model, batch = tower.model.backbone, tower.collator.item_batch([1])
    fed = []
    decoder = model.get_decoder()
    decoder.register_forward_pre_hook(lambda *given: fed.append(given[2]["inputs_embeds"]), with_kwargs=True)
    features = tower.model.photo_features(batch["photos"])
    tower.model.hidden_states(batch["input_ids"], batch["image_feature_index"], features)
    seen = batch["image_feature_index"][0] >= 0
    weight = model.get_input_embeddings().weight
    torch.testing.assert_close(fed[0][0, ~seen], weight[batch["input_ids"][0, ~seen]] * weight.shape[1] ** 0.5)
    tower_output = model.model.vision_tower(tower.pixels.load(tower.inputs.photo_rows[[1]])["pixel_values"])
    torch.testing.assert_close(fed[0][0, seen], model.model.multi_modal_projector(tower_output.last_hidden_state)[0])


def test_a_family_without_a_file_is_taken_where_it_reads_the_same(opened) -> None:
    backbone, processor = opened("llava")
    assert type(adapter_of(backbone)) is BackboneAdapter
    tower = tower_on(backbone, processor)
    for ours, window in zip(our_states(tower, WINDOWS), WINDOWS, strict=True):
        torch.testing.assert_close(ours, own_forward(tower, [window]).hidden_states[-1][0], **TOLERANCE)


@pytest.mark.parametrize("family", ["paligemma", "paligemma2", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_family_that_gives_its_decoder_more_is_refused_without_its_file(opened, family: str) -> None:
    backbone, processor = opened(family)

    class General(BackboneAdapter):
        native_forward_kwargs = adapter_of(backbone).native_forward_kwargs

    with pytest.raises(BackboneError, match=r"reads a prompt otherwise by itself .*docs/backbones\.md"):
        require_agreement(General(backbone), processor)


def test_deepstack_is_never_dropped(opened) -> None:
    backbone, processor = opened("qwen3_vl")
    with pytest.raises(BackboneError, match="misses something that it gives its decoder"):
        require_agreement(qwen2_vl.FamilyAdapter(backbone), processor)


def test_a_model_that_looks_ahead_is_refused(opened) -> None:
    backbone, processor = opened("paligemma")

    class Ahead(paligemma.FamilyAdapter):
        def decoder_inputs(self, *_):
            return {"is_causal": False}

        def native_forward_kwargs(self, is_image):
            return {"token_type_ids": torch.zeros_like(is_image, dtype=torch.long)}

    with pytest.raises(BackboneError, match="is not causal"):
        require_agreement(Ahead(backbone), processor)


def test_cross_attention_is_refused(tmp_path) -> None:
    """Mllama: images reach the decoder by layers of their own, not as embeddings among those of the text."""
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
    with pytest.raises(BackboneError, match=r"mllama.*takes no image features as embeddings"):
        create_backbone(str(tmp_path), None, list)


def test_every_family_module_serves_types_that_no_other_serves() -> None:
    modules = [backbones.load_plugin(backbones.__name__, name) for name in backbones.plugin_names(backbones.__name__)]
    served = [model_type for module in modules for model_type in module.MODEL_TYPES]
    assert len(served) == len(set(served)) == 6
    for model_type in served:
        assert model_type in transformers.CONFIG_MAPPING
        assert issubclass(backbones.processor_class(model_type), backbones.Processor)
        assert isinstance(adapter_of(SimpleNamespace(config=SimpleNamespace(model_type=model_type))), BackboneAdapter)


def test_a_photo_of_any_shape_becomes_one_size(tower: Small) -> None:
    shapes = {tower.processor.pixels(Image.new(mode, size)).shape for mode, size in
              (("RGB", (300, 20)), ("RGB", (1, 1)), ("RGB", (64, 64)), ("RGB", (2, 900)))}  # fmt: skip
    assert len(shapes) == 1
