"""Text as the numbers that the model takes: the client's side, without torch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .install import packaged

TOKENS_MAX = 256
"""Tokens of a text, [CLS] and [SEP] with them; what is longer is cut."""


class Encoder:
    """Cuts texts into the word pieces of all-MiniLM-L6-v2."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(packaged("tokenizer.json")))
        # The file asks for 128 tokens, always.
        self._tokenizer.enable_truncation(TOKENS_MAX)
        self._tokenizer.enable_padding()

    def encode(self, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """`ids` and `mask`, both `(texts, tokens of the longest)`, for one request with at least one text."""
        encodings = self._tokenizer.encode_batch(list(texts))
        return {
            "ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
            "mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
        }
