r"""Global contrastive losses: contrast with the whole dataset, not with the batch alone.

.. math:: F = \frac1n \sum_i \tau_i \log \frac{1}{|S_i|} \sum_{z \in S_i}
              e^{(s_i(z) - s_i^+)/\tau_i}\ [\, + \tau_i\, \rho\,]

The mean of exponentials over an anchor's negatives S_i is remembered per sample, as a moving
average u_i over the batches in which i occurs. A negative then pushes with exp(s/tau_i)/u_i: small
batches estimate the gradient over the whole dataset, where InfoNCE needs large ones. With a
temperature for every sample, tau_i rises where a few negatives stand out, and falls where all are
alike.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from lossary import _distributed, _similarity, _softmax
from lossary._base import Loss, LossOptions, _upcast
from lossary._checks import check_choice, check_embeddings, check_int, check_number, check_positive
from lossary._numerics import normalized
from lossary._properties import Properties
from lossary._state import PerSampleState


class _GlobalOptions(LossOptions, total=False):
    """The keywords that the global contrastive losses share."""

    eta: float
    beta: float
    grad_clip: float | None
    gamma_schedule: str
    gamma_decay_epochs: int | None
    normalize: bool
    state_dtype: torch.dtype
    gather: bool | str
    process_group: Any
    tile_size: int | None


class _Dense:
    """Similarities (B, M) to the keys, of which some are negatives."""

    def __init__(self, near: Tensor, negative: Tensor) -> None:
        self.near, self.negative, self.dtype = near, negative, near.dtype
        self.log_count = negative.sum(1).to(near.dtype).log()

    def log_mean(self, tau: Tensor) -> Tensor:
        """Return the logarithm of the mean of exp(s/tau) over the negatives, as a constant."""
        exponents = self.near.detach() / tau.unsqueeze(1)
        self.exponents = exponents.masked_fill(~self.negative, -math.inf)
        return self.exponents.logsumexp(1) - self.log_count

    def surrogate(self, tau: Tensor, log_u: Tensor) -> Tensor:
        """Return the mean of sg[exp(s/tau)/u] s over the negatives, after ``log_mean``."""
        weights = torch.exp(self.exponents - (log_u + self.log_count).unsqueeze(1))
        return (weights * self.near).sum(1)


class _Tiled:
    """The same of queries (B, D) and keys (M, D), less ``own`` (B,), without the matrix."""

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor,
        masked: Tensor,
        own: Tensor | None,
        loss: "_GlobalContrastive",
    ) -> None:
        self.queries, self.keys = queries, keys
        self.mask = _similarity.Mask(masked)
        self.own = queries.new_zeros(len(queries)) if own is None else own
        assert loss.tile_size is not None
        self.dtype = queries.dtype
        self.tile_size, self.normalize = loss.tile_size, loss.normalize
        self.log_count = math.log(len(keys) - masked.shape[1]) if len(keys) else 0.0

    def log_mean(self, tau: Tensor) -> Tensor:
        known = self.normalize and len(tau) > 0 and _softmax.readable(tau)
        self.bound = 1.0 / float(tau.min()) if known else math.inf
        self.lse, self.mean = _similarity.log_sum_exp_and_mean(
            self.queries.detach() / tau.unsqueeze(1),
            self.keys.detach(),
            self.mask,
            tile_size=self.tile_size,
            bound=self.bound,
        )
        return self.lse - self.own.detach() / tau - self.log_count

    def surrogate(self, tau: Tensor, log_u: Tensor) -> Tensor:
        log_norm = log_u + self.log_count + self.own.detach() / tau
        mass = torch.exp(self.lse - log_norm)
        value = _similarity.weighted_sum(
            self.queries / tau.unsqueeze(1),
            self.keys,
            self.mask,
            log_norm,
            mass * self.mean,
            tile_size=self.tile_size,
            bound=self.bound,
        )
        return tau * value - mass * self.own


_Near = _Dense | _Tiled


class _Anchors(NamedTuple):
    """What is seen from one set of anchors."""

    #: The suffix of the buffers in which they are remembered.
    side: str
    samples: Tensor
    near: _Near
    #: The similarities to the positives.
    positive: Tensor | float


class _GlobalContrastive(Loss, PerSampleState):
    """Moving averages and temperatures, for one set of anchors or two."""

    separable = False
    epoch: Tensor
    _sides: tuple[str, ...]
    #: What the anchors of a sample count together: their sum, or their mean.
    _share: float
    #: Who the anchors are: the only thing that a subclass writes.
    _anchors: Callable[[Tensor, Tensor, Tensor, Tensor | None], list[_Anchors]]

    def __init__(
        self,
        num_samples: int,
        temperature: float,
        gamma: float,
        individualized: bool,
        tau_min: float,
        tau_max: float,
        rho: float,
        *,
        eta: float = 0.01,
        beta: float = 0.9,
        grad_clip: float | None = None,
        gamma_schedule: str = "constant",
        gamma_decay_epochs: int | None = None,
        normalize: bool = True,
        state_dtype: torch.dtype = torch.float32,
        gather: bool | str = "auto",
        process_group: Any = None,
        tile_size: int | None = None,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.temperature = check_positive("temperature", temperature)
        self.gamma = check_number("gamma", gamma, 0.0, 1.0, low_open=True)
        check_choice("individualized", individualized, (True, False))
        self.individualized = individualized
        self.tau_min = check_positive("tau_min", tau_min)
        self.tau_max = check_number("tau_max", tau_max, self.tau_min, high_open=True)
        if individualized:
            check_number("temperature", temperature, self.tau_min, self.tau_max)
        self.rho = check_number("rho", rho, 0.0, high_open=True)
        self.eta = check_positive("eta", eta)
        self.beta = check_number("beta", beta, 0.0, 1.0, low_open=True)
        self.grad_clip = grad_clip
        if grad_clip is not None:
            check_positive("grad_clip", grad_clip)
        check_choice("gamma_schedule", gamma_schedule, ("constant", "cosine"))
        self.gamma_schedule = gamma_schedule
        self.gamma_decay_epochs = gamma_decay_epochs
        if gamma_schedule == "cosine":
            check_int("gamma_decay_epochs", gamma_decay_epochs, 1)
            self.register_buffer("epoch", torch.tensor(0))
        check_choice("normalize", normalize, (True, False))
        self.normalize = normalize
        check_choice("state_dtype", state_dtype, (torch.float32, torch.float64))
        self.state_dtype = state_dtype
        _distributed.check_gather(gather, process_group)
        self.gather = gather
        self.process_group = process_group
        self.tile_size = None if tile_size is None else check_int("tile_size", tile_size, 1)
        for side in self._sides:
            self._add_state(f"log_u{side}", num_samples, -math.inf, state_dtype)
            if individualized:
                self._add_state(f"tau{side}", num_samples, self.temperature, state_dtype)
                self._add_state(f"tau_momentum{side}", num_samples, 0.0, state_dtype)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, that the cosine schedule of gamma goes by."""
        check_int("epoch", epoch, 0)
        if self.gamma_schedule == "cosine":
            self.epoch.fill_(epoch)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        surrogate = "the value is a surrogate: only its gradient means something"
        names = ("convex", "lower", "upper", "lipschitz", "smoothness")
        return Properties(
            limits=(("gamma -> 1", "the gradient of the mean over this batch's negatives"),),
            unknown=dict.fromkeys(names, surrogate),
            source="Yuan et al. 2022; Qiu et al. 2023",
        )

    def _surrogate(
        self, z1: Tensor, z2: Tensor, index: Tensor, index2: Tensor | None, update: bool
    ) -> Tensor:
        """Return the per-sample value whose gradient is wanted; learn from the batch."""
        anchors = self._anchors(z1, z2, index, index2)
        updates = self._updates(update, z1)
        values, seen = [], []
        for a in anchors:
            tau, log_u = self._estimate(a)
            value = a.near.surrogate(tau, log_u)
            values.append(value - a.positive)
            if updates:
                share = value.detach() / tau
                seen.append((a.side, a.samples, tau, log_u, log_u + self.rho - share))
        for side in self._sides if updates else ():
            self._remember(side, [x[1:] for x in seen if x[0] == side])
        return torch.stack(values).sum(0) * self._share

    def _objective(self, z1: Tensor, z2: Tensor, index: Tensor, index2: Tensor | None) -> Tensor:
        check_embeddings(z1=z1, z2=z2)
        rho = self.rho if self.individualized else 0.0
        z1, z2 = _upcast(z1), _upcast(z2)
        with torch.no_grad(), torch.autocast(z1.device.type, enabled=False):
            values = []
            for a in self._anchors(z1, z2, index, index2):
                tau, log_u = self._estimate(a)
                values.append(tau * (log_u + rho) - a.positive)
            return torch.stack(values).sum(0) * self._share

    def _units(self, z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
        check_embeddings(z1=z1, z2=z2)
        if len(z1) == 1 and not self._gathers():
            raise ValueError("z1: expected at least 2 samples, the others are the negatives, got 1")
        return (normalized(z1), normalized(z2)) if self.normalize else (z1, z2)

    def _of_all(self, z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows of all processes, and which of them are the own ones."""
        first = 0
        own = len(z1)
        if self._gathers():
            (z1, z2), first = _distributed.gather_with_gradient(z1, z2, group=self.process_group)
            if len(z1) == 1:
                raise ValueError("z1: expected at least 2 samples, over all processes, got 1")
        return z1, z2, torch.arange(first, first + own, device=z1.device)

    def _estimate(self, a: _Anchors) -> tuple[Tensor, Tensor]:
        """Return tau, and log u with this batch in it.

        u is kept as its logarithm: exp(s/tau) overflows float32 from s/tau = 88 on.
        """
        dtype = a.near.dtype
        if self.individualized:
            tau = self._stored(f"tau{a.side}", a.samples, dtype)
        else:
            tau = torch.full(
                a.samples.shape, self.temperature, dtype=dtype, device=a.samples.device
            )
        now = a.near.log_mean(tau)
        before = self._stored(f"log_u{a.side}", a.samples, dtype)
        gamma = self._gamma(now)
        # At gamma = 1 the past is log 0 = -inf, as it is for a sample that was never seen; only
        # the latter takes the present whole at any gamma.
        mixed = torch.logaddexp(torch.log1p(-gamma) + before, gamma.log() + now)
        return tau, torch.where(before == -math.inf, now, mixed)

    def _gamma(self, like: Tensor) -> Tensor:
        """Return the weight of the present in the moving average."""
        if self.gamma_schedule == "constant":
            return like.new_full((), self.gamma)
        assert self.gamma_decay_epochs is not None
        share = (self.epoch.to(like.dtype) / self.gamma_decay_epochs).clamp(max=1.0)
        return self.gamma + (1.0 - self.gamma) * 0.5 * (1.0 + torch.cos(math.pi * share))

    def _remember(self, side: str, seen: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
        """Store what the anchors of one side, which share index and tau, have found."""
        index, tau = seen[0][:2]
        present = torch.ones_like(index, dtype=torch.bool)
        log_u = torch.stack([x[2] for x in seen]).logsumexp(0) - math.log(len(seen))
        self._store(f"log_u{side}", index, log_u, present, log=True)
        if not self.individualized:
            return
        slope = torch.stack([x[3] for x in seen]).mean(0)
        if self.grad_clip is not None:
            slope = slope.clamp(-self.grad_clip, self.grad_clip)
        momentum = self._stored(f"tau_momentum{side}", index, slope.dtype)
        momentum = (1.0 - self.beta) * momentum + self.beta * slope
        tau = (tau - self.eta * momentum).clamp(self.tau_min, self.tau_max)
        self._store(f"tau_momentum{side}", index, momentum, present)
        self._store(f"tau{side}", index, tau, present)


def _others(own: Tensor, count: int) -> Tensor:
    """Return which of the samples are others than the own one, for every row."""
    return own.unsqueeze(1) != torch.arange(count, device=own.device)


class GlobalContrastiveLoss(_GlobalContrastive):
    r"""Contrast of two views with the whole dataset, by a moving average per sample.

    .. math:: \ell_i = \sum_{v=1,2} \Big[ \frac1n \sum_j
              \operatorname{sg}\Big[\frac{e^{s_{ij}^v/\tau_i}}{u_i^v}\Big] s_{ij}^v - s_i^+ \Big],
              \qquad u_i^v = (1 - \gamma)\, u_i + \gamma\, \frac1n \sum_j e^{s_{ij}^v/\tau_i}

    View v of sample i has n = 2(B - 1) negatives, both views of the other samples of the batch.
    u_i is what is remembered of sample i, afterwards the mean of u_i^1 and u_i^2; at the first
    visit gamma is 1 for that sample. **The value is a surrogate**: its gradient estimates that of
    the objective, its value says nothing; ``objective()`` returns what is minimised. Use it
    (SogCLR) where batches are small for a contrastive loss, and with ``individualized=True``
    (iSogCLR) where samples differ in how many others are like them, as on long-tailed data.

    .. math:: G_i = \log u_i + \rho - \frac{1}{n} \sum_j \frac{e^{s_{ij}/\tau_i}}{u_i}
              \frac{s_{ij}}{\tau_i}, \qquad m_i \leftarrow (1-\beta)\, m_i + \beta\, G_i, \qquad
              \tau_i \leftarrow \operatorname{clip}(\tau_i - \eta\, m_i, \tau_{\min}, \tau_{\max})

    Args:
        num_samples: size of the training set.
        temperature: tau > 0, where every sample begins. Default 0.1.
        gamma: in (0, 1], the weight of the present in the moving average. Default 0.9.
        individualized: learn a temperature per sample. Default ``False``.
        tau_min, tau_max: bounds of the temperatures, 0 < tau_min <= tau_max. Default 0.05 and 0.7.
        rho: >= 0, the divergence from uniform that the temperatures aim at. Default 0.3. No
            divergence exceeds log n: from there on every temperature falls to ``tau_min``.
        eta: > 0, step size of the temperatures. Default 0.01.
        beta: in (0, 1], weight of the present in their momentum. Default 0.9.
        grad_clip: > 0, bound on abs(G_i), or ``None`` (default). The authors use 3.
        gamma_schedule: ``"constant"`` (default) or ``"cosine"``: from 1 at epoch 0 down to gamma
            at epoch ``gamma_decay_epochs``. Call ``set_epoch(e)`` at the start of every epoch.
        gamma_decay_epochs: at least 1; required by ``"cosine"``.
        normalize: divide the rows by their norm, so that s is the cosine. Default ``True``.
        state_dtype: dtype of what is remembered, ``torch.float32`` (default) or ``torch.float64``.
        gather: whether the rows of all processes are the negatives: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        tile_size: rows and columns of the tiles in which the similarities are made, forward and
            backward, and never held: memory grows as B, not B^2. First derivatives only. 512 or
            1024 is fast; it pays from thousands of rows on. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        z1 (B, D), z2 (B, D): row i of both is a view of the same sample; index (B,) dataset
        indices in [0, num_samples); B >= 2. Values (B,). Dense, two matrices of B x 2B, or in
        tiles with ``tile_size``.
        ``update=False`` in the call leaves what is remembered as it is: for the second forward of
        activation checkpointing.

    Properties:
        The gradient in a negative's similarity is exp(s/tau_i)/(n u_i), in the positive's -1, per
        view. With gamma = 1 it is exactly that of
        sum_v tau_i log mean_j exp((s_ij - s_i^+)/tau_i). The relative penalties of the negatives
        are a softmax of s/tau_i. G_i = rho - KL(p_i || uniform) at gamma = 1, with
        p = softmax(s/tau_i) over the negatives: the temperature rises while the divergence is
        above rho, and falls while it is below. min over tau of tau log E exp(h/tau) + tau rho is
        the largest E_p h within the ball KL(p || uniform) <= rho. No bounds, convexity or
        smoothness of the surrogate's value are claimed.

    Limits:
        gamma -> 1: no memory, the decoupled contrastive loss times 2 tau. A batch that comes again
        and again: u_i converges to its mean of exponentials, geometrically at rate 1 - gamma.

    Note:
        The buffers ``log_u`` (-inf: never seen) and, if individualized, ``tau`` and
        ``tau_momentum`` are saved in ``state_dict``; ``reset(index=None)`` forgets. They are
        written only in training mode with gradients enabled, not under torch.func. A sample that
        occurs several times in a batch, on all processes, gets the mean. The loss of a step uses
        the temperatures before it. With several processes (``gather``) own anchors are held against
        the rows of all, and ``"mean"`` divides by what all have, times their number: averaged over
        the processes, the parameters' gradient is that of one process with the whole batch, also of
        unequal batches. All of them must call it, forward and backward.

    Raises:
        ValueError: B = 1, ``gamma`` outside (0, 1], bounds of the temperatures out of order or
            without ``temperature`` between them, ``index`` out of range or of another length,
            ``gamma_schedule="cosine"`` with ``gamma_decay_epochs`` < 1, ``tile_size`` < 1,
            a ``process_group`` without this process.
        TypeError: ``index`` not of integers, embeddings that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        Yuan, Wu, Qiu, Du, Zhang, Zhou, Yang, "Provable Stochastic Optimization for Global
        Contrastive Learning", 2022 (SogCLR). Qiu, Hu, Yuan, Zhou, Zhang, Yang, "Not All Semantics
        are Created Equal", 2023 (iSogCLR). The scale, a sum over the two views, is LibAUC's, whose
        code takes gamma = 1 only if the whole batch is unseen; here that is decided per sample.

    Example:
        >>> import torch
        >>> from lossary import GlobalContrastiveLoss
        >>> loss = GlobalContrastiveLoss(num_samples=1000, individualized=True)
        >>> z1 = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> z2 = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
        >>> index = torch.tensor([17, 400])
        >>> loss(z1, z2, index)
        tensor(-0.2698)
        >>> loss.tau[[17, 400, 0]]
        tensor([0.1034, 0.1010, 0.1000])
        >>> loss.objective(z1, z2, index)
        tensor([-0.3461,  0.0311])
    """

    _sides = ("",)
    _share = 1.0

    def __init__(
        self,
        num_samples: int,
        temperature: float = 0.1,
        gamma: float = 0.9,
        individualized: bool = False,
        tau_min: float = 0.05,
        tau_max: float = 0.7,
        rho: float = 0.3,
        **options: Unpack[_GlobalOptions],
    ) -> None:
        super().__init__(
            num_samples, temperature, gamma, individualized, tau_min, tau_max, rho, **options
        )

    def per_sample(self, z1: Tensor, z2: Tensor, index: Tensor, update: bool = True) -> Tensor:
        """Return the surrogate of every sample, unreduced."""
        return self._surrogate(z1, z2, index, None, update)

    def objective(self, z1: Tensor, z2: Tensor, index: Tensor) -> Tensor:
        """Return what is minimised, of every sample, (B,), without a gradient.

        sum over the views of tau_i log u_i^v - s_i^+ [+ tau_i rho if individualized], with the
        moving average as the loss sees it. Nothing is remembered.
        """
        return self._objective(z1, z2, index, None)

    def _anchors(
        self, z1: Tensor, z2: Tensor, index: Tensor, index2: Tensor | None
    ) -> list[_Anchors]:
        z1, z2 = self._units(z1, z2)
        index, _ = self._samples(index, z1[:, 0], None)
        every1, every2, own = self._of_all(z1, z2)
        both = torch.cat((every1, every2))
        positive = (z1 * z2).sum(1)
        near: list[_Near]
        if self.tile_size is None:
            negative = _others(own, len(every1)).repeat(1, 2)
            near = [_Dense(z @ both.t(), negative) for z in (z1, z2)]
        else:
            masked = torch.stack((own, own + len(every1)), 1)
            near = [_Tiled(z, both, masked, None, self) for z in (z1, z2)]
        return [_Anchors("", index, x, positive) for x in near]


class TwoWayGlobalContrastiveLoss(_GlobalContrastive):
    r"""Contrast of two modalities with the whole dataset, with memory and temperatures for each.

    .. math:: \ell_i = \tfrac12 (\ell_i^1 + \ell_i^2), \qquad
              \ell_i^1 = \frac1n \sum_{j \ne i}
              \operatorname{sg}\Big[\frac{e^{h_{ij}/\tau_i^1}}{u_i^1}\Big] h_{ij}, \qquad
              u_i^1 \leftarrow (1 - \gamma)\, u_i^1 + \gamma\,
              \frac1n \sum_{j \ne i} e^{h_{ij}/\tau_i^1}

    with h_ij = s_ij - s_ii between z1_i and z2_j, n = B - 1, and direction 2 the same on the
    transposed similarities. **The value is a surrogate**, whose gradient is wanted;
    ``objective()`` returns what is minimised. Use it in place of CLIP's loss where the batch is
    small, and with ``individualized=True`` (iSogCLR) where some captions fit many images and
    others one. For two views of one modality see :class:`GlobalContrastiveLoss`.

    Args:
        num_samples: size of the training set.
        temperature: tau > 0, where every sample begins. Default 0.01.
        gamma: in (0, 1], the weight of the present in the moving average. Default 0.9.
        individualized: learn a temperature per sample and modality, by the rule of
            :class:`GlobalContrastiveLoss` with h for s. Default ``False``.
        tau_min, tau_max: bounds of the temperatures, 0 < tau_min <= tau_max. Default 0.005, 0.05.
        rho: >= 0, the divergence from uniform that the temperatures aim at. Default 6. No
            divergence exceeds log n: with B <= 404 every temperature falls to ``tau_min``.
        eta: > 0, step size of the temperatures. Default 0.01.
        beta: in (0, 1], weight of the present in their momentum. Default 0.9.
        grad_clip: > 0, bound on the slope in tau, or ``None`` (default). The authors use 5.
        gamma_schedule: ``"constant"`` (default) or ``"cosine"``: from 1 at epoch 0 down to gamma
            at epoch ``gamma_decay_epochs``. Call ``set_epoch(e)`` at the start of every epoch.
        gamma_decay_epochs: at least 1; required by ``"cosine"``.
        normalize: divide the rows by their norm, so that s is the cosine. Default ``True``.
        state_dtype: dtype of what is remembered, ``torch.float32`` (default) or ``torch.float64``.
        gather: whether the rows of all processes are the negatives: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        tile_size: rows and columns of the tiles in which the similarities are made, forward and
            backward, and never held: memory grows as B, not B^2. First derivatives only. 512 or
            1024 is fast; it pays from thousands of rows on. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        z1 (B, D), z2 (B, D): row i of both belong together; index (B,) dataset indices in
        [0, num_samples); index2 (B,) or ``None``: those of z2, where the modalities are indexed
        separately; B >= 2. Values (B,). Dense, one matrix of B x B, or in tiles with
        ``tile_size``, once for each direction. ``update=False`` in the call
        leaves what is remembered as it is.

    Properties:
        With gamma = 1 the gradient is exactly that of
        1/2 sum over both directions of tau_i log mean_j exp(h_ij/tau_i). The slope of the
        temperature, the duality and the relative penalties are those of
        :class:`GlobalContrastiveLoss`. No bounds, convexity or smoothness of the surrogate's value
        are claimed.

    Limits:
        gamma -> 1: no memory. A batch that comes again and again: u_i converges to its mean of
        exponentials, geometrically at rate 1 - gamma.

    Note:
        The buffers ``log_u1``, ``log_u2`` (-inf: never seen) and, if individualized, ``tau1``,
        ``tau2``, ``tau_momentum1``, ``tau_momentum2`` behave, and several processes count, as in
        :class:`GlobalContrastiveLoss`. h/tau reaches 400 at tau = 0.005: everything stays in the
        log domain.

    Raises:
        ValueError: B = 1, ``gamma`` outside (0, 1], bounds of the temperatures out of order or
            without ``temperature`` between them, ``index`` out of range or of another length,
            ``gamma_schedule="cosine"`` with ``gamma_decay_epochs`` < 1, ``tile_size`` < 1,
            a ``process_group`` without this process.
        TypeError: ``index`` not of integers, embeddings that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        Yuan, Wu, Qiu, Du, Zhang, Zhou, Yang, "Provable Stochastic Optimization for Global
        Contrastive Learning", 2022. Qiu, Hu, Yuan, Zhou, Zhang, Yang, "Not All Semantics are
        Created Equal", 2023. The sources disagree: LibAUC leaves out 1/n in the loss (its gradient
        is B - 1 times this one), the authors' code counts the positive, h = 0, as a negative and
        adds the directions up.

    Example:
        >>> import torch
        >>> from lossary import TwoWayGlobalContrastiveLoss
        >>> loss = TwoWayGlobalContrastiveLoss(num_samples=1000)
        >>> image = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> text = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
        >>> loss(image, text, torch.tensor([17, 400]))
        tensor(-0.3162)
    """

    _sides = ("1", "2")
    _share = 0.5

    def __init__(
        self,
        num_samples: int,
        temperature: float = 0.01,
        gamma: float = 0.9,
        individualized: bool = False,
        tau_min: float = 0.005,
        tau_max: float = 0.05,
        rho: float = 6.0,
        **options: Unpack[_GlobalOptions],
    ) -> None:
        super().__init__(
            num_samples, temperature, gamma, individualized, tau_min, tau_max, rho, **options
        )

    def per_sample(
        self,
        z1: Tensor,
        z2: Tensor,
        index: Tensor,
        index2: Tensor | None = None,
        update: bool = True,
    ) -> Tensor:
        """Return the surrogate of every pair, unreduced."""
        return self._surrogate(z1, z2, index, index2, update)

    def objective(
        self, z1: Tensor, z2: Tensor, index: Tensor, index2: Tensor | None = None
    ) -> Tensor:
        """Return what is minimised, of every pair, (B,), without a gradient.

        The mean over both directions of tau_i log u_i [+ tau_i rho if individualized], with the
        moving average as the loss sees it. Nothing is remembered.
        """
        return self._objective(z1, z2, index, index2)

    def _anchors(
        self, z1: Tensor, z2: Tensor, index: Tensor, index2: Tensor | None
    ) -> list[_Anchors]:
        z1, z2 = self._units(z1, z2)
        index, _ = self._samples(index, z1[:, 0], None)
        index2 = index if index2 is None else self._samples(index2, z1[:, 0], None, "index2")[0]
        every1, every2, own = self._of_all(z1, z2)
        positive = (z1 * z2).sum(1)
        near: list[_Near]
        if self.tile_size is None:
            negative = _others(own, len(every1))
            s = z1 @ every2.t()
            back = s.t() if every1 is z1 else z2 @ every1.t()
            near = [_Dense(x - positive.unsqueeze(1), negative) for x in (s, back)]
        else:
            masked = own.unsqueeze(1)
            near = [
                _Tiled(z1, every2, masked, positive, self),
                _Tiled(z2, every1, masked, positive, self),
            ]
        return [_Anchors("1", index, near[0], 0.0), _Anchors("2", index2, near[1], 0.0)]
