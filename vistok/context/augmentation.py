"""Differentiable cache augmentation (arXiv 2412.17747): a coprocessor reads a cache and adds latent embeddings to it.

A coprocessor with the decoder's architecture reads the decoder's cache of a text and, with learned soft tokens as its
input, gives latents: embeddings that the frozen decoder reads behind the text before it goes on. Many points of a text
are trained in one pass, by masks that keep them apart. There is no public code; everything follows the publication.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.context.interface import at_least
from vistok.errors import VistokError
from vistok.models.huggingface import cache_argument, given_cache


class Layout(NamedTuple):
    """Rows of the two passes behind the text of L tokens, for P points with N latents and A tokens ahead each.

    Attributes:
        coprocessor_mask: what soft tokens see: text, then soft tokens, bool [P * N, L + P * N].
        coprocessor_positions: int64 [P * N].
        decoder_mask: what latents and tokens ahead see: text, then they themselves, bool [R, L + R], R = P * (N + A).
        decoder_positions: int64 [R].
        source: which token of the text a row repeats, -1 for a latent, int64 [R].
        target: which token of the text a row predicts, -1 for none, int64 [R].
    """

    coprocessor_mask: Tensor
    coprocessor_positions: Tensor
    decoder_mask: Tensor
    decoder_positions: Tensor
    source: Tensor
    target: Tensor


def augmentation_layout(length: int, points: Tensor, latents: int, ahead: int) -> Layout:
    """Masks and positions of augmentation at several points of one text.

    Args:
        length: tokens L of the text.
        points: a point p comes behind token p, int64 [P].
        latents: N of each point.
        ahead: tokens A behind each point whose loss is taken.

    Raises:
        VistokError: a point is outside the text, or has fewer than ``ahead`` tokens behind it.
    """
    if len(points) and not (int(points.min()) >= 0 and int(points.max()) + ahead < length):
        raise VistokError(f"points {points.tolist()} need {ahead} tokens behind each within the {length} of the text.")
    mask, positions = _rows(length, points, latents)
    decoder_mask, decoder_positions = _rows(length, points, latents + ahead)
    row = torch.arange(latents + ahead, device=points.device).expand(len(points), -1)
    follows = points[:, None] + 1 + row - latents
    source = torch.where(row >= latents, follows, -1)
    target = torch.where((row >= latents - 1) & (row < latents - 1 + ahead), follows + 1, -1)
    return Layout(mask, positions, decoder_mask, decoder_positions, source.flatten(), target.flatten())


def _rows(length: int, points: Tensor, each: int) -> tuple[Tensor, Tensor]:
    """Mask and positions of ``each`` rows a point, which see the text up to it, and one another backwards."""
    point, row = (x.flatten() for x in torch.meshgrid(points, torch.arange(each, device=points.device), indexing="ij"))
    text = torch.arange(length, device=points.device) <= point[:, None]
    group = torch.arange(len(points), device=points.device).repeat_interleave(each)
    own = (group[:, None] == group) & (row <= row[:, None])
    return torch.cat([text, own], 1), point + 1 + row


class Coprocessor(nn.Module):
    """Reads a cache, gives latents.

    Args:
        decoder: a causal LM of transformers; its copy is what is trained, and it stays as it is.
        latents: N.
    """

    def __init__(self, decoder: nn.Module, latents: int = 16) -> None:
        super().__init__()
        at_least("latents", latents, 1)
        table = decoder.get_input_embeddings().weight
        self.model = copy.deepcopy(decoder.get_decoder())
        self.model.requires_grad_(True)
        self.model.set_input_embeddings(nn.Identity())  # soft tokens are its only input
        # Soft tokens begin as ordinary words do, each another.
        start = table.detach().mean(0) + table.detach().std(0) * torch.randn(
            latents, table.shape[1], device=table.device
        )
        self.soft = nn.Parameter(start.to(table.dtype))

    def forward(self, cache: Any, mask: Tensor, positions: Tensor) -> Tensor:
        """Latents of some points.

        Args:
            cache: keys and values of the text from the decoder, which stays as it is.
            mask: bool [B or 1, P * N, L + P * N].
            positions: int64 [B or 1, P * N].

        Returns:
            [B, P * N, D], hidden states of the last layer.
        """
        rows = self.soft.repeat(positions.shape[1] // len(self.soft), 1)
        batch = cache.layers[0].keys.shape[0]
        return run_behind(self.model, rows.expand(batch, -1, -1), cache, mask, positions)


def run_behind(decoder: nn.Module, embedded: Tensor, cache: Any, mask: Tensor, positions: Tensor) -> Tensor:
    """Hidden states [B, R, D] of rows behind a cached text, whose cache is not changed.

    Args:
        decoder: a text model of transformers.
        embedded: input embeddings [B, R, D].
        cache: a ``DynamicCache``.
        mask: bool [B or 1, R, L + R].
        positions: int64 [B or 1, R].
    """
    own = copy.copy(cache)
    own.layers = [copy.copy(layer) for layer in cache.layers]
    batch = len(embedded)
    arguments = {
        "attention_mask": float_mask(mask[:, None].expand(batch, -1, -1, -1), embedded.dtype),
        "position_ids": positions.expand(batch, -1),
        cache_argument(decoder): own,
        "use_cache": True,
    }
    return decoder(inputs_embeds=embedded, **arguments).last_hidden_state


def float_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as what is added to scores."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


@torch.no_grad()
def text_cache(model: nn.Module, ids: Tensor) -> Any:
    """The frozen decoder's cache of texts [B, L], without gradients."""
    from transformers import DynamicCache

    decoder = model.get_decoder()
    return given_cache(decoder(input_ids=ids, use_cache=True, **{cache_argument(decoder): DynamicCache()}))


