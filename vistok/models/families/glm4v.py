"""GLM-4.1V: pictures of any size, with positions of three axes, seen after the tower's 2x2 merging."""

from __future__ import annotations

from vistok.models.families.qwen2_vl import MergedPatches


class Glm4v(MergedPatches):
    """The family ``glm4v``: tower and positions are laid as Qwen2-VL's; its videos fill placeholders of pictures."""
