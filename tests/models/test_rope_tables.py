"""Rotary tables stay float32 whatever dtype their network is cast to, as in the published models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vistok.models.controlar import ControlAR, ControlARConfig
from vistok.models.enat import ENAT, ENATConfig
from vistok.models.heads.clover import Clover
from vistok.models.heads.drafter import DrafterConfig
from vistok.models.heads.eagle import EagleConfig, EagleNetwork
from vistok.models.heads.eagle3 import Eagle3Network
from vistok.models.heads.eagle3_config import Eagle3Config
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.models.masked import MaskedTransformer
from vistok.models.maskgit import MaskGIT, MaskGITConfig
from vistok.models.xar import XAR, XARConfig
from vistok.ops.rope import RotaryModule

GENERATOR = {"dim": 32, "n_layer": 1, "n_head": 2, "multiple_of": 8, "vocab_size": 20, "block_size": 16}
DRAFTER = {"vocab_size": 20, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
MASKED = {"grid": 4, "codebook_size": 11, "num_classes": 5, "embed_dim": 16, "num_heads": 2, "rope_base": 100.0}
NETWORKS = {
    "LlamaGen": lambda: LlamaGen(LlamaGenConfig(**GENERATOR)),
    "LlamaGen of a sequence": lambda: LlamaGen(LlamaGenConfig(**GENERATOR, layout="sequence")),
    "LlamaGen with places": lambda: LlamaGen(
        LlamaGenConfig(**GENERATOR, layout="sequence", places=tuple((0.5 * i, 0.25 * i) for i in range(16)))
    ),
    "ControlAR": lambda: ControlAR(
        ControlARConfig(**GENERATOR, adapter_width=16, adapter_depth=1, adapter_heads=2, adapter_image_size=64)
    ),
    "EAGLE of pictures": lambda: EagleNetwork(EagleConfig(**DRAFTER, grid=4)),
    "EAGLE of text": lambda: EagleNetwork(EagleConfig(**DRAFTER)),
    "EAGLE-3": lambda: Eagle3Network(Eagle3Config(**DRAFTER, draft_vocab_size=10)),
    "Clover": lambda: Clover(DrafterConfig(**DRAFTER)),
    "xAR": lambda: XAR(
        XARConfig(img_size=16, vae_stride=4, vae_embed_dim=2, entity="cell:2", embed_dim=16, num_heads=2,
                  encoder_depth=1, decoder_depth=1, class_num=5)
    ),
    "ENAT": lambda: ENAT(ENATConfig(**MASKED, enc_depth=1, dec_depth=1)),
    "MaskGIT": lambda: MaskGIT(MaskGITConfig(**MASKED, depth=1)),
}  # fmt: skip


def users(kind: type[nn.Module]) -> set[type[nn.Module]]:
    """The package's networks below one: what has a forward, and is no mere base of others."""
    below = {below for each in kind.__subclasses__() for below in (each, *users(each))}
    return {each for each in below if each.__module__.startswith("vistok.") and each.forward is not nn.Module.forward}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_leaves_the_table_as_it_is(name, dtype):
    network = NETWORKS[name]()
    exact = network.rope.clone()
    inner = nn.Sequential(network).to(dtype)[0]  # also as a part of a larger model
    assert inner.rope.dtype == torch.float32 and torch.equal(inner.rope, exact)
    assert {each.dtype for each in inner.parameters()} == {dtype}
    assert "rope" not in inner.state_dict()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_follows_its_network_to_a_device(name):
    network = NETWORKS[name]().to("meta", torch.bfloat16)
    assert network.rope.is_meta and network.rope.dtype == torch.float32


def test_every_network_with_a_table_is_tried():
    bases = {MaskedTransformer}  # whose forward runs what its networks say
    assert users(RotaryModule) - bases == {type(build()) for build in NETWORKS.values()}
