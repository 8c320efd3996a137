"""Policy losses of tokens: against loops over tokens, and at the policy that wrote them."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

from lossary import (
    DecoupledPPOLoss,
    GRPOLoss,
    NFTLoss,
    StableReinforceLoss,
    approximate_proximal_logps,
    filter_advantages,
    global_normalizer,
    group_advantages,
    grpo_lambda_reward,
    linear_token_logps,
    token_logps,
)

INF, NAN = math.inf, math.nan
F32, F64 = torch.float32, torch.float64
N, T = 5, 6
VARIANTS = ("grpo", "bnpo", "dapo", "dr_grpo", "cispo")
TOKEN_MEANS = ("bnpo", "dapo", "cispo")


def batch(seed=8, spread=0.5):
    """Policies around log-probabilities of tokens, advantages, a ragged mask with an empty row."""
    generator = torch.Generator().manual_seed(seed)
    base = -torch.rand(N, T, dtype=F64, generator=generator) - 0.1
    policy, old, other = base + spread * torch.randn(3, N, T, dtype=F64, generator=generator)
    advantages = torch.tensor([0.3, -1.2, 1.6, -0.1, -0.8], dtype=F64)
    mask = torch.arange(T) < torch.tensor([6, 3, 1, 0, 4]).unsqueeze(1)
    mask[0, 2] = False
    return policy, old, other, advantages, mask


def close(found, expected, rtol=1e-11, atol=1e-13):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def slope(fn, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(fn(leaf).sum(), leaf)[0]


def grpo(variant, **options):
    if variant == "dr_grpo":
        options["max_length"] = 7
    return GRPOLoss(variant=variant, **options)


def average(terms, variant):
    """The published scalar: of a list of each answer's token losses."""
    if variant == "grpo":
        return sum(sum(x) / max(len(x), 1) for x in terms) / len(terms)
    if variant == "dr_grpo":
        return sum(sum(x) for x in terms) / (7 * len(terms))
    return sum(sum(x) for x in terms) / sum(map(len, terms))


def published(policy, old, advantages, mask, reference=None, *, variant="grpo", low=0.2, high=0.2,
              beta=0.0, level="token", delta=INF):  # fmt: skip
    """One number, token by token."""
    terms = []
    for i in range(len(policy)):
        at = [t for t in range(policy.shape[1]) if mask[i, t]]
        log_ratio = {t: policy[i, t] - old[i, t] for t in at}
        if level == "sequence":
            log_ratio = dict.fromkeys(at, sum(log_ratio.values()) / max(len(at), 1))
        row = []
        for t in at:
            a = advantages[i] if advantages.dim() == 1 else advantages[i, t]
            ratio = torch.exp(log_ratio[t])
            if variant == "cispo":
                value = -ratio.detach().clamp(max=high) * a * policy[i, t]
            else:
                value = -torch.min(ratio.clamp(max=delta) * a, ratio.clamp(1 - low, 1 + high) * a)
            if beta:
                u = reference[i, t] - policy[i, t]
                value = value + beta * (torch.exp(u) - u - 1)
            row.append(value)
        terms.append(row)
    return average(terms, variant)


# GRPO.


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_mean_is_the_published_scalar(variant, level, beta):
    policy, old, reference, advantages, mask = batch()
    bounds = {"low": 0.1, "high": 1.5 if variant == "cispo" else 0.3}
    loss = grpo(variant, eps_low=0.1, eps_high=bounds["high"], beta=beta, level=level)
    further = (reference,) if beta else ()
    for a in (advantages, torch.randn(N, T, dtype=F64)):

        def expected(x, a=a):
            return published(x, old, a, mask, reference, variant=variant, beta=beta, level=level,
                             **bounds)  # fmt: skip

        close(loss(policy, old, a, mask, *further), expected(policy))
        found = slope(lambda x, a=a: loss(x, old, a, mask, *further), policy)
        close(found, slope(expected, policy))
        assert (found[~mask] == 0).all()


def test_two_sided_clipping_bounds_what_negative_advantages_leave_free():
    policy, old, _, advantages, mask = batch(spread=1.5)
    found = GRPOLoss(0.1, 0.3, delta=2.0)(policy, old, advantages, mask)
    close(found, published(policy, old, advantages, mask, low=0.1, high=0.3, delta=2.0))
    free = GRPOLoss(0.1, 0.3)
    assert (found - free(policy, old, advantages, mask)).abs() > 1e-3
    up = advantages.abs()
    close(GRPOLoss(0.1, 0.3, delta=2.0)(policy, old, up, mask), free(policy, old, up, mask))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_on_policy_the_gradient_is_that_of_reinforce(variant, level):
    policy, _, _, advantages, mask = batch()
    loss = grpo(variant, level=level)

    def reinforce(x):
        return average(
            [[-advantages[i] * x[i, t] for t in range(T) if mask[i, t]] for i in range(N)], variant
        )

    expected = slope(reinforce, policy)
    close(slope(lambda x: loss(x, None, advantages, mask), policy), expected)
    close(slope(lambda x: loss(x, x.detach(), advantages, mask), policy), expected)
    # The old policy is a constant, also where the caller forgot to say so.
    close(slope(lambda x: loss(x, x, advantages, mask), policy), expected)
    loss = grpo(variant, level=level, beta=0.3)
    close(slope(lambda x: loss(x, None, advantages, mask, x.detach()), policy), expected)
    if variant != "cispo":
        ones = torch.full((N, T), 1.0, dtype=F64)
        value = average([[-advantages[i] for t in range(T) if mask[i, t]] for i in range(N)],
                        variant)  # fmt: skip
        close(grpo(variant)(-ones, None, advantages, mask), value)


