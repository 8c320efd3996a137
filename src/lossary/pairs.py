r"""Pairs, triplets and proxies: embeddings near their class and far from the others.

.. math:: s_{ij} = \frac{\langle e_i, e_j \rangle}{\lVert e_i \rVert \lVert e_j \rVert}, \qquad
          d_{ij} = \lVert e_i - e_j \rVert

Losses of embeddings and their labels: positive pairs share a label, negative ones do not. They
differ in how the pairs of an anchor are weighed: all alike, the hardest most (a softmax), or only
those that a rule mines.
"""

import math
from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lossary._checks import check_choice, check_embeddings, check_int, check_number, check_positive
from lossary._embedding_base import (
    EmbeddingLoss,
    EmbeddingOptions,
    Rows,
    TiledEmbeddingLoss,
    TiledOptions,
    check_classified,
    distances,
)
from lossary._numerics import normalized, softplus
from lossary._properties import Properties
from lossary._similarity import Mask, kth_largest, log_sum_exp
from lossary.contrastive import InfoNCELoss

#: So many triplets are held at a time; the others' are made again by backward.
HELD_TRIPLETS = 2**22


def _masked(x: Tensor, there: Tensor, absent: float) -> Tensor:
    """Return the matrix with a number where nothing is, and a further column of that number."""
    return torch.cat((x.masked_fill(~there, absent), x.new_full((len(x), 1), absent)), 1)


def _log_one_plus_sum(x: Tensor, there: Tensor) -> Tensor:
    """Return log(1 + sum exp(x)) of every row, over what is there."""
    # The lowest number, not -inf: where nothing is there the slope would be nan.
    return softplus(_masked(x, there, torch.finfo(x.dtype).min).logsumexp(1))


