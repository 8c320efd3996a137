r"""Contrast at several levels of a time series: observation, sample, trial and patient.

.. math:: L = \sum_{\text{level}} \lambda_{\text{level}} L_{\text{level}}

Medical series are nested: a patient has trials, a trial is cut into samples, a sample is a row of
observations. Each level says in its own way which pairs belong together.
"""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn

from lossary import _distributed
from lossary._checks import check_choice, check_floating, check_like, check_number, check_positive
from lossary._embedding_base import EmbeddingLoss, EmbeddingOptions, check_labels, cross_entropy
from lossary._numerics import normalized
from lossary._properties import Properties

#: Of every level, its temperature and whether it is evaluated at several scales of time.
_LEVELS = {
    "observation": (1.0, True),
    "sample": (1.0, True),
    "trial": (0.1, False),
    "patient": (0.1, False),
}


class COMETLoss(EmbeddingLoss):
    r"""COMET: contrast at one level of a hierarchy of time series, between two views.

    Observation, for sample i, over the 2T rows of both its views, with the raw inner product:

    .. math:: \ell_i = \frac{1}{2T} \sum_{a} \Bigl[ -\frac{\langle z_a, z_{a'} \rangle}{\tau} +
              \log \sum_{b \ne a} e^{\langle z_a, z_b \rangle/\tau} \Bigr]

    where a' is the same time in the other view. Sample: the same with the axes of time and batch
    exchanged, over the 2B rows of each time. Trial and patient, with the cosine c between the first
    view of sample i and the second of sample j, over pairs of one trial or patient:

    .. math:: L = \frac12 \Bigl[ \operatorname*{mean}_{i < j} \Bigl( \log \sum_k e^{c_{ik}/\tau} -
              \frac{c_{ij}}{\tau} \Bigr) + \operatorname*{mean}_{i > j} \Bigl( \log \sum_k
              e^{c_{kj}/\tau} - \frac{c_{ij}}{\tau} \Bigr) \Bigr]

    Use it to learn from long recordings of few patients; :class:`COMETTotalLoss` has all levels.

    Args:
        level: ``"observation"`` (default), ``"sample"``, ``"trial"`` or ``"patient"``; the last two
            differ in their ids alone.
        temperature: tau > 0. Default ``None``: 1 for observation and sample, 0.1 for the others.
        hierarchical: take the mean over scales: at each following one, the time axis is halved by
            the maximum of neighbours (an odd last one is dropped), as long as T > 1. Default
            ``None``: ``True`` for observation and sample, ``False`` for the others.
        gather: whether the rows of all processes are the candidates: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`. The formulas are ``"mean"``.

    Shape:
        z1 (B, T, C), z2 (B, T, C), two views of B samples over T times with C channels; ids (B,),
        integers, the trial or the patient of each sample, ``None`` for the other levels. Values
        (B,): for trial and patient, B times the sample's share of both sums, as the row i and as
        the column j of the formula, over the counts of the whole batch. Dense, B matrices of
        2T x 2T similarities, T of 2B x 2B, or one of B x B.

    Properties:
        The loss is batch-coupled, but for observation. >= 0. Observation and sample are the same
        with z1 and z2 exchanged, and under a rotation of the channels, at one scale. Trial and
        patient do not depend on the length of a channel over time; the own pair (i, i) is among the
        candidates, and never a positive.

    Limits:
        Observation at one scale is sample with the first two axes exchanged. T = 1 (observation, or
        any level with ``hierarchical``), B = 1 (sample), no two samples with one id: 0, attached.
        All similarities equal: log(2T - 1), log(2B - 1), log B.

    Note:
        Inner products of rows that are not normalised may be huge; observation and sample are
        computed from the log-odds of the positive, so that tiny values keep their digits. Where
        both neighbours are equal, each gets half of the gradient of their maximum. With several
        processes (``gather``) own anchors are held against the rows of all, the counts are of all,
        and ``"mean"`` divides by what all have, times their number: averaged over the processes,
        the parameters' gradient is that of one process with the whole batch, also of unequal
        batches. All of them must call it, forward and backward.

    Raises:
        ValueError: an unknown ``level``; ``temperature`` <= 0; views that are not (B, T, C) of one
            shape, with T, C >= 1; ids not of shape (B,); a ``process_group`` without this process.
        TypeError: embeddings that are not floating-point tensors; ids that are not integers,
            missing for trial or patient, or given for another level.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Wang, Han, Wang, Zhang, "Contrast Everything: A Hierarchical Contrastive Framework for
        Medical Time-Series", 2023; means, scales and temperatures are those of the published code.

    Example:
        >>> import torch
        >>> from lossary import COMETLoss
        >>> z1 = torch.tensor([[[1.0], [0.0]], [[0.0], [2.0]]])
        >>> z2 = torch.tensor([[[2.0], [1.0]], [[1.0], [0.0]]])
        >>> COMETLoss("observation")(z1, z2)
        tensor(1.4186)
        >>> COMETLoss("patient")(z1, z2, torch.tensor([7, 7]))
        tensor(2.3910)
    """

    def __init__(
        self,
        level: str = "observation",
        temperature: float | None = None,
        hierarchical: bool | None = None,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(False, **options)
        check_choice("level", level, tuple(_LEVELS))
        usual, scales = _LEVELS[level]
        if temperature is not None:
            usual = check_positive("temperature", temperature)
        check_choice("hierarchical", hierarchical, (True, False, None))
        self.level = level
        self.temperature = usual
        self.hierarchical = scales if hierarchical is None else hierarchical

    def per_sample(self, z1: Tensor, z2: Tensor, ids: Tensor | None = None) -> Tensor:
        """Return the loss of every sample, unreduced."""
        _check_views(z1=z1, z2=z2)
        if self.level in ("trial", "patient"):
            check_labels(ids, z1, "ids", "sample")
        elif ids is not None:
            raise TypeError(f"ids: expected None at level {self.level!r}, got {type(ids).__name__}")
        contrast: dict[str, Callable[..., Tensor]] = {
            "observation": self._between_times,
            "sample": self._between_samples,
        }
        at_scale = contrast.get(self.level, self._within_ids)
        if not self.hierarchical:
            return at_scale(z1, z2, ids)
        values = []
        while z1.shape[1] > 1:
            values.append(at_scale(z1, z2, ids))
            z1, z2 = _halved(z1), _halved(z2)
        if values:
            return torch.stack(values).mean(0)
        return (z1[:, :0] + z2[:, :0]).sum((1, 2))

    def _between_times(self, z1: Tensor, z2: Tensor, ids: None) -> Tensor:
        return self._other_view(z1, z2, z1, z2, 0).mean(1)

    def _between_samples(self, z1: Tensor, z2: Tensor, ids: None) -> Tensor:
        keys, first = [z1, z2], 0
        if self._gathers():
            keys, first = _distributed.gather_with_gradient(z1, z2, group=self.process_group)
        own1, own2, keys1, keys2 = (z.transpose(0, 1) for z in (z1, z2, *keys))
        return self._other_view(own1, own2, keys1, keys2, first).mean(0)

    def _other_view(self, z1: Tensor, z2: Tensor, k1: Tensor, k2: Tensor, first: int) -> Tensor:
        """Return, of both views (G, n, C), how well each row tells the other view's from the rest.

        The rest are the keys (G, m, C) of the same group, of which the own rows are those from
        ``first`` on. Values (G, n), the mean over both views.
        """
        n, m = z1.shape[1], k1.shape[1]
        z, keys = torch.cat((z1, z2), 1), torch.cat((k1, k2), 1)
        at = torch.arange(first, first + n, device=z.device)
        rows = torch.cat((at, at + m))
        itself = rows.unsqueeze(1) == torch.arange(2 * m, device=z.device)
        logits = z @ keys.mT / self.temperature
        logits = logits.masked_fill(itself, -torch.inf)
        value = cross_entropy(logits, rows.roll(n).expand(len(z), 2 * n), class_dim=2)
        return (value[:, :n] + value[:, n:]) / 2

    def _within_ids(self, z1: Tensor, z2: Tensor, ids: Tensor) -> Tensor:
        u1, u2 = (normalized(normalized(z.mT).flatten(1)) for z in (z1, z2))
        keys, every, first = [u1, u2], ids, 0
        if self._gathers():
            group = self.process_group
            keys, first = _distributed.gather_with_gradient(u1, u2, group=group)
            (every,) = _distributed.gather_rows(ids, group=group)
        columns = torch.arange(len(every), device=u1.device)
        later = columns > columns[first : first + len(ids)].unsqueeze(1)
        pairs = later & (ids.unsqueeze(1) == every)
        count = pairs.sum()
        if self._gathers():
            count = _distributed.sum_over_ranks(count, self.process_group)
        # With view 1 as the anchor, and with view 2: the pairs of the one are those of the other.
        total = sum(self._far(own, k, pairs) for own, k in ((u1, keys[1]), (u2, keys[0])))
        return total * len(every) / (2 * count.clamp(min=1))

    def _far(self, own: Tensor, keys: Tensor, pairs: Tensor) -> Tensor:
        """Return every row's sum, over its pairs, of the loss of telling them from all."""
        logits = own @ keys.t() / self.temperature
        excess = logits.logsumexp(1, keepdim=True) - logits
        return torch.where(pairs, excess, 0.0).sum(1)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        unknown = {
            "convex": "convex in the similarities, which are not linear in the embeddings",
            "lipschitz": "grows with the embeddings, or without bound near a channel of zeros",
        }
        if self.level in ("trial", "patient"):
            unknown["upper"] = "log B + 2/tau, which grows with the batch"
            unknown["smoothness"] = "smooth but for channels of zeros, where the cosine jumps"
        else:
            unknown["upper"] = "unbounded unless there is one time or sample alone"
            unknown["smoothness"] = "smooth at one scale; with several, kinks of the maxima"
        return Properties(
            lower=0.0,
            limits=(("all similarities equal", "the logarithm of the number of candidates"),),
            unknown=unknown,
            source="Wang et al. 2023",
        )


def _check_views(**views: Tensor) -> None:
    """Raise an error unless these are floating-point series (B, T, C) of one shape."""
    first, like = next(iter(views.items()))
    for name, z in views.items():
        check_floating(name, z)
        if z.dim() != 3 or z.shape[1] == 0 or z.shape[2] == 0:
            raise ValueError(
                f"{name}: expected shape (B, T, C), T and C >= 1, got {tuple(z.shape)}"
            )
        check_like(name, z, first, like)


def _halved(z: Tensor) -> Tensor:
    """Return the maxima of neighbours in time, without an odd last one."""
    half = z.shape[1] // 2
    return torch.maximum(z[:, : 2 * half : 2], z[:, 1 : 2 * half : 2])


class COMETTotalLoss(EmbeddingLoss):
    r"""COMET: the weighted sum of the contrasts at all four levels.

    .. math:: L = \lambda_P L_{\text{patient}} + \lambda_R L_{\text{trial}} +
              \lambda_S L_{\text{sample}} + \lambda_O L_{\text{observation}}

    with the terms of :class:`COMETLoss` at its defaults. Every level has a pair of augmented views
    of its own; the same pair may stand for all.

    Args:
        factors: the four weights >= 0, of patient, trial, sample and observation. Default 0.25
            each.
        gather: whether the rows of all processes are the candidates: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`. The formula is ``"mean"``.

    Shape:
        patient1, patient2, trial1, trial2, sample1, sample2, observation1, observation2: (B, T, C)
        each, T and C the same within a pair; patient_ids (B,), trial_ids (B,), integers. Values
        (B,), one per sample.

    Properties:
        The loss is batch-coupled. >= 0. Linear in the factors.

    Limits:
        One factor 1, the others 0: :class:`COMETLoss` at that level.

    Note:
        The published code multiplies the sample and the observation term alone by their factors;
        here, as in the paper, all four are. With several processes see :class:`COMETLoss`.

    Raises:
        ValueError: ``factors`` that are not four numbers >= 0; levels with different numbers of
            samples; what :class:`COMETLoss` refuses; a ``process_group`` without this process.
        TypeError: embeddings that are not floating-point tensors; ids that are not integers.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Wang, Han, Wang, Zhang, "Contrast Everything: A Hierarchical Contrastive Framework for
        Medical Time-Series", 2023.

    Example:
        >>> import torch
        >>> from lossary import COMETTotalLoss
        >>> z1 = torch.tensor([[[1.0], [0.0]], [[0.0], [2.0]]])
        >>> z2 = torch.tensor([[[2.0], [1.0]], [[1.0], [0.0]]])
        >>> patient, trial = torch.tensor([7, 7]), torch.tensor([1, 2])
        >>> COMETTotalLoss()(z1, z2, z1, z2, z1, z2, z1, z2, patient, trial)
        tensor(1.3071)
    """

    def __init__(
        self,
        factors: tuple[float, float, float, float] = (0.25, 0.25, 0.25, 0.25),
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(False, **options)
        if not isinstance(factors, tuple | list) or len(factors) != 4:
            raise ValueError(f"factors: expected four numbers, got {factors!r}")
        self.factors = tuple(check_number("factors", f, 0.0, high_open=True) for f in factors)
        self.levels = nn.ModuleList(
            COMETLoss(level, gather=self.gather, process_group=self.process_group)
            for level in ("patient", "trial", "sample", "observation")
        )

    def per_sample(
        self,
        patient1: Tensor,
        patient2: Tensor,
        trial1: Tensor,
        trial2: Tensor,
        sample1: Tensor,
        sample2: Tensor,
        observation1: Tensor,
        observation2: Tensor,
        patient_ids: Tensor,
        trial_ids: Tensor,
    ) -> Tensor:
        """Return the loss of every sample, unreduced."""
        views = {
            "patient": (patient1, patient2),
            "trial": (trial1, trial2),
            "sample": (sample1, sample2),
            "observation": (observation1, observation2),
        }
        for level, (z1, z2) in views.items():
            _check_views(**{f"{level}1": z1, f"{level}2": z2})
            if len(z1) != len(patient1):
                raise ValueError(
                    f"{level}1: expected the {len(patient1)} samples of patient1, got {len(z1)}"
                )
        ids = {"patient": patient_ids, "trial": trial_ids}
        for level, of_level in ids.items():
            check_labels(of_level, patient1, f"{level}_ids", "sample")
        values = []
        for factor, part in zip(self.factors, self.levels, strict=True):
            assert isinstance(part, COMETLoss)
            value = part.per_sample(*views[part.level], ids.get(part.level))
            values.append(factor * value)
        return torch.stack(values).sum(0)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            lower=0.0,
            limits=(("one factor 1, the others 0", "COMETLoss at that level"),),
            unknown={
                "convex": "convex in the similarities, which are not linear in the embeddings",
                "upper": "unbounded where sample or observation count",
                "lipschitz": "grows with the embeddings",
                "smoothness": "kinks of the maxima over neighbours in time",
            },
            source="Wang et al. 2023",
        )
