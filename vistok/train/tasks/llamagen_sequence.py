"""Train a LlamaGen on the tokens of a 1D tokenizer, coarse to fine, as FlexTok's generators are (arXiv 2502.13967,
section 4).

It is the ``llamagen`` task over ``layout: sequence``: positions are one-dimensional.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vistok.tokenizers.load import load_tokenizer
from vistok.train.sources import Source
from vistok.train.tasks.llamagen import LlamaGenData, LlamaGenTask


@dataclass(frozen=True, kw_only=True)
class LlamaGenSequenceData(LlamaGenData):
    """Entries of ``data`` of the ``llamagen-sequence`` task, beside those of LlamaGenData.

    Attributes:
        tokens: how many of a picture's first tokens the generator draws; all if absent.
    """

    tokens: int | None = None


class LlamaGenSequenceTask(LlamaGenTask):
    """The ``llamagen-sequence`` task: ``init.vq`` names the 1D tokenizer; see LlamaGenSequenceData."""

    data_class = LlamaGenSequenceData

    def load_tokenizer(self, name: str) -> nn.Module:
        return load_tokenizer(name).tokenizer

    def tokens_shape(self) -> dict[str, int | str]:
        can = self.vq.capabilities
        tokens = can.lengths[-1] if self.data.tokens is None else self.data.tokens
        can.check_length(tokens, can.lengths[-1])
        return {"vocab_size": can.codebook_size, "block_size": tokens, "layout": can.layout}

    def extract(self, source: Source, index: Tensor) -> Tensor:
        return super().extract(source, index)[:, : self.model.gpt.config.block_size]
