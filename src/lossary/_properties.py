"""What a loss guarantees, as data that the tests, the reference and the command line read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Claims that have a meaning for losses of logits and a class target only.
OF_CLASSES = (
    "symmetric",
    "shift_invariant",
    "calibrated",
    "rank_consistent",
    "proper",
    "minimiser",
)


@dataclass(frozen=True, kw_only=True)
class Properties:
    r"""The guarantees of one loss instance, at its hyper-parameters.

    A flag has three values. ``True``: proved in the source, and a property test tries to break it.
    ``False``: ``counterexamples`` holds the case that shows it. ``None``: unknown, or only seen in
    the cases tried. Numbers follow the same rule: ``None`` is unknown, infinity is a claim.

    :func:`lossary.testing.check_loss` tests every claim made here.

    Args:
        convex: convex in the input (for class-target losses: in the logits, for every target).
        lower: the infimum over all inputs, which values come close to; ``-inf`` if there is none.
        upper: the supremum, likewise; ``inf`` if there is none.
        lipschitz: the supremum of the gradient's Euclidean norm per sample; ``inf`` if unbounded.
            An upper bound that need not be sharp.
        smoothness: how many continuous derivatives the loss has: 0, 1, 2, ... or ``math.inf``.
        symmetric: the sum over all classes, sum_k loss(f, k), is the same for every f. Such losses
            are tolerant to uniform label noise.
        class_sum: that constant, where ``symmetric`` holds.
        shift_invariant: unchanged when the same number is added to all logits of a row.
        calibrated: classification-calibrated. Along every sequence that brings the conditional risk
            sum_k q_k loss(f, k) to its infimum, the largest logit is in the end at a most probable
            class. (Also called top-1 consistent.)
        rank_consistent: the conditional risk has a finite minimiser when all q_k > 0, and it orders
            all classes as q does: top-k consistent for every k at once.
        proper: the conditional risk is minimised by softmax(f) = q.
        minimiser: what minimises the conditional risk, in words or a formula.
        limits: parameter values at which the loss becomes another one, each as
            ("tau -> 1", "cross-entropy").
        counterexamples: for each False flag, and each infinite number, the case that shows it
            (without y, for a loss of one input):

            - ``"convex"``: (a, b, y): the value at (a + b)/2 exceeds the mean of those at a and b.
            - ``"symmetric"``: (a, b): two rows of logits whose class sums differ.
            - ``"shift_invariant"``: (a, c): adding c to every logit of a changes the value.
            - ``"calibrated"``, ``"rank_consistent"``: (q, f): f reaches the infimum of the
              conditional risk under q to 1e-6, but does not have q's largest class on top, or not
              q's order.
            - ``"proper"``: (q, f): f has a smaller conditional risk under q than log q has.
            - ``"lower"``, ``"upper"``, ``"lipschitz"``: (d, y): along s * d the value (or the
              gradient's norm) grows without bound with s.
        unknown: for claims that are ``None``, why: unknown, or without meaning for this loss.
        source: where the facts come from.
    """

    convex: bool | None = None
    lower: float | None = None
    upper: float | None = None
    lipschitz: float | None = None
    smoothness: float | None = None
    symmetric: bool | None = None
    class_sum: float | None = None
    shift_invariant: bool | None = None
    calibrated: bool | None = None
    rank_consistent: bool | None = None
    proper: bool | None = None
    minimiser: str | None = None
    limits: tuple[tuple[str, str], ...] = ()
    counterexamples: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
