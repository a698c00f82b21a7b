"""Runs the kernels where there is no GPU: under Triton's interpreter, and through its compiler for an H100."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]


def test_kernels_match_their_references_under_the_interpreter():
    """In a process of its own: Triton reads TRITON_INTERPRET when it is first imported."""
    options = ["-k", "interpreter", "-p", "no:cacheprovider"]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/ops/test_triton.py", *options, "-o", "addopts=--import-mode=importlib"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-6000:] + finished.stderr[-2000:]
    assert " passed" in finished.stdout and " skipped" not in finished.stdout


POINTERS = {"half": "*bf16", "float": "*fp32", "int": "*i64", "index": "*i32", "flag": "*i1", "bit": "*i8"}
ATTENTION = {"T": 8, "G": 4, "H": 8, "D": 100, "M_BLOCKS": 1, "BLOCK_M": 32, "BLOCK_D": 128}
KERNELS = {
    ("attention", "_partial_kernel"): (
        {"q": "half", "k": "half", "v": "half", "prefix": "int", "words": "int", "bias": "float",
         "tiles_before": "index", "out": "half", "lse": "float", "part_out": "float", "part_lse": "float"},
        {"scale"},
        {**ATTENTION, "WORDS": 1, "B2": 4, "BLOCK_N": 64, "HAS_BIAS": True},
    ),
    ("attention", "_merge_kernel"): (
        {"tiles_before": "index", "out": "half", "lse": "float", "part_out": "float", "part_lse": "float"},
        set(),
        ATTENTION,
    ),
    ("rope", "_rotate_kernel"): (
        {"x": "half", "source": "int", "table": "float", "out": "half"},
        set(),
        {"PAIRS": 50, "D": 100, "HALF": True, "GATHER": True, "BLOCK_R": 8, "BLOCK_P": 64, "BLOCK_REST": 1},
    ),
    ("selection", "_gathered_kernel"): (
        {"q": "half", "k": "half", "v": "half", "index": "int", "visible": "bit", "out": "float", "lse": "float"},
        {"scale"},
        {"T": 8, "G": 4, "SHARE": 1, "D": 100, "HAS_VISIBLE": True, "BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_D": 128},
    ),
    ("selection", "_scores_kernel"): (
        {"q": "half", "k": "half", "visible": "bit", "scores": "float", "lse": "float"},
        {"scale"},
        {"G": 4, "D": 100, "MODULO": False, "HAS_VISIBLE": True, "BLOCK_G": 16, "BLOCK_N": 64, "BLOCK_D": 128},
    ),
    ("selection", "_votes_kernel"): (
        {"scores": "float", "lse": "float", "votes": "float"},
        set(),
        {"HEADS": 16, "BLOCK_N": 1024},
    ),
    ("commit", "_commit_kernel"): (
        {"keys": "half", "values": "half", "lengths": "int", "path": "int", "count": "int"},
        set(),
        {"M": 6, "D": 100, "BLOCK_M": 8, "BLOCK_D": 128},
    ),
    ("sampling", "_sample_kernel"): (
        {"logits": "half", "uncond": "half", "draft": "int", "draft_probs": "float", "accept_uniform": "float",
         "sample_uniform": "float", "tokens": "int", "accepted": "flag", "acceptance": "float", "probs": "float"},
        {"guidance", "temperature", "top_p"},
        {"HAS_UNCOND": True, "HAS_DRAFT": True, "HAS_K": True, "HAS_P": True, "BLOCK": 16384},
    ),
}  # fmt: skip


@pytest.mark.slow  # each compilation takes some seconds
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile")
@pytest.mark.parametrize("name", KERNELS, ids=lambda name: name[1])
def test_kernels_compile_for_an_h100(name):
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget

    module, kernel = name
    function = getattr(importlib.import_module(f"vistok.ops.kernels.{module}"), kernel)
    pointers, floats, constants = KERNELS[name]
    kinds = {argument: POINTERS[kind] for argument, kind in pointers.items()}
    kinds |= dict.fromkeys(constants, "constexpr") | dict.fromkeys(floats, "fp32")
    signature = {argument: kinds.get(argument, "i32") for argument in function.arg_names}
    source = triton.compiler.ASTSource(function, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert compiled.metadata.shared <= 227 * 1024  # what one block of an H100 may use
