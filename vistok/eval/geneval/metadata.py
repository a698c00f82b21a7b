"""GenEval prompts (arXiv 2310.11513): the published metadata format, its reader, and generators of both prompt sets.

Each JSONL line has ``tag``, ``include`` (class, count, optional colour and position), ``exclude`` for counting, and
``prompt``. In position prompts the reference object comes first in ``include``, the described one second.
:func:`coco_prompts` draws a set like the published one, :func:`scene_prompts` its counterpart in the embedded world.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vistok.errors import VistokError
from vistok.files import atomic_path, read_json_lines
from vistok.ops.noise import check_seed

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
    """Returns a plural of GenEval: "es" after s, else "s"; "sheeps" and "toothbrushs" are part of the protocol."""
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
    """Returns the metadata of two objects, each given as (class, color)."""
    include = [{"class": name, "count": 1, "color": color} for name, color in (first, second)]
    prompt = " and ".join(with_article(f"{color} {name}") for name, color in (first, second))
    return {"tag": "color_attr", "include": include, "prompt": f"a photo of {prompt}"}


def draw_prompts(
    classes: Sequence[str], palette: Sequence[str], seed: int, per_task: int, uncoloured: frozenset[str] = frozenset()
) -> list[dict]:
    """Returns prompts of all six tasks, without repeats, a pure function of the arguments.

    Args:
        classes: objects; every one has its single-object prompt.
        palette: colours.
        seed: of the draws.
        per_task: most prompts of each other task; small worlds have fewer different ones.
        uncoloured: classes that are never given a colour.
    """
    random = np.random.default_rng(check_seed(seed) % (1 << 64))
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
    """Returns a set over the COCO classes by the published templates; the published draw itself is a file to read."""
    return draw_prompts(COCO_CLASSES, COLORS, seed, per_task, frozenset({"person"}))


def scene_prompts(shapes: Sequence[str], colours: Sequence[str], seed: int = 0, per_task: int = 100) -> list[dict]:
    """Returns the prompt set of the embedded world: shapes as classes, its palette as colours.

    Args:
        shapes: names of the shapes.
        colours: names of the colours.
        seed: of the draws.
        per_task: most prompts a task.
    """
    return draw_prompts(tuple(shapes), tuple(colours), seed, per_task)


ITEM_KEYS = {"include": {"class", "count", "color", "position"}, "exclude": {"class", "count"}}


def check_metadata(record: dict, where: str) -> dict:
    """Returns a record of metadata that holds together.

    Args:
        record: one JSON object.
        where: what it is, for the sentence, e.g. ``"line 3 of 'm.jsonl'"``.

    Raises:
        VistokError: it is not in the format, or asks for nothing, so that every picture would be right.
    """

    def fail(problem: str) -> VistokError:
        return VistokError(f"{where} is no GenEval metadata: {problem}.")

    if record.get("tag") not in TASKS:
        raise fail(f"its tag is {record.get('tag')!r}, expected one of {', '.join(TASKS)}")
    if not isinstance(record.get("prompt"), str):
        raise fail(f"its prompt is {record.get('prompt')!r}, expected a text")
    if not isinstance(record.get("include"), list) or not record["include"]:
        raise fail("it needs a list 'include' of at least one object")
    if not isinstance(record.get("exclude", []), list):
        raise fail(f"its 'exclude' is {record['exclude']!r}, expected a list; leave it out where nothing is excluded")
    for key, known in ITEM_KEYS.items():
        for i, item in enumerate(record.get(key, [])):
            _check_item(item, i, record["include"], known, fail)
    return record


def _check_item(item: object, index: int, include: list, known: set[str], fail: Callable[[str], VistokError]) -> None:
    if not isinstance(item, dict) or not isinstance(item.get("class"), str):
        raise fail("every item needs a class and a count")
    if not isinstance(item.get("count"), int) or isinstance(item["count"], bool) or item["count"] < 1:
        raise fail(
            f"every item needs a class and a count of at least 1, and that of '{item['class']}' is "
            f"{item.get('count')!r}"
        )
    if strange := sorted(map(str, item.keys() - known)):
        raise fail(f"'{item['class']}' has {', '.join(strange)}, expected {', '.join(sorted(known))}")
    if "color" in item and not isinstance(item["color"], str):
        raise fail(f"the color of '{item['class']}' is {item['color']!r}, expected a text")
    if "position" in item:
        position = item["position"]
        if not isinstance(position, list) or len(position) != 2 or not isinstance(position[1], int):
            raise fail(f"the position of '{item['class']}' is {position!r}, expected such as ['left of', 0]")
        if position[0] not in RELATIONS or not 0 <= position[1] < index:
            raise fail(f"position {position} names no relation ({', '.join(RELATIONS)}) to an earlier item")


def read_metadata(path: str | Path) -> list[dict]:
    """Returns the records of a metadata JSONL file, e.g. the published ``evaluation_metadata.jsonl``.

    Raises:
        VistokError: the file is absent, empty, or a line is not in the format; the sentence names the line.
    """
    lines = read_json_lines(path, "metadata file")
    return [check_metadata(record, f"line {number} of '{path}'") for number, record in lines]


def write_metadata(path: str | Path, records: Sequence[dict]) -> None:
    """Writes metadata, one JSON object a line."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))


def digest(metadata: Sequence[dict]) -> str:
    """Returns the SHA-256 of what prompts ask for."""
    return hashlib.sha256(json.dumps(metadata).encode()).hexdigest()
