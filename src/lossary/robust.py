r"""Robust regression losses: far residuals pull no harder, or less, than near ones.

.. math:: \ell(x, y) = \rho(\lVert x - y \rVert; c)

Every loss is a quadratic near 0, up to a length scale c, and grows more slowly beyond: linearly
(pseudo-Huber) or like a logarithm (Cauchy). It is taken of every element (``mode="elementwise"``),
or of the Euclidean norm of every sample's whole residual (``mode="vector"``), which turns whole
samples down instead of single coordinates and does not depend on the choice of axes.
"""

import math
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from lossary import _distributed, _residual
from lossary._base import Loss, LossOptions
from lossary._checks import (
    check_choice,
    check_device,
    check_floating,
    check_int,
    check_like,
    check_number,
    check_positive,
)
from lossary._properties import Properties
from lossary._residual import Kernel, Scale
from lossary._softmax import readable


class _RobustLoss(Loss):
    """A loss of the residual: its inputs, its scale and its two modes."""

    upcast = False
    _kernel: ClassVar[type[Kernel]]
    scale: float | str | Tensor

    def __init__(
        self, scale: float | str | Tensor, mode: str, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        check_choice("mode", mode, ("elementwise", "vector"))
        self.mode = mode
        self._keep(scale if isinstance(scale, str) and scale == "auto" else _checked_scale(scale))

    def _keep(self, scale: float | str | Tensor) -> None:
        if isinstance(scale, Tensor) and not isinstance(scale, nn.Parameter):
            self.register_buffer("scale", scale)
        else:
            self.scale = scale

    def per_sample(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every element, or of every sample, unreduced."""
        mode = _residual.SAMPLES if self.mode == "vector" else _residual.ELEMENTS
        return self._robust_loss(input, target, mode)

    def _evaluate(
        self, inputs: tuple[Any, ...], weight: Tensor | None, normalizer: float | Tensor | None
    ) -> Tensor:
        plain = weight is None and self.mode == "elementwise" and self.reduction != "none"
        if not plain or type(self).per_sample is not _RobustLoss.per_sample:
            return super()._evaluate(inputs, weight, normalizer)
        # The sum alone is wanted: the values, a buffer of the input's size, are never made.
        input, target = inputs
        total = self._robust_loss(input, target, _residual.TOTAL)
        count = input.numel()
        if normalizer is None and self.reduction == "mean":
            return total / count if count else total.sum()
        if normalizer is None and self.reduction == "batchmean":
            everywhere = _distributed.sum_over_ranks(torch.full_like(total, count)).clamp(min=1.0)
            return total * _distributed.world_size() / everywhere
        return self._reduce(total, None, None, normalizer)

    def _robust_loss(self, input: Tensor, target: Tensor, mode: str) -> Tensor:
        self._check_inputs(input, target)
        scale = self._scale_for(input)
        return _residual.robust_loss(self._kernel, input, target, scale, mode)

    def _check_inputs(self, input: Tensor, target: Tensor) -> None:
        check_floating("input", input)
        check_floating("target", target)
        check_like("target", target, "input", input)
        if self.mode == "vector" and input.dim() == 0:
            raise ValueError("input: expected samples along an axis 0, got a 0-dim tensor")

    def _scale_for(self, input: Tensor) -> Scale:
        c = self.scale
        if isinstance(c, str):
            return 0.00054 * math.sqrt(max(1, math.prod(input.shape[1:])))
        if isinstance(c, Tensor):
            values = input.shape[:1] if self.mode == "vector" else input.shape
            if not _broadcasts(c.shape, values):
                raise ValueError(
                    f"scale: expected a shape that broadcasts to that of the values, "
                    f"{tuple(values)}, got {tuple(c.shape)}"
                )
            check_device("scale", c, input)
        return c


def _checked_scale(scale: object) -> float | Tensor:
    if not isinstance(scale, Tensor):
        return check_positive("scale", scale)
    if not scale.dtype.is_floating_point:
        raise TypeError(f"scale: expected a number or a float tensor, got {scale.dtype}")
    good = (scale > 0) & scale.isfinite()
    if readable(good) and not bool(good.all()):
        wrong = float(scale.detach()[~good][0])
        raise ValueError(f"scale: expected finite numbers > 0, got {wrong:g}")
    return scale


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    """Tell whether a shape broadcasts to another without enlarging it."""
    last = to[len(to) - len(shape) :]
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape, last, strict=True))


class _PseudoHuber(Kernel):
    degree = 1
    steep = True

    @staticmethod
    def value(square: Tensor, s: Tensor, c: Scale, m: Scale) -> Tensor:
        # m (sqrt(s + q^2) - q) would cancel all digits of a small residual's loss.
        q = c / m
        return square / ((s + q * q).sqrt() + q)

    @staticmethod
    def weight(s: Tensor, q: Scale) -> Tensor:
        return (s + q * q).rsqrt()

    @staticmethod
    def bend(s: Tensor, q: Scale) -> Tensor:
        return (s + q * q).reciprocal()

    @classmethod
    def elements(cls, r: Tensor, c: float) -> Tensor:
        # Where c is below the last digit of r, the loss is |r|; else no square overflows.
        info = torch.finfo(r.dtype)
        far = r.abs() > min(c / info.eps**1.25, info.max)
        near = torch.where(far, 0.0, r)
        u = near * (1.0 / c)
        return torch.where(far, r.abs(), near * (u / ((u * u + 1.0).sqrt() + 1.0)))

    @staticmethod
    def tile_values(r: Tensor, out: Tensor, c: float) -> bool:
        if not _squares_are_finite(r):
            return False
        torch.addcmul(r.new_tensor(c * c), r, r, out=out).sqrt_()
        torch.div(r, out.add_(c), out=out).mul_(r)
        return True

    @classmethod
    def tile_sum(cls, r: Tensor, scratch: Tensor, c: float) -> float:
        roots = float(torch.addcmul(r.new_tensor(c * c), r, r, out=scratch).sqrt_().sum())
        # The roots are right to half a spacing each, so that their sum less that of the scales has
        # all its digits where most of it is left. Elsewhere every value is formed without loss.
        total = roots - c * r.numel()
        if total >= 0.25 * roots:
            return total
        return float(torch.div(r, scratch.add_(c), out=scratch).mul_(r).sum())

    @staticmethod
    def tile_gradient(r: Tensor, scratch: Tensor, c: float, g: float) -> bool:
        if not _squares_are_finite(r):
            return False
        torch.addcmul(r.new_tensor(c * c), r, r, out=scratch).rsqrt_()
        torch.addcmul(r.new_zeros(()), scratch, r, value=g, out=r)
        return True


def _squares_are_finite(r: Tensor) -> bool:
    # A dot product is the fastest way to ask: half the time of a minimum and a maximum.
    line = r.view(-1)
    return float(torch.dot(line, line)) < torch.finfo(r.dtype).max / 4.0


class _Cauchy(Kernel):
    degree = 0
    steep = False

    @staticmethod
    def value(square: Tensor, s: Tensor, c: Scale, m: Scale) -> Tensor:
        q = c / m
        if isinstance(q, float) and q == 1.0:
            return (s * 0.5).log1p()
        # Where s/(2 q^2) is large, q^2 may have vanished: a difference of logarithms, which there
        # has nothing to cancel.
        far = s > q * q * 2.0**60
        ratio = torch.where(far, 0.0, s) / q / (2.0 * q)
        logs = torch.where(far, s, 1.0).log() - 2.0 * (_log(c) - _log(m)) - math.log(2.0)
        return torch.where(far, logs, ratio.log1p())

    @staticmethod
    def weight(s: Tensor, q: Scale) -> Tensor:
        return (s * 0.5 + q * q).reciprocal()

    @staticmethod
    def bend(s: Tensor, q: Scale) -> Tensor:
        return (s * 0.5 + q * q).reciprocal()

    @classmethod
    def elements(cls, r: Tensor, c: float) -> Tensor:
        # One logarithm for all sizes: log1p(u^2), or, where the square overflows, 2 log(u 2^-k) +
        # 2 k log 2 with a k for which u 2^-k is neither large nor far below 1.
        largest = torch.finfo(r.dtype).max
        half = math.frexp(largest)[1] // 2
        rate = 1.0 / (c * math.sqrt(2.0))
        far = r.abs() > min(2.0 ** (half - 1) / rate, largest)
        u = torch.where(far, 0.0, r) * rate
        shrunk = r.abs() * 2.0 ** -(half + 2) * rate
        values = torch.where(far, shrunk - 1.0, u * u).log1p()
        return torch.where(far, 2.0 * values + (2 * half + 4) * math.log(2.0), values)

    @staticmethod
    def tile_values(r: Tensor, out: Tensor, c: float) -> bool:
        torch.addcmul(r.new_zeros(()), r, r, value=0.5 / (c * c), out=out).log1p_()
        return True

    @staticmethod
    def tile_gradient(r: Tensor, scratch: Tensor, c: float, g: float) -> bool:
        # 2 g / (r + 2 c^2/r): neither a square nor a quotient that could overflow to a wrong 0.
        torch.addcdiv(r, r.new_ones(()), r, value=2.0 * c * c, out=scratch)
        torch.div(r.new_tensor(2.0 * g), scratch, out=r)
        return True


def _log(x: Scale) -> Scale:
    return x.log() if isinstance(x, Tensor) else math.log(x)


class PseudoHuberLoss(_RobustLoss):
    r"""Pseudo-Huber loss: quadratic near 0, the distance itself far away, smooth in between.

    .. math:: \ell(x, y) = \sqrt{\lVert x - y \rVert^2 + c^2} - c, \qquad
              \nabla_x \ell = \frac{x - y}{\sqrt{\lVert x - y \rVert^2 + c^2}}

    Where outliers make the squared error jump, and the absolute error is too rough near 0. With
    its defaults it is the distance of improved consistency training (iCT): the norm is that of a
    whole sample, and c grows with the sample's size, so that images of any resolution in [-1, 1]
    need no tuning.

    Args:
        scale: the length c at which the loss turns from quadratic to linear: a positive number; a
            floating-point tensor that broadcasts to the values, which becomes a buffer, or, given
            as ``nn.Parameter``, is trained; or ``"auto"``, the default: 0.00054 sqrt(d) for samples
            of d elements, in both modes.
        mode: ``"vector"``, the default: one value per sample, of the norm over all axes but the
            first. ``"elementwise"``: one value per element, as in ``nn.HuberLoss``.
        reduction: see :class:`lossary.Loss`.

    Shape:
        input (N, ...) and target of the same shape. Values (N,) in vector mode, else that shape.
        Floating-point dtypes may differ: the wider is computed in, float32 at least, and each
        input gets its gradient in its own dtype.

    Properties:
        Convex, infinitely smooth. 0 <= l <= \|x - y\|, and l >= \|x - y\| - c, and
        l <= \|x - y\|^2/(2c). The gradient of every value has a norm below 1. Scaling: l(k r; k c)
        = k l(r; c). In vector mode unchanged by rotations of the residual.

    Limits:
        c -> 0: the distance \|x - y\|. c -> inf: c l -> \|x - y\|^2/2. For one element
        h - c/2 <= l <= h with h = ``F.huber_loss(input, target, delta=c) / c``. c times Barron's
        general robust loss at alpha = 1. Several public codes of iCT take ``mode="elementwise"``
        with the c of the vector form; RG-LCD takes it with c = 0.001.

    Note:
        Computed as r^2/(sqrt(r^2 + c^2) + c), in units in which no square overflows or vanishes:
        small residuals keep their digits, and at x = y the gradient is exactly 0. The scale is held
        within [8e-28, 2e37] in float32. Large inputs are computed in tiles that hold one buffer of
        the input's size, the gradient; a trained scale costs several.

    Raises:
        ValueError: ``scale`` not positive and finite, or of a shape that does not broadcast to the
            values; unknown ``mode``; input and target of different shapes or devices; a 0-dim input
            in vector mode.
        TypeError: ``scale`` neither a number nor a floating-point tensor; input or target not
            floating point.

    Reference:
        Song, Dhariwal, "Improved Techniques for Training Consistency Models", 2023. There is no
        official code; form and constants agree in three independent implementations.

    Example:
        >>> import torch
        >>> from lossary import PseudoHuberLoss
        >>> input = torch.tensor([[0.3, -0.4], [3.0, 4.0]])
        >>> PseudoHuberLoss(scale=1.0, reduction="none")(input, torch.zeros(2, 2))
        tensor([0.1180, 4.0990])
        >>> PseudoHuberLoss(scale=1.0, mode="elementwise")(input, torch.zeros(2, 2))
        tensor(1.3516)
    """

    _kernel = _PseudoHuber

    def __init__(
        self,
        scale: float | str | Tensor = "auto",
        mode: str = "vector",
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(scale, mode, **options)

    def properties(self) -> Properties:
        """Return what this instance guarantees; in elementwise mode, every element is a sample."""
        one = _lengths(self.scale)
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=1.0,
            smoothness=math.inf,
            limits=(
                ("c -> 0", "the distance of input and target"),
                ("c -> inf", "squared error / (2c)"),
            ),
            counterexamples={"upper": (one, torch.zeros_like(one))},
            source="Song, Dhariwal 2023; Barron 2019",
        )


class CauchyLoss(_RobustLoss):
    r"""Cauchy loss: grows like a logarithm, so that far outliers lose their pull.

    .. math:: \ell(x, y) = \log\Bigl(1 + \frac{\lVert x - y \rVert^2}{2 c^2}\Bigr), \qquad
              \nabla_x \ell = \frac{2 (x - y)}{2 c^2 + \lVert x - y \rVert^2}

    Redescending: the pull is largest at a residual of sqrt(2) c, and fades beyond. Take it where a
    part of the targets is plainly wrong (outliers, impulsive noise); it is not convex, so start
    near a solution or with a large c. In latent consistency training it replaces the pseudo-Huber
    distance, with a c that shrinks as the discretisation gets finer
    (:func:`adaptive_cauchy_scale`).

    Args:
        scale: the length c: a positive number, or a floating-point tensor that broadcasts to the
            values, which becomes a buffer, or, given as ``nn.Parameter``, is trained. Default 1.
        mode: ``"elementwise"``, the default: one value per element. ``"vector"``: one value per
            sample, of the norm over all axes but the first.
        reduction: see :class:`lossary.Loss`.

    Shape:
        input (N, ...) and target of the same shape. Values (N,) in vector mode, else that shape.
        Floating-point dtypes may differ: the wider is computed in, float32 at least, and each
        input gets its gradient in its own dtype.

    Properties:
        l >= 0, unbounded, quasi-convex in the residual's norm, convex only where it is at most
        sqrt(2) c. The gradient of every value has a norm of at most 1/(sqrt(2) c), reached at
        \|x - y\| = sqrt(2) c. Infinitely smooth. Scaling: l(k r; k c) = l(r; c). In vector mode
        unchanged by rotations of the residual.

    Limits:
        Small residuals: \|x - y\|^2/(2 c^2). Up to a constant the negative log-likelihood of a
        Cauchy distribution with the half-width sqrt(2) c. Barron's general robust loss at
        alpha = 0; at c = 1 the ``cauchy_loss`` of kornia.

    Note:
        Where the ratio overflows, a difference of logarithms takes over: the value is right for
        any residual, and the gradient decays like 2/\|x - y\| instead of breaking off. The scale is
        held within [8e-28, 2e37] in float32. Large inputs are computed in tiles that hold one
        buffer of the input's size, the gradient; a trained scale costs several.

    Raises:
        ValueError: ``scale`` not positive and finite, or of a shape that does not broadcast to the
            values; unknown ``mode``; input and target of different shapes or devices; a 0-dim input
            in vector mode.
        TypeError: ``scale`` neither a number nor a floating-point tensor; input or target not
            floating point.

    Reference:
        Dao, Doan, Liu, Le, Metaxas, "Improved Training Technique for Latent Consistency Models",
        2025; the authors' code takes the loss from Barron, "A General and Adaptive Robust Loss
        Function", 2019, which this one was verified against. The vector form is RECALLED.

    Example:
        >>> import torch
        >>> from lossary import CauchyLoss
        >>> input = torch.tensor([0.1, -1.0, 1000.0], requires_grad=True)
        >>> loss = CauchyLoss(scale=1.0, reduction="sum")(input, torch.zeros(3))
        >>> loss
        tensor(13.5328, grad_fn=<SumBackward0>)
        >>> torch.autograd.grad(loss, input)[0]
        tensor([ 0.0995, -0.6667,  0.0020])
    """

    _kernel = _Cauchy

    def __init__(
        self,
        scale: float | Tensor = 1.0,
        mode: str = "elementwise",
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(_checked_scale(scale), mode, **options)

    def set_scale(self, c: float | Tensor) -> None:
        """Set the scale, as a schedule does between two stages of training.

        A trained scale is overwritten in place, so that its optimizer keeps it, and a buffer stays
        one: under torch.compile, start from a tensor, as a number is compiled into the code.

        Args:
            c: c > 0, a number or a tensor, as in the constructor.

        Raises:
            ValueError: ``c`` not positive and finite, or of a shape that does not broadcast to
                that of a trained scale.
            TypeError: ``c`` neither a number nor a floating-point tensor.

        Example:
            >>> from lossary import CauchyLoss, adaptive_cauchy_scale
            >>> loss = CauchyLoss(adaptive_cauchy_scale(11), mode="vector")
            >>> loss.set_scale(adaptive_cauchy_scale(21))
            >>> round(loss.scale, 4)
            0.0136
        """
        new, old = _checked_scale(c), self.scale
        if isinstance(old, nn.Parameter) and not isinstance(new, nn.Parameter):
            if isinstance(new, Tensor) and not _broadcasts(new.shape, old.shape):
                raise ValueError(
                    f"scale: expected a shape that broadcasts to that of the trained scale, "
                    f"{tuple(old.shape)}, got {tuple(new.shape)}"
                )
            with torch.no_grad():
                old.copy_(new) if isinstance(new, Tensor) else old.fill_(new)
        elif isinstance(old, Tensor) and not isinstance(new, Tensor):
            self.scale = torch.full_like(old, new)
        else:
            del self.scale
            self._keep(new)

    def properties(self) -> Properties:
        """Return what this instance guarantees; in elementwise mode, every element is a sample."""
        one = _lengths(self.scale)
        c = torch.as_tensor(self.scale, dtype=torch.float64).detach().cpu().reshape(one.shape)
        zero = torch.zeros_like(one)
        return Properties(
            # Concave beyond sqrt(2) c.
            convex=False,
            lower=0.0,
            upper=math.inf,
            lipschitz=1.0 / (math.sqrt(2.0) * float(c.min())),
            smoothness=math.inf,
            limits=(
                ("small residuals", "squared error / (2 c^2)"),
                ("up to a constant", "Cauchy negative log-likelihood, half-width sqrt(2) c"),
            ),
            counterexamples={"convex": (2.0 * c, 20.0 * c, zero), "upper": (one, zero)},
            source="Barron 2019; Dao, Doan, Liu, Le, Metaxas 2025",
        )


def _lengths(scale: float | str | Tensor) -> Tensor:
    """Return ones: a residual that the scale broadcasts to, if it is a tensor of several."""
    shape = scale.shape if isinstance(scale, Tensor) and scale.dim() else (1,)
    return torch.ones(shape, dtype=torch.float64)


def adaptive_cauchy_scale(
    num_scales: int,
    initial_scale: float = 0.0345,
    s0: int = 10,
    slope: float = -1.15,
    intercept: float = -0.85,
) -> float:
    r"""Return the scale of :class:`CauchyLoss` for a stage of latent consistency training.

    .. math:: c(n) = \exp\bigl(\text{slope} \cdot \ln(n - 1) + \text{intercept}\bigr)

    The finer the discretisation, the closer the two points that the loss compares, and the smaller
    the residuals that count as outliers.

    Args:
        num_scales: the number n of grid points of the stage, n >= 2: 11, 21, ..., 641 when their
            intervals are doubled from 10 to 640.
        initial_scale: what the first stage, n = ``s0`` + 1, takes instead; > 0. The default is
            about 0.00054 sqrt(4 * 32 * 32), :class:`PseudoHuberLoss`'s for latents of that shape.
        s0: the intervals of the first stage, >= 1.
        slope: of ln c against ln(n - 1), finite.
        intercept: likewise. One of the authors' scripts multiplies c by sqrt(2), which adds
            ln(2)/2 to it.

    Returns:
        The scale, a length in units of the data. Decreasing in n for a negative slope.

    Raises:
        ValueError: ``num_scales`` below 2, ``s0`` below 1, ``initial_scale`` not positive, or a
            number that is not finite.
        TypeError: ``num_scales`` or ``s0`` not an int, the others not numbers.

    Reference:
        Dao, Doan, Liu, Le, Metaxas, "Improved Training Technique for Latent Consistency Models",
        2025. The rule was read in the authors' training scripts; the coefficients as printed in the
        paper are UNVERIFIED.

    Example:
        >>> from lossary import adaptive_cauchy_scale
        >>> [round(adaptive_cauchy_scale(n), 5) for n in (11, 21, 641)]
        [0.0345, 0.01364, 0.00025]
    """
    check_int("num_scales", num_scales, 2)
    check_int("s0", s0, 1)
    initial_scale = check_positive("initial_scale", initial_scale)
    bounds = {"low_open": True, "high_open": True}
    slope = check_number("slope", slope, **bounds)
    intercept = check_number("intercept", intercept, **bounds)
    if num_scales == s0 + 1:
        return initial_scale
    return math.exp(slope * math.log(num_scales - 1) + intercept)
