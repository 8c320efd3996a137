r"""Losses of one logit and a target of 0 or 1, through the signed margin.

.. math:: m = s f, \qquad s = 2 \cdot \text{target} - 1 \in \{-1, 1\}

A convex loss phi(m) is calibrated, so that its minimiser has the sign of the more probable class,
exactly where it has a negative slope at 0 (Bartlett, Jordan, McAuliffe 2006). Here are losses that
make use of this freedom: slopes drawn at random, slopes made as steep as the perceptron's, and
slopes that are normalised over the batch.
"""

import math
import warnings
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary import _distributed
from lossary._base import Loss, LossOptions, signed_margin
from lossary._checks import check_choice, check_floating, check_like, check_number, check_positive
from lossary._numerics import softplus
from lossary._properties import Properties


class ScaledLogisticLoss(Loss):
    r"""Logistic loss of a scaled margin, from the logistic loss to the perceptron's.

    .. math:: \ell(f, y) = \frac1s \log\bigl(1 + e^{-s m}\bigr), \qquad s = \infty: \max(0, -m)

    Gradient descent on logistic regression with a step size that tends to infinity becomes the
    batch perceptron: the same path is that of a fixed step on this loss as its scale grows. Use a
    large scale where the classes can be separated and only errors should count.

    Args:
        scale: s > 0; ``math.inf`` for the perceptron's loss. Default 1.
        reduction: see :class:`lossary.Loss`.

    Shape:
        logits (N, ...), target of the same shape, bool or numbers 0 and 1. Values (N, ...).

    Properties:
        Convex, l >= 0, unbounded; 0 <= l - max(0, -m) <= log(2)/s, with equality on the right at
        m = 0; nonincreasing in s. Gradient -sigmoid(-s m) in the margin, at most 1. Calibrated for
        finite s: the slope at 0 is -1/2. The perceptron's loss is not: 0 minimises every risk.

    Limits:
        s = 1: binary cross-entropy with logits. s -> inf: the perceptron's loss, whose slope at
        m = 0 is -1/2 here, the limit.

    Note:
        Where s m overflows the value is that of the perceptron, which it then equals.

    Raises:
        ValueError: ``scale`` not positive, a target other than 0 and 1 (on CPU tensors, where
            looking costs nothing) or of another shape than the logits.
        TypeError: ``scale`` not a number, logits not floating point.

    Reference:
        Tyurin, "From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent
        with Large Step Sizes", 2025, remark after Theorem 3.3.

    Example:
        >>> import torch
        >>> from lossary import ScaledLogisticLoss
        >>> logits, target = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1, 0, 0])
        >>> ScaledLogisticLoss()(logits, target), ScaledLogisticLoss(torch.inf)(logits, target)
        (tensor(0.4714), tensor(0.1667))
    """

    def __init__(self, scale: float = 1.0, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.scale = check_number("scale", scale, 0.0, low_open=True)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every element, unreduced."""
        m = signed_margin(logits, target)
        # The maximum of a tie has half the slope of each, as the limit has.
        if self.scale > torch.finfo(m.dtype).max:
            return torch.maximum(-m, torch.zeros_like(m))
        return softplus(-m, self.scale)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=1.0,
            smoothness=0 if math.isinf(self.scale) else math.inf,
            limits=(("scale = 1", "binary cross-entropy"), ("scale -> inf", "perceptron's loss")),
            counterexamples={"upper": (-1.0, 1)},
            source="Tyurin 2025",
        )


class NormalizedLogisticLoss(Loss):
    r"""Logistic loss whose gradient is normalised over the batch: the errors share a sum of 1.

    .. math:: \ell_i = \operatorname{sg}[\beta] \log\bigl(1 + e^{-m_i}\bigr), \qquad
              \beta = \Bigl(\frac1N \sum_i \sigma(-m_i)\Bigr)^{-1}

    Normalized logistic regression: as the classes become separated, the gradient of the logistic
    loss vanishes; divided by its own size it does not, and gradient descent separates in no more
    steps than the batch perceptron needs, up to a logarithm. **The value is a surrogate** for its
    gradient, not a risk: beta has no gradient (sg), and the mean of the values stays above 1.

    Args:
        gather: whether beta is of the rows of all processes: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: of the own rows.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`.

    Shape:
        logits (N,), target (N,), bool or numbers 0 and 1. Values (N,).

    Properties:
        Batch-coupled: beta is of the whole batch, whatever ``weight`` says, which scales the values
        afterwards. The gradient in the margins under ``"mean"`` is -w with w_i = sigmoid(-m_i) /
        sum_j sigmoid(-m_j), of sum 1; at m = 0 it is -1/N, of a single sample -1. The mean of the
        values is above 1, which it comes near to where all samples are right, and unbounded.

    Limits:
        Full-batch gradient descent from 0, divided by its step size, tends for a large one to the
        normalised batch perceptron, up to its first separating iterate.

    Note:
        Once every sample is right all sigmoids underflow, and beta would be 1/0: value and gradient
        are exponentials of differences of logarithms, which do not.

    Raises:
        ValueError: logits not of shape (N,), a target other than 0 and 1 (on CPU tensors, where
            looking costs nothing) or of another shape, a ``process_group`` without this process.
        TypeError: logits not floating point.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Tyurin, "From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent
        with Large Step Sizes", 2025, Theorem 6.1.

    Example:
        >>> import torch
        >>> from lossary import NormalizedLogisticLoss
        >>> logits = torch.tensor([200.0, -150.0, 150.5], requires_grad=True)
        >>> NormalizedLogisticLoss()(logits, torch.tensor([1, 0, 1])).backward()
        >>> logits.grad.round(decimals=4).abs()
        tensor([0.0000, 0.6225, 0.3775])
    """

    separable = False

    def __init__(
        self,
        *,
        gather: bool | str = "auto",
        process_group: Any = None,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        _distributed.check_gather(gather, process_group)
        self.gather = gather
        self.process_group = process_group

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the value of every sample, unreduced."""
        m = _batch_margin(logits, target)
        # log softplus(-m), which beyond the threshold is -m itself.
        far = m > 40.0
        log_loss = torch.where(far, -m, softplus(-torch.where(far, 0.0, m)).log())
        log_error = -softplus(m.detach())
        if self._gathers():
            (log_error,) = _distributed.gather_rows(log_error, group=self.process_group)
        if len(log_error) == 0:
            return log_loss
        # Relative to the largest error first: of numbers of this size only differences are exact.
        top = log_error.amax(0)
        return torch.exp((log_loss - top) - torch.exp(log_error - top).mean(0).log())

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            lower=1.0,
            upper=math.inf,
            lipschitz=1.0,
            smoothness=math.inf,
            counterexamples={"upper": ((-1.0, -1.0), torch.tensor((1, 1)))},
            unknown={"convex": "the value is a surrogate for its gradient"},
            source="Tyurin 2025; algebra",
        )


class EnsLoss(Loss):
    r"""A calibrated loss whose slopes are drawn anew at every call; its value is not a risk.

    .. math:: \ell_i = \operatorname{sg}[g_i]\, m_i, \qquad
              g_{(j)} = \max(-h(z)_{(j)}, -\text{clip}), \qquad
              h(z) = \max(1 + \lambda z, 0)^{1/\lambda}, \quad z \sim N(0, 1)

    **The value is a surrogate**: the linear function g m, unbounded below, whose gradient is meant.
    Do not report it, stop early on it or compare it between batches; watch the accuracy or the
    logistic loss instead. An ensemble of losses at the price of one, in the manner of dropout:
    as many slopes as samples are drawn, sorted, and matched with the sorted margins, the most
    negative slope with the smallest margin. So in every batch they are the slopes of some convex
    loss that is calibrated. For binary classification that would overfit any one loss.

    Args:
        lam: lambda, finite; where the slopes come from: 0 (default), their logarithms are normal;
            1, normal and cut at 0; -1, their inverses are. Beyond [-1, 1] with a warning. The
            buffer ``lam``; ``resample_lam()`` draws it anew from [-1, 1], as the official trainer
            does every few epochs if asked to.
        clip: > 0, finite: the steepest slope. Default 1.
        tail: divide the slope by m where m > 1, so that the loss grows like a logarithm there and
            not linearly; bounds from below what large margins add. Default ``True``.
        offset: > 0, finite: added to every slope, so that none is 0. Default 1e-6.
        generator: the ``torch.Generator`` that draws; on the device of the logits. Default
            ``None``: torch's own.
        reduction: see :class:`lossary.Loss`.

    Shape:
        logits (N,), target (N,), bool or numbers 0 and 1; normal_draws (N,), the z, for results
        that can be repeated, or ``None`` (default) to draw them. Values (N,).

    Properties:
        Batch-coupled: the draws are matched to the sorted batch, of this process. The gradient in
        the margin is g_i: in [-clip - offset, -offset], nondecreasing in the margin, at most
        clip/m + offset in size for m > 1 with ``tail``. That is the condition for a convex,
        calibrated loss: monotone slopes, negative at 0. Permuting a batch with its draws matched
        by rank permutes the gradients, where no margins are equal; the order of ties is arbitrary.
        The value has no bound.

    Limits:
        lam -> 0: h = exp(xi). clip -> 0 with ``tail=False``: all slopes equal, the unhinged loss.

    Note:
        h comes from its logarithm, log1p(lambda z)/lambda, accurate near lambda = 0. For
        lambda < 0 draws with 1 + lambda z <= 0 have an infinite h, which is clipped.

    Raises:
        ValueError: ``clip`` or ``offset`` not positive, logits not of shape (N,), a target other
            than 0 and 1 (on CPU tensors, where looking costs nothing) or of another shape,
            ``normal_draws`` of another length.
        TypeError: hyper-parameters of the wrong type, logits not floating point.

    Reference:
        Dai, "EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in
        Classification", 2025. Agrees with the authors' code on recorded noise. The condition for
        calibration is that of Bartlett, Jordan, McAuliffe, "Convexity, Classification, and Risk
        Bounds", 2006.

    Example:
        >>> import torch
        >>> from lossary import EnsLoss
        >>> logits = torch.tensor([2.0, -1.0, 0.5], requires_grad=True)
        >>> loss = EnsLoss(generator=torch.Generator().manual_seed(0))
        >>> loss(logits, torch.tensor([1, 0, 0])).backward()
        >>> (3 * logits.grad).abs()
        tensor([0.0566, 0.7457, 1.0000])
    """

    separable = False
    lam: Tensor

    def __init__(
        self,
        lam: float = 0.0,
        clip: float = 1.0,
        tail: bool = True,
        offset: float = 1e-6,
        generator: torch.Generator | None = None,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        lam = check_number("lam", lam, low_open=True, high_open=True)
        if abs(lam) > 1.0:
            warnings.warn(
                f"lam: expected a number in [-1, 1] as in the paper, got {lam:g}", stacklevel=2
            )
        self.register_buffer("lam", torch.tensor(lam))
        self.clip = check_positive("clip", clip)
        check_choice("tail", tail, (True, False))
        self.tail = tail
        self.offset = check_positive("offset", offset)
        if not isinstance(generator, torch.Generator | None):
            raise TypeError(
                f"generator: expected a torch.Generator or None, got {type(generator).__name__}"
            )
        self.generator = generator

    def per_sample(
        self, logits: Tensor, target: Tensor, normal_draws: Tensor | None = None
    ) -> Tensor:
        """Return the surrogate of every sample, unreduced."""
        m = _batch_margin(logits, target)
        if normal_draws is None:
            normal_draws = torch.randn(
                m.shape, generator=self.generator, dtype=m.dtype, device=m.device
            )
        else:
            check_floating("normal_draws", normal_draws)
            check_like("normal_draws", normal_draws, "logits", logits)
        return self._slopes(m.detach(), normal_draws.detach().to(m.dtype)) * m

    def _slopes(self, m: Tensor, xi: Tensor) -> Tensor:
        """Return the slope of every margin."""
        lam = self.lam.to(m.dtype)
        power = torch.log1p((lam * xi).clamp(min=-1.0)) / torch.where(lam == 0.0, 1.0, lam)
        h = torch.exp(torch.where(lam == 0.0, xi, power))
        steepest_first = (-h).clamp(min=-self.clip).sort().values
        g = torch.empty_like(m).scatter(0, m.argsort(), steepest_first)
        if self.tail:
            g = g / m.clamp(min=1.0)
        return g - self.offset

    @torch.no_grad()
    def resample_lam(self) -> None:
        """Draw lam anew, uniformly from [-1, 1]."""
        g = self.generator
        u = torch.rand((), generator=g, device=self.lam.device if g is None else g.device)
        self.lam.copy_(2.0 * u - 1.0)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        surrogate = "the value is a surrogate, not a risk: only its gradient means something"
        return Properties(
            lower=-math.inf,
            upper=math.inf,
            lipschitz=self.clip + self.offset,
            limits=(("lam -> 0", "slopes whose logarithms are normal"),),
            counterexamples={
                name: ((m, m), torch.tensor((1, 1)), (0.0, 0.0))
                for name, m in (("lower", 1.0), ("upper", -1.0))
            },
            unknown=dict.fromkeys(("convex", "smoothness"), surrogate),
            source="Dai 2025",
        )


def _batch_margin(logits: Tensor, target: Tensor) -> Tensor:
    m = signed_margin(logits, target)
    if m.dim() != 1:
        raise ValueError(f"logits: expected shape (N,), got {tuple(m.shape)}")
    return m
