"""SmolVLM and Idefics3: one global view of an image, no tiles."""

from typing import Any, ClassVar

from pixrec_core.models.backbones._adapter import BackboneAdapter
from pixrec_core.models.backbones._processor import Processor

MODEL_TYPES = ("smolvlm", "idefics3")

FamilyAdapter = BackboneAdapter


class FamilyProcessor(Processor):
    """Turns image splitting off: a product photo is one object, and tiles would cost 17 times the tokens."""

    options: ClassVar[dict[str, Any]] = {"do_image_splitting": False, "return_row_col_info": False}

    def around_image(self) -> tuple[list[int], list[int]]:
        """`<fake_token_around_image><global-img>` ... `<fake_token_around_image>`, as the family was trained."""
        fake, whole = self.tokenizer.convert_tokens_to_ids(["<fake_token_around_image>", "<global-img>"])
        return [fake, whole], [fake]
