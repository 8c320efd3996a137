"""Losses of few-shot episodes against their definitions, and what they promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group

from lossary import ICNNLoss, ProtoTripletLoss, class_means

F64 = torch.float64
seeds = st.integers(0, 10**6)


def close(a, b, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=rtol, atol=atol
    )


def draw(n, classes=3, seed=0, width=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, dtype=F64, generator=generator)
    return x, torch.randint(classes, (n,), generator=generator)


def moved(x):
    """The same points, turned and moved."""
    return x @ torch.as_tensor(ortho_group.rvs(x.shape[1], random_state=0)) + 3.0


# Means of classes.


def test_class_means():
    x, y = draw(9, seed=1)
    y = 10 - 3 * y
    means, classes = class_means(x.requires_grad_(), y)
    assert classes.tolist() == sorted(set(y.tolist()))
    for mean, c in zip(means, classes, strict=True):
        close(mean.detach(), x.detach()[y == c].mean(0))
    (gradient,) = torch.autograd.grad(means.sum(), x)
    counts = torch.tensor([int((y == c).sum()) for c in y], dtype=F64)
    close(gradient, (1 / counts).unsqueeze(1).expand(9, 3))
    assert class_means(x.half(), y)[0].dtype is torch.float32
    none, classes = class_means(x[:0], y[:0])
    assert none.shape == (0, 3)
    assert not len(classes)


def test_class_means_in_half_precision_do_not_overflow():
    x = torch.full((100, 1), 3e4).half()
    close(class_means(x, torch.zeros(100).long())[0].double(), [[3e4]], rtol=1e-3)


def test_class_means_refuse():
    with pytest.raises(ValueError, match=r"embeddings: expected shape \(N, D\).*got \(3,\)"):
        class_means(torch.ones(3), torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"labels: expected one per embedding.*got \(2,\)"):
        class_means(torch.ones(3, 2), torch.zeros(2).long())
    with pytest.raises(TypeError, match=r"labels: expected integers, got torch\.float32"):
        class_means(torch.ones(3, 2), torch.zeros(3))


# Prototype triplets.


def proto_triplet(q, y, p, of, margin, eps):
    out = []
    for i in range(len(q)):
        d = [math.sqrt(float((q[i] - r).square().sum()) + eps) for r in p]
        own = of.index(int(y[i]))
        out.append(max(0.0, d[own] - min(d[:own] + d[own + 1 :]) + margin))
    return torch.tensor(out, dtype=F64)


@given(seeds, st.integers(0, 5), st.sampled_from([(0.5, 1e-6), (2.0, 0.3)]))
def test_prototype_triplets_are_what_the_formula_says(seed, n, arguments):
    q, y = draw(n, seed=seed)
    p, _ = draw(3, seed=seed + 1)
    loss = ProtoTripletLoss(*arguments, reduction="none")
    close(loss(q, y, p), proto_triplet(q, y, p, [0, 1, 2], *arguments))
    names = torch.tensor([7, -2, 4])
    close(
        loss(q, names[y], p[[2, 0, 1]], names[[2, 0, 1]]),
        proto_triplet(q, y, p, [0, 1, 2], *arguments),
    )


def test_prototype_triplets_do_not_know_where_they_are():
    q, y = draw(6)
    p, _ = draw(3, seed=1)
    both = moved(torch.cat((q, p)))
    close(ProtoTripletLoss()(both[:6], y, both[6:]), ProtoTripletLoss()(q, y, p))
    assert abs(float(ProtoTripletLoss()(3 * q, y, 3 * p) - ProtoTripletLoss()(q, y, p))) > 0.1


@given(seeds)
def test_prototype_triplets_are_bounded(seed):
    q, y = draw(6, seed=seed)
    p, _ = draw(3, seed=seed + 1)
    values = ProtoTripletLoss(reduction="none")(5 * q, y, p)
    assert bool((values >= 0).all())
    assert bool((values <= 0.5 + torch.cdist(p, p).amax(1)[y] + 1e-5).all())


def test_a_query_on_its_prototype_has_a_gradient_that_is_finite():
    q = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    p = torch.tensor([[1.0, 2.0], [1.0, 2.0]], requires_grad=True)
    value = ProtoTripletLoss()(q, torch.tensor([0, 1]), p)
    close(value.detach().double(), 0.5, rtol=1e-6)
    for g in torch.autograd.grad(value, (q, p)):
        assert bool(g.isfinite().all())


def test_a_prototype_triplet_in_float32_keeps_the_digits_of_small_distances():
    # Far from the origin, where |q|^2 - 2 q p + |p|^2 has none left.
    q, p = torch.full((1, 2), 512.0), torch.full((2, 2), 512.0)
    p[0, 0] += 2**-10
    p[1, 1] -= 2**-9
    value = ProtoTripletLoss(1.0)(q, torch.tensor([0]), p)
    want = math.sqrt(2**-20 + 1e-6) - math.sqrt(2**-18 + 1e-6) + 1.0
    close(value.double(), want, rtol=1e-6)


def test_queries_of_no_weight_are_absent_and_prototypes_stay():
    q, y = draw(3)
    p, _ = draw(3, seed=1)
    weight = torch.tensor([1.0, 0.0, 2.0], dtype=F64)
    values = ProtoTripletLoss(reduction="none")(q, y, p)
    spoiled = q.clone()
    spoiled[1] = math.inf
    got = ProtoTripletLoss()(spoiled, y, p, weight=weight)
    close(got, (values[0] + 2 * values[2]) / 3)


def test_micro_batches_of_queries_add_up():
    q, y = draw(6)
    p = draw(3, seed=1)[0].requires_grad_()
    loss = ProtoTripletLoss()
    parts = [loss(q[at], y[at], p, normalizer=6.0) for at in (slice(0, 2), slice(2, 6))]
    close(sum(parts).detach(), loss(q, y, p).detach())
    close(torch.autograd.grad(sum(parts), p)[0], torch.autograd.grad(loss(q, y, p), p)[0])


# ICNN.


def icnn(x, y, k, neighbours, eps=1e-7, score_eps=1e-12):
    n = len(x)
    few = k + 2 >= n
    k = n - 2 if few else k
    j_most = neighbours or k + 1
    d = [[math.sqrt(float((a - b).square().sum()) + 1e-6) for b in x] for a in x]
    same_sum = diff_sum = with_same = with_diff = counted = 0.0
    others = {}
    for i in range(n):
        near = sorted((j for j in range(n) if j != i), key=lambda j: d[i][j])[:j_most]
        nu = min((d[i][j] for j in near if y[j] != y[i]), default=math.inf)
        ratio = [d[i][j] / (nu + eps) for j in near[:k]]
        top = max(1.0, *ratio)
        same = [bool(y[j] == y[i]) for j in near[:k]]
        c = sum(same)
        counted += c / k
        same_sum += sum(r / top for r, s in zip(ratio, same, strict=True) if s) / (c + eps)
        with_same += c > 0
        with_diff += c < k
        others[i] = [d[i][j] for j, s in zip(near[:k], same, strict=True) if not s]
    largest = max((v for row in others.values() for v in row), default=None)
    if largest is None:
        different = 1.0
    else:
        for row in others.values():
            diff_sum += sum(v / (largest + eps) for v in row) / (len(row) + eps)
        different = diff_sum / (with_diff + eps)
    share = 1.0 if few else counted / n
    score = ((1 - same_sum / (with_same + eps) + different) / 2 + share) / 2
    return -math.log(max(score, score_eps))


@given(seeds, st.integers(3, 9), st.integers(1, 5), st.booleans(), st.integers(1, 3))
def test_icnn_is_what_the_definition_says(seed, n, k, wide, classes):
    x, y = draw(n, classes=classes, seed=seed)
    neighbours = n - 1 if wide and n - 1 >= k else None
    close(ICNNLoss(k, neighbours)(x, y), icnn(x, y, k, neighbours))
    close(ICNNLoss(k, neighbours, 0.1, 0.9)(x, y), icnn(x, y, k, neighbours, 0.1, 0.9))


@given(seeds)
def test_icnn_is_a_score_of_the_figure(seed):
    x, y = draw(9, seed=seed)
    value = ICNNLoss(3)(x, y)
    assert float(value) >= -1e-6
    close(ICNNLoss(3)(moved(x), y), value, rtol=1e-8)
    order = torch.randperm(9)
    close(ICNNLoss(3)(x[order], y[order]), value)
    close(ICNNLoss(3)(x, 7 - 3 * y), value)
    close(ICNNLoss(3)(100 * x, y), value, rtol=1e-3, atol=1e-4)


def test_icnn_of_tight_classes_far_apart_is_near_nothing():
    x, y = draw(12, seed=2)
    y = torch.arange(12) // 4
    x = 0.01 * x + torch.eye(3, dtype=F64)[y] * 20.0
    assert 0.0 < float(ICNNLoss(3)(x, y)) < 0.02
    assert float(ICNNLoss(3)(x, torch.arange(12) % 3)) > 0.5


def test_icnn_of_one_class_is_nothing():
    x, _ = draw(9)
    assert abs(float(ICNNLoss(3)(x, torch.zeros(9).long()))) < 1e-7


def test_icnn_of_rows_that_coincide():
    # Row 0 and row 3 coincide, in two classes: each is the other's nearest, not its own.
    x, _ = draw(6, seed=5)
    x[3] = x[0]
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    x.requires_grad_()
    value = ICNNLoss(2)(x, y)
    close(value.detach(), icnn(x.detach(), y, 2, None))
    value.backward()
    assert bool(x.grad.isfinite().all())
    same = torch.ones(6, 2, requires_grad=True)
    ICNNLoss(2)(same, y).backward()
    assert bool(same.grad.isfinite().all())


def test_icnn_goes_downhill():
    x, y = draw(9, seed=3)
    x.requires_grad_()
    loss = ICNNLoss(2)
    before = loss(x, y)
    (gradient,) = torch.autograd.grad(before, x)
    after = loss(x.detach() - 1e-6 * gradient, y)
    close((before - after) / 1e-6, gradient.square().sum(), rtol=1e-3)


def test_icnn_of_no_rows_is_attached():
    x = torch.empty(0, 3, requires_grad=True)
    value = ICNNLoss()(x, torch.empty(0).long())
    value.backward()
    assert value == 0.0
