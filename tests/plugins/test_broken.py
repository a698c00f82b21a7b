"""Packages of other people that are broken: one sentence that names them, and nothing else suffers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings

import pytest
from PIL import Image

from vistok.context.registry import POLICIES
from vistok.eval.sets.interface import METRICS
from vistok.models.codes.families import CODE_GENERATORS
from vistok.models.families import FAMILIES
from vistok.models.generators import GENERATORS
from vistok.projectors.grounding.interface import GROUNDERS
from vistok.projectors.registry import COMPRESSORS
from vistok.registry import require
from vistok.samplers.named import SAMPLERS, TEXT_DRAFTERS
from vistok.samplers.targets import TARGETS
from vistok.tokenizers.load import TOKENIZERS
from vistok.train.tasks import SUPERVISED, TASKS

REGISTRIES = (
    SAMPLERS,
    TEXT_DRAFTERS,
    TARGETS,
    COMPRESSORS,
    POLICIES,
    TOKENIZERS,
    GENERATORS,
    CODE_GENERATORS,
    FAMILIES,
    METRICS,
    GROUNDERS,
    TASKS,
    SUPERVISED,
)
BROKEN = {
    "import nowhere": "cannot be imported (ModuleNotFoundError: No module named 'nowhere')",
    "def f(:": "cannot be imported (SyntaxError: ",
    "raise RuntimeError('no GPU')": "cannot be imported (RuntimeError: no GPU)",
    "1 / 0": "cannot be imported (ZeroDivisionError: division by zero)",
    "x = 1": "cannot be imported (AttributeError: ",
}
COMPRESSOR = """
import torch
from vistok.projectors import Compressor, Kept

class Mine(Compressor):
    name = "mine"

    def __init__(self, keep=0.5):
        pass

    def select(self, image):
        return {}
"""
METRIC = """
import torch
from vistok.eval.sets.interface import Measurement, Metric

class Mine(Metric):
    outputs = ()

    def compute(self, reference, samples):
        return {}
"""
TOKENIZER = """
import torch
from vistok.tokenizers import Capabilities

class Mine:
    capabilities = Capabilities(codebook_size=64, layout="grid", multiple=4)
{}
    def encode(self, images):
        return None

    def decode(self, tokens, length=None):
        return None
