"""LlamaGen: tokenizer, GPT, rotary tables, filters, caption cleaning and image crops."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image

from tests.golden.case import Case
from vistok.data import images
from vistok.data.captions import clean_caption, clean_caption_once
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.models.text_encoder import left_pad
from vistok.ops import apply_rope, combine_guidance, process_logits, rope_1d, rope_2d
from vistok.tokenizers.discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from vistok.tokenizers.quantizers import VectorQuantizer
from vistok.tokenizers.vq import PRESETS as VQ_PRESETS
from vistok.tokenizers.vq import VQConfig, VQTokenizer

SYSTEM = "llamagen"


def caption_cleaning(case: Case) -> None:
    for pair in case.meta["pairs"]:
        if "once" in pair:
            assert clean_caption_once(pair["in"]) == pair["once"]
        assert clean_caption(pair["in"]) == pair["out"]


def image_crops(case: Case) -> None:
    for entry in case.config["images"]:
        i, size = entry["index"], entry["size"]
        image = Image.fromarray(case.inputs[f"{i}.image_hwc"].numpy())
        case.close(np.array(images.center_crop(image, size)), f"{i}.center_crop_hwc")
        rng = random.Random(entry["python_random_seed"])
        case.close(np.array(images.random_crop(image, size, rng)), f"{i}.random_crop_hwc")
        prefix = f"{i}.ten_crop_"
        for name in [name for name in case.outputs if name.startswith(prefix)]:
            crops = images.ten_crop(image, size, float(name.removeprefix(prefix)))
            case.close(torch.stack([images.to_tensor(crop) for crop in crops]), name)


def gpt(case: Case) -> None:
    config = LlamaGenConfig(**{k: v for k, v in case.config.items() if k not in ("max_batch_size", "max_seq_len")})
    model = LlamaGen(config).eval()
    model.load_state_dict(case.weights)
    case.close(model.rope, "freqs_cis")
    tokens = case.inputs["tokens"]
    if config.model_type == "c2i":
        condition, mask, valid = case.inputs["class_ids"], None, None
        trained_on = case.inputs["class_ids_with_null"]
    else:
        features, mask = left_pad(case.inputs["t5_features_right_padded"], case.inputs["t5_mask_right_padded"])
        case.close(features, "caption_left_padded")
        case.close(mask, "mask_left_padded")
        condition = trained_on = features
        valid = case.inputs["valid"]
    batch = len(tokens)
    with torch.no_grad():
        logits = model(tokens[:, :-1], trained_on, mask)
        case.close(logits, "train_logits")
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(
            batch, -1
        )
        if valid is not None:
            loss = (loss * valid[:, None]).sum() / (valid[:, None].expand_as(loss).sum()).clamp_min(1)
        case.close(loss.mean(), "train_loss")
        if "train_mask" in case.outputs:
            length = config.cls_token_num + tokens.shape[1] - 1
            case.equal(LlamaGen._full_mask(torch.zeros(batch, length), mask), "train_mask")
        both = torch.cat([condition, model.null_condition(batch).to(condition.dtype)])
        both_mask = None if mask is None else mask.repeat(2, 1)
        _cached(case, model, tokens, both, both_mask)
        for options in case.meta["generate"]:
            guided = options["cfg_scale"] > 1
            rows = (both, both_mask) if guided else (condition, mask)
            _generate(case, model, batch, *rows, options)


def _cached(case: Case, model: LlamaGen, tokens, condition, mask) -> None:
    """Teacher-forced logits, one token at a time and in the chunks that the outputs' names list."""
    twice = tokens.repeat(2, 1)
    state = model.new_state(len(twice))
    hidden = model.prefill(condition, state, mask)
    if "prefill_logits_all_positions" in case.outputs:
        case.close(model.head(hidden), "prefill_logits_all_positions")
    rows = [model.head(hidden[:, -1])]
    for i in range(tokens.shape[1] - 1):
        rows.append(model.head(model.decode(twice[:, i : i + 1], torch.tensor([i]), state))[:, 0])
        state.cache.advance(1)
    case.close(torch.stack(rows, 1), "cached_logits")
    for name in [n for n in case.outputs if n.startswith("chunk_")]:
        sizes = [int(n) for n in name.removeprefix("chunk_").removesuffix("_logits").split("_")]
        state = model.new_state(len(twice))
        out, done = [model.head(model.prefill(condition, state, mask)[:, -1:])], 0
        for size in sizes:
            positions = torch.arange(done, done + size)
            out.append(model.head(model.decode(twice[:, done : done + size], positions, state)))
            state.cache.advance(size)
            done += size
        case.close(torch.cat(out, 1), name)


