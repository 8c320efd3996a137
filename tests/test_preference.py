"""The preference losses: their identities, their edges, and the conventions of published code."""

import inspect
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from torch import Tensor
from torch.func import grad, vmap

from lossary import (
    DPOLoss,
    Loss,
    PairwisePreferenceLoss,
    RobustDPOLoss,
    RPOLoss,
    SequenceNLLLoss,
    sequence_logps,
)
from lossary.testing import check_loss

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

INF, NAN = math.inf, math.nan
F32, F64 = torch.float32, torch.float64
N = 6
DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")
numbers = st.floats(-30, 30)
smoothings = st.floats(0, 0.99)


def close(found, expected, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def answers(scale=1.0, seed=0, n=N):
    """Log-probabilities of a policy and a reference, chosen and rejected, and lengths."""
    generator = torch.Generator().manual_seed(seed)
    logps = scale * torch.randn(4, n, dtype=F64, generator=generator) - 3 * scale
    return *logps, *torch.randint(1, 30, (2, n), generator=generator)


def each(loss, *inputs, **options):
    return loss(reduction="none", **options)(*inputs)


def of_z(loss, z, beta=1.0, **options):
    """A loss as a function of z."""
    zero = torch.zeros_like(z)
    return each(loss, z / beta, zero, zero, zero, beta=beta, **options)


def gradients(loss, *inputs):
    leaves = [x.clone().requires_grad_(x.dtype.is_floating_point) for x in inputs]
    floating = [x for x in leaves if x.requires_grad]
    return torch.autograd.grad(loss(*leaves).sum(), floating)


# The formulas, as one would write them down.


def score(rho, f_divergence="reverse_kl", alpha=0.5):
    return {
        "reverse_kl": lambda: rho,
        "forward_kl": lambda: -torch.exp(-rho),
        "js": lambda: F.logsigmoid(rho),
        "alpha": lambda: torch.exp((alpha - 1) * rho) / (alpha - 1),
    }[f_divergence]()


def logistic(z, eps=0.0):
    return -(1 - eps) * F.logsigmoid(z) - eps * F.logsigmoid(-z)


@pytest.mark.parametrize("f_divergence", DIVERGENCES)
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("normalize", [False, True])
def test_dpo_is_the_plain_formula(f_divergence, eps, normalize):
    pc, pr, rc, rr, chosen, rejected = answers()
    lengths = (chosen, rejected) if normalize else ()
    loss = DPOLoss(0.7, eps, f_divergence, 0.3, length_normalize=normalize)

    def plain(pc, pr, rc, rr, *lengths):
        ratios = pc - rc, pr - rr
        if normalize:
            ratios = ratios[0] / lengths[0], ratios[1] / lengths[1]
        chosen, rejected = (score(x, f_divergence, 0.3) for x in ratios)
        d = chosen - rejected
        return logistic(0.7 * d, eps).mean()

    inputs = pc, pr, rc, rr, *lengths
    close(loss(*inputs), plain(*inputs))
    close(gradients(loss, *inputs), gradients(plain, *inputs))


def test_robust_dpo_is_the_plain_formula():
    pc, pr, rc, rr, *_ = answers()
    z = 0.7 * ((pc - rc) - (pr - rr))
    eps = 0.2
    plain = ((1 - eps) * -F.logsigmoid(z) - eps * -F.logsigmoid(-z)) / (1 - 2 * eps)
    close(each(RobustDPOLoss, pc, pr, rc, rr, beta=0.7, flip_rate=eps), plain)


@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_rpo_is_the_plain_formula(eps):
    pc, pr, rc, rr, lengths, _ = answers()
    options = {"beta": 0.7, "eta": 0.3, "label_smoothing": eps}
    dpo = logistic(0.7 * ((pc - rc) - (pr - rr)), eps)
    close(each(RPOLoss, pc, pr, rc, rr, **options), dpo - 0.3 * 0.7 * pc)
    found = each(RPOLoss, pc, pr, rc, rr, lengths, nll="sequence_mean", **options)
    close(found, dpo - 0.3 * pc / lengths)
    found = each(RPOLoss, pc, pr, rc, rr, lengths, nll="token_mean", **options)
    close(found, dpo - 0.3 * pc * N / lengths.sum())


def test_defaults():
    pc, pr, rc, rr, *_ = answers()
    d = (pc - rc) - (pr - rr)
    close(DPOLoss()(pc, pr, rc, rr), logistic(0.1 * d).mean())
    close(DPOLoss(f_divergence="alpha")(pc, pr, rc, rr),
          logistic(0.1 * (score(pc - rc, "alpha") - score(pr - rr, "alpha"))).mean())  # fmt: skip
    robust = (0.9 * logistic(0.1 * d) - 0.1 * logistic(-0.1 * d)) / 0.8
    close(RobustDPOLoss()(pc, pr, rc, rr), robust.mean())
    close(RPOLoss()(pc, pr, rc, rr), (logistic(0.01 * d) - 0.005 * 0.01 * pc).mean())


# Identities.


@given(numbers, st.floats(0, 0.49))
def test_robust_dpo_averaged_over_flips_is_dpo(z, eps):
    z = torch.tensor([z], dtype=F64)
    ahead, behind = (of_z(RobustDPOLoss, x, flip_rate=eps) for x in (z, -z))
    scale = 1e-12 * float(1 + ahead.abs() + behind.abs())
    close((1 - eps) * ahead + eps * behind, of_z(DPOLoss, z), atol=scale)


@given(numbers, smoothings)
def test_exchanging_the_answers_is_exchanging_eps(z, eps):
    z = torch.tensor([z], dtype=F64)
    found = of_z(DPOLoss, z, label_smoothing=eps)
    if eps > 0.01:
        close(found, of_z(DPOLoss, -z, label_smoothing=1 - eps), rtol=1e-9)
    close(found, (1 - eps) * of_z(DPOLoss, z) + eps * of_z(DPOLoss, -z))


@pytest.mark.parametrize("f_divergence", DIVERGENCES)
def test_exchanging_the_answers_of_any_divergence_is_exchanging_eps(f_divergence):
    pc, pr, rc, rr, *_ = answers()
    options = {"beta": 0.7, "f_divergence": f_divergence}
    found = each(DPOLoss, pc, pr, rc, rr, label_smoothing=0.2, **options)
    close(found, each(DPOLoss, pr, pc, rr, rc, label_smoothing=0.8, **options))


def test_without_smoothing_flips_and_likelihood_all_are_dpo():
    inputs = answers()[:4]
    expected = each(DPOLoss, *inputs, beta=0.3)
    assert (each(RobustDPOLoss, *inputs, beta=0.3, flip_rate=0.0) == expected).all()
    assert (each(RPOLoss, *inputs, beta=0.3, eta=0.0) == expected).all()
    smooth = each(RPOLoss, *inputs, beta=0.3, eta=0.0, label_smoothing=0.2)
    assert (smooth == each(DPOLoss, *inputs, beta=0.3, label_smoothing=0.2)).all()


@pytest.mark.parametrize("f_divergence", DIVERGENCES)
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_equal_log_ratios_give_log_2(f_divergence, eps):
    x = torch.linspace(-9, 0, 7, dtype=F64)
    y = torch.linspace(-5, -1, 7, dtype=F64)
    found = each(DPOLoss, x, x, y, y, label_smoothing=eps, f_divergence=f_divergence)
    close(found, torch.full_like(x, math.log(2)))
    close(each(RobustDPOLoss, x, x, y, y, flip_rate=eps), torch.full_like(x, math.log(2)))


@pytest.mark.parametrize(
    "loss",
    [DPOLoss(0.7), DPOLoss(0.7, 0.2), RobustDPOLoss(0.7, 0.2), RPOLoss(0.7, 0.0)],
    ids=repr,
)
def test_shifts_of_both_log_probabilities_change_nothing(loss):
    pc, pr, rc, rr, *_ = answers()
    c = torch.randn(N, dtype=F64)
    expected = loss(pc, pr, rc, rr)
    close(loss(pc + c, pr + c, rc, rr), expected)
    close(loss(pc, pr, rc + c, rr + c), expected)
    assert not torch.isclose(loss(pc + c, pr, rc, rr), expected)


def test_shifts_are_noticed_by_rpo_and_by_other_divergences():
    pc, pr, rc, rr, *_ = answers()
    for loss in (RPOLoss(0.7, 0.1), DPOLoss(0.7, 0.0, "js"), DPOLoss(0.7, 0.0, "forward_kl")):
        assert not torch.isclose(loss(pc + 1, pr + 1, rc, rr), loss(pc, pr, rc, rr))


def test_closed_forms_of_the_gradients():
    inputs = answers()[:4]
    pc, pr, rc, rr = inputs
    beta, eps, eta = 0.7, 0.2, 0.3
    z = beta * ((pc - rc) - (pr - rr))
    slope = -beta * torch.sigmoid(-z)
    one = torch.ones_like(z)
    options = {"beta": beta, "reduction": "sum"}

    def expect(loss, slope, extra=0.0):
        close(gradients(loss, *inputs), (slope + extra, -slope, -slope, slope))

    expect(DPOLoss(**options), slope)
    expect(DPOLoss(label_smoothing=eps, **options), slope + beta * eps)
    expect(RobustDPOLoss(flip_rate=eps, **options), slope - beta * eps / (1 - 2 * eps))
    expect(RPOLoss(eta=eta, **options), slope, -eta * beta)
    lengths = torch.arange(1, N + 1, dtype=F64)
    for nll, share in (("sequence_mean", 1 / lengths), ("token_mean", N / lengths.sum() * one)):
        found = gradients(RPOLoss(eta=eta, nll=nll, **options), *inputs, lengths)
        close(found[:4], (slope - eta * share, -slope, -slope, slope))


@pytest.mark.parametrize("eps", [0.05, 0.3, 0.5, 0.9])
def test_the_minimum_of_smoothed_dpo(eps):
    least = math.log((1 - eps) / eps)
    entropy = -eps * math.log(eps) - (1 - eps) * math.log(1 - eps)
    z = torch.linspace(-8, 8, 1601, dtype=F64) + least
    values = of_z(DPOLoss, z, label_smoothing=eps)
    close(values[800], torch.tensor(entropy, dtype=F64))
    assert values.argmin() == 800
    assert DPOLoss(label_smoothing=eps).properties().lower == pytest.approx(entropy, rel=1e-12)
    assert RPOLoss(eta=0.0, label_smoothing=eps).properties().lower == pytest.approx(entropy)


@pytest.mark.parametrize("p", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4])
def test_the_population_minimisers(p, eps):
    z = torch.linspace(-6, 6, 12001, dtype=F64)

    def best(share, **options):
        risk = share * of_z(z=z, **options) + (1 - share) * of_z(z=-z, **options)
        return torch.sigmoid(z[risk.argmin()]).item()

    smooth = p * (1 - eps) + (1 - p) * eps
    assert best(p, loss=DPOLoss, label_smoothing=eps) == pytest.approx(smooth, abs=1e-3)
    # With w preferred at p and labels then flipped: the rate with which w is labelled preferred.
    assert best(smooth, loss=RobustDPOLoss, flip_rate=eps) == pytest.approx(p, abs=1e-3)


