"""Speculative Jacobi decoding: one verification step, initial drafts, whole decodes, forced row ends."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.case import Case
from vistok.ops import combine_guidance
from vistok.ops.sampling import residual_law
from vistok.samplers import SamplingParams
from vistok.samplers.drafters.jacobi import INITS, Fresh, JacobiWindow, line_ends, neighbour_positions
from vistok.samplers.loop import decode
from vistok.samplers.noise import ACCEPT, DRAFT, DRAW, FRESH, RESIDUAL
from vistok.samplers.run import Scores, Verdict
from vistok.samplers.tree import TokenTree
from vistok.samplers.verifiers.exact import ExactChain, couple

SYSTEM = "sjd"
SCHEMES = {
    "random": "random",
    "repeat_horizon": "repeat-left",
    "sample_horizon": "top-left",
    "repeat_vertical": "repeat-up",
    "sample_vertical": "top-up",
}


def verify_step(case: Case) -> None:
    inputs = case.inputs
    p, q, tokens, fresh = (inputs[name] for name in ("p_target", "q_draft", "draft_tokens", "fresh_tokens"))
    trials, length = tokens.shape
    # The draft of row i is window entry i + 1; entry 0 is the last committed token.
    drafts, laws, uniform = tokens[:, 1:], q[:, 1:], inputs["u_accept"][:, 1:]
    outcome = couple(p[:, :-1], laws, drafts, uniform, inputs["u_residual"][:, None].expand_as(uniform))
    count = 1 + outcome.accepted.long().cumprod(1).sum(1)
    case.equal(count - 1, "n_accepted_drafts")
    case.equal(torch.where(count < length, count, -1), "rejected_at")
    emitted = torch.cat([outcome.token, fresh[:, -1:]], 1)
    places = torch.arange(length)
    case.equal(torch.where(places < count[:, None], emitted, -1), "matched")
    at = drafts[..., None]
    chance = (p[:, :-1].gather(-1, at) / laws.gather(-1, at)).clamp(max=1)[..., 0]
    expected = case.outputs["accept_prob"]
    case.close(torch.cat([expected[:, :1], chance], 1), "accept_prob")
    here, stop = torch.arange(trials), count - 1
    rest = residual_law(p[here, stop], q[here, (stop + 1).clamp(max=length - 1)])
    case.close(torch.where((count < length)[:, None], rest, 0.0), "residual")
    source = (count[:, None] + places).clamp(max=length - 1)
    kept = count[:, None] + places < length
    case.equal(torch.where(kept, fresh.gather(1, source), -1), "next_window_tokens")
    expected = case.outputs["next_window_q"]
    rows = p.gather(1, source[..., None].expand_as(p))
    case.close(torch.where(kept[..., None], rows, expected), "next_window_q")


def init(case: Case) -> None:
    inputs, config = case.inputs, case.config
    existing = torch.cat([inputs["input_ids"], inputs["window_tokens"]], 1)
    rows = torch.cat([inputs["scores"], inputs["window_scores"]], 1)
    vocabulary, uniform = inputs["draft_vocab"], inputs["u_init"]
    positions = existing.shape[1] + torch.arange(uniform.shape[1])[None]
    line, name = config["img_width"] + 1, SCHEMES[config["scheme"]]
    header = config["prefill_num"] + config["header_tokens"]
    source, there = neighbour_positions(
        positions - header, torch.tensor([[existing.shape[1] - header]]), line, name.endswith("up")
    )
    source = source + header
    random = vocabulary[(uniform * len(vocabulary)).long()]
    law = torch.zeros(config["V"], dtype=rows.dtype).index_fill_(0, vocabulary, 1 / len(vocabulary))
    neighbour = rows.gather(1, source[..., None].expand(-1, -1, rows.shape[-1]))
    tokens, laws = INITS[name].make(Fresh(random, law, existing.gather(1, source), neighbour, there, uniform))
    case.equal(tokens, "tokens")
    case.close(laws, "q")


class Toy:
    """The case's tabulated target; the prompt stands before the tokens that are decided."""

    batch = 1

    def __init__(self, case: Case, params: SamplingParams):
        self.params, self.tables, config = params, case.weights, case.config
        self.prompt, self.period = case.inputs["prompt"], config["M"]
        self.length = config["stop_when_len_ge"] - self.prompt.shape[1] + config["L"]
        self.context = self.prompt
        self.windows: list[list[int]] = [self.prompt[0].tolist()]
        self.kept = [self.prompt.shape[1]]

    def logits(self, tokens: Tensor, start: int) -> Tensor:
        before = torch.cat(
            [self.context[:, start - 1 : start] if start else torch.zeros(1, 1).long(), tokens[:, :-1]], 1
        )
        phase = torch.arange(start, start + tokens.shape[1]) % self.period
        w = self.tables
        cond = w["A"][tokens] + w["B"][before] + w["P"][phase]
        return (
            combine_guidance(cond, w["Au"][tokens] + w["Bu"][before], self.params.guidance)
            if self.params.guided
            else cond
        )

    def prefill(self) -> Scores:
        return Scores(self.logits(self.prompt, 0))

    def forward(self, tree: TokenTree, decided: Tensor) -> Scores:
        self.tree = tree.tokens
        self.windows.append(tree.tokens[0].tolist())
        return Scores(self.logits(tree.tokens, self.context.shape[1]))

    def commit(self, verdict: Verdict, least: int, rows: int | None) -> None:
        self.kept.append(rows)
        self.context = torch.cat([self.context, self.tree[:, :rows]], 1)