def test_old_policy_and_advantages_are_constants_and_the_reference_is_not():
    policy, old, reference, advantages, mask = batch()
    leaves = [x.clone().requires_grad_() for x in (old, advantages, reference)]
    for variant in VARIANTS:
        loss = grpo(variant, beta=0.3)
        out = loss(policy, leaves[0], leaves[1], mask, leaves[2])
        found = torch.autograd.grad(out, leaves, allow_unused=True)
        assert found[:2] == (None, None)
        assert found[2].abs().sum() > 0


@pytest.mark.parametrize("variant", TOKEN_MEANS)
def test_token_means_are_of_all_tokens_weighted_accumulated_or_not(variant):
    policy, old, _, advantages, mask = batch()
    loss = grpo(variant)
    every = (policy, old, advantages, mask)
    sums = GRPOLoss(variant=variant, reduction="none")(*every)
    count = mask.sum(1)
    weight = torch.tensor([1.0, 0.0, 3.0, 2.0, 0.5], dtype=F64)
    close(loss(*every), sums.sum() / count.sum())
    close(loss(*every, weight=weight), (weight * sums).sum() / (weight * count).sum())
    n = global_normalizer(mask * weight.unsqueeze(1))
    parts = [
        loss(*(x[at] for x in every), weight=weight[at], normalizer=n)
        for at in (slice(0, 2), slice(2, 5))
    ]
    close(parts[0] + parts[1], loss(*every, weight=weight))
    # TRL's form: of each answer N times its sum over the number of all tokens.
    close((N * sums / count.sum()).mean(), loss(*every))


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo"])
def test_means_of_answers_count_answers_without_tokens_unless_their_weight_is_0(variant):
    policy, old, _, advantages, mask = batch()
    loss, every = grpo(variant), (policy, old, advantages, mask)
    there = mask.any(1)
    without = loss(*(x[there] for x in every))
    close(loss(*every), without * 4 / 5)
    close(loss(*every, weight=there), without)
    parts = [loss(*(x[at] for x in every), normalizer=N) for at in (slice(0, 2), slice(2, 5))]
    close(parts[0] + parts[1], loss(*every))


def losses(advantages, other):
    """All losses of the family as functions of policy and mask."""
    right = advantages > 0
    rate = torch.full_like(advantages, 0.4)
    return {
        **{v: lambda x, m, v=v: grpo(v, beta=0.1)(x, other, advantages, m, other)
           for v in VARIANTS},
        "sequence": lambda x, m: GRPOLoss(level="sequence")(x, other, advantages, m),
        "stable": lambda x, m: StableReinforceLoss()(x, other, advantages, m),
        "decoupled": lambda x, m: DecoupledPPOLoss()(x, other, other, advantages, m),
        "nft": lambda x, m: NFTLoss()(x, other, m, right, rate),
        "nft sequence": lambda x, m: NFTLoss(ratio_level="sequence")(x, other, m, right, rate),
    }  # fmt: skip


@pytest.mark.parametrize("lost", [NAN, INF, -INF])
def test_what_the_mask_leaves_out_touches_neither_value_nor_gradient(lost):
    policy, old, _, advantages, mask = batch()
    spoiled = old.masked_fill(~mask, lost)
    per_token = advantages.unsqueeze(1).expand(N, T).masked_fill(~mask, lost)
    clean = losses(advantages, old)
    alone = advantages.masked_fill(~mask.any(1), lost)
    for name, fn in losses(alone, spoiled).items():
        x = policy.masked_fill(~mask, lost)
        close(fn(x, mask), clean[name](policy, mask))
        for numbers in (mask, mask.long(), mask.double()):
            found = slope(lambda x, fn=fn, m=numbers: fn(x, m), x)
            close(found, slope(lambda x, n=name: clean[n](x, mask), policy))
    found = GRPOLoss()(policy, old, per_token, mask)
    close(found, GRPOLoss()(policy, old, advantages, mask))


@pytest.mark.parametrize("name", list(losses(torch.ones(N), torch.ones(N, T))))
def test_one_token_counts_alone_and_none_gives_0(name):
    policy, old, _, advantages, _ = batch()
    fn = losses(advantages, old)[name]
    for i, t in ((0, 0), (2, 4), (4, 5)):
        mask = torch.zeros(N, T, dtype=torch.bool)
        mask[i, t] = True
        found = slope(lambda x, m=mask: fn(x, m), policy)
        assert (found[~mask] == 0).all()
        whole = losses(advantages[i : i + 1], old[i : i + 1, t : t + 1])[name]
        value = whole(policy[i : i + 1, t : t + 1], mask[i : i + 1, t : t + 1])
        per_answer = name in ("grpo", "dr_grpo", "sequence", "stable")
        close(fn(policy, mask), value / (N if per_answer else 1))
    none = torch.zeros(N, T)
    assert fn(policy, none) == 0
    assert (slope(lambda x: fn(x, none), policy) == 0).all()


@pytest.mark.parametrize("name", list(losses(torch.ones(N), torch.ones(N, T))))
@pytest.mark.parametrize("dtype", [F32, F64])
def test_far_out_everything_is_finite(name, dtype):
    _, _, _, advantages, _ = batch()
    mask, zero = torch.ones(N, T, dtype=torch.bool), torch.zeros(N, T, dtype=dtype)
    fn = losses(advantages.to(dtype), zero)[name]
    for far in (-1e4, -100.0, 21.0, 100.0, 1e4):
        x = zero + far
        x[:, 0] = 0.0
        assert fn(x, mask).isfinite()
        assert slope(lambda x: fn(x, mask), x).isfinite().all()


