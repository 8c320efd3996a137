"""The softmax primitive, on both of its eager paths and under compilation.

What it must equal is written out here twice: with mpmath, for the digits, and row by row in stock
operations without the target, for derivatives of any order.
"""

import gc
import math
from contextlib import contextmanager
from unittest import mock

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from lossary import _softmax
from lossary._softmax import (
    CHANCE_ODDS,
    GAPS,
    LOG_ODDS,
    RIVAL_SQUARES,
    STATISTICS,
    TARGET,
    all_log_odds,
    hardest_rival,
    row_statistics,
    target_log_odds,
)

# torch still scripts parts of itself, and warns about that, on the first use of forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

N, K = 5, 4
INF, NAN = math.inf, math.nan
F64 = torch.float64
HALF = (torch.bfloat16, torch.float16)
MIB = 1 << 20

TEMPERATURES = ("one", "number", "scalar", "rows")
MARGINS = ("none", "number", "scalar", "classes", "matrix")
every_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)
every_margin = pytest.mark.parametrize("margin", MARGINS)
#: Every kind of temperature and of margin, and both ways in which the two can be materialised.
SOME = [
    ("one", "none"),
    ("number", "number"),
    ("number", "matrix"),
    ("rows", "scalar"),
    ("scalar", "classes"),
    ("rows", "matrix"),
]
some_kinds = pytest.mark.parametrize(("temperature", "margin"), SOME)


@contextmanager
def forced(tile_bytes):
    """Send everything through tiles of this size, or, with None, through stock operations."""
    values = {"TILED_FROM_BYTES": 1 << 62}
    if tile_bytes is not None:
        values = {
            "TILED_FROM_BYTES": 0,
            "TILED_FROM_CLASSES": 0,
            "TILE_BYTES": {"cpu": tile_bytes, "other": tile_bytes},
        }
    with mock.patch.multiple(_softmax, **values):
        yield


@pytest.fixture(params=["stock", "tiled"])
def path(request):
    """Both eager paths; two rows of float64 make a tile, so that every batch here is split."""
    with forced(None if request.param == "stock" else 2 * K * 8 + 6):
        yield request.param


@pytest.fixture
def tiled_calls(monkeypatch):
    """Count what the tiles compute."""
    calls = {"values": 0, "gradient": 0}

    def counted(name, fn):
        def call(*args):
            calls[name] += 1
            return fn(*args)

        return call

    monkeypatch.setattr(_softmax, "_tiled_values", counted("values", _softmax._tiled_values))
    monkeypatch.setattr(_softmax, "_tiled_gradient", counted("gradient", _softmax._tiled_gradient))
    return calls


# Inputs, and what the statistics are.


def batch(n=N, k=K, dtype=F64, absent=()):
    """Rows of all sorts: spread, confidently right, confidently wrong, near chance."""
    f = 2.0 * torch.randn(n, k, dtype=F64)
    y = torch.randint(k, (n,))
    if n > 3:
        f[1, y[1]] += 9.0
        f[2, y[2]] -= 9.0
        f[3] = 0.5 + 0.01 * torch.randn(k)
    for i in absent:
        y[i] = -1
    return f.to(dtype), y


def temperature_of(kind, shape=(N,), dtype=F64):
    return {
        "one": lambda: 1.0,
        "number": lambda: 0.7,
        "scalar": lambda: torch.tensor(1.3, dtype=dtype),
        "rows": lambda: 0.5 + torch.rand(shape, dtype=dtype),
    }[kind]()


def margin_of(kind, k=K, dtype=F64):
    return {
        "none": lambda: None,
        "number": lambda: 0.3,
        "scalar": lambda: torch.tensor(0.4, dtype=dtype),
        "classes": lambda: torch.rand(k, dtype=dtype),
        # Not symmetric, and with a diagonal that must not be read.
        "matrix": lambda: torch.rand(k, k, dtype=dtype) + 7.0 * torch.eye(k, dtype=dtype),
    }[kind]()


def rival_margins(margin, y, k):
    """The margins of the rivals of target y, in order: row y of a matrix."""
    rivals = [j for j in range(k) if j != y]
    if margin is None:
        return [0.0 for _ in rivals]
    if not isinstance(margin, torch.Tensor) or margin.dim() == 0:
        return [margin for _ in rivals]
    return [margin[y] if margin.dim() == 1 else margin[y, j] for j in rivals]


def row_temperature(temperature, i):
    spread = isinstance(temperature, torch.Tensor) and temperature.dim() > 0
    return temperature[i] if spread else temperature


def definition(f, y, temperature=1.0, margin=None):
    """Every statistic of (N, K) logits, row by row, with the target left out of the rivals.

    Differentiable to any order in every argument. Absent rows are 0.
    """
    out = {name: [] for name in STATISTICS}
    k = f.shape[1]
    for i, target in enumerate(y.tolist()):
        if target < 0:
            for found in out.values():
                found.append(torch.zeros((), dtype=f.dtype))
            continue
        t = row_temperature(temperature, i)
        margins = rival_margins(margin, target, k)
        others = [j for j in range(k) if j != target]
        rivals = torch.stack([(f[i, j] + m) / t for j, m in zip(others, margins, strict=True)])
        own = f[i, target] / t
        odds = rivals.logsumexp(0) - own
        out[LOG_ODDS].append(odds)
        out[CHANCE_ODDS].append(odds - math.log(k - 1))
        out[TARGET].append(own)
        out[GAPS].append((rivals - own).sum())
        out[RIVAL_SQUARES].append(rivals.softmax(0).square().sum())
    return {name: torch.stack(found) for name, found in out.items()}


def exact(f, y, temperature=1.0, margin=None):
    """The same numbers, to 60 digits, and the size of the largest scaled logit of each row."""
    out = {name: [] for name in STATISTICS}
    sizes = []
    with mpmath.workdps(60):
        for i, target in enumerate(y.tolist()):
            t = mpmath.mpf(float(row_temperature(temperature, i)))
            k = f.shape[1]
            z = [mpmath.mpf(float(x)) / t for x in f[i]]
            own = z.pop(target)
            margins = rival_margins(margin, target, k)
            z = [x + mpmath.mpf(float(m)) / t for x, m in zip(z, margins, strict=True)]
            e = [mpmath.exp(x - own) for x in z]
            odds = mpmath.log(mpmath.fsum(e))
            out[LOG_ODDS].append(odds)
            out[CHANCE_ODDS].append(odds - mpmath.log(k - 1))
            out[TARGET].append(own)
            out[GAPS].append(mpmath.fsum(x - own for x in z))
            out[RIVAL_SQUARES].append(mpmath.fsum(x * x for x in e) / mpmath.fsum(e) ** 2)
            sizes.append(max(abs(x) for x in [*z, own]))
        as_tensor = {n: torch.tensor([float(x) for x in v], dtype=F64) for n, v in out.items()}
        return as_tensor, torch.tensor([float(x) for x in sizes], dtype=F64)


def statistics(f, y, **options):
    return dict(zip(STATISTICS, row_statistics(f, y, STATISTICS, **options), strict=True))


