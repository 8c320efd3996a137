"""One table of cases, from which every generic test is parametrised.

Of each class the first case runs in the default profile, the others in the wide one. A new loss
is one entry.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
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
    NormalizedCrossEntropyLoss,
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
    StableMaxCrossEntropyLoss,
    StableReinforceLoss,
    SupConLoss,
    SuperHFLoss,
    SymmetricConsistencyLoss,
    SymmetricCrossEntropyLoss,
    TargetSurrogateLoss,
    TaylorSoftmaxLoss,
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
)

K = 5


@dataclass(frozen=True)
class Case:
    """A loss and a function that makes its inputs, as check_loss takes them."""

    name: str
    loss: Callable[[], Loss]
    inputs: Callable[..., tuple[torch.Tensor, ...]]
    #: Checks of check_loss that do not hold, each with the reason.
    exclude: Mapping[str, str] = field(default_factory=dict)


def labels(n, dtype, generator):
    logits = torch.randn(n, K, dtype=dtype, generator=generator)
    return logits, torch.randint(K, (n,), generator=generator)


def two_classes(n, dtype, generator):
    logits, target = labels(n, dtype, generator)
    return logits[:, :2], target % 2


def ignored_labels(n, dtype, generator):
    logits, target = labels(n, dtype, generator)
    target[1::2] = -100
    return logits, target


def pixels(n, dtype, generator):
    logits = torch.randn(n, K, 2, 3, dtype=dtype, generator=generator)
    return logits, torch.randint(K, (n, 2, 3), generator=generator)


def tokens(n, dtype, generator):
    logits = torch.randn(n, 3, K, dtype=dtype, generator=generator)
    target = torch.randint(K, (n, 3), generator=generator)
    target[:, 1:2] = -100
    return logits, target


#: Samples in the dataset of the losses that remember them.
REMEMBERED = 7


def indexed(inputs):
    """Add dataset indices to class-target inputs."""

    def with_index(n, dtype, generator):
        logits, target = inputs(n, dtype, generator)
        index = torch.arange(target.numel()).view(target.shape) % REMEMBERED
        return logits, target, index

    return with_index


def probabilities(n, dtype, generator):
    """Draw class probabilities in sixteenths: exact, and of sum 1, in bfloat16 too."""
    logits, _ = labels(n, dtype, generator)
    drawn = torch.randint(K, (n, 16 - K), generator=generator)
    counts = torch.nn.functional.one_hot(drawn, K).sum(1) + 1
    return logits, counts.to(dtype) / 16


def perturbed(inputs, candidates=()):
    """Add logits of perturbed inputs, or of several candidates for them, before the target."""

    def with_perturbed(n, dtype, generator):
        logits, target = inputs(n, dtype, generator)
        shape = (*logits.shape[:1], *candidates, *logits.shape[1:])
        return logits, torch.randn(shape, dtype=dtype, generator=generator), target

    return with_perturbed


def answers(*shape, references=True, lengths=0):
    """Draw log-probabilities of pairs of answers, of a policy and a reference, and lengths."""

    def draw(n, dtype, generator):
        size = (4 if references else 2, n, *shape)
        logps = torch.randn(size, dtype=dtype, generator=generator)
        counts = torch.randint(1, 9, (lengths, n, *shape), generator=generator)
        return *logps, *counts

    return draw


def doubted(inputs):
    """Add the probability, of each pair, that its label is wrong."""

    def draw(n, dtype, generator):
        given = inputs(n, dtype, generator)
        return *given, 0.05 + 0.4 * torch.rand(n, dtype=dtype, generator=generator)

    return draw


def kept_tokens(n, dtype, generator):
    """Draw log-probabilities of the tokens of pairs, and masks."""
    logps = [torch.randn(n, 3 + i % 2, dtype=dtype, generator=generator) for i in range(4)]
    masks = [torch.rand(n, 3 + i, dtype=dtype, generator=generator) for i in range(2)]
    return *logps, *masks


def without_doubt(*claims):
    """Leave out claims that are made of a loss without label_smoothing per pair."""
    return dict.fromkeys((f"property:{c}" for c in claims), "declared without label_smoothing")


def judged(probabilities):
    """Add that many probabilities to win, of each pair's answers."""

    def draw(n, dtype, generator):
        logps = answers()(n, dtype, generator)
        return *logps, *torch.rand(probabilities, n, dtype=dtype, generator=generator)

    return draw


def unlikely(*lengths, **options):
    """Draw log-probabilities of pairs that are below 0, and lengths."""

    def draw(n, dtype, generator):
        out = answers(*lengths, **options)(n, dtype, generator)
        return tuple(-x.abs() - 0.125 if x.dtype.is_floating_point else x for x in out)

    return draw


def thumbs(kl=()):
    """Draw log-probabilities of single answers, and which are good."""

    def draw(n, dtype, generator):
        logps = torch.randn(2, n, dtype=dtype, generator=generator)
        good = torch.rand(n, generator=generator) < 0.5
        return *logps, good, *(torch.tensor(x, dtype=dtype) for x in kl)

    return draw


def segments(references=0):
    """Draw log-probabilities of two segments, which is preferred, and references."""

    def draw(n, dtype, generator):
        logps = torch.randn(2 + references, n, 3, dtype=dtype, generator=generator)
        label = torch.rand(n, dtype=dtype, generator=generator)
        return *logps[:2], label, *logps[2:]

    return draw


def of_three_models(*shape):
    """Draw log-probabilities of pairs, of a policy, a reference and the policy of before."""

    def draw(n, dtype, generator):
        return tuple(torch.randn(6, n, *shape, dtype=dtype, generator=generator))

    return draw


def judged_segments(numbers):
    """Draw that many numbers of two segments, and which is preferred, or neither."""

    def draw(n, dtype, generator):
        found = torch.randn(numbers, n, dtype=dtype, generator=generator)
        return *found, torch.randint(3, (n,), generator=generator).to(dtype) / 2

    return draw


def told(*shapes):
    """Draw log-probabilities of tokens of each shape, and which of them there are."""

    def draw(n, dtype, generator):
        sizes = [(n, *shape) for shape in shapes]
        logps = [-torch.rand(size, generator=generator) - 0.125 for size in sizes]
        masks = [torch.rand(size, generator=generator) < 0.7 for size in sizes]
        return *(x.to(dtype) for x in logps), *masks

    return draw


def written(old=1, *, of_tokens=False, reference=False):
    """Draw log-probabilities of tokens, of a policy and old ones, advantages, a mask."""

    def draw(n, dtype, generator):
        logps = torch.randn(2 + old, n, 3, dtype=dtype, generator=generator)
        shape = (n, 3) if of_tokens else (n,)
        advantages = torch.randn(shape, dtype=dtype, generator=generator)
        mask = torch.rand(n, 3, generator=generator) < 0.7
        return *logps[:-1], advantages, mask, *logps[-1:][:reference]

    return draw


def self_judged(n, dtype, generator):
    """Draw log-probabilities of pairs, and log-odds of what the model says of them."""
    return tuple(torch.randn(5, n, dtype=dtype, generator=generator))


def rated(n, dtype, generator):
    """Draw log-probabilities of answers, of three models, and the chance that they win."""
    logps = torch.randn(3, n, dtype=dtype, generator=generator)
    return *logps, torch.rand(n, dtype=dtype, generator=generator)


def rated_tokens(masked=False):
    """Draw log-probabilities of tokens, the chance that the answer wins, and a mask."""

    def draw(n, dtype, generator):
        logps = torch.randn(2, n, 3, dtype=dtype, generator=generator)
        wins = torch.rand(n, dtype=dtype, generator=generator)
        mask = torch.rand(n, 3, generator=generator) < 0.6
        return (*logps, wins, mask) if masked else (*logps, wins)

    return draw


def marked(spread=1.0):
    """Draw log-probabilities of tokens, a mask, which answers are right, and the shares."""

    def draw(n, dtype, generator):
        logps = torch.randn(2, n, 3, dtype=dtype, generator=generator)
        mask, right = (torch.rand(n, k, generator=generator) < 0.7 for k in (3, 1))
        rate = 0.125 + 0.375 * torch.rand(n, dtype=dtype, generator=generator)
        return logps[0], logps[0] + spread * logps[1], mask, right[:, 0], rate

    return draw


def repeated_games(sequences):
    """Draw losses of two actions over three rounds, and mixed actions in sixteenths."""

    def draw(n, dtype, generator):
        losses = torch.randn(n, sequences, 3, 2, dtype=dtype, generator=generator)
        first = torch.randint(1, 16, (n, sequences, 3), generator=generator).to(dtype) / 16
        return losses, torch.stack((first, 1 - first), -1)

    return draw


def rewards(margin=False, ties=False):
    """Draw rewards of pairs of answers, margins, and which pairs are ties."""

    def draw(n, dtype, generator):
        out = torch.randn(2, n, dtype=dtype, generator=generator)
        further = [torch.rand(n, dtype=dtype, generator=generator)] * margin
        return *out, *further, *[torch.rand(n, generator=generator) < 0.5] * ties

    return draw


def kept(*lengths):
    """Draw log-probabilities of sequences to forget and to keep, and lengths."""
    return answers(references=False, lengths=sum(lengths))


def revised(n, dtype, generator):
    """Draw log-probabilities of answers with and without drafts in their prompts."""
    return tuple(torch.randn(12, n, dtype=dtype, generator=generator))


def stacked(reference=True):
    """Draw logits of chosen and then of rejected sequences, labels, a mask, reference logits."""

    def draw(n, dtype, generator):
        policy, other = torch.randn(2, 2 * n, 4, K, dtype=dtype, generator=generator)
        labels = torch.randint(K, (2 * n, 4), generator=generator)
        mask = torch.arange(4) > torch.arange(2 * n).unsqueeze(1) % 2
        return (policy, labels, mask, other) if reference else (policy, labels, mask)

    return draw


def completions(n, dtype, generator):
    """Draw log-probabilities of sequences, and their lengths."""
    logps = torch.randn(n, dtype=dtype, generator=generator)
    return logps, torch.randint(1, 9, (n,), generator=generator)


def of_classes():
    return torch.linspace(0.5, 2.0, K)


def of_pairs():
    return torch.linspace(0.0, 1.0, K * K).view(K, K).fill_diagonal_(0.0)


def regression(*shape):
    """Input and target of one shape."""

    def draw(n, dtype, generator):
        return tuple(torch.randn(2, n, *shape, dtype=dtype, generator=generator))

    return draw


numbers, vectors, images = regression(), regression(3), regression(2, 3)

#: Where a loss has one value per element.
OF_SEVERAL = {"property:lipschitz": "the claim is about one element, the sample has several"}


def embeddings(*further):
    """Two matrices of embeddings, and negatives of the given shapes (N stands for the samples)."""

    def draw(n, dtype, generator):
        pair = torch.randn(2, n, 3, dtype=dtype, generator=generator)
        shapes = [[n if m == "N" else m for m in shape] for shape in further]
        return *pair, *(torch.randn(s, dtype=dtype, generator=generator) for s in shapes)

    return draw


views = embeddings()


def visits(n, dtype, generator):
    return *views(n, dtype, generator), torch.arange(n) % REMEMBERED


def both_indexed(n, dtype, generator):
    return *visits(n, dtype, generator), (torch.arange(n) + 3) % REMEMBERED


def labelled(n, dtype, generator):
    """Embeddings of two classes."""
    return torch.randn(n, 3, dtype=dtype, generator=generator), torch.arange(n) % 2


def labelled_views(n, dtype, generator):
    a, b = views(n, dtype, generator)
    return a, torch.arange(n) % 2, b


def with_frequencies(n, dtype, generator):
    """Add logarithms of how often the samples come."""
    return *views(n, dtype, generator), -torch.rand(n, dtype=dtype, generator=generator)


#: Of a surrogate, whose gradient is not the slope of its value.
SURROGATE = dict.fromkeys(
    ("gradcheck", "gradgradcheck", "forward_mode"), "the value is a surrogate for its gradient"
)
DETACHED = dict.fromkeys(
    ("gradcheck", "gradgradcheck", "forward_mode"), "a factor carries no gradient"
)
FOR_OTHER_BATCHES = {"property:bounds": "other batches than these, of 4 samples, come near it"}


