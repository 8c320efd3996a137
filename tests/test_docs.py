"""The pages of the documentation name what there is, all of it."""

import ast
import itertools
import re
from pathlib import Path

import pytest

import lossary

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/trl.rst").read_text()
#: The tables of the page, by the module that they are of.
TABLES = dict(re.findall(r"^lossary\.(\w+)\n-+\n(.*?)(?=^lossary\.|\Z)", PAGE, re.M | re.S))
MODULES = list(TABLES)


def rows(module):
    cells = [row.split("\n     - ") for row in TABLES[module].split("\n   * - ")[1:]]
    return cells[1:] if cells[0][0] == "lossary" else cells


def public(module):
    tree = ast.parse((ROOT / f"src/lossary/{module}.py").read_text())
    names = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_row_in_the_table_of_its_module(module):
    named = [re.fullmatch(r"``(\w+)``", row[0]).group(1) for row in rows(module)]
    assert len(named) == len(set(named))
    assert public(module) <= set(named)


@pytest.mark.parametrize("module", MODULES)
def test_rows_name_only_what_is_exported(module):
    named = {re.fullmatch(r"``(\w+)``", row[0]).group(1) for row in rows(module)}
    assert named <= set(lossary.__all__)


@pytest.mark.parametrize("module", TABLES)
def test_every_row_says_what_trl_has(module):
    for name, trl, *differences in rows(module):
        assert len(differences) == 1 or (not differences and trl.rstrip().endswith("-")), name
        assert trl.strip(), name


def test_the_tables_are_of_these_modules():
    assert MODULES == [
        "preference",
        "reference_free",
        "unpaired",
        "segments",
        "sequences",
        "linear_preference",
        "self_play",
        "policy",
        "sequence_policy",
        "reward",
        "unlearning",
    ]
    assert PAGE.count("* - lossary\n") == len(TABLES)


def test_papers_name_what_there_is():
    page = (ROOT / "docs/papers.rst").read_text()
    named = set(re.findall(r"``([A-Za-z_]\w+?(?:Loss|_k|_rate|_ensemble|_smoothing))\b", page))
    assert len(named) > 8
    assert named - {"label_smoothing"} <= set(lossary.__all__)


@pytest.mark.parametrize("name", ["trl.rst", "papers.rst"])
def test_lines_are_short_and_titles_underlined(name):
    lines = (ROOT / "docs" / name).read_text().splitlines()
    assert max(map(len, lines)) <= 100
    for line, below in itertools.pairwise(lines):
        if below and set(below) in ({"="}, {"-"}):
            assert len(line) == len(below)
