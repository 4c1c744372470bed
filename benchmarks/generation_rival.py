"""A direct implementation of generation and BM25, which `benchmarks.retrieval` compares with.

For one user after another, `generate` of transformers encodes the history with its photos and writes 32 texts by beam
search; BM25 then finds matching items, as in `retrieval.rankers.generate_bm25`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pixrec_core.data.text_search import TextSearch
from pixrec_core.models.collate import Collator
from pixrec_core.models.item_inputs import NO_PHOTO
from pixrec_core.retrieval.rankers import Catalogue
from pixrec_core.retrieval.rankers.generate_bm25 import round_robin, search_texts
from pixrec_core.retrieval.retriever import Retriever
from pixrec_core.settings import GenerativeSettings


class Generation:
    """Ranks with `generate` and BM25; only the BM25 index is prepared once.

    Args:
        retriever: encoder and index of a checkpoint.
        catalogue: its catalogue.
        depth: items per text.
    """

    def __init__(self, retriever: Retriever, catalogue: Catalogue, depth: int) -> None:
        self._encoder, self._depth = retriever.encoder, depth
        self._search = TextSearch(catalogue.texts)
        self._tie_order = np.arange(len(catalogue.items))
        self._prompts = Collator(self._encoder.inputs.inputs, self._encoder.inputs.processor, load_photos=lambda _: {})
        self._tokens = max(1, round(float(np.median([len(text) for text in catalogue.token_texts()]))))

    @torch.inference_mode()
    def __call__(self, histories: Sequence[Sequence[int]]) -> list[NDArray[np.int64]]:
        """Return the items of each user, best first."""
        tokenizer, lists = self._encoder.inputs.processor.tokenizer, []
        for history in self._encoder.crop(histories):
            texts = tokenizer.batch_decode(self._texts(history), skip_special_tokens=True)
            found = search_texts(self._search, list(dict.fromkeys(texts)), self._tie_order, self._depth)
            lists.append(round_robin(found))
        return lists

    def _texts(self, history: Sequence[int]) -> torch.Tensor:
        """Return the token ids (32, tokens) of the most likely texts of the next item."""
        inputs = self._encoder.inputs
        prompt = self._prompts.generation_prompts([history])["input_ids"]
        rows = [inputs.inputs.photo_rows[n] for n in history if inputs.inputs.photo_rows[n] != NO_PHOTO]
        assert inputs.pixels, "the sample has photos"
        pixels = [inputs.pixels.pixels(row) for row in rows]
        beams = GenerativeSettings().beams
        generated: torch.Tensor = self._encoder.model.backbone.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=torch.cat(pixels, dim=1) if pixels else None,
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=self._tokens,
            do_sample=False,
        )
        return generated[:, prompt.shape[1] :]
