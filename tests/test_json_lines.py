"""Files with a JSON object a line: what editors and other programs put into them is read, the rest is named."""

from __future__ import annotations

import itertools
import json

import pytest

from vistok.errors import VistokError
from vistok.eval.answers.benchmarks import read_answers
from vistok.eval.captions import read_captions
from vistok.eval.geneval import read_metadata
from vistok.eval.geneval.folder import read_results
from vistok.files import read_json_lines
from vistok.train.sources.captions import read_captions as read_captions_to_learn

SEPARATORS = "\u2028 \u2029 \x85 \x0b \x0c \x1c"


def test_separators_marks_and_blank_lines(tmp_path):
    records = [{"text": SEPARATORS}, {"text": "Grüße"}]
    lines = "\r\n\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\n  \n")
    assert read_json_lines(tmp_path / "a.jsonl") == [(1, records[0]), (3, records[1])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": ', "line 2 .* not JSON"),
        (b"[1, 2]", "line 1 .* no JSON object"),
        (b"null\n", "line 1 .* no JSON object"),
        (b'{"a": "\xff"}', "UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "UTF-8"),
        (b"\n \n", "empty"),
        (b"", "empty"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(VistokError, match=message) as caught:
        read_json_lines(tmp_path / "a.jsonl", "captions file")
    assert "a.jsonl" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(VistokError, match="cannot read the captions file"):
        read_json_lines(tmp_path / "absent.jsonl", "captions file")


METADATA = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]}
READERS = {
    "metadata": (read_metadata, METADATA | {"prompt": SEPARATORS}),
    "results": (read_results, {"reason": SEPARATORS}),
    "answers": (read_answers, {"prediction": SEPARATORS, "answer": 3}),
    "captions": (lambda path: read_captions(path.parent, path), {"image": "a.png", "caption": SEPARATORS}),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_takes_them(tmp_path, reader):
    read, record = READERS[reader]
    (tmp_path / "a.png").write_bytes(b"")
    line = json.dumps(record, ensure_ascii=False).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line)
    assert len(read(tmp_path / "a.jsonl")) == 2


CAPTION_READERS = {
    "to score": lambda folder: [picture.caption for picture in read_captions(folder)],
    "to learn": lambda folder: read_captions_to_learn(folder, [folder / "a.png"]),
}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        *(
            (json.dumps({"image": "a.png", "caption": caption}), r"line 1 .*one text")
            for caption in (None, ["a dog", "a cat"], {"text": "a dog"}, 3)
        ),
        ('{"file_name": 3, "text": "a dog"}', r"line 1 .*has file_name 3 .*one text"),
        ('{"file": "a.png", "class": 3}', r'line 1 .* is not {"image": "a.png", "caption": "..."}'),
        ('{"caption": "a dog"}', r'line 1 .* is not {"image": "a.png", "caption": "..."}'),
        ('{"image": "a.png", "caption": " "}', r"caption of 'a.png' is empty \(line 1 "),
        ('{"image": "a.png", "caption": ', "line 1 .* not JSON"),
        ("[1]", "line 1 .* no JSON object"),
        ("", "the captions file .* is empty"),
    ],
)
@pytest.mark.parametrize("reader", CAPTION_READERS)
def test_lines_that_are_no_captions_are_told_alike(tmp_path, reader, line, message):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(VistokError, match=message) as caught:
        CAPTION_READERS[reader](tmp_path)
    assert "metadata.jsonl" in str(caught.value)


@pytest.mark.parametrize("keys", list(itertools.product(("image", "file", "file_name"), ("caption", "text"))))
@pytest.mark.parametrize("reader", CAPTION_READERS)
def test_captions_have_the_same_keys_everywhere(tmp_path, reader, keys):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "metadata.jsonl").write_text(json.dumps(dict(zip(keys, ("a.png", "a dog"), strict=True))))
    assert CAPTION_READERS[reader](tmp_path) == ["a dog"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prediction": None, "answer": "yes"}, "None"),
        ({"prediction": "yes", "answers": None}, "None"),
        ({"prediction": float("nan"), "answer": "yes"}, "nan"),
        ({"prediction": "yes", "answers": [float("inf")]}, "inf"),
        ({"prediction": "yes", "answers": [{"answer": "yes"}]}, "one text"),
        ({"prediction": ["yes"], "answer": "yes"}, "one text"),
        ({"prediction": "yes", "answers": []}, "no answers"),
        ({"prediction": "yes"}, "prediction and answers"),
    ],
)
def test_answers_are_texts(tmp_path, record, message):
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    with pytest.raises(VistokError, match=rf"line 1 .*{message}"):
        read_answers(tmp_path / "a.jsonl")


def test_one_answer_is_not_a_list_of_letters(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prediction": "yes", "answers": "yes"}')
    assert read_answers(tmp_path / "a.jsonl")[0]["answers"] == ["yes"]
    with pytest.raises(VistokError, match=r"line 1 .* expected yes or no"):
        (tmp_path / "a.jsonl").write_text('{"prediction": "yes", "answers": "a dog"}')
        read_answers(tmp_path / "a.jsonl", allowed=("yes", "no"))
