"""Log-probabilities of sequences: against cross-entropy, and what is masked must not be there."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.profiler import ProfilerActivity, profile

from lossary import SequenceNLLLoss, ld_sequence_logps, sequence_logps, token_logps

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

INF, NAN = math.inf, math.nan
F32, F64 = torch.float32, torch.float64
N, T, V = 3, 6, 7


def batch(n=N, length=T, vocabulary=V, dtype=F64):
    """Logits, labels some of which are ignored, and a mask with an empty row."""
    logits = 3 * torch.randn(n, length, vocabulary, dtype=dtype)
    labels = torch.randint(vocabulary, (n, length))
    labels[0, 2] = -100
    mask = torch.rand(n, length) > 0.4
    mask[0, 1:4] = True
    mask[1] = False
    return logits, labels, mask


def plain(logits, labels, mask=None, *, ignore_index=-100, shift=True):
    """What one would write down: cross-entropy of every position, masked. Also the mask."""
    mask = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask.bool()
    if shift:
        logits, labels, mask = logits[:, :-1], labels[:, 1:], mask[:, 1:]
    mask = mask & (labels != ignore_index)
    nll = F.cross_entropy(
        logits.transpose(1, 2), labels.where(mask, -100), ignore_index=-100, reduction="none"
    )
    return -nll, mask


def close(found, expected, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@pytest.fixture(params=["stock", "tiled"])
def path(request):
    if request.param == "tiled":
        request.getfixturevalue("tiles")


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_values_and_gradients_are_those_of_cross_entropy(path, shift, masked):
    logits, labels, mask = batch()
    mask = mask if masked else None
    leaf, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = token_logps(leaf, labels, mask, shift=shift)
    expected, present = plain(other, labels, mask, shift=shift)
    assert found.shape == (N, T - shift)
    close(found, expected)
    assert (found[~present] == 0).all()
    g = torch.randn(found.shape, dtype=F64)
    (got,) = torch.autograd.grad((found * g).sum(), leaf)
    (want,) = torch.autograd.grad((expected * g).sum(), other)
    close(got, want)
    close(sequence_logps(logits, labels, mask, shift=shift), expected.sum(1))


@pytest.mark.parametrize("shift", [True, False])
def test_averages_and_lengths(path, shift):
    logits, labels, mask = batch()
    expected, present = plain(logits, labels, mask, shift=shift)
    out, lengths = sequence_logps(logits, labels, mask, shift=shift, return_lengths=True)
    close(out, expected.sum(1))
    assert lengths.dtype == torch.int64
    assert lengths.tolist() == present.sum(1).tolist()
    assert lengths[1] == 0
    average = sequence_logps(logits, labels, mask, shift=shift, average=True)
    close(average, expected.sum(1) / present.sum(1).clamp(min=1))
    assert average[1] == 0.0
    both = sequence_logps(logits, labels, mask, shift=shift, average=True, return_lengths=True)
    close(both[0], average)
    assert torch.equal(both[1], lengths)


def test_the_row_of_the_gradient_is_onehot_minus_softmax(path):
    logits, labels, _ = batch()
    labels = labels.clamp(min=0)
    leaf = logits.requires_grad_()
    (found,) = torch.autograd.grad(sequence_logps(leaf, labels).sum(), leaf)
    close(found[:, :-1], F.one_hot(labels[:, 1:], V) - logits.detach()[:, :-1].softmax(-1))
    assert (found[:, -1] == 0).all()


def test_a_constant_added_to_a_position_changes_nothing(path):
    logits, labels, mask = batch()
    moved = logits + 100 * torch.randn(N, T, 1, dtype=F64)
    close(token_logps(moved, labels, mask), token_logps(logits, labels, mask), atol=1e-10)


@pytest.mark.parametrize("fill", [NAN, INF, -INF])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("shift", [True, False])
def test_what_is_left_out_touches_neither_value_nor_gradient(path, fill, softcap, shift):
    logits, labels, mask = batch()
    present = mask & (labels != -100)
    present = torch.cat((present[:, 1:], present[:, :1] & False), 1) if shift else present
    spoiled = logits.masked_fill(~present.unsqueeze(-1), fill).requires_grad_()
    leaf = logits.clone().requires_grad_()
    options = {"softcap": softcap, "shift": shift}
    found, expected = (sequence_logps(x, labels, mask, **options) for x in (spoiled, leaf))
    close(found, expected)
    (got,) = torch.autograd.grad(found.sum(), spoiled)
    (want,) = torch.autograd.grad(expected.sum(), leaf)
    assert (got[~present] == 0).all()
    assert (got[present] != 0).any()
    close(got, want)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, F32, torch.bfloat16])
def test_masks_of_any_dtype(dtype):
    logits, labels, mask = batch()
    close(sequence_logps(logits, labels, mask.to(dtype)), sequence_logps(logits, labels, mask))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype(dtype):
    logits, labels, _ = batch()
    labels = labels.clamp(min=0)
    close(token_logps(logits, labels.to(dtype)), token_logps(logits, labels), rtol=0, atol=0)
    ignored = labels.masked_fill(labels == 3, 255).to(torch.uint8)
    found = token_logps(logits, ignored, ignore_index=255)
    close(found, token_logps(logits, labels, mask=labels != 3))


def test_ignore_index_and_what_stands_under_the_mask():
    logits, labels, _ = batch()
    labels = labels.clamp(min=0)
    # Inside of the vocabulary it takes a token away, as a padding token may be one.
    found, lengths = sequence_logps(logits, labels, ignore_index=2, return_lengths=True)
    close(found, sequence_logps(logits, labels, labels != 2))
    assert lengths.tolist() == (labels[:, 1:] != 2).sum(1).tolist()
    # A label that is masked out may be anything; the first is not looked at with a shift.
    mask = torch.ones(N, T)
    mask[:, 3] = 0
    wild = labels.clone()
    wild[:, 3], wild[:, 0] = 10**6, -7
    close(sequence_logps(logits, wild, mask), sequence_logps(logits, labels, mask))


def test_shifting_by_hand():
    logits, labels, mask = batch()
    found = token_logps(logits[:, :-1], labels[:, 1:], mask[:, 1:], shift=False)
    close(found, token_logps(logits, labels, mask))
    # The mask is over the labels: that of the first label says nothing, that of the last does.
    other = mask.clone()
    other[:, 0] = ~other[:, 0]
    close(token_logps(logits, labels, other), token_logps(logits, labels, mask))
    labels = labels.clamp(min=0)
    last = torch.zeros(N, T)
    last[:, -1] = 1
    found = token_logps(logits, labels, last)
    assert (found[:, :-1] == 0).all()
    assert (found[:, -1] < 0).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("softcap", [None, 2.0, 30.0])
def test_temperature_then_softcap(path, temperature, softcap):
    logits, labels, mask = batch()

    def scaled(x):
        x = x / temperature
        return x if softcap is None else softcap * torch.tanh(x / softcap)

    leaf, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    options = {"temperature": temperature, "softcap": softcap}
    found = token_logps(leaf, labels, mask, **options)
    expected, _ = plain(scaled(other), labels, mask)
    close(found, expected)
    close(sequence_logps(logits, labels, mask, **options), expected.sum(1))
    (got,) = torch.autograd.grad(found.sum(), leaf)
    (want,) = torch.autograd.grad(expected.sum(), other)
    close(got, want)


def test_an_impossible_label_and_a_certain_one(path):
    logits = torch.zeros(1, 2, 3)
    logits[0, 0, 1] = -INF
    logits.requires_grad_()
    for label, value in ((1, -INF), (0, -math.log(2))):
        out = sequence_logps(logits, torch.tensor([[0, label]]))
        close(out, torch.tensor([value]), rtol=1e-6)
        (g,) = torch.autograd.grad(out.sum(), logits)
        assert g.isfinite().all()
    alone = torch.full((1, 2, 3), -INF)
    alone[..., 2] = 5.0
    assert sequence_logps(alone, torch.tensor([[0, 2]])).item() == 0.0


def test_log_probabilities_next_to_0_keep_their_digits(path):
    logits = torch.tensor([[[30.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    found = token_logps(logits, torch.tensor([[0, 0]]))
    expected = torch.tensor([[-2 * math.exp(-30.0)]])
    close(found, expected, rtol=1e-5, atol=0)
    assert torch.log_softmax(logits, -1)[0, 0, 0] == 0.0  # lost there


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_half_precision_is_computed_in_single(path, dtype, softcap):
    logits, labels, mask = batch(vocabulary=50)
    half = logits.to(dtype).requires_grad_()
    wide = half.detach().double().requires_grad_()
    found, expected = (sequence_logps(x, labels, mask, softcap=softcap) for x in (half, wide))
    assert found.dtype == F32
    close(found.double(), expected, rtol=1e-5, atol=1e-5)
    (got,) = torch.autograd.grad(found.sum(), half)
    (want,) = torch.autograd.grad(expected.sum(), wide)
    assert got.dtype == dtype
    close(got.double(), want, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_autocast_does_not_reach_it():
    logits, labels, mask = batch(dtype=F32)
    expected = sequence_logps(logits, labels, mask, average=True, softcap=4.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = sequence_logps(logits, labels, mask, average=True, softcap=4.0)
    close(found, expected, rtol=1e-6, atol=1e-6)


@given(
    st.integers(1, 3), st.integers(2, 5), st.integers(2, 6), st.booleans(), st.integers(0, 2**31)
)
def test_any_shape(n, length, vocabulary, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(n, length, vocabulary, dtype=F64, generator=generator)
    labels = torch.randint(vocabulary, (n, length), generator=generator)
    labels[torch.rand(n, length, generator=generator) < 0.2] = -100
    mask = torch.rand(n, length, generator=generator) < 0.7
    expected, present = plain(logits, labels, mask, shift=shift)
    found, lengths = sequence_logps(logits, labels, mask, shift=shift, return_lengths=True)
    close(found, expected.sum(1))
    assert lengths.tolist() == present.sum(1).tolist()
    assert (found <= 0).all()


def test_derivatives_of_any_order_vmap_and_empty_batches(path):
    logits, labels, mask = batch(2, 3, 4)

    def f(x):
        return sequence_logps(x, labels, mask, average=True, temperature=1.5)

    gradcheck(f, logits.requires_grad_())
    gradgradcheck(f, logits)
    stacked = torch.randn(3, *logits.shape, dtype=F64)
    per = vmap(grad(lambda x: f(x).sum()))(stacked)
    for x, g in zip(stacked, per, strict=True):
        leaf = x.clone().requires_grad_()
        close(g, torch.autograd.grad(f(leaf).sum(), leaf)[0])
    empty = torch.zeros(0, 3, 4, requires_grad=True)
    out = sequence_logps(empty, torch.zeros(0, 3).long())
    assert out.shape == (0,)
    assert torch.autograd.grad(out.sum(), empty)[0].shape == (0, 3, 4)
    assert token_logps(torch.zeros(2, 0, 4), torch.zeros(2, 0).long(), shift=False).shape == (2, 0)


def test_inputs_are_left_as_they_are_in_any_layout():
    logits, labels, mask = batch()
    expected = sequence_logps(logits, labels, mask, softcap=3.0)
    before = logits.clone(), labels.clone(), mask.clone()
    turned = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    close(sequence_logps(turned, labels.T.contiguous().T, mask, softcap=3.0), expected)
    assert all(torch.equal(*pair) for pair in zip(before, (logits, labels, mask), strict=True))


def test_no_value_is_looked_at_and_one_graph_is_compiled(fresh_compiler):
    logits, labels, mask = batch(dtype=F32)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(x) for x in (logits, labels, mask)]
        assert sequence_logps(*fake, average=True, softcap=3.0).shape == (N,)
    compiled = torch.compile(
        lambda *x: sequence_logps(*x, return_lengths=True), fullgraph=True, backend="aot_eager"
    )
    leaf = logits.clone().requires_grad_()
    found, lengths = compiled(leaf, labels, mask)
    expected, counted = sequence_logps(logits, labels, mask, return_lengths=True)
    close(found.detach(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(lengths, counted)
    (g,) = torch.autograd.grad(found.sum(), leaf)
    assert g.isfinite().all()


def test_a_stray_negative_label_is_not_taken_for_left_out():
    logits, labels, _ = batch()
    labels[0, 3] = -1
    with pytest.raises(RuntimeError, match="out of bounds"):  # where it cannot be looked at
        vmap(lambda y: token_logps(logits, y))(labels.unsqueeze(0))
    with pytest.raises(ValueError, match=r"labels: .*\[0, 7\) or ignore_index=-100, got -1"):
        token_logps(logits, labels)


def peak(f):
    """Return the most bytes that were held at a time, beyond what was held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        f()
    held = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("shift", [True, False])
