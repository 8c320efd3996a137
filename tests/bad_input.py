"""The table of what must be refused, and with which words.

A row says how the loss is built, what it is called with, and what the error must say. Rows without
a loss hold for every loss with a class target: a new one inherits them by being exported. A family
adds rows of its own for its hyper-parameters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from lossary import (
    ActivePassiveLoss,
    AdaptiveMixLoss,
    ADORELoss,
    AggregateResponseLoss,
    ALDRKLLoss,
    AMCLLoss,
    AOTLoss,
    APOLoss,
    ArcFaceLoss,
    AsymmetricExponentialLoss,
    AsymmetricGCELoss,
    AsymmetricUnhingedLoss,
    BarlowTwinsLoss,
    BatchSoftmaxLoss,
    BCOLoss,
    BCOPairLoss,
    BradleyTerryLoss,
    BrierLoss,
    CauchyLoss,
    CEULoss,
    COMETLoss,
    COMETTotalLoss,
    CompositionalNLLLoss,
    CompSumLoss,
    ConsistencyLoss,
    CorrectnessAwareLoss,
    CosFaceLoss,
    CPLLoss,
    CPOLoss,
    CrammerSingerLoss,
    CREAMLoss,
    DCLLoss,
    DecoupledPPOLoss,
    DirectAdvantageLoss,
    DirectCoverageLoss,
    DiscoPOPLoss,
    DNOLoss,
    DPOLoss,
    DPOPLoss,
    EarlyTimestepDiffusionLoss,
    EnsLoss,
    EvidentialLoss,
    EXOLoss,
    FDPGLoss,
    FeatureSeparationLoss,
    FLATLoss,
    FocalLoss,
    GeneralizedCrossEntropyLoss,
    GlobalContrastiveLoss,
    GradAscentLoss,
    GradDiffLoss,
    GradientMatchingLoss,
    GradientSimilarityFocalLoss,
    GRPOLoss,
    HardContrastiveLoss,
    HingePreferenceLoss,
    IBPRobustCrossEntropyLoss,
    IBPTightnessRegularizer,
    ICNNLoss,
    InfoNCELoss,
    INPOLoss,
    IPOLoss,
    JensenShannonLoss,
    KTOLoss,
    LabelConsistencyLoss,
    LabelSmoothingCrossEntropyLoss,
    LAFAlignmentLoss,
    LAFRepresentationUnlearningLoss,
    LDRKLLoss,
    LDRLoss,
    LinearLogits,
    LinearPreferenceLoss,
    LogicPreferenceLoss,
    LogitAdjustmentLoss,
    LogitZRegularizer,
    Loss,
    MartingaleLoss,
    MetrixLoss,
    MixupNDCGLoss,
    MixupRankingLoss,
    ModelBehaviorConsistencyLoss,
    MulticlassMAELoss,
    MultiSimilarityLoss,
    NashMDLoss,
    NashMPLoss,
    NCALoss,
    NCELoss,
    NFTLoss,
    NodeCompactnessRegularizer,
    NormalizedLogisticLoss,
    NPairLoss,
    NPOLoss,
    NTXentLoss,
    OnlinePrototypeEquilibriumLoss,
    ORPOLoss,
    P3OLoss,
    PairwiseRankNetLoss,
    PartialReturnPreferenceLoss,
    PolyLoss,
    ProtoTripletLoss,
    PrototypePairSampling,
    PrototypeRelationDistillationLoss,
    PrototypeTightnessLoss,
    ProxyAnchorLoss,
    PseudoHuberLoss,
    RDPOLengthLoss,
    RegretLoss,
    RegretPreferenceLoss,
    ReLUBalanceRegularizer,
    ReverseCrossEntropyLoss,
    RMTContrastiveLoss,
    RobustDPOLoss,
    RobustLogLoss,
    RPOLoss,
    ScaledLogisticLoss,
    SCIRLoss,
    SequenceNLLLoss,
    SigLIPLoss,
    SimNPOLoss,
    SimPOLoss,
    SmoothAdversarialCompSumLoss,
    SparsePreferenceLoss,
    SphericalSoftmaxLoss,
    SPPOLoss,
    SRATLoss,
    SRPOLoss,
    StableReinforceLoss,
    SupConLoss,
    SuperHFLoss,
    SymmetricConsistencyLoss,
    SymmetricCrossEntropyLoss,
    TargetSurrogateLoss,
    TCMLoss,
    TieAwareBradleyTerryLoss,
    TLCLoss,
    TripletMarginLoss,
    TruncatedGCELoss,
    TwoWayGlobalContrastiveLoss,
    UNPGLoss,
    VICRegLoss,
    WestonWatkinsLoss,
    WGALoss,
    ZLoss,
    contrastive_targets,
    linear_sequence_logps,
    linear_token_logps,
)

NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Row:
    """One mistake. The constructor makes it where there are no inputs, else the call does."""

    id: str
    argument: str | None  # the message starts with it; None: Python's own message
    says: tuple[str, ...]  # what came, what was expected
    error: type[Exception] = ValueError
    loss: Callable[..., Loss] | None = None  # None: every loss with a class target
    options: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[Any, ...] | None = None
    keywords: dict[str, Any] = field(default_factory=dict)


N, K = 4, 3
LOGITS = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0], [-1.0, 0.5, 2.0], [4.0, 0.0, 1.0]])
TARGET = torch.tensor([0, 1, 2, 2])
PROBABILITIES = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.1, 0.1, 0.8]])


def _indices(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def _probabilities(*first_row: float) -> torch.Tensor:
    q = PROBABILITIES.clone()
    q[0] = torch.tensor(first_row)
    return q


def option(id: str, argument: str, says: tuple[str, ...], value: Any, error=ValueError) -> Row:
    """A keyword of every loss that the constructor refuses."""
    return Row(f"{argument}_{id}", argument, says, error, options={argument: value})


def call(
    id: str,
    argument: str,
    says: tuple[str, ...],
    *inputs: Any,
    error: type[Exception] = ValueError,
    options: dict[str, Any] | None = None,
    **keywords: Any,
) -> Row:
    """Inputs that every loss refuses."""
    return Row(f"{argument}_{id}", argument, says, error, None, options or {}, inputs, keywords)


def weight(id: str, says: tuple[str, ...], value: Any, error=ValueError) -> Row:
    return call(id, "weight", says, LOGITS, TARGET, error=error, weight=value)


def normalizer(id: str, says: tuple[str, ...], value: Any, error=ValueError, **options: Any) -> Row:
    inputs = (LOGITS, TARGET)
    return call(id, "normalizer", says, *inputs, error=error, options=options, normalizer=value)


def hyper(
    loss: type[Loss],
    argument: str,
    value: Any,
    /,
    *says: str,
    error: type[Exception] = ValueError,
    id: str | None = None,
    **others: Any,
) -> Row:
    """A hyper-parameter that the constructor refuses."""
    id = f"{loss.__name__}_{argument}_{value if id is None else id}"
    return Row(id, argument, says, error, loss, {argument: value, **others})


def not_numbers(loss: type[Loss], argument: str, /, **others: Any) -> tuple[Row, ...]:
    """What no numeric hyper-parameter takes."""
    what = {"bool": True, "str": "1.0", "NoneType": None, "list": [1.0], "complex": 1j}
    return tuple(
        hyper(loss, argument, value, "expected a number", name, error=TypeError, id=name, **others)
        for name, value in what.items()
    )


COMMON = (
    # The options of the constructor.
    option("unknown", "reduction", ("'none', 'sum', 'mean', 'batchmean'", "'average'"), "average"),
    option("none", "reduction", ("'none'", "got None"), None),
    option("true", "reduction", ("'none'", "got True"), True),
    option("capital", "reduction", ("'mean'", "'Mean'"), "Mean"),
    option("float", "ignore_index", ("an int", "float", "-100.0"), -100.0, TypeError),
    option("none", "ignore_index", ("an int", "NoneType"), None, TypeError),
    option("bool", "ignore_index", ("an int", "bool"), False, TypeError),
    option("str", "ignore_index", ("an int", "str"), "-100", TypeError),
    option("float", "class_dim", ("an int", "float", "1.0"), 1.0, TypeError),
    option("none", "class_dim", ("an int", "NoneType"), None, TypeError),
    option("bool", "class_dim", ("an int", "bool"), True, TypeError),
    option("list", "class_weight", ("a tensor", "list"), [1.0, 2.0, 3.0], TypeError),
    option("number", "class_weight", ("a tensor", "float"), 2.0, TypeError),
    option("int", "class_weight", ("float", "int64"), torch.tensor([1, 2, 3]), TypeError),
    option("bool", "class_weight", ("float", "bool"), torch.ones(3, dtype=torch.bool), TypeError),
    option("0_dim", "class_weight", ("(K,)", "()"), torch.tensor(1.0)),
    option("2_dim", "class_weight", ("(K,)", "(1, 3)"), torch.ones(1, 3)),
    option("one_class", "class_weight", ("K >= 2", "(1,)"), torch.ones(1)),
    option("negative", "class_weight", (">= 0", "-1.0"), torch.tensor([1.0, -1.0, 0.0])),
    option("nan", "class_weight", ("finite", "nan"), torch.tensor([1.0, NAN, 0.0])),
    option("empty", "class_weight", ("K >= 2", "(0,)"), torch.ones(0)),
    Row("unknown_keyword", None, ("unexpected keyword", "size_average"), TypeError, None,
        {"size_average": True}),
    # The logits.
    call("list", "logits", ("a tensor", "list"), LOGITS.tolist(), TARGET, error=TypeError),
    call("none", "logits", ("a tensor", "NoneType"), None, TARGET, error=TypeError),
    call("int", "logits", ("floating point", "int64"), LOGITS.long(), TARGET, error=TypeError),
    call("bool", "logits", ("floating point", "bool"), LOGITS > 0, TARGET, error=TypeError),
    call("complex", "logits", ("floating point", "complex64"), LOGITS + 0j, TARGET,
         error=TypeError),
    call("0_dim", "logits", ("class axis", "0-dim"), torch.tensor(1.0), torch.tensor(0)),
    call("one_class", "logits", ("2 classes", "got 1"), torch.ones(N, 1), torch.zeros(N).long()),
    call("no_class", "logits", ("2 classes", "got 0"), torch.ones(N, 0), torch.zeros(N).long()),
    call("one_class_row", "logits", ("2 classes", "got 1"), torch.ones(1), torch.tensor(0)),
    call("class_dim_2", "logits", ("axis 2", "class_dim", "(4, 3)"), LOGITS, TARGET,
         options={"class_dim": 2}),
    call("class_dim_-3", "logits", ("axis -3", "class_dim", "(4, 3)"), LOGITS, TARGET,
         options={"class_dim": -3}),
    call("class_dim_2_of_row", "logits", ("axis 2", "class_dim", "(3,)"), LOGITS[0], TARGET[0],
         options={"class_dim": 2}),
    # The target.
    call("list", "target", ("a tensor", "list"), LOGITS, TARGET.tolist(), error=TypeError),
    call("number", "target", ("a tensor", "int"), LOGITS[0], 1, error=TypeError),
    call("float_indices", "target", ("integer class indices", "float32"), LOGITS, TARGET.float(),
         error=TypeError),
    call("bool", "target", ("integer class indices", "bool"), LOGITS, TARGET > 0, error=TypeError),
    call("bool_one_hot", "target", ("integer class indices", "bool"), LOGITS, PROBABILITIES > 0.4,
         error=TypeError),
    call("complex", "target", ("integer class indices", "complex64"), LOGITS, PROBABILITIES + 0j,
         error=TypeError),
    call("int_one_hot", "target", ("(4,)", "got (4, 3)"), LOGITS, PROBABILITIES.long()),
    call("column", "target", ("(4,)", "got (4, 1)"), LOGITS, TARGET[:, None]),
    call("short", "target", ("(4,)", "got (3,)"), LOGITS, TARGET[:3]),
    call("one", "target", ("(4,)", "got (1,)"), LOGITS, TARGET[:1]),
    call("0_dim", "target", ("(4,)", "got ()"), LOGITS, TARGET[0]),
    call("1_dim_of_row", "target", ("()", "got (1,)"), LOGITS[0], TARGET[:1]),
    call("image_transposed", "target", ("(2, 5, 4)", "(2, 3, 5, 4)", "got (2, 4, 5)"),
         torch.ones(2, 3, 5, 4), torch.zeros(2, 4, 5).long()),
    call("classes_last", "target", ("(2, 4)", "(2, 5, 4)", "got (2, 5)"), torch.ones(2, 5, 4),
         torch.zeros(2, 5).long()),
    call("class_dim_-1", "target", ("(2, 5)", "(2, 5, 4)", "got (2, 4)"), torch.ones(2, 5, 4),
         torch.zeros(2, 4).long(), options={"class_dim": -1}),
    call("classes_missing", "target", ("(4, 3)", "got (4, 2)"), LOGITS, PROBABILITIES[:, 1:]),
    call("one_probability", "target", ("(4, 3)", "got (4, 1)"), LOGITS, torch.ones(N, 1)),
    call("probabilities_of_row", "target", ("(4, 3)", "got (1, 3)"), LOGITS, PROBABILITIES[:1]),
    call("probabilities_3_dim", "target", ("(4, 3)", "got (4, 3, 1)"), LOGITS,
         PROBABILITIES[..., None]),
    call("other_device", "target", ("device cpu", "meta"), LOGITS, TARGET.to("meta")),
    call("index_K", "target", ("[0, 3)", "ignore_index=-100", "got 3"), LOGITS,
         _indices(0, 1, 2, 3)),
    call("index_negative", "target", ("[0, 3)", "ignore_index=-100", "got -1"), LOGITS,
         _indices(0, -1, 2, 1)),
    call("index_next_to_ignored", "target", ("[0, 3)", "got -99"), LOGITS,
         _indices(0, -100, -99, 1)),
    call("index_-100_not_ignored", "target", ("ignore_index=-1,", "got -100"), LOGITS,
         _indices(0, -1, -100, 1), options={"ignore_index": -1}),
    call("index_K_beside_ignored_class", "target", ("ignore_index=1,", "got 3"), LOGITS,
         _indices(0, 1, 2, 3), options={"ignore_index": 1}),
    call("index_uint8", "target", ("[0, 3)", "got 255"), LOGITS,
         _indices(0, 1, 2, 255).to(torch.uint8)),
    call("index_despite_weight_0", "target", ("[0, 3)", "got 7"), LOGITS, _indices(0, 1, 2, 7),
         weight=torch.tensor([1.0, 1.0, 1.0, 0.0])),
    call("probability_negative", "target", ("non-negative", "minimum -0.5"), LOGITS,
         _probabilities(1.0, 0.5, -0.5)),
    call("probabilities_above_1", "target", ("sum 1", "sum 1.2"), LOGITS,
         _probabilities(0.4, 0.4, 0.4)),
    call("probabilities_below_1", "target", ("sum 1", "sum 0.75"), LOGITS,
         _probabilities(0.25, 0.25, 0.25)),
    call("probabilities_0", "target", ("sum 1", "sum 0"), LOGITS, _probabilities(0.0, 0.0, 0.0)),
    call("probability_nan", "target", ("sum 1", "nan"), LOGITS, _probabilities(0.5, 0.5, NAN)),
    call("probability_inf", "target", ("sum 1", "inf"), LOGITS, _probabilities(0.5, 0.5, INF)),
    call("probabilities_of_other_axis", "target", ("over the class axis", "got a row"), LOGITS,
         PROBABILITIES, options={"class_dim": 0}),
    # What goes with the inputs.
    call("wrong_length", "class_weight", ("3 weights", "got 4"), LOGITS, TARGET,
         options={"class_weight": torch.ones(4)}),
    call("wrong_length_soft", "class_weight", ("3 weights", "got 2"), LOGITS, PROBABILITIES,
         options={"class_weight": torch.ones(2)}),
    weight("number", ("a tensor", "float"), 2.0, TypeError),
    weight("list", ("a tensor", "list"), [1.0] * N, TypeError),
    weight("int", ("float or bool", "int64"), torch.ones(N).long(), TypeError),
    weight("uint8_mask", ("float or bool", "uint8"), torch.ones(N).to(torch.uint8), TypeError),
    weight("complex", ("float or bool", "complex64"), torch.ones(N) + 0j, TypeError),
    weight("0_dim", ("(4,)", "got ()"), torch.tensor(1.0)),
    weight("column", ("(4,)", "got (4, 1)"), torch.ones(N, 1)),
    weight("one_row", ("(4,)", "got (1, 4)"), torch.ones(1, N)),
    weight("per_logit", ("(4,)", "got (4, 3)"), torch.ones(N, K)),
    weight("short", ("(4,)", "got (3,)"), torch.ones(3)),
    weight("other_device", ("device cpu", "meta"), torch.ones(N, device="meta")),
    call("1_dim_for_2", "weight", ("(2, 5)", "got (5,)"), torch.ones(2, 3, 5),
         torch.zeros(2, 5).long(), weight=torch.ones(5)),
    call("ones_for_2", "weight", ("(2, 5)", "got (1,)"), torch.ones(2, 3, 5),
         torch.zeros(2, 5).long(), weight=torch.ones(1)),
    call("of_wrong_axis", "weight", ("(2, 5)", "got (2, 3)"), torch.ones(2, 3, 5),
         torch.zeros(2, 5).long(), weight=torch.ones(2, 3)),
    call("column_soft", "weight", ("(4,)", "got (4, 1)"), LOGITS, PROBABILITIES,
         weight=torch.ones(N, 1)),
    call("mask_per_logit", "weight", ("(4,)", "got (4, 3)"), LOGITS, TARGET, weight=LOGITS > 0),
    call("1_dim_for_row", "weight", ("()", "got (1,)"), LOGITS[0], TARGET[0],
         weight=torch.ones(1)),
    normalizer("with_none", ("reduction='none'", "got"), 4.0, reduction="none"),
    normalizer("zero", ("other than 0", "got 0"), 0),
    normalizer("zero_tensor", ("other than 0", "got 0"), torch.tensor(0.0)),
    normalizer("nan", ("a number", "got nan"), NAN),
    normalizer("nan_tensor", ("finite", "got nan"), torch.tensor(NAN)),
    normalizer("inf", ("finite", "got inf"), INF),
    normalizer("1_dim", ("0-dim", "(1,)"), torch.ones(1)),
    normalizer("per_sample", ("0-dim", "(4,)"), torch.ones(N)),
    normalizer("str", ("a number", "str"), "4", TypeError),
    normalizer("bool", ("a number", "bool"), True, TypeError),
    normalizer("bool_tensor", ("bool",), torch.tensor(True), TypeError),
    normalizer("complex", ("a number", "complex"), 1j, TypeError),
    normalizer("complex_tensor", ("complex64",), torch.tensor(1j), TypeError),
    Row("unknown_forward_keyword", None, ("unexpected keyword", "weights"), TypeError, None, {},
        (LOGITS, TARGET), {"weights": torch.ones(N)}),
    Row("weight_by_position", None, ("positional arguments",), TypeError, None, {},
        (LOGITS, TARGET, torch.ones(N))),
    Row("target_missing", None, ("target",), TypeError, None, {}, (LOGITS,)),
)  # fmt: skip


def ldr_margins(loss: type[Loss], *further: Any, **others: Any) -> tuple[Row, ...]:
    """What no loss with a margin takes; ``further`` is what it takes beside logits and target."""

    def margin(id: str, says: tuple[str, ...], margin: Any, error=ValueError) -> Row:
        options = {"margin": margin, **others}
        return Row(f"{loss.__name__}_margin_{id}", "margin", says, error, loss, options)

    def called(id: str, says: tuple[str, ...], margin: Any, target: torch.Tensor) -> Row:
        options = {"margin": margin, **others}
        name = f"{loss.__name__}_margin_{id}"
        inputs = (LOGITS, target, *further)
        return Row(name, "margin", says, loss=loss, options=options, inputs=inputs)

    return (
        *not_numbers(loss, "margin", **others),
        hyper(loss, "margin", -0.1, "[0, inf)", "-0.1", **others),
        hyper(loss, "margin", NAN, "[0, inf)", "nan", **others),
        hyper(loss, "margin", INF, "[0, inf)", "inf", **others),
        margin("0_dim_tensor", ("(K,)", "(K, K)", "()"), torch.tensor(0.1)),
        margin("3_dim", ("(K,)", "(K, K)", "(3, 3, 3)"), torch.zeros(3, 3, 3)),
        margin("not_square", ("(K,)", "(K, K)", "(2, 3)"), torch.ones(2, 3)),
        margin("one_class", ("(K,)", "(1,)"), torch.ones(1)),
        margin("one_class_square", ("(K, K)", "(1, 1)"), torch.zeros(1, 1)),
        margin("int_tensor", ("float", "int64"), torch.ones(3).long(), TypeError),
        margin("complex_tensor", ("float", "complex64"), torch.ones(3) + 0j, TypeError),
        margin("negative_entry", (">= 0", "-0.5"), torch.tensor([0.1, -0.5, 1.0])),
        margin("nan_entry", (">= 0", "nan"), torch.tensor([0.1, NAN, 1.0])),
        margin("inf_entry", ("finite", "inf"), torch.tensor([0.1, INF, 1.0])),
        margin("diagonal", ("zero diagonal", "0.25"), torch.full((3, 3), 0.25)),
        called("other_classes", ("3 classes", "(4,)"), torch.ones(4), TARGET),
        called("matrix_other_classes", ("3 classes", "(2, 2)"), 1 - torch.eye(2), TARGET),
    )


def adversarial(id: str, says: tuple[str, ...], *inputs: Any, error=ValueError, **o: Any) -> Row:
    name = f"SmoothAdversarialCompSumLoss_adv_logits_{id}"
    return Row(name, "adv_logits", says, error, SmoothAdversarialCompSumLoss, o, inputs)


def contrastive(loss: type[Loss], first: str, second: str, **o: Any) -> tuple[Row, ...]:
    """What no loss of two matrices of embeddings takes."""
    x, y = torch.ones(4, 3), torch.eye(4, 3)
    more = (torch.arange(4),) if o else ()

    def called(argument: str, id: str, says: tuple[str, ...], *inputs: Any, **k: Any) -> Row:
        error = k.pop("error", ValueError)
        name = f"{loss.__name__}_{argument}_{id}"
        return Row(name, argument, says, error, loss, o, (*inputs, *more), k)

    def number(argument: str, value: float, *says: str) -> Row:
        return hyper(loss, argument, value, *says, **o)

    return (
        *not_numbers(loss, "temperature", **o),
        number("temperature", 0.0, "(0, inf)", "0.0"),
        number("temperature", -0.1, "(0, inf)", "-0.1"),
        number("temperature", NAN, "(0, inf)", "nan"),
        number("temperature", INF, "(0, inf)", "inf"),
        hyper(loss, "normalize", None, "True, False", "None", **o),
        number("tile_size", 0, "at least 1", "0"),
        hyper(loss, "tile_size", 64.0, "an int", "float", error=TypeError, **o),
        hyper(loss, "gather", "always", "'auto'", "'always'", **o),
        hyper(loss, "process_group", "world", "group or None", "str", error=TypeError, **o),
        hyper(loss, "reduction", "average", "'mean'", "'average'", **o),
        called(first, "list", ("a tensor", "list"), x.tolist(), y, error=TypeError),
        called(second, "none", ("a tensor", "NoneType"), x, None, error=TypeError),
        called(first, "int", ("floating", "int64"), x.long(), y, error=TypeError),
        called(second, "complex", ("floating", "complex64"), x, y + 0j, error=TypeError),
        called(first, "flat", ("(N, D)", "got (3,)"), x[0], y[0]),
        called(first, "cube", ("(N, D)", "got (4, 3, 1)"), x[:, :, None], y[:, :, None]),
        called(first, "width", ("D >= 1", "got (4, 0)"), x[:, :0], y[:, :0]),
        called(second, "rows", (f"of {first}, (4, 3)", "got (1, 3)"), x, y[:1]),
        called(second, "columns", (f"of {first}, (4, 3)", "got (4, 2)"), x, y[:, :2]),
        called("weight", "shape", ("(4,)", "got (4, 1)"), x, y, weight=torch.ones(4, 1)),
    )


def remembering(loss: type[Loss]) -> tuple[Row, ...]:
    """What the global contrastive losses do not take."""
    o = {"num_samples": 5}
    x, y, index = torch.ones(4, 3), torch.eye(4, 3), torch.arange(4)

    def called(
        argument: str, id: str, says: tuple[str, ...], *inputs: Any, error=ValueError
    ) -> Row:
        return Row(f"{loss.__name__}_{argument}_{id}", argument, says, error, loss, o, inputs)

    def number(argument: str, value: Any, *says: str, **k: Any) -> Row:
        return hyper(loss, argument, value, *says, **o, **k)

    return (
        *contrastive(loss, "z1", "z2", **o),
        *(
            row
            for name in ("gamma", "tau_min", "tau_max", "rho", "eta", "beta")
            for row in not_numbers(loss, name, **o)
        ),
        number("gamma", 0.0, "(0, 1]", "0.0"),
        number("gamma", 1.5, "(0, 1]", "1.5"),
        number("tau_min", 0.0, "(0, inf)", "0.0"),
        number("tau_max", 0.001, "[", "got 0.001"),
        number("tau_max", INF, "inf", "got inf"),
        number("temperature", 3.0, "[", "got 3.0", individualized=True),
        number("rho", -0.1, "[0, inf)", "-0.1"),
        number("eta", 0.0, "(0, inf)", "0.0"),
        number("beta", 0.0, "(0, 1]", "0.0"),
        number("beta", 1.1, "(0, 1]", "1.1"),
        number("grad_clip", 0.0, "(0, inf)", "0.0"),
        number("grad_clip", "3", "a number", "str", error=TypeError),
        number("individualized", None, "True, False", "None"),
        number("gamma_schedule", "linear", "'cosine'", "'linear'"),
        number(
            "gamma_decay_epochs",
            None,
            "an int",
            "NoneType",
            error=TypeError,
            gamma_schedule="cosine",
        ),
        number("gamma_decay_epochs", 0, "at least 1", "0", gamma_schedule="cosine"),
        number("state_dtype", torch.float16, "torch.float32", "torch.float16"),
        hyper(loss, "num_samples", 0, "at least 1", "0"),
        hyper(loss, "num_samples", 5.0, "an int", "float", error=TypeError),
        called("z1", "alone", ("at least 2 samples", "got 1"), x[:1], y[:1], index[:1]),
        called("index", "above", ("[0, 5)", "got 5"), x, y, index + 2),
        called("index", "negative", ("[0, 5)", "got -1"), x, y, index - 1),
        called("index", "short", ("(4,)", "got (3,)"), x, y, index[:3]),
        called("index", "column", ("(4,)", "got (4, 1)"), x, y, index[:, None]),
        called("index", "float", ("integer", "float32"), x, y, index.float(), error=TypeError),
        called("index", "bool", ("integer", "bool"), x, y, index > 1, error=TypeError),
        called("index", "list", ("a tensor", "list"), x, y, [0, 1, 2, 3], error=TypeError),
    )


def retrieval_and_densities() -> tuple[Row, ...]:
    """What the losses of retrieval, and those without a normaliser, do not take."""
    x, s, z = torch.eye(4, 3), torch.zeros(2, 3), torch.zeros(4)
    r, f = torch.tensor([[0, 1, 0], [1, 0, 0]]), torch.zeros(5)
    star, adore, nce, nll = PairwiseRankNetLoss, ADORELoss, NCELoss, CompositionalNLLLoss

    def called(
        loss: type, argument: str, id: str, says: tuple[str, ...], *inputs: Any, error=ValueError
    ) -> Row:
        id = f"{loss.__name__}_{argument}_{id}"
        return Row(id, argument, says, error, loss, {}, inputs)

    infinite = torch.tensor([0.0, -INF, 0.0, 0.0, 0.0])
    return (
        *(row for loss in (star, adore) for row in not_numbers(loss, "sigma")),
        *(hyper(loss, "sigma", 0.0, "(0, inf)", "0.0") for loss in (star, adore)),
        hyper(star, "sigma", INF, "(0, inf)", "inf"),
        hyper(star, "alpha", -1.0, "[0, inf)", "-1.0"),
        hyper(star, "alpha", "1", "a number", "str", error=TypeError),
        hyper(star, "gather", None, "'auto'", "None"),
        hyper(star, "process_group", 0, "group or None", "int", error=TypeError),
        called(star, "queries", "flat", ("(N, D)", "got (3,)"), x[0], x[0]),
        called(star, "queries", "int", ("floating", "int64"), x.long(), x, error=TypeError),
        called(star, "positives", "short", ("(4, 3)", "got (3, 3)"), x, x[:3]),
        called(star, "hard_negatives", "narrow", ("(M, 3)", "got (4, 2)"), x, x, x[:, :2]),
        called(star, "hard_negatives", "flat", ("(N, D)", "got (3,)"), x, x, x[0]),
        called(star, "in_batch_mask", "short", ("(4, 4)", "got (4, 3)"), x, x, None, x),
        called(star, "in_batch_mask", "twos", ("0 and 1", "got 2"), x, x, None, 2 * torch.eye(4)),
        called(
            star, "hard_mask", "wide", ("(4, 2)", "got (4, 4)"), x, x, x[:2], None, torch.eye(4)
        ),
        called(
            star,
            "hard_mask",
            "alone",
            ("None without hard_negatives", "Tensor"),
            x,
            x,
            None,
            None,
            torch.eye(4),
            error=TypeError,
        ),
        hyper(adore, "cutoff", 0, "at least 1", "0"),
        hyper(adore, "cutoff", 2.0, "an int", "float", error=TypeError),
        called(adore, "scores", "flat", ("(B, K)", "got (3,)"), s[0], r[0]),
        called(adore, "scores", "int", ("floating", "int64"), r, r, error=TypeError),
        called(adore, "relevance", "short", ("(2, 3)", "got (2, 2)"), s, r[:, :2]),
        called(adore, "relevance", "grades", ("0 and 1", "got 2"), s, 2 * r),
        called(adore, "relevance", "list", ("a tensor", "list"), s, r.tolist(), error=TypeError),
        called(adore, "mask", "short", ("(2, 3)", "got (2, 2)"), s, r, r[:, :2]),
        hyper(nce, "nu", 0.0, "(0, inf)", "0.0"),
        hyper(nce, "nu", "1", "a number", "str", error=TypeError),
        hyper(nce, "learn_log_z", 1.5, "True, False", "1.5"),
        *not_numbers(nll, "gamma"),
        hyper(nll, "gamma", 0.0, "(0, 1]", "0.0"),
        hyper(nll, "gamma", 1.1, "(0, 1]", "1.1"),
        *(hyper(loss, "gather", None, "'auto'", "None") for loss in (nce, nll)),
        *(
            hyper(loss, "process_group", 0, "group or None", "int", error=TypeError)
            for loss in (nce, nll)
        ),
        called(nce, "data_log_p", "column", ("one log-density", "(4, 1)"), z[:, None], z, f, f),
        called(nce, "data_log_p", "int", ("floating", "int64"), z.long(), z, f, f, error=TypeError),
        called(nce, "data_log_q", "short", ("(4,)", "got (3,)"), z, z[:3], f, f),
        called(nce, "noise_log_p", "column", ("one log-density", "(5, 1)"), z, z, f[:, None], f),
        called(nce, "noise_log_q", "short", ("(5,)", "got (4,)"), z, z, f, f[:4]),
        called(nce, "noise_log_q", "infinite", ("finite", "-inf"), z, z, f, infinite),
        called(nce, "noise_log_p", "empty", ("at least one", "none"), z, z, f[:0], f[:0]),
        called(nll, "data_log_p", "column", ("one log-density", "(4, 1)"), z[:, None], f, f),
        called(nll, "noise_log_q", "short", ("(5,)", "got (4,)"), z, f, f[:4]),
        called(nll, "noise_log_q", "infinite", ("finite", "-inf"), z, f, infinite),
        called(nll, "noise_log_p", "empty", ("at least one", "none"), z, f[:0], f[:0]),
        called(nll, "update", "none", ("True, False", "None"), z, f, f, None),
    )


def faces() -> tuple[Row, ...]:
    """What the losses over class directions do not take."""
    x, y = torch.eye(4, 3), torch.tensor([0, 0, 1, 1])
    size = {"num_classes": 2, "embedding_dim": 3}

    def rows(loss: type) -> tuple[Row, ...]:
        def called(
            argument: str, id: str, says: tuple[str, ...], *inputs: Any, error=ValueError
        ) -> Row:
            return Row(
                f"{loss.__name__}_{argument}_{id}", argument, says, error, loss, size, inputs
            )

        def number(argument: str, value: Any, *says: str, error=ValueError, **options: Any) -> Row:
            options = {**size, **options}
            options.pop(argument, None)
            return hyper(loss, argument, value, *says, error=error, **options)

        return (
            number("num_classes", 1, "at least 2", "1"),
            number("num_classes", 2.0, "an int", "float", error=TypeError),
            number("embedding_dim", 0, "at least 1", "0"),
            *not_numbers(loss, "scale", **size),
            *not_numbers(loss, "margin", **size),
            number("scale", 0.0, "(0, inf)", "0.0"),
            number("scale", INF, "(0, inf)", "inf"),
            number("margin", -0.1, "[0, ", "-0.1"),
            number("margin", 4.0, "[0, ", "4.0"),
            called("embeddings", "flat", ("(N, 3)", "got (3,)"), x[0], y[0]),
            called("embeddings", "narrow", ("(N, 3)", "got (4, 2)"), x[:, :2], y),
            called("embeddings", "int", ("floating", "int64"), x.long(), y, error=TypeError),
            called("labels", "float", ("integers", "float32"), x, y.float(), error=TypeError),
            called("labels", "bool", ("integers", "bool"), x, y > 0, error=TypeError),
            called("labels", "list", ("a tensor", "list"), x, y.tolist(), error=TypeError),
            called("labels", "short", ("(4,)", "got (3,)"), x, y[:3]),
            called("labels", "column", ("(4,)", "got (4, 1)"), x, y[:, None]),
            called("labels", "above", ("[0, 2)", "got 2"), x, y + 1),
            called("labels", "negative", ("[0, 2)", "got -1"), x, y - 1),
        )

    return (
        *(row for loss in (CosFaceLoss, ArcFaceLoss, UNPGLoss) for row in rows(loss)),
        *(
            hyper(loss, "tile_size", value, *says, error=error, **size)
            for loss in (CosFaceLoss, ArcFaceLoss)
            for value, says, error in (
                (0, ("at least 1", "0"), ValueError),
                (2.0, ("an int", "float"), TypeError),
            )
        ),
        hyper(ArcFaceLoss, "monotone", 1.5, "True, False", "1.5", **size),
        hyper(UNPGLoss, "monotone", None, "True, False", "None", **size),
        hyper(UNPGLoss, "base", "softmax", "'cosface'", "'softmax'", **size),
        hyper(UNPGLoss, "margin", 2.0, "[0, 2)", "2.0", **size),
        *not_numbers(UNPGLoss, "whisker", **size),
        hyper(UNPGLoss, "whisker", -1.0, "[0, inf]", "-1.0", **size),
        hyper(UNPGLoss, "whisker", NAN, "[0, inf]", "nan", **size),
        hyper(UNPGLoss, "gather", None, "'auto'", "None", **size),
        hyper(UNPGLoss, "process_group", 0, "group or None", "int", error=TypeError, **size),
    )


def prototypes() -> tuple[Row, ...]:
    """What the losses of prototypes do not take."""
    x, y, p = torch.eye(4, 3), torch.tensor([0, 0, 1, 1]), torch.eye(2, 3)
    distil, tight, online = (
        PrototypeRelationDistillationLoss,
        PrototypeTightnessLoss,
        OnlinePrototypeEquilibriumLoss,
    )

    def called(
        loss: type, argument: str, id: str, says: tuple[str, ...], *inputs: Any, error=ValueError
    ) -> Row:
        id = f"{loss.__name__}_{argument}_{id}"
        return Row(id, argument, says, error, loss, {}, inputs)

    return (
        *(row for loss in (distil, online) for row in not_numbers(loss, "temperature")),
        *(
            hyper(loss, "temperature", value, "(0, inf)", str(value))
            for loss in (distil, online)
            for value in (0.0, INF)
        ),
        *(hyper(loss, "gather", None, "'auto'", "None") for loss in (distil, online)),
        *(
            hyper(loss, "process_group", 0, "group or None", "int", error=TypeError)
            for loss in (distil, online)
        ),
        hyper(distil, "over", "batch", "'samples', 'classes'", "'batch'"),
        hyper(distil, "normalize_features", None, "True, False", "None"),
        hyper(online, "normalize", 1.5, "True, False", "1.5"),
        called(distil, "features", "flat", ("(N, D)", "got (3,)"), x[0], x[0], p, p),
        called(
            distil, "features", "int", ("floating", "int64"), x.long(), x, p, p, error=TypeError
        ),
        called(distil, "old_features", "short", ("(4, 3)", "got (3, 3)"), x, x[:3], p, p),
        called(distil, "prototypes", "narrow", ("(C, 3)", "got (2, 2)"), x, x, p[:, :2], p[:, :2]),
        called(distil, "old_prototypes", "short", ("(2, 3)", "got (1, 3)"), x, x, p, p[:1]),
        called(
            distil, "prototypes", "list", ("a tensor", "list"), x, x, p.tolist(), p, error=TypeError
        ),
        called(tight, "features", "flat", ("(N, D)", "got (3,)"), x[0], y[0], p),
        called(tight, "labels", "float", ("integers", "float32"), x, y.float(), p, error=TypeError),
        called(tight, "labels", "short", ("(4,)", "got (3,)"), x, y[:3], p),
        called(tight, "labels", "above", ("[0, 2)", "got 2"), x, y + 1, p),
        called(tight, "labels", "negative", ("[0, 2)", "got -1"), x, y - 1, p),
        called(tight, "prototypes", "narrow", ("(C, 3)", "got (2, 2)"), x, y, p[:, :2]),
        called(tight, "prototypes", "flat", ("(N, D)", "got (3,)"), x, y, p[0]),
        called(online, "z1", "flat", ("(N, D)", "got (3,)"), x[0], x[0], y[0]),
        called(online, "z2", "short", ("(4, 3)", "got (3, 3)"), x, x[:3], y),
        called(online, "labels", "short", ("(4,)", "got (3,)"), x, x, y[:3]),
        called(online, "labels", "bool", ("integers", "bool"), x, x, y > 0, error=TypeError),
        hyper(PrototypePairSampling, "eps", 0.0, "(0, inf)", "0.0"),
        *not_numbers(PrototypePairSampling, "eps"),
        called(PrototypePairSampling, "prototypes", "flat", ("(N, D)", "got (3,)"), x[0]),
        called(PrototypePairSampling, "present", "short", ("(2,)", "got (1,)"), p, y[:1] > 0),
        called(
            PrototypePairSampling,
            "present",
            "int",
            ("float or bool", "int64"),
            p,
            y[:2],
            error=TypeError,
        ),
    )


def relations() -> tuple[Row, ...]:
    """What the losses of relations do not take."""
    x, y, lam = torch.eye(4, 3), torch.eye(2, 3), torch.full((4,), 0.5)
    behaviour, consistency = ModelBehaviorConsistencyLoss, LabelConsistencyLoss
    align, unlearn = LAFAlignmentLoss, LAFRepresentationUnlearningLoss
    match, mix = GradientMatchingLoss, AdaptiveMixLoss

    def called(
        loss: Any, argument: str, id: str, says: tuple[str, ...], *inputs: Any, error=ValueError
    ) -> Row:
        id = f"{loss.__name__}_{argument}_{id}"
        return Row(id, argument, says, error, loss, {}, inputs)

    def classes(id: str, argument: str, says: tuple[str, ...], given: Any, error=ValueError):
        id = f"contrastive_targets_{id}"
        return Row(id, argument, says, error, contrastive_targets, {"gradients": given})

    pair = (behaviour, consistency)
    return (
        *(hyper(loss, "detach_reference", None, "True, False", "None") for loss in pair),
        *(hyper(loss, "gather", None, "'auto'", "None") for loss in (*pair, align)),
        *(
            hyper(loss, "process_group", 0, "group or None", "int", error=TypeError)
            for loss in (*pair, align)
        ),
        hyper(behaviour, "normalize_variance", 1.5, "True, False", "1.5"),
        hyper(consistency, "variant", "js", "'paper', 'official'", "'js'"),
        called(behaviour, "reference", "flat", ("(N, D)", "got (3,)"), x[0], x),
        called(behaviour, "embeddings", "short", ("as many rows", "4", "got 3"), x, x[:3]),
        called(behaviour, "embeddings", "int", ("floating", "int64"), x, x.long(), error=TypeError),
        called(consistency, "logits", "flat", ("(N, C)", "got (3,)"), x[0], x[0]),
        called(consistency, "logits", "one_class", ("C >= 2", "(4, 1)"), x[:, :1], x[:, :1]),
        called(consistency, "logits", "int", ("floating", "int64"), x.long(), x, error=TypeError),
        called(consistency, "reference_logits", "short", ("(4, 3)", "(3, 3)"), x, x[:3]),
        *not_numbers(align, "temperature"),
        hyper(align, "temperature", 0.0, "(0, inf)", "0.0"),
        *(hyper(loss, "reduction", "all", "'sum'", "'all'") for loss in (align, unlearn, match)),
        called(align, "retain_ref", "short", ("(4, 3)", "(3, 3)"), x, x[:3], y, y),
        called(align, "forget_ref", "short", ("(2, 3)", "(1, 3)"), x, x, y, y[:1]),
        called(align, "forget", "empty", ("at least one", "none"), x, x, y[:0], y[:0]),
        called(align, "retain", "int", ("floating", "int64"), x.long(), x, y, y, error=TypeError),
        called(unlearn, "retain_recon", "short", ("(4, 3)", "(3, 3)"), x, x[:3], y, y),
        called(unlearn, "forget_recon", "narrow", ("(2, 3)", "(2, 2)"), x, x, y, y[:, :2]),
        called(unlearn, "forget", "flat", ("(N, D)", "got (3,)"), x, x, y[0], y[0]),
        hyper(match, "metric", "cosine", "'rowwise_cosine'", "'cosine'"),
        *not_numbers(match, "eps"),
        hyper(match, "eps", 0.0, "(0, inf)", "0.0"),
        called(match, "synthetic", "none", ("at least one layer", "none"), [], []),
        called(match, "synthetic", "dict", ("a sequence", "dict"), {}, [x], error=TypeError),
        called(match, "real", "longer", ("1 layers", "got 2"), [x], [x, y]),
        called(match, "real[0]", "narrow", ("(4, 3)", "(4, 2)"), [x], [x[:, :2]]),
        called(
            match,
            "synthetic[1]",
            "int",
            ("floating", "int64"),
            [x, y.long()],
            [x, y],
            error=TypeError,
        ),
        called(
            match, "synthetic[0]", "none", ("a tensor", "NoneType"), [None], [x], error=TypeError
        ),
        classes("none", "gradients", ("at least one class", "none"), []),
        classes("tensor", "gradients", ("a sequence of classes", "Tensor"), x, TypeError),
        classes("no_layers", "gradients[0]", ("at least one layer", "none"), [[]]),
        classes("longer", "gradients[1]", ("1 layers", "got 2"), [[x], [x, x]]),
        classes("other", "gradients[1][0]", ("(4, 3)", "(2, 3)"), [[x], [y]]),
        hyper(mix, "distance", "l2", "'mse', 'cosine'", "'l2'"),
        *not_numbers(mix, "noise_std"),
        hyper(mix, "noise_std", -1.0, "[0, inf)", "-1.0"),
        hyper(mix, "noise_std", INF, "[0, inf)", "inf"),
        called(mix, "mixed", "flat", ("(N, D, ...)", "got (3,)"), x[0], x[0], x[0], 0.5),
        called(mix, "mixed", "int", ("floating", "int64"), x.long(), x, x, 0.5, error=TypeError),
        called(mix, "a", "short", ("(4, 3)", "(3, 3)"), x, x[:3], x, 0.5),
        called(mix, "b", "short", ("(4, 3)", "(3, 3)"), x, x, x[:3], 0.5),
        called(mix, "lam", "above", ("[0, 1]", "1.5"), x, x, x, 1.5),
        called(mix, "lam", "one_above", ("[0, 1]", "1.5"), x, x, x, lam + 1.0),
        called(mix, "lam", "nan", ("[0, 1]", "nan"), x, x, x, lam * NAN),
        called(mix, "lam", "column", ("(4,)", "(4, 1)"), x, x, x, lam[:, None]),
        called(mix, "lam", "int", ("floating", "int64"), x, x, x, lam.long(), error=TypeError),
        called(mix, "lam", "none", ("a number", "NoneType"), x, x, x, None, error=TypeError),
        called(mix, "noise", "one", ("(4, 3)", "(1, 3)"), x, x, x, 0.5, x[:1]),
        called(mix, "noise", "int", ("floating", "int64"), x, x, x, 0.5, x.long(), error=TypeError),
    )


def graphs() -> tuple[Row, ...]:
    """What node compactness does not take."""
    loss = NodeCompactnessRegularizer
    path = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]])
    good = {
        "x": torch.ones(4, 3),
        "other_view": torch.ones(4, 2),
        "adjacency": path,
        "adjacency_view": path,
        "weight1": torch.ones(3, 5),
        "bias1": torch.zeros(5),
        "weight2": torch.ones(5, 2),
        "bias2": torch.zeros(2),
    }

    def called(argument: str, id: str, says: tuple[str, ...], value: Any, error=ValueError) -> Row:
        inputs = tuple({**good, argument: value}.values())
        id = f"{loss.__name__}_{argument}_{id}"
        return Row(id, argument, says, error, loss, {"drop_rate": 0.5}, inputs)

    one_way = path.clone()
    one_way[0, 3] = 1
    return (
        *not_numbers(loss, "drop_rate"),
        hyper(loss, "drop_rate", 1.0, "[0, 1)", "1.0"),
        hyper(loss, "drop_rate", -0.1, "[0, 1)", "-0.1"),
        *not_numbers(loss, "negative_slope", drop_rate=0.5),
        hyper(loss, "negative_slope", 1.0, "[0, 1)", "1.0", drop_rate=0.5),
        hyper(loss, "negative_slope", -0.1, "[0, 1)", "-0.1", drop_rate=0.5),
        *(
            row
            for name in ("adjacency", "adjacency_view")
            for row in (
                called(name, "wide", ("(4, 4)", "(4, 3)"), path[:, :3]),
                called(name, "small", ("(4, 4)", "(3, 3)"), path[:3, :3]),
                called(name, "twos", ("0 and 1", "got 2"), 2 * path),
                called(name, "nan", ("0 and 1", "got nan"), path * NAN),
                called(name, "directed", ("symmetric",), one_way),
                called(name, "loops", ("no loops", "got 4"), path + torch.eye(4).long()),
                called(name, "list", ("a tensor", "list"), path.tolist(), TypeError),
                called(
                    name,
                    "complex",
                    ("bool or numbers", "complex64"),
                    path.to(torch.complex64),
                    TypeError,
                ),
            )
        ),
        called("x", "int", ("floating", "int64"), torch.ones(4, 3).long(), TypeError),
        called("x", "flat", ("2 dimension", "(3,)"), torch.ones(3)),
        called("other_view", "short", ("(4, 2)", "(3, 2)"), torch.ones(3, 2)),
        called("other_view", "narrow", ("(4, 2)", "(4, 1)"), torch.ones(4, 1)),
        called("weight1", "transposed", ("(3, 3)", "(5, 3)"), torch.ones(5, 3)),
        called("weight2", "list", ("a tensor", "list"), [[1.0]], TypeError),
        called("bias1", "short", ("(5,)", "(4,)"), torch.zeros(4)),
        called("bias2", "one", ("(2,)", "(1,)"), torch.zeros(1)),
    )


def metric_learning() -> tuple[Row, ...]:
    """What TCM does not take."""
    x, y = torch.eye(4, 3), torch.tensor([0, 0, 1, 1])

    def called(
        argument: str, id: str, says: tuple[str, ...], *inputs: Any, error=ValueError
    ) -> Row:
        return Row(f"TCMLoss_{argument}_{id}", argument, says, error, TCMLoss, {}, inputs)

    return (
        *(
            row
            for name in ("margin_pos", "margin_neg", "lambda_pos", "lambda_neg")
            for row in not_numbers(TCMLoss, name)
        ),
        hyper(TCMLoss, "margin_pos", 1.1, "[-1, 1]", "1.1"),
        hyper(TCMLoss, "margin_neg", -1.1, "[-1, 1]", "-1.1"),
        hyper(TCMLoss, "margin_neg", NAN, "[-1, 1]", "nan"),
        hyper(TCMLoss, "lambda_pos", -1.0, "[0, inf)", "-1.0"),
        hyper(TCMLoss, "lambda_neg", INF, "[0, inf)", "inf"),
        hyper(TCMLoss, "normalize", 1.5, "True, False", "1.5"),
        hyper(TCMLoss, "gather", None, "'auto'", "None"),
        hyper(TCMLoss, "process_group", 0, "group or None", "int", error=TypeError),
        called("embeddings", "flat", ("(N, D)", "got (3,)"), x[0], y[0]),
        called("embeddings", "int", ("floating", "int64"), x.long(), y, error=TypeError),
        called("labels", "float", ("integers", "float32"), x, y.float(), error=TypeError),
        called("labels", "bool", ("integers", "bool"), x, y > 0, error=TypeError),
        called("labels", "list", ("a tensor", "list"), x, y.tolist(), error=TypeError),
        called("labels", "short", ("(4,)", "got (3,)"), x, y[:3]),
        called("labels", "column", ("(4,)", "got (4, 1)"), x, y[:, None]),
        called("labels", "one_hot", ("(4,)", "got (4, 2)"), x, torch.eye(2).long()[y]),
    )


def further_contrastive() -> tuple[Row, ...]:
    """What the other contrastive losses do not take beside that."""
    x, y, labels = torch.ones(4, 3), torch.eye(4, 3), torch.tensor([0, 0, 1, 1])
    dcl, hard, batch, siglip, supcon = (
        DCLLoss,
        HardContrastiveLoss,
        BatchSoftmaxLoss,
        SigLIPLoss,
        SupConLoss,
    )
    far = x * 1.0
    far[0, 0] = NAN
    return (
        *contrastive(dcl, "z1", "z2"),
        *not_numbers(dcl, "sigma"),
        hyper(dcl, "sigma", 0.0, "(0, inf)", "0.0"),
        hyper(dcl, "weighting", "VMF", "'vmf'", "'VMF'"),
        called(dcl, "z1", "alone", ("at least 2 samples", "got 1"), x[:1], y[:1]),
        *contrastive(hard, "query", "positive"),
        *(row for row in not_numbers(hard, "alpha") if row.options["alpha"] is not None),
        hyper(hard, "alpha", 0.0, "(0, 1]", "0.0"),
        hyper(hard, "alpha", 1.1, "(0, 1]", "1.1"),
        hyper(hard, "num_hard", 3, "None beside alpha=0.5", "3", alpha=0.5, id="both"),
        hyper(hard, "num_hard", 0, "at least 1", "0"),
        hyper(hard, "num_hard", 0.5, "an int", "float", error=TypeError),
        *not_numbers(hard, "lambda_simple"),
        hyper(hard, "lambda_simple", -1.0, "[0, inf)", "-1.0"),
        hyper(hard, "simple", "mean", "True, False", "'mean'"),
        hyper(hard, "in_batch", None, "True, False", "None"),
        called(hard, "negatives", "missing", ("in_batch=False", "None"), x, y, in_batch=False),
        called(hard, "negatives", "width", ("(M, 3)", "got (5, 4)"), x, y, torch.ones(5, 4)),
        *contrastive(batch, "z1", "z2"),
        called(batch, "log_q", "short", ("(4,)", "got (3,)"), x, y, y[:3, 0]),
        called(batch, "log_q", "column", ("(4,)", "got (4, 1)"), x, y, y[:, :1]),
        called(batch, "log_q", "nan", ("finite", "nan"), x, y, far[:, 0]),
        called(batch, "log_q", "impossible", ("finite", "inf"), x, y, y[:, 0].log()),
        called(batch, "log_q", "int", ("floating", "int64"), x, y, labels, error=TypeError),
        called(batch, "log_q", "list", ("a tensor", "list"), x, y, [0.0] * 4, error=TypeError),
        *not_numbers(siglip, "logit_scale"),
        hyper(siglip, "logit_scale", 0.0, "(0, inf)", "0.0"),
        *not_numbers(siglip, "logit_bias"),
        hyper(siglip, "logit_bias", INF, "(-inf, inf)", "inf"),
        hyper(siglip, "learnable", None, "True, False", "None"),
        hyper(siglip, "normalize", None, "True, False", "None"),
        hyper(siglip, "tile_size", 0, "at least 1", "0"),
        called(siglip, "z2", "rows", ("of z1, (4, 3)", "got (1, 3)"), x, y[:1]),
        called(siglip, "z1", "int", ("floating", "int64"), x.long(), y, error=TypeError),
        *not_numbers(supcon, "temperature"),
        hyper(supcon, "temperature", 0.0, "(0, inf)", "0.0"),
        hyper(supcon, "base_temperature", -1.0, "(0, inf)", "-1.0"),
        hyper(supcon, "base_temperature", "1", "a number", "str", error=TypeError),
        hyper(supcon, "variant", "outside", "'out', 'in'", "'outside'"),
        hyper(supcon, "no_positive", "nan", "'skip', 'zero'", "'nan'"),
        hyper(supcon, "tile_size", 2.0, "an int", "float", error=TypeError),
        called(supcon, "embeddings", "flat", ("(N, D)", "got (3,)"), x[0], labels[0]),
        called(supcon, "labels", "float", ("integers", "float32"), x, y[:, 0], error=TypeError),
        called(supcon, "labels", "short", ("(4,)", "got (3,)"), x, labels[:3]),
        called(supcon, "embeddings2", "rows", ("of embeddings, (4, 3)", "got (2, 3)"), x, labels,
               y[:2]),
        called(supcon, "embeddings2", "int", ("floating", "int64"), x, labels, y.long(),
               error=TypeError),
    )  # fmt: skip


def labelled(loss: type[Loss]) -> tuple[Row, ...]:
    """What no loss of embeddings and labels takes."""
    x, y = torch.eye(4, 3), torch.tensor([0, 0, 1, 1])

    def called(
        argument: str, id: str, says: tuple[str, ...], *inputs: Any, error=ValueError
    ) -> Row:
        return Row(f"{loss.__name__}_{argument}_{id}", argument, says, error, loss, {}, inputs)

    return (
        hyper(loss, "gather", None, "'auto'", "None"),
        hyper(loss, "process_group", 0, "group or None", "int", error=TypeError),
        called("embeddings", "flat", ("(N, D)", "got (3,)"), x[0], y[0]),
        called("embeddings", "int", ("floating", "int64"), x.long(), y, error=TypeError),
        called("labels", "float", ("integers", "float32"), x, y.float(), error=TypeError),
        called("labels", "bool", ("integers", "bool"), x, y > 0, error=TypeError),
        called("labels", "list", ("a tensor", "list"), x, y.tolist(), error=TypeError),
        called("labels", "short", ("(4,)", "got (3,)"), x, y[:3]),
        called("labels", "column", ("(4,)", "got (4, 1)"), x, y[:, None]),
    )


def pairs() -> tuple[Row, ...]:
    """What the losses of pairs, triplets and proxies do not take."""
    x, y, size = torch.eye(4, 3), torch.tensor([0, 0, 1, 1]), {"num_classes": 2, "embedding_dim": 3}

    def number(argument: str, value: Any, *says: str, error=ValueError, **options: Any) -> Row:
        options = {**size, **options}
        options.pop(argument, None)
        return hyper(ProxyAnchorLoss, argument, value, *says, error=error, **options)

    def proxies(
        argument: str, id: str, says: tuple[str, ...], *inputs: Any, error=ValueError
    ) -> Row:
        name = f"ProxyAnchorLoss_{argument}_{id}"
        return Row(name, argument, says, error, ProxyAnchorLoss, size, inputs)

    def twos(argument: str, id: str, says: tuple[str, ...], *inputs: Any, error=ValueError) -> Row:
        return Row(f"NPairLoss_{argument}_{id}", argument, says, error, NPairLoss, {}, inputs)

    return (
        *labelled(MultiSimilarityLoss),
        *(row for n in ("alpha", "beta", "base") for row in not_numbers(MultiSimilarityLoss, n)),
        hyper(MultiSimilarityLoss, "alpha", 0.0, "(0, inf)", "0.0"),
        hyper(MultiSimilarityLoss, "beta", INF, "(0, inf)", "inf"),
        hyper(MultiSimilarityLoss, "base", NAN, "(-inf, inf)", "nan"),
        hyper(MultiSimilarityLoss, "mining_eps", -0.1, "[0, inf)", "-0.1"),
        hyper(MultiSimilarityLoss, "mining_eps", True, "a number", "bool", error=TypeError),
        hyper(MultiSimilarityLoss, "normalize", 1.5, "True, False", "1.5"),
        hyper(MultiSimilarityLoss, "tile_size", 0, "at least 1", "0"),
        *not_numbers(NPairLoss, "l2_reg"),
        hyper(NPairLoss, "l2_reg", -1.0, "[0, inf)", "-1.0"),
        hyper(NPairLoss, "normalize", None, "True, False", "None"),
        hyper(NPairLoss, "tile_size", 2.0, "an int", "float", error=TypeError),
        twos("anchors", "list", ("a tensor", "list"), x.tolist(), x, error=TypeError),
        twos("anchors", "flat", ("(N, D)", "got (3,)"), x[0], x[0]),
        twos("positives", "int", ("floating", "int64"), x, x.long(), error=TypeError),
        twos("positives", "rows", ("of anchors, (4, 3)", "got (1, 3)"), x, x[:1]),
        *labelled(TripletMarginLoss),
        *not_numbers(TripletMarginLoss, "margin"),
        hyper(TripletMarginLoss, "margin", -0.1, "[0, inf)", "-0.1"),
        hyper(TripletMarginLoss, "margin", INF, "[0, inf)", "inf"),
        hyper(TripletMarginLoss, "swap", 2, "True, False", "2"),
        hyper(TripletMarginLoss, "smooth", None, "True, False", "None"),
        hyper(TripletMarginLoss, "mining", "easy", "'semihard'", "'easy'"),
        hyper(TripletMarginLoss, "average", "mean", "'nonzero'", "'mean'"),
        hyper(TripletMarginLoss, "normalize", "yes", "True, False", "'yes'"),
        number("num_classes", 1, "at least 2", "1"),
        number("num_classes", 2.0, "an int", "float", error=TypeError),
        number("embedding_dim", 0, "at least 1", "0"),
        *not_numbers(ProxyAnchorLoss, "margin", **size),
        *not_numbers(ProxyAnchorLoss, "alpha", **size),
        number("margin", INF, "(-inf, inf)", "inf"),
        number("alpha", 0.0, "(0, inf)", "0.0"),
        number("gather", None, "'auto'", "None"),
        proxies("embeddings", "narrow", ("(N, 3)", "got (4, 2)"), x[:, :2], y),
        proxies("embeddings", "int", ("floating", "int64"), x.long(), y, error=TypeError),
        proxies("labels", "float", ("integers", "float32"), x, y.float(), error=TypeError),
        proxies("labels", "short", ("(4,)", "got (3,)"), x, y[:3]),
        proxies("labels", "above", ("[0, 2)", "got 2"), x, y + 1),
        proxies("labels", "negative", ("[0, 2)", "got -1"), x, y - 1),
    )


def metrix() -> tuple[Row, ...]:
    """What Metrix does not take."""
    x, y, p = torch.eye(4, 3), torch.tensor([0, 0, 1, 1]), torch.eye(2, 3)

    def called(
        argument: str, id: str, says: tuple[str, ...], *inputs: Any, error=ValueError, **o: Any
    ) -> Row:
        name = f"MetrixLoss_{argument}_{id}"
        return Row(name, argument, says, error, MetrixLoss, o, (x, y, *inputs))

    return (
        *labelled(MetrixLoss),
        *not_numbers(MetrixLoss, "mix_weight"),
        *not_numbers(MetrixLoss, "beta_alpha"),
        hyper(MetrixLoss, "base", "triplet", "'contrastive'", "'triplet'"),
        hyper(MetrixLoss, "mix_weight", -0.1, "[0, inf)", "-0.1"),
        hyper(MetrixLoss, "beta_alpha", 0.0, "(0, inf)", "0.0"),
        hyper(MetrixLoss, "pairs", (), "'pos_neg'", "()"),
        hyper(MetrixLoss, "pairs", "pos_neg", "'anchor_neg'", "'pos_neg'"),
        hyper(MetrixLoss, "pairs", ("pos_pos",), "'anchor_neg'", "pos_pos"),
        hyper(MetrixLoss, "pos_scale", 2.0, "None for base='contrastive'", "2.0"),
        hyper(MetrixLoss, "neg_scale", 0.0, "(0, inf)", "0.0", base="binomial"),
        hyper(MetrixLoss, "margin", 0.5, "None for base='nca'", "0.5", base="nca"),
        hyper(MetrixLoss, "margin", INF, "(-inf, inf)", "inf"),
        hyper(MetrixLoss, "normalize", 1.5, "True, False", "1.5"),
        called("anchors", "none", ("proxies", "None"), base="proxy_anchor"),
        called("anchors", "narrow", ("(A, 3)", "got (2, 2)"), p[:, :2]),
        called("anchors", "int", ("floating", "int64"), p.long(), error=TypeError),
        called("anchor_labels", "alone", ("without anchors",), None, y),
        called("anchor_labels", "long", ("per anchor", "got (4,)"), p, y),
        called("generator", "seed", ("torch.Generator", "int"), None, None, 7, error=TypeError),
    )


def few_shot() -> tuple[Row, ...]:
    """What the losses of few-shot episodes do not take."""
    x, y, p = torch.eye(4, 3), torch.tensor([0, 0, 1, 1]), torch.eye(2, 3)

    def proto(argument: str, id: str, says: tuple[str, ...], *inputs: Any, error=ValueError) -> Row:
        name = f"ProtoTripletLoss_{argument}_{id}"
        return Row(name, argument, says, error, ProtoTripletLoss, {}, inputs)

    def icnn(id: str, argument: str, says: tuple[str, ...], rows: int, **options: Any) -> Row:
        inputs = (x[:rows], y[:rows])
        return Row(f"ICNNLoss_{id}", argument, says, ValueError, ICNNLoss, options, inputs)

    return (
        *not_numbers(ProtoTripletLoss, "margin"),
        *not_numbers(ProtoTripletLoss, "eps"),
        hyper(ProtoTripletLoss, "margin", 0.0, "(0, inf)", "0.0"),
        hyper(ProtoTripletLoss, "eps", 0.0, "(0, inf)", "0.0"),
        proto("queries", "flat", ("(N, D)", "got (3,)"), x[0], y[0], p),
        proto("queries", "int", ("floating", "int64"), x.long(), y, p, error=TypeError),
        proto("query_labels", "short", ("per query", "got (3,)"), x, y[:3], p),
        proto("query_labels", "float", ("integers", "float32"), x, y.float(), p, error=TypeError),
        proto("query_labels", "without", ("labels of prototypes", "got 2"), x, y + 1, p),
        proto("query_labels", "named", ("labels of prototypes", "got 0"), x, y, p, y[1:3] + 1),
        proto("prototypes", "one", ("at least 2", "got 1"), x, y * 0, p[:1]),
        proto("prototypes", "narrow", ("(C, 3)", "got (2, 2)"), x, y, p[:, :2]),
        proto("prototypes", "list", ("a tensor", "list"), x, y, p.tolist(), error=TypeError),
        proto("prototype_labels", "twice", ("2 distinct", "got 1"), x, y * 0, p, y[:2]),
        proto("prototype_labels", "long", ("per prototype", "got (4,)"), x, y, p, y),
        *labelled(ICNNLoss),
        *not_numbers(ICNNLoss, "eps"),
        *not_numbers(ICNNLoss, "score_eps"),
        hyper(ICNNLoss, "k", 0, "at least 1", "0"),
        hyper(ICNNLoss, "k", 2.0, "an int", "float", error=TypeError),
        hyper(ICNNLoss, "neighbours", 3, "at least 4", "3"),
        hyper(ICNNLoss, "neighbours", 5.0, "an int", "float", error=TypeError),
        hyper(ICNNLoss, "eps", 0.0, "(0, inf)", "0.0"),
        hyper(ICNNLoss, "score_eps", -1.0, "(0, inf)", "-1.0"),
        icnn("two_rows", "embeddings", ("at least 3 rows", "got 2"), 2),
        icnn("far", "neighbours", ("less than the 4 rows", "got 4"), 4, neighbours=4),
    )


def info_nce() -> tuple[Row, ...]:
    """What InfoNCE does not take beside that."""
    x, y = torch.ones(4, 3), torch.eye(4, 3)

    def called(id: str, says: tuple[str, ...], negatives: Any, error=ValueError, **o: Any) -> Row:
        name = f"InfoNCELoss_negatives_{id}"
        return Row(name, "negatives", says, error, InfoNCELoss, o, (x, y, negatives))

    return (
        hyper(InfoNCELoss, "symmetric", 2.0, "True, False", "2.0"),
        hyper(InfoNCELoss, "symmetric", True, "in_batch=False", "True", in_batch=False),
        hyper(InfoNCELoss, "in_batch", None, "True, False", "None"),
        hyper(InfoNCELoss, "learnable_temperature", None, "True, False", "None"),
        hyper(InfoNCELoss, "temperature", 0.005, "[0.01, inf)", "0.005", id="learnable",
              learnable_temperature=True),
        called("missing", ("in_batch=False", "None"), None, in_batch=False),
        called("list", ("a tensor", "list"), y.tolist(), TypeError),
        called("int", ("floating", "int64"), y.long(), TypeError),
        called("width", ("(M, 3)", "got (5, 4)"), torch.ones(5, 4)),
        called("flat", ("(M, 3)", "got (3,)"), torch.ones(3)),
        called("rows", ("(4, M, 3)", "got (5, 2, 3)"), torch.ones(5, 2, 3)),
    )  # fmt: skip


def robust(loss: type[Loss]) -> tuple[Row, ...]:
    """What no loss of a residual takes."""
    x, y = torch.zeros(4, 3), torch.ones(4, 3)

    def called(argument: str, id: str, says: tuple[str, ...], *inputs: Any, **o: Any) -> Row:
        error, keywords = o.pop("error", ValueError), o.pop("keywords", {})
        name = f"{loss.__name__}_{argument}_{id}"
        return Row(name, argument, says, error, loss, o, inputs, keywords)

    bools, ints, floats = y > 0, y.long(), y.tolist()
    return (
        *not_numbers(loss, "scale"),
        hyper(loss, "scale", 0.0, "(0, inf)", "got 0.0"),
        hyper(loss, "scale", -1.0, "(0, inf)", "-1.0"),
        hyper(loss, "scale", NAN, "(0, inf)", "nan"),
        hyper(loss, "scale", INF, "(0, inf)", "inf"),
        hyper(loss, "scale", "AUTO", "a number", "str", error=TypeError),
        hyper(loss, "scale", torch.tensor(0.0), "> 0", "got 0", id="zero_tensor"),
        hyper(loss, "scale", torch.tensor([1.0, -2.0]), "> 0", "got -2", id="negative_entry"),
        hyper(loss, "scale", torch.tensor([NAN, 1.0]), "finite", "got nan", id="nan_entry"),
        hyper(loss, "scale", torch.tensor([INF, 1.0]), "finite", "got inf", id="inf_entry"),
        hyper(loss, "scale", torch.nn.Parameter(torch.tensor(-1.0)), "> 0", "-1", id="parameter"),
        hyper(loss, "scale", torch.tensor(1), "float", "int64", error=TypeError, id="int_tensor"),
        hyper(loss, "scale", torch.tensor(1j), "float", "complex", error=TypeError, id="1j"),
        hyper(loss, "mode", "sum", "'elementwise', 'vector'", "'sum'"),
        hyper(loss, "mode", "Vector", "'vector'", "'Vector'"),
        hyper(loss, "mode", None, "'vector'", "None"),
        hyper(loss, "mode", True, "'vector'", "True"),
        hyper(loss, "reduction", "average", "'mean'", "'average'"),
        *(
            row
            for mode in ("elementwise", "vector")
            for row in (
                called("input", f"list_{mode}", ("a tensor", "list"), floats, y, mode=mode,
                       error=TypeError),
                called("target", f"none_{mode}", ("a tensor", "NoneType"), x, None, mode=mode,
                       error=TypeError),
                called("input", f"int_{mode}", ("floating", "int64"), ints, y, mode=mode,
                       error=TypeError),
                called("target", f"int_{mode}", ("floating", "int64"), x, ints, mode=mode,
                       error=TypeError),
                called("target", f"bool_{mode}", ("floating", "bool"), x, bools, mode=mode,
                       error=TypeError),
                called("target", f"complex_{mode}", ("floating", "complex64"), x, y + 0j,
                       mode=mode, error=TypeError),
                called("target", f"column_{mode}", ("(4, 3)", "got (4, 1)"), x, y[:, :1],
                       mode=mode),
                called("target", f"row_{mode}", ("(4, 3)", "got (3,)"), x, y[0], mode=mode),
                called("target", f"number_{mode}", ("(4, 3)", "got ()"), x, y[0, 0], mode=mode),
                called("target", f"transposed_{mode}", ("(4, 3)", "got (3, 4)"), x, y.T,
                       mode=mode),
                called("target", f"longer_{mode}", ("(1, 3)", "got (4, 3)"), x[:1], y, mode=mode),
                called("target", f"meta_{mode}", ("device cpu", "meta"), x, y.to("meta"),
                       mode=mode),
                called("target", f"weighted_{mode}", ("(4, 3)", "got (4, 1)"), x, y[:, :1],
                       mode=mode, keywords={"weight": torch.ones(4, 1)}),
            )
        ),
        called("input", "0_dim", ("axis 0", "0-dim"), x[0, 0], y[0, 0], mode="vector"),
        called("scale", "too_long", ("(4, 3)", "got (4,)"), x, y, mode="elementwise",
               scale=torch.ones(4)),
        called("scale", "more_axes", ("(4, 3)", "got (1, 4, 3)"), x, y, mode="elementwise",
               scale=torch.ones(1, 4, 3)),
        called("scale", "enlarges", ("(1, 3)", "got (4, 1)"), x[:1], y[:1], mode="elementwise",
               scale=torch.ones(4, 1)),
        called("scale", "of_elements", ("(4,)", "got (4, 3)"), x, y, mode="vector",
               scale=torch.ones(4, 3)),
        called("scale", "of_columns", ("(4,)", "got (3,)"), x, y, mode="vector",
               scale=torch.ones(3)),
        called("scale", "meta", ("device cpu", "meta"), x, y, mode="vector",
               scale=torch.ones(4, device="meta")),
        called("weight", "of_samples", ("(4, 3)", "got (4,)"), x, y, mode="elementwise",
               keywords={"weight": torch.ones(4)}),
        called("weight", "of_elements", ("(4,)", "got (4, 3)"), x, y, mode="vector",
               keywords={"weight": torch.ones(4, 3)}),
        called("weight", "list", ("a tensor", "list"), x, y, mode="elementwise",
               keywords={"weight": [1.0]}, error=TypeError),
        called("normalizer", "zero", ("other than 0", "got 0"), x, y, mode="elementwise",
               keywords={"normalizer": 0.0}),
        called("normalizer", "none", ("not used", "got one"), x, y, mode="elementwise",
               reduction="none", keywords={"normalizer": 2.0}),
    )  # fmt: skip


def called(loss: type[Loss], argument: str, id: str, says: tuple[str, ...], *inputs: Any, **o: Any):
    """Inputs that one loss refuses; ``error`` and ``keywords`` are of the call."""
    error, keywords = o.pop("error", ValueError), o.pop("keywords", {})
    name = f"{loss.__name__}_{argument}_{id}"
    return Row(name, argument, says, error, loss, o, inputs, keywords)


def at_least_0(loss: type[Loss], argument: str) -> tuple[Row, ...]:
    """What no hyper-parameter takes that is 0 or any finite number above."""
    return (
        *not_numbers(loss, argument),
        hyper(loss, argument, -0.1, "[0, inf)", "-0.1"),
        hyper(loss, argument, INF, "[0, inf)", "inf"),
        hyper(loss, argument, NAN, "[0, inf)", "nan"),
    )


def preference(loss: type[Loss], beta: str = "beta", further: tuple[Any, ...] = ()):
    """What no loss of a pair of answers takes; ``further`` inputs stand behind the four."""
    x = torch.tensor([-3.0, -2.0, -4.0, -1.0])
    names = tuple(
        f"{model}_{answer}_logps"
        for model in ("policy", "reference")
        for answer in ("chosen", "rejected")
    )

    def with_one(i: int, value: Any) -> list[Any]:
        return [*(value if j == i else x for j in range(4)), *further]

    return (
        *not_numbers(loss, beta),
        hyper(loss, beta, 0.0, "(0, inf)", "got 0.0"),
        hyper(loss, beta, -0.1, "(0, inf)", "-0.1"),
        hyper(loss, beta, NAN, "(0, inf)", "nan"),
        hyper(loss, beta, INF, "(0, inf)", "inf"),
        hyper(loss, "reduction", "average", "'mean'", "'average'"),
        *(
            row
            for i, name in enumerate(names)
            for row in (
                called(loss, name, "list", ("a tensor", "list"), *with_one(i, [1.0]),
                       error=TypeError),
                called(loss, name, "int", ("floating", "int64"), *with_one(i, x.long()),
                       error=TypeError),
                called(loss, name, "complex", ("floating", "complex64"), *with_one(i, x + 0j),
                       error=TypeError),
            )
        ),
        *(
            row
            for i, name in enumerate(names[1:], 1)
            for row in (
                called(loss, name, "column", ("policy_chosen_logps", "(4,)", "got (4, 1)"),
                       *with_one(i, x[:, None])),
                called(loss, name, "short", ("(4,)", "got (3,)"), *with_one(i, x[:3])),
                called(loss, name, "one", ("(4,)", "got (1,)"), *with_one(i, x[:1])),
                called(loss, name, "number", ("(4,)", "got ()"), *with_one(i, x[0])),
                called(loss, name, "meta", ("device cpu", "meta"), *with_one(i, x.to("meta"))),
            )
        ),
        *(
            called(loss, names[i], "none", ("a tensor", "NoneType"), *with_one(i, None),
                   error=TypeError)
            for i in range(4 if further else 2)
        ),
        *(
            ()
            if further
            else (
                called(loss, names[2], "alone_missing", (names[3], "got None"), x, x, None, x),
                called(loss, names[3], "alone_missing", (names[2], "got None"), x, x, x, None),
                called(loss, names[3], "not_given", (names[2], "got None"), x, x, x),
            )
        ),
        called(loss, "weight", "column", ("(4,)", "got (4, 1)"), x, x, x, x, *further,
               keywords={"weight": torch.ones(4, 1)}),
        called(loss, "weight", "list", ("a tensor", "list"), x, x, x, x, *further,
               keywords={"weight": [1.0] * 4}, error=TypeError),
        called(loss, "weight", "int", ("float or bool", "int64"), x, x, x, x, *further,
               keywords={"weight": torch.ones(4).long()}, error=TypeError),
        called(loss, "normalizer", "none", ("not used", "got one"), x, x, x, x, *further,
               reduction="none", keywords={"normalizer": 2.0}),
    )  # fmt: skip


def doubts(loss: type[Loss], *inputs: Any, interval: str = "[0, 1]", **options: Any):
    """What no loss of pairs takes as the probabilities that labels are wrong."""
    good = torch.full((4,), 0.25)
    low, high = -0.1, 1.1
    if interval == "[0, 0.5)":
        high = 0.5
    elif interval == "(0, 1)":
        low, high = 0.0, 1.0

    def row(id: str, says: tuple[str, ...], value: Any, error=ValueError, **further: Any) -> Row:
        keywords = {"label_smoothing": value, **further}
        return called(loss, "label_smoothing", f"per_pair_{id}", says, *inputs, error=error,
                      keywords=keywords, **options)  # fmt: skip

    return (
        row("number", ("a tensor", "float"), 0.1, TypeError),
        row("int", ("floating", "int64"), good.long(), TypeError),
        row("bool", ("floating", "bool"), good > 0, TypeError),
        row("column", ("policy_chosen_logps", "(4,)", "got (4, 1)"), good[:, None]),
        row("of_all", ("(4,)", "got ()"), good[0]),
        row("meta", ("device cpu", "meta"), good.to("meta")),
        row("below", (interval, f"got {low:g}"), good * 0 + low),
        row("above", (interval, f"got {high:g}"), good * 0 + high),
        row("nan", (interval, "got nan"), good * NAN),
        row("nan_beside_weight_0", (interval, "got nan"), good * NAN,
            weight=torch.tensor([0, 1.0, 1.0, 1.0])),
    )  # fmt: skip


def sparse() -> tuple[Row, ...]:
    """What the loss of masked tokens does not take."""
    chosen, rejected = torch.zeros(4, 3), torch.zeros(4, 2)
    good = [chosen, rejected, chosen, rejected, chosen + 1.0, rejected > 0]
    names = [
        f"{m}_{a}_token_logps" for m in ("policy", "reference") for a in ("chosen", "rejected")
    ]
    names += ["chosen_mask", "rejected_mask", "label_smoothing"]

    def row(at: int, id: str, says: tuple[str, ...], value: Any, error=ValueError, **o: Any) -> Row:
        inputs = [*good, None]
        inputs[at] = value
        return called(SparsePreferenceLoss, names[at], id, says, *inputs, error=error, **o)

    weight = {"weight": torch.tensor([0, 1.0, 1.0, 1.0])}
    return (
        *not_numbers(SparsePreferenceLoss, "beta"),
        hyper(SparsePreferenceLoss, "beta", 0.0, "(0, inf)", "0.0"),
        *at_least_0(SparsePreferenceLoss, "lam"),
        row(0, "sequences", ("(N, T)", "(4,)"), chosen[:, 0]),
        row(1, "sequences", ("(4, S)", "(4,)"), chosen[:, 0]),
        row(1, "short", ("(4, S)", "(3, 2)"), rejected[:3]),
        row(1, "meta", ("device cpu", "meta"), rejected.to("meta")),
        row(2, "sequences", (names[0], "(4, 3)", "(4,)"), chosen[:, 0]),
        row(3, "row", (names[1], "(4, 2)", "(1, 2)"), rejected[:1]),
        *(row(i, "none", ("a tensor", "NoneType"), None, TypeError) for i in range(6)),
        *(row(i, "int", ("float", "int64"), good[i].long(), TypeError) for i in range(6)),
        row(4, "sequences", (names[0], "(4, 3)", "(4,)"), chosen[:, 0]),
        row(5, "column", (names[1], "(4, 2)", "(4, 1)"), rejected[:, :1]),
        row(4, "above_1", ("[0, 1]", "1.5"), chosen + 1.5),
        row(5, "below_0", ("[0, 1]", "-0.5"), rejected - 0.5),
        row(4, "nan_beside_weight_0", ("[0, 1]", "nan"), chosen * NAN, keywords=weight),
        row(6, "of_tokens", ("(4,)", "(4, 3)"), chosen),
        row(6, "int", ("floating", "int64"), TARGET, TypeError),
        row(6, "above_1", ("[0, 1]", "1.5"), chosen[:, 0] + 1.5),
        called(SparsePreferenceLoss, "weight", "of_tokens", ("(4,)", "(4, 3)"), *good,
               keywords={"weight": torch.ones(4, 3)}),
        called(SparsePreferenceLoss, "weight", "list", ("a tensor", "list"), *good,
               keywords={"weight": [1.0] * 4}, error=TypeError),
    )  # fmt: skip


#: What SRPO takes, in order.
DRAFTS = tuple(
    f"{model}_{answer}_logps"
    for answers in (
        ("chosen", "rejected"),
        (
            "chosen_given_rejected",
            "rejected_given_rejected",
            "chosen_given_chosen",
            "rejected_given_chosen",
        ),
    )
    for model in ("policy", "reference")
    for answer in answers
)
GOOD = torch.tensor([True, False, True, True])
ANSWERS, WINS = torch.tensor([-3.0, -2.0, -4.0, -1.0]), torch.full((4,), 0.5)


def one_of_12(i: int, value: Any) -> list[Any]:
    return [value if j == i else ANSWERS for j in range(12)]


def judged(at: int, value: Any) -> list[Any]:
    return [*[ANSWERS] * 4, *(value if j == at else WINS for j in (4, 5))]


#: Log-probabilities of tokens, and losses and policies of repeated games.
TOKEN_LOGPS = torch.tensor([[-1.0, -2.0], [-0.5, -3.0], [-2.0, -2.0], [-1.0, -1.0]])
GAMES, MIXED = torch.zeros(4, 1, 3, 2), torch.full((4, 1, 3, 2), 0.5)


def with_value(tensor: torch.Tensor, at: tuple[int, ...], value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[at] = value
    return tensor


def probabilities_of(loss: type[Loss], name: str, before: tuple[Any, ...],
                     after: tuple[Any, ...] = (), **o: Any) -> tuple[Row, ...]:  # fmt: skip
    """What no loss takes as probabilities, one for each row."""

    def row(id: str, says: tuple[str, ...], value: Any, **k: Any) -> Row:
        return called(loss, name, id, says, *before, value, *after, **o, **k)

    one_out = torch.tensor([0.0, 1.0, 1.0, 1.0])
    return (
        row("none", ("a tensor", "NoneType"), None, error=TypeError),
        row("int", ("floating", "int64"), TARGET, error=TypeError),
        row("column", ("(4,)", "got (4, 1)"), WINS[:, None]),
        row("short", ("(4,)", "got (3,)"), WINS[:3]),
        row("meta", ("device cpu", "meta"), WINS.to("meta")),
        row("above_1", ("[0, 1]", "got 1.5"), WINS + 1.0),
        row("below_0", ("[0, 1]", "got -0.5"), WINS - 1.0),
        row("nan_beside_weight_0", ("[0, 1]", "got nan"), WINS * NAN, keywords={"weight": one_out}),
    )


def self_play() -> tuple[Row, ...]:
    """What no loss of self-play takes."""
    x, w, t = ANSWERS, WINS, TOKEN_LOGPS
    four, anchors = (x,) * 4, (x, x)
    weights = {"column": torch.ones(4, 1), "row": torch.ones(1, 4)}

    def weight(loss: type[Loss], *inputs: Any, **o: Any) -> tuple[Row, ...]:
        return (
            *(
                called(loss, "weight", id, ("(4,)", "got"), *inputs, keywords={"weight": v}, **o)
                for id, v in weights.items()
            ),
            called(loss, "weight", "list", ("a tensor", "list"), *inputs, **o,
                   keywords={"weight": [1.0] * 4}, error=TypeError),
        )  # fmt: skip

    def logps(loss: type[Loss], names: tuple[str, ...], others: tuple[Any, ...], like: Any = x,
              **o: Any) -> tuple[Row, ...]:  # fmt: skip
        def one(i: int, value: Any) -> list[Any]:
            return [*(value if j == i else like for j in range(len(names))), *others]

        return tuple(
            row
            for i, name in enumerate(names)
            for row in (
                called(loss, name, "none", ("a tensor", "NoneType"), *one(i, None), **o,
                       error=TypeError),
                called(loss, name, "int", ("floating", "int64"), *one(i, like.long()), **o,
                       error=TypeError),
                *(
                    (
                        called(loss, name, "short", ("got (3,",), *one(i, like[:3]), **o),
                        called(loss, name, "meta", ("cpu", "meta"), *one(i, like.to("meta")), **o),
                    )
                    * (i > 0)
                ),
            )
        )  # fmt: skip

    of_anchor = ("anchor_chosen_logps", "anchor_rejected_logps")
    policy = ("policy_chosen_logps", "policy_rejected_logps")
    tokens = ("policy_token_logps", "reference_token_logps")
    rates = ("chosen_win_rate", "rejected_win_rate")
    return (
        *preference(INPOLoss, "eta", anchors),
        *not_numbers(INPOLoss, "tau"),
        hyper(INPOLoss, "tau", -0.1, "[0, 0.0075]", "got -0.1"),
        hyper(INPOLoss, "tau", 0.01, "[0, 0.0075]", "got 0.01"),
        hyper(INPOLoss, "tau", NAN, "[0, 0.0075]", "got nan"),
        *(
            row
            for i, name in enumerate(of_anchor)
            for row in (
                called(INPOLoss, name, "none", ("a tensor", "NoneType"), *four,
                       *(None if j == i else x for j in range(2)), error=TypeError),
                called(INPOLoss, name, "short", ("(4,)", "got (3,)"), *four,
                       *(x[:3] if j == i else x for j in range(2))),
            )
        ),
        *not_numbers(DNOLoss, "eta"),
        hyper(DNOLoss, "eta", 0.0, "(0, inf)", "got 0.0"),
        hyper(DNOLoss, "eta", INF, "(0, inf)", "got inf"),
        hyper(DNOLoss, "target", "prct", "'soft', 'hard'", "'prct'"),
        *logps(DNOLoss, (*policy, *of_anchor), (w, w)),
        *weight(DNOLoss, *four, w, w),
        *probabilities_of(DNOLoss, rates[0], four, (w,)),
        *probabilities_of(DNOLoss, rates[1], (*four, w)),
        called(DNOLoss, rates[0], "of_hard", ("None with target='hard'", "Tensor"), *four, w, w,
               error=TypeError, target="hard"),
        called(DNOLoss, rates[1], "of_hard", ("None with target='hard'", "Tensor"), *four, None, w,
               error=TypeError, target="hard"),
        *at_least_0(NashMDLoss, "tau"),
        hyper(NashMDLoss, "kl_estimator", "k3", "'sequence', 'token'", "'k3'"),
        *logps(NashMDLoss, tokens, (w,), t),
        called(NashMDLoss, tokens[0], "vector", ("(N, T)", "(4,)"), x, x, w),
        called(NashMDLoss, tokens[0], "no_tokens", ("T >= 1", "(4, 0)"), t[:, :0], t[:, :0], w),
        *probabilities_of(NashMDLoss, "preference_prob", (t, t)),
        *weight(NashMDLoss, t, t, w),
        called(NashMDLoss, "weight", "of_tokens", ("(4,)", "(4, 2)"), t, t, w,
               keywords={"weight": torch.ones(4, 2)}),
        called(NashMDLoss, "mask", "list", ("a tensor", "list"), t, t, w, [[1.0]], error=TypeError),
        called(NashMDLoss, "mask", "rows", ("(4, 2)", "got (4,)"), t, t, w, GOOD),
        called(NashMDLoss, "mask", "half", ("0 and 1", "got 0.5"), t, t, w, t * 0 + 0.5),
        *not_numbers(NashMPLoss, "beta", eta=1.0),
        *not_numbers(NashMPLoss, "eta", beta=1.0),
        hyper(NashMPLoss, "beta", 0.0, "(0, inf)", "got 0.0", eta=1.0),
        hyper(NashMPLoss, "eta", INF, "(0, inf)", "got inf", beta=1.0),
        *logps(NashMPLoss, ("policy_logps", "reference_logps", "anchor_logps"), (w,), beta=1.0,
               eta=1.0),
        *probabilities_of(NashMPLoss, "preference_prob", (x, x, x), beta=1.0, eta=1.0),
        *weight(NashMPLoss, x, x, x, w, beta=1.0, eta=1.0),
        *preference(CREAMLoss, further=(w,)),
        *probabilities_of(CREAMLoss, "consistency", four)[1:],
        called(CREAMLoss, "consistency", "none", ("a number", "NoneType"), *four, None,
               error=TypeError),
        called(CREAMLoss, "consistency", "str", ("a number", "str"), *four, "0.5", error=TypeError),
        called(CREAMLoss, "consistency", "number", ("[0, 1]", "got 1.5"), *four, 1.5),
        called(CREAMLoss, "consistency", "0_dim", ("[0, 1]", "got 1.5"), *four, torch.tensor(1.5)),
        called(CREAMLoss, "consistency", "0_dim_int", ("floating", "int64"), *four,
               torch.tensor(1), error=TypeError),
        called(CREAMLoss, "consistency", "0_dim_meta", ("device cpu", "meta"), *four,
               torch.tensor(0.5).to("meta")),
        *preference(SCIRLoss, further=(x,)),
        *at_least_0(SCIRLoss, "entropy_weight"),
        hyper(SCIRLoss, "divergence", "kl", "'js', 'symmetric_kl'", "'kl'"),
        called(SCIRLoss, "judge_logits", "none", ("a tensor", "NoneType"), *four, None,
               error=TypeError),
        called(SCIRLoss, "judge_logits", "int", ("floating", "int64"), *four, TARGET,
               error=TypeError),
        called(SCIRLoss, "judge_logits", "column", ("(4,)", "got (4, 1)"), *four, x[:, None]),
        called(SCIRLoss, "judge_logits", "meta", ("device cpu", "meta"), *four, x.to("meta")),
        *not_numbers(RegretLoss, "k"),
        hyper(RegretLoss, "k", 0.0, "(0, inf)", "got 0.0"),
        hyper(RegretLoss, "k", INF, "(0, inf)", "got inf"),
        hyper(RegretLoss, "h", "softplus", "'relu', 'relu2', 'identity'", "'softplus'"),
        hyper(RegretLoss, "weighting", "softmax", "'exp', 'power'", "'softmax'"),
        called(RegretLoss, "losses", "list", ("a tensor", "list"), [1.0], MIXED, error=TypeError),
        called(RegretLoss, "losses", "int", ("floating", "int64"), GAMES.long(), MIXED,
               error=TypeError),
        called(RegretLoss, "losses", "3_dim", ("(B, J, T, A)", "(1, 3, 2)"), GAMES[0], MIXED[0]),
        called(RegretLoss, "losses", "no_rounds", ("T >= 1", "(4, 1, 0, 2)"), GAMES[:, :, :0],
               MIXED[:, :, :0]),
        called(RegretLoss, "losses", "no_sequences", ("J and", "(4, 0, 3, 2)"), GAMES[:, :0],
               MIXED[:, :0]),
        called(RegretLoss, "losses", "one_action", ("A >= 2", "(4, 1, 3, 1)"), GAMES[..., :1],
               MIXED[..., :1] * 2),
        called(RegretLoss, "policies", "none", ("a tensor", "NoneType"), GAMES, None,
               error=TypeError),
        called(RegretLoss, "policies", "int", ("floating", "int64"), GAMES, MIXED.long(),
               error=TypeError),
        called(RegretLoss, "policies", "one", ("(4, 1, 3, 2)", "(1, 1, 3, 2)"), GAMES, MIXED[:1]),
        called(RegretLoss, "policies", "meta", ("cpu", "meta"), GAMES, MIXED.to("meta")),
        called(RegretLoss, "policies", "above", ("sum 1", "sum 1.2"), GAMES, MIXED * 1.2),
        called(RegretLoss, "policies", "below_0", ("non-negative", "minimum -0.5", "sum 1"), GAMES,
               MIXED + torch.tensor([1.0, -1.0])),
        called(RegretLoss, "policies", "nan", ("sum 1", "nan"), GAMES,
               with_value(MIXED, (3, 0, 2, 1), NAN)),
        called(RegretLoss, "policies", "nan_beside_weight_0", ("sum 1", "nan"), GAMES,
               with_value(MIXED, (3, 0, 2, 1), NAN),
               keywords={"weight": torch.tensor([0.0, 1.0, 1.0, 1.0])}),
        *weight(RegretLoss, GAMES, MIXED),
    )  # fmt: skip


VALUED = tuple(f"{name}_{i}" for i in (1, 2) for name in ("partial_return", "v_start", "v_end"))


def alike(loss: type[Loss], names: tuple[str, ...], *others: Any) -> tuple[Row, ...]:
    """What inputs of one shape do not take, which stand before ``others``."""

    def wrong(at: int, id: str, says: tuple[str, ...], value: Any, error=ValueError) -> Row:
        inputs = [ANSWERS] * len(names)
        inputs[at] = value
        id = f"{id}_of_{len(names)}"
        return called(loss, names[at], id, says, *inputs, *others, error=error)

    return (
        *(
            row
            for at in range(len(names))
            for row in (
                wrong(at, "none", ("a tensor", "NoneType"), None, TypeError),
                wrong(at, "int", ("floating", "int64"), TARGET, TypeError),
            )
            if names[at] != "margin" or "none" not in row.id
        ),
        *(
            row
            for at in range(1, len(names))
            for row in (
                wrong(at, "column", ("(4,)", "got (4, 1)"), ANSWERS[:, None]),
                wrong(at, "one", ("(4,)", "got (1,)"), ANSWERS[:1]),
                wrong(at, "meta", ("device cpu", "meta"), ANSWERS.to("meta")),
            )
        ),
        called(loss, "weight", f"column_of_{len(names)}", ("(4,)", "got (4, 1)"),
               *[ANSWERS] * len(names), *others, keywords={"weight": torch.ones(4, 1)}),
    )  # fmt: skip


def of_segments(loss: type[Loss], names: tuple[str, ...]) -> tuple[Row, ...]:
    """What no loss of preferences between segments takes."""

    def label(id: str, says: tuple[str, ...], value: Any, error=ValueError, **keywords: Any) -> Row:
        inputs = [ANSWERS] * len(names)
        return called(loss, "label", id, says, *inputs, value, error=error, keywords=keywords)

    return (
        *not_numbers(loss, "temperature"),
        hyper(loss, "temperature", 0.0, "(0, inf)", "0.0"),
        hyper(loss, "temperature", INF, "(0, inf)", "inf"),
        *alike(loss, names, WINS),
        label("int", ("floating", "int64"), TARGET, TypeError),
        label("none", ("a tensor", "NoneType"), None, TypeError),
        label("column", ("(4,)", "(4, 1)"), WINS[:, None]),
        label("meta", ("device cpu", "meta"), WINS.to("meta")),
        label("above_1", ("[0, 1]", "1.5"), WINS + 1.0),
        label("below_0", ("[0, 1]", "-0.5"), WINS - 1.0),
        label("nan", ("[0, 1]", "nan"), WINS * NAN),
        label("nan_beside_weight_0", ("[0, 1]", "nan"), WINS * NAN,
              weight=torch.tensor([0.0, 1.0, 1.0, 1.0])),
    )  # fmt: skip


def written(loss: type[Loss], *names: str, **options: Any) -> tuple[Row, ...]:
    """What no loss of tokens takes, for its inputs by these names."""
    good = {
        "advantages": ANSWERS,
        "mask": torch.ones(4, 3),
        "correct": GOOD,
        "correct_rate": WINS,
    }

    def row(name: str, id: str, says: tuple[str, ...], value: Any, error=ValueError) -> Row:
        inputs = [value if n == name else good.get(n, LOGITS) for n in names]
        return called(loss, name, id, says, *inputs, error=error, **options)

    def weight(id: str, says: tuple[str, ...], value: Any, error=ValueError) -> Row:
        inputs = [good.get(n, LOGITS) for n in names]
        keywords = {"weight": value}
        return called(loss, "weight", id, says, *inputs, error=error, keywords=keywords, **options)

    logps = [n for n in names if n not in good]
    rows: list[Row] = []
    for name in logps:
        rows.append(row(name, "int", ("floating", "int64"), LOGITS.long(), TypeError))
        if (loss, name) != (GRPOLoss, "old_token_logps"):
            rows.append(row(name, "none", ("a tensor", "None"), None, TypeError))
    for name in logps[1:]:
        rows.append(row(name, "short", ("(4, 3)", "got (4, 2)"), LOGITS[:, :2]))
        rows.append(row(name, "row", ("(4, 3)", "got (3,)"), LOGITS[0]))
        rows.append(row(name, "meta", ("cpu", "meta"), LOGITS.to("meta")))
    rows += (
        row(logps[0], "vector", ("(N, T)", "got (4,)"), ANSWERS),
        row(logps[0], "logits", ("(N, T)", "got (4, 3, 1)"), LOGITS[..., None]),
        row("mask", "none", ("a tensor", "None"), None, TypeError),
        row("mask", "vector", ("(4, 3)", "got (4,)"), torch.ones(4)),
        row("mask", "shifted", ("(4, 3)", "got (4, 4)"), torch.ones(4, 4)),
        row("mask", "weights", ("0 and 1", "got 0.5"), torch.full((4, 3), 0.5)),
        row("mask", "complex", ("0 and 1", "complex64"), LOGITS + 0j, TypeError),
        row("mask", "meta", ("cpu", "meta"), torch.ones(4, 3, device="meta")),
        weight("per_token", ("(4,)", "got (4, 3)"), torch.ones(4, 3)),
        weight("list", ("a tensor", "list"), [1.0] * 4, TypeError),
        hyper(loss, "reduction", "tokens", "'mean'", "'tokens'"),
    )
    if "advantages" in names:
        rows += (
            row("advantages", "none", ("a tensor", "None"), None, TypeError),
            row("advantages", "int", ("floating", "int64"), TARGET, TypeError),
            row("advantages", "column", ("(4,) or (4, 3)", "got (4, 1)"), ANSWERS[:, None]),
            row("advantages", "short", ("(4,) or (4, 3)", "got (3,)"), ANSWERS[:3]),
            row("advantages", "meta", ("cpu", "meta"), ANSWERS.to("meta")),
        )
    if "correct" in names:
        rows += (
            row("correct", "none", ("a tensor", "None"), None, TypeError),
            row("correct", "share", ("0 and 1", "got 0.5"), WINS),
            row("correct", "column", ("(4,)", "got (4, 1)"), GOOD[:, None]),
            row("correct_rate", "int", ("floating", "int64"), TARGET, TypeError),
            row("correct_rate", "column", ("(4,)", "got (4, 1)"), WINS[:, None]),
            row("correct_rate", "above_1", ("[0, 1]", "got 1.5"), WINS + 1),
            row("correct_rate", "nan", ("[0, 1]", "got nan"), WINS * NAN),
            row("correct_rate", "meta", ("cpu", "meta"), WINS.to("meta")),
        )
    return tuple(rows)


#: Two pairs: four sequences of three tokens.
TOKENS, IDS = torch.linspace(-1.0, 1.0, 4 * 3 * 5).view(4, 3, 5), torch.arange(12).view(4, 3) % 5


def stacked(**changed: Any) -> list[Any]:
    """Inputs of LinearPreferenceLoss, some of them changed."""
    inputs = {
        "logits": TOKENS,
        "labels": IDS,
        "mask": None,
        "reference_logits": None,
        "reference_logps": None,
        "label_smoothing": None,
        "win_prob": None,
        "lose_prob": None,
        "update": True,
    }
    return list((inputs | changed).values())


#: What it refuses: argument, name of the row, what is said, value, error.
STACKED: tuple[tuple[str, str, tuple[str, ...], Any, type[Exception]], ...] = (
    ("logits", "none", ("a tensor", "NoneType"), None, TypeError),
    ("logits", "int", ("floating", "int64"), TOKENS.long(), TypeError),
    ("logits", "odd", ("(2 N, T, V)", "got (3, 3, 5)"), TOKENS[:3], ValueError),
    ("logits", "rows", ("(2 N, T, V)", "got (4, 5)"), TOKENS[:, 0], ValueError),
    ("logits", "pairs", ("(2 N, T, V)", "got (2, 2, 3, 5)"), TOKENS.view(2, 2, 3, 5), ValueError),
    ("logits", "hidden", ("(2 N, T, V)", "got (3, 3, 5)"),
     LinearLogits(TOKENS[:3], torch.ones(5, 5)), ValueError),
    ("logits", "streamed_rows", ("(2 N, T, V)", "got (4, 5)"),
     LinearLogits(TOKENS[:, 0], torch.ones(5, 5)), ValueError),
    ("labels", "none", ("a tensor", "NoneType"), None, TypeError),
    ("labels", "float", ("integers", "float32"), IDS.float(), TypeError),
    ("labels", "short", ("(4, 3)", "got (4, 2)"), IDS[:, 1:], ValueError),
    ("labels", "of_pairs", ("(4, 3)", "got (2, 3)"), IDS[:2], ValueError),
    ("labels", "V", ("[0, 5)", "got 5"), IDS + 1, ValueError),
    ("labels", "meta", ("device cpu", "meta"), IDS.to("meta"), ValueError),
    ("mask", "list", ("a tensor", "list"), [[1] * 3] * 4, TypeError),
    ("mask", "of_pairs", ("(4, 3)", "got (2, 3)"), torch.ones(2, 3), ValueError),
    ("mask", "two", ("0 and 1", "got 2"), torch.full((4, 3), 2), ValueError),
    ("reference_logits", "list", ("a tensor", "list"), [1.0], TypeError),
    ("reference_logits", "int", ("floating", "int64"), TOKENS.long(), TypeError),
    ("reference_logits", "of_pairs", ("(4, 3, V)", "got (2, 3, 5)"), TOKENS[:2], ValueError),
    ("reference_logits", "shifted", ("(4, 3, V)", "got (4, 2, 5)"), TOKENS[:, 1:], ValueError),
    ("reference_logits", "logps", ("(4, 3, V)", "got (4,)"), TOKENS[:, 0, 0], ValueError),
    ("reference_logits", "hidden", ("(4, 3, V)", "got (4, 2, 5)"),
     LinearLogits(TOKENS[:, 1:], torch.ones(5, 5)), ValueError),
    ("reference_logps", "list", ("a tensor", "list"), [1.0], TypeError),
    ("reference_logps", "int", ("floating", "int64"), IDS[:, 0], TypeError),
    ("reference_logps", "of_pairs", ("(4,)", "got (2,)"), TOKENS[:2, 0, 0], ValueError),
    ("reference_logps", "column", ("(4,)", "got (4, 1)"), TOKENS[:, 0, :1], ValueError),
    ("reference_logps", "logits", ("(4,)", "got (4, 3, 5)"), TOKENS, ValueError),
    ("reference_logps", "layout", ("a tensor", "LinearLogits"),
     LinearLogits(TOKENS, torch.ones(5, 5)), TypeError),
    ("win_prob", "not_taken", ("None", "DPOLoss", "Tensor"), torch.ones(2), TypeError),
    ("lose_prob", "not_taken", ("None", "DPOLoss", "Tensor"), torch.ones(2), TypeError),
    ("update", "not_taken", ("True", "DPOLoss", "bool"), False, TypeError),
)  # fmt: skip


def lengths(
    loss: type[Loss], names: tuple[str, ...], logps: int, unused: str, **options: Any
) -> tuple[Row, ...]:
    """What no loss takes as lengths: with the options needed, without them not taken."""
    x, good = torch.tensor([-3.0, -2.0, -4.0, -1.0]), torch.tensor([3, 1, 2, 5])

    def with_one(i: int, value: Any) -> list[Any]:
        return [x] * logps + [value if j == i else good for j in range(len(names))]

    def row(i: int, id: str, says: tuple[str, ...], value: Any, error=ValueError, **o: Any) -> Row:
        return called(loss, names[i], id, says, *with_one(i, value), error=error, **options, **o)

    half, weight = good.bfloat16(), torch.tensor([1.0, 0.0, 1.0, 1.0])
    wrong = torch.tensor([3, 0, 0, 5])
    return (
        *(
            called(loss, names[0], "unused", ("None", unused, "Tensor"), *with_one(0, good),
                   error=TypeError,
                   **({"normalize": "sum"} if loss is SequenceNLLLoss else {}))
            for _ in range(bool(unused))
        ),
        *(
            r
            for i in range(len(names))
            for r in (
                row(i, "missing", ("a tensor", "NoneType"), None, TypeError),
                row(i, "list", ("a tensor", "list"), [3, 1, 2, 5], TypeError),
                row(i, "bool", ("integers", "bool"), good > 1, TypeError),
                row(i, "half", ("integers, float32", "bfloat16"), half, TypeError),
                row(i, "complex", ("integers", "complex64"), good + 0j, TypeError),
                row(i, "column", ("(4,)", "got (4, 1)"), good[:, None]),
                row(i, "short", ("(4,)", "got (3,)"), good[:3]),
                row(i, "meta", ("device cpu", "meta"), good.to("meta")),
                row(i, "zero", (">= 1", "got 0"), torch.tensor([3, 0, 2, 5])),
                row(i, "negative", (">= 1", "got -2"), torch.tensor([3, 1, -2, 5])),
                row(i, "fraction", (">= 1", "got 0.5"), torch.tensor([3.0, 0.5, 2.0, 5.0])),
                row(i, "nan", (">= 1", "got nan"), torch.tensor([3.0, NAN, 2.0, 5.0])),
                row(i, "inf", (">= 1", "got inf"), torch.tensor([3.0, INF, 2.0, 5.0])),
                row(i, "zero_beside_weight_0", (">= 1", "got 0"), wrong,
                    keywords={"weight": weight}),
            )
        ),
    )  # fmt: skip


def unlearning() -> tuple[Row, ...]:
    """What the losses of unlearning do not take."""
    x, long = ANSWERS, TARGET + 1
    logps, mask = -torch.ones(4, 3), torch.ones(4, 3, dtype=torch.bool)
    probabilities = torch.full((4, 3), 0.5)

    def of_flat(at: int, value: Any, others: Any = mask) -> list[Any]:
        given = [logps, logps[:, :3], others, others]
        given[at] = value
        return given

    def flat(argument: str, id: str, says: tuple[str, ...], *inputs: Any, **o: Any) -> Row:
        return called(FLATLoss, argument, id, says, *inputs, **o)

    def wga(argument: str, id: str, says: tuple[str, ...], *inputs: Any, **o: Any) -> Row:
        return called(WGALoss, argument, id, says, *inputs, **o)

    weight = {"weight": torch.tensor([0.0, 1.0, 1.0, 1.0])}
    return (
        hyper(FLATLoss, "divergence", "jeffrey", "'jeffrey_taylor'", "'jeffrey'"),
        hyper(FLATLoss, "divergence", None, "'tv'", "None"),
        hyper(FLATLoss, "denominator", "mean", "'valid', 'all'", "'mean'"),
        *(
            row
            for i, name in enumerate(("template_logps", "forget_logps"))
            for row in (
                flat(name, "list", ("a tensor", "list"), *of_flat(i, [1.0]), error=TypeError),
                flat(name, "none", ("a tensor", "None"), *of_flat(i, None), error=TypeError),
                flat(name, "int", ("floating", "int64"), *of_flat(i, mask.long()),
                     error=TypeError),
                flat(name, "probabilities", ("<= 0", "got 0.5"), *of_flat(i, probabilities)),
                flat(name, "nan", ("<= 0", "got nan"), *of_flat(i, logps * NAN)),
                flat(name, "nan_beside_weight_0", ("<= 0", "got nan"), *of_flat(i, logps * NAN),
                     keywords=weight),
                flat(name, "flat", ("(N, T)", "(4,)"),
                     *(x if j == i else y for j, y in enumerate((logps, logps, mask, mask)))),
                flat(name, "no_tokens", ("T >= 1", "(4, 0)"), *of_flat(i, logps[:, :0])),
            )
        ),
        flat("forget_logps", "rows", ("4 rows", "(3, 3)"), *of_flat(1, logps[:3])),
        *(
            row
            for i, name in ((2, "template_mask"), (3, "forget_mask"))
            for row in (
                flat(name, "none", ("a tensor", "None"), *of_flat(i, None), error=TypeError),
                flat(name, "row", ("(4, 3)", "(3,)"), *of_flat(i, mask[0])),
                flat(name, "short", ("(4, 3)", "(4, 2)"), *of_flat(i, mask[:, :2])),
                flat(name, "half", ("0 and 1", "0.5"), *of_flat(i, probabilities)),
                flat(name, "complex", ("0 and 1", "complex64"), *of_flat(i, mask + 0j),
                     error=TypeError),
                flat(name, "meta", ("cpu", "meta"), *of_flat(i, mask.to("meta"))),
            )
        ),
        Row("FLATLoss_masks_missing", None, ("template_mask",), TypeError, FLATLoss, {},
            (logps, logps)),
        flat("weight", "column", ("(4,)", "(4, 1)"), logps, logps, mask, mask,
             keywords={"weight": torch.ones(4, 1)}),
        *at_least_0(WGALoss, "beta"),
        wga("token_logps", "none", ("a tensor", "None"), None, mask, error=TypeError),
        wga("token_logps", "int", ("floating", "int64"), mask.long(), mask, error=TypeError),
        wga("token_logps", "probabilities", ("<= 0", "0.5"), probabilities, mask),
        wga("token_logps", "above_0", ("<= 0", "0.00195"), logps + (1 + 2**-9), mask),
        wga("token_logps", "nan", ("<= 0", "nan"), logps * NAN, mask),
        wga("mask", "short", ("(4, 3)", "(4, 2)"), logps, mask[:, :2]),
        wga("mask", "two", ("0 and 1", "2"), logps, 2 * mask.long()),
        Row("WGALoss_mask_missing", None, ("mask",), TypeError, WGALoss, {}, (logps,)),
        wga("weight", "flat", ("(4, 3)", "(4,)"), logps, mask, keywords={"weight": torch.ones(4)}),
        wga("token_logps", "probabilities_beside_weight_0", ("<= 0", "0.5"), probabilities, mask,
            keywords={"weight": weight["weight"].unsqueeze(1)}),
        *(
            row
            for loss in (NPOLoss, SimNPOLoss)
            for row in (
                *not_numbers(loss, "beta"),
                hyper(loss, "beta", 0.0, "(0, inf)", "got 0.0"),
                hyper(loss, "beta", INF, "(0, inf)", "inf"),
                called(loss, "policy_logps", "int", ("floating", "int64"), long, x,
                       error=TypeError),
            )
        ),
        called(NPOLoss, "reference_logps", "none", ("a tensor", "None"), x, None, error=TypeError),
        called(NPOLoss, "reference_logps", "column", ("(4,)", "(4, 1)"), x, x[:, None]),
        called(NPOLoss, "reference_logps", "meta", ("cpu", "meta"), x, x.to("meta")),
        *not_numbers(SimNPOLoss, "delta"),
        hyper(SimNPOLoss, "delta", INF, "(-inf, inf)", "inf"),
        hyper(SimNPOLoss, "delta", NAN, "(-inf, inf)", "nan"),
        hyper(SimNPOLoss, "average", None, "True, False", "None"),
        *lengths(SimNPOLoss, ("lengths",), 1, "", average=False),
        called(SimNPOLoss, "lengths", "unused", ("None", "average=True", "Tensor"), x, long,
               error=TypeError),
        hyper(GradAscentLoss, "normalize", "mean", "'token', 'sequence', 'sum'", "'mean'"),
        *lengths(GradAscentLoss, ("lengths",), 1, "", normalize="sequence"),
        called(GradAscentLoss, "policy_logps", "int", ("floating", "int64"), long, long,
               error=TypeError),
        *not_numbers(GradDiffLoss, "gamma"),
        hyper(GradDiffLoss, "gamma", 0.0, "(0, inf)", "0.0"),
        *at_least_0(GradDiffLoss, "alpha"),
        hyper(GradDiffLoss, "normalize", None, "'token', 'sequence', 'sum'", "None"),
        *lengths(GradDiffLoss, ("forget_lengths", "retain_lengths"), 2, "",
                 normalize="sequence"),
        called(GradDiffLoss, "forget_lengths", "unused", ("None", "normalize='sum'", "Tensor"), x,
               x, long, error=TypeError, normalize="sum"),
        called(GradDiffLoss, "retain_logps", "none", ("a tensor", "None"), x, None, long, long,
               error=TypeError),
        called(GradDiffLoss, "retain_logps", "short", ("(4,)", "(3,)"), x, x[:3], long, long),
        hyper(CEULoss, "entropy", None, "True, False", "None"),
    )  # fmt: skip


def numbers_of_answers(loss: type[Loss], names: tuple[str, ...], *more: Any) -> tuple[Row, ...]:
    """What a loss of several numbers per answer does not take; ``more`` stands behind them."""

    def with_one(i: int, value: Any) -> list[Any]:
        return [*(value if j == i else ANSWERS for j in range(len(names))), *more]

    def row(i: int, id: str, says: tuple[str, ...], value: Any, error=ValueError) -> Row:
        return called(loss, names[i], id, says, *with_one(i, value), error=error)

    good = with_one(0, ANSWERS)
    return (
        *(
            r
            for i in range(len(names))
            for r in (
                row(i, "list", ("a tensor", "list"), [1.0] * 4, TypeError),
                row(i, "none", ("a tensor", "NoneType"), None, TypeError),
                row(i, "int", ("floating", "int64"), TARGET, TypeError),
                *(
                    (
                        row(i, "column", ("(4,)", "got (4, 1)"), ANSWERS[:, None]),
                        row(i, "short", ("(4,)", "got (3,)"), ANSWERS[:3]),
                        row(i, "number", ("(4,)", "got ()"), ANSWERS[0]),
                        row(i, "meta", ("device cpu", "meta"), ANSWERS.to("meta")),
                    )
                    * (i > 0)
                ),
            )
        ),
        called(loss, "weight", "column", ("(4,)", "got (4, 1)"), *good,
               keywords={"weight": torch.ones(4, 1)}),
        called(loss, "weight", "int", ("float or bool", "int64"), *good,
               keywords={"weight": torch.ones(4).long()}, error=TypeError),
    )  # fmt: skip


#: What SuperHF and the martingale loss take, in order.
WRITTEN = {
    "logits": torch.zeros(2, 3, 4),
    "labels": torch.ones(2, 3, dtype=torch.long),
    "reference_logits": torch.zeros(2, 3, 4),
    "mask": torch.ones(2, 3),
}
PATHS = {
    "values": torch.zeros(2, 3),
    "rewards": torch.zeros(2, 3),
    "terminal": torch.zeros(2),
    "dt": torch.ones(3),
}


def changed(
    loss: type[Loss], good: dict[str, Any], name: str, id: str, says: tuple[str, ...], value: Any,
    error: type[Exception] = ValueError, argument: str | None = None, **options: Any,
) -> Row:  # fmt: skip
    """A call in which one input is wrong."""
    inputs = [*(good | {name: value}).values()]
    return called(loss, argument or name, id, says, *inputs, error=error, **options)


def generative() -> tuple[Row, ...]:
    """What the losses of consistency models and of teachers do not take."""
    x, y = torch.zeros(4, 3), torch.ones(4, 3)
    index = _indices(0, 1, 2, 3)

    def called(
        loss: type[Loss], argument: str, id: str, says: tuple[str, ...], *inputs: Any, **o: Any
    ) -> Row:
        error, keywords = o.pop("error", ValueError), o.pop("keywords", {})
        name = f"{loss.__name__}_{argument}_{id}"
        return Row(name, argument, says, error, loss, o, inputs, keywords)

    def pair(loss: type[Loss], first: str, second: str, *further: Any) -> tuple[Row, ...]:
        def row(argument: str, id: str, says: tuple[str, ...], a: Any, b: Any, **o: Any) -> Row:
            return called(loss, argument, id, says, a, b, *further, **o)

        return (
            row(first, "list", ("a tensor", "list"), y.tolist(), y, error=TypeError),
            row(second, "none", ("a tensor", "NoneType"), x, None, error=TypeError),
            row(first, "int", ("floating", "int64"), y.long(), y, error=TypeError),
            row(second, "bool", ("floating", "bool"), x, y > 0, error=TypeError),
            row(second, "complex", ("floating", "complex64"), x, y + 0j, error=TypeError),
            row(second, "column", ("(4, 3)", "got (4, 1)"), x, y[:, :1]),
            row(second, "row", ("(4, 3)", "got (3,)"), x, y[0]),
            row(second, "transposed", ("(4, 3)", "got (3, 4)"), x, y.T),
            row(second, "one_sample", ("(4, 3)", "got (1, 3)"), x, y[:1]),
            row(second, "meta", ("device cpu", "meta"), x, y.to("meta")),
            row(
                "weight",
                "of_elements",
                ("(4,)", "got (4, 3)"),
                x,
                y,
                keywords={"weight": torch.ones(4, 3)},
            ),
            row(
                "weight",
                "list",
                ("a tensor", "list"),
                x,
                y,
                keywords={"weight": [1.0]},
                error=TypeError,
            ),
            row(
                "normalizer", "zero", ("other than 0", "got 0"), x, y, keywords={"normalizer": 0.0}
            ),
            hyper(loss, "reduction", "average", "'mean'", "'average'"),
        )

    def consistent(argument: str, id: str, says: tuple[str, ...], *inputs: Any, **o: Any) -> Row:
        return called(ConsistencyLoss, argument, id, says, *inputs, **o)

    def early(argument: str, id: str, says: tuple[str, ...], *inputs: Any, **o: Any) -> Row:
        return called(EarlyTimestepDiffusionLoss, argument, id, says, *inputs, **o)

    def teaching(argument: str, id: str, says: tuple[str, ...], *inputs: Any, **o: Any) -> Row:
        return called(SymmetricConsistencyLoss, argument, id, says, *inputs, **o)

    weights = torch.ones(4)
    return (
        *pair(ConsistencyLoss, "prediction", "target"),
        consistent("prediction", "0_dim", ("axis 0", "0-dim"), x[0, 0], y[0, 0]),
        hyper(ConsistencyLoss, "distance", "l2", "a function", "str", error=TypeError),
        hyper(ConsistencyLoss, "distance", 2.0, "a function", "float", error=TypeError),
        hyper(ConsistencyLoss, "detach_target", None, "True, False", "None"),
        hyper(ConsistencyLoss, "detach_target", "no", "True, False", "'no'"),
        consistent("distance", "of_elements", ("shape (4,)", "got (4, 3)", '"vector"'), x, y,
                   distance=CauchyLoss(1.0)),
        consistent("distance", "mean", ("shape (4,)", "got ()"), x, y, distance=torch.nn.MSELoss()),
        consistent("distance", "column", ("shape (4,)", "got (4, 1)"), x, y,
                   distance=lambda a, b: (a - b).sum(1, keepdim=True)),
        consistent("distance", "number", ("a tensor", "float"), x, y, distance=lambda a, b: 1.0,
                   error=TypeError),
        consistent("time_weight", "list", ("a tensor", "list"), x, y, [1.0] * 4, error=TypeError),
        consistent("time_weight", "number", ("a tensor", "float"), x, y, 2.0, error=TypeError),
        consistent("time_weight", "int", ("floating", "int64"), x, y, index, error=TypeError),
        consistent("time_weight", "0_dim", ("(4,)", "got ()"), x, y, weights[0]),
        consistent("time_weight", "one", ("(4,)", "got (1,)"), x, y, weights[:1]),
        consistent("time_weight", "column", ("(4,)", "got (4, 1)"), x, y, weights[:, None]),
        consistent("time_weight", "meta", ("device cpu", "meta"), x, y, weights.to("meta")),
        consistent("time_weight", "negative", (">= 0", "got -0.5"), x, y,
                   torch.tensor([1.0, -0.5, 0.0, 2.0])),
        consistent("time_weight", "nan", (">= 0", "got nan"), x, y,
                   torch.tensor([1.0, NAN, 0.0, 2.0])),
        consistent("time_weight", "inf", ("finite", "got inf"), x, y,
                   torch.tensor([1.0, 0.5, INF, 2.0])),
        *pair(EarlyTimestepDiffusionLoss, "denoised", "target", index, 11),
        early("denoised", "0_dim", ("axis 0", "0-dim"), x[0, 0], y[0, 0], index[0], 11),
        *not_numbers(EarlyTimestepDiffusionLoss, "fraction"),
        hyper(EarlyTimestepDiffusionLoss, "fraction", 0.0, "(0, 1]", "0.0"),
        hyper(EarlyTimestepDiffusionLoss, "fraction", 1.1, "(0, 1]", "1.1"),
        hyper(EarlyTimestepDiffusionLoss, "fraction", NAN, "(0, 1]", "nan"),
        early("index", "list", ("a tensor", "list"), x, y, [0, 1, 2, 3], 11, error=TypeError),
        early("index", "float", ("integer", "float32"), x, y, index.float(), 11, error=TypeError),
        early("index", "bool", ("integer", "bool"), x, y, index > 1, 11, error=TypeError),
        early("index", "complex", ("integer", "complex64"), x, y, index + 0j, 11, error=TypeError),
        early("index", "column", ("(4,)", "got (4, 1)"), x, y, index[:, None], 11),
        early("index", "one", ("(4,)", "got (1,)"), x, y, index[:1], 11),
        early("index", "meta", ("device cpu", "meta"), x, y, index.to("meta"), 11),
        early("index", "too_large", ("[0, 3)", "got 3"), x, y, index, 3),
        early("index", "too_large_for_tensor", ("[0, 3)", "got 3"), x, y, index, torch.tensor(3)),
        early("index", "negative", ("[0, 11)", "got -1"), x, y, index - 1, 11),
        early("num_scales", "one", ("at least 2", "got 1"), x, y, index, 1),
        early("num_scales", "one_tensor", ("at least 2", "got 1"), x, y, index, torch.tensor(1)),
        early("num_scales", "float", ("an int", "float", "11.0"), x, y, index, 11.0,
              error=TypeError),
        early("num_scales", "bool", ("an int", "bool"), x, y, index, True, error=TypeError),
        early("num_scales", "bool_tensor", ("0-dim integer", "bool"), x, y, index,
              torch.tensor(True), error=TypeError),
        early("num_scales", "float_tensor", ("0-dim integer", "float32"), x, y, index,
              torch.tensor(11.0), error=TypeError),
        early("num_scales", "of_samples", ("0-dim integer", "(4,)"), x, y, index, index + 5,
              error=TypeError),
        *pair(SymmetricConsistencyLoss, "logits", "teacher_logits"),
        *not_numbers(SymmetricConsistencyLoss, "alpha"),
        hyper(SymmetricConsistencyLoss, "alpha", -0.1, "[0, 1]", "-0.1"),
        hyper(SymmetricConsistencyLoss, "alpha", 1.1, "[0, 1]", "1.1"),
        hyper(SymmetricConsistencyLoss, "alpha", NAN, "[0, 1]", "nan"),
        hyper(SymmetricConsistencyLoss, "detach_teacher", None, "True, False", "None"),
        hyper(SymmetricConsistencyLoss, "class_dim", 1.0, "an int", "float", error=TypeError),
        hyper(SymmetricConsistencyLoss, "class_dim", True, "an int", "bool", error=TypeError),
        teaching("logits", "0_dim", ("class_dim", "()"), x[0, 0], y[0, 0]),
        teaching("logits", "one_class", ("2 classes", "got 1"), x[:, :1], y[:, :1]),
        teaching("logits", "no_axis", ("axis 2", "class_dim", "(4, 3)"), x, y, class_dim=2),
        teaching("logits", "no_axis_-3", ("axis -3", "class_dim", "(4, 3)"), x, y, class_dim=-3),
        teaching("weight", "of_classes", ("(4, 2)", "got (4, 3)"), torch.ones(4, 3, 2),
                 torch.ones(4, 3, 2), keywords={"weight": torch.ones(4, 3)}),
        teaching("weight", "int", ("float or bool", "int64"), x, y, keywords={"weight": index},
                 error=TypeError),
    )  # fmt: skip


def layouts() -> tuple[Row, ...]:
    """What streamed logits refuse, and who refuses them."""
    hidden, weight, labels = torch.ones(N, 2), torch.ones(K, 2), TARGET
    given = {"hidden": hidden, "weight": weight}

    def refused(
        id: str,
        argument: str,
        says: tuple[str, ...],
        error=ValueError,
        make: Any = None,
        **options: Any,
    ) -> Row:
        make = LinearLogits if make is None else make
        name = f"{make.__name__}_{argument}_{id}"
        return Row(name, argument, says, error, make, {**given, **options})

    def needs_memory(loss: type[Loss], id: str, says: str, **options: Any) -> Row:
        logits = LinearLogits(hidden, weight)
        name = f"{loss.__name__}_streamed_{id}"
        says_all = ("a tensor", says, "LinearLogits")
        return Row(name, "logits", says_all, TypeError, loss, options, (logits, TARGET))

    number = ("expected a number", "str")
    tokens = {"make": linear_token_logps, "labels": labels}
    sequences = {
        "make": linear_sequence_logps,
        "hidden": torch.ones(2, 4, 2),
        "labels": torch.zeros(2, 4).long(),
    }
    return (
        refused("none", "hidden", ("a tensor", "NoneType"), TypeError, hidden=None),
        refused("int", "hidden", ("floating point", "int64"), TypeError, hidden=hidden.long()),
        refused("0_dim", "hidden", ("(..., H)", "0-dim"), hidden=torch.tensor(1.0)),
        refused("list", "weight", ("a tensor", "list"), TypeError, weight=[[1.0, 2.0]]),
        refused("int", "weight", ("floating point", "int64"), TypeError, weight=weight.long()),
        refused("1_dim", "weight", ("(K, H)", "(2,)"), weight=torch.ones(2)),
        refused("one_class", "weight", ("K >= 2", "(1, 2)"), weight=torch.ones(1, 2)),
        refused("width", "weight", ("width of hidden, 2", "(3, 5)"), weight=torch.ones(K, 5)),
        refused("double", "weight", ("float32", "float64"), TypeError, weight=weight.double()),
        refused("single", "weight", ("float64", "float32"), TypeError, hidden=hidden.double()),
        refused("device", "weight", ("cpu", "meta"), weight=weight.to("meta")),
        refused("float", "bias", ("a tensor", "float"), TypeError, bias=1.0),
        refused("bool", "bias", ("floating point", "bool"), TypeError, bias=torch.ones(K) > 0),
        refused("length", "bias", ("(3,)", "(4,)"), bias=torch.ones(4)),
        refused("double", "bias", ("float32", "float64"), TypeError, bias=torch.ones(K).double()),
        refused("device", "bias", ("cpu", "meta"), bias=torch.ones(K, device="meta")),
        *(refused(str(x), argument, ("(0, inf)", str(x)), **{argument: x})
          for argument in ("temperature", "softcap") for x in (0.0, -1.0, INF, NAN)),
        *(refused("str", argument, number, TypeError, **{argument: "1"})
          for argument in ("temperature", "softcap")),
        refused("none", "temperature", ("a number", "NoneType"), TypeError, temperature=None),
        refused("0", "tile_size", ("at least 1", "0"), tile_size=0),
        refused("float", "tile_size", ("an int", "float"), TypeError, tile_size=64.0),
        needs_memory(LDRKLLoss, "normalize", "normalize", normalize="l1"),
        needs_memory(LDRKLLoss, "matrix", "matrix of margins", margin=1.0 - torch.eye(K)),
        needs_memory(LDRLoss, "euclidean", "this loss", divergence="euclidean"),
        needs_memory(LDRLoss, "topk", "this loss", topk=2),
        needs_memory(WestonWatkinsLoss, "always", "this loss"),
        Row("LinearLogits_probabilities", "target", ("integer", "in memory", "float32"), TypeError,
            CompSumLoss, {}, (LinearLogits(hidden, weight), PROBABILITIES)),
        Row("LinearLogits_target_shape", "target", ("(4,)", "(4, 3)", "(3,)"), ValueError,
            CompSumLoss, {}, (LinearLogits(hidden, weight), TARGET[:3])),
        Row("LinearLogits_class_weight", "class_weight", ("3 weights", "4"), ValueError,
            CompSumLoss, {"class_weight": torch.ones(4)}, (LinearLogits(hidden, weight), TARGET)),
        refused("width", "weight", ("width", "(3, 5)"), **tokens | {"weight": torch.ones(K, 5)}),
        refused("float", "labels", ("integers", "float32"), TypeError,
                **tokens | {"labels": torch.ones(N)}),
        refused("shape", "labels", ("(4,)", "(3,)"), **tokens | {"labels": TARGET[:3]}),
        refused("device", "labels", ("cpu", "meta"), **tokens | {"labels": labels.to("meta")}),
        refused("beyond", "labels", ("[0, 3)", "7"), **tokens | {"labels": labels + 7}),
        refused("float", "ignore_index", ("an int", "float"), TypeError,
                **tokens, ignore_index=0.5),
        refused("2_dim", "hidden", ("(N, T, H)", "(4, 2)"), **sequences | {"hidden": hidden}),
        refused("shape", "labels", ("(2, 4)", "(4,)"), **sequences | {"labels": TARGET}),
        refused("shape", "mask", ("(2, 4)", "(2, 3)"), **sequences, mask=torch.ones(2, 3)),
        refused("short", "hidden", ("T >= 2", "1"),
                **sequences | {"hidden": torch.ones(2, 1, 2), "labels": torch.zeros(2, 1).long()}),
    )  # fmt: skip


def of_labels() -> tuple[Row, ...]:
    """What cross-entropy's neighbours and the losses for noisy labels refuse."""
    ranges = (
        (LabelSmoothingCrossEntropyLoss, "smoothing", "[0, 1]", (-0.1, 1.1, NAN)),
        (PolyLoss, "epsilon", "[-1, inf)", (-1.1, INF, NAN)),
        (FocalLoss, "gamma", "[0, inf)", (-0.1, INF, NAN)),
        (LogitZRegularizer, "coefficient", "(0, inf)", (0.0, -1.0, INF, NAN)),
        (DirectCoverageLoss, "n", "[1, 1e+15]", (0.5, 0.0, -3.0, INF, NAN)),
        (AsymmetricGCELoss, "a", "[0, inf)", (-0.1, INF, NAN)),
        (AsymmetricGCELoss, "q", "(0, inf)", (0.0, -1.0, INF, NAN)),
        (AsymmetricUnhingedLoss, "a", "(1, inf)", (1.0, 0.5, INF, NAN)),
        (AsymmetricUnhingedLoss, "q", "(0, inf)", (0.0, -1.0, INF, NAN)),
        (AsymmetricExponentialLoss, "a", "(0, inf)", (0.0, -1.0, INF, NAN)),
        (RobustLogLoss, "alpha", "(0, inf)", (0.0, -1.0, INF, NAN)),
        (JensenShannonLoss, "weight", "(0, 1)", (0.0, 1.0, -0.5, NAN)),
        (ActivePassiveLoss, "alpha", "[0, inf)", (-1.0, INF, NAN)),
        (ActivePassiveLoss, "beta", "[0, inf)", (-1.0, INF, NAN)),
    )
    numbers = tuple(
        row
        for loss, name, interval, values in ranges
        for row in (
            *(r for r in not_numbers(loss, name) if not (name == "weight" and "list" in r.id)),
            *(hyper(loss, name, value, interval, f"{value}") for value in values),
        )
    )
    other_classes = PolyLoss(class_dim=-1)
    weighted = PolyLoss(class_weight=torch.ones(3))
    one_logit = {"loss": FocalLoss, "options": {"binary": True}}
    return (
        *numbers,
        *(
            row
            for loss in (FocalLoss, BrierLoss)
            for row in (
                hyper(loss, "binary", None, "True, False", "None"),
                hyper(loss, "binary", "yes", "True, False", "'yes'"),
                hyper(loss, "class_dim", -1, "none with binary=True", "-1", binary=True),
            )
        ),
        hyper(FocalLoss, "alpha", 0.25, "a tensor", "float", error=TypeError),
        hyper(FocalLoss, "alpha", torch.ones(1), "(K,)", "(1,)", id="one"),
        hyper(FocalLoss, "alpha", torch.ones(2, 2), "(K,)", "(2, 2)", id="matrix"),
        hyper(FocalLoss, "alpha", torch.arange(3), "floating", "int64", error=TypeError, id="int"),
        hyper(FocalLoss, "alpha", torch.tensor([1.0, -1.0]), ">= 0", "-1.", id="negative"),
        hyper(FocalLoss, "alpha", torch.tensor([1.0, NAN]), "finite", "nan", id="nan"),
        hyper(FocalLoss, "alpha", torch.ones(2), "a number", "Tensor", error=TypeError, id="binary",
              binary=True),
        hyper(FocalLoss, "alpha", 1.5, "[0, 1]", "1.5", binary=True),
        Row("FocalLoss_alpha_other_classes", "alpha", ("3 weights", "got 4"), loss=FocalLoss,
            options={"alpha": torch.ones(4)}, inputs=(LOGITS, TARGET)),
        Row("FocalLoss_alpha_other_classes_soft", "alpha", ("3 weights", "got 4"), loss=FocalLoss,
            options={"alpha": torch.ones(4)}, inputs=(LOGITS, PROBABILITIES)),
        Row("FocalLoss_binary_index", "target", ("(4, 3)", "binary=True", "got (4,)"),
            inputs=(LOGITS, TARGET), **one_logit),
        Row("FocalLoss_binary_2", "target", ("[0, 2)", "got 2"),
            inputs=(LOGITS[:, 0], TARGET), **one_logit),
        Row("FocalLoss_binary_large", "target", ("class probabilities", "minimum -1"),
            inputs=(LOGITS[:, 0], TARGET.float()), **one_logit),
        Row("FocalLoss_binary_list", "target", ("a tensor", "list"), TypeError,
            inputs=(LOGITS[:, 0], [0, 1, 0, 1]), **one_logit),
        Row("FocalLoss_binary_layout", "logits", ("a tensor", "LinearLogits"), TypeError,
            inputs=(LinearLogits(LOGITS, LOGITS), TARGET), **one_logit),
        Row("LogitZRegularizer_no_target_class_weight", "target", ("class_weight", "None"),
            loss=LogitZRegularizer, options={"class_weight": torch.ones(3)}, inputs=(LOGITS, None)),
        Row("LogitZRegularizer_no_target_layout", "target", ("LinearLogits", "None"), TypeError,
            loss=LogitZRegularizer, inputs=(LinearLogits(LOGITS, LOGITS), None)),
        Row("LogitZRegularizer_no_target_int", "logits", ("floating", "int64"), TypeError,
            loss=LogitZRegularizer, inputs=(LOGITS.long(), None)),
        Row("LogitZRegularizer_no_target_0_dim", "logits", ("class axis", "0-dim"),
            loss=LogitZRegularizer, inputs=(torch.tensor(1.0), None)),
        Row("DirectCoverageLoss_positive", "logp", ("at most 0", "got 0.1"),
            loss=DirectCoverageLoss, inputs=(torch.tensor([-1.0, 0.1]),)),
        Row("DirectCoverageLoss_int", "logp", ("floating", "int64"), TypeError,
            loss=DirectCoverageLoss, inputs=(-TARGET,)),
        Row("DirectCoverageLoss_list", "logp", ("a tensor", "list"), TypeError,
            loss=DirectCoverageLoss, inputs=([-1.0],)),
        hyper(JensenShannonLoss, "weight", [0.5, 0.4], "sum 1", "[0.5, 0.4]", id="sum"),
        hyper(JensenShannonLoss, "weight", [1.0], "two or more", "[1.0]", id="alone"),
        hyper(JensenShannonLoss, "weight", [1.5, -0.5], "(0, 1]", "1.5", id="negative"),
        hyper(JensenShannonLoss, "weight", ["a", 1.0], "a number", "str", error=TypeError,
              id="str_inside"),
        hyper(JensenShannonLoss, "scaled", None, "True, False", "None"),
        Row("JensenShannonLoss_too_few_views", "logits", ("2 view(s)", "got 1"),
            loss=JensenShannonLoss, options={"weight": (0.5, 0.3, 0.2)}, inputs=(LOGITS, TARGET)),
        Row("JensenShannonLoss_too_many_views", "logits", ("1 view(s)", "got 2"),
            loss=JensenShannonLoss, inputs=([LOGITS, LOGITS], TARGET)),
        *(
            Row(f"JensenShannonLoss_view_{id}", "logits[1]" if error is ValueError else "logits",
                says, error, JensenShannonLoss, {"weight": (0.5, 0.3, 0.2)},
                ([LOGITS, view], TARGET))
            for id, view, says, error in (
                ("shape", LOGITS[:2], ("(4, 3)", "(2, 3)"), ValueError),
                ("layout", LinearLogits(LOGITS, LOGITS), ("in memory", "LinearLogits"), TypeError),
            )
        ),
        hyper(ActivePassiveLoss, "beta", 0.0, "> 0 where alpha is 0", "got 0", alpha=0.0),
        hyper(ActivePassiveLoss, "active", "rce", "'ce', 'nce'", "'rce'"),
        hyper(ActivePassiveLoss, "passive", "nce", "'mae', 'rce'", "'nce'"),
        hyper(ActivePassiveLoss, "active", None, "a loss of logits", "NoneType", error=TypeError),
        hyper(ActivePassiveLoss, "active", ALDRKLLoss(5), "a loss of logits", "ALDRKLLoss",
              error=TypeError, id="index"),
        hyper(ActivePassiveLoss, "active_kwargs", {"tau": 2.0}, "None for an instance", "tau",
              error=TypeError, id="of_instance", active=PolyLoss()),
        Row("ActivePassiveLoss_active_class_dim", "active", ("class_dim=1", "class_dim=-1"),
            loss=ActivePassiveLoss, options={"active": other_classes}),
        Row("ActivePassiveLoss_active_class_weight", "active", ("no class_weight", "PolyLoss"),
            loss=ActivePassiveLoss, options={"active": weighted}),
        Row("ActivePassiveLoss_kwargs_unknown", None, ("unexpected keyword", "tua"), TypeError,
            ActivePassiveLoss, {"active": "ce", "active_kwargs": {"tua": 1.0}}),
    )  # fmt: skip


