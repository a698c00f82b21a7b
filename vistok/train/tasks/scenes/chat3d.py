"""Train a small Chat-3D v2 on rooms: PointNet and object tokens from nothing, and a language model.

The language model is a LLaVA's, frozen under adapters, or one of its own that is trained from nothing too.

First, as in the paper, attribute-aware tokens are aligned with the words of their objects; then all learns from
answers. A room is encoded once for all of its questions, as in the ``vqa`` task. Identifiers are drawn anew for every
room.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes.splits import HELD_OUT, check_training_seed
from vistok.data.scenes.vqa import token_ids as picture_words
from vistok.data.scenes.world import COLOURS, SIZES
from vistok.data.scenes3d import draw_names, draw_questions, point_clouds, sample_rooms
from vistok.data.scenes3d.language import SLOT, named, question_tokens, token_ids
from vistok.data.scenes3d.world import MAX_OBJECTS, SHAPES, Rooms
from vistok.errors import VistokError
from vistok.projectors.learned.chat3d import Chat3D, Chat3DConfig
from vistok.projectors.learned.objects import attribute_loss
from vistok.train.export import write_training_card
from vistok.train.lora import Lora, with_lora
from vistok.train.options import read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks.scenes.answers import answer_loss, answered_right, shares_right
from vistok.train.tasks.scenes.llava import load_llava
from vistok.train.tasks.scenes.packing import added, middle_and_last, packed_mask
from vistok.train.trainer import Task
from vistok.zoo.adapter import save_lora


@dataclass(frozen=True, kw_only=True)
class Chat3DData:
    """Entries of ``data`` of the ``chat3d`` task.

    Attributes:
        seed: the world that is trained on.
        questions: about each room.
        align: steps of the first stage, which aligns attribute-aware tokens with words.
        alignment: weight of the same loss afterwards.
        supervision: weight of reading, at each identifier of a question, what it names.
        objects: least and greatest number of solids of a room.
        points: of each solid.
        permute: draw identifiers anew for every room; else solid i is number i.
        eval_rooms: how many held-out rooms are asked about.
    """

    seed: int
    questions: int
    align: int = 0
    alignment: float = 0.2
    supervision: float = 0.5
    objects: tuple[int, int] = (2, MAX_OBJECTS)
    points: int = 48
    permute: bool = True
    eval_rooms: int = 256


@dataclass(frozen=True, kw_only=True)
class Chat3DInit:
    """Entries of ``init``.

    Attributes:
        llava: whose language model reads; None for one of its own.
    """

    llava: str | None = None


@dataclass(frozen=True, kw_only=True)
class Chat3DModel(Chat3DConfig):
    """Entries of ``model``, beside those of Chat3DConfig.

    Attributes:
        lora: adapters of a LLaVA's language model.
    """

    lora: Lora | None = None


class NameReader(nn.Module):
    """Linear maps that read, from the language model's states at identifiers, size, colour, shape and centre of what is
    named: whoever is asked about a number must look it up. They serve training alone.

    Args:
        width: of the states.
    """

    def __init__(self, width: int):
        super().__init__()
        self.sizes = (len(SIZES), len(COLOURS), len(SHAPES))
        self.read = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self.sizes) + 3))

    def forward(self, states: Tensor, attributes: Tensor, centres: Tensor) -> Tensor:
        """Returns the mean loss of states [M, D], attributes int64 [M, 3] and centres [M, 3]."""
        *logits, where = self.read(states).float().split([*self.sizes, 3], -1)
        kinds = sum(F.cross_entropy(x, y) for x, y in zip(logits, attributes.unbind(1), strict=True))
        return kinds + 10 * F.mse_loss(where, centres, reduction="none").sum(-1).mean()


class Chat3DObjective(nn.Module):
    """Cross-entropy of answers, or of the first stage the distance of attribute tokens to their words.

    Args:
        chat: what is trained.
        data: its weights of what helps.
    """

    def __init__(self, chat: Chat3D, data: Chat3DData):
        super().__init__()
        self.chat, self.data = chat, data
        self.reader = NameReader(chat.language.config.hidden_size) if data.supervision else None

    def answer_logits(self, clouds: Tensor, present: Tensor, names: Tensor, questions: Tensor) -> Tensor:
        """Returns logits behind every token of questions [B, K, SLOT], each asked alone: [B, K, SLOT, words]."""
        return self._read(self.chat.streams(clouds, present), present, names, questions)[0]

    def _read(self, streams: list[Tensor], present: Tensor, names: Tensor, questions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the states in the middle of the language model, both of the questions' tokens."""
        prefix, there = self.chat.arrange(streams, present, names)
        asked = self.chat.language.model.embed_tokens(questions.flatten(1))
        mask, positions = packed_mask(there, questions.shape[1], SLOT)
        embeds = torch.cat([prefix.to(asked.dtype), asked], 1)
        middle, last = middle_and_last(self.chat.language.model, embeds, added(mask), positions)
        shape, before = questions.shape[1:], prefix.shape[1]
        said, inner = (x[:, before:].unflatten(1, shape) for x in (last, middle))
        return self.chat.language.lm_head(said), inner

    def forward(
        self,
        clouds: Tensor,
        present: Tensor,
        names: Tensor,
        questions: Tensor,
        targets: Tensor,
        words: Tensor,
        slots: Tensor,
        attributes: Tensor,
        centres: Tensor,
        aligning: Tensor,
    ):
        streams = self.chat.streams(clouds, present)
        embedded = self.chat.language.model.embed_tokens(words[present]).detach()
        alignment = attribute_loss(streams[0][present], embedded, torch.ones_like(words[present]))
        if bool(aligning.any()):
            return alignment, {"alignment": alignment.detach()}
        logits, inner = self._read(streams, present, names, questions)
        answers = answer_loss(logits, targets)
        loss = answers + self.data.alignment * alignment
        parts = {"answers": answers, "alignment": alignment}
        if self.reader is not None:
            b, k, s = (slots >= 0).nonzero().unbind(1)
            which = slots[b, k, s]
            read = (
                self.reader(inner[b, k, s], attributes[b, which], centres[b, which])
                if len(b)
                else answers.new_zeros(())
            )
            loss, parts["names"] = loss + self.data.supervision * read, read
        return loss, {name: value.detach() for name, value in parts.items()}


