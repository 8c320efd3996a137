"""Losses and gradients at the ends of what logits and hyper-parameters can be.

Every number is compared with the formula of the loss, written out here with mpmath for one row of
logits taken as exact. Errors are relative to the true number, entry by entry; what is smaller than
the smallest normal number may be anything that small, in gradients larger than 1 relative to the
row's largest entry. Two exceptions, which state the size that an error is relative to:

- LDR losses cross zero. An error of the value is relative to the terms that cancel in the formula,
  lam log sum_k exp(z_k/lam) and lam log K. For lam >= 4 the loss promises more, and it is relative
  to mean_k |z_k| where that is smaller. At the two ends the terms are the logits themselves.
- At temperature lam a logit enters as f/lam, whose rounding alone moves probabilities by
  |f|/lam half spacings, relatively. Where that exceeds the tolerance, at lam = 1e-3, it is added.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from unittest import mock

import mpmath
import pytest
import torch
from mpmath import expm1, log, log1p, mpf

from lossary import (
    CompSumLoss,
    GeneralizedCrossEntropyLoss,
    LDRKLLoss,
    MulticlassMAELoss,
    ReverseCrossEntropyLoss,
    SymmetricCrossEntropyLoss,
    _softmax,
)

INF = math.inf
F32, F64 = torch.float32, torch.float64
TOLERANCE = {F32: 1e-5, F64: 1e-12}
DIGITS = 60


@pytest.fixture(params=["stock", "tiled"])
def path(request):
    """Both eager paths, the tiles a few rows each."""
    values = {"TILED_FROM_BYTES": 1 << 62}
    if request.param == "tiled":
        tile_bytes = {"cpu": 200, "other": 200}
        values = {"TILED_FROM_BYTES": 0, "TILED_FROM_CLASSES": 0, "TILE_BYTES": tile_bytes}
    with mock.patch.multiple(_softmax, **values):
        yield request.param


# The formulas. A row is a list of exact logits; every function gives (value, gradient, size).


def rivals_of(f, y):
    return [k for k in range(len(f)) if k != y]


def odds_and_softmax(f, y):
    """u = sum_{k != y} exp(f_k - f_y) = 1/p_y - 1, -log p_y, and p - e_y."""
    if f[y] == -INF:
        top = max(f)
        e = [mpmath.exp(x - top) for x in f]
        p = [x / mpmath.fsum(e) for x in e]
        return mpf(INF), mpf(INF), [p[k] - (k == y) for k in range(len(f))]
    e = {k: mpmath.exp(f[k] - f[y]) for k in rivals_of(f, y)}
    u = mpmath.fsum(e.values())
    slope = [e[k] / (1 + u) if k != y else -u / (1 + u) for k in range(len(f))]
    return u, log1p(u), slope


def power_of_target(s, exponent):
    """p_y^exponent, with -log p_y = s."""
    if s == INF:
        return mpf(1) if exponent == 0 else mpf(0) if exponent > 0 else mpf(INF)
    return mpmath.exp(-exponent * s)


def times(a, b):
    """a b, where an infinite slope meets a class that is not pushed at all."""
    return mpf(0) if b == 0 else a * b


def comp_sum(tau):
    a = 1 - mpf(tau)

    def fn(f, y):
        _, s, slope = odds_and_softmax(f, y)
        if a == 0:
            value = s
        elif s == INF:
            value = mpf(INF) if a > 0 else -1 / a
        else:
            value = expm1(a * s) / a
        return value, [times(power_of_target(s, -a), x) for x in slope], abs(value)

    return fn


def generalized_cross_entropy(q):
    def fn(f, y):
        _, s, slope = odds_and_softmax(f, y)
        value = 1 / mpf(q) if s == INF else -expm1(-mpf(q) * s) / mpf(q)
        return value, [power_of_target(s, mpf(q)) * x for x in slope], value

    return fn


def absolute_error(scale):
    def fn(f, y):
        _, s, slope = odds_and_softmax(f, y)
        value = -mpf(scale) * slope[y]
        return value, [mpf(scale) * power_of_target(s, 1) * x for x in slope], value

    return fn


def symmetric_cross_entropy(alpha, beta, a):
    alpha, beta, a = mpf(alpha), mpf(beta), mpf(a)

    def fn(f, y):
        _, s, slope = odds_and_softmax(f, y)
        value = alpha * s + beta * a * slope[y]
        weight = alpha - beta * a * power_of_target(s, 1)
        return value, [weight * x for x in slope], value

    return fn


def ldr(lam, c):
    c = mpf(c)

    def fn(f, y):
        if f[y] == -INF:
            return mpf(INF), None, mpf(INF)
        k = len(f)
        z = [mpf(0) if j == y else f[j] - f[y] + c for j in range(k)]
        terms = max(abs(x) for x in f if x != -INF) + abs(f[y]) + c
        if lam == 0:
            top = max(z)
            best = [j for j in range(k) if z[j] == top]
            slope = [mpf((j == best[0]) - (j == y)) for j in range(k)]
            return top, slope if len(best) == 1 else None, terms
        if lam == INF:
            return mpmath.fsum(z) / k, [mpf(1) / k - (j == y) for j in range(k)], terms
        e = [mpmath.exp(x / mpf(lam)) for x in z]
        total = mpmath.fsum(e)
        rest = mpmath.fsum(e[j] for j in rivals_of(f, y))
        value = mpf(lam) * log(total / k)
        size = mpf(lam) * (abs(log(total)) + log(k))
        if lam >= 4:
            size = min(size, mpmath.fsum(abs(x) for x in z) / k)
        return value, [e[j] / total if j != y else -rest / total for j in range(k)], size

    return fn


@dataclass(frozen=True)
class Case:
    """A loss and its formula."""

    make: Callable[..., torch.nn.Module]
    formula: Callable[..., tuple]
    lam: float = 1.0
    tau: float = 1.0

    def rounding(self, f, dtype):
        """How far the rounding of f/lam alone moves the gradient, relatively."""
        if self.lam >= 0.5 or self.lam == 0.0:
            return 0.0
        largest = max(abs(x) for x in f if x != -INF)
        return (largest + 2.0) / self.lam * torch.finfo(dtype).eps / 2.0


CASES = {
    f"CompSum {tau!r}": Case(lambda tau=tau, **o: CompSumLoss(tau, **o), comp_sum(tau), tau=tau)
    for tau in (0.0, 0.5, 1.0, 1.0 - 1e-10, 1.0 + 1e-10, 1.5, 2.0, 3.0)
}
CASES |= {
    f"GCE {q!r}": Case(
        lambda q=q, **o: GeneralizedCrossEntropyLoss(q, **o), generalized_cross_entropy(q)
    )
    for q in (1e-10, 0.7, 1.0)
}
CASES |= {
    "MAE": Case(MulticlassMAELoss, absolute_error(1.0)),
    "MAE 2": Case(lambda **o: MulticlassMAELoss(scale=2.0, **o), absolute_error(2.0)),
    "RCE": Case(ReverseCrossEntropyLoss, absolute_error(4.0)),
    "SCE": Case(SymmetricCrossEntropyLoss, symmetric_cross_entropy(0.1, 1.0, -4.0)),
    "SCE 6 0.1": Case(
        lambda **o: SymmetricCrossEntropyLoss(6.0, 0.1, **o), symmetric_cross_entropy(6.0, 0.1, -4)
    ),
}
CASES |= {
    f"LDR {lam:g} {c:g}": Case(
        lambda lam=lam, c=c, **o: LDRKLLoss(lam, c, **o), ldr(lam, c), lam=lam
    )
    for lam in (0.0, 1e-3, 0.5, 1.0, 10.0, 1e3, 1e6, INF)
    for c in (0.0, 0.1, 2.0)
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
SOFTMAX = {name: case for name, case in CASES.items() if not name.startswith("LDR")}
SCALED = {name: case for name, case in CASES.items() if name.startswith("LDR")}

# The rows: logits that float32 holds, and a target.

GAPS = (0.0, 1e-3, 0.3, 1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 60.0, 80.0)
RIVALS = torch.tensor([0.0, -0.4, -1.3, -2.9]).tolist()


def behind_and_ahead(gaps, rivals):
    """The target by each gap above, then below its hardest rival."""
    own = [float(torch.tensor(sign * gap)) for gap in gaps for sign in (1.0, -1.0)]
    return [([*rivals[:1], x, *rivals[1:]], 1) for x in own]


ROWS = {
    "gaps": behind_and_ahead(GAPS, RIVALS),
    "gaps, two classes": behind_and_ahead(GAPS, RIVALS[:1]),
    "gaps, the spread in the rivals": [
        ([x, -80.0, 0.0, -33.0], y) for x in (0.25, 30.0, 79.0) for y in range(4)
    ],
    "certain to the last bit": behind_and_ahead((40.0, 80.0, 200.0), RIVALS),
    "one part in 10^4": [([1e4, -1e4, 0.0, 5.0, -5.0], y) for y in range(5)],
    "huge, two classes": [([1e4, -1e4], y) for y in range(2)],
    "equal": [([x] * 5, 3) for x in (0.0, 1.0, -7.0)],
    "equal and huge": [([x] * 5, 3) for x in (1e4, -1e4)],
    "tiny": [([1e-30, -1e-30, 0.0], y) for y in range(3)],
    "one class impossible": [([0.5, -INF, 2.0], y) for y in (0, 2)],
    "two classes, the other impossible": [([0.5, -INF], 0), ([-INF, -3.0], 1)],
    "the target impossible": [([-INF, 1.0, 0.0], 0), ([2.0, -INF, 2.5], 1)],
    "the target impossible, two classes": [([-INF, 1.0], 0), ([2.0, -INF], 1)],
}


@cache
def truth(name, rows):
    """Values, gradients and sizes of every row of a group, in float64; infinity if too large."""
    found = []
    with mpmath.workdps(DIGITS):
        for f, y in ROWS[rows]:
            value, slope, size = CASES[name].formula([mpf(x) for x in f], y)
            slope = None if slope is None else [as_float(x) for x in slope]
            found.append((as_float(value), slope, as_float(size)))
    return found


def as_float(x):
    return math.copysign(INF, x) if abs(x) > 1e307 else float(x)


def run(case, rows, dtype, scale=1.0):
    """The loss of every row of a group and the gradient of their sum, times a scale."""
    f = torch.tensor([f for f, _ in rows], dtype=dtype, requires_grad=True)
    y = torch.tensor([y for _, y in rows])
    value = case.make(reduction="none")(f, y)
    assert value.dtype is (F64 if dtype is F64 else F32)
    (g,) = torch.autograd.grad((value * scale).sum(), f)
    return value.detach().to(F64).tolist(), g.to(F64).tolist()


def wrong(found, true, tolerance, dtype, size=None, unit=1.0):
    """Tell whether a number is not the true one; beyond the largest number that is infinity."""
    info = torch.finfo(dtype)
    if abs(true) > info.max:
        return found != math.copysign(INF, true)
    size = abs(true) if size is None else max(size, abs(true))
    return not abs(found - true) <= tolerance * size + 2.0 * info.tiny * unit


def mistakes(name, rows, dtype, scale=1.0, tolerance=None):
    """What is wrong in a group of rows, in words."""
    case, out = CASES[name], []
    values, gradients = run(case, ROWS[rows], dtype, scale)
    tolerance = tolerance or TOLERANCE[dtype]
    most = torch.finfo(dtype).max
    for (f, y), v, g, (value, slope, size) in zip(
        ROWS[rows], values, gradients, truth(name, rows), strict=True
    ):
        if wrong(v, value, tolerance, dtype, size if name in SCALED else None):
            out.append(f"loss {v} != {value} at {f}, {y}")
        if any(map(math.isnan, g)):
            out.append(f"gradient {g} at {f}, {y}")
        elif slope is not None and (unit := max(map(abs, slope)) * scale) <= most:
            enough, unit = tolerance + case.rounding(f, dtype), max(unit, 1.0)
            true = [b * scale for b in slope]
            if any(wrong(a, b, enough, dtype, unit=unit) for a, b in zip(g, true, strict=True)):
                out.append(f"gradient {g} != {true} at {f}, {y}")
    return out


# The tests.


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_right_and_never_nan(path, name, rows, dtype):
    assert mistakes(name, rows, dtype) == []


@pytest.mark.parametrize("name", CASES)
def test_scaling_the_loss_scales_the_gradient_and_overflows_only_where_the_true_one_does(
    path, name
):
    # As gradient scalers do, by 2^16, before float32 underflow can round anything away.
    assert mistakes(name, "gaps", F32, scale=65536.0) == []
    assert mistakes(name, "gaps, two classes", F32, scale=65536.0) == []


@pytest.mark.parametrize("scale", [1.0, 65536.0])
@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_a_loss_that_overflows_is_infinite_with_a_gradient_that_still_points_the_right_way(
    path, tau, scale
):
    f = torch.tensor([[0.0, -gap, -1.0] for gap in (300.0, 1e3, 1e4)], requires_grad=True)
    value = CompSumLoss(tau, reduction="none")(f, torch.ones(3, dtype=torch.long))
    (g,) = torch.autograd.grad((value * scale).sum(), f)
    assert value.tolist() == [INF] * 3
    assert bool((g[:, 1] < -1e30).all())
    assert bool((g[:, 0] > 1e30).all())
    assert not bool(g.isnan().any())


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_the_loss_of_the_rounded_logits(path, case, dtype):
    f = (4.0 * torch.randn(12, 6)).to(dtype)
    f[6:] *= 4.0
    y = torch.randint(6, (12,))
    value = case.make(reduction="none")(f, y)
    assert value.dtype is F32
    with mpmath.workdps(DIGITS):
        for i in range(12):
            true, _, size = case.formula([mpf(float(x)) for x in f[i]], int(y[i]))
            sized = as_float(size) if case in SCALED.values() else None
            assert not wrong(float(value[i]), as_float(true), 1e-5, F32, sized)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SOFTMAX)
def test_half_precision_gradients_are_those_of_float32_rounded_once(path, name, dtype):
    f = (4.0 * torch.randn(12, 6)).to(dtype)
    y = torch.randint(6, (12,))
    loss = CASES[name].make(reduction="none")
    gradients = []
    for x in (f, f.float()):
        x = x.clone().requires_grad_()
        gradients += torch.autograd.grad(loss(x, y).sum(), x)
    half, full = gradients
    assert half.dtype is dtype
    info = torch.finfo(dtype)
    error = (half.float() - full).abs()
    fits = full.abs() < info.max
    assert bool((error <= 0.51 * info.eps * full.abs() + info.smallest_normal)[fits].all())


@pytest.mark.parametrize("c", [0.0, 0.1])
@pytest.mark.parametrize("f", [[0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 1.0, 2.0], [1e4, -1e4, 1e4, 1e4]])
def test_a_tie_in_the_hinge_of_the_hardest_rival_gives_a_subgradient(path, f, c):
    x = torch.tensor([f], requires_grad=True)
    (g,) = torch.autograd.grad(LDRKLLoss(0.0, c)(x, torch.tensor([0])), x)
    tied = {k for k in range(1, 4) if f[k] == max(f[1:])}
    g = g[0].tolist()
    assert all(v >= 0.0 for v in g[1:])
    assert {k for k in range(1, 4) if g[k] != 0.0} <= tied
    assert g[0] == -sum(g[1:])
    assert sum(g[1:]) == 1.0 or (c == 0.0 and sum(g[1:]) == 0.0)


@pytest.mark.parametrize("tau", [1.0 - 1e-10, 1.0 + 1e-10, 1.0 - 1e-14, 1.0 + 1e-14])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_next_to_tau_1_the_loss_is_cross_entropy(path, tau, dtype):
    gaps = torch.tensor([-80.0, -10.0, -1.0, 0.0, 1.0, 10.0, 35.0], dtype=dtype)
    f = torch.stack((gaps, torch.zeros(7, dtype=dtype), -torch.ones(7, dtype=dtype)), 1)
    y = torch.zeros(7, dtype=torch.long)
    found = CompSumLoss(tau, reduction="none")(f, y)
    expected = CompSumLoss(1.0, reduction="none")(f, y)
    # They differ by (tau - 1) CE^2 / 2.
    rtol = 41.0 * abs(tau - 1.0) + 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0.0)