def test_log_ratios_stop_at_20():
    old, mask = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1)
    loss, worse = GRPOLoss(), torch.tensor([-2.0], dtype=F64)
    at = [torch.full((1, 1), x, dtype=F64) for x in (19.0, 20.0, 21.0, INF)]
    values = [loss(x, old, worse, mask) for x in at]
    slopes = [slope(lambda x: loss(x, old, worse, mask), x) for x in at]
    close(values[0], torch.tensor(2 * math.exp(19), dtype=F64))
    close(slopes[0], torch.full((1, 1), 2 * math.exp(19), dtype=F64))
    for value, g in zip(values[2:], slopes[2:], strict=True):
        close(value, torch.tensor(2 * math.exp(20), dtype=F64))
        assert g == 0
    # Likewise of the divergence, where the policy has nearly lost what the reference has.
    loss, flat = GRPOLoss(beta=0.5), torch.zeros(1, dtype=F64)
    for u, g in ((19.0, -0.5 * math.expm1(19.0)), (21.0, 0.0), (INF, 0.0)):
        x = torch.full((1, 1), -u, dtype=F64)
        most = min(u, 20.0)
        value = torch.tensor(0.5 * (math.exp(most) - 1 - most), dtype=F64)
        close(loss(x, old, flat, mask, old), value)
        found = slope(lambda x: loss(x, old, flat, mask, old), x)
        close(found, torch.full((1, 1), g, dtype=F64))


def test_a_token_that_became_impossible_has_ratio_0():
    old, mask = torch.tensor([[-1.0, -2.0]]), torch.ones(1, 2)
    x = torch.tensor([[-INF, -2.0]])
    for variant in ("grpo", "cispo"):
        for a in (1.0, -1.0, 0.0):
            advantages = torch.tensor([a])
            value = GRPOLoss(variant=variant)(x, old, advantages, mask)
            g = slope(lambda x, v=variant, a=advantages: GRPOLoss(variant=v)(x, old, a, mask), x)
            other = {"grpo": a, "cispo": -2.0 * a}[variant]
            first = 0.8 * a if variant == "grpo" and a < 0 else 0.0
            close(value, torch.tensor(-(first + other) / 2))
            assert g[0, 0] == 0
            assert g[0, 1] == -a / 2


@pytest.mark.parametrize(("dtype", "rtol"), [(F32, 3e-6), (F64, 1e-14)])
def test_the_divergence_keeps_its_digits(dtype, rtol):
    size = torch.logspace(-12, 1.2, 40, dtype=dtype)
    u = torch.cat((size, -size)).unsqueeze(1)
    zero, mask = torch.zeros_like(u), torch.ones_like(u)
    loss = GRPOLoss(beta=1.0, reduction="none")
    advantages = torch.zeros(len(u), dtype=dtype)
    found = loss(-u, zero, advantages, mask, zero)
    g = slope(lambda x: loss(x, zero, advantages, mask, zero), -u)
    with mpmath.workdps(40):
        for a, b, c in zip(u[:, 0].tolist(), found.tolist(), g[:, 0].tolist(), strict=True):
            assert b == pytest.approx(float(mpmath.expm1(a) - mpmath.mpf(a)), rel=rtol)
            assert c == pytest.approx(-math.expm1(a), rel=rtol)
    assert (found >= 0).all()


def test_the_ratio_of_a_sequence_is_taken_as_a_logarithm():
    old, mask = torch.full((1, 3000), -9.0), torch.ones(1, 3000)
    advantages = torch.tensor([-1.0])
    loss = GRPOLoss(level="sequence")
    value = loss(old + 3.0, old, advantages, mask)
    close(value, torch.tensor(math.exp(3.0)), 1e-5)
    g = slope(lambda x: loss(x, old, advantages, mask), old + 3.0)
    close(g, torch.full_like(g, math.exp(3.0) / 3000), 1e-5)


def test_bounds_by_default():
    loss = GRPOLoss()
    assert (loss.eps_low, loss.eps_high, loss.beta, loss.delta) == (0.2, 0.2, 0.0, None)
    assert GRPOLoss(0.3).eps_high == 0.3
    # A bound of 1 + 0.2 would be one of 0.2 there.
    assert GRPOLoss(variant="cispo").eps_high == 5.0
    loss = DecoupledPPOLoss(0.1)
    assert (loss.clip_eps_high, loss.dual_clip, loss.behave_cap) == (0.1, None, 5.0)
    loss = NFTLoss()
    assert (loss.eps, loss.neg_weight, loss.rate_clip, loss.log_ratio_max) == (
        1.0, 1.0, (0.02, 0.98), 10.0)  # fmt: skip


def test_without_bounds_it_is_importance_weighted_reinforce():
    policy, old, _, advantages, mask = batch(spread=2.0)
    found = GRPOLoss(1.0, INF, reduction="none")(policy, old, advantages, mask)
    terms = torch.where(mask, (policy - old).exp() * -advantages.unsqueeze(1), 0.0)
    close(found, terms.sum(1) / mask.sum(1).clamp(min=1))


@pytest.mark.parametrize("tied", [False, True])
def test_streamed_log_probabilities_give_the_gradients_of_dense_ones(tied):
    hidden, head = torch.randn(N, T, 8, dtype=F64), torch.randn(11, 8, dtype=F64)
    *_, advantages, mask = batch()
    labels = torch.randint(11, (N, T)).masked_fill(~mask, -100)
    moved = head + 0.1 * torch.randn_like(head)
    old, reference = (token_logps(hidden @ w.T, labels, shift=False) for w in (moved, 0.9 * head))
    loss = GRPOLoss(beta=0.1, variant="bnpo")
    found = []
    for streamed in (True, False):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        logps = (
            linear_token_logps(h, w, labels, tile_size=4)
            if streamed
            else token_logps(h @ w.T, labels, shift=False)
        )
        out = loss(logps, None if tied else old, advantages, mask, reference)
        found.append((out.detach(), *torch.autograd.grad(out, (h, w))))
    for a, b in zip(*found, strict=True):
        close(a, b)
        assert a.abs().sum() > 0


# StableReinforce.


def test_stable_reinforce_is_ppo_inside_of_its_bounds():
    policy, old, _, advantages, mask = batch()
    tokens = torch.randn(N, T, dtype=F64)
    for a in (advantages, tokens):
        stable, ppo = StableReinforceLoss(0.3), GRPOLoss(0.3)
        close(stable(policy, old, a, mask), ppo(policy, old, a, mask))
        close(*(slope(lambda x, f=f, a=a: f(x, old, a, mask), policy) for f in (stable, ppo)))


