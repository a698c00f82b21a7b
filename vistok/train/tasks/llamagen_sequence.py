"""Train a LlamaGen on the tokens of a 1D tokenizer, coarse to fine, as FlexTok's generators are (arXiv 2502.13967,
section 4).

It is the ``llamagen`` task over ``layout: sequence``: positions are one-dimensional.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.tokenizers.load import load_tokenizer
from vistok.train.sources import Source
from vistok.train.tasks.llamagen import LlamaGenData, LlamaGenTask
from vistok.train.tasks.starts.cells import lattice_order

PLACES = 16  # along a side of the picture, as many as llamagen-mini has codes


@dataclass(frozen=True, kw_only=True)
class LlamaGenSequenceData(LlamaGenData):
    """Entries of ``data`` of the ``llamagen-sequence`` task, beside those of LlamaGenData.

    Attributes:
        tokens: how many of a picture's first tokens the generator draws; all if absent.
        cells: side of the grid whose cells the tokens tell in lattice order (``data.start: cells`` of the tokenizer's
            recipe): positions are then those of the cells, in units of llamagen-mini's.
    """

    tokens: int | None = None
    cells: int | None = None


class LlamaGenSequenceTask(LlamaGenTask):
    """The ``llamagen-sequence`` task: ``init.vq`` names the 1D tokenizer; see LlamaGenSequenceData."""

    data_class = LlamaGenSequenceData

    def load_tokenizer(self, name: str) -> nn.Module:
        return load_tokenizer(name).tokenizer

    def tokens_shape(self) -> dict[str, int | str]:
        can = self.vq.capabilities
        tokens = can.lengths[-1] if self.data.tokens is None else self.data.tokens
        can.check_length(tokens, can.lengths[-1])
        shape = {"vocab_size": can.codebook_size, "block_size": tokens, "layout": can.layout}
        return shape if self.data.cells is None else shape | {"places": self.places(tokens)}

    def cell_order(self, tokens: int) -> Tensor:
        """Returns the cells of the first tokens, [n]."""
        return lattice_order(self.data.cells)[:tokens]

    def places(self, tokens: int) -> tuple[tuple[float, float], ...]:
        """Returns row and column of each token.

        Raises:
            VistokError: there are more tokens than cells.
        """
        side = self.data.cells
        if side % 2 or tokens > side**2:
            raise VistokError(
                f"'data.cells: {side}' gives places to {side**2} tokens of an even grid, and {tokens} are drawn."
            )
        order = self.cell_order(tokens)
        return tuple(map(tuple, (torch.stack([order // side, order % side], 1) * PLACES / side).tolist()))

    def extract(self, source: Source, index: Tensor) -> Tensor:
        return super().extract(source, index)[:, : self.model.gpt.config.block_size]
