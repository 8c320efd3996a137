"""The robust regression losses, on both of their eager paths and under compilation.

The formulas are written out twice: plainly, in float64, for identities and gradients, and with
mpmath, for the digits at the ends of what residuals and scales can be.
"""

import copy
import gc
import itertools
import math
from unittest import mock

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from cases import CASES, numbers, params, vectors
from lossary import CauchyLoss, PseudoHuberLoss, _distributed, _residual, adaptive_cauchy_scale
from lossary.testing import check_loss

# torch still scripts parts of itself, and warns about that, on the first use of forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

INF, NAN = math.inf, math.nan
F32, F64 = torch.float32, torch.float64
MIB = 1 << 20
LOSSES = (PseudoHuberLoss, CauchyLoss)
MODES = ("elementwise", "vector")
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda x: x.__name__)
every_mode = pytest.mark.parametrize("mode", MODES)


def forced(path, tile_bytes=200):
    """Send every input down one of the eager paths."""
    values = {"TILED_FROM_BYTES": 0 if path == "tiled" else 1 << 62}
    values["TILE_BYTES"] = {"cpu": tile_bytes, "other": tile_bytes}
    return mock.patch.multiple(_residual, **values)


@pytest.fixture(params=["stock", "tiled"])
def path(request):
    with forced(request.param):
        yield request.param


# The formulas.


def squares(r, mode):
    return r * r if mode == "elementwise" else r.reshape(len(r), -1).square().sum(1)


def plain(loss, r, c, mode):
    """The values, as one would write them down."""
    s = squares(r, mode)
    if loss is PseudoHuberLoss:
        return torch.sqrt(s + c**2) - c
    return torch.log(1 + s / (2 * c**2))


def values(loss, input, target, c, mode):
    return loss(c, mode, reduction="none")(input, target)


def of_residual(loss, r, c, mode):
    return values(loss, r, torch.zeros_like(r), c, mode)


def barron(r, alpha, c):
    """The general robust loss, as in the paper, for alpha other than 0 and 2."""
    b = abs(alpha - 2)
    return b / alpha * (((r / c) ** 2 / b + 1) ** (alpha / 2) - 1)


def close(found, expected, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def value_and_gradients(fn, *inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = fn(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves)


@every_loss
@every_mode
@pytest.mark.parametrize("shape", [(6,), (6, 5), (4, 2, 3, 3)])
@pytest.mark.parametrize("c", [0.1, 1.0, 7.0])
def test_values_and_gradients_are_those_of_the_plain_formula(path, loss, mode, shape, c):
    x, y = torch.randn(2, *shape, dtype=F64)
    g = torch.randn(plain(loss, x, c, mode).shape, dtype=F64)
    found = value_and_gradients(lambda x, y: (values(loss, x, y, c, mode) * g).sum(), x, y)
    expected = value_and_gradients(lambda x, y: (plain(loss, x - y, c, mode) * g).sum(), x, y)
    close(found, expected)


@every_loss
@every_mode
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
def test_reductions_and_their_gradients_are_those_of_the_values(path, loss, mode, reduction):
    x, y = torch.randn(2, 9, 5, dtype=F64)
    reduce = torch.sum if reduction == "sum" else torch.mean
    found = value_and_gradients(loss(0.3, mode, reduction=reduction), x, y)
    expected = value_and_gradients(lambda x, y: reduce(plain(loss, x - y, 0.3, mode)), x, y)
    close(found, expected)
    by = loss(0.3, mode, reduction=reduction)
    expected = value_and_gradients(lambda x, y: plain(loss, x - y, 0.3, mode).sum() / 7, x, y)
    close(value_and_gradients(lambda x, y: by(x, y, normalizer=7.0), x, y), expected)
    close(value_and_gradients(lambda x, y: by(x, y, normalizer=torch.tensor(7)), x, y), expected)


def test_defaults():
    x, y = torch.randn(2, 5, 12, dtype=F64)
    close(
        PseudoHuberLoss()(x, y), plain(PseudoHuberLoss, x - y, 0.00054 * 12**0.5, "vector").mean()
    )
    close(CauchyLoss()(x, y), plain(CauchyLoss, x - y, 1.0, "elementwise").mean())


@every_mode
@pytest.mark.parametrize(("shape", "d"), [((4,), 1), ((4, 3), 3), ((2, 3, 8, 8), 192)])
def test_the_automatic_scale_grows_with_the_size_of_a_sample(mode, shape, d):
    x, y = torch.randn(2, *shape, dtype=F64)
    c = 0.00054 * math.sqrt(d)
    found = PseudoHuberLoss(mode=mode, reduction="none")(x, y)
    close(found, values(PseudoHuberLoss, x, y, c, mode), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0), (0, 0)])
@every_loss
@every_mode
def test_empty_batches_and_empty_samples_give_an_attached_zero(path, loss, mode, shape):
    for reduction in ("mean", "sum", "batchmean", "none"):
        x = torch.zeros(shape, requires_grad=True)
        module = loss(mode=mode, reduction=reduction)
        out = module(x, torch.zeros(shape))
        assert (out == 0).all()
        (g,) = torch.autograd.grad(out.sum(), x)
        assert g.shape == shape
    assert out.shape == (shape[:1] if mode == "vector" else shape)


def test_single_numbers_are_elements():
    x = torch.tensor(3.0, requires_grad=True)
    out = CauchyLoss(reduction="none")(x, torch.tensor(1.0))
    close(out, torch.tensor(math.log(3.0)), rtol=1e-6)
    with forced("tiled"):
        close(CauchyLoss()(x, torch.tensor(1.0)), out, rtol=1e-6)


# Bounds, limits and identities.

residuals = st.lists(st.floats(-1e6, 1e6, width=64), min_size=1, max_size=6)
scales = st.floats(1e-3, 1e3, width=64)


def single(loss, r, c, mode="vector"):
    return float(of_residual(loss, torch.tensor([r], dtype=F64), c, mode).sum())


def single_gradient(loss, r, c):
    x = torch.tensor([r], dtype=F64, requires_grad=True)
    (g,) = torch.autograd.grad(of_residual(loss, x, c, "vector").sum(), x)
    return g[0]


@given(residuals, scales)
def test_pseudo_huber_lies_between_its_bounds(r, c):
    value = single(PseudoHuberLoss, r, c)
    norm = math.hypot(*r)
    slack = 1e-12 * norm
    assert 0 <= value <= norm + slack
    assert value >= norm - c - slack
    assert value <= norm**2 / (2 * c) * (1 + 1e-12) + 1e-300
    assert float(single_gradient(PseudoHuberLoss, r, c).norm()) <= 1 + 1e-12


@given(residuals, scales)
def test_cauchy_lies_between_its_bounds(r, c):
    value, norm = single(CauchyLoss, r, c), math.hypot(*r)
    assert 0 <= value <= norm**2 / (2 * c**2) * (1 + 1e-12) + 1e-300
    steepest = 1 / (math.sqrt(2) * c)
    assert float(single_gradient(CauchyLoss, r, c).norm()) <= steepest * (1 + 1e-12)


