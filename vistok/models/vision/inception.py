"""The FID Inception network (TensorFlow ``inception-2015-12-05``) in the key layout of its published port.

Loads ``pt_inception-2015-12-05-6726825d.pth`` (pytorch-fid) and ``weights-inception-2015-12-05-6726825d.pth``
(torch-fidelity), which hold the same tensors. Against torchvision's Inception v3 (arXiv 1512.00567): average pools do
not count the padding, the last block pools by maximum, there are 1008 classes and no auxiliary head. torchvision's own
weights give features whose distance is not FID.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.ops.convolution import packed_convolution, packs_convolutions
from vistok.ops.linear import PackedWeight
from vistok.zoo import resolve
from vistok.zoo.checkpoint import load_strict, read_state_dict

WEIGHT_FILES = "pt_inception-2015-12-05-6726825d.pth or weights-inception-2015-12-05-6726825d.pth"
FEATURE_DIMS = (64, 192, 768, 2048)


class ConvNormAct(nn.Module):
    """Convolution without bias, batch norm (eps 1e-3), ReLU; on a CPU the weight is packed once the norm is folded."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], **conv: object):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False, **conv)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)
        self._packed = PackedWeight()

    def forward(self, x: Tensor, average: nn.Module | None = None) -> Tensor:
        """Returns the layer's output for ``x``, or for its ``average``, a pool that a 1x1 convolution may precede."""
        if isinstance(self.bn, nn.Identity) and packs_convolutions(x):
            x = packed_convolution(x, self.conv, self._packed)
            x = x if average is None else average(x)  # the same behind the convolution, of fewer channels
            return F.relu(x, inplace=True)
        x = x if average is None else average(x)
        return F.relu(self.bn(self.conv(x)), inplace=True)