def test_no_copy_of_the_logits_is_made(shift):
    logits = torch.randn(4, 256, 8192)
    labels = torch.randint(8192, (4, 256))
    size = logits.nbytes
    assert peak(lambda: sequence_logps(logits, labels, shift=shift)) < 0.3 * size
    logits.requires_grad_()
    assert peak(lambda: sequence_logps(logits, labels, shift=shift).sum().backward()) < 1.4 * size


# LD-DPO.


def test_ld_weights():
    logps = torch.tensor([[0.0, -1.0, -2.0, 0.0, -4.0, -8.0], [-1.0, -1.0, -1.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 1, 1, 0, 0, 0]])
    partner = torch.tensor([2, 5])
    for alpha, first in ((0.0, -3.0), (0.5, -9.0), (1.0, -15.0)):
        found = ld_sequence_logps(logps, mask, partner, alpha)
        close(found, torch.tensor([first, -3.0]))
    # Every token that counts is a position: those in between are not.
    close(ld_sequence_logps(logps, mask.bool(), torch.tensor([3, 0]), 0.0), torch.tensor([-7.0, 0]))


@given(st.integers(0, 2**31), st.floats(0, 1))
def test_ld_is_the_plain_sum_of_the_shorter_and_a_truncation_of_the_longer(seed, alpha):
    generator = torch.Generator().manual_seed(seed)
    logps = -torch.rand(5, 8, dtype=F64, generator=generator)
    mask = torch.rand(5, 8, generator=generator) < 0.7
    partner = torch.randint(9, (5,), generator=generator)
    rows = []
    for row, there, p in zip(logps, mask, partner, strict=True):
        kept = row[there]
        rows.append(kept[:p].sum() + alpha * kept[p:].sum())
    found = ld_sequence_logps(logps, mask, partner, alpha)
    close(found, torch.stack(rows))
    close(ld_sequence_logps(logps, mask, partner, 1.0), torch.where(mask, logps, 0.0).sum(1))
    longer = torch.maximum(partner, mask.sum(1))
    close(ld_sequence_logps(logps, mask, longer, alpha), torch.where(mask, logps, 0.0).sum(1))


