"""Drafting text with Clover's sequential heads (arXiv 2405.00263), in the rounds and trees of EAGLE heads."""

from __future__ import annotations

from typing import Literal

from vistok.errors import VistokError
from vistok.models.heads.clover import Clover
from vistok.samplers.drafters.eagle_head import EagleHead
from vistok.samplers.interface import DraftPolicy
from vistok.samplers.policies.dynamic import DynamicTree


class CloverHead(EagleHead):
    """Clover's heads behind the loop's drafter interface.

    Args:
        network: made for the target, with its dtype and on its device.
        policy: which nodes are worth proposing; a small tree if None, as Clover's batches want; ``auto`` as of
            ``EagleHead``.

    Raises:
        VistokError: a network of another kind.
    """

    def __init__(self, network: Clover, policy: DraftPolicy | Literal["auto"] | None = None):
        if not isinstance(network, Clover):
            raise VistokError(
                f"CloverHead drafts with a Clover network, not with one of type {type(network).__name__}."
            )
        self.network = network
        self._grow_by(policy or DynamicTree(8, 2, 3))
