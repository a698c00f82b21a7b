"""How the embedded shape of SEED paints: a masked transformer (MaskGIT, arXiv 2202.04200) draws the codes of a VQ
tokenizer from SEED's few. Those tell what a picture shows and less of where, so that all codes at once would be their
mean: a picture of nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.tokenizers.blocks import Block
from vistok.tokenizers.flow import one_noise_for
from vistok.tokenizers.seed_config import SeedConfig

CHOICE = 4.0  # scale of the Gumbel noise on the confidences, falling to none over the steps


class PixelHead(nn.Module):
    """Decoded codes of SEED to the codes [B, L] of a VQ tokenizer in raster order, each one of K; the id K is hidden.

    Raises:
        VistokError: it has no steps, or more than there are codes.
    """

    def __init__(self, config: SeedConfig):
        super().__init__()
        self.length, self.steps, self.mask_id = config.pixel_grid**2, config.pixel_steps, config.pixel_codes
        if not 1 <= self.steps <= self.length:
            raise VistokError(f"'pixel_steps' are 1 to {self.length}, as many as there are codes, got {self.steps}.")
        self.places = nn.Parameter(0.02 * torch.randn(1, self.length, config.width))
        self.codes = nn.Embedding(config.pixel_codes + 1, config.width)
        nn.init.normal_(self.codes.weight, std=0.02)
        self.blocks = nn.ModuleList(
            Block(config.width, config.decode_heads, eps=config.block_norm_eps) for _ in range(config.pixel_layers)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.block_norm_eps)
        self.output = nn.Linear(config.width, config.pixel_codes)

    def forward(self, features: Tensor, codes: Tensor) -> Tensor:
        """Logits [B, L, K] of all codes, from SEED's [B, n, D] and those of the codes [B, L] that are not hidden."""
        x = torch.cat([self.places + self.codes(codes), features], 1)
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x[:, : self.length]))

    def draws(self, count: int, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
        """Uniforms [count, steps, 2, L] to ``paint`` by: the same for every picture, or those of a generator each."""
        return torch.special.ndtr(one_noise_for(count, (self.steps, 2, self.length), generator))

    def paint(self, features: Tensor, draws: Tensor) -> Tensor:
        """Draws all hidden codes in each step, and hides the least sure of them again.

        Args:
            features: of SEED's codes, [B, n, D].
            draws: uniforms [B, steps, 2, L], by which codes are drawn and confidences blurred.

        Returns:
            Codes [B, L].
        """
        codes = torch.full((len(features), self.length), self.mask_id, device=features.device)
        for step in range(self.steps):
            hidden = codes == self.mask_id
            logp = self(features, codes).float().log_softmax(-1)
            uniform, ties = draws[:, step].float().clamp(1e-3, 1 - 1e-3).unbind(1)
            below = (logp.exp().cumsum(-1) < uniform[..., None]).sum(-1)
            codes = torch.where(hidden, below.clamp(max=self.mask_id - 1), codes)
            done = (step + 1) / self.steps
            left = math.floor(self.length * math.cos(math.pi / 2 * done))
            sure = logp.gather(-1, codes[..., None])[..., 0] - CHOICE * (1 - done) * (-ties.log()).log()
            again = sure.masked_fill(~hidden, torch.inf).argsort(1)[:, :left]
            codes = codes.scatter(1, again, self.mask_id)
        return codes
