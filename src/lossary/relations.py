r"""Relations: what is compared is how samples stand to each other, or features to those of before.

.. math:: D_{ij} = d(r_i, r_j) \quad \text{against} \quad D'_{ij} = d(e_i, e_j)

Losses between two sets of features, predictions or gradients of the same things: of an explained
and an explaining model, before and after unlearning, on real and on synthetic data, of a mixed
input and its parts.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, Unpack

import torch
from torch import Tensor

from lossary import _distributed
from lossary._base import Loss, LossOptions, _upcast
from lossary._checks import (
    check_choice,
    check_device,
    check_embeddings,
    check_floating,
    check_like,
    check_number,
    check_positive,
    check_tensor,
)
from lossary._embedding_base import EmbeddingOptions
from lossary._numerics import divergence_terms, normalized, one_minus_cosine
from lossary._properties import Properties
from lossary._softmax import readable

#: Gradients of a model's parameters, one tensor per parameter.
Gradients: TypeAlias = Sequence[Tensor] | Tensor


class _RelationLoss(Loss):
    """A loss of the pairs of own rows with the rows of all processes."""

    separable = False

    def __init__(
        self,
        detach_reference: bool = True,
        *,
        gather: bool | str = "auto",
        process_group: Any = None,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        check_choice("detach_reference", detach_reference, (True, False))
        self.detach_reference = detach_reference
        _distributed.check_gather(gather, process_group)
        self.gather = gather
        self.process_group = process_group

    def _rows(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows of all of two matrices, and the positions of the own ones in them."""
        first = 0
        own = len(a)
        if self._gathers():
            (a, b), first = _distributed.gather_with_gradient(a, b, group=self.process_group)
        return a, b, torch.arange(first, first + own, device=a.device)


class ModelBehaviorConsistencyLoss(_RelationLoss):
    r"""Match the pairwise cosines of two latent spaces.

    .. math:: L = \frac{1}{N^2} \sum_{i,j} \bigl(\cos(r_i, r_j) - \cos(e_i, e_j)\bigr)^2

    Model behaviour consistency (MBC): two samples that are alike to the reference model should be
    alike to the other one, whose space may have another width and another basis. For explanations
    that behave as the model does, and for relational distillation.

    Args:
        normalize_variance: divide by the variance (unbiased, over all N^2 pairs) of the reference's
            cosines. Default ``False``.
        detach_reference: no gradient to the reference. Default ``True``.
        gather: whether the pairs are those with the rows of all processes: ``"auto"`` (default)
            where ``torch.distributed`` runs several, ``True``, or ``False``: of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`. The formula is ``"mean"``.

    Shape:
        reference (N, D), embeddings (N, E): the same samples. Values (N,): the mean of a sample's
        squared differences over all N samples. Dense, two matrices of N x N cosines.

    Properties:
        The loss is batch-coupled. 0 <= L <= 2, and a value is below 4 (1 - 1/N): matrices of
        cosines are positive semidefinite, and so cannot differ everywhere at once. L = 2 for even N
        with all references equal and one half of the embeddings opposite to the other. Unchanged by
        a rotation of either space and by the length of a row. The diagonal contributes 0.

    Limits:
        Rotated or scaled copies: 0. One sample: 0.

    Note:
        A row of zeros has cosine 0 with all others. The variance counts as at least 1e-6 (1e-12 in
        float64): a reference with all rows alike has none. Its gradient is taken into account where
        the reference is not detached.

    Raises:
        ValueError: inputs that are not matrices with equally many rows, options that are not bools,
            a ``process_group`` without this process.
        TypeError: inputs that are not floating point.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Queen, Hartvigsen, Koker, He, Tsiligkaridis, Zitnik, "Encoding Time-Series Explanations
        through Self-Supervised Model Behavior Consistency", 2023. Verified against the authors'
        code. The bound is our own.

    Example:
        >>> import torch
        >>> from lossary import ModelBehaviorConsistencyLoss
        >>> reference = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> embeddings = torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
        >>> ModelBehaviorConsistencyLoss()(reference, embeddings)
        tensor(0.1800)
    """

    def __init__(
        self,
        normalize_variance: bool = False,
        detach_reference: bool = True,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(detach_reference, **options)
        check_choice("normalize_variance", normalize_variance, (True, False))
        self.normalize_variance = normalize_variance

    def per_sample(self, reference: Tensor, embeddings: Tensor) -> Tensor:
        """Return the mean squared difference of every row, unreduced."""
        check_embeddings(reference=reference)
        check_embeddings(embeddings=embeddings)
        if len(embeddings) != len(reference):
            raise ValueError(
                f"embeddings: expected as many rows as reference, {len(reference)}, "
                f"got {len(embeddings)}"
            )
        check_device("embeddings", embeddings, reference)
        r, e = (normalized(x) for x in (reference, embeddings))
        r = r.detach() if self.detach_reference else r
        every_r, every_e, position = self._rows(r, e)
        columns = torch.arange(len(every_r), device=r.device)
        # A row of zeros, whose cosine with itself is 0, counts no less than others here.
        itself = position.unsqueeze(1) == columns
        difference = (r @ every_r.t() - e @ every_e.t()).masked_fill(itself, 0.0)
        n = max(len(every_r), 1)
        values = difference.square().sum(1) / n
        if not self.normalize_variance:
            return values
        cosines = every_r @ every_r.t()
        spread = (cosines - cosines.sum() / (n * n)).square().sum() / max(n * n - 1, 1)
        return values / spread.clamp(min=1e-12 if r.dtype == torch.float64 else 1e-6)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            limits=(("rotated or scaled copies", "0"),),
            unknown={
                "convex": "quadratic in the cosines, which are not linear in the embeddings",
                "lower": "0, but a batch of one sample never leaves it",
                "upper": "2 for the mean, of batches that come near it; not with the variance",
                "lipschitz": "without bound near a row of zeros",
                "smoothness": "smooth but for rows of zeros",
            },
            source="Queen et al. 2023; algebra",
        )


