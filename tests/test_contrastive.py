"""InfoNCE and NT-Xent: the formulas written plainly, their gradients, limits and digits."""

import itertools
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group

from lossary import InfoNCELoss, NTXentLoss

F64 = torch.float64
temperatures = st.sampled_from([0.05, 0.3, 1.0, 5.0])
seeds = st.integers(0, 10**6)


def close(a, b, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=rtol, atol=atol
    )


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def plain(own, others, tau):
    """The loss of one anchor."""
    exponents = [math.exp((s - own) / tau) for s in [own, *others]]
    return math.log(sum(exponents))


def on_similarities(loss, s):
    """Call a loss on the matrix of similarities itself."""
    return loss(s, torch.eye(s.shape[1], dtype=s.dtype))


# The formulas.


@given(seeds, temperatures, st.integers(1, 5), st.integers(0, 3), st.booleans(), st.booleans())
def test_info_nce_is_what_the_formula_says(seed, tau, n, m, in_batch, shared):
    q, p = draw(2, n, 4, seed=seed)
    far = draw(m, 4, seed=seed + 1) if shared else draw(n, m, 4, seed=seed + 1)
    want = []
    for i in range(n):
        others = [cosine(q[i], p[k]) for k in range(n) if in_batch and k != i]
        others += [cosine(q[i], x) for x in (far if shared else far[i])]
        want.append(plain(cosine(q[i], p[i]), others, tau))
    loss = InfoNCELoss(tau, in_batch=in_batch, reduction="none")
    close(loss(q, p, far), want)
    if m == 0 and in_batch:
        close(loss(q, p), want)


@given(seeds, temperatures, st.integers(1, 5))
def test_symmetric_is_the_mean_of_both_directions(seed, tau, n):
    q, p = draw(2, n, 4, seed=seed)
    far = draw(2, 4, seed=seed + 1)
    loss = InfoNCELoss(tau, symmetric=True, reduction="none")
    one_way = InfoNCELoss(tau, reduction="none")
    close(loss(q, p), (one_way(q, p) + one_way(p, q)) / 2)
    # The negatives stand beside the positives, so only queries meet them.
    close(loss(q, p, far), (one_way(q, p, far) + one_way(p, q)) / 2)


def test_symmetric_is_clip():
    image, text = F.normalize(draw(2, 6, 4), dim=-1)
    logits = image @ text.T / 0.07
    labels = torch.arange(6)
    want = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    close(InfoNCELoss(symmetric=True)(image, text), want)


@given(seeds, temperatures, st.integers(1, 5))
def test_nt_xent_is_what_the_formula_says(seed, tau, n):
    z1, z2 = draw(2, n, 4, seed=seed)
    z = torch.cat((z1, z2))
    want = []
    for i in range(n):
        views = []
        for a, own in ((i, n + i), (n + i, i)):
            others = [cosine(z[a], z[b]) for b in range(2 * n) if b not in (a, own)]
            views.append(plain(cosine(z[a], z[own]), others, tau))
        want.append(sum(views) / 2)
    close(NTXentLoss(tau, reduction="none")(z1, z2), want)
    close(NTXentLoss(tau, reduction="none")(z2, z1), want)


def test_nt_xent_is_info_nce_with_the_other_rows_as_negatives():
    z1, z2 = draw(2, 4, 3)
    loss = InfoNCELoss(0.3, in_batch=False)
    rest = [[j for j in range(4) if j != i] for i in range(4)]
    negatives = torch.stack([torch.cat((z1[r], z2[r])) for r in rest])
    want = (loss(z1, z2, negatives) + loss(z2, z1, negatives)) / 2
    close(NTXentLoss(0.3)(z1, z2), want)


def test_without_negatives_nothing_is_to_be_told_apart():
    z = draw(1, 3).requires_grad_()
    for value in (InfoNCELoss()(z, z + 1), NTXentLoss()(z, z + 1)):
        assert value == 0.0
        (gradient,) = torch.autograd.grad(value, z)
        assert gradient.tolist() == [[0.0] * 3]


def test_no_negatives_given_as_an_empty_matrix():
    q, p = draw(2, 3, 4)
    close(InfoNCELoss(in_batch=False)(q, p, torch.empty(0, 4, dtype=F64)), 0.0)


# Gradients.


@given(seeds, temperatures)
def test_the_gradient_in_the_similarities(seed, tau):
    s = draw(4, 4, seed=seed).requires_grad_()
    value = on_similarities(InfoNCELoss(tau, normalize=False, reduction="sum"), s)
    (gradient,) = torch.autograd.grad(value, s)
    p = torch.softmax(s.detach() / tau, 1)
    want = (p - torch.eye(4, dtype=F64)) / tau
    close(gradient, want, atol=1e-13)
    rivals = ~torch.eye(4, dtype=torch.bool)
    close(gradient.diagonal(), -(p * rivals).sum(1) / tau, atol=1e-13)


