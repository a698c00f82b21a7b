"""Feature extractors: a network with the exact pre-processing of the protocol that it belongs to.

====================  ============================================================================================
``inception``         the FID network; weights by path; resize ``clean``, ``tf1``, ``pytorch-fid`` or ``torchmetrics``
``dinov2``            DINOv2 CLS features, Pillow bicubic to a 224 square, ImageNet normalisation (dgm-eval)
``clip``              CLIP image embeddings, centre square, Pillow bicubic (CMMD)
``scenes-features``   the embedded network of :mod:`vistok.models.vision.scenes`
====================  ============================================================================================

``dinov2`` and ``clip`` take a folder or a hub id for transformers; ids that begin with ``timm/`` go through timm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vistok.errors import VistokError, unknown_name
from vistok.eval.sets.resize import INCEPTION_NORMALISATION, RESIZES, inception_input, pil_bicubic
from vistok.eval.weights import weights_digest
from vistok.models.vision.inception import WEIGHT_FILES, fold_batch_norms, load_inception
from vistok.models.vision.scenes import SIDE, load_scene_features
from vistok.runtime import resolve_dtype
from vistok.zoo.transformers import load_model

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

PRECISIONS = ("float32", "bfloat16")
PART_BYTES = 5 << 20  # of pixels that a CPU looks at together: 4 pictures of 299x299, of 64x64 a whole batch
DINOV2 = ("dinov2", "dinov2_with_registers")  # as transformers calls the architecture


@dataclass
class Extractor:
    """A network and its pre-processing.

    Args:
        name: what protocols call it.
        network: normalised pixels -> ``{"features": [B, D], ...}``.
        weights: digest of its weights.
        resize: name of the resize convention.
        normalisation: what maps 0..255 to its input.
        prepare: uint8 pictures [B, 3, H, W] of one size -> its input; runs on the device.
        decode: what is done to each picture in the worker that reads it: uint8 [3, H, W] -> uint8 [3, h, w].
        precision: a name in :data:`PRECISIONS`, of the network; pre-processing and features are float32.
    """

    name: str
    network: nn.Module
    weights: str
    resize: str
    normalisation: str
    prepare: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor] | None = None
    precision: str = "float32"

    def run(self, pixels: Tensor) -> dict[str, Tensor]:
        """Returns the float32 outputs of the network for prepared pictures [B, 3, h, w]."""
        parts = [pixels]
        if pixels.device.type == "cpu" and len(pixels):  # a few pictures' activations stay in its caches
            parts = pixels.split(max(1, PART_BYTES // pixels[0].nbytes))
        outputs = [self._run(part) for part in parts]
        return {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}

    def _run(self, pixels: Tensor) -> dict[str, Tensor]:
        pixels = pixels.to(resolve_dtype(self.precision)).contiguous(memory_format=torch.channels_last)
        return {name: value.float() for name, value in self.network(pixels).items()}

    @torch.inference_mode()
    def __call__(self, pictures: list[Tensor]) -> dict[str, Tensor]:
        """Features of uint8 pictures [3, H, W] (of any sizes, not yet decoded by a worker)."""
        if self.decode is not None:
            pictures = [self.decode(picture) for picture in pictures]
        return self.run(torch.cat([self.prepare(picture[None]) for picture in pictures]))


@dataclass(frozen=True)
class Normalise:
    """Pixels 0..255 -> (x/255 - mean) / std."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (self.mean, self.std))
        return (images / 255 - mean) / std


@dataclass(frozen=True)
class SquareResize:
    """Pillow bicubic of one uint8 picture [3, H, W] to a square, squashed or cut to its centre square first."""

    size: int
    crop: bool

    def __call__(self, picture: Tensor) -> Tensor:
        if self.crop:
            side = min(picture.shape[1:])
            top, left = (picture.shape[1] - side) // 2, (picture.shape[2] - side) // 2
            picture = picture[:, top : top + side, left : left + side]
        return pil_bicubic(picture[None], self.size)[0].to(torch.uint8)


class ImageTower(nn.Module):
    """A transformers or timm vision network, reduced to one vector a picture."""

    def __init__(self, network: nn.Module, features: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.network = network
        self.features = features

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"features": self.features(self.network, pixels)}


