"""Single answers: KTO and its estimate, BCO and its running mean. Segments: CPL. Weights: WPO."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lossary import (
    APOLoss,
    BCOLoss,
    BCOPairLoss,
    CPLLoss,
    DPOLoss,
    KTOLoss,
    WPOWeighting,
    pairs_from_scores,
    token_logps,
)
from processes import run_processes
from test_preference import F32, F64, INF, NAN, N, answers, close, each, gradients

sigmoid = torch.sigmoid
numbers = st.floats(-30, 30)
GOOD = torch.tensor([True, False, False, True, True, False])


def single(seed=0):
    """Log-probabilities of a policy and a reference, and of mismatched answers."""
    policy, other, reference, mismatched, *_ = answers(3.0, seed)
    return policy, reference, other + 2.0, mismatched


def kto(rho, good, z0, beta, desirable=1.0, undesirable=1.0):
    """The formula of the authors' code, TRL and Liger."""
    chosen = desirable * (1 - sigmoid(beta * (rho - z0)))
    rejected = undesirable * (1 - sigmoid(beta * (z0 - rho)))
    return torch.where(good, chosen, rejected)


@pytest.mark.parametrize(
    "kl", [0.0, 1.5, torch.tensor(1.5, dtype=F64)], ids=["0", "float", "tensor"]
)
def test_kto(kl):
    policy, reference, *_ = single()
    rho = policy - reference
    options = {"beta": 0.7, "desirable_weight": 2.0, "undesirable_weight": 0.5}
    found = each(KTOLoss, policy, reference, GOOD, kl, **options)
    close(found, kto(rho, GOOD, float(kl), 0.7, 2.0, 0.5))
    close(KTOLoss()(policy, reference, GOOD, kl), kto(rho, GOOD, float(kl), 0.1).mean())
    loss = KTOLoss(reduction="sum", **options)
    found = gradients(lambda x, y: loss(x, y, GOOD, kl), policy, reference)
    u = 0.7 * (rho - float(kl))
    slope = torch.where(GOOD, -2.0, 0.5).double() * 0.7 * sigmoid(u) * sigmoid(-u)
    close(found, (slope, -slope))


def test_kto_estimates_the_divergence_from_mismatched_answers():
    policy, reference, kp, kr = single()
    z0 = (kp - kr).mean()
    assert z0 > 0.1
    loss = KTOLoss(0.7)
    expected = kto(policy - reference, GOOD, z0, 0.7).mean()
    close(loss(policy, reference, GOOD, kl_policy_logps=kp, kl_reference_logps=kr), expected)
    close(loss(policy, reference, GOOD, z0), expected)
    close(loss.per_sample(policy, reference, GOOD, None, kp, kr).mean(), expected)
    # At least 0: of the mean, not of every answer.
    expected = kto(policy - reference, GOOD, 0.0, 0.7).mean()
    close(loss(policy, reference, GOOD, None, kr, kp), expected)
    close(loss(policy, reference, GOOD, -z0), expected)
    close(loss(policy, reference, GOOD, -float(z0)), expected)


def test_no_gradient_flows_through_the_estimate():
    policy, reference, kp, kr = single()
    leaf = kp.clone().requires_grad_()
    assert not KTOLoss()(policy, reference, GOOD, None, leaf, kr).requires_grad
    kl = torch.tensor(0.5, requires_grad=True)
    assert not KTOLoss()(policy, reference, GOOD, kl).requires_grad


def test_answers_that_are_not_there_are_not_in_the_estimate():
    policy, reference, kp, kr = single()
    kept = torch.arange(N) % 3 != 1
    clean = [x[kept] for x in (policy, reference, GOOD)]
    loss = KTOLoss(0.7)
    expected = loss(*clean, None, kp[kept], kr[kept])
    lost = [x.masked_fill(~kept, NAN) for x in (policy, reference, kp, kr)]
    leaf = lost[0].requires_grad_()
    found = loss(leaf, lost[1], GOOD, None, *lost[2:], weight=kept)
    close(found, expected)
    (g,) = torch.autograd.grad(found, leaf)
    assert g.isfinite().all()
    # Nor are mismatched answers that are impossible.
    impossible = kp.masked_fill(~kept, -INF)
    found = loss(policy, reference, GOOD, None, impossible, kr)
    close(found, loss(policy, reference, GOOD, (kp - kr)[kept].mean()))
    assert loss(*(x[:0] for x in (policy, reference, GOOD)), None, kp[:0], kr[:0]) == 0