def test_robust_dpo_is_unbounded_below_and_its_gradient_never_vanishes():
    eps = 0.2
    z = torch.tensor([1e2, 1e4, 1e6], dtype=F64)
    close(of_z(RobustDPOLoss, z, flip_rate=eps), -z * eps / (1 - 2 * eps))
    z = torch.linspace(-1e3, 1e3, 401, dtype=F64)
    slopes = vmap(grad(lambda z: of_z(RobustDPOLoss, z, flip_rate=eps)))(z)
    assert (slopes <= -eps / (1 - 2 * eps)).all()
    assert RobustDPOLoss(flip_rate=eps).properties().lower == -INF
    assert RobustDPOLoss(flip_rate=0.0).properties().lower == 0.0


def test_the_price_of_no_bias_is_variance():
    z = torch.linspace(-9, 9, 19, dtype=F64)
    for eps in (0.0, 0.2, 0.4):
        slope = vmap(grad(lambda z, eps=eps: of_z(RobustDPOLoss, z, flip_rate=eps)))
        close(slope(z) + slope(-z), torch.full_like(z, -1 / (1 - 2 * eps)))


def test_robust_dpo_tends_to_a_linear_loss():
    z = torch.linspace(-5, 5, 11, dtype=F64)
    eps = 0.5 - 1e-9
    close((1 - 2 * eps) * of_z(RobustDPOLoss, z, flip_rate=eps), -z / 2, atol=1e-7)


