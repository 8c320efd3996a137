"""Margin losses over class directions: plain formulas, seams, the filter of UNPG, tiles."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lossary import ArcFaceLoss, CosFaceLoss, UNPGLoss

F64 = torch.float64
seeds = st.integers(0, 10**6)
MAKERS = {
    "cosface": CosFaceLoss,
    "arcface": ArcFaceLoss,
    "arcface plain": lambda *a, **o: ArcFaceLoss(*a, monotone=False, **o),
}


def close(a, b, rtol=1e-10, atol=1e-11):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=rtol, atol=atol)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def made(make, *arguments, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(*arguments, **options).double()


def on_the_circle(*degrees):
    angle = torch.tensor(degrees, dtype=F64).deg2rad()
    return torch.stack((angle.cos(), angle.sin()), 1)


def cosine_logits(loss, x):
    return F.normalize(x) @ F.normalize(loss.weight_matrix).t()


def plain(kind, loss, x, y):
    """Cross-entropy of the logits with the own one replaced, by arc cosines."""
    cosine = cosine_logits(loss, x)
    own = cosine.gather(1, y.unsqueeze(1)).squeeze(1)
    angle = torch.arccos(own)
    target = own - loss.margin if kind == "cosface" else torch.cos(angle + loss.margin)
    if kind == "arcface":
        beyond = angle > math.pi - loss.margin
        target = torch.where(beyond, own - loss.margin * math.sin(loss.margin), target)
    logits = cosine.scatter(1, y.unsqueeze(1), target.unsqueeze(1))
    return F.cross_entropy(loss.scale * logits, y, reduction="none")


@given(
    seeds, st.sampled_from(sorted(MAKERS)), st.sampled_from([0.0, 0.3, 1.2]),
    st.sampled_from([1.0, 30.0]), st.sampled_from([None, 2]),
)  # fmt: skip
def test_it_is_cross_entropy_with_a_margin(seed, kind, margin, scale, tile_size):
    loss = made(MAKERS[kind], 5, 3, scale, margin, seed=seed, tile_size=tile_size, reduction="none")
    x = draw(6, 3, seed=seed).requires_grad_()
    y = torch.randint(5, (6,), generator=torch.Generator().manual_seed(seed))
    got, want = loss(x, y), plain(kind, loss, x, y)
    close(got, want, rtol=1e-9)
    along = draw(6, seed=seed + 1)
    leaves = (x, loss.weight_matrix)
    found = [torch.autograd.grad((along * v).sum(), leaves) for v in (got, want)]
    for a, b in zip(*found, strict=True):
        close(a, b, rtol=1e-7, atol=1e-9)


def test_the_angular_margin_at_its_seam():
    # theta_y around pi - m: below it the cosine of theta + m, beyond it a line; a jump between.
    m = 0.5
    loss = made(ArcFaceLoss, 2, 2, 1.0, m, reduction="none")
    loss.load_state_dict({"weight_matrix": on_the_circle(0.0, 90.0)})
    seam = math.degrees(math.pi - m)
    before, after = loss(on_the_circle(seam - 1e-6, seam + 1e-6), torch.tensor([0, 0])).tolist()
    rival = math.sin(math.pi - m)
    close(before, math.log1p(math.exp(rival + 1.0)), rtol=1e-6)
    close(after, math.log1p(math.exp(rival + math.cos(m) + m * math.sin(m))), rtol=1e-6)


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_an_embedding_along_its_direction_or_against_it_has_a_finite_gradient(kind, dtype):
    loss = made(MAKERS[kind], 2, 2).to(dtype)
    directions = torch.eye(2, dtype=dtype)  # whose cosines are exactly 1 and -1
    loss.load_state_dict({"weight_matrix": directions})
    x = torch.cat((3.0 * directions[:1], -directions[:1], torch.zeros(1, 2, dtype=dtype)))
    x.requires_grad_()
    value = loss(x, torch.tensor([0, 0, 1]))
    for g in torch.autograd.grad(value, (x, loss.weight_matrix)):
        assert bool(g.isfinite().all())


def test_bounds_are_those_of_the_docstring():
    loss = made(CosFaceLoss, 3, 2, 4.0, 0.35, reduction="none")
    ends = [math.log(2.0) - 4.0 * (2.0 - 0.35), math.log(2.0) + 4.0 * (2.0 + 0.35)]
    loss.load_state_dict({"weight_matrix": on_the_circle(0.0, 180.0, 180.0)})
    got = loss(on_the_circle(0.0, 180.0), torch.tensor([0, 0]))
    close(got, torch.tensor([math.log1p(math.exp(t)) for t in ends], dtype=F64))


def test_small_losses_keep_their_digits():
    loss = made(CosFaceLoss, 2, 2, 64.0, 0.0).float()
    loss.load_state_dict({"weight_matrix": on_the_circle(0.0, 90.0)})
    value = float(loss(on_the_circle(0.0).float(), torch.tensor([0])).detach())
    close(value, math.exp(-64.0), rtol=1e-4, atol=0)


def test_gradient_in_the_own_cosine():
    # An embedding of width 3, orthogonal to the other direction, moves along the own one.
    loss = made(CosFaceLoss, 2, 3, 5.0, 0.2)
    loss.load_state_dict({"weight_matrix": torch.eye(3, dtype=F64)[:2]})
    angle = torch.tensor(0.7, dtype=F64, requires_grad=True)
    x = torch.stack((angle.cos(), torch.zeros_like(angle), angle.sin())).unsqueeze(0)
    (slope,) = torch.autograd.grad(loss(x, torch.tensor([0])), angle)
    p = 1.0 / (1.0 + math.exp(-5.0 * (math.cos(0.7) - 0.2)))
    close(float(slope), -math.sin(0.7) * 5.0 * (p - 1.0), rtol=1e-9)


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_it_rises_with_the_margin(kind):
    x, y = draw(20, 3), torch.arange(20) % 4
    losses = [made(MAKERS[kind], 4, 3, 8.0, m, reduction="none") for m in (0.0, 0.2, 0.4)]
    own = cosine_logits(losses[0], x).gather(1, y.unsqueeze(1)).squeeze(1)
    ahead = own > math.cos(math.pi - 0.4)
    assert ahead.sum() > 10
    values = [loss(x, y)[ahead] for loss in losses]
    assert bool((values[0] < values[1]).all() and (values[1] < values[2]).all())


# UNPG.


def filtered(x, y, whisker):
    """The kept cosines of the batch's negative pairs, by a sorted list of numbers."""
    cosines = (F.normalize(x) @ F.normalize(x).t()).tolist()
    n = len(y)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n) if y[i] != y[j]]
    s = sorted(cosines[i][j] for i, j in pairs)
    if not s:
        return []
    first, third = s[int(0.25 * len(s))], s[int(0.75 * len(s))]
    reach = whisker * (third - first) if whisker < math.inf else math.inf
    return [(i, j) for i, j in pairs if first - reach <= cosines[i][j] <= third + reach]


