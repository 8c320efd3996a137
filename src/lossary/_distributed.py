"""What a loss needs to know about the other processes."""

import math
import zlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from lossary._checks import check_device, check_weight_type

#: A process group; ``None`` for all processes.
Group: TypeAlias = Any


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size(group: Group = None) -> int:
    """Return the number of processes of the group, 1 where none is initialised."""
    return dist.get_world_size(group) if _initialized() else 1


def check_gather(gather: object, group: Group) -> None:
    """Raise an error unless the two say whether to gather, and in which group."""
    # 1 and 0 are equal to True and False, but mean nothing here.
    if not isinstance(gather, bool) and gather != "auto":
        raise ValueError(f"gather: expected one of ('auto', True, False), got {gather!r}")
    check_group(group)


def check_group(group: Group) -> None:
    """Raise an error unless this is a process group, or ``None``."""
    if group is None:
        return
    if not dist.is_available() or not (
        isinstance(group, dist.ProcessGroup) or group is dist.GroupMember.NON_GROUP_MEMBER
    ):
        raise TypeError(
            f"process_group: expected a torch.distributed group or None, got {type(group).__name__}"
        )


def gathers(gather: bool | str, group: Group) -> bool:
    """Tell whether the rows of several processes are to be gathered."""
    if gather is False:
        return False
    if not _initialized():
        if gather is True:
            raise RuntimeError(
                "gather: expected torch.distributed to be initialised for True, got no group"
            )
        return False
    rank_in(group)
    return world_size(group) > 1


def rank_in(group: Group) -> int:
    """Return the rank of this process in the group, 0 where none is initialised."""
    rank = dist.get_rank(group) if _initialized() else 0
    if rank < 0:
        raise ValueError(
            f"process_group: expected a group with this process in it, rank {dist.get_rank()}, "
            "got one without"
        )
    return rank


def global_normalizer(*weights: Tensor, process_group: Group = None) -> Tensor:
    r"""Return the ``normalizer`` that makes the weighted mean that of all processes.

    .. math:: n = \frac{1}{W} \sum_{r=1}^{W} \sum_i w_{r,i}

    A trainer that averages gradients over W processes (``DistributedDataParallel``,
    ``fully_shard``) makes of ``"mean"`` the mean of the processes' means. Where they have unequally
    many samples, tokens or labels, that is not the mean of the batch: what stands on a process with
    few counts for more. ``loss(..., weight=w, normalizer=global_normalizer(w))`` on every process
    has exactly the gradient of one process with the whole batch. So has gradient accumulation, with
    the weights of all micro-batches given at once and their number used in each of them. It takes
    one collective, of two numbers, and does not wait for a device.

    Args:
        weights: what the samples of this process count with: a float tensor, or a bool one for a
            mask, in the shape of the loss's values (one of shape (N, 1) for values (N, T) would
            count N times only); several where the batch comes in parts, empty ones where a process
            has nothing. For a loss with class weights or ignored targets they come from
            :meth:`ClassificationLoss.effective_weight`; for ``SequenceNLLLoss`` they are the
            weights times the lengths.
        process_group: the processes whose gradients are averaged; all of them must call this.
            Without those over which classes or layers are spread: their samples are the same.
            Default: the default group; without ``torch.distributed`` this process alone.

    Returns:
        A 0-dim tensor without a gradient, in float64, so that counts stay exact; the loss casts it
        to its own dtype. 1 where all weights of all processes are 0: the loss is 0 then.

    Note:
        In one process it is sum(w), a constant: ``"mean"`` with a learnt weight has a gradient
        through its denominator too, this has not. Losses that gather the rows of all processes
        (``InfoNCELoss`` and its like) have the right mean already. A trainer that adds gradients up
        instead of averaging them needs W times this number.

    Raises:
        ValueError: no weights at all; weights on several devices; a process group that this process
            is not in.
        TypeError: weights neither float nor bool (labels and lengths, say, unless they are cast); a
            ``process_group`` that is none.

    Reference:
        Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", 2020,
        for the averaging of gradients.

    Example:
        A step with accumulation over two micro-batches, here in one process. Under
        ``DistributedDataParallel`` all but the last backward stand within ``model.no_sync()``.

        >>> import torch
        >>> from lossary import CompSumLoss, global_normalizer
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
        >>> target = torch.tensor([0, 0, -100])
        >>> loss = CompSumLoss(class_weight=torch.tensor([3.0, 1.0]))
        >>> parts = [(logits[:1], target[:1]), (logits[1:], target[1:])]
        >>> n = global_normalizer(*(loss.effective_weight(y) for _, y in parts))
        >>> n
        tensor(6., dtype=torch.float64)
        >>> sum(loss(f, y, normalizer=n) for f, y in parts)
        tensor(0.7201)
        >>> loss(logits, target)
        tensor(0.7201)
    """
    check_group(process_group)
    rank_in(process_group)
    if not weights:
        raise ValueError("weights: expected at least one tensor, got none")
    for w in weights:
        check_weight_type("weights", w)
        check_device("weights", w, weights[0])
    # The same on all processes, whatever their weights are in; but not every device has float64.
    dtype = torch.float32 if weights[0].device.type == "mps" else torch.float64
    sums = torch.stack([w.detach().sum(dtype=dtype) for w in weights])
    counts = torch.stack([(w != 0).sum(dtype=dtype) for w in weights])
    total, left = sum_over_ranks(torch.stack((sums.sum(), counts.sum())), process_group)
    return torch.where(left == 0, 1.0, total / world_size(process_group))


