r"""Value functions: the worth of a state, from trajectories of a fixed policy.

.. math:: J(t, x) = \mathbb{E}\Bigl[\int_t^T e^{-\beta (s - t)} r_s \, ds
          + e^{-\beta (T - t)} h(X_T) \,\Big|\, X_t = x\Bigr]
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import Loss, LossOptions, check_sample_weight
from lossary._checks import (
    check_device,
    check_floating,
    check_number,
    check_positive,
)
from lossary._properties import Properties
from lossary._softmax import readable


class MartingaleLoss(Loss):
    r"""Martingale loss: policy evaluation in continuous time, from observed trajectories.

    .. math:: \ell = \frac12 \sum_{i < K} (M_K - M_i)^2 \, \Delta t_i, \qquad
              M_i = e^{-\beta t_i} J_i + \sum_{j < i} e^{-\beta t_j} r_j \, \Delta t_j,
              \quad J_K = h

    with J_i the value at step i, r_j the reward per unit of time on step j, h the terminal reward
    and t_i the sum of the steps before i. Along the true value function M is a martingale, whose
    best prediction of its own end is M_i: the loss is the squared error of that prediction. For
    diffusions and other processes that are watched at a fine grid, where the grid may be refined.

    Args:
        discount: the beta above, >= 0, finite, per unit of time. Default 0.
        reduction: see :class:`lossary.Loss`.

    Shape:
        values (N, K) or (N, K + 1), J at the start of each step, and where it is there at the end,
        which is not used: the terminal reward stands in its place. rewards (N, K), rates: rewards
        per unit of time. terminal (N,). dt: the lengths of the steps, a positive number, or a
        tensor (K,) or (N, K), finite and >= 0, so that shorter trajectories are filled up with
        steps of 0, their other entries finite. Values (N,): one per trajectory.

    Properties:
        Convex and quadratic in the values, infinitely smooth, >= 0, unbounded above. The gradient
        in J_i is -e^(-beta t_i) (M_K - M_i) Delta t_i, that of a regression of J_i on the
        discounted rewards to come. In the mean the minimiser is the conditional expectation of
        those, the value function. No gradient flows to the rewards, the terminal reward and dt.

    Limits:
        It is gradient Monte Carlo, written for continuous time. Refining the grid it becomes the
        integral of (M_T - M_t)^2/2.

    Note:
        M_K - M_i is added up from step i on: of the common past of both nothing has to cancel.
        Some texts omit the 1/2. The mean-square temporal-difference error, the sum of
        (M_{i+1} - M_i)^2, is not a valid objective here: as the grid is refined it becomes the
        quadratic variation of M, and its minimiser is the smoothest function, not the value.
        TD(0) and its like in continuous time come from the orthogonality E[sum_i xi_i (M_{i+1} -
        M_i)] = 0 for test functions xi, not from a loss.

    Raises:
        ValueError: ``discount`` negative or infinite; values not of shape (N, K) or (N, K + 1),
            K = 0, other inputs of shapes that do not fit; a ``dt`` not positive (as a number),
            negative or not finite (as a tensor on the CPU, where looking costs nothing).
        TypeError: ``discount`` not a number, ``dt`` neither a number nor a tensor; inputs not
            floating point.

    Reference:
        Jia, Zhou, "Policy Evaluation and Temporal-Difference Learning in Continuous Time and
        Space: A Martingale Approach", 2021. The discounted form is that of lecture notes.

    Example:
        >>> import torch
        >>> from lossary import MartingaleLoss
        >>> values = torch.tensor([[2.0, 1.0]])
        >>> rewards, terminal = torch.tensor([[1.0, 2.0]]), torch.tensor([0.5])
        >>> MartingaleLoss()(values, rewards, terminal, 0.5)
        tensor(0.0625)
    """

    def __init__(self, discount: float = 0.0, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.discount = check_number("discount", discount, 0.0, math.inf, high_open=True)

    def per_sample(
        self, values: Tensor, rewards: Tensor, terminal: Tensor, dt: float | Tensor
    ) -> Tensor:
        """Return the loss of every trajectory, unreduced."""
        steps = rewards.shape[1]
        dt = torch.as_tensor(dt, dtype=values.dtype, device=values.device).detach()
        dt = dt.expand(rewards.shape)
        end = dt.cumsum(1)
        fade = torch.exp(-self.discount * (end - dt))
        flow = fade * rewards.detach() * dt
        to_come = flow.flip(1).cumsum(1).flip(1)
        last = torch.exp(-self.discount * end[:, -1:]) * terminal.detach().unsqueeze(1)
        error = to_come + last - fade * values[:, :steps]
        return 0.5 * (error.square() * dt).sum(1)

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        values, rewards, terminal, dt = inputs
        self._check(values, rewards, terminal)
        check_sample_weight(weight, terminal.shape, terminal)
        # In full shape: K numbers would be taken for those of N = K trajectories.
        dt = _checked_steps(dt, rewards, weight)
        return super()._values((values, rewards, terminal, dt), weight)

    def _check(self, values: Any, rewards: Any, terminal: Any) -> None:
        check_floating("values", values)
        check_floating("rewards", rewards)
        shape = tuple(rewards.shape)
        if rewards.dim() != 2 or shape[1] == 0:
            raise ValueError(f"rewards: expected shape (N, K), K >= 1, got {shape}")
        n, k = shape
        if values.shape not in ((n, k), (n, k + 1)):
            raise ValueError(
                f"values: expected shape {(n, k)} or {(n, k + 1)} for rewards of shape {shape}, "
                f"got {tuple(values.shape)}"
            )
        check_device("rewards", rewards, values)
        check_floating("terminal", terminal)
        if terminal.shape != (n,):
            raise ValueError(f"terminal: expected shape {(n,)}, got {tuple(terminal.shape)}")
        check_device("terminal", terminal, values)

    def properties(self) -> Properties:
        """Return what this instance guarantees in the values."""
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=math.inf,
            smoothness=math.inf,
            counterexamples=dict.fromkeys(
                ("upper", "lipschitz"),
                (torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1), torch.ones(1, 2)),
            ),
            source="Jia, Zhou 2021",
        )


def _checked_steps(dt: Any, rewards: Tensor, weight: Tensor | None) -> float | Tensor:
    """Return the lengths of the steps, a number or in the shape of the rewards."""
    if not isinstance(dt, Tensor):
        return check_positive("dt", dt)
    check_floating("dt", dt)
    if dt.shape not in (rewards.shape, rewards.shape[1:]):
        raise ValueError(
            f"dt: expected a number or shape {tuple(rewards.shape[1:])} or "
            f"{tuple(rewards.shape)}, got {tuple(dt.shape)}"
        )
    check_device("dt", dt, rewards)
    steps: Tensor = dt.expand(rewards.shape)
    if readable(steps):
        wrong = ~((steps >= 0) & (steps < math.inf))
        if weight is not None:
            wrong = wrong & (weight != 0).unsqueeze(1)
        if bool(wrong.any()):
            found = float(steps.detach()[wrong][0])
            raise ValueError(f"dt: expected finite numbers >= 0, got {found:g}")
    return steps
