"""Answer scorers of multimodal benchmarks: VQA accuracy, ANLS, POPE, MME, exact match, option letters.

The normaliser is EvalAI's with its published oddities, because published numbers were made with them: a malformed
look-behind keeps the period of "a.5" and drops the one of "3.", at most 32 periods are removed, and contractions that
begin with "I" are listed in capitals, which lower-cased text never meets.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS = {"none": "0"} | {word: str(i) for i, word in enumerate(_NUMBER_WORDS)}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,+\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32

_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905 - quoted one by one, words with apostrophes cannot be read
# Every spelling that lacks one apostrophe; the table's one odd entry takes an apostrophe away.
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in _CONTRACTIONS for i, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}


def strip_punctuation(text: str) -> str:
    """Returns a text by EvalAI's rule: a mark that touches a blank goes, as do all by digit,digit; else a blank."""
    out = text
    delete_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    for mark in PUNCTUATION:
        delete = delete_all or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if delete else " ")
    return _PERIOD.sub("", out, count=_MAX_PERIODS)


def normalise_words(text: str) -> str:
    """Returns a text in lower case, number words as digits, without articles, contractions with their apostrophes."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalise_answer(text: str) -> str:
    """Returns a text in EvalAI's full normalisation (TextVQA): tokenised, then punctuation, then words."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_words(strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def _normalise_vqav2(text: str) -> str:
    return normalise_words(strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def _consensus(prediction: str, answers: Sequence[str]) -> float:
    """min(matches / 3, 1) over the leave-one-out sets of the annotators' answers."""
    matches = [answer == prediction for answer in answers]
    return sum(min((sum(matches) - own) / 3, 1.0) for own in matches) / len(matches)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Returns the TextVQA accuracy against (ten) annotators' answers."""
    return _consensus(normalise_answer(prediction), [normalise_answer(answer) for answer in answers])


def vqav2_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Returns the VQAv2 accuracy: as TextVQA's, without tokenising first."""
    return _consensus(_normalise_vqav2(prediction), [_normalise_vqav2(answer) for answer in answers])


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Returns 1 if the normalised prediction is one of the normalised answers (GQA and others)."""
    return float(normalise_answer(prediction) in {normalise_answer(answer) for answer in answers})


def edit_distance(a: str, b: str) -> int:
    """Returns the Levenshtein distance of two texts."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (letter != other))
    return row[-1]


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Returns the average normalised Levenshtein similarity (DocVQA) of one prediction, the best over its answers.

    Case and white space do not count for the distance, but the length that it is divided by is that of the raw strings.
    """
    tidy = " ".join(prediction.lower().split())
    distances = []
    for answer in answers:
        length = max(len(answer), len(prediction))
        distances.append(edit_distance(" ".join(answer.lower().split()), tidy) / length if length else 0.0)
    similarity = 1 - min(distances)
    return similarity if similarity >= threshold else 0.0


def parse_pope(text: str) -> str:
    """Returns "no" if a word of the first sentence is No, not or no, else "yes": the original rule of POPE."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def parse_mme(text: str) -> str:
    """Returns yes, no or other, by the whole answer or its first four letters: the rule of MME."""
    text = text.lower().strip().replace(".", "")
    if text in ("yes", "y"):
        return "yes"
    if text in ("no", "n"):
        return "no"
    return next((answer for answer in ("yes", "no") if answer in text[:4]), "other")


def parse_choice(text: str, letters: str = "ABCD") -> str | None:
    """Returns the option letter that an answer is or begins with ("B", "(B)", "B. a cat"); None if there is none."""
    match = re.match(rf"\s*\(?([{letters}])(?:[).:,\s]|$)", text)
    return match[1] if match else None


class PopeScore(NamedTuple):
    """Figures of POPE; ``yes_ratio`` is that of the predictions (lmms-eval prints that of the ground truth)."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float


def pope_score(predictions: Sequence[str], truths: Sequence[str]) -> PopeScore:
    """Returns the figures of POPE over parsed answers.

    Args:
        predictions: "yes" or "no" each.
        truths: "yes" or "no" each.
    """
    pairs = list(zip(predictions, truths, strict=True))
    hits = sum(p == t == "yes" for p, t in pairs)
    said, true = sum(p == "yes" for p in predictions), sum(t == "yes" for t in truths)
    precision, recall = hits / said if said else 0.0, hits / true if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return PopeScore(sum(p == t for p, t in pairs) / len(pairs), precision, recall, f1, said / len(pairs))


def mme_score(results: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """Returns the scores of MME: 100 x accuracy + 100 x share of pictures with both questions right, by subtask.

    Args:
        results: (subtask, picture id, 1 or 0) of every question.

    Returns:
        The score of every subtask; their sum is the total.
    """
    by_picture: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for subtask, picture, score in results:
        by_picture[subtask][picture].append(score)
    scores = {}
    for subtask, pictures in by_picture.items():
        questions = [score for scores in pictures.values() for score in scores]
        both = sum(all(scores) for scores in pictures.values()) / len(pictures)
        scores[subtask] = 100 * sum(questions) / len(questions) + 100 * both
    return scores
