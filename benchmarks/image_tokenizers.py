"""Throughput of every family of tokenizers: pictures a second to encode and decode, against the network run naively.

Naive means: the network runs picture by picture (every family); SEED and FlexTok encode all tokens where the first are
asked for; FlexTok decodes with all registers in the sequence, once for the tokens and once without, as the reference
does; a shorter One-D-Piece is decoded with all tokens in the sequence, the tail masked; and every length encodes each
picture anew. Networks and weights are the same, and the outputs' difference is printed.

    python benchmarks/image_tokenizers.py --threads 2 --json tokenizers.json
    python benchmarks/image_tokenizers.py FOLDER ...

Without names it measures the embedded one of every family. Of SEED and MaskGIT's VQGAN none is embedded: they have
small untrained networks, whose speed is that of trained ones.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vistok.data.scenes import render, sample_scenes
from vistok.tokenizers.flextok import FlexTok
from vistok.tokenizers.flow import FlowSampling, noise_for
from vistok.tokenizers.load import load_tokenizer
from vistok.tokenizers.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from vistok.tokenizers.seed import Seed
from vistok.tokenizers.seed_config import SeedConfig
from vistok.tokenizers.titok import TiTok
from vistok.train.options import read_options
from vistok.train.recipe import Recipe

FAMILIES = ("vq-mini", "kl-mini", "one-d-piece-mini", "flextok-mini", "tokenflow-mini", "seed", "maskgit_vqgan")
RECIPES = Path(__file__).parents[1] / "recipes"


def rate(run: Callable[[], object], pictures: int, seconds: float) -> float:
    """Pictures a second: the best of as many runs as fit into the time, after one to warm up."""
    run()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds or best == float("inf"):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return pictures / best


def naive_flow(model: FlexTok, tokens: Tensor, length: int, sampling: FlowSampling) -> Tensor:
    """FlexTok's decoding with every dropped register in the sequence, as one vector each."""
    codes = model.regularizer.codes(tokens)
    noise = noise_for(len(tokens), model.config.map_shape, torch.Generator().manual_seed(0), codes.device)
    parts = model.decoder.module_dict

    def velocity(x: Tensor, times: Tensor, filler: Tensor, kept: int) -> Tensor:
        patches = parts["dec_noise_patch_emb"](x) + parts["dec_patches_posemb_module"].posembs.flatten(2).mT
        places = parts["dec_registers_posemb_module"].posembs[0, 0].t()
        registers = parts["dec_from_latents"](codes) + places
        registers = torch.where((torch.arange(codes.shape[1]) < kept)[:, None], registers, filler)
        sequence, time_vector = torch.cat([patches, registers], 1), parts["dec_time_embedder"](times)
        group = (torch.arange(sequence.shape[1]) >= patches.shape[1]).long() * (model.config.groups - 1)
        for block in parts["dec_transformer"].blocks:
            sequence = block(sequence, None, time_vector, group)
        return parts["dec_to_patches"](sequence[:, : patches.shape[1]], time_vector, model.config.grid)

    maps = sampling.run(
        noise,
        lambda x, times: velocity(x, times, parts["dec_nested_dropout"].dropout_mask_token, length),
        lambda x, times: velocity(x, times, parts["dec_latent_dropout"].nullcond, 0),
    )
    return model.vae.decode(maps) if hasattr(model, "vae") else maps


