"""Train a small language model over 50,000 words, with logits in memory and streamed.

The text is the source code of Python's own standard library, comments and all (no download), cut
into words, numbers and signs, of which the 50,000 most frequent are the vocabulary. The model sees
eight words and predicts the next. With 1024 predictions a batch its logits take 205 MB; streamed,
they are made tile by tile and never held.

    python big_vocabulary.py            # about two minutes
    python big_vocabulary.py --smoke    # seconds, only to see that it runs

It prints a Markdown table and saves a plot. Each variant trains in a process of its own, from the
same start on the same batches, so that peak memory can be read off, where Linux shows it. Besides
lossary it needs matplotlib and tqdm.
"""

import argparse
import collections
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import lossary

VOCABULARY = 50_000
CONTEXT = 8
WIDTH = 128
LEARNING_RATE = 2e-3

NOTES = """\
Notes on the default run
- All three variants learn the same: after 40 steps the losses of logits in memory agree to 3e-6,
  the streamed one to 2e-5. It adds the same numbers up in another order, and training amplifies
  every rounding.
- The logits of a batch are 195 MiB. Of the peak 93 MiB are the gradients of the weights and Adam's
  two averages, which every variant has. What is left is 3.5 times the logits for F.cross_entropy,
  2.5 times for the same loss of lossary, and 0.5 times for the streamed one, the optimizer's own
  scratch included.
- The time is about that of F.cross_entropy (1.0 x; 0.8 x for lossary's loss of logits in memory):
  the logits are multiplied out twice, but never written to memory and read again. Times vary from
  run to run and from machine to machine; the losses and the memory do not.
- In memory every copy of the logits grows with the batch, to 1.5 GiB with --batch 8192. Streamed,
  a tile is all there ever is."""

Criterion = Callable[[Tensor, nn.Linear, Tensor], Tensor]


def cross_entropy(hidden: Tensor, head: nn.Linear, target: Tensor) -> Tensor:
    """PyTorch's loss, of logits in memory."""
    return F.cross_entropy(head(hidden), target)


def materialised(hidden: Tensor, head: nn.Linear, target: Tensor) -> Tensor:
    """The same loss of logits in memory."""
    loss: Tensor = lossary.CompSumLoss()(head(hidden), target)
    return loss


def streamed(hidden: Tensor, head: nn.Linear, target: Tensor) -> Tensor:
    """The same loss of what the logits are made of."""
    logits = lossary.LinearLogits(hidden, head.weight, head.bias)
    loss: Tensor = lossary.CompSumLoss()(logits, target)
    return loss


VARIANTS: dict[str, tuple[str, Criterion]] = {
    "cross_entropy": ("F.cross_entropy, logits in memory", cross_entropy),
    "materialised": ("CompSumLoss(), logits in memory", materialised),
    "streamed": ("CompSumLoss(), LinearLogits", streamed),
}


def read_text(words: int) -> Tensor:
    """Return the text as word indices; 0 is any word that is not in the vocabulary."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in path.parts:
            found += re.findall(r"\w+|[^\s\w]", path.read_text(errors="ignore"))
    frequent = collections.Counter(found).most_common(VOCABULARY - 1)
    index = {word: i + 1 for i, (word, _) in enumerate(frequent)}
    start = len(found) // 3  # amid the library
    return torch.tensor([index.get(word, 0) for word in found[start : start + words]])


def status(name: str) -> int:
    """Return a figure of this process's memory in KiB, from where Linux shows it."""
    found = re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def start_peak() -> int:
    """Let the peak of memory start anew from what is in use, and return that, in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


class Model(nn.Module):
    """Embeddings of the last words, one hidden layer, and a head of one row per word."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.hidden = nn.Sequential(nn.Linear(32 * CONTEXT, 256), nn.GELU(), nn.Linear(256, WIDTH))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, context: Tensor) -> Tensor:
        """Return what the head multiplies."""
        hidden: Tensor = self.hidden(self.embed(context).flatten(1))
        return hidden


