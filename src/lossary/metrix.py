r"""Metrix: pair-based losses in one form, which takes mixed examples with interpolated labels.

.. math:: \ell(a) = \tau\Bigl(\sigma^+\bigl(\textstyle\sum_v y_v\, \rho^+(s_{av})\bigr) +
          \sigma^-\bigl(\sum_v (1 - y_v)\, \rho^-(s_{av})\bigr)\Bigr)

With labels y of 0 and 1 the sums are those over negatives and positives of an anchor, and the form
is that of most losses over pairs. With labels in between it is a loss of examples that are partly
positive: mixtures of two embeddings.
"""

from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from lossary._checks import (
    check_choice,
    check_device,
    check_embeddings,
    check_floating,
    check_integers,
    check_like,
    check_number,
    check_positive,
)
from lossary._embedding_base import EmbeddingLoss, EmbeddingOptions, check_labels
from lossary._numerics import softplus
from lossary._properties import Properties
from lossary._softmax import readable


class _Member(NamedTuple):
    """The defaults of a member of the table; ``None`` where its formula has no such number."""

    pos_scale: float | None = None
    neg_scale: float | None = None
    margin: float | None = None


_MEMBERS = {
    "contrastive": _Member(margin=0.5),
    "contrastive_distance": _Member(margin=0.5),
    "multi_similarity": _Member(2.0, 50.0, 0.5),
    "proxy_anchor": _Member(32.0, 32.0, 0.1),
    "binomial": _Member(2.0, 50.0, 0.5),
    "lifted": _Member(margin=0.5),
    "nca": _Member(),
}
_KINDS = ("pos_neg", "anchor_neg")


class _Pairs(NamedTuple):
    """What anchors are held against."""

    #: (A, M) similarities of anchors and rows, which are positive, and which are there at all.
    s: Tensor
    positive: Tensor
    mask: Tensor
    #: (A,) and (M,), the squared norms, 1 but for rows of zeros.
    anchor_size: Tensor
    size: Tensor
    #: (M, M), of the rows with each other.
    between: Tensor