def _generate(case: Case, model: LlamaGen, batch: int, condition, mask, options) -> None:
    """Greedy generation: raw logits of both branches, processed probabilities and tokens."""
    name, scale, interval = options["name"], options["cfg_scale"], options.get("cfg_interval", -1)
    state = model.new_state(len(condition))
    raw = model.head(model.prefill(condition, state, mask)[:, -1])
    logits, laws, tokens = [], [], []
    for i in range(model.config.block_size):
        logits.append(raw)
        guided = scale > 1 and (interval < 0 or i - 1 <= interval)
        combined = combine_guidance(raw[:batch], raw[batch:], scale) if guided else raw[:batch]
        law = process_logits(combined, options["temperature"], options["top_k"], options["top_p"]).softmax(-1)
        laws.append(law)
        tokens.append(law.argmax(-1))
        if i + 1 < model.config.block_size:
            fed = tokens[-1].repeat(len(condition) // batch)[:, None]
            raw = model.head(model.decode(fed, torch.tensor([i]), state))[:, 0]
            state.cache.advance(1)
    case.close(torch.stack(logits, 1), f"gen.{name}.raw_logits")
    case.close(torch.stack(laws, 1), f"gen.{name}.probs")
    case.equal(torch.stack(tokens, 1), f"gen.{name}.tokens")


def rope2d(case: Case) -> None:
    base = case.config["base"]
    for name in [n for n in case.outputs if n != "rotated"]:
        fields = {
            f.rstrip("0123456789"): int("".join(c for c in f if c.isdigit()))
            for f in name.split("_")
            if f[-1].isdigit()
        }
        head, prefix = fields["head"], fields["cls"]
        if name.startswith("grid"):
            table = rope_2d(fields["grid"], fields["grid"], head, base, prefix=prefix)
        else:
            table = rope_1d(fields["len"], head, base, prefix=prefix)
        case.close(table, name)
    x = case.inputs["x"]
    tables = [t for n, t in case.outputs.items() if n.startswith("grid") and t.shape[1] * 2 == x.shape[-1]]
    case.close(apply_rope(x, tables[0][: x.shape[1]]), "rotated")


def topk_topp(case: Case) -> None:
    logits = case.inputs["logits"]
    for options in case.config["cases"]:
        name = options["name"]
        filtered = process_logits(logits, options["temperature"], options["top_k"], options["top_p"])
        expected, laws = case.outputs[f"{name}.filtered"], case.outputs[f"{name}.probs"]
        tied = torch.tensor([len(row.unique()) < len(row) for row in logits]) & (options["top_p"] < 1)
        torch.testing.assert_close(filtered[~tied], expected[~tied], atol=case.atol, rtol=case.rtol)
        torch.testing.assert_close(filtered.softmax(-1)[~tied], laws[~tied], atol=case.atol, rtol=case.rtol)
        # Which of several equal logits top-p keeps depends on the sort: compare what was kept as a multiset.
        kept, wanted = filtered[tied].sort(-1).values, expected[tied].sort(-1).values
        torch.testing.assert_close(kept, wanted, atol=case.atol, rtol=case.rtol)
    for name in [n for n in case.outputs if n.startswith("min_keep")]:
        keep, p = name.removeprefix("min_keep").removesuffix(".filtered").split("_p")
        case.close(process_logits(logits, top_p=float(p), min_keep=int(keep)), name)


def _vq(case: Case) -> VQTokenizer:
    names = {"ch": "channels", "ch_mult": "channel_mult", "num_res_blocks": "res_blocks", "beta": "commitment"}
    names |= {"codebook_embed_dim": "codebook_dim", "entropy_loss_ratio": "entropy"}
    entries = {names.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in case.config.items()}
    tokenizer = VQTokenizer(VQConfig(**entries)).eval()
    weights = {k: v.float() for k, v in case.weights.items()} | {"quantize.codebook_used": torch.zeros(65536)}
    result = tokenizer.load_state_dict(weights, strict=False)
    # A case holds one half of the network: whole parts may be absent, single entries may not.
    parts = {key.split(".")[0] for key in weights}
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if key.split(".")[0] in parts]
    return tokenizer


@torch.no_grad()
def vq_encode(case: Case) -> None:
    tokenizer, images_in = _vq(case), case.inputs["image"]
    case.close(tokenizer.encoder(images_in), "encoder_hidden")
    latents = tokenizer.latents(images_in)
    case.close(latents, "pre_quant")
    case.equal(tokenizer.encode(images_in).flatten(1), "indices")
    case.close(tokenizer.quantize(latents).latents, "quant")


@torch.no_grad()
def vq_decode(case: Case) -> None:
    tokenizer, codes = _vq(case), case.inputs["codes"]
    quant = case.inputs["quant"]
    grid = codes.view(len(codes), *quant.shape[-2:])
    entries = tokenizer.quantize.codes(grid)
    shape = case.outputs["entry_channel_last"].shape
    case.close(entries.reshape(shape), "entry_channel_last")
    case.close(entries.movedim(-1, 1), "entry_channel_first")
    case.close(tokenizer.decode(grid), "pixels_from_codes")
    case.close(tokenizer.decode_latents(quant), "pixels_from_quant")


