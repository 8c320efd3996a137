"""The comp-sum family: every fact of its reference, against formulas written out here."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.nn.functional import cross_entropy

from lossary import CompSumLoss, GeneralizedCrossEntropyLoss, MulticlassMAELoss
from single_rows import (
    all_values,
    close,
    distributions,
    gradient,
    least_risk,
    numbers,
    risk,
    rows,
    value,
)

ROOT2 = math.sqrt(2.0)
TAUS = (0.0, 0.3, 0.5, 1.0, 1.2, 1.5, 1.9, 2.0, 2.5, 4.0)
NEAR_ONE = (1 - 1e-4, 1 - 1e-10, 1 - 2.0**-53, 1 + 2.0**-52, 1 + 1e-10, 1 + 1e-4)

taus = st.one_of(st.sampled_from((*TAUS, *NEAR_ONE)), st.floats(0.0, 4.0))


def exact(f, y, tau):
    """Phi_tau(u), literally, with digits enough for 1 + u at the smallest u."""
    with mpmath.workdps(350):
        f = [mpmath.mpf(x) for x in f.tolist()]
        u = mpmath.fsum(mpmath.exp(x - f[y]) for k, x in enumerate(f) if k != y)
        return float(mpmath_phi(u, tau))


def mpmath_phi(u, tau):
    tau = mpmath.mpf(tau)
    return mpmath.log1p(u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)


def phi(u, tau):
    with mpmath.workdps(50):
        return float(mpmath_phi(mpmath.mpf(u), tau))


def conditional_minimum(q, tau):
    """C*(q), from the card."""
    if tau == 1:
        return -np.sum(q * np.log(q))
    if tau >= 2:
        return (1 - q.max()) / (tau - 1)
    with mpmath.workdps(60):  # near tau = 1 the difference cancels
        tau = mpmath.mpf(tau)
        total = mpmath.fsum(mpmath.mpf(float(x)) ** (1 / (2 - tau)) for x in q)
        return float((total ** (2 - tau) - 1) / (1 - tau))


def family(tau):
    """The losses that are this member of the family."""
    members = [CompSumLoss(tau, reduction="none")]
    if 1 <= tau <= 2:
        members.append(GeneralizedCrossEntropyLoss(tau - 1, reduction="none"))
    if tau == 2:
        members.append(MulticlassMAELoss(reduction="none"))
    return members


# The value.


@given(rows(), taus)
def test_value(row, tau):
    f, y = row
    close(value(CompSumLoss(tau), f, y), exact(f, y, tau))


@given(rows(), st.one_of(st.sampled_from((0.0, 1e-12, 1e-4, 0.7, 1.0)), st.floats(0.0, 1.0)))
def test_generalized_cross_entropy_value(row, q):
    f, y = row
    with mpmath.workdps(50):
        e = [mpmath.exp(x) for x in f.tolist()]
        p, power = e[y] / mpmath.fsum(e), mpmath.mpf(1.0 + q) - 1  # tau = 1 + q is rounded
        expected = -mpmath.log(p) if power == 0 else (1 - p**power) / power
    close(value(GeneralizedCrossEntropyLoss(q), f, y), float(expected))


@given(rows(), st.sampled_from((0.25, 1.0, 2.0)))
def test_mean_absolute_error_value(row, scale):
    f, y = row
    p, one_hot = torch.softmax(f, 0), torch.eye(len(f), dtype=torch.float64)[y]
    expected = scale * (one_hot - p).abs().sum() / 2
    close(value(MulticlassMAELoss(scale), f, y), expected, atol=1e-15)


def test_named_members():
    f, y = torch.randn(50, 7, dtype=torch.float64) * 5, torch.randint(7, (50,))
    p = torch.softmax(f, 1)[torch.arange(50), y]

    def values(tau):
        return CompSumLoss(tau, reduction="none")(f, y)

    torch.testing.assert_close(values(0.0), 1 / p - 1, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(values(1.0), cross_entropy(f, y, reduction="none"))
    torch.testing.assert_close(values(1.5), (1 - p.sqrt()) / 0.5, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(values(2.0), 1 - p, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(values(3.0), (1 - p**2) / 2, rtol=1e-12, atol=1e-15)


def test_defaults():
    f, y = torch.randn(9, 5, dtype=torch.float64), torch.randint(5, (9,))
    p = torch.softmax(f, 1)[torch.arange(9), y]
    close(CompSumLoss()(f, y), cross_entropy(f, y))
    close(GeneralizedCrossEntropyLoss()(f, y), ((1 - p**0.7) / 0.7).mean())
    close(MulticlassMAELoss()(f, y), (1 - p).mean())


AGREE = {
    **{
        f"gce_{q}": (CompSumLoss(tau=1 + q), GeneralizedCrossEntropyLoss(q=q))
        for q in (0.0, 1e-8, 0.3, 0.7, 1.0)
    },
    "mae": (CompSumLoss(tau=2.0), MulticlassMAELoss()),
    "gce_mae": (GeneralizedCrossEntropyLoss(q=1.0), MulticlassMAELoss()),
    "scale": (MulticlassMAELoss(scale=3.0), lambda f, y: 3 * CompSumLoss(tau=2.0)(f, y)),
    "cross_entropy": (CompSumLoss(tau=1.0), cross_entropy),
    "gce_cross_entropy": (GeneralizedCrossEntropyLoss(q=0.0), cross_entropy),
    "int_tau": (CompSumLoss(tau=2), CompSumLoss(tau=2.0)),
}


@pytest.mark.parametrize("soft", [False, True], ids=["index", "probabilities"])
@pytest.mark.parametrize("pair", AGREE.values(), ids=AGREE)
def test_agree(pair, soft):
    f = (torch.randn(40, 6, dtype=torch.float64) * 8).requires_grad_()
    target = torch.softmax(torch.randn(40, 6).double(), 1) if soft else torch.randint(6, (40,))
    a, b = (loss(f, target) for loss in pair)
    close(a, b)
    ga, gb = (torch.autograd.grad(x, f)[0] for x in (a, b))
    torch.testing.assert_close(ga, gb, rtol=1e-11, atol=1e-16)


@given(rows(), st.sampled_from((1e-10, -1e-10, 1e-7, -1e-7)))
def test_continuous_at_cross_entropy(row, step):
    f, y = row
    ce = value(CompSumLoss(1.0), f, y).item()
    # The loss is ce (1 - step * ce / 2 + ...): near, and off by the right amount.
    close(value(CompSumLoss(1.0 + step), f, y), ce * (1 - step * ce / 2), rtol=1e-10)


@pytest.mark.parametrize("tau", [0.0, 0.9, 1 - 1e-10, 1.0, 1 + 1e-10, 1.7, 2.0, 3.0])
def test_small_and_large_losses_keep_their_digits(tau):
    for gap in (-700.0, -80.0, -37.0, -1e-9, 0.0, 30.0, 300.0):
        f = torch.tensor([0.0, gap], dtype=torch.float64)
        close(value(CompSumLoss(tau), f, 0), exact(f, 0, tau))
        single = CompSumLoss(tau)(f.float().unsqueeze(0), torch.tensor([0]))
        expected = exact(f.float(), 0, tau)
        if 1e-37 < expected < 1e38:
            assert single.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("offset", [-1e4, 1e3, 1e4, 1e6])
@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5, 2.0])
def test_a_common_offset_costs_no_digits_in_single_precision(tau, offset):
    f = torch.tensor([[1.0, 3.0, -2.0, 3.0], [5.0, 5.0, 5.0, 5.0], [9.0, 0.0, 1.0, 1.0]])
    y = torch.tensor([0, 0, 0])
    results = []
    for logits in (f, f + offset):  # integers: the sum is exact
        logits.requires_grad_()
        out = CompSumLoss(tau, reduction="none")(logits, y)
        results.append((out, torch.autograd.grad(out.sum(), logits)[0]))
    for plain, moved in zip(*results, strict=True):
        torch.testing.assert_close(moved, plain, rtol=1e-6, atol=0)


def test_overflow_is_infinite_with_a_finite_gradient():
    f = torch.tensor([[-2000.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    for tau, infinite in ((0.0, True), (0.5, True), (0.7, False), (1.0, False), (2.0, False)):
        out = CompSumLoss(tau)(f, torch.tensor([0]))
        assert torch.isinf(out).item() is infinite
        (g,) = torch.autograd.grad(out, f)
        assert torch.isfinite(g).all()
        if infinite:
            assert g[0, 0] < -1e300
            assert g[0, 2] > 1e300


# The gradient.


@given(rows(), taus)
def test_gradient(row, tau):
    f, y = row
    p = torch.softmax(f, 0)
    direction = p.clone()
    direction[y] = -(p.sum() - p[y])
    for loss in family(tau):
        expected = p[y] ** (tau - 1) * direction
        torch.testing.assert_close(gradient(loss, f, y), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("tau", [1.0, 1.3, 1.7, 2.0, 3.0])
def test_an_improbable_target_keeps_its_small_gradient(tau):
    # The published code's clipping of p at 1e-7 cuts it off.
    for gap in (5.0, 17.0, 25.0, 60.0):
        f = torch.tensor([0.0, -gap], dtype=torch.float64)
        with mpmath.workdps(50):
            p = 1 / (1 + mpmath.exp(gap))
            exact_slope = float(p ** (mpmath.mpf(tau) - 1) * (1 - p))
        if exact_slope < 1e-37:
            continue
        for loss in family(tau):
            close(gradient(loss, f, 1), [exact_slope, -exact_slope])
            single = f.float().unsqueeze(0).requires_grad_()
            (g,) = torch.autograd.grad(loss(single, torch.tensor([1])).sum(), single)
            close(g[0], [exact_slope, -exact_slope], rtol=1e-5)


@given(rows(), taus)
def test_gradient_sums_to_zero(row, tau):
    f, y = row
    g = gradient(CompSumLoss(tau), f, y)
    assert abs(g.sum()) <= 1e-14 * g.abs().sum()
    assert g[y] <= 0
    assert (g >= 0).sum() >= len(f) - 1


@given(rows(), taus, st.floats(-100.0, 100.0))
def test_shift_invariant(row, tau, shift):
    f, y = row
    for loss in family(tau):
        # The shift itself rounds f, by 1e-14 at most, which the loss magnifies by |tau - 1| + 1.
        close(value(loss, f + shift, y), value(loss, f, y), rtol=1e-12)


@given(rows(), st.one_of(st.sampled_from(TAUS), st.floats(0.0, 4.0)))
def test_gradient_norm(row, tau):
    f, y = row
    norm = gradient(CompSumLoss(tau), f, y).norm()
    if tau >= 1:
        assert norm <= ROOT2
    if tau == 2:
        assert norm <= ROOT2 / 4 * (1 + 1e-15)
        assert gradient(MulticlassMAELoss(3.0), f, y).norm() <= 3 * ROOT2 / 4 * (1 + 1e-15)


def test_gradient_norm_bounds_are_reached():
    wrong = torch.tensor([-40.0, 0.0], dtype=torch.float64)
    close(gradient(CompSumLoss(1.0), wrong, 0).norm(), ROOT2)
    tied = torch.zeros(2, dtype=torch.float64)
    close(gradient(MulticlassMAELoss(), tied, 0).norm(), ROOT2 / 4)
    for tau in (0.0, 0.5, 0.9):
        assert gradient(CompSumLoss(tau), wrong * 5, 0).norm() > 1e8


# Convexity and bounds.


@given(rows(count=2), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_convex_up_to_tau_1(row, tau, share):
    a, b, y = row
    loss = CompSumLoss(tau)
    middle = value(loss, share * a + (1 - share) * b, y)
    chord = share * value(loss, a, y) + (1 - share) * value(loss, b, y)
    assert middle <= chord * (1 + 1e-12)


@given(rows(st.floats(-4.0, 4.0)), st.floats(0.0, 1.0))
def test_hessian_is_positive_up_to_tau_1(row, tau):
    f, y = row
    h = torch.autograd.functional.hessian(lambda x: value(CompSumLoss(tau), x, y), f)
    spectrum = torch.linalg.eigvalsh(h)
    assert spectrum.min() >= -1e-13 * spectrum.abs().max()


@pytest.mark.parametrize("tau", [1.01, 1.3, 1.7, 2.0, 3.0])
def test_not_convex_above_tau_1(tau):
    # Along e_y the curvature is p^a (1-p) (p - a (1-p)), a = tau - 1: it changes sign at a/tau.
    def curvature(p):
        x = torch.tensor(math.log(2 * p / (1 - p)), dtype=torch.float64, requires_grad=True)
        out = value(CompSumLoss(tau), torch.stack((x, 0 * x, 0 * x)), 0)
        (g,) = torch.autograd.grad(out, x, create_graph=True)
        return torch.autograd.grad(g, x)[0].item()

    edge = (tau - 1) / tau
    assert curvature(0.9 * edge) < -1e-6
    assert curvature(edge + 0.1 * (1 - edge)) > 1e-6
    for p in (0.5 * edge, 0.9 * edge, 0.5, 0.9):
        expected = p ** (tau - 1) * (1 - p) * (p - (tau - 1) * (1 - p))
        assert curvature(p) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@given(rows(), taus)
def test_bounds(row, tau):
    f, y = row
    for loss in family(tau):
        out = value(loss, f, y)
        assert out > 0
        if tau > 1:
            assert out <= 1 / (tau - 1)
            if torch.softmax(f, 0)[y] ** (tau - 1) > 1e-14:  # else it rounds to the bound
                assert out < 1 / (tau - 1)


@pytest.mark.parametrize("tau", TAUS)
def test_bounds_are_approached(tau):
    f = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    for loss in family(tau):
        assert value(loss, 60 * f, 0) < 1e-20
        high = value(loss, -600 * f, 0)
        if tau <= 1:
            assert high >= 600
        else:
            close(high, 1 / (tau - 1), rtol=1e-9)
    close(value(MulticlassMAELoss(3.0), -60 * f, 0), 3.0)


@given(rows(), taus)
def test_least_loss_of_a_wrong_or_tied_prediction(row, tau):
    f, y = row
    rivals = torch.cat((f[:y], f[y + 1 :]))
    f[y] = torch.minimum(f[y], rivals.max())
    for loss in family(tau):
        assert value(loss, f, y) >= phi(1, tau) * (1 - 1e-14)


@pytest.mark.parametrize("tau", [*TAUS, *NEAR_ONE])
def test_least_loss_is_that_of_a_tie_of_two(tau):
    f = torch.tensor([0.0, 0.0, -60.0], dtype=torch.float64)
    least = math.log(2) if tau == 1 else math.expm1((1 - tau) * math.log(2)) / (1 - tau)
    close(value(CompSumLoss(tau), f, 0), least)


@given(rows(), taus, taus)
def test_nonincreasing_in_tau(row, a, b):
    f, y = row
    low, high = sorted((a, b))
    larger, smaller = value(CompSumLoss(low), f, y), value(CompSumLoss(high), f, y)
    assert smaller <= larger * (1 + 1e-14)
    if high - low > 1e-3 and larger > 1e-3:
        assert smaller < larger


# Sums over the classes.


@given(rows())
def test_symmetric_at_tau_2(row):
    f, _ = row
    for loss in family(2.0):
        close(all_values(loss, f).sum(), len(f) - 1)
    close(all_values(MulticlassMAELoss(scale=2.5), f).sum(), 2.5 * (len(f) - 1))


@given(rows(), st.floats(0.01, 1.0))
def test_class_sum_between_cross_entropy_and_mean_absolute_error(row, q):
    f, _ = row
    k = len(f)
    total = all_values(GeneralizedCrossEntropyLoss(q), f).sum()
    assert (k - k ** (1 - q)) / q * (1 - 1e-13) <= total <= (k - 1) / q * (1 + 1e-13)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
def test_class_sum_reaches_both_ends(q):
    loss, k = GeneralizedCrossEntropyLoss(q), 4
    flat = torch.zeros(k, dtype=torch.float64)
    close(all_values(loss, flat).sum(), (k - k ** (1 - q)) / q)
    peak = torch.tensor([900.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    close(all_values(loss, peak).sum(), (k - 1) / q)


@pytest.mark.parametrize("tau", [tau for tau in TAUS if tau != 2])
def test_not_symmetric_elsewhere(tau):
    loss = CompSumLoss(tau)
    a, b = (torch.tensor(x, dtype=torch.float64) for x in ((0.0, 0.0, 0.0), (3.0, 0.0, -1.0)))
    assert abs(all_values(loss, a).sum() - all_values(loss, b).sum()) > 1e-2


# The conditional risk.


@given(distributions(), st.one_of(st.sampled_from((0.0, 1.0, 1.5)), st.floats(0.0, 1.95)))
def test_conditional_minimum_and_minimiser(q, tau):
    best = torch.as_tensor(np.log(q) / (2 - tau)).requires_grad_()
    for loss in family(tau):
        least = risk(loss, best, q)
        close(least, conditional_minimum(q, tau), rtol=1e-11)
        (g,) = torch.autograd.grad(least, best)
        assert g.abs().max() <= 1e-12 * max(1.0, least.item())


@given(distributions(), st.sampled_from(TAUS), st.data())
def test_nothing_is_below_the_conditional_minimum(q, tau, data):
    f = data.draw(st.lists(numbers, min_size=len(q), max_size=len(q)))
    f = torch.tensor(f, dtype=torch.float64)
    lowest = conditional_minimum(q, tau)
    for loss in family(tau):
        assert risk(loss, f, q) >= lowest * (1 - 1e-13)


@given(distributions(most=4), st.sampled_from((0.0, 0.5, 1.0, 1.3, 1.6)))
def test_minimisation_finds_the_order_of_the_classes(q, tau):
    for loss in family(tau):
        found = least_risk(loss, q)
        assert found.fun == pytest.approx(conditional_minimum(q, tau), rel=1e-9)
        assert (np.argsort(found.x) == np.argsort(q)).all()
        p = torch.softmax(torch.as_tensor(found.x), 0).numpy()
        expected = q ** (1 / (2 - tau))
        np.testing.assert_allclose(p, expected / expected.sum(), atol=1e-5)


@given(distributions(most=4), st.sampled_from((2.0, 2.5, 4.0)))
def test_minimisation_finds_the_top_class_only_from_tau_2(q, tau):
    for loss in family(tau):
        found = least_risk(loss, q, gtol=1e-8)
        assert found.fun == pytest.approx(conditional_minimum(q, tau), abs=1e-6)
        assert found.x.argmax() == q.argmax()
        assert torch.softmax(torch.as_tensor(found.x), 0).max() > 0.99


@pytest.mark.parametrize("tau", [2.0, 3.0])
def test_order_of_the_rest_is_lost_from_tau_2(tau):
    q = np.array([0.5, 0.3, 0.2])
    for loss in family(tau):
        swapped = risk(loss, torch.tensor([60.0, -5.0, 5.0], dtype=torch.float64), q)
        close(swapped, conditional_minimum(q, tau))


@given(distributions(most=4), st.sampled_from(TAUS), st.data())
def test_the_infimum_is_not_approached_with_the_wrong_class_on_top(q, tau, data):
    # Calibration itself: with a wrong class on top or tied, the risk stays away from C*.
    f = data.draw(st.lists(numbers, min_size=len(q), max_size=len(q)))
    f = np.array(f)
    wrong = data.draw(st.sampled_from([k for k in range(len(q)) if k != q.argmax()]))
    f[wrong] = f.max()
    order = np.sort(q)
    loss = CompSumLoss(tau, reduction="none")
    regret = risk(loss, torch.as_tensor(f), q) - conditional_minimum(q, tau)
    # The lower bounds of the H-consistency transform at beta, what the best wrong class lacks.
    beta = order[-1] - order[-2]
    scale = len(q) ** (tau - 1)
    if tau >= 2:
        bound = beta / ((tau - 1) * scale)
    else:
        bound = beta**2 / (2**tau * (2 - tau) if tau < 1 else 2 * scale)
    assert regret >= bound * (1 - 1e-12)


def test_cross_entropy_alone_is_proper():
    q = np.array([0.5, 0.3, 0.2])
    proper = torch.as_tensor(np.log(q))
    for tau in TAUS:
        loss = CompSumLoss(tau, reduction="none")
        gap = risk(loss, proper, q).item() - conditional_minimum(q, tau)
        assert (abs(gap) < 1e-14) if tau == 1 else (gap > 1e-3)


@given(st.integers(2, 6), st.floats(0.0, 3.0), taus, st.data())
def test_minimum_with_bounded_logits(num_classes, bound, tau, data):
    inside = st.lists(st.floats(-bound, bound), min_size=num_classes, max_size=num_classes)
    f = torch.tensor(data.draw(inside), dtype=torch.float64)
    corner = torch.full((num_classes,), -bound, dtype=torch.float64)
    corner[0] = bound
    least = phi((num_classes - 1) * mpmath.exp(-2 * mpmath.mpf(bound)), tau)
    for loss in family(tau):
        close(value(loss, corner, 0), least, rtol=1e-12)
        assert value(loss, f, 0) >= least * (1 - 1e-12)


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5, 2.0, 3.0])
def test_minimum_with_bounded_logits_is_found_by_minimising(tau):
    loss, bound = CompSumLoss(tau), 1.5

    def objective(x):
        f = torch.tensor(x, requires_grad=True)
        out = value(loss, f, 2)
        out.backward()
        return out.item(), f.grad.numpy()

    box = [(-bound, bound)] * 4
    found = minimize(objective, np.zeros(4), jac=True, method="L-BFGS-B", bounds=box)
    assert found.fun == pytest.approx(phi(3 * math.exp(-3), tau), rel=1e-9)


# Probability targets.


@pytest.mark.parametrize("tau", TAUS)
def test_one_hot_targets_are_index_targets(tau):
    f, y = torch.randn(20, 5, dtype=torch.float64) * 6, torch.randint(5, (20,))
    one_hot = torch.eye(5, dtype=torch.float64)[y]
    for loss in (*family(tau), MulticlassMAELoss(2.0, reduction="none")):
        torch.testing.assert_close(loss(f, one_hot), loss(f, y), rtol=1e-11, atol=1e-15)


@given(rows(), taus, st.data())
def test_probability_targets_are_expectations(row, tau, data):
    f, _ = row
    counts = data.draw(st.lists(st.integers(0, 9), min_size=len(f), max_size=len(f)))
    assume(sum(counts) > 0)
    q = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    for loss in (*family(tau), MulticlassMAELoss(2.0)):
        out = loss(f.unsqueeze(0), q.unsqueeze(0)).squeeze()
        close(out, q @ all_values(loss, f), rtol=1e-11)


def test_cross_entropy_of_probabilities_is_that_of_torch():
    f = torch.randn(20, 5, dtype=torch.float64) * 6
    q = torch.softmax(torch.randn(20, 5).double(), 1)
    close(CompSumLoss(1.0)(f, q), cross_entropy(f, q))


@pytest.mark.parametrize("f", [(0.0, -2000.0, 1.0), (0.0, -math.inf, 1.0)])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_an_infinite_loss_counts_only_where_the_class_can_occur(f, tau):
    without_limit = math.isinf(f[1])
    f = torch.tensor([f], dtype=torch.float64, requires_grad=True)
    reachable = f[:, [0, 2]]
    loss = CompSumLoss(tau)
    out = loss(f, torch.tensor([[0.25, 0.0, 0.75]], dtype=torch.float64))
    close(out, loss(reachable, torch.tensor([[0.25, 0.75]], dtype=torch.float64)))
    (g,) = torch.autograd.grad(out, f)
    assert torch.isfinite(g).all()
    assert g[0, 1] == 0
    close(g[0, 0], -g[0, 2])
    certain = loss(f, torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64))
    infinite = tau < 1 or (tau == 1 and without_limit)
    assert torch.isinf(certain).item() is infinite
