"""The contrastive losses: the formulas written plainly, their gradients, limits and digits."""

import itertools
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group

from lossary import (
    BatchSoftmaxLoss,
    DCLLoss,
    GlobalContrastiveLoss,
    HardContrastiveLoss,
    InfoNCELoss,
    NTXentLoss,
    SigLIPLoss,
)

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


# DCL.


def rows_of(z1, z2):
    """Every row of both views, with its other view and the rows of other samples, as cosines."""
    z, n = F.normalize(torch.cat((z1, z2)), dim=1), len(z1)
    s = z @ z.T
    for a in range(2 * n):
        other = (a + n) % (2 * n)
        yield a % n, s[a, other], s[a, [b for b in range(2 * n) if b not in (a, other)]]


def decoupled(z1, z2, tau, w):
    value = torch.zeros(len(z1), dtype=F64)
    for i, own, others in rows_of(z1, z2):
        value = value.index_add(
            0, torch.tensor([i]), ((others / tau).logsumexp(0) - w[i] * own / tau).view(1) / 2
        )
    return value


def vmf_weights(z1, z2, sigma):
    s = (F.normalize(z1, dim=1) * F.normalize(z2, dim=1)).sum(1).detach()
    return 2 - len(z1) * torch.softmax(s / sigma, 0)


@given(seeds, temperatures, st.integers(2, 5), st.sampled_from([None, 0.1, 0.5]))
def test_dcl_and_its_gradient_are_what_the_formula_says(seed, tau, n, sigma):
    z = [x.requires_grad_() for x in draw(2, n, 4, seed=seed)]
    w = torch.ones(n) if sigma is None else vmf_weights(*z, sigma)
    weights = {} if sigma is None else {"weighting": "vmf", "sigma": sigma}
    got = DCLLoss(tau, reduction="none", **weights)(*z)
    want = decoupled(*z, tau, w)
    close(got, want)
    for x, y in zip(*(torch.autograd.grad(v.square().sum(), z) for v in (got, want)), strict=True):
        close(x, y, atol=1e-9 * (1 + float(y.abs().max())))


@given(seeds, st.integers(2, 6))
def test_the_weights_of_dcl_sum_to_the_number_of_samples(seed, n):
    z1, z2 = draw(2, n, 4, seed=seed)
    z2[0] = z1[0]
    s = (F.normalize(z1, dim=1) * F.normalize(z2, dim=1)).sum(1)
    plain, weighted = (DCLLoss(0.3, w, 0.05, reduction="none")(z1, z2) for w in (None, "vmf"))
    w = 1 - (weighted - plain) * 0.3 / s
    close(w.sum(), float(n), rtol=1e-8)
    # A positive that is far nearer than the others takes all: 2 - n, which is below 0.
    if n > 2:
        assert float(w.min()) < 0
    close(DCLLoss(0.3, "vmf", 1e9, reduction="none")(z1, z2), plain, rtol=1e-7, atol=1e-7)


@given(seeds, temperatures)
def test_nt_xent_is_the_softplus_of_dcl_anchor_by_anchor(seed, tau):
    # Both anchors of a sample are alike where the views are mirror images.
    z1 = draw(4, 4, seed=seed)
    z2 = z1 * torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=F64)
    gaps = DCLLoss(tau, reduction="none")(z1, z2)
    close(NTXentLoss(tau, reduction="none")(z1, z2), F.softplus(gaps, threshold=100))


@given(seeds, st.sampled_from([0.05, 0.3, 1.0]))
def test_the_global_loss_without_memory_has_2_tau_times_the_gradient_of_dcl(seed, tau):
    z = [x.requires_grad_() for x in draw(2, 5, 4, seed=seed)]
    remembers = GlobalContrastiveLoss(5, tau, 1.0, state_dtype=F64)
    got = torch.autograd.grad(remembers(*z, torch.arange(5)), z)
    want = torch.autograd.grad(2 * tau * DCLLoss(tau)(*z), z)
    for x, y in zip(got, want, strict=True):
        close(x, y, rtol=1e-8)


@given(seeds, temperatures, st.integers(2, 6))
def test_cosines_bound_dcl(seed, tau, n):
    values = DCLLoss(tau, reduction="none")(*draw(2, n, 3, seed=seed))
    middle = math.log(2 * (n - 1))
    assert bool((values >= middle - 2 / tau - 1e-9).all() and (values <= middle + 2 / tau).all())
    # Two samples that are opposite reach the least of all.
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64)
    loss = DCLLoss(tau)
    close(loss(x, x), loss.properties().lower)


