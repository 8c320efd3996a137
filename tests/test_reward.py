"""Reward models: pairs, ties and rankings of rewards, ensembles, and the log-sigmoid transform."""

import inspect
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lossary import (
    BradleyTerryLoss,
    DPOLoss,
    LogSigmoidCenteredReward,
    TieAwareBradleyTerryLoss,
    ranked_pairs,
    reward_ensemble,
)
from test_preference import F32, F64, INF, NAN, close, each, gradients

numbers = st.floats(-30, 30)
smoothings = st.floats(0, 0.99)
TIE = torch.tensor([True, False, True, False, False, True])
#: From where nothing is lost to where exp overflows, and the 1e4 of careless reward models.
DIFFERENCES = (0.0, 1e-30, 1e-6, 0.3, 5.0, 40.0, 88.0, 89.0, 745.0, 1e4)


def rewards(rows=2, n=6, seed=0):
    return 2.0 * torch.randn(rows, n, dtype=F64, generator=torch.Generator().manual_seed(seed))


def one(*values):
    return [torch.tensor([x], dtype=F64) for x in values]


def rates(*logits):
    return [1 / (1 + mpmath.exp(-mpmath.mpf(x))) for x in logits]


# Bradley-Terry.


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("c", [0.0, 0.3])
@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_bradley_terry_is_the_plain_formula(margin, c, eps):
    chosen, rejected, m = rewards(3)
    margins = (m,) * margin

    def plain(chosen, rejected, m=0.0):
        z = chosen - rejected - m
        values = -(1 - eps) * F.logsigmoid(z) - eps * F.logsigmoid(-z)
        return (values + c * (chosen + rejected) ** 2).mean()

    loss = BradleyTerryLoss(c, eps)
    close(loss(chosen, rejected, *margins), plain(chosen, rejected, *margins))
    found = gradients(loss, chosen, rejected, *margins)
    close(found, gradients(plain, chosen, rejected, *margins))


def test_bradley_terry_defaults():
    chosen, rejected = rewards()
    close(BradleyTerryLoss()(chosen, rejected), -F.logsigmoid(chosen - rejected).mean())
    assert list(inspect.signature(BradleyTerryLoss).parameters)[:2] == [
        "center_coef",
        "label_smoothing",
    ]


@given(numbers, numbers, numbers, st.floats(-5, 5), smoothings)
def test_bradley_terry_gradient_and_shift(chosen, rejected, shift, m, eps):
    inputs = one(chosen, rejected, m)
    loss = BradleyTerryLoss(label_smoothing=eps)
    z = inputs[0] - inputs[1] - inputs[2]
    slope = -torch.sigmoid(-z) + eps
    close(gradients(loss, *inputs), (slope, -slope, -slope), atol=1e-14)
    moved = loss(inputs[0] + shift, inputs[1] + shift, inputs[2])
    close(moved, loss(*inputs), atol=1e-11)
    # A margin is a shift of the chosen reward alone.
    close(loss(inputs[0] - m, inputs[1]), loss(*inputs), atol=1e-11)


@given(numbers, numbers, numbers)
def test_centring_tells_apart_what_differences_do_not(chosen, rejected, shift):
    inputs = one(chosen, rejected)
    c, plain = BradleyTerryLoss(0.5), BradleyTerryLoss()
    s = chosen + rejected
    moved = [x + shift for x in inputs]
    change = 0.5 * ((s + 2 * shift) ** 2 - s**2)
    close(c(*moved) - c(*inputs), torch.tensor(change, dtype=F64), rtol=1e-9, atol=1e-9)
    extra = [a - b for a, b in zip(gradients(c, *inputs), gradients(plain, *inputs), strict=True)]
    close(extra, [torch.tensor([s], dtype=F64)] * 2, atol=1e-11)
    close(c(*one(chosen, -chosen)), plain(*one(chosen, -chosen)))


