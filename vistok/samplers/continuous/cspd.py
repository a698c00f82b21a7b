"""Continuous speculative decoding on MAR (Wang et al., arXiv 2411.11925): a small MAR drafts, the target verifies.

``reference`` follows the published runner. The target predicts all tokens of a window in parallel from the last
verified prefix, and tokens behind a rejected one are kept.

``exact`` keeps the law of the target's own sampler (with noise in the head's last step). Each drafted set of
tokens is verified under the prefix that it was drafted from, all prefixes of a window in one batched pass; the first
set with a rejected token is completed from the residual and everything behind it is hidden again. Samples of a batch
advance by themselves. A token that was rolled back keeps its random numbers: nothing has looked at them.

In both, the first share of the steps (``prefill``) is the target's alone, for early acceptance is low.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vistok.errors import VistokError, unknown_name
from vistok.models.interface import Condition
from vistok.models.mar import MAR
from vistok.models.mar.model import check_same_tokens
from vistok.samplers.continuous.acceptance import (
    LastStep,
    exact_resample,
    path_log_ratio,
    reference_log_ratio,
    reference_resample,
)
from vistok.samplers.continuous.head import Path, draw_path, head_process
from vistok.samplers.continuous.mar import GuidedMAR, check_head
from vistok.samplers.continuous.noise import ACCEPT, RESIDUAL, RESIDUAL_ACCEPT, TokenNoise
from vistok.samplers.continuous.schedule import MaskSchedule, ranks
from vistok.samplers.continuous.stats import ContinuousStats
from vistok.samplers.noise import Noise
from vistok.samplers.params import SamplingParams

if TYPE_CHECKING:
    from vistok.tokenizers.interface import Tokenizer

MODES = ("exact", "reference")


class Numbers:
    """The random numbers of a run, by the tokens that use them.

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
class _PathNumbers:
    """Residual paths of the tokens at ``rows`` and ``positions``; see ``acceptance.Proposals``."""

    noise: TokenNoise
    rows: Tensor
    positions: Tensor

    def path(self, tokens: Tensor, attempt: Tensor, steps: int, dim: int) -> Tensor:
        return self.noise.paths(self.rows[tokens], self.positions[tokens], steps, dim, RESIDUAL, attempt)

    def uniform(self, tokens: Tensor, attempt: Tensor) -> Tensor:
        return self.noise.uniform(self.rows[tokens], self.positions[tokens], RESIDUAL_ACCEPT, attempt)


@dataclass
class Drafted:
    """Tokens of a window.

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
class Verification:
    """What a check of the published runner saw, tokens in the order of batch and position.

    Attributes:
        ratio: acceptance ratios [N].
        drafted, result: values before and after, [N, D].
    """

    ratio: Tensor
    drafted: Tensor
    result: Tensor


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
        """Draw the tokens of a step from the target alone."""
        chosen = self.step_of == step
        rows, positions = chosen.nonzero(as_tuple=True)
        z = self.target.conditions(self.tokens, self.step_of >= step, chosen)
        chain = self.target.chain(z, self.scale_of[step].expand(len(rows)))
        path = draw_path(chain, self.numbers.path(rows, positions), last_noise)
        self.tokens[rows, positions] = path.value
        self.stats.step_of[rows, positions] = self.target.forwards
        self.target.release()

    def draft_step(self, tokens: Tensor, active: Tensor, step: Tensor, place: int, last_noise: bool) -> Drafted:
        """Draft the tokens of a step in place.

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
        """The steps of a window as one."""
        z = [part.z.chunk(2) if self.draft.guided else (part.z,) for part in parts]
        return Drafted(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "positions", "step")),
            Path.cat([part.path for part in parts]),
            torch.cat([half for halves in zip(*z, strict=True) for half in halves]),
            torch.cat([part.scale for part in parts]),
        )


def run_exact(run: CSpDRun, window: int, prefill: float, progress: Callable[[int], None] | None = None) -> None:
    """Speculative decoding that keeps the target's law; fills ``run``.

    Args:
        run: where to.
        window: steps that are drafted before a check.
        prefill: share of the steps that the target takes alone.
        progress: called with the tokens that the slowest sample gained.
    """
    total = len(run.plan)
    alone = min(total, int(total * prefill) + 1)
    for step in range(alone):
        run.target_step(step, last_noise=True)
        if progress is not None:
            progress(run.plan.steps[step][0] - run.plan.steps[step][1])
    done = torch.full((len(run.tokens),), alone, device=run.tokens.device)
    least = alone
    while least < total:
        active = (done < total).nonzero()[:, 0]
        depth = min(window, total - least)
        working = run.tokens.clone()
        parts = []
        for place in range(depth):
            going = active[done[active] + place < total]
            parts.append(run.draft_step(working, going, done[going] + place, place, last_noise=True))
        bad = _verify_exact(run, run.join(parts), working, active, done, depth)
        done[active] = (done[active] + (bad + 1).clamp(max=depth)[active]).clamp(max=total)
        before, least = least, int(done.min())
        if progress is not None:
            progress(sum(b - a for b, a, _ in run.plan.steps[before:least]))


