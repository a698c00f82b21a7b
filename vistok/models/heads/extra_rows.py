"""Networks behind the extra rows of a target's forward pass: what they enter with, and who sees whom among them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from vistok.errors import VistokError


class RowNetwork(nn.Module):
    """Rows that hang on a token and predict the tokens behind the next one, all in the pass that reads the token.

    Attributes:
        ahead: tokens m that are predicted; row group k stands k + 1 positions behind its token and predicts the token
            k + 2 positions behind it.
        group: rows e for each of them, whose logits are averaged.
        layer: the decoder layer that the rows enter in front of, 0 for the place of token embeddings.
        hidden_size: width H of what they enter with.
        sees: entry (i, j): row i sees row j, bool [m e, m e].
        arxiv: of the paper.
    """

    arxiv: ClassVar[str]
    ahead: int
    group: int = 1
    layer: int = 0
    hidden_size: int
    sees: Tensor

    def states(self, attached: Tensor, which: Tensor) -> Tensor:
        """Returns what rows enter with.

        Args:
            attached: states of their tokens in front of ``layer``, [B, M, H].
            which: number of each row, 0 to m e - 1, int64 [B or 1, M].

        Returns:
            [B, M, H].
        """
        raise NotImplementedError

    def check(self, model: nn.Module) -> None:
        """Raises VistokError if the rows cannot enter this causal LM."""
        config = model.config.get_text_config(decoder=True)
        width = model.get_input_embeddings().weight.shape[1] if self.layer == 0 else config.hidden_size
        name = type(self).__name__
        if width != self.hidden_size:
            raise VistokError(
                f"these {name} are {self.hidden_size} wide and the states of the target {width}: take those that were "
                "trained for this model."
            )
        if self.layer >= config.num_hidden_layers:
            raise VistokError(
                f"these {name} enter in front of layer {self.layer}, but the target's layers are 0 to "
                f"{config.num_hidden_layers - 1}: take those that were trained for this model."
            )


def nested(ahead: int) -> Tensor:
    """Returns the usual sight, bool [m, m]: each row sees itself and those before it."""
    return torch.ones(ahead, ahead, dtype=torch.bool).tril()


class Placeholders(RowNetwork):
    """Rows that enter as one token of the model's own table (lexical unit decoding).

    Args:
        table: the model's token embeddings; not a part of this module.
        token: that the model was taught to fill.
        ahead: rows behind a token.
    """

    arxiv: ClassVar[str] = "2405.15208"

    def __init__(self, table: nn.Embedding, token: int, ahead: int):
        super().__init__()
        self._table = (table,)  # in a tuple, so that it is not registered here as well
        self.token, self.ahead, self.hidden_size = token, ahead, table.weight.shape[1]
        self.register_buffer("sees", nested(ahead), persistent=False)

    def states(self, attached: Tensor, which: Tensor) -> Tensor:
        """Returns the token's embedding, whatever stands before."""
        return self._table[0].weight[self.token].expand(*attached.shape[:2], -1)
