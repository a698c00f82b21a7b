"""MAR's head: a small denoising MLP that turns a token's condition into the token's value (arXiv 2406.11838, 3.3).

Keys are those of the published ``diffloss.net``. Tokens never mix, so a call takes any number of them. A call splits
into the modulation, which depends on time and condition alone, and the rest: sampling computes the modulation of many
steps in one product and pays for the rest only.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.models.mar.diffusion import Diffusion, diffusion
from vistok.models.modulation import modulation

FREQUENCIES = 256  # width of the sinusoidal time features


def time_features(t: Tensor) -> Tensor:
    """Cosines, then sines, of times [...] at 128 frequencies: float32 [..., 256]."""
    half = FREQUENCIES // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[..., None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbed(nn.Module):
    """Times [...] to [..., W]."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(time_features(t).to(self.mlp[0].weight.dtype))


class ResBlock(nn.Module):
    """A gated residual MLP with adaptive layer normalisation."""

    def __init__(self, width: int):
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = modulation(width, 3)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return x + gate * self.mlp(torch.addcmul(shift, self.in_ln(x), 1 + scale))


class FinalLayer(nn.Module):
    """Normalised and modulated projection to noise and variance."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale = modulation.chunk(2, dim=-1)
        return self.linear(torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale))


class HeadNetwork(nn.Module):
    """The denoiser: states [..., D], times and conditions to the noise and the variance's place, [..., 2 D].

    Args:
        channels: D, width of a token.
        z_channels: width of a condition.
        width, depth: of the MLP.
    """

    def __init__(self, channels: int, z_channels: int, width: int, depth: int):
        super().__init__()
        self.time_embed = TimeEmbed(width)
        self.cond_embed = nn.Linear(z_channels, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * channels)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time_embed.mlp[0], self.time_embed.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for block in (*self.res_blocks, self.final_layer):
            nn.init.zeros_(block.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def modulation(self, t: Tensor, c: Tensor) -> Tensor:
        """Shifts, scales and gates of all layers.

        Args:
            t: times, broadcast against the leading axes of ``c``.
            c: conditions [..., Z].

        Shape:
            [..., (3 depth + 2) W]
        """
        y = F.silu(self.time_embed(t) + self.cond_embed(c))
        return torch.cat([layer.adaLN_modulation[1](y) for layer in (*self.res_blocks, self.final_layer)], dim=-1)

    def denoise(self, x: Tensor, modulation: Tensor) -> Tensor:
        """States [..., D] under a modulation to [..., 2 D]."""
        h = self.input_proj(x.to(self.input_proj.weight.dtype))
        *blocks, last = modulation.split([3 * h.shape[-1]] * len(self.res_blocks) + [2 * h.shape[-1]], dim=-1)
        for block, part in zip(self.res_blocks, blocks, strict=True):
            h = block(h, part)
        return self.final_layer(h, last)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return self.denoise(x, self.modulation(t, c))


class DiffLoss(nn.Module):
    """The training loss of the head around its network ``net``.

    Args:
        channels, z_channels, width, depth: see HeadNetwork.
    """

    def __init__(self, channels: int, z_channels: int, width: int, depth: int):
        super().__init__()
        self.channels = channels
        self.net = HeadNetwork(channels, z_channels, width, depth)

    @property
    def process(self) -> Diffusion:
        """The unspaced process that it trains on."""
        return diffusion()

    def terms(self, x0: Tensor, z: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of the noise, and the variational term in bits, of each token [N].

        Args:
            x0: clean tokens [N, D].
            z: conditions [N, Z].
            t: steps [N].
            noise: standard normal [N, D].
        """
        x = self.process.q_sample(x0, t, noise)
        eps, v = self.net(x, t, z).float().chunk(2, dim=-1)
        law = self.process.transition(x, t, eps.detach(), v)
        return (noise - eps).square().mean(-1), self.process.variational_bits(x0, x, t, law)

    def forward(self, x0: Tensor, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Loss of each token [N]; see :meth:`terms`."""
        error, bits = self.terms(x0.float(), z, t, noise)
        return error + bits
