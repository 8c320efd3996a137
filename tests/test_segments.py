"""Preferences between segments: by partial return and by regret."""

import inspect
import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from lossary import (
    BradleyTerryLoss,
    CPLLoss,
    PartialReturnPreferenceLoss,
    RegretPreferenceLoss,
)
from test_preference import F32, F64, INF, NAN, close, each, gradients

N, S = 6, 4
LABEL = torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0, 0.3], dtype=F64)
SIX = [f"{name}_{i}" for i in (1, 2) for name in ("partial_return", "v_start", "v_end")]
numbers = st.floats(-20, 20)
temperatures = st.floats(0.1, 10)
labels = st.sampled_from([0.0, 0.2, 0.5, 1.0])


def drawn(*shape, seed=0):
    return 2.0 * torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def regret(rewards, values):
    """Of the rewards of S steps and the values of the S + 1 states along them."""
    return values[:, 0] - (rewards.sum(1) + values[:, -1])


def given_as(rewards, values):
    return rewards.sum(1), values[:, 0], values[:, -1]


def trajectories(seed=0):
    """Rewards and state values of two segments."""
    (one, two), (v, w) = drawn(2, N, S, seed=seed), drawn(2, N, S + 1, seed=seed + 1)
    return (one, v), (two, w)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_regret_is_the_plain_formula(temperature):
    first, second = trajectories()
    inputs = *given_as(*first), *given_as(*second), LABEL

    def plain(r1, v1, e1, r2, v2, e2, y):
        z = ((v2 - (r2 + e2)) - (v1 - (r1 + e1))) / temperature
        return -(y * logsigmoid(z) + (1 - y) * logsigmoid(-z)).mean()

    loss = RegretPreferenceLoss(temperature)
    close(loss(*inputs), plain(*inputs))
    z = (regret(*second) - regret(*first)) / temperature
    close(each(RegretPreferenceLoss, *inputs, temperature=temperature),
          binary_cross_entropy_with_logits(z, LABEL, reduction="none"))  # fmt: skip
    found = gradients(lambda *x: loss(*x, LABEL), *inputs[:-1])
    close(found, gradients(lambda *x: plain(*x, LABEL), *inputs[:-1]))
    slope = (torch.sigmoid(z) - LABEL) / temperature / N
    close(found, (slope, -slope, slope, -slope, slope, -slope))
    assert list(inspect.signature(loss.forward).parameters)[:7] == [*SIX, "label"]
    if temperature == 1.0:
        assert torch.equal(RegretPreferenceLoss()(*inputs), loss(*inputs))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_partial_return_is_the_plain_formula(temperature):
    one, two = drawn(2, N)
    loss = PartialReturnPreferenceLoss(temperature)
    z = (one - two) / temperature
    close(loss(one, two, LABEL), binary_cross_entropy_with_logits(z, LABEL))
    slope = (torch.sigmoid(z) - LABEL) / temperature / N
    close(gradients(lambda x, y: loss(x, y, LABEL), one, two), (slope, -slope))
    ones = torch.ones_like(one)
    if temperature == 1.0:
        close(PartialReturnPreferenceLoss()(one, two, LABEL), loss(one, two, LABEL))
        close(loss(one, two, ones), BradleyTerryLoss()(one, two))
    # The other one first, and the other label.
    close(loss(two, one, 1 - LABEL), loss(one, two, LABEL))


@given(st.lists(numbers, min_size=8, max_size=8), temperatures, labels)
def test_potential_shaping_changes_partial_returns_but_not_regret(found, temperature, label):
    # r' = r + Phi(s') - Phi(s), V' = V - Phi; along a segment the potentials telescope.
    r1, r2, v1, e1, v2, e2, phi, psi = torch.tensor(found, dtype=F64).unsqueeze(1)
    y = torch.tensor([label], dtype=F64)
    loss = RegretPreferenceLoss(temperature)
    plain = loss(r1, v1, e1, r2, v2, e2, y)
    shaped = [r1 + psi - phi, v1 - phi, e1 - psi, r2 - psi + phi, v2 - psi, e2 - phi, y]
    scale = 1e-11 / temperature
    close(loss(*shaped), plain, atol=scale)
    partial = PartialReturnPreferenceLoss(temperature)
    before, after = partial(r1, r2, y), partial(shaped[0], shaped[3], y)
    if label == 1.0 and abs(float(psi - phi)) > 0.1:
        assert (after < before) == (psi > phi) or after == before == 0


def test_shaping_step_by_step():
    (one, v), (two, w) = trajectories()
    potential = drawn(2, N, S + 1, seed=5)
    shaped = [
        (r + p[:, 1:] - p[:, :-1], x - p)
        for r, x, p in zip((one, two), (v, w), potential, strict=True)
    ]
    found = RegretPreferenceLoss()(*given_as(*shaped[0]), *given_as(*shaped[1]), LABEL)
    close(found, RegretPreferenceLoss()(*given_as(one, v), *given_as(two, w), LABEL))
    partial = PartialReturnPreferenceLoss()
    before = partial(one.sum(1), two.sum(1), LABEL)
    after = partial(shaped[0][0].sum(1), shaped[1][0].sum(1), LABEL)
    assert abs(float(before - after)) > 0.1


