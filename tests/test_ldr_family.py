"""The general LDR family and the hinges at its end, against formulas written out here."""

import gc
import itertools
import math
from unittest import mock

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from scipy.optimize import linprog
from torch import nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from lossary import CrammerSingerLoss, LDRKLLoss, LDRLoss, WestonWatkinsLoss, ldr
from lossary.testing import CHECKS, check_loss
from single_rows import all_values, close, distributions, gradient, least_risk, risk, rows, value

INF = math.inf
F32, F64 = torch.float32, torch.float64
INSIDE = (1e-6, 1e-3, 0.1, 0.5, 1.0, 10.0, 1e3, 1e6)
MARGINS = (0.0, 0.1, 2.0)

inside = st.one_of(st.sampled_from(INSIDE), st.floats(0.01, 100.0))
moderate = st.floats(0.05, 20.0)
margins = st.one_of(st.sampled_from(MARGINS), st.floats(0.0, 10.0))
ties = rows(elements=st.integers(-3, 3).map(float))


def euclidean(lam=1.0, margin=0.0, **options):
    return LDRLoss(lam, margin, "euclidean", **options)


def capped(k, margin=0.0, **options):
    return LDRLoss(margin=margin, topk=k, **options)


def margin_of(shape, size, scale=1.0):
    """A margin of every shape, drawn."""
    if shape == "number":
        return 0.7 * scale
    drawn = torch.rand((size,) if shape == "vector" else (size, size), dtype=F64) * scale
    return drawn if shape == "vector" else drawn.fill_diagonal_(0.0)


def gaps(f, y, margin=0.0):
    """z_k = f_k - f_y + c_{k,y}, in multiple precision."""
    f = [mpf(x) for x in f.tolist()]
    c = margin if isinstance(margin, torch.Tensor) else torch.tensor(margin, dtype=F64)
    c = c if c.dim() == 0 else c[y]
    c = [mpf(x) for x in c.double().expand(len(f)).tolist()]
    return [mpf(0) if k == y else f[k] - f[y] + c[k] for k in range(len(f))]


def worst(z, lam):
    """r*, by following the threshold x down until sum_k max(0, 1/K + (z_k - x)/(lam K)) is 1."""
    size = len(z)
    width = mpf(lam) * size
    edges = sorted((x for x in z if x > -INF), reverse=True)
    for s in range(1, len(edges) + 1):
        x = (mpmath.fsum(edges[:s]) - width) / s  # as if s classes were above it
        if s == len(edges) or x >= edges[s]:
            break
    return [max(mpf(0), (a - x) / width) for a in z]


def objective(r, z, lam):
    """<r, z> - lam (K/2) ||r - 1/K||^2."""
    size = len(z)
    distance = mpmath.fsum((a - mpf(1) / size) ** 2 for a in r)
    product = mpmath.fsum(a * b for a, b in zip(r, z, strict=True) if a != 0)
    return product - mpf(lam) * size / 2 * distance


def exact(z, lam):
    return float(objective(worst(z, lam), z, lam))


def mean_of_largest(z, k):
    return float(mpmath.fsum(sorted(z, reverse=True)[:k]) / k)


def spread(z):
    """The size of z that an error is relative to."""
    return float(mpmath.fsum(abs(x) for x in z if x > -INF) / len(z))


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(60):
        yield


# The Euclidean member.


@given(st.one_of(rows(), ties), inside, margins)
def test_euclidean_value_and_gradient(row, lam, margin):
    f, y = row
    z = gaps(f, y, margin)
    close(value(euclidean(lam, margin), f, y), exact(z, lam), rtol=1e-14, atol=1e-14 * spread(z))
    expected = [float(r - (k == y)) for k, r in enumerate(worst(z, lam))]
    close(gradient(euclidean(lam, margin), f, y), expected, atol=2e-15 * (1 + spread(z) / lam))


@pytest.mark.parametrize("shape", ["number", "vector", "matrix"])
@pytest.mark.parametrize("lam", [0.0, 1e-3, 0.3, 2.0, 50.0, INF])
def test_margins_of_every_shape(lam, shape):
    f = torch.randn(20, 4, dtype=F64) * 2
    margin = margin_of(shape, 4)
    for y in range(4):
        z = [gaps(x, y, margin) for x in f]
        if lam == 0.0:
            want = [float(max(x)) for x in z]
        elif lam == INF:
            want = [mean_of_largest(x, 4) for x in z]
        else:
            want = [exact(x, lam) for x in z]
        loss = euclidean(lam, margin, reduction="none")
        close(loss(f, torch.full((20,), y)), want, rtol=1e-13, atol=1e-13)
        for k in range(1, 5):
            want = [mean_of_largest(x, k) for x in z]
            close(capped(k, margin, reduction="none")(f, torch.full((20,), y)), want, atol=1e-13)


def test_defaults():
    f, y = torch.randn(9, 5, dtype=F64), torch.randint(5, (9,))
    close(LDRLoss()(f, y), cross_entropy(f, y) - math.log(5), atol=1e-14)
    close(euclidean()(f, y), np.mean([exact(gaps(f[i], int(y[i])), 1.0) for i in range(9)]))
    hinge = np.mean([float(max(gaps(f[i], int(y[i]), 1.0))) for i in range(9)])
    close(CrammerSingerLoss()(f, y), hinge)


@given(rows(), moderate, margins, st.data())
def test_no_distribution_gives_more(row, lam, margin, data):
    f, y = row
    z = gaps(f, y, margin)
    mass = data.draw(st.lists(st.floats(0.0, 1.0), min_size=len(f), max_size=len(f)))
    total = mpmath.fsum(mpf(x) + mpf("1e-6") for x in mass)
    r = [(mpf(x) + mpf("1e-6")) / total for x in mass]
    out = float(value(euclidean(lam, margin), f, y))
    slack = 1e-12 * (1 + spread(z))
    assert float(objective(r, z, lam)) <= out + slack
    # r*, read off the gradient, is one, and reaches it.
    found = gradient(euclidean(lam, margin), f, y)
    found[y] += 1.0
    assert found.min() >= -1e-13
    assert abs(found.sum() - 1.0) < 1e-13
    reached = objective([mpf(x) for x in found.tolist()], z, lam)
    assert float(reached) == pytest.approx(out, abs=slack)


