"""SupCon: the formula written plainly, its variants, limits, digits, and what is left out."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import FeatureSeparationLoss, NTXentLoss, SupConLoss

F64 = torch.float64
temperatures = st.sampled_from([0.05, 0.3, 1.0])
seeds = st.integers(0, 10**6)
BOTH = pytest.mark.parametrize("tile_size", [None, 2])


def close(a, b, rtol=1e-9, atol=1e-11):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=rtol, atol=atol
    )


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def classes_of(n, seed, count=3):
    return torch.randint(-1, count - 1, (n,), generator=torch.Generator().manual_seed(seed))


def plain(z, labels, tau, variant):
    """The loss of every anchor, and how many positives it has."""
    u = z / z.norm(dim=1, keepdim=True)
    values, counts = [], []
    for i in range(len(z)):
        s = {a: float(u[i] @ u[a]) / tau for a in range(len(z)) if a != i}
        near = [s[a] for a in s if labels[a] == labels[i]]
        counts.append(len(near))
        if not near:
            values.append(0.0)
            continue
        with mpmath.workdps(80):
            total = mpmath.fsum(mpmath.exp(x) for x in s.values())
            shares = [mpmath.exp(x) / total for x in near]
            if variant == "in":
                values.append(float(-mpmath.log(mpmath.fsum(shares) / len(near))))
            else:
                values.append(float(-mpmath.fsum(mpmath.log(x) for x in shares) / len(near)))
    return torch.tensor(values, dtype=F64), torch.tensor(counts)


@given(seeds, st.integers(0, 7), temperatures, st.sampled_from(["out", "in"]))
def test_supcon_is_what_the_formula_says(seed, n, tau, variant):
    z, labels = draw(n, 3, seed=seed), classes_of(n, seed)
    want, counts = plain(z, labels, tau, variant)
    options = {"variant": variant, "no_positive": "zero"}
    close(SupConLoss(tau, reduction="none", **options)(z, labels), want)
    close(SupConLoss(tau, **options)(z, labels), want.sum() / max(n, 1))
    # Those that have no positive are no part of the mean.
    paired = max(int((counts > 0).sum()), 1)
    close(SupConLoss(tau, variant=variant)(z, labels), want.sum() / paired)
    close(SupConLoss(tau, 0.07, variant)(z, labels), want.sum() / paired * tau / 0.07)


@given(seeds, st.integers(1, 4), temperatures, st.sampled_from(["out", "in"]))
def test_two_views_are_stacked(seed, n, tau, variant):
    (a, b), labels = draw(2, n, 3, seed=seed), classes_of(n, seed)
    loss = SupConLoss(tau, variant=variant, reduction="none")
    both = loss(torch.cat((a, b)), labels.repeat(2))
    close(loss(a, labels, b), (both[:n] + both[n:]) / 2)
    close(loss(b, labels, a), loss(a, labels, b))
    close(SupConLoss(tau, variant=variant)(a, labels, b), loss(a, labels, b).mean())


@given(seeds, st.integers(1, 5), temperatures, st.sampled_from(["out", "in"]), st.booleans())
def test_distinct_labels_are_nt_xent(seed, n, tau, variant, tiled):
    a, b = draw(2, n, 3, seed=seed)
    labels = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) * 3 - 4
    options = {"tile_size": 2 if tiled else None, "reduction": "none"}
    want = NTXentLoss(tau, reduction="none")(a, b)
    close(SupConLoss(tau, variant=variant, **options)(a, labels, b), want)


@given(seeds, st.integers(1, 8), temperatures)
def test_inside_is_below_outside_and_both_above_log_of_the_positives(seed, n, tau):
    z, labels = draw(n, 3, seed=seed), classes_of(n, seed)
    inside, outside = (
        SupConLoss(tau, variant=v, reduction="none")(z, labels) for v in ("in", "out")
    )
    assert bool((inside <= outside + 1e-12).all())
    count = (labels.unsqueeze(1) == labels).sum(1) - 1
    least = count.clamp(min=1).double().log()
    assert bool((inside >= least - 1e-12).all())
    # With one positive they agree; without any both are 0.
    close(inside[count <= 1], outside[count <= 1])
    assert bool((outside[count == 0] == 0).all())


@given(seeds, temperatures)
def test_the_gradient_in_the_similarities(seed, tau):
    # The similarities themselves, through rows that hold them: own rows are left out.
    n, labels = 5, torch.tensor([0, 0, 0, 1, 1])
    z = draw(n, 3, seed=seed)
    u = (z / z.norm(dim=1, keepdim=True)).requires_grad_()
    value = SupConLoss(tau, normalize=False, reduction="sum")(u, labels)
    (gradient,) = torch.autograd.grad(value, u)
    s = (u @ u.T).detach()
    eye = torch.eye(n, dtype=torch.bool)
    p = torch.softmax((s / tau).masked_fill(eye, -math.inf), 1)
    positive = (labels.unsqueeze(1) == labels) & ~eye
    slope = (p - positive / positive.sum(1, keepdim=True)) / tau
    close(gradient, (slope + slope.T) @ u.detach(), rtol=1e-8, atol=1e-9)


@BOTH
@pytest.mark.parametrize("variant", ["out", "in"])
def test_one_class_and_no_class(tile_size, variant):
    loss = SupConLoss(variant=variant, tile_size=tile_size)
    z = torch.ones(5, 3, dtype=F64, requires_grad=True)
    value = loss(z, torch.zeros(5).long())
    close(value, math.log(4))
    (gradient,) = torch.autograd.grad(value, z)
    close(gradient, torch.zeros(5, 3), atol=1e-9)
    x = draw(4, 3).requires_grad_()
    # Nobody has a positive: alone, all distinct, nobody at all; or there is nobody else.
    for rows, labels in ((1, [7]), (4, [3, 1, 0, 2]), (0, []), (2, [5, 5])):
        value = loss(x[:rows], torch.tensor(labels, dtype=torch.long))
        assert value == 0.0
        (gradient,) = torch.autograd.grad(value, x)
        assert bool((gradient == 0).all())
    value = loss(x[:1], torch.tensor([2]), x[1:2])
    assert value == 0.0


@BOTH
@pytest.mark.parametrize("tau", [0.03, 0.05])
def test_one_near_positive_keeps_its_digits(tile_size, tau):
    # Pairs that are alike, far from each other: values down to exp(-66).
    z = torch.tensor([[1.0, 0.0], [1.0, 0.125], [-1.0, 0.25], [-1.0, 0.0]])
    labels = torch.tensor([4, 4, 2, 2])
    for variant in ("out", "in"):
        loss = SupConLoss(tau, variant=variant, tile_size=tile_size, reduction="none")
        want, _ = plain(z.double(), labels, tau, variant)
        # Of float32 cosines, of error 1e-7, divided by tau.
        close(loss(z, labels), want, rtol=4e-7 / tau, atol=0)
        assert 0 < float(want.max()) < 1e-10


@BOTH
@pytest.mark.parametrize("variant", ["out", "in"])
def test_zeros_and_duplicates_have_finite_gradients(tile_size, variant):
    a = draw(6, 3).float()
    a[0], a[2], a[5] = 0.0, a[1], -a[4]
    for rows in (a, a * 0, torch.ones(6, 3)):
        x = rows.clone().requires_grad_()
        value = SupConLoss(0.01, variant=variant, tile_size=tile_size)(
            x, torch.tensor([0, 0, 1, 1, 1, 2])
        )
        assert bool(value.isfinite())
        assert bool(torch.autograd.grad(value, x)[0].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
@BOTH
def test_any_integers_name_the_classes(tile_size, dtype):
    z, labels = draw(6, 3), torch.tensor([0, 7, 7, 3, 0, 0])
    loss = SupConLoss(tile_size=tile_size)
    value = loss(z, labels)
    close(loss(z, labels.to(dtype)), value)
    close(loss(z, labels * -(10**12) + 5), value)
    order = torch.tensor([5, 2, 0, 3, 4, 1])
    close(loss(z[order], labels[order]), value)


def test_rows_of_very_different_lengths():
    # Inner products: beside the first row its positive is lost in the sum over their class.
    lengths = torch.tensor([[1e5], [1e-5], [1e-5], [2e-5], [1e-5], [1e-5]], dtype=F64)
    z, labels = draw(6, 3) * lengths, torch.tensor([0, 0, 1, 1, 1, 2])
    want = SupConLoss(0.5, normalize=False, reduction="none")(z, labels)
    got = SupConLoss(0.5, normalize=False, tile_size=4, reduction="none")(z, labels)
    close(got, want)


def test_feature_separation_is_supcon_that_counts_the_lonely():
    z, labels = draw(7, 3), classes_of(7, 1)
    want = SupConLoss(0.2, no_positive="zero")(z, labels)
    close(FeatureSeparationLoss(0.2)(z, labels), want)
    close(FeatureSeparationLoss(0.2, tile_size=3)(z, labels), want)
    assert "tile_size=3" in repr(FeatureSeparationLoss(tile_size=3))
