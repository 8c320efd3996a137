r"""Models without a normaliser: log-densities that are known up to a constant.

.. math:: p(x) = \frac{\tilde p(x)}{Z}, \qquad
          Z = \int \tilde p = \operatorname{E}_{x \sim q} \frac{\tilde p(x)}{q(x)}

Energy-based models give log p~ and no Z. What helps are samples from a known noise density q: to
tell the data from the noise, or to estimate Z.
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lossary import _distributed
from lossary._base import Loss, LossOptions
from lossary._checks import check_choice, check_device, check_floating, check_number, check_positive
from lossary._embedding_base import EmbeddingOptions
from lossary._numerics import softplus
from lossary._properties import Properties
from lossary._softmax import readable
from lossary._state import TrainingState


class _NoiseLoss(Loss):
    """A loss of log-densities at data and at noise, the noise of all processes together."""

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

    def _noise(self, **noise: Tensor) -> list[Tensor]:
        """Return the checked log-densities at the noise, of all processes."""
        first, like = next(iter(noise.items()))
        for name, x in noise.items():
            _check_vector(name, x)
            if x.shape != like.shape:
                raise ValueError(
                    f"{name}: expected the shape of {first}, {tuple(like.shape)}, "
                    f"got {tuple(x.shape)}"
                )
            check_device(name, x, like)
        _check_noise_density("noise_log_q", noise["noise_log_q"])
        every = list(noise.values())
        if self._gathers():
            every, _ = _distributed.gather_with_gradient(*every, group=self.process_group)
        if not len(every[0]):
            raise ValueError(f"{first}: expected at least one sample of the noise, got none")
        return every


def _check_vector(name: str, x: Any) -> None:
    check_floating(name, x)
    if x.dim() != 1:
        raise ValueError(f"{name}: expected one log-density per sample, got {tuple(x.shape)}")


def _check_noise_density(name: str, log_q: Tensor) -> None:
    """Raise an error where the noise cannot have its density: it was drawn from it."""
    if readable(log_q) and not bool(log_q.isfinite().all()):
        found = float(log_q.detach()[~log_q.isfinite()][0])
        raise ValueError(f"{name}: expected finite log-densities, got {found:g}")


class NCELoss(_NoiseLoss):
    r"""Noise-contrastive estimation (NCE): a density by telling data from noise.

    .. math:: \ell_i = -\log \sigma(G(x_i)) - \nu \frac{1}{M} \sum_{j=1}^M \log \sigma(-G(x'_j)),
              \qquad G = \log \tilde p - \log Z - \log q - \log \nu

    Logistic regression of data against noise, with the log-ratio of their densities as the logit:
    at its optimum the model is the data's density, the normaliser included, without an integral.
    The noise should be near the data: where it is far away, telling them apart is too easy and the
    gradient vanishes exponentially.

    Args:
        nu: > 0, finite: noise samples per data sample in the model of how both were mixed. ``None``
            for M/N, the numbers given. Default 1.
        learn_log_z: make log Z a parameter, ``log_z``, which begins at 0 and which the optimiser
            must see. Default ``False``: the model brings its own, or Z = 1.
        gather: whether the noise of all processes is taken: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: that of the own process.
        process_group: whose noise it is. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`.

    Shape:
        data_log_p (N,), the model's log p~ at the data, data_log_q (N,), the noise's log-density
        there; noise_log_p (M,), noise_log_q (M,), the same at the noise, M >= 1. Values (N,): to
        every data sample the mean of the noise is added, so that ``"mean"`` is the objective.

    Properties:
        Convex in the log-densities, infinitely smooth; l > 0. The gradient is 0 on average at the
        true density, the normaliser included. ``weight`` scales a data sample's term together with
        the noise's mean in it.

    Limits:
        p~ = q, Z = 1, nu = 1: 2 log 2.

    Note:
        Not :class:`NormalizedCrossEntropyLoss`, which is called NCE too. With several processes the
        noise's log-densities are gathered, M numbers, and ``"mean"`` divides by what all have,
        times their number: averaged, the gradient is that of one process with everything. All of
        them must call it, forward and backward.

    Raises:
        ValueError: ``nu`` not positive and finite; inputs that are not vectors or of shapes that do
            not fit; no noise; a noise log-density that is not finite at the noise (looked at on
            CPU tensors); a ``process_group`` without this process.
        TypeError: ``nu`` not a number; inputs that are not floating point.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Gutmann, Hyvarinen, "Noise-contrastive estimation: A new estimation principle for
        unnormalized statistical models", 2010 (RECALLED); the baseline of Jiang, Qin, Wu, Chen,
        Yang, Zhang, "Learning Unnormalized Statistical Models via Compositional Optimization",
        2023.

    Example:
        >>> import torch
        >>> from lossary import NCELoss
        >>> data_log_p, data_log_q = torch.tensor([-0.5, -1.0]), torch.tensor([-2.0, -1.5])
        >>> noise_log_p, noise_log_q = torch.tensor([-4.0]), torch.tensor([-1.0])
        >>> NCELoss()(data_log_p, data_log_q, noise_log_p, noise_log_q)
        tensor(0.3863)
    """

    def __init__(
        self,
        nu: float | None = 1.0,
        learn_log_z: bool = False,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(**options)
        self.nu = None if nu is None else check_positive("nu", nu)
        check_choice("learn_log_z", learn_log_z, (True, False))
        self.learn_log_z = learn_log_z
        if learn_log_z:
            self.log_z = nn.Parameter(torch.zeros(()))

    def per_sample(
        self, data_log_p: Tensor, data_log_q: Tensor, noise_log_p: Tensor, noise_log_q: Tensor
    ) -> Tensor:
        """Return the loss of every data sample, with the noise's mean in it."""
        _check_vector("data_log_p", data_log_p)
        _check_vector("data_log_q", data_log_q)
        if data_log_q.shape != data_log_p.shape:
            raise ValueError(
                f"data_log_q: expected the shape of data_log_p, {tuple(data_log_p.shape)}, "
                f"got {tuple(data_log_q.shape)}"
            )
        check_device("data_log_q", data_log_q, data_log_p)
        check_device("noise_log_p", noise_log_p, data_log_p)
        noise_log_p, noise_log_q = self._noise(noise_log_p=noise_log_p, noise_log_q=noise_log_q)
        nu = self._ratio(len(noise_log_p), data_log_p)
        offset = nu.log()
        if self.learn_log_z:
            offset = offset + self.log_z.to(data_log_p.dtype)
        found = softplus(offset + data_log_q - data_log_p)
        return found + nu * softplus(noise_log_p - noise_log_q - offset).mean()

    def _ratio(self, noise: int, data: Tensor) -> Tensor:
        """Return noise samples per data sample, as a number of the data's dtype."""
        if self.nu is not None:
            return data.new_tensor(self.nu)
        count = torch.tensor(len(data), device=data.device)
        if self._gathers():
            count = _distributed.sum_over_ranks(count, self.process_group)
        return noise / count.clamp(min=1).to(data.dtype)

    def properties(self) -> Properties:
        """Return what this instance guarantees, in the data's log-densities."""
        alone = "in the data's log-densities alone it depends on the noise"
        return Properties(
            convex=True,
            upper=math.inf,
            lipschitz=1.0,
            smoothness=math.inf,
            minimiser="log p~ - log Z = the logarithm of the data's density",
            limits=(("p~ = q, Z = 1, nu = 1", "2 log 2"),),
            counterexamples={"upper": ([-1.0, -1.0], [0.0, 0.0], [0.0], [0.0])},
            unknown={"lower": f"0, but {alone}"},
            source="Gutmann and Hyvarinen 2010",
        )


class CompositionalNLLLoss(_NoiseLoss, TrainingState):
    r"""Negative log-likelihood with a moving estimate of the normaliser (MECO).

    .. math:: \ell_i = -\log \tilde p(x_i) + \log u_t, \qquad
              u_t = (1 - \gamma) u_{t-1} + \frac{\gamma}{M} \sum_k r_k, \qquad
              r_k = \frac{\tilde p(x'_k)}{q(x'_k)}, \qquad
              \nabla \ell_i = -\nabla \log \tilde p(x_i)
              + \frac{1}{M u_t} \sum_k r_k \nabla \log \tilde p(x'_k)

    The logarithm of a mean over few noise samples is biased; the moving average u holds the
    memory of many steps, so that the bias goes away as the steps grow smaller. Use it where noise
    is far from the data and :class:`NCELoss` has no gradient left.

    Args:
        gamma: in (0, 1]: how much the new estimate counts. Default 0.1. 1: no memory.
        gather: whether the noise of all processes is taken: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: that of the own process.
        process_group: whose noise it is. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`.

    Shape:
        data_log_p (N,), the model's log p~ at the data; noise_log_p (M,), noise_log_q (M,), log p~
        and the noise's own log-density at the noise, M >= 1. update: ``False`` leaves the estimate
        as it is. Values (N,).

    Properties:
        The value is a surrogate: its gradient is the one above, not its slope, but for gamma = 1.
        Adding a number to all log p~ leaves value and gradient as they are for gamma = 1; with a
        memory the estimate lags behind. E[u] = Z for a fixed model, E[log u] <= log Z.

    Limits:
        gamma = 1: -log p~ + log of the importance-sampled normaliser of this batch.

    Note:
        All in the log domain: the buffer ``log_u`` is -inf until the first step, which takes the
        batch's estimate. It is written in training mode with gradients enabled, outside of
        ``torch.func`` and without ``update=False``, before the loss is computed, and is the same on
        every process; otherwise the batch's estimate counts with gamma, too, but is not kept. The
        momentum of the paper is the optimiser's. That the moving average is the paper's is
        RECALLED.

    Raises:
        ValueError: ``gamma`` outside (0, 1]; inputs that are not vectors or of shapes that do not
            fit; no noise; a noise log-density that is not finite (looked at on CPU tensors);
            ``update`` neither ``True`` nor ``False``; a ``process_group`` without this process.
        TypeError: ``gamma`` not a number; inputs that are not floating point.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Jiang, Qin, Wu, Chen, Yang, Zhang, "Learning Unnormalized Statistical Models via
        Compositional Optimization", 2023.

    Example:
        >>> import torch
        >>> from lossary import CompositionalNLLLoss
        >>> data_log_p = torch.tensor([-0.5, -1.0])
        >>> noise_log_p, noise_log_q = torch.tensor([-4.0, -1.0]), torch.tensor([-1.0, -1.5])
        >>> loss = CompositionalNLLLoss()
        >>> loss(data_log_p, noise_log_p, noise_log_q)
        tensor(0.5866)
        >>> loss.log_u
        tensor(-0.1634)
    """

    log_u: Tensor

    def __init__(self, gamma: float = 0.1, **options: Unpack[EmbeddingOptions]) -> None:
        super().__init__(**options)
        self.gamma = check_number("gamma", gamma, 0.0, 1.0, low_open=True)
        self.register_buffer("log_u", torch.tensor(-math.inf))

    def reset(self) -> None:
        """Forget the estimate."""
        self.log_u.fill_(-math.inf)

    def per_sample(
        self, data_log_p: Tensor, noise_log_p: Tensor, noise_log_q: Tensor, update: bool = True
    ) -> Tensor:
        """Return the surrogate of every data sample."""
        check_choice("update", update, (True, False))
        _check_vector("data_log_p", data_log_p)
        check_device("noise_log_p", noise_log_p, data_log_p)
        check_device("log_u", self.log_u, data_log_p)
        noise_log_p, noise_log_q = self._noise(noise_log_p=noise_log_p, noise_log_q=noise_log_q)
        ratio = noise_log_p.detach() - noise_log_q.detach() - math.log(len(noise_log_p))
        log_g = ratio.logsumexp(0)
        log_u = self._moved(log_g)
        if self._updates(update, data_log_p):
            self.log_u.copy_(log_u)
        # Where the model has no mass, 0 * -inf would be nan; where it has none anywhere, so would
        # the difference of the logarithms.
        empty = ratio == -math.inf
        weights = torch.exp(ratio - log_u).masked_fill(empty, 0.0)
        surrogate = (weights * noise_log_p.masked_fill(empty, 0.0)).sum()
        return log_u - data_log_p + (surrogate - surrogate.detach())

    def _moved(self, log_g: Tensor) -> Tensor:
        """Return the logarithm of the average, moved towards the new estimate."""
        stored = self.log_u.to(log_g.dtype)
        if self.gamma == 1.0:
            return log_g
        old, new = math.log1p(-self.gamma) + stored, math.log(self.gamma) + log_g
        return torch.where(stored == -math.inf, log_g, torch.logaddexp(old, new))

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        surrogate = "the value is a surrogate for its gradient"
        return Properties(
            limits=(("gamma = 1", "the importance-sampled likelihood of the batch"),),
            unknown=dict.fromkeys(
                ("convex", "lower", "upper", "lipschitz", "smoothness"), surrogate
            ),
            source="Jiang et al. 2023",
        )
