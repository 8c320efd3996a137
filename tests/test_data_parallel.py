"""Training in several processes: the parameters and the state of one with the whole batch."""

import contextlib
import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from lossary import (
    ALDRKLLoss,
    CompSumLoss,
    GlobalContrastiveLoss,
    GRPOLoss,
    InfoNCELoss,
    LDRKLLoss,
    LinearLogits,
    NTXentLoss,
    SequenceNLLLoss,
    ShardedLogits,
    SigLIPLoss,
    SupConLoss,
    SymmetricCrossEntropyLoss,
    TCMLoss,
    TwoWayGlobalContrastiveLoss,
    global_normalizer,
)
from processes import run_processes

F32, F64 = torch.float32, torch.float64
ROWS, WIDTH, K, SAMPLES = 9, 3, 5, 7
#: Where the rows of each process end: unequal batches, then one process without rows.
BOUNDS = {2: ([0, 3, 9], [0, 9, 9]), 3: ([0, 2, 7, 9], [0, 4, 4, 9])}
CLASS_WEIGHT = torch.tensor([0.5, 2.0, 0.0, 3.0, 1.0], dtype=F64)


def close(a, b, what="", rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=f"{what}: {{}}".format)


# The weights of a class loss, and their global sum, in one process.


@pytest.mark.parametrize("class_weight", [None, CLASS_WEIGHT])
@pytest.mark.parametrize("kind", ["none", "mask", "float", "ones"])
@pytest.mark.parametrize("target", ["indices", "uint8", "probabilities", "class_dim"])
def test_the_weights_of_a_class_loss_are_what_the_mean_divides_by(class_weight, kind, target):
    logits = torch.randn(4, K, 3, dtype=F64)
    y = torch.randint(K, (4, 3))
    y[0, 1] = y[2, 2] = 255
    options = {"class_weight": class_weight, "ignore_index": 255}
    if target == "uint8":
        y = y.to(torch.uint8)
    if target in ("probabilities", "class_dim"):
        y = torch.softmax(torch.randn(4, K, 3, dtype=F64), 1)
    if target == "class_dim":
        logits, y, options["class_dim"] = logits.movedim(1, 2), y.movedim(1, 2), -1
    weight = {
        "none": None,
        "mask": torch.rand(4, 3) > 0.4,
        "float": torch.rand(4, 3, dtype=F64).masked_fill(torch.rand(4, 3) < 0.3, 0.0),
        "ones": torch.rand(4, 1, dtype=F64),
    }[kind]
    loss = CompSumLoss(**options)
    found = loss.effective_weight(y, weight)
    assert found.shape == (4, 3)
    total = CompSumLoss(reduction="sum", **options)(logits, y, weight=weight)
    mean = loss(logits, y, weight=weight)
    close(total / found.sum(), mean)
    close(loss(logits, y, weight=weight, normalizer=global_normalizer(found)), mean)
    # Entry by entry, written out.
    of_classes = torch.ones(K, dtype=F64) if class_weight is None else class_weight
    if y.dtype is F64:
        share = y.movedim(loss.class_dim, -1) @ of_classes
    else:
        share = torch.where(y == 255, 0.0, of_classes[y.long().clamp(max=K - 1)])
    close(found.double(), share if weight is None else share * weight)


def test_what_is_left_out_may_hold_anything():
    q = torch.softmax(torch.randn(3, K, dtype=F64), 1)
    q[1] = torch.nan
    loss = CompSumLoss(class_weight=CLASS_WEIGHT)
    weight = torch.tensor([1.0, 0.0, 2.0], dtype=F64)
    expected = weight * (q.nan_to_num() @ CLASS_WEIGHT)
    close(loss.effective_weight(q, weight), expected)
    assert loss.effective_weight(torch.empty(0, dtype=torch.long)).shape == (0,)
    assert loss.effective_weight(torch.tensor(3)) == 3.0
    close(loss.effective_weight(q[0]), q[0] @ CLASS_WEIGHT)


