"""One forward of a decoder under a policy: where its real tokens are, and that no gradient passes its cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vistok.context.cache import ContextCache
from vistok.context.interface import Report, Step
from vistok.errors import VistokError


class Call:
    """One forward of the decoder under a policy: its cache, and where the real tokens are."""

    def __init__(
        self,
        cache: ContextCache | None,
        new: int,
        real: Tensor | None,
        positions: Tensor | None = None,
        drafts: Tensor | None = None,
    ) -> None:
        self.cache, self.new, self.real, self.positions, self.drafts = cache, new, real, positions, drafts
        self.step: Step | None = None
        self.batch, self.read = 0, 0.0
        if real is not None:
            self.order = (~real).to(torch.int8).sort(dim=1, stable=True).indices  # real tokens first
            self.place = (real.long().cumsum(1) - 1).clamp(min=0)

    def begin(self, q: Tensor, k: Tensor, report: Report) -> None:
        """Makes the step, and the rows of a new cache, when the first layer has queries and keys."""
        self.batch, self.read = len(q), report.read
        counts = None if self.real is None else self.real.sum(1)
        positions = self.positions
        if positions is not None and positions.dim() == 3:  # of time, height and width
            positions = None
        if self.real is not None and positions is not None:
            positions = positions.expand(self.batch, -1).gather(1, self.order)
        rows = tokens = None
        if self.cache is not None:
            rows = self.cache.allocate(q, k) if self.cache.rows is None else self.cache.rows
            tokens = self.cache.step_tokens(self.batch, k.device)
        options = {"mask": self.drafts, "tokens": tokens, "positions": positions, "report": report}
        self.step = Step(rows, self.new, counts, **options)

    def undo(self) -> None:
        """Forgets what the forward has stored and counted so far."""
        if self.cache is not None:
            self.cache.undo(None if self.step is None else self.step.start)
        if self.step is not None and self.step.report is not None:
            self.step.report.read = self.read

    def flush(self, x: Tensor) -> Tensor:
        """Returns [B, H, T, D] with the real tokens of each sequence first."""
        return x if self.real is None else _picked(x, self.order)

    def back(self, x: Tensor) -> Tensor:
        """Returns [B, H, T, D] in the order of the prompt again."""
        return x if self.real is None else _picked(x, self.place)


def _picked(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(2, places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


class Blocked(torch.autograd.Function):
    """Passes a result on, and refuses to send a gradient back."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, q: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise VistokError(
            "gradients do not pass the cache of a policy: train with use_cache=False under a policy that can be "
            "trained (CoreContext), or remove() it."
        )
