"""The target of text: a causal LM behind the loop's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.samplers.run import Scores, Verdict
from vistok.samplers.targets.cached_lm import CachedLM
from vistok.samplers.targets.support import check_model, check_rotations, parts_of
from vistok.samplers.tree import TokenTree

PIECE, LEAST = 2**22, 64  # logits that are formed at a time for a drafter that reads the prompt, and rows at the least


class Prompt(NamedTuple):
    """The prompts of a batch.

    Attributes:
        ids: padded on the left, int64 [B, L].
        count: how many of each are real, int64 [B].
        flush: the real ones first, garbage behind, int64 [B, L].
    """

    ids: Tensor
    count: Tensor
    flush: Tensor

    @staticmethod
    def of(ids: Tensor, mask: Tensor | None = None) -> Prompt:
        """Prompts as tokenizers give them.

        Args:
            ids: int64 [B, L].
            mask: which are real, [B, L]; all if None.

        Raises:
            VistokError: an empty prompt, or padding that is not on the left.
        """
        width = ids.shape[1]
        count = torch.full((len(ids),), width, device=ids.device) if mask is None else mask.long().sum(1)
        if width == 0 or not bool((count > 0).all()):
            raise VistokError(
                "a prompt is empty: give at least one token, such as the model's beginning-of-text token."
            )
        places = torch.arange(width, device=ids.device)
        if mask is not None and not torch.equal(mask.bool(), places >= width - count[:, None]):
            raise VistokError("prompts must be padded on the left: set tokenizer.padding_side = 'left'.")
        return Prompt(ids, count, ids.gather(1, (places + width - count[:, None]) % width))


class TextTarget:
    """A causal LM that token trees are checked against.

    Args:
        model: loaded by transformers.
        prompt: what it continues.
        length: new tokens to decide.
        nodes: most nodes of a tree with its extra rows, for which the cache has room.
        features: the scores hold the final features of the rows as well, or the states that enter these layers.
        reader: is given the real tokens of the prompts [M] and the logits behind them [M, V], piece by piece.

    Raises:
        VistokError: trees cannot run on this model.
    """

    def __init__(
        self,
        model: nn.Module,
        prompt: Prompt,
        length: int,
        nodes: int = 1,
        features: bool | tuple[int, ...] = False,
        reader: Callable[[Tensor, Tensor], None] | None = None,
    ):
        end = prompt.ids.shape[1] + length
        check_model(model, end)
        check_rotations(model, int(prompt.count.max()), int(prompt.count.max()) + length)
        self.prompt, self.length, self.batch = prompt, length, len(prompt.ids)
        self.features, self.reader = features, reader
        self.lm = CachedLM(model, end + nodes, features or reader is not None, end=end, **parts_of(model))

    def prefill(self) -> Scores:
        """Logits behind the prompt [B, 1, V]; features, where wanted, of all tokens of ``Prompt.flush``, [B, L, D]."""
        logits, hidden = self.lm.read(self.prompt.flush, self.prompt.count), self.lm.hidden
        if self.reader is not None:
            self._read(hidden)
        return Scores(logits, hidden if self.features else None)

    def _read(self, hidden: Tensor, said: Tensor | None = None) -> None:
        """Give the reader the real tokens and the logits behind their features [B, L, D]; ``said`` leaves some out."""
        prompt = self.prompt
        real = torch.arange(prompt.flush.shape[1], device=hidden.device) < prompt.count[:, None]
        real = real if said is None else real & said
        tokens, rows = prompt.flush[real], hidden[real]
        size = max(LEAST, PIECE // self.lm.vocabulary)
        for start in range(0, len(tokens), size):
            self.reader(tokens[start : start + size], self.lm.head(rows[start : start + size]))
        self.lm.features = self.features

    def forward(self, tree: TokenTree, decided: Tensor) -> Scores:
        """Logits behind each node, and behind each extra row."""
        logits = self.lm.forward(tree.tokens, *tree.rows(), tree.extra)
        hidden = self.lm.hidden[:, : tree.nodes] if self.features else None
        return Scores(logits[:, : tree.nodes], hidden, None if tree.extra is None else logits[:, tree.nodes :])

    def commit(self, verdict: Verdict, least: int, rows: int | None) -> None:
        """Keep the accepted path of every sequence."""
        verdict.keep_rows(self.lm.cache, rows)
