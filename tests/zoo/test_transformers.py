"""Models of transformers load by any name, whole and of the right architecture, or not at all."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vistok.errors import VistokError
from vistok.progress import quiet_transformers
from vistok.zoo import resolve
from vistok.zoo.transformers import load_causal_lm, load_image_text, load_model

TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from transformers import (
        AutoModel,
        CLIPConfig,
        Dinov2Config,
        Qwen2Config,
        Qwen2ForCausalLM,
        SiglipConfig,
        T5Config,
    )

    towers = {"text_config": TEXT | {"bos_token_id": 0, "eos_token_id": 1}, "vision_config": VISION}
    made = {
        "clip": CLIPConfig(**towers, projection_dim=8),
        "siglip": SiglipConfig(**towers),
        "dinov2": Dinov2Config(**VISION),
        "t5": T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
    }
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    with quiet_transformers():
        for name, config in made.items():
            AutoModel.from_config(config).save_pretrained(folder / name)
        Qwen2ForCausalLM(Qwen2Config(**TEXT)).save_pretrained(folder / "qwen2")
    return folder


def classes():
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        CLIPModel,
        Mask2FormerForUniversalSegmentation,
        T5EncoderModel,
    )

    return {
        "CLIP model": (CLIPModel, ()),
        "DINOv2 model": (AutoModel, ("dinov2",)),
        "T5 text encoder": (T5EncoderModel, ()),
        "causal LM": (AutoModelForCausalLM, ()),
        "Mask2Former model": (Mask2FormerForUniversalSegmentation, ()),
    }


RIGHT = {"clip": "CLIP model", "dinov2": "DINOv2 model", "t5": "T5 text encoder", "qwen2": "causal LM", "siglip": None}


@pytest.mark.parametrize("what", ["CLIP model", "DINOv2 model", "T5 text encoder", "causal LM", "Mask2Former model"])
@pytest.mark.parametrize("folder", RIGHT)
def test_each_loader_takes_its_own_architecture_alone(folders, folder, what):
    loader, kinds = classes()[what]
    if RIGHT[folder] == what:
        model = load_model(folders / folder, loader, what, dtype="bfloat16", model_types=kinds)
        assert not model.training and model.dtype == torch.bfloat16
        assert not any(parameter.requires_grad for parameter in model.parameters())
        return
    with pytest.raises(VistokError, match=f"{folder}' holds a {folder} .*not a {what}"):
        load_model(folders / folder, loader, what, model_types=kinds)


def _change(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["clip", "dinov2", "t5", "qwen2"])
@pytest.mark.parametrize("fault", ["missing", "shape", "truncated", "absent"])
def test_weights_that_are_not_whole_are_refused_by_name(folders, tmp_path, name, fault):
    folder = tmp_path / "copy"
    shutil.copytree(folders / name, folder)
    state = load_file(folder / "model.safetensors")
    key = next(key for key in sorted(state) if "norm" in key and "decoder" not in key)
    weights = folder / "model.safetensors"
    if fault == "missing":
        _change(folder, lambda state: state.pop(key))
    elif fault == "shape":
        _change(folder, lambda state: state.update({key: torch.zeros(3, 5)}))
    elif fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:400])
    else:
        weights.unlink()
    what = RIGHT[name]
    loader, kinds = classes()[what]
    with pytest.raises(VistokError) as refused:
        load_model(folder, loader, what, model_types=kinds)
    assert what in str(refused.value) and "copy" in str(refused.value)
    assert fault in ("truncated", "absent") or key in str(refused.value)


@pytest.mark.parametrize("value", ["64", [64], 0, -1, 10**30])
def test_sizes_that_no_network_has_are_told(tmp_path, value):
    shutil.copytree(resolve("text-mini"), tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_attention_heads": value}))
    with pytest.raises(VistokError, match=r"holds no causal LM that transformers can load \(.*[^:]\)"):
        load_causal_lm(tmp_path / "m")


def test_a_bias_that_the_configuration_leaves_out_is_not_dropped_in_silence(folders, tmp_path):
    from transformers import AutoModelForCausalLM

    shutil.copytree(folders / "qwen2", tmp_path / "m")
    _change(tmp_path / "m", lambda state: state.update({"model.layers.0.self_attn.o_proj.bias": torch.ones(16)}))
    with pytest.raises(VistokError, match=r"o_proj\.bias"):
        load_model(tmp_path / "m", AutoModelForCausalLM, "causal LM")


def test_embedded_names_folders_and_other_names():
    one, tokenizer = load_causal_lm("text-mini")
    other, _ = load_causal_lm(resolve("text-mini"), "cpu", torch.float16)
    assert one.dtype == torch.float32 and other.dtype == torch.float16 and tokenizer.padding_side == "left"
    import vistok.projectors.learned.pvc_llava  # noqa: F401 - makes the type of pvc-mini known

    model, processor = load_image_text("llava")
    assert model.config.model_type == "llava" and processor.image_processor is not None
    with pytest.raises(VistokError, match="'text-mini' holds a llama"):
        load_image_text("text-mini")
    with pytest.raises(VistokError, match="'llava' holds a llava"):
        load_causal_lm("llava")
    with pytest.raises(VistokError, match="unknown device 'mps'"):
        load_causal_lm("text-mini", "mps")
    with pytest.raises(VistokError, match="unknown dtype 'float61'"):
        load_causal_lm("text-mini", dtype="float61")


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("txt-mini", "did you mean text-mini"),
        ("./nowhere/x", "no file or folder"),
        ("owner/name:model.safetensors", "one file.*name 'owner/name'"),
        ("vq-mini", "vq-mini.*no causal LM"),
        ("llamagen", "llamagen.*no causal LM"),
    ],
)
def test_names_that_lead_to_no_language_model(name, culprit):
    with pytest.raises(VistokError, match=culprit):
        load_causal_lm(name)


def test_files_and_code_of_a_repository(folders, tmp_path):
    from transformers import AutoModelForCausalLM

    with pytest.raises(VistokError, match="is a file: name the folder of a causal LM"):
        load_causal_lm(folders / "qwen2" / "model.safetensors")
    shutil.copytree(folders / "qwen2", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.OwnLM"}}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(VistokError, match="no causal LM"):
        load_model(tmp_path / "m", AutoModelForCausalLM, "causal LM")
    assert not (tmp_path / "ran").exists()
