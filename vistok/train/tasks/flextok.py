"""Train a FlexTok (arXiv 2502.13967) on scenes: rectified flow in the latents of a frozen tokenizer, nested dropout.

The paper aligns decoder patches with DINOv2 (REPA). The scenes' labels stand in for it: linear maps read from the
aligned patches which kind of object each shows, and its silhouette. Another head reads from the first token the kind of
a largest object (any of them will do), so that a single token already stands for a plausible scene; the other tokens
are drawn to what is in a patch of their own, so that they say something from the first step on, which the painter can
learn to heed. These terms are ours. All heads serve training alone.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vistok.data.scenes import NUM_CLASSES, Scenes, render, sample_scenes
from vistok.data.scenes.splits import HELD_OUT
from vistok.data.scenes.world import COLOURS, SHAPES
from vistok.errors import VistokError
from vistok.eval.reconstruction.rate_distortion import quality_by_tokens
from vistok.eval.scene_detector import detect
from vistok.ops.noise import derive_seed
from vistok.tokenizers.flextok import FlexTok, FlowDraws
from vistok.tokenizers.flextok_config import FlexTokConfig
from vistok.tokenizers.flextok_layers import layer_norm
from vistok.tokenizers.kl import KLAutoencoder
from vistok.tokenizers.quantizers import CodebookUsage
from vistok.train.export import write_training_card
from vistok.train.recipe import Recipe
from vistok.train.tasks.patch_codes import PatchComponents
from vistok.train.tasks.scene_reader import SILHOUETTE, plan, silhouette_loss, silhouettes
from vistok.train.tasks.spatial_start import (
    copy_by_position,
    dithering_order,
    fit_by_least_squares,
    inputs_of,
    whiten_positions,
)

CHUNK = 32  # scenes whose latents are computed at a time
TRAINING_LAWS = (
    "null_probability",
    "length_law",
    "time_shift",
    "repa_layer",
)  # what a run may change that goes on from weights
SATURATED = 2.0  # where the bound of FSQ passes on hardly any gradient


class FlexTokObjective(nn.Module):
    """Squared error of the velocity, the cross-entropies of the three heads, the anchor's, and a penalty on saturation.

    Without the penalty latents grow until the bound of FSQ has no gradient left, and all pictures get the same tokens.

    Args:
        tokenizer: what is trained.
        supervision: weights of the cross-entropy of the patches' kinds, of the first token, and of silhouettes.
        anchor: what the other tokens' latents are drawn to.
        anchor_weight: of the squared distance.
    """

    def __init__(
        self,
        tokenizer: FlexTok,
        supervision: tuple[float, float, float],
        anchor: OrderedComponents,
        anchor_weight: float,
    ):
        super().__init__()
        self.anchor, self.anchor_weight = anchor, anchor_weight
        config = tokenizer.config
        self.tokenizer = tokenizer
        self.supervision = supervision
        self.patches = nn.Linear(config.decoder[0], NUM_CLASSES + 1)
        self.silhouettes = nn.Linear(config.decoder[0], SILHOUETTE**2)
        self.first = nn.Sequential(nn.Linear(len(config.levels), 256), nn.GELU(), nn.Linear(256, NUM_CLASSES))

    def forward(self, maps: Tensor, cells: Tensor, told: Tensor, kinds: Tensor, **draws: Tensor):
        """Loss of a batch.

        Args:
            maps: latents [B, C, h, w].
            cells: kind of object that each patch shows, NUM_CLASSES where there is none, [B, patches].
            told: silhouettes of the patches, see ``scene_reader``, uint8 [B, patches, SILHOUETTE^2].
            kinds: whether each kind is among the picture's largest objects, bool [B, NUM_CLASSES].
            draws: the fields of ``FlowDraws``.
        """
        out = self.tokenizer.training_pass(maps, FlowDraws(**draws))
        flow = out.loss
        patches = F.cross_entropy(self.patches(out.features).flatten(0, 1).float(), cells.flatten().long())
        shapes = silhouette_loss(self.silhouettes(out.features), told)
        likely = self.first(out.codes[:, 0]).float().log_softmax(-1)
        first = -likely.masked_fill(~kinds, -torch.inf).logsumexp(-1).mean()
        saturated = F.relu(out.latents.float().abs() - SATURATED).square().mean()
        anchor = F.mse_loss(out.latents[:, 1:].float(), self.anchor(maps))
        read = {"patches": patches, "first": first, "silhouettes": shapes}
        loss = flow + sum(weight * x for weight, x in zip(self.supervision, read.values(), strict=True))
        loss = loss + saturated + self.anchor_weight * anchor
        metrics = {"flow": flow, **read, "saturated": saturated, "anchor": anchor}
        return loss, {name: x.detach() for name, x in metrics.items()}


class OrderedComponents(nn.Module):
    """What each token but the first is drawn to: the principal components, each of unit deviation, of the patch of a
    latent map at its place in the dithering order.

    Args:
        config: of the tokenizer, which has at most one more token than patches.
        maps: latents [B, C, h, w] that the components are fitted to.
    """

    def __init__(self, config: FlexTokConfig, maps: Tensor):
        super().__init__()
        self.components = PatchComponents(maps, config.patch, len(config.levels))
        self.register_buffer("order", dithering_order(config.grid)[: config.registers - 1], persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Latents [B, C, h, w] to components [B, registers - 1, levels]."""
        values = self.components(maps).flatten(2)[:, :, self.order].transpose(1, 2)
        return values / self.components.deviations


