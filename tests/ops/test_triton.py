"""Every Triton kernel against its torch reference: on a GPU, or in float32 under Triton's interpreter.

Without a GPU these tests run only where ``TRITON_INTERPRET=1`` was set before Triton was first imported;
`test_triton_interpreter` starts such a process.
"""

import os

import pytest
import torch

from vistok.ops.cache import commit_rows
from vistok.ops.rope import rope_1d, rotate
from vistok.ops.sampling import sample_tokens, verify_tokens
from vistok.ops.selection import gathered_attention, vote_rows
from vistok.ops.split_kv import partial_attention
from vistok.ops.tree import PADDING, ROOT, TreeMask

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="run by test_triton_interpreter"
)
RUNS = [
    pytest.param(
        ("cpu", torch.float32), id="interpreter", marks=pytest.mark.skipif(not INTERPRETED, reason="no interpreter")
    ),
    *(
        pytest.param(
            ("cuda", dtype),
            id=f"cuda-{str(dtype)[6:]}",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
        )
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ),
]


@pytest.fixture(params=RUNS)
def run(request):
    return request.param


def close(actual, expected, dtype, atol=1e-5):
    allowed = {torch.float32: atol, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(actual.float(), expected.float(), atol=allowed, rtol=allowed)


def random_tree(batch, nodes, padding):
    parents = torch.tensor(
        [[int(torch.randint(ROOT, i, ())) if i else ROOT for i in range(nodes)] for _ in range(batch)]
    )
    if padding:
        parents[-1, nodes - padding :] = PADDING
    return parents


# batch, kv heads, group, queries, head dim, rows, padding nodes (None: chain)
SHAPES = [
    (1, 2, 1, 1, 64, 200, None),  # plain decode, more programs than outputs
    (4, 1, 3, 1, 16, 200, None),
    (2, 2, 2, 5, 100, 150, None),  # LlamaGen-3B's head dim
    (3, 1, 2, 7, 32, 200, 3),
    (2, 1, 1, 70, 16, 140, 0),  # more than one block of queries, two words
    (3, 1, 1, 2, 16, 3, 2),  # a sequence without any row
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_decode_attention(run, shape, biased):
    from vistok.ops.kernels.attention import decode_attention

    device, dtype = run
    batch, kv_heads, group, queries, dim, rows, padding = shape
    torch.manual_seed(0)
    q = torch.randn(batch, kv_heads * group, queries, dim).to(device, dtype)
    k, v = (torch.randn(batch, kv_heads, rows, dim).to(device, dtype) for _ in "kv")
    prefix = torch.randint(0, rows - queries + 1, (batch,))
    prefix[-1] = 0
    if padding is None:
        mask = TreeMask(prefix.to(device), queries)
    else:
        mask = TreeMask.from_parents(random_tree(batch, queries, padding).to(device), prefix.to(device))
    bias = torch.rand(batch, device=device) if biased else None
    visible = mask.dense(rows)
    unseen = ~visible.any(1)[:, None, :, None]
    expected, expected_lse = partial_attention(q.float(), k.float(), v.float(), visible, first_key_bias=bias, scale=0.3)
    k, v = k.masked_fill(unseen, torch.nan), v.masked_fill(unseen, torch.nan)
    out, lse = decode_attention(q, k, v, mask, first_key_bias=bias, scale=0.3)
    assert out.dtype == dtype
    close(out, expected, dtype)
    close(lse, expected_lse, dtype)


def test_decode_attention_over_strided_views_of_a_cache(run):
    from vistok.ops.kernels.attention import decode_attention

    device, dtype = run
    cache = torch.randn(2, 3, 2, 90, 32).to(device, dtype)
    q = torch.randn(3, 1, 4, 32).to(device, dtype).transpose(1, 2)  # projected as [B, T, H, D]
    mask = TreeMask(torch.tensor([80, 3, 0], device=device), 1)
    expected, _ = partial_attention(q.float(), *cache.float(), mask.dense(90))
    close(decode_attention(q, cache[0], cache[1], mask)[0], expected, dtype)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("gather", [False, True])
def test_rotate_rows(run, half, per_sequence, gather):
    from vistok.ops.kernels.rope import rotate_rows

    device, dtype = run
    x = torch.randn(2, 9, 3, 20).to(device, dtype).transpose(1, 2)
    source = torch.tensor([0, 2, 8, 5], device=device) if gather else None
    rows = 4 if gather else 9
    table = rope_1d(30, 16, device=device)
    positions = torch.randint(0, 30, (2, rows) if per_sequence else (rows,), device=device)
    taken = x[:, :, source] if gather else x
    angles = table[positions].unsqueeze(1) if per_sequence else table[positions]
    expected = rotate(taken, angles, "half" if half else "interleaved")
    close(rotate_rows(x, table[positions], source, half), expected, dtype)


CHOICES = ["shared", "kv", "query"]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 2, 3, 1, 64, 200, 150), (2, 2, 2, 5, 20, 90, 7), (2, 1, 4, 20, 16, 60, 40)], ids=str
)
def test_gathered_attention(run, shape, masked, choice):
    from vistok.ops.kernels.selection import gathered_attention as kernel

    device, dtype = run
    batch, kv_heads, group, queries, dim, rows, chosen = shape
    torch.manual_seed(3)
    heads = {"shared": 1, "kv": kv_heads, "query": kv_heads * group}[choice]
    q = torch.randn(batch, queries, kv_heads * group, dim).transpose(1, 2)
    k, v = torch.randn(2, batch, kv_heads, rows + 5, dim)[..., :rows, :]
    index = torch.rand(batch, heads, rows).argsort(-1)[..., :chosen]
    visible = torch.rand(batch, heads, queries, chosen) < 0.5 if masked else None
    if masked:
        visible[0, :, 0] = False  # a query that sees nothing
    expected = gathered_attention(q, k, v, index, visible, scale=0.3)
    rest = (index.to(device), None if visible is None else visible.to(device))
    out = kernel(*(x.to(device, dtype) for x in (q, k, v)), *rest, scale=0.3)
    assert out.dtype == dtype and out.shape == q.shape
    close(out, expected.to(device), dtype)


