"""Self-play: Nash policies by enumeration, self-rewarding, and regret."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from scipy import stats
from torch.func import hessian

from lossary import (
    CREAMLoss,
    DNOLoss,
    DPOLoss,
    INPOLoss,
    IPOLoss,
    NashMDLoss,
    NashMPLoss,
    RegretLoss,
    SCIRLoss,
    consistency_rate,
    mcts_label_smoothing,
    self_play_win_rate,
)
from test_preference import F32, F64, INF, NAN, N, close, each, gradients, logistic

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

sigmoid = torch.sigmoid
numbers = st.floats(-30, 30)
shares = st.floats(0, 1)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def uniform(*shape, seed=1):
    return torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def anchored(scale=3.0, seed=0):
    """Log-probabilities of a pair, of a policy, a reference and the policy of the round before."""
    return tuple(scale * draw(6, N, seed=seed) - 3 * scale)


def binary_entropy(p):
    return -torch.special.xlogy(p, p) - torch.special.xlogy(1 - p, 1 - p)


# Games of a few answers, all of which can be counted.


def game(k=4, seed=0):
    """Chances to win against each other, and a reference and an anchor, in logarithms."""
    skew = 2 * draw(k, k, seed=seed)
    reference, anchor = draw(2, k, seed=seed + 1000).log_softmax(-1)
    return sigmoid(skew - skew.T), reference, anchor


def normalised(scores):
    return scores.log_softmax(-1)


def nash(wins, reference, tau):
    """The policy pi proportional to reference exp(P(. beats pi)/tau), in logarithms."""
    policy = reference
    for _ in range(4000):
        step = (wins @ policy.exp().unsqueeze(-1)).squeeze(-1) / tau + reference
        policy = normalised(0.98 * policy + 0.02 * step)
    return policy


def every_pair(*logps):
    """Each answer against each: the log-probabilities of the first and the second, flattened."""
    k = len(logps[0])
    return [x for y in logps for x in (y.repeat_interleave(k), y.repeat(k))]


def ordered(pairs, swap):
    """The inputs with the second answer of each pair as the chosen one."""
    return [pairs[i ^ 1] if swap else pairs[i] for i in range(len(pairs))]


# INPO.


def inpo(eta, tau, pc, pr, rc, rr, ac, ar):
    h = (pc - pr) - tau / eta * (rc - rr) - (eta - tau) / eta * (ac - ar)
    return (h - 1 / (2 * eta)) ** 2


@pytest.mark.parametrize(("eta", "tau"), [(0.3, 0.1), (0.3, 0.0), (0.3, 0.3), (7.5e-3, 2.5e-3)])
def test_inpo_is_the_plain_formula(eta, tau):
    logps = anchored()
    loss = INPOLoss(eta, tau, reduction="none")
    close(loss(*logps), inpo(eta, tau, *logps))
    found = gradients(lambda *x: loss(*x) + 0 * sum(x), *logps)
    close(found, gradients(lambda *x: inpo(eta, tau, *x), *logps))
    close(INPOLoss()(*logps), inpo(7.5e-3, 2.5e-3, *logps).mean())
    half = [x.bfloat16() for x in logps]
    found = loss(*half)
    assert found.dtype == F32
    close(found.double(), inpo(eta, tau, *(x.double() for x in half)), rtol=1e-5, atol=1e-5)


def test_inpo_of_a_single_anchor_is_ipo():
    policy, reference, anchor = (x.unbind() for x in torch.stack(anchored()).view(3, 2, N))
    unused = [torch.full((N,), v, dtype=F64) for v in (INF, NAN)]
    found = each(INPOLoss, *policy, *reference, *unused, eta=0.3, tau=0.3)
    close(found, each(IPOLoss, *policy, *reference, tau=0.3))
    found = each(INPOLoss, *policy, *unused, *anchor, eta=0.3, tau=0.0)
    close(found, each(IPOLoss, *policy, *anchor, tau=0.3))
    # Nor does it matter where the anchor is the reference.
    found = each(INPOLoss, *policy, *reference, *reference, eta=0.3, tau=0.1)
    close(found, each(IPOLoss, *policy, *reference, tau=0.3))


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_inpo_has_its_least_mean_at_the_lead_over_eta(p):
    h = torch.linspace(-8, 8, 16001, dtype=F64)
    zeros = [torch.zeros_like(h)] * 5
    loss = INPOLoss(0.1, 0.05, reduction="none")
    risk = p * loss(h, *zeros) + (1 - p) * loss(-h, *zeros)
    assert h[risk.argmin()].item() == pytest.approx((p - 0.5) / 0.1, abs=1e-3)


def inpo_risk(loss, logits, wins, reference, anchor):
    """The mean over pairs that the anchor writes and the game judges."""
    pairs = every_pair(normalised(logits), reference, anchor)
    won = wins.flatten()
    risk = won * loss(*ordered(pairs, False)) + (1 - won) * loss(*ordered(pairs, True))
    drawn = (anchor[:, None] + anchor[None, :]).exp().flatten()
    return (drawn * risk).sum()


@pytest.mark.parametrize(("eta", "tau"), [(0.5, 0.2), (0.5, 0.0), (0.5, 0.5), (2.0, 0.3)])
def test_inpo_steps_to_the_mirror_descent_policy(eta, tau):
    wins, reference, anchor = game()
    loss = INPOLoss(eta, tau, reduction="none")

    def risk(logits):
        return inpo_risk(loss, logits, wins, reference, anchor)

    # A parabola of the logits, flat along their sum: one Newton step from anywhere is there.
    start = draw(4, seed=7)
    (slope,) = gradients(risk, start)
    found = normalised(start - torch.linalg.pinv(hessian(risk)(start), rtol=1e-9) @ slope)
    share, win_rate = tau / eta, wins @ anchor.exp()
    close(found, normalised(share * reference + (1 - share) * anchor + win_rate / eta), 1e-7, 1e-9)

    def regression(logits):
        pairs = every_pair(normalised(logits), reference, anchor, win_rate / eta)
        p, p2, r, r2, a, a2, won, lost = pairs
        h = (p - p2) - share * (r - r2) - (1 - share) * (a - a2)
        return ((a + a2).exp() * (h - (won - lost)).square()).sum()

    close(slope, gradients(regression, start)[0], 1e-9)


def test_inpo_rests_at_the_nash_policy_and_comes_to_it():
    wins, reference, _ = game(seed=3)
    tau, eta = 0.3, 1.5
    best = nash(wins, reference, tau)
    close(best, normalised(reference + wins @ best.exp() / tau), 1e-9)
    loss = INPOLoss(eta, tau, reduction="none")
    (slope,) = gradients(lambda x: inpo_risk(loss, x, wins, reference, best), best)
    assert slope.abs().max() < 1e-9
    policy = reference
    for _ in range(60):  # each of them what the last test has found
        mixture = tau / eta * reference + (1 - tau / eta) * policy
        policy = normalised(mixture + wins @ policy.exp() / eta)
    close(policy, best, 1e-5, 1e-6)


def test_rewards_of_inpo_are_win_rates():
    wins, reference, anchor = game()
    eta, tau = 0.5, 0.2
    win_rate = wins @ anchor.exp()
    policy = 0.4 * reference + 0.6 * anchor + win_rate / eta
    loss = INPOLoss(eta, tau)
    pairs = every_pair(policy.requires_grad_(), reference, anchor)
    chosen, rejected = loss.implicit_rewards(*pairs)
    assert not chosen.requires_grad
    assert not rejected.requires_grad
    close((chosen, rejected), tuple(every_pair(win_rate)))
    with pytest.raises(ValueError, match=r"^anchor_rejected_logps: .*\(16,\), got \(15,\)"):
        loss.implicit_rewards(*pairs[:5], pairs[5][1:])
    assert repr(INPOLoss(0.5, 0.2)) == "INPOLoss(eta=0.5, tau=0.2, reduction='mean')"
    low = [x.detach().bfloat16() for x in pairs]
    assert [x.dtype for x in loss.implicit_rewards(*low)] == [F32, F32]


def test_inpo_of_policies_near_each_other_keeps_its_digits():
    base = -1000 * uniform(2, N) - 500
    moves = 1e-3 * draw(3, 2, N)
    wide = [x.float().double() for y in moves for x in base + y]
    narrow = [x.float() for x in wide]
    options = {"eta": 0.5, "tau": 0.2}
    found = INPOLoss(**options).implicit_rewards(*narrow)[0].double()
    expected = INPOLoss(**options).implicit_rewards(*wide)[0]
    assert (found - expected).abs().max() < 1e-9


# DNO.


def dno(eta, pc, pr, ac, ar, r1=None, r2=None):
    delta = eta * ((pc - ac) - (pr - ar))
    return logistic(delta, 0.0 if r1 is None else 1 - sigmoid(r1 - r2))


def test_dno_is_the_plain_formula():
    logps, rates = anchored()[:4], uniform(2, N)
    close(DNOLoss()(*logps, *rates), dno(1.0, *logps, *rates).mean())
    close(each(DNOLoss, *logps, *rates, eta=0.3), dno(0.3, *logps, *rates))
    loss = DNOLoss(0.3, reduction="sum")
    found = gradients(lambda *x: loss(*x, *rates), *logps)
    delta = 0.3 * ((logps[0] - logps[2]) - (logps[1] - logps[3]))
    slope = 0.3 * (sigmoid(delta) - sigmoid(rates[0] - rates[1]))
    close(found, (slope, -slope, -slope, slope))
    pc, pr, ac, ar = logps
    close(loss(pr, pc, ar, ac, *rates.flip(0)), loss(*logps, *rates))
    low = [x.bfloat16() for x in (*logps, *rates)]
    found = DNOLoss()(*low)
    assert found.dtype == F32
    close(found.double(), dno(1.0, *(x.double() for x in low)).mean(), 1e-5, 1e-6)


def test_hard_dno_is_dpo_from_the_anchor():
    logps = anchored()[:4]
    loss = DNOLoss(0.3, "hard", reduction="none")
    dpo = DPOLoss(0.3, reduction="none")
    close(loss(*logps), dpo(*logps))
    close(gradients(loss, *logps), gradients(dpo, *logps))
    close(loss.implicit_rewards(*logps), dpo.implicit_rewards(*logps))
    close(DNOLoss(0.3).implicit_rewards(*logps), dpo.implicit_rewards(*logps))
    x, lost = torch.tensor([-3.0]), torch.tensor([-INF])
    assert loss(lost, x, x, x) == INF
    assert loss(x, lost, x, x) == 0
    assert not gradients(loss, x, lost, x, x)[0].isnan().any()


def test_win_rates_are_constants():
    logps, rates = anchored()[:4], uniform(2, N).requires_grad_()
    assert not DNOLoss()(*logps, *rates).requires_grad


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (DNOLoss(0.7), (1.0, 0.0)),
        (DNOLoss(0.7, "hard"), ()),
        (CREAMLoss(0.7), (1.0,)),
    ],
    ids=repr,
)
def test_the_steepest_pair(loss, labels):
    far, zero = torch.tensor([-1e3], dtype=F64), torch.zeros(1, dtype=F64)
    labels = [torch.tensor([x], dtype=F64) for x in labels]
    slopes = gradients(lambda a, b: loss(a, b, zero, zero, *labels), far, zero)
    assert torch.stack(slopes).norm().item() == pytest.approx(loss.properties().lipschitz)


@pytest.mark.parametrize("eta", [0.2, 1.0])
def test_soft_dno_is_least_at_the_policy_that_win_rates_tilt(eta):
    wins, _, anchor = game()
    win_rate = wins @ anchor.exp()
    rates = every_pair(win_rate)
    loss = DNOLoss(eta, reduction="none")
    best = normalised(anchor + win_rate / eta)

    def risk(logits):
        return loss(*every_pair(normalised(logits), anchor), *rates).sum()

    (slope,) = gradients(risk, best)
    assert slope.abs().max() < 1e-12
    lead = sigmoid(rates[0] - rates[1])
    close(risk(best), binary_entropy(lead).sum())
    for seed in range(5):
        assert risk(best + 0.1 * draw(4, seed=seed)) > risk(best)


# Nash-MD.

LENGTH, WORDS = 2, 3


def two_steps(seed=0):
    """Logits of a first token and of a second one after each first."""
    return draw(WORDS, seed=seed), draw(WORDS, WORDS, seed=seed + 1)


def all_answers(first, second):
    """Log-probabilities of the tokens of all answers of two tokens, (9, 2)."""
    one = first.log_softmax(-1).repeat_interleave(WORDS)
    return torch.stack((one, second.log_softmax(-1).flatten()), 1)


def expected_gradient(loss, policy, reference, wins):
    """The mean gradient of the loss, over answers that the policy writes, by enumeration."""

    def total(*logits):
        logps = all_answers(*logits)
        written = logps.detach().sum(1).exp()
        return (written * loss(logps, reference, wins)).sum()

    return gradients(total, *policy)


@pytest.mark.parametrize("tau", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("shift", [0.0, 0.15])
def test_nash_md_is_the_exact_gradient_in_the_mean(tau, shift):
    policy, reference = two_steps(0), all_answers(*two_steps(5))
    wins = 0.8 * uniform(WORDS**LENGTH)

    def objective(*logits):
        logps = all_answers(*logits)
        ratio = (logps - reference).sum(1)
        return -(logps.sum(1).exp() * (wins - tau * ratio)).sum()

    exact = gradients(objective, *policy)
    # A baseline moves every answer's gradient, and not the mean.
    loss = NashMDLoss(tau, reduction="none")
    found = expected_gradient(loss, policy, reference, wins + shift)
    close(found, exact, 1e-9, 1e-12)

    # By tokens: of the divergence only what every token does to its own.
    def local(*logits):
        logps = all_answers(*logits)
        prefix = logps.detach()[:, 0].exp()
        first = logps[:, 0].exp() * (logps[:, 0] - reference[:, 0]) / WORDS
        second = prefix * logps[:, 1].exp() * (logps[:, 1] - reference[:, 1])
        return tau * (first + second).sum() - (logps.sum(1).exp() * wins).sum()

    loss = NashMDLoss(tau, "token", reduction="none")
    found = expected_gradient(loss, policy, reference, wins + shift)
    close(found, gradients(local, *policy), 1e-9, 1e-12)
    close(found[1], exact[1], 1e-9, 1e-12)  # there is nothing after the last token
    bias = (found[0] - exact[0]).abs().max()
    if tau == 0.0:
        assert bias < 1e-12
    else:
        assert bias > 0.06 * tau


def test_nash_md_is_the_plain_formula():
    policy, reference, wins = draw(N, 4), draw(N, 4, seed=2), uniform(N)
    ratio = policy - reference
    bracket = wins - 0.5 - 0.3 * ratio.sum(1)
    close(each(NashMDLoss, policy, reference, wins, tau=0.3), -bracket * policy.sum(1))
    by_token = -(wins - 0.5) * policy.sum(1) + 0.3 * (ratio * policy).sum(1)
    options = {"tau": 0.3, "kl_estimator": "token"}
    close(each(NashMDLoss, policy, reference, wins, **options), by_token)
    for loss, slope in (
        (NashMDLoss(0.3, reduction="sum"), -bracket[:, None].expand(N, 4)),
        (NashMDLoss(0.3, "token", reduction="sum"), 0.3 * ratio - (wins - 0.5)[:, None]),
    ):
        leaves = [x.clone().requires_grad_() for x in (policy, reference, wins)]
        found = torch.autograd.grad(loss(*leaves), leaves, allow_unused=True)
        close(found[0], slope)
        assert found[1:] == (None, None)
    ratio = policy - reference
    expected = -(wins - 0.5 - 0.1 * ratio.sum(1)) * policy.sum(1)
    close(NashMDLoss()(policy, reference, wins), expected.mean())
    low = [x.bfloat16() for x in (policy, reference, wins)]
    found = NashMDLoss()(*low)
    assert found.dtype == F32
    close(found.double(), NashMDLoss()(*(x.double() for x in low)), 1e-5, 1e-6)


@pytest.mark.parametrize("estimator", ["sequence", "token"])
def test_tokens_that_are_not_there(estimator):
    policy, reference, wins = draw(N, 4), draw(N, 4, seed=2), uniform(N)
    mask = uniform(N, 4, seed=3) < 0.6
    mask[0] = False
    mask[1] = True
    loss = NashMDLoss(0.3, estimator, reduction="none")
    rows = [
        loss(policy[i : i + 1, kept], reference[i : i + 1, kept], wins[i : i + 1])
        for i, kept in enumerate(mask)
        if i
    ]
    expected = torch.cat([torch.zeros(1, dtype=F64), *rows])
    for lost in (NAN, INF, -INF, 1.0):
        spoiled = [x.masked_fill(~mask, lost) for x in (policy, reference)]
        leaf = spoiled[0].requires_grad_()
        for given_mask in (mask, mask.long(), mask.double()):
            values = loss(leaf, spoiled[1], wins, given_mask)
            close(values, expected)
        (slope,) = torch.autograd.grad(values.sum(), leaf)
        assert (slope[~mask] == 0).all()
        assert (slope[mask] != 0).all()


def test_both_estimators_agree_of_one_token():
    policy, reference, wins = draw(N, 1), draw(N, 1, seed=2), uniform(N)
    token = each(NashMDLoss, policy, reference, wins, kl_estimator="token")
    close(token, each(NashMDLoss, policy, reference, wins))


# Nash-MP.


def mirror_step(beta, eta, wins, reference, anchor, opponent):
    """The closed form of a proximal step, in logarithms."""
    win_rate = (wins @ opponent.exp().unsqueeze(-1)).squeeze(-1)
    return normalised((beta * reference + anchor / eta + win_rate) / (beta + 1 / eta))


def nash_mp_slope(beta, eta, logits, wins, reference, anchor, opponent):
    """The mean gradient of the loss, over answers that the policy writes."""
    win_rate = (wins @ opponent.exp().unsqueeze(-1)).squeeze(-1)
    loss = NashMPLoss(beta, eta, reduction="sum")

    def total(logits):
        logps = normalised(logits)
        return loss(logps, reference, anchor, win_rate, weight=logps.detach().exp())

    return gradients(total, logits)[0]


def test_nash_mp_is_the_plain_formula():
    policy, reference, anchor, *_ = anchored()
    wins = uniform(N)
    bracket = wins - 0.5 - 0.3 * (policy - reference) - (policy - anchor) / 0.7
    found = each(NashMPLoss, policy, reference, anchor, wins, beta=0.3, eta=0.7)
    close(found, -bracket * policy)
    leaves = [x.clone().requires_grad_() for x in (policy, reference, anchor, wins)]
    total = NashMPLoss(0.3, 0.7, reduction="sum")(*leaves)
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    close(found[0], -bracket)
    assert found[1:] == (None, None, None)


@pytest.mark.parametrize(("beta", "eta"), [(0.1, 2.0), (0.7, 0.5)])
def test_nash_mp_is_the_exact_gradient_in_the_mean(beta, eta):
    wins, reference, anchor = game()
    opponent, logits = normalised(draw(4, seed=8)), draw(4, seed=9)

    def objective(logits):
        logps = normalised(logits)
        gain = wins @ opponent.exp() - beta * (logps - reference) - (logps - anchor) / eta
        return -(logps.exp() * gain).sum()

    found = nash_mp_slope(beta, eta, logits, wins, reference, anchor, opponent)
    close(found, gradients(objective, logits)[0], 1e-9)
    step = mirror_step(beta, eta, wins, reference, anchor, opponent)
    at_step = nash_mp_slope(beta, eta, step, wins, reference, anchor, opponent)
    assert at_step.abs().max() < 1e-12
    # An infinite step: Nash-MD of one token.
    loss = NashMDLoss(beta, reduction="sum")
    logps, win_rate = normalised(logits), wins @ opponent.exp()
    md = gradients(lambda x: loss(x[:, None], reference[:, None], win_rate), logps)
    mp = NashMPLoss(beta, 1e15, reduction="sum")
    close(gradients(lambda x: mp(x, reference, anchor, win_rate), logps), md)


@pytest.mark.parametrize("beta", [0.05, 0.2, 1.0])
def test_mirror_prox_comes_to_the_nash_policy_at_the_rate_of_the_paper(beta):
    eta = 2.0
    games = [game(5, seed) for seed in range(30)]
    wins, reference, policy = (torch.stack(x) for x in zip(*games, strict=True))
    best = policy
    for _ in range(round(60 / math.log1p(2 * beta))):
        half = mirror_step(beta, eta, wins, reference, best, best)
        best = mirror_step(beta, eta, wins, reference, best, half)
    fixed = (wins @ best.exp().unsqueeze(-1)).squeeze(-1) / beta + reference
    close(best, normalised(fixed), 1e-8, 1e-8)
    assert nash_mp_slope(beta, eta, best, wins, reference, best, best).abs().max() < 1e-10

    def distance(policy):
        return (best.exp() * (best - policy)).sum(-1)

    start = distance(policy)
    assert start.min() > 1e-3
    for k in range(1, 15):
        half = mirror_step(beta, eta, wins, reference, policy, policy)
        slope = nash_mp_slope(beta, eta, half, wins, reference, policy, policy)
        assert slope.abs().max() < 1e-12
        # With the same anchor, and the policy in between for an opponent.
        policy, anchor = mirror_step(beta, eta, wins, reference, policy, half), policy
        slope = nash_mp_slope(beta, eta, policy, wins, reference, anchor, half)
        assert slope.abs().max() < 1e-12
        assert (distance(policy) <= start * (1 + 2 * beta) ** -k + 1e-12).all()


def test_descent_on_nash_mp_solves_rock_paper_scissors():
    beta, eta = 0.4, 2.0
    wins = torch.tensor([[0.5, 0.1, 0.8], [0.9, 0.5, 0.2], [0.2, 0.8, 0.5]], dtype=F64)
    reference = torch.tensor([0.6, 0.3, 0.1], dtype=F64).log()
    policy = reference
    for _ in range(14):
        anchor = opponent = policy
        for _ in range(2):
            for _ in range(40):
                slope = nash_mp_slope(beta, eta, policy, wins, reference, anchor, opponent)
                # Divided by the probabilities: the steps are then alike for all answers.
                policy = normalised(policy - 0.5 / (beta + 1 / eta) * slope / policy.exp())
            opponent = policy
    close(policy, nash(wins, reference, beta), 2e-3, 2e-3)


# SPO.


@given(st.integers(2, 6), st.integers(0, 50))
def test_win_rates_sum_to_half_the_answers(k, seed):
    skew = 3 * draw(2, k, k, seed=seed)
    wins = sigmoid(skew - skew.mT)
    rates = self_play_win_rate(wins)
    close(rates.sum(-1), torch.full((2,), k / 2, dtype=F64))
    for b in range(2):
        for i in range(k):
            others = [wins[b, i, j] for j in range(k) if j != i]
            close(rates[b, i], sum(others) / (k - 1))


def test_win_rates_and_what_is_refused():
    wins = uniform(3, 3)
    rates = self_play_win_rate(wins)
    for itself in (NAN, 7.0):
        close(self_play_win_rate(wins.masked_fill(torch.eye(3) > 0, itself)), rates)
    assert not self_play_win_rate(wins.clone().requires_grad_()).requires_grad
    half = self_play_win_rate(wins.bfloat16())
    assert half.dtype == F32
    close(half.double(), self_play_win_rate(wins.bfloat16().double()), 1e-6)
    assert self_play_win_rate(torch.zeros(0, 3, 3)).shape == (0, 3)
    close(torch.vmap(self_play_win_rate)(wins[None]), rates[None])
    for shape in ((3,), (3, 2), (1, 1), (0, 0), ()):
        with pytest.raises(ValueError, match=r"^preferences: expected shape .*K >= 2, got \("):
            self_play_win_rate(torch.zeros(shape))
    for wrong in (1.5, -0.5, NAN):
        with pytest.raises(ValueError, match=rf"^preferences: .*\[0, 1\], got {wrong}"):
            self_play_win_rate(torch.tensor([[0.5, wrong], [0.5, 0.5]]))
    for given_type in ([[0.5]], torch.ones(2, 2).long()):
        with pytest.raises(TypeError, match=r"^preferences: expected .*, got (list|torch.int64)"):
            self_play_win_rate(given_type)


# CREAM.


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_cream_is_dpo_with_a_smoothing_of_every_pair(beta):
    logps, sure = anchored()[:4], uniform(N)
    sure[0], sure[1] = 1.0, 0.0
    found = each(CREAMLoss, *logps, sure, beta=beta)
    z = beta * ((logps[0] - logps[2]) - (logps[1] - logps[3]))
    close(found, logistic(z, 1 - sure))
    for i, c in enumerate(sure.tolist()):
        row = [x[i : i + 1] for x in logps]
        if c:
            close(found[i : i + 1], each(DPOLoss, *row, beta=beta, label_smoothing=1 - c))
        else:
            close(found[i], each(DPOLoss, row[1], row[0], row[3], row[2], beta=beta)[0])
        for one in (c, sure[i], sure[i].float()):
            close(CREAMLoss(beta)(*row, one), found[i], 1e-6)
    loss = CREAMLoss(beta, reduction="sum")
    slopes = gradients(lambda *x: loss(*x, sure), *logps)
    slope = -beta * (sigmoid(-z) - (1 - sure))
    close(slopes, (slope, -slope, -slope, slope))
    close(CREAMLoss(beta)(*logps, sure), found.mean())
    close(loss.implicit_rewards(*logps), DPOLoss(beta).implicit_rewards(*logps))
    kept = torch.arange(N) % 2 == 0
    spoiled = sure.masked_fill(~kept, NAN)
    close(CREAMLoss(beta)(*logps, spoiled, weight=kept), found[kept].mean())
    low = [x.bfloat16() for x in (*logps, sure)]
    expected = CREAMLoss(beta)(*(x.double() for x in low))
    assert CREAMLoss(beta)(*low).dtype == F32
    close(CREAMLoss(beta)(*low).double(), expected, 1e-5, 1e-6)
    assert CREAMLoss(beta)(*low[:4], low[4][0]).dtype == F32
    assert CREAMLoss(beta)(logps[0][0], *(x[0] for x in logps[1:]), sure[0]) == found[0]


@given(st.floats(0.01, 0.99))
def test_cream_is_least_at_the_odds_of_its_consistency(c):
    c = torch.tensor([c], dtype=F64)
    zeros = [torch.zeros(1, dtype=F64)] * 3

    def of(z):
        return each(CREAMLoss, z, *zeros, c, beta=1.0)

    best = torch.logit(c)
    close(of(best), binary_entropy(c))
    assert gradients(of, best)[0].abs() < 1e-12
    assert of(best + 0.1) > of(best)
    assert of(best - 0.1) > of(best)


def test_consistency_is_a_constant_and_certain_pairs_may_be_impossible():
    logps, sure = anchored()[:4], uniform(N).requires_grad_()
    assert not CREAMLoss()(*logps, sure).requires_grad
    x, lost = torch.tensor([-3.0]), torch.tensor([-INF])
    one, zero = torch.ones(1), torch.zeros(1)
    loss = CREAMLoss(reduction="none")
    assert (loss(x, lost, x, x, one), loss(lost, x, x, x, one)) == (0, INF)
    assert (loss(x, lost, x, x, zero), loss(lost, x, x, x, zero)) == (INF, 0)
    assert loss(x, lost, x, x, 0.5 * one) == INF
    for c in (zero, one):
        for answers in ((x, lost), (lost, x)):
            found = gradients(lambda *z, c=c: loss(*z, x, x, c), *answers)
            assert not torch.stack(found).isnan().any()


def rankings(k, n=40, levels=None, seed=0):
    rewards = draw(2, n, k, seed=seed)
    return rewards if levels is None else (levels * rewards).round()


@pytest.mark.parametrize("k", [2, 3, 7])
@pytest.mark.parametrize("levels", [None, 1.0])
def test_consistency_rates_are_those_of_scipy(k, levels):
    """The authors' code, but for the best and the worst answer."""
    now, before = rankings(k, levels=levels)
    assert levels is None or k == 2 or any(len(x.unique()) < k for x in now)
    kendall = consistency_rate(now, before)
    spearman = consistency_rate(now, before, "spearman")
    top_bottom = consistency_rate(now, before, "top_bottom")
    for i, (a, b) in enumerate(zip(now.numpy(), before.numpy(), strict=True)):
        one, other = (stats.rankdata(x, method="ordinal") for x in (a, b))
        assert kendall[i].item() == pytest.approx((stats.kendalltau(one, other)[0] + 1) / 2)
        assert spearman[i].item() == pytest.approx((stats.spearmanr(one, other)[0] + 1) / 2)
        same = one.argmax() == other.argmax() and one.argmin() == other.argmin()
        assert top_bottom[i].item() == float(same)
    if k > 2:
        assert 0 < top_bottom.mean() < 1


