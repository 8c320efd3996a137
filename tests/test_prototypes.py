"""Losses of class prototypes: formulas by loops, identities, degenerate batches, digits."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import (
    NTXentLoss,
    OnlinePrototypeEquilibriumLoss,
    PrototypePairSampling,
    PrototypeRelationDistillationLoss,
    PrototypeTightnessLoss,
)
from lossary._numerics import divergence_terms, exp_remainder, one_minus_cosine

F64 = torch.float64
seeds = st.integers(0, 10**6)


def close(a, b, rtol=1e-10, atol=1e-12):
    a, b = (torch.as_tensor(x, dtype=F64) for x in (a, b))
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(v):
    norm = math.sqrt(dot(v, v))
    return [x / norm for x in v]


# The floor.


@given(seeds, st.floats(-14.0, 1.0))
def test_divergence_terms_keep_their_digits(seed, exponent):
    a = draw(5, seed=seed)
    b = a + 10.0**exponent * draw(5, seed=seed + 1)
    with mpmath.workdps(60):
        x, y = ([mpmath.mpf(v) for v in z.tolist()] for z in (a, b))
        q, p = ([mpmath.exp(v) / sum(map(mpmath.exp, z)) for v in z] for z in (x, y))
        want = sum(s * mpmath.log(s / t) for s, t in zip(q, p, strict=True))
    terms = divergence_terms(a.log_softmax(0), b.log_softmax(0))
    assert bool((terms >= 0).all())
    # The scores themselves are known to a rounding, which is 1e-16/10^exponent of the difference.
    close(terms.sum(), float(want), rtol=1e-13 + 4e-15 * 10.0**-exponent, atol=1e-28)


@given(seeds)
def test_divergence_terms_have_the_slope_of_the_divergence(seed):
    a, b = (draw(5, seed=seed + i).requires_grad_() for i in range(2))
    lq, lp = (3.0 * a).log_softmax(0), (3.0 * b).log_softmax(0)
    plain = (lq.exp() * (lq - lp)).sum()
    got = torch.autograd.grad(divergence_terms(lq, lp).sum(), (a, b), retain_graph=True)
    for x, y in zip(got, torch.autograd.grad(plain, (a, b)), strict=True):
        close(x, y)


def test_the_exponential_less_two_terms_on_either_side():
    for x in (-30.0, -0.6, -0.4, -1e-9, 1e-9, 0.4, 0.6, 3.0):
        with mpmath.workdps(60):
            want = mpmath.exp(x) - 1 - mpmath.mpf(x)
        close(exp_remainder(torch.tensor(x, dtype=F64)), float(want), rtol=2e-15, atol=0.0)


def test_one_minus_cosine_keeps_its_digits():
    for angle in (1e-8, 1e-4, 0.5, 2.0, 3.1):
        a = torch.tensor([[3.0, 0.0]], dtype=F64)
        b = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=F64) * 5.0
        close(one_minus_cosine(a, b), [2.0 * math.sin(angle / 2) ** 2], rtol=1e-9, atol=0.0)
    zero = torch.zeros(1, 2)
    close(one_minus_cosine(zero, torch.ones(1, 2)), [1.0])
    close(one_minus_cosine(zero, zero), [1.0])


# Distillation.


def profiles_of(f, p, temperature, normalize):
    f = [unit(x) if normalize else x for x in f.tolist()]
    return [[dot(unit(c), x) / temperature for x in f] for c in p.tolist()]


def softmax(row):
    e = [math.exp(x) for x in row]
    return [x / sum(e) for x in e]


def divergence(q, p):
    return sum(x * math.log(x / y) for x, y in zip(q, p, strict=True))


@given(seeds, st.sampled_from([0.1, 1.0, 3.0]), st.booleans())
def test_distillation_is_what_the_formula_says(seed, temperature, normalize):
    f, g = (draw(5, 3, seed=seed + i) for i in range(2))
    p, r = (draw(4, 3, seed=seed + 2 + i) for i in range(2))
    new, old = (profiles_of(x, y, temperature, normalize) for x, y in ((f, p), (g, r)))
    by_samples = [divergence(softmax(a), softmax(b)) for a, b in zip(old, new, strict=True)]
    old, new = (list(zip(*x, strict=True)) for x in (old, new))
    by_classes = [divergence(softmax(a), softmax(b)) for a, b in zip(old, new, strict=True)]
    for over, want in (("samples", by_samples), ("classes", by_classes)):
        loss = PrototypeRelationDistillationLoss(temperature, over, normalize, reduction="none")
        close(loss(f, g, p, r), torch.tensor(want, dtype=F64), rtol=1e-9)


@pytest.mark.parametrize("over", ["samples", "classes"])
def test_the_gradient_of_distillation_in_the_scores(over):
    # With prototypes and features of norm 1 in one plane, a score moves as <p_c, df_j>.
    temperature = 0.7
    f, g, p = draw(5, 3, seed=1).requires_grad_(), draw(5, 3, seed=2), torch.eye(3, dtype=F64)
    loss = PrototypeRelationDistillationLoss(temperature, over, False, reduction="sum")
    (found,) = torch.autograd.grad(loss(f, g, p, p), f)
    axis = 0 if over == "samples" else 1
    want = ((f / temperature).softmax(axis) - (g / temperature).softmax(axis)) / temperature
    close(found, want)


def test_what_gets_a_gradient_and_what_does_not():
    inputs = [draw(4, 3, seed=i).requires_grad_() for i in range(4)]
    for over in ("samples", "classes"):
        value = PrototypeRelationDistillationLoss(over=over)(*inputs)
        grads = torch.autograd.grad(value, inputs, allow_unused=True)
        assert [g is not None for g in grads] == [True, False, True, False]
    value = PrototypeTightnessLoss()(inputs[0], torch.tensor([0, 1, 1, 3]), inputs[1])
    grads = torch.autograd.grad(value, inputs[:2], allow_unused=True)
    assert grads[0] is None
    assert grads[1][2].tolist() == [0.0, 0.0, 0.0]
    close((grads[1] * inputs[1]).sum(1), torch.zeros(4))  # no pull along the prototype
    assert float(grads[1].abs().sum()) > 0.1


def test_profiles_that_agree_cost_nothing():
    f, p = draw(6, 3), draw(2, 3, seed=1)
    turn = torch.linalg.qr(draw(3, 3, seed=2))[0]
    for over in ("samples", "classes"):
        loss = PrototypeRelationDistillationLoss(0.1, over)
        assert float(loss(f, f, p, p)) == 0.0
        close(loss(2.0 * f, f @ turn, p, 3.0 * p @ turn), 0.0, atol=1e-25)
        assert float(loss(f, draw(6, 3, seed=3), p, p)) > 1e-3
    # A constant more in a profile: along an axis in which all features agree.
    ones = torch.ones(6, 1, dtype=F64)
    loss = PrototypeRelationDistillationLoss(0.1, normalize_features=False)
    tall, old = torch.cat((f, ones), 1), torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=F64)
    close(loss(tall, torch.cat((f, 5.0 * ones), 1), old, old), 0.0, atol=1e-25)


def test_a_high_temperature_leaves_half_the_variance():
    f, g, p = draw(6, 3), draw(6, 3, seed=1), draw(2, 3, seed=2)
    loss = PrototypeRelationDistillationLoss(1e5, normalize_features=False, reduction="none")
    unit_p = p / p.norm(dim=1, keepdim=True)
    difference = unit_p @ (f - g).t()
    close(loss(f, g, p, p) * 1e10, difference.var(1, unbiased=False) / 2, rtol=1e-3)


@pytest.mark.parametrize("over", ["samples", "classes"])
@pytest.mark.parametrize(("samples", "classes"), [(0, 2), (3, 0), (0, 0), (1, 1)])
def test_distillation_of_nothing_is_an_attached_zero(over, samples, classes):
    f = draw(samples, 3).requires_grad_()
    p = draw(classes, 3).requires_grad_()
    value = PrototypeRelationDistillationLoss(over=over)(f, draw(samples, 3, seed=1), p, p.detach())
    assert float(value.detach()) == 0.0
    for g in torch.autograd.grad(value, (f, p)):
        assert bool((g == 0).all())


def test_features_and_prototypes_of_zeros_have_finite_gradients():
    f, p = torch.zeros(3, 2, requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    value = PrototypeRelationDistillationLoss(0.1)(f, torch.randn(3, 2), p, torch.randn(2, 2))
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(value, (f, p)))


# Tightness.


@given(seeds)
def test_tightness_is_one_minus_the_cosine(seed):
    f, p = draw(6, 3, seed=seed), draw(4, 3, seed=seed + 1)
    labels = torch.randint(4, (6,), generator=torch.Generator().manual_seed(seed))
    pairs = zip(f.tolist(), labels.tolist(), strict=True)
    want = [1.0 - dot(unit(x), unit(p[y].tolist())) for x, y in pairs]
    close(
        PrototypeTightnessLoss(reduction="none")(f, labels, p),
        torch.tensor(want, dtype=F64),
        atol=1e-12,
    )


def test_the_best_prototype_is_the_sum_of_the_unit_features():
    f = draw(6, 3)
    p = (f / f.norm(dim=1, keepdim=True)).sum(0, keepdim=True).requires_grad_()
    value = PrototypeTightnessLoss()(f, torch.zeros(6, dtype=torch.long), p)
    (g,) = torch.autograd.grad(value, p)
    close(g, torch.zeros(1, 3), atol=1e-14)
    worst = PrototypeTightnessLoss()(f, torch.zeros(6, dtype=torch.long), -p.detach())
    assert float(worst) > float(value.detach())


def test_a_weight_of_zero_leaves_the_prototypes_alone():
    # As many prototypes as samples: they are not samples.
    f, p, labels = draw(3, 2), draw(3, 2, seed=1).requires_grad_(), torch.tensor([2, 1, 0])
    f[2] = math.nan
    value = PrototypeTightnessLoss()(f, labels, p, weight=torch.tensor([True, True, False]))
    close(value, PrototypeTightnessLoss()(f[:2], labels[:2], p))
    assert bool(torch.autograd.grad(value, p)[0].isfinite().all())


# Online prototypes.


def equilibrium(z1, z2, labels, temperature):
    """Return the values of the classes in the order of their labels, by loops."""
    classes = sorted(set(labels.tolist()))
    rows = []
    for z in (z1, z2):
        for c in classes:
            own = [unit(x) for x, y in zip(z.tolist(), labels.tolist(), strict=True) if y == c]
            rows.append(unit([sum(x) for x in zip(*own, strict=True)]))
    k, values = len(classes), []
    for c in range(k):
        value = 0.0
        for a, b in ((c, c + k), (c + k, c)):
            e = [math.exp(dot(rows[a], x) / temperature) for x in rows]
            value -= math.log(e[b] / (sum(e) - e[a])) / 2
        values.append(value)
    return values


@given(seeds, st.sampled_from([0.2, 0.5, 2.0]), st.integers(1, 7))
def test_online_prototypes_are_what_the_formula_says(seed, temperature, classes):
    z1, z2 = draw(2, 7, 3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    labels = 5 - 3 * torch.randint(classes, (7,), generator=generator)
    want = equilibrium(z1, z2, labels, temperature)
    loss = OnlinePrototypeEquilibriumLoss(temperature, reduction="none")
    values = loss(z1, z2, labels)
    close(values[: len(want)], torch.tensor(want, dtype=F64), rtol=1e-9, atol=1e-12)
    assert values[len(want) :].tolist() == [0.0] * (7 - len(want))
    for reduction in ("mean", "batchmean"):
        mean = OnlinePrototypeEquilibriumLoss(temperature, reduction=reduction)(z1, z2, labels)
        close(mean, sum(want) / len(want), rtol=1e-9, atol=1e-12)
    # Views, rows and names of classes do not matter; nor do lengths.
    perm = torch.randperm(7, generator=generator)
    plain = OnlinePrototypeEquilibriumLoss(temperature)
    close(plain(3.0 * z2[perm], z1[perm], -2 * labels[perm]), plain(z1, z2, labels))


def test_classes_of_one_sample_each_are_ntxent():
    z1, z2 = draw(2, 6, 3)
    want = NTXentLoss(0.3)(z1, z2)
    close(OnlinePrototypeEquilibriumLoss(0.3)(z1, z2, torch.arange(6).flip(0)), want)
    first, second, there = OnlinePrototypeEquilibriumLoss().prototypes(
        z1, z2, torch.tensor([4, 4, 2, 2, 4, 9])
    )
    assert there.tolist() == [True] * 3 + [False] * 3
    assert bool((first[3:] == 0).all())
    want = NTXentLoss(0.5)(first[:3], second[:3])
    close(OnlinePrototypeEquilibriumLoss()(z1, z2, torch.tensor([4, 4, 2, 2, 4, 9])), want)


def test_one_class_has_nothing_to_be_told_from():
    for rows in (0, 1, 4):
        z1, z2 = (z.clone().requires_grad_() for z in draw(2, rows, 3))
        # Also where the views disagree, at a similarity of -1/temperature.
        opposite = OnlinePrototypeEquilibriumLoss(1e-4)(z1, -z1, torch.full((rows,), 3))
        assert float(opposite.detach()) == 0.0
        value = OnlinePrototypeEquilibriumLoss(0.01)(z1, z2, torch.full((rows,), 3))
        assert float(value.detach()) == 0.0
        for g in torch.autograd.grad(value, (z1, z2)):
            assert bool((g == 0).all())


def test_a_class_whose_mean_vanishes_is_finite():
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = OnlinePrototypeEquilibriumLoss()(z, z, torch.tensor([0, 0, 1]))
    (g,) = torch.autograd.grad(value, z)
    assert bool(g.isfinite().all())


def test_small_losses_keep_their_digits():
    # Two classes, opposite: l = log(1 + 2 exp(-2/tau)), which is below the rounding of 1.
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64)
    value = OnlinePrototypeEquilibriumLoss(0.04)(z, z, torch.tensor([0, 1]))
    close(value, 2.0 * math.exp(-50.0), rtol=1e-10, atol=0.0)


def test_rows_taken_as_they_are():
    z1, z2 = draw(2, 5, 3)
    labels = torch.tensor([0, 0, 1, 1, 2])
    by_length = OnlinePrototypeEquilibriumLoss(normalize=False)(z1, z2, labels)
    assert abs(float(by_length - OnlinePrototypeEquilibriumLoss()(z1, z2, labels))) > 1e-3
    z1, z2 = (z / z.norm(dim=1, keepdim=True) for z in (z1, z2))
    close(
        OnlinePrototypeEquilibriumLoss(normalize=False)(z1, z2, labels),
        OnlinePrototypeEquilibriumLoss()(z1, z2, labels),
    )


# Pairs.


@given(seeds, st.integers(2, 6))
def test_pairs_by_the_formula(seed, k):
    p = draw(k, 3, seed=seed)
    rows = p.tolist()
    score = []
    for a in range(k):
        for b in range(a + 1, k):
            score.append(math.exp(1.0 / math.dist(rows[a], rows[b])))
    want = torch.tensor(score, dtype=F64) / sum(score)
    close(PrototypePairSampling()(p.requires_grad_()), want, rtol=1e-9)
    assert not PrototypePairSampling()(p).requires_grad
    present = torch.rand(k, generator=torch.Generator().manual_seed(seed)) < 0.6
    left = PrototypePairSampling()(p, present)
    a, b = torch.triu_indices(k, k, 1)
    there = present[a] & present[b]
    assert bool((left[~there] == 0).all())
    close(left[there], want[there] / want[there].sum() if bool(there.any()) else want[there])
    close(PrototypePairSampling()(p, present.double()), left)


def test_coincident_prototypes_take_all():
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert PrototypePairSampling()(p).tolist() == [0.0, 1.0, 0.0]
    assert PrototypePairSampling()(torch.eye(3)).tolist() == pytest.approx([1 / 3] * 3)
    assert PrototypePairSampling()(p[:1]).shape == (0,)
    assert PrototypePairSampling()(p[:0]).shape == (0,)
    nobody = torch.zeros(3, dtype=torch.bool)
    assert PrototypePairSampling()(p, nobody).tolist() == [0.0] * 3
    near = torch.tensor([[0.0, 0.0], [0.0, 1e-4], [0.0, 3e-4]])
    loose = PrototypePairSampling(eps=1.0)(near)
    close(loose, torch.full((3,), 1 / 3), rtol=1e-6)
    assert repr(PrototypePairSampling(0.5)) == "PrototypePairSampling(eps=0.5)"
    assert repr(PrototypePairSampling()) == "PrototypePairSampling()"
