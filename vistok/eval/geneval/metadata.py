"""GenEval prompts (arXiv 2310.11513): the published metadata format, its reader, and generators of both prompt sets.

Each JSONL line has ``tag``, ``include`` (class, count, optional colour and position), ``exclude`` for counting, and
``prompt``. In position prompts the reference object comes first in ``include``, the described one second.
:func:`coco_prompts` draws a set like the published one, :func:`scene_prompts` its counterpart in the embedded world.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vistok.errors import VistokError

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
NUMBER_WORDS = ("zero", "one", "two", "three", "four")

# COCO's order with GenEval's three renames.
# fmt: off
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """GenEval's plural: "es" after s, else "s"; "sheeps" and "toothbrushs" are part of the protocol."""
    return noun + ("es" if noun.endswith("s") else "s")


def single_object(name: str) -> dict:
    include = [{"class": name, "count": 1}]
    return {"tag": "single_object", "include": include, "prompt": f"a photo of {with_article(name)}"}


def two_object(first: str, second: str) -> dict:
    include = [{"class": name, "count": 1} for name in (first, second)]
    prompt = f"a photo of {with_article(first)} and {with_article(second)}"
    return {"tag": "two_object", "include": include, "prompt": prompt}


def counting(name: str, count: int) -> dict:
    return {
        "tag": "counting",
        "include": [{"class": name, "count": count}],
        "exclude": [{"class": name, "count": count + 1}],
        "prompt": f"a photo of {NUMBER_WORDS[count]} {plural(name)}",
    }


def colors(name: str, color: str) -> dict:
    include = [{"class": name, "count": 1, "color": color}]
    return {"tag": "colors", "include": include, "prompt": f"a photo of {with_article(f'{color} {name}')}"}


def position(described: str, relation: str, reference: str) -> dict:
    include = [
        {"class": reference, "count": 1},
        {"class": described, "count": 1, "position": [relation, 0]},
    ]
    prompt = f"a photo of {with_article(described)} {relation} {with_article(reference)}"
    return {"tag": "position", "include": include, "prompt": prompt}


def color_attr(first: tuple[str, str], second: tuple[str, str]) -> dict:
    """Two objects, each given as (class, color)."""
    include = [{"class": name, "count": 1, "color": color} for name, color in (first, second)]
    prompt = " and ".join(with_article(f"{color} {name}") for name, color in (first, second))
    return {"tag": "color_attr", "include": include, "prompt": f"a photo of {prompt}"}


def draw_prompts(
    classes: Sequence[str], palette: Sequence[str], seed: int, per_task: int, uncoloured: frozenset[str] = frozenset()
) -> list[dict]:
    """Prompts of all six tasks, without repeats, a pure function of the arguments.

    Args:
        classes: objects; every one has its single-object prompt.
        palette: colours.
        seed: of the draws.
        per_task: most prompts of each other task; small worlds have fewer different ones.
        uncoloured: classes that are never given a colour.
    """
    random = np.random.default_rng(seed)
    coloured = [name for name in classes if name not in uncoloured]

    def pick(options: Sequence, count: int = 1) -> list:
        return [options[i] for i in random.choice(len(options), count, replace=False)]

    def draw(task: str) -> dict:
        if task == "two_object":
            return two_object(*pick(classes, 2))
        if task == "counting":
            return counting(pick(classes)[0], int(random.integers(2, 5)))
        if task == "colors":
            return colors(pick(coloured)[0], pick(palette)[0])
        if task == "position":
            described, reference = pick(classes, 2)
            return position(described, pick(RELATIONS)[0], reference)
        return color_attr(*zip(pick(coloured, 2), pick(palette, 2), strict=True))

    prompts = [single_object(name) for name in pick(classes, len(classes))]
    for task in TASKS[1:]:
        drawn: dict[str, dict] = {}
        for _ in range(20 * per_task):
            metadata = draw(task)
            drawn.setdefault(metadata["prompt"], metadata)
            if len(drawn) == per_task:
                break
        prompts += drawn.values()
    return prompts


def coco_prompts(seed: int = 43, per_task: int = 100) -> list[dict]:
    """A prompt set over the COCO classes by the published templates; the published draw itself is a file to read."""
    return draw_prompts(COCO_CLASSES, COLORS, seed, per_task, frozenset({"person"}))


def scene_prompts(shapes: Sequence[str], colours: Sequence[str], seed: int = 0, per_task: int = 100) -> list[dict]:
    """The prompt set of the embedded world: shapes as classes, its palette as colours.

    Args:
        shapes: names of the shapes.
        colours: names of the colours.
        seed: of the draws.
        per_task: most prompts a task.
    """
    return draw_prompts(tuple(shapes), tuple(colours), seed, per_task)


def _check(record: object, where: str) -> dict:
    def fail(problem: str) -> VistokError:
        return VistokError(f"{where} is no GenEval metadata: {problem}.")

    if not isinstance(record, dict):
        raise fail("expected a JSON object")
    if record.get("tag") not in TASKS:
        raise fail(f"its tag is {record.get('tag')!r}, expected one of {', '.join(TASKS)}")
    if not isinstance(record.get("prompt"), str) or not isinstance(record.get("include"), list):
        raise fail("it needs a prompt and a list 'include'")
    for item in [*record["include"], *record.get("exclude", [])]:
        if (
            not isinstance(item, dict)
            or not isinstance(item.get("class"), str)
            or not isinstance(item.get("count"), int)
        ):
            raise fail("every item needs a class and a count")
    for i, item in enumerate(record["include"]):
        if "position" in item:
            relation, target = item["position"]
            if relation not in RELATIONS or not 0 <= target < i:
                raise fail(f"position {item['position']} names no relation to an earlier item")
    return record


def read_metadata(path: str | Path) -> list[dict]:
    """Read a metadata JSONL file, e.g. the published ``evaluation_metadata.jsonl``.

    Raises:
        VistokError: if the file is absent, empty, or a line is not in the format; the sentence names the line.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise VistokError(f"cannot read the metadata file '{path}': {error.strerror}.") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise VistokError(f"line {number} of '{path}' is not JSON: {error}.") from error
        records.append(_check(record, f"line {number} of '{path}'"))
    if not records:
        raise VistokError(f"the metadata file '{path}' is empty.")
    return records


def write_metadata(path: str | Path, records: Sequence[dict]) -> None:
    """Write metadata, one JSON object a line."""
    from vistok.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
