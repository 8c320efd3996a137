"""Losses of certified bounds: soundness on a small network, and the two regularizers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from lossary import (
    IBPRobustCrossEntropyLoss,
    IBPTightnessRegularizer,
    LinearLogits,
    ReLUBalanceRegularizer,
)
from single_rows import close, rows

F32, F64 = torch.float32, torch.float64


def worst_logits(lower, upper, y):
    """One row at a time, as the definition says."""
    v = upper.clone()
    for i, k in enumerate(y.tolist()):
        v[i, k] = lower[i, k]
    return v


# A small network, its bounds by interval propagation, and what happens inside of them.


def network(seed=0, width=12):
    torch.manual_seed(seed)
    layers = [nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 3)).double()


def propagate(net, x, eps):
    """Return the bounds of the logits and of the input of every ReLU."""
    centre, radius = x, torch.full_like(x, eps)
    before = []
    for layer in net:
        if isinstance(layer, nn.Linear):
            centre = layer(centre)
            radius = radius @ layer.weight.abs().T
        else:
            before.append((centre - radius, centre + radius))
            low, high = (b.clamp(min=0) for b in before[-1])
            centre, radius = (low + high) / 2, (high - low) / 2
    return centre - radius, centre + radius, before


def margins_through_last_layer(net, x, eps, y):
    """Bounds of f_y - f_k from one layer of differences: tighter than differences of bounds."""
    low, high, _ = propagate(net[:-1], x, eps)
    low, high = low.clamp(min=0), high.clamp(min=0)
    weight = net[-1].weight[y].unsqueeze(1) - net[-1].weight
    bias = net[-1].bias[y].unsqueeze(1) - net[-1].bias
    at_worst = weight.clamp(min=0) @ low.unsqueeze(2) + weight.clamp(max=0) @ high.unsqueeze(2)
    every = at_worst.squeeze(2) + bias
    others = torch.arange(3) != y.unsqueeze(1)
    return every[others].view(len(x), 2)


@pytest.mark.parametrize("eps", [0.0, 0.01, 0.1, 0.5])
def test_no_perturbation_costs_more(eps):
    net, loss = network(), IBPRobustCrossEntropyLoss(reduction="none")
    x, y = torch.randn(20, 4, dtype=F64), torch.randint(3, (20,))
    lower, upper, _ = propagate(net, x, eps)
    bound = loss(lower, upper, y)
    tighter = loss.forward_margins(margins_through_last_layer(net, x, eps, y))
    assert (tighter <= bound + 1e-12).all()
    largest = torch.zeros(20, dtype=F64)
    for corners in (True, False):
        for _ in range(100):
            delta = eps * (2 * torch.rand_like(x) - 1)
            f = net(x + (eps * delta.sign() if corners else delta))
            assert (f >= lower - 1e-12).all()
            assert (f <= upper + 1e-12).all()
            largest = torch.maximum(largest, cross_entropy(f, y, reduction="none").detach())
    assert (largest <= tighter + 1e-12).all()
    if eps == 0.0:
        close(bound, largest, rtol=1e-12)
        close(tighter, largest, rtol=1e-12)
    else:
        assert (bound > largest).all()


def test_a_small_loss_is_a_certificate():
    net, loss = network(1), IBPRobustCrossEntropyLoss(reduction="none")
    x = torch.randn(300, 4, dtype=F64) * 3
    y = net(x).argmax(1)
    lower, upper, _ = propagate(net, x, 0.01)
    values = loss(lower, upper, y)
    margins = torch.stack(
        [lower[i, k] - upper[i, [j for j in range(3) if j != k]] for i, k in enumerate(y.tolist())]
    )
    certified = (margins > 0).all(1)
    assert 0 < certified.sum() < 300
    assert certified[values < math.log(2)].all()
    assert (values[~certified] >= math.log(2)).all()
    assert (values[certified] < math.log(3)).all()
    close(loss.forward_margins(margins), values)
    for _ in range(30):
        found = net(x + 0.01 * (2 * torch.rand_like(x) - 1)).argmax(1)
        assert (found == y)[certified].all()


def test_training_on_the_bound_certifies():
    torch.manual_seed(0)
    net, loss = network(2), IBPRobustCrossEntropyLoss()
    y = torch.arange(60) % 3
    x = torch.eye(3, 4, dtype=F64)[y] * 2 + 0.1 * torch.randn(60, 4, dtype=F64)
    before = (net[0].weight.detach().clone(), loss(*propagate(net, x, 0.1)[:2], y).item())
    tight, balance = IBPTightnessRegularizer(), ReLUBalanceRegularizer()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for step in range(60):
        eps = 0.1 * min(1.0, step / 30)
        lower, upper, layers = propagate(net, x, max(eps, 1e-6))
        box = (x - max(eps, 1e-6), x + max(eps, 1e-6))
        shape = 0.5 * (1 - eps / 0.1) * (tight(box, layers) + balance(layers))
        optimizer.zero_grad()
        (loss(lower, upper, y) + shape).backward()
        optimizer.step()
    lower, upper, _ = propagate(net, x, 0.1)
    values = IBPRobustCrossEntropyLoss(reduction="none")(lower, upper, y)
    assert (values < math.log(2)).all()  # every sample is certified
    assert before[1] > math.log(2)


# The robust loss by itself.


@given(rows(count=2), st.floats(-3.0, 3.0))
def test_value_and_gradient(row, shift):
    f, w, y = row
    w = w.abs() + 0.01
    lower, upper = (f - w + shift).requires_grad_(), (f + w + shift).requires_grad_()
    v = worst_logits(lower.detach()[None], upper.detach()[None], torch.tensor([y]))
    out = IBPRobustCrossEntropyLoss()(lower[None], upper[None], torch.tensor([y]))
    close(out.detach(), cross_entropy(v, torch.tensor([y])), atol=1e-14)
    of_lower, of_upper = torch.autograd.grad(out, (lower, upper))
    p = torch.softmax(v[0], 0)
    one_hot = torch.nn.functional.one_hot(torch.tensor(y), len(f)).double()
    torch.testing.assert_close(of_lower, (p - 1) * one_hot, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(of_upper, p * (1 - one_hot), rtol=1e-9, atol=1e-14)


@given(rows(count=2), st.floats(0.0, 5.0))
def test_wider_bounds_cost_more(row, more):
    f, w, y = row
    w, y = w.abs(), torch.tensor([y])
    loss = IBPRobustCrossEntropyLoss()
    inner = loss((f - w)[None], (f + w)[None], y)
    assert loss((f - w - more)[None], (f + w)[None], y) >= inner
    assert loss((f - w)[None], (f + w + more)[None], y) >= inner
    assert inner >= cross_entropy(f[None], y) - 1e-14
    close(loss(f[None], f[None], y), cross_entropy(f[None], y), atol=1e-14)


def test_published_margin_form():
    # It pads a logit of 0 and takes it for the label.
    margins = torch.randn(30, 4, dtype=F64) * 5
    padded = torch.cat((torch.zeros(30, 1, dtype=F64), -margins), 1)
    want = cross_entropy(padded, torch.zeros(30, dtype=torch.long))
    loss = IBPRobustCrossEntropyLoss()
    close(loss.forward_margins(margins), want)
    close(loss.forward_margins(margins), torch.log1p((-margins).exp().sum(1)).mean())


@pytest.mark.parametrize("dtype", [F32, F64, torch.bfloat16])
@pytest.mark.parametrize("size", [50.0, 1e4])
def test_margins_of_any_size(dtype, size):
    margins = torch.tensor([[-size, 1.0], [size, size]], dtype=dtype, requires_grad=True)
    out = IBPRobustCrossEntropyLoss(reduction="none").forward_margins(margins)
    exact = [size, 2 * math.exp(-size)]
    assert out.dtype == (F64 if dtype == F64 else F32)
    rtol = {F64: 1e-12, F32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    close(out.detach(), exact, rtol=rtol, atol=1e-38)
    (g,) = torch.autograd.grad(out.sum(), margins)
    assert g.isfinite().all()
    close(g[0, 0].double(), -1.0)


def test_margins_are_weighted_masked_and_reduced():
    margins = torch.randn(4, 2, 3, dtype=F64)
    values = torch.log1p((-margins).exp().sum(1))
    weight = torch.tensor([[1.0, 0.0, 2.0]], dtype=F64).expand(4, 3).clone()
    margins[:, :, 1] = math.nan
    margins.requires_grad_()
    loss = IBPRobustCrossEntropyLoss(ignore_index=0)  # no class is meant, so none is ignored
    out = loss.forward_margins(margins, weight=weight)
    kept = (values * weight)[:, [0, 2]].sum()
    close(out.detach(), kept / 12)
    (g,) = torch.autograd.grad(out, margins)
    assert (g[:, :, 1] == 0).all()
    assert (g[:, :, [0, 2]] < 0).all()
    close(loss.forward_margins(margins.detach(), weight=weight > 0), values[:, [0, 2]].mean())
    close(loss.forward_margins(margins.detach(), weight=weight, normalizer=5.0), kept / 5)
    by_axis = IBPRobustCrossEntropyLoss(class_dim=-1, reduction="sum")
    close(by_axis.forward_margins(margins.detach()[:, :, 0]), values[:, 0].sum())
    one = torch.tensor([0.5, 1.0], dtype=F64)
    close(by_axis.forward_margins(one), math.log(1 + math.exp(-0.5) + math.exp(-1)))
    empty = torch.zeros(0, 2, dtype=F64, requires_grad=True)
    assert IBPRobustCrossEntropyLoss().forward_margins(empty) == 0.0


@pytest.mark.parametrize(
    ("margins", "options", "weight", "error", "message"),
    [
        ([1.0], {}, None, TypeError, "margins: expected a tensor, got list"),
        (torch.ones(3).long(), {}, None, TypeError, "margins: expected floating point, got"),
        (torch.ones(3, 0), {}, None, ValueError, r"margins: expected shape \(N, K - 1, .*\(3, 0\)"),
        (torch.tensor(1.0), {}, None, ValueError, r"margins: expected shape .*got \(\)"),
        (torch.ones(3, 2), {"class_dim": 2}, None, ValueError, r"margins: .*axis 2.*\(3, 2\)"),
        (torch.ones(3, 2), {"class_weight": torch.ones(3)}, None, ValueError, "class_weight: expe"),
        (torch.ones(3, 2), {}, torch.ones(3, 1), ValueError, r"weight: .*\(3,\).*\(3, 1\)"),
        (torch.ones(3, 2), {}, [1.0], TypeError, "weight: expected a tensor, got list"),
    ],
)
def test_margins_that_are_refused(margins, options, weight, error, message):
    with pytest.raises(error, match=f"^{message}"):
        IBPRobustCrossEntropyLoss(**options).forward_margins(margins, weight=weight)


def test_probabilities_are_the_expectation_at_any_size():
    # The worst logits of the top class are far below its upper bound, whose digits must not count.
    lower = torch.tensor([[0.0, -1.0, 0.5]])
    upper = torch.tensor([[1e8, 0.25, 1.0]])
    loss = IBPRobustCrossEntropyLoss()
    for k in range(3):
        q = torch.eye(3)[[k]]
        want = loss(lower.double(), upper.double(), torch.tensor([k]))
        close(loss(lower, upper, q), want, rtol=1e-6)
    q = torch.tensor([[0.5, 0.25, 0.25]], dtype=F64)
    want = sum(q[0, k] * loss(lower.double(), upper.double(), torch.tensor([k])) for k in range(3))
    close(loss(lower.double(), upper.double(), q), want)


def test_bounds_left_out_may_cross():
    f = torch.randn(3, 4, dtype=F64)
    upper = f.clone()
    upper[1] = f[1] - 1.0
    y = torch.tensor([0, -100, 2])
    loss = IBPRobustCrossEntropyLoss()
    want = cross_entropy(f[[0, 2]], y[[0, 2]])
    close(loss(f, upper, y), want)
    keep = torch.tensor([1.0, 0.0, 1.0])
    close(loss(f, upper, y.clamp(min=0), weight=keep), want)
    close(loss(f, upper, torch.eye(4, dtype=F64)[y.clamp(min=0)], weight=keep), want)
    upper[1] = math.nan
    close(loss(f, upper, torch.eye(4, dtype=F64)[y.clamp(min=0)], weight=keep), want)
    with pytest.raises(ValueError, match="lower: expected lower bounds <= upper ones"):
        loss(f, f - 1.0, y)


def test_layouts_are_refused():
    logits = LinearLogits(torch.randn(4, 3), torch.randn(5, 3))
    with pytest.raises(TypeError, match=r"^lower: expected a tensor, got LinearLogits"):
        IBPRobustCrossEntropyLoss()(logits, logits, torch.zeros(4, dtype=torch.long))


# Tightness.


def published_tightness(box, layers, tol):
    width = ((box[1] - box[0]) / 2).mean()
    loss = 0.0
    for lower, upper in layers:
        gain = ((upper - lower) / 2).mean().clamp(min=1e-12)
        loss = loss + torch.relu(tol - width / gain) / tol
    return loss / len(layers)


def boxes(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    out = []
    for shape in shapes:
        centre, width = torch.randn(2, *shape, dtype=F64, generator=g)
        out.append((centre - width.abs(), centre + width.abs()))
    return out


@pytest.mark.parametrize("tol", [0.3, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_tightness_value(tol, seed):
    box, *layers = boxes((5, 4), (5, 7), (5, 2, 3), (5, 11), seed=seed)
    layers = [(c * k, d * k) for k, (c, d) in zip((1.0, 3.0, 30.0), layers, strict=True)]
    loss = IBPTightnessRegularizer(tol)
    close(loss(box, layers), published_tightness(box, layers, tol))
    assert 0 < loss(box, layers) < 1
    for k in (7.0, 1e-8):
        scaled = [(k * c, k * d) for c, d in layers]
        close(loss((k * box[0], k * box[1]), scaled), loss(box, layers), rtol=1e-10)


def test_tightness_by_hand():
    x = torch.zeros(2, 3, dtype=F64)

    def box(width):
        return (x - width, x + width)

    loss = IBPTightnessRegularizer(0.5)
    close(loss(box(1.0), [box(2.0)]), 0.0)  # as wide as 1/tol
    close(loss(box(1.0), [box(2.0), box(0.1)]), 0.0)
    close(loss(box(1.0), [box(4.0)]), 0.5)
    close(loss(box(1.0), [box(4.0), box(0.1)]), 0.25)
    assert loss(box(1.0), [box(2.001)]) > 0
    close(loss(box(1.0), [box(1e9)]), 1.0, rtol=1e-8)
    close(loss(box(0.0), [box(0.0)]), 1.0)  # as the published code has it
    stacked = torch.stack([torch.stack(box(4.0)), torch.stack(box(0.1))])
    close(loss(torch.stack(box(1.0)), stacked), 0.25)
    assert loss(box(1.0), [box(4.0)]) < loss(box(1.0), [box(5.0)])
    for reduction in ("sum", "none", "batchmean"):
        close(IBPTightnessRegularizer(0.5, reduction=reduction)(box(1.0), [box(4.0)]), 0.5)


def test_tightness_gradient():
    box, layer = boxes((5, 4), (5, 7))
    layer = tuple(b.mul(9.0).requires_grad_() for b in layer)
    out = IBPTightnessRegularizer(0.5)(box, [layer])
    low, high = torch.autograd.grad(out, layer)
    d0, d = ((u - v).mean() / 2 for v, u in (box, layer))
    close(high.detach(), (d0 / d**2 / 0.5 / 70).detach().expand(5, 7))
    close(low, -high)


# Balance.


def published_balance(layers, tol):
    """The published code, with its Python test for what is not finite."""
    loss = 0.0
    for lower, upper in layers:
        centre = (lower + upper) / 2
        mean = centre.mean()
        active, inactive = (lower > 0).double(), (upper < 0).double()
        ratios = (
            (centre * active).mean() / -(centre * inactive).mean(),
            ((centre - mean).pow(2) * active).sum() / ((centre - mean).pow(2) * inactive).sum(),
        )
        ratios = [torch.minimum(r, 1 / r.clamp(min=1e-12)) for r in ratios]
        term = sum(torch.relu(tol - r) / tol for r in ratios)
        loss = loss + (term if bool(torch.isfinite(term)) else 0.0)
    return loss / len(layers)


@pytest.mark.parametrize("tol", [0.3, 0.5, 0.95])
@pytest.mark.parametrize("seed", range(6))
def test_balance_value_and_gradient(tol, seed):
    layers = [
        tuple((b * 0.3 + shift).requires_grad_() for b in box)
        for shift, box in zip((0.0, 0.3, -0.5), boxes((5, 9), (5, 12), (5, 3, 4), seed=seed),
                              strict=True)
    ]  # fmt: skip
    leaves = [b for box in layers for b in box]
    got, want = ReLUBalanceRegularizer(tol)(layers), published_balance(layers, tol)
    close(got.detach(), want.detach(), atol=1e-15)
    assert 0 <= got <= 2
    if got > 0:
        got, want = (
            torch.autograd.grad(x, leaves, allow_unused=True, materialize_grads=True)
            for x in (got, want)
        )
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)
    else:
        assert tol < 0.9


def certain(*centres):
    c = torch.tensor([centres], dtype=F64)
    return c - 0.1, c + 0.1


DEGENERATE = {
    "all active": (certain(1.0, 2.0, 3.0), 0.0),
    "no inactive": (certain(1.0, 0.05, 3.0), 0.0),
    "all inactive": (certain(-1.0, -2.0, -3.0), 2.0),
    "no active": (certain(-1.0, 0.05, -3.0), 2.0),
    "all inactive and equal": (certain(-1.0, -1.0), 0.0),
    "neither": (certain(0.05, -0.05, 0.0), 0.0),
    "one of each": (certain(2.0, -2.0), 0.0),
    "by hand": (certain(3.0, 0.0, -1.0), (0.5 - 1 / 3) / 0.5 + 0.0),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_balance_of_degenerate_layers(name):
    layer, want = DEGENERATE[name]
    loss = ReLUBalanceRegularizer()
    leaves = [b.clone().requires_grad_() for b in layer]
    out = loss([leaves])
    close(out.detach(), want, atol=1e-15)
    close(published_balance([layer], 0.5), want, atol=1e-15)
    for g in torch.autograd.grad(out, leaves):
        assert g.isfinite().all()  # where the published division is by 0 it is nan
    # What counts as 0 stays in the mean.
    close(loss([layer, certain(-1.0, -3.0)]), (want + 2.0) / 2)


def test_balance_is_unchanged_by_scale_and_by_exchanging_the_kinds():
    layer = tuple(b + 0.2 for b in boxes((6, 10))[0])
    loss = ReLUBalanceRegularizer(0.95)
    want = loss([layer])
    assert want > 0
    for c in (1e-200, 1e-3, 1e100):
        close(loss([(layer[0] * c, layer[1] * c)]), want)
    close(loss([(-layer[1], -layer[0])]), want)
    stacked = torch.stack([torch.stack(layer)])
    close(loss(stacked), want)
    single = [tuple(b.float() for b in layer)]
    tiny = [tuple(b * 1e-30 for b in single[0])]
    close(loss(tiny), want, rtol=1e-5)


def test_empty_batches():
    box = tuple(torch.zeros(2, 0, 3, requires_grad=True))
    for out in (
        IBPTightnessRegularizer()(box, [box, box]),
        ReLUBalanceRegularizer()([box, box]),
    ):
        assert out == 0.0
        assert out.requires_grad
