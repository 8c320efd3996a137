"""Streamed logits: every head equals itself on logits in memory, and never holds them."""

import copy
import gc
import inspect
import itertools
import math
import pickle
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck
from torch.func import grad, vmap
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import lossary
from cases import CASES
from lossary import (
    ActivePassiveLoss,
    ALDRKLLoss,
    AsymmetricExponentialLoss,
    AsymmetricGCELoss,
    AsymmetricUnhingedLoss,
    BrierLoss,
    CEULoss,
    ClassificationLoss,
    CompSumLoss,
    CrammerSingerLoss,
    FocalLoss,
    GeneralizedCrossEntropyLoss,
    JensenShannonLoss,
    LabelSmoothingCrossEntropyLoss,
    LDRKLLoss,
    LDRLoss,
    LinearLogits,
    LogitAdjustmentLoss,
    LogitZRegularizer,
    MulticlassMAELoss,
    NormalizedCrossEntropyLoss,
    PolyLoss,
    ReverseCrossEntropyLoss,
    RobustLogLoss,
    SmoothAdversarialCompSumLoss,
    SymmetricCrossEntropyLoss,
    TruncatedGCELoss,
    WestonWatkinsLoss,
    _layouts,
    _softmax,
    linear_sequence_logps,
    linear_token_logps,
    sequence_logps,
    token_logps,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

INF, NAN = math.inf, math.nan
F32, F64 = torch.float32, torch.float64
N, H, K = 6, 4, 7
MIB = 1 << 20

#: Every head that the layout serves, made for K classes.
HEADS = {
    "cross_entropy": lambda **o: CompSumLoss(**o),
    "sum_exponential": lambda **o: CompSumLoss(0.0, **o),
    "GCE": lambda **o: GeneralizedCrossEntropyLoss(**o),
    "truncated": lambda **o: TruncatedGCELoss(k=0.1, **o),
    "MAE": lambda **o: MulticlassMAELoss(**o),
    "SCE": lambda **o: SymmetricCrossEntropyLoss(**o),
    "RCE": lambda **o: ReverseCrossEntropyLoss(**o),
    "LDR": lambda **o: LDRKLLoss(0.7, **o),
    "LDR_margins": lambda **o: LDRKLLoss(1.0, torch.linspace(0.1, 0.9, K), **o),
    "LDR_hot": lambda **o: LDRKLLoss(6.0, 0.3, **o),
    "LDR_mean": lambda **o: LDRKLLoss(INF, torch.linspace(0.1, 0.9, K), **o),
    "LDR_top": lambda **o: LDRKLLoss(0.0, torch.linspace(0.1, 0.9, K), **o),
    "LDR_general": lambda **o: LDRLoss(2.0, **o),
    "hinge": lambda **o: CrammerSingerLoss(**o),
    "smoothing": lambda **o: LabelSmoothingCrossEntropyLoss(**o),
    "poly": lambda **o: PolyLoss(**o),
    "unlikelihood": lambda **o: CEULoss(entropy=False, **o),
    "focal": lambda **o: FocalLoss(alpha=torch.linspace(0.1, 0.9, K), **o),
    "Brier": lambda **o: BrierLoss(**o),
    "log_z": lambda **o: LogitZRegularizer(0.3, **o),
    "NCE": lambda **o: NormalizedCrossEntropyLoss(**o),
    "AGCE": lambda **o: AsymmetricGCELoss(**o),
    "AUL": lambda **o: AsymmetricUnhingedLoss(**o),
    "AEL": lambda **o: AsymmetricExponentialLoss(**o),
    "JS": lambda **o: JensenShannonLoss(**o),
    "NCE+RCE": lambda **o: ActivePassiveLoss(**o),
    "instances": lambda **o: ActivePassiveLoss(
        PolyLoss(class_dim=o.get("class_dim", 1)), BrierLoss(class_dim=o.get("class_dim", 1)), **o
    ),
}
every_head = pytest.mark.parametrize("head", HEADS)
#: What the layer does to the products.
LAYERS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "softcap": {"temperature": 1.5, "softcap": 2.0},
}
every_layer = pytest.mark.parametrize("layer", LAYERS)


@contextmanager
def budget(size):
    """Tiles of this many numbers of float64."""
    # A tile of small logits gets a quarter of the budget.
    with mock.patch.object(_layouts, "TILE_BYTES", {"cpu": 32 * size, "other": 32 * size}):
        yield


@pytest.fixture
def small():
    """Tiles of two rows and three classes."""
    with budget(6), mock.patch.object(_layouts, "TILE_ROWS", {"cpu": 2, "other": 2}):
        yield


def made(shape=(N,), h=H, k=K, dtype=F64, bias=True, absent=()):
    """Hidden states, weight, bias and target; leaves."""
    hidden = torch.randn(*shape, h, dtype=F64).to(dtype).requires_grad_()
    weight = torch.randn(k, h, dtype=F64).to(dtype).requires_grad_()
    b = torch.randn(k, dtype=F64).to(dtype).requires_grad_() if bias else None
    target = torch.randint(k, shape)
    for i in absent:
        target.view(-1)[i] = -100
    return hidden, weight, b, target