@given(st.permutations(list(range(6))))
def test_consistency_is_1_of_the_same_order_and_0_of_the_opposite(order):
    x = torch.tensor(order)
    for method in ("kendall", "spearman", "top_bottom"):
        assert consistency_rate(x, x.exp(), method) == 1
        assert consistency_rate(x, -x, method) == 0


def test_orders_that_have_nothing_to_do_with_each_other():
    for method in ("kendall", "spearman"):
        mean = consistency_rate(*rankings(6, 20000), method).mean()
        assert mean.item() == pytest.approx(0.5, abs=0.01)


def test_the_best_and_the_worst_alone():
    now = torch.tensor([4, 1, 2, 0])
    assert consistency_rate(now, torch.tensor([9, 1, 8, -5]), "top_bottom") == 1
    assert consistency_rate(now, torch.tensor([9, -6, 8, -5]), "top_bottom") == 0
    assert consistency_rate(now, torch.tensor([7, 1, 8, -5]), "top_bottom") == 0


def test_consistency_rates_and_what_is_refused():
    now, before = rankings(5)
    rate = consistency_rate(now, before)
    assert rate.dtype == F64
    assert consistency_rate(now.float(), before).dtype == F64
    assert consistency_rate(now.half(), before.half()).dtype == F32
    assert consistency_rate(now.half(), before.half(), "spearman").dtype == F32
    assert consistency_rate(now.half(), before.half(), "top_bottom").dtype == F32
    assert not consistency_rate(now.clone().requires_grad_(), before).requires_grad
    close(consistency_rate(now.view(4, 10, 5), before.view(4, 10, 5)), rate.view(4, 10))
    close(torch.vmap(consistency_rate)(now, before), rate)
    assert consistency_rate(torch.tensor([INF, 0.0, -INF]), torch.tensor([3, 2, 1])) == 1
    x = torch.zeros(4, 3)
    for inputs, error, message in (
        ((x, x, "tau"), ValueError, r"method: .*'kendall', 'spearman', 'top_bottom'.*got 'tau'"),
        ((x, x[:3]), ValueError, r"previous: expected the shape of rewards.*got \(3, 3\)"),
        ((x[:, :1], x[:, :1]), ValueError, r"rewards: expected shape .*K >= 2, got \(4, 1\)"),
        ((x[0, 0], x[0, 0]), ValueError, r"rewards: expected shape .*K >= 2, got \(\)"),
        ((x * NAN, x), ValueError, "rewards: expected numbers, got nan"),
        ((x, x * NAN), ValueError, "previous: expected numbers, got nan"),
        ((x > 0, x), TypeError, r"rewards: expected numbers, got torch\.bool"),
        ((x, x + 0j), TypeError, r"previous: expected numbers, got torch\.complex64"),
        ((x, [0.0]), TypeError, "previous: expected a tensor, got list"),
        ((x, x.to("meta")), ValueError, "previous: expected device cpu, got meta"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            consistency_rate(*inputs)


# SCIR.


def scir_parts(z, g):
    """Both divergences and the mean entropy, as one would write them down."""
    p, q = sigmoid(z), sigmoid(g)
    mean = (binary_entropy(p) + binary_entropy(q)) / 2
    cross = -q * F.logsigmoid(z) - (1 - q) * F.logsigmoid(-z)
    cross = cross - p * F.logsigmoid(g) - (1 - p) * F.logsigmoid(-g)
    return binary_entropy((p + q) / 2) - mean, cross / 2 - mean, mean


@pytest.mark.parametrize("entropy_weight", [0.0, 0.3])
def test_scir_is_the_plain_formula(entropy_weight):
    *logps, _, _ = anchored()
    judge = 2 * draw(N, seed=5)

    def plain(which):
        def of(pc, pr, rc, rr, g):
            parts = scir_parts(0.3 * ((pc - rc) - (pr - rr)), g)
            return parts[which] + entropy_weight * parts[2]

        return of

    for which, name in enumerate(("js", "symmetric_kl")):
        loss = SCIRLoss(0.3, name, entropy_weight, reduction="none")
        close(loss(*logps, judge), plain(which)(*logps, judge), 1e-9)
        close(gradients(loss, *logps, judge), gradients(plain(which), *logps, judge), 1e-7, 1e-12)
    z = 0.1 * ((logps[0] - logps[2]) - (logps[1] - logps[3]))
    js, _, entropy = scir_parts(z, judge)
    close(SCIRLoss()(*logps, judge), (js + 0.1 * entropy).mean(), 1e-9)
    low = [x.bfloat16() for x in (*logps, judge)]
    found = SCIRLoss()(*low)
    assert found.dtype == F32
    close(found.double(), SCIRLoss()(*(x.double() for x in low)), 1e-5, 1e-6)


def of_logits(z, g, divergence, entropy_weight=0.0):
    zeros = [torch.zeros_like(z)] * 3
    options = {"divergence": divergence, "entropy_weight": entropy_weight}
    return each(SCIRLoss, z, *zeros, g, beta=1.0, **options)


def exact_divergence(z, g, divergence):
    with mpmath.workdps(60):
        z, g = mpf(z), mpf(g)
        p, q = 1 / (1 + mpmath.exp(-z)), 1 / (1 + mpmath.exp(-g))
        p_not, q_not = 1 / (1 + mpmath.exp(z)), 1 / (1 + mpmath.exp(g))
        if divergence == "symmetric_kl":
            return (p - q) * (z - g) / 2
        kl = [
            a * mpmath.log(2 * a / (p + q)) + b * mpmath.log(2 * b / (p_not + q_not))
            for a, b in ((p, p_not), (q, q_not))
        ]
        return sum(kl) / 2


@pytest.mark.parametrize("divergence", ["js", "symmetric_kl"])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_divergences_keep_their_digits(divergence, dtype):
    points = [-60.0, -20.0, -3.0, 0.0, 0.5, 2.0, 17.0, 40.0]
    pairs = [(z, g) for z in points for g in points if z != g]
    # Near agreement; steps that both precisions hold.
    pairs += [(z, z + 2.0**-6) for z in points] + [(z, z - 2.0**-3) for z in points]
    z, g = torch.tensor(pairs, dtype=dtype).T
    found = of_logits(z, g, divergence)
    tolerance = 2e-5 if dtype is F32 else 2e-13
    for value, pair in zip(found.tolist(), pairs, strict=True):
        exact = exact_divergence(*pair, divergence)
        # Log-odds of 17 and 17 + 1/64 are known to a spacing of 1/64 in 17, 4e-4 in float32.
        spacing = torch.finfo(dtype).eps * max(map(abs, pair)) / abs(pair[0] - pair[1])
        assert abs(value - exact) <= (tolerance + 4 * spacing) * exact, pair


@given(numbers, numbers)
def test_scir_is_symmetric_bounded_and_least_where_both_agree(z, g):
    z, g = torch.tensor([z], dtype=F64), torch.tensor([g], dtype=F64)
    for name, most in (("js", math.log(2)), ("symmetric_kl", INF)):
        value = of_logits(z, g, name)
        assert 0 <= value <= most
        close(value, of_logits(g, z, name), 1e-9, 1e-15)
        close(value, of_logits(-z, -g, name), 1e-9, 1e-15)
        assert of_logits(z, z, name) == 0
        slopes = gradients(lambda a, b, name=name: of_logits(a, b, name), z, z)
        assert all(x.abs() < 1e-12 for x in slopes)
    # With all of the entropies: the entropy of the mean.
    mean = (sigmoid(z) + sigmoid(g)) / 2
    close(of_logits(z, g, "js", 1.0), binary_entropy(mean), 1e-9, 1e-12)


def test_nearly_equal_judgements():
    z = torch.tensor([-3.0, 0.0, 1.0], dtype=F64)
    g = z + 1e-5
    slope = sigmoid(z) * sigmoid(-z)
    close(of_logits(z, g, "js"), 1e-10 * slope / 8, 1e-4, 0.0)
    close(of_logits(z, g, "symmetric_kl"), 1e-10 * slope / 2, 1e-4, 0.0)


def test_sure_judgements_that_agree_come_near_0():
    sure = torch.tensor([-800.0, 800.0])
    for name in ("js", "symmetric_kl"):
        for weight in (0.0, 3.0):
            assert (of_logits(sure, sure, name, weight) < 1e-30).all()
    assert (of_logits(sure, torch.zeros(2), "js", 1.0) > 0.5).all()
    # Impossible answers.
    lost = torch.tensor([-INF, INF])
    for judge in (torch.zeros(2), torch.tensor([3.0, 3.0])):
        found = of_logits(lost, judge, "js", 0.3)
        js, _, entropy = scir_parts(torch.tensor([-1e3, 1e3], dtype=F64), judge.double())
        close(found.double(), js + 0.3 * entropy, 1e-6)
        assert not gradients(lambda x, j=judge: of_logits(x, j, "js", 0.3), lost)[0].isnan().any()
        assert (of_logits(lost, judge, "symmetric_kl") == INF).all()


def test_both_judgements_learn():
    pairs = [*anchored()[:4], draw(N, seed=5)]
    for name in ("js", "symmetric_kl"):
        slopes = gradients(SCIRLoss(0.3, name), *pairs)
        assert all((x != 0).all() for x in slopes)


def test_pairs_on_which_both_judgements_agree():
    loss = SCIRLoss(0.3)
    chosen = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 1.0, 0.0])
    judge = torch.tensor([0.1, -0.1, 0.1, -0.1, 1.0, 0.0, 0.0])
    zeros = [torch.zeros(7)] * 3
    mask = loss.consistent_mask(chosen, *zeros, judge)
    assert mask.tolist() == [True, False, False, True, False, False, False]
    # Over the reference, not by itself.
    mask = loss.consistent_mask(zeros[0], zeros[0], zeros[0], chosen, judge)
    assert mask.tolist() == [True, False, False, True, False, False, False]
    mask = loss.consistent_mask(zeros[0], chosen, zeros[0], zeros[0], judge)
    assert mask.tolist() == [False, True, True, False, False, False, False]
    close(
        loss.implicit_rewards(chosen, *zeros),
        (0.3 * chosen, torch.zeros(7)),
    )
    with pytest.raises(ValueError, match=r"^judge_logits: .*\(7,\), got \(6,\)"):
        loss.consistent_mask(chosen, *zeros, judge[1:])
    with pytest.raises(TypeError, match=r"^reference_rejected_logps: .*got NoneType"):
        loss.consistent_mask(chosen, *zeros[:2], None, judge)


