"""Classes spread over processes: the numbers of one process, in two exchanges."""

import itertools
import math
import random

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh

from lossary import (
    ActivePassiveLoss,
    AsymmetricExponentialLoss,
    AsymmetricGCELoss,
    AsymmetricUnhingedLoss,
    BrierLoss,
    CompSumLoss,
    CrammerSingerLoss,
    FocalLoss,
    GeneralizedCrossEntropyLoss,
    JensenShannonLoss,
    LabelSmoothingCrossEntropyLoss,
    LDRKLLoss,
    LDRLoss,
    LogitZRegularizer,
    MulticlassMAELoss,
    NormalizedCrossEntropyLoss,
    PolyLoss,
    ReverseCrossEntropyLoss,
    RobustLogLoss,
    ShardedLogits,
    SymmetricCrossEntropyLoss,
    TruncatedGCELoss,
    WestonWatkinsLoss,
    _softmax,
    token_logps,
)
from processes import run_processes

F64 = torch.float64
K = 7
HEADS = (
    CompSumLoss(),
    CompSumLoss(tau=0.5),
    CompSumLoss(tau=2.5),
    GeneralizedCrossEntropyLoss(0.7),
    MulticlassMAELoss(scale=2.0),
    ReverseCrossEntropyLoss(),
    SymmetricCrossEntropyLoss(0.3, 1.0),
    LDRKLLoss(),
    LDRKLLoss(0.3, torch.linspace(0.0, 1.0, K, dtype=F64)),
    LDRKLLoss(20.0, 0.0),
    LDRKLLoss(math.inf),
    LDRKLLoss(0.0, torch.linspace(0.0, 1.0, K, dtype=F64)),
    CrammerSingerLoss(),
    LabelSmoothingCrossEntropyLoss(),
    PolyLoss(),
    FocalLoss(),
    BrierLoss(),
    LogitZRegularizer(0.3),
    NormalizedCrossEntropyLoss(),
    AsymmetricGCELoss(),
    AsymmetricUnhingedLoss(),
    AsymmetricExponentialLoss(),
    JensenShannonLoss(),
    ActivePassiveLoss(),
    CompSumLoss(class_weight=torch.linspace(0.5, 2.0, K, dtype=F64), reduction="sum"),
)
FAILURES = (WestonWatkinsLoss(), RobustLogLoss(), LDRLoss(topk=2), LDRKLLoss(normalize="l1"))


def close(a, b, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def draw(*shape, seed=0, classes=K):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, classes, dtype=F64, generator=generator)
    target = torch.randint(classes, shape, generator=generator)
    target.view(-1)[1::3] = -100
    return logits, target


def compare(loss, logits, target, shard, **keywords):
    """Hold the loss of the shards against that of the whole, value and gradient."""
    whole = logits.clone().requires_grad_()
    want = loss(whole.movedim(-1, 1), target, **keywords)
    (gradient,) = torch.autograd.grad(want.sum(), whole)
    local = logits[..., shard].clone().requires_grad_()
    got = loss(ShardedLogits(local), target, **keywords)
    close(got, want)
    (own,) = torch.autograd.grad(got.sum(), local)
    close(own, gradient[..., shard])


def compare_statistics(logits, target, shard):
    """Hold the statistics of the shards, alone and all together, against those of the whole."""
    y = target.masked_fill(target < 0, -1)
    for names in [*((n,) for n in _softmax.STATISTICS), _softmax.STATISTICS]:
        found = []
        for make, part in ((ShardedLogits, shard), (lambda x: x, slice(None))):
            f = logits[..., part].clone().requires_grad_()
            out = _softmax.row_statistics(make(f), y, names, class_dim=-1, temperature=1.7)
            cotangents = [torch.sin(x.detach() + i) for i, x in enumerate(out)]
            cotangents = [g.masked_fill(y < 0, 0.0) for g in cotangents]
            found.append((out, torch.autograd.grad(out, f, cotangents)[0]))
        (got, own), (want, gradient) = found
        for a, b in zip(got, want, strict=True):
            close(a[y >= 0], b[y >= 0])
        close(own, gradient[..., shard])


