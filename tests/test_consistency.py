"""Consistency training: the losses, and the functions around them, against written-out formulas."""

import copy
import itertools
import math
import re
import sys

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cases import squared_distance, time_steps
from lossary import (
    CauchyLoss,
    ConsistencyLoss,
    EarlyTimestepDiffusionLoss,
    PseudoHuberLoss,
    adaptive_cauchy_scale,
    consistency_boundary,
    ict_discretization_steps,
    ict_weights,
    karras_sigmas,
    lognormal_index_probabilities,
    minibatch_ot_coupling,
)

INF, NAN = math.inf, math.nan
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
TINY = {F32: torch.finfo(F32).tiny, F64: torch.finfo(F64).tiny}


def close(found, expected, rtol=1e-12, atol=0.0):
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def relative(found, true):
    return float(abs(mpf(found) - true) / true)


# The grid.


def exact_sigmas(n, low=0.002, high=80.0, rho=7.0):
    with mpmath.workdps(60):
        a, b = (mpf(x) ** (1 / mpf(rho)) for x in (low, high))
        return [(a + mpf(i) / (n - 1) * (b - a)) ** mpf(rho) for i in range(n)]


@pytest.mark.parametrize(
    ("low", "high", "rho"),
    [
        (0.002, 80.0, 7.0),
        (0.002, 80.0, 1.0),
        (0.002, 80.0, 0.3),
        (0.01, 50.0, 2.0),
        (1e-30, 1e30, 7.0),
        (1e-5, 1.0, 1e6),
        (1e-5, 1.0, 0.01),
        (1.0, 1.0 + 1e-9, 7.0),
    ],
)
def test_sigmas_are_those_of_the_formula(low, high, rho):
    for n in (2, 3, 11, 100):
        found = karras_sigmas(n, low, high, rho, dtype=F64)
        for x, true in zip(found.tolist(), exact_sigmas(n, low, high, rho), strict=True):
            assert relative(x, true) < 1e-12


@pytest.mark.parametrize("n", [2, 3, 11, 41, 321, 1281])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_sigmas_rise_strictly_from_end_to_end(n, dtype):
    found = karras_sigmas(n, dtype=dtype)
    assert found.shape == (n,)
    assert found.dtype is dtype
    assert found[0] == torch.tensor(0.002, dtype=dtype)
    assert found[-1] == torch.tensor(80.0, dtype=dtype)
    assert bool((found.diff() > 0).all())


def test_one_sigma_is_the_smallest():
    close(karras_sigmas(1, 0.5, 3.0, dtype=F64), [0.5], rtol=0)


def test_rho_1_is_evenly_spaced_and_large_rho_in_logarithms():
    close(karras_sigmas(5, 1.0, 9.0, 1.0, dtype=F64), [1.0, 3.0, 5.0, 7.0, 9.0])
    close(karras_sigmas(4, 0.01, 10.0, 1e9, dtype=F64), [0.01, 0.1, 1.0, 10.0], rtol=1e-7)


def test_sigmas_take_dtype_and_device():
    assert karras_sigmas(3).dtype is torch.get_default_dtype()
    assert karras_sigmas(3, dtype=BF16).dtype is BF16
    assert karras_sigmas(3, device="meta").device.type == "meta"
    found = karras_sigmas(40)
    close(found.double(), karras_sigmas(40, dtype=F64), rtol=6e-8)


# The curriculum.


def test_steps_of_the_default_curriculum():
    found = [ict_discretization_steps(k, 4000) for k in range(4000)]
    assert [found[500 * i] for i in range(8)] == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert [found[500 * i + 499] for i in range(8)] == [11, 21, 41, 81, 161, 321, 641, 1281]


@given(st.integers(1, 50), st.integers(0, 7), st.integers(8, 3000))
def test_steps_never_fall_from_end_to_end(s0, doublings, total):
    s1 = s0 * 2**doublings
    found = [ict_discretization_steps(k, total, s0, s1) for k in range(total)]
    assert found[0] == s0 + 1
    assert found[-1] == s1 + 1
    assert all(a <= b for a, b in itertools.pairwise(found))
    assert ict_discretization_steps(10**9, total, s0, s1) == s1 + 1