def test_ld_on_both_answers_of_a_pair():
    logits, labels, _ = batch()
    labels = labels.clamp(min=0)
    masks = [torch.arange(T).expand(N, T) < n for n in (T, 4)]
    sums = []
    for mask, other in (masks, masks[::-1]):
        logps = token_logps(logits, labels, mask)
        sums.append(ld_sequence_logps(logps, mask[:, 1:], other[:, 1:].sum(1), 0.0))
    close(*sums)


def test_ld_takes_nothing_from_what_is_cut_off():
    logps = torch.tensor([[-1.0, -2.0, -INF, NAN]], requires_grad=True)
    mask, partner = torch.tensor([[1, 1, 1, 0]]), torch.tensor([2])
    out = ld_sequence_logps(logps, mask, partner, 0.0)
    assert out.item() == -3.0
    assert torch.autograd.grad(out.sum(), logps)[0].tolist() == [[1.0, 1.0, 0.0, 0.0]]
    assert ld_sequence_logps(logps, mask, partner, 0.5).item() == -INF
    half = torch.tensor([[-1.0, -2.0, -3.0]], dtype=torch.bfloat16)
    found = ld_sequence_logps(half, torch.ones(1, 3), torch.tensor([1]), 0.25)
    assert found.dtype == F32
    assert found.item() == -2.25