@given(seeds, temperatures)
def test_relative_penalties_are_a_softmax_over_the_negatives(seed, tau):
    s = draw(3, 3, seed=seed)

    def penalties(own):
        at = s.clone().fill_diagonal_(own).requires_grad_()
        value = on_similarities(InfoNCELoss(tau, normalize=False, reduction="sum"), at)
        (g,) = torch.autograd.grad(value, at)
        return (g / g.diagonal().abs().unsqueeze(1)).fill_diagonal_(0.0)

    r = penalties(0.5)
    close(r.sum(1), torch.ones(3))
    close(r, penalties(-0.7), rtol=1e-8)
    close(r, torch.softmax((s / tau).fill_diagonal_(-math.inf), 1), rtol=1e-8)


def test_the_entropy_of_the_penalties_rises_with_the_temperature():
    s = draw(5, 5).fill_diagonal_(0.0)

    def entropy(tau):
        at = s.clone().requires_grad_()
        loss = InfoNCELoss(tau, normalize=False, reduction="sum")
        (g,) = torch.autograd.grad(on_similarities(loss, at), at)
        r = (g / g.diagonal().abs().unsqueeze(1)).fill_diagonal_(0.0)
        return float(torch.special.entr(r)[0].sum())

    seen = [entropy(tau) for tau in (0.05, 0.1, 0.3, 1.0, 3.0, 10.0)]
    assert all(b > a for a, b in itertools.pairwise(seen))
    assert seen[-1] < math.log(4)


@given(seeds, st.sampled_from([0.05, 0.3, 1.0]))
def test_the_slope_in_the_temperature(seed, tau):
    s = draw(4, 4, seed=seed)
    loss = InfoNCELoss(tau, normalize=False, learnable_temperature=True, reduction="sum").double()
    (slope,) = torch.autograd.grad(on_similarities(loss, s), loss.log_scale)
    p = torch.softmax(s / tau, 1)
    in_tau = -((p * s).sum(1) - s.diagonal()).sum() / tau**2
    close(slope, -tau * in_tau, rtol=1e-6)  # d/d log(1/tau) = -tau d/dtau; log(1/tau) is float32


def test_a_learnt_temperature_stays_above_a_hundredth_and_comes_back():
    q, p = draw(2, 4, 3)
    loss = InfoNCELoss(learnable_temperature=True).double()
    loss.log_scale.data.fill_(math.log(1e4))
    value = loss(q, p)
    close(value, InfoNCELoss(0.01)(q, p))
    value.backward()
    assert loss.log_scale.grad != 0.0
    loss.log_scale.data.fill_(math.log(50.0))
    close(loss(q, p), InfoNCELoss(0.02)(q, p))
    assert [name for name, _ in loss.named_parameters()] == ["log_scale"]
    start = InfoNCELoss(0.01, learnable_temperature=True).double()
    close(start(q, p), InfoNCELoss(0.01)(q, p), rtol=1e-5)


# Limits and bounds.


def test_a_small_temperature_is_the_hardest_negative():
    s = draw(5, 5)
    rivals = s.masked_fill(torch.eye(5, dtype=torch.bool), -math.inf)
    want = (rivals.amax(1) - s.diagonal()).clamp(min=0.0)
    tau = 1e-4
    loss = InfoNCELoss(tau, normalize=False, reduction="none")
    close(tau * on_similarities(loss, s), want, atol=1e-6)


@pytest.mark.parametrize("tau", [30.0, 100.0, 300.0])
def test_a_large_temperature_is_the_mean_and_the_variance(tau):
    s = draw(5, 5)
    difference = (s - s.diagonal().unsqueeze(1)).sum(1)
    want = math.log(5) + difference / (5 * tau) + s.var(1, correction=0) / (2 * tau**2)
    got = on_similarities(InfoNCELoss(tau, normalize=False, reduction="none"), s)
    assert float((got - want).abs().max()) < 10.0 / tau**3


def test_one_negative_is_the_logistic_loss():
    q, p, n = draw(3, 1, 4)
    gap = cosine(q[0], n[0]) - cosine(q[0], p[0])
    close(InfoNCELoss(0.2, in_batch=False)(q, p, n), math.log1p(math.exp(gap / 0.2)))