def literal_steps(k, total, s0, s1):
    length = math.floor(total / (math.log2(math.floor(s1 / s0)) + 1))
    return min(s0 * 2 ** (k // length), s1) + 1


@given(st.integers(1, 40), st.integers(0, 400), st.integers(20, 500))
def test_steps_are_those_of_the_formula(s0, more, total):
    for k in (0, 1, total // 3, total // 2, total - 1, total, 2 * total):
        expected = literal_steps(k, total, s0, s0 + more)
        assert ict_discretization_steps(k, total, s0, s0 + more) == expected


def test_the_last_stage_may_stay_below_s1_where_the_ratio_is_no_power_of_2():
    assert ict_discretization_steps(99, 100, 10, 15) == 11
    assert ict_discretization_steps(99, 100, 10, 25) == 21
    assert ict_discretization_steps(99, 100, 10, 70) == 71


def test_steps_of_the_shortest_training():
    assert [ict_discretization_steps(k, 8) for k in range(8)][-1] == 1281
    with pytest.raises(ValueError, match=r"total_steps: expected at least 8, .+, got 7"):
        ict_discretization_steps(0, 7)
    assert ict_discretization_steps(0, 1, 10, 10) == 11
    assert ict_discretization_steps(10**30, 8) == 1281


# Which interval.


def exact_probabilities(sigmas, mean, std):
    """Of the very numbers given, with digits enough for any tail."""
    with mpmath.workdps(60):
        z = [(mpmath.log(mpf(s)) - mpf(mean)) / mpf(std) for s in sigmas.tolist()]

        def mass(a, b):
            if a > 0:
                a, b = -b, -a
            return mpmath.erfc(-b / mpmath.sqrt(2)) - mpmath.erfc(-a / mpmath.sqrt(2))

        masses = [mass(a, b) for a, b in itertools.pairwise(z)]
        return [m / mpmath.fsum(masses) for m in masses]


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (-1.1, 2.0),
        (-1.1, 0.5),
        (3.0, 0.3),
        (-8.0, 0.4),
        (0.0, 30.0),
        (-6.0, 0.18),
        (-30, 0.5),
        (25, 0.4),
    ],
)
@pytest.mark.parametrize("n", [2, 3, 11, 321])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_probabilities_keep_their_digits_in_both_tails(n, dtype, mean, std):
    sigmas = karras_sigmas(n, dtype=dtype)
    found = lognormal_index_probabilities(sigmas, mean, std)
    assert found.dtype is dtype
    assert found.shape == (n - 1,)
    assert bool((found > 0).all())
    close(found.double().sum(), 1.0, rtol=1e-6 if dtype is F32 else 1e-12)
    for x, true in zip(found.tolist(), exact_probabilities(sigmas, mean, std), strict=True):
        if true > 2 * TINY[dtype]:
            assert relative(x, true) < (1e-6 if dtype is F32 else 2e-10)
        else:
            assert x <= 2 * TINY[dtype]


def test_no_probability_is_0_where_it_underflows():
    for dtype in (F32, F64):
        sigmas = karras_sigmas(50, dtype=dtype)
        found = lognormal_index_probabilities(sigmas, -1.1, 0.01)
        assert float(found.min()) == TINY[dtype]
        draws = torch.multinomial(found, 100, replacement=True)
        assert bool((sigmas[draws] < math.exp(-1.0)).all())


def test_probabilities_are_those_of_the_formula_where_that_is_accurate():
    sigmas = karras_sigmas(20, dtype=F64)
    z = (sigmas.log() + 1.1) / (2.0 * 2.0**0.5)
    p = torch.erf(z).diff()
    close(lognormal_index_probabilities(sigmas), p / p.sum())


def test_probabilities_and_weights_of_half_precision_come_in_float32():
    for dtype in (F16, BF16):
        sigmas = karras_sigmas(5, dtype=dtype)
        assert ict_weights(sigmas).dtype is F32
        found = lognormal_index_probabilities(sigmas)
        assert found.dtype is F32
        close(found, lognormal_index_probabilities(sigmas.float()))
        close(ict_weights(sigmas), ict_weights(sigmas.float()))


# The weights.


@given(st.integers(2, 1300))
def test_weights_are_inverse_gaps_and_fall(n):
    for dtype in (F32, F64):
        sigmas = karras_sigmas(n, dtype=dtype)
        found = ict_weights(sigmas)
        assert found.dtype is dtype
        close(found, 1 / (sigmas[1:] - sigmas[:-1]))
        assert bool((found.diff() < 0).all())


def test_weights_are_constant_for_rho_1_and_rise_below():
    close(ict_weights(karras_sigmas(9, 1.0, 5.0, 1.0, dtype=F64)), torch.full((8,), 2.0))
    assert bool((ict_weights(karras_sigmas(9, 1.0, 5.0, 0.5)).diff() > 0).all())


def test_the_ratios_of_the_docstring():
    for n, ratio in ((11, 2400), (1281, 8700)):
        found = ict_weights(karras_sigmas(n, dtype=F64))
        assert float(found[0] / found[-1]) == pytest.approx(ratio, rel=0.02)


# The boundary condition.


def coefficients(s, data, least):
    return data**2 / ((s - least) ** 2 + data**2), data * (s - least) / math.hypot(s, data)


@given(st.floats(0.0, 100.0), st.floats(0.1, 2.0), st.floats(0.0, 0.1))
def test_boundary_is_that_of_the_formula(s, data, least):
    x, net = torch.randn(2, 3, 2, dtype=F64)
    skip, out = coefficients(s, data, least)
    found = consistency_boundary(net, x, s, data, least)
    close(found, skip * x + out * net, atol=1e-12)
    per_sample = consistency_boundary(net, x, torch.full((3,), s, dtype=F64), data, least)
    close(per_sample, found, atol=1e-14)


@given(st.floats(0.0, 100.0), st.floats(0.1, 2.0), st.floats(0.1, 20.0))
def test_boundary_of_latent_consistency_models(t, data, scaling):
    x, net = torch.randn(2, 3, 2, dtype=F64)
    tau = scaling * t
    skip, out = data**2 / (tau**2 + data**2), tau / math.hypot(tau, data)
    found = consistency_boundary(net, x, t, data, variant="lcm", timestep_scaling=scaling)
    close(found, skip * x + out * net, atol=1e-12)


def test_the_default_scaling_of_latent_consistency_models_is_10():
    x, net = torch.randn(2, 3, dtype=F64)
    found = consistency_boundary(net, x, 0.1, variant="lcm")
    close(found, 0.2 * x + net / math.hypot(1.0, 0.5))
    # No sigma_min there: the boundary is t = 0.
    close(consistency_boundary(net, x, 0.1, variant="lcm", sigma_min=0.05), found, rtol=0)


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16])
@pytest.mark.parametrize("of_sigma", [F32, F64, BF16, F16])
def test_at_the_boundary_the_input_comes_back_exactly(dtype, of_sigma):
    x, net = torch.randn(2, 4, 3, 2).to(dtype)
    sigmas = karras_sigmas(11, dtype=of_sigma)
    net = net * 1e4
    for sigma in (sigmas[:1].expand(4), sigmas[0], 0.002):
        found = consistency_boundary(net, x, sigma)
        assert torch.equal(found, x.to(found.dtype))
    for t in (torch.zeros(4, dtype=of_sigma), 0, 0.0):
        found = consistency_boundary(net, x, t, variant="lcm")
        assert torch.equal(found, x.to(found.dtype))
    assert not torch.equal(consistency_boundary(net, x, sigmas[1]), x.to(found.dtype))


