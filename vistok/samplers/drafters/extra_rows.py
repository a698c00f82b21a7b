"""Drafting without a draft model: rows beside the target's own predict the tokens to come, in the pass that checks the
present ones. Parallel prompt decoding (arXiv 2405.18628) and hidden transfer (arXiv 2404.12022).

The first step of a run checks nothing: the pass over the prompt has no extra rows.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.heads.extra_rows import RowNetwork
from vistok.samplers.drafters.text import TextDrafter
from vistok.samplers.policies.chains import chain_shape
from vistok.samplers.policies.sized import Accuracy, Option, Sizer, interpolated
from vistok.samplers.policies.sparse import SparseTrees
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.targets.causal_lm import Prompt
from vistok.samplers.targets.step_cost import step_cost
from vistok.samplers.tree import ExtraRows, TokenTree, TreeShape

LIMIT, FIRST = 16, 5  # rows of the default trees, and candidates of state 1
LIMITS = ((4, 1), (6, 2), (10, 3), (16, 5), (24, 8), (32, 10))  # likewise of those that ``auto`` chooses among
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
            chains. ``auto``: those that pay on this machine and this text, or neither trees nor rows.

    Raises:
        VistokError: trees that look further ahead than the network, or a word other than ``auto``.
    """

    def __init__(self, network: RowNetwork, trees: SparseTrees | Literal["auto"] | None = None):
        if isinstance(trees, str) and trees != "auto":
            raise VistokError(f"the trees are '{trees}': give SparseTrees, or 'auto'.")
        self.auto = trees == "auto"
        self.choices = sized_trees(network.ahead) if self.auto else [trees or default_trees(network.ahead)]
        self.network, self.trees = network, self.choices[0]
        if self.trees.ahead != network.ahead:
            raise VistokError(f"the trees look {self.trees.ahead} positions ahead and the rows {network.ahead}.")
        self.nodes = max(each.rows(network.group) for each in self.choices)
        self.width = max(each.width for each in self.choices)
        self.sizer, self.accuracy = Sizer(), Accuracy(self.width, network.ahead)
        self._rests = False

    def bind(self, model: nn.Module, prompt: Prompt, *args: Any, **kwargs: Any) -> None:
        """Take the target, and measure it where the trees depend on that.

        Raises:
            VistokError: the rows were trained for another model.
        """
        self.network.check(model)
        self.network.to(model.get_input_embeddings().weight.device)
        if self.auto:
            self._cost = step_cost(model, len(prompt.ids))

    def start(self, run: Run, prefill: Scores) -> None:
        """Begin without candidates."""
        self.sizer.begin(run)
        for trees in self.choices:
            trees.to(run.decided.device)
        self._state = torch.zeros_like(run.decided)
        width = min(self.width, prefill.logits.shape[-1])
        self._top = self._state.new_zeros(len(self._state), self.network.ahead, width)
        self._known: dict[tuple[int, int], tuple[TreeShape, ExtraRows]] = {}

    def _choose(self, run: Run) -> None:
        """Take the trees of the coming steps."""
        cost = self._cost

        def options() -> list[Option]:
            table = self.accuracy.table(self.network.ahead)
            found = (t.long_run(table, lambda rows: interpolated(cost, rows), self.network.group) for t in self.choices)
            return [Option(trees, *each) for trees, each in zip(self.choices, found, strict=True)]

        chosen = self.sizer.next(options, interpolated(cost, 1))
        if chosen is not None and self._rests:
            self._state = torch.zeros_like(self._state)  # the candidates of before the rest are stale
        self._rests = chosen is None
        self.trees = self.choices[0] if chosen is None else chosen.tree

    def propose(self, run: Run) -> TokenTree:
        """Fill the tree of each sequence's state."""
        if self.auto:
            self._choose(run)
            if self._rests:
                return TokenTree(run.root, chain_shape(1, run.root.device))
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
        key = id(self.trees), int(states)
        if key not in self._known:
            self._known[key] = self._build(states)
        return self._known[key]

    def _build(self, states: Tensor) -> tuple[TreeShape, ExtraRows]:
        trees, network = self.trees, self.network
        shape = TreeShape(trees.parents[states][:, : int(trees.nodes[states].max())])
        most = int(trees.predictions[states].max())
        attach, which = trees.attach[states][:, :most], trees.which[states][:, :most]
        return shape, hang(network, attach, which)

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Take the predictions of the node that was accepted last."""
        if self.auto:
            self.sizer.learn(run, verdict)
        if self._rests:
            return
        if self.auto:
            self._learn(run, verdict)
        path = verdict.path
        last = (verdict.count - 1).clamp(min=0)[:, None]
        node = last if path is None else path.gather(1, last)
        states = self._states(run).expand(len(node))
        looks, first = (table[states].gather(1, node)[:, 0] for table in (self.trees.looks, self.trees.first))
        self._take(scores, first, torch.where(verdict.count > 0, looks, 0))

    def _learn(self, run: Run, verdict: Verdict) -> None:
        """Note which candidates the decided tokens were, as far as the text had any."""
        places = min(self.network.ahead, verdict.emitted.shape[1])
        match = self._top[:, :places] == verdict.emitted[:, :places, None]
        ranks = torch.where(match.any(-1), match.long().argmax(-1), -1).tolist()
        known = torch.minimum(self._state, verdict.count).tolist()
        for row, count in enumerate(known):
            for place, rank in enumerate(ranks[row][:count]):
                self.accuracy.learn(rank if rank >= 0 else None, place)

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


def sized_trees(ahead: int) -> list[SparseTrees]:
    """Trees of several sizes, the smallest first."""
    if ahead != len(ACCURACY):
        return [SparseTrees.chains(ahead)]
    return [SparseTrees.best(ACCURACY, *limits) for limits in LIMITS]


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
