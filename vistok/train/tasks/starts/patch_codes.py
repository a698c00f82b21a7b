"""Codes that say what is in their own patch: where the embedded VQ tokenizer starts, and what holds it there.

A convolutional encoder that is only asked for pixels spreads what it has to say over neighbouring codes: a code then
means little by itself, flat areas are dithered, and a generator has a hard language to learn. Here latents are drawn
towards a fixed linear map of their own patch, its principal components on the unit sphere, and the codebook starts as
the k-means of such points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SCALE = 0.5  # of a patch's deviation (a Euclidean norm of pixels in [-1, 1]) beside the constant first channel
ITERATIONS = 20


class PatchComponents(nn.Module):
    """Pictures, or latent maps, to the principal components of each patch.

    Args:
        images: [B, C, H, W] whose patches the components are of.
        patch: side of a patch.
        count: how many components, the strongest first.
    """

    def __init__(self, images: Tensor, patch: int, count: int):
        super().__init__()
        self.patch = patch
        values = self._patches(images).flatten(0, 2)
        self.register_buffer("mean", values.mean(0), persistent=False)
        variances, directions = torch.linalg.eigh(torch.cov(values.T))
        directions = directions[:, -count:].flip(1)
        # The sign of a component is chance: its largest entry is made positive.
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        self.register_buffer("directions", directions * largest.sign(), persistent=False)
        self.register_buffer("deviations", variances[-count:].flip(0).sqrt(), persistent=False)

    def _patches(self, images: Tensor) -> Tensor:
        return rearrange(images, "b c (h p) (w q) -> b h w (p q c)", p=self.patch, q=self.patch)

    def forward(self, images: Tensor) -> Tensor:
        """Returns components [B, count, H/p, W/p] of pictures [B, C, H, W]."""
        return ((self._patches(images) - self.mean) @ self.directions).movedim(-1, 1)


class PatchCodes(nn.Module):
    """Pictures to one point of the unit sphere for each patch: a constant, then the principal components.

    Args:
        images: pictures [B, 3, H, W] in [-1, 1] whose patches the components are of.
        patch: side of a patch in pixels.
        dim: channels D of a point.
    """

    def __init__(self, images: Tensor, patch: int, dim: int):
        super().__init__()
        self.components = PatchComponents(images, patch, dim - 1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns points [B, D, H/p, W/p] of pictures [B, 3, H, W]."""
        deviation = SCALE / 2 * self.components(images)
        return F.normalize(F.pad(deviation, (0, 0, 0, 0, 1, 0), value=1.0), dim=1)


def distance_to_points(latents: Tensor, points: Tensor) -> Tensor:
    """Returns the mean squared distance of latents [B, D, ...], once normalised, from points of the unit sphere."""
    return (F.normalize(latents.float(), dim=1) - points).square().sum(1).mean()


@torch.no_grad()
def spherical_kmeans(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns centres [count, D] of points [N, D] on the unit sphere.

    The first are drawn with probabilities proportional to squared distances from the mean, as rare points (an object's
    edges) are the ones that need codes of their own. Centres that lose all points are drawn anew.
    """
    weight = (points - points.mean(0)).square().sum(1)
    centres = points[torch.multinomial(weight, count, generator=generator)]
    for _ in range(ITERATIONS):
        nearest = torch.cat([(part @ centres.T).argmax(1) for part in points.split(1 << 14)])
        totals = torch.zeros_like(centres).index_add_(0, nearest, points)
        lost = torch.bincount(nearest, minlength=count) == 0
        totals[lost] = points[torch.multinomial(weight, count, generator=generator)][lost]
        centres = F.normalize(totals, dim=1)
    return centres
