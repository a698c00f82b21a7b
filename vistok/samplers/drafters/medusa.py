"""Drafting with Medusa heads (arXiv 2401.10774): every head's candidates, whatever the heads before it said.

The published typical acceptance is ``TypicalTree``, by name only; by default verification is lossless.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.heads.medusa import Medusa
from vistok.samplers.drafters.text import TextDrafter
from vistok.samplers.policies.trees import Path, best_tree, check_paths
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.targets.causal_lm import Prompt
from vistok.samplers.tree import TokenTree, TreeShape

DRAFTS, WIDTH = 8, 8  # of the default tree, and candidates of a head
GUESS = [[0.3, 0.12, 0.08, 0.05, 0.04, 0.03, 0.03, 0.02], *[[0.2, 0.1, 0.07, 0.05, 0.04, 0.03, 0.02, 0.02]] * 31]


class MedusaHeads(TextDrafter):
    """Medusa heads behind the loop's drafter interface.

    Args:
        network: made for the target, with its dtype and on its device.
        paths: rank paths of the tree, see ``TreeShape.of_paths``; a small one if None.

    Raises:
        VistokError: a path whose beginning is missing, or that is deeper than there are heads.
    """

    features = True

    def __init__(self, network: Medusa, paths: tuple[Path, ...] | None = None):
        paths = best_tree(GUESS[: network.ahead], DRAFTS) if paths is None else paths
        check_paths(paths)
        self.network, self.shape = network, TreeShape.of_paths(list(paths))
        self.nodes = self.shape.nodes
        if self.shape.height > network.ahead:
            raise VistokError(f"the tree is {self.shape.height} levels deep, but there are {network.ahead} heads.")

    def bind(self, model: nn.Module, prompt: Prompt, *args: Any, **kwargs: Any) -> None:
        """Take the target.

        Raises:
            VistokError: the heads were made for another model.
        """
        self.network.check(model)
        output = model.get_output_embeddings().weight
        self.network.to(output.device, output.dtype)
        self._count = prompt.count

    def start(self, run: Run, prefill: Scores) -> None:
        """Begin with what the heads say of the prompt's last token."""
        if self.shape.parents.device != run.tokens.device:
            self.shape = TreeShape(self.shape.parents.to(run.tokens.device))
        here = torch.arange(len(self._count), device=self._count.device)
        self._foresee(prefill.hidden[here, self._count - 1], prefill.logits.shape[-1])

    def _foresee(self, features: Tensor, size: int) -> None:
        """Keep the candidates behind features [B, H]."""
        width = min(1 + int(self.shape.rank.max()), size)
        self._top = self.network(features).topk(width).indices  # [B, m, width]

    def propose(self, run: Run) -> TokenTree:
        """Fill the tree."""
        depth, rank = self.shape.depth[0], self.shape.rank[0]
        # A vocabulary with fewer tokens than a tree has candidates repeats its least likely one, which is harmless.
        tokens = self._top[:, (depth - 1).clamp(min=0), rank.clamp(max=self._top.shape[2] - 1)]
        tokens[:, 0] = run.root[:, 0]
        return TokenTree(tokens, self.shape)

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Ask the heads behind the node that was accepted last."""
        last = (verdict.count - 1).clamp(min=0)
        here = torch.arange(len(last), device=last.device)
        node = last if verdict.path is None else verdict.path[here, last].clamp(min=0)
        self._foresee(scores.hidden[here, node], scores.logits.shape[-1])