# One process.


@given(st.integers(0, 10**6), st.sampled_from(HEADS), st.sampled_from([(5,), (2, 3), (1,)]))
def test_one_process_has_all_classes(seed, loss, shape):
    compare(loss, *draw(*shape, seed=seed), slice(None))


@pytest.mark.parametrize("loss", HEADS)
def test_a_forbidden_class_and_rows_that_are_not_there(loss):
    logits, target = draw(6)
    logits[:, 3] = -math.inf
    target[target == 3] = 0
    logits[target == -100] = math.nan
    local = logits.clone().requires_grad_()
    value = loss(ShardedLogits(local), target)
    (gradient,) = torch.autograd.grad(value, local)
    assert bool(gradient[:, [0, 1, 2, 4, 5, 6]].isfinite().all())
    assert not gradient[target == -100].any()
    infinite = isinstance(loss, LabelSmoothingCrossEntropyLoss)  # it wants some mass everywhere
    if not (infinite or (isinstance(loss, LDRKLLoss) and loss.lam == math.inf)):  # the mean of z
        assert bool(value.isfinite())
        weight = target != -100
        close(loss(ShardedLogits(logits), target.clamp(min=0), weight=weight), value)


def test_two_classes_of_which_one_is_forbidden():
    local = torch.tensor([[1.0, -math.inf], [-math.inf, 0.0]], requires_grad=True)
    value = CompSumLoss()(ShardedLogits(local), torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad(value, local)
    assert value == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("gap", [1.0, 20.0, 80.0])
def test_confident_rows_keep_their_digits_in_float32(gap):
    logits = torch.tensor([[gap, 0.0, -1.0], [-gap, 0.5, 0.0]])
    target = torch.zeros(2, dtype=torch.long)
    got = CompSumLoss(reduction="none")(ShardedLogits(logits), target)
    want = CompSumLoss(reduction="none")(logits.double(), target)
    close(got.double(), want, rtol=1e-5, atol=0.0)


def test_near_chance_keeps_its_digits():
    logits = 1e-6 * draw(6, classes=50)[0]
    target = torch.arange(6)
    loss = LDRKLLoss(1e4, 0.0, reduction="none")
    close(loss(ShardedLogits(logits.float()), target).double(), loss(logits, target), rtol=1e-5)


@pytest.mark.parametrize("gap", [200.0, -200.0, 3e38])
def test_a_target_far_ahead_or_behind(gap):
    logits, target = torch.tensor([[0.0, 1.0, gap]]), torch.tensor([2])
    (found,) = _softmax.row_statistics(ShardedLogits(logits), target, (_softmax.LOG_ODDS,))
    close(found.double(), torch.logaddexp(*logits.double()[:, :2].T) - gap, rtol=1e-6)


def test_one_rival_near_the_target_and_the_others_far_below():
    logits = torch.full((1, 20_000), -30.0)
    logits[0, :2] = torch.tensor([0.0, 0.01])
    target, names = torch.tensor([0]), (_softmax.CHANCE_ODDS,)
    (found,) = _softmax.row_statistics(ShardedLogits(logits), target, names)
    (want,) = _softmax.row_statistics(logits.double(), target, names)
    close(found.double(), want, rtol=1e-6)


def test_rows_that_are_not_there_are_constants():
    logits, target = draw(6)
    target[target < 0] = -1
    absent = target < 0
    local = logits.masked_fill(absent.unsqueeze(1), math.nan).requires_grad_()
    names = _softmax.STATISTICS
    out = _softmax.row_statistics(ShardedLogits(local), target, names)
    assert not any(bool(x[absent].any()) for x in out)
    slope = torch.where(absent, math.inf, 1.0).to(F64)
    (gradient,) = torch.autograd.grad(out, local, [slope] * len(names))
    assert not gradient[absent].any()
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, target = draw(6)
    half = logits.to(dtype).requires_grad_()
    value = CompSumLoss()(ShardedLogits(half), target)
    assert value.dtype is torch.float32
    close(value.double(), CompSumLoss()(half.detach().double(), target), rtol=1e-6)
    (gradient,) = torch.autograd.grad(value, half)
    assert gradient.dtype is dtype


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_an_empty_batch(shape):
    logits, target = draw(*shape)
    local = logits.requires_grad_()
    value = CompSumLoss()(ShardedLogits(local), target)
    value.backward()
    assert value == 0.0


def test_derivatives_beyond_the_first_are_refused():
    logits, target = draw(4)
    local = logits.requires_grad_()
    value = CompSumLoss()(ShardedLogits(local), target)
    (gradient,) = torch.autograd.grad(value, local, create_graph=True)
    with pytest.raises(
        RuntimeError, match="first derivative, got a request for the second; gather"
    ):
        gradient.square().sum().backward()
    value = CompSumLoss(reduction="none")(ShardedLogits(local), target)
    with pytest.raises(RuntimeError, match="got batched ones"):
        torch.autograd.grad(value, local, torch.eye(4, dtype=F64), is_grads_batched=True)
    with pytest.raises(RuntimeError, match="expected plain tensors"):
        torch.func.grad(lambda x: CompSumLoss()(ShardedLogits(x), target))(local)


def test_what_it_stands_for():
    logits = ShardedLogits(torch.zeros(2, 3, 5, dtype=torch.bfloat16))
    assert (logits.shape, logits.dtype, logits.dim()) == ((2, 3, 5), torch.float32, 3)
    assert repr(logits) == "ShardedLogits(shape=(2, 3, 5), dtype=torch.float32)"


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (
            lambda x: ShardedLogits(x.tolist()),
            TypeError,
            "local_logits: expected a tensor, got list",
        ),
        (lambda x: ShardedLogits(x.long()), TypeError, "local_logits: expected floating point"),
        (
            lambda x: ShardedLogits(x[:, :0]),
            ValueError,
            r"local_logits: .* one class, got .*\(4, 0\)",
        ),
        (lambda x: ShardedLogits(x[:, :1]), ValueError, "at least 2 classes in all, got 1"),
        (lambda x: ShardedLogits(x, sizes=[3]), ValueError, r"sizes: .* 5 at place 0, got \[3\]"),
        (lambda x: ShardedLogits(x, sizes=[5, 5]), ValueError, "sizes: expected 1 numbers"),
        (lambda x: ShardedLogits(x, "gloo"), TypeError, "process_group: .* or None, got str"),
        (lambda x: ShardedLogits(x, sizes=[5.0]), TypeError, "sizes: expected an int, got float"),
    ],
)
def test_bad_shards(make, error, says):
    with pytest.raises(error, match=says):
        make(torch.zeros(4, 5))


