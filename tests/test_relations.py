"""Losses of relations: formulas by loops, identities, bounds, degenerate batches, digits."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import (
    AdaptiveMixLoss,
    GradientMatchingLoss,
    LabelConsistencyLoss,
    LAFAlignmentLoss,
    LAFRepresentationUnlearningLoss,
    ModelBehaviorConsistencyLoss,
    contrastive_targets,
)

F64 = torch.float64
seeds = st.integers(0, 10**6)


def close(a, b, rtol=1e-10, atol=1e-12):
    a, b = (torch.as_tensor(x, dtype=F64) for x in (a, b))
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def gradients(value, inputs):
    return torch.autograd.grad(value, inputs, allow_unused=True)


# Model behaviour.


@given(seeds, st.booleans(), st.integers(2, 6))
def test_model_behaviour_by_the_formula(seed, by_variance, n):
    r, e = draw(n, 2, seed=seed), draw(n, 4, seed=seed + 1)
    of_r, of_e = ([[cosine(x, y) for y in z] for x in z] for z in (r.tolist(), e.tolist()))
    want = [
        sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / n
        for a, b in zip(of_r, of_e, strict=True)
    ]
    if by_variance:
        flat = list(itertools.chain(*of_r))
        mean = sum(flat) / n**2
        variance = sum((x - mean) ** 2 for x in flat) / (n**2 - 1)
        want = [x / variance for x in want]
    loss = ModelBehaviorConsistencyLoss(by_variance, reduction="none")
    close(loss(r, e), torch.tensor(want, dtype=F64), rtol=1e-8)


def test_model_behaviour_of_copies_is_0():
    r = draw(5, 3)
    turn = torch.linalg.qr(draw(3, 3, seed=1))[0]
    for normalized in (False, True):
        loss = ModelBehaviorConsistencyLoss(normalized)
        close(loss(r, 7.0 * r @ turn), 0.0, atol=1e-25)
        close(loss(r, torch.cat((r, torch.zeros(5, 2)), 1)), 0.0, atol=1e-25)
        assert float(loss(r, draw(5, 3, seed=2))) > 1e-3


@given(seeds, st.integers(1, 6))
def test_model_behaviour_is_at_most_2(seed, n):
    a, b = draw(2, n, 2, seed=seed)
    for x, y in ((a, b), (a.sign(), b.sign()), (a[:, :1], b[:, :1])):
        assert float(ModelBehaviorConsistencyLoss()(x, y)) <= 2.0 + 1e-12


def test_model_behaviour_reaches_2():
    r, e = torch.ones(6, 1).double(), torch.tensor([[1.0], [1.0], [1.0], [-1.0], [-1.0], [-1.0]])
    e = e.double()
    close(ModelBehaviorConsistencyLoss()(r, e), 2.0)
    # One sample alone against the rest: its own value comes near 4.
    e = torch.tensor([[1.0], [1.0], [1.0], [1.0], [1.0], [-1.0]]).double()
    close(ModelBehaviorConsistencyLoss(reduction="none")(r, e)[-1], 4.0 * 5 / 6)


def test_who_gets_a_gradient():
    r, e = (draw(4, 3, seed=i).requires_grad_() for i in range(2))
    for loss in (ModelBehaviorConsistencyLoss, LabelConsistencyLoss):
        args = (r, e) if loss is ModelBehaviorConsistencyLoss else (e, r)
        assert gradients(loss()(*args), (r,)) == (None,)
        both = gradients(loss(detach_reference=False)(*args), (r, e))
        swapped = gradients(loss(detach_reference=False)(*args[::-1]), (r, e))
        for x, y in zip(both, swapped, strict=True):  # symmetric
            close(x, y)
            assert float(x.abs().sum()) > 1e-6


def test_a_reference_without_variance_and_rows_of_zeros_are_finite():
    for r in (torch.ones(3, 2), torch.zeros(3, 2)):
        e = torch.zeros(3, 2, requires_grad=True)
        value = ModelBehaviorConsistencyLoss(True)(r, e)
        (g,) = torch.autograd.grad(value, e)
        assert bool(value.isfinite())
        assert bool(g.isfinite().all())
    # A row of zeros costs nothing against itself.
    zero, e = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(ModelBehaviorConsistencyLoss()(zero, e)) == 0.0


@pytest.mark.parametrize("n", [0, 1])
def test_without_a_pair_the_losses_are_attached_zeros(n):
    for loss in (
        ModelBehaviorConsistencyLoss(),
        ModelBehaviorConsistencyLoss(True),
        LabelConsistencyLoss(),
        LabelConsistencyLoss("official"),
    ):
        x = draw(n, 3).requires_grad_()
        inputs = (draw(n, 3, seed=1), x)
        value = loss(*(inputs if isinstance(loss, ModelBehaviorConsistencyLoss) else inputs[::-1]))
        assert float(value.detach()) == 0.0
        (g,) = torch.autograd.grad(value, x)
        assert bool((g == 0).all())


# Labels.


def probabilities(logits):
    e = [[math.exp(x) for x in row] for row in logits.tolist()]
    return [[x / sum(row) for x in row] for row in e]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def js(p, q):
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return kl(p, m) / 2 + kl(q, m) / 2


def official(p):
    """Return the one number of the authors' code: the reverse divergence, a mean over classes."""
    terms = []
    for a, b in itertools.combinations(p, 2):
        for x, y in zip(a, b, strict=True):
            m = (x + y) / 2
            terms.append(m * math.log(m / x) / 2 + m * math.log(m / y) / 2)
    return sum(terms) / len(terms)


