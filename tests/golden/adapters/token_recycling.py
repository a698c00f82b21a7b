"""Token Recycling: the static tree's tables, and the whole greedy loop on an analytic target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.case import Case
from vistok.samplers import TREE_2_2_2, Noise, SamplingParams, TokenRecycling
from vistok.samplers.loop import decode
from vistok.samplers.run import Scores
from vistok.samplers.tree import TreeShape
from vistok.samplers.verifiers.candidates import SampleMatch

SYSTEM = "token_recycling"


class SecondOrder:
    """Logits behind a token depend on it and on the one before.

    The reference's first root is the last token of the prompt, so that is the first token that a run decides.
    """

    batch = 1

    def __init__(self, table: Tensor, prompt: Tensor, length: int):
        self.table, self.text, self.length = table, prompt[0, :-1], length
        self.first = F.one_hot(prompt[:, -1:], len(table)).double()

    def prefill(self) -> Scores:
        return Scores(self.first)

    def forward(self, tree, decided) -> Scores:
        parents = tree.shape.parents[0]
        before = torch.where(parents < 0, self.text[-1], tree.tokens[0, parents.clamp(min=0)])
        self.root = tree.tokens[0, 0]
        return Scores(self.table[before, tree.tokens[0]][None])

    def commit(self, verdict, least, rows) -> None:
        kept = verdict.emitted[0, : int(verdict.count[0])]
        self.text = torch.cat([self.text, self.root[None], kept[:-1]])


class Recording(TokenRecycling):
    """Keeps what every step proposed and renewed."""

    def start(self, run, prefill) -> None:
        super().start(run, prefill)
        self.trees, self.renewed, self.matrices = [], [], []

    def observe(self, run, tree, scores, verdict) -> None:
        super().observe(run, tree, scores, verdict)
        self.trees.append(tree.tokens[0])
        self.renewed.append(scores.logits[0].topk(self.width).indices)
        self.matrices.append(self.adjacency.clone())


def decode_loop(case: Case) -> None:
    inputs = case.inputs
    table = 0.6 * inputs["T2"].double() + inputs["Wc"].double()
    assert case.config["tree"] == "2.2.2"
    drafter = Recording(TREE_2_2_2, warm=False)
    lengths = case.outputs["accept_lengths"]
    target = SecondOrder(table, inputs["prompt"], 1 + int(lengths.sum()))
    tokens, stats = decode(target, drafter, SampleMatch(), SamplingParams(greedy=True), Noise(0, torch.zeros(1).long()))
    case.equal(torch.cat([inputs["prompt"][:, :-1], tokens[:, :-1]], 1), "sequence")
    case.equal(torch.tensor(stats.emitted(0)), "accept_lengths")
    steps = len(lengths) - 1  # the reference's last step ends before it renews anything
    case.equal(torch.stack(drafter.trees[:steps]), "tree_tokens")
    case.equal(torch.stack(drafter.renewed[:steps]), "topk_update")
    columns = case.config["k"] - drafter.width
    case.equal(F.pad(drafter.matrices[steps - 1], (0, columns)), "adj_matrix")


def tree_buffers(case: Case) -> None:
    shape = TreeShape.of_paths(list(TREE_2_2_2))
    parents, depth = shape.parents[0], shape.depth[0]
    case.equal(shape.ancestors[0], "attention_mask")
    case.equal(torch.where(parents < 0, -1, shape.rank[0]), "candidate_index")
    case.equal(parents, "father_index")
    case.equal(depth, "position_ids")
    case.equal(torch.searchsorted(depth, torch.arange(1, int(depth.max()) + 2)), "level_starts")
    paths = shape.paths
    case.equal(paths[paths.amax(1).argsort()], "search_path")  # the reference lists leaves by their number


ADAPTERS = {"decode_loop": decode_loop, "tree_buffers": tree_buffers}