def test_rpo_keeps_the_chosen_answer_rising():
    eta, beta = 0.3, 0.7
    pc = torch.tensor([1e3, 1e4], dtype=F64)
    zero = torch.zeros_like(pc)
    loss = RPOLoss(beta, eta, reduction="sum")
    chosen, rejected, *_ = gradients(loss, pc, zero, zero, zero)
    close(chosen, torch.full_like(pc, -eta * beta))
    assert (rejected < 1e-300).all()
    # For log-probabilities, which are not above 0, it is bounded.
    pc, pr, rc, rr, *_ = (-x.abs() for x in answers(50.0))
    assert (each(RPOLoss, pc, pr, rc, rr, beta=beta, eta=eta) >= 0).all()


def test_rpo_of_lengths_that_agree():
    inputs = answers()[:4]
    lengths = torch.full((N,), 7)
    close(
        *(RPOLoss(0.5, 0.2, nll=nll)(*inputs, lengths) for nll in ("token_mean", "sequence_mean"))
    )
    close(
        RPOLoss(0.5, 0.2, nll="sequence_mean")(*inputs, torch.ones(N)),
        RPOLoss(0.5, 0.4)(*inputs),
    )


@pytest.mark.parametrize(("alpha", "name"), [(0.0, "forward_kl"), (1.0, "reverse_kl")])
def test_alpha_divergences_hold_the_others(alpha, name):
    inputs = answers()[:4]
    expected = each(DPOLoss, *inputs, beta=0.7, f_divergence=name)
    close(each(DPOLoss, *inputs, beta=0.7, f_divergence="alpha", alpha=alpha), expected)
    near = each(DPOLoss, *inputs, beta=0.7, f_divergence="alpha", alpha=alpha + 1e-9)
    close(near, expected, rtol=1e-6)


def test_alpha_2_is_chi_square():
    pc, pr, rc, rr, *_ = answers()
    d = (torch.exp(pc - rc) - 1) - (torch.exp(pr - rr) - 1)
    close(each(DPOLoss, pc, pr, rc, rr, f_divergence="alpha", alpha=2.0), logistic(0.1 * d))


@pytest.mark.parametrize("a", [1e-12, 1e-7, -1e-7, 1e-4])
def test_alpha_next_to_1_cancels_nothing(a):
    rho = torch.linspace(-20, 20, 9, dtype=F64)
    zero = torch.zeros_like(rho)
    loss = DPOLoss(1.0, 0.0, "alpha", 1.0 + a, reduction="none")
    a = loss.alpha - 1.0  # 1 + a has lost some of its digits
    with mpmath.workdps(50):
        exact = [mpmath.log1p(mpmath.exp(-mpmath.expm1(a * mpf(float(x))) / a)) for x in rho]
    close(loss(rho, zero, zero, zero), torch.tensor([float(x) for x in exact], dtype=F64), 1e-12)


