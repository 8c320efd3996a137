"""The global contrastive losses against their definition, step by step, and what they estimate."""

import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import GlobalContrastiveLoss, TwoWayGlobalContrastiveLoss, _state

F64 = torch.float64
LOSSES = (GlobalContrastiveLoss, TwoWayGlobalContrastiveLoss)
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda x: x.__name__)
seeds = st.integers(0, 10**6)


def close(a, b, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=rtol, atol=atol
    )


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def double(loss, n=8, *arguments, **options):
    return loss(n, *arguments, state_dtype=F64, **options)


def unit(z):
    return z / z.norm(dim=1, keepdim=True)


class Plain:
    """The definition, in the linear domain, one number at a time."""

    def __init__(self, two_way, n, tau, gamma, low, high, rho, eta, beta, clip, learns):
        self.two_way, self.gamma, self.rho, self.clip = two_way, gamma, rho, clip
        self.low, self.high, self.eta, self.beta, self.learns = low, high, eta, beta, learns
        sides = 2 if two_way else 1
        self.u = [[None] * n for _ in range(sides)]
        self.tau = [[tau] * n for _ in range(sides)]
        self.m = [[0.0] * n for _ in range(sides)]

    def similarities(self, z1, z2, i):
        """Per direction: the side, those to negatives, and what the positive takes away."""
        others = [j for j in range(len(z1)) if j != i]
        if self.two_way:
            own = z1[i] @ z2[i]
            yield 0, [z1[i] @ z2[j] - own for j in others], 0.0
            yield 1, [z2[i] @ z1[j] - own for j in others], 0.0
        else:
            own = z1[i] @ z2[i]
            for z in (z1, z2):
                yield 0, [z[i] @ other[j] for other in (z1, z2) for j in others], own

    def step(self, z1, z2, index):
        z1, z2 = unit(z1), unit(z2)
        values, later = [], []
        for i, k in enumerate(index.tolist()):
            value, seen = 0.0, {}
            for side, s, own in self.similarities(z1, z2, i):
                tau, u = self.tau[side][k], self.u[side][k]
                e = [math.exp(float(x.detach()) / tau) for x in s]
                g = sum(e) / len(e)
                new = g if u is None else (1 - self.gamma) * u + self.gamma * g
                w = [x / new / len(e) for x in e]
                value = value + sum(a * b for a, b in zip(w, s, strict=True)) - own
                inner = sum(a * float(b.detach()) / tau for a, b in zip(w, s, strict=True))
                seen.setdefault(side, []).append((new, math.log(new) + self.rho - inner))
            values.append(value / 2 if self.two_way else value)
            later.append((k, seen))
        for k, seen in later:
            for side, found in seen.items():
                self.u[side][k] = sum(x for x, _ in found) / len(found)
                slope = sum(x for _, x in found) / len(found)
                slope = slope if self.clip is None else max(-self.clip, min(self.clip, slope))
                if self.learns:
                    self.m[side][k] = (1 - self.beta) * self.m[side][k] + self.beta * slope
                    tau = self.tau[side][k] - self.eta * self.m[side][k]
                    self.tau[side][k] = max(self.low, min(self.high, tau))
        return torch.stack(values)


@given(
    seeds,
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.1, 0.7, 1.0]),
    st.sampled_from([None, 0.05]),
)
def test_several_steps_are_what_the_definition_says(seed, two_way, learns, gamma, clip):
    tau, low, high, rho, eta, beta = 0.3, 0.2, 0.5, 0.4, 0.05, 0.7
    plain = Plain(two_way, 8, tau, gamma, low, high, rho, eta, beta, clip, learns)
    loss = LOSSES[two_way](
        8, tau, gamma, learns, low, high, rho, eta=eta, beta=beta, grad_clip=clip,
        state_dtype=F64, reduction="none",
    )  # fmt: skip
    chosen = torch.Generator().manual_seed(seed)
    for step in range(5):
        # Some rows are new, some are not, until all have been seen.
        index = torch.randperm(8, generator=chosen)[:4]
        z = draw(2, 4, 3, seed=seed + step).requires_grad_()
        got, want = loss(*z, index), plain.step(*z, index)
        close(got, want)
        ours, theirs = (torch.autograd.grad(x.sum(), z)[0] for x in (got, want))
        close(ours, theirs)
    for side in range(1 + two_way):
        suffix = str(side + 1) if two_way else ""
        known = [-math.inf if u is None else math.log(u) for u in plain.u[side]]
        close(loss.state_dict()[f"log_u{suffix}"], known)
        if learns:
            close(loss.state_dict()[f"tau{suffix}"], plain.tau[side])
            close(loss.state_dict()[f"tau_momentum{suffix}"], plain.m[side])
        else:
            assert f"tau{suffix}" not in loss.state_dict()


