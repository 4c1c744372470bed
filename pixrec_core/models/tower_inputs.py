"""Everything the towers read of one dataset and variant: the catalogue's order, its blocks and its photos."""

from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
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
from pixrec_core.ranking_table import id_indices


@dataclass(frozen=True)
class TowerInputs:
    """Items are numbered by their place in the catalogue.

    Attributes:
        items: ids, in the catalogue's order.
        inputs: what the towers read of each.
        pixels: photos, decoded when asked for; None for a variant without any.
        processor: of the backbone.
    """

    items: list[str]
    inputs: ItemInputs
    pixels: PhotoFiles | None
    processor: Processor

    @classmethod
    def load(cls, paths: VariantPaths, backbone: Any, processor: Processor, text_tokens: int) -> "TowerInputs":
        """Read the catalogue, and find its photos."""
        catalogue = read_items(paths.dataset)
        photos, with_photo = photo_rows(catalogue)
        seeing = paths.variant != "text_only" and bool(with_photo)
        pixels = photo_files(paths.dataset, with_photo, processor) if seeing else None
        image_tokens = _image_tokens(backbone, processor) if seeing else 0
        rows = catalogue.iter_rows(named=True)
        inputs = item_inputs(rows, photos, processor, image_tokens, paths.variant, text_tokens)
        return cls(catalogue[schemas.ITEM].to_list(), inputs, pixels, processor)

    def numbers(self, sequences: pl.Series) -> pl.Series:
        """Lists of item ids to lists of item numbers, in a column: as Python objects they take ten times the memory."""
        return sequences.list.eval(id_indices(pl.element(), pl.Series(self.items)).cast(pl.Int64))

    def collator(
        self, photos: PhotoStore | None = None, negatives: Negatives | None = None, rank_info: RankInfo = SINGLE_PROCESS
    ) -> Collator:
        """Batches whose photos come from a store, or are decoded for each; training brings its negatives and share."""
        store = photos or self.pixels
        return Collator(self.inputs, self.processor, store.load if store else lambda _: {}, negatives, rank_info)


@torch.inference_mode()
def _image_tokens(backbone: Any, processor: Processor) -> int:
    """K, the features of one photo: asked of the model, since each family counts in its own way."""
    pixels = processor.pixels(Image.new("RGB", (processor.edge, processor.edge), "gray"))
    inputs = {name: value.to(backbone.device) for name, value in processor.image_inputs(pixels, 1).items()}
    return int(adapter_of(backbone).features(inputs, 1).shape[1])
