"""RASD: retrieved continuations, pruned by a draft model and fused into its tree (arXiv 2503.03434).

Continuations come from the text so far and from a datastore. Those whose first token the draft model finds unlikely are
dropped; the others follow the tree as far as it goes with them, and are hung on where they leave it. The model's drafts
of a node come first, in the order in which they were drawn, so that the exact rule for both kinds holds: recursive
rejection over what was drawn, then the one-hot rule for what was retrieved.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.ops.tree import PADDING
from vistok.samplers.drafters.text import TextDrafter
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.retrieval import Datastore, GrowingText, vocabulary_digest
from vistok.samplers.policies.sized import Follows
from vistok.samplers.policies.sized_growth import SizedTree
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.targets.causal_lm import Prompt
from vistok.samplers.tree import LawKind, TokenTree, TreeShape

GUESS = 0.4  # of how often the first retrieved token is right
ALONE = 1.0  # retrieved tokens that are expected to be right from which on a drafter of sized trees rests


class Rasd(TextDrafter):
    """A draft model's tree with retrieved branches.

    Args:
        drafter: ``DraftModel`` or ``EagleHead``; its policy must not draw several candidates independently.
        datastore: searched beside the text so far; none if None.
        retrieved: most nodes that retrieval adds; with a drafter of sized trees as many of them as pay.
        paths: most continuations, of the text and of the datastore each.
        ngram: longest n-gram that is looked up.
        first: a continuation must begin with one of so many most likely tokens of the draft model.
        least: and have at least this probability along the part that the tree has, where its laws are known.

    Raises:
        VistokError: a number below 1, or a probability outside 0 to 1.
    """

    def __init__(
        self,
        drafter: TextDrafter,
        datastore: Datastore | None = None,
        retrieved: int = 12,
        paths: int = 4,
        ngram: int = 4,
        first: int = 10,
        least: float = 0.0,
    ):
        if min(retrieved, paths, ngram, first) < 1 or not 0 <= least <= 1:
            raise VistokError("retrieved, paths, ngram and first of RASD are at least 1, and least lies within 0 to 1.")
        self.drafter, self.datastore, self.retrieved = drafter, datastore, retrieved
        self.paths, self.ngram, self.first, self.least = paths, ngram, first, least
        self._follows = [Follows(retrieved, GUESS) for _ in range(ngram + 1)]
        self.features, self.reads_prompt = drafter.features, drafter.reads_prompt

    def bind(
        self, model: nn.Module, prompt: Prompt, params: SamplingParams, length: int, tokenizer: Any | None = None
    ) -> None:
        """Take the prompts of a run.

        Raises:
            VistokError: drafts of both kinds cannot be verified together, or the datastore has another tokenizer.
        """
        if not hasattr(self.drafter, "logits"):
            raise VistokError(f"RASD prunes by a draft model, which {type(self.drafter).__name__} has not.")
        self.drafter.bind(model, prompt, params, length, tokenizer)
        self.nodes = self.drafter.nodes + self.retrieved
        if self.drafter.kind is LawKind.INDEPENDENT and not self.drafter.chain:
            raise VistokError(
                "RASD fuses chains, and trees that are drawn without replacement or picked; not independent chains."
            )
        self.kind = LawKind.DETERMINISTIC if self.drafter.kind is LawKind.DETERMINISTIC else LawKind.MIXED
        self._check_datastore(model.get_input_embeddings().weight.shape[0], tokenizer)
        rows = zip(prompt.flush.tolist(), prompt.count.tolist(), strict=True)
        self._texts = [GrowingText(row[:count], self.ngram) for row, count in rows]

    def _check_datastore(self, size: int, tokenizer: Any | None) -> None:
        store = self.datastore
        if store is None:
            return
        other = tokenizer is not None and store.tokenizer is not None
        if int(store.tokens.max()) >= size or (other and vocabulary_digest(tokenizer) != store.tokenizer):
            raise VistokError("the datastore was built with another tokenizer than the target's: build it anew.")

    @property
    def forwards(self) -> int:
        """Calls of the draft network in this run."""
        return self.drafter.forwards

    def read(self, tokens: Tensor, logits: Tensor) -> None:
        """Let the drafter learn from the prompt."""
        self.drafter.read(tokens, logits)

    def start(self, run: Run, prefill: Scores) -> None:
        """Begin behind the first token."""
        self.drafter.start(run, prefill)
        for text, token in zip(self._texts, run.tokens[:, 0].tolist(), strict=True):
            text.extend([token])

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Append what was decided."""
        self.drafter.observe(run, tree, scores, verdict)
        rows = zip(self._texts, verdict.emitted.tolist(), verdict.count.tolist(), self._found, strict=True)
        for text, emitted, count, (paths, size) in rows:
            text.extend(emitted[:count])
            if paths and count:
                right = max(_common(path, emitted[:count]) for path in paths)
                self._follows[size].learn(right, min(count, max(map(len, paths))))

    def propose(self, run: Run) -> TokenTree:
        """Grow the drafter's tree and fuse what was retrieved into it.

        A drafter of sized trees rests where retrieval promises enough, and of what is retrieved so much is added as
        pays.
        """
        going = (run.decided < run.length).tolist()
        self._found = [self._retrieve(text) if runs else ([], 0) for text, runs in zip(self._texts, going, strict=True)]
        policy = getattr(self.drafter, "policy", None)
        sized = policy if isinstance(policy, SizedTree) else None
        follows = [self._follows[size].tokens() if paths else [0.0] for paths, size in self._found]
        if sized is not None and sum(known[-1] for known in follows) >= ALONE * sum(going):
            sized.pause()
            tree = self.drafter.rest(run)
        else:
            tree = self.drafter.propose(run)
        parents, likely = tree.shape.parents.expand(len(going), -1), self._likely(run)
        added = []
        for row, (paths, _) in enumerate(self._found):
            kept = [path for path in paths if likely[row] is None or path[0] in likely[row]]
            most = self.retrieved if sized is None or not kept else sized.room(follows[row])
            laws = None if tree.laws is None or not self.least else tree.laws[row]
            added.append(fuse(tree.tokens[row].tolist(), parents[row].tolist(), kept, most, laws, self.least))
        return extend(tree, added)

    def _likely(self, run: Run) -> list[set[int] | None]:
        """The draft model's most likely tokens behind each root; None while it rests, and nothing is pruned."""
        if getattr(self.drafter, "rests", False):
            return [None] * len(run.decided)
        logits = self.drafter.logits(self.drafter.hidden, run.decided[:, None])[:, -1]
        best = logits.topk(min(self.first, logits.shape[-1])).indices
        return [set(row) for row in self.drafter.token(best).tolist()]

    def _retrieve(self, text: GrowingText) -> tuple[list[tuple[int, ...]], int]:
        """Continuations, and the length of the n-gram in the text that they stand behind."""
        found, size = text.earlier(self.paths, self.retrieved)
        if self.datastore is not None:
            found += self.datastore.behind(text.tokens, self.ngram, self.paths, self.retrieved)
        return [path for path in dict.fromkeys(found) if path], size


