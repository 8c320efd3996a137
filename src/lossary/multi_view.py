r"""Contrast of more than two views: several projection heads, or three views of a sample.

.. math:: \ell_i = \sum_{\text{pairs of views of } i} \Bigl( -\frac{s_+}{\tau} + \log
              \sum_{\text{others}} e^{s/\tau} \Bigr)

The formula of NT-Xent where one pair of embeddings does not tell the whole: :class:`AMCLLoss` has
several heads, each with its own temperatures, :class:`RMTContrastiveLoss` a third view, that of the
source domain.
"""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from lossary import _distributed
from lossary._checks import (
    check_choice,
    check_device,
    check_embeddings,
    check_floating,
    check_int,
    check_like,
    check_number,
    check_positive,
)
from lossary._embedding_base import EmbeddingLoss, EmbeddingOptions
from lossary._numerics import normalized
from lossary._properties import Properties


class AMCLLoss(EmbeddingLoss):
    r"""Adaptive multi-head contrast: a learnt temperature for every head and every pair.

    .. math:: \ell_i = \sum_c \Bigl[ -\frac{s^c_{i+}}{\tau^c_{i+}} +
              \frac{s^c_{in^*}}{\tau^c_{in^*}} + \beta\, \Omega(\tau^c_{i+}) -
              \beta\, \Omega(\tau^c_{in^*}) \Bigr], \qquad
              \Omega(\tau) = \frac{d'}{2} \log \tau + \frac1\tau

    with the cosine s of two rows of head c, and n* the row of another sample, in either view, of
    the largest cosine. The temperature of a pair (a, b) is

    .. math:: \tau^c = \tau_l + (\tau_h - \tau_l)\, \sigma\bigl(\varphi_c([a; b])\bigr)

    with a small network phi of every head: 2 D -> ``hidden`` -> 1, ReLU between. The value of a
    sample is the mean over its two views as the anchor. Use it where augmentations are so strong
    that one similarity at one temperature does not describe all positive pairs.

    Args:
        num_heads: C >= 1, number of projection heads.
        dim: D >= 1, width of a head's output.
        beta: >= 0, weight of Omega. Default 0.1.
        tau_low: > 0, below ``tau_high``. Default 1e-5, as published; 1e-2 is safer, as the value
            may grow as 1/tau_low.
        tau_high: the largest temperature. Default 2.
        hidden: >= 1, hidden width of phi. Default 128.
        negatives: ``"max"`` (default): the nearest other row, as printed. ``"lse"``: the soft form,
            log sum_n exp(s_n/tau_n - beta Omega(tau_n)), of which every row gets a gradient; it
            needs the temperatures of all pairs, (2N)^2 x C x ``hidden`` numbers. It is the
            library's.
        omega_dim: d' > 0. Default ``None``: D.
        shared: one phi for all heads. Default ``False``.
        gather: whether the rows of all processes are the candidates: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`.

    Shape:
        z1 (C, N, D), z2 (C, N, D): of head c, row i of both is a view of sample i. Values (N,). The
        parameters of phi are ``weight1`` (C, hidden, 2 D), ``bias1`` (C, hidden), ``weight2``
        (C, hidden) and ``bias2`` (C,), with 1 for C if ``shared``; give them to the optimiser. C
        matrices of 2N x 2N similarities are held.

    Properties:
        The loss is batch-coupled. The same with z1 and z2 exchanged, and for any length of a row.
        Omega is least at tau = 2/d' and keeps the temperature of the positive off zero; that of the
        negative enters with the other sign, and only the range of tau bounds the loss below. With
        beta = 1 and unit rows, -s/tau + Omega(tau) = -log Normal(z_+; z, tau I) - (d'/2) log 2 pi.

    Limits:
        tau_low -> tau_high, beta = 0, one head: (max_n s_n - s_+)/tau; ``"lse"`` lies above it by
        at most the logarithm of the number of negatives, and is the decoupled contrastive loss.
        N = 1, over all processes: the terms of the negatives are 0.

    Note:
        phi sees the rows divided by their norms. That, and that n* is the nearest by the cosine and
        not by cosine/tau, is the library's reading: UNVERIFIED. Omega's d' is the width of the
        features; the published code takes a size that is the batch's. With several processes
        (``gather``) own anchors are held against the rows of all, and ``"mean"`` divides by what
        all have, times their number: averaged over the processes, the parameters' gradient is that
        of one process with the whole batch, also of unequal batches. All of them must call it,
        forward and backward.

    Raises:
        ValueError: hyper-parameters outside their ranges; z1 not (C, N, D) with this C and D; views
            of different shapes; a ``process_group`` without this process.
        TypeError: embeddings that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Wang, Koniusz, Gedeon, Zheng, "Adaptive Multi-head Contrastive Learning", 2024; the forms of
        that paper for other losses (SimSiam, Barlow Twins) are not here.

    Example:
        >>> import torch
        >>> from lossary import AMCLLoss
        >>> _ = torch.manual_seed(0)
        >>> loss = AMCLLoss(num_heads=2, dim=3, tau_low=0.01)
        >>> z1, z2 = torch.randn(2, 2, 4, 3)
        >>> loss(z1, z2)
        tensor(1.6726, grad_fn=<MeanBackward0>)
    """

    weight1: nn.Parameter
    bias1: nn.Parameter
    weight2: nn.Parameter
    bias2: nn.Parameter

    def __init__(
        self,
        num_heads: int,
        dim: int,
        beta: float = 0.1,
        tau_low: float = 1e-5,
        tau_high: float = 2.0,
        hidden: int = 128,
        negatives: str = "max",
        omega_dim: int | None = None,
        shared: bool = False,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(**options)
        self.num_heads = check_int("num_heads", num_heads, 1)
        self.dim = check_int("dim", dim, 1)
        self.beta = check_number("beta", beta, 0.0, high_open=True)
        self.tau_low = check_positive("tau_low", tau_low)
        self.tau_high = check_positive("tau_high", tau_high, self.tau_low)
        self.hidden = check_int("hidden", hidden, 1)
        check_choice("negatives", negatives, ("max", "lse"))
        self.negatives = negatives
        self.omega_dim = None if omega_dim is None else check_int("omega_dim", omega_dim, 1)
        check_choice("shared", shared, (True, False))
        self.shared = shared
        networks = 1 if shared else self.num_heads
        self.weight1 = nn.Parameter(torch.empty(networks, self.hidden, 2 * self.dim))
        self.bias1 = nn.Parameter(torch.empty(networks, self.hidden))
        self.weight2 = nn.Parameter(torch.empty(networks, self.hidden))
        self.bias2 = nn.Parameter(torch.empty(networks))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw phi anew, as ``nn.Linear`` draws its layers."""
        for width, *layer in (
            (2 * self.dim, self.weight1, self.bias1),
            (self.hidden, self.weight2, self.bias2),
        ):
            for parameter in layer:
                nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)

    def per_sample(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        check_floating("z1", z1)
        heads, n = self.num_heads, z1.shape[1] if z1.dim() == 3 else 0
        if z1.shape != (heads, n, self.dim):
            raise ValueError(
                f"z1: expected shape ({heads}, N, {self.dim}), of num_heads and dim, "
                f"got {tuple(z1.shape)}"
            )
        check_floating("z2", z2)
        check_like("z2", z2, "z1", z1)
        check_device("z1", z1, self.weight1)
        views = self.units(z1, z2)
        every, first = views, 0
        if self._gathers():
            rows = (z.transpose(0, 1) for z in views)
            every, first = _distributed.gather_with_gradient(*rows, group=self.process_group)
            every = [z.transpose(0, 1) for z in every]
        z, other, keys = torch.cat(views, 1), torch.cat(views[::-1], 1), torch.cat(every, 1)
        tau = self._temperature(self._half(z, 0) + self._half(other, 1))
        value = self.beta * self._omega(tau) - (z * other).sum(2) / tau
        total = every[0].shape[1]
        if total > 1:
            sample = torch.arange(first, first + n, device=z.device).repeat(2).unsqueeze(1)
            itself = sample == torch.arange(total, device=z.device).repeat(2)
            value = value + self._push(z, keys, itself)
        return (value[:, :n] + value[:, n:]).sum(0) / 2

    def _push(self, z: Tensor, keys: Tensor, itself: Tensor) -> Tensor:
        """Return the terms of the negatives of every row, (C, 2N)."""
        s = z @ keys.mT
        if self.negatives == "lse":
            pairs = self._half(z, 0).unsqueeze(2) + self._half(keys, 1).unsqueeze(1)
            tau = self._temperature(pairs)
            scores = s / tau - self.beta * self._omega(tau)
            return scores.masked_fill(itself, -math.inf).logsumexp(2)
        nearest = s.detach().masked_fill(itself, -math.inf).argmax(2, keepdim=True)
        negative = keys.gather(1, nearest.expand(-1, -1, self.dim))
        tau = self._temperature(self._half(z, 0) + self._half(negative, 1))
        return s.gather(2, nearest).squeeze(2) / tau - self.beta * self._omega(tau)

    def _half(self, z: Tensor, side: int) -> Tensor:
        """Return what the rows add to the hidden layer as the first or the second of a pair."""
        weight = self.weight1.to(z.dtype).chunk(2, 2)[side]
        return z @ weight.mT

    def _temperature(self, pairs: Tensor) -> Tensor:
        """Return tau of pairs whose halves are added up, (C, ..., hidden)."""
        shape = (-1, *[1] * (pairs.dim() - 2), self.hidden)
        bias1, weight2, bias2 = (x.to(pairs.dtype) for x in (self.bias1, self.weight2, self.bias2))
        active = (pairs + bias1.view(shape)).relu()
        logit = (active * weight2.view(shape)).sum(-1) + bias2.view(shape[:-1])
        return self.tau_low + (self.tau_high - self.tau_low) * logit.sigmoid()

    def _omega(self, tau: Tensor) -> Tensor:
        width = self.dim if self.omega_dim is None else self.omega_dim
        return width / 2 * tau.log() + 1.0 / tau

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        ranged = "finite, as tau is in [tau_low, tau_high], but the bound depends on the networks"
        return Properties(
            limits=(("tau_low -> tau_high, beta = 0", "(max_n s_n - s_+)/tau"),),
            unknown={
                "convex": "linear in the cosines, at one temperature, not in the embeddings",
                "lower": ranged,
                "upper": ranged,
                "lipschitz": "without bound near a row of zeros",
                "smoothness": "jumps in its slope where the nearest negative changes",
            },
            source="Wang et al. 2024",
        )


class RMTContrastiveLoss(EmbeddingLoss):
    r"""Robust mean teacher: NT-Xent of three views, nearest source prototype, feature, augmented.

    .. math:: \ell_i = \frac13 \sum_{v=1}^3 \Bigl[ \log \sum_{b \ne a} e^{s_{ab}/\tau} -
              \frac12 \sum_{p \in P(a)} \frac{s_{ap}}{\tau} \Bigr], \qquad a = (v, i)

    over the 3N rows (prototype_{k(i)}, features_i, features_aug_i), projected and normalised; the
    positives P(a) of a row are the other two views of its sample, and k(i) is the prototype with
    the largest cosine to features_i. Use it at test time, to keep the features of a drifting stream
    near the classes of the source; its companion is a symmetric cross-entropy between student and
    teacher (:class:`lossary.SymmetricConsistencyLoss`).

    Args:
        temperature: tau > 0. Default 0.1.
        projector: a module that maps rows (M, D) to (M, D'), called once on all 3N rows of this
            process, in its own dtype; its parameters are the loss's. Default ``None``: the
            features themselves.
        gather: whether the rows of all processes are the candidates: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`.

    Shape:
        features (N, D), features_aug (N, D), source_prototypes (C, D). Values (N,), one per sample.
        A matrix of 3N x 3N similarities is held.

    Properties:
        The loss is batch-coupled. It lies between log 2 and log(3N - 1) + 2/tau. The choice of the
        prototypes has no gradient, nor have they; but they pass the projector, which has. Two
        samples with the same prototype are a negative pair, of cosine 1, all the same. Without a
        projector, unchanged by a rotation of all, and by the length of any row.

    Limits:
        It is the supervised contrastive loss of the 3N rows, labelled by their samples. N = 1:
        log 2 where both similarities of each row are equal.

    Note:
        In the published code anchors without all views skip the projector; that is not offered.
        With several processes (``gather``) own anchors are held against the rows of all, and
        ``"mean"`` divides by what all have, times their number: averaged over the processes, the
        parameters' gradient is that of one process with the whole batch, also of unequal batches.
        All of them must call it, forward and backward. The prototypes are the same everywhere.

    Raises:
        ValueError: ``temperature`` <= 0; features of different shapes; prototypes that are not
            (C, D), C >= 1; a ``projector`` that does not map rows to rows; a ``process_group``
            without this process.
        TypeError: a ``projector`` that is not a module; inputs that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Dobler, Marsden, Yang, "Robust Mean Teacher for Continual and Gradual Test-Time Adaptation",
        2023.

    Example:
        >>> import torch
        >>> from lossary import RMTContrastiveLoss
        >>> features = torch.tensor([[1.0, 0.2], [0.1, 2.0]])
        >>> augmented = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
        >>> RMTContrastiveLoss(0.5)(features, augmented, torch.eye(2))
        tensor(1.0778)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        projector: nn.Module | None = None,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(**options)
        self.temperature = check_positive("temperature", temperature)
        if projector is not None and not isinstance(projector, nn.Module):
            raise TypeError(f"projector: expected a module or None, got {type(projector).__name__}")
        self.projector = projector

    def per_sample(
        self, features: Tensor, features_aug: Tensor, source_prototypes: Tensor
    ) -> Tensor:
        """Return the loss of every sample, unreduced."""
        check_embeddings(features=features, features_aug=features_aug)
        check_floating("source_prototypes", source_prototypes)
        n, width = features.shape
        shape = tuple(source_prototypes.shape)
        if len(shape) != 2 or shape[0] == 0 or shape[1] != width:
            raise ValueError(f"source_prototypes: expected shape (C, {width}), C >= 1, got {shape}")
        check_device("source_prototypes", source_prototypes, features)
        sources = source_prototypes.detach().to(features.dtype)
        nearest = (normalized(features.detach()) @ normalized(sources).t()).argmax(1)
        stacked = torch.cat((sources[nearest], features, features_aug))
        (z,) = self.units(self._projected(stacked))
        keys, m, first = z, n, 0
        if self._gathers():
            views = z.view(3, n, z.shape[1])
            every, first = _distributed.gather_with_gradient(*views, group=self.process_group)
            keys, m = torch.cat(every), len(every[0])
        sample = torch.arange(first, first + n, device=z.device)
        rows = torch.cat((sample, sample + m, sample + 2 * m))
        itself = rows.unsqueeze(1) == torch.arange(3 * m, device=z.device)
        s = z @ keys.t() / self.temperature
        others = torch.stack((rows.roll(n), rows.roll(2 * n)), 1)
        lse = s.masked_fill(itself, -math.inf).logsumexp(1)
        return (lse - s.gather(1, others).mean(1)).view(3, n).mean(0)

    def _projected(self, rows: Tensor) -> Tensor:
        """Return the rows as the projector maps them, which may be in half precision."""
        if self.projector is None:
            return rows
        own = next(self.projector.parameters(), rows)
        out: Tensor = self.projector(rows.to(own.dtype))
        if out.dim() != 2 or len(out) != len(rows):
            raise ValueError(
                f"projector: expected rows for rows, ({len(rows)}, D'), got {tuple(out.shape)}"
            )
        return out.to(rows.dtype)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            lower=math.log(2.0),
            limits=(("rows labelled by their samples", "the supervised contrastive loss"),),
            unknown={
                "convex": "convex in the similarities, which are not linear in the features",
                "upper": "log(3N - 1) + 2/tau, which grows with the batch",
                "lipschitz": "without bound near a row of zeros",
                "smoothness": "jumps where the nearest prototype changes",
            },
            source="Dobler et al. 2023",
        )
