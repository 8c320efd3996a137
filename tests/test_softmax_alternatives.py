"""StableMax, the spherical family and the Z-loss: formulas, identities, and logits of any size."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from torch.nn.functional import cross_entropy, one_hot

from lossary import (
    LinearLogits,
    SphericalSoftmaxLoss,
    StableMaxCrossEntropyLoss,
    TaylorSoftmaxLoss,
    ZLoss,
)
from single_rows import all_values, close, distributions, gradient, least_risk, risk, rows, value

F32, F64 = torch.float32, torch.float64
small = st.floats(-4.0, 4.0)
epsilons = st.sampled_from((1e-3, 0.5, 10.0))
bends = st.sampled_from((0.3, 1.0, 5.0))
shifts = st.sampled_from((-1.0, 0.0, 0.7, 2.0))


def stablemax(x):
    return x + 1 if x >= 0 else 1 / (1 - x)


def spherical(eps):
    return lambda x: x * x + eps


def taylor(x):
    return 1 + x + x * x / 2


#: Each loss of weights with its weight and the slope of the weight.
WEIGHTED = {
    "stablemax": (
        StableMaxCrossEntropyLoss(),
        stablemax,
        lambda x: 1.0 if x >= 0 else 1 / (1 - x) ** 2,
    ),
    **{
        f"spherical {e:g}": (SphericalSoftmaxLoss(e), spherical(e), lambda x: 2 * x)
        for e in (1e-3, 0.5, 10.0)
    },
    "taylor": (TaylorSoftmaxLoss(), taylor, lambda x: 1 + x),
}
every_weight = pytest.mark.parametrize("name", WEIGHTED)
every_loss = pytest.mark.parametrize(
    "loss", [*(loss for loss, *_ in WEIGHTED.values()), ZLoss(a=1.0, b=0.0)], ids=repr
)


@every_weight
@given(row=rows())
def test_weights_value_and_gradient(name, row):
    f, y = row
    loss, weight, slope = WEIGHTED[name]
    w = [weight(float(x)) for x in f]
    close(value(loss, f, y), -math.log(w[y] / sum(w)), atol=1e-14)
    p = torch.tensor(w, dtype=F64) / sum(w)
    slopes = torch.tensor([slope(float(x)) for x in f], dtype=F64) / torch.tensor(w, dtype=F64)
    expected = slopes * (p - one_hot(torch.tensor(y), len(f)))
    torch.testing.assert_close(gradient(loss, f, y), expected, rtol=1e-10, atol=1e-14)


@every_weight
def test_equal_logits(name):
    loss, *_ = WEIGHTED[name]
    for k in (2, 5, 100):
        close(value(loss, torch.zeros(k, dtype=F64), 1), math.log(k))


@every_weight
@pytest.mark.parametrize("dtype", [F32, F64])
def test_logits_of_any_size(name, dtype):
    # A float32 square overflows from 2e19 on, and a softmax rounds to 0 and 1 long before.
    loss, weight, slope = WEIGHTED[name]
    mpmath.mp.dps = 60
    for scale in (1e-30, 1e-3, 1.0, 1e4, 1e10, 1e25):
        f = torch.tensor([[3.0, -1.0, 0.5, 2.0]], dtype=dtype) * scale
        f = f.requires_grad_()
        exact = [mpf(x) for x in f[0].tolist()]
        w = [weight(x) for x in exact]
        for y in range(4):
            out = loss(f, torch.tensor([y]))
            # An error is relative to the logarithms, which are what cancels.
            size = max(1.0, *(abs(float(mpmath.log(x))) for x in w))
            want = -mpmath.log(w[y] / sum(w))
            tolerance = (1e-14 if dtype == F64 else 1e-6) * size
            assert abs(out.item() - float(want)) <= tolerance * min(1.0, 4 * float(want))
            (g,) = torch.autograd.grad(out, f)
            for k in range(4):
                wanted = float(slope(exact[k]) * (1 / sum(w) - (w[y] ** -1 if k == y else 0)))
                rtol = 4 * (1e-14 if dtype == F64 else 1e-6) * size
                assert abs(g[0, k].item() - wanted) <= rtol * abs(wanted) + 1e-37


@every_loss
def test_layouts_are_refused(loss):
    logits = LinearLogits(torch.randn(4, 3), torch.randn(5, 3))
    with pytest.raises(TypeError, match=r"logits: expected a tensor, as .*softmax.*LinearLogits"):
        loss(logits, torch.zeros(4, dtype=torch.long))


@every_loss
def test_rows_that_are_left_out_may_hold_anything(loss):
    f = torch.randn(3, 4, dtype=F64)
    f[1] = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    f.requires_grad_()
    y = torch.tensor([0, -100, 2])
    out = loss(f, y)
    close(out.detach(), loss(f.detach()[[0, 2]], y[[0, 2]]))
    (g,) = torch.autograd.grad(out, f)
    assert g.isfinite().all()
    assert (g[1] == 0).all()


# StableMax.


@given(rows())
def test_stablemax_is_cross_entropy_of_a_logarithm(row):
    f, y = row
    g = f.sign() * torch.log1p(f.abs())
    expected = cross_entropy(g.unsqueeze(0), torch.tensor([y]))
    close(value(StableMaxCrossEntropyLoss(), f, y), expected, atol=1e-14)


def published_stablemax(f, y):
    """The published where-form, in the dtype of the logits."""
    s = torch.where(f < 0, 1 / (1 - f + 1e-30), f + 1)
    p = torch.log(s / s.sum(1, keepdim=True))
    return -p.gather(1, y.unsqueeze(1)).mean()


@pytest.mark.parametrize("dtype", [F32, F64, torch.float16])
def test_a_logit_of_exactly_1_and_one_of_exactly_0(dtype):
    f = torch.tensor([[1.0, 0.0, -1.0]], dtype=dtype, requires_grad=True)
    y = torch.tensor([1])
    (g,) = torch.autograd.grad(StableMaxCrossEntropyLoss()(f, y), f)
    p = torch.tensor([2.0, 1.0, 0.5], dtype=F64) / 3.5
    expected = torch.tensor([p[0] / 2, p[1] - 1, p[2] / 2])  # slope 1 at 0
    torch.testing.assert_close(g[0].double(), expected.double(), rtol=2e-3, atol=0)
    if dtype == F32:  # why the published code casts to float64
        (bad,) = torch.autograd.grad(published_stablemax(f, y), f)
        assert bad.isnan().any()


def test_published_stablemax_in_float64():
    f, y = torch.randn(50, 7, dtype=F64) * 3, torch.randint(7, (50,))
    close(StableMaxCrossEntropyLoss()(f, y), published_stablemax(f, y))


def test_it_learns_on_where_the_softmax_has_saturated():
    f = torch.tensor([[200.0, 0.0, -5.0]], requires_grad=True)
    y = torch.tensor([0])
    (stopped,) = torch.autograd.grad(cross_entropy(f, y), f)
    assert stopped[0, 0] == 0.0
    (g,) = torch.autograd.grad(StableMaxCrossEntropyLoss()(f, y), f)
    rest = 1 + 1 / 6
    expected = -rest / (201 + rest) / 201
    assert g[0, 0].item() == pytest.approx(expected, rel=1e-5)


def test_scaling_a_correct_row_does_not_bring_the_loss_to_0():
    f = torch.tensor([3.0, 1.0, 2.0], dtype=F64)
    close(value(StableMaxCrossEntropyLoss(), 1e12 * f, 0), -math.log(0.5), rtol=1e-11)
    # With negative rivals it goes to 0, but like 1/c^2.
    g = torch.tensor([1.0, -1.0], dtype=F64)
    close(value(StableMaxCrossEntropyLoss(), 1e4 * g, 0), 10001.0**-2, rtol=1e-7)


@given(rows(), st.floats(0.01, 5.0))
def test_stablemax_falls_in_the_target_and_grows_in_the_rivals(row, step):
    f, y = row
    loss = StableMaxCrossEntropyLoss()
    up = one_hot(torch.tensor(y), len(f)) * step
    assert value(loss, f + up, y) < value(loss, f, y)
    assert (gradient(loss, f, y) * (1 - one_hot(torch.tensor(y), len(f))) >= 0).all()


@given(distributions())
def test_stablemax_recovers_the_probabilities(q):
    loss = StableMaxCrossEntropyLoss()
    found = least_risk(loss, q)
    s = torch.tensor([stablemax(x) for x in found.x])
    close(s / s.sum(), q, rtol=1e-4)
    close(found.fun, -(q * torch.tensor(q).log().numpy()).sum(), rtol=1e-8)


# The spherical family.


@given(rows(), epsilons)
def test_spherical_is_even_in_every_logit(row, eps):
    f, y = row
    loss = SphericalSoftmaxLoss(eps)
    flipped = f * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=F64)[: len(f)]
    close(value(loss, flipped, y), value(loss, f, y))


@given(rows())
def test_spherical_is_unchanged_by_scale_as_eps_vanishes(row):
    f, y = row
    f = f.sign() * (f.abs() + 1.0) + (f == 0)
    loss = SphericalSoftmaxLoss(1e-12)
    close(value(loss, 7.0 * f, y), value(loss, f, y), rtol=1e-9)
    w = f.square()
    close(value(loss, f, y), -(w[y] / w.sum()).log(), rtol=1e-9)


@given(rows())
def test_taylor_is_spherical_about_minus_1(row):
    f, y = row
    close(value(TaylorSoftmaxLoss(), f, y), value(SphericalSoftmaxLoss(1.0), f + 1, y))
    close(value(TaylorSoftmaxLoss(), -2 - f, y), value(TaylorSoftmaxLoss(), f, y), rtol=1e-11)


def test_taylor_is_cross_entropy_near_0():
    f, y = torch.randn(30, 5, dtype=F64), torch.randint(5, (30,))
    gap = [
        (TaylorSoftmaxLoss()(f * c, y) - cross_entropy(f * c, y)).abs().item() for c in (1e-2, 1e-3)
    ]
    assert 0 < gap[0] < 1e-5
    assert gap[0] / gap[1] == pytest.approx(1000, rel=0.1)  # terms of third order


ROTATION = torch.linalg.qr(
    torch.cat((torch.ones(3, 1), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.7]])), 1).double()
).Q


@pytest.mark.parametrize(
    "loss", [SphericalSoftmaxLoss(), TaylorSoftmaxLoss(), ZLoss(a=1.0, b=0.5)], ids=repr
)
def test_the_family_depends_on_sum_squares_and_target_alone(loss):
    f = torch.tensor([0.3, 1.0, -2.0, 0.5], dtype=F64)
    c, s = math.cos(1.1), math.sin(1.1)
    turn = torch.tensor([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]], dtype=F64)
    turned = f.clone()
    turned[1:] = ROTATION @ turn @ ROTATION.T @ f[1:]
    close(turned.sum(), f.sum())
    close(turned.square().sum(), f.square().sum())
    assert (turned - f).abs().max() > 0.5
    close(value(loss, turned, 0), value(loss, f, 0))
    assert abs(value(loss, turned, 1) - value(loss, f, 1)) > 1e-2
    assert abs(value(StableMaxCrossEntropyLoss(), turned, 0) - value(
        StableMaxCrossEntropyLoss(), f, 0)) > 1e-3  # fmt: skip


@pytest.mark.parametrize("middle", [0.0, -1.0])
@given(q=distributions())
def test_the_family_is_right_about_sizes_not_signs(middle, q):
    loss = TaylorSoftmaxLoss() if middle else SphericalSoftmaxLoss(1.0)
    q = torch.tensor(q)
    far = (2 * q / q.min() - 1).sqrt()
    entropy = -(q * q.log()).sum()
    top = int(q.argmax())
    for signs in (torch.ones(len(q)), 1.0 - 2 * one_hot(torch.tensor(top), len(q))):
        f = middle + far * signs
        close(risk(loss, f, q), entropy)  # the least there is
        assert int((f - middle).abs().argmax()) == top
    assert int(f.argmax()) != top


# Z-loss.


def z_scores(f, eps=0.0):
    """By mpmath, of exact logits."""
    mpmath.mp.dps = 60
    x = [mpf(float(v)) for v in f]
    mean = sum(x) / len(x)
    sigma = mpmath.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + mpf(eps))
    return [(v - mean) / sigma for v in x], sigma


def z_loss(z, a, b):
    return mpmath.log(1 + mpmath.exp(mpf(a) * (mpf(b) - z))) / mpf(a)


@given(rows(elements=small), bends, shifts, st.sampled_from((0.0, 0.1, 4.0)))
def test_z_loss_value_and_gradient(row, a, b, eps):
    f, y = row
    f = f + torch.arange(len(f), dtype=F64) * 0.37  # not all equal
    if (f.max() - f.min()) < 1e-3:
        return
    loss = ZLoss(a=a, b=b, eps=eps)
    z, sigma = z_scores(f, eps)
    close(value(loss, f, y), float(z_loss(z[y], a, b)), rtol=1e-10)
    k = len(f)
    push = float(1 / (1 + mpmath.exp(-a * (b - z[y]))))
    expected = [-push * float(((i == y) - mpf(1) / k - z[y] * z[i] / k) / sigma) for i in range(k)]
    g = gradient(loss, f, y)
    torch.testing.assert_close(g, torch.tensor(expected, dtype=F64), rtol=1e-8, atol=1e-10)
    assert abs(g.sum()) < 1e-12 * (1 + g.abs().sum())
    if eps == 0.0:
        assert abs(g @ f) < 1e-11 * (1 + g.abs().sum())


@given(rows(elements=small), bends, shifts, st.floats(0.01, 100.0), st.floats(-50.0, 50.0))
def test_z_loss_is_unchanged_by_shift_and_scale(row, a, b, c, d):
    f, y = row
    f = f + torch.arange(len(f), dtype=F64) * 10.0
    loss = ZLoss(a=a, b=b)
    close(value(loss, c * f + d, y), value(loss, f, y), rtol=1e-9)
    assert abs(value(loss, -f, y) - value(loss, f, y)) > 1e-9 or abs(z_scores(f)[0][y]) < 1e-6
    with_eps = ZLoss(a=a, b=b, eps=1.0)
    close(value(with_eps, f + d, y), value(with_eps, f, y), rtol=1e-9)
    assert abs(value(with_eps, 0.1 * f, y) - value(with_eps, f, y)) > 1e-9 or (
        abs(z_scores(f)[0][y]) < 1e-6
    )


@pytest.mark.parametrize("k", [2, 3, 10, 1000])
def test_z_loss_bounds_are_attained(k):
    reach = math.sqrt(k - 1)
    for a, b in ((1.0, 0.0), (5.0, 1.0)):
        loss = ZLoss(a=a, b=b)
        f = one_hot(torch.tensor(0), k).double()
        low, high = (math.log1p(math.exp(a * (b - z))) / a for z in (reach, -reach))
        close(value(loss, f, 0), low, rtol=1e-10)
        close(value(loss, -f, 0), high, rtol=1e-10)
        p = loss.properties(k)
        assert (p.lower, p.upper) == pytest.approx((low, high), rel=1e-12)
        other = torch.randn(k, dtype=F64)
        assert low <= value(loss, other, 0) <= high


@pytest.mark.parametrize("dtype", [F32, F64])
def test_equal_logits_have_no_gradient_without_eps(dtype):
    f = torch.full((2, 4), 5.0, dtype=dtype, requires_grad=True)
    y = torch.tensor([0, 3])
    out = ZLoss(a=2.0, b=0.5)(f, y)
    close(out.detach().double(), math.log1p(math.exp(1.0)) / 2, rtol=1e-6)
    (g,) = torch.autograd.grad(out, f, create_graph=True)
    assert (g == 0).all()
    (h,) = torch.autograd.grad(g.sum(), f, allow_unused=True, materialize_grads=True)
    assert (h == 0).all()
    # Also where the mean of equal numbers is not that number.
    for k in (3, 6, 7, 10, 11):
        f = torch.full((1, k), 0.1, dtype=dtype, requires_grad=True)
        (g,) = torch.autograd.grad(ZLoss(a=2.0, b=0.5)(f, torch.tensor([0])), f)
        assert (g == 0).all()
    f = torch.full((2, 4), 5.0, dtype=dtype, requires_grad=True)
    # With eps the gradient is that of the numerator.
    (g,) = torch.autograd.grad(ZLoss(a=2.0, b=0.5, eps=0.04, reduction="sum")(f, y), f)
    push = 1 / (1 + math.exp(-1.0))
    expected = -push * (one_hot(y, 4) - 0.25) / 0.2
    torch.testing.assert_close(g.double(), expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_logits_of_any_size_have_the_same_z(scale):
    f = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    for eps in (0.0, 1e-3):
        loss = ZLoss(a=1.0, b=0.3, eps=eps)
        x = (f * scale).requires_grad_()
        out = loss(x, torch.tensor([0]))
        z, sigma = z_scores(x[0].detach(), eps)
        assert out.item() == pytest.approx(float(z_loss(z[0], 1, 0.3)), rel=1e-5)
        (g,) = torch.autograd.grad(out, x)
        push = float(1 / (1 + mpmath.exp(-(mpf("0.3") - z[0]))))
        for k in range(4):
            want = -push * float(((k == 0) - mpf(1) / 4 - z[0] * z[k] / 4) / sigma)
            assert g[0, k].item() == pytest.approx(want, rel=1e-4)


def test_published_sigma_cancels():
    f = 5.0 + 1e-7 * torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=F64)
    z, _ = z_scores(f)
    for y in range(5):
        want = float(z_loss(z[y], 1, 0))
        close(value(ZLoss(a=1.0, b=0.0), f, y), want, rtol=1e-12)
    mean = f.mean()
    published = (f - mean) / ((f.square().mean() - mean**2).clamp(min=0).sqrt() + 1e-12)
    errors = [
        abs(math.log1p(math.exp(-float(published[y]))) - float(z_loss(z[y], 1, 0)))
        for y in range(5)
    ]
    assert max(errors) > 0.01
    # Elsewhere it is the same.
    x = torch.randn(5, dtype=F64)
    sigma = (x.square().mean() - x.mean() ** 2).sqrt() + 1e-12
    close(
        value(ZLoss(a=1.0, b=0.0), x, 2),
        torch.log1p(torch.exp(-(x[2] - x.mean()) / sigma)),
        rtol=1e-9,
    )


@pytest.mark.parametrize("b", [-0.5, 0.0, 1.0])
def test_z_loss_becomes_a_hinge(b):
    f = torch.randn(40, 6, dtype=F64)
    y = torch.randint(6, (40,))
    z = (f - f.mean(1, keepdim=True)) / f.std(1, keepdim=True, unbiased=False)
    hinge = (b - z.gather(1, y.unsqueeze(1)).squeeze(1)).clamp(min=0)
    for a in (1e2, 1e4):
        gap = ZLoss(a=a, b=b, reduction="none")(f, y) - hinge
        assert (gap >= -1e-14).all()  # rounding of z
        assert (gap <= math.log(2) / a + 1e-14).all()


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (5.0, 1.0), (0.3, -1.0)])
def test_equal_logits_are_best_near_uniform_probabilities(a, b):
    loss = ZLoss(a=a, b=b)
    q, f = loss.properties(2).counterexamples["calibrated"]
    f, q = torch.tensor(f, dtype=F64), torch.tensor(q, dtype=F64)
    assert q[0] > 0.5
    others = [torch.tensor(x, dtype=F64) for x in ((1.0, 0.0), (0.0, 1.0))]
    assert risk(loss, f, q) < min(risk(loss, x, q) for x in others)
    # Not far from it any more; and never with eps > 0.
    q = torch.tensor([0.5 + 2.5 * (q[0] - 0.5), 0.5 - 2.5 * (q[0] - 0.5)])
    assert risk(loss, f, q) > risk(loss, others[0], q)
    smooth = ZLoss(a=a, b=b, eps=1.0)
    q = torch.tensor([0.501, 0.499], dtype=F64)
    tiny = torch.tensor([1e-3, 0.0], dtype=F64)
    assert risk(smooth, tiny, q) < risk(smooth, 0 * tiny, q)


def test_z_loss_gradient_norm_is_bounded_with_eps():
    loss = ZLoss(a=50.0, b=3.0, eps=0.25)
    g = gradient(loss, torch.zeros(5, dtype=F64), 1)
    close(g.norm(), math.sqrt(0.8) / 0.5, rtol=1e-6)  # the bound, where sigmoid is 1
    close(loss.properties(5).lipschitz, math.sqrt(0.8) / 0.5)


def test_a_and_b_must_be_said():
    with pytest.raises(TypeError, match="missing 2 required keyword-only arguments: 'a' and 'b'"):
        ZLoss()
    assert repr(ZLoss(a=1.0, b=0.0)) == "ZLoss(a=1.0, b=0.0, reduction='mean')"
    assert all_values(ZLoss(a=1.0, b=0.0), torch.zeros(3, dtype=F64)).shape == (3,)
