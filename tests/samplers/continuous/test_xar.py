"""xAR sampling: exact flows of a known law, guidance that costs nothing where it is none, and seeds."""

from __future__ import annotations

import pytest
import torch

from tests.models.test_xar import EVERY, small
from vistok.errors import VistokError
from vistok.models.interface import Condition
from vistok.samplers import Noise, SamplingParams, parse_sampler
from vistok.samplers.continuous.flow import euler, euler_maruyama, midpoint
from vistok.samplers.continuous.xar import DETERMINISTIC, SOLVERS, GuidedXAR, NextEntity, guidance_scales


def gaussian_velocity(mean: float, deviation: float):
    """The velocity of the flow from the standard normal law to a normal one: noise minus data, given the state."""

    def velocity(x, t):
        variance = (1 - t) ** 2 * deviation**2 + t**2
        beyond = (x - (1 - t) * mean) / variance
        return t * beyond - (mean + (1 - t) * deviation**2 * beyond)

    return velocity


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_draw_the_law_whose_velocity_they_are_given(solver) -> None:
    generator = torch.Generator().manual_seed(1)
    start, steps = torch.randn(20_000, 1, 1, generator=generator), 100
    velocity = gaussian_velocity(0.7, 0.4)
    if solver in DETERMINISTIC:
        drawn = DETERMINISTIC[solver](velocity, start, steps)
    else:
        drawn = euler_maruyama(velocity, start, torch.randn(steps - 1, 20_000, 1, 1, generator=generator))
    assert abs(drawn.mean() - 0.7) < 0.02 and abs(drawn.std() - 0.4) < 0.02


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (midpoint, 2)])
def test_a_deterministic_solver_has_at_least_the_order_that_it_is_said_to_have(solver, order) -> None:
    start, velocity = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1, 1), gaussian_velocity(0.7, 0.4)
    end = 0.7 + 0.4 * start  # where the flow between normal laws carries a start exactly
    far, near = ((solver(velocity, start, steps) - end).abs().max() for steps in (64, 128))
    assert torch.log2(far / near) > order - 0.1


def draw(model, samples, sampler, guidance=2.0, seed=3):
    condition = Condition(torch.tensor([s % 5 for s in samples]))
    return sampler.sample(model, condition, SamplingParams(guidance), Noise(seed, torch.tensor(samples)))


@pytest.mark.parametrize("entity", EVERY)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_picture_follows_from_its_seed_whatever_its_batch(entity, solver) -> None:
    model, sampler = small(entity), NextEntity(4, solver)
    together, stats = draw(model, [0, 1, 2], sampler)
    alone, _ = draw(model, [2], sampler)
    torch.testing.assert_close(alone[0], together[2], atol=1e-5, rtol=1e-4)
    assert together.shape == (3, 16, 2) and not torch.allclose(together[0], together[1])
    assert int(stats.step_of.max()) == len(model.entities.sizes) and stats.step_of.shape == (3, 16)


def test_guidance_grows_from_none_and_its_half_does_not_run_where_it_is_none() -> None:
    assert guidance_scales(2.5, 4) == [1.0, 1.5, 2.0, 2.5] and guidance_scales(3.0, 1) == [3.0]
    model, steps = small(), 5
    _, stats = draw(model, [0], NextEntity(steps))
    assert stats.target_calls == 4 * steps + 3
    assert stats.target_rows == steps + 2 * (3 * steps + 3)  # the first cell runs once, the others and the cache twice
    _, unguided = draw(model, [0], NextEntity(steps), guidance=1.0)
    assert unguided.target_rows == unguided.target_calls


@torch.no_grad()
def test_guidance_of_both_halves_is_the_published_mixture() -> None:
    model = small()
    guided = GuidedXAR(model, Condition(torch.tensor([1])), True)
    x, t = torch.randn(1, 4, 2), torch.tensor(0.5)
    conditional, without = guided.velocities(x, t, 2)
    mixed = guided.guided(1.7)(x, t)[0]
    torch.testing.assert_close(mixed, (without + 1.7 * (conditional - without)).double())


@pytest.mark.parametrize(("spec", "said"), [("xar:num_steps=2", "num_steps"), ("xar:solver=eulr", "euler")])
def test_impossible_options_are_refused(spec, said) -> None:
    with pytest.raises(VistokError, match=said):
        parse_sampler(spec)