def flextok_rows(model: FlexTok, images: Tensor, seconds: float) -> list[dict]:
    """Encoding and decoding at a few lengths."""
    batch, total, sampling = len(images), model.config.registers, FlowSampling()
    tokens, rows = model.encode(images), []
    for length in sorted({1, total // 4, total}):
        same = torch.equal(model.encode(images, length), tokens[:, :length])
        ours = model.decode(tokens, length, sampling)
        error = (ours - naive_flow(model, tokens, length, sampling)).abs().mean().item()
        encode = rate(lambda n=length: model.encode(images, n), batch, seconds)
        plain = rate(lambda n=length: model.encode(images)[:, :n], batch, seconds)
        rows.append(_row("encode", length, batch, encode, plain, float(not same)))
        decode = rate(lambda n=length: model.decode(tokens, n, sampling), batch, seconds)
        plain = rate(lambda n=length: naive_flow(model, tokens, n, sampling), batch, seconds)
        rows.append(_row("decode", length, batch, decode, plain, error))
    return rows


def titok_rows(model: TiTok, images: Tensor, seconds: float) -> list[dict]:
    """Decoding at a few lengths, and one encoding for all of them against one for each."""
    batch, total = len(images), model.config.num_tokens
    tokens, rows = model.encode(images), []
    for length in sorted({1, total // 4, total}):
        keep = torch.full((batch,), length)

        def masked(keep: Tensor = keep) -> Tensor:
            return model.paint(model.quantize.codes(tokens), keep)

        with torch.no_grad():
            error = (model.decode(tokens, length) - masked()).abs().mean().item()
            decode = rate(lambda n=length: model.decode(tokens, n), batch, seconds)
            rows.append(_row("decode", length, batch, decode, rate(masked, batch, seconds), error))
    lengths = [2**i for i in range(total.bit_length())]
    once = rate(lambda: [model.decode(t, n) for t in [model.encode(images)] for n in lengths], batch, seconds)
    each = rate(lambda: [model.decode(model.encode(images), n) for n in lengths], batch, seconds)
    rows.append(_row(f"encode + {len(lengths)} lengths", total, batch, once, each, 0.0))
    return rows


def plain_rows(model: torch.nn.Module, images: Tensor, seconds: float) -> list[dict]:
    """Encoding and decoding of a batch against its pictures one by one."""
    batch, rows = len(images), []
    tokens = model.encode(images)
    count = tokens[0].numel() if tokens.ndim < 4 else tokens.shape[-2] * tokens.shape[-1]

    def each(run: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        return torch.cat([run(one) for one in given.split(1)])

    for what, run, given in (("encode", model.encode, images), ("decode", model.decode, tokens)):
        error = (run(given) - each(run, given)).abs().float().mean().item()
        ours = rate(lambda run=run, given=given: run(given), batch, seconds)
        naive = rate(lambda run=run, given=given: each(run, given), batch, seconds)
        rows.append(_row(f"{what}, one by one", count, batch, ours, naive, error))
    return rows


def seed_rows(model: Seed, images: Tensor, seconds: float) -> list[dict]:
    """Encoding of first tokens alone against all of them, and the image embedding."""
    batch, total, tokens = len(images), model.config.num_tokens, model.encode(images)
    rows = []
    for length in sorted({1, total // 4, total}):
        error = float(not torch.equal(model.encode(images, length), tokens[:, :length]))
        ours = rate(lambda n=length: model.encode(images, n), batch, seconds)
        rows.append(_row("encode", length, batch, ours, rate(lambda: model.encode(images), batch, seconds), error))
    embed = rate(lambda: model.embed(tokens), batch, seconds)
    naive = rate(lambda: [model.embed(one) for one in tokens.split(1)], batch, seconds)
    return [*rows, _row("embed, one by one", total, batch, embed, naive, 0.0)]


def open_tokenizer(name: str) -> torch.nn.Module:
    """The tokenizer of a name; of a family without embedded weights an untrained one."""
    torch.manual_seed(0)
    if name == "seed":
        recipe = Recipe.load(RECIPES / "seed-mini.yaml")
        return Seed(read_options(SeedConfig, recipe.model, "model", {"embed_dim": 256})).eval()
    if name == "maskgit_vqgan":
        return MaskGITVQGAN(MaskGITVQGANConfig(1024, 64, channels=32, channel_mult=(1, 1, 2), res_blocks=1)).eval()
    return load_tokenizer(name).tokenizer


def _row(what: str, tokens: int, batch: int, ours: float, naive: float, error: float) -> dict:
    row = {"what": what, "tokens": tokens, "batch": batch, "per_second": ours, "naive": naive, "error": error}
    return row | {"faster": ours / naive}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizers", nargs="*", default=FAMILIES, help="embedded, or their folders")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = []
    for name in options.tokenizers:
        model = open_tokenizer(name)
        special = {FlexTok: flextok_rows, TiTok: titok_rows, Seed: seed_rows}.get(type(model))
        measures = [measure for measure in (plain_rows, special) if measure is not None]
        if isinstance(model, FlexTok):
            measures = [flextok_rows]  # decoding draws noise picture by picture
        for batch in options.batches:
            images = render(sample_scenes(batch, 1_000_003), model.capabilities.image_size or 64)
            for row in (row for measure in measures for row in measure(model, images, options.seconds)):
                found.append({"tokenizer": name, **row})
                print(
                    f"{name:18} {row['what']:22} tokens {row['tokens']:3}  batch {batch:3}  "
                    f"{row['per_second']:8.1f} a second, naive {row['naive']:8.1f} ({row['faster']:.2f}x), "
                    f"difference {row['error']:.1e}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
