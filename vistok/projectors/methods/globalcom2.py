"""GlobalCom2 (arXiv 2501.05179): the thumbnail of a picture in crops decides how many and which tokens each crop keeps.

Scores are the head mean of the last layer's pre-softmax CLS logits. Crops that look important in the thumbnail keep
more; within a crop, its own scores and the thumbnail's, resized to it, count alike. No training.

The released code misplaces the kept tokens of padded crops (indices into the unpadded tokens are used as places of the
full crop), keeps the row ends of padding, keeps the thumbnail by falling score, gives every picture of a batch the
first one's thumbnail, and leaves single-view pictures whole. The default here does what the paper says;
``reference=True`` packs one picture as released, without the half-precision cast.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import Canvas, Compressor, ImageTokens, Kept, Needs, everything


class CropChoice(NamedTuple):
    """What GlobalCom2 decides of a picture in crops.

    Attributes:
        ratios: share kept of each crop, float64 [crops].
        valid: patches that show picture, bool [crops, N].
        global_scores: the thumbnail's opinion of each crop's valid patches, list of [n_j].
        kept: indices into each crop's valid patches by falling score, list of int64 [int(n_j * r_j)].
    """

    ratios: Tensor
    valid: Tensor
    global_scores: list[Tensor]
    kept: list[Tensor]


def crop_ratios(thumbnail: Tensor, rows: int, cols: int, ratio: float, temperature: float = 10.0) -> Tensor:
    """Share of tokens that each crop keeps.

    Args:
        thumbnail: scores of the thumbnail's patches, [g, g].
        rows, cols: crops.
        ratio: the share on average.
        temperature: large makes crops alike.

    Returns:
        float64 [rows * cols], at most 1.
    """
    side_rows, side_cols = thumbnail.shape
    row = (torch.arange(side_rows, device=thumbnail.device) // max(side_rows // rows, 1)).clamp(max=rows - 1)
    col = (torch.arange(side_cols, device=thumbnail.device) // max(side_cols // cols, 1)).clamp(max=cols - 1)
    cell = (row[:, None] * cols + col[None, :]).flatten()
    sums = torch.zeros(rows * cols, dtype=torch.float64, device=thumbnail.device)
    sums.index_add_(0, cell, thumbnail.flatten().double())
    weights = ((sums - sums.max()) / temperature).exp()
    share = weights / (weights.sum() + 1e-8)
    return (ratio * (1 + share - share.mean())).clamp(max=1.0)


def split_crops(canvas_map: Tensor, rows: int, cols: int) -> Tensor:
    """A map over the whole canvas as one row of patches a crop.

    Args:
        canvas_map: [rows * g, cols * g'].
        rows, cols: crops.

    Returns:
        [rows * cols, g * g'].
    """
    height, width = canvas_map.shape
    cut = canvas_map.view(rows, height // rows, cols, width // cols)
    return cut.transpose(1, 2).reshape(rows * cols, -1)


def choose_in_crops(
    thumbnail: Tensor, crops: Tensor, grid: tuple[int, int], canvas: Canvas, ratio: float, temperature: float = 10.0
) -> CropChoice:
    """Which patches of each crop to keep.

    Args:
        thumbnail: scores [N].
        crops: scores of each crop's patches, [rows * cols, N].
        grid: rows and columns of patches of a view.
        canvas: layout of the crops.
        ratio: share kept on average.
        temperature: of the shares.
    """
    height, width = grid
    rows, cols, top, bottom, left, right = canvas
    ratios = crop_ratios(thumbnail.view(grid), rows, cols, ratio, temperature)
    shown = torch.zeros(rows * height, cols * width, dtype=torch.bool, device=crops.device)
    shown[top:bottom, left:right] = True
    opinion = crops.new_zeros(shown.shape)
    if shown.any():  # of a picture as thin as a hair the crops show nothing
        opinion[top:bottom, left:right] = F.interpolate(
            thumbnail.view(1, 1, height, width).to(crops.dtype), size=(bottom - top, right - left), mode="bilinear"
        )[0, 0]
    valid, opinion = split_crops(shown, rows, cols), split_crops(opinion, rows, cols)
    combined = F.normalize(crops.masked_fill(~valid, 0), dim=1) + F.normalize(opinion, dim=1)
    counts = (valid.sum(1) * ratios).long().tolist()
    kept = [row[ok].topk(n).indices for row, ok, n in zip(combined, valid, counts, strict=True)]
    return CropChoice(ratios, valid, [row[ok] for row, ok in zip(opinion, valid, strict=True)], kept)


def released_packing(
    features: Tensor, choice: CropChoice, canvas: Canvas, grid: tuple[int, int], newline: Tensor
) -> Tensor:
    """Crop tokens as the released code packs them, its misplacement in padded crops included.

    Args:
        features: projected crops, [rows * cols, N, D].
        choice: what to keep.
        canvas, grid: layout.
        newline: [D].

    Returns:
        Kept tokens in raster order of the padded canvas, a newline after each of its rows, [n, D].
    """
    height, width = grid
    keep = torch.zeros(features.shape[:2], dtype=torch.bool, device=features.device)
    placed = torch.zeros_like(features)
    for crop, index in enumerate(choice.kept):
        keep[crop, index] = True
        placed[crop, index] = features[crop][choice.valid[crop]][index]
    shape = (canvas.rows, canvas.cols, height, width)
    keep = keep.view(shape).transpose(1, 2).reshape(canvas.rows * height, -1)
    tokens = placed.view(*shape, -1).transpose(1, 2).reshape(*keep.shape, -1)
    keep = F.pad(keep, (0, 1), value=True)
    ends = newline.to(tokens).expand(len(tokens), 1, -1)
    return torch.cat([tokens, ends], 1)[keep]


class GlobalCom2(Compressor):
    """Compresses pictures in crops as their thumbnail guides; a single view keeps its best tokens.

    Args:
        keep: share of tokens, 0..1.
        temperature: of the crops' shares.
        reference: pack as the released code does.
    """

    name = "globalcom2"
    newlines = "all"

    def __init__(self, keep: float = 0.25, temperature: float = 10.0, reference: bool = False) -> None:
        if not (isinstance(keep, float) and 0.0 < keep <= 1.0):
            raise VistokError(f"globalcom2 keeps a share of the tokens: give 0.25 or 25%, not {keep!r}.")
        self.keep = keep
        self.temperature = temperature
        self.reference = reference

    def needs(self, layers: int) -> Needs:
        return Needs(attention=(layers - 1,))

    def select(self, image: ImageTokens) -> list[Kept] | Tensor:
        if self.keep == 1.0:
            return everything(image)
        scores = image.attention[image.layers - 1].log_saliency().mean(1)  # [V, N]
        best = scores[0].topk(max(1, int(scores.shape[1] * self.keep))).indices
        if image.canvas is None:
            return [Kept(best.sort().values)]
        choice = choose_in_crops(scores[0], scores[1:], image.grid, image.canvas, self.keep, self.temperature)
        if self.reference:
            packed = released_packing(image.features[1:], choice, image.canvas, image.grid, image.newline)
            return torch.cat([image.features[0][best], packed])
        crops = [
            Kept(valid.nonzero().squeeze(1)[index.sort().values])
            for valid, index in zip(choice.valid, choice.kept, strict=True)
        ]
        return [Kept(best.sort().values), *crops]
