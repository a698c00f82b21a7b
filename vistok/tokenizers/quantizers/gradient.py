"""How gradients pass a quantizer: the straight-through estimator and the rotation trick (Fifty et al., arXiv
2410.06424).
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from vistok.errors import unknown_name


def straight_through(z: Tensor, code: Tensor) -> Tensor:
    """The code's value with the gradient of z unchanged, [..., D]."""
    return z + (code - z).detach()


def rotation_trick(z: Tensor, code: Tensor) -> Tensor:
    """The code's value with the gradient of z rotated and scaled as z is to reach the code.

    The map from z to the code, a rotation in the plane of both and a scaling, is held constant, so that gradients keep
    their angle to the code: latents of one cell get different gradients, which straight-through never gives.

    Shape:
        z, code, result [..., D].
    """
    here, there = F.normalize(z, dim=-1).detach(), F.normalize(code, dim=-1).detach()
    middle = F.normalize(here + there, dim=-1)
    scale = (code.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp_min(1e-12)).detach()
    reflected = z - 2 * middle * (middle * z).sum(-1, keepdim=True)
    rotated = scale * (reflected + 2 * there * (here * z).sum(-1, keepdim=True))
    return rotated + (code - rotated).detach()  # exactly the code, also where z is 0


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "straight_through": straight_through,
    "rotation": rotation_trick,
}


def estimator(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The gradient estimator of a name.

    Raises:
        VistokError: there is none of that name.
    """
    if name not in ESTIMATORS:
        raise unknown_name("gradient estimator", name, list(ESTIMATORS))
    return ESTIMATORS[name]