def trained(value=0.7):
    return torch.nn.Parameter(torch.tensor(value, dtype=torch.float64))


def squared_distance(input, target):
    """A distance that is a plain function."""
    return (input - target).flatten(1).square().sum(1)


def time_weighted(inputs):
    """Add a weight of every sample's time, at most 1."""

    def with_weight(n, dtype, generator):
        weight = torch.rand(n, dtype=dtype, generator=generator)
        return *inputs(n, dtype, generator), 0.1 + 0.9 * weight

    return with_weight


def time_steps(num_scales, *shape):
    """Denoised and clean samples, their positions in a grid, and the grid's size."""

    def draw(n, dtype, generator):
        x, y = torch.randn(2, n, *shape, dtype=dtype, generator=generator)
        # Most of the batch in the window of a quarter, the third sample out of it.
        index = torch.tensor([0, 1, num_scales - 1, 2])[torch.arange(n) % 4]
        return x, y, index, torch.tensor(num_scales)

    return draw


def teachers(*shape, classes=K):
    """Logits of a student, and of a teacher that is often sure."""

    def draw(n, dtype, generator):
        student = torch.randn(n, classes, *shape, dtype=dtype, generator=generator)
        return student, 8 * torch.randn(student.shape, dtype=dtype, generator=generator)

    return draw


#: The stored directions are of a prediction and a target alone.
OF_TWO_INPUTS = {"property:bounds": "the stored direction has no weights of the times"}
#: Where a sample has several rows of logits.
OF_SEVERAL_ROWS = {"property:bounds": "the claim is about one row, the sample has several"}


def per_column():
    return torch.tensor([0.3, 1.0, 2.0])


def pruned():
    """A loss some of whose samples are left out."""
    loss = TruncatedGCELoss(0.7, 0.5, "prune", REMEMBERED, class_dim=-1)
    loss.sample_weight[::2] = torch.tensor([0.0, 0.5, 0.0, 0.0])
    return loss


#: The stored directions are of a policy and a reference alone.
WITHOUT_JUDGE = dict.fromkeys(
    ("property:bounds", "property:lipschitz"), "the stored direction has no probabilities"
)
OFF_THE_SIMPLEX = {"extremes": "mixed actions that are off the simplex are refused"}
FAR_OFF_GAP = {"property:bounds": "the gap of 67 is farther than what is drawn"}
#: Of log-probabilities.
OF_MASKS = {"extremes": "masks outside [0, 1] are refused"}
ABOVE_0 = {"extremes": "log-probabilities above 0 are refused"}
#: Values that are not what the gradient belongs to.
WEIGHED = dict.fromkeys(
    ("gradcheck", "gradgradcheck", "forward_mode"), "the weight carries no gradient"
)
OF_TOKENS = dict.fromkeys(
    ("property:convex", "property:bounds", "property:lipschitz"),
    "the claim is about one token, the sample has several",
)
ENTROPY = dict.fromkeys(("gradcheck", "forward_mode"), "the entropy carries no gradient")
FLAT_KEYS = (
    "kl",
    "js",
    "pearson",
    "jeffrey_taylor",
    "reverse_kl",
    "hellinger",
    "neyman",
    "reverse_kl_official",
    "hellinger_official",
    "neyman_official",
    "tv",
)
FAR_KINK = {"property:smoothness": "the kink is at a log-ratio of 10, farther than what is drawn"}
NO_KINK = {"property:smoothness": "the kink is at a log-ratio of 20, farther than what is drawn"}
#: Of policy losses.
OF_A_SURROGATE = "the gradient is not that of the value"
SURROGATE = dict.fromkeys(("gradcheck", "gradgradcheck", "forward_mode"), OF_A_SURROGATE)
SURROGATE_ONCE = dict.fromkeys(("gradcheck", "forward_mode"), OF_A_SURROGATE)
OF_RANKS = dict.fromkeys(("weights", "attached_zero"), "values are of ranks: there is no weight")

#: The stored directions are of a policy and a reference.
WITH_MARGIN = {"property:bounds": "the stored direction has no margin"}
WITHOUT_REFERENCE = {"property:bounds": "the stored direction has a reference"}


def mixups(*mixes):
    """Logits of raw samples, and logits and soft targets of their mixups; some are of one class."""

    def draw(n, dtype, generator):
        logits, _ = labels(n, dtype, generator)
        shape = (*mixes, *logits.shape)
        mixed = torch.randn(shape, dtype=dtype, generator=generator)
        share = torch.rand(shape[:-1], generator=generator)
        share[..., 1:2] = 1.0
        first, second = torch.randint(K, (2, *shape[:-1]), generator=generator)
        one_hot = torch.nn.functional.one_hot
        target = share[..., None] * one_hot(first, K) + (1 - share)[..., None] * one_hot(second, K)
        return logits, mixed, target.to(dtype)

    return draw


def calibrated(n, dtype, generator):
    """Logits of a calibrator, the target, and the logits that it was given."""
    logits, target = labels(n, dtype, generator)
    return 0.5 * logits, target, logits


def evidence(n, dtype, generator):
    logits, target = labels(n, dtype, generator)
    return logits.exp(), target


def experts(epoch):
    """Logits of three experts, what is right, all of them as one, their engagement, the epoch."""

    def draw(n, dtype, generator):
        combined, target = labels(n, dtype, generator)
        logits = torch.randn(3, n, K, dtype=dtype, generator=generator)
        engagement = torch.rand(4, n, dtype=dtype, generator=generator)
        return logits, target, combined, engagement, torch.tensor(epoch)

    return draw


def with_features(*, scaled=False):
    """Logits and target, the features behind them, and the scale of the logits."""

    def draw(n, dtype, generator):
        logits, target = labels(n, dtype, generator)
        features = torch.randn(n, 3, dtype=dtype, generator=generator)
        if not scaled:
            return logits, target, features
        return logits, target, features, torch.rand(n, K, dtype=dtype, generator=generator)

    return draw


#: The infimum needs much evidence for one class and none for all others.
FAR_OFF = {"property:bounds": "the infimum lies further off than the search goes"}
#: Where what is right does not follow the logits that are looked at.
CALIBRATED = {
    "property:convex": "the stored example has no other logits",
    "property:bounds": "some of the batches drawn are right, whatever the calibrator says",
}
#: Where the samples do not come first in every input.
MIXES_FIRST = dict.fromkeys(
    ("weight_zero", "normalizer"), "the mixups come first, and the samples second, in two inputs"
) | {"property:bounds": "of the mixups drawn most are less sure than their coefficients"}
#: The same of a gradient.
OF_TWO_LOGPS = dict.fromkeys(
    ("property:bounds", "property:lipschitz"), "the stored direction has a reference"
)


#: Tested beside the formulas.
OF_TWO_ROWS = dict.fromkeys(
    ("weight_zero", "normalizer"), "the samples are pairs, each of two rows of the inputs"
)


def numbers_alone(n, dtype, generator):
    return (torch.randn(n, dtype=dtype, generator=generator),)


def in_every_shape(loss):
    """Cases of a loss at its defaults: soft and ignored labels, class weights, pixels, tokens."""
    return [
        Case("probabilities", loss, probabilities),
        Case("class_weight soft", lambda: loss(class_weight=of_classes()), probabilities),
        Case("ignored", loss, ignored_labels),
        Case("pixels", loss, pixels),
        Case("tokens", lambda: loss(class_dim=-1), tokens),
    ]


def log_probabilities(n, dtype, generator):
    """Draw log-probabilities, of likely answers and of unlikely ones."""
    return (-4.0 * torch.rand(n, dtype=dtype, generator=generator).square(),)


#: Where an input must not be positive.
POSITIVE = {"extremes": "all ones are no log-probabilities, and are refused"}

