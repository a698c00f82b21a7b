"""Differentiable cache augmentation (arXiv 2412.17747): a coprocessor reads a cache and adds latent embeddings to it.

A coprocessor with the decoder's architecture reads the decoder's cache of a text and, with learned soft tokens as its
input, gives latents: embeddings that the frozen decoder reads behind the text before it goes on. Many points of a text
are trained in one pass, by masks that keep them apart. There is no public code; everything follows the publication, but
for ``repeats``: the last hidden states of a network are no words to its first layer (those of a small Llama are twenty
times as large), so a decoder that reads them as they are loses what the text's last token had told it.
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


def augmentation_layout(length: int, points: Tensor, latents: int, ahead: int, back: int = 0) -> Layout:
    """Returns masks and positions of augmentation at several points of one text.

    Args:
        length: tokens L of the text.
        points: a point p comes behind token p, int64 [P].
        latents: N of each point.
        ahead: tokens A behind each point whose loss is taken.
        back: last tokens up to a point in whose place latents stand: the decoder's rows do not see these tokens, and
            latents have their positions.

    Raises:
        VistokError: a point is outside the text, or has fewer than ``ahead`` tokens behind it or ``back`` up to it.
    """
    if len(points) and not (int(points.min()) + 1 >= max(1, back) and int(points.max()) + ahead < length):
        raise VistokError(
            f"points {points.tolist()} need {ahead} tokens behind each, and {max(1, back)} up to it, within the "
            f"{length} of the text."
        )
    mask, positions = _rows(length, points, points, latents, back)
    decoder_mask, decoder_positions = _rows(length, points, points - back, latents + ahead, back)
    row = torch.arange(latents + ahead, device=points.device).expand(len(points), -1)
    follows = points[:, None] + 1 + row - latents
    source = torch.where(row >= latents, follows, -1)
    target = torch.where((row >= latents - 1) & (row < latents - 1 + ahead), follows + 1, -1)
    return Layout(mask, positions, decoder_mask, decoder_positions, source.flatten(), target.flatten())


def _rows(length: int, points: Tensor, seen: Tensor, each: int, back: int) -> tuple[Tensor, Tensor]:
    """Returns mask and positions of ``each`` rows a point, which see the text up to ``seen``, and their own before."""
    point, row = (x.flatten() for x in torch.meshgrid(points, torch.arange(each, device=points.device), indexing="ij"))
    text = torch.arange(length, device=points.device) <= seen.repeat_interleave(each)[:, None]
    group = torch.arange(len(points), device=points.device).repeat_interleave(each)
    own = (group[:, None] == group) & (row <= row[:, None])
    return torch.cat([text, own], 1), point + 1 + row - back


class Coprocessor(nn.Module):
    """Reads a cache, gives latents.

    Args:
        decoder: a causal LM of transformers; its copy is what is trained, and it stays as it is.
        latents: N.
        repeats: let latents be the text's last N words plus what is learnt, which begins at zero, in the place of these
            words; as published they are the network's last hidden states, behind the text.
    """

    def __init__(self, decoder: nn.Module, latents: int = 16, repeats: bool = False) -> None:
        super().__init__()
        at_least("latents", latents, 1)
        table = decoder.get_input_embeddings().weight.detach()
        self.model = copy.deepcopy(decoder.get_decoder())
        self.model.requires_grad_(True)
        self.model.set_input_embeddings(nn.Identity())  # soft tokens are its only input
        # Soft tokens begin as ordinary words do, each another; beside words they begin small.
        start = table.mean(0) + table.std(0) * torch.randn(latents, table.shape[1], device=table.device)
        self.soft = nn.Parameter((start * 0.1 if repeats else start).to(table.dtype))
        self.change: nn.Linear | None = None
        if repeats:
            self.size = float(table.float().square().mean().sqrt())  # of words
            self.change = nn.Linear(table.shape[1], table.shape[1], bias=False, device=table.device, dtype=table.dtype)
            nn.init.zeros_(self.change.weight)

    @property
    def back(self) -> int:
        """Returns how many of the text's last words latents take the place of."""
        return 0 if self.change is None else len(self.soft)

    def forward(self, cache: Any, mask: Tensor, positions: Tensor, words: Tensor | None = None) -> Tensor:
        """Returns latents of some points, [B, P * N, D].

        Args:
            cache: keys and values of the text from the decoder, which stays as it is.
            mask: bool [B or 1, P * N, L + P * N].
            positions: int64 [B or 1, P * N].
            words: where latents repeat, the decoder's embeddings of the tokens at these positions, [B, P * N, D].
        """
        batch = cache.layers[0].keys.shape[0]
        rows = self.soft.repeat(positions.shape[1] // len(self.soft), 1).expand(batch, -1, -1)
        if self.change is None:
            return run_behind(self.model, rows, cache, mask, positions)
        states = run_behind(self.model, rows + words, cache, mask, positions)
        return words + self.size * self.change(states)


def run_behind(decoder: nn.Module, embedded: Tensor, cache: Any, mask: Tensor, positions: Tensor) -> Tensor:
    """Returns hidden states [B, R, D] of rows behind a cached text, whose cache is not changed.

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
    """Returns a boolean mask as what is added to scores."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


@torch.no_grad()
def text_cache(model: nn.Module, ids: Tensor) -> Any:
    """Returns the frozen decoder's cache of texts [B, L], without gradients."""
    from transformers import DynamicCache

    decoder = model.get_decoder()
    return given_cache(decoder(input_ids=ids, use_cache=True, **{cache_argument(decoder): DynamicCache()}))


def latents_behind(model: nn.Module, coprocessor: Coprocessor, ids: Tensor, cache: Any, layout: Layout) -> Tensor:
    """Returns the latents [B, P * N, D] of the points of a layout, for texts [B, L] and the decoder's cache of them."""
    places = layout.coprocessor_positions
    words = model.get_input_embeddings()(ids[:, places]) if coprocessor.back else None
    return coprocessor(cache, layout.coprocessor_mask[None], places[None], words)


def augmented_losses(
    model: nn.Module, coprocessor: Coprocessor, ids: Tensor, points: Tensor, ahead: int = 16
) -> Tensor:
    """Returns the cross-entropy in nats of each token behind several points, read behind their latents, [B, P, ahead].

    Gradients reach the coprocessor alone: the decoder's weights are not trained.

    Args:
        model: the frozen causal LM.
        coprocessor: gives the latents.
        ids: texts, int64 [B, L].
        points: int64 [P], for all texts.
        ahead: tokens behind each point.
    """
    latents = len(coprocessor.soft)
    layout = augmentation_layout(ids.shape[1], points, latents, ahead, coprocessor.back)
    cache = text_cache(model, ids)
    given = latents_behind(model, coprocessor, ids, cache, layout).unflatten(1, (len(points), -1))
    words = model.get_input_embeddings()(ids[:, layout.source.clamp(min=0)]).unflatten(1, (len(points), -1))
    rows = torch.cat([given, words[:, :, latents:]], 2).flatten(1, 2)
    hidden = run_behind(model.get_decoder(), rows, cache, layout.decoder_mask[None], layout.decoder_positions[None])
    told = layout.target >= 0
    logits = model.get_output_embeddings()(hidden[:, told])
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, layout.target[told]].flatten(), reduction="none")
    return losses.view(len(ids), len(points), ahead)