@given(residuals, scales, st.floats(1e-3, 1e3))
def test_scaling_residual_and_scale_together(r, c, k):
    scaled = [k * x for x in r]
    for loss, factor in ((PseudoHuberLoss, k), (CauchyLoss, 1.0)):
        value = factor * single(loss, r, c)
        assert single(loss, scaled, k * c) == pytest.approx(value, rel=1e-11, abs=1e-300)


@every_loss
def test_vector_mode_does_not_depend_on_the_axes(loss):
    r = torch.randn(7, 4, dtype=F64)
    q, _ = torch.linalg.qr(torch.randn(4, 4, dtype=F64))
    close(of_residual(loss, r @ q, 0.3, "vector"), of_residual(loss, r, 0.3, "vector"))
    turned, straight = (of_residual(loss, x, 0.3, "elementwise").sum() for x in (r @ q, r))
    assert abs(turned - straight) > 0.1


@given(st.floats(-1e6, 1e6), scales)
def test_pseudo_huber_stays_within_half_a_scale_below_huber(r, c):
    value = single(PseudoHuberLoss, [r], c)
    huber = float(F.huber_loss(torch.tensor(r, dtype=F64), torch.tensor(0.0, dtype=F64), delta=c))
    slack = 1e-12 * (1 + abs(r))
    assert value - slack <= huber / c <= value + c / 2 + slack


@every_mode
def test_limits_in_the_scale(path, mode):
    r = torch.randn(5, 4, dtype=F64)
    s = squares(r, mode)
    close(of_residual(PseudoHuberLoss, r, 1e-13, mode), s.sqrt(), rtol=1e-9)
    close(of_residual(PseudoHuberLoss, r, 1e8, mode) * 1e8, s / 2, rtol=1e-12)
    close(of_residual(CauchyLoss, r, 1e8, mode) * 1e16, s / 2, rtol=1e-12)


def test_pseudo_huber_and_cauchy_are_members_of_the_general_robust_loss():
    r = torch.randn(50, dtype=F64) * 3
    for c in (0.5, 1.0, 2.0):
        close(of_residual(PseudoHuberLoss, r, c, "elementwise"), c * barron(r, 1.0, c))
        # The limit of alpha -> 0.
        close(
            of_residual(CauchyLoss, r, c, "elementwise"), barron(r, 1e-9, c), rtol=1e-5, atol=1e-6
        )