# Trees.


def official_smoothing(chosen, rejected):
    c = 1 / (1 + rejected / max(1, chosen))
    return min(1 - c, 0.5)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=20))
def test_smoothing_by_visits(counts):
    won, lost = torch.tensor(counts).T
    found = mcts_label_smoothing(won, lost)
    expected = torch.tensor([official_smoothing(*pair) for pair in counts])
    close(found, expected, 1e-6, 1e-7)
    close(mcts_label_smoothing(won.double(), lost), torch.tensor(
        [official_smoothing(*pair) for pair in counts], dtype=F64))  # fmt: skip
    assert ((found >= 0) & (found <= 0.5)).all()


def test_even_visits_are_one_half_and_none_are_certain():
    counts = torch.tensor([1, 2, 30])
    assert mcts_label_smoothing(counts, counts).tolist() == [0.5] * 3
    assert mcts_label_smoothing(counts, 0 * counts).tolist() == [0.0] * 3
    assert mcts_label_smoothing(0 * counts, 0 * counts).tolist() == [0.0] * 3
    assert mcts_label_smoothing(0 * counts, counts).tolist() == [0.5] * 3
    rare = torch.tensor([10**9])
    close(mcts_label_smoothing(rare, rare // 10**9), torch.tensor([1e-9]), 1e-6, 0.0)
    eighths = mcts_label_smoothing(torch.tensor(7, dtype=torch.uint8), torch.tensor(1.0))
    assert eighths == 0.125
    many = torch.tensor([200, 200], dtype=torch.uint8)
    assert mcts_label_smoothing(many, many).tolist() == [0.5] * 2
    leaf = torch.ones(2, requires_grad=True)
    assert not mcts_label_smoothing(leaf, leaf).requires_grad


def test_smoothed_pairs_of_a_tree_are_cdpo():
    logps = anchored()[:4]
    won, lost = torch.tensor([9, 3, 5, 1, 4, 0]), torch.tensor([1, 3, 0, 1, 2, 2])
    smoothing = mcts_label_smoothing(won, lost).double()
    found = each(CREAMLoss, *logps, 1 - smoothing)
    for i, eps in enumerate(smoothing.tolist()):
        row = [x[i : i + 1] for x in logps]
        close(found[i : i + 1], each(DPOLoss, *row, label_smoothing=eps))


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (([1], torch.ones(1)), TypeError, "chosen_visits: expected a tensor, got list"),
        ((torch.ones(1), 1), TypeError, "rejected_visits: expected a tensor, got int"),
        ((torch.ones(1) > 0, torch.ones(1)), TypeError, "chosen_visits: .*got torch.bool"),
        ((torch.ones(1), torch.ones(1).half()), TypeError, "rejected_visits: .*got torch.float16"),
        ((torch.ones(1), torch.ones(1) + 0j), TypeError, "rejected_visits: .*got torch.complex64"),
        ((torch.ones(2), torch.ones(1)), ValueError, r"rejected_visits: .*\(2,\), got \(1,\)"),
        ((-torch.ones(1), torch.ones(1)), ValueError, "chosen_visits: .*>= 0, got -1"),
        ((torch.ones(1), torch.ones(1) * INF), ValueError, "rejected_visits: .*>= 0, got inf"),
        ((torch.ones(1), torch.ones(1) * NAN), ValueError, "rejected_visits: .*>= 0, got nan"),
        ((torch.ones(1), torch.ones(1, device="meta")), ValueError, "rejected_visits: .*got meta"),
    ],
)
def test_what_a_tree_does_not_count(inputs, error, message):
    with pytest.raises(error, match=f"^{message}"):
        mcts_label_smoothing(*inputs)


