"""Emu3 (arXiv 2409.18869): codes are tokens of the text, each row ends with a token, and so do frame, picture and text.

The size of a picture stands in its prompt, in words: ``<|image start|>90*90<|image token|>``.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.codes.generator import Call, CodeGenerator
from vistok.models.codes.plan import PicturePlan

BEGIN, WRAPPER = "<|image start|>", "<|image token|>"
LINE_END, FRAME_END, END = "<|extra_200|>", "<|extra_201|>", "<|image end|>"


class Emu3Generator(CodeGenerator):
    """An Emu3."""

    family: ClassVar[str] = "emu3"
    with_prompt = True

    @classmethod
    def code_ids(cls, network: nn.Module) -> Tensor:
        """Returns the ids of the visual tokens.

        Raises:
            VistokError: the configuration's vocabulary has no visual tokens.
        """
        mapping = network.model.vocabulary_mapping.img2bpe
        if not mapping:
            raise VistokError(
                "the vocabulary_map of this Emu3 names no visual tokens, so it cannot draw: load a published config."
            )
        return torch.tensor([mapping[code] for code in sorted(mapping)], device=network.device)

    @classmethod
    def asks(cls, network: nn.Module, arguments: dict[str, Any], ids: Tensor) -> bool:
        """Whether a call of ``generate`` asks for a picture: it says which tokens may follow, or opens a picture."""
        wrapper = network.config.vocabulary_map.get(WRAPPER)
        opened = wrapper is not None and bool((ids[:, -1] == wrapper).all())
        return opened or arguments.get("prefix_allowed_tokens_fn") is not None

    @classmethod
    def of_call(cls, network: nn.Module, call: Call) -> Emu3Generator:
        """Returns the generator of the picture that the call's ``prefix_allowed_tokens_fn``, or its prompt, lays out.

        Raises:
            VistokError: the prompts ask for pictures of several sizes, or name none.
        """
        plan = plan_of_call(cls.code_ids(network), call)
        if plan is None:
            sizes = {cls.size_in(network, row) for row in call.condition.ids}
            if len(sizes) > 1:
                raise VistokError(
                    f"the prompts ask for pictures of the sizes {', '.join(f'{h}*{w}' for h, w in sorted(sizes))}: "
                    "decode pictures of one size together."
                )
            plan = cls.plan_of(network, *sizes.pop())
            plan = plan if call.limit is None else plan.kept(call.limit)
        return cls(network, plan)

    @classmethod
    def plan_of(cls, network: nn.Module, rows: int, columns: int) -> PicturePlan:
        """Returns the plan of a picture of ``rows`` times ``columns`` codes.

        Raises:
            VistokError: the vocabulary lacks a token of the layout.
        """
        words = network.config.vocabulary_map
        missing = [name for name in (LINE_END, FRAME_END, END) if name not in words]
        if missing:
            raise VistokError(f"the vocabulary_map of this Emu3 lacks {', '.join(missing)}: load a published config.")
        behind = [words[FRAME_END], words[END], end_of_text(network)]
        return PicturePlan.raster(cls.code_ids(network), rows, columns, words[LINE_END], behind)

    @staticmethod
    def size_in(network: nn.Module, ids: Tensor) -> tuple[int, int]:
        """Returns rows and columns of the picture that a prompt [L] opens.

        Raises:
            VistokError: it names no size.
        """
        names = {token: name for name, token in network.config.vocabulary_map.items()}
        text = "".join(names.get(token, "") for token in ids.tolist()).rpartition(BEGIN)[2]
        found = re.search(r"(\d+)\*(\d+)", text)
        if found is None or not int(found[1]) * int(found[2]):
            raise VistokError(
                "the prompt names no picture size: make it with processor(..., return_for_image_generation=True)."
            )
        return int(found[1]), int(found[2])

    @staticmethod
    def guidance(config: Any) -> float:
        """Scale of guidance of a generation config; 1, which is none, where it names no scale."""
        return 1.0 if config.guidance_scale is None else config.guidance_scale

    @property
    def backbone(self) -> nn.Module:
        return self.network.model.text_model

    def pictures(self, codes: Tensor) -> Tensor:
        return self.network.model.vqmodel.decode(codes)


def end_of_text(network: nn.Module) -> int:
    """The token that ends a text."""
    end = network.generation_config.eos_token_id
    end = network.config.get_text_config().eos_token_id if end is None else end
    return end[0] if isinstance(end, (list, tuple)) else int(end)


def plan_of_call(codes: Tensor, call: Call) -> PicturePlan | None:
    """The plan that a call's ``prefix_allowed_tokens_fn`` enforces; None without one.

    Raises:
        VistokError: it enforces no plan, several for the rows of a batch, or the call sets no limit.
    """
    allowed = call.arguments.get("prefix_allowed_tokens_fn")
    if allowed is None:
        return None
    if call.limit is None:
        raise VistokError("say how many tokens the picture has at the most: set max_new_tokens.")
    plans = [
        PicturePlan.of_function(codes, allowed, row, number, call.limit, call.ends)
        for number, row in enumerate(call.condition.ids)
    ]
    if not all(plan.same(plans[0]) for plan in plans):
        raise VistokError(
            "prefix_allowed_tokens_fn lays out other pictures for other prompts: decode pictures of one size together."
        )
    return plans[0]