# The likelihood as a loss.


def test_the_three_normalisations():
    logps, lengths = -torch.rand(4, dtype=F64) * 50, torch.tensor([3, 1, 8, 20])
    nll = -logps
    close(SequenceNLLLoss()(logps, lengths), nll.sum() / lengths.sum())
    close(SequenceNLLLoss("sequence")(logps, lengths), (nll / lengths).mean())
    close(SequenceNLLLoss("sum")(logps), nll.mean())
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=F64)
    found = SequenceNLLLoss()(logps, lengths, weight=weight)
    close(found, (weight * nll).sum() / (weight * lengths).sum())
    found = SequenceNLLLoss("sequence")(logps, lengths, weight=weight)
    close(found, (weight * nll / lengths).sum() / weight.sum())
    close(SequenceNLLLoss(reduction="sum")(logps, lengths), nll.sum())
    close(SequenceNLLLoss(reduction="none")(logps, lengths), nll)
    close(SequenceNLLLoss(reduction="batchmean")(logps, lengths), nll.mean())


def test_it_is_the_mean_cross_entropy_of_the_tokens():
    logits, labels, mask = batch()
    logps, lengths = sequence_logps(logits, labels, mask, return_lengths=True)
    weight = lengths > 0  # a sequence without tokens is left out
    found = SequenceNLLLoss()(logps, lengths, weight=weight)
    expected, present = plain(logits, labels, mask)
    close(found, -expected[present].mean())
    # What others write for it: a value per sequence whose plain mean is that of the tokens.
    n = len(logps)
    close(found, (-logps * n / lengths.sum()).mean())


