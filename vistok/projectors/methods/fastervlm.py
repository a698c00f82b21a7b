"""FasterVLM (arXiv 2412.01818, first version): the patches that CLS attends to most in the last layer but one.

That is VTC-CLS with an ensemble of one layer; both names are kept, as both are compared with.
"""

from __future__ import annotations

from vistok.projectors.methods.vtc_cls import VtcCls


class FasterVLM(VtcCls):
    """Keeps the patches that CLS attends to most.

    Args:
        keep: tokens of a view (int), or share of them (float).
    """

    name = "fastervlm"

    def __init__(self, keep: int | float = 0.25) -> None:
        super().__init__(keep, start=-2)
