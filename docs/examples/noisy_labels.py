"""Train one small network on digits with wrong labels, once per loss, and compare the losses.

The data are the 1797 real handwritten digits that come with scikit-learn (8x8 pixels, no download).
Part of the training labels is replaced by wrong ones; the test labels stay clean. A network that is
trained long enough learns the wrong labels by heart; robust losses are meant to resist that.

    python noisy_labels.py            # two to four minutes
    python noisy_labels.py --smoke    # a few seconds, only to see that it runs

It prints a Markdown table (mean ± standard deviation over the seeds of the clean test accuracy
after the last epoch) and saves a plot. Besides lossary it needs scikit-learn, matplotlib and tqdm.
"""

import argparse
from collections.abc import Callable
from itertools import pairwise

import matplotlib
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import lossary

# Published or default settings, not tuned here. All are called as criterion(logits, target); those
# that remember each sample of the training set, n in number, also get its index.
LOSSES: dict[str, Callable[[int], nn.Module]] = {
    "CrossEntropyLoss()": lambda n: nn.CrossEntropyLoss(),
    "LDRKLLoss(lam=1, margin=0.1)": lambda n: lossary.LDRKLLoss(lam=1.0, margin=0.1),
    'LDRKLLoss(lam=10, margin=0.1, normalize="softplus")': lambda n: lossary.LDRKLLoss(
        lam=10.0, margin=0.1, normalize="softplus"
    ),
    'ALDRKLLoss(n, lam=10, margin=0.1, normalize="softplus")': lambda n: lossary.ALDRKLLoss(
        n, lam=10.0, margin=0.1, normalize="softplus", margin_in_update=False, prob_eps=1e-5
    ),
    "SymmetricCrossEntropyLoss(alpha=0.1, beta=1)": lambda n: lossary.SymmetricCrossEntropyLoss(
        alpha=0.1, beta=1.0
    ),
    "GeneralizedCrossEntropyLoss(q=0.7)": lambda n: lossary.GeneralizedCrossEntropyLoss(q=0.7),
    'TruncatedGCELoss(q=0.7, k=0.5, mode="prune")': lambda n: lossary.TruncatedGCELoss(
        q=0.7, k=0.5, mode="prune", num_samples=n
    ),
    "MulticlassMAELoss()": lambda n: lossary.MulticlassMAELoss(),
}

# The digit that each digit is mistaken for under class-dependent noise:
# 7 -> 1 -> 2 -> 7, 3 <-> 8, 4 <-> 9 and 0 -> 6 -> 5 -> 0. No digit is its own neighbour.
NEIGHBOUR = torch.tensor([6, 2, 7, 8, 9, 0, 5, 1, 3, 4])

Condition = tuple[str, int]  # kind of noise, noise rate in percent
CLEAN: Condition = ("no noise", 0)
KINDS = ("symmetric", "class-dependent")
RATES = (20, 40, 60)

TRAIN_SIZE = 1200
BATCH_SIZE = 120
LAYERS = (64, 128, 128, 10)
LEARNING_RATE = 1e-3


def prunes(epoch: int, epochs: int) -> bool:
    """Whether truncated GCE decides now which samples to leave out: the authors' schedule.

    Every 10 epochs after the first third of the training.
    """
    return epoch >= epochs // 3 and epoch % 10 == 0


NOTES = """\
Notes on the default run
- Symmetric noise: a wrong label is any of the nine other digits, equally often. Class-dependent
  noise: a wrong label is always the digit's neighbour (7->1->2->7, 3<->8, 4<->9, 0->6->5->0).
- With 60 % class-dependent noise most labels of every digit are wrong, and no loss can win: the
  labels look exactly as if the neighbours were right and 40 % had been changed. A loss that
  follows the majority, as a robust one should, heads for 0 %; one that learns the labels by heart
  lands near 40 %, the share of right ones. A high number in that column is not robustness.
- For a given seed every loss gets the same split, noise, initial weights, batches, optimiser,
  learning rate and epochs; no loss is tuned. The spread includes the change of split.
- Accuracy is taken after the last epoch, without early stopping. Try --epochs 25: stopped early,
  cross-entropy has learned few wrong labels yet. With symmetric noise most of its gap is then gone,
  with 40 % class-dependent noise it is not.
- MulticlassMAELoss settles slowly: its gradient vanishes where the label looks improbable, so a run
  may leave out a whole digit for many epochs, or for good. Hence the large spread in some columns.
- LDRKLLoss(lam=1, margin=0.1) is cross-entropy but for the small margin, and behaves like it. The
  robust one is lam=10 on normalised logits, the setting of the authors' experiment script.
- ALDRKLLoss, in the same setting, cannot be told from it. At lam=1 it is worse than cross-entropy
  under noise: its temperatures only fall, and a lower one fights harder for a wrong label.
- TruncatedGCELoss decides every 10 epochs, from the 40th on, which samples to leave out. Under
  symmetric noise of 40 and 60 % it is the best here."""