@given(
    seeds, st.integers(0, 7), st.sampled_from([0.0, 0.1, 1.0, math.inf]),
    st.sampled_from(["cosface", "arcface"]), st.booleans(),
)  # fmt: skip
def test_unpg_is_one_softmax_over_classes_and_kept_pairs(seed, n, whisker, base, monotone):
    loss = made(
        UNPGLoss, 4, 3, base, 6.0, 0.4, whisker, monotone, seed=seed, reduction="none"
    )  # fmt: skip
    x = draw(n, 3, seed=seed).requires_grad_()
    y = torch.randint(4, (n,), generator=torch.Generator().manual_seed(seed))
    got = loss(x, y)
    kept = filtered(x.detach(), y.tolist(), whisker)
    cosine = cosine_logits(loss, x)
    own = cosine.gather(1, y.unsqueeze(1)).squeeze(1)
    target = own - 0.4
    if base == "arcface":
        target = torch.cos(torch.arccos(own) + 0.4)
        beyond = torch.arccos(own) > math.pi - 0.4
        if monotone:
            target = torch.where(beyond, own - 0.4 * math.sin(0.4), target)
    logits = cosine.scatter(1, y.unsqueeze(1), target.unsqueeze(1))
    unit = F.normalize(x)
    pairs = torch.stack([unit[i] @ unit[j] for i, j in kept]) if kept else x.new_zeros(0)
    logits = 6.0 * torch.cat((logits, pairs.expand(n, -1)), 1)
    want = F.cross_entropy(logits, y, reduction="none") if n else logits.sum(1)
    close(got, want, rtol=1e-9)
    along = draw(n, seed=seed + 1)
    leaves = (x, loss.weight_matrix)
    found = [torch.autograd.grad((along * v).sum(), leaves) for v in (got, want)]
    for a, b in zip(*found, strict=True):
        close(a, b, rtol=1e-7, atol=1e-9)


