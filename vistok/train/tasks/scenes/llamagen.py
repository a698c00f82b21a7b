"""What scenes teach a LlamaGen beside their codes: plans, facts of captions, what codes show, and untrue captions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.data.scenes import Scenes, statements
from vistok.data.scenes.language import Statement
from vistok.errors import VistokError, unknown_name
from vistok.models.llamagen import LlamaGen
from vistok.models.text_encoder import TextEncoder
from vistok.train.options import Fraction
from vistok.train.sources import Draw, ScenesSource
from vistok.train.tasks.llamagen import LlamaGenData, LlamaGenObjective, LlamaGenTask, captioned_states
from vistok.train.tasks.scenes.captions import facts
from vistok.train.tasks.scenes.contrast import contrast_loss, decisive, untrue
from vistok.train.tasks.scenes.plans import Plan, plan
from vistok.train.tasks.scenes.reader import SceneReader, colour_loss, count_colours

TERMS = ("now", "left", "next", "told", "colour", "contrast")


@dataclass(frozen=True, kw_only=True)
class SupervisedLlamaGenData(LlamaGenData):
    """Entries of ``data``, beside those of LlamaGenData.

    Attributes:
        supervision: weights of ``colour_loss`` (``colour``), of ``contrast_loss`` (``contrast``) and of the
            cross-entropies of ``SceneReader``, by name; 0 if absent.
        binding: share of a batch's captions that bind colours or places to two groups, chosen from twice as many
            scenes, and are contrasted with untrue ones; by itself two in five do.
    """

    supervision: dict[str, float]
    binding: Fraction = 0.0


class SupervisedLlamaGen(LlamaGenObjective):
    """Cross-entropy of image codes given captions, deep supervision by the scenes' plans and the captions' facts, and
    the contrast of captions.

    Args:
        gpt: the generator.
        text: the caption encoder.
        colours: what each code shows, see ``code_colours``.
        supervision: see SupervisedLlamaGenData.
        grid: side of the grid of tokens.
        order: cells of the tokens, [n]; raster order if None.
    """

    def __init__(
        self,
        gpt: LlamaGen,
        text: TextEncoder,
        colours: Tensor,
        supervision: dict[str, float],
        grid: int,
        order: Tensor | None = None,
    ):
        super().__init__(gpt, text)
        self.reader = SceneReader(gpt.config.dim, grid, order)
        self.supervision, self.raster = supervision, order is None
        self.register_buffer("colours", colours, persistent=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        tokens: Tensor,
        other_ids: Tensor,
        other_mask: Tensor,
        contrasted: Tensor,
        **scene: Tensor,
    ):
        """Returns the loss of B pictures and its parts.

        Shape:
            input_ids, attention_mask: their captions, [B, L].
            tokens: their codes, [B, n].
            other_ids, other_mask: other captions of the first of them, [C, L].
            contrasted: whether these are untrue, bool [C].
            scene: what ``SceneReader`` is told.
        """
        count, pairs = len(tokens), len(contrasted)
        dropped = self.gpt.draw_dropped(count) & self.training
        painted = torch.cat([tokens, tokens[:pairs]])
        states = captioned_states(
            self.gpt,
            self.text_encoder,
            torch.cat([input_ids, other_ids]),
            torch.cat([attention_mask, other_mask]),
            painted,
            torch.cat([dropped, torch.zeros_like(contrasted)]),
        )
        logits = self.logits(states)
        losses = F.cross_entropy(logits.transpose(1, 2), painted, reduction="none")
        loss = losses[:count].mean()
        read = self.reader(states[len(states) // 2][:count], **scene)
        read["colour"] = colour_loss(logits[:count], tokens, self.colours)
        telling = decisive(scene["begins"][:pairs], tokens.shape[1], self.reader.grid, self.raster)
        own, other = (-x.where(telling, 0).sum(1) for x in (losses[:pairs], losses[count:]))
        read["contrast"] = contrast_loss(own, other, contrasted & ~dropped[:pairs])
        metrics = {"codes": loss.detach(), **{name: x.detach() for name, x in read.items()}}
        return loss + sum(weight * read[name] for name, weight in self.supervision.items()), metrics


def choose_binding(said: list[Statement], count: int) -> list[int]:
    """Returns the numbers of statements: ``count`` that can be made untrue, all that cannot, and the others.

    A statement can be made untrue if it binds a colour or a place to one of two groups.
    """
    binding = [untrue(s) is not None for s in said]
    bound = [i for i, binds in enumerate(binding) if binds]
    return bound[:count] + [i for i, binds in enumerate(binding) if not binds] + bound[count:]


class SupervisedLlamaGenTask(LlamaGenTask):
    """The ``llamagen`` task with ``data.supervision``: see SupervisedLlamaGenData."""

    data_class = SupervisedLlamaGenData

    def objective(self, gpt: LlamaGen, text: TextEncoder | None) -> SupervisedLlamaGen:
        if text is None:
            raise VistokError("'data.supervision' is about captions: leave it out, or train a generator of captions.")
        if strange := [name for name in self.data.supervision if name not in TERMS]:
            raise unknown_name("term of 'data.supervision'", strange[0], list(TERMS))
        self.binding = round(self.data.binding * self.recipe.batch_size)  # captions of a batch
        self.drawn = self.recipe.batch_size * (2 if self.binding else 1)  # scenes for a batch
        if len(self.source) % self.drawn:
            raise VistokError(
                f"'data.pictures' ({len(self.source)}) must be a multiple of the {self.drawn} drawn for a batch."
            )
        self.grid, self.order = self.lattice(gpt)
        colours = count_colours(self.vq, self.grid, self.data.size, self.data.seed, self.order)
        return SupervisedLlamaGen(gpt, text, colours, self.data.supervision, self.grid, self.order)

    def lattice(self, gpt: LlamaGen) -> tuple[int, Tensor | None]:
        """Returns the side of the grid of tokens, and the cells of the tokens if they are not in raster order."""
        return gpt.config.grid, None

    def plan(self, scenes: Scenes) -> Plan:
        """Returns where the objects of scenes are among the tokens."""
        return plan(scenes, self.grid, self.data.size, self.order)

    def told(self, scenes: Scenes, said: list[Statement], variant: int, pairs: int) -> dict[str, Tensor]:
        """Returns what the objective is told about scenes: what is said of them and its facts, other captions of the
        first ``pairs``, and the scenes' plans."""
        others = [untrue(s, variant) for s in said[:pairs]]
        spoken = said + [other or s for other, s in zip(others, said, strict=False)]
        words, mask = self.words([s.text for s in spoken])
        return {
            "input_ids": words[: len(said)],
            "attention_mask": mask[: len(said)],
            "facts": torch.tensor([facts(s) for s in said]),
            "other_ids": words[len(said) :],
            "other_mask": mask[len(said) :],
            "contrasted": torch.tensor([other is not None for other in others], dtype=torch.bool),
        } | self.plan(scenes)._asdict()

    def condition(self, source: ScenesSource, draw: Draw) -> dict[str, Tensor]:
        """Returns what the objective is told about scenes, all captions contrasted."""
        scenes = source.scenes(draw.index)
        return self.told(scenes, statements(scenes), 0, len(scenes))

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns scenes in order, pass after pass, with captions worded anew in each pass."""
        variant, start = divmod(step * self.drawn, len(self.source))
        scenes = self.source.scenes(start + torch.arange(self.drawn))
        said = statements(scenes, variant)
        if self.binding:
            chosen = choose_binding(said, self.binding)[: self.recipe.batch_size]
            scenes, said = scenes[chosen], [said[i] for i in chosen]
        scenes, said = scenes[rows], said[rows]
        pairs = max(0, min(self.binding, rows.stop) - rows.start)
        return self.told(scenes, said, variant, pairs) | {"tokens": self.codes[scenes.index].long()}
