"""From the tokens that a generator drew to images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vistok.data.images import to_pil, to_tensor
from vistok.ops.noise import derive_seed
from vistok.tokenizers.interface import noise_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from vistok.pipelines.generation import Pipeline
    from vistok.samplers.interface import Partial

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
UNDECIDED = 0.72  # brightness of what a preview does not know, in [-1, 1]


def decode_images(pipe: Pipeline, drawn: Tensor, indices: list[int], seed: int) -> list[Image]:
    """Returns the images of samples' tokens [B, n] or [B, n, D].

    Args:
        pipe: has the generator that drew them, and the tokenizer.
        indices: of the samples in their job.
        seed: of the job, for decoders that draw noise.
    """
    # One by one: rounding inside a batched decoder depends on the batch, and an image must not.
    return [
        to_pil(
            pipe.decoder.decode(
                pipe.model.image_tokens(tokens[None]), **noise_of(pipe.decoder, [derive_seed(seed, index)])
            )
        )[0]
        for tokens, index in zip(drawn, indices, strict=True)
    ]


def preview_images(pipe: Pipeline, partial: Partial, seed: int) -> list[Image]:
    """Returns images while they are drawn, with the noise of a job's first; see ``Pipeline.preview``."""
    decided = partial.decided
    shown = decided if partial.tokens.ndim == 2 else decided[..., None]
    tokens = pipe.model.image_tokens(partial.tokens.masked_fill(~shown, 0))
    can, spec = pipe.decoder.capabilities, pipe.model.tokens
    decoding: dict[str, Any] = noise_of(pipe.decoder, [derive_seed(seed, row) for row in range(len(tokens))])
    if spec.layout == "sequence":
        if can.variable_length:
            known = int(decided.sum(1).min())
            decoding["length"] = max((each for each in can.lengths if each <= known), default=can.lengths[0])
        return to_pil(pipe.decoder.decode(tokens, **decoding))
    pixels = pipe.decoder.decode(tokens, **decoding)
    places = pipe.model.image_tokens(decided.long()) if spec.kind == "codes" else decided.unflatten(1, (-1, spec.line))
    mask = torch.nn.functional.interpolate(places[:, None].float(), pixels.shape[-2:], mode="nearest")
    return to_pil(pixels.clamp(-1, 1) * mask + UNDECIDED * (1 - mask))


def as_type(images: list[Image], output_type: str) -> Any:
    """Returns images as one of ``OUTPUT_TYPES`` says: a list, or an array or a tensor in [0, 1]."""
    if output_type == "pil":
        return images
    pixels = torch.stack([to_tensor(image) for image in images]) / 2 + 0.5
    return pixels if output_type == "pt" else pixels.movedim(1, -1).numpy()
