"""Token ids of texts and pixels of photos, for any image-text-to-text model.

Every photo is padded to a white square of one size. So all photos have the same number of tokens and the same side
inputs of the vision tower (grids, masks), which are computed once from a blank photo and repeated.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from pixrec_core.errors import BackboneError

DEFAULT_EDGE = 224  # pixels, for vision towers that take any size


class Processor:
    """Tokenizer (a fast one), image processor and configuration of one backbone, all of transformers."""

    #: Arguments with which the family's image processor returns one image of fixed size per photo.
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, tokenizer: Any, image_processor: Any, config: Any) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.config = config

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder token of an image feature."""
        for name in ("image_token_id", "image_token_index"):
            if getattr(self.config, name, None) is not None:
                return int(getattr(self.config, name))
        raise BackboneError(
            f"{self.config.model_type} has no image token in its config.json; PixRec needs a model that takes images "
            "between text. Choose a family of docs/how-it-works.md"
        )

    @property
    def edge(self) -> int:
        """Edge length in pixels of the squares that the vision tower gets."""
        vision = getattr(self.config, "vision_config", None)
        if vision is None:
            raise BackboneError(
                f"{self.config.model_type} has no vision_config in its config.json; PixRec needs an "
                "image-text-to-text model. Choose a family of docs/how-it-works.md"
            )
        return int(getattr(vision, "image_size", None) or DEFAULT_EDGE)

    def around_image(self) -> tuple[list[int], list[int]]:
        """Token ids before and after the placeholders of an image."""
        before = getattr(self.config, "vision_start_token_id", None)
        after = getattr(self.config, "vision_end_token_id", None)
        return [before] if before is not None else [], [after] if after is not None else []

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text without special tokens, even if the text contains the name of one."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    @cached_property
    def start_ids(self) -> list[int]:
        """Token ids that start every prompt: the beginning-of-text token, if the backbone has one."""
        ids: list[int] = self.tokenizer("")["input_ids"]
        return [i for i in ids if i == self.tokenizer.bos_token_id]

    def pixels(self, photo: Image.Image) -> Tensor:
        """`pixel_values` of one photo; those of several photos are concatenated on the first axis."""
        values: Tensor = self._process(photo)["pixel_values"]
        return values

    def image_inputs(self, pixels: Tensor, count: int) -> dict[str, Tensor]:
        """Arguments of `get_image_features` for the concatenated pixels of `count` photos, and `count` itself."""
        repeated = {k: v.repeat(count, *[1] * (v.dim() - 1)).to(pixels.device) for k, v in self._side_inputs.items()}
        return {"pixel_values": pixels, **repeated, "count": torch.tensor(count)}

    @cached_property
    def _side_inputs(self) -> dict[str, Tensor]:
        blank = self._process(Image.new("RGB", (self.edge, self.edge), "white"))
        return {name: value for name, value in blank.items() if name != "pixel_values" and isinstance(value, Tensor)}

    def _process(self, photo: Image.Image) -> Any:
        return self.image_processor([square(photo, self.edge)], return_tensors="pt", **self.options)

    def save_pretrained(self, folder: Path) -> None:
        """Write tokenizer and image processor into a model's folder, as transformers does."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def square(photo: Image.Image, edge: int) -> Image.Image:
    """The photo scaled to fit into a white square of `edge` pixels, centred; most product photos are on white."""
    scale = edge / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    canvas = Image.new("RGB", (edge, edge), "white")
    canvas.paste(photo.resize(size, Image.Resampling.BICUBIC), ((edge - size[0]) // 2, (edge - size[1]) // 2))
    return canvas
