"""Losses of a residual: of every element, or of the norm of every sample.

Such a loss is rho(|r|; c), with a residual r and a scale c > 0, and a :class:`Kernel` says what rho
is. Numbers of any size are computed as multiples of a size m of their own, r = m a and c = m q, so
that no square overflows or vanishes; m drops out of the loss and of all its derivatives.

Three paths give the same numbers. Small inputs: stock operations, as long as the numbers are
ordinary. Large ones: the closed form in tiles that stay in the cache, which holds one buffer of the
input's size, the gradient. Under torch.compile: stock operations written so that they fuse.
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from lossary._softmax import (
    _differentiable,
    _has_tangent,
    _is_legacy_batched,
    _is_wrapped,
    readable,
)

#: What a call returns: the sum over all elements, one value per element, one value per sample.
TOTAL, ELEMENTS, SAMPLES = "total", "elements", "samples"

#: Below this many bytes of input, stock operations beat the tiled Function's call overhead.
TILED_FROM_BYTES = 2 << 20
#: Residuals of one tile at most; down to an eighth of it for inputs beside which it would be large.
#: On a CPU: two of them fit into the caches, and calls cost little. On an accelerator: fill it.
TILE_BYTES = {"cpu": 2 << 20, "other": 64 << 20}

Scale = float | Tensor

#: A scale within these bounds is the unit of all residuals that are at most so many times as large.
_ORDINARY = (2.0**-50, 2.0**50)


class Kernel:
    """What the paths need to know of a loss, in units of any m: r = m a, c = m q, s = |a|^2.

    ::

        loss                   value(m^degree s, s, c, m)
        gradient               a weight(s, q) m^(degree - 1)
        Hessian, applied to v  (v - a <a, v> bend(s, q)) weight(s, q) m^(degree - 2)
    """

    #: The loss is homogeneous: rho(k r; k c) = k^degree rho(r; c).
    degree: ClassVar[int]
    #: Whether the gradient at infinity is the unit vector; else it is 0. The value there is inf.
    steep: ClassVar[bool]

    @staticmethod
    def value(square: Tensor, s: Tensor, c: Scale, m: Scale) -> Tensor:
        """Return the loss, from stock operations that can be differentiated to any order.

        ``square`` is m^degree s, of which s itself may have vanished.
        """
        raise NotImplementedError

    @staticmethod
    def weight(s: Tensor, q: Scale) -> Tensor:
        """Return rho'(|a|; q) / |a|, likewise."""
        raise NotImplementedError

    @staticmethod
    def bend(s: Tensor, q: Scale) -> Tensor:
        """Return -w'(|a|; q) / (|a| w) for the weight w, likewise."""
        raise NotImplementedError

    @classmethod
    def elements(cls, r: Tensor, c: float) -> Tensor:
        """Return the loss of every element. A kernel may know a form that fuses to less work."""
        return _value(cls, r, c, ELEMENTS)

    # The fewest passes over a tile on a CPU. They are called with scales whose square is a normal
    # number, and may refuse residuals whose square is not: the slower forms above then take over.

    @staticmethod
    def tile_values(r: Tensor, out: Tensor, c: float) -> bool:
        """Put the loss of every element into ``out``; what is not finite there is done again."""
        return False

    @classmethod
    def tile_sum(cls, r: Tensor, scratch: Tensor, c: float) -> float:
        """Return the sum over the elements, with ``r`` as it was; not finite: it is done again."""
        return float(scratch.sum()) if cls.tile_values(r, scratch, c) else math.nan

    @staticmethod
    def tile_gradient(r: Tensor, scratch: Tensor, c: float, g: float) -> bool:
        """Put g times the derivative at every element into ``r``, or leave ``r`` as it is."""
        return False