"""


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.group)
def test_a_plugin_that_is_nothing_of_the_kind_is_told(install, registry):
    for source, told in BROKEN.items():
        install(source, registry.group, "mine = toy:Mine")
        with pytest.raises(ValueError) as refused:
            registry["mine"]
        assert f"the {registry.kind} 'mine' of 'toy:Mine' {told}" in str(refused.value)
        assert "repair or uninstall that package" in str(refused.value)
    install("Mine = 3" if registry.made else "class Mine: pass", registry.group, "mine = toy:Mine")
    with pytest.raises(ValueError, match="is an object: name its class" if registry.made else "is a class: name an"):
        registry["mine"]
    install("class Mine: pass\nMADE = Mine()", registry.group, f"mine = toy:{'Mine' if registry.made else 'MADE'}")
    if registry.needs:
        with pytest.raises(ValueError, match=f"has no {', '.join(registry.needs)}: repair"):
            registry["mine"]


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.group)
def test_what_the_package_has_is_of_the_kind(registry):
    for name in registry.table:
        assert isinstance(require(name, registry[name], registry.needs), type) <= registry.made


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.group)
def test_a_broken_plugin_is_left_out_of_lists_by_a_warning(install, registry):
    install("import nowhere", registry.group, "mine = toy:Mine")
    with pytest.warns(UserWarning, match="'mine' of 'toy:Mine' cannot be imported"):
        assert list(registry.usable()) == list(registry.table)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.group)
def test_a_name_that_is_taken_is_told(install, registry):
    name = next(iter(registry.table))
    own = registry[name]
    install("class Mine: pass", registry.group, f"{name} = toy:Mine")
    with pytest.warns(UserWarning, match=f"'toy:Mine' adds a {registry.kind} '{name}', but there is one of this name"):
        found = registry.usable()
    assert list(found) == list(registry.table) and found[name] is own
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry[name] is own and list(registry) == list(registry.table) and len(registry) == len(found)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.group)
def test_a_name_that_two_packages_take_is_told(install, registry):
    install("class Mine: pass\nclass Other: pass", registry.group, "mine = toy:Mine")
    install("class Mine: pass\nclass Other: pass", registry.group, "mine = toy:Other", package="tin")
    with pytest.raises(ValueError, match=f"(?=.*'toy:Mine')(?=.*'toy:Other').* both add a {registry.kind} 'mine'"):
        registry["mine"]
    with pytest.warns(UserWarning, match="both add"):
        assert list(registry.usable()) == list(registry.table)


def listed_names(command: list[str], folder) -> tuple[list[str], str]:
    """The names that a command lists in a process of its own, as users run it, and what it says on stderr."""
    path = os.pathsep.join([str(folder / "site"), *sys.path])
    words = [sys.executable, "-m", "vistok", *command, "--json"]
    listed = subprocess.run(words, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    return [entry["name"] for entry in json.loads(listed.stdout)], listed.stderr


def test_commands_that_list_or_name_others_go_on(install, tmp_path):
    vistok = install("import nowhere", "vistok.samplers", "mine = toy:Mine\n[vistok.metrics]\nmine = toy:Mine")
    for command in (["samplers"], ["eval", "metrics"]):
        names, said = listed_names(command, tmp_path)
        assert len(names) > 5 and "mine" not in names
        assert re.fullmatch("vistok: the .*ModuleNotFoundError.*\n", said)
    refused = vistok("sample", "--prompt", "a red circle", "--sampler", "mine", "--out", tmp_path / "x.png")
    assert refused.returncode == 2 and "'mine' of 'toy:Mine' cannot be imported" in refused.stderr


def test_commands_go_on_where_a_plugin_takes_a_name(install, tmp_path):
    vistok = install("import nowhere", "vistok.samplers", "sjd = toy:Mine\n[vistok.metrics]\nfid = toy:Mine")
    for command, name in ((["samplers"], "sjd"), (["eval", "metrics"], "fid")):
        names, said = listed_names(command, tmp_path)
        assert names.count(name) == 1
        assert re.fullmatch(f"vistok: the package of 'toy:Mine' adds .* '{name}', but there is one of .*\n", said)
    painted = vistok("sample", "--prompt", "a red circle", "--sampler", "sjd", "--out", tmp_path / "x.png")
    assert painted.returncode == 0 and "toy:Mine" not in painted.stderr


def test_options_that_a_plugin_needs_are_told(install):
    source = """
from dataclasses import dataclass
from vistok.eval.sets.interface import Measurement, Metric

@dataclass(frozen=True)
class Mine(Metric):
    side: int

    def compute(self, reference, samples):
        return Measurement(1.0)
