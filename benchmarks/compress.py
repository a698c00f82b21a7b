"""What a compressor costs and saves, at LLaVA-1.5-7B's widths: selection beside the tower, prefill beside its FLOPs.

Random weights are right here: speed does not depend on them. The vision tower is CLIP-L/14-336; the language model has
the 7B's layers, as many as ``--llm-layers`` says, which scales both sides of its comparison alike. On a CPU, seconds
are the process's own processor time, so that what else runs on the machine counts less.

- ``selection``: seconds of choosing and packing, scores from queries and keys included, beside the tower's on the same
  pictures. The goal is at most 3 %.
- ``prefill``: seconds of the language model on the shortened prompt over those on the full one, beside the same ratio
  of FLOPs. The goal is within 15 %.

Example: ``python benchmarks/compress.py --llm-layers 1 --keep 0.25``
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from vistok.projectors import compressor_class
from vistok.projectors.apply.layout import pack
from vistok.projectors.cost import prefill_flops
from vistok.projectors.families import family_of
from vistok.projectors.interface import Needs

METHODS = ("vtc-cls", "visionzip", "divprune", "prumerge", "tome", "coverage", "uniform", "random")
TEXT_TOKENS = 60


def build(tower_layers: int, llm_layers: int, device: str, dtype: torch.dtype):
    """LLaVA-1.5-7B with fewer layers and random weights."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=tower_layers,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(num_hidden_layers=llm_layers, vocab_size=32064, max_position_embeddings=4096)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000)
    with torch.device(device):
        return LlavaForConditionalGeneration._from_config(config, dtype=dtype).eval()


def timed(run: Callable[[], object], repeats: int, device: str) -> float:
    """Median seconds of a call, after one that warms up."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    run()
    seconds = []
    for _ in range(repeats):
        if device != "cpu":
            torch.cuda.synchronize()
        started = clock()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    return statistics.median(seconds)


def every_layer(layers: int) -> Needs:
    """The queries and keys of every layer, so that one run of the tower serves all methods."""
    return Needs(attention=tuple(range(layers)))


def selection(pictures: list, method: str, keep: float, repeats: int, device: str) -> float:
    """Seconds of choosing and packing; the projection, which thinning only makes smaller, is left out."""
    compressor = compressor_class(method)(keep=keep)

    def choose():
        return [pack(image, plan, compressor.select(image), compressor.newlines) for image, plan in pictures]

    return timed(choose, repeats, device)


def prefill(model, keep: float, batch: int, repeats: int, device: str) -> dict[str, float]:
    """Time and FLOPs of a shortened prompt as shares of the full one's."""
    config = model.config.get_text_config()
    decoder, results = model.model.language_model, {}
    for name, visual in (("full", 576), ("short", round(576 * keep))):
        tokens = visual + TEXT_TOKENS
        embeds = torch.randn(batch, tokens, config.hidden_size, device=device, dtype=model.dtype)
        seconds = timed(lambda e=embeds: decoder(inputs_embeds=e, use_cache=True), repeats, device)
        results |= {f"{name}_s": seconds, f"{name}_flops": batch * prefill_flops(config, tokens)}
    time_ratio = results["short_s"] / results["full_s"]
    flops_ratio = results["short_flops"] / results["full_flops"]
    return results | {"time_ratio": time_ratio, "flops_ratio": flops_ratio, "off": time_ratio / flops_ratio - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower-layers", type=int, default=24)
    parser.add_argument("--llm-layers", type=int, default=2)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.25])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    model = build(args.tower_layers, args.llm_layers, args.device, getattr(torch, args.dtype))
    pixels = torch.randn(args.batch, 3, 336, 336, device=args.device, dtype=model.dtype)
    tower = timed(lambda: model.model.vision_tower(pixels, output_hidden_states=[-2]), args.repeats, args.device)
    pictures = list(family_of(model).pictures(model, {"pixel_values": pixels}, every_layer))
    for image, _ in pictures:
        image.project = torch.nn.Identity()
    for keep in args.keep:
        for method in args.methods:
            seconds = selection(pictures, method, keep, args.repeats, args.device)
            row = {"tower_s": tower, "select_s": seconds, "share": seconds / tower}
            print(json.dumps({"benchmark": "selection", "method": method, "keep": keep} | row), flush=True)
        row = prefill(model, keep, args.batch, args.repeats, args.device)
        print(json.dumps({"benchmark": "prefill", "keep": keep} | row), flush=True)


if __name__ == "__main__":
    main()
