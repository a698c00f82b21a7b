"""What the names of text drafters stand for: functions of a target, its tokenizer and a draft model.

Each returns a drafter, or None where what it needs is not there: a draft model, or weights that were trained for the
target. Another package adds one by an entry point of the group ``vistok.text_drafters``: it then goes by its name, and
is a row of ``vistok bench text``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from vistok.models.heads.clover import Clover
from vistok.models.heads.hidden_transfer import HiddenTransfer
from vistok.models.heads.medusa import Medusa
from vistok.models.heads.prompt_tokens import PromptTokens
from vistok.samplers.drafters.aded import Aded
from vistok.samplers.drafters.clover import CloverHead
from vistok.samplers.drafters.draft_model import DraftModel
from vistok.samplers.drafters.eagle_head import EagleHead, load_head
from vistok.samplers.drafters.extra_rows import ExtraRowDrafter
from vistok.samplers.drafters.lexical_units import PLACEHOLDER, LexicalUnits
from vistok.samplers.drafters.lookup import PromptLookup
from vistok.samplers.drafters.medusa import MedusaHeads
from vistok.samplers.drafters.rasd import Rasd
from vistok.samplers.drafters.recycling import TokenRecycling
from vistok.samplers.drafters.sorted_draft import SortedDraft
from vistok.samplers.drafters.text import fitted
from vistok.samplers.named import TEXT_DRAFTERS
from vistok.samplers.policies.chains import Chain
from vistok.zoo import card, card_of_folder, cards, is_embedded

if TYPE_CHECKING:
    from vistok.samplers.drafters.text import TextDrafter


class Trained(NamedTuple):
    """A drafter of weights that are trained for one target.

    Attributes:
        family: of the cards of such weights.
        load: from their name, folder or hub id, and the target.
    """

    family: str
    load: Callable[[str, nn.Module], TextDrafter]


TRAINED = {
    "eagle": Trained("eagle3", lambda name, model: EagleHead(load_head(name, model), "auto")),
    "clover": Trained("clover", lambda name, model: CloverHead(fitted(Clover.from_pretrained(name), model), "auto")),
    "medusa": Trained("medusa", lambda name, model: MedusaHeads(fitted(Medusa.from_pretrained(name), model))),
    "ppd": Trained(
        "prompt-tokens", lambda name, model: ExtraRowDrafter(fitted(PromptTokens.from_pretrained(name), model))
    ),
    "hidden-transfer": Trained(
        "hidden-transfer", lambda name, model: ExtraRowDrafter(fitted(HiddenTransfer.from_pretrained(name), model))
    ),
}


def trained_for(model: nn.Module, family: str) -> str | None:
    """Returns the name of embedded weights of a family that were trained for a target; None if there are none."""
    target = Path(getattr(model, "name_or_path", "") or "-").name
    return next(
        (known.name for known in cards() if known.family == family and known.parts.get("target") == target), None
    )


def available(name: str, model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> bool:
    """Returns whether a drafter of ``TEXT_DRAFTERS`` has what it needs; weights are not loaded to tell."""
    if name in TRAINED:
        return trained_for(model, TRAINED[name].family) is not None
    return TEXT_DRAFTERS[name](model, tokenizer, draft) is not None


def trained_kind(name: str) -> str | None:
    """Returns which drafter of ``TRAINED`` weights are of, as their card says; None without a card of such a drafter.

    Args:
        name: of embedded weights, a folder, or a hub id.
    """
    known = card(name) if is_embedded(name) else card_of_folder(name)
    return next((kind for kind, trained in TRAINED.items() if known and known.family == trained.family), None)


def _embedded(name: str) -> Callable[..., TextDrafter | None]:
    """The drafter of ``TRAINED`` with this name, with the target's embedded weights; None where there are none."""

    def build(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter | None:
        family, load = TRAINED[name]
        weights = trained_for(model, family)
        return None if weights is None else load(weights, model)

    return build


eagle, clover, medusa = map(_embedded, ("eagle", "clover", "medusa"))
prompt_tokens, hidden_transfer = map(_embedded, ("ppd", "hidden-transfer"))


def lookup(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter:
    """Returns a drafter by prompt lookup."""
    return PromptLookup()


def recycling(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter:
    """Returns Token Recycling with the published tree."""
    return TokenRecycling()


def draft_model(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter | None:
    """Returns a drafter of chains of four tokens of the draft model; None without one."""
    return None if draft is None else DraftModel(draft, Chain(4))


def sorted_draft(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter | None:
    """Returns S2D with the draft model's exits, the entry ``exits`` of its config; None where it has none."""
    exits = getattr(getattr(draft, "config", None), "exits", None)
    return None if exits is None else SortedDraft(draft, tuple(exits))


def lexical_units(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter | None:
    """Returns lexical units of the target's own placeholders; None of a target that was taught none."""
    vocabulary = {} if tokenizer is None else tokenizer.get_added_vocab()
    return LexicalUnits(vocabulary[PLACEHOLDER]) if PLACEHOLDER in vocabulary else None


def aded(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter:
    """Returns ADED without a corpus, so that its tri-grams are those of the text."""
    return Aded()


def rasd(model: nn.Module, tokenizer: Any = None, draft: nn.Module | None = None) -> TextDrafter | None:
    """Returns retrieval from the text so far, fused into the chain of the draft model; None without one."""
    return None if draft is None else Rasd(DraftModel(draft, Chain(4)))
