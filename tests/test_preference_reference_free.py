"""Losses of pairs without a reference, of averages and of sums, and losses of truth tables."""

import itertools
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf

from lossary import (
    CPOLoss,
    DPOLoss,
    HingePreferenceLoss,
    IPOLoss,
    LogicPreferenceLoss,
    ORPOLoss,
    SequenceNLLLoss,
    SimPOLoss,
    sequence_logps,
)
from test_preference import F32, F64, INF, N, answers, close, each, gradients, logistic

probabilities = st.floats(1e-9, 1 - 1e-9)


def averages(seed=0):
    """Sums of token log-probabilities of pairs, their lengths, and the averages."""
    pc, pr, _, _, n, m = answers(3.0, seed)
    pc, pr = -pc.abs() - 0.1, -pr.abs() - 0.1
    return pc, pr, n, m, pc / n, pr / m


# SimPO.


def simpo(x, y, beta, gamma, eps=0.0, alpha=0.0):
    """The authors' code, with gamma_beta_ratio = gamma/beta; AlphaPO's reward."""
    if alpha:
        x, y = ((1 - torch.exp(-alpha * v)) / alpha for v in (x, y))
    return logistic(beta * ((x - y) - gamma / beta), eps)


@pytest.mark.parametrize("alpha", [0.0, 0.3, -0.7])
@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_simpo(alpha, eps):
    pc, pr, n, m, x, y = averages()
    options = {"beta": 2.5, "gamma": 1.2, "alpha": alpha, "label_smoothing": eps}
    close(each(SimPOLoss, x, y, **options), simpo(x, y, 2.5, 1.2, eps, alpha))
    close(
        each(SimPOLoss, pc, pr, n, m, average=False, **options), simpo(x, y, 2.5, 1.2, eps, alpha)
    )
    found = gradients(SimPOLoss(reduction="sum", **options), x, y)
    close(found, gradients(lambda x, y: simpo(x, y, 2.5, 1.2, eps, alpha), x, y))


def test_simpo_defaults_and_limits():
    *_, x, y = averages()
    close(SimPOLoss()(x, y), simpo(x, y, 2.0, 0.5).mean())
    close(SimPOLoss(alpha=1e-9)(x, y), SimPOLoss()(x, y), rtol=1e-7)
    close(SimPOLoss(0.7, 0.0)(x, y), DPOLoss(0.7, reference_free=True)(x, y))
    close(SimPOLoss()(x + 1, y + 1), SimPOLoss()(x, y))
    assert not torch.isclose(SimPOLoss(alpha=0.3)(x + 1, y + 1), SimPOLoss(alpha=0.3)(x, y))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("alpha", [-2.0, 2.0, 1e-8])
def test_simpo_of_very_unlikely_answers(dtype, alpha):
    x = torch.tensor([-1e4, -500.0, -1e-3], dtype=dtype)
    loss = SimPOLoss(alpha=alpha, reduction="none")
    for inputs in itertools.product((x,), (x, x.flip(0))):
        assert loss(*inputs).isfinite().all()
        assert all(g.isfinite().all() for g in gradients(loss, *inputs))


def test_simpo_takes_what_sequence_logps_gives():
    logits = torch.randn(2, 4, 7, 5, dtype=F64)
    labels = torch.randint(5, (2, 4, 7))
    means = [sequence_logps(f, t, average=True) for f, t in zip(logits, labels, strict=True)]
    sums = [sequence_logps(f, t, return_lengths=True) for f, t in zip(logits, labels, strict=True)]
    (pc, n), (pr, m) = sums
    for loss in (SimPOLoss, ORPOLoss, LogicPreferenceLoss):
        inputs = (pc, pr, None, None, n, m) if loss is LogicPreferenceLoss else (pc, pr, n, m)
        close(loss(average=False)(*inputs), loss()(*means))


# ORPO.


def orpo(x, y, lam):
    """The odds-ratio term of TRL and Liger, with plain logarithms."""
    odds = (x - y) - (torch.log1p(-torch.exp(x)) - torch.log1p(-torch.exp(y)))
    return lam * -F.logsigmoid(odds)


def test_orpo_and_its_likelihood_terms():
    pc, pr, n, m, x, y = averages()
    close(ORPOLoss()(x, y), (orpo(x, y, 0.1) - x).mean())
    close(each(ORPOLoss, x, y, lam=0.7, nll="none"), orpo(x, y, 0.7))
    close(each(ORPOLoss, x, y, lam=0.7), orpo(x, y, 0.7) - x)
    sums = {"lam": 0.7, "average": False}
    close(each(ORPOLoss, pc, pr, n, m, nll="none", **sums), orpo(x, y, 0.7))
    close(each(ORPOLoss, pc, pr, n, m, **sums), orpo(x, y, 0.7) - x)
    # Liger: the mean over all chosen tokens.
    found = ORPOLoss(0.7, "token_mean", False)(pc, pr, n, m)
    close(found, orpo(x, y, 0.7).mean() + SequenceNLLLoss()(pc, n))
    assert not ORPOLoss(0.7, "token_mean", False).separable
    assert ORPOLoss().separable
    close(ORPOLoss(0.7).implicit_rewards(x, y), (0.7 * x, 0.7 * y))


