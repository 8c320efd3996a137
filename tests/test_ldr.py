"""The LDR losses: every fact of their reference, against formulas written out here."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch.nn.functional import cross_entropy, softplus

from lossary import LDRKLLoss
from single_rows import all_values, close, distributions, gradient, least_risk, risk, rows, value

INF = math.inf
INSIDE = (1e-3, 0.1, 0.5, 1.0, 2.0, 10.0, 1e4)
LAMS = (0.0, *INSIDE, INF)

lams = st.one_of(st.sampled_from(LAMS), st.floats(0.01, 100.0))
inside = st.one_of(st.sampled_from(INSIDE), st.floats(0.01, 100.0))
margins = st.one_of(st.sampled_from((0.0, 0.1, 2.0)), st.floats(0.0, 10.0))


def gaps(f, y, margin):
    """z_k = f_k - f_y + c_{k,y}, with c_{y,y} = 0."""
    c = torch.full_like(f, margin) if isinstance(margin, float) else margin.clone()
    c[y] = 0.0
    return f - f[y] + c


def exact(z, lam):
    """The closed form of the maximum, to 60 digits."""
    with mpmath.workdps(60):
        z = [mpmath.mpf(x) for x in z.tolist()]
        if lam == 0:
            return float(max(z))
        if lam == INF:
            return float(mpmath.fsum(z) / len(z))
        mean = mpmath.fsum(mpmath.exp(x / mpmath.mpf(lam)) for x in z) / len(z)
        return float(lam * mpmath.log(mean))


def objective(r, z, lam):
    """<r, z> - lam KL(r || 1/K)."""
    divergence = torch.xlogy(r, r * len(r)).sum()
    return r @ z - lam * divergence


def rounding(*xs):
    """What rounding of the inputs may do to the value."""
    return 1e-14 * max(1.0, *(float(x.abs().max()) for x in xs))


# The value.


@given(rows(), lams, margins)
def test_value(row, lam, margin):
    f, y = row
    z = gaps(f, y, margin)
    close(value(LDRKLLoss(lam, margin), f, y), exact(z, lam), rtol=1e-13, atol=rounding(z))


def test_default_is_lam_1_margin_0_1():
    f, y = torch.randn(9, 5, dtype=torch.float64), torch.randint(5, (9,))
    expected = [exact(gaps(f[i], int(y[i]), 0.1), 1.0) for i in range(9)]
    close(LDRKLLoss()(f, y), np.mean(expected), rtol=1e-13)


@pytest.mark.parametrize("soft", [False, True], ids=["index", "probabilities"])
@pytest.mark.parametrize("lam", INSIDE)
def test_margin_0_is_cross_entropy_at_a_temperature(lam, soft):
    f = torch.randn(30, 6, dtype=torch.float64) * 3
    target = torch.softmax(torch.randn(30, 6).double(), 1) if soft else torch.randint(6, (30,))
    expected = lam * (cross_entropy(f / lam, target) - math.log(6))
    # The right side cancels: its rounding is that of lam log K.
    close(LDRKLLoss(lam, margin=0.0)(f, target), expected, rtol=1e-12, atol=1e-14 * lam)


def test_zero_logits_without_margin_give_zero():
    for lam in LAMS:
        loss = LDRKLLoss(lam, margin=0.0)
        assert value(loss, torch.zeros(5, dtype=torch.float64), 2).abs() <= 1e-15 * min(lam, 1.0)


@given(rows(), margins)
def test_lam_0_is_the_multiclass_hinge(row, margin):
    f, y = row
    rivals = torch.cat((f[:y], f[y + 1 :]))
    hinge = torch.relu((rivals + margin - f[y]).max())
    close(value(LDRKLLoss(0.0, margin), f, y), hinge, atol=rounding(f))


@given(rows(), margins)
def test_lam_inf_is_the_mean(row, margin):
    f, y = row
    k = len(f)
    expected = f.mean() - f[y] + margin * (k - 1) / k
    close(value(LDRKLLoss(INF, margin), f, y), expected, atol=rounding(f))


@given(rows(), margins)
def test_continuous_at_both_ends(row, margin):
    f, y = row
    z = gaps(f, y, margin)
    at = {lam: value(LDRKLLoss(lam, margin), f, y) for lam in (0.0, 1e-9, 1e9, INF)}
    # Off by at most lam log K, and by the variance of z over 2 lam.
    assert at[0.0] - at[1e-9] + rounding(z) >= 0
    assert at[0.0] - at[1e-9] <= 1e-9 * math.log(len(f)) + rounding(z)
    spread = z.var(correction=0) / 2e9
    close(at[1e9] - at[INF], spread, rtol=1e-6, atol=2 * rounding(z))


@pytest.mark.parametrize("lam", [1e-3, 1e-2])
def test_large_logits_at_low_temperature_stay_finite(lam):
    f = torch.tensor([1e3, -1e3, 7e2, 999.0], dtype=torch.float64)
    for y in range(4):
        loss = LDRKLLoss(lam)
        close(value(loss, f, y), exact(gaps(f, y, 0.1), lam), atol=1e-12)
        assert torch.isfinite(gradient(loss, f, y)).all()
        single = LDRKLLoss(lam)(f.float().unsqueeze(0), torch.tensor([y]))
        assert single.item() == pytest.approx(exact(gaps(f, y, 0.1), lam), rel=1e-6, abs=1e-3)


@pytest.mark.parametrize("lam", [1e-3, 0.5, 1.0, 4.0])
def test_a_common_offset_costs_no_digits_in_single_precision(lam):
    f = torch.tensor([[1000.0, 1000.0, 1000.0], [0.0, 1000.0, 1000.0]], requires_grad=True)
    y = torch.tensor([0, 0])
    out = LDRKLLoss(lam, margin=0.0, reduction="none")(f, y)
    expected = [exact(gaps(row.double(), 0, 0.0), lam) for row in f.detach()]
    torch.testing.assert_close(out, torch.tensor(expected), rtol=1e-6, atol=3e-7)
    (g,) = torch.autograd.grad(out.sum(), f)
    r = torch.softmax(f.detach() / lam, 1)
    torch.testing.assert_close(g, r - torch.eye(3)[y], rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("lam", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("shape", [(), (4,), (4, 4)])
@pytest.mark.parametrize("soft", [False, True], ids=["index", "probabilities"])
def test_high_temperature_keeps_its_digits_in_single_precision(lam, shape, soft):
    # lam * (log-sum-exp - log K) would be off by lam times a rounding.
    f = torch.tensor([[1.0, -2.0, 0.5, 0.25]])
    margin = 0.5 * (1 - torch.eye(4)) if len(shape) == 2 else torch.full(shape, 0.5)
    loss = LDRKLLoss(lam, margin if shape else 0.5)
    target = torch.tensor([[0.0, 1.0, 0.0, 0.0]]) if soft else torch.tensor([1])
    expected = exact(gaps(f[0].double(), 1, 0.5), lam)
    assert loss(f, target).item() == pytest.approx(expected, rel=2e-6)


# Margins.


@pytest.mark.parametrize("soft", [False, True], ids=["index", "probabilities"])
@pytest.mark.parametrize("shape", [(4,), (4, 4)], ids=["vector", "matrix"])
@pytest.mark.parametrize("lam", LAMS)
def test_margin_of_every_shape(lam, shape, soft):
    f = torch.randn(12, 4, dtype=torch.float64) * 3
    target = torch.softmax(torch.randn(12, 4).double(), 1) if soft else torch.arange(12) % 4
    margin = torch.full(shape, 0.7, dtype=torch.float64)
    if len(shape) == 2:
        margin.fill_diagonal_(0.0)
    close(LDRKLLoss(lam, margin)(f, target), LDRKLLoss(lam, 0.7)(f, target), rtol=1e-13)


@given(st.integers(2, 5), lams, st.integers(0, 2**32 - 1))
def test_margin_matrix_is_read_by_rows(size, lam, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.rand(size, size, dtype=torch.float64, generator=generator) * 4
    matrix.fill_diagonal_(0.0)
    f = torch.randn(size, dtype=torch.float64, generator=generator) * 3
    loss = LDRKLLoss(lam, matrix)
    expected = [exact(gaps(f, y, matrix[y]), lam) for y in range(size)]
    out = all_values(loss, f)
    close(out, expected, rtol=1e-12, atol=1e-13)
    q = torch.softmax(torch.randn(size, dtype=torch.float64, generator=generator), 0)
    soft = loss(f.unsqueeze(0), q.unsqueeze(0)).squeeze()
    close(soft, q @ out, rtol=1e-12, atol=1e-13)


@given(st.integers(2, 5), lams, st.integers(0, 2**32 - 1))
def test_margin_vector_belongs_to_the_target(size, lam, seed):
    generator = torch.Generator().manual_seed(seed)
    vector = torch.rand(size, dtype=torch.float64, generator=generator) * 4
    f = torch.randn(size, dtype=torch.float64, generator=generator) * 3
    loss = LDRKLLoss(lam, vector)
    expected = [exact(gaps(f, y, float(vector[y])), lam) for y in range(size)]
    out = all_values(loss, f)
    close(out, expected, rtol=1e-12, atol=1e-13)
    q = torch.softmax(torch.randn(size, dtype=torch.float64, generator=generator), 0)
    soft = loss(f.unsqueeze(0), q.unsqueeze(0)).squeeze()
    close(soft, q @ out, rtol=1e-12, atol=1e-13)


@given(rows(), lams, margins, st.floats(0.0, 5.0))
def test_nondecreasing_in_the_margin(row, lam, margin, more):
    f, y = row
    low, high = (value(LDRKLLoss(lam, c), f, y) for c in (margin, margin + more))
    assert low - rounding(f) <= high <= low + more + rounding(f)


# Maximum over distributions of the rivals.


def mode(z, lam):
    """r*, from the card; at lam = 0 any vertex with the largest z."""
    if lam == 0:
        return torch.eye(len(z), dtype=torch.float64)[z.argmax()]
    return torch.softmax(z / lam, 0)


@given(rows(), st.one_of(st.just(0.0), inside), margins, st.data())
def test_no_distribution_gives_more(row, lam, margin, data):
    f, y = row
    mass = data.draw(st.lists(st.floats(0.0, 1.0), min_size=len(f), max_size=len(f)))
    r = torch.tensor(mass, dtype=torch.float64) + 1e-6
    r = r / r.sum()
    z = gaps(f, y, margin)
    out = value(LDRKLLoss(lam, margin), f, y)
    slack = rounding(z) + 1e-14 * lam
    assert objective(r, z, lam) <= out + slack
    close(objective(mode(z, lam), z, lam), out, rtol=1e-12, atol=slack)


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("lam", [0.1, 1.0, 5.0])
def test_independent_maximisation_reaches_it(lam, margin):
    for y in range(4):
        f = torch.randn(4, dtype=torch.float64)
        z = gaps(f, y, margin)

        def negative(r, z=z):
            r = torch.tensor(r, requires_grad=True)
            out = -objective(r, z, lam)
            out.backward()
            return out.item(), r.grad.numpy()

        found = minimize(
            negative,
            np.full(4, 0.25),
            jac=True,
            method="SLSQP",
            bounds=[(1e-15, 1.0)] * 4,
            constraints={"type": "eq", "fun": lambda r: r.sum() - 1, "jac": np.ones_like},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert found.x.sum() == pytest.approx(1.0, abs=1e-12)
        assert -found.fun == pytest.approx(value(LDRKLLoss(lam, margin), f, y).item(), abs=1e-9)
        g = gradient(LDRKLLoss(lam, margin), f, y).numpy()
        np.testing.assert_allclose(found.x - np.eye(4)[y], g, atol=1e-4)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_independent_maximisation_reaches_it_at_lam_0(margin):
    for y in range(4):
        f = torch.randn(4, dtype=torch.float64)
        z = gaps(f, y, margin).numpy()
        found = linprog(-z, A_eq=np.ones((1, 4)), b_eq=[1.0], bounds=(0, 1))
        assert -found.fun == pytest.approx(value(LDRKLLoss(0.0, margin), f, y).item(), abs=1e-12)


@given(rows(), inside, margins)
def test_gradient(row, lam, margin):
    f, y = row
    e = torch.eye(len(f), dtype=torch.float64)
    expected = mode(gaps(f, y, margin), lam) - e[y]
    g = gradient(LDRKLLoss(lam, margin), f, y)
    torch.testing.assert_close(g, expected, rtol=1e-9, atol=1e-13)


@given(rows(elements=st.integers(-9, 9).map(float)), margins)
def test_gradient_at_both_ends(row, margin):
    f, y = row
    e = torch.eye(len(f), dtype=torch.float64)
    torch.testing.assert_close(
        gradient(LDRKLLoss(INF, margin), f, y), 1 / len(f) - e[y], rtol=0, atol=1e-15
    )
    g = gradient(LDRKLLoss(0.0, margin), f, y)
    z = gaps(f, y, margin)
    others = torch.cat((z[:y], z[y + 1 :]))
    if others.max() < 0:
        assert (g == 0).all()
    elif others.max() > 0:
        # At a tie any of the tied rivals; one of them takes it whole.
        assert any(torch.equal(g, e[k] - e[y]) for k in range(len(f)) if z[k] == others.max())


@given(rows(), lams, margins, st.floats(-100.0, 100.0))
def test_shift_invariant_and_gradient_sums_to_zero(row, lam, margin, shift):
    f, y = row
    loss = LDRKLLoss(lam, margin)
    close(value(loss, f + shift, y), value(loss, f, y), atol=1e-13 * (1 + f.abs().max()))
    g = gradient(loss, f, y)
    # A softmax of logits of size s is off by s roundings.
    slack = 1e-15 * (10 + float(f.abs().max()) / max(lam, 1e-3))
    assert abs(g.sum()) <= slack
    assert g.norm() <= math.sqrt(2.0) + slack


@pytest.mark.parametrize("lam", LAMS)
def test_gradient_norm_bound_is_reached(lam):
    f = torch.tensor([-1e6, 0.0], dtype=torch.float64)
    norm = gradient(LDRKLLoss(lam), f, 0).norm()
    expected = math.sqrt(0.5) if lam == INF else math.sqrt(2.0)
    close(norm, expected)


@given(rows(count=2), lams, margins, st.floats(0.0, 1.0))
def test_convex(row, lam, margin, share):
    a, b, y = row
    loss = LDRKLLoss(lam, margin)
    middle = value(loss, share * a + (1 - share) * b, y)
    chord = share * value(loss, a, y) + (1 - share) * value(loss, b, y)
    assert middle <= chord + rounding(a, b) + 1e-14 * margin


@given(rows(), lams, lams, margins)
def test_nonincreasing_in_lam(row, a, b, margin):
    f, y = row
    low, high = sorted((a, b))
    larger, smaller = (value(LDRKLLoss(lam, margin), f, y) for lam in (low, high))
    z = gaps(f, y, margin)
    assert smaller <= larger + 2 * rounding(z)
    if 0.1 < low < high < 100 and high - low > 0.1 and z.std() > 0.1:
        assert smaller < larger


@given(rows(), inside, margins)
def test_between_the_hinge_and_it_less_lam_log_k(row, lam, margin):
    f, y = row
    out, hinge = value(LDRKLLoss(lam, margin), f, y), value(LDRKLLoss(0.0, margin), f, y)
    slack = rounding(gaps(f, y, margin))
    assert hinge - lam * math.log(len(f)) - slack <= out <= hinge + slack
    assert out >= -lam * math.log(len(f)) - slack


@pytest.mark.parametrize("lam", LAMS)
def test_bounds_are_approached(lam):
    f = torch.zeros(4, dtype=torch.float64)
    f[1] = 1.0
    far = 100 * max(lam, 1.0) if lam < INF else 1e6
    low = value(LDRKLLoss(lam), far * f, 1)
    if lam == INF:
        assert low < -7e5
    else:
        close(low, -lam * math.log(4), rtol=1e-12)
    assert value(LDRKLLoss(lam), -far * f, 1) > 0.2 * far


@given(rows(), margins)
def test_class_sum_at_lam_inf(row, margin):
    f, _ = row
    total = all_values(LDRKLLoss(INF, margin), f).sum()
    close(total, margin * (len(f) - 1), atol=10 * rounding(f))


@pytest.mark.parametrize("lam", LAMS[:-1])
def test_not_symmetric_elsewhere(lam):
    loss = LDRKLLoss(lam)
    a, b = (torch.tensor(x, dtype=torch.float64) for x in ((0.0, 0.0, 0.0), (9.0, 0.0, -1.0)))
    gap = all_values(loss, a).sum() - all_values(loss, b).sum()
    assert abs(gap) > 1e-3 * min(1.0, 10 / max(lam, 1e-3))


# The conditional risk.


@given(distributions(), st.floats(0.2, 20.0), st.floats(0.0, 3.0))
def test_minimisation_finds_the_order_of_the_classes(q, lam, margin):
    found = least_risk(LDRKLLoss(lam, margin, reduction="none"), q)
    assert np.abs(found.jac).max() < 1e-6
    assert (np.argsort(found.x) == np.argsort(q)).all()


@pytest.mark.wide
@given(distributions(most=6), st.floats(0.0, 12.0))
def test_minimisation_finds_the_order_of_many_classes(q, margin):
    # lam = 1 stands for all: a common unit of lam, margin and logits is a factor, see below.
    found = least_risk(LDRKLLoss(1.0, margin, reduction="none"), q)
    assert np.abs(found.jac).max() < 1e-6
    assert (np.argsort(found.x) == np.argsort(q)).all()


@given(rows(), inside, margins, st.floats(0.1, 10.0))
def test_scales_with_lam_and_margin(row, lam, margin, unit):
    f, y = row
    scaled = value(LDRKLLoss(lam * unit, margin * unit), f * unit, y)
    expected = unit * value(LDRKLLoss(lam, margin), f, y)
    close(scaled, expected, atol=unit * rounding(gaps(f, y, margin)))


@given(distributions())
def test_margin_0_at_lam_1_is_proper(q):
    loss = LDRKLLoss(1.0, 0.0)
    best = torch.as_tensor(np.log(q)).requires_grad_()
    least = risk(loss, best, q)
    close(least, -np.sum(q * np.log(q)) - math.log(len(q)), atol=1e-14)
    assert torch.autograd.grad(least, best)[0].abs().max() < 1e-14


@pytest.mark.parametrize(("lam", "margin"), [(1.0, 0.1), (0.5, 0.0), (2.0, 0.0), (2.0, 1.0)])
def test_not_proper_elsewhere(lam, margin):
    q = np.array([0.5, 0.3, 0.2])
    loss = LDRKLLoss(lam, margin, reduction="none")
    assert risk(loss, torch.as_tensor(np.log(q)), q) > least_risk(loss, q).fun + 1e-7


def hinge_program(q, margin):
    """The least conditional risk at lam = 0, as a linear program in (f, values)."""
    k = len(q)
    cost = np.concatenate((np.zeros(k), q))
    rows = []
    for y in range(k):
        for rival in range(k):
            if rival != y:  # f_rival + margin - f_y <= value_y
                row = np.zeros(2 * k)
                row[rival], row[y], row[k + y] = 1.0, -1.0, -1.0
                rows.append(row)
    bounds = [(0, 0), *[(None, None)] * (k - 1), *[(0, None)] * k]
    return linprog(cost, A_ub=rows, b_ub=np.full(len(rows), -margin), bounds=bounds)


@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_lam_0_is_not_calibrated(margin):
    q = np.array([0.4, 0.3, 0.3])
    tied = torch.zeros(3, dtype=torch.float64)
    loss = LDRKLLoss(0.0, margin)
    close(risk(loss, tied, q), margin)
    assert hinge_program(q, margin).fun == pytest.approx(margin, rel=1e-9)
    # Just above 1/2 the largest class wins, but the others stay tied.
    q = np.array([0.6, 0.25, 0.15])
    best = torch.tensor([margin, 0.0, 0.0], dtype=torch.float64)
    close(risk(loss, best, q), 2 * (1 - 0.6) * margin)
    assert hinge_program(q, margin).fun == pytest.approx(0.8 * margin, rel=1e-9)
    assert risk(loss, tied, q) > 0.9 * margin


@given(distributions())
def test_lam_0_finds_a_class_above_one_half(q):
    found = hinge_program(q, 1.0)
    loss = LDRKLLoss(0.0, 1.0)
    f = torch.as_tensor(found.x[: len(q)])
    assert risk(loss, f, q).item() == pytest.approx(found.fun, abs=1e-9)
    if q.max() > 0.5:
        top = q.argmax()
        assert f.argmax() == top
        close(risk(loss, torch.eye(len(q)).double()[top], q), 2 * (1 - q.max()), atol=1e-14)
        assert found.fun == pytest.approx(2 * (1 - q.max()), abs=1e-9)


@given(distributions(), margins, st.data())
def test_lam_inf_orders_the_classes_on_a_ball_only(q, margin, data):
    loss, k = LDRKLLoss(INF, margin), len(q)
    f = torch.zeros(k, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(risk(loss, f, q), f)
    torch.testing.assert_close(g, torch.as_tensor(1 / k - q), rtol=0, atol=1e-14)
    best = torch.as_tensor(q - 1 / k)
    best = best / best.norm()
    other = data.draw(st.lists(st.floats(-1.0, 1.0), min_size=k, max_size=k))
    other = torch.tensor(other, dtype=torch.float64)
    other = other / other.norm().clamp(min=1.0)
    assert risk(loss, best, q) <= risk(loss, other, q) + 1e-13 * (1 + margin)
    # Unbounded: pushing the least probable class down gains without end, whatever is on top.
    if k > 2:
        order = q.argsort()
        wrong = torch.zeros(k, dtype=torch.float64)
        wrong[order[0]], wrong[order[1]] = -1e6, 2.0
        assert risk(loss, wrong, q) < risk(loss, best, q) - 1e3


# Normalisation of the logits.


def normalized(f, how):
    """The formulas of the card."""
    f = softplus(f, threshold=1000) if how == "softplus" else f
    return f / f.abs().mean(-1, keepdim=True)


@given(rows(), lams, margins, st.sampled_from(("softplus", "l1")))
def test_normalize(row, lam, margin, how):
    f, y = row
    f = f + torch.arange(1.0, len(f) + 1)  # not all 0, see below
    assume(f.abs().max() > 1e-3)
    loss, plain = LDRKLLoss(lam, margin, normalize=how), LDRKLLoss(lam, margin)
    g = normalized(f, how)
    close(value(loss, f, y), value(plain, g, y), rtol=1e-12, atol=rounding(gaps(g, y, margin)))
    q = torch.softmax(f, 0).unsqueeze(0)
    close(loss(f.unsqueeze(0), q), plain(g.unsqueeze(0), q), atol=rounding(gaps(g, y, margin)))


@pytest.mark.parametrize("how", ["softplus", "l1"])
@pytest.mark.parametrize("lam", LAMS)
def test_gradient_passes_through_the_normalisation(lam, how):
    f = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    y = torch.randint(5, (8,))
    out = LDRKLLoss(lam, normalize=how)(f, y)
    expected = LDRKLLoss(lam)(normalized(f, how), y)
    a, b = (torch.autograd.grad(x, f)[0] for x in (out, expected))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    detached = LDRKLLoss(lam)(normalized(f, how).detach() + 0 * f, y)
    assert (torch.autograd.grad(detached, f)[0] == 0).all()
    assert a.abs().max() > 1e-6


@pytest.mark.parametrize("lam", LAMS)
def test_normalize_of_all_zero_logits(lam):
    zero = torch.zeros(4, dtype=torch.float64)
    flat = value(LDRKLLoss(lam), zero, 1)
    close(value(LDRKLLoss(lam, normalize="l1"), zero, 1), flat)
    assert torch.isfinite(gradient(LDRKLLoss(lam, normalize="l1"), zero, 1)).all()
    # softplus(0) = log 2 for all: after the division all are 1.
    close(value(LDRKLLoss(lam, normalize="softplus"), zero, 1), flat, atol=1e-15)
    for low in (-800.0, -1e5):  # softplus underflows
        loss = LDRKLLoss(lam, normalize="softplus")
        close(value(loss, zero + low, 1), flat)
        assert torch.isfinite(gradient(loss, zero + low, 1)).all()


@given(rows(elements=st.floats(0.1, 9.0)), inside, st.floats(0.1, 10.0))
def test_normalize_l1_forgets_the_scale(row, lam, unit):
    f, y = row
    loss = LDRKLLoss(lam, normalize="l1")
    close(value(loss, unit * f, y), value(loss, f, y), atol=1e-13)
    assert abs(gradient(loss, f, y) @ f) <= 1e-12


@pytest.mark.parametrize("how", ["softplus", "l1"])
def test_normalize_is_neither_shift_invariant_nor_convex(how):
    loss = LDRKLLoss(1.0, normalize=how)
    f = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    assert abs(value(loss, f, 0) - value(loss, f + 5, 0)) > 0.1
    torch.manual_seed(0)
    pairs = torch.randn(500, 2, 3, dtype=torch.float64) * 20
    broken = [
        value(loss, (a + b) / 2, 0) > (value(loss, a, 0) + value(loss, b, 0)) / 2 + 1e-3
        for a, b in pairs
    ]
    assert any(broken)


@pytest.mark.parametrize("how", ["softplus", "l1"])
@pytest.mark.parametrize("lam", [0.0, 0.5, 2.0, INF])
def test_normalize_does_not_let_absent_rows_through(lam, how):
    f = torch.randn(4, 3, dtype=torch.float64)
    kept = f[[0, 2]]
    f[1], f[3, 0] = torch.nan, INF
    f.requires_grad_()
    loss = LDRKLLoss(lam, normalize=how)
    out = loss(f, torch.tensor([0, -100, 2, -100]))
    close(out, loss(kept, torch.tensor([0, 2])))
    (g,) = torch.autograd.grad(out, f)
    assert (g[[1, 3]] == 0).all()
    assert torch.isfinite(g).all()
    weighted = loss(f, torch.tensor([0, 1, 2, 1]), weight=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    close(weighted, out)
    (g,) = torch.autograd.grad(weighted, f)
    assert (g[[1, 3]] == 0).all()


def test_normalize_along_the_class_axis():
    f = torch.randn(2, 3, 5, dtype=torch.float64)
    y = torch.randint(3, (2, 5))
    for how in ("softplus", "l1"):
        loss = LDRKLLoss(2.0, normalize=how, reduction="none")
        last = LDRKLLoss(2.0, normalize=how, reduction="none", class_dim=-1)
        torch.testing.assert_close(loss(f, y), last(f.movedim(1, -1), y))
        rows = loss(f.movedim(1, -1).reshape(-1, 3), y.reshape(-1))
        torch.testing.assert_close(loss(f, y), rows.view(2, 5))


# Probability targets.


@pytest.mark.parametrize("shape", [(), (5,), (5, 5)], ids=["number", "vector", "matrix"])
@pytest.mark.parametrize("normalize", [None, "softplus", "l1"])
@pytest.mark.parametrize("lam", LAMS)
def test_one_hot_targets_are_index_targets(lam, normalize, shape):
    f, y = torch.randn(20, 5, dtype=torch.float64) * 3, torch.randint(5, (20,))
    one_hot = torch.eye(5, dtype=torch.float64)[y]
    margin = torch.rand(shape, dtype=torch.float64)
    if len(shape) == 2:
        margin.fill_diagonal_(0.0)
    loss = LDRKLLoss(lam, margin if shape else margin.item(), normalize, reduction="none")
    torch.testing.assert_close(loss(f, one_hot), loss(f, y), rtol=1e-12, atol=1e-13)


@given(rows(), lams, margins, st.data())
def test_probability_targets_are_expectations(row, lam, margin, data):
    f, y = row
    counts = data.draw(st.lists(st.integers(0, 9), min_size=len(f), max_size=len(f)))
    counts[y] += 1
    q = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    loss = LDRKLLoss(lam, margin)
    out = loss(f.unsqueeze(0), q.unsqueeze(0)).squeeze()
    close(out, q @ all_values(loss, f), atol=10 * rounding(f))


@pytest.mark.parametrize("lam", LAMS[:-1])
def test_an_infinite_loss_counts_only_where_the_class_can_occur(lam):
    f = torch.tensor([[0.0, -INF, 1.0]], dtype=torch.float64)
    loss = LDRKLLoss(lam)
    out = loss(f, torch.tensor([[0.25, 0.0, 0.75]], dtype=torch.float64))
    by_index = [loss(f, torch.tensor([k])) for k in (0, 2)]
    close(out, 0.25 * by_index[0] + 0.75 * by_index[1], atol=1e-13)
    certain = loss(f, torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64))
    assert certain == INF