class Tape:
    """The case's uniforms; row ``step`` serves the pass of that number. The run goes on past the tape's end,
    unobserved.
    """

    def __init__(self, case: Case, target: Toy, drafter: JacobiWindow):
        self.tape, self.target, self.drafter = case.inputs, target, drafter
        self.passes = len(self.tape["u_residual"])

    def uniform(self, positions: Tensor, purpose: int | Tensor, step: int = 0) -> Tensor:
        if isinstance(purpose, Tensor):
            return torch.stack([self.uniform(positions[:, 0], one, step) for one in purpose.flatten().tolist()], 1)
        row, count = min(step, self.passes - 1), positions.shape[1]
        if purpose == RESIDUAL:
            return self.tape["u_residual"][row].expand(1, count)
        if purpose not in (names := {ACCEPT: "u_accept", DRAW: "u_fresh", FRESH: "u_fresh", DRAFT: "u_init"}):
            return torch.zeros(1, count, dtype=torch.float64)  # this sampler does not ask for it
        values = torch.cat([self.tape[names[purpose]][row], torch.zeros(1, dtype=torch.float64)])
        if purpose == DRAW and not step:
            return values[:1].expand(1, count)
        places = torch.arange(count) + (purpose == ACCEPT)
        if purpose == DRAFT:  # new drafts take theirs from the front
            places = (places - int(self.drafter.kept)).clamp(min=0)
        return values[places][None]


def trace(case: Case) -> None:
    config, outputs = case.config, case.outputs
    guidance = config["guidance_scale"] if config["cfg"] else 1.0
    top_k = config["top_k"] if config["top_k"] < config["V"] else 0
    params = SamplingParams(guidance, top_k=top_k, top_p=config["top_p"])
    drafter = JacobiWindow(
        config["L"],
        config.get("img_width", config["L"]) + 1,
        SCHEMES[config["init"]],
        False,
        config["jacobi_loop_interval_l"],
        case.inputs["draft_vocab"],
    )
    target = Toy(case, params)
    noise = Tape(case, target, drafter)
    tokens, _ = decode(target, drafter, ExactChain(reprocess_residual=True), params, noise)
    tokens = torch.cat([target.prompt, tokens], 1)
    case.equal(tokens[:, : outputs["tokens"].shape[1]], "tokens")
    windows = torch.full_like(outputs["windows"], -1)
    passes = len(windows)
    for row, fed in zip(windows, target.windows[:passes], strict=True):
        row[: len(fed)] = torch.tensor(fed)
    lengths = torch.tensor([len(fed) for fed in target.windows[:passes]])
    case.equal(windows, "windows")
    case.equal(lengths, "window_len")
    rejected = [step for step in range(passes) if target.kept[step] < len(target.windows[step]) and step]
    case.equal(torch.tensor(rejected), "residual_iterations")


def row_end_positions(case: Case) -> None:
    table = case.outputs["table"]
    rows = []
    for so_far, window, line, *_ in table.tolist():
        ends = line_ends(torch.tensor([so_far]), window, line)[0].nonzero()[:, 0].tolist()
        rows.append([so_far, window, line, int(bool(ends)), *ends, *[-1] * (table.shape[1] - 4 - len(ends))])
    case.equal(torch.tensor(rows), "table")


ADAPTERS = {"verify_step": verify_step, "init": init, "trace": trace, "row_end_positions": row_end_positions}