@given(smoothings, numbers, st.floats(-5, 5))
def test_smoothed_bradley_terry_is_least_at_its_log_odds(eps, z, m):
    loss = BradleyTerryLoss(label_smoothing=eps)
    entropy = -(1 - eps) * math.log1p(-eps) - (eps * math.log(eps) if eps else 0.0)
    assert loss.properties().lower == pytest.approx(entropy, rel=1e-12, abs=1e-15)
    assert float(loss(*one(z, 0.0))) >= entropy * (1 - 1e-12)
    if eps > 1e-12:
        best = one(m + math.log((1 - eps) / eps), 0.0, m)
        close(loss(*best), torch.tensor(entropy, dtype=F64), rtol=1e-9)
        slope, *_ = gradients(loss, *best)
        close(slope, torch.zeros(1, dtype=F64), atol=1e-14)
    # Exchanged answers are labels that are wrong as often as the others were right.
    if eps > 0.02:
        close(BradleyTerryLoss(0.0, 1 - eps)(*one(0.0, z, -m)), loss(*one(z, 0.0, m)), rtol=1e-9)


def test_bradley_terry_of_log_ratios_is_dpo():
    pc, pr, rc, rr = rewards(4)
    found = each(BradleyTerryLoss, 0.3 * (pc - rc), 0.3 * (pr - rr), label_smoothing=0.1)
    close(found, each(DPOLoss, pc, pr, rc, rr, beta=0.3, label_smoothing=0.1))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("eps", [0.0, 0.5])
@pytest.mark.parametrize("size", DIFFERENCES)
def test_bradley_terry_and_ties_keep_their_digits_and_stay_finite(dtype, eps, size):
    tolerance = 1e-6 if dtype == F32 else 1e-14
    loss = BradleyTerryLoss(label_smoothing=eps, reduction="sum")
    of_ties = TieAwareBradleyTerryLoss(reduction="sum")
    for z in (size, -size):
        x, zero = torch.tensor([z], dtype=dtype), torch.zeros(1, dtype=dtype)
        exact = float(x)
        with mpmath.workdps(60):
            z = mpmath.mpf(exact)
            wins, loses = mpmath.log1p(mpmath.exp(-z)), mpmath.log1p(mpmath.exp(z))
            value = float((1 - eps) * wins + eps * loses)
            slope = float(eps - rates(-z)[0])
        losses = [loss] if eps == 0.0 else [loss, lambda r, s: of_ties(r, s, r == r)]
        for fn in losses:
            found = fn(x, zero)
            assert found.isfinite()
            least = torch.finfo(dtype).smallest_normal
            assert float(found) == pytest.approx(value, rel=tolerance, abs=least)
            (g, other) = gradients(fn, x, zero)
            assert float(g) == pytest.approx(slope, rel=tolerance, abs=max(tolerance * eps, least))
            assert float(other) == -float(g)


def test_bradley_terry_of_halves_is_computed_in_float32():
    # 1.2e5 is infinite in float16.
    chosen, rejected = torch.tensor([6e4, 1.5]).half(), torch.tensor([-6e4, 0.5]).half()
    margin = torch.tensor([0.5, 0.25]).half()
    for swapped in (False, True):
        pair = (rejected, chosen) if swapped else (chosen, rejected)
        found = each(BradleyTerryLoss, *pair, margin)
        assert found.dtype == F32
        wide = each(BradleyTerryLoss, *(x.double() for x in (*pair, margin)))
        close(found.double(), wide, rtol=1e-6, atol=1e-30)


def test_bradley_terry_has_no_state_and_leaves_absent_pairs_out():
    chosen, rejected, m = rewards(3)
    kept = torch.arange(6) % 2 == 0
    loss = BradleyTerryLoss(0.1, 0.1)
    expected = loss(*(x[kept] for x in (chosen, rejected, m)))
    lost = [x.masked_fill(~kept, NAN).requires_grad_() for x in (chosen, rejected, m)]
    found = loss(*lost, weight=kept)
    close(found, expected)
    for g in torch.autograd.grad(found, lost):
        assert (g[~kept] == 0).all()
        assert (g[kept] != 0).all()


# Rankings.


def kwise(r):
    """InstructGPT's loss of one prompt, pair by pair."""
    k = len(r)
    pairs = [F.logsigmoid(r[i] - r[j]) for i in range(k) for j in range(i + 1, k)]
    assert len(pairs) == k * (k - 1) / 2
    return -sum(pairs) / len(pairs)


