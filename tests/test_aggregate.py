"""Losses of bags: the published lemmas, saturated logits, empty and absent bags."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from lossary import AggregateResponseLoss
from single_rows import close

F32, F64 = torch.float32, torch.float64
rhos = st.sampled_from((0.0, 0.3, 0.5, 1.0))
bases = st.sampled_from(("mse", "bce"))


@st.composite
def bagged(draw, largest=5.0):
    """Inputs in bags, of which some may be empty, and numbers in [0, 1] for them."""
    m = draw(st.integers(1, 4))
    index = draw(st.lists(st.integers(0, m - 1), min_size=1, max_size=9))
    n = len(index)
    x = draw(st.lists(st.floats(-largest, largest), min_size=n, max_size=n))
    y = draw(st.lists(st.sampled_from((0.0, 0.25, 0.5, 1.0)), min_size=m, max_size=m))
    return torch.tensor(x, dtype=F64), torch.tensor(index), torch.tensor(y, dtype=F64)


def cross_entropy(y, p, no):
    """Of p = 1 - no, of which the larger has lost what the smaller still has."""
    return mpf(y) * mpmath.log1p(no / p) + (1 - mpf(y)) * mpmath.log1p(p / no)


def reference(x, index, y, rho, base):
    """Bag by bag, with mpmath; None for empty ones."""
    mpmath.mp.dps = 60
    out = []
    for b, target in enumerate(y.tolist()):
        h = [mpf(v) for v, i in zip(x.tolist(), index.tolist(), strict=True) if i == b]
        if not h:
            out.append(None)
            continue
        if base == "mse":
            bag = (target - sum(h) / len(h)) ** 2
            each = [(target - v) ** 2 for v in h]
        else:
            p, no = ([1 / (1 + mpmath.exp(s * v)) for v in h] for s in (-1, 1))
            bag = cross_entropy(target, sum(p) / len(h), sum(no) / len(h))
            each = [cross_entropy(target, a, b) for a, b in zip(p, no, strict=True)]
        out.append(float((1 - mpf(rho)) * bag + mpf(rho) * sum(each) / len(h)))
    return out


@given(bagged(), rhos, bases)
def test_value(bags, rho, base):
    x, index, y = bags
    want = reference(x, index, y, rho, base)
    got = AggregateResponseLoss(rho, base, reduction="none")(x, index, y)
    close(got, [0.0 if v is None else v for v in want], rtol=1e-11, atol=1e-14)
    kept = [v for v in want if v is not None]
    close(AggregateResponseLoss(rho, base)(x, index, y), sum(kept) / len(kept), 1e-11, 1e-14)


@given(bagged(), rhos)
def test_squared_error_is_the_bag_term_and_a_variance(bags, rho):
    x, index, y = bags
    bag = AggregateResponseLoss(0.0, reduction="none")(x, index, y)
    variance = torch.stack(
        [x[index == b].var(unbiased=False) if (index == b).any() else bag[b] for b in range(len(y))]
    )
    got = AggregateResponseLoss(rho, reduction="none")(x, index, y)
    close(got, bag + rho * variance, rtol=1e-11, atol=1e-13)
    for b in range(len(y)):
        h = x[index == b]
        pairs = (h.unsqueeze(0) - h.unsqueeze(1)).square().sum() / (2 * max(len(h), 1) ** 2)
        close(got[b], bag[b] + rho * pairs, rtol=1e-11, atol=1e-13)


@given(bagged(), rhos)
def test_gradient_of_squared_error(bags, rho):
    x, index, y = bags
    x.requires_grad_()
    (g,) = torch.autograd.grad(AggregateResponseLoss(rho, reduction="sum")(x, index, y), x)
    h = x.detach()
    for i, b in enumerate(index.tolist()):
        mean = h[index == b].mean()
        size = (index == b).sum()
        close(
            g[i], 2.0 / float(size) * ((mean - y[b]) + rho * (h[i] - mean)), rtol=1e-11, atol=1e-13
        )


@given(bagged())
def test_lemma_2_for_cross_entropy(bags):
    x, index, y = bags
    inst, bag = (AggregateResponseLoss(r, "bce", reduction="none")(x, index, y) for r in (1.0, 0.0))
    h = torch.sigmoid(x)
    for b, target in enumerate(y.tolist()):
        p = h[index == b]
        if len(p) == 0:
            continue
        assert inst[b] >= bag[b] - 1e-14  # Jensen
        # l'' is convex in p: largest at an end of its range.
        second = target / p**2 + (1 - target) / (1 - p) ** 2
        gap = second.max() / 2 * p.var(unbiased=False)
        assert inst[b] - bag[b] <= gap + 1e-13


@given(bagged(), st.floats(0.0, 1.0), bases)
def test_affine_in_rho(bags, rho, base):
    bag, inst, got = (
        AggregateResponseLoss(r, base, reduction="none")(*bags) for r in (0.0, 1.0, rho)
    )
    close(got, (1 - rho) * bag + rho * inst, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rho", [0.0, 0.4, 1.0])
def test_bags_of_one_are_the_base_loss(rho):
    x, y, index = torch.randn(7, dtype=F64), torch.rand(7, dtype=F64), torch.arange(7)
    close(AggregateResponseLoss(rho)(x, index, y), mse_loss(x, y))
    close(AggregateResponseLoss(rho, "bce")(x, index, y), binary_cross_entropy_with_logits(x, y))


def test_the_bag_term_sees_the_mean_alone():
    index = torch.tensor([0, 0, 0, 1, 1])
    y = torch.tensor([0.3, 0.8], dtype=F64)
    x = torch.tensor([1.0, 2.0, 3.0, -1.0, 1.0], dtype=F64)
    moved = x + torch.tensor([0.5, -1.0, 0.5, 2.0, -2.0], dtype=F64)
    close(AggregateResponseLoss(0.0)(moved, index, y), AggregateResponseLoss(0.0)(x, index, y))
    p = torch.sigmoid(x)
    other = torch.logit(p + torch.tensor([0.01, -0.02, 0.01, 0.1, -0.1], dtype=F64))
    loss = AggregateResponseLoss(0.0, "bce")
    close(loss(other, index, y), loss(x, index, y), rtol=1e-12)
    assert abs(AggregateResponseLoss(1.0)(moved, index, y) - AggregateResponseLoss(1.0)(
        x, index, y)) > 0.1  # fmt: skip


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("size", [40.0, 200.0, 1e4])
def test_saturated_logits(dtype, size):
    # Of float32 sigmoids the mean is 0 or 1, and its logarithm infinite.
    x = torch.tensor([-size, -size - 1.0, size, size - 1.0], dtype=dtype, requires_grad=True)
    index = torch.tensor([0, 0, 1, 1])
    for y in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5]):
        y = torch.tensor(y, dtype=dtype)
        for rho in (0.0, 0.5):
            got = AggregateResponseLoss(rho, "bce", reduction="none")(x, index, y)
            want = reference(x.detach(), index, y, rho, "bce")
            rtol = 1e-5 if dtype == F32 else 1e-12
            close(got.detach(), want, rtol=rtol, atol=1e-37 if dtype == F32 else 1e-300)
            (g,) = torch.autograd.grad(got.sum(), x)
            assert g.isfinite().all()
    (g,) = torch.autograd.grad(
        AggregateResponseLoss(0.0, "bce", reduction="sum")(x, index, torch.tensor([1.0, 0.0])), x
    )
    share = 1 / (1 + math.exp(-1.0))  # of the less improbable of the two
    close(g, [-share, share - 1, 1 - share, share], rtol=1e-4 if dtype == F32 else 1e-9)


@pytest.mark.parametrize("base", ["mse", "bce"])
def test_empty_bags_are_left_out(base):
    x, y = torch.randn(4, dtype=F64), torch.tensor([0.5, math.nan, 1.0], dtype=F64)
    index = torch.tensor([0, 2, 2, 0])
    x.requires_grad_()
    loss = AggregateResponseLoss(0.5, base)
    out = loss(x, index, y)
    want = loss(x.detach(), torch.tensor([0, 1, 1, 0]), y[[0, 2]])
    close(out.detach(), want)
    y = torch.tensor([0.5, 0.3, 1.0], dtype=F64)
    with torch.autograd.set_detect_anomaly(True):  # no nan on the way, for those who look for them
        (g,) = torch.autograd.grad(loss(x, index, y), x)
    assert g.isfinite().all()
    values = AggregateResponseLoss(0.5, base, reduction="none")(x, index, y)
    assert values[1] == 0.0
    close(AggregateResponseLoss(0.5, base, reduction="batchmean")(x, index, y).detach(), want)
    none = loss(x[:0], index[:0], y)
    assert none == 0.0
    assert none.requires_grad
    assert loss(x[:0], index[:0], y[:0]) == 0.0


@pytest.mark.parametrize("base", ["mse", "bce"])
@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf])
def test_a_bag_of_weight_0_is_not_there(base, fill):
    x, y = torch.randn(6, dtype=F64), torch.rand(3, dtype=F64)
    index = torch.tensor([0, 1, 2, 0, 1, 2])
    weight = torch.tensor([2.0, 0.0, 1.0], dtype=F64)
    loss = AggregateResponseLoss(0.3, base)
    values = AggregateResponseLoss(0.3, base, reduction="none")(x, index, y)
    want = (2 * values[0] + values[2]) / 3
    x[index == 1] = fill
    x.requires_grad_()
    out = loss(x, index, y, weight=weight)
    close(out.detach(), want)
    (g,) = torch.autograd.grad(out, x)
    assert (g[index == 1] == 0).all()
    assert (g[index != 1] != 0).all()
    y[1] = math.nan
    close(loss(x, index, y, weight=weight).detach(), want)
    # As many bags as samples: weights are of bags all the same.
    one = AggregateResponseLoss(0.3, base)
    back = torch.tensor([2, 1, 0])
    f = torch.tensor([fill, 0.5, 1.0], dtype=F64)
    targets = torch.tensor([0.0, 1.0, 0.0], dtype=F64)
    got = one(f, back, targets, weight=torch.tensor([True, True, False]))
    close(got, one(f[1:], torch.tensor([1, 0]), targets[:2]))


def test_whole_bags_in_micro_batches_add_up():
    x, y = torch.randn(6, dtype=F64), torch.rand(3, dtype=F64)
    index = torch.tensor([0, 1, 2, 0, 1, 2])
    loss = AggregateResponseLoss(0.3)
    close(loss(x, index, y, normalizer=3.0), loss(x, index, y))
    first = index == 0
    parts = loss(x[first], index[first], y[:1], normalizer=3.0)
    parts = parts + loss(x[~first], index[~first] - 1, y[1:], normalizer=3.0)
    close(parts, loss(x, index, y))


def test_the_bag_target_has_no_gradient_and_index_any_integer_type():
    x = torch.randn(4, requires_grad=True)
    y = torch.rand(2, requires_grad=True)
    index = torch.tensor([0, 1, 1, 0])
    out = AggregateResponseLoss()(x, index, y)
    assert torch.autograd.grad(out, y, allow_unused=True)[0] is None
    for dtype in (torch.uint8, torch.int32, torch.int16):
        assert AggregateResponseLoss()(x, index.to(dtype), y) == out


def test_one_rho_learns_what_the_bags_hide():
    # A linear model from bag means: bag level finds it, instance level shrinks it to the mean.
    g = torch.Generator().manual_seed(0)
    a = torch.randn(400, 2, dtype=F64, generator=g)
    truth = torch.tensor([1.0, -2.0], dtype=F64)
    index = torch.arange(400) // 4
    y = torch.zeros(100, dtype=F64).index_add(0, index, a @ truth) / 4
    found = {}
    for rho in (0.0, 1.0):
        w = torch.zeros(2, dtype=F64, requires_grad=True)
        optimizer = torch.optim.LBFGS([w], max_iter=50, line_search_fn="strong_wolfe")

        def closure(w=w, rho=rho, optimizer=optimizer):
            optimizer.zero_grad()
            loss = AggregateResponseLoss(rho)(a @ w, index, y)
            loss.backward()
            return loss

        optimizer.step(closure)
        found[rho] = w.detach()
    close(found[0.0], truth, rtol=1e-4)
    assert found[1.0].norm() < 0.5 * truth.norm()
