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
    ALDRKLLoss,
    CauchyLoss,
    CompSumLoss,
    CrammerSingerLoss,
    GeneralizedCrossEntropyLoss,
    LDRKLLoss,
    LDRLoss,
    Loss,
    MulticlassMAELoss,
    PseudoHuberLoss,
    ReverseCrossEntropyLoss,
    SmoothAdversarialCompSumLoss,
    SymmetricCrossEntropyLoss,
    TruncatedGCELoss,
    WestonWatkinsLoss,
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
#: Where the loss has a parameter: there, torch warns of a number read from a value with a graph.
READ_AS_NUMBERS = dict.fromkeys(
    ("property:bounds", "property:convex"), "the check reads a value that requires a gradient"
)


def trained(value=0.7):
    return torch.nn.Parameter(torch.tensor(value, dtype=torch.float64))


def per_column():
    return torch.tensor([0.3, 1.0, 2.0])


def pruned():
    """A loss some of whose samples are left out."""
    loss = TruncatedGCELoss(0.7, 0.5, "prune", REMEMBERED, class_dim=-1)
    loss.sample_weight[::2] = torch.tensor([0.0, 0.5, 0.0, 0.0])
    return loss


CASES: dict[str, list[Case]] = {
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
        Case("trained", lambda: PseudoHuberLoss(trained()), vectors, READ_AS_NUMBERS),
        Case(
            "trained elementwise",
            lambda: PseudoHuberLoss(trained(), "elementwise"),
            numbers,
            READ_AS_NUMBERS,
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
        Case("trained", lambda: CauchyLoss(trained()), numbers, READ_AS_NUMBERS),
        Case("trained vector", lambda: CauchyLoss(trained(), "vector"), vectors, READ_AS_NUMBERS),
        Case("per column", lambda: CauchyLoss(per_column()), vectors, OF_SEVERAL),
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
