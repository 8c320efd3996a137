"""The glossary at the command line: ``python -m lossary list``, ``show NAME`` and ``plot NAME``.

All of it is made from ``lossary.__all__``, the docstrings and :class:`lossary.Properties`: a new
loss is listed, shown and plotted without an entry here.
"""

import argparse
import ast
import contextlib
import difflib
import importlib.metadata
import inspect
import io
import itertools
import math
import os
import re
import shutil
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

import lossary
from lossary._base import ClassificationLoss, Loss
from lossary._properties import OF_CLASSES, Properties

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Settings = dict[str, Any]

#: Points of a curve. Also what stands in for a required integer, such as a number of samples: then
#: every point of a curve is a sample of its own.
POINTS = 401
#: What stands in for a required argument of a type.
STAND_INS: dict[Any, Any] = {int: POINTS, float: 1.0, Callable[..., Tensor]: torch.square}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe-Ito
DASHES = ("-", "--", ":", "-.")
ITEMIZED = ("Args", "Raises")  # sections of a docstring with one entry after the other


class CommandError(Exception):
    """What the user should mend, in one line, and the exit code."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


# Names and properties ------------------------------------------------------------------------


def documented() -> dict[str, Any]:
    """Return the public classes and functions by name."""
    public = {name: getattr(lossary, name) for name in lossary.__all__}
    return {n: x for n, x in public.items() if inspect.isclass(x) or inspect.isfunction(x)}


def family(entry: Any) -> str:
    """Return the file that an entry lives in; under an underscore are the base classes."""
    return str(entry.__module__).rpartition(".")[2]


def is_loss(entry: Any) -> bool:
    """Tell losses and regularizers, base classes included, from functions and data."""
    return inspect.isclass(entry) and issubclass(entry, Loss)


def is_base(entry: Any) -> bool:
    """Tell what is to be subclassed from what is to be used."""
    return inspect.cleandoc(entry.__doc__ or "").startswith("Base class")


def find(what: str, name: str, choices: Iterable[str]) -> str:
    """Return the choice that ``name`` means, in any case and with ``-`` for ``_``."""
    known = {choice.lower().replace("_", "-"): choice for choice in choices}
    key = name.lower().replace("_", "-")
    if key not in known:
        unlike = {k: 1 - difflib.SequenceMatcher(None, key, k).ratio() for k in known}
        near = sorted(known, key=lambda k: (key not in k, unlike[k], k))[:4]
        raise CommandError(f"no {what} {name!r}; nearest: {', '.join(known[k] for k in near)}")
    return known[key]


@contextlib.contextmanager
def in_one_line(cls: type) -> Iterator[None]:
    """Pass on what a loss has to say about its arguments, without a traceback."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise CommandError(f"{cls.__name__}: {error}".partition("\n")[0]) from None


def needed_counts(cls: type[Loss], settings: Settings, num_classes: int = 10) -> Settings:
    """Return counts K, ..., 1 of K classes for a loss that wants counts and was given none."""
    needed = "class_counts" in inspect.signature(cls).parameters
    if not needed or {"class_counts", "class_prior"} & settings.keys():
        return {}
    return {"class_counts": list(range(num_classes, 0, -1))}


def build(cls: type[Loss], settings: Settings, num_classes: int = 10) -> Loss:
    """Return an instance with these settings, and numbers for what else it cannot do without."""
    given = needed_counts(cls, settings, num_classes) | settings
    with in_one_line(cls):
        for name, p in inspect.signature(cls).parameters.items():
            if p.default is p.empty and p.annotation in STAND_INS:
                given.setdefault(name, STAND_INS[p.annotation])
            if Tensor in get_args(p.annotation) and isinstance(given.get(name), list):
                given[name] = torch.tensor(given[name], dtype=torch.float64)
        return cls(**given)


def properties_of(entry: Any, settings: Settings) -> Properties | None:
    """Return what an entry declares, ``None`` where it declares nothing."""
    if not is_loss(entry):
        return None
    try:
        with in_one_line(entry):
            declared: Properties = build(entry, settings).properties()
    except CommandError:
        if settings:
            raise
        return None  # a required argument that no number can stand in for
    return None if declared == Properties() else declared


