"""MAR sampling (Li et al., arXiv 2406.11838, section 3.4): sets of hidden tokens, in a random order, from the head.

Orders and noise are addressed by sample and position, not drawn from two generators as in the reference. Both
guidance branches run in one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError, unknown_name
from vistok.models.interface import Condition
from vistok.models.mar import MAR, Diffusion
from vistok.models.mar.diffusion import STEPS
from vistok.samplers.continuous.head import HeadChain, draw, head_process, solve
from vistok.samplers.continuous.noise import TokenNoise
from vistok.samplers.continuous.schedule import MaskSchedule, ranks
from vistok.samplers.continuous.stats import ContinuousStats
from vistok.samplers.interface import Partial, Watch
from vistok.samplers.noise import Noise
from vistok.samplers.params import SamplingParams

if TYPE_CHECKING:
    from vistok.tokenizers.interface import Tokenizer

SOLVERS = ("ddpm", "dpm++")
Trajectories = Callable[[Tensor, Tensor], Tensor]  # rows [N] and positions [N] of tokens to their noise [T + 1, N, D]


class GuidedMAR:
    """A MAR with its classes and guidance inside: tokens and masks in, denoising chains of the head out.

    Args:
        model: the network.
        labels: classes [B].
        process: the head's spaced process.
        guided: whether the unconditional branch runs, in the same batch.
        temperature: multiplies the head's noise.

    Raises:
        VistokError: guidance of a model that has no null condition.

    Attributes:
        calls, rows: calls of the head by all chains so far, and the rows of all of them.
        forwards: passes of encoder and decoder.
        prefixes: sequences in all of them, guidance branches not counted.
    """

    def __init__(self, model: MAR, labels: Tensor, process: Diffusion, guided: bool, temperature: float = 1.0):
        if guided and model.config.distilled:
            raise VistokError("a distilled MAR has its guidance in its weights: leave it at 1.")
        self.model, self.process, self.guided, self.temperature = model, process, guided, temperature
        self.condition = model.condition(labels)
        self.null = model.null_condition(1)
        self.forwards = self.prefixes = 0
        self._chains: list[HeadChain] = []
        self._calls = self._rows = 0

    def conditions(self, tokens: Tensor, mask: Tensor, asked: Tensor, rows: Tensor | None = None) -> Tensor:
        """Returns the head's conditions of N tokens: [N, Ed] or, guided, [2 N, Ed] with the unconditional half last.

        Args:
            tokens: [S, L, D].
            mask: True where hidden, [S, L].
            asked: which N tokens, bool [S, L]; their conditions come sequence by sequence, in raster order.
            rows: batch row of each sequence, which may come up several times, int64 [S]; the batch itself if None.
        """
        self.forwards += 1
        self.prefixes += len(tokens)
        condition = self.condition if rows is None else self.condition[rows]
        if self.guided:
            condition = torch.cat([condition, self.null.expand(len(tokens), -1).to(condition.dtype)])
            tokens, mask, asked = tokens.repeat(2, 1, 1), mask.repeat(2, 1), asked.repeat(2, 1)
        return self.model.conditions(tokens, mask, condition, asked)

    def chain(self, z: Tensor, scale: Tensor, tokens: Tensor | None = None) -> HeadChain:
        """The head at conditions, guided by a scale for each token [N]; of some ``tokens`` int64 [M], or of all."""
        if tokens is not None:
            z = z[torch.cat([tokens, tokens + len(scale)]) if self.guided else tokens]
            scale = scale[tokens]
        net = self.model.diffloss.net
        chain = HeadChain(net, self.process, z, scale if self.guided else None, self.temperature)
        self._chains.append(chain)
        return chain

    def release(self) -> None:
        """Drops the chains that are done, and keeps their counts."""
        self._calls += sum(chain.calls for chain in self._chains)
        self._rows += sum(chain.rows for chain in self._chains)
        self._chains.clear()

    @property
    def calls(self) -> int:
        """Calls of the head so far."""
        self.release()
        return self._calls

    @property
    def rows(self) -> int:
        """Rows of those calls."""
        self.release()
        return self._rows


def paint_step(
    guided: GuidedMAR, tokens: Tensor, mask: Tensor, chosen: Tensor, scale: float, noise: Trajectories, solver="ddpm"
) -> None:
    """Draw the chosen tokens in place.

    Args:
        guided: the model.
        tokens: [B, L, D].
        mask, chosen: bool [B, L].
        scale: of guidance.
        noise: the tokens' random numbers.
        solver: one of ``SOLVERS``.
    """
    rows, positions = chosen.nonzero(as_tuple=True)
    z = guided.conditions(tokens, mask, chosen)
    chain = guided.chain(z, torch.full((len(rows),), scale, device=z.device))
    drawn = noise(rows, positions)
    tokens[rows, positions] = draw(chain, drawn) if solver == "ddpm" else solve(chain, drawn[-1])
    guided.release()


def paint(
    guided: GuidedMAR,
    plan: MaskSchedule,
    scales: list[float],
    rank: Tensor,
    noise: Trajectories,
    solver: str = "ddpm",
    progress: Callable[[int], None] | None = None,
    known: Tensor | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Draws all tokens of a batch by MAR's sampling loop; returns them, [B, L, D].

    Args:
        guided: the model.
        plan: how many tokens each step leaves hidden.
        scales: guidance of each step.
        rank: place of each position in its order, [B, L]; the last places are drawn first.
        noise, solver: see :func:`paint_step`.
        progress: called with the tokens that each sample gained.
        known: tokens [L, D], of which those stay that the plan does not draw.
        watch: shown the tokens after each step.
    """
    tokens = torch.zeros(*rank.shape, guided.model.config.token_dim, device=rank.device)
    if known is not None:
        tokens = tokens + known
    for number, ((before, after, _), scale) in enumerate(zip(plan.steps, scales, strict=True), start=1):
        mask = rank < before
        paint_step(guided, tokens, mask, mask & (rank >= after), scale, noise, solver)
        if progress is not None:
            progress(before - after)
        if watch is not None:
            watch(Partial(tokens, rank >= after, number))
    return tokens