def robust_loss(kernel: type[Kernel], input: Tensor, target: Tensor, c: Scale, mode: str) -> Tensor:
    """Return the loss of ``input - target``, in the wider dtype of the two, float32 at least.

    Args:
        kernel: which loss.
        input: any shape; for SAMPLES with at least one axis.
        target: of the same shape and device.
        c: a number, or a tensor that broadcasts to the values.
        mode: TOTAL, ELEMENTS or SAMPLES.
    """
    dtype = _compute_dtype(input, target)
    if isinstance(c, Tensor) and c.numel() == 1 and readable(input) and not _differentiable(c):
        c = float(c)
    # So that c and 1/c, and some multiples of them, are normal numbers.
    low, high = torch.finfo(dtype).tiny * 16.0, torch.finfo(dtype).max / 16.0
    c = c.to(dtype).clamp(low, high) if isinstance(c, Tensor) else min(max(c, low), high)
    r = unit = None
    if _has_closed_form(input, target, c):
        small = input.numel() * input.element_size() < TILED_FROM_BYTES
        if small:
            r = _residual(input, target)
            unit = _common_unit(r, c)
        # Autograd would multiply and divide by numbers that the closed form never makes.
        if not small or (unit is None and readable(input)):
            out: Tensor = _Value.apply(input, target, c, kernel, mode)  # type: ignore[no-untyped-call]
            return out
    r = _residual(input, target) if r is None else r
    if unit is None and mode != SAMPLES and not isinstance(c, Tensor):
        values = kernel.elements(r, c)
    else:
        values = _value(kernel, r, c, mode, unit)
    return values.sum() if mode == TOTAL else values


def _compute_dtype(input: Tensor, target: Tensor) -> torch.dtype:
    wider = torch.promote_types(input.dtype, target.dtype)
    return wider if wider == torch.float64 else torch.float32


def _residual(input: Tensor, target: Tensor) -> Tensor:
    dtype = _compute_dtype(input, target)
    return input.to(dtype) - target.to(dtype)


def _has_closed_form(input: Tensor, target: Tensor, c: Scale) -> bool:
    if torch.compiler.is_compiling() or input.numel() == 0 or input.device.type == "meta":
        return False
    for x in (input, target):
        # Torch takes the jvp of a Function for a constant under a second forward-mode derivative.
        plain = type(x) in (Tensor, torch.nn.Parameter)
        if not plain or _is_legacy_batched(x) or _has_tangent(x):
            return False
        if isinstance(c, Tensor) and (_is_wrapped(x) or _differentiable(c)):
            return False
    return True


# Stock operations: differentiable to any order, and the definition that the tiles must equal.


def _common_unit(r: Tensor, c: Scale) -> float | None:
    """Return the scale, if it is a unit in which no square overflows and it is known to be one."""
    if isinstance(c, Tensor) or not _ORDINARY[0] <= c <= _ORDINARY[1] or not readable(r):
        return None
    return c if float(r.detach().abs().max()) <= c * _ORDINARY[1] else None


def _rows(r: Tensor) -> Tensor:
    return r.reshape(r.shape[0], math.prod(r.shape[1:]))


def _in_units(
    r: Tensor, c: Scale, mode: str, unit: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Scale, Scale, Tensor | None]:
    """Return r, a, s, c, m, and where the residual is infinite, with the samples on axis 0.

    m is the unit given, or else the larger of residual and scale. What is infinite has no unit, and
    is left out.
    """
    if mode == SAMPLES:
        r = _rows(r)
        c = c.expand(len(r)).unsqueeze(1) if isinstance(c, Tensor) else c
    infinite = None
    m: Scale | None = unit
    if m is None:
        infinite = r.isinf()
        if not readable(infinite) or bool(infinite.any()):
            lost = infinite.any(1, keepdim=True) if mode == SAMPLES else infinite
            r = torch.where(lost, 0.0, r)
        else:
            infinite = None
        top = r.detach().abs()
        if mode == SAMPLES:
            top = (top.amax if top.shape[1] else top.sum)(1, keepdim=True)
        m = torch.maximum(top, c.detach()) if isinstance(c, Tensor) else top.clamp(min=c)
    a = r / m
    s = a * a
    return r, a, s.sum(1, keepdim=True) if mode == SAMPLES else s, c, m, infinite


