"""Losses over the rows of several processes: what one process with all rows would find."""

import pytest
import torch
import torch.distributed as dist

from lossary import (
    AMCLLoss,
    BarlowTwinsLoss,
    BatchSoftmaxLoss,
    COMETLoss,
    COMETTotalLoss,
    CompositionalNLLLoss,
    DCLLoss,
    FeatureSeparationLoss,
    GlobalContrastiveLoss,
    HardContrastiveLoss,
    ICNNLoss,
    InfoNCELoss,
    LabelConsistencyLoss,
    LAFAlignmentLoss,
    MetrixLoss,
    ModelBehaviorConsistencyLoss,
    MultiSimilarityLoss,
    NCELoss,
    NormalizedLogisticLoss,
    NPairLoss,
    NTXentLoss,
    OnlinePrototypeEquilibriumLoss,
    PairwiseRankNetLoss,
    PrototypeRelationDistillationLoss,
    ProxyAnchorLoss,
    RMTContrastiveLoss,
    SigLIPLoss,
    SupConLoss,
    TCMLoss,
    TripletMarginLoss,
    TwoWayGlobalContrastiveLoss,
    UNPGLoss,
    VICRegLoss,
    _distributed,
)
from processes import run_processes

F64 = torch.float64
SAMPLES, WIDTH = 12, 3
#: Where the rows of each process end: unequal batches, then one process without rows.
BOUNDS = {2: ([0, 3, 9], [0, 9, 9]), 3: ([0, 2, 7, 9], [0, 4, 4, 9])}


REMEMBERING = ("index", "densities")
#: Parameters, whose gradients are compared.
LEARNT = (
    *("log_scale", "bias", "log_z", "weight_matrix", "proxies"),
    *("weight1", "bias1", "weight2", "bias2", "projector.weight", "projector.bias"),
)


def remembering(loss, **options):
    return loss(SAMPLES, 0.3, 0.6, True, 0.05, 2.0, 0.5, beta=0.5, state_dtype=F64, **options)


def with_directions(loss, **options):
    torch.manual_seed(0)
    return loss(5, WIDTH, scale=4.0, **options).double()


def with_proxies(**options):
    torch.manual_seed(0)
    return ProxyAnchorLoss(5, WIDTH, alpha=4.0, **options).double()


def with_networks(**options):
    torch.manual_seed(0)
    return AMCLLoss(2, WIDTH, 0.5, 0.2, hidden=4, **options).double()


def with_projector(**options):
    torch.manual_seed(0)
    return RMTContrastiveLoss(0.5, torch.nn.Linear(WIDTH, 2), **options).double()


#: A loss that is one number takes no weight.
ONE_NUMBER = "one number"


