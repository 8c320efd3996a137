"""Losses of one logit: the logistic family and its perceptron limits, and randomly drawn slopes."""

import copy
import inspect
import math
import pickle
import warnings

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from torch.nn.functional import binary_cross_entropy_with_logits

from lossary import EnsLoss, NormalizedLogisticLoss, ScaledLogisticLoss
from single_rows import close

F32, F64 = torch.float32, torch.float64
scales = st.sampled_from((0.01, 0.5, 1.0, 3.0, 100.0))
margins = st.floats(-30.0, 30.0)
batches = st.lists(margins, min_size=1, max_size=8)


def signs(target):
    return 2.0 * target.double() - 1.0


def slopes(loss, logits, target, *more, **options):
    """The gradient in the logits, times the signs: the slope in the margin."""
    f = logits.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(f, target, *more, **options), f)
    return g * signs(target).to(g.dtype)


# Targets.


@pytest.mark.parametrize("loss", [ScaledLogisticLoss(), NormalizedLogisticLoss(), EnsLoss()])
def test_targets_of_any_type_are_the_same(loss):
    f, y = torch.randn(6), torch.tensor([0, 1, 1, 0, 1, 0])
    more = (torch.randn(6),) if isinstance(loss, EnsLoss) else ()
    want = loss(f, y, *more)
    for dtype in (torch.bool, torch.uint8, torch.int32, torch.float16, F32, F64):
        assert loss(f, y.to(dtype), *more) == want
    assert loss(f, 1 - y, *more) != want
    close(loss(-f, 1 - y, *more), want)


# Scaled logistic loss.


@given(st.floats(-1e4, 1e4), st.booleans(), scales)
def test_scaled_logistic_value_and_slope(f, y, scale):
    mpmath.mp.dps = 60
    m = mpf(f) * (1 if y else -1)
    x = torch.tensor(f, dtype=F64, requires_grad=True)
    out = ScaledLogisticLoss(scale)(x, torch.tensor(y))
    want = mpmath.log1p(mpmath.exp(-mpf(scale) * m)) / mpf(scale)
    close(out.detach(), float(want), rtol=1e-12, atol=1e-300)
    (g,) = torch.autograd.grad(out, x)
    push = 1 / (1 + mpmath.exp(mpf(scale) * m))
    close(g, float(-push if y else push), rtol=1e-12, atol=1e-300)


def test_scale_1_is_binary_cross_entropy():
    f, y = torch.randn(40, 3, dtype=F64) * 5, torch.randint(2, (40, 3))
    for reduction in ("mean", "sum", "none"):
        want = binary_cross_entropy_with_logits(f, y.double(), reduction=reduction)
        close(ScaledLogisticLoss(reduction=reduction)(f, y), want)


@given(margins, scales, scales)
def test_between_the_perceptron_and_it_plus_log_2_over_scale(m, s, t):
    def value(scale):
        return float(ScaledLogisticLoss(scale)(torch.tensor(m, dtype=F64), torch.tensor(1)))

    hinge = max(0.0, -m)
    assert value(math.inf) == hinge
    assert hinge <= value(s) <= hinge + math.log(2) / s * (1 + 1e-15)
    if s < t:
        assert value(s) >= value(t)


def test_at_margin_0():
    zero = torch.zeros(2, dtype=F64)
    y = torch.tensor([0, 1])
    for scale in (0.1, 1.0, 50.0):
        close(ScaledLogisticLoss(scale)(zero, y), math.log(2) / scale)
    for scale in (0.1, 1.0, 50.0, math.inf):
        close(slopes(ScaledLogisticLoss(scale, reduction="sum"), zero, y), [-0.5, -0.5])


@pytest.mark.parametrize("scale", [1e30, 1e38, 1e39, 1e300, math.inf])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_scale_that_overflows_is_the_perceptron(scale, dtype):
    f = torch.tensor([0.0, -2.0, 3.0, 1e-30, -1e10], dtype=dtype)
    y = torch.ones(5)
    loss = ScaledLogisticLoss(scale, reduction="none")
    close(loss(f, y).double(), [0.0, 2.0, 0.0, 0.0, 1e10], rtol=1e-7, atol=1e-29)
    got = slopes(ScaledLogisticLoss(scale, reduction="sum"), f, y)
    assert got[:3].tolist() == [-0.5, -1.0, 0.0]
    assert got[4] == -1.0


