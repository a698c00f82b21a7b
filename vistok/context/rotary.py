"""The rotation of a transformers model's keys, found by trial: which pairs turn, and by what angle a position.

A text of one token has the same hidden states at every position, so its keys at two positions differ by the rotation
alone, in all layers. Whoever turns cached keys (editing, un-rotated caches) asks here, and a model whose keys turn
otherwise is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.huggingface import cache_argument, given_cache
from vistok.ops.rope import Layout, rotate

FAR = 7  # positions between the two trials
MEND = "take a policy that turns no keys, such as TidalDecode, and read an edited text anew"
TURNED = 1e-3  # share of the largest key by which keys may differ that were turned likewise
STILL = 1e-5  # or not at all


@dataclass
class Rotary:
    """How a model rotates its keys.

    Attributes:
        frequencies: angle per position of each pair, float32 [P].
        layout: which pairs.
        turns: for each layer, whether its keys turn at all.
        limit: tokens up to which the frequencies hold; None if they are fixed.
    """

    frequencies: Tensor
    layout: Layout
    turns: list[bool]
    limit: int | None = None

    def turn(self, x: Tensor, positions: Tensor, back: bool = False) -> Tensor:
        """Rotates queries or keys.

        Args:
            x: [..., T, D].
            positions: int64 [T], or [B, T] for x [B, H, T, D].
            back: the other way.
        """
        angles = positions[..., None].float() * self.frequencies.to(positions.device)
        table = torch.stack([angles.cos(), -angles.sin() if back else angles.sin()], -1)
        return rotate(x, table.unsqueeze(-4) if positions.dim() > 1 else table, self.layout)

    @staticmethod
    def of(model: nn.Module) -> Rotary:
        """Finds the rotation of a causal LM, or of the text model of a multimodal one.

        Raises:
            VistokError: keys do not turn, or the rotation follows the length of the text.
        """
        name, config = type(model).__name__, model.config.get_text_config(decoder=True)
        decoder = model.get_decoder()
        module = getattr(decoder, "rotary_emb", None)
        kind = _options(config).get("rope_type", "default")
        if kind == "dynamic":
            raise VistokError(
                f"{name} has dynamic NTK rotations, whose base follows the length of the text, so cached keys cannot "
                f"be turned: {MEND}, or take a model with another rope_type."
            )
        if "mrope_section" in _options(config):
            raise VistokError(
                f"{name} gives tokens of pictures three positions, so cached keys cannot be turned by one: {MEND}."
            )
        frequencies = getattr(module, "inv_freq", None)
        if not isinstance(frequencies, Tensor):
            raise VistokError(
                f"{name} has no one rotary embedding, so its cached keys cannot be turned to new positions: {MEND}."
            )
        limit = None
        if kind == "longrope":
            limit = _options(config).get("original_max_position_embeddings")
            limit = limit or getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
        near, far = (_keys(model, position) for position in (1, 1 + FAR))
        rounding = torch.finfo(near[0].dtype).eps  # above both shares in half precision
        likewise, not_at_all = max(TURNED, 4 * rounding), max(STILL, rounding)
        frequencies = frequencies.detach().float().clone()
        for layout in ("half", "interleaved"):
            rotary = Rotary(frequencies, layout, [], limit)
            shift = torch.tensor([FAR], device=frequencies.device)
            turned = [_close(rotary.turn(a, shift), b, likewise) for a, b in zip(near, far, strict=True)]
            still = [_close(a, b, not_at_all) for a, b in zip(near, far, strict=True)]
            if all(t or s for t, s in zip(turned, still, strict=True)) and not all(still):
                rotary.turns = [not s for s in still]
                return rotary
        raise VistokError(f"keys of {name} do not turn with their positions alone, so cached ones cannot be: {MEND}.")


def _options(config: Any) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}


@torch.no_grad()
def _keys(model: nn.Module, position: int) -> list[Tensor]:
    """Keys of a text of one token, one tensor [1, H, 1, D] a layer."""
    from transformers import DynamicCache

    decoder = model.get_decoder()
    device = model.get_input_embeddings().weight.device
    embedded = model.get_input_embeddings()(torch.ones(1, 1, dtype=torch.long, device=device))
    places = torch.full((1, 1), position, device=device)
    cache = {cache_argument(decoder): DynamicCache()}
    output = decoder(inputs_embeds=embedded, position_ids=places, use_cache=True, **cache)
    return [layer.keys for layer in given_cache(output).layers]


def _close(a: Tensor, b: Tensor, share: float) -> bool:
    a, b = a.float(), b.float()
    return float((a - b).abs().max()) <= share * float(b.abs().max() + 1e-6)
