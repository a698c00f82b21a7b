"""The language of the embedded multimodal models: questions about scenes, their words, and the processors.

Prompts are LLaVA-1.5's, ``USER: <image>\\n{question} ASSISTANT:``; an answer is one word and the end of the text.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.data.scenes.language import NUMBERS, RELATIONS, Group, groups, plural, questions
from vistok.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scenes
from vistok.errors import VistokError
from vistok.ops.noise import derive_seed

PAD, BEGIN, END, UNKNOWN, IMAGE, USER, ASSISTANT = "<pad>", "<s>", "</s>", "<unk>", "<image>", "user:", "assistant:"
SLOT = 10  # tokens of the longest question with "assistant:" and its answer
IGNORE = -100
KINDS = ("background", "colour", "count", "exists", "object", "place", "relation", "shape", "size")
CLEAR = 0.06  # least distance from the middle at which a side is told, in sides of the picture


class Question(NamedTuple):
    """A question about a scene: its words, its one-word answer, and which kind it is."""

    text: str
    answer: str
    kind: str


@cache
def vocabulary() -> list[str]:
    """Every token: the special ones, then all words of questions and answers, sorted."""
    words = {"how", "many", "objects", "object", "are", "there", "what", "is", "the", "a", "?", "yes", "no"}
    words |= {"background", "color", "size", "shape"}
    words |= {*SHAPES, *(plural(s) for s in SHAPES), *COLOURS, *SIZES, *BACKGROUNDS, *NUMBERS}
    for forms in RELATIONS.values():
        words |= set(forms[0].split())
    return [PAD, BEGIN, END, UNKNOWN, IMAGE, USER, ASSISTANT, *sorted(words)]


@cache
def token_ids() -> dict[str, int]:
    """Number of each token."""
    return {word: i for i, word in enumerate(vocabulary())}


def tokenizer() -> Any:
    """One token a word, in lower case, question marks apart; ``<s>`` first."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(token_ids(), unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    marks = pre_tokenizers.Split(Regex(r"\?"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, token_ids()[BEGIN])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        additional_special_tokens=[IMAGE],
        model_max_length=512,
    )


def _settings(patch: int) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer(),
        "patch_size": patch,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": IMAGE,
    }


