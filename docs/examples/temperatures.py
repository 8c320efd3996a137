"""Learn an encoder from augmented views of long-tailed digits, with and without own temperatures.

The data are scikit-learn's 8 x 8 digits (no download), of which the rarest class keeps 5 of its
training images and the most frequent 105; which class is how frequent changes with the seed. The
encoder never sees a label. Afterwards a linear classifier on its features, a probe, is fitted to 20
labelled images of each class, and tested on 50 others of each.

    python temperatures.py            # two to three minutes
    python temperatures.py --smoke    # seconds, only to see that it runs

It prints a Markdown table (mean ± standard deviation over the seeds) and saves a plot. Besides
lossary it needs scikit-learn (which brings scipy), matplotlib and tqdm.
"""

import argparse

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm

import lossary

CLASSES = 10
MOST, LEAST = 105, 5  # training images of the most frequent and of the rarest class
PROBE, TEST = 20, 50  # labelled images of each class
GROUPS = {"head": slice(0, 3), "middle": slice(3, 7), "tail": slice(7, 10)}  # by frequency
BATCH = 64
LEARNING_RATE = 2e-3

SLOWER = "GlobalContrastiveLoss(n, 0.1, individualized=True, rho=1, eta=0.003, grad_clip=3)"

NOTES = """\
Notes on the default run
- Do learnt temperatures follow the frequency of a class? Hardly. With rho=1 the rank correlation of
  a class's mean temperature with its size is 0.31 ± 0.29 over the seeds: the medians rise from 0.18
  for 7 images to 0.21 for 75, but the most frequent class, with 105, has no larger ones than the
  rarest. What a digit looks like counts as much as how frequent it is.
- With the defaults, rho=0.3 and eta=0.01, temperatures go to their bounds: 5 % are at 0.050, the
  lower one, the median is 0.064, and 5 % are above 0.52. At so small a temperature the mean of
  exp(s/tau) over the negatives changes by orders of magnitude from batch to batch, and a slope that
  compares it with the moving average says more about that than about the divergence. A larger rho,
  a smaller step and the clipping that the authors use keep the temperatures apart from the bounds.
- Every encoder is better than the pixels, by 3 points over all classes. Among the losses no
  difference exceeds the spread over the seeds: 95.2 to 95.7 % over all classes, 95.3 to 96.0 % in
  the tail. Own temperatures neither help nor hurt here, nor does the memory, nor the temperature.
- It is a small test. A batch holds a fifth of the 353 training images, so there is little that a
  memory of the rest could add. The published gains are on images of 100 to 1000 classes.
- For a given seed every loss gets the same images, start, batches and augmentations."""


def make_losses(samples: int) -> dict[str, lossary.Loss]:
    """Return the losses, all called as criterion(z1, z2[, index])."""
    return {
        "NTXentLoss(0.5)": lossary.NTXentLoss(0.5),
        "NTXentLoss(0.1)": lossary.NTXentLoss(0.1),
        "GlobalContrastiveLoss(n, 0.1)": lossary.GlobalContrastiveLoss(samples, 0.1),
        "GlobalContrastiveLoss(n, 0.1, individualized=True)": lossary.GlobalContrastiveLoss(
            samples, 0.1, individualized=True
        ),
        SLOWER: lossary.GlobalContrastiveLoss(
            samples, 0.1, individualized=True, rho=1.0, eta=0.003, grad_clip=3.0
        ),
    }