@given(st.floats(0.05, 0.95), scales)
def test_finite_scales_are_calibrated_and_the_perceptron_is_not(p, scale):
    # The risk's slope in the logit at 0 points to the more probable class; the optimum is there.
    f = torch.zeros(2, dtype=F64, requires_grad=True)
    q = torch.tensor([1 - p, p], dtype=F64)
    y = torch.tensor([0, 1])

    def risk(scale, f):
        return (ScaledLogisticLoss(scale, reduction="none")(f.expand(2), y) * q).sum()

    best = torch.tensor(math.log(p / (1 - p)) / scale, dtype=F64, requires_grad=True)
    (g,) = torch.autograd.grad(risk(scale, best), best)
    assert abs(g) < 1e-12
    for f in (-3.0, -0.1, 0.0, 0.2, 5.0):
        x = torch.tensor(f, dtype=F64)
        assert risk(scale, best) <= risk(scale, x) + 1e-15
        assert risk(math.inf, x) >= risk(math.inf, torch.zeros((), dtype=F64)) == 0.0


def separable(n=20, d=3, seed=0):
    """Points of two classes with a margin, as rows y_i a_i, and their labels."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, dtype=F64, generator=g)
    w = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    y = a @ w > 0
    a = a + 0.3 * torch.where(y, 1.0, -1.0).unsqueeze(1) * w / w.norm()
    return a, y, signs(y).unsqueeze(1) * a


def descend(loss, a, y, gamma, steps):
    theta = torch.zeros(a.shape[1], dtype=F64, requires_grad=True)
    path = []
    for _ in range(steps):
        (g,) = torch.autograd.grad(loss(a @ theta, y), theta)
        theta = (theta - gamma * g).detach().requires_grad_()
        path.append(theta.detach() / gamma)
    return path


def test_gradient_descent_with_a_large_step_is_the_batch_perceptron():
    a, y, z = separable()
    n = len(a)
    path = descend(ScaledLogisticLoss(), a, y, 1e6, 16)
    th = z.sum(0) / (2 * n)
    for t, got in enumerate(path):
        close(got, th, rtol=1e-9, atol=1e-12)
        th = th + z[z @ th <= 0].sum(0) / n
        # The same path, of a fixed step, for a loss of that scale.
        scaled = descend(ScaledLogisticLoss(1e6), a, y, 1.0, t + 1)[-1]
        close(scaled, got, rtol=1e-9, atol=1e-12)
    assert (z @ path[-1] > 0).all()
    assert not (z @ path[0] > 0).all()


# Normalised logistic loss.


@given(batches, st.integers(0, 255))
def test_normalized_logistic_value_and_gradient(f, bits):
    mpmath.mp.dps = 60
    y = torch.tensor([bits >> i & 1 for i in range(len(f))])
    f = torch.tensor(f, dtype=F64)
    m = [mpf(float(x)) for x in signs(y) * f]
    error = [1 / (1 + mpmath.exp(x)) for x in m]
    beta = len(m) / sum(error)
    want = [float(beta * mpmath.log1p(mpmath.exp(-x))) for x in m]
    got = NormalizedLogisticLoss(reduction="none")(f, y)
    close(got, want, rtol=1e-11)
    w = torch.tensor([float(x / sum(error)) for x in error], dtype=F64)
    found = slopes(NormalizedLogisticLoss(), f, y)
    close(found, -w, rtol=1e-11)
    close(found.abs().sum(), 1.0)
    assert float(sum(want)) / len(want) > 1 - 1e-12


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shift", [0.0, 100.0, 800.0, 1e4])
def test_it_survives_where_every_sigmoid_underflows(dtype, shift):
    f = (torch.tensor([0.0, 1.0, 2.5]) + shift).to(dtype)
    y = torch.tensor([1, 1, 1])
    error = [1 / (1 + mpmath.exp(mpf(float(x)))) for x in f]
    w = [float(x / sum(error)) for x in error]
    rtol = 1e-5 if dtype == F32 else 1e-11
    close(slopes(NormalizedLogisticLoss(), f, y), [-x for x in w], rtol=rtol)
    value = [float(3 / sum(error) * mpmath.log1p(mpmath.exp(-mpf(float(x))))) for x in f]
    close(NormalizedLogisticLoss(reduction="none")(f, y), value, rtol=rtol)
    if shift == 1e4:
        close(NormalizedLogisticLoss()(f, y), 1.0, rtol=rtol)
        assert torch.sigmoid(-f).sum() == 0.0  # 1/0 for the formula as it stands
    # Of wrong samples beside: those have all the gradient.
    both = torch.cat((f, torch.tensor([-5.0 - shift], dtype=dtype)))
    got = slopes(NormalizedLogisticLoss(), both, torch.ones(4))
    assert got.isfinite().all()
    assert got[3] < -0.5


def test_special_batches():
    y = torch.tensor([0, 1, 1, 0])
    close(slopes(NormalizedLogisticLoss(), torch.zeros(4, dtype=F64), y), [-0.25] * 4)
    for f in (-700.0, -1.0, 0.0, 40.5, 900.0):
        one = torch.tensor([f], dtype=F64)
        close(slopes(NormalizedLogisticLoss(), one, torch.tensor([1])), [-1.0])
        close(slopes(NormalizedLogisticLoss(), one, torch.tensor([0])), [-1.0])


@pytest.mark.parametrize("loss", [NormalizedLogisticLoss(), EnsLoss()])
def test_a_batch_of_none(loss):
    f = torch.zeros(0, requires_grad=True)
    out = loss(f, torch.zeros(0))
    assert out == 0.0
    assert torch.autograd.grad(out, f)[0].shape == (0,)


def test_weights_multiply_afterwards():
    f, y = torch.randn(5, dtype=F64), torch.tensor([0, 1, 1, 0, 1])
    values = NormalizedLogisticLoss(reduction="none")(f, y)
    weight = torch.tensor([0.0, 2.0, 1.0, 0.5, 0.0], dtype=F64)
    close(NormalizedLogisticLoss()(f, y, weight=weight), (weight * values).sum() / weight.sum())
    alone = NormalizedLogisticLoss(reduction="none")(f[1:4], y[1:4])
    assert (alone - values[1:4]).abs().min() > 1e-3


def test_second_derivatives_are_those_of_the_logistic_loss_times_beta():
    f, y = torch.randn(4, dtype=F64) * 30, torch.ones(4)
    x = f.clone().requires_grad_()
    (g,) = torch.autograd.grad(NormalizedLogisticLoss()(x, y), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x)
    p = torch.sigmoid(-f)
    close(h, p * torch.sigmoid(f) / p.sum(), rtol=1e-10, atol=1e-17)


def test_gradient_descent_is_the_normalised_perceptron_until_it_separates():
    a, y, z = separable(seed=3)
    path = descend(NormalizedLogisticLoss(), a, y, 1e7, 60)
    th = torch.zeros(3, dtype=F64)
    for got in path:
        th = th + z[z @ th <= 0].mean(0)
        close(got, th, rtol=1e-6, atol=1e-9)
        if (z @ th > 0).all():
            break
    else:
        pytest.fail("not separated")


@pytest.mark.parametrize("gamma", [1.0, 10.0, 1e4])
def test_it_separates_in_the_steps_of_the_theorem(gamma):
    a, y, z = separable(n=12, seed=1)
    n = len(a)
    radius = a.norm(dim=1).max()
    w = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    margin = (z @ (w / w.norm())).min()  # a lower bound of the largest one
    steps = math.ceil(
        float(radius**2 / margin**2) + 2 * math.log(2 * n - 1) / (gamma * float(margin) ** 2)
    )
    path = descend(NormalizedLogisticLoss(), a, y, gamma, min(steps, 400))
    assert any((z @ th > 0).all() for th in path)


# EnsLoss.


def reference(m, xi, lam, clip, tail, offset):
    """Slopes by numpy, sample by sample."""
    if lam == 0:
        h = np.exp(xi)
    else:
        inside = np.maximum(1 + lam * xi, 0.0)
        with np.errstate(divide="ignore"):
            h = inside ** (1 / lam)
    v = np.sort(np.maximum(-h, -clip))
    g = np.empty_like(m)
    for rank, i in enumerate(np.argsort(m)):
        g[i] = v[rank] / m[i] if tail and m[i] > 1 else v[rank]
    return g - offset


lams = st.sampled_from((-1.0, -0.75, 0.0, 0.5, 1.0))  # exact in float32


def ens(lam, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EnsLoss(lam, *args, **options)


@given(
    st.lists(st.floats(-5.0, 5.0), min_size=1, max_size=8, unique=True),
    st.integers(0, 2**32 - 1),
    lams,
    st.sampled_from((0.1, 1.0, 3.0)),
    st.booleans(),
)
def test_ensloss_slopes_and_values(m, seed, lam, clip, tail):
    rng = np.random.default_rng(seed)
    m, xi = np.array(m), rng.standard_normal(len(m))
    y = torch.tensor(rng.integers(0, 2, len(m)))
    f = torch.tensor(m) * signs(y)
    want = reference(m, xi, lam, clip, tail, 1e-3)
    loss = EnsLoss(lam, clip, tail, 1e-3, reduction="sum")
    close(slopes(loss, f, y, torch.tensor(xi)), want, rtol=1e-10)
    loss.reduction = "none"
    close(loss(f, y, torch.tensor(xi)), want * m, rtol=1e-10)


@given(
    st.lists(st.floats(-8.0, 8.0), min_size=2, max_size=30, unique=True),
    st.integers(0, 2**32 - 1),
    st.sampled_from((-3.0, -1.0, -0.7, 0.0, 0.5, 1.0, 3.0)),
    st.booleans(),
)
def test_every_draw_is_of_a_calibrated_convex_loss(m, seed, lam, tail):
    # Some convex phi has these slopes, and a negative one at 0.
    g = torch.Generator().manual_seed(seed)
    clip, offset = 1.0, 1e-6
    loss = ens(lam, clip, tail, offset, g, reduction="sum")
    m = torch.tensor(m, dtype=F64).sort().values
    y = torch.randint(2, m.shape, generator=g)
    got = slopes(loss, m * signs(y), y)
    assert got.isfinite().all()
    assert (got <= -offset).all()
    assert (got >= -clip - offset).all()
    assert (got.diff() >= 0).all()
    far = m > 1
    if tail:
        assert (got[far] >= -clip / m[far] - offset - 1e-15).all()
    at_0 = torch.cat((got[m <= 0][-1:], got[m >= 0][:1]))
    assert (at_0 < 0).all()


def test_every_call_draws_anew_and_a_generator_repeats():
    f, y = torch.randn(50, dtype=F64), torch.randint(2, (50,))
    loss = EnsLoss()
    assert (slopes(loss, f, y) - slopes(loss, f, y)).abs().max() > 1e-4
    one, two = (EnsLoss(generator=torch.Generator().manual_seed(7)) for _ in range(2))
    first = slopes(one, f, y)
    close(slopes(two, f, y), first)
    assert (slopes(one, f, y) - first).abs().max() > 1e-4
    torch.manual_seed(3)
    first = slopes(loss, f, y)
    torch.manual_seed(3)
    close(slopes(loss, f, y), first)
    xi = torch.randn(50, dtype=F64)
    close(slopes(loss, f, y, xi), slopes(loss, f, y, xi))


def test_draws_have_the_distribution_that_is_said():
    n = 20000
    f, y = torch.zeros(n, dtype=F64), torch.ones(n)
    g = torch.Generator().manual_seed(0)
    # Half of the log-normal draws are below 1, their logarithms of standard deviation 1.
    h = -slopes(EnsLoss(clip=1e6, offset=1e-12, generator=g, reduction="sum"), f, y)
    assert abs(float((h < 1).double().mean()) - 0.5) < 0.02
    assert abs(float(h.log().std()) - 1.0) < 0.02
    h = -slopes(EnsLoss(1.0, clip=1e6, offset=1e-12, generator=g, reduction="sum"), f, y)
    assert abs(float((h < 1e-9).double().mean()) - 0.1587) < 0.01  # 1 + xi < 0
    assert abs(float(h.median()) - 1.0) < 0.03
    h = -slopes(EnsLoss(-1.0, clip=5.0, offset=1e-12, generator=g, reduction="sum"), f, y)
    assert abs(float((h > 4.999).double().mean()) - 0.2119) < 0.01  # 1 - xi < 1/5


def test_infinite_and_vanishing_draws_are_clipped():
    f, y = torch.tensor([-1.0, 0.5, 0.7], dtype=F64), torch.ones(3)
    xi = torch.tensor([2.0, 0.0, -2.0], dtype=F64)  # 1 - xi: -1, 1, 3; 1 + xi: 3, 1, -1
    got = slopes(EnsLoss(-1.0, 2.0, offset=1e-6, reduction="sum"), f, y, xi)
    close(got, [-2.0 - 1e-6, -1.0 - 1e-6, -1 / 3 - 1e-6])
    got = slopes(EnsLoss(1.0, 2.0, offset=1e-6, reduction="sum"), f, y, xi)
    close(got, [-2.0 - 1e-6, -1.0 - 1e-6, -1e-6])


def test_permuting_the_batch_permutes_the_gradients():
    m = torch.randn(9, dtype=F64)
    y, xi = torch.randint(2, (9,)), torch.randn(9, dtype=F64)
    order, other = torch.randperm(9), torch.randperm(9)
    loss = EnsLoss(0.5)
    want = slopes(loss, m, y, xi)[order]
    close(slopes(loss, m[order], y[order], xi[other]), want)


@pytest.mark.parametrize("lam", [1e-9, -1e-9])
def test_lam_near_0_is_lam_0(lam):
    f, y, xi = torch.randn(9, dtype=F64), torch.randint(2, (9,)), torch.randn(9, dtype=F64)
    close(slopes(EnsLoss(lam), f, y, xi), slopes(EnsLoss(), f, y, xi), rtol=1e-7)


def test_the_value_is_no_risk():
    y = torch.ones(4)
    xi = torch.zeros(4, dtype=F64)
    for tail in (True, False):
        loss = EnsLoss(tail=tail)
        values = [float(loss(torch.full((4,), m, dtype=F64), y, xi)) for m in (0.0, 10.0, 1e9)]
        assert values[0] == 0.0 > values[1] > values[2]  # better and better, below any bound
        assert values[2] < -900.0
    doc = inspect.getdoc(EnsLoss)
    assert "its value is not a risk" in " ".join(doc.split("\n\n")[0].split())
    p = EnsLoss().properties()
    assert p.lower == -math.inf
    assert "not a risk" in p.unknown["convex"]
    assert "surrogate" in NormalizedLogisticLoss().properties().unknown["convex"]


def test_lam_is_drawn_anew_and_saved():
    loss = EnsLoss(generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(200):
        loss.resample_lam()
        found.append(float(loss.lam))
    assert -1 <= min(found) < -0.9
    assert 0.9 < max(found) <= 1
    assert abs(np.mean(found)) < 0.15
    other = EnsLoss()
    other.load_state_dict(loss.state_dict())
    assert other.lam == loss.lam == found[-1]
    again = EnsLoss(generator=torch.Generator().manual_seed(0))
    again.resample_lam()
    assert float(again.lam) == found[0]


def test_lam_far_out_is_warned_about():
    with pytest.warns(UserWarning, match=r"lam: expected a number in \[-1, 1\] .*, got 1\.5"):
        EnsLoss(1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EnsLoss(-1.0)
        EnsLoss(1.0)


def test_a_generator_is_copied_with_the_loss():
    loss = EnsLoss(generator=torch.Generator().manual_seed(5))
    f, y = torch.randn(20), torch.randint(2, (20,))
    copies = (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)))
    want = slopes(loss, f, y)
    for other in copies:
        close(slopes(other, f, y), want)
