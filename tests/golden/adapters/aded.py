"""ADED: tri-grams of a corpus, their adaptation, the tree search and the draft tree."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.case import Case
from vistok.samplers.policies.trigrams import Trigrams, draft_paths, extended, tree_search, trie

SYSTEM = "aded"


def dense(trigrams: Trigrams, size: int) -> Tensor:
    table = torch.zeros(size, size, size, dtype=torch.float64)
    for pair, found in trigrams.weights.items():
        for token, weight in found.items():
            table[(*pair, token)] = weight
    return table


def padded(rows: list) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])


def trigram_mcts(case: Case) -> None:
    config = case.config
    trigrams = Trigrams.of_texts([case.inputs["corpus"].tolist()])
    case.close(dense(trigrams, config["V"]), "matrix_initial")
    context = case.inputs["context"].tolist()
    trigrams.boost(context[-config["window"] :], config["boost"], config["cap"])
    case.close(dense(trigrams, config["V"]), "matrix_updated")
    found = tree_search(
        trigrams,
        tuple(context[-2:]),
        iter(case.inputs["uniforms"].tolist()),
        config["iterations"],
        config["sentence_length"],
        config["c1"],
        config["c2"],
        legacy_reward=config.get("legacy_reward", True),
    )[: config["top_k"]]
    case.equal(torch.tensor([visits for _, visits in found]), "visits")
    sentences = extended(trigrams, (sentence for sentence, _ in found))
    case.equal(padded(sentences), "sentences")
    paths = draft_paths(sentences, config["choices"])
    case.equal(padded(paths), "paths")
    tokens, parents = trie(paths, config["choices"])
    case.equal(torch.tensor(tokens), "tree_tokens")
    case.equal(torch.tensor(parents), "tree_parent")


ADAPTERS = {"trigram_mcts": trigram_mcts}
