"""GenEval (arXiv 2310.11513): prompts, detectors, verdicts, summary. One protocol for COCO objects and for scenes."""

from vistok.eval.geneval.detectors import ColourClassifier, DetectedColours, Detector, SceneDetector
from vistok.eval.geneval.evaluate import GenEvalReport, evaluate_folder, score_images, write_report
from vistok.eval.geneval.folder import PromptFolder, read_folders, write_prompt_folder
from vistok.eval.geneval.judge import Detection, PictureVerdict, ScoringOptions, judge, keep
from vistok.eval.geneval.metadata import (
    TASKS,
    coco_prompts,
    read_metadata,
    scene_prompts,
    write_metadata,
)
from vistok.eval.geneval.summary import GenEvalSummary, TaskScore, summarise

__all__ = [
    "TASKS",
    "ColourClassifier",
    "DetectedColours",
    "Detection",
    "Detector",
    "GenEvalReport",
    "GenEvalSummary",
    "PictureVerdict",
    "PromptFolder",
    "SceneDetector",
    "ScoringOptions",
    "TaskScore",
    "coco_prompts",
    "evaluate_folder",
    "judge",
    "keep",
    "read_folders",
    "read_metadata",
    "scene_prompts",
    "score_images",
    "summarise",
    "write_metadata",
    "write_prompt_folder",
    "write_report",
]
