"""Tree attention: ancestor words, positions, attention over prefix and tree, and commit of the accepted path."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.ops.cache import commit_rows
from vistok.ops.split_kv import decode_attention
from vistok.ops.tree import TreeMask, ancestor_mask, tree_depths

SYSTEM = "tree_attention"


def attention(case: Case) -> None:
    inputs = case.inputs
    parents, prefix = inputs["parents"], inputs["prefix_len"].long()
    mask = TreeMask.from_parents(parents, prefix)
    case.equal(ancestor_mask(parents), "ancestor_mask")
    case.equal(mask.words.view_as(case.outputs["mask_words"]), "mask_words")
    depths = tree_depths(parents)
    case.equal(torch.where(depths >= 0, prefix[:, None] + depths, -1), "positions")
    out, lse = decode_attention(inputs["q"], inputs["k"], inputs["v"], mask)
    case.close(out, "o")
    case.close(lse, "lse")
    keys, values = inputs["k"].clone()[None], inputs["v"].clone()[None]
    count = inputs["num_accepted"]
    commit_rows(keys, values, prefix, inputs["accepted_path"], count)
    stale = torch.arange(keys.shape[3]) >= (prefix + count)[:, None]
    for cached, name in ((keys, "k_compact"), (values, "v_compact")):
        case.close(cached[0].masked_fill(stale[:, None, :, None], 0), name)


ADAPTERS = {"attention": attention}