def in_memory(hidden, weight, bias=None, temperature=1.0, softcap=None):
    z = F.linear(hidden, weight, bias) / temperature
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def gradients(out, inputs, cotangent=None):
    inputs = [x for x in inputs if x is not None]
    return torch.autograd.grad(out, inputs, cotangent)


def close(found, expected, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


# Values and gradients.


@every_head
@given(data=st.data())
def test_a_head_is_itself_on_logits_in_memory(head, data):
    draw = data.draw
    shape = draw(st.sampled_from([(), (1,), (5,), (2, 3), (2, 1, 3)]))
    count, options = math.prod(shape), LAYERS[draw(st.sampled_from(sorted(LAYERS)))]
    absent = [i for i in range(count) if draw(st.integers(0, 3)) == 0]
    torch.manual_seed(draw(st.integers(0, 100)))
    inputs = made(shape, draw(st.integers(1, 5)), K, bias=draw(st.booleans()), absent=absent)
    hidden, weight, bias, target = inputs
    # Near chance, and near it in some rows only.
    with torch.no_grad():
        hidden *= draw(st.sampled_from([1.0, 1e-2, 10.0]))
        if bias is not None:
            bias *= draw(st.sampled_from([1.0, 1e-3]))
    loss, plain = (HEADS[head](reduction="none", class_dim=d) for d in (1, -1))
    with budget(draw(st.integers(1, 20))):
        streamed = LinearLogits(
            hidden, weight, bias, tile_size=draw(st.sampled_from([1, 2, 4, 100])), **options
        )
        out = loss(streamed, target)
        cotangent = torch.randn_like(out)
        found = gradients(out, inputs[:3], cotangent)
    expected = plain(in_memory(hidden, weight, bias, **options), target)
    assert out.shape == shape
    close(out, expected)
    for a, b in zip(found, gradients(expected, inputs[:3], cotangent), strict=True):
        close(a, b)


def near(found, exact, dtype):
    """Hold a result of float32 arithmetic, rounded to the dtype, against one in float64."""
    if dtype is F64:
        close(found, exact)
        return
    size = float(exact.abs().max()) if exact.numel() else 0.0
    rtol = 1e-5 + 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=2e-5 * size + 1e-7)


#: Heads with a number for each of K classes.
OF_K_CLASSES = ("LDR_margins", "LDR_mean", "LDR_top", "focal")


@every_head
@given(data=st.data())
def test_layouts_agree(head, data):
    draw = data.draw
    shape = draw(st.sampled_from([(1,), (6,), (2, 3), (3, 1, 2)]))
    count, options = math.prod(shape), LAYERS[draw(st.sampled_from(sorted(LAYERS)))]
    k = K if head in OF_K_CLASSES else draw(st.integers(2, 12))
    dtype = draw(st.sampled_from([F32, F64, torch.bfloat16]))
    torch.manual_seed(draw(st.integers(0, 1000)))
    rows = st.lists(st.booleans(), min_size=count, max_size=count)
    ignored, weightless = (torch.tensor(draw(rows)).view(shape) for _ in range(2))
    *inputs, target = made(shape, draw(st.integers(1, 5)), k, dtype, draw(st.booleans()))
    target = target.masked_fill(ignored, -100)
    w = torch.rand(shape).masked_fill(weightless, 0.0) if draw(st.booleans()) else ~weightless
    loss = HEADS[head](
        reduction=draw(st.sampled_from(["mean", "sum", "batchmean"])),
        class_weight=torch.rand(k) if draw(st.booleans()) else None,
        class_dim=-1,
    )
    # In memory, in float64; what is not there is 0, as no gradient of a product survives a nan.
    absent = (ignored | weightless).unsqueeze(-1)
    exact = [None if x is None else x.detach().double() for x in inputs]
    exact[0].masked_fill_(absent, 0.0)
    leaves = [x.requires_grad_() for x in exact if x is not None]
    logits = LinearLogits(*exact, **options).in_memory()
    expected = loss(logits, target, weight=w)
    wanted = torch.autograd.grad(expected, [logits, *leaves], allow_unused=True)
    # Streamed.
    with torch.no_grad():
        inputs[0].masked_fill_(absent, draw(st.sampled_from([0.0, INF, NAN])))
    with budget(draw(st.integers(1, 20))):
        tile_size = draw(st.sampled_from([None, 1, 2, 4, 100]))
        out = loss(LinearLogits(*inputs, tile_size=tile_size, **options), target, weight=w)
        found = gradients(out, inputs)
    assert out.dtype is (F64 if dtype is F64 else F32)
    near(out, expected.detach(), out.dtype)
    for a, b in zip(found, wanted[1:], strict=True):
        assert a.dtype is dtype
        near(a, b, dtype)
    # Sharded, of one process.
    local = logits.detach().to(dtype).masked_fill(absent, NAN).requires_grad_()
    whole = local.detach().double().masked_fill(absent, 0.0).requires_grad_()
    expected = loss(whole, target, weight=w)
    out = loss(lossary.ShardedLogits(local), target, weight=w)
    near(out, expected.detach(), out.dtype)
    near(*(gradients(x, (y,))[0] for x, y in ((out, local), (expected, whole))), dtype)


