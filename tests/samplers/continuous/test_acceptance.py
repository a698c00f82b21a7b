"""On one-dimensional heads with known laws: exact acceptance keeps the target's law, and what breaks it is noticed."""

from __future__ import annotations

import math

import pytest
import torch

from tests.samplers.continuous.toy import GeneratorNumbers, MixtureChain, kolmogorov
from vistok.models.mar import Diffusion
from vistok.samplers.continuous.acceptance import (
    LastStep,
    derived_log_ratio,
    exact_resample,
    path_log_ratio,
    reference_log_ratio,
    reference_resample,
)
from vistok.samplers.continuous.head import draw_path

N = 120_000
LIMIT = 1.95 / math.sqrt(N)  # of the statistic at a level of 0.001
PROCESS = Diffusion("10")
PAIRS = {
    "shifted normals": (((0.3,), (0.5,), (1.0,), 0.5), ((0.0,), (0.6,), (1.0,), 0.5)),
    "other variances of the steps": (((0.1,), (0.5,), (1.0,), 0.3), ((0.0,), (0.5,), (1.0,), 0.6)),
    "two modes": (((-1.0, 1.0), (0.3, 0.4), (0.4, 0.6), 0.5), ((-0.9, 1.1), (0.35, 0.4), (0.5, 0.5), 0.5)),
}


def pair(name: str) -> tuple[MixtureChain, MixtureChain]:
    target, draft = PAIRS[name]
    return MixtureChain(PROCESS, *draft), MixtureChain(PROCESS, *target)


def speculate(name: str, log_ratio=None, residual=None) -> tuple[torch.Tensor, float]:
    """Tokens [N] by draft and target, and the share of accepted drafts; either rule may be replaced."""
    draft, target = pair(name)
    generator = torch.Generator().manual_seed(1)
    path = draw_path(draft, torch.randn(len(PROCESS) + 1, N, 1, generator=generator), last_noise=True)
    ratio = (log_ratio or path_log_ratio)(path, target)
    accepted = torch.rand(N, generator=generator, dtype=torch.float64).log() < ratio
    values = path.value.clone()
    lost = (~accepted).nonzero()[:, 0]
    if residual is None:
        values[lost], fallbacks = exact_resample(lambda _: (draft, target), lost, 1, GeneratorNumbers(2))
        assert fallbacks <= 2
    else:
        values[lost] = residual(draft, target, len(lost), generator)
    return values[:, 0], float(accepted.double().mean())


def distance(values: torch.Tensor, chain: MixtureChain) -> float:
    return kolmogorov(values, chain.cdf(values))


def aligned(draft: MixtureChain, target: MixtureChain, seed: int = 1):
    """Drafts, and the last steps of draft and target on their own paths with the same noise."""
    noise = torch.randn(len(PROCESS) + 1, N, 1, generator=torch.Generator().manual_seed(seed))
    path, own = draw_path(draft, noise), draw_path(target, noise)
    return path, own, LastStep.of(path), LastStep.of(own)


@pytest.mark.parametrize("name", PAIRS)
def test_the_toy_law_is_known(name: str) -> None:
    _, target = pair(name)
    noise = torch.randn(len(PROCESS) + 1, N, 1, generator=torch.Generator().manual_seed(0))
    assert distance(draw_path(target, noise, last_noise=True).value[:, 0], target) < LIMIT


@pytest.mark.parametrize("name", PAIRS)
def test_exact_acceptance_keeps_the_law_of_the_target(name: str) -> None:
    values, rate = speculate(name)
    draft, target = pair(name)
    assert 0.05 < rate < 0.98, "the test needs both outcomes"
    assert distance(values, target) < LIMIT
    assert distance(values, draft) > 2 * LIMIT, "the two laws must differ for the test to mean something"


def test_a_draft_equal_to_its_target_is_always_accepted() -> None:
    _, target = pair("two modes")
    path = draw_path(target, torch.randn(len(PROCESS) + 1, 1000, 1), last_noise=True)
    assert path_log_ratio(path, target).abs().max() < 1e-4


