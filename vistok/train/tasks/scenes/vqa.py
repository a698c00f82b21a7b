"""Train a small LLaVA on questions about scenes: tower, projector and language model together, from nothing.

A picture is encoded once for all of its questions: they lie behind its tokens in one sequence, with a mask and position
numbers that let each see the picture and itself only, so each is trained exactly as it will be asked alone. The loss is
on answers. Tower and language model are supervised as ``tower`` tells; its heads are not exported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import Scenes, groups, render, sample_scenes, shrink
from vistok.data.scenes.splits import HELD_OUT, check_training_seed
from vistok.data.scenes.vqa import (
    BEGIN,
    USER,
    draw_questions,
    llava_processor,
    named_places,
    question_tokens,
    token_ids,
)
from vistok.data.scenes.vqa_splits import SMALL
from vistok.errors import VistokError
from vistok.train.export import write_training_card
from vistok.train.options import Fraction, NoEntries, read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks.scenes.answers import answer_loss, answered_right, shares_right
from vistok.train.tasks.scenes.llava import build_llava, load_llava
from vistok.train.tasks.scenes.packing import packed_mask, thinned
from vistok.train.tasks.scenes.tower import PlaceHeads, SceneHeads, patch_targets, scene_targets, tower_states
from vistok.train.trainer import Task

POOL = 3  # scenes that are looked at for each that is taken
GOLDEN = 0.6180339887498949


@dataclass(frozen=True, kw_only=True)
class VqaData:
    """Entries of ``data`` of the tasks of questions about scenes.

    Attributes:
        seed: the world that is trained on.
        questions: about each picture.
        kinds: how often each kind of question is drawn, see ``draw_questions``; all alike if empty.
        several: share of scenes with two single objects at least; as the world has them if None.
        small: share of scenes whose radii are ``SMALL`` times as large.
        supervision: weight of the tower's heads.
        places: weight of the heads that read places; none if 0.
        thin: learn to answer from fewer visual tokens too, see ``packing.thinned``.
        thin_from: the step that this begins at.
        eval_pictures: how many held-out pictures are asked about.
    """

    seed: int
    questions: int
    kinds: dict[str, float] = field(default_factory=dict)
    several: Fraction | None = None
    small: Fraction = 0.0
    supervision: float = 0.5
    places: float = 0.0
    thin: bool = False
    thin_from: int = 0
    eval_pictures: int = field(default=256, metadata={"was": "eval_scenes"})


@dataclass(frozen=True, kw_only=True)
class VqaInit:
    """Entries of ``init``.

    Attributes:
        llava: the LLaVA to start from.
    """

    llava: str | None = None


@dataclass(frozen=True, kw_only=True)
class VqaModel:
    """Entries of ``model`` of the ``vqa`` task.

    Attributes:
        vision, text: entries of CLIPVisionConfig and of LlamaConfig.
    """

    vision: dict[str, Any]
    text: dict[str, Any]


class VqaObjective(nn.Module):
    """Cross-entropy of answers, and the supervision of the tower.

    Args:
        llava: the transformers model.
        supervision: weight of the heads' losses.
        places: weight of the losses of the heads that read places.
    """

    def __init__(self, llava: nn.Module, supervision: float, places: float = 0.0):
        super().__init__()
        self.llava = llava
        self.supervision, self.places = supervision, places
        width = llava.config.vision_config.hidden_size
        self.heads = SceneHeads(width)
        if places:
            self.place_heads = PlaceHeads(width, llava.config.text_config.hidden_size)
        opening = torch.tensor([token_ids()[BEGIN], token_ids()[USER]])
        self.register_buffer("opening", opening, persistent=False)

    def network(self) -> nn.Module:
        """Returns what is exported."""
        return self.llava

    def visual_tokens(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns tokens for the language model [B, N, D], features of the patches [B, N, C] and CLS [B, C]."""
        base = self.llava.model
        states = tower_states(base.vision_tower, images)
        patches = states[base.config.vision_feature_layer][:, 1:]
        return base.multi_modal_projector(patches), patches, base.vision_tower.post_layernorm(states[-1][:, 0])

    def read(self, visual: Tensor, questions: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Runs the language model over questions [B, K, SLOT], each as if it were asked alone.

        ``kept`` bool [B, N] leaves visual tokens out, as if they had been cut.

        Returns:
            Hidden states of the questions' words in the middle of the model and behind its last norm,
            [B, K, SLOT, D] each.
        """
        language = self.llava.model.language_model
        opening = language.embed_tokens(self.opening).expand(len(questions), -1, -1)
        asked = language.embed_tokens(questions.flatten(1))
        hidden = torch.cat([opening, visual.to(asked.dtype), asked], 1)
        prefix = hidden.shape[1] - asked.shape[1]
        if kept is None:
            kept = torch.ones(visual.shape[:2], dtype=torch.bool, device=visual.device)
        present = F.pad(kept, (prefix - kept.shape[1], 0), value=True)
        mask, positions = packed_mask(present, questions.shape[1])
        rotary = language.rotary_emb(hidden, positions)
        for number, layer in enumerate(language.layers):
            if number == len(language.layers) // 2:
                middle = hidden
            hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        states = middle, language.norm(hidden)
        return tuple(state[:, prefix:].unflatten(1, questions.shape[1:]) for state in states)

    def answer_logits(self, visual: Tensor, questions: Tensor, kept: Tensor | None = None) -> Tensor:
        """Returns logits behind every token of questions, see ``read``: [B, K, SLOT, words]."""
        return self.llava.lm_head(self.read(visual, questions, kept)[1])

    def forward(
        self,
        images: Tensor,
        questions: Tensor,
        targets: Tensor,
        classes: Tensor,
        offsets: Tensor,
        summary: Tensor,
        kept: Tensor | None = None,
        named: Tensor | None = None,
    ):
        visual, patches, cls = self.visual_tokens(images)
        middle, last = self.read(visual, questions, kept)
        answers = answer_loss(self.llava.lm_head(last), targets)
        local, scene = self.heads(patches, cls, classes, offsets, summary)
        loss = answers + self.supervision * (local + scene)
        parts = {"answers": answers, "patches": local, "scene": scene}
        if self.places:
            shown = classes[:, 0] > 0
            parts["places"], parts["words"] = self.place_heads(patches, visual, middle, offsets, shown, named)
            loss = loss + self.places * (parts["places"] + parts["words"])
        return loss, {name: part.detach() for name, part in parts.items()}


def training_scenes(data: VqaData, count: int, start: int) -> Scenes:
    """Returns scenes of the world that is trained on, as many with several objects and with small ones as asked for.

    Args:
        data: see VqaData.
        count: how many.
        start: number of the first; others start where these end.
    """
    if data.several is None:
        scenes = sample_scenes(count, data.seed, start)
    else:
        pool = sample_scenes(POOL * count, data.seed, POOL * start)
        single = torch.tensor([sum(g.count == 1 for g in scene) for scene in groups(pool)])
        ranked = (single < 2).long().argsort(stable=True)  # those with several first
        many = round(data.several * count)
        scenes = pool[torch.cat([ranked[:many], ranked[len(ranked) - count + many :]])]
    small = (start + torch.arange(count)).double() * GOLDEN % 1 < data.small  # spread evenly
    return shrink(scenes, torch.where(small, SMALL, 1.0).double())


class VqaTask(Task):
    """The ``vqa`` task: a LLaVA on freshly drawn scenes; see VqaData, VqaInit and VqaModel."""

    family = "llava"
    paper = "2310.03744"

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data, self.init = read_options(VqaData, recipe.data, "data"), read_options(VqaInit, recipe.init, "init")
        check_training_seed(self.data.seed)
        torch.manual_seed(recipe.seed)
        self.model = self.build()
        vision = self.model.llava.config.vision_config
        self.side, self.patch = vision.image_size, vision.patch_size

    def start(self) -> nn.Module:
        """Returns the LLaVA that ``init.llava`` names.

        Raises:
            VistokError: it names none.
        """
        if self.init.llava is None:
            raise VistokError(f"the task '{self.recipe.task}' starts from a LLaVA: name one as 'init.llava'.")
        return load_llava(self.init.llava)

    def build(self) -> VqaObjective:
        """Returns what is trained, from new weights or from those that ``init.llava`` names."""
        if self.init.llava is None:
            shape = read_options(VqaModel, self.recipe.model, "model")
            llava = build_llava(shape.vision, shape.text)
        else:
            read_options(NoEntries, self.recipe.model, "model")
            llava = self.start()
        return VqaObjective(llava, self.data.supervision, self.data.places)

    def pictures(self, scenes: Scenes) -> Tensor:
        """Returns what the objective's ``visual_tokens`` takes."""
        return render(scenes, self.side)

    def patch_targets(self, scenes: Scenes) -> tuple[Tensor, Tensor]:
        """Returns what each patch shows, as :func:`patch_targets`."""
        return patch_targets(scenes, self.side, self.patch)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns freshly drawn scenes: no picture is seen twice."""
        start = step * self.recipe.batch_size + rows.start
        scenes = training_scenes(self.data, rows.stop - rows.start, start)
        questions, targets = question_tokens(draw_questions(scenes, self.data.questions, kinds=self.data.kinds or None))
        classes, offsets = self.patch_targets(scenes)
        extra = {}
        if self.data.thin and step >= self.data.thin_from:
            extra["kept"] = thinned(classes[:, 0] > 0, start)
        if self.data.places:
            extra["named"] = named_places(scenes, questions)
            if "kept" in extra:  # a cut object is nowhere
                extra["named"][~extra["kept"].all(1)] = torch.nan
        return extra | {
            "images": self.pictures(scenes),
            "questions": questions,
            "targets": targets,
            "classes": classes,
            "offsets": offsets,
            "summary": scene_targets(scenes),
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the share of questions about held-out scenes whose answer is right, in all and by kind."""
        device = self.model.opening.device
        kinds = dict.fromkeys(self.data.kinds, 1.0) or None
        asked, hits = [], []
        for start in range(0, self.data.eval_pictures, 64):
            scenes = sample_scenes(min(64, self.data.eval_pictures - start), HELD_OUT, start)
            drawn = draw_questions(scenes, self.data.questions, kinds=kinds)
            questions, targets = (x.to(device) for x in question_tokens(drawn))
            visual = self.model.visual_tokens(self.pictures(scenes).to(device))[0]
            asked += drawn
            hits += answered_right(self.model.answer_logits(visual, questions), targets)
        return shares_right(asked, hits)

    def save(self, directory: Path) -> None:
        """Writes model and processor."""
        self.model.llava.save_pretrained(directory)
        llava_processor(self.side, self.patch).save_pretrained(directory)

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes model and processor as transformers reads them, in half precision, and the card."""
        self.model.half()
        self.save(directory)
        parts = {"init": self.init.llava} if self.init.llava is not None else None
        network = self.model.network()
        task = "visual-question-answering"
        write_training_card(directory, self.recipe, network, task, self.family, metrics, steps, parts, self.paper)