def test_boundary_comes_in_the_wider_dtype_of_the_samples():
    for a, b, expected in ((F32, F32, F32), (BF16, BF16, F32), (F16, F32, F32), (F32, F64, F64)):
        x, net = torch.randn(4, 3).to(a), torch.randn(4, 3).to(b)
        for of_sigma in (BF16, F32, F64):
            sigma = torch.tensor([0.002, 0.1, 1.0, 80.0], dtype=of_sigma)
            found = consistency_boundary(net, x, sigma)
            assert found.dtype is expected
            exact = consistency_boundary(net.double(), x.double(), sigma.double(), sigma_min=0.002)
            close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_boundary_next_to_it_keeps_the_digits_of_the_grid():
    x, net = torch.zeros(3, 1), torch.ones(3, 1)
    sigmas = karras_sigmas(1281, dtype=F64)[1:4]
    found = consistency_boundary(net, x, sigmas)[:, 0]
    exact = [coefficients(s, 0.5, 0.002)[1] for s in sigmas.tolist()]
    close(found, exact, rtol=2e-7)


def test_boundary_is_for_one_sigma_per_sample_or_one_for_all():
    x, net = torch.randn(2, 4, 3, 5, 2, dtype=F64)
    sigma = torch.tensor([0.002, 0.3, 2.0, 80.0], dtype=F64)
    found = consistency_boundary(net, x, sigma)
    for i in range(4):
        close(found[i], consistency_boundary(net[i : i + 1], x[i : i + 1], float(sigma[i]))[0])
        close(found[i], consistency_boundary(net, x, sigma[i])[i])
    one = consistency_boundary(net[0, 0, 0], x[0, 0, 0], torch.tensor([0.1, 0.2], dtype=F64))
    assert one.shape == (2,)


def test_boundary_at_any_size_of_sigma():
    x, net = torch.randn(2, 3, dtype=F32)
    for variant in ("edm", "lcm"):
        for sigma, data in ((1e30, 0.5), (1e-30, 1e-30), (3.0, 1e30)):
            found = consistency_boundary(net, x, sigma, data, 0.0, variant=variant)
            expected = consistency_boundary(
                net.double(), x.double(), sigma, data, 0.0, variant=variant
            )
            close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", ["edm", "lcm"])
def test_gradients_through_the_boundary(variant):
    net, x = torch.randn(2, 3, 2, dtype=F64)
    sigma = torch.tensor([0.002, 0.3, 5.0], dtype=F64)
    inputs = [t.requires_grad_() for t in (net, x, sigma)]

    def f(*inputs):
        return consistency_boundary(*inputs, variant=variant)

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_boundary_needs_no_values_and_compiles_as_one_graph(fresh_compiler):
    net, x = torch.randn(2, 3, 2)
    sigma = karras_sigmas(3)
    compiled = torch.compile(consistency_boundary, fullgraph=True, backend="aot_eager")
    close(compiled(net, x, sigma), consistency_boundary(net, x, sigma), rtol=1e-6)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (net, x, sigma)]
        assert consistency_boundary(*fake).shape == x.shape
        assert lognormal_index_probabilities(fake[2]).shape == (2,)
        assert ict_weights(fake[2]).shape == (2,)


# The consistency loss.


def test_values_are_those_of_the_distance_times_the_weights():
    x, y = torch.randn(2, 5, 3, 2, dtype=F64)
    w = torch.rand(5, dtype=F64)
    r = (x - y).flatten(1)
    norms = r.norm(dim=1)
    c = 0.00054 * 6**0.5
    for distance, expected in (
        (None, torch.sqrt(norms**2 + c**2) - c),
        (PseudoHuberLoss(0.5), torch.sqrt(norms**2 + 0.25) - 0.5),
        (PseudoHuberLoss(0.5, reduction="sum"), torch.sqrt(norms**2 + 0.25) - 0.5),
        (CauchyLoss(0.3, "vector"), torch.log(1 + norms**2 / 0.18)),
        (squared_distance, norms**2),
        (lambda a, b: (a - b).abs().flatten(1).amax(1), r.abs().amax(1)),
        (nn.PairwiseDistance(eps=0.0), None),
    ):
        if expected is None:
            a, b, expected = x[:, :, 0], y[:, :, 0], (x - y)[:, :, 0].norm(dim=1)
        else:
            a, b = x, y
        loss = ConsistencyLoss(distance, reduction="none")
        close(loss(a, b), expected)
        close(loss(a, b, w), expected * w)
        close(ConsistencyLoss(distance)(a, b, w), (expected * w).mean())