@given(rows(), st.integers(1, 6), margins, st.data())
def test_no_capped_distribution_gives_more(row, k, margin, data):
    f, y = row
    k = min(k, len(f))
    out = float(value(capped(k, margin), f, y))
    z = gaps(f, y, margin)
    close(out, mean_of_largest(z, k), rtol=1e-13, atol=1e-13)
    # The vertices of the capped simplex and what lies between.
    shares = []
    for _ in range(3):
        order = data.draw(st.permutations(range(len(f))))
        shares.append([mpf(i in order[:k]) / k for i in range(len(f))])
    r = [mpmath.fsum(x) / 3 for x in zip(*shares, strict=True)]
    assert float(mpmath.fsum(a * b for a, b in zip(r, z, strict=True))) <= out + 1e-12
    found = gradient(capped(k, margin), f, y)
    found[y] += 1.0
    assert found.min() >= -1e-15
    assert found.max() <= 1 / k + 1e-15
    assert abs(found.sum() - 1.0) < 1e-14
    reached = float(found @ torch.tensor([float(x) for x in z], dtype=F64))
    assert reached == pytest.approx(out, abs=1e-13)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("make", [lambda c: euclidean(0.3, c), lambda c: capped(2, c)])
def test_envelope_theorem(make, margin):
    f = torch.randn(4, dtype=F64) * 2
    loss = make(margin)
    for y in range(4):
        g = gradient(loss, f, y)
        h = 1e-6 * torch.eye(4, dtype=F64)
        slopes = [(value(loss, f + e, y) - value(loss, f - e, y)) / 2e-6 for e in h]
        torch.testing.assert_close(g, torch.stack(slopes), rtol=0, atol=1e-8)


@pytest.mark.parametrize("margin", MARGINS)
def test_curvature_is_that_of_the_support(margin):
    lam, seen = 0.3, set()
    for _ in range(20):
        f, y = torch.randn(5, dtype=F64) * 2, 3
        loss = euclidean(lam, margin)
        hessian = torch.autograd.functional.hessian(lambda x, loss=loss: value(loss, x, 3), f)
        on = torch.tensor([r > 0 for r in worst(gaps(f, y, margin), lam)], dtype=F64)
        seen.add(int(on.sum()))
        expected = (torch.diag(on) - torch.outer(on, on) / on.sum()) / (lam * 5)
        torch.testing.assert_close(hessian, expected, rtol=1e-12, atol=1e-12)
    assert len(seen) >= 2


@given(rows(count=2), moderate, margins, st.floats(0.0, 1.0), st.integers(1, 6))
def test_convex(row, lam, margin, share, k):
    a, b, y = row
    losses = (
        euclidean(lam, margin),
        capped(min(k, len(a)), margin),
        CrammerSingerLoss(margin),
        WestonWatkinsLoss(margin),
    )
    for loss in losses:
        middle = value(loss, share * a + (1 - share) * b, y)
        chord = share * value(loss, a, y) + (1 - share) * value(loss, b, y)
        assert middle <= chord + 1e-11


# What the members have in common.


@pytest.mark.parametrize("dtype", [F64, F32, torch.bfloat16])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, 7.0, INF])
@pytest.mark.parametrize("shape", ["number", "vector", "matrix"])
def test_kl_is_the_kl_loss_bit_for_bit(lam, shape, dtype):
    margin = margin_of(shape, 5)
    f, y = (torch.randn(8, 5) * 3).to(dtype), torch.randint(5, (8,))
    q = torch.softmax(torch.randn(8, 5), 1)
    for target in (y, q):
        found = []
        for loss in (LDRLoss(lam, margin, reduction="none"), LDRKLLoss(lam, margin)):
            loss.reduction = "none"
            x = f.clone().requires_grad_()
            out = loss(x, target)
            found.append((out.detach(), torch.autograd.grad(out.sum(), x)[0]))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("shape", ["number", "vector", "matrix"])
@pytest.mark.parametrize("soft", [False, True], ids=["index", "probabilities"])
def test_the_ends_are_one_and_the_same(shape, soft):
    margin = margin_of(shape, 5)
    f, target = torch.randn(8, 5, dtype=F64) * 3, torch.randint(5, (8,))
    target = torch.softmax(torch.randn(8, 5, dtype=F64), 1) if soft else target
    hinges = (euclidean(0.0, margin), capped(1, margin), LDRLoss(0.0, margin))
    means = (euclidean(INF, margin), capped(5, margin), LDRLoss(INF, margin))
    for losses, kl in ((hinges, LDRKLLoss(0.0, margin)), (means, LDRKLLoss(INF, margin))):
        assert all(torch.equal(loss(f, target), kl(f, target)) for loss in losses)
    assert torch.equal(CrammerSingerLoss(margin)(f, target), LDRKLLoss(0.0, margin)(f, target))


@given(rows(), margins)
def test_the_ends_are_approached(row, margin):
    f, y = row
    z = gaps(f, y, margin)
    hinge, mean = value(euclidean(0.0, margin), f, y), value(euclidean(INF, margin), f, y)
    low, high = value(euclidean(1e-7, margin), f, y), value(euclidean(1e7, margin), f, y)
    assert -1e-13 <= hinge - low <= 1e-7 * (len(f) - 1) / 2 + 1e-13
    average = mpmath.fsum(z) / len(z)
    variance = mpmath.fsum((x - average) ** 2 for x in z) / len(z)
    close(high - mean, float(variance) / 2e7, rtol=1e-6, atol=1e-13)