def binary(loss: type[Loss], *further: Any) -> tuple[Row, ...]:
    """What no loss of one logit takes."""
    f, y = LOGITS[:, 0], torch.tensor([0, 1, 1, 0])

    def refused(argument: str, id: str, says: tuple[str, ...], *inputs: Any, **k: Any) -> Row:
        error = k.pop("error", ValueError)
        return Row(
            f"{loss.__name__}_{argument}_{id}",
            argument,
            says,
            error,
            loss,
            {},
            (*inputs, *further),
            k,
        )

    return (
        refused("logits", "int", ("floating point", "int64"), y, y, error=TypeError),
        refused("logits", "list", ("a tensor", "list"), f.tolist(), y, error=TypeError),
        refused("target", "list", ("a tensor", "list"), f, y.tolist(), error=TypeError),
        refused("target", "complex", ("0 and 1", "complex64"), f, y + 0j, error=TypeError),
        refused("target", "column", ("shape of logits, (4,)", "(4, 1)"), f, y[:, None]),
        refused("target", "short", ("(4,)", "(3,)"), f, y[:3]),
        refused("target", "of_columns", ("(4, 3)", "(4,)"), LOGITS, y),
        refused("target", "minus_one", ("0 and 1", "got -1"), f, 2 * y - 1),
        refused("target", "two", ("0 and 1", "got 2"), f, y + 1),
        refused("target", "share", ("0 and 1", "got 0.5"), f, 0.5 * y),
        refused("target", "nan", ("0 and 1", "got nan"), f, y * NAN),
        refused("target", "other_device", ("device cpu", "meta"), f, y.to("meta")),
        refused("weight", "column", ("(4,)", "(4, 1)"), f, y, weight=torch.ones(4, 1)),
    )