class MultiSimilarityLoss(TiledEmbeddingLoss):
    r"""Multi-similarity: soft hinges on the cosines of an anchor, the hardest pairs most.

    .. math:: \ell_i = \frac1\alpha \log\Bigl(1 + \sum_{p} e^{-\alpha (s_{ip} - \lambda)}\Bigr)
              + \frac1\beta \log\Bigl(1 + \sum_{n} e^{\beta (s_{in} - \lambda)}\Bigr)

    over the positives p and the negatives n of anchor i. A pair counts by how hard it is beside the
    threshold and beside the other pairs of the anchor. A strong first choice for retrieval and
    re-identification, with batches of several samples per class.

    Args:
        alpha: > 0, sharpness of the positive part. Default 2.
        beta: > 0, sharpness of the negative part. Default 50.
        base: lambda, the cosine around which pairs are hard, any finite number. Default 0.5.
        mining_eps: eps >= 0: keep only negatives with s_in + eps > min_p s_ip and positives with
            s_ip - eps < max_n s_in; the paper has 0.1. Default ``None``: all pairs.
        normalize: divide the rows by their norm. Default ``True``.
        gather: whether the rows of all processes make the pairs: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        tile_size: rows and columns of the tiles in which the cosines are made, forward and
            backward, and never held: memory grows as N, not N^2 (with ``mining_eps``, tile_size
            rows are held at a time). First derivatives only. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        embeddings (N, D), labels (N,) of any integers. Values (N,), one per anchor. Dense, a matrix
        of N x N cosines, or in tiles with ``tile_size``.

    Properties:
        The loss is batch-coupled. l >= 0. The gradient in s_ip is -e^(-alpha (s_ip - lambda)) /
        (1 + sum), in s_in likewise with beta. Unchanged by a rotation of all embeddings, the length
        of a row, the order of the rows and the names of the classes. With mining not continuous: a
        pair that is mined or dropped makes it jump.

    Limits:
        alpha, beta -> inf: max(0, lambda - min_p s_ip) + max(0, max_n s_in - lambda). An anchor
        without pairs has the value 0 and stays in the mean. mining_eps = 2 keeps all pairs of
        anchors that have both kinds.

    Note:
        With mining, an anchor without positives keeps no negatives, and the other way round. The
        inequalities are strict and carry no gradient. A public implementation leaves out an anchor
        of which one kind is empty after mining; here the other kind counts, as in the formula. With
        several processes (``gather``) own anchors are held against the rows of all, and ``"mean"``
        divides by what all have, times their number. All of them must call it.

    Raises:
        ValueError: ``alpha`` or ``beta`` not positive and finite, ``base`` not finite,
            ``mining_eps`` negative or infinite, labels not of shape (N,), ``tile_size`` < 1, a
            ``process_group`` without this process.
        TypeError: hyper-parameters that are not numbers, labels that are not integers, embeddings
            that are not floating point.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        Wang, Han, Huang, Dong, Scott, "Multi-Similarity Loss with General Pair Weighting for Deep
        Metric Learning", 2019.

    Example:
        >>> import torch
        >>> from lossary import MultiSimilarityLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 1.0], [0.0, 1.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> MultiSimilarityLoss()(embeddings, labels)
        tensor(0.6481)
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        mining_eps: float | None = None,
        normalize: bool = True,
        **options: Unpack[TiledOptions],
    ) -> None:
        super().__init__(normalize, **options)
        self.alpha = check_positive("alpha", alpha)
        self.beta = check_positive("beta", beta)
        self.base = check_number("base", base, low_open=True, high_open=True)
        self.mining_eps = (
            None
            if mining_eps is None
            else check_number("mining_eps", mining_eps, 0.0, high_open=True)
        )

    def per_sample(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every anchor, unreduced."""
        rows = self.labelled_rows(embeddings, labels)
        if self.tile_size is not None:
            return self._tiled(rows, self.tile_size)
        s = rows.own @ rows.every.t()
        same = rows.same()
        positive, negative = same & rows.others(), ~same
        return self._part(s, -self.alpha, positive, negative) + self._part(
            s, self.beta, negative, positive
        )

    def _part(self, s: Tensor, scale: float, pairs: Tensor, others: Tensor) -> Tensor:
        """Return what the pairs of one kind add; the scale's sign says which way they are hard."""
        s = scale * s
        if self.mining_eps is not None:
            known = s.detach()
            easiest = _masked(known, others, math.inf).amin(1, keepdim=True)
            pairs = pairs & (known > easiest - abs(scale) * self.mining_eps)
        return _log_one_plus_sum(s - scale * self.base, pairs) / abs(scale)

    def _tiled(self, rows: Rows, tile_size: int) -> Tensor:
        """Return the same without the matrix."""
        labels = rows.labels, rows.every_label
        positive = Mask(rows.position.unsqueeze(1), *labels)
        negative = Mask(None, *labels, equal=True)
        total = torch.zeros_like(rows.own[:, 0])
        for scale, pairs, others in (
            (-self.alpha, positive, negative),
            (self.beta, negative, positive),
        ):
            q = scale * rows.own
            if self.mining_eps is not None:
                # Negated, products and sums are the same to the last bit.
                easiest = -kth_largest(-q, rows.every, others, 1, tile_size=tile_size)
                threshold = easiest - abs(scale) * self.mining_eps
                # At least the next number: more than this one.
                above = torch.nextafter(threshold, torch.full_like(threshold, math.inf))
                pairs = pairs._replace(least=above)
            bound = abs(scale) if self.normalize else math.inf
            (lse,) = log_sum_exp(q, rows.every, pairs, tile_size=tile_size, bound=bound)
            total = total + softplus(lse - scale * self.base) / abs(scale)
        return total

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        unknown = {
            "convex": "convex in the cosines without mining, which are not in the embeddings",
            "lipschitz": "without bound near a row of zeros, or in the length of the other rows",
            "smoothness": "smooth but for rows of zeros; with mining not continuous",
        }
        if self.normalize:
            unknown["upper"] = "grows with the number of pairs"
        rows = [[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]
        return Properties(
            lower=0.0,
            upper=None if self.normalize else math.inf,
            counterexamples={} if self.normalize else {"upper": (rows, torch.tensor([0, 1, 0]))},
            limits=(("alpha, beta -> inf", "hinges on the hardest positive and negative"),),
            unknown=unknown,
            source="Wang et al. 2019",
        )


class NPairLoss(InfoNCELoss):
    r"""Multi-class N-pair loss: softmax over the positives of the other anchors' classes.

    .. math:: \ell_i = \log\Bigl(1 + \sum_{j \ne i} e^{\langle a_i, p_j \rangle -
              \langle a_i, p_i \rangle}\Bigr) + \frac{r}{2}
              \bigl(\lVert a_i \rVert^2 + \lVert p_i \rVert^2\bigr)

    One pair per class in a batch: every positive serves the other anchors as a negative. The
    generalisation of the triplet loss to many negatives at once; :class:`InfoNCELoss` is the same
    with cosines and a temperature, and the better choice for new work.

    Args:
        l2_reg: r >= 0: weight of the mean squared norm of the 2N rows. Inner products grow with the
            norms, and this holds them. Default 0.
        normalize: divide the rows by their norm. Default ``False``, as in the paper.
        gather: whether the positives of all processes are negatives: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        tile_size: rows and columns of the tiles in which the products are made, forward and
            backward, and never held. First derivatives only. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        anchors (N, D), positives (N, D): row i of both is of class i, another one for each row.
        Values (N,).

    Properties:
        The loss is batch-coupled; l >= 0, unbounded above without ``normalize``. Convex in the
        inner products. Unchanged by a common rotation, and when one vector is added to all
        positives (without ``l2_reg``).

    Limits:
        l2_reg = 0: ``InfoNCELoss(temperature=1, normalize=False)``. N = 1: the norms alone.

    Note:
        The norms are those of the rows as given, also with ``normalize=True``. Other code:
        pytorch-metric-learning normalises by default; TensorFlow's ``npairs_loss`` has a quarter
        of the summed means in place of the mean over both, which is ``l2_reg`` of half its number.
        Several processes: as in :class:`InfoNCELoss`.

    Raises:
        ValueError: ``l2_reg`` negative or infinite; shapes that differ; ``tile_size`` < 1; a
            ``process_group`` without this process.
        TypeError: embeddings that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", 2016, eq. 6.

    Example:
        >>> import torch
        >>> from lossary import NPairLoss
        >>> anchors = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> positives = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
        >>> NPairLoss()(anchors, positives)
        tensor(0.4100)
        >>> NPairLoss(l2_reg=0.1)(anchors, positives)
        tensor(0.8350)
    """

    def __init__(
        self, l2_reg: float = 0.0, normalize: bool = False, **options: Unpack[TiledOptions]
    ) -> None:
        super().__init__(1.0, normalize=normalize, **options)
        self.l2_reg = check_number("l2_reg", l2_reg, 0.0, high_open=True)

    def per_sample(  # type: ignore[override]
        self, anchors: Tensor, positives: Tensor
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        check_embeddings(anchors=anchors, positives=positives)
        value = super().per_sample(anchors, positives)
        if self.l2_reg == 0.0:
            return value
        squares = anchors.square().sum(1) + positives.square().sum(1)
        return value + self.l2_reg / 2.0 * squares

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        unknown = {
            "convex": "convex in the inner products, which are not linear in the embeddings",
            "lipschitz": "grows with the other rows",
        }
        bounded = self.normalize and self.l2_reg == 0.0
        if bounded:
            unknown["upper"] = "grows with the number of pairs"
        if self.normalize:
            unknown["smoothness"] = "smooth but for rows of zeros, where the cosine jumps"
        return Properties(
            lower=0.0,
            upper=None if bounded else math.inf,
            smoothness=None if self.normalize else math.inf,
            counterexamples={} if bounded else {"upper": self._unbounded()},
            limits=(("l2_reg = 0", "InfoNCELoss(1, normalize=False)"),),
            unknown=unknown,
            source="Sohn 2016",
        )


class TripletMarginLoss(EmbeddingLoss):
    r"""Triplet loss: an anchor nearer to its positive than to a negative, by a margin.

    .. math:: \ell(a, p, n) = \max(0,\ d_{ap} - d_{an} + m), \qquad
              L = \frac{\sum_{(a,p,n)} \ell}{\#\{(a,p,n) : \ell > 0\}}

    over the triplets of a batch that ``mining`` chooses. The plainest of metric losses, with a
    meaning in distances: use it where the margin has one, or as the baseline. Without mining most
    triplets are soon fulfilled, and those of one anchor count by their number.

    Args:
        margin: m >= 0, a distance. Default 0.05.
        swap: replace d_an by min(d_an, d_pn): the harder of both sides. Default ``False``.
        smooth: log(1 + e^(d_ap - d_an + m)) instead of the hinge. Default ``False``.
        mining: ``"all"`` triplets (default); ``"hard"``: of every anchor its farthest positive and
            nearest negative; ``"semihard"``: all with d_ap < d_an <= d_ap + m.
        average: ``"nonzero"`` (default): ``"mean"`` is over the triplets with a positive value, of
            the whole batch; ``"all"``: over all that were chosen.
        normalize: divide the rows by their norm, so that distances lie in [0, 2]. Default ``True``.
        gather: whether the rows of all processes make the triplets: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`. The formula is ``"mean"``.

    Shape:
        embeddings (N, D), labels (N,) of any integers. Values (N,): the sum over the triplets of
        every anchor, which counts in the mean as often as it has triplets. Memory N x N and a part
        of the N^3 triplets, 2^22 at a time: for larger batches backward makes them again.

    Properties:
        The loss is batch-coupled. l >= 0; with cosines, hinge and ``"hard"`` at most 2 + m.
        Unchanged by a rotation of all embeddings, by the length of a row if ``normalize``, by a
        translation if not. With ``average="nonzero"`` not continuous: a triplet that becomes
        positive adds 0 to the sum and 1 to the count.

    Limits:
        No triplet, or none with a positive value: 0. ``"semihard"`` without ``swap``: every value
        is below m. m = 0 and semihard: 0.

    Note:
        Rows that agree up to rounding are at distance 0, without a gradient: the root has none
        there. Distances are computed from differences, not from 2 - 2 cos, which has no digits left
        for near rows. Mining carries no gradient, and is by d_an also with ``swap``. The meaning of
        ``"semihard"`` is pytorch-metric-learning's; TensorFlow's takes the nearest negative beyond
        each positive only. With several processes (``gather``) own anchors are held against the
        rows of all, and ``"mean"`` divides by the triplets of all, times the number of processes.

    Raises:
        ValueError: ``margin`` negative or infinite, unknown ``mining`` or ``average``, labels not
            of shape (N,), a ``process_group`` without this process.
        TypeError: labels that are not integers, embeddings that are not floating point.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Schroff, Kalenichenko, Philbin, "FaceNet: A Unified Embedding for Face Recognition and
        Clustering", 2015, eq. 3. Hard in the batch: Hermans, Beyer, Leibe, "In Defense of the
        Triplet Loss for Person Re-Identification", 2017. Swap: Balntas et al., "Learning Local
        Feature Descriptors with Triplets and Shallow Convolutional Neural Networks", 2016.

    Example:
        >>> import torch
        >>> from lossary import TripletMarginLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 1.0], [0.0, 1.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> TripletMarginLoss()(embeddings, labels)
        tensor(0.3667)
        >>> TripletMarginLoss(0.2, mining="hard", average="all")(embeddings, labels)
        tensor(0.6096)
    """

    def __init__(
        self,
        margin: float = 0.05,
        swap: bool = False,
        smooth: bool = False,
        mining: str = "all",
        average: str = "nonzero",
        normalize: bool = True,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(normalize, **options)
        self.margin = check_number("margin", margin, 0.0, high_open=True)
        check_choice("swap", swap, (True, False))
        check_choice("smooth", smooth, (True, False))
        check_choice("mining", mining, ("all", "hard", "semihard"))
        check_choice("average", average, ("nonzero", "all"))
        self.swap = swap
        self.smooth = smooth
        self.mining = mining
        self.average = average

    def per_sample(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum over the triplets of every anchor, and their number."""
        rows = self.labelled_rows(embeddings, labels)
        d = distances(rows.own, rows.every)
        between = d
        if self.swap and rows.every is not rows.own:
            between = distances(rows.every, rows.every)
        same = rows.same()
        positive, negative = same & rows.others(), ~same
        if self.mining == "hard":
            return self._hardest(d, between, positive, negative)

        def some(d: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
            return self._triplets(d, between, positive, negative)

        return _in_parts(some, d, positive, negative)

    def _triplets(
        self, d: Tensor, between: Tensor, positive: Tensor, negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sums over all triplets of these anchors, or the semi-hard ones."""
        gap = d.unsqueeze(2) - d.unsqueeze(1)
        chosen = positive.unsqueeze(2) & negative.unsqueeze(1)
        if self.mining == "semihard":
            chosen = chosen & (gap < 0.0) & (gap >= -self.margin)
        if self.swap:
            gap = torch.maximum(gap, d.unsqueeze(2) - between)
        value, counts = self._of_triplets(gap, chosen)
        return value.sum((1, 2)), counts.sum((1, 2))

    def _hardest(
        self, d: Tensor, between: Tensor, positive: Tensor, negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the value of the hardest triplet of every anchor."""
        last = max(d.shape[1] - 1, 0)
        far = _masked(d.detach(), positive, -math.inf).argmax(1).clamp(max=last)
        near = _masked(d.detach(), negative, math.inf).argmin(1).clamp(max=last)
        d_ap, d_an = (d.gather(1, at.unsqueeze(1)).squeeze(1) for at in (far, near))
        if self.swap:
            d_an = torch.minimum(d_an, between[far, near])
        return self._of_triplets(d_ap - d_an, positive.any(1) & negative.any(1))

    def _of_triplets(self, gap: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of triplets, and with what each counts."""
        excess = gap + self.margin
        value = softplus(excess) if self.smooth else excess.clamp(min=0.0)
        value = torch.where(chosen, value, 0.0)
        counts = chosen & (value > 0.0) if self.average == "nonzero" else chosen
        return value, counts.to(value.dtype)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        unknown = {
            "convex": "a difference of distances",
            "lipschitz": "without bound near a row of zeros, or not continuous",
            "smoothness": "kinks and, with average='nonzero', jumps where a triplet enters",
        }
        upper, counterexamples = None, {}
        if self.normalize and self.mining == "hard" and not self.smooth:
            upper = 2.0 + self.margin
        elif not self.normalize and self.mining != "semihard":
            upper = math.inf
            rows = [[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]
            counterexamples = {"upper": (rows, torch.tensor([0, 1, 0, 1]))}
        else:
            unknown["upper"] = "depends on the geometry of the classes"
        return Properties(
            lower=0.0,
            upper=upper,
            counterexamples=counterexamples,
            limits=(("no triplet with a positive value", "0"),),
            unknown=unknown,
            source="Schroff et al. 2015",
        )


def _in_parts(
    function: Callable[..., tuple[Tensor, Tensor]], *matrices: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the results of the rows (N, M), whose M x M numbers each are not held all at once."""
    n, m = matrices[0].shape
    size = max(1, HELD_TRIPLETS // max(1, m * m))
    if size >= n:
        return function(*matrices)
    parts = list(zip(*(torch.split(x, size) for x in matrices), strict=True))
    if torch._C._are_functorch_transforms_active():  # which know no recomputation
        found = [function(*part) for part in parts]
    else:
        found = [
            checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False)
            for part in parts
        ]
    values, counts = zip(*found, strict=True)
    return torch.cat(values), torch.cat(counts)


class ProxyAnchorLoss(EmbeddingLoss):
    r"""Proxy anchor: a learnt proxy per class, held against all embeddings of the batch.

    .. math:: L = \frac{1}{n_+} \sum_{p \in P_+} \log\Bigl(1 + \sum_{y_i = p}
              e^{-\alpha (s_{ip} - \delta)}\Bigr) + \frac1C \sum_{p} \log\Bigl(1 +
              \sum_{y_i \ne p} e^{\alpha (s_{ip} + \delta)}\Bigr)

    with s_ip the cosine of embedding i and proxy p, and P_+ the n_+ classes in the batch. Proxies
    make it converge fast and need no sampling; as anchors they weigh the embeddings of the batch by
    how hard they are. For retrieval among up to some 10 000 training classes.

    Args:
        num_classes: C >= 2.
        embedding_dim: D >= 1.
        margin: delta, any finite number. Default 0.1.
        alpha: > 0, sharpness. Default 32.
        gather: whether the rows of all processes are met: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`. The formula is ``"mean"``.

    Shape:
        embeddings (N, D), of any length; labels (N,), integers in [0, C). Values (C,), one per
        proxy: C/n_+ times the positive part plus the negative one, so that their mean is L;
        ``weight`` is one per proxy too. Dense, C x N cosines. The parameter ``proxies`` (C, D)
        holds a direction per class; give it to the optimiser together with the network's
        parameters, usually at a learning rate 100 times theirs.

    Properties:
        The loss is batch-coupled. L >= 0. Unchanged by a common rotation of embeddings and proxies,
        and by the length of either. Convex in the cosines; infinitely smooth in them.

    Limits:
        alpha -> inf, over alpha: hinges on the hardest positive and the hardest negative of every
        proxy. A class without embeddings has the negative part alone. An empty batch: 0.

    Note:
        Sums of exponentials beyond e^35 are taken in logarithms. With several processes
        (``gather``) every process computes the whole loss, whose sums over the batch do not split
        over rows: the gradient averaged over the processes is that of one process with the whole
        batch. With ``"sum"`` each process returns the whole sum, and gradients should be averaged
        too. A row of norm below 1e-6 (1e-12 in float64) is divided by that.

    Raises:
        ValueError: ``num_classes`` < 2, ``embedding_dim`` < 1, ``margin`` not finite, ``alpha`` not
            positive and finite; embeddings not (N, D), labels not (N,) or outside [0, C) (looked at
            on CPU tensors); a ``process_group`` without this process.
        TypeError: hyper-parameters that are not numbers, embeddings that are not floating point,
            labels that are not integers.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Kim, Kim, Cho, Kwak, "Proxy Anchor Loss for Deep Metric Learning", 2020, eq. 4.

    Example:
        >>> import torch
        >>> from lossary import ProxyAnchorLoss
        >>> loss = ProxyAnchorLoss(num_classes=2, embedding_dim=2, alpha=4.0)
        >>> _ = loss.load_state_dict({"proxies": torch.tensor([[1.0, 0.0], [0.0, 1.0]])})
        >>> loss(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([0, 1])).detach()
        tensor(2.3469)
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: float = 0.1,
        alpha: float = 32.0,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(True, **options)
        self.num_classes = check_int("num_classes", num_classes, 2)
        self.embedding_dim = check_int("embedding_dim", embedding_dim, 1)
        self.margin = check_number("margin", margin, low_open=True, high_open=True)
        self.alpha = check_positive("alpha", alpha)
        self.proxies = nn.Parameter(torch.empty(self.num_classes, self.embedding_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new proxies, Kaiming normal by the number of classes."""
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def per_sample(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every proxy, unreduced."""
        check_classified(embeddings, labels, self.proxies)
        rows = self.labelled_rows(embeddings, labels)
        s = normalized(self.proxies.to(rows.every.dtype)) @ rows.every.t()
        classes = torch.arange(self.num_classes, device=s.device)
        own = classes.unsqueeze(1) == rows.every_label
        near = _log_one_plus_sum(-self.alpha * (s - self.margin), own)
        far = _log_one_plus_sum(self.alpha * (s + self.margin), ~own)
        present = own.any(1).sum().clamp(min=1)
        return self.num_classes * near / present + far

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            lower=0.0,
            limits=(("no embeddings", "0"),),
            unknown={
                "convex": "convex in the cosines, which are not linear in the embeddings",
                "upper": "grows with the number of embeddings",
                "lipschitz": "without bound near a row of zeros",
                "smoothness": "smooth but for rows of zeros, where the cosine jumps",
            },
            source="Kim et al. 2020",
        )
