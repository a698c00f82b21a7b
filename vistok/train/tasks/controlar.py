"""Train a ControlAR on pictures and their control pictures (arXiv 2410.02705): all weights, from a LlamaGen of captions
or of classes, or the control's own alone.

Control pictures follow from scenes exactly: outlines of the objects (``canny``), and maps of their shapes (``seg``). A
picture is trained with one kind, in turn.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes.controls import RENDERERS
from vistok.errors import VistokError, unknown_name
from vistok.models.controlar import ControlAR
from vistok.models.interface import Control
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.models.text_encoder import TextEncoder, left_pad
from vistok.train.options import start_network
from vistok.train.recipe import Recipe
from vistok.train.sources import Draw, Source
from vistok.train.tasks.llamagen import LlamaGenData, LlamaGenObjective, LlamaGenTask
from vistok.zoo import resolve
from vistok.zoo.pretrained import BASE
from vistok.zoo.registry import card_of_folder


@dataclass(frozen=True, kw_only=True)
class ControlARData(LlamaGenData):
    """Entries of ``data`` of the ``controlar`` task, beside those of LlamaGenData.

    Attributes:
        controls: kinds of control pictures.
        tune_generator: train the weights of ``init.gpt`` as well, as published. Without, what is exported are the
            control's weights alone, and at strength 0 the generator draws what it drew.
    """

    controls: tuple[str, ...] = ("canny", "seg")
    tune_generator: bool = True


class ControlARObjective(LlamaGenObjective):
    """Cross-entropy of image codes given captions or classes, and control pictures of one kind."""

    gpt: ControlAR

    def states(self, tokens: Tensor, control: Tensor, kind: Tensor, **condition: Tensor) -> list[Tensor]:
        """Returns the states after each layer that tokens [B, N] are predicted from.

        Args:
            tokens, condition: see ``LlamaGenObjective.states``.
            control: control pictures [B, 3, H, W].
            kind: their kind, the same of all, by its number among the generator's, [B].
        """
        controls = [Control(control, self.gpt.controls[int(kind[0])])]
        if self.text_encoder is None:
            return self.gpt.controlled_states(tokens[:, :-1], condition["labels"], None, controls)
        words, mask = condition["input_ids"], condition["attention_mask"]
        encoded = self.text_encoder.encoder(input_ids=words, attention_mask=mask).last_hidden_state
        return self.gpt.controlled_states(tokens[:, :-1], *left_pad(encoded, mask), controls)


def begin_control(model: ControlAR) -> None:
    """Draws new weights for the way from control features into the stream, which ends in zeros."""
    for module in (model.adapter_mlp, model.condition_mlp, model.condition_layers):
        for linear in module.modules():
            if isinstance(linear, nn.Linear):
                nn.init.xavier_uniform_(linear.weight)
    for network in model.condition_layers:
        nn.init.zeros_(network.fc2.weight)


def shared_names(model: ControlAR) -> set[str]:
    """Returns the names of the weights that are those of its LlamaGen."""
    with torch.device("meta"):
        return set(LlamaGen(model.config).state_dict())


class ControlARTask(LlamaGenTask):
    """The ``controlar`` task: see ControlARData, and LlamaGenInit, whose ``gpt`` may be a LlamaGen or a ControlAR."""

    data_class = ControlARData
    paper = "2410.02705"

    def __init__(self, recipe: Recipe):
        if recipe.data.get("source", "scenes") != "scenes":
            raise VistokError("control pictures are known of scenes alone: leave 'data.source' out.")
        super().__init__(recipe)
        if not self.data.tune_generator and (self.init.gpt is None or self.data.tune_captions):
            raise VistokError(
                "'data.tune_generator: false' trains the control of a generator alone: name that as 'init.gpt', and "
                "leave 'data.tune_captions' out."
            )

    def _generator(self, shape: dict[str, Any]) -> ControlAR:
        if strange := [kind for kind in self.data.controls if kind not in RENDERERS]:
            raise unknown_name("kind of 'data.controls'", strange[0], list(RENDERERS))
        shape |= {"controls": self.data.controls, "downsample": self.vq.config.downsample}
        model, self.base = self.recipe.model, self.init.gpt
        card = None if self.base is None else card_of_folder(resolve(self.base))
        if self.base is None:
            gpt = start_network(ControlAR, None, model, shape)
        elif card is not None and card.family == ControlAR.family:
            gpt = start_network(ControlAR, self.base, model, shape)
            self.base = card.parts.get(BASE)
        else:
            base = LlamaGen.from_pretrained(self.base)
            shape = {field.name: getattr(base.config, field.name) for field in fields(LlamaGenConfig)} | shape
            gpt = start_network(ControlAR, None, model, shape)
            gpt.load_state_dict(gpt.state_dict() | base.state_dict())  # the control's own weights are new
            begin_control(gpt)
        if not self.data.tune_generator:
            if self.base is None:
                raise VistokError(
                    f"'{self.init.gpt}' shares its generator's weights with no other: train them as well by "
                    "'data.tune_generator: true'."
                )
            shared = shared_names(gpt)
            for name, parameter in gpt.named_parameters():
                parameter.requires_grad_(name not in shared)
        return gpt

    def objective(self, gpt: ControlAR, text: TextEncoder | None) -> ControlARObjective:
        """Returns what is trained."""
        return ControlARObjective(gpt, text, self.term(gpt))

    def term(self, gpt: ControlAR) -> nn.Module | None:
        """Returns a loss beside the published one, see LlamaGenObjective; none."""
        return None

    def condition(self, source: Source, draw: Draw) -> dict[str, Tensor]:
        """Returns what the objective is told about pictures beside their codes."""
        kinds = self.data.controls
        kind = int(draw.passes[0] + draw.index[0] // self.recipe.batch_size) % len(kinds)
        control = RENDERERS[kinds[kind]](source.scenes(draw.index), self.data.size)
        return super().condition(source, draw) | {"control": control, "kind": torch.full_like(draw.index, kind)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the cross-entropy of held-out pictures, in nats a code, with their controls and without."""
        gpt, held_out, index = self.model.gpt, self.source.held_out(), self.held_out_index()
        device = gpt.rope.device
        tokens = torch.cat([self.extract(held_out, part) for part in index.split(128)]).to(device)
        told = self.condition(held_out, Draw(index, torch.zeros_like(index)))
        told = {name: value.to(device) for name, value in told.items()}
        with_control = self.model(**told, tokens=tokens)[1]["codes"].item()
        untold = gpt(tokens[:, :-1], gpt.null_condition(len(index)))
        without = F.cross_entropy(untold.flatten(0, 1), tokens.flatten()).item()
        return {"held_out_loss": with_control, "held_out_loss_without_control": without}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the generator as an embedded model, or what the control adds to one."""
        if self.data.tune_generator:
            super().export(directory, metrics, steps)
            return
        gpt = self.model.gpt
        others = shared_names(gpt) | set(gpt.idle_keys)
        gpt.save_pretrained(directory, torch.bfloat16, without=others)
        parts = {"tokenizer": self.init.vq, BASE: self.base}
        task = "class-to-image"
        if self.model.text_encoder is not None:
            task, parts["text_encoder"] = "text-to-image", self.init.text_encoder or self.base
        network = nn.ParameterList(p for name, p in gpt.named_parameters() if name not in others)
        self.write_card(directory, network, task, gpt.family, metrics, steps, parts, self.paper)
