"""The perceptual and the adversarial term that tokenizers are trained with on photographs (arXiv 2406.06525)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.tokenizers.discriminator import PatchDiscriminator, discriminator_loss, generator_loss


@dataclass(frozen=True, kw_only=True)
class AdversarialData:
    """Entries of ``data``.

    Attributes:
        adversarial_weight: of the adversarial term (LlamaGen's: 0.5); none if 0.
        adversarial_from: the step from which on it counts (20,000).
    """

    adversarial_weight: float = 0.0
    adversarial_from: int = 0


@dataclass(frozen=True, kw_only=True)
class PerceptualInit:
    """Entries of ``init``: the files of the perceptual term, whose weights cannot be shipped; no such term without.

    Attributes:
        lpips: LPIPS's ``vgg.pth``.
        vgg: torchvision's VGG-16.
    """

    lpips: str | None = None
    vgg: str | None = None


class Adversary(nn.Module):
    """A patch discriminator that is trained in the same step as the tokenizer.

    The reference gives it an optimizer of its own; here one backward pass serves both, as each loss reaches its own
    weights alone.
    """

    def __init__(self):
        super().__init__()
        self.discriminator = PatchDiscriminator()

    def forward(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the tokenizer minimises and what the discriminator does, on pictures [B, 3, H, W] in [-1, 1]."""
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        fooled = generator_loss(torch.func.functional_call(self.discriminator, fixed, (reconstruction,)))
        told = discriminator_loss(self.discriminator(images), self.discriminator(reconstruction.detach()))
        return fooled, told


def build_adversary(data: AdversarialData) -> Adversary | None:
    """Returns the adversary of a recipe that has an adversarial term."""
    return Adversary() if data.adversarial_weight else None


def adversarial_weight(data: AdversarialData, step: int) -> dict[str, Tensor]:
    """Returns ``adversarial``, the weight of the adversarial term in a step; nothing where there is no such term."""
    if not data.adversarial_weight:
        return {}
    return {"adversarial": torch.tensor(data.adversarial_weight if step >= data.adversarial_from else 0.0)}


def perceptual_distance(init: PerceptualInit) -> nn.Module | None:
    """Returns LPIPS from the files that ``init`` names; None where a recipe names none.

    Raises:
        VistokError: only one of the two is named, or a file is not what it should be.
    """
    if init.lpips is None and init.vgg is None:
        return None
    if init.lpips is None or init.vgg is None:
        raise VistokError("the perceptual term needs two files: name both 'init.lpips' and 'init.vgg'.")
    from vistok.models.vision.lpips import Lpips

    return Lpips.from_files("vgg", init.lpips, init.vgg)