def test_stable_reinforce_is_finite_for_any_log_ratio():
    log_ratio = torch.tensor([-INF, -1e4, -7.0, 7.0, 1e4, INF]).unsqueeze(1)
    old, mask = torch.zeros_like(log_ratio), torch.ones_like(log_ratio)
    loss = StableReinforceLoss(reduction="none")
    for a, expected in ((1.0, [-1e-3, -1e-3, -1e-3, -1.2, -1.2, -1.2]),
                        (-2.0, [1.6, 1.6, 1.6, 2e3, 2e3, 2e3])):  # fmt: skip
        advantages = torch.full((6,), a)
        close(loss(log_ratio, old, advantages, mask), torch.tensor(expected), 1e-6)
        assert (slope(lambda x, a=advantages: loss(x, old, a, mask), log_ratio) == 0).all()
    inside = torch.tensor([[6.9]])
    g = slope(lambda x: loss(x, old[:1], torch.tensor([-2.0]), mask[:1]), inside)
    close(g, 2.0 * inside.exp(), 1e-6)
    close(StableReinforceLoss(ratio_min=0.5, ratio_max=2.0, reduction="none")(
        log_ratio, old, torch.full((6,), -1.0), mask), torch.tensor([0.8] * 3 + [2.0] * 3), 1e-6,
    )  # fmt: skip


@given(st.floats(0.5, 4.0), st.integers(0, 100))
def test_advantages_are_standardised_and_filtered(k, seed):
    generator = torch.Generator().manual_seed(seed)
    advantages = 5 + torch.randn(N, T, dtype=F64, generator=generator) ** 3
    *_, mask = batch()
    there = advantages[mask]
    standard = (advantages - there.mean()) / there.std(correction=0)
    expected = torch.where(mask & (standard.abs() <= k), standard, 0.0)
    close(filter_advantages(advantages.masked_fill(~mask, NAN), mask, k), expected)


def test_advantages_that_stand_out_are_0():
    advantages = torch.zeros(2, 20)
    advantages[1, 3] = 1.0
    mask = torch.ones(2, 20)
    found = filter_advantages(advantages, mask)
    assert found[1, 3] == 0
    assert (found.flatten()[:23] < 0).all()
    assert filter_advantages(advantages, mask, INF)[1, 3] > 6
    # Equal numbers have no spread, whatever rounding makes of their mean.
    assert filter_advantages(torch.full((3, 7), 0.1), torch.ones(3, 7)).abs().max() < 1e-6
    nearly = torch.tensor([[1e-6, -1e-6]])
    close(filter_advantages(nearly, torch.ones(1, 2)), 1e4 * nearly, 1e-5)
    assert (filter_advantages(advantages, torch.zeros(2, 20)) == 0).all()
    assert filter_advantages(advantages[:0], mask[:0]).shape == (0, 20)
    assert filter_advantages(advantages.bfloat16(), mask).dtype == F32
    assert not filter_advantages(advantages.requires_grad_(), mask).requires_grad


# Decoupled PPO.


def decoupled(policy, proximal, behavior, advantages, mask, low, high, dual, cap, mode):
    """The authors' code, written out."""
    ratio, v = (policy - proximal).exp(), (proximal - behavior).exp()
    a = advantages.unsqueeze(1)
    terms = torch.maximum(-ratio * a, -ratio.clamp(1 - low, 1 + high) * a)
    if dual:
        terms = torch.minimum(terms, dual * a.abs())
    if mode == "mask":
        terms = torch.where(v > cap, 0.0, v * terms)
    elif mode == "clamp":
        terms = v.clamp(max=cap) * terms
    return torch.where(mask, terms, 0.0).sum() / mask.sum()


@pytest.mark.parametrize("mode", ["mask", "clamp", "unweighted"])
@pytest.mark.parametrize("dual", [None, 1.5])
def test_decoupled_ppo(mode, dual):
    policy, proximal, behavior, advantages, mask = batch(spread=0.8)
    loss = DecoupledPPOLoss(0.1, 0.3, dual, 1.5, mode)
    inputs = proximal, behavior, advantages, mask

    def expected(x):
        return decoupled(x, *inputs, 0.1, 0.3, dual, 1.5, mode)

    close(loss(policy, *inputs), expected(policy))
    close(slope(lambda x: loss(x, *inputs), policy), slope(expected, policy))
    dropped = (proximal - behavior).exp() > 1.5
    assert (dropped & mask).any()
    if mode == "mask":
        # They count in the denominator all the same.
        kept = loss(policy, proximal, behavior, advantages, mask & ~dropped)
        close(loss(policy, *inputs), kept * (mask & ~dropped).sum() / mask.sum())


def test_dual_clip_bounds_what_negative_advantages_cost():
    policy, proximal, _, advantages, mask = batch(spread=2.0)
    loss = DecoupledPPOLoss(dual_clip=1.5, behave_mode="unweighted", reduction="none")
    high, free = (policy - proximal > math.log(1.5)) & mask, DecoupledPPOLoss(reduction="none")
    assert (high & (advantages < 0).unsqueeze(1)).any()
    g = slope(lambda x: loss(x, proximal, proximal, advantages, mask), policy)
    assert (g[high] == 0).all()
    close(
        loss(policy, proximal, proximal, advantages.abs(), mask),
        free(policy, proximal, proximal, advantages.abs(), mask),
    )


def test_decoupled_ppo_with_one_policy_is_ppo():
    policy, old, _, advantages, mask = batch()
    for mode in ("mask", "clamp", "unweighted"):
        one = DecoupledPPOLoss(0.1, 0.3, behave_mode=mode)
        other = GRPOLoss(0.1, 0.3, variant="dapo")
        close(one(policy, old, old, advantages, mask), other(policy, old, advantages, mask))
        close(
            slope(lambda x, f=one: f(x, old, old, advantages, mask), policy),
            slope(lambda x, f=other: f(x, old, advantages, mask), policy),
        )


