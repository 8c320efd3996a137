"""The scalar functions of the floor, against mpmath: values and slopes at every magnitude."""

import math

import mpmath
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from lossary._numerics import expm1, log1mexp, normalized, softplus

# torch still scripts parts of itself, and warns about that, on the first use of forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

DTYPES = (torch.float64, torch.float32)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def exact(fn, x):
    """A function of the number that x is, to 60 digits beyond its own size."""
    with mpmath.workdps(60):
        return float(fn(mpmath.mpf(x)))


def true_softplus(x):
    # Beyond 10^3 an exponential has more digits than anybody wants, and adds nothing.
    return x if x > 1000 else mpmath.log1p(mpmath.exp(x))


def true_slope_of_softplus(x):
    return mpmath.mpf(1) if x > 1000 else 1 / (1 + mpmath.exp(-x))


def true_expm1(x):
    return mpmath.mpf(-1) if x < -1000 else mpmath.expm1(x)


def true_log1mexp(x):
    return mpmath.log(-mpmath.expm1(x)) if x > -1 else mpmath.log1p(-mpmath.exp(x))


def true_slope_of_log1mexp(x):
    return mpmath.exp(x) / mpmath.expm1(x)


def floats(dtype, low, high):
    """Numbers of every magnitude that the dtype holds."""
    width = 64 if dtype is torch.float64 else 32
    low, high = (float(torch.tensor(x, dtype=dtype)) for x in (low, high))
    wide = st.floats(low, high, width=width)
    return st.one_of(wide, st.floats(max(low, -120.0), min(high, 120.0), width=width))


def value_and_slope(fn, x, dtype):
    x = torch.tensor(x, dtype=dtype, requires_grad=True)
    y = fn(x)
    assert y.dtype is dtype
    return float(y.detach()), float(torch.autograd.grad(y, x)[0])


def assert_close(found, expected, dtype, spacings):
    """Equal to a few spacings; below the normal numbers, where those end, to the smallest of it."""
    info = torch.finfo(dtype)
    if math.isinf(expected) or abs(expected) > info.max:
        assert found == math.copysign(math.inf, expected)
        return
    assert abs(found - expected) <= spacings * info.eps * abs(expected) + info.tiny


def check_softplus(x, dtype):
    value, slope = value_and_slope(softplus, x, dtype)
    assert_close(value, exact(true_softplus, x), dtype, 4)
    assert_close(slope, exact(true_slope_of_softplus, x), dtype, 4)


def check_expm1(x, dtype):
    value, slope = value_and_slope(expm1, x, dtype)
    assert_close(value, exact(true_expm1, x), dtype, 4)
    assert_close(slope, exact(mpmath.exp, x), dtype, 4)


def check_log1mexp(x, dtype):
    value, slope = value_and_slope(log1mexp, x, dtype)
    assert_close(value, exact(true_log1mexp, x), dtype, 4)
    assert_close(slope, exact(true_slope_of_log1mexp, x), dtype, 6)


@given(floats(torch.float64, -1e300, 1e300))
@example(0.0)
@example(20.0)  # where the stock function stops by default, a relative 1e-10 too early
@example(20.000001)
@example(39.999999)
@example(40.000001)
@example(-745.0)
@example(709.8)
@example(1e300)
@example(-1e300)
def test_softplus_and_its_slope_keep_their_digits_in_float64(x):
    check_softplus(x, torch.float64)


@given(floats(torch.float32, -3e38, 3e38))
@example(0.0)
@example(20.0)
@example(40.0)
@example(88.8)
@example(-87.0)
@example(-103.0)
@example(float(torch.tensor(3e38)))
def test_softplus_and_its_slope_keep_their_digits_in_float32(x):
    check_softplus(float(torch.tensor(x, dtype=torch.float32)), torch.float32)


@given(floats(torch.float64, -1e300, 700.0))
@example(0.0)
@example(-1e-300)
@example(1e-10)
@example(-17.5)  # where the slope of the stock function, result + 1, is all rounding in float32
@example(-37.5)  # and in float64
@example(-700.0)
def test_expm1_and_its_slope_keep_their_digits_in_float64(x):
    check_expm1(x, torch.float64)


@given(floats(torch.float32, -3e38, 88.0))
@example(0.0)
@example(-1e-30)
@example(-5.0)
@example(-17.5)
@example(-87.0)
def test_expm1_and_its_slope_keep_their_digits_in_float32(x):
    check_expm1(float(torch.tensor(x, dtype=torch.float32)), torch.float32)


@given(floats(torch.float64, -1e300, -1e-300))
@example(-1e-300)
@example(-math.log(2.0))  # where the forms meet
@example(math.nextafter(-math.log(2.0), 0.0))
@example(math.nextafter(-math.log(2.0), -1.0))
@example(-1.0)
@example(-37.5)
@example(-745.0)
@example(-1e300)
def test_log1mexp_and_its_slope_keep_their_digits_in_float64(x):
    check_log1mexp(x, torch.float64)


