"""TCM and OPIS against double loops, at their seams, and what they promise."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group

from lossary import OPIS, TCMLoss

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


def at_angles(*degrees):
    angle = torch.tensor(degrees, dtype=F64).deg2rad()
    return torch.stack((angle.cos(), angle.sin()), 1)


def cosines(x, y):
    """The cosines of positive and of negative pairs, ordered pairs, with their anchors."""
    e = x / x.norm(dim=1, keepdim=True)
    pairs = {True: [], False: []}
    for i, j in itertools.permutations(range(len(x)), 2):
        pairs[bool(y[i] == y[j])].append((i, float(e[i] @ e[j])))
    return pairs[True], pairs[False]


# TCM.


@given(seeds, st.integers(1, 8), st.sampled_from([(0.9, 0.5), (0.3, -0.2), (-0.5, 0.8)]))
def test_tcm_is_what_the_formula_says(seed, n, margins):
    x, y = draw(n, seed=seed)
    above, below = margins
    near, far = cosines(x, y)
    hard = [(i, above - s) for i, s in near if s <= above]
    close_by = [(i, s - below) for i, s in far if s >= below]
    want = torch.zeros(n, dtype=F64)
    for factor, excess in ((2.0, hard), (0.5, close_by)):
        for i, e in excess:
            want[i] += n * factor * e / len(excess)
    got = TCMLoss(above, below, 2.0, 0.5, reduction="none")(x, y)
    close(got, want)
    close(TCMLoss(above, below, 2.0, 0.5)(x, y), want.mean())


@given(seeds)
def test_tcm_with_all_pairs_hard_is_two_means(seed):
    x, y = draw(9, seed=seed)
    near, far = (
        sum(s for _, s in pairs) / len(pairs) if pairs else None for pairs in cosines(x, y)
    )
    want = (0.0 if near is None else 2.0 * (1 - near)) + (0.0 if far is None else 1 + far)
    close(TCMLoss(1.0, -1.0, lambda_pos=2.0)(x, y), want)


@given(seeds, st.integers(2, 8))
def test_tcm_is_bounded(seed, n):
    x, y = draw(n, classes=2, seed=seed)
    value = float(TCMLoss()(x, y))
    assert 0.0 <= value <= 1.9 + 0.5


def test_tcm_reaches_its_bounds():
    # Positive pairs are opposite; of the negative ones half are equal, the rest easy.
    x = at_angles(0, 180, 0, 180)
    close(TCMLoss()(x, torch.tensor([0, 0, 1, 1])), 1.9 + 0.5)
    assert TCMLoss()(at_angles(0, 0, 90, 90), torch.tensor([0, 0, 1, 1])) == 0.0


def test_tcm_counts_a_pair_at_its_margin():
    # 90 degrees is a cosine of 0, in these numbers exactly.
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    same = torch.zeros(3, dtype=torch.long)
    # Pairs at cosines 0, 0, -1: with the margin at 0 all three are hard, just below it only one.
    close(TCMLoss(0.0)(x, same), (0.0 + 0.0 + 1.0) / 3)
    close(TCMLoss(-1e-9)(x, same), 1.0, rtol=1e-8)
    different = torch.arange(3)
    close(TCMLoss(margin_neg=0.0)(x, different), 0.0)
    close(TCMLoss(margin_neg=-1.0)(x, different), (1.0 + 1.0 + 0.0) / 3)
    close(TCMLoss(margin_neg=-1 + 1e-9)(x, different), 1.0, rtol=1e-8)


def test_tcm_jumps_where_a_pair_becomes_hard():
    y = torch.tensor([0, 0, 0])
    before = TCMLoss(0.5)(at_angles(0, 90, 59.999), y)  # cosines 0, 0.50002, 0.866
    after = TCMLoss(0.5)(at_angles(0, 90, 60.001), y)
    close(before, 0.5)
    close(after, 0.25, atol=1e-4)


def test_tcm_gradient_in_a_cosine():
    # One pair of each kind is hard, and only the angle of one row moves.
    angle = torch.tensor(50.0, dtype=F64).deg2rad().requires_grad_()

    def rows():
        moving = torch.stack((angle.cos(), angle.sin())).unsqueeze(0)
        return torch.cat((at_angles(0), moving, at_angles(200, 200)))

    x, y = rows(), torch.tensor([0, 0, 1, 1])
    value = TCMLoss(0.9, 0.5, lambda_pos=3.0)(x, y)
    close(value, 3.0 * (0.9 - math.cos(math.radians(50))))
    (slope,) = torch.autograd.grad(value, angle)
    # -lambda/n per ordered pair, two of them, and n = 2.
    close(slope, 3.0 * math.sin(math.radians(50)))
    value = TCMLoss(0.9, 0.5, lambda_neg=3.0)(rows(), torch.tensor([0, 1, 2, 2]))
    close(value, 3.0 * (math.cos(math.radians(50)) - 0.5))
    (slope,) = torch.autograd.grad(value, angle)
    close(slope, -3.0 * math.sin(math.radians(50)))


def test_tcm_separate_counts():
    # Three hard positive pairs must not thin out the one hard negative pair.
    x = at_angles(0, 90, 180, 270, 270.0001)
    y = torch.tensor([0, 0, 0, 1, 2])
    positive = (0.9 * 2 + 1.9) / 3
    close(TCMLoss()(x, y), positive + 0.5, atol=1e-6)


def test_tcm_easy_pairs_give_exactly_nothing():
    x = at_angles(0, 5, 120, 125).requires_grad_()
    value = TCMLoss()(x, torch.tensor([0, 0, 1, 1]))
    (gradient,) = torch.autograd.grad(value, x)
    assert value == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("n", [0, 1])
def test_tcm_without_pairs(n):
    x = torch.ones(n, 3, requires_grad=True)
    value = TCMLoss()(x, torch.zeros(n, dtype=torch.long))
    value.backward()
    assert value == 0.0
    assert not x.grad.any()


def test_equal_rows_are_not_carried_beyond_the_margin_by_rounding():
    x = torch.randn(64, 33, generator=torch.Generator().manual_seed(1))
    x = x.repeat_interleave(2, 0)
    y = torch.arange(64).repeat_interleave(2)
    loss = TCMLoss(1.0, 1.0)
    # Every positive pair has cosine 1 = m_+ and counts, so that a bad one is a share of them all.
    x[0] = -x[1]
    close(loss(x, y), 2.0 / 64, rtol=1e-5)


def test_tcm_knows_only_directions_and_equal_labels():
    x, y = draw(12)
    value = TCMLoss()(x, y)
    close(TCMLoss()(x @ torch.as_tensor(ortho_group.rvs(3, random_state=0)), y), value)
    close(TCMLoss()(x * torch.linspace(0.1, 9.0, 12, dtype=F64).unsqueeze(1), y), value)
    order = torch.randperm(12)
    close(TCMLoss()(x[order], y[order]), value)
    close(TCMLoss()(x, 7 - 3 * y), value)
    e = x / x.norm(dim=1, keepdim=True)
    close(TCMLoss(normalize=False)(e, y), value)
    assert abs(float(TCMLoss(normalize=False)(2 * e, y)) - float(value)) > 0.1


# OPIS.


def opis(x, y, low, high, steps, c=1.0):
    """Every number by its definition."""
    e = x / x.norm(dim=1, keepdim=True)
    n = len(x)
    distance = [[float((e[i] - e[j]).norm()) for j in range(n)] for i in range(n)]
    classes = [k for k in sorted(set(y.tolist())) if int((y == k).sum()) > 1]
    thresholds = torch.linspace(low, high, steps, dtype=F64)
    utility = torch.zeros(len(classes), steps, dtype=F64)
    for row, k in enumerate(classes):
        inside = [
            distance[i][j] for i, j in itertools.combinations(range(n), 2) if y[i] == k == y[j]
        ]
        across = [distance[i][j] for i in range(n) for j in range(n) if y[i] == k and y[j] != k]
        for column, d in enumerate(thresholds.tolist()):
            psi = sum(x <= d for x in inside) / len(inside)
            phi = sum(x > d for x in across) / len(across)
            bottom = c**2 * phi + psi
            utility[row, column] = (1 + c**2) * phi * psi / bottom if bottom else 0.0
    spread = (utility - utility.mean(0)).square()
    per_class = torch.trapezoid(spread, thresholds) / (high - low)
    return per_class, per_class.mean()


@given(seeds, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([(0.0, 2.0), (0.3, 1.1)]))
def test_opis_is_what_the_definition_says(seed, c, ends):
    x, y = draw(12, seed=seed)
    if torch.unique(y, return_counts=True)[1].min() < 2 or len(y.unique()) < 2:
        return
    per_class, score = opis(x, y, *ends, 7, c)
    metric = OPIS(*ends, num_thresholds=7, c=c)
    classes, got = metric.per_class(x, y)
    close(got, per_class)
    close(metric(x, y), score)
    assert classes.tolist() == sorted(set(y.tolist()))
    assert 0.0 <= float(score) <= 0.25


def test_opis_thresholds_come_from_the_false_accept_rates():
    x, y = draw(30, seed=3)
    e = x / x.norm(dim=1, keepdim=True)
    negative = sorted(
        float((e[i] - e[j]).norm()) for i, j in itertools.permutations(range(30), 2) if y[i] != y[j]
    )
    n = len(negative)
    for low, high in ((0.01, 0.1), (0.25, 1.0)):
        ends = [negative[math.ceil(rate * n) - 1] for rate in (low, high)]
        for d, rate in zip(ends, (low, high), strict=True):
            share = sum(v <= d for v in negative) / n
            assert rate <= share + 1e-12 < rate + 3 / n
        want = opis(x, y, *ends, 11)[1]
        # The ends are distances of pairs: give rounding no say about them.
        got = OPIS(far_range=(low, high), num_thresholds=11)(x, y)
        close(got, want, atol=5e-3)
    mixed = OPIS(d_max=1.5, far_range=(0.01, 0.1), num_thresholds=11)(x, y)
    first = negative[math.ceil(0.01 * n) - 1]
    close(mixed, opis(x, y, first, 1.5, 11)[1], atol=5e-3)


def test_opis_of_mirror_images_is_nothing():
    x = at_angles(10, 20, 40)
    x = torch.cat((x, x * torch.tensor([-1.0, 1.0], dtype=F64)))
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    assert float(OPIS(0.0, 2.0)(x, y)) < 1e-12
    assert float(OPIS(0.0, 2.0)(at_angles(0, 5, 10, 90, 140, 190), y)) > 1e-3


def test_opis_knows_only_directions_and_equal_labels():
    x, y = draw(20, seed=5)
    value = OPIS(0.2, 1.3)(x, y)
    close(OPIS(0.2, 1.3)(x @ torch.as_tensor(ortho_group.rvs(3, random_state=0)), y), value)
    close(OPIS(0.2, 1.3)(x * torch.linspace(0.1, 9.0, 20, dtype=F64).unsqueeze(1), y), value)
    order = torch.randperm(20)
    close(OPIS(0.2, 1.3)(x[order], y[order]), value)
    close(OPIS(0.2, 1.3)(x, 7 - 3 * y), value)


def test_opis_leaves_out_a_class_of_one_and_says_so():
    x, y = draw(20, seed=5)
    y[7] = 99
    with pytest.warns(UserWarning, match=r"left out.*99"):
        classes, got = OPIS(0.2, 1.3).per_class(x, y)
    assert classes.tolist() == [0, 1, 2, 99]
    assert math.isnan(float(got[3]))
    close(got[:3], opis(x, y, 0.2, 1.3, 101)[0])
    with pytest.warns(UserWarning, match="left out"):
        close(OPIS(0.2, 1.3)(x, y), got[:3].mean())


def test_opis_has_no_gradient_and_no_warning():
    x, y = draw(20, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = OPIS()(x.float().requires_grad_(), y)
    assert not score.requires_grad
    assert score.dtype is torch.float32
    close(score, OPIS()(x, y), rtol=1e-2)
    assert OPIS()(x.bfloat16(), y).dtype is torch.float32


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"d_min": 1.0, "d_max": 1.0}, "d_max: expected more than d_min=1.0, got 1.0"),
        ({"d_min": -0.1}, "d_min: expected a number in"),
        ({"d_max": 2.1}, "d_max: expected a number in"),
        ({"far_range": (0.1, 0.01)}, "far_range: expected a number in"),
        ({"far_range": (0.0, 0.1)}, "far_range: expected a number in"),
        ({"far_range": (0.1, 1.1)}, "far_range: expected a number in"),
        ({"far_range": 0.1}, "far_range: expected two rates, got 0.1"),
        ({"num_thresholds": 1}, "num_thresholds: expected at least 2, got 1"),
        ({"c": 0.0}, "c: expected a number in"),
    ],
)
def test_opis_refuses_hyper_parameters(options, says):
    with pytest.raises(ValueError, match=says):
        OPIS(**options)


def test_opis_refuses_input():
    x, y = draw(8)
    with pytest.raises(TypeError, match=r"num_thresholds: expected an int, got float"):
        OPIS(num_thresholds=7.0)
    with pytest.raises(
        ValueError, match="labels: expected at least 2 classes with 2 samples, got 1"
    ):
        OPIS()(x, torch.tensor([0] * 7 + [1]))
    with pytest.raises(
        ValueError, match=r"labels: expected one per embedding, .*\(8,\), got \(7,\)"
    ):
        OPIS()(x, y[:7])
    with pytest.raises(TypeError, match=r"labels: expected integers, got torch\.float64"):
        OPIS()(x, y.double())
    with pytest.raises(ValueError, match="d_max: expected more than d_min, which the rates"):
        OPIS()(at_angles(0, 0, 90, 90), torch.tensor([0, 0, 1, 1]))
