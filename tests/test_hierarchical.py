"""COMET, level by level, against loops, and where its levels end."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import COMETLoss, COMETTotalLoss

F64 = torch.float64
seeds = st.integers(0, 10**6)


def close(a, b, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=rtol, atol=atol
    )


def draw(b, t, c=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, b, t, c, dtype=F64, generator=generator)


def log_sum_exp(xs):
    top = max(xs)
    return top + math.log(sum(math.exp(x - top) for x in xs))


def between_rows(x, y, tau):
    """Of each row of one view, the loss of finding that of the other, over both as the anchor."""
    rows = [*x, *y]
    n = len(x)
    found = [0.0] * n
    for a in range(2 * n):
        s = {b: float(rows[a] @ rows[b]) / tau for b in range(2 * n) if b != a}
        found[a % n] += (log_sum_exp(list(s.values())) - s[(a + n) % (2 * n)]) / 2
    return found


def at_one_scale(level, z1, z2, tau):
    if level == "observation":
        return [sum(between_rows(x, y, tau)) / len(x) for x, y in zip(z1, z2, strict=True)]
    t = z1.shape[1]
    found = [between_rows(z1[:, k], z2[:, k], tau) for k in range(t)]
    return [sum(row) / t for row in zip(*found, strict=True)]


def within_ids(z1, z2, ids, tau):
    def flat(z):
        return (z / z.norm(dim=1, keepdim=True)).flatten(1)

    x, y = flat(z1), flat(z2)
    b = len(x)
    c = [[float(u @ v / (u.norm() * v.norm())) / tau for v in y] for u in x]
    upper = [(i, j) for i in range(b) for j in range(b) if i < j and ids[i] == ids[j]]
    if not upper:
        return [0.0] * b
    found = [0.0] * b
    for i, j in upper:
        found[i] += log_sum_exp(c[i]) - c[i][j]
    for j, i in upper:  # the lower half, i > j: the column j is the anchor
        found[j] += log_sum_exp([c[k][j] for k in range(b)]) - c[i][j]
    return [b * f / (2 * len(upper)) for f in found]


@given(seeds, st.integers(1, 4), st.integers(1, 4), st.sampled_from(["observation", "sample"]))
def test_one_scale_is_what_the_formula_says(seed, b, t, level):
    z1, z2 = draw(b, t, seed=seed)
    loss = COMETLoss(level, 0.7, False, reduction="none")
    close(loss(z1, z2), at_one_scale(level, z1, z2, 0.7))
    close(loss(z2, z1), loss(z1, z2))


@pytest.mark.parametrize("level", ["observation", "sample", "trial"])
@pytest.mark.parametrize("t", [2, 3, 5, 8])
def test_scales_are_averaged(level, t):
    z1, z2 = draw(3, t, seed=t)
    ids = torch.tensor([4, 4, 1])
    want, scales, (x, y) = torch.zeros(3, dtype=F64), 0, (z1, z2)
    while x.shape[1] > 1:
        found = within_ids(x, y, ids, 0.9) if level == "trial" else at_one_scale(level, x, y, 0.9)
        want += torch.tensor(found, dtype=F64)
        scales += 1
        x, y = (torch.nn.functional.max_pool1d(z.mT, 2).mT for z in (x, y))
    assert scales == int(math.log2(t))
    given_ids = (ids,) if level == "trial" else ()
    close(COMETLoss(level, 0.9, True, reduction="none")(z1, z2, *given_ids), want / scales)


@given(seeds, st.integers(1, 6), st.sampled_from(["trial", "patient"]))
def test_pairs_of_one_id_are_what_the_formula_says(seed, b, level):
    z1, z2 = draw(b, 3, seed=seed)
    ids = torch.randint(3, (b,), generator=torch.Generator().manual_seed(seed))
    want = within_ids(z1, z2, ids, 0.4)
    close(COMETLoss(level, 0.4, reduction="none")(z1, z2, ids), want)
    close(COMETLoss(level, 0.4)(z1, z2, ids), sum(want) / b)


def test_pairs_by_hand():
    # One channel over two times: cosines -1, 1 and 0, 0.
    east, west = [[1.0], [1.0]], [[-1.0], [-1.0]]
    z1 = torch.tensor([east, [[1.0], [-1.0]]], dtype=F64)
    z2 = torch.tensor([west, east], dtype=F64)
    rows = math.log(math.exp(-1) + math.exp(1)) - 1.0
    columns = math.log(math.exp(-1) + math.exp(0)) - 0.0
    ids = torch.tensor([5, 5])
    close(COMETLoss("patient", 1.0)(z1, z2, ids), (rows + columns) / 2)


def test_defaults_of_the_levels():
    found = {
        level: (loss.temperature, loss.hierarchical)
        for level in ("observation", "sample", "trial", "patient")
        for loss in (COMETLoss(level),)
    }
    assert found == {
        "observation": (1.0, True),
        "sample": (1.0, True),
        "trial": (0.1, False),
        "patient": (0.1, False),
    }


def test_observation_is_sample_with_axes_exchanged():
    z1, z2 = draw(3, 4)
    turned = (z.transpose(0, 1) for z in (z1, z2))
    close(COMETLoss("observation", None, False)(z1, z2), COMETLoss("sample", None, False)(*turned))


def test_where_all_are_alike():
    z, ids = torch.ones(3, 4, 2, dtype=F64), torch.zeros(3, dtype=torch.long)
    close(COMETLoss("observation", None, False)(z, z), math.log(7))
    close(COMETLoss("sample", None, False)(z, z), math.log(5))
    close(COMETLoss("patient")(z, z, ids), math.log(3))
    close(COMETLoss("observation")(z, z), (math.log(7) + math.log(3)) / 2)


@pytest.mark.parametrize(
    ("level", "shape", "ids"),
    [
        ("observation", (3, 1, 2), None),
        ("sample", (3, 1, 2), None),
        ("sample", (1, 4, 2), None),
        ("patient", (3, 4, 2), [0, 1, 2]),
        ("trial", (1, 4, 2), [0]),
        ("trial", (0, 4, 2), []),
        ("observation", (0, 4, 2), None),
    ],
)
def test_nothing_to_tell_apart_is_an_attached_zero(level, shape, ids):
    z1, z2 = (z.requires_grad_() for z in torch.randn(2, *shape, dtype=F64))
    given_ids = () if ids is None else (torch.tensor(ids, dtype=torch.long),)
    value = COMETLoss(level)(z1, z2, *given_ids)
    assert value == 0.0
    for g in torch.autograd.grad(value, (z1, z2)):
        close(g, torch.zeros_like(g))


def test_sample_of_one_time_at_one_scale_is_evaluated():
    z1, z2 = draw(3, 1)
    assert COMETLoss("sample", None, False)(z1, z2) > 0.1


def test_pairs_do_not_depend_on_the_length_of_a_channel():
    z1, z2 = draw(4, 3)
    ids = torch.tensor([0, 0, 0, 1])
    scale = torch.rand(4, 1, 2, dtype=F64) + 0.1
    close(COMETLoss("trial")(z1 * scale, z2 * 1e3, ids), COMETLoss("trial")(z1, z2, ids))


def test_tiny_values_keep_their_digits_and_huge_ones_do_not_overflow():
    x = torch.tensor([[[6.0, 0.0], [0.0, 6.0]]], dtype=torch.float32)
    want = math.log1p(2 * math.exp(-36))
    close(COMETLoss("observation", None, False)(x, x), want, rtol=1e-5, atol=0.0)
    value = COMETLoss("observation")(x * 1e9, -x * 1e9)
    assert 1e18 < float(value) < math.inf


def test_equal_neighbours_share_the_gradient():
    z = torch.tensor([[[1.0], [1.0], [2.0], [2.0]]], dtype=F64, requires_grad=True)
    other = torch.tensor([[[0.5], [0.1], [0.3], [0.7]]], dtype=F64)
    (g,) = torch.autograd.grad(COMETLoss("observation")(z, other), z)
    first = COMETLoss("observation", None, False)(z, other)
    (alone,) = torch.autograd.grad(first, z)
    rest = 2 * g - alone
    close(rest[0, 0], rest[0, 1])
    close(rest[0, 2], rest[0, 3])
    assert float(rest.abs().min()) > 1e-3


def test_the_total_is_the_weighted_sum_of_the_levels():
    shapes = {
        "patient": (4, 3, 2),
        "trial": (4, 2, 1),
        "sample": (4, 5, 3),
        "observation": (4, 7, 2),
    }
    views = {
        level: torch.randn(2, *shape, dtype=F64, generator=torch.Generator().manual_seed(i))
        for i, (level, shape) in enumerate(shapes.items())
    }
    ids = {"patient": torch.tensor([0, 0, 1, 1]), "trial": torch.tensor([3, 5, 5, 5])}
    inputs = [z for pair in views.values() for z in pair]
    values = {
        level: COMETLoss(level, reduction="none")(*pair, *([ids[level]] if level in ids else []))
        for level, pair in views.items()
    }
    factors = dict(zip(shapes, (1.0, 2.0, 4.0, 8.0), strict=True))
    want = sum(factors[level] * v for level, v in values.items())
    got = COMETTotalLoss(tuple(factors.values()), reduction="none")(*inputs, *ids.values())
    close(got, want)
    close(COMETTotalLoss()(*inputs, *ids.values()), sum(values.values()).mean() / 4)


def test_the_total_hands_on_whose_rows_count():
    loss = COMETTotalLoss(gather=False)
    assert [part.gather for part in loss.levels] == [False] * 4
    assert "factors" not in repr(loss)
    assert "factors=(1.0, 0.0, 0.0, 0.0)" in repr(COMETTotalLoss((1, 0, 0, 0)))
