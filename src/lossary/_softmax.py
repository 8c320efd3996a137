"""The one primitive: how the target's logit stands against the rest.

For scaled logits z = (f + margins of the rivals) / temperature, the log-odds against the target are

    t = logsumexp_{k != y} z_k - z_y = -logit(p_y).

They are accurate for p_y -> 0 and for p_y -> 1, where log p_y, 1 - p_y and log(1 - p_y) computed
from the softmax lose everything. Nearly every loss of a class target is a scalar function of t; its
gradient in z is then g (r - e_y), with r the softmax over the rivals alone. Some heads ask for
further statistics of the row, computed from the same tiles:

    log_odds      t
    chance_odds   t - log(K - 1), accurate where all logits nearly agree
    target        z_y   (so that log Z = z_y + softplus(t))
    gaps          sum_{k != y} (z_k - z_y), +inf where z_y is -inf (so that
                  sum_k log p_k = gaps - K softplus(t))
    rival_squares sum_{k != y} r_k^2   (so that sum_k p_k^2 = p_y^2 + (1 - p_y)^2 rival_squares)

A target of -1 marks a row that is not there: its logits reach neither value nor gradient.

Three paths give the same numbers. Small inputs: a dozen stock operations. Large ones: the closed
form in row tiles that stay in the cache, which holds one logits-sized buffer, the gradient. Under
torch.compile: stock operations written so that they fuse.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lossary._checks import check_in_memory
from lossary._numerics import log1mexp

LOG_ODDS, CHANCE_ODDS, TARGET, GAPS, RIVAL_SQUARES = STATISTICS = (
    "log_odds",
    "chance_odds",
    "target",
    "gaps",
    "rival_squares",
)

#: Below this many bytes of logits, stock operations beat the tiled Function's call overhead.
TILED_FROM_BYTES = 2 << 20
#: Rows of fewer classes than this are too short for tiles to gain anything.
TILED_FROM_CLASSES = 32
#: Scratch of one tile at most; down to a quarter of it for logits beside which it would be large.
#: On a CPU: nearly flat in time from 1 to 4 MiB, slower where it leaves the caches.
#: On an accelerator: enough rows to fill it.
TILE_BYTES = {"cpu": 4 << 20, "other": 64 << 20}

#: Logit gaps up to which t - log(K - 1) would cancel too many digits: beyond, it keeps 1 - 1e-5.
NEAR_CHANCE = 0.125

_HALF = (torch.float16, torch.bfloat16)
_functorch: Any = getattr(torch._C, "_functorch", None)
_is_wrapped: Callable[[Tensor], bool] = getattr(
    _functorch, "is_functorch_wrapped_tensor", lambda _: False
)
_is_legacy_batched: Callable[[Tensor], bool] = getattr(
    _functorch, "is_legacy_batchedtensor", lambda _: False
)


def readable(x: Tensor) -> bool:
    """Tell whether looking at the values of ``x`` is possible and does not wait for a device."""
    return (
        x.is_cpu
        and type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not _is_wrapped(x)
        and not _is_legacy_batched(x)
    )


def transformed(x: Tensor) -> bool:
    """Tell whether ``x`` lies inside of a transform of derivatives, or has a tangent."""
    return _is_wrapped(x) or _is_legacy_batched(x) or _has_tangent(x)


def target_log_odds(
    logits: Tensor,
    target: Tensor,
    *,
    class_dim: int = 1,
    temperature: float | Tensor = 1.0,
    margin: float | Tensor | None = None,
) -> Tensor:
    """Return t = logsumexp_{k != y} (f_k + m_{y,k}) / T - f_y / T, of the target's shape."""
    return row_statistics(
        logits, target, (LOG_ODDS,), class_dim=class_dim, temperature=temperature, margin=margin
    )[0]


