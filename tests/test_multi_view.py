"""Contrast of several heads and of three views against loops, and what they promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import AMCLLoss, NTXentLoss, RMTContrastiveLoss

F64 = torch.float64
seeds = st.integers(0, 10**6)


def close(a, b, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=rtol, atol=atol
    )


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=F64, generator=generator)


def log_sum_exp(xs):
    top = max(xs)
    return top + math.log(sum(math.exp(x - top) for x in xs))


def several_heads(num_heads, dim, *arguments, seed=0, **options):
    torch.manual_seed(seed)
    loss = AMCLLoss(num_heads, dim, *arguments, hidden=5, **options).double()
    with torch.no_grad():
        for p in loss.parameters():  # so that the temperatures differ
            p.mul_(4.0)
    return loss


# Several heads.


def temperature(loss, head, a, b):
    head = 0 if loss.shared else head
    first = torch.nn.Linear(2 * loss.dim, loss.hidden, dtype=F64)
    second = torch.nn.Linear(loss.hidden, 1, dtype=F64)
    with torch.no_grad():
        first.weight.copy_(loss.weight1[head])
        first.bias.copy_(loss.bias1[head])
        second.weight.copy_(loss.weight2[head].unsqueeze(0))
        second.bias.copy_(loss.bias2[head])
        logit = float(second(first(torch.cat((a, b))).relu()))
    return loss.tau_low + (loss.tau_high - loss.tau_low) / (1 + math.exp(-logit))


def of_heads(loss, z1, z2):
    heads, n, dim = z1.shape
    width = loss.omega_dim or dim
    found = [0.0] * n
    for c in range(heads):
        rows = [z / z.norm() for z in torch.cat((z1[c], z2[c]))]
        for a in range(2 * n):
            terms = []
            for b in range(2 * n):
                tau = temperature(loss, c, rows[a], rows[b])
                omega = width / 2 * math.log(tau) + 1 / tau
                s = float(rows[a] @ rows[b])
                terms.append((s, s / tau - loss.beta * omega))
            value = -terms[(a + n) % (2 * n)][1]
            rest = [terms[b] for b in range(2 * n) if b % n != a % n]
            if rest and loss.negatives == "max":
                value += max(rest)[1]
            elif rest:
                value += log_sum_exp([t for _, t in rest])
            found[a % n] += value / 2
    return found


@given(
    seeds,
    st.integers(1, 4),
    st.integers(1, 2),
    st.sampled_from(["max", "lse"]),
    st.booleans(),
    st.sampled_from([None, 7]),
)
def test_several_heads_are_what_the_formula_says(seed, n, heads, negatives, shared, width):
    loss = several_heads(
        heads,
        3,
        0.3,
        0.1,
        1.5,
        negatives=negatives,
        shared=shared,
        omega_dim=width,
        reduction="none",
        seed=seed,
    )
    z1, z2 = draw(2, heads, n, 3, seed=seed)
    close(loss(z1, z2), of_heads(loss, z1, z2))
    close(loss(z2, z1), loss(z1, z2))


def test_the_nearest_is_nearest_by_the_cosine():
    # Row 0 has two others, at cosines 0.6 and 0.8; the first one's temperature is far smaller.
    loss = AMCLLoss(1, 2, 0.0, 0.01, 1.0, hidden=1, reduction="none").double()
    with torch.no_grad():
        loss.weight1.copy_(torch.tensor([[[0.0, 0.0, 0.0, 100.0]]]))
        loss.bias1.zero_()
        loss.weight2.fill_(-1.0)
        loss.bias2.fill_(50.0)
    z1 = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.8, -0.6]]], dtype=F64)
    found = of_heads(loss, z1, z1)
    close(loss(z1, z1), found)
    # Its positive is itself, at a temperature of 1, and so is its negative.
    close(found[0], 0.8 - 1.0)


def test_all_heads_of_one_temperature_are_a_difference_of_cosines():
    low, z1, z2 = 0.5, *draw(2, 1, 5, 3)
    nearest = AMCLLoss(1, 3, 0.0, low, low * (1 + 1e-13), reduction="none").double()
    soft = AMCLLoss(1, 3, 0.0, low, low * (1 + 1e-13), negatives="lse", reduction="none").double()
    rows = torch.cat((z1[0], z2[0]))
    rows = rows / rows.norm(dim=1, keepdim=True)
    s = rows @ rows.t()
    sample = torch.arange(5).repeat(2)
    own = sample.unsqueeze(1) == sample
    far = s.masked_fill(own, -math.inf).amax(1)
    want = (far - s.diagonal(5).repeat(2)) / low
    close(nearest(z1, z2), want.view(2, 5).mean(0))
    gap = (soft(z1, z2) - nearest(z1, z2)).detach()
    assert float(gap.min()) > 0
    assert float(gap.max()) < math.log(8)
    # NT-Xent is the softplus of the decoupled loss, anchor by anchor.
    decoupled = (s / low).masked_fill(own, -math.inf).logsumexp(1) - s.diagonal(5).repeat(2) / low
    close(soft(z1, z2), decoupled.view(2, 5).mean(0))
    entropy = torch.nn.functional.softplus(decoupled, threshold=50).view(2, 5).mean(0)
    close(NTXentLoss(low, reduction="none")(z1[0], z2[0]), entropy)


def test_the_positive_term_is_a_normal_likelihood():
    # One sample alone has no negatives.
    loss = several_heads(1, 4, 1.0, 0.2)
    z1, z2 = draw(2, 1, 1, 4)
    a, b = (z[0, 0] / z.norm() for z in (z1, z2))
    want = 0.0
    for x, y in ((a, b), (b, a)):
        tau = temperature(loss, 0, x, y)
        normal = torch.distributions.Normal(x, math.sqrt(tau))
        want -= float(normal.log_prob(y).sum()) / 2
    close(loss(z1, z2), want - 2 * math.log(2 * math.pi))


def test_temperatures_stay_in_their_range():
    loss = several_heads(1, 3, 0.0, 0.25, 1.75)
    z = draw(1, 1, 3)
    for bias, tau in ((-800.0, 0.25), (800.0, 1.75)):
        with torch.no_grad():
            loss.bias2.fill_(bias)
        close(loss(z, z), -1.0 / tau)


def test_several_heads_know_directions_only():
    z1, z2 = draw(2, 2, 4, 3)
    loss = several_heads(2, 3, 0.3, 0.1)
    scale = torch.rand(2, 4, 1, dtype=F64) + 0.1
    close(loss(z1 * scale, z2 * 1e3), loss(z1, z2))


@pytest.mark.parametrize("negatives", ["max", "lse"])
def test_every_parameter_of_the_temperatures_learns(negatives):
    loss = several_heads(2, 3, 0.3, 0.1, negatives=negatives)
    z1, z2 = draw(2, 2, 4, 3)
    loss(z1, z2).backward()
    assert {name for name, _ in loss.named_parameters()} == {
        "weight1",
        "bias1",
        "weight2",
        "bias2",
    }
    for p in loss.parameters():
        assert all(float(g.abs().max()) > 0 for g in p.grad)
    assert AMCLLoss(3, 4, hidden=7).weight1.shape == (3, 7, 8)
    assert AMCLLoss(3, 4, hidden=7, shared=True).bias2.shape == (1,)


def test_networks_begin_as_linear_layers_do():
    torch.manual_seed(0)
    loss = AMCLLoss(50, 8, hidden=64)
    for p, width in (
        (loss.weight1, 16),
        (loss.bias1, 16),
        (loss.weight2, 64),
        (loss.bias2, 64),
    ):
        bound = width**-0.5
        assert 0.8 * bound < float(p.detach().abs().max()) <= bound
        assert abs(float(p.detach().mean())) < 0.2 * bound


@pytest.mark.parametrize("negatives", ["max", "lse"])
def test_no_samples_are_an_attached_zero(negatives):
    z = torch.empty(2, 0, 3, requires_grad=True)
    value = AMCLLoss(2, 3, negatives=negatives)(z, z)
    assert value == 0.0
    assert torch.autograd.grad(value, z)[0].shape == (2, 0, 3)


# Three views.


def three_views(features, augmented, prototypes, tau, project=None):
    n = len(features)
    unit = [x / x.norm() for x in features]
    nearest = [max(prototypes, key=lambda p, u=u: float(u @ p / p.norm())) for u in unit]
    rows = torch.stack([*nearest, *features, *augmented])
    rows = rows if project is None else project(rows)
    rows = [z / z.norm() for z in rows]
    found = [0.0] * n
    for a in range(3 * n):
        s = {b: float(rows[a] @ rows[b]) / tau for b in range(3 * n) if b != a}
        own = [v for b, v in s.items() if b % n == a % n]
        assert len(own) == 2
        found[a % n] += (log_sum_exp(list(s.values())) - sum(own) / 2) / 3
    return found


@given(seeds, st.integers(1, 5), st.integers(1, 4))
def test_three_views_are_what_the_formula_says(seed, n, classes):
    features, augmented = draw(2, n, 3, seed=seed)
    prototypes = draw(classes, 3, seed=seed + 1)
    want = three_views(features, augmented, prototypes, 0.3)
    close(RMTContrastiveLoss(0.3, reduction="none")(features, augmented, prototypes), want)
    assert min(want) >= math.log(2.0)


def test_the_projector_is_passed_once_by_all_rows():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2).double()
    sizes = []
    layer.register_forward_hook(lambda module, given, out: sizes.append(tuple(given[0].shape)))
    features, augmented = draw(2, 4, 3)
    prototypes = draw(3, 3, seed=1).requires_grad_()
    loss = RMTContrastiveLoss(0.5, layer, reduction="none")
    value = loss(features, augmented, prototypes)
    assert sizes == [(12, 3)]
    with torch.no_grad():
        close(value, three_views(features, augmented, prototypes, 0.5, layer))
    assert {name for name, _ in loss.named_parameters()} == {"projector.weight", "projector.bias"}
    value.sum().backward()
    assert prototypes.grad is None
    # Where neither feature reaches the projector, the prototypes still do.
    zero = torch.zeros(2, 3, dtype=F64)
    layer.zero_grad()
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1.0, 0.0]))
    loss(zero, zero, torch.eye(3, dtype=F64)).sum().backward()
    assert float(layer.weight.grad.abs().max()) > 1e-3


def test_a_projector_in_half_precision_stays_so():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    features, augmented = draw(2, 4, 3).bfloat16()
    prototypes = torch.eye(3)
    want = RMTContrastiveLoss(0.5, layer)(features, augmented, prototypes)
    got = RMTContrastiveLoss(0.5, layer.bfloat16())(features, augmented, prototypes)
    assert got.dtype is torch.float32
    close(got.detach(), want.detach(), rtol=0.05)
    with pytest.raises(ValueError, match=r"projector: expected rows for rows, .*got \(6, 1, 3\)"):
        RMTContrastiveLoss(1.0, torch.nn.Unflatten(1, (1, 3)))(*draw(2, 2, 3), draw(1, 3))


def test_the_nearest_prototype_is_by_the_cosine():
    features = torch.tensor([[1.0, 0.1]], dtype=F64)
    prototypes = torch.tensor([[9.0, 9.0], [0.1, 0.0]], dtype=F64)
    near = RMTContrastiveLoss()(features, features, prototypes[1:])
    close(RMTContrastiveLoss()(features, features, prototypes), near)


def test_samples_of_one_prototype_are_negatives():
    x = torch.eye(2, 3, dtype=F64)
    prototype = torch.tensor([[1.0, 1.0, 0.0]], dtype=F64)
    found = RMTContrastiveLoss(1.0)(x, x, prototype)
    # Prototype rows have each other at cosine 1 among the negatives.
    h = 1 / math.sqrt(2)
    of_prototype = math.log(math.e + 4 * math.exp(h)) - h
    of_feature = math.log(2 * math.exp(h) + math.e + 2) - (h + 1) / 2
    close(found, (of_prototype + 2 * of_feature) / 3)


def test_one_sample_of_equal_views():
    x = torch.tensor([[1.0, 2.0]], dtype=F64)
    close(RMTContrastiveLoss()(x, x, x), math.log(2))
    empty = torch.empty(0, 2, requires_grad=True)
    value = RMTContrastiveLoss()(empty, empty, torch.eye(2))
    assert value == 0.0
    assert value.requires_grad
