"""p-MoD (arXiv 2412.04449, ICCV 2025): a trained mixture of depths, in which visual tokens skip layers.

In a mixed layer a router scores the visual tokens, the best share of them and all text go through the layer, and the
router's weight, near one, scales what the layer's MLP adds to a visual token, and the token itself where it skips. The
share falls with depth along a shifted cosine, cut off above and below: layers above stay plain. Keys are the published
ones; the routers alone are held here, as the layers belong to the language model. Tokens keep their positions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.files import write_json
from vistok.projectors.interface import LayerCompressor, check_weights

CONFIG_FILE, WEIGHTS_FILE = "pmod.json", "pmod.safetensors"
_WRAPPED = ".decoder_layer."  # between a published mixed layer and the layer that it wraps
_ROUTER = ".router.router."


def progressive_ratios(
    total: int, average: float, high: float, low: float, kind: str = "shiftedcos"
) -> list[float | None]:
    """Share of the visual tokens that each layer sees; None in plain layers.

    Args:
        total: layers.
        average: m, what the curve is shifted by.
        high: above it a layer stays plain.
        low: the least share.
        kind: ``shiftedcos``, 0.5 cos(pi l / (total - 1)) + m, or ``shiftedlinear``, 0.5 - l / (total - 1) + m.

    Raises:
        VistokError: an unknown kind, or shares out of order.
    """
    if kind not in ("shiftedcos", "shiftedlinear"):
        raise VistokError(f"the schedule '{kind}' is not known: choose shiftedcos or shiftedlinear.")
    if not 0 < low <= high <= 1:
        raise VistokError(f"shares of p-MoD are 0 < min <= max <= 1, got {low:g} and {high:g}.")
    out: list[float | None] = []
    for layer in range(total):
        depth = layer / max(total - 1, 1)
        share = average + (0.5 * math.cos(math.pi * depth) if kind == "shiftedcos" else 0.5 - depth)
        out.append(max(share, low) if share <= high else None)
    return out


def target_ratios(target: str, factor: float, total: int) -> list[float | None]:
    """Share of each layer by the published entries ``mod_target_layers`` and ``mod_router_factor``; None in plain ones.

    Raises:
        VistokError: the entry is not known.
    """
    kind, _, window = target.partition("_decay_")
    if window:
        try:
            high, low = map(float, window.split("_"))
        except ValueError:
            raise VistokError(f"mod_target_layers is '{target}': expected '{kind}_decay_MAX_MIN'.") from None
        return progressive_ratios(total, factor, high, low, kind)
    chosen = {
        "deep_all": range(2, total - 1),
        "deep_all_include_last": range(2, total),
        "interleave": range(1, total, 2),
    }
    if target not in chosen:
        raise VistokError(f"mod_target_layers is '{target}': known are *_decay_MAX_MIN, {', '.join(chosen)}.")
    return [factor if layer in chosen[target] else None for layer in range(total)]


class RouterNorm:
    """Logits of a router to weights: ``tanh``, ``softmax`` over the visual tokens, ``sigmoid`` or ``none``.

    What it gives is scaled and shifted: ``tanh_0.2_1`` is 0.2 tanh + 1; a name without numbers has 1 and 1.

    Raises:
        VistokError: the name is not one of these.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        match = re.fullmatch(r"(tanh|softmax|sigmoid|none)(?:_(\d+(?:\.\d+)?)_(-?\d+(?:\.\d+)?))?", name)
        if match is None:
            raise VistokError(
                f"mod_weight_norm is '{name}': known are tanh, softmax, sigmoid and none, with _SCALE_BIAS or without."
            )
        self.head = match[1]
        self.scale, self.bias = (1.0, 1.0) if match[2] is None else (float(match[2]), float(match[3]))

    def __call__(self, logits: Tensor, visual: Tensor) -> Tensor:
        """Weights [B, S] of visual tokens; the others' count for nothing."""
        if self.head == "softmax":
            logits = logits.masked_fill(~visual, torch.finfo(logits.dtype).min).softmax(-1)
        elif self.head != "none":
            logits = logits.tanh() if self.head == "tanh" else logits.sigmoid()
        return self.scale * logits + self.bias


