"""The loss of a student and its mean teacher, against written-out formulas and mpmath."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from torch.autograd import gradcheck

from lossary import ReverseCrossEntropyLoss, SymmetricConsistencyLoss

INF = math.inf
F32, F64 = torch.float32, torch.float64
ALPHAS = (0.0, 0.1, 0.5, 0.9, 1.0)
every_alpha = pytest.mark.parametrize("alpha", ALPHAS)
alphas = st.one_of(st.sampled_from(ALPHAS), st.floats(0.0, 1.0))


def close(found, expected, rtol=1e-12, atol=1e-13):
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def values(f, g, alpha=0.5, **options):
    return SymmetricConsistencyLoss(alpha, reduction="none", **options)(f, g)


def plain(f, g, alpha, axis=1):
    p, t = f.softmax(axis), g.softmax(axis)
    return -((1 - alpha) * t * p.log() + alpha * p * t.log()).sum(axis)


def entropy(f):
    p = f.softmax(1)
    return -(p * p.log()).sum(1)


def divergence(f, g):
    return F.kl_div(f.log_softmax(1), g.log_softmax(1), log_target=True, reduction="none").sum(1)


@st.composite
def pairs(draw, size=6.0):
    k = draw(st.integers(2, 5))
    row = st.lists(st.floats(-size, size), min_size=k, max_size=k)
    return tuple(torch.tensor([draw(row)], dtype=F64) for _ in range(2))


@given(pairs(), alphas)
def test_values_are_those_of_the_formula(fg, alpha):
    close(values(*fg, alpha), plain(*fg, alpha))


@given(pairs(), alphas)
def test_gradient_in_the_logits_is_the_closed_form(fg, alpha):
    f, g = fg
    f = f.clone().requires_grad_()
    (found,) = torch.autograd.grad(values(f, g, alpha).sum(), f)
    p, t = f.detach().softmax(1), g.softmax(1)
    log_t = t.log()
    forward = p - t
    reverse = p * (-log_t + (p * log_t).sum(1, keepdim=True))
    close(found, (1 - alpha) * forward + alpha * reverse)


@given(pairs())
def test_alpha_0_is_cross_entropy_with_soft_targets(fg):
    f, g = fg
    close(values(f, g, 0.0), F.cross_entropy(f, g.softmax(1), reduction="none"))


@given(pairs())
def test_alpha_1_is_cross_entropy_with_the_roles_exchanged(fg):
    f, g = fg
    close(values(f, g, 1.0), F.cross_entropy(g, f.softmax(1), reduction="none"))
    half = values(f, g)
    close(half, values(f, g, 0.0) / 2 + values(f, g, 1.0) / 2)


@given(pairs(), alphas)
def test_exchanging_student_and_teacher_exchanges_the_weights(fg, alpha):
    f, g = fg
    close(values(f, g, alpha), values(g, f, 1.0 - alpha))
    close(values(f, g), values(g, f))


@given(pairs())
def test_half_is_half_the_divergences_and_entropies(fg):
    f, g = fg
    close(values(f, g), (divergence(f, g) + divergence(g, f) + entropy(f) + entropy(g)) / 2)


@given(pairs(), alphas)
def test_at_agreement_the_value_is_the_entropy(fg, alpha):
    _, g = fg
    close(values(g, g.clone(), alpha), entropy(g))


def slope_at_agreement(g, alpha):
    f = g.clone().requires_grad_()
    return torch.autograd.grad(values(f, g, alpha).sum(), f)[0]


def test_at_agreement_the_gradient_pushes_to_the_largest_class():
    g = torch.tensor([[2.0, 0.0, -1.0]], dtype=F64)
    assert bool((slope_at_agreement(g, 0.0).abs() < 1e-15).all())
    for alpha in (0.1, 0.5, 1.0):
        slope = slope_at_agreement(g, alpha)
        assert slope[0, 0] < -0.01 * alpha
        assert bool((slope[0, 1:] > 0).all())
        # A step along it has a smaller loss than agreement.
        assert values(g - 0.1 * slope, g, alpha) < values(g, g, alpha)
        close(slope_at_agreement(torch.zeros(1, 4, dtype=F64), alpha), torch.zeros(1, 4))
        sure = torch.tensor([[80.0, 0.0, 0.0]], dtype=F64)
        assert bool((slope_at_agreement(sure, alpha).abs() < 1e-30).all())


@given(pairs(), alphas, st.floats(-50.0, 50.0))
def test_numbers_added_to_all_logits_of_a_row_change_nothing(fg, alpha, c):
    f, g = fg
    close(values(f + c, g, alpha), values(f, g, alpha), atol=1e-11)
    close(values(f, g + c, alpha), values(f, g, alpha), atol=1e-11)


def test_a_one_hot_teacher_gives_the_symmetric_cross_entropy_of_its_gap():
    f = torch.randn(4, 5, dtype=F64)
    target = torch.tensor([0, 3, 4, 1])
    gap = 60.0
    g = gap * F.one_hot(target, 5).double()
    reverse = ReverseCrossEntropyLoss(-gap, reduction="none")(f, target)
    for alpha in ALPHAS:
        expected = (1 - alpha) * F.cross_entropy(f, target, reduction="none") + alpha * reverse
        close(values(f, g, alpha), expected, rtol=1e-10)


# Gradient to the teacher.


@every_alpha
def test_the_teacher_gets_no_gradient_unless_asked_for(alpha):
    f, g = torch.randn(2, 4, 3, dtype=F64)
    f.requires_grad_(), g.requires_grad_()
    out = SymmetricConsistencyLoss(alpha)(f, g)
    of_f, of_g = torch.autograd.grad(out, (f, g), allow_unused=True)
    assert of_g is None
    both = SymmetricConsistencyLoss(alpha, detach_teacher=False)
    close(both(f, g).detach(), out.detach())
    through_f, through_g = torch.autograd.grad(both(f, g), (f, g))
    close(through_f, of_f)
    assert bool((through_g != 0).all())
    assert gradcheck(both, (f, g))
    exchanged = torch.autograd.grad(SymmetricConsistencyLoss(1 - alpha)(g, f), g)[0]
    close(through_g, exchanged, rtol=1e-9)


# Numbers.


def exact(f, g, alpha):
    with mpmath.workdps(400):
        f, g = ([mpf(x) for x in row.tolist()] for row in (f, g))
        p, t = ([mpmath.exp(x - max(r)) for x in r] for r in (f, g))
        p, t = ([x / mpmath.fsum(r) for x in r] for r in (p, t))
        forward = -mpmath.fsum(b * mpmath.log(a) for a, b in zip(p, t, strict=True))
        reverse = -mpmath.fsum(a * mpmath.log(b) for a, b in zip(p, t, strict=True))
        return float((1 - alpha) * forward + alpha * reverse)


@every_alpha
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 300.0, 1e4])
def test_values_at_any_size_of_the_logits(alpha, size):
    f, g = size * torch.randn(2, 6, 4, dtype=F64)
    expected = torch.tensor([exact(a, b, alpha) for a, b in zip(f, g, strict=True)], dtype=F64)
    close(values(f, g, alpha), expected, rtol=1e-12, atol=1e-300)
    found = values(f.float(), g.float(), alpha)
    single = [exact(a, b, alpha) for a, b in zip(f.float(), g.float(), strict=True)]
    close(found, single, rtol=2e-6, atol=1e-30)


@every_alpha
def test_half_precision_is_computed_in_float32(alpha):
    f, g = 5 * torch.randn(2, 8, 4)
    for dtype in (torch.float16, torch.bfloat16):
        leaf = f.to(dtype).requires_grad_()
        found = SymmetricConsistencyLoss(alpha)(leaf, g.to(dtype))
        assert found.dtype is F32
        expected = SymmetricConsistencyLoss(alpha)(f.to(dtype).double(), g.to(dtype).double())
        close(found.double(), expected, rtol=1e-6)
        assert torch.autograd.grad(found, leaf)[0].dtype is dtype


@every_alpha
def test_a_class_that_both_exclude_is_not_there(alpha):
    f, g = torch.randn(2, 4, 5, dtype=F64)
    f[:, 2], g[:, 2] = -INF, -INF
    rest = [0, 1, 3, 4]
    leaf, alone = f.clone().requires_grad_(), f[:, rest].requires_grad_()
    found, expected = values(leaf, g, alpha), values(alone, g[:, rest], alpha)
    close(found, expected.detach())
    (of_all,) = torch.autograd.grad(found.sum(), leaf)
    (of_rest,) = torch.autograd.grad(expected.sum(), alone)
    close(of_all[:, rest], of_rest)
    assert bool((of_all[:, 2] == 0).all())


def test_a_class_that_one_of_them_excludes():
    f, g = torch.randn(2, 4, 5, dtype=F64)
    g[:, 2] = -INF
    t = g.softmax(1)
    leaf = f.clone().requires_grad_()
    only_forward = values(leaf, g, 0.0)
    close(only_forward, F.cross_entropy(f, t, reduction="none"))
    (slope,) = torch.autograd.grad(only_forward.sum(), leaf)
    close(slope, f.softmax(1) - t)
    for alpha in (0.1, 0.5, 1.0):
        assert bool((values(f, g, alpha) == INF).all())
        assert bool((values(g, f, 1 - alpha) == INF).all())
    only_reverse = values(g.clone().requires_grad_(), f, 1.0)
    close(only_reverse, F.cross_entropy(f, t, reduction="none"))
    # Where the student's probability has underflown, the class cannot occur.
    f[:, 2] = -2000.0
    assert bool(values(f, g, 0.5).isfinite().all())


# Shapes, axes and weights.


@pytest.mark.parametrize("class_dim", [0, 1, 2, 3, -1, -2, -4])
def test_any_class_axis(class_dim):
    f, g = torch.randn(2, 2, 3, 4, 5, dtype=F64)
    axis = class_dim % 4
    found = values(f, g, 0.3, class_dim=class_dim)
    assert found.shape == f.sum(axis).shape
    close(found, plain(f, g, 0.3, axis))
    weight = torch.rand(found.shape, dtype=F64)
    weight.flatten()[::3] = 0.0
    f.movedim(axis, -1)[weight == 0] = INF
    loss = SymmetricConsistencyLoss(0.3, class_dim=class_dim)
    leaf = f.clone().requires_grad_()
    mean = loss(leaf, g, weight=weight)
    close(mean, (weight * found).sum() / weight.sum())
    (slope,) = torch.autograd.grad(mean, leaf)
    assert bool((slope.movedim(axis, -1)[weight == 0] == 0).all())
    assert bool((slope.movedim(axis, -1)[weight > 0] != 0).all())


@pytest.mark.parametrize("k", [2, 3])
def test_weights_of_pixels_are_not_taken_for_weights_of_classes(k):
    # All axes have one length, and the class axis is not the last.
    f, g = torch.randn(2, k, k, k, dtype=F64)
    weight = torch.ones(k, k, dtype=F64)
    weight[0, 1] = 0.0
    expected = (weight * values(f, g)).sum() / weight.sum()
    f[0, :, 1] = math.nan
    for w in (weight, weight > 0):
        close(SymmetricConsistencyLoss()(f, g, weight=w), expected)


@pytest.mark.parametrize("class_dim", [1, 0, -1])
def test_one_row(class_dim):
    f, g = torch.randn(2, 5, dtype=F64)
    found = values(f, g, class_dim=class_dim)
    assert found.shape == ()
    close(found, values(f[None], g[None])[0])


def test_reductions_and_weights():
    f, g = torch.randn(2, 4, 3, dtype=F64)
    of_rows = plain(f, g, 0.5)
    w = torch.tensor([1.0, 0.0, 2.0, 0.5], dtype=F64)
    for reduction, expected in (
        ("mean", (w * of_rows).sum() / 3.5),
        ("sum", (w * of_rows).sum()),
        ("batchmean", (w * of_rows).sum() / 3),
        ("none", w * of_rows),
    ):
        loss = SymmetricConsistencyLoss(reduction=reduction)
        close(loss(f, g, weight=w), expected)
        if reduction != "none":
            close(loss(f, g, weight=w, normalizer=7.0), (w * of_rows).sum() / 7)
    close(SymmetricConsistencyLoss()(f, g), of_rows.mean())
    close(SymmetricConsistencyLoss()(f[:0], g[:0]), 0.0)


def test_the_self_training_term_is_the_mean_over_both_views():
    f, augmented, g = torch.randn(3, 4, 3, dtype=F64)
    loss = SymmetricConsistencyLoss()
    total = 0.5 * loss(f, g) + 0.5 * loss(augmented, g)
    both = loss(torch.cat((f, augmented)), torch.cat((g, g)))
    close(total, both)


@every_alpha
def test_what_it_claims(alpha):
    p = SymmetricConsistencyLoss(alpha).properties()
    assert p.convex is (alpha == 0.0)
    assert p.lower == 0.0
    assert (p.upper == INF) is (alpha < 1.0)
    assert (p.lipschitz is None) is (alpha > 0.0)
    assert set(p.unknown) == {n for n in ("upper", "lipschitz") if getattr(p, n) is None}
    if alpha:
        # What it says of the gradient: no bound over all teachers.
        f = torch.tensor([[0.0, 0.0]], dtype=F64, requires_grad=True)
        for gap in (10.0, 1e4):
            g = torch.tensor([[gap, 0.0]], dtype=F64)
            (slope,) = torch.autograd.grad(values(f, g, alpha).sum(), f)
            assert slope.norm() > 0.2 * alpha * gap
