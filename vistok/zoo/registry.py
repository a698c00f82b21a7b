"""From what a user names to files on this machine: embedded weights, a path, or a hub id."""

from __future__ import annotations

import functools
import os
import re
import warnings
from pathlib import Path

from vistok.errors import VistokError, unknown_name
from vistok.zoo.model_card import CARD_FILE, EMBEDDED, ModelCard, read_card, verify_files
from vistok.zoo.published import published_cards

WEIGHTS = Path(__file__).parent / "weights"
# owner/name, with an optional file inside the repository: owner/name:folder/file.pt
_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?::(?P<file>[^:]+))?")
WHOLE_REPOSITORY = "model.safetensors"  # the weights of a repository with one model, beside its config.json
_WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@functools.cache
def _cards() -> tuple[ModelCard, ...]:
    embedded = (read_card(path.parent, EMBEDDED) for path in sorted(WEIGHTS.glob(f"*/{CARD_FILE}")))
    return (*embedded, *published_cards())


def cards() -> list[ModelCard]:
    """Returns the cards of all models: the embedded ones, then the published ones."""
    return list(_cards())


def canonical(name: str) -> str:
    """Returns the spelling under which a model is known: lower case, ``llamagen`` for ``lamagen``."""
    return re.sub(r"^lamagen", "llamagen", name.lower())


def _find(name: str) -> ModelCard | None:
    name = canonical(name)
    return next((card for card in _cards() if name == card.name or name in card.aliases), None)


def check_name(name: str | Path) -> None:
    """Raises VistokError if a name is empty, which as a path would be the folder that one is in."""
    if not str(name).strip():
        raise VistokError("the name is empty: name a model of `vistok models`, a folder, a file or a hub id.")


def local_path(name: str | Path) -> Path | None:
    """Returns the file or folder on this machine that a name stands for, where ``~`` is the user's; None if there is
    none, also where no file could have this name."""
    path = os.path.expanduser(name)  # these two raise nothing for names that are too long, or of unknown users
    return Path(path) if os.path.exists(path) else None


def is_embedded(name: str | Path) -> bool:
    """Whether a name or alias is that of a model whose weights are part of the package."""
    found = _find(str(name))
    return found is not None and found.embedded


def card(name: str) -> ModelCard:
    """Returns the card of a model, by its name or an alias.

    Raises:
        VistokError: no model has that name.
    """
    found = _find(name)
    if found is None:
        raise _unknown(name)
    return found


def _unknown(name: str) -> VistokError:
    return unknown_name("model", name, [known for card in _cards() for known in (card.name, *card.aliases)])


def card_of_file(path: str | Path) -> ModelCard | None:
    """Returns the one published card whose checkpoint has this file name or hub id, so that its shape need not be spelt
    out; None if there is none, or several.
    """
    _, file = hub_id(path) or (None, None)
    name = Path(file or path).name
    found = [card for card in published_cards() if name in card.files or str(path) in _hub_names(card)]
    return found[0] if len(found) == 1 else None


def card_of_folder(path: str | Path) -> ModelCard | None:
    """Returns the card that lies beside the weights of a folder, if there is one."""
    folder = local_path(path)
    return read_card(folder) if folder is not None and (folder / CARD_FILE).is_file() else None


def _hub_names(card: ModelCard) -> list[str]:
    """What a user writes to fetch the files of a card: the bare repository where it holds one model and its shape.

    Nothing where the files are not on the hub.
    """
    if not card.source:
        return []
    if tuple(card.files) == (WHOLE_REPOSITORY,):
        return [card.source]
    return [f"{card.source}:{file}" for file in card.files]


def hub_id(name: str | Path) -> tuple[str, str | None] | None:
    """Returns the repository and the file that a hub id names, or None if the name is no hub id.

    A name that ends like a weights file, such as ``models/gpt.pt``, is a path and no repository.
    """
    match = _HUB_ID.fullmatch(str(name))
    if match is None or match["repo"].endswith(_WEIGHTS_SUFFIXES):
        return None
    return match["repo"], match["file"]


def resolve(name: str | Path, filename: str | None = None) -> Path:
    """Returns where the weights that a user named lie on this machine.

    An embedded model's name comes first, then an existing path, then a hub id ``owner/name`` or ``owner/name:file``.
    Nothing is fetched unless the user wrote a hub id.

    Args:
        name: what the user named.
        filename: the file that is wanted, where the name is that of a folder or of a whole repository.

    Returns:
        A file, or a model's folder where no file is named.

    Raises:
        VistokError: the name leads nowhere, or the hub does not give the file.
    """
    check_name(name)
    found = _find(str(name))
    path = local_path(name)
    if found is not None and found.embedded:
        if path is not None and ((path / CARD_FILE).is_file() or (path / "config.json").is_file()):
            warnings.warn(
                f"'{name}' is the embedded model, and not the folder of this name here: write "
                f"'{os.path.join(os.curdir, name)}' for the folder.",
                stacklevel=1,  # so that it is printed once, whoever asks
            )
        path = WEIGHTS / found.name
    elif path is None:
        if found is not None:
            hub = ", ".join(f"'{where}'" for where in _hub_names(found))
            mend = f", or {hub} to fetch it" if hub else f" {' or '.join(found.files)}"
            raise VistokError(f"the weights of '{name}' are not part of vistok: name your file{mend}.")
        if (where := hub_id(name)) is not None:
            return _fetch(*where, filename)
        if Path(name).suffix in _WEIGHTS_SUFFIXES or re.search(r"[/\\]", str(name)):
            raise VistokError(
                f"there is no file or folder '{name}': check the path, or name a hub id 'owner/name:file'."
            )
        raise _unknown(str(name))
    if filename is not None and path.is_dir():
        path = path / filename
        if not path.exists():
            raise VistokError(f"there is no '{filename}' in '{path.parent}'.")
    return path


def verify(name: str) -> ModelCard:
    """Checks the embedded weights of a model against the SHA-256 of its card, which is returned.

    Raises:
        VistokError: the model is not embedded, or a file is missing, changed or not on the card.
    """
    found = card(name)
    if not found.embedded:
        raise VistokError(f"'{name}' is not embedded, so there are no files of it to verify.")
    verify_files(found, WEIGHTS / found.name)
    return found


def _fetch(repo: str, file: str | None, filename: str | None) -> Path:
    """Fetch a hub file, or the safetensors and JSON files of a repository when no file is named."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    file = file or filename
    known = [where for card in published_cards() if card.source == repo for where in _hub_names(card)]
    if file is None and known and repo not in known:
        raise VistokError(f"'{repo}' holds several models: name one, such as {', '.join(known[:3])}.")
    try:
        if file is None:
            return Path(huggingface_hub.snapshot_download(repo, allow_patterns=["*.json", "*.safetensors"]))
        return Path(huggingface_hub.hf_hub_download(repo, file))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        wanted = repo if file is None else f"{repo}:{file}"
        reason = str(error).strip().partition("\n")[0]
        raise VistokError(
            f"cannot fetch '{wanted}' from the hub ({reason}): check the name and the connection, "
            "or download the file elsewhere and name its path."
        ) from error
