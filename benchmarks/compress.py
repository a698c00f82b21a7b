"""What a compressor costs and saves at true widths: selection beside the tower, prefill beside its FLOPs.

Random weights are right here: speed does not depend on them. ``--model`` is LLaVA-1.5-7B with CLIP-L/14-336,
Qwen2.5-VL-7B or Qwen3-VL-8B, each with a picture of 576 tokens; the language model has as many of its layers as
``--llm-layers`` says, which scales both sides of its comparison alike. On a CPU, seconds are the process's own
processor time, so that what else runs on the machine counts less.

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
from dataclasses import replace

import torch

from vistok.projectors import compressor_class
from vistok.projectors.apply.layout import pack
from vistok.projectors.cost import prefill_flops
from vistok.projectors.families import family_of
from vistok.projectors.interface import ImageTokens, Needs

METHODS = ("vtc-cls", "visionzip", "divprune", "prumerge", "tome", "coverage", "uniform", "random")
TEXT_TOKENS = 60
VOCABULARY = 1024  # of no consequence: the prefill ends before the head
IDS = {"image_token_id": 1023, "video_token_id": 1022, "vision_start_token_id": 1021, "vision_end_token_id": 1020}


def llava(tower_layers: int, llm_layers: int):
    """LLaVA-1.5-7B: its class and configuration."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=tower_layers,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(num_hidden_layers=llm_layers, vocab_size=VOCABULARY, max_position_embeddings=4096)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=VOCABULARY - 1)
    return LlavaForConditionalGeneration, config


def qwen2_5_vl(tower_layers: int, llm_layers: int):
    """Qwen2.5-VL-7B: its class and configuration; one in eight layers of the tower sees the whole picture."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    full = list(range(7, tower_layers, 8)) or [tower_layers - 1]
    vision = {"depth": tower_layers, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    vision |= {"out_hidden_size": 3584, "fullatt_block_indexes": full}
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}}
    text |= {"num_hidden_layers": llm_layers, "vocab_size": VOCABULARY}
    return Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(vision_config=vision, text_config=text, **IDS)


def qwen3_vl(tower_layers: int, llm_layers: int):
    """Qwen3-VL-8B: its class and configuration."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    deep = [layer for layer in (8, 16, 24) if layer < tower_layers]
    vision = {"depth": tower_layers, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16}
    vision |= {"out_hidden_size": 4096, "deepstack_visual_indexes": deep}
    text = {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8}
    text |= {"head_dim": 128, "rope_parameters": {"rope_type": "default", "mrope_section": [24, 20, 20]}}
    text |= {"num_hidden_layers": llm_layers, "vocab_size": VOCABULARY}
    return Qwen3VLForConditionalGeneration, Qwen3VLConfig(vision_config=vision, text_config=text, **IDS)


MODELS = {"llava": (llava, 24), "qwen2_5_vl": (qwen2_5_vl, 32), "qwen3_vl": (qwen3_vl, 27)}  # and the tower's layers


def picture_inputs(model, batch: int, device: str) -> dict[str, torch.Tensor]:
    """Pictures of 576 tokens each, as the model's processor would make them."""
    if model.config.model_type == "llava":
        return {"pixel_values": torch.randn(batch, 3, 336, 336, device=device, dtype=model.dtype)}
    vision = model.config.vision_config
    grids = torch.tensor([[1, 48, 48]] * batch, device=device)
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(int(grids.prod(1).sum()), width, device=device, dtype=model.dtype)
    return {"pixel_values": pixels, "image_grid_thw": grids}


def run_tower(model, inputs: dict[str, torch.Tensor]) -> object:
    """The tower alone, without a compressor's hooks."""
    if model.config.model_type == "llava":
        return model.model.vision_tower(inputs["pixel_values"], output_hidden_states=[-2])
    return model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])


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


def unread(image: ImageTokens) -> ImageTokens:
    """A picture whose scores are still to be worked out, once for what several layers share."""
    copies = {id(read): replace(read) for read in image.attention.values()}
    return replace(image, attention={layer: copies[id(read)] for layer, read in image.attention.items()})


def selection(pictures: list, method: str, keep: float, repeats: int, device: str) -> float:
    """Seconds of choosing and packing; the projection, which thinning only makes smaller, is left out."""
    compressor = compressor_class(method)(keep=keep)

    def choose():
        fresh = [(unread(image), plan) for image, plan in pictures]
        return [pack(image, plan, compressor.select(image), compressor.newlines) for image, plan in fresh]

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
    parser.add_argument("--model", choices=list(MODELS), default="llava")
    parser.add_argument("--tower-layers", type=int, help="the model's own if left out")
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
    describe, layers = MODELS[args.model]
    kind, config = describe(args.tower_layers or layers, args.llm_layers)
    with torch.device(args.device):
        model = kind._from_config(config, dtype=getattr(torch, args.dtype)).eval()
    inputs = picture_inputs(model, args.batch, args.device)
    tower = timed(lambda: run_tower(model, inputs), args.repeats, args.device)
    pictures = list(family_of(model).pictures(model, inputs, every_layer))
    for image, _ in pictures:
        image.project = torch.nn.Identity()
    for keep in args.keep:
        for method in args.methods:
            seconds = selection(pictures, method, keep, args.repeats, args.device)
            row = {"tower_s": tower, "select_s": seconds, "share": seconds / tower}
            print(
                json.dumps({"benchmark": "selection", "model": args.model, "method": method, "keep": keep} | row),
                flush=True,
            )
        row = prefill(model, keep, args.batch, args.repeats, args.device)
        print(json.dumps({"benchmark": "prefill", "model": args.model, "keep": keep} | row), flush=True)


if __name__ == "__main__":
    main()