def test_only_the_policy_has_a_gradient_and_weights_do_not_overflow():
    policy, proximal, behavior, advantages, mask = batch()
    leaves = [x.clone().requires_grad_() for x in (proximal, behavior, advantages)]
    for mode in ("mask", "clamp", "unweighted"):
        loss = DecoupledPPOLoss(behave_mode=mode)
        assert not loss(policy, *leaves, mask).requires_grad
        far = behavior - 1e4
        found = loss(policy.float(), proximal.float(), far.float(), advantages.float(), mask)
        if mode == "mask":
            assert found == 0
        assert found.isfinite()
    one = torch.zeros(1, 1), torch.ones(1), torch.ones(1, 1)
    for mode in ("mask", "clamp"):
        # Without a cap, up to where the logarithm stops.
        loss = DecoupledPPOLoss(behave_cap=INF, behave_mode=mode)
        close(loss(one[0], one[0], one[0] - 3.0, *one[1:]), torch.tensor(-math.exp(3.0)), 1e-6)
        close(loss(one[0], one[0], one[0] - 90.0, *one[1:]), torch.tensor(-math.exp(20.0)), 1e-6)


def test_the_proximal_policy_is_on_the_way():
    policy, _, behavior, _, _ = batch()
    versions = torch.tensor([[10, 9, 8, 6, 0, -1]]).expand(N, T)
    found = approximate_proximal_logps(policy, behavior, versions, 10)
    part = torch.tensor([0.0, 0.0, 0.5, 0.75, 0.9, 0.0], dtype=F64)
    close(found, behavior + part * (policy - behavior))
    close(approximate_proximal_logps(policy, behavior, versions.to(torch.int8), 10), found)
    assert not approximate_proximal_logps(
        policy.requires_grad_(), behavior, versions, 10
    ).requires_grad
    assert (
        approximate_proximal_logps(policy.bfloat16(), behavior.bfloat16(), versions, 3).dtype == F32
    )
    small = torch.full((N, T), 20, dtype=torch.uint8)
    close(
        approximate_proximal_logps(policy, behavior, small, 300), behavior.lerp(policy, 1 - 1 / 280)
    )
    later = versions + 5
    assert torch.equal(
        approximate_proximal_logps(policy, behavior, later, 4)[:, :5], behavior[:, :5]
    )
    lost = torch.full_like(behavior, -INF)
    assert (
        approximate_proximal_logps(lost, behavior, versions, 10)[:, :2] == behavior[:, :2]
    ).all()


# NFT.

RIGHT = torch.tensor([True, False, True, True, False])
RATE = torch.tensor([0.5, 0.7, 0.01, 0.3, 0.2], dtype=F64)


def nft(policy, old, mask, right, rate, *, eps=1.0, neg=1.0, weight="dr_grpo", level="token",
        clip=(0.02, 0.98), most=10.0):  # fmt: skip
    """The authors' code, written out, but for the denominator."""
    log_ratio = torch.where(mask, policy - old, 0.0)
    if level == "sequence":
        log_ratio, mask = log_ratio.sum(1, keepdim=True), mask.any(1, keepdim=True)
    ratio = log_ratio.clamp(max=most).exp()
    r = rate.clamp(*clip).unsqueeze(1)
    negative = (1 - r * ratio) / (1 - r)
    kept = negative + (negative.clamp(min=eps) - negative).detach()
    terms = torch.where(right.unsqueeze(1), -ratio.log(), -neg * kept.log())
    terms = terms * {"dr_grpo": 1 - r, "grpo": ((1 - r) / r).sqrt(), "none": 1.0}[weight]
    return torch.where(mask, terms, 0.0).sum() / mask.sum()


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("weight", ["dr_grpo", "grpo", "none"])
@pytest.mark.parametrize("eps", [1.0, 0.3])
def test_nft(level, weight, eps):
    policy, old, _, _, mask = batch(spread=0.8)
    loss = NFTLoss(eps, 0.7, weight, level, (0.1, 0.6))
    options = {"eps": eps, "neg": 0.7, "weight": weight, "level": level, "clip": (0.1, 0.6)}

    def expected(x):
        return nft(x, old, mask, RIGHT, RATE, **options)

    for right in (RIGHT, RIGHT.long(), RIGHT.double()):
        close(loss(policy, old, mask, right, RATE), expected(policy))
    close(slope(lambda x: loss(x, old, mask, RIGHT, RATE), policy), slope(expected, policy))


def test_the_gradient_of_wrong_answers():
    policy, old, _, _, _ = batch(spread=0.8)
    mask, wrong = torch.ones(N, T), torch.zeros(N)
    r = RATE.clamp(min=0.02).unsqueeze(1)
    ratio = (policy - old).exp()
    negative = (1 - r * ratio) / (1 - r)
    assert (negative < 0.3).any()
    for eps in (1.0, 0.3):
        loss = NFTLoss(eps, prompt_weight="none", reduction="sum")
        found = slope(lambda x, f=loss: f(x, old, mask, wrong, RATE), policy)
        close(found, r / (1 - r) * ratio / negative.clamp(min=eps))
    leaf = RATE.clone().requires_grad_()
    assert not loss(policy, old.requires_grad_(), mask, wrong, leaf).requires_grad