def test_without_negative_pairs_it_is_the_base():
    x, y = draw(5, 3), torch.full((5,), 2)
    unpg, base = made(UNPGLoss, 4, 3, margin=0.35), made(CosFaceLoss, 4, 3)
    close(unpg(x, y), base(x, y))
    more = made(UNPGLoss, 4, 3, "arcface", monotone=True)
    close(more(x, y), made(ArcFaceLoss, 4, 3)(x, y))


@given(seeds)
def test_wider_whiskers_never_lower_it_and_it_is_never_below_the_base(seed):
    x, y = draw(8, 3, seed=seed), torch.arange(8) % 4
    arguments = {"scale": 5.0, "margin": 0.3, "reduction": "none"}
    base = made(CosFaceLoss, 4, 3, seed=seed, **arguments)(x, y)
    values = [
        made(UNPGLoss, 4, 3, whisker=r, seed=seed, **arguments)(x, y)
        for r in (0.0, 0.5, 1.5, math.inf)
    ]
    for low, high in zip([base, *values], values, strict=False):
        assert bool((high >= low - 1e-12).all())


def test_equal_pairs_are_all_kept():
    # All negative cosines are equal: no spread, and none is an outlier.
    x, y = torch.eye(3, dtype=F64), torch.arange(3)
    values = [made(UNPGLoss, 3, 3, whisker=r)(x, y) for r in (0.0, 1.5, math.inf)]
    close(values[0], values[2])
    close(values[1], values[2])


# Directions.


def test_directions_are_a_parameter_and_drawn_anew():
    loss = made(CosFaceLoss, 4, 3)
    assert [name for name, _ in loss.named_parameters()] == ["weight_matrix"]
    before = loss.weight_matrix.detach().clone()
    loss.reset_parameters()
    assert not torch.equal(before, loss.weight_matrix)
    bound = math.sqrt(6.0 / 7.0)
    assert float(loss.weight_matrix.detach().abs().max()) <= bound


def test_a_row_of_weight_0_is_not_there():
    loss = made(CosFaceLoss, 4, 3)
    x, y = draw(3, 3), torch.tensor([0, 3, -7])
    x[2] = math.nan
    x.requires_grad_()
    value = loss(x, y, weight=torch.tensor([1.0, 1.0, 0.0], dtype=F64))
    close(value, loss(x[:2], y[:2]))
    gradient, directions = torch.autograd.grad(value, (x, loss.weight_matrix))
    assert bool((gradient[2] == 0).all() and directions.isfinite().all())


@pytest.mark.parametrize("tile_size", [None, 4])
def test_half_precision_is_computed_in_float32(tile_size):
    loss = made(CosFaceLoss, 4, 3, tile_size=tile_size).float()
    x = draw(5, 3).to(torch.bfloat16)
    value = loss(x, torch.arange(5) % 4)
    assert value.dtype is torch.float32
    close(value, loss(x.float(), torch.arange(5) % 4))