@given(numbers, numbers)
def test_kto_lies_between_0_and_its_weight_and_is_half_of_it_at_the_reference_point(rho, z0):
    rho, zero = torch.tensor([rho], dtype=F64), torch.zeros(1, dtype=F64)
    for good in (True, False):
        loss = KTOLoss(1.0, 3.0, 3.0)
        assert 0 < loss(rho, zero, torch.tensor([good]), z0) <= 3
        assert loss(zero + max(z0, 0.0), zero, torch.tensor([good]), z0) == 1.5


def test_kto_of_pairs_without_divergence_is_apo():
    pc, pr, rc, rr, *_ = answers()
    good = torch.ones(N, dtype=torch.bool)
    terms = each(KTOLoss, pc, rc, good, 0.0) + each(KTOLoss, pr, rr, ~good, 0.0)
    close(terms, each(APOLoss, pc, pr, rc, rr))


def test_half_precision_is_cast_before_the_difference():
    low = [x.bfloat16() for x in single()]
    wide = [x.double() for x in low]
    found = KTOLoss(0.7)(low[0], low[1], GOOD, None, *low[2:])
    assert found.dtype == F32
    close(found.double(), KTOLoss(0.7)(wide[0], wide[1], GOOD, None, *wide[2:]), 1e-5, 1e-6)
    found = BCOLoss(0.7)(low[0], low[1], GOOD)
    assert found.dtype == F32
    close(found.double(), BCOLoss(0.7)(wide[0], wide[1], GOOD), 1e-5, 1e-6)


# BCO.


def bco(rewards, good, delta):
    return torch.where(good, -F.logsigmoid(rewards - delta), -F.logsigmoid(-(rewards - delta)))


def test_bco_and_its_running_mean():
    loss, seen = BCOLoss(0.7), []
    for seed in range(3):
        policy, reference, *_ = single(seed)
        seen.append(0.7 * (policy - reference))
        delta = torch.cat(seen).mean()
        close(loss(policy, reference, GOOD), bco(seen[-1], GOOD, delta).mean(), rtol=1e-6)
        close(loss.delta_mean.double(), delta, rtol=1e-6)
    assert loss.delta_count == 3 * N
    mean = float(loss.delta_mean)
    loss.eval()
    close(loss(policy, reference, GOOD), bco(seen[-1], GOOD, mean).mean())
    assert loss.delta_count == 3 * N
    close(loss.implicit_rewards(policy, reference), seen[-1])
    assert not loss.implicit_rewards(policy.requires_grad_(), reference).requires_grad
    with pytest.raises(ValueError, match=r"reference_logps: .*\(6,\), got \(5,\)"):
        loss.implicit_rewards(policy, reference[1:])
    loss.reset()
    assert (loss.delta_mean, loss.delta_count) == (0, 0)
    assert BCOLoss().beta == 0.1


def test_what_does_not_count_in_the_running_mean():
    policy, reference, *_ = single()
    kept = torch.arange(N) % 3 != 1
    loss, other = BCOLoss(0.7), BCOLoss(0.7)
    expected = loss(*(x[kept] for x in (policy, reference, GOOD)))
    close(other(policy.masked_fill(~kept, NAN), reference, GOOD, weight=kept), expected)
    assert other.delta_count == kept.sum()
    other(policy, reference, GOOD, update=False)
    assert other.delta_count == kept.sum()
    other.reset()
    other(policy.masked_fill(~kept, -INF), reference, GOOD)
    close(other.delta_mean, loss.delta_mean, rtol=1e-6)
    with pytest.raises(ValueError, match="reference_logps"):
        other(policy, reference[:1], GOOD)
    assert other.delta_count == kept.sum()