@pytest.mark.parametrize(("weight", "scale"), [("dr_grpo", "none"), ("grpo", "population_std")])
@pytest.mark.parametrize("eps", [1.0, 0.1])
def test_on_policy_nft_is_grpo(weight, scale, eps):
    generator = torch.Generator().manual_seed(1)
    ids = torch.arange(12) % 3
    right = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0], dtype=F64)
    rate = torch.stack([right[ids == g].mean() for g in range(3)])[ids]
    policy = torch.randn(12, T, dtype=F64, generator=generator)
    mask = torch.rand(12, T, generator=generator) < 0.6
    advantages = group_advantages(right, ids, scale, 0.0)
    found = slope(
        lambda x: NFTLoss(eps, prompt_weight=weight)(x, policy, mask, right, rate), policy
    )
    loss = GRPOLoss(variant="bnpo")
    close(found, slope(lambda x: loss(x, None, advantages, mask), policy))
    assert found.abs().sum() > 0.1


def test_without_wrong_answers_nft_is_fine_tuning():
    policy, old, _, _, mask = batch()
    loss = NFTLoss(neg_weight=0.0, prompt_weight="none")
    found = slope(lambda x: loss(x, old, mask, RIGHT, RATE), policy)
    close(found, torch.where(mask & RIGHT.unsqueeze(1), -1.0, 0.0).double() / mask.sum())


def test_prompts_always_or_never_answered_right_are_left_out():
    policy, old, _, _, mask = batch()
    rate = torch.tensor([0.0, 0.7, 0.5, 0.3, 1.0], dtype=F64)
    there = (rate > 0) & (rate < 1)
    every = (policy, old, mask, RIGHT, rate)
    for level in ("token", "sequence"):
        loss = NFTLoss(ratio_level=level)
        value = loss(*every)
        close(value, loss(*(x[there] for x in every)))
        lost = policy.masked_fill(~there.unsqueeze(1), NAN)
        close(loss(lost, *every[1:]), value)
        assert (slope(lambda x, f=loss: f(x, *every[1:]), lost)[~there] == 0).all()
        weight = there.double()
        close(loss(policy, old, mask, RIGHT, rate.masked_fill(~there, NAN), weight=weight), value)
    n = global_normalizer(mask & there.unsqueeze(1))
    parts = [NFTLoss()(*(x[at] for x in every), normalizer=n) for at in (slice(0, 2), slice(2, 5))]
    close(parts[0] + parts[1], NFTLoss()(*every))


def test_next_to_the_old_policy_wrong_answers_keep_their_digits():
    step = -torch.logspace(-9, 1.3, 30).unsqueeze(1)
    old, mask, wrong = torch.zeros_like(step), torch.ones_like(step), torch.zeros(30)
    loss = NFTLoss(prompt_weight="none", reduction="none")
    for r in (0.02, 0.5, 0.75):
        rate = torch.full((30,), r)
        found = loss(step, old, mask, wrong, rate)
        g = slope(lambda x, r=rate: loss(x, old, mask, wrong, r), step)
        with mpmath.workdps(40):
            for a, b, c in zip(step[:, 0].tolist(), found.tolist(), g[:, 0].tolist(), strict=True):
                r_, a = mpmath.mpf(float(rate[0])), mpmath.mpf(a)
                negative = (1 - r_ * mpmath.exp(a)) / (1 - r_)
                assert b == pytest.approx(float(-mpmath.log(negative)), rel=2e-6)
                exact = r_ / (1 - r_) * mpmath.exp(a) / negative
                assert c == pytest.approx(float(exact), rel=2e-6)


def test_where_the_ratio_of_wrong_answers_is_0_the_gradient_is_finite():
    x, old, mask = torch.full((1, 1), math.log(2.0), dtype=F64), torch.zeros(1, 1), torch.ones(1, 1)
    assert torch.expm1(x) == 1
    for eps in (1.0, 0.25):
        loss = NFTLoss(eps, prompt_weight="none", reduction="sum")
        found = slope(lambda x, f=loss: f(x, old, mask, torch.zeros(1), torch.full((1,), 0.5)), x)
        close(found, torch.full((1, 1), 2.0 / eps, dtype=F64))


def test_log_ratios_of_nft_stop():
    old, mask, rate = torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0.98])
    loss = NFTLoss(1e-3, prompt_weight="none")
    for right in (torch.ones(1), torch.zeros(1)):
        at = [torch.full((1, 1), x) for x in (9.0, 11.0, INF)]
        slopes = [slope(lambda x, y=right: loss(x, old, mask, y, rate), x) for x in at]
        assert slopes[0] != 0
        assert slopes[1] == slopes[2] == 0
        values = [loss(x, old, mask, right, rate) for x in at]
        expected = -10.0 if right else -math.log(1e-3)
        close(values[1:], [torch.tensor(expected)] * 2, 1e-6)
    # An answer that became impossible.
    lost = torch.full((1, 1), -INF)
    value = NFTLoss(prompt_weight="none")(lost, old, mask, torch.zeros(1), torch.tensor([0.5]))
    close(value, torch.tensor(math.log(0.5)))


# Advantages of groups.

IDS = torch.tensor([7, -3, 7, 10**12, 7, -3, 0])
REWARDS = torch.tensor([1.0, 0.3, 0.0, 5.0, 0.5, 0.7, -2.0], dtype=F64)


@pytest.mark.parametrize("scale", ["std", "population_std", "none"])
def test_group_advantages(scale):
    expected = torch.zeros(7, dtype=F64)
    for g in IDS.unique():
        at = g == IDS
        r = REWARDS[at]
        expected[at] = r - r.mean()
        if scale != "none" and len(r) > 1:
            expected[at] /= r.std(correction=int(scale == "std")) + 1e-4
    found = group_advantages(REWARDS, IDS, scale)
    close(found, expected)
    order = torch.randperm(7)
    close(group_advantages(REWARDS[order], IDS[order], scale), expected[order])
    close(group_advantages(REWARDS - 1e6, IDS, scale), expected, 1e-8, 1e-9)
    both = vmap(lambda r, i: group_advantages(r, i, scale))(
        torch.stack((REWARDS, REWARDS[order])), torch.stack((IDS, IDS[order]))
    )
    close(both, torch.stack((expected, expected[order])))
    small = (IDS % 5).to(torch.uint8)
    close(group_advantages(REWARDS, small), group_advantages(REWARDS, small.long()))
    assert group_advantages(REWARDS[:0], IDS[:0], scale).shape == (0,)
    close(group_advantages(REWARDS, IDS, scale, 0.5)[3], torch.tensor(0.0, dtype=F64))


