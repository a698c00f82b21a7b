"""Ways to decode text side by side, transformers' own among them: target forwards, tokens a forward, and time.

Processor time is reported beside wall time, because it hardly depends on what else the machine does. Figures of a row,
of one kind of prompts or of all:

- ``same``: share of prompts with the tokens of plain ``generate``;
- ``forwards_per_100``: target forwards for a hundred tokens, prefill included; ``draft_forwards_per_100``: likewise of
  the draft model; ``tokens_per_forward``: accepted drafts and the target's own token;
- ``seconds``, ``cpu_seconds``: of a hundred tokens;
- ``fewer_forwards``, ``speed_up``, ``cpu_speed_up``: plain ``generate``'s forwards, wall and processor time a token
  over the entry's.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vistok.data.text import documents
from vistok.eval.decoding.comparison import Column, Entry, Figure, Row, Trial, run_in_turn
from vistok.eval.decoding.estimate import paired_estimate, ratio_estimate
from vistok.eval.decoding.prompts import Text
from vistok.models.heads.eagle import EagleNetwork
from vistok.models.heads.eagle3 import Eagle3Network
from vistok.models.heads.judge import JudgeHead
from vistok.models.heads.prompt_tokens import PromptTokens
from vistok.ops.noise import check_seed
from vistok.samplers.drafters.aded import Aded
from vistok.samplers.drafters.draft_model import DraftModel
from vistok.samplers.drafters.eagle_head import EagleHead
from vistok.samplers.drafters.extra_rows import ExtraRowDrafter
from vistok.samplers.drafters.lookup import PromptLookup
from vistok.samplers.drafters.rasd import Rasd
from vistok.samplers.drafters.recycling import TokenRecycling
from vistok.samplers.loop import Verifier
from vistok.samplers.named import TEXT_DRAFTERS
from vistok.samplers.policies.chains import Chain, IndependentChains
from vistok.samplers.policies.dynamic import DynamicTree
from vistok.samplers.policies.dyspec import DynamicBudget, DynamicLayers
from vistok.samplers.policies.retrieval import Datastore
from vistok.samplers.policies.rsd import Branching, StochasticBeam
from vistok.samplers.policies.trees import best_tree
from vistok.samplers.policies.trigrams import Trigrams
from vistok.samplers.speculation import Speculation, TextDrafter
from vistok.samplers.targets.step_cost import step_cost
from vistok.samplers.text_drafters import trained_for
from vistok.samplers.tree import LawKind
from vistok.samplers.verifiers.candidates import SampleMatch, TreeVerifier
from vistok.samplers.verifiers.exact import ExactChain
from vistok.samplers.verifiers.judge import Judge
from vistok.samplers.verifiers.relaxed import RelaxedTree, nearest_codes
from vistok.samplers.verifiers.rules import KSequential

ALL = "all"  # the kind of a row over all prompts
COLUMNS = (
    Column("as plain", "same", ".0%"),
    Column("forwards", "forwards_per_100", ".1f"),
    Column("tokens/forward", "tokens_per_forward"),
    Column("fewer", "fewer_forwards"),
    Column("draft forwards", "draft_forwards_per_100", ".1f"),
    Column("s", "seconds"),
    Column("speed-up", "speed_up"),
    Column("CPU s", "cpu_seconds"),
    Column("CPU speed-up", "cpu_speed_up"),
)
# How often candidate r of Token Recycling was the next token of text-mini's greedy continuations of training modules
# (762 tokens); taken to be the same at every depth.
RECYCLING = [[0.732, 0.051, 0.028, 0.017, 0.013, 0.009, 0.007, 0.004]] * 10
HEAD_TREES = {"chain 3": Chain(3), "tree 6": DynamicTree(6, 3, 2), "tree 16": DynamicTree(16, 3, 4)}


CORPUS = 8  # one module in so many is read


class Continuation(NamedTuple):
    """What a way to decode made of a prompt.

    Attributes:
        sequence: prompt and new tokens, int64 [1, L + n].
        tokens: new tokens n.
        forwards, draft_forwards: calls of the target, prefill included, and of the draft model.
    """

    sequence: Tensor
    tokens: int
    forwards: int
    draft_forwards: int


def standard_entries(
    model: nn.Module,
    draft: nn.Module | None,
    sampling: bool,
    tokenizer: Any | None = None,
    head: EagleNetwork | Eagle3Network | None = None,
) -> list[Entry]:
    """Returns what a comparison runs; plain generate comes first.

    Args:
        model: the target.
        draft: a small model with its tokenizer; what needs one is left out without.
        sampling: tokens are drawn; else decoding is greedy, which all lossless rules do alike.
        tokenizer: the target's; what needs a corpus is left out without.
        head: an EAGLE head of the target.
    """

    def ours(name: str, drafter: TextDrafter | None, verifier: Verifier | None = None) -> Entry:
        lossless = verifier is None or verifier.lossless
        return Entry(name, {"custom_generate": Speculation(drafter, verifier)}, lossless)

    found = [Entry("generate", {}), Entry("transformers prompt lookup", {"prompt_lookup_num_tokens": 10})]
    if draft is not None:
        found.append(Entry("transformers assisted", {"assistant_model": draft}))
        found.append(Entry("transformers assisted 4", {"assistant_model": _constant_assistant(draft, 4)}))
    found += [ours("plain", None), ours("lookup", PromptLookup()), ours("recycling 80", TokenRecycling())]
    found += [ours(f"recycling {size}", TokenRecycling(best_tree(RECYCLING, size))) for size in (8, 16, 32)]
    if head is not None:
        found += [ours(f"head, {name}", EagleHead(head, policy)) for name, policy in HEAD_TREES.items()]
        found.append(ours("head, auto", EagleHead(head, "auto")))
    found.append(ours("recycling auto", TokenRecycling("auto")))
    prompt_tokens = trained_for(model, "prompt-tokens")
    if prompt_tokens is not None:
        found.append(ours("ppd auto", ExtraRowDrafter(PromptTokens.from_pretrained(prompt_tokens), "auto")))
    if draft is not None:
        found.append(ours("dyspec auto", DraftModel(draft, "auto")))
        found.append(ours("rasd auto", Rasd(DraftModel(draft, "auto"))))
    found += named_entries(model, tokenizer, draft)
    if tokenizer is not None:
        found += corpus_entries(tokenizer, draft)
    if draft is None:
        return found
    independent = frozenset({LawKind.INDEPENDENT})
    policies = {
        "chain 4": (Chain(4), ExactChain()),
        "confident chain 8": (Chain(8, 0.3), ExactChain()),
        "independent 3x3": (IndependentChains(3, 3), TreeVerifier(KSequential(), independent)),
        "branching 8": (Branching((8,)), None),
        "branching 6-2": (Branching((6, 2)), None),
        "branching 3-2-1-1": (Branching((3, 2, 1, 1)), None),
        "beam 4x4": (StochasticBeam(4, 4), None),
        "dyspec layers": (DynamicLayers(), None),
        "dyspec budget 8": (DynamicBudget(8), None),
        "eagle-2 tree": (DynamicTree(16, 3, 4), None),
    }
    for name, (policy, verifier) in policies.items():
        if not sampling:
            found.append(ours(name, DraftModel(draft, policy)))
            continue
        rule = "exact" if isinstance(policy, Chain) else "k-sequential" if verifier else "recursive"
        if not isinstance(policy, DynamicTree):
            found.append(ours(f"{name}, {rule}", DraftModel(draft, policy), verifier))
        if name.startswith("independent"):
            found.append(ours(f"{name}, recursive", DraftModel(draft, policy)))
        found.append(ours(f"{name}, match", DraftModel(draft, policy), SampleMatch()))
    judge = trained_for(model, "judge")
    if judge is not None:
        for threshold in (0.5, 0.8):
            rule = Judge(JudgeHead.from_pretrained(judge), threshold)
            found.append(ours(f"judge {threshold}, chain 4", DraftModel(draft, Chain(4)), rule))
    neighbours = nearest_codes(model.get_input_embeddings().weight, 10)
    for delta in (0.1, 0.3):
        relaxed = RelaxedTree(neighbours, 10, delta)
        found.append(ours(f"relaxed {delta}, branching", DraftModel(draft, Branching((3, 2, 1, 1))), relaxed))
    return found


def named_entries(model: nn.Module, tokenizer: Any | None, draft: nn.Module | None) -> list[Entry]:
    """Returns an entry for every drafter that goes by a name, other packages' too, and has none of its own above."""
    found = []
    for name in TEXT_DRAFTERS:
        if name in ("lookup", "recycling", "draft", "eagle"):
            continue
        drafter = TEXT_DRAFTERS[name](model, tokenizer, draft)
        if drafter is not None:
            found.append(Entry(name, {"custom_generate": Speculation(drafter)}))
    return found


