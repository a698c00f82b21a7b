"""Drafts in a layout: where a token is forced, the draft is that token, and its law says so.

A fresh draft would else be turned down at every line end, and with it all that stands behind.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.samplers.loop import Drafter
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.tree import LawKind, TokenTree


class Planned:
    """A drafter that keeps to a plan.

    Args:
        drafter: of the drafts where any code may stand.
        places: what stands at each place of a sample, -1 for any code, int64 [n].
    """

    def __init__(self, drafter: Drafter, places: Tensor):
        self.drafter, self.places = drafter, places
        self.kind: LawKind = drafter.kind
        self.chain, self.nodes = drafter.chain, drafter.nodes

    @property
    def forwards(self) -> int:
        """Calls of a draft network so far."""
        return self.drafter.forwards

    def start(self, run: Run, prefill: Scores) -> None:
        """Begin a run."""
        self.drafter.start(run, prefill)

    def propose(self, run: Run) -> TokenTree:
        """The drafter's tree with the forced tokens in it."""
        tree = self.drafter.propose(run)
        behind = run.decided[:, None] + tree.shape.depth  # the place that a node's children take
        own = self._forced(behind - 1)
        tokens = torch.where((own >= 0) & (tree.shape.depth > 0), own, tree.tokens)
        laws = tree.laws
        if laws is not None and tree.nodes > 1:
            forced = self._forced(behind[:, : laws.shape[1]])
            certain = F.one_hot(forced.clamp(min=0), laws.shape[2]).to(laws.dtype)
            laws = torch.where((forced >= 0)[..., None], certain, laws)
        return replace(tree, tokens=tokens, laws=laws)

    def _forced(self, places: Tensor) -> Tensor:
        return self.places[places.clamp(0, len(self.places) - 1)]

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Let the drafter learn what became of the tree."""
        self.drafter.observe(run, tree, scores, verdict)
