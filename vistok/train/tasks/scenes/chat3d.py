"""Train a small Chat-3D v2 on rooms: PointNet, object tokens and language model together, from nothing.

First, as in the paper, attribute-aware tokens are aligned with the words of their objects; then all learns from
answers. A room is encoded once for all of its questions, as in the ``vqa`` task. Identifiers are drawn anew for every
room.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes.splits import HELD_OUT, check_training_seed
from vistok.data.scenes.vqa import IGNORE
from vistok.data.scenes.world import COLOURS, SIZES
from vistok.data.scenes3d import draw_names, draw_questions, point_clouds, sample_rooms
from vistok.data.scenes3d.language import SLOT, question_tokens, token_ids
from vistok.data.scenes3d.world import MAX_OBJECTS, SHAPES, Rooms
from vistok.projectors.learned.chat3d import Chat3D, Chat3DConfig
from vistok.projectors.learned.objects import attribute_loss
from vistok.train.export import write_training_card
from vistok.train.options import NoEntries, read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks.scenes.packing import packed_mask
from vistok.train.trainer import Task


@dataclass(frozen=True, kw_only=True)
class Chat3DData:
    """Entries of ``data`` of the ``chat3d`` task.

    Attributes:
        seed: the world that is trained on.
        questions: about each room.
        align: steps of the first stage, which aligns attribute-aware tokens with words.
        objects: least and greatest number of solids of a room.
        points: of each solid.
        permute: draw identifiers anew for every room; else solid i is number i.
        eval_rooms: how many held-out rooms are asked about.
    """

    seed: int
    questions: int
    align: int = 0
    objects: tuple[int, int] = (2, MAX_OBJECTS)
    points: int = 48
    permute: bool = True
    eval_rooms: int = 256


@dataclass(frozen=True, kw_only=True)
class Chat3DModel:
    """Entries of ``model``, see Chat3DConfig."""

    text: dict[str, Any]
    features: int = 128
    attributes: int = 32
    layers: int = 1
    heads: int = 8
    head_dim: int = 16
    norm: float = 1.0
    relations: bool = True
    identifiers: bool = field(default=True)


class Chat3DObjective(nn.Module):
    """Cross-entropy of answers, or of the first stage the distance of attribute tokens to their words."""

    def __init__(self, chat: Chat3D):
        super().__init__()
        self.chat = chat

    def answer_logits(self, clouds: Tensor, present: Tensor, names: Tensor, questions: Tensor) -> Tensor:
        """Logits behind every token of questions [B, K, SLOT], as if each were asked alone: [B, K, SLOT, words]."""
        return self._logits(self.chat.streams(clouds, present), present, names, questions)

    def _logits(self, streams: list[Tensor], present: Tensor, names: Tensor, questions: Tensor) -> Tensor:
        prefix, there = self.chat.arrange(streams, present, names)
        asked = self.chat.language.model.embed_tokens(questions.flatten(1))
        mask, positions = packed_mask(there, questions.shape[1], SLOT)
        hidden = self.chat.language.model(
            inputs_embeds=torch.cat([prefix.to(asked.dtype), asked], 1),
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        return self.chat.language.lm_head(hidden[:, prefix.shape[1] :]).unflatten(1, questions.shape[1:])

    def forward(
        self,
        clouds: Tensor,
        present: Tensor,
        names: Tensor,
        questions: Tensor,
        targets: Tensor,
        words: Tensor,
        aligning: Tensor,
    ):
        streams = self.chat.streams(clouds, present)
        embedded = self.chat.language.model.embed_tokens(words[present]).detach()
        alignment = attribute_loss(streams[0][present], embedded, torch.ones_like(words[present]))
        if bool(aligning.any()):
            return alignment, {"alignment": alignment.detach()}
        logits = self._logits(streams, present, names, questions).float()
        answers = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), ignore_index=IGNORE)
        return answers, {"answers": answers.detach(), "alignment": alignment.detach()}


def attribute_words(rooms: Rooms) -> Tensor:
    """Size, colour and shape of each solid as tokens, int64 [B, 8, 3]."""
    ids = token_ids()
    columns = ((rooms.size, SIZES), (rooms.colour, COLOURS), (rooms.shape, SHAPES))
    return torch.stack([torch.tensor([ids[word] for word in words])[column] for column, words in columns], -1)


class Chat3DTask(Task):
    """The ``chat3d`` task: see Chat3DData and Chat3DModel."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(Chat3DData, recipe.data, "data")
        read_options(NoEntries, recipe.init, "init")
        check_training_seed(self.data.seed)
        torch.manual_seed(recipe.seed)
        config = Chat3DConfig(**asdict(read_options(Chat3DModel, recipe.model, "model")))
        self.model = Chat3DObjective(Chat3D(config))

    def names(self, rooms: Rooms) -> Tensor:
        """The identifiers' numbers, int64 [B, 8]."""
        return draw_names(rooms) if self.data.permute else torch.arange(MAX_OBJECTS).expand(len(rooms), -1)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Freshly drawn rooms: none is seen twice."""
        start = step * self.recipe.batch_size + rows.start
        rooms = sample_rooms(rows.stop - rows.start, self.data.seed, start, self.data.objects)
        names = self.names(rooms)
        questions, targets = question_tokens(draw_questions(rooms, names, self.data.questions))
        return {
            "clouds": point_clouds(rooms, self.data.points),
            "present": rooms.present,
            "names": names,
            "questions": questions,
            "targets": targets,
            "words": attribute_words(rooms),
            "aligning": torch.full((len(rooms),), step < self.data.align),
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Share of questions about held-out rooms whose answer is right, in all and by kind."""
        device = self.model.chat.first_identifier.device
        right: dict[str, list[bool]] = {}
        for start in range(0, self.data.eval_rooms, 64):
            rooms = sample_rooms(min(64, self.data.eval_rooms - start), HELD_OUT, start)
            names = self.names(rooms)
            drawn = draw_questions(rooms, names, self.data.questions)
            questions, targets = question_tokens(drawn)
            given = (point_clouds(rooms, self.data.points), rooms.present, names, questions)
            said = self.model.answer_logits(*(x.to(device) for x in given)).argmax(-1).cpu()
            hits = ((said == targets) | (targets == IGNORE)).all(-1).tolist()
            for row, hit in zip(drawn, hits, strict=True):
                for question, ok in zip(row, hit, strict=True):
                    right.setdefault(question.kind, []).append(ok)
        everything = [ok for found in right.values() for ok in found]
        return {"exact_match": sum(everything) / len(everything)} | {
            f"exact_match_{kind}": sum(found) / len(found) for kind, found in sorted(right.items())
        }

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the model in half precision, and its card."""
        self.model.half()
        self.model.chat.save_pretrained(directory)
        data = f"vistok.data.scenes3d, seed {self.data.seed}"
        kind = "3d-question-answering"
        write_training_card(
            directory, self.recipe, self.model.chat, kind, "chat3d", metrics, steps, paper="2312.08168", data=data
        )
