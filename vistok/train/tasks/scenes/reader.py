"""Deep supervision for generators of scenes: what is said, what is being painted, and what is still to come.

Codes say little about a caption: most of their cross-entropy is texture. Linear maps therefore read from a middle
layer, at every token, which kind of object the token shows, how many objects of each kind begin at it or later, what
begins next and where, and what the caption says. Whoever has read the caption and seen the picture so far knows the
first two, and can plan the third. They serve training alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import COLOURS, NUM_CLASSES, render, sample_scenes
from vistok.data.scenes.world import MAX_OBJECTS
from vistok.tokenizers.interface import Tokenizer
from vistok.train.tasks.scenes.captions import FACT_SIZES
from vistok.train.tasks.scenes.plans import plan

COUNTED = 1 << 16  # tokens of scenes, in which is counted what codes show


def code_colours(tokens: Tensor, cells: Tensor, count: int) -> Tensor:
    """Returns what each code shows most often: the number of a colour of objects, or 8 for background, [count].

    Args:
        tokens: codes of some scenes, [B, n].
        cells: what the scenes' cells show, see ``plans.Plan``.
        count: size of the codebook.
    """
    background = len(COLOURS)
    shown = torch.where(cells < NUM_CLASSES, cells % background, background).long()
    seen = F.one_hot(shown, background + 1).flatten(0, 1).float()
    return torch.zeros(count, background + 1).index_add_(0, tokens.flatten(), seen).argmax(1)


@torch.no_grad()
def count_colours(tokenizer: Tokenizer, grid: int, size: int, seed: int, order: Tensor | None = None) -> Tensor:
    """Returns ``code_colours`` of a tokenizer's codes, counted in some scenes.

    Args:
        tokenizer: of pictures.
        grid: side of the grid of cells that codes stand for.
        size: side of the pictures in pixels.
        seed: of the scenes.
        order: cells of a picture's first codes, [n], which alone are counted; raster order of all cells if None.
    """
    length = grid**2 if order is None else len(order)
    scenes = sample_scenes(COUNTED // length, seed)
    codes = torch.cat([tokenizer.encode(part) for part in render(scenes, size).split(64)]).flatten(1)
    return code_colours(codes[:, :length], plan(scenes, grid, size, order).cells, tokenizer.capabilities.codebook_size)


def colour_loss(logits: Tensor, tokens: Tensor, colours: Tensor) -> Tensor:
    """Returns the cross-entropy, in nats a token, of what codes show, whatever their texture.

    A code is chosen by what it shows and then by its texture, so weighing the first choice more leaves the best law
    as it is.

    Args:
        logits: of the codes, [B, n, K].
        tokens: the codes, [B, n].
        colours: see ``code_colours``, [K].
    """
    other = colours != colours[tokens][..., None]
    return (logits.logsumexp(-1) - logits.masked_fill(other, -torch.inf).logsumexp(-1)).mean()


class ColourTerm(nn.Module):
    """A weighed ``colour_loss``.

    Args:
        colours: what each code shows, [V].
        weight: of the loss.
    """

    def __init__(self, colours: Tensor, weight: float):
        super().__init__()
        self.weight = weight
        self.register_buffer("colours", colours, persistent=False)

    def forward(self, logits: Tensor, codes: Tensor) -> Tensor:
        return self.weight * colour_loss(logits, codes, self.colours)


class FactReader(nn.Linear):
    """A linear map from hidden states to the facts of the caption that they follow, and its cross-entropy.

    Args:
        dim: width of the states.
    """

    def __init__(self, dim: int):
        super().__init__(dim, sum(FACT_SIZES))

    def forward(self, states: Tensor, facts: Tensor) -> Tensor:
        """Returns the nats a token of all facts together, at every eighth token.

        Shape:
            states: [B, n, dim].
            facts: [B, 41], see ``vistok.train.tasks.scenes.captions.facts``.
        """
        said = super().forward(states[:, ::8]).float().split(FACT_SIZES, -1)
        return sum(
            F.cross_entropy(x.transpose(1, 2), y[:, None].expand(-1, x.shape[1]))
            for x, y in zip(said, facts.unbind(1), strict=True)
        )


class SceneReader(nn.Module):
    """Linear maps from hidden states to a scene's plan and to its caption's facts, and their cross-entropies.

    Args:
        dim: width of the states.
        grid: side of the grid of tokens.
        order: cells of the tokens, [n]; raster order if None.
    """

    def __init__(self, dim: int, grid: int, order: Tensor | None = None):
        super().__init__()
        self.register_buffer("order", torch.arange(grid**2) if order is None else order, persistent=False)
        self.grid = grid
        self.now = nn.Linear(dim, NUM_CLASSES + 1)
        self.left = nn.Linear(dim, NUM_CLASSES * MAX_OBJECTS)
        self.next = nn.Linear(dim, NUM_CLASSES + 1 + 2 * grid)
        self.told = FactReader(dim)
        nn.init.constant_(self.left.bias, -4.0)  # most kinds are not there

    def forward(self, states: Tensor, cells: Tensor, kinds: Tensor, begins: Tensor, facts: Tensor) -> dict[str, Tensor]:
        """Returns the nats a token of each reading.

        ``now``: the kind of the cell; ``left``: the number of objects of each kind that are left; ``next``: kind, row
        and column of the object that begins next; ``told``: the facts of the caption.

        Shape:
            states: [B, n, dim]; entry k is what token k is predicted from.
            cells, kinds, begins: see ``plans.Plan``.
            facts: see FactReader.
        """
        count = states.shape[1]
        kinds, begins = kinds.long(), begins.long()
        now = F.cross_entropy(self.now(states).flatten(0, 1).float(), cells.flatten().long())

        coming = begins[:, None] >= torch.arange(count, device=states.device)[:, None]  # [B, n, 4]
        counts = coming.float() @ F.one_hot(kinds, NUM_CLASSES).float()  # [B, n, NUM_CLASSES]
        more = counts[..., None] > torch.arange(MAX_OBJECTS, device=states.device)  # 1, 2, 3 or 4 at least
        logits = self.left(states).unflatten(-1, (NUM_CLASSES, MAX_OBJECTS)).float()
        left = F.binary_cross_entropy_with_logits(logits, more.float(), reduction="none").sum((2, 3)).mean()

        where, which = torch.where(coming, begins[:, None], count).min(2)  # [B, n]
        none = where == count
        kind = kinds.gather(1, which).masked_fill(none, NUM_CLASSES)
        cell = self.order[where.clamp(max=count - 1)]
        row, column = (x.masked_fill(none, -100) for x in (cell // self.grid, cell % self.grid))
        logits = self.next(states).float().split([NUM_CLASSES + 1, self.grid, self.grid], -1)
        following = sum(
            F.cross_entropy(x.flatten(0, 1), y.flatten()) for x, y in zip(logits, (kind, row, column), strict=True)
        )

        told = self.told(states, facts)
        return {"now": now, "left": left, "next": following, "told": told}
