"""Evidential losses against mpmath and loops over experts, at any evidence, and their promises."""

import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Dirichlet
from torch.nn.functional import cross_entropy, one_hot

from lossary import (
    DempsterShaferCombination,
    EvidentialEngagementWeighting,
    EvidentialLoss,
    TLCLoss,
)
from lossary.evidential import _LARGE, _digamma_excess, _divergence_term, _sum_of_others

F64 = torch.float64
INF, NAN = math.inf, math.nan
seeds = st.integers(0, 10**6)
KINDS = ("digamma", "log", "mse")
EVIDENCE = {
    "softplus": lambda z: mpmath.log1p(mpmath.exp(z)),
    "relu": lambda z: max(z, mpmath.mpf(0)),
    "exp": lambda z: mpmath.exp(min(max(z, -10), 10)),
    "identity": lambda z: z,
}


def close(a, b, rtol=1e-12, atol=1e-13):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=rtol, atol=atol
    )


def draw(n=5, k=4, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(n, k, dtype=F64, generator=generator)
    return z, torch.randint(k, (n,), generator=generator)


# In fifty digits, as the formulas stand.


def kl(alpha):
    with mpmath.workdps(60):
        s, k = mpmath.fsum(alpha), len(alpha)
        out = mpmath.loggamma(s) - mpmath.loggamma(k)
        for a in alpha:
            out += (a - 1) * (mpmath.digamma(a) - mpmath.digamma(s)) - mpmath.loggamma(a)
        return out


def edl(row, y, kind, evidence, weight):
    with mpmath.workdps(60):
        alpha = [EVIDENCE[evidence](mpmath.mpf(z)) + 1 for z in row]
        s = mpmath.fsum(alpha)
        if kind == "log":
            value = mpmath.log(s) - mpmath.log(alpha[y])
        elif kind == "digamma":
            value = mpmath.digamma(s) - mpmath.digamma(alpha[y])
        else:
            value = mpmath.fsum(
                ((k == y) - a / s) ** 2 + a * (s - a) / (s**2 * (s + 1))
                for k, a in enumerate(alpha)
            )
        without = [mpmath.mpf(1) if k == y else a for k, a in enumerate(alpha)]
        return float(value + weight * kl(without))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("evidence", EVIDENCE)
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_evidential_is_what_the_formula_says(kind, evidence, weight):
    for seed, scale in enumerate((0.5, 3.0, 20.0)):
        z, y = draw(3, 4, seed, scale)
        z = z.abs() if evidence == "identity" else z
        loss = EvidentialLoss(kind, evidence, weight, reduction="none")
        want = [edl(row, int(t), kind, evidence, weight) for row, t in zip(z.tolist(), y)]  # noqa: B905
        close(loss(z, y), want, rtol=1e-11)
        # Without a target, for every class: what probabilities are weighted with.
        every = [[edl(row, k, kind, evidence, weight) for k in range(4)] for row in z.tolist()]
        close(loss.per_sample(z, None), every, rtol=1e-11)
        q = torch.rand(3, 4, dtype=F64) + 0.1
        q = q / q.sum(1, keepdim=True)
        close(loss(z, q), (q * torch.tensor(every, dtype=F64)).sum(1), rtol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e3, 1e8, 1e15])
def test_evidential_at_much_evidence(kind, size):
    # For the target: a value like 1/size, all digits of which are right.
    e = torch.tensor([[size, 0.5, 2.0]], dtype=F64)
    loss = EvidentialLoss(kind, "identity", 0.0)
    for y in (0, 1):
        want = edl(e[0].tolist(), y, kind, "identity", 0.0)
        close(loss(e, torch.tensor([y])), want, rtol=1e-12, atol=0.0)
    # For a rival, with the divergence.
    want = edl(e[0].tolist(), 1, kind, "identity", 1.0)
    close(EvidentialLoss(kind, "identity")(e, torch.tensor([1])), want, rtol=1e-13)


@pytest.mark.parametrize("size", [1e-9, 1e-5, 0.1])
def test_divergence_of_little_evidence(size):
    e = torch.tensor([[0.7, size, 2 * size, 0.0]], dtype=F64)
    loss, alone = (EvidentialLoss("log", "identity", w) for w in (1.0, 0.0))
    y = torch.tensor([0])
    want = kl([1 + mpmath.mpf(x) for x in (0, size, 2 * size, 0)])
    close(loss(e, y) - alone(e, y), float(want), rtol=1e-12, atol=5e-15)


