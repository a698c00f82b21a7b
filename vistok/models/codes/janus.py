"""Janus and Janus-Pro (arXiv 2410.13848, 2501.17811): codes with an embedding and an output layer of their own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.codes.generator import Call, CodeGenerator, PromptCondition
from vistok.models.codes.plan import PicturePlan

GUIDANCE = 5.0  # of a call that names none, as in transformers


class JanusGenerator(CodeGenerator):
    """A Janus. Both halves of guidance read the same codes; the unconditional one reads a prompt without its words."""

    family: ClassVar[str] = "janus"
    with_prompt = False  # its ``generate`` returns codes alone

    @classmethod
    def code_ids(cls, network: nn.Module) -> Tensor:
        """Returns the codes: they are no tokens of the text."""
        return torch.arange(network.config.vq_config.num_embeddings, device=network.device)

    @classmethod
    def asks(cls, network: nn.Module, arguments: dict[str, Any], ids: Tensor) -> bool:
        """Whether a call of ``generate`` asks for a picture."""
        return arguments.get("generation_mode") == "image"

    @classmethod
    def of_call(cls, network: nn.Module, call: Call) -> JanusGenerator:
        """Returns the generator that a call asks for."""
        return cls.square(network)

    @classmethod
    def square(cls, network: nn.Module) -> JanusGenerator:
        """Returns the generator of the one size that a Janus draws."""
        vision = network.config.vision_config
        side = round(vision.num_image_tokens**0.5)
        return cls(network, PicturePlan.raster(cls.code_ids(network), side, side))

    @staticmethod
    def guidance(config: Any) -> float:
        """Scale of guidance of a generation config."""
        return GUIDANCE if config.guidance_scale is None else config.guidance_scale

    @property
    def backbone(self) -> nn.Module:
        return self.network.model.language_model

    def embed(self, entries: Tensor) -> Tensor:
        return self.network.prepare_embeddings_for_image_generation(entries)

    def head(self, hidden: Tensor) -> Tensor:
        return self.network.model.generation_head(hidden)

    def negative(self, condition: PromptCondition) -> tuple[Tensor, Tensor | None]:
        """Returns the prompts with padding, which stays visible, in the place of their words.

        Raises:
            VistokError: the call names negative prompts, which this class does not read, or the model's generation
                config does not name the tokens.
        """
        if condition.negative_ids is not None:
            raise VistokError("Janus knows no negative prompt: leave negative_prompt_ids out.")
        config, ids = self.network.generation_config, condition.ids
        begin = (getattr(config, "generation_kwargs", None) or {}).get("boi_token_id")
        if begin is None or config.pad_token_id is None or config.bos_token_id is None:
            raise VistokError(
                "guidance of a Janus needs generation_config.bos_token_id, pad_token_id and "
                "generation_kwargs['boi_token_id']: set them, as the published models do."
            )
        kept = (ids == config.bos_token_id) | (ids == begin)
        return ids.masked_fill(~kept, config.pad_token_id), condition.mask

    def pictures(self, codes: Tensor) -> Tensor:
        return self.network.model.vqmodel.decode(codes.flatten(1))
