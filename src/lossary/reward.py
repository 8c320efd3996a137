r"""Reward models: losses of pairs of rewards, and what is made of rewards afterwards.

.. math:: \ell = -\log \sigma(r_w - r_l)

with r the scores of two answers to one prompt, of which w is preferred (Bradley and Terry).

The consistency of rewards has no loss of its own (Shen et al., "The Trickle-down Impact of Reward
(In-)consistency on RLHF", 2023): ConvexDA chooses augmentations of the data, and RewardFusion
averages the rewards of similar examples at inference, ``reward_ensemble`` of them. Both train with
:class:`lossary.BradleyTerryLoss`.
"""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from lossary._base import Loss, LossOptions, _upcast
from lossary._checks import (
    check_alike,
    check_choice,
    check_device,
    check_floating,
    check_like,
    check_number,
    check_tensor,
)
from lossary._numerics import softplus
from lossary._pairwise import binary_entropy, logistic, steepest
from lossary._properties import Properties
from lossary._sequence_base import present_tokens


class BradleyTerryLoss(Loss):
    r"""Bradley-Terry loss of a reward model: the chosen answer above the rejected one.

    .. math:: \ell = -(1 - \epsilon) \log \sigma(z) - \epsilon \log \sigma(-z)
              + c \, (r_w + r_l)^2, \qquad z = r_w - r_l - m

    Maximum likelihood where w is preferred with probability sigma(r_w - r_l). A margin m asks for
    more where annotators were sure. Differences alone leave open what is added to all rewards of a
    prompt: c > 0 keeps them centred at 0.

    Args:
        center_coef: the c above, >= 0, finite. Default 0; 0.01 is common.
        label_smoothing: epsilon in [0, 1), the probability that the label is wrong. Default 0.
        reduction: see :class:`lossary.Loss`.

    Shape:
        chosen_rewards, rejected_rewards (N, ...) of one shape; margin likewise, floating point, or
        ``None`` for 0. Values of the same shape. Of K answers to a prompt, ranked:
        :func:`lossary.ranked_pairs` makes the pairs.

    Properties:
        Convex, infinitely smooth, unbounded above. l >= H(epsilon), the entropy in nats, reached at
        z = log((1 - epsilon)/epsilon), for epsilon = 0 approached. For c = 0 unchanged when both
        rewards move by the same number, and the gradient in r_w is -sigma(-z) + epsilon, in r_l its
        opposite. Gradient flows to the margin, too.

    Limits:
        c = 0, r the policy's beta log-ratios: :class:`DPOLoss`. epsilon = 1/2:
        :class:`TieAwareBradleyTerryLoss` of ties.

    Note:
        softplus: log(1 + exp(r_l - r_w)), as some codes have it, is infinite from a difference of
        -89 on in float32. The margins of Llama 2 are 1, 2/3, 1/3 and 0, or 3, 2, 1 and 0, for
        answers significantly, moderately, slightly and negligibly better (RECALLED). Smoothing is
        of z, with the margin in it, as in :class:`SimPOLoss`.

    Raises:
        ValueError: ``center_coef`` negative or infinite, ``label_smoothing`` outside [0, 1); inputs
            of different shapes or devices.
        TypeError: hyper-parameters not numbers; inputs that are not floating-point tensors.

    Reference:
        Bradley, Terry, "Rank Analysis of Incomplete Block Designs", 1952. Margin: Touvron et al.,
        "Llama 2: Open Foundation and Fine-Tuned Chat Models", 2023. Centring: Eisenstein et al.,
        "Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking",
        2023. Verified against OpenRLHF; TRL's RewardTrainer was read.

    Example:
        >>> import torch
        >>> from lossary import BradleyTerryLoss
        >>> chosen, rejected = torch.tensor([1.5, 0.2]), torch.tensor([0.5, 0.7])
        >>> BradleyTerryLoss()(chosen, rejected)
        tensor(0.6437)
        >>> BradleyTerryLoss(center_coef=0.01)(chosen, rejected, torch.tensor([1.0, 0.0]))
        tensor(0.8577)
    """

    def __init__(
        self,
        center_coef: float = 0.0,
        label_smoothing: float = 0.0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.center_coef = check_number("center_coef", center_coef, 0.0, high_open=True)
        self.label_smoothing = check_number(
            "label_smoothing", label_smoothing, 0.0, 1.0, high_open=True
        )

    def per_sample(
        self, chosen_rewards: Tensor, rejected_rewards: Tensor, margin: Tensor | None = None
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        check_alike(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
        z = chosen_rewards - rejected_rewards
        if margin is not None:
            check_floating("margin", margin)
            check_like("margin", margin, "chosen_rewards", chosen_rewards)
            z = z - margin
        values = logistic(z, self.label_smoothing)
        if self.center_coef == 0.0:
            return values
        return values + self.center_coef * (chosen_rewards + rejected_rewards).square()

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the two rewards."""
        c, eps = self.center_coef, self.label_smoothing
        counterexamples = {"upper": ((-1.0,), (0.0,))}
        unknown = {}
        if c > 0.0:
            counterexamples["lipschitz"] = counterexamples["upper"]
            unknown["lower"] = "H(eps), but in the chosen reward alone it depends on the other"
        return Properties(
            convex=True,
            lower=binary_entropy(eps) if c == 0.0 else None,
            upper=math.inf,
            lipschitz=steepest(1.0, eps) if c == 0.0 else math.inf,
            smoothness=math.inf,
            minimiser="sigmoid(z) = p (1 - eps) + (1 - p) eps, w preferred with probability p",
            limits=(
                ("c = 0, r = beta log-ratios", "DPOLoss"),
                ("eps = 1/2", "TieAwareBradleyTerryLoss of ties"),
            ),
            counterexamples=counterexamples,
            unknown=unknown,
            source="Bradley and Terry 1952; Touvron et al. 2023; Eisenstein et al. 2023",
        )


def ranked_pairs(rewards: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return all pairs of K ranked answers to a prompt, better one first, and their weights.

    .. math:: \ell = -\frac{1}{\binom{K}{2}} \sum_{i < j} \log \sigma(r_i - r_j)

    for rewards in the order of the ranking, best first: that is the mean of
    ``BradleyTerryLoss()(chosen, rejected, weight=weight)``. Of a batch it is the mean over prompts,
    each of which counts the same, however many answers it has.

    Args:
        rewards: (..., K), K >= 2: the rewards of the answers to each prompt, best first.
        mask: (..., K), bool or numbers 0 and 1: 0 for places without an answer. Default ``None``:
            all are there. What stands in their places may be infinite or nan.

    Returns:
        ``(chosen, rejected, weight)``, each (..., K (K - 1)/2), pairs (1, 2), (1, 3), ..., (2, 3),
        ...; half precision as float32. The weights of a prompt's pairs are equal, those of pairs
        without an answer 0, and their sum is 1, or 0 where there is no pair. Gradient flows to the
        rewards.

    Raises:
        ValueError: K < 2; a mask of another shape, or other than 0 and 1 (on CPU tensors, where
            looking costs nothing).
        TypeError: rewards that are not floating point, a complex mask.

    Reference:
        Ouyang et al., "Training Language Models to Follow Instructions with Human Feedback", 2022,
        equation 1 (RECALLED).

    Example:
        >>> import torch
        >>> from lossary import BradleyTerryLoss, ranked_pairs
        >>> chosen, rejected, weight = ranked_pairs(torch.tensor([[2.0, 1.0, 1.5]]))
        >>> chosen, rejected
        (tensor([[2., 2., 1.]]), tensor([[1.0000, 1.5000, 1.5000]]))
        >>> BradleyTerryLoss()(chosen, rejected, weight=weight)
        tensor(0.5871)
    """
    check_floating("rewards", rewards)
    if rewards.dim() == 0 or rewards.shape[-1] < 2:
        raise ValueError(f"rewards: expected shape (..., K), K >= 2, got {tuple(rewards.shape)}")
    r: Tensor = _upcast(rewards)
    i, j = torch.triu_indices(r.shape[-1], r.shape[-1], 1, device=r.device)
    chosen, rejected = r.index_select(-1, i), r.index_select(-1, j)
    if mask is None:
        return chosen, rejected, torch.full_like(chosen, 1.0 / len(i))
    present = present_tokens(mask, rewards.shape, rewards)
    pairs = (present.index_select(-1, i) & present.index_select(-1, j)).to(r.dtype)
    return chosen, rejected, pairs / pairs.sum(-1, keepdim=True).clamp(min=1.0)


class TieAwareBradleyTerryLoss(Loss):
    r"""Bradley-Terry loss of preferences and of ties, whose rewards should agree.

    .. math:: \ell = -\log \sigma(r_w - r_l), \qquad \ell = -\frac{\lambda}{2} \bigl(\log
              \sigma(r_w - r_l) + \log \sigma(r_l - r_w)\bigr) \text{ of a tie}

    Where two answers differ in what should not matter only, such as style or length, a tie between
    them says so; preferences that differ in what does matter are the other half of the data.

    Args:
        tie_weight: lambda >= 0, finite. Default 1.
        reduction: see :class:`lossary.Loss`.

    Shape:
        chosen_rewards, rejected_rewards (N, ...) of one shape; tie likewise, bool: ``True`` where
        neither is preferred. Values of the same shape.

    Properties:
        Convex, infinitely smooth, unbounded above; l > 0, of a tie >= lambda log 2, reached where
        the rewards are equal. Unchanged when both rewards move by the same number, and of a tie
        when they are exchanged. The gradient in the chosen reward is -sigma(r_l - r_w), of a tie
        (lambda/2) tanh((r_w - r_l)/2).

    Limits:
        No ties: :class:`BradleyTerryLoss`. Ties, lambda = 1: the same with epsilon = 1/2.

    Note:
        Ties enter the mean as any pair does, with lambda = 0 too. One published description has the
        sign of the tie term reversed; it is a penalty.

    Raises:
        ValueError: ``tie_weight`` negative or infinite; inputs of different shapes or devices.
        TypeError: ``tie_weight`` not a number; rewards that are not floating point, ``tie`` that is
            not bool.

    Reference:
        Srivastava et al., "Robust Reward Modeling via Causal Rubrics" (Crome), 2025. Verified
        against a public description of it; there is no official code.

    Example:
        >>> import torch
        >>> from lossary import TieAwareBradleyTerryLoss
        >>> chosen, rejected = torch.tensor([1.5, 0.2]), torch.tensor([0.5, 0.7])
        >>> TieAwareBradleyTerryLoss()(chosen, rejected, torch.tensor([False, True]))
        tensor(0.5187)
    """

    def __init__(self, tie_weight: float = 1.0, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.tie_weight = check_number("tie_weight", tie_weight, 0.0, high_open=True)

    def per_sample(self, chosen_rewards: Tensor, rejected_rewards: Tensor, tie: Tensor) -> Tensor:
        """Return the loss of every pair, unreduced."""
        check_alike(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
        check_tensor("tie", tie)
        if tie.dtype is not torch.bool:
            raise TypeError(f"tie: expected a bool tensor, got {tie.dtype}")
        check_like("tie", tie, "chosen_rewards", chosen_rewards)
        z = chosen_rewards - rejected_rewards
        return torch.where(tie, self.tie_weight * logistic(z, 0.5), logistic(z, 0.0))

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the two rewards."""
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=math.sqrt(2.0) * max(1.0, self.tie_weight / 2.0),
            smoothness=math.inf,
            limits=(
                ("no ties", "BradleyTerryLoss"),
                ("ties, lambda = 1", "BradleyTerryLoss(label_smoothing=0.5)"),
            ),
            counterexamples={"upper": (-1.0, 0.0, False)},
            source="Srivastava et al. 2025; algebra",
        )


def reward_ensemble(
    rewards: Tensor,
    kind: str = "mean",
    coef: float = 0.5,
    unbiased: bool = False,
    nominal: Tensor | None = None,
    alpha: float = 0.5,
    std: Tensor | None = None,
) -> Tensor:
    r"""Return one reward for those of several models: their mean, or something more cautious.

    .. math:: \text{mean}: \frac{1}{K} \sum_k r_k, \qquad \text{wco}: \min_k r_k, \qquad
              \text{uwo}: \text{mean} - c \operatorname{var}_k r_k, \qquad
              \text{robust}: \alpha \, r_{\text{nominal}} + (1 - \alpha) \min_k r_k

    A policy finds the answers that one reward model is wrong about. Models that were trained apart
    are wrong about different ones: the worst case (WCO), or a penalty on their disagreement (UWO),
    takes the prize away.

    Args:
        rewards: (K, ...), K >= 1: the rewards of K models for each answer.
        kind: ``"mean"`` (default), ``"wco"``, ``"uwo"`` or ``"robust"``.
        coef: the c above, >= 0, finite. Default 0.5.
        unbiased: divide the variance by K - 1 instead of K. Default ``False``. A single model has
            no penalty either way.
        nominal: (...), for ``"robust"``: the rewards of the model that is trusted. Either these or
            ``std``.
        alpha: how far it is trusted, in [0, 1]. Default 0.5.
        std: (K, ...), for ``"robust"``: the standard deviation that each model states for its
            reward. Of each answer the model with the smallest is the nominal one.

    Returns:
        (...), float32 for half precision. Gradient flows to the rewards.

    Raises:
        ValueError: an unknown ``kind``; ``coef`` negative or infinite; ``alpha`` outside [0, 1];
            ``unbiased`` not a bool; K = 0, shapes that do not fit; ``"robust"`` with neither
            ``nominal`` nor ``std``, or both, another kind with one of them.
        TypeError: tensors that are not floating point, hyper-parameters that are not numbers.

    Reference:
        Coste, Anwar, Kirk, Krueger, "Reward Model Ensembles Help Mitigate Overoptimization", 2023.
        Their code has the variance over K - 1 in PPO and over K, as the paper, in best-of-n;
        verified against it. Robust: Yan et al., "Reward-Robust RLHF in LLMs", 2024, after a public
        summary: there the least *expected* reward over the ensemble is meant, of which the mean of
        the least reward of each answer, as here, is a lower bound. The choice by ``std`` is
        RECALLED.

    Example:
        >>> import torch
        >>> from lossary import reward_ensemble
        >>> rewards = torch.tensor([[1.0, 2.0], [0.0, 2.0], [2.0, 2.0]])
        >>> reward_ensemble(rewards, "wco"), reward_ensemble(rewards, "uwo")
        (tensor([0., 2.]), tensor([0.6667, 2.0000]))
    """
    check_choice("kind", kind, ("mean", "wco", "uwo", "robust"))
    coef = check_number("coef", coef, 0.0, high_open=True)
    alpha = check_number("alpha", alpha, 0.0, 1.0)
    check_choice("unbiased", unbiased, (True, False))
    check_floating("rewards", rewards)
    if rewards.dim() == 0 or len(rewards) == 0:
        raise ValueError(f"rewards: expected shape (K, ...), K >= 1, got {tuple(rewards.shape)}")
    r: Tensor = _upcast(rewards)
    if kind == "robust":
        return alpha * _nominal(r, nominal, std) + (1.0 - alpha) * r.amin(0)
    for name, x in (("nominal", nominal), ("std", std)):
        if x is not None:
            raise ValueError(f"{name}: expected None with kind={kind!r}, got {type(x).__name__}")
    if kind == "wco":
        return r.amin(0)
    mean = r.mean(0)
    if kind == "mean":
        return mean
    return mean - coef * r.var(0, correction=int(unbiased and len(r) > 1))


def _nominal(rewards: Tensor, nominal: Tensor | None, std: Tensor | None) -> Tensor:
    """Return the rewards of the model that is trusted, named or with the smallest deviation."""
    if (nominal is None) == (std is None):
        which = "neither" if std is None else "both"
        raise ValueError(f"nominal: expected a tensor, or std, with kind='robust', got {which}")
    if std is not None:
        check_floating("std", std)
        check_like("std", std, "rewards", rewards)
        return rewards.gather(0, std.argmin(0, keepdim=True)).squeeze(0)
    check_floating("nominal", nominal)
    assert nominal is not None
    check_like("nominal", nominal, "rewards[0]", rewards[0])
    chosen: Tensor = _upcast(nominal)
    return chosen


class LogSigmoidCenteredReward(nn.Module):
    r"""Log-sigmoid-centred rewards (LSC): the log-probability to beat a reference answer.

    .. math:: u = \log \sigma(r - r_{\text{ref}})

    with r_ref a reward of the same prompt, such as the mean or a quantile over answers of the
    policy that training starts from. A policy then gains by mending bad answers, not by making good
    ones ever better, where a reward model is least to be trusted. Under the Bradley-Terry model u
    is the log-probability that the answer is good, so that u of several properties are summed: all
    of them are to hold.

    Args:
        none. There is nothing to choose.

    Shape:
        rewards of any shape; reference_rewards of the same shape, or of as many dimensions with
        ones: (N, M) and (N, 1) for M answers to each of N prompts. Output: the shape of the
        rewards, float32 for half precision.

    Properties:
        Increasing and concave in the reward, infinitely smooth; u < 0, and log(1/2) at the
        reference. The gradient in r is sigma(r_ref - r), in r_ref its opposite. A transform, not a
        loss: without reduction or state.

    Limits:
        r far below r_ref: u = r - r_ref. Far above: 0.

    Note:
        softplus: nothing overflows, and far above u = -exp(r_ref - r) keeps its digits.

    Raises:
        ValueError: reference rewards of a shape that does not fit, or on another device.
        TypeError: inputs that are not floating point.

    Reference:
        Wang et al., "Transforming and Combining Rewards for Aligning Large Language Models", 2024.
        RECALLED; there is no official code.

    Example:
        >>> import torch
        >>> from lossary import LogSigmoidCenteredReward
        >>> samples = torch.tensor([[0.0, 1.0, 2.0]])
        >>> LogSigmoidCenteredReward()(samples, samples.mean(1, keepdim=True))
        tensor([[-1.3133, -0.6931, -0.3133]])
    """

    def __init__(self) -> None:  # nn.Module's own takes anything
        super().__init__()

    def forward(self, rewards: Tensor, reference_rewards: Tensor) -> Tensor:
        """Return the transformed rewards."""
        check_floating("rewards", rewards)
        check_floating("reference_rewards", reference_rewards)
        shape, found = tuple(rewards.shape), tuple(reference_rewards.shape)
        if len(found) != len(shape) or any(
            m not in (1, n) for m, n in zip(found, shape, strict=True)
        ):
            raise ValueError(
                f"reference_rewards: expected shape {shape}, or as many dimensions with ones, "
                f"got {found}"
            )
        check_device("reference_rewards", reference_rewards, rewards)
        return -softplus(_upcast(reference_rewards) - _upcast(rewards))
