r"""Graphs: what may happen to a node's representation when edges are dropped.

.. math:: \hat A = \tilde D^{-1/2} (A + I) \tilde D^{-1/2}, \qquad
          z = \sigma(\hat A\, \sigma(\hat A X W_1 + b_1)\, W_2 + b_2)

Regularizers of graph neural networks that take the graph and the weights as tensors.
"""

from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import Loss, LossOptions, _upcast
from lossary._checks import check_device, check_floating, check_number, check_tensor
from lossary._numerics import normalized, softplus
from lossary._properties import Properties
from lossary._softmax import readable


class NodeCompactnessRegularizer(Loss):
    r"""Node compactness: penalise nodes whose estimated margin under edge dropping is small.

    .. math:: \ell_i = \log(1 + e^{-G_i}), \qquad
              G_i \approx \min \Bigl\langle z_i,\ u_i -
              \frac{1}{N - 1} \sum_{k \ne i} u_k \Bigr\rangle

    where z are a two-layer graph convolutional network's outputs, u the unit outputs for the other
    view, and the minimum is over the graphs that lose up to a share p of each node's edges.
    Provable training (POT) for graph contrastive learning: nodes that follow the contrastive
    principle under some augmentations only are trained more. With views 1 and 2 the objective is

    (1 - kappa) contrastive + kappa (regularizer(view 1 against 2) + regularizer(2 against 1))/2,

    kappa = 0.5 by default in the paper.

    Args:
        drop_rate: p in [0, 1), the share of a node's edges that may go: that of the view's own
            augmentation. Default 0.3.
        negative_slope: alpha in [0, 1), the activation's slope below 0, after both layers: 0 for
            ReLU, the present value of a PReLU. Default 0.
        reduction: see :class:`lossary.Loss`.

    Shape:
        x (N, F), features; other_view (N, d), outputs for the other view; adjacency (N, N), of the
        whole graph, and adjacency_view (N, N), of the view whose nodes are bounded: bool or numbers
        0 and 1, symmetric, without loops; weight1 (F, h), bias1 (h,), weight2 (h, d), bias2 (d,):
        the parameters, applied as x @ weight + bias. Values (N,). ``scores(...)`` of the same
        inputs returns G (N,). Dense matrices of N x N; for mini-batches take the part of the graph
        that joins their nodes, an approximation.

    Properties:
        l > 0, decreasing in G. G, from linear bounds of both activations, is NOT a certified lower
        bound of the margin, as the name may suggest: the intervals of the second layer take the
        first layer's outputs as they are without a drop, and the linear map of a node is used with
        the bounds of that node's neighbours at it. It exceeds the margin of the given view for many
        nodes. What is sound, entry by entry, are the intervals of the first layer, and the lines
        that bound the activation on an interval. Unchanged by a permutation of the nodes, and by
        the length of the rows of ``other_view``. The loss is batch-coupled.

    Limits:
        No edges: all bounds are exact, and G is the margin. N = 1, without another node: log 2.
        p = 0 does not make the bounds exact: off-diagonal entries may vanish in them all the same.

    Note:
        The gradient flows to features, other view and parameters, through the bounds too; the
        graphs are constants. The share of a node's edges is rounded, halves to even, and leaves at
        least one edge. Sums over rows stand for the diagonals of N x N products in the authors'
        code. A second-layer bound with both ends equal has slope 1 or alpha.

    Raises:
        ValueError: ``drop_rate`` or ``negative_slope`` outside [0, 1); shapes or devices that do
            not fit; adjacencies that are not square, or, looked at on CPU tensors, not symmetric,
            with loops or with other numbers than 0 and 1.
        TypeError: hyper-parameters that are not numbers, features or parameters that are not
            floating point, complex adjacencies.

    Reference:
        Yang, Yu, Wu, Shi, "Provable Training for Graph Contrastive Learning", 2023. Verified
        against the authors' code.

    Example:
        >>> import torch
        >>> from lossary import NodeCompactnessRegularizer
        >>> path = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
        >>> x, other = torch.eye(3), torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> weight, bias, second = torch.ones(3, 2), torch.zeros(2), torch.eye(2)
        >>> loss = NodeCompactnessRegularizer(drop_rate=0.5)
        >>> loss(x, other, path, path, weight, bias, second, bias)
        tensor(0.6794)
    """

    separable = False

    def __init__(
        self, drop_rate: float = 0.3, negative_slope: float = 0.0, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        self.drop_rate = check_number("drop_rate", drop_rate, 0.0, 1.0, high_open=True)
        self.negative_slope = check_number(
            "negative_slope", negative_slope, 0.0, 1.0, high_open=True
        )

    def per_sample(
        self,
        x: Tensor,
        other_view: Tensor,
        adjacency: Tensor,
        adjacency_view: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        """Return the loss of every node, unreduced."""
        inputs = (x, other_view, adjacency, adjacency_view, weight1, bias1, weight2, bias2)
        return softplus(-self._scores(*inputs))

    def scores(
        self,
        x: Tensor,
        other_view: Tensor,
        adjacency: Tensor,
        adjacency_view: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        """Return the compactness G of every node."""
        inputs = (x, other_view, adjacency, adjacency_view, weight1, bias1, weight2, bias2)
        return self._scores(*(_upcast(value) for value in inputs))

    def _scores(
        self,
        x: Tensor,
        other_view: Tensor,
        adjacency: Tensor,
        adjacency_view: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        _check_matrices(x, other_view, weight1, bias1, weight2, bias2)
        graph = _edges("adjacency", adjacency, x)
        view = _normalized_adjacency(_edges("adjacency_view", adjacency_view, x))
        n = len(x)
        middle, radius = self._entry_bounds(graph)
        first: Tensor = x @ weight1
        a1, b1 = self._lines(middle @ first + bias1, radius @ first.abs())
        # The second layer's bounds start from the first one's outputs as they are without a drop.
        hidden = _normalized_adjacency(graph) @ first + bias1
        second = torch.where(hidden > 0.0, hidden, self.negative_slope * hidden) @ weight2
        a2, b2 = self._lines(middle @ second + bias2, radius @ second.abs())
        unit = normalized(other_view)
        others = max(n - 1, 1)
        direction = (n * unit - unit.sum(0)) / others
        slope2, rest2 = self._backward(direction, a2, b2, bias2)
        slope1, rest1 = self._backward(slope2 @ weight2.t(), a1, b1, bias1)
        own = (x * (slope1 @ weight1.t())).sum(1)
        score: Tensor = view @ (view @ own + rest1) + rest2
        return score

    def _entry_bounds(self, graph: Tensor) -> tuple[Tensor, Tensor]:
        """Return middle and radius of what the entries of the normalised adjacency may be."""
        degree = graph.sum(1)
        lost = torch.minimum((degree - 1.0).clamp(min=0.0), (self.drop_rate * degree).round())
        root = (degree + 1.0 - lost).rsqrt()
        loops = torch.eye(len(graph), dtype=graph.dtype, device=graph.device)
        upper = (graph + loops) * root.unsqueeze(1) * root
        lower = torch.diag(1.0 / (degree + 1.0))
        return (upper + lower) / 2.0, (upper - lower) / 2.0

    def _lines(self, middle: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Return slope a and shift b: a x <= activation(x) <= a (x + b) on [middle +- radius]."""
        alpha = self.negative_slope
        low, high = middle - radius, middle + radius
        crossing = (low < 0.0) & (high > 0.0)
        # A harmless interval where it does not cross, so that no quotient there is 0/0.
        low, high = torch.where(crossing, low, -1.0), torch.where(crossing, high, 1.0)
        rise = high - alpha * low
        flat = torch.where(middle - radius >= 0.0, 1.0, alpha)
        slope = torch.where(crossing, rise / (high - low), flat)
        return slope, torch.where(crossing, (alpha - 1.0) * high * low / rise, 0.0)

    @staticmethod
    def _backward(weight: Tensor, a: Tensor, b: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of the layer's inputs, and what is left of its bias and bounds."""
        slope = weight * a
        shift = torch.where(weight >= 0.0, 0.0, b)
        return slope, (slope * (shift + bias)).sum(1)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            unknown={
                "convex": "of products of weights and bounds",
                "lower": "0, of graphs and weights together",
                "upper": "infinite, of graphs and weights together",
                "lipschitz": "grows with the weights",
                "smoothness": "not continuous where a weight of the backward pass changes sign",
            },
            source="Yang et al. 2023",
        )


def _normalized_adjacency(graph: Tensor) -> Tensor:
    """Return D^(-1/2) (A + I) D^(-1/2)."""
    root = (graph.sum(1) + 1.0).rsqrt()
    loops = torch.eye(len(graph), dtype=graph.dtype, device=graph.device)
    entries: Tensor = (graph + loops) * root.unsqueeze(1) * root
    return entries


def _edges(name: str, adjacency: Any, x: Tensor) -> Tensor:
    """Return the checked graph as numbers of the features' dtype, a constant."""
    check_tensor(name, adjacency)
    n = len(x)
    if adjacency.shape != (n, n):
        raise ValueError(f"{name}: expected shape ({n}, {n}), got {tuple(adjacency.shape)}")
    if adjacency.dtype.is_complex:
        raise TypeError(f"{name}: expected bool or numbers 0 and 1, got {adjacency.dtype}")
    check_device(name, adjacency, x)
    if readable(adjacency):
        wrong = (adjacency != 0) & (adjacency != 1)
        if bool(wrong.any()):
            raise ValueError(
                f"{name}: expected bool or numbers 0 and 1, got {float(adjacency[wrong][0]):g}"
            )
        if bool((adjacency != adjacency.t()).any()):
            raise ValueError(f"{name}: expected a symmetric matrix, got one that is not")
        if bool((adjacency.diagonal() != 0).any()):
            raise ValueError(f"{name}: expected no loops, got {int(adjacency.diagonal().sum())}")
    edges: Tensor = adjacency.detach().to(x.dtype)
    return edges


def _check_matrices(
    x: Tensor, other_view: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
) -> None:
    """Raise an error unless the sizes N, F, h and d are the same everywhere."""
    for name, value, dims in (
        ("x", x, 2),
        ("other_view", other_view, 2),
        ("weight1", weight1, 2),
        ("bias1", bias1, 1),
        ("weight2", weight2, 2),
        ("bias2", bias2, 1),
    ):
        check_floating(name, value)
        if value.dim() != dims or 0 in value.shape[dims - 1 :]:
            raise ValueError(f"{name}: expected {dims} dimension(s), got {tuple(value.shape)}")
        check_device(name, value, x)
    hidden, width = weight1.shape[1], weight2.shape[1]
    for name, value, shape in (
        ("other_view", other_view, (len(x), width)),
        ("weight1", weight1, (x.shape[1], hidden)),
        ("bias1", bias1, (hidden,)),
        ("weight2", weight2, (hidden, width)),
        ("bias2", bias2, (width,)),
    ):
        if value.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")