@torch.no_grad()
def start_spatially(tokenizer: FlexTok, anchor: OrderedComponents, maps: Tensor, generator: torch.Generator) -> None:
    """Start a tokenizer as ``vistok.train.tasks.spatial_start`` says; the first register belongs to no place and begins
    near zero.

    Args:
        tokenizer: what is started.
        anchor: what its tokens begin as.
        maps: latents [B, C, h, w] of pictures to start the codes and the painter from.
        generator: of the draws that the painter is fitted to.
    """
    encoder, decoder = tokenizer.encoder.module_dict, tokenizer.decoder.module_dict
    config = tokenizer.config
    places = encoder["enc_posemb_module"].posembs[0].flatten(1).T
    own = places[anchor.order]
    encoder["enc_register_module"].registers[1:] = own
    decoder["dec_registers_posemb_module"].posembs[0, 0, :, 1:] = own.T
    for part in (encoder["enc_transformer"], decoder["dec_transformer"]):
        attention = part.blocks[0].attn
        whiten_positions(attention.wq.weight, places)
        copy_by_position(*(each.weight for each in (attention.wq, attention.wk, attention.wv, attention.proj)))
    states = inputs_of(encoder["enc_to_latents"], lambda: tokenizer.encoder(maps))
    codes = encoder["enc_to_latents"].proj
    fit_by_least_squares(codes, states.flatten(0, 1), F.pad(anchor(maps), (0, 0, 1, 0)).flatten(0, 1))
    shrunk = codes(states[:, 1:]).flatten(0, 1).std(0)  # by a poor fit; with unit deviation all levels are in use
    codes.weight.div_(shrunk[:, None])
    codes.bias.div_(shrunk)
    opened = decoder["dec_transformer"].blocks[0].adaLN_modulation[1].bias.view(config.groups, 6, -1)
    opened[:, 0] = 1.0  # the gate of the first attention
    draws = tokenizer.draw(len(maps), generator)
    draws = draws._replace(keep=torch.full_like(draws.keep, config.registers), null=torch.zeros_like(draws.null))
    head = decoder["dec_to_patches"]
    states = layer_norm(inputs_of(head, lambda: tokenizer.training_pass(maps, draws)))
    target = rearrange(draws.noise - maps, "b c (h p) (w q) -> (b h w) (p q c)", p=config.patch, q=config.patch)
    fit_by_least_squares(head.proj, states.flatten(0, 1), target)


def right_class(images: Tensor, kinds: Tensor) -> float:
    """Share of pictures [B, 3, H, W] whose largest object is of one of the kinds [B, NUM_CLASSES] of their scenes."""
    right = 0
    for found, expected in zip(detect(images.clamp(-1, 1)), kinds, strict=True):
        if found:
            right += int(expected[SHAPES.index(found[0].shape) * len(COLOURS) + COLOURS.index(found[0].colour)])
    return right / len(images)