# Regret.


def repeated(sequences=3, rounds=4, actions=3, batches=5, seed=0):
    """Losses, and policies of players who guess some of them."""
    losses, noise = draw(2, batches, sequences, rounds, actions, seed=seed)
    return losses, (noise - 0.6 * losses).softmax(-1)


def regrets(losses, policies):
    """What was lost more than by the best fixed action."""
    paid = torch.einsum("bjta,bjta->bj", losses, policies)
    return paid - losses.sum(2).min(-1).values


def h_of(name, r):
    return {"relu": r.clamp(min=0), "relu2": r.clamp(min=0) ** 2, "identity": r}[name]


HS = ("relu", "relu2", "identity")


@pytest.mark.parametrize("h", HS)
@pytest.mark.parametrize("weighting", ["exp", "power"])
@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_regret_is_the_plain_formula(h, weighting, k):
    losses, policies = repeated(seed=1)
    r = regrets(losses, policies)
    assert (r < 0).any()
    assert (r > 0).any(1).all()

    def plain(losses, policies):
        r = regrets(losses, policies)
        positive = r > 0
        f = torch.exp(k * r) if weighting == "exp" else torch.where(positive, r, 1) ** k * positive
        return (h_of(h, r) * f).sum(1) / f.sum(1)

    loss = RegretLoss(k, h, weighting, reduction="none")
    close(loss(losses, policies), plain(losses, policies))
    found, expected = (gradients(x, losses, policies) for x in (loss, plain))
    close(found[0], expected[0], 1e-9)
    # In the policies up to what a row's sum of 1 leaves open.
    found, expected = (x - x.mean(-1, keepdim=True) for x in (found[1], expected[1]))
    close(found, expected, 1e-9)
    close(RegretLoss(k, h, weighting)(losses, policies), loss(losses, policies).mean())


