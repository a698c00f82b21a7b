"""What ``vistok write`` does: a drafter by name, a text streamed as it is decided, and the draft tree of a step."""

from __future__ import annotations

from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor, nn

from vistok.errors import VistokError, unknown_name
from vistok.samplers.drafters.draft_model import DraftModel
from vistok.samplers.drafters.rasd import Rasd
from vistok.samplers.drafters.recycling import TokenRecycling
from vistok.samplers.drafters.text import TextDrafter, Undrafted
from vistok.samplers.named import TEXT_DRAFTERS
from vistok.samplers.pearl import Pearl
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.speculation import Speculation
from vistok.samplers.stats import Stats
from vistok.samplers.text_drafters import TRAINED, trained_kind
from vistok.samplers.tree import TokenTree
from vistok.zoo.transformers import load_causal_lm

LAST = -1  # instead of the number of a step
OWN = ("none", "pearl")  # names beside those of TEXT_DRAFTERS
SMALL = ("draft", "rasd", "s2d", "pearl")  # those of a small model
UNREAD = ("none", "lookup", "recycling", "lexical-units", "aded")  # those that no other weights serve


class Watched:
    """A drafter that remembers the tree of one step, and what was kept of it.

    Args:
        drafter: whose trees they are.
        step: from 1; ``LAST`` for the last one.

    Attributes:
        tree, verdict: of the step; None before it.
    """

    def __init__(self, drafter: TextDrafter, step: int):
        self.drafter, self.step = drafter, step
        self.tree: TokenTree | None = None
        self.verdict: Verdict | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.drafter, name)

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Remember the step, and hand it on."""
        if self.step in (LAST, run.step):
            self.tree, self.verdict = tree, verdict
        self.drafter.observe(run, tree, scores, verdict)


def _drafter(
    name: str, model: nn.Module, tokenizer: Any, draft: str | None, device: str, dtype: str
) -> TextDrafter | None:
    """The drafter of a name; those that have trees take the size that pays."""
    if name == "none":
        return Undrafted()
    if name == "recycling":
        return TokenRecycling("auto")
    if name in TRAINED and draft is not None:
        if (kind := trained_kind(draft)) not in (name, None):
            raise VistokError(f"the weights '{draft}' are of the drafter '{kind}', not of '{name}': name that one.")
        return TRAINED[name].load(draft, model)
    small = None if draft is None else load_causal_lm(draft, device, dtype)[0]
    if name == "draft":
        return DraftModel(small, "auto")
    if name == "rasd":
        return Rasd(DraftModel(small, "auto"))
    return TEXT_DRAFTERS[name](model, tokenizer, small)


def check_draft(name: str, draft: str | None) -> None:
    """Refuses a drafter before anything is loaded for it.

    Args:
        name: none, pearl, or one of ``TEXT_DRAFTERS``.
        draft: the draft model or the weights that are given beside it, if any.

    Raises:
        VistokError: no such name, or it reads no weights and some are given.
    """
    if name not in (names := [*OWN, *TEXT_DRAFTERS]):
        raise unknown_name("drafter", name, names)
    if draft is not None and name in UNREAD:
        raise VistokError(f"the drafter '{name}' reads no --draft: leave it out, or take another one.")


def drafter_of(
    name: str, model: nn.Module, tokenizer: Any, draft: str | None, device: str, dtype: str, step: int | None
) -> tuple[Speculation, Watched | None]:
    """Returns the speculation that a drafter's name stands for, and the watch over a step's tree if one is wanted.

    Args:
        name: none, pearl, or one of ``TEXT_DRAFTERS``.
        model, tokenizer: the target's.
        draft: where the draft model is, or weights of a drafter of ``TRAINED``; None for embedded ones of the latter.
        device, dtype: of a draft model.
        step: whose tree is wanted, ``LAST`` for the last one's; None for none.

    Raises:
        VistokError: no such name; or it needs what is not given, or has no trees to show.
    """
    if name in SMALL and draft is None:
        raise VistokError(f"the drafter '{name}' needs a small model with the target's tokenizer: name one as --draft.")
    if name == "pearl":
        if step is not None:
            raise VistokError("PEARL drafts no trees: leave --tree out, or take another drafter.")
        return Pearl(load_causal_lm(draft, device, dtype)[0]), None
    drafter = _drafter(name, model, tokenizer, draft, device, dtype)
    if drafter is None:
        raise VistokError(_missing(name))
    watched = None if step is None else Watched(drafter, step)
    return Speculation(watched or drafter), watched


def _missing(name: str) -> str:
    """What a drafter needs that is not there."""
    if name in TRAINED:
        needs = "weights that were trained for this target, and none are embedded: name their folder as --draft"
    elif name == "s2d":
        needs = "a small model whose config names its 'exits', and this one's does not: name one as --draft"
    elif name == "lexical-units":
        needs = "a target with placeholders of its own, which this one was not taught: name one as --model"
    else:
        needs = "what this target has not"
    return f"the drafter '{name}' needs {needs}, or take another drafter."


def continued(
    model: nn.Module,
    tokenizer: Any,
    ids: Tensor,
    speculation: Speculation,
    length: int,
    options: dict[str, Any],
    stop: list[str],
    out: TextIO | None,
) -> Tensor:
    """Continues a text; returns the prompt and the new tokens, int64 [1, T].

    Args:
        model, tokenizer: the target's.
        ids: the prompt, int64 [1, L].
        speculation: how it is decoded.
        length: most new tokens.
        options: of sampling; greedy if empty.
        stop: strings behind which the text ends.
        out: where the text goes as it is decided; None for nowhere.

    Raises:
        VistokError: an empty prompt, or one that the model cannot read.
    """
    from transformers import TextStreamer

    class Stream(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            print(text, end="\n" if stream_end else "", file=out, flush=True)

    if ids.shape[1] == 0:
        raise VistokError("the prompt is empty: write at least one word.")
    speculation.tokenizer, speculation.stopping = tokenizer, stop
    streams = out is not None and not isinstance(speculation, Pearl)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    sequences = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=length,
        do_sample=bool(options),
        pad_token_id=pad,
        custom_generate=speculation,
        **options,
        **({"streamer": Stream(tokenizer, skip_prompt=False)} if streams else {}),
    )
    if out is not None and not streams:
        print(tokenizer.decode(sequences[0], skip_special_tokens=True), file=out)
    return sequences


def written(
    model: nn.Module,
    tokenizer: Any,
    ids: Tensor,
    speculation: Speculation,
    length: int,
    options: dict[str, Any],
    stop: list[str],
    out: TextIO | None,
) -> dict[str, Any]:
    """Continues a text, see :func:`continued`, and returns it with the run's figures."""
    sequences = continued(model, tokenizer, ids, speculation, length, options, stop, out)
    return figures(tokenizer, ids, speculation, sequences)


