"""Further losses of pairs: their formulas, identities, edges and the conventions of other code."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf

from lossary import (
    AOTLoss,
    APOLoss,
    BCOPairLoss,
    CPOLoss,
    DiscoPOPLoss,
    DPOLoss,
    DPOPLoss,
    EXOLoss,
    HingePreferenceLoss,
    IPOLoss,
    NCALoss,
    RDPOLengthLoss,
    RobustDPOLoss,
    RPOLoss,
    SequenceNLLLoss,
    SimPOLoss,
    SparsePreferenceLoss,
    SPPOLoss,
    SRPOLoss,
)
from processes import run_processes
from test_preference import F32, F64, INF, NAN, N, answers, close, each, gradients, logistic, of_z

numbers = st.floats(-30, 30)
sigmoid = torch.sigmoid


def of_rewards(loss, a, b, beta=1.0, **options):
    """A loss as a function of beta times the two log-ratios."""
    zero = torch.zeros_like(a)
    return each(loss, a / beta, b / beta, zero, zero, beta=beta, **options)


def exo(z, eps):
    q = sigmoid(z)
    return q * (q.log() - math.log(1 - eps)) + (1 - q) * ((1 - q).log() - math.log(eps))


def disco(z, tau):
    m = sigmoid(z / tau)
    return (1 - m) * -F.logsigmoid(z) + m * torch.exp(-z)


#: The loss, and the formula of pc, pr, rc, rr and two lengths as the codes write it.
FORMULAS = {
    "ipo": (IPOLoss(0.3), lambda pc, pr, rc, rr, *_: ((pc - pr) - (rc - rr) - 1 / 0.6) ** 2),
    "ipo default": (IPOLoss(), lambda pc, pr, rc, rr, *_: ((pc - pr) - (rc - rr) - 5.0) ** 2),
    "ipo per token": (
        IPOLoss(0.3, length_normalize=True),
        lambda pc, pr, rc, rr, n, m: ((pc - rc) / n - (pr - rr) / m - 1 / 0.6) ** 2,
    ),
    "hinge": (
        HingePreferenceLoss(0.7, 2.0),
        lambda pc, pr, rc, rr, *_: torch.relu(2.0 - 0.7 * ((pc - pr) - (rc - rr))),
    ),
    "hinge default": (
        HingePreferenceLoss(),
        lambda pc, pr, rc, rr, *_: torch.relu(1 - 0.1 * ((pc - pr) - (rc - rr))),
    ),
    "slic": (
        HingePreferenceLoss(1.0, 0.5, 0.3, reference_free=True),
        lambda pc, pr, *_: torch.relu(0.5 - pc + pr) - 0.3 * pc,
    ),
    "exo": (EXOLoss(0.7, 0.2), lambda pc, pr, rc, rr, *_: exo(0.7 * (pc - rc - pr + rr), 0.2)),
    "exo default": (EXOLoss(), lambda pc, pr, rc, rr, *_: exo(0.1 * (pc - rc - pr + rr), 1e-3)),
    "nca": (
        NCALoss(0.7),
        lambda pc, pr, rc, rr, *_: (
            -F.logsigmoid(0.7 * (pc - rc))
            - 0.5 * F.logsigmoid(-0.7 * (pc - rc))
            - 0.5 * F.logsigmoid(-0.7 * (pr - rr))
        ),
    ),
    "nca default": (
        NCALoss(),
        lambda pc, pr, rc, rr, *_: (
            -F.logsigmoid(0.01 * (pc - rc))
            - 0.5 * F.logsigmoid(-0.01 * (pc - rc))
            - 0.5 * F.logsigmoid(-0.01 * (pr - rr))
        ),
    ),
    "bco": (
        BCOPairLoss(0.7, 0.4),
        lambda pc, pr, rc, rr, *_: (
            -F.logsigmoid(0.7 * (pc - rc) - 0.4) - F.logsigmoid(-(0.7 * (pr - rr) - 0.4))
        ),
    ),
    "bco default": (
        BCOPairLoss(),
        lambda pc, pr, rc, rr, *_: -F.logsigmoid(0.1 * (pc - rc)) - F.logsigmoid(-0.1 * (pr - rr)),
    ),
    "sppo hard": (
        SPPOLoss(),
        lambda pc, pr, rc, rr, *_: (pc - rc - 0.5 / 1e-3) ** 2 + (pr - rr + 0.5 / 1e-3) ** 2,
    ),
    "apo zero": (
        APOLoss(),
        lambda pc, pr, rc, rr, *_: (1 - sigmoid(0.1 * (pc - rc))) + sigmoid(0.1 * (pr - rr)),
    ),
    "apo down": (
        APOLoss(0.7, "down"),
        lambda pc, pr, rc, rr, *_: (
            sigmoid(0.7 * (pc - rc)) + (1 - sigmoid(0.7 * (pc - rc - pr + rr)))
        ),
    ),
    "discopop": (
        DiscoPOPLoss(),
        lambda pc, pr, rc, rr, *_: disco(0.05 * (pc - rc - pr + rr), 0.05),
    ),
    "discopop tau": (
        DiscoPOPLoss(0.7, 0.4),
        lambda pc, pr, rc, rr, *_: disco(0.7 * (pc - rc - pr + rr), 0.4),
    ),
    "dpop": (
        DPOPLoss(),
        lambda pc, pr, rc, rr, *_: (
            -F.logsigmoid(0.1 * ((pc - pr) - (rc - rr) - 50 * torch.clamp(rc - pc, min=0)))
        ),
    ),
    "rdpo": (
        RDPOLengthLoss(0.7, 0.05),
        lambda pc, pr, rc, rr, n, m: (
            -F.logsigmoid(0.7 * ((pc - pr) - (rc - rr)) + 0.05 * (n.double() - m.double()))
        ),
    ),
    "rdpo default": (
        RDPOLengthLoss(),
        lambda pc, pr, rc, rr, n, m: (
            -F.logsigmoid(0.1 * ((pc - pr) - (rc - rr)) + 0.2 * (n.double() - m.double()))
        ),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_formula(name):
    loss, plain = FORMULAS[name]
    *logps, n, m = answers()
    lengths = (n, m) if isinstance(loss, RDPOLengthLoss) or "token" in name else ()
    close(loss(*logps, *lengths), plain(*logps, n, m).mean())
    expected = gradients(lambda *x: plain(*x, n, m).mean() + 0.0 * sum(y.sum() for y in x), *logps)
    loss = loss if "slic" not in name else HingePreferenceLoss(1.0, 0.5, 0.3)
    if "slic" in name:
        zero = torch.zeros_like(logps[0])
        close(
            gradients(loss, *logps[:2], zero, zero)[:2],
            expected[:2],
        )
    else:
        close(gradients(loss, *logps, *lengths), expected)
        half = [x.bfloat16() for x in logps]
        found = loss(*half, *lengths)
        assert found.dtype == F32
        close(found.double(), plain(*(x.double() for x in half), n, m).mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [IPOLoss(0.3), HingePreferenceLoss(0.7), EXOLoss(0.7), DiscoPOPLoss(0.7), APOLoss(), NCALoss(),
     BCOPairLoss(), SPPOLoss(0.5), DPOPLoss(), AOTLoss(0.3), AOTLoss(0.3, False)],
    ids=repr,
)  # fmt: skip
def test_shifts_and_missing_references(loss):
    pc, pr, rc, rr, *_ = answers()
    expected = loss(pc, pr, rc, rr)
    shifted = loss(pc + 2.0, pr + 2.0, rc, rr)
    if isinstance(loss, IPOLoss | HingePreferenceLoss | EXOLoss | DiscoPOPLoss | AOTLoss):
        close(shifted, expected)
        close(loss(pc, pr, rc + 2.0, rr + 2.0), expected)
    else:
        assert not torch.isclose(shifted, expected)
    zero = torch.zeros_like(pc)
    close(loss(pc, pr), loss(pc, pr, zero, zero))
    assert not torch.isclose(loss(pc, pr), expected)


# One after the other.


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9, 1.0])
def test_ipo_has_a_finite_minimiser_for_certain_preferences_too(p):
    d = torch.linspace(-8, 8, 16001, dtype=F64)
    zero = torch.zeros_like(d)
    loss = IPOLoss(0.1, reduction="none")
    risk = p * loss(d, zero) + (1 - p) * loss(-d, zero)
    assert d[risk.argmin()].item() == pytest.approx((p - 0.5) / 0.1, abs=1e-3)


def test_ipo_is_regularised_by_tau_and_shows_it_as_beta():
    pc, pr, rc, rr, *_ = answers()
    chosen, rejected = IPOLoss(0.3).implicit_rewards(pc, pr, rc, rr)
    close(chosen, 0.3 * (pc - rc))
    close(rejected, 0.3 * (pr - rr))
    assert repr(IPOLoss(0.3)) == "IPOLoss(tau=0.3, reduction='mean')"
    # TRL up to 0.24 averaged the log-probabilities: the same.
    *logps, n, m = answers(10.0)
    averaged = [x / y for x, y in zip(logps, (n, m, n, m), strict=True)]
    close(IPOLoss(0.3, length_normalize=True)(*logps, n, m), IPOLoss(0.3)(*averaged))


def test_the_hinge_rests_at_and_beyond_its_margin():
    pc = torch.tensor([9.9, 10.0, 10.1, 1e4], dtype=F64)
    zero = torch.zeros_like(pc)
    close(each(HingePreferenceLoss, pc, zero), torch.tensor([0.01, 0.0, 0.0, 0.0], dtype=F64))
    slope, _ = gradients(HingePreferenceLoss(reduction="sum"), pc, zero)
    close(slope, torch.tensor([-0.1, 0.0, 0.0, 0.0], dtype=F64))


def test_the_four_hinges():
    pc, pr, rc, rr, n, m = answers()
    rrhf = HingePreferenceLoss(1.0, 0.0, reference_free=True)
    close(rrhf(pc / n, pr / m), torch.clamp(pr / m - pc / n, min=0).mean())
    slic = HingePreferenceLoss(1.0, 0.5, 0.3, reference_free=True)
    nll = SequenceNLLLoss("sum")(pc)
    close(slic(pc, pr), HingePreferenceLoss(1.0, 0.5)(pc, pr) + 0.3 * nll)
    close(slic(pc, pr, rc, rr), slic(pc, pr))
    # Unbounded below in real numbers, not in log-probabilities.
    assert slic(pc * 0 + 1e6, pr) < -1e5
    assert slic.properties().lower == -INF
    assert (each(HingePreferenceLoss, -pc.abs(), pr, nll_coef=0.3) >= 0).all()


@pytest.mark.parametrize("eps", [1e-3, 0.2, 0.5, 0.9])
def test_exo_is_a_divergence_with_its_zero_at_the_smoothed_label(eps):
    best = math.log((1 - eps) / eps)
    z = torch.linspace(-30, 30, 601, dtype=F64) + best
    values = of_z(EXOLoss, z, label_smoothing=eps)
    close(values[300], torch.tensor(0.0, dtype=F64))
    assert values.argmin() == 300
    (slope,) = gradients(lambda z: of_z(EXOLoss, z, label_smoothing=eps), z)
    close(slope, sigmoid(z) * sigmoid(-z) * (z - best), atol=1e-11)
    most = EXOLoss(label_smoothing=eps).properties().upper
    ends = of_z(EXOLoss, torch.tensor([-INF, -1e4, 1e4, INF], dtype=F64), label_smoothing=eps)
    close(ends, torch.tensor([-math.log(eps)] * 2 + [-math.log1p(-eps)] * 2, dtype=F64))
    assert most == pytest.approx(float(ends.max()))
    lost = torch.full((1,), -INF)
    assert gradients(EXOLoss(), lost, torch.zeros(1))[1] == 0


def test_nca_anchors_the_chosen_answer():
    a = torch.linspace(-5, 5, 10001, dtype=F64)
    values = of_rewards(NCALoss, a, torch.full_like(a, -1e3))
    assert a[values.argmin()].item() == pytest.approx(math.log(2), abs=1e-3)
    close(values.min(), torch.tensor(1.5 * math.log(3) - math.log(2), dtype=F64), rtol=1e-6)
    slopes = gradients(lambda a, b: of_rewards(NCALoss, a, b), a, a + 1.0)
    close(slopes, (1.5 * sigmoid(a) - 1, 0.5 * sigmoid(a + 1.0)))


@given(numbers, numbers, numbers)
def test_bco_is_above_dpo_for_every_threshold(a, b, delta):
    a, b = torch.tensor([a], dtype=F64), torch.tensor([b], dtype=F64)
    found = of_rewards(BCOPairLoss, a, b, delta=delta)
    assert found >= of_z(DPOLoss, a - b) * (1 - 1e-12)


def test_sppo_of_both_codes():
    pc, pr, rc, rr, *_ = answers()
    win, lose = torch.rand(2, N, dtype=F64)
    rho_w, rho_l = pc - rc, pr - rr

    def official(win, lose, eta=2.0):
        return ((rho_w - eta * (win - 0.5)) ** 2 + (rho_l - eta * (lose - 0.5)) ** 2) / 2

    logps = pc, pr, rc, rr
    options = {"beta": 0.5, "halve": True}
    close(each(SPPOLoss, *logps, win, lose, **options), official(win, lose))
    close(each(SPPOLoss, *logps, win, **options), official(win, 1 - win))
    close(each(SPPOLoss, *logps, torch.ones_like(win), beta=0.5), each(SPPOLoss, *logps, beta=0.5))
    # Zero at the targets, which for hard labels are twice the gap of IPO apart.
    target = (win - 0.5) / 0.5
    close(each(SPPOLoss, target, -target, 0 * win, 0 * win, win, beta=0.5), torch.zeros_like(win))
    zero = torch.zeros(1, dtype=F64)
    at_best = zero + 5.0, zero - 5.0, zero, zero
    assert SPPOLoss(0.1)(*at_best) == 0
    close(IPOLoss(0.1)(*at_best), torch.tensor(25.0, dtype=F64))
    leaf = win.clone().requires_grad_()
    assert not SPPOLoss()(*logps, leaf, leaf).requires_grad


def test_sppo_does_not_look_at_probabilities_of_weight_0():
    logps = answers()[:4]
    win = torch.rand(N, dtype=F64)
    weight = torch.arange(N, dtype=F64)
    spoiled = win.clone()
    spoiled[0] = NAN
    close(SPPOLoss(0.5)(*logps, spoiled, weight=weight), SPPOLoss(0.5)(*logps, win, weight=weight))


@given(numbers, numbers)
def test_apo_lies_between_0_and_2(a, b):
    a, b = torch.tensor([a], dtype=F64), torch.tensor([b], dtype=F64)
    for variant in ("zero", "down"):
        assert 0 < of_rewards(APOLoss, a, b, variant=variant) < 2
        assert of_rewards(APOLoss, 0 * a, 0 * b, variant=variant) == 1
    assert of_rewards(APOLoss, 0 * a + 60, 0 * b - 60) < 1e-20
    assert of_rewards(APOLoss, 0 * a - 60, 0 * b, variant="down") < 1.1
    far = of_rewards(APOLoss, 0 * a - 40, 0 * b - 120, variant="down")
    assert far < 1e-15


def aot(logps, paired, beta, eps):
    pc, pr, rc, rr = logps
    u, v = (pc - pr, rc - rr) if paired else (pc - rc, pr - rr)
    return logistic(beta * (u.sort().values - v.sort().values), eps)


@pytest.mark.parametrize("paired", [True, False])
def test_aot(paired):
    logps = torch.stack(answers()[:4])
    options = {"beta": 0.7, "paired": paired, "label_smoothing": 0.2}
    found = each(AOTLoss, *logps, **options)
    close(found, aot(logps, paired, 0.7, 0.2))
    close(each(AOTLoss, *logps, beta=0.7, paired=paired), aot(logps, paired, 0.7, 0.0))
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    alone = logps.clone()
    moved = [0, 1] if paired else [0, 2]
    alone[moved] = alone[moved][:, order]
    close(each(AOTLoss, *alone, **options), found)
    wrong = logps.clone()
    wrong[[0, 2] if paired else [0, 1]] = wrong[[0, 2] if paired else [0, 1]][:, order]
    assert not torch.isclose(each(AOTLoss, *wrong, **options).sum(), found.sum())
    assert found.sum() <= each(DPOLoss, *logps, beta=0.7, label_smoothing=0.2).sum()
    one = logps[:, :1]
    close(AOTLoss(**options)(*one), DPOLoss(0.7, 0.2)(*one))
    leaves = gradients(AOTLoss(reduction="sum", **options), *logps)
    close(leaves, gradients(lambda *x: aot(x, paired, 0.7, 0.2), *logps))


def test_aot_default_is_the_paired_form():
    logps = answers()[:4]
    close(AOTLoss()(*logps), aot(logps, True, 0.1, 0.0).mean())
    assert not torch.isclose(AOTLoss()(*logps), AOTLoss(paired=False)(*logps))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("tau", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("z", [-1e4, -1000.0, -30.0, -0.1, 0.0, 0.1, 30.0, 1000.0])
def test_discopop_far_out(dtype, tau, z):
    with mpmath.workdps(60):
        m = 1 / (1 + mpmath.exp(-mpf(z) / mpf(tau)))
        exact = (1 - m) * mpmath.log1p(mpmath.exp(-mpf(z))) + m * mpmath.exp(-mpf(z))
    x = torch.tensor([z], dtype=dtype)
    rtol, tiny = (1e-5, 1e-37) if dtype == F32 else (1e-12, 1e-300)
    close(of_z(DiscoPOPLoss, x, tau=tau), torch.tensor([float(exact)], dtype=dtype), rtol, tiny)
    (g,) = gradients(lambda x: of_z(DiscoPOPLoss, x, tau=tau), x)
    assert g.isfinite().all()


def test_discopop_is_dpo_on_one_side_and_exponential_on_the_other_and_rises_between():
    z = torch.tensor([-5.0, -2.0, 2.0, 5.0], dtype=F64)
    found = of_z(DiscoPOPLoss, z, tau=0.01)
    close(found[:2], of_z(DPOLoss, z[:2]))
    close(found[2:], torch.exp(-z[2:]))
    zero = torch.zeros(1, dtype=F64)
    close(of_z(DiscoPOPLoss, zero), zero + (1 + math.log(2)) / 2)
    (slope,) = gradients(lambda z: of_z(DiscoPOPLoss, z), zero)
    assert slope > 0
    lost = torch.full((1,), -INF)
    assert DiscoPOPLoss()(lost, torch.zeros(1)) == INF


@given(numbers, numbers, st.floats(0, 60))
def test_dpop_is_above_dpo_and_equal_where_the_chosen_answer_does_not_fall(a, b, lam):
    a, b = torch.tensor([a], dtype=F64), torch.tensor([b], dtype=F64)
    dpo = of_rewards(DPOLoss, a, b)
    found = of_rewards(DPOPLoss, a, b, lam=lam)
    assert found >= dpo
    if lam == 0 or a >= 0:
        assert found == dpo


def test_rdpo_without_difference_in_lengths_is_dpo_and_longer_winners_pull_less():
    logps = answers()[:4]
    n = torch.arange(1, N + 1)
    expected = each(DPOLoss, *logps, beta=0.3)
    close(each(RDPOLengthLoss, *logps, n, n, beta=0.3), expected)
    close(each(RDPOLengthLoss, *logps, n, n + 9, beta=0.3, alpha=0.0), expected)
    pull = [
        gradients(RDPOLengthLoss(0.3), *logps, longer, n)[0].abs() for longer in (n, n + 5, n + 20)
    ]
    assert (pull[0] > pull[1]).all()
    assert (pull[1] > pull[2]).all()
    small = n.to(torch.uint8)
    found = each(RDPOLengthLoss, *logps, small, small + 9, beta=0.3)
    close(found, each(RDPOLengthLoss, *logps, n, n + 9, beta=0.3))


def revised(seed=0):
    return 3 * torch.randn(12, N, dtype=F64, generator=torch.Generator().manual_seed(seed))


def srpo(x, beta, alpha):
    w, l = x[0] - x[2], x[1] - x[3]  # noqa: E741
    w_l, l_l, w_w, l_w = x[4:8] - x[8:12]
    generative = (1 - beta * (w_l - l_w + w - l)) ** 2
    first, second = (0.5 - beta * (w_l - l_l)) ** 2, (0.5 - beta * (w_w - l_w)) ** 2
    return (1 - alpha) * generative + alpha * (first + second)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_srpo(alpha):
    x = revised()
    close(each(SRPOLoss, *x, beta=0.7, alpha=alpha), srpo(x, 0.7, alpha))
    found = torch.stack(gradients(SRPOLoss(0.7, alpha, reduction="sum"), *x))
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(srpo(leaf, 0.7, alpha).sum(), leaf)
    close(found, expected)
    if alpha == 1.0:
        assert (found[:4] == 0).all()


def test_srpo_is_zero_where_the_three_brackets_are():
    x = torch.zeros(12, 1, dtype=F64)
    # R(w|l) - R(l|l) = R(w|w) - R(l|w) = 1/(2 beta), R(w|l) + R(w) - R(l|w) - R(l) = 1/beta.
    x[4], x[6], x[0] = 2.5, 2.5, 7.5
    assert SRPOLoss(0.2, 0.5)(*x).item() == pytest.approx((1 - 0.2 * 10) ** 2 / 2)
    x[0] = 2.5
    assert SRPOLoss(0.2, 0.5)(*x) == 0
    close(SRPOLoss()(*revised()), srpo(revised(), 0.1, 0.5).mean())


# Which are the same.

ZERO = torch.zeros(N, dtype=F64)
#: Losses that agree in value and gradient, on the same answers: of sums, references, lengths.
SAME = {
    "cDPO without smoothing": (DPOLoss(0.7, 0.0), DPOLoss(0.7), ()),
    "rDPO without flips": (RobustDPOLoss(0.7, 0.0), DPOLoss(0.7), ()),
    "rDPO without flips, per pair": (RobustDPOLoss(0.7), DPOLoss(0.7), (ZERO,)),
    "RPO without likelihood": (RPOLoss(0.7, 0.0), DPOLoss(0.7), ()),
    "DPOP without penalty": (DPOPLoss(0.7, 0.0), DPOLoss(0.7), ()),
    "alpha-divergence at 1": (DPOLoss(0.7, 0.0, "alpha", 1.0), DPOLoss(0.7), ()),
    "forward KL": (DPOLoss(0.7, 0.0, "alpha", 0.0), DPOLoss(0.7, 0.0, "forward_kl"), ()),
    "no label wrong": (DPOLoss(0.7), DPOLoss(0.7), (ZERO,)),
    "half of all labels wrong": (DPOLoss(0.7), DPOLoss(0.7, 0.5), (ZERO + 0.5,)),
}


@pytest.mark.parametrize("name", SAME)
def test_losses_that_are_the_same(name):
    loss, other, eps = SAME[name]
    logps = answers()[:4]
    further = {"label_smoothing": eps[0]} if eps else {}
    close(loss(*logps, **further), other(*logps))
    close(gradients(lambda *x: loss(*x, **further), *logps), gradients(other, *logps))


def test_losses_that_are_the_same_without_a_reference():
    pc, pr, *_, n, m = answers()
    dpo = DPOLoss(0.7, reference_free=True)
    pairs = (
        (SimPOLoss(0.7, 0.0), dpo, (pc / n, pr / m)),
        (CPOLoss(0.7, 0.0), dpo, (pc, pr)),
        (CPOLoss(0.7, 0.0, "hinge"), HingePreferenceLoss(0.7), (pc, pr)),
        (CPOLoss(0.7, 0.0, "ipo"), IPOLoss(0.7), (pc, pr)),
    )
    for loss, other, logps in pairs:
        close(loss(*logps), other(*logps))
        close(gradients(loss, *logps), gradients(other, *logps))
    sums = SimPOLoss(0.7, 0.0, average=False)
    close(sums(pc, pr, n, m), dpo(pc / n, pr / m))
    close(sums(pc, pr, n, m), DPOLoss(0.7, length_normalize=True)(pc, pr, None, None, n, m))


@pytest.mark.parametrize("eps", [1e-3, 0.2, 0.5, 0.9])
def test_cdpo_and_exo_are_the_two_divergences_of_the_same_distributions(eps):
    z = torch.linspace(-9, 9, 37, dtype=F64)
    model, label = (torch.stack((p, 1 - p)) for p in (sigmoid(z), torch.full_like(z, 1 - eps)))

    def divergence(p, q):
        return (p * (p.log() - q.log())).sum(0)

    close(of_z(EXOLoss, z, label_smoothing=eps), divergence(model, label))
    entropy = -(label * label.log()).sum(0)
    close(of_z(DPOLoss, z, label_smoothing=eps) - entropy, divergence(label, model))


# Masks of tokens.


def tokens(seed=0):
    """Log-probabilities of tokens of pairs, 4 chosen and 5 rejected ones, and masks."""
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(N, 4 + i % 2, dtype=F64, generator=generator) for i in range(4)]
    masks = [torch.rand(N, 4 + i, dtype=F64, generator=generator) for i in range(2)]
    return *draw, *masks


def sparse(pc, pr, rc, rr, mc, mr, beta, lam):
    z = beta * ((mc * (pc - rc)).sum(1) - (mr * (pr - rr)).sum(1))
    return -F.logsigmoid(z) + lam * (mc.abs().sum(1) + mr.abs().sum(1))


def test_the_loss_of_masked_tokens():
    x = tokens()
    close(SparsePreferenceLoss()(*x), sparse(*x, 0.1, 0.01).mean())
    found = each(SparsePreferenceLoss, *x, beta=0.7, lam=0.2)
    close(found, sparse(*x, 0.7, 0.2))
    # The masks have gradients, too.
    loss = SparsePreferenceLoss(0.7, 0.2, reduction="sum")
    close(gradients(loss, *x), gradients(lambda *x: sparse(*x, 0.7, 0.2), *x))
    eps = torch.rand(N, dtype=F64)
    price = 0.2 * (x[4].sum(1) + x[5].sum(1))
    other = each(SparsePreferenceLoss, *(x[i] for i in (1, 0, 3, 2, 5, 4)), beta=0.7, lam=0.2)
    smooth = SparsePreferenceLoss(0.7, 0.2, reduction="none")(*x, eps)
    close(smooth - price, (1 - eps) * (found - price) + eps * (other - price))
    half = [y.bfloat16() for y in x]
    assert SparsePreferenceLoss()(*half).dtype == F32
    close(
        SparsePreferenceLoss()(*half).double(),
        sparse(*(y.double() for y in half), 0.1, 0.01).mean(),
        rtol=1e-5,
    )


def test_all_tokens_at_no_price_are_dpo_and_none_are_log_2():
    *logps, mc, mr = tokens()
    sums = [x.sum(1) for x in logps]
    for ones in ((torch.ones_like(mc), torch.ones_like(mr)), ((mc >= 0), (mr >= 0))):
        found = each(SparsePreferenceLoss, *logps, *ones, beta=0.7, lam=0.0)
        close(found, each(DPOLoss, *sums, beta=0.7))
    zero = 0 * mc, 0 * mr
    close(SparsePreferenceLoss()(*logps, *zero), torch.tensor(math.log(2), dtype=F64))
    *of_logps, of_mask, _ = gradients(SparsePreferenceLoss(reduction="sum"), *logps, *zero)
    assert all((g == 0).all() for g in of_logps)
    close(of_mask, 0.01 - 0.05 * (logps[0] - logps[2]))


@pytest.mark.parametrize("wrong", [NAN, -INF])
def test_tokens_of_mask_0_may_hold_anything(wrong):
    *logps, mc, mr = tokens()
    mc[:, 1] = mr[0, 2] = 0.0
    expected = SparsePreferenceLoss()(*logps, mc, mr)
    logps[0][:, 1] = logps[1][0, 2] = logps[3][0, 2] = wrong
    assert torch.isclose(SparsePreferenceLoss()(*logps, mc, mr), expected)
    for g in gradients(SparsePreferenceLoss(), *logps, mc, mr):
        assert g.isfinite().all()
    logps[0][0, 0] = NAN
    assert SparsePreferenceLoss()(*logps, mc, mr).isnan()
    kept = torch.arange(N) > 0
    mc[0] = 5.0
    few = SparsePreferenceLoss()(*logps, mc, mr, weight=kept)
    close(few, SparsePreferenceLoss()(*(x[1:] for x in (*logps, mc, mr))))


# Claims about the policy's two.


@pytest.mark.parametrize(
    ("loss", "sharp"),
    [
        (HingePreferenceLoss(0.7), True),
        (EXOLoss(0.7, 1e-3), False),
        (EXOLoss(0.7, 0.5), True),
        (NCALoss(0.7), True),
        (BCOPairLoss(0.7, 0.3), True),
        (APOLoss(0.7), True),
        (APOLoss(0.7, "down"), False),
        (DiscoPOPLoss(0.7, 0.05), False),
        (DiscoPOPLoss(0.7, 0.01), False),
        (DPOPLoss(0.7, 3.0), True),
    ],
    ids=repr,
)
def test_the_lipschitz_constant_is_that_of_the_policys_two(loss, sharp):
    loss.reduction = "sum"
    grid = torch.linspace(-40, 40, 401, dtype=F64)
    most = 0.0
    for scale in (1.0, 0.05):
        pc, pr = (scale * x.flatten() for x in torch.meshgrid(grid, grid, indexing="ij"))
        chosen, rejected = gradients(loss, pc, pr)
        most = max(most, float((chosen**2 + rejected**2).sqrt().max()))
    bound = loss.properties().lipschitz
    assert most <= bound * (1 + 1e-12)
    if sharp:
        assert most > 0.98 * bound


@pytest.mark.parametrize("loss", [NCALoss(), BCOPairLoss(), APOLoss(), APOLoss(variant="down"),
                                  SPPOLoss(0.01), HingePreferenceLoss(), IPOLoss(), DPOPLoss(),
                                  DPOPLoss(lam=0.0)], ids=repr)  # fmt: skip
def test_answers_that_have_become_impossible_give_no_nan(loss):
    x, lost = torch.tensor([-3.0]), torch.tensor([-INF])
    for inputs in ((x, lost, x, x), (lost, x, x, x)):
        assert not loss(*inputs).isnan()


def test_several_answers_to_a_prompt():
    logps = torch.randn(4, 2, 3, dtype=F64)
    for name, (loss, plain) in FORMULAS.items():
        if not name.startswith("rdpo") and "token" not in name:
            found = type(loss)(reduction="none")(*logps)
            assert found.shape == (2, 3), name
            if "default" in name:
                close(found, plain(*logps))


# The running threshold.


def test_the_running_mean_is_that_of_all_rewards():
    loss = BCOPairLoss(0.5, "running")
    seen = []
    for seed in range(3):
        pc, pr, rc, rr, *_ = answers(seed=seed, n=4 + seed)
        a, b = 0.5 * (pc - rc), 0.5 * (pr - rr)
        found = loss(pc, pr, rc, rr)
        seen += [a, b]
        delta = torch.cat(seen).mean()
        close(loss.delta_mean.double(), delta, rtol=1e-6)
        # Of this batch, too: before the loss.
        expected = (-F.logsigmoid(a - delta) - F.logsigmoid(delta - b)).mean()
        close(found, expected, rtol=1e-6)
    assert loss.delta_count == sum(len(x) for x in seen)
    loss.reset()
    assert (loss.delta_mean, loss.delta_count) == (0, 0)


def test_what_does_not_count_in_the_running_mean():
    pc, pr, rc, rr, *_ = answers()
    kept = torch.arange(N) % 2 == 0
    loss, other = BCOPairLoss(0.5, "running"), BCOPairLoss(0.5, "running")
    loss(*(x[kept] for x in (pc, pr, rc, rr)))
    close(
        other(pc.masked_fill(~kept, NAN), pr, rc, rr, weight=kept),
        loss(pc[kept], pr[kept], rc[kept], rr[kept], update=False),
    )
    assert other.delta_count == loss.delta_count == N
    close(other.delta_mean, loss.delta_mean)
    # An answer that has become impossible: its partner counts, and training goes on.
    lost = torch.where(torch.arange(N) == 0, -INF, pc)
    other.reset()
    other(lost, pr, rc, rr)
    assert other.delta_count == 2 * N - 1
    expected = torch.cat((0.5 * (pc - rc)[1:], 0.5 * (pr - rr))).mean()
    close(other.delta_mean.double(), expected, rtol=1e-6)


def test_when_the_running_mean_is_written():
    logps = answers()[:4]
    loss = BCOPairLoss(0.5, "running")
    loss(*logps, update=False)
    loss.eval()(*logps)
    loss.train()
    with torch.no_grad():
        loss(*logps)
    with pytest.raises(ValueError, match="policy_rejected_logps"):
        loss(logps[0], logps[1][:2], *logps[2:])
    assert loss.delta_count == 0
    loss(*logps)
    assert loss.delta_count == 2 * N
    close(loss.eval()(*logps), BCOPairLoss(0.5, float(loss.delta_mean))(*logps))
    assert not list(BCOPairLoss(0.5).buffers())
    assert set(loss.state_dict()) == {"delta_mean", "delta_count"}


def test_many_batches_lose_nothing():
    loss = BCOPairLoss(1.0, "running")
    loss.delta_count += 2**40
    loss.delta_mean += 1000.0
    zero = torch.zeros(4, dtype=F64)
    for _ in range(5):
        loss(zero, zero, zero, zero)
    assert loss.delta_count == 2**40 + 40
    close(loss.delta_mean, torch.tensor(1000.0))


def _two_processes(rank, world_size):
    logps = torch.stack(answers(n=7)[:4])
    own = logps[:, :2] if rank == 0 else logps[:, 2:]
    loss, whole = BCOPairLoss(0.5, "running"), BCOPairLoss(0.5, "running")
    found = loss(*own)
    whole.process_group = torch.distributed.new_group([0])
    other = torch.distributed.new_group([1])
    if rank == 1:
        whole.process_group = other
    whole(*logps)
    close(loss.delta_mean, whole.delta_mean, rtol=1e-6)
    assert loss.delta_count == 14
    close(found, BCOPairLoss(0.5, float(loss.delta_mean))(*own), rtol=1e-6)


def test_the_running_mean_is_the_same_on_every_process(tmp_path):
    run_processes(_two_processes, 2, tmp_path)