def test_the_slope_of_the_log_odds():
    *_, x, y = averages()
    weight = torch.sigmoid(-((x - y) - (torch.log1p(-torch.exp(x)) - torch.log1p(-torch.exp(y)))))
    found = gradients(ORPOLoss(0.7, "none", reduction="sum"), x, y)
    close(found, (-0.7 * weight / (1 - torch.exp(x)), 0.7 * weight / (1 - torch.exp(y))))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("x", [-1e4, -50.0, -1.0, -1e-3, -3e-6])
@pytest.mark.parametrize("y", [-40.0, -0.5, -1e-5])
def test_orpo_at_odds_of_any_size(dtype, x, y):
    inputs = [torch.tensor([v], dtype=dtype) for v in (x, y)]
    with mpmath.workdps(60):
        lo_c, lo_r = (mpf(float(v)) - mpmath.log(1 - mpmath.exp(mpf(float(v)))) for v in (*inputs,))
        exact = float(mpmath.log1p(mpmath.exp(-(lo_c - lo_r))))
    rtol = 2e-5 if dtype == F32 else 1e-11
    found = ORPOLoss(1.0, "none")(*inputs)
    close(found, torch.tensor(exact, dtype=dtype), rtol, 1e-30)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_certain_answers_have_finite_odds(dtype):
    zero, x = torch.zeros(2, dtype=dtype), torch.tensor([-1.0, -30.0], dtype=dtype)
    losses = [ORPOLoss(), *(LogicPreferenceLoss(s) for s in ("ce_unl", "orpo", "un_cpo", "c_cpo"))]
    for loss, inputs in itertools.product(losses, ((zero, x), (x, zero), (zero, zero))):
        assert loss(*inputs).isfinite()
        assert all(g.isfinite().all() for g in gradients(loss, *inputs))
    close(ORPOLoss(1.0, "none")(zero, zero), torch.tensor(math.log(2), dtype=dtype), rtol=1e-6)
    most = 1e6 if dtype == F32 else 1e12
    assert ORPOLoss(1.0, "none")(x[:1], zero[:1]) == pytest.approx(
        math.log(most) + 0.5413, rel=1e-3
    )


def test_orpo_of_sums_would_be_cpo():
    pc, pr, *_ = answers(30.0)
    pc, pr = -pc.abs() - 50, -pr.abs() - 50
    close(ORPOLoss(1.0, "none")(pc, pr), CPOLoss(1.0, 0.0)(pc, pr))


# CPO.


def test_cpo_is_the_others_without_a_reference_plus_a_likelihood():
    pc, pr, *_, n, _ = answers()
    close(CPOLoss()(pc, pr), (logistic(0.1 * (pc - pr)) - pc).mean())
    others = {
        CPOLoss(0.7, 0.0): DPOLoss(0.7),
        CPOLoss(0.7, 0.0, label_smoothing=0.2): DPOLoss(0.7, 0.2),
        CPOLoss(0.7, 0.0, "hinge"): HingePreferenceLoss(0.7),
        CPOLoss(0.7, 0.0, "ipo"): IPOLoss(0.7),
    }
    for loss, other in others.items():
        assert loss(pc, pr) == other(pc, pr)
        loss.bc_coef = 0.3
        close(loss(pc, pr), other(pc, pr) - 0.3 * pc.mean())
        for nll in ("token_mean", "sequence_mean"):
            loss.nll = nll
            term = SequenceNLLLoss(nll.removesuffix("_mean"))(pc, n)
            close(loss(pc, pr, n), other(pc, pr) + 0.3 * term)
    assert not CPOLoss(nll="token_mean").separable
    assert CPOLoss(nll="sequence_mean").separable
    lost = torch.full_like(pc, -INF)
    assert CPOLoss(bc_coef=0.0)(pc, lost) == 0
    assert CPOLoss(bc_coef=0.0)(lost, pc) == INF
    assert CPOLoss(bc_coef=1.0)(pc * 0 + 1e3, pr) < -900


@pytest.mark.parametrize(
    "loss",
    [
        CPOLoss(0.7, 0.3),
        CPOLoss(0.7, 0.3, "hinge"),
        SimPOLoss(0.7),
        SimPOLoss(0.7, label_smoothing=0.7),
    ],
    ids=repr,
)
def test_the_lipschitz_constant_is_that_of_both(loss):
    grid = torch.linspace(-40, 40, 201, dtype=F64)
    pc, pr = (x.flatten() for x in torch.meshgrid(grid, grid, indexing="ij"))
    loss.reduction = "sum"
    chosen, rejected = gradients(loss, pc, pr)
    most = float((chosen**2 + rejected**2).sqrt().max())
    assert 0.9 * loss.properties().lipschitz < most <= loss.properties().lipschitz * (1 + 1e-12)


