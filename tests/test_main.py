# ruff: noqa: RUF001  (formulas have Greek letters)
"""The command line shows what the docstrings and the declared properties say, and nothing else."""

import inspect
import io
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lossary
from lossary import Loss, Properties
from lossary.__main__ import (
    CommandError,
    build,
    draw,
    find,
    flags,
    formulas,
    main,
    properties_table,
)
from lossary._properties import OF_CLASSES

ROOT = Path(__file__).parents[1]
PUBLIC = {name: getattr(lossary, name) for name in lossary.__all__ if name != "testing"}
BASES = (
    "ClassificationLoss",
    "LinearLogits",
    "Loss",
    "PairwisePreferenceLoss",
    "Properties",
    "ShardedLogits",
    "global_normalizer",
)
LISTED = {name: x for name, x in PUBLIC.items() if name not in BASES}
LOSSES = {name: x for name, x in LISTED.items() if inspect.isclass(x) and issubclass(x, Loss)}
SECTION = re.compile(r"^([A-Z]\w+):\n(?= )", re.M)

#: What each word of the listing says, by hand.
WORDS = {
    "convex": lambda p: p.convex,
    "bounded": lambda p: all_known(p.lower, p.upper),
    "lipschitz": lambda p: all_known(p.lipschitz),
    "differentiable": lambda p: None if p.smoothness is None else p.smoothness > 0,
    "symmetric": lambda p: p.symmetric,
    "shift-invariant": lambda p: p.shift_invariant,
    "calibrated": lambda p: p.calibrated,
    "rank-consistent": lambda p: p.rank_consistent,
    "proper": lambda p: p.proper,
}


def all_known(*numbers):
    if any(x is not None and math.isinf(x) for x in numbers):
        return False
    return None if None in numbers else True


def declared(name):
    cls = LISTED[name]
    if name not in LOSSES:
        return Properties()
    known = inspect.signature(cls).parameters
    needs = {p.name for p in known.values() if p.default is p.empty} | {"class_counts"} & {*known}
    given = {n: 3 if known[n].annotation is int else 1.0 for n in needs}
    if "class_counts" in needs:
        given["class_counts"] = torch.arange(10.0, 0.0, -1.0)
    if "loss" in needs:
        given["loss"] = torch.square
    return cls(**given).properties()


def squeeze(text):
    return " ".join(text.split())


def unmarked(text):
    """Take off RST markup, in a way of its own: roles, then backticks."""
    text = re.sub(r":(class|func|meth|mod):", "", text).replace("`", "").replace("\\|", "|")
    return text.replace("**The value is a surrogate**", "The value is a surrogate")


@pytest.fixture
def call(capsys):
    def run(*argv):
        code = main([str(a) for a in argv])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def listing(call):
    """Run list; return the columns of its lines, by name."""

    def run(*options):
        code, out, err = call("list", *options)
        assert (code, err) == (0, "")
        rows = [re.split(r" {2,}", line) for line in out.splitlines()]
        assert all(len(row) == 4 for row in rows)
        return {name: (family, title, words) for name, family, title, words in rows}

    return run


@pytest.fixture
def terminal(monkeypatch):
    """Make standard output a terminal of some width."""

    def become(width, **env):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(width))
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in env.items():
            monkeypatch.setenv(name, value)

    return become


@pytest.fixture
def publish(monkeypatch):
    """Add a class or function to the public names, in a family of its own."""

    def add(entry):
        entry.__module__ = "lossary.novel"
        monkeypatch.setattr(lossary, entry.__name__, entry, raising=False)
        monkeypatch.setattr(lossary, "__all__", [*lossary.__all__, entry.__name__])

    return add