@torch.no_grad()
def plain_losses(model: nn.Module, ids: Tensor, points: Tensor, ahead: int = 16) -> Tensor:
    """Returns the same tokens' cross-entropy without latents, [B, P, ahead]: what augmentation is measured against."""
    logits = model(input_ids=ids).logits
    rows = (points[:, None] + torch.arange(ahead, device=points.device)).flatten()
    losses = F.cross_entropy(logits[:, rows].flatten(0, 1).float(), ids[:, rows + 1].flatten(), reduction="none")
    return losses.view(len(ids), len(points), ahead)


def augmentation_loss(
    model: nn.Module, coprocessor: Coprocessor, ids: Tensor, points: Tensor, ahead: int = 16
) -> Tensor:
    """Returns the mean of :func:`augmented_losses`, which the coprocessor is trained on."""
    return augmented_losses(model, coprocessor, ids, points, ahead).mean()


def plain_loss(model: nn.Module, ids: Tensor, points: Tensor, ahead: int = 16) -> Tensor:
    """Returns the mean of :func:`plain_losses`."""
    return plain_losses(model, ids, points, ahead).mean()


@torch.no_grad()
def augmented_prompt(model: nn.Module, coprocessor: Coprocessor, ids: Tensor) -> Tensor:
    """Returns texts with latents, which ``model.generate(inputs_embeds=...)`` continues: [B, L + N, D], or [B, L, D]
    where latents stand in the place of the last words.

    Args:
        model: the causal LM.
        coprocessor: gives the latents.
        ids: texts of one length, int64 [B, L].
    """
    length = ids.shape[1]
    last = torch.tensor([length - 1], device=ids.device)
    layout = augmentation_layout(length, last, len(coprocessor.soft), 0, coprocessor.back)
    given = latents_behind(model, coprocessor, ids, text_cache(model, ids), layout)
    return torch.cat([model.get_input_embeddings()(ids[:, : length - coprocessor.back]), given], 1)


def load_coprocessor(model: nn.Module, folder: str | Path) -> Coprocessor:
    """Returns a trained coprocessor of a causal LM, from the folder that its recipe wrote.

    Raises:
        VistokError: no such folder, or weights of another model or of other latents.
    """
    from vistok.zoo.checkpoint import load_strict, read_state_dict, weights_file

    weights = weights_file(folder)
    try:
        shape = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        latents, repeats = shape["latents"], shape.get("repeats", False)
    except (OSError, ValueError, KeyError) as error:
        raise VistokError(
            f"'{folder}' lacks a config.json that says its latents: name a coprocessor's folder."
        ) from error
    coprocessor = Coprocessor(model, latents, repeats)
    load_strict(coprocessor, read_state_dict(weights), "coprocessor of this model")
    return coprocessor.eval().requires_grad_(False)
