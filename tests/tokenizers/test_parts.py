"""A batch on a CPU runs in parts, and gives what it gives whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tokenizers.test_borders import NAMES, build, pictures
from vistok.tokenizers import parts
from vistok.tokenizers.parts import activation_bytes, in_parts


def largest(call) -> int:
    """Bytes of the largest tensor on the way."""
    with parts._Largest() as noted:
        call()
    return noted.bytes


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-4 * found.is_floating_point(), rtol=1e-4)


class Wide(nn.Module):
    """Gives 1 KiB for each number; notes the rows of every call."""

    def __init__(self):
        super().__init__()
        self.rows: list[int] = []

    @in_parts
    def widen(self, batch, offset, factor=1):
        self.rows.append(len(batch))
        return (batch[:, None] * torch.ones(256) * factor + offset[:, None]).amax(1)


@pytest.fixture
def budget(monkeypatch):
    def set_to(amount: int) -> None:
        monkeypatch.setattr(parts, "activation_bytes", lambda: amount)

    return set_to


@pytest.fixture(scope="module")
def tokenizers():
    torch.manual_seed(0)
    return {name: tokenizer.eval() for name, tokenizer in build().items()}


@pytest.mark.parametrize("kibibytes, rows", [(1, [1] * 7), (2, [1, 2, 2, 2]), (3, [2, 2, 3]), (100, [7]), (0, [1] * 7)])
@torch.no_grad()
def test_parts_are_as_large_as_their_activations_may_be_and_alike_in_size(budget, kibibytes, rows):
    budget(kibibytes * 1024)
    network, batch = Wide(), torch.arange(7.0)
    for _ in range(2):
        assert network.widen(batch, 2 * batch, factor=3).tolist() == (5 * batch).tolist()  # offsets are shared out too
    probe = [] if rows[0] == 1 and len(rows) == 7 else [1]
    assert network.rows == probe + rows + rows  # how large a row is, is found once


def test_gradients_flow_through_a_whole_batch(budget):
    budget(1024)
    network, batch = Wide(), torch.arange(4.0, requires_grad=True)
    network.widen(batch, batch).sum().backward()
    assert network.rows == [4] and batch.grad is not None


def test_the_limit_is_a_share_of_the_cache_that_parts_can_fill():
    assert 1 << 18 <= activation_bytes() <= 8 << 20


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_what_it_gives_whole(tokenizers, budget, name, rows):
    """Rounding may differ with the size of parts; the codes of these networks are not that near to each other."""
    tokenizer = tokenizers[name]
    images = pictures(tokenizer)[:1] * torch.linspace(0.2, 1, 5)[:, None, None, None]
    can = tokenizer.capabilities
    mixed = torch.tensor([can.lengths[i % 2 - 1] for i in range(5)]) if can.variable_length else None
    budget(1 << 40)
    tokens = tokenizer.encode(images)
    pixels = [tokenizer.decode(tokens, length) for length in (None, mixed)]
    tokenizer._rows_of_a_part.clear()
    budget(rows * largest(lambda: tokenizer.encode(images[:1])))
    close(tokenizer.encode(images), tokens)
    budget(rows * largest(lambda: tokenizer.decode(tokens[:1])))
    for length, expected in zip((None, mixed), pixels, strict=True):
        close(tokenizer.decode(tokens, length), expected)
    assert rows in tokenizer._rows_of_a_part.values()
    tokenizer._rows_of_a_part.clear()


@pytest.mark.parametrize("name", ["vq-mini", "kl-mini", "one-d-piece-mini"])
def test_memory_does_not_grow_with_the_batch(name):
    from vistok.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(name).tokenizer
    images = torch.rand(40, 3, 64, 64) * 2 - 1
    assert largest(lambda: tokenizer.encode(images)) <= max(activation_bytes(), images.nbytes)
