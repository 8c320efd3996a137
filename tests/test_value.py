"""The martingale loss: its two forms, its minimiser, irregular steps."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import MartingaleLoss

NAN = math.nan
F64 = torch.float64
N, K = 5, 4


def close(found, expected, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def each(*inputs, **options):
    return MartingaleLoss(reduction="none", **options)(*inputs)


def gradients(fn, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(fn(*leaves).sum(), leaves)


def trajectories(seed=0):
    """Values, rewards, terminal rewards, lengths of the steps."""
    g = torch.Generator().manual_seed(seed)
    values, rewards = torch.randn(2, N, K, dtype=F64, generator=g)
    dt = 0.1 + torch.rand(N, K, dtype=F64, generator=g)
    return values, rewards, torch.randn(N, dtype=F64, generator=g), dt


def martingale(values, rewards, terminal, dt, beta):
    """The process M, written down as it is defined."""
    out = []
    for i in range(K + 1):
        t = [dt[:, :j].sum(1) for j in range(K + 1)]
        end = values[:, i] if i < K else terminal
        m = (-beta * t[i]).exp() * end
        for j in range(i):
            m = m + (-beta * t[j]).exp() * rewards[:, j] * dt[:, j]
        out.append(m)
    return torch.stack(out, 1)


@pytest.mark.parametrize("beta", [0.0, 0.7, 3.0])
def test_martingale_loss_is_the_plain_formula(beta):
    values, rewards, terminal, dt = trajectories()

    def plain(values):
        m = martingale(values, rewards, terminal, dt, beta)
        return 0.5 * ((m[:, -1:] - m[:, :-1]).square() * dt).sum(1)

    close(each(values, rewards, terminal, dt, discount=beta), plain(values))
    loss = MartingaleLoss(beta)
    close(loss(values, rewards, terminal, dt), plain(values).mean())
    found = gradients(lambda v: loss(v, rewards, terminal, dt), values)
    close(found, gradients(lambda v: plain(v).mean(), values))


def test_it_is_gradient_monte_carlo():
    values, rewards, terminal, dt = trajectories()
    beta = 0.7
    start = dt.cumsum(1) - dt
    to_come = torch.zeros_like(values)
    for i, j in itertools.product(range(K), repeat=2):
        if j >= i:
            to_come[:, i] += (-beta * start[:, j]).exp() * rewards[:, j] * dt[:, j]
    to_come += ((-beta * dt.sum(1)).exp() * terminal)[:, None]
    # A regression on returns that are discounted to time 0.
    error = to_come - (-beta * start).exp() * values
    close(each(values, rewards, terminal, dt, discount=beta), 0.5 * (dt * error**2).sum(1))
    loss = MartingaleLoss(beta, reduction="sum")
    found = gradients(lambda v: loss(v, rewards, terminal, dt), values)
    close(found[0], -dt * (-beta * start).exp() * error)


def test_the_minimiser_is_the_conditional_expectation():
    # A random walk on three states, all paths with their probabilities, one value per step and
    # state.
    beta, steps = 0.5, torch.tensor([0.3, 1.1], dtype=F64)
    g = torch.Generator().manual_seed(0)
    move = torch.rand(3, 3, dtype=F64, generator=g).softmax(1)
    reward, last = torch.randn(2, 3, dtype=F64, generator=g)
    value = [None, None, last]
    for i in (1, 0):
        value[i] = reward * steps[i] + (-beta * steps[i]).exp() * move @ value[i + 1]
    paths = torch.tensor(list(itertools.product(range(3), repeat=3)))
    weight = move[paths[:, 0], paths[:, 1]] * move[paths[:, 1], paths[:, 2]]
    loss = MartingaleLoss(beta)

    def risk(table):
        values = table[torch.arange(2), paths[:, :2]]
        return loss(values, reward[paths[:, :2]], last[paths[:, 2]], steps, weight=weight)

    truth = torch.stack(value[:2])
    (slope,) = gradients(risk, truth)
    close(slope, torch.zeros_like(truth))
    assert risk(truth) > 0.01  # what is random remains
    for direction in torch.eye(6, dtype=F64).view(6, 2, 3):
        assert risk(truth + 0.01 * direction) > risk(truth) < risk(truth - 0.01 * direction)


@given(st.floats(0.01, 5.0), st.floats(0.0, 3.0))
def test_lengths_of_steps_may_be_a_number_or_of_all_or_of_each(h, beta):
    values, rewards, terminal, _ = trajectories()
    expected = each(values, rewards, terminal, h, discount=beta)
    for shape in ((K,), (N, K)):
        dt = torch.full(shape, h, dtype=F64)
        close(each(values, rewards, terminal, dt, discount=beta), expected)


def test_the_value_at_the_end_is_not_used():
    values, rewards, terminal, dt = trajectories()
    longer = torch.cat((values, torch.full((N, 1), NAN, dtype=F64)), 1)
    close(each(longer, rewards, terminal, dt), each(values, rewards, terminal, dt))
    loss = MartingaleLoss(0.3)
    (slope,) = gradients(lambda v: loss(v, rewards, terminal, dt), longer)
    assert (slope[:, -1] == 0).all()
    assert (slope[:, :-1] != 0).all()


def test_shorter_trajectories_are_filled_up_with_steps_of_0():
    values, rewards, terminal, dt = trajectories()
    expected = each(values[:, :2], rewards[:, :2], terminal, dt[:, :2], discount=0.7)
    dt[:, 2:] = 0
    close(each(values, rewards, terminal, dt, discount=0.7), expected)


def test_no_gradient_flows_to_what_was_observed():
    values, *others = trajectories()
    leaves = [x.clone().requires_grad_() for x in others]
    assert not MartingaleLoss(0.7)(values, *leaves).requires_grad


def test_as_many_steps_as_trajectories():
    # The lengths of steps are not those of trajectories, whatever their number.
    values, rewards, terminal, dt = (x[:K] for x in trajectories())
    steps = dt[0].clone()
    keep = torch.tensor([True, False, True, False])
    expected = MartingaleLoss(0.7)(values[keep], rewards[keep], terminal[keep], steps)
    lost = values.masked_fill(~keep[:, None], NAN)
    close(MartingaleLoss(0.7)(lost, rewards, terminal, steps, weight=keep), expected)


def test_absent_trajectories_may_have_any_steps():
    values, rewards, terminal, dt = trajectories()
    keep = torch.arange(N) != 2
    expected = MartingaleLoss()(values[keep], rewards[keep], terminal[keep], dt[keep])
    dt[2] = -1.0
    close(MartingaleLoss()(values, rewards, terminal, dt, weight=keep), expected)
    with pytest.raises(ValueError, match="dt: expected finite numbers >= 0, got -1"):
        MartingaleLoss()(values, rewards, terminal, dt)


def test_a_long_past_costs_no_digits():
    # In float32 M_K and M_1 are 1e8 and 1e8 + 8, where the rewards to come are 1.5.
    values, rewards = torch.tensor([[1e8, 1.0]]), torch.tensor([[1e8, 0.0]])
    found = gradients(lambda v: MartingaleLoss()(v, rewards, torch.tensor([1.5]), 1.0), values)
    assert found[0][0, 1] == -0.5
