"""One set of weights in what trainers put around it: it loads where no key is in doubt, else the sentence says why."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import types
from dataclasses import asdict
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vistok.errors import VistokError
from vistok.tokenizers.flextok import FlexTok
from vistok.tokenizers.flextok_config import FlexTokConfig
from vistok.tokenizers.kl import KLAutoencoder, KLConfig
from vistok.zoo.checkpoint import load_strict, read_state_dict

SHAPE = KLConfig(channels=32, channel_mult=(1, 1), res_blocks=1, z_channels=4, encoder_attention=())


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return KLAutoencoder(SHAPE).state_dict()


@pytest.fixture(autouse=True)
def preset(monkeypatch):
    monkeypatch.setitem(KLAutoencoder.presets, "tiny", SHAPE)


def before(prefix: str):
    return lambda state: {prefix + key: value for key, value in state.items()}


def inside(word: str, infix: str):
    return lambda state: {key.replace(word, infix + word): value for key, value in state.items()}


def beside(**entries):
    return lambda state: {"model": state, **entries}


UNTOUCHED = {
    "bare": lambda state: state,
    "ordered": lambda state: {"state_dict": collections.OrderedDict(state)},
    "Lightning": lambda state: {"state_dict": before("model.")(state), "epoch": 1, "loops": {"fit": [1, 2]}},
    "Lightning under a name of the user's": lambda state: {"state_dict": before("autoencoder.net.")(state)},
    "FSDP": inside("encoder.", "_fsdp_wrapped_module."),
    "FSDP root": before("_fsdp_wrapped_module."),
    "activation checkpointing": inside("block.", "_checkpoint_wrapped_module."),
    "compiled and data parallel": before("module._orig_mod.module."),
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "DeepSpeed": lambda state: {"module": state, "buffer_names": ["x"], "dp_world_size": 4},
    "model in model": lambda state: {"model": {"model": state}},
    "state_dict in model": lambda state: {"model": {"state_dict": before("module.")(state)}, "step": 3},
    "params": lambda state: {"params": state},
    "a name of the user's": lambda state: {"autoencoder": state, "epoch": 3, "history": [1.0, 2.0]},
    "ema alone": lambda state: {"ema_state_dict": state},
    "numpy number": beside(best=np.float64(0.1), step=np.int64(3), kind=np.float32(2), flag=np.bool_(True)),
    "numpy array": beside(losses=np.ones(3), names=np.array(["a", "b"])),
    "path": beside(args={"out": Path("x"), "data": PurePosixPath("/y"), "win": PureWindowsPath("c:/z")}),
    "namespaces": beside(args=argparse.Namespace(lr=1e-4, out=Path("x")), more=types.SimpleNamespace(a=1)),
    "dates": beside(at=datetime.datetime(2024, 1, 2), took=datetime.timedelta(seconds=3)),
    "extra state": lambda state: {**state, "_extra_state": None, "encoder._extra_state": None},
    "numbers among the weights": lambda state: {**state, "epoch": 3, "arch": "kl"},
    "a table among the weights": lambda state: {**state, "config": {"lr": 1.0}},
}


@pytest.mark.parametrize("wrap", UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_wrappers_open(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "x.pt")
    loaded = KLAutoencoder.from_pretrained(tmp_path / "x.pt", "tiny").state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "params_ema"])
@pytest.mark.parametrize("nested", [False, True])
def test_averages_are_taken_where_they_are_preferred(tmp_path, state, name, nested):
    averaged = {key: value + 1 for key, value in state.items()}
    content = {"model": state, name: averaged, "epoch": 3}
    torch.save({"state": content, "model": content} if nested else content, tmp_path / "x.pt")
    for prefer, expected in ((True, averaged), (False, state)):
        found = read_state_dict(tmp_path / "x.pt", prefer_ema=prefer)
        assert torch.equal(found["quant_conv.bias"], expected["quant_conv.bias"])


def quantized(state):
    return {key: (value * 100).to(torch.int8) if value.ndim > 1 else value for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "culprit"),
    [
        (lambda s: {"state_dict": before("model.")(s) | {"loss.logvar": torch.ones(1)}}, r"prefix 'model\.'.*loss"),
        (lambda s: before("online.")(s) | before("averaged.")(s), r"prefix 'online\.'.*averaged"),
        (lambda s: {"generator": s, "discriminator": {"a": torch.ones(1)}}, "generator, discriminator"),
        (lambda s: {key: value for key, value in s.items() if key != "quant_conv.bias"}, r"lacks quant_conv\.bias"),
        (quantized, r"not real numbers.*int8"),
        (lambda s: {"model": [1, 2], "epoch": 3}, "model, epoch"),
    ],
)
def test_what_is_in_doubt_is_named(tmp_path, state, wrap, culprit):
    torch.save(wrap(state), tmp_path / "x.pt")
    with pytest.raises(VistokError, match=culprit):
        KLAutoencoder.from_pretrained(tmp_path / "x.pt", "tiny")


def _folder(folder: Path, state, write) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(asdict(SHAPE)))
    write(folder, state)
    return folder


def _shards(kind: str):
    def write(folder: Path, state) -> None:
        keys, stem = list(state), "model" if kind == "safetensors" else "pytorch_model"
        parts = {f"{stem}-0000{i + 1}-of-00002.{kind}": keys[i::2] for i in range(2)}
        for file, names in parts.items():
            part = {key: state[key].contiguous() for key in names}
            save_file(part, folder / file) if kind == "safetensors" else torch.save(part, folder / file)
        index = {"metadata": {}, "weight_map": {key: file for file, names in parts.items() for key in names}}
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))

    return write


@pytest.mark.parametrize(
    "write",
    [
        lambda folder, state: save_file(state, folder / "model.safetensors"),
        lambda folder, state: torch.save(state, folder / "pytorch_model.bin"),
        lambda folder, state: torch.save({"state_dict": before("model.")(state)}, folder / "pytorch_model.bin"),
        _shards("safetensors"),
        _shards("bin"),
    ],
)
def test_folders_of_every_kind(tmp_path, state, write):
    from vistok.tokenizers import load_tokenizer

    folder = _folder(tmp_path / "m", state, write)
    loaded = load_tokenizer(str(folder))
    assert torch.equal(loaded.tokenizer.quant_conv.bias, state["quant_conv.bias"])
    assert loaded.sha256 == load_tokenizer(str(folder)).sha256 and len(loaded.sha256) == 64


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "names 'model-00002.*fetch"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), "not the index"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.bin"}}'), "'../x.bin'"),
        (lambda f: save_file({"a": torch.ones(1)}, f / "model-00002-of-00002.safetensors"), "lack "),
        (lambda f: (f / "model.safetensors.index.json").unlink(), "no weights in"),
    ],
)
def test_incomplete_shards_are_refused(tmp_path, state, change, culprit):
    folder = _folder(tmp_path / "m", state, _shards("safetensors"))
    change(folder)
    with pytest.raises(VistokError, match=culprit):
        KLAutoencoder.from_pretrained(folder)


def test_a_program_is_called_one(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "inception.pt")
    with pytest.raises(VistokError, match=r"inception\.pt.*TorchScript"):
        read_state_dict(tmp_path / "inception.pt")


def test_keys_that_carry_no_weights_may_be_absent():
    module = torch.nn.BatchNorm1d(2)
    state = {key: value for key, value in module.state_dict().items() if key != "num_batches_tracked"}
    load_strict(module, state, "norm", drop=["num_batches_tracked"])
    with pytest.raises(VistokError, match="lacks num_batches_tracked"):
        load_strict(module, state, "norm")


def test_a_user_s_prefix_goes_before_published_names_are_converted(tmp_path):
    config = FlexTokConfig((64, 1), (64, 1), registers=4, levels=(4, 4), vae=False, latent_channels=3, latent_size=8)
    state = FlexTok(config).state_dict()
    save_file(before("model.")({key: value.contiguous() for key, value in state.items()}), tmp_path / "x.safetensors")
    meta = {"regularizer": {"levels": [4, 4]}, "vae": {"latent_channels": 3}}
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "config.json").write_text(json.dumps({"_target_": "flextok.FlexTok", **meta}))
    (tmp_path / "x.safetensors").rename(tmp_path / "f" / "model.safetensors")
    with pytest.warns(UserWarning, match="research"):
        loaded = FlexTok.from_pretrained(tmp_path / "f")
    assert loaded.config.registers == 4


def test_an_index_of_shards_may_begin_with_a_byte_order_mark(tmp_path, state):
    folder = _folder(tmp_path / "m", state, _shards("safetensors"))
    index = folder / "model.safetensors.index.json"
    index.write_text("\ufeff" + index.read_text())
    KLAutoencoder.from_pretrained(folder)