@pytest.mark.parametrize(
    ("target", "weight", "class_weight", "dtype"),
    [
        (torch.long, None, None, F32),
        (torch.long, torch.bool, None, F32),
        (torch.long, torch.bfloat16, None, F32),
        (torch.bfloat16, torch.float16, None, F32),
        (torch.long, F64, None, F64),
        (torch.long, None, F64, F64),
        (F64, None, F32, F64),
        (F32, torch.bfloat16, F32, F32),
    ],
)
def test_the_dtype_of_the_weights(target, weight, class_weight, dtype):
    loss = CompSumLoss(class_weight=class_weight and torch.ones(2, dtype=class_weight))
    y = torch.tensor([[1.0, 0.0]]) if target.is_floating_point else torch.tensor([1])
    w = None if weight is None else torch.ones(1).to(weight)
    found = loss.effective_weight(y.to(target), w)
    assert found.dtype is dtype
    assert found.tolist() == [1.0]


@pytest.mark.parametrize(
    ("target", "weight", "error", "says"),
    [
        ([0, 1], None, TypeError, "target: expected a tensor, got list"),
        (torch.tensor([True]), None, TypeError, "target: .*class indices, got torch.bool"),
        (torch.tensor([0, 5]), None, ValueError, r"target: .*in \[0, 5\) or ignore_.*, got 5"),
        (torch.tensor([0, -1]), None, ValueError, r"target: .*ignore_index=-100, got -1"),
        (torch.full((2, 5), 0.1), None, ValueError, "target: .*probabilities.*sum 0.5"),
        (torch.full((2, 4), 0.25), None, ValueError, "class_weight: expected 4 weights, got 5"),
        (torch.ones(()), None, ValueError, r"target: expected an axis 1 \(class_dim\), got.*\(\)"),
        (torch.tensor([0, 1]), torch.ones(3), ValueError, r"weight: expected shape \(2,\).*\(3,\)"),
        (torch.full((2, 5), 0.2), torch.ones(5), ValueError, r"weight: expected shape \(2,\)"),
        (torch.tensor([0, 1]), torch.ones(2).long(), TypeError, "weight: expected a float or bool"),
        (torch.tensor([0, 1]), 1.0, TypeError, "weight: expected a tensor, got float"),
    ],
)
def test_bad_targets_and_weights(target, weight, error, says):
    with pytest.raises(error, match=f"^{says}"):
        CompSumLoss(class_weight=CLASS_WEIGHT).effective_weight(target, weight)


def test_wrong_indices_without_class_weights():
    with pytest.raises(ValueError, match=r"^target: expected class indices in \[0, inf\).*got -3"):
        CompSumLoss().effective_weight(torch.tensor([7, -3]))


def test_the_sum_of_all_weights_in_one_process():
    w = torch.rand(5, dtype=F64, requires_grad=True)
    n = global_normalizer(w, torch.tensor([[True, False], [True, True]]), torch.ones(2))
    assert (n.shape, n.dtype, n.requires_grad) == ((), F64, False)
    close(n, w.detach().sum() + 5.0)
    # bfloat16 has no 257, float32 no 2^24 + 1.
    assert global_normalizer(torch.ones(257, dtype=torch.bfloat16)) == 257.0
    assert global_normalizer(torch.tensor([2.0**24, 1.0])) == 2.0**24 + 1.0
    # 1 only where nothing is left: weights that cancel are the caller's.
    assert global_normalizer(torch.zeros(3), torch.zeros(2, dtype=torch.bool)) == 1.0
    assert global_normalizer(torch.empty(0)) == 1.0
    assert global_normalizer(torch.tensor([-1.0, 1.0])) == 0.0
    assert global_normalizer(torch.tensor([-1.0, 3.0])) == 2.0
    assert global_normalizer(torch.tensor([-1.0, 0.0])) == -1.0


@pytest.mark.parametrize(
    ("weights", "error", "says"),
    [
        ((), ValueError, "weights: expected at least one tensor, got none"),
        ((torch.ones(2), 3.0), TypeError, "weights: expected a tensor, got float"),
        ((torch.tensor([3, -100]),), TypeError, "weights: .*float or bool tensor, got torch.int64"),
        ((torch.ones(2), torch.ones(2, device="meta")), ValueError, "weights: expected device cpu"),
    ],
)
def test_bad_weights(weights, error, says):
    with pytest.raises(error, match=f"^{says}"):
        global_normalizer(*weights)


def test_what_is_no_group():
    with pytest.raises(TypeError, match=r"^process_group: expected a torch\.distributed .*got str"):
        global_normalizer(torch.ones(2), process_group="world")