CASES: dict[str, list[Case]] = {
    "LabelSmoothingCrossEntropyLoss": [
        Case("s=0.1", LabelSmoothingCrossEntropyLoss, labels),
        *(
            Case(f"s={s:g}", lambda s=s: LabelSmoothingCrossEntropyLoss(s), labels)
            for s in (0.0, 0.5, 1.0)
        ),
        *in_every_shape(LabelSmoothingCrossEntropyLoss),
    ],
    "PolyLoss": [
        Case("epsilon=1", PolyLoss, labels),
        *(
            Case(f"epsilon={e:g}", lambda e=e: PolyLoss(e), labels)
            for e in (-1.0, -0.5, 0.0, 0.3, 2.0, 6.0)
        ),
        *in_every_shape(PolyLoss),
    ],
    "FocalLoss": [
        Case("gamma=2", FocalLoss, labels),
        *(
            Case(f"gamma={g:g}", lambda g=g: FocalLoss(g), labels)
            for g in (0.0, 0.2, 0.5, 1.0, 5.0)
        ),
        Case("alpha", lambda: FocalLoss(1.5, of_classes()), ignored_labels),
        Case("alpha soft", lambda: FocalLoss(1.5, of_classes()), probabilities),
        Case("alpha tokens", lambda: FocalLoss(0.5, of_classes(), class_dim=-1), tokens),
        *in_every_shape(FocalLoss),
    ],
    "BrierLoss": [
        Case("multiclass", BrierLoss, labels),
        Case("two classes", BrierLoss, two_classes),
        *in_every_shape(BrierLoss),
    ],
    "LogitZRegularizer": [
        Case("1e-4", LogitZRegularizer, labels),
        Case("0.5", lambda: LogitZRegularizer(0.5), labels),
        *in_every_shape(LogitZRegularizer),
    ],
    "DirectCoverageLoss": [
        *(
            Case(f"n={n:g}", lambda n=n: DirectCoverageLoss(n), log_probabilities, POSITIVE)
            for n in (16, 1, 1.5, 2, 1e6)
        ),
    ],
    "NormalizedCrossEntropyLoss": [
        Case("default", NormalizedCrossEntropyLoss, labels),
        Case("two classes", NormalizedCrossEntropyLoss, two_classes),
        *in_every_shape(NormalizedCrossEntropyLoss),
    ],
    "AsymmetricGCELoss": [
        Case("default", AsymmetricGCELoss, labels),
        *(
            Case(f"a={a:g} q={q:g}", lambda a=a, q=q: AsymmetricGCELoss(a, q), labels)
            for a, q in ((3.0, 1.5), (1.0, 1.0), (0.5, 0.5), (0.0, 0.7), (0.0, 1.5), (2.0, 0.2))
        ),
        *in_every_shape(AsymmetricGCELoss),
    ],
    "AsymmetricUnhingedLoss": [
        Case("default", AsymmetricUnhingedLoss, labels),
        *(
            Case(f"a={a:g} q={q:g}", lambda a=a, q=q: AsymmetricUnhingedLoss(a, q), labels)
            for a, q in ((6.0, 1.5), (2.0, 1.0), (1.01, 0.5), (1.5, 3.0))
        ),
        *in_every_shape(AsymmetricUnhingedLoss),
    ],
    "AsymmetricExponentialLoss": [
        Case("a=3", AsymmetricExponentialLoss, labels),
        *(
            Case(f"a={a:g}", lambda a=a: AsymmetricExponentialLoss(a), labels)
            for a in (0.3, 1.0, 20.0)
        ),
        *in_every_shape(AsymmetricExponentialLoss),
    ],
    "RobustLogLoss": [
        Case("alpha=0.1", RobustLogLoss, labels),
        *(Case(f"alpha={a:g}", lambda a=a: RobustLogLoss(a), labels) for a in (0.01, 0.45, 10.0)),
        Case("two classes", RobustLogLoss, two_classes),
        *in_every_shape(RobustLogLoss),
    ],
    "JensenShannonLoss": [
        Case("w=0.5", JensenShannonLoss, labels),
        *(
            Case(f"w={w:g}", lambda w=w: JensenShannonLoss(w), labels)
            for w in (1e-3, 0.1, 0.9, 0.999)
        ),
        Case("plain", lambda: JensenShannonLoss(0.3, scaled=False), labels),
        *in_every_shape(JensenShannonLoss),
    ],
    "ActivePassiveLoss": [
        Case("NCE+RCE", ActivePassiveLoss, labels),
        *(
            Case(
                f"NCE+{passive}",
                lambda passive=passive: ActivePassiveLoss("nce", passive, 0.7, 2.0),
                labels,
            )
            for passive in ("mae", "nrce", "agce", "aul", "ael")
        ),
        Case("CE+RCE", lambda: ActivePassiveLoss("ce", "rce", 0.1), labels),
        Case("NCE alone", lambda: ActivePassiveLoss(beta=0.0), labels),
        Case("RCE alone", lambda: ActivePassiveLoss(alpha=0.0), labels),
        Case("instances", lambda: ActivePassiveLoss(PolyLoss(), BrierLoss()), labels),
        *in_every_shape(ActivePassiveLoss),
    ],
    "CompSumLoss": [
        Case("tau=1", CompSumLoss, labels),
        *(
            Case(f"tau={tau:g}", lambda tau=tau: CompSumLoss(tau), labels)
            for tau in (0.0, 0.5, 1.5, 2.0, 3.0)
        ),
        Case("batchmean", lambda: CompSumLoss(1.5, reduction="batchmean"), labels),
        Case("sum", lambda: CompSumLoss(1.5, reduction="sum"), labels),
        Case("none", lambda: CompSumLoss(1.5, reduction="none"), labels),
        Case("ignored", lambda: CompSumLoss(0.5), ignored_labels),
        Case("pixels", lambda: CompSumLoss(1.5), pixels),
        Case("tokens", lambda: CompSumLoss(1.5, class_dim=-1), tokens),
        Case("probabilities", lambda: CompSumLoss(1.5), probabilities),
        Case("class_weight", lambda: CompSumLoss(class_weight=of_classes()), ignored_labels),
        Case("class_weight soft", lambda: CompSumLoss(class_weight=of_classes()), probabilities),
    ],
    "GeneralizedCrossEntropyLoss": [
        Case("q=0.7", GeneralizedCrossEntropyLoss, labels),
        *(
            Case(f"q={q:g}", lambda q=q: GeneralizedCrossEntropyLoss(q), labels)
            for q in (0.0, 0.01, 1.0)
        ),
        Case("pixels", GeneralizedCrossEntropyLoss, pixels),
        Case("probabilities", GeneralizedCrossEntropyLoss, probabilities),
    ],
    "TruncatedGCELoss": [
        Case("clamp", TruncatedGCELoss, labels),
        *(
            Case(f"q={q:g} k={k:g}", lambda q=q, k=k: TruncatedGCELoss(q, k), labels)
            for q in (0.0, 0.3, 1.0)
            for k in (0.0, 0.1, 0.3, 0.7)
        ),
        *(
            Case(
                f"prune q={q:g} k={k:g}",
                lambda q=q, k=k: TruncatedGCELoss(q, k, "prune", REMEMBERED),
                indexed(labels),
            )
            for q in (0.0, 0.7)
            for k in (0.0, 0.5)
        ),
        Case("pixels", TruncatedGCELoss, pixels),
        Case("pruned tokens", pruned, indexed(tokens)),
        Case("pruned pixels", lambda: TruncatedGCELoss(0.7, 0.5, "prune", 7), indexed(pixels)),
        Case("probabilities", TruncatedGCELoss, probabilities),
    ],
    "SmoothAdversarialCompSumLoss": [
        Case("default", SmoothAdversarialCompSumLoss, perturbed(labels)),
        *(
            Case(
                f"tau={tau:g} rho={rho:g} nu={nu:g}",
                lambda tau=tau, rho=rho, nu=nu: SmoothAdversarialCompSumLoss(tau, rho, nu),
                perturbed(labels),
            )
            for tau in (0.0, 0.5, 1.5, 2.0)
            for rho, nu in ((0.5, 0.0), (0.5, 3.0), (2.0, 0.1))
        ),
        *(
            Case(
                f"{m} candidates",
                lambda: SmoothAdversarialCompSumLoss(1.5, 0.5, 2.0),
                perturbed(labels, (m,)),
                {"property:bounds": "the candidates drawn keep their distance from the logits"},
            )
            for m in (1, 3)
        ),
        Case("ignored", SmoothAdversarialCompSumLoss, perturbed(ignored_labels)),
        Case("pixels", lambda: SmoothAdversarialCompSumLoss(0.5), perturbed(pixels)),
        Case("tokens", lambda: SmoothAdversarialCompSumLoss(class_dim=-1), perturbed(tokens)),
        Case("probabilities", SmoothAdversarialCompSumLoss, perturbed(probabilities)),
        Case(
            "class_weight",
            lambda: SmoothAdversarialCompSumLoss(class_weight=of_classes()),
            perturbed(ignored_labels),
        ),
        Case(
            "class_weight soft",
            lambda: SmoothAdversarialCompSumLoss(class_weight=of_classes()),
            perturbed(probabilities),
        ),
    ],
    "MulticlassMAELoss": [
        Case("scale=1", MulticlassMAELoss, labels),
        Case("scale=2", lambda: MulticlassMAELoss(2.0), labels),
        Case("class_weight", lambda: MulticlassMAELoss(class_weight=of_classes()), ignored_labels),
    ],
    "LDRKLLoss": [
        Case("default", LDRKLLoss, labels),
        *(
            Case(f"lam={lam:g}", lambda lam=lam: LDRKLLoss(lam), labels)
            for lam in (0.0, 0.5, 10.0, math.inf)
        ),
        *(
            Case(f"lam={lam:g} margin=0", lambda lam=lam: LDRKLLoss(lam, margin=0.0), labels)
            for lam in (0.0, 0.5, 1.0, 10.0, math.inf)
        ),
        *(
            Case(
                f"lam={lam:g} margin by {name}",
                lambda lam=lam, margin=margin: LDRKLLoss(lam, margin=margin()),
                inputs,
            )
            for lam in (0.0, 0.5, 1.0, 10.0, math.inf)
            for name, margin in (("class", of_classes), ("pair", of_pairs))
            for inputs in (labels,)
        ),
        *(
            Case(
                f"lam={lam:g} {normalize}",
                lambda lam=lam, normalize=normalize: LDRKLLoss(lam, normalize=normalize),
                labels,
            )
            for lam in (0.0, 0.5, 1.0, math.inf)
            for normalize in ("softplus", "l1")
        ),
        Case("pixels", lambda: LDRKLLoss(margin=of_pairs()), pixels),
        Case("tokens", lambda: LDRKLLoss(0.5, margin=of_classes(), class_dim=-1), tokens),
        Case("probabilities", LDRKLLoss, probabilities),
        Case("probabilities lam=0", lambda: LDRKLLoss(0.0), probabilities),
        Case("probabilities lam=inf", lambda: LDRKLLoss(math.inf), probabilities),
        Case("probabilities by pair", lambda: LDRKLLoss(margin=of_pairs()), probabilities),
    ],
    "LDRLoss": [
        Case("euclidean", lambda: LDRLoss(divergence="euclidean"), labels),
        Case("kl", LDRLoss, labels),
        Case("kl lam=10 margin=0.5", lambda: LDRLoss(10.0, 0.5), labels),
        *(
            Case(
                f"euclidean lam={lam:g} margin={c:g}",
                lambda lam=lam, c=c: LDRLoss(lam, c, "euclidean"),
                labels,
            )
            for lam in (0.0, 0.1, 0.5, 2.0, math.inf)
            for c in (0.0, 1.0)
        ),
        Case(
            "euclidean lam=10",
            lambda: LDRLoss(10.0, 0.1, "euclidean"),
            labels,
            {"property:smoothness": "the kinks of the gradient lie beyond the logits drawn"},
        ),
        *(
            Case(
                f"euclidean margin by {name}",
                lambda margin=margin: LDRLoss(0.5, margin(), "euclidean"),
                inputs,
            )
            for name, margin, inputs in (("class", of_classes, labels), ("pair", of_pairs, pixels))
        ),
        Case("euclidean tokens", lambda: LDRLoss(0.2, 1.0, "euclidean", class_dim=-1), tokens),
        *(
            Case(
                f"euclidean probabilities margin={c:g}",
                lambda c=c: LDRLoss(0.5, c, "euclidean"),
                probabilities,
            )
            for c in (0.0, 1.0)
        ),
        *(
            Case(f"topk={k} margin={c:g}", lambda k=k, c=c: LDRLoss(margin=c, topk=k), labels)
            for k in range(1, K + 1)
            for c in (0.0, 1.0)
        ),
        Case("topk margin by class", lambda: LDRLoss(margin=of_classes(), topk=2), ignored_labels),
        Case("topk margin by pair", lambda: LDRLoss(margin=of_pairs(), topk=3), labels),
        Case("topk pixels", lambda: LDRLoss(margin=0.5, topk=2), pixels),
        Case("topk probabilities", lambda: LDRLoss(topk=2), probabilities),
        Case("topk probabilities margin", lambda: LDRLoss(margin=1.0, topk=2), probabilities),
        Case("two classes", lambda: LDRLoss(1.0, 0.5, "euclidean"), two_classes),
        Case("two classes lam=inf", lambda: LDRLoss(math.inf), two_classes),
        Case("two classes topk=1", lambda: LDRLoss(margin=0.5, topk=1), two_classes),
        Case("two classes topk=2", lambda: LDRLoss(margin=0.5, topk=2), two_classes),
        Case(
            "class_weight soft",
            lambda: LDRLoss(0.5, divergence="euclidean", class_weight=of_classes()),
            probabilities,
        ),
    ],
    "CrammerSingerLoss": [
        Case("margin=1", CrammerSingerLoss, labels),
        Case("margin=0", lambda: CrammerSingerLoss(0.0), labels),
        Case("margin=5", lambda: CrammerSingerLoss(5.0), labels),
        Case("margin by class", lambda: CrammerSingerLoss(of_classes()), ignored_labels),
        Case("margin by pair", lambda: CrammerSingerLoss(of_pairs()), pixels),
        Case("two classes", CrammerSingerLoss, two_classes),
        Case("two classes margin=0", lambda: CrammerSingerLoss(0.0), two_classes),
        Case("two classes margin=2.2", lambda: CrammerSingerLoss(2.2), two_classes),
        Case("probabilities", CrammerSingerLoss, probabilities),
    ],
    "WestonWatkinsLoss": [
        Case("sum", WestonWatkinsLoss, labels),
        Case("mean", lambda: WestonWatkinsLoss(normalize="mean"), labels),
        *(
            Case(f"{how} margin={c:g}", lambda how=how, c=c: WestonWatkinsLoss(c, how), labels)
            for how in ("sum", "mean")
            for c in (0.0, 0.3, 5.0)
        ),
        Case("margin by class", lambda: WestonWatkinsLoss(of_classes()), ignored_labels),
        Case("margin by pair", lambda: WestonWatkinsLoss(of_pairs(), "mean"), pixels),
        Case("tokens", lambda: WestonWatkinsLoss(class_dim=-1), tokens),
        Case("two classes", WestonWatkinsLoss, two_classes),
        Case("two classes mean", lambda: WestonWatkinsLoss(0.8, "mean"), two_classes),
        Case("two classes margin=0", lambda: WestonWatkinsLoss(0.0), two_classes),
        Case("probabilities", WestonWatkinsLoss, probabilities),
        Case("probabilities by pair", lambda: WestonWatkinsLoss(of_pairs(), "mean"), probabilities),
    ],
    "ALDRKLLoss": [
        Case("default", lambda: ALDRKLLoss(REMEMBERED), indexed(labels)),
        *(
            Case(
                f"lam={lam:g} alpha={alpha:g}",
                lambda lam=lam, alpha=alpha: ALDRKLLoss(REMEMBERED, lam, alpha),
                indexed(labels),
            )
            for lam in (0.1, 10.0)
            for alpha in (1.01, 10.0)
        ),
        *(
            Case(
                f"official {normalize}",
                lambda normalize=normalize: ALDRKLLoss(
                    REMEMBERED, normalize=normalize, margin_in_update=False, prob_eps=1e-5
                ),
                indexed(labels),
            )
            for normalize in ("l1", "softplus", "softplus-l1")
        ),
        *(
            Case(
                f"margin by {name}",
                lambda margin=margin: ALDRKLLoss(REMEMBERED, 0.5, margin=margin(), n_iter=3),
                indexed(labels),
            )
            for name, margin in (("class", of_classes), ("pair", of_pairs))
        ),
        Case("pixels", lambda: ALDRKLLoss(REMEMBERED), indexed(pixels)),
        Case("tokens", lambda: ALDRKLLoss(REMEMBERED, class_dim=-1), indexed(tokens)),
        Case(
            "class_weight",
            lambda: ALDRKLLoss(REMEMBERED, class_weight=of_classes()),
            indexed(ignored_labels),
        ),
    ],
    "ReverseCrossEntropyLoss": [
        Case("A=-4", ReverseCrossEntropyLoss, labels),
        Case("A=-9.2103", lambda: ReverseCrossEntropyLoss(-9.2103), labels),
        Case("probabilities", ReverseCrossEntropyLoss, probabilities),
        Case(
            "class_weight soft",
            lambda: ReverseCrossEntropyLoss(class_weight=of_classes()),
            probabilities,
        ),
    ],
    "SymmetricCrossEntropyLoss": [
        Case("CIFAR-10", SymmetricCrossEntropyLoss, labels),
        Case("CIFAR-100", lambda: SymmetricCrossEntropyLoss(6.0, 0.1), labels),
        Case("alpha=0", lambda: SymmetricCrossEntropyLoss(alpha=0.0), labels),
        Case("beta=0", lambda: SymmetricCrossEntropyLoss(beta=0.0), labels),
        Case("probabilities", SymmetricCrossEntropyLoss, probabilities),
        Case(
            "class_weight soft",
            lambda: SymmetricCrossEntropyLoss(class_weight=of_classes()),
            probabilities,
        ),
    ],
    "PseudoHuberLoss": [
        Case("auto", PseudoHuberLoss, vectors),
        *(Case(f"scale={c:g}", lambda c=c: PseudoHuberLoss(c), images) for c in (0.03, 0.5, 10.0)),
        Case("auto numbers", PseudoHuberLoss, numbers),
        Case("auto elementwise", lambda: PseudoHuberLoss(mode="elementwise"), numbers),
        *(
            Case(
                f"elementwise {reduction}",
                lambda reduction=reduction: PseudoHuberLoss(
                    0.5, "elementwise", reduction=reduction
                ),
                numbers,
            )
            for reduction in ("mean", "sum", "batchmean", "none")
        ),
        Case("elementwise images", lambda: PseudoHuberLoss(0.5, "elementwise"), images, OF_SEVERAL),
        Case("buffer", lambda: PseudoHuberLoss(torch.tensor(0.7)), vectors),
        Case("trained", lambda: PseudoHuberLoss(trained()), vectors),
        Case(
            "trained elementwise",
            lambda: PseudoHuberLoss(trained(), "elementwise"),
            numbers,
        ),
        Case(
            "per column",
            lambda: PseudoHuberLoss(per_column(), "elementwise"),
            vectors,
            OF_SEVERAL,
        ),
        Case("batchmean", lambda: PseudoHuberLoss(reduction="batchmean"), vectors),
    ],
    "CauchyLoss": [
        Case("scale=1", CauchyLoss, numbers),
        *(Case(f"scale={c:g}", lambda c=c: CauchyLoss(c), numbers) for c in (0.03, 10.0)),
        *(
            Case(
                reduction,
                lambda reduction=reduction: CauchyLoss(0.5, reduction=reduction),
                numbers,
            )
            for reduction in ("sum", "batchmean", "none")
        ),
        Case("images", CauchyLoss, images, OF_SEVERAL),
        *(
            Case(f"vector scale={c:g}", lambda c=c: CauchyLoss(c, "vector"), images)
            for c in (0.03, 0.5, 10.0)
        ),
        Case("vector numbers", lambda: CauchyLoss(0.5, "vector"), numbers),
        Case("buffer", lambda: CauchyLoss(torch.tensor([0.7])), numbers),
        Case("trained", lambda: CauchyLoss(trained()), numbers),
        Case("trained vector", lambda: CauchyLoss(trained(), "vector"), vectors),
        Case("per column", lambda: CauchyLoss(per_column()), vectors, OF_SEVERAL),
    ],
    "ConsistencyLoss": [
        Case("time weight", ConsistencyLoss, time_weighted(vectors), OF_TWO_INPUTS),
        Case("default", ConsistencyLoss, vectors),
        Case("numbers", ConsistencyLoss, numbers),
        Case("cauchy", lambda: ConsistencyLoss(CauchyLoss(0.5, "vector")), images),
        Case("of numbers", lambda: ConsistencyLoss(CauchyLoss(0.5)), numbers),
        Case("function", lambda: ConsistencyLoss(squared_distance), time_weighted(images)),
        Case("both", lambda: ConsistencyLoss(detach_target=False), vectors),
        Case(
            "trained",
            lambda: ConsistencyLoss(PseudoHuberLoss(trained()), reduction="batchmean"),
            vectors,
        ),
    ],
    "EarlyTimestepDiffusionLoss": [
        Case("default", EarlyTimestepDiffusionLoss, time_steps(11, 3)),
        Case(
            "half of it",
            lambda: EarlyTimestepDiffusionLoss(0.5, reduction="batchmean"),
            time_steps(5, 2, 3),
        ),
        Case("all", lambda: EarlyTimestepDiffusionLoss(1.0), time_steps(41)),
    ],
    "SymmetricConsistencyLoss": [
        Case("alpha=0.5", SymmetricConsistencyLoss, teachers()),
        *(
            Case(f"alpha={a:g}", lambda a=a: SymmetricConsistencyLoss(a), teachers())
            for a in (0.0, 0.1, 0.9, 1.0)
        ),
        Case("both", lambda: SymmetricConsistencyLoss(detach_teacher=False), teachers()),
        Case("pixels", SymmetricConsistencyLoss, teachers(2, 3), OF_SEVERAL_ROWS),
        # As many classes as pixels: weights must not be taken for those of classes.
        Case("square", SymmetricConsistencyLoss, teachers(2, 2, classes=2), OF_SEVERAL_ROWS),
        Case(
            "tokens",
            lambda: SymmetricConsistencyLoss(class_dim=-1),
            teachers(4),
            OF_SEVERAL_ROWS,
        ),
    ],
    "SequenceNLLLoss": [
        Case("token", SequenceNLLLoss, completions),
        Case("sequence", lambda: SequenceNLLLoss("sequence"), completions),
        Case("sum", lambda: SequenceNLLLoss("sum"), numbers_alone),
        Case("batchmean", lambda: SequenceNLLLoss(reduction="batchmean"), completions),
        Case("none", lambda: SequenceNLLLoss(reduction="none"), completions),
    ],
    "DPOLoss": [
        Case("default", DPOLoss, answers()),
        *(
            Case(f"smoothing={e:g}", lambda e=e: DPOLoss(0.7, e), answers())
            for e in (0.05, 0.5, 0.8)
        ),
        *(
            Case(f"{f} {e:g}", lambda f=f, e=e: DPOLoss(0.7, e, f), answers())
            for f in ("forward_kl", "js")
            for e in (0.0, 0.2)
        ),
        *(
            Case(f"alpha={a:g}", lambda a=a: DPOLoss(0.7, 0.0, "alpha", a), answers())
            for a in (-1.0, 0.0, 0.5, 1.0 - 1e-6, 1.0, 2.0)
        ),
        Case("without", lambda: DPOLoss(1.0), answers(references=False), WITHOUT_REFERENCE),
        Case("free", lambda: DPOLoss(reference_free=True), answers(references=False)),
        Case("lengths", lambda: DPOLoss(5.0, length_normalize=True), answers(lengths=2)),
        Case(
            "js lengths",
            lambda: DPOLoss(5.0, 0.1, "js", length_normalize=True),
            answers(lengths=2),
        ),
        Case(
            "doubted",
            lambda: DPOLoss(5.0, length_normalize=True),
            doubted(answers(lengths=2)),
            without_doubt("bounds"),
        ),
        Case("several", DPOLoss, answers(3), OF_SEVERAL),
        Case("sum", lambda: DPOLoss(reduction="sum"), answers()),
        Case("none", lambda: DPOLoss(reduction="none"), answers()),
    ],
    "IPOLoss": [
        Case("default", IPOLoss, answers()),
        Case("tau=2", lambda: IPOLoss(2.0), answers()),
        Case("lengths", lambda: IPOLoss(0.5, length_normalize=True), answers(lengths=2)),
        Case("without", IPOLoss, answers(references=False), OF_TWO_LOGPS),
    ],
    "HingePreferenceLoss": [
        Case("beta=1", lambda: HingePreferenceLoss(1.0), answers()),
        Case("default", HingePreferenceLoss, answers(), FAR_KINK),
        Case(
            "SLiC",
            lambda: HingePreferenceLoss(1.0, 0.5, 0.3, reference_free=True),
            answers(references=False),
        ),
        Case(
            "RRHF",
            lambda: HingePreferenceLoss(1.0, 0.0, reference_free=True),
            answers(references=False),
        ),
    ],
    "EXOLoss": [
        Case("default", EXOLoss, answers()),
        *(Case(f"eps={e:g}", lambda e=e: EXOLoss(0.7, e), answers()) for e in (0.2, 0.5, 0.9)),
        Case("doubted", EXOLoss, doubted(answers()), without_doubt("convex", "bounds")),
    ],
    "NCALoss": [
        Case("default", NCALoss, answers()),
        Case("beta=1", lambda: NCALoss(1.0), answers()),
    ],
    "BCOPairLoss": [
        Case("running", lambda: BCOPairLoss(0.7, "running"), answers()),
        Case("default", BCOPairLoss, answers()),
        Case("delta=1", lambda: BCOPairLoss(0.7, 1.0), answers()),
    ],
    "SPPOLoss": [
        Case("default", SPPOLoss, answers()),
        Case("halve", lambda: SPPOLoss(0.5, halve=True), judged(1), WITHOUT_JUDGE),
        Case("both", lambda: SPPOLoss(0.5), judged(2), WITHOUT_JUDGE),
    ],
    "APOLoss": [
        Case("default", APOLoss, answers()),
        Case("down", lambda: APOLoss(0.7, "down"), answers()),
        Case("doubted", APOLoss, doubted(answers()), without_doubt("convex")),
    ],
    "AOTLoss": [
        Case("default", AOTLoss, answers(), OF_RANKS),
        Case("unpaired", lambda: AOTLoss(0.7, False, 0.2), answers(), OF_RANKS),
    ],
    "DiscoPOPLoss": [
        Case("default", DiscoPOPLoss, answers()),
        *(
            Case(f"tau={t:g}", lambda t=t: DiscoPOPLoss(0.7, t), answers())
            for t in (0.1, 0.5, 0.95)
        ),
    ],
    "DPOPLoss": [
        Case("default", DPOPLoss, answers()),
        Case("lam=0", lambda: DPOPLoss(0.7, 0.0), answers()),
        Case("lam=2", lambda: DPOPLoss(0.7, 2.0), answers()),
    ],
    "LinearPreferenceLoss": [
        Case("default", lambda: LinearPreferenceLoss(DPOLoss(1.0)), stacked(), OF_TWO_ROWS),
        Case("unshifted", lambda: LinearPreferenceLoss(shift=False), stacked(False), OF_TWO_ROWS),
        Case(
            "capped",
            lambda: LinearPreferenceLoss(DPOLoss(1.0), temperature=0.7, softcap=2.0),
            stacked(),
            OF_TWO_ROWS,
        ),
        Case("averages", lambda: LinearPreferenceLoss(SimPOLoss()), stacked(False), OF_TWO_ROWS),
        Case(
            "tokens",
            lambda: LinearPreferenceLoss(RPOLoss(0.7, 0.5, nll="token_mean")),
            stacked(),
            OF_TWO_ROWS,
        ),
        Case(
            "state",
            lambda: LinearPreferenceLoss(BCOPairLoss(0.7, "running")),
            stacked(),
            {**OF_TWO_ROWS, **dict.fromkeys(("state_absent", "state_inert"), "likewise")},
        ),
    ],
    "RDPOLengthLoss": [
        Case("default", RDPOLengthLoss, answers(lengths=2)),
        Case("alpha=0", lambda: RDPOLengthLoss(0.7, 0.0), answers(lengths=2)),
    ],
    "SimPOLoss": [
        Case("default", SimPOLoss, answers(references=False)),
        *(
            Case(f"alpha={a:g}", lambda a=a: SimPOLoss(alpha=a), answers(references=False))
            for a in (0.3, -0.3)
        ),
        Case(
            "sums",
            lambda: SimPOLoss(label_smoothing=0.2, average=False),
            answers(references=False, lengths=2),
        ),
        Case(
            "doubted",
            lambda: SimPOLoss(average=False),
            doubted(answers(references=False, lengths=2)),
            without_doubt("bounds"),
        ),
    ],
    "ORPOLoss": [
        Case("default", ORPOLoss, unlikely(references=False), ABOVE_0),
        Case("none", lambda: ORPOLoss(1.0, "none"), unlikely(references=False), ABOVE_0),
        Case(
            "token_mean",
            lambda: ORPOLoss(1.0, "token_mean", average=False),
            unlikely(references=False, lengths=2),
            ABOVE_0 | {"property:convex": "the stored direction is of one pair"},
        ),
    ],
    "CPOLoss": [
        Case("default", CPOLoss, answers(references=False)),
        Case("ipo", lambda: CPOLoss(0.5, loss_type="ipo"), answers(references=False)),
        Case("ipo alone", lambda: CPOLoss(0.5, 0.0, "ipo"), answers(references=False)),
        Case("hinge", lambda: CPOLoss(1.0, loss_type="hinge"), answers(references=False)),
        Case("smooth", lambda: CPOLoss(0.7, 0.0, label_smoothing=0.2), answers(references=False)),
        *(
            Case(nll, lambda nll=nll: CPOLoss(0.7, nll=nll), answers(references=False, lengths=1))
            for nll in ("token_mean", "sequence_mean")
        ),
    ],
    "LogicPreferenceLoss": [
        Case("default", LogicPreferenceLoss, unlikely(), ABOVE_0),
        *(
            Case(name, lambda name=name: LogicPreferenceLoss(name), unlikely(), ABOVE_0)
            for name in ("ce", "ce_unl", "cpo", "un_cpo", "c_cpo")
        ),
        Case(
            "sums",
            lambda: LogicPreferenceLoss(None, ("TT",), ("FF", "FT"), 0.7, False),
            unlikely(lengths=2),
            ABOVE_0,
        ),
        Case(
            "doubted",
            lambda: LogicPreferenceLoss(average=False),
            doubted(unlikely(lengths=2)),
            ABOVE_0,
        ),
    ],
    "KTOLoss": [
        Case("default", KTOLoss, thumbs([0.25])),
        Case("weights", lambda: KTOLoss(0.7, 2.0, 0.5), thumbs([0.0])),
        Case("of bad ones", lambda: KTOLoss(0.7, 0.0, 1.5), thumbs([-1.0])),
    ],
    "BCOLoss": [
        Case("default", BCOLoss, thumbs()),
        Case("beta=1", lambda: BCOLoss(1.0, reduction="batchmean"), thumbs()),
    ],
    "INPOLoss": [
        Case("eta=0.5", lambda: INPOLoss(0.5, 0.2), of_three_models()),
        Case("default", INPOLoss, of_three_models(), FAR_OFF_GAP),
        Case("tau=0", lambda: INPOLoss(0.5, 0.0), of_three_models()),
        Case("tau=eta", lambda: INPOLoss(0.5, 0.5), of_three_models()),
        Case("several", lambda: INPOLoss(0.5), of_three_models(3), OF_SEVERAL),
        Case("none", lambda: INPOLoss(0.5, reduction="none"), of_three_models()),
    ],
    "DNOLoss": [
        Case("soft", DNOLoss, judged(2)),
        Case("hard", lambda: DNOLoss(0.7, "hard"), answers()),
        Case("batchmean", lambda: DNOLoss(0.7, reduction="batchmean"), judged(2)),
    ],
    "NashMDLoss": [
        Case("sequence", NashMDLoss, rated_tokens(), SURROGATE),
        Case("masked", lambda: NashMDLoss(0.7), rated_tokens(masked=True), SURROGATE),
        Case("token", lambda: NashMDLoss(0.7, "token"), rated_tokens(masked=True), SURROGATE),
        Case("tau=0", lambda: NashMDLoss(0.0), rated_tokens()),
        Case("none", lambda: NashMDLoss(reduction="none"), rated_tokens(), SURROGATE),
    ],
    "NashMPLoss": [
        Case("beta=0.1", lambda: NashMPLoss(0.1, 2.0), rated, SURROGATE),
        Case("beta=0.7", lambda: NashMPLoss(0.7, 0.5, reduction="sum"), rated, SURROGATE),
    ],
    "CREAMLoss": [
        Case("default", CREAMLoss, judged(1)),
        Case("beta=0.7", lambda: CREAMLoss(0.7, reduction="none"), judged(1)),
    ],
    "SCIRLoss": [
        Case("default", SCIRLoss, self_judged),
        *(
            Case(f"{d} {e:g}", lambda d=d, e=e: SCIRLoss(0.7, d, e), self_judged)
            for d in ("js", "symmetric_kl")
            for e in (0.0, 0.1, 3.0)
        ),
    ],
    "RegretLoss": [
        Case("default", RegretLoss, repeated_games(2), OFF_THE_SIMPLEX),
        *(
            Case(
                f"{h} {f} {k:g}",
                lambda k=k, h=h, f=f: RegretLoss(k, h, f),
                repeated_games(2),
                OFF_THE_SIMPLEX,
            )
            for h in ("relu", "relu2", "identity")
            for f, k in (("exp", 0.7), ("power", 1.0), ("power", 2.5))
        ),
    ],
    "FLATLoss": [
        Case("default", FLATLoss, told([3], [4]), ABOVE_0),
        *(
            Case(f"{d} {a}", lambda d=d, a=a: FLATLoss(d, a), told([3], [2]), ABOVE_0)
            for d, a in zip(FLAT_KEYS, ("valid", "all") * 6, strict=False)
        ),
    ],
    "NPOLoss": [
        Case("default", NPOLoss, regression()),
        Case("beta=2", lambda: NPOLoss(2.0), regression(2), OF_SEVERAL),
    ],
    "SimNPOLoss": [
        Case("default", SimNPOLoss, numbers_alone),
        Case("sums", lambda: SimNPOLoss(0.5, -1.0, average=False), completions),
    ],
    "GradAscentLoss": [
        Case("token", GradAscentLoss, completions),
        Case("sequence", lambda: GradAscentLoss("sequence"), completions),
        Case("sum", lambda: GradAscentLoss("sum"), numbers_alone),
    ],
    "GradDiffLoss": [
        Case("token", GradDiffLoss, kept(2)),
        Case("sequence", lambda: GradDiffLoss(0.5, 2.0, "sequence"), kept(2)),
        Case("sum", lambda: GradDiffLoss(2.0, 0.5, "sum"), kept(0)),
    ],
    "WGALoss": [
        Case("default", WGALoss, told([]), ABOVE_0 | WEIGHED),
        Case("beta=0", lambda: WGALoss(0.0), told([]), ABOVE_0),
        Case("tokens", lambda: WGALoss(3.0), told([3]), ABOVE_0 | WEIGHED | OF_TOKENS),
    ],
    "CEULoss": [
        Case("default", CEULoss, labels, ENTROPY),
        Case("unlikelihood", lambda: CEULoss(False), labels),
        Case("two classes", CEULoss, two_classes, ENTROPY),
        Case("pixels", CEULoss, pixels, ENTROPY),
        Case("tokens", lambda: CEULoss(class_dim=-1), tokens, ENTROPY),
        Case("probabilities", CEULoss, probabilities, ENTROPY | WEIGHED),
        Case("class_weight", lambda: CEULoss(class_weight=of_classes()), ignored_labels, ENTROPY),
    ],
    "CPLLoss": [
        Case("default", CPLLoss, segments()),
        Case("KL", lambda: CPLLoss(0.2, 0.75, 0.9, 0.3), segments(2)),
    ],
    "PartialReturnPreferenceLoss": [
        Case("default", PartialReturnPreferenceLoss, judged_segments(2)),
        Case("temperature=0.3", lambda: PartialReturnPreferenceLoss(0.3), judged_segments(2)),
    ],
    "RegretPreferenceLoss": [
        Case("default", RegretPreferenceLoss, judged_segments(6)),
        Case("temperature=3", lambda: RegretPreferenceLoss(3.0), judged_segments(6)),
    ],
    "BradleyTerryLoss": [
        Case("default", BradleyTerryLoss, rewards()),
        Case("centred", lambda: BradleyTerryLoss(0.01), rewards()),
        Case("smoothing=0.2", lambda: BradleyTerryLoss(label_smoothing=0.2), rewards()),
        Case(
            "both, margin",
            lambda: BradleyTerryLoss(0.5, 0.2),
            rewards(True),
            WITH_MARGIN | {"property:lipschitz": WITH_MARGIN["property:bounds"]},
        ),
        Case("margin", BradleyTerryLoss, rewards(True), WITH_MARGIN),
    ],
    "TieAwareBradleyTerryLoss": [
        Case("default", TieAwareBradleyTerryLoss, rewards(ties=True)),
        *(
            Case(
                f"tie_weight={w:g}",
                lambda w=w: TieAwareBradleyTerryLoss(w),
                rewards(ties=True),
            )
            for w in (0.0, 0.3, 5.0)
        ),
    ],
    "SparsePreferenceLoss": [
        Case("default", SparsePreferenceLoss, kept_tokens, OF_MASKS),
        Case(
            "doubted",
            lambda: SparsePreferenceLoss(0.7, 0.0),
            doubted(kept_tokens),
            OF_MASKS | without_doubt("bounds"),
        ),
    ],
    "GRPOLoss": [
        Case("default", GRPOLoss, written()),
        *(
            Case(variant, lambda v=variant: GRPOLoss(0.1, 0.3, variant=v), written())
            for variant in ("bnpo", "dapo")
        ),
        Case(
            "dr_grpo",
            lambda: GRPOLoss(variant="dr_grpo", max_length=5),
            written(of_tokens=True),
        ),
        Case("reference", lambda: GRPOLoss(beta=0.04), written(reference=True)),
        Case(
            "bnpo reference",
            lambda: GRPOLoss(beta=0.4, variant="bnpo", delta=2.0, reduction="batchmean"),
            written(reference=True),
        ),
        Case("sequence", lambda: GRPOLoss(0.1, level="sequence"), written()),
        Case("cispo", lambda: GRPOLoss(variant="cispo"), written(), SURROGATE),
        Case(
            "cispo sequence",
            lambda: GRPOLoss(eps_high=1.0, variant="cispo", level="sequence", beta=0.04),
            written(reference=True),
            SURROGATE,
        ),
        Case("without clipping", lambda: GRPOLoss(1.0, math.inf), written(), NO_KINK),
    ],
    "StableReinforceLoss": [
        Case("default", StableReinforceLoss, written()),
        Case("close", lambda: StableReinforceLoss(0.1, 0.5, 2.0), written()),
        Case("of tokens", StableReinforceLoss, written(of_tokens=True)),
    ],
    "DecoupledPPOLoss": [
        Case("default", DecoupledPPOLoss, written(2)),
        Case(
            "clamp",
            lambda: DecoupledPPOLoss(0.2, 0.3, 1.5, 1.5, "clamp"),
            written(2),
        ),
        Case(
            "unweighted",
            lambda: DecoupledPPOLoss(behave_mode="unweighted", reduction="batchmean"),
            written(2, of_tokens=True),
        ),
    ],
    "NFTLoss": [
        Case("default", NFTLoss, marked(), SURROGATE_ONCE),
        Case("close", lambda: NFTLoss(1e-3), marked(0.125)),
        Case("grpo", lambda: NFTLoss(0.5, 0.5, "grpo"), marked(), SURROGATE_ONCE),
        Case(
            "sequence",
            lambda: NFTLoss(1e-3, prompt_weight="none", ratio_level="sequence"),
            marked(0.125),
        ),
    ],
    "SRPOLoss": [
        Case("default", SRPOLoss, revised),
        *(Case(f"alpha={a:g}", lambda a=a: SRPOLoss(0.7, a), revised) for a in (0.0, 1.0)),
    ],
    "RobustDPOLoss": [
        Case("default", RobustDPOLoss, answers()),
        *(
            Case(f"flip_rate={e:g}", lambda e=e: RobustDPOLoss(0.7, e), answers())
            for e in (0.0, 0.2, 0.49)
        ),
        Case("without", RobustDPOLoss, answers(references=False), WITHOUT_REFERENCE),
        Case("batchmean", lambda: RobustDPOLoss(reduction="batchmean"), answers()),
        Case("doubted", RobustDPOLoss, doubted(answers()), without_doubt("bounds", "lipschitz")),
    ],
    "RPOLoss": [
        Case("default", RPOLoss, answers()),
        *(
            Case(f"eta={c:g} smoothing={e:g}", lambda c=c, e=e: RPOLoss(0.5, c, e), answers())
            for c in (0.0, 0.3)
            for e in (0.0, 0.2)
        ),
        *(
            Case(nll, lambda nll=nll: RPOLoss(0.5, 0.2, nll=nll), answers(lengths=1))
            for nll in ("token_mean", "sequence_mean")
        ),
        Case(
            "token_mean smoothing=0.2",
            lambda: RPOLoss(0.5, 0.2, 0.2, "token_mean", reduction="batchmean"),
            answers(lengths=1),
        ),
    ],
}