def flags(p: Properties) -> dict[str, bool | None]:
    """Return properties as words, each true, false or unknown; of numbers, whether finite."""
    words: dict[str, bool | None] = {}
    for f in fields(p):
        value = getattr(p, f.name)
        if f.type == bool | None:
            words[f.name.replace("_", "-")] = value
        elif f.name == "upper":
            ends = [None if x is None else math.isfinite(x) for x in (p.lower, value)]
            words["bounded"] = False if False in ends else None if None in ends else True
        elif f.name == "lipschitz":
            words["lipschitz"] = None if value is None else math.isfinite(value)
        elif f.name == "smoothness":
            words["differentiable"] = None if value is None else value >= 1
    return words


# Text for terminals --------------------------------------------------------------------------


def bold(text: str) -> str:
    """Set a text off where a terminal can."""
    dull = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if dull else f"\033[1m{text}\033[0m"


def wrap(text: str, width: int, first: str = "", rest: str = "") -> str:
    """Fill a paragraph; names and formulas are not broken inside of a word."""
    filler = textwrap.TextWrapper(width, first, rest)
    filler.break_long_words = filler.break_on_hyphens = False
    return filler.fill(text)


def plain(text: str) -> str:
    """Take the markup off a text: roles, double and single backticks, bold type, escapes."""
    text = re.sub(r":math:`([^`]+)`", lambda m: "  ".join(formulas(m[1])), text)
    text = re.sub(r"(?::[\w:]+:)?(`{1,2})~?(.+?)\1", r"\2", text)
    text = re.sub(r"\*\*(\w[^*]*)\*\*", r"\1", text)
    return re.sub(r"\\([^\w\s])", r"\1", text)


SYMBOLS: dict[str, str] = dict(
    re.findall(
        r"(\S+?)=(\S*)",
        """alpha=α beta=β gamma=γ delta=δ epsilon=ε varepsilon=ε eta=η theta=θ kappa=κ lambda=λ
        mu=μ nu=ν pi=π rho=ρ sigma=σ tau=τ phi=φ varphi=φ psi=ψ omega=ω Gamma=Γ Delta=Δ Lambda=Λ
        Phi=Φ Psi=Ψ Sigma=Σ Omega=Ω ell=ℓ infty=∞ partial=∂ nabla=∇ sum=∑ prod=∏ int=∫ in=∈ notin=∉
        ne=≠ neq=≠ le=≤ leq=≤ ge=≥ geq=≥ approx=≈ sim=~ propto=∝ succ=≻ to=→ leftarrow=←
        mapsto=↦ cdot=· times=× pm=± langle=⟨ rangle=⟩ lVert=⟬ rVert=⟭ |=‖ lvert=| rvert=| mid=|
        ldots=… dots=… _=_ #=# %=% left= right= big= Big= bigl= bigr= Bigl= Bigr= !=""",  # noqa: RUF001
    )
) | {" ": " ", ",": " ", ";": " ", ":": " ", "quad": "  ", "qquad": "\n"}
FUNCTIONS = ("arg", "cos", "det", "exp", "inf", "lim", "ln", "log", "max", "min", "sin", "sup")
GROUPS = (  # ⦃ ⦄ are braces that stay, ⟦ ⟧ parts of a fraction, ⟪ ⟫ fractions
    (r"\\[dt]?frac\s*(\w)\s*(\w)", r"⟪\1/\2⟫"),
    (r"\\tilde\s*\{?(\w)\}?", "\\1\u0303"),
    (r"\\(?:operatorname\*?|text|math[a-z]+|boldsymbol)\{([^{}]*)\}", r"\1"),
    (r"([_^])\{([^{}]*)\}", r"\1⦃\2⦄"),
    (r"\\sqrt\{([^{}]*)\}", r"√(\1)"),
    (r"\\sqrt\s*(\w)", r"√\1"),
    (r"\\[dt]?frac\{([^{}]*)\}\s*\{([^{}]*)\}", r"⟪⟦\1⟧/⟦\2⟧⟫"),
    (r"⟦(\w+|⟪[^⟪⟫]*⟫)⟧", r"\1"),  # one symbol needs no parentheses
    (r"(^|[-+=,(\n⟦⦃] *)⟪([^⟪⟫]*)⟫(?= *([-+=,.)\n⦄]|$))", r"\1\2"),  # nor does a lone fraction
)