def row_statistics(
    logits: Tensor,
    target: Tensor,
    names: tuple[str, ...],
    *,
    class_dim: int = 1,
    temperature: float | Tensor = 1.0,
    margin: float | Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the statistics ``names`` of every row, each of the target's shape.

    Args:
        logits: any shape; half precision is computed in float32. Or a layout, which is asked by
            its method ``_row_statistics(target, names, temperature)``.
        target: class indices, of the shape of the logits without the class axis; -1: not there.
        names: which statistics, of those in the module's docstring.
        class_dim: the class axis.
        temperature: T > 0, a number, or a tensor, 0-dim or of the target's shape. If it requires a
            gradient, that costs copies of the logits.
        margin: what is added to the rivals' logits before the division by T. A number; one per
            class, (K,), the margin of the rows with that target; or (K, K), of which row y holds
            the margins of the rivals of target y (its diagonal is not read). If a matrix requires
            a gradient, that costs copies of the logits.
    """
    matrix, shift = _split_margin(margin, temperature, target, logits)
    if isinstance(logits, Tensor):
        if _differentiable(temperature) or _differentiable(matrix):
            logits = _scaled(logits, target, class_dim, temperature, matrix)
            temperature, matrix = 1.0, None
        f, y, scale = _as_rows(logits, target, class_dim, temperature)
        out = _statistics(f, y, scale, matrix, names)
        if y is not target:
            out = tuple(x.view(target.shape) for x in out)
    else:
        if matrix is not None:
            check_in_memory(logits, "a matrix of margins")
        out = logits._row_statistics(target, names, temperature)
    if shift is None:
        return out
    rivals = logits.shape[class_dim] - 1
    factor = {LOG_ODDS: 1, CHANCE_ODDS: 1, GAPS: rivals, TARGET: 0, RIVAL_SQUARES: 0}
    return tuple(
        x + shift * factor[name] if factor[name] else x for name, x in zip(names, out, strict=True)
    )


def all_log_odds(
    logits: Tensor,
    *,
    class_dim: int = 1,
    temperature: float | Tensor = 1.0,
    margin: float | Tensor | None = None,
    above_chance: bool = False,
) -> Tensor:
    """Return the log-odds (or chance-odds) against every class, of the shape of the logits.

    A composite of logits-sized operations: O(N K), or O(N K^2) for a margin matrix.
    """
    check_in_memory(logits, "the loss of every class")
    z = logits.to(_compute_dtype(logits)).movedim(class_dim, -1)
    num_classes = z.shape[-1]
    if isinstance(temperature, Tensor):
        temperature = temperature.to(z.dtype)
        temperature = temperature.unsqueeze(-1) if temperature.dim() else temperature
    z = z / temperature
    if isinstance(margin, Tensor) and margin.dim() == 2:
        if isinstance(temperature, Tensor) and temperature.dim():
            temperature = temperature.unsqueeze(-1)
        x = z.unsqueeze(-2) + margin.to(z.dtype) / temperature
        is_own = torch.eye(num_classes, dtype=torch.bool, device=z.device)
        rivals = x.masked_fill(is_own, torch.finfo(z.dtype).min)
        top = rivals.detach().amax(-1, keepdim=True)
        own = z.unsqueeze(-1)
        t = torch.exp(rivals - top).sum(-1).log() - (own - top).squeeze(-1)
        t = _chance_odds((x - own).masked_fill(is_own, 0.0), t, -1) if above_chance else t
    else:
        log_p = torch.log_softmax(z, -1)
        top = log_p.argmax(-1)
        is_top = top.unsqueeze(-1) == torch.arange(num_classes, device=z.device)
        # At p <= 1/2 the log-odds follow from log p; only the top class needs the exclusion.
        t = log1mexp(torch.where(is_top, -1.0, log_p)) - log_p
        t = torch.where(is_top, target_log_odds(z, top, class_dim=-1).unsqueeze(-1), t)
        if above_chance:
            t = torch.where(*_near_chance(z), t - math.log(num_classes - 1))
        if margin is not None:
            t = t + (margin.to(z.dtype) if isinstance(margin, Tensor) else margin) / temperature
    return t.movedim(-1, class_dim)


def all_statistics(logits: Tensor, names: tuple[str, ...], *, class_dim: int = 1) -> list[Tensor]:
    """Return the statistics ``names`` against every class, each of the shape of the logits.

    A composite of logits-sized operations, O(N K).
    """
    check_in_memory(logits, "the loss of every class")
    z = logits.to(_compute_dtype(logits)).movedim(class_dim, -1)
    out = []
    for name in names:
        if name in (LOG_ODDS, CHANCE_ODDS):
            x = all_log_odds(z, class_dim=-1, above_chance=name == CHANCE_ODDS)
        elif name == TARGET:
            x = z
        elif name == GAPS:
            # Around the top, so that an offset common to all logits costs no digits.
            low = z - z.detach().amax(-1, keepdim=True)
            x = low.sum(-1, keepdim=True) - z.shape[-1] * low
            x = torch.where(z == -math.inf, math.inf, x)
        else:
            p = torch.softmax(z, -1)
            top = p.argmax(-1, keepdim=True)
            is_top = top == torch.arange(z.shape[-1], device=z.device)
            square = p.square()
            # At p <= 1/2 the rivals' shares follow from p; only the top class needs the exclusion.
            x = (square.sum(-1, keepdim=True) - square) / (1 - torch.where(is_top, 0.0, p)).square()
            alone = row_statistics(z, top.squeeze(-1), (RIVAL_SQUARES,), class_dim=-1)[0]
            x = torch.where(is_top, alone.unsqueeze(-1), x)
        out.append(x.movedim(-1, class_dim))
    return out


def uniform_divergence(
    logits: Tensor,
    target: Tensor,
    *,
    class_dim: int = 1,
    temperature: float | Tensor = 1.0,
    margin: float | Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Return KL(r || 1/K) for r = softmax(z), with ``smoothing`` added to each r_k; no gradient.

    The arguments are those of :func:`row_statistics`.
    """
    check_in_memory(logits, "a temperature per sample")

    def divergence(z: Tensor) -> Tensor:
        return _divergence(z, smoothing)

    return _per_row(divergence, logits, target, class_dim, temperature, margin)


def rival_entropy(logits: Tensor, target: Tensor | None, *, class_dim: int = 1) -> Tensor:
    """Return the entropy of the softmax over the rivals alone, in nats; no gradient.

    Without a target: that of the rivals of every class, along the class axis.
    """
    check_in_memory(logits, "the entropy of the rivals")
    f = logits.detach()
    if target is not None:
        # So large a margin leaves the target out; not an infinite one: see _rivals.
        margin = torch.finfo(_compute_dtype(f)).max
        return _per_row(_entropy, f, target, class_dim, 1.0, margin)
    log_p = torch.log_softmax(f.to(_compute_dtype(f)).movedim(class_dim, -1), -1)
    p = log_p.exp()
    own = p * log_p.clamp(min=torch.finfo(p.dtype).min)
    top = p.argmax(-1, keepdim=True)
    is_top = top == torch.arange(p.shape[-1], device=p.device)
    # At p <= 1/2 what is left over follows from p; only the top class needs the exclusion.
    rest = 1.0 - torch.where(is_top, 0.0, p)
    out = (rest.log() - (own.sum(-1, keepdim=True) - own) / rest).clamp(min=0.0)
    alone = rival_entropy(log_p, top.squeeze(-1), class_dim=-1).unsqueeze(-1)
    return torch.where(is_top, alone, out).movedim(-1, class_dim)


def _per_row(
    of: Callable[[Tensor], Tensor],
    logits: Tensor,
    target: Tensor,
    class_dim: int,
    temperature: float | Tensor,
    margin: float | Tensor | None,
) -> Tensor:
    """Return a number for every row of z, in tiles where they pay; no gradient."""
    with torch.no_grad():
        matrix, shift = _split_margin(margin, temperature, target, logits)
        f, y, scale = _as_rows(logits, target, class_dim, temperature)
        if isinstance(shift, Tensor):
            shift = shift.expand(target.shape).reshape(y.shape).unsqueeze(1)
        if not _tiles_pay(f) or _is_wrapped(f) or _is_wrapped(y):
            z, own, j = _prepared(f, y, scale, matrix)
            # A margin shared by the rivals is one off the target, up to a shift of all.
            z = z if shift is None else _with_target(z, j, own - shift)
            return of(z).view(target.shape)
        tile = _Tile(f, y, scale, matrix)
        out = torch.empty(y.shape, dtype=tile.dtype, device=f.device)
        for a, b in _tiles(f):
            z, j = tile.load(a, b)
            if shift is not None:
                less = tile.at(shift, a, b) if isinstance(shift, Tensor) else shift
                z.scatter_(1, j, z.gather(1, j) - less)
            tile.at_row(out, a, b).copy_(of(z))
        return out.view(target.shape)


def _entropy(z: Tensor) -> Tensor:
    # An impossible class has log r = -inf and r = 0: their product counts as 0.
    log_r = torch.log_softmax(z, 1).clamp(min=torch.finfo(z.dtype).min)
    return -(log_r.exp() * log_r).sum(1)


def _divergence(z: Tensor, smoothing: float) -> Tensor:
    num_classes = z.shape[1]
    # An impossible class has log r = -inf and r = 0: their product counts as 0.
    log_r = torch.log_softmax(z, 1).clamp_(min=torch.finfo(z.dtype).min)
    r = log_r.exp()
    if smoothing:
        r = r.add_(smoothing).div_(1.0 + num_classes * smoothing)
        log_r = r.log()
    return math.log(num_classes) + r.mul_(log_r).sum(1)


def hardest_rival(
    logits: Tensor,
    target: Tensor | None,
    *,
    class_dim: int = 1,
    margin: float | Tensor | None = None,
) -> Tensor:
    """Return max_{k != y} (f_k + m_{y,k}) - f_y: the log-odds at temperature 0, times it.

    Without a target: against every class, along the class axis. At a tie the gradient goes to one
    of the tied rivals.
    """
    matrix = margin if isinstance(margin, Tensor) and margin.dim() == 2 else None
    if not isinstance(logits, Tensor):
        if matrix is not None or target is None:
            check_in_memory(logits, "a matrix of margins" if target is not None else "every class")
        gap = logits._hardest_gap(target)
        return gap if margin is None else gap + _shift(margin, 1.0, target, logits)
    f = logits.movedim(class_dim, -1)
    lowest = torch.finfo(f.dtype).min
    if target is None:
        f = f.to(_compute_dtype(f))
        if matrix is None:
            value, index = f.topk(2, -1)
            is_top = index[..., :1] == torch.arange(f.shape[-1], device=f.device)
            gap = torch.where(is_top, value[..., 1:], value[..., :1]) - f
            gap = gap if margin is None else gap + margin
        else:
            own = torch.eye(f.shape[-1], dtype=torch.bool, device=f.device)
            gap = (f.unsqueeze(-2) + matrix).masked_fill(own, lowest).max(-1).values - f
        return gap.movedim(-1, class_dim)
    y = target.clamp(min=0).unsqueeze(-1)
    rival = _rival_index(f.detach(), y, None if matrix is None else matrix.detach())
    # One gather for both keeps the gradient at one logits-sized buffer.
    pair = f.gather(-1, torch.cat((rival, y), -1)).to(_compute_dtype(f))
    pair = torch.where((target < 0).unsqueeze(-1), 0.0, pair)
    # Where no rival is left, the others being -inf, the largest is the target itself.
    alone = (rival == y).squeeze(-1) & (target >= 0)
    gap = torch.where(alone, -math.inf, pair[..., 0] - pair[..., 1])
    if matrix is not None:
        return gap + matrix.to(gap.dtype)[y, rival].squeeze(-1)
    return gap if margin is None else gap + _shift(margin, 1.0, target, logits)


def _rival_index(f: Tensor, y: Tensor, matrix: Tensor | None) -> Tensor:
    """Return the index of the largest rival logit on the last axis, without a gradient."""
    rows, targets = f.reshape(-1, f.shape[-1]), y.reshape(-1)
    if not _tiles_pay(rows) or _is_wrapped(f):
        rivals = f if matrix is None else f + matrix[y.squeeze(-1)]
        return rivals.scatter(-1, y, torch.finfo(rivals.dtype).min).argmax(-1, keepdim=True)
    tile, index = _Tile(rows, targets, 1.0, matrix), torch.empty_like(targets)
    for a, b in _tiles(rows):
        z, j = tile.load(a, b)
        index[a] = _argmax(z.scatter_(1, j, tile.lowest))
    return index.view(y.shape)


def top_class(logits: Tensor, class_dim: int) -> Tensor:
    """Return the index of the largest logit of every row."""
    f = logits.detach().movedim(class_dim, -1)
    if not f.is_contiguous():
        return f.argmax(-1)
    return _argmax(f.reshape(-1, f.shape[-1])).view(f.shape[:-1])


def _argmax(z: Tensor) -> Tensor:
    """Return z.argmax(1), through the maxima of blocks: ten times faster on a CPU."""
    num_classes, width = z.shape[1], 128
    whole = num_classes // width * width
    if whole == 0:
        return z.argmax(1)
    top = z[:, :whole].view(len(z), -1, width).amax(2)
    if whole < num_classes:
        top = torch.cat((top, z[:, whole:].amax(1, keepdim=True)), 1)
    start = (top.argmax(1, keepdim=True) * width).clamp(max=num_classes - width)
    block = z.gather(1, start + torch.arange(width, device=z.device))
    return (start + block.argmax(1, keepdim=True)).squeeze(1)


# Preparing the arguments.


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in _HALF else x.dtype


def _differentiable(x: object) -> bool:
    """Tell whether a derivative of ``x`` may be asked for, in reverse or in forward mode.

    Inside of a transform it cannot be seen whether an outer one asks for it: there, it may be.
    """
    return isinstance(x, Tensor) and (
        x.requires_grad
        or torch.compiler.is_compiling()
        or _is_wrapped(x)
        or _is_legacy_batched(x)
        or _has_tangent(x)
    )


def _has_tangent(x: Tensor) -> bool:
    try:
        dual = torch.autograd.forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    except RuntimeError:  # inside of vmap it cannot be asked: yes is the safe answer
        return True
    return dual.tangent is not None


def _split_margin(
    margin: float | Tensor | None, temperature: float | Tensor, target: Tensor, logits: Tensor
) -> tuple[Tensor | None, float | Tensor | None]:
    """Return the matrix of margins, or else what a margin that all rivals share adds to z."""
    if isinstance(margin, Tensor) and margin.dim() == 2:
        return margin, None
    return None, None if margin is None else _shift(margin, temperature, target, logits)


def _shift(
    margin: float | Tensor, temperature: float | Tensor, target: Tensor, logits: Tensor
) -> float | Tensor:
    """Return what a margin shared by all rivals of a row adds to its log-odds."""
    if isinstance(margin, Tensor):
        margin = margin.to(_compute_dtype(logits))
        margin = margin[target.clamp(min=0)] if margin.dim() else margin
    return margin / temperature


def _scaled(
    logits: Tensor,
    target: Tensor,
    class_dim: int,
    temperature: float | Tensor,
    matrix: Tensor | None,
) -> Tensor:
    """Return (f + margins of the rivals) / T, materialised, for gradients to T or the margins."""
    z = logits.to(_compute_dtype(logits)).movedim(class_dim, -1)
    z = torch.where((target < 0).unsqueeze(-1), 0.0, z)
    if matrix is not None:
        own = torch.eye(z.shape[-1], dtype=torch.bool, device=z.device)
        z = z + matrix.to(z.dtype).masked_fill(own, 0.0)[target.clamp(min=0)]
    if isinstance(temperature, Tensor) and temperature.dim():
        temperature = temperature.unsqueeze(-1)
    return (z / temperature).movedim(-1, class_dim)


def _as_rows(
    logits: Tensor, target: Tensor, class_dim: int, temperature: float | Tensor
) -> tuple[Tensor, Tensor, float | Tensor]:
    """View the logits as (rows, K) or (outer, K, inner), the target and 1/temperature to match.

    A copy is made only where the memory layout allows neither.
    """
    dim = class_dim % logits.dim()
    shape = logits.shape
    if logits.dim() == 2 and dim == 1:
        # A view costs a small batch as much as arithmetic does: none where the shape is right.
        f, y = logits, target
    elif dim == logits.dim() - 1 or (logits.stride(dim) == 1 and not _short_rows(logits, dim)):
        f, y = logits.movedim(dim, -1).reshape(-1, shape[dim]), target.reshape(-1)
    else:
        outer, inner = math.prod(shape[:dim]), math.prod(shape[dim + 1 :])
        f, y = logits.reshape(outer, shape[dim], inner), target.reshape(outer, inner)
    if not isinstance(temperature, Tensor):
        return f, y, 1.0 / temperature
    scale = temperature.reciprocal().to(_compute_dtype(f))
    return f, y, scale.expand(target.shape).reshape(y.shape)


def _short_rows(logits: Tensor, dim: int) -> bool:
    """Tell whether rows of few classes would be reduced, which is slow: take tiles across them."""
    return logits.shape[dim] < TILED_FROM_CLASSES and logits.nbytes >= TILED_FROM_BYTES


def _near_chance(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return where all logits of a row agree to within NEAR_CHANCE, and the chance-odds there.

    With a row's centre c, sum_j expm1(z_j - z_k) = K expm1(c - z_k) + exp(c - z_k) S, where
    S = sum_j expm1(z_j - c): O(K) for all k together, and no difference of large numbers.
    """
    num_classes = z.shape[-1]
    near = (z.amax(-1, keepdim=True) - z.amin(-1, keepdim=True)) <= NEAR_CHANCE
    z = torch.where(near, z, 0.0)
    centre = z.detach().mean(-1, keepdim=True)
    excess = torch.expm1(z - centre).sum(-1, keepdim=True)
    back = torch.expm1(centre - z)
    return near, torch.log1p((num_classes * back + (back + 1) * excess) / (num_classes - 1))


def _tiles_pay(f: Tensor) -> bool:
    """Tell whether to take the tiles. Along a strided class axis they pay for few classes too."""
    return (
        not torch.compiler.is_compiling()
        and f.numel() * f.element_size() >= TILED_FROM_BYTES
        and (f.dim() == 3 or f.shape[1] >= TILED_FROM_CLASSES)
        and type(f) in (Tensor, torch.nn.Parameter)
        and f.device.type != "meta"
        and not _is_legacy_batched(f)
    )


def _statistics(
    f: Tensor, y: Tensor, scale: float | Tensor, matrix: Tensor | None, names: tuple[str, ...]
) -> tuple[Tensor, ...]:
    # Torch takes the jvp of a Function for a constant under a second forward-mode derivative.
    if _tiles_pay(f) and not _has_tangent(f):
        out: tuple[Tensor, ...] = _Rows.apply(f, y, scale, matrix, names)  # type: ignore[no-untyped-call]
        return out
    return _stock(f, y, scale, matrix, names)


# Stock operations: differentiable to any order, and the definition that the tiles must equal.


def _prepared(
    f: Tensor, y: Tensor, scale: float | Tensor, matrix: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return z = (f + rivals' margins) * scale, z_y, and the target's index on axis 1."""
    z = f.float() if f.dtype in _HALF else f
    if not readable(y) or (y.numel() > 0 and int(y.min()) < 0):
        z = torch.where((y < 0).unsqueeze(1), 0.0, z)
        y = y.clamp(min=0)
    j = y.unsqueeze(1)
    if matrix is not None:
        z = _with_target(z + matrix.to(z.dtype)[y].movedim(-1, 1), j, _at_target(z, j))
    if isinstance(scale, Tensor):
        z = z * scale.unsqueeze(1)
    elif scale != 1.0:
        z = z * scale
    return z, _at_target(z, j), j


# Under torch.compile a comparison fuses with its neighbours; a gather or a scatter does not, and
# its gradient is a buffer of the logits' size.


def _is_target(z: Tensor, j: Tensor) -> Tensor:
    shape = [-1 if i == 1 else 1 for i in range(z.dim())]
    return torch.arange(z.shape[1], device=z.device).view(shape) == j


def _at_target(z: Tensor, j: Tensor) -> Tensor:
    """Return the target's entry on axis 1, of size 1 there."""
    if torch.compiler.is_compiling():
        return torch.where(_is_target(z, j), z, 0.0).sum(1, keepdim=True)
    return z.gather(1, j)


def _with_target(z: Tensor, j: Tensor, value: float | Tensor) -> Tensor:
    """Return z with the target's entry replaced."""
    if torch.compiler.is_compiling():
        return torch.where(_is_target(z, j), value, z)
    return z.scatter(1, j, value)


def _rivals(z: Tensor, j: Tensor) -> Tensor:
    """Return z with the target excluded.

    By the lowest finite number, not -inf: where nothing is left beside it (two classes, the other
    logit -inf), the softmax then is one at the target, where it is not read, and not nan.
    """
    return _with_target(z, j, torch.finfo(z.dtype).min)


def _stock(
    f: Tensor, y: Tensor, scale: float | Tensor, matrix: Tensor | None, names: tuple[str, ...]
) -> tuple[Tensor, ...]:
    z, own, j = _prepared(f, y, scale, matrix)
    rivals = _rivals(z, j)
    at_target = own.squeeze(1)
    # Against the top rival, so that an offset common to all logits costs no digits.
    top = rivals.detach().amax(1, keepdim=True)
    t = torch.exp(rivals - top).sum(1).log() - (own - top).squeeze(1)
    out = []
    for name in names:
        if name == LOG_ODDS:
            out.append(t)
        elif name == CHANCE_ODDS:
            out.append(_chance_odds(z - own, t, 1))
        elif name == TARGET:
            out.append(at_target)
        elif name == GAPS:
            out.append(_gaps(z - own, at_target))
        else:
            out.append(_with_target(torch.softmax(rivals, 1), j, 0.0).square().sum(1))
    return tuple(out)


def _gaps(gap: Tensor, own: Tensor) -> Tensor:
    """Return the sum of the gaps to the target, and of an impossible target infinity, not nan."""
    return torch.where(own == -math.inf, math.inf, gap.sum(1))


def _chance_odds(gap: Tensor, t: Tensor, axis: int) -> Tensor:
    """Return t - log(K - 1), from sum_k expm1(z_k - z_y) where all gaps are small."""
    rivals = gap.shape[axis] - 1
    near = gap.detach().abs().amax(axis) <= NEAR_CHANCE
    if readable(near) and not bool(near.any()):
        return t - math.log(rivals)
    excess = torch.expm1(torch.where(near.unsqueeze(axis), gap, 0.0)).sum(axis)
    return torch.where(near, torch.log1p(excess / rivals), t - math.log(rivals))


def _push(
    f: Tensor,
    y: Tensor,
    scale: float | Tensor,
    matrix: Tensor | None,
    names: tuple[str, ...],
    v: Tensor,
) -> tuple[Tensor, ...]:
    """Return the derivative of every statistic in the direction v."""
    z, _, j = _prepared(f, y, scale, matrix)
    w = _scaled_direction(v.to(z.dtype), y, scale)
    r = _with_target(torch.softmax(_rivals(z, j), 1), j, 0.0)
    own, mean = w.gather(1, j).squeeze(1), (r * w).sum(1)
    out = []
    for name in names:
        if name in (LOG_ODDS, CHANCE_ODDS):
            out.append(mean - own)
        elif name == TARGET:
            out.append(own)
        elif name == GAPS:
            out.append(w.sum(1) - w.shape[1] * own)
        else:
            square = r.square()
            out.append(2 * ((square * w).sum(1) - square.sum(1) * mean))
    return tuple(out)


def _pull(
    f: Tensor,
    y: Tensor,
    scale: float | Tensor,
    matrix: Tensor | None,
    names: tuple[str, ...],
    gs: tuple[Tensor, ...],
) -> Tensor:
    """Return the gradient in f of sum_j <g_j, statistic j>: the transpose of _push."""
    z, _, j = _prepared(f, y, scale, matrix)
    r = _with_target(torch.softmax(_rivals(z, j), 1), j, 0.0)
    total = torch.zeros_like(z)
    for name, g in zip(names, gs, strict=True):
        g = g.unsqueeze(1)
        if name in (LOG_ODDS, CHANCE_ODDS):
            total = total + (g * r).scatter_add(1, j, -g)
        elif name == TARGET:
            total = total.scatter_add(1, j, g)
        elif name == GAPS:
            total = (total + g).scatter_add(1, j, -z.shape[1] * g)
        else:
            square = r.square()
            total = total + 2 * g * (square - r * square.sum(1, keepdim=True))
    return _scaled_direction(total, y, scale).to(f.dtype)


def _curve(
    f: Tensor,
    y: Tensor,
    scale: float | Tensor,
    matrix: Tensor | None,
    names: tuple[str, ...],
    gs: tuple[Tensor, ...],
    v: Tensor,
) -> Tensor:
    """Return the Hessian in f of sum_j <g_j, statistic j>, applied to v."""
    z, _, j = _prepared(f, y, scale, matrix)
    w = _scaled_direction(v.to(z.dtype), y, scale)
    r = _with_target(torch.softmax(_rivals(z, j), 1), j, 0.0)
    mean = (r * w).sum(1, keepdim=True)
    total = torch.zeros_like(z)
    for name, g in zip(names, gs, strict=True):
        g = g.unsqueeze(1)
        if name in (LOG_ODDS, CHANCE_ODDS):
            total = total + g * r * (w - mean)
        elif name == RIVAL_SQUARES:
            square = r.square()
            squares, along = square.sum(1, keepdim=True), (square * w).sum(1, keepdim=True)
            total = total + 2 * g * (
                2 * r * (r * w - along) - 2 * r * (r - squares) * mean - squares * r * (w - mean)
            )
    return _scaled_direction(total, y, scale).to(f.dtype)


def _scaled_direction(v: Tensor, y: Tensor, scale: float | Tensor) -> Tensor:
    """Return v * scale, zero in the rows that are not there."""
    v = v * (scale.unsqueeze(1) if isinstance(scale, Tensor) else scale)
    return torch.where((y < 0).unsqueeze(1), 0.0, v)


# The closed form in tiles. The gradient is a Function of its own, so that first-order backward
# stays tiled under create_graph and torch.func; only what lies beyond is made of stock operations.


def _tiles(f: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield the slices of axis 0 and axis 2 of tiles of about TILE_BYTES of scratch."""
    outer, num_classes = f.shape[:2]
    inner = f.shape[2] if f.dim() == 3 else 1
    most = TILE_BYTES.get(f.device.type, TILE_BYTES["other"])
    size = min(most, max(most // 4, f.nbytes // 16))
    budget = size // (num_classes * _compute_dtype(f).itemsize)
    rows, columns = max(1, budget // inner), max(1, min(inner, budget))
    for a in range(0, outer, rows):
        for b in range(0, inner, columns):
            yield slice(a, a + rows), slice(b, b + columns)


class _Tile:
    """One tile's rows, loaded into scratch: cleaned, in the compute dtype, the target excluded."""

    def __init__(self, f: Tensor, y: Tensor, scale: float | Tensor, matrix: Tensor | None) -> None:
        self.f, self.y, self.scale, self.matrix = f, y, scale, matrix
        self.dtype = _compute_dtype(f)
        self.lowest = torch.finfo(self.dtype).min
        # On a device, looking whether rows are absent would wait for it: clean them always there.
        self.masked = f.device.type != "cpu" or bool((y < 0).any())
        self.scratch: Tensor | None = None
        self.second: Tensor | None = None

    def at(self, x: Tensor, a: slice, b: slice) -> Tensor:
        return x[a, :, b] if x.dim() == 3 else x[a]

    def at_row(self, x: Tensor, a: slice, b: slice) -> Tensor:
        return x[a, b] if x.dim() == 2 else x[a]

    def load(self, a: slice, b: slice, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z and the target's index on axis 1."""
        f, y = self.at(self.f, a, b), self.at_row(self.y, a, b)
        z = self._buffer(f) if out is None else out
        z.copy_(f)
        if self.masked:
            z.masked_fill_((y < 0).unsqueeze(1), 0.0)
            y = y.clamp(min=0)
        j = y.unsqueeze(1)
        if self.matrix is not None:
            own = z.gather(1, j)
            if self.matrix.stride(0) == 0:  # one row for all targets: none is gathered
                z.add_(self.matrix[0].view(-1, *[1] * (z.dim() - 2))).scatter_(1, j, own)
            else:
                z.add_(self.matrix[y].movedim(-1, 1)).scatter_(1, j, own)
        if isinstance(self.scale, Tensor):
            z.mul_(self.at_row(self.scale, a, b).unsqueeze(1))
        elif self.scale != 1.0:
            z.mul_(self.scale)
        return z, j

    def _buffer(self, f: Tensor) -> Tensor:
        if self.scratch is None:  # the first tile is the largest
            self.scratch = torch.empty(f.numel(), dtype=self.dtype, device=f.device)
        return self.scratch[: f.numel()].view(f.shape)

    def spare(self, z: Tensor) -> Tensor:
        """Return scratch in the shape of a tile: a new one for each would come in fresh pages."""
        if self.second is None:
            self.second = torch.empty(z.numel(), dtype=self.dtype, device=z.device)
        return self.second[: z.numel()].view(z.shape)


def _tiled_values(
    f: Tensor, y: Tensor, scale: float | Tensor, matrix: Tensor | None, names: tuple[str, ...]
) -> tuple[Tensor, ...]:
    tile = _Tile(f, y, scale, matrix)
    out = {name: torch.empty(y.shape, dtype=tile.dtype, device=f.device) for name in names}
    rivals = f.shape[1] - 1
    for a, b in _tiles(f):
        z, j = tile.load(a, b)
        own = z.gather(1, j)
        own1 = own.squeeze(1)
        put = {name: tile.at_row(x, a, b) for name, x in out.items()}
        if TARGET in put:
            put[TARGET].copy_(own1)
        if GAPS in put:
            put[GAPS].copy_(_gaps(torch.sub(z, own, out=tile.spare(z)), own1))
        z.scatter_(1, j, tile.lowest)
        top = z.amax(1)
        if CHANCE_ODDS in put:
            near = top - own1 <= NEAR_CHANCE
            excess = None
            # Rows near chance are rare but in early training: elsewhere this costs nothing.
            if z.device.type != "cpu" or bool(near.any()):
                gap = z.scatter(1, j, own).sub_(own)
                near &= gap.amin(1) >= -NEAR_CHANCE
                excess = gap.expm1_().sum(1)
        torch._softmax(z, 1, False, out=z)
        # The largest r is 1 / sum exp(z - top): one more pass in the cache gives log-sum-exp.
        t = (top - own1) - z.amax(1).log_()
        if LOG_ODDS in put:
            put[LOG_ODDS].copy_(t)
        if CHANCE_ODDS in put:
            t = t - math.log(rivals)
            if excess is not None:
                t = torch.where(near, torch.log1p(excess / rivals), t)
            put[CHANCE_ODDS].copy_(t)
        if RIVAL_SQUARES in put:
            put[RIVAL_SQUARES].copy_(z.scatter_(1, j, 0.0).square_().sum(1))
    return tuple(out[name] for name in names)


def _tiled_gradient(
    f: Tensor,
    y: Tensor,
    scale: float | Tensor,
    matrix: Tensor | None,
    names: tuple[str, ...],
    gs: tuple[Tensor, ...],
) -> Tensor:
    tile = _Tile(f, y, scale, matrix)
    out = torch.empty_like(f)
    given = dict(zip(names, gs, strict=True))

    def coefficient(*wanted: str) -> Tensor:
        """Return what multiplies the gradient of some statistics: 0 in rows that are not there."""
        first, *others = (given[n] for n in wanted if n in given)
        return torch.where(y < 0, 0.0, sum(others, first) * scale)

    slopes, targets, squares, levels = (
        coefficient(*wanted) if any(n in given for n in wanted) else None
        for wanted in ((LOG_ODDS, CHANCE_ODDS), (TARGET,), (RIVAL_SQUARES,), (GAPS,))
    )
    zero = torch.zeros((), dtype=tile.dtype, device=f.device)
    for a, b in _tiles(f):
        gradient = tile.at(out, a, b)
        # The gradient's own memory is the scratch where it has the right dtype and layout.
        in_place = gradient if gradient.dtype == tile.dtype and gradient.is_contiguous() else None
        z, j = tile.load(a, b, in_place)
        if slopes is None and squares is None:
            z.zero_()
        else:
            torch._softmax(z.scatter_(1, j, tile.lowest), 1, False, out=z)
        slope = zero.expand(j.shape) if slopes is None else tile.at_row(slopes, a, b).unsqueeze(1)
        at_target = -slope if targets is None else tile.at_row(targets, a, b).unsqueeze(1) - slope
        if squares is not None:
            double = 2 * tile.at_row(squares, a, b).unsqueeze(1)
            z.scatter_(1, j, 0.0)
            spare = tile.spare(z)
            total = torch.mul(z, z, out=spare).sum(1, keepdim=True)
            slope = torch.mul(z, double, out=spare).add_(slope - double * total)
        z.mul_(slope)
        if levels is not None:
            level = tile.at_row(levels, a, b).unsqueeze(1)
            z.add_(level)
            at_target = at_target - (z.shape[1] - 1) * level
        z.scatter_(1, j, at_target)
        if in_place is None:
            gradient.copy_(z)
    return out


def _fold(info: Any, dims: tuple[int | None, ...], xs: tuple[Any, ...]) -> list[Any]:
    """Merge the vmapped axis of every argument into its rows."""
    folded = []
    for x, dim in zip(xs, dims, strict=True):
        if isinstance(x, Tensor):
            x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            x = x.reshape(info.batch_size * x.shape[1], *x.shape[2:])
        folded.append(x)
    return folded


class _Rows(torch.autograd.Function):
    """The statistics of every row. Saves its inputs and nothing else."""

    @staticmethod
    def forward(
        f: Tensor, y: Tensor, scale: float | Tensor, matrix: Tensor | None, names: tuple[str, ...]
    ) -> tuple[Tensor, ...]:
        return _tiled_values(f, y, scale, matrix, names)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *gs: Tensor) -> tuple[Tensor | None, ...]:
        f, y, scale, matrix, names, _ = _saved(ctx)
        return _gradient(f, y, scale, matrix, names, *gs), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, df: Tensor, *_: Any) -> tuple[Tensor, ...]:
        f, y, scale, matrix, names, _ = _saved(ctx)
        return _push(f, y, scale, matrix, names, df)

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], *inputs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        f, y, scale, matrix, names = inputs  # a margin matrix per example never comes here
        f, y, scale = _fold(info, dims[:3], (f, y, scale))
        out = _Rows.apply(f, y, scale, matrix, names)  # type: ignore[no-untyped-call]
        return tuple(x.view(info.batch_size, -1, *x.shape[1:]) for x in out), (0,) * len(names)


def _gradient(
    f: Tensor,
    y: Tensor,
    scale: float | Tensor,
    matrix: Tensor | None,
    names: tuple[str, ...],
    *gs: Tensor,
) -> Tensor:
    if torch.compiler.is_compiling() or any(_is_legacy_batched(g) for g in gs):
        return _pull(f, y, scale, matrix, names, gs)
    out: Tensor = _RowsGradient.apply(f, y, scale, matrix, names, *gs)  # type: ignore[no-untyped-call]
    return out


class _RowsGradient(torch.autograd.Function):
    """The gradient of the statistics in f, for one cotangent per statistic."""

    @staticmethod
    def forward(
        f: Tensor,
        y: Tensor,
        scale: float | Tensor,
        matrix: Tensor | None,
        names: tuple[str, ...],
        *gs: Tensor,
    ) -> Tensor:
        return _tiled_gradient(f, y, scale, matrix, names, gs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        f, y, scale, matrix, names, gs = _saved(ctx)
        curve = _curve(f, y, scale, matrix, names, gs, v)
        return curve, None, None, None, None, *_push(f, y, scale, matrix, names, v)

    @staticmethod
    def jvp(ctx: Any, df: Tensor, *others: Any) -> Tensor:
        f, y, scale, matrix, names, gs = _saved(ctx)
        dgs = tuple(
            torch.zeros_like(g) if dg is None else dg for g, dg in zip(gs, others[4:], strict=True)
        )
        out = _pull(f, y, scale, matrix, names, dgs)
        return out if df is None else out + _curve(f, y, scale, matrix, names, gs, df)

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        f, y, scale, matrix, names, *gs = inputs
        f, y, scale, *gs = _fold(info, (*dims[:3], *dims[5:]), (f, y, scale, *gs))
        out = _gradient(f, y, scale, matrix, names, *gs)
        return out.view(info.batch_size, -1, *out.shape[1:]), 0


def _save(ctx: Any, inputs: tuple[Any, ...]) -> None:
    f, y, scale, matrix, names, *gs = inputs
    ctx.names = names
    ctx.scale = None if isinstance(scale, Tensor) else scale
    tensors = (f, y, scale if isinstance(scale, Tensor) else None, matrix, *gs)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _saved(ctx: Any) -> tuple[Any, ...]:
    f, y, scale, matrix, *gs = ctx.saved_tensors
    return f, y, scale if ctx.scale is None else ctx.scale, matrix, ctx.names, tuple(gs)
