"""LPIPS v0.1 (arXiv 1801.03924): learned perceptual distance on AlexNet, VGG-16 or SqueezeNet features.

The heads load from the published ``alex.pth``, ``vgg.pth`` and ``squeeze.pth`` (keys ``lin{l}.model.1.weight``), the
backbones from torchvision's published state dicts, both by path. Tables print LPIPS-VGG and LPIPS-Alex: say which.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vistok.errors import VistokError, unknown_name
from vistok.zoo.checkpoint import load_strict, read_state_dict

# name -> (torchvision builder, indices in its ``features`` whose outputs are compared, their channels)
BACKBONES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "alex": ("alexnet", (1, 4, 7, 9, 11), (64, 192, 384, 256, 256)),
    "vgg": ("vgg16", (3, 8, 15, 22, 29), (64, 128, 256, 512, 512)),
    "squeeze": ("squeezenet1_1", (1, 4, 7, 9, 10, 11, 12), (64, 128, 256, 384, 384, 512, 512)),
}
SMALLEST = {"alex": 31, "vgg": 16, "squeeze": 17}  # sides in pixels that their pooling leaves something of


def scale_input(images: Tensor) -> Tensor:
    """Returns what the backbone sees of pictures [B, 3, H, W] in [-1, 1]."""
    shift = images.new_tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = images.new_tensor([0.458, 0.448, 0.450])[:, None, None]
    return (images - shift) / scale


class LinearLayer(nn.Module):
    """One published head: non-negative 1x1 convolution behind a dropout that only training uses."""

    def __init__(self, channels: int):
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class LpipsHead(nn.Module):
    """Distances from backbone features.

    Args:
        channels: of each compared layer.
    """

    def __init__(self, channels: tuple[int, ...]):
        super().__init__()
        for i, c in enumerate(channels):
            self.add_module(f"lin{i}", LinearLayer(c))

    def forward(self, features0: list[Tensor], features1: list[Tensor]) -> list[Tensor]:
        """Returns the spatially averaged distance of each layer.

        Args:
            features0: backbone features [B, C_l, h_l, w_l] of the first pictures.
            features1: of the second.

        Returns:
            One [B, 1, 1, 1] a layer; LPIPS is their sum.
        """
        layers = []
        for linear, f0, f1 in zip(self.children(), features0, features1, strict=True):
            unit0, unit1 = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (f0, f1))
            layers.append(linear((unit0 - unit1).square()).mean((2, 3), keepdim=True))
        return layers


class Lpips(nn.Module):
    """LPIPS of pictures in [-1, 1]; passing [0, 1] is the usual mistake. Build it by :meth:`from_files`.

    Args:
        net: ``"alex"``, ``"vgg"`` or ``"squeeze"``.

    Raises:
        VistokError: for another backbone.
    """

    def __init__(self, net: str = "alex"):
        super().__init__()
        if net not in BACKBONES:
            raise unknown_name("LPIPS backbone", net, list(BACKBONES))
        import torchvision.models

        self.net = net
        builder, self.taps, channels = BACKBONES[net]
        with torch.device("meta"):  # the classifiers are large and not needed, so they never get memory
            network = getattr(torchvision.models, builder)(weights=None)
        self.backbone = network.features[: self.taps[-1] + 1].to_empty(device="cpu")
        self.head = LpipsHead(channels)

    @classmethod
    def from_files(cls, net: str, head: str | Path, backbone: str | Path) -> Lpips:
        """Returns the metric with published weights.

        Args:
            net: backbone name.
            head: ``alex.pth``, ``vgg.pth`` or ``squeeze.pth`` of LPIPS v0.1.
            backbone: torchvision's state dict of the network (``features.*``; classifier keys are not needed).

        Raises:
            VistokError: a file is absent or of another network.
        """
        metric = cls(net)
        load_strict(metric.head, read_state_dict(head), f"LPIPS v0.1 head of '{net}'")
        state = read_state_dict(backbone)
        features = {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
        needed = metric.backbone.state_dict()  # the last layers of some networks are not compared
        compared = {key: value for key, value in features.items() if key in needed}
        load_strict(metric.backbone, compared, f"{BACKBONES[net][0]} of torchvision")
        return metric.eval().requires_grad_(False)

    def _features(self, images: Tensor) -> list[Tensor]:
        x, tapped = scale_input(images), []
        for i, layer in enumerate(self.backbone):
            x = layer(x)
            if i in self.taps:
                tapped.append(x)
        return tapped

    def forward(self, images0: Tensor, images1: Tensor) -> Tensor:
        """Returns the distance of each pair, [B].

        Raises:
            VistokError: the sizes differ, or are too small for the backbone.
        """
        if images0.shape != images1.shape:
            raise VistokError(
                f"pictures of {list(images0.shape)} and {list(images1.shape)} cannot be compared by LPIPS."
            )
        height, width = images0.shape[-2:]
        if min(height, width) < SMALLEST[self.net]:
            raise VistokError(
                f"LPIPS on '{self.net}' needs pictures of at least {SMALLEST[self.net]} pixels a side, got "
                f"{width}x{height}: enlarge both sides, or take {min(SMALLEST, key=SMALLEST.get)}, which needs "
                f"{min(SMALLEST.values())}."
            )
        return sum(self.head(self._features(images0), self._features(images1))).flatten()