def turns(r):
    """Losses and policies of one batch of sequences with these regrets, of either sign."""
    losses = torch.tensor([[0.0, -1.0], [-1.0, 0.0]], dtype=F64)
    return (r[:, None, None] * losses)[None], torch.eye(2, dtype=F64).expand(1, len(r), 2, 2)


def of_regrets(r, *options):
    """The loss as a function of the regrets of a batch."""
    return RegretLoss(*options, reduction="none")(*turns(r))[0]


@given(st.lists(numbers, min_size=1, max_size=4))
def test_turns_have_these_regrets(sizes):
    r = torch.tensor(sizes, dtype=F64)
    close(regrets(*turns(r))[0], r)


@given(numbers)
def test_regret_of_one_sequence(r):
    r = torch.tensor([r], dtype=F64)
    for h in HS:
        close(of_regrets(r, 0.7, h), h_of(h, r)[0])
        expected = h_of(h, r)[0] if r > 0 else torch.zeros((), dtype=F64)
        close(of_regrets(r, 0.7, h, "power"), expected)


def test_regret_between_the_mean_and_the_worst():
    r = torch.tensor([-2.0, 0.5, 1.0, 3.0], dtype=F64)
    for h in HS:
        values = h_of(h, r)
        for weighting, counted in (("exp", values), ("power", values[1:])):
            close(of_regrets(r, 1e-9, h, weighting), counted.mean(), 1e-7)
            for k in (1e3, 1e30, 1e300):
                close(of_regrets(r, k, h, weighting), values.max())
    losses, policies = (x.float() for x in turns(r))
    for weighting in ("exp", "power"):
        found = RegretLoss(1e30, "relu", weighting)(losses, policies)
        close(found, torch.tensor(3.0))


