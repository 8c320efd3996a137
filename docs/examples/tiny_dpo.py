"""Train a small language model by preferences, with DPO and with RPO, from its hidden states.

Everything is made here. The text is the documentation in the source code of scikit-learn, SciPy,
NumPy and Matplotlib (no download); the model a transformer of two layers over some 3,000 words. It
first learns the text, then writes two continuations to the beginning of a sentence, of 16 words
each. A rule prefers the one with more letters. From such pairs the model goes on to learn, once per
loss, and what it writes then is held against what it wrote before.

    python tiny_dpo.py            # about two minutes
    python tiny_dpo.py --smoke    # seconds, only to see that it runs

LinearPreferenceLoss takes the hidden states and the head: a step of preference training never holds
the logits, of two sequences a pair times their words times the vocabulary. It prints a Markdown
table (mean ± standard deviation over the seeds) and saves a plot. Besides lossary it needs
matplotlib, scikit-learn and tqdm.
"""

import argparse
import ast
import collections
import copy
import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import matplotlib.lines
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

import lossary

PACKAGES = ("sklearn", "scipy", "numpy", "matplotlib")
#: Words of a prompt and of what the model writes behind it.
PROMPT, ANSWER = 4, 16
LENGTH = PROMPT + ANSWER
WIDTH, LAYERS, HEADS = 128, 2, 4
BATCH = 64
#: Of pretraining, at its peak, and of preference training.
LEARNING_RATES = (4e-3, 3e-4)
BETA = 0.1
NO_TRAINING = "before"
#: How often the pairs are looked at, and how many.
EVERY, WATCHED = 10, 100

NOTES = """\
Notes on the default run
- An answer wins if it has more letters than what the model wrote to the same prompt before; ties
  are halved. All prompts of the last four columns are of text that was not learned.
- The known fall: DPO ranks the pairs right by making both answers less likely, the rejected one by
  32 nats and the chosen one, which it is to prefer, by 11. Their probability goes to answers that
  are in no pair: with longer words than either, and worse language. 97 % of its answers win, and
  new text costs 6.0 nats per word instead of 4.6.
- RPO's likelihood term stops that: chosen answers rise by 5 to 8 nats.
- It has a price: fewer answers win, 83 % with eta=0.2 and 65 % with eta=1, and of 100 new pairs 6
  and 13 fewer are ranked right, which is one and two times the spread over the seeds.
- eta=0.2 is the paper's, for the mean over the words of an answer, there with beta=0.5. eta=1 is
  TRL's rpo_alpha=1. The paper's eta=0.005, for sums, hardly differs from DPO here: chosen answers
  fall by 8 nats instead of 10, 96 % win, at 5.8 nats (one seed). Nothing is tuned.
- Stopping DPO early buys the same: after 20 steps 75 % win at 4.8 nats, after 40 steps 89 % at 5.1
  (one seed), as good as RPO after 100. The chosen answers fall then too, by 1 and 3 nats.
- The seeds share the model that learned the text, and the prompts of the last columns. The spread
  is that of pairs, steps and sampling alone."""


def make_losses() -> dict[str, lossary.PairwisePreferenceLoss]:
    """Return the losses, by what they are called in the table."""
    return {
        "DPOLoss()": lossary.DPOLoss(BETA),
        'RPOLoss(eta=0.2, nll="sequence_mean")': lossary.RPOLoss(BETA, 0.2, nll="sequence_mean"),
        'RPOLoss(eta=1, nll="sequence_mean")': lossary.RPOLoss(BETA, 1.0, nll="sequence_mean"),
    }


# The text.