@pytest.mark.parametrize("loss", FAILURES)
def test_losses_that_need_the_whole_row_refuse(loss):
    logits, target = draw(4)
    with pytest.raises(TypeError, match=r"needs the logits in memory, got ShardedLogits"):
        loss(ShardedLogits(logits), target)


def test_probabilities_and_wrong_targets_are_refused():
    logits, target = draw(4)
    with pytest.raises(
        TypeError, match=r"need the logits in memory, got torch\.float64 with Sharded"
    ):
        CompSumLoss()(ShardedLogits(logits), torch.softmax(logits, 1))
    with pytest.raises(ValueError, match=r"target: expected class indices in \[0, 7\)"):
        CompSumLoss()(ShardedLogits(logits), target + 7)
    with pytest.raises(ValueError, match=r"target: expected shape \(4,\)"):
        CompSumLoss()(ShardedLogits(logits), target[:3])


def test_tokens_of_a_sharded_head():
    logits, labels = draw(2, 4)
    close(token_logps(ShardedLogits(logits), labels), token_logps(logits, labels))


# Several processes.


class Counted:
    """Counts the collectives of a call."""

    def __init__(self, monkeypatch):
        self.calls = 0
        for name in ("all_reduce", "all_gather"):
            monkeypatch.setattr(dist, name, self.counting(getattr(dist, name)))

    def counting(self, collective):
        def call(*arguments, **keywords):
            self.calls += 1
            return collective(*arguments, **keywords)

        return call


