"""The tab *Write*: a text is continued by speculative decoding, with what was drafted in colour."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vistok.errors import VistokError
from vistok.models.huggingface import check_reads
from vistok.ops.noise import check_seed
from vistok.samplers import TEXT_DRAFTERS, Speculation
from vistok.samplers.text_drafters import available
from vistok.samplers.writing import LAST, Node, Watched, continued, figures, pieces, tree_nodes
from vistok.studio import html
from vistok.studio.streaming import streamed

LONGEST_PROMPT = 4000  # characters
MOST_TOKENS = 512
SHOWN_NODES = 64  # of a tree


@dataclass(frozen=True)
class Written:
    """A text that is written, or as far as it is written.

    Attributes:
        prompt: what is continued.
        pieces: the new text, each piece with whether it was drafted; one piece while the run lasts.
        figures: of the run; empty while it lasts.
        tree: the draft tree of the last step; empty without drafts.
        own: the target's own token behind it.
    """

    prompt: str
    pieces: list[tuple[str, bool]]
    figures: dict[str, Any] = field(default_factory=dict)
    tree: list[Node] = field(default_factory=list)
    own: str = ""


class _Told(io.StringIO):
    """A file that shows what was written into it."""

    def __init__(self, told: Callable[[str], None]):
        super().__init__()
        self.told = told

    def write(self, text: str) -> int:
        count = super().write(text)
        self.told(self.getvalue())
        return count


def drafters_of(model: Any, tokenizer: Any, draft: Any) -> list[str]:
    """Returns the names of text drafters that a model has what they need for; ``none`` comes last."""
    usable = TEXT_DRAFTERS.usable()
    return [*(name for name in usable if available(name, model, tokenizer, draft)), "none"]


def write(
    model: Any, tokenizer: Any, draft: Any, prompt: str, drafter: str, length: int, temperature: float, seed: int
) -> Iterator[Written]:
    """Yields a text while it is written; the last one has the figures of the run.

    Args:
        model, tokenizer: see ``vistok.zoo.transformers.load_causal_lm``.
        draft: the draft model; None where there is none.
        prompt: what is continued.
        drafter: of :func:`drafters_of`.
        length: most new tokens.
        temperature: 0 decodes greedily.
        seed: of the draws.

    Raises:
        VistokError: the prompt, the drafter or a number cannot be used.
    """
    if not (prompt or "").strip():
        raise VistokError("the prompt is empty: write at least one word.")
    if len(prompt) > LONGEST_PROMPT:
        raise VistokError(f"the prompt has {len(prompt)} characters: shorten it to {LONGEST_PROMPT}.")
    if not 1 <= length <= MOST_TOKENS:
        raise VistokError(f"the number of new tokens must be 1 to {MOST_TOKENS}, got {length}.")
    drafting = None if drafter == "none" else TEXT_DRAFTERS[drafter](model, tokenizer, draft)
    watched = None if drafting is None else Watched(drafting, LAST)
    speculation = Speculation(watched)
    options = {"temperature": temperature, "top_k": 0} if temperature > 0 else {}
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    check_reads(model, ids.shape[1] + length, Path(model.name_or_path).name)

    def work(show) -> Written:
        def told(text: str) -> None:
            show(lambda: Written(prompt, [(text[len(prompt) :], False)]))

        torch.manual_seed(check_seed(seed))
        sequences = continued(model, tokenizer, ids, speculation, length, options, [], _Told(told))
        found = figures(tokenizer, ids, speculation, sequences)
        text = pieces(tokenizer, ids, speculation.stats, sequences)
        tree, own = ([], "") if watched is None or watched.tree is None else tree_nodes(watched, tokenizer)
        return Written(prompt, text, found, tree if len(tree) > 1 else [], own)

    return streamed(work)


def written_html(written: Written) -> str:
    """Returns the text, accepted drafts in colour, and the run's figures and last tree once they are known."""
    parts = "".join(
        f'<mark title="accepted draft">{html.escape(text)}</mark>' if draft else html.escape(text)
        for text, draft in written.pieces
    )
    text = f'<pre class="vs-text"><span class="vs-prompt">{html.escape(written.prompt)}</span>{parts}</pre>'
    if not written.figures:
        return text
    found = written.figures
    drafted = html.chips(
        [
            (str(found["tokens"]), "new tokens"),
            (str(found["target_forwards"]), "forwards of the model"),
            (f"{found['tokens_per_forward']:.2f}", "tokens a forward"),
            (f"{found['seconds']:.2f} s", "in all"),
        ]
    )
    return text + html.note("In colour: accepted drafts. The rest is the model's own.") + drafted + _tree_html(written)


def _tree_html(written: Written) -> str:
    if not written.tree:
        return ""
    lines = "".join(
        f'<li class="{"vs-kept" if node.kept else "vs-dropped"}" style="--depth:{node.depth}">'
        f"<code>{html.escape(repr(node.text)[1:-1])}</code>{' <b>kept</b>' if node.kept else ''}</li>"
        for node in written.tree[:SHOWN_NODES]
    )
    more = len(written.tree) - SHOWN_NODES
    behind = f"; {more} more nodes are not shown" if more > 0 else ""
    own = html.note(f"then {written.own!r}, the model's own{behind}")
    return f'<section class="vs-tree"><h3>Draft tree of the last step</h3><ul>{lines}</ul>{own}</section>'