@every_layer
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_combination_of_statistics(small, layer, count):
    hidden, weight, bias, target = made(absent=[3])
    y = target.masked_fill(target < 0, -1)
    there = y >= 0
    options = {"temperature": 1.7, "margin": torch.linspace(0.1, 0.9, K, dtype=F64)}
    streamed = LinearLogits(hidden, weight, bias, **LAYERS[layer])
    full = in_memory(hidden, weight, bias, **LAYERS[layer])
    for names in itertools.combinations(_softmax.STATISTICS, count):
        found = _softmax.row_statistics(streamed, y, names, **options)
        expected = _softmax.row_statistics(full, y, names, **options)
        for a, b in zip(found, expected, strict=True):
            close(a[there], b[there])
        totals = [sum((i + 1) * x[there].sum() for i, x in enumerate(o)) for o in (found, expected)]
        inputs = (hidden, weight, bias)
        pairs = (
            gradients(totals[0], inputs),
            torch.autograd.grad(totals[1], inputs, retain_graph=True),
        )
        for a, b in zip(*pairs, strict=True):
            close(a, b)


@every_layer
def test_gradcheck(small, layer):
    hidden, weight, bias, target = made(absent=[2])
    loss = CompSumLoss(1.5)
    assert gradcheck(
        lambda h, w, b: loss(LinearLogits(h, w, b, **LAYERS[layer]), target),
        (hidden, weight, bias),
    )


@pytest.mark.parametrize("size", [1, 7, 60, 10_000])
def test_tiles_change_nothing(size):
    # The last tiles of rows and of classes are smaller than the others.
    hidden, weight, bias, target = made((50,), k=23, absent=[0, 7, 49])
    expected = gradients(
        CompSumLoss()(in_memory(hidden, weight, bias), target), (hidden, weight, bias)
    )
    with budget(size):
        for tile_size in (1, 3, 49, None):
            out = CompSumLoss()(LinearLogits(hidden, weight, bias, tile_size=tile_size), target)
            for a, b in zip(gradients(out, (hidden, weight, bias)), expected, strict=True):
                close(a, b)


def tiles_of(rows, classes, width=H, dtype=F32, weight_dtype=F32, tile_size=None):
    hidden = torch.empty(rows, width, dtype=dtype, device="meta")
    weight = torch.empty(classes, width, dtype=weight_dtype, device="meta")
    logits = LinearLogits(hidden, weight, tile_size=tile_size)
    logits.device = torch.device("cpu")
    plan = logits._plan(rows, 1.0)
    return plan.rows, plan.classes


def test_tiles_fill_the_cache():
    # 16 MiB are 4M numbers of float32.
    assert tiles_of(10_000, 100_000) == (1024, 4096)
    assert tiles_of(10_000, 100_000, tile_size=64) == (64, 65536)
    assert tiles_of(10_000, 100_000, tile_size=1) == (1, 100_000)
    assert tiles_of(10_000, 100_000, tile_size=1 << 30) == (10_000, 419)
    assert tiles_of(500_000, 100) == (31250, 100)  # few classes: more rows
    # Of fewer logits no more than a sixteenth, down to 4 MiB.
    assert tiles_of(1024, 32768) == (1024, 2048)
    assert tiles_of(1024, 1024) == (1024, 1024)
    assert tiles_of(1024, 1025) == (1024, 1024)
    assert tiles_of(3, 100) == (3, 100)
    assert tiles_of(0, 100) == (1, 100)
    # Weights in half precision are cast by tiles, too.
    assert tiles_of(8, 100_000, 4096, torch.bfloat16, torch.bfloat16) == (8, 256)
    assert tiles_of(8, 100_000, 4096, torch.bfloat16) == (8, 100_000)


def test_other_strides(small):
    hidden, weight, bias, target = made((N, 3))
    h, w, t = hidden.transpose(0, 1), weight.t().contiguous().t(), target.t()
    out = CompSumLoss()(LinearLogits(h, w, bias), t)
    expected = CompSumLoss(class_dim=-1)(in_memory(hidden, weight, bias), target)
    close(out, expected)
    inputs = (hidden, weight, bias)
    for a, b in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        close(a, b)


# Precision.


@pytest.mark.parametrize("gap", [2.0, 10.0, 30.0, 80.0])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_confident_rows_keep_their_digits(gap, offset):
    # Powers of two, so that the products are exact: what is judged are the statistics.
    weight = torch.eye(16).repeat(4, 1)[:50] * torch.linspace(0.5, 1.0, 50).unsqueeze(1)
    hidden, bias = torch.zeros(4, 16), torch.full((50,), offset)
    hidden[:, 2] = torch.tensor([gap, gap / 2, -gap, 0.0])
    target = torch.full((4,), 2)
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    with budget(32):
        for loss in (CompSumLoss(reduction="none"), LDRKLLoss(5.0, 0.0, reduction="none")):
            out = loss(LinearLogits(*inputs), target)
            expected = loss(in_memory(*exact), target)
            close(out.double(), expected, rtol=1e-5, atol=0)
            found = gradients(out.sum(), inputs)
            for a, b in zip(found, gradients(expected.sum(), exact), strict=True):
                close(a.double(), b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))