def makers():
    """Losses by name, with what they take beside embeddings."""
    both = {"dense": None, "tiles": 2}
    for kind, t in both.items():
        yield f"InfoNCE {kind}", lambda t=t, **o: InfoNCELoss(0.2, tile_size=t, **o), ""
        yield (
            f"symmetric {kind}",
            lambda t=t, **o: InfoNCELoss(
                0.2, True, learnable_temperature=True, tile_size=t, **o
            ).double(),
            "",
        )
        yield (
            f"queue {kind}",
            lambda t=t, **o: InfoNCELoss(0.2, in_batch=False, tile_size=t, **o),
            "negatives",
        )
        yield f"NT-Xent {kind}", lambda t=t, **o: NTXentLoss(0.2, tile_size=t, **o), ""
        for loss in (GlobalContrastiveLoss, TwoWayGlobalContrastiveLoss):
            yield (
                f"{loss.__name__} {kind}",
                lambda t=t, loss=loss, **o: remembering(loss, tile_size=t, **o),
                "index",
            )
        yield (
            f"TCM {kind}",
            lambda t=t, **o: TCMLoss(0.9, 0.1, 1.0, 2.0, tile_size=t, **o),
            "labels",
        )
        yield f"DCL {kind}", lambda t=t, **o: DCLLoss(0.2, "vmf", 0.3, tile_size=t, **o), ""
        yield (
            f"hard {kind}",
            lambda t=t, **o: HardContrastiveLoss(0.2, 0.4, tile_size=t, **o),
            "negatives",
        )
        yield (
            f"simple {kind}",
            lambda t=t, **o: HardContrastiveLoss(num_hard=3, simple=True, tile_size=t, **o),
            "",
        )
        yield (
            f"batch softmax {kind}",
            lambda t=t, **o: BatchSoftmaxLoss(0.2, tile_size=t, **o),
            "log_q",
        )
        yield f"SigLIP {kind}", lambda t=t, **o: SigLIPLoss(tile_size=t, **o).double(), ""
        yield f"SupCon {kind}", lambda t=t, **o: SupConLoss(0.3, tile_size=t, **o), "labels"
        yield (
            f"SupCon of two views {kind}",
            lambda t=t, **o: SupConLoss(0.3, tile_size=t, **o),
            "labels between",
        )
        yield f"N-pair {kind}", lambda t=t, **o: NPairLoss(0.3, tile_size=t, **o), ""
        for eps in (None, 0.1):
            yield (
                f"multi-similarity {kind} {eps}",
                lambda t=t, e=eps, **o: MultiSimilarityLoss(mining_eps=e, tile_size=t, **o),
                "labels",
            )
    yield "SupCon, in", lambda **o: SupConLoss(0.3, variant="in", tile_size=2, **o), "labels"
    yield "SupCon, in, dense", lambda **o: SupConLoss(0.3, variant="in", **o), "labels"
    for mining in ("all", "hard", "semihard"):
        yield (
            f"triplets {mining}",
            lambda m=mining, **o: TripletMarginLoss(0.5, m != "all", mining=m, **o),
            "labels",
        )
    for base in ("multi_similarity", "lifted"):
        yield f"Metrix {base}", lambda b=base, **o: MetrixLoss(b, 0.0, **o), "labels"
    yield "proxies", lambda **o: with_proxies(**o), "classes"
    yield "ICNN", lambda **o: ICNNLoss(2, 4, **o), "whole"
    yield "UNPG", lambda **o: with_directions(UNPGLoss, **o), "labels"
    yield "RankNet", PairwiseRankNetLoss, ""
    for alpha in (None, 0.3):
        yield f"RankNet {alpha}", lambda a=alpha, **o: PairwiseRankNetLoss(2.0, a, **o), "hard"
    for over in ("samples", "classes"):
        yield (
            f"distillation {over}",
            lambda over=over, **o: PrototypeRelationDistillationLoss(0.3, over, **o),
            f"prototypes {over}",
        )
    yield "online prototypes", lambda **o: OnlinePrototypeEquilibriumLoss(0.3, **o), "views"
    for variance in (False, True):
        yield (
            f"behaviour {variance}",
            lambda v=variance, **o: ModelBehaviorConsistencyLoss(v, False, **o),
            "",
        )
    yield "label consistency", lambda **o: LabelConsistencyLoss(detach_reference=False, **o), ""
    yield (
        "forgetting",
        lambda **o: LAFAlignmentLoss(0.3, **({"reduction": "mean"} | o)),
        "forgotten",
    )
    yield "NCE", lambda **o: NCELoss(None, True, **o).double(), "noise"
    yield "normaliser", lambda **o: CompositionalNLLLoss(0.3, **o).double(), "densities"
    yield "separation", lambda **o: FeatureSeparationLoss(0.3, **o), "labels"
    yield "Barlow Twins", lambda **o: BarlowTwinsLoss(0.5, 0.1, **o), ONE_NUMBER
    yield "VICReg", lambda **o: VICRegLoss(1.0, 2.0, 3.0, 0.1, **o), ONE_NUMBER
    for level in ("observation", "sample"):
        yield f"COMET {level}", lambda v=level, **o: COMETLoss(v, 0.7, **o), "series"
    for scales in (False, True):
        yield f"COMET {scales}", lambda s=scales, **o: COMETLoss("trial", 0.7, s, **o), "ids"
    yield "COMET", lambda **o: COMETTotalLoss((1.0, 2.0, 3.0, 4.0), **o), "levels"
    for kind in ("max", "lse"):
        yield (
            f"AMCL {kind}",
            lambda kind=kind, **o: with_networks(negatives=kind, **o),
            "heads",
        )
    yield "RMT", lambda **o: with_projector(**o), "three views"
    yield "normalised logistic", NormalizedLogisticLoss, "binary"