class LabelConsistencyLoss(_RelationLoss):
    r"""Match the pairwise divergences between predictions.

    .. math:: L = \frac{1}{N^2} \sum_{i,j}
              \bigl(\operatorname{JS}(p_i, p_j) - \operatorname{JS}(q_i, q_j)\bigr)^2

    over the softmax p of the logits and q of the reference's, with the Jensen-Shannon divergence.
    Two samples that the reference predicts alike should be predicted alike; which classes they are
    given is left to other terms. Beside :class:`ModelBehaviorConsistencyLoss`, which does the same
    for latent spaces.

    Args:
        variant: ``"paper"`` (default), the formula. ``"official"``: (K(p) - K(q))^2 with one number
            per model, the mean over pairs i < j and classes of m (log m - (log p_i + log p_j)/2),
            m = (p_i + p_j)/2: the authors' code. It matches the average divergence of the batch
            alone, and the divergence is the reverse one, without bound.
        detach_reference: no gradient to the reference. Default ``True``.
        gather: whether the pairs are those with the rows of all processes: ``"auto"`` (default)
            where ``torch.distributed`` runs several, ``True``, or ``False``: of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`. The formula is ``"mean"``.

    Shape:
        logits (N, C), reference_logits (N, C), C >= 2. Values (N,): the mean over all samples of a
        sample's squared differences; with ``"official"`` one number, 0-dim, without ``weight``.
        O(N^2 C) memory.

    Properties:
        The loss is batch-coupled. ``"paper"``: 0 <= L <= (log 2)^2. Unchanged when a number is
        added to a row of logits, and when the classes are permuted, of either model.

    Limits:
        The same logits, up to these: 0. One sample: 0.

    Note:
        Divergences are summed from terms >= 0, in the log domain, so that near predictions keep
        their digits and sure ones are finite.

    Raises:
        ValueError: ``variant`` unknown, logits not (N, C), C >= 2, or of different shapes; a
            ``process_group`` without this process.
        TypeError: logits that are not floating point.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Queen, Hartvigsen, Koker, He, Tsiligkaridis, Zitnik, "Encoding Time-Series Explanations
        through Self-Supervised Model Behavior Consistency", 2023. ``"official"`` verified against
        the authors' code.

    Example:
        >>> import torch
        >>> from lossary import LabelConsistencyLoss
        >>> logits, reference = torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.zeros(2, 2)
        >>> LabelConsistencyLoss()(logits, reference)
        tensor(0.1261)
        >>> LabelConsistencyLoss("official")(logits, reference)
        tensor(0.1829)
    """

    def __init__(
        self,
        variant: str = "paper",
        detach_reference: bool = True,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(detach_reference, **options)
        check_choice("variant", variant, ("paper", "official"))
        self.variant = variant

    def per_sample(self, logits: Tensor, reference_logits: Tensor) -> Tensor:
        """Return the mean squared difference of every row, or one number."""
        for name, x in (("logits", logits), ("reference_logits", reference_logits)):
            check_floating(name, x)
            if x.dim() != 2 or x.shape[1] < 2:
                raise ValueError(f"{name}: expected shape (N, C), C >= 2, got {tuple(x.shape)}")
        check_like("reference_logits", reference_logits, "logits", logits)
        if self.detach_reference:
            reference_logits = reference_logits.detach()
        p, q = (x.log_softmax(1) for x in (logits, reference_logits))
        every_p, every_q, _ = self._rows(p, q)
        n = max(len(every_p), 1)
        if self.variant == "paper":
            difference = _jensen_shannon(p, every_p) - _jensen_shannon(q, every_q)
            return difference.square().sum(1) / n
        pairs = max(n * (n - 1), 1) * p.shape[1]
        mine, its = (_reverse(x).sum() / pairs for x in (every_p, every_q))
        return (mine - its).square()

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            limits=(("the same logits", "0"),),
            unknown={
                "convex": "differences of divergences, squared",
                "lower": "0, but a batch of one sample never leaves it",
                "upper": "(log 2)^2 of the paper's, for batches that come near it",
                "lipschitz": "depends on the batch",
                "smoothness": "infinitely smooth, but the sample has no pair alone",
            },
            source="Queen et al. 2023; algebra",
        )