@given(floats(torch.float32, -3e38, -1e-37))
@example(-1e-37)
@example(-0.6931471824645996)
@example(-0.6931472420692444)
@example(-1.0)
@example(-17.0)
@example(-103.0)
def test_log1mexp_and_its_slope_keep_their_digits_in_float32(x):
    check_log1mexp(float(torch.tensor(x, dtype=torch.float32)), torch.float32)


@every_dtype
def test_softplus_has_the_right_slope_and_curvature_at_zero(dtype):
    # Forms with a clamp, a maximum or an absolute value have neither.
    x = torch.zeros(3, dtype=dtype, requires_grad=True)
    y = softplus(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(y, torch.full_like(x, math.log(2.0)), rtol=1e-7, atol=0.0)
    assert torch.equal(slope.detach(), torch.full_like(x, 0.5))
    assert torch.equal(curvature, torch.full_like(x, 0.25))


@every_dtype
@pytest.mark.parametrize(
    ("fn", "at", "value", "slope"),
    [
        (softplus, -math.inf, 0.0, 0.0),
        (softplus, math.inf, math.inf, 1.0),
        (log1mexp, -math.inf, 0.0, 0.0),
        (expm1, -math.inf, -1.0, 0.0),
    ],
)
def test_infinities_give_no_nan(fn, at, value, slope, dtype):
    assert value_and_slope(fn, at, dtype) == (value, slope)


def test_the_curvature_of_expm1_keeps_its_digits_for_very_negative_numbers():
    x = torch.tensor([-60.0, -20.0, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(expm1(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(curvature, x.detach().exp(), rtol=1e-15, atol=0.0)


def test_the_slope_of_softplus_overflows_only_where_the_true_one_does():
    # The stock backward computes scale * exp(x) / (exp(x) + 1) below its threshold. This scale is
    # exp(40), the slope of a head on it that grows like 1/p, times a gradient scaler's 2^16.
    x = torch.linspace(0.0, 60.0, 241, requires_grad=True)
    (slope,) = torch.autograd.grad((softplus(x) * 1.6e22).sum(), x)
    torch.testing.assert_close(slope, torch.sigmoid(x.detach()) * 1.6e22)


@every_dtype
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_log1mexp_at_zero_is_minus_infinity_with_an_infinite_slope_downwards(zero, dtype):
    value, slope = value_and_slope(log1mexp, zero, dtype)
    assert value == -math.inf
    assert slope == -math.inf


@every_dtype
def test_each_element_takes_its_own_form_without_harm_from_the_other(dtype):
    # The slope of the form not taken is infinite at some of these: 0 * inf would be nan.
    x = torch.tensor([-1e30, -200.0, -90.0, -1.0, -0.5, -1e-20, -1e-30], dtype=dtype)
    x.requires_grad_()
    y = log1mexp(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    for i, at in enumerate(x.tolist()):
        assert_close(float(y[i].detach()), exact(true_log1mexp, at), dtype, 4)
        assert_close(float(slope[i].detach()), exact(true_slope_of_log1mexp, at), dtype, 6)
    assert not bool(curvature.isnan().any())


@pytest.mark.parametrize("fn", [softplus, log1mexp, expm1])
def test_derivatives_of_every_kind_are_right(fn):
    x = torch.tensor([-30.0, -3.0, -0.9, -0.6, -0.2, -0.01], dtype=torch.float64)
    if fn is expm1:
        x = torch.cat((x, torch.tensor([0.0, 0.3, 5.0], dtype=torch.float64)))
    elif fn is softplus:
        x = torch.cat((x, torch.tensor([0.0, 0.3, 5.0, 19.0, 21.0, 45.0], dtype=torch.float64)))
    x.requires_grad_()
    assert gradcheck(fn, x, check_forward_ad=True, check_batched_grad=True, rtol=1e-4)
    assert gradgradcheck(fn, x, check_fwd_over_rev=True, rtol=1e-4)


@given(st.floats(-30.0, -1e-6))
def test_log1mexp_is_its_own_inverse(x):
    # exp(x) + exp(log1mexp(x)) = 1: both are probabilities of a pair.
    x = torch.tensor(x, dtype=torch.float64)
    torch.testing.assert_close(
        torch.exp(x) + torch.exp(log1mexp(x)), torch.ones_like(x), rtol=1e-15, atol=1e-15
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalized_rows_have_norm_one_at_every_length(dtype):
    least = {torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    direction = torch.tensor([3.0, 0.0, -4.0], dtype=dtype) / 5
    for length in (2 * least, 1.0, 1e4, torch.finfo(dtype).max / 8):
        torch.testing.assert_close(normalized(length * direction), direction)
    # Shorter ones are divided by the least length.
    torch.testing.assert_close(normalized(0.5 * least * direction), 0.5 * direction)
    zero = torch.zeros(3, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(normalized(zero).sum(), zero)
    torch.testing.assert_close(slope, torch.full_like(slope, 1.0 / least))


def test_normalized_derivatives():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(normalized, x, check_forward_ad=True)
    assert gradgradcheck(normalized, x, check_fwd_over_rev=True)
