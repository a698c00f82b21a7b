"""Attention over a KV cache: vistok's route against SDPA and FlexAttention, time and share of memory bandwidth.

    python benchmarks/attention.py                       # CPU, one thread, float32 and bfloat16
    python benchmarks/attention.py --device cuda         # GPU, bfloat16, up to 512k keys
    python benchmarks/attention.py --flex                # FlexAttention too (compiles once a shape)
    python benchmarks/attention.py --train               # forward and backward in training instead, on a CPU
    python benchmarks/attention.py --linear              # the small-row linear layers instead

Cases: plain decode with equal lengths, ragged decode (lengths spread evenly from an eighth to the whole), and a tree
of 64 nodes. SDPA and FlexAttention get what they need for the same result: a bool mask or a block mask over the
longest sequence, built outside the timed part. Times are the least of the repeats, which take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from vistok.ops import TreeMask, attention
from vistok.ops.linear import PackedLinear

CASES = ("decode", "ragged", "tree")
ROOM = 64  # rows that a cache has free behind the longest sequence, so that its heads do not lie side by side


@dataclass(frozen=True)
class Setting:
    """Sizes of one device's benchmark."""

    heads: int
    kv_heads: int
    dim: int
    dtypes: tuple[torch.dtype, ...]
    grid: tuple[tuple[int, int], ...]  # (batch, keys)
    repeats: int


SETTINGS = {
    "cpu": Setting(
        12, 12, 64, (torch.float32, torch.bfloat16),
        ((1, 256), (2, 256), (8, 256), (1, 1024), (2, 1024), (8, 1024), (1, 4096), (2, 4096)), 30,
    ),
    "cuda": Setting(
        32, 8, 128, (torch.bfloat16,),
        tuple((b, s) for s in (256, 1024, 4096, 8192, 32768, 131072, 524288) for b in (1, 4, 16, 64) if b * s <= 2**21),
        50,
    ),
}  # fmt: skip


def least_seconds(functions: dict[str, Callable[[], object]], device: str, repeats: int) -> dict[str, float]:
    """Least time of each function; they take turns, so a change of the machine's speed hits all of them."""
    best = dict.fromkeys(functions, float("inf"))
    for call in functions.values():
        call()
    for _ in range(repeats):
        for name, call in functions.items():
            if device == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                end.record()
                end.synchronize()
                seconds = start.elapsed_time(end) / 1e3
            else:
                begin = time.perf_counter()
                call()
                seconds = time.perf_counter() - begin
            best[name] = min(best[name], seconds)
    return best


def read_bandwidth(device: str) -> float:
    """Bytes a second of a sum over 1 GiB (GPU) or 256 MiB (CPU): what streaming memory can reach here."""
    data = torch.ones((2**28 if device == "cuda" else 2**26), device=device)
    seconds = least_seconds({"sum": data.sum}, device, 20)["sum"]
    return data.numel() * 4 / seconds


def tree_mask(batch: int, nodes: int, prefix: torch.Tensor) -> TreeMask:
    """Binary tree."""
    parents = (torch.arange(nodes, device=prefix.device) + 1) // 2 - 1
    return TreeMask.from_parents(parents.expand(batch, -1), prefix)


def competitors(case: str, setting: Setting, batch: int, keys: int, dtype: torch.dtype, device: str, flex: bool):
    """The calls to compare and the bytes of keys and values that they must read."""
    queries = 64 if case == "tree" else 1
    lengths = torch.full((batch,), keys, device=device)
    if case == "ragged":
        lengths = torch.linspace(keys / 8, keys, batch, device=device).long()
    mask = tree_mask(batch, queries, lengths - queries)
    if case != "tree":
        mask = TreeMask(lengths - 1, 1)
    q = torch.randn(batch, setting.heads, queries, setting.dim, device=device, dtype=dtype)
    shape = (batch, setting.kv_heads, keys + ROOM, setting.dim)
    k, v = (torch.randn(shape, device=device, dtype=dtype)[:, :, :keys] for _ in "kv")
    dense = None if case == "decode" else mask.dense(keys)[:, None]
    calls = {
        "vistok": lambda: attention(q, k, v, mask=mask),
        "sdpa": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=True),
    }
    if flex:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        block_mask = None
        if dense is not None:
            block_mask = create_block_mask(
                lambda b, h, t, s: dense[b, 0, t, s], batch, None, queries, keys, device=device
            )
        compiled = torch.compile(flex_attention, dynamic=False)
        calls["flex"] = lambda: compiled(q, k, v, block_mask=block_mask, enable_gqa=True)
    expected = calls["sdpa"]().float()
    torch.testing.assert_close(calls["vistok"]().float(), expected, atol=3e-2, rtol=3e-2)
    return calls, int(lengths.sum()) * setting.kv_heads * setting.dim * 2 * k.element_size()