def with_directions(loss, *arguments, **options):
    """Make a loss with the same learnt directions every time."""

    def make():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return loss(2, 3, *arguments, **options)

    return make


def retrieved(n, dtype, generator):
    """Scores of retrieved documents, of which the second is relevant."""
    scores = torch.randn(n, 4, dtype=dtype, generator=generator)
    return scores, torch.tensor([0, 1, 0, 0]).expand(n, 4)


def densities(data):
    """Log-densities of that many kinds at the data, and of two at the noise."""

    def draw(n, dtype, generator):
        found = torch.randn(data, n, dtype=dtype, generator=generator)
        return *found, *torch.randn(2, 5, dtype=dtype, generator=generator)

    return draw


CASES |= {
    "PairwiseRankNetLoss": [
        Case("default", PairwiseRankNetLoss, embeddings((2, 3))),
        Case("in batch", lambda: PairwiseRankNetLoss(0.5), views),
        Case("balanced", lambda: PairwiseRankNetLoss(2.0, 0.3), embeddings((2, 3))),
    ],
    "ADORELoss": [
        Case("default", ADORELoss, retrieved),
        Case("cutoff", lambda: ADORELoss(2, 0.5), retrieved),
    ],
    "NCELoss": [
        Case("default", NCELoss, densities(2)),
        Case("learnt", lambda: NCELoss(None, True), densities(2)),
        Case("nu", lambda: NCELoss(3.0), densities(2)),
    ],
    "CompositionalNLLLoss": [
        Case("default", CompositionalNLLLoss, densities(1), SURROGATE),
        Case(
            "no memory",
            lambda: CompositionalNLLLoss(1.0),
            densities(1),
            dict.fromkeys(
                ("gradgradcheck", "forward_mode"), "the weights of the noise are constants"
            ),
        ),
    ],
    "CosFaceLoss": [
        Case("default", with_directions(CosFaceLoss, 4.0), labelled),
        Case("published", with_directions(CosFaceLoss), labelled),
    ],
    "ArcFaceLoss": [
        Case("default", with_directions(ArcFaceLoss, 4.0), labelled),
        Case("published", with_directions(ArcFaceLoss), labelled),
        Case("plain", with_directions(ArcFaceLoss, 4.0, 0.3, False), labelled),
    ],
    "UNPGLoss": [
        Case("default", with_directions(UNPGLoss, scale=4.0), labelled),
        Case("published", with_directions(UNPGLoss), labelled),
        Case("arcface", with_directions(UNPGLoss, "arcface", 4.0, whisker=math.inf), labelled),
    ],
    "InfoNCELoss": [
        Case("default", InfoNCELoss, views),
        Case("symmetric", lambda: InfoNCELoss(0.2, symmetric=True), views, FOR_OTHER_BATCHES),
        Case("shared", lambda: InfoNCELoss(0.2), embeddings((5, 3)), FOR_OTHER_BATCHES),
        Case(
            "own",
            lambda: InfoNCELoss(0.2, in_batch=False),
            embeddings(("N", 5, 3)),
            FOR_OTHER_BATCHES,
        ),
        Case("inner product", lambda: InfoNCELoss(0.5, normalize=False), views),
        Case("learnable", lambda: InfoNCELoss(learnable_temperature=True), views),
        Case("batchmean", lambda: InfoNCELoss(reduction="batchmean"), views),
    ],
    "NTXentLoss": [
        Case("default", NTXentLoss, views, FOR_OTHER_BATCHES),
        Case("small", lambda: NTXentLoss(0.05), views),
        Case("inner product", lambda: NTXentLoss(normalize=False), views),
    ],
    "DCLLoss": [
        Case("default", DCLLoss, views, FOR_OTHER_BATCHES),
        Case("vmf", lambda: DCLLoss(0.3, "vmf"), views, DETACHED),
        Case("inner product", lambda: DCLLoss(0.5, normalize=False), views),
        Case("vmf inner product", lambda: DCLLoss(0.5, "vmf", 2.0, False), views, DETACHED),
    ],
    "HardContrastiveLoss": [
        Case("default", lambda: HardContrastiveLoss(alpha=0.5), views),
        Case(
            "shared",
            lambda: HardContrastiveLoss(0.3, num_hard=2),
            embeddings((5, 3)),
            FOR_OTHER_BATCHES,
        ),
        Case("simple", lambda: HardContrastiveLoss(alpha=0.7, simple=True), embeddings((5, 3))),
        Case(
            "own",
            lambda: HardContrastiveLoss(alpha=0.6, normalize=False, in_batch=False),
            embeddings(("N", 5, 3)),
            FOR_OTHER_BATCHES,
        ),
    ],
    "BatchSoftmaxLoss": [
        Case("default", BatchSoftmaxLoss, with_frequencies),
        Case("without", lambda: BatchSoftmaxLoss(0.2), views, FOR_OTHER_BATCHES),
        Case("inner product", lambda: BatchSoftmaxLoss(0.5, False), views),
    ],
    "SigLIPLoss": [
        Case("default", SigLIPLoss, views, FOR_OTHER_BATCHES),
        Case("fixed", lambda: SigLIPLoss(3.0, -1.0, False), views, FOR_OTHER_BATCHES),
        Case(
            "inner product",
            lambda: SigLIPLoss(1.0, 0.5, normalize=False),
            views,
            FOR_OTHER_BATCHES,
        ),
    ],
    "SupConLoss": [
        Case("default", SupConLoss, labelled),
        Case("in", lambda: SupConLoss(0.3, variant="in"), labelled, FOR_OTHER_BATCHES),
        Case(
            "two views",
            lambda: SupConLoss(0.2, 0.07, no_positive="zero"),
            labelled_views,
            FOR_OTHER_BATCHES,
        ),
        Case("inner product", lambda: SupConLoss(0.5, normalize=False), labelled),
    ],
    "TCMLoss": [
        Case("default", TCMLoss, labelled),
        Case("all pairs", lambda: TCMLoss(1.0, -1.0, 2.0, 0.5), labelled, FOR_OTHER_BATCHES),
        Case("unit", lambda: TCMLoss(normalize=False), labelled),
    ],
    **{
        loss.__name__: [
            Case(
                "default",
                lambda loss=loss: loss(REMEMBERED, individualized=True, state_dtype=torch.float64),
                visits,
                SURROGATE,
            ),
            Case("shared temperature", lambda loss=loss: loss(REMEMBERED), visits, SURROGATE),
            Case(
                "cosine",
                lambda loss=loss: loss(
                    REMEMBERED, gamma=0.4, gamma_schedule="cosine", gamma_decay_epochs=3
                ),
                visits,
                SURROGATE,
            ),
            Case(
                "inner product",
                lambda loss=loss: loss(REMEMBERED, normalize=False, grad_clip=3.0, reduction="sum"),
                visits,
                SURROGATE,
            ),
        ]
        for loss in (GlobalContrastiveLoss, TwoWayGlobalContrastiveLoss)
    },
}
CASES["TwoWayGlobalContrastiveLoss"] += [
    Case(
        "index2",
        lambda: TwoWayGlobalContrastiveLoss(
            REMEMBERED, individualized=True, state_dtype=torch.float64
        ),
        both_indexed,
        SURROGATE,
    )
]

