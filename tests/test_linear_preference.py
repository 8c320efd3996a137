"""LinearPreferenceLoss: what the two steps it stands for give, without the logits."""

import gc
import itertools
import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import lossary
from lossary import (
    AOTLoss,
    APOLoss,
    BCOPairLoss,
    CPOLoss,
    CREAMLoss,
    DiscoPOPLoss,
    DNOLoss,
    DPOLoss,
    DPOPLoss,
    EXOLoss,
    HingePreferenceLoss,
    INPOLoss,
    IPOLoss,
    LinearLogits,
    LinearPreferenceLoss,
    LogicPreferenceLoss,
    NCALoss,
    ORPOLoss,
    PairwisePreferenceLoss,
    RDPOLengthLoss,
    RobustDPOLoss,
    RPOLoss,
    SCIRLoss,
    ShardedLogits,
    SimPOLoss,
    SPPOLoss,
    SRPOLoss,
    linear_sequence_logps,
    sequence_logps,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

NAN = math.nan
F32, F64 = torch.float32, torch.float64
N, T, H, V = 3, 5, 4, 7
#: Every pairwise loss, and what it takes: sums or averages, with a reference, with lengths of both
#: answers, of the chosen one or none.
LOSSES = {
    "DPO": (DPOLoss(0.7), "sums", True, 0),
    "DPO lengths": (DPOLoss(2.0, 0.1, "js", length_normalize=True), "sums", True, 2),
    "RobustDPO": (RobustDPOLoss(0.7), "sums", True, 0),
    "RPO": (RPOLoss(0.7, 0.5), "sums", True, 0),
    "RPO tokens": (RPOLoss(0.7, 0.5, nll="token_mean"), "sums", True, 1),
    "RPO sequences": (RPOLoss(0.7, 0.5, nll="sequence_mean"), "sums", True, 1),
    "IPO": (IPOLoss(0.7), "sums", True, 0),
    "IPO lengths": (IPOLoss(0.7, True), "sums", True, 2),
    "Hinge": (HingePreferenceLoss(0.7, 5.0, 0.3), "sums", True, 0),
    "EXO": (EXOLoss(0.7), "sums", True, 0),
    "NCA": (NCALoss(0.7), "sums", True, 0),
    "BCOPair": (BCOPairLoss(0.7, 0.5), "sums", True, 0),
    "SPPO": (SPPOLoss(0.7), "sums", True, 0),
    "APO": (APOLoss(0.7), "sums", True, 0),
    "AOT": (AOTLoss(0.7), "sums", True, 0),
    "DiscoPOP": (DiscoPOPLoss(0.7), "sums", True, 0),
    "DPOP": (DPOPLoss(0.7, 3.0), "sums", True, 0),
    "RDPO": (RDPOLengthLoss(0.7), "sums", True, 2),
    "SimPO": (SimPOLoss(), "averages", False, 0),
    "SimPO sums": (SimPOLoss(average=False), "sums", False, 2),
    "ORPO": (ORPOLoss(), "averages", False, 0),
    "ORPO tokens": (ORPOLoss(0.1, "token_mean", average=False), "sums", False, 2),
    "CPO": (CPOLoss(0.7), "sums", False, 0),
    "CPO tokens": (CPOLoss(0.7, nll="token_mean"), "sums", False, 1),
    "Logic": (LogicPreferenceLoss(), "averages", True, 0),
    "Logic sums": (LogicPreferenceLoss(average=False), "sums", True, 2),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
#: The prompts: answers of 3, 4 and 2 tokens, and of 3, 1 and 4.
MASKED = (torch.arange(T) >= torch.tensor([[2], [1], [3], [2], [4], [1]])).long()


def close(found, expected, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def made(n=N, dtype=F64, seed=0):
    """Hidden states, a head and its bias, labels of 2 n sequences; a reference's, too."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((2 * n, T, H), (V, H), (V,))
    layer, other = (
        [torch.randn(size, dtype=F64, generator=generator).to(dtype) for size in sizes]
        for _ in range(2)
    )
    labels = torch.randint(V, (2 * n, T), generator=generator)
    return [x.requires_grad_() for x in layer], labels, other


def by_hand(logits, labels, mask=None):
    """Sums of log-probabilities, and how many they are sums of."""
    logps = logits.log_softmax(-1)[:, :-1].gather(2, labels[:, 1:, None]).squeeze(2)
    mask = torch.ones_like(labels) if mask is None else mask
    present = mask[:, 1:] != 0
    return (logps * present).sum(1), present.sum(1)


def two_steps(name, layer, labels, other, mask=None, n=N):
    """The loss of log-probabilities that were worked out from logits in memory."""
    loss, takes, reference, counts = LOSSES[name]
    models = [layer, other] if reference else [layer]
    inputs = []
    for model in models:
        sums, lengths = by_hand(F.linear(*model), labels, mask)
        x = sums / lengths if takes == "averages" else sums
        inputs += [x[:n], x[n:]]
    return loss(*inputs, *[lengths[:n], lengths[n:]][:counts])


def streamed(name, layer, labels, other, mask=None, **options):
    """The same from hidden states."""
    loss, _, reference, _ = LOSSES[name]
    reference = LinearLogits(*other) if reference else None
    criterion = LinearPreferenceLoss(loss, **options)
    return criterion(LinearLogits(*layer, tile_size=2), labels, mask, reference)


def gradients(out, layer):
    return torch.autograd.grad(out, layer)


# What it is.


#: What needs the log-probabilities of further models or prompts, or a judge's.
REFUSED = (SRPOLoss, DNOLoss, INPOLoss, CREAMLoss, SCIRLoss)


@pytest.mark.parametrize("loss", REFUSED)
def test_what_needs_more_is_refused_and_told(loss):
    with pytest.raises(TypeError, match=rf"loss: expected .* got {loss.__name__}, which needs"):
        LinearPreferenceLoss(loss())


def test_every_pairwise_loss_is_here_but_those_that_need_more():
    exported = {getattr(lossary, name) for name in lossary.__all__}
    pairwise = {
        x for x in exported if isinstance(x, type) and issubclass(x, PairwisePreferenceLoss)
    } - {PairwisePreferenceLoss}
    assert {type(loss) for loss, *_ in LOSSES.values()} == pairwise - set(REFUSED)


@every_loss
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_loss_of_log_probabilities(name, masked):
    layer, labels, other = made()
    mask = MASKED if masked else None
    expected = two_steps(name, layer, labels, other, mask)
    found = streamed(name, layer, labels, other, mask)
    close(found, expected)
    for a, b in zip(gradients(found, layer), gradients(expected, layer), strict=True):
        close(a, b)


@every_loss
def test_layouts_agree(name):
    layer, labels, other = made()
    loss, _, reference, _ = LOSSES[name]
    criterion = LinearPreferenceLoss(loss)
    dense, of_reference = F.linear(*layer), F.linear(*other) if reference else None
    expected = criterion(dense, labels, MASKED, of_reference)
    close(expected, two_steps(name, layer, labels, other, MASKED))
    found = criterion(ShardedLogits(dense), labels, MASKED, of_reference)
    close(found, expected)
    if reference:
        sums = sequence_logps(of_reference, labels, MASKED)
        close(criterion(dense, labels, MASKED, reference_logps=sums), expected)
        close(criterion(dense, labels, MASKED, ShardedLogits(of_reference)), expected)


def test_the_two_lines_that_it_stands_for():
    layer, labels, other = made()
    hidden, weight, bias = layer
    loss = DPOLoss(2.0, length_normalize=True)
    reference = sequence_logps(F.linear(*other), labels, MASKED)
    options = {"shift": False, "ignore_index": 3, "temperature": 0.7}
    for chosen in ({}, options):
        logps, lengths = linear_sequence_logps(
            hidden, weight, labels, MASKED, bias=bias, return_lengths=True, **chosen
        )
        expected = loss(*logps.chunk(2), *reference.chunk(2), *lengths.chunk(2))
        found = LinearPreferenceLoss(loss, **chosen)(
            LinearLogits(hidden, weight, bias), labels, MASKED, reference_logps=reference
        )
        close(found, expected, rtol=0, atol=0)


def test_defaults_are_those_of_dpo_and_of_sequence_logps():
    layer, labels, other = made()
    logits, reference = F.linear(*layer), F.linear(*other)
    labels[0, 2] = -100
    policy, other = (sequence_logps(x, labels) for x in (logits, reference))
    found = LinearPreferenceLoss()(logits, labels, reference_logits=reference)
    close(found, DPOLoss()(*policy.chunk(2), *other.chunk(2)), rtol=0, atol=0)
    close(LinearPreferenceLoss()(logits, labels), DPOLoss()(*policy.chunk(2)), rtol=0, atol=0)


def test_a_softcap():
    layer, labels, other = made()
    logits, reference = F.linear(*layer), F.linear(*other)
    capped = [2.0 * torch.tanh(x / (0.7 * 2.0)) for x in (logits, reference)]
    expected = LinearPreferenceLoss()(capped[0], labels, reference_logits=capped[1])
    options = {"temperature": 0.7, "softcap": 2.0}
    close(LinearPreferenceLoss(**options)(logits, labels, reference_logits=reference), expected)
    policy, other = (LinearLogits(*x, **options) for x in (layer, other))
    close(LinearPreferenceLoss()(policy, labels, reference_logits=other), expected)
    with pytest.raises(TypeError, match=r"^logits: .*softcap, which LinearLogits takes itself"):
        LinearPreferenceLoss(softcap=2.0)(policy, labels)


# The reference.


@pytest.mark.parametrize("in_memory", [False, True])
def test_the_reference_has_no_gradient_and_saves_nothing(in_memory):
    layer, labels, other = made()
    for x in other:
        x.requires_grad_()
    of_reference = F.linear(*other) if in_memory else LinearLogits(*other)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out = LinearPreferenceLoss()(LinearLogits(*layer), labels, reference_logits=of_reference)
    assert {x.data_ptr() for x in saved}.isdisjoint(x.data_ptr() for x in other)
    out.backward()
    assert all(x.grad is None for x in other)
    assert all(x.grad is not None for x in layer)


def test_the_reference_has_no_tangent_either():
    layer, labels, other = made()
    logits, reference = F.linear(*layer).detach(), F.linear(*other)
    criterion = LinearPreferenceLoss()

    def loss(reference):
        return criterion(logits, labels, reference_logits=reference)

    _, slope = torch.func.jvp(loss, (reference,), (torch.ones_like(reference).cumsum(2),))
    assert slope == 0


def test_a_reference_of_another_vocabulary():
    layer, labels, (hidden, weight, bias) = made()
    wider = LinearLogits(hidden, torch.cat((weight, weight)), torch.cat((bias, bias - 1e4)))
    expected = LinearPreferenceLoss()(
        F.linear(*layer), labels, None, F.linear(hidden, weight, bias)
    )
    close(LinearPreferenceLoss()(LinearLogits(*layer), labels, None, wider), expected)


# Weights and reductions.


def test_the_reduction_is_that_of_the_loss_or_ones_own():
    layer, labels, _ = made()
    logits = LinearLogits(*layer)
    values = LinearPreferenceLoss(DPOLoss(reduction="none"))(logits, labels)
    assert values.shape == (N,)
    close(LinearPreferenceLoss(DPOLoss(reduction="sum"))(logits, labels), values.sum())
    loss = DPOLoss(reduction="sum")
    close(LinearPreferenceLoss(loss, reduction="mean")(logits, labels), values.mean())
    assert loss.reduction == "sum"
    close(LinearPreferenceLoss()(logits, labels, normalizer=7.0), values.sum() / 7)


@pytest.mark.parametrize("name", [n for n, (x, *_) in LOSSES.items() if x.separable])
@pytest.mark.parametrize("layout", [LinearLogits, F.linear])
@pytest.mark.parametrize("fill", [0.5, NAN, math.inf])
def test_a_pair_of_weight_0_is_not_there(name, layout, fill):
    layer, labels, other = made()
    loss, _, reference, _ = LOSSES[name]
    keep = torch.tensor([True, False, True])
    rows = keep.repeat(2)
    weight = torch.tensor([2.0, 0.0, 0.5], dtype=F64)
    criterion = LinearPreferenceLoss(loss)

    spoiled, spoiled_other = layer[0].detach().clone(), other[0].clone()
    spoiled[~rows] = spoiled_other[~rows] = fill
    spoiled.requires_grad_()
    wrong = labels.clone()
    wrong[~rows] = -5
    of_reference = layout(spoiled_other, *other[1:]) if reference else None
    found = criterion(layout(spoiled, *layer[1:]), wrong, MASKED, of_reference, weight=weight)
    of_reference = layout(other[0][rows], *other[1:]) if reference else None
    expected = criterion(
        layout(layer[0][rows], *layer[1:]), labels[rows], MASKED[rows], of_reference,
        weight=weight[keep],
    )  # fmt: skip
    close(found, expected)
    (slope,) = torch.autograd.grad(found, spoiled, retain_graph=True)
    if layout is LinearLogits or math.isfinite(fill):
        assert (slope[~rows] == 0).all()
    (wanted,) = torch.autograd.grad(expected, layer[0], retain_graph=True)
    close(slope[rows], wanted[rows])
    if layout is LinearLogits:
        for a, b in zip(gradients(found, layer[1:]), gradients(expected, layer[1:]), strict=True):
            close(a, b)


def test_pairs_of_weight_0_cost_nothing():
    layer, labels, _ = made()
    products, mm = [], torch.mm

    def counted(a, b, **out):
        products.append(a.shape[0])
        return mm(a, b, **out)

    with mock.patch.object(torch, "mm", counted):
        LinearPreferenceLoss()(
            LinearLogits(*layer), labels, weight=torch.tensor([0.0, 1.0, 0.0])
        ).backward()
    # Of two sequences, forward and backward, without the last position.
    assert sum(products) == 2 * 2 * (T - 1)


def test_micro_batches_add_up():
    layer, labels, other = made()
    criterion = LinearPreferenceLoss()
    whole = criterion(LinearLogits(*layer), labels, None, LinearLogits(*other), normalizer=float(N))
    parts = 0.0
    for i in range(N):
        rows = torch.tensor([i, i + N])
        parts = parts + criterion(
            LinearLogits(layer[0][rows], *layer[1:]), labels[rows], None,
            LinearLogits(other[0][rows], *other[1:]), normalizer=float(N),
        )  # fmt: skip
    close(parts, whole)
    for a, b in zip(gradients(parts, layer), gradients(whole, layer), strict=True):
        close(a, b)


def test_batch_coupled_losses_stay_so():
    layer, labels, other = made()
    loss = RPOLoss(0.7, 0.5, nll="token_mean")
    criterion = LinearPreferenceLoss(loss)
    assert not criterion.separable
    weight = torch.tensor([1.0, 0.0, 2.0], dtype=F64)
    sums, lengths = by_hand(F.linear(*layer), labels, MASKED)
    reference, _ = by_hand(F.linear(*other), labels, MASKED)
    expected = loss(*sums.chunk(2), *reference.chunk(2), lengths[:N], weight=weight)
    found = criterion(LinearLogits(*layer), labels, MASKED, LinearLogits(*other), weight=weight)
    close(found, expected)
    with pytest.raises(ValueError, match=r"^weight: expected None, as values are of ranks"):
        LinearPreferenceLoss(AOTLoss())(LinearLogits(*layer), labels, weight=weight)


# What goes on to the loss.


class Smoothed(PairwisePreferenceLoss):
    """A loss that takes a smoothing for every pair, and something of its own."""

    def per_sample(
        self,
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps=None,
        reference_rejected_logps=None,
        label_smoothing=None,
        own=3.0,
    ):
        d = policy_chosen_logps - policy_rejected_logps
        return own * d if label_smoothing is None else own * d * (1.0 - 2.0 * label_smoothing)


def test_further_inputs_go_on_to_the_loss():
    layer, labels, other = made()
    logits, (policy, _) = LinearLogits(*layer), by_hand(F.linear(*layer), labels)
    reference, _ = by_hand(F.linear(*other), labels)
    chosen, rejected = policy.chunk(2)
    win, lose = torch.tensor([0.9, 0.6, 0.5], dtype=F64), torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    criterion = LinearPreferenceLoss(SPPOLoss(0.7))
    for given in ({"win_prob": win}, {"win_prob": win, "lose_prob": lose}):
        expected = SPPOLoss(0.7)(*policy.chunk(2), *reference.chunk(2), **given)
        close(criterion(logits, labels, reference_logps=reference, **given), expected)
    criterion = LinearPreferenceLoss(Smoothed())
    close(criterion(logits, labels), 3.0 * (chosen - rejected).mean())
    found = criterion(logits, labels, label_smoothing=win)
    close(found, (3.0 * (1.0 - 2.0 * win) * (chosen - rejected)).mean())


def test_the_running_mean_is_written_once_and_not_without_update():
    layer, labels, other = made()
    loss, alone = (BCOPairLoss(0.7, "running") for _ in range(2))
    criterion = LinearPreferenceLoss(loss)
    policy, reference = (by_hand(F.linear(*x), labels)[0] for x in (layer, other))
    for weight in (None, torch.tensor([1.0, 0.0, 1.0])):
        alone(*policy.chunk(2), *reference.chunk(2), weight=weight)
        criterion(LinearLogits(*layer), labels, reference_logps=reference, weight=weight)
        close(loss.delta_mean, alone.delta_mean, rtol=1e-6, atol=0)
        assert loss.delta_count == alone.delta_count
    criterion(LinearLogits(*layer), labels, reference_logps=reference, update=False)
    criterion.eval()
    criterion(LinearLogits(*layer), labels, reference_logps=reference)
    assert loss.delta_count == 10
    assert set(criterion.state_dict()) == {"loss.delta_mean", "loss.delta_count"}


@pytest.mark.parametrize(
    ("loss", "given", "message"),
    [
        (DPOPLoss(), {"win_prob": torch.ones(N)}, "win_prob: expected None, as DPOPLoss has no"),
        (DPOPLoss(), {"lose_prob": torch.ones(N)}, "lose_prob: expected None, as DPOPLoss has"),
        (DPOPLoss(), {"update": False}, "update: expected True, as DPOPLoss has no such input"),
        (SimPOLoss(), {"reference_logps": torch.ones(2 * N)}, "reference_logps: expected None, as"),
        (
            SimPOLoss(),
            {"reference_logits": torch.ones(2 * N, T, V)},
            "reference_logits: expected None, as SimPOLoss takes no reference, got Tensor",
        ),
    ],
)  # fmt: skip
def test_what_the_loss_does_not_take_is_refused(loss, given, message):
    layer, labels, _ = made()
    with pytest.raises(TypeError, match=f"^{message}"):
        LinearPreferenceLoss(loss)(LinearLogits(*layer), labels, **given)


def test_a_loss_that_needs_a_reference_says_so():
    layer, labels, _ = made()
    with pytest.raises(ValueError, match=r"^reference_logits: .*RDPOLengthLoss needs a ref.*None"):
        LinearPreferenceLoss(RDPOLengthLoss())(LinearLogits(*layer), labels)


def test_an_answer_without_tokens():
    layer, labels, _ = made()
    mask = MASKED.clone()
    mask[4] = 0
    logits = LinearLogits(*layer)
    assert LinearPreferenceLoss()(logits, labels, mask).isfinite()
    assert LinearPreferenceLoss(SimPOLoss())(logits, labels, mask).isfinite()
    with pytest.raises(ValueError, match=r"^rejected_lengths: .*lengths >= 1, got 0"):
        LinearPreferenceLoss(SimPOLoss(average=False))(logits, labels, mask)
    weight = torch.tensor([1.0, 0.0, 1.0])
    assert LinearPreferenceLoss(SimPOLoss(average=False))(
        logits, labels, mask, weight=weight
    ).isfinite()


# Numbers.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    layer, labels, other = made(dtype=dtype)
    found = LinearPreferenceLoss()(LinearLogits(*layer), labels, None, LinearLogits(*other))
    assert found.dtype is F32
    exact = [x.detach().double().requires_grad_() for x in layer]
    expected = LinearPreferenceLoss()(
        LinearLogits(*exact), labels, None, LinearLogits(*[x.double() for x in other])
    )
    close(found.double(), expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(found, layer), gradients(expected, exact), strict=True):
        assert a.dtype is dtype
        close(a.double(), b, rtol=1e-2, atol=1e-3)


def test_first_order_only_when_streamed():
    layer, labels, _ = made()
    out = LinearPreferenceLoss()(LinearLogits(*layer), labels)
    slopes = torch.autograd.grad(out, layer, create_graph=True)
    with pytest.raises(RuntimeError, match="LinearLogits: expected a first derivative"):
        slopes[0].sum().backward()
    logits = F.linear(*layer)
    out = LinearPreferenceLoss()(logits, labels)
    slopes = torch.autograd.grad(out, layer, create_graph=True)
    assert torch.autograd.grad(slopes[0].sum(), layer[1])[0].abs().max() > 0


# Memory.


def peak_bytes(run):
    """The most that torch's allocator holds during a run beyond what it held before."""
    run()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(sizes))


def test_a_step_never_holds_the_logits():
    n, length, width, vocabulary = 4, 128, 16, 16_000
    logits = 2 * n * length * vocabulary * 4
    hidden, other = torch.randn(2, 2 * n, length, width)
    weight, of_reference = torch.randn(2, vocabulary, width)
    labels = torch.randint(vocabulary, (2 * n, length))

    def run(layout):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.no_grad():
            reference = layout(other, of_reference)
        LinearPreferenceLoss()(layout(h, w), labels, reference_logits=reference).backward()

    # The gradient of the weight, a copy of it, and a tile.
    assert peak_bytes(lambda: run(LinearLogits)) < 0.15 * logits
    assert peak_bytes(lambda: run(F.linear)) > 2 * logits
