"""A tabulated target in float64, whose law is known exactly, and the chi-square test against it."""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.ops import combine_guidance, draw
from vistok.samplers import Noise, SamplingParams, loop
from vistok.samplers.noise import DRAFT
from vistok.samplers.run import Scores, Verdict
from vistok.samplers.tree import LawKind, TokenTree, TreeShape


class TableTarget:
    """Logits of a token depend on the two tokens before it: ``A[last] + B[one before]``, by tables of each condition.

    It keeps what a KV cache would keep, so a wrong commit changes its answers.
    """

    def __init__(
        self, params: SamplingParams, batch: int, length: int, vocabulary: int, scale: float = 1.2, seed: int = 0
    ):
        generator = torch.Generator().manual_seed(seed)
        self.tables = torch.randn(2, 2, vocabulary, vocabulary, generator=generator, dtype=torch.float64) * scale
        self.params, self.batch, self.length = params, batch, length
        self.cached = torch.zeros(batch, 1, dtype=torch.int64)  # a zero stands before the first token
        self.rows = torch.zeros(batch, dtype=torch.int64)
        self.forwards = 0

    def logits(self, last: Tensor, before: Tensor, positions: Tensor | int) -> Tensor:
        """Guided logits of the token at ``positions`` behind these two, [..., V]."""
        cond, uncond = (a[last] + b[before] for a, b in self.tables)
        if not self.params.guided:
            return cond
        scale = self.params.guidance_at(positions)
        return combine_guidance(cond, uncond, scale[..., None] if isinstance(scale, Tensor) else scale)

    def prefill(self) -> Scores:
        zeros = torch.zeros(self.batch, 1, dtype=torch.int64)
        return Scores(self.logits(zeros, zeros, 0))

    def forward(self, tree: TokenTree, decided: Tensor) -> Scores:
        self.forwards += 1
        assert torch.equal(self.rows, decided - 1), "the cache must hold all decided tokens but the last"
        parents = tree.shape.parents.expand(self.batch, -1)
        self.tree = tree.tokens
        before = self.cached.gather(1, self.rows[:, None]).expand(-1, tree.nodes)
        before = torch.where(parents < 0, before, tree.tokens.gather(1, parents.clamp(min=0)))
        positions = decided[:, None] + tree.shape.depth
        return Scores(self.logits(tree.tokens, before, positions))

    def commit(self, verdict: Verdict, least: int, rows: int | None) -> None:
        nodes = self.tree.shape[1]
        kept = torch.arange(nodes).expand(self.batch, -1)
        if verdict.path is not None:
            kept = torch.nn.functional.pad(verdict.path.clamp(min=0), (0, nodes))[:, :nodes]
        self.cached = torch.nn.functional.pad(self.cached, (0, nodes))
        places = self.rows[:, None] + 1 + torch.arange(nodes)
        fits = torch.arange(nodes) < verdict.count[:, None]
        places = torch.where(fits, places, self.cached.shape[1] - 1)
        self.cached = self.cached.scatter(1, places, self.tree.gather(1, kept))
        self.rows = self.rows + verdict.count
        assert rows is None or bool((verdict.count == rows).all())

    def exact(self) -> Tensor:
        """The law of a token by context (last, one before), all inside the guidance interval or none; [V, V, V]."""
        size = self.tables.shape[-1]
        last, before = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        return self.params.probabilities(self.logits(last, before, 0))


def decode(drafter, verifier, law=None, batch=1, length=24, vocabulary=4, scale=1.2, seed=0, samples=None, table=0):
    """Tokens and statistics of a run on a fresh table."""
    law = law or SamplingParams()
    target = TableTarget(law, batch, length, vocabulary, scale, table)
    samples = torch.arange(batch) if samples is None else samples
    tokens, stats = loop.decode(target, drafter, verifier, law, Noise(seed, samples))
    return tokens, stats, target


def context_p_value(tokens: Tensor, law: Tensor) -> float:
    """Chi-square p-value of next tokens by their two-token context, contexts with at least 40 visits.

    Args:
        tokens: int64 [N, T].
        params: exact law by (last, one before), [V, V, V].
    """
    from scipy.stats import chi2

    size = law.shape[-1]
    context = tokens[:, 1:-1] * size + tokens[:, :-2]
    counts = torch.bincount((context * size + tokens[:, 2:]).flatten(), minlength=size**3).view(-1, size).double()
    visits = counts.sum(1, keepdim=True)
    expected = visits * law.reshape(-1, size)
    used = (visits >= 40) & (expected > 0)
    if bool((counts[(visits >= 40).expand_as(counts) & (expected == 0)] > 0).any()):
        return 0.0  # a token of probability zero was emitted
    statistic = float(((counts - expected) ** 2 / expected.clamp(min=1e-300))[used].sum())
    freedom = int((used.sum(1) - 1).clamp(min=0).sum())
    return float(chi2.sf(statistic, freedom))


class TableDrafter:
    """Grows a fixed tree of draws from a law of its own, which knows the target's only roughly.

    Args:
        shape: of the trees.
        kind: how children are chosen: independently, without replacement, or the most likely ones.
        size: vocabulary.
        claim: the kind that is claimed, if it is another.
    """

    chain = False
    forwards = 0

    def __init__(self, shape: TreeShape, kind: LawKind, size: int, claim: LawKind | None = None):
        self.shape, self.chosen, self.nodes = shape, kind, shape.nodes
        self.kind = claim or kind
        generator = torch.Generator().manual_seed(1)
        self.table = torch.randn(size, size, generator=generator, dtype=torch.float64).softmax(-1)

    def start(self, run, prefill):
        pass

    def propose(self, run):
        batch, size = len(run.decided), len(self.table)
        tokens = run.root.repeat(1, self.nodes)
        laws = torch.zeros(batch, self.nodes, size, dtype=torch.float64)
        for node in range(self.nodes):
            laws[:, node] = self.table[tokens[:, node]]
            rest = laws[:, node]
            for rank, child in enumerate(self.shape.children[0, node].tolist()):
                if child < 0:
                    continue
                depth = torch.tensor([int(self.shape.depth[0, child])])
                if self.chosen is LawKind.DETERMINISTIC:
                    token = rest.argmax(-1)
                else:
                    token = draw(rest, run.uniform(depth, DRAFT, child, rank)[:, 0])
                tokens[:, child] = token
                if self.chosen is not LawKind.INDEPENDENT:
                    rest = rest.scatter(1, token[:, None], 0.0)
        return TokenTree(tokens, self.shape, self.kind, laws)

    def observe(self, run, tree, scores, verdict):
        pass
