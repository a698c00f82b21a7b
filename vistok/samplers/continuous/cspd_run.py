"""The state of a run of continuous speculative decoding: what the target and the draft have drawn so far.

A step is one set of the masked schedule; a window is the steps that are drafted before the target checks them.
``vistok.samplers.continuous.cspd_rules`` decides which drafts stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vistok.samplers.continuous.head import Path, draw_path
from vistok.samplers.continuous.mar import GuidedMAR
from vistok.samplers.continuous.noise import ACCEPT, RESIDUAL, RESIDUAL_ACCEPT, TokenNoise
from vistok.samplers.continuous.schedule import MaskSchedule
from vistok.samplers.continuous.stats import ContinuousStats


class Numbers:
    """The random numbers of a run, addressed by the tokens that use them.

    Args:
        noise: seed and samples.
        steps, dim: T and D.
    """

    def __init__(self, noise: TokenNoise, steps: int, dim: int):
        self.noise, self.steps, self.dim = noise, steps, dim

    def path(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Normals [T + 1, N, D], the same for draft and target."""
        return self.noise.paths(rows, positions, self.steps, self.dim)

    def accept(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Uniforms [N] that decide about drafts."""
        return self.noise.uniform(rows, positions, ACCEPT)

    def proposal(self, rows: Tensor, positions: Tensor, attempts: Tensor) -> tuple[Tensor, Tensor]:
        """Normals [R, N, D] and uniforms [R, N] of rounds [R] of the published residual loop."""
        shape = len(attempts), len(rows)
        tokens = rows.repeat(len(attempts)), positions.repeat(len(attempts))
        attempt = attempts.repeat_interleave(len(rows))
        normal = self.noise.paths(*tokens, 0, self.dim, RESIDUAL, attempt)[0]
        return normal.view(*shape, -1), self.noise.uniform(*tokens, RESIDUAL_ACCEPT, attempt).view(shape)


@dataclass
class Drafted:
    """The drafted tokens of a window, and what they were drawn from.

    Attributes:
        rows, positions: where they stand, int64 [N].
        step: their place in the window, int64 [N].
        path: how they were drawn.
        z: the draft's conditions, [N, Ed] or [2 N, Ed].
        scale: of guidance, [N].
    """

    rows: Tensor
    positions: Tensor
    step: Tensor
    path: Path
    z: Tensor
    scale: Tensor


@dataclass
class CSpDRun:
    """The state of a run.

    Attributes:
        target, draft: the two models under guidance.
        plan, scales, rank: schedule, guidance of each step, and place of each position in its order.
        numbers: random numbers.
        tokens: [B, L, D].
        stats: filled as it goes.
    """

    target: GuidedMAR
    draft: GuidedMAR
    plan: MaskSchedule
    scales: list[float]
    rank: Tensor
    numbers: Numbers
    tokens: Tensor = field(init=False)
    stats: ContinuousStats = field(init=False)

    def __post_init__(self) -> None:
        batch, length = self.rank.shape
        device = self.rank.device
        self.tokens = torch.zeros(batch, length, self.target.model.config.token_dim, device=device)
        zeros = torch.zeros(batch, dtype=torch.int64, device=device)
        self.stats = ContinuousStats(
            torch.zeros(batch, length, dtype=torch.int64, device=device), zeros.clone(), accepted_drafts=zeros
        )
        self.step_of = self.plan.step_of_rank.to(device)[self.rank]  # [B, L]
        self.scale_of = torch.tensor(self.scales, device=device)

    def target_step(self, step: int, last_noise: bool) -> None:
        """Draws the tokens of a step from the target alone."""
        chosen = self.step_of == step
        rows, positions = chosen.nonzero(as_tuple=True)
        z = self.target.conditions(self.tokens, self.step_of >= step, chosen)
        chain = self.target.chain(z, self.scale_of[step].expand(len(rows)))
        path = draw_path(chain, self.numbers.path(rows, positions), last_noise)
        self.tokens[rows, positions] = path.value
        self.stats.step_of[rows, positions] = self.target.forwards
        self.target.release()

    def draft_step(self, tokens: Tensor, active: Tensor, step: Tensor, place: int, last_noise: bool) -> Drafted:
        """Drafts the tokens of a step in place.

        Args:
            tokens: the working copy, [B, L, D].
            active: rows that take part, int64 [A].
            step: which step of each of them, int64 [A].
            place: of the step in the window.
            last_noise: see :func:`draw_path`.
        """
        steps = self.step_of[active]
        chosen = steps == step[:, None]
        local, positions = chosen.nonzero(as_tuple=True)
        z = self.draft.conditions(tokens[active], steps >= step[:, None], chosen, active)
        rows, scale = active[local], self.scale_of[step[local]]
        path = draw_path(self.draft.chain(z, scale), self.numbers.path(rows, positions), last_noise)
        tokens[rows, positions] = path.value
        self.stats.proposed += torch.bincount(rows, minlength=len(tokens))
        self.draft.release()
        return Drafted(rows, positions, torch.full_like(rows, place), path, z, scale)

    def join(self, parts: list[Drafted]) -> Drafted:
        """Returns the drafts of the steps of a window as one."""
        z = [part.z.chunk(2) if self.draft.guided else (part.z,) for part in parts]
        return Drafted(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "positions", "step")),
            Path.cat([part.path for part in parts]),
            torch.cat([half for halves in zip(*z, strict=True) for half in halves]),
            torch.cat([part.scale for part in parts]),
        )