def generator(purpose: str, seed: int) -> torch.Generator:
    """Random numbers of their own for each purpose, the same for every loss and condition."""
    offset = {"noise": 0, "weights": 10_000, "batches": 20_000}[purpose]
    return torch.Generator().manual_seed(offset + seed)


def corrupt(labels: Tensor, kind: str, rate: int, seed: int) -> Tensor:
    """Replace about `rate` percent of the labels by wrong ones.

    The noise is nested: for a given seed, what is wrong at 20 % is also wrong at 40 %.
    """
    noise = generator("noise", seed)
    is_wrong = torch.rand(labels.shape, generator=noise) < rate / 100
    shift = torch.randint(1, 10, labels.shape, generator=noise)
    wrong_labels = NEIGHBOUR[labels] if kind == "class-dependent" else (labels + shift) % 10
    return torch.where(is_wrong, wrong_labels, labels)


def make_data(conditions: list[Condition], seeds: int) -> tuple[Tensor, ...]:
    """Training images, noisy training labels, test images and test labels, one row per run.

    A run is a pair (condition, seed); the runs of one condition follow each other.
    """
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
    runs = []
    for kind, rate in conditions:
        for seed in range(seeds):
            train, test = train_test_split(
                range(len(labels)), train_size=TRAIN_SIZE, stratify=labels, random_state=seed
            )
            noisy_labels = corrupt(labels[train], kind, rate, seed)
            runs.append((images[train], noisy_labels, images[test], labels[test]))
    return tuple(torch.stack(column) for column in zip(*runs, strict=True))


def make_weights(num_conditions: int, seeds: int) -> list[Tensor]:
    """Weight and bias of each layer with a leading axis for the runs, equal for equal seeds."""
    generators = [generator("weights", seed) for seed in range(seeds)]
    parameters = []
    for fan_in, fan_out in pairwise(LAYERS):
        weight = torch.stack([torch.randn(fan_in, fan_out, generator=g) for g in generators])
        weight *= (2 / fan_in) ** 0.5  # He initialisation, for relu
        parameters += [weight.repeat(num_conditions, 1, 1)]
        parameters += [torch.zeros(num_conditions * seeds, 1, fan_out)]
    return [parameter.requires_grad_() for parameter in parameters]


def predict(parameters: list[Tensor], images: Tensor) -> Tensor:
    """Logits (runs, batch, 10) of all networks at once: run r sees images[r]."""
    *hidden, (last_weight, last_bias) = zip(parameters[::2], parameters[1::2], strict=True)
    activations = images
    for weight, bias in hidden:
        activations = torch.baddbmm(bias, activations, weight).relu()
    return torch.baddbmm(last_bias, activations, last_weight)


def train(
    make_criterion: Callable[[int], nn.Module],
    conditions: list[Condition],
    seeds: int,
    epochs: int,
    progress: tqdm,
) -> Tensor:
    """Train one network per run and return the clean test accuracies (conditions, seeds) in %."""
    train_images, train_labels, test_images, test_labels = make_data(conditions, seeds)
    parameters = make_weights(len(conditions), seeds)
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    runs = torch.arange(len(train_labels)).unsqueeze(1)
    criterion = make_criterion(train_labels.numel())  # all runs in one: each has its own samples
    remembers = isinstance(criterion, lossary.ALDRKLLoss | lossary.TruncatedGCELoss)
    generators = [generator("batches", seed) for seed in range(seeds)]
    for epoch in range(epochs):
        if isinstance(criterion, lossary.TruncatedGCELoss) and prunes(epoch, epochs):
            every = torch.arange(train_labels.numel())
            with torch.no_grad():
                logits = predict(parameters, train_images)
            criterion.prune(logits.flatten(0, 1), train_labels.flatten(), every)
        order = torch.stack([torch.randperm(TRAIN_SIZE, generator=g) for g in generators])
        for batch in order.repeat(len(conditions), 1).split(BATCH_SIZE, dim=1):
            logits = predict(parameters, train_images[runs, batch])
            index = ((runs * TRAIN_SIZE + batch).flatten(),) if remembers else ()
            loss = criterion(logits.flatten(0, 1), train_labels[runs, batch].flatten(), *index)
            optimizer.zero_grad()
            # The mean runs over all networks together; times their number, each gets its own mean.
            (loss * len(runs)).backward()
            optimizer.step()
        progress.update()
    with torch.no_grad():
        correct = predict(parameters, test_images).argmax(dim=-1) == test_labels
    return 100 * correct.float().mean(dim=1).view(len(conditions), seeds)


