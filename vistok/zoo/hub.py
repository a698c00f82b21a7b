"""To the Hugging Face hub: what ``save_pretrained`` writes, with a model card that people read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vistok.errors import VistokError
from vistok.zoo.model_card import CARD_FILE, ModelCard, read_card

README = "README.md"
# Tasks of cards, and what the hub calls them.
PIPELINE_TAGS = {
    "text-to-image": "text-to-image",
    "class-to-image": "unconditional-image-generation",
    "image-tokenizer": "image-to-image",
    "visual-question-answering": "image-text-to-text",
    "text-generation": "text-generation",
    "draft": "text-generation",
    "image-features": "image-feature-extraction",
}


def model_card_text(repo_id: str, load: str, card: ModelCard | None = None) -> str:
    """Returns a model card in Markdown, with the entries that the hub reads.

    Args:
        repo_id: ``owner/name`` of the repository.
        load: Python lines that load what is in it.
        card: what is known about it.
    """
    from huggingface_hub import ModelCardData

    task = None if card is None else PIPELINE_TAGS.get(card.task)
    licence = None if card is None or card.licence in ("unknown", "none") else card.licence.lower()
    data = ModelCardData(library_name="vistok", license=licence, pipeline_tag=task, tags=["vistok", "visual-tokens"])
    lines = ["---", data.to_yaml(), "---", "", f"# {repo_id.rpartition('/')[2]}", ""]
    if card is not None:
        lines += [f"A `{card.family}` model for {card.task}, {card.parameters:,} parameters.", ""]
        told = {
            "trained on": card.data,
            "recipe": card.recipe,
            "paper": None if card.paper is None else f"[arXiv {card.paper}](https://arxiv.org/abs/{card.paper})",
            **{name: str(value) for name, value in card.metrics.items()},
        }
        told = {name: value for name, value in told.items() if value}
        lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in told.items()), ""] if told else []
    return "\n".join([*lines, "```python", load, "```", ""])


class Pushable:
    """Mixin of what has ``save_pretrained(folder)``: sends the folder to the hub."""

    save_pretrained: Callable[..., None]

    def _loading(self, repo_id: str) -> str:
        """Python lines that load what was pushed."""
        kind = type(self)
        return f'from {kind.__module__} import {kind.__name__}\n\nmodel = {kind.__name__}.from_pretrained("{repo_id}")'

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload by vistok",
        **saving: Any,
    ) -> str:
        """Saves into a repository of the hub, which is made where there is none; returns its address.

        Args:
            repo_id: ``owner/name``.
            private: whether a new repository is private; the owner's own setting if None.
            token: of the hub; the one that ``hf auth login`` keeps if None.
            revision: branch; the main one if None.
            commit_message: of the commit.
            saving: further arguments of ``save_pretrained``.

        Raises:
            VistokError: it cannot be saved, or the hub does not take it.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory(prefix="vistok-") as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, **saving)
            card = read_card(folder) if (folder / CARD_FILE).exists() else None
            text = model_card_text(repo_id, self._loading(repo_id), card)
            (folder / README).write_text(text, encoding="utf-8")
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message)
            except (OSError, HFValidationError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise VistokError(
                    f"the hub does not take '{repo_id}' ({reason}): check the name, the connection, and "
                    "`hf auth login`."
                ) from error
        return f"https://huggingface.co/{repo_id}"
