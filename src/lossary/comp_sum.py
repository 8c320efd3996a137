r"""Comp-sum losses: one function of the target's probability, from sum-exponential to MAE.

.. math:: \ell_\tau(f, y) = \Phi_\tau\Bigl(\sum_{k \neq y} e^{f_k - f_y}\Bigr)
          = \frac{p_y^{\tau - 1} - 1}{1 - \tau}, \qquad p = \operatorname{softmax}(f)

The smaller tau, the harder the loss pushes on misclassified examples: tau = 0 grows like 1/p_y,
tau = 1 is cross-entropy, 1 < tau < 2 is generalised cross-entropy, tau = 2 is the mean absolute
error, which is symmetric and so tolerant to uniform label noise, but slow to train.
"""

import math
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import ClassificationLoss, ClassOptions, check_number
from lossary._numerics import expm1, softplus
from lossary._properties import Properties
from lossary._softmax import readable

_SOURCE = "Mao, Mohri, Zhong 2023; Zhang, Sabuncu 2018; Ghosh, Kumar, Sastry 2017"


def _phi(surprise: Tensor, a: float) -> Tensor:
    """Return (p^-a - 1)/a of the surprise -log p, for a = 1 - tau."""
    if a == 0.0:
        return surprise
    x = surprise * a
    overflows = False
    if a > 0.0:
        largest = torch.finfo(x.dtype).max
        over = x.detach() > math.log(largest * a)
        overflows = not readable(over) or bool(over.any())
    if overflows:
        x = torch.where(over, 0.0, x)
    value = expm1(x) / a
    if abs(a) < 1e-3:
        # The product of a tiny a and a tiny surprise leaves the normal numbers of float32.
        near = x.abs() < 1e-5
        small = torch.where(near, x, 0.0)
        series = torch.where(near, surprise, 0.0) * (1.0 + small / 2.0 * (1.0 + small / 3.0))
        value = torch.where(near, series, value)
    if overflows:
        # The value overflows to inf, with the largest finite slope: an infinite one, times a
        # probability that underflowed, would be nan.
        finite = surprise.clamp(max=largest)
        steep = (finite - finite.detach()) * (largest * a) + math.inf
        value = torch.where(over, steep, value)
    return value


