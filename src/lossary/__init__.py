"""Loss functions and regularizers for PyTorch that state what they guarantee."""

from lossary import testing as testing
from lossary._base import ClassificationLoss, Loss
from lossary._properties import Properties
from lossary.comp_sum import CompSumLoss, GeneralizedCrossEntropyLoss, MulticlassMAELoss
from lossary.ldr import LDRKLLoss
from lossary.noisy_labels import ReverseCrossEntropyLoss, SymmetricCrossEntropyLoss

__all__ = [
    "ClassificationLoss",
    "CompSumLoss",
    "GeneralizedCrossEntropyLoss",
    "LDRKLLoss",
    "Loss",
    "MulticlassMAELoss",
    "Properties",
    "ReverseCrossEntropyLoss",
    "SymmetricCrossEntropyLoss",
    "testing",
]