@given(seeds, st.integers(2, 5))
def test_label_consistency_by_the_formula(seed, n):
    a, b = 2.0 * draw(2, n, 3, seed=seed)
    p, q = probabilities(a), probabilities(b)
    want = [sum((js(p[i], p[j]) - js(q[i], q[j])) ** 2 for j in range(n)) / n for i in range(n)]
    close(LabelConsistencyLoss(reduction="none")(a, b), torch.tensor(want, dtype=F64), rtol=1e-8)
    close(LabelConsistencyLoss("official")(a, b), (official(p) - official(q)) ** 2, rtol=1e-8)


def test_label_consistency_of_what_is_alike():
    a, b = 2.0 * draw(2, 5, 3)
    for variant in ("paper", "official"):
        loss = LabelConsistencyLoss(variant)
        assert float(loss(a, a)) == 0.0
        close(loss(a + draw(5, 1, seed=3), b[:, [2, 0, 1]]), loss(a, b))
        assert float(loss(a, b)) > 1e-6
    # The official one sees the average alone.
    swapped = a[[1, 2, 3, 4, 0]]
    close(LabelConsistencyLoss("official")(a, swapped), 0.0, atol=1e-25)
    assert float(LabelConsistencyLoss()(a, swapped)) > 1e-3


def test_sure_predictions_are_finite_and_at_the_bound():
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    value = LabelConsistencyLoss(reduction="none")(logits, torch.zeros(2, 2))
    close(value.detach(), torch.full((2,), math.log(2.0) ** 2 / 2), rtol=1e-6)
    (g,) = torch.autograd.grad(value.sum(), logits)
    assert bool(g.isfinite().all())


def test_near_predictions_keep_their_digits():
    # Two rows that differ by h: JS = h^2 p (1 - p)/8 to first order; its square is 1e-26.
    h = 1e-5
    logits = torch.tensor([[0.3, 0.0], [0.3 + h, 0.0]], dtype=F64)
    p = 1.0 / (1.0 + math.exp(-0.3 - h / 2))
    value = LabelConsistencyLoss()(logits, torch.zeros(2, 2, dtype=F64))
    close(value, (h**2 * p * (1.0 - p) / 8.0) ** 2 / 2.0, rtol=1e-6, atol=0.0)


# Forgetting.


