"""Losses of pairs, triplets and proxies against loops, at their seams, and their limits."""

import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group
from torch.nn.functional import triplet_margin_loss

from lossary import (
    InfoNCELoss,
    MultiSimilarityLoss,
    NPairLoss,
    ProxyAnchorLoss,
    TripletMarginLoss,
    pairs,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

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


def units(x):
    return x / x.norm(dim=1, keepdim=True)


def of_anchor(i, y):
    """The positives and the negatives of an anchor."""
    near = [j for j in range(len(y)) if j != i and y[j] == y[i]]
    return near, [j for j in range(len(y)) if y[j] != y[i]]


def unchanged(loss, x, y, lengths=True):
    """The value, which depends on directions and equality of labels only."""
    value = loss(x, y)
    n, width = x.shape
    close(loss(x @ torch.as_tensor(ortho_group.rvs(width, random_state=0)), y), value)
    if lengths:
        close(loss(x * torch.linspace(0.1, 9.0, n, dtype=F64).unsqueeze(1), y), value)
    order = torch.randperm(n)
    close(loss(x[order], y[order]), value)
    close(loss(x, 7 - 3 * y), value)
    return value


# Multi-similarity.


def multi_similarity(x, y, alpha, beta, base, eps):
    e = units(x)
    values = []
    for i in range(len(x)):
        near, far = ([(j, float(e[i] @ e[j])) for j in js] for js in of_anchor(i, y))
        if eps is not None:
            least = min((s for _, s in near), default=math.inf)
            most = max((s for _, s in far), default=-math.inf)
            near, far = (
                [(j, s) for j, s in near if s - eps < most],
                [(j, s) for j, s in far if s + eps > least],
            )
        pull = math.log1p(sum(math.exp(-alpha * (s - base)) for _, s in near)) / alpha
        push = math.log1p(sum(math.exp(beta * (s - base)) for _, s in far)) / beta
        values.append(pull + push)
    return torch.tensor(values, dtype=F64)


@given(
    seeds,
    st.integers(1, 8),
    st.sampled_from([(2.0, 50.0, 0.5), (10.0, 3.0, -0.2)]),
    st.sampled_from([None, 0.0, 0.1, 0.5]),
)
def test_multi_similarity_is_what_the_formula_says(seed, n, sharpness, eps):
    x, y = draw(n, seed=seed)
    want = multi_similarity(x, y, *sharpness, eps)
    loss = MultiSimilarityLoss(*sharpness, eps, reduction="none")
    close(loss(x, y), want)
    close(MultiSimilarityLoss(*sharpness, eps)(x, y), want.mean())


@pytest.mark.parametrize("tile_size", [None, 2])
def test_multi_similarity_mines_strictly(tile_size):
    # Powers of 2: every product and threshold is exact.
    x = torch.tensor([[1.0, 0.0], [0.5, 3.0], [0.25, 1.0], [0.75, 1.0]], dtype=F64)
    y = torch.tensor([0, 0, 1, 2])

    def first(eps):
        loss = MultiSimilarityLoss(2.0, 4.0, 0.0, eps, False, reduction="none", tile_size=tile_size)
        return float(loss(x, y)[0])

    pull = math.log1p(math.exp(-1.0)) / 2
    # Of row 0: positive 0.5, negatives 0.25 and 0.75.
    close(first(0.0), pull + math.log1p(math.exp(3.0)) / 4)
    close(first(0.25), pull + math.log1p(math.exp(3.0)) / 4)
    close(first(0.2500001), pull + math.log1p(math.exp(1.0) + math.exp(3.0)) / 4)
    # A positive as far as the nearest negative is not kept.
    x[3, 0] = 0.5
    close(first(0.0), 0.0)
    close(first(1e-9), pull + math.log1p(math.exp(2.0)) / 4)


def test_multi_similarity_in_the_limit_is_two_hinges():
    x, y = draw(8, classes=2, seed=3)
    e = units(x)
    want = []
    for i in range(8):
        near, far = ([float(e[i] @ e[j]) for j in js] for js in of_anchor(i, y))
        want.append(max(0.0, 0.4 - min(near)) + max(0.0, max(far) - 0.4))
    loss = MultiSimilarityLoss(1e5, 1e5, 0.4, reduction="none")
    close(loss(x, y), torch.tensor(want), atol=1e-4)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x.float(), y).sum(), x)
    assert bool(gradient.isfinite().all())


