"""The H-consistency functions: against mpmath, against the losses, and their inequalities."""

import inspect
import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from lossary import (
    CompSumLoss,
    comp_sum_conditional_minimum,
    comp_sum_gamma,
    comp_sum_transform,
    logistic_regret_bound,
    theory,
)
from single_rows import close, least_risk
from test_meta import SECTIONS

NAN, INF = math.nan, math.inf
F32, F64 = torch.float32, torch.float64

NEAR_ONE = [1.0 + sign * 10.0**-k for k in (3, 5, 8, 10, 12, 15) for sign in (1, -1)]
NEAR_TWO = [2.0 - 1e-4, 2.0 - 1e-8, 2.0 - 1e-12, 2.0 - 2.0**-52, 2.0 + 2.0**-51, 2.0 + 1e-9]
PLAIN = [0.0, 0.3, 0.5, 0.9, 1.0, 1.1, 4 / 3, 1.5, 1.9, 1.99, 2.0, 2.5, 3.0]
TAUS = [*PLAIN, 1e-20, 1e-5, *NEAR_ONE, *NEAR_TWO, 10.0, 50.0]
BETAS = [
    *(10.0**-k for k in (140, 100, 50, 20, 12, 9, 7, 5, 3, 2, 1)),
    *(0.2, 0.3, 0.45, 0.4999, 0.5, 0.5001, 0.6, 0.7, 0.9, 0.99),
    *(1 - 1e-5, 1 - 1e-10, 1 - 2.0**-53, 1.0),
]

taus = st.one_of(st.sampled_from(PLAIN), st.sampled_from(TAUS), st.floats(0.0, 3.0))
betas = st.one_of(st.floats(0.0, 1.0), st.sampled_from(BETAS))
classes = st.integers(2, 10)


def f64(x):
    return torch.as_tensor(x, dtype=F64)


# The formulas of the reference, with digits enough for any cancellation.


def exact_transform(b, tau, n):
    with mpmath.workdps(700 if b < 1e-30 else 250):
        b, tau, n = mpf(b), mpf(tau), mpf(n)
        if tau >= 2:
            return b / ((tau - 1) * n ** (tau - 1))
        if tau == 1:
            rest = (1 - b) * mpmath.log(1 - b) if b < 1 else 0
            return ((1 + b) * mpmath.log(1 + b) + rest) / 2
        s = 1 / (2 - tau)
        mean = (((1 + b) ** s + (1 - b) ** s) / 2) ** (2 - tau)
        if tau < 1:
            return 2 ** (1 - tau) / (1 - tau) * (1 - mean)
        return (mean - 1) / ((tau - 1) * n ** (tau - 1))


def exact_minimum(q, tau):
    """C*(q), homogeneous: what the rounded sum of q misses of 1 cannot be ignored near tau = 1."""
    with mpmath.workdps(250):
        tau = mpf(tau)
        total = mpmath.fsum(mpf(x) for x in q)
        p = [mpf(x) / total for x in q if x > 0]
        if tau == 1:
            return -total * mpmath.fsum(x * mpmath.log(x) for x in p)
        if tau >= 2:
            return total * (1 - max(p)) / (tau - 1)
        mean = mpmath.fsum(x ** (1 / (2 - tau)) for x in p) ** (2 - tau)
        return total * (mean - 1) / (1 - tau)


def phi(u, tau):
    """The loss of odds u against the target."""
    return math.log1p(u) if tau == 1 else math.expm1((1 - tau) * math.log1p(u)) / (1 - tau)


def relative(found, true):
    return float(abs(mpf(found) - true) / true)


# The transform.


@pytest.mark.parametrize("tau", TAUS)
def test_transform_keeps_its_digits(tau):
    for dtype, rtol, tiny in ((F64, 1e-14, 1e-300), (F32, 2e-6, 1.2e-38)):
        b = torch.tensor(BETAS, dtype=dtype)
        for n in (2, 1000):
            found = comp_sum_transform(b, tau, n)
            assert found.dtype is dtype
            for x, t in zip(b.tolist(), found.tolist(), strict=True):
                true = exact_transform(x, tau, n)
                if true > tiny:
                    assert relative(t, true) < rtol, (dtype, x, n)


@pytest.mark.parametrize("n", [2, 7])
@pytest.mark.parametrize("tau", TAUS)
def test_transform_starts_at_0_rises_and_stays_convex(tau, n):
    b = f64([0.0, *(x for x in BETAS if x != 1 - 2.0**-53)])  # half a spacing of T away from 1
    t = comp_sum_transform(b, tau, n)
    assert t[0] == 0.0
    assert bool((t[1:] >= t[:-1]).all())
    assert bool((t[2:] > t[1:-1])[t[2:] > 1e-250].all())
    if tau < 2:
        slopes = (t[1:] - t[:-1]) / (b[1:] - b[:-1])
        assert bool((slopes[1:] >= slopes[:-1] * (1 - 1e-5)).all())


