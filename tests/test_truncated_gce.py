"""Truncated GCE: the cut, and the samples that are pruned."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import GeneralizedCrossEntropyLoss, TruncatedGCELoss
from single_rows import close, gradient, rows, value


def truncated(q, p):
    return -math.expm1(q * math.log(p)) / q if q else -math.log(p)


ks = st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.9])
qs = st.sampled_from([0.0, 1e-9, 0.3, 0.7, 1.0])


@given(rows(), qs, ks)
def test_truncated_gce_is_the_smaller_of_two(row, q, k):
    f, y = row
    loss = TruncatedGCELoss(q, k)
    gce = value(GeneralizedCrossEntropyLoss(q), f, y)
    limit = truncated(q, k) if k else math.inf if q == 0 else 1 / q
    close(value(loss, f, y), min(float(gce), limit))
    p = float(torch.softmax(f, 0)[y])
    slope = gradient(loss, f, y)
    if p < k * (1 - 1e-9):
        assert (slope == 0).all()
    elif p > k * (1 + 1e-9):
        close(slope, gradient(GeneralizedCrossEntropyLoss(q), f, y))


@given(qs, ks.filter(bool))
def test_truncated_gce_is_continuous_at_the_cut(q, k):
    edge = math.log(k / (1 - k))
    at = [
        float(value(TruncatedGCELoss(q, k), torch.tensor([edge + s, 0.0]).double(), 0))
        for s in (-1e-7, 0.0, 1e-7)
    ]
    close(at, [truncated(q, k)] * 3, rtol=1e-6)


def test_truncated_gce_without_bound_stays_unbounded():
    loss = TruncatedGCELoss(0.0, 0.0)
    close(value(loss, torch.tensor([-800.0, 0.0]).double(), 0), 800.0)
    pruned = TruncatedGCELoss(0.0, 0.0, "prune", 1)
    logits, target, index = torch.tensor([[-800.0, 0.0]]), torch.tensor([0]), torch.tensor([0])
    pruned.prune(logits, target, index)
    assert pruned(logits, target, index) == 800.0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("class_dim", [1, 2])
def test_pruning_keeps_the_decision(training, class_dim):
    loss = TruncatedGCELoss(0.7, 0.4, "prune", 50, reduction="none", class_dim=class_dim)
    loss.train(training)
    logits = 2 * torch.randn(4, 5, 5, dtype=torch.float64)
    target = torch.randint(5, (4, 5))
    target[0, :2] = -100
    index = torch.randperm(50)[:20].view(4, 5)
    gce = GeneralizedCrossEntropyLoss(0.7, reduction="none", class_dim=class_dim)
    torch.testing.assert_close(loss(logits, target, index), gce(logits, target))
    with torch.no_grad():
        loss.prune(logits, target, index)
    p = torch.softmax(logits, class_dim).movedim(class_dim, -1)
    p = p.gather(-1, target.clamp(min=0)[..., None]).squeeze(-1)
    there = target >= 0
    kept = (p > 0.4) | ~there
    assert torch.equal(loss.sample_weight[index] == 1, kept)
    assert loss.sample_weight.sum() == 50 - (~kept).sum()
    # Other logits later: what was pruned is a constant, and the rest as before.
    later = torch.randn(4, 5, 5, dtype=torch.float64, requires_grad=True)
    values = loss(later, target, index)
    expected = torch.where(kept, gce(later, target), truncated(0.7, 0.4))
    torch.testing.assert_close(values, torch.where(there, expected, 0.0))
    (slope,) = torch.autograd.grad(values.sum(), later)
    assert (slope.movedim(class_dim, -1)[~kept] == 0).all()
    assert (slope.movedim(class_dim, -1)[kept & there] != 0).any(-1).all()
    loss.reset()
    torch.testing.assert_close(loss(later, target, index), gce(later, target))


def test_pruning_again_decides_again():
    loss = TruncatedGCELoss(mode="prune", num_samples=2)
    index, target = torch.tensor([0, 1]), torch.tensor([0, 0])
    loss.prune(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), target, index)
    assert loss.sample_weight.tolist() == [0.0, 1.0]
    loss.prune(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]), target, index)
    assert loss.sample_weight.tolist() == [1.0, 0.0]


def test_a_sample_pruned_in_one_of_two_views_counts_by_half():
    loss = TruncatedGCELoss(mode="prune", num_samples=1)
    logits = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    target, index = torch.tensor([0, 0]), torch.tensor([0, 0])
    loss.prune(logits, target, index)
    assert loss.sample_weight.tolist() == [0.5]
    gce = GeneralizedCrossEntropyLoss()(logits, target)
    torch.testing.assert_close(
        loss(logits, target, index), 0.5 * gce + 0.5 * torch.tensor(truncated(0.7, 0.5))
    )


def test_pruning_is_refused_where_it_means_nothing():
    logits, target, index = torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="mode: expected 'prune', got 'clamp'"):
        TruncatedGCELoss().prune(logits, target, index)
    loss = TruncatedGCELoss(mode="prune", num_samples=2)
    with pytest.raises(TypeError, match="target: expected integer class indices, got class prob"):
        loss.prune(logits, torch.full((2, 3), 1 / 3), index)
    with pytest.raises(TypeError, match="target: expected integer class indices, got class prob"):
        loss(logits, torch.full((2, 3), 1 / 3), index)
    with pytest.raises(ValueError, match=r"index: expected dataset indices in \[0, 2\), got 2"):
        loss.prune(logits, target, index + 1)
    with pytest.raises(ValueError, match=r"target: expected class indices in \[0, 3\)"):
        loss.prune(logits, target + 5, index)


@pytest.mark.parametrize("k", [0.01, 0.5, 0.9])
def test_the_decision_is_exact(k):
    loss = TruncatedGCELoss(0.7, k, "prune", 2)
    edge = math.log(k / (1 - k))
    logits = torch.tensor([[edge - 1e-9, 0.0], [edge + 1e-9, 0.0]], dtype=torch.float64)
    loss.prune(logits, torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert loss.sample_weight.tolist() == [0.0, 1.0]