def test_at_scale_1_they_are_what_kornia_calls_charbonnier_and_cauchy():
    x, y = torch.randn(2, 3, 4, 5)
    charbonnier, cauchy = (
        ((x - y).square() + 1.0).sqrt() - 1.0,
        (0.5 * (x - y).square() + 1.0).log(),
    )
    found = PseudoHuberLoss(1.0, "elementwise", reduction="none")(x, y)
    close(found, charbonnier, rtol=1e-4, atol=1e-6)
    close(CauchyLoss(reduction="none")(x, y), cauchy, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("c", [0.1, 1.0, 30.0])
def test_cauchy_is_the_negative_log_likelihood_up_to_a_constant(c):
    x, y = torch.randn(2, 40, dtype=F64)
    nll = -torch.distributions.Cauchy(y, math.sqrt(2) * c).log_prob(x)
    difference = nll - values(CauchyLoss, x, y, c, "elementwise")
    close(difference, difference[:1].expand(40))


@given(scales, st.floats(0.0, 1.0))
def test_cauchy_pulls_hardest_at_the_root_of_2_scales_and_less_beyond(c, angle):
    peak = math.sqrt(2) * c
    direction = torch.tensor([math.cos(angle), math.sin(angle)], dtype=F64)

    def pull(length):
        return float(single_gradient(CauchyLoss, (length * direction).tolist(), c).norm())

    assert pull(peak) == pytest.approx(1 / peak, rel=1e-12)
    pulls = [pull(peak * k) for k in (0.5, 0.9, 1.0, 1.1, 2.0, 10.0, 100.0)]
    assert pulls[0] < pulls[1] < pulls[2]
    assert all(a > b for a, b in itertools.pairwise(pulls[2:]))
    assert pull(1e6 * peak) == pytest.approx(2 / (1e6 * peak), rel=1e-11)


@given(residuals, scales, st.floats(0.0, 1.0))
def test_cauchy_grows_with_the_norm_though_it_is_not_convex(r, c, k):
    assert single(CauchyLoss, [k * x for x in r], c) <= single(CauchyLoss, r, c)


@given(residuals, scales)
def test_swapping_input_and_target_changes_nothing_but_the_sign(r, c):
    x = torch.tensor([r], dtype=F64)
    for loss, mode in itertools.product(LOSSES, MODES):
        module = loss(c, mode, reduction="sum")
        there, back = (value_and_gradients(module, s * x, 0 * x) for s in (1.0, -1.0))
        assert torch.equal(there[0], back[0])
        assert torch.equal(there[1], -back[1])


# Digits, at the ends of what residuals and scales can be.

mpmath.mp.dps = 60
SIZES = [0.0] + [10.0**e for e in (-30, -25, -20, -15, -10, -5, 0, 5, 10, 15, 19, 20, 30, 38)]
RESIDUALS = [sign * size for size in SIZES for sign in ((1, -1) if size else (1,))]
SCALES = [10.0**e for e in (-20, -18, -12, -6, -3, 0, 6, 12, 18, 20)]
ROWS = list(itertools.product(SIZES[::3], [-x for x in SIZES[1::4]], SIZES[2::4]))
TOLERANCE = {F32: 2e-6, F64: 1e-14}


def exact(loss, r, c):
    """Value and gradient for one residual vector."""
    r, c = [mpf(x) for x in r], mpf(c)
    s = mpmath.fsum(x * x for x in r)
    if loss is PseudoHuberLoss:
        h = mpmath.sqrt(s + c * c)
        return s / (h + c), [x / h for x in r]
    return mpmath.log1p(s / (2 * c * c)), [x / (c * c + s / 2) for x in r]


def assert_digits(found, expected, dtype, size=0):
    """Right relative to itself, or to ``size``; as small where below the smallest number."""
    tiny = float(torch.finfo(dtype).tiny)
    if abs(expected) <= tiny:
        assert abs(found) <= 4 * tiny
    else:
        assert not math.isnan(found)
        assert abs(mpf(found) - expected) <= TOLERANCE[dtype] * max(abs(expected), size)


def assert_all_digits(fn, loss, r, c, upstream):
    """Compare the values of some residual vectors, and their gradients, with the exact ones."""
    x = r.clone().requires_grad_()
    found = fn(x, torch.zeros_like(x))
    (slopes,) = torch.autograd.grad(found, x, torch.full_like(found, upstream))
    rows = r.reshape(len(r), -1).tolist()
    for row, value, slope in zip(rows, found.tolist(), slopes.tolist(), strict=True):
        expected, gradient = exact(loss, row, c)
        assert_digits(value, expected, r.dtype)
        # An entry that is nothing beside the largest may have fewer digits.
        size = mpf(0) if len(row) == 1 else 1e-3 * max(abs(g) for g in gradient)
        for a, b in zip(slope if len(row) > 1 else [slope], gradient, strict=True):
            assert_digits(a / upstream, b, r.dtype, size)


@every_loss
@every_mode
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("upstream", [1.0, 65536.0])
def test_residuals_and_scales_of_any_size_keep_their_digits(path, loss, mode, dtype, upstream):
    r = torch.tensor(RESIDUALS if mode == "elementwise" else ROWS, dtype=dtype)
    for c in SCALES:
        assert_all_digits(loss(c, mode, reduction="none"), loss, r, c, upstream)


@every_loss
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_a_tile_of_extremes_alone_keeps_its_digits_in_sums_too(loss, dtype):
    # One residual a tile: the neighbours cannot send it to the slower form.
    with forced("tiled", tile_bytes=1):
        for r, c in itertools.product(RESIDUALS, SCALES[::2]):
            x = torch.tensor([r], dtype=dtype)
            total = loss(c, "elementwise", reduction="sum")
            assert_all_digits(lambda *xs, f=total: f(*xs).view(1), loss, x, c, 65536.0)
            value = of_residual(loss, x[None], c, "vector")
            assert_digits(float(value), exact(loss, [x.item()], c)[0], dtype)


@pytest.mark.usefixtures("fresh_compiler")
@every_loss
@pytest.mark.parametrize(
    ("mode", "c"),
    [
        ("elementwise", 1e-20),
        ("vector", 1e-20),
        *(
            pytest.param(mode, c, marks=pytest.mark.wide)
            for mode in MODES
            for c in (1e-12, 1.0, 1e12, 1e18, 1e20)
        ),
    ],
)
@pytest.mark.parametrize("tensor", [False, True])
def test_compiled_residuals_of_any_size_keep_their_digits(loss, mode, c, tensor):
    scale = torch.tensor(c) if tensor else c
    fn = torch.compile(loss(scale, mode, reduction="none"), fullgraph=True, backend="aot_eager")
    r = torch.tensor(RESIDUALS if mode == "elementwise" else ROWS, dtype=F32)
    assert_all_digits(fn, loss, r, c, 1.0)
    if mode == "elementwise" and not tensor:
        assert_all_digits(fn, loss, r, c, 65536.0)


@every_loss
@every_mode
def test_long_samples_keep_their_digits(loss, mode):
    # A plain float32 sum of as many equal squares is off by 1e-4.
    x = torch.full((2, MIB), 0.1)
    expected = plain(loss, x.double(), 0.03, mode)
    for reduce in (torch.sum, torch.mean):
        module = loss(0.03, mode, reduction=reduce.__name__)
        close(module(x, torch.zeros_like(x)).double(), reduce(expected), rtol=1e-6)


@given(st.floats(-4, 3), st.floats(-9, 9), st.integers(1, 5000))
def test_sums_over_equal_residuals_keep_their_digits_however_large(size, scale, n):
    # Where a rounding repeats itself in every element, nothing averages out.
    c = float(torch.tensor(10.0**scale))
    x = torch.full((n,), c * 10.0**size)
    for loss in LOSSES:
        want = n * exact(loss, [x[0].item()], c)[0]
        with forced("tiled", 4096):
            found = loss(c, "elementwise", reduction="sum")(x, torch.zeros_like(x))
        assert float(found) == pytest.approx(float(want), rel=1.5e-6)


@every_loss
@every_mode
def test_at_equality_value_and_gradient_are_exactly_zero_and_the_hessian_is_right(path, loss, mode):
    x = torch.randn(3, 4, dtype=F64)
    value, *gradients = value_and_gradients(loss(0.5, mode, reduction="sum"), x, x)
    assert value == 0
    assert all((g == 0).all() for g in gradients)
    curvature = hessian(loss(0.5, mode, reduction="sum"))(x, x).view(12, 12)
    at_zero = 1 / 0.5 if loss is PseudoHuberLoss else 1 / 0.5**2
    close(curvature, at_zero * torch.eye(12, dtype=F64))


INFINITE = [[INF, 1.0, 2.0], [-INF, INF, 1.0], [-INF, 0.0, 0.0], [1.0, 2.0, 3.0]]
STEEP = [[1.0, 0.0, 0.0], [-(0.5**0.5), 0.5**0.5, 0.0], [-1.0, 0.0, 0.0]]


@every_loss
@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("path", ["stock", "tiled", "compiled"])
@pytest.mark.usefixtures("fresh_compiler")
def test_infinite_residuals_have_infinite_values_and_the_limit_of_the_gradient(path, loss, tensor):
    r = torch.tensor(INFINITE)
    for mode in MODES:
        c = torch.tensor([0.5]).expand(4 if mode == "vector" else 3) if tensor else 0.5
        module = loss(c, mode, reduction="none")
        if path == "compiled":
            module = torch.compile(module, fullgraph=True, backend="aot_eager")
        with forced(path):
            x = r.clone().requires_grad_()
            out = module(x, torch.zeros_like(x))
            (g,) = torch.autograd.grad(out, x, torch.ones_like(out))
        infinite = r.isinf() if mode == "elementwise" else r.isinf().any(1)
        assert torch.equal(out.isinf(), infinite)
        assert not out.isnan().any()
        if loss is CauchyLoss:
            assert (g[r.isinf()] == 0).all()
        elif mode == "elementwise":
            assert torch.equal(g[r.isinf()], r[r.isinf()].sign())
        else:
            close(g[:3], torch.tensor(STEEP), rtol=1e-6)
        finite = value_and_gradients(lambda r, m=mode: plain(loss, r, 0.5, m).sum(), r[3:])
        close(g[3:], finite[1], rtol=1e-5)
        assert not g.isnan().any()


@every_loss
@every_mode
def test_a_nan_stays_a_nan_where_it_is_and_only_there(path, loss, mode):
    x = torch.randn(4, 3, dtype=F64)
    x[1, 2] = NAN
    x.requires_grad_()
    out = of_residual(loss, x, 0.5, mode)
    (g,) = torch.autograd.grad(out.sum(), x)
    spoilt = x.isnan() if mode == "elementwise" else x.isnan().any(1)
    assert torch.equal(out.isnan(), spoilt)
    assert torch.equal(g.isnan(), spoilt if mode == "elementwise" else spoilt[:, None].expand(4, 3))


@every_loss
def test_scales_beyond_what_float32_can_hold_do_no_harm(path, loss):
    x = torch.randn(6).requires_grad_()
    for c in (1e-300, 1e-38, 1e38, 1e300):
        for mode in MODES:
            out = of_residual(loss, x, c, mode)
            (g,) = torch.autograd.grad(out.sum(), x)
            assert out.isfinite().all()
            assert g.isfinite().all()


# Both eager paths.


@pytest.fixture
def tiled_calls(monkeypatch):
    """Count the calls of the tiled functions, by name."""
    counts = dict.fromkeys(
        ("_tiled_total", "_tiled_elements", "_tiled_gradient_of_elements", "_tiled_samples"), 0
    )
    for name in counts:
        original = getattr(_residual, name)

        def counted(*args, name=name, original=original):
            counts[name] += 1
            return original(*args)

        monkeypatch.setattr(_residual, name, counted)
    return counts


@every_loss
@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5)])
def test_only_large_inputs_take_the_tiles(tiled_calls, loss, scale):
    for rows, expected in ((1 << 16) - 1, 0), (1 << 16, 1):
        x, y = torch.zeros(2, rows, 8)
        x.requires_grad_()
        tiled_calls.update(dict.fromkeys(tiled_calls, 0))
        for mode in MODES:
            loss(scale, mode)(x, y).backward()
        loss(scale, "elementwise").per_sample(x, y)
        assert tiled_calls == {
            "_tiled_total": expected,
            "_tiled_elements": expected,
            "_tiled_gradient_of_elements": expected,
            "_tiled_samples": 2 * expected,
        }


