"""Loss functions and regularizers for PyTorch that state what they guarantee."""

from lossary import testing as testing
from lossary._base import ClassificationLoss, Loss
from lossary._distributed import global_normalizer
from lossary._layouts import LinearLogits, ShardedLogits
from lossary._properties import Properties
from lossary.adaptation import SymmetricConsistencyLoss
from lossary.aggregate import AggregateResponseLoss
from lossary.binary import EnsLoss, NormalizedLogisticLoss, ScaledLogisticLoss
from lossary.certified import (
    IBPRobustCrossEntropyLoss,
    IBPTightnessRegularizer,
    ReLUBalanceRegularizer,
)
from lossary.classification import (
    BrierLoss,
    DirectCoverageLoss,
    FocalLoss,
    LabelSmoothingCrossEntropyLoss,
    LogitZRegularizer,
    PolyLoss,
)
from lossary.comp_sum import (
    CompSumLoss,
    GeneralizedCrossEntropyLoss,
    MulticlassMAELoss,
    SmoothAdversarialCompSumLoss,
    TruncatedGCELoss,
)
from lossary.consistency import (
    ConsistencyLoss,
    EarlyTimestepDiffusionLoss,
    consistency_boundary,
    ict_discretization_steps,
    ict_weights,
    karras_sigmas,
    lognormal_index_probabilities,
    minibatch_ot_coupling,
)
from lossary.contrastive import InfoNCELoss, NTXentLoss
from lossary.global_contrastive import GlobalContrastiveLoss, TwoWayGlobalContrastiveLoss
from lossary.gradients import perp_grad, perp_grad_
from lossary.ldr import ALDRKLLoss, CrammerSingerLoss, LDRKLLoss, LDRLoss, WestonWatkinsLoss
from lossary.metric import OPIS, TCMLoss
from lossary.noisy_labels import (
    ActivePassiveLoss,
    AsymmetricExponentialLoss,
    AsymmetricGCELoss,
    AsymmetricUnhingedLoss,
    JensenShannonLoss,
    NormalizedCrossEntropyLoss,
    ReverseCrossEntropyLoss,
    RobustLogLoss,
    SymmetricCrossEntropyLoss,
)
from lossary.preference import DPOLoss, PairwisePreferenceLoss, RobustDPOLoss, RPOLoss
from lossary.robust import CauchyLoss, PseudoHuberLoss, adaptive_cauchy_scale
from lossary.sequences import (
    SequenceNLLLoss,
    ld_sequence_logps,
    linear_sequence_logps,
    linear_token_logps,
    sequence_logps,
    token_logps,
)
from lossary.softmax_alternatives import (
    SphericalSoftmaxLoss,
    StableMaxCrossEntropyLoss,
    TaylorSoftmaxLoss,
    ZLoss,
)
from lossary.theory import (
    comp_sum_conditional_minimum,
    comp_sum_gamma,
    comp_sum_transform,
    logistic_regret_bound,
)

__all__ = [
    "ALDRKLLoss",
    "ActivePassiveLoss",
    "AggregateResponseLoss",
    "AsymmetricExponentialLoss",
    "AsymmetricGCELoss",
    "AsymmetricUnhingedLoss",
    "BrierLoss",
    "CauchyLoss",
    "ClassificationLoss",
    "CompSumLoss",
    "ConsistencyLoss",
    "CrammerSingerLoss",
    "DPOLoss",
    "DirectCoverageLoss",
    "EarlyTimestepDiffusionLoss",
    "EnsLoss",
    "FocalLoss",
    "GeneralizedCrossEntropyLoss",
    "GlobalContrastiveLoss",
    "IBPRobustCrossEntropyLoss",
    "IBPTightnessRegularizer",
    "InfoNCELoss",
    "JensenShannonLoss",
    "LDRKLLoss",
    "LDRLoss",
    "LabelSmoothingCrossEntropyLoss",
    "LinearLogits",
    "LogitZRegularizer",
    "Loss",
    "MulticlassMAELoss",
    "NTXentLoss",
    "NormalizedCrossEntropyLoss",
    "NormalizedLogisticLoss",
    "OPIS",
    "PairwisePreferenceLoss",
    "PolyLoss",
    "Properties",
    "PseudoHuberLoss",
    "RPOLoss",
    "ReLUBalanceRegularizer",
    "ReverseCrossEntropyLoss",
    "RobustDPOLoss",
    "RobustLogLoss",
    "ScaledLogisticLoss",
    "SequenceNLLLoss",
    "ShardedLogits",
    "SmoothAdversarialCompSumLoss",
    "SphericalSoftmaxLoss",
    "StableMaxCrossEntropyLoss",
    "SymmetricConsistencyLoss",
    "SymmetricCrossEntropyLoss",
    "TCMLoss",
    "TaylorSoftmaxLoss",
    "TruncatedGCELoss",
    "TwoWayGlobalContrastiveLoss",
    "WestonWatkinsLoss",
    "ZLoss",
    "adaptive_cauchy_scale",
    "comp_sum_conditional_minimum",
    "comp_sum_gamma",
    "comp_sum_transform",
    "consistency_boundary",
    "global_normalizer",
    "ict_discretization_steps",
    "ict_weights",
    "karras_sigmas",
    "ld_sequence_logps",
    "linear_sequence_logps",
    "linear_token_logps",
    "logistic_regret_bound",
    "lognormal_index_probabilities",
    "minibatch_ot_coupling",
    "perp_grad",
    "perp_grad_",
    "sequence_logps",
    "testing",
    "token_logps",
]
