r"""Certified robustness: training on bounds of the logits over all permitted perturbations.

.. math:: l \le f(x + \delta) \le u \quad \text{for all } \|\delta\| \le \varepsilon

Interval bound propagation (IBP) sends a box through the network, layer by layer. The losses take
the bounds as tensors, from whatever computes them. In the short warm-up of Shi et al. the radius
grows from 0, and two regularizers keep the early bounds in shape::

    robust = IBPRobustCrossEntropyLoss()(lower, upper, target)
    shape = IBPTightnessRegularizer()(input_bounds, layer_bounds)
    shape = shape + ReLUBalanceRegularizer()(layer_bounds)
    loss = robust + 0.5 * (1 - eps / eps_max) * shape
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary._base import (
    ClassificationLoss,
    Loss,
    LossOptions,
    _check_weight,
    _upcast,
    present_rows,
)
from lossary._checks import (
    check_floating,
    check_like,
    check_positive,
    check_tensor,
    check_weight_type,
)
from lossary._numerics import softplus
from lossary._properties import Properties
from lossary._softmax import readable, target_log_odds

Bounds: TypeAlias = Sequence[Tensor] | Tensor

_SOURCE = "Shi, Wang, Zhang, Yi, Hsieh 2021"


def _check_order(name: str, lower: Tensor, upper: Tensor, absent: Tensor | None = None) -> None:
    """Raise an error where a lower bound is above the upper one, if looking costs nothing."""
    if not (readable(lower) and readable(upper)):
        return
    crossed = lower > upper
    if absent is not None:
        crossed = crossed & ~absent
    if bool(crossed.any()):
        low, high = float(lower[crossed][0]), float(upper[crossed][0])
        raise ValueError(f"{name}: expected lower bounds <= upper ones, got {low:g} and {high:g}")


class IBPRobustCrossEntropyLoss(ClassificationLoss):
    r"""Cross-entropy at the worst logits inside certified bounds.

    .. math:: \ell = \operatorname{CE}(v, y), \qquad v_y = l_y, \quad
              v_k = u_k \ (k \neq y)

    with the bounds l, ``lower``, and u, ``upper``, of the logits. No perturbation that they cover
    has a larger cross-entropy. Train on it for networks whose robustness can be certified; the
    bounds must let the gradient through.

    Args:
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        lower (N, K, ...), upper of the same shape and dtype, target (N, ...) class indices or
        (N, K, ...) probabilities; K >= 2. Values (N, ...). Bounds in memory (dense layout).
        ``forward_margins(margins, weight=None, normalizer=None)`` takes certified lower bounds of
        f_y - f_k for the K - 1 classes k other than y, (N, K - 1, ...): log(1 + sum_k exp(-m_k)).
        The margins lower_y - upper_k give the same value; bounds of the difference itself, computed
        through the last layer, are tighter.

    Properties:
        l > 0, unbounded; convex in both bounds together. Gradient softmax(v) - e_y, its entry of y
        in the lower bound, the others in the upper one; the norm in either is at most 1. At least
        CE(f, y) for every f between the bounds, and nondecreasing as they widen. The sample is
        certified if and only if all margins are positive: l < log 2 implies it, and a margin <= 0
        implies l >= log 2.

    Limits:
        lower = upper: cross-entropy.

    Note:
        From log-odds, finite for margins of any size. A margin does not say of which class it is,
        so ``forward_margins`` refuses class weights. The published code pads a logit of 0 and
        takes it for the label, which is the same.

    Raises:
        ValueError: ``upper`` of another shape, a lower bound above the upper one (on CPU tensors,
            where looking costs nothing), margins with class weights.
        TypeError: bounds that are not floating point or not of one dtype.

    Reference:
        Shi, Wang, Zhang, Yi, Hsieh, "Fast Certified Robust Training with Short Warmup", 2021.
        Agrees with the authors' code.

    Example:
        >>> import torch
        >>> from lossary import IBPRobustCrossEntropyLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> loss = IBPRobustCrossEntropyLoss(reduction="none")
        >>> loss(logits - 0.5, logits + 0.5, torch.tensor([0, 1]))
        tensor([0.4076, 0.9580])
        >>> loss.forward_margins(torch.tensor([[1.0, 2.0], [0.0, 0.5]]))
        tensor([0.4076, 0.9580])
    """

    def per_sample(self, lower: Tensor, upper: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        axis = self._class_axis(lower)
        low, high = (_upcast(present_rows(x, target, axis, "a bound")) for x in (lower, upper))
        if target is not None:
            return softplus(self._against(low, high, target, axis))
        # For the top class alone the rivals are far from it, and the sum would lose their digits.
        top = high.detach().argmax(axis)
        t = self.log_odds(high, None) + (high - low)
        t = t.scatter(
            axis, top.unsqueeze(axis), self._against(low, high, top, axis).unsqueeze(axis)
        )
        return softplus(t)

    def _against(self, low: Tensor, high: Tensor, target: Tensor, axis: int) -> Tensor:
        """Return the log-odds against the target at the worst logits."""
        y = target.clamp(min=0).unsqueeze(axis)
        return self.log_odds(high.scatter(axis, y, low.gather(axis, y)), target)

    def expected(self, logits: Tensor, probabilities: Tensor, mass: Tensor, *others: Any) -> Tensor:
        """Return the expectation over the classes."""
        absent = (probabilities == 0).all(self._class_axis(logits), keepdim=True)
        (upper,) = others
        return super().expected(logits, probabilities, mass, upper.masked_fill(absent, 0.0))

    def forward_margins(
        self,
        margins: Tensor,
        *,
        weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss of certified lower bounds of f_y - f_k, (N, K - 1, ...)."""
        check_floating("margins", margins)
        n = margins.dim()
        axis = 0 if n == 1 else self.class_dim
        if not -n <= axis < n or margins.shape[axis] == 0:
            raise ValueError(
                f"margins: expected shape (N, K - 1, ...), K >= 2, with the classes along axis "
                f"{self.class_dim} (class_dim), got {tuple(margins.shape)}"
            )
        if self.class_weight is not None:
            raise ValueError("class_weight: expected None, as margins are of no class, got one")
        target = torch.zeros_like(margins.select(axis, 0), dtype=torch.long)
        if weight is not None:
            check_weight_type("weight", weight)
            _check_weight(weight, target.shape, margins)
            target = target.masked_fill(weight == 0, -1)
        worst = -_upcast(present_rows(margins, target, axis % n, "a margin"))
        worst = torch.cat((torch.zeros_like(worst.narrow(axis, 0, 1)), worst), axis)
        values = softplus(target_log_odds(worst, target, class_dim=axis))
        if weight is not None:
            weight = weight.to(values.dtype)
        return self._reduce(values, weight, None, normalizer)

    def _hard(
        self, logits: Tensor, target: Tensor, others: list[Any], weight: Tensor | None, axis: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        self._check_bounds(logits, others[0], target == self.ignore_index, weight, axis)
        return super()._hard(logits, target, others, weight, axis)

    def _soft(
        self, logits: Tensor, q: Tensor, others: list[Any], weight: Tensor | None, axis: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        present = torch.zeros_like(q.select(axis, 0), dtype=torch.bool)
        self._check_bounds(logits, others[0], present, weight, axis)
        return super()._soft(logits, q, others, weight, axis)

    def _check_bounds(
        self, lower: Tensor, upper: Tensor, absent: Tensor, weight: Tensor | None, axis: int
    ) -> None:
        check_tensor("lower", lower)
        check_floating("upper", upper)
        check_like("upper", upper, "lower", lower)
        if upper.dtype != lower.dtype:
            raise TypeError(f"upper: expected the dtype of lower, {lower.dtype}, got {upper.dtype}")
        absent = absent if weight is None else absent | (weight == 0)
        _check_order("lower", lower, upper, absent.unsqueeze(axis))

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=1.0,
            smoothness=math.inf,
            limits=(("lower = upper", "cross-entropy"),),
            counterexamples={"upper": ((-1.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0)},
            unknown=dict.fromkeys(
                ("symmetric", "shift_invariant", "calibrated", "rank_consistent", "proper"),
                "of two rows, the lower and the upper bounds",
            ),
            source=f"{_SOURCE}; algebra",
        )


class IBPTightnessRegularizer(Loss):
    r"""Keep the certified bounds from growing through the layers.

    .. math:: R = \frac1L \sum_{i=1}^L \frac{\max(0, \tau - D_0/D_i)}{\tau}, \qquad
              D_i = \operatorname{mean} \frac{u_i - l_i}{2}

    D_0 is the mean half-width of the input's box, D_i that of the inputs of the i-th ReLU, over
    batch and neurons. Under the usual initial weights bounds explode with depth; add this, with
    :class:`ReLUBalanceRegularizer`, during the warm-up alone, times 0.5 (1 - eps/eps_max) (0.2 or
    0.1 instead of 0.5 for TinyImageNet). Where eps is 0 take the bounds at eps = 1e-6.

    Args:
        tol: tau > 0, finite: widths up to 1/tau times the input's cost nothing. Default 0.5.
        reduction: see :class:`lossary.Loss`. The value is one number: ``weight`` is refused.

    Shape:
        input_bounds, a pair (lower, upper) of tensors of one shape (N, ...) or a tensor of both,
        (2, N, ...); layer_bounds, a sequence of at least one such pair, of any shapes, or a tensor.
        Value 0-dim.

    Properties:
        In [0, 1); 0 if and only if every D_i <= D_0/tau. Nondecreasing in every D_i, unchanged by a
        common scale of all widths. Batch-coupled: under ``torch.distributed`` of the own batch.

    Limits:
        All D_i -> inf: 1. D_i below 1e-12 count as that, as in the published code; so bounds that
        are equal everywhere, input included, have R = 1 and nothing to learn from.

    Raises:
        ValueError: ``tol`` not positive, no layer, a pair of different shapes, a lower bound above
            the upper one (on CPU tensors, where looking costs nothing).
        TypeError: bounds that are not floating point, or no pairs.

    Reference:
        Shi, Wang, Zhang, Yi, Hsieh, "Fast Certified Robust Training with Short Warmup", 2021.
        Agrees with the authors' code.

    Example:
        >>> import torch
        >>> from lossary import IBPTightnessRegularizer
        >>> x = torch.zeros(2, 3)
        >>> layers = [(x - 1.0, x + 1.0), (x - 4.0, x + 4.0)]
        >>> IBPTightnessRegularizer()((x - 1.0, x + 1.0), layers)
        tensor(0.2500)
    """

    separable = False

    def __init__(self, tol: float = 0.5, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.tol = check_positive("tol", tol)

    def per_sample(self, input_bounds: Bounds, layer_bounds: Sequence[Bounds] | Tensor) -> Tensor:
        """Return the penalty, one number."""
        lower, upper = _pair("input_bounds", input_bounds)
        layers = list(_layers(layer_bounds))
        if lower.numel() == 0:
            return torch.stack(
                [(high - low).sum() for low, high in [(lower, upper), *layers]]
            ).sum()
        width = (upper - lower).mean() / 2.0
        ratios = [width / ((high - low).mean() / 2.0).clamp(min=1e-12) for low, high in layers]
        return F.relu(self.tol - torch.stack(ratios)).mean() / self.tol

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            lower=0.0,
            upper=1.0,
            smoothness=0,
            unknown={
                "convex": "of ratios of widths",
                "lipschitz": "inverse to the widths, whose unit is the caller's",
            },
            source=f"{_SOURCE}; algebra",
        )


class ReLUBalanceRegularizer(Loss):
    r"""Balance the neurons that are certified active with those that are certified inactive.

    .. math:: R = \frac1L \sum_{i=1}^L \frac{\max(0, \tau - \alpha_i) + \max(0, \tau - \beta_i)}
              {\tau}

    .. math:: \alpha = \rho\Bigl(\sum_A c_j,\ -\sum_I c_j\Bigr), \qquad
              \beta = \rho\Bigl(\sum_A (c_j - \mu)^2,\ \sum_I (c_j - \mu)^2\Bigr)

    with c the centres of the bounds of a ReLU's inputs, mu their mean, A the neurons with a
    positive lower bound, I those with a negative upper one, and rho(a, b) = min(a, b)/max(a, b).
    Certified training tends to switch neurons off for good; this asks for as much of either kind,
    in size and in variance. Add it as :class:`IBPTightnessRegularizer`.

    Args:
        tol: tau > 0, finite: ratios above it cost nothing. Default 0.5.
        reduction: see :class:`lossary.Loss`. The value is one number: ``weight`` is refused.

    Shape:
        layer_bounds, a sequence of at least one pair (lower, upper) of tensors (N, ...), of any
        shapes; or a tensor of them, (L, 2, N, ...). Value 0-dim.

    Properties:
        In [0, 2]. Unchanged by a positive scale of the bounds of a layer, and by exchanging
        (lower, upper) for (-upper, -lower) where there are neurons of both kinds. Which neurons
        are of which kind has no gradient: the value jumps where a bound crosses 0. Batch-coupled:
        under ``torch.distributed`` of the own batch.

    Limits:
        A layer without inactive neurons counts as 0, one with inactive and no active ones as 2 (if
        their centres differ; as 0 if they are all equal): so in the published code, where the first
        is a division by zero that is then dropped. Layers that count as 0 stay in the mean.

    Note:
        Computed with the centres relative to the largest of the layer, and with safe denominators:
        neither squares that underflow nor a branch that is not taken reaches the gradient.

    Raises:
        ValueError: ``tol`` not positive, no layer, a pair of different shapes, a lower bound above
            the upper one (on CPU tensors, where looking costs nothing).
        TypeError: bounds that are not floating point, or no pairs.

    Reference:
        Shi, Wang, Zhang, Yi, Hsieh, "Fast Certified Robust Training with Short Warmup", 2021.
        Agrees with the authors' code.

    Example:
        >>> import torch
        >>> from lossary import ReLUBalanceRegularizer
        >>> centre = torch.tensor([[3.0, 0.0, -1.0]])
        >>> ReLUBalanceRegularizer()([(centre - 0.5, centre + 0.5)])
        tensor(0.3333)
    """

    separable = False

    def __init__(self, tol: float = 0.5, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.tol = check_positive("tol", tol)

    def per_sample(self, layer_bounds: Sequence[Bounds] | Tensor) -> Tensor:
        """Return the penalty, one number."""
        return torch.stack([self._of_layer(*bounds) for bounds in _layers(layer_bounds)]).mean()

    def _of_layer(self, lower: Tensor, upper: Tensor) -> Tensor:
        c = lower + upper  # twice the centres: their scale drops out
        if c.numel() == 0:
            return c.sum()
        size = c.detach().abs().amax()
        c = c / torch.where(size > 0.0, size, 1.0)
        kinds = (lower > 0.0, upper < 0.0)
        active, inactive = (torch.where(kind, c, 0.0).sum().abs() for kind in kinds)
        square = (c - c.mean()).square()
        above, below = (torch.where(kind, square, 0.0).sum() for kind in kinds)
        alpha, beta = _balance(active, inactive), _balance(above, below)
        value = (F.relu(self.tol - alpha) + F.relu(self.tol - beta)) / self.tol
        return torch.where((inactive > 0.0) & (above + below > 0.0), value, 0.0)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            lower=0.0,
            upper=2.0,
            unknown={"convex": "of ratios of centres"}
            | dict.fromkeys(("lipschitz", "smoothness"), "not continuous"),
            source=f"{_SOURCE}; algebra",
        )


def _balance(a: Tensor, b: Tensor) -> Tensor:
    """Return min(a, b)/max(a, b) of two numbers >= 0, 0 of two zeros."""
    larger = torch.maximum(a, b)
    return torch.minimum(a, b) / torch.where(larger > 0.0, larger, 1.0)


def _pair(name: str, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Return the checked lower and upper bounds, in float32 at least."""
    if not isinstance(bounds, Tensor | tuple | list):
        raise TypeError(f"{name}: expected a pair of tensors, got {type(bounds).__name__}")
    if (isinstance(bounds, Tensor) and bounds.dim() == 0) or len(bounds) != 2:
        given = tuple(bounds.shape) if isinstance(bounds, Tensor) else len(bounds)
        raise ValueError(f"{name}: expected a pair of tensors, got {given}")
    lower, upper = bounds
    check_floating(name, lower)
    check_floating(name, upper)
    check_like(name, upper, "the lower bounds", lower)
    _check_order(name, lower, upper)
    return _upcast(lower), _upcast(upper)


def _layers(layer_bounds: Sequence[Bounds] | Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the checked bounds of each layer."""
    if not isinstance(layer_bounds, Tensor | tuple | list):
        raise TypeError(
            f"layer_bounds: expected a sequence of pairs, got {type(layer_bounds).__name__}"
        )
    if (isinstance(layer_bounds, Tensor) and layer_bounds.dim() == 0) or len(layer_bounds) == 0:
        raise ValueError("layer_bounds: expected at least one layer, got none")
    for i, bounds in enumerate(layer_bounds):
        yield _pair(f"layer_bounds[{i}]", bounds)
