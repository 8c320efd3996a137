"""Node compactness: the formula by loops, what of its bounds is sound, and what is not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import NodeCompactnessRegularizer

F64 = torch.float64
seeds = st.integers(0, 10**6)
slopes = st.sampled_from([0.0, 0.25])


def close(a, b, rtol=1e-9, atol=1e-11):
    a, b = (torch.as_tensor(x, dtype=F64) for x in (a, b))
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def draw(*shape, generator):
    return torch.randn(*shape, dtype=F64, generator=generator)


def network(seed, n=6, edges=0.5):
    """Features, the other view's outputs, the graph, a view of it and the parameters."""
    generator = torch.Generator().manual_seed(seed)
    graph = torch.rand(n, n, generator=generator).triu(1)
    kept = torch.rand(n, n, generator=generator).triu(1)
    graph = (graph > 1.0 - edges).int()
    view = graph * (kept > 0.3).int()
    graph, view = graph + graph.t(), view + view.t()
    x, other = draw(n, 3, generator=generator), draw(n, 2, generator=generator)
    parameters = [draw(*s, generator=generator) for s in ((3, 4), (4,), (4, 2), (2,))]
    return x, other, graph, view, *parameters


def normalized(graph):
    root = (graph.sum(1).double() + 1).rsqrt()
    return root.unsqueeze(1) * (graph + torch.eye(len(graph), dtype=F64)) * root


def act(x, slope):
    return torch.where(x > 0, x, slope * x)


def outputs(inputs, slope, graph):
    x, _, _, _, w1, b1, w2, b2 = inputs
    a = normalized(graph)
    return act(a @ act(a @ x @ w1 + b1, slope) @ w2 + b2, slope)


def margins(inputs, slope, graph):
    z = outputs(inputs, slope, graph)
    other = inputs[1] / inputs[1].norm(dim=1, keepdim=True)
    n = len(z)
    rest = [sum((other[k] for k in range(n) if k != i), 0 * z[i]) / (n - 1) for i in range(n)]
    return (z * (other - torch.stack(rest))).sum(1)


def by_loops(inputs, rate, alpha):
    """Return the compactness of every node, written out as on paper."""
    x, other, graph, view, w1, b1, w2, b2 = (v.tolist() for v in inputs)
    n, f, h, d = len(x), len(w1), len(w2), len(w2[0])
    nodes = range(n)
    degree = [sum(row) for row in graph]
    drop = [min(max(degree[i] + 1 - 2, 0), round(rate * degree[i])) for i in nodes]
    left = [degree[i] + 1 - drop[i] for i in nodes]
    upper = [[(graph[i][j] or i == j) / math.sqrt(left[i] * left[j]) for j in nodes] for i in nodes]
    lower = [[(i == j) / (degree[i] + 1) for j in nodes] for i in nodes]

    def matmul(a, b):
        return [
            [sum(a[i][k] * b[k][j] for k in range(len(b))) for j in range(len(b[0]))]
            for i in range(len(a))
        ]

    def normal(g):
        deg = [sum(row) + 1 for row in g]
        return [[(g[i][j] or i == j) / math.sqrt(deg[i] * deg[j]) for j in nodes] for i in nodes]

    def lines(values, bias):
        slope, shift = [], []
        for i in nodes:
            slope.append([])
            shift.append([])
            for c in range(len(bias)):
                ends = [bias[c], bias[c]]
                for k in nodes:
                    both = upper[i][k] * values[k][c], lower[i][k] * values[k][c]
                    ends[0] += min(both)
                    ends[1] += max(both)
                lo, hi = ends
                if lo >= 0:
                    a, b = 1.0, 0.0
                elif hi <= 0:
                    a, b = alpha, 0.0
                else:
                    a = (hi - alpha * lo) / (hi - lo)
                    b = (alpha - 1) * hi * lo / (hi - alpha * lo)
                slope[-1].append(a)
                shift[-1].append(b)
        return slope, shift

    def relu(v):
        return v if v > 0 else alpha * v

    first = matmul(x, w1)
    a1, s1 = lines(first, b1)
    hidden = [
        [relu(v + b) for v, b in zip(row, b1, strict=True)] for row in matmul(normal(graph), first)
    ]
    a2, s2 = lines(matmul(hidden, w2), b2)
    unit = [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in other]
    sums = [sum(row[c] for row in unit) for c in range(d)]
    t, c1, c2 = [], [], []
    for i in nodes:
        w = [unit[i][c] * n / (n - 1) - sums[c] / (n - 1) for c in range(d)]
        l2 = [w[c] * a2[i][c] for c in range(d)]
        c2.append(sum(l2[c] * ((0 if w[c] >= 0 else s2[i][c]) + b2[c]) for c in range(d)))
        t2 = [sum(l2[c] * w2[k][c] for c in range(d)) for k in range(h)]
        l1 = [t2[k] * a1[i][k] for k in range(h)]
        c1.append(sum(l1[k] * ((0 if t2[k] >= 0 else s1[i][k]) + b1[k]) for k in range(h)))
        t1 = [sum(l1[k] * w1[m][k] for k in range(h)) for m in range(f)]
        t.append(sum(x[i][m] * t1[m] for m in range(f)))
    av = normal(view)
    inner = [sum(av[j][k] * t[k] for k in nodes) + c1[j] for j in nodes]
    return [sum(av[i][j] * inner[j] for j in nodes) + c2[i] for i in nodes]