def test_a_device_is_not_waited_for():
    with FakeTensorMode(allow_non_fake_inputs=True):  # where looking at a value is an error
        loss, target = CompSumLoss(class_weight=CLASS_WEIGHT), torch.zeros(3, dtype=torch.long)
        n = global_normalizer(loss.effective_weight(target, torch.ones(3)))
        assert loss(torch.randn(3, K), target, normalizer=n).shape == ()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_compiled_step():
    loss = CompSumLoss(class_weight=CLASS_WEIGHT)

    def step(logits, target, weight):
        n = global_normalizer(loss.effective_weight(target, weight))
        return loss(logits, target, weight=weight, normalizer=n)

    inputs = (torch.randn(4, K, dtype=F64), torch.tensor([0, 1, -100, 3]), torch.rand(4))
    close(
        torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs), step(*inputs), rtol=1e-6
    )


# Several processes.


class Model(nn.Module):
    """A network, and the loss of what it makes of the first inputs."""

    def __init__(self, loss, views=1, streamed=False):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.body, self.head = nn.Linear(WIDTH, 4), nn.Linear(4, K)
        for p in self.parameters():
            p.data = torch.randn(p.shape, dtype=F64, generator=generator)
        self.loss, self.views, self.streamed = loss.double(), views, streamed

    def forward(self, *inputs, **keywords):
        made = [self.outputs(torch.tanh(self.body(x))) for x in inputs[: self.views]]
        return self.loss(*made, *inputs[self.views :], **keywords)

    def outputs(self, hidden):
        if self.streamed:
            return LinearLogits(hidden, self.head.weight, self.head.bias, tile_size=2)
        return self.head(hidden)


def batch(step=0):
    """The whole batch of a step, by name."""
    generator = torch.Generator().manual_seed(step)
    x, z = torch.randn(2, ROWS, WIDTH, dtype=F64, generator=generator)
    target = torch.randint(K, (ROWS,), generator=generator)
    q = torch.softmax(torch.randn(ROWS, K, dtype=F64, generator=generator), 1)
    weight = torch.rand(ROWS, dtype=F64, generator=generator)
    weight[1::4] = 0.0
    index = torch.randint(SAMPLES, (ROWS,), generator=generator)  # some on several processes
    ignoring = target.clone()
    ignoring[::3] = -100
    return {
        "x": x,
        "z": z,
        "target": target,
        "ignoring": ignoring,
        "q": q,
        "weight": weight,
        "mask": weight > 0.4,
        "index": index,
    }


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


def whole(x):
    return x.full_tensor() if isinstance(x, DTensor) else x


def class_losses():
    """Losses by name, with the target, the weight, and whether the logits are streamed."""
    yield "ignored", CompSumLoss(), "ignoring", None, False
    yield "masked", LDRKLLoss(2.0), "target", "mask", False
    yield "weighted", CompSumLoss(class_weight=CLASS_WEIGHT), "ignoring", "weight", False
    yield "soft", SymmetricCrossEntropyLoss(class_weight=CLASS_WEIGHT), "q", "weight", False
    yield "streamed", CompSumLoss(1.5, class_weight=CLASS_WEIGHT), "ignoring", "weight", True


def backward(model, loss, parts, target, weight):
    """Take the gradient of a batch in parts, by the weights of all of them."""
    data = batch()
    of_parts = [(data["x"][p], data[target][p], weight and data[weight][p]) for p in parts]
    n = global_normalizer(*(loss.effective_weight(y, w) for _, y, w in of_parts))
    for i, (x, y, w) in enumerate(of_parts):
        last = i == len(parts) - 1
        with contextlib.nullcontext() if last else model.no_sync():
            model(x, y, weight=w, normalizer=n).backward()


def reference(loss, target, weight, streamed):
    """The gradients of one process with the whole batch."""
    model, data = Model(copy.deepcopy(loss), streamed=streamed), batch()
    model(data["x"], data[target], weight=weight and data[weight]).backward()
    return gradients(model)


def _class_losses(rank, world_size):
    for bounds in BOUNDS[world_size]:
        first, end = bounds[rank : rank + 2]
        middle = (first + end) // 2
        for name, loss, target, weight, streamed in class_losses():
            wanted = reference(loss, target, weight, streamed)
            for parts in ([slice(first, end)], [slice(first, middle), slice(middle, end)]):
                model = DistributedDataParallel(Model(loss, streamed=streamed))
                backward(model, loss, parts, target, weight)
                close(gradients(model), wanted, f"{name}, {bounds}, {len(parts)} parts")