def test_dpo_is_linear_for_a_small_beta():
    pc, pr, rc, rr, *_ = answers()
    d = (pc - rc) - (pr - rr)
    found = (each(DPOLoss, pc, pr, rc, rr, beta=1e-6, label_smoothing=0.3) - math.log(2)) / 1e-6
    close(found, (0.3 - 0.5) * d, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", [DPOLoss(0.7), DPOLoss(0.7, 0.2), RobustDPOLoss(0.7, 0.2),
                                  RPOLoss(0.7, 0.2), RPOLoss(0.7, 0.2, 0.3)], ids=repr)  # fmt: skip
def test_convex_in_all_log_probabilities_together(loss):
    a, b = (torch.stack(answers(10.0, seed, 200)[:4]) for seed in (1, 2))
    loss.reduction = "none"
    assert (loss(*((a + b) / 2)) <= (loss(*a) + loss(*b)) / 2 + 1e-12).all()


@pytest.mark.parametrize(("f_divergence", "alpha"), [("forward_kl", 0), ("js", 0), ("alpha", 0.5),
                                                     ("alpha", 2.0)])  # fmt: skip
def test_not_convex_in_all_of_them_for_other_divergences(f_divergence, alpha):
    a, b = (torch.stack(answers(3.0, seed, 500)[:4]) for seed in (1, 2))
    loss = DPOLoss(0.7, 0.0, f_divergence, alpha, reduction="none")
    excess = loss(*((a + b) / 2)) - (loss(*a) + loss(*b)) / 2
    assert excess.max() > 1e-3
    assert loss.properties().convex is None


@pytest.mark.parametrize(
    "loss",
    [
        DPOLoss(0.7),
        DPOLoss(0.7, 0.2),
        DPOLoss(0.7, 0.9),
        DPOLoss(0.7, 0.2, "js"),
        RobustDPOLoss(0.7, 0.2),
    ],
    ids=repr,
)
def test_the_lipschitz_constant_is_that_of_the_policys_two(loss):
    z = torch.linspace(-60, 60, 241, dtype=F64)
    zero = torch.zeros_like(z)
    loss.reduction = "sum"
    most = 0.0
    for inputs in ((z, zero, zero, zero), (zero, z, zero, zero), (z, -z, zero, zero)):
        chosen, rejected, *_ = gradients(loss, *inputs)
        most = max(most, float((chosen**2 + rejected**2).sqrt().max()))
    bound = loss.properties().lipschitz
    assert most <= bound * (1 + 1e-12)
    if loss.__class__ is RobustDPOLoss or loss.f_divergence == "reverse_kl":
        assert most == pytest.approx(bound, rel=1e-6)
    assert DPOLoss(0.7, 0.0, "forward_kl").properties().lipschitz is None


@pytest.mark.parametrize(
    ("loss", "rates"),
    [
        (RPOLoss(0.7, 0.2), (0.7, 0.14)),
        (RPOLoss(0.7, 0.2, 0.1), (0.63, 0.14)),
        (RPOLoss(0.7, 0.2, nll="sequence_mean"), (0.7, 0.2)),
    ],
    ids=repr,
)
def test_the_lipschitz_constant_of_rpo(loss, rates):
    steep, extra = rates
    assert loss.properties().lipschitz == pytest.approx(2**0.5 * steep + extra)


@pytest.mark.parametrize("f_divergence", DIVERGENCES)
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_what_is_not_claimed_has_a_reason(f_divergence, alpha):
    p = DPOLoss(0.7, 0.1, f_divergence, alpha).properties()
    claims = ("convex", "lower", "upper", "lipschitz", "smoothness")
    assert {name for name in claims if getattr(p, name) is None} == set(p.unknown)
    if f_divergence == "reverse_kl" or (f_divergence, alpha) == ("alpha", 1.0):
        assert p == DPOLoss(0.7, 0.1).properties()
        assert not p.unknown
    # What the reasons say of the bounds, where both answers move.
    far = torch.tensor([-60.0, 60.0], dtype=F64)
    inputs = torch.cartesian_prod(far, far).T
    values = each(DPOLoss, *inputs, beta=0.7, f_divergence=f_divergence, alpha=alpha)
    assert values.min() < 1e-3
    assert values.max() > 30


# The conventions of published code, written plainly.


def trl_sigmoid(pc, pr, rc, rr, beta, label_smoothing):
    """The authors' code, and TRL up to 0.24."""
    logits = (pc - pr) - (rc - rr)
    return (
        -F.logsigmoid(beta * logits) * (1 - label_smoothing)
        - F.logsigmoid(-beta * logits) * label_smoothing
    )


def trl_robust(pc, pr, rc, rr, beta, label_smoothing):
    logits = (pc - pr) - (rc - rr)
    return (
        -F.logsigmoid(beta * logits) * (1 - label_smoothing)
        + F.logsigmoid(-beta * logits) * label_smoothing
    ) / (1 - 2 * label_smoothing)


def trl_divergence(pc, pr, rc, rr, name, alpha=None):
    """The scores of TRL 1.x: what it multiplies by beta."""
    chosen, rejected = pc - rc, pr - rr
    if name == "forward_kl":
        return torch.exp(-rejected) - torch.exp(-chosen)
    if name == "js":
        return F.logsigmoid(chosen) - F.logsigmoid(rejected)
    power = alpha - 1
    return (torch.exp(power * chosen) - torch.exp(power * rejected)) / power


