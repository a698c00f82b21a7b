"""The README's Python runs as it stands, with the models that it leaves to the reader."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from vistok.zoo import cards, resolve

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)


def given_to(block: str) -> dict:
    """The names that a block of the README takes for granted."""
    if "LlavaForConditionalGeneration" in block:
        from vistok.eval.answers.ask import load

        _, processor = load("llava-mini", "cpu")
        picture = Image.new("RGB", (64, 64), "red")
        return {"path": resolve("llava-mini"), "inputs": processor(picture, "<image>what is this", return_tensors="pt")}
    if "SpeculativeJacobi" in block:
        from transformers import AutoProcessor, JanusForConditionalGeneration

        path = resolve("janus-mini")
        model, processor = JanusForConditionalGeneration.from_pretrained(path), AutoProcessor.from_pretrained(path)
        inputs = processor(text=["a red circle"], generation_mode="image", return_tensors="pt")
        return {"model": model, "inputs": inputs, "vistok": __import__("vistok")}
    if "Speculation" in block:
        from vistok.zoo.transformers import load_causal_lm

        model, tokenizer = load_causal_lm("text-mini", "cpu")
        return {"model": model, "inputs": {**tokenizer("def read(self):", return_tensors="pt"), "max_new_tokens": 8}}
    return {}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0])
def test_python_of_the_readme_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(f"import vistok\n{block}", "README.md", "exec"), given_to(block))


def test_the_readme_names_every_embedded_model():
    assert [card.name for card in cards() if card.embedded and f"`{card.name}`" not in README] == []


def test_links_of_the_readme_lead_somewhere():
    paths = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert paths and [path for path in paths if not (Path(__file__).parents[2] / path).exists()] == []


def test_extras_that_pages_and_sentences_name_are_there_to_install():
    root = Path(__file__).parents[2]
    listed = (root / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", listed, re.M))
    files = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("vistok/**/*.py")]
    for file in files:
        for names in re.findall(
            r"(?:vistok|\.)\[([a-z,]+)\]['\"]?", " ".join(re.findall(r".*pip install.*", file.read_text()))
        ):
            assert set(names.split(",")) <= extras, file
