"""``vistok bench context``."""

from __future__ import annotations

from typing import Annotated

import typer

from vistok.cli.output import Json, check_outputs


def context(
    policies: Annotated[
        str | None, typer.Option(help="Only those whose names hold one of these words; by commas.")
    ] = None,
    lengths: Annotated[str, typer.Option(help="Tokens of the text, by commas.")] = "4096,16384,65536",
    budget: Annotated[int, typer.Option(min=512, help="Keys that a policy reads or keeps.")] = 1024,
    layers: Annotated[int, typer.Option(min=4, help="Layers of the random model.")] = 16,
    width: Annotated[int, typer.Option(min=8, help="Its hidden size.")] = 512,
    heads: Annotated[int, typer.Option(min=1, help="Its query heads, of 64.")] = 16,
    kv_heads: Annotated[int, typer.Option(min=1, help="Its key/value heads.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Decode steps of each policy.")] = 5,
    edit: Annotated[int, typer.Option(min=0, help="Tokens inserted into a cached text of 4096; 0: no edits.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    json: Json = None,
) -> None:
    """How policies of the KV cache change the time of a decode step, and what an edit of a cache saves.

    The model is random: costs are measured, no quality.

    Example: `vistok bench context --lengths 16384 --policies Tidal,SnapKV`
    """
    from vistok.errors import VistokError

    check_outputs(json)
    try:
        sizes = [int(word) for word in lengths.split(",")]
    except ValueError as error:
        raise VistokError(f"--lengths is '{lengths}': give numbers by commas, such as 4096,16384.") from error
    if min(sizes) < 1:
        raise VistokError("--lengths must be 1 or more.")
    if heads % kv_heads:
        raise VistokError(f"--heads is {heads}: take a multiple of --kv-heads, which is {kv_heads}.")
    if width % heads:
        raise VistokError(f"--width is {width}: take a multiple of --heads, which is {heads}.")
    from vistok.cli.bench.report import write_report
    from vistok.eval.decoding.comparison import choose_entries, table
    from vistok.eval.decoding.context import COLUMNS, EDITS, random_model, standard_policies, time_edit, time_steps
    from vistok.progress import progress
    from vistok.runtime import resolve_device, resolve_dtype

    place = resolve_device(device), resolve_dtype(dtype)
    entries = standard_policies(budget)
    if policies is not None:
        entries = choose_entries(entries, [word.strip() for word in policies.split(",")], "policy")
    model = random_model(layers, width, heads, kv_heads, max(*sizes, 4096 + edit) + 64).to(*place)
    rows, tables = [], []
    with progress("bench", len(sizes) * (len(entries) + 1) * (steps + 1)) as advance:
        for tokens in sizes:
            found = time_steps(model, entries, tokens, steps, advance)
            rows += found
            tables += [f"A decode step behind {tokens} tokens", table(found, COLUMNS, "policy")]
    if edit:
        found = time_edit(model, 4096, edit)
        rows += found
        tables += [f"{edit} tokens inserted into a cached text of 4096", table(found, EDITS, "method")]
    shape = {"layers": layers, "width": width, "heads": heads, "kv_heads": kv_heads}
    settings = {**shape, "budget": budget, "steps": steps, "device": device, "dtype": dtype}
    write_report(settings, rows, tables, json)
