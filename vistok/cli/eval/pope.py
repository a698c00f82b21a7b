"""``vistok eval pope``: existence questions about present and absent objects of scenes."""

from __future__ import annotations

from typing import Annotated

import typer

from vistok.cli.eval.common import Json


def pope(
    model: Annotated[str, typer.Option(help="Embedded model, folder or hub id of a LLaVA-type model.")],
    splits: Annotated[str, typer.Option(help="random, popular, adversarial.")] = "random,popular,adversarial",
    scene_split: Annotated[str, typer.Option(help="Pictures: plain, small or hard.")] = "hard",
    scenes: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    json: Json = None,
) -> None:
    """Hallucination on scenes: accuracy, precision, recall, F1 and share of yes, of each split of POPE.

    Example: vistok eval pope --model llava-mini
    """
    from vistok.cli.output import check_outputs, output_json, print_table
    from vistok.data.scenes.vqa import scene_side
    from vistok.data.scenes.vqa_splits import POPE_SPLITS, SPLITS
    from vistok.errors import unknown_name
    from vistok.eval.answers.ask import load
    from vistok.eval.answers.pope import pope as measure

    names = [name.strip() for name in splits.split(",")]
    for name in names:
        if name not in POPE_SPLITS:
            raise unknown_name("split of POPE", name, list(POPE_SPLITS))
    if scene_split not in SPLITS:
        raise unknown_name("split of scenes", scene_split, list(SPLITS))
    check_outputs(json)
    network, processor = load(model, device, dtype)
    points = measure(network, processor, scene_side(network.config), names, scenes, scene_split, batch_size)
    if output_json([point.to_dict() for point in points], json):
        return
    rows = []
    for p in points:
        figures = (f"{value:.3f}" for value in (p.accuracy, p.precision, p.recall, p.f1))
        low, high = p.interval
        rows.append((p.split, str(p.questions), *figures, f"{low:.3f} to {high:.3f}", f"{p.yes_ratio:.3f}"))
    headings = ("split", "questions", "accuracy", "precision", "recall", "F1", "95 %", "yes")
    print_table(headings, rows, f"{model}: {scenes} {scene_split} scenes")
