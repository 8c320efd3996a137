"""Reverse and symmetric cross-entropy, and what symmetry buys under label noise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.nn.functional import cross_entropy, one_hot

from lossary import (
    CompSumLoss,
    GeneralizedCrossEntropyLoss,
    LDRKLLoss,
    MulticlassMAELoss,
    ReverseCrossEntropyLoss,
    SymmetricCrossEntropyLoss,
)
from single_rows import (
    all_values,
    close,
    distributions,
    gradient,
    least_risk,
    numbers,
    risk,
    rows,
    value,
)

ROOT2 = math.sqrt(2.0)
PUBLISHED_A = (-4.0, math.log(1e-4))  # the paper's, and what the authors' clipping comes to
PRESETS = ((0.1, 1.0), (6.0, 0.1))  # the paper's, for CIFAR-10 and CIFAR-100

As = st.one_of(st.sampled_from(PUBLISHED_A), st.floats(-20.0, -0.1))
weights = st.one_of(st.sampled_from((0.1, 1.0, 6.0)), st.floats(0.01, 10.0))


def reverse(f, q, a):
    """-sum_k p_k max(log q_k, A), one row."""
    log_q = torch.where(q > 0, q.clamp(min=1e-300).log().clamp(min=a), a)
    return -(torch.softmax(f, -1) * log_q).sum(-1)


def forward(f, q):
    return -(torch.log_softmax(f, -1) * q).sum(-1)


# Values.


@given(rows(), As)
def test_reverse_cross_entropy_value(row, a):
    f, y = row
    p, label = torch.softmax(f, 0), one_hot(torch.tensor(y), len(f)).double()
    expected = -(p * (1 - label) * a).sum()
    close(value(ReverseCrossEntropyLoss(a), f, y), expected, atol=1e-13)


@given(rows(), weights, weights, As)
def test_symmetric_cross_entropy_value(row, alpha, beta, a):
    f, y = row
    p = torch.softmax(f, 0)
    expected = -alpha * torch.log_softmax(f, 0)[y] - beta * a * (1 - p[y])
    close(value(SymmetricCrossEntropyLoss(alpha, beta, a), f, y), expected, atol=1e-13)


def authors_code(f, y, alpha, beta, clip):
    """The published implementation, with its two clippings."""
    ce = cross_entropy(f, y)
    p = torch.clamp(torch.softmax(f, 1), min=1e-7, max=1.0)
    label = torch.clamp(one_hot(y, f.shape[1]).double(), min=clip, max=1.0)
    rce = -torch.sum(p * torch.log(label), dim=1)
    return alpha * ce + beta * rce.mean()


@pytest.mark.parametrize(("alpha", "beta"), [*PRESETS, (0.0, 1.0)])
@pytest.mark.parametrize("a", PUBLISHED_A)
def test_published_code(alpha, beta, a):
    f, y = torch.randn(64, 10, dtype=torch.float64) * 2, torch.randint(10, (64,))
    assert torch.softmax(f, 1).min() > 1e-7  # where its clipping of p does not bite
    expected = authors_code(f, y, alpha, beta, math.exp(a))
    close(SymmetricCrossEntropyLoss(alpha, beta, a)(f, y), expected)
    if alpha == 0.0:
        close(ReverseCrossEntropyLoss(a)(f, y), expected)


@pytest.mark.parametrize("balance", [0.05, 0.5, 0.95])
def test_convex_combination_of_published_code(balance):
    f, y = torch.randn(64, 10, dtype=torch.float64) * 2, torch.randint(10, (64,))
    p = torch.softmax(f, 1)[torch.arange(64), y]
    expected = (1 - balance) * cross_entropy(f, y) + balance * 4 * (1 - p).mean()
    close(SymmetricCrossEntropyLoss(alpha=1 - balance, beta=balance, A=-4.0)(f, y), expected)


def test_defaults_are_the_papers():
    f, y = torch.randn(9, 5, dtype=torch.float64), torch.randint(5, (9,))
    p = torch.softmax(f, 1)[torch.arange(9), y]
    close(ReverseCrossEntropyLoss()(f, y), 4 * (1 - p).mean())
    close(SymmetricCrossEntropyLoss()(f, y), (-0.1 * p.log() + 4 * (1 - p)).mean())


def scaled(factor, loss):
    return lambda f, target: factor * loss(f, target)


# Index targets; for probabilities reverse cross-entropy is not an expectation.
AGREE = {
    "rce_mae": (ReverseCrossEntropyLoss(A=-4.0), MulticlassMAELoss(scale=4.0)),
    "rce_mae_2": (ReverseCrossEntropyLoss(A=-0.7), scaled(0.7, MulticlassMAELoss())),
    "rce_comp_sum": (ReverseCrossEntropyLoss(A=-1.0), CompSumLoss(tau=2.0)),
    "rce_gce": (ReverseCrossEntropyLoss(A=-1.0), GeneralizedCrossEntropyLoss(q=1.0)),
    "sce_beta_0": (SymmetricCrossEntropyLoss(0.3, 0.0), scaled(0.3, cross_entropy)),
    "sce_beta_0_comp_sum": (SymmetricCrossEntropyLoss(1.0, 0.0), CompSumLoss()),
    "sce_alpha_0": (SymmetricCrossEntropyLoss(0.0, 1.0, -3.0), ReverseCrossEntropyLoss(-3.0)),
    "sce_alpha_0_beta": (
        SymmetricCrossEntropyLoss(0.0, 0.4, -3.0),
        scaled(0.4, ReverseCrossEntropyLoss(-3.0)),
    ),
    "sce_sum": (
        SymmetricCrossEntropyLoss(0.3, 2.0, -5.0),
        lambda f, y: 0.3 * cross_entropy(f, y) + 10.0 * MulticlassMAELoss()(f, y),
    ),
}


@pytest.mark.parametrize("pair", AGREE.values(), ids=AGREE)
def test_agree(pair):
    f = (torch.randn(40, 6, dtype=torch.float64) * 8).requires_grad_()
    y = torch.randint(6, (40,))
    a, b = (loss(f, y) for loss in pair)
    close(a, b, atol=0)
    ga, gb = (torch.autograd.grad(x, f)[0] for x in (a, b))
    torch.testing.assert_close(ga, gb, rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("name", ["sce_beta_0", "sce_beta_0_comp_sum", "sce_alpha_0_beta"])
def test_agree_for_probabilities(name):
    f = torch.randn(40, 6, dtype=torch.float64) * 8
    q = torch.softmax(torch.randn(40, 6).double() * 3, 1)
    a, b = (loss(f, q) for loss in AGREE[name])
    close(a, b)


def test_tiny_losses_and_gradients_keep_their_digits():
    f = torch.tensor([[0.0, -60.0, -700.0]], dtype=torch.float64, requires_grad=True)
    out = ReverseCrossEntropyLoss()(f, torch.tensor([0]))
    close(out, 4 * math.exp(-60), atol=0)
    (g,) = torch.autograd.grad(out, f)
    close(g[0], [-4 * math.exp(-60), 4 * math.exp(-60), 4 * math.exp(-700)], atol=0)


@pytest.mark.parametrize("a", PUBLISHED_A)
def test_an_improbable_target_keeps_its_small_gradient(a):
    # The published code's clipping at 1e-7 cuts it off.
    for gap in (5.0, 17.0, 30.0, 60.0):
        f = torch.tensor([[0.0, -gap]], dtype=torch.float64)
        exact = a * math.exp(-gap) / (1 + math.exp(-gap)) ** 2
        for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            x = f.to(dtype).requires_grad_()
            for loss in (ReverseCrossEntropyLoss(a), SymmetricCrossEntropyLoss(0.0, 1.0, a)):
                (g,) = torch.autograd.grad(loss(x, torch.tensor([1])), x)
                close(g[0], [-exact, exact], rtol=rtol, atol=0)


# Gradients, convexity, bounds.


@given(rows(), st.one_of(st.just(0.0), weights), weights, As)
def test_gradient(row, alpha, beta, a):
    f, y = row
    p = torch.softmax(f, 0)
    expected = (alpha - beta * a * p[y]) * (p - one_hot(torch.tensor(y), len(f)))
    g = gradient(SymmetricCrossEntropyLoss(alpha, beta, a), f, y)
    torch.testing.assert_close(g, expected, rtol=1e-9, atol=1e-12)
    g = gradient(ReverseCrossEntropyLoss(a), f, y)
    expected = -a * p[y] * (p - one_hot(torch.tensor(y), len(f)))
    torch.testing.assert_close(g, expected, rtol=1e-9, atol=1e-13)


@given(rows(), weights, weights, As, st.floats(-100.0, 100.0))
def test_shift_invariant_and_gradient_sums_to_zero(row, alpha, beta, a, shift):
    f, y = row
    for loss in (SymmetricCrossEntropyLoss(alpha, beta, a), ReverseCrossEntropyLoss(a)):
        close(value(loss, f + shift, y), value(loss, f, y), rtol=1e-12, atol=0)
        g = gradient(loss, f, y)
        assert abs(g.sum()) <= 1e-14 * g.abs().sum()


@given(rows(), weights, weights, As)
def test_bounds(row, alpha, beta, a):
    f, y = row
    assert 0 < value(ReverseCrossEntropyLoss(a), f, y) < -a
    assert gradient(ReverseCrossEntropyLoss(a), f, y).norm() <= -a * ROOT2 / 4 * (1 + 1e-15)
    loss = SymmetricCrossEntropyLoss(alpha, beta, a)
    assert value(loss, f, y) > 0
    norm = gradient(loss, f, y).norm()
    assert norm <= (alpha * ROOT2 - beta * a * ROOT2 / 4) * (1 + 1e-15)


def test_bounds_are_approached():
    f = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    tied = torch.zeros(2, dtype=torch.float64)
    for a in PUBLISHED_A:
        loss = ReverseCrossEntropyLoss(a)
        assert value(loss, 60 * f, 0) < 1e-20
        close(value(loss, -60 * f, 0), -a)
        close(gradient(loss, tied, 0).norm(), -a * ROOT2 / 4)
        both = SymmetricCrossEntropyLoss(0.1, 1.0, a)
        assert value(both, 60 * f, 0) < 1e-20
        assert value(both, -1e6 * f, 0) > 1e5  # unbounded
        bounded = SymmetricCrossEntropyLoss(0.0, 0.5, a)
        close(value(bounded, -1e6 * f, 0), -0.5 * a)


@given(rows(elements=st.floats(-4.0, 4.0)), st.floats(0.1, 5.0), st.floats(0.0, 1.0), As)
def test_convex_where_the_passive_weight_is_at_most_alpha(row, alpha, share, a):
    f, y = row
    loss = SymmetricCrossEntropyLoss(alpha, share * alpha / -a, a)  # -beta A = share * alpha
    h = torch.autograd.functional.hessian(lambda x: value(loss, x, y), f)
    spectrum = torch.linalg.eigvalsh(h)
    assert spectrum.min() >= -1e-13 * spectrum.abs().max()


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("passive", [1.01, 1.5, 4.0])
def test_not_convex_where_it_is_larger(alpha, passive):
    # Along e_y the curvature is p (1-p) (alpha + passive (2p - 1)).
    passive = max(alpha, 0.1) * passive
    loss = SymmetricCrossEntropyLoss(alpha, passive / 4, -4.0)
    edge = (1 - alpha / passive) / 2

    def curvature(p):
        x = torch.tensor(math.log(2 * p / (1 - p)), dtype=torch.float64, requires_grad=True)
        out = value(loss, torch.stack((x, 0 * x, 0 * x)), 0)
        (g,) = torch.autograd.grad(out, x, create_graph=True)
        return torch.autograd.grad(g, x)[0].item()

    assert curvature(edge / 2) < 0 < curvature(edge + 0.1)
    for p in (edge / 2, 0.5, 0.9):
        expected = p * (1 - p) * (alpha + passive * (2 * p - 1))
        assert curvature(p) == pytest.approx(expected, rel=1e-9, abs=1e-14)


# Symmetry, and what it gives under uniform label noise.


def symmetric_losses(num_classes):
    """Losses with a constant class sum, and that sum."""
    k = num_classes
    return (
        (MulticlassMAELoss(reduction="none"), k - 1),
        (MulticlassMAELoss(scale=2.0, reduction="none"), 2 * (k - 1)),
        (ReverseCrossEntropyLoss(reduction="none"), 4 * (k - 1)),
        (ReverseCrossEntropyLoss(A=-9.0, reduction="none"), 9 * (k - 1)),
        (SymmetricCrossEntropyLoss(0.0, 0.5, -3.0, reduction="none"), 1.5 * (k - 1)),
        (CompSumLoss(tau=2.0, reduction="none"), k - 1),
        (GeneralizedCrossEntropyLoss(q=1.0, reduction="none"), k - 1),
        (LDRKLLoss(lam=math.inf, margin=0.3, reduction="none"), 0.3 * (k - 1)),
    )


def under_noise(loss, f, y, eta):
    """The exact expectation over a label that is, with probability eta, another one."""
    k = f.shape[1]
    every = torch.stack([loss(f, torch.full_like(y, label)) for label in range(k)], 1)
    flipped = torch.full((len(y), k), eta / (k - 1), dtype=torch.float64)
    flipped[torch.arange(len(y)), y] = 1 - eta
    return (flipped * every).sum(1)


@given(rows())
def test_class_sum(row):
    f, _ = row
    for loss, total in symmetric_losses(len(f)):
        close(all_values(loss, f).sum(), total, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.01, 1.0])
def test_not_symmetric_with_cross_entropy(alpha):
    loss = SymmetricCrossEntropyLoss(alpha)
    a, b = (torch.tensor(x, dtype=torch.float64) for x in ((0.0, 0.0, 0.0), (3.0, 0.0, -1.0)))
    assert abs(all_values(loss, a).sum() - all_values(loss, b).sum()) > alpha


@given(rows(), st.floats(0.0, 1.0))
def test_noise_is_an_affine_map_of_a_symmetric_loss(row, eta):
    f, y = row
    k = len(f)
    f, y = f.unsqueeze(0), torch.tensor([y])
    for loss, total in symmetric_losses(k):
        expected = (1 - eta * k / (k - 1)) * loss(f, y) + eta * total / (k - 1)
        torch.testing.assert_close(under_noise(loss, f, y, eta), expected, rtol=1e-12, atol=1e-12)


def test_noise_is_not_an_affine_map_of_other_losses():
    f = torch.randn(50, 4, dtype=torch.float64)
    y = torch.randint(4, (50,))
    eta = 0.3
    others = (CompSumLoss, GeneralizedCrossEntropyLoss, SymmetricCrossEntropyLoss, LDRKLLoss)
    for loss in (kind(reduction="none") for kind in others):
        rest = under_noise(loss, f, y, eta) - (1 - eta * 4 / 3) * loss(f, y)
        assert rest.std() > 1e-3


def linear_risk(loss, w, x, y, eta):
    return under_noise(loss, x @ w, y, eta).mean()


@pytest.mark.parametrize("eta", [0.2, 0.5])
def test_noise_does_not_move_the_minimiser_of_a_symmetric_loss(eta):
    # A linear model with weights in a box, on data that it cannot separate.
    x = torch.randn(40, 2, dtype=torch.float64)
    y = (x @ torch.randn(2, 3).double() + torch.randn(40, 3)).argmax(1)

    def fit(loss, rate):
        def objective(w):
            w = torch.tensor(w, requires_grad=True)
            # The logits of the last class are 0: else a shift would leave the minimiser open.
            full = torch.cat((w.view(2, 2), torch.zeros(2, 1, dtype=torch.float64)), 1)
            out = linear_risk(loss, full, x, y, rate)
            out.backward()
            return out.item(), w.grad.numpy()

        box = [(-3.0, 3.0)] * 4
        options = {"ftol": 1e-15, "gtol": 1e-9}
        return minimize(
            objective, np.zeros(4), jac=True, method="L-BFGS-B", bounds=box, options=options
        )

    for loss, total in (
        (MulticlassMAELoss(reduction="none"), 2),
        (ReverseCrossEntropyLoss(reduction="none"), 8),
    ):
        clean, noisy = fit(loss, 0.0), fit(loss, eta)
        affine = (1 - eta * 3 / 2) * clean.fun + eta * total / 2
        assert noisy.fun == pytest.approx(affine, rel=1e-9)
        np.testing.assert_allclose(noisy.x, clean.x, atol=1e-4)
    loss = CompSumLoss(reduction="none")
    assert np.abs(fit(loss, eta).x - fit(loss, 0.0).x).max() > 0.1


@pytest.mark.parametrize("eta", [0.2, 0.5])
def test_noise_scales_the_gradient_of_a_symmetric_loss(eta):
    x = torch.randn(60, 2, dtype=torch.float64)
    y = torch.randint(3, (60,))

    def slopes(loss):
        w = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        risks = [linear_risk(loss, w, x, y, rate) for rate in (0.0, eta)]
        return [torch.autograd.grad(risk, w)[0] for risk in risks]

    for loss, _ in symmetric_losses(3):
        clean, noisy = slopes(loss)
        torch.testing.assert_close(noisy, (1 - eta * 3 / 2) * clean, rtol=1e-9, atol=1e-13)
    clean, noisy = slopes(CompSumLoss(reduction="none"))
    assert torch.cosine_similarity(clean.flatten(), noisy.flatten(), dim=0) < 0.999


# The conditional risk.


@given(distributions(), st.floats(0.1, 5.0), st.floats(0.0, 2.0))
def test_minimisation_finds_the_order_of_the_classes(q, alpha, beta):
    loss = SymmetricCrossEntropyLoss(alpha, beta, reduction="none")
    found = least_risk(loss, q)
    assert np.abs(found.jac).max() < 1e-6
    assert (np.argsort(found.x) == np.argsort(q)).all()
    p = torch.softmax(torch.as_tensor(found.x), 0).numpy()
    # Stationary: alpha (p_k - q_k) = 4 beta p_k (q_k - sum_j q_j p_j); sharper than q.
    np.testing.assert_allclose(alpha * (p - q), 4 * beta * p * (q - q @ p), atol=1e-6)
    if beta > 0.1:
        assert p.max() > q.max()


@given(distributions())
def test_minimisation_finds_the_top_class_only_without_cross_entropy(q):
    for loss in (
        ReverseCrossEntropyLoss(reduction="none"),
        SymmetricCrossEntropyLoss(0.0, 1.0, reduction="none"),
    ):
        found = least_risk(loss, q, gtol=1e-8)
        assert found.fun == pytest.approx(4 * (1 - q.max()), abs=1e-6)
        assert found.x.argmax() == q.argmax()
        # The rest may stand in any order.
        order = np.argsort(-q)
        f = torch.zeros(len(q), dtype=torch.float64)
        f[order[0]], f[order[-1]] = 60.0, 5.0
        close(risk(loss, f, q), 4 * (1 - q.max()), rtol=1e-11)


@given(distributions(), st.floats(0.1, 5.0), st.data())
def test_the_infimum_is_not_approached_with_the_wrong_class_on_top(q, beta, data):
    f = data.draw(st.lists(numbers, min_size=len(q), max_size=len(q)))
    f = torch.tensor(f, dtype=torch.float64)
    wrong = data.draw(st.sampled_from([k for k in range(len(q)) if k != q.argmax()]))
    f[wrong] = f.max()
    gap = np.sort(q)[-1] - np.sort(q)[-2]
    loss = ReverseCrossEntropyLoss(reduction="none")
    assert risk(loss, f, q) - 4 * (1 - q.max()) >= 4 * gap / len(q) * (1 - 1e-12)
    loss = SymmetricCrossEntropyLoss(0.1, beta, reduction="none")
    best = least_risk(loss, q)
    assume(np.abs(best.jac).max() < 1e-6)
    assert risk(loss, f, q) > best.fun


def test_proper_without_reverse_cross_entropy_only():
    q = np.array([0.5, 0.3, 0.2])
    f = torch.as_tensor(np.log(q))
    entropy = -np.sum(q * np.log(q))
    loss = SymmetricCrossEntropyLoss(0.3, 0.0, reduction="none")
    close(risk(loss, f, q), 0.3 * entropy)
    assert least_risk(loss, q).fun == pytest.approx(0.3 * entropy, rel=1e-12)
    for alpha, beta in ((0.3, 0.2), *PRESETS):
        loss = SymmetricCrossEntropyLoss(alpha, beta, reduction="none")
        assert risk(loss, f, q) > least_risk(loss, q).fun + 1e-4


# Probability targets.


@pytest.mark.parametrize(
    "loss",
    [
        ReverseCrossEntropyLoss(reduction="none"),
        ReverseCrossEntropyLoss(A=-0.5, reduction="none"),
        SymmetricCrossEntropyLoss(reduction="none"),
        SymmetricCrossEntropyLoss(6.0, 0.1, -9.2, reduction="none"),
        SymmetricCrossEntropyLoss(0.0, 1.0, reduction="none"),
        SymmetricCrossEntropyLoss(1.0, 0.0, reduction="none"),
    ],
    ids=repr,
)
def test_one_hot_targets_are_index_targets(loss):
    f = (torch.randn(20, 5, dtype=torch.float64) * 6).requires_grad_()
    y = torch.randint(5, (20,))
    a, b = loss(f, one_hot(y, 5).double()), loss(f, y)
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-15)
    ga, gb = (torch.autograd.grad(x.sum(), f)[0] for x in (a, b))
    torch.testing.assert_close(ga, gb, rtol=1e-9, atol=1e-14)


@given(rows(), weights, weights, As, st.data())
def test_probabilities_enter_the_clipped_formula(row, alpha, beta, a, data):
    f, _ = row
    some = st.sampled_from((0.0, 1e-12, 1e-5, 0.1, 1.0, 3.0))
    mass = data.draw(st.lists(some, min_size=len(f), max_size=len(f)))
    assume(sum(mass) > 0.05)
    q = torch.tensor(mass, dtype=torch.float64) / sum(mass)
    f, q = f.unsqueeze(0), q.unsqueeze(0)
    close(ReverseCrossEntropyLoss(a)(f, q), reverse(f, q, a).sum(), atol=1e-13)
    expected = (alpha * forward(f, q) + beta * reverse(f, q, a)).sum()
    close(SymmetricCrossEntropyLoss(alpha, beta, a)(f, q), expected, atol=1e-13)


def test_probabilities_are_not_an_expectation():
    f, q = torch.zeros(1, 2, dtype=torch.float64), torch.full((1, 2), 0.5, dtype=torch.float64)
    close(ReverseCrossEntropyLoss()(f, q), math.log(2))
    # The expectation would be 4 (1 - 1/2) = 2.
    close(SymmetricCrossEntropyLoss(0.1, 1.0)(f, q), 1.1 * math.log(2))


@pytest.mark.parametrize("weighted", [False, True])
def test_class_weight_of_probabilities(weighted):
    f = torch.randn(7, 4, dtype=torch.float64)
    q = torch.softmax(torch.randn(7, 4).double() * 3, 1)
    cw = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    weight = torch.rand(7, dtype=torch.float64) if weighted else None
    w = weight if weighted else torch.ones(7, dtype=torch.float64)
    mass = (q * cw).sum(1)
    rce, ce = reverse(f, q, -4.0) * mass, -(torch.log_softmax(f, 1) * q * cw).sum(1)
    total = (w * mass).sum()
    loss = ReverseCrossEntropyLoss(class_weight=cw)
    close(loss(f, q, weight=weight), (w * rce).sum() / total)
    loss = SymmetricCrossEntropyLoss(0.3, 2.0, class_weight=cw)
    close(loss(f, q, weight=weight), (w * (0.3 * ce + 2.0 * rce)).sum() / total)


def test_an_infinite_loss_counts_only_where_the_class_can_occur():
    f = torch.tensor([[0.0, -math.inf, 1.0]], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[0.25, 0.0, 0.75]], dtype=torch.float64)
    loss = SymmetricCrossEntropyLoss(0.5, 1.0)
    out = loss(f, q)
    p = torch.softmax(f[:, [0, 2]].detach(), 1)
    q2 = q[:, [0, 2]]
    close(out, -(0.5 * q2 * p.log() + p * q2.log()).sum())
    (g,) = torch.autograd.grad(out, f)
    assert torch.isfinite(g).all()
    assert g[0, 1] == 0
    certain = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64)
    assert loss(f, certain) == math.inf
    assert torch.isfinite(ReverseCrossEntropyLoss()(f, certain))