@pytest.mark.parametrize("scale", [1.0, 1e7])
def test_equal_values_leave_partial_returns(scale):
    one, two, start, end = drawn(4, N).float()
    start, end = scale * start, scale * end
    found = each(RegretPreferenceLoss, one, start, end, two, start, end, LABEL.float())
    # To the last bit: what is equal is gone before anything is rounded away.
    assert torch.equal(found, each(PartialReturnPreferenceLoss, one, two, LABEL.float()))


def test_of_deterministic_transitions_regret_is_minus_the_advantages():
    (one, v), (two, w) = trajectories()
    advantages = [r + x[:, 1:] - x[:, :-1] for r, x in ((one, v), (two, w))]
    for temperature in (1.0, 0.3):
        loss = RegretPreferenceLoss(temperature)
        expected = loss(*given_as(one, v), *given_as(two, w), LABEL)
        close(loss.forward_advantage(*advantages, LABEL), expected)
    # The optimal policy has no regret, another has some.
    optimal, other = torch.zeros(1, S, dtype=F64), -torch.ones(1, S, dtype=F64)
    y = torch.ones(1, dtype=F64)
    close(
        RegretPreferenceLoss().forward_advantage(optimal, other, y),
        torch.tensor(math.log1p(math.exp(-S)), dtype=F64),
    )


def test_cpl_is_the_regret_model_of_the_policys_own_advantage():
    one, two = drawn(2, N, S)
    cpl = CPLLoss(0.3, bias=1.0)
    found = RegretPreferenceLoss().forward_advantage(0.3 * one, 0.3 * two, LABEL)
    close(found, cpl(one, two, 1 - LABEL))
    # alpha is a temperature: what counts is alpha/T.
    close(RegretPreferenceLoss(1 / 0.3).forward_advantage(one, two, LABEL), found)


@pytest.mark.parametrize("lost", [0.0, NAN, INF])
def test_padded_segments(lost):
    one, two = drawn(N, 3), drawn(N, 5, seed=1)
    loss = RegretPreferenceLoss(0.7)
    expected = loss.forward_advantage(one, two, LABEL)
    padded = torch.cat((one, torch.full((N, 2), lost, dtype=F64)), 1).requires_grad_()
    mask = torch.arange(5).expand(N, 5) < 3
    found = loss.forward_advantage(padded, two, LABEL, mask)
    close(found, expected)
    (g,) = torch.autograd.grad(found, padded)
    assert (g[~mask] == 0).all()
    assert (g[mask] != 0).all()
    everything = torch.ones(N, 5)
    close(loss.forward_advantage(padded, two, LABEL, mask.int(), everything), expected)
    # Second segments are padded as well.
    turned = loss.forward_advantage(two, padded, 1 - LABEL, None, mask)
    close(turned, expected)


def test_weights_and_reductions_of_advantages():
    one, two = drawn(2, N, S)
    loss = RegretPreferenceLoss(0.7)
    zeros = [torch.zeros(N, dtype=F64)] * 2
    inputs = one.sum(1), *zeros, two.sum(1), *zeros, LABEL
    values = each(RegretPreferenceLoss, *inputs, temperature=0.7)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 1.0], dtype=F64)
    lost = one.masked_fill((weight == 0)[:, None], INF).requires_grad_()
    label = LABEL.masked_fill(weight == 0, NAN)
    found = loss.forward_advantage(lost, two, label, weight=weight)
    close(found, (weight * values).sum() / weight.sum())
    (g,) = torch.autograd.grad(found, lost)
    assert (g[weight == 0] == 0).all()
    assert g.isfinite().all()
    close(loss.forward_advantage(one, two, LABEL, normalizer=5.0), values.sum() / 5)
    loss.reduction = "none"
    close(loss.forward_advantage(one, two, LABEL), values)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("size", [1e-6, 0.3, 40.0, 89.0, 745.0, 1e4])
@pytest.mark.parametrize("label", [0.0, 0.25, 1.0])
def test_digits_and_extremes(dtype, size, label):
    tolerance = 1e-6 if dtype == F32 else 1e-14
    least = torch.finfo(dtype).smallest_normal
    for z in (size, -size):
        x, zero = torch.tensor([z], dtype=dtype), torch.zeros(1, dtype=dtype)
        y = torch.tensor([label], dtype=dtype)
        with mpmath.workdps(60):
            exact = mpmath.mpf(float(x))
            wins, loses = mpmath.log1p(mpmath.exp(-exact)), mpmath.log1p(mpmath.exp(exact))
            value = float(label * wins + (1 - label) * loses)
            slope = float(1 / (1 + mpmath.exp(-exact)) - label)
            if label == 1.0:
                slope = -float(1 / (1 + mpmath.exp(exact)))
        for loss, rest in (
            (PartialReturnPreferenceLoss(), (zero,)),
            (RegretPreferenceLoss(), (zero,) * 5),
        ):
            found = loss(x, *rest, y)
            assert float(found) == pytest.approx(value, rel=tolerance, abs=least)
            g, *_ = gradients(lambda *s, loss=loss, y=y: loss(*s, y), x, *rest)
            # Where the label lies between, the two sides cancel at its log-odds.
            between = 0.0 < label < 1.0
            slack = tolerance if between else least
            assert float(g) == pytest.approx(slope, rel=tolerance, abs=slack)