def formulas(latex: str) -> list[str]:
    r"""Return formulas in Unicode, one for each part between ``\qquad``.

    All or nothing: where a command is in none of the tables, the source stays as it is.
    """
    text = " ".join(latex.split()).replace(r"\{", "⦃").replace(r"\}", "⦄")
    text = re.sub(r"\\([A-Za-z]+|.)", command, text)
    for _ in range(text.count("{") + 1):  # each time the innermost braces
        for pattern, replacement in GROUPS:
            text = re.sub(pattern, replacement, text)
    with contextlib.suppress(UnicodeEncodeError):  # not every terminal has Greek letters
        if not re.search(r"[\\{}]", text):
            text = re.sub("(?<=[⟨⟬]) +| +(?=[⟩⟭])", "", text)
            text = text.translate(str.maketrans("⦃⦄⟦⟧⟪⟫⟬⟭", "{}()()‖‖"))
            text.encode(sys.stdout.encoding or "utf-8")
            return [" ".join(part.split()) for part in text.split("\n")]
    return [line.strip() for line in latex.splitlines()]


def command(match: re.Match[str]) -> str:
    """Return one command in Unicode, or as it is; a function keeps its distance from letters."""
    if match[1] not in FUNCTIONS:
        return SYMBOLS.get(match[1], match[0])
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    return (" " if before.isalnum() or before in ")}" else "") + match[1] + " " * (after == "\\")


# list ----------------------------------------------------------------------------------------


def list_entries(families: Sequence[str], wanted: Sequence[str]) -> None:
    """Print the entries of some families that have all the wanted properties."""
    entries = {n: x for n, x in documented().items() if not family(x).startswith("_")}
    families = [find("family", name, {family(x) for x in entries.values()}) for name in families]
    known = flags(Properties())
    required = []
    for word in wanted:
        name = re.sub("^not[-_]", "", word.lower())
        required.append((find("property", name, known), name == word.lower()))
    rows = []
    for name, entry in entries.items():
        words = flags(properties_of(entry, {}) or Properties())
        fits = all(words[word] is value for word, value in required)
        if fits and not is_base(entry) and (not families or family(entry) in families):
            title = plain((inspect.getdoc(entry) or "").partition("\n")[0])
            held = ", ".join(word for word in words if words[word]) or "-"
            rows.append([name, family(entry), title, held])
    if not rows:
        raise CommandError("nothing matches", 1)
    rows.sort(key=lambda row: (row[1], row[0]))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(*table(rows, width), sep="\n")


def table(rows: list[list[str]], width: int | None) -> Iterator[str]:
    """Align the columns; without a width every row is one line, for grep and the like.

    Where the lines are too long for the terminal the last two columns are wrapped, or stand below.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = (width or sys.maxsize) - widths[0] - widths[1] - 6
    if sum(widths[2:]) > room:
        widths[2] = min(widths[2], room * 3 // 5)
        widths[3] = room - widths[2]
    for row in rows:
        if width and room < 60:
            lines = [wrap(f"{row[0]}  {row[1]}", width, "", "    ")]
            lines += [wrap(text, width, "    ", "    ") for text in row[2:]]
        else:
            cells = [wrap(c, w).splitlines() for c, w in zip(row, widths, strict=True)]
            parts = itertools.zip_longest(*cells, fillvalue="")
            lines = ["  ".join(map(str.ljust, p, widths)).rstrip() for p in parts]
        lines[0] = lines[0].replace(row[0], bold(row[0]), 1)
        yield from lines


# show ----------------------------------------------------------------------------------------


def show(name: str, settings: Sequence[Settings]) -> None:
    """Print an entry's docstring for a terminal, and a table of what it declares."""
    entry = documented()[find("name", name, documented())]
    declares = is_loss(entry) and not is_base(entry)
    tables = [properties_table(entry, chosen) for chosen in settings or [{}] if declares]
    width = shutil.get_terminal_size().columns
    title, _, body = (inspect.getdoc(entry) or "").partition("\n")
    head = wrap(f"{entry.__name__}  {family(entry)}", width, "", "    ")
    print(bold(head), wrap(plain(title), width), "", sep="\n")
    print(wrap(f"lossary.{entry.__name__}{signature(entry)}", width, "    ", "        "))
    if hasattr(entry, "per_sample"):
        print(wrap(f"loss{signature(entry.forward, 1)}", width, "    ", "        "))
    body = re.sub(r"math::\s+", "math:: ", body)
    # A heading stands alone at the left, with indented text below; the first part has none.
    parts = re.split(r"^([A-Z]\w+):\n(?= )", f"{body}\n", flags=re.MULTILINE)
    for heading, text in zip(["", *parts[1::2]], parts[::2], strict=True):
        if text.strip():
            print(f"\n{bold(heading)}" if heading else "")
            paragraphs = re.split(r"\n\s*\n", textwrap.dedent(text).strip("\n"))
            for i, paragraph in enumerate(paragraphs):
                literal = i > 0 and paragraphs[i - 1].endswith("::")
                print(*([""] if i else []), *lines(paragraph, heading, literal, width), sep="\n")
    for heading, rows in tables:
        print(f"\n{bold(wrap(heading, width, '', '    '))}")
        for key, value in rows:
            print(wrap(f"{key:<18}{value}", width, "    ", " " * 22))


