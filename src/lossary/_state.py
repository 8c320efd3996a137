"""What a loss remembers: of every sample, buffers keyed by dataset index; and running means."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lossary._checks import check_device, check_int, check_integers
from lossary._distributed import gather_rows, sum_over_ranks
from lossary._softmax import _is_legacy_batched, _is_wrapped, readable


class TrainingState(nn.Module):
    """What modules have in common whose buffers are written in training."""

    #: The processes that remember together; ``None`` for all.
    process_group: Any = None

    def _updates(self, update: bool, x: Tensor) -> bool:
        """Tell whether this call may write: ``x`` is an input that a transform would wrap."""
        writes = update and self.training and torch.is_grad_enabled()
        if not writes or not isinstance(x, Tensor):  # the loss's own checks refuse the latter
            return False
        return torch.compiler.is_compiling() or not (_is_wrapped(x) or _is_legacy_batched(x))


class PerSampleState(TrainingState):
    """Mixin for modules that keep numbers per sample of the dataset.

    The numbers are buffers of shape (num_samples,): they move with the module, and a checkpoint
    saves and restores them. They are written only in training mode with gradients enabled, outside
    of torch.func, and where the caller did not say ``update=False``. Samples that occur several
    times in a batch, over all processes, count with their mean, never with what was written last;
    every process stores the same.
    """

    def _add_state(
        self, name: str, num_samples: object, initial: float, dtype: torch.dtype = torch.float32
    ) -> None:
        """Register the buffer ``name``, where every sample begins with ``initial``."""
        self.num_samples = check_int("num_samples", num_samples, 1)
        self._initial: dict[str, float] = {**getattr(self, "_initial", {}), name: initial}
        self.register_buffer(name, torch.full((self.num_samples,), initial, dtype=dtype))

    def reset(self, index: Tensor | None = None) -> None:
        """Forget what was learnt of the samples ``index``; without it, of every sample."""
        if index is not None:
            index, _ = self._samples(index, index, None)
        for name, initial in self._initial.items():
            buffer = self._buffers[name]
            assert buffer is not None
            if index is None:
                buffer.fill_(initial)
            else:
                buffer[index] = initial

    def _samples(
        self, index: Any, rows: Tensor, target: Tensor | None, name: str = "index"
    ) -> tuple[Tensor, Tensor]:
        """Return the checked index, 0 for samples that are not there, and which are there.

        ``rows`` has the shape that is expected; the target is -1 for samples that are not there.
        ``name`` is what errors call the index.
        """
        check_integers(name, index, "integer dataset indices")
        if index.shape != rows.shape:
            raise ValueError(
                f"{name}: expected one per sample, shape {tuple(rows.shape)}, "
                f"got {tuple(index.shape)}"
            )
        check_device(name, index, rows)
        present = torch.ones_like(rows, dtype=torch.bool) if target is None else target >= 0
        checked = index.long().masked_fill(~present, 0)
        if readable(checked) and checked.numel():
            low, high = (int(x) for x in torch.aminmax(checked))
            if low < 0 or high >= self.num_samples:
                wrong = low if low < 0 else high
                raise ValueError(
                    f"{name}: expected dataset indices in [0, {self.num_samples}), got {wrong}"
                )
        return checked, present

    def _stored(self, name: str, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what is stored of the samples, in the shape of ``index``."""
        buffer = self._buffers[name]
        assert buffer is not None
        if buffer.device != index.device:
            raise ValueError(
                f"index: expected device {buffer.device}, where the state lies (move the loss with "
                f"to()), got {index.device}"
            )
        # A copy: the buffer may be written before backward reads what is returned here.
        values: Tensor = buffer[index].to(dtype)
        return values

    def _store(
        self, name: str, index: Tensor, values: Tensor, present: Tensor, *, log: bool = False
    ) -> Tensor:
        """Store new values of the samples that are there; return them, duplicates averaged.

        With ``log`` the values are logarithms of what is averaged.
        """
        buffer = self._buffers[name]
        assert buffer is not None
        rows = (index.reshape(-1), values.detach().reshape(-1), present.reshape(-1))
        every, new, there = gather_rows(*rows, group=self.process_group)
        # Occurrences of one index share a slot. All of them write the same number, so that it does
        # not matter which one is last.
        slot_of = every.sort().values
        slot = torch.searchsorted(slot_of, every)
        count = torch.zeros_like(new).index_add_(0, slot, there.to(new.dtype))
        top = torch.zeros_like(new)
        if log:  # exp() of the difference from the largest of a slot cannot overflow
            seen = torch.where(there, new, -math.inf)
            top.fill_(-math.inf).scatter_reduce_(0, slot, seen, "amax")
            new = torch.exp(new - top[slot])
        total = torch.zeros_like(new).index_add_(0, slot, torch.where(there, new, 0.0))
        mean = top + (total / count).log() if log else total / count
        kept = torch.where(count[slot] > 0, mean[slot].to(buffer.dtype), buffer[every])
        buffer.index_copy_(0, every, kept)
        own = mean[torch.searchsorted(slot_of, rows[0])].view(index.shape)
        return torch.where(present, own, values.detach())


class RunningMean(TrainingState):
    """Mixin for modules that keep the mean of all numbers seen in training, the same everywhere."""

    def _add_mean(self, name: str) -> None:
        """Register the buffers ``name_mean`` and ``name_count``."""
        self.register_buffer(f"{name}_mean", torch.zeros(()))
        self.register_buffer(f"{name}_count", torch.zeros((), dtype=torch.long))

    def reset(self) -> None:
        """Forget all that was seen."""
        for name in self._buffers:
            if name.endswith(("_mean", "_count")):
                self.get_buffer(name).zero_()

    def _see(self, name: str, values: Tensor, weight: Tensor | None) -> None:
        """Take the values of all processes into the mean: the finite ones of weight other than 0.

        ``weight`` has the last dimensions of ``values``, or ones. All processes must call it.
        """
        mean, count = self.get_buffer(f"{name}_mean"), self.get_buffer(f"{name}_count")
        if mean.device != values.device:
            raise ValueError(
                f"{name}: expected inputs on the device {mean.device}, where the state lies (move "
                f"the loss with to()), got {values.device}"
            )
        there = values.isfinite() if weight is None else values.isfinite() & (weight != 0)
        sums = torch.stack((torch.where(there, values, 0.0).sum(), there.sum().to(values.dtype)))
        total, n = sum_over_ranks(sums, self.process_group)
        count.add_(n.long())
        # A correction of the mean, not a sum of all, which would lose what is added to it.
        mean.add_(((total - n * mean) / count.clamp(min=1)).to(mean.dtype))