@pytest.mark.parametrize("h", HS)
def test_no_positive_regret_at_all(h):
    for sizes in ([-1.0, -2.0], [0.0, 0.0], [0.0, -3.0]):
        r = torch.tensor(sizes, dtype=F64).requires_grad_()
        value = of_regrets(r, 1.5, h, "power")
        assert value == 0
        (slope,) = torch.autograd.grad(value, r)
        assert (slope == 0).all()
    # One good sequence beside them.
    r = torch.tensor([-1.0, 2.0, 0.0], dtype=F64).requires_grad_()
    value = of_regrets(r, 1.5, h, "power")
    close(value.detach(), h_of(h, torch.tensor(2.0, dtype=F64)))
    (slope,) = torch.autograd.grad(value, r)
    close(slope, torch.tensor([0.0, 4.0 if h == "relu2" else 1.0, 0.0], dtype=F64))


@pytest.mark.parametrize("h", HS)
@pytest.mark.parametrize("weighting", ["exp", "power"])
def test_gradient_flows_through_the_weights(h, weighting):
    k = 1.5
    r = torch.tensor([0.3, 1.1, 2.0], dtype=F64)
    (found,) = gradients(lambda r: of_regrets(r, k, h, weighting), r)
    w = torch.softmax(k * (r if weighting == "exp" else r.log()), 0)
    value, slope = h_of(h, r), 2 * r if h == "relu2" else torch.ones(3, dtype=F64)
    rate = k if weighting == "exp" else k / r
    close(found, w * (slope + (value - (w * value).sum()) * rate))
    assert found[0] < 0 < found[2]


