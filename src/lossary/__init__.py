"""Loss functions and regularizers for PyTorch that state what they guarantee."""

from lossary import testing as testing
from lossary._base import ClassificationLoss, Loss
from lossary._distributed import global_normalizer
from lossary._layouts import LinearLogits, ShardedLogits
from lossary._properties import Properties
from lossary.adaptation import SymmetricConsistencyLoss
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
from lossary.ldr import ALDRKLLoss, CrammerSingerLoss, LDRKLLoss, LDRLoss, WestonWatkinsLoss
from lossary.metric import OPIS, TCMLoss
from lossary.noisy_labels import ReverseCrossEntropyLoss, SymmetricCrossEntropyLoss
from lossary.preference import (
    AOTLoss,
    APOLoss,
    BCOPairLoss,
    CPOLoss,
    DiscoPOPLoss,
    DPOLoss,
    DPOPLoss,
    EXOLoss,
    HingePreferenceLoss,
    IPOLoss,
    LogicPreferenceLoss,
    NCALoss,
    ORPOLoss,
    PairwisePreferenceLoss,
    RDPOLengthLoss,
    RobustDPOLoss,
    RPOLoss,
    SimPOLoss,
    SPPOLoss,
    SRPOLoss,
)
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
    "AOTLoss",
    "APOLoss",
    "BCOPairLoss",
    "CPOLoss",
    "CauchyLoss",
    "ClassificationLoss",
    "CompSumLoss",
    "ConsistencyLoss",
    "CrammerSingerLoss",
    "DPOLoss",
    "DPOPLoss",
    "DiscoPOPLoss",
    "EXOLoss",
    "EarlyTimestepDiffusionLoss",
    "GeneralizedCrossEntropyLoss",
    "GlobalContrastiveLoss",
    "HingePreferenceLoss",
    "IPOLoss",
    "InfoNCELoss",
    "LDRKLLoss",
    "LDRLoss",
    "LinearLogits",
    "LogicPreferenceLoss",
    "Loss",
    "MulticlassMAELoss",
    "NCALoss",
    "NTXentLoss",
    "OPIS",
    "ORPOLoss",
    "PairwisePreferenceLoss",
    "Properties",
    "PseudoHuberLoss",
    "RDPOLengthLoss",
    "RPOLoss",
    "ReverseCrossEntropyLoss",
    "RobustDPOLoss",
    "SPPOLoss",
    "SRPOLoss",
    "SequenceNLLLoss",
    "ShardedLogits",
    "SimPOLoss",
    "SmoothAdversarialCompSumLoss",
    "SymmetricConsistencyLoss",
    "SymmetricCrossEntropyLoss",
    "TCMLoss",
    "TruncatedGCELoss",
    "TwoWayGlobalContrastiveLoss",
    "WestonWatkinsLoss",
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
    "sequence_logps",
    "testing",
    "token_logps",
]