def _batchmean(rank, world_size):
    for bounds in BOUNDS[world_size]:
        rows, data = slice(*bounds[rank : rank + 2]), batch()
        one, w = Model(CompSumLoss(reduction="sum")), data["weight"]
        count = (w * (data["ignoring"] != -100) != 0).sum()
        (one(data["x"], data["ignoring"], weight=w) / count).backward()
        model = DistributedDataParallel(Model(CompSumLoss(reduction="batchmean")))
        model(data["x"][rows], data["ignoring"][rows], weight=w[rows]).backward()
        close(gradients(model), gradients(one), f"batchmean, {bounds}")


def _the_plain_mean_is_not_it(rank, world_size):
    rows, data = slice(*BOUNDS[world_size][0][rank : rank + 2]), batch()
    model = DistributedDataParallel(Model(CompSumLoss()))
    model(data["x"][rows], data["ignoring"][rows]).backward()
    wanted = reference(CompSumLoss(), "ignoring", None, False)
    assert not torch.allclose(gradients(model)[0], wanted[0], rtol=1e-3)


def _lengths(rank, world_size):
    logps, lengths = torch.linspace(-9.0, -1.0, ROWS, dtype=F64), torch.arange(1, ROWS + 1)
    rows, loss = slice(*BOUNDS[world_size][0][rank : rank + 2]), SequenceNLLLoss()
    n = global_normalizer(lengths[rows].double())
    value = loss(logps[rows], lengths[rows], normalizer=n)
    dist.all_reduce(value)
    close(value / world_size, loss(logps, lengths))


def _tokens(rank, world_size):
    """Of policy losses: the mean of all tokens, or of all answers, one of which has none."""
    rows, shape = slice(*BOUNDS[world_size][0][rank : rank + 2]), (ROWS, 4)
    policy, old = torch.linspace(-2.0, -1.0, 4 * ROWS, dtype=F64).view(shape), torch.ones(shape)
    advantages = torch.linspace(-1.0, 2.0, ROWS, dtype=F64)
    mask = torch.arange(4) < torch.arange(ROWS).unsqueeze(1) % 5
    every = policy, -1.5 * old, advantages, mask
    for variant, counts in (("dapo", mask), ("grpo", mask.new_ones(ROWS))):
        loss, leaf = GRPOLoss(variant=variant), policy[rows].clone().requires_grad_()
        n = global_normalizer(counts[rows])
        value = loss(leaf, *(x[rows] for x in every[1:]), normalizer=n)
        (own,) = torch.autograd.grad(value, leaf)
        value = value.detach()
        dist.all_reduce(value)
        close(value / world_size, loss(*every), variant)
        (wanted,) = torch.autograd.grad(loss(policy.requires_grad_(), *every[1:]), policy)
        close(own / world_size, wanted[rows], variant)
        assert not torch.allclose(value / world_size, loss(*(x[rows] for x in every)).detach())


def _groups(rank, world_size):
    """Of the processes of a group, and the weights of those alone."""
    alone = [dist.new_group([r]) for r in range(world_size)]
    w = torch.full((3,), rank + 1.0)
    assert global_normalizer(w) == 1.5 * (world_size + 1)
    assert global_normalizer(w, process_group=alone[rank]) == 3.0 * (rank + 1)
    with pytest.raises(ValueError, match=r"^process_group: expected a group with this process in"):
        global_normalizer(w, process_group=alone[rank - 1])


def _nothing_left(rank, world_size):
    """No process has anything: attached zeros, and nobody waits."""
    data = batch()
    y, none = torch.full((2,), -100), torch.empty(0, dtype=torch.long)
    for target in (y, none) if rank == 0 else (none, none):
        x, n = data["x"][: len(target)], global_normalizer(CompSumLoss().effective_weight(target))
        assert n == 1.0
        for streamed in (False, True):
            model = DistributedDataParallel(Model(CompSumLoss(), streamed=streamed))
            model(x, target, normalizer=n).backward()
            assert not any(bool(g.any()) for g in gradients(model))
    for loss in (InfoNCELoss(), NTXentLoss()):
        model = DistributedDataParallel(Model(loss, views=2))
        model(data["x"][:0], data["x"][:0]).backward()
        assert not any(bool(g.any()) for g in gradients(model))
    local = torch.zeros(0, 2, dtype=F64, requires_grad=True)
    CompSumLoss()(ShardedLogits(local), none).backward()
    assert local.grad.shape == (0, 2)