def test_dcl_without_other_samples():
    x = torch.ones(1, 3, requires_grad=True)
    with pytest.raises(ValueError, match=r"z1: expected at least 2 samples, the others .* got 1"):
        DCLLoss()(x, x)
    for weighting in (None, "vmf"):
        value = DCLLoss(weighting=weighting)(x[:0], x[:0])
        assert value == 0.0
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient.tolist() == [[0.0] * 3]


# Hard negatives.


def hardest(own, others, kept, tau):
    """The exponents of the nearest negatives, ties included."""
    least = sorted(others, reverse=True)[kept - 1] if others else 0.0
    near = [s for s in others if s >= least - 1e-12]
    return plain(own, near, tau), near


@given(
    seeds, temperatures, st.integers(1, 6), st.integers(0, 4), st.booleans(), st.booleans(),
    st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0, 2, 9]), st.booleans(),
)  # fmt: skip
def test_hard_contrast_is_what_the_formula_says(seed, tau, n, m, in_batch, shared, share, tie):
    q, p = draw(2, n, 4, seed=seed)
    far = draw(m, 4, seed=seed + 1) if shared else draw(n, m, 4, seed=seed + 1)
    if tie and m > 1:
        far[..., 1, :] = 2 * far[..., 0, :]  # of another length, in the same direction
    by_count = isinstance(share, int)
    of = {"num_hard": share} if by_count else {"alpha": share}
    want, simple = [], []
    for i in range(n):
        own = cosine(q[i], p[i])
        others = [cosine(q[i], p[k]) for k in range(n) if in_batch and k != i]
        others += [cosine(q[i], x) for x in (far if shared else far[i])]
        count = len(others)
        kept = share if by_count else math.ceil(round(share * count, 9))
        value, near = hardest(own, others, max(1, min(kept, count)), tau)
        want.append(value)
        simple.append(0.5 * sum(near) - own)
    options = {"in_batch": in_batch, "reduction": "none", **of}
    close(HardContrastiveLoss(tau, **options)(q, p, far), want)
    loss = HardContrastiveLoss(tau, simple=True, lambda_simple=0.5, **options)
    close(loss(q, p, far), simple)


@given(seeds, temperatures)
def test_all_negatives_are_info_nce_and_fewer_are_less(seed, tau):
    z = [x.requires_grad_() for x in (*draw(2, 6, 4, seed=seed), draw(5, 4, seed=seed + 1))]
    for every in ({"alpha": 1.0}, {"num_hard": 10}, {"num_hard": 500}):
        want = InfoNCELoss(tau, reduction="none")(*z)
        got = HardContrastiveLoss(tau, reduction="none", **every)(*z)
        close(got, want)
        for x, y in zip(*(torch.autograd.grad(v.sum(), z) for v in (got, want)), strict=True):
            close(x, y, atol=1e-10)
    before = torch.zeros(6, dtype=F64)
    for alpha in (0.05, 0.2, 0.5, 0.8, 1.0):
        now = HardContrastiveLoss(tau, alpha, reduction="none")(*z).detach()
        assert bool((now >= before - 1e-12).all())
        before = now


@pytest.mark.parametrize(
    ("alpha", "count", "kept"),
    [(0.07, 100, 7), (0.1, 30, 3), (0.1, 31, 4), (1e-9, 30, 1), (0.29, 100, 29), (1.0, 30, 30)],
)
@pytest.mark.parametrize("tile_size", [None, 8])
@pytest.mark.parametrize("in_batch", [True, False])
def test_how_many_negatives_are_kept(alpha, count, kept, tile_size, in_batch):
    # One query; of in-batch negatives it has none.
    q, n = torch.tensor([[1.0, 0.0]]), torch.linspace(0.1, 3.0, count)
    far = torch.stack((n.cos(), n.sin()), 1).requires_grad_()
    for simple in (False, True):
        options = {"simple": simple, "in_batch": in_batch, "tile_size": tile_size}
        for shape in ((count, 2), (1, count, 2)):
            value = HardContrastiveLoss(0.5, alpha, **options)(q, q, far.view(shape))
            (gradient,) = torch.autograd.grad(value, far)
            pushed = gradient.abs().sum(1) > 0
            assert pushed.tolist() == [i < kept for i in range(count)]