@given(seeds, st.sampled_from([0.1, 1.0, 5.0]))
def test_alignment_by_the_formula(seed, temperature):
    r, r0 = draw(2, 4, 3, seed=seed)
    f, f0 = draw(2, 5, 3, seed=seed + 1)
    c = [1 - cosine(a, b) for a, b in zip(r.tolist(), r0.tolist(), strict=True)]
    e = [1 - cosine(a, b) for a, b in zip(f.tolist(), f0.tolist(), strict=True)]
    far = math.log(sum(math.exp(x / temperature) for x in e))
    want = torch.tensor(c, dtype=F64) - far
    loss = LAFAlignmentLoss(temperature)
    close(LAFAlignmentLoss(temperature, reduction="none")(r, r0, f, f0), want)
    close(loss(r, r0, f, f0), want.sum())
    assert bool((want >= -(2 / temperature + math.log(5))).all())
    assert bool((want <= 2 - math.log(5)).all())


def test_the_gradient_of_alignment_in_the_distances():
    r, f = draw(4, 2).requires_grad_(), draw(5, 2, seed=1).requires_grad_()
    r0, f0 = (draw(n, 2, seed=2 + n).requires_grad_() for n in (4, 5))
    tau = 0.3
    c, e = (1.0 - torch.cosine_similarity(x, y.detach(), 1) for x, y in ((r, r0), (f, f0)))
    weight = -(4 / tau) * (e.detach() / tau).softmax(0)
    want = gradients((c.sum() + (weight * e).sum()), (r, f))
    found = gradients(LAFAlignmentLoss(tau)(r, r0, f, f0), (r, f, r0, f0))
    for x, y in zip(found[:2], want, strict=True):
        close(x, y)
    assert found[2:] == (None, None)


def test_the_original_model_has_minus_log_m():
    r, f = draw(3, 2), draw(7, 2, seed=1)
    close(LAFAlignmentLoss(0.1, reduction="mean")(r, r, f, f), -math.log(7))


@given(seeds)
def test_unlearning_by_the_formula(seed):
    r, rr = draw(2, 4, 3, seed=seed)
    f, ff = draw(2, 2, 3, seed=seed + 1)

    def term(a, b):
        m = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
        return math.exp(m / (m + 1))

    near = [term(a, b) for a, b in zip(r.tolist(), rr.tolist(), strict=True)]
    far = [term(a, b) for a, b in zip(f.tolist(), ff.tolist(), strict=True)]
    close(LAFRepresentationUnlearningLoss()(r, rr, f, ff), sum(near) - sum(far))
    values = LAFRepresentationUnlearningLoss(reduction="none")(r, rr, f, ff)
    close(values, torch.tensor([*near, *(-x for x in far)], dtype=F64))


def test_unlearning_is_steepest_where_it_says():
    m = torch.linspace(0.01, 4.0, 4000, dtype=F64)
    a = torch.stack((m.sqrt(), torch.zeros_like(m)), 1).requires_grad_()
    zeros = torch.zeros(0, 2, dtype=F64)
    (g,) = gradients(LAFRepresentationUnlearningLoss()(a, torch.zeros_like(a), zeros, zeros), (a,))
    slopes = g.norm(dim=1)
    close(slopes.max(), 0.8807, atol=1e-4)
    close(m[slopes.argmax()], 1 / math.sqrt(3), atol=2e-3)


def test_weights_reach_retained_and_forgotten_samples():
    r, f = draw(2, 3), draw(3, 3, seed=1)
    loss = LAFRepresentationUnlearningLoss()
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0], dtype=F64)
    bad_r, bad_f = r.clone(), f.clone()
    bad_r[1], bad_f[1:] = math.nan, math.inf
    leaves = [bad_r.requires_grad_(), bad_f.requires_grad_()]
    value = loss(leaves[0], r + 1.0, leaves[1], f - 0.5, weight=weight)
    close(
        value, loss(r[:1], r[:1] + 1.0, f[:0], f[:0]) + 2 * loss(r[:0], r[:0], f[:1], f[:1] - 0.5)
    )
    for g in gradients(value, leaves):
        assert bool(g.isfinite().all())
    with pytest.raises(ValueError, match=r"weight: expected shape \(5,\)"):
        loss(r, r, f, f, weight=torch.ones(2, dtype=F64))


