"""Checkpoints: every published wrapper opens, nothing but data is read, and only exact fits load."""

from __future__ import annotations

import argparse
import errno
import math
import os
import pickle
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vistok.errors import VistokError
from vistok.models.extension import Extension, save_extension
from vistok.models.heads.prompt_tokens import PromptTokens
from vistok.projectors import TokenPacker
from vistok.projectors.methods.pmod import PMod
from vistok.tokenizers.vq import VQTokenizer
from vistok.zoo.checkpoint import load_strict, read_state_dict, write_state_dict

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}
EMA = {key: value + 1 for key, value in WEIGHTS.items()}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in WEIGHTS.items()}


class RunsCode:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "checkpoint",
    [
        WEIGHTS,
        {"model": WEIGHTS, "optimizer": {"state": {}}, "steps": 5, "args": argparse.Namespace(lr=1e-4)},
        {"model": WEIGHTS, "ema": EMA},
        {"module": WEIGHTS},
        {"state_dict": WEIGHTS, "epoch": 3},
        {"ema": WEIGHTS},
        {"model": prefixed("module.")},
        {"model": prefixed("_orig_mod.")},
        {"model": prefixed("module._orig_mod.")},
        {"model": prefixed("_orig_mod.module.")},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_and_prefixes(tmp_path, checkpoint, zipped):
    path = tmp_path / "x.pt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    assert_same(read_state_dict(path), WEIGHTS)


def test_ema_is_taken_when_asked_for_and_present(tmp_path):
    torch.save({"model": WEIGHTS, "ema": EMA}, tmp_path / "x.pt")
    assert_same(read_state_dict(tmp_path / "x.pt", prefer_ema=True), EMA)
    torch.save({"model": WEIGHTS}, tmp_path / "y.pt")
    assert_same(read_state_dict(tmp_path / "y.pt", prefer_ema=True), WEIGHTS)


@pytest.mark.parametrize("name", ["ema", "model_ema"])
def test_averaged_weights_without_names_are_told_and_the_trained_taken(tmp_path, name):
    shadow = [torch.zeros(2), torch.zeros(3)]
    for average in (shadow, {"decay": 0.999, "num_updates": 5, "shadow_params": shadow, "collected_params": None}):
        torch.save({"model": WEIGHTS, name: average}, tmp_path / "x.pt")
        with pytest.warns(UserWarning, match=f"'{name}'.*without names.*trained"):
            assert_same(read_state_dict(tmp_path / "x.pt", prefer_ema=True), WEIGHTS)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(read_state_dict(tmp_path / "x.pt"), WEIGHTS)  # not asked for
            torch.save({"model": WEIGHTS, name: None}, tmp_path / "y.pt")
            assert_same(read_state_dict(tmp_path / "y.pt", prefer_ema=True), WEIGHTS)


def test_safetensors(tmp_path):
    save_file(prefixed("module."), tmp_path / "x.safetensors")
    assert_same(read_state_dict(tmp_path / "x.safetensors"), WEIGHTS)


def test_a_submodule_called_module_keeps_its_name(tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "x.pt")
    assert read_state_dict(tmp_path / "x.pt").keys() == state.keys()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", [lambda evil: evil, lambda evil: {"model": WEIGHTS, "args": evil}])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path, zipped, place):
    path, made = tmp_path / "evil.pt", tmp_path / "made"
    torch.save(place(RunsCode(made)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(VistokError, match=r"posix\.mkdir|nt\.mkdir"):
        read_state_dict(path)
    assert not made.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_bare_pickle_does_not_run(tmp_path, protocol):
    path, made = tmp_path / "evil.bin", tmp_path / "made"
    path.write_bytes(pickle.dumps({"model": RunsCode(made)}, protocol=protocol))
    with pytest.raises(VistokError, match=r"evil\.bin"):
        read_state_dict(path)
    assert not made.exists()


@pytest.mark.parametrize("kept", [0, 3, 50, 0.5, -10])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path, kind, kept):
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
    state = {"a": torch.zeros(1000)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(VistokError, match=r"'.*x\..*' is truncated"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [b"hello world", b'{"a": 1}', b"\x89PNG\r\n\x1a\n" + bytes(99), b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.safetensors"])
def test_files_of_another_kind(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VistokError, match=r"no checkpoint|no safetensors"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("checkpoint", [5, {}, {"epoch": 1}, [torch.ones(1)], {"model": {"a": 1}}])
def test_checkpoints_without_weights(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "x.pt")
    with pytest.raises(VistokError, match="holds no weights"):
        read_state_dict(tmp_path / "x.pt")


def test_absent_file_and_folder(tmp_path):
    with pytest.raises(VistokError, match="does not exist"):
        read_state_dict(tmp_path / "absent.pt")
    with pytest.raises(VistokError, match="is a folder"):
        read_state_dict(tmp_path)


def net(width: int, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width, bias=bias), nn.Linear(width, 2))


def test_an_exact_fit_loads_and_named_keys_are_passed_over():
    source, target = net(4), net(4)
    state = source.state_dict() | {"freqs_cis": torch.ones(1), "layers.7.cache": torch.ones(1)}
    load_strict(target, state, "net", drop=[r"freqs_cis", r"layers\.\d+\.cache"])
    assert_same(target.state_dict(), source.state_dict())


def test_patterns_match_whole_keys_only():
    state = net(4).state_dict() | {"freqs_cis.weight": torch.ones(1)}
    with pytest.raises(VistokError, match=r"unexpected freqs_cis\.weight"):
        load_strict(net(4), state, "net", drop=["freqs_cis"])


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        (net(4, bias=False).state_dict(), r"is not a net: it lacks 0\.bias; name"),
        (net(4).state_dict() | {"extra": torch.ones(1)}, "has the unexpected extra"),
        (net(5).state_dict(), r"0\.weight is \[5, 3\], expected \[4, 3\]"),
        ({}, r"lacks 0\.weight, 0\.bias and 2 more"),
    ],
)
def test_a_misfit_is_refused_and_leaves_the_module_alone(state, complaint):
    target = net(4)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(VistokError, match=complaint):
        load_strict(target, state, "net")
    assert_same(target.state_dict(), before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused(value, dtype):
    state = {key: weight.to(dtype) for key, weight in net(4).state_dict().items()}
    state["1.bias"][1] = value
    with pytest.raises(VistokError, match=r"not all numbers: 1\.bias holds nan or inf"):
        load_strict(net(4), state, "net")


def test_float8_loads():
    state = {key: weight.to(torch.float8_e4m3fn) for key, weight in net(4).state_dict().items()}
    target = net(4)
    load_strict(target, state, "net")
    assert_same(target.state_dict(), {key: weight.float() for key, weight in state.items()})


def test_buffers_may_be_infinite():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.full((2,), -math.inf))
            self.empty = nn.Parameter(torch.zeros(0))

    load_strict(Masked(), Masked().state_dict(), "net")


def test_the_variant_that_a_misfit_belongs_to_is_named():
    variants = {f"net-{width}": partial(net, width) for width in (3, 4, 5)}
    with pytest.raises(VistokError, match="is a net-5, not a net-4: name that variant"):
        load_strict(net(4), net(5).state_dict(), "net-4", variants=variants)
    with pytest.raises(VistokError, match="name one that belongs"):
        load_strict(net(4), net(9).state_dict(), "net-4", variants=variants)


def test_tensors_are_written_as_they_are_read(tmp_path):
    write_state_dict(tmp_path / "new/a.safetensors", WEIGHTS | {"c": torch.arange(6.0).view(2, 3).T})
    assert_same(read_state_dict(tmp_path / "new/a.safetensors"), WEIGHTS | {"c": torch.arange(6.0).view(2, 3).T})


WRITERS = {
    "network": lambda folder: VQTokenizer.from_pretrained("vq-mini").save_pretrained(folder),
    "p-MoD": lambda folder: PMod(8, [None, 0.5]).save_pretrained(folder),
    "TokenPacker": lambda folder: TokenPacker(4, 16, 1, 8).save_pretrained(folder),
    "prompt tokens": lambda folder: PromptTokens(torch.ones(3, 8)).save_pretrained(folder),
    "extension": lambda folder: save_extension(folder, Extension("vpt", "llava-mini", ()), WEIGHTS),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_the_weights_that_were_there(tmp_path, monkeypatch, writer):
    WRITERS[writer](tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(VistokError, match="make room"):
        WRITERS[writer](tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