def check_head(solver: str, head_steps: int) -> None:
    """Raise VistokError unless the head can be solved so."""
    if solver not in SOLVERS:
        raise unknown_name("solver of the diffusion head", solver, list(SOLVERS))
    if not 2 <= head_steps <= STEPS:
        raise VistokError(f"the diffusion head takes 2 to {STEPS} steps, as many as it learns, got {head_steps}.")


@dataclass(frozen=True)
class MaskedAutoregressive:
    """MAR's sampler: sets of tokens in a random order, each token drawn by the diffusion head.

    Attributes:
        iterations: steps over the picture.
        head_steps: steps of the head for every token.
        solver: ``ddpm``, the published ancestral sampler, or ``dpm++``, good at about ten steps.
        guidance_schedule: ``linear``, growing with the share of known tokens, or ``constant``.
        spacing: of the steps of ``ddpm``, see ``head_process``; ``dpm++`` always takes ``root``.
    """

    iterations: int = 64
    head_steps: int = 100
    solver: str = "ddpm"
    guidance_schedule: str = "linear"
    spacing: str = "even"

    interface = "mar"
    honours = frozenset({"guidance", "temperature"})
    lossless = True
    fills = True

    def prepare(self, model: MAR, tokenizer: Tokenizer | None = None) -> MaskedAutoregressive:
        """Returns the sampler itself: it needs nothing but the model."""
        return self

    @torch.inference_mode()
    def sample(
        self,
        model: MAR,
        condition: Condition,
        params: SamplingParams,
        noise: Noise,
        progress: Callable[[int], None] | None = None,
        watch: Watch | None = None,
    ) -> tuple[Tensor, ContinuousStats]:
        """Draw a batch of pictures.

        Args:
            model: the network.
            condition: classes of B images.
            params: guidance and temperature.
            noise: the random numbers of the run.
            progress: called with the tokens that each sample gained.
            watch: shown the tokens after each step.

        Returns:
            Scaled tokens [B, L, D] and the statistics of the run.
        """
        began = time.perf_counter()
        check_head(self.solver, self.head_steps)
        process = head_process("root" if self.solver == "dpm++" else self.spacing, self.head_steps)
        known, length = condition.known, model.config.seq_len
        plan = MaskSchedule(length if known is None else known.hidden, self.iterations)
        guided = GuidedMAR(model, condition.values, process, params.guided, params.temperature)
        numbers = TokenNoise(noise)
        rank = ranks(numbers.orders(length))
        if known is not None:  # known tokens come first in every order
            rank = ranks((rank + length * known.mask).argsort(1))

        def trajectories(rows: Tensor, positions: Tensor) -> Tensor:
            return numbers.paths(rows, positions, len(process), model.config.token_dim)

        scales = plan.guidance(params.guidance, self.guidance_schedule)
        given = None if known is None else known.tokens
        tokens = paint(guided, plan, scales, rank, trajectories, self.solver, progress, given, watch)
        step_of = F.pad(1 + plan.step_of_rank, (0, length - plan.length))  # 0 where it was known
        stats = ContinuousStats(
            step_of.to(rank.device)[rank].cpu(),
            torch.zeros(len(condition), dtype=torch.int64),
            seconds=time.perf_counter() - began,
            target_calls=guided.calls,
            target_rows=guided.rows,
            target_prefixes=guided.prefixes,
        )
        return tokens, stats
