"""Compressors under what wraps a model: PEFT, and lmms-eval by its plugin hook."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

import pytest
import torch

from tests.projectors import tiny
from vistok.errors import VistokError
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
    """A stand-in for lmms-eval with its plugin hook and a ``llava_hf`` that builds a toy model."""

    class LlavaHf:
        def __init__(self, pretrained: str, batch_size: int = 1):
            self.model, self.pretrained, self.batch_size = tiny.llava(), pretrained, batch_size

    folder = ModuleType("lmms_eval.models")
    folder.__path__ = []
    module = ModuleType("lmms_eval.models.llava_hf")
    module.LlavaHf = LlavaHf
    for name, value in {"lmms_eval": ModuleType("lmms_eval"), folder.__name__: folder, module.__name__: module}.items():
        monkeypatch.setitem(sys.modules, name, value)
    plugin = "vistok.eval.harnesses.lmms"
    ((name, kind),) = import_module(f"{plugin}.models").AVAILABLE_MODELS.items()
    yield getattr(import_module(f"{plugin}.models.{name}"), kind)
    sys.modules.pop(f"{plugin}.models.{name}")


def test_lmms_eval_takes_the_compressor_from_its_model_arguments(harness):
    lm = harness(method="vtc-cls", keep="25%", pretrained="any", batch_size=1)
    inputs = tiny.llava_inputs(pictures=(1,), lengths=((4, 3),))
    lm.compression.compressor.start = -2
    lm.model.generate(**inputs, max_new_tokens=1)
    assert lm.compression.last.after == [9]
    assert lm.pretrained == "any"
    with pytest.raises(VistokError, match="did you mean"):
        harness(method="vtccls", pretrained="any")
