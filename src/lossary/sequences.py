r"""Log-probabilities of sequences, from the logits of a language model.

.. math:: \log \pi(y \mid x) = \sum_t m_t \log \operatorname{softmax}(f_t)_{y_{t+1}}

What the preference losses take as input, and the plain likelihood of a sequence as a loss. Token
log-probabilities come from the log-odds of :mod:`lossary._softmax`, in its tiles: no buffer of the
logits' size is made going forward, and one, the gradient, going back.
"""

import math
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from lossary._base import LossOptions, _upcast
from lossary._checks import (
    check_choice,
    check_device,
    check_floating,
    check_in_memory,
    check_int,
    check_integers,
    check_number,
    check_positive,
)
from lossary._layouts import Layout, LinearLogits
from lossary._numerics import softplus
from lossary._properties import Properties
from lossary._sequence_base import SequenceLoss, per_token, present_tokens
from lossary._softmax import LOG_ODDS, readable, row_statistics


def token_logps(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    ignore_index: int = -100,
    shift: bool = True,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    r"""Return the log-probability of every label token, exactly 0 where there is none.

    .. math:: \ell_t = m_t \log \operatorname{softmax}(z_t)_y, \qquad
              z = f / T \quad\text{or}\quad z = c \operatorname{tanh}(f / (c T))

    with y and m those of position t + 1 where ``shift`` is set, else of position t.

    Args:
        logits: of a language model, (N, T, V), floating point, V >= 2; in memory, sharded
            (:class:`ShardedLogits`) or streamed (:class:`LinearLogits`, which has a ``softcap`` of
            its own; :func:`linear_token_logps`).
        labels: token ids, (N, T), integers in [0, V) or ``ignore_index``.
        mask: (N, T), over the labels: bool, or numbers 0 and 1; 0 leaves the token out, whatever
            its label. Default: every token counts.
        ignore_index: tokens with this label are left out too. Default -100.
        shift: position t predicts labels[:, t + 1], and mask[:, t + 1] says whether it counts: the
            model's outputs and its own inputs, as they are. The default. ``False`` where labels
            and mask have been shifted by the caller.
        temperature: T > 0, that the logits are divided by. Default 1.
        softcap: c > 0, the bound of logits that are capped by a hyperbolic tangent, after the
            division by T; ``None``, the default, for models without, or that cap them themselves.

    Returns:
        Natural logarithms, <= 0, (N, T - 1) with ``shift``, else (N, T), in float32 for
        half-precision logits, else in their dtype. Differentiable to any order; the row of the
        gradient is onehot - softmax, and 0 where a token is left out, also where its logits are
        infinite or nan.

    Note:
        Computed as -log(1 + exp(t)) of the log-odds t against the label: log-probabilities next
        to 0 keep their digits. The logits are neither shifted nor copied; ``softcap`` costs copies
        of them. A label whose own logit is -inf has the log-probability -inf.

    Raises:
        ValueError: shapes that do not fit, T < 2 with ``shift``, fewer than 2 logits; a label that
            counts outside [0, V), or a mask other than 0 and 1 (on CPU tensors, where looking costs
            nothing); ``temperature`` or ``softcap`` not positive and finite.
        TypeError: logits that are not floating point, labels that are not integers, a complex mask;
            ``ignore_index`` not an int, ``temperature`` or ``softcap`` not numbers.

    Reference:
        Rafailov, Sharma, Mitchell, Ermon, Manning, Finn, "Direct Preference Optimization: Your
        Language Model is Secretly a Reward Model", 2023, whose code gathers from a log-softmax;
        TRL's ``selective_log_softmax`` gives the same numbers.

    Example:
        >>> import torch
        >>> from lossary import token_logps
        >>> logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [9.0, 9.0]]])
        >>> labels = torch.tensor([[0, 1, 0]])
        >>> token_logps(logits, labels)
        tensor([[-0.3133, -0.1269]])
        >>> token_logps(logits, labels, mask=torch.tensor([[0, 0, 1]]))
        tensor([[ 0.0000, -0.1269]])
    """
    return _scored(logits, labels, mask, ignore_index, shift, temperature, softcap)[0]


@overload
def sequence_logps(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    ignore_index: int = -100,
    shift: bool = True,
    average: bool = False,
    temperature: float = 1.0,
    softcap: float | None = None,
    return_lengths: Literal[False] = False,
) -> Tensor: ...


@overload
def sequence_logps(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    ignore_index: int = -100,
    shift: bool = True,
    average: bool = False,
    temperature: float = 1.0,
    softcap: float | None = None,
    return_lengths: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def sequence_logps(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    ignore_index: int = -100,
    shift: bool = True,
    average: bool = False,
    temperature: float = 1.0,
    softcap: float | None = None,
    return_lengths: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Return the log-probability of every sequence: the sum over its tokens, or their average.

    .. math:: \log \pi(y \mid x) = \sum_t \ell_t \quad\text{or}\quad
              \frac{\sum_t \ell_t}{\max(\sum_t m_t, 1)}

    with the token log-probabilities of :func:`token_logps`. With the prompt masked out it is the
    log-probability of the completion: what the preference losses take, computed with the gradient
    for the policy and under ``torch.no_grad()`` for the reference model.

    Sums and averages are not interchangeable. Sums: DPO and its relatives, KTO, BCO, and the
    default here. Averages: SimPO and ORPO. IPO in TRL, and DPO with ``length_normalize``, take sums
    and divide the log-ratios by the lengths; TRL up to 0.24 averaged the log-probabilities for IPO.

    Args:
        logits: of a language model, (N, T, V), floating point, V >= 2.
        labels: token ids, (N, T), integers in [0, V) or ``ignore_index``.
        mask: (N, T), over the labels: bool, or numbers 0 and 1; 0 leaves the token out, whatever
            its label. Default: every token counts.
        ignore_index: tokens with this label are left out too. Default -100.
        shift: position t predicts labels[:, t + 1]. The default; ``False`` where the caller has
            shifted labels and mask.
        average: divide by the number of tokens that count, or by 1 where none does. Default
            ``False``: the sum.
        temperature: T > 0, that the logits are divided by. Default 1.
        softcap: c > 0, the bound of logits that are capped by a hyperbolic tangent, after the
            division by T. Default ``None``: not capped.
        return_lengths: return the numbers of tokens that count as well.

    Returns:
        Natural logarithms, (N,), <= 0, in float32 for half-precision logits, else in their dtype;
        0 for a sequence without tokens. With ``return_lengths`` a pair, of these and of int64
        lengths (N,). TRL counts lengths before the shift: the same, unless the first token of a
        sequence belongs to the completion, which has no prediction and is not counted here.

    Raises:
        ValueError: as :func:`token_logps`.
        TypeError: as :func:`token_logps`.

    Reference:
        Rafailov, Sharma, Mitchell, Ermon, Manning, Finn, "Direct Preference Optimization: Your
        Language Model is Secretly a Reward Model", 2023. Same numbers as the authors' code, TRL and
        open-instruct.

    Example:
        >>> import torch
        >>> from lossary import sequence_logps
        >>> logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [9.0, 9.0]]])
        >>> labels = torch.tensor([[0, 1, 0]])
        >>> sequence_logps(logits, labels)
        tensor([-0.4402])
        >>> sequence_logps(logits, labels, average=True, return_lengths=True)
        (tensor([-0.2201]), tensor([2]))
    """
    logps, present = _scored(logits, labels, mask, ignore_index, shift, temperature, softcap)
    return _summed(logps, present, average, return_lengths)


def linear_token_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    tile_size: int | None = None,
) -> Tensor:
    r"""Return the log-probability of every label token, from hidden states instead of logits.

    .. math:: \ell_t = \log \operatorname{softmax}(z_t)_y, \qquad
              f = W h + b, \quad z = f / T \quad\text{or}\quad
              z = c \operatorname{tanh}(f / (c T))

    The numbers of :func:`token_logps` of the logits W h + b, which are never held: they are made
    tile by tile, and once more in backward. Tokens that are left out, a prompt say, cost nothing on
    a CPU. Nothing is shifted here: hidden[..., i, :] predicts labels[..., i].

    Args:
        hidden: what goes into the head of a language model, (..., H), floating point.
        weight: the head's, (V, H), V >= 2. Frozen, it costs backward neither work nor memory.
        labels: token ids, (...), integers in [0, V) or ``ignore_index``.
        bias: the head's, (V,), or ``None``.
        ignore_index: tokens with this label are left out. Default -100.
        temperature: T > 0, that the logits are divided by. Default 1.
        softcap: c > 0, the bound of logits that are capped by a hyperbolic tangent, after the
            division by T. Default ``None``: not capped.
        tile_size: rows of a tile: see :class:`LinearLogits`.

    Returns:
        Natural logarithms, <= 0, (...), in float32 for half precision, else in the dtype of
        ``hidden``; exactly 0 where a token is left out, and no gradient there, also where its
        hidden states are infinite or nan. Differentiable once: see :class:`LinearLogits`.

    Raises:
        ValueError: shapes that do not fit; a label that counts outside [0, V) (on CPU tensors,
            where looking costs nothing); ``temperature``, ``softcap`` or ``tile_size`` not
            positive, or infinite.
        TypeError: tensors that are not floating point, labels that are not integers, options of a
            wrong type.
        RuntimeError: a second derivative, ``torch.func`` or forward mode.

    Reference:
        Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", 2024, and Liger
        Kernel compute the same without the logits; neither's numbers are approximated here.

    Example:
        >>> import torch
        >>> from lossary import linear_token_logps
        >>> hidden = torch.tensor([[0.0, 1.0], [2.0, 0.0], [9.0, 9.0]])
        >>> linear_token_logps(hidden, torch.eye(2), torch.tensor([1, 0, -100]))
        tensor([-0.3133, -0.1269,  0.0000])
    """
    logits = LinearLogits(
        hidden, weight, bias, temperature=temperature, softcap=softcap, tile_size=tile_size
    )
    check_integers("labels", labels)
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(
            f"labels: expected shape {tuple(hidden.shape[:-1])} for hidden states of shape "
            f"{tuple(hidden.shape)}, got {tuple(labels.shape)}"
        )
    check_device("labels", labels, hidden)
    check_int("ignore_index", ignore_index)
    labels = labels.long()
    target = _in_vocabulary(labels, labels == ignore_index, len(weight), ignore_index)
    (t,) = row_statistics(logits, target, (LOG_ODDS,), class_dim=-1)  # type: ignore[arg-type]
    return torch.where(target >= 0, -softplus(t), 0.0)


@overload
def linear_sequence_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    shift: bool = True,
    average: bool = False,
    temperature: float = 1.0,
    softcap: float | None = None,
    tile_size: int | None = None,
    return_lengths: Literal[False] = False,
) -> Tensor: ...


@overload
def linear_sequence_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    shift: bool = True,
    average: bool = False,
    temperature: float = 1.0,
    softcap: float | None = None,
    tile_size: int | None = None,
    return_lengths: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def linear_sequence_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    shift: bool = True,
    average: bool = False,
    temperature: float = 1.0,
    softcap: float | None = None,
    tile_size: int | None = None,
    return_lengths: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Return the log-probability of every sequence, from hidden states instead of logits.

    .. math:: \log \pi(y \mid x) = \sum_t \ell_t \quad\text{or}\quad
              \frac{\sum_t \ell_t}{\max(\sum_t m_t, 1)}

    The numbers of :func:`sequence_logps` of the logits W h + b, which are never held. With a
    vocabulary of 100 000 they are what fills the memory in preference optimisation: two sequences
    per pair, and the same again for the reference model.

    Args:
        hidden: what goes into the head of a language model, (N, T, H), floating point.
        weight: the head's, (V, H), V >= 2. Frozen, it costs backward neither work nor memory.
        labels: token ids, (N, T), integers in [0, V) or ``ignore_index``.
        mask: (N, T), over the labels: bool, or numbers 0 and 1; 0 leaves the token out, whatever
            its label. Default: every token counts.
        bias: the head's, (V,), or ``None``.
        ignore_index: tokens with this label are left out too. Default -100.
        shift: position t predicts labels[:, t + 1]. The default; ``False`` where the caller has
            shifted labels and mask.
        average: divide by the number of tokens that count, or by 1 where none does. Default
            ``False``: the sum.
        temperature: T > 0, that the logits are divided by. Default 1.
        softcap: c > 0, the bound of logits that are capped by a hyperbolic tangent, after the
            division by T. Default ``None``: not capped.
        tile_size: rows of a tile: see :class:`LinearLogits`.
        return_lengths: return the numbers of tokens that count as well.

    Returns:
        As :func:`sequence_logps`: (N,), or with ``return_lengths`` a pair, of these and of int64
        lengths (N,). Differentiable once: see :class:`LinearLogits`.

    Raises:
        ValueError: as :func:`token_logps` and :class:`LinearLogits`.
        TypeError: as :func:`token_logps` and :class:`LinearLogits`.
        RuntimeError: a second derivative, ``torch.func`` or forward mode.

    Reference:
        Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", 2024, and Liger
        Kernel compute the same without the logits; neither's numbers are approximated here.

    Example:
        >>> import torch
        >>> from lossary import linear_sequence_logps
        >>> hidden = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [9.0, 9.0]]])
        >>> linear_sequence_logps(hidden, torch.eye(2), torch.tensor([[0, 1, 0]]))
        tensor([-0.4402])
    """
    logits = LinearLogits(
        hidden, weight, bias, temperature=temperature, softcap=softcap, tile_size=tile_size
    )
    logps, present = _scored(logits, labels, mask, ignore_index, shift, 1.0, None)
    return _summed(logps, present, average, return_lengths)