@pytest.mark.parametrize(
    ("r", "c", "closed"),
    [
        (1.0, 1.0, False),
        (0.0, 1e-14, False),
        (1.0, 1e-20, True),
        (1.0, 1e20, True),
        (1e25, 1.0, True),
        (1e25, 1e12, False),
        (INF, 1.0, True),
        (NAN, 1.0, True),
        (1.0, torch.tensor([1.0, 1.0]), True),
        (1.0, nn.Parameter(torch.tensor(1.0)), False),
    ],
)
def test_small_inputs_take_the_closed_form_where_numbers_are_extreme(tiled_calls, r, c, closed):
    CauchyLoss(c)(torch.tensor([0.5, r]), torch.zeros(2))
    assert tiled_calls["_tiled_total"] == closed


def test_the_forced_paths_are_the_ones_meant(path, tiled_calls):
    x = torch.randn(3, 2, requires_grad=True)
    CauchyLoss()(x, x.detach()).backward()
    assert (sum(tiled_calls.values()) == 2) == (path == "tiled")


@pytest.mark.parametrize("kernel", [x._kernel for x in LOSSES], ids=lambda x: x.__name__)
def test_ordinary_tiles_take_the_fast_form_and_extreme_ones_alone_the_slow_one(kernel):
    x = torch.randn(64, 8)
    x[40:48] *= 1e25
    slow = []

    def watched(name):
        original = getattr(_residual, name)

        def watch(kernel, r, *rest):
            slow.append(float(r.abs().max()))
            return original(kernel, r, *rest)

        return mock.patch.object(_residual, name, watch)

    with forced("tiled", 256), watched("_slope"), watched("_value"):
        for mode in (_residual.TOTAL, _residual.ELEMENTS, _residual.SAMPLES):
            leaf = x.clone().requires_grad_()
            _residual.robust_loss(kernel, leaf, torch.zeros_like(x), 0.5, mode).sum().backward()
    assert all(top > 1e20 for top in slow)
    assert slow


