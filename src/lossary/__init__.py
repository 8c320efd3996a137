"""Loss functions and regularizers for PyTorch that state what they guarantee."""

from lossary import testing as testing
from lossary._base import ClassificationLoss, Loss
from lossary._distributed import global_normalizer
from lossary._layouts import LinearLogits, ShardedLogits
from lossary._pairwise import PairwisePreferenceLoss
from lossary._properties import Properties
from lossary.adaptation import SymmetricConsistencyLoss
from lossary.aggregate import AggregateResponseLoss
from lossary.binary import EnsLoss, NormalizedLogisticLoss, ScaledLogisticLoss
from lossary.calibration import (
    BalanceScore,
    CorrectnessAwareLoss,
    ExpectedCalibrationError,
    MixupNDCGLoss,
    MixupRankingLoss,
)
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
from lossary.evidential import (
    DempsterShaferCombination,
    EvidentialEngagementWeighting,
    EvidentialLoss,
    TLCLoss,
)
from lossary.global_contrastive import GlobalContrastiveLoss, TwoWayGlobalContrastiveLoss
from lossary.gradients import perp_grad, perp_grad_
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
from lossary.preference import (
    AOTLoss,
    APOLoss,
    BCOPairLoss,
    DiscoPOPLoss,
    DPOLoss,
    DPOPLoss,
    EXOLoss,
    HingePreferenceLoss,
    IPOLoss,
    NCALoss,
    RDPOLengthLoss,
    RobustDPOLoss,
    RPOLoss,
    SPPOLoss,
    SRPOLoss,
    WPOWeighting,
)
from lossary.reference_free import CPOLoss, LogicPreferenceLoss, ORPOLoss, SimPOLoss
from lossary.robust import CauchyLoss, PseudoHuberLoss, adaptive_cauchy_scale
from lossary.segments import CPLLoss
from lossary.sequence_policy import (
    DirectAdvantageLoss,
    FDPGLoss,
    P3OLoss,
    SuperHFLoss,
    best_of_k,
)
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
from lossary.surrogate import TargetSurrogateLoss
from lossary.theory import (
    comp_sum_conditional_minimum,
    comp_sum_gamma,
    comp_sum_transform,
    logistic_regret_bound,
)
from lossary.unpaired import BCOLoss, KTOLoss
from lossary.value import MartingaleLoss

__all__ = [
    "ALDRKLLoss",
    "AOTLoss",
    "APOLoss",
    "ActivePassiveLoss",
    "AdaptiveFeatureScaling",
    "AggregateResponseLoss",
    "AsymmetricExponentialLoss",
    "AsymmetricGCELoss",
    "AsymmetricUnhingedLoss",
    "BCOLoss",
    "BCOPairLoss",
    "BackdoorAdjustment",
    "BalanceScore",
    "BrierLoss",
    "CPLLoss",
    "CPOLoss",
    "CauchyLoss",
    "ClassificationLoss",
    "CompSumLoss",
    "ConsistencyLoss",
    "CorrectnessAwareLoss",
    "CrammerSingerLoss",
    "DPOLoss",
    "DPOPLoss",
    "DempsterShaferCombination",
    "DirectAdvantageLoss",
    "DirectCoverageLoss",
    "DiscoPOPLoss",
    "EXOLoss",
    "EarlyTimestepDiffusionLoss",
    "EnsLoss",
    "EvidentialEngagementWeighting",
    "EvidentialLoss",
    "ExpectedCalibrationError",
    "FDPGLoss",
    "FeatureSeparationLoss",
    "FocalLoss",
    "GeneralizedCrossEntropyLoss",
    "GlobalContrastiveLoss",
    "GradientSimilarityFocalLoss",
    "GuidedLossScaling",
    "HingePreferenceLoss",
    "IBPRobustCrossEntropyLoss",
    "IBPTightnessRegularizer",
    "IPOLoss",
    "InfoNCELoss",
    "JensenShannonLoss",
    "KTOLoss",
    "LDRKLLoss",
    "LDRLoss",
    "LabelSmoothingCrossEntropyLoss",
    "LinearLogits",
    "LogicPreferenceLoss",
    "LogitAdjustmentLoss",
    "LogitZRegularizer",
    "Loss",
    "MartingaleLoss",
    "MixupNDCGLoss",
    "MixupRankingLoss",
    "MulticlassMAELoss",
    "NCALoss",
    "NTXentLoss",
    "NormalizedCrossEntropyLoss",
    "NormalizedLogisticLoss",
    "OPIS",
    "ORPOLoss",
    "P3OLoss",
    "PairwisePreferenceLoss",
    "PolyLoss",
    "Properties",
    "PseudoHuberLoss",
    "RDPOLengthLoss",
    "RPOLoss",
    "ReLUBalanceRegularizer",
    "ReverseCrossEntropyLoss",
    "RobustDPOLoss",
    "RobustLogLoss",
    "SPPOLoss",
    "SRATLoss",
    "SRPOLoss",
    "ScaledLogisticLoss",
    "SequenceNLLLoss",
    "ShardedLogits",
    "SimPOLoss",
    "SmoothAdversarialCompSumLoss",
    "SphericalSoftmaxLoss",
    "StableMaxCrossEntropyLoss",
    "SuperHFLoss",
    "SymmetricConsistencyLoss",
    "SymmetricCrossEntropyLoss",
    "TCMLoss",
    "TLCLoss",
    "TargetSurrogateLoss",
    "TaylorSoftmaxLoss",
    "TruncatedGCELoss",
    "TwoWayGlobalContrastiveLoss",
    "WPOWeighting",
    "WestonWatkinsLoss",
    "ZLoss",
    "adaptive_cauchy_scale",
    "adaptive_threshold",
    "best_of_k",
    "comp_sum_conditional_minimum",
    "comp_sum_gamma",
    "comp_sum_transform",
    "consistency_boundary",
    "global_normalizer",
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
    "perp_grad",
    "perp_grad_",
    "prior_bias_init",
    "sequence_logps",
    "testing",
    "token_logps",
]