# What the gradient is.


def exact(loss, z1, z2, tau):
    """What is minimised with this batch for the dataset."""
    z1, z2 = unit(z1), unit(z2)
    off = ~torch.eye(len(z1), dtype=torch.bool)
    own = (z1 * z2).sum(1, keepdim=True)

    def part(h):
        return h.masked_fill(~torch.cat([off] * (h.shape[1] // len(h)), 1), -math.inf)

    if loss is TwoWayGlobalContrastiveLoss:
        parts = [part(z1 @ z2.T - own), part(z2 @ z1.T - own)]
        n, share = len(z1) - 1, 0.5
    else:
        both = torch.cat((z1, z2)).T
        parts = [part(z1 @ both - own), part(z2 @ both - own)]
        n, share = 2 * (len(z1) - 1), 1.0
    return share * sum(tau * ((h / tau).logsumexp(1) - math.log(n)) for h in parts)


@every_loss
@given(seeds, st.sampled_from([0.02, 0.1, 1.0]))
def test_without_memory_the_gradient_is_exact(loss, seed, tau):
    z = draw(2, 5, 3, seed=seed).requires_grad_()
    module = double(loss, 8, tau, 1.0)
    index = torch.arange(5)
    for _ in range(2):  # unseen, and seen with gamma = 1
        (got,) = torch.autograd.grad(module(*z, index), z)
        want = exact(loss, *z, tau)
        close(module.objective(*z, index), want.detach())
        (want,) = torch.autograd.grad(want.mean(), z)
        close(got, want, atol=1e-11)


@every_loss
def test_the_value_is_a_surrogate(loss):
    z = draw(2, 5, 3)
    z.requires_grad_()
    module = double(loss, 8, 0.5).eval()
    index = torch.arange(5)
    value = module(*z, index)
    (gradient,) = torch.autograd.grad(value, z)
    direction = draw(2, 5, 3, seed=1)
    h = 1e-6
    ends = [z.detach() + s * h * direction for s in (1, -1)]

    def slope(f):
        return float((f(*ends[0]) - f(*ends[1])) / (2 * h))

    said = float((gradient * direction).sum())
    close(slope(lambda *x: module.objective(*x, index).mean()), said, rtol=1e-5)
    assert abs(slope(lambda *x: module(*x, index)) - said) > 0.01


def test_it_is_two_tau_times_the_decoupled_contrastive_loss():
    z, tau = draw(2, 5, 3).requires_grad_(), 0.2
    e = torch.cat([unit(x) for x in z])
    same = torch.arange(10).remainder(5)
    rivals = (e @ e.T / tau).masked_fill(same.unsqueeze(1) == same, -math.inf)
    positive = (unit(z[0]) * unit(z[1])).sum(1).repeat(2) / tau
    decoupled = (rivals.logsumexp(1) - positive).view(2, 5).sum(0) / 2
    (want,) = torch.autograd.grad(2 * tau * decoupled.mean(), z)
    (got,) = torch.autograd.grad(double(GlobalContrastiveLoss, 8, tau, 1.0)(*z, torch.arange(5)), z)
    close(got, want)


def penalties(module, s):
    """The gradient in the similarities between z1 and z2, given as they are."""
    s = s.clone().requires_grad_()
    value = module(s, torch.eye(len(s), dtype=F64), torch.arange(len(s)))
    return torch.autograd.grad(value, s)[0]


@given(seeds, st.sampled_from([0.1, 1.0]))
def test_relative_penalties_are_softmaxes_over_the_negatives(seed, tau):
    s = draw(4, 4, seed=seed)
    options = {"normalize": False, "reduction": "sum"}
    g = penalties(double(TwoWayGlobalContrastiveLoss, 4, tau, 1.0, **options), s)
    off = s.masked_fill(torch.eye(4, dtype=torch.bool), -math.inf) / tau
    rows, columns = torch.softmax(off, 1), torch.softmax(off, 0)
    close(g.diagonal(), -torch.ones(4))
    close(g - torch.diag(g.diagonal()), (rows + columns) / 2)
    # In the direction of the rows alone, with nothing from the columns.
    close(rows.sum(1), torch.ones(4))


@pytest.mark.parametrize(("tau", "kind"), [(1e-3, "hardest"), (1e4, "uniform")])
def test_limits_of_the_temperature(tau, kind):
    s = draw(5, 5)
    options = {"normalize": False, "reduction": "sum"}
    g = penalties(double(TwoWayGlobalContrastiveLoss, 5, tau, 1.0, **options), s)
    off = ~torch.eye(5, dtype=torch.bool)
    if kind == "uniform":
        want = torch.full((5, 5), 1 / 4, dtype=F64)
    else:
        rivals = s.masked_fill(~off, -math.inf)
        want = (rivals == rivals.amax(1, keepdim=True)).double()
        want = (want + (rivals == rivals.amax(0, keepdim=True)).double()) / 2
    close(g[off], want[off], atol=1e-3)


# The moving average.


@every_loss
@pytest.mark.parametrize("gamma", [0.2, 0.7])
def test_the_estimate_converges_at_its_rate(loss, gamma):
    module = double(loss, 8, 0.5, gamma)
    index = torch.arange(5)
    module(*draw(2, 5, 3, seed=1).requires_grad_(), index)
    z = draw(2, 5, 3, seed=2).requires_grad_()
    fresh = double(loss, 8, 0.5)
    fresh(*z, index)
    for name in [n for n in module.state_dict() if n.startswith("log_u")]:
        goal = fresh.state_dict()[name][:5].exp()
        before = module.state_dict()[name][:5].exp() - goal
        assert bool((before.abs() > 1e-3).all())
        for visit in range(1, 6):
            copy = double(loss, 8, 0.5, gamma)
            copy.load_state_dict(module.state_dict())
            for _ in range(visit):
                copy(*z, index)
            close(
                copy.state_dict()[name][:5].exp() - goal, before * (1 - gamma) ** visit, rtol=1e-7
            )


@every_loss
def test_the_first_visit_is_a_sample_s_own_affair(loss):
    module = double(loss, 8, 0.5, 0.1)
    z = draw(2, 4, 3).requires_grad_()
    module(*draw(2, 4, 3, seed=1).requires_grad_(), torch.tensor([0, 1, 2, 3]))
    known = {k: v.clone() for k, v in module.state_dict().items() if k.startswith("log_u")}
    module(*z, torch.tensor([0, 1, 6, 7]))
    fresh = double(loss, 8, 0.5, 0.1)
    fresh(*z, torch.tensor([0, 1, 6, 7]))
    for name, before in known.items():
        now, alone = module.state_dict()[name], fresh.state_dict()[name]
        close(now[6:], alone[6:])
        close(now[:2].exp(), 0.9 * before[:2].exp() + 0.1 * alone[:2].exp())
        close(now[2:4], before[2:4])
        assert now[4:6].tolist() == [-math.inf] * 2


@every_loss
def test_occurrences_of_a_sample_average_the_exponentials(loss):
    module = double(loss, 8, 0.1)
    z = draw(2, 4, 3).requires_grad_()
    module(*z, torch.tensor([5, 5, 5, 1]))
    apart = double(loss, 8, 0.1)
    apart(*z, torch.arange(4))
    for name in [n for n in module.state_dict() if n.startswith("log_u")]:
        together, alone = module.state_dict()[name], apart.state_dict()[name]
        close(together[5].exp(), alone[:3].exp().mean())
        close(together[1], alone[3])


@every_loss
def test_gamma_follows_the_cosine(loss):
    module = double(loss, 8, 0.5, 0.2, gamma_schedule="cosine", gamma_decay_epochs=4)
    like = torch.zeros((), dtype=F64)
    for epoch, share in ((0, 1.0), (1, (1 + math.sqrt(0.5)) / 2), (2, 0.5), (4, 0.0), (9, 0.0)):
        module.set_epoch(epoch)
        close(module._gamma(like), 0.2 + 0.8 * share)
    constant = double(loss, 8, 0.5, 0.2)
    constant.set_epoch(3)
    close(constant._gamma(like), 0.2)
    assert "epoch" not in constant.state_dict()
    # The epoch is saved: a run that is resumed in the middle goes on at the same gamma.
    module.set_epoch(3)
    other = double(loss, 8, 0.5, 0.2, gamma_schedule="cosine", gamma_decay_epochs=4)
    other.load_state_dict(module.state_dict())
    assert other._gamma(like) == module._gamma(like) != 0.2


@every_loss
def test_training_goes_on_exactly_from_a_file(loss, tmp_path):
    def module():
        return loss(
            8, 0.5, 0.3, True, 0.01, 1.0, 0.2, gamma_schedule="cosine", gamma_decay_epochs=3
        )

    def batch(step):
        return *draw(2, 4, 3, seed=step).float().requires_grad_(), (torch.arange(4) + step) % 8

    one = module()
    for step in range(6):
        one.set_epoch(step // 2)
        if step == 3:
            torch.save(one.state_dict(), tmp_path / "loss.pt")
            other = module()
            other.load_state_dict(torch.load(tmp_path / "loss.pt"))
        if step >= 3:
            other.set_epoch(step // 2)
            assert torch.equal(other(*batch(step)), one(*batch(step)))
        else:
            one(*batch(step))
    for name, x in one.state_dict().items():
        assert torch.equal(x, other.state_dict()[name]), name


@every_loss
def test_reset_forgets_some_or_all(loss):
    module = double(loss, 8, individualized=True)
    start = {k: v.clone() for k, v in module.state_dict().items()}
    module(*draw(2, 8, 3).requires_grad_(), torch.arange(8))
    trained = {k: v.clone() for k, v in module.state_dict().items()}
    module.reset(torch.tensor([2, 5]))
    for name, x in module.state_dict().items():
        assert torch.equal(x[[2, 5]], start[name][[2, 5]])
        assert torch.equal(x[[0, 1, 3, 4, 6, 7]], trained[name][[0, 1, 3, 4, 6, 7]])
    module.reset()
    assert all(torch.equal(x, start[name]) for name, x in module.state_dict().items())
    with pytest.raises(ValueError, match=r"index: expected dataset indices in \[0, 8\), got 8"):
        module.reset(torch.tensor([8]))


@every_loss
def test_evaluation_computes_the_same_and_remembers_nothing(loss):
    module = double(loss, 8, 0.3, individualized=True, tau_min=0.01, tau_max=1.0)
    module(*draw(2, 4, 3).requires_grad_(), torch.arange(4))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    z, index = draw(2, 4, 3, seed=1).requires_grad_(), torch.tensor([0, 1, 6, 7])
    values = [module.eval()(*z, index), module.train()(*z, index, update=False)]
    with torch.no_grad():
        values.append(module(*z, index))
    module.objective(*z, index)
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    values.append(module(*z, index))
    assert not all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    assert len({float(v.detach()) for v in values}) == 1


def test_two_modalities_may_be_indexed_apart():
    one, two = (double(TwoWayGlobalContrastiveLoss, 8, 0.3) for _ in range(2))
    z = draw(2, 4, 3).requires_grad_()
    index, index2 = torch.tensor([0, 1, 2, 3]), torch.tensor([7, 6, 5, 4])
    one(*z, index, index2)
    two(*z, index)
    assert torch.equal(one.log_u1, two.log_u1)
    assert torch.equal(one.log_u2.flip(0), two.log_u2)
    close(one.objective(*z, index, index2), two.objective(*z, index))


@every_loss
def test_who_shares_a_process_group_remembers_together(loss, monkeypatch):
    seen = []

    def gather_rows(*rows, group=None):
        seen.append(group)
        return rows

    monkeypatch.setattr(_state, "gather_rows", gather_rows)
    module = double(loss, 8, individualized=True)
    module.process_group = "two of three"
    module(*draw(2, 4, 3).requires_grad_(), torch.arange(4))
    assert set(seen) == {"two of three"}


# The temperatures.


def one_anchor(loss, h, tau):
    """The distribution over the negatives of anchor 0 that similarities h give."""
    s = torch.zeros(len(h) + 1, len(h) + 1, dtype=F64)
    s[0, 1:] = h
    return s, torch.softmax(h / tau, 0)


def divergence(p):
    return float((p * (p * len(p)).log()).sum())


@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=6),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.sampled_from([0.0, 0.2, 1.0]),
)
def test_the_slope_is_rho_less_the_divergence(h, tau, rho):
    h = torch.tensor(h, dtype=F64)
    s, p = one_anchor(TwoWayGlobalContrastiveLoss, h, tau)
    module = double(
        TwoWayGlobalContrastiveLoss, len(s), tau, 1.0, True, 1e-9, 1e9, rho,
        eta=1e-3, beta=1.0, normalize=False,
    )  # fmt: skip
    module(s.requires_grad_(), torch.eye(len(s), dtype=F64), torch.arange(len(s)))
    slope = rho - divergence(p)
    close(module.tau_momentum1[0], slope, atol=1e-9)
    close(module.tau1[0], tau - 1e-3 * slope, atol=1e-11)
    if abs(slope) > 1e-6:
        assert (float(module.tau1[0]) < tau) == (divergence(p) < rho)


def test_of_two_views_the_mean_slope_counts():
    z, tau = draw(2, 4, 3).requires_grad_(), 0.3
    module = double(GlobalContrastiveLoss, 4, tau, 1.0, True, beta=1.0)
    module(*z, torch.arange(4))
    e = torch.cat([unit(x) for x in z]).detach()
    same = torch.arange(8).remainder(4)
    found = []
    for i in range(8):
        p = torch.softmax((e @ e[i] / tau)[same != same[i]], 0)
        found.append(0.3 - divergence(p))
    found = torch.tensor(found, dtype=F64)
    close(module.tau_momentum, found.view(2, 4).mean(0))


@every_loss
def test_beyond_log_n_every_temperature_falls_to_the_bound(loss):
    n = 3 if loss is TwoWayGlobalContrastiveLoss else 6
    z, index = draw(2, 4, 3).requires_grad_(), torch.arange(4)
    module = double(loss, 4, 0.3, 1.0, True, 0.25, 0.7, math.log(n) + 1e-9)
    for _ in range(200):
        module(*z, index)
    for name in [x for x in module.state_dict() if x.startswith("tau") and "mom" not in x]:
        assert bool((module.state_dict()[name] == 0.25).all())
    # No divergence is below 0: with rho = 0 none falls.
    module = double(loss, 4, 0.3, 1.0, True, 0.25, 0.7, 0.0)
    for _ in range(20):
        module(*z, index)
    for name in [x for x in module.state_dict() if x.startswith("tau") and "mom" not in x]:
        assert bool((module.state_dict()[name] > 0.3).all())


@pytest.mark.parametrize("rho", [0.1, 0.4, 0.8])
def test_the_learnt_temperature_solves_the_dual_of_the_kl_ball(rho):
    h = torch.tensor([0.9, 0.3, -0.2, -0.8], dtype=F64)
    s, _ = one_anchor(TwoWayGlobalContrastiveLoss, h, 1.0)
    module = double(
        TwoWayGlobalContrastiveLoss, 5, 1.0, 1.0, True, 0.01, 50.0, rho,
        eta=0.2, beta=1.0, normalize=False,
    )  # fmt: skip
    s.requires_grad_()
    eye, index = torch.eye(5, dtype=F64), torch.arange(5)
    for _ in range(3000):
        module(s, eye, index)
    tau = float(module.tau1[0])
    assert 0.02 < tau < 20.0
    p = torch.softmax(h / tau, 0)
    close(divergence(p), rho, rtol=1e-6)
    dual = tau * (float((h / tau).logsumexp(0)) - math.log(4)) + tau * rho
    # The largest expectation within the ball, by brute force over tilted and other distributions.
    close(dual, float(p @ h), rtol=1e-6)
    tried = torch.distributions.Dirichlet(torch.full((4,), 0.7, dtype=F64))
    torch.manual_seed(0)
    q = tried.sample((20000,))
    inside = (q * (q * 4).log()).sum(1) <= rho
    best = float((q[inside] @ h).max())
    assert best <= dual + 1e-9
    assert best >= dual - 0.05


def test_frequent_neighbours_raise_the_temperature():
    # Sample 0 has one near negative among far ones, sample 1 has only far ones.
    s = torch.full((12, 12), -0.5, dtype=F64).fill_diagonal_(1.0)
    s[0, 1:4] = 0.9
    module = double(
        TwoWayGlobalContrastiveLoss, 12, 0.3, 0.9, True, 0.05, 2.0, 0.5, normalize=False
    )
    s.requires_grad_()
    for _ in range(100):
        module(s, torch.eye(12, dtype=F64), torch.arange(12))
    assert float(module.tau1[0]) > 0.3 > float(module.tau1[5])


# Digits.


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tau", [0.005, 0.05])
def test_float32_where_the_exponentials_overflow_it(loss, tau):
    z = draw(2, 6, 3)
    z = torch.stack((z[0], z[0] + 0.05 * z[1]))  # positives near, negatives anywhere
    results = []
    for dtype in (torch.float32, F64):
        x = z.to(dtype).requires_grad_()
        module = loss(6, tau, 0.5, True, 0.001, 1.0, reduction="none", state_dtype=dtype)
        index = torch.arange(6)
        module(*x.flip(1), index)
        value = module(*x, index)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert bool(gradient.isfinite().all())
        results.append([value.detach(), gradient, *module.state_dict().values()])
    for small, large in zip(*results, strict=True):
        assert bool(small.isfinite().all())
        close(small, large, rtol=1e-5 / tau, atol=1e-6 / tau)


def test_against_mpmath_far_beyond_the_range_of_exp():
    s = torch.tensor([[1.0, -0.9, -0.8], [0.7, -1.0, 0.95], [0.2, 0.3, -0.6]], dtype=F64)
    module = double(TwoWayGlobalContrastiveLoss, 3, 0.001, 0.5, normalize=False, reduction="none")
    index = torch.arange(3)
    eye = torch.eye(3, dtype=F64)
    with mpmath.workdps(60):
        u = [None] * 6
        for step in range(3):
            at = s * (1 + step)
            got = module(at.clone().requires_grad_(), eye, index)
            want = []
            for i in range(3):
                total = mpmath.mpf(0)
                for side in range(2):
                    m = at if side == 0 else at.T
                    own = mpmath.mpf(float(at[i, i]))
                    h = [mpmath.mpf(float(m[i, j])) - own for j in range(3) if j != i]
                    e = [mpmath.exp(x / mpmath.mpf(0.001)) for x in h]
                    g = sum(e) / 2
                    k = 2 * i + side
                    u[k] = g if u[k] is None else (u[k] + g) / 2
                    total += sum(a / u[k] * b for a, b in zip(e, h, strict=True)) / 2
                want.append(float(total / 2))
            close(got.detach(), want, rtol=1e-9)
        for i, side in itertools.product(range(3), range(2)):
            log_u = module.state_dict()[f"log_u{side + 1}"][i]
            close(log_u, float(mpmath.log(u[2 * i + side])))