def test_micro_batches_add_up_with_the_tokens_of_all():
    logps, lengths = -torch.rand(6) * 50, torch.tensor([3, 1, 8, 20, 5, 5])
    whole = SequenceNLLLoss()(logps, lengths)
    total = lengths.sum()
    parts = [
        SequenceNLLLoss()(logps[i : i + 2], lengths[i : i + 2], normalizer=total) for i in (0, 2, 4)
    ]
    close(sum(parts), whole, rtol=1e-6)


@pytest.mark.parametrize("normalize", ["token", "sequence"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, F32, F64])
def test_lengths_of_weight_0_may_be_0(normalize, dtype):
    logps = torch.tensor([-4.0, NAN, -3.0], requires_grad=True)
    lengths = torch.tensor([2, 0, 3]).to(dtype)
    weight = torch.tensor([True, False, True])
    loss = SequenceNLLLoss(normalize)
    out = loss(logps, lengths, weight=weight)
    close(out, loss(logps[[0, 2]], lengths[[0, 2]]), rtol=1e-6)
    (g,) = torch.autograd.grad(out, logps)
    assert g[1] == 0
    assert g.isfinite().all()


def test_where_lengths_cannot_be_looked_at_none_is_below_1():
    logps, lengths = torch.tensor([[-4.0], [0.0]]), torch.tensor([[2], [0]])
    found = vmap(SequenceNLLLoss("sequence"))(logps, lengths)
    close(found, torch.tensor([2.0, 0.0]))


# What is refused.


LOGITS, LABELS = torch.zeros(2, 4, 5), torch.zeros(2, 4).long()
MASK = torch.ones(2, 4)
REFUSED = {
    "logits list": (([1.0], LABELS), {}, TypeError, "logits: expected a tensor, got list"),
    "logits int": ((LOGITS.long(), LABELS), {}, TypeError, "logits: .*floating point, got .*int64"),
    "logits 2-dim": ((LOGITS[0], LABELS[0]), {}, ValueError, r"logits: .*\(N, T, V\).*\(4, 5\)"),
    "one token": ((LOGITS[..., :1], LABELS), {}, ValueError, r"logits: .*V >= 2.*\(2, 4, 1\)"),
    "labels none": ((LOGITS, None), {}, TypeError, "labels: expected a tensor, got NoneType"),
    "labels float": ((LOGITS, MASK), {}, TypeError, "labels: expected integers, got .*float32"),
    "labels bool": ((LOGITS, MASK > 0), {}, TypeError, "labels: expected integers, got .*bool"),
    "labels complex": ((LOGITS, MASK + 0j), {}, TypeError, "labels: expected integers, got .*comp"),
    "labels short": ((LOGITS, LABELS[:, 1:]), {}, ValueError, r"labels: .*\(2, 4\).*got \(2, 3\)"),
    "labels meta": ((LOGITS, LABELS.to("meta")), {}, ValueError, "labels: .*device cpu, got meta"),
    "labels V": ((LOGITS, LABELS + 5), {}, ValueError, r"labels: .*\[0, 5\).*-100, got 5"),
    "labels last": (
        (LOGITS, torch.tensor([[0, 0, 0, 5]] * 2)), {}, ValueError, r"labels: .*\[0, 5\).*got 5"),
    "mask list": ((LOGITS, LABELS, [1.0]), {}, TypeError, "mask: expected a tensor, got list"),
    "mask complex": ((LOGITS, LABELS, MASK + 0j), {}, TypeError, "mask: .*0 and 1, got .*complex"),
    "mask short": ((LOGITS, LABELS, MASK[:, 1:]), {}, ValueError, r"mask: .*\(2, 4\), got \(2, 3"),
    "mask row": ((LOGITS, LABELS, MASK[0]), {}, ValueError, r"mask: .*\(2, 4\), got \(4,\)"),
    "mask meta": ((LOGITS, LABELS, MASK.to("meta")), {}, ValueError, "mask: .*device cpu, got"),
    "mask half": ((LOGITS, LABELS, MASK / 2), {}, ValueError, "mask: .*0 and 1, got 0.5"),
    "mask 2": ((LOGITS, LABELS, 2 * MASK.long()), {}, ValueError, "mask: .*0 and 1, got 2"),
    "mask nan": ((LOGITS, LABELS, MASK * NAN), {}, ValueError, "mask: .*0 and 1, got nan"),
    "T 1": ((LOGITS[:, :1], LABELS[:, :1]), {}, ValueError, "logits: .*T >= 2.*shift=True, got 1"),
    "ignore float": ((LOGITS, LABELS), {"ignore_index": -1.0}, TypeError, "ignore_index: .*an int"),
    "ignore bool": ((LOGITS, LABELS), {"ignore_index": True}, TypeError, "ignore_index: .*an int"),
    "temperature": ((LOGITS, LABELS), {"temperature": 0.0}, ValueError, r"temperature: .*\(0, inf"),
    "temperature inf": ((LOGITS, LABELS), {"temperature": INF}, ValueError, "temperature: .*inf"),
    "temperature str": ((LOGITS, LABELS), {"temperature": "1"}, TypeError, "temperature: .*number"),
    "softcap": ((LOGITS, LABELS), {"softcap": -1.0}, ValueError, r"softcap: .*\(0, inf\), got -1"),
    "softcap inf": ((LOGITS, LABELS), {"softcap": INF}, ValueError, "softcap: .*got inf"),
    "softcap bool": ((LOGITS, LABELS), {"softcap": True}, TypeError, "softcap: .*number, got bool"),
}  # fmt: skip


