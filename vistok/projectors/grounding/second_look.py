"""Visual Perception Token (arXiv 2502.17425) at work: around ``generate``, control tokens get a second look.

The model reads a picture and a question. Where it answers with a region, the region of the full picture follows as a
new picture in a new turn, with the question; where it answers with a re-encoding action, the features of another
encoder do, conditioned on the hidden state that asked for them. Then it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vistok.errors import VistokError
from vistok.models.extension import load_extended, word_ids
from vistok.projectors.grounding.control import (
    ACTIONS,
    REGION_START,
    REGION_TOKENS,
    action_tokens,
    parse_regions,
    squared,
)
from vistok.projectors.grounding.interface import Grounding, Region, check_text
from vistok.projectors.learned.perception import PerceptionProjector

TURN = "USER: <image>\n{text} ASSISTANT:"
LONGEST_ANSWER = 32


@dataclass(frozen=True)
class Encoder:
    """A second encoder: pictures to features [1, N, C] (or a map of them), and the projector that conditions them."""

    features: Callable[[Image.Image], Tensor]
    projector: PerceptionProjector


class SecondLook:
    """A multimodal model that looks twice.

    Args:
        model, processor: a LLaVA whose vocabulary has the control tokens, and its processor.
        encoders: by action, of ``ACTIONS``; an action without one is an error when the model asks for it.
        most: regions that an answer may ask for.
        turn: how a picture and a question are put.

    Raises:
        VistokError: the processor does not know the control tokens, or an action is unknown.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        encoders: Mapping[str, Encoder] | None = None,
        most: int = 4,
        turn: str = TURN,
    ) -> None:
        self.model, self.processor, self.most, self.turn = model, processor, most, turn
        self.encoders = dict(encoders or {})
        if unknown := sorted(set(self.encoders) - set(ACTIONS)):
            raise VistokError(f"unknown action '{unknown[0]}': choose of {', '.join(ACTIONS)}.")
        word_ids(processor.tokenizer, REGION_TOKENS)
        self.actions = {name: word_ids(processor.tokenizer, action_tokens(name))[1] for name in self.encoders}

    @classmethod
    def from_pretrained(cls, name: str | Path, device: Any = "cpu") -> SecondLook:
        """Returns a model that the ``vpt`` task trained: embedded, a folder or a hub id.

        Raises:
            VistokError: there is none.
        """
        model, processor, _, _ = load_extended(name, "vpt", device)
        return cls(model, processor)

    def ground(self, picture: Image.Image, text: str) -> Grounding:
        """Answers a question, with second looks where the model asks for them.

        Args:
            picture: RGB of any size.
            text: the question.

        Returns:
            The answer, and the regions that were looked at.

        Raises:
            VistokError: the text is empty or holds a placeholder of a picture, or the model asks for more regions than
                allowed, or for an encoder that it does not have.
        """
        question = f"{check_text(text, self.processor)}?"
        prompt = self.turn.format(text=question)
        said = self._say([picture], prompt)
        asked = [name for name in ACTIONS if action_tokens(name)[1] in said]
        if asked:
            return Grounding(self._reencode(picture, question, prompt, said, asked[0]))
        if REGION_START not in said:
            return Grounding(said)
        looked = [squared(box, picture.size) for box in parse_regions(said, picture.size, self.most)]
        if not looked:
            raise VistokError(f"the model's region is not whole ('{said}'): ask in other words.")
        again = f"{prompt} {said} " + "".join(self.turn.split("<image>")[0] + "<image>\n" for _ in looked[1:])
        again += self.turn.format(text=question)
        crops = [picture.crop(box) for box in looked]
        answer = self._say([picture, *crops], again)
        return Grounding(answer, tuple(Region(box=tuple(map(float, box))) for box in looked))

    def _squeeze(self, picture: Image.Image) -> Image.Image:
        """Returns the whole picture as a square, for processors that would cut its ends."""
        size = getattr(self.processor.image_processor, "crop_size", None)
        if not size:
            return picture
        return picture.resize((size["width"], size["height"]), Image.Resampling.BICUBIC)

    def _inputs(self, pictures: list[Image.Image], prompt: str) -> Any:
        shown = [self._squeeze(picture) for picture in pictures]
        return self.processor(images=shown, text=prompt, return_tensors="pt").to(self.model.device)

    @torch.no_grad()
    def _say(self, pictures: list[Image.Image], prompt: str) -> str:
        inputs = self._inputs(pictures, prompt)
        said = self.model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
        return self._text(said[0, inputs["input_ids"].shape[1] :])

    def _text(self, tokens: Tensor) -> str:
        tokenizer = self.processor.tokenizer
        words = tokenizer.decode(tokens, skip_special_tokens=False)
        for mark in (tokenizer.eos_token, tokenizer.pad_token):
            words = words.replace(mark or "\0", " ")
        return " ".join(words.split())

    @torch.no_grad()
    def _reencode(self, picture: Image.Image, question: str, prompt: str, said: str, action: str) -> str:
        """Returns the answer behind the features that an action asks for."""
        if action not in self.encoders:
            raise VistokError(f"the model asks for the encoder of '{action}', and there is none: pass it as encoders.")
        start, _, end = action_tokens(action)
        # Whatever follows the start is the action, and the state that predicts it is the condition.
        before = self._inputs([picture], f"{prompt} {said.split(start)[0]} {start}")
        states = self.model.model(**before, use_cache=False).last_hidden_state
        encoder = self.encoders[action]
        tokens = encoder.projector(encoder.features(picture), states[:, -1].to(encoder.projector.linear_feature.weight))
        embed = self.model.get_input_embeddings()
        first = self._embeddings(before)
        ids = torch.tensor([[self.actions[action]]], device=self.model.device)
        opening, closing = self.turn.format(text=question).split("<image>")
        tail = [
            embed(ids),
            embed(self._ids(f"{end} {opening}")),
            tokens.to(first),
            embed(self._ids(closing)),
        ]
        embeds = torch.cat([first, *(part.to(first) for part in tail)], 1)
        mask = torch.ones(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
        answer = self.model.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=LONGEST_ANSWER, do_sample=False
        )
        return self._text(answer[0])

    def _ids(self, text: str) -> Tensor:
        ids = self.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return ids.to(self.model.device)

    def _embeddings(self, inputs: Any) -> Tensor:
        """Returns embeddings of a prompt with its visual tokens in place."""
        embeds = self.model.get_input_embeddings()(inputs["input_ids"])
        visual = torch.cat(list(self.model.get_image_features(inputs["pixel_values"]).pooler_output))
        there = (inputs["input_ids"] == self.model.config.image_token_id)[..., None].expand_as(embeds)
        return embeds.masked_scatter(there, visual.to(embeds))