@pytest.mark.parametrize("name", PAIRS)
def test_wrong_verifiers_are_noticed(name: str) -> None:
    _, target = pair(name)

    def plain(draft, target, count, generator):
        noise = torch.randn(len(PROCESS) + 1, count, 1, generator=generator)
        return draw_path(target, noise, last_noise=True).value

    def inverted(path, target):
        return -path_log_ratio(path, target)

    for broken in ({"residual": plain}, {"log_ratio": inverted}):
        assert distance(speculate(name, **broken)[0], target) > 2 * LIMIT


def test_ratios_of_separate_trajectories_are_not_exact() -> None:
    """The derivation's approximation: draft and target on their own aligned paths."""
    draft, target = pair("shifted normals")
    path, _, q, p = aligned(draft, target)
    exact, approximate = path_log_ratio(path, target), derived_log_ratio(q, p, path.value)
    assert (exact - approximate).abs().median() > 0.1


def by_last_steps(name: str, rule) -> tuple[float, float]:
    """Distance to the target and share of accepted drafts, by a ratio of last steps and the published residual."""
    draft, target = pair(name)
    path, own, q, p = aligned(draft, target)
    generator = torch.Generator().manual_seed(3)
    accepted = torch.rand(N, generator=generator).log() < rule(q, p, path.value)
    values, _, _ = reference_resample(
        q,
        p,
        ~accepted,
        own.value,
        lambda rounds: (
            torch.randn(len(rounds), N, 1, generator=generator),
            torch.rand(len(rounds), N, generator=generator),
        ),
    )
    drawn = torch.where(accepted[:, None], path.value, values)[:, 0]
    return distance(drawn, target), float(accepted.double().mean())


@pytest.mark.parametrize(("inner_temperature", "kept", "far"), [(1.0, (0.0, 0.02), False), (42.0, (0.3, 0.8), True)])
def test_reference_acceptance(inner_temperature: float, kept: tuple[float, float], far: bool) -> None:
    """The published temperature of 42 accepts, and leaves the law; without it next to nothing is accepted."""
    off, share = by_last_steps("shifted normals", lambda q, p, x: reference_log_ratio(q, p, x, inner_temperature))
    assert kept[0] <= share <= kept[1]
    assert (off > 10 * LIMIT) == far


def test_a_failed_reference_loop_leaves_the_aligned_sample_not_zero() -> None:
    same = LastStep(torch.ones(5, 3), torch.zeros(5, 3), torch.zeros(5, 3))
    fallback = torch.full((5, 3), 7.0)
    rejected = torch.tensor([True, False, True, True, False])
    values, failed, rounds = reference_resample(
        same,
        same,
        rejected,
        fallback,
        lambda rounds: (torch.randn(len(rounds), 5, 3), torch.rand(len(rounds), 5)),
        rounds=3,
    )
    assert failed == 3 and rounds == 3
    assert torch.equal(values[rejected], fallback[rejected])


@pytest.mark.parametrize("waiting", [0, 1, 4])
def test_the_reference_loop_waits_for_accepted_tokens_too(waiting: int) -> None:
    """As published: rejected tokens keep their last kept proposal until every token of the window has had one."""
    draft = LastStep(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, 1))
    target = LastStep(
        torch.full((2, 1), 9.0), torch.zeros(2, 1), torch.zeros(2, 1)
    )  # nearly every proposal may be kept
    uniforms = torch.zeros(6, 2)
    uniforms[:waiting, 1] = 1.0  # the accepted token keeps none of its first proposals
    normals = torch.arange(6.0)[:, None, None].expand(-1, 2, 1) / 10
    values, failed, rounds = reference_resample(
        draft, target, torch.tensor([True, False]), torch.zeros(2, 1), lambda r: (normals[r], uniforms[r]), rounds=6
    )
    assert (rounds, failed) == (waiting + 1, 0)
    assert values[0].item() == pytest.approx(9 + waiting / 10)


def test_a_failed_exact_loop_takes_a_draw_of_the_target() -> None:
    _, target = pair("two modes")
    values, failed = exact_resample(lambda _: (target, target), torch.arange(4), 1, GeneratorNumbers(0))
    assert (values != 0).all() and failed <= 4