def spread(accuracies: Tensor) -> Tensor:
    """Standard deviation over the seeds; 0 for a single seed, which has none."""
    return accuracies.std(dim=1, correction=min(1, accuracies.shape[1] - 1))


def markdown_table(conditions: list[Condition], results: dict[str, Tensor]) -> str:
    """Mean ± spread of the clean test accuracy: a row per loss, a column per condition."""
    header = [
        "clean test accuracy, %",
        *(f"{kind} {rate} %" if rate else kind for kind, rate in conditions),
    ]
    rows = [header, ["---", *("---:" for _ in conditions)]]
    for name, accuracies in results.items():
        cells = [f"{mean:.1f}" for mean in accuracies.mean(dim=1)]
        if accuracies.shape[1] > 1:
            cells = [f"{c} ± {std:.1f}" for c, std in zip(cells, spread(accuracies), strict=True)]
        rows.append([f"`{name}`", *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def plot(conditions: list[Condition], results: dict[str, Tensor], path: str) -> None:
    """Two panels, one per kind of noise: clean test accuracy against the noise rate."""
    # Okabe and Ito's colours, and a grey.
    colours = [
        "#000000",
        "#56B4E9",
        "#0072B2",
        "#CC79A7",
        "#009E73",
        "#E69F00",
        "#999999",
        "#D55E00",
    ]
    matplotlib.rcParams.update(
        {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure = Figure(figsize=(12, 6.4))
    panels = figure.subplots(1, 2, sharey=True)
    for panel, kind in zip(panels, KINDS, strict=True):
        columns = [i for i, (name, _) in enumerate(conditions) if name in (CLEAN[0], kind)]
        rates = torch.tensor([conditions[i][1] for i in columns])
        for i, (name, accuracies) in enumerate(results.items()):
            panel.errorbar(
                rates + 0.6 * (i - 3.5),  # side by side, so that no bar hides another
                accuracies[columns].mean(dim=1),
                spread(accuracies[columns]),
                label=name,
                color=colours[i],
                marker="osDP^v*X"[i],
                linestyle="--" if i == 0 else "-",
                markersize=6,
                linewidth=1.8,
                capsize=2,
            )
        panel.set_title(f"{kind} label noise")
        panel.set_xlabel("wrong training labels (%)")
        panel.set_xticks((0, *RATES))
        panel.grid(axis="y", alpha=0.3)
    panels[0].set(ylabel="clean test accuracy (%)", xlim=(-4, 64), ylim=(0, 102))
    panels[1].set_xlim(-4, 64)
    panels[1].axvspan(50, 64, color="0.92", zorder=0)
    panels[1].text(57, 98, "most labels\nare wrong:\nno loss\ncan win", ha="center", va="top")
    seeds = next(iter(results.values())).shape[1]
    summary = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    figure.suptitle(f"Handwritten digits with wrong training labels: {summary}")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False
    )
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    figure.savefig(path, dpi=130)


def main() -> None:
    """Read the command line, train with every loss, print the table and save the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one seed, two conditions, 3 epochs")
    parser.add_argument("--seeds", type=int, help="number of seeds (default 5, smoke 1)")
    parser.add_argument("--epochs", type=int, help="passes over the data (default 120, smoke 3)")
    parser.add_argument("--out", default="noisy_labels.png", help="file for the plot")
    args = parser.parse_args()
    seeds = args.seeds or (1 if args.smoke else 5)
    epochs = args.epochs or (3 if args.smoke else 120)
    conditions = [CLEAN, *((kind, rate) for kind in KINDS for rate in RATES)]
    if args.smoke:
        conditions = [(kind, 40) for kind in KINDS]

    torch.set_num_threads(1)  # threads would only wait for each other on networks this small
    results = {}
    with tqdm(total=len(LOSSES) * epochs, unit="epoch") as progress:
        for name, make_criterion in LOSSES.items():
            progress.set_description(name.partition("(")[0])
            results[name] = train(make_criterion, conditions, seeds, epochs, progress)

    print(markdown_table(conditions, results), NOTES, sep="\n\n")
    plot(conditions, results, args.out)
    print(f"\nPlot saved to {args.out}")


if __name__ == "__main__":
    main()