def test_bco_of_pairs_is_the_sum_of_both():
    pc, pr, rc, rr, *_ = answers()
    good = torch.ones(N, dtype=torch.bool)
    loss, pairs = BCOLoss(0.5, reduction="none"), BCOPairLoss(0.5, "running", reduction="none")
    both = torch.stack((pc, pr)), torch.stack((rc, rr)), torch.stack((good, ~good))
    close(loss(*both).sum(0), pairs(pc, pr, rc, rr))
    close(loss.delta_mean, pairs.delta_mean)
    slope, _ = gradients(lambda x, y: loss.eval()(x, y, both[2]), *both[:2])
    above = 0.5 * (both[0] - both[1]) - float(loss.delta_mean)
    close(slope, 0.5 * torch.where(both[2], -sigmoid(-above), sigmoid(above)))


def _two_processes(rank, world_size):
    policy, reference, kp, kr = single()
    own = slice(0, 2) if rank == 0 else slice(2, N)
    found = KTOLoss(0.7)(*(x[own] for x in (policy, reference, GOOD)), None, kp[own], kr[own])
    z0 = (kp - kr).mean()
    close(found, kto(policy - reference, GOOD, z0, 0.7)[own].mean())
    groups = [torch.distributed.new_group([i]) for i in range(2)]
    alone = KTOLoss(0.7, process_group=groups[rank])
    found = alone(*(x[own] for x in (policy, reference, GOOD)), None, kp[own], kr[own])
    z0 = max(0.0, float((kp - kr)[own].mean()))
    close(found, kto(policy - reference, GOOD, z0, 0.7)[own].mean())
    bco = BCOLoss(0.7)
    bco(*(x[own] for x in (policy, reference, GOOD)))
    close(bco.delta_mean.double(), 0.7 * (policy - reference).mean(), rtol=1e-6)
    assert bco.delta_count == N


def test_estimates_are_those_of_all_processes(tmp_path):
    run_processes(_two_processes, 2, tmp_path)


@pytest.mark.parametrize(("loss", "kl"), [(KTOLoss(0.7, 2.0, 0.5), (0.3,)), (BCOLoss(0.7), ())])
def test_far_out(loss, kl):
    x = torch.tensor([-1e4, -INF, 1e4, -1e4, 1e4, -3.0])
    values = loss(x, torch.zeros(N), GOOD, *kl)
    assert not values.isnan()
    if kl:
        assert values < 2.0
    assert math.isclose(loss.properties().lipschitz, 0.35 if kl else 0.7)


# CPL.


def steps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(4, N, 5, dtype=F64, generator=generator)
    return *draw[:2], torch.rand(N, dtype=F64, generator=generator), *draw[2:]


def cpl(one, two, label, alpha, bias, gamma=1.0):
    """The authors' biased binary cross-entropy with logits, of sums over steps."""
    discounts = torch.tensor([gamma**t for t in range(5)], dtype=F64)
    a, b = (alpha * (x * discounts).sum(1) for x in (one, two))
    return label * -F.logsigmoid(b - bias * a) + (1 - label) * -F.logsigmoid(a - bias * b)


def test_cpl():
    one, two, label, ref_1, ref_2 = steps()
    close(CPLLoss()(one, two, label), cpl(one, two, label, 0.1, 0.5).mean())
    found = each(CPLLoss, one, two, label, alpha=0.7, bias=0.75, gamma=0.9)
    close(found, cpl(one, two, label, 0.7, 0.75, 0.9))
    found = each(CPLLoss, one, two, label, ref_1, ref_2, alpha=0.7, bias=0.75)
    close(found, cpl(one - ref_1, two - ref_2, label, 0.7, 0.75))
    extra = -0.3 * torch.stack((one, two)).mean((0, 2))
    found = each(CPLLoss, one, two, label, ref_1, ref_2, alpha=0.7, bias=0.75, bc_coef=0.3)
    close(found, cpl(one - ref_1, two - ref_2, label, 0.7, 0.75) + extra)
    loss = CPLLoss(0.7, 0.75, 0.9, reduction="sum")
    found = gradients(lambda x, y: loss(x, y, label), one, two)
    close(found, gradients(lambda x, y: cpl(x, y, label, 0.7, 0.75, 0.9), one, two))