class Router(nn.Module):
    """One number a token, zero until trained."""

    def __init__(self, hidden_size: int, bias: bool = True) -> None:
        super().__init__()
        self.router = nn.Linear(hidden_size, 1, bias=bias)
        nn.init.zeros_(self.router.weight)
        if bias:
            nn.init.zeros_(self.router.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, D] -> [B, S]."""
        return self.router(hidden).squeeze(-1)


class PMod(nn.Module, LayerCompressor):
    """Routers of a mixture of depths, for :func:`vistok.compress`.

    Args:
        hidden_size: of the language model.
        ratios: share of the visual tokens that each of its layers sees; None in plain layers.
        norm: see RouterNorm.
        bias: of the routers.

    Raises:
        VistokError: no layer is mixed, or a share is none.
    """

    name = "pmod"
    trained = True
    drops = False

    def __init__(
        self, hidden_size: int, ratios: Sequence[float | None], norm: str = "tanh_0.2_1", bias: bool = True
    ) -> None:
        super().__init__()
        self.hidden_size, self.ratios = hidden_size, tuple(ratios)
        self.mixed = [layer for layer, ratio in enumerate(ratios) if ratio is not None]
        if not self.mixed or not all(0 <= ratios[layer] <= 1 for layer in self.mixed):
            raise VistokError(f"shares of p-MoD's layers are numbers from 0 to 1, at least one, got {list(ratios)}.")
        self.norm, self.bias = RouterNorm(norm), bias
        routers = {str(layer): nn.ModuleDict({"router": Router(hidden_size, bias)}) for layer in self.mixed}
        self.model = nn.ModuleDict({"layers": nn.ModuleDict(routers)})

    def router(self, layer: int) -> Router:
        """The router of a mixed layer."""
        return self.model["layers"][str(layer)]["router"]

    def count(self, layer: int, visual: int) -> int:
        """How many of a prompt's visual tokens a layer sees."""
        return int(visual * self.ratios[layer])

    def choose(self, layer: int, hidden: Tensor, visual: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
        """Which visual tokens go through a layer, bool [B, S], and the weight of every token, [B, S]; text's is one.

        Args:
            layer: a mixed one.
            hidden: what enters it, [B, S, D].
            visual: bool [B, S].
            counts: how many of each prompt go through.

        Raises:
            VistokError: see ``check_weights``.
        """
        check_weights(self.name, self, hidden)
        logits = self.router(layer)(hidden)
        # Every norm rises with its logits, and may saturate: the logits rank.
        order = logits.float().masked_fill(~visual, -torch.inf).argsort(dim=1, descending=True, stable=True)
        place = torch.arange(order.shape[1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, place)
        kept = visual & (rank < torch.tensor(counts, device=rank.device)[:, None])
        return kept, torch.where(visual, self.norm(logits, visual), 1.0).to(hidden.dtype)

    @classmethod
    def from_checkpoint(cls, folder: str | Path) -> PMod:
        """The routers of a published checkpoint, a folder with ``config.json`` and the weights of the whole model.

        Raises:
            VistokError: the folder holds no p-MoD, or other routers than its configuration says.
        """
        from vistok.zoo.checkpoint import load_strict, read_state_dict, weights_file

        try:
            config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
            ratios = target_ratios(
                config["mod_target_layers"], config["mod_router_factor"], config["num_hidden_layers"]
            )
            module = cls(config["hidden_size"], ratios, config["mod_weight_norm"], config["mod_bias_enabled"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VistokError(f"'{folder}' is no p-MoD: its config.json lacks or misstates {error}.") from None
        routers, _ = split_checkpoint(read_state_dict(weights_file(folder)))
        load_strict(module, routers, f"the routers of '{folder}'")
        return module.eval()

    def options(self) -> dict[str, Any]:
        """What builds the same routers again."""
        return {"hidden_size": self.hidden_size, "ratios": self.ratios, "norm": self.norm.name, "bias": self.bias}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``pmod.json`` and ``pmod.safetensors``, beside the model that they belong to."""
        from vistok.zoo.checkpoint import write_state_dict

        write_json(Path(folder) / CONFIG_FILE, self.options())
        write_state_dict(Path(folder) / WEIGHTS_FILE, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PMod:
        """What :meth:`save_pretrained` wrote, in float32.

        Raises:
            VistokError: the folder holds none, or another shape.
        """
        from vistok.zoo.checkpoint import load_strict, read_state_dict

        try:
            module = cls(**json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise VistokError(f"'{folder}' has no readable {CONFIG_FILE}: {error}.") from error
        load_strict(module, read_state_dict(Path(folder) / WEIGHTS_FILE), str(folder))
        return module.eval()


def split_checkpoint(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A published checkpoint as its routers and the plain LLaVA that they belong to.

    Returns:
        Routers under the keys of PMod, and all other tensors under the keys that a LLaVA without routers has.

    Raises:
        VistokError: there are no routers.
    """
    routers = {key: value for key, value in state.items() if _ROUTER in key}
    if not routers:
        raise VistokError(f"these weights hold no p-MoD: no key has '{_ROUTER}'.")
    plain = {key.replace(_WRAPPED, "."): value for key, value in state.items() if _ROUTER not in key}
    return routers, plain
