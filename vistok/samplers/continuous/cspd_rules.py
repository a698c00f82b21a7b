"""The two ways to run continuous speculative decoding (arXiv 2411.11925): exact, and as published.

``run_exact`` keeps the law of the target's own sampler (with noise in the head's last step). Each drafted set of
tokens is verified under the prefix that it was drafted from, all prefixes of a window in one batched pass; the first
set with a rejected token is completed from the residual and everything behind it is hidden again. Samples of a batch
advance by themselves. A token that was rolled back keeps its random numbers: nothing has looked at them.

``run_reference`` follows the published runner. The target predicts all tokens of a window in parallel from the last
verified prefix, and tokens behind a rejected one are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.samplers.continuous.acceptance import (
    LastStep,
    exact_resample,
    path_log_ratio,
    reference_log_ratio,
    reference_resample,
)
from vistok.samplers.continuous.cspd_run import CSpDRun, Drafted
from vistok.samplers.continuous.head import draw_path
from vistok.samplers.continuous.noise import RESIDUAL, RESIDUAL_ACCEPT, TokenNoise


def run_exact(run: CSpDRun, window: int, prefill: float, progress: Callable[[int], None] | None = None) -> None:
    """Decodes speculatively so that the target's law is kept; fills ``run``.

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
class Verification:
    """What one check of the published runner saw; tokens in the order of batch and position.

    Attributes:
        ratio: acceptance ratios [N].
        drafted, result: values before and after, [N, D].
    """

    ratio: Tensor
    drafted: Tensor
    result: Tensor


def run_reference(
    run: CSpDRun,
    window: int,
    prefill: float,
    inner_temperature: float,
    progress: Callable[[int], None] | None = None,
    report: Callable[[Verification], None] | None = None,
) -> None:
    """Decodes as the published runner does; fills ``run``.

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
