r"""Losses for classes of very different size, and for streams in which they come and go.

.. math:: \ell = \operatorname{CE}(z + \tau \log \pi, y), \qquad
          \ell_n = (1 - \alpha + \alpha\, \text{ign}_n^\gamma) \operatorname{CE}_n, \qquad
          \ell_n = w_{y_n} \operatorname{CE}_n + \lambda\, \text{sep}_n

Correct the logits for the prior (:class:`LogitAdjustmentLoss`), look at the samples whose gradient
the batch drowns (:class:`GradientSimilarityFocalLoss`), or keep the classes' features apart
(:class:`SRATLoss`). Beside them what a detector needs to train without sampling.
"""

import math
from collections.abc import Sequence
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary import _softmax
from lossary._base import (
    ClassificationLoss,
    ClassOptions,
    Loss,
    LossOptions,
    _upcast,
    check_class_indices,
    check_class_rows,
    check_class_weight,
    checked_counts,
)
from lossary._checks import (
    check_device,
    check_embeddings,
    check_floating,
    check_like,
    check_number,
    check_positive,
)
from lossary._embedding_base import TiledOptions
from lossary._numerics import normalized, softplus
from lossary._properties import Properties
from lossary.supervised_contrastive import SupConLoss

#: The smallest norm that a cosine is divided by, as in torch and in the published code.
_EPS = 1e-8


def _check_features(features: Tensor, logits: Tensor, name: str = "features") -> None:
    check_floating(name, features)
    n = len(logits)
    if features.dim() != 2 or len(features) != n or features.shape[1] == 0:
        raise ValueError(f"{name}: expected shape ({n}, D), D >= 1, got {tuple(features.shape)}")
    check_device(name, features, logits)


def gradient_dissimilarity(
    logits: Tensor, target: Tensor, features: Tensor, logit_scale: Tensor | None = None
) -> Tensor:
    r"""Return how far every sample's gradient in the head points away from its class's.

    .. math:: \text{ign}_n = 1 - \cos(g_n, G_{y_n}), \qquad g_n = R_{n y_n} h_n, \qquad
              G_c = \frac{1}{N} \sum_j R_{jc} h_j, \qquad R = (p - e_y)\, s

    g is what cross-entropy of the sample alone would change the weight vector of its class by, G
    what that of the batch changes it by: no backward pass is needed for either. Large for samples
    that the rest of the batch works against. :class:`GradientSimilarityFocalLoss` weighs by it.

    Args:
        logits: (N, K), K >= 2.
        target: (N,), class indices.
        features: h (N, D), what goes into the last layer.
        logit_scale: s (N, K), where the logits are s (W h + b), element by element. Default
            ``None``: 1.

    Returns:
        (N,), in [0, 2], without a gradient, float32 at least. The same for features of any common
        scale. 0 for one sample, or where all are the same. Where the sample is fitted to rounding
        (p_y = 1) its gradient is 0 and has no direction: 1, as the cosine of norms below 1e-8 is 0.
        Classes masked by logits of -inf change nothing.

    Raises:
        ValueError: logits not (N, K), a target of another shape or outside [0, K), features not
            (N, D), logit_scale of another shape than the logits.
        TypeError: inputs that are not floating-point tensors, a target that is not of integers.

    Reference:
        Moon, Park, Kim, Park, "Online Class Incremental Learning on Stochastic Blurry Task Boundary
        via Mask and Visual Prompt Tuning", 2023. Agrees with the authors' code.

    Example:
        >>> import torch
        >>> from lossary import gradient_dissimilarity
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> gradient_dissimilarity(logits, torch.tensor([0, 0, 1]), features)
        tensor([0.1407, 0.7541, 0.4885])
    """
    check_class_rows("logits", logits, target)
    _check_features(features, logits)
    with torch.no_grad():
        p = torch.softmax(_upcast(logits), 1)
        h = _upcast(features).to(p.dtype)
        y = target.long().unsqueeze(1)
        rest = p - (y == torch.arange(p.shape[1], device=p.device)).to(p.dtype)
        if logit_scale is not None:
            check_floating("logit_scale", logit_scale)
            check_like("logit_scale", logit_scale, "logits", logits)
            rest = rest * _upcast(logit_scale)
        own = rest.gather(1, y) * h
        whole = (rest.t() @ h / max(len(h), 1))[y.squeeze(1)]
        cosine = F.cosine_similarity(own, whole, dim=1, eps=_EPS)
        # A power of a rounding error below 0 would be nan.
        return (1.0 - cosine).clamp(0.0, 2.0)


