"""Pictures from image embeddings: a Stable unCLIP of diffusers, as SEED (arXiv 2307.08041) paints with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.tokenizers.flow import one_noise_for

STEPS, GUIDANCE, NOISE_LEVEL = 20, 10.0, 0  # as SEED was released


class UnClip:
    """Image embeddings [B, E] to pictures [B, 3, H, W] in [-1, 1].

    Args:
        pipeline: a ``StableUnCLIPImg2ImgPipeline``.
        steps, guidance: of its sampling.
    """

    def __init__(self, pipeline: Any, steps: int = STEPS, guidance: float = GUIDANCE):
        self.pipeline, self.steps, self.guidance = pipeline, steps, guidance
        self.pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def load(cls, name: str, steps: int = STEPS, guidance: float = GUIDANCE) -> UnClip:
        """Loads a folder or a hub id, safetensors alone.

        Raises:
            VistokError: the name leads to no unCLIP.
        """
        from diffusers import StableUnCLIPImg2ImgPipeline

        try:
            pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(name, use_safetensors=True)
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise VistokError(
                f"'{name}' is no Stable unCLIP that diffusers can load ({reason}): name a folder or a hub id such as "
                "stabilityai/stable-diffusion-2-1-unclip."
            ) from None
        return cls(pipeline, steps, guidance)

    @torch.no_grad()
    def __call__(
        self, embeddings: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Paint.

        Args:
            embeddings: [B, E].
            generator: draws the latents that all pictures start from, or one those of each; fixed if None.

        Raises:
            VistokError: the embeddings have another width than the unCLIP's.
        """
        pipe = self.pipeline
        width = pipe.image_normalizer.mean.shape[-1]
        if embeddings.shape[-1] != width:
            raise VistokError(
                f"this unCLIP paints embeddings of {width} numbers, the tokens give {embeddings.shape[-1]}: name the "
                "one that belongs to the tokenizer."
            )
        side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
        pictures = []
        starts = one_noise_for(len(embeddings), (channels, side, side), generator)  # one, as the reference keeps
        for embedding, noise in zip(embeddings.split(1), starts.split(1), strict=True):
            made = pipe(
                image_embeds=embedding.to(pipe.unet.dtype),
                noise_level=NOISE_LEVEL,
                guidance_scale=self.guidance,
                num_inference_steps=self.steps,
                latents=noise.to(embedding.device, pipe.unet.dtype),
                generator=torch.Generator(embedding.device.type).manual_seed(0),
                output_type="pt",
            )
            pictures.append(made.images.float() * 2 - 1)
        return torch.cat(pictures)
