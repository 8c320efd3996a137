r"""Label-distributionally-robust losses: the worst case over distributions of the rival labels.

.. math:: \ell(f, y) = \max_{r \in \Delta}\ \langle r, z\rangle - \lambda\, R(r), \qquad
          z_k = f_k - f_y + c_{k,y}

With R the Kullback-Leibler divergence to the uniform distribution the maximum is a log-sum-exp: a
cross-entropy with a margin c and a temperature lambda, between the multiclass hinge (lambda = 0,
trusts the label and fights the hardest rival) and a linear, symmetric loss (lambda = infinity).
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary import _softmax
from lossary._base import ClassificationLoss, ClassOptions, check_choice, check_number
from lossary._numerics import softplus
from lossary._properties import Properties


class LDRKLLoss(ClassificationLoss):
    r"""LDR loss with a KL regulariser: cross-entropy with a margin and a temperature.

    .. math:: \ell(f, y) = \max_{r \in \Delta}\ \langle r, z\rangle
              - \lambda \operatorname{KL}(r \,\|\, 1/K)
              = \lambda \log \frac1K \sum_k e^{z_k/\lambda}, \qquad z_k = f_k - f_y + c_{k,y}

    Use it as cross-entropy with two dials. ``lam`` says how much the label is trusted: large lam
    spreads the push over all rivals and tolerates label noise, small lam fights the hardest rival.
    ``margin`` asks for a gap before an example counts as learnt.

    Args:
        lam: 0 <= lam <= inf, both ends allowed. Default 1.
        margin: c >= 0. A number: c_{k,y} = c for every rival k != y. Default 0.1. A (K,) tensor:
            the margin of the examples of each class. A (K, K) tensor with zero diagonal: row y
            holds the margins of the rivals of target y, ``margin[y, k]`` = c_{k,y}.
        normalize: ``None`` (default), ``"l1"`` (f divided by mean_k abs(f_k)) or ``"softplus"``
            (softplus(f) divided by its mean, as in the authors' experiments). Gradients pass
            through it.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory (dense layout).

    Properties:
        Convex in the logits, gradient r* - e_y with r* = softmax(z/lam), so of norm at most
        sqrt(2). Bounded below by -lam log K (0 at lam = 0, nothing at lam = inf), so it can be
        negative; unbounded above. Calibrated and rank-consistent for 0 < lam < inf and a margin
        shared by all classes. Symmetric iff lam = inf, with class sum c (K - 1). Proper iff lam = 1
        and the margin is 0. lam = 0 is calibrated only where some class has probability above 1/2,
        lam = inf only on a bounded set of logits. Nonincreasing in lam. With ``normalize`` none of
        convexity, shift invariance and the minimiser survive.

    Limits:
        Margin 0: lam * (CE(f/lam) - log K). lam = 0: the Crammer-Singer hinge,
        max_k z_k. lam = inf: the mean of z.

    Note:
        For lam of 4 and more the value is computed from the log-odds above chance: lam times
        (log-sum-exp minus log K) would cancel, to 0.15% at lam = 1e4. ``normalize`` divides by a
        mean that is clamped at the smallest normal number, and costs copies of the logits.

    Raises:
        ValueError: ``lam`` negative or nan, a negative or non-finite margin, a margin tensor that
            is neither (K,) nor (K, K) or has a non-zero diagonal, unknown ``normalize``.
        TypeError: ``lam`` or ``margin`` of a wrong type.

    Reference:
        Zhu, Ying, Yang, "Label Distributionally Robust Losses for Multi-class Classification:
        Consistency, Robustness and Adaptivity", 2023. The authors' class defaults to lam = 1,
        margin = 2; their experiments use lam = 10, margin = 0.1 and ``normalize="softplus"``.

    Example:
        >>> import torch
        >>> from lossary import LDRKLLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> LDRKLLoss(lam=1.0, margin=0.1)(logits, torch.tensor([0, 2]))
        tensor(0.0199)
    """

    margin: Tensor | float

    def __init__(
        self,
        lam: float = 1.0,
        margin: float | Tensor = 0.1,
        normalize: str | None = None,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(**options)
        self.lam = check_number("lam", lam, 0.0)
        check_choice("normalize", normalize, (None, "softplus", "l1"))
        self.normalize = normalize
        if isinstance(margin, Tensor):
            self.register_buffer("margin", _checked_margin(margin))
        else:
            self.margin = check_number("margin", margin, 0.0, math.inf, high_open=True)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        axis = self._class_axis(logits)
        num_classes = logits.shape[axis]
        if isinstance(self.margin, Tensor) and len(self.margin) != num_classes:
            raise ValueError(
                f"margin: expected {num_classes} classes, got shape {tuple(self.margin.shape)}"
            )
        if self.normalize is not None:
            if target is not None:
                logits = torch.where((target < 0).unsqueeze(axis), 0.0, logits)
            logits = _normalized(logits, axis, self.normalize)
        if self.lam == 0.0:
            rival = _softmax.hardest_rival(logits, target, class_dim=axis, margin=self.margin)
            return torch.relu(rival)
        if self.lam == math.inf:
            return self._mean_gap(logits, target, axis)
        if self.lam < 4.0:
            t = self.log_odds(logits, target, temperature=self.lam, margin=self.margin)
            value = softplus(t) - math.log(num_classes)
            return value if self.lam == 1.0 else value * self.lam
        u = self.log_odds(
            logits, target, temperature=self.lam, margin=self.margin, above_chance=True
        )
        return _above_chance(u, num_classes) * self.lam

    def _mean_gap(self, logits: Tensor, target: Tensor, axis: int) -> Tensor:
        """Return mean_k z_k, the loss at infinite temperature."""
        num_classes = logits.shape[axis]
        margin = self.margin
        if target is None:
            f = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
            gap = f.mean(axis, keepdim=True) - f
            if not isinstance(margin, Tensor):
                return gap + margin * (num_classes - 1) / num_classes
            margin = margin.to(f.dtype)
            mean = margin.sum(1) if margin.dim() == 2 else margin * (num_classes - 1)
            return (gap.movedim(axis, -1) + mean / num_classes).movedim(-1, axis)
        names = (_softmax.TOTAL, _softmax.TARGET)
        total, own = _softmax.row_statistics(logits, target, names, class_dim=axis, margin=margin)
        # An impossible target is infinitely far behind, not infinity less infinity.
        return torch.where(own == -math.inf, math.inf, total / num_classes - own)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        return _properties(self, num_classes)


def _checked_margin(margin: Tensor) -> Tensor:
    if not margin.dtype.is_floating_point:
        raise TypeError(f"margin: expected a float tensor, got {margin.dtype}")
    square = margin.dim() == 2 and margin.shape[0] == margin.shape[1]
    if not (square or margin.dim() == 1) or len(margin) < 2:
        raise ValueError(f"margin: expected shape (K,) or (K, K), got {tuple(margin.shape)}")
    bad = margin[~((margin >= 0) & margin.isfinite())]
    if len(bad) > 0:
        raise ValueError(f"margin: expected finite numbers >= 0, got {float(bad[0])}")
    if square and bool((margin.diagonal() != 0).any()):
        largest = float(margin.diagonal().max())
        raise ValueError(f"margin: expected a zero diagonal, got up to {largest:g} on it")
    return margin


def _normalized(logits: Tensor, axis: int, normalize: str) -> Tensor:
    f = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if normalize == "softplus":
        f = softplus(f)
        mean = f.mean(axis, keepdim=True)
    else:
        mean = f.abs().mean(axis, keepdim=True)
    return f / mean.clamp(min=torch.finfo(f.dtype).tiny)


def _above_chance(u: Tensor, num_classes: int) -> Tensor:
    """Return log((1 + (K-1) e^u)/K), which vanishes with u, to full relative accuracy."""
    share = (num_classes - 1) / num_classes
    far = u.abs() > 1.0
    near = torch.log1p(share * torch.expm1(torch.where(far, 0.0, u)))
    return torch.where(far, softplus(u + math.log(num_classes - 1)) - math.log(num_classes), near)


def _properties(loss: LDRKLLoss, num_classes: int) -> Properties:
    lam, margin = loss.lam, loss.margin
    shared = not isinstance(margin, Tensor)
    inside = 0.0 < lam < math.inf
    source = "Zhu, Ying, Yang 2023"
    if loss.normalize is not None:
        a, b = ((10.0, -20.0, -20.0), (-20.0, 100.0, -20.0))
        return Properties(
            convex=False if inside and shared else None,
            shift_invariant=False if inside and shared else None,
            counterexamples={"convex": (a, b, 0), "shift_invariant": ((1.0, 0.0, 0.0), 5.0)},
            source=source,
        )
    rest = (0.0,) * (num_classes - 1)
    counterexamples: dict[str, tuple[Any, ...]] = {"upper": ((-1.0, *rest), 0)}
    calibrated: bool | None = None
    rank_consistent: bool | None = None
    proper: bool | None = None
    if not isinstance(margin, Tensor):
        calibrated = rank_consistent = inside
        proper = lam == 1.0 and margin == 0.0
        if lam == 0.0:
            tied = ((0.4, 0.3, 0.3), (0.0, 0.0, 0.0))
            counterexamples.update(calibrated=tied, rank_consistent=tied, proper=tied)
        elif not inside:
            unbounded = ((0.5, 0.3, 0.2), (9.0, 10.0, -100.0))
            counterexamples.update(
                calibrated=unbounded, rank_consistent=unbounded, proper=unbounded
            )
        elif not proper:
            counterexamples["proper"] = ((0.7, 0.3), (_best_gap(0.7, lam, float(margin)), 0.0))
    if lam == math.inf:
        counterexamples["lower"] = ((1.0, *rest), 0)
    elif shared:
        counterexamples["symmetric"] = ((0.0, *rest), (3.0, *rest))
    return Properties(
        convex=True,
        lower=-lam * math.log(num_classes),
        upper=math.inf,
        lipschitz=math.sqrt(2.0),
        smoothness=0 if lam == 0.0 else math.inf,
        symmetric=(lam == math.inf) if shared else None,
        class_sum=float(margin) * (num_classes - 1) if shared and lam == math.inf else None,
        shift_invariant=True,
        calibrated=calibrated,
        rank_consistent=rank_consistent,
        proper=proper,
        minimiser="orders the classes as q does" if rank_consistent else None,
        limits=(("lam -> 0", "CrammerSingerLoss"), ("lam -> inf", "the mean of z")),
        counterexamples=counterexamples,
        source=source,
    )


def _best_gap(a: float, lam: float, margin: float) -> float:
    """Return f_1 - f_2 of the conditional minimiser for two classes of probability a and 1 - a.

    With u = exp(gap/lam) and v = exp(margin/lam), stationarity is
    (1 - a) u^2 - (2a - 1) v u - a = 0; for large v, u is (2a - 1) v/(1 - a).
    """
    if margin / lam > 300.0:
        return margin + lam * math.log((2 * a - 1) / (1 - a))
    b = (2 * a - 1) * math.exp(margin / lam)
    return lam * math.log((b + math.sqrt(b * b + 4 * a * (1 - a))) / (2 * (1 - a)))
