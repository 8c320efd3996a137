"""Losses of dense retrieval against double loops, and what they promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import ADORELoss, InfoNCELoss, PairwiseRankNetLoss

F64 = torch.float64
seeds = st.integers(0, 10**6)


def close(a, b, rtol=1e-10, atol=1e-12):
    a, b = (torch.as_tensor(x, dtype=F64) for x in (a, b))
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def masks(seed, *shape):
    chosen = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=chosen) < 0.6


def softplus(x):
    return math.log1p(math.exp(x))


@given(
    seeds, st.integers(0, 4), st.integers(0, 3), st.booleans(),
    st.sampled_from([None, 0.0, 0.7]),
)  # fmt: skip
def test_ranknet_is_a_mean_over_pairs(seed, b, m, masked, alpha):
    q, p, n = draw(b, 3, seed=seed), draw(b, 3, seed=seed + 1), draw(m, 3, seed=seed + 2)
    near, far = masks(seed, b, b), masks(seed + 1, b, m)
    kinds = ([], [])
    for i in range(b):
        own = float(q[i] @ p[i])
        for j in range(b):
            if i != j and (near[i, j] or not masked):
                kinds[0].append(softplus(1.5 * (float(q[i] @ p[j]) - own)))
        for j in range(m):
            if far[i, j] or not masked:
                kinds[1].append(softplus(1.5 * (float(q[i] @ n[j]) - own)))
    pairs = kinds[0] + kinds[1]
    want = sum(pairs) / max(len(pairs), 1)
    if alpha is not None:
        means = [sum(x) / max(len(x), 1) for x in kinds]
        want = alpha * means[0] + means[1]
    loss = PairwiseRankNetLoss(1.5, alpha)
    got = loss(q, p, n, near, far.float()) if masked else loss(q, p, n)
    close(got, want)


def test_ranknet_with_one_negative_is_info_nce():
    q, p, n = draw(4, 3), draw(4, 3, seed=1), draw(4, 1, 3, seed=2)
    want = InfoNCELoss(0.5, in_batch=False, normalize=False)(q, p, n)
    values = [PairwiseRankNetLoss(2.0)(q[i : i + 1], p[i : i + 1], n[i]) for i in range(4)]
    close(sum(values) / 4, want)


def test_ranknet_of_exchanged_documents():
    q, p, n = draw(1, 3), draw(1, 3, seed=1), draw(1, 3, seed=2)
    loss = PairwiseRankNetLoss(2.0)
    close(loss(q, p, n) - loss(q, n, p), 2.0 * float((q * (n - p)).sum()))


def test_ranknet_counts_a_query_as_often_as_it_has_pairs():
    q, p = draw(3, 2), draw(3, 2, seed=1)
    near = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 0]])
    sums = PairwiseRankNetLoss(reduction="none")(q, p, in_batch_mask=near)
    assert float(sums[1]) == 0.0
    close(PairwiseRankNetLoss()(q, p, in_batch_mask=near), sums.sum() / 3)
    weight = torch.tensor([1.0, 5.0, 3.0], dtype=F64)
    got = PairwiseRankNetLoss()(q, p, in_batch_mask=near, weight=weight)
    close(got, (sums[0] + 3.0 * sums[2]) / (2 + 3))


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_ranknet_without_a_pair_is_an_attached_0(alpha):
    q = draw(1, 2).requires_grad_()
    value = PairwiseRankNetLoss(alpha=alpha)(q, draw(1, 2, seed=1))
    assert float(value.detach()) == 0.0
    (g,) = torch.autograd.grad(value, q)
    assert bool((g == 0).all())


# ADORE.


@given(seeds, st.integers(1, 6), st.sampled_from([1, 2, 4, None]), st.booleans())
def test_adore_is_what_the_formula_says(seed, k, cutoff, masked):
    scores, relevance, mask = draw(3, k, seed=seed), masks(seed, 3, k), masks(seed + 1, 3, k)
    want = []
    for row in range(3):
        total, count = 0.0, 0
        for i in range(k):
            for j in range(k):
                there = not masked or bool(mask[row, i] and mask[row, j])
                if relevance[row, i] and not relevance[row, j] and there:
                    gains = [
                        1.0 / (r + 1) if cutoff is None or r + 1 <= cutoff else 0.0 for r in (i, j)
                    ]
                    margin = float(scores[row, j] - scores[row, i])
                    total += abs(gains[0] - gains[1]) * softplus(0.7 * margin)
                    count += 1
        want.append(total / max(count, 1))
    loss = ADORELoss(cutoff, 0.7, reduction="none")
    got = loss(scores, relevance.long(), mask) if masked else loss(scores, relevance)
    close(got, torch.tensor(want, dtype=F64))


@given(seeds)
def test_the_gradient_sums_to_0_over_a_list(seed):
    scores = draw(2, 5, seed=seed).requires_grad_()
    relevance = torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 0, 0]])
    (g,) = torch.autograd.grad(ADORELoss()(scores, relevance), scores)
    close(g.sum(1), torch.zeros(2, dtype=F64))
    assert float(g.abs().max()) > 0


def test_what_is_beyond_the_cutoff_and_what_is_masked():
    scores = draw(1, 4).requires_grad_()
    relevance = torch.tensor([[0, 0, 1, 0]])
    (g,) = torch.autograd.grad(ADORELoss(cutoff=2)(scores, relevance), scores)
    assert float(g[0, 3]) == 0.0
    assert float(g[0, 0]) > 0.0
    hidden = scores.detach().clone()
    hidden[0, 1] = math.nan
    hidden.requires_grad_()
    mask = torch.tensor([[True, False, True, True]])
    value = ADORELoss()(hidden, relevance, mask)
    (g,) = torch.autograd.grad(value, hidden)
    assert bool(g.isfinite().all() and g[0, 1] == 0)
    weights = 1 - 1 / 3, 1 / 3 - 1 / 4
    margins = [float((scores[0, j] - scores[0, 2]).detach()) for j in (0, 3)]
    want = sum(w * softplus(d) for w, d in zip(weights, margins, strict=True)) / 2
    close(value, want)


def test_without_a_cut_the_weights_are_not_0():
    scores, relevance = draw(1, 3), torch.tensor([[1, 0, 0]])
    assert float(ADORELoss(None)(scores, relevance)) > 0
    close(ADORELoss(None)(scores, relevance), ADORELoss(3)(scores, relevance))


def test_a_list_without_pairs_is_0_and_counts():
    scores = draw(2, 3)
    relevance = torch.tensor([[0, 0, 0], [1, 0, 0]])
    values = ADORELoss(reduction="none")(scores, relevance)
    assert float(values[0]) == 0.0
    close(ADORELoss()(scores, relevance), values[1] / 2)