@pytest.mark.parametrize("modulo", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [5, 300])
def test_vote_rows(run, rows, masked, modulo):
    from vistok.ops.kernels.selection import vote_rows as kernel

    device, dtype = run
    torch.manual_seed(4)
    q, k = torch.randn(3, 6, 20), torch.randn(3, 2, rows, 20)
    visible = torch.rand(3, rows) < 0.5 if masked else None
    if masked:
        visible[1] = False  # a sequence without candidates
    expected = vote_rows(q.to(dtype), k.to(dtype), visible, scale=0.4, modulo=modulo)
    moved = None if visible is None else visible.to(device)
    found = kernel(q.to(device, dtype), k.to(device, dtype), moved, scale=0.4, modulo=modulo)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=1e-4)


def test_commit_rows(run):
    from vistok.ops.kernels.commit import commit_rows as kernel

    device, dtype = run
    keys, values = (torch.randn(2, 4, 3, 20, 24).to(device, dtype) for _ in "kv")
    lengths = torch.tensor([0, 5, 13, 19], device=device)
    path = torch.tensor([[1, 2, 4, 5, 6], [0, 1, 3, -1, -1], [6, -1, -1, -1, -1], [-1] * 5], device=device)
    count = torch.tensor([5, 3, 1, 0], device=device)
    expected = keys.clone(), values.clone()
    commit_rows(*expected, lengths, path, count)
    kernel(keys, values, lengths, path, count)
    assert torch.equal(keys, expected[0]) and torch.equal(values, expected[1])


FILTERS = [
    {},
    {"temperature": 0.7, "top_k": 5},
    {"top_p": 0.6},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.8},
    {"top_k": 1},
    {"top_p": 0.0},
    {"temperature": 0.0},
    {"top_k": 500},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("guided", [False, True])
def test_sample_tokens(run, filters, guided):
    from vistok.ops.kernels.sampling import sample_tokens as kernel

    device, dtype = run
    torch.manual_seed(1)
    logits, uncond = (3 * torch.randn(2, 6, 50)).to(device, dtype)
    options = filters | ({"uncond": uncond, "guidance": 2.5} if guided else {})
    uniform = torch.rand(6, device=device)
    token, probs = kernel(logits, uniform, **options)
    with_torch = {name: x.cpu() if torch.is_tensor(x) else x for name, x in options.items()}
    expected_token, expected = sample_tokens(logits.cpu(), uniform.cpu(), **with_torch)
    torch.testing.assert_close(probs.cpu(), expected, atol=1e-6, rtol=1e-4)
    assert torch.equal(token.cpu(), expected_token)


def test_ties_at_the_thresholds(run):
    from vistok.ops.kernels.sampling import sample_tokens as kernel

    device, _ = run
    logits = torch.tensor([[1.0, 3.0, 1.0, 0.0, -0.0, 1.0, 0.0, -2.0]], device=device)
    uniform = torch.zeros(1, device=device)
    for filters in ({"top_k": 2}, {"top_k": 5}, {"top_p": 0.75}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.85}):
        expected = sample_tokens(logits.cpu(), uniform.cpu(), **filters)[1]
        torch.testing.assert_close(kernel(logits, uniform, **filters)[1].cpu(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_verify_tokens(run, filters):
    from vistok.ops.kernels.sampling import verify_tokens as kernel

    device, dtype = run
    torch.manual_seed(2)
    logits, uncond = (2 * torch.randn(2, 9, 40)).to(dtype)
    draft_probs = (logits.float() + torch.randn(9, 40)).softmax(-1)
    draft_probs[0] = sample_tokens(logits, torch.zeros(9), uncond=uncond, guidance=2.0, **filters)[1][0]
    draft = draft_probs.multinomial(1).squeeze(1)
    accept, uniform = torch.rand(2, 9)
    options = {"uncond": uncond, "guidance": 2.0, **filters}
    expected = verify_tokens(logits, draft, draft_probs, accept, uniform, **options)
    moved = options | {"uncond": uncond.to(device)}
    step = kernel(*(x.to(device) for x in (logits, draft, draft_probs, accept, uniform)), **moved)
    assert torch.equal(step.accepted.cpu(), expected.accepted) and torch.equal(step.token.cpu(), expected.token)
    torch.testing.assert_close(step.acceptance.cpu(), expected.acceptance, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(step.probs.cpu(), expected.probs, atol=1e-6, rtol=1e-4)