def drawn(world_size, seed):
    """A loss, logits, targets, weights, and how many classes each process has; as everywhere."""
    pick = random.Random(seed)
    sizes = [pick.randint(1, 4) for _ in range(world_size)]
    k, generator = sum(sizes), torch.Generator().manual_seed(seed)
    shape = pick.choice([(1,), (6,), (2, 3), (0, 2)])
    dtype = pick.choice([torch.float32, F64, torch.bfloat16])
    options = {
        "reduction": pick.choice(["mean", "sum", "none"]),
        "class_weight": torch.rand(k, generator=generator) if pick.random() < 0.5 else None,
    }
    loss = pick.choice(
        [
            CompSumLoss(pick.choice([0.0, 0.5, 1.0, 1.5, 2.5]), **options),
            GeneralizedCrossEntropyLoss(pick.random(), **options),
            TruncatedGCELoss(k=0.1, **options),
            MulticlassMAELoss(**options),
            ReverseCrossEntropyLoss(**options),
            SymmetricCrossEntropyLoss(pick.random(), 1.0, **options),
            LDRKLLoss(
                pick.choice([0.5, 4.0, math.inf]),
                torch.rand(k, dtype=F64, generator=generator),
                **options,
            ),
            LDRKLLoss(pick.choice([0.5, 4.0, 1e3]), 0.3, **options),
        ]
    )
    scale = pick.choice([1e-3, 1.0, 10.0])
    logits = (scale * torch.randn(*shape, k, dtype=F64, generator=generator)).to(dtype)
    target = torch.randint(k, shape, generator=generator)
    target[torch.rand(shape, generator=generator) < 0.2] = -100
    weight = torch.rand(shape, generator=generator)
    weight[weight < 0.2] = 0.0
    return loss, logits, target, weight, sizes


def _drawn(rank, world_size):
    """Any loss, shape, dtype and split: in float64 on one process."""
    for seed in range(60):
        loss, logits, target, weight, sizes = drawn(world_size, seed)
        absent = ((target == -100) | (weight == 0)).unsqueeze(-1)
        exact = logits.double().masked_fill(absent, 0.0).requires_grad_()
        want = loss(exact.movedim(-1, 1), target, weight=weight)
        (gradient,) = torch.autograd.grad(want.sum(), exact)
        first = sum(sizes[:rank])
        mine = slice(first, first + sizes[rank])
        local = logits.masked_fill(absent, math.nan)[..., mine].requires_grad_()
        got = loss(ShardedLogits(local), target, weight=weight)
        (own,) = torch.autograd.grad(got.sum(), local)
        wide = local.dtype is F64
        assert (got.dtype, own.dtype) == (F64 if wide else torch.float32, local.dtype)
        for a, b in ((got, want), (own, gradient[..., mine])):
            size = float(gradient.abs().max()) if gradient.numel() else 0.0
            if wide:
                close(a, b)
            else:
                eps = torch.finfo(a.dtype).eps
                close(a.double(), b, 1e-5 + 2 * eps, 2e-5 * max(size, 1.0 if a is got else 0.0))


