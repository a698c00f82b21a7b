"""Drafting with a network that reads the target's features, such as EAGLE (arXiv 2401.15077).

With guidance the network runs on conditional and unconditional features side by side, and its logits are combined like
the target's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistok.models.heads.eagle import EagleNetwork
from vistok.models.heads.eagle3 import Eagle3Network
from vistok.ops import combine_guidance
from vistok.samplers.interface import DraftPolicy
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.chains import chain_shape
from vistok.samplers.policies.sized_growth import SizedTree
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.tree import TokenTree

PIECE = 32  # features that are read at a time behind a rest


class HeadDrafter:
    """An EAGLE network behind the loop's interface.

    Args:
        network: the drafter.
        head: the target's output layer.
        params: guidance and processing.
        policy: the shape of its trees.
        length: tokens of a sample.

    Attributes:
        room: slots of the cache behind those of decided tokens.
        hidden: the predicted feature behind the last decided token, [R, 1, H]; R = 2B with guidance.
        forwards: calls of the network.
        rests: the next tree has no drafts, and the target's features are kept unread.
    """

    rests = False

    def __init__(
        self,
        network: EagleNetwork | Eagle3Network,
        head: nn.Module,
        params: SamplingParams,
        policy: DraftPolicy,
        length: int,
    ):
        self.network, self.head, self.params, self.policy, self.length = network, head, params, policy, length
        self.kind, self.nodes, self.chain = policy.kind(params), policy.nodes, policy.chain
        self.forwards = 0
        self._unread: list[tuple[Tensor, Tensor, Tensor]] = []

    def start(self, run: Run, prefill: Scores) -> None:
        """Read the features of the condition. Every conditioning slot has token 0, as in the published drafters."""
        slots = prefill.hidden.shape[1]
        tokens = torch.zeros(len(run.tokens), slots, dtype=torch.int64, device=run.tokens.device)
        tokens[:, -1] = run.tokens[:, 0]
        self.begin(run, prefill.hidden, tokens, torch.full_like(run.decided, slots))

    def begin(self, run: Run, features: Tensor, tokens: Tensor, count: Tensor) -> None:
        """Read what stands before the first draft of a run; other arguments as of ``feed``."""
        rows, slots = features.shape[:2]
        self.reset(rows, slots + self.length)
        self.hidden = features.new_zeros(rows, 1, self.network.config.hidden_size)
        self._unread = [(features, tokens, count)]
        if isinstance(self.policy, SizedTree):
            self.policy.begin(run)
        else:
            self._catch_up()

    def reset(self, rows: int, slots: int) -> None:
        """Begin with an empty cache of R sequences, with room for ``slots`` decided ones."""
        self.room = max(self.nodes + self.policy.slots, PIECE)
        self.cache = self.network.new_cache(rows, slots + self.room)

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

    def _catch_up(self) -> None:
        """Read the features that were kept, those of all steps at once."""
        if self._unread and not int(self.cache.lengths.max()):  # the prompt's
            self.feed(*self._unread.pop(0))
        if not self._unread:
            return
        features, tokens, count = (list(part) for part in zip(*self._unread, strict=True))
        self._unread = []
        if len(count) == 1:
            self.feed(features[0], tokens[0], count[0])
            return
        real = [torch.arange(t.shape[1], device=t.device) < c[:, None] for t, c in zip(tokens, count, strict=True)]
        order = (~torch.cat(real, 1)).long().sort(dim=1, stable=True).indices
        rows = len(features[-1])  # the target may have dropped its unconditional half
        joined = torch.cat([part[:rows] for part in features], 1)
        ids, left = torch.cat(tokens, 1), sum(count)
        while (width := int(left.clamp(max=PIECE).max())) > 0:  # the cache has room for so many behind any text
            piece, order = order[:, :width], order[:, width:]
            own = piece.repeat(rows // len(piece), 1)[..., None]
            kept = joined.gather(1, own.expand(-1, -1, joined.shape[-1]))
            self.feed(kept, ids.gather(1, piece), left.clamp(max=width))
            left = (left - width).clamp(min=0)

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Read the features of the nodes that were kept, or keep them while it rests."""
        features, tokens, count = kept_features(tree, scores, verdict), verdict.emitted, verdict.count
        if isinstance(self.policy, SizedTree):
            self.policy.learn(run, tree, verdict)
            self._unread.append((features, tokens, count))
            return
        for start in range(0, tokens.shape[1], self.room):  # once, but for long paths of other drafters
            piece = slice(start, start + self.room)
            self.feed(features[:, piece], tokens[:, piece], (count - start).clamp(0, self.room))

    def propose(self, run: Run) -> TokenTree:
        """Grow a tree, if any."""
        if isinstance(self.policy, SizedTree) and not self.policy.choose(run):
            return self.rest(run)
        self.rests = False
        self._catch_up()
        return self.policy.grow(self, run)

    def rest(self, run: Run) -> TokenTree:
        """No drafts; the target's features are kept unread."""
        self.rests = True
        return TokenTree(run.root, chain_shape(1, run.root.device))

    def logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Guided draft logits [B, T, V] from predicted features [R, T, H], of the tokens at ``positions`` [B, T]."""
        logits = self.network.logits(hidden, self.head)
        if len(logits) == len(positions):
            return logits
        scale = self.params.guidance_at(positions)
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
        seen = seen.expand(len(tokens), -1, -1)
        if halves > 1:
            tokens, seen = tokens.repeat(halves, 1), seen.repeat(halves, 1, 1)
        decided = self.cache.lengths[:, None] - (seen.shape[2] - tokens.shape[1])
        hidden = self.network(features, tokens, self.cache, (decided + slots).expand(rows, -1), seen)
        self.forwards += 1
        self.cache.advance(tokens.shape[1])
        return hidden

    def forget(self, slots: int) -> None:
        """Drop the last draft slots."""
        if slots:
            self.cache.advance(-slots)


def kept_features(tree: TokenTree, scores: Scores, verdict: Verdict) -> Tensor:
    """Returns the target's features of the nodes that were kept, [R, M, D]; entries behind a sample's count hold
    anything.
    """
    path = verdict.path
    if path is None:  # of a chain, the first nodes
        return scores.hidden[:, : tree.nodes]
    path = path.clamp(min=0).repeat(len(scores.hidden) // len(path), 1)
    return scores.hidden.gather(1, path[..., None].expand(-1, -1, scores.hidden.shape[-1]))
