"""What the names of text drafters stand for: functions of a target, its tokenizer and a draft model.

Each returns a drafter, or None where what it needs is not there: a draft model, or weights that were trained for the
target. Another package adds one by an entry point of the group ``vistok.text_drafters``: it then goes by its name, and
is a row of ``vistok bench text``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vistok.models.heads.hidden_transfer import HiddenTransfer
from vistok.models.heads.medusa import Medusa
from vistok.models.heads.prompt_tokens import PromptTokens
from vistok.samplers.drafters.aded import Aded
from vistok.samplers.drafters.draft_model import DraftModel
from vistok.samplers.drafters.eagle_head import EagleHead, load_head
from vistok.samplers.drafters.extra_rows import ExtraRowDrafter
from vistok.samplers.drafters.lookup import PromptLookup
from vistok.samplers.drafters.medusa import MedusaHeads
from vistok.samplers.drafters.rasd import Rasd
from vistok.samplers.drafters.recycling import TokenRecycling
from vistok.samplers.policies.chains import Chain
from vistok.zoo import cards

if TYPE_CHECKING:
    from vistok.samplers.drafters.text import TextDrafter


def trained_for(model: nn.Module, family: str) -> str | None:
    """Returns the name of embedded weights of a family that were trained for a target; None if there are none."""
    target = Path(getattr(model, "name_or_path", "") or "-").name
    return next((card.name for card in cards() if card.family == family and card.parts.get("target") == target), None)


def lookup(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter:
    """Returns a drafter by prompt lookup."""
    return PromptLookup()


def recycling(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter:
    """Returns Token Recycling with the published tree."""
    return TokenRecycling()


def draft_model(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter | None:
    """Returns a drafter of chains of four tokens of the draft model; None without one."""
    return None if draft is None else DraftModel(draft, Chain(4))


def eagle(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter | None:
    """An EAGLE-3 head that drafts chains of three."""
    name = trained_for(model, "eagle3")
    return None if name is None else EagleHead(load_head(name, model), Chain(3))


def prompt_tokens(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter | None:
    """Returns parallel prompt decoding with the embedded prompt tokens of the target; None if there are none."""
    name = trained_for(model, "prompt-tokens")
    return None if name is None else ExtraRowDrafter(PromptTokens.from_pretrained(name))


def medusa(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter | None:
    """Returns the embedded Medusa heads of the target; None if there are none."""
    name = trained_for(model, "medusa")
    return None if name is None else MedusaHeads(Medusa.from_pretrained(name))


def hidden_transfer(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter | None:
    """Returns the embedded hidden-transfer rows of the target; None if there are none."""
    name = trained_for(model, "hidden-transfer")
    return None if name is None else ExtraRowDrafter(HiddenTransfer.from_pretrained(name))


def aded(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter:
    """Returns ADED without a corpus, so that its tri-grams are those of the text."""
    return Aded()


def rasd(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter | None:
    """Returns retrieval from the text so far, fused into the chain of the draft model; None without one."""
    return None if draft is None else Rasd(DraftModel(draft, Chain(4)))