@given(betas, betas, st.floats(0.0, 1.0), taus, classes)
def test_transform_is_convex(a, b, share, tau, n):
    ends = share * comp_sum_transform(a, tau, n) + (1 - share) * comp_sum_transform(b, tau, n)
    middle = share * a + (1 - share) * b
    assert comp_sum_transform(min(middle, 1.0), tau, n) <= ends * (1 + 1e-12) + 1e-300


def test_transform_at_tau_0_and_1_and_beyond_2():
    b = torch.linspace(0.05, 1.0, 50, dtype=F64)
    for n in (2, 10):
        close(comp_sum_transform(b, 0.0, n), 1 - torch.sqrt(1 - b * b), rtol=1e-12)
        entropy = (torch.xlogy(1 + b, 1 + b) + torch.xlogy(1 - b, 1 - b)) / 2
        close(comp_sum_transform(b, 1.0, n), entropy, rtol=1e-11)
        close(comp_sum_transform(b, 2.0, n), b / n)
        close(comp_sum_transform(b, 3.5, n), b / (2.5 * n**2.5))
    close(comp_sum_transform(b, 1.5, 9), (torch.sqrt(1 + b * b) - 1) / 1.5, rtol=1e-11)


@pytest.mark.parametrize("tau", TAUS)
def test_transform_at_1_is_the_loss_at_a_tie_of_two(tau):
    full = comp_sum_transform(1.0, tau, 2)
    if tau <= 1:
        close(full, phi(1, tau))
    elif tau <= 2:
        close(full, phi(1, tau), rtol=1e-9)  # 2^(tau-1) of n^(tau-1) is that of the tie
    else:
        assert full < phi(1, tau)


@given(betas, classes)
def test_transform_is_continuous_in_tau(b, n):
    for at in (1.0, 2.0):
        there = comp_sum_transform(b, at, n)
        for step, rtol in ((1e-3, 6e-3), (1e-6, 6e-6), (1e-9, 6e-9), (1e-13, 1e-12)):
            for tau in (at - step, at + step):
                found = comp_sum_transform(b, tau, n)
                if at == 1.0:
                    close(found, there, rtol=rtol, atol=1e-300)
                elif tau > 2 or b > 0.01:  # for b << 2 - tau it is b^2, not b
                    close(found, there, rtol=rtol, atol=step)


@given(betas, taus, classes)
def test_lower_bounds_of_the_transform(b, tau, n):
    t = comp_sum_transform(b, tau, n)
    if tau < 1:
        assert t >= b**2 / (2**tau * (2 - tau)) * (1 - 1e-14)
    elif tau < 2:
        assert t >= b**2 / (2 * n ** (tau - 1)) * (1 - 1e-14)


@given(st.floats(0.0, 1.0), taus, classes)
def test_upper_bounds_of_gamma(t, tau, n):
    g = comp_sum_gamma(t, tau, n)
    if tau < 1:
        assert g <= math.sqrt(2**tau * (2 - tau) * t) * (1 + 1e-14)
    elif tau < 2:
        assert g <= math.sqrt(2 * n ** (tau - 1) * t) * (1 + 1e-14)
    else:
        close(g, min((tau - 1) * n ** (tau - 1) * t, 1.0))


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("tau", [1.1, 1.3, 4 / 3, 1.34, 1.4, 1.5, 1.6, 1.9, 1.999])
def test_the_expansion_at_0_is_a_lower_bound_only_up_to_four_thirds(tau, n):
    b = torch.linspace(0.01, 1.0, 1000, dtype=F64)
    expansion = b.square() / (2 * (2 - tau) * n ** (tau - 1))
    # The next term is b^4 times (tau - 1)/24 (3 - 2 s) (s + 1), s = 1/(2 - tau).
    below = comp_sum_transform(b, tau, n) < expansion * (1 - 1e-9)
    assert bool(below.any()) is (tau > 1.3334)
    tiny = 1e-6 * (2 - tau)
    close(comp_sum_transform(tiny, tau, n) / tiny**2 * (2 * (2 - tau)) * n ** (tau - 1), 1.0, 1e-9)


# Its inverse.


@pytest.mark.parametrize("n", [2, 50])
@pytest.mark.parametrize("tau", TAUS)
def test_gamma_inverts_the_transform_at_every_size(tau, n):
    for dtype, rtol, tiny in ((F64, 1e-14, 1e-290), (F32, 2e-6, 1e-36)):
        b = torch.tensor(BETAS, dtype=dtype)
        t = comp_sum_transform(b, tau, n)
        kept = t > tiny
        back = comp_sum_gamma(t, tau, n)
        assert back.dtype is dtype
        torch.testing.assert_close(back[kept], b[kept], rtol=rtol, atol=0.0)
        again = comp_sum_transform(back, tau, n)
        torch.testing.assert_close(again[kept], t[kept], rtol=rtol, atol=0.0)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1 + 1e-10, 1.5, 1.99])
def test_gamma_is_the_least_number_that_reaches_t(tau, dtype):
    t = torch.logspace(-25, 0, 200, dtype=dtype) * comp_sum_transform(1.0, tau, 3).to(dtype)
    g = comp_sum_gamma(t, tau, 3)
    below = torch.nextafter(g, torch.zeros_like(g))
    assert bool((comp_sum_transform(g, tau, 3) >= t)[:-1].all())
    assert bool((comp_sum_transform(below, tau, 3) < t).all())