def close(found, expected, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def problem(temperature="one", margin="none", *, absent=(4,), names=STATISTICS, n=N):
    """A function of every differentiable argument, and these arguments, requiring a gradient."""
    f, y = batch(n, absent=absent)
    t, m = temperature_of(temperature, (n,)), margin_of(margin)
    inputs = [f]
    inputs += [x for x in (t, m) if isinstance(x, torch.Tensor)]

    def fn(f, *others):
        others = list(others)
        tt = others.pop(0) if isinstance(t, torch.Tensor) else t
        mm = others.pop(0) if isinstance(m, torch.Tensor) else m
        return row_statistics(f, y, names, temperature=tt, margin=mm)

    return fn, tuple(x.requires_grad_() for x in inputs)


def total(fn):
    """One number of all outputs of all rows, each in another way."""

    def scalar(*xs):
        out = fn(*xs)
        out = out if isinstance(out, tuple) else (out,)
        return sum(
            ((1.0 + i) * torch.sin(x * torch.arange(1.0, 1.0 + x.numel(), dtype=x.dtype))).sum()
            for i, x in enumerate(x.flatten() for x in out)
        )

    return scalar


# Values.


@every_temperature
@every_margin
def test_every_statistic_has_the_value_of_its_definition(path, temperature, margin):
    f, y = batch(12)
    options = {"temperature": temperature_of(temperature, (12,)), "margin": margin_of(margin)}
    expected, size = exact(f, y, **options)
    found = statistics(f, y, **options)
    for name in STATISTICS:
        error = (found[name] - expected[name]).abs()
        scale = expected[name] if name == RIVAL_SQUARES else size + math.log(K)
        assert bool((error <= 2e-15 * scale * (K if name == GAPS else 1)).all()), name


@every_temperature
@every_margin
def test_arguments_that_require_a_gradient_give_the_same_values(path, temperature, margin):
    f, y = batch(absent=(4,))
    options = {"temperature": temperature_of(temperature), "margin": margin_of(margin)}
    plain = statistics(f, y, **options)
    options = {
        name: x.clone().requires_grad_() if isinstance(x, torch.Tensor) else x
        for name, x in options.items()
    }
    for name, x in statistics(f.clone().requires_grad_(), y, **options).items():
        close(x.detach()[:4], plain[name][:4], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_asked_for_alone_equals_the_one_asked_for_together(path, name):
    f, y = batch()
    (alone,) = row_statistics(f, y, (name,))
    assert torch.equal(alone, statistics(f, y)[name])


def test_statistics_come_in_the_order_asked_for(path):
    f, y = batch()
    every = statistics(f, y)
    for x, name in zip(row_statistics(f, y, STATISTICS[::-1]), STATISTICS[::-1], strict=True):
        assert torch.equal(x, every[name])


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("spread", [1e-9, 1e-5, 1e-2, 0.06])
def test_chance_odds_near_chance_keep_their_relative_accuracy(path, spread, offset):
    # Multiples of 2^-50 are exact beside 1000 and as differences: the input loses nothing.
    grid = 2.0**-43
    f = offset + torch.round(spread * torch.randn(6, 7, dtype=F64) / grid).clamp(-4e11, 4e11) * grid
    y = torch.tensor([0, 1, 2, 3, 4, 5])
    expected, _ = exact(f, y)
    (found,) = row_statistics(f, y, (CHANCE_ODDS,))
    gap = (f - f.gather(1, y[:, None])).abs().amax(1)
    assert bool(((found - expected[CHANCE_ODDS]).abs() <= 1e-15 * gap + 1e-300).all())


@pytest.mark.parametrize("temperature", [1e6, torch.tensor(1e6, dtype=F64)])
@pytest.mark.parametrize("margin", ["none", "number", "classes", "matrix"])
def test_chance_odds_at_a_huge_temperature_keep_their_relative_accuracy(path, temperature, margin):
    f, y = batch(8)
    options = {"temperature": temperature, "margin": margin_of(margin)}
    expected, size = exact(f, y, **options)
    (found,) = row_statistics(f, y, (CHANCE_ODDS,), **options)
    assert float(size.max()) < 1e-4
    assert bool(((found - expected[CHANCE_ODDS]).abs() <= 4e-15 * size).all())


@pytest.mark.parametrize("spread", [0.1, 0.12, 0.125, 0.13, 0.2, 1.0])
def test_chance_odds_do_not_jump_where_the_form_changes(path, spread):
    f = torch.linspace(-spread, spread, 7, dtype=F64).repeat(7, 1)
    y = torch.arange(7)
    expected, _ = exact(f, y)
    (found,) = row_statistics(f, y, (CHANCE_ODDS,))
    close(found, expected[CHANCE_ODDS], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gap", [30.0, 90.0, 300.0, 600.0, 1e4])
def test_log_odds_of_confident_rows_keep_their_digits(path, gap):
    f = torch.randn(6, K, dtype=F64)
    y = torch.arange(6) % K
    f[torch.arange(6), y] += gap * torch.tensor([1.0, -1.0] * 3, dtype=F64)
    expected, _ = exact(f, y)
    close(target_log_odds(f, y), expected[LOG_ODDS], rtol=1e-15, atol=0.0)


def test_the_margin_matrix_is_read_by_rows_and_its_diagonal_is_not_read(path):
    f = torch.zeros(2, 3, dtype=F64)
    matrix = torch.tensor([[NAN, 1.0, 2.0], [3.0, NAN, 4.0], [5.0, 6.0, NAN]], dtype=F64)
    t = target_log_odds(f, torch.tensor([0, 1]), margin=matrix)
    expected = [math.log(math.e + math.exp(2.0)), math.log(math.exp(3.0) + math.exp(4.0))]
    close(t, torch.tensor(expected, dtype=F64), rtol=1e-14)
    # A diagonal of nan would also show in a gradient.
    f.requires_grad_()
    (g,) = torch.autograd.grad(target_log_odds(f, torch.tensor([0, 1]), margin=matrix).sum(), f)
    assert bool(g.isfinite().all())


def test_the_total_adds_the_margins_of_the_rivals_only(path):
    f = torch.tensor([[1.0, 2.0, 3.0]], dtype=F64)
    matrix = torch.tensor([[9.0, 9.0, 9.0], [10.0, 99.0, 20.0], [9.0, 9.0, 9.0]], dtype=F64)
    y = torch.tensor([1])
    for margin, expected in (
        (None, 0.0),
        (0.5, 1.0),
        (torch.tensor([9.0, 0.25, 9.0], dtype=F64), 0.5),
        (matrix, 30.0),
    ):
        found = row_statistics(f, y, (GAPS, TARGET), margin=margin, temperature=2.0)
        close(torch.cat(found), torch.tensor([expected / 2.0, 1.0], dtype=F64), rtol=1e-15)


@pytest.mark.parametrize("shape", [(12, K), (2, K, 3)])
def test_a_matrix_of_one_row_for_all_targets_is_its_copy(path, shape):
    f = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.arange(f.numel() // K).view(shape[:1] + shape[2:]) % K
    one = torch.linspace(-1.0, 2.0, K, dtype=F64).expand(K, K)
    found = []
    for margin in (one, one.clone()):
        out = target_log_odds(f, y, temperature=0.7, margin=margin)
        found.append((out.detach(), *torch.autograd.grad(out.sin().sum(), f)))
    for a, b in zip(*found, strict=True):
        close(a, b, rtol=1e-14)


# Which path is taken.


def test_only_large_inputs_with_enough_classes_take_the_tiles(tiled_calls):
    k, size = _softmax.TILED_FROM_CLASSES, _softmax.TILED_FROM_BYTES
    n = -(-size // (4 * k))
    y = torch.zeros(2 * n, dtype=torch.long)
    target_log_odds(torch.zeros(n - 1, k), y[: n - 1])
    target_log_odds(torch.zeros(2 * n, k - 1), y)
    assert tiled_calls["values"] == 0
    target_log_odds(torch.zeros(n, k), y[:n])
    assert tiled_calls["values"] == 1
    # Along a strided class axis few classes are enough.
    inner = size // 8
    target_log_odds(torch.zeros(1, 2, inner), torch.zeros(1, inner, dtype=torch.long))
    assert tiled_calls["values"] == 2


def test_the_forced_paths_are_the_ones_meant(path, tiled_calls):
    f, y = batch()
    f.requires_grad_()
    target_log_odds(f, y).sum().backward()
    once = int(path == "tiled")
    assert tiled_calls == {"values": once, "gradient": once}


def test_the_first_gradient_stays_tiled_under_create_graph_and_torch_func(tiled_calls):
    f, y = batch()
    with forced(64):
        torch.autograd.grad(target_log_odds(f.requires_grad_(), y).sum(), f, create_graph=True)
        assert tiled_calls["gradient"] == 1
        vmap(grad(lambda f, y: target_log_odds(f, y, class_dim=-1)))(f.detach(), y)
        assert tiled_calls["gradient"] == 2


def test_a_tile_is_about_as_large_as_asked_for():
    f = torch.zeros(7, 10, 6).expand(100, 7, 10, 6).reshape(700, 10, 6)
    with forced(10 * 4 * 4):  # four columns of ten float32
        tiles = list(_softmax._tiles(f))
        assert {(a.stop - a.start, b.stop - b.start) for a, b in tiles} == {(1, 4)}
    with forced(10 * 4 * 6 * 3):
        tiles = list(_softmax._tiles(f))
        assert [(a.start, b.start) for a, b in tiles] == [(i, 0) for i in range(0, 700, 3)]
    with forced(f.nbytes):  # small beside the logits, but not less than a quarter of what is asked
        assert {a.stop - a.start for a, _ in _softmax._tiles(f)} == {175}
    for dtype in HALF:  # the scratch is float32
        with forced(10 * 4 * 6 * 3):
            assert len(list(_softmax._tiles(f.to(dtype)))) == 234


# Derivatives.


def check_gradients(fn, inputs, *, fast=True):
    """In reverse and forward mode, with batched and with undefined cotangents."""
    assert gradcheck(
        fn,
        inputs,
        fast_mode=fast,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


def check_second_derivatives(fn, inputs, *, fast=True):
    """Reverse over reverse and forward over reverse, also in the cotangents."""
    assert gradgradcheck(
        fn, inputs, fast_mode=fast, check_fwd_over_rev=True, check_batched_grad=not fast
    )


@some_kinds
def test_gradients_of_every_kind_are_right(path, temperature, margin):
    check_gradients(*problem(temperature, margin))


@some_kinds
def test_second_derivatives_of_every_kind_are_right(path, temperature, margin):
    check_second_derivatives(*problem(temperature, margin))


@pytest.mark.parametrize("name", STATISTICS)
def test_derivatives_of_one_statistic_alone_are_right(path, name):
    fn, inputs = problem("number", "number", names=(name,))
    check_gradients(fn, inputs)
    if name not in (TARGET, GAPS):  # linear: see below
        check_second_derivatives(fn, inputs)


@pytest.mark.parametrize("name", [TARGET, GAPS])
def test_second_derivatives_of_the_linear_statistics_are_zero(path, name):
    fn, (f,) = problem("number", "number", names=(name,))
    (g,) = torch.autograd.grad(total(fn)(f), f, create_graph=True)
    assert gradgradcheck(total(fn), f, fast_mode=True)
    found = hessian(lambda f: fn(f)[0].sum())(f.detach())
    assert torch.equal(found, torch.zeros_like(found))
    assert g.requires_grad


@pytest.mark.wide
@every_temperature
@every_margin
def test_derivatives_are_right_entry_by_entry(path, temperature, margin):
    fn, inputs = problem(temperature, margin)
    check_gradients(fn, inputs, fast=False)
    check_second_derivatives(fn, inputs, fast=False)


def test_the_gradient_is_the_closed_form(path):
    f, y = batch(absent=(0,))
    margin = margin_of("matrix")
    f.requires_grad_()
    (g,) = torch.autograd.grad(target_log_odds(f, y, temperature=0.7, margin=margin).sum(), f)
    for i, target in enumerate(y.tolist()):
        if target < 0:
            assert torch.equal(g[i], torch.zeros(K, dtype=F64))
            continue
        z = (f[i].detach() + margin[target]) / 0.7
        z[target] = -INF
        r = z.softmax(0) / 0.7
        r[target] = -1 / 0.7
        close(g[i], r, rtol=1e-13)


def test_third_derivatives_are_right(path):
    f, y = batch()
    directions = torch.randn(3, N, K, dtype=F64)

    def third(fn):
        x = f.clone().requires_grad_()
        out = total(fn)(x)
        for v in directions:
            (out,) = torch.autograd.grad(out, x, create_graph=True)
            out = (out * v).sum()
        return torch.autograd.grad(out, x)[0]

    # The fourth, even: after the third one more gradient is taken.
    found = third(lambda f: row_statistics(f, y, STATISTICS, temperature=0.7))
    expected = third(lambda f: tuple(definition(f, y, 0.7).values()))
    close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "derivative",
    [
        hessian,
        lambda fn: jacrev(jacfwd(fn)),
        lambda fn: jacrev(jacrev(fn)),
        lambda fn: jacfwd(jacfwd(fn)),
    ],
    ids=["forward over reverse", "reverse over forward", "reverse twice", "forward twice"],
)
def test_hessians_of_torch_func_are_right_in_every_order_of_modes(path, derivative):
    f, y = batch(4, absent=(1,))
    found = derivative(total(lambda f: row_statistics(f, y, STATISTICS, temperature=0.7)))(f)
    expected = hessian(total(lambda f: tuple(definition(f, y, 0.7).values())))(f)
    expected[1], expected[:, :, 1] = 0.0, 0.0
    close(found, expected, rtol=1e-9, atol=1e-9)


def test_batched_cotangents_of_autograd_equal_a_loop(path):
    fn, inputs = problem("number", "matrix")
    f = inputs[0]
    margin = inputs[1].detach()
    out = torch.cat(fn(f, margin))
    v = torch.randn(3, *out.shape, dtype=F64)
    (together,) = torch.autograd.grad(out, f, v, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(out, f, x, retain_graph=True)[0] for x in v]
    close(together, torch.stack(alone), rtol=1e-13)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorised_jacobians_and_hessians_of_autograd_are_right(path, strategy):
    f, y = batch(4)
    functional = torch.autograd.functional

    def fn(f):
        return torch.cat(row_statistics(f, y, STATISTICS, temperature=0.7))

    def reference(f):
        return torch.cat(tuple(definition(f, y, 0.7).values()))

    found = functional.jacobian(fn, f, vectorize=True, strategy=strategy)
    close(found, functional.jacobian(reference, f))
    found = functional.hessian(total(fn), f, vectorize=True, outer_jacobian_strategy=strategy)
    close(found, functional.hessian(total(reference), f), rtol=1e-9, atol=1e-9)


# torch.func: every combination of batched and unbatched arguments.

BATCHED = {
    "logits and target": {"f": 0, "y": 0},
    "logits on the last axis": {"f": 2, "y": 0},
    "logits alone": {"f": 0},
    "target alone": {"y": 1},
    "temperature alone": {"t": 0},
    "matrix alone": {"m": 0},
    "matrix on the last axis, logits": {"f": 0, "m": 2},
    "everything": {"f": 0, "y": 0, "t": 0, "m": 0},
}
every_batching = pytest.mark.parametrize("axes", BATCHED.values(), ids=BATCHED)


def batched_problem(axes, b=3, n=N):
    """Arguments f, y, t, m with a batch axis where ``axes`` says so, and a loop's view of them."""
    every = {
        "f": torch.stack([batch(n)[0] for _ in range(b)]),
        "y": torch.randint(K, (b, n)),
        "t": 0.5 + torch.rand(b, n, dtype=F64),
        "m": torch.rand(b, K, K, dtype=F64),
    }
    every["y"][:, 1] = -1
    alone = [{name: x[i if name in axes else 0] for name, x in every.items()} for i in range(b)]
    together = {
        name: x.movedim(0, axes[name]) if name in axes else x[0] for name, x in every.items()
    }
    return together, tuple(axes.get(name) for name in every), alone


@every_batching
@pytest.mark.parametrize("names", [(LOG_ODDS,), STATISTICS], ids=["log odds", "all"])
def test_vmap_of_values_gradients_and_tangents_is_a_loop(path, axes, names):
    together, dims, alone = batched_problem(axes)

    def values(f, y, t, m):
        out = torch.stack(row_statistics(f, y, names, temperature=t, margin=m))
        return torch.where(y < 0, 0.0, out)  # rows that are not there may have any finite value

    def gradient(f, y, t, m):
        return grad(lambda f: total(lambda f: values(f, y, t, m))(f))(f)

    def tangent(f, y, t, m):
        return jvp(lambda f: values(f, y, t, m), (f,), (f.cos(),))[1]

    def curvature(f, y, t, m):
        return jvp(lambda f: gradient(f, y, t, m), (f,), (f.cos(),))[1]

    for fn in (values, gradient, tangent, curvature):
        found = vmap(fn, dims)(*together.values())
        expected = torch.stack([fn(**x) for x in alone])
        close(found, expected, rtol=1e-11)


@every_batching
def test_vmap_inside_of_grad_and_of_jvp_is_a_loop(path, axes):
    together, dims, alone = batched_problem(axes)

    def fn(f, y, t, m):
        out = torch.stack(row_statistics(f, y, STATISTICS, temperature=t, margin=m))
        return torch.where(y < 0, 0.0, out.sin()).sum()

    def outer(f):
        return vmap(fn, dims)(*{**together, "f": f}.values()).sum()

    f = together["f"]
    expected = [grad(lambda f, x=x: fn(**{**x, "f": f}))(x["f"]) for x in alone]
    expected = torch.stack(expected).movedim(0, axes["f"]) if "f" in axes else sum(expected)
    close(grad(outer)(f), expected, rtol=1e-11)
    v = f.cos()
    close(jvp(outer, (f,), (v,))[1], (v * expected).sum(), rtol=1e-11)


@pytest.mark.parametrize("mode", ["autograd", "torch.func.grad", "torch.func.jvp"])
@pytest.mark.parametrize("name", ["t", "m"])
def test_the_gradient_to_a_temperature_or_margin_batched_by_vmap_is_not_lost(path, name, mode):
    together, dims, alone = batched_problem({"f": 0, "y": 0, name: 0})

    def fn(f, y, t, m):
        # Without a batched margin matrix the tiles keep their kernel under vmap.
        margin = m if name == "m" else 0.3
        odds = target_log_odds(f, y, temperature=t, margin=margin)
        # A head gives the rows that are not there no weight.
        return torch.where(y < 0, 0.0, odds.sin()).sum()

    def outer(x):
        return vmap(fn, dims)(*{**together, name: x}.values()).sum()

    def inner(x, row):
        return fn(**{**row, name: x})

    x = together[name]
    expected = torch.stack([grad(inner)(row[name], row) for row in alone])
    if mode == "autograd":
        x = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(outer(x), x)
    elif mode == "torch.func.grad":
        found = grad(outer)(x)
    else:
        v = torch.randn_like(x)
        close(jvp(outer, (x,), (v,))[1], (v * expected).sum())
        return
    close(found, expected, rtol=1e-11)


@pytest.mark.parametrize("outer", ["grad", "jvp", "jacfwd"])
@pytest.mark.parametrize("name", ["t", "m"])
def test_mixed_derivatives_in_logits_and_temperature_or_margin_are_right(path, name, outer):
    f, y = batch(absent=(4,))
    arguments = {"t": torch.tensor(1.3, dtype=F64), "m": torch.rand(K, K, dtype=F64)}

    def steepness(fn):
        def of(x):
            now = {**arguments, name: x}
            inner = grad(lambda f: fn(f, y, now["t"], now["m"]).sin().sum())
            return inner(f).square().sum()

        return of

    ours = steepness(lambda f, y, t, m: target_log_odds(f, y, temperature=t, margin=m))
    true = steepness(lambda f, y, t, m: definition(f, y, t, m)[LOG_ODDS])
    x = arguments[name]
    expected = grad(true)(x)
    if outer == "grad":
        close(grad(ours)(x), expected)
    elif outer == "jacfwd":
        close(jacfwd(ours)(x), expected)
    else:
        v = torch.ones_like(x)
        close(jvp(ours, (x,), (v,))[1], (v * expected).sum())


def test_gradients_per_sample_of_single_rows_are_a_loop(path):
    f, y = batch(absent=(1,))
    found = vmap(grad(lambda f, y: target_log_odds(f, y, class_dim=0, temperature=0.7)))(f, y)
    x = f.clone().requires_grad_()
    (expected,) = torch.autograd.grad(target_log_odds(x, y, temperature=0.7).sum(), x)
    close(found, expected, rtol=1e-13)


def test_nested_vmap_with_inner_axes_is_a_loop(path):
    f = torch.randn(2, 3, 2, K, 3, dtype=F64)
    y = torch.randint(K, (2, 3, 2, 3))
    fn = grad(lambda f, y: target_log_odds(f, y).sin().sum())
    found = vmap(vmap(fn))(f, y)
    expected = torch.stack([fn(f[i, j], y[i, j]) for i in range(2) for j in range(3)])
    close(found.flatten(0, 1), expected, rtol=1e-13)


# Rows that are not there.


def derivatives(f, y, t, m):
    """The statistics, their gradients, and gradients of these, in every tensor argument."""
    leaves = [
        x.detach().clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in (f, t, m)
    ]
    f, t, m = leaves
    out = torch.stack(row_statistics(f, y, STATISTICS, temperature=t, margin=m))
    weight = torch.where(y >= 0, 1.0, 0.0)
    wanted = [x for x in leaves if isinstance(x, torch.Tensor)]
    first = torch.autograd.grad((out.sin() * weight).sum(), wanted, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
    return [out.detach(), *first, *second]


@every_temperature
@every_margin
def test_absent_rows_reach_no_value_and_no_gradient(path, temperature, margin):
    f, y = batch(7, absent=(0, 3, 6))
    t, m = temperature_of(temperature, (7,)), margin_of(margin)
    present = y >= 0
    rows = t[present] if temperature == "rows" else t
    clean, *expected = derivatives(f[present], y[present], rows, m)
    f[0], f[3], f[6] = NAN, INF, -INF
    dirty, *found = derivatives(f, y, t, m)
    close(dirty[:, present], clean, rtol=1e-13)
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:  # one entry or row of entries per row of logits
            assert torch.equal(a[~present], torch.zeros_like(a[~present]))
            a = a[present]
        close(a, b, rtol=1e-12)


def test_absent_rows_reach_no_tangent(path):
    f, y = batch(absent=(0, 3))
    f[0], f[3] = NAN, INF

    def fn(f):
        return torch.stack(row_statistics(f, y, STATISTICS, temperature=0.7))

    v = torch.randn_like(f)
    tangent = jvp(fn, (f,), (v,))[1]
    assert torch.equal(tangent[:, [0, 3]], torch.zeros(5, 2, dtype=F64))
    assert bool(tangent.isfinite().all())
    curved = jvp(grad(lambda f: fn(f).sin().sum()), (f,), (v,))[1]
    assert torch.equal(curved[[0, 3]], torch.zeros(2, K, dtype=F64))
    assert bool(curved.isfinite().all())


def test_a_batch_of_absent_rows_is_finite_and_has_a_zero_gradient(path):
    f = torch.full((3, K), NAN, dtype=F64, requires_grad=True)
    out = row_statistics(f, torch.full((3,), -1), STATISTICS)
    assert all(bool(x.isfinite().all()) for x in out)
    (g,) = torch.autograd.grad(sum(x.sum() for x in out), f)
    assert torch.equal(g, torch.zeros(3, K, dtype=F64))


# Compilation and the other machinery of torch.


class Statistics(nn.Module):
    """The primitive with a head on it."""

    def forward(self, f, y):
        out = row_statistics(f, y, STATISTICS, temperature=0.7, margin=0.3)
        return torch.stack(out).sin().sum()


def value_and_gradient(fn, f, *others):
    f = f.detach().clone().requires_grad_()
    value = fn(f, *others)
    return value.detach(), *torch.autograd.grad(value, f)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_it_is_one_graph_with_the_same_numbers(path):
    fn = torch.compile(Statistics(), fullgraph=True, dynamic=False, backend="aot_eager")
    f, y = batch(absent=(0,))
    f[0] = NAN
    for a, b in zip(value_and_gradient(fn, f, y), value_and_gradient(Statistics(), f, y),
                    strict=True):  # fmt: skip
        close(a, b)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_with_dynamic_shapes_it_serves_every_batch_from_one_graph():
    counter = CompileCounterWithBackend("aot_eager")
    fn = torch.compile(Statistics(), fullgraph=True, dynamic=True, backend=counter)
    for n in (5, 8, 6):
        f, y = batch(n)
        for a, b in zip(value_and_gradient(fn, f, y), value_and_gradient(Statistics(), f, y),
                        strict=True):  # fmt: skip
            close(a, b)
    assert counter.frame_count == 1


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("temperature", "margin"), [("scalar", "matrix"), ("rows", "classes")])
def test_compiled_with_differentiable_temperature_and_margin_it_is_one_graph(temperature, margin):
    fn, inputs = problem(temperature, margin)
    fn = total(fn)
    found = torch.compile(fn, fullgraph=True, backend="aot_eager")(*inputs)
    close(found, fn(*inputs))
    gradients = torch.autograd.grad(found, inputs)
    for a, b in zip(gradients, torch.autograd.grad(fn(*inputs), inputs), strict=True):
        close(a, b)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_vmap_of_grad_is_a_loop():
    f, y = batch(absent=(1,))

    def per_sample(f, y):
        one = grad(lambda f, y: target_log_odds(f, y, class_dim=0, temperature=0.7))
        return vmap(one)(f, y)

    compiled = torch.compile(per_sample, fullgraph=True, backend="aot_eager")
    close(compiled(f, y), per_sample(f, y))


@pytest.mark.usefixtures("fresh_compiler")
def test_inductor_gives_the_same_numbers():
    fn = torch.compile(Statistics(), fullgraph=True, dynamic=False)
    f, y = batch(6, 37, absent=(0,))
    f[0] = NAN
    for a, b in zip(value_and_gradient(fn, f, y), value_and_gradient(Statistics(), f, y),
                    strict=True):  # fmt: skip
        close(a, b)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_functions_of_all_classes_and_of_the_hardest_rival_are_one_graph():
    f, y = batch()
    matrix = margin_of("matrix")
    for fn in (
        lambda f: all_log_odds(f, temperature=2.0, margin=0.3, above_chance=True).sin().sum(),
        lambda f: all_log_odds(f, margin=matrix).sin().sum(),
        lambda f: hardest_rival(f, y, margin=matrix).sin().sum(),
        lambda f: hardest_rival(f, None).sin().sum(),
    ):
        compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
        for a, b in zip(value_and_gradient(compiled, f), value_and_gradient(fn, f), strict=True):
            close(a, b)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_serves_other_batch_sizes(path, strict):
    f, y = batch()
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(
        Statistics(), (f, y), dynamic_shapes=({0: rows}, {0: rows}), strict=strict
    )
    for n in (N, 9):
        f, y = batch(n, absent=(1,))
        f[1] = INF
        close(program.module()(f, y), Statistics()(f, y))


def test_checkpointing_changes_no_gradient(path):
    f, y = batch(absent=(0,))
    fn = Statistics()
    found = value_and_gradient(lambda f, y: checkpoint(fn, f, y, use_reentrant=False), f, y)
    for a, b in zip(found, value_and_gradient(fn, f, y), strict=True):
        assert torch.equal(a, b)


def test_a_graph_kept_for_a_second_backward_gives_the_same_gradient(path):
    f, y = batch()
    f.requires_grad_()
    out = sum(x.sin().sum() for x in row_statistics(f, y, STATISTICS))
    (once,) = torch.autograd.grad(out, f, retain_graph=True)
    (twice,) = torch.autograd.grad(out, f)
    assert torch.equal(once, twice)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, K), (2, K, 3)])
def test_meta_tensors_give_shapes_and_dtypes(path, shape, dtype):
    f = torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
    y = torch.empty(shape[:1] + shape[2:], dtype=torch.long, device="meta")
    out = row_statistics(f, y, STATISTICS, temperature=0.7)
    assert all(x.is_meta and x.shape == y.shape and x.dtype is torch.float32 for x in out)
    (g,) = torch.autograd.grad(sum(x.sum() for x in out), f)
    assert (g.is_meta, g.shape, g.dtype) == (True, f.shape, dtype)
    assert all_log_odds(f, margin=0.3).shape == f.shape
    assert hardest_rival(f, y).shape == y.shape


@every_margin
def test_nothing_looks_at_values_that_may_be_on_a_device(path, margin):
    # A fake tensor has no values: whatever looks at one raises an error.
    with FakeTensorMode():
        f = torch.empty(6, K, requires_grad=True)
        y = torch.zeros(6, dtype=torch.long)
        m = margin_of(margin, dtype=torch.float32)
        out = row_statistics(f, y, STATISTICS, temperature=0.7, margin=m)
        every = all_log_odds(f, margin=m, above_chance=True)
        hardest = hardest_rival(f, y, margin=m)
        (g,) = torch.autograd.grad(sum(x.sum() for x in (*out, every, hardest)), f)
        assert g.shape == f.shape
        assert hardest_rival(f, None, margin=m).shape == f.shape


# Layouts.

LAYOUTS = {
    "K-dimensional": (lambda: torch.randn(3, K, 5, dtype=F64), 1),
    "image": (lambda: torch.randn(2, K, 3, 2, dtype=F64), 1),
    "class axis last": (lambda: torch.randn(2, 3, K, dtype=F64), 2),
    "class axis -1": (lambda: torch.randn(2, 3, K, dtype=F64), -1),
    "class axis -2": (lambda: torch.randn(2, K, 3, dtype=F64), -2),
    "class axis first": (lambda: torch.randn(K, 3, 2, dtype=F64), 0),
    "one row": (lambda: torch.randn(K, dtype=F64), 0),
    "flat, class axis first": (lambda: torch.randn(K, 6, dtype=F64), 0),
    "channels last": (
        lambda: torch.randn(2, K, 3, 2, dtype=F64).contiguous(memory_format=torch.channels_last),
        1,
    ),
    "transposed": (lambda: torch.randn(K, 6, dtype=F64).t(), 1),
    "permuted": (lambda: torch.randn(3, 2, K, 2, dtype=F64).permute(1, 2, 3, 0), 1),
    "every second row": (lambda: torch.randn(10, K, dtype=F64)[::2], 1),
    "every second class": (lambda: torch.randn(5, 2 * K, dtype=F64)[:, ::2], 1),
    "every second pixel": (lambda: torch.randn(2, K, 6, dtype=F64)[:, :, ::2], 1),
    "expanded": (lambda: torch.randn(1, K, 3, dtype=F64).expand(4, K, 3), 1),
}


@pytest.mark.parametrize(("make", "axis"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("temperature", "margin"), [("number", "classes"), ("rows", "matrix")])
def test_any_shape_class_axis_and_memory_layout(path, make, axis, temperature, margin):
    f = make().requires_grad_()
    rows = f.movedim(axis, -1)
    y = torch.randint(K, rows.shape[:-1])
    t = temperature_of(temperature, y.shape)
    m = margin_of(margin)
    found = row_statistics(f, y, STATISTICS, class_dim=axis, temperature=t, margin=m)
    flat = t.reshape(-1) if temperature == "rows" else t
    expected = definition(rows.reshape(-1, K), y.reshape(-1), flat, m).values()
    v = torch.randn(len(STATISTICS), *y.shape, dtype=F64)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == y.shape
        close(a, b.view(y.shape))
    (g,) = torch.autograd.grad((torch.stack(found) * v).sum(), f)
    (true,) = torch.autograd.grad(
        sum((x * w.reshape(-1)).sum() for x, w in zip(expected, v, strict=True)), f
    )
    assert g.shape == f.shape
    close(g, true)


@pytest.mark.parametrize("tile_bytes", [1, 8 * K, 8 * K * 3, 8 * K * 5, 8 * K * 7, 8 * K * 40])
@pytest.mark.parametrize("shape", [(9, K), (3, K, 7), (1, K, 11), (4, K, 1)])
def test_tiles_of_any_size_cover_every_row_once(tile_bytes, shape):
    f = torch.randn(shape, dtype=F64)
    y = torch.randint(-1, K, shape[:1] + shape[2:])
    results = []
    for size in (None, tile_bytes):
        with forced(size):
            x = f.clone().requires_grad_()
            out = torch.stack(row_statistics(x, y, STATISTICS, temperature=0.7))
            results.append((out.detach(), *torch.autograd.grad(out.sin().sum(), x)))
    for a, b in zip(*results, strict=True):
        close(a, b, rtol=1e-12)


@st.composite
def inputs(draw):
    """Logits of a drawn layout, with targets, temperature and margin, and a size of tiles."""
    outer = tuple(draw(st.lists(st.integers(1, 4), max_size=2)))
    inner = tuple(draw(st.lists(st.integers(1, 4), max_size=2)))
    k = draw(st.integers(2, 9))
    dtype = draw(st.sampled_from([F64, torch.float32, *HALF]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    spread = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    shape = (*outer, k, *inner)
    order = draw(st.permutations(range(len(shape))))
    f = torch.randn([shape[i] for i in order], dtype=F64, generator=generator) * spread
    f = f.to(dtype).permute([order.index(i) for i in range(len(shape))])
    y = torch.randint(draw(st.sampled_from([-1, 0])), k, outer + inner, generator=generator)
    wide = torch.float32 if dtype in HALF else dtype
    t = {
        "number": lambda: 0.7,
        "scalar": lambda: torch.tensor(1.3, dtype=wide),
        "rows": lambda: 0.5 + torch.rand(y.shape, dtype=wide, generator=generator),
    }[draw(st.sampled_from(["number", "scalar", "rows"]))]()
    m = {
        "none": lambda: None,
        "number": lambda: 0.3,
        "classes": lambda: torch.rand(k, dtype=wide, generator=generator),
        "matrix": lambda: torch.rand(k, k, dtype=wide, generator=generator),
    }[draw(st.sampled_from(["none", "number", "classes", "matrix"]))]()
    names = tuple(draw(st.lists(st.sampled_from(STATISTICS), min_size=1, unique=True)))
    options = {"class_dim": len(outer), "temperature": t, "margin": m}
    return f, y, names, options, draw(st.integers(1, 600))


@given(inputs())
def test_tiles_and_stock_operations_agree_on_everything(drawn):
    f, y, names, options, tile_bytes = drawn
    axis = options["class_dim"]
    v = torch.randn(len(names), *y.shape, dtype=F64, generator=torch.Generator().manual_seed(1))
    results = []
    for size in (None, tile_bytes):
        with forced(size):
            x = f.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            out = row_statistics(x, y, names, **options)
            wide = torch.float32 if f.dtype in HALF else f.dtype
            assert all(o.dtype is wide and o.shape == y.shape for o in out)
            value = torch.stack(out)
            (g,) = torch.autograd.grad((value * v).sum(), x)
            assert g.dtype is f.dtype
            assert g.shape == f.shape
            results.append((value.detach(), g))
    (a, ga), (b, gb) = results
    eps = torch.finfo(a.dtype).eps
    k = f.shape[axis]
    # The logits and the sums of them are as large as this; so is a slope, at a temperature of 1/2.
    size = (f.abs().amax(axis).to(a.dtype) + 1.0) * 2.0 + math.log(k)
    assert bool(((a - b).abs() <= 4 * eps * k * size).all())
    slope = 2.0 * v.abs().sum(0).to(a.dtype).unsqueeze(axis) * size.unsqueeze(axis)
    rounding = torch.finfo(f.dtype).eps if f.dtype in HALF else 0.0
    error = (ga.to(a.dtype) - gb.to(a.dtype)).abs()
    bound = 8 * eps * slope + 2 * rounding * ga.abs() + torch.finfo(f.dtype).tiny
    assert bool((error <= bound).all())


# Half precision.


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("shape", [(9, K), (3, K, 5)])
def test_half_precision_is_computed_in_float32_and_its_gradient_rounded_once(path, shape, dtype):
    f = (3.0 * torch.randn(shape)).to(dtype)
    y = torch.randint(K, shape[:1] + shape[2:])
    results = []
    for x in (f, f.to(F64)):
        x = x.clone().requires_grad_()
        out = torch.stack(row_statistics(x, y, STATISTICS, temperature=0.7, margin=0.3))
        (g,) = torch.autograd.grad(out.sin().sum(), x)
        results.append((out.detach(), g))
    (found, g), (true, h) = results
    assert found.dtype is torch.float32
    assert g.dtype is dtype
    close(found.to(F64), true, rtol=2e-6, atol=2e-6)
    close(g.to(F64), h, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-5)


def test_float32_statistics_are_right_to_a_few_spacings(path):
    f, y = batch(12, dtype=torch.float32)
    expected, size = exact(f, y, 0.7, 0.3)
    for name, x in statistics(f, y, temperature=0.7, margin=0.3).items():
        assert x.dtype is torch.float32
        error = (x.to(F64) - expected[name]).abs()
        assert bool((error <= 5e-7 * (size + math.log(K)) * (K if name == GAPS else 1)).all())


# Corners.


@pytest.mark.parametrize("shape", [(0, K), (0, K, 3), (2, 0, K)])
def test_an_empty_batch_gives_nothing_attached_to_the_graph(path, shape):
    axis = 1 if shape[1] == K else 2
    f = torch.zeros(shape, dtype=F64, requires_grad=True)
    y = torch.zeros(shape[:axis] + shape[axis + 1 :], dtype=torch.long)
    out = row_statistics(f, y, STATISTICS, class_dim=axis, temperature=0.7, margin=0.3)
    assert all(x.shape == y.shape for x in out)
    (g,) = torch.autograd.grad(sum(x.sum() for x in out), f)
    assert g.shape == f.shape
    assert hardest_rival(f, y, class_dim=axis).shape == y.shape
    assert all_log_odds(f, class_dim=axis).shape == f.shape


def test_two_classes_with_the_other_impossible_are_certain_without_nan(path):
    f = torch.tensor([[1.5, -INF], [-INF, -0.5]], dtype=F64, requires_grad=True)
    t = target_log_odds(f, torch.tensor([0, 1]))
    # The true log-odds are -inf: anything a head turns into "certain".
    assert bool((t < -1e300).all())
    for head in (torch.nn.functional.softplus, torch.sigmoid):
        value = head(t)
        assert torch.equal(value, torch.zeros(2, dtype=F64))
        (g,) = torch.autograd.grad(value.sum(), f, create_graph=True)
        assert torch.equal(g, torch.zeros(2, 2, dtype=F64))
        (h,) = torch.autograd.grad(g.sum(), f, retain_graph=True)
        assert torch.equal(h, torch.zeros(2, 2, dtype=F64))


def test_an_impossible_target_has_infinite_log_odds_and_a_finite_gradient(path):
    f = torch.tensor([[-INF, 1.0, 1.0], [2.0, -INF, 2.0]], dtype=F64, requires_grad=True)
    y = torch.tensor([0, 1])
    t, chance = row_statistics(f, y, (LOG_ODDS, CHANCE_ODDS))
    assert torch.equal(t.detach(), torch.full((2,), INF, dtype=F64))
    assert torch.equal(chance.detach(), t.detach())
    expected = torch.tensor([[-1.0, 0.5, 0.5], [0.5, -1.0, 0.5]], dtype=F64)
    for x in (t, chance):
        (g,) = torch.autograd.grad(x.sum(), f, retain_graph=True)
        close(g, expected, rtol=1e-15)


def test_one_impossible_rival_changes_nothing_for_the_others(path):
    f, y = batch(6, 3)
    wide = torch.cat((f, torch.full((6, 1), -INF, dtype=F64)), 1).requires_grad_()
    narrow = f.clone().requires_grad_()
    # Total is -inf and chance is another number of classes; the rest must not notice.
    names = (LOG_ODDS, TARGET, RIVAL_SQUARES)
    results = []
    for x in (wide, narrow):
        out = torch.stack(row_statistics(x, y, names))
        (g,) = torch.autograd.grad(out.sin().sum(), x)
        results.append((out.detach(), g))
    close(results[0][0], results[1][0], rtol=1e-15)
    close(results[0][1][:, :3], results[1][1], rtol=1e-14)
    assert torch.equal(results[0][1][:, 3], torch.zeros(6, dtype=F64))
    (chance,) = row_statistics(wide, y, (CHANCE_ODDS,))
    close(chance, results[1][0][0] - math.log(3), rtol=1e-14)


@pytest.mark.parametrize("level", [0.0, 1e4, -1e4])
def test_equal_logits_are_exactly_at_chance(path, level):
    f = torch.full((2, 5), level, dtype=F64, requires_grad=True)
    t, chance, squares = row_statistics(
        f, torch.tensor([0, 4]), (LOG_ODDS, CHANCE_ODDS, RIVAL_SQUARES)
    )
    close(t, torch.full((2,), math.log(4.0), dtype=F64), rtol=1e-15, atol=2e-12)
    assert torch.equal(chance.detach(), torch.zeros(2, dtype=F64))
    close(squares, torch.full((2,), 0.25, dtype=F64), rtol=1e-15)
    (g,) = torch.autograd.grad(chance.sum(), f)
    close(g[0], torch.tensor([-1.0, 0.25, 0.25, 0.25, 0.25], dtype=F64), rtol=1e-15)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_inputs_are_not_written_to(path, temperature):
    f, y = batch(absent=(1,))
    tensors = [f, y, margin_of("matrix"), torch.rand(K, dtype=F64)]
    t = temperature_of(temperature)
    tensors += [t] if isinstance(t, torch.Tensor) else []
    before = [(x.clone(), x._version) for x in tensors]
    for margin in tensors[2:4]:
        x = f.detach().requires_grad_()
        out = row_statistics(x, y, STATISTICS, temperature=t, margin=margin)
        (g,) = torch.autograd.grad(sum(o.sum() for o in out), x, create_graph=True)
        if g.requires_grad:
            torch.autograd.grad(g.square().sum(), x)
        all_log_odds(f, temperature=t, margin=margin)
        hardest_rival(f, y, margin=margin)
        hardest_rival(f, None, margin=margin)
    for x, (copy, version) in zip(tensors, before, strict=True):
        assert torch.equal(x, copy)
        assert x._version == version


def test_results_do_not_share_memory_with_the_logits_or_each_other(path):
    f, y = batch()
    pointers = [x.untyped_storage().data_ptr() for x in (f, *row_statistics(f, y, STATISTICS))]
    assert len(set(pointers)) == len(pointers)


# Memory.

BIG = {
    "rows": lambda: torch.randn(512, 4000),
    "rows, bfloat16": lambda: torch.randn(512, 4000).bfloat16(),
    "image": lambda: torch.randn(2, 21, 128, 128),
    "image, bfloat16": lambda: torch.randn(2, 21, 128, 128).bfloat16(),
    "image, channels last": lambda: torch.randn(2, 21, 128, 128).to(
        memory_format=torch.channels_last
    ),
    "image, channels last, bfloat16": lambda: (
        torch.randn(2, 21, 128, 128).bfloat16().to(memory_format=torch.channels_last)
    ),
}
every_size = pytest.mark.parametrize("make", BIG.values(), ids=BIG)


def peak_bytes(run):
    """The most that torch's allocator holds during a run beyond what it held before."""
    run()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_the_peak_gauge_sees_what_is_held_at_once():
    x = torch.zeros(MIB)

    def run():
        y = x + 1.0
        y = y * 2.0
        del y

    assert 8 * MIB <= peak_bytes(run) <= 8 * MIB + 4096


TILE = 128 << 10


def assert_one_buffer(f, run, *, tiles, numbers):
    """The peak is the gradient, some tiles, and some numbers of four bytes for every row."""
    with forced(TILE):
        peak = peak_bytes(run)
    rows = f.numel() // f.shape[1]
    bound = f.nbytes + tiles * TILE + 4 * numbers * rows
    assert bound < 1.75 * f.nbytes  # a second buffer would show
    assert f.nbytes <= peak <= bound


@every_size
def test_log_odds_and_their_gradient_hold_one_buffer_of_the_size_of_the_logits(make):
    options = {"temperature": 0.7, "margin": 0.1}
    f = make().requires_grad_()
    y = torch.randint(-1, f.shape[1], f.shape[:1] + f.shape[2:])
    assert_one_buffer(
        f,
        lambda: torch.autograd.grad(target_log_odds(f, y, **options).sum(), f),
        tiles=1,
        numbers=3,
    )


@pytest.mark.parametrize(
    "make",
    [BIG["rows, bfloat16"], BIG["image"], BIG["image, channels last"]],
    ids=["rows, bfloat16", "image", "image, channels last"],
)
def test_values_alone_hold_one_tile_and_two_numbers_a_row(make):
    f = make()
    y = torch.randint(-1, f.shape[1], f.shape[:1] + f.shape[2:])
    with forced(TILE):
        peak = peak_bytes(lambda: target_log_odds(f, y, temperature=0.7, margin=0.1))
    assert peak <= TILE + 2 * 4 * y.numel() + (16 << 10)
    assert peak < 0.35 * f.nbytes


def test_logits_in_channels_last_get_a_gradient_in_channels_last(path):
    # Any other layout would be copied on its way through the convolution before.
    f = torch.randn(2, K, 3, 5).to(memory_format=torch.channels_last).requires_grad_()
    out = target_log_odds(f, torch.randint(K, (2, 3, 5)), temperature=0.7)
    (g,) = torch.autograd.grad(out.sum(), f)
    assert g.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("make", "names", "tiles"),
    [
        (BIG["rows"], (CHANCE_ODDS,), 1),
        (BIG["image"], (TARGET, GAPS), 1),
        (BIG["rows"], (LOG_ODDS, RIVAL_SQUARES), 3),
        (BIG["image"], (LOG_ODDS, RIVAL_SQUARES), 3),
    ],
    ids=["chance odds", "gaps", "squares", "squares of an image"],
)
def test_the_other_statistics_hold_one_buffer_of_the_size_of_the_logits(make, names, tiles):
    f = make().requires_grad_()
    y = torch.randint(-1, f.shape[1], f.shape[:1] + f.shape[2:])

    def run():
        # The temperature puts most rows near chance.
        out = row_statistics(f, y, names, temperature=50.0)
        torch.autograd.grad(sum(x.sum() for x in out), f)

    assert_one_buffer(f, run, tiles=tiles, numbers=2 + 2 * len(names))


@pytest.mark.parametrize("make", [BIG["rows"], BIG["image, channels last"]], ids=["rows", "image"])
def test_with_a_margin_matrix_log_odds_hold_one_buffer_of_the_size_of_the_logits(make):
    f = make().requires_grad_()
    k = f.shape[1]
    y = torch.randint(-1, k, f.shape[:1] + f.shape[2:])
    matrix = torch.rand(k, k)
    assert_one_buffer(
        f,
        lambda: torch.autograd.grad(target_log_odds(f, y, margin=matrix).sum(), f),
        tiles=2,  # the margins of a tile's rows are the second
        numbers=3,
    )


def test_the_hardest_rival_holds_one_buffer_of_the_size_of_the_logits():
    # In float32: the gradient of a gather adds up in float32, two more buffers in bfloat16.
    f = BIG["rows"]().requires_grad_()
    y = torch.randint(-1, f.shape[1], f.shape[:1])
    assert_one_buffer(
        f,
        lambda: torch.autograd.grad(hardest_rival(f, y).sum(), f),
        tiles=2,
        numbers=16,  # indices are eight bytes
    )


@pytest.mark.parametrize("margin", ["none", "number", "matrix"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 50), (2, 21, 8, 8), (2, 8, 8, 21)])
def test_only_the_inputs_are_saved_for_backward(shape, dtype, margin):
    f = torch.randn(shape).to(dtype)
    f = f.movedim(-1, 1) if shape[-1] == 21 else f  # channels last
    f.requires_grad_()
    k = f.shape[1]
    y = torch.randint(-1, k, f.shape[:1] + f.shape[2:])
    m = margin_of(margin, k, torch.float32)
    known = [x for x in (f, y, m) if isinstance(x, torch.Tensor)]
    inputs = {x.untyped_storage().data_ptr() for x in known}
    saved = []

    def pack(x):
        saved.append(x.untyped_storage())
        return x

    with forced(1 << 10), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = row_statistics(f, y, STATISTICS, margin=m, temperature=0.7)
    assert f.untyped_storage().data_ptr() in {x.data_ptr() for x in saved}
    others = {x.data_ptr(): x.nbytes() for x in saved if x.data_ptr() not in inputs}
    assert others == {}
    del out


# The log-odds against every class.


@pytest.mark.parametrize("temperature", ["scalar", "rows"])
@every_margin
@pytest.mark.parametrize("above_chance", [False, True])
def test_all_log_odds_are_those_against_each_class(path, temperature, margin, above_chance):
    f = torch.randn(4, K, 2, dtype=F64) * torch.tensor([1e-3, 0.1, 2.0, 20.0]).view(4, 1, 1)
    rows = f.shape[:1] + f.shape[2:]
    options = {"temperature": temperature_of(temperature, rows), "margin": margin_of(margin)}
    found = all_log_odds(f, above_chance=above_chance, **options)
    name = CHANCE_ODDS if above_chance else LOG_ODDS
    for k in range(K):
        (expected,) = row_statistics(f, torch.full(rows, k), (name,), **options)
        close(found.select(1, k), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_all_log_odds_keep_the_place_of_the_class_axis(axis):
    f = torch.randn(2, 3, 5, dtype=F64)
    t = 0.5 + torch.rand(f.movedim(axis, -1).shape[:-1], dtype=F64)
    margin = torch.rand(f.shape[axis], dtype=F64)
    found = all_log_odds(f, class_dim=axis, temperature=t, margin=margin)
    assert found.shape == f.shape
    for k in range(f.shape[axis]):
        y = torch.full(t.shape, k)
        expected = target_log_odds(f, y, class_dim=axis, temperature=t, margin=margin)
        close(found.select(axis, k), expected, rtol=1e-13)


@pytest.mark.parametrize("margin", MARGINS)
def test_all_chance_odds_at_a_huge_temperature_keep_their_relative_accuracy(margin):
    f, _ = batch(6)
    options = {"temperature": 1e6, "margin": margin_of(margin)}
    found = all_log_odds(f, above_chance=True, **options)
    for k in range(K):
        expected, size = exact(f, torch.full((6,), k), **options)
        assert bool(((found[:, k] - expected[CHANCE_ODDS]).abs() <= 4e-15 * size).all())


@pytest.mark.parametrize("gap", [30.0, 90.0, 300.0, 600.0])
@pytest.mark.parametrize("margin", ["none", "number", "matrix"])
def test_all_log_odds_of_confident_rows_keep_their_digits(path, gap, margin):
    f = torch.randn(4, K, dtype=F64)
    f[torch.arange(4), torch.arange(4)] += gap
    m = margin_of(margin)
    found = all_log_odds(f, margin=m)
    for k in range(K):
        expected, _ = exact(f, torch.full((4,), k), margin=m)
        close(found[:, k], expected[LOG_ODDS], rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("above_chance", [False, True])
@pytest.mark.parametrize(("temperature", "margin"), [("scalar", "classes"), ("rows", "matrix")])
def test_derivatives_of_all_log_odds_are_right(path, temperature, margin, above_chance):
    f, _ = batch(4, 3)
    t, m = temperature_of(temperature, (4,)), margin_of(margin, 3)
    leaves = tuple(x.requires_grad_() for x in (f, t, m) if isinstance(x, torch.Tensor))

    def fn(f, *others):
        others = list(others)
        tt = others.pop(0) if isinstance(t, torch.Tensor) else t
        mm = others.pop(0) if isinstance(m, torch.Tensor) else m
        return all_log_odds(f, temperature=tt, margin=mm, above_chance=above_chance)

    assert gradcheck(fn, leaves, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(fn, leaves, fast_mode=True, check_fwd_over_rev=True)


def test_all_log_odds_with_an_impossible_class_are_infinite_there_without_nan(path):
    f = torch.tensor([[1.0, -INF, 0.0], [3.0, 3.0, -INF]], dtype=F64, requires_grad=True)
    t = all_log_odds(f)
    for i, k in ((0, 1), (1, 2)):
        assert float(t.detach()[i, k]) == INF
    finite = torch.tensor([[-1.0, 1.0], [0.0, 0.0]], dtype=F64)
    close(torch.stack((t[0, [0, 2]], t[1, [0, 1]])), finite, atol=1e-15)
    (g,) = torch.autograd.grad(torch.where(t == INF, 0.0, t).sum(), f)
    assert bool(g.isfinite().all())


@pytest.mark.parametrize("dtype", HALF)
def test_all_log_odds_of_half_precision_are_float32(dtype):
    f = batch()[0].to(dtype).requires_grad_()
    for margin in (None, 0.3, margin_of("matrix", dtype=torch.float32)):
        t = all_log_odds(f, temperature=0.7, margin=margin)
        assert t.dtype is torch.float32
        true = all_log_odds(f.detach().to(F64), temperature=0.7, margin=margin)
        close(t.to(F64), true, rtol=2e-6, atol=2e-6)
        assert torch.autograd.grad(t.sum(), f)[0].dtype is dtype


# The hardest rival.


def true_hardest(f, y, margin):
    """The largest rival, margin included, less the target, and its index."""
    k = f.shape[1]
    out, which = [], []
    for i, target in enumerate(y.tolist()):
        rivals = [j for j in range(k) if j != target]
        margins = rival_margins(margin, target, k)
        found = [float(f[i, j]) + float(m) for j, m in zip(rivals, margins, strict=True)]
        top = max(range(k - 1), key=found.__getitem__)
        out.append(found[top] - float(f[i, target]))
        which.append(rivals[top])
    return torch.tensor(out, dtype=F64), torch.tensor(which)


@every_margin
@pytest.mark.parametrize("k", [2, K, 128, 129, 300])
def test_the_hardest_rival_and_its_gradient(path, margin, k):
    # More than 128 classes: the largest is sought in blocks of 128, the last of which overlaps.
    f = torch.randn(40, k, dtype=F64)
    y = torch.randint(k, (40,))
    m = margin_of(margin, k)
    value, which = true_hardest(f, y, m)
    f.requires_grad_()
    found = hardest_rival(f, y, margin=m)
    close(found, value, rtol=1e-14, atol=1e-14)
    (g,) = torch.autograd.grad(found.sum(), f)
    expected = torch.zeros_like(g)
    rows = torch.arange(40)
    expected[rows, which], expected[rows, y] = 1.0, -1.0
    assert torch.equal(g, expected)


@pytest.mark.parametrize("k", [2, K, 127, 128, 129, 255, 256, 300])
def test_the_hardest_rival_is_found_wherever_it_stands(path, k):
    f = torch.eye(k, dtype=F64)
    y = (torch.arange(k) + 1) % k
    assert torch.equal(hardest_rival(f, y), torch.ones(k, dtype=F64))
    assert torch.equal(hardest_rival(f, torch.arange(k)), torch.full((k,), -1.0, dtype=F64))


@every_margin
def test_the_hardest_rival_of_every_class(path, margin):
    f = torch.randn(3, K, 2, dtype=F64)
    m = margin_of(margin)
    found = hardest_rival(f, None, margin=m) if margin != "classes" else None
    if margin == "classes":
        # One margin per target class lies along the class axis, which only the last one broadcasts.
        found = hardest_rival(f.movedim(1, -1), None, class_dim=-1, margin=m).movedim(-1, 1)
        close(hardest_rival(f, None, margin=m), found)
    for k in range(K):
        y = torch.full((3, 2), k)
        close(found.select(1, k), hardest_rival(f, y, margin=m), rtol=1e-14, atol=1e-14)


@every_margin
def test_derivatives_of_the_hardest_rival_are_right(path, margin):
    f, y = batch(absent=(4,))
    m = margin_of(margin)
    leaves = tuple(x.requires_grad_() for x in (f, m) if isinstance(x, torch.Tensor))
    for target in (y, None):

        def fn(f, *others, target=target):
            return hardest_rival(f, target, margin=others[0] if others else m)

        assert gradcheck(fn, leaves, fast_mode=True, check_forward_ad=True, check_batched_grad=True)


@pytest.mark.parametrize("margin", [None, 0.3, "classes", "matrix"])
@pytest.mark.parametrize("every", [False, True], ids=["of a target", "of every class"])
def test_at_a_tie_the_gradient_goes_to_one_of_the_tied_rivals(path, margin, every):
    f = torch.tensor([[0.5, 2.0, 2.0, 2.0, -1.0]], dtype=F64, requires_grad=True)
    if margin == "classes":
        margin = torch.full((5,), 0.3, dtype=F64)
    elif margin == "matrix":
        margin = 0.3 * (1.0 - torch.eye(5, dtype=F64))
    for y in range(5):
        if every:
            value = hardest_rival(f, None, margin=margin)[0, y]
        else:
            value = hardest_rival(f, torch.tensor([y]), margin=margin)[0]
        (g,) = torch.autograd.grad(value, f)
        pushed = [j for j in range(5) if float(g[0, j]) == 1.0]
        assert len(pushed) == 1
        assert pushed[0] in {1, 2, 3} - {y}
        assert float(g[0, y]) == -1.0
        assert int((g != 0).sum()) == 2


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("margin", ["none", "number", "classes", "matrix"])
def test_absent_rows_reach_nothing_in_the_hardest_rival(path, bad, margin):
    f, y = batch(absent=(0, 3))
    f[0], f[3] = bad, bad
    m = margin_of(margin)
    expected, _ = true_hardest(f[[1, 2, 4]], y[[1, 2, 4]], m)
    f.requires_grad_()
    value = hardest_rival(f, y, margin=m)
    assert bool(value.isfinite().all())
    close(value[[1, 2, 4]], expected, rtol=1e-14, atol=1e-14)
    (g,) = torch.autograd.grad(value.sum(), f)
    assert torch.equal(g[[0, 3]], torch.zeros(2, K, dtype=F64))
    assert torch.equal(g[[1, 2, 4]].abs().sum(1), torch.full((3,), 2.0, dtype=F64))


def test_vmap_of_the_hardest_rival_is_a_loop(path):
    together, dims, alone = batched_problem({"f": 0, "y": 0, "m": 0})
    del together["t"]

    def fn(f, y, m):
        return hardest_rival(f, y, margin=m)

    found = vmap(fn, (0, 0, 0))(*together.values())
    close(found, torch.stack([fn(x["f"], x["y"], x["m"]) for x in alone]), rtol=1e-14)
    g = vmap(grad(lambda f, y, m: fn(f, y, m).sum()))(*together.values())
    loop = [grad(lambda f, x=x: fn(f, x["y"], x["m"]).sum())(x["f"]) for x in alone]
    assert torch.equal(g, torch.stack(loop))
    assert dims[2] is None


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("dtype", [F64, torch.float32, *HALF])
def test_the_hardest_rival_along_any_axis_and_in_any_dtype(path, axis, dtype):
    f = torch.randn(3, 4, 5).to(dtype).requires_grad_()
    rows = f.detach().movedim(axis, -1)
    y = torch.randint(rows.shape[-1], rows.shape[:-1])
    found = hardest_rival(f, y, class_dim=axis)
    assert found.dtype is (torch.float32 if dtype in HALF else dtype)
    expected, _ = true_hardest(rows.reshape(-1, rows.shape[-1]).to(F64), y.reshape(-1), None)
    close(found.to(F64).reshape(-1), expected, rtol=1e-6, atol=1e-6)
    assert torch.autograd.grad(found.sum(), f)[0].dtype is dtype


@pytest.mark.parametrize("class_dim", [1, 0, 2])
def test_statistics_against_every_class(class_dim):
    f = torch.randn(4, 5, 3, dtype=torch.float64)
    f = f * torch.tensor([0.1, 3.0, 60.0], dtype=torch.float64) + 1e3
    f.select(class_dim, 1)[1, 1] = -math.inf
    k = f.shape[class_dim]
    shape = f.select(class_dim, 0).shape
    names = _softmax.STATISTICS
    every = _softmax.all_statistics(f, names, class_dim=class_dim)
    for c in range(k):
        one = _softmax.row_statistics(f, torch.full(shape, c), names, class_dim=class_dim)
        for name, a, b in zip(names, every, one, strict=True):
            torch.testing.assert_close(a.select(class_dim, c), b, rtol=1e-9, atol=1e-12, msg=name)
    top = _softmax.top_class(f, class_dim)
    assert torch.equal(top, f.argmax(class_dim))
    wide = torch.randn(3, 1000)
    assert torch.equal(_softmax.top_class(wide, 1), wide.argmax(1))
    assert torch.equal(_softmax.top_class(wide.T, 0), wide.argmax(1))