def _value(
    kernel: type[Kernel], r: Tensor, c: Scale, mode: str, unit: float | None = None
) -> Tensor:
    """Return the values, with one unit for all where one is known that suits them."""
    part, a, s, scale, m, infinite = _in_units(r, c, mode, unit)
    square = s
    if kernel.degree > 0:
        square = part * (a if kernel.degree == 1 else part)
        square = square.sum(1, keepdim=True) if mode == SAMPLES else square
    values = kernel.value(square, s, scale, m)
    values = values.squeeze(1) if mode == SAMPLES else values
    if infinite is not None:
        tail = _rows(r) if mode == SAMPLES else r
        tail = torch.where(infinite, tail if kernel.steep else tail.detach(), 0.0).abs()
        values = values + ((tail * _share(infinite)).sum(1) if mode == SAMPLES else tail)
    return values


def _share(infinite: Tensor) -> Tensor:
    """Return the length of each component of a unit vector along the infinite elements."""
    return infinite.sum(1, keepdim=True).clamp(min=1).rsqrt()


def _slope(kernel: type[Kernel], r: Tensor, c: Scale, mode: str) -> Tensor:
    """Return the derivative of the loss in every element of the residual."""
    _, a, s, c, m, infinite = _in_units(r, c, mode)
    slope = _times_power(a * kernel.weight(s, c / m), m, kernel.degree - 1)
    if infinite is not None and kernel.steep:
        tail = _rows(r).sign() * _share(infinite) if mode == SAMPLES else r.sign()
        slope = torch.where(infinite, tail, slope)
    return slope.view(r.shape)


def _curve(kernel: type[Kernel], r: Tensor, c: Scale, mode: str, g: Tensor, v: Tensor) -> Tensor:
    """Return the Hessian of the g-weighted loss in the residual, applied to v."""
    _, a, s, c, m, _ = _in_units(r, c, mode)
    w = _rows(v) if mode == SAMPLES else v
    along = (a * w).sum(1, keepdim=True) if mode == SAMPLES else a * w
    q = c / m
    curve = (w - a * (along * kernel.bend(s, q))) * kernel.weight(s, q)
    return _times_power(curve, m, kernel.degree - 2).view(r.shape) * _like(g, r, mode)


def _times_power(x: Tensor, m: Scale, power: int) -> Tensor:
    """Return x m^power: step by step, as m^power itself may overflow."""
    for _ in range(abs(power)):
        x = x * m if power > 0 else x / m
    return x


def _like(g: Tensor, r: Tensor, mode: str) -> Tensor:
    """Return the cotangent of the values in a shape that broadcasts to the residual."""
    g = g.to(r.dtype)
    return g.view(-1, *[1] * (r.dim() - 1)) if mode == SAMPLES else g


def _push(kernel: type[Kernel], r: Tensor, c: Scale, mode: str, v: Tensor) -> Tensor:
    """Return the derivative of the loss in the direction v."""
    out = _slope(kernel, r, c, mode) * v
    if mode == TOTAL:
        return out.sum()
    return _rows(out).sum(1) if mode == SAMPLES else out


def _pull(
    kernel: type[Kernel], r: Tensor, c: Scale, mode: str, dtype: torch.dtype, g: Tensor
) -> Tensor:
    """Return the gradient of the g-weighted loss: the transpose of _push."""
    return (_slope(kernel, r, c, mode) * _like(g, r, mode)).to(dtype)


# The closed form in tiles. The gradient is a Function of its own, so that first-order backward
# stays tiled under create_graph and torch.func; only what lies beyond is made of stock operations.