def _pairs(p: Tensor, every: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p_i, log p_j and the logarithms of their means, (N, M, C)."""
    a, b = p.unsqueeze(1), every.unsqueeze(0)
    # Relative to one of them, so that a row agrees with itself exactly.
    apart = b - a
    return a, b, a + (torch.logaddexp(torch.zeros_like(apart), apart) - math.log(2.0))


def _jensen_shannon(p: Tensor, every: Tensor) -> Tensor:
    """Return the divergences of all pairs of rows of log-probabilities."""
    a, b, m = _pairs(p, every)
    return (divergence_terms(a, m) + divergence_terms(b, m)).sum(2) / 2.0


def _reverse(p: Tensor) -> Tensor:
    """Return KL(m || p_i)/2 + KL(m || p_j)/2 of all pairs."""
    a, b, m = _pairs(p, p)
    return (divergence_terms(m, a) + divergence_terms(m, b)).sum(2) / 2.0


class LAFAlignmentLoss(Loss):
    r"""Keep what is retained near the original model, relative to what is forgotten.

    .. math:: \ell_i = \log \frac{e^{c_i}}{\sum_j e^{e_j/\tau}}, \qquad
              c_i = 1 - \cos(r_i, r^0_i), \quad e_j = 1 - \cos(f_j, f^0_j)

    with the representations r of retained and f of forgotten data, and those of the original model,
    r0 and f0. Label-agnostic forgetting (LAF): after representations were moved away from the
    forgotten data, this brings back the retained ones.

    Args:
        temperature: tau > 0, of the forgotten side alone. Default 1.
        gather: whether the forgotten data of all processes are taken: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose data they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`. Default ``"sum"``, as the authors have it.

    Shape:
        retain (N, D), retain_ref (N, D), forget (M, D), forget_ref (M, D), M >= 1. Values (N,).

    Properties:
        -(2/tau + log M) <= l <= 2 - log M. The gradient of the sum is 1 in each c_i and
        -(N/tau) softmax(e/tau)_j in e_j; the references have none. Unchanged by the length of rows
        and by a rotation of a row together with its reference. The loss is batch-coupled.

    Limits:
        Both as in the original model: -log M. tau -> 0: c_i - max_j e_j/tau.

    Note:
        1 - cos is half the squared distance of unit vectors, which keeps its digits near 0. A row
        of zeros has cosine 0. The authors add 1e-12 to the norms, a difference of about 1e-11.
        With several processes the M numbers e_j are exchanged with a gradient; all must call it,
        forward and backward.

    Raises:
        ValueError: ``temperature`` not positive and finite; no forgotten data; shapes that do not
            fit; a ``process_group`` without this process.
        TypeError: ``temperature`` not a number, inputs that are not floating point.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Shen, Zhang, Zhao, Bialkowski, Chen, Xu, "Label-Agnostic Forgetting: A Supervision-Free
        Unlearning in Deep Models", 2024. Verified against the authors' code.

    Example:
        >>> import torch
        >>> from lossary import LAFAlignmentLoss
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> LAFAlignmentLoss()(x, y, x, x.flip(0))
        tensor(-2.9863)
    """

    separable = False

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        gather: bool | str = "auto",
        process_group: Any = None,
        reduction: str = "sum",
    ) -> None:
        super().__init__(reduction=reduction)
        self.temperature = check_positive("temperature", temperature)
        _distributed.check_gather(gather, process_group)
        self.gather = gather
        self.process_group = process_group

    def per_sample(
        self, retain: Tensor, retain_ref: Tensor, forget: Tensor, forget_ref: Tensor
    ) -> Tensor:
        """Return the loss of every retained sample, unreduced."""
        check_embeddings(retain=retain, retain_ref=retain_ref)
        check_embeddings(forget=forget, forget_ref=forget_ref)
        check_device("forget", forget, retain)
        kept = one_minus_cosine(retain, retain_ref.detach())
        lost = one_minus_cosine(forget, forget_ref.detach()) / self.temperature
        if self._gathers():
            (lost,), _ = _distributed.gather_with_gradient(lost, group=self.process_group)
        if not len(lost):
            raise ValueError("forget: expected at least one forgotten sample, got none")
        return kept - lost.logsumexp(0)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            unknown={
                "convex": "the cosine is not convex",
                "lower": "-(2/tau + log M), of M forgotten samples",
                "upper": "2 - log M, of M forgotten samples",
                "lipschitz": "without bound near a row of zeros",
                "smoothness": "smooth but for rows of zeros",
            },
            source="Shen et al. 2024; algebra",
        )


class LAFRepresentationUnlearningLoss(Loss):
    r"""Move representations away from the forgotten data, as told by two autoencoders.

    .. math:: L = \sum_i f(r'_i, r_i) - \sum_j f(v'_j, v_j), \qquad
              f(a, b) = \exp \frac{m}{m + 1}, \quad m = \lVert a - b \rVert^2

    where r' is the reconstruction of the retained representations r by an autoencoder trained on
    retained data, v' that of the forgotten ones v by one trained on forgotten data: representations
    should fit the former and not the latter. The first term of label-agnostic forgetting, before
    :class:`LAFAlignmentLoss`.

    Args:
        reduction: see :class:`lossary.Loss`. Default ``"sum"``, the formula.

    Shape:
        retain (N, D), retain_recon (N, D), forget (M, D), forget_recon (M, D). Values (N + M,):
        those of the retained samples, in [1, e], then those of the forgotten ones, in [-e, -1].

    Properties:
        -e <= l <= e, neither of which is reached. Infinitely smooth; the gradient vanishes at m = 0
        and as m -> inf, and is largest at m = 1/sqrt(3): 0.881 in either argument. Redescending:
        what is far from its reconstruction is given up. Separable.

    Limits:
        Reconstructed without error: N - M. Nothing like it: e (N - M).

    Note:
        m/(m + 1) is computed as 1 - 1/(1 + m), which is finite for every m. The gradient flows
        through both arguments; freeze the autoencoders' parameters, not their outputs.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: inputs that are not floating point.

    Reference:
        Shen, Zhang, Zhao, Bialkowski, Chen, Xu, "Label-Agnostic Forgetting: A Supervision-Free
        Unlearning in Deep Models", 2024. Verified against the authors' code.

    Example:
        >>> import torch
        >>> from lossary import LAFRepresentationUnlearningLoss
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0]])
        >>> LAFRepresentationUnlearningLoss()(x, x + 0.5, y, y - 1.0)
        tensor(0.8435)
    """

    def __init__(self, *, reduction: str = "sum") -> None:
        super().__init__(reduction=reduction)

    def per_sample(
        self, retain: Tensor, retain_recon: Tensor, forget: Tensor, forget_recon: Tensor
    ) -> Tensor:
        """Return the terms of the retained samples, then those of the forgotten ones."""
        check_embeddings(retain=retain, retain_recon=retain_recon)
        check_embeddings(forget=forget, forget_recon=forget_recon)
        check_device("forget", forget, retain)
        near, far = _saturating(retain_recon, retain), _saturating(forget_recon, forget)
        return torch.cat((near, -far))

    def _without_absent(self, inputs: tuple[Any, ...], weight: Tensor) -> tuple[Any, ...]:
        """Return the inputs cleaned by their parts of the weight: retained samples come first."""
        lengths = [x.shape[0] if isinstance(x, Tensor) and x.dim() else 0 for x in inputs]
        if weight.shape != (lengths[0] + lengths[2],):
            return super()._without_absent(inputs, weight) if weight.shape == (1,) else inputs
        kept, lost = weight[: lengths[0]], weight[lengths[0] :]
        return (
            *super()._without_absent(inputs[:2], kept),
            *super()._without_absent(inputs[2:], lost),
        )

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            limits=(("reconstructed without error", "N - M"),),
            smoothness=math.inf,
            unknown={
                "convex": "redescending",
                "lower": "1 of retained samples, -e of forgotten ones",
                "upper": "e of retained samples, -1 of forgotten ones",
                "lipschitz": "0.881 in each argument of a term, of which a value has one",
            },
            source="Shen et al. 2024; algebra",
        )


def _saturating(a: Tensor, b: Tensor) -> Tensor:
    """Return exp(m/(m + 1)) of the squared distances m."""
    return torch.exp(1.0 - 1.0 / (1.0 + (a - b).square().sum(1)))


class GradientMatchingLoss(Loss):
    r"""Distance between the gradients of synthetic and of real data, layer by layer.

    .. math:: L = \sum_{\text{layers}} \sum_{\text{rows } k}
              \Bigl(1 - \frac{\langle g_k, h_k \rangle}
              {\lVert g_k \rVert \lVert h_k \rVert + \epsilon}\Bigr)

    Dataset condensation: synthetic images are learnt such that training on them has the gradients g
    of training on the real ones, h. DC calls it once per class and adds up; DCC, with contrastive
    signals, calls it once, with the gradient on all synthetic images against
    :func:`contrastive_targets` of the classes' real gradients, after a warm-up by DC.

    Args:
        metric: ``"rowwise_cosine"`` (default), the formula: a row of a layer is what feeds one
            output, its parameters (o, i, h, w) taken as (o, i h w); parameters of one dimension,
            biases and scales, contribute 0 and count in no mean. ``"mse"``: the squared norm of the
            difference, of all parameters. ``"cos"``: one minus the cosine of all parameters,
            concatenated.
        eps: epsilon > 0, added to the product of the norms. Default 1e-6.
        reduction: see :class:`lossary.Loss`. Default ``"sum"``, the formula.

    Shape:
        synthetic, real: sequences of equally many tensors, at least one, of the same shapes in
        turn; or two tensors, whose first axis is that of the layers. Values (L,), one per layer;
        with ``"cos"`` one number, 0-dim, without ``weight``.

    Properties:
        Row-wise: in [0, 2 rows], up to epsilon. Unchanged by a positive scale of a row of either
        side, up to epsilon; a row of zeros costs 1. The gradient flows to the synthetic side alone.

    Limits:
        One class: DCC is DC.

    Note:
        The synthetic gradients need ``torch.autograd.grad(..., create_graph=True)``. Each row is
        scaled by its largest entry before norms are taken, which neither overflow nor underflow
        then; a row of zeros has finite derivatives of every order. No averaging over processes:
        give it averaged gradients.

    Raises:
        ValueError: ``metric`` unknown, ``eps`` not positive and finite, no layers, lengths, shapes
            or devices that differ.
        TypeError: ``eps`` not a number, inputs that are not sequences of floating-point tensors.

    Reference:
        Lee, Chun, Jung, Yun, Yoon, "Dataset Condensation with Contrastive Signals", 2022; Zhao,
        Mopuri, Bilen, "Dataset Condensation with Gradient Matching", 2021. Verified against the
        code of the former.

    Example:
        >>> import torch
        >>> from lossary import GradientMatchingLoss
        >>> real = [torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 1.0])]
        >>> synthetic = [torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([0.0, 0.0])]
        >>> GradientMatchingLoss()(synthetic, real)
        tensor(0.4000)
        >>> GradientMatchingLoss("mse")(synthetic, real)
        tensor(23.)
    """

    separable = False

    def __init__(
        self, metric: str = "rowwise_cosine", eps: float = 1e-6, *, reduction: str = "sum"
    ) -> None:
        super().__init__(reduction=reduction)
        check_choice("metric", metric, ("rowwise_cosine", "mse", "cos"))
        self.metric = metric
        self.eps = check_positive("eps", eps)

    def per_sample(self, synthetic: Gradients, real: Gradients) -> Tensor | tuple[Tensor, Tensor]:
        """Return the distance of every layer, or of all at once."""
        pairs = _matched(synthetic, real)
        if self.metric == "mse":
            return torch.stack([(g - h).square().sum() for g, h in pairs])
        if self.metric == "cos":
            g, h = (torch.cat([x.flatten() for x in side]) for side in zip(*pairs, strict=True))
            return self._distance(g, h) if len(g) else g.sum()
        rows = torch.tensor([float(g.dim() > 1) for g, _ in pairs], device=pairs[0][0].device)
        values = torch.stack([self._of_layer(g, h) for g, h in pairs])
        return values, rows.to(values.dtype)

    def _of_layer(self, g: Tensor, h: Tensor) -> Tensor:
        """Return the sum over the rows of a layer, 0 for one of one dimension."""
        if g.dim() > 1:
            return self._distance(g.flatten(1), h.flatten(1)).sum()
        return g.masked_fill(torch.ones_like(g, dtype=torch.bool), 0.0).sum()

    def _distance(self, g: Tensor, h: Tensor) -> Tensor:
        """Return 1 - <g, h>/(|g| |h| + eps) along the last axis."""
        (g, a), (h, b) = _scaled(g), _scaled(h)
        # In this order: the product of the two scales may leave the range of the dtype.
        eps = self.eps / a / b
        return 1.0 - (g * h).sum(-1) / (_norm(g) * _norm(h) + eps)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            limits=(("one class", "DCC is DC"),),
            unknown={
                "convex": "of cosines, except mse",
                "lower": "0 up to epsilon; the samples are layers",
                "upper": "2 per row up to epsilon, infinite for mse",
                "lipschitz": "1/epsilon near a row of zeros, infinite for mse",
                "smoothness": "smooth but for rows of zeros",
            },
            source="Lee et al. 2022",
        )


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x over its largest entry along the last axis, a constant, and that entry."""
    if not x.shape[-1]:
        return x, x.new_ones(x.shape[:-1])
    top = x.detach().abs().amax(-1)
    top = torch.where(top > 0.0, top, 1.0)
    return x / top.unsqueeze(-1), top


def _norm(x: Tensor) -> Tensor:
    """Return the norm along the last axis, 0 of zeros with derivatives of every order."""
    square = x.square().sum(-1)
    there = square > 0.0
    return torch.where(there, torch.where(there, square, 1.0).sqrt(), 0.0)


def _matched(synthetic: Gradients, real: Gradients) -> list[tuple[Tensor, Tensor]]:
    """Return the checked layers of both sides, the real one without a gradient."""
    for name, side in (("synthetic", synthetic), ("real", real)):
        _check_layers(name, side)
    if len(synthetic) != len(real):
        raise ValueError(f"real: expected {len(synthetic)} layers, as synthetic, got {len(real)}")
    pairs = []
    for i, (g, h) in enumerate(zip(synthetic, real, strict=True)):
        check_like(f"real[{i}]", h, f"synthetic[{i}]", g)
        pairs.append((_upcast(g), _upcast(h.detach())))
    return pairs


def _check_layers(name: str, side: Any) -> None:
    if not isinstance(side, Tensor | tuple | list):
        raise TypeError(f"{name}: expected a sequence of tensors, got {type(side).__name__}")
    if (isinstance(side, Tensor) and side.dim() == 0) or len(side) == 0:
        raise ValueError(f"{name}: expected at least one layer, got none")
    for i, x in enumerate(side):
        check_floating(f"{name}[{i}]", x)


def contrastive_targets(gradients: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    r"""Return the mean of the classes' gradients, layer by layer: the target of DCC.

    .. math:: h = \frac1C \sum_{c=1}^C \operatorname{sg}[\nabla L_c]

    With :class:`GradientMatchingLoss`: one match of the gradient on all synthetic images, of all
    classes together, against this. What the classes have in common, which a match per class is
    dominated by, then cancels no signal between them.

    Args:
        gradients: of every class the sequence of its gradients, one tensor per parameter; at least
            one class, all with the same shapes.

    Returns:
        A list of tensors, one per parameter, detached, in the dtype that came; half precision is
        averaged in float32, and stays there.

    Raises:
        ValueError: no classes, no layers, lengths, shapes or devices that differ.
        TypeError: gradients that are not sequences of floating-point tensors.

    Reference:
        Lee, Chun, Jung, Yun, Yoon, "Dataset Condensation with Contrastive Signals", 2022.

    Example:
        >>> import torch
        >>> from lossary import contrastive_targets
        >>> contrastive_targets([[torch.tensor([1.0, 0.0])], [torch.tensor([2.0, 4.0])]])
        [tensor([1.5000, 2.0000])]
    """
    if not isinstance(gradients, tuple | list):
        raise TypeError(
            f"gradients: expected a sequence of classes, got {type(gradients).__name__}"
        )
    if not gradients:
        raise ValueError("gradients: expected at least one class, got none")
    for c, layers in enumerate(gradients):
        name = f"gradients[{c}]"
        _check_layers(name, layers)
        if len(layers) != len(gradients[0]):
            raise ValueError(f"{name}: expected {len(gradients[0])} layers, got {len(layers)}")
        for i, x in enumerate(layers):
            check_like(f"{name}[{i}]", x, f"gradients[0][{i}]", gradients[0][i])
    return [
        torch.stack([_upcast(x.detach()) for x in layer]).mean(0)
        for layer in zip(*gradients, strict=True)
    ]


class AdaptiveMixLoss(Loss):
    r"""Pull the feature of a mixed input to the mixture of the features.

    .. math:: \ell = \frac1D \lVert f(x_\lambda) - t \rVert^2, \qquad
              t = \operatorname{sg}[\lambda f(x_a) + (1 - \lambda) f(x_b) + \varepsilon],
              \quad \varepsilon \sim N(0, \sigma^2)

    for an input x_lambda = lambda x_a + (1 - lambda) x_b. It shrinks the regions of the feature
    space that training samples take, so that a discriminator, or a classifier, is linear between
    them. Add it to the loss of either; a classifier takes h(lambda f_a + (1 - lambda) f_b) +
    h(f(x_lambda)) as logits, with the cross-entropy of mixup.

    Args:
        distance: ``"mse"`` (default), the mean of squares over the elements of a sample.
            ``"cosine"``: minus the cosine, as for the GAN.
        noise_std: sigma >= 0, finite. Default 0.05.
        reduction: see :class:`lossary.Loss`.

    Shape:
        mixed (N, ...), a (N, ...), b (N, ...): features, of one shape with at least one dimension
        after N; lam: a number in [0, 1], or a tensor of one, 0-dim, or of one per sample, (N,);
        noise: draws of a standard normal distribution in the shape of the features, which sigma
        scales, or ``None``: drawn here, from the global generator. Values (N,).

    Properties:
        ``"mse"``: l >= 0, convex and quadratic in the mixed feature, unbounded. ``"cosine"``:
        -1 <= l <= 1. No gradient to a and b, and none to lam. Separable.

    Limits:
        sigma = 0, lambda = 1 and f(x_mix) = f(x_a): 0 with ``"mse"``, -1 with ``"cosine"``.

    Note:
        lambda ~ Beta(1, 1) in the paper. Its classifier uses ``"mse"`` on normalised features, its
        GAN the cosine; neither is normalised here for ``"mse"``. A feature of zeros has cosine 0.

    Raises:
        ValueError: ``distance`` unknown, ``noise_std`` negative or infinite; shapes or devices that
            do not fit; lam outside [0, 1] (of tensors on the CPU, where looking costs nothing).
        TypeError: ``noise_std`` or lam not a number or tensor, features not floating point.

    Reference:
        Liu et al., "Improving GAN Training via Feature Space Shrinkage", 2023. Verified against the
        formulas of the authors' code.

    Example:
        >>> import torch
        >>> from lossary import AdaptiveMixLoss
        >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> AdaptiveMixLoss(noise_std=0.0)(a, a, b, 0.75)
        tensor(0.0625)
        >>> AdaptiveMixLoss("cosine", noise_std=0.0)(a, a, b, 0.75)
        tensor(-0.9487)
    """

    def __init__(
        self, distance: str = "mse", noise_std: float = 0.05, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        check_choice("distance", distance, ("mse", "cosine"))
        self.distance = distance
        self.noise_std = check_number("noise_std", noise_std, 0.0, high_open=True)

    def per_sample(
        self, mixed: Tensor, a: Tensor, b: Tensor, lam: float | Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Return the distance of every sample, unreduced."""
        check_floating("mixed", mixed)
        if mixed.dim() < 2 or 0 in mixed.shape[1:]:
            raise ValueError(f"mixed: expected shape (N, D, ...), got {tuple(mixed.shape)}")
        for name, x in (("a", a), ("b", b)):
            check_floating(name, x)
            check_like(name, x, "mixed", mixed)
        share = _share(lam, mixed)
        target = b.detach() + share * (a.detach() - b.detach())
        if noise is not None:
            check_floating("noise", noise)
            check_like("noise", noise, "mixed", mixed)
            target = target + self.noise_std * noise.detach()
        elif self.noise_std:
            target = target + self.noise_std * torch.randn_like(target)
        mixed, target = mixed.flatten(1), target.flatten(1)
        if self.distance == "mse":
            return (mixed - target).square().mean(1)
        return -(normalized(mixed) * normalized(target)).sum(1)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        if self.distance == "cosine":
            return Properties(
                lower=-1.0,
                upper=1.0,
                unknown={
                    "convex": "the cosine is not convex",
                    "lipschitz": "without bound near a feature of zeros",
                    "smoothness": "smooth but for a feature of zeros",
                },
                source="Liu et al. 2023",
            )
        return Properties(
            convex=True,
            lower=0.0,
            smoothness=math.inf,
            unknown={
                "upper": "infinite, along every direction of the mixed feature",
                "lipschitz": "infinite, likewise",
            },
            source="Liu et al. 2023",
        )


def _share(lam: float | Tensor, features: Tensor) -> float | Tensor:
    """Return the share of the first feature in the mixture, which broadcasts over the features."""
    if not isinstance(lam, Tensor):
        return check_number("lam", lam, 0.0, 1.0)
    check_tensor("lam", lam)
    check_floating("lam", lam)
    if lam.dim() > 0 and lam.shape != features.shape[:1]:
        raise ValueError(
            f"lam: expected a number, or shape ({len(features)},), got {tuple(lam.shape)}"
        )
    check_device("lam", lam, features)
    lam = lam.detach()
    if readable(lam):
        wrong = ~((lam >= 0.0) & (lam <= 1.0))
        if bool(wrong.any()):
            raise ValueError(f"lam: expected numbers in [0, 1], got {float(lam[wrong][0]):g}")
    shape = [-1] + [1] * (features.dim() - 1)
    return lam.to(features.dtype).reshape(shape)