def f_dpo_divergence(pc, pr, rc, rr, name, a=None):
    """The scores of the f-DPO paper, and of TRL up to 0.24."""
    chosen, rejected = pc - rc, pr - rr
    if name == "js":
        return chosen - rejected - (F.softplus(chosen) - F.softplus(rejected))
    return (torch.exp(-a * rejected) - torch.exp(-a * chosen)) / a


def tulu_norm(pc, pr, rc, rr, chosen_lengths, rejected_lengths, beta):
    """open-instruct's dpo_norm: the averages of the log-probabilities into DPO."""
    pc, rc = pc / chosen_lengths, rc / chosen_lengths
    pr, rr = pr / rejected_lengths, rr / rejected_lengths
    return -F.logsigmoid(beta * ((pc - pr) - (rc - rr)))


def rpo_official(pc, pr, rc, rr, beta, eta):
    return trl_sigmoid(pc, pr, rc, rr, beta, 0.0) - eta * beta * pc


def rpo_official_average(pc, pr, rc, rr, lengths, beta, eta):
    return trl_sigmoid(pc, pr, rc, rr, beta, 0.0) - eta * pc / lengths


def trl_rpo_alpha(pc, pr, rc, rr, token_nll, beta, rpo_alpha):
    """TRL's: the likelihood is one mean over all chosen tokens of the batch."""
    return (trl_sigmoid(pc, pr, rc, rr, beta, 0.0) + rpo_alpha * token_nll.mean()).mean()


def test_codes_of_dpo():
    inputs = answers()[:4]
    for eps in (0.0, 0.1):
        options = {"beta": 0.3, "label_smoothing": eps}
        close(each(DPOLoss, *inputs, **options), trl_sigmoid(*inputs, **options))
    found = each(RobustDPOLoss, *inputs, beta=0.3, flip_rate=0.1)
    close(found, trl_robust(*inputs, 0.3, 0.1))
    # The copy without the factor: smaller by 1 - 2 eps.
    z = 0.3 * ((inputs[0] - inputs[1]) - (inputs[2] - inputs[3]))
    close(0.8 * found, -F.logsigmoid(z) * 0.9 + F.logsigmoid(-z) * 0.1)


@pytest.mark.parametrize("name", ["forward_kl", "js"])
def test_codes_of_divergences(name):
    inputs = answers()[:4]
    found = each(DPOLoss, *inputs, beta=0.3, f_divergence=name)
    close(found, logistic(0.3 * trl_divergence(*inputs, name)))
    if name == "js":
        close(found, logistic(0.3 * f_dpo_divergence(*inputs, name)))


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.3, 0.9, 1.5, 2.0])
def test_codes_of_alpha_divergences(alpha):
    inputs = answers()[:4]
    found = each(DPOLoss, *inputs, beta=0.3, f_divergence="alpha", alpha=alpha)
    close(found, logistic(0.3 * trl_divergence(*inputs, "alpha", alpha)))
    close(found, logistic(0.3 * f_dpo_divergence(*inputs, "alpha", 1 - alpha)))


def test_codes_of_length_normalisation():
    inputs = answers(10.0)
    found = each(DPOLoss, *inputs, beta=5.0, length_normalize=True)
    close(found, tulu_norm(*inputs, beta=5.0))


def test_codes_of_rpo():
    logits = torch.randn(2, 4, 7, 5, dtype=F64)
    labels = torch.randint(5, (2, 4, 7))
    mask = torch.arange(7) >= torch.tensor([[1, 2, 3, 4], [2, 2, 2, 2]]).unsqueeze(2)
    (pc, lengths), (pr, _) = (
        sequence_logps(f, y, m, return_lengths=True)
        for f, y, m in zip(logits, labels, mask, strict=True)
    )
    rc, rr = torch.randn(2, 4, dtype=F64) - 5
    close(each(RPOLoss, pc, pr, rc, rr, beta=0.05), rpo_official(pc, pr, rc, rr, 0.05, 0.005))
    found = each(RPOLoss, pc, pr, rc, rr, lengths, beta=0.5, eta=0.2, nll="sequence_mean")
    close(found, rpo_official_average(pc, pr, rc, rr, lengths, 0.5, 0.2))
    token_nll = F.cross_entropy(
        logits[0, :, :-1].transpose(1, 2), labels[0, :, 1:], reduction="none"
    )[mask[0, :, 1:]]
    assert len(set(lengths.tolist())) > 1
    found = RPOLoss(0.1, 0.8, nll="token_mean")(pc, pr, rc, rr, lengths)
    close(found, trl_rpo_alpha(pc, pr, rc, rr, token_nll, 0.1, 0.8))
    both = DPOLoss(0.1)(pc, pr, rc, rr) + 0.8 * SequenceNLLLoss()(pc, lengths)
    close(found, both)
    # Iterative reasoning preference optimisation: NLL/length + alpha DPO.
    irpo = (-pc / lengths + 2.0 * trl_sigmoid(pc, pr, rc, rr, 0.1, 0.0)).mean()
    close(2.0 * RPOLoss(0.1, 1 / 2.0, nll="sequence_mean")(pc, pr, rc, rr, lengths), irpo)