@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(-100, 100, width=32)), min_size=1, max_size=20)
)
def test_group_advantages_sum_to_0_and_equal_rewards_have_none(drawn):
    ids = torch.tensor([g for g, _ in drawn])
    rewards = torch.tensor([r for _, r in drawn])
    found = group_advantages(rewards, ids, "none")
    for g in ids.unique():
        at = ids == g
        assert found[at].sum().abs() < 1e-4
        close(found[at], rewards[at] - rewards[at].mean(), 1e-5, 1e-4)
    equal = torch.tensor([0.1, -0.7, 1e5, 1e-7, 0.3])
    for scale in ("std", "population_std", "none"):
        for eps in (0.0, 1e-4):
            assert (group_advantages(equal[ids], ids, scale, eps) == 0).all()
            alone = group_advantages(rewards, torch.arange(len(ids)), scale, eps)
            assert (alone == 0).all()


def test_group_advantages_stay_apart_and_never_wait():
    found = group_advantages(REWARDS.masked_fill(IDS == -3, NAN), IDS)
    expected = group_advantages(REWARDS, IDS)
    close(found[IDS != -3], expected[IDS != -3])
    assert found[IDS == -3].isnan().all()
    for n in range(2, 30):  # of some of them the mean is not the number itself
        assert (group_advantages(torch.full((n,), 0.1), torch.zeros(n).long(), eps=0.0) == 0).all()
    assert not group_advantages(REWARDS.clone().requires_grad_(), IDS).requires_grad
    assert group_advantages(REWARDS.bfloat16(), IDS).dtype == F32
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        rewards, ids = mode.from_tensor(REWARDS), mode.from_tensor(IDS)
        assert group_advantages(rewards, ids).shape == (7,)
        found = grpo_lambda_reward(rewards > 0.4, rewards.abs(), ids, alpha=0.5)
        assert (found.shape, found.dtype) == ((7,), F64)
        assert filter_advantages(rewards, rewards > 0.4).shape == (7,)


# GRPO-lambda.


def lambda_reward(correct, lengths, ids, alpha, fraction):
    groups = list(dict.fromkeys(ids.tolist()))
    at = {g: ids == g for g in groups}
    ranked = sorted(groups, key=lambda g: -float(correct[at[g]].double().mean()))
    top = ranked[: max(1, math.ceil(round(fraction * len(groups), 9)))]
    out = correct.double()
    for g in top:
        right = at[g] & correct
        x = lengths[right].double()
        z = (x - x.mean()) / x.std(correction=0) if len(x) > 1 and x.std() > 0 else 0 * x
        out[right] = 1 - alpha * torch.sigmoid(z)
    return out


@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.2, 0.34, 0.5, 1.0]))
def test_grpo_lambda_reward(seed, fraction):
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 25, (), generator=generator))
    correct = torch.rand(n, generator=generator) < 0.6
    lengths = torch.randint(1, 5, (n,), generator=generator)
    ids = torch.randint(-3, 4, (n,), generator=generator)
    found = grpo_lambda_reward(correct, lengths, ids, alpha=0.6, top_fraction=fraction)
    assert found.dtype == F32
    close(found.double(), lambda_reward(correct, lengths, ids, 0.6, fraction), 1e-6, 1e-6)
    wide = grpo_lambda_reward(correct.long(), lengths.double(), ids, alpha=0.6,
                              top_fraction=fraction)  # fmt: skip
    close(wide, lambda_reward(correct, lengths, ids, 0.6, fraction))


def test_the_edges_of_the_grpo_lambda_reward():
    # Ties: the group that occurs first, not the one of the least id.
    ids, lengths = torch.tensor([5, 5, 1, 1]), torch.tensor([10, 20, 10, 20])
    found = grpo_lambda_reward(torch.ones(4), lengths, ids, alpha=0.5)
    assert found[:2].tolist() == pytest.approx([1 - 0.5 / (1 + math.e), 1 - 0.5 / (1 + 1 / math.e)])
    assert found[2:].tolist() == [1.0, 1.0]
    # One right answer, or equally long ones: half of alpha.
    one = grpo_lambda_reward(torch.tensor([1, 0]), torch.tensor([3, 9]), ids[:2], alpha=0.5)
    assert one.tolist() == [0.75, 0.0]
    equal = grpo_lambda_reward(torch.ones(3), torch.full((3,), 0.1), ids[[0, 0, 0]], alpha=0.5)
    assert equal.tolist() == [0.75] * 3
    # Wrong answers earn nothing in efficient groups either, whatever their lengths.
    right = torch.tensor([True, True, False])
    wrong = torch.tensor([10.0, 20.0, NAN])
    found = grpo_lambda_reward(right, wrong, ids[[0, 0, 0]], alpha=0.5)
    assert found[2] == 0
    close(found[:2], grpo_lambda_reward(right[:2], wrong[:2], ids[[0, 0]], alpha=0.5))
    # As many as are asked for: 0.07 * 100 is above 7 by rounding.
    many = torch.arange(100)
    for dtype in (torch.int64, F32, F64):
        own = torch.ones(100, dtype=dtype)
        found = grpo_lambda_reward(own, own, many, alpha=0.5, top_fraction=0.07)
        assert (found < 1).tolist() == [True] * 7 + [False] * 93
    assert grpo_lambda_reward(right[:0], wrong[:0], ids[:0], alpha=0.5).shape == (0,)
    assert (grpo_lambda_reward(right, wrong, ids[:3], alpha=0.0) == right.float()).all()
    none = grpo_lambda_reward(torch.zeros(3), torch.ones(3), ids[:3], alpha=0.5)
    assert (none == 0).all()