def test_cpl_without_bias_is_cross_entropy_and_with_it_keeps_segments_likely():
    one, two, label, *_ = steps()
    found = each(CPLLoss, one, two, label, alpha=0.7, bias=1.0)
    logits = 0.7 * (two.sum(1) - one.sum(1))
    expected = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    close(found, expected)
    close(each(CPLLoss, one + 1, two + 1, label, alpha=0.7, bias=1.0), expected)
    biased = [each(CPLLoss, one + c, two + c, label, alpha=0.7, bias=0.5) for c in (0.0, 0.5, 1.0)]
    assert (biased[0] > biased[1]).all()
    assert (biased[1] > biased[2]).all()


def test_cpl_of_one_step_is_dpo():
    pc, pr, rc, rr, *_ = (x[:, None] for x in answers())
    zero = torch.zeros(N, dtype=F64)
    found = each(CPLLoss, pc, pr, zero, rc, rr, alpha=0.7, bias=1.0)
    close(found, each(DPOLoss, pc, pr, rc, rr, beta=0.7).squeeze(1))


def test_cpl_takes_the_mean_over_all_pairs_and_its_labels_as_constants():
    one = torch.tensor([[-1e4], [1.0]])
    two, label = torch.tensor([[1e4], [2.0]]), torch.ones(2)
    values = each(CPLLoss, one, two, label)
    assert values[0] == 0
    close(CPLLoss()(one, two, label), values[1] / 2)
    assert not CPLLoss()(one, two, label.requires_grad_()).requires_grad
    weight = torch.tensor([0.0, 1.0])
    spoiled = torch.tensor([NAN, 1.0])
    close(CPLLoss()(one, two, spoiled, weight=weight), values[1])
    low = [x.bfloat16() for x in (*steps()[:2],)]
    found = CPLLoss()(*low, torch.ones(N).bfloat16())
    assert found.dtype == F32
    close(found.double(), cpl(low[0].double(), low[1].double(), torch.ones(N), 0.1, 0.5).mean(),
          1e-5, 1e-6)  # fmt: skip


@pytest.mark.parametrize("bias", [0.5, 1.0])
def test_cpl_of_scores_is_the_mean_over_all_pairs_of_the_batch(bias):
    logps, *_ = steps()
    scores = torch.tensor([3.0, -1.0, 0.5, 7.0, 2.0, -INF], dtype=F64)
    a = 0.1 * logps.sum(1)
    pairs = [(i, j) for i in range(N) for j in range(N) if scores[i] < scores[j]]
    assert len(pairs) == N * (N - 1) // 2
    expected = torch.stack([-F.logsigmoid(a[j] - bias * a[i]) for i, j in pairs]).mean()
    worse, better, label = pairs_from_scores(scores)
    assert set(zip(worse.tolist(), better.tolist(), strict=True)) == set(pairs)
    close(CPLLoss(bias=bias)(logps[worse], logps[better], label), expected)
    # Each segment is in as many pairs: behaviour cloning is the mean over segments.
    found = CPLLoss(bias=bias, bc_coef=0.3)(logps[worse], logps[better], label)
    close(found, expected - 0.3 * logps.mean())
    # What the authors divide by leaves out pairs that have underflowed.
    far = torch.tensor([[1e4], [-1e4], [0.0]], dtype=F64)
    worse, better, label = pairs_from_scores(far[:, 0])
    values = each(CPLLoss, far[worse], far[better], label, bias=1.0)
    assert (values == 0).all()


