"""Statistics of token sequences."""

from __future__ import annotations

from tests.golden.case import Case
from vistok.eval.language import entropy_bits, heaps_fit, huffman_bits, ngram_counts, types_per_image, zipf_fit

SYSTEM = "token_stats"


def corpus(case: Case) -> None:
    tokens = case.inputs["tokens"]
    for n in case.config["ngrams"]:
        counts = ngram_counts(tokens, n)
        zipf = zipf_fit(counts)
        case.close(counts, f"counts_{n}")
        case.close(entropy_bits(counts), f"entropy_bits_{n}")
        case.close(huffman_bits(counts), f"huffman_bits_{n}")
        case.close(zipf.slope, f"zipf_slope_{n}")
        case.close(zipf.intercept, f"zipf_intercept_{n}")
        case.close(zipf.r2, f"zipf_r2_{n}")
    case.close(types_per_image(tokens), "types_per_image")
    heaps = heaps_fit(tokens)
    case.close(heaps.slope, "heaps_beta")
    case.close(heaps.intercept, "heaps_logK")


ADAPTERS = {"corpus": corpus}
