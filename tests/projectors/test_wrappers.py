"""Compressors under what wraps a model: PEFT, and lmms-eval by its plugin hook."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.projectors import tiny
from vistok.eval.answers.questions import read_questions, scene_questions
from vistok.eval.harnesses.lmms import tasks
from vistok.eval.harnesses.lmms.tasks import write_scenes_task
from vistok.projectors import VtcCls, compress
from vistok.projectors.apply.compress import active


def adapted():
    """A real PEFT model: LoRA on the language model's queries and values, with adapters that say something."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
    torch.manual_seed(1)
    return peft.get_peft_model(tiny.llava(), config).eval()


def test_peft_model_generates_and_is_given_back():
    model, inputs = adapted(), tiny.llava_inputs(pictures=(1, 1))
    with torch.no_grad():
        plain = model(**inputs).logits
    length = inputs["input_ids"].shape[1]
    with compress(model, VtcCls(keep=1.0, start=-2)), torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, plain, atol=1e-5, rtol=0)
    with compress(model, VtcCls(keep=9, start=-2)) as compression:
        tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert compression.last.after == [9, 9]
        assert torch.equal(tokens[:, :length], inputs["input_ids"])
        assert tokens.shape[1] == length + 3
        merged = model.merge_and_unload()
        assert torch.equal(merged.generate(**inputs, max_new_tokens=3, do_sample=False), tokens)
    assert active(merged) is None


def test_peft_adapters_learn_under_compression():
    model, inputs = adapted(), tiny.llava_inputs(pictures=(1, 1))
    with compress(model, VtcCls(keep=9, start=-2)):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
    grads = [p.grad for n, p in model.named_parameters() if "lora" in n]
    assert grads
    assert all(g is not None and torch.isfinite(g).all() for g in grads)
    with torch.no_grad():
        torch.testing.assert_close(loss, compressed_loss(model, inputs), atol=1e-6, rtol=0)


def compressed_loss(model, inputs):
    with compress(model.get_base_model(), VtcCls(keep=9, start=-2)):
        return model.get_base_model()(**inputs, labels=inputs["input_ids"]).loss


@pytest.fixture
def harness(monkeypatch):
    """A stand-in for lmms-eval with the chat class of ``llava_hf`` that builds a toy model."""

    class LlavaHf:
        def __init__(self, pretrained: str, device: str, device_map: str, batch_size: int = 1):
            self.model, self.pretrained, self.batch_size = tiny.llava(), pretrained, batch_size
            self.places = device, device_map
            self._image_processor = SimpleNamespace(chat_template=None)

    names = ["lmms_eval", "lmms_eval.models", "lmms_eval.models.chat", "lmms_eval.models.chat.llava_hf"]
    modules = {name: ModuleType(name) for name in names}
    for name in names[:-1]:
        modules[name].__path__ = []
    modules[names[-1]].LlavaHf = LlavaHf
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    plugin = "vistok.eval.harnesses.lmms"
    name, kind = next(iter(import_module(f"{plugin}.models").AVAILABLE_MODELS.items()))
    yield getattr(import_module(f"{plugin}.models.{name}"), kind)
    sys.modules.pop(f"{plugin}.models.{name}")


def test_lmms_eval_takes_the_compressor_from_its_model_arguments(harness):
    """tests/eval/test_lmms_eval.py has the real package, where it is installed."""
    lm = harness(method="vtc-cls", keep="25%", pretrained="any", batch_size=1, device="cpu", device_map="")
    inputs = tiny.llava_inputs(pictures=(1,), lengths=((4, 3),))
    lm.compression.compressor.start = -2
    lm.model.generate(**inputs, max_new_tokens=1)
    assert lm.compression.last.after == [9]
    assert lm.pretrained == "any"
    assert lm.places == ("cpu", "cpu")  # transformers refuses an empty device map
    assert harness.is_simple
    assert not lm.is_simple  # the chat class's requests
    assert "<image>" in lm._image_processor.chat_template


def test_what_is_refused_ends_lmms_evals_run(harness):
    """lmms-eval logs an error and goes on: an exception would be a wrong answer, and the exit code 0."""
    with pytest.raises(SystemExit, match="did you mean"):
        harness(method="vtccls", pretrained="any")
    lm = harness(method="vtc-cls", keep=1000, pretrained="any")
    with pytest.raises(SystemExit, match="1000 tokens"):
        lm.model.generate(**tiny.llava_inputs(), max_new_tokens=1)


@pytest.mark.parametrize("per_scene", [1, 3])
def test_the_task_of_scenes_holds_what_vqa_asks(tmp_path, per_scene):
    path = write_scenes_task(tmp_path / "task", side=16, scenes=2, per_scene=per_scene)
    mine, theirs = read_questions(path), scene_questions(16, 2, per_scene)
    assert [(a.question, a.answers) for a in mine] == [(a.question, a.answers) for a in theirs]
    assert len(list(path.parent.glob("*.png"))) == 2
    line = json.loads(path.read_text().splitlines()[0])
    assert tasks.picture(line)[0].size == (16, 16)
    assert tasks.question(line) == theirs[0].question
    assert tasks.score(line, [theirs[0].answers[0].upper()]) == {"accuracy": 1.0}
