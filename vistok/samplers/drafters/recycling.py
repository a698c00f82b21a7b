"""Token Recycling: the target's own runners-up are the drafts of later steps (arXiv 2408.08696).

An adjacency matrix holds, for every token, the k tokens that the target last thought most likely behind it. A static
tree is filled from it level by level, and every node that the target has scored, accepted or not, renews its token's
row; where a token stands at several nodes of a step, the last node counts. Works on any target of the loop, pictures
included: nothing here knows what the tokens stand for.

Against the published code: the tokens of the prompt renew their rows too (``warm``), sampling is exact and not ignored,
and any tree of any width will do, which matters where 81 rows cost much more than one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.samplers.drafters.text import TextDrafter
from vistok.samplers.interface import AutoregressiveSampler
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.chains import chain_shape
from vistok.samplers.policies.sized import SIZES, Accuracy, Option, Sizer, interpolated, size_options
from vistok.samplers.policies.trees import TREE_2_2_2, Path, best_tree, check_paths
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.targets.causal_lm import Prompt
from vistok.samplers.targets.step_cost import step_cost
from vistok.samplers.tree import TokenTree, TreeShape
from vistok.samplers.verifiers.candidates import SampleMatch

AUTO_WIDTH = 8  # candidates of a token that a tree of its own size chooses among


class TokenRecycling(TextDrafter):
    """Drafts from an adjacency matrix, which is kept from one run to the next.

    Args:
        tree: rank paths of the tree, see ``TreeShape.of_paths``; or ``auto``, the tree that pays on this machine and
            this text, which may be none (``vistok.samplers.policies.sized``; in runs of text).
        warm: the prompt of a text renews rows of the matrix as well.

    Attributes:
        adjacency: int64 [V, k], k the most children of a node; None before the first run. Zeros at first, as published.

    Raises:
        VistokError: a path whose beginning is missing.
    """

    def __init__(self, tree: tuple[tuple[int, ...], ...] | Literal["auto"] = TREE_2_2_2, warm: bool = True):
        self.warm = self.reads_prompt = warm
        self.adjacency: Tensor | None = None
        self.auto = tree == "auto"
        if self.auto:
            self.shape, self.width, self.nodes = TreeShape.chain_of(1, "cpu"), AUTO_WIDTH, 1 + max(SIZES)
            self.accuracy, self.sizer, self._cost = Accuracy(self.width), Sizer(watches=True), None
            return
        if isinstance(tree, str):
            raise VistokError(f"the tree is '{tree}': give rank paths, or 'auto'.")
        check_paths(tree)
        self.shape = TreeShape.of_paths(list(tree))
        self.width = 1 + max(path[-1] for path in tree)
        self.nodes = self.shape.nodes

    def bind(self, model: nn.Module, prompt: Prompt, *args: Any, **kwargs: Any) -> None:
        """Measure the target, where the tree depends on it."""
        if self.auto:
            self._cost = step_cost(model, len(prompt.ids))

    def read(self, tokens: Tensor, logits: Tensor) -> None:
        """Let the prompt renew the matrix.

        Raises:
            VistokError: the matrix belongs to another vocabulary, or has more columns than it.
        """
        self._allocate(logits.shape[-1], logits.device)
        self.renew(tokens, logits)

    def _allocate(self, size: int, device: torch.device) -> None:
        if self.adjacency is None:
            if self.auto and self.width > size:
                self.width, self.accuracy = size, Accuracy(size)
            if self.width > size:
                raise VistokError(f"the tree wants {self.width} candidates of a token, but there are {size} tokens.")
            self.adjacency = torch.zeros(size, self.width, dtype=torch.int64)
        if len(self.adjacency) != size:
            raise VistokError(
                f"this drafter has seen a vocabulary of {len(self.adjacency)} tokens, not {size}: make another one."
            )
        self.adjacency = self.adjacency.to(device)

    def start(self, run: Run, prefill: Scores) -> None:
        """Make the matrix if there is none.

        Raises:
            VistokError: see ``read``.
        """
        device = prefill.logits.device
        self._allocate(prefill.logits.shape[-1], device)
        if self.auto and self._cost is None:
            raise VistokError("tree='auto' measures a model of text: give rank paths here.")
        if self.auto:
            self.sizer.begin(run)
        self._foreseen = [False] * len(run.tokens)
        self._late: list[tuple[Tensor, Tensor, Tensor]] = []
        self._lay_out(device)

    def _lay_out(self, device: torch.device) -> None:
        """Note which nodes are filled in turn."""
        if self.shape.parents.device != device:
            self.shape = TreeShape(self.shape.parents.to(device))
        depth = self.shape.depth[0]
        self._levels = [(depth == d).nonzero()[:, 0] for d in range(1, self.shape.height + 1)]
        self._sources = [(self.shape.parents[0, level], self.shape.rank[0, level]) for level in self._levels]

    def propose(self, run: Run) -> TokenTree:
        """Fill the tree: node i is candidate ``rank_i`` of its parent's token."""
        if self.auto:
            self._choose(run)
        if self.shape.nodes == 1:
            return TokenTree(run.root, self.shape)
        tokens = run.root.repeat(1, self.shape.nodes)
        for level, (parents, ranks) in zip(self._levels, self._sources, strict=True):
            tokens[:, level] = self.adjacency[tokens[:, parents], ranks]
        return TokenTree(tokens, self.shape)

    def _choose(self, run: Run) -> None:
        before = self.sizer.chosen
        if self.sizer.due:
            self._catch_up(run)
        cost = self._cost

        def options() -> list[Option]:
            return size_options(self.accuracy.table(), cost)

        found = self.sizer.next(options, interpolated(cost, 1))
        if found is before:
            return
        device = run.tokens.device
        self.shape = chain_shape(1, device) if found is None else TreeShape.of_paths(list(found.tree), device)
        self._lay_out(device)

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """All nodes of the sequences that still run renew their rows; where none is drafted, some steps later."""
        going = run.decided < run.length
        if self.auto:
            self.sizer.learn(run, verdict)
        if self.auto and tree.nodes == 1:
            best = scores.logits[:, 0].topk(self.width)
            known = torch.where(best.values[:, -1] > -torch.inf, run.root[:, 0], -1)
            self._late.append((torch.where(going, known, -1), best.indices, verdict.emitted[:, 0]))
            return
        if self.auto:
            self._learn(run, verdict, going)
        self.renew(tree.tokens[going].flatten(), scores.logits[going].flatten(0, 1))

    def _catch_up(self, run: Run) -> None:
        """Learn from steps without drafts, and renew their tokens' rows."""
        if not self._late:
            return
        tokens, best, emitted = (torch.stack(part, 1) for part in zip(*self._late, strict=True))  # [B, T, ...]
        self._late = []
        match = self.adjacency[tokens.clamp(min=0)] == emitted[..., None]
        ranks = torch.where(match.any(-1), match.long().argmax(-1), -1)
        ranks = torch.where(tokens < 0, -2, ranks).tolist()
        for row, found in enumerate(ranks):
            self._foreseen[row] = self._take(found, self._foreseen[row])
        real = tokens.flatten() >= 0
        self._write(tokens.flatten()[real], best.flatten(0, 1)[real])

    def _take(self, ranks: list[int], foreseen: bool) -> bool:
        """Learn the ranks that tokens behind one another had: -1 for none, -2 for no token."""
        for rank in ranks:
            if rank > -2:
                self.accuracy.learn(rank if rank >= 0 else None, foreseen)
                foreseen = rank >= 0
        return foreseen

    def _learn(self, run: Run, verdict: Verdict, going: Tensor) -> None:
        """Note which candidates the decided tokens were, before their rows are renewed."""
        before = torch.cat([run.root, verdict.emitted[:, :-1]], 1)
        match = self.adjacency[before] == verdict.emitted[..., None]  # [B, M, width]
        ranks = torch.where(match.any(-1), match.long().argmax(-1), -1).tolist()
        for row, (count, goes) in enumerate(zip(verdict.count.tolist(), going.tolist(), strict=True)):
            if goes:
                self._foreseen[row] = self._take(ranks[row][:count], self._foreseen[row])

    def renew(self, tokens: Tensor, logits: Tensor) -> None:
        """Write the rows of tokens [M] anew from the logits behind them [M, V]; the last of equal tokens counts.

        Where fewer tokens are allowed than a row holds (behind a line comes its end), there is nothing to learn.
        """
        best = logits.topk(self.width)
        teaches = best.values[:, -1] > -torch.inf
        self._write(tokens[teaches], best.indices[teaches])

    def _write(self, tokens: Tensor, best: Tensor) -> None:
        """Rows of tokens [M] become best [M, k]; the last of equal tokens counts."""
        order = torch.arange(len(tokens), device=tokens.device)
        last = torch.zeros_like(self.adjacency[:, 0]).scatter_reduce(0, tokens, order, "amax")
        counts = last[tokens] == order
        self.adjacency[tokens[counts]] = best[counts]


# 16 drafts for codes whose runners-up are about equally likely: wide near the root, two levels deep.
TREE = best_tree([[0.25, 0.16, 0.12, 0.1, 0.08, 0.07, 0.06, 0.05]] * 3, 16)


@dataclass(frozen=True)
class Recycling(AutoregressiveSampler):
    """Drafts from the codes that the model last thought most likely behind a code (arXiv 2408.08696); lossless, and the
    pictures are those of plain decoding with the same seed.

    Attributes:
        tree: rank paths of the draft tree.

    Raises:
        VistokError: a path whose beginning is missing.
    """

    tree: tuple[Path, ...] = TREE

    def __post_init__(self):
        check_paths(self.tree)

    def parts(self, model: nn.Module, params: SamplingParams, batch: int) -> tuple[TokenRecycling, SampleMatch]:
        """Returns a drafter with an empty matrix, and the verifier that keeps plain decoding's draws."""
        return TokenRecycling(self.tree, warm=False), SampleMatch()
