"""CLIPScore (arXiv 2104.08718) with any CLIP, and the embeddings behind it.

``2.5 max(cos, 0)`` averaged over pictures, captions prefixed by "A photo depicts ". Many papers print the plain
cosine, 100 times it, or another backbone: weight, prefix and backbone are part of the protocol.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vistok.eval.sets.extractors import CLIP_MEAN, CLIP_STD, Normalise, clip_image_embedding
from vistok.eval.sets.features import full_precision
from vistok.eval.sets.statistics import check_finite
from vistok.eval.weights import weights_digest
from vistok.zoo.transformers import load_model, load_text_tokenizer

PREFIX = "A photo depicts "
WEIGHT = 2.5


class ClipModel:
    """Image and text embeddings of a CLIP, normalised.

    Args:
        source: folder or hub id for transformers.
        device: where it runs.

    Raises:
        VistokError: there is no such model, it is another network, or its weights or tokenizer are not complete.
    """

    def __init__(self, source: str | Path, device: torch.device | str = "cpu"):
        from transformers import CLIPModel

        self.model = load_model(source, CLIPModel, "CLIP model", torch.device(device))
        self.tokenizer = load_text_tokenizer(source)
        self.device = torch.device(device)
        self.size = self.model.config.vision_config.image_size
        self.digest = weights_digest(self.model)
        self._normalise = Normalise(CLIP_MEAN, CLIP_STD)

    def _pixels(self, image: Image.Image) -> Tensor:
        """CLIP's own pre-processing: short side by Pillow bicubic, centre crop; uint8 [3, size, size]."""
        short = min(image.size)
        width, height = (int(self.size * side / short) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        image = image.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Returns the embeddings [n, D] of RGB pictures, of unit length."""
        pixels = self._normalise(torch.stack([self._pixels(image) for image in images]).to(self.device).float())
        with full_precision():
            embeddings = clip_image_embedding(self.model, pixels)
        check_finite(embeddings)
        return F.normalize(embeddings, dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Returns the embeddings [n, D] of texts, of unit length; a warning names one that is cut to the model's."""
        length = self.model.config.text_config.max_position_embeddings
        counts = [len(ids) for ids in self.tokenizer(list(texts)).input_ids]
        if (longest := max(counts, default=0)) > length:
            warnings.warn(
                f"the caption '{texts[counts.index(longest)][:60]}...' has {longest} tokens, of which CLIP reads the "
                f"first {length}: its end is cut off; shorten it",
                stacklevel=3,  # behind inference_mode
            )
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        with full_precision():
            pooled = self.model.text_model(**tokens.to(self.device)).pooler_output
            embeddings = self.model.text_projection(pooled)
        check_finite(embeddings)
        return F.normalize(embeddings, dim=-1)


def clip_scores(
    clip: ClipModel,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    prefix: str = PREFIX,
    weight: float = WEIGHT,
) -> Tensor:
    """Returns the CLIPScore of each picture with its caption.

    Args:
        clip: the model.
        images: RGB pictures.
        captions: one a picture.
        prefix: put before every caption.
        weight: of the cosine.

    Returns:
        [n].
    """
    texts = clip.embed_texts([prefix + caption for caption in captions])
    return weight * (clip.embed_images(images) * texts).sum(-1).clamp(min=0)