def test_multi_similarity_keeps_the_digits_of_tiny_values():
    x, y = at_angles(0, 0, 180), torch.tensor([0, 0, 1])
    with mpmath.workdps(50):
        near, far = (mpmath.log1p(mpmath.exp(c)) / k for c, k in ((-40, 80), (-75, 50)))
        want = float(near + far)
    loss = MultiSimilarityLoss(80.0, 50.0, reduction="none")
    close(loss(x, y)[0], want, rtol=1e-12, atol=0)
    close(loss(x.float(), y)[0].double(), want, rtol=1e-4, atol=0)


@pytest.mark.parametrize("eps", [None, 0.1])
@pytest.mark.parametrize("tile_size", [None, 1])
@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [5]])
def test_multi_similarity_of_one_kind_of_pair(labels, tile_size, eps):
    y = torch.tensor(labels)
    x = at_angles(0, 60, 90)[: len(y)].requires_grad_()
    value = MultiSimilarityLoss(2.0, 50.0, 0.5, eps, tile_size=tile_size)(x, y)
    (gradient,) = torch.autograd.grad(value, x)
    close(value, multi_similarity(x.detach(), y, 2.0, 50.0, 0.5, eps).mean())
    assert bool(gradient.isfinite().all())
    if eps is not None or len(y) == 1:
        assert value == 0.0
        assert not gradient.any()


def test_multi_similarity_knows_only_directions_and_equal_labels():
    x, y = draw(9, seed=4)
    unchanged(MultiSimilarityLoss(2.0, 5.0, mining_eps=0.2), x, y)
    plain = MultiSimilarityLoss(normalize=False)
    close(plain(units(x), y), MultiSimilarityLoss()(x, y))
    assert abs(float(plain(2 * x, y) - plain(x, y))) > 0.1


@pytest.mark.parametrize("normalize", [True, False])
def test_multi_similarity_comes_near_zero(normalize):
    x = at_angles(0, 180)
    assert 0.0 < float(MultiSimilarityLoss(normalize=normalize)(x, torch.tensor([0, 1]))) < 1e-30


# N pairs.


@given(seeds, st.integers(1, 6), st.sampled_from([0.0, 0.3]))
def test_n_pairs_are_what_the_formula_says(seed, n, l2_reg):
    a, p = (draw(n, seed=seed + i)[0] for i in range(2))
    values = []
    for i in range(n):
        total = sum(math.exp(float(a[i] @ p[j] - a[i] @ p[i])) for j in range(n) if j != i)
        values.append(math.log1p(total) + l2_reg * float(a[i] @ a[i] + p[i] @ p[i]) / 2)
    want = torch.tensor(values, dtype=F64)
    for tile_size in (None, 2):
        loss = NPairLoss(l2_reg, reduction="none", tile_size=tile_size)
        close(loss(a, p), want)
    norms = torch.cat((a, p)).square().sum(1).mean()
    close(NPairLoss(l2_reg)(a, p), NPairLoss()(a, p) + l2_reg * norms)


def test_n_pairs_are_info_nce_of_inner_products():
    a, p = (draw(5, seed=i)[0] for i in range(2))
    for normalize in (False, True):
        close(NPairLoss(normalize=normalize)(a, p), InfoNCELoss(1.0, normalize=normalize)(a, p))
    assert float(NPairLoss()(a, p)) != float(NPairLoss()(p, a))
    close(NPairLoss()(a, p + 5.0), NPairLoss()(a, p))


def test_one_n_pair_is_nothing_but_its_norms():
    a = torch.tensor([[3.0, 4.0]], requires_grad=True)
    assert NPairLoss()(a, a) == 0.0
    close(NPairLoss(0.1, normalize=True)(a, a), 2.5, rtol=1e-6)


