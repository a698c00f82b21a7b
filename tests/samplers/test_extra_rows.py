"""Extra rows: what a target says behind them, that nodes and cache do not notice them, and what they draft."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from tests.samplers.test_speculation import ragged
from tests.samplers.tiny import KINDS, VOCABULARY, prompt, tiny, tiny_prompt_tokens, tiny_transfer
from vistok.errors import VistokError
from vistok.models.heads.hidden_transfer import HiddenTransfer, HiddenTransferConfig
from vistok.models.heads.prompt_tokens import PromptTokens
from vistok.samplers import ExtraRowDrafter, Prompt, SparseTrees, TextTarget, TypicalTree, best_sparse_trees, generate
from vistok.samplers.drafters.extra_rows import hang
from vistok.samplers.tree import TokenTree, TreeShape

PUBLISHED = {
    "num_special_tokens": 3,
    "virtual_tokens_per_special_token": 1,
    "num_virtual_tokens": 3,
    "token_dim": 16,
    "vt_attention_type": "ensemble",
    "aggregation_type": "mean",
    "peft_type": "PROMPT_TUNING",
    "task_type": "CAUSAL_LM",
}


def scored(model, network, extra: bool):
    """Scores of a tree of four nodes behind a prompt, node 1 carrying two predictions and node 3 one."""
    target = TextTarget(model, Prompt.of(prompt()), 20, 16)
    target.prefill()
    shape = TreeShape(torch.tensor([[-1, 0, 0, 1]]))
    rows = hang(network, torch.tensor([[1, 1, 3]]), torch.tensor([[0, 1, 0]])) if extra else None
    tree = TokenTree(torch.tensor([[3, 5, 7, 9]]), shape, extra=rows)
    return target, target.forward(tree, torch.ones(1, dtype=torch.int64))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_see_the_text_of_their_node_and_nodes_see_no_rows(kind, attention):
    model, network = tiny(kind, attention=attention), tiny_prompt_tokens()
    target, scores = scored(model, network, True)
    assert torch.allclose(scores.logits, scored(model, network, False)[1].logits, atol=1e-4)
    embed, table = model.get_input_embeddings(), network.prompt_embeddings.to(model.dtype)
    for nodes, count, rows in (([3, 5], 2, [0, 1]), ([3, 5, 9], 1, [2])):
        text = torch.cat([prompt(), torch.tensor([nodes])], 1)
        entered = torch.cat([embed(text), table[:count][None]], 1)
        expected = model(inputs_embeds=entered).logits[0, -count:]
        assert torch.allclose(scores.extra[0, rows], expected, atol=1e-4)
    target.lm.cache.commit(torch.tensor([[0, 1, 3]]), torch.tensor([3]))
    after = target.lm.forward(torch.tensor([[4]]), torch.zeros(1, 1).long(), torch.ones(1, 1, 1).bool())
    text = torch.cat([prompt(), torch.tensor([[3, 5, 9, 4]])], 1)
    assert torch.allclose(after[0, -1], model(text).logits[0, -1], atol=1e-4)


def test_transferred_states_enter_at_their_layer():
    """In front of layer 1 of two, so a row is the last layer over the states of the text and the mapped one."""
    model, network = tiny(), tiny_transfer()
    _, scores = scored(model, network, True)
    assert torch.allclose(scores.logits, scored(model, network, False)[1].logits, atol=1e-9)
    text = torch.cat([prompt(), torch.tensor([[3, 5]])], 1)
    before = model(text, output_hidden_states=True).hidden_states[1]
    entered = torch.cat([before, network.transfer[0](before[:, -1:]), network.transfer[1](before[:, -1:])], 1)
    places = torch.arange(entered.shape[1])[None]
    mask = (places[..., None] >= places[:, None])[:, None]
    decoder = model.model
    angles = decoder.rotary_emb(entered, places)
    found = decoder.layers[1](entered, attention_mask=mask, position_embeddings=angles)
    found = found[0] if isinstance(found, tuple) else found
    assert torch.allclose(scores.extra[0, :2], model.lm_head(decoder.norm(found))[0, -2:], atol=1e-9)


NETWORKS = {
    "prompt tokens": lambda: tiny_prompt_tokens(),
    "two rows a token": lambda: tiny_prompt_tokens(2, group=2, attention="decoder"),
    "groups": lambda: tiny_prompt_tokens(2, group=2, attention="encoder"),
    "hidden transfer": lambda: tiny_transfer(),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_greedy_tokens_are_those_of_plain_generate(name):
    model = tiny()
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    for inputs in (ragged(), {"input_ids": prompt(1, 1)}):
        expected = model.generate(**inputs, **options)
        network = NETWORKS[name]()
        for trees in (None, SparseTrees.chains(network.ahead)):
            out = generate(model, inputs, ExtraRowDrafter(network, trees), **options)
            assert torch.equal(out.sequences, expected)
            assert int(out.stats.proposed.sum()) > 0
    assert torch.equal(
        generate(model, ragged(), ExtraRowDrafter(network), TypicalTree(), **options).sequences,
        model.generate(**ragged(), **options),
    )


def test_rows_that_know_what_is_next_are_accepted_as_deep_as_the_tree():
    """A head that says token 4 whatever it reads: every step but the first accepts three drafts."""
    model = copy.deepcopy(tiny())
    model.lm_head = torch.nn.Linear(16, VOCABULARY).double()
    torch.nn.init.zeros_(model.lm_head.weight)
    model.lm_head.bias.data = torch.nn.functional.one_hot(torch.tensor(4), VOCABULARY).double()
    drafter = ExtraRowDrafter(tiny_prompt_tokens(), SparseTrees.chains(3))
    out = generate(model, prompt(), drafter, max_new_tokens=14, do_sample=False)
    assert out.stats.emitted(0) == [1, 4, 4, 4]


def test_typical_acceptance_is_lossy_and_says_so():
    assert not TypicalTree().lossless
    model, drafter = tiny(), ExtraRowDrafter(tiny_prompt_tokens())
    out = generate(model, prompt(), drafter, TypicalTree(0.0, 0.0), do_sample=True, max_new_tokens=20, min_new_tokens=3)
    assert out.sequences.shape[1] == 27


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_published_prompt_tokens_load_strictly_and_stay_as_they_are(tmp_path, format):
    weights = torch.randn(3, 16)
    (tmp_path / "adapter_config.json").write_text(json.dumps(PUBLISHED))
    file = tmp_path / f"adapter_model.{format}"
    save = save_file if format == "safetensors" else torch.save
    save({"prompt_embeddings": weights}, file)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    found = PromptTokens.from_pretrained(str(tmp_path))
    assert torch.equal(found.prompt_embeddings, weights) and (found.ahead, found.group) == (3, 1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    found.save_pretrained(tmp_path / "again")
    assert torch.equal(PromptTokens.from_pretrained(str(tmp_path / "again")).prompt_embeddings, weights)


@pytest.mark.parametrize(
    ("config", "weights", "reason"),
    [
        ({"num_special_tokens": 2}, {"prompt_embeddings": (3, 16)}, "num_special_tokens"),
        ({"token_dim": 8}, {"prompt_embeddings": (3, 16)}, "token_dim"),
        ({"virtual_tokens_per_special_token": 2}, {"prompt_embeddings": (3, 16)}, "x 2"),
        ({"use_custom_lm_head": True}, {"prompt_embeddings": (3, 16)}, "use_custom_lm_head"),
        ({"use_prefix_tuning": True}, {"prompt_embeddings": (3, 16)}, "use_prefix_tuning"),
        ({"aggregation_type": "adaptive_weighted"}, {"prompt_embeddings": (3, 16)}, "adaptive_weighted"),
        ({"num_exits": 2}, {"prompt_embeddings": (3, 16)}, "num_exits"),
        ({}, {"prompt_encoder.default.embedding.weight": (3, 16)}, "prompt_encoder"),
        ({}, {"prompt_embeddings": (3, 16), "more": (1,)}, "more"),
        ({"vt_attention_type": "all"}, {"prompt_embeddings": (3, 16)}, "known: decoder, encoder, ensemble"),
    ],
)
def test_other_layouts_are_refused_by_name(tmp_path, config, weights, reason):
    (tmp_path / "adapter_config.json").write_text(json.dumps(PUBLISHED | config))
    save_file({key: torch.zeros(shape) for key, shape in weights.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(VistokError, match=reason):
        PromptTokens.from_pretrained(str(tmp_path))


def test_transfer_maps_round_trip(tmp_path):
    tiny_transfer().float().save_pretrained(tmp_path)
    found = HiddenTransfer.from_pretrained(str(tmp_path))
    assert found.layer == 1 and torch.equal(found.transfer[2].weight, tiny_transfer().float().transfer[2].weight)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: generate(tiny(), prompt(), ExtraRowDrafter(tiny_prompt_tokens(width=8))), "8 wide"),
        (lambda: generate(tiny(), prompt(), ExtraRowDrafter(HiddenTransfer(HiddenTransferConfig(16, 2)))), "layer 2"),
        (lambda: HiddenTransferConfig(16, 0), "at least 1"),
        (lambda: ExtraRowDrafter(tiny_prompt_tokens(2), SparseTrees.chains(3)), "3 positions ahead"),
        (lambda: SparseTrees({1: [((0,), 1), ((0, 0), 1)]}, 2), "deeper"),
        (lambda: SparseTrees({1: [((0,), 3)]}, 2), "further"),
        (lambda: SparseTrees({1: [((1,), 1)]}, 2), "earlier sibling"),
        (lambda: best_sparse_trees([[0.5] * 10] * 3, 12), "at least 20"),
        (lambda: TypicalTree(2.0), "0 to 1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(make, reason):
    with pytest.raises(VistokError, match=reason):
        make()