# Statements.

CLOSED = {
    "ce": lambda p, q: p / (1 - p),
    "ce_unl": lambda p, q: p * (1 - q) / (1 - p * (1 - q)),
    "cpo": lambda p, q: p / q,
    "orpo": lambda p, q: p * (1 - q) / ((1 - p) * q),
    "un_cpo": lambda p, q: (1 - (1 - p) * q) / ((1 - p) * q),
    "c_cpo": lambda p, q: p / ((1 - p) * q),
}
ROWS = {
    "TT": lambda p, q: p * q,
    "TF": lambda p, q: p * (1 - q),
    "FT": lambda p, q: (1 - p) * q,
    "FF": lambda p, q: (1 - p) * (1 - q),
}


@pytest.mark.parametrize("name", CLOSED)
@given(p=probabilities, q=probabilities)
def test_the_closed_forms_of_the_statements(name, p, q):
    x, y = (torch.tensor([v], dtype=F64).log() for v in (p, q))
    with mpmath.workdps(40):
        p, q = (mpmath.exp(mpf(float(v))) for v in (x, y))
        exact = float(mpmath.log1p(CLOSED[name](p, q) ** mpf(-0.7)))
    found = LogicPreferenceLoss(name, beta=0.7)(x, y)
    close(found, torch.tensor(exact, dtype=F64), 1e-8, 1e-12)
    if name == "ce":
        close(LogicPreferenceLoss(name)(x, y), -x.squeeze(), rtol=1e-9)
    if name == "ce_unl":
        expected = -x - torch.log1p(-torch.exp(y))
        close(LogicPreferenceLoss(name)(x, y), expected.squeeze(), rtol=1e-6)


SOME = [rows for k in (1, 2, 3) for rows in itertools.combinations(ROWS, k)]


@pytest.mark.parametrize("over", SOME, ids="+".join)
def test_rows_of_ones_own(over):
    *_, x, y = averages()
    p, q = x.exp(), y.exp()
    for under in SOME:
        n, d = (sum(ROWS[r](p, q) for r in rows) for rows in (over, under))
        found = each(LogicPreferenceLoss, x, y, name=None, numerator=over, denominator=under)
        close(found, -torch.log(n / (n + d)), rtol=1e-8)


@given(probabilities, probabilities)
def test_fewer_rows_that_fail_lower_the_loss(p, q):
    x, y = (torch.tensor([v], dtype=F64).log() for v in (p, q))
    found = {name: LogicPreferenceLoss(name)(x, y) for name in CLOSED}
    slack = 1 + 1e-9
    assert found["un_cpo"] <= found["c_cpo"] * slack
    assert found["c_cpo"] <= found["cpo"] * slack
    assert found["orpo"] <= found["ce_unl"] * slack


def test_statements_with_a_reference_and_without():
    *_, x, y = averages()
    *_, u, v = averages(1)
    close(each(LogicPreferenceLoss, x, y, u, v, name="cpo", beta=0.7),
          each(DPOLoss, x, y, u, v, beta=0.7))  # fmt: skip
    close(LogicPreferenceLoss()(x, y), ORPOLoss(1.0, "none")(x, y))
    without, reference = (
        each(LogicPreferenceLoss, *z, name="c_cpo").neg().expm1().neg() for z in ((x, y), (u, v))
    )
    odds = torch.logit(1 - without) - torch.logit(1 - reference)
    close(each(LogicPreferenceLoss, x, y, u, v, name="c_cpo"), -F.logsigmoid(odds), rtol=1e-8)


def test_probabilities_next_to_0_and_1_keep_their_digits():
    x = torch.tensor([math.log(1e-300), -1e-9], dtype=F64)
    close(each(LogicPreferenceLoss, x, x.flip(0), name="ce"), -x)
    found = each(LogicPreferenceLoss, x, x, name="orpo")
    close(found, torch.full_like(x, math.log(2)))
    found = each(LogicPreferenceLoss, x[1:], x[1:] - 30, name="un_cpo")
    close(found, torch.tensor([1e-9 * math.exp(-30)], dtype=F64), rtol=1e-7)


def test_any_shape():
    x = -torch.rand(2, 2, 3, dtype=F64)
    for loss in (SimPOLoss, ORPOLoss, CPOLoss, LogicPreferenceLoss):
        found = each(loss, *x)
        assert found.shape == (2, 3)
        close(found.flatten(), each(loss, *x.flatten(1)))


@pytest.mark.parametrize("loss", [ORPOLoss(), LogicPreferenceLoss("cpo")], ids=repr)
def test_what_is_not_there_is_not_looked_at(loss):
    *_, x, y = averages()
    weight = torch.arange(N, dtype=F64)
    spoiled = x.clone()
    spoiled[0] = 3.0
    close(loss(spoiled, y, weight=weight), loss(x, y, weight=weight))
