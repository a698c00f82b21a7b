"""Targets: the models that drafts are checked against, by the family of the model.

Only here samplers know particular models. Another package adds a target by an entry point of the group
``vistok.targets`` that bears its family's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from vistok.models.interface import Condition
from vistok.registry import Registry

if TYPE_CHECKING:
    from vistok.samplers.loop import Target
    from vistok.samplers.params import SamplingParams

_CODES = "vistok.samplers.targets.codes:CodeTarget"
TARGETS = Registry(
    "target",
    {
        "llamagen": "vistok.samplers.targets.llamagen:ImageTarget",
        "janus": _CODES,
        "emu3": _CODES,
        "chameleon": _CODES,
        "seed-llama": _CODES,
        "controlar": "vistok.samplers.targets.controlar:ControlTarget",
    },
    "vistok.targets",
    needs=("prefill", "forward", "commit"),
)


def target_of(model: nn.Module, condition: Condition, params: SamplingParams, nodes: int) -> Target:
    """Returns the target that runs a generator.

    Args:
        model: the generator.
        condition: what the images show.
        params: guidance and its interval.
        nodes: most nodes of a tree, for which the cache has room.

    Raises:
        VistokError: no target is known for the model's family.
    """
    return TARGETS[model.family](model, condition, params, nodes)
