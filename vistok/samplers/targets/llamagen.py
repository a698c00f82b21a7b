"""LlamaGen as a target of the draft-verify loop, with guidance inside."""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.models.interface import Condition
from vistok.models.llamagen import DecodeState, LlamaGen
from vistok.ops import combine_guidance
from vistok.samplers.params import SamplingParams
from vistok.samplers.run import Scores, Verdict
from vistok.samplers.tree import TokenTree


class ImageTarget:
    """LlamaGen behind the loop's interface: token trees in, guided logits out.

    With guidance, conditional and unconditional sequences run as one batch of 2B rows; once every sequence is past the
    guidance interval, the unconditional half no longer runs.

    Args:
        model: the transformer.
        condition: classes or text features of B images.
        params: guidance and its interval.
        nodes: most nodes of a tree, for which the cache has room.

    Attributes:
        length: tokens of a picture.
        guided: whether the unconditional half still runs.
    """

    def __init__(self, model: LlamaGen, condition: Condition, params: SamplingParams, nodes: int = 1):
        self.model, self.params = model, params
        self.length = model.tokens.length
        self.batch = len(condition)
        self.guided = params.guided
        values, mask = condition.values, condition.mask
        if self.guided:
            avoided = condition.negative
            null = model.null_condition(self.batch) if avoided is None else avoided.values
            values = torch.cat([values, null.to(values.dtype)])
            if mask is not None:
                mask = torch.cat([mask, mask if avoided is None else avoided.mask])
        self.condition = Condition(values, mask)
        self.state: DecodeState = model.new_state(len(values), extra=nodes)

    def prefill(self) -> Scores:
        """Guided logits of the first token [B, 1, V], and the features of the prefix, [B or 2B, T, D]."""
        hidden = self.model.prefill(self.condition.values, self.state, self.condition.mask)
        return Scores(self._logits(hidden[:, -1:], 0), hidden)

    def forward(self, tree: TokenTree, decided: Tensor) -> Scores:
        """Guided logits behind each node, and the nodes' features.

        Raises:
            VistokError: the tree has extra rows.
        """
        if tree.extra is not None:
            raise VistokError("extra rows ride along in the target of text alone: take a drafter without them.")
        depth = tree.shape.depth
        # Draft nodes beyond the picture exist only in sequences that are about to finish; nothing reads their logits.
        positions = (decided[:, None] - 1 + depth).clamp(0, self.length - 1)
        tokens, ancestors = tree.tokens, None if tree.shape.chain else tree.shape.ancestors.expand(self.batch, -1, -1)
        fed = positions
        if self.guided:
            tokens, fed = tokens.repeat(2, 1), positions.repeat(2, 1)
            ancestors = None if ancestors is None else ancestors.repeat(2, 1, 1)
        hidden = self.model.decode(tokens, fed, self.state, ancestors)
        return Scores(self._logits(hidden, positions + 1), hidden)

    def _logits(self, hidden: Tensor, positions: Tensor | int) -> Tensor:
        """Logits of the tokens at ``positions``, guided where the interval says so."""
        logits = self.model.head(hidden)
        if not self.guided:
            return logits
        scale = self.params.guidance_at(positions)
        scale = scale[..., None] if isinstance(scale, Tensor) else scale
        return combine_guidance(logits[: self.batch], logits[self.batch :], scale)

    def commit(self, verdict: Verdict, least: int, rows: int | None) -> None:
        """Keep the accepted path of every sequence, in both halves."""
        verdict.keep_rows(self.state.cache, rows, copies=2 if self.guided else 1)
        if self.guided and self.params.guided_tokens is not None and least >= self.params.guided_tokens:
            self.state = self.state.narrow(self.batch)
            self.guided = False