class NeedsWords(Loss):
    """Loss that no number can build."""

    def __init__(self, words: str, *, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.words = words.upper()

    def per_sample(self, input, target):
        return (input - target).square()

    def properties(self):
        return Properties(convex=True, source="algebra")


class NeedsCount(NeedsWords):
    """Loss that any number can build."""

    def __init__(self, count: int, *, reduction: str = "mean"):
        super().__init__("x", reduction=reduction)
        self.count = count + 1


# list ----------------------------------------------------------------------------------------


def test_list_has_every_loss_and_function_once_and_in_order(call, listing):
    rows = listing()
    assert set(rows) == set(LISTED)
    lines = call("list")[1].splitlines()
    assert len(lines) == len(LISTED)
    assert list(rows) == sorted(rows, key=lambda name: (rows[name][0], name))


@pytest.mark.parametrize("name", LISTED)
def test_list_says_family_title_and_properties(listing, name):
    family, title, words = listing()[name]
    assert f"lossary.{family}" == LISTED[name].__module__
    assert title == squeeze(unmarked(inspect.getdoc(LISTED[name]).splitlines()[0]))
    true = [word for word, holds in WORDS.items() if holds(declared(name))]
    assert words == (", ".join(true) or "-")


def test_lines_in_a_pipe_are_whole_and_aligned(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = call("list")[1].splitlines()
    titles = {x: squeeze(unmarked(inspect.getdoc(y).splitlines()[0])) for x, y in LISTED.items()}
    starts = set()
    for line in lines:
        name = line.split()[0]
        family = LISTED[name].__module__.rpartition(".")[2]
        starts.add((line.index(f"  {family}  "[1:]), line.index(titles[name])))
        assert line.startswith(name)
    assert len(starts) == 1 or len({title for _, title in starts}) == 1
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize("word", WORDS)
def test_a_property_filter_agrees_with_properties(call, word):
    for option, wanted in ((word, True), (f"not-{word}", False)):
        names = {name for name in LISTED if WORDS[word](declared(name)) is wanted}
        code, out, err = call("list", "--property", option)
        assert {line.split()[0] for line in out.splitlines()} == names
        assert (code, err) == ((0, "") if names else (1, "nothing matches\n"))


def test_every_flag_of_properties_is_a_word():
    fields = inspect.get_annotations(Properties)
    own = {name.replace("_", "-") for name, kind in fields.items() if kind == bool | None}
    assert len(own) >= 6
    assert own <= set(flags(Properties())) == set(WORDS)


@pytest.mark.parametrize(
    ("numbers", "word", "value"),
    [
        ({"lower": 0.0, "upper": 1.0}, "bounded", True),
        ({"lower": -math.inf, "upper": 1.0}, "bounded", False),
        ({"lower": 0.0, "upper": math.inf}, "bounded", False),
        ({"upper": math.inf}, "bounded", False),
        ({"lower": 0.0}, "bounded", None),
        ({"upper": 1.0}, "bounded", None),
        ({"lipschitz": 2.0}, "lipschitz", True),
        ({"lipschitz": math.inf}, "lipschitz", False),
        ({}, "lipschitz", None),
        ({"smoothness": 0}, "differentiable", False),
        ({"smoothness": 1}, "differentiable", True),
        ({"smoothness": math.inf}, "differentiable", True),
        ({}, "differentiable", None),
    ],
)
def test_numbers_become_words(numbers, word, value):
    assert flags(Properties(**numbers))[word] is value
    assert WORDS[word](Properties(**numbers)) is value


def test_filters_combine(listing):
    families = {name: row[0] for name, row in listing().items()}
    assert set(listing("--family", "ldr")) == {n for n, f in families.items() if f == "ldr"}
    both = listing("--family", "ldr", "--family", "comp_sum")
    assert set(both) == {n for n, f in families.items() if f in ("ldr", "comp_sum")}
    smooth = listing("--property", "bounded", "--property", "not-convex")
    assert set(smooth) == set(listing("--property", "bounded")) & set(
        listing("--property", "not-convex")
    )
    assert set(listing("--family", "comp_sum", "--property", "symmetric")) == {"MulticlassMAELoss"}


def test_filters_know_any_case_and_underscores(listing):
    assert listing("--property", "RANK_Consistent") == listing("--property", "rank-consistent")
    assert listing("--property", "Not_Convex") == listing("--property", "not-convex")
    assert listing("--family", "Comp-Sum") == listing("--family", "comp_sum")


@pytest.mark.parametrize(
    ("option", "value", "nearest"),
    [
        ("--family", "comp_sums", "comp_sum"),
        ("--family", "noisy", "noisy_labels"),
        ("--property", "convecs", "convex"),
        ("--property", "not-bound", "bounded"),
    ],
)
def test_an_unknown_filter_names_the_nearest(call, option, value, nearest):
    code, out, err = call("list", option, value)
    assert (code, out) == (2, "")
    assert err.split("nearest: ")[1].split(", ")[0].strip() == nearest
    assert err.count("\n") == 1


def test_nothing_matches(call):
    assert call("list", "--property", "convex", "--property", "not-convex") == (
        1,
        "",
        "nothing matches\n",
    )


@pytest.mark.parametrize("width", [40, 80, 130, 200])
def test_list_fits_the_terminal(call, terminal, width):
    piped = call("list")[1]
    terminal(width, NO_COLOR="1")
    code, out, _ = call("list")
    assert code == 0
    assert max(map(len, out.splitlines())) <= width
    assert max(map(len, out.splitlines())) > 0.8 * width
    for name in LISTED:
        assert re.search(rf"^{name}\b", out, re.M)
    assert sorted(out.split()) == sorted(piped.split())  # nothing cut off
    if width >= 130:  # below, families do not stand in a column
        rows = [line.index(f"  {LISTED[line.split()[0]].__module__[8:]}") for line in named(out)]
        assert len(set(rows)) == 1


def named(out):
    return [line for line in out.splitlines() if line.split()[0] in LISTED and line[0] != " "]


def test_list_needs_no_second_line_where_there_is_room(call, terminal):
    piped = call("list")[1]
    terminal(1000, NO_COLOR="1")
    assert call("list")[1] == piped


def test_a_loss_with_required_arguments_is_listed(listing, publish):
    publish(NeedsWords)
    publish(NeedsCount)
    rows = listing("--family", "novel")
    assert rows["NeedsWords"] == ("novel", "Loss that no number can build.", "-")
    assert rows["NeedsCount"] == ("novel", "Loss that any number can build.", "convex")
    assert set(listing("--family", "novel", "--property", "convex")) == {"NeedsCount"}


# show ----------------------------------------------------------------------------------------


def parts(entry):
    """Split a docstring into its text before the first section and the sections by name."""
    first, *rest = SECTION.split(inspect.getdoc(entry))
    return first, dict(zip(rest[::2], rest[1::2], strict=True))


@pytest.mark.parametrize("name", PUBLIC)
def test_show_is_the_whole_docstring_without_markup(call, name):
    code, out, err = call("show", name)
    assert (code, err) == (0, "")
    before, sections = parts(PUBLIC[name])
    title = before.splitlines()[0]
    assert out.startswith(f"{name}  {PUBLIC[name].__module__.rpartition('.')[2]}\n")
    assert squeeze(unmarked(title)) in squeeze(out)
    for heading, text in {"": before, **sections}.items():
        assert f"\n{heading}\n" in out
        for paragraph in re.split(r"\n\s*\n", text):
            if ".. math::" not in paragraph and ">>>" not in paragraph:
                prose = squeeze(re.sub("::$", ":", unmarked(paragraph)))
                assert prose in squeeze(out), heading
    for paragraph in inspect.getdoc(PUBLIC[name]).partition("Example:\n")[2].split("\n\n"):
        if ">>>" in paragraph:
            assert f"\n{paragraph.rstrip()}\n" in out
    assert not re.search(r"`|:\w+:`|(?<!\.)\.\. |\\operatorname|\033", out.partition("Example")[0])


@pytest.mark.parametrize("name", LOSSES)
def test_show_states_all_properties(call, name):
    table = call("show", name)[1].partition("\nDeclared properties (")[2]
    rows = [line.split(maxsplit=1) for line in table.splitlines() if re.match(r"    \S", line)]
    said = {key: value for key, value in rows if key != "limit"}
    p, of_classes = declared(name), issubclass(PUBLIC[name], lossary.ClassificationLoss)

    def unknown(key):
        why = p.unknown.get(key.replace("-", "_"))
        return "unknown" if why is None else f"unknown: {why}"

    for key in WORDS:
        flag = getattr(p, key.replace("-", "_"), "a number")
        if flag is None and key.replace("-", "_") in OF_CLASSES and not of_classes:
            assert key not in said
        elif flag is None or flag is True or flag is False:
            words = {None: unknown(key), True: "yes", False: "no"}[flag]
            assert squeeze(words).startswith(squeeze(said[key])), key
            assert squeeze(words) in squeeze(table)
    for key in ("lower", "upper", "lipschitz", "smoothness"):
        number = getattr(p, key)
        if number is None:
            assert squeeze(f"{key} {unknown(key)}") in squeeze(table)
        else:
            assert float(said[key]) == pytest.approx(number, rel=1e-4), key
    assert ("class-sum" in said) == bool(p.symmetric)
    assert squeeze(table).endswith(f"source {squeeze(p.source)}")
    if of_classes:
        assert squeeze(p.minimiser or "unknown") in squeeze(table)
    for where, what in p.limits:
        assert f"limit {where}: {what}" in squeeze(table)


def test_show_knows_how_a_loss_is_made_and_called(call):
    out = squeeze(call("show", "MulticlassMAELoss")[1])
    assert (
        "lossary.MulticlassMAELoss(scale=1.0, *, reduction='mean', class_weight=None, "
        "ignore_index=-100, class_dim=1) loss(logits, target, *, weight=None, normalizer=None)"
    ) in out
    assert "loss(" not in squeeze(call("show", "Loss")[1]).partition("Base class")[0]


def test_show_at_other_hyper_parameters(call):
    out = call("show", "LDRKLLoss", "--set", "lam=0", "--set", "lam=1", "margin=0")[1]
    first, second = out.split("\nDeclared properties (")[1:]
    assert first.startswith("lam=0, num_classes=10)\n")
    assert second.startswith("lam=1, margin=0, num_classes=10)\n")
    assert "calibrated        no\n" in first
    assert "calibrated        yes\n" in second
    assert "proper            yes\n" in second
    assert "upper             1\n" in call("show", "MulticlassMAELoss")[1]  # 1 is not yes
    assert "upper             inf\n" in first
    code, out, err = call("show", "LDRKLLoss", "--set", "lam=-1")
    assert (code, out) == (2, "")
    assert err == "LDRKLLoss: lam: expected a number in [0, inf], got -1\n"


def test_required_numbers_are_shown_with_what_stands_in():
    for chosen, heading in (
        ({}, "defaults, a=1.0, b=1.0, num_classes=10"),
        ({"a": 2.0}, "a=2.0, b=1.0, num_classes=10"),
    ):
        got, rows = properties_table(lossary.ZLoss, chosen)
        assert got == f"Declared properties ({heading})"
        bound = lossary.ZLoss(**{"a": 1.0, "b": 1.0, **chosen}).properties(10).upper
        assert float(dict(rows)["upper"]) == pytest.approx(bound, rel=1e-4)


def test_show_of_what_declares_nothing(call, publish):
    publish(NeedsWords)
    assert call("show", "NeedsWords")[1].endswith("\nDeclares no properties\n")
    assert "convex            yes\n" in call("show", "NeedsWords", "--set", "words=x")[1]
    for name in PUBLIC.keys() - LOSSES.keys():
        assert "Declare" not in call("show", name)[1]


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("name", PUBLIC)
def test_show_fits_the_width(call, monkeypatch, name, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = call("show", name)[1].splitlines()
    # Doctests stay as they are, and a word that is longer than the line is not broken.
    doctest = parts(PUBLIC[name])[1].get("Example", "").splitlines()
    prose = [line for line in lines if line not in doctest and " " in line.strip()]
    assert max(map(len, prose)) <= width
    assert max(map(len, prose)) > 0.75 * width or len(inspect.getdoc(PUBLIC[name])) < 1000


def test_entries_hang(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = call("show", "LDRKLLoss")[1]
    args = out.partition("\nArgs\n")[2].partition("\nShape\n")[0].rstrip("\n").splitlines()
    starts = [line for line in args if re.match(r"    \S", line)]
    assert [s.split(":")[0].strip() for s in starts[:-1]] == ["lam", "margin", "normalize"]
    assert all(re.match(r" {4}(\S| {4}\S)", line) for line in args)
    out = call("show", "Loss")[1]
    assert "\n- weight: float weights" in out
    assert re.search(r"\n- normalizer: .*\n  \S", out)


def test_double_colons_keep_what_follows(call, publish):
    def function(x):
        """Return x.

        Like this::

            x   stays
              as it is

        and a list:

        - ``one``: first
        - :class:`~lossary.Loss`: \\|x\\|, second, :math:`\\alpha \\le 1`

        .. math::

            x = y, \\qquad
            y = z

        Reference:
            .. math:: a = b
        """

    publish(function)
    _, out, _ = call("show", "function")
    assert "Like this:\n\n    x   stays\n      as it is\n\nand a list:\n\n- one: first\n" in out
    assert "\n- lossary.Loss: |x|, second, α ≤ 1\n\n    x = y,\n    y = z\n" in out
    assert out.endswith("\n\nReference\n        a = b\n")


def test_any_case_finds_a_name(call):
    assert call("show", "ldrklloss") == call("show", "LDRKLLoss")


@pytest.mark.parametrize("command", ["show", "plot"])
@pytest.mark.parametrize(
    ("name", "nearest"),
    [("LDRKLLos", "LDRKLLoss"), ("comp_sum_loss", "CompSumLoss"), ("mae", "MulticlassMAELoss")],
)
def test_an_unknown_name_gets_the_nearest(call, tmp_path, command, name, nearest):
    options = ["--out", tmp_path / "a.png"] * (command == "plot")
    code, out, err = call(command, name, *options)
    assert (code, out) == (2, "")
    assert err.startswith(f"no name {name!r}; nearest: {nearest}")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_part_of_a_name_is_nearer_than_a_similar_name():
    with pytest.raises(CommandError, match=r"^no name 'ab'; nearest: x{9}ABx{9}, bac, zz$"):
        find("name", "ab", ["bac", "zz", "x" * 9 + "AB" + "x" * 9])


def test_bold_only_on_terminals_that_want_it(call, terminal):
    plain = {command: call(*command.split())[1] for command in ("list", "show LDRKLLoss")}
    for command, text in plain.items():
        assert "\033" not in text
        for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
            terminal(80, **env)
            assert "\033" not in call(*command.split())[1]
        terminal(80)
        coloured = call(*command.split())[1]
        assert "\033[1mLDRKLLoss" in coloured
        assert coloured.count("\033[1m") == coloured.count("\033[0m")
        stripped = re.sub(r"\033\[\dm", "", coloured)
        assert squeeze(stripped).split() == squeeze(text).split() or command == "list"
    assert "\033[1mArgs\033[0m\n" in coloured


# Formulas ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latex", "unicode"),
    [
        (r"\frac{p_y^{\tau-1} - 1}{1 - \tau}", "(p_y^{τ-1} - 1)/(1 - τ)"),
        (r"\lambda \log \frac1K \sum_k e^{z_k/\lambda}", "λ log (1/K) ∑_k e^{z_k/λ}"),
        (r"\tfrac12 + \frac{a}{b}", "1/2 + a/b"),
        (r"\frac{a}{b} x, \dfrac{1}{\tau}", "(a/b) x, 1/τ"),
        (r"\frac{1}{\frac{a}{b} + 1}", "1/(a/b + 1)"),
        (r"\max_{r \in \Delta}\ \langle r, z\rangle", "max_{r ∈ Δ} ⟨r, z⟩"),
        (r"\operatorname{KL}(r \,\|\, 1/K)", "KL(r ‖ 1/K)"),
        (r"\ell\Bigl(\sum_{k \neq y} e^{f_k}\Bigr)", "ℓ(∑_{k ≠ y} e^{f_k})"),
        (r"\min\{a, \#\{i : w_i \neq 0\}\}", "min{a, #{i : w_i ≠ 0}}"),
        (r"\sqrt{\lVert r \rVert^2 + c^2} - c", "√(‖r‖^2 + c^2) - c"),
        (r"\alpha\log p - \beta\exp\frac{x}{y}", "α log p - β exp (x/y)"),
        (r"\frac{1 + \frac{a}{b}}{\frac c2}^{\frac12}", "((1 + (a/b))/(c/2))^{1/2}"),
        (r"a_i,\quad\text{or if } b\_i", "a_i, or if b_i"),
        (r"x \text{ at } \tau = 1", "x at τ = 1"),
        (r"\infty \ge x \cdot 2 \le \infty", "∞ ≥ x · 2 ≤ ∞"),
    ],
)
def test_formulas_are_readable(latex, unicode):
    assert formulas(latex) == [unicode]


def test_formulas_are_split_at_wide_spaces():
    assert formulas(r"a = b, \qquad" + "\n   " + r"p = \alpha") == ["a = b,", "p = α"]


@pytest.mark.parametrize("odd", [r"\xleftarrow{a}", r"{\alpha} x", r"\begin{cases} a \end{cases}"])
def test_a_formula_with_an_unknown_command_keeps_its_source(odd):
    source = r"\alpha + " + odd + "\n" + r"    + \qquad \frac{1}{2}"
    assert formulas(source) == [line.strip() for line in source.splitlines()]


def test_a_terminal_without_greek_letters_gets_the_source(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert formulas(r"\tau \le 1") == [r"\tau \le 1"]
    assert formulas(r"p \text{ at } 1") == ["p at 1"]


@pytest.mark.parametrize("name", LOSSES)
def test_the_formula_of_every_loss_is_in_unicode(call, name):
    head = call("show", name)[1].partition("\nArgs\n")[0]
    assert "\\" not in head or "\\begin" in head


# plot ----------------------------------------------------------------------------------------


def lines(figure):
    """Return x, values and gradients of each curve, by label."""
    left, right = figure.axes
    assert [a.get_label() for a in left.lines] == [a.get_label() for a in right.lines]
    for a, b in zip(left.lines, right.lines, strict=True):
        assert a.get_color() == b.get_color()
        assert a.get_linestyle() == b.get_linestyle()
        assert (a.get_xdata() == b.get_xdata()).all()
    return {
        a.get_label(): tuple(
            torch.as_tensor(y) for y in (a.get_xdata(), a.get_ydata(), b.get_ydata())
        )
        for a, b in zip(left.lines, right.lines, strict=True)
    }


#: More than one number goes in, or the samples of a batch together.
NO_CURVE = (
    "NodeCompactnessRegularizer",
    "AdaptiveMixLoss",
    "GradientMatchingLoss",
    "LabelConsistencyLoss",
    "LAFAlignmentLoss",
    "LAFRepresentationUnlearningLoss",
    "ModelBehaviorConsistencyLoss",
    "OnlinePrototypeEquilibriumLoss",
    "PrototypeRelationDistillationLoss",
    "PrototypeTightnessLoss",
    "MetrixLoss",
    "ICNNLoss",
    "MultiSimilarityLoss",
    "NPairLoss",
    "ProtoTripletLoss",
    "ProxyAnchorLoss",
    "TripletMarginLoss",
    "ADORELoss",
    "AMCLLoss",
    "BarlowTwinsLoss",
    "COMETLoss",
    "COMETTotalLoss",
    "RMTContrastiveLoss",
    "VICRegLoss",
    "CompositionalNLLLoss",
    "NCELoss",
    "PairwiseRankNetLoss",
    "ArcFaceLoss",
    "CosFaceLoss",
    "UNPGLoss",
    "AOTLoss",
    "AggregateResponseLoss",
    "BCOLoss",
    "BatchSoftmaxLoss",
    "CPLLoss",
    "CREAMLoss",
    "CorrectnessAwareLoss",
    "DNOLoss",
    "DecoupledPPOLoss",
    "DCLLoss",
    "DirectCoverageLoss",
    "EarlyTimestepDiffusionLoss",
    "EnsLoss",
    "FLATLoss",
    "DirectAdvantageLoss",
    "DirectCoverageLoss",
    "EarlyTimestepDiffusionLoss",
    "EnsLoss",
    "FDPGLoss",
    "FeatureSeparationLoss",
    "GRPOLoss",
    "GlobalContrastiveLoss",
    "GradAscentLoss",
    "GradDiffLoss",
    "GradientSimilarityFocalLoss",
    "HardContrastiveLoss",
    "IBPRobustCrossEntropyLoss",
    "IBPTightnessRegularizer",
    "INPOLoss",
    "InfoNCELoss",
    "KTOLoss",
    "LinearPreferenceLoss",
    "LogicPreferenceLoss",
    "LogitZRegularizer",
    "MartingaleLoss",
    "MixupNDCGLoss",
    "MixupRankingLoss",
    "NPOLoss",
    "NFTLoss",
    "NTXentLoss",
    "NashMDLoss",
    "NashMPLoss",
    "NormalizedLogisticLoss",
    "ORPOLoss",
    "PartialReturnPreferenceLoss",
    "P3OLoss",
    "RDPOLengthLoss",
    "ReLUBalanceRegularizer",
    "RegretLoss",
    "SCIRLoss",
    "RegretPreferenceLoss",
    "SRATLoss",
    "SRPOLoss",
    "SequenceNLLLoss",
    "SparsePreferenceLoss",
    "SimNPOLoss",
    "StableReinforceLoss",
    "SigLIPLoss",
    "SupConLoss",
    "SymmetricConsistencyLoss",
    "TCMLoss",
    "TLCLoss",
    "TieAwareBradleyTerryLoss",
    "SuperHFLoss",
    "SymmetricConsistencyLoss",
    "TCMLoss",
    "TLCLoss",
    "TargetSurrogateLoss",
    "TwoWayGlobalContrastiveLoss",
    "WGALoss",
)


@pytest.mark.parametrize("name", NO_CURVE)
def test_what_has_no_curve_says_what_it_takes(name):
    with pytest.raises(CommandError, match=f"no curve for {name}: it takes .*; curves are of"):
        draw(name)


def test_counts_of_classes_are_stood_in_for(call):
    table = call("show", "LogitAdjustmentLoss")[1].partition("\nDeclared properties (")[2]
    assert table.startswith("class_counts=10, ..., 1, num_classes=10)")
    shares = call("show", "LogitAdjustmentLoss", "--set", "class_prior=[0.75, 0.25]")[1]
    assert "(class_prior=[0.75, 0.25], num_classes=10)" in shares
    own = call("show", "TLCLoss", "--set", "class_counts=[3, 1]")[1]
    assert "(class_counts=[3, 1])" in own


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in NO_CURVE])
def test_every_loss_can_be_plotted(name, tmp_path):
    figure = draw(name)
    figure.savefig(tmp_path / "a.png", dpi=30)
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert figure.get_suptitle() == name
    for x, values, slopes in lines(figure).values():
        assert values.isfinite().all()
        assert values.std() > 0
        if name != "ALDRKLLoss":  # its gradient leaves out how the temperature follows the logits
            # Away from kinks the slope of the one panel is the value of the other.
            middle = (values[2:] - values[:-2]) / (x[2:] - x[:-2])
            # (Of a step the slope is 0, up to rounding.)
            close = (middle - slopes[1:-1]).abs() < 1e-2 * slopes.abs().max() + 1e-9
            assert close.sum() >= len(close) - 8


def test_the_curves_are_the_loss_and_its_gradient():
    for k, (x, values, slopes) in zip((2, 10), lines(draw("compsumloss")).values(), strict=True):
        assert (x[0], x[200], x[-1]) == (-5, 0, 5)
        p = 1 / (1 + (k - 1) * (-x).exp())
        torch.testing.assert_close(values, -p.log())
        torch.testing.assert_close(slopes, p - 1)
    curves = lines(draw("MulticlassMAELoss")).values()
    for k, (x, values, slopes) in zip((2, 10), curves, strict=True):
        p = 1 / (1 + (k - 1) * (-x).exp())
        torch.testing.assert_close(values, 1 - p)
        torch.testing.assert_close(slopes, -p * (1 - p))
    figure = draw("PseudoHuberLoss", [{"scale": 2.0}, {"scale": 0.5, "mode": "elementwise"}])
    for c, (x, values, slopes) in zip((2.0, 0.5), lines(figure).values(), strict=True):
        torch.testing.assert_close(values, (x**2 + c**2).sqrt() - c)
        torch.testing.assert_close(slopes, x / (x**2 + c**2).sqrt())
    ((x, values, slopes),) = lines(draw("CauchyLoss", span=(0.0, 8.0))).values()
    torch.testing.assert_close(x, torch.linspace(0, 8, 401, dtype=torch.float64))
    torch.testing.assert_close(values, (x**2 / 2).log1p())
    torch.testing.assert_close(slopes, 2 * x / (2 + x**2))


def test_every_point_of_a_curve_is_a_sample_of_its_own():
    for k, (x, values, slopes) in zip((2, 10), lines(draw("ALDRKLLoss")).values(), strict=True):
        for i in (0, 100, 250, 400):
            logits = torch.zeros(1, k, dtype=x.dtype)
            logits[0, 0] = x[i]
            loss, zero = lossary.ALDRKLLoss(1).double(), torch.tensor([0])
            value = loss(logits.requires_grad_(), zero, zero)
            value.backward()
            torch.testing.assert_close(values[i], value.detach())
            torch.testing.assert_close(slopes[i], logits.grad[0, 0])


def test_one_curve_for_each_setting_and_number_of_classes():
    figure = draw("CompSumLoss", [{"tau": 0.5}, {"tau": 2, "reduction": "sum"}], [3, 5, 7])
    labels = [f"{s}, K={k}" for s in ("tau=0.5", "tau=2, reduction=sum") for k in (3, 5, 7)]
    curves = lines(figure)
    assert list(curves) == labels
    assert [t.get_text() for t in figure.legends[0].get_texts()] == labels
    looks = [(a.get_color(), a.get_linestyle()) for a in figure.axes[0].lines]
    assert len(set(looks)) == 6
    assert [c for c, _ in looks] == [looks[0][0]] * 3 + [looks[3][0]] * 3
    assert [s for _, s in looks[:3]] == [s for _, s in looks[3:]]
    assert draw("compsumloss").get_suptitle() == "CompSumLoss"
    x, values, _ = curves["tau=2, reduction=sum, K=7"]
    torch.testing.assert_close(values, 1 - 1 / (1 + 6 * (-x).exp()))
    assert list(lines(draw("CompSumLoss"))) == ["K=2", "K=10"]
    assert list(lines(draw("CauchyLoss"))) == ["defaults"]


def test_axes_are_named_and_a_steep_curve_does_not_flatten_the_others():
    figure = draw("CompSumLoss", [{"tau": t} for t in (0.0, 1.0, 1.5, 2.0)])
    assert [a.get_ylabel() for a in figure.axes] == ["loss", "gradient in $f_y$"]
    assert "f_y - f_k" in figure.axes[0].get_xlabel()
    (low, high), (steep, flat) = (a.get_ylim() for a in figure.axes)
    assert lines(figure)["tau=0.0, K=10"][1].max() > 1000
    assert 5 < high < 20
    assert -1 < low < 0
    assert -10 < steep < -1
    assert 0 < flat < 1
    figure = draw("CrammerSingerLoss", [{"margin": c} for c in (1, 1.5, 9)], span=(2.0, 5.0))
    assert figure.axes[0].get_ylim() == pytest.approx((-0.05 * 7, 1.05 * 7))  # most curves are 0
    figure = draw("CauchyLoss")
    assert [a.get_ylabel() for a in figure.axes] == ["loss", "gradient"]
    assert figure.axes[0].get_xlabel() == "residual"
    low, high = figure.axes[0].get_ylim()
    top = math.log1p(12.5)
    assert (low, high) == pytest.approx((-0.05 * top, 1.05 * top))


def test_plot_saves_what_was_asked_for(call, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("lossary.__main__.draw", lambda *a: seen.append(a) or draw(*a))
    options = "--set lam=inf --set lam=2 normalize=softplus margin=0.5 --set normalize=None"
    options += " --classes 2 5 --range -1 3"
    path = tmp_path / "a.svg"
    code, out, err = call("plot", "ldrklloss", "--out", path, *options.split())
    assert (code, out, err) == (0, f"Plot saved to {path}\n", "")
    assert path.read_text().startswith("<?xml")
    assert seen == [
        (
            "ldrklloss",
            [
                {"lam": math.inf},
                {"lam": 2, "normalize": "softplus", "margin": 0.5},
                {"normalize": None},
            ],
            [2, 5],
            (-1, 3),
        )
    ]


def test_lists_become_tensors_where_the_loss_takes_them(call, tmp_path):
    chosen = [{"margin": [0, 2]}, {"margin": [[0, 3], [0, 0]]}, {"class_weight": [2.0, 1.0]}]
    (x, own, _), (_, pair, _), (_, weighted, _) = lines(draw("LDRKLLoss", chosen, [2])).values()
    torch.testing.assert_close(own, torch.logaddexp(-x, 0 * x) - math.log(2))
    torch.testing.assert_close(pair, torch.logaddexp(3 - x, 0 * x) - math.log(2))
    torch.testing.assert_close(weighted, 2 * torch.logaddexp(0.1 - x, 0 * x) - 2 * math.log(2))
    code, _, err = call("plot", "LDRKLLoss", "--out", tmp_path / "a.png", "--set", "margin=[0,2]")
    assert code == 2
    assert err == "LDRKLLoss: margin: expected 10 classes, got shape (2,)\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("CompSumLoss --set tau=-1", "CompSumLoss: tau: expected a number in [0, inf), got -1"),
        ("CompSumLoss --set tau=x", "CompSumLoss: tau: expected a number, got str ('x')"),
        ("CompSumLoss --set tau=[1]", "CompSumLoss: tau: expected a number, got list ([1])"),
        ("CompSumLoss --set tao=1", "CompSumLoss: .*unexpected keyword argument 'tao'"),
        ("CompSumLoss --classes 1", "CompSumLoss: logits: expected at least 2 classes, got 1"),
        ("CompSumLoss --classes -4", "CompSumLoss: .*"),
        ("CompSumLoss --range 3 3", "--range: expected two numbers, the smaller first: .*"),
        ("CompSumLoss --range 0 inf", "--range: expected two numbers, the smaller first: .*"),
        ("adaptive_cauchy_scale", "no curve for adaptive_cauchy_scale: only losses have one"),
        ("ClassificationLoss", "no curve for ClassificationLoss: only losses have one"),
        ("Properties", "no curve for Properties: only losses have one"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(call, tmp_path, options, message):
    code, out, err = call("plot", *options.split(), "--out", tmp_path / "a.png")
    assert (code, out) == (2, "")
    assert re.fullmatch(re.escape(message).replace(r"\.\*", ".*"), err.rstrip("\n"))
    assert not list(tmp_path.iterdir())


def test_of_a_long_complaint_the_first_line_is_shown(call, publish, tmp_path):
    class Talks(NeedsCount):
        def __init__(self, *, reduction="mean"):
            raise ValueError("no\nbecause")

    publish(Talks)
    assert call("plot", "talks", "--out", tmp_path / "a.png") == (2, "", "Talks: no\n")


def test_losses_of_other_inputs_have_no_curve(call, tmp_path, publish):
    class Coupled(NeedsCount):
        separable = False

    class Pairs(Loss):
        def per_sample(self, first, second, target):
            return first

    for loss, names in ((Coupled, "input, target, the samples of a batch together"), (Pairs, "f")):
        publish(loss)
        code, _, err = call("plot", loss.__name__, "--out", tmp_path / "a.png")
        assert code == 2
        assert err.startswith(f"no curve for {loss.__name__}: it takes {names}")


def test_a_required_integer_is_the_number_of_points(publish):
    publish(NeedsCount)
    ((x, values, _),) = lines(draw("NeedsCount")).values()
    torch.testing.assert_close(values, x**2)
    assert build(NeedsCount, {}).count == len(x) + 1
    assert build(NeedsCount, {"count": 2}).count == 3


@pytest.mark.parametrize("out", ["missing/a.png", "a.xyz", "."])
def test_a_file_that_cannot_be_written(call, tmp_path, out):
    code, text, err = call("plot", "CompSumLoss", "--out", tmp_path / out)
    assert (code, text) == (2, "")
    assert err.startswith(str(tmp_path / out))
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_plot_without_matplotlib(call, monkeypatch, tmp_path):
    for name in [m for m in sys.modules if m.split(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert call("plot", "CompSumLoss", "--out", tmp_path / "a.png") == (
        2,
        "",
        'plot needs matplotlib: pip install "lossary[examples]"\n',
    )


# The command line ----------------------------------------------------------------------------


def module(*argv, **options):
    command = [sys.executable, "-m", "lossary", *map(str, argv)]
    options = {"capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run(command, **options)


def test_the_module_runs(tmp_path, call):
    run = module("list", "--family", "x")
    assert (run.returncode, run.stdout, run.stderr) == call("list", "--family", "x")
    run = module("show", "LDRKLLoss", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (run.returncode, run.stderr) == (0, "")
    assert r"\max_{r \in \Delta}" in run.stdout
    run = module("plot", "CompSumLoss", "--out", "a.png", cwd=tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, "Plot saved to a.png\n", "")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_reader_that_leaves_early_is_no_error():
    read, write = os.pipe()
    os.close(read)
    env = {name: x for name, x in os.environ.items() if name != "PYTHONUNBUFFERED"}
    run = module("list", stdout=write, stderr=subprocess.PIPE, capture_output=False, env=env)
    os.close(write)
    assert (run.returncode, run.stderr) == (1, "")


def test_help_and_version(call):
    code, out, err = call()
    assert (code, err) == (0, "")
    assert out.startswith("usage: python -m lossary")
    assert all(command in out for command in ("list", "show", "plot"))
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert call("--version") == (0, f"lossary {version}\n", "")


@pytest.mark.parametrize("command", ["list", "show", "plot"])
def test_every_command_gives_an_example_that_works(call, capsys, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main([command, "-h"])
    assert exit_.value.code == 0
    example = squeeze(capsys.readouterr()[0].partition("example: python -m lossary ")[2])
    assert example.startswith(command)
    assert call(*example.split())[0] == 0


@pytest.mark.parametrize(
    "argv", [["lists"], ["show"], ["plot", "CompSumLoss"], ["show", "Loss", "--set", "lam"]]
)
def test_a_mistaken_command_line(capsys, argv):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_readme_shows_what_list_prints(call, terminal):
    block = re.search(
        r"\$ python -m lossary (list .*)\n([^$]+)\$", (ROOT / "README.md").read_text()
    )
    terminal(100, NO_COLOR="1")
    out = call(*block[1].split())[1]
    entries = re.split(r"(?m)^(?=\w)", block[2])
    assert len(entries) > 2
    assert all(entry in out for entry in entries)
