"""all-MiniLM-L6-v2: a BERT encoder of six layers (Devlin et al., 2019; Wang et al., 2020) and the mean of its tokens.

The queries', keys' and values' matrices of a layer are one, and the token type is part of the positions:
install.py writes the weights so.
"""

import torch
from torch import nn
from torch.nn import functional

WIDTH = 384
LAYERS = 6
HEADS = 12
WORDS = 30_522
POSITIONS = 512
UNKNOWN = 100
"""The token [UNK]."""


class MiniLM(nn.Module):
    """Tokens (rows, tokens) and their mask → embeddings (rows, 384) of length 1. 22,564,608 parameters.

    A token counts where its mask is not 0; a row without any gets zeros. A number that is no token is taken for
    [UNK]: one bad row must not fail the batch (nor, on a GPU, the process).
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Parameter(torch.empty(POSITIONS, WIDTH))
        self.norm = norm()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        real = mask != 0
        batch = Batch(real)
        words = self.words(ids.where((ids >= 0) & (ids < WORDS), UNKNOWN))
        x = batch.pack(self.norm(words + self.positions[: ids.shape[1]]))
        for layer in self.layers:
            x = layer(x, batch)
        total = (real.to(x.dtype).unsqueeze(1) @ batch.unpack(x)).squeeze(1)
        return functional.normalize(total, dim=1)  # so that their number need not be divided by


class Layer(nn.Module):
    """Each token hears the others of its row, and then thinks by itself: packed tokens to packed tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.mix_norm = norm()
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.norm = norm()

    def forward(self, x: torch.Tensor, batch: "Batch") -> torch.Tensor:
        of_rows = batch.unpack(self.queries_keys_values(x)).unflatten(2, (3, HEADS, -1))
        queries, keys, values = of_rows.permute(2, 0, 3, 1, 4)  # each (rows, heads, tokens, 32)
        heard = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=batch.visible)
        x = self.mix_norm(x + self.mix(batch.pack(heard.transpose(1, 2).flatten(2))))
        output: torch.Tensor = self.norm(x + self.down(functional.gelu(self.up(x))))
        return output


class Batch:
    """Which tokens of a batch are real, `(rows, tokens)`, and its two forms.

    Packed, `(n, width)`, are the tokens that are computed: on a CPU the real ones alone, which is as much faster as
    there is padding. Elsewhere all are: how many are real is known on the device, and would have to be waited for.
    """

    def __init__(self, real: torch.Tensor) -> None:
        self._shape = real.shape
        self._index: torch.Tensor | None = None
        self.visible: torch.Tensor | None = None
        """Which tokens each row attends to, as attention wants it; None for all."""
        if leaves_padding_out(real.device):
            if real.all():
                return
            self._index = real.flatten().nonzero().squeeze(1)
        hidden = ~real & real.any(1, keepdim=True)  # attention to nothing is not a number on every device
        self.visible = ~hidden[:, None, None]

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, tokens, width) → (n, width)."""
        x = x.flatten(0, 1)
        return x if self._index is None else x.index_select(0, self._index)

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """(n, width) → (rows, tokens, width), with zeros for what was left out."""
        if self._index is not None:
            x = x.new_zeros(self._shape.numel(), x.shape[1]).index_copy_(0, self._index, x)
        return x.reshape(*self._shape, x.shape[1])


def leaves_padding_out(device: torch.device) -> bool:
    return device.type == "cpu"


def norm() -> nn.LayerNorm:
    return nn.LayerNorm(WIDTH, eps=1e-12)


def build() -> nn.Module:
    return MiniLM()
