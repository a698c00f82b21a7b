"""TokenSelect: votes and chosen tokens, with the right and the released pairing of heads, and the reuse of choices."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.context.interface import Report, Step
from vistok.context.rotary import Rotary
from vistok.context.tokenselect import Choice, TokenSelect, cosine
from vistok.ops import KVCache
from vistok.ops.rope import inverse_frequencies

SYSTEM = "tokenselect"


def select(case: Case) -> None:
    config, slots = case.config, case.inputs["token_slots"].long()
    pool = config["pool_kernel"] if config["pool_kernel"] > 0 else None
    init, local, total = config["n_init"], config["n_local"], config["num_tokens"]
    q = case.inputs["q"].unflatten(1, (config["Hq"], -1)).transpose(0, 1)[None]
    keys = case.inputs["k_pool"][slots].transpose(0, 1)[None]
    for reference, suffix in ((False, ""), (True, "_reference")):
        policy = TokenSelect(config["top_k"], init, local, threshold=None, pool=pool, reference=reference)
        policy.rotary = Rotary(inverse_frequencies(config["D"], config["rope_theta"]), "half", [True])
        query = policy.mean_query(q)
        if not reference:
            case.close(query.flatten(), "query_mean_rotated")
        case.close(policy.votes(query, keys[:, :, init : total - local])[0], f"vote{suffix}")
        choice = Choice(torch.zeros(1, query.numel()), torch.zeros(1, config["top_k"], dtype=torch.long))
        step = Step(KVCache(1, 1, 1, config["Hkv"], config["D"]), q.shape[2])
        chosen = policy._choose(step, choice, slice(None), 0, q, keys, local, 1.0)[0]
        positions = torch.cat([torch.arange(init), chosen, torch.arange(total - local, total)])
        case.equal(positions, f"positions{suffix}")
        case.equal(slots[positions], f"slots{suffix}")


def selection_cache(case: Case) -> None:
    config, keys = case.config, case.inputs["k"].transpose(0, 1)[None]
    heads, dim = config["heads"], config["D"]
    policy = TokenSelect(config["top_k"], init=0, threshold=config["threshold"])
    policy.rotary = Rotary(torch.zeros(dim // 2), "half", [False])
    cache = KVCache(1, 1, len(case.inputs["k"]), heads, dim)
    cache.advance(cache.capacity - 1)
    choice = Choice(torch.zeros(1, heads * dim), torch.zeros(1, config["top_k"], dtype=torch.long))
    flags, found, rows = [], [], []
    for q in case.inputs["q"]:
        found.append(cosine(q[None], choice.query))
        step = Step(cache, 1, report=Report())
        query = q.unflatten(0, (heads, dim))[None, :, None]
        rows.append(policy._choose(step, choice, slice(None), 0, query, keys, 0, 1.0).clone())
        flags.append(step.report.read > 0)
    case.close(torch.cat(found), "cosine")
    case.equal(torch.tensor(flags), "reselect")
    case.equal(torch.cat(rows), "selected")


ADAPTERS = {"select": select, "selection_cache": selection_cache}