@pytest.mark.parametrize("gaps", [(0.01, -0.02), (0.1, -5.0), (100.0, 0.01), (-60.0, -50.0)])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_log_odds_above_chance_keep_their_digits(gaps, offset):
    bias = torch.linspace(*gaps, 20)
    bias[7] = 0.0
    bias += offset
    logits = LinearLogits(torch.zeros(1, 1), torch.zeros(20, 1), bias)
    names, target = (_softmax.CHANCE_ODDS, _softmax.LOG_ODDS), torch.tensor([7])
    for size in (1, 5, 100):
        with budget(size):
            found = _softmax.row_statistics(logits, target, names)
        for a, b in zip(
            found, _softmax.row_statistics(bias.double().unsqueeze(0), target, names), strict=True
        ):
            close(a.double(), b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("hidden_dtype", [torch.bfloat16, torch.float16, F32])
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float16, F32])
def test_half_precision_is_computed_in_float32(small, hidden_dtype, weight_dtype):
    hidden, weight, bias, target = made(absent=[1])
    hidden, weight, bias = (
        x.detach().to(d).requires_grad_()
        for x, d in ((hidden, hidden_dtype), (weight, weight_dtype), (bias, weight_dtype))
    )
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    streamed = LinearLogits(hidden, weight, bias)
    assert streamed.dtype is streamed.in_memory().dtype is F32
    out = CompSumLoss()(streamed, target)
    assert out.dtype is F32
    expected = CompSumLoss()(in_memory(*exact), target)
    close(out.double(), expected, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(CompSumLoss()(streamed, target), out, rtol=0, atol=0)
        again = linear_token_logps(hidden, weight, target, bias)
        torch.testing.assert_close(-again.sum() / (N - 1), out)
        found = gradients(out, (hidden, weight, bias))
        close(streamed.in_memory().double(), in_memory(*exact), rtol=1e-5, atol=1e-5)
    for a, b, x in zip(found, gradients(expected, exact), (hidden, weight, bias), strict=True):
        assert a.dtype is x.dtype
        close(a.double(), b, rtol=2 * torch.finfo(x.dtype).eps, atol=1e-6)


def test_the_weights_gradient_is_added_up_in_float32():
    rows = 4096
    hidden = torch.ones(rows, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    target = torch.zeros(rows, dtype=torch.long)
    out = CompSumLoss(reduction="sum")(LinearLogits(hidden, weight, tile_size=16), target)
    (found,) = torch.autograd.grad(out, weight)
    assert found.flatten().tolist() == [-rows / 2, rows / 2]  # in bfloat16 it stops at 256


# What is left out.


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("value", [INF, -INF, NAN])
@every_layer
@pytest.mark.parametrize("head", ["cross_entropy", "LDR_hot", "LDR_mean"])
def test_ignored_rows_may_hold_anything(small, monkeypatch, readable, value, layer, head):
    monkeypatch.setattr(_layouts, "readable", lambda x: readable)
    inputs = hidden, weight, bias, target = made(absent=[0, 4])
    with torch.no_grad():
        hidden[[0, 4, 5]] = value
    mask = torch.ones(N, dtype=torch.bool)
    mask[5] = False
    out = HEADS[head]()(LinearLogits(hidden, weight, bias, **LAYERS[layer]), target, weight=mask)
    found = gradients(out, inputs[:3])
    kept = hidden.detach()[1:4].requires_grad_()
    expected = HEADS[head]()(in_memory(kept, weight, bias, **LAYERS[layer]), target[1:4])
    close(out, expected)
    by_hidden, *others = gradients(expected, (kept, weight, bias))
    assert (found[0][[0, 4, 5]] == 0).all()
    close(found[0][1:4], by_hidden)
    for a, b in zip(found[1:], others, strict=True):
        close(a, b)


@pytest.mark.parametrize("readable", [True, False])
@every_layer
def test_rows_that_are_not_there_are_constants(small, monkeypatch, readable, layer):
    # Whatever a head makes of their statistics, an infinite slope included.
    monkeypatch.setattr(_layouts, "readable", lambda x: readable)
    inputs = hidden, weight, bias, target = made(absent=[0, 4])
    target[target < 0] = -1
    names = _softmax.STATISTICS
    out = _softmax.row_statistics(
        LinearLogits(hidden, weight, bias, **LAYERS[layer]), target, names
    )
    absent = target < 0
    assert all((x[absent] == 0).all() for x in out)
    cotangents = [torch.where(absent, INF, 1.0).to(F64) for _ in names]
    found = torch.autograd.grad(out, inputs[:3], cotangents)
    kept = hidden.detach()[~absent].requires_grad_()
    full = in_memory(kept, weight, bias, **LAYERS[layer])
    expected = _softmax.row_statistics(full, target[~absent], names)
    by_hidden, *others = gradients(sum(x.sum() for x in expected), (kept, weight, bias))
    assert (found[0][absent] == 0).all()
    close(found[0][~absent], by_hidden)
    for a, b in zip(found[1:], others, strict=True):
        close(a, b)


@every_head
@pytest.mark.parametrize("shape", [(0,), (4,), (2, 2)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
def test_nothing_left_is_an_attached_zero(small, head, shape, reduction):
    hidden, weight, bias, target = made(shape)
    with torch.no_grad():
        hidden.fill_(NAN)
    out = HEADS[head](reduction=reduction)(
        LinearLogits(hidden, weight, bias), torch.full_like(target, -100)
    )
    assert out.item() == 0
    for x in gradients(out, (hidden, weight, bias)):
        assert (x == 0).all()


@pytest.mark.parametrize("head", ["cross_entropy", "MAE", "LDR", "LDR_hot"])
def test_forbidden_classes(head):
    # A whole tile of -inf, and a target against which nothing else stands.
    hidden, weight, bias, _ = made()
    target = torch.tensor([0, 1, 5, 6, 5, 0])
    for forbidden in ([2, 3, 4], [0, 1, 2, 3], [0, 1, 2, 3, 4, 6]):
        with torch.no_grad():
            bias.normal_()
            bias[forbidden] = -INF
        there = torch.tensor([y not in forbidden for y in target.tolist()])
        y = target.where(there, torch.tensor(-100))
        expected = HEADS[head]()(in_memory(hidden, weight, bias), y)
        for size in (1, 2, 6, 100):
            with budget(size):
                out = HEADS[head]()(LinearLogits(hidden, weight, bias, tile_size=2), y)
                close(out, expected)
                for a, b in zip(
                    gradients(out, (hidden, weight, bias)),
                    torch.autograd.grad(expected, (hidden, weight, bias), retain_graph=True),
                    strict=True,
                ):
                    close(a, b)


@every_layer
@pytest.mark.parametrize("frozen", list(itertools.product([False, True], repeat=3)))
def test_frozen_inputs(small, layer, frozen):
    inputs = hidden, weight, bias, target = made()
    leaves = [x.requires_grad_(not f) for x, f in zip(inputs, frozen, strict=False)]
    out = CompSumLoss()(LinearLogits(hidden, weight, bias, **LAYERS[layer]), target)
    if all(frozen):
        assert not out.requires_grad
        return
    wanted = [x for x in leaves if x.requires_grad]
    expected = CompSumLoss()(in_memory(hidden, weight, bias, **LAYERS[layer]), target)
    for a, b in zip(gradients(out, wanted), gradients(expected, wanted), strict=True):
        close(a, b)


# Weights, reductions, targets: as for logits in memory.


@every_head
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean"])
def test_weights_and_reductions(small, head, reduction):
    inputs = hidden, weight, bias, target = made((N, 2), absent=[3])
    options = {
        "reduction": reduction,
        "class_weight": torch.arange(K, dtype=F64),
        "class_dim": -1,
    }
    logits = in_memory(hidden, weight, bias)
    for w in (None, torch.rand(N, 2, dtype=F64), torch.rand(N, 1) > 0.3):
        loss = HEADS[head](**options)
        out, expected = loss(LinearLogits(hidden, weight, bias), target, weight=w), None
        expected = loss(logits, target, weight=w)
        close(out, expected)
        pairs = (
            torch.autograd.grad(x.sum(), inputs[:3], retain_graph=True) for x in (out, expected)
        )
        for a, b in zip(*pairs, strict=True):
            close(a, b)


def test_normalizer_makes_micro_batches_add_up(small):
    inputs = hidden, weight, bias, target = made()
    loss = CompSumLoss()
    whole = loss(LinearLogits(hidden, weight, bias), target)
    parts = [
        loss(LinearLogits(hidden[s], weight, bias), target[s], normalizer=N)
        for s in (slice(0, 1), slice(1, N))
    ]
    close(sum(parts), whole)
    for a, b in zip(gradients(sum(parts), inputs[:3]), gradients(whole, inputs[:3]), strict=True):
        close(a, b)


@pytest.mark.parametrize("class_dim", [1, 0, -1, 2, 5])
def test_the_classes_are_the_last_axis(small, class_dim):
    hidden, weight, bias, target = made((N, 3))
    out = CompSumLoss(class_dim=class_dim, reduction="none")(
        LinearLogits(hidden, weight, bias), target
    )
    assert out.shape == (N, 3)
    close(out, CompSumLoss(class_dim=-1, reduction="none")(in_memory(hidden, weight, bias), target))


def test_pruned_samples():
    hidden, weight, bias, target = made()
    index = torch.arange(N)
    loss = TruncatedGCELoss(mode="prune", num_samples=N)
    loss.prune(LinearLogits(hidden, weight, bias), target, index)
    assert 0 < loss.sample_weight.sum() < N
    close(
        loss(LinearLogits(hidden, weight, bias), target, index),
        loss(in_memory(hidden, weight, bias), target, index),
    )


def test_a_loss_of_ones_own():
    class Odds(ClassificationLoss):
        def per_sample(self, logits, target):
            return torch.sigmoid(self.log_odds(logits, target, temperature=0.5, margin=0.1))

    hidden, weight, bias, target = made()
    close(
        Odds()(LinearLogits(hidden, weight, bias), target),
        Odds()(in_memory(hidden, weight, bias), target),
    )


# What needs the logits in memory says so.


@pytest.mark.parametrize(
    "loss",
    [
        lambda: LDRKLLoss(normalize="l1"),
        lambda: LDRKLLoss(margin=1.0 - torch.eye(K)),
        lambda: LDRLoss(divergence="euclidean"),
        lambda: LDRLoss(topk=2),
        WestonWatkinsLoss,
        RobustLogLoss,
    ],
)
def test_losses_of_whole_rows_refuse(loss):
    hidden, weight, bias, target = made()
    with pytest.raises(TypeError, match=r"^logits: expected a tensor.*in memory, got LinearLog"):
        loss()(LinearLogits(hidden, weight, bias), target)


def test_losses_of_further_inputs_refuse():
    hidden, weight, bias, target = made()
    logits, full = LinearLogits(hidden, weight, bias), in_memory(hidden, weight, bias)
    says = pytest.raises(TypeError, match=r"^logits: expected a tensor.*in memory, got LinearLog")
    with says:
        SmoothAdversarialCompSumLoss()(logits, full, target)
    with says:
        ALDRKLLoss(N)(logits, target, torch.arange(N))
    with says:
        CompSumLoss().log_odds(logits, None)
    with says:
        _softmax.uniform_divergence(logits, target)
    with says:
        _softmax.target_log_odds(logits, target, temperature=torch.ones(N))
    with says:
        _softmax.hardest_rival(logits, target, margin=torch.zeros(K, K))
    with says:
        _softmax.hardest_rival(logits, None)
    with says:
        token_logps(LinearLogits(hidden[None], weight), target[None], softcap=2.0)


BOTH = {
    "streamed": lambda: LinearLogits(torch.zeros(N, H), torch.zeros(K, H)),
    "sharded": lambda: lossary.ShardedLogits(torch.zeros(N, K)),
}


@pytest.mark.parametrize("layout", BOTH)
@pytest.mark.parametrize("name", [n for n, cases in CASES.items() if cases])
def test_a_layout_stands_for_logits_alone(layout, name):
    # In the place of every input of every loss.
    case = CASES[name][0]
    # The surrogate is anchored at a batch of its own.
    n = 4 if name == "TargetSurrogateLoss" else N
    inputs = case.inputs(n, F32, torch.Generator().manual_seed(0))
    names = list(inspect.signature(type(case.loss()).per_sample).parameters)[1:]
    for i, wrong in enumerate(names[: len(inputs)]):
        loss = case.loss()
        if not isinstance(inputs[i], torch.Tensor):
            continue
        takes_layouts = "LinearLogits" in inspect.getdoc(loss).split("Properties:")[0]
        if takes_layouts and (i == 0 or wrong == "reference_logits"):
            continue
        given = [*inputs[:i], BOTH[layout](), *inputs[i + 1 :]]
        with pytest.raises(TypeError, match=rf"^{wrong}: expected .*, got \w+Logits"):
            loss(*given)
    if isinstance(inputs[0], torch.Tensor):
        with pytest.raises(TypeError, match=r"^weight: expected .*, got \w+Logits"):
            case.loss()(*inputs, weight=BOTH[layout]())


@every_head
def test_probabilities_are_refused(head):
    hidden, weight, bias, _ = made()
    with pytest.raises(TypeError, match=r"^target: expected integer.*in memory, got torch.float64"):
        HEADS[head]()(LinearLogits(hidden, weight, bias), torch.full((N, K), 1 / K, dtype=F64))


def test_derivatives_beyond_the_first_are_refused():
    hidden, weight, bias, target = made()
    loss = CompSumLoss()

    def of_hidden(h):
        return loss(LinearLogits(h, weight, bias), target)

    advice = pytest.raises(RuntimeError, match=r"^LinearLogits: expected .*in_memory\(\)")
    (first,) = torch.autograd.grad(of_hidden(hidden), hidden, create_graph=True)
    for x in (hidden, weight, bias):
        with advice:
            torch.autograd.grad(first.square().sum(), x, retain_graph=True)
    scale = torch.ones((), dtype=F64, requires_grad=True)
    (first,) = torch.autograd.grad(of_hidden(hidden.detach()) * scale, weight, create_graph=True)
    with advice:
        first.sum().backward()
    with advice:
        grad(of_hidden)(hidden.detach())
    with advice:
        vmap(of_hidden)(hidden.detach().expand(2, N, H))
    with advice:
        vmap(lambda b: loss(LinearLogits(hidden, weight, b), target))(bias.detach().expand(2, K))
    with advice, forward_ad.dual_level():
        of_hidden(forward_ad.make_dual(hidden.detach(), hidden.detach()))
    with advice:
        torch.autograd.grad(
            CompSumLoss(reduction="none")(LinearLogits(hidden, weight), target),
            hidden,
            torch.eye(N, dtype=F64),
            is_grads_batched=True,
        )


def test_logits_in_memory_have_every_derivative():
    hidden, weight, bias, target = made()
    for options in LAYERS.values():
        logits = LinearLogits(hidden, weight, bias, **options).in_memory()
        close(logits, in_memory(hidden, weight, bias, **options))
    (first,) = torch.autograd.grad(CompSumLoss()(logits, target), hidden, create_graph=True)
    first.square().sum().backward()


# Around it.


def test_attributes():
    hidden, weight, bias, _ = made((2, 3))
    logits = LinearLogits(hidden, weight, bias, softcap=30, tile_size=5)
    assert logits.shape == (2, 3, K)
    assert (logits.dim(), logits.dtype, logits.device) == (3, F64, hidden.device)
    assert repr(logits) == f"LinearLogits(shape=(2, 3, {K}), dtype=torch.float64)"
    for other in (copy.copy(logits), copy.deepcopy(LinearLogits(hidden.detach(), weight))):
        assert other.shape == logits.shape
    again = pickle.loads(pickle.dumps(LinearLogits(hidden.detach(), weight, tile_size=3)))
    assert again.tile_size == 3


def test_backward_twice_and_checkpoint(small):
    inputs = hidden, weight, bias, target = made(absent=[2])
    loss = CompSumLoss()
    out = loss(LinearLogits(hidden, weight, bias), target)
    first = torch.autograd.grad(out, inputs[:3], retain_graph=True)
    again = checkpoint(
        lambda h: loss(LinearLogits(h, weight, bias), target), hidden, use_reentrant=False
    )
    for other in (gradients(out, inputs[:3]), gradients(again, inputs[:3])):
        for a, b in zip(first, other, strict=True):
            close(a, b, rtol=0, atol=0)


def test_inputs_are_not_mutated(small):
    hidden, weight, bias, target = made(absent=[1])
    before = [x.detach().clone() for x in (hidden, weight, bias, target)]
    loss = CompSumLoss()(LinearLogits(hidden, weight, bias, softcap=3.0), target)
    loss /= 2
    loss.backward()
    for a, b in zip((hidden, weight, bias, target), before, strict=True):
        close(a.detach(), b, rtol=0, atol=0)


def test_a_device_is_not_waited_for():
    losses = [make() for make in HEADS.values()]
    with FakeTensorMode(allow_non_fake_inputs=True):  # where looking at a value is an error
        for loss in losses:
            hidden = torch.randn(N, H, requires_grad=True)
            weight = torch.randn(K, H, requires_grad=True)
            target = torch.zeros(N, dtype=torch.long)
            loss(LinearLogits(hidden, weight, tile_size=2), target).backward()
            assert hidden.grad.shape == hidden.shape
            assert weight.grad.shape == weight.shape


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled():
    inputs = hidden, weight, bias, target = made(absent=[1])
    loss = CompSumLoss()

    def step(h, w, b, y):
        return loss(LinearLogits(h, w, b, temperature=0.8, softcap=5.0), y)

    out = torch.compile(step, fullgraph=True)(hidden, weight, bias, target)
    expected = step(hidden, weight, bias, target)
    close(out, expected)
    for a, b in zip(gradients(out, inputs[:3]), gradients(expected, inputs[:3]), strict=True):
        close(a, b)


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


@pytest.mark.parametrize("options", [{}, {"softcap": 10.0}])
def test_peak_memory(options):
    hidden, weight, _, target = made((1024,), 16, 16000, F32, bias=False)
    tile, logits = _layouts.TILE_BYTES["cpu"] // 4, 1024 * 16000 * 4

    def run(frozen=False):
        w = weight.detach().requires_grad_(not frozen)
        h = hidden.detach().requires_grad_()
        LDRKLLoss()(LinearLogits(h, w, **options), target).backward()

    # A cap takes two tiles more, for its slope.
    extra = (4 if options else 1) * tile + 3 * hidden.nbytes + MIB
    assert peak_bytes(run) <= extra + weight.nbytes < 0.4 * logits
    assert peak_bytes(lambda: run(frozen=True)) <= extra


def test_the_memory_of_a_frozen_head_does_not_grow_with_the_classes():
    peaks = []
    for k in (4000, 30_000):
        hidden, weight, _, target = made((512,), 16, k, F32, bias=False)
        weight.requires_grad_(False)

        def run(h=hidden, w=weight, y=target):
            CompSumLoss()(LinearLogits(h, w), y).backward()

        peaks.append(peak_bytes(run))
    assert peaks[1] <= 1.05 * peaks[0]


def test_what_is_saved():
    hidden, weight, bias, target = made((100,), 16, 1000, F32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        CompSumLoss()(LinearLogits(hidden, weight, bias), target)
    inputs = {x.data_ptr() for x in (hidden, weight, bias, target)}
    others = [x for x in saved if x.data_ptr() not in inputs]
    assert len(others) < 12
    assert all(x.numel() <= 100 for x in others)


def test_ignored_rows_cost_nothing():
    hidden, weight, _, target = made((400,), 8, 50, F32, bias=False, absent=range(1, 400))
    products = []
    mm = torch.mm

    def counted(a, b, **out):
        products.append(a.shape[0])
        return mm(a, b, **out)

    with mock.patch.object(torch, "mm", counted):
        CompSumLoss()(LinearLogits(hidden, weight), target).backward()
    assert sum(products) == 2


def test_frozen_hidden_states_have_no_gradient_buffer():
    hidden, weight, _, target = made((20_000,), 64, 8, F32, bias=False)
    hidden.requires_grad_(False)

    def run():
        CompSumLoss()(LinearLogits(hidden, weight, tile_size=256), target).backward()

    assert peak_bytes(run) <= 0.5 * hidden.nbytes


def test_linear_statistics_make_no_logits_in_backward():
    hidden, weight, _, target = made(bias=False)
    out = LDRKLLoss(INF)(LinearLogits(hidden, weight), target)
    with mock.patch.object(torch, "mm", side_effect=AssertionError):
        out.backward()


# Log-probabilities of tokens and sequences.


SEQUENCES = {
    "plain": {},
    "average": {"average": True},
    "unshifted": {"shift": False},
    "capped": {"temperature": 0.7, "softcap": 3.0},
}


@pytest.mark.parametrize("options", SEQUENCES.values(), ids=SEQUENCES)
@pytest.mark.parametrize("masked", [True, False])
def test_sequences(small, options, masked):
    inputs = hidden, weight, bias, labels = made((3, 5), absent=[2, 7])
    mask = torch.rand(3, 5) > 0.3 if masked else None
    options = {**options, "return_lengths": True}
    out, lengths = linear_sequence_logps(
        hidden, weight, labels, mask, bias=bias, tile_size=2, **options
    )
    logits = in_memory(hidden, weight, bias)
    expected, expected_lengths = sequence_logps(logits, labels, mask, **options)
    close(out, expected)
    assert torch.equal(lengths, expected_lengths)
    options.pop("return_lengths")
    alone = linear_sequence_logps(hidden, weight, labels, mask, bias=bias, **options)
    close(alone, expected)
    for a, b in zip(
        gradients(out.sum(), inputs[:3]), gradients(expected.sum(), inputs[:3]), strict=True
    ):
        close(a, b)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 2, 2)])
@every_layer
def test_tokens(small, shape, layer):
    inputs = hidden, weight, bias, labels = made(shape, absent=[1] if shape else [])
    out = linear_token_logps(hidden, weight, labels, bias, tile_size=2, **LAYERS[layer])
    logits = in_memory(hidden, weight, bias).reshape(1, -1, K)
    expected = token_logps(logits, labels.reshape(1, -1), shift=False, **LAYERS[layer])
    expected = expected.view(shape)
    close(out, expected)
    for a, b in zip(
        gradients(out.sum(), inputs[:3]), gradients(expected.sum(), inputs[:3]), strict=True
    ):
        close(a, b)
    assert (out[labels == -100] == 0).all()


def test_token_logps_takes_the_layout_itself(small):
    hidden, weight, bias, labels = made((3, 5), absent=[2])
    out = token_logps(LinearLogits(hidden, weight, bias), labels, temperature=1.3)
    close(out, token_logps(in_memory(hidden, weight, bias), labels, temperature=1.3))


def test_ignore_index_of_tokens():
    hidden, weight, bias, labels = made((5,))
    out = linear_token_logps(hidden, weight, labels, bias, ignore_index=int(labels[2]))
    expected = linear_token_logps(hidden, weight, labels, bias)
    close(out, expected.where(labels != labels[2], 0.0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.tensor([0, K])}, ValueError, rf"labels: .*\[0, {K}\).*, got {K}"),
        ({"labels": torch.tensor([0, -1])}, ValueError, r"labels: .*-100, got -1"),
        ({"labels": torch.zeros(3).long()}, ValueError, r"labels: .*\(2,\).*, got \(3,\)"),
        ({"labels": torch.zeros(2)}, TypeError, r"labels: .*integers, got torch.float32"),
        ({"ignore_index": 1.5}, TypeError, r"ignore_index: .*an int, got float"),
        ({"tile_size": 0}, ValueError, r"tile_size: .*at least 1, got 0"),
    ],
)
def test_tokens_refuse(change, error, message):
    hidden, weight, _, _ = made((2,))
    with pytest.raises(error, match=f"^{message}"):
        linear_token_logps(
            **{"hidden": hidden, "weight": weight, "labels": torch.zeros(2).long(), **change}
        )


# Documentation.


def test_docstrings_name_the_layouts():
    accepting = {type(HEADS[head]()) for head in HEADS} - {LDRLoss} | {LogitAdjustmentLoss}
    for loss in accepting:
        shape = inspect.getdoc(loss).split("Shape:")[1].split("Properties:")[0]
        said = (
            "in memory, streamed or sharded (:class:`lossary.LinearLogits`, :class:`lossary.Shard"
        )
        assert said in " ".join(shape.split())
    names = [n for n in lossary.__all__ if isinstance(getattr(lossary, n), type)]
    for loss in (getattr(lossary, n) for n in names):
        if issubclass(loss, ClassificationLoss) and loss not in {*accepting, ClassificationLoss}:
            shape = inspect.getdoc(loss).split("Shape:")[1].split("Properties:")[0]
            assert ("streamed" in shape) == (loss is LDRLoss)