"""
    install(source, "vistok.metrics", "mine = toy:Mine")
    with pytest.raises(ValueError, match="'mine' cannot be made of 'mine': missing a required argument: 'side'"):
        METRICS.build("mine")
    assert METRICS.build("mine:side=3").side == 3


def test_methods_that_a_base_leaves_to_a_plugin_are_asked_for(install):
    cases = (
        (SAMPLERS, "vistok.samplers.interface:AutoregressiveSampler", "parts"),
        (COMPRESSORS, "vistok.projectors:Compressor", "select"),
        (METRICS, "vistok.eval.sets.interface:Metric", "compute"),
        (POLICIES, "vistok.context.interface:Policy", "name, attend"),
    )
    for registry, base, absent in cases:
        module, _, name = base.partition(":")
        install(f"from {module} import {name}\nclass Mine({name}): pass", registry.group, "mine = toy:Mine")
        with pytest.raises(ValueError, match=f"has no {absent}: repair"):
            registry["mine"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("None", "a list with a Kept for its one view"),
        ("[[0, 1]]", "a list with a Kept for its one view"),
        ("[Kept(torch.tensor([1]))] * 2", "a list with a Kept for its one view"),
        ("[Kept(torch.ones(4))]", "by their indices, int64"),
        ("[Kept(torch.ones(64, dtype=torch.bool))]", "by their indices, int64"),
        ("[Kept([1, 2])]", "by their indices, int64"),
        ("[Kept(torch.tensor([64]))]", "a view has the tokens 0 to 63"),
        ("[Kept(torch.tensor([-3]))]", "a view has the tokens 0 to 63"),
        ("[Kept(torch.tensor([1, 1]))]", "keeps a token twice"),
        ("[Kept(torch.tensor([-1]))]", "gives no features"),
        ("[Kept(torch.tensor([1]), torch.ones(1, 5))]", r"must give \[1, "),
        ("torch.ones(4, 7)", r"gives features \[4, 7\]"),
    ],
)
def test_a_compressor_that_keeps_what_is_not_there_is_told(install, tmp_path, given, told):
    vistok = install(COMPRESSOR.format(given), "vistok.compressors", "mine = toy:Mine")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    done = vistok("compress", "--model", "llava", "--image", "a.png", "-q", "what?", "--method", "mine", "--keep", "4")
    assert done.returncode == 2
    assert re.search(told, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("None", "gives NoneType and no Measurement"),
        ("1.0", "gives float and no Measurement"),
        ("Measurement('x')", "is of type str"),
        ("Measurement(torch.tensor(1.0))", "is of type Tensor"),
        ("Measurement(1.0, details=dict(a='b'))", "the a of mine for 'set' is of type str"),
        ("Measurement(float('nan'))", "is not a number"),
    ],
)
def test_a_metric_that_gives_no_figure_is_told(install, tmp_path, given, told):
    vistok = install(METRIC.format(given), "vistok.metrics", "mine = toy:Mine")
    (tmp_path / "set").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "set/a.png")
    done = vistok("eval", "measure", "set", "set", "--metrics", "mine", "--json", "out.json")
    assert done.returncode == 2 and told in done.stderr and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("class Mine: pass", "has no capabilities, encode, decode"),
        ("def Mine(): return None", "has no capabilities, encode, decode"),
        ("class Mine:\n    capabilities = {}\n    encode = decode = print", "must state its capabilities as"),
        (TOKENIZER.format(""), "tokens are a tensor [B, h, w], got NoneType"),
        (TOKENIZER.format("    def __init__(self, levels): ..."), "its name alone: missing a required argument"),
    ],
)
def test_a_tokenizer_that_is_none_is_told(install, tmp_path, source, told):
    vistok = install(source, "vistok.tokenizers", "mine = toy:Mine")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    done = vistok("tokenize", "a.png", "--tokenizer", "mine", "-o", "a.vtok")
    assert done.returncode == 2 and told in done.stderr and not (tmp_path / "a.vtok").exists()


def test_a_family_that_loads_no_generator_is_told(install, tmp_path):
    card = {"name": "mine", "task": "class-to-image", "family": "mine", "parameters": 1, "files": {}, "licence": "none"}
    (tmp_path / "model").mkdir()
    (tmp_path / "model/card.json").write_text(json.dumps(card | {"parts": {"tokenizer": "vq-mini"}}))
    source = """
class Family:
    name, interface, plain, options = "mine", "autoregressive", "ar", frozenset()

    def load(self, request):
        return {}

FAMILY = Family()
"""
    cases = {
        "None": "must load a generator and its tokenizer, got NoneType",
        "(3, None)": "has no family, tokens, conditional_on, image_tokens, parameters",
    }
    for given, told in cases.items():
        vistok = install(source.format(given), "vistok.generators", "mine = toy:FAMILY")
        done = vistok("sample", "--checkpoint", "model", "--class", "1", "--out", "x.png")
        assert done.returncode == 2 and told in done.stderr and not (tmp_path / "x.png").exists()
