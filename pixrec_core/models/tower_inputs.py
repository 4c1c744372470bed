"""All inputs of the towers for one dataset and variant: item ids, token ids and photos."""

from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from accelerate.utils import send_to_device
from PIL import Image

from pixrec_core import schemas
from pixrec_core.data.sequences import read_items
from pixrec_core.models.backbones import Processor, adapter_of
from pixrec_core.models.collate import Collator
from pixrec_core.models.item_inputs import ItemInputs, item_inputs
from pixrec_core.models.negatives import Negatives
from pixrec_core.models.photo_store import PhotoFiles, PhotoStore, photo_files, photo_rows
from pixrec_core.models.process_group import SINGLE_PROCESS, RankInfo
from pixrec_core.paths import VariantPaths
from pixrec_core.ranking_table import id_lists


@dataclass(frozen=True)
class TowerInputs:
    """Inputs of the towers; an item's number is its row in the catalogue.

    Attributes:
        items: item ids by item number.
        inputs: token ids and photo rows by item number.
        pixels: photos, decoded on access; None for a variant or dataset without photos.
        processor: processor of the backbone.
    """

    items: list[str]
    inputs: ItemInputs
    pixels: PhotoFiles | None
    processor: Processor

    @classmethod
    def load(cls, paths: VariantPaths, backbone: Any, processor: Processor, text_tokens: int) -> "TowerInputs":
        """Read the catalogue of a dataset for a variant; `text_tokens` is the maximum of text tokens per item."""
        catalogue = read_items(paths.dataset)
        photos, with_photo = photo_rows(catalogue)
        has_photos = paths.variant != "text_only" and bool(with_photo)
        pixels = photo_files(paths.dataset, with_photo, processor) if has_photos else None
        tokens = image_tokens(backbone, processor) if has_photos else 0
        rows = catalogue.iter_rows(named=True)
        inputs = item_inputs(rows, photos, processor, tokens, paths.variant, text_tokens)
        return cls(catalogue[schemas.ITEM].to_list(), inputs, pixels, processor)

    def numbers(self, sequences: pl.Series) -> pl.Series:
        """Lists of item numbers from lists of item ids; as Python objects they would take ten times the memory."""
        return id_lists(sequences, pl.Series(self.items))

    def collator(
        self, photos: PhotoStore | None = None, negatives: Negatives | None = None, rank_info: RankInfo = SINGLE_PROCESS
    ) -> Collator:
        """A collator over these inputs; photos come from `photos`, by default decoded for each batch."""
        store = photos or self.pixels
        return Collator(self.inputs, self.processor, store.load if store else lambda _: {}, negatives, rank_info)


@torch.inference_mode()
def image_tokens(backbone: Any, processor: Processor) -> int:
    """K, features per photo: the length of the output for one photo, since every family computes it differently."""
    pixels = processor.pixels(Image.new("RGB", (processor.edge, processor.edge), "gray"))
    inputs = send_to_device(processor.image_inputs(pixels, 1), backbone.device)
    return int(adapter_of(backbone).features(inputs).shape[1])