def test_the_weight_of_time_is_no_part_of_the_denominator():
    x, y = torch.randn(2, 4, 3, dtype=F64)
    w = torch.tensor([2.0, 0.0, 1.0, 0.5], dtype=F64)
    weight = torch.tensor([1.0, 2.0, 0.0, 3.0], dtype=F64)
    d = (x - y).square().sum(1)
    for reduction, divisor in (("mean", 6.0), ("batchmean", 3.0), ("sum", 1.0)):
        loss = ConsistencyLoss(squared_distance, reduction=reduction)
        close(loss(x, y, w, weight=weight), (d * w * weight).sum() / divisor)


def test_no_gradient_reaches_the_target_unless_asked_for():
    x, y = torch.randn(2, 4, 3, dtype=F64)
    w = torch.rand(4, dtype=F64).requires_grad_()
    x.requires_grad_(), y.requires_grad_()
    out = ConsistencyLoss()(x, y, w)
    of_x, of_y, of_w = torch.autograd.grad(out, (x, y, w), allow_unused=True)
    assert of_y is None
    r = (x - y).detach()
    c = 0.00054 * 3**0.5
    size = (r.square().sum(1, keepdim=True) + c**2).sqrt()
    close(of_x, w.detach()[:, None] * r / size / 4)
    close(of_w, (size.squeeze(1) - c) / 4)
    of_x, of_y = torch.autograd.grad(ConsistencyLoss(detach_target=False)(x, y, w), (x, y))
    close(of_y, -of_x)


def test_loss_is_0_iff_prediction_and_target_agree():
    x = torch.randn(4, 3, dtype=F64)
    for distance in (None, CauchyLoss(0.1, "vector"), squared_distance):
        loss = ConsistencyLoss(distance, reduction="none")
        leaf = x.clone().requires_grad_()
        values = loss(leaf, x)
        assert bool((values == 0).all())
        assert bool((torch.autograd.grad(values.sum(), leaf)[0] == 0).all())
        y = x.clone()
        y[1, 2] += 1e-6
        assert ((loss(x, y) > 0).nonzero().flatten() == torch.tensor([1])).all()


def test_weights_of_time_come_in_any_float_dtype():
    x, y = torch.randn(2, 4, 3)
    w = torch.tensor([0.5, 1.0, 2.0, 4.0])
    expected = ConsistencyLoss()(x, y, w)
    for dtype in (F64, F16, BF16):
        found = ConsistencyLoss()(x, y, w.to(dtype))
        assert found.dtype is F32
        close(found, expected, rtol=1e-6)


def test_an_own_distance_is_given_float32_for_half_precision():
    seen = []

    def distance(a, b):
        seen.append((a.dtype, b.dtype))
        return (a - b).abs().sum(1)

    x, y = torch.randn(2, 4, 3)
    found = ConsistencyLoss(distance)(x.bfloat16(), y.half())
    assert seen == [(F32, F32)]
    assert found.dtype is F32


def test_half_precision_is_not_rounded_on_the_way():
    x, y = torch.randn(2, 4, 3).bfloat16()
    for distance in (None, CauchyLoss(0.1, "vector"), squared_distance):
        found = ConsistencyLoss(distance)(x, y)
        close(found.double(), ConsistencyLoss(distance)(x.double(), y.double()), rtol=1e-6)


def test_the_scale_of_the_distance_may_be_trained_and_set():
    scale = nn.Parameter(torch.tensor(0.5, dtype=F64))
    loss = ConsistencyLoss(CauchyLoss(scale, "vector"))
    assert list(loss.parameters()) == [scale]
    x, y = torch.randn(2, 4, 3, dtype=F64)
    loss(x, y).backward()
    assert scale.grad is not None
    assert scale.grad < 0
    before = loss(x, y).detach()
    loss.distance.set_scale(adaptive_cauchy_scale(21))
    assert loss(x, y).detach() > before
    assert list(loss.parameters()) == [scale]
    assert set(copy.deepcopy(loss).state_dict()) == {"distance.scale"}


def test_weight_0_takes_a_sample_out_whatever_its_time():
    x, y = torch.randn(2, 4, 3, dtype=F64)
    w = torch.rand(4, dtype=F64)
    expected = ConsistencyLoss()(x[:3], y[:3], w[:3])
    x[3], w[3] = NAN, NAN
    leaf = x.clone().requires_grad_()
    found = ConsistencyLoss()(leaf, y, w, weight=torch.tensor([True, True, True, False]))
    close(found, expected)
    assert bool((torch.autograd.grad(found, leaf)[0][3] == 0).all())


def test_properties_are_those_of_the_distance():
    default = ConsistencyLoss().properties()
    assert (default.convex, default.lower, default.upper, default.lipschitz) == (True, 0, INF, 1)
    cauchy = ConsistencyLoss(CauchyLoss(0.5, "vector")).properties()
    assert cauchy.convex is False
    assert cauchy.lipschitz == pytest.approx(2**0.5)
    assert "Barron 2019" in cauchy.source
    assert "Song, Dhariwal 2023" in default.source
    assert ConsistencyLoss(squared_distance).properties().convex is None