# Triplets.


def triplets(x, y, margin, swap, smooth, mining, normalize):
    """Every anchor's values of the triplets that are chosen, by their definition."""
    e = units(x) if normalize else x
    n = len(x)
    d = [[float((e[i] - e[j]).norm()) for j in range(n)] for i in range(n)]
    out = []
    for a in range(n):
        near, far = of_anchor(a, y)
        chosen = list(itertools.product(near, far))
        if mining == "hard" and chosen:
            chosen = [(max(near, key=lambda p: d[a][p]), min(far, key=lambda m: d[a][m]))]
        if mining == "semihard":
            chosen = [(p, m) for p, m in chosen if d[a][p] < d[a][m] <= d[a][p] + margin]
        values = []
        for p, m in chosen:
            gap = d[a][p] - (min(d[a][m], d[p][m]) if swap else d[a][m]) + margin
            values.append(math.log1p(math.exp(gap)) if smooth else max(0.0, gap))
        out.append(values)
    return out


rules = st.sampled_from(["all", "hard", "semihard"])


@given(
    seeds, st.integers(1, 7), rules, st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from([0.0, 0.2, 1.0]),
)  # fmt: skip
def test_triplets_are_what_the_formula_says(seed, n, mining, swap, smooth, normalize, margin):
    x, y = draw(n, classes=2, seed=seed)
    values = triplets(x, y, margin, swap, smooth, mining, normalize)
    every = [v for row in values for v in row]
    active = [v for v in every if v > 0.0]
    arguments = (margin, swap, smooth, mining)
    for average, counted in (("nonzero", active), ("all", every)):
        loss = TripletMarginLoss(*arguments, average, normalize)
        close(loss(x, y), sum(every) / max(1, len(counted)), rtol=1e-9)
        loss.reduction = "none"
        close(loss(x, y), torch.tensor([sum(row) for row in values], dtype=F64), rtol=1e-9)


def test_a_triplet_loss_of_three_rows_is_torchs():
    x = torch.randn(3, 4, dtype=F64, generator=torch.Generator().manual_seed(2))
    loss = TripletMarginLoss(5.0, normalize=False, average="all", reduction="none")
    want = triplet_margin_loss(*x.split(1), margin=5.0, eps=0.0)
    close(loss(x, torch.tensor([0, 0, 1]))[0], want)
    swapped = TripletMarginLoss(5.0, True, normalize=False, average="all", reduction="none")
    want = triplet_margin_loss(*x.split(1), margin=5.0, eps=0.0, swap=True)
    close(swapped(x, torch.tensor([0, 0, 1]))[0], want)


def test_semi_hard_triplets_at_the_ends_of_their_range():
    # Distances of row 0: positive 1, negatives 1, 1.5, 2 and 2.5, all exact.
    x = torch.tensor([0.0, 1.0, -1.0, 1.5, 2.0, 2.5], dtype=F64).unsqueeze(1)
    y = torch.tensor([0, 0, 1, 1, 1, 1])
    loss = TripletMarginLoss(
        1.0, mining="semihard", average="all", normalize=False, reduction="none"
    )
    value, count = loss.per_sample(x, y)
    assert (float(value[0]), float(count[0])) == (0.5, 2.0)
    nonzero = TripletMarginLoss(1.0, mining="semihard", normalize=False)
    assert float(nonzero.per_sample(x, y)[1][0]) == 1.0


@given(seeds, rules, st.booleans(), st.booleans())
def test_in_parts_the_triplets_are_the_same(seed, mining, swap, smooth):
    x, y = draw(7, seed=seed)
    x.requires_grad_()
    loss = TripletMarginLoss(0.7, swap, smooth, mining)
    found = []
    for held in (pairs.HELD_TRIPLETS, 100, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pairs, "HELD_TRIPLETS", held)
            value = loss(x, y)
            (g,) = torch.autograd.grad(value, x, create_graph=True)
            second = torch.zeros_like(x)
            if g.requires_grad:
                (second,) = torch.autograd.grad(g.square().sum(), x)
            under = torch.func.grad(lambda z: loss(z, y))(x.detach())
            found.append((value.detach(), g.detach(), second, under))
    for others in found[1:]:
        for a, b in zip(found[0], others, strict=True):
            close(a, b, rtol=1e-8, atol=1e-9)