@pytest.mark.parametrize("tile_size", [None, 2])
def test_ties_at_the_threshold_are_all_kept_whatever_their_order(tile_size):
    q = torch.tensor([[1.0, 0.0]], dtype=F64)
    far = torch.tensor([[0.0, 1.0], [0.6, 0.8], [0.0, -1.0], [0.6, -0.8], [-1.0, 0.0]], dtype=F64)
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 7):
        n = far[list(order)]
        loss = HardContrastiveLoss(0.5, num_hard=1, tile_size=tile_size)
        close(loss(q, q, n), math.log1p(2 * math.exp((0.6 - 1.0) / 0.5)))
        loss = HardContrastiveLoss(0.5, num_hard=3, tile_size=tile_size, in_batch=False)
        want = 2 * math.exp((0.6 - 1.0) / 0.5) + 2 * math.exp(-1.0 / 0.5)
        close(loss(q, q, n.unsqueeze(0)), math.log1p(want))


def test_the_share_that_is_kept_unless_a_count_is_given():
    q, p = draw(2, 21, 4)
    close(HardContrastiveLoss()(q, p), HardContrastiveLoss(alpha=0.1)(q, p))
    close(HardContrastiveLoss()(q, p), HardContrastiveLoss(num_hard=2)(q, p))
    assert repr(HardContrastiveLoss()) == "HardContrastiveLoss(alpha=0.1, reduction='mean')"
    # The simple form knows no temperature.
    close(*(HardContrastiveLoss(t, simple=True)(q, p) for t in (0.1, 3.0)))


@pytest.mark.parametrize("tile_size", [None, 2])
def test_hard_contrast_without_negatives(tile_size):
    z = draw(1, 3).requires_grad_()
    value = HardContrastiveLoss(tile_size=tile_size)(z, z + 1)
    assert value == 0.0
    assert torch.autograd.grad(value, z)[0].tolist() == [[0.0] * 3]
    value = HardContrastiveLoss(simple=True, tile_size=tile_size)(z, z + 1)
    close(value, -cosine(z[0].detach(), z[0].detach() + 1))


# Batch softmax.


@given(seeds, temperatures, st.integers(1, 5))
def test_batch_softmax_is_what_the_formula_says(seed, tau, n):
    z1, z2 = draw(2, n, 4, seed=seed)
    log_q = (3 * draw(n, seed=seed + 1)).requires_grad_()
    logits = F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).T / tau
    want = F.cross_entropy(logits - log_q, torch.arange(n), reduction="none")
    got = BatchSoftmaxLoss(tau, reduction="none")(z1, z2, log_q)
    close(got, want, atol=1e-9)
    for x, y in zip(*(torch.autograd.grad(v.sum(), log_q) for v in (got, want)), strict=True):
        close(x, y, atol=1e-9)
    plainly = InfoNCELoss(tau, reduction="none")(z1, z2)
    close(BatchSoftmaxLoss(tau, reduction="none")(z1, z2), plainly)
    constant = torch.full((n,), -7.5)  # float32 beside float64
    close(BatchSoftmaxLoss(tau, reduction="none")(z1, z2, constant), plainly, atol=1e-11)


# SigLIP.


def sigmoid_pairs(z1, z2, t, b):
    """The terms of all pairs."""
    x = t * F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).T + b
    return x, -F.logsigmoid(x * (2 * torch.eye(len(z1), dtype=F64) - 1))


@given(seeds, st.integers(1, 5), st.sampled_from([0.5, 10.0, 60.0]), st.sampled_from([-10.0, 2.0]))
def test_siglip_is_what_the_formula_says(seed, n, t, b):
    z1, z2 = draw(2, n, 4, seed=seed)
    x, terms = sigmoid_pairs(z1, z2, t, b)
    loss = SigLIPLoss(t, b, False)
    close(SigLIPLoss(t, b, False, reduction="none")(z1, z2), terms.sum(1))
    close(loss(z1, z2), terms.sum() / n)
    close(loss(z2, z1), terms.sum() / n)
    assert bool((terms.sum(1) >= loss.properties().lower * (1 - 1e-12)).all())
    learns = SigLIPLoss(t, b, reduction="sum").double()
    slope = x.sigmoid() - torch.eye(n, dtype=F64)
    scale, bias = torch.autograd.grad(learns(z1, z2), list(learns.parameters()))
    # d/d log t = t d/dt, of terms whose t is a float32.
    close(scale, (slope * (x - b)).sum(), rtol=1e-4, atol=1e-4 * t)
    close(bias, slope.sum(), rtol=1e-4, atol=1e-5)


