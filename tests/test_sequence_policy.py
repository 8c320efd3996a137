"""Policy losses on answers and steps: P3O, direct advantage, f-DPG; SuperHF and its filter."""

import collections
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import (
    DirectAdvantageLoss,
    FDPGLoss,
    P3OLoss,
    SequenceNLLLoss,
    SuperHFLoss,
    best_of_k,
    sequence_logps,
)
from processes import run_processes

INF, NAN = math.inf, math.nan
F32, F64 = torch.float32, torch.float64
N = 6
VARIANTS = ("separate", "joint")


def close(found, expected, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def each(loss, *inputs, **options):
    return loss(reduction="none", **options)(*inputs)


def gradients(fn, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(fn(*leaves).sum(), leaves)


# P3O.


def pairs(seed=0, spread=0.6):
    """Log-probabilities of two answers, those of the old policy, rewards."""
    old = draw(2, N, seed=seed) - 3.0
    return *(old + spread * draw(2, N, seed=seed + 1)), *old, *draw(2, N, seed=seed + 2)


def p3o(variant, eps, one, two, old_1, old_2, r_1, r_2):
    """The formulas of the card."""
    w_1, w_2, gap = (one - old_1).exp(), (two - old_2).exp(), r_1 - r_2
    if variant == "separate":
        total = 0.0
        for c, w in ((gap * w_2, w_1), (-gap * w_1, w_2)):
            c = c.detach()
            total = total + torch.minimum(c * w, c * w.clip(1 - eps, 1 + eps))
        return -total / 2
    s, x, m = (gap * w_1 * w_2).detach(), one - two, old_1 - old_2
    clipped = torch.maximum(torch.minimum(x, m + eps), m - eps)
    return -torch.minimum(s * x, s * clipped) / 2


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("eps", [0.1, 0.3])
def test_p3o_is_the_plain_formula(variant, eps):
    one, two, *others = pairs()
    close(each(P3OLoss, one, two, *others, clip=eps, variant=variant),
          p3o(variant, eps, one, two, *others))  # fmt: skip
    loss = P3OLoss(eps, variant, reduction="sum")
    found = gradients(lambda x, y: loss(x, y, *others), one, two)
    expected = gradients(lambda x, y: p3o(variant, eps, x, y, *others), one, two)
    close(found, expected)
    some = sum(int((g == 0).sum()) for g in found)
    assert 0 < some < 2 * N  # some are clipped, others are not


def test_p3o_defaults():
    close(P3OLoss()(*pairs()), p3o("separate", 0.2, *pairs()).mean())


@pytest.mark.parametrize("variant", VARIANTS)
def test_p3o_on_policy_is_the_pairwise_policy_gradient(variant):
    one, two, _, _, r_1, r_2 = pairs()
    loss = P3OLoss(0.05, variant, reduction="sum")
    half = (r_1 - r_2) / 2
    close(gradients(lambda x, y: loss(x, y, one, two, r_1, r_2), one, two), (-half, half))
    # Also where the caller did not detach.
    close(gradients(lambda x, y: loss(x, y, x, y, r_1, r_2), one, two), (-half, half))


@pytest.mark.parametrize("variant", VARIANTS)
def test_p3o_unclipped_is_the_gradient_of_the_expected_reward(variant):
    theta, old, reward = draw(5, seed=1), draw(5, seed=2).log_softmax(0), draw(5, seed=3)
    i, j = (x.reshape(-1) for x in torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij"))
    both = (old[i] + old[j]).exp()

    def expected_loss(theta):
        logps = theta.log_softmax(0)
        inputs = logps[i], logps[j], old[i], old[j], reward[i], reward[j]
        return both * each(P3OLoss, *inputs, clip=INF, variant=variant)

    (found,) = gradients(expected_loss, theta)
    close(found, gradients(lambda theta: -theta.softmax(0) @ reward, theta)[0])
    # Within the clip, that of one pair is the same.
    inputs = pairs(spread=0.01)
    one, two, *others = inputs
    loss, free = (P3OLoss(c, variant) for c in (0.3, INF))
    close(*(gradients(lambda x, y, f=f: f(x, y, *others), one, two) for f in (loss, free)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_p3o_sees_differences_of_rewards_only_and_no_order_of_answers(variant):
    one, two, old_1, old_2, r_1, r_2 = pairs()
    expected = each(P3OLoss, one, two, old_1, old_2, r_1, r_2, variant=variant)
    c = draw(N, seed=9)
    close(each(P3OLoss, one, two, old_1, old_2, r_1 + c, r_2 + c, variant=variant), expected)
    close(each(P3OLoss, two, one, old_2, old_1, r_2, r_1, variant=variant), expected)


def test_p3o_holds_what_has_moved_far_enough_and_only_that():
    zero = torch.zeros(1, dtype=F64)
    r_1, r_2 = zero + 1, zero
    for variant, alone in (("separate", True), ("joint", False)):
        loss = P3OLoss(0.2, variant)

        def slopes(up, loss=loss):
            return gradients(lambda x, y: loss(x, y, zero, zero, r_1, r_2), zero + up, zero)

        good, bad = slopes(0.3)
        assert good == 0
        assert (bad > 0) == alone  # the other answer has not moved
        good, bad = slopes(-0.3)  # the wrong way: never held back
        assert good < 0 < bad


def test_p3o_gives_no_gradient_to_what_was_drawn():
    one, two, *others = pairs()
    for variant in VARIANTS:
        leaves = [x.clone().requires_grad_() for x in others]
        assert not P3OLoss(variant=variant)(one, two, *leaves).requires_grad


@pytest.mark.parametrize("variant", VARIANTS)
def test_p3o_far_off_the_old_policy(variant):
    old = torch.full((4,), -500.0)
    one, two = (
        old + torch.tensor([1e3, -1e3, 25.0, -25.0]),
        old - torch.tensor([1e3, 1e3, 0.0, 5.0]),
    )
    r_1, r_2 = torch.tensor([1.0, -1.0, 9.0, 2.0]), torch.zeros(4)
    values = each(P3OLoss, one, two, old, old, r_1, r_2, variant=variant)
    assert values.isfinite().all()
    free = P3OLoss(INF, variant)
    for g in gradients(lambda x, y: free(x, y, old, old, r_1, r_2), one, two):
        assert g.isfinite().all()
    if variant == "separate":
        # exp(25) is taken for exp(20).
        close(values[2], torch.tensor(-0.5 * (9 * 1.2 - 9 * math.exp(20))), rtol=1e-6)


# Direct advantages.


def test_direct_advantage():
    policy, reference, advantage = 3 * draw(3, N)
    rho = policy - reference
    close(DirectAdvantageLoss()(policy, reference, advantage),
          ((rho - advantage / 0.02).square() / 2).mean())  # fmt: skip
    found = each(DirectAdvantageLoss, policy, reference, advantage, beta=0.7)
    close(found, (rho - advantage / 0.7) ** 2 / 2)
    loss = DirectAdvantageLoss(0.7, reduction="sum")
    slopes = gradients(lambda x, y: loss(x, y, advantage), policy, reference)
    close(slopes, (rho - advantage / 0.7, advantage / 0.7 - rho))
    assert not loss(policy, reference, advantage.clone().requires_grad_()).requires_grad
    assert loss(reference + advantage / 0.7, reference, advantage) < 1e-25


def test_direct_advantage_at_the_reference_is_the_policy_gradient():
    theta, advantage = draw(5), draw(5, seed=1)
    reference = theta.log_softmax(0)
    loss = DirectAdvantageLoss(0.3, reduction="none")
    by_loss = gradients(lambda t: loss(t.log_softmax(0), reference, advantage), theta)[0]
    by_policy = gradients(lambda t: advantage * t.log_softmax(0), theta)[0]
    close(-0.3 * by_loss, by_policy)


# f-DPG.

F = {
    "kl": lambda t: -t.log(),
    "reverse_kl": lambda t: t * t.log(),
    "js": lambda t: t * (2 * t / (1 + t)).log() + (2 / (1 + t)).log(),
    "tv": lambda t: (t - 1).abs() / 2,
    "chi2": lambda t: 1 / t + t - 2,
    "reverse_chi2": lambda t: (t - 1) ** 2,
}


def minus_slope(f, log_t):
    """-f'(t), by autograd."""
    t = log_t.exp().requires_grad_()
    return -torch.autograd.grad(F[f](t).sum(), t)[0]


def of_baseline(loss, constant):
    """The loss with that baseline."""
    loss.baseline_rewards.fill_(constant)
    loss.baseline_count.fill_(len(loss.baseline_rewards))
    return loss


@pytest.mark.parametrize("f", F)
@given(st.integers(0, 10_000), st.sampled_from([None, 0.0, -1.5, 40.0]))
def test_fdpg_is_on_average_the_gradient_of_the_divergence(f, seed, constant):
    theta, scores, proposal = 1.5 * draw(3, 7, seed=seed)
    q, p, log_z = proposal.softmax(0), scores.softmax(0), scores.logsumexp(0)
    loss = FDPGLoss(f, constant is not None, reduction="none").double()
    if constant is not None:
        of_baseline(loss, constant)

    def expected_loss(theta):
        return q * loss(theta.log_softmax(0), scores, q.log(), log_z)

    (found,) = gradients(expected_loss, theta)
    (wanted,) = gradients(lambda theta: p * F[f](theta.softmax(0) / p), theta)
    close(found, wanted, rtol=1e-9, atol=1e-9)


def test_js_is_of_both_to_their_middle():
    pi, p = draw(2, 7).softmax(1)
    m = (pi + p) / 2
    both = (pi * (pi / m).log()).sum() + (p * (p / m).log()).sum()
    close((p * F["js"](pi / p)).sum(), both)


@pytest.mark.parametrize("f", F)
def test_fdpg_is_the_plain_formula(f):
    policy, scores, proposal = draw(3, N) - 3.0
    for log_z in (0.4, torch.tensor(0.4, dtype=F64), draw(N, seed=4)):
        reward = minus_slope(f, policy - scores + log_z)
        w = (policy - proposal).exp()
        found = each(FDPGLoss, policy, scores, proposal, log_z, divergence=f, use_baseline=False)
        close(found, -w * reward * policy)
        loss = of_baseline(FDPGLoss(f, reduction="sum").double(), 0.7)
        close(loss.baseline(), torch.tensor(0.7, dtype=F64))
        leaves = [x.clone().requires_grad_() for x in (policy, scores, proposal)]
        slopes = torch.autograd.grad(loss(*leaves, log_z), leaves, allow_unused=True)
        close(slopes[0], -w * (reward - 0.7))
        assert slopes[1] is slopes[2] is None
    assert not loss(policy, scores, proposal, torch.tensor(0.4, requires_grad=True)).requires_grad


def test_fdpg_defaults():
    loss = FDPGLoss()
    assert (loss.divergence, len(loss.baseline_rewards)) == ("js", 1024)
    assert loss.use_baseline
    assert "baseline_rewards" in loss.state_dict()


def rewards_of(batch):
    """Inputs on policy whose rewards, in the reverse KL, are these numbers."""
    x = torch.tensor(batch, dtype=F64)
    return torch.zeros_like(x), 1.0 + x, torch.zeros_like(x), 0.0


def baseline_used(loss, *batch, **keywords):
    """Evaluate the loss on rewards; return what was taken off them."""
    logps, scores, proposal, log_z = rewards_of(batch)
    leaf = logps.requires_grad_()
    out = loss(leaf, scores, proposal, log_z, **keywords)
    return float((torch.autograd.grad(out.sum(), leaf)[0] + torch.tensor(batch))[0])


@given(st.lists(st.lists(st.integers(-9, 9), min_size=1, max_size=7), max_size=6),
       st.integers(1, 8))  # fmt: skip
def test_the_baseline_is_the_mean_of_the_window_before_the_batch(batches, window):
    loss = FDPGLoss("reverse_kl", baseline_window=window, reduction="none").double()
    seen = collections.deque(maxlen=window)
    for batch in batches:
        mean = sum(seen) / len(seen) if seen else 0.0
        assert baseline_used(loss, *map(float, batch)) == pytest.approx(mean, abs=1e-12)
        seen.extend(batch)
        assert loss.baseline_count == len(seen)
        assert loss.baseline_rewards[window - len(seen):].tolist() == list(seen)  # fmt: skip
    loss.reset()
    assert (loss.baseline_count, loss.baseline()) == (0, 0)


def test_what_is_not_in_the_window():
    loss = FDPGLoss("reverse_kl", baseline_window=5, reduction="none").double()
    weight = torch.tensor([1.0, 0.0, 2.0], dtype=F64)
    baseline_used(loss, 1.0, 50.0, 4.0, weight=weight)
    assert loss.baseline_rewards.tolist() == [0, 0, 0, 1, 4]
    logps, scores, proposal, log_z = rewards_of([2.0, 50.0, 7.0])
    scores[1] = NAN
    loss(logps, scores, proposal, log_z, weight=weight)
    assert loss.baseline_rewards.tolist() == [0, 1, 4, 2, 7]
    loss(logps, scores, proposal, log_z, weight=weight[1:2])  # of all
    scores[1] = 30.0
    with torch.no_grad():
        loss(logps, scores, proposal, log_z)
    loss(logps, scores, proposal, log_z, False)
    loss.eval()
    loss(logps, scores, proposal, log_z)
    with pytest.raises(ValueError, match="target_log_scores"):
        loss.train()(logps, scores[:1], proposal, log_z)
    assert loss.baseline_rewards.tolist() == [0, 1, 4, 2, 7]
    with pytest.raises(
        ValueError, match="policy_logps: expected device meta, where the state lies"
    ):
        FDPGLoss().to("meta")(logps, scores, proposal, log_z)
    alone = FDPGLoss("kl", False)
    alone(logps, scores, proposal, log_z)
    assert alone.baseline() == alone.baseline_count == 0


def test_a_batch_in_half_precision_goes_into_the_window_in_full():
    loss = FDPGLoss("reverse_kl", baseline_window=4)
    policy, scores, proposal = (draw(3, 4) - 300.0).bfloat16()
    loss(policy, scores, proposal, 0.3)
    expected = scores.float() - policy.float() - 0.3 - 1
    close(loss.baseline_rewards, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("f", F)
def test_fdpg_far_off_the_target(f):
    scores = torch.tensor([-INF, -1e4, 1e4, -40.0, 40.0])
    zero = torch.zeros(5)
    options = {"divergence": f, "use_baseline": False}
    leaf = zero.clone().requires_grad_()
    values = each(FDPGLoss, leaf - 1.0, scores, zero - 1.0, 0.0, **options)
    assert values.isfinite().all()
    (slope,) = torch.autograd.grad(values.sum(), leaf)
    log_t = torch.tensor([30.0, 30.0, -30.0, 30.0, -30.0], dtype=F64)
    close(-slope.double(), minus_slope(f, log_t), rtol=1e-5, atol=1e-7)
    wide = each(FDPGLoss, zero - 1.0, scores, zero - 1.0, 0.0, max_log_ratio=35.0, **options)
    log_t = torch.tensor(35.0, dtype=F64)
    close(wide[3].double(), minus_slope(f, log_t), rtol=1e-5, atol=1e-7)
    # Of a proposal that would never say it.
    steep = each(FDPGLoss, zero + 1.0, zero, zero - 1e3, 0.0, max_log_ratio=0.5, **options)
    reward = minus_slope(f, torch.tensor(0.5, dtype=F64))
    close(steep[0].double(), -math.exp(20) * reward, rtol=1e-5)


def _two_processes(rank, world_size):
    options = {"baseline_window": 7, "reduction": "none"}
    split, whole = FDPGLoss("kl", **options).double(), FDPGLoss("kl", **options).double()
    weight, calls = torch.arange(5) != 2, []
    for seed, end in enumerate((2, 5, 1)):  # unequal batches, then one process without rows
        own = slice(0, end) if rank == 0 else slice(end, 5)
        batch = draw(3, 5, seed=seed)
        calls.append((batch, own, split(*(x[own] for x in batch), 0.5, weight=weight[own])))
    torch.distributed.destroy_process_group()
    # One process with the whole batch.
    for batch, own, found in calls:
        close(found, whole(*batch, 0.5, weight=weight)[own])
    close(split.baseline_rewards, whole.baseline_rewards)
    assert split.baseline_count == whole.baseline_count == 7


def test_the_window_is_that_of_all_processes(tmp_path):
    run_processes(_two_processes, 2, tmp_path)


# SuperHF.


def language():
    """Logits, labels of which some are ignored, the reference's logits, a mask."""
    logits, reference = draw(2, 3, 5, 4)
    labels = torch.tensor([[0, 3, 1, 1, 2], [2, 0, 3, 1, 0], [1, 1, 2, 0, 3]])
    labels[:, 0] = labels[1, 3] = -100
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 4] = mask[2, 1] = False
    return logits, labels, reference, mask


def written_out(logits, labels, reference, mask, c, kappa=0.0):
    """Token by token: position t predicts token t + 1."""
    out = []
    for f, y, g, m in zip(logits, labels, reference, mask, strict=True):
        p, r = f.softmax(-1), g.softmax(-1)
        at = [t for t in range(len(y) - 1) if m[t + 1] and y[t + 1] != -100]
        nll = sum(-p[t, y[t + 1]].log() for t in at) / len(at)
        kl = sum((r[t] * (r[t] / p[t]).log()).sum() for t in at) / len(at)
        out.append(nll + c * kl + kappa / nll)
    return torch.stack(out)


@pytest.mark.parametrize(("c", "kappa"), [(0.35, 0.0), (2.0, 0.0), (0.5, 0.3)])
def test_superhf_is_exact_over_the_vocabulary(c, kappa):
    logits, labels, reference, mask = language()
    expected = written_out(logits, labels, reference, mask, c, kappa)
    options = {"kl_coef": c, "inverse_coef": kappa}
    close(each(SuperHFLoss, logits, labels, reference, mask, **options), expected)
    loss = SuperHFLoss(**options)
    close(loss(logits, labels, reference, mask), expected.mean())
    found = gradients(lambda f, g: loss(f, labels, g, mask), logits, reference)
    plain = gradients(lambda f, g: written_out(f, labels, g, mask, c, kappa).mean(),
                      logits, reference)  # fmt: skip
    close(found, plain)
    # Aligned by the caller.
    shifted = logits[:, :-1], labels[:, 1:], reference[:, :-1], mask[:, 1:].double()
    close(each(SuperHFLoss, *shifted, shift=False, **options), expected)


def test_superhf_defaults_and_closed_form_of_the_gradient():
    logits, labels, reference, _ = language()
    labels = labels.clamp(min=0)
    loss = SuperHFLoss(reduction="sum")
    (found,) = gradients(lambda f: loss(f, labels, reference), logits)
    p, r = logits.softmax(-1), reference.softmax(-1)
    onehot = torch.eye(4, dtype=F64)[labels.roll(-1, 1)]
    expected = (p - onehot + 0.35 * (p - r)) / 4
    expected[:, -1] = 0
    close(found, expected)
    assert found.flatten(1).norm(dim=1).max() < loss.properties().lipschitz


def test_superhf_without_divergence_is_raft():
    logits, labels, reference, mask = language()
    logps, lengths = sequence_logps(logits, labels, mask, return_lengths=True)
    expected = SequenceNLLLoss("sequence")(logps, lengths)
    close(SuperHFLoss(0.0)(logits, labels, mask=mask), expected)
    close(SuperHFLoss(0.0)(logits, labels, reference, mask), expected)
    # At the reference the divergence is 0.
    close(SuperHFLoss(3.0)(logits, labels, logits, mask), expected)


def test_superhf_keeps_away_from_certainty():
    sharp = torch.linspace(-3, 12, 200, dtype=F64)
    logits = torch.stack((sharp, torch.zeros_like(sharp)), 1)[:, None]
    labels = torch.zeros(200, 1, dtype=torch.long)
    loss = SuperHFLoss(0.0, 0.04, shift=False, reduction="none")
    values, nll = loss(logits, labels), torch.log1p((-sharp).exp())
    assert nll[values.argmin()] == pytest.approx(0.2, abs=0.02)
    far = loss(torch.tensor([[[900.0, 0.0]]], dtype=F64), labels[:1])
    close(far, torch.tensor([0.04 / 1e-6], dtype=F64))


def test_superhf_of_tokens_that_do_not_count():
    logits, labels, reference, mask = language()
    expected = SuperHFLoss()(logits, labels, reference, mask)
    lost = torch.ones_like(mask)
    lost[:, :-1] = ~(mask & (labels != -100))[:, 1:]
    for fill in (NAN, INF, -INF):
        leaf = logits.masked_fill(lost[..., None], fill).requires_grad_()
        out = SuperHFLoss()(leaf, labels, reference.masked_fill(lost[..., None], fill), mask)
        close(out, expected)
        (slope,) = torch.autograd.grad(out, leaf)
        assert (slope[lost] == 0).all()
        assert slope.isfinite().all()
    # An answer without tokens is not in the mean.
    mask[1] = False
    both = [x[[0, 2]] for x in (logits, labels, reference, mask)]
    for loss in (SuperHFLoss(), SuperHFLoss(inverse_coef=0.3)):
        close(loss(logits, labels, reference, mask), loss(*both))
    assert SuperHFLoss()(logits, labels, reference, mask & False) == 0


def test_superhf_of_tokens_that_the_reference_never_says():
    logits, labels, reference = (x[:1, :3] for x in language()[:3])
    logits[..., 3] = reference[..., 3] = -INF
    labels = labels % 3
    loss = SuperHFLoss(0.7)
    expected = loss(logits[..., :3], labels, reference[..., :3])
    close(loss(logits, labels, reference), expected)
    for g in gradients(lambda f, g: loss(f, labels, g), logits, reference):
        assert g.isfinite().all()
    assert loss(logits, labels, torch.zeros_like(reference)) == INF


def test_superhf_has_no_negative_divergence():
    # Of distributions that agree up to rounding.
    logits = 3 * draw(200, 1, 7).float()
    moved = logits + 1e-7 * draw(200, 1, 7, seed=1).float() + 5.0
    labels = torch.zeros(200, 1, dtype=torch.long)
    log_p, log_r = moved.log_softmax(-1), logits.log_softmax(-1)
    assert (log_r.exp() * (log_r - log_p)).sum(-1).min() < -1e-8
    values = each(SuperHFLoss, moved, labels, logits, kl_coef=1e6, shift=False)
    assert (values >= each(SuperHFLoss, moved, labels, kl_coef=0.0, shift=False)).all()


def test_superhf_in_half_precision():
    logits, labels, reference, mask = language()
    low = logits.bfloat16(), labels, reference.bfloat16(), mask
    found = SuperHFLoss()(*low)
    assert found.dtype == F32
    wide = (x.double() if x.dtype is torch.bfloat16 else x for x in low)
    close(found.double(), SuperHFLoss()(*wide), 1e-6, 1e-6)


@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=4, max_size=4), max_size=5), st.integers(1, 4)
)
def test_best_of_k(rows, k):
    rewards = torch.tensor(rows, dtype=F32).reshape(-1, 4)
    found = best_of_k(rewards, k)
    assert found.dtype is torch.bool
    for row, kept in zip(rows, found.tolist(), strict=True):
        first = sorted(range(4), key=lambda j: -row[j])[:k]
        assert [j for j in range(4) if kept[j]] == sorted(first)


def test_best_of_k_of_one_prompt_and_of_impossible_answers():
    rewards = torch.tensor([-INF, -3.0, -INF], dtype=torch.bfloat16, requires_grad=True)
    found = best_of_k(rewards)
    assert found.tolist() == [False, True, False]
    assert not found.requires_grad
    assert best_of_k(rewards, 2).tolist() == [True, True, False]
    assert best_of_k(torch.zeros(2, 3, 40)).sum(-1).eq(1).all()
    assert best_of_k(torch.zeros(2, 3, 40))[..., 0].all()


@pytest.mark.parametrize(
    ("rewards", "k", "error", "message"),
    [
        ([1.0], 1, TypeError, "rewards: expected a tensor, got list"),
        (torch.arange(3), 1, TypeError, "rewards: expected floating point, got torch.int64"),
        (torch.tensor(1.0), 1, ValueError, r"rewards: expected shape \(..., K\), got a 0-dim"),
        (torch.tensor([1.0, NAN]), 1, ValueError, "rewards: expected numbers, got nan"),
        (torch.zeros(2, 3), 0, ValueError, "k: expected at least 1, got 0"),
        (torch.zeros(2, 3), 4, ValueError, "k: expected at most K = 3, got 4"),
        (torch.zeros(2, 3), 1.0, TypeError, "k: expected an int, got float"),
    ],
)
def test_best_of_k_refuses(rewards, k, error, message):
    with pytest.raises(error, match=message):
        best_of_k(rewards, k)