def named_slots(questions: Tensor, names: Tensor) -> Tensor:
    """Returns which solid each token of questions [B, K, SLOT] names, int64 [B, K, SLOT]; -1 where it names none."""
    first = token_ids()[named(0)]
    owner = names.argsort(1)  # the solid of each number
    number = questions - first
    is_name = (number >= 0) & (number < names.shape[1])
    found = owner.gather(1, number.clamp(0, names.shape[1] - 1).flatten(1)).view_as(questions)
    return found.masked_fill(~is_name, -1)


def attribute_words(rooms: Rooms) -> Tensor:
    """Returns size, colour and shape of each solid as tokens, int64 [B, 8, 3]."""
    ids = token_ids()
    columns = ((rooms.size, SIZES), (rooms.colour, COLOURS), (rooms.shape, SHAPES))
    return torch.stack([torch.tensor([ids[word] for word in words])[column] for column, words in columns], -1)


class Chat3DTask(Task):
    """The ``chat3d`` task: see Chat3DData and Chat3DModel."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(Chat3DData, recipe.data, "data")
        self.base = read_options(Chat3DInit, recipe.init, "init").llava
        check_training_seed(self.data.seed)
        torch.manual_seed(recipe.seed)
        shape = read_options(Chat3DModel, recipe.model, "model")
        config = Chat3DConfig(**{entry.name: getattr(shape, entry.name) for entry in fields(Chat3DConfig)})
        if (self.base is None) == (not shape.text):
            raise VistokError(
                "the language model is 'init.llava', or one of the shape 'model.text': give one of the two."
            )
        if (self.base is None) != (shape.lora is None):
            raise VistokError("'model.lora' are adapters on the language model of 'init.llava': give both or neither.")
        if self.base is None:
            chat = Chat3D(config)
        else:
            llava = load_llava(self.base).requires_grad_(False)
            self.adapted = with_lora(llava, shape.lora)  # puts its factors into the layers
            chat = Chat3D(config, llava, picture_words())
        chat.language.set_attn_implementation("eager")  # twice as fast as SDPA on sequences as short as these
        self.model = Chat3DObjective(chat, self.data)

    def names(self, rooms: Rooms) -> Tensor:
        """Returns the identifiers' numbers, int64 [B, 8]."""
        return draw_names(rooms) if self.data.permute else torch.arange(MAX_OBJECTS).expand(len(rooms), -1)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns freshly drawn rooms: none is seen twice."""
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
            "slots": named_slots(questions, names),
            "attributes": torch.stack([rooms.size, rooms.colour, rooms.shape], -1),
            "centres": rooms.centre.float(),
            "aligning": torch.full((len(rooms),), step < self.data.align),
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the share of questions about held-out rooms whose answer is right, in all and by kind."""
        device = self.model.chat.first_identifier.device
        asked, hits = [], []
        for start in range(0, self.data.eval_rooms, 64):
            rooms = sample_rooms(min(64, self.data.eval_rooms - start), HELD_OUT, start)
            names = self.names(rooms)
            drawn = draw_questions(rooms, names, self.data.questions)
            questions, targets = question_tokens(drawn)
            given = (point_clouds(rooms, self.data.points), rooms.present, names, questions)
            asked += drawn
            hits += answered_right(self.model.answer_logits(*(x.to(device) for x in given)), targets.to(device))
        return shares_right(asked, hits)

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the model in half precision, and its card."""
        if self.base is None:
            self.model.half()
            self.model.chat.save_pretrained(directory)
        else:
            self.model.chat.save_difference(directory, self.base)
            save_lora(directory, self.adapted, self.base)
        data = f"vistok.data.scenes3d, seed {self.data.seed}"
        kind = "3d-question-answering"
        trained = nn.ParameterList([p for p in self.model.chat.parameters() if p.requires_grad])
        parts = {} if self.base is None else {"llava": self.base}
        write_training_card(
            directory, self.recipe, trained, kind, "chat3d", metrics, steps, parts, paper="2312.08168", data=data
        )