def corpus_entries(tokenizer: Any, draft: nn.Module | None) -> list[Entry]:
    """Returns entries whose drafters know a part of the modules that models train on, which they read when they run."""

    @functools.cache
    def texts() -> list[list[int]]:
        return [tokenizer(text, verbose=False).input_ids for text in documents("train")[::CORPUS]]

    found: dict[str, Callable[[], TextDrafter]] = {
        "aded, corpus": lambda: Aded(Trigrams.of_texts(texts())),
        "static tri-grams, corpus": lambda: Aded(Trigrams.of_texts(texts()), boost=0.0),
    }
    if draft is not None:
        found["rasd, corpus"] = lambda: Rasd(DraftModel(draft, Chain(4)), Datastore.of_texts(texts(), tokenizer))
    return [Entry(name, lambda make=make: {"custom_generate": Speculation(make())}) for name, make in found.items()]


def _constant_assistant(draft: nn.Module, tokens: int) -> nn.Module:
    """The same model, told by its generation config to draft so many tokens whatever it thinks of them."""
    assistant = copy.copy(draft)
    assistant.generation_config = copy.deepcopy(draft.generation_config)
    assistant.generation_config.num_assistant_tokens = tokens
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    return assistant


@contextmanager
def counted_calls(*models: nn.Module | None) -> Iterator[list[int]]:
    """Counts the calls of models while the block runs, in a list in their order."""
    calls = [0] * len(models)

    def counter(number: int) -> Callable[..., None]:
        def count(*_: Any) -> None:
            calls[number] += 1

        return count

    present = [(number, model) for number, model in enumerate(models) if model is not None]
    hooks = [model.register_forward_pre_hook(counter(number)) for number, model in present]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def continue_in_turn(
    model: nn.Module,
    draft: nn.Module | None,
    entries: Sequence[Entry],
    texts: Sequence[Text],
    options: dict[str, Any],
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> list[Trial]:
    """Lets all entries continue every prompt.

    Args:
        model, draft: the target and the draft model.
        entries: the first is plain generate.
        texts: prompts.
        options: of every ``generate``, e.g. ``max_new_tokens`` and ``do_sample``.
        seed: of the draws.
        advance: called after each run.

    Returns:
        A trial of each entry, whose results are a ``Continuation`` of each prompt.
    """
    trials = [Trial(replace(e, method=e.method()) if callable(e.method) else e) for e in entries]
    for each in (model, draft):  # what sized trees want to know is measured once, and belongs to no trial
        if each is not None:
            step_cost(each)

    def decode(trial: Trial, unit: tuple[int, Text]) -> Continuation:
        number, text = unit
        ids = text.ids.to(model.device)
        mask = torch.ones_like(ids)
        torch.manual_seed((check_seed(seed) + number) % (1 << 64))
        with counted_calls(model, draft) as calls, trial.timed():
            found = model.generate(ids, attention_mask=mask, **options, **trial.entry.method)
        return Continuation(found, found.shape[1] - ids.shape[1], *calls)

    run_in_turn(trials, list(enumerate(texts)), decode, advance)
    return trials


def summarise(trials: Sequence[Trial], texts: Sequence[Text]) -> list[Row]:
    """Returns a row for each trial and kind of prompt, and for all prompts together; plain generate's come first."""
    kinds = {
        kind: [i for i, text in enumerate(texts) if text.kind == kind] for kind in dict.fromkeys(t.kind for t in texts)
    }
    kinds[ALL] = list(range(len(texts)))
    return [_row(trials[0], trial, kind, which) for kind, which in kinds.items() for trial in trials]


def _row(plain: Trial, trial: Trial, kind: str, which: Sequence[int]) -> Row:
    """The figures of one trial over some of the prompts."""

    def columns(of: Trial) -> dict[str, list[float]]:
        found = {name: [getattr(of.results[i], name) for i in which] for name in Continuation._fields[1:]}
        return found | {name: [getattr(of, name)[i] for i in which] for name in ("seconds", "cpu_seconds")}

    base, mine = columns(plain), columns(trial)

    def per_100(name: str) -> float:
        return 100 * sum(mine[name]) / sum(mine["tokens"])

    def times(name: str) -> Figure:
        return paired_estimate(
            lambda theirs, tokens, my, my_tokens: theirs * my_tokens / (tokens * my),
            *(base[name], base["tokens"], mine[name], mine["tokens"]),
        )

    same = sum(torch.equal(plain.results[i].sequence, trial.results[i].sequence) for i in which)
    figures: dict[str, Figure] = {
        "same": same / len(which),
        "forwards_per_100": per_100("forwards"),
        "tokens_per_forward": ratio_estimate(mine["tokens"], mine["forwards"]),
        "draft_forwards_per_100": per_100("draft_forwards"),
        "seconds": per_100("seconds"),
        "cpu_seconds": per_100("cpu_seconds"),
        "fewer_forwards": times("forwards"),
        "speed_up": times("seconds"),
        "cpu_speed_up": times("cpu_seconds"),
    }
    return Row(trial.entry.name, trial.entry.lossless, figures, kind)
