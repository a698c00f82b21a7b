"""A saved tokenizer says what it is; folders that were written before it did, and the reference's own, load too."""

from __future__ import annotations

import json
from dataclasses import asdict, fields

import pytest
import torch
from safetensors.torch import save_file

from tests.tokenizers.test_borders import build
from vistok.errors import VistokError
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.tokenizers import TOKENIZERS, VQTokenizer, load_tokenizer
from vistok.tokenizers.vq import VQConfig
from vistok.zoo import cards, resolve

EMBEDDED = [card for card in cards() if card.embedded and card.task == "image-tokenizer"]
NAMING = {"vq-mini-128", "one-d-piece-mini"}  # written since folders name their family


@pytest.fixture(scope="module")
def tokenizers():
    torch.manual_seed(0)
    return build()


@pytest.mark.parametrize("card", EMBEDDED, ids=lambda card: card.name)
def test_the_embedded_ones_load_though_their_config_names_no_family(card):
    config = json.loads((resolve(card.name) / "config.json").read_text())
    assert ("family" in config) == (card.name in NAMING), "this folder was written anew: keep one that was not"
    loaded = load_tokenizer(card.name)
    assert type(loaded.tokenizer) is TOKENIZERS[card.family]
    assert loaded.sha256 == card.files["model.safetensors"]


@pytest.mark.parametrize("name", ["vq", "kl", "titok", "titok vae", "flextok", "tokenflow", "maskgit_vqgan", "seed"])
def test_folders_name_their_family_and_older_ones_are_told_by_their_entries(tokenizers, tmp_path, name):
    tokenizer = tokenizers[name]
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["family"] == name.split()[0]
    kind = type(tokenizer)
    assert type(load_tokenizer(str(tmp_path)).tokenizer) is kind
    without = {key: value for key, value in config.items() if key != "family"}
    (tmp_path / "config.json").write_text(json.dumps(without))
    assert type(load_tokenizer(str(tmp_path)).tokenizer) is kind
    # An entry that came later than the folder has its default.
    later = {f.name for f in fields(kind.config_class) if f.default == getattr(tokenizer.config, f.name)} - {"kl"}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in without.items() if k not in sorted(later)[:1]}))
    again = load_tokenizer(str(tmp_path)).tokenizer
    assert type(again) is kind and again.config == tokenizer.config
    other = next(cls for cls in map(TOKENIZERS.__getitem__, TOKENIZERS.table) if cls is not kind)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(VistokError, match=f"that of a {config['family']}, not of a {other.__name__}|not that of a"):
        other.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ['{"family": "vqq"}', '{"family": 3}', "[1]", "{", "{}", '{"colour": "red"}'])
def test_other_folders_are_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(VistokError, match=r"config\.json|tokenizer family"):
        load_tokenizer(str(tmp_path))


HUB = {  # as the reference's VQModelHF writes it
    "codebook_size": 16,
    "codebook_embed_dim": 4,
    "codebook_l2_norm": True,
    "codebook_show_usage": True,
    "commit_loss_beta": 0.25,
    "entropy_loss_ratio": 0.0,
    "encoder_ch_mult": [1, 1],
    "decoder_ch_mult": [1, 1],
    "z_channels": 8,
    "dropout_p": 0.0,
}


@pytest.mark.parametrize("counted", [True, False])
def test_a_folder_of_the_reference_s_tokenizer_class(tmp_path, counted):
    state = VQTokenizer(VQConfig(16, 4, channel_mult=(1, 1), z_channels=8)).state_dict()
    if not counted:
        del state["quantize.codebook_used"]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(HUB | {"codebook_show_usage": counted}))
    loaded = load_tokenizer(str(tmp_path)).tokenizer
    assert loaded.config == VQConfig(16, 4, channel_mult=(1, 1), z_channels=8)
    assert torch.equal(loaded.quantize.embedding.weight, state["quantize.embedding.weight"])
    (tmp_path / "config.json").write_text(json.dumps(HUB | {"decoder_ch_mult": [1, 2]}))
    with pytest.raises(VistokError, match=r"decoder_ch_mult \[1, 2\]"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(HUB | {"codebook_flavour": 3}))
    with pytest.raises(VistokError, match="codebook_flavour"):
        VQTokenizer.from_pretrained(tmp_path)


def test_a_folder_of_the_reference_s_generator_class(tmp_path):
    shape = LlamaGenConfig(dim=32, n_layer=1, n_head=2, multiple_of=16, vocab_size=64, block_size=16, num_classes=5)
    model = LlamaGen(shape)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    entries = {key: value for key, value in asdict(shape).items() if key != "layout"}
    (tmp_path / "config.json").write_text(json.dumps(entries | {"max_batch_size": 32, "max_seq_len": 2048}))
    assert LlamaGen.from_pretrained(tmp_path).config == shape