# The early window.


def window(index, num_scales, fraction):
    return [i < fraction * (num_scales - 1) for i in index]


@given(st.integers(2, 200), st.sampled_from([0.05, 0.07, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0]))
def test_the_window_is_that_of_the_formula(num_scales, fraction):
    index = torch.arange(num_scales)
    x = torch.ones(num_scales, 2, dtype=F64)
    loss = EarlyTimestepDiffusionLoss(fraction, reduction="none")
    expected = torch.tensor(window(range(num_scales), num_scales, fraction))
    for n in (num_scales, torch.tensor(num_scales), torch.tensor(num_scales, dtype=torch.int32)):
        assert torch.equal(loss(x, 0 * x, index, n), expected.double())
        # Where the number cannot be read.
        over = torch.vmap(lambda n: loss(x, 0 * x, index, n))(torch.as_tensor(n).reshape(1))
        assert torch.equal(over[0], expected.double())


def test_the_window_of_a_quarter_and_of_all():
    index, x = torch.arange(11), torch.ones(11, 2)
    for fraction, inside in ((0.25, 3), (0.1, 1), (0.5, 5), (1.0, 10)):
        loss = EarlyTimestepDiffusionLoss(fraction, reduction="none")
        assert loss(x, 0 * x, index, 11).tolist() == [1.0] * inside + [0.0] * (11 - inside)


def test_positions_are_compared_as_whole_numbers():
    # In float32 the window's end, 2^25 - 1/2, and the position before it would be one number.
    index = torch.tensor([2**25 - 1, 2**25])
    x = torch.ones(2, 1)
    loss = EarlyTimestepDiffusionLoss(0.5, reduction="none")
    for n in (2**26, torch.tensor(2**26)):
        assert loss(x, 0 * x, index, n).tolist() == [1.0, 0.0]
    assert torch.vmap(lambda n: loss(x, 0 * x, index, n))(torch.tensor([2**26])).tolist() == [
        [1.0, 0.0]
    ]


@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 2, 3, 3)])
def test_early_values_reductions_and_gradients(shape):
    x, y = torch.randn(2, *shape, dtype=F64)
    index = torch.tensor([0, 9, 2, 3, 1, 10])
    inside = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0], dtype=F64)
    size = x[0].numel()
    d = (x - y).reshape(6, -1).square().mean(1)
    weight = torch.tensor([1.0, 1.0, 0.0, 5.0, 3.0, 0.0], dtype=F64)
    for reduction, plain, weighted in (
        ("mean", 3.0, 4.0),
        ("batchmean", 3.0, 2.0),
        ("sum", 1.0, 1.0),
    ):
        loss = EarlyTimestepDiffusionLoss(reduction=reduction)
        close(loss(x, y, index, 11), (d * inside).sum() / plain)
        close(loss(x, y, index, 11, weight=weight), (d * inside * weight).sum() / weighted)
        leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        of_x, of_y = torch.autograd.grad(loss(*leaves, index, 11), leaves)
        expected = 2 * (x - y) / size * inside.reshape(-1, *[1] * (x.dim() - 1)) / plain
        close(of_x, expected)
        close(of_y, -expected)
    close(EarlyTimestepDiffusionLoss(reduction="none")(x, y, index, 11), d * inside)


def test_all_in_the_window_is_the_mean_squared_error():
    x, y = torch.randn(2, 6, 3, 2, dtype=F64)
    index = torch.zeros(6, dtype=torch.int16)
    close(EarlyTimestepDiffusionLoss()(x, y, index, 11), F.mse_loss(x, y))
    alone = EarlyTimestepDiffusionLoss(1.0)(x, y, torch.arange(6), torch.tensor(7))
    close(alone, F.mse_loss(x, y))


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
def test_an_empty_window_gives_0_with_a_graph(reduction):
    x = torch.full((3, 2), INF, requires_grad=True)
    loss = EarlyTimestepDiffusionLoss(reduction=reduction)
    out = loss(x, torch.zeros(3, 2), torch.tensor([5, 9, 10]), 11)
    assert out == 0
    assert bool((torch.autograd.grad(out, x)[0] == 0).all())


def test_what_lies_outside_the_window_is_not_there():
    x, y = torch.randn(2, 4, 3)
    index = torch.tensor([0, 10, 2, 5])
    expected = EarlyTimestepDiffusionLoss()(x[[0, 2]], y[[0, 2]], index[[0, 2]], 11)
    for fill in (NAN, INF):
        x[1], y[3] = fill, fill
        leaf = x.clone().requires_grad_()
        found = EarlyTimestepDiffusionLoss()(leaf, y, index, 11)
        close(found, expected, rtol=1e-6)
        gradient = torch.autograd.grad(found, leaf)[0]
        assert bool((gradient[[1, 3]] == 0).all())
        assert bool((gradient[[0, 2]] != 0).all())


def test_early_in_any_memory_layout():
    x, y, index, n = time_steps(11, 3, 2)(8, F64, torch.Generator().manual_seed(1))
    loss = EarlyTimestepDiffusionLoss()
    spread = torch.stack((index, index), 1)[:, 0]
    layouts = x.permute(2, 1, 0).contiguous().permute(2, 1, 0), y.expand(8, 3, 2)
    close(loss(*layouts, spread, n), loss(x, y, index, n))


