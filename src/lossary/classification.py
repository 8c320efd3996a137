r"""Cross-entropy's neighbours: how much a sample counts by how well it is already classified.

.. math:: \ell(f, y) = (1 - p_y)^\gamma (-\log p_y), \qquad -\log p_y + \epsilon (1 - p_y), \qquad
          \lVert e_y - p \rVert_2^2, \qquad -\sum_k \bigl((1 - s) [k = y] + s/K\bigr) \log p_k

and two terms that go with them: a penalty on the size of the logits, and the loss of a model that
is given N attempts.
"""

import math
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import ClassificationLoss, ClassOptions, Loss, LossOptions, expectation
from lossary._checks import (
    check_choice,
    check_device,
    check_floating,
    check_integers,
    check_number,
    check_positive,
    check_tensor,
)
from lossary._layouts import Layout
from lossary._numerics import exp_remainder, expm1, log1mexp, softplus
from lossary._properties import Properties
from lossary._softmax import GAPS, LOG_ODDS, RIVAL_SQUARES, TARGET, readable, top_class
from lossary.comp_sum import CompSumLoss

_ROOT2 = math.sqrt(2.0)
_Q = (0.5, 0.3, 0.2)
_UNLIKE = ((0.0, 0.0, 0.0), (3.0, 0.0, -1.0))
_AWAY = ((-1.0, 0.0, 0.0), 0)
#: Log-odds beyond which 1 - p_y is 1 to the last digit, in any dtype.
_CERTAIN = 1e3


