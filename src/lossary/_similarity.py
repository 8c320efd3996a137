"""Sums over a matrix of similarities that is never held, only made tile by tile.

For queries q (N, D) and keys k (M, D), s = q k^T, without the entries that a :class:`Mask` names:

    rows      lse_i = log sum_j exp(s_ij)
    columns   lse_j = log sum_i exp(s_ij), from the same tiles
    means     sum_j exp(s_ij - lse_i) s_ij, for sums that weigh the similarities themselves
    terms     sum_j f(s_ij), f a softplus or a hinge

What is kept are q, k and one number per row. Backward makes the tiles again: with the slope
W = g exp(s - lse), or g f'(s), of a tile, dq += W k and dk += W^T q. A temperature, or one per row,
scales the queries outside, where its gradient follows by itself; so does a bias, the similarity to
a column of ones.

First order only: the backward is a Function whose own backward raises an error.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from lossary._numerics import softplus
from lossary._softmax import _has_tangent, _is_legacy_batched

#: Up to this size of the similarities their exponentials are summed up as they are: exp(30) over
#: 1e12 keys, and its reciprocal, are far inside of float32. Beyond it by a running maximum.
BOUND = 30.0


class Mask(NamedTuple):
    """Which entries are left out: those that any of these names."""

    #: (N, c), columns that row i leaves out, in any order; outside [0, M): none.
    columns: Tensor | None = None
    #: (N,) and (M,), labels: what is left out are the pairs whose labels differ,
    row_labels: Tensor | None = None
    column_labels: Tensor | None = None
    #: (N,), the least similarity that row i keeps.
    least: Tensor | None = None
    #: or, if so, those whose labels are equal.
    equal: bool = False


class Softplus(NamedTuple):
    """The terms log(1 + exp(s))."""

    #: What an entry has that is not there: it adds nothing, and has no slope.
    absent: float = -math.inf
    unit: bool = False

    def value(self, s: Tensor) -> tuple[Tensor, None]:
        """Return the terms, all of which count."""
        return softplus(s), None

    def slope(self, s: Tensor) -> Tensor:
        """Replace the similarities by the derivatives of their terms."""
        return s.sigmoid_()


class Hinge(NamedTuple):
    """The terms max(0, sign (s - margin)), of which those with sign (s - margin) >= 0 count."""

    margin: float
    sign: int
    #: Cosines: rounding must not carry them out of [-1, 1], to the other side of a margin of 1.
    unit: bool

    @property
    def absent(self) -> float:
        """Return what an entry has that is not there."""
        return -self.sign * math.inf

    def value(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the terms, and which of them count."""
        excess = self._excess(s)
        return excess.clamp(min=0.0), excess >= 0

    def slope(self, s: Tensor) -> Tensor:
        """Replace the similarities by the derivatives of their terms."""
        return s.copy_(self._excess(s) >= 0).mul_(self.sign)

    def _excess(self, s: Tensor) -> Tensor:
        return s.sub_(self.margin).mul_(self.sign)


class _Plan(NamedTuple):
    """What is computed, and how."""

    tile_size: int
    #: Known to be at most BOUND in size.
    bounded: bool
    #: Also the sums of the columns.
    columns: bool = False
    #: The keys are the queries, and so is what is masked: each tile serves its mirror image too.
    symmetric: bool = False
    #: Also the means of the rows.
    means: bool = False
    #: Sums of these instead.
    terms: Softplus | Hinge | None = None


def log_sum_exp(
    q: Tensor,
    k: Tensor,
    mask: Mask,
    *,
    tile_size: int,
    bound: float = math.inf,
    columns: bool = False,
) -> tuple[Tensor, ...]:
    """Return (rows,) or (rows, columns), differentiable once in q and k.

    Args:
        q: (N, D), float32 or float64.
        k: (M, D).
        mask: the entries that are left out.
        tile_size: rows and columns of a tile.
        bound: what no similarity exceeds in size.
        columns: also the sums of the columns.

    A row (or column) in which nothing is left has the lowest finite number, and no gradient.
    """
    plan = _Plan(tile_size, bound <= BOUND, columns)
    return _differentiable_sums(q, k, mask, plan)


def self_log_sum_exp(z: Tensor, mask: Mask, *, tile_size: int, bound: float = math.inf) -> Tensor:
    """Return the rows' sums of z z^T; if j is masked in row i, so must be i in row j."""
    (rows,) = _differentiable_sums(z, z, mask, _Plan(tile_size, bound <= BOUND, symmetric=True))
    return rows


