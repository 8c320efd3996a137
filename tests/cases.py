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
    CompSumLoss,
    GeneralizedCrossEntropyLoss,
    LDRKLLoss,
    Loss,
    MulticlassMAELoss,
    ReverseCrossEntropyLoss,
    SymmetricCrossEntropyLoss,
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


def probabilities(n, dtype, generator):
    """Draw class probabilities in sixteenths: exact, and of sum 1, in bfloat16 too."""
    logits, _ = labels(n, dtype, generator)
    drawn = torch.randint(K, (n, 16 - K), generator=generator)
    counts = torch.nn.functional.one_hot(drawn, K).sum(1) + 1
    return logits, counts.to(dtype) / 16


def of_classes():
    return torch.linspace(0.5, 2.0, K)


def of_pairs():
    return torch.linspace(0.0, 1.0, K * K).view(K, K).fill_diagonal_(0.0)


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
