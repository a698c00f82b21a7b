"""From what a user names to a detector and its colour classifier."""

from __future__ import annotations

from vistok.errors import VistokError
from vistok.eval.geneval.detectors import ColourClassifier, DetectedColours, Detector, SceneDetector


def load_detector(name: str, clip: str | None = None, background: str = "grey") -> tuple[Detector, ColourClassifier]:
    """Returns a detector with the colour classifier that belongs to it.

    Args:
        name: ``"scenes"``, or a Mask2Former by folder or hub id.
        clip: CLIP by folder or hub id, for Mask2Former.
        background: what CLIP sees behind an object: ``"grey"``, or ``"original"``.

    Raises:
        VistokError: no such model, or Mask2Former without CLIP.
    """
    if name == "scenes":
        from vistok.data.scenes import COLOURS

        return SceneDetector(), DetectedColours(tuple(COLOURS))
    if clip is None:
        raise VistokError(
            "Mask2Former needs a CLIP for the colours: give --clip, as published openai/clip-vit-large-patch14."
        )
    from vistok.eval.clip_score import ClipModel
    from vistok.eval.geneval.mask2former import ClipColours, Mask2FormerDetector
    from vistok.runtime import processes

    device = processes().device
    return Mask2FormerDetector(name, device), ClipColours(ClipModel(clip, device), background=background)