# Gradients.


def layers(seed=0, scale=1.0):
    shapes = ((2, 3, 2, 2), (4,), (3, 2, 2), (2, 5))
    return [scale * draw(*s, seed=seed + i) for i, s in enumerate(shapes)]


def matching(g, h):
    """Return the row-wise distance of every layer, by loops."""
    out = []
    for a, b in zip(g, h, strict=True):
        value = 0.0
        if a.dim() > 1:
            for x, y in zip(a.flatten(1).tolist(), b.flatten(1).tolist(), strict=True):
                norms = math.sqrt(dot(x, x)) * math.sqrt(dot(y, y))
                value += 1 - dot(x, y) / (norms + 1e-6)
        out.append(value)
    return out


@given(seeds, st.sampled_from([1e-4, 1.0, 1e3]))
def test_gradient_matching_by_the_formula(seed, scale):
    g, h = layers(seed, scale), layers(seed + 10)
    want = matching(g, h)
    close(GradientMatchingLoss()(g, h), sum(want))
    close(GradientMatchingLoss(reduction="none")(g, h), torch.tensor(want, dtype=F64))
    close(GradientMatchingLoss(reduction="mean")(g, h), sum(want) / 3)
    squares = [float((a - b).square().sum()) for a, b in zip(g, h, strict=True)]
    close(GradientMatchingLoss("mse", reduction="none")(g, h), torch.tensor(squares, dtype=F64))
    x, y = (torch.cat([a.flatten() for a in z]).tolist() for z in (g, h))
    norms = math.sqrt(dot(x, x)) * math.sqrt(dot(y, y))
    close(GradientMatchingLoss("cos")(g, h), 1 - dot(x, y) / (norms + 1e-6))


def test_rows_may_be_scaled():
    g, h = layers(), layers(10)
    scaled = [a * torch.rand(len(a), *[1] * (a.dim() - 1), dtype=F64).add(0.5) for a in g]
    loss = GradientMatchingLoss(eps=1e-14)
    close(loss(scaled, h), loss(g, h))
    close(loss(g, g), 0.0, atol=1e-10)
    close(loss(g, [-a for a in g]), 2.0 * (2 + 3 + 2))


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_gradients_of_every_size_in_single_precision(size):
    # The squares of these leave the range; the cosine does not.
    g = torch.tensor([[3.0, 4.0], [1.0, 0.0]]) * size
    h = torch.tensor([[4.0, 3.0], [1.0, 0.0]]) / size
    g.requires_grad_()
    value = GradientMatchingLoss()([g], [h])
    close(value.detach(), 0.04, atol=1e-5)
    (slope,) = torch.autograd.grad(value, g)
    assert bool(slope.isfinite().all())


def test_a_row_of_zeros_costs_1_with_finite_second_derivatives():
    g = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    h = draw(2, 3)
    for metric, want in (("rowwise_cosine", 2.0), ("cos", 1.0)):
        for real in (h, torch.zeros_like(h)):
            value = GradientMatchingLoss(metric)([g], [real])
            close(value.detach(), want)
            (first,) = torch.autograd.grad(value, g, create_graph=True)
            assert bool(first.isfinite().all())
            (second,) = torch.autograd.grad(first.square().sum(), g)
            assert bool(second.isfinite().all())


def test_matching_trains_through_a_second_derivative():
    x = draw(3, 2).requires_grad_()
    weight, target = draw(2, 2, seed=1).requires_grad_(), draw(2, 2, seed=2)
    own = torch.autograd.grad((x @ weight).square().mean(), weight, create_graph=True)
    (g,) = torch.autograd.grad(GradientMatchingLoss()(own, [target]), x)
    assert float(g.abs().sum()) > 1e-3
    leaf = target.clone().requires_grad_()
    assert not GradientMatchingLoss()([target], [leaf]).requires_grad