@pytest.mark.parametrize("k", [2, 3, 5, 9])
@pytest.mark.parametrize("masked", [False, True])
def test_the_mean_over_all_pairs_of_a_ranking(k, masked):
    r = rewards(4, k)
    mask = torch.ones(4, k, dtype=torch.bool) if masked else None

    def found(r):
        chosen, rejected, weight = ranked_pairs(r, mask)
        return BradleyTerryLoss()(chosen, rejected, weight=weight)

    def plain(r):
        return torch.stack([kwise(row) for row in r]).mean()

    close(found(r), plain(r))
    close(gradients(found, r), gradients(plain, r))
    chosen, rejected, weight = ranked_pairs(r, mask)
    close(BradleyTerryLoss()(chosen, rejected), plain(r))
    close(BradleyTerryLoss(reduction="sum")(chosen, rejected, weight=weight), 4 * plain(r))
    close(weight.sum(-1), torch.ones(4, dtype=F64))
    single = ranked_pairs(r[0], None if mask is None else mask[0])
    close(single, (chosen[0], rejected[0], weight[0]))


def test_pairs_come_in_the_order_that_is_documented():
    chosen, rejected, weight = ranked_pairs(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    assert chosen.tolist() == [4, 4, 4, 3, 3, 2]
    assert rejected.tolist() == [3, 2, 1, 2, 1, 1]
    close(weight, torch.full((6,), 1 / 6))
    pair = torch.tensor([[0.3, -0.2]], dtype=F64)
    chosen, rejected, weight = ranked_pairs(pair)
    assert torch.equal(chosen, pair[:, :1])
    assert torch.equal(rejected, pair[:, 1:])
    assert torch.equal(weight, torch.ones(1, 1, dtype=F64))


@pytest.mark.parametrize("lost", [0.0, NAN, INF])
def test_prompts_with_fewer_answers_count_as_much(lost):
    r = rewards(4, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0]])
    present = mask.bool()
    leaf = r.masked_fill(~present, lost).requires_grad_()
    expected = torch.stack([kwise(x[m]) for x, m in zip(r, present, strict=True) if m.sum() > 1])
    for written in (present, mask, mask.double()):
        chosen, rejected, weight = ranked_pairs(leaf, written)
        found = BradleyTerryLoss()(chosen, rejected, weight=weight)
        close(found, expected.mean())
        (g,) = torch.autograd.grad(found, leaf)
        assert (g[~present] == 0).all()
        assert (g[2] == 0).all()
        assert (g[0] != 0).all()
        close(weight.sum(-1), torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=F64))
        assert weight[1].count_nonzero() == 3
    nothing = ranked_pairs(leaf, torch.zeros_like(present))
    out = BradleyTerryLoss()(*nothing[:2], weight=nothing[2])
    assert out == 0
    assert torch.equal(torch.autograd.grad(out, leaf)[0], torch.zeros_like(r))


def test_rankings_of_halves_and_compiled(fresh_compiler):
    r = rewards(2, 4).bfloat16()
    mask = torch.ones(2, 4, dtype=torch.bool)
    assert {x.dtype for x in ranked_pairs(r, mask)} == {F32}
    assert {x.dtype for x in ranked_pairs(r)} == {F32}
    compiled = torch.compile(ranked_pairs, fullgraph=True, backend="aot_eager")
    close(compiled(r.float(), mask), ranked_pairs(r.float(), mask))
    empty = ranked_pairs(torch.zeros(0, 4))
    assert [tuple(x.shape) for x in empty] == [(0, 6)] * 3


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (([1.0, 2.0],), TypeError, "rewards: expected a tensor, got list"),
        ((torch.ones(3).long(),), TypeError, r"rewards: expected floating point, got torch\.int64"),
        ((torch.tensor(1.0),), ValueError, r"rewards: expected shape .* K >= 2, got \(\)"),
        ((torch.ones(3, 1),), ValueError, r"rewards: .* K >= 2, got \(3, 1\)"),
        ((torch.ones(2, 3), torch.ones(3)), ValueError, r"mask: expected shape \(2, 3\), got"),
        ((torch.ones(3), torch.full((3,), 0.5)), ValueError, "mask: expected bool .* got 0.5"),
        ((torch.ones(3), [True] * 3), TypeError, "mask: expected a tensor, got list"),
    ],
)
def test_what_rankings_refuse(inputs, error, message):
    with pytest.raises(error, match=message):
        ranked_pairs(*inputs)