def sentences_of(source: str) -> list[tuple[str, ...]]:
    """Return the plain sentences in a file's docstrings, as words, commas and full stops."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                for sentence in re.split(r"(?<=[.])\s+", " ".join(paragraph.split())):
                    if re.fullmatch(r"[A-Z][A-Za-z ,'()-]{40,}\.", sentence):
                        found.append(tuple(re.findall(r"[a-z]+|[,.]", sentence.lower())))
    return found


class Text:
    """Sentences as indices of words, in a part to learn and one to test."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        sentences: dict[tuple[str, ...], None] = {}  # each once, in order
        for package in packages:
            spec = importlib.util.find_spec(package)
            assert spec is not None
            assert spec.origin is not None
            folder = Path(spec.origin).parent
            for path in sorted(folder.rglob("*.py")):
                if "test" not in str(path.relative_to(folder)):
                    sentences |= dict.fromkeys(sentences_of(path.read_text(encoding="utf-8")))
        counts = collections.Counter(word for sentence in sentences for word in sentence)
        self.words = ["?", *(word for word, count in counts.most_common() if count >= 5)]
        self.index = {word: i for i, word in enumerate(self.words)}
        order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(0))
        shuffled = [list(sentences)[i] for i in order.tolist()]
        self.test, self.train = shuffled[: len(shuffled) // 10], shuffled[len(shuffled) // 10 :]
        #: Letters of every word.
        self.letters = torch.tensor([len(word) if word.isalpha() else 0 for word in self.words])

    def encoded(self, sentences: list[tuple[str, ...]]) -> Tensor:
        """Sentences one after the other."""
        return torch.tensor([self.index.get(word, 0) for line in sentences for word in line])

    def prompts(self, sentences: list[tuple[str, ...]], start: int, count: int) -> Tensor:
        """The beginnings of sentences that begin with known words."""
        begun = [line[:PROMPT] for line in sentences if set(line[:PROMPT]) <= set(self.index)]
        return self.encoded(begun[start : start + count]).view(-1, PROMPT)

    def score(self, tokens: Tensor) -> Tensor:
        """The rule: letters in the answer."""
        return self.letters[tokens[:, PROMPT:]].sum(dim=1)


# The model.


class Model(nn.Module):
    """A transformer; ``forward`` returns what the head multiplies."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            layer, LAYERS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )
        self.head = nn.Linear(WIDTH, vocabulary)
        for embedding in (self.words, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the hidden states, (N, T, WIDTH)."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.words(tokens) + self.places.weight[:length]
        hidden: Tensor = self.blocks(x, mask=mask, is_causal=True)
        return hidden

    def logits(self, tokens: Tensor) -> lossary.LinearLogits:
        """Return the logits, which are never held."""
        return lossary.LinearLogits(self(tokens), self.head.weight, self.head.bias)

    @torch.no_grad()
    def answers(self, prompts: Tensor, generator: torch.Generator) -> Tensor:
        """Write on behind the prompts; never a word that is not known."""
        tokens = prompts
        for _ in range(ANSWER):
            logits = self.head(self(tokens)[:, -1])
            logits[:, 0] = -torch.inf
            word = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)
            tokens = torch.cat((tokens, word), dim=1)
        return tokens


def of_answers(tokens: Tensor) -> Tensor:
    """The mask of the answers: the prompt does not count."""
    return (torch.arange(LENGTH) >= PROMPT).expand(len(tokens), -1)


@torch.no_grad()
def answer_logps(model: Model, tokens: Tensor) -> Tensor:
    """Log-probabilities of the answers, (N,)."""
    return lossary.sequence_logps(model.logits(tokens), tokens, of_answers(tokens))


@torch.no_grad()
def nats_per_word(model: Model, text: Tensor) -> float:
    """Cross-entropy on text that it has not seen."""
    windows = text[: len(text) // LENGTH * LENGTH].view(-1, LENGTH)
    return -float(lossary.sequence_logps(model.logits(windows), windows, average=True).mean())


def pretrain(text: Text, steps: int, progress: tqdm) -> Model:
    """Learn the text."""
    torch.manual_seed(0)
    model, stream = Model(len(text.words)), text.encoded(text.train)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATES[0], steps + 1)
    for _ in range(steps):
        start = torch.randint(len(stream) - LENGTH, (BATCH, 1))
        windows = stream[start + torch.arange(LENGTH)]
        loss = -lossary.sequence_logps(model.logits(windows), windows, average=True).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.update()
    return model.eval()


# Preferences.


@dataclass
class Pairs:
    """Two answers of the reference to each prompt, the preferred one first."""

    chosen: Tensor
    rejected: Tensor
    reference: Tensor  # log-probabilities, (2, N)

    @classmethod
    def written(
        cls, model: Model, text: Text, prompts: Tensor, generator: torch.Generator
    ) -> "Pairs":
        """Let the model write them; pairs of equally many letters are left out."""
        first, second = (model.answers(prompts, generator) for _ in range(2))
        more = text.score(first) - text.score(second)
        first, second, more = first[more != 0], second[more != 0], more[more != 0].unsqueeze(1)
        chosen, rejected = first.where(more > 0, second), second.where(more > 0, first)
        reference = torch.stack([answer_logps(model, x) for x in (chosen, rejected)])
        return cls(chosen, rejected, reference)

    def part(self, at: Tensor | slice) -> "Pairs":
        """Some of them."""
        return Pairs(self.chosen[at], self.rejected[at], self.reference[:, at])

    def log_ratios(self, model: Model) -> Tensor:
        """How much likelier than under the reference the answers are, (2, N)."""
        found = [answer_logps(model, x) for x in (self.chosen, self.rejected)]
        return torch.stack(found) - self.reference


def better(one: Tensor, other: Tensor) -> float:
    """How often the one is larger, in percent; ties are halved."""
    return 100 * float(((one > other).float() + 0.5 * (one == other).float()).mean())


@dataclass
class Course:
    """What was seen of one training."""

    chosen: list[float] = field(default_factory=list)
    rejected: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    wins: float = 0.0
    letters: float = 0.0
    nats: float = 0.0

    def watch(self, model: Model, trained: Pairs, fresh: Pairs) -> None:
        """Note log-ratios of pairs trained on, and how many new pairs are ranked right."""
        chosen, rejected = trained.log_ratios(model).mean(dim=1).tolist()
        self.chosen.append(chosen)
        self.rejected.append(rejected)
        chosen, rejected = fresh.log_ratios(model)
        self.right.append(better(chosen, rejected))


def train(
    loss: lossary.PairwisePreferenceLoss,
    start: Model,
    pairs: Pairs,
    fresh: Pairs,
    steps: int,
    seed: int,
    progress: tqdm,
) -> tuple[Model, Course]:
    """Train on the pairs, from the reference."""
    draw = torch.Generator().manual_seed(seed)
    model, course = copy.deepcopy(start), Course()
    criterion = lossary.LinearPreferenceLoss(loss)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATES[1])
    watched = pairs.part(slice(0, WATCHED)), fresh.part(slice(0, WATCHED))
    course.watch(model, *watched)
    for step in range(1, steps + 1):
        batch = pairs.part(torch.randint(len(pairs.chosen), (BATCH // 2,), generator=draw))
        tokens = torch.cat((batch.chosen, batch.rejected))
        value = criterion(
            model.logits(tokens),
            tokens,
            of_answers(tokens),
            reference_logps=batch.reference.flatten(),
        )
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        progress.update()
        if step % EVERY == 0:
            course.watch(model, *watched)
    return model, course


def spread(x: Tensor) -> Tensor:
    """Standard deviation over the seeds; 0 for a single seed, which has none."""
    return x.std(dim=0, correction=min(1, len(x) - 1))


def markdown_table(courses: dict[str, list[Course]]) -> str:
    """One row per loss: what the training did to the pairs, and to the model."""
    columns = {
        "chosen, nats": lambda c: c.chosen[-1],
        "rejected, nats": lambda c: c.rejected[-1],
        "new pairs ranked right, %": lambda c: c.right[-1],
        "answers that win, %": lambda c: c.wins,
        "letters per word": lambda c: c.letters,
        "nats per word of new text": lambda c: c.nats,
    }
    rows = [["loss", *columns], ["---", *("---:" for _ in columns)]]
    for name, found in courses.items():
        cells = []
        for value in columns.values():
            x = torch.tensor([value(course) for course in found])
            digits = 2 if float(x.abs().max()) < 15 else 1
            cell = f"{float(x.mean()):.{digits}f}"
            cells.append(cell if len(x) == 1 else f"{cell} ± {float(spread(x)):.{digits}f}")
        rows.append([name if name == NO_TRAINING else f"`{name}`", *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def plot(courses: dict[str, list[Course]], path: str) -> None:
    """Left log-ratios over the steps, then new pairs ranked right, then what is written."""
    colours = ("#000000", "#D55E00", "#56B4E9", "#0072B2")
    matplotlib.rcParams.update(
        {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure = Figure(figsize=(15, 6))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    trained = [name for name in courses if name != NO_TRAINING]
    for name, colour in zip(trained, colours[1:], strict=True):
        for panel, attribute, style in (
            (left, "chosen", "-"),
            (left, "rejected", "--"),
            (middle, "right", "-"),
        ):
            y = torch.tensor([getattr(course, attribute) for course in courses[name]])
            x = EVERY * torch.arange(y.shape[1])
            mean, around = y.mean(dim=0), spread(y)
            panel.plot(x, mean, style, color=colour, linewidth=2.2)
            panel.fill_between(x, mean - around, mean + around, color=colour, alpha=0.15, lw=0)
    left.axhline(0, color="black", linewidth=1)
    left.set(title="Log-probability of the pairs trained on", xlabel="step")
    left.set_ylabel("nats per answer, less the reference's")
    middle.set(title="New pairs ranked right (%)", xlabel="step")
    for (name, found), colour in zip(courses.items(), colours, strict=True):
        nats, wins = (torch.tensor([getattr(c, x) for c in found]) for x in ("nats", "wins"))
        right.errorbar(
            nats.mean(),
            wins.mean(),
            spread(wins),
            spread(nats),
            "s" if name == NO_TRAINING else "o",
            color=colour,
            markersize=11,
            capsize=4,
        )
    right.set(
        title="The rule, and the price in language",
        xlabel="nats per word of new text (less is better)",
    )
    right.set_ylabel("answers that win, % (more is better)")
    right.margins(0.15)
    handles = [
        matplotlib.lines.Line2D([], [], color=colour, linewidth=5, label=name)
        for name, colour in zip(courses, colours, strict=True)
    ]
    styles = [
        matplotlib.lines.Line2D([], [], color="#555555", linestyle=style, linewidth=2.2, label=name)
        for name, style in (("chosen", "-"), ("rejected", "--"))
    ]
    styles.append(matplotlib.lines.Line2D([], [], color="black", linewidth=1, label="reference"))
    left.legend(handles=styles, frameon=False, loc="lower left")
    seeds = len(courses[NO_TRAINING])
    summary = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    figure.suptitle(f"A small language model that is to write longer words: {summary}")
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=130)


def main() -> None:
    """Read the command line, make the model, train with every loss, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="little of everything, one seed")
    parser.add_argument("--seeds", type=int, help="number of seeds (default 3, smoke 1)")
    parser.add_argument("--steps", type=int, help="preference steps (default 100, smoke 10)")
    parser.add_argument("--pairs", type=int, help="pairs to train on (default 800, smoke 40)")
    parser.add_argument("--out", default="tiny_dpo.png", help="file for the plot")
    args = parser.parse_args()
    seeds = args.seeds or (1 if args.smoke else 3)
    steps = args.steps or (10 if args.smoke else 100)
    count = args.pairs or (40 if args.smoke else 800)
    learning, tests = (10, 20) if args.smoke else (400, 300)

    text = Text(PACKAGES[-1:] if args.smoke else PACKAGES)
    losses = make_losses()
    courses: dict[str, list[Course]] = {name: [] for name in (NO_TRAINING, *losses)}
    with tqdm(total=learning + seeds * len(losses) * steps, unit="step") as progress:
        progress.set_description("the text")
        reference = pretrain(text, learning, progress)
        unseen = text.encoded(text.test)
        for seed in range(seeds):
            draw = torch.Generator().manual_seed(seed)
            pairs = Pairs.written(
                reference, text, text.prompts(text.train, seed * count, count), draw
            )
            prompts = text.prompts(text.test, 0, tests)
            fresh = Pairs.written(reference, text, prompts, draw)
            before = text.score(reference.answers(prompts, draw))
            for name in courses:
                model, course = reference, Course([0.0], [0.0], [50.0])
                if name in losses:
                    progress.set_description(name)
                    model, course = train(
                        losses[name], reference, pairs, fresh, steps, seed, progress
                    )
                after = text.score(model.answers(prompts, draw))
                course.wins = better(after, before)
                course.letters = float(after.float().mean()) / ANSWER
                course.nats = nats_per_word(model, unseen)
                courses[name].append(course)
    print(markdown_table(courses), NOTES, sep="\n\n")
    plot(courses, args.out)
    print(f"\nPlot saved to {args.out}")


if __name__ == "__main__":
    main()
