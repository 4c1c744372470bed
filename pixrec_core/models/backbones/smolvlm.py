"""SmolVLM and Idefics3: one global view per image, without tiles."""

from typing import Any, ClassVar

from pixrec_core.models.backbones._adapter import BackboneAdapter
from pixrec_core.models.backbones._processor import Processor

MODEL_TYPES = ("smolvlm", "idefics3")

FamilyAdapter = BackboneAdapter


class FamilyProcessor(Processor):
    """Turns image splitting off: a product photo shows one object, and tiles would need 17 times the tokens."""

    options: ClassVar[dict[str, Any]] = {"do_image_splitting": False, "return_row_col_info": False}

    def around_image(self) -> tuple[list[int], list[int]]:
        """`<fake_token_around_image><global-img>` and `<fake_token_around_image>`, as in the family's training."""
        fake, view = self.tokenizer.convert_tokens_to_ids(["<fake_token_around_image>", "<global-img>"])
        return [fake, view], [fake]
