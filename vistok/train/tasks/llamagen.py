"""Train a text-to-image LlamaGen on scenes (arXiv 2406.06525) behind a caption encoder, frozen as the published ones'
was, or trained on.

The scenes' codes are extracted once with the frozen tokenizer, as they are first needed. Each pass over them words
the captions anew.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import Scenes, render, sample_scenes, statements
from vistok.data.scenes.language import Statement
from vistok.errors import VistokError
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.models.text import TextEncoder, left_pad
from vistok.tokenizers.vq import VQTokenizer
from vistok.train.export import write_training_card
from vistok.train.recipe import Recipe
from vistok.train.tasks.captions import facts
from vistok.train.tasks.scene_reader import SceneReader, code_colours, code_losses, plan
from vistok.train.tasks.vq import HELD_OUT_SEED
from vistok.zoo import resolve
from vistok.zoo.checkpoint import load_strict

CHUNK = 32  # scenes that are encoded at a time
COUNTED = 256  # scenes in which is counted what codes show


def captioned_states(
    gpt: LlamaGen, text: TextEncoder, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor
) -> list[Tensor]:
    """States of a generator after each layer that tokens [B, N] are predicted from, given tokenized captions."""
    encoded = text.encoder(input_ids=input_ids, attention_mask=attention_mask)
    return gpt.states(tokens[:, :-1], *left_pad(encoded.last_hidden_state, attention_mask))


class LlamaGenObjective(nn.Module):
    """Cross-entropy of image codes given captions, and deep supervision by the scenes' plans and the captions' facts.

    The generator itself drops conditions at random.

    Args:
        gpt: the generator.
        text: the caption encoder.
        colours: what each code shows, see ``code_colours``.
        supervision: weights of ``code_losses`` and of the cross-entropies of ``SceneReader``, by name.
    """

    def __init__(self, gpt: LlamaGen, text: TextEncoder, colours: Tensor, supervision: dict[str, float]):
        super().__init__()
        self.gpt = gpt
        self.text_encoder = text
        self.reader = SceneReader(gpt.config.dim, gpt.config.grid)
        self.supervision = supervision
        self.register_buffer("colours", colours, persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, **scene: Tensor):
        states = captioned_states(self.gpt, self.text_encoder, input_ids, attention_mask, tokens)
        logits = self.gpt.head(self.gpt.norm(states[-1])).float()
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        read = self.reader(states[len(states) // 2], **scene)
        read |= code_losses(logits, tokens, self.colours)
        metrics = {"codes": loss.detach(), **{name: x.detach() for name, x in read.items()}}
        return loss + sum(weight * read[name] for name, weight in self.supervision.items()), metrics


def caption_encoder(recipe: Recipe) -> TextEncoder:
    """The encoder that ``init.text_encoder`` or, without one, ``init.gpt`` names: a T5, or a generator's own."""
    folder = resolve(recipe.init.get("text_encoder") or recipe.init["gpt"])
    own = folder / "text_encoder"
    return TextEncoder.from_pretrained(own if own.is_dir() else folder, torch.float32)


def take_blocks(gpt: LlamaGen, other: LlamaGen) -> None:
    """Start from the blocks of a generator of other codes; the embedding of codes and the head stay new.

    Raises:
        VistokError: the blocks have other shapes.
    """
    parts = ("layers", "cls_embedding", "norm")
    state = {key: value for key, value in other.state_dict().items() if key.split(".")[0] in parts}
    load_strict(gpt, gpt.state_dict() | state, "generator of this recipe's shape")


def choose_relations(said: list[Statement], count: int) -> list[int]:
    """Numbers of the first ``count`` statements that tell a relation, of all that tell none, and of the others."""
    told = [i for i, s in enumerate(said) if s.where is not None]
    return told[:count] + [i for i, s in enumerate(said) if s.where is None] + told[count:]