def ld_sequence_logps(
    token_logps: Tensor, mask: Tensor, partner_lengths: Tensor, alpha: float
) -> Tensor:
    r"""Return sequence log-probabilities in which tokens beyond the partner's length count less.

    .. math:: \sum_{t \le l_p} \ell_t + \alpha \sum_{t > l_p} \ell_t, \qquad
              l_p = \min(l_w, l_l)

    LD-DPO: of a pair the longer completion has the larger log-ratio merely by its length, and DPO
    learns to be verbose. Give the result to :class:`DPOLoss` instead of the plain sums; for chosen
    and rejected alike, each with the other's lengths. TRL 1.x does so for policy and reference,
    TRL 0.19 for the policy only.

    Args:
        token_logps: of :func:`token_logps`, (N, T), floating point.
        mask: of the same shape, bool or numbers 0 and 1: which tokens count. Behind ``shift`` that
            is ``mask[:, 1:]``.
        partner_lengths: (N,), the number of tokens of the other completion of the pair, integers
            >= 0, as :func:`sequence_logps` returns them.
        alpha: 0 <= alpha <= 1, the weight of the tokens beyond. 1 is the plain sum, 0 truncates.

    Returns:
        (N,), in float32 for half precision, else in the dtype of ``token_logps``. What ``mask``
        leaves out, and for ``alpha=0`` what is cut off, touches neither value nor gradient.

    Raises:
        ValueError: shapes that do not fit, ``alpha`` outside [0, 1]; negative lengths, or a mask
            other than 0 and 1 (on CPU tensors, where looking costs nothing).
        TypeError: ``token_logps`` not floating point, lengths that are not integers, a complex
            mask, ``alpha`` not a number.

    Reference:
        Liu et al., "Length Desensitization in Direct Preference Optimization", 2024. Read in TRL's
        code; the paper's own notation is RECALLED.

    Example:
        >>> import torch
        >>> from lossary import ld_sequence_logps
        >>> logps = torch.tensor([[0.0, -1.0, -2.0, -4.0]])
        >>> mask = torch.tensor([[0, 1, 1, 1]])
        >>> ld_sequence_logps(logps, mask, partner_lengths=torch.tensor([2]), alpha=0.5)
        tensor([-5.])
    """
    check_floating("token_logps", token_logps)
    if token_logps.dim() != 2:
        raise ValueError(f"token_logps: expected shape (N, T), got {tuple(token_logps.shape)}")
    present = present_tokens(mask, token_logps.shape, token_logps)
    check_integers("partner_lengths", partner_lengths)
    if partner_lengths.shape != token_logps.shape[:1]:
        raise ValueError(
            f"partner_lengths: expected shape {tuple(token_logps.shape[:1])}, "
            f"got {tuple(partner_lengths.shape)}"
        )
    check_device("partner_lengths", partner_lengths, token_logps)
    if readable(partner_lengths) and bool((partner_lengths < 0).any()):
        raise ValueError(
            f"partner_lengths: expected lengths >= 0, got {int(partner_lengths.min())}"
        )
    alpha = check_number("alpha", alpha, 0.0, 1.0)
    logps = torch.where(present, _upcast(token_logps), 0.0)
    common = present.cumsum(1) <= partner_lengths.unsqueeze(1)
    out = torch.where(common, logps, 0.0).sum(1)
    # Not 0 times the rest, which may be infinite.
    return out + alpha * torch.where(common, 0.0, logps).sum(1) if alpha else out