def make_data(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Split the digits; labels are ranks by frequency, 0 the most frequent class."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    generator = np.random.default_rng(seed)
    rank_of = generator.permutation(CLASSES)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {"train": [], "probe": [], "test": []}
    for digit in range(CLASSES):
        rank = int(rank_of[digit])
        own = generator.permutation(np.flatnonzero(digits.target == digit))
        keep = round(MOST * (LEAST / MOST) ** (rank / (CLASSES - 1)))
        cuts = {"probe": own[:PROBE], "test": own[PROBE : PROBE + TEST]}
        cuts["train"] = own[PROBE + TEST :][:keep]
        for name, chosen in cuts.items():
            parts[name].append((images[chosen], torch.full((len(chosen),), rank)))
    return {
        name: tuple(torch.cat(column) for column in zip(*rows, strict=True))  # type: ignore[misc]
        for name, rows in parts.items()
    }


def augment(images: Tensor, noise: torch.Generator) -> Tensor:
    """Return a random view of every image: turned, scaled, shifted, dimmed and noisy."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), generator=noise)

    angle, size = uniform(-0.35, 0.35), uniform(0.85, 1.15)
    cos, sin = angle.cos() * size, angle.sin() * size
    rows = [cos, -sin, uniform(-0.3, 0.3), sin, cos, uniform(-0.3, 0.3)]
    maps = torch.stack(rows, 1).view(-1, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, align_corners=False)
    dim = uniform(0.7, 1.3).view(-1, 1, 1, 1)
    return views * dim + 0.1 * torch.randn(views.shape, generator=noise)


class Encoder(nn.Module):
    """Two convolutions and a linear layer; the projection is used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 64),
        )
        self.project = nn.Sequential(nn.ReLU(), nn.Linear(64, 32))

    def forward(self, images: Tensor) -> Tensor:
        """Return what the loss compares."""
        return self.project(self.features(images))