def test_no_evidence():
    e = torch.zeros(1, 5, dtype=F64)
    y = torch.tensor([2])
    want = {"log": math.log(5), "digamma": 1 + 1 / 2 + 1 / 3 + 1 / 4, "mse": 0.8 * (1 + 1 / 6)}
    for kind, value in want.items():
        close(EvidentialLoss(kind, "identity")(e, y), value)
        close(EvidentialLoss(kind, "relu")(-1 - e, y), value)


@given(seeds)
def test_log_is_cross_entropy_and_digamma_is_above(seed):
    z, y = draw(6, 4, seed)
    options = {"kl_weight": 0.0, "reduction": "none"}
    log_alpha = torch.log1p(z.exp().clamp(max=math.exp(10), min=math.exp(-10)))
    of_log = EvidentialLoss("log", "exp", **options)(z, y)
    close(of_log, cross_entropy(log_alpha, y, reduction="none"))
    assert (EvidentialLoss("digamma", "exp", **options)(z, y) > of_log).all()


def test_mse_is_an_expectation():
    z, y = draw(2, 3, 4, 1.0)
    alpha = 1 + z.exp()
    p = Dirichlet(alpha).sample((200_000,))
    brier = (one_hot(y, 3) - p).square().sum(-1).mean(0)
    close(EvidentialLoss("mse", "exp", 0.0, reduction="none")(z, y), brier, rtol=1e-2)


def test_divergence_does_not_know_the_evidence_of_the_target():
    z, y = draw(6, 4, 2)
    both = [EvidentialLoss("log", kl_weight=w, reduction="none") for w in (1.0, 0.0)]
    more = z + 9.0 * one_hot(y, 4)
    divergence, after = (both[0](x, y) - both[1](x, y) for x in (z, more))
    close(divergence, after)
    assert (divergence > 0).all()


def test_gradient_of_the_log_form():
    e = draw(4, 3, 1)[0].abs().requires_grad_()
    y = torch.tensor([0, 1, 2, 0])
    loss = EvidentialLoss("log", "identity", 0.0, reduction="sum")
    (g,) = torch.autograd.grad(loss(e, y), e)
    alpha = e.detach() + 1
    close(g, 1 / alpha.sum(1, keepdim=True) - one_hot(y, 3) / alpha)


def test_relu_evidence_has_no_gradient_where_all_logits_are_negative():
    z = -torch.rand(3, 4, dtype=F64) - 0.1
    z.requires_grad_()
    y = torch.tensor([0, 1, 2])
    assert (torch.autograd.grad(EvidentialLoss(evidence="relu")(z, y), z)[0] == 0).all()
    assert (torch.autograd.grad(EvidentialLoss()(z, y), z)[0] != 0).all()


@pytest.mark.parametrize("step", [0, 3, 10, 25])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_annealing(step, as_tensor):
    z, y = draw()
    given_step = torch.tensor(step) if as_tensor else step
    want = EvidentialLoss(kl_weight=min(1.0, step / 10))(z, y)
    close(EvidentialLoss()(z, y, given_step), want)
    close(EvidentialLoss(annealing_steps=20)(z, y, step=2 * given_step), want)
    close(EvidentialLoss()(z, y), EvidentialLoss(kl_weight=1.0)(z, y))
    close(EvidentialLoss()(z.exp().log_softmax(1).exp(), z.softmax(1), step), EvidentialLoss(
        kl_weight=min(1.0, step / 10))(z.exp().log_softmax(1).exp(), z.softmax(1)))  # fmt: skip


@pytest.mark.parametrize("axis", [1, 0, -1])
def test_any_class_axis(axis):
    z = torch.randn(4, 3, 5, dtype=F64)
    rows = z.movedim(axis, -1)
    k = rows.shape[-1]
    y = torch.randint(k, rows.shape[:-1])
    y[0, 0] = -100
    q = torch.softmax(torch.randn(rows.shape, dtype=F64), -1)
    loss = EvidentialLoss(class_dim=axis, reduction="none")
    alone = EvidentialLoss(reduction="none")
    close(loss(z, y), alone(rows.reshape(-1, k), y.reshape(-1)).view(y.shape))
    soft = alone(rows.reshape(-1, k), q.reshape(-1, k)).view(y.shape)
    close(loss(z, q.movedim(-1, axis)), soft)