@pytest.mark.parametrize("weighting", ["exp", "power"])
def test_an_offset_of_a_round_changes_nothing_and_costs_no_digits(weighting):
    losses, policies = repeated()
    loss = RegretLoss(1.0, "relu2", weighting, reduction="none")
    expected = loss(losses, policies)
    offset = 100 * draw(5, 3, 4, 1, seed=5)
    close(loss(losses + offset, policies), expected, 1e-9)
    eighths = (8 * losses).round() / 8
    exact = loss(eighths, policies)
    shifted = (eighths + 2.0**12).float()
    assert (shifted.double() == eighths + 2.0**12).all()
    close(loss(shifted, policies.float()).double(), exact, 1e-4, 1e-5)
    # Policies that sum to 1 up to a rounding do not multiply the offset either.
    close(loss(shifted, policies.bfloat16()).double(), exact, 0.1, 0.05)


def test_regret_of_a_good_player_is_small_and_its_gradient_leads_there():
    losses, policies = repeated(2, 3, 2, 4)
    logits = torch.zeros_like(policies)
    for _ in range(200):
        (slope,) = gradients(lambda x: RegretLoss()(losses, x.softmax(-1)), logits)
        logits = logits - 2.0 * slope
    assert RegretLoss()(losses, logits.softmax(-1)) < 0.1 * RegretLoss()(losses, policies)


def test_batches_that_are_not_there_need_no_policy():
    losses, policies = repeated()
    kept = torch.arange(5) % 2 == 0
    spoiled = policies.clone()
    spoiled[~kept] = NAN
    expected = RegretLoss()(losses[kept], policies[kept])
    close(RegretLoss()(losses, spoiled, weight=kept), expected)
    assert RegretLoss()(losses[:0], policies[:0]) == 0
    low = losses.bfloat16(), policies.bfloat16()
    found = RegretLoss()(*low)
    assert found.dtype == F32
    close(found.double(), RegretLoss()(*(x.double() for x in low)), 1e-5, 1e-6)
