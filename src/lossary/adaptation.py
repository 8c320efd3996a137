r"""Adaptation without labels: a student that follows its own slowly moving average.

.. math:: \ell = -(1 - \alpha) \sum_k t_k \log p_k - \alpha \sum_k p_k \log t_k

At test time the labels are the predictions of a mean teacher, which are partly wrong. The reverse
term keeps the gradient bounded where the student disagrees, as it does with noisy labels.
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import Loss, LossOptions, _check_weight, expectation
from lossary._checks import check_choice, check_floating, check_int, check_like, check_number
from lossary._properties import Properties


class SymmetricConsistencyLoss(Loss):
    r"""Symmetric cross-entropy between a student's and a mean teacher's predictions.

    .. math:: \ell(f, g) = -(1 - \alpha) \sum_k t_k \log p_k - \alpha \sum_k p_k \log t_k, \qquad
              p = \operatorname{softmax}(f),\ t = \operatorname{softmax}(g)

    For test-time adaptation and other self-training with a teacher that is the student's moving
    average. Robust mean teacher (RMT) takes the mean of two such losses, of the student's logits on
    the plain and on the augmented input, both against the teacher's on the plain one, and trains
    all parameters; its warm-up on source data uses the same loss.

    Args:
        alpha: the weight of reverse cross-entropy, in [0, 1]; cross-entropy has the rest. Default
            0.5.
        detach_teacher: ``True``, the default: no gradient reaches the teacher. ``False`` lets it
            through.
        class_dim: the class axis of the logits. Default 1.
        reduction: see :class:`lossary.Loss`.

    Shape:
        logits (N, K, ...), teacher_logits of the same shape; or (K,), or any shape with
        ``class_dim`` named; K >= 2. Values (N, ...): the shape without the class axis. Half
        precision is computed in float32.

    Properties:
        l >= 0, unbounded, unchanged by adding a number to all logits of a row, of either input.
        Gradient in the logits (1 - alpha)(p - t) + alpha p_k (-log t_k + sum_j p_j log t_j):
        bounded for alpha = 0, by sqrt(2); otherwise by what the teacher's logits span. Convex in
        the logits for alpha = 0 only. At alpha = 0.5 it is (KL(t || p) + KL(p || t) + H(t) +
        H(p))/2, the same when student and teacher are exchanged.

        Not a divergence: at p = t the value is the entropy H(t), and the gradient does not vanish
        unless t is uniform or one-hot. The reverse term goes on pushing towards the teacher's
        largest class, so the loss also sharpens predictions.

    Limits:
        alpha = 0: cross-entropy with the teacher's probabilities as targets. alpha = 1: reverse
        cross-entropy, linear in p. One-hot teacher: -(1 - alpha) log p_y, and alpha (1 - p_y) times
        the gap of the teacher's logits; :class:`SymmetricCrossEntropyLoss` cuts that gap off at -A.

    Note:
        Both logarithms come from log-softmax, without clamps. A class that both exclude, with
        logits of -inf, adds nothing; one that the teacher alone excludes makes the reverse term
        infinite while the student gives it mass.

    Raises:
        ValueError: ``alpha`` outside [0, 1]; ``detach_teacher`` neither ``True`` nor ``False``;
            inputs of different shapes or devices, without the axis ``class_dim`` or with fewer than
            2 classes.
        TypeError: ``alpha`` not a number, ``class_dim`` not an int, inputs not floating point.

    Reference:
        Döbler, Marsden, Yang, "Robust Mean Teacher for Continual and Gradual Test-Time Adaptation",
        2023. Agrees with the authors' code.

    Example:
        >>> import torch
        >>> from lossary import SymmetricConsistencyLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher_logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> loss = SymmetricConsistencyLoss()
        >>> loss(logits, teacher_logits)
        tensor(0.6682)
        >>> augmented = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> 0.5 * loss(logits, teacher_logits) + 0.5 * loss(augmented, teacher_logits)
        tensor(0.8167)
    """

    def __init__(
        self,
        alpha: float = 0.5,
        detach_teacher: bool = True,
        class_dim: int = 1,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.alpha = check_number("alpha", alpha, 0.0, 1.0)
        check_choice("detach_teacher", detach_teacher, (True, False))
        self.detach_teacher = detach_teacher
        self.class_dim = check_int("class_dim", class_dim)

    def per_sample(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the loss of every row of logits, unreduced."""
        axis = self._class_axis(logits, teacher_logits)
        log_p = torch.log_softmax(logits, axis)
        log_t = torch.log_softmax(
            teacher_logits.detach() if self.detach_teacher else teacher_logits, axis
        )
        # A term of weight 0 may be infinite.
        if self.alpha == 0.0:
            return _cross_entropy(log_t, log_p, axis)
        if self.alpha == 1.0:
            return _cross_entropy(log_p, log_t, axis)
        forward, reverse = _cross_entropy(log_t, log_p, axis), _cross_entropy(log_p, log_t, axis)
        return (1.0 - self.alpha) * forward + self.alpha * reverse

    def _without_absent(self, inputs: tuple[Any, ...], weight: Tensor) -> tuple[Any, ...]:
        """Return the inputs, cleaned where the weight is 0: it has no class axis."""
        logits, teacher_logits = inputs
        axis = self._class_axis(logits, teacher_logits)
        _check_weight(weight, logits.shape[:axis] + logits.shape[axis + 1 :], logits)
        absent = (weight == 0).unsqueeze(axis)
        return logits.masked_fill(absent, 0.0), teacher_logits.masked_fill(absent, 0.0)

    def _class_axis(self, logits: Tensor, teacher_logits: Tensor) -> int:
        """Check the inputs; return the class axis as a non-negative number."""
        check_floating("logits", logits)
        check_floating("teacher_logits", teacher_logits)
        shape, n = tuple(logits.shape), logits.dim()
        # A single row has only one axis.
        axis = 0 if n == 1 and self.class_dim in (1, 0, -1) else self.class_dim
        if not -n <= axis < n:
            raise ValueError(f"logits: expected an axis {axis} (class_dim), got shape {shape}")
        if shape[axis] < 2:
            raise ValueError(f"logits: expected at least 2 classes, got {shape[axis]}")
        check_like("teacher_logits", teacher_logits, "logits", logits)
        return axis % n

    def properties(self) -> Properties:
        """Return what this instance guarantees of the student's logits."""
        teacher = ((0.0, 1.0),)
        bound = "finite for any one teacher, unbounded over all"
        unknown = {} if self.alpha == 0.0 else {"lipschitz": bound}
        if self.alpha == 1.0:
            unknown["upper"] = bound
        counterexamples: dict[str, tuple[Any, ...]] = {}
        if self.alpha < 1.0:
            counterexamples["upper"] = (((1.0, 0.0),), teacher)
        if self.alpha > 0.0:
            # With two classes the curvature has the sign of 1 - alpha - alpha L (1 - 2p), L the
            # teacher's gap: negative here, where p < 1/8 and L = 2 (1 - alpha)/alpha + 4.
            gap = 2.0 * (1.0 - self.alpha) / self.alpha + 4.0
            counterexamples["convex"] = (((-4.0, 0.0),), ((-2.0, 0.0),), ((gap, 0.0),))
        return Properties(
            convex=self.alpha == 0.0,
            lower=0.0,
            upper=math.inf if self.alpha < 1.0 else None,
            lipschitz=math.sqrt(2.0) if self.alpha == 0.0 else None,
            smoothness=math.inf,
            limits=(
                ("alpha = 0", "cross-entropy with soft targets"),
                ("alpha = 1", "reverse cross-entropy"),
            ),
            counterexamples=counterexamples,
            unknown=unknown,
            source="Döbler, Marsden, Yang 2023",
        )


def _cross_entropy(log_a: Tensor, log_b: Tensor, axis: int) -> Tensor:
    """Return -sum_k a_k log b_k; a class of probability 0 adds nothing."""
    a = log_a.exp()
    return -expectation(log_b, a, a, axis)