def augmentation_loss(
    model: nn.Module, coprocessor: Coprocessor, ids: Tensor, points: Tensor, ahead: int = 16
) -> Tensor:
    """Mean cross-entropy in nats of the tokens behind several points, each read behind its latents.

    Gradients reach the coprocessor alone: the decoder's weights are not trained.

    Args:
        model: the frozen causal LM.
        coprocessor: gives the latents.
        ids: texts, int64 [B, L].
        points: int64 [P], for all texts.
        ahead: tokens behind each point.
    """
    latents = len(coprocessor.soft)
    layout = augmentation_layout(ids.shape[1], points, latents, ahead)
    cache = text_cache(model, ids)
    given = coprocessor(cache, layout.coprocessor_mask[None], layout.coprocessor_positions[None])
    words = model.get_input_embeddings()(ids[:, layout.source.clamp(min=0)])
    rows = words.unflatten(1, (len(points), -1))
    rows = torch.cat([given.unflatten(1, (len(points), -1)), rows[:, :, latents:]], 2).flatten(1, 2)
    hidden = run_behind(model.get_decoder(), rows, cache, layout.decoder_mask[None], layout.decoder_positions[None])
    told = layout.target >= 0
    logits = model.get_output_embeddings()(hidden[:, told])
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, layout.target[told]].flatten())


@torch.no_grad()
def plain_loss(model: nn.Module, ids: Tensor, points: Tensor, ahead: int = 16) -> Tensor:
    """The same tokens' mean cross-entropy without latents: what augmentation is measured against."""
    logits = model(input_ids=ids).logits
    rows = (points[:, None] + torch.arange(ahead, device=points.device)).flatten()
    return F.cross_entropy(logits[:, rows].flatten(0, 1).float(), ids[:, rows + 1].flatten())


@torch.no_grad()
def augmented_prompt(model: nn.Module, coprocessor: Coprocessor, ids: Tensor) -> Tensor:
    """Texts with latents behind them, for ``model.generate(inputs_embeds=...)``, [B, L + N, D].

    Args:
        model: the causal LM.
        coprocessor: gives the latents.
        ids: texts of one length, int64 [B, L].
    """
    layout = augmentation_layout(ids.shape[1], torch.tensor([ids.shape[1] - 1]), len(coprocessor.soft), 0)
    given = coprocessor(
        text_cache(model, ids),
        layout.coprocessor_mask[None].to(ids.device),
        layout.coprocessor_positions[None].to(ids.device),
    )
    return torch.cat([model.get_input_embeddings()(ids), given], 1)


def load_coprocessor(model: nn.Module, folder: str | Path) -> Coprocessor:
    """A trained coprocessor of a causal LM, from the folder that its recipe wrote.

    Raises:
        VistokError: no such folder, or weights of another model or of other latents.
    """
    from vistok.zoo.checkpoint import load_strict, read_state_dict, weights_file

    weights = weights_file(folder)
    try:
        latents = json.loads((Path(folder) / "config.json").read_text())["latents"]
    except (OSError, ValueError, KeyError) as error:
        raise VistokError(
            f"'{folder}' lacks a config.json that says its latents: name a coprocessor's folder."
        ) from error
    coprocessor = Coprocessor(model, latents)
    load_strict(coprocessor, read_state_dict(weights), "coprocessor of this model")
    return coprocessor.eval().requires_grad_(False)