@pytest.mark.parametrize("function", [token_logps, sequence_logps])
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_is_refused(function, case):
    inputs, options, error, message = case
    with pytest.raises(error, match=f"^{message}") as caught:
        function(*inputs, **options)
    assert type(caught.value) is error


def test_what_is_next_to_what_is_refused():
    assert token_logps(LOGITS[:, :1], LABELS[:, :1], shift=False).shape == (2, 1)
    assert token_logps(LOGITS, LABELS, ignore_index=0).eq(0).all()
    for function in (token_logps, sequence_logps):
        keywords = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        ]
        assert keywords[:2] == ["ignore_index", "shift"]


LOGPS, PARTNER = torch.zeros(2, 4), torch.tensor([1, 2])
REFUSED_LD = {
    "logps int": ((LABELS, MASK, PARTNER, 0.5), TypeError, "token_logps: .*floating point, got"),
    "logps 1-dim": ((LOGPS[0], MASK[0], PARTNER, 0.5), ValueError, r"token_logps: .*\(4,\)"),
    "mask none": ((LOGPS, None, PARTNER, 0.5), TypeError, "mask: expected a tensor, got NoneType"),
    "mask": ((LOGPS, MASK[:, 1:], PARTNER, 0.5), ValueError, r"mask: .*\(2, 4\), got \(2, 3\)"),
    "mask 2": ((LOGPS, 2 * MASK, PARTNER, 0.5), ValueError, "mask: .*0 and 1, got 2"),
    "lengths float": ((LOGPS, MASK, PARTNER + 0.0, 0.5), TypeError, "partner_lengths: .*integers"),
    "lengths list": ((LOGPS, MASK, [1, 2], 0.5), TypeError, "partner_lengths: .*tensor, got list"),
    "lengths column": (
        (LOGPS, MASK, PARTNER[:, None], 0.5), ValueError, r"partner_lengths: .*got \(2, 1\)"),
    "lengths one": ((LOGPS, MASK, PARTNER[:1], 0.5), ValueError, r"partner_lengths: .*got \(1,\)"),
    "lengths": ((LOGPS, MASK, -PARTNER, 0.5), ValueError, "partner_lengths: .*>= 0, got -2"),
    "lengths meta": (
        (LOGPS, MASK, PARTNER.to("meta"), 0.5), ValueError, "partner_lengths: .*cpu, got meta"),
    "alpha": ((LOGPS, MASK, PARTNER, 1.1), ValueError, r"alpha: .*\[0, 1\], got 1.1"),
    "alpha negative": ((LOGPS, MASK, PARTNER, -0.1), ValueError, r"alpha: .*\[0, 1\], got -0.1"),
    "alpha none": ((LOGPS, MASK, PARTNER, None), TypeError, "alpha: expected a number, got None"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_LD.values(), ids=REFUSED_LD)
def test_ld_refuses(case):
    inputs, error, message = case
    with pytest.raises(error, match=f"^{message}") as caught:
        ld_sequence_logps(*inputs)
    assert type(caught.value) is error
