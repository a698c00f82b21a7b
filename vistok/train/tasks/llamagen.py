"""Train a LlamaGen on the codes of pictures (arXiv 2406.06525): from captions, or from classes.

The caption encoder is frozen, as the published ones' was, or trained on. Pictures' codes are extracted once with the
frozen tokenizer, as they are first needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.captions import clean_caption
from vistok.errors import VistokError
from vistok.models.llamagen import LlamaGen
from vistok.models.text_encoder import TextEncoder, encoder_folder, left_pad
from vistok.tokenizers.vq import VQTokenizer
from vistok.train.options import read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.sources import Draw, Extracted, PictureData, Source, open_source
from vistok.train.tasks.pictures import PictureTask, check_size
from vistok.zoo import resolve
from vistok.zoo.checkpoint import load_strict


@dataclass(frozen=True, kw_only=True)
class LlamaGenData(PictureData):
    """Entries of ``data`` of the ``llamagen`` task, beside those of PictureData.

    Attributes:
        size: side of the pictures in pixels.
        tune_captions: train the caption encoder as well.
    """

    size: int
    tune_captions: bool = False


@dataclass(frozen=True, kw_only=True)
class LlamaGenInit:
    """Entries of ``init``.

    Attributes:
        vq: the tokenizer.
        text_encoder: a pre-trained caption encoder, or a generator that has one.
        gpt: a generator to go on from, which brings its own encoder.
        blocks: a generator of other codes whose blocks are taken, see ``take_blocks``.
    """

    vq: str
    text_encoder: str | None = None
    gpt: str | None = None
    blocks: str | None = None


def captioned_states(
    gpt: LlamaGen,
    text: TextEncoder,
    input_ids: Tensor,
    attention_mask: Tensor,
    tokens: Tensor,
    dropped: Tensor | None = None,
) -> list[Tensor]:
    """Returns states of a generator after each layer that tokens [B, N] are predicted from, given tokenized captions.

    In training, the captions of the pictures ``dropped``, bool [B], are; the generator draws them if None.
    """
    encoded = text.encoder(input_ids=input_ids, attention_mask=attention_mask)
    return gpt.states(tokens[:, :-1], *left_pad(encoded.last_hidden_state, attention_mask), dropped)


class LlamaGenObjective(nn.Module):
    """Cross-entropy of image codes given captions or classes; the generator itself drops conditions at random.

    Args:
        gpt: the generator.
        text: the caption encoder; None for a generator of classes.
        term: another loss of logits [B, N, V] and the codes [B, N] that they predict, if any.
    """

    def __init__(self, gpt: LlamaGen, text: TextEncoder | None, term: nn.Module | None = None):
        super().__init__()
        self.gpt, self.text_encoder, self.term = gpt, text, term

    def states(self, tokens: Tensor, **condition: Tensor) -> list[Tensor]:
        """Returns the states after each layer that tokens [B, N] are predicted from.

        Args:
            tokens: codes of pictures.
            condition: ``labels`` [B], or captions as ``input_ids`` and ``attention_mask``, [B, L].
        """
        if self.text_encoder is None:
            return self.gpt.states(tokens[:, :-1], condition["labels"])
        return captioned_states(
            self.gpt, self.text_encoder, condition["input_ids"], condition["attention_mask"], tokens
        )

    def logits(self, states: list[Tensor]) -> Tensor:
        """Returns the logits of tokens, float32 [B, N, V]."""
        return self.gpt.head(self.gpt.norm(states[-1])).float()

    def forward(self, tokens: Tensor, **condition: Tensor):
        """Returns the loss of tokens [B, N] and its parts; the condition is as of ``states``."""
        logits = self.logits(self.states(tokens, **condition))
        loss = F.cross_entropy(logits.transpose(1, 2), tokens)
        if self.term is None:
            return loss, {"codes": loss.detach()}
        term = self.term(logits, tokens)
        return loss + term, {"codes": loss.detach(), "term": term.detach()}


def caption_encoder(init: LlamaGenInit) -> TextEncoder:
    """Returns the encoder that ``text_encoder`` or, without one, ``gpt`` names: a T5, or a generator's own.

    Raises:
        VistokError: neither is named.
    """
    name = init.text_encoder or init.gpt
    if name is None:
        raise VistokError(
            "a generator of captions needs an encoder: name one as 'init.text_encoder', or train one of classes with "
            "'model.model_type: c2i'."
        )
    return load_caption_encoder(name)


def load_caption_encoder(name: str) -> TextEncoder:
    """Returns a T5 by its name or folder, or the encoder of a generator that has one, in float32."""
    return TextEncoder.from_pretrained(encoder_folder(name), torch.float32)


def frozen_caption_encoder(name: str | None) -> TextEncoder | None:
    """As ``load_caption_encoder``, not to be trained; None where there are no captions."""
    return None if name is None else load_caption_encoder(name).requires_grad_(False).eval()


def take_blocks(gpt: LlamaGen, other: LlamaGen) -> None:
    """Gives a generator the blocks of one of other codes; its embedding of codes and its head stay new.

    Raises:
        VistokError: the blocks have other shapes.
    """
    parts = ("layers", "cls_embedding", "norm")
    state = {key: value for key, value in other.state_dict().items() if key.split(".")[0] in parts}
    load_strict(gpt, gpt.state_dict() | state, "generator of this recipe's shape")


class LlamaGenTask(PictureTask):
    """The ``llamagen`` task: see LlamaGenData and LlamaGenInit.

    With ``model.model_type: c2i`` it learns from classes: the folders that pictures lie in, or what the one object of a
    scene is.
    """

    data_class = LlamaGenData
    paper = "2406.06525"

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(self.data_class, recipe.data, "data")
        self.init = read_options(LlamaGenInit, recipe.init, "init")
        torch.manual_seed(recipe.seed)
        self.vq = self.load_tokenizer(self.init.vq).requires_grad_(False)
        check_size(self.vq.capabilities, self.data.size)
        text = None
        if self._captioned():
            text = caption_encoder(self.init).requires_grad_(self.data.tune_captions)
        self.source = open_source(self.data, self.data.size, finite=True, by_class=text is None)
        if text is not None:
            self.check_captions(text)
        gpt = self._generator(self._condition_shape(text) | self.tokens_shape())
        self.codes = Extracted(len(self.source), self._extract_own, torch.int32)
        self.model = self.objective(gpt, text)

    def _captioned(self) -> bool:
        if self.init.gpt is None:
            return self.recipe.model.get("model_type", "t2i") != "c2i"
        return self.init.text_encoder is not None or (resolve(self.init.gpt) / "text_encoder").is_dir()

    def _condition_shape(self, text: TextEncoder | None) -> dict[str, Any]:
        if text is None:
            return {"model_type": "c2i", "cls_token_num": 1, "num_classes": max(1, len(self.source.classes))}
        return {"model_type": "t2i", "cls_token_num": text.max_length, "caption_dim": text.dim}

    def _generator(self, shape: dict[str, Any]) -> LlamaGen:
        gpt = start_network(LlamaGen, self.init.gpt, self.recipe.model, shape)
        if self.init.gpt is None and self.init.blocks is not None:
            take_blocks(gpt, LlamaGen.from_pretrained(self.init.blocks))
        return gpt

    def load_tokenizer(self, name: str) -> nn.Module:
        """Returns the tokenizer of this name."""
        return VQTokenizer.from_pretrained(name)

    def tokens_shape(self) -> dict[str, int | str]:
        """Returns what the tokenizer says about the shape of a generator."""
        side = self.data.size // self.vq.config.downsample
        return {"vocab_size": self.vq.config.codebook_size, "block_size": side**2}

    def objective(self, gpt: LlamaGen, text: TextEncoder | None) -> nn.Module:
        """Returns what is trained."""
        return LlamaGenObjective(gpt, text)

    @torch.no_grad()
    def extract(self, source: Source, index: Tensor) -> Tensor:
        """Returns the codes of pictures, [B, N], on the CPU."""
        device = next(self.model.parameters()).device
        return self.vq.to(device).encode(source.pictures(index).to(device)).flatten(1).cpu()

    def _extract_own(self, index: Tensor) -> Tensor:
        return self.extract(self.source, index)

    def words(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns captions as the encoder reads them: numbers of words and their mask, [B, L] each."""
        encoder = self.model.text_encoder
        captions = [clean_caption(each) for each in captions] if encoder.clean_captions else list(captions)
        tokens = encoder.tokenizer(
            captions, max_length=encoder.max_length, padding="max_length", truncation=True, return_tensors="pt"
        )
        return tokens["input_ids"], tokens["attention_mask"]

    def condition(self, source: Source, draw: Draw) -> dict[str, Tensor]:
        """Returns what the objective is told about pictures beside their codes."""
        if self.model.text_encoder is None:
            return {"labels": source.labels(draw.index)}
        words, mask = self.words(source.captions(draw))
        return {"input_ids": words, "attention_mask": mask}

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns codes and conditions, pass after pass; scenes are worded anew in each."""
        draw = self.source.draw(step * self.recipe.batch_size + rows.start, rows.stop - rows.start)
        return self.condition(self.source, draw) | {"tokens": self.codes[draw.index].long()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the cross-entropy of held-out pictures, in nats a code, with their conditions and without."""
        gpt, held_out, index = self.model.gpt, self.source.held_out(), self.held_out_index()
        device = gpt.rope.device
        tokens = torch.cat([self.extract(held_out, part) for part in index.split(128)]).to(device)
        told = self.condition(held_out, Draw(index, torch.zeros_like(index)))
        metrics = self.model(**{k: v.to(device) for k, v in told.items()}, tokens=tokens)[1]
        untold = F.cross_entropy(gpt(tokens[:, :-1], gpt.null_condition(len(index))).flatten(0, 1), tokens.flatten())
        what = "classes" if self.model.text_encoder is None else "captions"
        return {
            "held_out_loss": metrics.pop("codes").item(),
            f"held_out_loss_without_{what}": untold.item(),
        } | {f"held_out_{name}": value.item() for name, value in metrics.items()}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the generator and its caption encoder as one embedded model."""
        gpt, text = self.model.gpt, self.model.text_encoder
        gpt.save_pretrained(directory, torch.float16)
        if text is not None:
            text.half().save_pretrained(directory / "text_encoder")
        network = nn.ModuleList([gpt, *([] if text is None else [text])])
        task, parts = "class-to-image" if text is None else "text-to-image", {"tokenizer": self.init.vq}
        self.write_card(directory, network, task, gpt.family, metrics, steps, parts, self.paper)