def test_ties_of_scores_are_undecided():
    scores = torch.tensor([1, 0, 1, 1])
    worse, better, label = pairs_from_scores(scores)
    assert label.dtype == F32
    found = {(i, j): y for i, j, y in zip(*(x.tolist() for x in (worse, better, label)),
                                          strict=True)}  # fmt: skip
    assert found == {(1, 0): 1.0, (1, 2): 1.0, (1, 3): 1.0, (0, 2): 0.5, (0, 3): 0.5, (2, 3): 0.5}
    logps = torch.randn(4, 5, dtype=F64)
    order = torch.tensor([3, 1, 0, 2])
    other = pairs_from_scores(scores[order])
    close(
        CPLLoss()(logps[worse], logps[better], label),
        CPLLoss()(logps[order][other[0]], logps[order][other[1]], other[2]),
    )
    # Losses of a chosen and a rejected answer take ties as labels that are wrong half the time.
    total = logps.sum(1)
    found = DPOLoss(0.1)(total[better], total[worse], label_smoothing=1 - label)
    close(found, CPLLoss(bias=1.0)(logps[worse], logps[better], label))


def test_pairs_from_few_scores_and_of_other_dtypes():
    for n in (0, 1):
        leaf = torch.zeros(n, 5, requires_grad=True)
        worse, better, label = pairs_from_scores(torch.zeros(n))
        loss = CPLLoss()(leaf[worse], leaf[better], label)
        assert loss == 0
        assert torch.autograd.grad(loss, leaf)[0].shape == (n, 5)
    for dtype, out in ((torch.bfloat16, F32), (torch.int64, F32), (F64, F64)):
        worse, better, label = pairs_from_scores(torch.tensor([2, 1]).to(dtype))
        assert (worse, better, label) == (1, 0, 1.0)
        assert label.dtype == out
        assert worse.dtype == torch.int64
    assert not pairs_from_scores(torch.randn(3, requires_grad=True))[2].requires_grad


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        ([1.0], TypeError, "^scores: expected a tensor, got list"),
        (torch.tensor([True]), TypeError, "^scores: .*got torch.bool"),
        (torch.tensor([1j]), TypeError, "^scores: .*got torch.complex64"),
        (torch.zeros(2, 1), ValueError, r"^scores: .*\(N,\), got \(2, 1\)"),
        (torch.tensor([0.0, NAN]), ValueError, "^scores: expected no nan, got nan"),
    ],
)
def test_what_pairs_from_scores_refuses(scores, error, message):
    with pytest.raises(error, match=message):
        pairs_from_scores(scores)


@pytest.mark.wide
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_pairs_from_scores_in_one_graph(fresh_compiler):
    scores = torch.tensor([3.0, 1.0, 1.0, 2.0])
    found = torch.compile(pairs_from_scores, fullgraph=True)(scores)
    for x, y in zip(found, pairs_from_scores(scores), strict=True):
        assert (x == y).all()


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_segment_that_has_become_impossible(label):
    one, two, *_ = steps()
    lost = torch.full_like(one, -INF)
    label = torch.full((N,), label, dtype=F64)
    segments = (lost, two) if label[0] else (one, lost)
    found = each(CPLLoss, *segments, label)
    assert (found == 0).all()
    assert not any(g.isnan().any() for g in gradients(lambda *x: CPLLoss()(*x, label), *segments))
    assert (each(CPLLoss, *segments, 1 - label) == INF).all()


# WPO.


def written(seed, length):
    """Token log-probabilities of an answer each, masks, logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(4, length, 7, dtype=F64, generator=generator)
    labels = torch.randint(7, (4, length), generator=generator)
    mask = torch.rand(4, length, generator=generator) < 0.7
    mask[:, 1] = True
    logps = token_logps(logits, labels, shift=False)
    return logps, mask, WPOWeighting.log_squares(logits), logits


def trl_weight(logps, mask, logits):
    """One answer's weight, as TRL writes it."""
    expected = torch.log((logits.softmax(-1) ** 2).sum(-1))
    return (((logps - expected) * mask).sum(1) / mask.sum(1)).exp()


