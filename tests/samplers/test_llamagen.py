"""The samplers on a small LlamaGen in float64, where decoding with and without drafts compares token by token."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import pytest
import torch

from vistok.errors import VistokError
from vistok.models.heads.eagle import EagleConfig, EagleNetwork
from vistok.models.interface import Condition
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.samplers import Autoregressive, Eagle, ImageTarget, Lantern, Noise, SamplingParams, SpeculativeJacobi
from vistok.samplers.drafters import eagle, jacobi
from vistok.samplers.run import Verdict
from vistok.samplers.tree import TokenTree, TreeShape

SIZE, GRID, PREFIX = 24, 5, 4


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaGenConfig(
        dim=32, n_layer=2, n_head=2, multiple_of=8, vocab_size=SIZE, block_size=GRID**2,
        model_type="t2i", cls_token_num=PREFIX, caption_dim=6,
    )  # fmt: skip
    model = LlamaGen(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


@pytest.fixture(scope="module")
def drafter():
    torch.manual_seed(1)
    config = EagleConfig(SIZE, 32, 48, 2, grid=GRID, cls_token_num=PREFIX)
    return EagleNetwork(config).double().eval()


@pytest.fixture(scope="module")
def prompts():
    torch.manual_seed(2)
    return torch.randn(3, PREFIX, 6, dtype=torch.float64), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]])


def samplers(drafter):
    codebook = torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(4))
    return {
        "sjd": SpeculativeJacobi(window=6),
        "sjd-published": SpeculativeJacobi(window=6, init="repeat-up", variant="published"),
        "eagle": Eagle(drafter, drafts=7, depth=2, top_k=3),
        "eagle-confident": Eagle(drafter, drafts=12, depth=4, top_k=3, confidence=0.35, least=0.02),
        "eagle-static": Eagle(drafter, tree="mc_sim_7b_63"),
        "eagle-chain": Eagle(drafter, tree="chain"),
        "lantern": Lantern(drafter, k=0, delta=0.0, codebook=codebook, drafts=7, depth=2, top_k=3),
        "lantern-lends": Lantern(drafter, k=5, delta=0.3, codebook=codebook, drafts=9, confidence=0.35, least=0.02),
        "lantern-static": Lantern(drafter, k=0, delta=0.0, codebook=codebook, tree="naive_extend_57"),
    }


NAMES = ("sjd", "sjd-published", "eagle", "eagle-confident", "eagle-static", "eagle-chain", "lantern", "lantern-static")


def teacher_forced(model, tokens, condition, mask, law):
    """Guided laws of all tokens, by one pass without a cache, [B, n, V]."""
    null = model.null_condition(len(tokens)).to(condition.dtype)
    cond, uncond = (model(tokens[:, :-1], c, mask) for c in (condition, null))
    guided = uncond + (cond - uncond) * law.guidance
    inside = torch.arange(tokens.shape[1]) < (law.guided_tokens or tokens.shape[1])
    return law.probabilities(torch.where(inside[:, None], guided, cond))


@pytest.mark.parametrize("interval", [-1, 7])
def test_plain_decoding_draws_from_the_guided_law(model, prompts, interval):
    params = SamplingParams(guidance=2.5, guidance_interval=interval, top_k=9)
    noise = Noise(0, torch.arange(3))
    tokens, stats = Autoregressive().sample(model, Condition(*prompts), params, noise)
    with torch.inference_mode():
        laws = teacher_forced(model, tokens, *prompts, params)
    from vistok.ops import draw
    from vistok.samplers.noise import DRAW

    uniforms = noise.uniform(torch.arange(GRID**2).expand(3, -1), DRAW)
    assert torch.equal(draw(laws, uniforms), tokens)
    assert stats.mean_accepted_length == 1 and stats.forwards.tolist() == [GRID**2 - 1] * 3


@pytest.mark.parametrize("interval", [-1, 7])
@pytest.mark.parametrize("name", NAMES)
def test_greedy_decoding_is_that_of_plain_decoding(model, drafter, prompts, name, interval):
    params = SamplingParams(guidance=2.0, guidance_interval=interval, greedy=True)
    noise = Noise(0, torch.arange(3))
    plain, _ = Autoregressive().sample(model, Condition(*prompts), params, noise)
    drafted, _ = samplers(drafter)[name].sample(model, Condition(*prompts), params, noise)
    assert torch.equal(plain, drafted)


@pytest.mark.parametrize("interval", [-1, 7])
@pytest.mark.parametrize("pays", [True, False], ids=["drafts pay", "drafts do not pay"])
def test_trees_of_the_size_that_pays_draw_plain_decodings_pictures(
    model, drafter, prompts, interval, pays, monkeypatch
):
    widths = (1, 2, 4, 8, 16, 32, 64)
    cost = {width: 1.0 if pays else float(width) for width in widths}
    monkeypatch.setattr(eagle, "forward_cost", lambda *_: cost)
    monkeypatch.setattr(eagle, "head_cost", lambda *_: dict.fromkeys(widths[:4], 1e-3 if pays else 1.0))
    monkeypatch.setattr(eagle, "_SIZED", WeakKeyDictionary())
    params = SamplingParams(guidance=2.0, guidance_interval=interval)
    proposed = 0
    for seed in range(3):
        noise = Noise(seed, torch.arange(3))
        plain, _ = Autoregressive().sample(model, Condition(*prompts), params, noise)
        drafted, stats = Eagle(drafter, tree="auto").sample(model, Condition(*prompts), params, noise)
        assert torch.equal(plain, drafted)
        proposed += int(stats.proposed.sum())
    assert proposed > 0  # if only in a trial


@pytest.mark.parametrize("name", [*NAMES, "lantern-lends"])
def test_a_picture_is_the_same_alone_and_in_a_batch(model, drafter, prompts, name):
    params = SamplingParams(guidance=2.0, guidance_interval=7, top_k=8, temperature=1.3)
    sampler = samplers(drafter)[name]
    many, stats = sampler.sample(model, Condition(*prompts), params, Noise(3, torch.arange(3)))
    for sample in range(3):
        one = slice(sample, sample + 1)
        condition, mask = (part[one] for part in prompts)
        alone, own = sampler.sample(model, Condition(condition, mask), params, Noise(3, torch.tensor([sample])))
        assert torch.equal(alone[0], many[sample])
        assert torch.equal(own.step_of[0], stats.step_of[sample])


def test_tree_nodes_are_scored_like_the_sequences_they_stand_for(model, prompts):
    """Rows of the batch accept different lengths first, so that the cache is ragged."""
    params = SamplingParams(guidance=2.0)
    target = ImageTarget(model, Condition(*prompts), params, nodes=6)
    chain, tree = TreeShape.chain_of(4), TreeShape.of_paths([(0,), (1,), (0, 0), (0, 1), (1, 0)])
    tokens = torch.randint(SIZE, (3, 10), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        target.prefill()
        count = torch.tensor([1, 2, 4])
        target.forward(TokenTree(tokens[:, :4], chain), torch.ones(3, dtype=torch.int64))
        target.commit(Verdict(tokens[:, 1:5], count), 2, None)
        scores = target.forward(TokenTree(tokens[:, 4:], tree), 1 + count)
        for path in tree.paths.tolist():
            path = [node for node in path if node >= 0]
            for row in range(3):
                fed = torch.cat([tokens[row, : count[row]], tokens[row, 4:][path]])[None]
                one = slice(row, row + 1)
                condition, mask = (part[one] for part in prompts)
                laws = teacher_forced(model, torch.nn.functional.pad(fed, (0, 1)), condition, mask, params)
                found = params.probabilities(scores.logits[row, path])
                assert torch.allclose(found, laws[0, -len(path) :], atol=1e-9)


def test_a_tree_path_is_kept_in_the_cache(model, prompts):
    params = SamplingParams(guidance=2.0)
    tree = TreeShape.of_paths([(0,), (1,), (0, 0), (0, 1), (1, 0)])
    tokens = torch.randint(SIZE, (3, 7), generator=torch.Generator().manual_seed(6))
    target = ImageTarget(model, Condition(*prompts), params, nodes=6)
    path = torch.tensor([[0, 1, 4], [0, 2, -1], [0, -1, -1]])
    count = torch.tensor([3, 2, 1])
    with torch.inference_mode():
        target.prefill()
        target.forward(TokenTree(tokens[:, :6], tree), torch.ones(3, dtype=torch.int64))
        target.commit(Verdict(tokens[:, :3], count, path), 2, None)
        scores = target.forward(TokenTree(tokens[:, 6:], TreeShape.chain_of(1)), 1 + count)
        for row in range(3):
            kept = tokens[row, path[row, : count[row]]]
            fed = torch.cat([kept, tokens[row, 6:], torch.zeros(1, dtype=torch.int64)])[None]
            condition, mask = (part[row : row + 1] for part in prompts)
            laws = teacher_forced(model, fed, condition, mask, params)
            assert torch.allclose(params.probabilities(scores.logits[row, 0]), laws[0, -1], atol=1e-9)


def test_a_drafter_that_knows_the_target_drafts_well(model, prompts):
    """Relaxation accepts more than exact verification, and both more than nothing, with an untrained drafter."""
    torch.manual_seed(1)
    network = EagleNetwork(EagleConfig(SIZE, 32, 48, 2, grid=GRID, cls_token_num=PREFIX)).double().eval()
    codebook = torch.randn(SIZE, 2, generator=torch.Generator().manual_seed(4))
    params, noise = SamplingParams(temperature=2.0), Noise(0, torch.arange(3))
    shape = {"drafts": 9, "depth": 2, "top_k": 3}
    _, exact = Eagle(network, **shape).sample(model, Condition(*prompts), params, noise)
    _, relaxed = Lantern(network, k=10, delta=0.5, codebook=codebook, **shape).sample(
        model, Condition(*prompts), params, noise
    )
    assert 1 <= exact.mean_accepted_length < relaxed.mean_accepted_length
    assert relaxed.draft_forwards > relaxed.forwards.max()


@pytest.mark.parametrize("cost", [{1: 1.0, 8: 1.1}, {1: 1.0, 8: 8.0}])
def test_an_automatic_window_is_measured_once_for_each_batch(model, prompts, cost, monkeypatch):
    measured = []
    monkeypatch.setattr(jacobi, "_TUNED", {})
    monkeypatch.setattr(jacobi, "forward_cost", lambda model, params, batch: measured.append(batch) or cost)
    sampler, params, noise = SpeculativeJacobi(window="auto"), SamplingParams(guidance=2.0), Noise(0, torch.arange(3))
    fixed = sampler.tuned(model, params, 3)
    assert fixed == (SpeculativeJacobi(window=8) if cost[8] < 2 else Autoregressive())  # no window wins: plain decoding
    assert sampler.tuned(model, params, 3) == fixed and sampler.tuned(model, params, 2) == fixed
    assert measured == [3, 2]
    automatic, _ = sampler.sample(model, Condition(*prompts), params, noise)
    named, _ = fixed.sample(model, Condition(*prompts), params, noise)
    assert torch.equal(automatic, named)


def test_wrong_parts_are_refused(model, drafter, prompts):
    noise = Noise(0, torch.arange(3))
    other = EagleNetwork(EagleConfig(SIZE + 1, 32, 48, 2, grid=GRID, cls_token_num=PREFIX))
    with pytest.raises(VistokError, match="vocabulary is 25, but the model's is 24"):
        Eagle(other).sample(model, Condition(*prompts), SamplingParams(), noise)
    with pytest.raises(VistokError, match="unknown static tree"):
        Eagle(drafter, tree="mc_sim")
    with pytest.raises(VistokError, match=r"on the clock.*'dynamic'"):
        Lantern(drafter, tree="auto")
    with pytest.raises(VistokError, match="1 to 12 drafts"):
        Eagle(drafter, drafts=99, depth=1, top_k=3)
    with pytest.raises(VistokError, match="has no 24 neighbours"):
        Lantern(drafter, k=24).with_codebook(torch.zeros(SIZE, 2)).sample(
            model, Condition(*prompts), SamplingParams(), noise
        )
    with pytest.raises(VistokError, match="the codebook has 30 codes"):
        Lantern(drafter, k=4).with_codebook(torch.zeros(30, 2)).sample(
            model, Condition(*prompts), SamplingParams(), noise
        )
    with pytest.raises(VistokError, match="needs the tokenizer's codebook"):
        Lantern(drafter).sample(model, Condition(*prompts), SamplingParams(), noise)


@torch.inference_mode()
def test_a_window_as_long_as_the_picture_is_the_longest(model, prompts):
    length = model.tokens.length
    assert SpeculativeJacobi(window=10**9).parts(model, SamplingParams(), 1)[0].nodes == length
    condition, noise = Condition(*prompts), Noise(0, torch.arange(3))
    longest, longer = (
        SpeculativeJacobi(window=width).sample(model, condition, SamplingParams(), noise)[0]
        for width in (length, 10**9)
    )
    assert torch.equal(longest, longer)
