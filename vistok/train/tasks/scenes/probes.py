"""What can be read linearly from the semantic codes of scenes."""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.data.scenes import Scenes, render_masks
from vistok.data.scenes.splits import PROBES
from vistok.eval.probe import linear_probe
from vistok.tokenizers.tokenflow import TokenFlow
from vistok.train.sources import ScenesSource


def object_cells(scenes: Scenes, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the cells that lie mostly in objects, bool [B, side, side], and their shapes and colours, int64 [n]."""
    cover, owner = render_masks(scenes, side).max(1)
    inside = cover > 0.5
    flat = owner.flatten(1)
    shape, colour = (getattr(scenes, name).gather(1, flat).view_as(owner)[inside] for name in ("shape", "colour"))
    return inside, shape, colour


def semantic_probes(tokenizer: TokenFlow, held_out: ScenesSource, count: int) -> dict[str, float]:
    """Returns the accuracy of linear probes of shape and colour on the semantic codes of cells inside objects.

    Args:
        tokenizer: in evaluation mode.
        held_out: the scenes that are measured on; the probes learn on others.
        count: how many are measured on.
    """
    codes, *labels = _semantic_codes(tokenizer, ScenesSource(held_out.size, PROBES), 2 * count)
    found, *expected = _semantic_codes(tokenizer, held_out, count)
    return {
        f"probe_{name}": linear_probe(codes, label, found, right)
        for name, label, right in zip(("shape", "colour"), labels, expected, strict=True)
    }


def _semantic_codes(tokenizer: TokenFlow, source: ScenesSource, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the semantic codes of the cells inside objects, [n, D], with their shapes and colours [n]."""
    device = tokenizer.quantize.embedding_vqkd.weight.device
    codes, shapes, colours = [], [], []
    for index in torch.arange(count).split(32):
        maps = tokenizer.code_maps(tokenizer.encode(source.pictures(index).to(device))).cpu()
        inside, shape, colour = object_cells(source.scenes(index), maps.shape[-1])
        codes.append(maps[:, : tokenizer.config.semantic_dim].movedim(1, -1)[inside])
        shapes.append(shape)
        colours.append(colour)
    return torch.cat(codes), torch.cat(shapes), torch.cat(colours)