def binary_batches(loss: type[Loss]) -> tuple[Row, ...]:
    """What no loss of a batch of single logits takes, beside that."""
    y = torch.tensor([0, 1, 1, 0])
    return (
        *binary(loss),
        Row(
            f"{loss.__name__}_logits_column",
            "logits",
            ("(N,)", "(4, 1)"),
            ValueError,
            loss,
            {},
            (LOGITS[:, :1], y[:, None]),
        ),
        Row(
            f"{loss.__name__}_logits_0_dim",
            "logits",
            ("(N,)", "()"),
            ValueError,
            loss,
            {},
            (LOGITS[0, 0], y[0]),
        ),
    )


def draws(id: str, says: tuple[str, ...], value: Any, error=ValueError) -> Row:
    inputs = (LOGITS[:, 0], torch.tensor([0, 1, 1, 0]), value)
    return Row(f"EnsLoss_normal_draws_{id}", "normal_draws", says, error, EnsLoss, {}, inputs)


def upper(id: str, says: tuple[str, ...], *inputs: Any, error=ValueError, **keywords: Any) -> Row:
    name = f"IBPRobustCrossEntropyLoss_upper_{id}"
    argument = "lower" if "crossed" in id else "upper"
    return Row(name, argument, says, error, IBPRobustCrossEntropyLoss, {}, inputs, keywords)


