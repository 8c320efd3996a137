"""Calibration losses and metrics against loops over samples, their seams, what they promise."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import (
    BalanceScore,
    CorrectnessAwareLoss,
    ExpectedCalibrationError,
    LinearLogits,
    MixupNDCGLoss,
    MixupRankingLoss,
)

F64 = torch.float64
INF, NAN = math.inf, math.nan
seeds = st.integers(0, 10**6)


def close(a, b, rtol=1e-12, atol=1e-14):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=rtol, atol=atol
    )


def draw(n=8, k=4, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(n, k, dtype=F64, generator=generator)
    return z, torch.randint(k, (n,), generator=generator)


def softmax(row):
    e = [math.exp(x - max(row)) for x in row]
    return [x / sum(e) for x in e]


def top(row):
    return max(range(len(row)), key=lambda k: row[k])


# Correctness-aware.


@given(seeds, st.integers(1, 9), st.booleans(), st.booleans())
def test_correctness_aware_is_what_the_formula_says(seed, n, balance, calibrated):
    z0, y = draw(n, 3, seed)
    z = z0 * torch.linspace(0.3, -0.4, n, dtype=F64).unsqueeze(1) if calibrated else z0
    gaps, right = [], []
    for row, other, label in zip(z.tolist(), z0.tolist(), y.tolist(), strict=True):
        right.append(top(other) == label)
        gaps.append((max(softmax(row)) - right[-1]) ** 2)
    a = sum(right) / n
    weights = [1 - a if r else a for r in right] if balance and 0 < a < 1 else [1.0] * n
    want = sum(w * g for w, g in zip(weights, gaps, strict=True)) / sum(weights)
    more = (z0,) if calibrated else ()
    close(CorrectnessAwareLoss(balance)(z, y, *more), want)
    values = CorrectnessAwareLoss(balance, reduction="none")(z, y, *more)
    scale = n / sum(weights)
    close(values, [scale * w * g for w, g in zip(weights, gaps, strict=True)])


def test_right_and_wrong_ones_are_one_half_each():
    z = torch.tensor([[2.0, 0.0], [1.0, 0.0], [4.0, 0.0], [0.0, 3.0]], dtype=F64)
    y = torch.tensor([0, 0, 0, 0])
    gaps = torch.tensor([softmax(row)[0] for row in z.tolist()], dtype=F64)
    right = (1 - gaps[:3]).square().mean()
    close(CorrectnessAwareLoss()(z, y), (right + (1 - gaps[3]).square()) / 2)
    close(CorrectnessAwareLoss(False)(z, y), (3 * right + (1 - gaps[3]).square()) / 4)
    # Weights are part of the denominator: a sample's weight is of its half.
    weight = torch.tensor([1.0, 0.0, 0.0, 0.0])
    close(CorrectnessAwareLoss()(z, y, weight=weight), (1 - gaps[0]).square())
    weight = torch.tensor([3.0, 0.0, 0.0, 1.0])
    want = (0.5 * (1 - gaps[0]).square() + 0.5 * (1 - gaps[3]).square()) * 1.0
    close(CorrectnessAwareLoss()(z, y, weight=weight), want)


@pytest.mark.parametrize("y", [[0, 1], [1, 0]])
def test_a_batch_all_right_or_all_wrong_has_a_value(y):
    # The published weights are all 0 there: 0/0.
    z = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=F64, requires_grad=True)
    c = torch.tensor([softmax([2.0, 0.0])[0], softmax([1.0, 0.0])[0]], dtype=F64)
    out = CorrectnessAwareLoss()(z, torch.tensor(y))
    close(out, (c - (1.0 if y == [0, 1] else 0.0)).square().mean())
    (g,) = torch.autograd.grad(out, z)
    assert (g != 0).all()


@given(seeds)
def test_correctness_aware_gradient(seed):
    z, y = draw(1, 4, seed)
    z.requires_grad_()
    (g,) = torch.autograd.grad(CorrectnessAwareLoss()(z, y), z)
    p = torch.softmax(z.detach(), 1)[0]
    k = int(p.argmax())
    c = float(k == int(y))
    unit = torch.zeros(4, dtype=F64)
    unit[k] = 1.0
    close(g[0], 2 * (p[k] - c) * p[k] * (unit - p), rtol=1e-9)


@given(seeds)
def test_a_temperature_goes_up_for_the_wrong_and_down_for_the_right(seed):
    z, y = draw(6, 4, seed)
    t = torch.ones(6, dtype=F64, requires_grad=True)
    loss = CorrectnessAwareLoss(False, reduction="sum")(z / t.unsqueeze(1), y)
    (g,) = torch.autograd.grad(loss, t)
    right = z.argmax(1) == y
    assert ((g > 0) == right).all()
    assert (g != 0).all()
    # Cross-entropy raises the confidence of a narrow mistake: z_y is above the mean logit.
    narrow, label = torch.tensor([[1.0, 0.9, -0.5]], dtype=F64), torch.tensor([1])
    s = torch.ones((), dtype=F64, requires_grad=True)
    entropy = torch.nn.functional.cross_entropy(narrow / s, label)
    assert torch.autograd.grad(entropy, s)[0] > 0
    loss = CorrectnessAwareLoss()(narrow / s, label)
    assert torch.autograd.grad(loss, s)[0] < 0


def test_which_wrong_class_it_is_does_not_matter():
    z, _ = draw(1, 5, 3)
    k = int(z.argmax())
    values = {float(CorrectnessAwareLoss()(z, torch.tensor([j]))) for j in range(5) if j != k}
    assert len(values) == 1


def test_confidence_near_1_keeps_its_digits():
    z = torch.tensor([[20.0, 0.0, 0.0]], dtype=torch.float32, requires_grad=True)
    out = CorrectnessAwareLoss()(z, torch.tensor([0]))
    exact = mpmath.mpf(2) / (mpmath.exp(20) + 2)
    assert float(out.detach()) == pytest.approx(float(exact**2), rel=1e-5, abs=0)
    (g,) = torch.autograd.grad(out, z)
    assert float(g[0, 0]) == pytest.approx(float(-2 * exact**2), rel=1e-5, abs=0)


def test_correctness_carries_no_gradient_to_the_uncalibrated():
    z, y = draw(4, 3)
    other = (2 * z).requires_grad_()
    z = z.clone().requires_grad_()
    CorrectnessAwareLoss()(z, y, other).backward()
    assert other.grad is None


# Mixup ranking.


def mixups(n=6, k=4, seed=0, mixes=()):
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, k, dtype=F64, generator=generator)
    mixed = 2 * torch.randn(*mixes, n, k, dtype=F64, generator=generator)
    share = torch.rand(*mixes, n, 1, dtype=F64, generator=generator)
    share[..., ::3, :] = 1.0
    first, second = torch.randint(k, (2, *mixes, n), generator=generator)
    hot = torch.nn.functional.one_hot
    return z, mixed, share * hot(first, k) + (1 - share) * hot(second, k)


@given(seeds, st.integers(0, 7), st.sampled_from([0.0, 0.4, 2.0]), st.sampled_from("lp"))
def test_ranking_is_what_the_formula_says(seed, n, margin, kind):
    z, mixed, q = mixups(n, seed=seed)
    want = []
    for a, b, t in zip(z.tolist(), mixed.tolist(), q.tolist(), strict=True):
        f = max if kind == "l" else lambda row: max(softmax(row))
        hinge = max(0.0, f(b) - f(a) + margin)
        want.append(0.0 if max(t) >= 1 - 1e-6 else hinge)
    loss = MixupRankingLoss(margin, {"l": "logit", "p": "prob"}[kind], reduction="none")
    close(loss(z, mixed, q), torch.tensor(want, dtype=F64))
    loss.reduction = "mean"
    close(loss(z, mixed, q), sum(want) / max(n, 1))


def test_ranking_meets_every_sample_with_its_own_mask():
    # The released code broadcasts (N,) times (N, 1): mean(mask) * mean(hinge) = 0.5 * 1.5.
    z = torch.tensor([[3.0, 0.0], [3.0, 0.0]], dtype=F64)
    mixed = torch.tensor([[3.0, 0.0], [2.0, 0.0]], dtype=F64)
    q = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=F64)
    loss = MixupRankingLoss()
    hinge = torch.relu(mixed.amax(1) - z.amax(1) + 2.0).unsqueeze(1)
    mask = (q.amax(1) != 1).double()
    close((mask * hinge).mean(), 0.75)
    close(loss(z, mixed, q), 1.0)
    close(loss(z[:1], mixed[:1], q[:1]), 2.0)


@pytest.mark.parametrize(("off", "counts"), [(0.0, False), (5e-7, False), (2e-6, True)])
def test_ranking_takes_a_target_next_to_1_for_one_class(off, counts):
    q = torch.tensor([[1.0 - off, off]], dtype=F64)
    z = torch.zeros(1, 2, dtype=F64)
    assert (MixupRankingLoss()(z, z, q) > 0) == counts


@pytest.mark.parametrize("kind", ["logit", "prob"])
def test_ranking_is_0_from_the_margin_on(kind):
    z, mixed, q = mixups(1)[0], torch.zeros(1, 4, dtype=F64), torch.full((1, 4), 0.25)
    lead = float(z.amax() if kind == "logit" else z.softmax(1).amax() - 0.25)
    for margin, zero in ((lead - 1e-9, True), (lead + 1e-9, False)):
        assert (MixupRankingLoss(margin, kind)(z, mixed, q.double()) == 0) == zero


def test_ranking_by_probability_is_always_active_from_margin_1_on():
    z, mixed, q = mixups(50, 5, 1)
    q = q * 0.9
    for margin in (1.0, 2.0):
        p, r = z.softmax(1).amax(1), mixed.softmax(1).amax(1)
        close(MixupRankingLoss(margin, "prob")(z, mixed, q), (r - p + margin).mean())


def test_ranking_and_shifts():
    z, mixed, q = mixups(6)
    shift, other = (torch.randn(6, 1, dtype=F64) for _ in range(2))
    loss = MixupRankingLoss()
    close(loss(z + shift, mixed + shift, q), loss(z, mixed, q))
    assert abs(float(loss(z + 1, mixed, q) - loss(z, mixed, q))) > 0.1
    loss = MixupRankingLoss(confidence="prob")
    close(loss(z + shift, mixed + other, q), loss(z, mixed, q))


def test_ranking_tells_two_high_confidences_apart():
    z = torch.tensor([[40.0, 0.0]])
    mixed = torch.tensor([[39.0, 0.0]])
    q = torch.tensor([[0.5, 0.5]])
    loss = MixupRankingLoss(0.0, "prob")
    # The raw one leads; exchanged the difference of 1 - p is what is left.
    assert loss(z, mixed, q) == 0.0
    exact = 1 / (mpmath.exp(39) + 1) - 1 / (mpmath.exp(40) + 1)
    assert float(loss(mixed, z, q)) == pytest.approx(float(exact), rel=1e-5, abs=0)


# Mixup NDCG.


def ndcg(z, mixed, q):
    """One sample: raw row, Q rows, Q targets."""
    pairs = [(max(t), max(softmax(row))) for row, t in zip(mixed, q, strict=True)]
    pairs.sort(key=lambda x: -x[0])  # stable
    pairs = [(1.0, max(softmax(z))), *pairs]
    dcg = sum(c / math.log2(r + 2) for r, (_, c) in enumerate(pairs))
    idcg = sum(lam / math.log2(r + 2) for r, (lam, _) in enumerate(pairs))
    return 1 - min(dcg, idcg) / max(dcg, idcg)


@given(seeds, st.integers(0, 5), st.integers(1, 4))
def test_ndcg_is_what_the_formula_says(seed, n, count):
    z, mixed, q = mixups(n, 3, seed, (count,))
    want = [ndcg(z[i].tolist(), mixed[:, i].tolist(), q[:, i].tolist()) for i in range(n)]
    values = MixupNDCGLoss(reduction="none")(z, mixed, q)
    close(values, torch.tensor(want, dtype=F64))
    assert ((values >= 0) & (values < 1)).all()


@given(seeds)
def test_ndcg_does_not_know_the_order_of_the_mixups(seed):
    z, mixed, q = mixups(4, 3, seed, (4,))
    q[..., 0::3] *= 0.999 + 1e-3 * torch.rand(4, 4, 1, dtype=F64)  # no two alike
    order = torch.randperm(4)
    q[:, 0] = torch.rand(4, 3, dtype=F64)
    loss = MixupNDCGLoss(reduction="none")
    few = [i for i in range(4) if len(set(q[:, i].amax(-1).tolist())) == 4]
    close(loss(z, mixed[order], q[order])[few], loss(z, mixed, q)[few])
    assert 0 in few


def test_ndcg_at_equal_coefficients_keeps_the_order():
    z = torch.tensor([[2.0, 0.0]], dtype=F64)
    mixed = torch.tensor([[[3.0, 0.0]], [[0.5, 0.0]]], dtype=F64)
    q = torch.tensor([[[0.6, 0.4]], [[0.4, 0.6]]], dtype=F64)
    for a, b in ((mixed, q), (mixed.flip(0), q.flip(0))):
        want = ndcg(z[0].tolist(), a[:, 0].tolist(), b[:, 0].tolist())
        close(MixupNDCGLoss()(z, a, b), want)
    # A mixup of one class comes after the raw sample.
    q[:] = torch.tensor([1.0, 0.0])
    close(MixupNDCGLoss()(z, mixed, q), ndcg(z[0].tolist(), mixed[:, 0].tolist(), [[1.0], [1.0]]))


def of_confidence(c):
    return [math.log(c / (1 - c)), 0.0]


def test_ndcg_is_0_where_confidences_are_the_coefficients_and_elsewhere_too():
    q = torch.tensor([[[0.6, 0.4]], [[0.2, 0.8]]], dtype=F64)
    mixed = torch.tensor([[of_confidence(0.6)], [of_confidence(0.8)]], dtype=F64)
    z = torch.tensor([[60.0, 0.0]], dtype=F64)
    close(MixupNDCGLoss()(z, mixed, q), 0.0, atol=1e-15)
    # The confidences of the two are exchanged, but DCG is the same.
    ideal = 0.8 / math.log2(3) + 0.6 / 2
    second = 0.9
    first = (ideal - second / 2) * math.log2(3)
    assert first < second
    mixed = torch.tensor([[of_confidence(second)], [of_confidence(first)]], dtype=F64)
    close(MixupNDCGLoss()(z, mixed, q), 0.0, atol=1e-15)


@pytest.mark.parametrize("k", [2, 10])
def test_ndcg_of_no_confidence(k):
    z, mixed = torch.zeros(1, k, dtype=F64), torch.zeros(3, 1, k, dtype=F64)
    q = torch.zeros(3, 1, k, dtype=F64)
    q[..., 0] = 1.0
    close(MixupNDCGLoss()(z, mixed, q), 1 - 1 / k)
    far = torch.zeros(1, k, dtype=F64)
    far[:, 0] = 50.0
    close(MixupNDCGLoss()(far, far.expand(3, 1, k), q), 0.0, atol=1e-15)


@pytest.mark.parametrize("count", [3, 5])  # as many mixups as samples, too
def test_ndcg_leaves_out_samples_of_weight_0(count):
    z, mixed, q = mixups(5, 3, 7, (count,))
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0], dtype=F64)
    keep = weight != 0
    want = MixupNDCGLoss()(z[keep], mixed[:, keep], q[:, keep], weight=weight[keep])
    for x in (z, mixed.transpose(0, 1), q.transpose(0, 1)):
        x[~keep] = NAN
    inputs = [z.clone().requires_grad_(), mixed.clone().requires_grad_(), q]
    out = MixupNDCGLoss()(*inputs, weight=weight)
    close(out, want)
    for x, g in zip(inputs, torch.autograd.grad(out, inputs[:2]), strict=False):
        g = g if x.dim() == 2 else g.transpose(0, 1)
        assert g.isfinite().all()
        assert (g[~keep] == 0).all()
        assert (g[keep] != 0).any()
    parts = [MixupNDCGLoss()(z[s], mixed[:, s], q[:, s], weight=weight[s], normalizer=3.5)
             for s in (slice(0, 2), slice(2, 5))]  # fmt: skip
    close(sum(parts), want)


def test_ndcg_refuses_a_weight_of_another_shape():
    z, mixed, q = mixups(5, 3, 7, (2,))
    for shape in ((2,), (2, 5), (5, 1), ()):
        with pytest.raises(ValueError, match="weight: expected shape"):
            MixupNDCGLoss()(z, mixed, q, weight=torch.zeros(shape))


# Metrics.


def scored(rows, labels):
    """Confidence and correctness of rows of probabilities."""
    return [(max(p), top(p) == y) for p, y in zip(rows, labels, strict=True)]


def ece(pairs, bins):
    total = 0.0
    for b in range(bins):
        inside = [
            right - c for c, right in pairs
            if (c > b / bins or b == 0) and c <= (b + 1) / bins
        ]  # fmt: skip
        total += abs(sum(inside)) / len(pairs)
    return total


@given(seeds, st.integers(1, 30), st.sampled_from([1, 2, 10, 15]))
def test_ece_and_balance_are_what_the_formulas_say(seed, n, bins):
    z, y = draw(n, 3, seed)
    pairs = scored([softmax(row) for row in z.tolist()], y.tolist())
    want = ece(pairs, bins)
    metric = ExpectedCalibrationError(bins)
    close(metric(z, y), want)
    close(ExpectedCalibrationError(bins, probabilities=True)(z.softmax(1), y), want)
    scores = torch.tensor([right - c for c, right in pairs], dtype=F64)
    close(BalanceScore()(z, y), scores)
    close(BalanceScore(probabilities=True)(z.softmax(1), y), scores)
    close(BalanceScore("mean")(z, y), scores.mean())
    assert metric(z, y) >= abs(scores.mean()) - 1e-12
    close(ExpectedCalibrationError(1)(z, y), abs(scores.mean()))


def test_ece_of_a_bin_that_ends_where_a_confidence_is():
    # 0.5 and 0.75 lie in the lower of two bins, as 4 bins end exactly there.
    p = torch.tensor([0.5, 0.75, 0.75 + 1e-9, 1.0], dtype=F64)
    p = torch.stack((p, 1 - p), 1)
    y = torch.tensor([0, 1, 0, 0])
    metric = ExpectedCalibrationError(4, probabilities=True)
    gaps = [0.5, -0.75, 0.25, 0.0]
    close(metric(p, y), (abs(gaps[0]) + abs(gaps[1]) + abs(gaps[2])) / 4, rtol=1e-8)
    close(metric(p[:3], y[:3]), (0.5 + 0.75 + 0.25) / 3, rtol=1e-8)
    # In one bin right and wrong ones cancel.
    close(ExpectedCalibrationError(1, True)(p, y), 0.0, atol=1e-8)


@given(seeds, st.integers(1, 20))
def test_two_classes_with_one_number(seed, n):
    z, y = draw(n, 1, seed)
    z, y = z.squeeze(1), torch.randint(2, (n,), generator=torch.Generator().manual_seed(seed))
    both = torch.stack((torch.zeros_like(z), z), 1)
    for metric in (ExpectedCalibrationError(7), BalanceScore()):
        close(metric(z, y), metric(both, y))
        metric.probabilities = True
        close(metric(z.sigmoid(), y), metric(both.softmax(1), y))


def test_balance_of_two_classes_case_by_case():
    p, y = torch.tensor([0.9, 0.2, 0.9, 0.2, 0.5, 0.5]), torch.tensor([1, 0, 0, 1, 1, 0])
    want = [1 - 0.9, 0.2, -0.9, 0.2 - 1, 0.5, -0.5]
    torch.testing.assert_close(BalanceScore(probabilities=True)(p, y), torch.tensor(want))


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_expected_balance_is_the_error_of_the_probability(q, p):
    score = BalanceScore(probabilities=True)
    one, zero = (score(torch.tensor([p], dtype=F64), torch.tensor([y])) for y in (1, 0))
    expected = q * one + (1 - q) * zero
    close(expected, [q - p if p >= 0.5 else p - q])


def test_balance_is_not_a_proper_score():
    # Half the answers too sure, half too unsure: mean 0, as for the calibrated, yet ECE sees it.
    p = torch.tensor([0.9] * 10 + [0.5] * 10)
    y = torch.tensor([1] * 7 + [0] * 3 + [1] * 7 + [0] * 3)
    assert abs(float(BalanceScore("mean", True)(p, y))) < 1e-6
    assert float(ExpectedCalibrationError(5, True)(p, y)) == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("metric", [ExpectedCalibrationError(5), BalanceScore("mean")])
def test_entries_that_are_ignored_are_not_there(metric):
    z, y = draw(12, 3)
    want = metric(z, y)
    more, labels = torch.cat((z, torch.full((4, 3), NAN))), torch.cat((y, torch.full((4,), -100)))
    order = torch.randperm(16)
    more = more[order].requires_grad_()
    out = metric(more, labels[order])
    close(out, want)
    (g,) = torch.autograd.grad(out, more)
    assert g.isfinite().all()
    assert (g[labels[order] == -100] == 0).all()
    metric = type(metric)(**{"ignore_index": 1, "reduction": "mean"} if isinstance(
        metric, BalanceScore) else {"n_bins": 5, "ignore_index": 1})  # fmt: skip
    close(metric(z, y), metric(z[y != 1], y[y != 1]))
    nothing = metric(z.requires_grad_(), torch.ones_like(y))
    assert nothing == 0.0
    assert nothing.requires_grad


@pytest.mark.parametrize("axis", [1, 2, -1, 0])
@pytest.mark.parametrize("probabilities", [False, True])
def test_metrics_on_any_class_axis(axis, probabilities):
    x = torch.randn(3, 4, 5, dtype=F64)
    x = x.softmax(axis) if probabilities else x
    rows = x.movedim(axis, -1)
    y = torch.randint(rows.shape[-1], rows.shape[:-1])
    flat, labels = rows.reshape(-1, rows.shape[-1]), y.reshape(-1)
    options = {"probabilities": probabilities, "class_dim": axis}
    close(ExpectedCalibrationError(**options)(x, y),
          ExpectedCalibrationError(probabilities=probabilities)(flat, labels))  # fmt: skip
    got = BalanceScore(**options)(x, y)
    close(got, BalanceScore(probabilities=probabilities)(flat, labels).view(y.shape))
    close(got[1], BalanceScore(**options | {"class_dim": 1})(rows[1], y[1]))


def test_metric_of_one_row():
    z, y = draw(1, 4)
    close(BalanceScore()(z[0], y[0]), BalanceScore()(z, y)[0])
    close(ExpectedCalibrationError()(z[0], y[0]), ExpectedCalibrationError()(z, y))


def test_the_gradient_of_the_metrics_is_that_of_the_confidence():
    z, y = draw(6, 3, 5)
    z.requires_grad_()
    c = z.softmax(1).amax(1)
    weight = torch.randn(6, dtype=F64)
    (got,) = torch.autograd.grad((weight * BalanceScore()(z, y)).sum(), z, retain_graph=True)
    (want,) = torch.autograd.grad(-(weight * c).sum(), z, retain_graph=True)
    close(got, want, rtol=1e-9)
    (got,) = torch.autograd.grad(ExpectedCalibrationError(1)(z, y), z)
    right = (z.argmax(1) == y).double()
    (want,) = torch.autograd.grad((right - c).mean().abs(), z)
    close(got, want, rtol=1e-9)


def test_metrics_in_half_precision_and_in_numpy():
    z, y = draw(3000, 10, 1)
    for dtype in (torch.float16, torch.bfloat16):
        half = z.to(dtype)
        for metric in (ExpectedCalibrationError(), BalanceScore("mean")):
            out = metric(half, y)
            assert out.dtype is torch.float32
            close(out, metric(half.double(), y), rtol=1e-4, atol=1e-6)
    # An independent way to bin.
    p = z.softmax(1).numpy()
    c, right = p.max(1), p.argmax(1) == y.numpy()
    index = np.digitize(c, np.linspace(0, 1, 16), right=True)
    want = sum(abs((right - c)[index == b].sum()) for b in range(1, 16)) / len(c)
    close(ExpectedCalibrationError()(z, y), want)


def test_metrics_need_no_values_and_compile_as_one_graph(fresh_compiler):
    z, y = draw(9, 3)
    for metric in (ExpectedCalibrationError(), BalanceScore()):
        compiled = torch.compile(metric, fullgraph=True, backend="aot_eager")
        close(compiled(z, y), metric(z, y))


# What is refused.

Z, Y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
P = torch.full((4, 3), 1 / 3)


@pytest.mark.parametrize("metric", [ExpectedCalibrationError, BalanceScore])
@pytest.mark.parametrize(
    ("options", "inputs", "error", "says"),
    [
        ({"probabilities": None}, None, ValueError, r"probabilities: expected one of \(True"),
        ({"ignore_index": 1.0}, None, TypeError, "ignore_index: expected an int, got float"),
        ({"class_dim": "1"}, None, TypeError, "class_dim: expected an int, got str"),
        ({}, (Z.long(), Y), TypeError, "logits: expected floating point, got torch.int64"),
        ({}, (Z.tolist(), Y), TypeError, "logits: expected a tensor, got list"),
        ({}, (LinearLogits(Z, Z), Y), TypeError, "logits: expected a tensor, got LinearLogits"),
        ({}, (Z, Y.tolist()), TypeError, "target: expected a tensor, got list"),
        ({}, (Z, Y.float()), TypeError, "target: expected integer class indices, got torch.float"),
        ({}, (Z, P), TypeError, "target: expected integer class indices, got torch.float32"),
        ({}, (Z, Y[:3]), ValueError, r"target: expected .*\(4,\), got \(3,\)"),
        ({}, (Z, Y + 1), ValueError, r"target: expected .*\[0, 3\) or .*-100, got 3"),
        ({}, (Z, Y - 1), ValueError, r"target: expected .*\[0, 3\) or .*-100, got -1"),
        ({}, (Z[:, 0], Y), ValueError, r"target: expected .*\[0, 2\) or .*-100, got 2"),
        ({}, (Z, Y.to("meta")), ValueError, "target: expected device cpu, got meta"),
        ({}, (Z[:, :1], Y), ValueError, "logits: expected at least 2 classes, got 1"),
        ({"class_dim": 2}, (Z, Y), ValueError, r"logits: expected an axis 2 \(class_dim\), got"),
        ({"probabilities": True}, (P + 0.1, Y), ValueError, "logits: expected probabil.*sum 1.3"),
        ({"probabilities": True}, (P * NAN, Y), ValueError, "logits: expected probabil.*nan"),
        ({"probabilities": True}, (Z[:, 0] - 1, Y // 2), ValueError, "logits: .*minimum -1"),
    ],
)
def test_metrics_refuse(metric, options, inputs, error, says):
    if inputs is None:
        with pytest.raises(error, match=f"^{says}"):
            metric(**options)
    else:
        module = metric(**options)
        with pytest.raises(error, match=f"^{says}"):
            module(*inputs)


def test_metrics_refuse_hyper_parameters_of_their_own():
    with pytest.raises(ValueError, match="n_bins: expected at least 1, got 0"):
        ExpectedCalibrationError(0)
    with pytest.raises(ValueError, match=r"reduction: expected one of .*'none', 'mean'.*'sum'"):
        BalanceScore("sum")
