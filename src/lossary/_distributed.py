"""What a loss needs to know about the other processes."""

from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

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


def sum_over_ranks(x: Tensor, group: Group = None) -> Tensor:
    """Return the sum of ``x`` over all processes, without a gradient; all of them must call it."""
    if world_size(group) == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total, group=group)
    return total


def largest_over_ranks(x: Tensor, group: Group = None) -> Tensor:
    """Return the largest of each entry of ``x`` over all processes, likewise."""
    if world_size(group) == 1:
        return x
    largest = x.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group)
    return largest


def gather_ints(number: int, device: torch.device, group: Group = None) -> list[int]:
    """Return the numbers of all processes, which are read on the host."""
    if world_size(group) == 1:
        return [number]
    own = torch.tensor([number], device=device)
    every = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(every, own, group=group)
    return [int(n) for n in every]


def gather_rows(*tensors: Tensor, group: Group = None) -> tuple[Tensor, ...]:
    """Return the rows of all processes in the order of their ranks, without a gradient.

    The tensors have equally many rows, in each process as many as it likes. All must call it. The
    lengths are read on the host: a tensor's shape cannot wait.
    """
    if world_size(group) == 1:
        return tensors
    counts = gather_ints(len(tensors[0]), tensors[0].device, group)
    return tuple(_gather_padded(x.detach(), counts, group) for x in tensors)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gather_with_gradient(*tensors: Tensor, group: Group = None) -> tuple[list[Tensor], int]:
    """Return the rows of all processes, and the position of the first own one among them.

    The gradient of a row is the sum of what all processes have found: backward, too, is a call that
    all must make.
    """
    counts = gather_ints(len(tensors[0]), tensors[0].device, group)
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