def bench_attention(device: str, flex: bool, cases: list[str], max_keys: int) -> None:
    setting = SETTINGS[device]
    peak = read_bandwidth(device)
    print(f"streaming reads: {peak / 1e9:.1f} GB/s")
    columns = ["vistok", "sdpa"] + (["flex"] if flex else [])
    print(
        "| case | dtype | batch | keys | "
        + " | ".join(f"{name} ms" for name in columns)
        + " | sdpa/vistok | bandwidth |"
    )
    print("|---" * (6 + len(columns)) + "|")
    for case in cases:
        for dtype in setting.dtypes:
            for batch, keys in setting.grid:
                if keys > max_keys or (case == "ragged" and batch == 1):
                    continue
                calls, size = competitors(case, setting, batch, keys, dtype, device, flex)
                times = least_seconds(calls, device, setting.repeats)
                figures = " | ".join(f"{times[name] * 1e3:.3f}" for name in columns)
                ratio, share = times["sdpa"] / times["vistok"], size / times["vistok"] / peak
                print(
                    f"| {case} | {str(dtype)[6:]} | {batch} | {keys} | {figures} | {ratio:.2f} | {share:.0%} |",
                    flush=True,
                )


@torch.enable_grad()
def bench_training() -> None:
    """Forward and backward of whole sequences in bfloat16: networks of the size that a CPU trains."""
    print("| batch | heads | tokens | width of a head | vistok ms | sdpa ms | sdpa/vistok |")
    print("|---|---|---|---|---|---|---|")
    for shape in ((64, 4, 96, 32), (32, 6, 256, 16), (32, 8, 288, 32), (8, 8, 577, 64), (2, 8, 1024, 64)):
        q, k, v = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        calls = {
            "vistok": lambda: attention(q, k, v).sum().backward(),  # noqa: B023
            "sdpa": lambda: F.scaled_dot_product_attention(q, k, v).sum().backward(),  # noqa: B023
        }
        times = least_seconds(calls, "cpu", 10)
        ours, plain = times["vistok"] * 1e3, times["sdpa"] * 1e3
        print(f"| {' | '.join(map(str, shape))} | {ours:.1f} | {plain:.1f} | {plain / ours:.2f} |", flush=True)


def transposed_product(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (weight @ x.t()).t()


def apply_all(layers: list[Callable], x: torch.Tensor) -> None:
    for layer in layers:
        layer(x)


def bench_linear() -> None:
    """Linear layers of GPT-B; enough copies of each that their weights come from memory, as in a model."""
    print("| out x in | dtype | rows | F.linear ms | transposed ms | vistok ms | F.linear/vistok |")
    print("|---|---|---|---|---|---|---|")
    for outputs, inputs in ((2304, 768), (768, 768), (4096, 768), (768, 2048), (16384, 768)):
        copies = max(2, 200_000_000 // (outputs * inputs * 4))
        for dtype in (torch.float32, torch.bfloat16):
            layers = [nn.Linear(inputs, outputs, bias=False, dtype=dtype) for _ in range(copies)]
            packed = [PackedLinear.from_linear(layer) for layer in layers]
            for rows in (1, 2, 3, 4, 8, 16, 32, 64, 128):
                x = torch.randn(rows, inputs).to(dtype)
                calls = {
                    "linear": partial(apply_all, layers, x),
                    "transposed": partial(
                        apply_all, [partial(transposed_product, layer.weight) for layer in layers], x
                    ),
                    "vistok": partial(apply_all, packed, x),
                }
                times = least_seconds(calls, "cpu", 10)
                linear, transposed, ours = (times[name] / copies * 1e3 for name in ("linear", "transposed", "vistok"))
                print(
                    f"| {outputs}x{inputs} | {str(dtype)[6:]} | {rows} | {linear:.3f} | {transposed:.3f} | {ours:.3f} "
                    f"| {linear / ours:.2f} |",
                    flush=True,
                )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=SETTINGS, default="cpu")
    parser.add_argument("--flex", action="store_true", help="FlexAttention too")
    parser.add_argument("--linear", action="store_true", help="small-row linear layers instead of attention")
    parser.add_argument("--train", action="store_true", help="forward and backward in training instead, on a CPU")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--max-keys", type=int, default=2**19)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.linear:
        bench_linear()
    elif options.train:
        bench_training()
    else:
        bench_attention(options.device, options.flex, options.cases, options.max_keys)


if __name__ == "__main__":
    main()