@given(st.floats(0.0, 1.0), taus, classes)
def test_transform_inverts_gamma(share, tau, n):
    t = share * comp_sum_transform(1.0, tau, n)
    close(comp_sum_transform(comp_sum_gamma(t, tau, n), tau, n), t, rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("n", [2, 50, 10**9])
@pytest.mark.parametrize("tau", TAUS)
def test_gamma_is_0_at_0_and_clipped_at_1(tau, n):
    for dtype in (F64, F32):
        full = comp_sum_transform(torch.tensor(1.0, dtype=dtype), tau, n).item()
        t = torch.tensor([0.0, full, full * 1.001 + 1e-30, 1e3, 1e30, INF], dtype=dtype)
        g = comp_sum_gamma(t, tau, n).tolist()
        assert g[0] == 0.0
        assert g[1] == pytest.approx(1.0, rel=1e-6 if dtype is F32 else 1e-14) or full == 0.0
        assert g[2:] == [1.0] * 4


@given(st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.floats(0.0, 1.0), taus, classes)
def test_gamma_is_increasing_and_concave(s, t, share, tau, n):
    low, high = sorted((s, t))
    middle = comp_sum_gamma(share * low + (1 - share) * high, tau, n)
    ends = comp_sum_gamma(f64([low, high]), tau, n)
    assert ends[0] <= ends[1]
    assert middle >= (share * ends[0] + (1 - share) * ends[1]) * (1 - 1e-12)
    assert 0.0 <= middle <= 1.0


def test_gamma_at_tau_0_and_1():
    t = torch.linspace(0.0, 1.0, 50, dtype=F64)
    close(comp_sum_gamma(t, 0.0, 3), torch.sqrt(t * (2 - t)), rtol=1e-7)  # infinite slope at 1
    close(comp_sum_gamma(t[:40], 0.0, 3), torch.sqrt(t * (2 - t))[:40])
    assert bool((comp_sum_gamma(t, 1.0, 3) <= torch.sqrt(2 * t)).all())
    assert comp_sum_gamma(math.log(2) - 1e-9, 1.0, 3) < 1.0
    assert comp_sum_gamma(math.log(2) + 1e-9, 1.0, 3) == 1.0


# The conditional minimum.


@st.composite
def distributions(draw, most=10):
    """Class probabilities: spread out, tied, one-hot or nearly so, with zeros."""
    size = draw(st.integers(2, most))
    shape = draw(st.sampled_from(("counts", "scales", "one-hot", "uniform")))
    if shape == "uniform":
        return f64([1.0 / size] * size)
    if shape == "one-hot":
        small = draw(st.sampled_from((0.0, 1e-300, 1e-12, 1e-3)))
        return f64([1.0 - small, small, *[0.0] * (size - 2)])
    if shape == "counts":
        counts = st.lists(st.integers(0, 9), min_size=size, max_size=size).filter(any)
        q = f64(draw(counts))
    else:
        q = torch.softmax(f64(draw(logits(size))), 0)
    return q / q.sum()


def logits(size):
    """Ordinary ones, extreme ones, and ties."""
    number = st.one_of(
        st.floats(-5.0, 5.0),
        st.sampled_from((0.0, 1.0, -1e-3, 30.0, -30.0)),
        st.floats(-300.0, 300.0),
    )
    return st.lists(number, min_size=size, max_size=size)


@given(distributions(), taus)
def test_conditional_minimum_keeps_its_digits(q, tau):
    true = exact_minimum(q.tolist(), tau)
    found = comp_sum_conditional_minimum(q, tau)
    assert found.shape == ()
    if true > 1e-280:
        assert relative(found.item(), true) < 1e-13
    else:
        assert found < 1e-279
    single = q.float()
    true = exact_minimum(single.tolist(), tau)
    found = comp_sum_conditional_minimum(single, tau)
    assert found.dtype is F32
    assert true < 1e-36 or relative(found.item(), true) < 3e-6


@pytest.mark.parametrize("tau", TAUS)
def test_conditional_minimum_at_the_ends(tau):
    one_hot = torch.eye(4, dtype=F64)
    assert comp_sum_conditional_minimum(one_hot, tau).tolist() == [0.0] * 4
    for k in (2, 5, 1000):
        found = comp_sum_conditional_minimum(torch.full((k,), 1.0 / k, dtype=F64), tau)
        # A tie of all is a minimiser up to tau = 2; beyond, one class on top is.
        close(found, phi(k - 1, tau) if tau <= 2 else (1 - 1 / k) / (tau - 1), rtol=1e-12)


def test_conditional_minimum_named_members():
    q = torch.softmax(torch.randn(20, 6, dtype=F64), 1)
    close(comp_sum_conditional_minimum(q, 0.0), q.sqrt().sum(1).square() - 1)
    close(comp_sum_conditional_minimum(q, 1.0), torch.special.entr(q).sum(1))
    close(comp_sum_conditional_minimum(q, 2.0), 1 - q.amax(1))
    close(comp_sum_conditional_minimum(q, 3.0), (1 - q.amax(1)) / 2)


@given(distributions(), st.sampled_from((1.0, 2.0)))
def test_conditional_minimum_is_continuous_in_tau(q, at):
    there = comp_sum_conditional_minimum(q, at)
    for step in (1e-4, 1e-8, 1e-12):
        for tau in (at - step, at + step):
            # Towards 2 the minimiser turns into the vertex as 1/(2 - tau) grows.
            slack = 20 * step * (1 + there.item()) ** 2
            assert abs(comp_sum_conditional_minimum(q, tau) - there) <= slack


@given(distributions(most=4), st.sampled_from((0.0, 0.5, 1.0, 1.3, 1.6)))
def test_conditional_minimum_is_what_minimising_the_loss_finds(q, tau):
    q = (q + 0.05) / (q + 0.05).sum()
    found = least_risk(CompSumLoss(tau, reduction="none"), q)
    assert found.fun == pytest.approx(comp_sum_conditional_minimum(q, tau).item(), rel=1e-9)


@pytest.mark.parametrize("tau", [2.0, 2.5, 4.0])
def test_conditional_minimum_from_tau_2_on_is_approached_at_a_vertex(tau):
    q = f64([0.2, 0.45, 0.35])
    found = least_risk(CompSumLoss(tau, reduction="none"), q, gtol=1e-8)
    assert found.fun == pytest.approx(comp_sum_conditional_minimum(q, tau).item(), abs=1e-6)


@given(distributions(), distributions(), st.floats(0.0, 1.0), taus)
def test_conditional_minimum_is_concave(p, q, share, tau):
    size = max(len(p), len(q))
    p, q = (torch.nn.functional.pad(x, (0, size - len(x))) for x in (p, q))
    ends = comp_sum_conditional_minimum(torch.stack((p, q)), tau)
    middle = comp_sum_conditional_minimum(share * p + (1 - share) * q, tau)
    assert middle >= (share * ends[0] + (1 - share) * ends[1]) * (1 - 1e-12) - 1e-300


def test_conditional_minimum_of_probabilities_that_miss_1_is_still_the_infimum_for_them():
    q = f64([0.5, 0.3, 0.19])
    for tau in (0.0, 0.9999, 1.0, 1.5, 2.0, 3.0):
        found = comp_sum_conditional_minimum(q, tau)
        close(found, 0.99 * comp_sum_conditional_minimum(q / 0.99, tau))
        if tau < 2:
            f = q.log() / (2 - tau)
            close(found, risks(f.unsqueeze(0), tau)[0] @ q, rtol=1e-11)


# The inequality.


def risks(f, tau):
    """The loss of every row of logits for every class."""
    return CompSumLoss(tau).per_sample(f, None)


def surrogate_regret(f, q, tau):
    """Return the regrets of rows, and what rounding may have taken from them."""
    terms = torch.where(q > 0, q * risks(f, tau), 0.0)
    least = comp_sum_conditional_minimum(q, tau)
    return terms.sum(-1) - least, 1e-13 * (terms.sum(-1) + least)


def zero_one_regret(f, q):
    """Of the tied top classes the prediction is the worst one."""
    top = f == f.amax(-1, keepdim=True)
    return q.amax(-1) - torch.where(top, q, INF).amin(-1)


@st.composite
def predictions(draw):
    """Class probabilities and logits: any, and those near the worst case."""
    q = draw(distributions())
    f = f64(draw(logits(len(q))))
    how = draw(st.sampled_from(("any", "tied", "near the minimiser")))
    if how == "near the minimiser":
        f = q.clamp(min=1e-9).log() * draw(st.floats(0.5, 4.0))
    if how != "any":
        a, b = draw(st.integers(0, len(q) - 1)), draw(st.integers(0, len(q) - 1))
        f[[a, b]] = f.max() + draw(st.sampled_from((0.0, 1e-9, 1.0)))
    return f, q


@given(predictions(), taus)
def test_the_zero_one_regret_bounds_the_surrogate_regret_from_below(prediction, tau):
    f, q = prediction
    regret, rounding = surrogate_regret(f, q, tau)
    beta = zero_one_regret(f, q)
    assert comp_sum_transform(beta, tau, len(q)) <= regret + rounding
    slack = regret.clamp(min=0.0) + rounding
    assert beta <= comp_sum_gamma(slack, tau, len(q)) * (1 + 1e-12)


@given(st.lists(st.integers(0, 2**31), min_size=2, max_size=6), taus, classes)
def test_the_inequality_holds_for_averages(seeds, tau, n):
    generator = torch.Generator().manual_seed(seeds[0])
    q = torch.rand(len(seeds), n, dtype=F64, generator=generator).log().mul(-3.0).exp()
    q = q / q.sum(1, keepdim=True)
    f = torch.randn(len(seeds), n, dtype=F64, generator=generator) + q.log()
    regret, rounding = (x.mean() for x in surrogate_regret(f, q, tau))
    beta = zero_one_regret(f, q).mean()
    assert comp_sum_transform(beta, tau, n) <= regret + rounding
    assert beta <= comp_sum_gamma(regret + rounding, tau, n)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.2, 1.7, 2.0, 2.5])
