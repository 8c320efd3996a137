"""Barlow Twins and VICReg against sums written out, and what they promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import BarlowTwinsLoss, VICRegLoss

F64 = torch.float64
seeds = st.integers(0, 10**6)
BOTH = (BarlowTwinsLoss, VICRegLoss)


def close(a, b, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=rtol, atol=atol
    )


def draw(n, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z1 = torch.randn(n, width, dtype=F64, generator=generator)
    return z1, 0.7 * z1 + torch.randn(n, width, dtype=F64, generator=generator)


def column(z, j):
    return [float(row[j]) for row in z]


def covariance(x, y, divisor):
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / divisor


# Barlow Twins.


@given(seeds, st.integers(2, 7), st.integers(1, 4), st.sampled_from([1e-5, 0.3]))
def test_barlow_twins_is_what_the_formula_says(seed, n, width, eps):
    z1, z2 = draw(n, width, seed)
    want = 0.0
    for j in range(width):
        for k in range(width):
            x, y = column(z1, j), column(z2, k)
            spread = [math.sqrt(covariance(v, v, n) + eps) for v in (x, y)]
            c = covariance(x, y, n) / (spread[0] * spread[1])
            want += (1 - c) ** 2 if j == k else 0.2 * c**2
    close(BarlowTwinsLoss(0.2, eps)(z1, z2), want)


def test_barlow_twins_knows_columns_up_to_shift_and_positive_scale():
    z1, z2 = draw(8)
    loss = BarlowTwinsLoss(0.5, 1e-13)
    value = loss(z1, z2)
    scale, shift = torch.tensor([0.1, 3.0, 40.0], dtype=F64), torch.tensor([5.0, -1.0, 0.0])
    close(loss(z1 * scale + shift, z2 * scale.flip(0)), value, rtol=1e-8)
    close(loss(z2, z1), value)
    assert abs(float(loss(-z1, z2) - value)) > 0.1


def test_barlow_twins_reaches_its_bounds():
    x = torch.tensor([1.0, -1.0], dtype=F64).unsqueeze(1).expand(2, 4)
    close(BarlowTwinsLoss(0.3, 1e-14)(x, -x), 4 * 4 + 0.3 * 4 * 3)
    plus, minus = [1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]
    apart = torch.tensor([plus, minus], dtype=F64).t()
    close(BarlowTwinsLoss(0.3, 0.25)(apart, apart), 2 * 0.2**2)


def test_barlow_twins_keeps_its_digits_where_the_views_agree():
    z1, _ = draw(64, 4)
    z1 = z1.float()
    z2 = z1 + 1e-4 * draw(64, 4, seed=1)[0].float()
    loss = BarlowTwinsLoss(0.0, 1e-12)
    want = loss(z1.double(), z2.double())
    c = torch.corrcoef(torch.cat((z1, z2), 1).double().t())[:4, 4:].diagonal()
    close(want, (1 - c).square().sum(), rtol=1e-3, atol=0.0)
    close(loss(z1, z2), want, rtol=0.03, atol=0.0)
    assert float(want) < 1e-15


def test_barlow_twins_column_that_does_not_vary():
    z1, z2 = draw(6, 1)
    x = torch.full_like(z1, 3.0).requires_grad_()
    y = z2.requires_grad_()
    value = BarlowTwinsLoss()(x, y)
    close(value, 1.0)
    gx, gy = torch.autograd.grad(value, (x, y))
    assert bool(gx.isfinite().all())
    close(gy, torch.zeros_like(gy))
    both = BarlowTwinsLoss()(x, torch.full_like(x, -1.0))
    close(both, 1.0)
    close(torch.autograd.grad(both, x)[0], torch.zeros_like(x))


def test_columns_far_from_zero_lose_no_more_than_their_own_rounding():
    z1, z2 = draw(16)
    far = torch.tensor(2.0**10)
    near = [(z * 64).round() / 64 for z in (z1, z2)]  # so that the shift is exact in float32
    for loss in (BarlowTwinsLoss(0.5), VICRegLoss(1.0, 1.0, 1.0)):
        close(loss(*(z.float() + far for z in near)), loss(*near), rtol=1e-4)


# VICReg.


@given(seeds, st.integers(2, 7), st.integers(1, 4), st.sampled_from([1e-4, 0.3]))
def test_vicreg_is_what_the_formula_says(seed, n, width, eps):
    z1, z2 = draw(n, width, seed)
    apart = sum((float(a) - float(b)) ** 2 for a, b in zip(z1.view(-1), z2.view(-1), strict=True))
    lack = repeated = 0.0
    for z in (z1, z2):
        for j in range(width):
            for k in range(width):
                s = covariance(column(z, j), column(z, k), n - 1)
                if j == k:
                    lack += max(0.0, 1 - math.sqrt(s + eps))
                else:
                    repeated += s**2
    want = 2.0 * apart / (n * width) + 3.0 * lack / (2 * width) + 0.5 * repeated / width
    close(VICRegLoss(2.0, 3.0, 0.5, eps)(z1, z2), want)


def test_vicreg_by_hand():
    z1 = torch.tensor([[0.5], [-0.5]], dtype=F64)  # of unbiased variance 1/2
    z2 = torch.tensor([[3.0], [-3.0]], dtype=F64)  # of more than 1
    close(VICRegLoss(eps=0.14)(z1, z2), 25 * 6.25 + 25 * (1 - 0.8) / 2)
    z1, z2 = draw(5)
    close(VICRegLoss(std_coeff=0.0, cov_coeff=0.0)(z1, z2), 25 * (z1 - z2).square().mean())
    close(VICRegLoss()(z2 + 7.0, z1 + 7.0), VICRegLoss()(z1, z2))


def test_vicreg_of_white_equal_views_is_nothing():
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=F64)
    x.requires_grad_()
    value = VICRegLoss()(x, x)
    assert value == 0.0
    close(torch.autograd.grad(value, x)[0], torch.zeros_like(x))


def test_vicreg_has_no_gradient_in_the_collapsed_state():
    x = torch.full((5, 3), 2.0, dtype=F64, requires_grad=True)
    value = VICRegLoss(eps=0.01)(x, x)
    close(value, 25 * 0.9)
    close(torch.autograd.grad(value, x)[0], torch.zeros_like(x))


def test_vicreg_claims_convexity_of_nothing_that_it_is_not():
    p = VICRegLoss(0.0, 1.0, 0.0, 0.01).properties()
    assert p.upper == 0.9
    assert p.convex is False
    a, b, z2 = (torch.tensor(x, dtype=F64) for x in p.counterexamples["convex"])
    loss = VICRegLoss(0.0, 1.0, 0.0, 0.01)
    assert loss((a + b) / 2, z2) > (loss(a, z2) + loss(b, z2)) / 2
    assert VICRegLoss(std_coeff=0.0).properties().convex is None


# Both.


@pytest.mark.parametrize("loss", BOTH)
def test_one_number_whatever_the_reduction(loss):
    z1, z2 = draw(5)
    value = loss()(z1, z2)
    assert value.shape == ()
    for reduction in ("none", "sum", "batchmean"):
        close(loss(reduction=reduction)(z1, z2), value)
    close(loss()(z1, z2, normalizer=4.0), value / 4)


@pytest.mark.parametrize("loss", BOTH)
def test_of_nothing_is_an_attached_zero(loss):
    x = torch.empty(0, 3, requires_grad=True)
    y = torch.empty(0, 3, requires_grad=True)
    value = loss()(x, y)
    assert value == 0.0
    assert all(g.shape == (0, 3) for g in torch.autograd.grad(value, (x, y)))