# Numbers at the edges.


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("z", [-1e4, -800.0, -100.0, -20.0, 20.0, 80.0, 1e4])
def test_far_margins_keep_their_digits(dtype, z):
    x = torch.tensor([z], dtype=dtype)
    rtol = 1e-6 if dtype == F32 else 1e-14
    tiny = torch.finfo(dtype).smallest_normal
    with mpmath.workdps(50):
        near, far = (mpmath.log1p(mpmath.exp(s * mpf(z))) for s in (-1, 1))
        dpo, smooth = float(near), float(mpf(0.9) * near + mpf(0.1) * far)
        robust = float((mpf(0.9) * near - mpf(0.1) * far) / mpf(0.8))
    for found, exact in (
        (of_z(DPOLoss, x), dpo),
        (of_z(DPOLoss, x, label_smoothing=0.1), smooth),
        (of_z(RobustDPOLoss, x, flip_rate=0.1), robust),
    ):
        close(found, torch.tensor([exact], dtype=dtype), rtol=rtol, atol=tiny)
    (g,) = gradients(lambda x: of_z(DPOLoss, x), x)
    close(g, torch.tensor([-float(1 / (1 + mpmath.exp(mpf(z))))], dtype=dtype), rtol, tiny)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    ("f_divergence", "alpha"),
    [("forward_kl", 0.5), ("alpha", -3.0), ("alpha", 0.5), ("alpha", 1 + 1e-6), ("alpha", 4.0)],
)
def test_divergences_do_not_overflow(dtype, f_divergence, alpha):
    rho = torch.tensor(
        [-1e9, -3e4, -800.0, -300.0, -90.0, 90.0, 300.0, 800.0, 3e4, 1e9], dtype=dtype
    )
    zero = torch.zeros_like(rho)
    for eps in (0.0, 0.1):
        loss = DPOLoss(0.1, eps, f_divergence, alpha, reduction="none")
        for inputs in ((rho, zero), (zero, rho), (rho, -rho), (rho, rho), (-rho, rho)):
            assert loss(*inputs).isfinite().all()
            assert all(g.isfinite().all() for g in gradients(loss, *inputs))


@pytest.mark.parametrize(("dtype", "most"), [(F32, 80.0), (F64, 700.0)])
def test_where_the_exponents_stop(dtype, most):
    inside, outside = torch.tensor([1 - most], dtype=dtype), torch.tensor([-1 - most], dtype=dtype)
    zero = torch.zeros(1, dtype=dtype)
    loss = DPOLoss(1.0, 0.0, "forward_kl")
    rtol = 1e-4 if dtype == F32 else 1e-12
    close(loss(inside, zero), torch.exp(-inside).squeeze(), rtol=rtol)
    close(loss(outside, zero), torch.tensor(math.exp(most), dtype=dtype), rtol=rtol)
    (steep, _), (flat, _) = (gradients(loss, x, zero) for x in (inside, outside))
    close(steep, -torch.exp(-inside), rtol=rtol)
    assert flat == 0
    chi = DPOLoss(1.0, 0.0, "alpha", 2.0)
    close(chi(zero, -inside), torch.exp(-inside).squeeze(), rtol=rtol)
    close(chi(zero, -outside), torch.tensor(math.exp(most), dtype=dtype), rtol=rtol)