def test_a_tile_of_negatives_alone_is_a_sum_of_softplus():
    z1, z2 = draw(2, 5, 4)
    x, _ = sigmoid_pairs(z1, z2, 10.0, -10.0)
    values = SigLIPLoss(learnable=False, reduction="none")(z1, z2)
    # Turned into a negative, the positive adds its logit.
    close(values + x.diagonal(), F.softplus(x).sum(1))
    # The loss of two halves of the columns, each with its negatives, adds up.
    first, rest = F.softplus(x[:, :2]).sum(1), F.softplus(x[:, 2:]).sum(1)
    close(values, first + rest - x.diagonal())


def test_a_sure_positive_keeps_its_digits():
    x = torch.eye(3)
    got = SigLIPLoss(100.0, -40.0, False, reduction="none")(x, x)
    with mpmath.workdps(40):
        want = mpmath.log1p(mpmath.exp(-60)) + 2 * mpmath.log1p(mpmath.exp(-40))
    close(got, [float(want)] * 3, rtol=1e-5, atol=0)
    got = SigLIPLoss(100.0, -40.0, False, tile_size=2, reduction="none")(x, x)
    close(got, [float(want)] * 3, rtol=1e-5, atol=0)


def test_the_parameters_of_siglip():
    z1, z2 = draw(2, 4, 3)
    loss = SigLIPLoss(5.0, -3.0)
    assert {k: v.dtype for k, v in loss.named_parameters()} == {
        "log_scale": torch.float32,
        "bias": torch.float32,
    }
    close(loss(z1, z2), SigLIPLoss(5.0, -3.0, False)(z1, z2), rtol=1e-6)
    assert loss(z1, z2).dtype is F64
    optimizer = torch.optim.SGD(loss.parameters(), 0.1)
    before = loss(z1, z2)
    before.backward()
    optimizer.step()
    assert loss(z1, z2) < before
    assert loss.properties().lower != SigLIPLoss(5.0, -3.0).properties().lower
    other = SigLIPLoss()
    other.load_state_dict(loss.state_dict())
    close(other(z1, z2), loss(z1, z2))
    assert not list(SigLIPLoss(learnable=False).parameters())
    # Parameters of less precision than the embeddings are used in that of the embeddings.
    half, z1, z2 = SigLIPLoss(5.0, -3.0).half(), z1.float(), z2.float()
    same = SigLIPLoss(math.exp(float(half.log_scale.detach())), -3.0, False)
    close(half(z1, z2), same(z1, z2), rtol=1e-6)
    assert half(z1.half(), z2.half()).dtype is torch.float32


NEW = {
    "DCL": DCLLoss,
    "vmf": lambda **o: DCLLoss(weighting="vmf", **o),
    "hard": lambda **o: HardContrastiveLoss(num_hard=2, **o),
    "simple": lambda **o: HardContrastiveLoss(num_hard=2, simple=True, **o),
    "batch": BatchSoftmaxLoss,
    "SigLIP": SigLIPLoss,
}


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("tile_size", [None, 2])
def test_zeros_and_duplicates_have_finite_gradients(name, tile_size):
    a, b = draw(2, 5, 3).float()
    a[0], a[2], b[2], a[3] = 0.0, a[1], b[1], b[3]
    same = torch.ones(5, 3)
    for rows in ((a, b), (same, same), (a * 0, b * 0)):
        leaves = [x.clone().requires_grad_() for x in rows]
        value = NEW[name](tile_size=tile_size)(*leaves)
        assert bool(value.isfinite())
        for g in torch.autograd.grad(value, leaves):
            assert bool(g.isfinite().all())


@pytest.mark.parametrize("name", NEW)
def test_only_directions_count_in_these_too(name):
    a, b = draw(2, 5, 3)
    loss = NEW[name]()
    value = loss(a, b)
    rotation = torch.as_tensor(ortho_group.rvs(3, random_state=0))
    close(loss(a @ rotation, b @ rotation), value, rtol=1e-6)
    lengths = torch.tensor([1e-3, 0.5, 1.0, 40.0, 1e5], dtype=F64).unsqueeze(1)
    close(loss(a * lengths, b / lengths), value, rtol=1e-6)
    order = torch.tensor([3, 1, 4, 0, 2])
    close(loss(a[order], b[order]), value, rtol=1e-6)
