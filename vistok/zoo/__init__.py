"""Model cards, embedded weights and the way from a name to files. Reading checkpoints: ``vistok.zoo.checkpoint``."""

from vistok.zoo.model_card import ModelCard, read_card, sha256, write_card
from vistok.zoo.registry import (
    WEIGHTS,
    canonical,
    card,
    card_of_file,
    card_of_folder,
    cards,
    hub_id,
    is_embedded,
    resolve,
    verify,
)

__all__ = [
    "WEIGHTS",
    "ModelCard",
    "canonical",
    "card",
    "card_of_file",
    "card_of_folder",
    "cards",
    "hub_id",
    "is_embedded",
    "read_card",
    "resolve",
    "sha256",
    "verify",
    "write_card",
]
