r"""Losses for noisy labels: the label's say in the gradient fades where the model disagrees.

.. math:: \ell(f, y) = \alpha\, \operatorname{CE}(f, y) + \beta\, \operatorname{RCE}(f, y), \qquad
          \operatorname{RCE}(f, y) = -A\,(1 - p_y)

Reverse cross-entropy swaps prediction and label, with log 0 := A < 0; it is symmetric, so tolerant
to uniform noise. Symmetric cross-entropy adds cross-entropy to it, which trains faster. The others
reach symmetry by normalisation, ask for less of it (asymmetric losses), or interpolate between
cross-entropy and the mean absolute error; active-passive losses are sums of two.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import ClassificationLoss, ClassOptions, _upcast, expectation, present_rows
from lossary._checks import check_choice, check_in_memory, check_like, check_number, check_positive
from lossary._layouts import Layout
from lossary._numerics import expm1, softplus
from lossary._properties import Properties
from lossary._softmax import GAPS, LOG_ODDS
from lossary.comp_sum import CompSumLoss, GeneralizedCrossEntropyLoss, MulticlassMAELoss

_SOURCE = "Wang, Ma, Chen, Luo, Yi, Bailey 2019"
_ROOT2 = math.sqrt(2.0)
_Q = (0.5, 0.3, 0.2)
_UNLIKE = ((0.0, 0.0, 0.0), (80.0, 0.0, -1.0))
#: Bounded losses that fall in p_y: nearly the supremum, the infimum, and between them the former.
_STEP = ((-80.0, 0.0, 0.0), (10.0, 0.0, 0.0), 0)
#: Log-odds beyond which p_y is 0 to the last digit, in any dtype.
_HOPELESS = 1e3


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


class NormalizedCrossEntropyLoss(ClassificationLoss):
    r"""Normalised cross-entropy (NCE): cross-entropy divided by its sum over all labels.

    .. math:: \ell(f, y) = \frac{-\log p_y}{-\sum_k \log p_k}

    Any loss becomes symmetric, and so tolerant to uniform label noise, when it is divided by its
    class sum. Alone this one hardly trains; it is the active half of :class:`ActivePassiveLoss`.

    Args:
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`).

    Properties:
        0 <= l <= 1, gradient bounded, not convex. Symmetric with class sum 1: with a share eta of
        labels redrawn uniformly among the other classes the expected loss is
        (1 - eta K/(K-1)) l + eta/(K-1). Unchanged by a shift of the logits, not by scaling them.
        For K >= 3 not calibrated: the conditional risk is a mean of the q_k weighted by
        -log p_k, so its infimum, min q, is approached where the least probable class is driven
        away, whatever the others do. No finite minimiser.

    Limits:
        Scaled logits: the gap to the largest logit over the sum of all gaps.

    Note:
        The denominator is at least K log K. It is K times cross-entropy less the sum of the gaps
        to the target: for an improbable target those nearly cancel, in float32 to a relative error
        of about 1e-7 times the gap over log K.

    Raises:
        ValueError, TypeError: as :class:`lossary.ClassificationLoss` does.

    Reference:
        Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions for Deep Learning with
        Noisy Labels", 2020.

    Example:
        >>> import torch
        >>> from lossary import NormalizedCrossEntropyLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> NormalizedCrossEntropyLoss()(logits, torch.tensor([0, 2]))
        tensor(0.2677)
    """

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        t, gaps = self.statistics(logits, target, (LOG_ODDS, GAPS))
        # Of an impossible target both are infinite, and the loss is 1: not their quotient.
        hopeless = t == math.inf
        surprise = softplus(torch.where(hopeless, 0.0, t))
        total = logits.shape[self._class_axis(logits)] * surprise - torch.where(hopeless, 0.0, gaps)
        return torch.where(hopeless, 1.0, surprise / total)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        k = num_classes
        # With two classes an infimum is approached by the right one alone; but at no finite f.
        misled = (_Q, (0.0, 5.0, -1e9))
        several = {} if k == 2 else {"calibrated": misled, "rank_consistent": misled}
        return Properties(
            convex=False,
            lower=0.0,
            upper=1.0,
            # (p - e_y)/S - l (K p - 1)/S with the class sum S >= K log K of cross-entropy.
            lipschitz=(_ROOT2 + math.sqrt(k * (k - 1))) / (k * math.log(k)),
            smoothness=math.inf,
            symmetric=True,
            class_sum=1.0,
            shift_invariant=True,
            calibrated=k == 2,
            rank_consistent=None if k == 2 else False,
            proper=False,
            minimiser="none that is finite: the least probable class is driven away",
            counterexamples={"convex": _STEP, "proper": misled, **several},
            unknown={"rank_consistent": "no finite minimiser; two classes are in order"}
            if k == 2
            else {},
            source="Ma, Huang, Wang, Romano, Erfani, Bailey 2020",
        )


def _of_probability(
    slopes: tuple[float, float], num_classes: int, linear: bool = False, **claims: Any
) -> Properties:
    """State the facts of a bounded loss phi(p_y), phi decreasing, with |phi'| at p = 0 and p = 1.

    Where |phi'| does not fall from 0 to 1, phi is concave and the conditional risk least at a
    vertex. Else phi is convex; the vertex is best where q_1 |phi'(1)| >= q_k |phi'(0)|.
    """
    q: tuple[float, ...] = _Q
    if slopes[1] < slopes[0]:
        edge = 0.9 * slopes[1] / slopes[0]
        total = 1.0 + edge * (1.0 + 0.6)
        q = (1.0 / total, edge / total, 0.6 * edge / total)
    wrong = (q, (80.0, -1.0, 0.0))
    counterexamples = {"convex": _STEP, "rank_consistent": wrong, "proper": wrong}
    return Properties(
        **claims,
        convex=False,
        smoothness=math.inf,
        symmetric=linear,
        class_sum=float(num_classes - 1) if linear else None,
        shift_invariant=True,
        calibrated=True,
        rank_consistent=False,
        proper=False,
        counterexamples=counterexamples if linear else counterexamples | {"symmetric": _UNLIKE},
        source="Zhou, Liu, Jiang, Gao, Ji 2021",
    )


class AsymmetricGCELoss(ClassificationLoss):
    r"""Asymmetric generalised cross-entropy (AGCE): a power of p_y, with p_y moved away from 0.

    .. math:: \ell(f, y) = \frac{(a + 1)^q - (a + p_y)^q}{q}

    For labels that are right more often than they are any one other class: from q = 1 on the
    conditional risk is least at the most probable class alone, whatever the noise. Combine it with
    normalised cross-entropy (:class:`ActivePassiveLoss`), which makes it train.

    Args:
        a: >= 0, finite. Default 1.
        q: > 0, finite. Default 2.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`).

    Properties:
        0 <= l <= ((a + 1)^q - a^q)/q. Gradient (a + p_y)^(q - 1) p_y (p - e_y). Not convex.
        Symmetric iff q = 1. Completely asymmetric iff q >= 1: then the conditional risk is least at
        the vertex of the most probable class. Calibrated; not rank-consistent, but for a = 0 and
        q < 1.

    Limits:
        q = 1: :class:`MulticlassMAELoss`. a = 0: the power of :class:`GeneralizedCrossEntropyLoss`.

    Note:
        Computed as -(a + 1)^q expm1(q log((a + p_y)/(a + 1)))/q, with the logarithm taken from
        1 - p_y where p_y is large: neither end loses digits.

    Raises:
        ValueError: ``a`` negative or infinite; ``q`` not positive, or infinite.
        TypeError: a hyper-parameter that is not a number.

    Reference:
        Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss Functions for Learning with Noisy Labels", 2021.

    Example:
        >>> import torch
        >>> from lossary import AsymmetricGCELoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> AsymmetricGCELoss(a=1.0, q=2.0)(logits, torch.tensor([0, 2]))
        tensor(0.8251)
    """

    def __init__(self, a: float = 1.0, q: float = 2.0, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.a = check_number("a", a, 0.0, math.inf, high_open=True)
        self.q = check_positive("q", q)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        a, q = self.a, self.q
        surprise = softplus(self.log_odds(logits, target))
        if a == 0.0:
            log_ratio = -surprise
        else:
            p, rest = torch.exp(-surprise), expm1(-surprise)
            by_p, by_rest = torch.log((a + p) / (a + 1.0)), torch.log1p(rest / (a + 1.0))
            log_ratio = torch.where(p > 0.5, by_rest, by_p)
        scale: float = -((a + 1.0) ** q) / q
        return expm1(q * log_ratio) * scale

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        a, q = self.a, self.q
        if a == 0.0 and q <= 1.0:
            return replace(
                GeneralizedCrossEntropyLoss(q).properties(num_classes),
                source="Zhou, Liu, Jiang, Gao, Ji 2021",
            )
        slopes = (a ** (q - 1.0), (a + 1.0) ** (q - 1.0))
        return _of_probability(
            slopes,
            num_classes,
            linear=q == 1.0,
            lower=0.0,
            upper=((a + 1.0) ** q - a**q) / q,
            # (a + p)^(q-1) p (1 - p), of which p (1 - p) <= 1/4 and p <= a + p.
            lipschitz=_ROOT2 * min(max(slopes) / 4.0, (a + 1.0) ** q),
            minimiser="p = e_k at argmax q_k, for q >= 1",
            limits=(("q = 1", "MulticlassMAELoss"), ("a = 0", "GeneralizedCrossEntropyLoss")),
        )


class AsymmetricUnhingedLoss(ClassificationLoss):
    r"""Asymmetric unhinged loss (AUL): a power of a - p_y.

    .. math:: \ell(f, y) = \frac{(a - p_y)^q - (a - 1)^q}{q}

    As :class:`AsymmetricGCELoss`: for q <= 1 the conditional risk is least at the most probable
    class alone, as long as the right label is the most frequent one.

    Args:
        a: > 1, finite. Default 1.5.
        q: > 0, finite. Default 0.9.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`).

    Properties:
        0 <= l <= (a^q - (a - 1)^q)/q. Gradient (a - p_y)^(q - 1) p_y (p - e_y). Not convex.
        Symmetric iff q = 1. Completely asymmetric for q <= 1; not for all q > 1, such as a = 6,
        q = 1.5. Calibrated, not rank-consistent.

    Limits:
        q = 1: :class:`MulticlassMAELoss`.

    Note:
        Computed as (a - 1)^q expm1(q log1p((1 - p_y)/(a - 1)))/q, which keeps its digits as p_y
        tends to 1. At a = 1, which is left out, the slope there would be infinite for q < 1.

    Raises:
        ValueError: ``a`` at most 1, or infinite; ``q`` not positive, or infinite.
        TypeError: a hyper-parameter that is not a number.

    Reference:
        Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss Functions for Learning with Noisy Labels", 2021.

    Example:
        >>> import torch
        >>> from lossary import AsymmetricUnhingedLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> AsymmetricUnhingedLoss(a=1.5, q=0.9)(logits, torch.tensor([0, 2]))
        tensor(0.5174)
    """

    def __init__(self, a: float = 1.5, q: float = 0.9, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.a = check_positive("a", a, 1.0)
        self.q = check_positive("q", q)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        rest = self.a - 1.0
        miss = -expm1(-softplus(self.log_odds(logits, target)))
        scale: float = rest**self.q / self.q
        return expm1(self.q * torch.log1p(miss / rest)) * scale

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        a, q = self.a, self.q
        slopes = (a ** (q - 1.0), (a - 1.0) ** (q - 1.0))
        bound = max(slopes) / 4.0
        return _of_probability(
            slopes,
            num_classes,
            linear=q == 1.0,
            lower=0.0,
            upper=(a**q - (a - 1.0) ** q) / q,
            # (a - p)^(q-1) p (1 - p), which for q < 1 is at most p (1 - p)^q.
            lipschitz=_ROOT2 * (min(bound, 1.0) if q < 1.0 else bound),
            minimiser="p = e_k at argmax q_k, for q <= 1",
            limits=(("q = 1", "MulticlassMAELoss"),),
        )


class AsymmetricExponentialLoss(ClassificationLoss):
    r"""Asymmetric exponential loss (AEL): exp(-p_y/a).

    .. math:: \ell(f, y) = e^{-p_y/a}

    The third of the asymmetric losses; nearly linear in p_y, and so nearly symmetric, for large a.

    Args:
        a: > 0, finite. Default 3.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`).

    Properties:
        exp(-1/a) < l <= 1: not 0 at p_y = 1. Gradient (1/a) exp(-p_y/a) p_y (p - e_y). Not convex.
        Not symmetric, and not completely asymmetric: convex in p_y, so the conditional risk can be
        least between two classes. Calibrated, not rank-consistent.

    Limits:
        a -> inf: a (1 - l) tends to p_y, so a l to a constant plus :class:`MulticlassMAELoss`.

    Raises:
        ValueError: ``a`` not positive, or infinite.
        TypeError: ``a`` not a number.

    Reference:
        Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss Functions for Learning with Noisy Labels", 2021.

    Example:
        >>> import torch
        >>> from lossary import AsymmetricExponentialLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> AsymmetricExponentialLoss(a=3.0)(logits, torch.tensor([0, 2]))
        tensor(0.8546)
    """

    def __init__(self, a: float = 3.0, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.a = check_positive("a", a)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        return torch.exp(torch.exp(-softplus(self.log_odds(logits, target))) / -self.a)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        least = math.exp(-1.0 / self.a)
        return _of_probability(
            (1.0, least),
            num_classes,
            lower=least,
            upper=1.0,
            lipschitz=_ROOT2 / (4.0 * self.a),
            minimiser="in the order of q, with probabilities of 0",
        )


class RobustLogLoss(ClassificationLoss):
    r"""Symmetric log loss (RLL): logarithms that alpha keeps from infinity, of all classes.

    .. math:: \ell(f, y) = \log \frac{\alpha + 1}{\alpha} - \log(\alpha + p_y)
              + \frac{1}{K - 1} \sum_{k \neq y} \log(\alpha + p_k)

    Symmetric, so tolerant to uniform label noise, with a steeper gradient at improbable targets
    than the mean absolute error.

    Args:
        alpha: > 0, finite. Default 0.1. Other code uses 0.45.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory (dense layout): it needs the logarithm of every class.

    Properties:
        l >= 0, least at p_y = 1; at most log((alpha + 1)/alpha) + log(1 + 1/(alpha (K - 1))), at
        p_y = 0 with the rest uniform. Not convex. Symmetric with class sum
        K log((alpha + 1)/alpha). The conditional risk is, but for a constant,
        -sum_k (K q_k - 1) log(alpha + p_k)/(K - 1): least at one p, with mass only on classes above
        1/K and most on the most probable. So it is calibrated, and not rank-consistent.

    Limits:
        alpha -> inf: alpha l tends to K/(K - 1) times :class:`MulticlassMAELoss`.

    Note:
        Computed as log((alpha + 1)/(alpha + p_y)) plus the mean of log(1 + p_k/alpha), both >= 0.
        One published implementation takes, in the sum, the log of a sum of exp(f_k - sum f) instead
        of log(alpha + p_k); it is not this loss.

    Raises:
        ValueError: ``alpha`` not positive, or infinite.
        TypeError: ``alpha`` not a number; logits that are not in memory.

    Reference:
        Patel, Sastry, "Memorization in Deep Neural Networks: Does the Loss Function Matter?", 2021.

    Example:
        >>> import torch
        >>> from lossary import RobustLogLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> RobustLogLoss()(logits, torch.tensor([0, 2]))
        tensor(1.9113)
    """

    def __init__(self, alpha: float = 0.1, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.alpha = check_positive("alpha", alpha)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        axis = self._class_axis(logits)
        f: Tensor = _upcast(present_rows(logits, target, axis, "the logarithm of every class"))
        j = None if target is None else target.clamp(min=0).unsqueeze(axis)
        # Both from one copy, so that the sum of their gradients is rounded once.
        miss = -expm1(-softplus(self.log_odds(f, target)))
        terms = torch.log1p(torch.softmax(f, axis) / self.alpha)
        # Left out before the sum: at p_y = 1 the target's term is all of it.
        if j is not None:
            rivals = terms.scatter(axis, j, 0.0).sum(axis)
        else:
            top = f.argmax(axis, keepdim=True)
            least = terms.scatter(axis, top, 0.0).sum(axis, keepdim=True)
            own = terms.gather(axis, top)
            rivals = (least + own - terms).scatter(axis, top, least)
        return rivals / (f.shape[axis] - 1) - torch.log1p(miss / -(1.0 + self.alpha))

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        a, k = self.alpha, num_classes
        most = math.log1p(1.0 / a)
        vertex = (_Q, (80.0, -1.0, 0.0))  # one class alone is above 1/3
        return Properties(
            convex=False,
            lower=0.0,
            upper=most + math.log1p(1.0 / (a * (k - 1))),
            # |d/dp_k| <= 1/alpha times 1 for the target and 1/(K-1) for the others, and the
            # Jacobian of the softmax has norm 1/2 at most.
            lipschitz=math.sqrt(1.0 + 1.0 / (k - 1)) / (2.0 * a),
            smoothness=math.inf,
            symmetric=True,
            class_sum=k * most,
            shift_invariant=True,
            calibrated=True,
            rank_consistent=False,
            proper=False,
            minimiser="p_k + alpha proportional to q_k - 1/K, where that is more than alpha",
            limits=(("alpha -> inf", "a multiple of MulticlassMAELoss, times 1/alpha"),),
            counterexamples={"convex": _STEP, "rank_consistent": vertex, "proper": vertex},
            source="Patel, Sastry 2021",
        )


class JensenShannonLoss(ClassificationLoss):
    r"""Jensen-Shannon divergence between the label and one or several predictions (JS, GJS).

    .. math:: \ell(f, q) = \frac1Z \Bigl(H(m) - w_1 H(q) - \sum_{j \ge 2} w_j H(p^{(j)})\Bigr),
              \qquad m = w_1 q + \sum_{j \ge 2} w_j p^{(j)}, \qquad Z = -(1 - w_1) \log(1 - w_1)

    Between cross-entropy (small weight of the label) and the mean absolute error (large): the
    weight sets how much noise it withstands. With several views of the same inputs it also asks
    their predictions to agree.

    Args:
        weight: the weight w of the label, in (0, 1): weights w, 1 - w. Default 0.5. Or all weights,
            a sequence (w_1, ..., w_M), > 0 with sum 1, the label's first, for M - 1 views.
        scaled: whether to divide by Z. Default ``True``.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), or a list of M - 1 such tensors; target (N, ...) class indices or
        (N, K, ...) probabilities; K >= 2. Probabilities q enter directly, not as an expectation.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`);
        several views in memory only.

    Properties:
        l >= 0, and 0 iff all distributions are one; at most H(w)/Z, which for one view is
        1 + w log w/((1 - w) log(1 - w)), 2 at w = 1/2. For one view and an index target a
        decreasing function of p_y alone, convex in it, not in the logits. Not symmetric.
        Calibrated and rank-consistent, not proper.

    Limits:
        w -> 0: cross-entropy, with an error of order w. w -> 1: 1 - p_y, though only like
        1/log(1/(1 - w)): 0.04 off at 1 - w = 1e-12. Views that agree: one view, at weights
        w_1, 1 - w_1.

    Note:
        For one view and an index target, log(m_y/p_y) = softplus(t + log w) of the log-odds t:
        accurate for tiny weights and at both ends. Otherwise entropies are subtracted, to an error
        of one rounding of Z. The published code clips probabilities at 1e-7, a slight bias.

    Raises:
        ValueError: ``weight`` outside (0, 1), or weights that are not positive or do not sum to 1;
            another number of views; views of different shapes.
        TypeError: ``weight`` neither a number nor a sequence of numbers; several views that are not
            tensors of one dtype.

    Reference:
        Englesson, Azizpour, "Generalized Jensen-Shannon Divergence Loss for Learning with Noisy
        Labels", 2021.

    Example:
        >>> import torch
        >>> from lossary import JensenShannonLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> JensenShannonLoss()(logits, torch.tensor([0, 2]))
        tensor(0.7762)
        >>> loss = JensenShannonLoss(weight=(0.5, 0.25, 0.25))
        >>> loss([logits, 0.9 * logits], torch.tensor([0, 2]))
        tensor(0.7749)
    """

    def __init__(
        self,
        weight: float | Sequence[float] = 0.5,
        scaled: bool = True,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(**options)
        check_choice("scaled", scaled, (True, False))
        self.scaled = scaled
        if isinstance(weight, list | tuple):
            weights = tuple(check_number("weight", w, 0.0, 1.0, low_open=True) for w in weight)
            if len(weights) < 2 or abs(math.fsum(weights) - 1.0) > 1e-6:
                raise ValueError(f"weight: expected two or more, of sum 1, got {weight!r}")
            self.weight: float | tuple[float, ...] = weights
            self._weights = weights
        else:
            self.weight = check_number("weight", weight, 0.0, 1.0, low_open=True, high_open=True)
            self._weights = (self.weight, 1.0 - self.weight)

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        target: Tensor,
        *,
        weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """Return the weighted, reduced loss: see the class."""
        several = isinstance(logits, list | tuple)
        several = several and all(isinstance(x, Tensor | Layout) for x in logits)
        views = tuple(logits) if several else (logits,)
        if len(views) != len(self._weights) - 1:
            raise ValueError(
                f"logits: expected {len(self._weights) - 1} view(s) for {len(self._weights)} "
                f"weights, got {len(views)}"
            )
        return self._call((views[0], target, views[1:]), weight, normalizer)

    def per_sample(
        self, logits: Tensor, target: Tensor, further: tuple[Tensor, ...] = ()
    ) -> Tensor:
        """Return the loss of every sample, unreduced; ``further`` views beside the first."""
        if further:
            return self._of_views(logits, target, further)
        w, rest = self._weights
        t = self.log_odds(logits, target)
        surprise = softplus(t)
        p, miss = torch.exp(-surprise), -expm1(-surprise)
        # log m_y, m_y = w + (1 - w) p_y, from whichever of p_y and 1 - p_y it depends on less.
        lost = rest * miss
        log_m = torch.where(lost < 0.5, torch.log1p(-lost.clamp(max=0.5)), torch.log(w + rest * p))
        # log(m_y/p_y) = log(1 + w (1 - p_y)/p_y), times p_y = 0 where it is infinite.
        ratio = softplus(t.clamp(max=_HOPELESS) + math.log(w))
        value = -w * log_m - rest * (p * ratio + miss * math.log(rest))
        return value / self._scale()

    def expected(self, logits: Tensor, probabilities: Tensor, mass: Tensor, *others: Any) -> Tensor:
        """Return the divergence from a probability target, times its class weight."""
        axis, w = self._class_axis(logits), self._weights[0]
        absent = (probabilities == 0).all(axis, keepdim=True)
        between, log_m, m = self._mixture(logits, others[0] if others else (), absent)
        possible = probabilities > 0
        entropy = probabilities * torch.where(possible, probabilities, 1.0).log()
        value = between + (w * entropy + _moved(log_m, m, w * probabilities)).sum(axis)
        return value * mass.sum(axis) / self._scale()

    def _of_views(
        self, logits: Tensor, target: Tensor | None, further: tuple[Tensor, ...]
    ) -> Tensor:
        axis = self._class_axis(logits)
        check_in_memory(logits, "the agreement of several views")
        absent = torch.zeros_like(logits, dtype=torch.bool)
        absent = absent if target is None else absent | (target < 0).unsqueeze(axis)
        between, log_m, m = self._mixture(logits, further, absent)
        moved = _moved(log_m, m, self._weights[0])
        if target is None:
            return (between.unsqueeze(axis) + moved) / self._scale()
        own = moved.gather(axis, target.clamp(min=0).unsqueeze(axis)).squeeze(axis)
        return (between + own) / self._scale()

    def _mixture(
        self, logits: Tensor, further: tuple[Tensor, ...], absent: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return sum_j w_j KL(p_j || m) without the label, m = sum_j w_j p_j; log m and m."""
        axis = self._class_axis(logits)
        for i, view in enumerate(further):
            check_in_memory(view, "the agreement of several views")
            check_like(f"logits[{i + 1}]", view, "logits[0]", logits)
        stacked = _upcast(torch.stack([logits, *[x.to(logits.dtype) for x in further]]))
        stacked = stacked.masked_fill(absent, 0.0)
        # An impossible class has log p = -inf and p = 0: their product counts as 0.
        log_p = torch.log_softmax(stacked, axis + 1).clamp(min=torch.finfo(stacked.dtype).min)
        shares = [-1] + [1] * logits.dim()
        w = torch.tensor(self._weights[1:], dtype=log_p.dtype, device=log_p.device).view(shares)
        log_m = torch.logsumexp(log_p + w.log(), 0)
        between = (w * log_p.exp() * (log_p - log_m)).sum(axis + 1).sum(0)
        return between, log_m, log_m.exp()

    def _scale(self) -> float:
        rest = math.fsum(self._weights[1:])
        return -rest * math.log(rest) if self.scaled else 1.0

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        del num_classes
        w, scale = self._weights[0], self._scale()
        entropy = -math.fsum(x * math.log(x) for x in self._weights)
        source = "Englesson, Azizpour 2021"
        if len(self._weights) > 2:
            names = ("convex", "lipschitz", "smoothness", "symmetric", "calibrated")
            return Properties(
                lower=0.0,
                upper=entropy / scale,
                shift_invariant=True,
                unknown=dict.fromkeys(
                    (*names, "rank_consistent", "proper"), "of several rows of logits together"
                ),
                source=source,
            )
        step = 0.02 * min(w, 1.0 - w)
        level = -math.log1p(-w)
        return Properties(
            convex=False,
            lower=0.0,
            upper=entropy / scale,
            # |dl/dp_y| = (1 - w) (log(m/p) - log(1 - w))/Z, times p (1 - p).
            lipschitz=_ROOT2 * (1.0 - w) / scale * (min(w, 1.0 / math.e) + level / 4.0),
            smoothness=math.inf,
            symmetric=False,
            shift_invariant=True,
            calibrated=True,
            rank_consistent=True,
            proper=False,
            minimiser="in the order of q",
            limits=(("weight -> 0", "cross-entropy"), ("weight -> 1", "MulticlassMAELoss")),
            counterexamples={
                "convex": _STEP,
                "symmetric": _UNLIKE,
                "proper": (_Q, tuple((1.0 + step) * math.log(x) for x in _Q)),
            },
            source=source,
        )


def _moved(log_m: Tensor, m: Tensor, by: float | Tensor) -> Tensor:
    """Return m log m - (m + by) log(m + by), 0 log 0 being 0 with slope 0."""
    total = m + by
    return m * log_m - total * total.clamp(min=torch.finfo(m.dtype).tiny).log()


class _Found(Layout):
    """Logits of which the statistics are known: two losses of one row read it once."""

    def __init__(self, shape: tuple[int, ...], found: dict[str, Tensor]) -> None:
        self.shape = torch.Size(shape)
        self.found = found
        one = next(iter(found.values()))
        self.dtype, self.device = one.dtype, one.device

    def _row_statistics(
        self, target: Tensor, names: tuple[str, ...], temperature: float | Tensor
    ) -> tuple[Tensor, ...]:
        """Return what is known: the target and the temperature are those it was found with."""
        del target, temperature
        return tuple(self.found[name] for name in names)


class _NormalizedRCE(ReverseCrossEntropyLoss):
    """Reverse cross-entropy divided by its class sum, -A (K - 1)."""

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        return super().per_sample(logits, target) / self._class_sum(logits)

    def expected(self, logits: Tensor, probabilities: Tensor, mass: Tensor, *others: Any) -> Tensor:
        """Return the clipped formula for a probability target, times its class weight."""
        return super().expected(logits, probabilities, mass) / self._class_sum(logits)

    def _class_sum(self, logits: Tensor) -> float:
        return -self.A * (logits.shape[self._class_axis(logits)] - 1)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        scaled = MulticlassMAELoss(scale=1.0 / (num_classes - 1)).properties(num_classes)
        return replace(scaled, source=_SOURCE)


_ACTIVE: dict[str, type[ClassificationLoss]] = {
    "ce": CompSumLoss,
    "nce": NormalizedCrossEntropyLoss,
}
_PASSIVE: dict[str, type[ClassificationLoss]] = {
    "mae": MulticlassMAELoss,
    "rce": ReverseCrossEntropyLoss,
    "nrce": _NormalizedRCE,
    "agce": AsymmetricGCELoss,
    "aul": AsymmetricUnhingedLoss,
    "ael": AsymmetricExponentialLoss,
}


class ActivePassiveLoss(ClassificationLoss):
    r"""Active-passive loss (APL): a robust loss that learns plus one that does not overfit.

    .. math:: \ell(f, y) = \alpha\,\ell_{\text{active}}(f, y) + \beta\,\ell_{\text{passive}}(f, y)

    An active loss only raises p_y, a passive one also lowers the other classes; each alone
    underfits, and their sum does not. Published settings: NCE + RCE with alpha = beta = 1 on
    CIFAR-10, 10 and 0.1 on CIFAR-100; NCE + AGCE with a = 3, q = 1.5 and NCE + AUL with a = 6,
    q = 1.5, alpha in {0.1, 5, 9.9} and beta = 10 - alpha.

    Args:
        active: ``"nce"`` (default), ``"ce"``, or a loss of logits and target.
        passive: ``"rce"`` (default), ``"mae"``, ``"nrce"`` (RCE over its class sum, -A (K - 1)),
            ``"agce"``, ``"aul"``, ``"ael"``, or a loss of logits and target.
        alpha: weight of the active loss, finite, >= 0. Default 1.
        beta: weight of the passive loss, finite, >= 0, not both 0. Default 1.
        active_kwargs: what the named active loss is built with, ``None`` for its defaults.
        passive_kwargs: likewise.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.
            Those of losses that are passed in play no part, but for class_dim, which must be the
            same.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Probabilities enter either part as they do alone. Values (N, ...).
        Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`), where both parts take them.

    Properties:
        Symmetric if both parts are, with class sum alpha C_1 + beta C_2: for NCE + RCE,
        alpha - beta A (K - 1). NCE with a passive loss by name is bounded, and not convex. Where
        that is least at the most probable class alone (all but AGCE with q < 1, AUL with q > 1 and
        AEL) their infima are approached together, so the sum is calibrated; not rank-consistent.

    Limits:
        beta = 0: alpha times the active loss; alpha = 0: beta times the passive one. Linear in
        alpha and beta.

    Note:
        In published code the normalised RCE is RCE * 1 / 4 * (K - 1), which multiplies by (K - 1)/4
        where it should divide by 4 (K - 1): its class sum is (K - 1)^2, not 1. That is a passive
        weight of (K - 1)^2 times ours; to reproduce it, raise ``beta`` by that factor.

    Raises:
        ValueError: an unknown name; ``alpha`` or ``beta`` negative, infinite or both 0; an instance
            with another ``class_dim`` or with ``class_weight``.
        TypeError: ``active`` or ``passive`` neither a name nor a loss of logits and target; keyword
            arguments for an instance, or ones that the named loss does not take.

    Reference:
        Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions for Deep Learning with
        Noisy Labels", 2020; with AGCE, AUL and AEL: Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss
        Functions for Learning with Noisy Labels", 2021.

    Example:
        >>> import torch
        >>> from lossary import ActivePassiveLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> ActivePassiveLoss()(logits, torch.tensor([0, 2]))
        tensor(2.2996)
        >>> loss = ActivePassiveLoss("nce", "agce", 5.0, 5.0, passive_kwargs={"a": 3.0, "q": 1.5})
        >>> loss(logits, torch.tensor([0, 2]))
        tensor(6.1706)
    """

    def __init__(
        self,
        active: str | ClassificationLoss = "nce",
        passive: str | ClassificationLoss = "rce",
        alpha: float = 1.0,
        beta: float = 1.0,
        active_kwargs: dict[str, Any] | None = None,
        passive_kwargs: dict[str, Any] | None = None,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(**options)
        self.alpha = check_number("alpha", alpha, 0.0, math.inf, high_open=True)
        self.beta = check_number("beta", beta, 0.0, math.inf, high_open=True)
        if self.alpha == 0.0 and self.beta == 0.0:
            raise ValueError("beta: expected a number > 0 where alpha is 0, got 0")
        self._named = isinstance(active, str) and isinstance(passive, str)
        self.active = self._part("active", active, _ACTIVE, active_kwargs)
        self.passive = self._part("passive", passive, _PASSIVE, passive_kwargs)
        self._normalized = isinstance(self.active, NormalizedCrossEntropyLoss)

    def _part(
        self,
        name: str,
        given: object,
        known: dict[str, type[ClassificationLoss]],
        keywords: dict[str, Any] | None,
    ) -> ClassificationLoss:
        """Return one of the two losses, built or as it is."""
        if isinstance(given, str):
            check_choice(name, given, tuple(known))
            return known[given](**{**(keywords or {}), "class_dim": self.class_dim})
        if not isinstance(given, ClassificationLoss) or not _takes_logits_and_target(given):
            raise TypeError(
                f"{name}: expected one of {tuple(known)} or a loss of logits and target, "
                f"got {type(given).__name__}"
            )
        if keywords is not None:
            raise TypeError(f"{name}_kwargs: expected None for an instance, got {keywords!r}")
        if given.class_dim != self.class_dim or given.class_weight is not None:
            raise ValueError(
                f"{name}: expected a loss with class_dim={self.class_dim} and no class_weight, "
                f"got {given}"
            )
        return given

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        if self._named and target is not None:
            names = (LOG_ODDS, GAPS) if self._normalized else (LOG_ODDS,)
            found = dict(zip(names, self.statistics(logits, target, names), strict=True))
            num_classes = logits.shape[self._class_axis(logits)]
            logits = _Found((*target.shape, num_classes), found)  # type: ignore[assignment]
        elif isinstance(logits, Tensor):
            logits = _upcast(logits)  # here, so that the sum of the gradients is rounded once
        active: Tensor = self.active.per_sample(logits, target)
        passive: Tensor = self.passive.per_sample(logits, target)
        return self.alpha * active + self.beta * passive

    def expected(self, logits: Tensor, probabilities: Tensor, mass: Tensor, *others: Any) -> Tensor:
        """Return both terms for a probability target, times its class weight."""
        active, passive = (
            part.expected(logits, probabilities, mass) for part in (self.active, self.passive)
        )
        return self.alpha * active + self.beta * passive

    def extra_repr(self) -> str:
        """Show the weights and the reduction; the parts follow as modules."""
        return f"alpha={self.alpha!r}, beta={self.beta!r}, reduction={self.reduction!r}"

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        parts = [(self.alpha, self.active), (self.beta, self.passive)]
        facts = [(c, x.properties(num_classes)) for c, x in parts if c > 0.0]
        claims: dict[str, Any] = {
            name: all(getattr(p, name) is True for _, p in facts) or None
            for name in ("convex", "symmetric", "shift_invariant")
        }
        if claims["symmetric"] and all(p.class_sum is not None for _, p in facts):
            claims["class_sum"] = math.fsum(c * (p.class_sum or 0.0) for c, p in facts)
        slopes = [math.inf if p.lipschitz is None else c * p.lipschitz for c, p in facts]
        if math.isfinite(sum(slopes)):
            claims["lipschitz"] = sum(slopes)
        if all(p.smoothness == math.inf for _, p in facts):
            claims["smoothness"] = math.inf
        counterexamples: dict[str, Any] = {}
        if self._named and self._normalized:
            # Both fall in the target's logit, from their suprema to their infima.
            for name in ("lower", "upper"):
                claims[name] = math.fsum(c * getattr(p, name) for c, p in facts)
            claims["convex"] = False
            counterexamples["convex"] = _STEP
            if self.alpha > 0.0 and self.beta > 0.0 and _least_at_a_vertex(self.passive):
                claims["calibrated"] = True
                claims["rank_consistent"] = claims["proper"] = False
                # The least probable class far below, the others far below the first.
                q, f = (0.4, 0.3, 0.2, 0.1), (1e5, -1.0, 0.0, -1e13)
                counterexamples |= dict.fromkeys(("rank_consistent", "proper"), (q, f))
        numbers = ("lower", "upper", "lipschitz", "smoothness")
        flags = ("convex", "symmetric", "shift_invariant", "calibrated", "rank_consistent")
        return Properties(
            **claims,
            limits=(("beta = 0", "alpha times active"), ("alpha = 0", "beta times passive")),
            counterexamples=counterexamples,
            unknown={
                name: "does not follow from what the two parts guarantee"
                for name in (*numbers, *flags, "proper")
                if claims.get(name) is None
            },
            source="Ma, Huang, Wang, Romano, Erfani, Bailey 2020",
        )


def _takes_logits_and_target(loss: ClassificationLoss) -> bool:
    parameters = list(inspect.signature(loss.per_sample).parameters.values())
    needed = [p.name for p in parameters if p.default is p.empty]
    return needed == ["logits", "target"]


def _least_at_a_vertex(passive: ClassificationLoss) -> bool:
    """Tell whether a passive loss has its least conditional risk at the most probable class alone.

    As a function of p_y it then is concave.
    """
    if isinstance(passive, AsymmetricGCELoss):
        return passive.q >= 1.0
    if isinstance(passive, AsymmetricUnhingedLoss):
        return passive.q <= 1.0
    return not isinstance(passive, AsymmetricExponentialLoss)
