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
from vistok.data.scenes.splits import HELD_OUT
from vistok.errors import VistokError
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.models.text_encoder import TextEncoder, left_pad
from vistok.tokenizers.vq import VQTokenizer
from vistok.train.export import write_training_card
from vistok.train.recipe import Recipe
from vistok.train.tasks.captions import facts
from vistok.train.tasks.contrast import contrast_loss, first_rows, untrue
from vistok.train.tasks.scene_reader import SceneReader, code_colours, colour_loss, plan
from vistok.zoo import resolve
from vistok.zoo.checkpoint import load_strict

CHUNK = 32  # scenes that are encoded at a time
COUNTED = 256  # scenes in which is counted what codes show


def captioned_states(
    gpt: LlamaGen,
    text: TextEncoder,
    input_ids: Tensor,
    attention_mask: Tensor,
    tokens: Tensor,
    dropped: Tensor | None = None,
) -> list[Tensor]:
    """States of a generator after each layer that tokens [B, N] are predicted from, given tokenized captions.

    In training, the captions of the pictures ``dropped``, bool [B], are; the generator draws them if None.
    """
    encoded = text.encoder(input_ids=input_ids, attention_mask=attention_mask)
    return gpt.states(tokens[:, :-1], *left_pad(encoded.last_hidden_state, attention_mask), dropped)


class LlamaGenObjective(nn.Module):
    """Cross-entropy of image codes given captions, deep supervision by the scenes' plans and the captions' facts, and
    the contrast of captions.

    Args:
        gpt: the generator.
        text: the caption encoder.
        colours: what each code shows, see ``code_colours``.
        supervision: weights of ``colour_loss`` (``colour``), of ``contrast_loss`` (``contrast``) and of the
            cross-entropies of ``SceneReader``, by name.
    """

    def __init__(self, gpt: LlamaGen, text: TextEncoder, colours: Tensor, supervision: dict[str, float]):
        super().__init__()
        self.gpt = gpt
        self.text_encoder = text
        self.reader = SceneReader(gpt.config.dim, gpt.config.grid)
        self.supervision = supervision
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
        """Loss of B pictures.

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
        logits = self.gpt.head(self.gpt.norm(states[-1])).float()
        losses = F.cross_entropy(logits.transpose(1, 2), painted, reduction="none")
        loss = losses[:count].mean()
        read = self.reader(states[len(states) // 2][:count], **scene)
        read["colour"] = colour_loss(logits[:count], tokens, self.colours)
        decisive = first_rows(scene["begins"][:pairs], self.gpt.config.grid)
        own, other = (-x.where(decisive, 0).sum(1) for x in (losses[:pairs], losses[count:]))
        read["contrast"] = contrast_loss(own, other, contrasted & ~dropped[:pairs])
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


def choose_binding(said: list[Statement], count: int) -> list[int]:
    """Numbers of the first ``count`` statements that bind a colour or a place to one of two groups, so that they can be
    made untrue; of all that do not; and of the others."""
    binding = [untrue(s) is not None for s in said]
    bound = [i for i, binds in enumerate(binding) if binds]
    return bound[:count] + [i for i, binds in enumerate(binding) if not binds] + bound[count:]


class LlamaGenTask:
    """The ``llamagen`` task.

    ``init.vq`` names the tokenizer, ``init.text_encoder`` a pre-trained caption encoder or a generator that has one,
    ``init.gpt`` weights to go on from, which bring their own encoder, or ``init.blocks`` a generator of other codes,
    see ``take_blocks``. ``data.supervision`` holds the weights of ``LlamaGenObjective``; ``data.tune_captions`` trains
    the caption encoder as well. Of the captions of a batch, a share of ``data.binding`` binds colours or places to two
    groups, being chosen from twice as many scenes, and is contrasted with untrue ones; by itself two in five do.
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
        self.binding = round(self.recipe.data.get("binding", 0.0) * self.recipe.batch_size)  # captions of a batch
        self.drawn = self.recipe.batch_size * (2 if self.binding else 1)  # scenes for a batch
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

    def _words(self, said: list[Statement]) -> tuple[Tensor, Tensor]:
        """Captions as the encoder reads them: numbers of words and their mask, [B, L] each."""
        encoder = self.model.text_encoder
        texts = [s.text for s in said]
        tokens = encoder.tokenizer(texts, max_length=encoder.max_length, padding="max_length", return_tensors="pt")
        return tokens["input_ids"], tokens["attention_mask"]

    def _told(self, scenes: Scenes, said: list[Statement], variant: int, pairs: int) -> dict[str, Tensor]:
        """What the objective is told about scenes: what is said of them and its facts, other captions of the first
        ``pairs``, and the scenes' plans."""
        others = [untrue(s, variant) for s in said[:pairs]]
        words, mask = self._words(said + [other or s for other, s in zip(others, said, strict=False)])
        return {
            "input_ids": words[: len(said)],
            "attention_mask": mask[: len(said)],
            "facts": torch.tensor([facts(s) for s in said]),
            "other_ids": words[len(said) :],
            "other_mask": mask[len(said) :],
            "contrasted": torch.tensor([other is not None for other in others], dtype=torch.bool),
        } | plan(scenes, self.model.gpt.config.grid)._asdict()

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Scenes in order, pass after pass, with captions worded anew in each pass."""
        size = self.recipe.batch_size
        variant, start = divmod(step * self.drawn, self.scenes)
        scenes = sample_scenes(self.drawn, self.seed, start)
        said = statements(scenes, variant)
        if self.binding:
            chosen = choose_binding(said, self.binding)[:size]
            scenes, said = scenes[chosen], [said[i] for i in chosen]
        scenes, said = scenes[rows], said[rows]
        pairs = max(0, min(self.binding, rows.stop) - rows.start)
        return self._told(scenes, said, variant, pairs) | {"tokens": self._tokens(scenes.index)}

    def after_step(self, step: int) -> None:
        """Nothing happens between steps."""

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Cross-entropy of held-out scenes, in nats per code, with and without their captions."""
        count = self.recipe.data.get("eval_scenes", 128)
        gpt = self.model.gpt
        device = gpt.rope.device
        tokens = self._extract(HELD_OUT, 0, count).to(device)
        scenes = sample_scenes(count, HELD_OUT)
        told = self._told(scenes, statements(scenes), 0, count)
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
        parts = {"tokenizer": self.recipe.init["vq"]}
        network = nn.ModuleList([self.model.gpt, self.model.text_encoder])
        write_training_card(
            directory, self.recipe, network, "text-to-image", "llamagen", metrics, steps, parts, "2406.06525"
        )
