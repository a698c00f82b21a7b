"""Train a small SEED-LLaMA (arXiv 2310.01218) on scenes: tokens of a SEED and words of captions as one language.

Of the pictures of a batch every other one stands behind its caption, and the others before it, so the same weights draw
captions and describe pictures. All tokens are predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import BACKGROUNDS, groups, relation, statements
from vistok.data.scenes.language import OPENINGS, RELATIONS, Group, Statement
from vistok.errors import VistokError
from vistok.models.codes.seed_llama import BEGIN, END, SeedLlamaGenerator, code_words
from vistok.tokenizers.load import load_tokenizer
from vistok.tokenizers.seed import Seed
from vistok.train.options import check_entries, read_options
from vistok.train.recipe import Recipe
from vistok.train.sources import Extracted, PictureData, Source, open_source
from vistok.train.tasks.pictures import PictureTask
from vistok.train.tasks.scenes.janus import SHAPE
from vistok.train.tasks.scenes.words import word_tokenizer


def truths(scene: list[Group], background: str) -> set[str]:
    """Returns all captions that are true of a scene, without their openings."""
    found = set()
    for order in permutations(scene):
        places = {None}
        if len(order) == 2:
            places.add(relation(order[0].centre, order[1].centre))
        for size, colour, where, behind in product((False, True), (False, True), places, (None, background)):
            for form in range(1 if where is None else len(RELATIONS[where])):
                found.add(Statement(order, size, colour, where, behind, "", form).text)
    return found


def holds(caption: str, true: set[str]) -> bool:
    """Returns whether a caption, in the words of the tokenizer, is one of the true ones."""
    said = caption.replace(" ,", ",")
    return any(said.removeprefix(opening) in true for opening in OPENINGS)


@dataclass(frozen=True, kw_only=True)
class SeedLlamaInit:
    """Entries of ``init``.

    Attributes:
        tokenizer: a SEED.
    """

    tokenizer: str


class SeedLlamaObjective(nn.Module):
    """The cross-entropy of every token of a batch."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor, drawn: Tensor):
        """Returns the loss and that of codes and of words alone.

        Shape:
            input_ids, attention_mask: [B, L], padded on the right.
            drawn: which tokens are codes, bool [B, L].
        """
        logits = self.network(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
        losses = F.cross_entropy(logits.float().transpose(1, 2), input_ids[:, 1:], reduction="none")
        real, codes = attention_mask[:, 1:].bool(), drawn[:, 1:]
        parts = {"codes": losses[codes].mean().detach(), "words": losses[real & ~codes].mean().detach()}
        return losses[real].mean(), parts


class SeedLlamaTask(PictureTask):
    """The ``seed-llama`` task: see PictureData and SeedLlamaInit; ``model`` holds entries of LlamaConfig."""

    def __init__(self, recipe: Recipe):
        from transformers import LlamaConfig, LlamaForCausalLM

        self.recipe = recipe
        self.data = read_options(PictureData, recipe.data, "data")
        self.init = read_options(SeedLlamaInit, recipe.init, "init")
        check_entries(recipe.model, SHAPE, "model")
        if self.data.source != "scenes":
            raise VistokError("the task 'seed-llama' learns the captions of scenes: leave 'data.source' out.")
        torch.manual_seed(recipe.seed)
        self.seed = load_tokenizer(self.init.tokenizer).tokenizer
        if not isinstance(self.seed, Seed):
            raise VistokError(f"a SEED-LLaMA learns tokens of a SEED, and '{self.init.tokenizer}' is none: name one.")
        self.seed.requires_grad_(False)
        config = self.seed.config
        added = [BEGIN, END, *code_words(config.codebook_size)]
        self.vocabulary = word_tokenizer(additional_special_tokens=added)
        self.source = open_source(self.data, config.image_size, finite=True)
        words = self.vocabulary
        special = {"pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id}
        shape = {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "tie_word_embeddings": True}
        network = LlamaForCausalLM(LlamaConfig(**special, **shape, **recipe.model))
        self.generator = SeedLlamaGenerator(network, words, self.seed)
        self.model = SeedLlamaObjective(network)
        self.codes = Extracted(len(self.source), lambda index: self._encode(self.source, index), torch.int32)

    @torch.no_grad()
    def _encode(self, source: Source, index: Tensor) -> Tensor:
        device = self.generator.plan.ids.device
        return self.seed.to(device).encode(source.pictures(index).to(device)).cpu()

    def sequences(self, codes: Tensor, said: Sequence[str], before: Tensor) -> dict[str, Tensor]:
        """Returns what the objective reads.

        Args:
            codes: of pictures, int64 [B, n].
            said: their captions.
            before: whether the picture stands before its caption, bool [B].
        """
        words, ids_of_codes, rows = self.vocabulary, self.generator.plan.ids.cpu(), []
        begin, end = self.generator.brackets.tolist()
        for row, text, first in zip(ids_of_codes[codes].tolist(), said, before.tolist(), strict=True):
            caption = words(text, add_special_tokens=False)["input_ids"]
            picture = [begin, *row, end]
            body = picture + caption if first else caption + picture
            rows.append([words.bos_token_id, *body, words.eos_token_id])
        width = max(map(len, rows))
        ids = torch.tensor([row + [words.pad_token_id] * (width - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        drawn = torch.isin(ids, ids_of_codes)
        return {"input_ids": ids, "attention_mask": (torch.arange(width) < lengths[:, None]).long(), "drawn": drawn}

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns pictures with captions that are worded anew in each pass; every other one stands before its own."""
        draw = self.source.draw(step * self.recipe.batch_size + rows.start, rows.stop - rows.start)
        return self.sequences(
            self.codes[draw.index].long(), self.source.captions(draw), (draw.index + draw.passes) % 2 == 1
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns nats a code behind captions and a word behind pictures of held-out scenes, and the share of written
        captions that are true."""
        held_out, index = self.source.held_out(), self.held_out_index()
        scenes = held_out.scenes(index)
        codes, said = self._encode(held_out, index).long(), [s.text for s in statements(scenes)]
        device, losses = self.generator.plan.ids.device, {}
        for name, before in (("codes", False), ("words", True)):
            told = self.sequences(codes, said, torch.full((len(index),), before))
            losses[name] = self.model(**{key: value.to(device) for key, value in told.items()})[1][name].item()
        written = self.generator.describe(codes)
        behind = [BACKGROUNDS[number] for number in scenes.background.tolist()]
        true = [holds(text, truths(*scene)) for text, *scene in zip(written, groups(scenes), behind, strict=True)]
        return {f"held_out_{name}": value for name, value in losses.items()} | {"captions_true": sum(true) / len(true)}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes network and vocabulary as transformers reads them, in half precision, and the card."""
        network = self.model.network.half()
        network.save_pretrained(directory)
        self.vocabulary.save_pretrained(directory)
        parts = {"tokenizer": self.init.tokenizer}
        family = SeedLlamaGenerator.family
        self.write_card(directory, network, "text-to-image", family, metrics, steps, parts, "2310.01218")
