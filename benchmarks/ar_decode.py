"""Tokens per second of plain autoregressive sampling at GPT-B size, beside a straightforward loop and the machine's
limit.

Random weights are right here: speed does not depend on them. For each batch size, with and without guidance:

- ``straightforward``: the same model as one would first write it: keys and values concatenated anew at each step,
  conditional and unconditional branch one after the other, a multinomial draw.
- ``reference``: the loop of LlamaGen's own repository, where ``--reference`` names a checkout of it.
- ``vistok``: ``Autoregressive`` on the static cache, with packed weights on a CPU.
- ``limit``: bytes of the weights over the measured read bandwidth, or the FLOPs over the measured rate of a matrix
  product, whichever takes longer.

The competitors take turns; tokens a second are of the least time of each, speed-ups the median over the turns.

Example: ``python benchmarks/ar_decode.py --dtype float32 --tokens 64 --reference LlamaGen/``
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import torch
import torch.nn.functional as F

from vistok.models.interface import Condition
from vistok.models.llamagen import LlamaGen
from vistok.ops import apply_rope, combine_guidance, process_logits
from vistok.ops.linear import Int8Linear, PackedLinear, pack_linears
from vistok.samplers import Autoregressive, Noise, SamplingParams

TOP_K = 2000


def straightforward(model: LlamaGen, labels: torch.Tensor, guidance: float, tokens: int) -> torch.Tensor:
    """The textbook loop: caches grow by concatenation, and guidance runs the model twice."""

    def run(x, position, cache):
        rope = model.rope[position : position + 1]
        for i, layer in enumerate(model.layers):
            attention = layer.attention
            qkv = attention.wqkv(layer.attention_norm(x)).unflatten(-1, (3, attention.heads, attention.head_dim))
            q, k, v = qkv.unbind(2)
            q, k, v = apply_rope(q, rope).transpose(1, 2), apply_rope(k, rope).transpose(1, 2), v.transpose(1, 2)
            if cache[i] is not None:
                k, v = torch.cat([cache[i][0], k], 2), torch.cat([cache[i][1], v], 2)
            cache[i] = (k, v)
            x = layer.residual(x, attention.merge(F.scaled_dot_product_attention(q, k, v)))
        return model.output(model.norm(x))[:, -1]

    conditions = [labels] if guidance <= 1 else [labels, model.null_condition(len(labels))]
    branches = [model.cls_embedding(c) for c in conditions]
    caches = [[None] * len(model.layers) for _ in branches]
    out = []
    for position in range(tokens):
        logits = [run(x, position, cache) for x, cache in zip(branches, caches, strict=True)]
        mixed = logits[0] if len(logits) == 1 else combine_guidance(*logits, guidance)
        token = torch.multinomial(process_logits(mixed, top_k=TOP_K).softmax(-1), 1)
        out.append(token)
        branches = [model.tok_embeddings(token)] * len(branches)
    return torch.cat(out, 1)


def reference_loop(folder: str, model: LlamaGen) -> Callable[[torch.Tensor, float, int], torch.Tensor]:
    """The ``generate`` of a checkout of FoundationVision/LlamaGen with this model's weights."""
    sys.path.insert(0, str(Path(folder).resolve()))
    from autoregressive.models.generate import generate
    from autoregressive.models.gpt import ModelArgs, Transformer

    known = {field.name for field in fields(ModelArgs)}
    shape = {name: value for name, value in asdict(model.config).items() if name in known}
    weight = model.tok_embeddings.weight
    theirs = Transformer(ModelArgs(**shape)).eval().to(weight.device, weight.dtype)
    theirs.load_state_dict(model.state_dict())

    def run(labels: torch.Tensor, guidance: float, tokens: int) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it names the kernels of its attention in a former way
            return generate(theirs, labels, tokens, cfg_scale=guidance, temperature=1.0, top_k=TOP_K)

    return run


def read_bandwidth(device: str) -> float:
    """Bytes per second of a large sum, the best of several runs."""
    block = torch.ones(64 * 2**20, device=device)
    return block.numel() * 4 / min(turns({"sum": block.sum}, device, 5)["sum"])


