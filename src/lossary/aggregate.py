r"""Learning from aggregate responses: bags of samples, of which only the mean response is known.

.. math:: \ell_b = (1 - \rho)\, L\Bigl(y_b, \frac{1}{n_b} \sum_{i \in b} h_i\Bigr)
          + \rho\, \frac{1}{n_b} \sum_{i \in b} L(y_b, h_i)

Where privacy or bookkeeping leaves one number per bag, a model of single samples can be fitted to
the bag's mean, or every sample to the bag's number, or to something between the two.
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import Loss, LossOptions
from lossary._checks import (
    check_choice,
    check_device,
    check_floating,
    check_integers,
    check_number,
)
from lossary._numerics import binary_cross_entropy, softplus
from lossary._properties import Properties
from lossary._softmax import readable


class AggregateResponseLoss(Loss):
    r"""Loss of bags of samples whose mean responses are known: bag level, instance level, between.

    .. math:: \ell_b = (1 - \rho)\, L\Bigl(y_b, \frac{1}{n_b} \sum_{i \in b} h_i\Bigr)
              + \rho\, \frac{1}{n_b} \sum_{i \in b} L(y_b, h_i)

    for a bag b of n_b samples with predictions h_i and the mean response y_b.

    rho = 0 asks of the bag's mean prediction to be right and is unbiased, but leaves the single
    predictions free; rho = 1 takes the mean for everybody's label, of less variance and biased to
    the mean. Choose rho between them on held-out bags.

    Args:
        rho: in [0, 1]. Default 0.5.
        base: ``"mse"`` (default), h = input and L = (y - h)^2; or ``"bce"``, h = sigmoid(input) and
            L = -y log h - (1 - y) log(1 - h), whose bag term averages probabilities, not logits.
            That one is an extension of the paper's.
        reduction: see :class:`lossary.Loss`.

    Shape:
        input (N,), bag_index (N,) of integers in [0, M), bag_target (M,), without gradient. Values
        (M,), one per bag, and ``weight`` likewise: the samples of a bag of weight 0 are not there.
        Bags are of any size; those without samples are left out of the mean. All samples of a bag
        must be in one call, on one process.

    Properties:
        l >= 0. "mse": equal to the bag term plus rho times the variance of the predictions within
        the bag (over n_b, not n_b - 1), convex; gradient (2/n_b)((h - y_b) + rho (h_i - h)), where
        h is their mean.
        "bce": rho = 1 is convex; the bag term is not, its gradient in the inputs of a bag has norm
        at most 1, and what lies between its ends is at most 1/2 of a bound of the second derivative
        times that variance. For either, instance term >= bag term (Jensen); affine in rho; bags of
        one sample do not depend on rho.

    Limits:
        rho = 0: the bag term alone, unchanged by what keeps the mean. rho = 1: the instance term.
        Bags of one sample: the base loss.

    Note:
        "bce" takes the log-odds of the mean of sigmoids from their logarithms, so that neither a
        bag of improbable samples nor one of nearly certain ones loses it.

    Raises:
        ValueError: ``rho`` outside [0, 1], an unknown ``base``, shapes that do not fit; on CPU
            tensors, where looking costs nothing: an index outside [0, M), a target of "bce" outside
            [0, 1].
        TypeError: ``rho`` not a number, input or target not floating point, indices that are not
            integers.

    Reference:
        Javanmard, Chen, Mirrokni, Badanidiyuru, Fu, "Learning from Aggregate responses: Instance
        Level versus Bag Level Loss Functions", 2024, Lemmas 1 and 2, as restated in published
        reviews. There is no official code.

    Example:
        >>> import torch
        >>> from lossary import AggregateResponseLoss
        >>> input, bags = torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0, 0, 1])
        >>> bag_target = torch.tensor([1.5, 0.0])
        >>> AggregateResponseLoss(rho=0.5, reduction="none")(input, bags, bag_target)
        tensor([0.7500, 1.0000])
    """

    def __init__(self, rho: float = 0.5, base: str = "mse", **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.rho = check_number("rho", rho, 0.0, 1.0)
        check_choice("base", base, ("mse", "bce"))
        self.base = base

    def per_sample(
        self, input: Tensor, bag_index: Tensor, bag_target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the value of every bag, and whether it has samples."""
        self._check(input, bag_index, bag_target)
        bag_index, y = bag_index.long(), bag_target.detach().to(input.dtype)
        zeros = torch.zeros_like(y)
        count = zeros.index_add(0, bag_index, torch.ones_like(input))
        occupied = count > 0
        size = torch.where(occupied, count, 1.0)
        own = y[bag_index]
        if self.base == "mse":
            mean = zeros.index_add(0, bag_index, input) / size
            bag, each = (y - mean).square(), (own - input).square()
        else:
            each = binary_cross_entropy(own, input)
            # The log-odds of the mean: accurate for a mean near 0 and near 1.
            yes, no = (_log_mean(-softplus(x), bag_index, occupied, size) for x in (-input, input))
            bag = binary_cross_entropy(y, yes - no)
        instance = zeros.index_add(0, bag_index, each) / size
        value = (1.0 - self.rho) * bag + self.rho * instance
        return torch.where(occupied, value, 0.0), occupied.to(value.dtype)

    def _without_absent(self, inputs: tuple[Any, ...], weight: Tensor) -> tuple[Any, ...]:
        """Return the inputs, cleaned where the bag has weight 0."""
        input, bag_index, bag_target = inputs
        self._check(input, bag_index, bag_target)
        if weight.dim() != 1 or len(weight) not in (1, len(bag_target)):
            return inputs  # the check on the values' shape will say so
        absent = (weight == 0).expand(len(bag_target))
        input = input.masked_fill(absent[bag_index.long()], 0.0)
        return input, bag_index, bag_target.masked_fill(absent, 0.0)

    def _check(self, input: Tensor, bag_index: Tensor, bag_target: Tensor) -> None:
        check_floating("input", input)
        if input.dim() != 1:
            raise ValueError(f"input: expected shape (N,), got {tuple(input.shape)}")
        check_integers("bag_index", bag_index)
        if bag_index.shape != input.shape:
            raise ValueError(
                f"bag_index: expected one per input, shape {tuple(input.shape)}, "
                f"got {tuple(bag_index.shape)}"
            )
        check_device("bag_index", bag_index, input)
        check_floating("bag_target", bag_target)
        if bag_target.dim() != 1:
            raise ValueError(f"bag_target: expected shape (M,), got {tuple(bag_target.shape)}")
        check_device("bag_target", bag_target, input)
        bags = len(bag_target)
        if readable(bag_index) and bag_index.numel() > 0:
            low, high = (int(x) for x in torch.aminmax(bag_index))
            if low < 0 or high >= bags:
                wrong = low if low < 0 else high
                raise ValueError(f"bag_index: expected indices in [0, {bags}), got {wrong}")
        if self.base == "bce" and readable(bag_target):
            # Not "< 0 or > 1": a nan is neither, and left out where its bag has weight 0.
            wrong_target = (bag_target < 0) | (bag_target > 1)
            if bool(wrong_target.any()):
                raise ValueError(
                    "bag_target: expected numbers in [0, 1] for base='bce', "
                    f"got {float(bag_target[wrong_target][0]):g}"
                )

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        bag = torch.zeros(2, dtype=torch.long)
        convex = self.base == "mse" or self.rho == 1.0
        counterexamples: dict[str, tuple[Any, ...]] = {"upper": ((-1.0, -1.0), bag, (1.0,))}
        if self.base == "mse":
            counterexamples["lipschitz"] = counterexamples["upper"]
        if not convex:
            # One probable sample makes the bag probable; half way to another none is.
            far = 10.0 / (1.0 - self.rho)
            counterexamples["convex"] = ((0.0, -far), (-far, 0.0), bag, (1.0,))
        return Properties(
            convex=convex,
            lower=0.0,
            upper=math.inf,
            lipschitz=math.inf if self.base == "mse" else 1.0,
            smoothness=math.inf,
            limits=(("rho = 0", "bag-level loss"), ("rho = 1", "instance-level loss")),
            counterexamples=counterexamples,
            source="Javanmard et al. 2024; algebra",
        )


def _log_mean(x: Tensor, bag_index: Tensor, occupied: Tensor, size: Tensor) -> Tensor:
    """Return log(mean exp(x)) of every bag, 0 for bags without samples."""
    top = torch.zeros_like(size).scatter_reduce(
        0, bag_index, x.detach(), "amax", include_self=False
    )
    total = torch.zeros_like(size).index_add(0, bag_index, torch.exp(x - top[bag_index]))
    return (torch.where(occupied, total, 1.0) / size).log() + top