class LlamaGenTask:
    """The ``llamagen`` task.

    ``init.vq`` names the tokenizer, ``init.text_encoder`` a pre-trained caption encoder or a generator that has one,
    ``init.gpt`` weights to go on from, which bring their own encoder, or ``init.blocks`` a generator of other codes,
    see ``take_blocks``. ``data.supervision`` holds the weights of ``code_losses`` and of the cross-entropies of
    ``SceneReader``, by name; ``data.tune_captions`` trains the caption encoder as well. Of the captions of a batch,
    about a share of ``data.relations`` tells a relation, being chosen from twice as many scenes; by itself one in four
    or five does.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.vq = self._tokenizer().requires_grad_(False)
        text = caption_encoder(recipe).requires_grad_(recipe.data.get("tune_captions", False))
        if "gpt" in recipe.init:
            gpt = LlamaGen.from_pretrained(recipe.init["gpt"])
        else:
            condition = {"model_type": "t2i", "caption_dim": text.dim, "cls_token_num": text.max_length}
            gpt = LlamaGen(LlamaGenConfig(**condition, **self._shape(), **recipe.model))
            if "blocks" in recipe.init:
                take_blocks(gpt, LlamaGen.from_pretrained(recipe.init["blocks"]))
        self.model = self._objective(gpt, text)
        self._prepare(gpt.config.block_size)

    def _tokenizer(self) -> nn.Module:
        return VQTokenizer.from_pretrained(self.recipe.init["vq"])

    def _shape(self) -> dict[str, int | str]:
        """What the tokenizer says about the shape of a new generator."""
        return {"vocab_size": self.vq.config.codebook_size}

    def _objective(self, gpt: LlamaGen, text: TextEncoder) -> nn.Module:
        size, seed = self.recipe.data["size"], self.recipe.data["seed"]
        scenes = sample_scenes(COUNTED, seed)
        codes = self.vq.encode(render(scenes, size)).flatten(1)
        colours = code_colours(codes, plan(scenes, gpt.config.grid).cells, gpt.config.vocab_size)
        return LlamaGenObjective(gpt, text, colours, self.recipe.data.get("supervision", {}))

    def _prepare(self, length: int) -> None:
        """Room for the codes of all scenes."""
        self.seed, self.scenes = self.recipe.data["seed"], self.recipe.data["scenes"]
        self.relations = self.recipe.data.get("relations", 0.0)
        self.drawn = self.recipe.batch_size * (2 if self.relations else 1)  # scenes for a batch
        if self.scenes % self.drawn:
            raise VistokError(f"data.scenes ({self.scenes}) must be a multiple of the {self.drawn} drawn for a batch.")
        self.codes = torch.full((self.scenes, length), -1, dtype=torch.int16)

    @torch.no_grad()
    def _extract(self, seed: int, start: int, count: int) -> Tensor:
        device = next(self.model.parameters()).device
        images = render(sample_scenes(count, seed, start), self.recipe.data["size"])
        return self.vq.to(device).encode(images.to(device)).flatten(1).cpu()

    def _tokens(self, index: Tensor) -> Tensor:
        """Codes of training scenes, extracted in chunks on first use."""
        for chunk in (index[self.codes[index, 0] < 0] // CHUNK).unique().tolist():
            count = min(CHUNK, self.scenes - chunk * CHUNK)
            found = self._extract(self.seed, chunk * CHUNK, count)
            self.codes[chunk * CHUNK : chunk * CHUNK + count] = found.to(torch.int16)
        return self.codes[index].long()

    def _captions(self, said: list[Statement]) -> dict[str, Tensor]:
        """Captions as the encoder reads them, and their facts."""
        encoder = self.model.text_encoder
        texts = [s.text for s in said]
        tokens = encoder.tokenizer(texts, max_length=encoder.max_length, padding="max_length", return_tensors="pt")
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "facts": torch.tensor([facts(s) for s in said]),
        }

    def _told(self, scenes: Scenes, variant: int = 0) -> dict[str, Tensor]:
        """What the objective is told about scenes: captions in one wording, and the scenes' plans."""
        return self._captions(statements(scenes, variant)) | plan(scenes, self.model.gpt.config.grid)._asdict()

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Scenes in order, pass after pass, with captions worded anew in each pass."""
        size = self.recipe.batch_size
        variant, start = divmod(step * self.drawn, self.scenes)
        scenes = sample_scenes(self.drawn, self.seed, start)
        if self.relations:
            scenes = scenes[choose_relations(statements(scenes, variant), round(self.relations * size))[:size]]
        scenes = scenes[rows]
        return self._told(scenes, variant) | {"tokens": self._tokens(scenes.index)}

    def after_step(self, step: int) -> None:
        """Nothing happens between steps."""

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Cross-entropy of held-out scenes, in nats per code, with and without their captions."""
        count = self.recipe.data.get("eval_scenes", 128)
        gpt = self.model.gpt
        device = gpt.rope.device
        tokens = self._extract(HELD_OUT_SEED, 0, count).to(device)
        told = self._told(sample_scenes(count, HELD_OUT_SEED))
        metrics = self.model(**{k: v.to(device) for k, v in told.items()}, tokens=tokens)[1]
        untold = F.cross_entropy(gpt(tokens[:, :-1], gpt.null_condition(count)).flatten(0, 1), tokens.flatten())
        return {
            "held_out_loss": metrics.pop("codes").item(),
            "held_out_loss_without_captions": untold.item(),
        } | {f"held_out_{name}": value.item() for name, value in metrics.items()}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the generator and its caption encoder as one embedded model."""
        self.model.gpt.save_pretrained(directory, torch.float16)
        self.model.text_encoder.half().save_pretrained(directory / "text_encoder")
        parts = {"vq": self.recipe.init["vq"]}
        network = nn.ModuleList([self.model.gpt, self.model.text_encoder])
        write_training_card(
            directory, self.recipe, network, "text-to-image", "llamagen", metrics, steps, parts, "2406.06525"
        )
