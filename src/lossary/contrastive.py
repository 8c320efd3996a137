r"""Contrastive losses: tell the embedding that belongs to an anchor from all the others.

.. math:: \ell_i = -\frac{s_{ii}}{\tau} + \log \sum_{k \in C(i)} e^{s_{ik}/\tau}

Cross-entropy over similarities: every row of the matrix :math:`s/\tau` is a row of logits, and the
positive is its class. The losses differ in who the candidates :math:`C(i)` are. A small temperature
looks at the nearest negatives only, a large one at all of them alike.
"""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from lossary import _distributed, _similarity
from lossary._checks import (
    check_choice,
    check_device,
    check_embeddings,
    check_floating,
    check_number,
    check_positive,
)
from lossary._embedding_base import TiledEmbeddingLoss, TiledOptions, cross_entropy
from lossary._numerics import softplus
from lossary._properties import Properties


class _Contrastive(TiledEmbeddingLoss):
    """What the losses over a matrix of similarities at one temperature share."""

    def __init__(
        self, temperature: float, normalize: bool, **options: Unpack[TiledOptions]
    ) -> None:
        super().__init__(normalize, **options)
        self.temperature = check_positive("temperature", temperature)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        unknown = {
            "convex": "convex in the similarities, which are not linear in the embeddings",
            "lipschitz": "without bound near a row of zeros, or in the length of the other rows",
        }
        if self.normalize:
            unknown["upper"] = "grows with the number of candidates: see the docstring"
            unknown["smoothness"] = "smooth but for rows of zeros, where the cosine jumps"
        return Properties(
            lower=0.0,
            upper=None if self.normalize else math.inf,
            smoothness=None if self.normalize else math.inf,
            counterexamples={} if self.normalize else {"upper": self._unbounded()},
            limits=(("tau -> 0", "tau * loss -> max(0, hardest negative - positive)"),),
            unknown=unknown,
            source="Wang, Liu 2021",
        )

    @staticmethod
    def _unbounded() -> tuple[list[list[float]], ...]:
        return [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]


def _own_similarities(q: Tensor, keys: Tensor) -> Tensor:
    """Return those of every row of q (N, D) with keys (N, M, D) of its own."""
    return (keys @ q.unsqueeze(2)).squeeze(2)


