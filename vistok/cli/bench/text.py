"""``vistok bench text``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vistok.cli.output import Json, check_outputs
from vistok.cli.shared import check_drawing, refuse_given


def text(
    context: typer.Context,
    methods: Annotated[
        str | None, typer.Option(help="Only those whose names hold one of these words; by commas.")
    ] = None,
    model: Annotated[str, typer.Option(help="The target: an embedded model, a folder, or a hub id.")] = "text-mini",
    draft: Annotated[
        str | None, typer.Option(help="A small model with its tokenizer. [default: text-mini-draft for text-mini]")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="Weights of a drafter that were trained for the target, an EAGLE head (1, 2 or 3) or any that "
            "vistok write takes: a folder, or a hub id. [default: its own for text-mini]"
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of each kind.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a held-out prompt.")] = 96,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens that are generated.")] = 128,
    spec_bench: Annotated[
        Path | None, typer.Option(help="Spec-Bench's question.jsonl, instead of held-out modules.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 decodes greedily.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the smallest set of this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of prompts and draws.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    json: Json = None,
    contestants: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Speculative decoding of text, against transformers' plain, assisted and prompt-lookup decoding.

    The embedded model continues passages of standard-library modules that it never saw.

    Example: `vistok bench text --methods recycling,assisted`
    """
    check_outputs(json)
    check_drawing(temperature, top_p)
    if spec_bench is not None:
        refuse_given(context, "cuts held-out modules, and --spec-bench names questions", "prompt_tokens")
    if contestants is not None:
        print("vistok: --contestants is --methods now.", file=sys.stderr)
        methods = contestants
    from vistok.cli.bench.report import write_report
    from vistok.eval.decoding.comparison import choose_entries, table
    from vistok.eval.decoding.prompts import held_out_prompts, spec_bench_prompts
    from vistok.eval.decoding.text import COLUMNS, continue_in_turn, summarise
    from vistok.eval.decoding.text_entries import standard_entries, trained_entry
    from vistok.models.huggingface import check_reads
    from vistok.progress import progress
    from vistok.samplers.drafters.eagle_head import load_head
    from vistok.samplers.text_drafters import trained_for, trained_kind
    from vistok.zoo.transformers import load_causal_lm

    if draft is None and model == "text-mini":
        draft = "text-mini-draft"
    target, tokenizer = load_causal_lm(model, device, dtype)
    small = None if draft is None else load_causal_lm(draft, device, dtype)[0]
    if spec_bench is not None:
        texts = spec_bench_prompts(spec_bench, tokenizer, prompts)
        check_reads(target, max(text.ids.shape[1] for text in texts) + new_tokens, model)
    else:
        check_reads(target, prompt_tokens + new_tokens, model)
        texts = held_out_prompts(tokenizer, prompts, prompt_tokens, seed)
    sampling = temperature > 0
    kind = "eagle" if head is None else trained_kind(head) or "eagle"
    eagle = head if head is not None and kind == "eagle" else trained_for(target, "eagle3")
    network = None if eagle is None else load_head(eagle, target)
    entries = standard_entries(target, small, sampling, tokenizer, network)
    if kind != "eagle":
        entries.append(trained_entry(kind, head, target))
    if methods is not None:
        entries = choose_entries(entries, [word.strip() for word in methods.split(",")], "method")
    options = {"max_new_tokens": new_tokens, "do_sample": sampling, "pad_token_id": tokenizer.pad_token_id}
    if sampling:
        options |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
    with progress("bench", len(texts) * len(entries)) as advance:
        trials = continue_in_turn(target, small, entries, texts, options, seed, advance)
    rows = summarise(trials, texts)
    settings = {
        "model": model,
        "draft": draft,
        "head": head,
        "prompts": len(texts),
        "new_tokens": new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    tables = []
    for kind in dict.fromkeys(row.kind for row in rows):
        tables += [
            f"{kind}: forwards and seconds of a hundred tokens",
            table([row for row in rows if row.kind == kind], COLUMNS, "method"),
        ]
    write_report(settings, rows, tables, json)