def test_few_triplets_are_held(monkeypatch):
    monkeypatch.setattr(pairs, "HELD_TRIPLETS", 64 * 64)
    x, y = draw(64)
    x.requires_grad_()
    held = []

    def keep(x):
        held.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        TripletMarginLoss(smooth=True, swap=True)(x, y)
    # Some matrices, and none of the triplets.
    assert sum(held) < 64**3 / 4


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rows_that_agree_are_at_no_distance_and_have_no_slope(dtype):
    x = torch.tensor([[3.0, 4.0], [6.0, 8.0], [3.0, 4.0], [1.0, 0.0]], dtype=dtype)
    x[1] *= 1 + torch.finfo(dtype).eps
    x.requires_grad_()
    for mining in ("all", "hard"):
        value = TripletMarginLoss(0.5, mining=mining)(x, torch.tensor([0, 0, 1, 2]))
        (gradient,) = torch.autograd.grad(value, x)
        close(value.double(), 0.5, rtol=1e-6)
        assert float(gradient.abs().max()) < 10.0


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rows_nearer_than_rounding_have_no_slope(dtype):
    x = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]], dtype=dtype)
    x[1, 1] *= 1 + torch.finfo(dtype).eps
    x.requires_grad_()
    value = TripletMarginLoss(0.5, normalize=False)(x, torch.tensor([0, 0, 1]))
    (gradient,) = torch.autograd.grad(value, x)
    assert value == 0.5
    assert not gradient.any()


