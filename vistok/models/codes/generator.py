"""An image generator of transformers as samplers see it: embedding, backbone, output layer and plan of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.codes.plan import PicturePlan
from vistok.models.interface import TokenSpec
from vistok.ops.linear import PackedLinear

NEVER = -1e4  # logit of tokens that no place leaves free; finite in every format, so that guidance keeps it


@dataclass(frozen=True, eq=False)
class PromptCondition:
    """Prompts in tokens, as processors give them.

    Attributes:
        ids: int64 [B, L], padded on the left.
        mask: which are real, [B, L]; all if None.
        negative_ids: what guidance leads away from, int64 [B or 1, M]; the family's own if None.
        negative_mask: which of those are real; all if None.
    """

    ids: Tensor
    mask: Tensor | None = None
    negative_ids: Tensor | None = None
    negative_mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> PromptCondition:
        """Returns the condition on another device."""
        parts = (self.ids, self.mask, self.negative_ids, self.negative_mask)
        return PromptCondition(*(None if part is None else part.to(device) for part in parts))


class CodeGenerator(nn.Module):
    """Base of the families.

    Args:
        network: loaded by transformers; nothing of it is changed.
        plan: of the picture that is drawn.

    Attributes:
        tokens: what it draws: entries of the plan's alphabet.
        plan: see above.
        reader: texts to prompts, of generators that were loaded with their processor; else None.
    """

    family: ClassVar[str] = ""
    conditional_on, classes, text_width = "text", 0, 0
    prefix, rope_grid = 1, 0  # of EAGLE networks: they read one feature in front of the picture, and count positions

    def __init__(self, network: nn.Module, plan: PicturePlan):
        super().__init__()
        self.network, self.plan = network, plan
        self.register_module("reader", None)
        self.tokens = TokenSpec("codes", len(plan.ids), len(plan.places), columns=plan.line, special=plan.special)
        self._projection: list[nn.Linear] | None = None  # in a list: it is no weight of its own

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._projection = None
        self.plan = self.plan.to(next(self.network.parameters()).device)
        return self

    # What a family says

    @classmethod
    def code_ids(cls, network: nn.Module) -> Tensor:
        """Returns the token ids of a network's codes, in the order of its codebook, int64 [K]."""
        raise NotImplementedError

    @property
    def backbone(self) -> nn.Module:
        """Takes ``inputs_embeds`` and gives ``last_hidden_state``."""
        raise NotImplementedError

    @property
    def codebook(self) -> Tensor:
        """Vectors of the codes, [K, D]."""
        return self.network.model.vqmodel.quantize.embedding.weight.detach()

    def negative(self, condition: PromptCondition) -> tuple[Tensor, Tensor | None]:
        """Returns the prompts that guidance leads away from, and which of their tokens are real.

        As transformers has it, those that the call names, else the last token of the prompt alone.
        """
        ids, mask = condition.negative_ids, condition.negative_mask
        if ids is None:
            return condition.ids[:, -1:], None
        batch = len(condition)
        if len(ids) not in (1, batch):
            raise VistokError(f"there are {len(ids)} negative prompts for {batch} prompts: give one, or one for each.")
        return ids.expand(batch, -1), None if mask is None else mask.expand(batch, -1)

    def pictures(self, codes: Tensor) -> Tensor:
        """Returns pictures [B, 3, H, W], about -1 to 1, of codes [B, h, w]."""
        raise NotImplementedError

    # What follows from it

    @property
    def config(self) -> Any:
        """The configuration of the language model."""
        return self.network.config.get_text_config(decoder=True)

    @property
    def width(self) -> int:
        """Width of the features that the output layer reads."""
        return self.config.hidden_size

    def null_condition(self, batch: int) -> PromptCondition:
        """Returns prompts that ask for nothing: one token each."""
        return PromptCondition(torch.zeros(batch, 1, dtype=torch.int64, device=self.plan.ids.device))

    def words(self, ids: Tensor) -> Tensor:
        """Returns the backbone's input for tokens of a prompt."""
        return self.network.get_input_embeddings()(ids)

    def embed(self, entries: Tensor) -> Tensor:
        """Returns the backbone's input for entries of the alphabet."""
        return self.words(self.plan.ids[entries])

    def head(self, hidden: Tensor) -> Tensor:
        """Returns logits [..., K + S] of features; those of special tokens are very low, as no place leaves them free.

        Only the rows of the codes are multiplied: a slice of the output layer where they lie together, else a copy.
        """
        layer, codes = self.network.get_output_embeddings(), self.plan.ids[: self.plan.codes]
        if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point():  # quantised, or wrapped
            logits = layer(hidden)[..., codes]
        else:
            if self._projection is None:
                self._projection = [_rows(layer, codes)]
            logits = self._projection[0](hidden)
        return F.pad(logits, (0, self.plan.special), value=NEVER)

    def allowed(self, logits: Tensor, places: Tensor) -> Tensor:
        """Returns logits [B, N, V] of the tokens at ``places`` [B, N], minus infinity where the plan forbids."""
        if not self.plan.special:
            return logits
        forced = self.plan.places[places.clamp(max=len(self.plan.places) - 1)][..., None]
        entry = torch.arange(logits.shape[-1], device=logits.device)
        fits = torch.where(forced < 0, entry < self.plan.codes, entry == forced)
        return logits.masked_fill(~fits, -torch.inf).masked_fill(fits & (forced >= 0), 0.0)

    def image_tokens(self, drawn: Tensor) -> Tensor:
        """Returns the codes [B, h, w] of drawn entries [B, n]."""
        return self.plan.grid(drawn)


def _rows(layer: nn.Linear, codes: Tensor) -> nn.Linear:
    """The rows of an output layer that give codes: a view where they lie together, else a copy."""
    first = int(codes[0])
    together = torch.equal(codes, torch.arange(first, first + len(codes), device=codes.device))
    rows = slice(first, first + len(codes)) if together else codes
    part = nn.Linear(layer.in_features, len(codes), bias=layer.bias is not None, device="meta")
    part.weight = nn.Parameter(layer.weight.detach()[rows], requires_grad=False)
    if layer.bias is not None:
        part.bias = nn.Parameter(layer.bias.detach()[rows], requires_grad=False)
    return PackedLinear.from_linear(part) if isinstance(layer, PackedLinear) else part


@dataclass(frozen=True)
class Call:
    """What a call of a network's ``generate`` says about a picture.

    Attributes:
        condition: the prompts.
        arguments: those that are left, e.g. ``generation_mode`` and ``prefix_allowed_tokens_fn``.
        limit: most new tokens; None for as many as a picture has.
        ends: tokens that end a text.
        config: the generation config of the call.
    """

    condition: PromptCondition
    arguments: Mapping[str, Any]
    limit: int | None
    ends: frozenset[int]
    config: Any