def average_pool() -> nn.Module:
    """Returns a 3x3 average pool over the pixels that exist, as TensorFlow pads."""
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """35x35 block: 1x1, 5x5, double 3x3, pool."""

    def __init__(self, in_channels: int, pool_features: int):
        super().__init__()
        self.branch1x1 = ConvNormAct(in_channels, 64, 1)
        self.branch5x5_1 = ConvNormAct(in_channels, 48, 1)
        self.branch5x5_2 = ConvNormAct(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvNormAct(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvNormAct(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormAct(96, 96, 3, padding=1)
        self.pool = average_pool()
        self.branch_pool = ConvNormAct(in_channels, pool_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), branch5x5, branch3x3dbl, self.branch_pool(x, self.pool)], 1)


class BlockB(nn.Module):
    """Reduction to 17x17."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.branch3x3 = ConvNormAct(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNormAct(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvNormAct(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormAct(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), branch3x3dbl, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """17x17 block with factorised 7x7 convolutions."""

    def __init__(self, in_channels: int, channels_7x7: int):
        super().__init__()
        c, row, column = channels_7x7, {"padding": (0, 3)}, {"padding": (3, 0)}
        self.branch1x1 = ConvNormAct(in_channels, 192, 1)
        self.branch7x7_1 = ConvNormAct(in_channels, c, 1)
        self.branch7x7_2 = ConvNormAct(c, c, (1, 7), **row)
        self.branch7x7_3 = ConvNormAct(c, 192, (7, 1), **column)
        self.branch7x7dbl_1 = ConvNormAct(in_channels, c, 1)
        self.branch7x7dbl_2 = ConvNormAct(c, c, (7, 1), **column)
        self.branch7x7dbl_3 = ConvNormAct(c, c, (1, 7), **row)
        self.branch7x7dbl_4 = ConvNormAct(c, c, (7, 1), **column)
        self.branch7x7dbl_5 = ConvNormAct(c, 192, (1, 7), **row)
        self.pool = average_pool()
        self.branch_pool = ConvNormAct(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch7x7 = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        branch7x7dbl = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branch7x7dbl = self.branch7x7dbl_5(self.branch7x7dbl_4(branch7x7dbl))
        return torch.cat([self.branch1x1(x), branch7x7, branch7x7dbl, self.branch_pool(x, self.pool)], 1)


class BlockD(nn.Module):
    """Reduction to 8x8."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.branch3x3_1 = ConvNormAct(in_channels, 192, 1)
        self.branch3x3_2 = ConvNormAct(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNormAct(in_channels, 192, 1)
        self.branch7x7x3_2 = ConvNormAct(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvNormAct(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvNormAct(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        branch7x7x3 = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        branches = [self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(branch7x7x3)]
        return torch.cat([*branches, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """8x8 block; the published graph pools by average in the first and by maximum in the second."""

    def __init__(self, in_channels: int, pool: nn.Module):
        super().__init__()
        self.branch1x1 = ConvNormAct(in_channels, 320, 1)
        self.branch3x3_1 = ConvNormAct(in_channels, 384, 1)
        self.branch3x3_2a = ConvNormAct(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvNormAct(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvNormAct(in_channels, 448, 1)
        self.branch3x3dbl_2 = ConvNormAct(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvNormAct(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvNormAct(384, 384, (3, 1), padding=(1, 0))
        self.pool = pool
        self.branch_pool = ConvNormAct(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branch3x3 = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        branch3x3dbl = [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        averaged = isinstance(self.pool, nn.AvgPool2d)
        pooled = self.branch_pool(x, self.pool) if averaged else self.branch_pool(self.pool(x))
        return torch.cat([self.branch1x1(x), *branch3x3, *branch3x3dbl, pooled], 1)


class FidInception(nn.Module):
    """The network; call it on pixels from :func:`vistok.eval.sets.resize.inception_input`."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormAct(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNormAct(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNormAct(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNormAct(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNormAct(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, average_pool())
        self.Mixed_7c = BlockE(2048, nn.MaxPool2d(3, stride=1, padding=1))
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor, dim: int = 2048) -> dict[str, Tensor]:
        """Returns the features of pictures.

        Args:
            x: [B, 3, 299, 299] normalised pixels.
            dim: which layer the features are taken from: 64, 192, 768 or 2048. The published FID uses 2048.

        Returns:
            ``features`` [B, dim]; with ``dim=2048`` also ``spatial`` [B, 2023] (of sFID: first 7 channels of ADM's
            ``mixed_6/conv``, flattened height, width, channel) and ``logits`` [B, 1008] without the bias.

        Raises:
            VistokError: for another ``dim``.
        """
        if dim not in FEATURE_DIMS:
            raise VistokError(f"the Inception network has features of {FEATURE_DIMS} dimensions, not {dim}.")
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        if dim == 64:
            return {"features": x.mean((2, 3))}
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        if dim == 192:
            return {"features": x.mean((2, 3))}
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))))
        spatial = self.Mixed_6d.branch1x1(x)[:, :7].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_6e(self.Mixed_6d(x))
        if dim == 768:
            return {"features": x.mean((2, 3))}
        # Float32 from here on, also behind a bfloat16 network: a mean of 64 values has digits that those do not.
        features = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3), dtype=torch.float32)
        return {"features": features, "spatial": spatial, "logits": features @ self.fc.weight.T.float()}


def load_inception(path: str | Path) -> FidInception:
    """Returns the network with its published weights, in evaluation mode.

    Args:
        path: ``pt_inception-2015-12-05-6726825d.pth``, torch-fidelity's file, or the same tensors as safetensors; a
            hub id ``owner/name:file`` is fetched.

    Raises:
        VistokError: the file is absent, is a TorchScript archive, or holds another network.
    """
    network = FidInception()
    file = resolve(path)
    if _is_torchscript(file):
        raise VistokError(
            f"'{path}' is a TorchScript archive (the format of clean-fid and StyleGAN), which holds code beside the "
            f"weights and is not run: give {WEIGHT_FILES}, which hold the same tensors."
        )
    state = read_state_dict(file)
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}  # optional in files
    load_strict(network, counters | state, f"FID Inception network ({WEIGHT_FILES})")
    return network.eval().requires_grad_(False)


def _is_torchscript(file: Path) -> bool:
    """Whether a file was written by ``torch.jit.save``: a zip whose one folder holds ``code/``."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Put every batch norm of an evaluated network into the convolution before it; same values, less work."""
    for module in network.modules():
        if isinstance(module, ConvNormAct):
            module.conv = nn.utils.fusion.fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
    return network