@given(rows(), moderate, moderate, margins)
def test_nonincreasing_in_lam_and_between_the_ends(row, a, b, margin):
    f, y = row
    low, high = sorted((a, b))
    chain = [value(euclidean(lam, margin), f, y) for lam in (0.0, low, high, INF)]
    assert all(x >= y - 1e-13 for x, y in itertools.pairwise(chain))
    assert chain[1] >= chain[0] - low * (len(f) - 1) / 2 - 1e-13


@given(rows(), margins)
def test_topk_is_nonincreasing_in_k(row, margin):
    f, y = row
    chain = [value(capped(k, margin), f, y) for k in range(1, len(f) + 1)]
    assert all(x >= y - 1e-13 for x, y in itertools.pairwise(chain))


def sparsemax_loss(f, y):
    """max_r <r, f> - ||r||^2 / 2 - f_y + 1/2, with the threshold by bisection."""
    low, high = float(f.min()) - 1.0, float(f.max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (f - middle).clamp(min=0).sum() > 1 else (low, middle)
    r = (f - low).clamp(min=0)
    return r @ f - r @ r / 2 - f[y] + 0.5


@given(rows())
def test_at_lam_1_over_k_it_is_the_sparsemax_loss(row):
    f, y = row
    size = len(f)
    expected = sparsemax_loss(f, y) - 0.5 + 0.5 / size
    close(value(euclidean(1 / size), f, y), expected, atol=1e-12)


@given(rows(), moderate, margins, st.floats(0.1, 10.0), st.floats(-100.0, 100.0))
def test_scales_with_lam_and_margin_and_ignores_an_offset(row, lam, margin, unit, shift):
    f, y = row
    scaled = value(euclidean(lam * unit, margin * unit), f * unit + shift, y)
    close(scaled, unit * value(euclidean(lam, margin), f, y), atol=1e-11)


# The hinges.


def hinges(f, y, margin):
    """max(0, f_k - f_y + c_{k,y}) of every rival."""
    z = [float(x) for x in gaps(f, y, margin)]
    return [max(0.0, x) for k, x in enumerate(z) if k != y]


@given(st.one_of(rows(), ties), margins)
def test_crammer_singer_is_the_largest_hinge_and_weston_watkins_their_sum(row, margin):
    f, y = row
    found = hinges(f, y, margin)
    hardest = value(CrammerSingerLoss(margin), f, y)
    total = value(WestonWatkinsLoss(margin), f, y)
    close(hardest, max(found), atol=1e-14)
    close(total, sum(found), atol=1e-13)
    close(value(WestonWatkinsLoss(margin, "mean"), f, y), sum(found) / len(f), atol=1e-13)
    assert hardest <= total + 1e-13
    assert total <= (len(f) - 1) * hardest + 1e-12
    if max(found) == 0:
        assert total == hardest == 0
    elif max(found) > 1e-12:
        assert total >= hardest > 0


@given(rows(), margins)
def test_gradients_of_the_hinges(row, margin):
    f, y = row
    z = [float(x) for x in gaps(f, y, margin)]
    violated = torch.tensor([float(x > 0 and k != y) for k, x in enumerate(z)], dtype=F64)
    e = torch.eye(len(f), dtype=F64)
    if all(abs(x) > 1e-12 for k, x in enumerate(z) if k != y):
        g = gradient(WestonWatkinsLoss(margin), f, y)
        assert torch.equal(g, violated - violated.sum() * e[y])
        mean = gradient(WestonWatkinsLoss(margin, "mean"), f, y)
        close(mean, g / len(f), atol=1e-15)
        g = gradient(CrammerSingerLoss(margin), f, y)
        hardest = [k for k in range(len(f)) if k != y and z[k] == max(hinges(f, y, margin))]
        if violated.any():
            assert any(torch.equal(g, e[k] - e[y]) for k in hardest)
        else:
            assert (g == 0).all()


def test_the_gradient_of_a_hinge_is_zero_at_its_kink():
    # Exactly at the margin, and at a margin of 0 with equal logits: nothing is violated.
    f = torch.tensor([1.0, 0.0, -5.0], dtype=F64)
    assert (gradient(WestonWatkinsLoss(1.0), f, 0) == 0).all()
    assert (gradient(WestonWatkinsLoss(0.0), torch.zeros(3, dtype=F64), 1) == 0).all()


@pytest.mark.parametrize("margin", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weston_watkins_mean_is_torchs_multi_margin_loss(margin, reduction):
    f, y = torch.randn(50, 7, dtype=F64, requires_grad=True), torch.randint(7, (50,))
    theirs = nn.MultiMarginLoss(p=1, margin=margin, reduction=reduction)(f, y)
    ours = WestonWatkinsLoss(margin, "mean", reduction=reduction)(f, y)
    close(ours, theirs, atol=1e-14)
    a, b = (torch.autograd.grad(x.sum(), f)[0] for x in (ours, theirs))
    close(a, b, atol=1e-15)


@pytest.mark.parametrize("shape", ["number", "vector", "matrix"])
def test_margins_of_the_hinges(shape):
    f, margin = torch.randn(6, 4, dtype=F64), margin_of(shape, 4, 2.0)
    for y in range(4):
        expected = [hinges(x, y, margin) for x in f]
        target = torch.full((6,), y)
        hardest = CrammerSingerLoss(margin, reduction="none")(f, target)
        total = WestonWatkinsLoss(margin, reduction="none")(f, target)
        close(hardest, [max(x) for x in expected], atol=1e-14)
        close(total, [sum(x) for x in expected], atol=1e-14)


# The conditional risk.


@given(distributions(), moderate, st.floats(0.0, 3.0))
def test_euclidean_minimisation_finds_the_order_of_the_classes(q, lam, margin):
    found = least_risk(euclidean(lam, margin, reduction="none"), q)
    assert np.abs(found.jac).max() < 1e-6
    assert (np.argsort(found.x) == np.argsort(q)).all()


@given(distributions(most=6), inside)
def test_euclidean_minimiser_without_margin(q, lam):
    # r* = q at f = lam K q.
    f = torch.as_tensor(lam * len(q) * q).requires_grad_()
    (g,) = torch.autograd.grad(risk(euclidean(lam, 0.0), f, q), f)
    assert g.abs().max() < 1e-14


MEMBERS = (
    lambda lam, c, k: euclidean(lam, c),
    lambda lam, c, k: LDRKLLoss(lam, c),
    lambda lam, c, k: capped(k, c),
    lambda lam, c, k: CrammerSingerLoss(c),
)


@pytest.mark.parametrize("member", MEMBERS)
@given(rows(), moderate, margins, st.integers(1, 6))
def test_a_smaller_target_logit_costs_its_distance_at_least(member, row, lam, margin, k):
    """Step one of the proof of the order: exchanging two logits in the wrong order pays."""
    f, y = row
    loss = member(lam, margin, min(k, len(f)))
    values = all_values(loss, f)
    for i in range(len(f)):
        assert values[i] - values[y] >= f[y] - f[i] - 1e-11 or f[i] > f[y]


@pytest.mark.parametrize("member", MEMBERS[:2])
@given(rows(), distributions(most=6), st.floats(0.2, 20.0), margins)
def test_a_tie_pays_to_be_broken(member, row, q, lam, margin):
    """Step two: the slope of the risk along e_i - e_j at a tie of i and j."""
    f, y = row
    size = min(len(f), len(q))
    if y >= size - 1:
        f = f.flip(0)
        y = 0
    f, q, i, j = f[:size].clone(), q[:size] / q[:size].sum(), y, size - 1
    if i == j:
        return
    f[i] = f[j]
    loss = member(lam, margin, 1)
    x = f.clone().requires_grad_()
    (g,) = torch.autograd.grad(risk(loss, x, q), x)
    of_target = gradient(loss, f, i)
    ahead = of_target[j] - of_target[i] - 1.0  # r_j - r_i >= 0
    assert ahead >= -1e-12
    close(g[i] - g[j], -(q[i] - q[j]) * (1.0 + ahead), atol=1e-11)


def cuts(kind, size, margin):
    """The rows of a linear program: slack of a target (or pair) >= gap + margin, and its weight."""
    pairs = [(y, k) for y in range(size) for k in range(size) if k != y]
    slacks = size if kind is CrammerSingerLoss else len(pairs)
    a = np.zeros((len(pairs), size + slacks))
    for i, (y, k) in enumerate(pairs):
        a[i, k], a[i, y], a[i, size + (y if kind is CrammerSingerLoss else i)] = 1.0, -1.0, -1.0
    owners = range(size) if kind is CrammerSingerLoss else [y for y, _ in pairs]
    return a, np.full(len(pairs), -margin), np.array(list(owners))


def least_hinge_risk(kind, q, margin):
    """The least conditional risk of a hinge, and the largest lead of q's top class in a minimiser.

    A negative or zero lead says that no minimiser has q's most probable class alone on top.
    """
    size = len(q)
    a, b, owners = cuts(kind, size, margin)
    cost = np.concatenate((np.zeros(size), q[owners]))
    bounds = [(0, 0), *[(None, None)] * (size - 1), *[(0, None)] * len(owners)]
    least = linprog(cost, A_ub=a, b_ub=b, bounds=bounds)
    # Among the minimisers: the largest t with f_top - f_k >= t for every other class.
    top = int(q.argmax())
    a = np.hstack((a, np.zeros((len(a), 1))))
    optimal = np.append(cost, 0.0)
    lead = np.zeros((size - 1, a.shape[1]))
    for i, k in enumerate(k for k in range(size) if k != top):
        lead[i, k], lead[i, top], lead[i, -1] = 1.0, -1.0, 1.0
    found = linprog(
        np.append(np.zeros(len(cost)), -1.0),
        A_ub=np.vstack((a, optimal, lead)),
        b_ub=np.concatenate((b, [least.fun + 1e-10], np.zeros(size - 1))),
        bounds=[*bounds, (-10 * margin, 10 * margin)],
    )
    f = torch.as_tensor(least.x[:size])
    assert float(risk(kind(margin), f, q)) == pytest.approx(least.fun, abs=1e-9)
    return least.fun, found.x[-1]


def drawn_distributions(n, size, seed):
    generator = np.random.default_rng(seed)
    return [x for x in generator.dirichlet(np.full(size, 3.0), n) if np.ptp(np.sort(x)[-2:]) > 0.02]


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_crammer_singer_is_right_just_where_a_class_is_above_one_half(size, margin):
    seen = {True: 0, False: 0}
    for q in drawn_distributions(60, size, seed=size):
        least, lead = least_hinge_risk(CrammerSingerLoss, q, margin)
        above = q.max() > 0.5
        seen[bool(above)] += 1
        if above:
            assert lead == pytest.approx(margin, abs=1e-6)
            assert least == pytest.approx(2 * (1 - q.max()) * margin, abs=1e-9)
        else:  # all logits equal are best, and every minimiser has a tie on top, or worse
            assert lead <= 1e-6
            assert least == pytest.approx(margin, abs=1e-9)
    assert min(seen.values()) >= 3


@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_weston_watkins_is_found_to_tie_the_top_classes(margin):
    misled = []
    for q in drawn_distributions(60, 3, seed=1):
        least, lead = least_hinge_risk(WestonWatkinsLoss, q, margin)
        if lead <= 1e-6:
            misled.append(q)
            # The two most probable classes share the top, the third is a margin behind.
            f = torch.full((3,), margin, dtype=F64)
            f[int(q.argmin())] = 0.0
            close(risk(WestonWatkinsLoss(margin), f, q), least, atol=1e-9)
    assert 3 <= len(misled) <= 57


@pytest.mark.parametrize("kind", [CrammerSingerLoss, WestonWatkinsLoss])
def test_two_classes_are_consistent(kind):
    for a in (0.55, 0.7, 0.95):
        q = np.array([a, 1 - a])
        least, lead = least_hinge_risk(kind, q, 1.5)
        assert lead == pytest.approx(1.5, abs=1e-6)
        assert least == pytest.approx(3.0 * (1 - a), abs=1e-9)


@pytest.mark.parametrize("kind", [CrammerSingerLoss, WestonWatkinsLoss])
@given(rows(), distributions(most=6))
def test_without_a_margin_equal_logits_are_best(kind, row, q):
    f, _ = row
    size = min(len(f), len(q))
    q = q[:size] / q[:size].sum()
    assert risk(kind(0.0), torch.zeros(size, dtype=F64), q) == 0
    assert risk(kind(0.0), f[:size], q) >= 0


@given(rows(), distributions(most=6))
def test_topk_2_is_right_above_one_half_and_ties_without_margin_below(row, q):
    f, _ = row
    size = min(len(f), len(q))
    if size < 3:
        return
    f, q = f[:size], q[:size] / q[:size].sum()
    out = risk(capped(2), f, q)
    if q.max() <= 0.5:
        assert out >= -1e-12  # and it is 0 where all logits are equal
    else:
        # Along e_top it falls without end; nowhere that another class is on top is it below 0.
        top = torch.eye(size, dtype=F64)[int(q.argmax())]
        close(risk(capped(2), 1e3 * top, q), 1e3 * (0.5 - q.max()), rtol=1e-9)
        wrong = f.argmax() != q.argmax()
        assert out >= -1e-12 or not wrong


@given(st.integers(3, 8), st.integers(1, 4), margins)
def test_topk_above_2_runs_away_with_the_wrong_class_on_top(k, more, margin):
    size = k + more
    facts = capped(k, margin).properties(size)
    q, f = (torch.tensor(x, dtype=F64) for x in facts.counterexamples["calibrated"])
    assert len(q) <= size
    close(q.sum(), 1.0)
    assert q.min() > 0
    assert f.argmax() != q.argmax()
    risks = [float(risk(capped(k, margin), s * f, q.numpy())) for s in (1.0, 10.0, 100.0)]
    assert risks[1] < 5 * risks[0] < 0
    assert risks[2] < 5 * risks[1]


def facts_cases():
    """Every member with every kind of claim, for two classes, few and more."""
    for size in (2, 3, 4, 6):
        for c in (0.0, 0.5, 6.0):
            yield size, f"CS {c:g}", lambda c=c: CrammerSingerLoss(c)
            yield size, f"WW {c:g}", lambda c=c: WestonWatkinsLoss(c)
            yield size, f"WW mean {c:g}", lambda c=c: WestonWatkinsLoss(c, "mean")
            for lam in (0.0, 0.4, INF):
                yield size, f"kl {lam:g} {c:g}", lambda lam=lam, c=c: LDRLoss(lam, c)
            yield size, f"euclidean {c:g}", lambda c=c: euclidean(0.4, c)
            for k in range(1, size + 1):
                yield size, f"topk {k} {c:g}", lambda k=k, c=c: capped(k, c)


@pytest.mark.wide
@pytest.mark.parametrize(
    ("size", "make"),
    [pytest.param(size, make, id=f"K={size} {name}") for size, name, make in facts_cases()],
)
def test_every_claim_holds_for_any_number_of_classes(size, make):
    def inputs(n, dtype, generator):
        return (
            torch.randn(n, size, dtype=dtype, generator=generator),
            torch.randint(size, (n,), generator=generator),
        )

    others = [name for name in CHECKS if not name.startswith("property:") and name != "runs"]
    check_loss(make(), inputs, exclude=others)


def test_the_claims_of_two_classes_are_those_of_the_binary_hinge():
    for loss in (CrammerSingerLoss(), WestonWatkinsLoss(), LDRKLLoss(0.0), capped(1, 0.5)):
        two, three = loss.properties(2), loss.properties(3)
        assert (two.calibrated, two.rank_consistent, two.proper) == (True, True, False)
        assert (three.calibrated, three.rank_consistent, three.proper) == (False, False, False)
    for loss in (CrammerSingerLoss(0.0), WestonWatkinsLoss(0.0)):
        assert loss.properties(2).calibrated is False
    with pytest.raises(ValueError, match=r"topk: expected at most 3, .*, got 4"):
        capped(4).properties(3)


@pytest.mark.parametrize("margin", [0.0, 1e4])
def test_the_mean_runs_away_with_the_wrong_class_on_top(margin):
    q, f = LDRLoss(INF, margin).properties(4).counterexamples["calibrated"]
    f, q = torch.tensor(f, dtype=F64), np.array(q)
    risks = [risk(LDRLoss(INF, margin), s * f, q) for s in (1.0, 10.0)]
    assert risks[1] < 5 * risks[0] < 0
    assert f.argmax() != q.argmax()


@given(moderate, margins)
def test_the_counterexample_to_properness_is_a_minimiser(lam, margin):
    q, f = euclidean(lam, margin).properties(2).counterexamples["proper"]
    x = torch.tensor(f, dtype=F64, requires_grad=True)
    (g,) = torch.autograd.grad(risk(euclidean(lam, margin), x, np.array(q)), x)
    assert g.abs().max() < 1e-12
    assert abs(f[0] - math.log(q[0] / q[1])) > 1e-3


# Extremes.

EXTREME = {
    "ordinary": ([0.5, -1.25, 2.0, 0.25], 0),
    "huge": ([1e4, -1e4, 0.0, 5.0], 1),
    "huge, the target ahead": ([1e4, -1e4, 0.0, 5.0], 0),
    "tied far above the target": ([-1e4, 0.0, 0.5, 0.5], 0),
    "equal": ([3.0, 3.0, 3.0, 3.0], 2),
    "tiny": ([1e-30, -1e-30, 0.0, 0.0], 0),
    "offset": ([1e6, 1e6 + 0.5, 1e6 - 2.0, 1e6 + 0.5], 0),
    "one far above many": ([1e4, *([0.001, 0.0] * 20)], 2),
    "impossible rivals": ([0.5, -INF, 2.0, -INF], 0),
    "only the target possible": ([0.5, -INF, -INF, -INF], 0),
    "two classes": ([0.25, -3.0], 1),
}


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("row", EXTREME.values(), ids=EXTREME)
def test_extremes(row, margin, dtype):
    f, y = torch.tensor(row[0], dtype=dtype), row[1]
    eps = torch.finfo(dtype).eps
    z = gaps(f, y, margin)
    for lam in (1e-6, 1e-3, 1.0, 30.0, 1e6):
        r = worst(z, lam)
        true = float(objective(r, z, lam))
        x = f.clone().requires_grad_()
        out = euclidean(lam, margin)(x.unsqueeze(0), torch.tensor([y]))
        assert out.dtype is dtype
        (g,) = torch.autograd.grad(out, x)
        possible = f > -INF
        # z itself is known to a rounding of the logits' distances, the rest adds a few.
        on = [float(abs(a)) for a, b in zip(z, r, strict=True) if b > 0]
        assert abs(float(out.detach()) - true) <= 4 * eps * (sum(on) / len(on) + abs(true))
        expected = torch.tensor([float(a - (k == y)) for k, a in enumerate(r)], dtype=F64)
        distance = max(on) - min(on) if len(on) > 1 else 0.0
        assert (g.double() - expected)[possible].abs().max() <= 4 * eps * (1 + distance / lam)
        assert (g[~possible] == 0).all()
        # For every class at once.
        if (f > -INF).all():
            every = euclidean(lam, margin).per_sample(x.unsqueeze(0), None)[0, y]
            assert abs(float(every.detach()) - true) <= 4 * eps * (sum(on) / len(on) + abs(true))
            (g,) = torch.autograd.grad(every, x)
            assert (g.double() - expected).abs().max() <= 4 * eps * (1 + distance / lam)
    for k in (1, 2, len(z)):
        out = capped(k, margin)(f.unsqueeze(0), torch.tensor([y]))
        true = mean_of_largest(z, k)
        largest = [float(abs(a)) for a in sorted(z, reverse=True)[:k]]
        # Summed over a whole row, from an offset, the logits cost their own rounding.
        size = float(f[f > -INF].abs().max()) if k == len(z) else sum(largest) / k
        assert float(out) == true or abs(float(out) - true) <= 4 * eps * (size + abs(true))
    hinge = WestonWatkinsLoss(margin)(f.unsqueeze(0), torch.tensor([y]))
    assert float(hinge) == pytest.approx(math.fsum(hinges(f, y, margin)), rel=4 * eps)


@pytest.mark.parametrize("margin", [0.0, 0.1])
@pytest.mark.parametrize("lam", [1e-30, 1e-12, 1e-9])
def test_rivals_tied_next_to_the_target_at_a_tiny_lam(lam, margin):
    # The target is on top of the logits, by less than the margin.
    f = torch.tensor([0.1, 0.03, 0.03, 0.03, -5.0], requires_grad=True)
    out = euclidean(lam, margin)(f, torch.tensor(0))
    (g,) = torch.autograd.grad(out, f)
    expected = [-1.0, 1 / 3, 1 / 3, 1 / 3, 0.0] if margin else [0.0] * 5
    close(g, torch.tensor(expected), atol=1e-6)
    close(out.detach(), max(0.0, margin - 0.07), atol=1e-7)


@pytest.mark.parametrize("make", [lambda: LDRLoss(INF), lambda: euclidean(2.0), lambda: capped(2)])
def test_every_class_at_once_with_an_offset_in_single_precision(make):
    f = torch.tensor([[1.0, -2.5, 0.25, 0.0, 0.125]])
    every = [make().per_sample(x, None) for x in (f, f + 2.0**20)]
    torch.testing.assert_close(every[0], every[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", ["l1", "softplus"])
@pytest.mark.parametrize("lam", [0.0, 1.0, INF])
def test_normalised_logits_of_a_tiny_mean_have_a_finite_gradient(lam, how):
    f = torch.tensor([[3e-30, -1e-30, 2e-30]])
    f = f if how == "l1" else f.abs().log()  # softplus(log x) is x
    single, double = f.clone().requires_grad_(), f.double().requires_grad_()
    y = torch.tensor([1])
    a, b = (LDRKLLoss(lam, normalize=how)(x, y) for x in (single, double))
    close(a, b.detach(), rtol=1e-5)
    g, h = (torch.autograd.grad(v, x)[0] for v, x in ((a, single), (b, double)))
    close(g, h, rtol=1e-4, atol=1e-5 * float(h.abs().max()))


@pytest.mark.parametrize("lam", [1e-6, 1.0, 1e6])
def test_an_impossible_target_is_infinitely_far_behind(lam):
    for f in ([-INF, 1.0, 0.0, -INF], [-INF, 1.0, 2.0, 3.0]):
        for margin in (0.0, 0.5, torch.rand(4), margin_of("matrix", 4)):
            losses = (euclidean(lam, margin), *(capped(k, margin) for k in (2, 3, 4)))
            for loss in (*losses, CrammerSingerLoss(margin), WestonWatkinsLoss(margin)):
                x = torch.tensor(f, requires_grad=True)
                out = loss(x.unsqueeze(0), torch.tensor([0]))
                assert out == INF
                assert not torch.autograd.grad(out, x)[0].isnan().any()


@pytest.mark.parametrize(
    "make",
    [
        lambda c: euclidean(0.5, c),
        lambda c: LDRLoss(INF, c),
        lambda c: capped(2, c),
        CrammerSingerLoss,
        WestonWatkinsLoss,
    ],
    ids=["euclidean", "mean", "topk", "CS", "WW"],
)
def test_an_impossible_class_in_probability_targets(make):
    # Of probability 0, it counts as in the losses of the other classes, and is no nan.
    f = torch.tensor([[0.0, -INF, 1.0, 0.5]], dtype=F64, requires_grad=True)
    for margin in (0.0, 0.5, margin_of("vector", 4), margin_of("matrix", 4)):
        loss = make(margin)
        out = loss(f, torch.tensor([[0.25, 0.0, 0.5, 0.25]], dtype=F64))
        by_index = [loss(f, torch.tensor([k])) for k in (0, 2, 3)]
        expected = 0.25 * by_index[0] + 0.5 * by_index[1] + 0.25 * by_index[2]
        close(out, expected.detach(), atol=1e-14)
        (g,) = torch.autograd.grad(out, f)
        assert not g.isnan().any()
        certain = loss(f, torch.tensor([[0.25, 0.5, 0.25, 0.0]], dtype=F64))
        # Infinitely far behind as a target, infinitely far below as a rival.
        assert certain == INF or (certain.isnan() and by_index[0] == -INF)


@pytest.mark.parametrize("lam", [1e-300, 1e-45, 1e39, 1e300])
@pytest.mark.parametrize("divergence", ["kl", "euclidean"])
def test_lam_beyond_what_the_dtype_can_tell_from_an_end(lam, divergence):
    f, y = torch.randn(6, 4) * 3, torch.randint(4, (6,))
    end = LDRKLLoss(0.0 if lam < 1 else INF, 0.1)
    for x in (f, f.bfloat16()):
        x = x.requires_grad_()
        out = LDRLoss(lam, 0.1, divergence)(x, y)
        torch.testing.assert_close(out, end(x, y))
        a, b = (torch.autograd.grad(v, x)[0] for v in (out, end(x, y)))
        torch.testing.assert_close(a, b)
    assert torch.isfinite(LDRLoss(lam, 0.1, divergence)(f.double(), y))
    # Half precision is computed in float32: what float16 cannot hold is not beyond it.
    assert euclidean(1e-5)(f.half(), y) == euclidean(1e-5)(f.half().float(), y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [lambda: euclidean(0.3, 0.1), lambda: capped(3, 0.1), lambda: WestonWatkinsLoss(0.1)],
    ids=["euclidean", "topk", "WW"],
)
def test_half_precision_is_the_loss_of_the_rounded_logits(make, dtype):
    f = (torch.randn(20, 300) * 4).to(dtype).requires_grad_()
    wide = f.detach().double().requires_grad_()
    y = torch.randint(300, (20,))
    loss = make()
    loss.reduction = "none"
    out, true = loss(f, y), loss(wide, y)
    assert out.dtype is F32
    torch.testing.assert_close(out.double(), true, rtol=1e-6, atol=1e-6)
    a, b = (torch.autograd.grad(v.sum(), x)[0] for v, x in ((out, f), (true, wide)))
    assert a.dtype is dtype
    torch.testing.assert_close(a.double(), b, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("lam", [3e-5, 0.05, 0.98, 1.02, 10.0])
def test_thousands_of_classes_in_single_precision(lam):
    # A bulk far below the top, next to where the support begins: a running sum in single precision
    # would put a tenth of the probability in the wrong place.
    f = torch.randn(3, 20000, dtype=F64) * 0.01
    f[:, 7] = 20000.0
    f[2] = torch.randn(20000, dtype=F64) * 3
    f = f.float()
    y = torch.tensor([7, 3, 5])
    found = []
    for x in (f, f.double()):
        x = x.requires_grad_()
        out = euclidean(lam, 0.1, reduction="none")(x, y)
        found.append((out.detach().double(), torch.autograd.grad(out.sum(), x)[0].double()))
    (a, g), (b, h) = found
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert (g - h).abs().sum(1).max() < 1e-3
    assert (g.sum(1).abs() < 1e-5).all()


def hard_rows():
    """Rows on which Newton's steps are many: logits at distances of a geometric sequence."""
    generator = torch.Generator().manual_seed(0)
    for size in (2, 10, 100, 3000):
        w = torch.rand(20, size, dtype=F64, generator=generator)
        base = 1.0 + 3.0 * torch.rand(20, 1, dtype=F64, generator=generator)
        yield -(base ** (-60.0 * w)) * 2.0
        yield -w
        yield torch.randn(20, size, dtype=F64, generator=generator)


@pytest.mark.parametrize("width", [1e-12, 0.3, 1.0, 50.0])
def test_the_steps_to_the_support_are_enough_where_they_are_counted_beforehand(width):
    for w in hard_rows():
        for x in (w, w.float()):
            until_still = ldr._support(x, width)
            with mock.patch.object(ldr, "readable", return_value=False):
                counted = ldr._support(x, width)
            assert torch.equal(until_still, counted)
            with mock.patch.object(ldr, "_CACHED", 19 * w.shape[1]):  # 20 rows, 19 at a time
                assert torch.equal(until_still, ldr._support(x.view(4, 5, -1), width).view(x.shape))
        # By sorting: the j largest are in as long as they are less than width below each other.
        u = w.sort(1, descending=True).values
        steps = (u[:, :-1] - u[:, 1:]) * torch.arange(1, w.shape[1])
        size = 1 + (steps.cumsum(1) < width).sum(1)
        assert torch.equal(ldr._support(w, width).sum(1), size)


# Ties, absent rows, layouts.


@given(ties, moderate, margins)
def test_ties_are_shared_alike(row, lam, margin):
    f, y = row
    r = gradient(euclidean(lam, margin), f, y)
    for i in range(len(f)):
        for j in range(len(f)):
            if y not in (i, j) and f[i] == f[j]:
                assert r[i] == r[j]


@pytest.mark.parametrize("margin", [0.0, 0.5, torch.rand(4), margin_of("matrix", 4)])
@pytest.mark.parametrize(
    "make",
    [lambda c: euclidean(0.5, c), lambda c: capped(2, c), CrammerSingerLoss, WestonWatkinsLoss],
    ids=["euclidean", "topk", "CS", "WW"],
)
def test_absent_rows_reach_neither_value_nor_gradient(make, margin):
    f, y = torch.randn(7, 4, dtype=F64), torch.tensor([0, -100, 1, -100, 3, -100, -100])
    f[1], f[3, 2], f[5, 1] = math.nan, INF, -INF
    f[6] = -INF
    f.requires_grad_()
    loss = make(margin)
    kept = [0, 2, 4]
    out = loss(f, y)
    close(out.detach(), loss(f[kept], y[kept]).detach())
    (g,) = torch.autograd.grad(out, f, create_graph=True)
    assert (g[[1, 3, 5, 6]] == 0).all()
    assert g.isfinite().all()
    if g.requires_grad:
        (h,) = torch.autograd.grad(g[kept].square().sum(), f, allow_unused=True)
        assert h is None or (h.isfinite().all() and (h[[1, 3, 5, 6]] == 0).all())
    assert loss.per_sample(f, y.clamp(min=-1)).isfinite().all()


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize(
    "make",
    [lambda c: euclidean(0.5, c), lambda c: capped(2, c), CrammerSingerLoss, WestonWatkinsLoss],
    ids=["euclidean", "topk", "CS", "WW"],
)
def test_a_nan_is_not_hidden(make, margin):
    for at in range(3):
        f = torch.zeros(1, 4)
        f[0, at] = math.nan
        assert make(margin)(f, torch.tensor([1])).isnan()


@pytest.mark.parametrize("shape", ["zero", "number", "vector", "matrix"])
@pytest.mark.parametrize(
    "make",
    [
        *(lambda c, lam=lam: euclidean(lam, c) for lam in (0.0, 0.05, 0.5, 100.0, INF)),
        *(lambda c, k=k: capped(k, c) for k in (1, 2, 4, 5)),
        WestonWatkinsLoss,
        lambda c: WestonWatkinsLoss(c, "mean"),
    ],
)
def test_every_class_at_once_is_the_loop_over_classes(make, shape):
    margin = 0.0 if shape == "zero" else margin_of(shape, 5)
    loss = make(margin)
    f = torch.randn(6, 5, dtype=F64, requires_grad=True)
    every = loss.per_sample(f, None)
    loop = torch.stack([loss.per_sample(f, torch.full((6,), k)) for k in range(5)], 1)
    close(every.detach(), loop.detach(), atol=1e-13)
    mass = torch.rand(6, 5, dtype=F64)
    a, b = (torch.autograd.grad((mass * x).sum(), f)[0] for x in (every, loop))
    close(a, b, atol=1e-13)


@pytest.mark.parametrize("shape", ["zero", "number", "vector", "matrix"])
@pytest.mark.parametrize(
    "make", [lambda c, **o: euclidean(0.5, c, **o), lambda c, **o: capped(2, c, **o),
             CrammerSingerLoss, WestonWatkinsLoss]
)  # fmt: skip
@pytest.mark.parametrize("soft", [False, True], ids=["index", "probabilities"])
def test_layouts(make, shape, soft):
    margin = 0.0 if shape == "zero" else margin_of(shape, 3)
    f, target = torch.randn(2, 3, 4, 5, dtype=F64), torch.randint(3, (2, 4, 5))
    if soft:
        target = torch.softmax(torch.randn(2, 3, 4, 5, dtype=F64), 1)
    out = make(margin, reduction="none")(f, target)
    assert out.shape == (2, 4, 5)
    last = target.movedim(1, -1) if soft else target
    moved = make(margin, reduction="none", class_dim=-1)(f.movedim(1, -1), last)
    close(moved, out)
    flat = (last.reshape(-1, 3) if soft else last.reshape(-1)).contiguous()
    alone = make(margin, reduction="none")(f.movedim(1, -1).reshape(-1, 3), flat)
    close(alone.view(2, 4, 5), out)
    single = make(margin)(f[0, :, 1, 2], target[0, :, 1, 2] if soft else target[0, 1, 2])
    close(single, out[0, 1, 2])


def test_gradient_flows_to_a_margin_that_is_learnt():
    f, y = torch.randn(9, 4, dtype=F64), torch.randint(4, (9,))
    for margin in (torch.rand(4, dtype=F64), margin_of("matrix", 4)):
        for make in (lambda c: euclidean(0.5, c), lambda c: capped(2, c), WestonWatkinsLoss):
            loss = make(margin)
            loss.margin.requires_grad_()
            assert torch.autograd.gradcheck(
                lambda c, loss=loss: torch.func.functional_call(loss, {"margin": c}, (f, y)),
                (margin.clone().requires_grad_(),),
            )


# Cost.


def peak_bytes(run):
    """The most that torch's allocator holds during a run beyond what it held before."""
    run()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(sizes))


@pytest.mark.parametrize(
    ("make", "logits"),
    [
        (CrammerSingerLoss, 1.0),
        (WestonWatkinsLoss, 2.0),
        (lambda: capped(5, 0.1), 4.5),
        (lambda: euclidean(1.0, 0.1), 5.0),
        (lambda: LDRKLLoss(normalize="softplus"), 5.0),
        (lambda: LDRKLLoss(normalize="l1"), 4.0),
    ],
    ids=["CS", "WW", "topk", "euclidean", "softplus", "l1"],
)
def test_peak_memory(make, logits):
    f, y = torch.randn(256, 8000), torch.randint(8000, (256,))
    loss = make()

    def run():
        x = f.detach().requires_grad_()
        loss(x, y).backward()

    # Masks of a byte a logit, and the tiles of the losses that work in tiles.
    assert peak_bytes(run) <= (logits + 0.3) * f.nbytes
