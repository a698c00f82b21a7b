"""PatchGAN discriminator and the adversarial losses that train VQ tokenizers (Isola et al., arXiv 1611.07004)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import unknown_name

LOSSES = ("hinge", "vanilla", "non_saturating")


class PatchDiscriminator(nn.Module):
    """One logit for each patch of a picture; parameter names of LlamaGen's published ``discriminator`` entry.

    Args:
        channels: of the picture.
        width: of the first layer.
        layers: strided layers.

    Shape:
        [B, channels, H, W] -> [B, 1, h, w].
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3):
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before = width
        for i in range(1, layers + 1):
            after = width * min(2**i, 8)
            stride = 2 if i < layers else 1
            blocks += [nn.Conv2d(before, after, 4, stride, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
            before = after
        self.main = nn.Sequential(*blocks, nn.Conv2d(before, 1, 4, padding=1))
        self.apply(self._init)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)


def discriminator_loss(real: Tensor, fake: Tensor, kind: str = "hinge", swapped: bool = False) -> Tensor:
    """What the discriminator minimises.

    Args:
        real, fake: its logits on real pictures and on reconstructions.
        kind: ``hinge``, ``vanilla`` or ``non_saturating``.
        swapped: reproduce the reference's non-saturating loss, which hands logits and targets to the
            cross-entropy in the wrong order.

    Raises:
        VistokError: unknown kind.
    """
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    if kind == "vanilla":
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
    if kind == "non_saturating":
        return 0.5 * (_cross_entropy(real, 1.0, swapped) + _cross_entropy(fake, 0.0, swapped))
    raise unknown_name("adversarial loss", kind, list(LOSSES))


def generator_loss(fake: Tensor, kind: str = "hinge", swapped: bool = False) -> Tensor:
    """What the tokenizer minimises, from the discriminator's logits on reconstructions; see ``discriminator_loss``."""
    if kind in ("hinge", "vanilla"):
        return -fake.mean()
    if kind == "non_saturating":
        return _cross_entropy(fake, 1.0, swapped)
    raise unknown_name("adversarial loss", kind, list(LOSSES))


def _cross_entropy(logits: Tensor, target: float, swapped: bool) -> Tensor:
    targets = torch.full_like(logits, target)
    return F.binary_cross_entropy_with_logits(*((targets, logits) if swapped else (logits, targets)))
