"""A difference on a LLaVA: words, LoRA and rows come back as they were trained, on that LLaVA and no other."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer

from tests.train.small_llava import small_llava
from vistok.errors import VistokError
from vistok.models.extension import (
    CONFIG_FILE,
    Extension,
    extend_vocabulary,
    load_extended,
    read_extension,
    save_extension,
    word_ids,
)
from vistok.train.lora import Lora
from vistok.train.tasks.scenes.extension import ExtendedLlava
from vistok.train.tasks.scenes.llava import load_llava
from vistok.zoo.adapter import base_hashes

pytest.importorskip("peft")
WORDS = ("<SEG>", "where")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_llava(tmp_path_factory.mktemp("base"))


@pytest.fixture
def trained(base, tmp_path):
    """A difference with LoRA factors and rows that are not those of the start."""
    torch.manual_seed(0)
    extended = ExtendedLlava(load_llava(base), WORDS, Lora(rank=2, alpha=4))
    for parameter in extended.parameters():
        if parameter.requires_grad:
            parameter.data = (parameter + 0.1 * torch.randn_like(parameter)).bfloat16().float()
    extension = Extension("read", base, base_hashes(base), WORDS, {"points": 4})
    questions = torch.tensor([[[extended.ids[word] for word in ("where", "is", "the", "circle", "?", "assistant:")]]])
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 64) * 2 - 1
        visual, _ = extended.look(images)
        logits = extended.logits(extended.read(visual, questions)[1])[0, 0]
    extended.save(tmp_path, extension, {"head.weight": torch.ones(2)})
    return tmp_path, images, logits


def test_what_was_trained_is_what_loads(trained):
    folder, images, logits = trained
    model, processor, extension, state = load_extended(folder, "read")
    assert extension.words == WORDS and extension.options == {"points": 4} and list(state) == ["head.weight"]
    inputs = processor(
        images=torch.zeros(3, 64, 64), text="USER: <image>\nwhere is the circle? ASSISTANT:", return_tensors="pt"
    )
    inputs["pixel_values"] = images
    with torch.no_grad():
        found = model(**inputs).logits[0, -logits.shape[0] :]
    torch.testing.assert_close(found, logits, atol=2e-3, rtol=0)


def test_merged_factors_are_those_that_peft_merges(trained, base):
    from peft import PeftModel

    folder, *_ = trained
    model = load_extended(folder, "read")[0]
    merged = PeftModel.from_pretrained(load_llava(base), folder).merge_and_unload()
    found = dict(model.named_parameters())
    for name, parameter in merged.named_parameters():
        if "embed_tokens" not in name and "lm_head" not in name:
            torch.testing.assert_close(found[name], parameter.float(), atol=1e-4, rtol=0)


def test_the_card_of_the_adapter_names_the_base_as_the_user_did(trained, base):
    folder, *_ = trained
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    assert not (folder / "README.md").exists()


def test_another_base_is_refused(trained):
    folder, *_ = trained
    entries = json.loads((folder / CONFIG_FILE).read_text()) | {"base": "llava-mini"}
    (folder / CONFIG_FILE).write_text(json.dumps(entries))
    with pytest.raises(VistokError, match="other weights of 'llava-mini'"):
        load_extended(folder, "read")


def test_another_system_is_refused(trained):
    with pytest.raises(VistokError, match="'read' model, and a 'pink' one"):
        load_extended(trained[0], "pink")


@pytest.mark.parametrize("name", ["llava-mini", "no-such-model"])
def test_a_name_without_an_extension_is_refused(name):
    with pytest.raises(VistokError, match=name):
        read_extension(name)


def test_an_adapter_that_fits_no_weight_is_refused(trained):
    from safetensors.torch import load_file, save_file

    folder, *_ = trained
    path = folder / "adapter_model.safetensors"
    state = {key.replace("q_proj", "no_proj"): value for key, value in load_file(path).items()}
    save_file(state, path)
    with pytest.raises(VistokError, match="no_proj"):
        load_extended(folder, "read")


def test_a_processor_without_the_words_is_told_so(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    with pytest.raises(VistokError, match="does not know <SEG>"):
        word_ids(tokenizer, WORDS)
    model = load_llava(base)
    old = model.get_input_embeddings().weight.clone()
    ids = extend_vocabulary(model, tokenizer, WORDS)
    assert word_ids(tokenizer, WORDS) == ids == [len(old), len(old) + 1]
    assert torch.equal(model.get_input_embeddings().weight[: len(old)], old)
    assert extend_vocabulary(model, tokenizer, WORDS) == ids  # a second time nothing is added
    assert model.get_output_embeddings().weight.shape[0] == len(old) + 2


def test_an_extension_without_words_is_written_and_read(tmp_path):
    save_extension(tmp_path, Extension("vpt", "llava-mini", base_hashes("llava-mini")), {"a": torch.zeros(1)})
    extension, folder = read_extension(tmp_path)
    assert extension.kind == "vpt" and folder == tmp_path and extension.words == ()
