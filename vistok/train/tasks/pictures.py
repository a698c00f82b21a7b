"""What all tasks share that train on the pictures of a source."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.text_encoder import TextEncoder, shorten
from vistok.tokenizers.interface import Capabilities
from vistok.train.export import write_training_card
from vistok.train.recipe import Recipe
from vistok.train.sources import PictureData, Source
from vistok.train.trainer import Task


class PictureTask(Task):
    """A task that has a source.

    Attributes:
        recipe: the run.
        data: its ``data``.
        source: the pictures that it trains on.
    """

    recipe: Recipe
    data: PictureData
    source: Source

    def draw_pictures(self, step: int, rows: slice) -> Tensor:
        """Returns rows of a step's pictures: scenes are freshly drawn, a folder's are cropped anew in each pass."""
        return self.source.augmented(
            self.source.draw(step * self.recipe.batch_size + rows.start, rows.stop - rows.start)
        )

    def first_pictures(self, count: int) -> Tensor:
        """Returns some pictures that training sees, as they are: ``count`` of them, or all."""
        index = torch.arange(min(count, len(self.source)))
        return torch.cat([self.source.pictures(part) for part in index.split(64)])

    def held_out_index(self) -> Tensor:
        """Returns the numbers of the pictures that are evaluated on."""
        return torch.arange(min(self.data.eval_pictures, len(self.source.held_out())))

    def held_out_pictures(self, batch: int) -> Iterator[Tensor]:
        """Yields the pictures that are evaluated on, ``batch`` at a time."""
        held_out = self.source.held_out()
        for index in self.held_out_index().split(batch):
            yield held_out.pictures(index)

    def check_captions(self, encoder: TextEncoder, held_out: bool = True) -> None:
        """Refuses captions of a folder that are absent or that the encoder cannot read, before anything is trained, and
        warns of those that it reads in part.

        Args:
            encoder: of the captions.
            held_out: those of held-out pictures are read as well.

        Raises:
            VistokError: a picture has no caption, or one with words that the encoder does not know.
        """
        if self.data.source != "folder":
            return
        sources = [self.source, self.source.held_out()] if held_out else [self.source]
        captions = [text for source in sources for text in source.captions(source.draw(0, len(source)))]
        if unknown := encoder.unknown_words(captions):
            raise VistokError(
                f"the caption encoder does not know the words {', '.join(map(repr, unknown[:5]))}: name another "
                "'init.text_encoder', such as a T5, or reword the captions."
            )
        if cut := encoder.cut_captions(captions):
            warnings.warn(
                f"{len(cut)} of {len(captions)} captions have more than the {encoder.max_length} tokens that the text "
                f"encoder reads, and their ends are cut off, as of '{shorten(cut[0][0])}'",
                stacklevel=2,
            )

    def write_card(self, directory: Path, network: nn.Module, *entries: Any, **more: Any) -> None:
        """Writes the card of an exported network that was trained on the source; see ``write_training_card``."""
        write_training_card(directory, self.recipe, network, *entries, data=self.source.description, **more)


def check_size(can: Capabilities, size: int) -> None:
    """Refuses a size of pictures that the tokenizer does not take.

    Raises:
        VistokError: it is another one than the tokenizer's, or no multiple of its patches.
    """
    if can.image_size is not None and size != can.image_size:
        raise VistokError(f"'data.size' is {size}, but the tokenizer takes {can.image_size} pixels: set it to that.")
    if size % can.multiple:
        raise VistokError(f"'data.size' is {size}, but must be a multiple of {can.multiple}, the tokenizer's patch.")
