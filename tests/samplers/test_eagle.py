"""EAGLE networks and their training: strict loading, cached drafting equals a full pass, training sees what drafting
sees.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from vistok.errors import VistokError
from vistok.models.heads.clover import Clover
from vistok.models.heads.drafter import DrafterConfig
from vistok.models.heads.eagle import EagleConfig, EagleNetwork
from vistok.models.heads.eagle3 import Eagle3Network
from vistok.models.heads.eagle3_config import Eagle3Config
from vistok.models.interface import Condition
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.samplers import Autoregressive, Noise, SamplingParams
from vistok.samplers.drafters.eagle import drafter_of
from vistok.samplers.drafters.head import HeadDrafter
from vistok.samplers.policies.dynamic import DynamicTree
from vistok.samplers.policies.static import StaticTree
from vistok.samplers.policies.trees import STATIC_TREES
from vistok.train.tasks.eagle import EagleObjective, target_features

PUBLISHED = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1,
    "rms_norm_eps": 1e-6, "model_type": "llama", "input_type": "t2i",
}  # fmt: skip
LLAMAGEN_KEYS = {
    "embed_tokens.weight", "fc.weight", "fc.bias", "layers.0.post_attention_layernorm.weight",
    *(f"layers.0.self_attn.{p}_proj.weight" for p in "qkvo"),
    *(f"layers.0.mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
}  # fmt: skip


def write(folder, state, config=None, name="pytorch_model.bin"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or PUBLISHED))
    torch.save(state, folder / name) if name.endswith(".bin") else save_file(state, folder / name)
    return str(folder)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return EagleNetwork(EagleConfig(24, 16, 24, 2, grid=4, cls_token_num=3)).eval()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_published_drafter_loads_strictly(tmp_path, network, name):
    assert set(network.state_dict()) == LLAMAGEN_KEYS
    folder = write(tmp_path / "drafter", network.state_dict(), name=name)
    loaded = EagleNetwork.from_pretrained(folder, grid=4, cls_token_num=3)
    assert loaded.config == network.config
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))
    state = network.state_dict()
    state["layers.0.input_layernorm.weight"] = torch.ones(16)
    with pytest.raises(VistokError, match=r"unexpected layers\.0\.input_layernorm\.weight"):
        EagleNetwork.from_pretrained(write(tmp_path / "more", state))
    del state["layers.0.input_layernorm.weight"], state["fc.bias"]
    assert not EagleNetwork.from_pretrained(write(tmp_path / "plain", state)).config.bias  # the weights decide
    del state["fc.weight"]
    with pytest.raises(VistokError, match=r"lacks fc.weight"):
        EagleNetwork.from_pretrained(write(tmp_path / "less", state))


def test_a_saved_drafter_loads_with_its_own_shape(tmp_path, network):
    network.save_pretrained(tmp_path, torch.float16)
    loaded = EagleNetwork.from_pretrained(str(tmp_path), grid=9, cls_token_num=9)
    assert loaded.config == network.config


def test_folders_that_hold_no_drafter_are_refused(tmp_path, network):
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(VistokError, match="does not say the shape"):
        EagleNetwork.from_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text("]")
    with pytest.raises(VistokError, match="not JSON"):
        EagleNetwork.from_pretrained(str(tmp_path))


def test_an_eagle3_file_without_embedding_takes_the_targets(tmp_path):
    torch.manual_seed(0)
    network = Eagle3Network(Eagle3Config(24, 16, 24, 2, draft_vocab_size=10))
    state = {key: value for key, value in network.state_dict().items() if key != "embed_tokens.weight"}
    assert {"d2t", "t2d", "midlayer.hidden_norm.weight", "norm.weight", "lm_head.weight"} <= set(state)
    loaded = Eagle3Network.from_pretrained(write(tmp_path / "third", state, PUBLISHED | {"draft_vocab_size": 10}))
    table = torch.randn(24, 16)
    loaded.share_embedding(table)
    assert torch.equal(loaded.embed_tokens.weight, table)


def test_drafting_step_by_step_is_one_full_pass(network):
    features, tokens = torch.randn(2, 9, 16), torch.randint(24, (2, 9))
    with torch.inference_mode():
        whole = network(features, tokens)
        cache = network.new_cache(2, 9)
        parts = []
        for start, end in ((0, 4), (4, 5), (5, 9)):
            parts.append(network(features[:, start:end], tokens[:, start:end], cache))
            cache.advance(end - start)
    assert torch.allclose(whole, torch.cat(parts, 1), atol=1e-5)


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(0)
    config = LlamaGenConfig(
        dim=16, n_layer=2, n_head=2, multiple_of=8, vocab_size=24, block_size=16,
        model_type="t2i", cls_token_num=3, caption_dim=6,
    )  # fmt: skip
    model = LlamaGen(config).eval()
    torch.nn.init.normal_(model.output.weight, std=0.5)
    return model


def test_training_pairs_are_those_of_drafting(target, network):
    """The slots that the objective reads are the ones that a run feeds, in both halves."""
    torch.manual_seed(1)
    condition, tokens = torch.randn(2, 3, 6), torch.randint(24, (2, 16))
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    seen = []
    drafter = HeadDrafter(network, target.head, SamplingParams(2.0), StaticTree("chain"), 16)
    with torch.inference_mode():
        pairs = target_features(target, tokens, condition, mask)
        features = torch.cat([pairs[:, 0], pairs[:, 1]])
        drafter.reset(4, 3 + 16)
        first = torch.zeros(2, 3, dtype=torch.int64)
        first[:, -1] = tokens[:, 0]
        drafter.feed(features[:, :3], first)
        seen.append(drafter.hidden)
        for step in range(1, 15):
            drafter.feed(features[:, 2 + step : 3 + step], tokens[:, step : step + 1])
            seen.append(drafter.hidden)
        drafted = torch.cat(seen, 1)
        fed = {}
        network.register_forward_hook(lambda module, args, out: fed.update(out=out))
        EagleObjective(network, target.output, 2.0, 1.0, 0.0).eval()(pairs, tokens)
    assert torch.allclose(fed["out"][:, 2:], drafted, atol=1e-5)


def test_training_teaches_to_draft(target):
    torch.manual_seed(2)
    network = EagleNetwork(EagleConfig(24, 16, 32, 2, grid=4, cls_token_num=3))
    objective = EagleObjective(network, target.output, 2.0, 1.0, 10.0)
    assert not target.output.weight.requires_grad
    condition, mask = torch.randn(8, 3, 6), torch.ones(8, 3)
    tokens, _ = Autoregressive().sample(
        target, Condition(condition, mask), SamplingParams(2.0), Noise(0, torch.arange(8))
    )
    batch = (target_features(target, tokens, condition, mask).clone(), tokens.clone())
    objective.eval()
    with torch.no_grad():
        before = objective(*batch)[1]["acceptance"]
    objective.train()
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    for _ in range(60):
        objective(*batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    objective.eval()
    with torch.no_grad():
        after = objective(*batch)[1]["acceptance"]
    assert after > before + 0.1


def test_a_named_drafter_is_loaded_once_and_checked(tmp_path, target, network):
    network.save_pretrained(tmp_path / "drafter")
    first = drafter_of(str(tmp_path / "drafter"), target)
    assert drafter_of(str(tmp_path / "drafter"), target) is first
    with pytest.raises(VistokError, match="hidden width is 12, but the model's is 16"):
        drafter_of(EagleNetwork(EagleConfig(24, 12, 24, 2)), target)


@pytest.mark.parametrize(
    "network",
    [
        EagleNetwork(EagleConfig(24, 16, 24, 2, grid=4, cls_token_num=3)),
        EagleNetwork(EagleConfig(24, 16, 24, 2, qkv_bias=True)),
        Eagle3Network(Eagle3Config(24, 16, 24, 2, target_hidden_size=16, draft_vocab_size=9, head_dim=4)),
        Clover(DrafterConfig(24, 16, 24, 2)),
    ],
    ids=["EAGLE of pictures", "EAGLE of text", "EAGLE-3", "Clover"],
)
def test_a_config_that_says_the_shape_of_other_drafters_too_loads(tmp_path, network):
    """So were configurations written while one class served all drafters."""
    network.save_pretrained(tmp_path)
    entries = asdict(Eagle3Config(1, 16, 1, 2)) | asdict(EagleConfig(1, 16, 1, 2)) | asdict(network.config)
    (tmp_path / "config.json").write_text(json.dumps(entries))
    assert type(network).from_pretrained(tmp_path).config == network.config


def test_heads_and_rotations_that_an_eagle_drafter_lacks_are_refused():
    for option in ({"head_dim": 4}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}):
        with pytest.raises(VistokError, match=f"{next(iter(option))}.*EAGLE-3"):
            EagleConfig(24, 16, 24, 2, **option)


def test_published_trees_have_their_published_sizes():
    shapes = {name: StaticTree(name).shape for name in STATIC_TREES}
    assert shapes["naive_extend_57"].nodes == 58
    assert torch.bincount(shapes["naive_extend_57"].depth[0]).tolist() == [1, 5, 13, 16, 14, 9]
    assert shapes["mc_sim_7b_63"].nodes == 26
    with pytest.raises(VistokError, match="without its parent or an earlier sibling"):
        StaticTree(((0,), (1, 0)))
    with pytest.raises(VistokError, match="1 to 110 drafts"):
        DynamicTree(0, 1, 10)