def _rank(rank, world_size):
    _drawn(rank, world_size)
    bounds = {2: [0, 3, 7], 3: [0, 1, 5, 7]}[world_size]
    shard = slice(bounds[rank], bounds[rank + 1])
    for loss in HEADS:
        compare(loss, *draw(6), shard)
        compare(loss, *draw(2, 3, seed=1), shard)
    for seed in range(4):
        compare_statistics(*draw(2, 3, seed=seed), shard)
    # Rivals that tie across processes share the gradient.
    tied = torch.zeros(1, 7, dtype=F64)[:, shard].clone().requires_grad_()
    value = CrammerSingerLoss()(ShardedLogits(tied), torch.tensor([0]))
    assert float(value.detach()) == 1.0
    (gradient,) = torch.autograd.grad(value, tied)
    total = gradient.sum()
    dist.all_reduce(total)
    assert abs(float(total)) < 1e-12
    assert bool((gradient[:, 1 if rank == 0 else 0 :] >= 0.0).all())
    logits, target = draw(6)
    weight = torch.linspace(0.0, 1.0, 6, dtype=F64)
    compare(CompSumLoss(), logits, target, shard, weight=weight)
    compare(CompSumLoss(), logits, target.fill_(-100), shard)  # nothing is there
    # Each process far ahead of the others in turn, and the target behind all.
    logits, target = draw(6)
    logits[:2, shard.start] += 500.0 if rank == 0 else 0.0
    logits = torch.cat([torch.empty(0, 7, dtype=F64), logits])
    dist.broadcast(logits, 0)
    compare(CompSumLoss(reduction="none"), logits, target, shard)
    # Two collectives, beside the one for the sizes.
    local = logits[:, shard].contiguous()
    with pytest.MonkeyPatch.context() as patch:
        counted = Counted(patch)
        sizes = [b - a for a, b in itertools.pairwise(bounds)]
        given = ShardedLogits(local, sizes=sizes)
        assert counted.calls == 0
        CompSumLoss()(given, target)
        assert counted.calls == 2
        ShardedLogits(local)
        assert counted.calls == 3
    # A DTensor that is sharded on the class axis.
    mesh = init_device_mesh("cpu", (world_size,))
    logits, target = draw(4, classes=2 * world_size)
    whole = logits.clone().requires_grad_()
    (want,) = torch.autograd.grad(CompSumLoss()(whole, target), whole)
    mine = slice(2 * rank, 2 * rank + 2)
    local = logits[:, mine].clone().requires_grad_()
    spread = DTensor.from_local(local, mesh, [Shard(1)])
    (got,) = torch.autograd.grad(CompSumLoss()(ShardedLogits(spread), target), local)
    close(got, want[:, mine])
    for placement in (Replicate(), Shard(0), Shard(1)):
        itself = DTensor.from_local(torch.zeros(4, 4), mesh, [placement], run_check=False)
        with pytest.raises(TypeError, match=r"logits: expected a plain tensor.*got a DTensor"):
            CompSumLoss()(itself, target)
    for placement in (Replicate(), Shard(0)):
        wrong = DTensor.from_local(torch.zeros(4, 4), mesh, [placement], run_check=False)
        with pytest.raises(TypeError, match=r"local_logits: .* DTensor sharded on the class axis"):
            ShardedLogits(wrong)
    # Of the processes of a group alone.
    own = [dist.new_group([r]) for r in range(world_size)][rank]
    logits, target = draw(6, seed=rank)
    for loss in (CompSumLoss(), LDRKLLoss(20.0, 0.0)):
        close(loss(ShardedLogits(logits, own), target), loss(logits, target))
    # A group without this process.
    alone = dist.new_group([0])
    if rank > 0:
        with pytest.raises(ValueError, match=f"process_group: .* rank {rank}, got one without"):
            ShardedLogits(torch.zeros(4, 3), alone)
    else:
        assert ShardedLogits(torch.zeros(4, 3), alone).shape == (4, 3)


@pytest.mark.parametrize("world_size", [2, 3])
def test_many_processes_are_one(world_size, tmp_path):
    run_processes(_rank, world_size, tmp_path)
