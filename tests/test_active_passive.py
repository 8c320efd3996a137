"""Normalised, asymmetric, symmetric-log and Jensen-Shannon losses, and sums of two."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import cross_entropy, one_hot

from lossary import (
    ActivePassiveLoss,
    AsymmetricExponentialLoss,
    AsymmetricGCELoss,
    AsymmetricUnhingedLoss,
    BrierLoss,
    CompSumLoss,
    GeneralizedCrossEntropyLoss,
    JensenShannonLoss,
    MulticlassMAELoss,
    NormalizedCrossEntropyLoss,
    PolyLoss,
    ReverseCrossEntropyLoss,
    RobustLogLoss,
    _softmax,
)
from single_rows import all_values, close, distributions, gradient, risk, rows, value

F64 = torch.float64
INF, NAN = math.inf, math.nan


def under_noise(loss, f, y, eta):
    """The exact expectation over a label that is, with probability eta, another one."""
    every = all_values(loss, f)
    return (1 - eta) * every[y] + eta * (every.sum() - every[y]) / (len(f) - 1)


@given(rows(), st.floats(0.0, 1.0), st.floats(0.02, 5.0))
def test_symmetric_losses_and_noise(row, eta, alpha):
    f, y = row
    k = len(f)
    for loss, total in (
        (NormalizedCrossEntropyLoss(), 1.0),
        (RobustLogLoss(alpha), k * math.log1p(1 / alpha)),
        (AsymmetricGCELoss(0.7, 1.0), k - 1),
        (AsymmetricUnhingedLoss(3.0, 1.0), k - 1),
        (ActivePassiveLoss(alpha=alpha, beta=0.5), alpha + 2 * (k - 1)),
        (ActivePassiveLoss("nce", "mae", alpha, 3.0), alpha + 3 * (k - 1)),
        (ActivePassiveLoss("nce", "nrce", alpha, 3.0), alpha + 3.0),
    ):
        close(all_values(loss, f).sum(), total, rtol=1e-11)
        close(loss.properties(k).class_sum, total)
        affine = (1 - eta * k / (k - 1)) * value(loss, f, y) + eta * total / (k - 1)
        torch.testing.assert_close(under_noise(loss, f, y, eta), affine, rtol=1e-10, atol=1e-10)


@given(rows(), rows())
def test_soft_targets_are_expectations(row, other):
    f = row[0]
    q = torch.softmax(other[0].repeat(6)[: len(f)] / 4, 0)
    for loss in (
        NormalizedCrossEntropyLoss(),
        AsymmetricGCELoss(),
        AsymmetricUnhingedLoss(),
        AsymmetricExponentialLoss(),
        RobustLogLoss(),
    ):
        close(loss(f[None], q[None]), (q * all_values(loss, f)).sum(), rtol=1e-9, atol=1e-13)


# Normalised cross-entropy.


@given(rows())
def test_nce_is_the_published_quotient(row):
    f, y = row
    log_p = torch.log_softmax(f, 0)
    close(value(NormalizedCrossEntropyLoss(), f, y), log_p[y] / log_p.sum(), rtol=1e-9, atol=1e-13)


def test_nce_is_misled_by_the_least_probable_class():
    # A mean of q weighted by -log p: its infimum is min q, whoever of the others is on top.
    q = np.array([0.5, 0.3, 0.2])
    loss = NormalizedCrossEntropyLoss(reduction="none")
    f = torch.tensor([0.0, 5.0, -1e9], dtype=F64)
    assert f.argmax() != q.argmax()
    assert risk(loss, f, q) == pytest.approx(0.2, abs=1e-7)
    for g in torch.randn(200, 3, dtype=F64) * 10:
        assert risk(loss, g, q) > 0.2
    facts = loss.properties(3)
    assert (facts.calibrated, facts.rank_consistent) == (False, False)
    # Of two classes the wrong one is driven away.
    assert loss.properties(2).calibrated is True


def test_nce_depends_on_the_scale():
    f = torch.tensor([1.0, 0.0, -2.0], dtype=F64)
    loss = NormalizedCrossEntropyLoss()
    assert abs(value(loss, 2 * f, 1) - value(loss, f, 1)) > 0.01
    # In the limit, the gap to the top over the sum of the gaps.
    close(value(loss, 1e9 * f, 1), 1 / 4, rtol=1e-8)


# Asymmetric losses.


@given(rows(), st.floats(0.0, 5.0), st.floats(0.1, 4.0))
def test_agce(row, a, q):
    f, y = row
    loss = AsymmetricGCELoss(a, q)
    p = torch.softmax(f, 0)
    close(value(loss, f, y), ((a + 1) ** q - (a + p[y]) ** q) / q, rtol=1e-9, atol=1e-11)
    slope = (a + p[y]) ** (q - 1) * p[y] * (p - one_hot(torch.tensor(y), len(f)))
    torch.testing.assert_close(gradient(loss, f, y), slope, rtol=1e-7, atol=1e-10)
    facts = loss.properties(len(f))
    assert facts.lower <= value(loss, f, y) <= facts.upper * (1 + 1e-12)
    assert gradient(loss, f, y).norm() <= facts.lipschitz * (1 + 1e-12)


@given(rows(), st.floats(1.01, 6.0), st.floats(0.1, 4.0))
def test_aul(row, a, q):
    f, y = row
    loss = AsymmetricUnhingedLoss(a, q)
    p = torch.softmax(f, 0)
    close(value(loss, f, y), ((a - p[y]) ** q - (a - 1) ** q) / q, rtol=1e-7, atol=1e-10)
    slope = (a - p[y]) ** (q - 1) * p[y] * (p - one_hot(torch.tensor(y), len(f)))
    torch.testing.assert_close(gradient(loss, f, y), slope, rtol=1e-7, atol=1e-9)
    facts = loss.properties(len(f))
    assert facts.lower <= value(loss, f, y) <= facts.upper * (1 + 1e-12)
    assert gradient(loss, f, y).norm() <= facts.lipschitz * (1 + 1e-12)


@given(rows(), st.floats(0.2, 20.0))
def test_ael(row, a):
    f, y = row
    loss = AsymmetricExponentialLoss(a)
    p = torch.softmax(f, 0)
    close(value(loss, f, y), torch.exp(-p[y] / a))
    slope = torch.exp(-p[y] / a) / a * p[y] * (p - one_hot(torch.tensor(y), len(f)))
    torch.testing.assert_close(gradient(loss, f, y), slope, rtol=1e-8, atol=1e-11)
    facts = loss.properties()
    assert facts.lower <= value(loss, f, y) <= facts.upper


def test_asymmetric_losses_meet_others():
    f, y = torch.randn(30, 5, dtype=F64) * 4, torch.randint(5, (30,))
    mae = MulticlassMAELoss()(f, y)
    close(AsymmetricGCELoss(0.4, 1.0)(f, y), mae)
    close(AsymmetricUnhingedLoss(2.5, 1.0)(f, y), mae)
    for q in (0.2, 0.7, 1.0):
        close(AsymmetricGCELoss(0.0, q)(f, y), GeneralizedCrossEntropyLoss(q)(f, y))
    far = AsymmetricExponentialLoss(1e6)(f, y)
    close(1e6 * (far - math.exp(-1e-6)), mae, rtol=1e-5)


def at(loss, u):
    """The values at p_y = u, of two classes."""
    f = torch.stack((torch.logit(u), torch.zeros_like(u)), 1)
    return loss(f, torch.zeros(len(u), dtype=torch.long))


@given(distributions(), st.floats(1.0, 4.0), st.floats(0.2, 1.0))
def test_concave_losses_are_least_at_the_vertex(w, over, under):
    u = torch.distributions.Dirichlet(torch.ones(len(w), dtype=F64)).sample((200,))
    vertex = torch.eye(len(w), dtype=F64)[w.argmax()].clamp(1e-15, 1 - 1e-15)
    for loss in (
        AsymmetricGCELoss(1.3, over, reduction="none"),
        AsymmetricGCELoss(0.0, over, reduction="none"),
        AsymmetricUnhingedLoss(1.5, under, reduction="none"),
    ):
        total = sum(c * at(loss, x) for c, x in zip(w, u.T, strict=True))
        best = sum(c * at(loss, x[None]) for c, x in zip(w, vertex, strict=True))
        assert total.min() >= best - 1e-12


@pytest.mark.parametrize(
    "loss",
    [AsymmetricUnhingedLoss(6.0, 1.5), AsymmetricExponentialLoss(1.0), AsymmetricGCELoss(0.5, 0.5)],
)
def test_convex_losses_are_not_completely_asymmetric(loss):
    # The weights nearly tie, and the least sum lies between the vertices.
    loss.reduction = "none"
    u = torch.linspace(1e-9, 1 - 1e-9, 101, dtype=F64)
    total = 0.505 * at(loss, u) + 0.495 * at(loss, 1 - u)
    assert 0 < int(total.argmin()) < 100
    # With nothing else there the order is right, but it is lost where probabilities are 0.
    assert loss.properties().calibrated is True
    assert loss.properties().rank_consistent is False


# The symmetric log loss.


@given(rows(), st.floats(0.01, 5.0))
def test_rll(row, a):
    f, y = row
    p = torch.softmax(f, 0)
    rest = torch.log(a + p[torch.arange(len(f)) != y]).sum() / (len(f) - 1)
    expected = math.log((a + 1) / a) - torch.log(a + p[y]) + rest
    loss = RobustLogLoss(a)
    close(value(loss, f, y), expected, rtol=1e-8, atol=1e-12)
    facts = loss.properties(len(f))
    assert 0 <= value(loss, f, y) <= facts.upper * (1 + 1e-12)
    assert gradient(loss, f, y).norm() <= facts.lipschitz


def test_rll_extremes():
    loss = RobustLogLoss(0.1)
    f = torch.tensor([-200.0, 0.0, 0.0, 0.0], dtype=F64)
    close(value(loss, f, 0), math.log(1.1 / 0.1) - math.log(0.1) + math.log(0.1 + 1 / 3))
    close(value(loss, f, 0), loss.properties(4).upper)
    assert value(loss, -f, 0) < 1e-80
    g = torch.randn(20, 5, dtype=F64)
    y = torch.randint(5, (20,))
    close(1e6 * RobustLogLoss(1e6)(g, y), 1.25 * MulticlassMAELoss()(g, y), rtol=1e-5)


def test_rll_is_least_at_few_classes():
    # -sum (K q_k - 1) log(alpha + p_k)/(K - 1): here at (0.8, 0.2, 0, 0), so the order is lost.
    q, loss = np.array([0.4, 0.3, 0.2, 0.1]), RobustLogLoss(0.1, reduction="none")
    least = risk(loss, torch.tensor([math.log(0.8), math.log(0.2), -80.0, -70.0]).double(), q)
    for p in torch.distributions.Dirichlet(torch.full((4,), 0.5, dtype=F64)).sample((300,)):
        assert risk(loss, p.clamp(min=1e-30).log(), q) >= least - 1e-9
    for p in ((0.81, 0.19), (0.79, 0.21)):
        f = torch.tensor([*map(math.log, p), -80.0, -80.0], dtype=F64)
        assert risk(loss, f, q) > least + 1e-6


def test_rll_is_not_what_one_repository_computes():
    # There the last term is the log of a sum of exp(f_k - sum f), not a sum of log(alpha + p_k).
    def theirs(f, y, a=0.1):
        log_p = torch.log_softmax(f, 0)
        rest = torch.logsumexp(f[torch.arange(len(f)) != y] - f.sum(), 0)
        return math.log((a + 1) / a) - torch.log(a + log_p[y].exp()) + rest / (len(f) - 1)

    def class_sum(f):
        return sum(theirs(f, y) for y in range(len(f)))

    f, g = torch.randn(2, 4, dtype=F64)
    assert abs(class_sum(f) - class_sum(g)) > 0.1  # not symmetric, as the loss is by construction
    assert abs(class_sum(f + 1) - class_sum(f)) > 0.1  # nor unchanged by a shift
    ours = [all_values(RobustLogLoss(0.1), x).sum() for x in (f, g, f + 1)]
    close(ours, 3 * [4 * math.log(11)], rtol=1e-11)


# Jensen-Shannon.


def entropy(p):
    return -torch.special.xlogy(p, p).sum(-1)


def jensen_shannon(weights, *distributions):
    mixture = sum(w * p for w, p in zip(weights, distributions, strict=True))
    return entropy(mixture) - sum(
        w * entropy(p) for w, p in zip(weights, distributions, strict=True)
    )


@given(rows(), st.floats(0.01, 0.99))
def test_js(row, w):
    f, y = row
    label = one_hot(torch.tensor(y), len(f)).double()
    plain = jensen_shannon((w, 1 - w), label, torch.softmax(f, 0))
    z = -(1 - w) * math.log(1 - w)
    close(value(JensenShannonLoss(w, scaled=False), f, y), plain, rtol=1e-9, atol=1e-12)
    close(value(JensenShannonLoss(w), f, y), plain / z, rtol=1e-9, atol=1e-9)
    facts = JensenShannonLoss(w).properties()
    assert 0 <= value(JensenShannonLoss(w), f, y) <= facts.upper * (1 + 1e-12)
    assert gradient(JensenShannonLoss(w), f, y).norm() <= facts.lipschitz * (1 + 1e-12)


def test_js_between_cross_entropy_and_mae():
    f, y = torch.randn(40, 5, dtype=F64), torch.randint(5, (40,))
    for w, rtol in ((1e-6, 1e-4), (1e-9, 1e-7)):
        close(JensenShannonLoss(w)(f, y), cross_entropy(f, y), rtol=rtol)
    close(JensenShannonLoss(1 - 1e-12)(f, y), MulticlassMAELoss()(f, y), atol=0.04)
    worst = torch.tensor([-300.0, 0.0, 0.0], dtype=F64)
    for w in (0.1, 0.5, 0.9):
        most = 1 + w * math.log(w) / ((1 - w) * math.log(1 - w))
        close(value(JensenShannonLoss(w), worst, 0), most)
        close(JensenShannonLoss(w).properties().upper, most)
    close(value(JensenShannonLoss(), worst, 0), 2.0)


def test_js_without_the_published_clipping():
    # The authors' code clips probabilities at 1e-7, and loses every well classified sample.
    f = torch.tensor([20.0, 0.0], dtype=F64)
    p = torch.softmax(f, 0).clamp(1e-7, 1)
    label = torch.tensor([1.0, 0.0], dtype=F64).clamp(1e-7, 1)
    m = (label + p) / 2
    theirs = 0.5 * (label * (label / m).log() + p * (p / m).log()).sum() / (0.5 * math.log(2))
    ours = value(JensenShannonLoss(), f, 0)
    close(ours, torch.softmax(f, 0)[1], rtol=1e-6)
    assert abs(theirs - ours) > 0.9 * ours


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4)])
def test_js_of_views_and_probabilities(weights):
    views = [torch.randn(7, 4, dtype=F64) * 3 for _ in weights[1:]]
    p = [torch.softmax(f, 1) for f in views]
    y = torch.randint(4, (7,))
    q = torch.softmax(torch.randn(7, 4).double() * 3, 1)
    q[0] = one_hot(torch.tensor(2), 4)
    z = -(1 - weights[0]) * math.log(1 - weights[0])
    loss = JensenShannonLoss(weights, reduction="none")
    close(loss(views, y), jensen_shannon(weights, one_hot(y, 4).double(), *p) / z, rtol=1e-9)
    close(loss(views, q), jensen_shannon(weights, q, *p) / z, rtol=1e-9)
    cw = torch.rand(4, dtype=F64)
    weighted = JensenShannonLoss(weights, class_weight=cw, reduction="none")
    close(weighted(views, q), (q * cw).sum(1) * loss(views, q), rtol=1e-9)
    one = JensenShannonLoss(weights[0], reduction="none")
    same = [views[0]] * (len(weights) - 1)
    for target in (y, q):
        close(loss(same, target), one(views[0], target), rtol=1e-9)
        close(loss(tuple(views[:1] * (len(weights) - 1)), target), loss(same, target))
    if len(weights) > 2:
        close(loss.per_sample(views[0], None, tuple(views[1:])).gather(1, y[:, None])[:, 0],
              loss(views, y))  # fmt: skip


def test_js_views_are_masked_and_differentiated():
    a, b = torch.randn(2, 4, 3, 2, dtype=F64)
    y = torch.randint(3, (4, 2))
    y[1] = -100
    loss = JensenShannonLoss((0.4, 0.3, 0.3))
    kept = y >= 0
    expected = loss([a[[0, 2, 3]], b[[0, 2, 3]]], y[[0, 2, 3]])
    a[1], b[1] = NAN, INF
    a, b = a.requires_grad_(), b.requires_grad_()
    out = loss([a, b], y)
    close(out, expected)
    for g in torch.autograd.grad(out, (a, b)):
        assert (g[1] == 0).all()
        assert torch.isfinite(g).all()
    close(loss([a, b], y.clamp(min=0), weight=kept), expected)
    q = one_hot(y.clamp(min=0), 3).movedim(-1, 1).double()
    close(loss([a, b], q, weight=kept), expected)
    c, d = (torch.randn(3, 3, dtype=F64, requires_grad=True) for _ in range(2))
    t = torch.randint(3, (3,))
    assert gradcheck(lambda c, d: loss([c, d], t), (c, d))
    assert gradgradcheck(lambda c, d: loss([c, d], t), (c, d))
    half = loss([c.detach().bfloat16(), d.detach().bfloat16()], t)
    assert half.dtype is torch.float32
    # Certain, and sure of an impossible class: no nan where a probability is 0.
    sure = torch.tensor([[1e4, 0.0, -INF], [-INF, 0.0, 1e4]], requires_grad=True)
    for target in (torch.tensor([0, 0]), one_hot(torch.tensor([0, 0]), 3).float()):
        out = loss([sure, sure.flip(1)], target)
        assert torch.isfinite(out)
        assert torch.isfinite(torch.autograd.grad(out, sure)[0]).all()


# Active and passive.


@given(rows(), st.floats(0.0, 10.0), st.floats(0.1, 10.0))
def test_the_sum_of_two(row, alpha, beta):
    f, y = row
    for names, parts, keywords in (
        (("nce", "rce"), (NormalizedCrossEntropyLoss(), ReverseCrossEntropyLoss()), None),
        (("ce", "mae"), (CompSumLoss(), MulticlassMAELoss()), None),
        (("nce", "agce"), (NormalizedCrossEntropyLoss(), AsymmetricGCELoss(3.0, 1.5)),
         {"a": 3.0, "q": 1.5}),
        (("nce", "aul"), (NormalizedCrossEntropyLoss(), AsymmetricUnhingedLoss(6.0, 1.5)),
         {"a": 6.0, "q": 1.5}),
        (("nce", "ael"), (NormalizedCrossEntropyLoss(), AsymmetricExponentialLoss(2.0)),
         {"a": 2.0}),
    ):  # fmt: skip
        expected = alpha * value(parts[0], f, y) + beta * value(parts[1], f, y)
        named = ActivePassiveLoss(*names, alpha, beta, passive_kwargs=keywords)
        given_ = ActivePassiveLoss(*parts, alpha, beta)
        for loss in (named, given_):
            close(value(loss, f, y), expected, rtol=1e-11, atol=1e-13)
        slope = alpha * gradient(parts[0], f, y) + beta * gradient(parts[1], f, y)
        torch.testing.assert_close(gradient(named, f, y), slope, rtol=1e-9, atol=1e-13)


def test_probabilities_enter_each_part_as_they_do_alone():
    f, q = torch.randn(6, 4, dtype=F64), torch.softmax(torch.randn(6, 4).double() * 2, 1)
    alone = 0.5 * NormalizedCrossEntropyLoss()(f, q) + 2 * ReverseCrossEntropyLoss()(f, q)
    close(ActivePassiveLoss(alpha=0.5, beta=2.0)(f, q), alone)
    close(ActivePassiveLoss(PolyLoss(), BrierLoss())(f, q), PolyLoss()(f, q) + BrierLoss()(f, q))


def published_normalised_rce(f, y):
    """RCE times "1 / 4 * (K - 1)", which is not a division by 4 (K - 1)."""
    p = torch.softmax(f, 1)
    label = one_hot(y, f.shape[1]).double().clamp(min=math.exp(-4.0))
    return 1 / 4 * (f.shape[1] - 1) * -(p * label.log()).sum(1).mean()


@pytest.mark.parametrize("k", [3, 10])
def test_normalised_rce_has_class_sum_1(k):
    f, y = torch.randn(20, k, dtype=F64), torch.randint(k, (20,))
    ours = ActivePassiveLoss("nce", "nrce", alpha=0.0)
    close(sum(ours(f, torch.full((20,), c)) for c in range(k)), 1.0)
    close(ours(f, y), ReverseCrossEntropyLoss()(f, y) / (4 * (k - 1)))
    theirs = sum(published_normalised_rce(f, torch.full((20,), c)) for c in range(k))
    close(theirs, (k - 1) ** 2, rtol=1e-9)
    close(published_normalised_rce(f, y), (k - 1) ** 2 * ours(f, y), rtol=1e-9)
    strong = ActivePassiveLoss("nce", "nrce", alpha=0.0, passive_kwargs={"A": -9.0})
    close(strong(f, y), ours(f, y))


def test_named_parts_read_a_row_once(monkeypatch):
    calls = []
    plain = _softmax.row_statistics

    def counted(logits, target, names, **options):
        calls.append(isinstance(logits, torch.Tensor))
        return plain(logits, target, names, **options)

    monkeypatch.setattr(_softmax, "row_statistics", counted)
    ActivePassiveLoss()(torch.randn(4, 3), torch.tensor([0, 1, 2, -100]))
    assert calls.count(True) == 1


def test_class_axis_of_the_parts():
    f, y = torch.randn(3, 2, 5, dtype=F64), torch.randint(5, (3, 2))
    last = ActivePassiveLoss("nce", "agce", passive_kwargs={"a": 2.0}, class_dim=-1)
    close(last(f, y), ActivePassiveLoss("nce", "agce", passive_kwargs={"a": 2.0})(f.mT, y))
    q = torch.softmax(torch.randn(3, 2, 5).double(), -1)
    close(last(f, q), ActivePassiveLoss("nce", "agce", passive_kwargs={"a": 2.0})(f.mT, q.mT))
    parts = ActivePassiveLoss(PolyLoss(class_dim=-1), BrierLoss(class_dim=-1), class_dim=-1)
    close(parts(f, y), (PolyLoss() (f.mT, y) + BrierLoss()(f.mT, y)))  # fmt: skip


@given(distributions())
def test_nce_with_a_passive_loss_wants_the_most_probable_class(q):
    # One sequence of logits brings both to their infima, which are min q and the vertex's risk.
    order = np.argsort(-q)
    f = torch.zeros(len(q), dtype=F64)
    f[order[0]], f[order[-1]] = 1e5, -1e13
    least = q.min() + 4 * (1 - q.max())
    loss = ActivePassiveLoss(reduction="none")
    close(risk(loss, f, q), least, rtol=1e-6)
    for g in torch.randn(50, len(q), dtype=F64) * 10:
        assert risk(loss, g, q) > least * (1 - 1e-12)
    assert ActivePassiveLoss("nce", "ael").properties().calibrated is None
    assert (
        ActivePassiveLoss("nce", "aul", passive_kwargs={"q": 1.5}).properties().calibrated is None
    )