def test_slopes_of_exponentials_far_down_keep_their_digits():
    rho = torch.tensor([40.0, 60.0])
    (g, _) = gradients(DPOLoss(1.0, 0.0, "forward_kl", reduction="sum"), rho, torch.zeros(2))
    # s is 0 there, up to what is lost: z = 1.
    expected = -torch.sigmoid(torch.tensor(-1.0)) * torch.exp(-rho)
    close(g, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_cast_before_the_difference(dtype):
    logps = torch.randint(-1010, -990, (4, N)).to(dtype)
    wide = logps.double()
    pc, _, rc, _ = wide
    assert len(wide.unique()) > 3
    cases = [
        (DPOLoss(0.1, reduction="none"), ()),
        (DPOLoss(0.1, 0.0, "js", reduction="none"), ()),
        (RobustDPOLoss(0.1, 0.1, reduction="none"), ()),
        (RPOLoss(0.1, 0.1, reduction="none"), ()),
        (RPOLoss(0.1, 0.1, nll="token_mean", reduction="none"), (torch.arange(300, 300 + N),)),
    ]
    for loss, lengths in cases:
        found = loss(*logps, *lengths)
        assert found.dtype == F32
        close(found.double(), loss(*wide, *lengths), rtol=1e-6, atol=1e-6)
    rewards = DPOLoss(0.1).implicit_rewards(*logps)
    assert rewards[0].dtype == F32
    close(rewards[0].double(), 0.1 * (pc - rc), rtol=1e-6, atol=1e-6)
    # Where the reference is of another size, the difference is no number of that precision.
    logps = torch.stack((*logps[:2], logps[2] / 4 + 1, logps[3] / 4))
    loss = DPOLoss()
    for found, (policy, reference) in zip(loss.log_ratios(*logps), ((0, 2), (1, 3)), strict=True):
        assert found.dtype == F32
        close(found.double(), logps[policy].double() - logps[reference].double())
    assert all(x.dtype == F32 for x in loss.log_ratios(*logps[:2]))


def test_dtypes_may_differ():
    pc, pr, rc, rr, *_ = answers()
    low = [x.to(torch.bfloat16) for x in (pc, pr)]
    found = DPOLoss()(*low, rc.float(), rr.float())
    assert found.dtype == F32
    close(found.double(), DPOLoss()(*(x.double() for x in low), rc, rr), rtol=1e-5)
    assert DPOLoss()(pc, pr, rc.float(), rr.float()).dtype == F64


@pytest.mark.parametrize(
    "loss",
    [
        DPOLoss(),
        DPOLoss(0.1, 0.1),
        RobustDPOLoss(0.1, 0.0),
        RobustDPOLoss(),
        RPOLoss(),
        RPOLoss(eta=0.0),
    ],
    ids=repr,
)
def test_answers_that_have_become_impossible(loss):
    x, lost = torch.tensor([-3.0]), torch.tensor([-INF])
    assert loss(lost, x, x, x) == INF
    found = loss(x, lost, x, x)
    if getattr(loss, "label_smoothing", 0.0):
        assert found == INF
    elif getattr(loss, "flip_rate", 0.0):
        assert found == -INF
    else:
        close(found, torch.tensor(3.0 * getattr(loss, "eta", 0.0) * loss.beta), rtol=1e-6)
    assert not gradients(loss, x, lost, x, x)[0].isnan().any()


# The base class.


class Squared(PairwisePreferenceLoss):
    def pair_loss(self, chosen, rejected):
        return (self.beta * (chosen - rejected) - 1.0).square()


class Averaged(PairwisePreferenceLoss):
    """A loss without a reference, of further inputs."""

    def per_sample(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        chosen_lengths: Tensor,
        margin: Tensor | None = None,
    ) -> Tensor:
        z = self.beta * (policy_chosen_logps / chosen_lengths - policy_rejected_logps)
        return z if margin is None else z - margin


def test_a_loss_of_ones_own_writes_one_method():
    pc, pr, rc, rr, *_ = answers()
    expected = (0.3 * ((pc - rc) - (pr - rr)) - 1).square()
    close(Squared(0.3)(pc, pr, rc, rr), expected.mean())
    names = ["policy_chosen_logps", "policy_rejected_logps"]
    names += ["reference_chosen_logps", "reference_rejected_logps"]
    given = dict(zip(names, (pc, pr, rc, rr), strict=True))
    close(Squared(0.3)(**given), expected.mean())
    parameters = list(inspect.signature(Squared.forward).parameters)
    assert parameters == ["self", *names, "label_smoothing", "weight", "normalizer"]
    assert list(inspect.signature(Squared).parameters) == ["beta", "reference_free", "reduction"]

    def inputs(n, dtype, generator):
        return tuple(torch.randn(4, n, dtype=dtype, generator=generator))

    check_loss(Squared(0.3), inputs, compile=False)


def test_further_inputs_are_checked_by_their_names():
    pc, pr, *_, lengths, _ = answers()
    loss = Averaged(2.0)
    close(loss(pc, pr, lengths), (2.0 * (pc / lengths - pr)).mean())
    close(loss(pc, pr, lengths, pc[:, None].T), (2.0 * (pc / lengths - pr) - pc).mean())
    with pytest.raises(ValueError, match=r"^policy_rejected_logps: .*\(6,\), got \(5,\)"):
        loss(pc, pr[1:], lengths)
    with pytest.raises(ValueError, match=r"^chosen_lengths: .*>= 1, got -1"):
        loss(pc, pr, -lengths.clamp(max=1))


def test_the_base_itself_has_no_loss():
    pc, pr, rc, rr, *_ = answers()
    base = PairwisePreferenceLoss()
    assert isinstance(base, Loss)
    with pytest.raises(AttributeError, match="pair_loss"):
        base(pc, pr, rc, rr)


@pytest.mark.parametrize(
    ("loss", "free"),
    [
        (Squared(0.3), Squared(0.3, reference_free=True)),
        (DPOLoss(0.3), DPOLoss(0.3, reference_free=True)),
        (DPOLoss(0.3, 0.1, "js"), DPOLoss(0.3, 0.1, "js", reference_free=True)),
    ],
    ids=["base", "dpo", "js"],
)
def test_without_reference(loss, free):
    pc, pr, rc, rr, *_ = answers()
    zero = torch.zeros(N, dtype=F64)
    expected = loss(pc, pr, zero, zero)
    close(loss(pc, pr), expected)
    close(free(pc, pr), expected)
    close(free(pc, pr, rc, rr), expected)
    assert not torch.isclose(loss(pc, pr, rc, rr), expected)
    close(free.implicit_rewards(pc, pr, rc, rr), (0.3 * pc, 0.3 * pr))
    # What is not used may be infinite, and gets no gradient.
    lost = torch.full_like(rc, NAN)
    close(free(pc, pr, lost, lost), expected)


def test_implicit_rewards():
    pc, pr, rc, rr, *_ = answers()
    leaf = pc.clone().requires_grad_()
    chosen, rejected = RobustDPOLoss(0.3).implicit_rewards(leaf, pr, rc, rr)
    assert not chosen.requires_grad
    close(chosen, 0.3 * (pc - rc))
    close(rejected, 0.3 * (pr - rr))
    close(DPOLoss(0.3).implicit_rewards(pc, pr), (0.3 * pc, 0.3 * pr))
    assert not DPOLoss(0.3).implicit_rewards(pc, leaf)[1].requires_grad
    # Neither lengths nor a divergence change them.
    for loss in (DPOLoss(0.3, length_normalize=True), DPOLoss(0.3, 0.1, "forward_kl")):
        close(loss.implicit_rewards(pc, pr, rc, rr), (chosen, rejected))
    with pytest.raises(ValueError, match=r"^reference_rejected_logps: .*got None"):
        DPOLoss().implicit_rewards(pc, pr, rc)
    with pytest.raises(ValueError, match=r"^policy_rejected_logps: .*\(6,\), got \(1, 6\)"):
        DPOLoss().implicit_rewards(pc, pr[None], rc, rr)


def test_the_reference_is_not_detached():
    inputs = answers()[:4]
    for loss in (DPOLoss(), RobustDPOLoss(), RPOLoss()):
        _, pr, rc, rr = gradients(loss, *inputs)
        close(rr, -pr)
        assert (rc > 0).all()


# Lengths.


def test_lengths_are_of_each_answer():
    pc, pr, rc, rr, chosen, rejected = answers()
    loss = DPOLoss(5.0, length_normalize=True)
    expected = logistic(5.0 * ((pc - rc) / chosen - (pr - rr) / rejected)).mean()
    for dtype in (torch.int32, torch.int64, torch.uint8, F32, F64):
        close(loss(pc, pr, rc, rr, chosen.to(dtype), rejected.to(dtype)), expected)
    names = {"chosen_lengths": chosen, "rejected_lengths": rejected}
    close(loss(pc, pr, rc, rr, **names), expected)
    close(loss(pc, pr, **names), logistic(5.0 * (pc / chosen - pr / rejected)).mean())
    assert loss(pc.float(), pr.float(), rc.float(), rr.float(), chosen, rejected).dtype == F32


@pytest.mark.parametrize("dtype", [torch.int64, F32, F64])
def test_lengths_of_weight_0_may_be_anything(dtype):
    *logps, chosen, rejected = answers()
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0, 1.0], dtype=F64)
    kept = weight > 0
    clean = [x[kept] for x in (*logps, chosen, rejected)]
    lengths = [torch.where(kept, x, 0).to(dtype) for x in (chosen, rejected)]
    lost = [x.masked_fill(~kept, NAN) for x in logps]
    for loss, k in (
        (DPOLoss(5.0, length_normalize=True), 2),
        (RPOLoss(0.5, 0.2, nll="sequence_mean"), 1),
    ):
        found = loss(*lost, *lengths[:k], weight=weight)
        close(found, loss(*clean[: 4 + k], weight=weight[kept]))
        leaves = [x.clone().requires_grad_() for x in lost]
        gs = torch.autograd.grad(loss(*leaves, *lengths[:k], weight=weight), leaves)
        assert all(g.isfinite().all() and (g[~kept] == 0).all() for g in gs)


