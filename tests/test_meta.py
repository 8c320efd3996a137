"""The file tree, the exports, the docstrings, the cases and the README must agree."""

import ast
import doctest
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import lossary
from cases import CASES
from lossary import Loss, Properties
from lossary._properties import OF_CLASSES

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src/lossary").glob("*.py"))
BASES = [Loss, lossary.ClassificationLoss, lossary.PairwisePreferenceLoss]
MODULES = [
    x
    for x in (getattr(lossary, name) for name in lossary.__all__)
    if inspect.isclass(x) and issubclass(x, torch.nn.Module) and x not in BASES
]
LOSSES = [x for x in MODULES if issubclass(x, Loss)]
FUNCTIONS = [
    getattr(lossary, name) for name in lossary.__all__ if inspect.isfunction(getattr(lossary, name))
]
SECTIONS = (
    ".. math::",
    "Args:",
    "Shape:",
    "Properties:",
    "Limits:",
    "Raises:",
    "Reference:",
    "Example:",
    ">>> ",
)
OF_FUNCTIONS = tuple(s for s in SECTIONS if s not in ("Shape:", "Properties:", "Limits:"))


def test_every_public_name_is_a_loss_a_function_or_part_of_the_base():
    layouts = {lossary.LinearLogits, lossary.ShardedLogits}
    rest = {*BASES, *layouts, Properties, lossary.testing}
    assert {getattr(lossary, name) for name in lossary.__all__} - rest == {*MODULES, *FUNCTIONS}


def test_all_is_sorted_and_everything_in_it_exists():
    assert lossary.__all__ == sorted(lossary.__all__)
    assert all(hasattr(lossary, name) for name in lossary.__all__)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_every_public_name_of_a_family_is_exported(path):
    if path.name.startswith("_") or path.name == "testing.py":
        public = []
    else:
        tree = ast.parse(path.read_text())
        public = [n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    assert {n for n in public if not n.startswith("_")} <= set(lossary.__all__)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_has_a_case(loss):
    assert CASES[loss.__name__]
    assert all(type(case.loss()) is loss for case in CASES[loss.__name__])


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_declares_its_properties_with_their_source(loss):
    properties = CASES[loss.__name__][0].loss().properties()
    assert properties != Properties()
    assert properties.source


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_not_claimed_has_a_reason(loss):
    claims = ["convex", "lower", "upper", "lipschitz", "smoothness"]
    if issubclass(loss, lossary.ClassificationLoss):
        claims += [name for name in OF_CLASSES if name != "minimiser"]
    p = CASES[loss.__name__][0].loss().properties()
    open_claims = {name for name in claims if getattr(p, name) is None}
    assert open_claims == set(p.unknown)


@pytest.mark.parametrize("public", MODULES + FUNCTIONS)
def test_every_docstring_is_a_full_reference(public):
    doc = inspect.getdoc(public)
    lines = doc.splitlines()
    assert lines[0].endswith(".")
    assert lines[1] == ""
    sections = SECTIONS if public in MODULES else OF_FUNCTIONS
    assert [s for s in sections if s not in doc] == []
    assert re.search(r"\b(19|20)\d\d\b", doc.split("Reference:")[1])


@pytest.mark.parametrize("public", MODULES + FUNCTIONS)
def test_every_argument_is_documented(public):
    arguments = re.split(r"\n[A-Z]\w+:\n", inspect.getdoc(public).split("Args:")[1])[0]
    for name in inspect.signature(public).parameters:
        assert re.search(rf"\b{name}\b", arguments), name


@pytest.mark.parametrize("public", MODULES + FUNCTIONS)
def test_readme_and_changelog_name_it(public):
    for page in ("README.md", "CHANGELOG.md"):
        assert re.search(rf"\b{public.__name__}\b", (ROOT / page).read_text()), page


def test_the_library_needs_torch_alone():
    allowed = {*sys.stdlib_module_names, "torch", "lossary"}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:  # imports at module level
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {n.split(".")[0] for n in names} <= allowed, path.name


FLOORS = [
    "_checks",
    "_numerics",
    "_properties",
    "_softmax",
    "_similarity",
    "_residual",
    "_distributed",
    "_state",
    "_layouts",
    "_base",
    "_embedding_base",
    "_sequence_base",
    "_pairwise",
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_a_floor_imports_only_floors_below_it(path):
    imported = set(re.findall(r"from lossary\.(_\w+) import", path.read_text()))
    imported |= {
        name.strip()
        for names in re.findall(r"from lossary import ([\w, ]+)", path.read_text())
        for name in names.split(",")
        if name.strip().startswith("_")
    }
    below = FLOORS[: FLOORS.index(path.stem)] if path.stem in FLOORS else FLOORS
    assert imported <= set(below)


def test_nothing_is_printed_and_nothing_synchronises_in_a_family():
    for path in SOURCES:
        if path.name.startswith("_") or path.name == "testing.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                assert name not in ("print", "item", "tolist", "nonzero"), (path.name, node.lineno)


def test_the_readme_shows_the_swap_as_it_stands_in_the_example():
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"```python\n(.*?)```", readme, re.S).group(1)
    example = (ROOT / "docs/examples/swap.py").read_text()
    for line in block.splitlines():
        assert line in example, line


def test_the_readme_examples_print_what_they_show(monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    examples = [b for b in blocks if ">>>" in b]
    assert len(examples) == 2
    # A module of their own, so that the class they define can be pickled.
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    runner = doctest.DocTestRunner()
    for block in examples:
        parsed = doctest.DocTestParser().get_doctest(block, {}, "README.md", "README.md", 0)
        parsed.globs = vars(module)
        runner.run(parsed, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0


#: What each example must print, run with --smoke.
EXAMPLES = {
    "big_vocabulary.py": "LinearLogits",
    "calibration.py": "CorrectnessAwareLoss",
    "consistency_model.py": "Cauchy",
    "long_tail.py": "LogitAdjustmentLoss",
    "noisy_labels.py": "MulticlassMAELoss",
    "noisy_preferences.py": "RobustDPOLoss",
    "outliers.py": "Cauchy",
    "temperatures.py": "GlobalContrastiveLoss",
    "thresholds.py": "TCMLoss",
    "tiny_dpo.py": "RPOLoss",
}


def test_every_example_is_run():
    there = {path.name for path in (ROOT / "docs/examples").glob("*.py")}
    assert there == {*EXAMPLES, "swap.py"}
    script = (ROOT / ".ci/run").read_text()
    assert all(name.removesuffix(".py") in script for name in EXAMPLES)


def run_example(name, tmp_path, *options):
    run = subprocess.run(
        [sys.executable, str(ROOT / "docs/examples" / name), *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_swap_learns(tmp_path):
    out = run_example("swap.py", tmp_path)
    assert float(re.search(r"accuracy: ([\d.]+)%", out).group(1)) > 90


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name, tmp_path):
    assert EXAMPLES[name] in run_example(name, tmp_path, "--smoke")
    assert (tmp_path / name).with_suffix(".png").stat().st_size > 10_000