CASES |= {
    "CorrectnessAwareLoss": [
        Case("balanced", CorrectnessAwareLoss, labels),
        Case("plain", lambda: CorrectnessAwareLoss(False), labels),
        Case("calibrated", CorrectnessAwareLoss, calibrated, CALIBRATED),
        Case("sum", lambda: CorrectnessAwareLoss(reduction="sum"), labels),
    ],
    "MixupRankingLoss": [
        Case("logit", MixupRankingLoss, mixups()),
        Case("margin=0", lambda: MixupRankingLoss(0.0), mixups()),
        *(Case(f"prob {m:g}", lambda m=m: MixupRankingLoss(m, "prob"), mixups()) for m in (0.2, 2)),
        Case("batchmean", lambda: MixupRankingLoss(reduction="batchmean"), mixups()),
    ],
    "MixupNDCGLoss": [
        Case("Q=3", MixupNDCGLoss, mixups(3), MIXES_FIRST),
        Case("Q=1", MixupNDCGLoss, mixups(1), MIXES_FIRST),
        Case("none", lambda: MixupNDCGLoss(reduction="none"), mixups(2), MIXES_FIRST),
    ],
}

CASES |= {
    "EvidentialLoss": [
        Case("default", EvidentialLoss, labels, FAR_OFF),
        *(
            Case(f"{kind} {made}", lambda kind=kind, made=made: EvidentialLoss(kind, made), of, but)
            for kind in ("digamma", "log", "mse")
            for made, of, but in (
                ("softplus", labels, FAR_OFF),
                ("relu", labels, FAR_OFF),
                ("exp", labels, {"property:smoothness": "the logits drawn do not reach the clamp"}),
                ("identity", evidence, {}),
            )
        ),
        *(
            Case(f"{kind} alone", lambda kind=kind: EvidentialLoss(kind, kl_weight=0.0), labels)
            for kind in ("digamma", "log", "mse")
        ),
        Case("mse relu", lambda: EvidentialLoss("mse", "relu", 0.0), labels),
        Case("weight", lambda: EvidentialLoss(kl_weight=0.3), ignored_labels, FAR_OFF),
        Case("pixels", lambda: EvidentialLoss("mse"), pixels, FAR_OFF),
        Case("tokens", lambda: EvidentialLoss("log", class_dim=-1), tokens, FAR_OFF),
        Case("probabilities", EvidentialLoss, probabilities, FAR_OFF),
        Case(
            "class_weight",
            lambda: EvidentialLoss(class_weight=of_classes()),
            ignored_labels,
            FAR_OFF,
        ),
    ],
    "TLCLoss": [
        Case("default", lambda: TLCLoss((50, 20, 10, 5, 1)), experts(10)),
        Case("late", lambda: TLCLoss((50, 20, 10, 5, 1), reweight_epoch=100), experts(120)),
        Case(
            "clamped",
            lambda: TLCLoss(of_classes(), scale=2.0, max_log_evidence=0.5, diversity=0.0),
            experts(50),
            {"property:smoothness": "the clamp has a kink"},
        ),
        Case("sum", lambda: TLCLoss((50, 20, 10, 5, 1), reduction="sum"), experts(0)),
    ],
}

