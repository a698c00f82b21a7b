"""Drafting without a draft model: rows beside the target's own predict the tokens to come, in the pass that checks the
present ones. Parallel prompt decoding (arXiv 2405.18628) and hidden transfer (arXiv 2404.12022).

The first step of a run checks nothing: the pass over the prompt has no extra rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.heads.extra_rows import RowNetwork
from vistok.samplers.drafters.text import TextDrafter
from vistok.samplers.loop import Run, Scores, Verdict
from vistok.samplers.policies.sparse import SparseTrees
from vistok.samplers.tree import ExtraRows, TokenTree, TreeShape

LIMIT, FIRST = 16, 5  # rows of the default trees, and candidates of state 1
# How often candidate r of text-mini-ppd was the next token of text-mini's greedy continuations of training modules, by
# distance; shapes the default trees.
ACCURACY = [
    [0.219, 0.108, 0.079, 0.056, 0.041, 0.036, 0.032, 0.021, 0.020, 0.018],
    [0.154, 0.092, 0.068, 0.053, 0.043, 0.039, 0.028, 0.027, 0.026, 0.020],
    [0.156, 0.096, 0.063, 0.053, 0.043, 0.032, 0.031, 0.023, 0.022, 0.019],
]


class ExtraRowDrafter(TextDrafter):
    """Candidates from the extra rows of the node that was accepted last.

    Args:
        network: gives the rows: ``PromptTokens``, ``HiddenTransfer``.
        trees: of each state; for a network that looks three positions ahead those of ``best_sparse_trees``, else
            chains.

    Raises:
        VistokError: trees that look further ahead than the network.
    """

    def __init__(self, network: RowNetwork, trees: SparseTrees | None = None):
        if trees is None:
            trees = default_trees(network.ahead)
        if trees.ahead != network.ahead:
            raise VistokError(f"the trees look {trees.ahead} positions ahead and the rows {network.ahead}.")
        self.network, self.trees = network, trees
        self.nodes = trees.rows(network.group)

    def bind(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Take the target.

        Raises:
            VistokError: the rows were trained for another model.
        """
        self.network.check(model)
        self.network.to(model.get_input_embeddings().weight.device)

    def start(self, run: Run, prefill: Scores) -> None:
        """Begin without candidates."""
        self.trees.to(run.decided.device)
        self._state = torch.zeros_like(run.decided)
        width = min(self.trees.width, prefill.logits.shape[-1])
        self._top = self._state.new_zeros(len(self._state), self.network.ahead, width)
        self._known: dict[int, tuple[TreeShape, ExtraRows]] = {}

    def propose(self, run: Run) -> TokenTree:
        """Fill the tree of each sequence's state."""
        shape, extra = self._layout(run)
        states, width = self._states(run), self._top.shape[2]
        depth, rank = (table[states][:, : shape.nodes] for table in (self.trees.depth, self.trees.rank))
        # A vocabulary with fewer tokens than a tree has candidates repeats its least likely one, which is harmless.
        place = (depth - 1).clamp(min=0) * width + rank.clamp(max=width - 1)
        tokens = self._top.flatten(1).gather(1, place.expand(len(self._top), -1))
        tokens[:, :1] = run.root
        return TokenTree(tokens, shape, extra=extra)

    def _states(self, run: Run) -> Tensor:
        """States [B], or [1] where they are the same."""
        return self._state[:1] if bool((self._state == self._state[0]).all()) else self._state

    def _layout(self, run: Run) -> tuple[TreeShape, ExtraRows]:
        states = self._states(run)
        if len(states) > 1:
            return self._build(states)
        state = int(states)
        if state not in self._known:
            self._known[state] = self._build(states)
        return self._known[state]

    def _build(self, states: Tensor) -> tuple[TreeShape, ExtraRows]:
        trees, network = self.trees, self.network
        shape = TreeShape(trees.parents[states][:, : int(trees.nodes[states].max())])
        most = int(trees.predictions[states].max())
        attach, which = trees.attach[states][:, :most], trees.which[states][:, :most]
        return shape, hang(network, attach, which)

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Take the predictions of the node that was accepted last."""
        path = verdict.path
        last = (verdict.count - 1).clamp(min=0)[:, None]
        node = last if path is None else path.gather(1, last)
        states = self._states(run).expand(len(node))
        looks, first = (table[states].gather(1, node)[:, 0] for table in (self.trees.looks, self.trees.first))
        self._take(scores, first, torch.where(verdict.count > 0, looks, 0))

    def _take(self, scores: Scores, first: Tensor, looks: Tensor) -> None:
        """Keep the best candidates of ``looks`` predictions from number ``first`` on, int64 [B] each."""
        logits = predictions(self.network, scores.extra, first)
        self._top = logits.topk(self._top.shape[2]).indices
        self._state = looks


def default_trees(ahead: int) -> SparseTrees:
    """Trees for a network that nothing is known of."""
    if ahead != len(ACCURACY):
        return SparseTrees.chains(ahead)
    return SparseTrees.best(ACCURACY, LIMIT, FIRST)


def hang(network: RowNetwork, attach: Tensor, which: Tensor) -> ExtraRows:
    """The rows of predictions.

    Args:
        network: that makes them.
        attach: node of each prediction, int64 [B or 1, P]; -1 for none.
        which: its number, 0 to m - 1, int64 [B or 1, P].
    """
    group = network.group
    copies = torch.arange(group, device=attach.device)
    row = (which[..., None] * group + copies).flatten(1)
    attach, which = (part.repeat_interleave(group, 1) for part in (attach, which))
    sees = network.sees.to(attach.device)[row[:, :, None], row[:, None]]
    sees = sees & (attach[:, :, None] == attach[:, None]) & (attach >= 0)[..., None]
    sees = sees | torch.eye(attach.shape[1], dtype=torch.bool, device=attach.device)
    return ExtraRows(attach, which + 1, sees, lambda states: network.states(states, row), network.layer)


def predictions(network: RowNetwork, logits: Tensor, first: Tensor) -> Tensor:
    """Logits [B, m, V] of m predictions from number ``first`` [B] on, out of those of the rows [B, M, V].

    Numbers behind the last row repeat it.
    """
    group = network.group
    rows = (first[:, None] * group + torch.arange(network.ahead * group, device=first.device)).clamp(
        max=logits.shape[1] - 1
    )
    found = logits.gather(1, rows[..., None].expand(-1, -1, logits.shape[-1]))
    return found.unflatten(1, (network.ahead, group)).mean(2)