def boxes(loss: type[Loss], name: str, *before: Any) -> tuple[Row, ...]:
    """What the regularizers of bounds refuse in the bounds of a layer."""
    low, high = LOGITS, LOGITS + 1.0
    good = (low, high)

    def refused(id: str, says: tuple[str, ...], value: Any, error=ValueError, layer=None) -> Row:
        argument = "layer_bounds" if layer is None else f"layer_bounds[{layer}]"
        return Row(f"{name}_{id}", argument, says, error, loss, {}, (*before, value))

    return (
        *not_numbers(loss, "tol"),
        hyper(loss, "tol", 0.0, "(0, inf)", "0.0"),
        hyper(loss, "tol", -0.5, "(0, inf)", "-0.5"),
        hyper(loss, "tol", NAN, "(0, inf)", "nan"),
        hyper(loss, "tol", INF, "(0, inf)", "inf"),
        refused("none", ("sequence of pairs", "NoneType"), None, TypeError),
        refused("generator", ("sequence of pairs", "generator"), (x for x in [good]), TypeError),
        refused("empty", ("at least one layer", "none"), []),
        refused("0_dim", ("at least one layer", "none"), torch.tensor(1.0)),
        refused("one_bound", ("a pair", "got 1"), [(low,)], layer=0),
        refused("flat", ("a pair", "got (4, 3)"), list(good), layer=0),
        refused("flat_tensor", ("a pair", "()"), torch.ones(3), layer=0),
        refused("number", ("a pair", "float"), [good, 1.0], TypeError, layer=1),
        refused("list", ("a tensor", "list"), [good, ([1.0], [2.0])], TypeError, layer=1),
        refused("int", ("floating", "int64"), [good, (TARGET, TARGET)], TypeError, layer=1),
        refused("int_above", ("floating", "int64"), [(low, low.long())], TypeError, layer=0),
        refused("shapes", ("(4, 3)", "(3, 3)"), [good, (low, high[:3])], layer=1),
        refused("device", ("device cpu", "meta"), [(low, high.to("meta"))], layer=0),
        refused("crossed", ("lower bounds <= upper", "2", "1"), [good, (high, low)], layer=1),
        Row(
            f"{loss.__name__}_weight",
            "weight",
            ("none", "one number"),
            ValueError,
            loss,
            {},
            (*before, [good]),
            {"weight": torch.ones(4)},
        ),
    )


