"""Focal, Poly, smoothed and Brier losses, the penalty on log Z, and coverage of N attempts."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import one_hot

from lossary import (
    ActivePassiveLoss,
    AsymmetricExponentialLoss,
    AsymmetricGCELoss,
    AsymmetricUnhingedLoss,
    BrierLoss,
    CompSumLoss,
    DirectCoverageLoss,
    FocalLoss,
    JensenShannonLoss,
    LabelSmoothingCrossEntropyLoss,
    LinearLogits,
    LogitZRegularizer,
    NormalizedCrossEntropyLoss,
    PolyLoss,
    RobustLogLoss,
)
from lossary._numerics import exp_remainder
from single_rows import (
    all_values,
    close,
    distributions,
    gradient,
    least_risk,
    risk,
    rows,
    value,
)

F32, F64 = torch.float32, torch.float64
INF, NAN = math.inf, math.nan


# Every loss of one row of logits against its formula, at the ends of what logits can be.


def jensen_shannon(w):
    def formula(p, y, _):
        def plogp(x):
            return x * mpmath.log(x)

        m = [(1 - w) * x + w * (k == y) for k, x in enumerate(p)]
        total = (1 - w) * mpmath.fsum(map(plogp, p)) - mpmath.fsum(map(plogp, m))
        return total / (-(1 - w) * mpmath.log(1 - w))

    return formula


def robust_log(a):
    def formula(p, y, _):
        rest = [mpmath.log(a + x) for k, x in enumerate(p) if k != y]
        return mpmath.log((a + 1) / a) - mpmath.log(a + p[y]) + mpmath.fsum(rest) / len(rest)

    return formula


def smoothed(s):
    return lambda p, y, _: (
        -(1 - s) * mpmath.log(p[y]) - s * mpmath.fsum(map(mpmath.log, p)) / len(p)
    )


def normalised(p, y, _):
    return mpmath.log(p[y]) / mpmath.fsum(map(mpmath.log, p))


def brier(p, y, _):
    return mpmath.fsum((x - (k == y)) ** 2 for k, x in enumerate(p))


#: Loss and formula, a function of the probabilities, the target and log Z.
FORMULAS = {
    "smoothing": (LabelSmoothingCrossEntropyLoss(0.1), smoothed(mpmath.mpf(0.1))),
    "smoothing_1": (LabelSmoothingCrossEntropyLoss(1.0), smoothed(1)),
    "smoothing_0": (LabelSmoothingCrossEntropyLoss(0.0), smoothed(0)),
    "brier": (BrierLoss(), brier),
    "log_z": (LogitZRegularizer(0.01), lambda p, y, z: mpmath.mpf(0.01) * z**2),
    "nce": (NormalizedCrossEntropyLoss(), normalised),
    "ael": (AsymmetricExponentialLoss(0.5), lambda p, y, _: mpmath.exp(-p[y] / 0.5)),
    "active_passive": (
        ActivePassiveLoss(alpha=2.0, beta=0.5),
        lambda p, y, z: 2 * normalised(p, y, z) + 2 * (1 - p[y]),
    ),
    **{
        f"poly_{e}": (PolyLoss(e), lambda p, y, _, e=e: -mpmath.log(p[y]) + e * (1 - p[y]))
        for e in (-1.0, -0.5, 0.0, 1.0, 5.0)
    },
    **{
        f"focal_{g}": (FocalLoss(g), lambda p, y, _, g=g: -((1 - p[y]) ** g) * mpmath.log(p[y]))
        for g in (0.0, 0.25, 1.0, 2.0)
    },
    **{
        f"agce_{a}_{q}": (
            AsymmetricGCELoss(a, q),
            lambda p, y, _, a=a, q=q: (mpmath.mpf(a + 1) ** q - (a + p[y]) ** q) / q,
        )
        for a, q in ((1.0, 2.0), (3.0, 1.5), (0.0, 0.5), (2.0**-13, 0.5), (0.5, 0.5))
    },
    **{
        f"aul_{a}_{q}": (
            AsymmetricUnhingedLoss(a, q),
            lambda p, y, _, a=a, q=q: ((a - p[y]) ** q - mpmath.mpf(a - 1) ** q) / q,
        )
        for a, q in ((1.5, 0.9), (6.0, 1.5), (1.0625, 0.5))
    },
    **{f"rll_{a}": (RobustLogLoss(a), robust_log(mpmath.mpf(a))) for a in (0.125, 8.0)},
    **{
        f"js_{w}": (JensenShannonLoss(w), jensen_shannon(mpmath.mpf(w)))
        for w in (0.5, 2.0**-20, 0.125, 0.875, 1 - 2.0**-20)
    },
}
ROWS = {
    "ordinary": (0.5, 1.25, -0.75, 0.0),
    "tied": (0.0, 0.0, 0.0, 0.0),
    "right": (5.0, 0.5, -1.0, 0.0),
    "wrong": (-5.0, 0.5, -1.0, 0.0),
    **{f"{x:g}": (x, 1.0, -1.0, 0.5) for x in (20.0, -20.0, 80.0, -80.0, 1e4, -1e4)},
}


def exact(formula, f, y):
    """Value and gradient, to many digits."""

    def at(z):
        top = max(z)
        e = [mpmath.exp(x - top) for x in z]
        total = mpmath.fsum(e)
        return formula([x / total for x in e], y, top + mpmath.log(total))

    with mpmath.workdps(120):  # where 1 - p_y rounds to 0 there, it is 0 in float64 too
        z = [mpmath.mpf(x) for x in f]
        h = mpmath.mpf(10) ** -30
        slopes = []
        for k in range(len(z)):
            up, down = ([x + s * h * (i == k) for i, x in enumerate(z)] for s in (1, -1))
            slopes.append(float((at(up) - at(down)) / (2 * h)))
        return float(at(z)), slopes


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name, row):
    loss, formula = FORMULAS[name]
    expected, slopes = exact(formula, ROWS[row], 0)
    for dtype, rtol in ((F64, 1e-11), (F32, 2e-5)):
        f = torch.tensor([ROWS[row]], dtype=dtype, requires_grad=True)
        out = loss(f, torch.tensor([0]))
        (g,) = torch.autograd.grad(out, f)
        tiny = max(torch.finfo(dtype).tiny, 1e-80)  # below, differences are noise
        assert out.item() == pytest.approx(expected, rel=rtol, abs=tiny)
        # Where terms cancel, an error is relative to the row's largest slope.
        scale = max(*map(abs, slopes), 1e-4 if row == "tied" else 0.0)
        assert g[0].tolist() == pytest.approx(slopes, rel=rtol, abs=max(tiny, rtol * scale))


@pytest.mark.parametrize("name", FORMULAS)
def test_a_forbidden_class_and_an_impossible_target(name):
    loss, _ = FORMULAS[name]
    f = torch.tensor([[0.5, -INF, 1.0, -1.0]], dtype=F64, requires_grad=True)
    kept = f.detach()[:, [0, 2, 3]].clone().requires_grad_()
    out = loss(f, torch.tensor([0]))
    (g,) = torch.autograd.grad(out, f)
    assert not out.isnan()
    assert not g.isnan().any()
    of_few = ("poly", "focal", "agce", "aul", "ael", "js", "brier", "log_z", "smoothing_0")
    if name.startswith(of_few):  # what does not depend on how many classes there are
        same = loss(kept, torch.tensor([0]))
        close(out, same)
        torch.testing.assert_close(g[:, [0, 2, 3]], torch.autograd.grad(same, kept)[0])
        assert g[0, 1] == 0
    out = loss(f, torch.tensor([1]))
    (g,) = torch.autograd.grad(out, f)
    assert not g.isnan().any()
    facts = loss.properties(4)
    if name == "log_z":
        close(out, value(loss, kept[0].detach(), 0))
    elif name.startswith(("brier", "rll")):  # there the rest is not in the worst place
        assert torch.isfinite(out)
    else:
        close(out, facts.upper)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_value_of_every_class_keeps_the_same_digits(name):
    # What probability targets are an expectation of.
    loss, _ = FORMULAS[name]
    f = torch.tensor([[60.0, 0.0, -1.0, 0.5], [0.0, -60.0, 1.0, 0.9]], dtype=F64)
    every = loss.per_sample(f, None)
    for k in range(4):
        close(every[:, k], loss.per_sample(f, torch.full((2,), k)), rtol=1e-10)


@pytest.mark.parametrize("name", FORMULAS)
def test_all_rivals_are_forbidden(name):
    loss, _ = FORMULAS[name]
    f = torch.tensor([[0.5, -INF, -INF]], dtype=F64, requires_grad=True)
    out = loss(f, torch.tensor([0]))
    (g,) = torch.autograd.grad(out, f)
    assert not g.isnan().any()
    if name == "log_z":
        close(out, 0.01 * 0.25)
    elif name in ("smoothing", "smoothing_1"):
        assert out == INF
    else:
        close(out, loss.properties(3).lower)


# Label smoothing.


@given(rows(), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_smoothing_is_torchs(row, s):
    f, y = row
    loss = LabelSmoothingCrossEntropyLoss(s)
    expected = F.cross_entropy(f[None], torch.tensor([y]), label_smoothing=s)
    close(value(loss, f, y), expected, atol=1e-12)
    every = all_values(CompSumLoss(), f)
    close(value(loss, f, y), (1 - s) * every[y] + s * every.mean(), atol=1e-12)
    g = gradient(loss, f, y)
    label = (1 - s) * one_hot(torch.tensor(y), len(f)).double() + s / len(f)
    torch.testing.assert_close(g, torch.softmax(f, 0) - label, rtol=1e-10, atol=1e-13)


def test_smoothing_of_probabilities_is_the_expectation():
    f = torch.randn(9, 5, dtype=F64, requires_grad=True)
    q = torch.softmax(torch.randn(9, 5).double() * 3, 1)
    cw = torch.rand(5, dtype=F64)
    loss = LabelSmoothingCrossEntropyLoss(0.3, class_weight=cw, reduction="none")
    every = -0.7 * torch.log_softmax(f, 1) - 0.3 * torch.log_softmax(f, 1).mean(1, keepdim=True)
    close(loss(f, q), (q * cw * every).sum(1))
    # A row that is not there may hold anything.
    lost = f.detach().clone()
    lost[2] = INF
    out = loss(lost, q, weight=torch.arange(9) != 2)
    assert out[2] == 0
    assert torch.isfinite(out).all()
    # Nor has a row any loss whose classes have weight 0, though a class of it be impossible.
    f = torch.tensor([[0.0, 1.0, -INF]], dtype=F64)
    loss = LabelSmoothingCrossEntropyLoss(0.3, class_weight=torch.tensor([0.0, 1.0, 1.0]))
    assert loss(f, torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)) == 0


def test_smoothing_is_least_at_the_smoothed_target():
    for s, k in ((0.1, 3), (0.5, 4)):
        own = torch.full((k,), s / k, dtype=F64)
        own[1] += 1 - s
        loss = LabelSmoothingCrossEntropyLoss(s)
        entropy = -(own * own.log()).sum()
        close(value(loss, own.log(), 1), entropy)
        close(loss.properties(k).lower, entropy)
        assert gradient(loss, own.log(), 1).abs().max() < 1e-15


@given(distributions(), st.floats(0.0, 0.9))
def test_smoothing_moves_the_minimiser_to_a_mixture(q, s):
    loss = LabelSmoothingCrossEntropyLoss(s, reduction="none")
    found = torch.softmax(torch.tensor(least_risk(loss, q).x), 0).numpy()
    np.testing.assert_allclose(found, (1 - s) * q + s / len(q), atol=1e-6)


# Poly.


@given(rows(), st.floats(-1.0, 6.0))
def test_poly_is_a_sum_of_two_comp_sum_losses(row, epsilon):
    f, y = row
    loss = PolyLoss(epsilon)
    parts = value(CompSumLoss(), f, y) + epsilon * value(CompSumLoss(2.0), f, y)
    close(value(loss, f, y), parts, rtol=1e-10, atol=1e-14)
    p = torch.softmax(f, 0)
    expected = (1 + epsilon * p[y]) * (p - one_hot(torch.tensor(y), len(f)))
    torch.testing.assert_close(gradient(loss, f, y), expected, rtol=1e-9, atol=1e-12)
    assert gradient(loss, f, y).norm() <= loss.properties().lipschitz * (1 + 1e-12)


@pytest.mark.parametrize("epsilon", [-1.0, -0.5, 0.0, 1.0])
def test_poly_is_convex_up_to_1(epsilon):
    loss = PolyLoss(epsilon)
    for f in torch.randn(20, 4, dtype=F64) * 3:
        h = torch.autograd.functional.hessian(lambda x: value(loss, x, 0), f)
        assert torch.linalg.eigvalsh(h).min() > -1e-13
    assert PolyLoss(1.01).properties().convex is False


def test_exp_remainder():
    size = torch.logspace(-12, 2, 60, dtype=F64)
    x = torch.cat((-size, size)).requires_grad_()
    out = exp_remainder(x)
    (g,) = torch.autograd.grad(out.sum(), x)
    with mpmath.workdps(40):
        for a, b, c in zip(x.tolist(), out.tolist(), g.tolist(), strict=True):
            assert b == pytest.approx(float(mpmath.expm1(a) - mpmath.mpf(a)), rel=1e-15)
            assert c == pytest.approx(math.expm1(a), rel=1e-14)


# Focal.


@given(rows(), st.floats(0.0, 5.0))
def test_focal_gradient_is_of_the_factor_too(row, gamma):
    f, y = row
    g = gradient(FocalLoss(gamma), f, y)
    p = torch.softmax(f, 0)
    miss = (p.sum() - p[y]) if p[y] < 0.5 else p[torch.arange(len(f)) != y].sum()
    slope = miss**gamma - gamma * p[y] * miss ** (gamma - 1) * p[y].log()
    expected = slope * (p - one_hot(torch.tensor(y), len(f)))
    torch.testing.assert_close(g, expected, rtol=1e-7, atol=1e-10)


def test_focal_with_the_factor_detached_is_another_loss():
    # As some published code has it: without the second term the pull on the target is weaker.
    f, y = torch.tensor([0.5, 0.0, -1.0], dtype=F64), 0
    x = f.clone().requires_grad_()
    log_p = torch.log_softmax(x, 0)[y]
    (detached,) = torch.autograd.grad(-((1 - log_p.exp().detach()) ** 2) * log_p, x)
    ours = gradient(FocalLoss(2.0), f, y)
    close(value(FocalLoss(2.0), f, y), -((1 - log_p.exp()) ** 2 * log_p).detach())
    assert ours[y] < 1.5 * detached[y] < 0


@given(rows(), st.lists(st.floats(0.0, 8.0), min_size=2, max_size=5))
def test_focal_falls_in_gamma(row, gammas):
    f, y = row
    values = [value(FocalLoss(g), f, y) for g in sorted(gammas)]
    assert all(a >= b >= 0 for a, b in itertools.pairwise(values))
    assert values[0] <= value(CompSumLoss(), f, y)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
def test_focal_has_no_slope_where_the_power_has_an_infinite_one(gamma):
    f = torch.tensor([[200.0, 0.0, -1.0]], requires_grad=True)
    log_p = torch.log_softmax(f, 1)[0, 0]
    (plain,) = torch.autograd.grad(-((1 - log_p.exp()) ** gamma) * log_p, f)
    assert plain.isnan().any()
    out = FocalLoss(gamma)(f, torch.tensor([0]))
    (g,) = torch.autograd.grad(out, f)
    assert out == 0
    assert (g == 0).all()


@given(distributions(), st.floats(0.2, 4.0))
def test_focal_minimiser_is_in_order_and_flatter(q, gamma):
    p = torch.softmax(torch.tensor(least_risk(FocalLoss(gamma, reduction="none"), q).x), 0).numpy()
    assert (np.argsort(p) == np.argsort(q)).all()
    assert p.max() < q.max()
    assert p.min() > q.min()


def test_focal_alpha_multiplies_and_stays_out_of_the_mean():
    f, y = torch.randn(8, 3, dtype=F64), torch.tensor([0, 1, 2, 2, 1, 0, 0, -100])
    alpha = torch.tensor([0.2, 1.0, 3.0], dtype=F64)
    plain = FocalLoss(1.5, reduction="none")(f, y)
    expected = plain[:7] * alpha[y[:7]]
    close(FocalLoss(1.5, alpha, reduction="none")(f, y)[:7], expected)
    close(FocalLoss(1.5, alpha)(f, y), expected.mean())
    weighted = FocalLoss(1.5, class_weight=alpha)(f, y)
    close(weighted, expected.sum() / alpha[y[:7]].sum())
    q = torch.softmax(torch.randn(8, 3).double(), 1)
    every = torch.stack(
        [FocalLoss(1.5, reduction="none")(f, torch.full((8,), k)) for k in range(3)]
    )
    close(FocalLoss(1.5, alpha, reduction="none")(f, q), (q.T * alpha[:, None] * every).sum(0))
    assert "alpha" in FocalLoss(alpha=alpha).state_dict()


def sigmoid_focal(f, y, gamma, alpha):
    """The formula of object detection, with sigmoids."""
    p = torch.sigmoid(f)
    p_t = p * y + (1 - p) * (1 - y)
    ce = F.binary_cross_entropy_with_logits(f, y, reduction="none")
    factor = 1.0 if alpha is None else alpha * y + (1 - alpha) * (1 - y)
    return factor * ce * (1 - p_t) ** gamma


@pytest.mark.parametrize("alpha", [None, 0.25, 0.0])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 2, 2), ()])
def test_binary_focal(alpha, shape):
    f = (torch.randn(shape, dtype=F64) * 3).requires_grad_()
    y = torch.randint(2, shape)
    loss = FocalLoss(1.5, alpha, binary=True, reduction="none")
    expected = sigmoid_focal(f, y.double(), 1.5, alpha)
    for target in (y, y.double(), y.to(torch.int8)):
        out = loss(f, target)
        assert out.shape == shape
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-15)
        grads = [torch.autograd.grad(x.sum(), f, retain_graph=True)[0] for x in (out, expected)]
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-13)


def test_binary_targets_between_the_classes_are_expectations():
    f, y = torch.randn(6, dtype=F64), torch.rand(6, dtype=F64)
    loss = FocalLoss(2.0, 0.25, binary=True, reduction="none")
    ones, zeros = (sigmoid_focal(f, torch.full((6,), v).double(), 2.0, 0.25) for v in (1.0, 0.0))
    close(loss(f, y), y * ones + (1 - y) * zeros)
    loss = BrierLoss(binary=True, reduction="none")
    close(loss(f, y), (torch.sigmoid(f) - y) ** 2)


@pytest.mark.parametrize("kind", [FocalLoss, BrierLoss])
def test_binary_forms_mask_weight_and_differentiate(kind):
    loss = kind(binary=True)
    f = torch.tensor([1.0, NAN, -2.0, 0.5], dtype=F64, requires_grad=True)
    y = torch.tensor([1, -100, 0, 1])
    out = loss(f, y)
    close(out, loss(f[[0, 2, 3]], y[[0, 2, 3]]))
    (g,) = torch.autograd.grad(out, f)
    assert g[1] == 0
    assert torch.isfinite(g).all()
    kept = torch.tensor([True, False, True, True])
    close(loss(f, y.clamp(min=0), weight=kept), out)
    close(loss(f, y.clamp(min=0).double(), weight=kept), out)
    cw = torch.tensor([1.0, 3.0], dtype=F64)
    values = kind(binary=True, reduction="none")(f[[0, 2, 3]], y[[0, 2, 3]])
    expected = (values * torch.tensor([3.0, 1.0, 3.0])).sum() / 7
    close(kind(binary=True, class_weight=cw)(f, y), expected)
    x = torch.randn(5, dtype=F64, requires_grad=True)
    t = torch.randint(2, (5,))
    assert gradcheck(lambda x: loss(x, t), (x,))
    assert gradgradcheck(lambda x: loss(x, t), (x,))
    half = x.detach().half()
    assert loss(half, t).dtype is F32
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    close(compiled(x, t), loss(x, t))
    # Saturated: digits of the small side are kept.
    for far in (30.0, -30.0, 90.0, -90.0):
        z = torch.tensor([far], requires_grad=True)
        exact = z.detach().double().requires_grad_()
        for target in (0, 1):
            pair = [loss(v, torch.tensor([target])) for v in (z, exact)]
            grads = [torch.autograd.grad(o, v)[0] for o, v in zip(pair, (z, exact), strict=True)]
            torch.testing.assert_close(pair[0].double(), pair[1], rtol=1e-5, atol=1e-37)
            torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-5, atol=1e-37)


def test_binary_forms_declare_what_holds_of_one_logit():
    x = torch.linspace(-40.0, 40.0, 4001, dtype=F64, requires_grad=True)
    for loss in (FocalLoss(0.0, binary=True), FocalLoss(2.0, 0.25, True), BrierLoss(True)):
        facts = loss.properties()
        values = type(loss).forward
        loss.reduction = "none"
        for target in (0, 1):
            values = loss(x, torch.full((4001,), target))
            (slope,) = torch.autograd.grad(values.sum(), x)
            assert values.min() >= facts.lower
            assert values.max() <= facts.upper
            assert slope.abs().max() <= facts.lipschitz
            bent = (values[2:] - 2 * values[1:-1] + values[:-2]).min() < -1e-12
            assert facts.convex == (not bent)
        assert facts.calibrated is None


# Brier.


@given(rows())
def test_brier_gradient_and_class_sum(row):
    f, y = row
    p = torch.softmax(f, 0)
    d = p - one_hot(torch.tensor(y), len(f))
    g = gradient(BrierLoss(), f, y)
    torch.testing.assert_close(g, 2 * p * (d - (p * d).sum()), rtol=1e-8, atol=1e-12)
    close(all_values(BrierLoss(), f).sum(), len(f) - 2 + len(f) * p.square().sum(), atol=1e-12)


def test_brier_of_two_classes_is_twice_the_binary_form():
    f, y = torch.randn(9, 2, dtype=F64) * 4, torch.randint(2, (9,))
    one = BrierLoss(binary=True, reduction="none")(f[:, 1] - f[:, 0], y)
    close(BrierLoss(reduction="none")(f, y), 2 * one, rtol=1e-10)


@given(distributions())
def test_brier_of_probabilities_is_the_distance(q):
    f, target = torch.randn(1, len(q), dtype=F64), torch.tensor(q)[None]
    p = torch.softmax(f, 1)
    close(BrierLoss()(f, target), (p - target).square().sum(), rtol=1e-11)
    loss = BrierLoss(reduction="none")
    # The expectation differs by a constant.
    close(BrierLoss()(f, target), risk(loss, f[0], q) - (1 - (q**2).sum()), rtol=1e-9)
    assert BrierLoss()(target.log(), target) < 1e-30


# The penalty on log Z.


@given(rows(), st.floats(0.001, 3.0))
def test_log_z(row, c):
    f, y = row
    loss = LogitZRegularizer(c)
    z = torch.logsumexp(f, 0)
    close(value(loss, f, y), c * z**2, rtol=1e-11, atol=1e-13)
    close(loss(f[None]), c * z**2, rtol=1e-11, atol=1e-13)
    expected = 2 * c * z * torch.softmax(f, 0)
    torch.testing.assert_close(gradient(loss, f, y), expected, rtol=1e-9, atol=1e-12)
    assert value(loss, torch.log_softmax(f, 0), y) < 1e-28
    # The cross-entropy does not see the shift that makes it so.
    close(value(CompSumLoss(), f - z, y), value(CompSumLoss(), f, y), rtol=1e-9, atol=1e-13)


def test_log_z_is_exact_where_the_target_is_far_below():
    f = torch.tensor([[-1e6, 0.0, 1.0]], requires_grad=True)
    exact = math.log(1 + math.e)
    for target in (torch.tensor([0]), None):
        out = LogitZRegularizer(1.0)(f, target)
        assert out.item() == pytest.approx(exact**2, rel=1e-6)


@pytest.mark.parametrize("ignored", [-100, 0, 1, 2])
def test_log_z_without_a_target_is_of_all_rows(ignored):
    f = torch.randn(4, 3, 2, dtype=F64)
    plain = 0.1 * torch.logsumexp(f, 1).square()
    loss = LogitZRegularizer(0.1, ignore_index=ignored)
    close(loss(f), plain.mean())
    close(loss(logits=f), plain.mean())
    last = LogitZRegularizer(0.1, ignore_index=ignored, class_dim=-1)(f.movedim(1, -1))
    close(last, plain.mean())
    weight = torch.rand(4, 2, dtype=F64)
    weight[1] = 0.0
    f[1] = NAN
    plain[1] = 0.0
    close(loss(f, weight=weight), (weight * plain).sum() / weight.sum())


def test_log_z_target_only_masks():
    f = torch.randn(5, 3, dtype=F64)
    f[2] = INF
    plain = 0.1 * torch.logsumexp(f, 1).square()
    loss = LogitZRegularizer(0.1)
    y = torch.tensor([0, 1, -100, 2, 2])
    kept = y >= 0
    close(loss(f, y), plain[kept].mean())
    q = torch.softmax(torch.randn(5, 3).double(), 1)
    close(loss(f, q, weight=kept), plain[kept].mean())
    cw = torch.tensor([1.0, 2.0, 5.0], dtype=F64)
    soft = LogitZRegularizer(0.1, class_weight=cw, reduction="none")(f[kept], q[kept])
    close(soft, plain[kept] * (q[kept] @ cw))
    w = cw[y[kept]]
    close(LogitZRegularizer(0.1, class_weight=cw)(f, y), (w * plain[kept]).sum() / w.sum())


def test_log_z_of_half_precision_is_computed_in_float32():
    f = (torch.randn(64, 512) * 4).bfloat16()
    out = LogitZRegularizer(1.0)(f)
    assert out.dtype is F32
    close(out.double(), torch.logsumexp(f.double(), 1).square().mean(), rtol=1e-5)


# Coverage.


@pytest.mark.parametrize("n", [1, 1.5, 2, 16, 1e4, 1e12])
def test_coverage_to_many_digits(n):
    points = (-1e-9, -1e-3, -0.1, -0.5, -0.69, -0.7, -2.0, -5.0, -20.0, -39.0, -43.0, -70.0, -700.0)
    loss = DirectCoverageLoss(n, reduction="none")
    for dtype, rtol in ((F64, 1e-12), (F32, 1e-5)):
        x = torch.tensor(points, dtype=dtype, requires_grad=True)
        out = loss(x)
        (g,) = torch.autograd.grad(out.sum(), x)
        for at, got, slope in zip(x.tolist(), out.tolist(), g.tolist(), strict=True):
            with mpmath.workdps(800):
                p, power = mpmath.exp(mpmath.mpf(at)), mpmath.mpf(n)
                chance = 1 - (1 - p) ** power
                expected = -mpmath.log(chance)
                factor = power * (1 - p) ** (power - 1) * p / chance
            assert got == pytest.approx(float(expected), rel=rtol, abs=1e-37)
            assert slope == pytest.approx(float(-factor), rel=rtol, abs=1e-37)


def test_coverage_of_a_certain_answer():
    x = torch.tensor([0.0, 1e-7, -0.0], requires_grad=True)
    for n in (1.5, 2, 16):
        out = DirectCoverageLoss(n, reduction="none")(x)
        (g,) = torch.autograd.grad(out.sum(), x)
        assert (out == 0).all()
        assert (g == 0).all()


def test_the_plain_formula_fails_on_any_long_sequence():
    x = torch.tensor([-50.0], dtype=F64, requires_grad=True)
    plain = -torch.log(1 - (1 - x.exp()) ** 16)
    assert plain == INF
    close(DirectCoverageLoss(16)(x), 50 - math.log(16))


@given(st.floats(-60.0, -1e-6), st.lists(st.floats(1.0, 1e4), min_size=2, max_size=4))
def test_coverage_bounds(logp, counts):
    x = torch.tensor([logp], dtype=F64)
    values = []
    for n in sorted(counts):
        out = DirectCoverageLoss(n)(x).item()
        assert -logp - math.log(n) - 1e-12 <= out <= -logp + 1e-12
        values.append(out)
        slope = torch.func.grad(DirectCoverageLoss(n).forward)(x)[0].item()
        assert -1 - 1e-12 <= slope <= 0
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(values))


def test_coverage_from_logits():
    f, y = torch.randn(6, 4, dtype=F64) * 3, torch.tensor([0, 1, 2, 3, -100, 1])
    loss = DirectCoverageLoss(8)
    logp = torch.log_softmax(f, 1)[torch.arange(6), y.clamp(min=0)]
    kept = y >= 0
    f[4] = NAN
    close(loss.from_logits(f, y), loss(logp[kept]), rtol=1e-9)
    weight = torch.rand(6, dtype=F64)
    close(loss.from_logits(f, y, weight=weight), loss(logp[kept], weight=weight[kept]), rtol=1e-9)
    close(loss.from_logits(f, y, normalizer=3.0), loss(logp[kept], normalizer=3.0), rtol=1e-9)
    hidden, head = torch.randn(6, 3, dtype=F64), torch.randn(4, 3, dtype=F64)
    streamed = loss.from_logits(LinearLogits(hidden, head), y)
    close(streamed, loss.from_logits(hidden @ head.T, y), rtol=1e-9)
    close(DirectCoverageLoss(1).from_logits(f[:4], y[:4]), F.cross_entropy(f[:4], y[:4]))
    with pytest.raises(TypeError, match="target: expected class indices"):
        loss.from_logits(f, torch.softmax(f, 1))
