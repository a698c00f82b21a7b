"""Token sequences as a language (Chan et al., "Analyzing the Language of Visual Tokens", arXiv 2411.05001).

No code of the paper is public; the definitions here are ours. Input is int64 [pictures, tokens] in raster order.
N-grams do not cross pictures. Fits are unweighted least squares on natural logarithms; entropies are in bits.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.eval.plots import new_figure, save_figure
from vistok.eval.protocol import Protocol, Result


@dataclass(frozen=True)
class LineFit:
    """A line y = intercept + slope * x that was fitted by least squares.

    Attributes:
        slope, intercept: of the line.
        r2: share of the variance that it explains; 1 where all y are equal.
    """

    slope: float
    intercept: float
    r2: float


def fit_line(x: Tensor, y: Tensor) -> LineFit:
    """Returns the least-squares line of y on x, float64 [n] each.

    Raises:
        VistokError: fewer than two different x.
    """
    x, y = x.double(), y.double()
    spread = (x - x.mean()).square().sum()
    if not spread > 0:
        raise VistokError(f"a line needs at least two different points, got {len(x)}: take more pictures.")
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    intercept = y.mean() - slope * x.mean()
    total = (y - y.mean()).square().sum()
    rest = (y - intercept - slope * x).square().sum()
    return LineFit(slope.item(), intercept.item(), 1.0 if not total > 0 else (1 - rest / total).item())


def _check(tokens: Tensor) -> None:
    if tokens.ndim != 2 or not tokens.numel() or tokens.is_floating_point() or int(tokens.min()) < 0:
        raise VistokError(
            f"statistics need token ids [pictures, tokens], at least 0, got {tokens.dtype} {list(tokens.shape)}."
        )


def _ngram_ids(tokens: Tensor, n: int) -> Tensor:
    """An id for every window of n tokens, equal for equal windows, int64 [pictures, L - n + 1]."""
    base = int(tokens.max()) + 1
    ids = tokens
    for length in range(2, n + 1):
        # Ids are made dense at every step, so that they never overflow whatever n and the codebook.
        _, dense = ids[:, :-1].unique(return_inverse=True)
        ids = dense * base + tokens[:, length - 1 :]
    return ids


def check_ngrams(tokens: Tensor, n: int) -> None:
    """Refuse n-grams of more tokens than a picture has, or of none.

    Raises:
        VistokError: the tokens [pictures, L] have none of them.
    """
    if not 1 <= n <= tokens.shape[1]:
        raise VistokError(f"{n}-grams need pictures of at least {n} tokens, got {tokens.shape[1]}.")


def ngram_counts(tokens: Tensor, n: int) -> Tensor:
    """Returns how often each n-gram occurs, most frequent first, int64.

    Raises:
        VistokError: pictures have fewer than n tokens.
    """
    _check(tokens)
    check_ngrams(tokens, n)
    return _ngram_ids(tokens, n).unique(return_counts=True)[1].sort(descending=True).values


def zipf_fit(counts: Tensor) -> LineFit:
    """Returns the line of log frequency over log rank; natural language has a slope near -1."""
    ranks = torch.arange(1, len(counts) + 1).double()
    return fit_line(ranks.log(), counts.sort(descending=True).values.double().log())


def entropy_bits(counts: Tensor, miller_madow: bool = False) -> float:
    """Returns the entropy of the empirical distribution in bits.

    Args:
        counts: [types].
        miller_madow: add (types - 1) / (2 tokens ln 2), the first-order correction for small samples.
    """
    p = counts.double() / counts.sum()
    entropy = torch.special.entr(p).sum().item() / math.log(2)
    return entropy + (len(counts) - 1) / (2 * int(counts.sum()) * math.log(2)) * miller_madow


def huffman_bits(counts: Tensor) -> float:
    """Returns the mean length of a Huffman code of these counts; 0 for a single type."""
    heap = counts.tolist()
    total, cost = sum(heap), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        cost += merged
        heapq.heappush(heap, merged)
    return cost / total


def types_per_image(tokens: Tensor) -> Tensor:
    """Returns the number of distinct tokens in the first i + 1 pictures, int64 [pictures]: how fast new ones end."""
    _check(tokens)
    flat = tokens.flatten()
    _, dense = flat.unique(return_inverse=True)
    first = torch.full((int(dense.max()) + 1,), len(flat)).scatter_reduce(0, dense, torch.arange(len(flat)), "amin")
    new = torch.bincount(first // tokens.shape[1], minlength=len(tokens))
    return new.cumsum(0)


def heaps_fit(tokens: Tensor) -> LineFit:
    """Returns the line of log vocabulary over log tokens seen, one point a picture: the slope is Heaps' beta."""
    seen = torch.arange(1, len(tokens) + 1) * tokens.shape[1]
    return fit_line(seen.double().log(), types_per_image(tokens).double().log())