def test_distances_of_near_rows_keep_their_digits():
    near = torch.tensor([[1.0, 0.0], [1.0, 1e-5], [0.0, 1.0]])
    loss = TripletMarginLoss(1.0, average="all", normalize=False, reduction="none")
    x = near.clone().requires_grad_()
    value = loss(x, torch.tensor([0, 1, 0]))[0]
    (gradient,) = torch.autograd.grad(value, x)
    close(value.double(), math.sqrt(2.0) - 1e-5 + 1.0, rtol=1e-6)
    want = torch.tensor([0.0, 1.0]) + torch.tensor([1.0, -1.0]) / math.sqrt(2.0)
    # Pulled to the positive, pushed from a negative along a difference of 1e-5.
    close(gradient[0].double(), want, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("mining", ["all", "hard", "semihard"])
@pytest.mark.parametrize("labels", [[], [3], [0, 0, 0], [0, 1, 2]])
def test_without_triplets(labels, mining):
    x = at_angles(0, 60, 90)[: len(labels)].requires_grad_()
    for swap in (False, True):
        value = TripletMarginLoss(1.0, swap, mining=mining)(x, torch.tensor(labels).long())
        (gradient,) = torch.autograd.grad(value, x)
        assert value == 0.0
        assert not gradient.any()


def test_the_hardest_triplets_reach_their_bound():
    x, y = at_angles(0, 180, 0, 180), torch.tensor([0, 0, 1, 1])
    close(TripletMarginLoss(0.3, mining="hard")(x, y), 2.3)
    assert TripletMarginLoss(0.3, mining="hard").properties().upper == 2.3


def test_triplets_know_only_directions_and_equal_labels():
    x, y = draw(8, seed=6)
    unchanged(TripletMarginLoss(0.3, True), x, y)
    plain = TripletMarginLoss(0.3, normalize=False)
    unchanged(plain, x, y, lengths=False)
    close(plain(x + 7.0, y), plain(x, y))
    assert abs(float(plain(3 * x, y) - plain(x, y))) > 0.1


# Proxies.


def with_proxies(*arguments, **options):
    loss = ProxyAnchorLoss(*arguments, **options).double()
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(loss.proxies.shape, dtype=F64, generator=generator)
    loss.load_state_dict({"proxies": values})
    return loss


def proxy_anchor(loss, x, y):
    e, p = units(x), units(loss.proxies.detach())
    present = len(set(y.tolist()))
    near = far = 0.0
    for c in range(len(p)):
        s = [float(e[i] @ p[c]) for i in range(len(x))]
        own = [math.exp(-loss.alpha * (s[i] - loss.margin)) for i in range(len(x)) if y[i] == c]
        rest = [math.exp(loss.alpha * (s[i] + loss.margin)) for i in range(len(x)) if y[i] != c]
        near += math.log1p(sum(own))
        far += math.log1p(sum(rest))
    return near / max(1, present) + far / len(p)


@given(seeds, st.integers(0, 7), st.sampled_from([(0.1, 32.0), (0.3, 2.0)]))
def test_proxy_anchors_are_what_the_formula_says(seed, n, arguments):
    x, y = draw(n, classes=4, seed=seed)
    loss = with_proxies(5, 3, *arguments)
    close(loss(x, y), proxy_anchor(loss, x, y))
    assert loss(x, y).requires_grad


def test_a_class_that_is_absent_has_its_negatives_alone():
    loss = with_proxies(4, 3, alpha=3.0, reduction="none")
    x, _ = draw(4)
    y = torch.tensor([0, 2, 2, 0])
    s = units(loss.proxies.detach()) @ units(x).t()
    values = loss(x, y).detach()
    for c in (1, 3):
        close(values[c], torch.log1p(torch.exp(3.0 * (s[c] + 0.1)).sum()))
    # Two of four classes: their positive part counts twice.
    near = torch.log1p(torch.exp(-3.0 * (s[0] - 0.1))[y == 0].sum())
    close(values[0] - torch.log1p(torch.exp(3.0 * (s[0] + 0.1))[y != 0].sum()), 2.0 * near)


def test_proxy_anchors_know_only_directions():
    loss = with_proxies(3, 3)
    x, y = draw(6)
    value = loss(x, y)
    close(loss(x * torch.linspace(0.1, 9.0, 6, dtype=F64).unsqueeze(1), y), value)
    turn = torch.as_tensor(ortho_group.rvs(3, random_state=0))
    other = with_proxies(3, 3)
    other.load_state_dict({"proxies": 5.0 * loss.proxies.detach() @ turn})
    close(other(x @ turn, y), value)


def test_proxies_are_learnt_and_drawn_by_the_number_of_classes():
    torch.manual_seed(0)
    loss = ProxyAnchorLoss(400, 200)
    assert abs(float(loss.proxies.detach().std()) - math.sqrt(2 / 400)) < 1e-3
    value = loss(torch.randn(8, 200), torch.arange(8))
    value.backward()
    assert bool((loss.proxies.grad != 0).any(1).all())
    assert "num_classes=400" in repr(loss)


def test_proxy_anchors_at_a_sharpness_where_the_exponentials_overflow():
    loss = ProxyAnchorLoss(2, 2, alpha=200.0)
    loss.load_state_dict({"proxies": torch.eye(2)})
    x = at_angles(90, 0).float().requires_grad_()
    value = loss(x, torch.tensor([0, 1]))
    close(value.detach().double(), 200 * 0.1 + 200 * 1.1, rtol=1e-5)
    (gradient,) = torch.autograd.grad(value, x)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_anchors_without_a_kind_of_pair_have_forward_derivatives(labels):
    y = torch.tensor(labels)
    x, along = draw(3)[0], draw(3, seed=1)[0]
    proxies = with_proxies(3, 3)
    for loss in (
        MultiSimilarityLoss(),
        TripletMarginLoss(),
        TripletMarginLoss(mining="hard"),
        proxies,
    ):
        _, slope = torch.func.jvp(lambda x, loss=loss: loss(x, y), (x,), (along,))
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf, y), leaf)
        close(slope.detach(), (gradient * along).sum())