BOX = (LOGITS, LOGITS + 1.0)


def aggregate(
    id: str, argument: str, says: tuple[str, ...], error=ValueError, **change: Any
) -> Row:
    base = change.pop("base", "mse")
    inputs = {
        "input": LOGITS[:, 0],
        "bag_index": torch.tensor([0, 1, 1, 0]),
        "bag_target": torch.tensor([0.5, 1.0]),
    }
    keywords = {k: x for k, x in change.items() if k not in inputs}
    called = tuple(change.get(k, x) for k, x in inputs.items())
    name = f"AggregateResponseLoss_{argument}_{id}"
    return Row(name, argument, says, error, AggregateResponseLoss, {"base": base}, called, keywords)


def class_rows(loss: type[Loss], name: str, *further: Any, **options: Any) -> tuple[Row, ...]:
    """What no loss of rows of logits and class indices takes that is batch-coupled."""

    def row(argument: str, id: str, says: tuple[str, ...], x: Any, y: Any, error=ValueError):
        return called(loss, argument, id, says, x, y, *further, error=error, **options)

    return (
        row(name, "list", ("a tensor", "list"), LOGITS.tolist(), TARGET, TypeError),
        row(name, "int", ("floating", "int64"), LOGITS.long(), TARGET, TypeError),
        row(name, "flat", ("(N, K)", "got (3,)"), LOGITS[0], TARGET[0]),
        row(name, "one_class", ("K >= 2", "got (4, 1)"), LOGITS[:, :1], TARGET),
        row(name, "layout", ("a tensor", "LinearLogits"), LinearLogits(LOGITS, torch.eye(K)),
            TARGET, TypeError),
        row("target", "list", ("a tensor", "list"), LOGITS, TARGET.tolist(), TypeError),
        row("target", "float", ("integer class", "float32"), LOGITS, TARGET.float(), TypeError),
        row("target", "bool", ("integer class", "bool"), LOGITS, TARGET > 0, TypeError),
        row("target", "soft", ("integer class", "float32"), LOGITS, PROBABILITIES, TypeError),
        row("target", "short", ("(4,)", "got (3,)"), LOGITS, TARGET[:3]),
        row("target", "column", ("(4,)", "got (4, 1)"), LOGITS, TARGET[:, None]),
        row("target", "beyond", ("[0, 3)", "got 3"), LOGITS, TARGET + 1),
        row("target", "negative", ("[0, 3)", "got -100"), LOGITS, TARGET - 100),
        row("target", "meta", ("device cpu", "meta"), LOGITS, TARGET.to("meta")),
    )  # fmt: skip