class CompSumLoss(ClassificationLoss):
    r"""Comp-sum loss: one parameter from sum-exponential through cross-entropy and GCE to MAE.

    .. math:: \ell(f, y) = \frac{p_y^{\tau-1} - 1}{1 - \tau}, \qquad
              \ell = -\log p_y \text{ at } \tau = 1, \qquad p = \operatorname{softmax}(f)

    Its gradient is p_y^(tau-1) times that of cross-entropy, p - e_y: tau > 1 turns the volume down
    on examples the model finds improbable (label noise, outliers), tau < 1 turns it up. Take
    ``tau=1`` for clean labels, between 1.5 and 1.8 for noisy ones; ``tau=2`` is the most tolerant
    and the slowest to train.

    Args:
        tau: tau >= 0, finite. Default 1, cross-entropy.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory (dense layout).

    Properties:
        Convex in the logits iff tau <= 1. Bounded iff tau > 1: 0 <= l < 1/(tau - 1). Gradient norm
        at most sqrt(2) for tau >= 1, unbounded below. Symmetric iff tau = 2, with class sum K - 1.
        Calibrated for every tau; rank-consistent iff tau < 2, where the conditional risk is
        minimal at p_k proportional to q_k^(1/(2-tau)); proper iff tau = 1. Nonincreasing in tau.

    Limits:
        tau = 0: 1/p_y - 1. tau -> 1: cross-entropy, continuously. 1 < tau <= 2:
        :class:`GeneralizedCrossEntropyLoss` with q = tau - 1. tau = 2: :class:`MulticlassMAELoss`.

    Note:
        Computed from the log-odds, so small losses keep their digits in float32. For tau < 1 the
        value is inf where the true one overflows, (1 - tau) times cross-entropy beyond 88 in
        float32; its gradient there is huge but finite.

    Raises:
        ValueError: ``tau`` negative, infinite or nan.
        TypeError: ``tau`` not a number.

    Reference:
        Mao, Mohri, Zhong, "Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
        2023. The members tau = 0, 1, (1, 2) and 2 were verified against a digest of the authors'
        follow-up paper; the expression in tau that joins them is RECALLED.

    Example:
        >>> import torch
        >>> from lossary import CompSumLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> CompSumLoss(tau=1.5)(logits, torch.tensor([0, 2]))
        tensor(0.7069)
    """

    def __init__(self, tau: float = 1.0, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.tau = check_number("tau", tau, 0.0, math.inf, high_open=True)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        return _phi(softplus(self.log_odds(logits, target)), 1.0 - self.tau)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        return _properties(self.tau, num_classes)


class GeneralizedCrossEntropyLoss(ClassificationLoss):
    r"""Generalised cross-entropy (GCE): from cross-entropy, q = 0, to absolute error, q = 1.

    .. math:: \ell(f, y) = \frac{1 - p_y^q}{q}, \qquad p = \operatorname{softmax}(f)

    The standard robust loss for label noise: it learns nearly as fast as cross-entropy, and an
    example that stays improbable loses its pull, its gradient being p_y^q (p - e_y).

    Args:
        q: 0 <= q <= 1. Default 0.7, the paper's. 0 is cross-entropy, by the limit.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory (dense layout).

    Properties:
        0 <= l < 1/q, gradient norm at most sqrt(2), not convex for q > 0. Symmetric iff q = 1; in
        between the class sum lies in [(K - K^(1-q))/q, (K - 1)/q]. Calibrated; rank-consistent iff
        q < 1; proper iff q = 0.

    Limits:
        q -> 0: cross-entropy. q = 1: :class:`MulticlassMAELoss`. Always
        :class:`CompSumLoss` with tau = 1 + q.

    Note:
        The published code clips p at 1e-7, which cuts off the gradient of improbable targets. From
        the log-odds no clipping is needed.

    Raises:
        ValueError: ``q`` outside [0, 1].
        TypeError: ``q`` not a number.

    Reference:
        Zhang, Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with
        Noisy Labels", 2018.

    Example:
        >>> import torch
        >>> from lossary import GeneralizedCrossEntropyLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> GeneralizedCrossEntropyLoss(q=0.7)(logits, torch.tensor([0, 2]))
        tensor(0.6138)
    """

    def __init__(self, q: float = 0.7, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.q = check_number("q", q, 0.0, 1.0)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        return _phi(softplus(self.log_odds(logits, target)), -self.q)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        return _properties(1.0 + self.q, num_classes)


class MulticlassMAELoss(ClassificationLoss):
    r"""Mean absolute error between the one-hot label and the softmax, halved: 1 - p_y.

    .. math:: \ell(f, y) = \text{scale} \cdot (1 - p_y)
              = \tfrac12\, \text{scale} \cdot \lVert e_y - p \rVert_1

    Symmetric: under uniform label noise its expected value is an affine function of the clean one
    as long as the true label stays the most frequent, so the minimiser does not move. The price is
    slow training: an improbable target has almost no gradient, p_y (p - e_y).

    Args:
        scale: > 0, finite. Default 1; 2 gives the unhalved l1 norm that some code uses.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory (dense layout).

    Properties:
        0 <= l <= scale, gradient norm at most scale * sqrt(2)/4, not convex. Symmetric, with class
        sum scale * (K - 1); with a share eta of labels redrawn uniformly among the other classes
        the expected loss is (1 - eta K/(K-1)) l + scale * eta. Calibrated, but not rank-consistent:
        it only rewards mass on the most probable class.

    Limits:
        :class:`CompSumLoss` at tau = 2, :class:`GeneralizedCrossEntropyLoss` at q = 1.

    Note:
        1 - p_y keeps its digits when p_y rounds to 1, and the gradient when p_y is tiny.

    Raises:
        ValueError: ``scale`` not positive, or infinite.
        TypeError: ``scale`` not a number.

    Reference:
        Ghosh, Kumar, Sastry, "Robust Loss Functions under Label Noise for Deep Neural Networks",
        2017.

    Example:
        >>> import torch
        >>> from lossary import MulticlassMAELoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> MulticlassMAELoss()(logits, torch.tensor([0, 2]))
        tensor(0.5080)
    """

    def __init__(self, scale: float = 1.0, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.scale = check_number("scale", scale, 0.0, math.inf, low_open=True, high_open=True)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        return expm1(-softplus(self.log_odds(logits, target))) * -self.scale

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        return replace(
            _properties(2.0, num_classes),
            upper=self.scale,
            lipschitz=self.scale * math.sqrt(2.0) / 4.0,
            class_sum=self.scale * (num_classes - 1),
            limits=(),
        )


def _properties(tau: float, num_classes: int) -> Properties:
    """State the facts of the whole family."""
    q = (0.5, 0.3, 0.2)
    counterexamples: dict[str, tuple[Any, ...]] = {}
    if tau > 1.0:
        # In the direction e_y the loss is concave wherever p_y < (tau - 1)/tau.
        edge = math.log(2.0 * (tau - 1.0))
        low = edge - 2.0 / (tau - 1.0)
        counterexamples["convex"] = ((low, 0.0, 0.0), (edge, 0.0, 0.0), 0)
    else:
        counterexamples["upper"] = ((-1.0, 0.0, 0.0), 0)
    if tau < 1.0:
        counterexamples["lipschitz"] = ((-1.0, 0.0, 0.0), 0)
    if tau != 2.0:
        counterexamples["symmetric"] = ((0.0, 0.0, 0.0), (3.0, 0.0, -1.0))
    if tau >= 2.0:
        counterexamples["rank_consistent"] = (q, (80.0, -1.0, 0.0))
    if tau != 1.0:
        best = tuple(math.log(x) / (2.0 - tau) for x in q) if tau < 2.0 else (80.0, 0.0, 0.0)
        counterexamples["proper"] = (q, best)
    return Properties(
        convex=tau <= 1.0,
        lower=0.0,
        upper=1.0 / (tau - 1.0) if tau > 1.0 else math.inf,
        lipschitz=math.sqrt(2.0) if tau >= 1.0 else math.inf,
        smoothness=math.inf,
        symmetric=tau == 2.0,
        class_sum=float(num_classes - 1) if tau == 2.0 else None,
        shift_invariant=True,
        calibrated=True,
        rank_consistent=tau < 2.0,
        proper=tau == 1.0,
        minimiser="p_k proportional to q_k^(1/(2-tau))" if tau < 2.0 else "p = e_k at argmax q_k",
        limits=(
            ("tau = 0", "1/p_y - 1"),
            ("tau -> 1", "cross-entropy"),
            ("tau = 2", "MulticlassMAELoss"),
        ),
        counterexamples=counterexamples,
        source=_SOURCE,
    )
