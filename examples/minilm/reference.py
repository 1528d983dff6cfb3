"""What `transformers` makes of a text: another implementation, which the warm-up sample and the tests come from.

python -m examples.minilm.reference        writes warmup.safetensors again
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from transformers import BertConfig, BertModel, BertTokenizer

from .encoding import TOKENS_MAX
from .install import HERE, packaged

WARMUP_TEXTS = [
    "Bread rises because yeast turns sugar into gas.",
    "Ein Schiff läuft in den Hafen ein.",
    "Stop!",
    "The committee postponed its decision until the auditors had finished reading the accounts of 1987.",
]


class Reference:
    """BertModel with attention in plain steps, and the mean over its tokens; a tokenizer made from the vocabulary."""

    def __init__(self) -> None:
        directory = packaged("model.safetensors").parent
        self._model = bert(directory).eval()
        self._tokenizer = BertTokenizer(vocab=str(directory / "vocab.txt"), model_max_length=TOKENS_MAX)

    def encode(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask."""
        encoding = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return encoding["input_ids"], encoding["attention_mask"]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings (texts, 384)."""
        embeddings: NDArray[np.float32] = self.embed_encoded(*self.encode(texts)).numpy()
        return embeddings

    def embed_encoded(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embeddings (rows, 384) of rows that have tokens."""
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            return torch.nn.functional.normalize(mean, dim=1)


def bert(directory: Path) -> torch.nn.Module:
    """BertModel with the weights that lie in the package's directory."""
    config = json.loads((directory / "config.json").read_text()) | {"attn_implementation": "eager"}
    model = BertModel(BertConfig(**config), add_pooling_layer=False)
    missing, _ = model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)
    assert missing == []
    return model


def main() -> None:
    reference = Reference()
    ids, mask = reference.encode(WARMUP_TEXTS)
    embedding = torch.from_numpy(reference.embed(WARMUP_TEXTS))
    sample = {"inputs/ids": ids, "inputs/mask": mask, "outputs/embedding": embedding}
    (HERE / "warmup.safetensors").write_bytes(save(sample))


if __name__ == "__main__":
    main()