class GradientSimilarityFocalLoss(Loss):
    r"""Cross-entropy, weighted up where a sample's gradient disagrees with that of the batch.

    .. math:: \ell_n = \bigl((1 - \alpha) + \alpha\, \text{ign}_n^\gamma\bigr) \operatorname{CE}_n

    with ign from :func:`gradient_dissimilarity`. For streams of data in which few classes fill most
    of a batch: what they drown is weighted up, without knowing how many samples a class has.

    Args:
        alpha: in [0, 1]: the share that is weighted. Default 0.5.
        gamma: >= 0, finite. Default 2.
        reduction: see :class:`lossary.Loss`.

    Shape:
        logits (N, K), target (N,) class indices, features (N, D), logit_scale (N, K) or ``None``:
        see :func:`gradient_dissimilarity`. Values (N,). Half precision is computed in float32.

    Properties:
        The loss is batch-coupled, within the batch of this process: G is of all its samples,
        whatever their weight. l >= 0, unbounded, at most (1 - alpha + alpha 2^gamma) CE. Gradient
        ((1 - alpha) + alpha ign^gamma)(p - e_y): the factor carries none, and neither do features
        and scale.

    Limits:
        alpha = 0 or gamma = 0: cross-entropy. One sample, or copies of one: (1 - alpha) CE.

    Note:
        The released code takes the mean of cross-entropy before it multiplies, and so optimises
        mean(CE) * mean(factor), in which no sample has a weight of its own. Here every sample has:
        RECALLED as the paper's form.

    Raises:
        ValueError: ``alpha`` outside [0, 1], ``gamma`` negative or infinite; inputs of shapes that
            do not fit, a target outside [0, K).
        TypeError: hyper-parameters that are not numbers, inputs that are not floating point.

    Reference:
        Moon, Park, Kim, Park, "Online Class Incremental Learning on Stochastic Blurry Task Boundary
        via Mask and Visual Prompt Tuning", 2023.

    Example:
        >>> import torch
        >>> from lossary import GradientSimilarityFocalLoss
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> GradientSimilarityFocalLoss()(logits, torch.tensor([0, 0, 1]), features)
        tensor(0.2466)
    """

    separable = False

    def __init__(
        self, alpha: float = 0.5, gamma: float = 2.0, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        self.alpha = check_number("alpha", alpha, 0.0, 1.0)
        self.gamma = check_number("gamma", gamma, 0.0, math.inf, high_open=True)

    def per_sample(
        self,
        logits: Tensor,
        target: Tensor,
        features: Tensor,
        logit_scale: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every sample, unreduced."""
        ign = gradient_dissimilarity(logits, target, features, logit_scale)
        factor = (1.0 - self.alpha) + self.alpha * ign**self.gamma
        return factor * softplus(_softmax.target_log_odds(logits, target.long()))

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        detached = "the factor changes with the logits, and carries no gradient"
        far = ((1.0, 0.0), (1.0, 0.0)), torch.tensor([1, 1]), ((1.0, 0.0), (0.0, 1.0))
        return Properties(
            lower=0.0,
            upper=math.inf,
            limits=(("alpha = 0 or gamma = 0", "cross-entropy"),),
            counterexamples={"upper": far},
            unknown=dict.fromkeys(("convex", "lipschitz", "smoothness"), detached),
            source="Moon, Park, Kim, Park 2023",
        )


class AdaptiveFeatureScaling(nn.Module):
    r"""Scale features by how well they are aligned with the weight vector of their class.

    .. math:: f_n \leftarrow \frac{f_n}{\operatorname{sg}[\text{cps}_n]}, \qquad
              \text{cps}_n = 1 - \cos(w_{y_n}, f_n) + m

    In training, between the features and the classifier head: well-aligned features grow, others
    shrink, so that the head learns less from what does not fit it yet. A module, not a loss.

    Args:
        margin: m > 0, finite. Default 0.5. At 0 a perfectly aligned feature is divided by 0.

    Shape:
        features (N, D), target (N,) class indices, weight (K, D) of the head. Returns (N, D) in the
        features' dtype. In evaluation mode the features as they are: the target is not known.

    Properties:
        cps in [m, 2 + m], without a gradient: the gradient of the features is 1/cps times that of
        the result, that of the weight is 0. Directions do not change.

    Limits:
        An orthogonal feature with m -> 0 does not change.

    Raises:
        ValueError: ``margin`` not positive; features not (N, D), a weight of another width, a
            target of another shape or outside [0, K).
        TypeError: tensors that are not floating point, a target that is not of integers.

    Reference:
        Moon, Park, Kim, Park, "Online Class Incremental Learning on Stochastic Blurry Task Boundary
        via Mask and Visual Prompt Tuning", 2023. Agrees with the authors' code.

    Example:
        >>> import torch
        >>> from lossary import AdaptiveFeatureScaling
        >>> features = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> weight = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
        >>> AdaptiveFeatureScaling()(features, torch.tensor([0, 1]), weight)
        tensor([[4.0000, 0.0000],
                [0.0000, 1.3333]])
    """

    def __init__(self, margin: float = 0.5) -> None:
        super().__init__()
        self.margin = check_positive("margin", margin)

    def forward(self, features: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Return the scaled features."""
        check_embeddings(features=features)
        check_floating("weight", weight)
        if weight.dim() != 2 or weight.shape[1] != features.shape[1]:
            raise ValueError(
                f"weight: expected shape (K, {features.shape[1]}), got {tuple(weight.shape)}"
            )
        check_device("weight", weight, features)
        if not self.training:
            return features
        check_class_indices(target, features.shape[:1], len(weight))
        check_device("target", target, features)
        with torch.no_grad():
            f = normalized(_upcast(features))
            w = normalized(_upcast(weight).to(f.dtype))[target.long()]
            cps = 1.0 - (w * f).sum(1, keepdim=True).clamp(-1.0, 1.0) + self.margin
        return (features / cps).to(features.dtype)


class GuidedLossScaling(nn.Module):
    r"""Scale the classification loss of a detector to the size of its localisation loss.

    .. math:: L = \operatorname{sg}\Bigl[\frac{L_\text{reg}}{L_\text{cls}}\Bigr] L_\text{cls}

    Without sampling of anchors or a focal factor the classification loss, plain sigmoid
    cross-entropy summed over all anchors and classes, is dominated by background; guided by the
    localisation loss, which is of foreground alone, it does not need either. Divide both losses by
    the number of foreground anchors plus images, and start the head at :func:`prior_bias_init`.

    Args:
        None when it is made.

    Shape:
        cls_loss and reg_loss, 0-dim tensors >= 0: ``forward(cls_loss, reg_loss)``. Returns a 0-dim
        tensor, to be added to reg_loss.

    Properties:
        The value is reg_loss, the gradient (reg/cls) times that of cls_loss; none reaches reg_loss.
        Value and gradient do not change where cls_loss is multiplied by a positive number. Inputs
        are not changed, as they are by the published code.

    Limits:
        reg_loss = 0, a batch without foreground: value and gradient 0, so that the background of
        such a batch teaches nothing. cls_loss at most 1e-19 (1e-154 in float64): cls_loss as it is.

    Raises:
        ValueError: inputs that are not 0-dim, on different devices, or negative (on CPU tensors,
            where looking costs nothing).
        TypeError: inputs that are not floating-point tensors.

    Reference:
        Chen, Liu, Xu, Wu, Cheng, Chen, "Is Heuristic Sampling Necessary in Training Deep Object
        Detectors?", 2021. Agrees with the authors' code.

    Example:
        >>> import torch
        >>> from lossary import GuidedLossScaling
        >>> cls_loss = torch.tensor(40.0, requires_grad=True)
        >>> loss = GuidedLossScaling()(cls_loss, torch.tensor(2.0))
        >>> loss.backward()
        >>> loss.detach(), cls_loss.grad
        (tensor(2.), tensor(0.0500))
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, cls_loss: Tensor, reg_loss: Tensor) -> Tensor:
        """Return the scaled classification loss."""
        for name, x in (("cls_loss", cls_loss), ("reg_loss", reg_loss)):
            check_floating(name, x)
            if x.dim() != 0:
                raise ValueError(f"{name}: expected a 0-dim tensor, got shape {tuple(x.shape)}")
            if _softmax.readable(x) and not bool(x >= 0):
                raise ValueError(f"{name}: expected a number >= 0, got {float(x.detach()):g}")
        check_device("reg_loss", reg_loss, cls_loss)
        cls_loss, reg = _upcast(cls_loss), _upcast(reg_loss).detach()
        large = cls_loss.detach() > torch.finfo(cls_loss.dtype).tiny ** 0.5
        ratio = reg / torch.where(large, cls_loss.detach(), 1.0)
        return cls_loss * torch.where(large, ratio, 1.0).to(cls_loss.dtype)


def prior_bias_init(num_foreground: float, num_total: float, num_classes: int) -> float:
    r"""Return the bias of a detection head that starts at the share of foreground.

    .. math:: b = -\log \frac{1 - \rho}{\rho}, \qquad
              \rho = \frac{N_\text{fg}}{N_\text{all}\, C}

    A head whose outputs are all b has the least sigmoid cross-entropy that a constant can have on
    such data: no class has to be unlearnt in the first steps.

    Args:
        num_foreground: anchors that are of an object, > 0, in the data set or on average.
        num_total: all anchors, at least as many.
        num_classes: C >= 1.

    Returns:
        b, a float: sigmoid(b) is the share of foreground of one class.

    Raises:
        ValueError: ``num_foreground`` not in (0, num_total], ``num_classes`` below 1, or all
            anchors foreground of a single class.
        TypeError: arguments that are not numbers.

    Reference:
        Chen, Liu, Xu, Wu, Cheng, Chen, "Is Heuristic Sampling Necessary in Training Deep Object
        Detectors?", 2021.

    Example:
        >>> from lossary import prior_bias_init
        >>> round(prior_bias_init(100, 10000, 80), 4)
        -8.9871
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        kind = type(num_classes).__name__
        raise TypeError(f"num_classes: expected an int, got {kind} ({num_classes!r})")
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    prior = adaptive_threshold(num_foreground, num_total) / num_classes
    if prior == 1.0:
        raise ValueError(
            f"num_foreground: expected fewer than num_total={num_total} with one class, "
            f"got {num_foreground}"
        )
    return math.log(prior) - math.log1p(-prior)


def adaptive_threshold(num_foreground: float, num_total: float) -> float:
    r"""Return the score from which on a detector without sampling reports a detection.

    .. math:: t = \frac{N_\text{fg}}{N_\text{all}}

    Scores of a head that was trained on all anchors are small, as foreground is rare: the usual
    threshold of 0.05 would throw away most detections.

    Args:
        num_foreground: anchors that are of an object, > 0, in the data set or on average.
        num_total: all anchors, at least as many.

    Returns:
        t, a float in (0, 1]: C times the share that :func:`prior_bias_init` starts at.

    Raises:
        ValueError: ``num_foreground`` not in (0, num_total], ``num_total`` not positive and finite.
        TypeError: arguments that are not numbers.

    Reference:
        Chen, Liu, Xu, Wu, Cheng, Chen, "Is Heuristic Sampling Necessary in Training Deep Object
        Detectors?", 2021.

    Example:
        >>> from lossary import adaptive_threshold
        >>> adaptive_threshold(100, 10000)
        0.01
    """
    total = check_positive("num_total", num_total)
    return check_number("num_foreground", num_foreground, 0.0, total, low_open=True) / total


class FeatureSeparationLoss(SupConLoss):
    r"""Supervised contrastive loss of one view: features of a class together, of others apart.

    .. math:: \text{sep}_i = -\frac{1}{|P(i)|} \sum_{j \in P(i)} \Bigl( s_{ij} -
              \log \sum_{k \ne i} e^{s_{ik}} \Bigr), \qquad
              s_{ij} = \frac{\langle f_i, f_j \rangle}{\tau\, \lVert f_i \rVert \lVert f_j \rVert}

    with P(i) the other samples of the class of i: :class:`SupConLoss`, where anchors that are alone
    in their class stay in the mean with 0. The separation term of :class:`SRATLoss`, there of the
    features of adversarial examples: rare classes lose their region to frequent ones unless
    something keeps it apart.

    Args:
        temperature: tau > 0. Default 0.1. The paper's is UNVERIFIED.
        gather: whether the rows of all processes are the candidates: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        tile_size: rows and columns of the tiles in which the similarities are made, and never held:
            see :class:`SupConLoss`. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        features (N, D), labels (N,) of any integers. Values (N,), one per anchor. Dense, a
        matrix of N x N similarities, or in tiles with ``tile_size``. Half precision is computed in
        float32.

    Properties:
        The loss is batch-coupled. sep_i >= log |P(i)|, and 0 for an anchor that is alone in its
        class: such anchors stay in the mean. Unchanged by the length of a row and by a rotation of
        all features. Convex in the similarities.

    Limits:
        All features equal, of one class: log(N - 1). N = 1: 0.

    Note:
        With several processes (``gather``) own anchors are held against the rows of all, and
        ``"mean"`` divides by what all have, times their number: averaged over the processes, the
        parameters' gradient is that of one process with the whole batch, also of unequal batches.
        All of them must call it, forward and backward.

    Raises:
        ValueError: ``temperature`` <= 0; features not (N, D), labels not (N,); ``tile_size`` < 1;
            a ``process_group`` without this process.
        TypeError: features that are not floating point, labels that are not integers.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        Wang, Xu, Liu, Li, Thuraisingham, Tang, "Imbalanced Adversarial Training with Reweighting",
        2021: that its separation term is this one is RECALLED. Khosla et al., "Supervised
        Contrastive Learning", 2020, eq. 2.

    Example:
        >>> import torch
        >>> from lossary import FeatureSeparationLoss
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
        >>> FeatureSeparationLoss(temperature=1.0)(features, torch.tensor([0, 0, 1]))
        tensor(0.3647)
    """

    def __init__(self, temperature: float = 0.1, **options: Unpack[TiledOptions]) -> None:
        super().__init__(temperature, no_positive="zero", **options)

    def per_sample(  # type: ignore[override]
        self, features: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of every anchor, unreduced, and that all of them count."""
        check_embeddings(features=features)
        return super().per_sample(features, labels)


class SRATLoss(Loss):
    r"""Separable reweighted adversarial training: weighted cross-entropy plus feature separation.

    .. math:: \ell_i = w_{y_i} \operatorname{CE}_i + \lambda\, \text{sep}_i

    of logits and features of adversarial examples, which the caller makes against the same weighted
    cross-entropy. For adversarial training where classes differ in size: reweighting alone fails
    there, as weak separation lets the heavy weights of one class push the others out.

    Args:
        class_weight: w (K,), >= 0, or ``None``, the default, for 1. It weighs cross-entropy alone
            and is no part of the mean's denominator.
        separation_weight: lambda >= 0. Default 1. The paper's is UNVERIFIED.
        temperature: tau > 0 of :class:`FeatureSeparationLoss`. Default 0.1.
        gather: whether the rows of all processes are separated: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`.

    Shape:
        adv_logits (N, K), target (N,) class indices, adv_features (N, D). Values (N,). Half
        precision is computed in float32.

    Properties:
        The loss is batch-coupled. l >= 0, unbounded. Gradient in the logits w_y (p - e_y). A
        sample alone in its class has no separation term.

    Limits:
        lambda = 0: weighted cross-entropy. All w = 0: lambda times :class:`FeatureSeparationLoss`.

    Note:
        The form of the separation term, and that cross-entropy is what is weighted, are RECALLED:
        no official code was found.

    Raises:
        ValueError: ``class_weight`` not (K,), negative or not finite; ``separation_weight``
            negative, ``temperature`` <= 0; inputs of shapes that do not fit, a target outside
            [0, K); a ``process_group`` without this process.
        TypeError: hyper-parameters that are not numbers, inputs that are not floating point.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Wang, Xu, Liu, Li, Thuraisingham, Tang, "Imbalanced Adversarial Training with Reweighting",
        2021.

    Example:
        >>> import torch
        >>> from lossary import SRATLoss
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
        >>> loss = SRATLoss(torch.tensor([0.5, 2.0]), temperature=1.0)
        >>> loss(logits, torch.tensor([0, 0, 1]), features)
        tensor(0.9001)
    """

    separable = False
    class_weight: Tensor | None

    def __init__(
        self,
        class_weight: Tensor | None = None,
        separation_weight: float = 1.0,
        temperature: float = 0.1,
        *,
        gather: bool | str = "auto",
        process_group: Any = None,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        if class_weight is not None:
            check_class_weight(class_weight)
        self.register_buffer("class_weight", class_weight)
        self.separation_weight = check_number(
            "separation_weight", separation_weight, 0.0, math.inf, high_open=True
        )
        self.separation = FeatureSeparationLoss(
            temperature, gather=gather, process_group=process_group, reduction="none"
        )
        self.temperature = self.separation.temperature
        self.gather = gather
        self.process_group = process_group

    def per_sample(self, adv_logits: Tensor, target: Tensor, adv_features: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        check_class_rows("adv_logits", adv_logits, target)
        _check_features(adv_features, adv_logits, "adv_features")
        y = target.long()
        values = softplus(_softmax.target_log_odds(adv_logits, y))
        if self.class_weight is not None:
            if len(self.class_weight) != adv_logits.shape[1]:
                raise ValueError(
                    f"class_weight: expected {adv_logits.shape[1]} weights, "
                    f"got {len(self.class_weight)}"
                )
            values = self.class_weight.to(values.dtype)[y] * values
        return values + self.separation_weight * self.separation.per_sample(adv_features, y)[0]

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        weighted = self.class_weight is not None
        unknown = {
            "convex": "convex in the logits, not in the features",
            "lipschitz": "without bound in the features, near a row of zeros",
            "smoothness": "smooth but for rows of zeros, where the cosine jumps",
            "lower": "0, or more where classes have several samples",
        }
        far = ((1.0, 0.0),), torch.tensor([1]), ((1.0, 0.0),)
        if weighted:
            unknown["upper"] = "depends on the weights"
        return Properties(
            upper=None if weighted else math.inf,
            limits=(("lambda = 0", "weighted cross-entropy"),),
            counterexamples={} if weighted else {"upper": far},
            unknown=unknown,
            source="Wang, Xu, Liu, Li, Thuraisingham, Tang 2021",
        )


class LogitAdjustmentLoss(ClassificationLoss):
    r"""Logit adjustment: cross-entropy of logits that the class prior is added to.

    .. math:: \ell(z, y) = -\log \frac{\pi_y^\tau e^{z_y}}{\sum_k \pi_k^\tau e^{z_k}}

    For long-tailed data, in place of cross-entropy: what the prior explains the logits need not,
    so at test time, without the adjustment, they are those of balanced classes. Consistent for the
    balanced error at tau = 1.

    Args:
        class_counts: the number of training samples of each class, > 0: a tensor (K,) or a
            sequence. A class without samples has no log prior: give it a small number.
        class_prior: pi itself, > 0, in place of counts; either is scaled to sum 1, which changes
            nothing.
        tau: finite. Default 1.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K is the
        number of counts. Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`), streamed without a softcap.

    Properties:
        l >= 0, unbounded, convex; gradient softmax(z + tau log pi) - e_y, of norm at most sqrt(2).
        Unchanged by a number added to all logits, and by scaling the counts. The conditional risk
        is least at z = log q - tau log pi: for an unbalanced prior and tau != 0 that is another
        order than that of q, as it is meant to be; so neither calibrated nor proper for q itself.

    Limits:
        tau = 0, or equal counts: cross-entropy.

    Note:
        The state is the buffer ``log_prior``. For class indices no copy of the logits is made: the
        prior enters as margins of the rivals, or as a bias of streamed logits; of sharded ones the
        own part is copied. The released code adds 1e-9 to the prior; here classes without samples
        are refused.

    Raises:
        ValueError: neither or both of ``class_counts`` and ``class_prior``, or not (K,), positive
            and finite; ``tau`` infinite or nan; logits of another number of classes.
        TypeError: counts that are no tensor or sequence of numbers; ``tau`` not a number; streamed
            logits with a softcap.

    Reference:
        Menon et al., "Long-Tail Learning via Logit Adjustment", 2021, eq. 10. Chen, Qin, Li, Chen,
        Su, "Rethinking the Bias of Foundation Model under Long-tailed Distribution", 2025.

    Example:
        >>> import torch
        >>> from lossary import LogitAdjustmentLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> LogitAdjustmentLoss([90, 9, 1])(logits, torch.tensor([0, 2]))
        tensor(2.6298)
    """

    log_prior: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        class_prior: Tensor | Sequence[float] | None = None,
        tau: float = 1.0,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(**options)
        if class_counts is None and class_prior is None:
            raise ValueError("class_counts: expected counts, or a class_prior, got neither")
        if class_counts is not None and class_prior is not None:
            raise ValueError("class_prior: expected None beside class_counts, got both")
        if class_counts is not None:
            counts = checked_counts("class_counts", class_counts)
        else:
            assert class_prior is not None
            counts = checked_counts("class_prior", class_prior)
        log_prior = torch.log_softmax(counts.double().log(), 0)
        self.register_buffer("log_prior", log_prior.to(counts.dtype))
        self.tau = check_positive("tau", tau, -math.inf)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        num_classes = logits.shape[self._class_axis(logits)]
        if len(self.log_prior) != num_classes:
            raise ValueError(
                f"logits: expected {len(self.log_prior)} classes, those of the prior, "
                f"got {num_classes}"
            )
        offset = self.tau * self.log_prior.to(_softmax._compute_dtype(logits))
        fuses = torch.compiler.is_compiling()
        if target is None or fuses or not isinstance(logits, Tensor):
            return softplus(self.log_odds(self.shifted(logits, offset), target))
        # All rows of this matrix of margins are one and the same: neither it nor a copy of the
        # logits is ever held.
        odds = self.log_odds(logits, target, margin=offset.expand(num_classes, num_classes))
        return softplus(odds - offset[target.clamp(min=0)])

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on the classes of its prior."""
        del num_classes
        slope = self.tau * self.log_prior.double()
        unmoved = bool((slope - slope.mean()).abs().max() < 1e-6)
        first = torch.zeros_like(slope)
        first[0] = 1.0
        counterexamples: dict[str, tuple[Any, ...]] = {
            "upper": (-first, 0),
            "symmetric": (0.0 * first, 3.0 * first),
        }
        if not unmoved:
            # Where q is half of the way to the prior, the minimiser has the opposite order.
            q = torch.softmax(slope / 2.0, 0)
            for claim in ("calibrated", "rank_consistent", "proper"):
                counterexamples[claim] = (q, -slope / 2.0)
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=math.sqrt(2.0),
            smoothness=math.inf,
            symmetric=False,
            shift_invariant=True,
            calibrated=unmoved,
            rank_consistent=unmoved,
            proper=unmoved,
            minimiser="f = log q - tau log pi",
            limits=(("tau = 0", "cross-entropy"),),
            counterexamples=counterexamples,
            source="Menon et al. 2021",
        )


class BackdoorAdjustment(nn.Module):
    r"""Mean of the logits of several models, each tuned from another foundation model.

    .. math:: z = \sum_m \frac{w_m}{\sum_{m'} w_{m'}}\, z^{(m)}

    The data of one foundation model are a confounder that an average over several takes out: an
    adjustment with P(m) = w_m. A rule of inference, for models that were tuned apart, with
    :class:`LogitAdjustmentLoss`; it has no loss of its own.

    Args:
        weights: w, one per model, >= 0, not all 0: a sequence. Default ``None``: all alike. The
            released code takes the sum, which has the same largest class.

    Shape:
        logits: a list or tuple of M tensors of one shape, or a tensor (M, ...). Returns that shape.
        Half precision gives float32.

    Properties:
        Linear in every model's logits. Unchanged by a common factor of the weights.

    Limits:
        One model: its logits. A weight of 0: the model is not there.

    Raises:
        ValueError: ``weights`` empty, negative, not finite or all 0; no models, more or fewer than
            weights; shapes or devices that differ.
        TypeError: ``weights`` not a sequence of numbers, logits that are not floating point.

    Reference:
        Chen, Qin, Li, Chen, Su, "Rethinking the Bias of Foundation Model under Long-tailed
        Distribution", 2025.

    Example:
        >>> import torch
        >>> from lossary import BackdoorAdjustment
        >>> a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> BackdoorAdjustment()([a, b]), BackdoorAdjustment([3, 1])([a, b])
        (tensor([[1.0000, 0.5000]]), tensor([[1.5000, 0.2500]]))
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if weights is None:
            self.weights = None
            return
        if not isinstance(weights, list | tuple):
            raise TypeError(
                f"weights: expected a sequence of numbers, got {type(weights).__name__}"
            )
        given = [check_number("weights", w, 0.0, math.inf, high_open=True) for w in weights]
        if not sum(given) > 0.0:
            raise ValueError(f"weights: expected at least one number > 0, got {given}")
        self.weights = [w / sum(given) for w in given]

    def forward(self, logits: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the weighted mean of the models' logits."""
        if not isinstance(logits, Tensor | list | tuple):
            raise TypeError(
                f"logits: expected a tensor or a sequence of them, got {type(logits).__name__}"
            )
        if len(logits) == 0:
            raise ValueError("logits: expected those of at least one model, got none")
        weights = [1.0 / len(logits)] * len(logits) if self.weights is None else self.weights
        if len(weights) != len(logits):
            raise ValueError(
                f"logits: expected {len(weights)} models, one per weight, got {len(logits)}"
            )
        first = logits[0]
        for z in logits:
            check_floating("logits", z)
            check_like("logits", z, "those of the first model", first)
        terms = [w * _upcast(z) for w, z in zip(weights, logits, strict=True) if w]
        return torch.stack(terms).sum(0)
