r"""Calibration: confidence that says how often the prediction is right, in training and measured.

.. math:: c = \max_k p_k, \qquad
          \text{calibrated:}\ \Pr(\text{the prediction is right} \mid c) = c

:class:`CorrectnessAwareLoss` fits a post-hoc calibrator, the two mixup losses train with it, and
:class:`ExpectedCalibrationError` and :class:`BalanceScore` measure what is left. Confidence near 1
is computed from the log-odds against the prediction, so that 1 - c keeps its digits.
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lossary import _softmax
from lossary._base import (
    Loss,
    LossOptions,
    _upcast,
    check_class_indices,
    check_class_rows,
    check_rows,
)
from lossary._checks import (
    check_choice,
    check_device,
    check_floating,
    check_int,
    check_like,
    check_number,
    check_tensor,
)
from lossary._properties import Properties

#: What a mixed target must reach to count as one class: rounding may take a bit off 1.
_ONE = 1.0 - 1e-6


def _doubt(logits: Tensor, class_dim: int = -1) -> tuple[Tensor, Tensor]:
    """Return the log-odds against the predicted class, and the class, of every row."""
    top = logits.detach().argmax(class_dim)
    return _softmax.target_log_odds(logits, top, class_dim=class_dim), top


class CorrectnessAwareLoss(Loss):
    r"""Squared gap between the confidence in the prediction and whether it is right.

    .. math:: \ell_n = w_n \Bigl(\max_k p_{nk} - c_n\Bigr)^2, \qquad
              c_n = \bigl[\arg\max_k z_{nk} = y_n\bigr], \qquad
              w_n = \begin{cases} 1/(2a) & c_n = 1 \\ 1/(2(1 - a)) & c_n = 0 \end{cases}

    with a the share of right predictions in the batch: right and wrong ones count as one half each.
    For post-hoc calibration, of a temperature or a network that rescales the logits z of a finished
    model: give those as ``uncalibrated_logits``, so that the calibrator is judged by what the model
    got right. Not for training a classifier.

    Args:
        balance: weigh right and wrong predictions alike; ``False``: w = 1. Default ``True``.
        reduction: see :class:`lossary.Loss`. The paper's is ``"mean"``: sum(w l)/sum(w).

    Shape:
        logits (N, K), of the calibrator; target (N,) class indices; uncalibrated_logits (N, K),
        where other logits decide what is right. Values (N,). Half precision is computed in float32.

    Properties:
        The loss is batch-coupled: the weights are of the whole batch, and w_n adds up to N. Both c
        and w carry no gradient. Without them 0 <= l <= 1, with the gradient 2 (p_t - c) p_t
        (e_t - p), t the predicted class. Scaling the logits by 1/T, dl/dT > 0 for every right
        sample and < 0 for every wrong one, unlike cross-entropy, which raises the confidence of
        narrow mistakes. Which wrong class the label is changes nothing. Not a proper scoring rule.

    Limits:
        All predictions right, or all wrong: w = 1. Without ``balance`` and with two classes, the
        Brier score of the confidence.

    Note:
        Where all predictions are right, or all wrong, the published code divides 0 by 0. 1 - c is
        computed from log-odds, so that the last steps towards confidence 1 have a gradient.

    Raises:
        ValueError: ``balance`` neither ``True`` nor ``False``; logits not (N, K) with K >= 2, a
            target of another shape or outside [0, K), uncalibrated_logits of another shape.
        TypeError: logits that are not floating-point tensors, a target that is not of integers.

    Reference:
        Liu, Wang, Zou, Dong, Zheng, "Optimizing Calibration by Gaining Aware of Prediction
        Correctness", 2024. Agrees with the authors' code but where that gives nan.

    Example:
        >>> import torch
        >>> from lossary import CorrectnessAwareLoss
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> target = torch.tensor([0, 1, 1])
        >>> CorrectnessAwareLoss()(logits, target)
        tensor(0.2713)
        >>> CorrectnessAwareLoss()(logits / 2, target, uncalibrated_logits=logits)
        tensor(0.2201)
    """

    separable = False

    def __init__(self, balance: bool = True, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        check_choice("balance", balance, (True, False))
        self.balance = balance

    def per_sample(
        self, logits: Tensor, target: Tensor, uncalibrated_logits: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the weighted squared gap of every sample, and its weight."""
        check_class_rows("logits", logits, target)
        against, predicted = _doubt(logits)
        if uncalibrated_logits is not None:
            check_floating("uncalibrated_logits", uncalibrated_logits)
            check_like("uncalibrated_logits", uncalibrated_logits, "logits", logits)
            predicted = uncalibrated_logits.detach().argmax(1)
        right = predicted == target
        # 1 - c for the right ones, c for the wrong ones, either to full relative accuracy.
        values = torch.sigmoid(torch.where(right, against, -against)).square()
        if not self.balance:
            return values
        count = right.sum().to(values.dtype)
        wrong = len(target) - count
        ours = torch.where(right, count, wrong).clamp(min=1.0)
        weight = torch.where((count > 0) & (wrong > 0), len(target) / (2.0 * ours), 1.0)
        return weight * values, weight

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        jumps = "jumps where another class is predicted"
        return Properties(
            convex=False,
            lower=0.0,
            upper=1.0,
            counterexamples={
                "convex": (((2.0, 0.0),), ((6.0, 0.0),), torch.tensor([1])),
            },
            unknown={"smoothness": jumps, "lipschitz": jumps},
            limits=(("balance = False, K = 2", "the Brier score of the confidence"),),
            source="Liu, Wang, Zou, Dong, Zheng 2024",
        )