class NoLooking(TorchDispatchMode):
    """What an accelerator would wait for is an error."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        )
        return func(*args, **(kwargs or {}))


@every_loss
@every_mode
def test_nothing_looks_at_values_that_may_be_on_a_device(monkeypatch, loss, mode):
    x, y = torch.randn(2, 9, 5, dtype=F64)
    x[1] *= 1e250
    x[2, 0] = INF
    expected = [value_and_gradients(loss(c, mode), x, y) for c in (0.5, 1e-200)]
    original = _residual._Tiles.__init__

    def elsewhere(self, *args):
        original(self, *args)
        self.looks = self.fast = False

    monkeypatch.setattr(_residual._Tiles, "__init__", elsewhere)
    monkeypatch.setattr(_residual, "readable", lambda _: False)
    for path in ("tiled", "stock"):
        with forced(path), NoLooking():
            found = [value_and_gradients(loss(c, mode), x, y) for c in (0.5, 1e-200)]
        close(found, expected)


def test_the_first_gradient_stays_tiled_under_create_graph_and_torch_func(tiled_calls):
    with forced("tiled"):
        x, y = torch.randn(2, 6, 3, dtype=F64)
        grad(CauchyLoss())(x, y)
        x.requires_grad_()
        torch.autograd.grad(CauchyLoss()(x, y), x, create_graph=True)
    assert tiled_calls["_tiled_gradient_of_elements"] == 2


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 30, 1000])
@pytest.mark.parametrize("shape", [(), (1,), (13,), (3, 5), (5, 1, 3), (2, 3, 2, 2)])
def test_blocks_cover_every_element_once(size, shape):
    seen = torch.zeros(shape)
    for at in _residual._blocks(seen.shape, size):
        seen[at] += 1
        assert seen[at].numel() <= max(size, 1)
    assert (seen == 1).all()


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "gaps": lambda x: torch.stack((x, torch.full_like(x, NAN)), -1)[..., 0],
    "flipped storage": lambda x: torch.cat((torch.full_like(x[:1], NAN), x))[1:],
    "expanded": lambda x: x[:, :1].expand_as(x),
}


@every_loss
@every_mode
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", ["contiguous", "channels last", "expanded"])
def test_any_memory_layout_gives_the_same_numbers(loss, mode, first, second):
    x, y = torch.randn(2, 5, 3, 4, 2, dtype=F64)
    x, y = LAYOUTS[first](x), LAYOUTS[second](y)
    for reduction in ("mean", "none"):
        module = loss(0.3, mode, reduction=reduction)

        def run(x, y, module=module):
            leaves = [x.detach().requires_grad_(), y.detach().requires_grad_()]
            out = module(*leaves)
            return out.detach(), *torch.autograd.grad(out.sin().sum(), leaves)

        expected = run(x.clone(memory_format=torch.contiguous_format), y.contiguous())
        for path in ("stock", "tiled"):
            for tile_bytes in (8, 200, 1 << 20):
                with forced(path, tile_bytes):
                    close(run(x, y), expected)


def test_the_gradient_has_the_layout_of_the_input():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    with forced("tiled"):
        for mode in MODES:
            (g,) = torch.autograd.grad(CauchyLoss(mode=mode)(x, 0 * x.detach()), x)
            assert g.is_contiguous(memory_format=torch.channels_last)
        out = CauchyLoss(reduction="none")(x, 0 * x.detach())
    assert out.is_contiguous(memory_format=torch.channels_last)


@st.composite
def drawn_problems(draw):
    dtype = draw(st.sampled_from([F32, F64, torch.bfloat16, torch.float16]))
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    loss, mode = draw(st.sampled_from(LOSSES)), draw(st.sampled_from(MODES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    x, y = torch.randn(2, *shape, generator=generator) * draw(st.sampled_from([1e-3, 1.0, 100.0]))
    c = draw(st.sampled_from([1e-3, 0.5, 20.0]))
    like = torch.zeros(shape[:1] if mode == "vector" else shape)
    kind = draw(st.sampled_from(["number", "scalar", "full"]))
    if kind == "scalar":
        c = torch.tensor(c)
    elif kind == "full":
        c = torch.rand(like.shape, generator=generator) + c
    reduction = draw(st.sampled_from(["mean", "sum", "batchmean", "none"]))
    weighted = draw(st.booleans())
    weight = torch.rand(like.shape, generator=generator) if weighted else None
    return loss(c, mode, reduction=reduction), x.to(dtype), y.to(dtype), weight


@given(drawn_problems(), st.integers(1, 300))
def test_tiles_and_stock_operations_agree_on_everything(drawn, tile_bytes):
    module, x, y, weight = drawn
    found = {}
    for path in ("stock", "tiled"):
        leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        with forced(path, tile_bytes):
            out = module(*leaves, weight=weight)
            gs = torch.autograd.grad(
                (out * torch.linspace(1, 2, out.numel()).view_as(out)).sum(), leaves
            )
        assert all(g.dtype == x.dtype for g in gs)
        assert out.dtype == (F64 if x.dtype == F64 else F32)
        found[path] = (out.detach(), *gs)
    exactness = {"rtol": 1e-5, "atol": 1e-7} if x.dtype != F64 else {}
    close(found["tiled"][0], found["stock"][0], **exactness)
    rounded = {torch.bfloat16: 1e-2, torch.float16: 2e-3, F32: 1e-5}.get(x.dtype, 1e-10)
    for a, b in zip(found["tiled"][1:], found["stock"][1:], strict=True):
        close(a.double(), b.double(), rtol=rounded, atol=1e-6 if x.dtype != F64 else 1e-12)


@every_loss
@every_mode
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32_and_its_gradient_rounded_once(
    path, loss, mode, dtype
):
    x, y = torch.randn(2, 9, 7).to(dtype)
    module = loss(0.3, mode, reduction="sum")
    found = value_and_gradients(module, x, y)
    expected = value_and_gradients(module, x.double(), y.double())
    assert found[0].dtype == F32
    close(found[0].double(), expected[0], rtol=1e-6)
    for g, wide in zip(found[1:], expected[1:], strict=True):
        assert g.dtype == dtype
        error = (g.double() - wide).abs()
        assert (error <= 0.51 * torch.finfo(dtype).eps * wide.abs() + 1e-7).all()


@every_loss
@every_mode
@pytest.mark.parametrize(
    ("a", "b", "computed"),
    [
        (torch.bfloat16, F32, F32),
        (F32, torch.float16, F32),
        (torch.bfloat16, torch.float16, F32),
        (F32, F64, F64),
        (F64, torch.bfloat16, F64),
    ],
)
def test_dtypes_that_differ_are_computed_in_the_wider(path, loss, mode, a, b, computed):
    x, y = torch.randn(8, 7).to(a), torch.randn(8, 7).to(b)
    for needed in ((True, True), (True, False), (False, True)):
        leaves = [z.clone().requires_grad_(n) for z, n in zip((x, y), needed, strict=True)]
        out = loss(0.3, mode)(*leaves)
        assert out.dtype == computed
        want = plain(loss, x.double() - y.double(), 0.3, mode).mean()
        close(out.double(), want, rtol=1e-5 if computed == F32 else 1e-12)
        held = [z for z in leaves if z.requires_grad]
        wide = [z.detach().double().requires_grad_(z.requires_grad) for z in leaves]
        exact = torch.autograd.grad(loss(0.3, mode)(*wide), [z for z in wide if z.requires_grad])
        for z, g, e in zip(held, torch.autograd.grad(out, held), exact, strict=True):
            assert g.dtype == z.dtype
            close(g.double(), e, rtol=1.1 * torch.finfo(z.dtype).eps + 1e-12, atol=1e-8)


@every_loss
@every_mode
def test_the_target_alone_gets_its_gradient_too(path, loss, mode):
    x, y = torch.randn(2, 5, 3, dtype=F64)
    both = value_and_gradients(loss(0.3, mode), x, y)
    alone = value_and_gradients(lambda y: loss(0.3, mode)(x, y), y)
    close(alone, (both[0], both[2]), rtol=0, atol=0)
    assert torch.equal(both[1], -both[2])


def test_inputs_are_not_written_to(path):
    for loss, mode in itertools.product(LOSSES, MODES):
        x, y = torch.randn(2, 6, 5)
        before = x.clone(), y.clone()
        x.requires_grad_()
        loss(0.5, mode)(x, y).backward()
        with torch.no_grad():
            loss(0.5, mode, reduction="none")(x, y)
        assert torch.equal(x.detach(), before[0])
        assert torch.equal(y, before[1])
        assert x._version == y._version == 0


# Derivatives of every kind. What the kit covers is run on the tiled path too.


@pytest.mark.parametrize("case", params(["PseudoHuberLoss", "CauchyLoss"]))
def test_passes_every_check_in_tiles(case, tiles):
    check_loss(case.loss(), case.inputs, exclude=case.exclude, compile=False)


@pytest.mark.wide
@every_loss
@every_mode
@pytest.mark.parametrize("c", [0.5, torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=F64)])
def test_second_derivatives_and_their_forward_modes_are_right_entry_by_entry(path, loss, mode, c):
    x, y = torch.randn(2, 4, 4, dtype=F64)
    x.requires_grad_()
    y.requires_grad_()
    fn = loss(c, mode, reduction="none")
    gradcheck(fn, (x, y), check_forward_ad=True, check_batched_grad=True)
    gradgradcheck(fn, (x, y), check_fwd_over_rev=True, check_batched_grad=True)


@every_loss
@every_mode
def test_third_derivatives_are_right(path, loss, mode):
    x, y = torch.randn(2, 3, 2, dtype=F64)
    module = loss(0.7, mode, reduction="sum")

    def second(x):
        (g,) = torch.autograd.grad(module(x, y), x, create_graph=True)
        return torch.autograd.grad(g.sin().sum(), x, create_graph=True)[0]

    gradcheck(second, x.requires_grad_())


@every_loss
@every_mode
@pytest.mark.parametrize(
    "derivative", [hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f))]
)
def test_hessians_are_right_in_every_order_of_modes(path, loss, mode, derivative):
    x, y = torch.randn(2, 3, 2, dtype=F64)
    found = derivative(lambda x: loss(0.7, mode, reduction="sum")(x, y))(x)
    want = jacrev(jacrev(lambda x: plain(loss, x - y, 0.7, mode).sum()))(x)
    close(found, want)


@every_loss
@every_mode
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorised_jacobians_and_hessians_of_autograd_are_right(path, loss, mode, strategy):
    x, y = torch.randn(2, 3, 2, dtype=F64)
    functional = torch.autograd.functional

    def reference(x):
        return plain(loss, x - y, 0.7, mode)

    found = functional.jacobian(
        lambda x: values(loss, x, y, 0.7, mode), x, vectorize=True, strategy=strategy
    )
    close(found, functional.jacobian(reference, x))
    module = loss(0.7, mode, reduction="sum")
    found = functional.hessian(
        lambda x: module(x, y), x, vectorize=True, outer_jacobian_strategy=strategy
    )
    close(found, functional.hessian(lambda x: reference(x).sum(), x))


@every_loss
@every_mode
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 1), (2, 0)])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_vmap_of_values_and_gradients_is_a_loop(path, loss, mode, axes, reduction):
    b, shape = 3, (4, 2)
    whole = [
        torch.randn(shape, dtype=F64) if axis is None
        else torch.randn(b, *shape, dtype=F64).movedim(0, axis)
        for axis in axes
    ]  # fmt: skip
    module = loss(0.7, mode, reduction=reduction)

    def slope(x, y):
        return grad(lambda x, y: module(x, y).sin().sum(), argnums=(0, 1))(x, y)

    for fn in (module, slope):
        found = vmap(fn, in_dims=axes)(*whole)
        alone = [
            fn(*(x if a is None else x.select(a, i) for x, a in zip(whole, axes, strict=True)))
            for i in range(b)
        ]
        if fn is module:
            close(found, torch.stack(alone))
        else:
            for i, g in enumerate(found):
                close(g, torch.stack([one[i] for one in alone]))


@every_mode
def test_a_trained_scale_gets_the_gradient_of_the_formula(path, mode):
    x, y = torch.randn(2, 6, 4, dtype=F64)
    for loss, value in itertools.product(LOSSES, (0.05, 1.0, 40.0)):
        scale = nn.Parameter(torch.tensor(value, dtype=F64))
        module = loss(scale, mode)
        assert list(module.parameters()) == [scale]
        found = torch.autograd.grad(module(x, y), scale)
        want = torch.autograd.grad(plain(loss, x - y, scale, mode).mean(), scale)
        close(found, want)


@every_loss
def test_the_gradient_of_a_trained_scale_keeps_its_digits_far_from_it(loss):
    # Formed from l = c f(r/c), the two parts of the pseudo-Huber's would cancel.
    for value, r in itertools.product((1e-3, 1.0, 1e3), (1e-3, 1.0, 1e3, 1e6)):
        scale = nn.Parameter(torch.tensor(value))
        out = of_residual(loss, torch.full((1, 1), r), scale, "elementwise")
        (g,) = torch.autograd.grad(out.sum(), scale)
        c = mpf(scale.item())
        h = mpmath.sqrt(mpf(r) ** 2 + c * c)
        true = c / h - 1 if loss is PseudoHuberLoss else -2 / (c * (1 + 2 * (c / mpf(r)) ** 2))
        assert float(g) == pytest.approx(float(true), rel=2e-6)


@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        *(("vector", shape) for shape in [(4,), (1,)]),
        *(("elementwise", shape) for shape in [(4, 3), (3,), (4, 1), (1, 1), (1, 3)]),
    ],
)
@every_loss
def test_a_scale_per_value_is_the_same_as_one_loss_each(path, loss, mode, shape):
    x, y = torch.randn(2, 4, 3, dtype=F64)
    c = torch.rand(shape, dtype=F64) + 0.5
    found = value_and_gradients(loss(c, mode, reduction="sum"), x, y)
    close(found, value_and_gradients(lambda x, y: plain(loss, x - y, c, mode).sum(), x, y))


def test_scales_are_buffers_or_parameters_and_move_with_the_module():
    buffer, parameter = CauchyLoss(torch.ones(3)), PseudoHuberLoss(nn.Parameter(torch.ones(3)))
    assert [name for name, _ in buffer.named_buffers()] == ["scale"]
    assert [name for name, _ in parameter.named_parameters()] == ["scale"]
    assert buffer.double().scale.dtype == F64
    assert list(CauchyLoss(2.0).state_dict()) == []
    other = CauchyLoss(torch.zeros(3) + 5.0)
    other.load_state_dict(CauchyLoss(torch.tensor([1.0, 2.0, 3.0])).state_dict())
    assert torch.equal(other.scale, torch.tensor([1.0, 2.0, 3.0]))
    x = torch.randn(4, 3)
    close(copy.deepcopy(other)(x, 0 * x), other(x, 0 * x))


def test_representation():
    assert repr(CauchyLoss()) == "CauchyLoss(reduction='mean')"
    shown = "PseudoHuberLoss(scale=0.5, mode='elementwise', reduction='sum')"
    assert repr(PseudoHuberLoss(0.5, "elementwise", reduction="sum")) == shown
    assert repr(CauchyLoss(torch.ones(3))) == "CauchyLoss(scale=tensor(3,), reduction='mean')"


# set_scale.


def test_set_scale_is_a_new_loss():
    x, y = torch.randn(2, 5)
    loss = CauchyLoss(3.0)
    for c in (0.5, torch.tensor(0.7), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), 2.0):
        loss.set_scale(c)
        close(loss(x, y), CauchyLoss(c)(x, y), rtol=0, atol=0)
    # Once a tensor, it stays one: state dicts and compiled graphs hold it.
    assert torch.equal(loss.state_dict()["scale"], torch.full((5,), 2.0))


def test_set_scale_of_a_trained_scale_keeps_the_parameter():
    scale = nn.Parameter(torch.ones(2))
    loss = CauchyLoss(scale)
    loss.set_scale(0.25)
    assert loss.scale is scale
    assert torch.equal(scale.detach(), torch.full((2,), 0.25))
    loss.set_scale(torch.tensor([1.0, 2.0]))
    assert loss.scale is scale
    assert torch.equal(scale.detach(), torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"scale: expected .*\(2,\), got \(3,\)"):
        loss.set_scale(torch.ones(3))
    other = nn.Parameter(torch.ones(1))
    loss.set_scale(other)
    assert list(loss.parameters()) == [other]


def test_set_scale_leaves_the_callers_tensor_alone():
    given_scale = torch.tensor([1.0])
    loss = CauchyLoss(given_scale)
    loss.set_scale(5.0)
    assert given_scale.item() == 1.0


@pytest.mark.parametrize("bad", [0.0, -1.0, NAN, INF, torch.tensor(-1.0), torch.tensor([1.0, NAN])])
def test_set_scale_refuses_what_the_constructor_refuses(bad):
    loss = CauchyLoss(2.0)
    with pytest.raises(ValueError, match=r"scale: expected .+, got"):
        loss.set_scale(bad)
    for wrong in ("auto", None, True, torch.tensor(1)):
        with pytest.raises(TypeError, match=r"scale: expected .+, got"):
            loss.set_scale(wrong)
    assert loss.scale == 2.0


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_with_a_tensor_scale_a_schedule_needs_one_graph():
    x, y = torch.randn(2, 6)
    loss = CauchyLoss(torch.tensor(1.0))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for c in (1.0, 0.5, torch.tensor(0.2), 0.1):
        loss.set_scale(c)
        close(compiled(x, y), CauchyLoss(float(c))(x, y), rtol=1e-5)
    assert counter.frame_count == 1


# adaptive_cauchy_scale.


def test_the_schedule_follows_the_rule():
    for n in (2, 10, 12, 21, 41, 81, 161, 321, 641):
        assert adaptive_cauchy_scale(n) == pytest.approx(math.exp(-1.15 * math.log(n - 1) - 0.85))
    assert adaptive_cauchy_scale(2) == math.exp(-0.85)
    assert adaptive_cauchy_scale(641) == pytest.approx(2.53e-4, rel=1e-2)
    assert adaptive_cauchy_scale(5, slope=0.0, intercept=0.0) == 1.0
    doubled = adaptive_cauchy_scale(21, intercept=-0.85 + math.log(2) / 2)
    assert doubled == pytest.approx(math.sqrt(2) * adaptive_cauchy_scale(21))


def test_the_first_stage_of_the_schedule_takes_the_initial_scale():
    assert adaptive_cauchy_scale(11) == 0.0345
    assert adaptive_cauchy_scale(11, 0.2) == 0.2
    assert adaptive_cauchy_scale(5, s0=4) == 0.0345
    assert adaptive_cauchy_scale(11, s0=4) == adaptive_cauchy_scale(11, s0=20) != 0.0345
    assert pytest.approx(0.00054 * math.sqrt(4 * 32 * 32), rel=2e-3) == 0.0345


def test_the_schedule_decreases():
    stages = [adaptive_cauchy_scale(10 * 2**i + 1) for i in range(7)]
    assert all(a > b > 0 for a, b in itertools.pairwise(stages))


@pytest.mark.parametrize(
    ("error", "argument", "options"),
    [
        (ValueError, "num_scales", {"num_scales": 1}),
        (ValueError, "num_scales", {"num_scales": 0}),
        (ValueError, "num_scales", {"num_scales": -11}),
        (TypeError, "num_scales", {"num_scales": 11.0}),
        (TypeError, "num_scales", {"num_scales": True}),
        (TypeError, "num_scales", {"num_scales": "11"}),
        (ValueError, "s0", {"s0": 0}),
        (TypeError, "s0", {"s0": 10.0}),
        (TypeError, "s0", {"s0": True}),
        (ValueError, "initial_scale", {"initial_scale": 0.0}),
        (ValueError, "initial_scale", {"initial_scale": -1.0}),
        (ValueError, "initial_scale", {"initial_scale": INF}),
        (TypeError, "initial_scale", {"initial_scale": None}),
        (ValueError, "slope", {"slope": NAN}),
        (ValueError, "slope", {"slope": -INF}),
        (TypeError, "slope", {"slope": "-1"}),
        (ValueError, "intercept", {"intercept": INF}),
        (TypeError, "intercept", {"intercept": None}),
    ],
)
def test_the_schedule_refuses_what_makes_no_sense(error, argument, options):
    with pytest.raises(error, match=f"^{argument}: expected .+, got"):
        adaptive_cauchy_scale(**{"num_scales": 21, **options})


# Weights and masks.


@every_loss
@every_mode
def test_weights_and_masks(path, loss, mode):
    x, y = torch.randn(2, 5, 3, dtype=F64)
    each = plain(loss, x - y, 0.4, mode)
    w = torch.rand(each.shape, dtype=F64)
    w.view(-1)[::2] = 0.0
    spoilt = x.clone()
    spoilt[w == 0] = NAN
    expected = {"mean": (w * each).sum() / w.sum(), "sum": (w * each).sum(), "none": w * each}
    expected["batchmean"] = (w * each).sum() / (w != 0).sum()
    for reduction, want in expected.items():
        module = loss(0.4, mode, reduction=reduction)
        out, g = value_and_gradients(lambda x, m=module: m(x, y, weight=w).sum(), spoilt)
        close(out, want.sum())
        close(module(spoilt, y, weight=w), want)
        assert (g[w == 0] == 0).all()
        assert (g[w != 0] != 0).all()
    for reduction in ("mean", "sum"):
        module = loss(0.4, mode, reduction=reduction)
        close(module(spoilt, y, weight=w > 0), getattr(each[w > 0], reduction)())


@every_mode
def test_nothing_is_broadcast(mode):
    loss = CauchyLoss(mode=mode)
    for wrong in [(5,), (5, 1), (1, 3), (1, 5, 3), (3, 5), ()]:
        for reduction in ("mean", "none"):
            loss.reduction = reduction
            with pytest.raises(ValueError, match=r"target: expected .*\(5, 3\), got"):
                loss(torch.ones(5, 3), torch.ones(wrong))


def test_a_subclass_that_overrides_per_sample_is_heard():
    class Doubled(CauchyLoss):
        def per_sample(self, input, target):
            return 2 * super().per_sample(input, target)

    x, y = torch.randn(2, 5)
    for reduction in ("mean", "sum", "batchmean", "none"):
        close(
            Doubled(reduction=reduction)(x, y),
            2 * CauchyLoss(reduction=reduction)(x, y),
            rtol=1e-6,
        )


@pytest.mark.parametrize("loss", [CauchyLoss(), PseudoHuberLoss(0.5)], ids=["elements", "samples"])
def test_autocast_does_not_reach_inside(path, loss):
    x, y = torch.randn(2, 6, 5)
    want = loss(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(x, y)
    assert found.dtype == F32
    assert torch.equal(found, want)


@every_mode
def test_checkpointing_and_a_second_backward_change_no_gradient(path, mode):
    x, y = torch.randn(2, 6, 5, dtype=F64)
    x.requires_grad_()
    loss = PseudoHuberLoss(0.5, mode)
    want = torch.autograd.grad(loss(x, y), x)
    out = loss(x, y)
    for _ in range(2):
        close(torch.autograd.grad(out, x, retain_graph=True), want, rtol=0, atol=0)
    again = checkpoint(loss, x, y, use_reentrant=False)
    close(torch.autograd.grad(again, x), want, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
@every_mode
def test_meta_tensors_give_shapes_and_dtypes(path, mode, dtype):
    x = torch.empty(4, 3, dtype=dtype, device="meta", requires_grad=True)
    out = CauchyLoss(mode=mode).per_sample(x, torch.empty_like(x))
    assert out.shape == ((4,) if mode == "vector" else (4, 3))
    assert out.dtype == F32
    out.sum().backward()
    assert x.grad.dtype == dtype


# Compilation.


@pytest.mark.usefixtures("fresh_compiler")
@every_mode
def test_compiled_with_dynamic_shapes_it_serves_every_batch_from_one_graph(mode):
    for loss in (PseudoHuberLoss(mode=mode), CauchyLoss(0.5, mode)):
        torch.compiler.reset()
        counter = CompileCounterWithBackend("aot_eager")
        fn = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
        for shape in ((5, 4), (8, 3), (6, 7)):
            x, y = torch.randn(2, *shape)
            for a, b in zip(value_and_gradients(fn, x, y), value_and_gradients(loss, x, y),
                            strict=True):  # fmt: skip
                close(a, b, rtol=1e-5, atol=1e-7)
        assert counter.frame_count == 1


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "loss", [PseudoHuberLoss(0.5), CauchyLoss(0.5)], ids=["samples", "elements"]
)
def test_inductor_gives_the_same_numbers(loss):
    x, y = torch.randn(2, 33, 65)
    fn = torch.compile(loss, fullgraph=True, dynamic=False)
    for a, b in zip(value_and_gradients(fn, x, y), value_and_gradients(loss, x, y), strict=True):
        close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.wide
@pytest.mark.parametrize("strict", [False, True])
@every_mode
def test_an_exported_program_serves_other_batch_sizes(mode, strict):
    loss = PseudoHuberLoss(0.5, mode)
    x, y = torch.randn(2, 6, 4)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(
        loss, (x, y), dynamic_shapes=({0: rows}, {0: rows}), strict=strict
    )
    x, y = torch.randn(2, 9, 4)
    close(program.module()(x, y), loss(x, y), rtol=1e-5)


# Memory. What the allocator gives out is deterministic.


def peak_bytes(run):
    """The most that torch's allocator holds during a run beyond what it held before."""
    run()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@every_loss