def sum_over_ranks(x: Tensor, group: Group = None) -> Tensor:
    """Return the sum of ``x`` over all processes, without a gradient; all of them must call it."""
    if world_size(group) == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total, group=group)
    return total


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sum_with_gradient(x: Tensor, group: Group = None) -> Tensor:
    """Return the sum of ``x`` over all processes, all of which must call it, backward too.

    What every process finds with the sum adds up in the gradient.
    """
    total: Tensor = _Sum.apply(x, group)  # type: ignore[no-untyped-call]
    return total


def largest_over_ranks(x: Tensor, group: Group = None) -> Tensor:
    """Return the largest of each entry of ``x`` over all processes, likewise."""
    if world_size(group) == 1:
        return x
    largest = x.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group)
    return largest


def gather_ints(
    numbers: Sequence[int], device: torch.device, group: Group = None
) -> list[list[int]]:
    """Return the numbers of all processes, equally many each, which are read on the host."""
    if world_size(group) == 1:
        return [list(numbers)]
    own = torch.tensor(numbers, device=device)
    every = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(every, own, group=group)
    return [x.tolist() for x in every]


def kind(x: Tensor, width: int) -> tuple[int, int]:
    """Return two numbers that are the same on all processes that may exchange ``x``."""
    return width, zlib.crc32(str(x.dtype).encode())


def _lengths(tensors: tuple[Tensor, ...], group: Group) -> list[int]:
    """Return how many rows each process has.

    Rows that differ in more than their number would be read as what they are not, or waited for
    forever; but then the error is one of all processes.
    """
    kinds = [n for x in tensors for n in kind(x, math.prod(x.shape[1:]))]
    every = gather_ints([len(tensors[0]), *kinds], tensors[0].device, group)
    if any(others != every[0][1:] for _, *others in every):
        widths = [found[1::2] for found in every]
        raise ValueError(
            "process_group: expected rows of one width and dtype on all of its processes, got "
            f"widths {widths}, here {[x.dtype for x in tensors]}"
        )
    return [count for count, *_ in every]


def count_rows(*tensors: Tensor, group: Group = None) -> int:
    """Return how many rows all processes have, of the same kind; all of them must call it."""
    return sum(_lengths(tensors, group))


def gather_rows(*tensors: Tensor, group: Group = None) -> tuple[Tensor, ...]:
    """Return the rows of all processes in the order of their ranks, without a gradient.

    The tensors have equally many rows, in each process as many as it likes. All must call it. The
    lengths are read on the host: a tensor's shape cannot wait.
    """
    if world_size(group) == 1:
        return tensors
    counts = _lengths(tensors, group)
    return tuple(_gather_padded(x.detach(), counts, group) for x in tensors)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gather_with_gradient(*tensors: Tensor, group: Group = None) -> tuple[list[Tensor], int]:
    """Return the rows of all processes, and the position of the first own one among them.

    The gradient of a row is the sum of what all processes have found: backward, too, is a call that
    all must make.
    """
    counts = _lengths(tensors, group)
    out = [_Gather.apply(x, counts, group) for x in tensors]  # type: ignore[no-untyped-call]
    return out, sum(counts[: dist.get_rank(group)])


def _gather_padded(x: Tensor, counts: list[int], group: Group) -> Tensor:
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


class _Gather(torch.autograd.Function):
    """The rows of all processes."""

    @staticmethod
    def forward(x: Tensor, counts: list[int], group: Group) -> Tensor:
        return _gather_padded(x, counts, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.counts, ctx.group = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _SumOwn.apply(g, ctx.counts, ctx.group), None, None  # type: ignore[no-untyped-call]


class _SumOwn(torch.autograd.Function):
    """The own rows of the sum over all processes: the transpose of gathering."""

    @staticmethod
    def forward(g: Tensor, counts: list[int], group: Group) -> Tensor:
        rank = dist.get_rank(group)
        first = sum(counts[:rank])
        return sum_over_ranks(g.contiguous(), group)[first : first + counts[rank]].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.counts, ctx.group = inputs

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(v, ctx.counts, ctx.group), None, None  # type: ignore[no-untyped-call]


class _Sum(torch.autograd.Function):
    """The sum over all processes, which is its own transpose."""

    @staticmethod
    def forward(x: Tensor, group: Group) -> Tensor:
        return sum_over_ranks(x.contiguous(), group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.group = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(g, ctx.group), None  # type: ignore[no-untyped-call]
