"""MAR sampling and speculative decoding on small networks: schedules, laws, roll-back, and the batch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.samplers.continuous.toy import kolmogorov_two
from vistok.errors import VistokError
from vistok.models.interface import Condition
from vistok.models.mar import MAR, Diffusion, MARConfig
from vistok.samplers import Noise, SamplingParams
from vistok.samplers.continuous import ContinuousSpeculative, MaskedAutoregressive, cspd_rules
from vistok.samplers.continuous.cspd_rules import run_exact, run_reference
from vistok.samplers.continuous.cspd_run import CSpDRun, Numbers
from vistok.samplers.continuous.head import HeadChain, draw, solve, solver_process
from vistok.samplers.continuous.mar import GuidedMAR
from vistok.samplers.continuous.noise import TokenNoise
from vistok.samplers.continuous.schedule import MaskSchedule, ranks

PROCESS = Diffusion("ddim4")


def tiny(seed: int, scale: float = 0.15, grid: int = 2, channels: int = 1) -> MAR:
    """A MAR whose head answers to its condition; random weights, small enough for thousands of pictures."""
    torch.manual_seed(seed)
    config = MARConfig(
        img_size=grid,
        vae_stride=1,
        vae_embed_dim=channels,
        encoder_embed_dim=8,
        encoder_depth=1,
        encoder_num_heads=2,
        decoder_embed_dim=8,
        decoder_depth=1,
        decoder_num_heads=2,
        class_num=3,
        buffer_size=1,
        diffloss_d=1,
        diffloss_w=8,
    )
    model = MAR(config).eval()
    for parameter in model.parameters():
        parameter.data += scale * torch.randn_like(parameter)
    return model


def nearby(model: MAR, seed: int, scale: float, **changes) -> MAR:
    """A copy with other weights by ``scale``, and a changed configuration."""
    torch.manual_seed(seed)
    other = MAR(replace(model.config, **changes)).eval()
    other.load_state_dict(model.state_dict())
    for parameter in other.parameters():
        parameter.data += scale * torch.randn_like(parameter)
    return other


def build(target: MAR, draft: MAR, samples: torch.Tensor, seed: int, guidance: float = 1.5) -> CSpDRun:
    plan = MaskSchedule(target.config.seq_len, target.config.seq_len)
    noise = TokenNoise(Noise(seed, samples))
    labels = samples % target.config.class_num
    return CSpDRun(
        *(GuidedMAR(model, labels, PROCESS, guidance > 1 and not model.config.distilled) for model in (target, draft)),
        plan,
        plan.guidance(guidance, "linear"),
        ranks(noise.orders(plan.length)),
        Numbers(noise, len(PROCESS), target.config.token_dim),
    )


@torch.inference_mode()
def exact_tokens(target: MAR, draft: MAR, count: int, seed: int, prefill: float, window: int = 3) -> CSpDRun:
    run = build(target, draft, torch.arange(count), seed)
    run_exact(run, window, prefill)
    return run


def statistics(tokens: torch.Tensor) -> list[torch.Tensor]:
    """Each token, and products that tell whether tokens depend on each other rightly."""
    x = tokens[..., 0]
    return [*x.unbind(1), x[:, 0] * x[:, 1], x[:, 2] * x[:, 3], x.prod(1), x.sum(1)]


COUNT = 6_000
LIMIT = 2.3 * math.sqrt(2 / COUNT)  # two samples, level 0.00005 for each of 8 statistics


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return max(kolmogorov_two(x, y) for x, y in zip(statistics(a), statistics(b), strict=True))


@pytest.fixture(scope="module")
def models() -> tuple[MAR, MAR, torch.Tensor]:
    target = tiny(0)
    draft = nearby(target, 1, 0.12)
    plain = exact_tokens(target, draft, COUNT, seed=100, prefill=1.0)
    assert plain.draft.forwards == 0
    return target, draft, plain.tokens


@pytest.mark.parametrize("distilled", [False, True])
def test_exact_decoding_has_the_law_of_the_targets_own_sampler(models, distilled) -> None:
    target, draft, plain = models
    if distilled:  # one branch of the draft against two of the target
        draft = nearby(target, 1, 0.12, label_drop_prob=0.0)
    run = exact_tokens(target, draft, COUNT, seed=7, prefill=0.0)
    stats = run.stats
    assert 0.05 < stats.acceptance_rate < 0.99 and stats.rolled_back > 0
    assert worst(run.tokens, plain) < LIMIT
    assert (stats.step_of > 0).all(), "every token was decided"
    assert (run.tokens != 0).all(), "no token stays at zero"


def test_wrong_decoders_are_noticed(models, monkeypatch) -> None:
    target, draft, plain = models
    with monkeypatch.context() as patch:
        patch.setattr(cspd_rules, "path_log_ratio", lambda path, chain: torch.zeros(len(path.value)).double())
        assert worst(exact_tokens(target, draft, COUNT, 7, 0.0).tokens, plain) > 2 * LIMIT


def test_a_draft_equal_to_its_target_is_accepted_whole(models) -> None:
    target, _, _ = models
    run = exact_tokens(target, target, 8, seed=3, prefill=0.0, window=3)
    assert run.stats.acceptance_rate == 1.0 and run.stats.rolled_back == 0
    assert run.target.forwards == 2  # one step of prefill, one window of three


def test_a_picture_does_not_depend_on_its_batch(models) -> None:
    target, draft, _ = models
    together = exact_tokens(target, draft, 6, seed=5, prefill=0.0).tokens
    with torch.inference_mode():
        alone = build(target, draft, torch.tensor([4]), 5)
        run_exact(alone, 3, 0.0)
    torch.testing.assert_close(alone.tokens[0], together[4], atol=1e-4, rtol=1e-4)


def test_a_distilled_model_runs_one_branch_and_refuses_guidance(models) -> None:
    target, *_ = models
    draft = nearby(target, 1, 0.12, label_drop_prob=0.0)
    sampler = ContinuousSpeculative(draft, "reference", iterations=4, head_steps=4, window=2, prefill=0.0)
    _, stats = sampler.sample(target, Condition(torch.arange(3)), SamplingParams(2.0), Noise(0, torch.arange(3)))
    assert stats.draft_rows == 4 * int(stats.proposed.sum())
    with pytest.raises(VistokError, match="leave it at 1"):
        MaskedAutoregressive(head_steps=4).sample(
            draft, Condition(torch.arange(3)), SamplingParams(2.0), Noise(0, torch.arange(3))
        )


@pytest.mark.parametrize("distilled", [False, True])
def test_reference_mode_leaves_no_token_at_zero(models, distilled) -> None:
    target, draft, _ = models
    if distilled:
        draft = nearby(target, 1, 0.12, label_drop_prob=0.0)
    with torch.inference_mode():
        run = build(target, draft, torch.arange(64), 2)
        run_reference(run, 2, 0.0, 42.0)
    assert (run.tokens != 0).all() and (run.stats.step_of > 0).all()


def test_rows_that_know_different_numbers_of_tokens() -> None:
    """A ragged batch gives each row what it gets alone."""
    model = tiny(3, grid=4)
    tokens, labels = torch.randn(3, 16, 1), torch.tensor([0, 1, 2])
    mask = ranks(torch.rand(3, 16).argsort(1)) < torch.tensor([[16], [9], [3]])
    with torch.no_grad():
        together = model.conditions(tokens, mask, model.condition(labels))
        for i in range(3):
            one = slice(i, i + 1)
            alone = model.conditions(tokens[one], mask[one], model.condition(labels[one]))
            torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("counts", [(2, 2, 2), (0, 5, 16), (1, 0, 0), (0, 0, 0)])
def test_asking_for_some_conditions_gives_those_and_no_others(counts: tuple[int, int, int]) -> None:
    model = tiny(3, grid=4)
    tokens, condition = torch.randn(3, 16, 1), model.condition(torch.tensor([0, 1, 2]))
    mask = ranks(torch.rand(3, 16).argsort(1)) < torch.tensor([[16], [9], [3]])
    asked = ranks(torch.rand(3, 16).argsort(1)) < torch.tensor(counts)[:, None]
    with torch.no_grad():
        found = model.conditions(tokens, mask, condition, asked)
        torch.testing.assert_close(found, model.conditions(tokens, mask, condition)[asked], atol=1e-5, rtol=1e-5)


def test_hidden_tokens_are_not_read() -> None:
    model = tiny(3, grid=4)
    mask = ranks(torch.rand(2, 16).argsort(1)) < 10
    condition = model.condition(torch.tensor([0, 1])).detach()
    with torch.no_grad():
        tokens = torch.randn(2, 16, 1)
        other = torch.where(mask[..., None], torch.full_like(tokens, 9.0), tokens)
        assert torch.equal(model.conditions(tokens, mask, condition), model.conditions(other, mask, condition))


@pytest.mark.parametrize(("length", "iterations"), [(64, 64), (64, 10), (16, 1), (16, 40), (9, 9)])
def test_every_token_is_drawn_in_exactly_one_step(length: int, iterations: int) -> None:
    plan = MaskSchedule(length, iterations)
    assert plan.steps[0][0] == length and plan.steps[-1][1] == 0
    assert all(a[1] == b[0] for a, b in zip(plan.steps, plan.steps[1:], strict=False))
    assert len(plan.step_of_rank) == length
    for step, (before, after, _) in enumerate(plan.steps):
        assert ((plan.step_of_rank >= step).sum(), (plan.step_of_rank > step).sum()) == (before, after)


def test_solver_and_ancestral_sampler_agree_on_a_linear_head() -> None:
    """The best head for normal data of deviation 0.5: both samplers must find that deviation."""

    class Linear(torch.nn.Module):
        input_proj = torch.nn.Linear(1, 4)
        res_blocks = ()

        def modulation(self, t, c):
            return torch.zeros(*torch.broadcast_shapes(t.shape, c.shape[:-1]), 8) + t[..., None]

        def denoise(self, x, modulation):
            # Data of variance 0.25: the best noise estimate is linear in x.
            level = FULL.alphas_cumprod[modulation[..., :1].long()].float()
            eps = x * (1 - level).sqrt() / (0.25 * level + 1 - level)
            return torch.cat([eps, torch.zeros_like(eps)], -1)

    start = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    z = torch.zeros(4000, 2)
    solved = solve(HeadChain(Linear(), solver_process(10), z), start)
    assert abs(float(solved.std() / start.std()) - 0.5) < 0.01
    process = Diffusion("100")
    noise = torch.randn(101, 4000, 1, generator=torch.Generator().manual_seed(1))
    assert abs(float(draw(HeadChain(Linear(), process, z), noise).std()) - 0.5) < 0.03


FULL = Diffusion()


def test_samplers_by_name_and_their_mistakes() -> None:
    model = tiny(0, grid=4)
    noise, labels = Noise(0, torch.arange(2)), torch.tensor([0, 2])
    tokens, stats = MaskedAutoregressive(4, 5, "dpm++").sample(model, Condition(labels), SamplingParams(2.0), noise)
    assert tokens.shape == (2, 16, 1) and stats.target_calls == 4 * 5 and stats.forwards.tolist() == [4, 4]
    with pytest.raises(VistokError, match="mode of cspd"):
        ContinuousSpeculative(mode="exat")
    with pytest.raises(VistokError, match="inner temperature must be above 0"):
        ContinuousSpeculative(inner_temperature=0.0)
    with pytest.raises(VistokError, match="solver"):
        MaskedAutoregressive(4, 5, "euler").sample(model, Condition(labels), SamplingParams(), noise)
    with pytest.raises(VistokError, match="seq_len"):
        ContinuousSpeculative(tiny(1, grid=2)).sample(model, Condition(labels), SamplingParams(), noise)
    with pytest.raises(VistokError, match="at least one step"):
        MaskedAutoregressive(0).sample(model, Condition(labels), SamplingParams(), noise)
    with pytest.raises(VistokError, match="guidance schedule"):
        MaskedAutoregressive(guidance_schedule="cubic").sample(model, Condition(labels), SamplingParams(), noise)