def benford_divergence(counts: Tensor) -> float:
    """Returns the Kullback-Leibler divergence in bits of the counts' leading digits from Benford's law."""
    digits = torch.tensor([int(str(count)[0]) for count in counts.tolist()])
    p = torch.bincount(digits, minlength=10)[1:].double() / len(digits)
    law = (1 + 1 / torch.arange(1, 10).double()).log10()
    return torch.special.xlogy(p, p / law).sum().item() / math.log(2)


def ngram_probabilities(train: Tensor, test: Tensor, order: int, codebook_size: int) -> Tensor:
    """Returns the probability of each held-out token under an n-gram model, by Witten-Bell down to the uniform law.

    Args:
        train, test: int64 [pictures, L].
        order: n; the first tokens of a picture see a shorter history.
        codebook_size: K of the uniform law.

    Returns:
        float64, of the shape of ``test``.

    Raises:
        VistokError: lengths differ, or tokens lie outside the codebook.
    """
    _check(train)
    _check(test)
    if train.shape[1] != test.shape[1]:
        raise VistokError(f"pictures of {train.shape[1]} and {test.shape[1]} tokens cannot be compared.")
    both, split = torch.cat([train, test]), len(train)
    if int(both.max()) >= codebook_size:
        raise VistokError(f"token {int(both.max())} lies outside the codebook of {codebook_size}.")
    probability = torch.full(test.shape, 1 / codebook_size, dtype=torch.float64)
    history = torch.zeros_like(both)  # ids of the tokens before; none for the first order
    for length in range(1, order + 1):
        start = length - 1
        _, whole = (history * codebook_size + both[:, start:]).unique(return_inverse=True)
        size, contexts = int(whole.max()) + 1, int(history.max()) + 1
        counts = torch.bincount(whole[:split].flatten(), minlength=size)
        context_of = torch.zeros(size, dtype=torch.long).scatter_(0, whole.flatten(), history.flatten())
        tokens_after = torch.zeros(contexts, dtype=torch.long).index_add_(0, context_of, counts)
        types_after = torch.zeros(contexts, dtype=torch.long).index_add_(0, context_of, (counts > 0).long())
        here = counts[whole[split:]].double()
        total, types = (after[history[split:]].double() for after in (tokens_after, types_after))
        lower = probability[:, start:]
        probability[:, start:] = torch.where(total > 0, (here + types * lower) / (total + types).clamp_min(1), lower)
        history = whole[:, :-1]
    return probability


def ngram_perplexity(train: Tensor, test: Tensor, order: int, codebook_size: int) -> float:
    """Returns the exponential of the mean surprise of held-out tokens; see ``ngram_probabilities``."""
    return math.exp(-ngram_probabilities(train, test, order, codebook_size).log().mean().item())


def check_split(pictures: int, held_out: float) -> int:
    """Returns how many of so many pictures the n-gram models learn from; the others are scored.

    Raises:
        VistokError: one of the two parts is empty.
    """
    split = pictures - round(held_out * pictures)
    if not 0 < split < pictures:
        raise VistokError(f"{pictures} pictures leave none to score or none to learn from: take more.")
    return split


