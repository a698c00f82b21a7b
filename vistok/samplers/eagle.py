"""Drafting with an EAGLE network: static trees (arXiv 2401.15077) and dynamic ones (EAGLE-2, arXiv 2406.16858).

With guidance the network runs on conditional and unconditional features side by side, and its logits are combined like
the target's. A dynamic tree takes the most likely tokens, so its drafts are deterministic; a static tree draws each
node's children without replacement from the processed law, or takes the most likely ones when decoding is greedy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vistok.errors import VistokError, unknown_name
from vistok.models.eagle import Eagle as EagleNetwork
from vistok.models.eagle import Eagle3
from vistok.models.llamagen import LlamaGen
from vistok.ops import combine_guidance, draw, pack_linears
from vistok.samplers.candidates import exact_tree
from vistok.samplers.law import Law
from vistok.samplers.loop import Run, Scores, Verdict, generate
from vistok.samplers.noise import DRAFT, Noise
from vistok.samplers.stats import Stats
from vistok.samplers.target import ImageTarget
from vistok.samplers.tree import LawKind, TokenTree, TreeShape
from vistok.samplers.trees import STATIC_TREES

DEFAULT_DRAFTER = "llamagen-mini-eagle"


class DraftPolicy(Protocol):
    """Which nodes are worth proposing.

    Attributes:
        nodes: most nodes of a tree, the root included.
        slots: most slots that growing a tree writes.
    """

    nodes: int
    slots: int

    def kind(self, law: Law) -> LawKind:
        """How drafts are chosen under this law."""

    def grow(self, head: HeadDrafter, run: Run) -> TokenTree:
        """A tree behind the last decided token."""


class HeadDrafter:
    """An EAGLE network behind the loop's interface.

    Args:
        network: the drafter.
        head: the target's output layer.
        law: guidance and processing.
        policy: the shape of its trees.
        length: tokens of a sample.

    Attributes:
        hidden: the predicted feature behind the last decided token, [R, 1, H]; R = 2B with guidance.
        forwards: calls of the network.
    """

    def __init__(self, network: EagleNetwork | Eagle3, head: nn.Module, law: Law, policy: DraftPolicy, length: int):
        self.network, self.head, self.law, self.policy, self.length = network, head, law, policy, length
        self.kind, self.nodes, self.chain = policy.kind(law), policy.nodes, False
        self.forwards = 0

    def start(self, run: Run, prefill: Scores) -> None:
        """Read the features of the condition. Every conditioning slot has token 0, as in the published drafters."""
        rows, slots = prefill.hidden.shape[:2]
        tokens = torch.zeros(len(run.tokens), slots, dtype=torch.int64, device=run.tokens.device)
        tokens[:, -1] = run.tokens[:, 0]
        self.reset(rows, slots + self.length)
        self.feed(prefill.hidden, tokens)

    def reset(self, rows: int, slots: int) -> None:
        """Begin with an empty cache of R sequences, with room for ``slots`` decided ones."""
        self.cache = self.network.new_cache(rows, slots + self.nodes + self.policy.slots)

    def feed(self, features: Tensor, tokens: Tensor, count: Tensor | None = None) -> Tensor:
        """Read features of the target and the tokens that followed them.

        Args:
            features: [R, T, F].
            tokens: int64 [B, T].
            count: how many of them each sample has, [B]; all if None.

        Returns:
            Predicted features [R, T, H].
        """
        if len(features) < len(self.cache.lengths):  # the target has dropped its unconditional half
            self.cache = self.cache.narrow(len(features))
            self.hidden = self.hidden[: len(features)]
        halves = len(features) // len(tokens)
        predicted = self.network(features, tokens.repeat(halves, 1), self.cache)
        self.forwards += 1
        if count is None:
            self.cache.advance(tokens.shape[1])
            self.hidden = predicted[:, -1:]
            return predicted
        count = count.repeat(halves)
        self.cache.advance(count)
        last = (count - 1).clamp(min=0)[:, None, None].expand(-1, 1, predicted.shape[-1])
        self.hidden = torch.where((count > 0)[:, None, None], predicted.gather(1, last), self.hidden)
        return predicted

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Read the features of the nodes that were kept."""
        path = verdict.path
        if path is None:
            path = torch.arange(tree.nodes, device=tree.tokens.device).expand(len(tree.tokens), -1)
        path = path.clamp(min=0).repeat(len(scores.hidden) // len(path), 1)
        features = scores.hidden.gather(1, path[..., None].expand(-1, -1, scores.hidden.shape[-1]))
        self.feed(features, verdict.emitted, verdict.count)

    def propose(self, run: Run) -> TokenTree:
        """Grow a tree."""
        return self.policy.grow(self, run)

    def logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Guided draft logits [B, T, V] from predicted features [R, T, H], of the tokens at ``positions`` [B, T]."""
        logits = self.network.logits(hidden, self.head)
        if len(logits) == len(positions):
            return logits
        scale = self.law.guidance_at(positions)
        scale = scale[..., None] if isinstance(scale, Tensor) else scale
        return combine_guidance(*logits.chunk(2), scale)

    def token(self, index: Tensor) -> Tensor:
        """Tokens of entries of the draft logits."""
        return self.network.token(index)

    def expand(self, tokens: Tensor, features: Tensor, seen: Tensor, slots: Tensor) -> Tensor:
        """Run the network on draft nodes, whose slots the cache keeps until ``forget``.

        Args:
            tokens: int64 [B, T].
            features: the predicted features behind their parents, [R, T, H].
            seen: bool [B or 1, T, N], which of the N draft slots so far, these included, each node sees.
            slots: the nodes' depth below the root less 1, int64 [T].

        Returns:
            Predicted features [R, T, H].
        """
        rows, halves = len(features), len(features) // len(tokens)
        seen = seen.expand(len(tokens), -1, -1).repeat(halves, 1, 1)
        decided = self.cache.lengths[:, None] - (seen.shape[2] - tokens.shape[1])
        hidden = self.network(features, tokens.repeat(halves, 1), self.cache, (decided + slots).expand(rows, -1), seen)
        self.forwards += 1
        self.cache.advance(tokens.shape[1])
        return hidden

    def forget(self, slots: int) -> None:
        """Drop the last draft slots."""
        if slots:
            self.cache.advance(-slots)


@dataclass(frozen=True)
class DynamicTree:
    """EAGLE-2's tree: the most likely paths, by the drafter's own probability.

    Attributes:
        drafts: nodes below the root.
        depth: further levels that are expanded below the root's children.
        top_k: nodes that are expanded in each level, and children of each.

    Raises:
        VistokError: more drafts than are looked at.
    """

    drafts: int = 58
    depth: int = 4
    top_k: int = 10

    def __post_init__(self):
        looked = self.top_k + self.depth * self.top_k**2
        if not 1 <= self.drafts <= looked:
            raise VistokError(
                f"a tree of top-k {self.top_k} and depth {self.depth} has 1 to {looked} drafts, not {self.drafts}."
            )

    @property
    def nodes(self) -> int:
        """Nodes, the root included."""
        return self.drafts + 1

    @property
    def slots(self) -> int:
        """Slots that growing writes."""
        return self.depth * self.top_k

    def kind(self, law: Law) -> LawKind:
        """The most likely tokens are no draws."""
        return LawKind.DETERMINISTIC

    def grow(self, head: HeadDrafter, run: Run) -> TokenTree:
        """Expand the best nodes level by level, then keep the best of all that was seen."""
        k = self.top_k
        batch, device = len(run.decided), run.decided.device
        position = run.decided[:, None]
        best = head.logits(head.hidden, position).log_softmax(-1)[:, 0].topk(k)
        score, frontier = best.values, head.token(best.indices)  # [B, K]
        tokens, scores = [frontier], [score]
        parents = [torch.full((batch, k), -1, device=device)]  # record numbers; -1 is the root
        records = torch.arange(k, device=device).expand(batch, -1)  # of the frontier
        features = head.hidden.expand(-1, k, -1)
        halves = len(features) // batch
        seen = torch.eye(k, dtype=torch.bool, device=device).expand(batch, -1, -1)
        for level in range(self.depth):
            hidden = head.expand(frontier, features, seen, torch.full((k,), level, device=device))
            best = head.logits(hidden, (position + level + 1).expand(-1, k)).log_softmax(-1).topk(k)  # [B, K, K]
            reach = (best.values + score[..., None]).flatten(1)
            found = head.token(best.indices).flatten(1)
            tokens.append(found)
            scores.append(reach)
            parents.append(records.repeat_interleave(k, 1))
            score, chosen = reach.topk(k)
            records = k + level * k * k + chosen
            frontier = found.gather(1, chosen)
            parent = chosen // k
            features = hidden.gather(1, parent.repeat(halves, 1)[..., None].expand(-1, -1, hidden.shape[-1]))
            above = seen.gather(1, parent[..., None].expand(-1, -1, seen.shape[2]))
            seen = torch.cat([above, torch.eye(k, dtype=torch.bool, device=device).expand(batch, -1, -1)], 2)
            halves = len(features) // batch
        head.forget(self.slots)
        number = torch.cat(scores, 1).topk(self.drafts).indices.sort(1).values  # a chosen node's parent is chosen too
        parent = torch.cat(parents, 1).gather(1, number).contiguous()
        place = torch.where(parent < 0, 0, torch.searchsorted(number, parent) + 1)
        root = torch.full((batch, 1), -1, device=device)
        drafted = torch.cat(tokens, 1).gather(1, number)
        return TokenTree(
            torch.cat([run.root, drafted], 1), TreeShape(torch.cat([root, place], 1)), LawKind.DETERMINISTIC
        )


@dataclass(frozen=True)
class StaticTree:
    """A tree of fixed shape (EAGLE-1, LANTERN++).

    Attributes:
        paths: rank paths, see ``TreeShape.of_paths``, or the name of a published tree.

    Raises:
        VistokError: unknown name, or a path whose beginning is missing.
    """

    paths: str | tuple[tuple[int, ...], ...] = "naive_extend_57"

    def __post_init__(self):
        paths = STATIC_TREES.get(self.paths, ()) if isinstance(self.paths, str) else self.paths
        if isinstance(self.paths, str) and not paths:
            raise unknown_name("static tree", self.paths, list(STATIC_TREES))
        known = {(), *paths}
        for path in paths:
            if path[:-1] not in known or (path[-1] and (*path[:-1], path[-1] - 1) not in known):
                raise VistokError(
                    f"the tree has the path {list(path)} without its parent or an earlier sibling: add them."
                )
        object.__setattr__(self, "shape", TreeShape.of_paths(list(paths)))
        object.__setattr__(self, "_placed", {})

    def placed(self, device: torch.device) -> TreeShape:
        """The shape on a device, with its tables built once."""
        return self._placed.setdefault(device, TreeShape(self.shape.parents.to(device)))

    @property
    def nodes(self) -> int:
        """Nodes, the root included."""
        return self.shape.nodes

    @property
    def slots(self) -> int:
        """Slots that growing writes."""
        return sum(len(level) for level in self.shape.expanded[1:])

    def kind(self, law: Law) -> LawKind:
        """Drawn without replacement, or the most likely ones when decoding is greedy."""
        return LawKind.DETERMINISTIC if law.greedy else LawKind.WITHOUT_REPLACEMENT

    def grow(self, head: HeadDrafter, run: Run) -> TokenTree:
        """Choose the children of all nodes of a level at a time."""
        device, batch = run.decided.device, len(run.decided)
        shape = self.placed(device)
        tokens = torch.zeros(batch, shape.nodes, dtype=torch.int64, device=device)
        tokens[:, :1] = run.root
        laws = None
        below = torch.zeros(0, dtype=torch.int64, device=device)
        hidden = head.hidden  # behind each node of the level, [R, T, H]
        within = torch.zeros(shape.nodes, dtype=torch.int64, device=device)
        for depth, level in enumerate(shape.expanded):
            within[level] = torch.arange(len(level), device=device)
            if depth:
                features = hidden[:, within[shape.parents[0, level]]]
                below = torch.cat([below, level])
                seen = shape.ancestors[:, level][:, :, below]
                hidden = head.expand(tokens[:, level], features, seen, torch.full_like(level, depth - 1))
            logits = head.logits(hidden, (run.decided[:, None] + depth).expand(-1, len(level)))
            children = shape.children[0, level]  # [T, K]
            most = children.shape[1]
            if run.law.greedy:
                chosen = logits.topk(most).indices
            else:
                law = run.law.probabilities(logits)
                if laws is None:
                    laws = law.new_zeros(batch, shape.nodes, law.shape[-1])
                laws[:, level] = law
                chosen = self._draw(law, run, level, depth, most)
            used = children >= 0
            tokens[:, children[used]] = chosen[:, used]
        head.forget(self.slots)
        return TokenTree(tokens, shape, self.kind(run.law), laws)

    @staticmethod
    def _draw(law: Tensor, run: Run, level: Tensor, depth: int, most: int) -> Tensor:
        """Draws without replacement, int64 [B, T, most]; a law that has run out of tokens gives token 0, of
        probability 0.
        """
        rest, found = law, []
        offsets = torch.full_like(level, depth)
        for rank in range(most):
            token = draw(rest, run.uniform(offsets, DRAFT, level, rank))
            found.append(token)
            rest = rest.scatter(-1, token[..., None], 0.0)
        return torch.stack(found, -1)


def draft_policy(tree: str, drafts: int, depth: int, top_k: int) -> DraftPolicy:
    """The policy of a tree's name: ``dynamic``, or a published static tree."""
    return DynamicTree(drafts, depth, top_k) if tree == "dynamic" else StaticTree(tree)


@functools.lru_cache(maxsize=4)
def _load(name: str, grid: int, prefix: int, dtype: torch.dtype, device: torch.device) -> EagleNetwork:
    network = (
        EagleNetwork.from_pretrained(name, grid=grid, cls_token_num=prefix).to(device, dtype).requires_grad_(False)
    )
    return pack_linears(network) if device.type == "cpu" else network


def drafter_of(drafter: EagleNetwork | str, model: LlamaGen) -> EagleNetwork:
    """The drafter network of a model: the one that is given, or the one of this name, loaded once.

    Raises:
        VistokError: the name leads nowhere, or the drafter was made for another target.
    """
    target, weight = model.config, model.tok_embeddings.weight
    if isinstance(drafter, str):
        drafter = _load(drafter, target.grid, target.cls_token_num, weight.dtype, weight.device)
    own = drafter.config
    pairs = {
        "hidden width": (own.hidden_size, target.dim),
        "vocabulary": (own.vocab_size, target.vocab_size),
        "grid": (own.grid, target.grid),
        "number of conditioning tokens": (own.cls_token_num, target.cls_token_num),
    }
    for what, (mine, theirs) in pairs.items():
        if mine != theirs:
            raise VistokError(
                f"the drafter's {what} is {mine}, but the model's is {theirs}: name the drafter of this model."
            )
    return drafter


@dataclass(frozen=True)
class Eagle:
    """Exact speculation with an EAGLE drafter: the output's law is that of plain decoding.

    Attributes:
        drafter: the network that belongs to the target, or its name: an embedded one, a folder, or a hub id.
        tree: ``dynamic`` (EAGLE-2) or the name of a static tree.
        drafts, depth, top_k: shape of a dynamic tree.
    """

    drafter: EagleNetwork | str = DEFAULT_DRAFTER
    tree: str = "dynamic"
    drafts: int = 16
    depth: int = 4
    top_k: int = 4

    def __post_init__(self):
        draft_policy(self.tree, self.drafts, self.depth, self.top_k)

    @torch.inference_mode()
    def sample(
        self,
        model: LlamaGen,
        condition: Tensor,
        mask: Tensor | None,
        law: Law,
        noise: Noise,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, Stats]:
        """Draw a batch of pictures; see ``Sampler.sample``."""
        policy = draft_policy(self.tree, self.drafts, self.depth, self.top_k)
        drafter = HeadDrafter(drafter_of(self.drafter, model), model.head, law, policy, model.config.block_size)
        target = ImageTarget(model, law, condition, mask, nodes=drafter.nodes)
        return generate(target, drafter, exact_tree(drafter.kind), law, noise, progress)