def _verify_exact(run: CSpDRun, drafted: Drafted, working: Tensor, active: Tensor, done: Tensor, depth: int) -> Tensor:
    """Check a window and commit what holds; the place of the first set with a rejected token, int64 [B], else depth."""
    target, rows, positions = run.target, drafted.rows, drafted.positions
    step = (done[active] + torch.arange(depth, device=done.device)[:, None]).flatten()[:, None]
    step_of = run.step_of[active].repeat(depth, 1)
    tokens = working[active].repeat(depth, 1, 1)
    z = target.conditions(tokens, step_of >= step, step_of == step, active.repeat(depth))

    accepted = run.numbers.accept(rows, positions).log() < path_log_ratio(drafted.path, target.chain(z, drafted.scale))
    bad = torch.full_like(done, depth)
    bad.scatter_reduce_(0, rows[~accepted], drafted.step[~accepted], "amin")
    kept = drafted.step <= bad[rows]
    good = kept & accepted
    run.tokens[rows[good], positions[good]] = drafted.path.value[good]

    def chains(tokens: Tensor):
        return run.draft.chain(drafted.z, drafted.scale, tokens), target.chain(z, drafted.scale, tokens)

    lost = (kept & ~accepted).nonzero()[:, 0]
    dim = run.tokens.shape[-1]
    values, fallbacks = exact_resample(chains, lost, dim, _PathNumbers(run.numbers.noise, rows, positions))
    run.tokens[rows[lost], positions[lost]] = values
    run.stats.step_of[rows[kept], positions[kept]] = target.forwards
    run.stats.accepted_drafts += torch.bincount(rows[good], minlength=len(done))
    run.stats.rolled_back += int((~kept).sum())
    run.stats.fallbacks += fallbacks
    target.release()
    run.draft.release()
    return bad


def run_reference(
    run: CSpDRun,
    window: int,
    prefill: float,
    inner_temperature: float,
    progress: Callable[[int], None] | None = None,
    report: Callable[[Verification], None] | None = None,
) -> None:
    """The published runner; fills ``run``.

    Args:
        run, window, prefill, progress: see :func:`run_exact`.
        inner_temperature: what widens the last step's Gaussians in the acceptance ratio.
        report: called with what each check saw.
    """
    total = len(run.plan)
    everyone = torch.arange(len(run.tokens), device=run.tokens.device)
    verified, parts = 0, []
    for step in range(total):
        if step <= run.plan.iterations * prefill:
            run.target_step(step, last_noise=False)
            verified = step + 1
        else:
            parts.append(run.draft_step(run.tokens, everyone, torch.full_like(everyone, step), len(parts), False))
            if step % window == 0 or step == total - 1:
                seen = _verify_reference(run, run.join(parts), verified, step, inner_temperature)
                if report is not None:
                    report(seen)
                verified, parts = step + 1, []
        if progress is not None:
            progress(run.plan.steps[step][0] - run.plan.steps[step][1])


def _verify_reference(
    run: CSpDRun, drafted: Drafted, verified: int, step: int, inner_temperature: float
) -> Verification:
    order = (drafted.rows * run.rank.shape[1] + drafted.positions).argsort()
    rows, positions, path = drafted.rows[order], drafted.positions[order], drafted.path.where(order)
    target = run.target
    hidden = run.step_of >= verified
    z = target.conditions(run.tokens, hidden, hidden & (run.step_of <= step))
    own = draw_path(target.chain(z, run.scale_of[step].expand(len(rows))), run.numbers.path(rows, positions))
    q, p = LastStep.of(path), LastStep.of(own)
    log_ratio = reference_log_ratio(q, p, path.value, inner_temperature)
    accepted = log_ratio > run.numbers.accept(rows, positions).log()
    result, fallbacks = path.value, 0
    if not bool(accepted.all()):
        values, fallbacks, _ = reference_resample(
            q, p, ~accepted, own.value, lambda attempts: run.numbers.proposal(rows, positions, attempts)
        )
        result = torch.where(accepted[:, None], path.value, values)
    run.tokens[rows, positions] = result
    run.stats.step_of[rows, positions] = target.forwards
    run.stats.accepted_drafts += torch.bincount(rows[accepted], minlength=len(run.tokens))
    run.stats.fallbacks += fallbacks
    target.release()
    return Verification(log_ratio.exp(), path.value, result)


