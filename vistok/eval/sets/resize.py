"""Image resizing as every evaluation library does it, batched and on any device.

They are separable, so most are a pair of small matrices: ``rows @ image @ columns.T``. What differs is the kernel,
whether it widens when it shrinks a picture (antialias), where pixel centres lie, and what is rounded when:

========================  ========================================================================================
``clean``                 PIL bicubic on float channels, clipped, not rounded (clean-fid, arXiv 2104.11222)
``pytorch-fid``           bilinear, no antialias (pytorch-fid; clean-fid's ``legacy_pytorch``)
``tf1``                   bilinear, no antialias, pixel centres at integers (the original FID code, ADM's evaluator,
                          torch-fidelity; clean-fid's ``legacy_tensorflow``)
``torchmetrics``          bilinear, antialias
``pil``                   PIL bicubic on uint8: rounded after each of the two passes (DINOv2, CLIP)
========================  ========================================================================================

Values stay in 0..255. clean-fid runs PIL on one channel of one picture at a time; this agrees with it to 2e-4 grey
levels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vistok.errors import unknown_name


def _box(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x <= 0.5)).double()


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos3(x: Tensor) -> Tensor:
    return torch.where((x >= -3) & (x < 3), torch.sinc(x) * torch.sinc(x / 3), 0.0)


# name -> (kernel, half width)
KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "box": (_box, 0.5),
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos3, 3.0),
}


@functools.lru_cache(maxsize=64)
def resampling_matrix(
    in_size: int, out_size: int, kernel: str, antialias: bool, half_pixel: bool, device: torch.device
) -> Tensor:
    """Returns the weights [out_size, in_size] float32 that resize one axis; every row sums to 1.

    Args:
        in_size: pixels before.
        out_size: pixels after.
        kernel: a name in :data:`KERNELS`.
        antialias: widen the kernel by the shrinking factor.
        half_pixel: pixel i covers [i, i + 1]; otherwise it sits at i, as in TensorFlow 1.
        device: where the matrix is wanted.
    """
    function, support = KERNELS[kernel]
    scale = in_size / out_size
    width = max(scale, 1.0) if antialias else 1.0
    offset = 0.5 if half_pixel else 0.0
    # TensorFlow takes the source index in float32; the interpolation weight is its fraction, so its rounding shows.
    index = torch.arange(out_size, dtype=torch.float64 if half_pixel else torch.float32)
    centres = ((index + offset) * scale - offset).double()  # [out], in pixel indices
    taps = torch.arange(in_size, dtype=torch.float64)
    weights = function((taps - centres[:, None]) / width)
    # PIL cuts the kernel to whole pixels by this rounding of its ends.
    first = (centres + 0.5 - support * width + 0.5).floor().clamp(min=0)[:, None]
    end = (centres + 0.5 + support * width + 0.5).floor().clamp(max=in_size)[:, None]
    weights = torch.where((taps >= first) & (taps < end), weights, 0.0)
    return (weights / weights.sum(1, keepdim=True)).float().to(device)


def torch_bilinear(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Returns pictures [B, C, h, w] float32 resized as by pytorch-fid, which takes torch's own operator."""
    return F.interpolate(images.float(), size, mode="bilinear", align_corners=False)


def pil_bicubic(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Returns uint8 pictures [B, 3, H, W] resized by Pillow's own bicubic, [B, 3, h, w] float32 whole numbers.

    It rounds and clips between its two passes, and Pillow 13 changed which pass comes first for pictures whose height
    shrinks more than their width; so the installed Pillow does it, as in the evaluators that are reproduced.
    """
    height, width = (size, size) if isinstance(size, int) else size
    resized = [
        np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
        for picture in images.permute(0, 2, 3, 1).cpu().numpy()
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).to(images.device).float()


@dataclass(frozen=True)
class Resize:
    """One separable resize convention: kernel, antialiasing, pixel centres, clipping (see the module's table)."""

    kernel: str
    antialias: bool = True
    half_pixel: bool = True
    clip: bool = False

    def __call__(self, images: Tensor, size: int | tuple[int, int]) -> Tensor:
        """Resize pictures with values in 0..255.

        Args:
            images: [B, C, H, W] uint8 or float.
            size: (height, width) or one side of a square.

        Returns:
            [B, C, h, w] float32.
        """
        height, width = (size, size) if isinstance(size, int) else size
        options = (self.kernel, self.antialias, self.half_pixel, images.device)
        x = images.float()
        if width != x.shape[-1]:
            x = x @ resampling_matrix(x.shape[-1], width, *options).T
        if height != x.shape[-2]:
            x = resampling_matrix(x.shape[-2], height, *options) @ x
        return x.clamp(0, 255) if self.clip else x


ResizeFunction = Callable[[Tensor, "int | tuple[int, int]"], Tensor]

RESIZES: dict[str, ResizeFunction] = {
    "clean": Resize("bicubic", clip=True),
    "pytorch-fid": torch_bilinear,
    "tf1": Resize("bilinear", antialias=False, half_pixel=False),
    "torchmetrics": Resize("bilinear"),
    "pil": pil_bicubic,
}


# The networks of the two libraries do not even see the same white: 255 is 0.992 in the one, 1 in the other.
INCEPTION_NORMALISATION = {
    "clean": "(x-128)/128",
    "tf1": "(x-128)/128",
    "torchmetrics": "(x-128)/128",
    "pytorch-fid": "2x/255-1",
}


def inception_input(images: Tensor, convention: str, size: int = 299) -> Tensor:
    """Returns the FID network's input [B, 3, 299, 299] for pictures [B, 3, H, W] in 0..255 under a convention.

    Raises:
        VistokError: for a convention that no Inception protocol uses.
    """
    if convention not in INCEPTION_NORMALISATION:
        raise unknown_name("resize convention of the Inception network", convention, list(INCEPTION_NORMALISATION))
    x = RESIZES[convention](images, size)
    return x / 127.5 - 1 if convention == "pytorch-fid" else (x - 128) / 128
