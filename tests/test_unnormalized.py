"""Noise-contrastive estimation and the moving normaliser: formulas, optima, memory, extremes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from lossary import CompositionalNLLLoss, NCELoss

F64 = torch.float64
seeds = st.integers(0, 10**6)


def close(a, b, rtol=1e-10, atol=1e-12):
    a, b = (torch.as_tensor(x, dtype=F64) for x in (a, b))
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


# NCE.


@given(seeds, st.sampled_from([0.3, 1.0, 7.0, None]), st.booleans())
def test_nce_is_what_the_formula_says(seed, nu, learnt):
    data, noise = draw(2, 5, seed=seed), draw(2, 3, seed=seed + 1)
    loss = NCELoss(nu, learnt, reduction="none").double()
    log_z = 0.0
    if learnt:
        log_z = 0.4
        loss.log_z.data.fill_(log_z)
    ratio = 3 / 5 if nu is None else nu
    logit = [x[0] - log_z - x[1] - math.log(ratio) for x in (data, noise)]
    from_noise = sum(math.log1p(math.exp(g)) for g in logit[1].tolist()) / 3
    want = [math.log1p(math.exp(-g)) + ratio * from_noise for g in logit[0].tolist()]
    close(loss(*data, *noise).detach(), torch.tensor(want, dtype=F64))


def test_nce_of_equal_densities():
    x = draw(4)
    close(NCELoss()(x, x, x[:2], x[:2]), 2.0 * math.log(2.0))


@pytest.mark.parametrize("nu", [0.5, 1.0, 4.0])
def test_the_true_density_is_stationary_with_its_normaliser(nu):
    # Data N(0.5, 1), noise N(0, 2); log p~ = -(x - a)^2/(2 b^2), b = 1, and log Z = log(2 pi)/2.
    true, noise = norm(0.5, 1.0), norm(0.0, 2.0)
    grid = torch.linspace(-20.0, 20.0, 40001, dtype=F64)

    def step(mean, width, log_z):
        log_p = -((grid - mean) ** 2) / (2 * width**2)
        log_q = torch.as_tensor(noise.logpdf(grid), dtype=F64)
        g = log_p - log_z - log_q - math.log(nu)
        spacing = float(grid[1] - grid[0])
        p, q = (torch.as_tensor(d.pdf(grid), dtype=F64) * spacing for d in (true, noise))
        softplus = torch.nn.functional.softplus
        return (p * softplus(-g)).sum() + nu * (q * softplus(g)).sum()

    at = [torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.5, 1.0)]
    log_z = torch.tensor(0.5 * math.log(2 * math.pi), dtype=F64, requires_grad=True)
    for g in torch.autograd.grad(step(*at, log_z), (*at, log_z)):
        close(g, 0.0, atol=1e-8)
    off = torch.tensor(0.3, dtype=F64, requires_grad=True)
    (g,) = torch.autograd.grad(step(*at, off), off)
    assert abs(float(g)) > 1e-3
    # And the loss is that objective, as a mean over samples: its gradient in log Z at these points.
    x, y = draw(6, seed=1) + 0.5, 2.0 * draw(9, seed=2)
    loss = NCELoss(nu, learn_log_z=True).double()
    loss.log_z.data.fill_(0.3)

    def log_p(z):
        return -((z - 0.5) ** 2) / 2

    def log_q(z):
        return torch.as_tensor(noise.logpdf(z), dtype=F64)

    (got,) = torch.autograd.grad(loss(log_p(x), log_q(x), log_p(y), log_q(y)), loss.log_z)
    g = [log_p(z) - 0.3 - log_q(z) - math.log(nu) for z in (x, y)]
    close(got, torch.sigmoid(-g[0]).mean() - nu * torch.sigmoid(g[1]).mean())


def test_noise_far_from_the_data_has_no_gradient_left():
    # The card's case: distance 16, the model half way between.
    def slope(mean):
        def of(x, density, sign):
            g = norm(mean, 1).logpdf(x) - norm(0, 1).logpdf(x)
            return density.pdf(x) * sign / (1 + math.exp(sign * g)) * (x - mean)

        parts = [
            quad(of, *limits, args=(density, sign), epsabs=1e-14, limit=200)[0]
            for density, sign, limits in ((norm(16, 1), 1, (4, 28)), (norm(0, 1), -1, (-12, 12)))
        ]
        return -sum(parts)

    assert abs(slope(8.0)) < 1e-3  # of the likelihood it is 8
    x = draw(4000, seed=3) + 16.0
    y = draw(4000, seed=4)
    mean = torch.tensor(8.0, dtype=F64, requires_grad=True)

    def log_normal(z, m):
        return -0.5 * (z - m) ** 2

    value = NCELoss()(
        log_normal(x, mean), log_normal(x, 0.0), log_normal(y, mean), log_normal(y, 0.0)
    )
    (g,) = torch.autograd.grad(value, mean)
    assert abs(float(g)) < 1e-2


def test_log_z_is_a_parameter_where_it_is_learnt():
    assert [n for n, _ in NCELoss(learn_log_z=True).named_parameters()] == ["log_z"]
    assert not list(NCELoss().parameters())


def test_weights_of_the_data_leave_the_noise_alone():
    data, noise = draw(2, 5), draw(2, 3, seed=1)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0], dtype=F64)
    values = NCELoss(reduction="none")(*data, *noise)
    close(NCELoss()(*data, *noise, weight=weight), (weight * values).sum() / 4.0)


# The moving normaliser.


def estimate(noise):
    return (noise[0] - noise[1]).logsumexp(0) - math.log(noise.shape[1])


@given(seeds, st.sampled_from([0.1, 0.6, 1.0]))
def test_five_steps_of_the_moving_normaliser(seed, gamma):
    loss = CompositionalNLLLoss(gamma, reduction="none").double()
    u = None
    for step in range(5):
        data = draw(4, seed=seed + step).requires_grad_()
        noise = draw(2, 3, seed=seed + 10 + step)
        log_p = noise[0].clone().requires_grad_()
        g = estimate(noise).exp()
        u = g if u is None else (1 - gamma) * u + gamma * g
        value = loss(data, log_p, noise[1])
        close(value.detach(), u.log() - data.detach())
        close(loss.log_u, u.log())
        along = draw(4, seed=seed + 20)
        of_data, of_noise = torch.autograd.grad((along * value).sum(), (data, log_p))
        close(of_data, -along)
        close(of_noise, along.sum() * (noise[0] - noise[1]).exp() / (3 * u))


@given(seeds)
def test_without_memory_it_is_the_likelihood_of_the_batch(seed):
    data, noise = draw(4, seed=seed), draw(2, 3, seed=seed + 1)
    parameter = torch.tensor(0.3, dtype=F64, requires_grad=True)
    plain = (estimate(torch.stack((noise[0] * parameter, noise[1]))) - data * parameter).mean()
    value = CompositionalNLLLoss(1.0)(data * parameter, noise[0] * parameter, noise[1])
    close(value, plain)
    close(*(torch.autograd.grad(v, parameter)[0] for v in (value, plain)))


def test_a_constant_in_the_model_changes_nothing_without_memory():
    data, noise = draw(4), draw(2, 3, seed=1)
    for gamma, same in ((1.0, True), (0.5, False)):
        loss = CompositionalNLLLoss(gamma)
        loss(data + 3.0, noise[0] + 3.0, noise[1])  # of another constant before
        values = [loss(data + c, noise[0] + c, noise[1], update=False) for c in (0.0, 5.0)]
        assert (abs(float(values[0] - values[1])) < 1e-6) is same


def test_the_logarithm_of_the_mean_is_above_the_mean_of_logarithms():
    # Jensen's inequality, for the estimates of 2000 steps: E g is Z = 2, and E log g below log 2.
    x = draw(2000, 4, seed=5)
    log_q = -0.5 * x**2 - 0.5 * math.log(2 * math.pi)
    log_p = -0.5 * (x / 0.5) ** 2 + math.log(2.0) - 0.5 * math.log(2 * math.pi * 0.25)
    loss = CompositionalNLLLoss(1.0)
    logs = torch.stack(
        [loss(torch.zeros(1).double(), p, q) for p, q in zip(log_p, log_q, strict=True)]
    )
    close(logs.exp().mean(), 2.0, rtol=3e-2)
    assert float(logs.mean()) < math.log(2.0) - 0.05
    memory = CompositionalNLLLoss(0.01).double()
    for p, q in zip(log_p, log_q, strict=True):
        memory(torch.zeros(1).double(), p, q)
    close(memory.log_u, math.log(2.0), atol=0.1, rtol=0)


def test_what_is_remembered_and_when():
    data, noise = draw(4), draw(2, 3, seed=1)
    loss = CompositionalNLLLoss(0.5)
    assert float(loss.log_u) == -math.inf
    first = loss(data, *noise, update=False)
    assert float(loss.log_u) == -math.inf
    close(loss.eval()(data, *noise), first)
    with torch.no_grad():
        loss.train()(data, *noise)
    assert float(loss.log_u) == -math.inf
    close(loss(data, *noise), first)
    close(loss.log_u, estimate(noise), rtol=1e-6)
    other = CompositionalNLLLoss(0.5)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.log_u, loss.log_u)
    loss.reset()
    assert float(loss.log_u) == -math.inf


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_densities_of_every_size_are_finite(dtype):
    for size in (1e-30, 1.0, 500.0, 1e4):
        loss = CompositionalNLLLoss(0.3)
        for sign in (1.0, -1.0, 1.0):
            log_p = torch.tensor([-math.inf, sign * size, 0.0], dtype=dtype, requires_grad=True)
            value = loss(torch.zeros(2, dtype=dtype), log_p, torch.zeros(3, dtype=dtype))
            (g,) = torch.autograd.grad(value, log_p)
            assert bool(value.isfinite().all())
            assert bool(g.isfinite().all())
            assert float(g[0]) == 0.0


def test_a_model_without_mass_anywhere():
    log_p = torch.full((3,), -math.inf, requires_grad=True)
    value = CompositionalNLLLoss(0.3)(torch.zeros(2), log_p, torch.zeros(3))
    assert float(value.detach()) == -math.inf
    (g,) = torch.autograd.grad(value, log_p)
    assert bool((g == 0).all())
