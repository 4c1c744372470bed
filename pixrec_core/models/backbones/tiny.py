"""The default backbone: SmolVLM's architecture, small enough to train from random weights on two CPU cores.

Its tokenizer is trained on the item texts, so there is no download and most words are one token. Token embeddings
start from latent semantic analysis of the same texts.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from pixrec_core import prompts
from pixrec_core.data.words import NORMALISER, UNIT
from pixrec_core.models.backbones.smolvlm import FamilyProcessor

MODEL_TYPES = ()  # its model_type is smolvlm

EDGE = 64  # pixels
PATCH = 8  # pixels; with SHUFFLE, an image is (64 / 8 / 4) ** 2 = 4 tokens
SHUFFLE = 4
VOCABULARY = 4096
PAD, IMAGE = "<pad>", "<image>"
RMS = 0.1  # of initial token embeddings; larger than the outputs of untrained layers, which are added to them
SPECIAL = [PAD, IMAGE, "<fake_token_around_image>", "<global-img>"]


def create(texts: Iterable[str]) -> tuple[Any, FamilyProcessor]:
    """A model with random weights, except for its token embeddings, and a processor with a trained tokenizer.

    `texts` are of the training split; later items would leak into the tokenizer and the embeddings.
    """
    from transformers import SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil

    texts = list(texts)
    tokenizer = _tokenizer(texts)
    config = _config(len(tokenizer), tokenizer)
    edge = {"longest_edge": EDGE}
    image_processor = SmolVLMImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    model = SmolVLMForConditionalGeneration(config)
    with torch.no_grad():
        tokens, vectors = word_vectors(tokenizer, texts, config.text_config.hidden_size)
        model.get_input_embeddings().weight[tokens] = vectors
    return model, FamilyProcessor(tokenizer, image_processor, config)


def word_vectors(tokenizer: Any, texts: Sequence[str], size: int) -> tuple[Tensor, Tensor]:
    """A vector for every token that occurs in some texts, such that similar texts have similar mean vectors.

    The mean vector of a text is, up to its length, its row in the truncated SVD of the TF-IDF matrix: latent semantic
    analysis (Deerwester et al., JASIS 1990).

    Returns:
        (T,) token ids, and (T, `size`) vectors with root mean square `RMS`; components beyond the rank of the matrix
        are zero. T = 0 if no text has a token.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.utils.extmath import randomized_svd

    if not any(texts):
        return torch.empty(0, dtype=torch.int64), torch.empty(0, size)
    vectorizer = TfidfVectorizer(analyzer=tokenizer.encode, binary=True)
    matrix = vectorizer.fit_transform(texts)
    rank = min(size, *matrix.shape)
    _, _, components = randomized_svd(matrix, rank, n_iter=5, random_state=0)
    vectors = torch.zeros(matrix.shape[1], size)
    vectors[:, :rank] = torch.from_numpy(components.T * vectorizer.idf_[:, None])
    vectors *= RMS / vectors.square().mean().sqrt()
    return torch.from_numpy(vectorizer.get_feature_names_out().astype("int64")), vectors


def _tokenizer(texts: Sequence[str]) -> Any:
    """Byte-level BPE without case, which can encode any text.

    Each repeated part of the prompts is one token, for speed.
    No token crosses a unit of a script without spaces: otherwise each title of a small catalogue would be one token.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = NORMALISER
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(UNIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    template = (prompts.FIRST, prompts.NEXT, *prompts.LABELS)
    tokenizer.add_tokens([AddedToken(words, normalized=False) for words in template])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, extra_special_tokens=SPECIAL[1:])


def _config(vocabulary: int, tokenizer: Any) -> Any:
    from transformers import SmolVLMConfig

    image, pad = tokenizer.convert_tokens_to_ids([IMAGE, PAD])
    return SmolVLMConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": EDGE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": vocabulary,
            "max_position_embeddings": 8192,
            "pad_token_id": pad,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        scale_factor=SHUFFLE,
        image_token_id=image,
        pad_token_id=pad,
        tie_word_embeddings=True,
    )