CASES |= {
    "GradientSimilarityFocalLoss": [
        Case("default", GradientSimilarityFocalLoss, with_features(), DETACHED),
        Case(
            "scaled",
            lambda: GradientSimilarityFocalLoss(1.0, 0.5),
            with_features(scaled=True),
            DETACHED | {"property:bounds": "the stored direction has no scales"},
        ),
        Case("gamma=0", lambda: GradientSimilarityFocalLoss(0.3, 0.0), with_features()),
    ],
    "FeatureSeparationLoss": [
        Case("default", FeatureSeparationLoss, labelled),
        Case("tau=0.01", lambda: FeatureSeparationLoss(0.01), labelled),
        Case(
            "batchmean",
            lambda: FeatureSeparationLoss(0.5, reduction="batchmean"),
            labelled,
            FOR_OTHER_BATCHES,
        ),
    ],
    "SRATLoss": [
        Case("default", SRATLoss, with_features()),
        Case("weighted", lambda: SRATLoss(of_classes(), 0.5, 0.3), with_features()),
        Case("sum", lambda: SRATLoss(reduction="sum"), with_features()),
    ],
    "LogitAdjustmentLoss": [
        Case("default", lambda: LogitAdjustmentLoss((50, 20, 10, 5, 1)), labels),
        Case("tau=0", lambda: LogitAdjustmentLoss(of_classes(), tau=0.0), labels),
        Case("tau=-1", lambda: LogitAdjustmentLoss(class_prior=of_classes(), tau=-1.0), labels),
        Case("equal", lambda: LogitAdjustmentLoss((7,) * K), labels),
        Case("pixels", lambda: LogitAdjustmentLoss(of_classes(), tau=2.0), pixels),
        Case("tokens", lambda: LogitAdjustmentLoss(of_classes(), class_dim=-1), tokens),
        Case("probabilities", lambda: LogitAdjustmentLoss(of_classes()), probabilities),
        Case(
            "class_weight soft",
            lambda: LogitAdjustmentLoss(of_classes(), class_weight=of_classes()),
            probabilities,
        ),
    ],
}