# Ties.


@pytest.mark.parametrize("lam", [0.0, 1.0, 2.5])
def test_ties_are_pairs_smoothed_by_one_half(lam):
    chosen, rejected = rewards()
    found = each(TieAwareBradleyTerryLoss, chosen, rejected, TIE, tie_weight=lam)
    z = chosen - rejected
    tied = -lam / 2 * (F.logsigmoid(z) + F.logsigmoid(-z))
    close(found, torch.where(TIE, tied, -F.logsigmoid(z)))
    half = each(BradleyTerryLoss, chosen, rejected, label_smoothing=0.5)
    close(found[TIE], lam * half[TIE])
    assert torch.equal(found[~TIE], each(BradleyTerryLoss, chosen, rejected)[~TIE])
    # The mean is over all pairs, whatever a tie weighs.
    close(TieAwareBradleyTerryLoss(lam)(chosen, rejected, TIE), found.sum() / 6)


@given(numbers, numbers, st.floats(0, 10))
def test_of_a_tie(chosen, rejected, lam):
    pair, tie = one(chosen, rejected), torch.tensor([True])
    loss = TieAwareBradleyTerryLoss(lam)
    value = loss(*pair, tie)
    assert value >= lam * math.log(2) * (1 - 1e-15)
    close(loss(pair[0], pair[0], tie), torch.tensor(lam * math.log(2), dtype=F64))
    close(loss(*pair[::-1], tie), value)
    slope = lam / 2 * torch.tanh((pair[0] - pair[1]) / 2)
    close(gradients(lambda r, s: loss(r, s, tie), *pair), (slope, -slope), atol=1e-14)


def test_ties_default_and_impossible_answers():
    chosen, rejected = rewards()
    expected = each(TieAwareBradleyTerryLoss, chosen, rejected, TIE, tie_weight=1.0)
    assert torch.equal(each(TieAwareBradleyTerryLoss, chosen, rejected, TIE), expected)
    # A preference for what could not be better is right, in value and gradient.
    r, s = torch.tensor([1.0, 1.0]), torch.tensor([-INF, 0.0])
    leaves = [x.clone().requires_grad_() for x in (r, s)]
    values = each(TieAwareBradleyTerryLoss, *leaves, torch.tensor([False, True]))
    assert values[0] == 0
    for g in torch.autograd.grad(values.sum(), leaves):
        assert g[0] == 0
        assert g[1] != 0


# Ensembles.


def test_ensembles():
    r = rewards(4, 7)
    mean, least = r.sum(0) / 4, r.min(0).values
    close(reward_ensemble(r), mean)
    close(reward_ensemble(r, "mean"), mean)
    assert torch.equal(reward_ensemble(r, "wco"), least)
    spread = ((r - mean) ** 2).sum(0)
    close(reward_ensemble(r, "uwo"), mean - 0.5 * spread / 4)
    close(reward_ensemble(r, "uwo", 0.1), mean - 0.1 * spread / 4)
    close(reward_ensemble(r, "uwo", 0.1, unbiased=True), mean - 0.1 * spread / 3)
    close(reward_ensemble(r, "uwo", 0.0), mean)
    nominal = r[2] + 0.3
    close(reward_ensemble(r, "robust", nominal=nominal), 0.5 * nominal + 0.5 * least)
    close(reward_ensemble(r, "robust", nominal=nominal, alpha=0.2), 0.2 * nominal + 0.8 * least)
    assert torch.equal(reward_ensemble(r, "robust", nominal=nominal, alpha=0.0), least)
    assert torch.equal(reward_ensemble(r, "robust", nominal=nominal, alpha=1.0), nominal)


