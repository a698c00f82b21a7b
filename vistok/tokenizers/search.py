"""The fewest tokens that reach a quality, by binary search over prefixes of a whole batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.tokenizers.interface import Tokenizer, noise_of


@torch.no_grad()
def fewest_tokens(
    tokenizer: Tokenizer, images: Tensor, tokens: Tensor, reached: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """How many first tokens each picture needs. Nothing is encoded again.

    Where decoding draws noise, it is that of seed 0 for every picture, whatever is beside it.

    Quality is taken to grow with the number of tokens; where it does not, the number found still reaches the quality,
    but a smaller one may as well.

    Args:
        tokenizer: decodes prefixes.
        images: [B, 3, H, W] in [-1, 1].
        tokens: all tokens of the pictures, [B, N].
        reached: (images, reconstructions) -> bool [B], whether the quality is reached.

    Returns:
        Lengths int64 [B], and whether each reaches the quality, bool [B]; where none does, the length is all tokens.

    Raises:
        VistokError: the tokenizer decodes all tokens of a picture and no fewer.
    """
    lengths = tokenizer.capabilities.lengths
    if not tokenizer.capabilities.variable_length:
        raise VistokError("this tokenizer decodes all tokens of a picture and no fewer: there is no length to choose.")
    candidates = torch.tensor([length for length in lengths if length <= tokens.shape[1]])
    low = torch.zeros(len(tokens), dtype=torch.long)
    high = torch.full_like(low, len(candidates) - 1)

    def good_enough(chosen: Tensor) -> Tensor:
        noise = noise_of(tokenizer, [0] * len(tokens))
        return reached(images, tokenizer.decode(tokens, candidates[chosen], **noise)).cpu()

    whole = good_enough(high)
    while bool((low < high).any()):
        middle = (low + high) // 2
        good = good_enough(middle)
        high = torch.where(good, middle, high)
        low = torch.where(good, low, torch.minimum(middle + 1, high))
    found = torch.where(whole, candidates[high], candidates[-1])
    return found, whole