class InfoNCELoss(_Contrastive):
    r"""InfoNCE: cross-entropy of the positive among in-batch and further negatives.

    .. math:: \ell_i = -\frac{s_{ii}}{\tau} + \log \sum_{k \in C(i)} e^{s_{ik}/\tau}, \qquad
              s_{ik} = \frac{\langle q_i, p_k \rangle}{\lVert q_i \rVert \lVert p_k \rVert}

    C(i) holds the positive of query i, the positives of the other queries if ``in_batch``, and the
    ``negatives``. Use it for pairs that belong together: two modalities (``symmetric=True`` is
    CLIP's loss), queries and documents, a momentum encoder with a queue (``in_batch=False`` and
    ``negatives``). For two views of one sample see :class:`NTXentLoss`, whose candidates include
    the other rows of the same view.

    Args:
        temperature: tau > 0. Default 0.07. With ``learnable_temperature``, where it starts.
        symmetric: also tell the query of a positive from the other queries, and take the mean of
            both. There the candidates are the queries of the batch. Default ``False``.
        in_batch: the positives of the other queries are negatives. Default ``True``.
        normalize: divide the rows by their norm, so that s is the cosine. Default ``True``. A row
            of norm below 1e-6 is divided by 1e-6 (1e-12 in float64).
        learnable_temperature: make log(1/tau) a parameter, ``log_scale``, as in CLIP. tau is held
            at 0.01 at least; there the parameter still gets its gradient, and so can return.
        gather: whether the rows of all processes are the candidates: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        tile_size: rows and columns of the tiles in which the similarities are made, forward and
            backward, and never held: memory grows as N, not N^2. First derivatives only. 512 or
            1024 is fast; it pays from thousands of rows on. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        query (N, D), positive (N, D), negatives (M, D), shared by all queries, or (N, M, D).
        Values (N,), one per query. Dense, a matrix of N x (N + M) similarities, or in tiles with
        ``tile_size``; negatives (N, M, D) are met densely, being larger than their similarities.

    Properties:
        The loss is batch-coupled. With K candidates and cosines it lies between
        log(1 + (K-1) exp(-2/tau)) and log(1 + (K-1) exp(2/tau)). The pull on the positive is
        -(1/tau) sum_{k != i} P_ik and the push of a negative P_ik/tau, so the relative penalties
        of the negatives are softmax(s/tau) over them, whatever s_ii is; their entropy rises with
        tau. log K - E[loss] is a lower bound of the mutual information of query and positive.
        Unchanged by a rotation of all embeddings and by the length of any row. Convex in the
        similarities. With ``normalize=False`` unbounded above.

    Limits:
        tau -> 0: tau * loss -> max(0, max_k s_ik - s_ii). tau -> inf: log K +
        sum_{k != i} (s_ik - s_ii) / (K tau) + Var_k(s) / (2 tau^2). One negative:
        softplus((s_n - s_p)/tau). N = 1 without negatives: 0.

    Note:
        It is computed from the log-odds of the positive, so that tiny values keep their digits.
        With several processes (``gather``) own anchors are held against the rows of all, and
        ``"mean"`` divides by what all have, times their number: averaged over the processes, the
        parameters' gradient is that of one process with the whole batch, also of unequal batches.
        All of them must call it, forward and backward. ``negatives`` are not gathered: a queue is
        the same everywhere, and hard negatives are the query's own. ``fully_shard`` takes no scalar
        parameters: with a learnt temperature wrap the loss by itself in
        ``DistributedDataParallel``.

    Raises:
        ValueError: ``temperature`` <= 0, or below 0.01 if it is to be learnt; shapes that differ;
            ``in_batch=False`` without negatives, or with ``symmetric``; ``tile_size`` < 1;
            a ``process_group`` without this process.
        TypeError: embeddings that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding",
        2018, eq. 4. Gradients and limits: Wang, Liu, "Understanding the Behaviour of Contrastive
        Loss", 2021. Symmetric: Radford et al., "Learning Transferable Visual Models From Natural
        Language Supervision", 2021.

    Example:
        >>> import torch
        >>> from lossary import InfoNCELoss
        >>> loss = InfoNCELoss(temperature=0.5)
        >>> query = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> positive = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
        >>> loss(query, positive)
        tensor(0.4286)
        >>> loss(query, positive, negatives=torch.tensor([[-1.0, 0.0]]))
        tensor(0.5120)
    """

    def __init__(
        self,
        temperature: float = 0.07,
        symmetric: bool = False,
        in_batch: bool = True,
        normalize: bool = True,
        learnable_temperature: bool = False,
        **options: Unpack[TiledOptions],
    ) -> None:
        super().__init__(temperature, normalize, **options)
        check_choice("symmetric", symmetric, (True, False))
        check_choice("in_batch", in_batch, (True, False))
        check_choice("learnable_temperature", learnable_temperature, (True, False))
        if symmetric and not in_batch:
            raise ValueError(
                "symmetric: expected False with in_batch=False, where a positive has no other "
                "queries to be told from, got True"
            )
        if learnable_temperature:
            check_number("temperature", temperature, 0.01, math.inf, high_open=True)
            self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.symmetric = symmetric
        self.in_batch = in_batch
        self.learnable_temperature = learnable_temperature

    def per_sample(
        self, query: Tensor, positive: Tensor, negatives: Tensor | None = None
    ) -> Tensor:
        """Return the loss of every query, unreduced."""
        check_embeddings(query=query, positive=positive)
        self._check_negatives(query, negatives)
        q, p = self.units(query, positive)
        q = q * self._scale(q)
        n = None if negatives is None else self.units(negatives)[0]
        values = self._dense if self.tile_size is None else self._tiled
        if not (self.in_batch and self._gathers()):
            return values(q, p, p, 0, n, self.symmetric)
        group = self.process_group
        if not self.symmetric:
            (keys,), first = _distributed.gather_with_gradient(p, group=group)
            return values(q, p, keys, first, n, False)
        (queries, keys), first = _distributed.gather_with_gradient(q, p, group=group)
        forward, back = (
            values(q, p, keys, first, n, False),
            values(p, q, queries, first, None, False),
        )
        return (forward + back) / 2

    def _dense(
        self, q: Tensor, p: Tensor, keys: Tensor, first: int, n: Tensor | None, both: bool
    ) -> Tensor:
        """Return the loss of the rows q, whose positives p are the keys from ``first`` on.

        With ``both``, of keys that are p: the mean with the loss of p among the rows q.
        """
        if self.in_batch:
            logits, target = q @ keys.t(), torch.arange(first, first + len(q), device=q.device)
        else:
            logits = (q * p).sum(1, keepdim=True)
            target = torch.zeros(len(q), dtype=torch.long, device=q.device)
        back = cross_entropy(logits, target, class_dim=0) if both else None
        if n is not None:
            far = q @ n.t() if n.dim() == 2 else _own_similarities(q, n)
            logits = torch.cat((logits, far), 1)
        value = cross_entropy(logits, target)
        return value if back is None else (value + back) / 2

    def _tiled(
        self, q: Tensor, p: Tensor, keys: Tensor, first: int, n: Tensor | None, both: bool
    ) -> Tensor:
        """Return the same without the matrix."""
        assert self.tile_size is not None
        own = (q * p).sum(1)
        target = torch.arange(first, first + len(q), device=q.device).unsqueeze(1)
        if not self.in_batch:
            keys, target = p[:0], target[:, :0]
        if n is not None and n.dim() == 2:
            keys = torch.cat((keys, n))
        rest, *columns = _similarity.log_sum_exp(
            q,
            keys,
            _similarity.Mask(target),
            tile_size=self.tile_size,
            bound=self._bound(),
            columns=both,
        )
        if n is not None and n.dim() == 3:  # fewer similarities than numbers in the negatives
            rest = torch.logaddexp(rest, _own_similarities(q, n).logsumexp(1))
        value = softplus(rest - own)
        return (value + softplus(columns[0][: len(q)] - own)) / 2 if columns else value

    def _scale(self, like: Tensor) -> float | Tensor:
        """Return 1/tau."""
        if not self.learnable_temperature:
            return 1.0 / self.temperature
        excess = (self.log_scale - math.log(100.0)).clamp(min=0.0).detach()
        return torch.exp(self.log_scale - excess).to(like.dtype)

    def _bound(self) -> float:
        """Return what no similarity exceeds, where that is known without asking a device."""
        return (
            1.0 / self.temperature
            if self.normalize and not self.learnable_temperature
            else math.inf
        )

    def _check_negatives(self, query: Tensor, negatives: Tensor | None) -> None:
        if negatives is None:
            if not self.in_batch:
                raise ValueError("negatives: expected a tensor with in_batch=False, got None")
            return
        check_floating("negatives", negatives)
        n, width = query.shape
        shape = tuple(negatives.shape)
        if len(shape) not in (2, 3) or shape[-1] != width or (len(shape) == 3 and shape[0] != n):
            raise ValueError(
                f"negatives: expected shape (M, {width}) or ({n}, M, {width}), got {shape}"
            )
        check_device("negatives", negatives, query)