def test_the_theorem_with_minimizability_gaps_of_a_restricted_set(tau):
    # The hypotheses give every input the same logits: the best of them know the mean of q alone.
    generator = torch.Generator().manual_seed(3)
    for n in (2, 3, 6):
        q = torch.rand(5, n, dtype=F64, generator=generator).pow(4)
        q = q / q.sum(1, keepdim=True)
        least = comp_sum_conditional_minimum(q, tau).mean()
        best = comp_sum_conditional_minimum(q.mean(0), tau)
        gap = best - least
        assert gap > 1e-3
        # The best of the constant predictions errs in 1 - max mean q; pointwise 1 - mean max q.
        gap01 = q.amax(1).mean() - q.mean(0).max()
        f = 2 * torch.randn(100, n, dtype=F64, generator=generator)
        risk = risks(f, tau) @ q.mean(0)
        error = 1 - q.mean(0)[f.argmax(1)]
        best_error = 1 - q.mean(0).max()
        bound = comp_sum_gamma(risk - best + gap, tau, n)
        assert bool((error - best_error + gap01 <= bound).all())


TIES = torch.linspace(0.01, 1.0, 12, dtype=F64)


def at_the_worst_case(tau, n):
    """Two classes (1 +- b)/2 with tied logits, the others neither likely nor predicted."""
    q = torch.zeros(len(TIES), n, dtype=F64)
    q[:, 0], q[:, -1] = (1 - TIES) / 2, (1 + TIES) / 2
    f = torch.full((len(TIES), n), -800.0, dtype=F64)
    f[:, [0, -1]] = 0.0
    close(zero_one_regret(f, q), TIES, rtol=1e-12)
    return surrogate_regret(f, q, tau)[0]


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("tau", [0.0, 0.3, 0.9, 1 - 1e-9, 1.0])
def test_the_transform_is_tight_up_to_tau_1(tau, n):
    close(at_the_worst_case(tau, n), comp_sum_transform(TIES, tau, n), rtol=1e-10)