@given(seeds, temperatures, st.integers(2, 6))
def test_cosines_bound_the_loss(seed, tau, n):
    z = draw(2, n, 3, seed=seed)
    low, high = (math.log1p((n - 1) * math.exp(s / tau)) for s in (-2.0, 2.0))
    value = InfoNCELoss(tau, reduction="none")(*z)
    assert bool((value >= low * (1 - 1e-12)).all() and (value <= high).all())
    wide = NTXentLoss(tau, reduction="none")(*z)
    low, high = (math.log1p(2 * (n - 1) * math.exp(s / tau)) for s in (-2.0, 2.0))
    assert bool((wide >= low * (1 - 1e-12)).all() and (wide <= high).all())
    # Reached by a query whose negatives are all opposite, or all equal, to it.
    q = torch.ones(1, 3, dtype=F64)
    for sign, bound in ((1.0, -2.0), (-1.0, 2.0)):
        far = -sign * q.expand(n - 1, 3)
        got = InfoNCELoss(tau, in_batch=False)(q, sign * q, far)
        close(got, math.log1p((n - 1) * math.exp(bound / tau)), rtol=1e-9)


def test_it_bounds_the_mutual_information_from_below():
    # Query and positive are the same of three symbols: they share log 3.
    symbols = torch.randint(3, (400, 32), generator=torch.Generator().manual_seed(0))
    points = F.one_hot(symbols, 3).double()
    for tau in (0.05, 0.3, 2.0):
        mean = sum(float(InfoNCELoss(tau)(x, x)) for x in points) / len(points)
        assert math.log(32) - mean < math.log(3) + 0.02
    assert math.log(32) - mean < 0.6
    tight = sum(float(InfoNCELoss(0.05)(x, x)) for x in points) / len(points)
    assert math.log(32) - tight > 0.95 * math.log(3)


# Invariances and digits.


@pytest.mark.parametrize("loss", [InfoNCELoss(), InfoNCELoss(0.3, True), NTXentLoss()])
def test_only_directions_count(loss):
    a, b = draw(2, 5, 3)
    value = loss(a, b)
    rotation = torch.as_tensor(ortho_group.rvs(3, random_state=0))
    close(loss(a @ rotation, b @ rotation), value)
    lengths = torch.tensor([1e-3, 0.5, 1.0, 40.0, 1e5], dtype=F64).unsqueeze(1)
    close(loss(a * lengths, b / lengths), value)
    order = torch.tensor([3, 1, 4, 0, 2])
    close(loss(a[order], b[order]), value)


@pytest.mark.parametrize("loss", [InfoNCELoss(), NTXentLoss()])
@pytest.mark.parametrize("length", [1e-5, 1e30])
def test_lengths_at_the_ends_of_float32(loss, length):
    a, b = draw(2, 5, 3).float()
    a.requires_grad_()
    (want,) = torch.autograd.grad(loss(a, b), a)
    scaled = (a.detach() * length).requires_grad_()
    value = loss(scaled, b)
    (gradient,) = torch.autograd.grad(value, scaled)
    torch.testing.assert_close(value, loss(a, b).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient * length, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_zeros_have_a_finite_gradient(dtype):
    a = torch.zeros(4, 3, dtype=dtype, requires_grad=True)
    b = draw(4, 3).to(dtype)
    for loss in (InfoNCELoss(), NTXentLoss()):
        (gradient,) = torch.autograd.grad(loss(a, b), a)
        assert bool(gradient.isfinite().all())
        # A similarity of 0 with everything.
        if isinstance(loss, InfoNCELoss):
            close(loss(a, b), math.log(4), rtol=1e-6)


@pytest.mark.parametrize("tau", [0.015, 0.05, 0.5])
def test_tiny_values_keep_their_digits(tau):
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    p = torch.tensor([[1.0, 0.25], [0.125, 1.0], [-1.0, 0.5]])
    got = InfoNCELoss(tau, reduction="none")(q, p)
    with mpmath.workdps(50):
        for i in range(3):
            s = []
            for k in range(3):
                a, b = ([mpmath.mpf(float(x)) for x in row] for row in (q[i], p[k]))
                dot = sum(x * y for x, y in zip(a, b, strict=True))
                s.append(dot / mpmath.sqrt(sum(y * y for y in b)))
            rest = sum(mpmath.exp((s[k] - s[i]) / mpmath.mpf(tau)) for k in range(3) if k != i)
            # Of float32 cosines, of error 6e-8, divided by tau.
            assert abs(float(got[i]) / float(mpmath.log1p(rest)) - 1) < 4e-7 / tau


def test_half_precision_with_a_small_temperature():
    q, p = draw(2, 6, 8)
    want = InfoNCELoss(0.01)(q.half().double(), p.half().double())
    got = InfoNCELoss(0.01)(q.half(), p.half())
    assert got.dtype is torch.float32
    close(got, want, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        close(InfoNCELoss(0.01)(q.float(), p.float()), InfoNCELoss(0.01)(q, p), rtol=1e-5)