def one_logit(*shape):
    """Logits of any shape, each with a target of 0 or 1."""

    def draw(n, dtype, generator):
        logits = torch.randn(n, *shape, dtype=dtype, generator=generator)
        return logits, torch.randint(2, logits.shape, generator=generator)

    return draw


def with_draws(n, dtype, generator):
    """The same with the normal draws of a random loss, so that calls can be compared."""
    return *one_logit()(n, dtype, generator), torch.randn(n, dtype=dtype, generator=generator)


def bounds(inputs):
    """Lower and upper bounds around logits."""

    def draw(n, dtype, generator):
        logits, target = inputs(n, dtype, generator)
        width = 0.1 + torch.rand(logits.shape, dtype=dtype, generator=generator)
        return logits - width, logits + width, target

    return draw


def boxes(n, dtype, generator, *shape):
    """Pairs of bounds of six neurons, as one tensor."""
    centre = torch.randn(*shape, n, 6, dtype=dtype, generator=generator)
    width = 0.05 + 0.3 * torch.rand(*shape, n, 6, dtype=dtype, generator=generator)
    return torch.stack((centre - width, centre + width), len(shape))


def layers(n, dtype, generator):
    return (boxes(n, dtype, generator, 3),)


def growing_layers(n, dtype, generator):
    growth = torch.tensor([1.0, 2.0, 5.0], dtype=dtype).view(3, 1, 1, 1)
    return boxes(n, dtype, generator), boxes(n, dtype, generator, 3) * growth


