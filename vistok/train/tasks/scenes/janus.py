"""Train a small text-to-image model in Janus's layout (arXiv 2410.13848) on scenes' codes.

One causal transformer reads the words of a caption and then draws the codes of its picture, each code going in by an
embedding and an aligner of its own and coming out by a head of its own. Its tokenizer of pictures is an embedded one in
the class's layout, and stays there: the export holds the rest. Its tower for reading pictures is a minimal one that
nothing trains, because the class has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vistok.data.scenes import Scenes, render, sample_scenes, scenes_at, statements
from vistok.data.scenes.language import Statement
from vistok.data.scenes.splits import HELD_OUT, check_training_seed
from vistok.data.scenes.world import MAX_OBJECTS
from vistok.errors import VistokError, unknown_name
from vistok.models.codes.janus_vq import TOKENIZER_PREFIX, janus_vq_config, janus_vq_state
from vistok.models.codes.load import load_janus
from vistok.tokenizers.vq import VQTokenizer
from vistok.train.export import write_training_card
from vistok.train.options import Fraction, check_entries, read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks.scenes.captions import facts
from vistok.train.tasks.scenes.janus_objective import TERMS, JanusObjective
from vistok.train.tasks.scenes.plans import plan
from vistok.train.tasks.scenes.reader import code_colours
from vistok.train.tasks.scenes.words import word_tokenizer
from vistok.train.trainer import Task

IMAGE, BEGIN_IMAGE, END_IMAGE = "<image>", "<begin_of_image>", "<end_of_image>"
COUNTED = 256  # scenes in which is counted what codes show
CHUNK = 32  # scenes that are encoded at a time


def janus_processor(side: int, length: int) -> nn.Module:
    """Returns a processor of captions in words for pictures of ``side`` pixels and ``length`` codes."""
    from transformers import JanusImageProcessor, JanusProcessor

    own = {"image_token": IMAGE, "boi_token": BEGIN_IMAGE, "eoi_token": END_IMAGE}
    tokenizer = word_tokenizer((IMAGE, BEGIN_IMAGE, END_IMAGE), extra_special_tokens=own)
    pictures = JanusImageProcessor(size={"height": side, "width": side}, min_size=1)
    return JanusProcessor(pictures, tokenizer, num_image_tokens=length)


def build_janus(vq: VQTokenizer, processor: nn.Module, side: int, shape: dict) -> nn.Module:
    """Returns an untrained model of a tokenizer's codes; ``shape`` holds entries of LlamaConfig."""
    from transformers import (
        GenerationConfig,
        JanusConfig,
        JanusForConditionalGeneration,
        JanusVisionConfig,
        LlamaConfig,
    )

    words, width, patch = processor.tokenizer, shape["hidden_size"], vq.config.downsample
    special = {
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "mlp_ratio": 1.0, "depth": 1}
    length = (side // patch) ** 2
    config = JanusConfig(
        text_config=LlamaConfig(vocab_size=len(words), **special, **shape),
        vision_config=JanusVisionConfig(
            image_size=side, patch_size=patch, num_image_tokens=length, projection_dim=width, **vision
        ),
        vq_config=janus_vq_config(vq.config, width, side // patch),
        image_token_id=words.image_token_id,
        tie_word_embeddings=True,
    )
    model = JanusForConditionalGeneration(config)
    model.model.vqmodel.load_state_dict(janus_vq_state(vq))
    model.model.generation_embeddings.weight.data.copy_(vq.quantize.embedding.weight)
    model.generation_config = GenerationConfig(**special, generation_kwargs={"boi_token_id": words.boi_token_id})
    return model


@dataclass(frozen=True)
class JanusData:
    """The section ``data``.

    Attributes:
        seed: of the scenes.
        scenes: how many are drawn; their codes are extracted once.
        size: side of a picture in pixels.
        dropout: share of captions that are taken away, for guidance.
        eval_scenes: held-out scenes.
        objects: the most that a scene has.
        coloured: whether every caption tells colours; by itself three in five do.
        supervision: see JanusObjective; empty trains the published objective alone.
    """

    seed: int
    scenes: int
    size: int
    dropout: Fraction = 0.1
    eval_scenes: int = 64
    objects: int = MAX_OBJECTS
    coloured: bool = False
    supervision: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class JanusInit:
    """The section ``init``.

    Attributes:
        tokenizer: by name.
        janus: an exported model to go on from.
    """

    tokenizer: str
    janus: str | None = None


SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


class JanusTask(Task):
    """The ``janus`` task: see JanusData and JanusInit; ``model`` holds entries of LlamaConfig."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(JanusData, recipe.data, "data")
        self.init = read_options(JanusInit, recipe.init, "init")
        check_entries(recipe.model, SHAPE, "model")
        check_training_seed(self.data.seed)
        if strange := [name for name in self.data.supervision if name not in TERMS]:
            raise unknown_name("term of 'data.supervision'", strange[0], list(TERMS))
        if not 1 <= self.data.objects <= MAX_OBJECTS:
            raise VistokError(f"data.objects is {self.data.objects}: scenes have 1 to {MAX_OBJECTS}.")
        torch.manual_seed(recipe.seed)
        self.vq = VQTokenizer.from_pretrained(self.init.tokenizer).requires_grad_(False)
        self.length = (self.data.size // self.vq.config.downsample) ** 2
        self.processor = janus_processor(self.data.size, self.length)
        janus = build_janus(self.vq, self.processor, self.data.size, recipe.model)
        if self.init.janus is not None:
            janus.load_state_dict(load_janus(self.init.janus).state_dict())
        for part in (janus.model.vqmodel, janus.model.vision_model, janus.model.aligner):
            part.requires_grad_(False)
        words = self.processor.tokenizer
        kept = (words.bos_token_id, words.boi_token_id)
        self.scenes = self._scenes(self.data.seed, self.data.scenes)
        self.model = JanusObjective(
            janus, words.pad_token_id, kept, self.data.dropout, self.data.supervision, self._colours()
        )
        self.codes = torch.full((self.data.scenes, self.length), -1, dtype=torch.int16)

    def _scenes(self, seed: int, count: int) -> Scenes:
        """The first ``count`` scenes of a world that have no more objects than are asked for."""
        drawn = sample_scenes(count, seed)
        few = drawn.present.sum(1) <= self.data.objects
        start, index = count, drawn.index[few]
        while len(index) < count:
            more = sample_scenes(count, seed, start)
            start, index = start + count, torch.cat([index, more.index[more.present.sum(1) <= self.data.objects]])
        return scenes_at(index[:count], seed)

    def _colours(self) -> Tensor:
        """What each code shows, see ``code_colours``."""
        seen = self.scenes[:COUNTED]
        cells = plan(seen, self.data.size // self.vq.config.downsample, self.data.size).cells
        codes = torch.cat([self._extract(seen[i : i + CHUNK]) for i in range(0, len(seen), CHUNK)])
        return code_colours(codes, cells, self.vq.config.codebook_size)

    @torch.no_grad()
    def _extract(self, scenes: Scenes) -> Tensor:
        images = render(scenes, self.data.size)
        return self.vq.encode(images.to(next(self.vq.parameters()).device)).flatten(1).cpu()

    def _tokens(self, rows: slice) -> Tensor:
        """Codes of training scenes, extracted in chunks on first use."""
        for start in range(rows.start - rows.start % CHUNK, rows.stop, CHUNK):
            at = slice(start, min(start + CHUNK, len(self.codes)))
            if self.codes[start, 0] < 0:
                self.codes[at] = self._extract(self.scenes[at]).to(torch.int16)
        return self.codes[rows].long()

    def _said(self, scenes: Scenes, variant: int = 0) -> list[Statement]:
        said = statements(scenes, variant)
        return [replace(s, with_colour=True) for s in said] if self.data.coloured else said

    def _words(self, texts: list[str]) -> dict[str, Tensor]:
        told = self.processor(text=texts, generation_mode="image", padding=True, return_tensors="pt")
        return {"input_ids": told["input_ids"], "attention_mask": told["attention_mask"]}

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns scenes in order, pass after pass, with captions worded anew in each pass."""
        steps = len(self.codes) // self.recipe.batch_size
        variant, place = divmod(step, steps)
        first = place * self.recipe.batch_size
        rows = slice(first + rows.start, first + rows.stop)
        scenes = self.scenes[rows]
        said = self._said(scenes, variant)
        batch = self._words([s.text for s in said]) | {"tokens": self._tokens(rows)}
        if not self.data.supervision:
            return batch
        grid = self.data.size // self.vq.config.downsample
        return batch | {"facts": torch.tensor([facts(s) for s in said])} | plan(scenes, grid, self.data.size)._asdict()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the cross-entropy of held-out scenes, in nats per code, with and without their captions."""
        scenes, device = self._scenes(HELD_OUT, self.data.eval_scenes), self.model.kept.device
        tokens = self._extract(scenes).to(device)
        told = {k: v.to(device) for k, v in self._words([s.text for s in self._said(scenes)]).items()}
        untold = told | {"input_ids": self.model.untold(told["input_ids"])}
        return {
            "held_out_loss": self.model(**told, tokens=tokens)[0].item(),
            "held_out_loss_without_captions": self.model(**untold, tokens=tokens)[0].item(),
        }

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the model without its tokenizer of pictures, in half precision, its processor, and the card."""
        janus = self.model.janus.half()
        own = {k: v for k, v in janus.state_dict().items() if not k.startswith(TOKENIZER_PREFIX)}
        janus.save_pretrained(directory, state_dict=own)
        self.processor.save_pretrained(directory)
        network = nn.ModuleList(m for name, m in janus.model.named_children() if name != "vqmodel")
        parts = {"tokenizer": self.init.tokenizer}
        write_training_card(
            directory, self.recipe, network, "text-to-image", "janus", metrics, steps, parts, "2410.13848"
        )
