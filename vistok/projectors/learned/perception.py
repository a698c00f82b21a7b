"""Visual Perception Token (arXiv 2502.17425): the projectors of the second look.

Features of a second encoder enter the language model conditioned on the hidden state that asked for them: a rank-one
attention without softmax. ``PerceptionProjector`` reads a sequence of features (DINOv2), ``PatchedPerceptionProjector``
a map of them (SAM), which it first shrinks. Published key layout.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vistok.errors import VistokError

_FEATURE, _CONDITION, _PATCHED = "linear_feature.weight", "linear_condition.weight", "conv_feature.weight"


class PerceptionProjector(nn.Module):
    """``h + (h . c) c``, where h are projected features and c is the projected condition.

    Args:
        input_dim: width of the features.
        output_dim: width D of the language model.
        projector_scale: hidden states that make up one condition.
    """

    def __init__(self, input_dim: int, output_dim: int, projector_scale: int = 1) -> None:
        super().__init__()
        self.projector_scale = projector_scale
        self.layernorm_feature = nn.LayerNorm(input_dim)
        self.linear_feature = nn.Linear(input_dim, output_dim)
        self.layernorm_condition = nn.LayerNorm(output_dim * projector_scale)
        self.linear_condition = nn.Linear(output_dim * projector_scale, output_dim)

    def project(self, features: Tensor) -> Tensor:
        """Features without a condition, [B, N, D]."""
        return self.linear_feature(self.layernorm_feature(features))

    def forward(self, features: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Visual tokens of the second look.

        Args:
            features: [B, N, C].
            conditions: hidden states that asked for them, [B * projector_scale, D], those of one picture together; None
                in the first of the two passes of training.

        Returns:
            [B, N, D].

        Raises:
            VistokError: there are not ``projector_scale`` conditions for each picture.
        """
        projected = self.project(features)
        if conditions is None:
            return projected
        needed = len(features) * self.projector_scale
        if conditions.numel() != needed * conditions.shape[-1]:
            raise VistokError(
                f"{len(features)} pictures need {needed} hidden states of control tokens, got "
                f"{conditions.numel() // conditions.shape[-1]}: emit {self.projector_scale} for each picture."
            )
        joined = conditions.reshape(len(features), -1)
        condition = self.linear_condition(self.layernorm_condition(joined))
        weight = torch.einsum("bnd,bd->bn", projected, condition)
        return projected + weight[..., None] * condition[:, None]

    @classmethod
    def from_checkpoint(cls, path: str | Path, prefix: str = "") -> PerceptionProjector:
        """The projector of a published checkpoint, of the class that its keys tell.

        Args:
            path: file with the projector's tensors, alone or within a whole model.
            prefix: what stands before its keys there; found by itself if empty and there is one projector.

        Raises:
            VistokError: there is no such projector, several and no prefix, or keys are missing or unexpected.
        """
        from vistok.zoo.checkpoint import load_strict, read_state_dict

        state = read_state_dict(path)
        found = sorted(key.removesuffix(_CONDITION) for key in state if key.endswith(_CONDITION))
        if prefix:
            found = [name for name in found if name == prefix]
        if len(found) != 1:
            several = f"several projectors ({', '.join(found)})" if found else "no perception projector"
            raise VistokError(f"'{path}' holds {several}: name one by its prefix, which ends before '{_CONDITION}'.")
        state = {key.removeprefix(found[0]): value for key, value in state.items() if key.startswith(found[0])}
        kind = PatchedPerceptionProjector if _PATCHED in state else PerceptionProjector
        width, joined = state[_CONDITION].shape
        module = kind(state[_FEATURE].shape[1], width, joined // width)
        load_strict(module, state, str(path))
        return module


class PatchedPerceptionProjector(PerceptionProjector):
    """The same for a map of features [B, C, H, W], shrunk by squares of four to [B, HW/16, D].

    ``linear_feature`` is in the published files and takes no part.
    """

    def __init__(self, input_dim: int, output_dim: int, projector_scale: int = 1) -> None:
        super().__init__(input_dim, output_dim, projector_scale)
        self.conv_feature = nn.Conv2d(input_dim, output_dim, kernel_size=4, stride=4)

    def project(self, features: Tensor) -> Tensor:
        """Features without a condition, [B, HW/16, D]."""
        normal = self.layernorm_feature(features.movedim(1, -1)).movedim(-1, 1)
        return self.conv_feature(normal).flatten(2).transpose(1, 2)