def figures(tokenizer: Any, ids: Tensor, speculation: Speculation, sequences: Tensor) -> dict[str, Any]:
    """Returns the text of ``sequences``, which :func:`continued` gave for a prompt ``ids``, and the run's figures."""
    text = tokenizer.decode(sequences[0], skip_special_tokens=True)
    found: dict[str, Any] = {"text": text, "tokens": sequences.shape[1] - ids.shape[1]}
    stats = getattr(speculation, "stats", None)
    if stats is not None:
        found |= {
            "target_forwards": int(stats.forwards[0]) + 1,
            "draft_forwards": stats.draft_forwards,
            "tokens_per_forward": found["tokens"] / (int(stats.forwards[0]) + 1),
            "seconds": stats.seconds,
        }
    elif isinstance(speculation, Pearl):
        counts = speculation.counts
        found |= {
            "target_forwards": counts.target_forwards + counts.tail_forwards,
            "draft_forwards": counts.draft_forwards,
        }
    return found


def pieces(tokenizer: Any, ids: Tensor, stats: Stats, sequences: Tensor) -> list[tuple[str, bool]]:
    """Returns the new text of ``sequences`` in pieces, each with whether its tokens were accepted drafts.

    Args:
        tokenizer: the target's.
        ids: the prompt, int64 [1, L].
        stats: of the run.
        sequences: prompt and new tokens, int64 [1, T].
    """
    drafted = stats.drafted(0)[: sequences.shape[1] - ids.shape[1]].tolist()
    found: list[tuple[str, bool]] = []
    told = tokenizer.decode(sequences[0, : ids.shape[1]], skip_special_tokens=True)
    for i, draft in enumerate(drafted):
        if i + 1 < len(drafted) and drafted[i + 1] == draft:
            continue
        text = tokenizer.decode(sequences[0, : ids.shape[1] + i + 1], skip_special_tokens=True)
        if text.endswith("\ufffd") and i + 1 < len(drafted):  # half of a character: it goes with the next piece
            continue
        found.append((text[len(told) :], draft))
        told = text
    return found


class Node(NamedTuple):
    """A node of a draft tree.

    Attributes:
        text: of its token.
        depth: 0 for the root, the last token that was decided before.
        kept: whether it was accepted.
    """

    text: str
    depth: int
    kept: bool


def tree_nodes(watched: Watched, tokenizer: Any) -> tuple[list[Node], str]:
    """Returns the nodes of a watched step's tree, each followed by what hangs below it, and the target's own token
    behind what was kept.

    Raises:
        VistokError: the text ended before that step.
    """
    tree, verdict = watched.tree, watched.verdict
    if tree is None or verdict is None:
        raise VistokError(f"the text ended before step {watched.step}: name an earlier one with --tree.")
    parents, depth = tree.shape.parents[0].tolist(), tree.shape.depth[0].tolist()
    path = range(int(verdict.count[0])) if verdict.path is None else verdict.path[0, : int(verdict.count[0])].tolist()
    kept = set(path)
    nodes: list[Node] = []

    def show(node: int) -> None:
        nodes.append(Node(tokenizer.decode(tree.tokens[0, node : node + 1]), depth[node], node in kept))
        for child, parent in enumerate(parents):
            if parent == node:
                show(child)

    show(0)
    last = verdict.emitted[0, int(verdict.count[0]) - 1]
    return nodes, tokenizer.decode(last[None])


def draft_tree(watched: Watched, tokenizer: Any) -> list[str]:
    """The tree of a watched step, a line a node, indented by depth; what was kept is marked.

    Raises:
        VistokError: the text ended before that step.
    """
    nodes, own = tree_nodes(watched, tokenizer)
    lines = [f"{'*' if node.kept else ' '} {'  ' * node.depth}{node.text!r}" for node in nodes]
    return [*lines, f"then {own!r}, the target's own"]
