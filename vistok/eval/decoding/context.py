"""Policies of the KV cache side by side: the time of a decode step by the length of the text, and edits of a cache.

The model is random and only its shape counts: caches are filled with noise instead of a prefill, whose time grows with
the square of the text. All policies take turns at one step each. Figures of a row:

- ``milliseconds``, ``cpu_milliseconds``: wall and processor time of a whole step, medians; on a CPU the speed-ups and
  bounds below are of processor time, which depends less on what else the machine does;
- ``speed_up``: SDPA's time over it, both over the same preallocated cache;
- ``reads``: rows of keys and values that a step reads, selection included, over those of full attention;
- ``of_bound``: what the reads alone would allow, (rest + reads * attention) / time, where rest is the time of a step
  without a text;
- ``kept``: rows in the cache over tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from vistok import context
from vistok.context.interface import Policy
from vistok.eval.decoding.comparison import Column, Entry, Row, Trial, run_in_turn
from vistok.models.huggingface import cache_argument, given_cache, head_width

COLUMNS = (
    Column("ms", "milliseconds", ".1f"),
    Column("CPU ms", "cpu_milliseconds", ".1f"),
    Column("speed-up", "speed_up"),
    Column("reads", "reads", ".1%"),
    Column("of bound", "of_bound", ".0%"),
    Column("kept", "kept", ".1%"),
)
EDITS = (
    Column("s", "seconds"),
    Column("speed-up", "speed_up"),
    Column("tokens run", "run", ".0f"),
    Column("cost", "cost", ".1%"),
)


def random_model(layers: int, width: int, heads: int, kv_heads: int, positions: int) -> nn.Module:
    """Returns a Llama with random weights, grouped heads of width 64, and room for so many positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        head_dim=64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=4096,
        max_position_embeddings=positions,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def standard_policies(budget: int) -> list[Entry]:
    """Returns the policies that are compared: SDPA first, then each with as many keys as ``budget``."""
    half = budget // 2
    policies: dict[str, Policy] = {
        "SDPA": context.Full(),
        "TidalDecode": context.TidalDecode(budget),
        "TokenSelect": context.TokenSelect(max(1, budget - 256), 128, 128),
        "TokenSelect, no reuse": context.TokenSelect(max(1, budget - 256), 128, 128, threshold=None),
        "CCA": context.CoreContext(16, half),
        "LoCoCo": context.LoCoCo(mixing=context.Mixing(budget)),
        "heavy hitters": context.HeavyHitters(budget),
        "StreamingLLM": context.StreamingLLM(4, budget - 4),
        "SnapKV": context.SnapKV(budget),
    }
    return [Entry(name, policy, name == "SDPA") for name, policy in policies.items()]


def filled_cache(model: nn.Module, at_work: context.Context, tokens: int) -> context.ContextCache:
    """Returns the cache of one sequence as the policy would hold it after so many tokens, filled with noise."""
    cache = context.ContextCache(at_work.layers, at_work.policy)
    if tokens == 0:
        return cache
    config = model.config
    dim = head_width(config)
    shape = (1, config.num_attention_heads, 1, dim), (1, config.num_key_value_heads, 1, dim)
    rows = cache.allocate(*(torch.zeros(each, dtype=model.dtype, device=model.device) for each in shape))
    count = at_work.policy.rows(tokens)
    rows.reserve(count + 64)
    for part in (rows.keys, rows.values):
        part[:, :, :, :count].normal_()
    rows.crop(count)
    cache.columns, cache.tokens = tokens, torch.tensor([tokens], device=model.device)
    return cache


@torch.no_grad()
def time_steps(
    model: nn.Module,
    entries: Sequence[Entry],
    tokens: int,
    steps: int,
    advance: Callable[[], None] | None = None,
) -> list[Row]:
    """Times whole decode steps behind a text of so many tokens.

    Args:
        model: see :func:`random_model`.
        entries: policies, full attention first.
        tokens: of the text.
        steps: of each policy; one more warms up.
        advance: called after each step.
    """
    argument = cache_argument(model)
    generator = torch.Generator().manual_seed(0)
    words = [torch.randint(model.config.vocab_size, (1, 1), generator=generator) for _ in range(steps + 1)]
    caches: dict[str, Any] = {}
    reads: dict[str, float] = {}
    kept: dict[str, float] = {}
    rest = Entry("no text", entries[0].method)
    trials = [Trial(entry) for entry in (*entries, rest)]

    def decode(trial: Trial, word: Tensor) -> None:
        name, policy = trial.entry.name, trial.entry.method
        with context.apply(model, policy) as at_work:
            cache = caches.get(name)
            if cache is None:
                cache = caches[name] = filled_cache(model, at_work, 1 if trial.entry is rest else tokens)
            mark, columns, before = cache.rows.mark(), cache.columns, cache.tokens
            with trial.timed():
                model(input_ids=word.to(model.device), use_cache=True, **{argument: cache})
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
            reads[name], kept[name] = at_work.last.share, cache.rows.bound / max(1, cache.columns)
            cache.columns, cache.tokens = columns, before
            cache.rows.restore(mark)

    run_in_turn(trials, words, decode, advance)
    wall, processor = (
        {trial.entry.name: median(getattr(trial, kind)[1:]) for trial in trials} for kind in ("seconds", "cpu_seconds")
    )
    seconds = processor if model.device.type == "cpu" else wall
    base, empty = seconds[entries[0].name], seconds[rest.name]
    rows = []
    for entry in entries:
        bound = empty + (base - empty) * reads[entry.name]
        figures = {
            "tokens": tokens,
            "milliseconds": 1000 * wall[entry.name],
            "cpu_milliseconds": 1000 * processor[entry.name],
            "speed_up": base / seconds[entry.name],
            "reads": reads[entry.name],
            "of_bound": bound / seconds[entry.name],
            "kept": kept[entry.name],
        }
        rows.append(Row(entry.name, entry.lossless, figures, f"{tokens} tokens"))
    return rows


@torch.no_grad()
def time_edit(model: nn.Module, tokens: int, inserted: int, repeats: int = 3) -> list[Row]:
    """Times an insertion in the first quarter of a cached text against a new prefill of the edited one."""
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1)).to(
        model.device
    )
    words = [number % model.config.vocab_size for number in range(inserted)]
    change = [context.Edit(tokens // 8, tokens // 8, words)]
    spent: dict[str, list[float]] = {"new prefill": [], "edit": []}
    with context.apply(model, context.Full()) as at_work:
        at_work.rotary  # noqa: B018  (found by trial once a model)
        for _ in range(repeats):
            cache = given_cache(model(input_ids=ids[:, :-1], use_cache=True, logits_to_keep=1))
            begin = time.perf_counter()
            edited = context.edit(model, ids, cache, change)
            last = {"input_ids": edited.ids[:, -1:], cache_argument(model): edited.cache}
            model(**last, use_cache=True)
            middle = time.perf_counter()
            model(input_ids=edited.ids, use_cache=True, logits_to_keep=1)
            spent["edit"].append(middle - begin)
            spent["new prefill"].append(time.perf_counter() - middle)
    best = {name: min(each) for name, each in spent.items()}
    rows = []
    for name, run, cost in (("new prefill", edited.whole, 1.0), ("edit", edited.run, edited.cost)):
        figures = {"seconds": best[name], "speed_up": best["new prefill"] / best[name], "run": run, "cost": cost}
        rows.append(Row(name, name == "new prefill", figures, f"{inserted} tokens into {tokens}"))
    return rows
