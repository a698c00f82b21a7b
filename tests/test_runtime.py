"""Devices, number formats and seeds are checked in one way, whatever asks for them."""

import subprocess
import sys

import pytest
import torch

from vistok import runtime
from vistok.errors import VistokError
from vistok.ops.noise import counter_bits, derive_seed


@pytest.fixture
def gpus(monkeypatch):
    """Makes the machine look as if it had so many CUDA devices."""

    def set_count(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("LOCAL_RANK", raising=False)

    return set_count


@pytest.mark.parametrize("name", ["mps", "gpu", "", "cuda:", "cuda:-1", "CUDA", "cpu:1", "xpu:0", "cuda:12345", 0])
@pytest.mark.parametrize("count", [0, 2])
def test_other_device_names_are_refused(gpus, name, count):
    gpus(count)
    with pytest.raises(VistokError, match=rf"unknown device '{name}'.*cuda:N"):
        runtime.resolve_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there_is_refused(gpus, name):
    gpus(0)
    with pytest.raises(VistokError, match=rf"'{name}'.*no CUDA device.*use cpu"):
        runtime.resolve_device(name)


def test_numbers_of_gpus(gpus, monkeypatch):
    gpus(2)
    assert runtime.resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(VistokError, match=r"'cuda:2'.*cuda:0 to cuda:1"):
        runtime.resolve_device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runtime.resolve_device(None) == runtime.resolve_device("cuda") == torch.device("cuda:1")
    assert runtime.resolve_device("cuda:0") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(VistokError, match=r"process 2.*no GPU of its own"):
        runtime.resolve_device(None)


def test_the_default_is_the_gpu_where_there_is_one(gpus):
    gpus(0)
    assert runtime.resolve_device(None) == torch.device("cpu")
    gpus(1)
    assert runtime.resolve_device(None) == torch.device("cuda:0")
    assert runtime.resolve_device(torch.device("meta")) == torch.device("meta")


def test_number_formats():
    assert runtime.resolve_dtype("bfloat16") == runtime.resolve_dtype(torch.bfloat16) == torch.bfloat16
    with pytest.raises(VistokError, match="dtype 'bfloat61': did you mean bfloat16"):
        runtime.resolve_dtype("bfloat61")
    with pytest.raises(VistokError, match="precision 'float16'"):
        runtime.resolve_dtype("float16", ("float32", "bfloat16"), "precision")


def test_derived_seeds_of_small_seeds_are_what_they_were_and_large_ones_work():
    assert derive_seed(7, 3) == 7 * 1_000_003 + 3
    for seed in (2**32, 2**63 - 1, 2**63, 2**64 - 1, -1):
        derived = [derive_seed(seed, key) for key in range(3)]
        assert len(set(derived)) == 3
        torch.Generator().manual_seed(derived[0])
        counter_bits(seed, 1)
    assert derive_seed(-1, 5) == (-1_000_003 + 5) % 2**64  # as torch reads a negative seed
    assert torch.equal(counter_bits(2**64 - 1, 2), counter_bits(-1, 2))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**40])
@pytest.mark.parametrize("draw", [derive_seed, counter_bits])
def test_longer_seeds_are_refused(seed, draw):
    with pytest.raises(VistokError, match="more than 64 bits"):
        draw(seed, 1)


LEAVING = """
import atexit
import torch.distributed as dist
from vistok.runtime import processes

atexit.register(lambda: print("joined" if dist.is_initialized() else "left"))  # behind what joins
for _ in range(2):
    assert processes().num_processes == 2 and dist.is_initialized()
"""


def test_processes_part_before_they_end(tmp_path):
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING, encoding="utf-8")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    ended = subprocess.run([sys.executable, *launch], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("left") == 2  # lines of two processes may run into one another