def test_biases_alone_are_an_attached_zero():
    g = torch.tensor([math.inf, 1.0], requires_grad=True)
    for reduction in ("sum", "mean"):
        value = GradientMatchingLoss(reduction=reduction)([g], [torch.ones(2)])
        assert float(value.detach()) == 0.0
        assert gradients(value, (g,))[0].tolist() == [0.0, 0.0]


def test_contrastive_targets_are_means():
    classes = [layers(i) for i in (0, 20, 40)]
    classes[0][0].requires_grad_()
    target = contrastive_targets(classes)
    assert not any(x.requires_grad for x in target)
    for i, x in enumerate(target):
        close(x, sum(c[i].detach() for c in classes) / 3)
    # Of one class DCC is DC.
    g = layers(60)
    loss = GradientMatchingLoss()
    close(loss(g, contrastive_targets(classes[:1])), loss(g, classes[0]).detach())
    half = [[torch.full((2,), 3e4, dtype=torch.float16)]] * 3
    assert contrastive_targets(half)[0].tolist() == [torch.tensor(3e4).half().item()] * 2


# Mixtures.


@given(seeds, st.floats(0.0, 1.0), st.sampled_from([0.0, 0.3]))
def test_adaptive_mix_by_the_formula(seed, lam, std):
    mixed, a, b, noise = draw(4, 3, 2, 2, seed=seed)
    target = lam * a + (1 - lam) * b + std * noise
    want = [
        sum((x - y) ** 2 for x, y in zip(m, t, strict=True)) / 4
        for m, t in zip(mixed.flatten(1).tolist(), target.flatten(1).tolist(), strict=True)
    ]
    close(
        AdaptiveMixLoss(noise_std=std, reduction="none")(mixed, a, b, lam, noise),
        torch.tensor(want, dtype=F64),
    )
    want = [
        -cosine(m, t)
        for m, t in zip(mixed.flatten(1).tolist(), target.flatten(1).tolist(), strict=True)
    ]
    close(
        AdaptiveMixLoss("cosine", std, reduction="none")(mixed, a, b, lam, noise),
        torch.tensor(want, dtype=F64),
    )


def test_shares_per_sample_and_of_all():
    mixed, a, b = draw(3, 4, 2)
    loss = AdaptiveMixLoss(noise_std=0.0, reduction="none")
    shares = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=F64)
    each = torch.cat(
        [loss(*(x[i : i + 1] for x in (mixed, a, b)), float(s)) for i, s in enumerate(shares)]
    )
    close(loss(mixed, a, b, shares), each)
    close(loss(mixed, a, b, torch.tensor(0.25)), loss(mixed, a, b, 0.25))
    close(loss(a, a, b, 1.0), torch.zeros(4))
    close(loss(b, a, b, 0.0), torch.zeros(4))
    close(AdaptiveMixLoss("cosine", 0.0)(a, a, b, 1.0), -1.0)


def test_the_noise_is_drawn_where_none_is_given():
    x = torch.zeros(2000, 5, dtype=F64)
    value = AdaptiveMixLoss(noise_std=0.5)(x, x, x, 0.5)
    close(value, 0.25, rtol=5e-2)
    assert float(AdaptiveMixLoss(noise_std=0.0)(x, x, x, 0.5)) == 0.0
    torch.manual_seed(1)
    first = AdaptiveMixLoss()(x, x, x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(AdaptiveMixLoss()(x, x, x, 0.5), first)


def test_the_mixture_is_a_constant():
    mixed, a, b, noise = (draw(4, 2, seed=i).requires_grad_() for i in range(4))
    lam = torch.tensor(0.3, dtype=F64, requires_grad=True)
    for distance in ("mse", "cosine"):
        value = AdaptiveMixLoss(distance)(mixed, a, b, lam, noise)
        found = gradients(value, (mixed, a, b, lam, noise))
        assert found[1:] == (None,) * 4
        assert float(found[0].abs().sum()) > 1e-3