def test_where_lengths_cannot_be_looked_at_none_is_below_1():
    x = torch.tensor([[-2.0], [-2.0]])
    lengths = torch.tensor([[0], [1]])
    found = vmap(DPOLoss(5.0, length_normalize=True))(x, x + 1, x, x, lengths, lengths)
    close(found[0], found[1])
    found = vmap(RPOLoss(0.5, 0.2, nll="token_mean"))(x, x + 1, x, x, lengths)
    close(found[0], found[1])


def test_the_token_mean_couples_the_batch():
    *logps, lengths, _ = answers()
    loss = RPOLoss(0.5, 0.2, nll="token_mean")
    assert not loss.separable
    assert RPOLoss().separable
    assert RPOLoss(nll="sequence_mean").separable
    values = each(RPOLoss, *logps, lengths, beta=0.5, eta=0.2, nll="token_mean")
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 1.0], dtype=F64)
    # A weight scales a pair's own value; its tokens stay.
    close(loss(*logps, lengths, weight=weight), (weight * values).sum() / weight.sum())
    other = lengths.clone()
    other[1] += 50
    assert not torch.isclose(
        loss(*logps, other, weight=weight), loss(*logps, lengths, weight=weight)
    )


def test_any_shape():
    logps = torch.randn(4, 2, 3, dtype=F64)
    lengths = torch.randint(1, 9, (2, 2, 3))
    for loss, k in (
        (DPOLoss(0.3, length_normalize=True), 2),
        (RPOLoss(0.3, 0.1, nll="token_mean"), 1),
        (RobustDPOLoss(0.3), 0),
    ):
        loss.reduction = "none"
        found = loss(*logps, *lengths[:k])
        assert found.shape == (2, 3)
        close(found.flatten(), loss(*logps.flatten(1), *lengths[:k].flatten(1)))


def test_what_is_shown():
    assert repr(DPOLoss()) == "DPOLoss(reduction='mean')"
    assert repr(RPOLoss(eta=0.2, nll="sequence_mean")) == (
        "RPOLoss(eta=0.2, nll='sequence_mean', reduction='mean')"
    )
    expected = ["beta", "label_smoothing", "f_divergence", "alpha", "reference_free"]
    expected += ["length_normalize", "reduction"]
    assert list(inspect.signature(DPOLoss).parameters) == expected
    assert list(inspect.signature(RobustDPOLoss).parameters) == ["beta", "flip_rate", "reduction"]