def _inception(weights: str | Path | None, resize: str) -> Extractor:
    if weights is None:
        raise VistokError(f"the inception extractor needs its weights: give the path of {WEIGHT_FILES} (--weights).")
    network = load_inception(weights)
    digest = weights_digest(network)
    prepare = partial(inception_input, convention=resize)
    network = fold_batch_norms(network)
    return Extractor("inception", network, digest, resize, INCEPTION_NORMALISATION[resize], prepare)


def _cls_token(network: nn.Module, pixels: Tensor) -> Tensor:
    return network(pixel_values=pixels).last_hidden_state[:, 0]


def _dinov2(weights: str | Path | None, resize: str) -> Extractor:
    if weights is None:
        raise VistokError(
            "the dinov2 extractor needs its weights: give a folder or hub id such as facebook/dinov2-large."
        )
    if str(weights).startswith("timm/"):
        import timm

        if "dinov2" not in str(weights):
            raise VistokError(f"'{weights}' is no DINOv2: name one such as timm/vit_large_patch14_dinov2.lvd142m.")
        network = timm.create_model(f"hf-hub:{weights}", pretrained=True, num_classes=0, img_size=224).eval()
        tower = ImageTower(network.requires_grad_(False), lambda model, pixels: model(pixels))
    else:
        from transformers import AutoModel

        tower = ImageTower(load_model(weights, AutoModel, "DINOv2 model", model_types=DINOV2), _cls_token)
    prepare, decode = Normalise(IMAGENET_MEAN, IMAGENET_STD), SquareResize(224, crop=False)
    return Extractor("dinov2", tower, weights_digest(tower), resize, "imagenet", prepare, decode)


def clip_image_embedding(network: nn.Module, pixels: Tensor) -> Tensor:
    """Returns the projected image embeddings [B, D] of a transformers CLIP, not normalised."""
    return network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output)


def _clip(weights: str | Path | None, resize: str) -> Extractor:
    if weights is None:
        raise VistokError(
            "the clip extractor needs its weights: give a folder or hub id such as openai/clip-vit-large-patch14-336."
        )
    from transformers import CLIPModel

    network = load_model(weights, CLIPModel, "CLIP model")
    tower = ImageTower(network, clip_image_embedding)
    prepare, decode = Normalise(CLIP_MEAN, CLIP_STD), SquareResize(network.config.vision_config.image_size, crop=True)
    return Extractor("clip", tower, weights_digest(tower), resize, "clip", prepare, decode)


def scenes_input(images: Tensor) -> Tensor:
    """Returns the input [B, 3, 64, 64] of the scenes network for pictures [B, 3, H, W] in 0..255."""
    return RESIZES["clean"](images, SIDE) / 127.5 - 1


def _scenes_features(weights: str | Path | None, resize: str) -> Extractor:
    network = load_scene_features(weights or "scenes-features")
    return Extractor("scenes-features", network, weights_digest(network), resize, "2x/255-1", scenes_input)


# name -> (builder, resize conventions that its protocols know, the default first)
EXTRACTORS: dict[str, tuple[Callable[[str | Path | None, str], Extractor], tuple[str, ...]]] = {
    "inception": (_inception, tuple(INCEPTION_NORMALISATION)),
    "dinov2": (_dinov2, ("pil",)),
    "clip": (_clip, ("pil",)),
    "scenes-features": (_scenes_features, ("clean",)),
}


def check_extractor(name: str) -> None:
    """Raise VistokError unless an extractor has this name."""
    if name not in EXTRACTORS:
        raise unknown_name("feature extractor", name, list(EXTRACTORS))


def load_extractor(
    name: str, weights: str | Path | None = None, resize: str | None = None, precision: str = "float32"
) -> Extractor:
    """Returns a feature extractor by name, on the CPU.

    Args:
        name: a name in :data:`EXTRACTORS`.
        weights: path (or, for ``dinov2`` and ``clip``, folder or hub id); ``scenes-features`` has embedded ones.
        resize: resize convention; by default the extractor's first.
        precision: of the network. Published numbers are float32; ``bfloat16`` is two to three times as fast on CPUs
            that have it, and is another protocol.

    Raises:
        VistokError: unknown name or precision, absent or wrong weights.
    """
    check_extractor(name)
    build, conventions = EXTRACTORS[name]
    if resize is not None and resize not in conventions:
        raise unknown_name(f"resize convention of the {name} extractor", resize, list(conventions))
    dtype = resolve_dtype(precision, PRECISIONS, "precision")
    extractor = build(weights, resize or conventions[0])
    return replace(extractor, network=extractor.network.to(dtype), precision=precision)