def test_of_each_answer_the_surest_model_is_the_nominal_one():
    r = rewards(3, 4)
    std = torch.tensor([[0.1, 9.0, 3.0, 2.0], [0.2, 1.0, 2.0, 3.0], [0.3, 2.0, 1.0, 1.0]])
    nominal = torch.stack([r[0, 0], r[1, 1], r[2, 2], r[2, 3]])
    expected = reward_ensemble(r, "robust", nominal=nominal, alpha=0.7)
    assert torch.equal(reward_ensemble(r, "robust", alpha=0.7, std=std), expected)
    shaped = reward_ensemble(r.view(3, 2, 2), "robust", alpha=0.7, std=std.view(3, 2, 2))
    assert torch.equal(shaped, expected.view(2, 2))


@given(st.lists(numbers, min_size=1, max_size=6), numbers, st.floats(0, 1))
def test_ensembles_are_cautious(found, shift, alpha):
    r = torch.tensor(found, dtype=F64).unsqueeze(1)
    mean, least = reward_ensemble(r), reward_ensemble(r, "wco")
    slack = 1e-12 * float(1 + r.abs().max())
    assert least <= mean + slack
    for options in ({"coef": 0.3}, {"coef": 0.3, "unbiased": True}):
        assert reward_ensemble(r, "uwo", **options) <= mean + slack
    for k in range(len(r)):
        robust = reward_ensemble(r, "robust", nominal=r[k], alpha=alpha)
        assert least - slack <= robust <= r[k] + slack
    for kind in ("mean", "wco", "uwo"):
        moved = reward_ensemble(r + shift, kind)
        close(moved, reward_ensemble(r, kind) + shift, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["mean", "wco", "uwo", "robust"])
@pytest.mark.parametrize("unbiased", [False, True])
def test_an_ensemble_of_one_is_its_reward(kind, unbiased):
    r = rewards(1, 5)
    leaf = r.clone().requires_grad_()
    nominal = leaf[0] if kind == "robust" else None
    out = reward_ensemble(leaf, kind, 0.5, unbiased, nominal)
    assert torch.equal(out, r[0])
    (g,) = torch.autograd.grad(out.sum(), leaf)
    close(g, torch.ones_like(r))


def test_disagreement_of_large_rewards_and_of_halves():
    r = 1e4 + torch.tensor([[0.0], [1.0], [2.0]])
    close(reward_ensemble(r, "uwo", 3.0), torch.tensor([1e4 + 1 - 2]), rtol=1e-7)
    half = torch.tensor([[1e4], [1e4 + 8]]).bfloat16()
    for kind in ("mean", "wco", "uwo"):
        found = reward_ensemble(half, kind)
        assert found.dtype == F32
        close(found.double(), reward_ensemble(half.double(), kind), rtol=1e-6)
    found = reward_ensemble(half, "robust", nominal=half[0], alpha=0.3)
    assert found.dtype == F32
    wide = half.double()
    exact = reward_ensemble(wide, "robust", nominal=wide[0], alpha=0.3)
    close(found.double(), exact, rtol=1e-6)


R = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        ((R, "min"), {}, ValueError, "kind: expected one of .*'wco', 'uwo', 'robust'.*'min'"),
        ((R, "uwo", -0.1), {}, ValueError, r"coef: expected a number in \[0, inf\), got -0.1"),
        ((R, "uwo", "1"), {}, TypeError, "coef: expected a number, got str"),
        ((R, "uwo", 0.1, 1.5), {}, ValueError, "unbiased: expected one of .*True, False.*1.5"),
        ((R, "uwo"), {"alpha": 1.5}, ValueError, r"alpha: expected a number in \[0, 1\], got 1.5"),
        (([1.0],), {}, TypeError, "rewards: expected a tensor, got list"),
        ((R.long(),), {}, TypeError, r"rewards: expected floating point, got torch\.int64"),
        ((R[0, 0],), {}, ValueError, r"rewards: expected shape \(K, \.\.\.\), K >= 1, got \(\)"),
        ((R[:0],), {}, ValueError, r"rewards: .* K >= 1, got \(0, 4\)"),
        ((R, "robust"), {}, ValueError, "nominal: expected a tensor, or std, .* got neither"),
        ((R, "robust"), {"nominal": R[0], "std": R}, ValueError, "nominal: .* got both"),
        ((R, "robust"), {"nominal": R[0, :1]}, ValueError, r"nominal: .*\(4,\), got \(1,\)"),
        ((R, "robust"), {"nominal": R}, ValueError, r"nominal: .*\(4,\), got \(3, 4\)"),
        ((R, "robust"), {"nominal": 0}, TypeError, "nominal: expected a tensor, got int"),
        ((R, "robust"), {"std": R[0]}, ValueError, r"std: .*\(3, 4\), got \(4,\)"),
        ((R, "robust"), {"std": R.long()}, TypeError, r"std: .* got torch\.int64"),
        ((R, "wco"), {"nominal": R[0]}, ValueError, "nominal: expected None with kind='wco'"),
        ((R, "mean"), {"std": R}, ValueError, "std: expected None with kind='mean', got Tensor"),
    ],
)
def test_what_ensembles_refuse(inputs, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        reward_ensemble(*inputs, **options)


# The log-sigmoid transform.


@given(numbers, numbers)
def test_log_sigmoid_centred(r, reference):
    lsc = LogSigmoidCenteredReward()
    pair = one(r, reference)
    u = lsc(*pair)
    close(u, F.logsigmoid(pair[0] - pair[1]))
    close(-u.mean(), BradleyTerryLoss()(*pair))
    assert u < 0
    slope = torch.sigmoid(pair[1] - pair[0])
    close(gradients(lsc, *pair), (slope, -slope))
    # Increasing and concave.
    step = lsc(pair[0] + 0.5, pair[1]) - u
    before = u - lsc(pair[0] - 0.5, pair[1])
    assert 0 <= step <= before * (1 + 1e-12)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_log_sigmoid_at_its_ends(dtype):
    lsc = LogSigmoidCenteredReward()
    zero = torch.zeros(1, dtype=dtype)
    assert lsc(zero - 1e4, zero) == -1e4
    assert lsc(zero + 1e4, zero) == 0
    close(lsc(zero, zero), torch.full_like(zero, -math.log(2)), rtol=1e-6)
    close(lsc(zero + 5.0, zero + 5.0 + 1e4), zero - 1e4, rtol=1e-6)
    above = lsc(zero + 30.0, zero)
    close(above, -torch.exp(zero - 30.0), rtol=1e-6, atol=0.0)
    # Their difference is infinite in float16.
    far = torch.tensor([6e4]).half(), torch.tensor([-6e4]).half()
    assert lsc(*far).dtype == F32
    assert lsc(*far) == 0
    assert lsc(*far[::-1]) == 2 * far[1].double()


def test_sums_of_the_transform_are_log_probabilities_that_all_hold():
    lsc = LogSigmoidCenteredReward()
    helpful, harmless = rewards(2, 12).view(2, 3, 4)
    references = [x.mean(1, keepdim=True) for x in (helpful, harmless)]
    total = lsc(helpful, references[0]) + lsc(harmless, references[1])
    both = torch.sigmoid(helpful - references[0]) * torch.sigmoid(harmless - references[1])
    close(total.exp(), both)
    # One reference for all, one for each prompt, one for each answer.
    close(lsc(helpful, references[0].expand(3, 4)), lsc(helpful, references[0]))
    same = torch.full((1, 1), 0.3, dtype=F64)
    close(lsc(helpful, same), F.logsigmoid(helpful - 0.3))
    assert repr(lsc) == "LogSigmoidCenteredReward()"


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (([1.0], R), TypeError, "rewards: expected a tensor, got list"),
        ((R, 0.5), TypeError, "reference_rewards: expected a tensor, got float"),
        ((R, R.long()), TypeError, r"reference_rewards: expected floating point, got torch\.int64"),
        ((R, R[0]), ValueError, r"reference_rewards: .*\(3, 4\), or .* ones, got \(4,\)"),
        ((R, R[:2]), ValueError, r"reference_rewards: .* got \(2, 4\)"),
        ((R[:1], R), ValueError, r"reference_rewards: .*\(1, 4\), .* got \(3, 4\)"),
        ((R, R.to("meta")), ValueError, "reference_rewards: expected device cpu, got meta"),
    ],
)
def test_what_the_transform_refuses(inputs, error, message):
    with pytest.raises(error, match=f"^{message}"):
        LogSigmoidCenteredReward()(*inputs)