@pytest.mark.wide
def test_what_is_not_in_the_kit_compiles_whole(fresh_compiler):
    policy, _, reference, advantages, mask = batch()
    loss = GRPOLoss(beta=0.1, variant="bnpo")

    def on_policy(x):
        own = group_advantages(advantages, mask.sum(1) % 2)
        filtered = filter_advantages(own.unsqueeze(1).expand(N, T), mask)
        rewards = grpo_lambda_reward(advantages > 0, mask.sum(1), mask.sum(1) % 2, alpha=0.5)
        return loss(x, None, filtered + rewards.unsqueeze(1), mask, reference)

    compiled = torch.compile(on_policy, fullgraph=True, backend="aot_eager")
    close(compiled(policy), on_policy(policy))
    close(slope(compiled, policy), slope(on_policy, policy))


# What is refused.

LOGPS, MASK = torch.zeros(4, 3), torch.ones(4, 3)


@pytest.mark.parametrize(
    ("fn", "inputs", "options", "error", "message"),
    [
        (group_advantages, (torch.ones(4).long(), torch.arange(4)), {}, TypeError,
         "rewards: expected floating point, got torch.int64"),
        (group_advantages, (LOGPS, torch.arange(4)), {}, ValueError,
         r"rewards: expected shape \(N,\), got \(4, 3\)"),
        (group_advantages, (torch.ones(4), torch.ones(4)), {}, TypeError,
         "group_ids: expected integers, got torch.float32"),
        (group_advantages, (torch.ones(4), torch.arange(3)), {}, ValueError,
         r"group_ids: expected the shape of rewards, \(4,\), got \(3,\)"),
        (group_advantages, (torch.ones(4), torch.arange(4), "batch"), {}, ValueError,
         "scale: expected one of .*, got 'batch'"),
        (group_advantages, (torch.ones(4), torch.arange(4), "std", -1.0), {}, ValueError,
         r"eps: expected a number in \[0, inf\), got -1.0"),
        (filter_advantages, (LOGPS, MASK[:, :2]), {}, ValueError,
         r"mask: expected shape \(4, 3\), got \(4, 2\)"),
        (filter_advantages, (LOGPS.long(), MASK), {}, TypeError, "advantages: .* got torch.int64"),
        (filter_advantages, (LOGPS, MASK / 2), {}, ValueError, "mask: .* got 0.5"),
        (filter_advantages, (LOGPS, MASK, 0.0), {}, ValueError, r"k: .* \(0, inf\], got 0.0"),
        (grpo_lambda_reward, (torch.ones(4), torch.ones(4), torch.arange(4)), {"alpha": 1.5},
         ValueError, r"alpha: expected a number in \[0, 1\], got 1.5"),
        (grpo_lambda_reward, (torch.ones(4), torch.ones(4), torch.arange(4)), {"alpha": "0.6"},
         TypeError, "alpha: expected a number, got str"),
        (grpo_lambda_reward, (torch.ones(4), torch.ones(4), torch.arange(4)),
         {"alpha": 0.5, "top_fraction": 0.0}, ValueError, r"top_fraction: .* \(0, 1\], got 0.0"),
        (grpo_lambda_reward, (torch.ones(4) / 2, torch.ones(4), torch.arange(4)), {"alpha": 0.5},
         ValueError, "correct: expected bool or numbers 0 and 1, got 0.5"),
        (grpo_lambda_reward, (MASK, torch.ones(4), torch.arange(4)), {"alpha": 0.5}, ValueError,
         r"correct: expected shape \(N,\), got \(4, 3\)"),
        (grpo_lambda_reward, (torch.ones(4), torch.ones(3), torch.arange(4)), {"alpha": 0.5},
         ValueError, r"lengths: .* \(4,\), got \(3,\)"),
        (grpo_lambda_reward, (torch.ones(4), torch.ones(4).half(), torch.arange(4)),
         {"alpha": 0.5}, TypeError, "lengths: .* got torch.float16"),
        (grpo_lambda_reward, (torch.ones(4), -torch.ones(4), torch.arange(4)), {"alpha": 0.5},
         ValueError, "lengths: expected finite lengths >= 0, got -1"),
        (grpo_lambda_reward, (torch.ones(4), torch.ones(4), torch.ones(4)), {"alpha": 0.5},
         TypeError, "group_ids: expected integers, got torch.float32"),
        (grpo_lambda_reward, (torch.ones(4), torch.ones(4), torch.arange(2)), {"alpha": 0.5},
         ValueError, r"group_ids: .* \(4,\), got \(2,\)"),
        (approximate_proximal_logps, (LOGPS, LOGPS[:, :2], MASK.long(), 3), {}, ValueError,
         r"behavior_token_logps: .* \(4, 3\), got \(4, 2\)"),
        (approximate_proximal_logps, (LOGPS.long(), LOGPS, MASK.long(), 3), {}, TypeError,
         "policy_token_logps: .* got torch.int64"),
        (approximate_proximal_logps, (LOGPS, LOGPS.long(), MASK.long(), 3), {}, TypeError,
         "behavior_token_logps: .* got torch.int64"),
        (approximate_proximal_logps, (LOGPS, LOGPS, MASK, 3), {}, TypeError,
         "behavior_versions: expected integers, got torch.float32"),
        (approximate_proximal_logps, (LOGPS, LOGPS, MASK[0].long(), 3), {}, ValueError,
         r"behavior_versions: .* \(4, 3\), got \(3,\)"),
        (approximate_proximal_logps, (LOGPS, LOGPS, MASK.long(), 3.0), {}, TypeError,
         "current_version: expected an int, got float"),
    ],
)  # fmt: skip
def test_what_the_functions_refuse(fn, inputs, options, error, message):
    with pytest.raises(error, match=message):
        fn(*inputs, **options)
