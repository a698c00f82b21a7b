"""TokenPacker (arXiv 2407.02392): a trained projector whose coarse points attend to the fine tokens of their region.

One query per s x s region, from the bilinearly shrunk features; keys and values from four layers of the tower at full
resolution. Published key layout, loaded strictly. The reference's constants (width 1024, grid 24x24) are parameters.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.files import write_json
from vistok.projectors.interface import Compressor, ImageTokens, Needs, check_weights

PREFIX = "model.mm_projector."  # of the projector in a full LLaVA checkpoint
FINE_STATES = (12, 16, 22, 23)  # of CLIP-L's 24 layers
CONFIG_FILE, WEIGHTS_FILE = "tokenpacker.json", "tokenpacker.safetensors"


class TokenPacker(nn.Module, Compressor):
    """Region-to-point projector.

    Args:
        raw_grid: side g of the tower's grid of patches.
        embed_dim: width C of the tower.
        num_heads: heads of the region attention; width 128 each if None.
        hidden_size: width D of the language model.
        scale_factor: side s of a region.
        states: hidden states of the tower that keys and values are made of; the published ones scaled to the tower's
            depth if None.
    """

    name = "tokenpacker"
    trained = True
    tells_places = False

    def __init__(
        self,
        raw_grid: int = 24,
        embed_dim: int = 1024,
        num_heads: int | None = None,
        hidden_size: int = 4096,
        scale_factor: int = 2,
        states: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if raw_grid % scale_factor:
            raise VistokError(f"regions of side {scale_factor} do not tile a grid of side {raw_grid}.")
        self.raw_grid = raw_grid
        self.scale_factor = scale_factor
        self.states = states
        heads = max(1, embed_dim // 128) if num_heads is None else num_heads
        self.q_proj_1 = nn.Linear(embed_dim, embed_dim, bias=False)
        fine = embed_dim * len(FINE_STATES if states is None else states)
        self.k_proj_1 = nn.Sequential(nn.Linear(fine, embed_dim), nn.GELU(), nn.Linear(embed_dim, embed_dim))
        self.v_proj_1 = nn.Sequential(nn.Linear(fine, embed_dim), nn.GELU(), nn.Linear(embed_dim, embed_dim))
        self.ln_q_1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.ln_k_1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.ln_v_1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.clip_attn = nn.MultiheadAttention(embed_dim, heads)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.clip_attn.out_proj:
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def from_checkpoint(cls, path: str | Path, scale_factor: int, raw_grid: int = 24) -> TokenPacker:
        """The projector of a published checkpoint.

        Args:
            path: file with the projector's 23 tensors, alone or within a whole LLaVA model.
            scale_factor: the checkpoint's (144 tokens: 2, 64: 3, 36: 4); no tensor tells it.
            raw_grid: side of the tower's grid.

        Raises:
            VistokError: the file holds no such projector, or has missing or unexpected keys.
        """
        from vistok.zoo.checkpoint import load_strict, read_state_dict

        state = read_state_dict(path)
        if any(key.startswith(PREFIX) for key in state):
            state = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
        if not {"q_proj_1.weight", "mlp.2.weight"} <= state.keys():
            raise VistokError(f"'{path}' holds no TokenPacker: look for the file with '{PREFIX}q_proj_1.weight'.")
        module = cls(
            raw_grid=raw_grid,
            embed_dim=state["q_proj_1.weight"].shape[0],
            hidden_size=state["mlp.2.weight"].shape[0],
            scale_factor=scale_factor,
        )
        load_strict(module, state, str(path))
        return module

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``tokenpacker.json`` and ``tokenpacker.safetensors``, beside the model that it belongs to."""
        from vistok.zoo.checkpoint import write_state_dict

        config = {
            "raw_grid": self.raw_grid,
            "embed_dim": self.clip_attn.embed_dim,
            "num_heads": self.clip_attn.num_heads,
            "hidden_size": self.mlp[2].out_features,
            "scale_factor": self.scale_factor,
            "states": self.states,
        }
        write_json(Path(folder) / CONFIG_FILE, config)
        write_state_dict(Path(folder) / WEIGHTS_FILE, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TokenPacker:
        """What :meth:`save_pretrained` wrote, in float32.

        Raises:
            VistokError: the folder holds none, or another shape.
        """
        from vistok.zoo.checkpoint import load_strict, read_state_dict

        try:
            config = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
            states = config.pop("states")
            module = cls(states=None if states is None else tuple(states), **config)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VistokError(f"'{folder}' has no readable {CONFIG_FILE}: {error}.") from error
        load_strict(module, read_state_dict(Path(folder) / WEIGHTS_FILE), str(folder))
        return module.eval()

    def forward(self, x: Tensor, x_multi: Tensor) -> Tensor:
        """Project and pack.

        Args:
            x: patches at the feature layer, [B, g*g, C].
            x_multi: patches at several layers, side by side, [B, g*g, 4C].

        Returns:
            [B, (g/s)^2, D] in raster order.
        """
        coarse = self.raw_grid // self.scale_factor
        image = x.transpose(1, 2).unflatten(2, (self.raw_grid, self.raw_grid)).float()
        points = F.interpolate(image, size=(coarse, coarse), mode="bilinear").flatten(2).transpose(1, 2).to(x.dtype)
        attention = self.clip_attn
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        q = F.linear(self.ln_q_1(self.q_proj_1(points)), weights[0], biases[0]).unsqueeze(2)  # [B, P, 1, C]
        k = F.linear(self.ln_k_1(self.k_proj_1(x_multi)), weights[1], biases[1])
        v = F.linear(self.ln_v_1(self.v_proj_1(x_multi)), weights[2], biases[2])
        k, v = self._regions(k), self._regions(v)  # [B, P, s*s, C]
        heads = (t.unflatten(-1, (attention.num_heads, -1)).transpose(2, 3).flatten(0, 1) for t in (q, k, v))
        out = F.scaled_dot_product_attention(*heads).flatten(1).unflatten(0, points.shape[:2])
        return self.mlp(attention.out_proj(out))

    def _regions(self, fine: Tensor) -> Tensor:
        """[B, g*g, C] -> [B, P, s*s, C]."""
        coarse, s = self.raw_grid // self.scale_factor, self.scale_factor
        blocks = fine.unflatten(1, (coarse, s, coarse, s)).transpose(2, 3)
        return blocks.reshape(len(fine), coarse * coarse, s * s, -1)

    def needs(self, layers: int) -> Needs:
        return Needs(states=self._states(layers))

    def select(self, image: ImageTokens) -> Tensor:
        """Tokens of all views, one view after the other, without row ends.

        Raises:
            VistokError: it is of another tower, or see ``check_weights``.
        """
        if image.grid != (self.raw_grid, self.raw_grid):
            raise VistokError(f"this TokenPacker is for a grid of side {self.raw_grid}, not {image.grid}.")
        width, own = image.hidden.shape[-1], self.clip_attn.embed_dim
        if width != own:
            raise VistokError(f"this TokenPacker is for a tower of width {own}, not {width}.")
        check_weights(self.name, self, image.hidden)
        fine = torch.cat([image.states[i] for i in self._states(image.layers)], dim=-1)
        return self(image.hidden, fine).flatten(0, 1)

    def _states(self, layers: int) -> tuple[int, ...]:
        return self.states or tuple(round(i * layers / 24) for i in FINE_STATES)
