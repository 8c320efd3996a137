r"""Prototypes: one direction per class, and what is learnt from samples by way of them.

.. math:: s_{cj} = \frac{\langle p_c, f_j \rangle}{\lVert p_c \rVert \lVert f_j \rVert}

For learning that goes on: prototypes stand for classes whose samples are gone. In prototype-sample
relation distillation the whole objective is

    SupCon(projected features) + 2 tightness(features, labels, prototypes)
    + 4 distillation(features, old_features, prototypes[:old], old_prototypes)
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lossary import _distributed
from lossary._base import Loss, LossOptions, _upcast
from lossary._checks import (
    check_choice,
    check_device,
    check_embeddings,
    check_positive,
    check_weight_type,
)
from lossary._embedding_base import (
    EmbeddingLoss,
    EmbeddingOptions,
    check_class_labels,
    check_labels,
)
from lossary._numerics import divergence_terms, normalized, one_minus_cosine, softplus
from lossary._properties import Properties


class PrototypeRelationDistillationLoss(Loss):
    r"""Keep how every old prototype ranks the samples of the batch.

    .. math:: \ell_c = \sum_j q_{cj} \log \frac{q_{cj}}{\pi_{cj}}, \qquad
              \pi_{cj} = \operatorname{softmax}_j
              \frac{\langle p_c, f_j \rangle}{T \lVert p_c \rVert}

    where the softmax runs over the samples j of the batch, and q is the same of the old model, its
    features and its prototypes.
    Prototype-sample relation distillation (PRD), for continual learning without a memory of old
    samples: features may move, as long as an old class still finds the same samples near.

    Args:
        temperature: T > 0. Default 1.
        over: ``"samples"`` (default), the paper's: one softmax over the batch per prototype.
            ``"classes"``, the released code's: one over the prototypes per sample; call it once per
            old task, with that task's prototypes, and with ``normalize_features=False``.
        normalize_features: divide the features by their norm, too. Default ``True``.
        gather: whether the batch is that of all processes: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: that of the own process.
        process_group: whose batch it is. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`.

    Shape:
        features (B, D), old_features (B, D), prototypes (C, D), old_prototypes (C, D): of the old
        classes alone. Values (C,) over samples, (B,) over classes. C = 0, before there is an old
        task: 0, attached to the graph.

    Properties:
        The loss is batch-coupled. l >= 0, and 0 if and only if the profiles agree. The gradient in
        the scores <p_c, f_j>/|p_c| is (pi - q)/T; old features and prototypes get none. Unchanged
        by the length of a prototype, by a constant added to a profile, by a rotation of everything.

    Limits:
        T -> inf: half the variance of the profiles' difference over the batch, divided by T^2. One
        sample (or one class, over classes): 0.

    Note:
        Summed from terms >= 0 that do not cancel where the profiles nearly agree. Over samples with
        several processes only C numbers are exchanged: a process has its own rows of the softmax
        over all. Its values are W times its part of the sum, so that the mean over the W processes
        is the loss, and the averaged gradient that of one process with the whole batch. All of them
        must call it, forward and backward, with the same prototypes.

    Raises:
        ValueError: ``temperature`` not positive and finite, ``over`` unknown; shapes that do not
            fit; a ``process_group`` without this process.
        TypeError: ``temperature`` not a number, inputs that are not floating point.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Asadi, Davari, Mudur, Aljundi, Belilovsky, "Prototype-Sample Relation Distillation: Towards
        Replay-Free Continual Learning", 2023. Over classes as in the authors' code, a pre-release;
        over samples as in an independent implementation of the paper's formula.

    Example:
        >>> import torch
        >>> from lossary import PrototypeRelationDistillationLoss
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> old_features = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
        >>> prototypes = torch.eye(2)
        >>> PrototypeRelationDistillationLoss()(features, old_features, prototypes, prototypes)
        tensor(0.1765)
    """

    separable = False

    def __init__(
        self,
        temperature: float = 1.0,
        over: str = "samples",
        normalize_features: bool = True,
        *,
        gather: bool | str = "auto",
        process_group: Any = None,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.temperature = check_positive("temperature", temperature)
        check_choice("over", over, ("samples", "classes"))
        self.over = over
        check_choice("normalize_features", normalize_features, (True, False))
        self.normalize_features = normalize_features
        _distributed.check_gather(gather, process_group)
        self.gather = gather
        self.process_group = process_group

    def per_sample(
        self, features: Tensor, old_features: Tensor, prototypes: Tensor, old_prototypes: Tensor
    ) -> Tensor:
        """Return the divergence of every profile, unreduced."""
        check_embeddings(features=features, old_features=old_features)
        check_embeddings(prototypes=prototypes, old_prototypes=old_prototypes)
        if prototypes.shape[1] != features.shape[1]:
            raise ValueError(
                f"prototypes: expected shape (C, {features.shape[1]}), "
                f"got {tuple(prototypes.shape)}"
            )
        check_device("prototypes", prototypes, features)
        new = self._log_profiles(features, prototypes)
        old = self._log_profiles(old_features.detach(), old_prototypes.detach())
        values = divergence_terms(old, new).sum(1)
        if self.over == "samples" and self._gathers():
            return values * _distributed.world_size(self.process_group)
        return values

    def _log_profiles(self, f: Tensor, p: Tensor) -> Tensor:
        """Return the logarithms of the softmax, of a prototype or of a sample in each row."""
        f = normalized(f) if self.normalize_features else f
        rows, columns = normalized(p) / self.temperature, f
        if self.over == "classes":
            rows, columns = columns, rows
        scores = rows @ columns.t()
        norm = scores.logsumexp(1)
        if self.over == "samples" and self._gathers():
            own = norm.unsqueeze(0)
            (every,), _ = _distributed.gather_with_gradient(own, group=self.process_group)
            norm = every.logsumexp(0)
        return scores - norm.unsqueeze(1)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            limits=(("T -> inf", "half the variance of the difference, over T^2"),),
            unknown={
                "convex": "convex in the scores of the old profile's softmax only",
                "lower": "0, but a batch of one sample never leaves it",
                "upper": "depends on T and on the lengths of features that are not normalised",
                "lipschitz": "without bound near a row of zeros",
                "smoothness": "smooth but for rows of zeros",
            },
            source="Asadi et al. 2023",
        )


class PrototypeTightnessLoss(Loss):
    r"""Move the prototype of a class to its samples, and not away from the others.

    .. math:: \ell_i = 1 - \cos(\operatorname{sg}[f_i],\, p_{y_i})

    The gradient reaches the prototypes alone. With :class:`PrototypeRelationDistillationLoss`: the
    features are trained by a loss of their own, and prototypes follow them without repelling each
    other, so that those of old classes stay where they are.

    Args:
        reduction: see :class:`lossary.Loss`.

    Shape:
        features (N, D), labels (N,), integers in [0, C), prototypes (C, D). Values (N,).

    Properties:
        0 <= l <= 2. The gradient is orthogonal to the prototype, and 0 in the features. Unchanged
        by the length of features and prototypes and by a rotation of all. Separable.

    Limits:
        All prototypes at the normalised sum of their class's unit features: the minimum of the sum.

    Note:
        Computed as half the squared distance of unit vectors, so that it keeps its digits near 0. A
        row of zeros has cosine 0 with everything. The paper writes -cos, which has the same
        gradient. Under ``torch.distributed`` with unequal batches see
        :func:`lossary.global_normalizer`.

    Raises:
        ValueError: shapes that do not fit, labels outside [0, C) (looked at on CPU tensors).
        TypeError: features or prototypes that are not floating point, labels that are not integers.

    Reference:
        Asadi, Davari, Mudur, Aljundi, Belilovsky, "Prototype-Sample Relation Distillation: Towards
        Replay-Free Continual Learning", 2023. As in the authors' code.

    Example:
        >>> import torch
        >>> from lossary import PrototypeTightnessLoss
        >>> features, labels = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([0, 1])
        >>> PrototypeTightnessLoss()(features, labels, torch.eye(2))
        tensor(0.2000)
    """

    def per_sample(self, features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        check_embeddings(features=features)
        check_embeddings(prototypes=prototypes)
        if prototypes.shape[1] != features.shape[1]:
            raise ValueError(
                f"prototypes: expected shape (C, {features.shape[1]}), "
                f"got {tuple(prototypes.shape)}"
            )
        check_device("prototypes", prototypes, features)
        check_class_labels(labels, features, len(prototypes))
        return one_minus_cosine(features.detach(), prototypes.index_select(0, labels.long()))

    def _without_absent(self, inputs: tuple[Any, ...], weight: Tensor) -> tuple[Any, ...]:
        """Return the inputs with the features cleaned: prototypes are not samples."""
        (features,) = super()._without_absent(inputs[:1], weight)
        return (features, *inputs[1:])

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            lower=0.0,
            upper=2.0,
            unknown={
                "convex": "the cosine is not convex",
                "lipschitz": "without bound near a prototype of zeros",
                "smoothness": "smooth but for a prototype of zeros",
            },
            source="Asadi et al. 2023",
        )


class OnlinePrototypeEquilibriumLoss(EmbeddingLoss):
    r"""Online prototype equilibrium: tell the classes of the batch apart by their means.

    .. math:: \ell_c = \frac12 \sum_{v=1}^2 -\log
              \frac{e^{\langle p_c^1, p_c^2 \rangle/\tau}}
                   {\sum_{b \ne (c, v)} e^{\langle p_c^v, p_b \rangle/\tau}}, \qquad
              p_c^v \propto \sum_{i : y_i = c} \frac{z_i^v}{\lVert z_i^v \rVert}

    NT-Xent between the prototypes that two views of the batch give to its K classes; b runs over
    the other 2K - 1. For continual learning from a stream: the paper's objective adds the value on
    new data to that on a batch from the replay memory, in two calls.

    Args:
        temperature: tau > 0. Default 0.5.
        normalize: divide the rows by their norm. ``False`` for rows that are unit vectors already.
            The means are divided by theirs in any case. Default ``True``.
        gather: whether the classes are those of all processes, with means over the rows of all:
            ``"auto"`` (default) where ``torch.distributed`` runs several, ``True``, or ``False``:
            those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`.

    Shape:
        z1 (N, D), z2 (N, D), two views of the same samples; labels (N,) of any integers. Values
        (N,), of the rows of all processes where they are gathered: the first K are those of the
        classes in ascending order of their labels, the rest are 0 and count in no mean.
        ``prototypes(z1, z2, labels)`` returns the unit means (N, D) of both views in that order, 0
        after the first K, and which are there, (N,) bool. O(N^2) inner products, as K is not known
        without waiting for the device.

    Properties:
        The loss is batch-coupled; l >= 0 and at most log(2K - 1) + 2/tau. Symmetric in the views;
        unchanged by the order of rows, the names of classes, a rotation of all, the length of rows.

    Limits:
        One class: 0. All labels different: :class:`NTXentLoss` of the views.

    Note:
        The authors' code finds the classes as non-zero rows of a table of prototypes, which is the
        same but for means that vanish. A mean of zeros has inner product 0 with all others. Every
        process computes the whole loss, and ``"mean"`` is the mean over classes.

    Raises:
        ValueError: ``temperature`` not positive and finite, shapes that do not fit, a
            ``process_group`` without this process.
        TypeError: ``temperature`` not a number, views that are not floating point, labels that are
            not integers.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Wei, Ye, Huang, Zhang, Shan, "Online Prototype Learning for Online Continual Learning",
        2023. Verified against the authors' code.

    Example:
        >>> import torch
        >>> from lossary import OnlinePrototypeEquilibriumLoss
        >>> z1 = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> z2 = torch.tensor([[1.0, 0.1], [1.0, 0.5], [0.2, 1.0]])
        >>> OnlinePrototypeEquilibriumLoss()(z1, z2, torch.tensor([7, 7, 3]))
        tensor(0.5028)
    """

    def __init__(
        self,
        temperature: float = 0.5,
        normalize: bool = True,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(normalize, **options)
        self.temperature = check_positive("temperature", temperature)

    def per_sample(self, z1: Tensor, z2: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of every class, and which there are."""
        first, second, there = self.prototypes(z1, z2, labels)
        p = torch.cat((first, second))
        n = len(first)
        s = p @ p.t() / self.temperature
        own = s.diagonal(n)
        slots = torch.arange(2 * n, device=p.device) % max(n, 1)
        # The other classes alone: what is left of the denominator is the numerator. The lowest
        # number, not -inf: of one class the slope would be nan.
        masked = (slots.unsqueeze(1) == slots) | ~torch.cat((there, there))
        s = s.masked_fill(masked, torch.finfo(s.dtype).min)
        values = softplus(s.logsumexp(1) - torch.cat((own, own))).view(2, n).mean(0)
        return values.masked_fill(~there, 0.0), there.to(values.dtype)

    def prototypes(self, z1: Tensor, z2: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the unit means of both views, one class a row, and which rows have a class."""
        check_embeddings(z1=z1, z2=z2)
        check_labels(labels, z1, of="row")
        views = self.units(_upcast(z1), _upcast(z2))
        if self._gathers():
            group = self.process_group
            views, _ = _distributed.gather_with_gradient(*views, group=group)
            (labels,) = _distributed.gather_rows(labels, group=group)
        order = labels.argsort(stable=True)
        ordered = labels[order]
        # As many slots as rows: how many classes there are is not known here.
        new = torch.zeros_like(ordered, dtype=torch.long)
        new[1:] = ordered[1:] != ordered[:-1]
        slot = new.cumsum(0)
        ones = torch.ones_like(views[0][:, 0])
        there = torch.zeros_like(ones).index_add(0, slot, ones) > 0
        first, second = (
            normalized(torch.zeros_like(z).index_add(0, slot, z.index_select(0, order)))
            for z in views
        )
        return first, second, there

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            limits=(("one class", "0"), ("all labels different", "NTXentLoss")),
            unknown={
                "convex": "the cosines are not linear in the embeddings",
                "lower": "0, but of which the number of classes sets how near values come",
                "upper": "log(2K - 1) + 2/tau at most, of K classes",
                "lipschitz": "without bound near a class with mean zero",
                "smoothness": "smooth but for rows and means of zeros",
            },
            source="Wei et al. 2023",
        )


class PrototypePairSampling(nn.Module):
    r"""Probabilities of pairs of classes: those with near prototypes are drawn more often.

    .. math:: P_{ab} = \frac{\exp(1/d_{ab})}{\sum_{a' < b'} \exp(1/d_{a'b'})}, \qquad
              d_{ab} = \max(\lVert p_a - p_b \rVert_2,\ \epsilon)

    Adaptive prototypical feedback: draw pairs of classes by it, and mix up replayed samples of the
    two, so that what is easily confused is rehearsed more. A rule for sampling, without a gradient.

    Args:
        eps: epsilon > 0, the least distance: coincident prototypes would have 1/0. Default 1e-6.

    Shape:
        prototypes (K, D), such as the mean of both views' of
        :class:`OnlinePrototypeEquilibriumLoss`; present (K,) bool, which classes may be drawn, or
        ``None``: all. Returns (K(K - 1)/2,) in the order (0, 1), (0, 2), ..., (1, 2), ..., that of
        ``torch.triu_indices(K, K, 1)``; draw with ``torch.multinomial``.

    Properties:
        Adds up to 1 where there is a pair. Falls with the distance. Unchanged by a rotation and by
        a shift of all prototypes, not by a scale: near prototypes of small norm are drawn almost
        alone. Pairs with an absent class have probability 0.

    Limits:
        All distances equal: uniform. Prototypes far apart: uniform. A coincident pair: that alone.

    Note:
        The authors' code averages the prototypes of both views first and zeroes absent classes.

    Raises:
        ValueError: ``eps`` not positive and finite, prototypes not (K, D), ``present`` not (K,).
        TypeError: ``eps`` not a number, prototypes that are not floating point, ``present`` neither
            bool nor float.

    Reference:
        Wei, Ye, Huang, Zhang, Shan, "Online Prototype Learning for Online Continual Learning",
        2023. Verified against the authors' code.

    Example:
        >>> import torch
        >>> from lossary import PrototypePairSampling
        >>> PrototypePairSampling()(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]]))
        tensor([0.2039, 0.4886, 0.3075])
    """

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = check_positive("eps", eps)

    @torch.no_grad()
    def forward(self, prototypes: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the probability of every pair of classes."""
        check_embeddings(prototypes=prototypes)
        p = _upcast(prototypes)
        k = len(p)
        a, b = torch.triu_indices(k, k, 1, device=p.device)
        distance = torch.linalg.vector_norm(p[a] - p[b], dim=1).clamp(min=self.eps)
        score = 1.0 / distance
        if present is None:
            return torch.softmax(score, 0)
        check_weight_type("present", present)
        if present.shape != (k,):
            raise ValueError(f"present: expected shape ({k},), got {tuple(present.shape)}")
        check_device("present", present, p)
        there = (present[a] != 0) & (present[b] != 0)
        # The lowest number, not -inf: where no pair is there its softmax would be nan.
        score = score.masked_fill(~there, torch.finfo(score.dtype).min)
        return torch.softmax(score, 0).masked_fill(~there, 0.0)

    def extra_repr(self) -> str:
        """Show the least distance where it is another one."""
        return "" if math.isclose(self.eps, 1e-6) else f"eps={self.eps:g}"
