r"""Margins on the angle to the own class: face recognition, and open-set recognition at large.

.. math:: \ell = -\log \frac{e^{s\, a_y}}{e^{s\, a_y} + \sum_{c \ne y} e^{s \cos \theta_c}},
          \qquad \cos \theta_c = \frac{\langle z, w_c \rangle}{\lVert z \rVert \lVert w_c \rVert}

Cross-entropy over cosines to a learnt direction per class, with a target a_y that is smaller than
the cosine: an embedding is pushed nearer to its class than it would have to be, and leaves room
between the classes for people who are not among them. The directions are a parameter of the loss.
"""

import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lossary import _softmax
from lossary._base import Loss, LossOptions
from lossary._checks import (
    check_choice,
    check_int,
    check_number,
    check_positive,
    check_weight_type,
)
from lossary._embedding_base import EmbeddingLoss, EmbeddingOptions, check_classified
from lossary._layouts import LinearLogits
from lossary._numerics import normalized, softplus
from lossary._properties import Properties


class _ClassDirections(nn.Module):
    """A learnt direction per class, and the log-odds against a target with a margin."""

    weight_matrix: nn.Parameter
    tile_size: int | None = None

    def _set_directions(self, num_classes: object, embedding_dim: object) -> None:
        self.num_classes = check_int("num_classes", num_classes, 2)
        self.embedding_dim = check_int("embedding_dim", embedding_dim, 1)
        self.weight_matrix = nn.Parameter(torch.empty(self.num_classes, self.embedding_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new directions, Xavier uniform."""
        nn.init.xavier_uniform_(self.weight_matrix)

    def _check(self, embeddings: Any, labels: Any, weight: Tensor | None) -> None:
        check_classified(embeddings, labels, self.weight_matrix, weight)

    def _log_odds(
        self, z: Tensor, labels: Tensor, scale: float, target: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the log-odds against the target a(cos theta_y), and the target times the scale."""
        w = normalized(self.weight_matrix.to(z.dtype))
        # Rows of weight 0 may have a label that is none.
        y = labels.long().clamp(0, self.num_classes - 1)
        cosine = (z * w[y]).sum(1)
        logits: Any
        if self.tile_size is None:
            logits = scale * z @ w.t()
        else:
            logits = LinearLogits(scale * z, w, tile_size=self.tile_size)
        (t,) = _softmax.row_statistics(logits, y, (_softmax.LOG_ODDS,))
        a = scale * target(cosine)
        return t + (scale * cosine - a), a


def _with_angular_margin(cosine: Tensor, margin: float, monotone: bool) -> Tensor:
    """Return cos(theta + margin), by the addition theorem: acos has no slope at 1."""
    eps = torch.finfo(cosine.dtype).eps
    sine = (1.0 - cosine.square()).clamp(min=eps).sqrt()
    shifted = cosine * math.cos(margin) - sine * math.sin(margin)
    if not monotone:
        return shifted
    beyond = cosine < -math.cos(margin)  # theta > pi - margin, where the cosine would rise again
    return torch.where(beyond, cosine - margin * math.sin(margin), shifted)


class _MarginOptions(LossOptions, total=False):
    """The keywords that the losses of classes alone share."""

    tile_size: int | None


class _MarginLoss(Loss, _ClassDirections):
    """Cross-entropy of scaled cosines, the own one replaced by a target."""

    #: What the margin stays below.
    _most: float
    _source: str
    _target: Callable[[Tensor], Tensor]

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        scale: float,
        margin: float,
        *,
        tile_size: int | None = None,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.scale = check_positive("scale", scale)
        self.margin = check_number("margin", margin, 0.0, self._most, high_open=True)
        self.tile_size = None if tile_size is None else check_int("tile_size", tile_size, 1)
        self._set_directions(num_classes, embedding_dim)

    def per_sample(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every embedding, unreduced."""
        odds, _ = self._log_odds(normalized(embeddings), labels, self.scale, self._target)
        return softplus(odds)

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if weight is not None:
            check_weight_type("weight", weight)
        embeddings, labels = inputs
        self._check(embeddings, labels, weight)
        return super()._values(inputs, weight)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            limits=(("margin = 0", "cross-entropy of the scaled cosines"),),
            unknown={
                "convex": "convex in the cosines (CosFace), which are not linear in the embeddings",
                "lower": "depends on the directions: see the docstring",
                "upper": "depends on the directions: see the docstring",
                "lipschitz": "without bound near a row of zeros",
                "smoothness": "smooth but for rows of zeros and embeddings along their direction",
            },
            source=self._source,
        )


class CosFaceLoss(_MarginLoss):
    r"""CosFace: cross-entropy over cosines to class directions, with a margin on the own cosine.

    .. math:: \ell = -\log \frac{e^{s (\cos\theta_y - m)}}
                              {e^{s (\cos\theta_y - m)} + \sum_{c \ne y} e^{s \cos\theta_c}}

    For embeddings that are compared by cosine later, with classes that were not in training: faces,
    voices, products. In training it needs no pairs and no mining. Of the margins, the additive one
    of the cosine is the easiest to train; :class:`ArcFaceLoss` puts it on the angle.

    Args:
        num_classes: C >= 2.
        embedding_dim: D >= 1.
        scale: s > 0: the inverse of a temperature. Default 64.
        margin: m in [0, 2). Default 0.35.
        tile_size: rows of the tiles in which the cosines are made, forward and backward, and never
            held: memory grows as N + C, not N C. First derivatives only. For 100 000 classes and
            more. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        embeddings (N, D), of any length; labels (N,), integers in [0, C). Values (N,). The
        parameter ``weight_matrix`` (C, D) holds a direction per class, of any length; give it to
        the optimiser together with the network's parameters: ``[*net.parameters(),
        *loss.parameters()]``.

    Properties:
        The gradient in the own cosine is s (p_y - 1), in another s p_c, with p the softmax with the
        margin in it. The loss rises with m. It lies between softplus(log(C-1) - s (2 - m)) and
        softplus(log(C-1) + s (2 + m)). Unchanged by a common rotation of embeddings and directions,
        and by the length of either. Separable.

    Limits:
        m = 0: cross-entropy of the scaled cosines.

    Note:
        Computed from the log-odds of the own class, so that small losses keep their digits. A row
        of norm below 1e-6 (1e-12 in float64) is divided by that. A label counts only where the
        weight is not 0.

    Raises:
        ValueError: ``num_classes`` < 2, ``embedding_dim`` < 1, ``scale`` not positive and finite,
            ``margin`` outside [0, 2), ``tile_size`` < 1; embeddings not (N, D), labels not (N,) or
            outside [0, C) (looked at on CPU tensors); embeddings on another device than the
            directions.
        TypeError: hyper-parameters that are not numbers, embeddings that are not floating point,
            labels that are not integers.
        RuntimeError: second derivatives, forward mode or ``vmap`` with ``tile_size``.

    Reference:
        Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", 2018, eq. 4.

    Example:
        >>> import torch
        >>> from lossary import CosFaceLoss
        >>> loss = CosFaceLoss(num_classes=2, embedding_dim=2, scale=4.0)
        >>> _ = loss.load_state_dict({"weight_matrix": torch.tensor([[1.0, 0.0], [0.0, 1.0]])})
        >>> loss(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([0, 1])).detach()
        tensor(1.1884)
    """

    _most = 2.0
    _source = "Wang et al. 2018"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        scale: float = 64.0,
        margin: float = 0.35,
        **options: Unpack[_MarginOptions],
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale, margin, **options)

    def _target(self, cosine: Tensor) -> Tensor:
        return cosine - self.margin


class ArcFaceLoss(_MarginLoss):
    r"""ArcFace: cross-entropy over cosines to class directions, with a margin on the own angle.

    .. math:: \ell = -\log \frac{e^{s \cos(\theta_y + m)}}
                              {e^{s \cos(\theta_y + m)} + \sum_{c \ne y} e^{s \cos\theta_c}}

    The margin m is an angle, the same wherever the embedding is. Like :class:`CosFaceLoss`, for
    embeddings that are compared by cosine later; harder to start with, and often a little better.

    Args:
        num_classes: C >= 2.
        embedding_dim: D >= 1.
        scale: s > 0. Default 64.
        margin: m in [0, pi), an angle. Default 0.5.
        monotone: beyond theta_y = pi - m, where cos(theta + m) would rise again, take
            cos(theta_y) - m sin(m). Default ``True``. ``False``: cos(theta_y + m) everywhere.
        tile_size: rows of the tiles in which the cosines are made, forward and backward, and never
            held: memory grows as N + C, not N C. First derivatives only. For 100 000 classes and
            more. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        embeddings (N, D), of any length; labels (N,), integers in [0, C). Values (N,). The
        parameter ``weight_matrix`` (C, D) holds a direction per class, of any length; give it to
        the optimiser together with the network's parameters.

    Properties:
        The loss rises with m up to theta_y = pi - m. Without ``monotone`` its slope in the angle
        changes sign there; with it the loss jumps there instead, by s (1 - cos m - m sin m), and
        keeps its direction. Unchanged by a common rotation of embeddings and directions, and by
        the length of either. Separable.

    Limits:
        m = 0: cross-entropy of the scaled cosines.

    Note:
        cos(theta + m) is computed by the addition theorem: the arc cosine has no slope at 1. The
        sine is at least the root of the machine epsilon, so that the gradient is finite for an
        embedding along its direction, too. A label counts only where the weight is not 0.

        Other code: ``monotone=True`` is pytorch-metric-learning's form, ``False`` that of the
        authors of UNPG.

    Raises:
        ValueError: ``num_classes`` < 2, ``embedding_dim`` < 1, ``scale`` not positive and finite,
            ``margin`` outside [0, pi), ``tile_size`` < 1; embeddings not (N, D), labels not (N,) or
            outside [0, C) (looked at on CPU tensors); embeddings on another device than the
            directions.
        TypeError: hyper-parameters that are not numbers, embeddings that are not floating point,
            labels that are not integers.
        RuntimeError: second derivatives, forward mode or ``vmap`` with ``tile_size``.

    Reference:
        Deng, Guo, Xue, Zafeiriou, "ArcFace: Additive Angular Margin Loss for Deep Face
        Recognition", 2018, eq. 3.

    Example:
        >>> import torch
        >>> from lossary import ArcFaceLoss
        >>> loss = ArcFaceLoss(num_classes=2, embedding_dim=2, scale=4.0)
        >>> _ = loss.load_state_dict({"weight_matrix": torch.tensor([[1.0, 0.0], [0.0, 1.0]])})
        >>> loss(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([0, 1])).detach()
        tensor(1.3636)
    """

    _most = math.pi
    _source = "Deng et al. 2018"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        scale: float = 64.0,
        margin: float = 0.5,
        monotone: bool = True,
        **options: Unpack[_MarginOptions],
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale, margin, **options)
        check_choice("monotone", monotone, (True, False))
        self.monotone = monotone

    def _target(self, cosine: Tensor) -> Tensor:
        return _with_angular_margin(cosine, self.margin, self.monotone)


class UNPGLoss(EmbeddingLoss, _ClassDirections):
    r"""UNPG: a margin softmax whose negatives are the classes and the pairs of the batch, filtered.

    .. math:: \ell_i = -\log \frac{e^{s\, a_{i,y_i}}}
              {e^{s\, a_{i,y_i}} + \sum_{c \ne y_i} e^{s \cos\theta_{ic}} + \sum_{v \in S'} e^{s v}}

    S' holds the cosines of the batch's pairs with different labels that lie within the whiskers of
    a box plot: Q1 - r IQR <= v <= Q3 + r IQR. So the gap that the margin opens towards the class
    directions is opened towards the other embeddings too, which are what will be compared. The
    filter leaves out wrong labels above and pairs that teach nothing below.

    Args:
        num_classes: C >= 2.
        embedding_dim: D >= 1.
        base: the own target a: ``"cosface"`` (default), cos(theta) - m, or ``"arcface"``,
            cos(theta + m).
        scale: s > 0. Default 64.
        margin: m, in [0, 2) for CosFace and [0, pi) for ArcFace. Default 0.5.
        whisker: r >= 0; ``inf`` keeps every pair. Default 1.5.
        monotone: of ``"arcface"``: see :class:`ArcFaceLoss`. Default ``False``, as the authors
            have it.
        gather: whether the rows of all processes make the pairs: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`.

    Shape:
        embeddings (N, D), of any length; labels (N,), integers in [0, C). Values (N,). Dense: N x C
        and N x N cosines. The parameter ``weight_matrix`` (C, D) holds a direction per class; give
        it to the optimiser together with the network's parameters.

    Properties:
        The loss is batch-coupled: all anchors share S'. l = softplus(log(e^t + e^u)) with t the
        log-odds of the base loss and u = log sum_v e^(s v) - s a; so it is at least the base loss,
        and rises with r. Quartiles are entries of the sorted list, [n/4] and [3n/4], without
        interpolation. The bounds act as a mask and carry no gradient, the pairs within them do; a
        pair that crosses one makes the loss jump.

    Limits:
        No pair with different labels: the base loss, :class:`CosFaceLoss` or :class:`ArcFaceLoss`.

    Note:
        S' is the same for all anchors, and so is summed up once. Several processes (``gather``)
        filter the pairs of all together, where the authors' code takes those of each alone; each
        computes the whole of S'. ``"mean"`` divides by what all have, times their number.

    Raises:
        ValueError: ``base`` unknown, ``margin`` out of its range, ``whisker`` negative or nan; as
            for :class:`CosFaceLoss`; a ``process_group`` without this process.
        TypeError: hyper-parameters that are not numbers, embeddings that are not floating point,
            labels that are not integers.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Jung et al., "Unified Negative Pair Generation toward Well-discriminative Feature Space for
        Face Recognition", 2022. Verified against the authors' code.

    Example:
        >>> import torch
        >>> from lossary import UNPGLoss
        >>> loss = UNPGLoss(num_classes=2, embedding_dim=2, scale=4.0)
        >>> _ = loss.load_state_dict({"weight_matrix": torch.tensor([[1.0, 0.0], [0.0, 1.0]])})
        >>> loss(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([0, 1])).detach()
        tensor(2.5086)
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        base: str = "cosface",
        scale: float = 64.0,
        margin: float = 0.5,
        whisker: float = 1.5,
        monotone: bool = False,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(**options)
        check_choice("base", base, ("cosface", "arcface"))
        self.base = base
        self.scale = check_positive("scale", scale)
        most = 2.0 if base == "cosface" else math.pi
        self.margin = check_number("margin", margin, 0.0, most, high_open=True)
        self.whisker = check_number("whisker", whisker, 0.0, math.inf)
        check_choice("monotone", monotone, (True, False))
        self.monotone = monotone
        self._set_directions(num_classes, embedding_dim)

    def per_sample(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every anchor, unreduced."""
        self._check(embeddings, labels, None)
        rows = self.labelled_rows(embeddings, labels)
        odds, target = self._log_odds(rows.own, labels, self.scale, self._target)
        return softplus(torch.logaddexp(odds, self._pairs(rows.every, rows.every_label) - target))

    def _target(self, cosine: Tensor) -> Tensor:
        if self.base == "cosface":
            return cosine - self.margin
        return _with_angular_margin(cosine, self.margin, self.monotone)

    def _pairs(self, every: Tensor, labels: Tensor) -> Tensor:
        """Return log sum exp(s v) over the pairs that are kept, the lowest number if none is."""
        cosines = every @ every.t()
        kept = torch.ones_like(cosines, dtype=torch.bool).triu(1)
        kept = kept & (labels.unsqueeze(1) != labels)
        if self.whisker < math.inf and cosines.numel():
            low, high = self._whiskers(cosines.detach(), kept)
            kept = kept & (cosines >= low) & (cosines <= high)
        # The lowest number, not -inf: where nothing is left the slope would be nan.
        lowest = torch.finfo(cosines.dtype).min
        scaled = (self.scale * cosines).masked_fill(~kept, lowest).flatten()
        return torch.cat((scaled, scaled.new_full((1,), lowest))).logsumexp(0)

    def _whiskers(self, cosines: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of the whiskers of the box plot of what is kept."""
        ordered = cosines.masked_fill(~kept, math.inf).flatten().sort().values
        n = kept.sum()
        quarters = torch.stack((n // 4, 3 * n // 4)).clamp(max=ordered.numel() - 1)
        first, third = ordered.gather(0, quarters)
        reach = self.whisker * (third - first)
        return first - reach, third + reach

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            limits=(("no pair with different labels", f"the {self.base} loss"),),
            unknown={
                "convex": "the cosines are not linear in the embeddings",
                "lower": "depends on the directions and on the batch",
                "upper": "depends on the directions and on the batch",
                "lipschitz": "not continuous where a pair crosses a whisker",
                "smoothness": "not continuous where a pair crosses a whisker",
            },
            source="Jung et al. 2022",
        )