def test_early_grows_along_its_stored_direction():
    properties = EarlyTimestepDiffusionLoss().properties()
    d, target, index, n = properties.counterexamples["upper"]
    values, slopes = [], []
    for s in (1.0, 1e3, 1e6):
        x = (s * d).double().requires_grad_()
        out = EarlyTimestepDiffusionLoss()(x, target.double(), index, n)
        values.append(float(out.detach()))
        slopes.append(float(torch.autograd.grad(out, x)[0].norm()))
    close(torch.tensor(values), [1.0, 1e6, 1e12])
    close(torch.tensor(slopes), [2.0, 2e3, 2e6])
    assert (properties.convex, properties.lower, properties.upper) == (True, 0.0, INF)


def test_early_compiles_as_one_graph_for_a_growing_grid(fresh_compiler):
    loss = EarlyTimestepDiffusionLoss()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x, y, index, _ = time_steps(11, 3)(4, F32, torch.Generator().manual_seed(0))
    for n in (11, 21, 41, 81, 161, 321):
        close(compiled(x, y, index, n), loss(x, y, index, n), rtol=1e-6)
        n = torch.tensor(n)
        close(compiled(x, y, index, n), loss(x, y, index, n), rtol=1e-6)


def test_early_in_half_precision():
    x, y, index, n = time_steps(11, 3)(4, F32, torch.Generator().manual_seed(0))
    found = EarlyTimestepDiffusionLoss()(x.bfloat16(), y.bfloat16(), index, n)
    assert found.dtype is F32
    x, y = x.bfloat16().double(), y.bfloat16().double()
    close(found.double(), EarlyTimestepDiffusionLoss()(x, y, index, n), rtol=1e-6)


# The steps of training.


def exact_function(x, sigma):
    """The consistency function of data that are all 0: every path is a multiple of its noise."""
    return x * (0.002 / sigma)


def test_the_exact_consistency_function_has_loss_0_at_all_times():
    sigmas = karras_sigmas(41, dtype=F64)
    i = torch.arange(40)
    z = torch.randn(40, 3, dtype=F64)
    low, high = sigmas[i, None], sigmas[i + 1, None]
    prediction, target = exact_function(high * z, high), exact_function(low * z, low)
    loss = ConsistencyLoss()(prediction, target, ict_weights(sigmas))
    assert float(loss) < 1e-20
    # Scaled, it agrees with itself as well: only the boundary condition forbids that.
    scaled = ConsistencyLoss()(3 * prediction, 3 * target, ict_weights(sigmas))
    assert float(scaled) < 1e-20
    wrong = ConsistencyLoss()(3 * prediction, target, ict_weights(sigmas))
    assert float(wrong) > 1e-3