@every_mode
@pytest.mark.parametrize(
    "dtype",
    [F32, *(pytest.param(t, marks=pytest.mark.wide) for t in (F64, torch.bfloat16))],
    ids=str,
)
@pytest.mark.parametrize(
    "shape",
    [
        (4096, 1024),
        (1, 4 * MIB),
        *(pytest.param(s, marks=pytest.mark.wide) for s in ((2, 2048, 1024), (4 * MIB,))),
    ],
)
def test_forward_and_backward_hold_one_buffer_of_the_size_of_the_input(loss, mode, dtype, shape):
    x, y = torch.randn(2, *shape).to(dtype)
    x.requires_grad_()
    module = loss(0.03, mode)
    of_values = 4 * 3 * len(x) if mode == "vector" else 0
    peak = peak_bytes(lambda: torch.autograd.grad(module(x, y), x))
    assert x.nbytes <= peak <= 1.1 * x.nbytes + of_values


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
def test_a_sum_over_the_elements_never_makes_the_values(loss, reduction):
    x, y = torch.randn(2, 4 * MIB)
    module = loss(0.03, "elementwise", reduction=reduction)
    # Two tiles, of a sixteenth of the input each.
    assert peak_bytes(lambda: module(x, y)) <= 0.13 * x.nbytes
    assert peak_bytes(lambda: module(x, y, normalizer=3.0)) <= 0.13 * x.nbytes