class FlexTokTask:
    """The ``flextok`` task: from new weights over the frozen autoencoder ``init.kl``, or from ``init.tokenizer``.

    Latents of ``data.scenes`` scenes are computed once, as they are first needed. The first ``data.anchor_scenes`` of
    them define the anchor, whose weight is ``data.anchor``, and new weights start there, see ``start_spatially``.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        if "tokenizer" in recipe.init:
            self.tokenizer = FlexTok.from_pretrained(recipe.init["tokenizer"])
            laws = {key: recipe.model[key] for key in TRAINING_LAWS if key in recipe.model}
            self.tokenizer.config = replace(self.tokenizer.config, **laws)
        else:
            kl = KLAutoencoder.from_pretrained(recipe.init["kl"])
            shapes = {key: tuple(recipe.model[key]) for key in ("encoder", "decoder", "levels")}
            self.tokenizer = FlexTok(FlexTokConfig(**(recipe.model | shapes), vae=False, kl=asdict(kl.config)))
            self.tokenizer.vae.kl.load_state_dict(kl.state_dict())
        self.tokenizer.vae.requires_grad_(False)
        data = recipe.data
        if len(data["supervision"]) != 3:
            raise VistokError("data.supervision must hold three weights: of kinds, of the first token, of silhouettes.")
        if data["scenes"] % recipe.batch_size:
            raise VistokError(f"data.scenes ({data['scenes']}) must be a multiple of batch_size ({recipe.batch_size}).")
        self.maps = torch.empty(data["scenes"], *self.tokenizer.config.map_shape, dtype=torch.float16)
        self.known = torch.zeros(data["scenes"], dtype=torch.bool)
        maps = self._latents(torch.arange(data["anchor_scenes"]))
        anchor = OrderedComponents(self.tokenizer.config, maps)
        if "tokenizer" not in recipe.init:
            start_spatially(self.tokenizer, anchor, maps, torch.Generator().manual_seed(recipe.seed))
        self.model = FlexTokObjective(self.tokenizer, tuple(data["supervision"]), anchor, data["anchor"])

    def _scenes(self, seed: int, start: int, count: int) -> tuple[Scenes, Tensor]:
        scenes = sample_scenes(count, seed, start)
        return scenes, render(scenes, self.tokenizer.config.image_size)

    @torch.no_grad()
    def _latents(self, index: Tensor) -> Tensor:
        """Maps of training scenes, computed in chunks on first use."""
        device = next(self.tokenizer.parameters()).device
        for chunk in (index[~self.known[index]] // CHUNK).unique().tolist():
            rows = slice(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.maps)))
            _, images = self._scenes(self.recipe.data["seed"], rows.start, rows.stop - rows.start)
            self.maps[rows] = self.tokenizer.maps(images.to(device)).cpu().half()
            self.known[rows] = True
        return self.maps[index].float()

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Scenes in order, pass after pass, with new noise, times and lengths in each."""
        size, seed = self.recipe.batch_size, self.recipe.data["seed"]
        index = (step * size) % len(self.maps) + torch.arange(rows.start, rows.stop)
        scenes = sample_scenes(len(index), seed, int(index[0]))
        draws = self.tokenizer.draw(size, torch.Generator().manual_seed(derive_seed(seed, step)))
        grid, side = self.tokenizer.config.grid, self.tokenizer.config.image_size
        return {
            "maps": self._latents(index),
            "cells": plan(scenes, grid, side).cells,
            "told": silhouettes(scenes, grid, side),
            "kinds": scenes.largest_kinds,
        } | {name: draw[rows] for name, draw in draws._asdict().items()}

    def after_step(self, step: int) -> None:
        """Nothing happens between steps."""

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """PSNR of held-out scenes and the share of right classes at few, some and all tokens, and usage of codes."""
        config, device = self.tokenizer.config, self.model.patches.weight.device
        scenes, images = self._scenes(HELD_OUT, 0, self.recipe.data.get("eval_scenes", 64))
        kinds, usage = scenes.kinds_present, CodebookUsage(self.tokenizer.regularizer.size)
        outputs: dict[int, list[Tensor]] = {n: [] for n in sorted({1, 1 + config.registers // 8, config.registers})}
        points = quality_by_tokens(
            self.tokenizer,
            images.to(device).split(32),
            list(outputs),
            usage.update,
            lambda length, pictures: outputs[length].append(pictures.cpu()),
        )
        metrics = {f"psnr_{point.setting}": point.psnr for point in points}
        metrics |= {f"right_class_{n}": right_class(torch.cat(pictures), kinds) for n, pictures in outputs.items()}
        return metrics | {"codebook_usage": usage.usage, "codebook_perplexity": usage.perplexity}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the tokenizer as an embedded model, with the one that its maps are latents of."""
        self.tokenizer.save_pretrained(directory, torch.float16)
        write_training_card(
            directory, self.recipe, self.tokenizer, "image-tokenizer", "flextok", metrics, steps, paper="2502.13967"
        )