#: What takes labels: losses of rows, of classes, and of the batch as a whole.
LABELLED = ("labels", "classes", "whole")


def train(make, needs, rows, steps, weighted=False, **options):
    """Return the gradients of some steps, and what is remembered, with the given rows."""
    loss = make(**options)
    generator = torch.Generator().manual_seed(0)
    model = torch.randn(WIDTH, WIDTH, dtype=F64, generator=generator).requires_grad_()
    found = []
    for _ in range(steps):
        a, b = torch.randn(2, 9, WIDTH, dtype=F64, generator=generator)
        index = torch.randperm(SAMPLES, generator=generator)[:9]
        labels = torch.randint(5, (9,), generator=generator)
        weight = torch.rand(9, dtype=F64, generator=generator)
        queue = torch.randn(4, WIDTH, dtype=F64, generator=generator)
        # Values are one per prototype, or one per row of all processes.
        of_all = {"prototypes samples": weight[:4], "views": weight}
        a, b, index, labels, weight = (x[rows] for x in (a, b, index, labels, weight))
        more = {"index": (index,), "negatives": (queue,), "log_q": (3 * weight,)}.get(needs, ())
        inputs = (a @ model, labels) if needs in LABELLED else (a @ model, b @ model, *more)
        inputs = (a @ model, labels, b @ model) if needs == "labels between" else inputs
        inputs = ((a @ model).sum(1), labels > 0) if needs == "binary" else inputs
        inputs = (*inputs, a * b @ model) if needs == "hard" else inputs
        inputs = (*inputs, labels) if needs == "views" else inputs
        if needs == "forgotten":
            inputs = (inputs[0], b, a.flip(1) @ model, b.flip(1))
        if needs.startswith("prototypes"):
            # Those of all classes are on every process.
            inputs = (inputs[0], b, queue @ model, queue)
        if needs in ("noise", "densities"):
            data, noise = (((x @ model).sum(1), x.sum(1)) for x in (a, b))
            inputs = (*(data if needs == "noise" else data[:1]), *noise)
        weight = of_all.get(needs, weight)
        if needs == "classes":
            weight = torch.tensor([0.5, 2.0, 1.0, 0.7, 1.3], dtype=F64)
        weight = None if needs == "whole" else weight
        if needs in ("series", "ids", "levels"):
            z = [x.unsqueeze(2) @ torch.ones(1, 2, dtype=F64) for x in inputs]
            z = [x * torch.tensor([1.0, 0.5], dtype=F64) + x.roll(1, 1).cos() for x in z]
            inputs = (*z, labels) if needs == "ids" else tuple(z)
            inputs = (*z * 4, labels, labels // 2) if needs == "levels" else inputs
        elif needs == "heads":
            inputs = tuple(torch.stack((x, x.square() - 1.0)) for x in inputs)
        elif needs == "three views":
            inputs = (*inputs, queue)
        value = loss(*inputs, weight=weight if weighted else None)
        leaves = [model, *loss.parameters()]
        found += [value.detach(), *torch.autograd.grad(value, leaves)]
    return found, {k: v for k, v in loss.state_dict().items() if k not in LEARNT}


def averaged(x, group=None):
    dist.all_reduce(x, group=group)
    return x / dist.get_world_size(group)


def jobs(world_size):
    unequal, without_rows = BOUNDS[world_size]
    for name, make, needs in makers():
        yield name, make, needs, unequal, {}
        if needs != ONE_NUMBER:
            yield name, make, needs, unequal, {"weighted": True}
        else:
            yield name, make, needs, unequal, {"reduction": "sum"}
            yield name, make, needs, unequal, {"reduction": "batchmean"}
        yield name, make, needs, without_rows, {}
    name, make, needs = next(iter(makers()))
    yield name, make, needs, unequal, {"weighted": True, "reduction": "batchmean"}


def _same_as_one(rank, world_size):
    got = []
    for _, make, needs, bounds, o in jobs(world_size):
        steps = 5 if needs in REMEMBERING and not o else 1
        found, state = train(make, needs, slice(*bounds[rank : rank + 2]), steps, **o)
        got.append(([averaged(x) for x in found], state))
    (_two_processes if world_size == 2 else _group_of_two)(rank)
    dist.destroy_process_group()
    for (name, make, needs, bounds, o), (found, state) in zip(jobs(world_size), got, strict=True):
        steps = 5 if needs in REMEMBERING and not o else 1
        wanted, remembered = train(make, needs, slice(None), steps, **o)
        for i, (x, y) in enumerate(zip(found, wanted, strict=True)):
            what = f"{name}, bounds {bounds}, {o}, result {i}: "
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10, msg=what.__add__)
        for key, x in remembered.items():
            torch.testing.assert_close(state[key], x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_are_one(world_size, tmp_path):
    run_processes(_same_as_one, world_size, tmp_path)


def _group_of_two(rank):
    """Two processes of three: the third neither counts nor waits."""
    group = dist.new_group([0, 2])
    if rank == 1:
        with pytest.raises(ValueError, match=r"process_group: .*this process in it, rank 1"):
            InfoNCELoss(process_group=group)(torch.eye(3), torch.eye(3))
        return
    rows = slice(0, 2) if rank == 0 else slice(2, 9)
    for make, needs in ((InfoNCELoss, ""), (NTXentLoss, ""), (TCMLoss, "labels")):
        wanted, _ = train(make, needs, slice(None), 1, gather=False)
        for reduction in ("mean", "batchmean"):
            found, _ = train(make, needs, rows, 1, process_group=group, reduction=reduction)
            for x, y in zip(found, wanted, strict=True):
                torch.testing.assert_close(averaged(x, group), y, rtol=1e-10, atol=1e-10)


def _two_processes(rank):
    """What is told of two processes alone: gathering itself, groups, and where nothing is left."""
    x = torch.arange(6.0, dtype=F64).view(3, 2)[: 1 + rank].clone().requires_grad_()
    (every,), first = _distributed.gather_with_gradient(x)
    assert every.tolist() == [[0, 1], [0, 1], [2, 3]]
    assert first == rank
    # The gradient of a row is what all processes found; twice, as well.
    (gradient,) = torch.autograd.grad((every**3).sum() * (1 + rank), x, create_graph=True)
    torch.testing.assert_close(gradient, 3 * 3 * x**2)
    (second,) = torch.autograd.grad(gradient.sum() * (1 + rank), x)
    torch.testing.assert_close(second, 3 * 3 * 2 * x * (1 + rank))
    # What goes in stays as it is.
    cotangent = torch.full_like(every, 1.0 + rank)
    (gradient,) = torch.autograd.grad(_distributed.gather_with_gradient(x)[0], x, [cotangent])
    assert bool((gradient == 3.0).all())
    assert bool((cotangent == 1.0 + rank).all())
    assert _distributed.largest_over_ranks(cotangent)[0, 0] == 2.0
    assert bool((cotangent == 1.0 + rank).all())
    # A sum, likewise, of tensors that need not lie in memory alike.
    y = torch.arange(6.0, dtype=F64).view(2, 3) + rank
    y = (y if rank else y.t().contiguous().t()).requires_grad_()
    total = _distributed.sum_with_gradient(y)
    torch.testing.assert_close(total, torch.arange(6.0, dtype=F64).view(2, 3) * 2 + 1)
    (gradient,) = torch.autograd.grad((total**3).sum() * (1 + rank), y, create_graph=True)
    torch.testing.assert_close(gradient, 3 * 3 * total**2)
    (second,) = torch.autograd.grad(gradient.sum() * (1 + rank), y)
    torch.testing.assert_close(second, 3 * 3 * 3 * 2 * total)
    one = torch.ones(1 - rank, 2)
    for loss in (BarlowTwinsLoss(), VICRegLoss()):
        with pytest.raises(ValueError, match="z1: expected at least 2 samples, over all processes"):
            loss(one, one)
        assert loss(one[:0], one[:0]) == 0.0
    # Of the own rows alone where that is asked for, and in each group its own.
    a, b = torch.randn(2, 4, WIDTH, dtype=F64, generator=torch.Generator().manual_seed(rank))
    for loss in (InfoNCELoss, NTXentLoss):
        alone = loss(gather=False)(a, b)
        groups = [dist.new_group([r]) for r in range(2)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, "all_gather", None)  # nobody is asked
            torch.testing.assert_close(loss(process_group=groups[rank])(a, b), alone)
        assert abs(float(loss()(a, b) - alone)) > 1e-3
        with pytest.raises(ValueError, match=r"process_group: expected a group with this process"):
            loss(process_group=groups[1 - rank])(a, b)
    # "sum" is the own share, of all rows' loss.
    total = InfoNCELoss(reduction="sum")(a, b).detach()
    mean = InfoNCELoss()(a, b)
    dist.all_reduce(total)
    torch.testing.assert_close(averaged(mean), total / 8)
    # Nothing at all is a zero that is attached, with everyone in the backward pass.
    none = torch.empty(0, WIDTH, dtype=F64, requires_grad=True)
    for loss in (InfoNCELoss(0.1, True), NTXentLoss(tile_size=2)):
        value = loss(none, none)
        assert value == 0.0
        value.backward()
    for loss in (TCMLoss(), SupConLoss(), SupConLoss(tile_size=2)):
        assert loss(none, torch.empty(0, dtype=torch.long)) == 0.0
    # All samples distinct: nobody counts on any process, and the zero is attached to all.
    distinct = torch.arange(4) + 4 * rank
    for loss in (SupConLoss(), SupConLoss(tile_size=2)):
        leaf = a.clone().requires_grad_()
        value = loss(leaf, distinct)
        value.backward()
        assert value == 0.0
        assert not bool(leaf.grad.any())
    one = slice(0, 1 - rank)
    with pytest.raises(ValueError, match="z1: expected at least 2 samples, over all processes"):
        DCLLoss()(a[one], b[one])
    remembers = remembering(GlobalContrastiveLoss)
    one = slice(0, 1 - rank)
    with pytest.raises(ValueError, match="z1: expected at least 2 samples, over all processes"):
        remembers(a[one], b[one], torch.arange(4)[one])
    # A denominator is 1 only where no process has anything left.
    weight = torch.full((4,), float(rank), dtype=F64)
    values = InfoNCELoss(reduction="none")(a, b).detach()
    value = InfoNCELoss()(a, b, weight=weight)
    torch.testing.assert_close(value.detach(), values.sum() * rank * 2 / 4)
    assert InfoNCELoss()(a, b, weight=weight * 0) == 0.0


LOSSES = [
    NormalizedLogisticLoss,
    BatchSoftmaxLoss,
    SigLIPLoss,
    SupConLoss,
    InfoNCELoss,
    NCELoss,
    NTXentLoss,
    PairwiseRankNetLoss,
    TCMLoss,
    lambda **o: GlobalContrastiveLoss(8, **o),
    lambda **o: TwoWayGlobalContrastiveLoss(8, **o),
]


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("gather", ["always", None, 1, 0])
def test_what_gather_does_not_take(make, gather):
    with pytest.raises(ValueError, match=r"gather: expected one of \('auto', True, False\), got"):
        make(gather=gather)


@pytest.mark.parametrize("make", LOSSES)
def test_what_is_no_group(make):
    with pytest.raises(TypeError, match=r"process_group: expected a torch\.distributed .*got str"):
        make(process_group="world")


def test_gathering_needs_processes():
    with pytest.raises(
        RuntimeError, match=r"gather: expected torch\.distributed to be initialised"
    ):
        InfoNCELoss(gather=True)(torch.eye(3), torch.eye(3))
    assert InfoNCELoss(gather="auto")(torch.eye(3), torch.eye(3)) > 0.0
