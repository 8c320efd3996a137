"""The table of what each family guarantees, held together with what its losses declare.

That a declaration is true is for check_loss and the tests of the families; here a declaration that
changes, or a family that joins, has to agree with the table, or to say in which row and why not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from lossary import (
    ActivePassiveLoss,
    ALDRKLLoss,
    AsymmetricExponentialLoss,
    AsymmetricGCELoss,
    AsymmetricUnhingedLoss,
    BrierLoss,
    CompSumLoss,
    CrammerSingerLoss,
    FocalLoss,
    GeneralizedCrossEntropyLoss,
    JensenShannonLoss,
    LabelSmoothingCrossEntropyLoss,
    LDRKLLoss,
    LDRLoss,
    MulticlassMAELoss,
    NormalizedCrossEntropyLoss,
    PolyLoss,
    ReverseCrossEntropyLoss,
    RobustLogLoss,
    WestonWatkinsLoss,
)

INF = math.inf
YES, NO = True, False
#: Bounded below only.
BELOW = "below"
#: A column that the row leaves open.
OPEN = "open"


@dataclass(frozen=True)
class Row:
    """One row: which losses, and what holds of them on K classes, K > 2."""

    losses: tuple[Callable, ...]
    convex: object
    bounded: object
    symmetric: object
    top: object  # top-1 consistent: calibrated
    order: object  # a finite minimiser, in the order of q: rank-consistent
    #: Where the declaration is another one than the row's, and why.
    deviations: dict[str, tuple[object, str]] = field(default_factory=dict)


TABLE = {
    "CE, CompSum tau <= 1": Row(
        tuple(lambda t=t: CompSumLoss(t) for t in (0.0, 0.5, 1.0)), YES, NO, NO, YES, YES
    ),
    "CompSum 1 < tau < 2, GCE": Row(
        (
            *(lambda t=t: CompSumLoss(t) for t in (1.2, 1.9)),
            *(lambda q=q: GeneralizedCrossEntropyLoss(q) for q in (0.3, 0.7)),
        ),
        NO, YES, NO, YES, YES,
    ),
    "CompSum tau > 2": Row((lambda: CompSumLoss(3.0),), NO, YES, NO, YES, NO),
    "CompSum tau = 2, MAE, RCE": Row(
        (lambda: CompSumLoss(2.0), MulticlassMAELoss, ReverseCrossEntropyLoss),
        NO, YES, YES, YES, NO,
    ),
    "LDR-KL, 0 < lam < inf": Row(
        tuple(lambda lam=lam: LDRKLLoss(lam, 0.3) for lam in (0.1, 1.0, 10.0)),
        YES, BELOW, NO, YES, YES,
    ),
    "LDR lam = 0": Row(
        (lambda: LDRKLLoss(0.0, 1.0), lambda: LDRLoss(0.0, 1.0), CrammerSingerLoss),
        # Right if max q > 1/2 only.
        YES, BELOW, NO, NO, NO,
    ),
    "LDR lam = inf": Row(
        # On an l2 ball of f.
        (lambda: LDRKLLoss(INF, 0.3),), YES, NO, YES, YES, YES,
        {
            "top": (NO, "linear: on all f there is no minimiser, and no infimum"),
            "order": (NO, "linear: on all f there is no minimiser, and no infimum"),
        },
    ),
    "ALDR-KL, alpha > 1": Row((lambda: ALDRKLLoss(5),), OPEN, OPEN, NO, YES, YES),
    "Weston-Watkins": Row((WestonWatkinsLoss,), YES, BELOW, NO, NO, NO),
    "Brier": Row((BrierLoss,), NO, YES, NO, YES, YES),
    "NCE": Row(
        (NormalizedCrossEntropyLoss,), NO, YES, YES, OPEN, NO,
        {
            "top": (
                NO,
                "right in the cases tried, but the infimum of the conditional risk is min q, "
                "reached where the least probable class is driven away with any other on top",
            ),
        },
    ),
    "RLL": Row(
        tuple(lambda a=a: RobustLogLoss(a) for a in (0.1, 2.0)), NO, YES, YES, OPEN, NO,
        {
            "top": (
                YES,
                "the risk is -sum_k (K q_k - 1) log(alpha + p_k)/(K - 1) but for a constant: one "
                "minimiser in p, with most mass on the most probable class",
            ),
        },
    ),
    "AGCE q = 1, AUL q = 1": Row(
        (lambda: AsymmetricGCELoss(0.5, 1.0), lambda: AsymmetricUnhingedLoss(2.0, 1.0)),
        NO, YES, YES, YES, NO,
    ),
    "AGCE q > 1, AUL q < 1": Row(
        (
            AsymmetricGCELoss,
            lambda: AsymmetricGCELoss(3.0, 1.5),
            AsymmetricUnhingedLoss,
            lambda: AsymmetricUnhingedLoss(6.0, 0.3),
        ),
        NO, YES, NO, YES, NO,
    ),
    # Not in the published comparison: convex in p, so the minimiser can lie between vertices.
    "AGCE q < 1 (a > 0), AUL q > 1, AEL": Row(
        (
            lambda: AsymmetricGCELoss(1.0, 0.5),
            lambda: AsymmetricUnhingedLoss(6.0, 1.5),
            AsymmetricExponentialLoss,
        ),
        NO, YES, NO, YES, NO,
    ),
    "Jensen-Shannon": Row(
        tuple(lambda w=w: JensenShannonLoss(w) for w in (0.1, 0.5, 0.9)), NO, YES, NO, YES, YES
    ),
    "Focal": Row(tuple(lambda g=g: FocalLoss(g) for g in (0.5, 2.0)), NO, NO, NO, YES, YES),
    "Poly-1, abs(eps) <= 1": Row(
        tuple(lambda e=e: PolyLoss(e) for e in (-1.0, -0.5, 1.0)), YES, NO, NO, YES, YES
    ),
    "Poly-1, eps > 1": Row((lambda: PolyLoss(2.0),), NO, NO, NO, YES, YES),
    "Label smoothing": Row(
        tuple(lambda s=s: LabelSmoothingCrossEntropyLoss(s) for s in (0.0, 0.1, 0.9)),
        YES, NO, NO, YES, YES,
    ),
    # A symmetric loss that is top-1 consistent cannot be top-k consistent for all k.
    "NCE + RCE, NCE + MAE": Row(
        (ActivePassiveLoss, lambda: ActivePassiveLoss("nce", "mae")), NO, YES, YES, YES, NO
    ),
}  # fmt: skip


def bounded(p):
    """What the bounds amount to in the table's words."""
    if p.lower is None or p.upper is None:
        return None
    below, above = math.isfinite(p.lower), math.isfinite(p.upper)
    return YES if below and above else BELOW if below else NO