def _common(path: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in itertools.takewhile(bool, map(operator.eq, path, tokens)))


def fuse(
    tokens: list[int], parents: list[int], paths: list[tuple[int, ...]], most: int, laws: Tensor | None, least: float
) -> list[tuple[int, int]]:
    """Nodes that make a tree hold paths as well: token and parent of each, numbered on behind the tree's.

    Args:
        tokens, parents: of the tree, root first.
        paths: drafts behind the root, the most important first.
        most: nodes at most.
        laws: that each node's children were drawn from, [N, V]; None if they are not asked.
        least: probability that a path must have along the nodes that have laws.
    """
    child = {
        (parent, token): node for node, (token, parent) in reversed([*enumerate(zip(tokens, parents, strict=True))])
    }
    added: list[tuple[int, int]] = []
    for path in paths:
        node, chance = 0, 1.0
        for token in path:
            if laws is not None and node < len(laws) and float(laws[node].sum()) > 0:
                chance *= float(laws[node, token])
            if chance < least:
                break
            if (node, token) not in child:
                if len(added) == most:
                    return added
                child[node, token] = len(tokens) + len(added)
                added.append((token, node))
            node = child[node, token]
    return added


def extend(tree: TokenTree, added: list[list[tuple[int, int]]]) -> TokenTree:
    """A tree with more nodes behind its own, as many as the sequence with the most has."""
    most = max(map(len, added))
    if not most:
        return tree
    device, batch = tree.tokens.device, len(added)
    rows = [row + [(0, PADDING)] * (most - len(row)) for row in added]
    more = torch.tensor(rows, dtype=torch.int64, device=device).view(batch, most, 2)
    parents = torch.cat([tree.shape.parents.expand(batch, -1), more[..., 1]], 1)
    tokens = torch.cat([tree.tokens, more[..., 0]], 1)
    if tree.kind is LawKind.DETERMINISTIC:
        return TokenTree(tokens, TreeShape(parents))
    own = parents[:, : tree.nodes]
    drawn = torch.zeros_like(tokens).scatter_add(1, own.clamp(min=0), (own >= 0).long())
    return TokenTree(tokens, TreeShape(parents), LawKind.MIXED, F.pad(tree.laws, (0, 0, 0, most)), drawn=drawn)
