r"""Losses for noisy labels: the label's say in the gradient fades where the model disagrees.

.. math:: \ell(f, y) = \alpha\, \operatorname{CE}(f, y) + \beta\, \operatorname{RCE}(f, y), \qquad
          \operatorname{RCE}(f, y) = -A\,(1 - p_y)

Reverse cross-entropy swaps prediction and label, with log 0 := A < 0; it is symmetric, so tolerant
to uniform noise. Symmetric cross-entropy adds cross-entropy to it, which trains faster.
"""

import math
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import ClassificationLoss, ClassOptions, expectation
from lossary._checks import check_number
from lossary._numerics import expm1, softplus
from lossary._properties import Properties
from lossary.comp_sum import MulticlassMAELoss

_SOURCE = "Wang, Ma, Chen, Luo, Yi, Bailey 2019"


def _reverse_cross_entropy(logits: Tensor, q: Tensor, axis: int, a: float) -> Tensor:
    """Return -sum_k p_k max(log q_k, A) for class probabilities q."""
    possible = q > 0
    log_q = torch.where(possible, torch.where(possible, q, 1.0).log().clamp(min=a), a)
    return -(torch.softmax(logits, axis) * log_q).sum(axis)


class ReverseCrossEntropyLoss(ClassificationLoss):
    r"""Reverse cross-entropy (RCE): cross-entropy with prediction and label exchanged, log 0 := A.

    .. math:: \ell(f, y) = -\sum_k p_k \log [k = y] = -A\,(1 - p_y), \qquad
              \ell(f, q) = -\sum_k p_k \max(\log q_k, A)

    The robust half of symmetric cross-entropy, and -A times the mean absolute error: tolerant to
    uniform label noise, slow to train alone. Combine it with cross-entropy
    (:class:`SymmetricCrossEntropyLoss`).

    Args:
        A: the value that stands for log 0; finite, A < 0. Default -4, the paper's. The authors'
            code clips the one-hot label at 1e-4, which is A = -9.2103.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Probabilities enter the clipped formula directly, not as an expectation. Values (N, ...).
        Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`).

    Properties:
        0 <= l <= -A, gradient norm at most -A sqrt(2)/4, not convex. Symmetric with class sum
        -A (K - 1). Calibrated, not rank-consistent.

    Limits:
        -A times :class:`MulticlassMAELoss`.

    Note:
        The published code clips p at 1e-7, which cuts off tiny gradients; from the log-odds no
        clipping is needed.

    Raises:
        ValueError: ``A`` not negative, or infinite.
        TypeError: ``A`` not a number.

    Reference:
        Wang, Ma, Chen, Luo, Yi, Bailey, "Symmetric Cross Entropy for Robust Learning with Noisy
        Labels", 2019.

    Example:
        >>> import torch
        >>> from lossary import ReverseCrossEntropyLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> ReverseCrossEntropyLoss()(logits, torch.tensor([0, 2]))
        tensor(2.0319)
    """

    def __init__(self, A: float = -4.0, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.A = check_number("A", A, -math.inf, 0.0, low_open=True, high_open=True)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        return expm1(-softplus(self.log_odds(logits, target))) * self.A

    def expected(self, logits: Tensor, probabilities: Tensor, mass: Tensor, *others: Any) -> Tensor:
        """Return the clipped formula for a probability target, times its class weight."""
        axis = self._class_axis(logits)
        return _reverse_cross_entropy(logits, probabilities, axis, self.A) * mass.sum(axis)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        scaled = MulticlassMAELoss(scale=-self.A).properties(num_classes)
        return replace(scaled, limits=(), source=_SOURCE)


class SymmetricCrossEntropyLoss(ClassificationLoss):
    r"""Symmetric cross-entropy (SCE): cross-entropy plus reverse cross-entropy.

    .. math:: \ell(f, y) = \alpha\, (-\log p_y) + \beta\, (-A)(1 - p_y)

    A drop-in for noisy labels: the first term makes it converge, the second makes it robust. The
    paper uses alpha = 0.1, beta = 1 on CIFAR-10, and alpha = 6, beta = 0.1 on CIFAR-100.

    Args:
        alpha: weight of cross-entropy, finite, >= 0. Default 0.1.
        beta: weight of reverse cross-entropy, finite, >= 0, not both 0. Default 1.
        A: the value that stands for log 0; finite, A < 0. Default -4.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Probabilities q enter as alpha CE(f, q) + beta RCE(f, q), the latter in its clipped form.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`).

    Properties:
        l >= 0, unbounded for alpha > 0. Gradient (alpha - beta A p_y)(p - e_y). Convex iff
        alpha > 0 and -beta A <= alpha. Symmetric iff alpha = 0. Calibrated; rank-consistent iff
        alpha > 0; proper iff beta = 0.

    Limits:
        beta = 0: alpha times cross-entropy. alpha = 0: beta times
        :class:`ReverseCrossEntropyLoss`.

    Raises:
        ValueError: ``alpha`` or ``beta`` negative, infinite or both 0; ``A`` not negative.
        TypeError: a hyper-parameter that is not a number.

    Reference:
        Wang, Ma, Chen, Luo, Yi, Bailey, "Symmetric Cross Entropy for Robust Learning with Noisy
        Labels", 2019.

    Example:
        >>> import torch
        >>> from lossary import SymmetricCrossEntropyLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> SymmetricCrossEntropyLoss(alpha=0.1, beta=1.0)(logits, torch.tensor([0, 2]))
        tensor(2.1386)
    """

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 1.0,
        A: float = -4.0,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(**options)
        self.alpha = check_number("alpha", alpha, 0.0, math.inf, high_open=True)
        self.beta = check_number("beta", beta, 0.0, math.inf, high_open=True)
        self.A = check_number("A", A, -math.inf, 0.0, low_open=True, high_open=True)
        if self.alpha == 0.0 and self.beta == 0.0:
            raise ValueError("beta: expected a number > 0 where alpha is 0, got 0")

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        surprise = softplus(self.log_odds(logits, target))
        return self.alpha * surprise + (self.beta * self.A) * expm1(-surprise)

    def expected(self, logits: Tensor, probabilities: Tensor, mass: Tensor, *others: Any) -> Tensor:
        """Return both terms for a probability target, times its class weight."""
        axis = self._class_axis(logits)
        forward = expectation(softplus(self.log_odds(logits, None)), probabilities, mass, axis)
        reverse = _reverse_cross_entropy(logits, probabilities, axis, self.A) * mass.sum(axis)
        return self.alpha * forward + self.beta * reverse

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        alpha, passive = self.alpha, -self.beta * self.A
        q = (0.5, 0.3, 0.2)
        convex = alpha > 0.0 and passive <= alpha
        counterexamples: dict[str, tuple[Any, ...]] = {}
        if not convex:
            # In the direction e_y the loss is concave where p_y < (1 - alpha/passive)/2.
            p = (1.0 - alpha / passive) / 2.0
            edge = math.log(2.0 * p / (1.0 - p))
            counterexamples["convex"] = ((edge - 4.0, 0.0, 0.0), (edge, 0.0, 0.0), 0)
        if alpha > 0.0:
            counterexamples["upper"] = ((-1.0, 0.0, 0.0), 0)
            counterexamples["symmetric"] = ((0.0, 0.0, 0.0), (3.0, 0.0, -1.0))
        else:
            counterexamples["rank_consistent"] = (q, (80.0, -1.0, 0.0))
        if self.beta > 0.0:
            # Reverse cross-entropy rewards mass on the most probable class, so a little more of
            # it than q has lowers the risk.
            counterexamples["proper"] = (q, (math.log(0.5) + 1e-3, math.log(0.3), math.log(0.2)))
        return Properties(
            convex=convex,
            lower=0.0,
            upper=math.inf if alpha > 0.0 else passive,
            lipschitz=alpha * math.sqrt(2.0) + passive * math.sqrt(2.0) / 4.0,
            smoothness=math.inf,
            symmetric=alpha == 0.0,
            class_sum=passive * (num_classes - 1) if alpha == 0.0 else None,
            shift_invariant=True,
            calibrated=True,
            rank_consistent=alpha > 0.0,
            proper=self.beta == 0.0,
            minimiser="sharper than q" if self.beta > 0.0 else "p = q",
            limits=(("beta = 0", "alpha times cross-entropy"), ("alpha = 0", "beta times RCE")),
            counterexamples=counterexamples,
            source=_SOURCE,
        )