def _check_mixed(logits: Tensor, mixed_logits: Tensor, mixed_target: Tensor) -> None:
    """Raise an error unless these are logits and targets of mixed samples, the classes last."""
    for name, x in (("mixed_logits", mixed_logits), ("mixed_target", mixed_target)):
        check_floating(name, x)
    check_like("mixed_target", mixed_target, "mixed_logits", mixed_logits)
    check_device("mixed_logits", mixed_logits, logits)
    good = (mixed_target >= 0) & (mixed_target <= 1)
    if _softmax.readable(good) and not bool(good.all()):
        raise ValueError(
            "mixed_target: expected class probabilities in [0, 1], "
            f"got {float(mixed_target.detach()[~good][0]):g}"
        )


class MixupRankingLoss(Loss):
    r"""Mixup ranking (MRL): a raw sample must be more confident than its mixup, by a margin.

    .. math:: \ell_n = \bigl[\max_k q'_{nk} < 1\bigr]
              \max\bigl(0,\ f(z'_n) - f(z_n) + m\bigr), \qquad
              f(z) = \max_k z_k \ \text{or}\ \max_k \operatorname{softmax}(z)_k

    with the mixup's logits z' and soft target q'. Add it to cross-entropy of the raw samples, the
    published weight is 0.1: mixed images hold less of any one class, so the network learns to be
    less sure of them, and by that of everything doubtful.

    Args:
        margin: m >= 0, finite. Default 2, of the released code for CIFAR; 1 for Tiny-ImageNet.
        confidence: ``"logit"``, the largest logit, of the released code and the default; or
            ``"prob"``, the largest probability, of the paper's text.
        reduction: see :class:`lossary.Loss`. The paper's is ``"mean"``, over all samples, those
            that do not count included.

    Shape:
        logits (N, K), mixed_logits (N, K), mixed_target (N, K) class probabilities: row n of the
        mixed ones is the mixup that sample n is compared with. Values (N,). Half precision is
        computed in float32.

    Properties:
        l >= 0; 0 if and only if the raw confidence leads by m, or the mixed target is one class
        (>= 1 - 1e-6: both partners had it). ``"logit"``: unbounded, gradient norm at most 1 in
        either input, unchanged by a number added to all logits of both rows. ``"prob"``: at most
        1 + m - 1/K, gradient norm at most sqrt(2)/4, unchanged by separate shifts. Not convex in
        the logits of the raw sample. Separable: batches of any size.

    Limits:
        ``"prob"`` with m >= 1: the hinge is active for every sample, and the loss is linear in the
        two probabilities; the published m = 2 makes sense for logits only.

    Note:
        The released code multiplies a mask (N,) by hinges (N, 1), which broadcasts to (N, N): its
        batch value is mean(mask) * mean(hinge). Here every sample meets its own mask.

    Raises:
        ValueError: ``margin`` negative or not finite; unknown ``confidence``; inputs of different
            shapes, not (N, K) with K >= 2; mixed_target outside [0, 1].
        TypeError: ``margin`` not a number, inputs that are not floating-point tensors.

    Reference:
        Noh, Park, Lee, Ham, "RankMixup: Ranking-Based Mixup Training for Network Calibration",
        2023. Agrees with the authors' code run on one sample at a time.

    Example:
        >>> import torch
        >>> from lossary import MixupRankingLoss
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> mixed_logits = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
        >>> mixed_target = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
        >>> MixupRankingLoss()(logits, mixed_logits, mixed_target)
        tensor(2.)
    """

    def __init__(
        self, margin: float = 2.0, confidence: str = "logit", **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        self.margin = check_number("margin", margin, 0.0, math.inf, high_open=True)
        check_choice("confidence", confidence, ("logit", "prob"))
        self.confidence = confidence

    def per_sample(self, logits: Tensor, mixed_logits: Tensor, mixed_target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        check_rows("logits", logits)
        _check_mixed(logits, mixed_logits, mixed_target)
        check_like("mixed_logits", mixed_logits, "logits", logits)
        if self.confidence == "logit":
            lead = logits.amax(1) - mixed_logits.amax(1)
        else:  # of 1 - p, which of two high confidences keeps the difference
            lead = torch.sigmoid(_doubt(mixed_logits)[0]) - torch.sigmoid(_doubt(logits)[0])
        counts = mixed_target.amax(1) < _ONE
        return torch.where(counts, torch.relu(self.margin - lead), 0.0)

    def properties(self) -> Properties:
        """Return what this instance guarantees of the raw samples' logits."""
        mixed, target = ((5.0, 0.0),), ((0.5, 0.5),)
        unknown: dict[str, str] = {}
        counterexamples: dict[str, tuple[Any, ...]] = {
            "convex": (((2.0, 0.0),), ((0.0, 2.0),), mixed, target)
        }
        by_logit = self.confidence == "logit"
        if by_logit:
            counterexamples["upper"] = (((-1.0, -1.0),), ((0.0, 0.0),), target)
        else:
            unknown["upper"] = "1 + margin - 1/K, of K classes"
        least = by_logit or self.margin <= 0.5
        if not least:
            unknown["lower"] = "max(0, margin - 1 + 1/K), of K classes"
        return Properties(
            convex=False,
            lower=0.0 if least else None,
            upper=math.inf if by_logit else None,
            lipschitz=1.0 if by_logit else math.sqrt(2.0) / 4.0,
            smoothness=0,
            counterexamples=counterexamples,
            unknown=unknown,
            source="Noh, Park, Lee, Ham 2023",
        )


class MixupNDCGLoss(Loss):
    r"""Mixup NDCG (M-NDCG): confidences must rank several mixups as their mixing coefficients do.

    .. math:: \ell = 1 - \frac{\min(\text{DCG}, \text{IDCG})}{\max(\text{DCG}, \text{IDCG})}, \qquad
              \text{DCG} = \sum_{r=1}^{Q+1} \frac{c_{(r)}}{\log_2(r + 1)}, \qquad
              \text{IDCG} = \sum_{r=1}^{Q+1} \frac{\lambda_{(r)}}{\log_2(r + 1)}

    c are the largest probabilities of the raw sample and its Q mixups, lambda the largest entries
    of their targets, 1 for the raw sample; both in the order of falling lambda, the raw sample
    first. Add it to cross-entropy, the published weight is 0.1 with Q = 3.

    Args:
        reduction: see :class:`lossary.Loss`.

    Shape:
        logits (N, K), mixed_logits (Q, N, K), mixed_target (Q, N, K) class probabilities, Q >= 1.
        Values (N,). Half precision is computed in float32.

    Properties:
        0 <= l < 1, gradient norm in ``logits`` at most sqrt(2)/4, not convex, not differentiable
        where DCG = IDCG. Unchanged by the order of the mixups, but for those of equal lambda, and
        by a number added to all logits of a row. 0 where every confidence is its coefficient. It
        knows the confidences through DCG alone, so it is also 0 for others, in a wrong order too.
        No gradient reaches the targets. Separable: batches of any size.

    Limits:
        All confidences and coefficients 1 (mixups of one class): 0. All confidences 1/K with all
        coefficients 1: 1 - 1/K.

    Note:
        Equal lambda keep the order in which they came, the raw sample first: their confidences
        meet different discounts.

    Raises:
        ValueError: logits not (N, K) with K >= 2, the others not (Q, N, K) with Q >= 1;
            mixed_target outside [0, 1].
        TypeError: inputs that are not floating-point tensors.

    Reference:
        Noh, Park, Lee, Ham, "RankMixup: Ranking-Based Mixup Training for Network Calibration",
        2023.

    Example:
        >>> import torch
        >>> from lossary import MixupNDCGLoss
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> mixed_logits = torch.tensor([[[0.5, 0.0]], [[1.0, 0.0]]])
        >>> mixed_target = torch.tensor([[[0.6, 0.4]], [[0.8, 0.2]]])
        >>> MixupNDCGLoss()(logits, mixed_logits, mixed_target)
        tensor(0.0839)
    """

    def per_sample(self, logits: Tensor, mixed_logits: Tensor, mixed_target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        check_rows("logits", logits)
        _check_mixed(logits, mixed_logits, mixed_target)
        shape = tuple(mixed_logits.shape)
        if len(shape) != 3 or shape[0] == 0 or shape[1:] != logits.shape:
            n, k = logits.shape
            raise ValueError(f"mixed_logits: expected shape (Q, {n}, {k}), Q >= 1, got {shape}")
        coefficients = mixed_target.detach().amax(-1)
        order = coefficients.argsort(dim=0, descending=True, stable=True)
        every = torch.cat((logits.unsqueeze(0), mixed_logits))
        confidence = torch.sigmoid(-_doubt(every)[0])
        ranked = torch.cat((confidence[:1], confidence[1:].gather(0, order)))
        ideal = torch.cat((torch.ones_like(ranked[:1]), coefficients.gather(0, order)))
        rank = torch.arange(1, len(every) + 1, dtype=ranked.dtype, device=ranked.device)
        gain = torch.log2(rank + 1.0).reciprocal().unsqueeze(1)
        dcg, idcg = (gain * ranked).sum(0), (gain * ideal).sum(0)
        return (gain * (ranked - ideal)).sum(0).abs() / torch.maximum(dcg, idcg)

    def _without_absent(self, inputs: tuple[Tensor, ...], weight: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs, cleaned where the weight is 0: the samples come second to last."""
        if weight.shape not in (inputs[0].shape[:1], (1,)):
            return inputs  # the check on the values' shape will say so
        absent = (weight == 0).unsqueeze(1)
        return tuple(x.masked_fill(absent, 0.0) for x in inputs)

    def properties(self) -> Properties:
        """Return what this instance guarantees of the raw samples' logits."""
        one = (((0.0, 0.0),),), (((1.0, 0.0),),)
        return Properties(
            convex=False,
            lower=0.0,
            lipschitz=math.sqrt(2.0) / 4.0,
            smoothness=0,
            counterexamples={"convex": (((2.0, 0.0),), ((0.0, 2.0),), *one)},
            unknown={"upper": "1 - 1/K, of K classes"},
            source="Noh, Park, Lee, Ham 2023",
        )


class _CalibrationMetric(nn.Module):
    """What the metrics of confidence and correctness share."""

    def __init__(self, probabilities: bool, ignore_index: int, class_dim: int) -> None:
        super().__init__()
        check_choice("probabilities", probabilities, (True, False))
        self.probabilities = probabilities
        self.ignore_index = check_int("ignore_index", ignore_index)
        self.class_dim = check_int("class_dim", class_dim)

    def _scored(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return confidence, correctness less confidence, and which entries are there."""
        check_floating("logits", logits)
        check_tensor("target", target)
        check_device("target", target, logits)
        z = _upcast(logits)
        binary = target.shape == z.shape
        axis = None if binary else self._class_axis(z)
        rows = z.shape if axis is None else z.shape[:axis] + z.shape[axis + 1 :]
        num_classes = 2 if axis is None else z.shape[axis]
        check_class_indices(target, rows, num_classes, self.ignore_index)
        there = target != self.ignore_index
        z = z.masked_fill(~(there if axis is None else there.unsqueeze(axis)), 0.0)
        if self.probabilities:
            self._check_probabilities(z, there, axis)
        if axis is None:
            predicted = (z >= (0.5 if self.probabilities else 0.0)).long()
            against = torch.where(predicted == 1, -z, z)
        elif self.probabilities:
            predicted = z.detach().argmax(axis)
        else:
            against, predicted = _doubt(z, axis)
        right = predicted == target
        if not self.probabilities:  # 1 - c to full relative accuracy
            confidence = torch.sigmoid(-against)
            return confidence, torch.where(right, torch.sigmoid(against), -confidence), there
        if axis is None:
            confidence = torch.where(predicted == 1, z, 1.0 - z)
        else:
            confidence = z.gather(axis, predicted.unsqueeze(axis)).squeeze(axis)
        return confidence, right.to(z.dtype) - confidence, there

    def _class_axis(self, z: Tensor) -> int:
        n = z.dim()
        axis = 0 if n == 1 and self.class_dim in (1, 0, -1) else self.class_dim
        if not -n <= axis < n:
            raise ValueError(
                f"logits: expected an axis {axis} (class_dim), got shape {tuple(z.shape)}"
            )
        if z.shape[axis] < 2:
            raise ValueError(f"logits: expected at least 2 classes, got {z.shape[axis]}")
        return axis % n

    def _check_probabilities(self, p: Tensor, there: Tensor, axis: int | None) -> None:
        if not _softmax.readable(p) or p.numel() == 0:
            return
        good = (p >= 0) & (p <= 1)
        if axis is not None:  # probabilities that were once in half precision sum to 1 only nearly
            good = good.all(axis) & ((p.detach().sum(axis) - 1).abs() <= 2e-2)
        if not bool((good | ~there).all()):
            rows = p.detach() if axis is None else p.detach().movedim(axis, -1)
            row = rows[~good & there][0]
            raise ValueError(
                "logits: expected probabilities, in [0, 1] and of sum 1 over the classes, with "
                f"probabilities=True, got a row with minimum {float(row.min()):g}, maximum "
                f"{float(row.max()):g} and sum {float(row.sum()):g}"
            )


class ExpectedCalibrationError(_CalibrationMetric):
    r"""Expected calibration error (ECE): the mean gap between confidence and accuracy, in bins.

    .. math:: \operatorname{ECE} = \frac{1}{N} \sum_{b=1}^M \Bigl| \sum_{n \in B_b}
              (r_n - c_n) \Bigr|, \qquad
              B_b = \Bigl\{ n : \frac{b-1}{M} < c_n \le \frac{b}{M} \Bigr\}

    with the confidence c in the prediction and r = 1 where it is right, 0 where not, over M bins of
    equal width. A metric with the call of a loss: 0.05 says that confidences are 5 points off on
    average. Report it on held-out data.

    Args:
        n_bins: M >= 1. Default 15.
        probabilities: ``logits`` holds probabilities. Default ``False``.
        ignore_index: entries with this target are not there. Default -100.
        class_dim: the class axis. Default 1.

    Shape:
        logits (N, K, ...), target (N, ...) class indices; or both (N, ...): the logits (or
        probabilities) of class 1 of two. Returns a 0-dim tensor, of the entries of this process.

    Properties:
        In [0, 1]. At least the absolute value of accuracy less mean confidence, whatever the bins.
        The gradient is that of the confidences alone: 1/N times the sign of the bin's gap. It jumps
        where a confidence changes its bin, so it is no loss to train with. Biased upwards in small
        samples, the more, the more bins.

    Limits:
        One bin: the absolute value of the mean of :class:`BalanceScore`. Nothing there: 0.

    Note:
        The gaps are added up in float64.

    Raises:
        ValueError: ``n_bins`` < 1; a target of another shape, or outside [0, K) and not
            ``ignore_index``; fewer than 2 classes; with ``probabilities``, rows that are none (on
            CPU tensors, where looking costs nothing).
        TypeError: logits that are not floating point, a target that is not of integers.

    Reference:
        Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning
        into Quantiles", 2015; Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural
        Networks", 2017, eq. 3.

    Example:
        >>> import torch
        >>> from lossary import ExpectedCalibrationError
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> ExpectedCalibrationError()(logits, torch.tensor([0, 1, 1]))
        tensor(0.2992)
    """

    def __init__(
        self,
        n_bins: int = 15,
        probabilities: bool = False,
        ignore_index: int = -100,
        class_dim: int = 1,
    ) -> None:
        super().__init__(probabilities, ignore_index, class_dim)
        self.n_bins = check_int("n_bins", n_bins, 1)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the error of all entries."""
        confidence, gap, there = (x.flatten() for x in self._scored(logits, target))
        steps = torch.arange(1, self.n_bins + 1, dtype=confidence.dtype, device=confidence.device)
        bin_ = torch.bucketize(confidence.detach(), steps / self.n_bins)
        bin_ = bin_.clamp(max=self.n_bins - 1)
        gaps = torch.where(there, gap, 0.0).double()
        total = gaps.new_zeros(self.n_bins).index_add(0, bin_, gaps)
        return (total.abs().sum() / there.sum().clamp(min=1)).to(confidence.dtype)


class BalanceScore(_CalibrationMetric):
    r"""Balance score: correctness less confidence, the sign of what is wrong with confidences.

    .. math:: g_n = r_n - c_n, \qquad
              \frac{1}{N} \sum_n g_n = \text{accuracy} - \text{mean confidence}

    with the confidence c in the prediction and r = 1 where it is right, 0 where not. For two
    classes with the probability p of class 1: 1 - p and p where the prediction (p >= 1/2)
    is right, -p and p - 1 where it is wrong. Positive means: less sure than right
    (under-confident). As a penalty in training take the square of the mean.

    Args:
        reduction: ``"none"``, the score of every entry and the default; or ``"mean"``, over those
            that are there.
        probabilities: ``logits`` holds probabilities. Default ``False``.
        ignore_index: entries with this target are not there: they have score 0. Default -100.
        class_dim: the class axis. Default 1.

    Shape:
        logits (N, K, ...), target (N, ...) class indices; or both (N, ...): the logits (or
        probabilities) of class 1 of two. Returns scores of the target's shape, or a 0-dim tensor.

    Properties:
        -1 <= g <= 1/2 with two classes, g <= 1 - 1/K with K. If class 1 has probability q, the
        expected score is q - p for p >= 1/2, p - q below: 0 if the probabilities are calibrated.
        The mean's absolute value is at most :class:`ExpectedCalibrationError`, for any bins.
        dg/dc = -1; correctness carries no gradient. Not a proper scoring rule, though said to
        be one in secondary sources: over- and under-confidence cancel.

    Limits:
        Confidence 1: 0 where right, -1 where wrong.

    Note:
        The formula is RECALLED from a secondary description of the paper; its properties have been
        derived and are tested.

    Raises:
        ValueError: unknown ``reduction``; a target of another shape, or outside [0, K) and not
            ``ignore_index``; fewer than 2 classes; with ``probabilities``, rows that are none (on
            CPU tensors, where looking costs nothing).
        TypeError: logits that are not floating point, a target that is not of integers.

    Reference:
        Choi, Kim, Lee, "Rethinking Evaluation Metric for Probability Estimation Models Using
        Esports Data", 2023.

    Example:
        >>> import torch
        >>> from lossary import BalanceScore
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> target = torch.tensor([0, 1, 1])
        >>> BalanceScore()(logits, target)
        tensor([ 0.1192, -0.7311,  0.0474])
        >>> BalanceScore("mean")(logits, target)
        tensor(-0.1881)
        >>> BalanceScore("mean", probabilities=True)(torch.tensor([0.8, 0.4]), target[:2])
        tensor(-0.7000)
    """

    def __init__(
        self,
        reduction: str = "none",
        probabilities: bool = False,
        ignore_index: int = -100,
        class_dim: int = 1,
    ) -> None:
        super().__init__(probabilities, ignore_index, class_dim)
        check_choice("reduction", reduction, ("none", "mean"))
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scores, or their mean."""
        _, gap, there = self._scored(logits, target)
        gap = torch.where(there, gap, 0.0)
        return gap if self.reduction == "none" else gap.sum() / there.sum().clamp(min=1)