class NTXentLoss(_Contrastive):
    r"""NT-Xent: the loss of SimCLR, over two views of every sample.

    .. math:: \ell_a = -\frac{s_{a a'}}{\tau} + \log \sum_{b \ne a} e^{s_{ab}/\tau}

    over the 2N rows of both views, where a' is the other view of the sample of a; the value of a
    sample is the mean over its two views. Use it to learn from augmented views without labels.

    Args:
        temperature: tau > 0. Default 0.5. SimCLR's best values lie between 0.1 and 0.5.
        normalize: divide the rows by their norm, so that s is the cosine. Default ``True``. A row
            of norm below 1e-6 is divided by 1e-6 (1e-12 in float64).
        gather: whether the rows of all processes are the candidates: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        tile_size: rows and columns of the tiles in which the similarities are made, forward and
            backward, and never held: memory grows as N, not N^2. First derivatives only. 512 or
            1024 is fast; it pays from thousands of rows on. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        z1 (N, D), z2 (N, D): row i of both is a view of sample i. Values (N,), one per sample.
        Dense, a matrix of 2N x 2N similarities, or in tiles with ``tile_size``, where each serves
        its mirror image too.

    Properties:
        The loss is batch-coupled. It is the same with z1 and z2 exchanged, under a rotation of all
        embeddings, and for any length of a row. With cosines it lies between
        log(1 + 2(N-1) exp(-2/tau)) and log(1 + 2(N-1) exp(2/tau)). Convex in the similarities.
        With ``normalize=False`` unbounded above.

    Limits:
        tau -> 0: tau * loss -> max(0, hardest negative - positive), per view. N = 1: there is
        nothing to tell apart, and the loss is 0.

    Note:
        With several processes (``gather``) own anchors are held against the rows of all, and
        ``"mean"`` divides by what all have, times their number: averaged over the processes, the
        parameters' gradient is that of one process with the whole batch, also of unequal batches.
        All of them must call it, forward and backward.

    Raises:
        ValueError: ``temperature`` <= 0, shapes that differ, ``tile_size`` < 1;
            a ``process_group`` without this process.
        TypeError: embeddings that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
        Representations", 2020, eq. 1.

    Example:
        >>> import torch
        >>> from lossary import NTXentLoss
        >>> z1 = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> z2 = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
        >>> NTXentLoss()(z1, z2)
        tensor(0.7797)
    """

    def __init__(
        self,
        temperature: float = 0.5,
        normalize: bool = True,
        **options: Unpack[TiledOptions],
    ) -> None:
        super().__init__(temperature, normalize, **options)

    def per_sample(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        check_embeddings(z1=z1, z2=z2)
        views = self.units(z1, z2)
        z, n = torch.cat(views), len(z1)
        rows = torch.arange(2 * n, device=z.device)
        if self._gathers():
            all_views, first = _distributed.gather_with_gradient(*views, group=self.process_group)
            # Of every own row, which one it is among the rows of all processes.
            rows = torch.cat((rows[:n] + first, rows[n:] - n + first + len(all_views[0])))
            keys = torch.cat(all_views)
        else:
            keys = z
        other = rows.roll(n)
        if self.tile_size is not None:
            return self._tiled(z, keys, torch.stack((rows, other), 1), self.tile_size)
        is_self = rows.unsqueeze(1) == torch.arange(len(keys), device=z.device)
        logits = (z @ keys.t() / self.temperature).masked_fill(is_self, -math.inf)
        value = cross_entropy(logits, other)
        return (value[:n] + value[n:]) / 2

    def _tiled(self, z: Tensor, keys: Tensor, absent: Tensor, tile_size: int) -> Tensor:
        """Return the same without the matrix: of row i, the keys ``absent`` are no negatives."""
        mask = _similarity.Mask(absent)
        bound = 1.0 / self.temperature if self.normalize else math.inf
        n, root = len(z) // 2, self.temperature**-0.5
        alone = keys is z
        z = z * root
        own = (z[:n] * z[n:]).sum(1)
        if alone:
            rest = _similarity.self_log_sum_exp(z, mask, tile_size=tile_size, bound=bound)
        else:
            (rest,) = _similarity.log_sum_exp(
                z, keys * root, mask, tile_size=tile_size, bound=bound
            )
        return (softplus(rest[:n] - own) + softplus(rest[n:] - own)) / 2

    @staticmethod
    def _unbounded() -> tuple[list[list[float]], ...]:
        return [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]
