"""Janus, Emu3 and Chameleon under every sampler: transformers' own tokens when greedy, the exact law when drawn."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2

import vistok
from tests.samplers.tiny import tiny_head
from tests.samplers.tiny_codes import MODELS, K, call, emu3_allowed
from vistok.samplers import Autoregressive, Eagle, Lantern, Recycling, SpeculativeJacobi

SPECIAL = {"janus": 0, "emu3": 4, "chameleon": 1}
PLAIN = {
    "ar": Autoregressive(),
    "sjd": SpeculativeJacobi(4),
    "sjd-published-uniform": SpeculativeJacobi(5, "uniform", "published"),
    "recycling": Recycling(),
}
HEADED = {"eagle": (Eagle, {}), "eagle-static": (Eagle, {"tree": "mc_sim_7b_63"}), "lantern": (Lantern, {"k": 0})}
SAMPLERS = [*PLAIN, *HEADED]


def sampler_of(name, kind):
    if name in PLAIN:
        return PLAIN[name]
    cls, options = HEADED[name]
    return cls(tiny_head(K + SPECIAL[kind], cls_token_num=1), **options)


@pytest.fixture
def image_logits(monkeypatch):
    """Lets the plain Chameleons of transformers speak in image tokens, which their forward forbids."""
    for attention in ((), ("eager",)):
        mapping = MODELS["chameleon"](*attention).model.vocabulary_mapping
        assert mapping.bpe2img  # made from the list below, so it must be there first
        monkeypatch.setitem(mapping.__dict__, "image_tokens", [])


@pytest.mark.usefixtures("image_logits")
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", MODELS)
def test_greedy_pictures_are_those_of_generate(kind, name):
    model = MODELS[kind]()
    wanted = model.generate(**call(kind, do_sample=False))
    before = dict(vars(model))
    with vistok.accelerate(model, sampler_of(name, kind)) as run:
        found = model.generate(**call(kind, do_sample=False))
    assert torch.equal(found, wanted)
    assert vars(model) == before
    if name != "ar":
        assert int(run.stats.forwards.max()) < run.stats.tokens - 1


@pytest.mark.usefixtures("image_logits")
@pytest.mark.parametrize("kind", MODELS)
def test_eager_attention_gives_the_same_pictures(kind):
    if kind == "janus":
        pytest.skip("eager attention of a Llama computes its softmax in float32, and the tiny model is float64")
    model = MODELS[kind]("eager")
    wanted = model.generate(**call(kind, batch=1, do_sample=False))
    with vistok.accelerate(model, SpeculativeJacobi(4)):
        assert torch.equal(model.generate(**call(kind, batch=1, do_sample=False)), wanted)


@pytest.mark.usefixtures("image_logits")
@pytest.mark.parametrize("kind", ["emu3", "chameleon"])
def test_without_guidance_one_row_a_picture_runs(kind):
    model = MODELS[kind]()
    wanted = model.generate(**call(kind, None, do_sample=False))
    with vistok.accelerate(model, SpeculativeJacobi(4)):
        assert torch.equal(model.generate(**call(kind, None, do_sample=False)), wanted)


def test_janus_draws_without_guidance_where_transformers_crashes():
    model = MODELS["janus"]()
    with vistok.accelerate(model, Autoregressive()) as run:
        one = model.generate(**call("janus", 1.0, do_sample=False))
        assert run.stats.tokens == 9
    almost = model.generate(**call("janus", 1.0 + 1e-9, do_sample=False))
    assert torch.equal(one, almost)


def exact_law(kind, arguments, depth):
    """Law of the first ``depth`` codes, by plain forwards of the class without a cache: {codes: probability}.

    Guidance 3, temperature 3 and the two best codes of each place; forced tokens between the codes are followed.
    """
    model = MODELS[kind]()
    base = model.model
    ids = arguments["input_ids"]
    if kind == "janus":
        told = model.get_input_embeddings()(ids)
        untold = model.get_input_embeddings()(torch.where((ids == 1) | (ids == 3), ids, 0))
        step, network = model.prepare_embeddings_for_image_generation, base.language_model
        head, codes = base.generation_head, torch.arange(K)
    else:
        table = model.get_input_embeddings()
        told, untold = table(ids), table(arguments["negative_prompt_ids"])
        network = base.text_model if kind == "emu3" else base
        step, head = table, model.lm_head
        names = model.config.vocabulary_map
        codes = torch.tensor(sorted(t for n, t in names.items() if n.startswith(("<|visual", "IMGIMG"))))

    def logits(prompt, tail):
        rows = torch.cat([prompt, step(torch.tensor([tail]))], 1) if tail else prompt
        return head(network(inputs_embeds=rows, use_cache=False).last_hidden_state[:, -1])[0, codes]

    laws = {(): 1.0}
    for _ in range(depth):
        grown = {}
        for tail, chance in laws.items():
            if kind != "janus":
                allowed = arguments["prefix_allowed_tokens_fn"](0, torch.cat([ids[0], torch.tensor(tail, dtype=int)]))
                if len(allowed) == 1:
                    tail = (*tail, int(allowed[0]))
            c, u = logits(told, list(tail)), logits(untold, list(tail))
            best = (u + 3 * (c - u)).topk(2)
            for p, index in zip((best.values / 3).softmax(-1).tolist(), best.indices.tolist(), strict=True):
                grown[(*tail, int(codes[index]))] = chance * p
        laws = grown
    return laws


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ar"])
@pytest.mark.parametrize("kind", MODELS)
def test_drawn_pictures_follow_the_law(kind, name):
    model, count, depth = MODELS[kind](), 600, 5
    arguments = call(kind, batch=1, do_sample=True, temperature=3.0, top_k=2, num_return_sequences=count)
    law = exact_law(kind, arguments, depth)
    torch.manual_seed(3)
    with vistok.accelerate(model, sampler_of(name, kind)):
        drawn = model.generate(**arguments)
    prompt = 0 if kind == "janus" else arguments["input_ids"].shape[1]
    width = len(next(iter(law)))
    seen = dict.fromkeys(law, 0)
    for row in drawn[:, prompt : prompt + width].tolist():
        seen[tuple(row)] += 1  # a KeyError is a token of probability zero
    cells = [(seen[cell], count * p) for cell, p in law.items() if count * p >= 5]
    rest = (count - sum(s for s, _ in cells), count - sum(e for _, e in cells))
    cells += [rest] if rest[1] >= 5 else []
    statistic = sum((s - e) ** 2 / e for s, e in cells)
    assert len(cells) > 3
    assert chi2.sf(statistic, len(cells) - 1) > 1e-4


@pytest.mark.parametrize("kind", MODELS)
def test_recycling_draws_what_plain_decoding_draws(kind):
    model, found = MODELS[kind](), []
    for sampler in (Autoregressive(), Recycling()):
        torch.manual_seed(5)
        with vistok.accelerate(model, sampler):
            found.append(model.generate(**call(kind, do_sample=True)))
    assert torch.equal(*found)


def test_forced_tokens_are_drafted_so_no_line_end_is_turned_down():
    model = MODELS["emu3"]()
    with vistok.accelerate(model, SpeculativeJacobi(16)) as run:
        model.generate(**call("emu3", do_sample=True))
    steps, forced = run.stats.step_of, [4, 9, 10, 11, 12]  # line ends, frame end, picture end, text end
    for row in steps:
        for place in forced[1:]:
            assert row[place] == row[place - 1] or place == 9
    assert torch.equal(steps[:, 10:], steps[:, 9:12])


def test_an_emu3_prompt_alone_lays_out_its_picture():
    model = MODELS["emu3"]()
    arguments = call("emu3", do_sample=False)
    wanted = model.generate(**arguments)
    del arguments["prefix_allowed_tokens_fn"], arguments["max_new_tokens"]
    with vistok.accelerate(model, SpeculativeJacobi(4)):
        assert torch.equal(model.generate(**arguments), wanted)
    assert emu3_allowed(model.config.vocabulary_map)


def test_one_negative_prompt_serves_a_batch():
    model = MODELS["emu3"]()
    arguments = call("emu3", do_sample=False)
    arguments["negative_prompt_ids"] = torch.tensor([[1, 18]])
    arguments["negative_prompt_attention_mask"] = torch.ones(1, 2, dtype=torch.int64)
    both = arguments | {
        key: arguments[key].repeat(2, 1) for key in ("negative_prompt_ids", "negative_prompt_attention_mask")
    }
    with vistok.accelerate(model, Autoregressive()):
        assert torch.equal(model.generate(**arguments), model.generate(**both))


def test_lantern_takes_the_codes_of_the_model_and_leaves_forced_tokens_alone():
    model = MODELS["emu3"]()
    lossy = Lantern(tiny_head(K + 4, cls_token_num=1), k=4, delta=0.5)
    with vistok.accelerate(model, lossy) as run:
        found = model.generate(**call("emu3", do_sample=True))
    assert found[:, -3:].tolist() == [[6, 7, 2]] * 2
    assert int(run.stats.accepted.sum()) > 0