def coupled():
    """Batch-coupled and remembering losses by name, their views, and their further inputs."""
    remember = (SAMPLES, 0.3, 0.6, True, 0.05, 2.0, 0.5)
    for tile_size in (None, 2):
        tiles = {"tile_size": tile_size}
        yield (
            f"InfoNCE {tile_size}",
            lambda tiles=tiles: InfoNCELoss(0.2, True, learnable_temperature=True, **tiles),
            2,
            (),
        )
        yield f"NT-Xent {tile_size}", lambda tiles=tiles: NTXentLoss(0.2, **tiles), 2, ()
        for loss in (GlobalContrastiveLoss, TwoWayGlobalContrastiveLoss):
            yield (
                f"{loss.__name__} {tile_size}",
                lambda tiles=tiles, loss=loss: loss(*remember, beta=0.5, state_dtype=F64, **tiles),
                2,
                ("index",),
            )
    yield "TCM", lambda: TCMLoss(0.9, 0.1, 1.0, 2.0), 1, ("target",)
    yield "SupCon", lambda: SupConLoss(0.2), 1, ("target",)
    yield "SigLIP", SigLIPLoss, 2, ()
    yield "ALDR", lambda: ALDRKLLoss(SAMPLES), 1, ("ignoring", "index")


def same_everywhere(x):
    first = x.detach().clone()
    dist.broadcast(first, 0)
    assert torch.equal(first, x.detach())


def _coupled_losses(rank, world_size):
    """Five steps, with a checkpoint in between; DDP copies the buffers of rank 0 before each."""
    alone = [dist.new_group([r]) for r in range(world_size)][rank]
    unequal, without_rows = BOUNDS[world_size]
    jobs = [(unequal, *job) for job in coupled()]
    if world_size == 2:
        jobs += [(without_rows, *job) for job in coupled() if "2" not in job[0]]
    for bounds, name, make, views, further in jobs:
        rows = slice(*bounds[rank : rank + 2])
        model, one = DistributedDataParallel(Model(make(), views)), Model(make(), views)
        one.loss.process_group = alone
        for step in range(5):
            what, data = f"{name}, {bounds}, step {step}", batch(step)
            if step == 3:
                saved, model = model.module.state_dict(), Model(make(), views)
                model.load_state_dict(saved)
                model = DistributedDataParallel(model)
            inputs = [data[n] for n in (*("x", "z")[:views], *further)]
            keywords = {}
            if "ignoring" in further:
                weight = one.loss.effective_weight(data["ignoring"][rows])
                keywords["normalizer"] = global_normalizer(weight)
            descend(model, *(x[rows] for x in inputs), **keywords)
            if rank == 0:  # the others are held against this one
                descend(one, *inputs)
            state, wanted = model.module.state_dict(), one.state_dict()
            assert state.keys() == wanted.keys()
            for key, x in state.items():
                same_everywhere(x)
                if rank == 0:
                    close(x, wanted[key], f"{what}, {key}")
        begun = Model(make(), views).state_dict()
        for key, x in state.items():
            assert not torch.equal(x, begun[key]), f"{name}, {key}"


def descend(model, *inputs, **keywords):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.zero_grad()
    model(*inputs, **keywords).backward()
    optimizer.step()


def _fully_sharded(rank, world_size):
    mesh = init_device_mesh("cpu", (world_size,))
    rows, data = slice(*BOUNDS[world_size][0][rank : rank + 2]), batch()
    for name, loss, target, weight, streamed in class_losses():
        model = Model(loss, streamed=streamed)
        fully_shard(model, mesh=mesh)
        backward(model, loss, [rows], target, weight)
        wanted = reference(loss, target, weight, streamed)
        close([whole(g) for g in gradients(model)], wanted, f"fully_shard, {name}")
    # Outside of the forward a weight is one process's part.
    model = Model(CompSumLoss())
    fully_shard(model.head, mesh=mesh)
    hidden = torch.zeros(2, 4, dtype=F64)
    for arguments, wrong in (
        ((hidden, model.head.weight), "weight"),
        ((hidden, torch.zeros(K, 4, dtype=F64), model.head.bias), "bias"),
    ):
        with pytest.raises(TypeError, match=rf"^{wrong}: .*\(as within the forward.*got a DTensor"):
            LinearLogits(*arguments)
    # A scalar that is learnt cannot be sharded: the loss is wrapped on its own.
    one = Model(InfoNCELoss(0.2, learnable_temperature=True, gather=False), 2)
    one(data["x"], data["z"]).backward()
    loss = DistributedDataParallel(InfoNCELoss(0.2, learnable_temperature=True).double())
    model = Model(nn.Identity())
    fully_shard(model, mesh=mesh)
    loss(model(data["x"][rows]), model(data["z"][rows])).backward()
    found = [whole(g) for g in (*gradients(model), *gradients(loss))]
    close(found, gradients(one), "fully_shard, InfoNCE")