def test_wpo():
    (*chosen, f), (*rejected, g) = written(0, 5), written(1, 8)
    pair = trl_weight(*chosen[:2], f) * trl_weight(*rejected[:2], g)
    close(WPOWeighting(None)(*chosen, *rejected), pair)
    close(WPOWeighting()(*chosen, *rejected), pair.clamp(max=1.0))
    middle = float(pair.median())
    found = WPOWeighting(middle)(*chosen, *rejected)
    close(found, pair.clamp(max=middle))
    assert (found < pair).any()
    assert (found == pair).any()
    numbers = [chosen[0], chosen[1].double(), chosen[2]]
    close(WPOWeighting(None)(*numbers, *rejected), pair)
    half = [x.bfloat16() if x.dtype == F64 else x for x in (*chosen, *rejected)]
    assert WPOWeighting()(*half).dtype == F32


def test_wpo_of_uniform_and_of_masked_tokens():
    (logps, mask, squares, _), (*rejected, _) = written(0, 5), written(1, 8)
    uniform = torch.full_like(logps, -math.log(7))
    one = WPOWeighting(None)(uniform, mask, uniform, uniform, mask, uniform)
    close(one, torch.ones(4, dtype=F64))
    close(WPOWeighting.log_squares(torch.zeros(2, 7)), torch.full((2,), -math.log(7)), 1e-6)
    expected = WPOWeighting()(logps, mask, squares, *rejected)
    for lost in (NAN, -INF):
        spoiled = logps.masked_fill(~mask, lost), mask, squares.masked_fill(~mask, lost)
        close(WPOWeighting()(*spoiled, *rejected), expected)
    empty = logps, torch.zeros_like(mask), squares
    close(WPOWeighting()(*empty, *empty), torch.ones(4, dtype=F64))
    # The mode is likelier than the average token.
    sure = torch.tensor([[[2.0, 0.0]]], dtype=F64)
    top, squares = sure.log_softmax(-1)[..., 0], WPOWeighting.log_squares(sure)
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert WPOWeighting(None)(top, mask, squares, top, mask, squares) > 1.2
    assert WPOWeighting()(top, mask, squares, top, mask, squares) == 1
    shifted = WPOWeighting.log_squares(sure + 1e4)
    close(shifted, squares, 1e-9)


def test_wpo_is_detached():
    logps, mask, squares, logits = written(0, 5)
    leaf = logps.clone().requires_grad_()
    assert not WPOWeighting()(leaf, mask, squares, leaf, mask, squares).requires_grad
    assert not WPOWeighting.log_squares(logits.requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("at", "value", "error", "message"),
    [
        (0, [1.0], TypeError, "chosen_token_logps: expected a tensor, got list"),
        (0, torch.zeros(4), ValueError, r"chosen_token_logps: expected shape \(N, T\), got \(4,\)"),
        (1, torch.ones(4, 1), ValueError, r"chosen_mask: expected shape \(4, 5\), got \(4, 1\)"),
        (1, torch.full((4, 5), 0.5), ValueError, "chosen_mask: .* got 0.5"),
        (2, torch.zeros(4, 1), ValueError, r"chosen_log_squares: .* got \(4, 1\)"),
        (2, torch.zeros(4, 5).long(), TypeError, "chosen_log_squares: .* got torch.int64"),
        (4, torch.ones(4, 5), ValueError, r"rejected_mask: expected shape \(4, 8\)"),
    ],
)
def test_what_wpo_refuses(at, value, error, message):
    (*chosen, _), (*rejected, _) = written(0, 5), written(1, 8)
    inputs = [*chosen, *rejected]
    inputs[at] = value
    with pytest.raises(error, match=message):
        WPOWeighting()(*inputs)


def test_what_else_wpo_refuses():
    (*chosen, logits), (*rejected, _) = written(0, 5), written(1, 8)
    with pytest.raises(ValueError, match=r"rejected_token_logps: expected 4 rows, .* got 3"):
        WPOWeighting()(*chosen, *(x[:3] for x in rejected))
    with pytest.raises(TypeError, match=r"logits: expected floating point, got torch\.int64"):
        WPOWeighting.log_squares(logits.long())
    for clamp in (0.0, -1.0, INF, NAN):
        with pytest.raises(ValueError, match="clamp: expected a number in"):
            WPOWeighting(clamp)
    with pytest.raises(TypeError, match="clamp: expected a number, got str"):
        WPOWeighting("1")