def bags(of=2, binary=False):
    """Samples in bags of ``of``, and what is known of the bags."""

    def draw(n, dtype, generator):
        input = torch.randn(n, dtype=dtype, generator=generator)
        shape = (-(-n // of),)
        known = torch.randn(shape, dtype=dtype, generator=generator)
        shares = torch.randint(3, shape, generator=generator).to(dtype) / 2
        return input, torch.arange(n) // of, shares if binary else known

    return draw


#: Regularizers of bounds: the search for their bounds lets lower and upper ones cross.
CROSSING = {"property:bounds": "the search leaves what has a lower bound below the upper one"}
#: Samples are entries of bags, and cannot be left out of a batch without the others.
OF_BAGS = dict.fromkeys(("weight_zero", "normalizer"), "one value per bag, not per sample")

CASES |= {
    "StableMaxCrossEntropyLoss": [
        Case("default", StableMaxCrossEntropyLoss, labels),
        Case("ignored", StableMaxCrossEntropyLoss, ignored_labels),
        Case("tokens", lambda: StableMaxCrossEntropyLoss(class_dim=-1), tokens),
        Case(
            "class_weight soft",
            lambda: StableMaxCrossEntropyLoss(class_weight=of_classes()),
            probabilities,
        ),
    ],
    "SphericalSoftmaxLoss": [
        Case("eps=0.001", SphericalSoftmaxLoss, labels),
        *(Case(f"eps={e:g}", lambda e=e: SphericalSoftmaxLoss(e), labels) for e in (0.5, 10.0)),
        Case("two classes", lambda: SphericalSoftmaxLoss(0.5), two_classes),
        Case("pixels", SphericalSoftmaxLoss, pixels),
        Case("probabilities", SphericalSoftmaxLoss, probabilities),
    ],
    "TaylorSoftmaxLoss": [
        Case("default", TaylorSoftmaxLoss, labels),
        Case("ignored", TaylorSoftmaxLoss, ignored_labels),
        Case("pixels", TaylorSoftmaxLoss, pixels),
        Case("probabilities", TaylorSoftmaxLoss, probabilities),
    ],
    "ZLoss": [
        Case("a=1 b=0", lambda: ZLoss(a=1.0, b=0.0), labels),
        Case("a=5 b=1", lambda: ZLoss(a=5.0, b=1.0), labels),
        Case("eps=0.1", lambda: ZLoss(a=1.0, b=0.5, eps=0.1), labels),
        Case("two classes", lambda: ZLoss(a=0.5, b=-1.0, eps=2.0), two_classes),
        Case("ignored", lambda: ZLoss(a=2.0, b=0.5), ignored_labels),
        Case("pixels", lambda: ZLoss(a=1.0, b=0.0), pixels),
        Case("probabilities", lambda: ZLoss(a=1.0, b=0.0), probabilities),
    ],
    "ScaledLogisticLoss": [
        Case("scale=1", ScaledLogisticLoss, one_logit()),
        *(
            Case(f"scale={c:g}", lambda c=c: ScaledLogisticLoss(c), one_logit())
            for c in (0.1, 20.0, math.inf)
        ),
        Case("several", lambda: ScaledLogisticLoss(3.0), one_logit(2), OF_SEVERAL),
        Case("none", lambda: ScaledLogisticLoss(3.0, reduction="none"), one_logit()),
    ],
    "NormalizedLogisticLoss": [
        Case("mean", NormalizedLogisticLoss, one_logit(), SURROGATE),
        Case(
            "batchmean",
            lambda: NormalizedLogisticLoss(reduction="batchmean"),
            one_logit(),
            SURROGATE,
        ),
    ],
    "EnsLoss": [
        Case("lam=0", EnsLoss, with_draws, SURROGATE),
        *(
            Case(
                f"lam={lam:g}",
                lambda lam=lam: EnsLoss(lam, 0.7, offset=1e-3),
                with_draws,
                SURROGATE,
            )
            for lam in (-1.0, -0.7, 0.5, 1.0)
        ),
        Case("without tail", lambda: EnsLoss(tail=False), with_draws, SURROGATE),
    ],
    "IBPRobustCrossEntropyLoss": [
        Case("default", IBPRobustCrossEntropyLoss, bounds(labels)),
        Case("ignored", IBPRobustCrossEntropyLoss, bounds(ignored_labels)),
        Case("pixels", IBPRobustCrossEntropyLoss, bounds(pixels)),
        Case("tokens", lambda: IBPRobustCrossEntropyLoss(class_dim=-1), bounds(tokens)),
        Case("probabilities", IBPRobustCrossEntropyLoss, bounds(probabilities)),
        Case(
            "class_weight soft",
            lambda: IBPRobustCrossEntropyLoss(class_weight=of_classes()),
            bounds(probabilities),
        ),
    ],
    "IBPTightnessRegularizer": [
        Case("tol=0.5", IBPTightnessRegularizer, growing_layers, CROSSING),
        Case("tol=0.9", lambda: IBPTightnessRegularizer(0.9), growing_layers, CROSSING),
    ],
    "ReLUBalanceRegularizer": [
        Case("tol=0.5", ReLUBalanceRegularizer, layers, CROSSING),
        Case("tol=0.9", lambda: ReLUBalanceRegularizer(0.9), layers, CROSSING),
    ],
    "AggregateResponseLoss": [
        Case("mse", AggregateResponseLoss, bags(), OF_BAGS),
        *(
            Case(f"rho={r:g}", lambda r=r: AggregateResponseLoss(r), bags(), OF_BAGS)
            for r in (0.0, 1.0)
        ),
        *(
            Case(
                f"bce rho={r:g}",
                lambda r=r: AggregateResponseLoss(r, "bce"),
                bags(binary=True),
                OF_BAGS,
            )
            for r in (0.0, 0.3, 1.0)
        ),
        Case("one bag", AggregateResponseLoss, bags(4), OF_BAGS),
    ],
}


def of_answers(count):
    """That many numbers for each answer."""

    def draw(n, dtype, generator):
        return tuple(torch.randn(count, n, dtype=dtype, generator=generator))

    return draw


def language(mask=False, vocabulary=4):
    """Logits of a model and of its reference, labels of which some are ignored, and a mask."""

    def draw(n, dtype, generator):
        logits = torch.randn(2, n, 5, vocabulary, dtype=dtype, generator=generator)
        labels = torch.randint(vocabulary, (n, 5), generator=generator)
        labels[:, 0] = -100
        there = torch.rand(n, 5, generator=generator) < 0.7
        there[:, 2] = True
        return logits[0], labels, logits[1], *([there] if mask else [])

    return draw


def trajectories(steps, more=1):
    """Values, rewards, terminal rewards and lengths of the steps."""

    def draw(n, dtype, generator):
        def numbers(*shape):
            return torch.randn(n, *shape, dtype=dtype, generator=generator)

        length = 0.1 + torch.rand(n, steps, dtype=dtype, generator=generator)
        return numbers(steps + more), numbers(steps), numbers(), length

    return draw


def anchored(loss, *shape, targets=(), **options):
    """Build a surrogate at an anchor of four samples."""

    def build():
        generator = torch.Generator().manual_seed(5)
        z = torch.randn(4, *shape, dtype=torch.float64, generator=generator)
        z = z.softmax(-1) if options.get("divergence") == "kl" else z
        surrogate = TargetSurrogateLoss(loss, **options)
        surrogate.anchor(z, *targets)
        return surrogate

    return build


def outputs(*shape, positive=False):
    def draw(n, dtype, generator):
        z = torch.randn(n, *shape, dtype=dtype, generator=generator)
        return (z.softmax(-1) if positive else z,)

    return draw


#: The samples are those of the anchor: no others, and none without the others.
OF_ANCHOR = dict.fromkeys(
    (
        "empty_batch",
        "weight_zero",
        "normalizer",
        "property:convex",
        "property:smoothness",
    ),
    "the batch is that of the anchor",
)
OF_WINDOW = {"state_order": "the window holds the last rewards in the order in which they came"}
#: What the stored counterexamples are not of.
MASKED = {"property:bounds": "the stored direction has no mask"}
OTHER_STEPS = dict.fromkeys(
    ("property:bounds", "property:lipschitz"), "the stored direction is of two steps"
)
FOUR_CLASSES = torch.arange(4) % 3

CASES |= {
    "P3OLoss": [
        Case("default", P3OLoss, of_answers(6), SURROGATE),
        Case("joint", lambda: P3OLoss(0.5, "joint"), of_answers(6), SURROGATE),
        Case("unclipped", lambda: P3OLoss(math.inf), of_answers(6), SURROGATE),
    ],
    "DirectAdvantageLoss": [
        Case("default", DirectAdvantageLoss, of_answers(3)),
        Case("beta=1", lambda: DirectAdvantageLoss(1.0), of_answers(3)),
    ],
    "FDPGLoss": [
        Case("default", FDPGLoss, of_answers(4), SURROGATE | OF_WINDOW),
        *(
            Case(
                f"{f} window={n}",
                lambda f=f, n=n: FDPGLoss(f, baseline_window=n),
                of_answers(4),
                SURROGATE | OF_WINDOW,
            )
            for f in ("kl", "reverse_kl", "tv", "chi2", "reverse_chi2")
            for n in (3, 100)
        ),
        Case("alone", lambda: FDPGLoss("kl", False), of_answers(4), SURROGATE),
    ],
    "SuperHFLoss": [
        Case("default", SuperHFLoss, language(mask=True), MASKED),
        Case("no mask", SuperHFLoss, language(vocabulary=2)),
        Case("RAFT", lambda: SuperHFLoss(0.0), language(vocabulary=2)),
        Case("inverse", lambda: SuperHFLoss(0.1, 0.3, shift=False), language()),
    ],
    "MartingaleLoss": [
        Case("default", MartingaleLoss, trajectories(2, 0)),
        Case("discount", lambda: MartingaleLoss(0.7), trajectories(4), OTHER_STEPS),
    ],
    "TargetSurrogateLoss": [
        Case(
            "default",
            anchored(CompSumLoss(), 3, targets=(FOUR_CLASSES,)),
            outputs(3),
            OF_ANCHOR,
        ),
        Case(
            "kl",
            anchored(torch.square, 3, divergence="kl", eta=0.5),
            outputs(3, positive=True),
            OF_ANCHOR,
        ),
        Case("numbers", anchored(CauchyLoss(), targets=(torch.zeros(4),)), outputs(), OF_ANCHOR),
    ],
}


def params(classes=None):
    """Return the cases of some classes, or of all, as parameters of a test."""
    return [
        pytest.param(
            case,
            id=f"{name}-{case.name.replace(' ', '-')}",
            marks=[pytest.mark.wide] if i else [],
        )
        for name in classes or CASES
        for i, case in enumerate(CASES[name])
    ]


def with_prototypes(old=False):
    """Features of samples, and prototypes of three classes: of two models, or labels and one."""

    def draw(n, dtype, generator):
        features = torch.randn(2, n, 3, dtype=dtype, generator=generator)
        prototypes = torch.randn(2, 3, 3, dtype=dtype, generator=generator)
        if old:
            return *features, *prototypes
        return features[0], torch.arange(n) % 3, prototypes[0]

    return draw


def retained_and_forgotten(n, dtype, generator):
    """Representations of retained and of five forgotten samples, and what they are held against."""
    retained = torch.randn(2, n, 3, dtype=dtype, generator=generator)
    return *retained, *torch.randn(2, 5, 3, dtype=dtype, generator=generator)


def two_gradients(n, dtype, generator):
    """Two gradients of three layers with a row per sample."""
    return tuple(torch.randn(2, 3, n, 2, dtype=dtype, generator=generator))


def mixtures(n, dtype, generator):
    """Features of mixed inputs and of their parts, shares and noise."""
    mixed, a, b, noise = torch.randn(4, n, 3, dtype=dtype, generator=generator)
    return mixed, a, b, torch.rand(n, dtype=dtype, generator=generator), noise


#: Half of the samples are of the other kind, and their number another.
OF_TWO_KINDS = dict.fromkeys(
    ("weight_zero", "normalizer"), "values of two kinds of samples, one after the other"
)


def ring(n, dtype, generator):
    """A graph convolutional network on a ring, and a view that has lost an edge."""
    x = torch.randn(n, 3, dtype=dtype, generator=generator)
    other = torch.randn(n, 2, dtype=dtype, generator=generator)
    node = torch.arange(n)
    apart = (node.unsqueeze(1) - node).abs()
    edges = (apart == 1) | ((apart == n - 1) & (apart > 0))
    parameters = ((3, 5), (5,), (5, 2), (2,))
    drawn = (torch.randn(s, dtype=dtype, generator=generator) for s in parameters)
    return x, other, edges, apart == 1, *drawn


def views_of_two_classes(n, dtype, generator):
    """Two views of samples of two classes."""
    return *views(n, dtype, generator), torch.arange(n) % 2


CASES |= {
    "PrototypeRelationDistillationLoss": [
        Case("default", PrototypeRelationDistillationLoss, with_prototypes(True)),
        *(
            Case(
                f"{over} {normalize}",
                lambda o=over, f=normalize: PrototypeRelationDistillationLoss(0.3, o, f),
                with_prototypes(True),
            )
            for over in ("samples", "classes")
            for normalize in (True, False)
        ),
    ],
    "PrototypeTightnessLoss": [
        Case(
            "default",
            PrototypeTightnessLoss,
            with_prototypes(),
            {"normalizer": "the prototypes are those of all micro-batches"},
        ),
    ],
    "OnlinePrototypeEquilibriumLoss": [
        Case("default", OnlinePrototypeEquilibriumLoss, views_of_two_classes),
        Case("small", lambda: OnlinePrototypeEquilibriumLoss(0.05), views_of_two_classes),
        Case(
            "inner product",
            lambda: OnlinePrototypeEquilibriumLoss(normalize=False),
            views_of_two_classes,
        ),
    ],
    "ModelBehaviorConsistencyLoss": [
        Case("default", ModelBehaviorConsistencyLoss, views),
        Case("variance", lambda: ModelBehaviorConsistencyLoss(True, False), views),
    ],
    "LabelConsistencyLoss": [
        Case("default", LabelConsistencyLoss, views),
        Case("both", lambda: LabelConsistencyLoss(detach_reference=False), views),
        Case("official", lambda: LabelConsistencyLoss("official"), views),
    ],
    "LAFAlignmentLoss": [
        Case("default", LAFAlignmentLoss, retained_and_forgotten),
        Case("mean", lambda: LAFAlignmentLoss(0.2, reduction="mean"), retained_and_forgotten),
    ],
    "LAFRepresentationUnlearningLoss": [
        Case(
            "default",
            LAFRepresentationUnlearningLoss,
            lambda n, dtype, generator: tuple(
                torch.randn(4, n, 3, dtype=dtype, generator=generator)
            ),
            OF_TWO_KINDS,
        ),
    ],
    "GradientMatchingLoss": [
        Case("default", GradientMatchingLoss, two_gradients),
        Case("mse", lambda: GradientMatchingLoss("mse"), two_gradients),
        Case("cos", lambda: GradientMatchingLoss("cos"), two_gradients),
        Case("mean", lambda: GradientMatchingLoss(reduction="mean"), two_gradients),
    ],
    "AdaptiveMixLoss": [
        Case("default", AdaptiveMixLoss, mixtures),
        Case("cosine", lambda: AdaptiveMixLoss("cosine"), mixtures),
        Case("loud", lambda: AdaptiveMixLoss(noise_std=2.0), mixtures),
    ],
    "NodeCompactnessRegularizer": [
        Case("half", lambda: NodeCompactnessRegularizer(0.5), ring),
        Case("leaky", lambda: NodeCompactnessRegularizer(0.2, 0.25), ring),
        Case("none", lambda: NodeCompactnessRegularizer(0.0), ring),
    ],
}


def with_proxies(*arguments):
    """Make a proxy-anchor loss with the same proxies every time."""
    return with_directions(ProxyAnchorLoss, *arguments)


def queried(n, dtype, generator):
    """Queries of three classes, and the prototypes of those."""
    queries = torch.randn(n, 3, dtype=dtype, generator=generator)
    return queries, torch.arange(n) % 3, torch.randn(3, 3, dtype=dtype, generator=generator)


SHARED_PROTOTYPES = {"normalizer": "micro-batches share the prototypes, whose gradients add up"}


CASES |= {
    "MultiSimilarityLoss": [
        Case("default", MultiSimilarityLoss, labelled, FOR_OTHER_BATCHES),
        Case("mined", lambda: MultiSimilarityLoss(3.0, 4.0, 0.2, 0.1), labelled, FOR_OTHER_BATCHES),
        Case(
            "inner product",
            lambda: MultiSimilarityLoss(2.0, 3.0, normalize=False),
            labelled,
            FOR_OTHER_BATCHES,
        ),
    ],
    "MetrixLoss": [
        Case("clean", lambda: MetrixLoss(mix_weight=0.0), labelled),
        *(
            Case(base, lambda base=base: MetrixLoss(base, 0.0), labelled, FOR_OTHER_BATCHES)
            for base in ("contrastive_distance", "multi_similarity", "binomial", "lifted", "nca")
        ),
    ],
    "NPairLoss": [
        Case("default", NPairLoss, views),
        Case("held", lambda: NPairLoss(0.3), views, FOR_OTHER_BATCHES),
        Case("cosine", lambda: NPairLoss(normalize=True), views, FOR_OTHER_BATCHES),
    ],
    "TripletMarginLoss": [
        Case("default", TripletMarginLoss, labelled),
        *(
            Case(
                f"{mining} {average} swap={swap} smooth={smooth}",
                lambda m=mining, a=average, w=swap, s=smooth, margin=margin: TripletMarginLoss(
                    margin, w, s, m, a
                ),
                labelled,
                FOR_OTHER_BATCHES,
            )
            # Of few samples, there are semi-hard triplets with a wide margin only.
            for mining, margin in (("all", 0.3), ("hard", 0.3), ("semihard", 1.5))
            for average in ("nonzero", "all")
            for swap in (False, True)
            for smooth in (False, True)
        ),
        Case("plain", lambda: TripletMarginLoss(1.0, normalize=False), labelled),
    ],
    "ProxyAnchorLoss": [
        Case("default", with_proxies(0.1, 4.0), labelled, FOR_OTHER_BATCHES),
        Case("published", with_proxies(), labelled, FOR_OTHER_BATCHES),
    ],
    "ProtoTripletLoss": [
        Case("default", ProtoTripletLoss, queried, SHARED_PROTOTYPES),
        Case("wide", lambda: ProtoTripletLoss(2.0, 0.1), queried, SHARED_PROTOTYPES),
    ],
    "ICNNLoss": [
        Case("default", lambda: ICNNLoss(1), labelled, FOR_OTHER_BATCHES),
        Case("few", ICNNLoss, labelled, FOR_OTHER_BATCHES),
        Case("neighbours", lambda: ICNNLoss(1, 3), labelled, FOR_OTHER_BATCHES),
    ],
}


def series(*ids):
    """Two views of samples of two channels over five times, and ids that pairs of them share."""

    def draw(n, dtype, generator):
        pair = torch.randn(2, n, 5, 2, dtype=dtype, generator=generator)
        return *pair, *(torch.arange(n) % of for of in ids)

    return draw


def all_levels(n, dtype, generator):
    """Two views at each of four levels, of as few numbers as there can be."""
    pairs = torch.randn(8, n, 2, 1, dtype=dtype, generator=generator)
    return *pairs, torch.arange(n) % 2, torch.arange(n) % 3


def heads(n, dtype, generator):
    """Two views of samples, of two heads."""
    return tuple(torch.randn(2, 2, n, 3, dtype=dtype, generator=generator))


def projected():
    return RMTContrastiveLoss(0.5, torch.nn.Tanh())


CASES |= {
    "BarlowTwinsLoss": [
        Case("default", BarlowTwinsLoss, views),
        Case("lambda=0.5", lambda: BarlowTwinsLoss(0.5, 0.1), views, FOR_OTHER_BATCHES),
    ],
    "VICRegLoss": [
        Case("default", VICRegLoss, views, FOR_OTHER_BATCHES),
        Case("covariances", lambda: VICRegLoss(1.0, 2.0, 3.0, 0.1), views, FOR_OTHER_BATCHES),
        Case("variance", lambda: VICRegLoss(0.0, 1.0, 0.0), views, FOR_OTHER_BATCHES),
    ],
    "COMETLoss": [
        Case("default", COMETLoss, series(), FOR_OTHER_BATCHES),
        Case("sample", lambda: COMETLoss("sample"), series(), FOR_OTHER_BATCHES),
        Case("patient", lambda: COMETLoss("patient"), series(2), FOR_OTHER_BATCHES),
        Case("scales", lambda: COMETLoss("trial", 0.5, True), series(2), FOR_OTHER_BATCHES),
    ],
    "COMETTotalLoss": [
        Case("default", COMETTotalLoss, all_levels, FOR_OTHER_BATCHES),
        Case(
            "factors", lambda: COMETTotalLoss((1.0, 0.5, 0.0, 2.0)), all_levels, FOR_OTHER_BATCHES
        ),
    ],
    "AMCLLoss": [
        Case("default", with_directions(AMCLLoss, tau_low=0.05, hidden=4), heads),
        Case("published", with_directions(AMCLLoss), heads),
        Case("lse", with_directions(AMCLLoss, 0.5, 0.1, negatives="lse", shared=True), heads),
    ],
    "RMTContrastiveLoss": [
        Case("default", RMTContrastiveLoss, embeddings((3, 3)), FOR_OTHER_BATCHES),
        Case("projector", projected, embeddings((3, 3)), FOR_OTHER_BATCHES),
    ],
}