class SequenceNLLLoss(SequenceLoss):
    r"""Negative log-likelihood of sequences: the SFT term, in the three normalisations in use.

    .. math:: \text{token: } \frac{-\sum_i \log \pi_i}{\sum_i L_i}, \qquad
              \text{sequence: } \frac{1}{N} \sum_i \frac{-\log \pi_i}{L_i}, \qquad
              \text{sum: } \frac{1}{N} \sum_i -\log \pi_i

    All three are called "the SFT loss". ``"token"``, in which every token counts the same, is that
    of TRL and Liger; ``"sequence"``, in which every sequence does, that of several papers on
    reasoning; ``"sum"`` that of RPO and of maximum likelihood. The sum is larger than the others
    by a factor of the length, and so the learning rate that it takes is hundreds of times smaller.

    Args:
        normalize: ``"token"`` (default), ``"sequence"`` or ``"sum"``.
        reduction: see :class:`lossary.Loss`. The formulas are those of ``"mean"``.

    Shape:
        policy_logps (N, ...): SUMS of token log-probabilities, of :func:`sequence_logps`; lengths
        of the same shape: how many tokens they are sums of, integers, float32 or float64; only
        where they are used: ``None`` with ``"sum"``. Values of the same shape.

    Properties:
        Linear in the log-probabilities; >= 0 where they are <= 0, as those of tokens are. The
        gradient is at most 1 per sequence in absolute value.

    Limits:
        All lengths equal: ``"token"`` and ``"sequence"`` are the same. All 1: all are.

    Note:
        For ``"token"`` the value of a sequence is -log pi and its share in the denominator of the
        mean is w L: weights and masks act on tokens and counts alike. ``"none"`` returns the values
        and ``"sum"`` their sum; for exact gradient accumulation give the number of tokens of the
        whole batch as ``normalizer``. ``"batchmean"`` divides by the number of sequences.

    Raises:
        ValueError: unknown ``normalize``; lengths of another shape, or below 1 (on CPU tensors,
            where looking costs nothing; elsewhere they count as 1 in ``"sequence"``).
        TypeError: log-probabilities not floating point; lengths missing, not numbers, in half
            precision, which cannot count to 300, or given though not used.

    Reference:
        TRL, ``loss_type="sft"``, 2025, for ``"token"``. Of the others no paper is the source.

    Example:
        >>> import torch
        >>> from lossary import SequenceNLLLoss
        >>> logps, lengths = torch.tensor([-4.0, -30.0]), torch.tensor([4, 10])
        >>> SequenceNLLLoss()(logps, lengths)
        tensor(2.4286)
        >>> SequenceNLLLoss("sequence")(logps, lengths), SequenceNLLLoss("sum")(logps)
        (tensor(2.), tensor(17.))
    """

    def __init__(self, normalize: str = "token", **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        check_choice("normalize", normalize, ("token", "sequence", "sum"))
        self.normalize = normalize

    def per_sample(
        self, policy_logps: Tensor, lengths: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the loss of every sequence, unreduced; for ``"token"`` with the denominators."""
        nll = -policy_logps
        if lengths is None:
            return nll
        if self.normalize == "sequence":
            return per_token(nll, lengths)
        return nll, lengths.to(nll.dtype)

    def _lengths_needed(self) -> tuple[bool, str]:
        return self.normalize != "sum", f"normalize={self.normalize!r}"

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        further = () if self.normalize == "sum" else (1,)
        return Properties(
            convex=True,
            lower=-math.inf,
            upper=math.inf,
            lipschitz=1.0,
            smoothness=math.inf,
            limits=(("all lengths equal", "'token' and 'sequence' are the same"),),
            counterexamples={"lower": (1.0, *further), "upper": (-1.0, *further)},
            source="TRL",
        )


# Checking the arguments.


def _summed(
    logps: Tensor, present: Tensor, average: bool, return_lengths: bool
) -> Tensor | tuple[Tensor, Tensor]:
    out, lengths = logps.sum(1), present.sum(1)
    if average:
        out = per_token(out, lengths)
    return (out, lengths) if return_lengths else out


def _scored(
    logits: Any,
    labels: Tensor,
    mask: Tensor | None,
    ignore_index: int,
    shift: bool,
    temperature: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Return the token log-probabilities, and which tokens count."""
    target = _targets(logits, labels, mask, ignore_index, shift)
    temperature = check_positive("temperature", temperature)
    present = target >= 0
    if softcap is not None:
        check_in_memory(logits, "softcap, which LinearLogits takes itself,")
        softcap = check_positive("softcap", softcap)
        # The slope of tanh at nan, times 0, is nan: what is left out is cleaned before.
        clean = _upcast(logits.masked_fill(~present.unsqueeze(-1), 0.0))
        logits, temperature = torch.tanh(clean / (softcap * temperature)), 1.0 / softcap
    (t,) = row_statistics(logits, target, (LOG_ODDS,), class_dim=-1, temperature=temperature)
    logps = torch.where(present, -softplus(t), 0.0)
    # Only the labels were shifted: a slice of the logits could not be viewed as rows.
    return (logps[:, :-1], present[:, :-1]) if shift else (logps, present)


def _targets(
    logits: Any,
    labels: Tensor,
    mask: Tensor | None,
    ignore_index: int,
    shift: bool,
) -> Tensor:
    """Return the label that each position predicts, -1 where it predicts none."""
    name = "logits"
    if isinstance(logits, LinearLogits):
        name, shape = "hidden", tuple(logits.hidden.shape)
        if len(shape) != 3:
            raise ValueError(f"hidden: expected shape (N, T, H), got {shape}")
    else:
        if not isinstance(logits, Layout):
            check_floating("logits", logits)
        if logits.dim() != 3 or logits.shape[2] < 2:
            shape = tuple(logits.shape)
            raise ValueError(f"logits: expected shape (N, T, V) with V >= 2, got {shape}")
    n, length, vocabulary = logits.shape
    check_integers("labels", labels)
    if labels.shape != (n, length):
        raise ValueError(
            f"labels: expected shape {(n, length)} for logits of shape {tuple(logits.shape)}, "
            f"got {tuple(labels.shape)}"
        )
    check_device("labels", labels, logits)
    check_int("ignore_index", ignore_index)
    if shift and length < 2:
        raise ValueError(f"{name}: expected T >= 2 positions with shift=True, got {length}")
    labels = labels.long()
    absent = labels == ignore_index
    if mask is not None:
        absent = absent | ~present_tokens(mask, labels.shape, logits)
    if shift:
        labels, absent = labels.roll(-1, 1), absent.roll(-1, 1)
        last = torch.arange(length, device=labels.device) == length - 1
        absent = absent | last
    return _in_vocabulary(labels, absent, vocabulary, ignore_index)


def _in_vocabulary(labels: Tensor, absent: Tensor, vocabulary: int, ignore_index: int) -> Tensor:
    """Return the labels, -1 where they are absent; the others must be in the vocabulary."""
    if readable(labels):
        wrong = ((labels < 0) | (labels >= vocabulary)) & ~absent
        if bool(wrong.any()):
            raise ValueError(
                f"labels: expected token ids in [0, {vocabulary}) or ignore_index={ignore_index}, "
                f"got {int(labels[wrong][0])}"
            )
    else:
        # A stray -1 would count as left out: beyond the vocabulary, the gather fails on it.
        labels = torch.where(labels < 0, vocabulary, labels)
    return labels.masked_fill(absent, -1)