class MetrixLoss(EmbeddingLoss):
    r"""Metrix: a pair-based loss, plus the same loss of mixed embeddings.

    .. math:: L = \frac1A \sum_a \bigl(\ell(a) + w\, \ell'(a)\bigr), \qquad
              v = \frac{\lambda x + (1 - \lambda) x'}{\lVert \lambda x + (1 - \lambda) x' \rVert},
              \qquad y = \lambda

    where the clean loss l(a) is a member of the table, and the mixed one is the same formula of
    examples v between a positive x of the anchor (or the anchor itself) and a negative x', with the
    label y and lambda ~ Beta(alpha, alpha):

    ==================== ================= ================== ======================== ===========
    ``base``             rho+              rho-               sigma                    tau
    ==================== ================= ================== ======================== ===========
    contrastive          -s                [s - m]_+          identity                 identity
    contrastive_distance d                 [m - d]_+          identity                 identity
    multi_similarity     e^(-b (s - m))    e^(g (s - m))      log(1 + x)/b, .../g      identity
    proxy_anchor         e^(-b (s - m))    e^(g (s + m))      log(1 + x), own counts   identity
    binomial             softplus(b (m-s)) softplus(g (s-m))  identity                 identity
    lifted               e^(-s)            e^(s - m)          log                      [.]_+
    nca                  e^s               e^s                -log, log                identity
    ==================== ================= ================== ======================== ===========

    with d = sqrt(2 - 2 s). Mixing in the space of embeddings fills the gaps between classes with
    examples that were not sampled; it costs no forward pass of the network.

    Args:
        base: the member. Default ``"contrastive"``.
        mix_weight: w >= 0; 0 gives the clean loss, and draws nothing. Default 0.4.
        pairs: what is mixed, of ``"pos_neg"`` and ``"anchor_neg"``; of two kinds one is drawn at
            every call. Default both.
        beta_alpha: alpha > 0 of the Beta distribution. Default 2.
        pos_scale: b > 0, of the members that have it. Default ``None``: 2; 32 of proxy_anchor.
        neg_scale: g > 0, likewise. Default ``None``: 50; 32 of proxy_anchor.
        margin: m, any finite number. Default ``None``: 0.5; 0.1 of proxy_anchor.
        normalize: divide the rows by their norm. Default ``True``. Mixtures always are.
        gather: whether the rows of all processes are met: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`. The formula is ``"mean"``.

    Shape:
        embeddings (N, D), labels (N,) of any integers; anchors (A, D), anchor_labels (A,), for
        example the parameter of :class:`ProxyAnchorLoss`; generator, a ``torch.Generator`` on the
        device of the embeddings. Without anchors the embeddings are; without anchor_labels those
        are 0, ..., A-1. Values (A,). Dense: A x N and N x N similarities.

        ``generic(similarity, soft_label, mask)``, three (A, M), returns the member's formula (A,).
        ``mixed(embeddings, anchor_index, positive_index, negative_index, lam)``, with (A,) and
        three times (A, R), returns the mixed loss (A,) of that draw; lam in [0, 1].

    Properties:
        The loss is batch-coupled. Infinitely smooth in the similarities but for the kinks of the
        hinges. l >= 0 but for ``"contrastive"`` and ``"nca"``. Unchanged by a rotation of all
        embeddings and, in distribution, by their order.

    Limits:
        Labels in {0, 1}: the clean loss. lambda = 1: v is its first element. ``multi_similarity``
        with w = 0: :class:`MultiSimilarityLoss`. ``proxy_anchor`` with the proxies as anchors and
        w = 0: :class:`ProxyAnchorLoss`. An anchor without negatives, or to be mixed without
        positives, skips its mixed term; one without positives or without negatives has the clean
        value 0 in ``nca`` and ``lifted``, whose logarithms it has not.

    Note:
        Every negative of an anchor is mixed once, with a positive drawn at random and a lambda of
        its own; which examples the authors mix is not known. The general form and the table are
        RECALLED, with ``lifted`` at e^(s - m) as in the table, and the default scales are those of
        the original losses. The authors' code has ``contrastive_distance`` only, and averages each
        of its two sums over the entries that are not 0. Similarities of mixtures come from inner
        products: no mixture is held. For rows nearer than 1e-3 in float32 sqrt(2 - 2s) has few
        digits. Exponentials are summed in logarithms, with log y and log(1 - y) in them. Each
        process draws for its own anchors; with anchors given, each computes the whole.

    Raises:
        ValueError: unknown ``base`` or ``pairs``, numbers out of their range or given to a member
            without them; ``proxy_anchor`` without anchors, shapes that do not fit, soft labels or
            ``lam`` outside [0, 1] (looked at on CPU tensors); a ``process_group`` without this
            process.
        TypeError: labels or indices that are not integers, embeddings that are not floating point,
            a mask that is not bool, ``generator`` none.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Venkataramanan, Psomas, Kijak, Amsaleg, Karantzalos, Avrithis, "It Takes Two to Tango: Mixup
        for Deep Metric Learning", 2022. The mixed contrastive term verified against the authors'
        code, the general form RECALLED.

    Example:
        >>> import torch
        >>> from lossary import MetrixLoss
        >>> loss = MetrixLoss("multi_similarity", mix_weight=0.0)
        >>> embeddings = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 1.0], [0.0, 1.0]])
        >>> loss(embeddings, torch.tensor([0, 0, 1, 1]))
        tensor(0.6481)
        >>> similarity, soft_label = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.75, 0.0]])
        >>> loss.generic(similarity, soft_label, torch.tensor([[True, True]]))
        tensor([0.4446])
    """

    def __init__(
        self,
        base: str = "contrastive",
        mix_weight: float = 0.4,
        pairs: tuple[str, ...] = _KINDS,
        beta_alpha: float = 2.0,
        pos_scale: float | None = None,
        neg_scale: float | None = None,
        margin: float | None = None,
        normalize: bool = True,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(normalize, **options)
        check_choice("base", base, tuple(_MEMBERS))
        self.base = base
        self.mix_weight = check_number("mix_weight", mix_weight, 0.0, high_open=True)
        if not isinstance(pairs, tuple | list) or not pairs or not set(pairs) <= set(_KINDS):
            raise ValueError(f"pairs: expected some of {_KINDS}, got {pairs!r}")
        self.pairs = tuple(pairs)
        self.beta_alpha = check_positive("beta_alpha", beta_alpha)
        self.pos_scale = self._number("pos_scale", pos_scale)
        self.neg_scale = self._number("neg_scale", neg_scale)
        self.margin = self._number("margin", margin)

    def _number(self, name: str, value: float | None) -> float | None:
        """Return a number of the member's formula, ``None`` where it has none."""
        default: float | None = getattr(_MEMBERS[self.base], name)
        if value is None:
            return default
        if default is None:
            raise ValueError(f"{name}: expected None for base={self.base!r}, got {value!r}")
        if name == "margin":
            return check_number(name, value, low_open=True, high_open=True)
        return check_positive(name, value)

    def per_sample(
        self,
        embeddings: Tensor,
        labels: Tensor,
        anchors: Tensor | None = None,
        anchor_labels: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss of every anchor, unreduced."""
        if not isinstance(generator, torch.Generator | None):
            raise TypeError(
                f"generator: expected a torch.Generator or None, got {type(generator).__name__}"
            )
        pairs = self._against(embeddings, labels, anchors, anchor_labels)
        value = self._member(pairs.s, pairs.positive.to(pairs.s.dtype), pairs.mask)
        if self.mix_weight == 0.0:
            return value
        return value + self.mix_weight * self._drawn(pairs, generator)

    def generic(self, similarity: Tensor, soft_label: Tensor, mask: Tensor) -> Tensor:
        """Return the member's formula (A,) of similarities (A, M) with labels in [0, 1].

        Args:
            similarity: (A, M), floating point.
            soft_label: (A, M), how much of each is positive.
            mask: (A, M), bool: which are there.
        """
        check_floating("similarity", similarity)
        if similarity.dim() != 2:
            raise ValueError(f"similarity: expected shape (A, M), got {tuple(similarity.shape)}")
        _check_shares("soft_label", soft_label, "similarity", similarity)
        if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
            what = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask: expected a bool tensor, got {what}")
        check_like("mask", mask, "similarity", similarity)
        return self._member(similarity, soft_label, mask)

    def mixed(
        self,
        embeddings: Tensor,
        anchor_index: Tensor,
        positive_index: Tensor,
        negative_index: Tensor,
        lam: Tensor,
    ) -> Tensor:
        """Return the mixed loss (A,) of a given draw.

        Args:
            embeddings: (N, D).
            anchor_index: (A,), which rows are anchors.
            positive_index: (A, R), the first of what is mixed; the anchor itself is one, too.
            negative_index: (A, R), the second.
            lam: (A, R), in [0, 1], the share of the first.
        """
        check_embeddings(embeddings=embeddings)
        indices = {"positive_index": positive_index, "negative_index": negative_index}
        for name, index in {"anchor_index": anchor_index, **indices}.items():
            check_integers(name, index)
            check_device(name, index, embeddings)
        check_floating("lam", lam)
        if anchor_index.dim() != 1 or lam.dim() != 2 or len(lam) != len(anchor_index):
            raise ValueError(
                f"lam: expected shape (A, R) for anchor_index (A,), got {tuple(lam.shape)} for "
                f"{tuple(anchor_index.shape)}"
            )
        for name, index in indices.items():
            check_like(name, index, "lam", lam)
        _check_shares("lam", lam, "lam", lam)
        (e,) = self.units(embeddings)
        size, s = e.square().sum(1), e[anchor_index] @ e.t()
        similarity = _of_mixtures(
            s.gather(1, positive_index),
            s.gather(1, negative_index),
            size[positive_index],
            size[negative_index],
            (e @ e.t())[positive_index, negative_index],
            lam,
        )
        return self._member(similarity, lam, torch.ones_like(similarity, dtype=torch.bool))

    def _against(
        self,
        embeddings: Tensor,
        labels: Tensor,
        anchors: Tensor | None,
        anchor_labels: Tensor | None,
    ) -> _Pairs:
        """Return what is held against each other, of the checked inputs."""
        rows = self.labelled_rows(embeddings, labels)
        between = rows.every @ rows.every.t()
        size = rows.every.square().sum(1)
        if anchors is None:
            if self.base == "proxy_anchor":
                raise ValueError("anchors: expected the proxies for base='proxy_anchor', got None")
            if anchor_labels is not None:
                raise ValueError("anchor_labels: expected None without anchors, got some")
            s, own = rows.own @ rows.every.t(), rows.own
            return _Pairs(
                s, rows.same() & rows.others(), rows.others(), own.square().sum(1), size, between
            )
        check_embeddings(anchors=anchors)
        if anchors.shape[1] != embeddings.shape[1]:
            raise ValueError(
                f"anchors: expected shape (A, {embeddings.shape[1]}), got {tuple(anchors.shape)}"
            )
        check_device("anchors", anchors, embeddings)
        (own,) = self.units(anchors.to(rows.every.dtype))
        if anchor_labels is None:
            anchor_labels = torch.arange(len(own), device=own.device)
        check_labels(anchor_labels, own, "anchor_labels", "anchor")
        positive = anchor_labels.unsqueeze(1) == rows.every_label
        everyone = torch.ones_like(positive)
        s = own @ rows.every.t()
        return _Pairs(s, positive, everyone, own.square().sum(1), size, between)

    def _drawn(self, pairs: _Pairs, generator: torch.Generator | None) -> Tensor:
        """Return the mixed loss of mixtures of every negative with a first that is drawn."""
        s, positive = pairs.s, pairs.positive
        negative = pairs.mask & ~positive

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=s.dtype, device=s.device)

        alpha = torch.full_like(s.detach(), self.beta_alpha)
        one, other = (torch._standard_gamma(alpha, generator=generator) for _ in range(2))
        lam = one / (one + other).clamp(min=torch.finfo(s.dtype).tiny)
        count = positive.sum(1, keepdim=True)
        rank = (uniform(*s.shape) * count).long().minimum(count - 1).clamp(min=0)
        # The positives come first.
        first = (~positive).to(torch.uint8).argsort(stable=True, dim=1).gather(1, rank)
        near, size = s.gather(1, first), pairs.size[first]
        between = pairs.between.gather(0, first)
        itself = uniform() < self.pairs.count("anchor_neg") / len(self.pairs)
        own = pairs.anchor_size.unsqueeze(1)
        similarity = _of_mixtures(
            torch.where(itself, own, near),
            s,
            torch.where(itself, own, size),
            pairs.size,
            torch.where(itself, s, between),
            lam,
        )
        return self._member(similarity, lam, negative & (itself | (count > 0)))

    def _member(self, s: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """Return the formula of the member."""
        s = s.masked_fill(~mask, 0.0)
        near, far = torch.where(mask, y, 0.0), torch.where(mask, 1.0 - y, 0.0)
        m, pull, push = (x or 0.0 for x in (self.margin, self.pos_scale, self.neg_scale))
        if self.base == "contrastive":
            return (far * (s - m).clamp(min=0.0) - near * s).sum(1)
        if self.base == "contrastive_distance":
            d = _chord(s)
            return (near * d + far * (m - d).clamp(min=0.0)).sum(1)
        if self.base == "binomial":
            return (near * softplus(pull * (m - s)) + far * softplus(push * (s - m))).sum(1)
        if self.base == "multi_similarity":
            return softplus(_log_sum(pull * (m - s), near)) / pull + (
                softplus(_log_sum(push * (s - m), far)) / push
            )
        if self.base == "proxy_anchor":
            present = (near > 0.0).any(1).sum().clamp(min=1)
            own = softplus(_log_sum(pull * (m - s), near))
            return len(s) * own / present + softplus(_log_sum(push * (s + m), far))
        if self.base == "lifted":
            value = _log_sum(-s, near) + _log_sum(s - m, far)
        else:
            value = _log_sum(s, far) - _log_sum(s, near)
        both = (near > 0.0).any(1) & (far > 0.0).any(1)
        value = torch.where(both, value, 0.0)
        return value.clamp(min=0.0) if self.base == "lifted" else value

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        unknown = {
            "convex": "the similarities are not linear in the embeddings",
            "upper": "grows with the number of pairs",
            "lipschitz": "without bound near a row of zeros",
            "smoothness": "that of the member in the similarities, but for rows of zeros",
        }
        signed = self.base in ("contrastive", "nca")
        if signed:
            unknown["lower"] = "falls with the number of positives"
        return Properties(
            lower=None if signed else 0.0,
            limits=(("mix_weight = 0", f"the clean {self.base} loss"),),
            unknown=unknown,
            source="Venkataramanan et al. 2022",
        )


def _check_shares(name: str, value: Tensor, first: str, like: Tensor) -> None:
    """Raise an error unless these are numbers in [0, 1] of the shape that is wanted."""
    check_floating(name, value)
    check_like(name, value, first, like)
    if readable(value):
        wrong = ~((value >= 0.0) & (value <= 1.0))
        if bool(wrong.any()):
            raise ValueError(
                f"{name}: expected numbers in [0, 1], got {float(value.detach()[wrong][0]):g}"
            )


def _chord(s: Tensor) -> Tensor:
    """Return the distance of unit vectors from their cosine; 0, without a slope, at 1."""
    squares = 2.0 - 2.0 * s
    apart = squares > 16.0 * torch.finfo(s.dtype).eps
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)


def _log_sum(x: Tensor, share: Tensor) -> Tensor:
    """Return log sum_v share_v exp(x_v), the lowest number where nothing has a share."""
    lowest = torch.finfo(x.dtype).min
    there = share > 0.0
    terms = torch.where(there, x + torch.where(there, share, 1.0).log(), lowest)
    return torch.cat((terms, terms.new_full((len(x), 1), lowest)), 1).logsumexp(1)


def _of_mixtures(
    first: Tensor, second: Tensor, size: Tensor, second_size: Tensor, between: Tensor, lam: Tensor
) -> Tensor:
    """Return <a, v>, v = lam x + (1 - lam) x' at norm 1, from the products of a, x and x'.

    Two that cancel have no direction, and the similarity 0.
    """
    rest = 1.0 - lam
    squares = lam.square() * size + rest.square() * second_size + 2.0 * lam * rest * between
    there = squares > 16.0 * torch.finfo(squares.dtype).eps
    inverse = torch.where(there, torch.where(there, squares, 1.0).rsqrt(), 0.0)
    return (lam * first + rest * second) * inverse
