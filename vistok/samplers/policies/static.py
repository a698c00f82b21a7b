"""Trees of fixed shape: EAGLE-1 (arXiv 2401.15077) and LANTERN++ (arXiv 2502.06352).

Each node's children are drawn without replacement from the processed law, or are the most likely ones when decoding is
greedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vistok.errors import unknown_name
from vistok.ops import draw
from vistok.samplers.interface import DraftHead
from vistok.samplers.noise import DRAFT
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.trees import STATIC_TREES, check_paths
from vistok.samplers.run import Run
from vistok.samplers.tree import LawKind, TokenTree, TreeShape


@dataclass(frozen=True)
class StaticTree:
    """A tree of fixed shape (EAGLE-1, LANTERN++).

    Attributes:
        paths: rank paths, see ``TreeShape.of_paths``, or the name of a published tree.

    Raises:
        VistokError: unknown name, or a path whose beginning is missing.
    """

    paths: str | tuple[tuple[int, ...], ...] = "naive_extend_57"
    chain: ClassVar[bool] = False

    def __post_init__(self):
        paths = STATIC_TREES.get(self.paths, ()) if isinstance(self.paths, str) else self.paths
        if isinstance(self.paths, str) and not paths:
            raise unknown_name("static tree", self.paths, list(STATIC_TREES))
        check_paths(paths)
        object.__setattr__(self, "shape", TreeShape.of_paths(list(paths)))
        object.__setattr__(self, "_placed", {})

    def placed(self, device: torch.device) -> TreeShape:
        """The shape on a device, with its tables built once."""
        return self._placed.setdefault(device, TreeShape(self.shape.parents.to(device)))

    @property
    def nodes(self) -> int:
        """Nodes, the root included."""
        return self.shape.nodes

    @property
    def slots(self) -> int:
        """Slots that growing writes."""
        return sum(len(level) for level in self.shape.expanded[1:])

    def kind(self, params: SamplingParams) -> LawKind:
        """Drawn without replacement, or the most likely ones when decoding is greedy."""
        return LawKind.DETERMINISTIC if params.greedy else LawKind.WITHOUT_REPLACEMENT

    def grow(self, head: DraftHead, run: Run) -> TokenTree:
        """Choose the children of all nodes of a level at a time."""
        device, batch = run.decided.device, len(run.decided)
        shape = self.placed(device)
        tokens = torch.zeros(batch, shape.nodes, dtype=torch.int64, device=device)
        tokens[:, :1] = run.root
        laws = None
        below = torch.zeros(0, dtype=torch.int64, device=device)
        hidden = head.hidden  # behind each node of the level, [R, T, H]
        within = torch.zeros(shape.nodes, dtype=torch.int64, device=device)
        for depth, level in enumerate(shape.expanded):
            within[level] = torch.arange(len(level), device=device)
            if depth:
                features = hidden[:, within[shape.parents[0, level]]]
                below = torch.cat([below, level])
                seen = shape.ancestors[:, level][:, :, below]
                hidden = head.expand(tokens[:, level], features, seen, torch.full_like(level, depth - 1))
            logits = head.logits(hidden, (run.decided[:, None] + depth).expand(-1, len(level)))
            children = shape.children[0, level]  # [T, K]
            most = children.shape[1]
            if run.params.greedy:
                chosen = logits.topk(most).indices
            else:
                law = run.params.probabilities(logits)
                if laws is None:
                    laws = law.new_zeros(batch, shape.nodes, law.shape[-1])
                laws[:, level] = law
                chosen = self._draw(law, run, level, depth, most)
            used = children >= 0
            tokens[:, children[used]] = chosen[:, used]
        head.forget(self.slots)
        return TokenTree(tokens, shape, self.kind(run.params), laws)

    @staticmethod
    def _draw(law: Tensor, run: Run, level: Tensor, depth: int, most: int) -> Tensor:
        """Draws without replacement, int64 [B, T, most]; a law that has run out of tokens gives token 0, of
        probability 0.
        """
        rest, found = law, []
        offsets = torch.full_like(level, depth)
        for rank in range(most):
            token = draw(rest, run.uniform(offsets, DRAFT, level, rank))
            found.append(token)
            rest = rest.scatter(-1, token[..., None], 0.0)
        return torch.stack(found, -1)
