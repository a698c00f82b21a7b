"""Masked sampling: the law at one code a step, the published schedule, guidance, seeds, and bad input."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chisquare

from tests.models.test_masked import KINDS, small
from vistok.errors import VistokError
from vistok.models.interface import Condition, Known, TokenSpec
from vistok.samplers import Masked, Noise, SamplingParams, parse_sampler
from vistok.samplers.masked import MaskPlan
from vistok.samplers.masked.sampler import GuidedMasked

PLACES, CODES = 3, 3
ONE_A_STEP = Masked(PLACES, annealed=0, choice=0, schedule="linear", order="random")


class KnownLaw(torch.nn.Module):
    """Predicts hidden codes by the exact conditionals of a joint law over all pictures of three codes."""

    tokens, mask_id, classes = TokenSpec("codes", CODES, PLACES), CODES, 1

    def __init__(self):
        super().__init__()
        self.pictures = torch.tensor(list(itertools.product(range(CODES), repeat=PLACES)))
        generator = torch.Generator().manual_seed(5)
        self.law = (torch.randn(len(self.pictures), generator=generator) * 1.5).softmax(0)

    def predict(self, codes, values, state=None):
        agrees = ((codes[:, None] == self.pictures) | (codes[:, None] == self.mask_id)).all(-1)
        given = agrees * self.law  # [B, pictures]
        one_hot = torch.nn.functional.one_hot(self.pictures, CODES).float()
        return torch.einsum("bp,plv->blv", given, one_hot).log(), None


def draw(model, samples, sampler, seed=0, **params):
    condition = Condition(torch.tensor([s % model.classes for s in samples]))
    return sampler.sample(model, condition, SamplingParams(**params), Noise(seed, torch.tensor(samples)))


def counts(model, codes) -> list[int]:
    number = (codes * CODES ** torch.arange(PLACES - 1, -1, -1)).sum(1)
    return torch.bincount(number, minlength=len(model.pictures)).tolist()


def test_one_code_a_step_is_autoregression_in_a_random_order() -> None:
    model, drawn = KnownLaw(), 8000
    codes, stats = draw(model, range(drawn), ONE_A_STEP)
    assert (stats.step_of.sort(1).values == torch.arange(1, PLACES + 1)).all()
    orders = torch.bincount((stats.step_of * 10 ** torch.arange(PLACES)).sum(1)).nonzero()
    assert len(orders) == 6  # every order comes up
    assert chisquare(counts(model, codes), (model.law * drawn).tolist()).pvalue > 0.01


def test_the_test_of_the_law_has_power() -> None:
    model, drawn = KnownLaw(), 8000
    codes, _ = draw(model, range(drawn), Masked(1, annealed=0, choice=0))  # all at once: as if they were independent
    assert chisquare(counts(model, codes), (model.law * drawn).tolist()).pvalue < 1e-6


def test_revisions_of_one_code_are_gibbs_steps_that_leave_the_law() -> None:
    """Half of three codes is one, drawn from its exact conditional: the law stays, and comes from a wrong start too."""
    model, drawn = KnownLaw(), 8000
    whole = Masked(PLACES, annealed=0, choice=0, schedule="linear", order="random", revisions=4, revision_steps=9)
    codes, stats = draw(model, range(drawn), whole)
    assert stats.target_calls == PLACES + 4 and int(stats.step_of.max()) == PLACES + 4
    assert chisquare(counts(model, codes), (model.law * drawn).tolist()).pvalue > 0.01
    mended, _ = draw(model, range(drawn), Masked(1, annealed=0, choice=0, revisions=30, revision_steps=1))
    assert chisquare(counts(model, mended), (model.law * drawn).tolist()).pvalue > 0.01


@pytest.mark.parametrize("name", KINDS)
def test_revisions_decide_the_oldest_half_anew_and_leave_the_rest(name) -> None:
    model, seen = small(name), []
    condition, noise = Condition(torch.tensor([0, 1])), Noise(0, torch.tensor([0, 1]))
    sampler, watch = Masked(4, revisions=2, revision_steps=3), lambda part: seen.append(part)
    codes, stats = sampler.sample(model, condition, SamplingParams(2.0), noise, watch=watch)
    plain, once = Masked(4).sample(model, condition, SamplingParams(2.0), noise)
    half = plain.shape[1] // 2
    assert torch.equal(seen[3].tokens, plain) and stats.target_calls == len(seen) == 4 + 2 * 3
    first = seen[6].tokens != plain  # behind the first revision
    assert bool(first.any()) and int(once.step_of[first].max()) <= int(once.step_of.sort(1).values[:, half - 1].max())
    assert (stats.step_of > 4).sum(1).tolist() == [2 * half] * 2  # the second revision is of the other half
    assert int(codes.max()) < model.mask_id


def test_progress_is_told_evenly_and_known_codes_are_not_revised() -> None:
    model, told = small("maskgit"), []
    known = Known(torch.zeros(16, dtype=torch.long), torch.arange(16) >= 5)
    sampler = Masked(3, revisions=2, revision_steps=2)
    condition = Condition(torch.tensor([0]), known=known)
    codes, stats = sampler.sample(model, condition, SamplingParams(2.0), Noise(0, torch.tensor([0])), told.append)
    assert sum(told) == 5 and len(told) == 7
    assert bool((codes[:, 5:] == 0).all()) and int(stats.step_of[:, :5].min()) > 0
    one = Condition(torch.tensor([0]), known=Known(known.tokens, torch.arange(16) >= 1))
    _, stats = Masked(1, revisions=2).sample(model, one, SamplingParams(1.0), Noise(0, torch.tensor([0])))
    assert stats.target_calls == 1  # of one code no half is anew


def test_published_counts() -> None:
    assert [step.hidden for step in MaskPlan(256, 8)] == [251, 236, 212, 181, 142, 97, 49, 0]
    assert [step.hidden for step in MaskPlan(4, 4, "linear")] == [3, 2, 1, 0]


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_follows_from_its_seed_whatever_its_batch(name) -> None:
    model, sampler = small(name), Masked(4)
    together, stats = draw(model, [0, 1, 2], sampler, guidance=2.0)
    alone, _ = draw(model, [2], sampler, guidance=2.0)
    other, _ = draw(model, [2], sampler, seed=1, guidance=2.0)
    assert torch.equal(alone[0], together[2]) and not torch.equal(other, alone)
    assert int(together.max()) < 11 and int(stats.step_of.min()) == 1 and int(stats.step_of.max()) == 4


@pytest.mark.parametrize("name", KINDS)
def test_the_first_step_is_not_guided_and_runs_once(name) -> None:
    _, stats = draw(small(name), [0, 1], Masked(4), guidance=3.0)
    assert (stats.target_calls, stats.target_rows) == (4, 2 + 3 * 4)
    _, stats = draw(small(name), [0, 1], Masked(4), guidance=1.0)
    assert stats.target_rows == 8
    _, stats = draw(small(name), [0, 1], Masked(4, revisions=3, revision_steps=1), guidance=3.0)
    assert (stats.target_calls, stats.target_rows) == (7, 2 + 3 * 4 + 3 * 2)  # nor is a revision of one step


class TwoLogits(torch.nn.Module):
    """Half-precision logits of one code: 10 without a condition, and a little more with one."""

    mask_id = 1

    def null_condition(self, batch):
        return torch.zeros(batch, dtype=torch.int64)

    def predict(self, codes, values, state=None):
        return (10 + values[:, None, None] / 16).to(torch.bfloat16), None


def test_guidance_multiplies_differences_in_float32() -> None:
    guided = GuidedMasked(TwoLogits(), Condition(torch.ones(1, dtype=torch.int64)), True)
    assert guided.logits(torch.zeros(1, 1, dtype=torch.int64), 3.3).item() == pytest.approx(10 + 3.3 / 16, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_temperature_zero_takes_the_likeliest_codes(temperature) -> None:
    sampler = Masked(4, choice=0)
    first, second = (draw(small("enat"), [0], sampler, seed=s, temperature=temperature)[0] for s in (0, 1))
    assert torch.equal(first, second) == (temperature == 0)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("masked:steps=0", "one step"),
        ("masked:schedule=cosin", "cosine"),
        ("masked:order=rnadom", "random"),
        ("masked:choice=-1", "choice"),
        ("masked:annealed=-1", "annealed"),
        ("masked:choice=nan", "choice"),
        ("masked:annealed=inf", "annealed"),
        ("masked:revisions=-1", "revisions"),
        ("masked:revision_steps=0", "one step"),
    ],
)
def test_impossible_options_are_refused(spec, said) -> None:
    with pytest.raises(VistokError, match=said):
        parse_sampler(spec)


def test_more_steps_than_codes_are_refused() -> None:
    with pytest.raises(VistokError, match=r"17 steps.*16 codes"):
        Masked(17).prepare(small("maskgit"))
