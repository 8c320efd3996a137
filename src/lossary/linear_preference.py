r"""Preference losses fed from logits or hidden states, so that a step never holds (N, T, V).

.. math:: f = W h + b, \qquad
          \log \pi(y) = \sum_t \log \operatorname{softmax}(f_t)_{y_{t+1}}, \qquad
          \ell = \operatorname{loss}(\log \pi(y_w), \log \pi(y_l), \dots)

Two sequences per pair, times their length, times a vocabulary of 100 000, and the same again for
the reference model: the logits are what fills the memory in preference optimisation.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from lossary._base import Loss, _check_weight
from lossary._checks import (
    check_choice,
    check_floating,
    check_int,
    check_integers,
    check_positive,
    check_weight_type,
)
from lossary._layouts import Layout
from lossary._pairwise import LOGPS, AveragePreferenceLoss, PairwisePreferenceLoss
from lossary._properties import Properties
from lossary._sequence_base import per_token
from lossary.preference import DPOLoss
from lossary.sequences import sequence_logps

_LENGTHS = ("chosen_lengths", "rejected_lengths")
#: What is handed on to a loss that takes it, and what stands for none.
_FURTHER = {"label_smoothing": None, "win_prob": None, "lose_prob": None, "update": True}


class LinearPreferenceLoss(Loss):
    r"""Any pairwise preference loss, of logits or of hidden states instead of log-probabilities.

    .. math:: \ell = \operatorname{loss}\bigl(\log \pi(y_w), \log \pi(y_l),
              \log \pi_{\text{ref}}(y_w), \log \pi_{\text{ref}}(y_l)\bigr), \qquad
              \log \pi(y) = \sum_t m_t \log \operatorname{softmax}(f_t)_{y_{t+1}}

    What :func:`sequence_logps` and the loss do one after the other, in one call, of one forward
    pass over the chosen and the rejected sequences together. With :class:`LinearLogits` in the
    place of the logits, of the policy and of the reference, the step is "fused": logits are made
    tile by tile, and neither they nor their gradient are ever held. Log-probabilities or their
    averages, and lengths, go to the loss as it wants them.

    Args:
        loss: a :class:`PairwisePreferenceLoss` of two policy and two reference log-probabilities,
            or of the two of the policy, and of lengths; not one that needs further models,
            prompts or judges (DNO, INPO, SRPO, CREAM, SCIR), whose inputs
            :func:`linear_sequence_logps` makes. Default ``None``: ``DPOLoss()``.
        ignore_index: tokens with this label are left out. Default -100.
        shift: position t predicts labels[:, t + 1]. The default; ``False`` where the caller has
            shifted labels and mask.
        temperature: T > 0, that the logits of both models are divided by. Default 1.
        softcap: c > 0, the bound of logits in memory that are capped by a hyperbolic tangent, after
            the division by T. Default ``None``: not capped, or by :class:`LinearLogits` itself.
        reduction: see :class:`lossary.Loss`. Default ``None``: that of ``loss``.

    Shape:
        logits (2 N, T, V): N chosen sequences, then the N rejected ones in the same order. Logits
        in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`). labels (2 N, T): token ids
        or ``ignore_index``. mask (2 N, T), over the labels: bool or numbers 0 and 1; 0 leaves the
        token out, of a prompt for example. The reference, where the loss takes one, is
        reference_logits (2 N, T, V), in any of the layouts and without gradient, or reference_logps
        (2 N,), SUMS computed beforehand with the same labels and mask; or neither, where the loss
        can do without. label_smoothing, win_prob, lose_prob (N,) and update go to the loss, if it
        takes inputs of these names. weight (N,): of pairs. Values (N,).

    Properties:
        Values and gradients are those of the loss of :func:`sequence_logps`, and what the loss
        guarantees, it guarantees of the log-probabilities. Not convex in the logits. Separable, or
        coupled over the batch, as the loss is; a pair of weight 0 of a separable loss is left out
        before any arithmetic, whatever its logits are.

    Limits:
        Logits in memory: any order of derivative. Streamed or sharded: the first only; a second,
        ``torch.func`` and forward mode raise a RuntimeError.

    Note:
        Liger's fused losses take the same stacked rows, with labels shifted already
        (``shift=False`` here), and average over tokens where they are told to. Here the loss says
        what it wants: :class:`SimPOLoss` and others with ``average=True`` get averages. The loss
        computes in the precision of :func:`sequence_logps`, float32 or float64, and is added up
        over pairs and tiles in it; Liger's gradients are added up in the dtype of the weight.

        What does not fit in here is a matter of two lines, the second form of the example: a loss
        of averages that does not say so (:class:`HingePreferenceLoss` as RRHF, :class:`CPOLoss`
        with ``"ipo"``), inputs of other names of a loss of your own, log-probabilities and rewards
        to log.

    Raises:
        ValueError: an odd number of sequences, labels, mask or reference of another shape, both
            forms of the reference, or none where the loss needs one; what :func:`sequence_logps`
            and the loss refuse, as an answer without tokens where it takes lengths.
        TypeError: ``loss`` not a pairwise loss, or one of inputs that there are none of here; a
            reference or a further input that the loss does not take; wrong types.
        RuntimeError: a second derivative of streamed logits.

    Reference:
        Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024, whose
        ``chunked_loss`` has fused preference losses; Wijmans et al., "Cut Your Losses in
        Large-Vocabulary Language Models", 2024, for logits that are never held. Of the loss itself
        its own docstring names the source. Titles are RECALLED.

    Example:
        >>> import torch
        >>> from lossary import DPOLoss, LinearLogits, LinearPreferenceLoss, linear_sequence_logps
        >>> hidden = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]],
        ...                        [[0.0, 1.0], [1.0, 0.0], [9.0, 9.0]]])  # one pair
        >>> head, labels = torch.eye(2), torch.tensor([[0, 0, 1], [0, 1, 0]])
        >>> reference = torch.tensor([-1.0, -1.0])
        >>> criterion = LinearPreferenceLoss(DPOLoss(beta=0.5))
        >>> criterion(LinearLogits(hidden, head), labels, reference_logps=reference)
        tensor(0.6476)
        >>> logps = linear_sequence_logps(hidden, head, labels)
        >>> DPOLoss(beta=0.5)(*logps.chunk(2), *reference.chunk(2))
        tensor(0.6476)
    """

    loss: PairwisePreferenceLoss

    def __init__(
        self,
        loss: PairwisePreferenceLoss | None = None,
        *,
        ignore_index: int = -100,
        shift: bool = True,
        temperature: float = 1.0,
        softcap: float | None = None,
        reduction: str | None = None,
    ) -> None:
        loss = DPOLoss() if loss is None else loss
        if not isinstance(loss, PairwisePreferenceLoss):
            raise TypeError(
                f"loss: expected a PairwisePreferenceLoss, got {type(loss).__name__} ({loss!r})"
            )
        super().__init__(reduction=loss.reduction if reduction is None else reduction)
        self.loss = loss
        self.separable = loss.separable  # type: ignore[misc]
        self.ignore_index = check_int("ignore_index", ignore_index)
        check_choice("shift", shift, (True, False))
        self.shift = shift
        self.temperature = check_positive("temperature", temperature)
        self.softcap = None if softcap is None else check_positive("softcap", softcap)
        inputs = inspect.signature(loss.per_sample).parameters.values()
        self._needed = {p.name for p in inputs if p.default is p.empty}
        self._defaults = {p.name: p.default for p in inputs if p.default is not p.empty}
        if missing := self._needed - {*LOGPS, *_LENGTHS, *_FURTHER}:
            raise TypeError(
                "loss: expected one of log-probabilities of two answers and their lengths, got "
                f"{type(loss).__name__}, which needs {', '.join(sorted(missing))} too"
            )

    def per_sample(
        self,
        logits: Tensor | Layout,
        labels: Tensor,
        mask: Tensor | None = None,
        reference_logits: Tensor | Layout | None = None,
        reference_logps: Tensor | None = None,
        label_smoothing: Tensor | None = None,
        win_prob: Tensor | None = None,
        lose_prob: Tensor | None = None,
        update: bool = True,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        further = label_smoothing, win_prob, lose_prob, update
        return self._values(
            (logits, labels, mask, reference_logits, reference_logps, *further), None
        )[0]

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        logits, labels, mask, reference_logits, reference_logps, *further = inputs
        n = self._check_logits(logits, labels)
        self._check_reference(logits, reference_logits, reference_logps)
        if weight is not None:
            check_weight_type("weight", weight)
            _check_weight(weight, torch.Size((n,)), logits)
            if self.separable:
                absent = (weight == 0).expand(n).repeat(2).unsqueeze(1)
                labels = labels.long().masked_fill(absent, self.ignore_index)
        found = {}
        policy, lengths = self._logps(logits, labels, mask)
        found[LOGPS[0]], found[LOGPS[1]] = policy[:n], policy[n:]
        if reference_logits is not None:
            with torch.no_grad():
                # Detached besides: no_grad leaves the tangents of forward mode.
                reference_logps = self._logps(reference_logits, labels, mask)[0].detach()
        if reference_logps is not None:
            found[LOGPS[2]], found[LOGPS[3]] = reference_logps[:n], reference_logps[n:]
        if isinstance(self.loss, AveragePreferenceLoss) and self.loss.average:
            counts = dict(zip(LOGPS, (lengths[:n], lengths[n:]) * 2, strict=True))
            found = {name: per_token(x, counts[name]) for name, x in found.items()}
        if self.loss._lengths_needed()[0]:
            found[_LENGTHS[0]], found[_LENGTHS[1]] = lengths[:n], lengths[n:]
        found |= self._further(further)
        arguments = tuple(found.get(name, self._defaults.get(name)) for name in self.loss._names)
        return self.loss._values(arguments, weight)

    def _logps(self, logits: Any, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return sequence_logps(
            logits,
            labels,
            mask,
            ignore_index=self.ignore_index,
            shift=self.shift,
            temperature=self.temperature,
            softcap=self.softcap,
            return_lengths=True,
        )

    def _check_logits(self, logits: Any, labels: Any) -> int:
        """Return the number of pairs."""
        if not isinstance(logits, Layout):
            check_floating("logits", logits)
        if logits.dim() != 3 or logits.shape[0] % 2:
            raise ValueError(
                "logits: expected shape (2 N, T, V), the chosen sequences and then the rejected "
                f"ones, got {tuple(logits.shape)}"
            )
        check_integers("labels", labels)
        return int(logits.shape[0]) // 2

    def _check_reference(self, logits: Any, reference_logits: Any, reference_logps: Any) -> None:
        of_loss = type(self.loss).__name__
        if reference_logits is not None and reference_logps is not None:
            raise ValueError(
                "reference_logps: expected None beside reference_logits, "
                f"got {type(reference_logps).__name__}"
            )
        if reference_logits is None and reference_logps is None:
            if LOGPS[2] in self._needed:
                raise ValueError(
                    f"reference_logits: expected logits, or reference_logps, as {of_loss} needs a "
                    "reference, got None"
                )
            return
        name, x = "reference_logits", reference_logits
        if x is None:
            name, x = "reference_logps", reference_logps
        if LOGPS[2] not in self.loss._names:
            raise TypeError(
                f"{name}: expected None, as {of_loss} takes no reference, got {type(x).__name__}"
            )
        if x is reference_logps or not isinstance(x, Layout):
            check_floating(name, x)
        rows, length, _ = logits.shape
        if x is reference_logps and x.shape != (rows,):
            raise ValueError(f"{name}: expected shape ({rows},), got {tuple(x.shape)}")
        if x is reference_logits and (x.dim() != 3 or x.shape[:2] != (rows, length)):
            raise ValueError(f"{name}: expected shape ({rows}, {length}, V), got {tuple(x.shape)}")

    def _further(self, further: list[Any]) -> dict[str, Any]:
        """Return what is handed on to the loss, which must take it."""
        found = {}
        for (name, nothing), x in zip(_FURTHER.items(), further, strict=True):
            if name in self.loss._names:
                found[name] = x
            elif x is not nothing:
                raise TypeError(
                    f"{name}: expected {nothing}, as {type(self.loss).__name__} has no such input, "
                    f"got {type(x).__name__}"
                )
        return found

    def properties(self) -> Properties:
        """Return what this instance guarantees, as a function of the logits."""
        of_logps = "of the log-probabilities it is claimed by the loss, of the logits it is not"
        p = self.loss.properties()
        return Properties(
            smoothness=p.smoothness,
            limits=(("of sequence_logps", type(self.loss).__name__),),
            unknown=dict.fromkeys(("convex", "lower", "upper", "lipschitz"), of_logps)
            | ({} if p.smoothness is not None else {"smoothness": p.unknown.get("smoothness", "")}),
            source=p.source,
        )