def llava_processor(side: int, patch: int) -> Any:
    """Processor of a LLaVA that sees pictures of ``side`` pixels, valued from -1 to 1."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(image_processor=images, **_settings(patch))


def pinpoints(side: int) -> list[list[int]]:
    """Canvases of crops of ``side`` pixels: two beside or above one another, or four."""
    return [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]


def llava_next_processor(side: int, patch: int) -> Any:
    """Processor of a LLaVA-NeXT with views of ``side`` pixels, valued from -1 to 1."""
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    images = LlavaNextImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        image_grid_pinpoints=pinpoints(side),
    )
    return LlavaNextProcessor(image_processor=images, **_settings(patch))


def prompt(question: str) -> str:
    """What the processors take with a picture."""
    return f"USER: {IMAGE}\n{question} ASSISTANT:"


def place_questions(scene: list[Group]) -> list[dict[str, str]]:
    """Questions about the half of the picture that single objects lie in, as ``questions``; of type ``place``."""
    out = []
    for group in scene:
        halves = zip(("left", "right", "above", "below"), (0, 0, 1, 1), (1, -1, 1, -1), strict=True)
        for name, axis, sign in halves:
            inside = sign * (0.5 - group.centre[axis])
            if group.count == 1 and abs(inside) >= CLEAR:
                answer = "yes" if inside > 0 else "no"
                out.append({"question": f"is the {group.shape} {name}?", "answer": answer, "type": "place"})
    return out


def object_questions(scene: list[Group]) -> list[dict[str, str]]:
    """Whether there are objects of each colour and shape, as ``questions``; of type ``object``."""
    present = {(g.colour, g.shape) for g in scene}
    out = []
    for colour in COLOURS:
        for shape in SHAPES:
            answer = "yes" if (colour, shape) in present else "no"
            out.append({"question": f"are there {colour} {plural(shape)}?", "answer": answer, "type": "object"})
    return out


def draw_questions(
    scenes: Scenes, count: int, variant: int = 0, kinds: Mapping[str, float] | None = None
) -> list[list[Question]]:
    """Different questions about each scene, drawn so that no kind and no answer outweighs the others.

    A kind is drawn, then one of the answers that its questions have, then a question; the picture is needed to do well.
    Sizes are not asked about where a scene is drawn at another scale.

    Args:
        scenes: B scenes.
        count: questions of each; every scene has more, of some ``kinds`` perhaps fewer.
        variant: another one draws anew.
        kinds: how often each kind is drawn, in place of all those of ``questions`` equally often; ``place`` and
            ``object`` are further ones.
    """
    out = []
    columns = zip(groups(scenes), scenes.background.tolist(), scenes.index.tolist(), scenes.scale.tolist(), strict=True)
    for scene, background, index, scale in columns:
        rng = random.Random(derive_seed(index, variant))
        entries = questions(scene, BACKGROUNDS[background])
        if kinds is not None:
            entries = [e for e in entries + place_questions(scene) + object_questions(scene) if kinds.get(e["type"])]
        left: dict[str, dict[str, list[str]]] = {}
        for entry in entries:
            if scale == 1 or entry["type"] != "size":
                left.setdefault(entry["type"], {}).setdefault(entry["answer"], []).append(entry["question"])
        drawn = []
        while left and len(drawn) < count:
            if kinds is None:
                kind = rng.choice(list(left))
            else:
                (kind,) = rng.choices(list(left), [kinds[name] for name in left])
            answer = rng.choice(list(left[kind]))
            texts = left[kind][answer]
            drawn.append(Question(texts.pop(rng.randrange(len(texts))), answer, kind))
            if not texts:
                del left[kind][answer]
            if not left[kind]:
                del left[kind]
        out.append(drawn)
    return out


@cache
def _slot(text: str, answer: str) -> tuple[list[int], list[int]]:
    ids = token_ids()
    words = [*text.replace("?", " ?").split(), ASSISTANT, answer]
    tokens = [ids[word] for word in words]
    targets = [IGNORE] * (len(words) - 2) + [ids[answer], ids[END]]
    padding = SLOT - len(words)
    return tokens + [ids[PAD]] * padding, targets + [IGNORE] * padding


def question_tokens(drawn: list[list[Question]]) -> tuple[Tensor, Tensor]:
    """Tokens and next-token targets of the questions of each scene.

    Returns:
        int64 [B, K, SLOT] twice; targets are ``IGNORE`` but where the answer and the end of the text follow.

    Raises:
        VistokError: scenes have different numbers of questions.
    """
    if len({len(row) for row in drawn}) != 1:
        least, most = min(map(len, drawn)), max(map(len, drawn))
        raise VistokError(f"scenes have {least} to {most} questions of these kinds: ask for fewer, or for more kinds.")
    slots = [[_slot(question.text, question.answer) for question in row] for row in drawn]
    return tuple(torch.tensor([[slot[i] for slot in row] for row in slots]) for i in range(2))


def scene_side(config: Any) -> int:
    """Side of the pictures that a model of this configuration sees whole: its tower's, or its largest canvas's.

    Models that take any size (Qwen-VL) get 64, at which the scenes are drawn for the embedded models.
    """
    pinpoints = getattr(config, "image_grid_pinpoints", None)
    if pinpoints:
        return max(min(point) for point in pinpoints)
    side = getattr(config.vision_config, "image_size", 64)
    return side if isinstance(side, int) else min(side)


def named_places(scenes: Scenes, questions: Tensor) -> Tensor:
    """Centres of the single objects that words of questions name by shape.

    Args:
        scenes: B scenes.
        questions: int64 [B, K, SLOT], of ``question_tokens``.

    Returns:
        float32 [B, K, SLOT, 2], NaN at other words.
    """
    centre = scenes.centre.float().masked_fill(~scenes.present[..., None], 0)
    out = torch.full((*questions.shape, 2), torch.nan)
    for number, shape in enumerate(SHAPES):
        member = scenes.present & (scenes.shape == number)
        alone = (member.sum(1) == 1)[:, None, None] & (questions == token_ids()[shape])
        out = torch.where(alone[..., None], (centre * member[..., None]).sum(1)[:, None, None], out)
    return out