def language_statistics(
    tokens: Tensor, codebook_size: int, ngrams: Sequence[int] = (1, 2, 3), held_out: float = 0.2
) -> dict[str, Any]:
    """Returns all statistics of a corpus.

    Args:
        tokens: int64 [pictures, L].
        codebook_size: K.
        ngrams: which n.
        held_out: share of pictures, the last ones, on which the n-gram models are scored.

    Returns:
        ``usage``, ``types_per_image``, ``heaps_beta``, ``heaps_r2``, and by n ``counts``, ``entropy_bits``,
        ``zipf_slope``, ``zipf_r2``, ``huffman_bits``, ``benford_divergence``, ``perplexity``; ``compression``, the
        share of the fixed-length code of the used vocabulary that a Huffman code of single tokens saves.

    Raises:
        VistokError: no token ids, or too few pictures.
    """
    _check(tokens)
    split = check_split(len(tokens), held_out)
    tokens = tokens.cpu()
    innovation, heaps = types_per_image(tokens), heaps_fit(tokens)
    by_n: dict[int, dict[str, Any]] = {}
    for n in ngrams:
        counts = ngram_counts(tokens, n)
        zipf = zipf_fit(counts)
        by_n[n] = {
            "counts": counts,
            "entropy_bits": entropy_bits(counts),
            "zipf_slope": zipf.slope,
            "zipf_r2": zipf.r2,
            "huffman_bits": huffman_bits(counts),
            "benford_divergence": benford_divergence(counts),
            "perplexity": ngram_perplexity(tokens[:split], tokens[split:], n, codebook_size),
        }
    used = ngram_counts(tokens, 1)
    fixed = max(1, (len(used) - 1).bit_length())
    return {
        "usage": len(used) / codebook_size,
        "types_per_image": innovation,
        "heaps_beta": heaps.slope,
        "heaps_r2": heaps.r2,
        "compression": 1 - huffman_bits(used) / fixed,
        "ngrams": by_n,
    }


def language_results(
    name: str, weights: str, statistics: dict[str, Any], reference: str, pictures: int
) -> list[Result]:
    """Returns the statistics as results: one of the vocabulary, and one of each n.

    Args:
        name: of the tokenizer.
        weights: SHA-256 of its weights.
        statistics: of ``language_statistics``.
        reference: what was tokenized.
        pictures: how many.
    """

    def result(metric: str, value: float, details: dict[str, float]) -> Result:
        protocol = Protocol(metric, weights=weights[:12], reference=reference, samples=pictures)
        return Result(name, value, protocol, details=details)

    vocabulary = {key: statistics[key] for key in ("heaps_beta", "heaps_r2", "compression")}
    types = statistics["types_per_image"]
    # Innovation: the share of all types that the first tenth of the pictures already shows.
    vocabulary["types"] = float(types[-1])
    vocabulary["types_in_first_tenth"] = (types[max(0, len(types) // 10 - 1)] / types[-1]).item()
    found = [result("codebook usage", statistics["usage"], vocabulary)]
    for n, entry in statistics["ngrams"].items():
        details = {key: value for key, value in entry.items() if key not in ("counts", "perplexity")}
        found.append(result(f"{n}-gram perplexity", entry["perplexity"], details))
    return found


def plot_language(statistics: dict[str, Any], path: str | Path) -> None:
    """Draws rank-frequency curves and the growth of the vocabulary into a file.

    Args:
        statistics: of ``language_statistics``.
        path: picture to write.

    Raises:
        VistokError: matplotlib is not installed.
    """
    figure = new_figure(9, 4)
    ranks, growth = figure.subplots(1, 2)
    for n, entry in statistics["ngrams"].items():
        counts = entry["counts"].numpy()
        ranks.loglog(range(1, len(counts) + 1), counts, label=f"{n}-grams, slope {entry['zipf_slope']:.2f}")
    ranks.set(xlabel="rank", ylabel="frequency", title="Zipf")
    ranks.legend()
    types = statistics["types_per_image"].numpy()
    growth.plot(range(1, len(types) + 1), types)
    growth.set(xlabel="pictures", ylabel="distinct tokens", title=f"Innovation, beta {statistics['heaps_beta']:.2f}")
    save_figure(figure, path)