@given(seeds, st.sampled_from([0.0, 0.3, 0.5, 0.9]), slopes)
def test_compactness_by_the_formula(seed, rate, slope):
    inputs = network(seed)
    want = torch.tensor(by_loops(inputs, rate, slope), dtype=F64)
    loss = NodeCompactnessRegularizer(rate, slope, reduction="none")
    close(loss.scores(*inputs), want)
    close(loss(*inputs), torch.log1p(torch.exp(-want)))
    close(NodeCompactnessRegularizer(rate, slope)(*inputs), torch.log1p(torch.exp(-want)).mean())


@given(seeds, slopes)
def test_the_lines_bound_the_activation(seed, slope):
    generator = torch.Generator().manual_seed(seed)
    middle, radius = draw(50, generator=generator), draw(50, generator=generator).abs()
    a, b = NodeCompactnessRegularizer(0.5, slope)._lines(middle, radius)
    for share in torch.linspace(-1.0, 1.0, 21, dtype=F64):
        x = middle + share * radius
        y = act(x, slope)
        assert bool((a * x <= y + 1e-12).all())
        assert bool((y <= a * (x + b) + 1e-12).all())
    # They touch it at both ends above, and at 0 below.
    for end in (middle - radius, middle + radius):
        close(a * (end + b), act(end, slope))


@given(seeds)
def test_the_intervals_of_the_first_layer_hold_what_drops_give(seed):
    rate = 0.5
    x, _, graph, _, w1, b1, *_ = network(seed)
    middle, radius = NodeCompactnessRegularizer(rate)._entry_bounds(graph.double())
    first = x @ w1
    low, high = (middle @ first + b1 + s * radius @ first.abs() for s in (-1, 1))
    generator = torch.Generator().manual_seed(seed)
    degree = graph.sum(1)
    budget = torch.minimum((degree - 1).clamp(min=0), (rate * degree).round().int())
    for _ in range(5):
        left, spent = graph.clone(), torch.zeros_like(degree)
        pairs = graph.triu(1).nonzero()
        for i, j in pairs[torch.randperm(len(pairs), generator=generator)].tolist():
            if spent[i] < budget[i] and spent[j] < budget[j]:
                left[i, j] = left[j, i] = 0
                spent[i] += 1
                spent[j] += 1
        entries = normalized(left)
        assert bool(((entries - middle).abs() <= radius + 1e-12).all())
        found = entries @ first + b1
        assert bool((low <= found + 1e-12).all())
        assert bool((found <= high + 1e-12).all())


def test_the_score_is_not_a_bound_of_the_margin():
    # Of the graph itself, without a drop, already: a certified bound never exceeds it.
    inputs = list(network(3))
    inputs[3] = inputs[2]
    score = NodeCompactnessRegularizer(0.5).scores(*inputs)
    excess = score - margins(inputs, 0.0, inputs[2])
    assert float(excess.max()) > 0.1


@given(seeds, slopes)
def test_without_edges_the_score_is_the_margin(seed, slope):
    inputs = list(network(seed, edges=0.0))
    assert not bool(inputs[2].any())
    score = NodeCompactnessRegularizer(0.5, slope).scores(*inputs)
    close(score, margins(inputs, slope, inputs[2]))


@given(seeds)
def test_nodes_may_be_permuted_and_the_other_view_scaled(seed):
    x, other, graph, view, *parameters = network(seed)
    loss = NodeCompactnessRegularizer(0.3, 0.25, reduction="none")
    value = loss(x, other, graph, view, *parameters)
    p = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    moved = loss(x[p], other[p], graph[p][:, p], view[p][:, p], *parameters)
    close(moved, value[p])
    lengths = torch.rand(6, 1, dtype=F64) + 0.5
    close(loss(x, lengths * other, graph, view, *parameters), value)


def test_who_gets_a_gradient():
    inputs = list(network(0))
    for i in (0, 1, 4, 5, 6, 7):
        inputs[i] = inputs[i].requires_grad_()
    inputs[2] = inputs[2].double().requires_grad_()
    inputs[3] = inputs[3].double().requires_grad_()
    value = NodeCompactnessRegularizer(0.3)(*inputs)
    found = torch.autograd.grad(value, inputs, allow_unused=True)
    assert [g is not None for g in found] == [True, True, False, False, True, True, True, True]
    assert all(float(g.abs().sum()) > 1e-6 for g in found if g is not None)
    half = [v.detach().bfloat16() if v.is_floating_point() else v for v in inputs]
    score = NodeCompactnessRegularizer(0.3).scores(*half)
    assert score.dtype is torch.float32


@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_zeros_and_single_nodes_are_finite(slope):
    loss = NodeCompactnessRegularizer(0.5, slope)
    x, other, graph, view, *parameters = network(0)
    zeros = [torch.zeros_like(v).requires_grad_() for v in (x, other, *parameters)]
    value = loss(zeros[0], zeros[1], graph, view, *zeros[2:])
    close(value.detach(), math.log(2.0))
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(value, zeros))
    one = loss(x[:1], other[:1], graph[:1, :1], view[:1, :1], *parameters)
    close(one, math.log(2.0))
    none = x[:0].clone().requires_grad_()
    value = loss(none, other[:0], graph[:0, :0], view[:0, :0], *parameters)
    assert float(value.detach()) == 0.0
    value.backward()