def calibration() -> tuple[Row, ...]:
    """What the losses for calibration do not take."""
    x, q = LOGITS, PROBABILITIES

    def mixed(loss: type[Loss]) -> tuple[Row, ...]:
        m, t = (x, q) if loss is MixupRankingLoss else (torch.stack((x, x)), torch.stack((q, q)))

        def row(argument: str, id: str, says: tuple[str, ...], *inputs: Any, error=ValueError):
            return called(loss, argument, id, says, *inputs, error=error)

        return (
            row("logits", "list", ("a tensor", "list"), x.tolist(), m, t, error=TypeError),
            row("logits", "int", ("floating", "int64"), x.long(), m, t, error=TypeError),
            row("logits", "flat", ("(N, K)", "got (3,)"), x[0], m, t),
            row("logits", "one_class", ("K >= 2", "got (4, 1)"), x[:, :1], m, t),
            row("mixed_logits", "none", ("a tensor", "None"), x, None, t, error=TypeError),
            row("mixed_logits", "int", ("floating", "int64"), x, m.long(), t, error=TypeError),
            row("mixed_logits", "short", ("4, 3", "3, 3"), x, m[..., :3, :], t[..., :3, :]),
            row("mixed_logits", "classes", ("4, 3", "4, 2"), x, m[..., :2], t[..., :2]),
            row("mixed_logits", "axes", ("4, 3", "1, "), x, m[None], t[None]),
            row("mixed_logits", "meta", ("device cpu", "meta"), x, m.to("meta"), t.to("meta")),
            row("mixed_target", "indices", ("floating", "int64"), x, m, t.long(), error=TypeError),
            row("mixed_target", "short", ("4, 3", "3, 3"), x, m, t[..., :3, :]),
            row("mixed_target", "beyond", ("[0, 1]", "got 1.2"), x, m, t * 1.2),
            row("mixed_target", "negative", ("[0, 1]", "got -0.2"), x, m, -t),
            row("mixed_target", "nan", ("[0, 1]", "got nan"), x, m, t * NAN),
        )

    return (
        hyper(CorrectnessAwareLoss, "balance", None, "True, False", "None"),
        hyper(CorrectnessAwareLoss, "reduction", "average", "'mean'", "'average'"),
        *class_rows(CorrectnessAwareLoss, "logits"),
        called(CorrectnessAwareLoss, "uncalibrated_logits", "int", ("floating", "int64"), x, TARGET,
               x.long(), error=TypeError),
        called(CorrectnessAwareLoss, "uncalibrated_logits", "classes", ("(4, 3)", "got (4, 2)"), x,
               TARGET, x[:, :2]),
        *not_numbers(MixupRankingLoss, "margin"),
        hyper(MixupRankingLoss, "margin", -0.1, "[0, inf)", "-0.1"),
        hyper(MixupRankingLoss, "margin", INF, "[0, inf)", "inf"),
        hyper(MixupRankingLoss, "margin", NAN, "[0, inf)", "nan"),
        hyper(MixupRankingLoss, "confidence", "max", "'logit', 'prob'", "'max'"),
        hyper(MixupRankingLoss, "confidence", None, "'logit', 'prob'", "None"),
        *mixed(MixupRankingLoss),
        *mixed(MixupNDCGLoss),
        called(MixupNDCGLoss, "mixed_logits", "none_of_them", ("Q >= 1", "(0, 4, 3)"), x,
               torch.ones(0, 4, 3), torch.ones(0, 4, 3)),
        called(MixupNDCGLoss, "mixed_logits", "of_one", ("(Q, 4, 3)", "got (4, 3)"), x, x, q),
    )  # fmt: skip


def counts(loss: type[Loss], name: str, **others: Any) -> tuple[Row, ...]:
    """What is no number of samples per class."""

    def row(id: str, value: Any, *says: str, error: type[Exception] = ValueError) -> Row:
        return hyper(loss, name, value, *says, error=error, id=id, **others)

    return (
        row("number", 3, "a tensor or a sequence", "int", error=TypeError),
        row("str", "12", "a tensor or a sequence", "str", error=TypeError),
        row("of_strings", ["1", "2"], "a number", "str", error=TypeError),
        row("bool", torch.ones(3) > 0, "numbers", "bool", error=TypeError),
        row("0_dim", torch.tensor(3.0), "(K,)", "()"),
        row("2_dim", torch.ones(1, 3), "(K,)", "(1, 3)"),
        row("one", [5], "K >= 2", "(1,)"),
        row("zero", [5, 0, 2], "> 0", "0.0"),
        row("negative", torch.tensor([5, -1]), "> 0", "-1"),
        row("inf", [5.0, INF], "finite", "inf"),
        row("nan", torch.tensor([5.0, NAN]), "finite", "nan"),
    )


def evidential() -> tuple[Row, ...]:
    """What the losses of evidence do not take."""
    z, w, n = torch.stack((LOGITS, LOGITS)), torch.ones(3, 4), {"class_counts": [5, 3, 1]}

    def hypers(argument: str, value: Any, *says: str, **o: Any) -> Row:
        return hyper(TLCLoss, argument, value, *says, **n, **o)

    def row(
        argument: str, id: str, says: tuple[str, ...], *inputs: Any, error=ValueError, **o: Any
    ):
        return called(TLCLoss, argument, id, says, *inputs, error=error, **(n | o))

    def step(id: str, says: tuple[str, ...], value: Any, error=ValueError, **o: Any) -> Row:
        return called(EvidentialLoss, "step", id, says, LOGITS, TARGET, value, error=error, **o)

    return (
        hyper(EvidentialLoss, "kind", "MSE", "'mse'", "'MSE'"),
        hyper(EvidentialLoss, "kind", None, "'mse'", "None"),
        hyper(EvidentialLoss, "evidence", "square", "'softplus', 'relu', 'exp'", "'square'"),
        hyper(EvidentialLoss, "kl_weight", -0.1, "[0, inf)", "-0.1"),
        hyper(EvidentialLoss, "kl_weight", INF, "[0, inf)", "inf"),
        hyper(EvidentialLoss, "kl_weight", "1", "a number", "str", error=TypeError),
        *not_numbers(EvidentialLoss, "annealing_steps"),
        hyper(EvidentialLoss, "annealing_steps", 0, "(0, inf)", "got 0"),
        called(EvidentialLoss, "logits", "negative", ("evidence >= 0", "got -1"), LOGITS, TARGET,
               evidence="identity"),
        called(EvidentialLoss, "logits", "streamed", ("a tensor", "LinearLogits"),
               LinearLogits(LOGITS, torch.eye(K)), TARGET, error=TypeError),
        step("beside_weight", ("None", "kl_weight=0.5", "got 3"), 3, TypeError, kl_weight=0.5),
        step("negative", ("[0, inf)", "got -1"), -1),
        step("nan", ("[0, inf)", "got nan"), torch.tensor(NAN)),
        step("bool", ("a number", "bool"), True, TypeError),
        step("per_sample", ("0-dim", "(4,)"), torch.arange(4)),
        step("str", ("a number", "str"), "3", TypeError),
        *counts(TLCLoss, "class_counts"),
        *(
            r
            for name in ("max_margin", "scale", "reweight_factor", "annealing", "tau", "diversity")
            for r in not_numbers(TLCLoss, name, **n)
        ),
        hypers("max_margin", -0.1, "[0, inf)", "-0.1"),
        hypers("scale", 0.0, "(0, inf)", "0.0"),
        hypers("reweight_epoch", -2, "at least -1", "-2"),
        hypers("reweight_epoch", 1.5, "an int", "float", error=TypeError),
        hypers("reweight_factor", 1.1, "[0, 1]", "1.1"),
        hypers("annealing", 0.0, "inf)", "0.0"),
        hypers("annealing", 1.0, "(1, inf)", "1.0"),
        hypers("tau", 1.0, "[0, 1)", "1.0"),
        hypers("diversity", -1.0, "[0, inf)", "-1.0"),
        hypers("max_log_evidence", "20", "a number", "str", error=TypeError),
        hypers("max_log_evidence", NAN, "a number", "nan"),
        row("logits", "of_one", ("(E, N, K)", "got (4, 3)"), LOGITS, TARGET, LOGITS, w, 1),
        row("logits", "none", ("E >= 1", "got (0, 4, 3)"), z[:0], TARGET, LOGITS, w, 1),
        row("logits", "int", ("floating", "int64"), z.long(), TARGET, LOGITS, w, 1,
            error=TypeError),
        row("class_counts", "other_classes", ("3 numbers", "got 2"), z, TARGET, LOGITS, w, 1,
            class_counts=[2, 1]),
        row("target", "short", ("(4,)", "got (3,)"), z, TARGET[:3], LOGITS, w, 1),
        row("target", "beyond", ("[0, 3)", "got 3"), z, TARGET + 1, LOGITS, w, 1),
        row("target", "float", ("integer", "float32"), z, TARGET.float(), LOGITS, w, 1,
            error=TypeError),
        row("target", "meta", ("cpu", "meta"), z, TARGET.to("meta"), LOGITS, w, 1),
        row("combined_logits", "of_all", ("one expert, (4, 3)", "(2, 4, 3)"), z, TARGET, z, w, 1),
        row("combined_logits", "none", ("a tensor", "None"), z, TARGET, None, w, 1,
            error=TypeError),
        row("engagement", "few", ("E >= 2", "got (1, 4)"), z, TARGET, LOGITS, w[:1], 1),
        row("engagement", "samples", ("(E, 4)", "got (3, 3)"), z, TARGET, LOGITS, w[:, :3], 1),
        row("engagement", "mask", ("floating", "bool"), z, TARGET, LOGITS, w > 0, 1,
            error=TypeError),
        row("epoch", "negative", ("[0, inf)", "got -1"), z, TARGET, LOGITS, w, -1),
        row("epoch", "none", ("a number", "None"), z, TARGET, LOGITS, w, None, error=TypeError),
        row("epoch", "of_samples", ("0-dim", "(4,)"), z, TARGET, LOGITS, w, torch.ones(4)),
        row("weight", "of_experts", ("(4,)", "(2, 4)"), z, TARGET, LOGITS, w, 1,
            keywords={"weight": torch.ones(2, 4)}),
    )  # fmt: skip


def imbalance() -> tuple[Row, ...]:
    """What the losses for imbalance do not take."""
    f = torch.eye(4, 2)
    focal, srat, separation = GradientSimilarityFocalLoss, SRATLoss, FeatureSeparationLoss
    adjusted = LogitAdjustmentLoss
    many = {"class_counts": torch.ones(4)}

    def features(loss: type[Loss], name: str) -> tuple[Row, ...]:
        def row(id: str, says: tuple[str, ...], value: Any, error=ValueError) -> Row:
            return called(loss, name, id, says, LOGITS, TARGET, value, error=error)

        return (
            row("none", ("a tensor", "None"), None, TypeError),
            row("int", ("floating", "int64"), f.long(), TypeError),
            row("flat", ("(4, D)", "got (4,)"), f[:, 0]),
            row("short", ("(4, D)", "got (3, 2)"), f[:3]),
            row("empty", ("D >= 1", "got (4, 0)"), f[:, :0]),
            row("meta", ("device cpu", "meta"), f.to("meta")),
        )

    return (
        *not_numbers(focal, "alpha"),
        hyper(focal, "alpha", -0.1, "[0, 1]", "-0.1"),
        hyper(focal, "alpha", 1.1, "[0, 1]", "1.1"),
        *not_numbers(focal, "gamma"),
        hyper(focal, "gamma", -0.1, "[0, inf)", "-0.1"),
        hyper(focal, "gamma", INF, "[0, inf)", "inf"),
        *class_rows(focal, "logits", f),
        *features(focal, "features"),
        called(focal, "logit_scale", "column", ("(4, 3)", "got (4, 1)"), LOGITS, TARGET, f,
               LOGITS[:, :1]),
        called(focal, "logit_scale", "number", ("a tensor", "float"), LOGITS, TARGET, f, 2.0,
               error=TypeError),
        *not_numbers(separation, "temperature"),
        hyper(separation, "temperature", 0.0, "(0, inf)", "0.0"),
        hyper(separation, "gather", None, "'auto'", "None"),
        hyper(separation, "process_group", 0, "group or None", "int", error=TypeError),
        called(separation, "features", "flat", ("(N, D)", "got (2,)"), f[0], TARGET[0]),
        called(separation, "features", "int", ("floating", "int64"), f.long(), TARGET,
               error=TypeError),
        called(separation, "labels", "float", ("integers", "float32"), f, TARGET.float(),
               error=TypeError),
        called(separation, "labels", "bool", ("integers", "bool"), f, TARGET > 0, error=TypeError),
        called(separation, "labels", "short", ("(4,)", "got (3,)"), f, TARGET[:3]),
        called(separation, "labels", "column", ("(4,)", "got (4, 1)"), f, TARGET[:, None]),
        called(separation, "labels", "meta", ("device cpu", "meta"), f, TARGET.to("meta")),
        hyper(srat, "class_weight", [1.0, 2.0, 3.0], "a tensor", "list", error=TypeError,
              id="list"),
        hyper(srat, "class_weight", torch.ones(1, 3), "(K,)", "(1, 3)", id="2_dim"),
        hyper(srat, "class_weight", torch.tensor([1.0, -1.0]), ">= 0", "-1.0", id="negative"),
        called(srat, "class_weight", "other_K", ("3 weights", "got 2"), LOGITS, TARGET, f,
               class_weight=torch.ones(2)),
        *not_numbers(srat, "separation_weight"),
        hyper(srat, "separation_weight", -0.1, "[0, inf)", "-0.1"),
        hyper(srat, "temperature", 0.0, "(0, inf)", "0.0"),
        hyper(srat, "gather", None, "'auto'", "None"),
        *class_rows(srat, "adv_logits", f),
        *features(srat, "adv_features"),
        *counts(adjusted, "class_counts"),
        *counts(adjusted, "class_prior"),
        hyper(adjusted, "class_counts", None, "or a class_prior", "neither"),
        hyper(adjusted, "class_prior", [1, 1], "None beside", "both", class_counts=[1, 1],
              id="both"),
        *not_numbers(adjusted, "tau", class_counts=[1, 2]),
        hyper(adjusted, "tau", INF, "(-inf, inf)", "inf", class_counts=[1, 2]),
        hyper(adjusted, "tau", NAN, "(-inf, inf)", "nan", class_counts=[1, 2]),
        called(adjusted, "logits", "other_K", ("4 classes", "got 3"), LOGITS, TARGET, **many),
        called(adjusted, "logits", "other_K_soft", ("4 classes", "got 3"), LOGITS, PROBABILITIES,
               **many),
        called(adjusted, "logits", "other_K_streamed", ("4 classes", "got 3"),
               LinearLogits(LOGITS, torch.eye(3)), TARGET, **many),
    )  # fmt: skip


def several_views() -> tuple[Row, ...]:
    """What the losses of statistics, time series, several heads and three views do not take."""
    x, y = torch.ones(4, 3), torch.eye(4, 3)
    z, h = torch.ones(4, 5, 2), torch.ones(2, 4, 3)
    ids = torch.tensor([0, 0, 1, 1])
    twins, vicreg, comet, total = BarlowTwinsLoss, VICRegLoss, COMETLoss, COMETTotalLoss
    amcl, rmt = AMCLLoss, RMTContrastiveLoss
    size, level = {"num_heads": 2, "dim": 3}, {"level": "sample"}
    patient = {"level": "patient"}
    all_views = (z,) * 8

    def called(
        loss: type[Loss],
        argument: str,
        id: str,
        says: tuple[str, ...],
        *inputs: Any,
        error: type[Exception] = ValueError,
        o: Any = None,
        **keywords: Any,
    ) -> Row:
        name = f"{loss.__name__}_{argument}_{id}"
        return Row(name, argument, says, error, loss, o or {}, inputs, keywords)

    def pairs(loss: type[Loss]) -> tuple[Row, ...]:
        return (
            called(loss, "z1", "list", ("a tensor", "list"), x.tolist(), y, error=TypeError),
            called(loss, "z2", "none", ("a tensor", "NoneType"), x, None, error=TypeError),
            called(loss, "z1", "int", ("floating", "int64"), x.long(), y, error=TypeError),
            called(loss, "z1", "flat", ("(N, D)", "got (3,)"), x[0], y[0]),
            called(loss, "z2", "rows", ("of z1, (4, 3)", "got (1, 3)"), x, y[:1]),
            called(loss, "z1", "alone", ("at least 2", "got 1"), x[:1], y[:1]),
            called(loss, "weight", "any", ("none", "got one"), x, y, weight=torch.ones(4)),
            *not_numbers(loss, "eps"),
            hyper(loss, "eps", 0.0, "(0, inf)", "0.0"),
            hyper(loss, "eps", NAN, "(0, inf)", "nan"),
        )

    def common(loss: type[Loss], **o: Any) -> tuple[Row, ...]:
        return (
            hyper(loss, "gather", 1, "'auto'", "1", **o),
            hyper(loss, "process_group", "world", "group or None", "str", error=TypeError, **o),
            hyper(loss, "reduction", "average", "'mean'", "'average'", **o),
        )

    coefficients = ("sim_coeff", "std_coeff", "cov_coeff")
    return (
        *pairs(twins),
        *pairs(vicreg),
        *not_numbers(twins, "lambda_offdiag"),
        hyper(twins, "lambda_offdiag", -0.1, "[0, inf)", "-0.1"),
        *(row for name in coefficients for row in not_numbers(vicreg, name)),
        *(hyper(vicreg, name, -0.1, "[0, inf)", "-0.1") for name in coefficients),
        *(row for loss in (twins, vicreg, total, rmt) for row in common(loss)),
        *common(comet, **level),
        *common(amcl, **size),
        hyper(comet, "level", "trials", "'trial'", "'trials'"),
        hyper(comet, "temperature", 0.0, "(0, inf)", "0.0", **level),
        hyper(comet, "temperature", "1", "a number", "str", error=TypeError, **level),
        hyper(comet, "hierarchical", 2, "True, False", "2", **level),
        called(comet, "z1", "matrix", ("(B, T, C)", "(4, 5)"), z[..., 0], z[..., 0], o=level),
        called(comet, "z1", "times", ("T and C", "(4, 0, 2)"), z[:, :0], z[:, :0], o=level),
        called(comet, "z1", "channels", ("C >= 1", "(4, 5, 0)"), z[..., :0], z[..., :0], o=level),
        called(comet, "z1", "int", ("floating", "int64"), z.long(), z, error=TypeError, o=level),
        called(comet, "z2", "rows", ("of z1, (4, 5, 2)", "(1, 5, 2)"), z, z[:1], o=level),
        called(comet, "ids", "given", ("None", "Tensor"), z, z, ids, error=TypeError, o=level),
        called(comet, "ids", "none", ("tensor", "None"), z, z, error=TypeError, o=patient),
        called(comet, "ids", "float", ("int", "32"), z, z, ids.float(), error=TypeError, o=patient),
        called(comet, "ids", "short", ("per sample", "got (3,)"), z, z, ids[:3], o=patient),
        called(comet, "weight", "shape", ("(4,)", "(4, 1)"), z, z, o=level, weight=x[:, :1]),
        hyper(total, "factors", (1.0, 1.0), "four numbers", "(1.0, 1.0)", id="two"),
        hyper(total, "factors", 1.0, "four numbers", "1.0", id="one"),
        hyper(total, "factors", (1.0, 1.0, -1.0, 1.0), "[0, inf)", "-1.0", id="negative"),
        hyper(total, "factors", ("1", 1, 1, 1), "a number", "str", error=TypeError, id="str"),
        called(
            total,
            "trial2",
            "rows",
            ("of trial1", "(2, 5, 2)"),
            *all_views[:3],
            z[:2],
            *all_views[4:],
            ids,
            ids,
        ),
        called(
            total,
            "sample1",
            "batch",
            ("4 samples", "got 2"),
            *all_views[:4],
            z[:2],
            z[:2],
            z,
            z,
            ids,
            ids,
        ),
        called(
            total, "patient_ids", "none", ("tensor", "None"), *all_views, None, ids, error=TypeError
        ),
        called(total, "trial_ids", "short", ("per sample", "(3,)"), *all_views, ids, ids[:3]),
        hyper(amcl, "num_heads", 0, "at least 1", "0", dim=3),
        hyper(amcl, "dim", 2.0, "an int", "float", error=TypeError, num_heads=2),
        *not_numbers(amcl, "beta", **size),
        hyper(amcl, "beta", -0.1, "[0, inf)", "-0.1", **size),
        *not_numbers(amcl, "tau_low", **size),
        hyper(amcl, "tau_low", 0.0, "(0, inf)", "0.0", **size),
        hyper(amcl, "tau_high", 0.5, "(0.5, inf)", "0.5", tau_low=0.5, **size),
        hyper(amcl, "hidden", 0, "at least 1", "0", **size),
        hyper(amcl, "negatives", "all", "'lse'", "'all'", **size),
        hyper(amcl, "omega_dim", 0, "at least 1", "0", **size),
        hyper(amcl, "shared", None, "True, False", "None", **size),
        called(amcl, "z1", "matrix", ("(2, N, 3)", "(4, 3)"), x, y, o=size),
        called(amcl, "z1", "heads", ("(2, N, 3)", "(1, 4, 3)"), h[:1], h[:1], o=size),
        called(amcl, "z1", "width", ("(2, N, 3)", "(2, 4, 2)"), h[..., :2], h[..., :2], o=size),
        called(amcl, "z1", "list", ("a tensor", "list"), h.tolist(), h, error=TypeError, o=size),
        called(amcl, "z2", "rows", ("of z1", "(2, 1, 3)"), h, h[:, :1], o=size),
        called(amcl, "z2", "int", ("floating", "int64"), h, h.long(), error=TypeError, o=size),
        *not_numbers(rmt, "temperature"),
        hyper(rmt, "temperature", 0.0, "(0, inf)", "0.0"),
        hyper(rmt, "projector", torch.relu, "a module", "builtin", error=TypeError, id="function"),
        called(rmt, "features", "flat", ("(N, D)", "got (3,)"), x[0], x[0], y),
        called(rmt, "features_aug", "rows", ("of features", "(2, 3)"), x, x[:2], y),
        called(rmt, "source_prototypes", "flat", ("(C, 3)", "(3,)"), x, x, y[0]),
        called(rmt, "source_prototypes", "none", ("C >= 1", "(0, 3)"), x, x, y[:0]),
        called(rmt, "source_prototypes", "width", ("(C, 3)", "(4, 2)"), x, x, y[:, :2]),
        called(
            rmt, "source_prototypes", "int", ("float", "int64"), x, x, y.long(), error=TypeError
        ),
    )