def signature(function: Callable[..., Any], skip: int = 0) -> str:
    """Return a signature without its annotations: the Args section says it better."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    return str(inspect.Signature([p.replace(annotation=p.empty) for p in parameters]))


def lines(text: str, heading: str, literal: bool, width: int) -> list[str]:
    """Format one paragraph: a formula, a doctest, a list or prose."""
    indent = "    " if heading else ""
    if literal or text.startswith(">>>"):
        return [textwrap.indent(text, indent)]
    if text.startswith(".. math:: "):
        parts = formulas(text.removeprefix(".. math:: "))
        return [wrap(part, width, f"{indent}    ", f"{indent}        ") for part in parts]
    wrapped = []
    entries = heading in ITEMIZED
    for item in re.split(r"\n(?=\S| *- )" if entries else r"\n(?= *- )", text):
        lead = indent + " " * (len(item) - len(item.lstrip()))
        prose = re.sub("::$", ":", plain(" ".join(item.split())))
        hanging = "  " if prose.startswith("- ") else "    " if entries and lead == indent else ""
        wrapped.append(wrap(prose, width, lead, lead + hanging))
    return wrapped


def properties_table(entry: Any, settings: Settings) -> tuple[str, list[tuple[str, str]]]:
    """Return a heading, and a row for each thing that a loss may declare."""
    p = properties_of(entry, settings)
    if p is None:
        return "Declares no properties", []
    at = [f"{name}={value!r}" for name, value in settings.items()]
    at += [f"{name}=10, ..., 1" for name in needed_counts(entry, settings)]
    at = at or ["defaults"]
    for name, q in inspect.signature(entry).parameters.items():
        if q.default is q.empty and q.annotation is float and name not in settings:
            at.append(f"{name}={STAND_INS[float]}")  # what is said holds for this number
    more = inspect.signature(entry.properties).parameters.values()
    at += [f"{q.name}={q.default}" for q in more if q.default is not q.empty]
    rows = []
    for f in fields(p):
        value = getattr(p, f.name)
        if f.name == "limits":
            rows += [("limit", f"{where}: {what}") for where, what in value]
        elif value is None and f.name in OF_CLASSES and not issubclass(entry, ClassificationLoss):
            continue
        elif f.name not in ("counterexamples", "unknown") and (
            f.name != "class_sum" or p.symmetric
        ):
            known = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
            number = f"{value:.5g}" if isinstance(value, float) else known
            why = p.unknown.get(f.name)
            nothing = "unknown" if why is None else f"unknown: {why}"
            rows.append((f.name.replace("_", "-"), nothing if value is None else number))
    return f"Declared properties ({', '.join(at)})", rows


# plot ----------------------------------------------------------------------------------------


def input_names(loss: Loss) -> list[str]:
    """Return the names of the inputs that a call cannot do without."""
    parameters = inspect.signature(loss.forward).parameters.values()
    return [p.name for p in parameters if p.default is p.empty]


#: Losses of a difference of two inputs, and what it is called.
DIFFERENCES: dict[tuple[str, ...], str] = {
    ("input", "target"): "residual",
    ("prediction", "target"): "residual",
    ("policy_chosen_logps", "policy_rejected_logps"): "chosen less rejected log-ratio",
    ("chosen_rewards", "rejected_rewards"): "chosen less rejected reward",
    ("logits", "target"): "logit, of target 0",
}


def abscissa(loss: Loss) -> str | None:
    """Return what a loss is drawn over, ``None`` for a class-target loss; refuse all else."""
    names = input_names(loss)
    others = [n for n in names if n not in ("target", "index") and not n.endswith("logits")]
    of_classes = isinstance(loss, ClassificationLoss) and {"logits", "target"} <= set(names)
    classes = of_classes and not others
    drawn = classes or tuple(names) in DIFFERENCES
    if not loss.separable or not drawn or getattr(loss, "of_probabilities", False):
        together = "" if loss.separable else ", the samples of a batch together"
        raise CommandError(
            f"no curve for {type(loss).__name__}: it takes {', '.join(names)}{together}; "
            "curves are of one margin or one residual"
        )
    return None if classes else DIFFERENCES[tuple(names)]


def curve(loss: Loss, num_classes: int | None, span: tuple[float, float]) -> list[Tensor]:
    """Return where a loss is evaluated, its values there and its gradient.

    With classes all logits are 0 but the target's, which thus is the margin to every rival.
    Without, the first input is the difference, and all else 0.
    """
    low, high = span
    steps = torch.arange(POINTS, dtype=torch.float64) / (POINTS - 1)
    x = (low + (high - low) * steps).requires_grad_()
    first, *others = input_names(loss)
    inputs = {first: x[:, None], **{name: torch.zeros_like(x)[:, None] for name in others}}
    loss.double().reduction = "none"
    with in_one_line(type(loss)):
        if num_classes is not None:
            logits = torch.nn.functional.pad(x[:, None], (0, num_classes - 1))
            inputs = {name: logits for name in input_names(loss) if name.endswith("logits")}
            inputs["target"] = torch.zeros(POINTS, dtype=torch.long)
            inputs["index"] = torch.arange(POINTS)
        values = loss(**{name: inputs[name] for name in input_names(loss)}).reshape(POINTS)
        (slopes,) = torch.autograd.grad(values.sum(), x)
    return [x.detach(), values.detach(), slopes]


def draw(
    name: str,
    settings: Sequence[Settings] = (),
    classes: Sequence[int] = (2, 10),
    span: tuple[float, float] = (-5.0, 5.0),
) -> "Figure":
    """Draw a loss and its gradient: a colour for each of the settings, a dash for each K."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CommandError('plot needs matplotlib: pip install "lossary[examples]"') from None
    entry = documented()[find("name", name, documented())]
    if not is_loss(entry) or is_base(entry):
        raise CommandError(f"no curve for {entry.__name__}: only losses have one")
    curves: list[tuple[dict[str, Any], list[Tensor]]] = []
    for colour, chosen in zip(itertools.cycle(COLOURS), settings or [{}], strict=False):
        variable = abscissa(build(entry, chosen))
        per_class = variable is None
        for dash, k in zip(itertools.cycle(DASHES), classes if per_class else [None], strict=False):
            words = [f"{key}={value}" for key, value in chosen.items()]
            words += [f"K={k}"] if per_class else []
            style = {"color": colour, "linestyle": dash, "label": ", ".join(words) or "defaults"}
            curves.append((style, curve(build(entry, chosen, k or 10), k, span)))
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for i, what in enumerate(("loss", "gradient in $f_y$" if per_class else "gradient")):
        for style, numbers in curves:
            panels[i].plot(numbers[0], numbers[i + 1], **style)
        limits = common_range([numbers[i + 1] for _, numbers in curves])
        panels[i].set(
            xlabel=variable or "margin $f_y - f_k$, equal for all $k$", ylabel=what, ylim=limits
        )
        panels[i].grid(alpha=0.3)
        panels[i].spines[["top", "right"]].set_visible(False)
    figure.suptitle(entry.__name__)
    columns = math.ceil(len(curves) / math.ceil(len(curves) / 4))
    place: Any = "outside lower center"
    figure.legend(handles=panels[0].lines, loc=place, ncols=columns, frameon=False)
    return figure


