"""What a command imports: modules are counted, as seconds depend on the machine."""

import json
import subprocess
import sys

import pytest

HEAVY = ("transformers", "torchvision", "scipy", "sympy", "torch._dynamo", "torch.distributed.tensor", "accelerate")


def modules(code: str) -> list[str]:
    """Names of all modules that are loaded when a program ends."""
    report = "; import json, sys; print('\\n' + json.dumps(list(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def command(*words: str) -> str:
    return f"from vistok.cli.main import app; app({list(words)!r}, standalone_mode=False)"


@pytest.mark.parametrize("code", ["import vistok", command("--help"), command("sample", "--help")])
def test_nothing_heavy_is_imported_before_a_command_runs(code):
    loaded = modules(code)
    assert not {"torch", "numpy", "PIL", *HEAVY} & set(loaded)
    assert len(loaded) < 600


@pytest.mark.parametrize("model", ["llamagen", "llamagen-flextok-mini", "mar"])
def test_sampling_from_an_embedded_model_needs_no_transformers(tmp_path, model):
    words = condition(model) + (["--tokens", "8"] if "flextok" in model else [])
    loaded = modules(command("sample", "--model", model, *words, "--out", str(tmp_path / "out.png")))
    assert not set(HEAVY) & set(loaded)
    assert len(loaded) < 1700


def condition(model: str) -> list[str]:
    return ["--class", "1", "--sampler", "mar:iterations=2"] if model == "mar" else ["--prompt", "a red circle"]
