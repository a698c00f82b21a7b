"""GenEval's detector and colour classifier on transformers: Mask2Former instances and CLIP colours.

Pre- and post-processing are those of the reference (mmdetection 2.x), not those of transformers' image processor, which
resizes masks to 384 x 384, rounds scores and gives no boxes. The published scores were made with mmdetection's own
training run of ``mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco``; the transformers checkpoint
(``facebook/mask2former-swin-small-coco-instance``) is another run, so its counting threshold of 0.9 cuts a little
elsewhere. Reports name the detector.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vistok.errors import VistokError, unknown_name
from vistok.eval.clip_score import ClipModel
from vistok.eval.geneval.judge import Box, Detection, ScoringOptions
from vistok.eval.geneval.metadata import COCO_CLASSES, COLORS
from vistok.eval.sets.features import full_precision
from vistok.eval.sets.statistics import check_finite
from vistok.eval.weights import weights_digest
from vistok.zoo.transformers import load_model

PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
LONG_SIDE, SHORT_SIDE, DIVISOR = 1333, 800, 32
GREY = (153, 153, 153)
BACKGROUNDS = {"grey": GREY, "original": None}  # behind objects whose colour is judged; the published one is grey


class Instances(NamedTuple):
    """Instances of one picture, in descending class probability.

    Shape:
        labels, scores, query_index [K]; boxes [K, 4]; masks bool [K, H, W].
    """

    labels: Tensor
    scores: Tensor
    boxes: Tensor
    masks: Tensor
    query_index: Tensor


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    padded_size: tuple[int, int],
    resized_size: tuple[int, int],
    original_size: tuple[int, int],
    top_k: int = 100,
) -> Instances:
    """Returns the instances in Mask2Former's raw outputs, as mmdetection makes them.

    Args:
        class_logits: [Q, C + 1], the last column is "no object".
        mask_logits: [Q, h, w].
        padded_size: (height, width) of the network's input.
        resized_size: of the part of it that is picture.
        original_size: of the picture.
        top_k: pairs of query and class that are kept; one query may give several classes.
    """
    classes = class_logits.shape[1] - 1
    probability, pairs = class_logits.softmax(-1)[:, :-1].flatten().topk(min(top_k, len(class_logits) * classes))
    queries, labels = pairs // classes, pairs % classes
    logits = F.interpolate(mask_logits[None], padded_size, mode="bilinear", align_corners=False)
    logits = logits[..., : resized_size[0], : resized_size[1]]
    logits = F.interpolate(logits, original_size, mode="bilinear", align_corners=False)[0, queries]
    masks = logits > 0
    inside = (logits.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    return Instances(labels, probability * inside, mask_boxes(masks), masks, queries)


def mask_boxes(masks: Tensor) -> Tensor:
    """Returns the boxes [K, 4] (xmin, ymin, xmax + 1, ymax + 1) of masks [K, H, W]; zeros where a mask is empty."""

    def extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
        first = occupied.int().argmax(1)
        last = occupied.shape[1] - occupied.flip(1).int().argmax(1)
        return first, last

    (left, right), (top, bottom) = extent(masks.any(1)), extent(masks.any(2))
    boxes = torch.stack([left, top, right, bottom], 1).float()
    return boxes * masks.any(2).any(1)[:, None]


def colour_crop(
    image: Image.Image, box: Box, mask: np.ndarray | None, background: tuple[int, int, int] | None = GREY
) -> Image.Image:
    """Returns what the colour classifier sees: the object cut to its box (rounded; black outside the picture).

    Args:
        image: RGB picture.
        box: of the object.
        mask: of the object, where the detector segments.
        background: colour of all that the mask leaves out; None keeps the picture's own.
    """
    if mask is not None and background is not None:
        image = Image.composite(image, Image.new("RGB", image.size, background), Image.fromarray(mask))
    return image.crop(tuple(round(float(side)) for side in box))


class Mask2FormerDetector:
    """Mask2Former by folder or hub id.

    Args:
        source: folder or hub id for transformers, with COCO's 80 classes in their order.
        device: where it runs; float32 throughout.

    Raises:
        VistokError: if there is no such model, or its classes are not COCO's.
    """

    options = ScoringOptions()
    class_names = COCO_CLASSES

    def __init__(self, source: str | Path, device: torch.device | str = "cpu"):
        from transformers import Mask2FormerForUniversalSegmentation

        self.model = load_model(source, Mask2FormerForUniversalSegmentation, "Mask2Former model", torch.device(device))
        if self.model.config.num_labels != len(COCO_CLASSES):
            raise VistokError(
                f"'{source}' knows {self.model.config.num_labels} classes; GenEval needs COCO's {len(COCO_CLASSES)} "
                "(e.g. facebook/mask2former-swin-small-coco-instance)."
            )
        self.device = torch.device(device)
        self.name = f"mask2former {weights_digest(self.model)}"

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        return [self._detect(image) for image in images]

    def _detect(self, image: Image.Image) -> list[Detection]:
        width, height = image.size
        scale = min(LONG_SIDE / max(width, height), SHORT_SIDE / min(width, height))
        resized = (int(height * scale + 0.5), int(width * scale + 0.5))
        pixels = torch.from_numpy(np.array(image)).to(self.device).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, resized, mode="bilinear", align_corners=False)
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD))
        padded = tuple(-(-side // DIVISOR) * DIVISOR for side in resized)
        pixels = F.pad((pixels - mean) / std, (0, padded[1] - resized[1], 0, padded[0] - resized[0]))
        with full_precision():
            # Without a mask transformers would count the padding as picture, as the reference does.
            output = self.model(pixel_values=pixels)
        # A score that is no number passes no threshold, so broken weights would look like empty pictures.
        check_finite(output.class_queries_logits[0], output.masks_queries_logits[0])
        found = instances(
            output.class_queries_logits[0], output.masks_queries_logits[0], padded, resized, (height, width)
        )
        rows = zip(
            found.labels.tolist(), found.boxes.tolist(), found.scores.tolist(), found.masks.cpu().numpy(), strict=True
        )
        return [Detection(COCO_CLASSES[label], tuple(box), score, mask) for label, box, score, mask in rows]


class ClipColours:
    """Zero-shot colours by CLIP (published: ViT-L/14 of OpenAI).

    Args:
        clip: the model.
        colour_names: colours to choose from.
        background: a name in :data:`BACKGROUNDS`: what is behind the objects.

    Raises:
        VistokError: another background.
    """

    def __init__(self, clip: ClipModel, colour_names: tuple[str, ...] = COLORS, background: str = "grey"):
        if background not in BACKGROUNDS:
            raise unknown_name("background", background, list(BACKGROUNDS))
        self.clip = clip
        self.colour_names = colour_names
        self.background = BACKGROUNDS[background]
        self.name = f"clip {clip.digest}, {background} background"
        self._class_embeddings: dict[str, Tensor] = {}

    def _embeddings(self, label: str) -> Tensor:
        if label not in self._class_embeddings:
            prompts = [
                text
                for colour in self.colour_names
                for text in (
                    f"a photo of a {colour} {label}",
                    f"a photo of a {colour}-colored {label}",
                    f"a photo of a {colour} object",
                )
            ]
            embeddings = self.clip.embed_texts(prompts).unflatten(0, (-1, 3)).mean(1)
            self._class_embeddings[label] = F.normalize(embeddings, dim=-1)
        return self._class_embeddings[label]

    def colours(self, image: Image.Image, label: str, detections: Sequence[Detection]) -> list[str]:
        crops = [colour_crop(image, found.box, found.mask, self.background) for found in detections]
        nearest = (self.clip.embed_images(crops) @ self._embeddings(label).T).argmax(1)
        return [self.colour_names[i] for i in nearest.tolist()]
