"""Where logits live: streamed from hidden states and never held, or spread over processes.

The statistics of :mod:`lossary._softmax` are sums over the classes. So they can be gathered while
tiles of logits, over rows and over classes, are made and dropped: against a running maximum, with
the target left out. Backward makes the tiles once more. What is kept is two numbers a row. Or each
process has some of the classes, and its part of the sums.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary import _distributed, _softmax
from lossary._checks import (
    check_device,
    check_floating,
    check_in_memory,
    check_int,
    check_plain,
    check_positive,
)
from lossary._softmax import (
    CHANCE_ODDS,
    GAPS,
    LOG_ODDS,
    NEAR_CHANCE,
    RIVAL_SQUARES,
    TARGET,
    _compute_dtype,
    readable,
)

#: Scratch of one tile at most; down to a quarter of it for logits beside which it would be large.
#: On a CPU: flat in time from 4 MiB on with the cores to itself; beside other processes larger
#: tiles are faster, for threads wait for each other at the end of every operation on a tile.
TILE_BYTES = {"cpu": 16 << 20, "other": 64 << 20}
#: Rows of a tile. Fewer make products of which reading the weight is most of the work.
TILE_ROWS = {"cpu": 1024, "other": 4096}


class Layout:
    """What stands for a tensor of logits, the classes last."""

    #: The shape of the logits.
    shape: torch.Size
    #: The dtype that is computed in.
    dtype: torch.dtype
    device: torch.device
    #: What to do where only logits in memory will do.
    _advice: str
    #: The logits plus one number per class, (K,).
    _shifted: Callable[[Tensor], Any]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"

    def dim(self) -> int:
        """Return the number of dimensions of the logits."""
        return len(self.shape)

    def _check_temperature(self, temperature: float | Tensor) -> float:
        if isinstance(temperature, Tensor):
            check_in_memory(self, "a temperature that is a tensor")
        return float(temperature)

    def _check_plain(self, *tensors: Tensor | None) -> None:
        if any(_softmax.transformed(x) for x in tensors if x is not None):
            raise RuntimeError(
                f"{type(self).__name__}: expected plain tensors, got one inside of a torch.func "
                f"transform or with a tangent of forward mode; {self._advice}"
            )

    @classmethod
    def _check_gradients(cls, gs: tuple[Tensor, ...]) -> None:
        if any(_softmax.transformed(g) for g in gs):
            raise RuntimeError(
                f"{cls.__name__}: expected plain gradients, got batched ones (is_grads_batched, "
                f"vectorize) or those of a transform; {cls._advice}"
            )

    @classmethod
    def _refuse_second(cls) -> NoReturn:
        raise RuntimeError(
            f"{cls.__name__}: expected a first derivative, got a request for the second; "
            f"{cls._advice}"
        )


class LinearLogits(Layout):
    r"""Logits of a linear layer that are made tile by tile and never held: the streamed layout.

    .. math:: f = (W h + b) / T \quad\text{or}\quad
              f = c \operatorname{tanh}((W h + b) / (c T))

    Stands where a tensor of logits may stand: ``loss(LinearLogits(hidden, head.weight), target)``.
    With 100 000 classes the logits, not the model, are what fills the memory; here neither they
    nor their gradient ever exist. Every loss whose docstring names the layout takes it, and every
    :class:`ClassificationLoss` of your own that asks for nothing but ``self.log_odds``. The price
    is one product more: backward makes the logits again.

    Args:
        hidden: what goes into the layer, (..., H), floating point.
        weight: the layer's, (K, H), K >= 2. Frozen (``requires_grad=False``), it costs backward
            neither work nor memory.
        bias: the layer's, (K,), or ``None``. -inf forbids a class.
        temperature: T > 0 that the logits are divided by. Default 1.
        softcap: c > 0, the bound of logits that are capped by a hyperbolic tangent, after the
            division by T; ``None``, the default, for models without.
        tile_size: rows of a tile, at least 1; as many classes are then taken as fit the cache.
            Default: 1024 on a CPU, 4096 elsewhere. More rows save reading the weight.

    Shape:
        Stands for logits (..., K), the classes last, whatever the loss's ``class_dim`` says; the
        target is of shape (...), class indices only. Gradients come back in the dtypes of hidden,
        weight and bias.

    Properties:
        Values and gradients are those of the logits in memory, to rounding. Saved for backward:
        hidden, weight, target and two numbers a row; extra memory: a tile of logits, and the
        gradients. Rows with an ignored target or weight 0 are left out before any arithmetic on a
        CPU, and are masked elsewhere: their hidden states may be inf or nan.

    Limits:
        First order only: a second derivative, ``torch.func``, ``is_grads_batched`` and forward
        mode raise a RuntimeError. :meth:`in_memory` gives logits that have them. Under
        ``torch.compile`` the logits are held in memory. Under ``fully_shard`` a weight is whole
        only within the forward of the module it belongs to: call the loss in there. Elsewhere it
        is a DTensor, which is refused.

    Note:
        Half precision is computed in float32, the products too, also under autocast: the logits
        of a half-precision layer are off by 4e-3 of their size. That makes products slower than
        in half precision. The gradient of the weight is added up in float32.

    Raises:
        ValueError: widths, lengths or devices that do not fit, fewer than 2 classes,
            ``temperature`` or ``softcap`` not positive and finite, ``tile_size`` below 1.
        TypeError: tensors that are not floating point, or DTensors; float64 with another dtype;
            ``tile_size`` not an int, ``temperature`` or ``softcap`` not numbers.

    Reference:
        Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", 2024, for the idea;
        Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018, for the running
        maximum.

    Example:
        >>> import torch
        >>> from lossary import LDRKLLoss, LinearLogits
        >>> hidden = torch.tensor([[2.0, 0.0], [0.5, 1.0]])
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.5], [-0.5, 0.0]])
        >>> logits = LinearLogits(hidden, weight)
        >>> logits.shape
        torch.Size([2, 3])
        >>> LDRKLLoss()(logits, torch.tensor([0, 2]))
        tensor(0.1305)
    """

    _advice = "take the logits in memory, LinearLogits(...).in_memory(), for that"

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        temperature: float = 1.0,
        softcap: float | None = None,
        tile_size: int | None = None,
    ) -> None:
        for name, x in (("hidden", hidden), ("weight", weight), ("bias", bias)):
            check_plain(name, x, "as within the forward of the module given to fully_shard")
        check_floating("hidden", hidden)
        if hidden.dim() == 0:
            raise ValueError("hidden: expected shape (..., H), got a 0-dim tensor")
        check_floating("weight", weight)
        if weight.dim() != 2 or weight.shape[0] < 2:
            raise ValueError(
                f"weight: expected shape (K, H) with K >= 2, got {tuple(weight.shape)}"
            )
        if weight.shape[1] != hidden.shape[-1]:
            raise ValueError(
                f"weight: expected the width of hidden, {hidden.shape[-1]}, "
                f"got shape {tuple(weight.shape)}"
            )
        _check_fits("weight", weight, hidden)
        if bias is not None:
            check_floating("bias", bias)
            if bias.shape != weight.shape[:1]:
                raise ValueError(
                    f"bias: expected shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}"
                )
            _check_fits("bias", bias, hidden)
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.shape = torch.Size((*hidden.shape[:-1], weight.shape[0]))
        self.dtype = _compute_dtype(hidden)
        self.device = hidden.device
        self.temperature = check_positive("temperature", temperature)
        self.softcap = None if softcap is None else check_positive("softcap", softcap)
        self.tile_size = None if tile_size is None else check_int("tile_size", tile_size, 1)

    def in_memory(self) -> Tensor:
        """Return the logits as a tensor: all of them, differentiable to any order."""
        bias = None if self.bias is None else self.bias.to(self.dtype)
        with torch.autocast(self.device.type, enabled=False):
            z = F.linear(self.hidden.to(self.dtype), self.weight.to(self.dtype), bias)
            return self._activated(z)

    def _activated(self, z: Tensor) -> Tensor:
        z = z if self.temperature == 1.0 else z / self.temperature
        return z if self.softcap is None else torch.tanh(z / self.softcap) * self.softcap

    def _shifted(self, offset: Tensor) -> "LinearLogits":
        """Return these logits plus one number per class, (K,)."""
        if self.softcap is not None:
            check_in_memory(self, "one number per class added after a softcap")
        out = copy.copy(self)
        offset = offset.to(self.dtype) * self.temperature  # which the bias is divided by
        out.bias = offset if self.bias is None else self.bias + offset
        return out

    def _row_statistics(
        self, target: Tensor, names: tuple[str, ...], temperature: float | Tensor
    ) -> tuple[Tensor, ...]:
        """Return the statistics of the rows of logits / temperature, of the target's shape."""
        if torch.compiler.is_compiling():
            return _softmax.row_statistics(
                self.in_memory(), target, names, class_dim=-1, temperature=temperature
            )
        temperature = self._check_temperature(temperature)
        self._check_plain(self.hidden, self.weight, self.bias, target)
        y = target.reshape(-1)
        hidden = self.hidden.reshape(len(y), self.hidden.shape[-1])
        plan = self._plan(len(y), temperature)
        out = _Rows.apply(hidden, self.weight, self.bias, y, plan, names)  # type: ignore[no-untyped-call]
        return tuple(x.view(target.shape) for x in out)

    def _hardest_gap(self, target: Tensor) -> Tensor:
        """Return max_{k != y} f_k - f_y, of the target's shape."""
        if torch.compiler.is_compiling():
            return _softmax.hardest_rival(self.in_memory(), target, class_dim=-1)
        self._check_plain(self.hidden, self.weight, self.bias, target)
        y = target.reshape(-1)
        hidden = self.hidden.reshape(len(y), self.hidden.shape[-1])
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            plan = self._plan(len(y), 1.0)
            rival = _rivals(_Tiles(hidden, self.weight, self.bias, y, plan))
            # An absent row's target is 0 here; two logits of every other row are all that is left.
            pair = torch.stack((rival, y.clamp(min=0)), 1)
        with torch.autocast(self.device.type, enabled=False):
            h = torch.where((y < 0).unsqueeze(1), 0.0, hidden.to(self.dtype))
            z = torch.bmm(self.weight[pair].to(self.dtype), h.unsqueeze(2)).squeeze(2)
            z = self._activated(z if self.bias is None else z + self.bias[pair].to(self.dtype))
            gap = torch.where(y < 0, 0.0, z[:, 0] - z[:, 1])
        return gap.view(target.shape)

    def _plan(self, rows: int, temperature: float) -> "_Plan":
        kind = "cpu" if self.device.type == "cpu" else "other"
        num_classes, width = self.weight.shape
        most, held = TILE_BYTES[kind], rows * num_classes * self.dtype.itemsize
        budget = min(most, max(most // 4, held // 16)) // self.dtype.itemsize
        # Of few classes, more rows.
        size = self.tile_size or max(TILE_ROWS[kind], budget // num_classes)
        size = max(1, min(size, rows))
        classes = min(num_classes, budget // size)
        if self.weight.dtype != self.dtype:  # their weights are cast to scratch, too
            classes = min(classes, budget // max(1, width))
        classes = max(1, classes)
        if self.softcap is None:
            return _Plan(1.0 / (self.temperature * temperature), None, size, classes)
        inner = 1.0 / (self.temperature * self.softcap)
        return _Plan(inner, self.softcap / temperature, size, classes)


def _check_fits(name: str, x: Tensor, hidden: Tensor) -> None:
    """Float64 goes with float64; the others are computed in float32 and may be mixed."""
    if _compute_dtype(x) != _compute_dtype(hidden):
        raise TypeError(f"{name}: expected a dtype to go with {hidden.dtype}, got {x.dtype}")
    check_device(name, x, hidden)


class _Plan(NamedTuple):
    """z = (h W^T + b) inner, or outer tanh of that; and the size of a tile."""

    inner: float
    outer: float | None
    rows: int
    classes: int


class _Tiles:
    """Makes z in tiles of rows and of classes, in scratch; rows that are not there are left out."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, plan: _Plan
    ) -> None:
        self.hidden, self.weight, self.bias, self.y, self.plan = hidden, weight, bias, y, plan
        self.dtype = _compute_dtype(hidden)
        self.lowest = torch.finfo(self.dtype).min
        self.index: Tensor | None = None
        # On a device, finding the rows that are there would wait for it: all are taken, cleaned.
        self.clean = not readable(y)
        if not self.clean and bool((y < 0).any()):
            self.index = (y >= 0).nonzero().squeeze(1)
        self.scratch: Tensor | None = None

    def of_rows(self) -> Iterator[tuple[slice | Tensor, Tensor, Tensor]]:
        """Yield which rows, their hidden states times ``inner``, and their targets, (R, 1)."""
        count = len(self.y) if self.index is None else len(self.index)
        for a in range(0, count, self.plan.rows):
            span = slice(a, min(a + self.plan.rows, count))
            rows = span if self.index is None else self.index[span]
            h, j = self.hidden[rows].to(self.dtype), self.y[rows].unsqueeze(1)
            if self.clean:
                h, j = h.masked_fill(j < 0, 0.0), j.clamp(min=0)
            yield rows, h if self.plan.inner == 1.0 else h * self.plan.inner, j

    def at_target(self, h: Tensor, j: Tensor) -> Tensor:
        """Return the targets' own logits, (R, 1)."""
        w = self.weight[j.squeeze(1)].to(self.dtype)
        own = torch.bmm(h.unsqueeze(1), w.unsqueeze(2)).squeeze(2)
        if self.bias is not None:
            own += self.bias[j].to(self.dtype) * self.plan.inner
        return self._capped(own)

    def of_classes(
        self, h: Tensor, j: Tensor, blank: bool = False
    ) -> Iterator[tuple[slice, Tensor, Tensor, "_Target"]]:
        """Yield which classes, their weights, the tile of z, and where in it the targets are.

        The tile is scratch; ``blank`` where z itself is not wanted.
        """
        num_classes = len(self.weight)
        for a in range(0, num_classes, self.plan.classes):
            classes = slice(a, min(a + self.plan.classes, num_classes))
            w = self.weight[classes].to(self.dtype)
            z = self._buffer(len(h), len(w))
            if not blank:
                torch.mm(h, w.t(), out=z)
            if self.bias is not None and not blank:
                z += self.bias[classes].to(self.dtype) * self.plan.inner
            at = j - a
            inside = (at >= 0) & (at < len(w))
            yield (
                classes,
                w,
                z if blank else self._capped(z),
                _Target(at.clamp(0, len(w) - 1), inside),
            )

    def _capped(self, z: Tensor) -> Tensor:
        return z if self.plan.outer is None else z.tanh_().mul_(self.plan.outer)

    def _buffer(self, rows: int, classes: int) -> Tensor:
        if self.scratch is None:  # the first tile is the largest
            self.scratch = torch.empty(rows * classes, dtype=self.dtype, device=self.hidden.device)
        return self.scratch[: rows * classes].view(rows, classes)


class _Target(NamedTuple):
    """Where in a tile the targets are, if they are in it."""

    at: Tensor
    inside: Tensor

    def put(self, z: Tensor, value: Tensor | float) -> None:
        """Write to the targets. Nothing is looked at, so a device is not waited for."""
        z.scatter_(1, self.at, torch.where(self.inside, value, z.gather(1, self.at)))


def _values(tiles: _Tiles, names: tuple[str, ...]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the statistics, and of every row the largest rival m and sum_{k != y} exp(z_k - m).

    Rows that are not there are 0.
    """
    blank = torch.zeros(tiles.y.shape, dtype=tiles.dtype, device=tiles.hidden.device)
    out = {name: blank.clone() for name in names}
    tops, sums = blank.clone(), blank
    rivals = len(tiles.weight) - 1
    shares = not set(names) <= {TARGET, GAPS}
    for rows, h, j in tiles.of_rows():
        own = tiles.at_target(h, j)
        top, least = (own.new_full((len(h),), x) for x in (tiles.lowest, math.inf))
        sum_, squares, total, excess = (torch.zeros_like(top) for _ in range(4))
        for _, _, z, target in tiles.of_classes(h, j) if shares or GAPS in names else ():
            if GAPS in names:
                total += z.sum(1)
            if CHANCE_ODDS in names:
                least = torch.minimum(least, z.amin(1))
                # Rows near chance are rare but in early training: elsewhere this costs nothing.
                near = _near(torch.maximum(top, z.amax(1)), least, own)
                if not readable(near) or bool(near.any()):
                    excess += torch.expm1(z - own).sum(1)
            if shares:
                target.put(z, tiles.lowest)
                here = z.amax(1)
                torch._softmax(z, 1, False, out=z)
                # The largest share is 1 / sum exp(z - here). Where all are -inf it is nan.
                part = torch.where(here == -math.inf, 0.0, z.amax(1).reciprocal_())
                higher = torch.maximum(top, here)
                before, now = torch.exp(top - higher), torch.exp(here - higher)
                sum_ = sum_ * before + part * now
                if RIVAL_SQUARES in names:
                    target.put(z, 0.0)
                    more = torch.where(part > 0.0, z.square_().sum(1) * part.square(), 0.0)
                    squares = squares * before.square() + more * now.square()
                top = higher
        tops[rows], sums[rows] = top, sum_
        at_target = own.squeeze(1)
        t = (top - at_target) + sum_.log()
        gaps = torch.where(at_target == -math.inf, math.inf, total - (rivals + 1) * at_target)
        found = {LOG_ODDS: t, TARGET: at_target, GAPS: gaps, RIVAL_SQUARES: squares / sum_.square()}
        if CHANCE_ODDS in names:
            near = _near(top, least, own)
            small = torch.log1p(torch.where(near, excess / rivals, 0.0))
            found[CHANCE_ODDS] = torch.where(near, small, t - math.log(rivals))
        for name, x in out.items():
            absent = tiles.clean & (tiles.y[rows] < 0)
            x[rows] = torch.where(absent, 0.0, found[name])
    return out, tops, sums


def _rivals(tiles: _Tiles) -> Tensor:
    """Return the index of the largest rival of every row; rows that are not there have any."""
    out = torch.zeros_like(tiles.y)
    for rows, h, j in tiles.of_rows():
        top = h.new_full((len(h),), -math.inf)
        # Where all rivals are at -inf, one of them.
        index = (j == 0).to(out.dtype).squeeze(1)
        for classes, _, z, target in tiles.of_classes(h, j):
            target.put(z, -math.inf)
            here, at = z.max(1)
            higher = here > top
            top, index = torch.maximum(top, here), torch.where(higher, at + classes.start, index)
        out[rows] = index
    return out


def _near(top: Tensor, least: Tensor, own: Tensor) -> Tensor:
    """Tell which rows are near chance, as far as they have been seen."""
    own = own.squeeze(1)
    return (top - own <= NEAR_CHANCE) & (least - own >= -NEAR_CHANCE)


def _gradients(
    tiles: _Tiles,
    tops: Tensor,
    sums: Tensor,
    squares: Tensor | None,
    given: dict[str, Tensor],
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of sum_j <g_j, statistic j> in hidden, weight and bias, if needed.

    That of the sum of squares q in z_k is 2 r_k (r_k - q), for the share r_k of a rival.
    """
    hidden, weight, bias, plan = tiles.hidden, tiles.weight, tiles.bias, tiles.plan
    by_hidden = torch.zeros_like(hidden) if needed[0] else None
    by_weight = torch.zeros_like(weight, dtype=tiles.dtype) if needed[1] else None
    by_bias = None
    if needed[2] and bias is not None:
        by_bias = torch.zeros_like(bias, dtype=tiles.dtype)

    def coefficient(rows: slice | Tensor, *wanted: str) -> Tensor | None:
        """Return what multiplies the gradient of some statistics, (R, 1)."""
        gs = [given[n][rows].unsqueeze(1) for n in wanted if n in given]
        if not gs:
            return None
        g = sum(gs[1:], gs[0]) * (1.0 if plan.outer is None else plan.outer)
        return torch.where(tiles.y[rows].unsqueeze(1) < 0, 0.0, g) if tiles.clean else g

    for rows, h, j in tiles.of_rows():
        slope, bow = coefficient(rows, LOG_ODDS, CHANCE_ODDS), coefficient(rows, RIVAL_SQUARES)
        towards, level = coefficient(rows, TARGET), coefficient(rows, GAPS)
        at_target = h.new_zeros(()) if towards is None else towards
        at_target = at_target if slope is None else at_target - slope
        at_target = at_target if level is None else at_target - len(weight) * level
        if bow is not None and squares is not None:
            bow = 2 * bow
            slope = -bow * squares[rows].unsqueeze(1) + (0.0 if slope is None else slope)
        top, share = tops[rows].unsqueeze(1), sums[rows].unsqueeze(1).reciprocal()
        acc = None if by_hidden is None else torch.zeros_like(h)
        # The total and the target's own logit are linear: their gradient needs no logits.
        linear = slope is None and plan.outer is None
        for classes, w, z, target in tiles.of_classes(h, j, linear):
            bend = None if plan.outer is None else 1.0 - (z / plan.outer).square()
            if slope is None:
                z.zero_()
            elif bow is None:
                z.sub_(top).exp_().mul_(slope * share)
            else:
                z.sub_(top).exp_().mul_(share)
                z.mul_(z * bow + slope)
            target.put(z, at_target)
            if level is not None:
                z += level
            if bend is not None:
                z *= bend
            if acc is not None:
                acc.addmm_(z, w)
            if by_weight is not None:
                by_weight[classes].addmm_(z.t(), h)
            if by_bias is not None:
                by_bias[classes] += z.sum(0)
        if acc is not None and by_hidden is not None:
            by_hidden[rows] = acc.mul_(plan.inner).to(hidden.dtype)
    return (
        by_hidden,
        None if by_weight is None else by_weight.to(weight.dtype),
        None if by_bias is None or bias is None else by_bias.mul_(plan.inner).to(bias.dtype),
    )


class _Rows(torch.autograd.Function):
    """The statistics of every row. Saves its inputs and two numbers a row."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor,
        plan: _Plan,
        names: tuple[str, ...],
    ) -> tuple[Tensor, ...]:
        with torch.autocast(hidden.device.type, enabled=False):
            out, tops, sums = _values(_Tiles(hidden, weight, bias, y, plan), names)
        ctx.plan, ctx.names = plan, names
        ctx.save_for_backward(hidden, weight, bias, y, tops, sums, out.get(RIVAL_SQUARES))
        return tuple(out[name] for name in names)

    @staticmethod
    def backward(ctx: Any, *gs: Tensor) -> tuple[Tensor | None, ...]:
        LinearLogits._check_gradients(gs)
        needed = ctx.needs_input_grad[:3]
        out = _RowsGradient.apply(*ctx.saved_tensors, ctx.plan, ctx.names, needed, *gs)  # type: ignore[no-untyped-call]
        return (*cast(tuple[Tensor | None, ...], out), None, None, None)


class _RowsGradient(torch.autograd.Function):
    """The gradient of the statistics: a Function, so that its own derivative can be refused."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor,
        tops: Tensor,
        sums: Tensor,
        squares: Tensor | None,
        plan: _Plan,
        names: tuple[str, ...],
        needed: tuple[bool, bool, bool],
        *gs: Tensor,
    ) -> tuple[Tensor | None, ...]:
        with torch.autocast(hidden.device.type, enabled=False):
            tiles = _Tiles(hidden, weight, bias, y, plan)
            given = dict(zip(names, gs, strict=True))
            return _gradients(tiles, tops, sums, squares, given, needed)

    @staticmethod
    def backward(ctx: Any, *gs: Tensor) -> tuple[Tensor | None, ...]:
        LinearLogits._refuse_second()


class ShardedLogits(Layout):
    r"""Logits whose classes are spread over processes: the sharded layout (vocabulary-parallel).

    .. math:: f = (f^{(0)}, \dots, f^{(W-1)}), \qquad
              f^{(r)} \text{ with the classes of process } r

    Stands where a tensor of logits may stand: ``loss(ShardedLogits(local_logits), target)``, with
    the same rows and targets, of all classes, on every process. The largest rival, the sum over
    the rivals and the target's logit are exchanged, a number each per row, in two collectives; the
    gradient needs none. Every loss takes it that takes :class:`LinearLogits`.

    Args:
        local_logits: those of the classes of this process, the classes last: (..., K_r), K_r >= 1.
            Process r of the group holds the classes that follow those of process r - 1.
        process_group: the processes that share the classes. Default: the default group; without
            one, this process alone.
        sizes: K_r of every process of the group. Default: asked of all of them, in a collective of
            its own, which reads numbers on the host: give them where that is too slow.

    Shape:
        Stands for logits (..., K), K the sum of all K_r, the classes last, whatever the loss's
        ``class_dim`` says; the target is of shape (...), class indices only.

    Properties:
        Value and gradient are those of all logits in one process, to rounding. The value is the
        same on every process of the group, and the gradient in ``local_logits`` is that of one
        process in these logits: a trainer must not average it over the group.

    Limits:
        One process: the logits in memory. First order only: a second derivative,
        ``torch.func``, ``is_grads_batched`` and forward mode raise a RuntimeError. Not for
        ``torch.compile``.

    Raises:
        ValueError: ``local_logits`` without a class, ``sizes`` that do not fit them or the group,
            fewer than 2 classes in all, a process group that this process is not in, another
            number of rows or dtype than on other processes (where ``sizes`` are asked).
        TypeError: ``local_logits`` not a floating-point tensor, or a DTensor, whose ``to_local()``
            is meant where it is sharded on the class axis.

    Reference:
        Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model
        Parallelism", 2019, section 3.

    Example:
        >>> import torch
        >>> from lossary import LDRKLLoss, ShardedLogits
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> LDRKLLoss()(ShardedLogits(logits), torch.tensor([0, 2]))  # a group of one process
        tensor(0.0199)
    """

    _advice = "gather the logits for that"

    def __init__(
        self,
        local_logits: Tensor,
        process_group: Any = None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        local_logits, process_group = _of_dtensor(local_logits, process_group)
        check_floating("local_logits", local_logits)
        if local_logits.dim() == 0 or local_logits.shape[-1] == 0:
            shape = tuple(local_logits.shape)
            raise ValueError(f"local_logits: expected at least one class, got shape {shape}")
        _distributed.check_group(process_group)
        rank, own = _distributed.rank_in(process_group), local_logits.shape[-1]
        world = _distributed.world_size(process_group)
        if sizes is None:
            sizes = _asked_sizes(local_logits, process_group)
        sizes = [check_int("sizes", n, 1) for n in sizes]
        if len(sizes) != world or sizes[rank] != own:
            raise ValueError(f"sizes: expected {world} numbers, {own} at place {rank}, got {sizes}")
        if sum(sizes) < 2:
            raise ValueError("local_logits: expected at least 2 classes in all, got 1")
        self.local_logits, self.process_group = local_logits, process_group
        self.first = sum(sizes[:rank])
        self.shape = torch.Size((*local_logits.shape[:-1], sum(sizes)))
        self.dtype = _compute_dtype(local_logits)
        self.device = local_logits.device

    def _shifted(self, offset: Tensor) -> "ShardedLogits":
        """Return these logits plus one number per class, (K,), of all classes."""
        out = copy.copy(self)
        own = offset[self.first : self.first + self.local_logits.shape[-1]]
        out.local_logits = self.local_logits + own.to(self.dtype)
        return out

    def _row_statistics(
        self, target: Tensor, names: tuple[str, ...], temperature: float | Tensor
    ) -> tuple[Tensor, ...]:
        """Return the statistics of the rows of logits / temperature, of the target's shape."""
        temperature = self._check_temperature(temperature)
        self._check_plain(self.local_logits, target)
        y = target.reshape(-1)
        f = self.local_logits.reshape(len(y), self.local_logits.shape[-1])
        shard = _Shard(self.first, self.shape[-1], 1.0 / temperature, self.process_group)
        out = _ShardedRows.apply(f, y, shard, names)  # type: ignore[no-untyped-call]
        return tuple(x.view(target.shape) for x in out)

    def _hardest_gap(self, target: Tensor) -> Tensor:
        """Return max_{k != y} f_k - f_y, of the target's shape."""
        self._check_plain(self.local_logits, target)
        y = target.reshape(-1)
        f = self.local_logits.reshape(len(y), self.local_logits.shape[-1])
        shard = _Shard(self.first, self.shape[-1], 1.0, self.process_group)
        rival, own = torch.zeros_like(y), torch.zeros_like(y)
        top = torch.empty(len(y), dtype=self.dtype, device=self.device)
        inside = torch.empty_like(y, dtype=torch.bool)
        with torch.no_grad():
            for rows, z, at in _shard_tiles(f, y, shard):
                own[rows], inside[rows] = at.at.squeeze(1), at.inside.squeeze(1)
                at.put(z, -math.inf)
                top[rows], rival[rows] = z.max(1)
        pair = f.gather(1, torch.stack((rival, own), 1)).to(self.dtype)
        at_target = torch.where(inside, pair[:, 1], 0.0)
        highest = _distributed.largest_over_ranks(top, self.process_group)
        # Processes whose rivals tie share the gradient.
        has = top == highest
        sums = torch.stack((at_target.detach(), has.to(self.dtype)))
        whole, ties = _distributed.sum_over_ranks(sums, self.process_group)
        part = torch.where(has, pair[:, 0] / ties, 0.0) - at_target
        # The own part has the gradient; the value is that of all processes.
        slope = torch.where(part.isfinite() & (y >= 0), part - part.detach(), 0.0)
        return torch.where(y < 0, 0.0, highest - whole + slope).view(target.shape)


class _Shard(NamedTuple):
    """The first class of this process, the number of all classes, 1/temperature, the group."""

    first: int
    num_classes: int
    scale: float
    group: Any


def _asked_sizes(x: Tensor, group: Any) -> list[int]:
    """Return how many classes every process has, all of them of the same rows."""
    kind = _distributed.kind(x, math.prod(x.shape[:-1]))
    every = _distributed.gather_ints([x.shape[-1], *kind], x.device, group)
    if any(found[1:] != every[0][1:] for found in every):
        raise ValueError(
            "local_logits: expected the same rows, of one dtype, on all processes, got numbers of "
            f"rows {[found[1] for found in every]}, here {x.dtype}"
        )
    return [found[0] for found in every]


def _of_dtensor(x: Any, group: Any) -> tuple[Any, Any]:
    """Return the local part and the group of a DTensor that is sharded on the class axis."""
    if not hasattr(x, "placements"):
        return x, group
    split = [i for i, p in enumerate(x.placements) if not p.is_replicate()]
    if len(split) != 1 or not x.placements[split[0]].is_shard(x.dim() - 1) or group is not None:
        raise TypeError(
            "local_logits: expected a tensor, or a DTensor sharded on the class axis alone and no "
            f"process_group, got {x.placements}"
        )
    return x.to_local(), x.device_mesh.get_group(split[0])


def _shard_tiles(f: Tensor, y: Tensor, shard: _Shard) -> Iterator[tuple[slice, Tensor, _Target]]:
    """Yield tiles of rows of the scaled logits, 0 in rows that are not there, and the targets."""
    dtype = _compute_dtype(f)
    kind = "cpu" if f.device.type == "cpu" else "other"
    step = max(1, TILE_BYTES[kind] // (f.shape[1] * dtype.itemsize))
    at = (y - shard.first).unsqueeze(1)
    inside = (at >= 0) & (at < f.shape[1])  # -1, not there, is in none
    at = at.clamp(0, f.shape[1] - 1)
    for a in range(0, len(y), step):
        rows = slice(a, a + step)
        z = f[rows].to(dtype).masked_fill(y[rows].unsqueeze(1) < 0, 0.0)
        yield rows, z.mul_(shard.scale), _Target(at[rows], inside[rows])


class _ShardedRows(torch.autograd.Function):
    """The statistics of every row, of all classes. Saves its inputs and two numbers a row."""

    @staticmethod
    def forward(
        ctx: Any, f: Tensor, y: Tensor, shard: _Shard, names: tuple[str, ...]
    ) -> tuple[Tensor, ...]:
        dtype = _compute_dtype(f)
        ends = torch.empty(2, len(y), dtype=dtype, device=f.device)
        for rows, z, target in _shard_tiles(f, y, shard):
            ends[1, rows] = -z.amin(1)
            target.put(z, torch.finfo(dtype).min)
            ends[0, rows] = z.amax(1)
        top, least = _distributed.largest_over_ranks(ends, shard.group)
        # sum_{k != y} exp(z_k - top), the same of its square and of expm1, z_y, sum_k (z_k - top).
        sums = torch.zeros(5, len(y), dtype=dtype, device=f.device)
        for rows, z, target in _shard_tiles(f, y, shard):
            own = torch.where(target.inside, z.gather(1, target.at), 0.0)
            z -= top[rows].unsqueeze(1)
            sums[3, rows] = own.squeeze(1)
            if GAPS in names:
                sums[4, rows] = z.sum(1)
            if CHANCE_ODDS in names:
                target.put(z, 0.0)
                sums[2, rows] = z.expm1().sum(1)
            target.put(z, -math.inf)
            sums[0, rows] = z.exp_().sum(1)
            if RIVAL_SQUARES in names:
                sums[1, rows] = z.square_().sum(1)
        part, squares, excess, own, total = _distributed.sum_over_ranks(sums, shard.group)
        t = (top - own) + part.log()
        gaps = total + shard.num_classes * (top - own)
        gaps = torch.where(own == -math.inf, math.inf, gaps)
        squares = squares / part.square()
        found = {LOG_ODDS: t, TARGET: own, GAPS: gaps, RIVAL_SQUARES: squares}
        if CHANCE_ODDS in names:
            rivals = shard.num_classes - 1
            gap = top - own
            near = (gap <= NEAR_CHANCE) & (own + least <= NEAR_CHANCE)
            small = gap + torch.log1p(torch.where(near, excess / rivals, 0.0))
            found[CHANCE_ODDS] = torch.where(near, small, t - math.log(rivals))
        ctx.shard, ctx.names = shard, names
        ctx.save_for_backward(f, y, top, part, squares if RIVAL_SQUARES in names else None)
        return tuple(torch.where(y < 0, 0.0, found[name]) for name in names)

    @staticmethod
    def backward(ctx: Any, *gs: Tensor) -> tuple[Tensor | None, ...]:
        ShardedLogits._check_gradients(gs)
        out = _ShardedGradient.apply(*ctx.saved_tensors, ctx.shard, ctx.names, *gs)  # type: ignore[no-untyped-call]
        return cast(Tensor, out), None, None, None


class _ShardedGradient(torch.autograd.Function):
    """The gradient in the local logits, which needs no other process."""

    @staticmethod
    def forward(
        ctx: Any,
        f: Tensor,
        y: Tensor,
        top: Tensor,
        part: Tensor,
        squares: Tensor | None,
        shard: _Shard,
        names: tuple[str, ...],
        *gs: Tensor,
    ) -> Tensor:
        given = dict(zip(names, gs, strict=True))
        zero = torch.zeros_like(top)
        slope = given.get(LOG_ODDS, zero) + given.get(CHANCE_ODDS, zero)
        towards, level = given.get(TARGET, zero), given.get(GAPS, zero)
        at_target = towards - slope - (shard.num_classes - 1) * level
        bow = 2 * given.get(RIVAL_SQUARES, zero)
        if squares is not None:
            slope = slope - bow * squares
        slope, at_target, level, bow = (
            (torch.where(y < 0, 0.0, g) * shard.scale).unsqueeze(1)
            for g in (slope, at_target, level, bow)
        )
        out = torch.empty_like(f)
        for rows, z, target in _shard_tiles(f, y, shard):
            z -= top[rows].unsqueeze(1)
            target.put(z, -math.inf)  # the target's own may be far above the largest rival
            # 0 only where all rivals are at -inf: then every share is 0, not 0/0.
            share = part[rows].clamp(min=torch.finfo(part.dtype).tiny).reciprocal()
            z.exp_().mul_(share.unsqueeze(1))
            z.mul_(slope[rows] if squares is None else z * bow[rows] + slope[rows])
            z.add_(level[rows])
            target.put(z, at_target[rows])
            out[rows] = z.to(f.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, *gs: Tensor) -> tuple[Tensor | None, ...]:
        ShardedLogits._refuse_second()