@pytest.mark.parametrize("name", TABLE)
def test_declarations_agree_with_the_table(name):
    row = TABLE[name]
    for loss in (make() for make in row.losses):
        p = loss.properties()
        declared = {
            "convex": p.convex,
            "bounded": bounded(p),
            "symmetric": p.symmetric,
            "top": p.calibrated,
            "order": p.rank_consistent,
        }
        for column, found in declared.items():
            wanted = getattr(row, column)
            if column in row.deviations:
                wanted, why = row.deviations[column]
                assert why
                assert wanted != getattr(row, column)
            if wanted == OPEN:
                continue
            if column == "bounded" and wanted == NO:  # unbounded above is all that NO says
                assert found is not None, (loss, column)
                assert found != YES, (loss, column)
                continue
            assert found == wanted, (loss, column)
            assert type(found) is type(wanted), (loss, column)


@pytest.mark.parametrize("name", TABLE)
def test_none_is_symmetric_and_orders_all_classes(name):
    # The negative result of the LDR paper.
    for loss in (make() for make in TABLE[name].losses):
        p = loss.properties()
        assert not (p.symmetric and p.calibrated and p.rank_consistent)


def test_properness():
    # Only these recover q itself.
    proper = {name for name, row in TABLE.items() if row.losses[0]().properties().proper}
    assert proper <= {"CE, CompSum tau <= 1", "Brier", "LDR-KL, 0 < lam < inf", "Label smoothing"}
    for loss in (CompSumLoss(), BrierLoss(), LabelSmoothingCrossEntropyLoss(0.0), PolyLoss(0.0)):
        assert loss.properties().proper is True
    for loss in (FocalLoss(), PolyLoss(), JensenShannonLoss(), LabelSmoothingCrossEntropyLoss()):
        assert loss.properties().proper is False