def test_half_precision_is_computed_in_full():
    z, y = draw(20, 5)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = z.to(dtype).requires_grad_()
        out = EvidentialLoss()(x, y)
        assert out.dtype is torch.float32
        close(out, EvidentialLoss()(x.double(), y), rtol=1e-6)
        assert torch.autograd.grad(out, x)[0].dtype is dtype


def test_functions_of_large_parameters():
    """The series meet the functions, in value and in slope, and nothing is lost far out."""
    near = [0.0, 1e-9, 0.3, 1.0, 2.0, _LARGE - 1e-9, _LARGE, _LARGE + 1e-9, 3.0, 5.0, 20.0, 40.0]
    for log_a in near:
        x = torch.tensor(log_a, dtype=F64, requires_grad=True)
        with mpmath.workdps(60):
            a = mpmath.exp(mpmath.mpf(log_a))
            excess = mpmath.digamma(a) - mpmath.mpf(log_a)
            term = (a - 1) * mpmath.digamma(a) - mpmath.loggamma(a) - a
            slopes = (
                a * mpmath.polygamma(1, a) - 1,
                a * ((a - 1) * mpmath.polygamma(1, a) - 1),
            )
        for fn, want, slope in zip(
            (_digamma_excess, _divergence_term), (excess, term), slopes, strict=True
        ):
            out = fn(x)
            close(out, float(want), rtol=2e-14, atol=2e-14)
            # As far as torch's own trigamma goes: 2e-9.
            rtol = 1e-12 if log_a > _LARGE else 5e-9
            close(torch.autograd.grad(out, x)[0], float(slope), rtol=rtol, atol=1e-13)
    far = torch.tensor([1e4, 1e300], dtype=F64)
    close(_divergence_term(far), -0.5 * far - 0.5 * (1 + math.log(2 * math.pi)))
    close(_digamma_excess(far), [0.0, 0.0])


def test_sum_of_others_does_not_subtract():
    x = torch.tensor([[1e20, 1.0, 2.0, 4.0]], dtype=F64)
    assert _sum_of_others(x).tolist() == [[7.0, 1e20, 1e20, 1e20]]


# Trustworthy long-tailed classification.


