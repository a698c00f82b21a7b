"""The target of text: a causal LM behind the loop's interface, with logits processors that see each node's own text."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.samplers.loop import Scores, Verdict
from vistok.samplers.targets.cached_lm import CachedLM
from vistok.samplers.tree import TokenTree

Processor = Callable[[Tensor, Tensor], Tensor]  # ids [R, T] and logits [R, V] to logits [R, V]


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
        nodes: most nodes of a tree, for which the cache has room.
        processors: change the logits behind a token, given the text up to it, before the sampling law.
        prompt_logits: the prefill gives the logits behind every prompt token, not only the last.
        features: the scores hold the final features of the rows as well.

    Raises:
        VistokError: trees cannot run on this model.
    """

    def __init__(
        self,
        model: nn.Module,
        prompt: Prompt,
        length: int,
        nodes: int = 1,
        processors: Processor | None = None,
        prompt_logits: bool = False,
        features: bool = False,
    ):
        self.prompt, self.length, self.batch = prompt, length, len(prompt.ids)
        self.lm = CachedLM(model, prompt.ids.shape[1] + length + nodes, features)
        self.processors, self.prompt_logits = processors, prompt_logits
        if processors is not None:
            self.text = torch.cat([prompt.ids, prompt.ids.new_zeros(self.batch, length + nodes)], 1)

    def prefill(self) -> Scores:
        """Logits behind the prompt, [B, 1, V]; or behind all L tokens, those of short prompts at the end, [B, L, V].

        Features, where they are wanted, are those of all L tokens, like ``Prompt.flush``: [B, L, D].
        """
        prompt = self.prompt
        logits = self.lm.read(prompt.flush, prompt.count, 0 if self.prompt_logits else 1)
        if self.prompt_logits:
            width = logits.shape[1]
            places = (torch.arange(width, device=logits.device) + prompt.count[:, None]) % width
            logits = logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))
        if self.processors is not None:
            last = self.processors(prompt.ids, logits[:, -1].float())
            logits = torch.cat([logits[:, :-1].to(last.dtype), last[:, None]], 1)
        return Scores(logits, self.lm.hidden)

    def forward(self, tree: TokenTree, decided: Tensor) -> Scores:
        """Logits behind each node."""
        shape = tree.shape
        logits = self.lm.forward(tree.tokens, shape.depth, shape.ancestors)
        if self.processors is not None:
            logits = self._process(tree, decided, logits.float())
        return Scores(logits, self.lm.hidden)

    def _process(self, tree: TokenTree, decided: Tensor, logits: Tensor) -> Tensor:
        """Run the processors node by node.

        They always see all sequences of the batch, because transformers' own remember things of each row; the rows of
        sequences whose text has another length are not used.
        """
        shape, batch = tree.shape, len(tree.tokens)
        depth, ancestors = shape.depth.expand(batch, -1), shape.ancestors.expand(batch, -1, -1)
        self._root = self.prompt.ids.shape[1] + decided[:, None] - 1  # where the root goes
        dummy = self.text.shape[1]
        self.text.scatter_(1, self._root.clamp(max=dummy - 1), tree.tokens[:, :1])
        text = F.pad(self.text, (0, 1))
        processed = logits.clone()
        for node in range(shape.nodes):
            places = torch.where(ancestors[:, node], self._root + depth, dummy).clamp(max=dummy)
            ids = text.scatter(1, places, tree.tokens)
            size = torch.where(depth[:, node] >= 0, self._root[:, 0] + depth[:, node] + 1, 0)
            for width in size[size > 0].unique().tolist():
                found = self.processors(ids[:, :width], logits[:, node])
                processed[:, node] = torch.where((size == width)[:, None], found, processed[:, node])
        return processed

    def commit(self, verdict: Verdict, least: int, rows: int | None) -> None:
        """Keep the accepted path of every sequence."""
        cache = self.lm.cache
        if verdict.path is not None:
            cache.commit(verdict.path, verdict.count)
        else:
            cache.advance(verdict.count if rows is None else rows)
        if self.processors is not None:
            places = self._root + 1 + torch.arange(verdict.emitted.shape[1], device=self._root.device)
            self.text.scatter_(1, places.clamp(max=self.text.shape[1] - 1), verdict.emitted)