@pytest.mark.parametrize("tau", [1 + 1e-9, 1.2, 1.5, 1.9, 1.999, 2.0])
def test_the_transform_is_tight_for_two_classes_up_to_tau_2(tau):
    close(at_the_worst_case(tau, 2), comp_sum_transform(TIES, tau, 2), rtol=1e-10)


@pytest.mark.parametrize("tau", [2.1, 2.5, 3.0, 5.0])
def test_the_transform_is_loose_beyond_tau_2(tau):
    # With two classes, over all logits that are wrong or tied.
    gaps = torch.linspace(0.0, 60.0, 2001, dtype=F64)
    f = torch.stack((gaps, torch.zeros_like(gaps)), 1)
    for b in (0.1, 0.5, 1.0):
        q = f64([(1 - b) / 2, (1 + b) / 2]).expand(len(gaps), 2)
        least = surrogate_regret(f, q, tau)[0].min()
        assert least > 1.05 * comp_sum_transform(b, tau, 2)


@given(st.integers(2, 10), st.floats(0.0, 3.0), taus, st.data())
def test_deterministic_labels_and_bounded_logits(n, limit, tau, data):
    # The least loss in the box is the gap: then the bound speaks of the loss itself.
    box = st.lists(st.floats(-limit, limit), min_size=n, max_size=n)
    f = f64(data.draw(st.lists(box, min_size=4, max_size=4)))
    one_hot = torch.eye(n, dtype=F64)[0].expand(4, n)
    loss = risks(f, tau)[:, 0]
    gap = phi((n - 1) * math.exp(-2 * limit), tau)
    assert bool((loss >= gap * (1 - 1e-12)).all())
    error = zero_one_regret(f, one_hot)
    assert set(error.tolist()) <= {0.0, 1.0}
    assert bool((loss >= comp_sum_transform(error, tau, n) * (1 - 1e-12)).all())
    assert error.mean() <= comp_sum_gamma((loss.mean() - gap).clamp(min=0.0) + gap, tau, n) + 1e-9


# Cross-entropy.


@given(predictions())
def test_logistic_chain_of_inequalities(prediction):
    f, q = prediction
    log_p = torch.log_softmax(f, 0)
    kl = (torch.xlogy(q, q) - q * log_p).sum().clamp(min=0.0) + 1e-13
    beta, distance = zero_one_regret(f, q), (q - log_p.exp()).abs().sum()
    assert beta <= distance * (1 + 1e-12) + 1e-12
    assert distance <= torch.sqrt(2 * kl) * (1 + 1e-12) + 1e-12
    close(logistic_regret_bound(kl), torch.sqrt(2 * kl).clamp(max=1.0))
    assert beta <= logistic_regret_bound(kl) + 1e-12
    # Sharper: which regret can go with this one, not with this square.
    assert comp_sum_transform(beta, 1.0, len(q)) <= kl
    assert beta <= comp_sum_gamma(kl, 1.0, len(q)) + 1e-12
    regret, rounding = surrogate_regret(f, q, 1.0)
    assert abs(regret - kl) <= rounding + 2e-13 * (1 + kl)


