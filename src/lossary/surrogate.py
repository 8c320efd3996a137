r"""Surrogates of another loss: what may be minimised in its place for some steps.

.. math:: \ell(z) \le \ell(z_t) + \langle g, z - z_t \rangle + \frac1\eta D(z, z_t)
"""

import copy
import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import Loss, LossOptions, _check_weight, _upcast, _without_absent
from lossary._checks import (
    check_choice,
    check_floating,
    check_like,
    check_positive,
    check_weight_type,
)
from lossary._properties import Properties
from lossary._softmax import readable


class TargetSurrogateLoss(Loss):
    r"""Target-based surrogate (SSO): a loss of a model's outputs, asked once for several steps.

    .. math:: \ell_i(z) = \langle g_i, z_i \rangle + \frac1\eta D(z_i, z_{t,i}), \qquad
              g_i = \frac{\partial}{\partial z_i} \sum_j \operatorname{loss}(z_{t,j}),
              \qquad D(z, z') = \frac12 \|z - z'\|^2

    Where the loss is dear (its targets come from a simulator, an expert, another model) and the
    network cheap: ask it once a batch, at the outputs z_t of the moment (``anchor``), and then take
    several steps of any optimiser on this, which needs no targets. **The value is a surrogate**,
    not that of the loss: it bounds it but for a constant, and its gradient at z_t is the loss's.

    Args:
        loss: a :class:`lossary.Loss`, whose reduction is then of no account; or any function or
            module of (z, ...) with one value per sample, or more: ``nn.MSELoss(reduction="none")``.
            It is kept as the attribute ``loss``.
        eta: eta > 0, finite: the step size in the outputs. Default 1.
        divergence: ``"euclidean"`` (default), or ``"kl"`` for outputs that are probabilities, along
            the last axis or independent ones: D(z, z') = sum_k z_k log(z_k/z'_k) - z_k + z'_k.
        reduction: see :class:`lossary.Loss`.

    Shape:
        z (N, ...): the model's outputs for the samples that ``anchor(z, ...)`` was called with, in
        the same order. Values (N,).

    Properties:
        Convex in z, strongly so for ``"euclidean"``; unbounded above. The gradient at z_t is the
        loss's. If the gradient of a sample's loss has the Lipschitz constant L in z, then for
        eta <= 1/L loss(z) <= surrogate(z) + loss(z_t) - <g, z_t> for every z, with equality at
        z_t: a step that lowers the surrogate lowers the loss by no less. L = 1/2 for softmax
        cross-entropy, in the Euclidean norm of the logits, 1/4 for the logistic loss, 2 for the
        squared distance. Without constraints the minimiser is z_t - eta g; for ``"kl"``
        z_t exp(-eta g), and its normalisation among probabilities.

    Limits:
        One step from the anchor: a gradient step on the loss, with any optimiser. Infinitely many,
        of a model that can reach any output: z_t - eta g, a gradient step in the outputs.

    Note:
        ``anchor(z, *targets)`` detaches z and evaluates the loss once, in the training mode that it
        is in, with gradients enabled. The anchor is in buffers that are not saved in a state dict;
        it holds until the next call of ``anchor``. It acts on the gradient of the sum over samples,
        so that the mean of the surrogate has the gradient of the mean of the loss; weights go into
        the call, not into ``anchor``. A sample whose loss has no gradient (an ignored target) is
        held at its anchor; leave it out by its weight. The authors' code minimises the mean over
        elements of g z/eta' + (z - z_t)^2, which is this form for eta = 1/(2 eta') over eta', in
        steps of another size, and for ``"kl"`` sum_k z_k (log z_k - log z_t,k + eta g_k), eta times
        this among probabilities. ``"kl"`` takes logarithms of at least the smallest normal number.

    Raises:
        ValueError: ``eta`` not positive and finite, unknown ``divergence``; z without an axis of
            samples, or of another shape or device than the anchor; with ``"kl"`` z below 0 (on CPU
            tensors, where looking costs nothing); a ``loss`` that gives no value per sample.
        TypeError: ``loss`` not callable, or not giving a tensor; ``eta`` not a number; z not
            floating point.
        RuntimeError: called before ``anchor``.

    Reference:
        Lavington, Vaswani, Babanezhad, Schmidt, Le Roux, "Target-based Surrogates for Stochastic
        Optimization", 2023. The authors' code was read.

    Example:
        >>> import torch
        >>> from lossary import CompSumLoss, TargetSurrogateLoss
        >>> model = torch.nn.Linear(2, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> x, y = torch.randn(8, 2), torch.randint(3, (8,))
        >>> surrogate = TargetSurrogateLoss(CompSumLoss(), eta=2.0)
        >>> surrogate.anchor(model(x), y)
        >>> before = CompSumLoss()(model(x), y)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     surrogate(model(x)).backward()
        ...     optimizer.step()
        >>> bool(CompSumLoss()(model(x), y) < before)
        True
    """

    loss: Callable[..., Tensor]
    anchor_z: Tensor | None
    anchor_slope: Tensor | None

    def __init__(
        self,
        loss: Callable[..., Tensor],
        eta: float = 1.0,
        divergence: str = "euclidean",
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        if not callable(loss):
            raise TypeError(f"loss: expected a loss or a function, got {type(loss).__name__}")
        self.loss = loss
        self.eta = check_positive("eta", eta)
        check_choice("divergence", divergence, ("euclidean", "kl"))
        self.divergence = divergence
        # Of one batch: a state dict with them could be loaded by a module with this batch only.
        self.register_buffer("anchor_z", None, persistent=False)
        self.register_buffer("anchor_slope", None, persistent=False)

    def anchor(self, z: Tensor, *targets: Any) -> None:
        """Evaluate the loss at z, with what else it takes, and keep z and the gradient there."""
        check_floating("z", z)
        if z.dim() == 0:
            raise ValueError("z: expected shape (N, ...), got a 0-dim tensor")
        self._check_probabilities(z)
        with torch.enable_grad():
            leaf = _upcast(z.detach()).clone().requires_grad_()
            total = self._wrapped_values(leaf, targets).sum()
            (slope,) = torch.autograd.grad(total, leaf)
        self.anchor_z, self.anchor_slope = leaf.detach(), slope

    def _wrapped_values(self, z: Tensor, targets: tuple[Any, ...]) -> Tensor:
        loss = self.loss
        if isinstance(loss, Loss):
            loss = copy.copy(loss)
            loss.reduction = "none"
        values = loss(z, *targets)
        if not isinstance(values, Tensor):
            raise TypeError(f"loss: expected a tensor of values, got {type(values).__name__}")
        if values.shape[:1] != z.shape[:1]:
            raise ValueError(
                f"loss: expected a value per sample, shape ({len(z)}, ...), "
                f'got {tuple(values.shape)} (of a module, take reduction="none")'
            )
        return values

    def per_sample(self, z: Tensor) -> Tensor:
        """Return the surrogate of every sample, unreduced."""
        return self._surrogate(*self._anchored(z))

    def _anchored(self, z: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the checked outputs, the anchor and the gradient there."""
        if self.anchor_z is None or self.anchor_slope is None:
            raise RuntimeError("anchor: expected a call of anchor(z, ...) before this, got none")
        check_floating("z", z)
        check_like("z", z, "the anchor", self.anchor_z)
        z = _upcast(z)
        return z, self.anchor_z.to(z.dtype), self.anchor_slope.to(z.dtype)

    def _surrogate(self, z: Tensor, anchor: Tensor, slope: Tensor) -> Tensor:
        if self.divergence == "euclidean":
            apart = 0.5 * (z - anchor).square()
        else:
            tiny = torch.finfo(z.dtype).tiny
            ratio = z.clamp(min=tiny).log() - anchor.clamp(min=tiny).log()
            apart = z * ratio - (z - anchor)
        return (slope * z + apart / self.eta).unsqueeze(-1).flatten(1).sum(1)

    def _check_probabilities(self, z: Tensor) -> None:
        if self.divergence == "kl" and readable(z):
            wrong = ~(z >= 0)
            if bool(wrong.any()):
                found = float(z.detach()[wrong][0])
                raise ValueError(f"z: expected probabilities, numbers >= 0, got {found:g}")

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        rows = self._anchored(*inputs)
        if weight is not None:
            check_weight_type("weight", weight)
            _check_weight(weight, rows[0].shape[:1], rows[0])
            # The anchor too: what is not there may have been infinite when it was set.
            z, anchor, slope = (_without_absent(x, weight) for x in rows)
            rows, weight = (z, anchor, slope), weight.to(z.dtype)
        self._check_probabilities(rows[0])
        return self._surrogate(*rows), weight, None

    def properties(self) -> Properties:
        """Return what this instance guarantees, of the batch that it is anchored at."""
        of_anchor = "depends on the anchor"
        return Properties(
            convex=True,
            smoothness=math.inf if self.divergence == "euclidean" else None,
            unknown={
                "lower": of_anchor,
                "upper": "inf, along any direction away from the anchor, which is of one batch",
                "lipschitz": "inf for outputs without bound",
                **({} if self.divergence == "euclidean" else {"smoothness": "defined for z >= 0"}),
            },
            source="Lavington et al. 2023",
        )