def quantizer_train(case: Case) -> None:
    config = case.config
    for name in sorted({k.split(".")[0] for k in case.weights}):
        quantizer = VectorQuantizer(
            config["n_e"], config["e_dim"], name == "l2", config["beta"], config["entropy_loss_ratio"]
        ).train()
        quantizer.load_state_dict(
            {"embedding.weight": case.weights[f"{name}.embedding.weight"], "codebook_used": torch.zeros(65536)}
        )
        z = case.inputs[f"{name}.z"].requires_grad_()
        out = quantizer(z)
        indices = case.outputs[f"{name}.indices"]
        case.equal(out.indices.reshape(indices.shape), f"{name}.indices")
        case.close(out.latents, f"{name}.quant")
        case.close(out.codebook_loss, f"{name}.vq_loss")
        case.close(out.commitment_loss, f"{name}.commit_loss")
        case.close(out.entropy_loss, f"{name}.entropy_loss")
        weight = quantizer.embedding.weight
        loss_z, loss_weight = torch.autograd.grad(out.loss, (z, weight), retain_graph=True)
        case.close(loss_z, f"{name}.loss_grad_z")
        case.close(loss_weight, f"{name}.loss_grad_embedding")
        (through,) = torch.autograd.grad(out.latents, z, case.inputs[f"{name}.grad_out"])
        case.close(through, f"{name}.ste_grad_z")
        quantizer(z)
        tail = case.outputs[f"{name}.codebook_used_tail"]
        case.close(quantizer.codebook_used[-len(tail) :], f"{name}.codebook_used_tail")
        case.close(torch.tensor(quantizer.usage()), f"{name}.usage_second_call")


def patchgan(case: Case) -> None:
    config = case.config
    network = PatchDiscriminator(config["input_nc"], config["ndf"], config["n_layers"])
    network.load_state_dict(case.weights)
    real, fake = case.inputs["real"], case.inputs["fake"]
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if norms[0].num_batches_tracked == 2:
        _undo_training_passes(network, norms, real, fake)
    with torch.no_grad():
        network.eval()
        case.close(network(real), "eval_real")
        case.close(network(fake), "eval_fake")
        network.train()
        on_real, on_fake = network(real), network(fake)
    case.close(on_real, "train_real")
    case.close(on_fake, "train_fake")
    for kind, reference in (("hinge", False), ("vanilla", False), ("non_saturating", True)):
        case.close(discriminator_loss(on_real, on_fake, kind, swapped=reference), f"{kind}_d_loss")
        if f"{kind}_gen_loss" in case.outputs:
            case.close(generator_loss(on_fake, kind, swapped=reference), f"{kind}_gen_loss")


def _undo_training_passes(network: PatchDiscriminator, norms: list, real: torch.Tensor, fake: torch.Tensor) -> None:
    """Running statistics were stored after both training passes, evaluation came before them: take the passes back.

    A pass maps r to 0.9 r + 0.1 b, and the batch statistics b do not depend on r.
    """
    stored = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    for norm in norms:
        norm.running_mean.zero_()
        norm.running_var.zero_()
    network.train()
    with torch.no_grad():
        network(real)
        network(fake)
    for norm, (mean, var) in zip(norms, stored, strict=True):
        norm.running_mean.copy_((mean - norm.running_mean) / 0.81)
        norm.running_var.copy_((var - norm.running_var) / 0.81)


def state_dict_manifest(case: Case) -> None:
    for name, variant in case.meta["variants"].items():
        with torch.device("meta"):
            model = _variant(name)
        template = variant.get("state_dict") or variant["state_dict_template"]
        expected = {
            key.replace("{i}", str(i)): shape
            for key, shape in template.items()
            for i in range(variant["n_layer"] if "{i}" in key else 1)
        }
        assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected, name
        assert len(expected) == variant.get("state_dict_keys_total", len(expected)), name
        sizes = {"params": model, "enc": getattr(model, "encoder", None), "dec": getattr(model, "decoder", None)}
        for key in sizes.keys() & variant.keys():
            assert sum(p.numel() for p in sizes[key].parameters()) == variant[key], (name, key)
        if "ffn_hidden" in variant:
            config = model.config
            found = (config.n_layer, config.n_head, config.dim, config.hidden_dim, config.head_dim)
            assert found == tuple(variant[k] for k in ("n_layer", "n_head", "dim", "ffn_hidden", "head_dim")), name


def _variant(name: str) -> torch.nn.Module:
    if name in VQ_PRESETS:
        return VQTokenizer.from_preset(name)
    preset, _, kind = name.rpartition("-")
    return LlamaGen.from_preset(preset, model_type=kind, cls_token_num=120 if kind == "t2i" else 1)


ADAPTERS = {
    "caption_cleaning": caption_cleaning,
    "gpt_c2i": gpt,
    "gpt_t2i": gpt,
    "image_crops": image_crops,
    "patchgan": patchgan,
    "quantizer_train": quantizer_train,
    "rope2d": rope2d,
    "state_dict_manifest": state_dict_manifest,
    "topk_topp": topk_topp,
    "vq_decode": vq_decode,
    "vq_encode": vq_encode,
}