def test_logistic_bound():
    t = f64([0.0, 1e-300, 1e-20, 0.02, 0.125, 0.49, 0.5, 0.51, math.log(2), 3.0, INF])
    found = logistic_regret_bound(t)
    close(found[:6], torch.sqrt(2 * t[:6]))
    assert found[6:].tolist() == [1.0] * 5
    sharper = comp_sum_gamma(t, 1.0, 2)
    assert bool((sharper <= found * (1 + 1e-15)).all())
    assert bool((sharper < found)[3:8].all())
    close(sharper[1:3], found[1:3])


# Derivatives.


@pytest.mark.parametrize(
    "tau", [0.0, 0.5, 0.9999, 1 - 1e-10, 1.0, 1 + 1e-10, 1.3, 1.9, 1.99, 2.0, 3.0]
)
def test_derivatives(tau):
    b = f64([1e-3, 0.1, 0.3, 0.49, 0.51, 0.8, 0.97]).requires_grad_()
    scale = 5.0 ** (tau - 1) * max(tau - 1, 1)

    def transform(b):
        return scale * comp_sum_transform(b, tau, 5)

    assert gradcheck(transform, b)
    assert gradgradcheck(transform, b)
    x = f64([0.05, 0.3, 0.9]).requires_grad_()
    t = comp_sum_transform(x, tau, 5)
    (inverse,) = torch.autograd.grad(t.sum(), x)
    t = t.detach().requires_grad_()
    (slope,) = torch.autograd.grad(comp_sum_gamma(t, tau, 5).sum(), t)
    close(slope, 1 / inverse)
    if tau in (0.5, 1.3):
        settings = {"eps": 1e-8, "rtol": 1e-4, "atol": 1e-3}
        assert gradcheck(lambda t: comp_sum_gamma(t, tau, 5), t, **settings)
        assert gradgradcheck(lambda t: comp_sum_gamma(t, tau, 5), t, **settings)

    def minimum(x):
        return comp_sum_conditional_minimum(x / x.sum(-1, keepdim=True), tau)

    x = (torch.rand(4, 3, dtype=F64) + 0.1).requires_grad_()
    assert gradcheck(minimum, x)
    assert gradgradcheck(minimum, x)


@pytest.mark.parametrize("tau", [0.0, 0.7, 1 - 1e-12, 1.0, 1 + 1e-12, 1.4, 1.8, 2 - 1e-9])
def test_slope_of_the_transform_keeps_its_digits(tau):
    points = [1e-140, 1e-20, 1e-9, 1e-5, 0.01, 0.3, 0.5, 0.9, 1 - 1e-6, 1 - 1e-12]
    for dtype, used, rtol in ((F64, points, 1e-12), (F32, [1e-30, *points[1:8]], 1e-5)):
        b = torch.tensor(used, dtype=dtype, requires_grad=True)
        (found,) = torch.autograd.grad(comp_sum_transform(b, tau, 3).sum(), b)
        for x, slope in zip(b.tolist(), found.tolist(), strict=True):
            assert relative(slope, exact_slope(x, tau, 3)) < rtol, (dtype, x)


def exact_slope(b, tau, n):
    with mpmath.workdps(400):
        b, tau = mpf(b), mpf(tau)
        if tau == 1:
            return mpmath.atanh(b)
        s = 1 / (2 - tau)
        total = (1 + b) ** s + (1 - b) ** s
        change = (1 + b) ** (s - 1) - (1 - b) ** (s - 1)
        slope = (total / 2) ** (2 - tau) * change / total / (tau - 1)
        return slope * (2 if tau < 1 else mpf(n)) ** (1 - tau)


def test_slopes_at_the_ends_are_the_limits_and_never_nan():
    for tau in (0.0, 0.5, 1 - 1e-12, 1.0, 1 + 1e-12, 1.5, 1.9, 2.0, 3.0):
        b = f64([0.0, 1.0]).requires_grad_()
        (g,) = torch.autograd.grad(comp_sum_transform(b, tau, 4).sum(), b)
        constant = 1 / ((tau - 1) * 4 ** (tau - 1)) if tau > 1 else None
        assert g[0] == (constant if tau >= 2 else 0.0)
        if tau <= 1:
            assert g[1] == INF
        else:
            close(g[1], constant * (2 ** (tau - 2) if tau < 2 else 1))
        t = f64([0.0, 1e3, INF]).requires_grad_()
        (g,) = torch.autograd.grad(comp_sum_gamma(t, tau, 4).sum(), t)
        close(g[0], 1 / constant if tau >= 2 else INF)
        assert g[1:].tolist() == [0.0, 0.0]
    t = f64([0.0, 0.02, 0.7, INF]).requires_grad_()
    (g,) = torch.autograd.grad(logistic_regret_bound(t).sum(), t)
    assert g.tolist() == [INF, pytest.approx(5.0), 0.0, 0.0]


