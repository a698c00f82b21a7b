"""What can be trained: a task's name leads to its class.

A published objective stands in this folder and trains on any source of pictures; what the toy world's labels add to it,
or teach alone, stands in ``scenes``.
"""

from __future__ import annotations

from vistok.errors import VistokError
from vistok.registry import Registry, require
from vistok.train.recipe import Recipe
from vistok.train.trainer import Task

_HERE = "vistok.train.tasks"
_NEEDS = ("batch", "after_step", "evaluate", "export")
TASKS = Registry(
    "training task",
    {
        "augmentation": f"{_HERE}.augmentation:AugmentationTask",
        "captions": f"{_HERE}.scenes.captions:CaptionTask",
        "chat3d": f"{_HERE}.scenes.chat3d:Chat3DTask",
        "clover": f"{_HERE}.clover:CloverTask",
        "controlar": f"{_HERE}.controlar:ControlARTask",
        "croc": f"{_HERE}.scenes.croc:CrocTask",
        "eagle": f"{_HERE}.eagle:EagleTask",
        "eagle3": f"{_HERE}.eagle3:Eagle3Task",
        "enat": f"{_HERE}.masked:ENATTask",
        "flextok": f"{_HERE}.flextok:FlexTokTask",
        "hidden-transfer": f"{_HERE}.extra_rows:HiddenTransferTask",
        "judge": f"{_HERE}.judge:JudgeTask",
        "janus": f"{_HERE}.scenes.janus:JanusTask",
        "kl": f"{_HERE}.kl:KLTask",
        "lexical-units": f"{_HERE}.lexical_units:LexicalUnitsTask",
        "llamagen": f"{_HERE}.llamagen:LlamaGenTask",
        "llamagen-sequence": f"{_HERE}.llamagen_sequence:LlamaGenSequenceTask",
        "lococo": f"{_HERE}.lococo:LoCoCoTask",
        "long-text": f"{_HERE}.long_text:LongTextTask",
        "mar": f"{_HERE}.mar:MARTask",
        "maskgit": f"{_HERE}.masked:MaskGITTask",
        "medusa": f"{_HERE}.extra_rows:MedusaTask",
        "needles": f"{_HERE}.needles:NeedleTask",
        "one-d-piece": f"{_HERE}.one_d_piece:OneDPieceTask",
        "pink": f"{_HERE}.scenes.pink:PinkTask",
        "prompt-tokens": f"{_HERE}.extra_rows:PromptTokensTask",
        "read": f"{_HERE}.scenes.read:ReadTask",
        "scenes-features": f"{_HERE}.scenes.features:SceneFeaturesTask",
        "seed": f"{_HERE}.seed:SeedTask",
        "seed-llama": f"{_HERE}.scenes.seed_llama:SeedLlamaTask",
        "sorted-text": f"{_HERE}.sorted_text:SortedTextTask",
        "text": f"{_HERE}.text:TextTask",
        "tokenflow": f"{_HERE}.tokenflow:TokenFlowTask",
        "tokenunify": f"{_HERE}.tokenunify:TokenUnifyTask",
        "vpt": f"{_HERE}.scenes.vpt:VptTask",
        "vq": f"{_HERE}.vq:VQTask",
        "vq-upscaled": f"{_HERE}.vq_upscaled:UpscaledVQTask",
        "vqa": f"{_HERE}.scenes.vqa:VqaTask",
        "vqa-anyres": f"{_HERE}.scenes.vqa_anyres:AnyresTask",
        "vqa-concentric": f"{_HERE}.scenes.vqa_layers:ConcentricTask",
        "vqa-pmod": f"{_HERE}.scenes.vqa_layers:PModTask",
        "vqa-pvc": f"{_HERE}.scenes.vqa_pvc:PvcTask",
        "vqa-tokenpacker": f"{_HERE}.scenes.vqa_tokenpacker:TokenPackerTask",
        "xar": f"{_HERE}.xar:XARTask",
    },
    "vistok.tasks",
    needs=_NEEDS,
)
SUPERVISED = Registry(
    "supervised task",
    {
        "controlar": f"{_HERE}.scenes.controlar:SupervisedControlARTask",
        "enat": f"{_HERE}.scenes.masked:SupervisedENATTask",
        "flextok": f"{_HERE}.scenes.flextok:SupervisedFlexTokTask",
        "llamagen": f"{_HERE}.scenes.llamagen:SupervisedLlamaGenTask",
        "llamagen-sequence": f"{_HERE}.scenes.llamagen_sequence:SupervisedSequenceTask",
        "mar": f"{_HERE}.scenes.mar:SupervisedMARTask",
        "maskgit": f"{_HERE}.scenes.masked:SupervisedMaskGITTask",
        "xar": f"{_HERE}.scenes.xar:SupervisedXARTask",
    },
    "vistok.supervised_tasks",
    needs=_NEEDS,
)


def build_task(recipe: Recipe) -> Task:
    """Returns the task that a recipe names; with ``data.supervision``, its variant that scenes' labels teach as well.

    Raises:
        VistokError: unknown task, an entry that it does not know, or supervision of pictures that have no labels.
    """
    if "supervision" not in recipe.data or recipe.task not in SUPERVISED:
        return require(f"the training task '{recipe.task}'", TASKS[recipe.task](recipe), ("model", *_NEEDS))
    if recipe.data.get("source", "scenes") != "scenes":
        raise VistokError(
            "'data.supervision' teaches what scenes show, and of other pictures this is not known: leave it out."
        )
    return SUPERVISED[recipe.task](recipe)