def train(criterion: lossary.Loss, images: Tensor, seed: int, epochs: int, bar: tqdm) -> Encoder:
    """Learn from pairs of views; for a given seed the start, batches and views are the same."""
    torch.manual_seed(seed)
    encoder = Encoder()
    noise = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=LEARNING_RATE)
    needs_index = isinstance(criterion, lossary.GlobalContrastiveLoss)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=noise).split(BATCH):
            if len(index) < BATCH // 2:
                continue
            z1, z2 = (encoder(augment(images[index], noise)) for _ in range(2))
            loss = criterion(z1, z2, index) if needs_index else criterion(z1, z2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        bar.update()
    return encoder


@torch.no_grad()
def probe(encoder: nn.Module, data: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Return the accuracy of a linear classifier on the features, of each class."""
    features = {name: encoder(images).flatten(1).numpy() for name, (images, _) in data.items()}
    centre, spread = features["train"].mean(0), features["train"].std(0) + 1e-6
    features = {name: (x - centre) / spread for name, x in features.items()}
    classifier = LogisticRegression(C=0.1, max_iter=1000)
    classifier.fit(features["probe"], data["probe"][1].numpy())
    right = torch.tensor(classifier.predict(features["test"])) == data["test"][1]
    return torch.stack([right[data["test"][1] == k].float().mean() for k in range(CLASSES)])


def markdown_table(accuracies: dict[str, Tensor]) -> str:
    """Mean ± spread over the seeds: a row per loss, a column per group of classes."""
    header = ["probe accuracy, %", "all", *GROUPS]
    rows = [header, ["---", *("---:" for _ in header[1:])]]
    for name, accuracy in accuracies.items():
        cells = []
        for part in (slice(None), *GROUPS.values()):
            values = 100 * accuracy[:, part].mean(1)
            spread = f" ± {values.std():.1f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.1f}{spread}")
        rows.append([f"`{name}`" if "(" in name else name, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def temperature_table(sizes: Tensor, taus: dict[str, list[list[Tensor]]]) -> str:
    """Quantiles of the learnt temperatures, and how their class means go with class sizes."""
    header = ["learnt temperatures", "5 %", "median", "95 %", "rank correlation with class size"]
    rows = [header, ["---", *("---:" for _ in header[1:])]]
    for name, runs in taus.items():
        every = torch.cat([torch.cat(by_class) for by_class in runs])
        cells = [f"{x:.3f}" for x in torch.quantile(every, torch.tensor([0.05, 0.5, 0.95]))]
        means = [torch.stack([t.mean() for t in by_class]) for by_class in runs]
        found = torch.tensor([spearmanr(sizes, m).statistic for m in means])
        spread = f" ± {found.std():.2f}" if len(runs) > 1 else ""
        rows.append([f"`{name}`", *cells, f"{found.mean():.2f}{spread}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def plot(sizes: Tensor, taus: list[list[Tensor]], accuracies: dict[str, Tensor], path: str) -> None:
    """Left the learnt temperatures by class, right the accuracies by class."""
    colours = (
        "#999999",
        "#56B4E9",
        "#0072B2",
        "#E69F00",
        "#CC79A7",
        "#D55E00",
    )  # Okabe and Ito, and grey
    matplotlib.rcParams.update(
        {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure = Figure(figsize=(13, 6.2))
    left, right = figure.subplots(1, 2)
    by_class = [torch.cat([run[k] for run in taus]).tolist() for k in range(CLASSES)]
    left.boxplot(by_class, positions=range(CLASSES), showfliers=False, whis=(5, 95))
    left.set_xticks(range(CLASSES), labels=[str(int(n)) for n in sizes])
    left.axhline(0.1, color="#999999", linestyle=":", label="start")
    left.set_title("learnt temperatures (rho=1): quartiles, 5 to 95 %")
    left.set_ylabel("temperature")
    left.legend(frameon=False)
    for i, (name, accuracy) in enumerate(accuracies.items()):
        right.plot(
            100 * accuracy.mean(0),
            label=name,
            color=colours[i],
            marker="osD^vP"[i],
            linestyle=(":", "--", "-", "-", "-", "-")[i],
        )
    right.set_xticks(range(CLASSES), labels=[str(int(n)) for n in sizes])
    right.set_title("linear probe, 20 labels per class")
    right.set_ylabel("test accuracy (%)")
    for panel in (left, right):
        panel.set_xlabel("training images of the class")
        panel.grid(axis="y", alpha=0.3)
    handles = right.get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", ncols=2, frameon=False, fontsize=10)
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    figure.savefig(path, dpi=130)


def main() -> None:
    """Read the command line, train with every loss, print the table and save the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one seed, 2 epochs")
    parser.add_argument("--seeds", type=int, help="number of seeds (default 4, smoke 1)")
    parser.add_argument("--epochs", type=int, help="passes over the images (default 120, smoke 2)")
    parser.add_argument("--out", default="temperatures.png", help="file for the plot")
    args = parser.parse_args()
    seeds = args.seeds or (1 if args.smoke else 4)
    epochs = args.epochs or (2 if args.smoke else 120)

    torch.set_num_threads(1)  # more threads only wait for each other on models this small
    results: dict[str, list[Tensor]] = {"no encoder: pixels": []}
    taus: dict[str, list[list[Tensor]]] = {}
    names = list(make_losses(1))
    with tqdm(total=seeds * len(names) * epochs, unit="epoch") as bar:
        for seed in range(seeds):
            data = make_data(seed)
            images, ranks = data["train"]
            results["no encoder: pixels"].append(probe(nn.Identity(), data))
            for name, criterion in make_losses(len(images)).items():
                bar.set_description(name.partition("(")[0])
                encoder = train(criterion, images, seed, epochs, bar)
                results.setdefault(name, []).append(probe(encoder.features, data))
                if "individualized" in name:
                    by_class = [criterion.tau[ranks == k] for k in range(CLASSES)]
                    taus.setdefault(name, []).append(by_class)
    sizes = torch.bincount(ranks).double()
    accuracies = {name: torch.stack(rows) for name, rows in results.items()}

    print(markdown_table(accuracies), temperature_table(sizes, taus), sep="\n\n")
    print(f"\n{NOTES}")
    plot(sizes, taus[SLOWER], accuracies, args.out)
    print(f"\nPlot saved to {args.out}")


if __name__ == "__main__":
    main()