def product_rate(device: str, dtype: torch.dtype) -> float:
    """FLOPs per second of a large matrix product."""
    n = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / min(turns({"product": lambda: a @ b}, device, 3)["product"])


def turns(calls: dict[str, Callable], device: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of several calls that take turns, after one of each that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            if device != "cpu":
                torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - began)
    return {name: each[1:] for name, each in times.items()}


def speed_up(slow: list[float], fast: list[float]) -> float:
    """Median ratio of two competitors over the turns."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--preset", default="GPT-B")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=256, choices=[16, 64, 144, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of the processor; those that torch takes by default")
    parser.add_argument("--reference", metavar="FOLDER", help="a checkout of FoundationVision/LlamaGen to run beside")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    # Int8 is this package's products alone; what they are compared with is float32.
    dtype = torch.float32 if args.dtype == "int8" else getattr(torch, args.dtype)
    torch.manual_seed(0)
    model = LlamaGen.from_preset(args.preset, block_size=args.tokens).eval().to(args.device, dtype)
    torch.nn.init.normal_(model.output.weight, std=0.02)
    decoded = [p for n, p in model.named_parameters() if "embed" not in n]
    weight_bytes = sum(p.numel() for p in decoded) * (1 if args.dtype == "int8" else dtype.itemsize)
    flops = 2 * sum(p.numel() for p in decoded)
    bandwidth, rate = read_bandwidth(args.device), product_rate(args.device, dtype)
    fast = LlamaGen.from_preset(args.preset, block_size=args.tokens).eval().to(args.device, dtype)
    fast.load_state_dict(model.state_dict())
    if args.device == "cpu":
        pack_linears(fast, Int8Linear if args.dtype == "int8" else PackedLinear)
    theirs = None if args.reference is None else reference_loop(args.reference, model)
    rows = []
    for batch in args.batches:
        for guidance in (1.0, 4.0):
            labels = torch.arange(batch, device=args.device)
            noise, params = Noise(0, labels), SamplingParams(guidance, top_k=TOP_K)
            calls = {
                "straightforward": functools.partial(straightforward, model, labels, guidance, args.tokens),
                "vistok": functools.partial(Autoregressive().sample, fast, Condition(labels), params, noise),
            }
            if theirs is not None:
                calls["reference"] = functools.partial(theirs, labels, guidance, args.tokens)
            times = turns(calls, args.device, args.repeats)
            width = batch * (2 if guidance > 1 else 1)
            limit = args.tokens * max(weight_bytes / bandwidth, flops * width / rate)
            counted = batch * args.tokens
            row = {"batch": batch, "guidance": guidance}
            row |= {name: counted / min(each) for name, each in times.items()}
            row |= {"limit": counted / limit, "share_of_limit": limit / min(times["vistok"])}
            row["speed_up"] = speed_up(times["straightforward"], times["vistok"])
            if theirs is not None:
                row["speed_up_of_reference"] = speed_up(times["reference"], times["vistok"])
            rows.append(row)
    if args.json:
        print(json.dumps({"bandwidth": bandwidth, "flops": rate, "rows": rows}))
        return
    print(
        f"{args.preset}, {args.dtype}, {args.device}, {torch.get_num_threads()} threads, {args.tokens} tokens; tokens/s"
    )
    print(f"read bandwidth {bandwidth / 1e9:.1f} GB/s, matrix product {rate / 1e9:.0f} GFLOP/s")
    print("batch  guidance  straightforward  reference  vistok   limit  speed-up  of reference  of the limit")
    for r in rows:
        theirs, over = r.get("reference", math.nan), r.get("speed_up_of_reference", math.nan)
        print(
            f"{r['batch']:5d}  {r['guidance']:8.1f}  {r['straightforward']:15.1f}  {theirs:9.1f}  {r['vistok']:6.1f}"
            f"  {r['limit']:6.1f}  {r['speed_up']:7.2f}x  {over:11.2f}x  {r['share_of_limit']:11.0%}"
        )


if __name__ == "__main__":
    main()