def _refused(rank, world_size):
    """Mistakes of all processes, and such as differ among them, are errors on each: none waits."""
    x, y = torch.randn(4, WIDTH, dtype=F64), torch.tensor([0, 1, 2, K])
    logits = torch.randn(4, K, dtype=F64)
    for reduction in ("mean", "batchmean"):
        with pytest.raises(ValueError, match=r"^target: expected class indices in \[0, 5\)"):
            CompSumLoss(reduction=reduction)(logits, y)
    with pytest.raises(ValueError, match=r"^target: "):
        global_normalizer(CompSumLoss(class_weight=CLASS_WEIGHT).effective_weight(y))
    with pytest.raises(ValueError, match=r"^tile_size: expected at least 1, got 0"):
        InfoNCELoss(tile_size=0)
    with pytest.raises(ValueError, match=r"^index: "):
        GlobalContrastiveLoss(4)(x, x, torch.tensor([0, 1, 2, 4]))
    # Other widths, dtypes or numbers of rows than on other processes.
    wide = torch.randn(4, WIDTH + (rank == 0), dtype=F64)
    for loss in (InfoNCELoss(), NTXentLoss(tile_size=2)):
        with pytest.raises(ValueError, match=r"^process_group: .*width.*widths \[\[4(, 4)?\], \[3"):
            loss(wide, wide)
    with pytest.raises(ValueError, match=r"^process_group: .*one width and dtype"):
        GlobalContrastiveLoss(4)(wide, wide, torch.arange(4))
    single = x.float() if rank == 0 else x
    with pytest.raises(ValueError, match=rf"^process_group: .*here \[{single.dtype}\]"):
        InfoNCELoss()(single, single)
    with pytest.raises(ValueError, match=r"^process_group: .*width and dtype"):
        ALDRKLLoss(4)(logits.to(single.dtype), y.clamp(max=2), torch.arange(4))
    with pytest.raises(ValueError, match=r"^local_logits: .*same rows.*of rows \[3, 4"):
        ShardedLogits(x[rank == 0 :])
    with pytest.raises(ValueError, match=rf"^local_logits: .*one dtype.*here {single.dtype}"):
        ShardedLogits(single)
    mesh = init_device_mesh("cpu", (world_size,))
    for placement in (Replicate(), Shard(0), Shard(1)):
        spread = DTensor.from_local(x, mesh, [placement], run_check=False)
        refused = pytest.raises(TypeError, match=r": expected a plain tensor.*got a DTensor with")
        for call in (
            lambda spread=spread: InfoNCELoss()(spread, spread),
            lambda spread=spread: LinearLogits(spread, torch.zeros(K, WIDTH, dtype=F64)),
            lambda spread=spread: CompSumLoss()(logits, logits, weight=spread),
            lambda spread=spread: CompSumLoss()(x, spread),
            lambda spread=spread: global_normalizer(spread),
        ):
            with refused:
                call()
    # All are still in step.
    assert global_normalizer(torch.ones(rank + 1)) == (world_size + 1) / 2


def _all(rank, world_size):
    _class_losses(rank, world_size)
    _batchmean(rank, world_size)
    _the_plain_mean_is_not_it(rank, world_size)
    _lengths(rank, world_size)
    _tokens(rank, world_size)
    _groups(rank, world_size)
    _nothing_left(rank, world_size)
    _coupled_losses(rank, world_size)
    _fully_sharded(rank, world_size)
    _refused(rank, world_size)


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_train_as_one(world_size, tmp_path):
    run_processes(_all, world_size, tmp_path)