@given(distributions(), taus)
def test_slope_of_the_conditional_minimum_is_the_loss_at_the_minimiser(q, tau):
    q = q.clone().requires_grad_()
    least = comp_sum_conditional_minimum(q, tau)
    (g,) = torch.autograd.grad(least, q)
    assert not bool(g.isnan().any())
    assert bool((g >= 0).all())
    if tau < 2:
        assert bool((g[q == 0] == (1 / (tau - 1) if tau > 1 else INF)).all())
    # Homogeneous of degree 1, so by Euler's theorem:
    close(torch.where(q > 0, q * g, 0.0).sum(), least, rtol=1e-12, atol=1e-300)
    if tau < 1.9 and q.min() > 1e-30:
        close(g, risks((q.detach().log() / (2 - tau)).unsqueeze(0), tau)[0], rtol=1e-9, atol=1e-15)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's use of itself
def test_forward_mode_is_an_error_and_not_a_wrong_number():
    for fn in (
        lambda x: comp_sum_transform(x, 0.5, 3),
        lambda x: comp_sum_gamma(x, 0.5, 3),
        lambda x: comp_sum_conditional_minimum(torch.stack((x, 1 - x)), 0.5),
    ):
        with pytest.raises(NotImplementedError, match="jvp"):
            torch.func.jvp(fn, (f64(0.3),), (f64(1.0),))


# What goes in and comes out.

OF_NUMBERS = {
    "beta": lambda x, tau=1.5: comp_sum_transform(x, tau, 3),
    "t": lambda x, tau=1.5: comp_sum_gamma(x, tau, 3),
    "ce_regret": lambda x, tau=1.5: logistic_regret_bound(x),
}
every_function = pytest.mark.parametrize(("name", "fn"), OF_NUMBERS.items(), ids=OF_NUMBERS)
every_tau = pytest.mark.parametrize("tau", [0.5, 1.0, 1.5, 2.0, 3.0])


@every_function
@every_tau
def test_numbers_shapes_and_dtypes(name, fn, tau):
    x = torch.tensor([[0.0, 0.1, 0.25], [0.5, 0.75, 1.0]], dtype=F64)
    out = fn(x, tau)
    assert out.shape == x.shape
    assert out.dtype is F64
    for i, j in itertools.product(range(2), range(3)):
        number = fn(x[i, j].item(), tau)
        assert number.shape == ()
        assert number.dtype is F64
        assert number == out[i, j] == fn(x[i, j], tau)
    assert fn(0, tau) == 0.0
    assert torch.equal(fn(x.t(), tau), out.t())
    assert fn(x[:0], tau).shape == (0, 3)
    torch.testing.assert_close(fn(x.float(), tau), out.float(), rtol=1e-6, atol=0)
    for half in (torch.float16, torch.bfloat16):
        assert torch.equal(fn(x.to(half), tau), fn(x.to(half).float(), tau))
        assert fn(x.to(half), tau).dtype is F32


@every_tau
def test_conditional_minimum_shapes_and_dtypes(tau):
    q = torch.softmax(torch.randn(2, 3, 4, dtype=F64), -1)
    out = comp_sum_conditional_minimum(q, tau)
    assert out.shape == (2, 3)
    assert out.dtype is F64
    assert out[1, 2] == comp_sum_conditional_minimum(q[1, 2], tau)
    strided = q.movedim(-1, 0).contiguous().movedim(0, -1)
    torch.testing.assert_close(comp_sum_conditional_minimum(strided, tau), out)
    assert comp_sum_conditional_minimum(q[:0], tau).shape == (0, 3)
    for half in (torch.float16, torch.bfloat16):
        rounded = comp_sum_conditional_minimum(q.to(half), tau)
        assert torch.equal(rounded, comp_sum_conditional_minimum(q.to(half).float(), tau))
        assert rounded.dtype is F32


@pytest.mark.parametrize("tau", [0.5, 3.0])
def test_vmap_gradients_and_a_look_at_no_value(tau):
    b = torch.rand(4, 3, dtype=F64)
    q = torch.softmax(torch.randn(4, 3, dtype=F64), -1)
    for fn, x in [*((fn, b) for fn in OF_NUMBERS.values()), (comp_sum_conditional_minimum, q)]:
        torch.testing.assert_close(torch.vmap(lambda x, fn=fn: fn(x, tau))(x), fn(x, tau))
        slopes = torch.vmap(torch.func.grad(lambda x, fn=fn: fn(x, tau).sum()))(x)
        leaf = x.clone().requires_grad_()
        torch.testing.assert_close(slopes, torch.autograd.grad(fn(leaf, tau).sum(), leaf)[0])
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = mode.from_tensor(x).requires_grad_()
            torch.autograd.grad(fn(fake, tau).sum(), fake)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's use of itself
def test_compiles_as_one_graph():
    def every(b, q, tau):
        return torch.stack(
            (
                comp_sum_transform(b, tau, 3),
                logistic_regret_bound(b),
                comp_sum_conditional_minimum(q, tau),
            )
        )

    b = torch.rand(4, dtype=F64, requires_grad=True)
    q = torch.softmax(torch.randn(4, 3, dtype=F64), -1).requires_grad_()
    compiled = torch.compile(every, fullgraph=True, backend="aot_eager")
    outs = [fn(b, q, 1.5) for fn in (every, compiled)]
    grads = [torch.autograd.grad(out.sum(), (b, q)) for out in outs]
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(*grads)


