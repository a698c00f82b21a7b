"""Modules that were called otherwise until 0.1: the former names still import, and say once what they are now."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Folder of today, and the modules that have moved there under their own names.
_FOLDERS = {
    "vistok.projectors.methods": (
        "vistok.projectors",
        "baselines correlation coverage divprune fastv globalcom2 prumerge tome visionzip vtc_cls",
    ),
    "vistok.projectors.learned": ("vistok.projectors", "pvc pvc_llava tokenpacker"),
    "vistok.projectors.apply": ("vistok.projectors", "compress layout shrink"),
    "vistok.eval.sets": (
        "vistok.eval",
        "extractors features frechet inception_score kernel manifold pictures reference resize statistics",
    ),
    "vistok.samplers.policies": ("vistok.samplers.text", "chains dyspec rsd trees"),
    "vistok.samplers.drafters": ("vistok.samplers.text", "draft_model eagle_head lookup recycling"),
}
MOVED = {
    f"{former}.{name}": f"{folder}.{name}" for folder, (former, names) in _FOLDERS.items() for name in names.split()
} | {
    "vistok.data.files": "vistok.files",
    "vistok.data.stdlib": "vistok.data.text",
    "vistok.eval.benchmarks": "vistok.eval.answers.benchmarks",
    "vistok.eval.inception": "vistok.models.vision.inception",
    "vistok.eval.keep_curves": "vistok.eval.answers.keep_curves",
    "vistok.eval.lpips": "vistok.models.vision.lpips",
    "vistok.eval.rate_distortion": "vistok.eval.reconstruction.rate_distortion",
    "vistok.eval.scenes_features": "vistok.models.vision.scenes",
    "vistok.eval.tokenizer_report": "vistok.eval.reconstruction.report",
    "vistok.eval.vqa": "vistok.eval.answers.scorers",
    "vistok.models.eagle": "vistok.models.heads.eagle",
    "vistok.models.pretrained": "vistok.zoo.pretrained",
    "vistok.models.text": "vistok.models.text_encoder",
    "vistok.projectors.attention": "vistok.models.families.attention",
    "vistok.projectors.capture": "vistok.models.families.capture",
    "vistok.projectors.ask": "vistok.eval.answers.ask",
    "vistok.projectors.layer_pruning": "vistok.projectors.apply.layers",
    "vistok.projectors.lmms": "vistok.eval.harnesses.lmms",
    "vistok.projectors.scenes_vqa": "vistok.data.scenes.vqa",
    "vistok.projectors.vision": "vistok.projectors.interface",
    "vistok.samplers.autoregressive": "vistok.samplers.drafters.plain",
    "vistok.samplers.candidates": "vistok.samplers.verifiers.candidates",
    "vistok.samplers.eagle": "vistok.samplers.drafters.eagle",
    "vistok.samplers.exact": "vistok.samplers.verifiers.exact",
    "vistok.samplers.jacobi": "vistok.samplers.drafters.jacobi",
    "vistok.samplers.lantern": "vistok.samplers.verifiers.lantern",
    "vistok.samplers.law": "vistok.samplers.params",
    "vistok.samplers.relaxed": "vistok.samplers.verifiers.relaxed",
    "vistok.samplers.target": "vistok.samplers.targets.llamagen",
    "vistok.samplers.text": "vistok.samplers",
    "vistok.samplers.text.generate": "vistok.samplers.speculation",
    "vistok.samplers.text.load": "vistok.zoo.transformers",
    "vistok.samplers.text.target": "vistok.samplers.targets.causal_lm",
    "vistok.samplers.trees": "vistok.samplers.policies.trees",
    "vistok.samplers.window": "vistok.samplers.cost",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds a module under its former name, which then stands for the one of today."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Returns where a module that has moved is found; None of all others."""
        return ModuleSpec(name, self, is_package=True) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Lets the module look its names up where they live now."""
        former = module.__name__
        warnings.warn(f"{former} is {MOVED[former]} now: import from there.", FutureWarning, stacklevel=2)
        today = import_module(MOVED[former])
        module.__doc__ = today.__doc__
        module.__getattr__ = lambda name: getattr(today, name)


def install() -> None:
    """Makes the former names importable; they are looked up where no module is found, and cost nothing else."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
