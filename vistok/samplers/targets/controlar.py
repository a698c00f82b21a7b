"""ControlAR as a target of the draft-verify loop: LlamaGen's, with the control's streams in its state."""

from __future__ import annotations

import torch

from vistok.models.controlar import ControlAR
from vistok.models.interface import Condition
from vistok.samplers.params import SamplingParams
from vistok.samplers.targets.llamagen import ImageTarget


class ControlTarget(ImageTarget):
    """ImageTarget whose conditional half follows the control; the unconditional half sees zeros.

    The encoder runs once, and what it adds is kept for the whole picture.
    """

    def __init__(self, model: ControlAR, condition: Condition, params: SamplingParams, nodes: int = 1):
        super().__init__(model, condition, params, nodes)
        streams = model.streams(condition.control)
        added = {layer: stream.expand(self.batch, -1, -1) for layer, stream in streams.items()}
        if self.guided:
            added = {layer: torch.cat([stream, torch.zeros_like(stream)]) for layer, stream in added.items()}
        self.state.added = added
