"""Generation and BM25 as one would first write it: what `benchmarks.retrieval` compares with.

For one user after another, transformers' own `generate` reads the history with its photos and writes 32 texts by beam
search; BM25 then finds the items that read like them, as in `retrieval.rankers.generate_bm25`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pixrec_core.data.text_search import TextSearch
from pixrec_core.models.collate import Collator
from pixrec_core.models.item_inputs import NO_PHOTO
from pixrec_core.retrieval.rank import Retriever
from pixrec_core.retrieval.rankers import Catalogue
from pixrec_core.retrieval.rankers.generate_bm25 import hits, take_turns
from pixrec_core.settings import GenerativeSettings


class Generation:
    """Ranks by `generate` and BM25; only the catalogue's texts are prepared once.

    Args:
        shop: whose model reads; of the embedded backbone.
        catalogue: of the shop.
        depth: items that each text may bring.
    """

    def __init__(self, shop: Retriever, catalogue: Catalogue, depth: int) -> None:
        self._shop, self._depth = shop, depth
        self._search = TextSearch(catalogue.texts)
        self._places = np.arange(len(catalogue.items))
        self._prompts = Collator(shop.inputs.inputs, shop.inputs.processor, load_photos=lambda _: {})
        self._tokens = max(1, round(float(np.median([len(text) for text in catalogue.token_texts()]))))

    @torch.inference_mode()
    def __call__(self, histories: Sequence[Sequence[int]]) -> list[NDArray[np.int64]]:
        """Items of each user, best first."""
        tokenizer, lists = self._shop.inputs.processor.tokenizer, []
        for history in self._shop.newest(histories):
            texts = tokenizer.batch_decode(self._texts(history), skip_special_tokens=True)
            lists.append(take_turns(hits(self._search, list(dict.fromkeys(texts)), self._places, self._depth)))
        return lists

    def _texts(self, history: Sequence[int]) -> torch.Tensor:
        """Token ids of the likeliest texts of a next item, (32, tokens)."""
        inputs = self._shop.inputs
        prompt = self._prompts.openings([history])["ids"]
        rows = [inputs.inputs.photo_rows[n] for n in history if inputs.inputs.photo_rows[n] != NO_PHOTO]
        assert inputs.pixels, "the sample has photos"
        pixels = [inputs.pixels.pixels(row) for row in rows]
        beams = GenerativeSettings().beams
        written: torch.Tensor = self._shop.model.backbone.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=torch.cat(pixels, dim=1) if pixels else None,
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=self._tokens,
            do_sample=False,
        )
        return written[:, prompt.shape[1] :]