def experts(e=3, n=5, k=4, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(e, n, k, dtype=F64, generator=generator)
    combined = scale * torch.randn(n, k, dtype=F64, generator=generator)
    w = torch.rand(e + 1, n, dtype=F64, generator=generator)
    return z, torch.randint(k, (n,), generator=generator), combined, w


COUNTS = (500, 90, 20, 3)


def tlc(z, y, combined, w, epoch, counts=COUNTS, reweight=-1, **o):
    """The published loss, one number at a time."""
    o = {"margin": 0.5, "scale": 30.0, "factor": 0.05, "annealing": 500, "tau": 0.54,
         "diversity": 0.01} | o  # fmt: skip
    k = len(counts)
    late = reweight != -1 and epoch > reweight
    top = max(c**-0.25 for c in counts)
    margins = [o["margin"] * c**-0.25 / top for c in counts]
    weights, temperature = [1.0] * k, [1.0] * k
    if late:
        rare = [(1 - 0.9999) / (1 - 0.9999**c) for c in counts]
        weights = [k * r / sum(rare) for r in rare]
        t = [k * c / sum(counts) * o["factor"] + 1 - o["factor"] for c in counts]
        temperature = [x / max(t) for x in t]
    total = 0.0
    for i in range(len(z)):
        values, engaged = [], []
        for j in range(len(y)):
            row, label = z[i, j].tolist(), int(y[j])
            moved = [x - o["scale"] * margins[label] * (c == label) for c, x in enumerate(row)]
            nll = math.log(sum(math.exp(x - moved[label]) for x in moved)) * weights[label]
            alpha = [mpmath.mpf(1) if c == label else mpmath.exp(x) + 1 for c, x in enumerate(row)]
            lam = epoch * o["factor"] / (reweight + o["annealing"])
            p, q = (
                torch.softmax(torch.tensor([x / t for x, t in zip(r, temperature, strict=True)],
                                           dtype=F64), 0).tolist()
                for r in (row, combined[j].tolist())
            )  # fmt: skip
            d = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
            mean = sum(temperature) / k
            values.append(nll + lam * float(kl(alpha)) - o["diversity"] * mean**2 * d)
            engaged.append(float(w[i, j]) / float(w[i].max()) > o["tau"])
        if any(engaged):
            total += sum(v for v, e in zip(values, engaged, strict=True) if e) / sum(engaged)
    return total


@given(seeds, st.integers(1, 3), st.sampled_from([(-1, 0), (-1, 250), (200, 100), (200, 250)]))
def test_tlc_is_what_the_formula_says(seed, e, times):
    reweight, epoch = times
    z, y, combined, w = experts(e, 4, seed=seed)
    loss = TLCLoss(COUNTS, reweight_epoch=reweight)
    loss.class_counts = loss.class_counts.double()
    want = tlc(z, y, combined, w, epoch, reweight=reweight)
    close(loss(z, y, combined, w, epoch), want, rtol=1e-10)
    close(loss(z, y, combined, w, torch.tensor(epoch)), want, rtol=1e-10)
    loss.reduction = "none"
    close(loss(z, y, combined, w, epoch).mean(), want, rtol=1e-10)


def test_tlc_hyper_parameters():
    z, y, combined, w = experts(2, 6, seed=3)
    options = {"scale": 4.0, "annealing": 50, "tau": 0.2, "diversity": 0.3}
    loss = TLCLoss(torch.tensor(COUNTS, dtype=F64), 0.7, reweight_epoch=5, reweight_factor=0.4,
                   **options)  # fmt: skip
    for epoch in (5, 6):
        want = tlc(z, y, combined, w, epoch, reweight=5, margin=0.7, factor=0.4, **options)
        close(loss(z, y, combined, w, epoch), want, rtol=1e-10)


def test_tlc_of_equal_counts_is_a_constant_margin():
    z, y, _, _ = experts(1)
    loss = TLCLoss(torch.full((4,), 7))
    shifted = z[0] - 15.0 * one_hot(y, 4)
    # One expert, equal to the combined logits, at epoch 0.
    close(loss(z, y, z[0], torch.ones(1, 5), 0), cross_entropy(shifted, y))


def test_tlc_is_lower_where_the_expert_differs():
    z, y, combined, w = experts(1)
    same, other = (
        TLCLoss(COUNTS, diversity=5.0, scale=0.1)(z, y, x, w, 0) for x in (z[0], -3 * combined)
    )
    assert other < same
    assert other < 0


def test_tlc_expert_that_takes_no_part():
    z, y, combined, w = experts(2)
    z.requires_grad_()
    loss = TLCLoss(COUNTS)
    # 0/0 in the published code.
    w[1] = 0.0
    out = loss(z, y, combined, w, 10)
    close(out, loss(z[:1], y, combined, w[:1], 10))
    (g,) = torch.autograd.grad(out, z)
    assert (g[1] == 0).all()
    assert (g[0] != 0).any()


def test_tlc_engagement_is_relative_and_exceeds_tau():
    z, y, combined, _ = experts(1, 4)
    loss = TLCLoss(COUNTS, tau=0.5)
    w = torch.tensor([[0.2, 0.1, 0.1000001, 0.05]], dtype=F64)
    values = torch.stack([loss(z[:, [i]], y[[i]], combined[[i]], w[:, [i]], 1) for i in range(4)])
    close(loss(z, y, combined, w, 1), values[[0, 2]].mean())


@pytest.mark.parametrize(("size", "published"), [(20.0, -178.0), (30.0, None), (1000.0, None)])
def test_tlc_divergence_keeps_its_digits(size, published):
    # One logit at 20 and the published formula in float32: -178 for 34.387.
    row = torch.tensor([size, 0.0, 0.0])
    y = torch.tensor([1])
    alpha = [mpmath.mpf(1) if k == 1 else mpmath.exp(mpmath.mpf(x)) + 1
             for k, x in enumerate(row.tolist())]  # fmt: skip
    with mpmath.workdps(500):
        want = float(kl(alpha)) if size < 100 else None
    loss = TLCLoss([1, 1, 1], reweight_factor=1.0, annealing=2, diversity=0.0)

    def divergence(z, **options):
        args = (z.view(1, 1, 3), y, z.view(1, 3), torch.ones(1, 1, dtype=z.dtype))
        return loss(*args, 1, **options) - loss(*args, 0)

    for dtype, rtol in ((F64, 1e-13), (torch.float32, 1e-6)):
        z = row.to(dtype).requires_grad_()
        out = divergence(z)
        assert torch.autograd.grad(out, z)[0].isfinite().all()
        if want is not None:
            close(out, want, rtol=rtol, atol=1e-4 if dtype is torch.float32 else 1e-12)
    if want is not None:  # float32 logits, in float64
        close(loss._kl(row.view(1, 1, 3), y), [[want]], rtol=1e-13)
    if published is not None:
        a = torch.tensor([float(x) for x in alpha])
        s = a.sum()
        naive = torch.lgamma(s) - math.lgamma(3) - torch.lgamma(a).sum()
        naive = naive + ((a - 1) * (torch.digamma(a) - torch.digamma(s))).sum()
        assert abs(naive - want) > 10


def test_tlc_evidence_of_the_divergence_may_be_clamped():
    z, y, combined, w = experts(2)
    z = z * 5
    loss, clamped = (TLCLoss(COUNTS, max_log_evidence=c) for c in (None, 1.0))
    early = clamped(z, y, combined, w, 0)
    close(early, loss(z, y, combined, w, 0))  # the likelihood is not
    of_clamped = clamped(z, y, combined, w, 9) - early
    z = z.clamp(max=1.0)
    close(of_clamped, loss(z, y, combined, w, 9) - loss(z, y, combined, w, 0), rtol=1e-9)


def test_tlc_gradient_reaches_the_experts_alone():
    z, y, combined, w = (x.requires_grad_() if x.is_floating_point() else x for x in experts())
    TLCLoss(COUNTS)(z, y, combined, w, 3).backward()
    assert z.grad is not None
    assert combined.grad is None
    assert w.grad is None


# Engagement and combination.


def opinion(row):
    with mpmath.workdps(60):
        alpha = [mpmath.exp(mpmath.mpf(x)) + 1 for x in row]
        s = mpmath.fsum(alpha)
        return [(a - 1) / s for a in alpha], len(alpha) / s


def conflict(b, c):
    return mpmath.fsum(b[k] * c[m] for k, m in itertools.permutations(range(len(b)), 2))


@given(seeds, st.integers(1, 4), st.sampled_from([1.0, 5.0, 20.0]))
def test_engagement_is_what_the_formula_says(seed, e, scale):
    z = experts(e, 3, seed=seed, scale=scale)[0]
    want = torch.ones(e + 1, 3, dtype=F64)
    with mpmath.workdps(60):
        for j in range(3):
            w, before = mpmath.mpf(1), None
            for i in range(e):
                b, u = opinion(z[i, j].tolist())
                w = w * u / (1 - (0 if before is None else conflict(before, b)))
                want[i + 1, j], before = float(w), b
    got = EvidentialEngagementWeighting()(z)
    close(got, want, rtol=1e-12, atol=0.0)
    assert (got >= 0).all()
    assert (got[1:] <= got[:-1]).all()


def test_engagement_in_confident_conflict():
    # 1 - K is 8e-9 + 1e-17: rounded to 1 - 1 in float32, and of few digits in float64.
    z = torch.tensor([[[40.0, 0.0]], [[0.0, 40.0]]])
    with mpmath.workdps(60):
        (b, u), (c, v) = (opinion(row[0]) for row in z.tolist())
        want = u * v / (1 - conflict(b, c))
    assert float(EvidentialEngagementWeighting()(z)[2, 0]) == pytest.approx(
        float(want), rel=1e-6, abs=0
    )
    far = EvidentialEngagementWeighting()(250 * z)
    assert not far.isnan().any()
    assert (EvidentialEngagementWeighting()(z * 0 - INF) == 1).all()


def test_combined_logits():
    z = experts(3, 5)[0].requires_grad_()
    module = EvidentialEngagementWeighting(0.3)
    w = module(z)
    assert not w.requires_grad
    share = torch.softmax(w[:-1] / 0.3, 1)
    close(share.sum(1), torch.ones(3))
    out = module.combine(z)
    close(out, sum(z[i] * share[i][:, None] for i in range(3)))
    (g,) = torch.autograd.grad(out.sum(), z)
    close(g, share.unsqueeze(-1).expand_as(z))
    assert module.combine(z.half()).dtype is torch.float32


def ds(a, b):
    """The reduced rule on two lists of parameters."""
    with mpmath.workdps(60):
        k = len(a)
        opinions = []
        for alpha in (a, b):
            alpha = [mpmath.mpf(x) for x in alpha]
            s = mpmath.fsum(alpha)
            opinions.append(([(x - 1) / s for x in alpha], k / s))
        (b1, u1), (b2, u2) = opinions
        left = 1 - conflict(b1, b2)
        u = u1 * u2 / left
        belief = [(x * y + x * u2 + y * u1) / left for x, y in zip(b1, b2, strict=True)]
        assert abs(sum(belief) + u - 1) < 1e-40
        return [x * k / u + 1 for x in belief]


@given(seeds, st.integers(1, 4), st.sampled_from([1.0, 10.0, 30.0]))
def test_combination_is_the_rule_folded(seed, views, scale):
    alpha = 1 + torch.exp(experts(views, 3, seed=seed, scale=scale / 5)[0] + scale - 1)
    want = []
    for j in range(3):
        rows = alpha[:, j].tolist()
        combined = rows[0]
        for row in rows[1:]:
            combined = ds(combined, row)
        want.append([float(x) for x in combined])
    close(DempsterShaferCombination()(alpha), want, rtol=1e-11)
    order = torch.randperm(views)
    close(DempsterShaferCombination()(alpha[order]), want, rtol=1e-11)


def test_combination_with_no_opinion_and_of_groups():
    alpha = 1 + experts(4, 6)[0].exp()
    combine = DempsterShaferCombination()
    one = torch.ones(1, 6, 4, dtype=F64)
    close(combine(torch.cat((alpha, one))), combine(alpha))
    close(combine(alpha[:1]), alpha[0])
    halves = torch.stack((combine(alpha[:2]), combine(alpha[2:])))
    close(combine(halves), combine(alpha))
    uncertainty = 4 / combine(alpha).sum(-1)
    assert (uncertainty <= (4 / alpha.sum(-1)).amin(0)).all()
    assert torch.autograd.gradcheck(combine, alpha[:2].clone().requires_grad_())
    assert combine(alpha.half()).dtype is torch.float32


def test_combination_of_little_and_of_conflicting_evidence():
    tiny = 1 + torch.tensor([[[1e-9, 0.0]], [[0.0, 2e-9]]], dtype=F64)
    close(DempsterShaferCombination()(tiny) - 1, [[1e-9, 2e-9]], rtol=1e-6)
    sure = 1 + torch.tensor([[[1e9, 0.0]], [[0.0, 1e9]]], dtype=F64)
    close(DempsterShaferCombination()(sure), [[1 + 1e9, 1 + 1e9]], rtol=1e-14)


# What is refused.

Z, Y = torch.zeros(2, 4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("make", "inputs", "error", "says"),
    [
        (lambda: EvidentialEngagementWeighting(0.0), None, ValueError, "reweight_temperature: exp"),
        (EvidentialEngagementWeighting, Z[0], ValueError, r"logits: .*\(E, N, K\).*, got \(4, 3\)"),
        (EvidentialEngagementWeighting, Z[:0], ValueError, r"logits: .*E >= 1.*got \(0, 4, 3\)"),
        (EvidentialEngagementWeighting, Z[..., :1], ValueError, r"logits: .*got \(2, 4, 1\)"),
        (EvidentialEngagementWeighting, Z.long(), TypeError, "logits: expected floating point"),
        (DempsterShaferCombination, Z[0], ValueError, r"alpha: .*\(V, N, K\).*, got \(4, 3\)"),
        (DempsterShaferCombination, Z[:0], ValueError, r"alpha: .*V >= 1.*, got \(0, 4, 3\)"),
        (DempsterShaferCombination, Z + 0.5, ValueError, "alpha: .*>= 1, got 0.5"),
        (DempsterShaferCombination, Z + NAN, ValueError, "alpha: .*>= 1, got nan"),
        (DempsterShaferCombination, Z.long(), TypeError, "alpha: expected floating point, got"),
        (DempsterShaferCombination, [1.0], TypeError, "alpha: expected a tensor, got list"),
    ],
)
def test_modules_refuse(make, inputs, error, says):
    with pytest.raises(error, match=f"^{says}"):
        make() if inputs is None else make()(inputs)