def test_labels_are_constants_and_halves_are_computed_in_float32():
    one, two = drawn(2, N)
    leaf = LABEL.clone().requires_grad_()
    assert not PartialReturnPreferenceLoss()(one, two, leaf).requires_grad
    far = torch.tensor([6e4]).half(), torch.tensor([-6e4]).half()
    half = torch.tensor([0.5]).half()
    found = PartialReturnPreferenceLoss()(*far, half)
    assert found.dtype == F32
    close(found, torch.tensor(float(far[0]) * 1.0), rtol=1e-6)
    # 2049 ones add up to 2048 in float16.
    ones, nothing = torch.ones(1, 2049).half(), torch.zeros(1, 1).half()
    found = RegretPreferenceLoss(1e3).forward_advantage(ones, nothing, torch.zeros(1).half())
    assert found.dtype == F32
    close(found, torch.tensor(math.log1p(math.exp(2.049))), rtol=1e-6)


def test_the_bound_and_its_minimiser():
    # sigmoid(z) = label, where the loss is the label's entropy.
    for label, temperature in ((0.2, 1.0), (0.7, 3.0)):
        y = torch.tensor([label], dtype=F64)
        best = temperature * torch.tensor([math.log(label / (1 - label))], dtype=F64)
        loss, zero = PartialReturnPreferenceLoss(temperature), torch.zeros(1, dtype=F64)
        entropy = -label * math.log(label) - (1 - label) * math.log(1 - label)
        close(loss(best, zero, y), torch.tensor(entropy, dtype=F64))
        close(gradients(lambda x, f=loss, y=y, o=zero: f(x, o, y), best)[0], zero, atol=1e-15)


@pytest.mark.parametrize(("loss", "inputs"), [(PartialReturnPreferenceLoss, 2),
                                              (RegretPreferenceLoss, 6)])  # fmt: skip
def test_the_steepest_slope_is_that_of_a_sure_mistake(loss, inputs):
    for temperature in (0.3, 3.0):
        far = [torch.tensor([-1e4], dtype=F64), *[torch.zeros(1, dtype=F64)] * (inputs - 1)]
        y = torch.ones(1, dtype=F64)
        module = loss(temperature)
        found = gradients(lambda *x, f=module, y=y: f(*x, y), *far)
        bound = module.properties().lipschitz
        close(torch.cat(found).norm(), torch.tensor(bound, dtype=F64), rtol=1e-12)


A = torch.zeros(4, 3)
Y = torch.full((4,), 0.5)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (([1.0], A, Y), TypeError, "advantages_1: expected a tensor, got list"),
        ((A, A.long(), Y), TypeError, r"advantages_2: expected floating point, got torch\.int64"),
        ((A[0], A, Y), ValueError, r"advantages_1: expected shape \(N, S\), got \(3,\)"),
        ((A, A[:2], Y), ValueError, "advantages_2: expected 4 rows, got 2"),
        ((A, A.to("meta"), Y), ValueError, "advantages_2: expected device cpu, got meta"),
        ((A, A, Y, A[0]), ValueError, r"mask_1: expected shape \(4, 3\), got \(3,\)"),
        ((A, A, Y, None, A + 0.5), ValueError, "mask_2: expected bool or .* got 0.5"),
        ((A, A, Y[:1]), ValueError, r"label: expected the shape of .*\(4,\), got \(1,\)"),
        ((A, A, Y + 1), ValueError, r"label: expected probabilities in \[0, 1\], got 1.5"),
        ((A, A, 1.0), TypeError, "label: expected a tensor, got float"),
        ((A, A, Y.long()), TypeError, r"label: expected floating point, got torch\.int64"),
    ],
)
def test_what_advantages_refuse(inputs, error, message):
    with pytest.raises(error, match=f"^{message}"):
        RegretPreferenceLoss().forward_advantage(*inputs)
    with pytest.raises(ValueError, match=r"^weight: .*\(4,\).*\(4, 1\)"):
        RegretPreferenceLoss().forward_advantage(A, A, Y, weight=torch.ones(4, 1))


def test_advantages_compile_as_one_graph(fresh_compiler):
    one, two = drawn(2, N, S)
    mask = torch.ones(N, S, dtype=torch.bool)
    loss = RegretPreferenceLoss()
    compiled = torch.compile(loss.forward_advantage, fullgraph=True, backend="aot_eager")
    close(compiled(one, two, LABEL, mask), loss.forward_advantage(one, two, LABEL))