class LabelSmoothingCrossEntropyLoss(ClassificationLoss):
    r"""Cross-entropy against a label that is mixed with the uniform distribution.

    .. math:: \ell(f, y) = -(1 - s) \log p_y - \frac sK \sum_k \log p_k

    The smoothed target is reached at finite logits, so the model is not driven to ever larger ones:
    better calibrated probabilities, and a mild guard against wrong labels.

    Args:
        smoothing: s in [0, 1]. Default 0.1. It is spread over all K classes, the target included.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`).

    Properties:
        Convex, unbounded above; its least value, at p = the smoothed target, is that one's entropy:
        > 0 for s > 0. Gradient p - (1 - s) e_y - s/K. The class sum, -sum_k log p_k, is not
        constant. Calibrated and rank-consistent for s < 1; proper for s = 0: the conditional risk
        is least at p = (1 - s) q + s/K.

    Limits:
        s = 0: cross-entropy. s = 1: the same for every target, logsumexp(f) - mean(f). Always
        (1 - s) CE(f, y) + s mean_k CE(f, k). ``torch.nn.CrossEntropyLoss(label_smoothing=s)``; with
        ``class_weight``, torch weights every term of the smoothed sum by its own class, and here
        the loss is weighted by that of the target.

    Note:
        The sum over all classes is taken of the gaps to the target. Where the target is improbable
        and s is near 1, they nearly cancel: in float32, gaps of 1e4 at s = 1 leave four digits.
        Infinite where a class is impossible, unless s = 0.

    Raises:
        ValueError: ``smoothing`` outside [0, 1].
        TypeError: ``smoothing`` not a number.

    Reference:
        Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for
        Computer Vision", 2016, section 7.

    Example:
        >>> import torch
        >>> from lossary import LabelSmoothingCrossEntropyLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> LabelSmoothingCrossEntropyLoss(smoothing=0.1)(logits, torch.tensor([0, 2]))
        tensor(1.1171)
    """

    def __init__(self, smoothing: float = 0.1, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.smoothing = check_number("smoothing", smoothing, 0.0, 1.0)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        if self.smoothing == 0.0:
            return softplus(self.log_odds(logits, target))
        t, gaps = self.statistics(logits, target, (LOG_ODDS, GAPS))
        # Of an impossible target t and gaps are infinite, and so is the loss: not their difference.
        gaps = gaps.masked_fill(gaps == math.inf, -math.inf)
        return softplus(t) - self.smoothing / logits.shape[self._class_axis(logits)] * gaps

    def expected(self, logits: Tensor, probabilities: Tensor, mass: Tensor, *others: Any) -> Tensor:
        """Return the expectation: linear in the target, so two sums over log p are enough."""
        if self.smoothing == 0.0:
            return super().expected(logits, probabilities, mass)
        axis = self._class_axis(logits)
        surprise = -torch.log_softmax(logits, axis)
        own = expectation(surprise, probabilities, mass, axis)
        uniform = surprise.mean(axis)
        # A row without mass is not there.
        uniform = torch.where(mass.sum(axis) == 0, 0.0, uniform)
        return (1.0 - self.smoothing) * own + self.smoothing * mass.sum(axis) * uniform

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        s = self.smoothing
        low = s / num_classes
        own = 1.0 - s + low
        entropy = -own * math.log(own) - (num_classes - 1) * (low * math.log(low) if s else 0.0)
        counterexamples: dict[str, tuple[Any, ...]] = {"upper": _AWAY, "symmetric": _UNLIKE}
        if s > 0.0:
            best = tuple(math.log((1.0 - s) * x + s / len(_Q)) for x in _Q)
            counterexamples["proper"] = (_Q, best)
        if s == 1.0:
            counterexamples |= dict.fromkeys(("calibrated", "rank_consistent"), (_Q, (0.0,) * 3))
        return Properties(
            convex=True,
            lower=entropy,
            upper=math.inf,
            lipschitz=math.sqrt((1.0 - low) ** 2 + own**2 + (num_classes - 2) * low**2),
            smoothness=math.inf,
            symmetric=False,
            shift_invariant=True,
            calibrated=s < 1.0,
            rank_consistent=s < 1.0,
            proper=s == 0.0,
            minimiser="p = (1 - s) q + s/K",
            limits=(("smoothing = 0", "cross-entropy"),),
            counterexamples=counterexamples,
            source="Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2016",
        )


class PolyLoss(ClassificationLoss):
    r"""Cross-entropy with another weight on the first term of its expansion in 1 - p_y (Poly-1).

    .. math:: \ell(f, y) = -\log p_y + \epsilon\,(1 - p_y)

    Cross-entropy is the sum of (1 - p_y)^j / j; the leading term has most of the gradient of well
    classified samples. Raise it, epsilon > 0, where they should go on counting; lower it where they
    drown the rare ones. One number to tune.

    Args:
        epsilon: finite, >= -1. Default 1. Below -1 the loss would increase in p_y.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`).

    Properties:
        l >= 0, unbounded. Gradient (1 + epsilon p_y)(p - e_y), of norm at most sqrt(2) for
        epsilon <= 1 and sqrt(2) (1 + epsilon)^2/(4 epsilon) beyond. Convex iff epsilon <= 1. Not
        symmetric. Calibrated and rank-consistent; proper iff epsilon = 0: sharper than q for
        epsilon > 0, flatter for epsilon < 0.

    Limits:
        epsilon = 0: cross-entropy. Always :class:`CompSumLoss` at tau = 1 plus epsilon times the
        one at tau = 2, :class:`MulticlassMAELoss`.

    Note:
        At epsilon = -1 the loss of a well classified sample is (1 - p_y)^2/2: for epsilon < 0 it is
        computed from what is left of cross-entropy without its first term, and keeps its digits.

    Raises:
        ValueError: ``epsilon`` below -1, infinite or nan.
        TypeError: ``epsilon`` not a number.

    Reference:
        Leng, Tan, Liu, Cubuk, Shi, Cheng, Anguelov, "PolyLoss: A Polynomial Expansion Perspective
        of Classification Loss Functions", 2022, Poly-1.

    Example:
        >>> import torch
        >>> from lossary import PolyLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> PolyLoss(epsilon=1.0)(logits, torch.tensor([0, 2]))
        tensor(1.5751)
    """

    def __init__(self, epsilon: float = 1.0, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.epsilon = check_number("epsilon", epsilon, -1.0, math.inf, high_open=True)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        surprise = softplus(self.log_odds(logits, target))
        if self.epsilon >= 0.0:
            return surprise - self.epsilon * expm1(-surprise)
        rest = -self.epsilon * exp_remainder(-surprise)  # of cross-entropy, less its first term
        # At epsilon = -1 nothing of the first term is left, not 0 times infinity.
        return rest if self.epsilon == -1.0 else rest + (1.0 + self.epsilon) * surprise

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        e = self.epsilon
        counterexamples: dict[str, tuple[Any, ...]] = {"upper": _AWAY, "symmetric": _UNLIKE}
        if e > 1.0:
            # In the direction e_y the loss is concave where p_y < (1 - 1/epsilon)/2.
            p = (1.0 - 1.0 / e) / 2.0
            edge = math.log(2.0 * p / (1.0 - p))
            counterexamples["convex"] = ((edge - 4.0, 0.0, 0.0), (edge, 0.0, 0.0), 0)
        if e != 0.0:
            step = math.copysign(min(abs(e), 1.0), e) * 1e-2
            counterexamples["proper"] = (_Q, tuple((1.0 + step) * math.log(x) for x in _Q))
        return Properties(
            convex=e <= 1.0,
            lower=0.0,
            upper=math.inf,
            lipschitz=_ROOT2 * ((1.0 + e) ** 2 / (4.0 * e) if e > 1.0 else 1.0),
            smoothness=math.inf,
            symmetric=False,
            shift_invariant=True,
            calibrated=True,
            rank_consistent=True,
            proper=e == 0.0,
            minimiser="sharper than q for epsilon > 0, flatter for epsilon < 0",
            limits=(("epsilon = 0", "cross-entropy"),),
            counterexamples=counterexamples,
            source="Leng, Tan, Liu, Cubuk, Shi, Cheng, Anguelov 2022",
        )


class _WithBinaryForm(ClassificationLoss):
    """A loss of classes that also takes one logit per entry: the log-odds of class 1."""

    def __init__(self, binary: bool, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        check_choice("binary", binary, (True, False))
        self.binary = binary
        if binary and self.class_dim != 1:
            raise ValueError(f"class_dim: expected none with binary=True, got {self.class_dim}")

    def effective_weight(self, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return what every entry counts with: see :class:`lossary.ClassificationLoss`."""
        if self.binary and isinstance(target, Tensor) and target.dtype.is_floating_point:
            target = torch.stack((1.0 - target, target), -1)
        return super().effective_weight(target, weight)

    def _class_axis(self, logits: Tensor, name: str | None = None) -> int:
        return logits.dim() - 1 if self.binary else super()._class_axis(logits, name)

    def _evaluate(self, inputs: tuple[Any, ...], *given: Any) -> Tensor:
        return super()._evaluate(_two_classes(*inputs) if self.binary else inputs, *given)

    def _of_one_logit(self, facts: Properties) -> Properties:
        """Keep what has a meaning for one logit."""
        kept = ("convex", "lower", "upper", "lipschitz", "smoothness", "minimiser", "source")
        claims = {name: getattr(facts, name) for name in kept}
        claims["counterexamples"] = {"upper": (-1.0, 1)} if facts.upper == math.inf else {}
        open_claims = ("symmetric", "shift_invariant", "calibrated", "rank_consistent", "proper")
        return Properties(
            **claims,
            unknown=dict.fromkeys(open_claims, "declared of rows: binary=False"),
        )


def _two_classes(logits: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Return one logit per entry and its target as those of two classes, on a last axis."""
    check_floating("logits", logits)
    check_tensor("target", target)
    if target.shape != logits.shape:
        raise ValueError(
            f"target: expected the shape of the logits, {tuple(logits.shape)}, with binary=True, "
            f"got {tuple(target.shape)}"
        )
    check_device("target", target, logits)
    both = torch.stack((torch.zeros_like(logits), logits), -1)
    if target.dtype.is_floating_point:
        target = torch.stack((1.0 - target, target), -1)
    return both, target


class FocalLoss(_WithBinaryForm):
    r"""Focal loss: cross-entropy that counts the less, the better a sample is classified.

    .. math:: \ell(f, y) = -\alpha_y\,(1 - p_y)^\gamma \log p_y

    For heavy class imbalance with many easy samples, above all object detection, where background
    would otherwise have most of the gradient. ``binary=True`` is the sigmoid form in use there.

    Args:
        gamma: >= 0, finite. Default 2. At gamma = 2 a sample with p_y = 0.9 counts 1/100.
        alpha: ``None`` (default); one weight per class, (K,), finite and >= 0; with ``binary`` a
            number in [0, 1], the weight of class 1, class 0 having 1 - alpha (0.25 is the paper's).
            Unlike ``class_weight`` it does not join the denominator of the mean.
        binary: whether there is one logit per entry, that of class 1. Default ``False``.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`).
        With ``binary``: logits (N, ...) and target (N, ...), integers 0 and 1 or floating-point
        probabilities of class 1; values (N, ...); logits in memory.

    Properties:
        l >= 0, unbounded; nonincreasing in gamma. Gradient ((1 - p_y)^gamma - gamma p_y
        (1 - p_y)^(gamma - 1) log p_y)(p - e_y). Not convex for gamma > 0. Calibrated and
        rank-consistent without alpha, with it for q_k alpha_k in place of q_k. Not proper for
        gamma > 0: the minimiser is flatter than q.

    Limits:
        gamma = 0: cross-entropy, times alpha.

    Note:
        The factor is differentiated, as in the paper; some published code detaches it, which is a
        different loss. Written in the log-odds neither factor loses digits, and the gradient at
        p_y = 1 is 0, where for gamma < 1 the power of 1 - p_y has infinite slope.

    Raises:
        ValueError: ``gamma`` negative or infinite; ``alpha`` of a wrong length, negative, not
            finite, or outside [0, 1]; ``class_dim`` with ``binary``; with ``binary`` a target of
            another shape.
        TypeError: ``gamma`` not a number; ``alpha`` not a tensor, with ``binary`` not a number.

    Reference:
        Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", 2017.

    Example:
        >>> import torch
        >>> from lossary import FocalLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> FocalLoss(gamma=2.0)(logits, torch.tensor([0, 2]))
        tensor(0.7281)
        >>> FocalLoss(gamma=2.0, alpha=0.25, binary=True)(logits[:, 0], torch.tensor([1, 0]))
        tensor(0.1418)
    """

    alpha: Tensor | float | None

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: Tensor | float | None = None,
        binary: bool = False,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(binary, **options)
        self.gamma = check_number("gamma", gamma, 0.0, math.inf, high_open=True)
        if alpha is None or binary:
            self.alpha = None if alpha is None else check_number("alpha", alpha, 0.0, 1.0)
            return
        check_floating("alpha", alpha)
        assert isinstance(alpha, Tensor)
        if alpha.dim() != 1 or len(alpha) < 2:
            raise ValueError(f"alpha: expected shape (K,), K >= 2, got {tuple(alpha.shape)}")
        good = (alpha >= 0) & alpha.isfinite()
        if readable(good) and not bool(good.all()):
            raise ValueError(f"alpha: expected finite numbers >= 0, got {alpha}")
        self.register_buffer("alpha", alpha)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        t = self.log_odds(logits, target)
        value = softplus(t)
        if self.gamma > 0.0:
            # log(1 - p_y) = -softplus(-t). Of an infinite t its slope, 0, would meet infinity.
            value = value * torch.exp(-self.gamma * softplus(-t.clamp(max=_CERTAIN)))
        return self._balanced(value, logits, target)

    def _balanced(self, value: Tensor, logits: Tensor, target: Tensor | None) -> Tensor:
        """Return the values times the alpha of their class."""
        alpha, axis = self.alpha, self._class_axis(logits)
        if alpha is None:
            return value
        if not isinstance(alpha, Tensor):
            y = torch.arange(2, device=value.device) if target is None else target
            return torch.where(y == 1, alpha * value, (1.0 - alpha) * value)
        if len(alpha) != logits.shape[axis]:
            raise ValueError(f"alpha: expected {logits.shape[axis]} weights, got {len(alpha)}")
        alpha = alpha.to(value.dtype)
        if target is None:
            return value * alpha.view([-1 if i == axis else 1 for i in range(value.dim())])
        return value * alpha[target.clamp(min=0)]

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        g, alpha = self.gamma, self.alpha
        largest = 1.0
        if alpha is not None:
            largest = float(alpha.max() if isinstance(alpha, Tensor) else max(alpha, 1.0 - alpha))
        counterexamples: dict[str, tuple[Any, ...]] = {"upper": _AWAY, "symmetric": _UNLIKE}
        if g > 0.0:
            # In the direction e_y the loss is concave where p_y is well below exp(-2 - 1/gamma).
            k, y = (len(alpha), int(alpha.argmax())) if isinstance(alpha, Tensor) else (3, 0)
            far = math.log(k - 1.0) - 2.5 - 1.0 / g
            ends = (tuple(x * (i == y) for i in range(k)) for x in (far - 2.0, far))
            counterexamples["convex"] = (*ends, y)
            step = 0.02 * min(g, 1.0)
            counterexamples["proper"] = (_Q, tuple((1.0 - step) * math.log(x) for x in _Q))
        facts = Properties(
            convex=g == 0.0,
            lower=0.0,
            upper=math.inf,
            # |dl/dt| = (1-p)^(g+1) - g p (1-p)^g log p, and -p log p <= 1 - p.
            lipschitz=_ROOT2 * (1.0 + g) * largest,
            smoothness=math.inf,
            symmetric=False,
            shift_invariant=True,
            calibrated=True,
            rank_consistent=True,
            proper=g == 0.0,
            minimiser="in the order of q, and flatter" if g > 0.0 else "p = q",
            limits=(("gamma = 0", "cross-entropy"),),
            counterexamples=counterexamples,
            source="Lin, Goyal, Girshick, He, Dollár 2017",
        )
        if self.binary:
            return self._of_one_logit(facts)
        if alpha is None:
            return facts
        of_all = {k: v for k, v in counterexamples.items() if k == "convex"}
        weighted = ("symmetric", "calibrated", "rank_consistent", "proper", "upper")
        return replace(
            facts,
            symmetric=None,
            calibrated=None,
            rank_consistent=None,
            proper=None,
            upper=None,
            minimiser=None,
            counterexamples=of_all,
            unknown=dict.fromkeys(weighted, "depends on alpha, which stands in for class weights"),
        )


class BrierLoss(_WithBinaryForm):
    r"""Brier score: the squared distance of the predicted probabilities from the label.

    .. math:: \ell(f, y) = \lVert e_y - p \rVert_2^2 = 1 - 2 p_y + \lVert p \rVert_2^2, \qquad
              \ell(f, q) = \lVert q - p \rVert_2^2

    Bounded and strictly proper: probabilities come out calibrated, and one confident mistake costs
    2 at most. The price is a gradient that vanishes where the model is confidently wrong.
    ``binary=True`` is the score of one probability, (sigmoid(f) - y)^2.

    Args:
        binary: whether there is one logit per entry, that of class 1. Default ``False``.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Probabilities q enter directly, as ||q - p||^2, which is the expectation less 1 - ||q||^2.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`).
        With ``binary``: logits (N, ...) and target (N, ...), integers 0 and 1 or floating-point
        probabilities of class 1; values (N, ...); logits in memory.

    Properties:
        0 <= l <= 2, with ``binary`` 1. Gradient 2 p (d - <p, d>) with d = p - e_y. Convex in p, not
        in the logits. The class sum, K - 2 + K ||p||^2, is not constant. Calibrated,
        rank-consistent and strictly proper: p = q.

    Limits:
        Two classes: twice the binary form. A sum over classes, not a mean, without 1/2.

    Note:
        Of an index target it is (1 - p_y)^2 (1 + sum_k r_k^2), with r the softmax of the rivals
        alone: a product of positive numbers, where 1 - 2 p_y + ||p||^2 would cancel.

    Raises:
        ValueError: ``class_dim`` with ``binary``; with ``binary`` a target of another shape.

    Reference:
        Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950.

    Example:
        >>> import torch
        >>> from lossary import BrierLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> BrierLoss()(logits, torch.tensor([0, 2]))
        tensor(0.6135)
        >>> BrierLoss(binary=True)(logits[:, 0], torch.tensor([1.0, 0.0]))
        tensor(0.2008)
    """

    def __init__(self, binary: bool = False, **options: Unpack[ClassOptions]) -> None:
        super().__init__(binary, **options)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        if self.binary:
            return expm1(-softplus(self.log_odds(logits, target))).square()
        t, squares = self.statistics(logits, target, (LOG_ODDS, RIVAL_SQUARES))
        return expm1(-softplus(t)).square() * (1.0 + squares)

    def expected(self, logits: Tensor, probabilities: Tensor, mass: Tensor, *others: Any) -> Tensor:
        """Return the squared distance from a probability target, times its class weight."""
        axis = self._class_axis(logits)
        square = (torch.softmax(logits, axis) - probabilities).square().sum(axis)
        return square * mass.sum(axis) * (0.5 if self.binary else 1.0)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        facts = Properties(
            convex=False,
            lower=0.0,
            upper=1.0 if self.binary else 2.0,
            # The Jacobian of the softmax has norm 1/2 at most, and |p - e_y| <= sqrt(2).
            lipschitz=_ROOT2,
            smoothness=math.inf,
            symmetric=False,
            shift_invariant=True,
            calibrated=True,
            rank_consistent=True,
            proper=True,
            minimiser="p = q",
            limits=(("K = 2", "twice the binary form"),),
            counterexamples={
                "convex": ((-80.0, 0.0, 0.0), (10.0, 0.0, 0.0), 0),
                "symmetric": _UNLIKE,
            },
            source="Brier 1950",
        )
        return self._of_one_logit(facts) if self.binary else facts


class LogitZRegularizer(ClassificationLoss):
    r"""Auxiliary z-loss: a penalty on the squared logarithm of the softmax's normaliser.

    .. math:: \ell(f) = c\,(\log Z)^2, \qquad Z = \sum_k e^{f_k}

    Added to cross-entropy, which does not see a shift of all logits, it keeps them from drifting:
    language models in low precision diverge when they do. Not to be confused with the Z-loss, a
    loss of its own.

    Args:
        coefficient: c > 0, finite. Default 1e-4, the paper's.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...); target (N, ...) class indices, (N, K, ...) probabilities or ``None``;
        K >= 2. The target says which entries are not there, and which class weight they have, no
        more: pass that of the cross-entropy. Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`); the latter two with a
        target.

    Properties:
        l >= 0, and 0 iff the logits are normalised, as those of log_softmax are. Gradient
        2 c p log Z, unbounded. Not convex where log Z < 0. The only loss here that a shift of all
        logits changes: among all shifts of f it is least at f - log Z.

    Limits:
        Linear in the coefficient.

    Note:
        Computed in float32 for half precision logits. In memory, log Z is taken around the largest
        logit; otherwise through the target's, as f_y + softplus(log-odds), which is as accurate as
        f_y is, and infinite, like the cross-entropy, where the target is impossible.

    Raises:
        ValueError: ``coefficient`` not positive, or infinite; no target where ``class_weight`` is
            set.
        TypeError: ``coefficient`` not a number; no target for logits that are not in memory.

    Reference:
        Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities",
        2023; after Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022.

    Example:
        >>> import torch
        >>> from lossary import LogitZRegularizer
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> LogitZRegularizer(coefficient=0.01)(logits)
        tensor(0.0428)
    """

    def __init__(self, coefficient: float = 1e-4, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.coefficient = check_positive("coefficient", coefficient)

    def per_sample(self, logits: Tensor, target: Tensor | None = None) -> Tensor:
        """Return the penalty of every sample; without a target, once for every class."""
        axis = self._class_axis(logits)
        y = target
        if isinstance(logits, Tensor):
            y = top_class(logits, axis)
            y = y if target is None else y.masked_fill(target < 0, -1)
        assert y is not None
        t, own = self.statistics(logits, y, (LOG_ODDS, TARGET))
        # An infinite gap to an impossible target is no log Z, and their sum no number.
        log_z = torch.where(own == -math.inf, math.inf, own + softplus(t))
        value = self.coefficient * log_z.square()
        return value.unsqueeze(axis).expand(logits.shape) if target is None else value

    def expected(self, logits: Tensor, probabilities: Tensor, mass: Tensor, *others: Any) -> Tensor:
        """Return the penalty times the class weight: it is the same for every class."""
        axis = self._class_axis(logits)
        total = mass.sum(axis)
        return self.per_sample(logits, torch.where(total == 0, -1, 0)) * total

    def _evaluate(self, inputs: tuple[Any, ...], *given: Any) -> Tensor:
        logits, target = inputs
        if target is None:
            if isinstance(logits, Layout):
                raise TypeError(f"target: expected one with {type(logits).__name__}, got None")
            if self.class_weight is not None:
                raise ValueError("target: expected one, for its class_weight, got None")
            check_floating("logits", logits)
            axis = self._class_axis(logits) if logits.dim() else 0  # the base refuses the latter
            rows = logits.shape[:axis] + logits.shape[axis + 1 :]
            # Any class but the one that means "not there".
            any_class = int(self.ignore_index == 0)
            target = torch.full(rows, any_class, dtype=torch.long, device=logits.device)
        return super()._evaluate((logits, target), *given)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        del num_classes
        of_targets = ("symmetric", "calibrated", "rank_consistent", "proper")
        return Properties(
            convex=False,
            lower=0.0,
            upper=math.inf,
            lipschitz=math.inf,
            smoothness=math.inf,
            shift_invariant=False,
            counterexamples={
                "convex": ((-3.0, -5.0, -5.0), (-5.0, -3.0, -5.0), 0),
                "upper": ((1.0, 0.0, 0.0), 0),
                "lipschitz": ((1.0, 0.0, 0.0), 0),
                "shift_invariant": ((1.0, 0.0, 0.0), 2.0),
            },
            unknown=dict.fromkeys(of_targets, "a regularizer: the same for every target"),
            source="Wortsman et al. 2023",
        )


class DirectCoverageLoss(Loss):
    r"""Direct coverage optimisation (DCO): minus the log-probability of success in N attempts.

    .. math:: \ell(P) = -\log\bigl(1 - (1 - P)^n\bigr), \qquad P = e^{\text{logp}}

    For fine-tuning a model that will be sampled n times with one success enough (pass@n). Where
    the right answer is already likely to be drawn, the gradient stops: cross-entropy would go on to
    sharpen and so lose coverage of the hard problems.

    Args:
        n: attempts, a number in [1, 1e15]. Default 16. Step by step, apply it to every step of a
            proof with that step's effective n. Losses of chains of thought take the log of an
            estimate of P.
        reduction: see :class:`lossary.Loss`.

    Shape:
        logp (...): the log-probability of the whole right answer, the sum over its tokens
        (:func:`lossary.sequence_logps`), <= 0. Values (...). :meth:`from_logits` takes logits and
        class indices instead, in any layout.

    Properties:
        l >= 0, unbounded, convex and decreasing in logp. Gradient -F(P),
        F = n (1 - P)^(n-1) P/(1 - (1 - P)^n): the gradient of cross-entropy times a factor in
        [0, 1] that falls from 1 at P = 0 to 0 at P = 1, for n > 1. -logp - log n <= l <= -logp;
        nonincreasing in n. exp(-l) is pass@n.

    Limits:
        n = 1: -logp, cross-entropy.

    Note:
        In floating point 1 - (1 - P)^n is 0 below P = 1e-16, which is any long sequence. Here
        log(1 - P) and the outer logarithm keep their digits at both ends, and below
        logp = -40 - log n the loss is -logp - log n. Numbers up to 1e-6 above 0 count as 0.

    Raises:
        ValueError: ``n`` outside [1, 1e15]; ``logp`` above 1e-6 (on CPU tensors).
        TypeError: ``n`` not a number, ``logp`` not floating point.

    Reference:
        Chen, Raventós, Cheng, Ganguli, Druckmann, "Rethinking Fine-Tuning when Scaling Test-Time
        Compute: Limiting Confidence Improves Mathematical Reasoning", 2025. RECALLED from
        summaries that quote the loss and F; checked against 800-digit arithmetic.

    Example:
        >>> import torch
        >>> from lossary import DirectCoverageLoss
        >>> logp = torch.tensor([-0.1, -5.0, -300.0])
        >>> DirectCoverageLoss(n=16, reduction="none")(logp)
        tensor([4.5233e-17, 2.2776e+00, 2.9723e+02])
    """

    def __init__(self, n: float = 16, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.n = check_number("n", n, 1.0, 1e15)

    def per_sample(self, logp: Tensor) -> Tensor:
        """Return the loss of every answer, unreduced."""
        check_floating("logp", logp)
        if readable(logp) and bool((logp > 1e-6).any()):
            top = float(logp.detach().max())
            raise ValueError(f"logp: expected log-probabilities, at most 0, got {top:g}")
        logp = logp.clamp(max=0.0)
        if self.n == 1.0:
            return -logp
        edge = math.log(self.n)
        rare, certain = logp < -40.0 - edge, logp == 0.0
        # At either end an infinite slope would meet a gradient of 0.
        inner = torch.where(rare | certain, -1.0, logp)
        value = -log1mexp(self.n * log1mexp(inner))
        return torch.where(rare, -logp - edge, torch.where(certain, 0.0, value))

    def from_logits(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss of answers that are one class each: logp = log p_y.

        logits (N, K, ...), in memory, streamed or sharded; target (N, ...) class indices, -100 for
        entries that are not there.
        """
        check_integers("target", target, "class indices")
        logp = -CompSumLoss(reduction="none")(logits, target)
        there = target != -100
        weight = there if weight is None else weight.masked_fill(~there, 0)
        value: Tensor = self(logp, weight=weight, normalizer=normalizer)
        return value

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=1.0,
            smoothness=math.inf,
            limits=(("n = 1", "-logp"),),
            counterexamples={"upper": (-1.0,)},
            source="Chen, Raventós, Cheng, Ganguli, Druckmann 2025",
        )
