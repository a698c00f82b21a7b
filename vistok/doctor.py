"""What ``vistok doctor`` tells: packages, devices, which kernels run here, and what is slow and why."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import torch

from vistok.errors import VistokError
from vistok.ops.dispatch import on_triton
from vistok.ops.linear import pack_linears
from vistok.runtime import resolve_device
from vistok.zoo import cards, verify

REQUIRED = ("torch", "torchvision", "transformers", "diffusers", "accelerate", "timm", "safetensors", "huggingface_hub")
# Packages that add something, and what.
OPTIONAL = {
    "triton": "fused kernels on GPUs",
    "gradio": "vistok studio: pip install 'vistok[studio]'",
    "peft": "adapters of transformers models",
    "tensorboard": "curves of trainings",
    "matplotlib": "plots",
}
WIDTH = 1024  # of the layer that is timed


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        machine, packages, kernels: by name, in words.
        advice: what to do about what is missing or slow, a sentence each.
    """

    machine: dict[str, str]
    packages: dict[str, str]
    kernels: dict[str, str]
    advice: list[str]


def examine() -> Examination:
    """Looks at this machine; it takes a few seconds and changes nothing."""
    advice: list[str] = []
    return Examination(_machine(advice), _packages(advice), _kernels(advice), advice)


def _machine(advice: list[str]) -> dict[str, str]:
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    found = {
        "vistok": f"{_version('vistok') or 'from its source'}, Python {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{torch.backends.cpu.get_cpu_capability()}, {cores} cores, torch uses {threads} threads",
        "device": str(resolve_device()),
    }
    for i in range(torch.cuda.device_count()):
        shape = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{shape.name}, {shape.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        built = "this build of torch knows no CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        advice.append(f"all runs on the processor ({built}): embedded models take seconds, published ones minutes.")
    if threads < cores // 2 and not torch.cuda.is_available():
        told = "OMP_NUM_THREADS" if "OMP_NUM_THREADS" in os.environ else "torch.set_num_threads"
        advice.append(f"torch uses {threads} of {cores} cores: raise {told} to use more.")
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 1.5 * cores:
        found["load"] = f"{load:.1f} on {cores} cores"
        advice.append("other programs keep the processor busy: times measured now mean little.")
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _packages(advice: list[str]) -> dict[str, str]:
    found = {}
    for name in REQUIRED:
        found[name] = _version(name) or "missing"
        if found[name] == "missing":
            advice.append(f"{name} is missing: type pip install {name}.")
    for name, use in OPTIONAL.items():
        found[name] = _version(name) or f"not installed ({use})"
    broken = []
    names = [card.name for card in cards() if card.embedded]
    for name in names:
        try:
            verify(name)
        except VistokError as error:
            broken.append(name)
            advice.append(str(error))
    found["weights"] = f"{len(names) - len(broken)} of {len(names)} embedded models are whole"
    return found


def _kernels(advice: list[str]) -> dict[str, str]:
    found = {}
    if torch.cuda.is_available():
        probe = torch.zeros(1, device="cuda")
        found["fused"] = "Triton" if on_triton(probe) else "torch, as Triton is not installed"
        if not on_triton(probe):
            advice.append("fused kernels need Triton: type pip install triton.")
    else:
        found["fused"] = "torch; Triton kernels need a GPU"
    if not torch.backends.mkldnn.is_available():
        found["packed layers"] = "none, as this build of torch has no oneDNN"
        advice.append("decoding on the processor is slower without oneDNN: install torch's own build.")
        return found
    plain = torch.nn.Linear(WIDTH, 4 * WIDTH).eval().requires_grad_(False)
    packed = pack_linears(torch.nn.Sequential(torch.nn.Linear(WIDTH, 4 * WIDTH))).eval().requires_grad_(False)
    row = torch.zeros(1, WIDTH)
    with torch.inference_mode():
        gain = _seconds(lambda: plain(row)) / _seconds(lambda: packed(row))
        half = row.bfloat16(), plain.weight.bfloat16(), plain.bias.bfloat16()
        halves = _seconds(lambda: plain(row)) / _seconds(lambda: torch.nn.functional.linear(*half))
    found["packed layers"] = f"oneDNN, {gain:.2g} times torch's own speed for a decode step"
    found["bfloat16"] = f"{halves:.2g} times float32's speed on this processor"
    return found


def _seconds(call: Callable[[], object]) -> float:
    """Shortest of a few calls, the first left out."""
    call()
    times = []
    for _ in range(7):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return max(min(times), 1e-9)