FAMILIES = (
    *not_numbers(SphericalSoftmaxLoss, "eps"),
    hyper(SphericalSoftmaxLoss, "eps", 0.0, "(0, inf)", "0.0"),
    hyper(SphericalSoftmaxLoss, "eps", -1.0, "(0, inf)", "-1.0"),
    hyper(SphericalSoftmaxLoss, "eps", INF, "(0, inf)", "inf"),
    *not_numbers(ZLoss, "a", b=0.0),
    *not_numbers(ZLoss, "b", a=1.0),
    *not_numbers(ZLoss, "eps", a=1.0, b=0.0),
    hyper(ZLoss, "a", 0.0, "(0, inf)", "0.0", b=0.0),
    hyper(ZLoss, "a", -1.0, "(0, inf)", "-1.0", b=0.0),
    hyper(ZLoss, "a", INF, "(0, inf)", "inf", b=0.0),
    hyper(ZLoss, "b", NAN, "(-inf, inf)", "nan", a=1.0),
    hyper(ZLoss, "b", INF, "(-inf, inf)", "inf", a=1.0),
    hyper(ZLoss, "eps", -1e-9, "[0, inf)", "-1e-09", a=1.0, b=0.0),
    hyper(ZLoss, "eps", INF, "[0, inf)", "inf", a=1.0, b=0.0),
    Row("ZLoss_a_missing", None, ("'a'",), TypeError, ZLoss, {"b": 0.0}),
    Row("ZLoss_b_missing", None, ("'b'",), TypeError, ZLoss, {"a": 1.0}),
    *binary(ScaledLogisticLoss),
    *not_numbers(ScaledLogisticLoss, "scale"),
    hyper(ScaledLogisticLoss, "scale", 0.0, "(0, inf]", "0.0"),
    hyper(ScaledLogisticLoss, "scale", -1.0, "(0, inf]", "-1.0"),
    hyper(ScaledLogisticLoss, "scale", NAN, "(0, inf]", "nan"),
    *binary_batches(NormalizedLogisticLoss),
    hyper(NormalizedLogisticLoss, "gather", "always", "'auto'", "'always'"),
    *binary_batches(EnsLoss),
    *(
        row
        for name in ("lam", "clip", "offset")
        for row in (
            *not_numbers(EnsLoss, name),
            hyper(EnsLoss, name, NAN, "inf)", "nan"),
            hyper(EnsLoss, name, INF, "inf)", "inf"),
        )
    ),
    hyper(EnsLoss, "clip", 0.0, "(0, inf)", "0.0"),
    hyper(EnsLoss, "offset", 0.0, "(0, inf)", "0.0"),
    hyper(EnsLoss, "tail", None, "True, False", "None"),
    hyper(EnsLoss, "generator", 0, "torch.Generator", "int", error=TypeError),
    draws("list", ("a tensor", "list"), [0.0] * 4, TypeError),
    draws("int", ("floating", "int64"), torch.ones(4).long(), TypeError),
    draws("short", ("shape of logits, (4,)", "(3,)"), torch.zeros(3)),
    draws("one", ("(4,)", "(1,)"), torch.zeros(1)),
    draws("other_device", ("device cpu", "meta"), torch.zeros(4, device="meta")),
    upper("none", ("a tensor", "NoneType"), LOGITS, None, TARGET, error=TypeError),
    upper("int", ("floating", "int64"), LOGITS, LOGITS.long() + 5, TARGET, error=TypeError),
    upper("double", ("float32", "float64"), LOGITS, LOGITS.double(), TARGET, error=TypeError),
    upper("other_N", ("(4, 3)", "(3, 3)"), LOGITS, LOGITS[:3], TARGET),
    upper("one_row", ("(4, 3)", "(1, 3)"), LOGITS, LOGITS[:1], TARGET),
    upper("other_N_soft", ("(4, 3)", "(3, 3)"), LOGITS, LOGITS[:3], PROBABILITIES),
    upper("crossed", ("<= upper", "got 1 and 0.5"), LOGITS, LOGITS - 0.5, TARGET),
    upper("crossed_once", ("<= upper", "got -1 and -2"), LOGITS,
          LOGITS - torch.tensor([[0.0], [0.0], [1.0], [0.0]]), TARGET),
    upper("crossed_soft", ("<= upper", "got 1 and 0.5"), LOGITS, LOGITS - 0.5, PROBABILITIES),
    upper("crossed_weighted", ("<= upper", "got 0 and -0.5"), LOGITS, LOGITS - 0.5, TARGET,
          weight=torch.tensor([0.0, 1.0, 1.0, 1.0])),
    *boxes(IBPTightnessRegularizer, "IBPTightnessRegularizer_layers", BOX),
    *boxes(ReLUBalanceRegularizer, "ReLUBalanceRegularizer_layers"),
    Row("IBPTightnessRegularizer_input_flat", "input_bounds", ("a pair", "(4, 3)"), ValueError,
        IBPTightnessRegularizer, {}, (LOGITS, [BOX])),
    Row("IBPTightnessRegularizer_input_none", "input_bounds", ("a pair", "NoneType"), TypeError,
        IBPTightnessRegularizer, {}, (None, [BOX])),
    Row("IBPTightnessRegularizer_input_crossed", "input_bounds", ("<= upper", "2", "1"),
        ValueError, IBPTightnessRegularizer, {}, (BOX[::-1], [BOX])),
    *not_numbers(AggregateResponseLoss, "rho"),
    hyper(AggregateResponseLoss, "rho", -0.1, "[0, 1]", "-0.1"),
    hyper(AggregateResponseLoss, "rho", 1.1, "[0, 1]", "1.1"),
    hyper(AggregateResponseLoss, "rho", NAN, "[0, 1]", "nan"),
    hyper(AggregateResponseLoss, "base", "l2", "'mse', 'bce'", "'l2'"),
    aggregate("int", "input", ("floating", "int64"), TypeError, input=TARGET),
    aggregate("column", "input", ("(N,)", "(4, 1)"), input=LOGITS[:, :1]),
    aggregate("list", "bag_index", ("a tensor", "list"), TypeError, bag_index=[0, 1, 1, 0]),
    aggregate("float", "bag_index", ("integers", "float32"), TypeError, bag_index=torch.zeros(4)),
    aggregate("short", "bag_index", ("(4,)", "(3,)"), bag_index=TARGET[:3]),
    aggregate("other_device", "bag_index", ("device cpu", "meta"), bag_index=TARGET.to("meta")),
    aggregate("M", "bag_index", ("[0, 2)", "got 2"), bag_index=TARGET),
    aggregate("negative", "bag_index", ("[0, 2)", "got -1"), bag_index=_indices(0, 1, -1, 0)),
    aggregate("int", "bag_target", ("floating", "int64"), TypeError, bag_target=_indices(0, 1)),
    aggregate("0_dim", "bag_target", ("(M,)", "()"), bag_target=torch.tensor(1.0)),
    aggregate("per_column", "bag_target", ("(M,)", "(2, 3)"), bag_target=torch.ones(2, 3)),
    aggregate("other_device", "bag_target", ("device cpu", "meta"),
              bag_target=torch.ones(2, device="meta")),
    aggregate("above_1", "bag_target", ("[0, 1]", "got 1.5"), base="bce",
              bag_target=torch.tensor([0.5, 1.5])),
    aggregate("below_0", "bag_target", ("[0, 1]", "got -0.5"), base="bce",
              bag_target=torch.tensor([-0.5, 0.5])),
    aggregate("per_sample", "weight", ("(2,)", "(4,)"), weight=torch.ones(4)),
    aggregate("column", "weight", ("(2,)", "(2, 1)"), weight=torch.ones(2, 1)),
    *not_numbers(CompSumLoss, "tau"),
    hyper(CompSumLoss, "tau", -0.5, "[0, inf", "-0.5"),
    hyper(CompSumLoss, "tau", -1e-9, "[0, inf", "-1e-09"),
    hyper(CompSumLoss, "tau", NAN, "[0, inf", "nan"),
    hyper(CompSumLoss, "tau", -INF, "[0, inf", "-inf"),
    hyper(CompSumLoss, "tau", INF, "inf)", "got inf"),
    hyper(CompSumLoss, "tau", torch.tensor(1.0), "a number", "Tensor", error=TypeError),
    *(
        row
        for name in ("tau", "rho", "nu")
        for low in ("(0" if name == "rho" else "[0",)
        for row in (
            *not_numbers(SmoothAdversarialCompSumLoss, name),
            hyper(SmoothAdversarialCompSumLoss, name, -0.5, low, "-0.5"),
            hyper(SmoothAdversarialCompSumLoss, name, NAN, low, "nan"),
            hyper(SmoothAdversarialCompSumLoss, name, INF, "inf)", "got inf"),
        )
    ),
    hyper(SmoothAdversarialCompSumLoss, "rho", 0.0, "(0, inf)", "got 0.0"),
    adversarial("none", ("a tensor", "NoneType"), LOGITS, None, TARGET, error=TypeError),
    adversarial("list", ("a tensor", "list"), LOGITS, LOGITS.tolist(), TARGET, error=TypeError),
    adversarial("int", ("float32", "int64"), LOGITS, LOGITS.long(), TARGET, error=TypeError),
    adversarial("double", ("float32", "float64"), LOGITS, LOGITS.double(), TARGET, error=TypeError),
    adversarial("single", ("float64", "float32"), LOGITS.double(), LOGITS, TARGET, error=TypeError),
    adversarial("double_soft", ("float32", "float64"), LOGITS, LOGITS.double(), PROBABILITIES,
                error=TypeError),
    adversarial("other_device", ("device cpu", "meta"), LOGITS, LOGITS.to("meta"), TARGET),
    adversarial("other_N", ("(4, 3)", "(4, M, 3)", "got (3, 3)"), LOGITS, LOGITS[:3], TARGET),
    adversarial("one_row", ("(4, 3)", "got (1, 3)"), LOGITS, LOGITS[:1], TARGET),
    adversarial("other_K", ("(4, 3)", "got (4, 2)"), LOGITS, LOGITS[:, :2], TARGET),
    adversarial("other_K_soft", ("(4, 3)", "got (4, 2)"), LOGITS, LOGITS[:, :2], PROBABILITIES),
    adversarial("other_N_nu_0", ("(4, 3)", "got (3, 3)"), LOGITS, LOGITS[:3], TARGET, nu=0.0),
    adversarial("0_dim", ("(4, 3)", "got ()"), LOGITS, LOGITS[0, 0], TARGET),
    adversarial("1_dim", ("(4, 3)", "got (3,)"), LOGITS, LOGITS[0], TARGET),
    adversarial("4_dim", ("(4, M, 3)", "got (4, 1, 1, 3)"), LOGITS, LOGITS[:, None, None], TARGET),
    adversarial("candidates_first", ("(4, M, 3)", "got (2, 4, 3)"), LOGITS,
                torch.stack((LOGITS, LOGITS)), TARGET),
    adversarial("candidates_last", ("(4, M, 3)", "got (4, 3, 2)"), LOGITS,
                torch.stack((LOGITS, LOGITS), 2), TARGET),
    adversarial("no_candidate", ("M >= 1", "got (4, 0, 3)"), LOGITS, LOGITS[:, None][:, :0],
                TARGET),
    adversarial("candidates_class_dim", ("(M, 4, 3)", "got (4, 2, 3)"), LOGITS,
                torch.stack((LOGITS, LOGITS), 1), TARGET[:3], class_dim=0),
    Row("SmoothAdversarialCompSumLoss_adv_logits_missing", None, ("target",), TypeError,
        SmoothAdversarialCompSumLoss, {}, (LOGITS, TARGET)),
    *not_numbers(GeneralizedCrossEntropyLoss, "q"),
    hyper(GeneralizedCrossEntropyLoss, "q", -0.1, "[0, 1]", "-0.1"),
    hyper(GeneralizedCrossEntropyLoss, "q", 1.0000001, "[0, 1]", "1.0000001"),
    hyper(GeneralizedCrossEntropyLoss, "q", NAN, "[0, 1]", "nan"),
    hyper(GeneralizedCrossEntropyLoss, "q", INF, "[0, 1]", "inf"),
    *not_numbers(MulticlassMAELoss, "scale"),
    hyper(MulticlassMAELoss, "scale", 0.0, "(0, inf", "got 0.0"),
    hyper(MulticlassMAELoss, "scale", -1.0, "(0, inf", "-1.0"),
    hyper(MulticlassMAELoss, "scale", NAN, "(0, inf", "nan"),
    hyper(MulticlassMAELoss, "scale", INF, "inf)", "got inf"),
    *not_numbers(ReverseCrossEntropyLoss, "A"),
    hyper(ReverseCrossEntropyLoss, "A", 0.0, "(-inf, 0)", "0.0"),
    hyper(ReverseCrossEntropyLoss, "A", 4.0, "(-inf, 0)", "4.0"),
    hyper(ReverseCrossEntropyLoss, "A", NAN, "(-inf, 0)", "nan"),
    hyper(ReverseCrossEntropyLoss, "A", -INF, "(-inf, 0)", "-inf"),
    *(
        row
        for name in ("alpha", "beta")
        for row in (
            *not_numbers(SymmetricCrossEntropyLoss, name),
            hyper(SymmetricCrossEntropyLoss, name, -0.1, "[0, inf)", "-0.1"),
            hyper(SymmetricCrossEntropyLoss, name, NAN, "[0, inf)", "nan"),
            hyper(SymmetricCrossEntropyLoss, name, INF, "[0, inf)", "inf"),
        )
    ),
    hyper(SymmetricCrossEntropyLoss, "beta", 0.0, "> 0 where alpha is 0", "got 0", alpha=0.0),
    *not_numbers(SymmetricCrossEntropyLoss, "A"),
    hyper(SymmetricCrossEntropyLoss, "A", 0.0, "(-inf, 0)", "0.0"),
    hyper(SymmetricCrossEntropyLoss, "A", 4.0, "(-inf, 0)", "4.0"),
    hyper(SymmetricCrossEntropyLoss, "A", NAN, "(-inf, 0)", "nan"),
    hyper(SymmetricCrossEntropyLoss, "A", -INF, "(-inf, 0)", "-inf"),
    *not_numbers(LDRKLLoss, "lam"),
    hyper(LDRKLLoss, "lam", -1.0, "[0, inf]", "-1.0"),
    hyper(LDRKLLoss, "lam", NAN, "[0, inf]", "nan"),
    *ldr_margins(LDRKLLoss),
    Row("LDRKLLoss_margin_other_classes_lam_inf", "margin", ("3 classes", "(4, 4)"),
        loss=LDRKLLoss, options={"lam": INF, "margin": 1 - torch.eye(4)},
        inputs=(LOGITS, PROBABILITIES)),
    hyper(LDRKLLoss, "normalize", "l2", "None, 'softplus', 'l1'", "'l2'"),
    hyper(LDRKLLoss, "normalize", "L1", "'l1'", "'L1'"),
    hyper(LDRKLLoss, "normalize", True, "'l1'", "True"),
    hyper(LDRKLLoss, "normalize", "", "None", "''", id="empty"),
    *not_numbers(LDRLoss, "lam"),
    hyper(LDRLoss, "lam", -1.0, "[0, inf]", "-1.0"),
    hyper(LDRLoss, "lam", NAN, "[0, inf]", "nan"),
    hyper(LDRLoss, "lam", -1.0, "[0, inf]", "-1.0", id="-1_topk", topk=2),
    *ldr_margins(LDRLoss, divergence="euclidean"),
    hyper(LDRLoss, "divergence", "l2", "'kl', 'euclidean'", "'l2'"),
    hyper(LDRLoss, "divergence", "KL", "'kl'", "'KL'"),
    hyper(LDRLoss, "divergence", None, "'kl'", "None"),
    hyper(LDRLoss, "topk", 0, "at least 1", "got 0"),
    hyper(LDRLoss, "topk", -2, "at least 1", "got -2"),
    hyper(LDRLoss, "topk", 2.0, "an int", "float", "2.0", error=TypeError),
    hyper(LDRLoss, "topk", True, "an int", "bool", error=TypeError),
    hyper(LDRLoss, "topk", "2", "an int", "str", error=TypeError, id="str"),
    Row("LDRLoss_topk_4_of_3", "topk", ("at most 3", "number of classes", "got 4"), loss=LDRLoss,
        options={"topk": 4}, inputs=(LOGITS, TARGET)),
    Row("LDRLoss_topk_4_of_3_soft", "topk", ("at most 3", "got 4"), loss=LDRLoss,
        options={"topk": 4}, inputs=(LOGITS, PROBABILITIES)),
    *ldr_margins(CrammerSingerLoss),
    *ldr_margins(WestonWatkinsLoss),
    hyper(WestonWatkinsLoss, "normalize", "none", "'sum', 'mean'", "'none'"),
    hyper(WestonWatkinsLoss, "normalize", None, "'sum'", "None"),
    hyper(WestonWatkinsLoss, "normalize", "Mean", "'mean'", "'Mean'"),
    *not_numbers(TruncatedGCELoss, "q"),
    hyper(TruncatedGCELoss, "q", -0.1, "[0, 1]", "-0.1"),
    hyper(TruncatedGCELoss, "q", 1.1, "[0, 1]", "1.1"),
    *not_numbers(TruncatedGCELoss, "k"),
    hyper(TruncatedGCELoss, "k", -0.1, "[0, 1)", "-0.1"),
    hyper(TruncatedGCELoss, "k", 1.0, "[0, 1)", "1.0"),
    hyper(TruncatedGCELoss, "k", NAN, "[0, 1)", "nan"),
    hyper(TruncatedGCELoss, "mode", "cut", "'clamp', 'prune'", "'cut'"),
    hyper(TruncatedGCELoss, "mode", None, "'clamp', 'prune'", "None"),
    hyper(TruncatedGCELoss, "num_samples", 5, "None", "'clamp'", "5", error=TypeError),
    hyper(TruncatedGCELoss, "num_samples", None, "an int", "NoneType", error=TypeError,
          mode="prune", id="missing"),
    Row("TruncatedGCELoss_index_clamp", "index", ("None", "'clamp'"), TypeError, TruncatedGCELoss,
        {}, (LOGITS, TARGET, TARGET)),
    Row("TruncatedGCELoss_index_missing", "index", ("a tensor", "NoneType"), TypeError,
        TruncatedGCELoss, {"mode": "prune", "num_samples": 5}, (LOGITS, TARGET)),
    *(
        row
        for name in ("lam", "alpha", "prob_eps")
        for row in not_numbers(ALDRKLLoss, name, num_samples=5)
    ),
    hyper(ALDRKLLoss, "lam", 0.0, "(0, inf)", "0.0", num_samples=5),
    hyper(ALDRKLLoss, "lam", INF, "(0, inf)", "inf", num_samples=5),
    hyper(ALDRKLLoss, "alpha", 1.0, "(1, inf)", "1.0", num_samples=5),
    hyper(ALDRKLLoss, "alpha", NAN, "(1, inf)", "nan", num_samples=5),
    hyper(ALDRKLLoss, "prob_eps", -1e-5, "[0, inf)", "-1e-05", num_samples=5),
    hyper(ALDRKLLoss, "n_iter", 0, "at least 1", "0", num_samples=5),
    hyper(ALDRKLLoss, "n_iter", 1.0, "an int", "float", error=TypeError, num_samples=5),
    hyper(ALDRKLLoss, "n_iter", True, "an int", "bool", error=TypeError, num_samples=5),
    hyper(ALDRKLLoss, "margin_in_update", None, "True, False", "None", num_samples=5),
    hyper(ALDRKLLoss, "normalize", "l2", "'softplus-l1'", "'l2'", num_samples=5),
    hyper(ALDRKLLoss, "num_samples", 0, "at least 1", "0"),
    hyper(ALDRKLLoss, "num_samples", 1.0, "an int", "float", error=TypeError),
    *ldr_margins(ALDRKLLoss, torch.arange(N), num_samples=5),
    *(
        Row(f"{loss.__name__}_margin_other_classes_soft", "margin", ("3 classes", "(4,)"),
            loss=loss, options={"margin": torch.ones(4)}, inputs=(LOGITS, PROBABILITIES))
        for loss in (LDRKLLoss, LDRLoss, CrammerSingerLoss, WestonWatkinsLoss)
    ),
    *of_labels(),
    *layouts(),
    *robust(PseudoHuberLoss),
    *robust(CauchyLoss),
    *contrastive(InfoNCELoss, "query", "positive"),
    *info_nce(),
    *contrastive(NTXentLoss, "z1", "z2"),
    *further_contrastive(),
    *remembering(GlobalContrastiveLoss),
    *remembering(TwoWayGlobalContrastiveLoss),
    *retrieval_and_densities(),
    *faces(),
    *metric_learning(),
    *graphs(),
    *relations(),
    *prototypes(),
    *pairs(),
    *few_shot(),
    *metrix(),
    *calibration(),
    *evidential(),
    *imbalance(),
    hyper(CauchyLoss, "scale", "auto", "a number", "str", error=TypeError),
    *generative(),
    *unlearning(),
    *preference(DPOLoss),
    *preference(RobustDPOLoss),
    *preference(RPOLoss),
    *(
        row
        for loss in (DPOLoss, RPOLoss)
        for row in (
            *not_numbers(loss, "label_smoothing"),
            hyper(loss, "label_smoothing", -0.1, "[0, 1)", "-0.1"),
            hyper(loss, "label_smoothing", 1.0, "[0, 1)", "1.0"),
            hyper(loss, "label_smoothing", NAN, "[0, 1)", "nan"),
        )
    ),
    hyper(DPOLoss, "f_divergence", "kl", "'reverse_kl', 'forward_kl', 'js', 'alpha'", "'kl'"),
    hyper(DPOLoss, "f_divergence", "JS", "'js'", "'JS'"),
    hyper(DPOLoss, "f_divergence", None, "'js'", "None"),
    *not_numbers(DPOLoss, "alpha"),
    hyper(DPOLoss, "alpha", NAN, "(-inf, inf)", "nan", f_divergence="alpha"),
    hyper(DPOLoss, "alpha", INF, "(-inf, inf)", "inf"),
    hyper(DPOLoss, "reference_free", None, "True, False", "None"),
    hyper(DPOLoss, "length_normalize", "sum", "True, False", "'sum'"),
    *lengths(DPOLoss, ("chosen_lengths", "rejected_lengths"), 4, "length_normalize=False",
             length_normalize=True),
    *not_numbers(RobustDPOLoss, "flip_rate"),
    hyper(RobustDPOLoss, "flip_rate", -0.1, "[0, 0.5)", "-0.1"),
    hyper(RobustDPOLoss, "flip_rate", 0.5, "[0, 0.5)", "0.5"),
    hyper(RobustDPOLoss, "flip_rate", NAN, "[0, 0.5)", "nan"),
    *not_numbers(RPOLoss, "eta"),
    hyper(RPOLoss, "eta", -0.1, "[0, inf)", "-0.1"),
    hyper(RPOLoss, "eta", INF, "[0, inf)", "inf"),
    hyper(RPOLoss, "nll", "mean", "'sum', 'token_mean', 'sequence_mean'", "'mean'"),
    hyper(RPOLoss, "nll", None, "'sum'", "None"),
    *lengths(RPOLoss, ("chosen_lengths",), 4, "nll='sum'", nll="sequence_mean"),
    *preference(IPOLoss, "tau"),
    hyper(IPOLoss, "length_normalize", "sum", "True, False", "'sum'"),
    *lengths(IPOLoss, ("chosen_lengths", "rejected_lengths"), 4, "length_normalize=False",
             length_normalize=True),
    *(
        row
        for loss in (HingePreferenceLoss, EXOLoss, NCALoss, BCOPairLoss, SPPOLoss, APOLoss, AOTLoss,
                     DiscoPOPLoss, DPOPLoss)
        for row in preference(loss)
    ),
    *(
        row
        for loss in (DPOLoss, RPOLoss, IPOLoss, HingePreferenceLoss, NCALoss, BCOPairLoss, APOLoss,
                     DiscoPOPLoss, DPOPLoss, LogicPreferenceLoss)
        for row in doubts(loss, *[ANSWERS] * 4)
    ),
    *doubts(RDPOLengthLoss, *[ANSWERS] * 4, TARGET + 1, TARGET + 1),
    *doubts(RobustDPOLoss, *[ANSWERS] * 4, interval="[0, 0.5)"),
    *doubts(EXOLoss, *[ANSWERS] * 4, interval="(0, 1)"),
    *(row for loss in (SimPOLoss, ORPOLoss, CPOLoss) for row in doubts(loss, ANSWERS, ANSWERS)),
    *sparse(),
    *at_least_0(HingePreferenceLoss, "margin"),
    *at_least_0(HingePreferenceLoss, "nll_coef"),
    hyper(HingePreferenceLoss, "reference_free", None, "True, False", "None"),
    *not_numbers(EXOLoss, "label_smoothing"),
    hyper(EXOLoss, "label_smoothing", 0.0, "(0, 1)", "0.0"),
    hyper(EXOLoss, "label_smoothing", 1.0, "(0, 1)", "1.0"),
    hyper(EXOLoss, "label_smoothing", NAN, "(0, 1)", "nan"),
    hyper(BCOPairLoss, "delta", "mean", "'running'", "'mean'"),
    hyper(BCOPairLoss, "delta", INF, "(-inf, inf)", "inf"),
    hyper(BCOPairLoss, "delta", NAN, "(-inf, inf)", "nan"),
    hyper(BCOPairLoss, "delta", None, "a number", "NoneType", error=TypeError),
    hyper(BCOPairLoss, "delta", True, "a number", "bool", error=TypeError),
    *(
        called(BCOPairLoss, "update", f"none_{delta}", ("True, False", "None"), *[ANSWERS] * 4,
               None, delta=delta)
        for delta in (0.0, "running")
    ),
    called(BCOPairLoss, "policy_rejected_logps", "short_running", ("(4,)", "got (3,)"), ANSWERS,
           ANSWERS[:3], ANSWERS, ANSWERS, delta="running"),
    hyper(SPPOLoss, "halve", 0.5, "True, False", "0.5"),
    *(
        row
        for name, at in (("win_prob", 4), ("lose_prob", 5))
        for row in (
            called(SPPOLoss, name, "int", ("floating", "int64"), *judged(at, TARGET),
                   error=TypeError),
            called(SPPOLoss, name, "number", ("a tensor", "float"), *judged(at, 0.5),
                   error=TypeError),
            called(SPPOLoss, name, "column", ("(4,)", "got (4, 1)"), *judged(at, WINS[:, None])),
            called(SPPOLoss, name, "meta", ("device cpu", "meta"), *judged(at, WINS.to("meta"))),
            called(SPPOLoss, name, "above_1", ("[0, 1]", "got 1.5"), *judged(at, WINS + 1.0)),
            called(SPPOLoss, name, "below_0", ("[0, 1]", "got -0.5"), *judged(at, WINS - 1.0)),
            called(SPPOLoss, name, "nan", ("[0, 1]", "got nan"), *judged(at, WINS * NAN)),
            called(SPPOLoss, name, "nan_beside_weight_0", ("[0, 1]", "got nan"),
                   *judged(at, WINS * NAN), keywords={"weight": torch.tensor([0, 1.0, 1.0, 1.0])}),
        )
    ),
    called(SPPOLoss, "win_prob", "missing", ("lose_prob", "got None"), *judged(4, None)),
    hyper(APOLoss, "variant", "up", "'zero', 'down'", "'up'"),
    hyper(AOTLoss, "paired", None, "True, False", "None"),
    *not_numbers(AOTLoss, "label_smoothing"),
    hyper(AOTLoss, "label_smoothing", 1.0, "[0, 1)", "1.0"),
    hyper(AOTLoss, "label_smoothing", -0.1, "[0, 1)", "-0.1"),
    called(AOTLoss, "weight", "given", ("of ranks", "a tensor"), *[ANSWERS] * 4,
           keywords={"weight": torch.ones(4)}),
    called(AOTLoss, "policy_chosen_logps", "matrix", ("(N,)", "(4, 1)"), *[ANSWERS[:, None]] * 4),
    *not_numbers(DiscoPOPLoss, "tau"),
    hyper(DiscoPOPLoss, "tau", 0.0, "(0, 1)", "0.0"),
    hyper(DiscoPOPLoss, "tau", 1.0, "(0, 1)", "1.0"),
    *at_least_0(DPOPLoss, "lam"),
    *preference(RDPOLengthLoss, further=(TARGET + 1, TARGET + 1)),
    *at_least_0(RDPOLengthLoss, "alpha"),
    *lengths(RDPOLengthLoss, ("chosen_lengths", "rejected_lengths"), 4, ""),
    *(
        row
        for loss, beta in (
            (SimPOLoss, "beta"),
            (ORPOLoss, "lam"),
            (CPOLoss, "beta"),
            (LogicPreferenceLoss, "beta"),
        )
        for row in (
            *not_numbers(loss, beta),
            hyper(loss, beta, 0.0, "(0, inf)", "got 0.0"),
            hyper(loss, beta, INF, "(0, inf)", "inf"),
            called(loss, "policy_chosen_logps", "int", ("floating", "int64"), TARGET, ANSWERS,
                   error=TypeError),
            called(loss, "policy_rejected_logps", "none", ("a tensor", "NoneType"), ANSWERS, None,
                   error=TypeError),
            called(loss, "policy_rejected_logps", "column", ("(4,)", "got (4, 1)"), ANSWERS,
                   ANSWERS[:, None]),
            called(loss, "weight", "column", ("(4,)", "got (4, 1)"), ANSWERS, ANSWERS,
                   keywords={"weight": torch.ones(4, 1)}),
        )
    ),
    *not_numbers(SimPOLoss, "gamma"),
    hyper(SimPOLoss, "gamma", INF, "(-inf, inf)", "inf"),
    *not_numbers(SimPOLoss, "alpha"),
    hyper(SimPOLoss, "alpha", NAN, "(-inf, inf)", "nan"),
    *(
        row
        for loss in (SimPOLoss, CPOLoss)
        for row in (
            *not_numbers(loss, "label_smoothing"),
            hyper(loss, "label_smoothing", 1.0, "[0, 1)", "1.0"),
            hyper(loss, "label_smoothing", -0.1, "[0, 1)", "-0.1"),
        )
    ),
    *(
        hyper(loss, "average", None, "True, False", "None")
        for loss in (SimPOLoss, ORPOLoss, LogicPreferenceLoss)
    ),
    *lengths(SimPOLoss, ("chosen_lengths", "rejected_lengths"), 2, "average=True", average=False),
    *lengths(ORPOLoss, ("chosen_lengths", "rejected_lengths"), 2, "average=True", average=False),
    *lengths(LogicPreferenceLoss, ("chosen_lengths", "rejected_lengths"), 4, "average=True",
             average=False),
    *(
        called(loss, name, "above_0", ("<= 0", "got 0.5"),
               *(ANSWERS + 1.5 if i == at else ANSWERS for i in range(2)))
        for loss in (ORPOLoss, LogicPreferenceLoss)
        for at, name in enumerate(("policy_chosen_logps", "policy_rejected_logps"))
    ),
    called(ORPOLoss, "policy_chosen_logps", "nan", ("<= 0", "got nan"), ANSWERS * NAN, ANSWERS),
    called(LogicPreferenceLoss, "reference_rejected_logps", "above_0", ("<= 0", "got 3"),
           ANSWERS, ANSWERS, ANSWERS, -ANSWERS),
    called(LogicPreferenceLoss, "reference_rejected_logps", "alone_missing",
           ("reference_chosen_logps", "got None"), ANSWERS, ANSWERS, ANSWERS),
    hyper(ORPOLoss, "nll", True, "'sequence_mean', 'token_mean', 'none'", "True"),
    Row("ORPOLoss_token_mean_of_averages", "average", ("False", "got True"), loss=ORPOLoss,
        options={"nll": "token_mean"}),
    *at_least_0(CPOLoss, "bc_coef"),
    hyper(CPOLoss, "loss_type", "simpo", "'sigmoid', 'hinge', 'ipo'", "'simpo'"),
    hyper(CPOLoss, "nll", "none", "'sum'", "'none'"),
    hyper(CPOLoss, "label_smoothing", 0.1, "expected 0 with loss_type='ipo'", "got 0.1",
          loss_type="ipo", id="with_ipo"),
    *lengths(CPOLoss, ("chosen_lengths",), 2, "nll='sum'", nll="sequence_mean"),
    hyper(LogicPreferenceLoss, "name", "dpo", "'orpo'", "'dpo'"),
    hyper(LogicPreferenceLoss, "numerator", ("TT",), "expected None with name='orpo'", "('TT',)"),
    hyper(LogicPreferenceLoss, "denominator", ("TT",), "expected None", "('TT',)"),
    hyper(LogicPreferenceLoss, "numerator", (), "'TT', 'TF'", "()", name=None, id="of_0"),
    hyper(LogicPreferenceLoss, "numerator", "TT", "'TT', 'TF'", "'TT'", name=None, id="str"),
    hyper(LogicPreferenceLoss, "denominator", ("TX",), "'TT', 'TF'", "'TX'", name=None,
          numerator=("TT",), id="unknown"),
    hyper(LogicPreferenceLoss, "denominator", None, "'TT', 'TF'", "None", name=None,
          numerator=("TT",), id="missing"),
    *(
        row
        for loss, kl in ((KTOLoss, (0.0,)), (BCOLoss, ()))
        for row in (
            *not_numbers(loss, "beta"),
            hyper(loss, "beta", 0.0, "(0, inf)", "got 0.0"),
            called(loss, "policy_logps", "int", ("floating", "int64"), TARGET, ANSWERS, GOOD, *kl,
                   error=TypeError),
            called(loss, "reference_logps", "none", ("a tensor", "NoneType"), ANSWERS, None, GOOD,
                   *kl, error=TypeError),
            called(loss, "reference_logps", "column", ("(4,)", "got (4, 1)"), ANSWERS,
                   ANSWERS[:, None], GOOD, *kl),
            called(loss, "desirable", "int", ("bool", "int64"), ANSWERS, ANSWERS, GOOD.long(), *kl,
                   error=TypeError),
            called(loss, "desirable", "none", ("a tensor", "NoneType"), ANSWERS, ANSWERS, None, *kl,
                   error=TypeError),
            called(loss, "desirable", "short", ("(4,)", "got (3,)"), ANSWERS, ANSWERS, GOOD[:3],
                   *kl),
            called(loss, "desirable", "meta", ("device cpu", "meta"), ANSWERS, ANSWERS,
                   GOOD.to("meta"), *kl),
            called(loss, "weight", "column", ("(4,)", "got (4, 1)"), ANSWERS, ANSWERS, GOOD, *kl,
                   keywords={"weight": torch.ones(4, 1)}),
        )
    ),
    *at_least_0(KTOLoss, "desirable_weight"),
    *at_least_0(KTOLoss, "undesirable_weight"),
    hyper(KTOLoss, "process_group", 3, "a torch.distributed group", "int", error=TypeError),
    *(
        called(KTOLoss, argument, id, says, ANSWERS, ANSWERS, GOOD, *further, error=error)
        for argument, id, says, further, error in (
            ("kl", "no_estimate", ("kl_policy_logps", "got neither"), (), ValueError),
            ("kl", "two", ("not both", "got both"), (0.0, ANSWERS, ANSWERS), ValueError),
            ("kl_reference_logps", "alone", ("a tensor", "got None"), (None, ANSWERS), ValueError),
            ("kl_policy_logps", "alone", ("a tensor", "None"), (None, None, ANSWERS), ValueError),
            ("kl_policy_logps", "short", ("(4,)", "(3,)"), (None, ANSWERS[:3], ANSWERS),
             ValueError),
            ("kl_policy_logps", "short_both", ("(4,)", "(3,)"), (None, ANSWERS[:3], ANSWERS[:3]),
             ValueError),
            ("kl", "vector", ("0-dim", "(4,)"), (ANSWERS,), ValueError),
            ("kl", "nan_tensor", ("finite", "nan"), (torch.tensor(NAN),), ValueError),
            ("kl", "nan", ("(-inf, inf)", "nan"), (NAN,), ValueError),
            ("kl", "str", ("a number", "str"), ("auto",), TypeError),
            ("kl", "int_tensor", ("floating", "int64"), (torch.tensor(1),), TypeError),
        )
    ),
    called(BCOLoss, "update", "none", ("True, False", "None"), ANSWERS, ANSWERS, GOOD, None),
    *self_play(),
    *not_numbers(CPLLoss, "alpha"),
    hyper(CPLLoss, "alpha", 0.0, "(0, inf)", "0.0"),
    hyper(CPLLoss, "bias", 0.0, "(0, 1]", "0.0"),
    hyper(CPLLoss, "bias", 1.5, "(0, 1]", "1.5"),
    hyper(CPLLoss, "gamma", 0.0, "(0, 1]", "0.0"),
    hyper(CPLLoss, "gamma", 1.5, "(0, 1]", "1.5"),
    *at_least_0(CPLLoss, "bc_coef"),
    *(
        called(CPLLoss, argument, id, says, *inputs, error=error)
        for argument, id, says, inputs, error in (
            ("logps_1", "vector", ("(N, S)", "(4,)"), (ANSWERS, ANSWERS, WINS), ValueError),
            ("logps_1", "no_steps", ("S >= 1", "(4, 0)"), (LOGITS[:, :0], LOGITS, WINS),
             ValueError),
            ("logps_1", "none", ("a tensor", "None"), (None, LOGITS, WINS), TypeError),
            ("logps_2", "none", ("a tensor", "None"), (LOGITS, None, WINS), TypeError),
            ("logps_2", "short", ("(4, 3)", "(4, 2)"), (LOGITS, LOGITS[:, :2], WINS), ValueError),
            ("label", "int", ("floating", "int64"), (LOGITS, LOGITS, TARGET), TypeError),
            ("label", "column", ("(4,)", "(4, 1)"), (LOGITS, LOGITS, WINS[:, None]), ValueError),
            ("label", "above_1", ("[0, 1]", "1.5"), (LOGITS, LOGITS, WINS + 1), ValueError),
            ("label", "nan", ("[0, 1]", "nan"), (LOGITS, LOGITS, WINS * NAN), ValueError),
            ("label", "meta", ("cpu", "meta"), (LOGITS, LOGITS, WINS.to("meta")), ValueError),
            ("reference_2", "missing", ("a tensor", "None"), (LOGITS, LOGITS, WINS, LOGITS),
             ValueError),
            ("reference_1", "missing", ("a tensor", "None"), (LOGITS, LOGITS, WINS, None, LOGITS),
             ValueError),
            ("reference_1", "row", ("(4, 3)", "(3,)"), (LOGITS, LOGITS, WINS, LOGITS[0], LOGITS),
             ValueError),
        )
    ),
    called(CPLLoss, "weight", "column", ("(4,)", "(4, 1)"), LOGITS, LOGITS, WINS,
           keywords={"weight": torch.ones(4, 1)}),
    called(CPLLoss, "weight", "list", ("a tensor", "list"), LOGITS, LOGITS, WINS,
           keywords={"weight": [1.0] * 4}, error=TypeError),
    called(CPLLoss, "label", "above_1_one_weight", ("[0, 1]", "1.5"), LOGITS, LOGITS, WINS + 1,
           keywords={"weight": torch.ones(1)}),
    *of_segments(PartialReturnPreferenceLoss, ("partial_return_1", "partial_return_2")),
    *of_segments(RegretPreferenceLoss, VALUED),
    *alike(BradleyTerryLoss, ("chosen_rewards", "rejected_rewards")),
    *alike(BradleyTerryLoss, ("chosen_rewards", "rejected_rewards", "margin")),
    *alike(TieAwareBradleyTerryLoss, ("chosen_rewards", "rejected_rewards"), GOOD),
    *at_least_0(BradleyTerryLoss, "center_coef"),
    *not_numbers(BradleyTerryLoss, "label_smoothing"),
    hyper(BradleyTerryLoss, "label_smoothing", -0.1, "[0, 1)", "-0.1"),
    hyper(BradleyTerryLoss, "label_smoothing", 1.0, "[0, 1)", "1.0"),
    hyper(BradleyTerryLoss, "label_smoothing", NAN, "[0, 1)", "nan"),
    *at_least_0(TieAwareBradleyTerryLoss, "tie_weight"),
    called(BradleyTerryLoss, "margin", "int", ("floating", "int64"), ANSWERS, ANSWERS, TARGET,
           error=TypeError),
    called(BradleyTerryLoss, "margin", "number", ("a tensor", "float"), ANSWERS, ANSWERS, 1.0,
           error=TypeError),
    called(TieAwareBradleyTerryLoss, "tie", "int", ("bool", "int64"), ANSWERS, ANSWERS, TARGET,
           error=TypeError),
    called(TieAwareBradleyTerryLoss, "tie", "none", ("a tensor", "None"), ANSWERS, ANSWERS, None,
           error=TypeError),
    *written(GRPOLoss, "policy_token_logps", "old_token_logps", "advantages", "mask",
             "reference_token_logps", beta=0.1),
    *not_numbers(GRPOLoss, "eps_low"),
    hyper(GRPOLoss, "eps_low", -0.1, "[0, 1]", "-0.1"),
    hyper(GRPOLoss, "eps_low", 1.5, "[0, 1]", "1.5"),
    hyper(GRPOLoss, "eps_high", -0.1, "[0, inf]", "-0.1"),
    hyper(GRPOLoss, "eps_high", NAN, "[0, inf]", "nan"),
    hyper(GRPOLoss, "eps_high", "0.2", "a number", "str", error=TypeError),
    hyper(GRPOLoss, "eps_high", 0.0, "(0, inf]", "0.0", variant="cispo", id="0_of_cispo"),
    *at_least_0(GRPOLoss, "beta"),
    hyper(GRPOLoss, "variant", "gspo", "'grpo', 'bnpo'", "'gspo'"),
    hyper(GRPOLoss, "level", "group", "'token', 'sequence'", "'group'"),
    hyper(GRPOLoss, "max_length", None, "an int", "NoneType", error=TypeError, variant="dr_grpo"),
    hyper(GRPOLoss, "max_length", 0, "at least 1", "0", variant="dr_grpo"),
    hyper(GRPOLoss, "max_length", 9, "None with variant='grpo'", "9"),
    hyper(GRPOLoss, "delta", 1.2, "(1.2, inf)", "1.2"),
    hyper(GRPOLoss, "delta", "4", "a number", "str", error=TypeError),
    hyper(GRPOLoss, "delta", 4.0, "None with variant='cispo'", "4.0", variant="cispo",
          id="of_cispo"),
    called(GRPOLoss, "reference_token_logps", "missing", ("beta=0.1", "None"), LOGITS, LOGITS,
           ANSWERS, torch.ones(4, 3), error=TypeError, beta=0.1),
    called(GRPOLoss, "reference_token_logps", "not_used", ("None with beta=0", "Tensor"), LOGITS,
           LOGITS, ANSWERS, torch.ones(4, 3), LOGITS, error=TypeError),
    *written(StableReinforceLoss, "policy_token_logps", "old_token_logps", "advantages", "mask"),
    *not_numbers(StableReinforceLoss, "clip_eps"),
    hyper(StableReinforceLoss, "clip_eps", 1.5, "[0, 1]", "1.5"),
    hyper(StableReinforceLoss, "ratio_min", 0.0, "(0, 1)", "0.0"),
    hyper(StableReinforceLoss, "ratio_min", 1.0, "(0, 1)", "1.0"),
    hyper(StableReinforceLoss, "ratio_max", 1.0, "(1, inf)", "1.0"),
    hyper(StableReinforceLoss, "ratio_max", INF, "(1, inf)", "inf"),
    *written(DecoupledPPOLoss, "policy_token_logps", "proximal_token_logps",
             "behavior_token_logps", "advantages", "mask"),
    *not_numbers(DecoupledPPOLoss, "clip_eps"),
    hyper(DecoupledPPOLoss, "clip_eps", 1.5, "[0, 1]", "1.5"),
    hyper(DecoupledPPOLoss, "clip_eps_high", -0.1, "[0, inf]", "-0.1"),
    hyper(DecoupledPPOLoss, "dual_clip", 1.0, "(1, inf)", "1.0"),
    hyper(DecoupledPPOLoss, "dual_clip", "3", "a number", "str", error=TypeError),
    *not_numbers(DecoupledPPOLoss, "behave_cap"),
    hyper(DecoupledPPOLoss, "behave_cap", 0.5, "[1, inf]", "0.5"),
    hyper(DecoupledPPOLoss, "behave_mode", "drop", "'mask', 'clamp', 'unweighted'", "'drop'"),
    *written(NFTLoss, "policy_token_logps", "old_token_logps", "mask", "correct", "correct_rate"),
    *not_numbers(NFTLoss, "eps"),
    hyper(NFTLoss, "eps", 0.0, "(0, 1]", "0.0"),
    hyper(NFTLoss, "eps", 1.5, "(0, 1]", "1.5"),
    *at_least_0(NFTLoss, "neg_weight"),
    hyper(NFTLoss, "prompt_weight", None, "'dr_grpo', 'grpo', 'none'", "None"),
    hyper(NFTLoss, "ratio_level", "group", "'token', 'sequence'", "'group'"),
    hyper(NFTLoss, "rate_clip", 0.02, "two numbers", "float", error=TypeError),
    hyper(NFTLoss, "rate_clip", (0.02,), "two numbers", "(0.02,)"),
    hyper(NFTLoss, "rate_clip", (0.0, 0.98), "(0, 1)", "0.0"),
    hyper(NFTLoss, "rate_clip", (0.02, 1.0), "(0, 1)", "1.0"),
    hyper(NFTLoss, "rate_clip", (0.9, 0.1), "the smaller number first", "(0.9, 0.1)"),
    hyper(NFTLoss, "rate_clip", (0.1, "0.9"), "a number", "str", error=TypeError),
    hyper(NFTLoss, "log_ratio_max", 0.0, "(0, inf)", "0.0"),
    hyper(NFTLoss, "log_ratio_max", INF, "(0, inf)", "inf"),
    *not_numbers(SRPOLoss, "alpha"),
    hyper(SRPOLoss, "alpha", 1.5, "[0, 1]", "1.5"),
    hyper(SRPOLoss, "alpha", -0.5, "[0, 1]", "-0.5"),
    hyper(SRPOLoss, "beta", 0.0, "(0, inf)", "0.0"),
    *(
        row
        for i, name in enumerate(DRAFTS)
        for row in (
            called(SRPOLoss, name, "none", ("a tensor", "NoneType"), *one_of_12(i, None),
                   error=TypeError),
            called(SRPOLoss, name, "int", ("floating", "int64"), *one_of_12(i, TARGET),
                   error=TypeError),
            *(
                (called(SRPOLoss, name, "short", ("(4,)", "got (3,)"), *one_of_12(i, ANSWERS[:3])),)
                * (i > 0)
            ),
        )
    ),
    hyper(LinearPreferenceLoss, "loss", torch.nn.MSELoss(), "PairwisePreferenceLoss", "MSELoss",
          error=TypeError, id="mse"),
    hyper(LinearPreferenceLoss, "loss", DPOLoss, "PairwisePreferenceLoss", "type", error=TypeError,
          id="class"),
    hyper(LinearPreferenceLoss, "loss", SRPOLoss(), "two answers", "SRPOLoss, which needs",
          "policy_chosen_given_rejected_logps", error=TypeError, id="srpo"),
    hyper(LinearPreferenceLoss, "ignore_index", 1.5, "an int", "float", error=TypeError),
    hyper(LinearPreferenceLoss, "shift", None, "True, False", "None"),
    hyper(LinearPreferenceLoss, "temperature", 0.0, "(0, inf)", "0.0"),
    *not_numbers(LinearPreferenceLoss, "temperature"),
    hyper(LinearPreferenceLoss, "softcap", -1.0, "(0, inf)", "-1.0"),
    hyper(LinearPreferenceLoss, "softcap", "1", "a number", "str", error=TypeError, id="str"),
    hyper(LinearPreferenceLoss, "reduction", "average", "'mean'", "'average'"),
    *(
        called(LinearPreferenceLoss, argument, id, says, *stacked(**{argument: value}), error=error)
        for argument, id, says, value, error in STACKED
    ),
    called(LinearPreferenceLoss, "labels", "float_beside_weight", ("integers", "float32"),
           *stacked(labels=IDS.float()), keywords={"weight": torch.tensor([1.0, 0.0])},
           error=TypeError),
    called(LinearPreferenceLoss, "reference_logps", "both", ("None beside", "Tensor"),
           *stacked(reference_logits=TOKENS, reference_logps=ANSWERS)),
    *(
        called(LinearPreferenceLoss, "weight", id, says, *stacked(), keywords={"weight": value},
               error=error)
        for id, says, value, error in (
            ("rows", ("(2,)", "got (4,)"), torch.ones(4), ValueError),
            ("column", ("(2,)", "got (2, 1)"), torch.ones(2, 1), ValueError),
            ("int", ("float or bool", "int64"), torch.ones(2).long(), TypeError),
            ("list", ("a tensor", "list"), [1.0, 1.0], TypeError),
        )
    ),
    hyper(SequenceNLLLoss, "normalize", "mean", "'token', 'sequence', 'sum'", "'mean'"),
    hyper(SequenceNLLLoss, "normalize", None, "'token'", "None"),
    hyper(SequenceNLLLoss, "reduction", "average", "'mean'", "'average'"),
    *lengths(SequenceNLLLoss, ("lengths",), 1, "normalize='sum'"),
    called(SequenceNLLLoss, "policy_logps", "int", ("floating", "int64"), TARGET, TARGET + 1,
           error=TypeError),
    called(SequenceNLLLoss, "policy_logps", "none", ("a tensor", "NoneType"), None, TARGET + 1,
           error=TypeError),
    *not_numbers(P3OLoss, "clip"),
    hyper(P3OLoss, "clip", 0.0, "(0, inf]", "got 0.0"),
    hyper(P3OLoss, "clip", NAN, "(0, inf]", "nan"),
    hyper(P3OLoss, "variant", "v1", "'separate', 'joint'", "'v1'"),
    *numbers_of_answers(P3OLoss, ("policy_logps_1", "policy_logps_2", "old_logps_1", "old_logps_2",
                                  "reward_1", "reward_2")),
    *not_numbers(DirectAdvantageLoss, "beta"),
    hyper(DirectAdvantageLoss, "beta", 0.0, "(0, inf)", "got 0.0"),
    hyper(DirectAdvantageLoss, "beta", INF, "(0, inf)", "got inf"),
    *numbers_of_answers(DirectAdvantageLoss, ("policy_step_logps", "reference_step_logps",
                                              "advantage")),
    hyper(FDPGLoss, "divergence", "forward_kl", "'kl', 'reverse_kl', 'js'", "'forward_kl'"),
    hyper(FDPGLoss, "use_baseline", None, "True, False", "None"),
    hyper(FDPGLoss, "baseline_window", 0, "at least 1", "got 0"),
    hyper(FDPGLoss, "baseline_window", 10.0, "an int", "float", error=TypeError),
    *not_numbers(FDPGLoss, "max_log_ratio"),
    hyper(FDPGLoss, "max_log_ratio", 0.0, "(0, inf)", "got 0.0"),
    hyper(FDPGLoss, "max_log_ratio", INF, "(0, inf)", "got inf"),
    *numbers_of_answers(FDPGLoss, ("policy_logps", "target_log_scores", "proposal_logps"), 0.0),
    *(
        called(FDPGLoss, "log_z", id, says, ANSWERS, ANSWERS, ANSWERS, value, error=error)
        for id, says, value, error in (
            ("none", ("a number", "NoneType"), None, TypeError),
            ("inf", ("(-inf, inf)", "got inf"), INF, ValueError),
            ("int_tensor", ("floating", "int64"), torch.tensor(1), TypeError),
            ("short", ("(4,)", "got (3,)"), ANSWERS[:3], ValueError),
            ("column", ("(4,)", "got (4, 1)"), ANSWERS[:, None], ValueError),
        )
    ),
    called(FDPGLoss, "update", "none", ("True, False", "None"), *[ANSWERS] * 3, 0.0, None),
    *at_least_0(SuperHFLoss, "kl_coef"),
    *at_least_0(SuperHFLoss, "inverse_coef"),
    hyper(SuperHFLoss, "ignore_index", 1.0, "an int", "float", error=TypeError),
    hyper(SuperHFLoss, "shift", None, "True, False", "None"),
    *(
        changed(SuperHFLoss, WRITTEN, name, id, says, value, error)
        for name, id, says, value, error in (
            ("logits", "rows", ("(N, T, V)", "(2, 3)"), torch.zeros(2, 3), ValueError),
            ("logits", "int", ("floating", "int64"), torch.zeros(2, 3, 4).long(), TypeError),
            ("logits", "streamed", ("a tensor", "LinearLogits"),
             LinearLogits(torch.zeros(2, 3, 2), torch.zeros(4, 2)), TypeError),
            ("labels", "float", ("integers", "float32"), torch.zeros(2, 3), TypeError),
            ("labels", "shifted", ("(2, 3)", "(2, 2)"), torch.ones(2, 2).long(), ValueError),
            ("labels", "V", ("[0, 4)", "got 4"), torch.full((2, 3), 4), ValueError),
            ("reference_logits", "none", ("a tensor", "NoneType"), None, TypeError),
            ("reference_logits", "vocabulary", ("(2, 3, 4)", "(2, 3, 5)"), torch.zeros(2, 3, 5),
             ValueError),
            ("reference_logits", "shifted", ("(2, 3, 4)", "(2, 2, 4)"), torch.zeros(2, 2, 4),
             ValueError),
            ("mask", "shifted", ("(2, 3)", "(2, 2)"), torch.ones(2, 2), ValueError),
            ("mask", "two", ("0 and 1", "got 2"), torch.full((2, 3), 2.0), ValueError),
        )
    ),
    called(SuperHFLoss, "weight", "tokens", ("(2,)", "(2, 3)"), *WRITTEN.values(),
           keywords={"weight": torch.ones(2, 3)}),
    *at_least_0(MartingaleLoss, "discount"),
    *(
        changed(MartingaleLoss, PATHS, name, id, says, value, error)
        for name, id, says, value, error in (
            ("values", "none", ("a tensor", "NoneType"), None, TypeError),
            ("values", "int", ("floating", "int64"), torch.zeros(2, 3).long(), TypeError),
            ("values", "long", ("(2, 3) or (2, 4)", "(2, 5)"), torch.zeros(2, 5), ValueError),
            ("values", "row", ("(2, 3) or (2, 4)", "got (3,)"), torch.zeros(3), ValueError),
            ("values", "short", ("(2, 3) or (2, 4)", "(1, 3)"), torch.zeros(1, 3), ValueError),
            ("rewards", "vector", ("(N, K)", "(3,)"), torch.zeros(3), ValueError),
            ("rewards", "no_steps", ("K >= 1", "(2, 0)"), torch.zeros(2, 0), ValueError),
            ("rewards", "list", ("a tensor", "list"), [[0.0] * 3] * 2, TypeError),
            ("rewards", "meta", ("device cpu", "meta"), torch.zeros(2, 3).to("meta"), ValueError),
            ("terminal", "column", ("(2,)", "(2, 1)"), torch.zeros(2, 1), ValueError),
            ("terminal", "number", ("a tensor", "float"), 0.0, TypeError),
            ("terminal", "meta", ("device cpu", "meta"), torch.zeros(2).to("meta"), ValueError),
            ("dt", "zero", ("(0, inf)", "got 0.0"), 0.0, ValueError),
            ("dt", "none", ("a number", "NoneType"), None, TypeError),
            ("dt", "int_tensor", ("floating", "int64"), torch.ones(3).long(), TypeError),
            ("dt", "of_trajectories", ("(3,)", "got (2,)"), torch.ones(2), ValueError),
            ("dt", "column", ("(2, 3)", "got (2, 1)"), torch.ones(2, 1), ValueError),
            ("dt", "negative", (">= 0", "got -1"), -torch.ones(3), ValueError),
            ("dt", "nan", ("finite", "got nan"), torch.full((2, 3), NAN), ValueError),
            ("dt", "inf", ("finite", "got inf"), torch.full((3,), INF), ValueError),
            ("dt", "meta", ("device cpu", "meta"), torch.ones(3).to("meta"), ValueError),
        )
    ),
    called(MartingaleLoss, "weight", "steps", ("(2,)", "(2, 3)"), *PATHS.values(),
           keywords={"weight": torch.ones(2, 3)}),
    hyper(TargetSurrogateLoss, "loss", None, "a loss or a function", "NoneType", error=TypeError),
    hyper(TargetSurrogateLoss, "loss", "mse", "a loss or a function", "str", error=TypeError),
    *not_numbers(TargetSurrogateLoss, "eta", loss=torch.square),
    hyper(TargetSurrogateLoss, "eta", 0.0, "(0, inf)", "got 0.0", loss=torch.square),
    hyper(TargetSurrogateLoss, "eta", INF, "(0, inf)", "got inf", loss=torch.square),
    hyper(TargetSurrogateLoss, "divergence", "l2", "'euclidean', 'kl'", "'l2'", loss=torch.square),
    Row("TargetSurrogateLoss_anchor_missing", "anchor", ("anchor(z, ...)", "got none"),
        RuntimeError, TargetSurrogateLoss, {"loss": torch.square}, (LOGITS,)),
    *several_views(),
)  # fmt: skip
