"""READ (arXiv 2412.17741) at work: a multimodal model points at what a text means, and a decoder makes a mask of it.

The model answers with <SEG>. The last hidden state that predicts it, and those of the visual tokens, give a similarity
map; its points and the projected state prompt a mask decoder: the small one that was trained with the model, or SAM.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.extension import load_extended, word_ids
from vistok.projectors.grounding.interface import Grounding, Region, check_text
from vistok.projectors.grounding.masks import MaskDecoder, SamMasks, point_hints
from vistok.projectors.grounding.points import Points, full_map, similarity, similarity_points

SEG, WHERE = "<SEG>", "where"
TEMPLATE = "USER: <image>\nwhere is {text}? ASSISTANT:"
LONGEST_ANSWER = 8


def seg_projection(width: int, out: int) -> nn.ModuleList:
    """Returns the map of <SEG> states to the decoder's width, in the published layout (``text_hidden_fcs.0.{0,2}``)."""
    layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out), nn.Dropout(0.0)]
    return nn.ModuleList([nn.Sequential(*layers)])


class ReadHead(nn.Module):
    """The projection of <SEG> and the small mask decoder.

    Args:
        width: of the language model.
        features: width of the tower's features.
        prompt: width of the projected state.
        inner: width of the decoder's maps.
        points: how many points of the map prompt it.
        down_sample: the map is smoothed to that fraction of its side.
    """

    def __init__(
        self, width: int, features: int, prompt: int = 32, inner: int = 32, points: int = 16, down_sample: int = 1
    ) -> None:
        super().__init__()
        self.points, self.down_sample = points, down_sample
        self.text_hidden_fcs = seg_projection(width, prompt)
        self.decoder = MaskDecoder(features, prompt, inner)

    def find(self, scores: Tensor, image_hw: tuple[int, int]) -> Points:
        """Returns points of one similarity map [N] in a picture."""
        return similarity_points(scores, image_hw, self.points, down_sample=self.down_sample)

    def project(self, seg: Tensor) -> Tensor:
        """Returns states that predict <SEG> [..., D], as prompts of a decoder."""
        return self.text_hidden_fcs[0](seg)

    def forward(self, pixels: Tensor, features: Tensor, scores: Tensor, seg: Tensor) -> Tensor:
        """Returns logits of masks [P, S, S].

        Args:
            pixels: [P, 3, S, S] in [-1, 1].
            features: of the tower's patches [P, N, C].
            scores: similarity to the visual tokens [P, N].
            seg: states that predict <SEG> [P, D].
        """
        size = pixels.shape[-2:]
        hints = [point_hints(self.find(row, size), full_map(row, size), size) for row in scores.float()]
        return self.decoder(pixels, features, torch.stack(hints), self.project(seg))


class Read:
    """A multimodal model that grounds texts in pictures.

    Args:
        model, processor: a LLaVA whose vocabulary has <SEG>, and its processor.
        head: see ReadHead; without one, only SAM makes masks.
        template: prompt of a text, which stands in it as ``{text}``.

    Raises:
        VistokError: the processor does not know <SEG>.
    """

    def __init__(self, model: Any, processor: Any, head: ReadHead | None, template: str = TEMPLATE) -> None:
        self.model, self.processor, self.head, self.template = model, processor, head, template
        (self.seg,) = word_ids(processor.tokenizer, [SEG])

    @classmethod
    def from_pretrained(cls, name: str | Path, device: Any = "cpu") -> Read:
        """Returns a model that the ``read`` task trained: embedded, a folder or a hub id.

        Raises:
            VistokError: there is none.
        """
        from vistok.zoo.checkpoint import load_strict

        model, processor, extension, state = load_extended(name, "read", device)
        config = model.config
        head = ReadHead(config.text_config.hidden_size, config.vision_config.hidden_size, **extension.options)
        load_strict(head, {key: value.float() for key, value in state.items()}, str(name))
        return cls(model, processor, head.to(model.device).eval().requires_grad_(False))

    @torch.no_grad()
    def ground(self, picture: Image.Image, text: str, sam: SamMasks | None = None) -> Grounding:
        """Finds what a text means.

        Args:
            picture: RGB of any size; the model sees its centre square.
            text: such as ``the red circle``.
            sam: makes the masks in place of the small decoder.

        Raises:
            VistokError: the text is empty or holds a placeholder of a picture, the model has no mask decoder and no SAM
                is given, or it sees no grid.
        """
        text = check_text(text, self.processor)
        if self.head is None and sam is None:
            raise VistokError("this model has no mask decoder of its own: name a SAM checkpoint.")
        prompt = self.template.format(text=text)
        inputs = self.processor(images=picture, text=prompt, return_tensors="pt").to(self.model.device)
        said = self.model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
        answer = self.processor.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=False)
        answer = " ".join(word for word in answer.split() if word != self.processor.tokenizer.eos_token)
        places = (said[0] == self.seg).nonzero()[:, 0]
        places = places[places >= inputs["input_ids"].shape[1]]
        if not len(places):
            return Grounding(answer)
        inputs["input_ids"], inputs["attention_mask"] = said, torch.ones_like(said)
        states = self.model.model(**inputs, use_cache=False).last_hidden_state[0]
        visual = states[said[0] == self.model.config.image_token_id]
        scores = similarity(visual, states[places - 1]).T.float()  # the state before <SEG> is the one that predicts it
        features = None if sam is not None else self._features(inputs["pixel_values"])
        regions = []
        for row, seg in zip(scores, states[places - 1], strict=True):
            size = (picture.height, picture.width)
            points = similarity_points(row, size) if self.head is None else self.head.find(row, size)
            if sam is not None:
                mask = sam(picture, points, self._prompt(seg, sam))
            else:
                mask = uncrop(self.head(inputs["pixel_values"], features, row[None], seg[None])[0], size) > 0
            regions.append(Region(None, mask, points, full_map(row, size)))
        return Grounding(answer, tuple(regions))

    def _features(self, pixels: Tensor) -> Tensor:
        """Returns what the tower says of a picture's patches, [1, N, C]."""
        states = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        return states[self.model.config.vision_feature_layer][:, 1:]

    def _prompt(self, seg: Tensor, sam: SamMasks) -> Tensor | None:
        """Returns the projected state, where it is as wide as SAM's prompts."""
        prompt = None if self.head is None else self.head.project(seg.float())
        return prompt if prompt is not None and len(prompt) == sam.width else None


def uncrop(logits: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Returns logits of the centre square [S, S] as those of the whole picture [H, W]; nothing is outside it."""
    side = min(image_hw)
    square = F.interpolate(logits[None, None], size=(side, side), mode="bilinear")[0, 0]
    top, left = ((extent - side) // 2 for extent in image_hw)
    bottom, right = (extent - side - before for extent, before in zip(image_hw, (top, left), strict=True))
    return F.pad(square, (left, right, top, bottom), value=-torch.inf)