def common_range(columns: Sequence[Tensor]) -> tuple[float, float]:
    """Return the limits of the axis: a curve that would flatten the others leaves the picture."""
    finite = [y[y.isfinite()] for y in columns if y.isfinite().any()] or [torch.zeros(1)]
    cap = 2.0 * statistics.median(float(y.abs().amax()) for y in finite) or math.inf
    shown = torch.cat(finite).clamp(-cap, cap)
    low, high = float(shown.amin()), float(shown.amax())
    pad = 0.05 * (high - low) or 1.0
    return low - pad, high + pad


# The command line ----------------------------------------------------------------------------


def setting(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE; a value that is no Python literal and no number is a string."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    for read in (ast.literal_eval, float):  # float reads inf
        with contextlib.suppress(ValueError, SyntaxError):
            return name, read(value)
    return name, value


def parser() -> argparse.ArgumentParser:
    """Return the parser; each command says with an example what it does."""
    program = "python -m lossary"
    top = argparse.ArgumentParser(
        prog=program, description="Loss functions for PyTorch that state what they guarantee."
    )
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, what: str, example: str) -> Callable[..., argparse.Action]:
        sub = commands.add_parser(
            name, help=what, description=what, epilog=f"example: {program} {name} {example}"
        )
        return sub.add_argument

    known = ", ".join(flags(Properties()))
    option = add("list", "one line for each loss and function", "--family ldr --property convex")
    option("--family", action="append", default=[], help="only of this family; may be repeated")
    option(
        "--property",
        action="append",
        default=[],
        help="only what is proved to be so at the default hyper-parameters, or with not- in front "
        f"proved not to be; if repeated, all of it: {known}",
    )
    at = {"action": "append", "nargs": "+", "type": setting, "default": [], "metavar": "NAME=VALUE"}
    option = add("show", "the reference of one loss or function", "LDRKLLoss --set lam=0")
    option("name", metavar="NAME")
    option("--set", **at, help="state the properties at these hyper-parameters")
    example = "CompSumLoss --out comp_sum.pdf --set tau=0.5 --set tau=2"
    option = add("plot", "draw a loss and its gradient (needs matplotlib)", example)
    option("name", metavar="NAME")
    option("--out", required=True, metavar="FILE", help="a name that ends in .png, .pdf or .svg")
    option("--set", **at, help="the hyper-parameters of one curve; repeat it for more curves")
    option("--classes", nargs="+", type=int, default=[2, 10], metavar="K", help="default 2 10")
    option("--range", nargs=2, type=float, default=[-5, 5], metavar="X", help="default -5 5")
    return top


def run(args: argparse.Namespace) -> None:
    """Run one command."""
    if args.version:
        print("lossary", importlib.metadata.version("lossary"))
    elif args.command == "list":
        list_entries(args.family, args.property)
    elif args.command == "show":
        show(args.name, [dict(pairs) for pairs in args.set])
    elif args.command == "plot":
        low, high = args.range
        if not -math.inf < low < high < math.inf:
            raise CommandError(f"--range: expected two numbers, the smaller first: {low} {high}")
        figure = draw(args.name, [dict(pairs) for pairs in args.set], args.classes, (low, high))
        try:
            figure.savefig(args.out, dpi=200, format=os.path.splitext(args.out)[1][1:] or "png")
        except (OSError, ValueError) as error:
            raise CommandError(f"{args.out}: {error}") from None
        print(f"Plot saved to {args.out}")
    else:
        parser().print_help()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0 if all is well, 1 if nothing matches, 2 on a mistake."""
    args = parser().parse_args(argv)
    try:
        run(args)
        sys.stdout.flush()
    except CommandError as error:
        print(error, file=sys.stderr)
        return error.code
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    sys.exit(main())