@functools.lru_cache(maxsize=4)
def _load(name: str, dtype: torch.dtype, device: torch.device) -> MAR:
    return MAR.from_pretrained(name, prefer_ema=True).to(device, dtype)


def draft_of(drafter: MAR | str, model: MAR) -> MAR:
    """Returns the draft network of a model: the one that is given, or the one of this name, loaded once.

    Raises:
        VistokError: the draft's tokens are not the target's, or its name leads nowhere.
    """
    if not isinstance(drafter, MAR):
        drafter = _load(drafter, model.mask_token.dtype, model.mask_token.device)
    check_same_tokens(model, drafter, "target", "draft")
    return drafter


@dataclass(frozen=True)
class ContinuousSpeculative:
    """A smaller MAR drafts, the target verifies.

    Attributes:
        drafter: the smaller MAR: an embedded name, a folder, a checkpoint, or the network.
        mode: ``exact`` keeps the target's law; ``reference`` is the published code's rule, which does not.
        iterations, head_steps, guidance_schedule, spacing: as in ``MaskedAutoregressive``.
        window: steps that are drafted before a check.
        prefill: share of the steps that the target takes alone.
        inner_temperature: of ``reference``.
    """

    interface = "mar"
    honours = frozenset({"guidance", "temperature"})

    drafter: str | MAR = "mar-mini-draft"
    mode: str = "exact"
    iterations: int = 64
    head_steps: int = 100
    window: int = 8
    prefill: float = 0.05
    inner_temperature: float = 42.0
    guidance_schedule: str = "linear"
    spacing: str = "even"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown_name("mode of cspd", self.mode, list(MODES))
        if self.window < 1:
            raise VistokError(f"the window must be at least 1 step, got {self.window}.")
        if not 0 <= self.prefill <= 1:
            raise VistokError(f"the prefill is a share of the steps from 0 to 1, got {self.prefill}.")
        if self.inner_temperature <= 0:
            raise VistokError(f"the inner temperature must be above 0, got {self.inner_temperature}.")

    @property
    def lossless(self) -> bool:
        """Whether the rule keeps the target's distribution."""
        return self.mode == "exact"

    def prepare(self, model: MAR, tokenizer: Tokenizer | None = None) -> ContinuousSpeculative:
        """Returns the sampler with its draft network loaded.

        Raises:
            VistokError: the draft's tokens are not the target's, or its name leads nowhere.
        """
        return replace(self, drafter=draft_of(self.drafter, model))

    @torch.inference_mode()
    def sample(
        self,
        model: MAR,
        condition: Condition,
        params: SamplingParams,
        noise: Noise,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, ContinuousStats]:
        """Draw a batch of pictures; see ``MaskedAutoregressive.sample``.

        Raises:
            VistokError: the draft's tokens are not the target's.
        """
        if params.temperature == 0:
            raise VistokError("continuous speculative decoding compares distributions: give a temperature above 0.")
        began = time.perf_counter()
        check_head("ddpm", self.head_steps)
        process = head_process(self.spacing, self.head_steps)
        plan = MaskSchedule(model.config.seq_len, self.iterations)
        numbers = TokenNoise(noise)
        draft, labels = draft_of(self.drafter, model), condition.values
        run = CSpDRun(
            GuidedMAR(model, labels, process, params.guided, params.temperature),
            GuidedMAR(draft, labels, process, params.guided and not draft.config.distilled, params.temperature),
            plan,
            plan.guidance(params.guidance, self.guidance_schedule),
            ranks(numbers.orders(plan.length)),
            Numbers(numbers, len(process), model.config.token_dim),
        )
        if self.mode == "exact":
            run_exact(run, self.window, self.prefill, progress)
        else:
            run_reference(run, self.window, self.prefill, self.inner_temperature, progress)
        stats = run.stats
        stats.step_of, stats.proposed, stats.accepted_drafts = (
            x.cpu() for x in (stats.step_of, stats.proposed, stats.accepted_drafts)
        )
        stats.target_prefixes, stats.draft_forwards = run.target.prefixes, run.draft.forwards
        stats.target_calls, stats.target_rows = run.target.calls, run.target.rows
        stats.draft_calls, stats.draft_rows = run.draft.calls, run.draft.rows
        stats.seconds = time.perf_counter() - began
        return run.tokens, stats
