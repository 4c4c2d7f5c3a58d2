"""Sparse products equal dense autograd, and each backward is gradient-checked in double precision."""

import pytest
import torch

from mechscope.dictionaries.kernels.active import Encoder
from mechscope.dictionaries.kernels.pattern import Pattern
from mechscope.dictionaries.kernels.rows import decode_rows, dots_of, encode_rows, encode_shifted_rows
from mechscope.dictionaries.kernels.selection import above, floor_of_largest, largest

N, D, LATENTS, K = 5, 4, 9, 3


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def pattern_with_an_empty_row() -> Pattern:
    rows = torch.tensor([0, 0, 1, 3, 3, 3, 4])
    return Pattern.of_entries(rows, torch.tensor([2, 7, 7, 0, 8, 2, 5]), N, LATENTS)


@pytest.fixture(params=["rectangle", "ragged", "empty"])
def pattern(request) -> Pattern:
    if request.param == "rectangle":
        return Pattern.of_rectangle(torch.tensor([[0, 3, 8]] * N), LATENTS)
    if request.param == "ragged":
        return pattern_with_an_empty_row()
    nothing = torch.zeros(0, dtype=torch.long)
    return Pattern.of_entries(nothing, nothing, N, LATENTS)


def dense_of(values: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    return values.new_zeros(N, LATENTS).index_put((pattern.rows, pattern.latents), values, accumulate=True)


def test_decoding_equals_the_dense_product_forward_and_backward(pattern: Pattern) -> None:
    values, decoder = draw(len(pattern.latents)), draw(LATENTS, D, seed=1)
    ours = decode_rows(values, decoder, pattern)
    dense = dense_of(values, pattern) @ decoder
    assert torch.allclose(ours, dense, atol=1e-12)
    if len(pattern.latents):
        weight = draw(N, D, seed=2).detach()
        got = torch.autograd.grad((ours * weight).sum(), [values, decoder])
        wanted = torch.autograd.grad((dense * weight).sum(), [values, decoder])
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, wanted, strict=True))
        assert torch.autograd.gradcheck(lambda v, w: decode_rows(v, w, pattern), (values, decoder))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_known", [True, False])
def test_encoding_equals_the_dense_product_forward_and_backward(
    pattern: Pattern, has_bias: bool, is_known: bool
) -> None:
    inputs, encoder, shift = draw(N, D), draw(LATENTS, D, seed=1), draw(D, seed=2)
    bias = draw(LATENTS, seed=3) if has_bias else None
    full = (inputs - shift) @ encoder.T + (0 if bias is None else bias)
    dense = full[pattern.rows, pattern.latents]
    known = dense.detach() if is_known else None
    ours = encode_shifted_rows(inputs, encoder, shift=shift, bias=bias, pattern=pattern, known=known)
    plain = encode_rows(inputs - shift, encoder, bias=bias, pattern=pattern, known=known)
    assert torch.allclose(ours, dense, atol=1e-12) and torch.allclose(plain, dense, atol=1e-12)
    if len(pattern.latents):
        wrt = [inputs, shift, encoder, *([] if bias is None else [bias])]
        weight = draw(len(pattern.latents), seed=4).detach()
        wanted = torch.autograd.grad((dense * weight).sum(), wrt)
        for found in (ours, plain):
            got = torch.autograd.grad((found * weight).sum(), wrt, retain_graph=True)
            assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, wanted, strict=True))
        if not is_known:
            assert torch.autograd.gradcheck(
                lambda x, s, w: encode_shifted_rows(x, w, shift=s, bias=bias, pattern=pattern),
                (inputs, shift, encoder),
            )
            assert torch.autograd.gradcheck(
                lambda x, w: encode_rows(x, w, bias=bias, pattern=pattern), (inputs, encoder)
            )


def test_a_loss_on_other_latents_reaches_the_encoder() -> None:
    encoder = Encoder(draw(N, D).detach(), draw(LATENTS, D, seed=1), draw(LATENTS, seed=3))
    dead = torch.tensor([1, 4, 6])
    encoder.top(2)
    revived = encoder.among(dead, 2, n_rows=3)
    revived.pre.sum().backward()
    touched = encoder.weight.grad.abs().sum(1) > 0
    assert touched[dead].any() and not touched[[0, 2, 3, 5, 7, 8]].any()
    dense = Encoder(encoder.inputs, encoder.weight.detach().requires_grad_(), encoder.bias, is_sparse=False)
    dense.among(dead, 2, n_rows=3).pre.sum().backward()
    assert torch.allclose(encoder.weight.grad, dense.weight.grad)


@pytest.mark.parametrize("width", [96, 128, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_are_the_largest(width: int, dtype: torch.dtype) -> None:
    pre = torch.randn(50, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    for k in (1, 2, 5):
        ours = pre.gather(1, largest(pre, k)).sort(1).values
        assert torch.equal(ours, pre.topk(k).values.sort(1).values)


@pytest.mark.parametrize("width", [96, 33])
def test_above_a_floor_are_those_above_it(width: int) -> None:
    pre = torch.randn(50, width, generator=torch.Generator().manual_seed(1))
    found = above(pre, 1.5)
    dense = torch.zeros(50, width, dtype=torch.bool)
    dense[found.rows, found.latents] = True
    assert torch.equal(dense, pre > 1.5) and len(found.latents) == (pre > 1.5).sum()
    for n in (1, 30, 400):
        floor = floor_of_largest(pre, n)
        assert n <= (pre > floor).sum() <= 3 * n + 40


def test_the_largest_of_a_batch_are_its_n_largest_entries() -> None:
    x, w, b = draw(64, 8).detach(), draw(96, 8, seed=1).detach(), draw(96, seed=2).detach()
    pre = x @ w.T + b
    active = Encoder(x, w, b).top_of_batch(200)
    assert torch.allclose(active.pre.sort().values, pre.reshape(-1).topk(200).values.sort().values)
    assert torch.allclose(active.pre, pre[active.pattern.rows, active.pattern.latents])


@pytest.mark.parametrize("ask", ["top", "above", "batch"])
def test_bfloat16_proposes_and_full_precision_decides(ask: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(256, 64, generator=generator), torch.randn(512, 64, generator=generator) / 8
    floor = torch.full((512,), 2.5)

    def chosen(encoder: Encoder):
        asked = {"top": lambda: encoder.top(8), "above": lambda: encoder.above(floor)}
        return asked.get(ask, lambda: encoder.top_of_batch(8 * 256))()

    exact, rough = chosen(Encoder(x, w, None)), chosen(Encoder(x, w, None, uses_bfloat16=True))
    full = x @ w.T
    assert torch.allclose(rough.pre, full[rough.pattern.rows, rough.pattern.latents], atol=1e-5)
    pairs = [
        set(zip(a.pattern.rows.tolist(), a.pattern.latents.tolist(), strict=True)) for a in (exact, rough)
    ]
    assert len(pairs[0] & pairs[1]) >= 0.999 * len(pairs[0]) and len(pairs[1]) <= len(pairs[0]) + 2
    assert not torch.equal((x.bfloat16() @ w.bfloat16().T).float(), full), (
        "the rounding is there to be undone"
    )


def test_dots_are_those_of_the_pattern_only() -> None:
    pattern = pattern_with_an_empty_row()
    a, b = draw(N, D).detach(), draw(LATENTS, D, seed=1).detach()
    assert torch.allclose(dots_of(a, b, pattern), (a @ b.T)[pattern.rows, pattern.latents])