@every_loss
def test_values_alone_hold_the_values_and_two_tiles(loss):
    x, y = torch.randn(2, 4 * MIB)
    module = loss(0.03, "elementwise", reduction="none")
    # The base hands out a copy of the values.
    assert peak_bytes(lambda: module.per_sample(x, y)) <= 1.1 * x.nbytes
    vector = loss(0.03, "vector", reduction="none")
    assert peak_bytes(lambda: vector(x.view(4096, 1024), y.view(4096, 1024))) <= 0.13 * x.nbytes


@every_loss
@every_mode
def test_residuals_that_need_the_slower_form_still_hold_one_buffer(loss, mode):
    x = torch.full((4096, 1024), 1e30, requires_grad=True)
    y = torch.zeros(4096, 1024)
    peak = peak_bytes(lambda: torch.autograd.grad(loss(0.03, mode)(x, y), x))
    assert peak <= 1.5 * x.nbytes


@every_loss
@every_mode
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
def test_only_the_inputs_are_saved_for_backward(loss, mode, dtype):
    x, y = torch.randn(2, 64, 50).to(dtype)
    x.requires_grad_()
    saved = []
    with (
        forced("tiled"),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        loss(0.5, mode)(x, y)
    large = [t for t in saved if t.numel() > 64]
    assert {t.data_ptr() for t in large} == {x.data_ptr(), y.data_ptr()}


# Claims.


def test_claims_name_the_scale():
    assert CauchyLoss(0.5).properties().lipschitz == pytest.approx(2**0.5)
    assert CauchyLoss(torch.tensor([3.0, 0.5])).properties().lipschitz == pytest.approx(2**0.5)
    assert PseudoHuberLoss(1e-9).properties().lipschitz == 1.0
    assert PseudoHuberLoss().properties().convex is True
    assert CauchyLoss().properties().convex is False
    # Convex as far as the root of 2 scales, where the stored counterexample does not reach.
    a, b, y = CauchyLoss(0.5).properties().counterexamples["convex"]
    assert bool((a >= 2**0.5 * 0.5).all())
    assert bool((b > a).all())
    assert bool((y == 0).all())


@every_loss
@pytest.mark.parametrize("c", [1e-3, 1.0, 50.0])
def test_the_kit_proves_the_claims_at_any_scale(loss, c):
    names = ("convex", "bounds", "lipschitz", "smoothness")
    from lossary.testing import CHECKS

    exclude = set(CHECKS) - {f"property:{name}" for name in names}

    def at_scale(inputs):
        return lambda *args: tuple(c * x for x in inputs(*args))

    check_loss(loss(c, "elementwise"), at_scale(numbers), exclude=exclude)
    check_loss(loss(c, "vector"), at_scale(vectors), exclude=exclude)


def test_cases_cover_both_modes_and_every_kind_of_scale():
    for name in ("PseudoHuberLoss", "CauchyLoss"):
        made = [case.loss() for case in CASES[name]]
        assert {loss.mode for loss in made} == set(MODES)
        assert {type(loss.scale) for loss in made} >= {float, torch.Tensor, nn.Parameter}


@every_loss
@pytest.mark.parametrize("weighted", [False, True])
def test_batchmean_counts_the_elements_of_all_processes(loss, weighted, monkeypatch):
    # As if another process had 6 elements.
    monkeypatch.setattr(_distributed, "world_size", lambda group=None: 2)
    monkeypatch.setattr(_distributed, "sum_over_ranks", lambda x, group=None: x + 6)
    x = torch.tensor([[0.5, -1.0], [2.0, 0.0]], dtype=F64)
    keywords = {"weight": torch.ones(2, 2, dtype=F64)} if weighted else {}
    values = loss(0.7, "elementwise", reduction="none")(x, torch.zeros_like(x))
    found = loss(0.7, "elementwise", reduction="batchmean")(x, torch.zeros_like(x), **keywords)
    torch.testing.assert_close(found, 2 * values.sum() / 10)