def _blocks(shape: torch.Size, size: int) -> Iterator[tuple[slice, ...]]:
    """Yield the places of the blocks of at most ``size`` elements that a shape is cut into."""
    if not shape:
        yield ()
        return
    step = max(1, size // math.prod(shape[1:]))
    for start in range(0, shape[0], step):
        for rest in _blocks(shape[1:], size):
            yield (slice(start, start + step), *rest)


def _flat(keep: int, *xs: Tensor) -> tuple[Tensor, ...]:
    """View dense tensors of one layout with all axes from ``keep`` on as one."""
    first = xs[0]
    order = sorted(range(keep, first.dim()), key=first.stride, reverse=True)
    shape = (*first.shape[:keep], math.prod(first.shape[keep:]))
    try:
        return tuple(x.permute((*range(keep), *order)).view(shape) for x in xs)
    except RuntimeError:  # layouts that differ, or gaps: blocks of any shape do as well
        return xs


class _Tiles:
    """Two buffers of one tile each, and what holds for all tiles."""

    def __init__(self, input: Tensor, target: Tensor, c: Scale) -> None:
        self.dtype = _compute_dtype(input, target)
        most = TILE_BYTES.get(input.device.type, TILE_BYTES["other"])
        nbytes = input.numel() * input.element_size()
        # Beside the gradient there is one buffer where that has the dtype computed in, else two.
        share = nbytes // (16 if input.dtype == self.dtype else 32)
        self.size = max(1, min(most, max(most // 8, share)) // self.dtype.itemsize)
        # On a device, looking at the residuals would wait for it.
        self.looks = input.is_cpu
        info = torch.finfo(self.dtype)
        self.fast = (
            self.looks
            and not isinstance(c, Tensor)
            and info.tiny / info.eps <= c * c <= info.max / 4.0
        )
        #: A sum of squares between these has lost nothing that matters.
        self.sound = (info.tiny / info.eps**2, info.max / 4.0)
        self.buffers: dict[int, Tensor] = {}

    def buffer(self, i: int, like: Tensor) -> Tensor:
        held = self.buffers.get(i)
        if held is None or held.numel() < like.numel():
            held = torch.empty(like.numel(), dtype=self.dtype, device=like.device)
            self.buffers[i] = held
        return held[: like.numel()].view(like.shape)

    def place(self, i: int, out: Tensor) -> Tensor:
        """Return ``out`` to work in where it has the right dtype and layout, else a buffer."""
        return out if out.dtype == self.dtype and out.is_contiguous() else self.buffer(i, out)

    def load(self, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
        """Put the residual into ``r``: of the inputs as they are, rounded once."""
        if x.dtype == y.dtype == self.dtype:
            return torch.sub(x, y, out=r)
        return r.copy_(x).sub_(y if y.dtype == self.dtype else self.buffer(1, y).copy_(y))

    def square_sums(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the sum of squares of every row, or ``None`` where one of them is not sound."""
        if not self.fast:
            return None
        s = torch.zeros(len(x), dtype=self.dtype)
        for at in _blocks(x.shape, self.size):
            s += _rows(self.load(x[at], y[at], self.buffer(0, x[at])).square_()).sum(1)
        low, high = torch.aminmax(s)
        return s if float(low) > self.sound[0] and float(high) < self.sound[1] else None


def _tiled_total(kernel: type[Kernel], input: Tensor, target: Tensor, c: Scale) -> Tensor:
    tiles = _Tiles(input, target, c)
    x, y, *scales = _flat(0, input, target, *_expanded(c, input))
    total = torch.zeros((), dtype=torch.float64 if tiles.looks else tiles.dtype, device=x.device)
    for at in _blocks(x.shape, tiles.size):
        r = tiles.load(x[at], y[at], tiles.buffer(0, x[at]))
        part: Scale = math.nan
        if tiles.fast:
            part = kernel.tile_sum(r, tiles.buffer(1, r), float(c))
        if not math.isfinite(part):
            part = _value(kernel, r, scales[0][at] if scales else c, ELEMENTS).sum()
        total += part
    return total.to(tiles.dtype)


def _tiled_elements(kernel: type[Kernel], input: Tensor, target: Tensor, c: Scale) -> Tensor:
    tiles = _Tiles(input, target, c)
    out = torch.empty_like(input, dtype=tiles.dtype)
    x, y, puts, *scales = _flat(0, input, target, out, *_expanded(c, input))
    for at in _blocks(x.shape, tiles.size):
        block = puts[at]
        r = tiles.load(x[at], y[at], tiles.buffer(0, block))
        values = tiles.place(1, block)
        done = tiles.fast and kernel.tile_values(r, values, float(c))
        if not (done and math.isfinite(values.sum())):
            values.copy_(_value(kernel, r, scales[0][at] if scales else c, ELEMENTS))
        if values is not block:
            block.copy_(values)
    return out


def _expanded(c: Scale, input: Tensor) -> tuple[Tensor, ...]:
    return (c.expand(input.shape),) if isinstance(c, Tensor) else ()


def _tiled_gradient_of_elements(
    kernel: type[Kernel], input: Tensor, target: Tensor, c: Scale, out: Tensor, g: Tensor
) -> Tensor:
    tiles = _Tiles(input, target, c)
    if not any(g.stride()):  # one number for all, as a sum over the values hands back
        g = g[(0,) * g.dim()]
    each = (g,) if g.dim() else ()
    factor: Scale = 1.0 if each else float(g) if tiles.looks else g
    x, y, puts, *more = _flat(0, input, target, out, *each, *_expanded(c, input))
    for at in _blocks(x.shape, tiles.size):
        block = puts[at]
        r = tiles.load(x[at], y[at], tiles.place(0, block))
        if not (
            tiles.fast and kernel.tile_gradient(r, tiles.buffer(1, r), float(c), float(factor))
        ):
            r.copy_(_slope(kernel, r, more[-1][at] if isinstance(c, Tensor) else c, ELEMENTS)).mul_(
                factor
            )
        if each:
            r.mul_(more[0][at])
        if r is not block:
            block.copy_(r)
    return out


def _tiled_samples(
    kernel: type[Kernel], input: Tensor, target: Tensor, c: Scale, out: Tensor, g: Tensor | None
) -> Tensor:
    """Put the value of every sample into ``out``, or, given their cotangent, the gradient."""
    tiles = _Tiles(input, target, c)
    x, y, *puts = _flat(1, input, target, *([] if g is None else [out]))
    step = max(1, tiles.size // math.prod(x.shape[1:]))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        xs, ys = x[rows], y[rows]
        scale = c.expand(len(x))[rows] if isinstance(c, Tensor) else c
        s = tiles.square_sums(xs, ys)
        if s is None:
            r = tiles.load(xs, ys, tiles.buffer(0, xs))
            if g is None:
                out[rows] = _value(kernel, r, scale, SAMPLES)
            else:
                puts[0][rows] = _pull(kernel, r, scale, SAMPLES, out.dtype, g[rows])
        elif g is None:
            out[rows] = kernel.value(s, s, scale, 1.0)
        else:
            factor = kernel.weight(s, scale) * g[rows]
            for at in _blocks(xs.shape, tiles.size):
                block = puts[0][rows][at]
                r = tiles.load(xs[at], ys[at], tiles.place(0, block))
                r.mul_(_like(factor, r, SAMPLES))
                if r is not block:
                    block.copy_(r)
    return out


def _fold(info: Any, dims: tuple[int | None, ...], *xs: Tensor) -> list[Tensor]:
    """Bring the vmapped axis of every argument to the front; expand those that have none."""
    return [
        x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(xs, dims, strict=True)
    ]


class _Value(torch.autograd.Function):
    """The loss. Saves its inputs and nothing else."""

    @staticmethod
    def forward(input: Tensor, target: Tensor, c: Scale, kernel: type[Kernel], mode: str) -> Tensor:
        if mode == TOTAL:
            return _tiled_total(kernel, input, target, c)
        if mode == ELEMENTS:
            return _tiled_elements(kernel, input, target, c)
        out = input.new_empty(len(input), dtype=_compute_dtype(input, target))
        return _tiled_samples(kernel, input, target, c, out, None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, inputs, None)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        input, target, c, kernel, mode, _ = _saved(ctx)
        for_input, for_target = ctx.needs_input_grad[:2]
        if not for_input:
            alone = _gradient(input, target, c, kernel, mode, target.dtype, -g)
            return None, alone, None, None, None
        both = torch.promote_types(input.dtype, target.dtype)
        dx = _gradient(input, target, c, kernel, mode, both if for_target else input.dtype, g)
        dy = -dx.to(target.dtype) if for_target else None
        return dx.to(input.dtype), dy, None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None, *_: Any) -> Tensor:
        input, target, c, kernel, mode, _ = _saved(ctx)
        r = _residual(input, target)
        return _push(kernel, r, c, mode, _difference(dx, dy, r))

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        input, target, c, kernel, mode = inputs  # tiles do not take a scale per example
        x, y = _fold(info, dims[:2], input, target)
        if mode == SAMPLES:
            x, y = x.flatten(0, 1), y.flatten(0, 1)
            out = _Value.apply(x, y, c, kernel, mode)  # type: ignore[no-untyped-call]
            return out.view(info.batch_size, -1, *out.shape[1:]), 0
        out = _Value.apply(x, y, c, kernel, ELEMENTS)  # type: ignore[no-untyped-call]
        return out.reshape(len(out), -1).sum(1) if mode == TOTAL else out, 0


def _gradient(
    input: Tensor,
    target: Tensor,
    c: Scale,
    kernel: type[Kernel],
    mode: str,
    dtype: torch.dtype,
    g: Tensor,
) -> Tensor:
    """Return the gradient in the input, in ``dtype``."""
    if torch.compiler.is_compiling() or _is_legacy_batched(g):
        return _pull(kernel, _residual(input, target), c, mode, dtype, g)
    out: Tensor = _Gradient.apply(input, target, c, kernel, mode, dtype, g)  # type: ignore[no-untyped-call]
    return out


class _Gradient(torch.autograd.Function):
    """The gradient of the loss in the input, for a cotangent of the values."""

    @staticmethod
    def forward(
        input: Tensor,
        target: Tensor,
        c: Scale,
        kernel: type[Kernel],
        mode: str,
        dtype: torch.dtype,
        g: Tensor,
    ) -> Tensor:
        out = torch.empty_like(input, dtype=dtype)
        if mode == SAMPLES:
            return _tiled_samples(kernel, input, target, c, out, g)
        return _tiled_gradient_of_elements(kernel, input, target, c, out, g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *values, ctx.dtype, g = inputs
        _save(ctx, values, g)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        input, target, c, kernel, mode, g = _saved(ctx)
        r = _residual(input, target)
        v = v.to(r.dtype)
        curve = _curve(kernel, r, c, mode, g, v)
        dg = _push(kernel, r, c, mode, v)
        return curve.to(input.dtype), -curve.to(target.dtype), None, None, None, None, dg

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None, *others: Any) -> Tensor:
        input, target, c, kernel, mode, g = _saved(ctx)
        r = _residual(input, target)
        dg = others[-1]
        out = torch.zeros_like(r) if dg is None else _pull(kernel, r, c, mode, r.dtype, dg)
        if dx is not None or dy is not None:
            out = out + _curve(kernel, r, c, mode, g, _difference(dx, dy, r))
        return out.to(ctx.dtype)

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        input, target, c, kernel, mode, dtype, g = inputs
        x, y, g = _fold(info, (*dims[:2], dims[-1]), input, target, g)
        if mode == SAMPLES:
            x, y, g = (z.flatten(0, 1) for z in (x, y, g))
            out = _gradient(x, y, c, kernel, mode, dtype, g)
            return out.view(info.batch_size, -1, *out.shape[1:]), 0
        g = g.reshape(-1, *[1] * (x.dim() - 1)).expand(x.shape) if mode == TOTAL else g
        return _gradient(x, y, c, kernel, ELEMENTS, dtype, g), 0


def _difference(dx: Tensor | None, dy: Tensor | None, r: Tensor) -> Tensor:
    zero = torch.zeros_like(r)
    return (zero if dx is None else dx.to(r.dtype)) - (zero if dy is None else dy.to(r.dtype))


def _save(ctx: Any, inputs: Any, g: Tensor | None) -> None:
    input, target, c, ctx.kernel, ctx.mode = inputs
    ctx.c = None if isinstance(c, Tensor) else c
    tensors = (input, target, c if isinstance(c, Tensor) else None, g)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _saved(ctx: Any) -> tuple[Any, ...]:
    input, target, c, g = ctx.saved_tensors
    return input, target, c if ctx.c is None else ctx.c, ctx.kernel, ctx.mode, g
