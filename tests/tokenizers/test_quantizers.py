"""Quantizers: exact maps between indices and codes, gradients, usage, revival, and what precision must not change."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.errors import VistokError
from vistok.tokenizers.quantizers import (
    ESTIMATORS,
    FSQ,
    BinaryQuantizer,
    CodebookUsage,
    EMAQuantizer,
    MultiScaleQuantizer,
    PhiConvs,
    ResidualQuantizer,
    SharedQuantizer,
    VectorQuantizer,
    rotation_trick,
)

FEW = settings(max_examples=25, deadline=None)
LEVELS = st.lists(st.integers(3, 9), min_size=1, max_size=6)


@FEW
@given(levels=LEVELS, seed=st.integers(0, 10**6))
def test_fsq_indices_and_codes_are_inverse_over_the_whole_codebook(levels, seed):
    quantizer = FSQ(levels)
    assert quantizer.size == math.prod(levels)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(quantizer.size, (257,), generator=generator)
    codes = quantizer.codes(ids)
    assert torch.equal(quantizer.index_of(codes), ids)
    z = 5 * torch.randn(64, len(levels), generator=generator)
    quantized = quantizer(z)
    assert torch.equal(quantizer.index_of(quantized.latents), quantized.indices)
    assert torch.allclose(quantizer.codes(quantized.indices), quantized.latents, atol=1e-6)
    assert quantized.indices.min() >= 0 and quantized.indices.max() < quantizer.size


@FEW
@given(levels=st.lists(st.integers(2, 9), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_symmetric_fsq_takes_two_levels_and_reaches_both_ends(levels, seed):
    quantizer = FSQ(levels, symmetric=True)
    ids = torch.arange(min(quantizer.size, 500))
    assert torch.equal(quantizer.index_of(quantizer.codes(ids)), ids)
    far = torch.full((1, len(levels)), 20.0)
    assert torch.equal(quantizer(far).latents, torch.ones_like(far))
    assert torch.equal(quantizer(-far).latents, -torch.ones_like(far))
    z = torch.randn(32, len(levels), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(quantizer.index_of(quantizer(z).latents), quantizer.indices(z))


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_cast_of_the_model_rounds_no_level_of_fsq(symmetric):
    """Bfloat16 tells no two whole numbers above 256 apart."""
    quantizer = FSQ([1001, 8], symmetric=symmetric).bfloat16()
    ids = torch.arange(quantizer.size)
    assert quantizer.codes(ids).dtype == torch.float32
    assert torch.equal(quantizer.index_of(quantizer.codes(ids)), ids)


def test_fsq_refuses_two_levels_in_the_published_form():
    with pytest.raises(VistokError, match=r"FSQ levels \[8, 2\] are too few.*symmetric"):
        FSQ([8, 2])


@FEW
@given(bits=st.integers(1, 18), spherical=st.booleans(), msb_first=st.booleans(), seed=st.integers(0, 10**6))
def test_binary_indices_and_codes_are_inverse(bits, spherical, msb_first, seed):
    quantizer = BinaryQuantizer(bits, spherical, msb_first=msb_first)
    ids = torch.randint(2**bits, (200,), generator=torch.Generator().manual_seed(seed))
    codes = quantizer.codes(ids)
    assert torch.equal(quantizer.indices(codes), ids)
    assert torch.allclose(codes.norm(dim=-1), torch.full((200,), 1.0 if spherical else bits**0.5))


def test_binary_bit_order_and_zero():
    assert BinaryQuantizer(3).indices(torch.tensor([[1.0, -1.0, 0.0]])).item() == 4
    assert BinaryQuantizer(3, msb_first=False).indices(torch.tensor([[1.0, -1.0, 0.0]])).item() == 1


def test_entropies_by_groups_of_bits_agree_with_the_whole_table(monkeypatch):
    from vistok.tokenizers.quantizers import binary

    z = torch.randn(400, 10, generator=torch.Generator().manual_seed(0))
    quantizer = BinaryQuantizer(10, inv_temperature=1.0)
    single, of_mean = quantizer.entropies(z)
    monkeypatch.setattr(binary, "_TABLE_BITS", 4)
    monkeypatch.setattr(binary, "_GROUP_BITS", 4)
    grouped, bound = quantizer.entropies(z)
    assert grouped.item() == pytest.approx(single.item(), rel=2e-3)  # the floor of the logarithm differs
    assert of_mean.item() <= bound.item() * (1 + 1e-3) <= 10 * math.log(2) * (1 + 2e-3)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_estimators_give_the_code_exactly_and_pass_gradients_to_the_latent(name):
    z = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    code = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    out = ESTIMATORS[name](z, code)
    assert torch.allclose(out, code, atol=1e-6)
    out.sum().backward()
    assert z.grad.abs().sum() > 0


def test_the_rotation_trick_keeps_the_angle_between_gradient_and_code():
    z = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    code, weight = (torch.randn(50, 6, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    (rotation_trick(z, code) * weight).sum().backward()
    cosine = torch.nn.functional.cosine_similarity
    assert torch.allclose(cosine(z.grad, z.detach(), dim=-1), cosine(weight, code, dim=-1), atol=1e-5)
    straight = weight  # what straight-through would have given
    assert not torch.allclose(cosine(straight, z.detach(), dim=-1), cosine(weight, code, dim=-1), atol=1e-2)


def test_the_rotation_trick_survives_zero_and_opposite_latents():
    code = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    z = torch.tensor([[0.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    out = rotation_trick(z, code)
    out.sum().backward()
    assert torch.equal(out, code) and z.grad.isfinite().all()


def test_an_unknown_estimator_is_named():
    with pytest.raises(VistokError, match="unknown gradient estimator 'rotate': did you mean rotation"):
        VectorQuantizer(4, 2, gradient="rotate")


@FEW
@given(seed=st.integers(0, 10**6), cosine=st.booleans())
def test_ema_codes_converge_to_the_means_of_their_latents(seed, cosine):
    torch.manual_seed(seed)
    quantizer = EMAQuantizer(4, 5, decay=0.5, cosine=cosine)
    centres = 4 * torch.nn.functional.normalize(torch.randn(4, 5), dim=-1)
    quantizer.codebook.copy_(centres / (4 if cosine else 1))
    labels = quantizer.indices(centres)
    quantizer.sums.copy_(quantizer.codebook)
    for _ in range(40):
        quantizer(centres.repeat(8, 1))
    expected = torch.nn.functional.normalize(centres, dim=-1) if cosine else centres
    assert torch.allclose(quantizer.codes(labels), expected, atol=1e-3)


def test_ema_revival_moves_only_dead_codes():
    torch.manual_seed(0)
    quantizer = EMAQuantizer(8, 3)
    quantizer.counts[2:5] = 0.01
    before = quantizer.codebook.clone()
    z = torch.randn(2, 3, 4, 4)
    assert quantizer.revive(z, 0.5, torch.Generator().manual_seed(0)) == 3
    alive = torch.tensor([0, 1, 5, 6, 7])
    assert torch.equal(before[alive], quantizer.codebook[alive])
    pool = z.movedim(1, -1).reshape(-1, 3)
    assert all((code == pool).all(-1).any() for code in quantizer.codebook[2:5])
    assert torch.equal(quantizer.sums[2:5], quantizer.codebook[2:5] * 0.5)


def test_evaluation_leaves_ema_codes_alone():
    quantizer = EMAQuantizer(8, 3).eval()
    before = quantizer.codebook.clone()
    quantizer(torch.randn(2, 3, 4))
    assert torch.equal(before, quantizer.codebook)


def _residual(levels: int) -> ResidualQuantizer:
    quantizers = [VectorQuantizer(64, 4, l2_norm=False, usage_window=0) for _ in range(levels)]
    for level, quantizer in enumerate(quantizers):
        torch.nn.init.normal_(quantizer.embedding.weight, std=0.5**level)
    return ResidualQuantizer(quantizers)


def test_every_residual_level_brings_the_code_nearer():
    torch.manual_seed(0)
    quantizer = _residual(4)
    z = torch.randn(200, 4)
    indices = quantizer.indices(z)
    errors = [(quantizer.codes(indices[:, :k]) - z).square().mean().item() for k in range(1, 5)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 4
    quantized = quantizer(z.requires_grad_())
    assert torch.allclose(quantized.latents, quantizer.codes(indices), atol=1e-6)
    quantized.latents.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))  # passed on once, not once a level
    with pytest.raises(VistokError, match="got 5 residual levels, expected 1 to 4"):
        quantizer.codes(torch.zeros(3, 5, dtype=torch.long))


def test_residual_levels_must_agree():
    with pytest.raises(VistokError, match="one codebook size and width"):
        ResidualQuantizer([VectorQuantizer(4, 2), VectorQuantizer(8, 2)])


@pytest.mark.parametrize("phi", [False, True])
def test_multiscale_prefixes_decode_and_the_rest_is_refused(phi):
    torch.manual_seed(0)
    inner = VectorQuantizer(32, 6, l2_norm=False, usage_window=0)
    torch.nn.init.normal_(inner.embedding.weight)
    quantizer = MultiScaleQuantizer(inner, (1, 2, 4), PhiConvs(6) if phi else None).eval()
    z = torch.randn(2, 6, 4, 4)
    tokens = quantizer.indices(z)
    assert quantizer.lengths == (1, 5, 21) and tokens.shape == (2, 21)
    maps = quantizer.partial_maps(tokens)
    for length, partial in zip(quantizer.lengths, maps, strict=True):
        assert torch.equal(quantizer.codes(tokens[:, :length]).movedim(-1, 1), partial)
    torch.testing.assert_close(quantizer(z).latents, maps[-1])
    with pytest.raises(VistokError, match="4 tokens end within a scale; give 1, 5, 21"):
        quantizer.codes(tokens[:, :4])


def test_scale_drop_leaves_out_one_scale_but_never_the_first():
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(VectorQuantizer(8, 4, usage_window=0), (1, 2, 3))
    z = torch.randn(1, 4, 3, 3)
    generator = torch.Generator().manual_seed(0)
    seen = {quantizer.quantize_with_scale_drop(z, generator, 1.0).indices.shape[1] for _ in range(40)}
    assert seen == {1 + 9, 1 + 4}
    assert quantizer.quantize_with_scale_drop(z, generator, 0.0).indices.shape[1] == 14


@FEW
@given(seed=st.integers(0, 10**6), weight=st.floats(0, 3))
def test_shared_indices_minimise_the_sum_of_both_distances(seed, weight):
    torch.manual_seed(seed)
    quantizer = SharedQuantizer(40, 5, 3, pixel_weight=weight)
    z = torch.randn(2, 8, 3, 3)
    normal = torch.nn.functional.normalize
    flat = z.movedim(1, -1).reshape(-1, 8)
    semantic = (normal(flat[:, None, :5], dim=-1) - normal(quantizer.embedding_vqkd.weight, dim=-1)).square().sum(-1)
    pixel = (normal(flat[:, None, 5:], dim=-1) - normal(quantizer.embedding_vqgan.weight, dim=-1)).square().sum(-1)
    total = semantic + weight * pixel
    chosen = quantizer.indices(z).flatten()
    assert torch.allclose(total.gather(1, chosen[:, None])[:, 0], total.min(1).values, atol=1e-5)
    for half in quantizer.codes(chosen).split([5, 3], -1):
        assert torch.allclose(half.norm(dim=-1), torch.ones(18))


EVERY = {
    "FSQ": lambda: FSQ([8, 5, 5, 5]),
    "BinaryQuantizer": lambda: BinaryQuantizer(4),
    "VectorQuantizer": lambda: VectorQuantizer(64, 4),
    "VectorQuantizer, normalised": lambda: VectorQuantizer(64, 4, l2_norm=True),
    "EMAQuantizer": lambda: EMAQuantizer(64, 4),
    "SharedQuantizer": lambda: SharedQuantizer(64, 2, 2),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EVERY)
def test_in_half_precision_training_and_encoding_find_the_same_codes(name, dtype):
    quantizer = EVERY[name]().to(dtype)
    z = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    indices = quantizer.indices(z)
    found = quantizer.train()(z)
    assert torch.equal(found.indices, indices) and found.latents.dtype == torch.float32
    assert quantizer.codes(indices).shape == (3, 5, 4)


@pytest.mark.parametrize("name", EVERY)
def test_autocast_does_not_change_the_indices_and_inputs_stay_whole(name):
    quantizer = EVERY[name]().eval()
    z = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    kept = z.clone()
    expected = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        under = quantizer(z)
    assert torch.equal(under.indices, expected.indices) and under.latents.dtype == torch.float32
    assert torch.equal(z, kept) and torch.equal(quantizer.indices(z), expected.indices)
    assert expected.latents.shape == z.shape and expected.indices.shape == (3, 5)


def test_usage_counts_over_batches():
    usage = CodebookUsage(4)
    assert usage.perplexity == 0.0
    usage.update(torch.tensor([[0, 1], [1, 0]]))
    usage.update(torch.tensor([0, 1]))
    assert usage.usage == 0.5 and usage.perplexity == pytest.approx(2.0) and usage.dead.tolist() == [2, 3]
    usage.reset()
    assert usage.usage == 0.0
