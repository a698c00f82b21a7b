"""Ways to decode text side by side, transformers' own among them: target forwards, tokens a forward, and time.

Every prompt is continued by all contestants in turn before the next one begins, so that whatever else the machine does
slows all of them alike; processor time is reported beside wall time, because it hardly depends on the others' load.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vistok.data.text import modules
from vistok.errors import VistokError, unknown_name
from vistok.ops.noise import counter_uniform
from vistok.samplers.drafters.draft_model import DraftModel
from vistok.samplers.drafters.lookup import PromptLookup
from vistok.samplers.drafters.recycling import TokenRecycling
from vistok.samplers.loop import Verifier
from vistok.samplers.policies.chains import Chain, IndependentChains
from vistok.samplers.policies.dynamic import DynamicTree
from vistok.samplers.policies.dyspec import DynamicBudget, DynamicLayers
from vistok.samplers.policies.rsd import Branching, StochasticBeam
from vistok.samplers.policies.trees import best_tree
from vistok.samplers.speculation import Speculation, TextDrafter
from vistok.samplers.tree import LawKind
from vistok.samplers.verifiers.candidates import KSequential, SampleMatch, TreeVerifier
from vistok.samplers.verifiers.exact import ExactChain
from vistok.samplers.verifiers.relaxed import RelaxedTree, nearest_codes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ("code", "documentation")
# How often candidate r of Token Recycling was the next token of text-mini's greedy continuations of training modules
# (762 tokens); taken to be the same at every depth.
RECYCLING = [[0.732, 0.051, 0.028, 0.017, 0.013, 0.009, 0.007, 0.004]] * 10


@dataclass(frozen=True)
class Text:
    """A prompt.

    Attributes:
        kind: what the figures are grouped by.
        ids: its tokens, int64 [1, L].
    """

    kind: str
    ids: Tensor


@dataclass(frozen=True)
class Contestant:
    """A way to decode.

    Attributes:
        name: of the method and its options.
        options: of ``model.generate``.
        lossless: whether the tokens follow the model's law.
    """

    name: str
    options: dict[str, Any]
    lossless: bool = True


@dataclass(frozen=True)
class Trial:
    """One contestant on one prompt."""

    name: str
    kind: str
    lossless: bool
    same: bool  # greedy: the tokens are those of plain generate
    tokens: int
    forwards: int
    draft_forwards: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Row:
    """A contestant's figures over the prompts of a kind.

    Attributes:
        same: share of prompts with the tokens of plain generate.
        forwards_per_100: target forwards, prefill included, for a hundred tokens.
        tokens_per_forward: accepted drafts and the target's own token.
        fewer_forwards, speed_up, cpu_speed_up: plain generate's forwards, wall time and processor time over these.
    """

    name: str
    kind: str
    lossless: bool
    same: float
    forwards_per_100: float
    tokens_per_forward: float
    draft_forwards_per_100: float
    seconds: float
    cpu_seconds: float
    fewer_forwards: float
    speed_up: float
    cpu_speed_up: float

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


def held_out_prompts(tokenizer: PreTrainedTokenizerBase, count: int, length: int, seed: int = 0) -> list[Text]:
    """Passages of held-out modules of the standard library, ``count`` of each of KINDS.

    Raises:
        VistokError: not enough modules are that long.
    """
    found = []
    for number, kind in enumerate(KINDS):
        texts = []
        for module in modules("held-out"):
            passage = module.source if kind == "code" else module.documentation
            ids = tokenizer(passage, verbose=False).input_ids  # no word about texts longer than the model reads
            if len(ids) > length + 16:
                texts.append(ids)
        if not texts:
            raise VistokError(f"no held-out module has {length + 16} tokens: ask for shorter prompts.")
        for i in range(count):
            ids = texts[i % len(texts)]
            start = int(float(counter_uniform(seed, number, i)) * (len(ids) - length))
            found.append(Text(kind, torch.tensor([ids[start : start + length]])))
    return found


def spec_bench_prompts(path: Path, tokenizer: PreTrainedTokenizerBase, count: int) -> list[Text]:
    """The first turns of a Spec-Bench question file (``question.jsonl``), ``count`` of each category.

    Raises:
        VistokError: the file is not there or is no such file.
    """
    taken: dict[str, list[Text]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            question = json.loads(line)
            texts = taken.setdefault(question["category"], [])
            if len(texts) < count:
                texts.append(Text(question["category"], _chat(tokenizer, question["turns"][0])))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise VistokError(
            f"'{path}' is not a Spec-Bench question file ({error}): each line needs 'category' and 'turns'."
        ) from None
    return [text for texts in taken.values() for text in texts]


def _chat(tokenizer: PreTrainedTokenizerBase, turn: str) -> Tensor:
    if tokenizer.chat_template is None:
        return tokenizer(turn, return_tensors="pt").input_ids
    messages = [{"role": "user", "content": turn}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)


def standard_contestants(model: nn.Module, draft: nn.Module | None, sampling: bool) -> list[Contestant]:
    """What a comparison runs; plain generate comes first.

    Args:
        model: the target.
        draft: a small model with its tokenizer; what needs one is left out without.
        sampling: tokens are drawn; else decoding is greedy, which all lossless rules do alike.
    """

    def ours(name: str, drafter: TextDrafter | None, verifier: Verifier | None = None) -> Contestant:
        lossless = verifier is None or verifier.lossless
        return Contestant(name, {"custom_generate": Speculation(drafter, verifier)}, lossless)

    found = [Contestant("generate", {})]
    found.append(Contestant("transformers prompt lookup", {"prompt_lookup_num_tokens": 10}))
    if draft is not None:
        found.append(Contestant("transformers assisted", {"assistant_model": draft}))
        found.append(Contestant("transformers assisted 4", {"assistant_model": _constant_assistant(draft, 4)}))
    found += [ours("plain", None), ours("lookup", PromptLookup())]
    found.append(ours("recycling 80", TokenRecycling()))
    found += [ours(f"recycling {size}", TokenRecycling(best_tree(RECYCLING, size))) for size in (8, 16, 32)]
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
    neighbours = nearest_codes(model.get_input_embeddings().weight, 10)
    for delta in (0.1, 0.3):
        relaxed = RelaxedTree(neighbours, 10, delta)
        found.append(ours(f"relaxed {delta}, branching", DraftModel(draft, Branching((3, 2, 1, 1))), relaxed))
    return found


def _constant_assistant(draft: nn.Module, tokens: int) -> nn.Module:
    """The same model, told by its generation config to draft so many tokens whatever it thinks of them."""
    assistant = copy.copy(draft)
    assistant.generation_config = copy.deepcopy(draft.generation_config)
    assistant.generation_config.num_assistant_tokens = tokens
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    return assistant


def choose(contestants: Sequence[Contestant], words: Sequence[str]) -> list[Contestant]:
    """Plain generate, and those whose names hold one of the words.

    Raises:
        VistokError: a word that no name holds.
    """
    names = [contestant.name for contestant in contestants]
    for word in words:
        if not any(word in name for name in names):
            raise unknown_name("contestant", word, names)
    return [c for c in contestants if c is contestants[0] or any(word in c.name for word in words)]


def run_trials(
    model: nn.Module,
    draft: nn.Module | None,
    contestants: Sequence[Contestant],
    texts: Sequence[Text],
    options: dict[str, Any],
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> list[Trial]:
    """Let all contestants continue every prompt.

    Args:
        model, draft: the target and the draft model.
        contestants: the first is plain generate.
        texts: prompts.
        options: of every ``generate``, e.g. ``max_new_tokens`` and ``do_sample``.
        seed: of the draws.
        advance: called after each run.
    """
    calls = {"forwards": 0, "draft_forwards": 0}

    def counter(name: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            calls[name] += 1

        return count

    counted = [module for module in (model, draft) if module is not None]
    hooks = [m.register_forward_pre_hook(counter(name)) for m, name in zip(counted, calls, strict=False)]
    trials = []
    try:
        for number, text in enumerate(texts):
            ids, plain = text.ids.to(model.device), None
            mask = torch.ones_like(ids)
            for contestant in contestants:
                calls.update(dict.fromkeys(calls, 0))
                torch.manual_seed(seed + number)
                wall, cpu = time.perf_counter(), time.process_time()
                found = model.generate(ids, attention_mask=mask, **options, **contestant.options)
                seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
                plain = found if plain is None else plain
                trials.append(
                    Trial(
                        contestant.name,
                        text.kind,
                        contestant.lossless,
                        torch.equal(found, plain),
                        found.shape[1] - ids.shape[1],
                        **calls,
                        seconds=seconds,
                        cpu_seconds=cpu_seconds,
                    )
                )
                if advance:
                    advance()
    finally:
        for hook in hooks:
            hook.remove()
    return trials


def summarise(trials: Sequence[Trial]) -> list[Row]:
    """A row for each contestant and kind of prompt, and for all prompts together; ratios are of rates a token."""
    rows = []
    for kind in [*dict.fromkeys(trial.kind for trial in trials), "all"]:
        base = None
        for name in dict.fromkeys(trial.name for trial in trials):
            part = [trial for trial in trials if trial.name == name and kind in (trial.kind, "all")]
            tokens = sum(trial.tokens for trial in part)
            totals = ("forwards", "draft_forwards", "seconds", "cpu_seconds")
            rates = {field: sum(getattr(trial, field) for trial in part) / tokens for field in totals}
            base = base or rates
            rows.append(
                Row(
                    name,
                    kind,
                    part[0].lossless,
                    sum(trial.same for trial in part) / len(part),
                    100 * rates["forwards"],
                    1 / rates["forwards"],
                    100 * rates["draft_forwards"],
                    100 * rates["seconds"],
                    100 * rates["cpu_seconds"],
                    base["forwards"] / rates["forwards"],
                    base["seconds"] / rates["seconds"],
                    base["cpu_seconds"] / rates["cpu_seconds"],
                )
            )
    return rows


def table(rows: Sequence[Row], kind: str) -> str:
    """The rows of a kind of prompts as a Markdown table; forwards and seconds are those of a hundred tokens."""
    head = ["", "lossless", "as plain", "forwards", "tokens/forward", "fewer", "draft forwards", "s", "speed-up"]
    lines = [[*head, "CPU s", "CPU speed-up"], ["---"] * (len(head) + 2)]
    for row in rows:
        if row.kind == kind:
            lines.append(
                [
                    row.name,
                    "yes" if row.lossless else "no",
                    f"{row.same:.0%}",
                    f"{row.forwards_per_100:.1f}",
                    f"{row.tokens_per_forward:.2f}",
                    f"{row.fewer_forwards:.2f}x",
                    f"{row.draft_forwards_per_100:.1f}",
                    f"{row.seconds:.2f}",
                    f"{row.speed_up:.2f}x",
                    f"{row.cpu_seconds:.2f}",
                    f"{row.cpu_speed_up:.2f}x",
                ]
            )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
