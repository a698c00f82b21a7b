"""Chameleon's architecture (arXiv 2405.09818) with pictures in its output: Anole (2407.06135) and Lumina-mGPT
(2408.02657).

The class of transformers forbids image tokens in its own forward: its ``generate`` gives the first of them for ever, or
noise, without a word. Here the backbone is called, and then the output layer.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.codes.emu3 import plan_of_call
from vistok.models.codes.generator import Call, CodeGenerator, PromptCondition
from vistok.models.codes.plan import PicturePlan

BEGIN, END = ("<racm3:break>", 8197), ("<eoss>", 8196)  # of a picture: the published names and ids
LINE_END, SIZE = 8803, 8804  # Lumina-mGPT: behind a row; SIZE + n names 2 n codes


class ChameleonGenerator(CodeGenerator):
    """A Chameleon whose output layer knows image tokens."""

    family: ClassVar[str] = "chameleon"
    with_prompt = True

    @classmethod
    def code_ids(cls, network: nn.Module) -> Tensor:
        """Returns the ids of the image tokens in the order of the codebook, in which the ids are not.

        Raises:
            VistokError: the configuration's vocabulary has no image tokens.
        """
        names = network.config.vocabulary_map or {}
        digits = str.maketrans("ABCDEFGHIJ", "0123456789")
        mark = "IMGIMG"
        codes = {int(name[len(mark) : -1].translate(digits)): token for name, token in names.items() if mark in name}
        if not codes:
            raise VistokError(
                "the vocabulary_map of this Chameleon names no image tokens, so it cannot draw: load a published "
                "config."
            )
        return torch.tensor([codes[code] for code in sorted(codes)], device=network.device)

    @classmethod
    def asks(cls, network: nn.Module, arguments: dict[str, Any], ids: Tensor) -> bool:
        """Whether a call of ``generate`` asks for a picture: it says which tokens may follow."""
        return arguments.get("prefix_allowed_tokens_fn") is not None

    @classmethod
    def of_call(cls, network: nn.Module, call: Call) -> ChameleonGenerator:
        """Returns the generator of the picture that the call's ``prefix_allowed_tokens_fn`` lays out."""
        return cls(network, plan_of_call(cls.code_ids(network), call))

    @classmethod
    def anole(cls, network: nn.Module) -> ChameleonGenerator:
        """Returns the generator of a square of codes and its end, which is Anole's layout."""
        side = network.config.vq_config.resolution >> (len(network.config.vq_config.channel_multiplier) - 1)
        return cls(network, PicturePlan.raster(cls.code_ids(network), side, side, behind=[end_of_picture(network)]))

    @classmethod
    def lumina(cls, network: nn.Module, rows: int, columns: int) -> ChameleonGenerator:
        """Returns the generator of Lumina-mGPT's layout; its prompts end in ``opening``.

        Raises:
            VistokError: a side that no size token names, or a vocabulary without those tokens.
        """
        if max(cls.opening(network, rows, columns)) >= network.config.vocab_size:
            raise VistokError(
                f"the vocabulary of this Chameleon has {network.config.vocab_size} tokens, and none for the sizes of "
                "Lumina-mGPT: leave the preset out."
            )
        return cls(
            network, PicturePlan.raster(cls.code_ids(network), rows, columns, LINE_END, [end_of_picture(network)])
        )

    @staticmethod
    def opening(network: nn.Module, rows: int, columns: int) -> list[int]:
        """Returns the tokens that open a picture of Lumina-mGPT: its begin, and its sides.

        Raises:
            VistokError: a side that no size token names.
        """
        if rows % 2 or columns % 2 or min(rows, columns) < 2:
            raise VistokError(f"Lumina-mGPT draws an even number of codes along a side, not {rows} by {columns}.")
        return [begin_of_picture(network), SIZE + rows // 2, SIZE + columns // 2]

    @staticmethod
    def guidance(config: Any) -> float:
        """Scale of guidance of a generation config; 1, which is none, where it names no scale."""
        return 1.0 if config.guidance_scale is None else config.guidance_scale

    @property
    def backbone(self) -> nn.Module:
        return self.network.model

    def negative(self, condition: PromptCondition) -> tuple[Tensor, Tensor | None]:
        """Returns the negative prompts of the call; else what opens the picture, from its begin on."""
        opened = (condition.ids == begin_of_picture(self.network)).nonzero()
        if condition.negative_ids is not None or not len(opened):
            return super().negative(condition)
        return condition.ids[:, int(opened[:, 1].min()) :], None

    def pictures(self, codes: Tensor) -> Tensor:
        raise VistokError(
            "transformers has no decoder for Chameleon's codes: name the published one with --tokenizer vqgan.ckpt."
        )


def begin_of_picture(network: nn.Module) -> int:
    """The token that begins a picture."""
    return _token(network, *BEGIN)


def end_of_picture(network: nn.Module) -> int:
    """The token that ends a picture."""
    return _token(network, *END)


def _token(network: nn.Module, name: str, published: int) -> int:
    return (network.config.vocabulary_map or {}).get(name, published)
