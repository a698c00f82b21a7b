"""From a name, a checkpoint or a tokenizer to the card of the generator that is meant."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vistok.errors import VistokError
from vistok.models.codes.families import CODE_GENERATORS
from vistok.models.generators import GENERATORS
from vistok.zoo import ModelCard, card, card_of_file, card_of_folder, cards, resolve
from vistok.zoo.pretrained import family_of_folder
from vistok.zoo.registry import check_name, hub_id, local_path
from vistok.zoo.transformers import load_config

DEFAULT_MODEL = "llamagen"


class Resolved(NamedTuple):
    """The generator that a name, a checkpoint or a tokenizer stands for.

    Attributes:
        card: of the model, or of its family where only that is known.
        checkpoint: its weights; the card's own if None.
        own: whether the card is that of these very weights, so that its guidance and temperature hold for them.
    """

    card: ModelCard
    checkpoint: str | Path | None
    own: bool


def resolve_generator(
    name: str | None, checkpoint: str | Path | None = None, tokenizer: str | Path | None = None
) -> Resolved:
    """Finds the generator that is meant.

    Args:
        name: a model of ``vistok models``, a family, a folder or a hub id; ``llamagen`` if None, or the embedded
            generator of the embedded ``tokenizer``.
        checkpoint: weights of the generator, where they are not the name's own.
        tokenizer: weights of the image tokenizer, or an embedded tokenizer's name.

    Raises:
        VistokError: a name is empty, nothing has this name, what has it does not paint, or the weights are of another
            family than the name.
    """
    for given in (name, checkpoint, tokenizer):
        if given is not None:
            check_name(given)
    if name is None and checkpoint is None and tokenizer is not None:
        name = _generator_of(str(tokenizer))
    if checkpoint is not None:
        found = _with_checkpoint(name, checkpoint)
    else:
        name = DEFAULT_MODEL if name is None else name
        place = _card_of_place(name)
        found = Resolved(_card_of_name(name, None), None, True) if place is None else Resolved(place, name, True)
    if found.card.family not in GENERATORS:
        if found.card.task.endswith("-to-image"):
            raise VistokError(
                f"'{found.card.name}' is of the family '{found.card.family}', which is not known here: install the "
                f"package that adds it, or name a model of {', '.join(GENERATORS)}."
            )
        raise VistokError(
            f"'{found.card.name}' is a model for {found.card.task}, it does not paint: see `vistok models`."
        )
    return found


def _card_of_place(name: str) -> ModelCard | None:
    """The card of a generator that is named by its folder or hub id; None where the name is that of a model.

    Raises:
        VistokError: there is no image generator.
    """
    if any(name in (each.name, *each.aliases) for each in cards()):
        return None
    folder = local_path(name)
    if folder is not None and not folder.is_dir():
        raise VistokError(
            f"'{name}' is a file: name the folder of a pipeline, or weights alone by --checkpoint {name}, with their "
            "model or family by --model."
        )
    if folder is None and hub_id(name) is None:
        if "/" in str(name):
            resolve(name)  # a path that leads nowhere
        return None
    found = card_of_file(name) if folder is None else card_of_folder(name)
    if found is not None:
        return found
    if folder is not None and (family := family_of_folder(folder)) in GENERATORS:
        raise VistokError(
            f"'{name}' holds the weights of a {family} alone: name them by --model {family} --checkpoint {name}, and "
            "its tokenizer by --tokenizer."
        )
    try:
        kind = load_config(name, "image generator").model_type
    except VistokError as error:
        if folder is not None:
            raise
        found = _hub_card(name)
        if found is None:
            raise error from None
        return found
    if kind not in CODE_GENERATORS:
        raise VistokError(
            f"'{name}' holds a {kind}, which is no image generator that vistok knows: name one of "
            f"{', '.join(CODE_GENERATORS)}, or a model of `vistok models`."
        )
    return ModelCard(name, "text-to-image", kind, 0, {}, str(name), "see its repository")


def _hub_card(name: str) -> ModelCard | None:
    """The card of a repository that holds a saved pipeline, as one of the folder that it was fetched to; None where the
    repository does not exist or holds something else."""
    try:
        return card_of_folder(resolve(name))
    except VistokError:
        return None


def _with_checkpoint(name: str | None, checkpoint: str | Path) -> Resolved:
    """The generator of weights that were named, beside a model's name or alone.

    The card is that of the weights, where they have one; else the name's, which is their own where it is that of a
    published model, whose weights are never part of the package.

    Raises:
        VistokError: the weights are of another family than the name.
    """
    own = card_of_folder(checkpoint) or card_of_file(checkpoint)
    if name is None:
        return Resolved(own or card(DEFAULT_MODEL), checkpoint, own is not None)
    named = _card_of_name(name, checkpoint)
    if own is None:
        return Resolved(named, checkpoint, name not in GENERATORS and not named.embedded)
    if own.family != named.family and own.family in GENERATORS:
        raise VistokError(
            f"'{checkpoint}' is a {own.family}, but '{name}' is a {named.family}: leave --model out, or name weights "
            "that are one."
        )
    return Resolved(own, checkpoint, True)


def _card_of_name(name: str, checkpoint: str | Path | None) -> ModelCard:
    """The card of a name; that of a family where a checkpoint is named beside it and no weights have its name.

    Raises:
        VistokError: no model has this name, or only a family of which no weights are known.
    """
    if name not in GENERATORS or any(name in (each.name, *each.aliases) for each in cards()):
        return card(name)
    if checkpoint is None:
        raise VistokError(f"there are no embedded or published weights of {name}: name yours with --checkpoint.")
    return ModelCard(name, "class-to-image", name, 0, {}, "", "unknown")


def _generator_of(tokenizer: str) -> str:
    """The embedded generator of an embedded tokenizer's tokens: the default one, where it is among several.

    Raises:
        VistokError: the tokenizer is not embedded, or no embedded generator draws its tokens.
    """
    known: dict[str, str] = {}
    for each in sorted(cards(), key=lambda card: DEFAULT_MODEL not in (card.name, *card.aliases)):
        if each.embedded and each.family in GENERATORS and "tokenizer" in each.parts:
            known.setdefault(each.parts["tokenizer"], each.name)
    wanted = next((each.name for each in cards() if tokenizer in (each.name, *each.aliases)), tokenizer)
    base = next((each.parts.get("codes") for each in cards() if each.name == wanted), None)
    if wanted not in known and base in known:  # it decodes the same codes
        return known[base]
    if wanted not in known:
        raise VistokError(
            f"no embedded generator draws tokens of '{tokenizer}': name the generator with --model or --checkpoint, or "
            f"use one of {', '.join(known)}."
        )
    return known[wanted]