# Mistakes.


@every_function
@pytest.mark.parametrize("value", [-0.125, NAN, -INF])
def test_numbers_out_of_range(name, fn, value):
    for x in (value, torch.tensor(value), torch.tensor([[0.1, value], [0.2, 0.3]])):
        with pytest.raises(ValueError, match=rf"^{name}: expected .*\[0, .*\], got {value:.7g}"):
            fn(x)


def test_beta_above_1():
    for x in (1.0000001, torch.tensor(1.0000001), torch.tensor([0.5, INF])):
        with pytest.raises(ValueError, match=r"^beta: expected .*\[0, 1\], got (1.0000001|inf)"):
            comp_sum_transform(x, 1.0, 2)


@every_function
@pytest.mark.parametrize("value", [True, "0.5", None, [0.5], 1j, np.zeros(2)])
def test_what_is_no_number(name, fn, value):
    expected = rf"^{name}: expected a number.*, got {type(value).__name__}"
    with pytest.raises(TypeError, match=expected):
        fn(value)


@every_function
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_tensors_of_no_real_numbers(name, fn, dtype):
    with pytest.raises(TypeError, match=rf"^{name}: expected .*floating-point tensor, got {dtype}"):
        fn(torch.ones(2, dtype=dtype))


OF_TAU = [
    lambda tau: comp_sum_transform(0.5, tau, 3),
    lambda tau: comp_sum_gamma(0.5, tau, 3),
    lambda tau: comp_sum_conditional_minimum(torch.tensor([0.5, 0.5]), tau),
]


@pytest.mark.parametrize("fn", OF_TAU)
def test_tau(fn):
    for value in (-1e-9, NAN, INF, -INF):
        with pytest.raises(ValueError, match=rf"^tau: expected .*\[0, inf\), got {value}"):
            fn(value)
    for value in (True, None, "1", torch.tensor(1.0)):
        with pytest.raises(
            TypeError, match=rf"^tau: expected a number, got {type(value).__name__}"
        ):
            fn(value)


@pytest.mark.parametrize("fn", [comp_sum_transform, comp_sum_gamma])
def test_num_classes(fn):
    for value in (1, 0, -3):
        with pytest.raises(ValueError, match=rf"^num_classes: expected at least 2, got {value}"):
            fn(0.5, 1.0, value)
    for value in (True, 3.0, None, "3", torch.tensor(3)):
        kind = type(value).__name__
        with pytest.raises(TypeError, match=rf"^num_classes: expected an int, got {kind}"):
            fn(0.5, 1.0, value)


BAD_PROBABILITIES = {
    "list": ([0.5, 0.5], TypeError, "expected a tensor, got list"),
    "int": (torch.tensor([1, 0]), TypeError, "expected floating point, got torch.int64"),
    "0_dim": (torch.tensor(1.0), ValueError, r"at least 2 classes, got shape \(\)"),
    "one_class": (torch.ones(3, 1), ValueError, r"at least 2 classes, got shape \(3, 1\)"),
    "sum": (torch.full((2, 3), 0.3), ValueError, r"sum 1 .*, got a row .* sum 0.9"),
    "above": (torch.tensor([[0.5, 0.5], [0.6, 0.6]]), ValueError, r"got a row .* sum 1.2"),
    "negative": (torch.tensor([1.5, -0.5]), ValueError, r"non-negative.*, got .* minimum -0.5"),
    "nan": (torch.tensor([NAN, 1.0]), ValueError, "non-negative.*, got .*nan"),
    "inf": (torch.tensor([INF, 0.0]), ValueError, "sum 1.*, got .*inf"),
}


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize(("q", "error", "says"), BAD_PROBABILITIES.values(), ids=BAD_PROBABILITIES)
def test_probabilities(q, error, says, tau):
    with pytest.raises(error, match=f"^q: .*{says}"):
        comp_sum_conditional_minimum(q, tau)


def test_rounded_probabilities_are_accepted():
    q = torch.softmax(torch.randn(9, 1000), -1)
    for dtype in (torch.bfloat16, torch.float16):
        for tau in (0.5, 1.0, 2.0):
            half = comp_sum_conditional_minimum(q.to(dtype), tau)
            torch.testing.assert_close(
                half, comp_sum_conditional_minimum(q, tau), rtol=2e-2, atol=0
            )


@pytest.mark.parametrize(
    "fn", [comp_sum_transform, comp_sum_gamma, comp_sum_conditional_minimum, logistic_regret_bound]
)
def test_docstrings_are_full_references(fn):
    doc = inspect.getdoc(fn)
    assert [s for s in (*SECTIONS, "Returns:") if s not in doc] == []
    arguments = doc.split("Args:")[1].split("Shape:")[0]
    assert all(name in arguments for name in inspect.signature(fn).parameters)
    assert getattr(theory, fn.__name__) is fn