def log_sum_exp_and_mean(
    q: Tensor, k: Tensor, mask: Mask, *, tile_size: int, bound: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Return the sums and the means of the rows, without a gradient."""
    lse, mean = _sums(q, k, mask, _Plan(tile_size, bound <= BOUND, means=True))
    return lse, mean


def term_sums(
    q: Tensor, k: Tensor, mask: Mask, terms: Softplus | Hinge, *, tile_size: int
) -> tuple[Tensor, Tensor]:
    """Return sum_j f(s_ij), differentiable once in q and k, and how many terms count."""
    plan = _Plan(tile_size, False, terms=terms)
    value, count = _sums(q, k, mask, plan)
    (total,) = _attached(q, k, mask, plan, (), (value,))
    return total, count


@torch.compiler.disable  # type: ignore[untyped-decorator]
def kth_largest(q: Tensor, k: Tensor, mask: Mask, kth: int, *, tile_size: int) -> Tensor:
    """Return the kth largest similarity of every row, -inf where fewer are left.

    A few whole rows are held at a time, tile_size x M similarities; they are computed in the tiles
    of the other sweeps, to whose similarities the result will be compared.
    """
    _check_transforms(q, k, tile_size=tile_size)
    plan = _Plan(tile_size, False)
    out: Tensor = _Largest.apply(q.detach(), k.detach(), mask, plan, kth)  # type: ignore[no-untyped-call]
    return out


def weighted_sum(
    q: Tensor,
    k: Tensor,
    mask: Mask,
    log_norm: Tensor,
    value: Tensor,
    *,
    tile_size: int,
    bound: float = math.inf,
) -> Tensor:
    """Return sum_j w_ij s_ij for constant weights w = exp(s - log_norm), whose value is given.

    The value is exp(lse - log_norm) mean, of which the caller has the parts.
    """
    plan = _Plan(tile_size, bound <= BOUND)
    out: tuple[Tensor, ...] = _attached(q, k, mask, plan, (log_norm,), (value,))
    return out[0]


# Entering: out of a compiled graph, and not where a transform would be silently wrong.


def _advice(what: str, tile_size: int) -> str:
    return (
        f"tile_size: expected None for {what}, which the tiled form does not have, got {tile_size}"
    )


def _check_transforms(*tensors: Tensor, tile_size: int) -> None:
    if any(_is_legacy_batched(x) for x in tensors):
        raise RuntimeError(_advice("batched gradients", tile_size))
    if any(_has_tangent(x) for x in tensors):
        raise RuntimeError(_advice("forward-mode derivatives and vmap", tile_size))


def _differentiable_sums(q: Tensor, k: Tensor, mask: Mask, plan: _Plan) -> tuple[Tensor, ...]:
    lse = _sums(q, k, mask, plan)
    out: tuple[Tensor, ...] = _attached(q, k, mask, plan, lse, lse)
    return out


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _sums(q: Tensor, k: Tensor, mask: Mask, plan: _Plan) -> tuple[Tensor, ...]:
    _check_transforms(q, k, tile_size=plan.tile_size)
    out: tuple[Tensor, ...] = _Sums.apply(q.detach(), k.detach(), mask, plan)  # type: ignore[no-untyped-call]
    return out


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attached(
    q: Tensor,
    k: Tensor,
    mask: Mask,
    plan: _Plan,
    norms: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Return the values, with the slopes exp(s - norm) of their axis in the similarities."""
    _check_transforms(q, k, tile_size=plan.tile_size)
    out: tuple[Tensor, ...] = _Attached.apply(q, k, mask, plan, *norms, *values)  # type: ignore[no-untyped-call]
    return out


class _FirstOrder(torch.autograd.Function):
    """A Function without vmap and forward mode, which says what to do."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        raise RuntimeError(_advice("forward-mode derivatives", ctx.plan.tile_size))

    @staticmethod
    def vmap(info: Any, dims: Any, q: Any, k: Any, mask: Any, plan: _Plan, *_: Any) -> NoReturn:
        raise RuntimeError(_advice("vmap", plan.tile_size))


class _Sums(_FirstOrder):
    """The sums, and the means or counts if wanted, of constants."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, mask: Mask, plan: _Plan) -> tuple[Tensor, ...]:
        return (_tiled_sums if plan.terms is None else _tiled_terms)(q, k, mask, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.plan = inputs[3]


class _Largest(_FirstOrder):
    """The kth largest of constants."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, mask: Mask, plan: _Plan, kth: int) -> Tensor:
        return _tiled_largest(q, k, mask, plan, kth)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.plan = inputs[3]


class _Attached(_FirstOrder):
    """Values that are known, whose gradient takes a sweep over the tiles."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, mask: Mask, plan: _Plan, *both: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.clone() for x in both[len(both) - _outputs(plan) :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        q, k, mask, ctx.plan, *both = inputs
        ctx.equal = mask.equal
        ctx.save_for_backward(q, k, *mask[:-1], *both[: len(both) - _outputs(ctx.plan)])

    @staticmethod
    def backward(ctx: Any, *gs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, *saved = ctx.saved_tensors
        parts = len(Mask._fields) - 1
        mask, norms = Mask(*saved[:parts])._replace(equal=ctx.equal), saved[parts:]
        if any(_is_legacy_batched(g) for g in gs):
            raise RuntimeError(_advice("batched gradients", ctx.plan.tile_size))
        dq, dk = _Slopes.apply(q, k, mask, ctx.plan, *norms, *gs)  # type: ignore[no-untyped-call]
        return dq, dk, None, None, *[None] * (len(norms) + len(gs))


class _Slopes(_FirstOrder):
    """The gradients in the queries and the keys."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, mask: Mask, plan: _Plan, *both: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        sides = len(both) - _outputs(plan)
        return _tiled_slopes(q, k, mask, plan, both[:sides], both[sides:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.plan = inputs[3]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        raise RuntimeError(_advice("second derivatives", ctx.plan.tile_size))


# The tiles.


def _outputs(plan: _Plan) -> int:
    """Return how many values are differentiable: one of every side."""
    return 2 if plan.columns else 1


def _tiles(
    q: Tensor, k: Tensor, mask: Mask, plan: _Plan
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Yield rows, columns, their similarities, absent where masked, and as much scratch.

    Of one side of queries and keys, without means, nothing needs the scratch: it is the tile.
    """
    n, m, size = len(q), len(k), plan.tile_size
    area = min(n, size) * min(m, size)
    one_way = not (plan.columns or plan.symmetric or plan.means)
    first = q.new_empty(area)
    second = first if one_way else q.new_empty(area)
    for a in range(0, n, size):
        rows = slice(a, min(a + size, n))
        for b in range(a if plan.symmetric else 0, m, size):
            columns = slice(b, min(b + size, m))
            shape = rows.stop - a, columns.stop - b
            s, spare = (x[: shape[0] * shape[1]].view(shape) for x in (first, second))
            torch.mm(q[rows], k[columns].t(), out=s)
            if plan.terms is not None and plan.terms.unit:
                s.clamp_(-1.0, 1.0)
            _fill(s, mask, rows, columns, -math.inf if plan.terms is None else plan.terms.absent)
            yield rows, columns, s, spare


def _fill(s: Tensor, mask: Mask, rows: slice, columns: slice, value: float) -> None:
    """Write the value where the tile is masked."""
    if mask.least is not None:
        s.masked_fill_(s < mask.least[rows].unsqueeze(1), value)
    if mask.row_labels is not None and mask.column_labels is not None:
        compare = torch.eq if mask.equal else torch.ne
        of_rows, of_columns = mask.row_labels[rows], mask.column_labels[columns]
        s.masked_fill_(compare(of_rows.unsqueeze(1), of_columns), value)
    if mask.columns is None:
        return
    width = s.shape[1]
    for at in (mask.columns[rows] - columns.start).split(1, 1):
        inside = (at >= 0) & (at < width)
        at = at.clamp(0, width - 1)
        s.scatter_(1, at, torch.where(inside, value, s.gather(1, at)))


class _Running:
    """The sums along one axis of the tiles so far."""

    def __init__(self, size: int, axis: int, like: Tensor, plan: _Plan) -> None:
        self.axis, self.plan = axis, plan
        self.lowest = torch.finfo(like.dtype).min
        self.total = like.new_zeros(size)
        self.top = None if plan.bounded else like.new_full((size,), self.lowest)
        self.moment = like.new_zeros(size) if plan.means else None

    def exponentials(self, part: slice, s: Tensor, out: Tensor) -> Tensor:
        """Return exp(s - top), where the sums so far are brought to the new maximum."""
        if self.top is None:
            return torch.exp(s, out=out)
        top = torch.maximum(self.top[part], s.amax(self.axis))
        shrink = torch.exp(self.top[part] - top)
        self.top[part] = top
        self.total[part] *= shrink
        if self.moment is not None:
            self.moment[part] *= shrink
        return torch.sub(s, top.unsqueeze(self.axis), out=out).exp_()

    def result(self) -> Tensor:
        lse = self.total.log()
        return (lse if self.top is None else lse.add_(self.top)).clamp_(min=self.lowest)


def _tiled_sums(q: Tensor, k: Tensor, mask: Mask, plan: _Plan) -> tuple[Tensor, ...]:
    across = _Running(len(q), 1, q, plan)
    down = _Running(len(k), 0, q, plan) if plan.columns else across
    for rows, columns, s, spare in _tiles(q, k, mask, plan):
        sides = [(across, rows, 1)]
        if plan.columns or (plan.symmetric and rows != columns):
            sides.append((down, columns, 0))
        for i, (side, part, axis) in enumerate(sides):
            side.axis = axis
            # Where no maximum is taken off, both axes share the exponentials.
            if i == 0 or not plan.bounded:
                last = (plan.bounded or i == len(sides) - 1) and not plan.means
                e = side.exponentials(part, s, s if last else spare)
            side.total[part] += e.sum(axis)
        if across.moment is not None:
            # 0 for -inf: there the exponential is 0, too.
            _fill(s, mask, rows, columns, 0.0)
            across.moment[rows] += e.mul_(s).sum(1)
    if across.moment is not None:
        least = torch.finfo(q.dtype).tiny
        return across.result(), across.moment / across.total.clamp(min=least)
    return (across.result(), down.result()) if plan.columns else (across.result(),)


def _tiled_largest(q: Tensor, k: Tensor, mask: Mask, plan: _Plan, kth: int) -> Tensor:
    out = q.new_full((len(q),), -math.inf)
    if not out.numel() or kth > len(k):
        return out
    held = q.new_empty(min(len(q), plan.tile_size), len(k))
    for rows, columns, s, _ in _tiles(q, k, mask, plan):
        part = held[: len(s)]
        part[:, columns] = s
        if columns.stop == len(k):
            out[rows] = part.amax(1) if kth == 1 else part.kthvalue(len(k) + 1 - kth, 1).values
    return out


def _tiled_terms(q: Tensor, k: Tensor, mask: Mask, plan: _Plan) -> tuple[Tensor, ...]:
    assert plan.terms is not None
    total, count = q.new_zeros(2, len(q))
    for rows, _, s, _ in _tiles(q, k, mask, plan):
        terms, counts = plan.terms.value(s)
        total[rows] += terms.sum(1)
        count[rows] += s.shape[1] if counts is None else counts.sum(1)
    return total, count


def _tiled_slopes(
    q: Tensor,
    k: Tensor,
    mask: Mask,
    plan: _Plan,
    norms: tuple[Tensor, ...],
    gs: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor | None]:
    if plan.bounded:
        # g exp(s - norm) = exp(s) [g exp(-norm)]. Nothing but masked entries has the lowest norm.
        lowest = torch.finfo(q.dtype).min
        gs = tuple(
            torch.where(n > lowest, g * torch.exp(-n), 0.0) for g, n in zip(gs, norms, strict=True)
        )
    dq = torch.zeros_like(q)
    dk = dq if plan.symmetric else torch.zeros_like(k)
    both = plan.columns or plan.symmetric
    # Of one side, the factor of a row is left to the (N, D) matrices.
    heavy = q if both else q * gs[0].unsqueeze(1)
    for rows, columns, s, spare in _tiles(q, k, mask, plan):
        if both:
            _two_sided(s, spare, plan, rows, columns, norms, gs)
        elif plan.terms is not None:
            plan.terms.slope(s)
        elif plan.bounded:
            s.exp_()
        else:
            s.sub_(norms[0][rows].unsqueeze(1)).exp_()
        dq[rows].addmm_(s, k[columns])
        if not plan.symmetric or rows != columns:
            dk[columns].addmm_(s.t(), heavy[rows])
    if not both:
        dq *= gs[0].unsqueeze(1)
    return dq, None if plan.symmetric else dk


def _two_sided(
    s: Tensor,
    spare: Tensor,
    plan: _Plan,
    rows: slice,
    columns: slice,
    norms: tuple[Tensor, ...],
    gs: tuple[Tensor, ...],
) -> None:
    """Replace the similarities by their slope, through the row and through the column."""
    across, down = gs[0][rows].unsqueeze(1), gs[-1][columns]
    if plan.bounded:
        s.exp_().mul_(torch.add(across, down, out=spare))
        return
    torch.sub(s, norms[0][rows].unsqueeze(1), out=spare).exp_().mul_(across)
    s.sub_(norms[-1][columns]).exp_().mul_(down).add_(spare)
