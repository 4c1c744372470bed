"""Text to token ids and photos to pixels, for any image-text-to-text model.

Every photo is padded to a white square of one size, so that every image has the same number of
tokens and all side inputs of a vision tower (grids, masks) are the same for each photo: they are
taken once, from a probe, and repeated.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from pixrec_core.errors import BackboneError

DEFAULT_EDGE = 224  # pixels, where a vision tower takes any size


class Processor:
    """Tokenizer and image processor of one backbone.

    Attributes:
        tokenizer: a fast tokenizer of transformers.
        image_processor: an image processor of transformers.
        config: the backbone's configuration.
    """

    #: what the family's image processor must be told to give one square image of fixed size
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, tokenizer: Any, image_processor: Any, config: Any) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.config = config

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder whose embedding is replaced by an image feature."""
        for name in ("image_token_id", "image_token_index"):
            if getattr(self.config, name, None) is not None:
                return int(getattr(self.config, name))
        raise BackboneError(f"{self.config.model_type} names no image token; it cannot take images inside text")

    @property
    def edge(self) -> int:
        """Pixels along the side of the square that the vision tower sees."""
        vision = getattr(self.config, "vision_config", None)
        if vision is None:
            raise BackboneError(
                f"{self.config.model_type} has no vision_config; PixRec needs an image-text-to-text model"
            )
        return int(getattr(vision, "image_size", None) or DEFAULT_EDGE)

    def around_image(self) -> tuple[list[int], list[int]]:
        """Token ids that stand before and after the placeholders of an image."""
        before = getattr(self.config, "vision_start_token_id", None)
        after = getattr(self.config, "vision_end_token_id", None)
        return [before] if before is not None else [], [after] if after is not None else []

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens, even where the text spells one."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    @cached_property
    def start_ids(self) -> list[int]:
        """What the backbone wants at the start of every text: its beginning-of-text token, or nothing."""
        ids: list[int] = self.tokenizer("")["input_ids"]
        return [i for i in ids if i == self.tokenizer.bos_token_id]

    def pixels(self, photo: Image.Image) -> Tensor:
        """One photo as the vision tower's `pixel_values`; its first axis is joined over photos."""
        values: Tensor = self._process(photo)["pixel_values"]
        return values

    def image_inputs(self, pixels: Tensor, count: int) -> dict[str, Tensor]:
        """Arguments of `get_image_features` for `count` photos whose pixels are joined on the first axis."""
        repeated = {k: v.repeat(count, *[1] * (v.dim() - 1)).to(pixels.device) for k, v in self._side_inputs.items()}
        return {"pixel_values": pixels, **repeated}

    @cached_property
    def _side_inputs(self) -> dict[str, Tensor]:
        blank = self._process(Image.new("RGB", (self.edge, self.edge), "white"))
        return {name: value for name, value in blank.items() if name != "pixel_values" and isinstance(value, Tensor)}

    def _process(self, photo: Image.Image) -> Any:
        return self.image_processor([square(photo, self.edge)], return_tensors="pt", **self.options)

    def save_pretrained(self, folder: Path) -> None:
        """Write tokenizer and image processor beside a model, as transformers does."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def square(photo: Image.Image, edge: int) -> Image.Image:
    """The photo scaled to fit and centred on a white square of `edge` pixels: most products stand on white."""
    scale = edge / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    canvas = Image.new("RGB", (edge, edge), "white")
    canvas.paste(photo.resize(size, Image.Resampling.BICUBIC), ((edge - size[0]) // 2, (edge - size[1]) // 2))
    return canvas