def train(criterion: Criterion, text: Tensor, batch: int, steps: int) -> dict[str, Any]:
    """Train; return the losses, the seconds of a step, and the peak of memory beyond the start."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    window = torch.arange(CONTEXT + 1)
    losses, seconds = [], []
    before = start_peak()
    for _ in tqdm(range(steps), unit="step"):
        words = text[torch.randint(len(text) - CONTEXT, (batch, 1)) + window]
        started = time.perf_counter()
        loss = criterion(model(words[:, :-1]), model.head, words[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
        losses.append(float(loss.detach()))
    peak = (status("VmHWM") - before) / 1024
    return {"losses": losses, "seconds": sorted(seconds)[len(seconds) // 2], "peak": peak}


def run(name: str, text: str, batch: int, steps: int) -> dict[str, Any]:
    """Train one variant in a fresh process, which has not yet had any memory to speak of."""
    command = [sys.executable, __file__, "--variant", name, "--text", text]
    command += ["--batch", str(batch), "--steps", str(steps)]
    print(VARIANTS[name][0], file=sys.stderr)
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def markdown_table(results: dict[str, dict[str, Any]], batch: int) -> str:
    """One row per variant."""
    first = results["cross_entropy"]
    logits = batch * VOCABULARY * 4 / 2**20
    rows = [
        [
            "variant",
            "last loss",
            "largest difference",
            "time per step",
            "peak memory, MiB",
            "of the logits",
        ],
        ["---", *["---:"] * 5],
    ]
    for name, found in results.items():
        off = max(abs(a - b) for a, b in zip(found["losses"], first["losses"], strict=True))
        rows.append(
            [
                VARIANTS[name][0],
                f"{found['losses'][-1]:.4f}",
                f"{off:.0e}" if found is not first else "",
                f"{found['seconds'] / first['seconds']:.2f} x",
                f"{found['peak']:.0f}",
                f"{found['peak'] / logits:.2f} x",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def plot(results: dict[str, dict[str, Any]], path: str) -> None:
    """Left the losses, which should lie on each other, right peak memory."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(
        {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
    )
    colours = ("#000000", "#0072B2", "#D55E00")
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, found) in enumerate(results.items()):
        style = {"color": colours[i], "linewidth": 5 - 2 * i, "alpha": 0.5 + 0.25 * i}
        left.plot(found["losses"], label=VARIANTS[name][0], **style)
        right.barh(VARIANTS[name][0], found["peak"], color=colours[i])
    left.set(xlabel="step", ylabel="cross-entropy, nats per word")
    left.legend(frameon=False, loc="upper right")
    right.invert_yaxis()
    right.set(xlabel="peak memory of training beyond its start, MiB")
    figure.suptitle(f"A head of {VOCABULARY:,} words")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Read the command line, train every variant in its own process, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="batches of 64, 3 steps")
    parser.add_argument("--steps", type=int, help="training steps (default 40, smoke 3)")
    parser.add_argument("--batch", type=int, help="predictions in a batch (default 1024, smoke 64)")
    parser.add_argument("--variant", choices=VARIANTS, help="train this one only, print JSON")
    parser.add_argument("--text", help="file of word indices, for --variant")
    parser.add_argument("--out", default="big_vocabulary.png", help="file for the plot")
    args = parser.parse_args()
    steps = args.steps or (3 if args.smoke else 40)
    batch = args.batch or (64 if args.smoke else 1024)

    if args.variant:
        criterion = VARIANTS[args.variant][1]
        print(json.dumps(train(criterion, torch.load(args.text), batch, steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        text = f"{folder}/text.pt"
        torch.save(read_text(400_000), text)
        results = {name: run(name, text, batch, steps) for name in VARIANTS}
    print(markdown_table(results, batch), NOTES, sep="\n\n")
    plot(results, args.out)
    print(f"\nPlot saved to {args.out}")


if __name__ == "__main__":
    main()
