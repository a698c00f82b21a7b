"""What training a difference on a LLaVA shares: new words, LoRA by PEFT, questions that share a picture, export.

The LLaVA is frozen. New words get rows of their own beside its tables, so that the old ones stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes.vqa import BEGIN, END, IGNORE, PAD, USER, token_ids
from vistok.errors import VistokError
from vistok.models.extension import HEAD_ROWS, ROWS, Extension, save_extension
from vistok.train.export import write_training_card
from vistok.train.lora import Lora, with_lora
from vistok.train.recipe import Recipe
from vistok.train.tasks.scenes.llava import load_llava
from vistok.train.tasks.scenes.packing import middle_and_last, packed_mask
from vistok.train.tasks.scenes.tower import tower_states
from vistok.train.trainer import Task
from vistok.zoo.adapter import base_hashes, save_lora


@dataclass(frozen=True, kw_only=True)
class ExtensionInit:
    """Entries of ``init``.

    Attributes:
        llava: the LLaVA that is extended.
    """

    llava: str


class ExtendedLlava(nn.Module):
    """A LLaVA with new words and adapters.

    Args:
        llava: from ``load_llava``; it is frozen.
        words: that are new.
        lora: adapters of the language model; none if None.
    """

    def __init__(self, llava: nn.Module, words: Sequence[str], lora: Lora | None):
        super().__init__()
        llava.requires_grad_(False)
        self.llava = llava if lora is None else with_lora(llava, lora)
        self.words = tuple(words)
        mean = llava.get_input_embeddings().weight.mean(0), llava.get_output_embeddings().weight.mean(0)
        self.rows, self.head_rows = (nn.Parameter(row.repeat(len(words), 1)) for row in mean)
        self.ids = token_ids() | {word: len(token_ids()) + i for i, word in enumerate(words)}
        opening = torch.tensor([self.ids[BEGIN], self.ids[USER]])
        self.register_buffer("opening", opening, persistent=False)

    @property
    def base(self) -> Any:
        """The LLaVA itself."""
        return self.llava.get_base_model() if hasattr(self.llava, "get_base_model") else self.llava

    def embed(self, tokens: Tensor) -> Tensor:
        """Returns embeddings of tokens, old and new."""
        return F.embedding(tokens, torch.cat([self.base.get_input_embeddings().weight, self.rows]))

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits of all words, old and new."""
        return F.linear(hidden, torch.cat([self.base.get_output_embeddings().weight, self.head_rows]).to(hidden.dtype))

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns visual tokens [B, N, D] and the tower's features [B, N, C] of pictures [B, 3, S, S]."""
        model = self.base.model
        patches = tower_states(model.vision_tower, images)[model.config.vision_feature_layer][:, 1:]
        return model.multi_modal_projector(patches), patches

    def read(self, visual: Tensor, questions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns hidden states: the last of visual tokens [B, N, D], and the last and those behind half of the layers
        of questions [B, K, slot, D], as if each were asked alone.

        Args:
            visual: [B, N, D].
            questions: tokens behind the picture, int64 [B, K, slot].
        """
        count, slot = questions.shape[1:]
        opening = self.embed(self.opening).expand(len(visual), -1, -1)
        asked = self.embed(questions.flatten(1))
        embeds = torch.cat([opening, visual.to(asked.dtype), asked], 1)
        prefix = embeds.shape[1] - asked.shape[1]
        present = torch.ones(len(visual), prefix, dtype=torch.bool, device=visual.device)
        mask, positions = self.layout(present, count, slot)
        middle, last = middle_and_last(self.base.model.language_model, embeds, mask, positions)
        asked, inner = (x[:, prefix:].unflatten(1, (count, slot)) for x in (last, middle))
        return last[:, prefix - visual.shape[1] : prefix], asked, inner

    def layout(self, present: Tensor, count: int, slot: int) -> tuple[Tensor, Tensor]:
        """Returns mask and positions of ``count`` texts of ``slot`` tokens behind a picture, see ``packed_mask``."""
        return packed_mask(present, count, slot)

    def decode(self, images: Tensor, asked: Sequence[str], slot: int, says_new: bool = True) -> list[str]:
        """Returns the greedy answers to one question about each picture, in words with blanks.

        Args:
            images: [B, 3, S, S].
            asked: words with blanks, which end in ``assistant:``.
            slot: tokens of the longest question with its answer.
            says_new: whether answers may have new words.
        """
        known = len(self.ids) if says_new else len(self.ids) - len(self.words)
        words = {number: word for word, number in self.ids.items()}
        tokens, _ = slots([[(question, "")] for question in asked], self.ids, slot)
        tokens, at = tokens.to(images.device), torch.tensor([len(q.split()) for q in asked], device=images.device)
        visual, _ = self.look(images)
        rows = torch.arange(len(asked), device=images.device)
        said: list[list[str]] = [[] for _ in asked]
        done = [False] * len(asked)
        while not all(done) and int(at.max()) < slot:
            hidden = self.read(visual, tokens)[1][rows, 0, at - 1]
            following = self.logits(hidden)[:, :known].argmax(-1)
            tokens[rows, 0, at] = following
            at = at + 1
            for b, number in enumerate(following.tolist()):
                done[b] = done[b] or number == self.ids[END]
                if not done[b]:
                    said[b].append(words[number])
        return [" ".join(row) for row in said]

    def save(self, directory: Path, extension: Extension, state: Mapping[str, Tensor]) -> None:
        """Writes the difference: rows and ``state`` beside it, and the LoRA factors as PEFT does."""
        rows = {ROWS: self.rows, HEAD_ROWS: self.head_rows} if self.words else {}
        save_extension(directory, extension, {k: v.bfloat16() for k, v in {**rows, **state}.items()})
        if hasattr(self.llava, "peft_config"):
            save_lora(directory, self.llava, extension.base)


class BoxReader(nn.Module):
    """A linear map that reads boxes from hidden states in the middle of the language model: whoever must say where a
    thing is has to know it there already, and hardly learns to from its words alone. It serves training alone.

    Args:
        width: of the states.
    """

    def __init__(self, width: int):
        super().__init__()
        self.read = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4))

    def forward(self, states: Tensor, boxes: Tensor) -> Tensor:
        """Returns the mean squared distance of what states [..., D] tell from boxes [..., 4].

        Boxes are in fractions of the picture; those of infinite numbers stand for none and do not count.
        """
        told = boxes.isfinite().all(-1)
        off = (self.read(states.float()) - boxes.where(told[..., None], 0.0)).square().sum(-1)
        return (off * told).sum() / told.sum().clamp(min=1)


def beginnings(states: Tensor, targets: Tensor) -> Tensor:
    """Returns states [B, K, D], of states [B, K, slot, D], of the tokens that the answers of ``targets`` follow."""
    first = (targets != IGNORE).long().argmax(-1)
    return states.gather(2, first[..., None, None].expand(-1, -1, 1, states.shape[-1]))[:, :, 0]


def slots(rows: Sequence[Sequence[tuple[str, str]]], ids: Mapping[str, int], length: int) -> tuple[Tensor, Tensor]:
    """Returns tokens and next-token targets of texts behind a picture and what is answered to them.

    Args:
        rows: B rows of K pairs, words with blanks between; the first of each pair ends in ``assistant:``.
        ids: number of each word.
        length: of a slot.

    Returns:
        int64 [B, K, length] twice; targets are ``IGNORE`` but where the answer and the end of the text follow.

    Raises:
        VistokError: a pair does not fit into a slot.
    """
    tokens = torch.full((len(rows), len(rows[0]), length), ids[PAD])
    targets = torch.full_like(tokens, IGNORE)
    for b, row in enumerate(rows):
        for k, (asked, said) in enumerate(row):
            question, answer = [ids[word] for word in asked.split()], [ids[word] for word in said.split()]
            whole = [*question, *answer]
            if len(whole) > length:
                raise VistokError(f"'{asked} {said}' has {len(whole)} words, and a slot holds {length}.")
            tokens[b, k, : len(whole)] = torch.tensor(whole)
            behind = [*answer, ids[END]]
            targets[b, k, len(question) - 1 : len(question) - 1 + len(behind)] = torch.tensor(behind)
    return tokens, targets


class ExtensionTask(Task):
    """A task that trains a difference on a LLaVA; ``kind``, ``words`` and ``paper`` say which.

    Attributes:
        kind: of the extension, and family of its card.
        words: that the vocabulary gets.
        paper: arXiv id.
        extended: the class that runs the LLaVA.
    """

    extended: type[ExtendedLlava] = ExtendedLlava
    kind: str
    words: tuple[str, ...]
    paper: str
    task = "visual-grounding"

    def start(self, recipe: Recipe, init: ExtensionInit, lora: Lora | None) -> ExtendedLlava:
        """Returns the extended LLaVA at the beginning of a run."""
        self.recipe, self.base_name = recipe, init.llava
        torch.manual_seed(recipe.seed)
        llava = load_llava(init.llava)
        vision = llava.config.vision_config
        self.side, self.patch = vision.image_size, vision.patch_size
        return self.extended(llava, self.words, lora)

    def heads(self) -> dict[str, Tensor]:
        """Returns what is trained beside words and adapters."""
        return {}

    def options(self) -> dict[str, Any]:
        """Returns the options of the extension."""
        return {}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the difference and its card."""
        extended = self.model.extended
        extension = Extension(self.kind, self.base_name, base_hashes(self.base_name), self.words, self.options())
        trained = nn.ParameterList([p for p in self.model.parameters() if p.requires_grad])
        extended.save(directory, extension, self.heads())
        parts = {"llava": self.base_name}
        write_training_card(directory, self.recipe, trained, self.task, self.kind, metrics, steps, parts, self.paper)
