"""Loss functions and regularizers for PyTorch that state what they guarantee."""

from lossary import testing as testing
from lossary._base import ClassificationLoss, Loss
from lossary._layouts import LinearLogits, ShardedLogits
from lossary._properties import Properties
from lossary.adaptation import SymmetricConsistencyLoss
from lossary.calibration import (
    BalanceScore,
    CorrectnessAwareLoss,
    ExpectedCalibrationError,
    MixupNDCGLoss,
    MixupRankingLoss,
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
from lossary.evidential import (
    DempsterShaferCombination,
    EvidentialEngagementWeighting,
    EvidentialLoss,
    TLCLoss,
)
from lossary.global_contrastive import GlobalContrastiveLoss, TwoWayGlobalContrastiveLoss
from lossary.imbalance import (
    AdaptiveFeatureScaling,
    BackdoorAdjustment,
    FeatureSeparationLoss,
    GradientSimilarityFocalLoss,
    GuidedLossScaling,
    LogitAdjustmentLoss,
    SRATLoss,
    adaptive_threshold,
    gradient_dissimilarity,
    prior_bias_init,
)
from lossary.ldr import ALDRKLLoss, CrammerSingerLoss, LDRKLLoss, LDRLoss, WestonWatkinsLoss
from lossary.metric import OPIS, TCMLoss
from lossary.noisy_labels import ReverseCrossEntropyLoss, SymmetricCrossEntropyLoss
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
from lossary.theory import (
    comp_sum_conditional_minimum,
    comp_sum_gamma,
    comp_sum_transform,
    logistic_regret_bound,
)

__all__ = [
    "ALDRKLLoss",
    "AdaptiveFeatureScaling",
    "BackdoorAdjustment",
    "BalanceScore",
    "CauchyLoss",
    "ClassificationLoss",
    "CompSumLoss",
    "ConsistencyLoss",
    "CorrectnessAwareLoss",
    "CrammerSingerLoss",
    "DPOLoss",
    "DempsterShaferCombination",
    "EarlyTimestepDiffusionLoss",
    "EvidentialEngagementWeighting",
    "EvidentialLoss",
    "ExpectedCalibrationError",
    "FeatureSeparationLoss",
    "GeneralizedCrossEntropyLoss",
    "GlobalContrastiveLoss",
    "GradientSimilarityFocalLoss",
    "GuidedLossScaling",
    "InfoNCELoss",
    "LDRKLLoss",
    "LDRLoss",
    "LinearLogits",
    "LogitAdjustmentLoss",
    "Loss",
    "MixupNDCGLoss",
    "MixupRankingLoss",
    "MulticlassMAELoss",
    "NTXentLoss",
    "OPIS",
    "PairwisePreferenceLoss",
    "Properties",
    "PseudoHuberLoss",
    "RPOLoss",
    "ReverseCrossEntropyLoss",
    "RobustDPOLoss",
    "SRATLoss",
    "SequenceNLLLoss",
    "ShardedLogits",
    "SmoothAdversarialCompSumLoss",
    "SymmetricConsistencyLoss",
    "SymmetricCrossEntropyLoss",
    "TCMLoss",
    "TLCLoss",
    "TruncatedGCELoss",
    "TwoWayGlobalContrastiveLoss",
    "WestonWatkinsLoss",
    "adaptive_cauchy_scale",
    "adaptive_threshold",
    "comp_sum_conditional_minimum",
    "comp_sum_gamma",
    "comp_sum_transform",
    "consistency_boundary",
    "gradient_dissimilarity",
    "ict_discretization_steps",
    "ict_weights",
    "karras_sigmas",
    "ld_sequence_logps",
    "linear_sequence_logps",
    "linear_token_logps",
    "logistic_regret_bound",
    "lognormal_index_probabilities",
    "minibatch_ot_coupling",
    "prior_bias_init",
    "sequence_logps",
    "testing",
    "token_logps",
]