class Toy(nn.Module):
    """A network with a skip connection around it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x, sigma):
        features = torch.cat((x / (sigma[:, None] ** 2 + 0.25).sqrt(), sigma[:, None].log()), 1)
        return consistency_boundary(self.layers(features), x, sigma)


@pytest.mark.parametrize("distance", [PseudoHuberLoss(), CauchyLoss(0.0345, "vector")])
def test_improved_consistency_training_moves_a_network_to_the_data(distance):
    torch.manual_seed(0)
    network, loss, steps = Toy(), ConsistencyLoss(distance), 240
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    data = torch.tensor([0.6, -0.3])

    def error():
        with torch.no_grad():
            noise = torch.randn(256, 2, generator=torch.Generator().manual_seed(1))
            return float(
                (network(80.0 * noise, torch.full((256,), 80.0)) - data).norm(dim=1).mean()
            )

    before = error()
    for k in range(steps):
        num_scales = ict_discretization_steps(k, steps, s1=40)
        sigmas = karras_sigmas(num_scales)
        if isinstance(distance, CauchyLoss):
            loss.distance.set_scale(adaptive_cauchy_scale(num_scales))
        i = torch.multinomial(lognormal_index_probabilities(sigmas), 128, replacement=True)
        x, z = data.expand(128, 2), torch.randn(128, 2)
        z = z[minibatch_ot_coupling(x + 0.01 * torch.randn(128, 2), z)]
        prediction = network(x + sigmas[i + 1, None] * z, sigmas[i + 1])
        target = network(x + sigmas[i, None] * z, sigmas[i])
        out = loss(prediction, target, ict_weights(sigmas)[i])
        optimizer.zero_grad()
        out.backward()
        optimizer.step()
    assert error() < 0.5 * before


def test_the_gradient_of_a_step_is_that_with_a_constant_target():
    network = Toy().double()
    sigmas = karras_sigmas(11, dtype=F64)
    i = torch.tensor([0, 3, 9])
    x, z = torch.randn(2, 3, 2, dtype=F64)
    high, low = sigmas[i + 1], sigmas[i]
    weights = ict_weights(sigmas)[i]
    parameters = list(network.parameters())
    prediction = network(x + high[:, None] * z, high)
    target = network(x + low[:, None] * z, low)
    found = torch.autograd.grad(ConsistencyLoss()(prediction, target, weights), parameters)
    prediction = network(x + high[:, None] * z, high)
    constant = target.detach()
    c = 0.00054 * 2**0.5
    plain = (((prediction - constant).square().sum(1) + c**2).sqrt() - c) * weights
    for a, b in zip(found, torch.autograd.grad(plain.mean(), parameters), strict=True):
        close(a, b, rtol=1e-9, atol=1e-9)


def test_the_loss_of_latent_consistency_training_is_the_sum_of_both():
    prediction, target, clean = torch.randn(3, 8, 4, dtype=F64)
    index = torch.tensor([0, 1, 2, 3, 4, 6, 8, 9])
    c = adaptive_cauchy_scale(11)
    leaf = prediction.clone().requires_grad_()
    consistency = ConsistencyLoss(CauchyLoss(c, "vector"))
    early = EarlyTimestepDiffusionLoss()
    total = consistency(leaf, target) + 5.0 * early(leaf, clean, index, 11)
    r, e = prediction - target, (prediction - clean)[:3]
    by_hand = torch.log1p(r.square().sum(1) / (2 * c**2)).mean() + 5.0 * e.square().mean()
    close(total, by_hand)
    gradient = 2 * r / (2 * c**2 + r.square().sum(1, keepdim=True)) / 8
    gradient[:3] += 5.0 * 2 * e / 12
    close(torch.autograd.grad(total, leaf)[0], gradient)


# The coupling.


def cost(x, noise):
    return float((x - noise).square().sum())


def samples(most=6, least=1):
    return st.integers(least, most).flatmap(
        lambda n: st.lists(
            st.lists(st.floats(-5, 5), min_size=2, max_size=2), min_size=2 * n, max_size=2 * n
        )
    )


@given(samples())
def test_no_permutation_costs_less(rows):
    x, noise = torch.tensor(rows, dtype=F64).chunk(2)
    perm = minibatch_ot_coupling(x, noise)
    assert perm.dtype is torch.long
    assert sorted(perm.tolist()) == list(range(len(x)))
    least = min(cost(x, noise[list(p)]) for p in itertools.permutations(range(len(x))))
    assert cost(x, noise[perm]) <= least + 1e-9 * (1 + least)


@given(st.integers(2, 40), st.integers(0, 10**6))
def test_coupling_is_equivariant_and_blind_to_shifts(n, seed):
    g = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, 3, 2, generator=g)
    perm = minibatch_ot_coupling(x, noise)
    assert cost(x, noise[perm]) <= cost(x, noise) + 1e-6
    p, q = torch.randperm(n, generator=g), torch.randperm(n, generator=g)
    assert torch.equal(minibatch_ot_coupling(x[p], noise), perm[p])
    assert torch.equal(q[minibatch_ot_coupling(x, noise[q])], perm)
    shift = torch.randn(3, 2, generator=g)
    assert torch.equal(minibatch_ot_coupling(x, noise.double() + 1e6 * shift.double()), perm)
    assert torch.equal(minibatch_ot_coupling(x.double() + shift.double(), noise), perm)
    assert torch.equal(minibatch_ot_coupling(3 * x, noise), perm)
    # Far from 0 both: the products of the means would leave no digits.
    assert torch.equal(minibatch_ot_coupling(x.double() + 1e7, noise.double() + 1e7), perm)


def test_coupling_in_one_dimension_sorts():
    x, noise = torch.randn(2, 50)
    perm = minibatch_ot_coupling(x, noise)
    assert torch.equal(noise[perm][x.argsort()], noise.sort().values)


def test_coupling_takes_what_training_gives():
    x = torch.randn(3, 2, requires_grad=True)
    noise = torch.randn(3, 2, dtype=F64)
    perm = minibatch_ot_coupling(x, noise)
    assert not perm.requires_grad
    assert torch.equal(perm, minibatch_ot_coupling(x.detach().bfloat16().float(), noise))
    assert minibatch_ot_coupling(x[:0], noise[:0]).shape == (0,)
    assert minibatch_ot_coupling(x[:, :0], noise[:, :0]).shape == (3,)
    assert minibatch_ot_coupling(x[:1], noise[:1], method="exact").tolist() == [0]


def test_missing_scipy_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"expected scipy, got none: .*lossary\[scipy\]"):
        minibatch_ot_coupling(torch.zeros(2, 1), torch.zeros(2, 1))


# What the functions refuse.


X, S = torch.zeros(4, 3), torch.tensor([0.1, 0.5, 2.0])


def refused(function, argument, says, *inputs, error=ValueError, **keywords):
    return pytest.param(
        function, argument, says, inputs, error, keywords, id=f"{function.__name__}-{says}"
    )


@pytest.mark.parametrize(
    ("function", "argument", "says", "inputs", "error", "keywords"),
    [
        refused(karras_sigmas, "num_scales", "at least 1, got 0", 0),
        refused(karras_sigmas, "num_scales", "an int, got float", 11.0, error=TypeError),
        refused(karras_sigmas, "num_scales", "an int, got bool", True, error=TypeError),
        refused(karras_sigmas, "sigma_min", "(0, inf), got 0.0", 11, 0.0),
        refused(karras_sigmas, "sigma_min", "(0, inf), got nan", 11, NAN),
        refused(karras_sigmas, "sigma_max", "(0.002, inf), got 0.002", 11, 0.002, 0.002),
        refused(karras_sigmas, "sigma_max", "(0.002, inf), got inf", 11, 0.002, INF),
        refused(karras_sigmas, "sigma_max", "got str", 11, 0.002, "80", error=TypeError),
        refused(karras_sigmas, "rho", "(0, inf), got 0.0", 11, rho=0.0),
        refused(karras_sigmas, "rho", "(0, inf), got inf", 11, rho=INF),
        refused(karras_sigmas, "dtype", "torch.int64", 11, dtype=torch.int64, error=TypeError),
        refused(ict_discretization_steps, "k", "at least 0, got -1", -1, 100),
        refused(ict_discretization_steps, "k", "an int, got float", 1.0, 100, error=TypeError),
        refused(ict_discretization_steps, "total_steps", "an int", 0, 1e4, error=TypeError),
        refused(ict_discretization_steps, "total_steps", "at least 1, got 0", 0, 0),
        refused(ict_discretization_steps, "total_steps", "at least 8", 0, 7),
        refused(ict_discretization_steps, "s0", "at least 1, got 0", 0, 100, 0),
        refused(ict_discretization_steps, "s0", "an int, got float", 0, 9, 1.0, error=TypeError),
        refused(ict_discretization_steps, "s1", "at least 10, got 9", 0, 100, 10, 9),
        refused(ict_discretization_steps, "s1", "an int, got NoneType", 0, 9, 1, None,
                error=TypeError),
        *(
            refused(function, "sigmas", says, value, error=error)
            for function in (lognormal_index_probabilities, ict_weights)
            for says, value, error in (
                ("a tensor, got list", [0.1, 1.0], TypeError),
                ("floating point, got torch.int64", torch.tensor([1, 2]), TypeError),
                ("N >= 2, got (1,)", S[:1], ValueError),
                ("N >= 2, got ()", S[0], ValueError),
                ("N >= 2, got (1, 3)", S[None], ValueError),
                ("increasing", S.flip(0), ValueError),
                ("increasing numbers > 0", S - 0.1, ValueError),
                ("strictly", S[[0, 1, 1]], ValueError),
                ("numbers > 0", torch.tensor([0.0, 1.0]), ValueError),
                ("nan", torch.tensor([0.1, NAN, 1.0]), ValueError),
                ("finite", torch.tensor([0.1, 1.0, INF]), ValueError),
            )
        ),
        refused(lognormal_index_probabilities, "p_std", "(0, inf), got 0.0", S, -1.1, 0.0),
        refused(lognormal_index_probabilities, "p_std", "got bool", S, 0.0, True, error=TypeError),
        refused(lognormal_index_probabilities, "p_mean", "(-inf, inf), got inf", S, INF),
        refused(lognormal_index_probabilities, "p_mean", "got nan", S, NAN),
        refused(consistency_boundary, "net_output", "a tensor", None, X, S[0], error=TypeError),
        refused(consistency_boundary, "net_output", "axis 0", S[0], S[0], 1.0),
        refused(consistency_boundary, "x_t", "floating", X, X.long(), 1.0, error=TypeError),
        refused(consistency_boundary, "x_t", "(4, 3), got (3, 4)", X, X.T, 1.0),
        refused(consistency_boundary, "x_t", "got meta", X, X.to("meta"), 1.0),
        refused(consistency_boundary, "sigma", "(4,) or a single number, got (3,)", X, X, S),
        refused(consistency_boundary, "sigma", "got (4, 3)", X, X, X),
        refused(consistency_boundary, "sigma", ">= 0, got -0.5", X, X, torch.tensor(-0.5)),
        refused(consistency_boundary, "sigma", "got nan", X, X, torch.full((4,), NAN)),
        refused(consistency_boundary, "sigma", "[0, inf), got -1", X, X, -1),
        refused(consistency_boundary, "sigma", "a number, got str", X, X, "1", error=TypeError),
        refused(consistency_boundary, "sigma", "int64", X, X, torch.tensor(1), error=TypeError),
        refused(consistency_boundary, "sigma", "got meta", X, X, torch.ones(4, device="meta")),
        refused(consistency_boundary, "sigma_data", "(0, inf), got 0.0", X, X, 1.0, 0.0),
        refused(consistency_boundary, "sigma_min", "[0, inf), got -0.1", X, X, 1.0, 0.5, -0.1),
        refused(consistency_boundary, "sigma_min", "got inf", X, X, 1.0, 0.5, INF),
        refused(consistency_boundary, "variant", "'edm', 'lcm'", X, X, 1.0, variant="EDM"),
        refused(consistency_boundary, "timestep_scaling", "got 0", X, X, 1.0, timestep_scaling=0),
        refused(minibatch_ot_coupling, "x", "a tensor, got list", [1.0], X, error=TypeError),
        refused(minibatch_ot_coupling, "x", "axis 0", S[0], S[0]),
        refused(minibatch_ot_coupling, "noise", "int64", X, X.long(), error=TypeError),
        refused(minibatch_ot_coupling, "noise", "(4, 3), got (3, 3)", X, X[:3]),
        refused(minibatch_ot_coupling, "noise", "got meta", X, X.to("meta")),
        refused(minibatch_ot_coupling, "method", "('exact',), got 'sinkhorn'", X, X, "sinkhorn"),
        refused(minibatch_ot_coupling, "x", "finite", X / 0, X),
        refused(minibatch_ot_coupling, "noise", "finite numbers, got", X, X + INF),
    ],
)  # fmt: skip
def test_functions_refuse(function, argument, says, inputs, error, keywords):
    with pytest.raises(error) as caught:
        function(*inputs, **keywords)
    assert type(caught.value) is error
    message = str(caught.value)
    assert re.match(rf"{argument}: .+, got .+", message, re.DOTALL), message
    assert says in message
