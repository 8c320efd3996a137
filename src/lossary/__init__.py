"""Loss functions and regularizers for PyTorch that state what they guarantee."""

from lossary import testing as testing
from lossary._base import ClassificationLoss, Loss
from lossary._properties import Properties
from lossary.comp_sum import (
    CompSumLoss,
    GeneralizedCrossEntropyLoss,
    MulticlassMAELoss,
    SmoothAdversarialCompSumLoss,
    TruncatedGCELoss,
)
from lossary.ldr import ALDRKLLoss, CrammerSingerLoss, LDRKLLoss, LDRLoss, WestonWatkinsLoss
from lossary.noisy_labels import ReverseCrossEntropyLoss, SymmetricCrossEntropyLoss
from lossary.robust import CauchyLoss, PseudoHuberLoss, adaptive_cauchy_scale
from lossary.theory import (
    comp_sum_conditional_minimum,
    comp_sum_gamma,
    comp_sum_transform,
    logistic_regret_bound,
)

__all__ = [
    "ALDRKLLoss",
    "CauchyLoss",
    "ClassificationLoss",
    "CompSumLoss",
    "CrammerSingerLoss",
    "GeneralizedCrossEntropyLoss",
    "LDRKLLoss",
    "LDRLoss",
    "Loss",
    "MulticlassMAELoss",
    "Properties",
    "PseudoHuberLoss",
    "ReverseCrossEntropyLoss",
    "SmoothAdversarialCompSumLoss",
    "SymmetricCrossEntropyLoss",
    "TruncatedGCELoss",
    "WestonWatkinsLoss",
    "adaptive_cauchy_scale",
    "comp_sum_conditional_minimum",
    "comp_sum_gamma",
    "comp_sum_transform",
    "logistic_regret_bound",
    "testing",
]
