"""docs/trust.md says how many faults are tried, and all of them are survived; the tests that it counts are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.trust_table import CLASSES, PAGE

TESTS = Path(__file__).parent


def functions(file):
    return {node.name for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body if hasattr(node, "name")}


def test_the_tests_that_are_counted_are_there():
    for test in (test for some in CLASSES.values() for test in some):
        file, _, name = test.partition("::")
        assert name in functions(file), test


def test_the_page_counts_every_class_and_no_fault_that_was_not_survived():
    lines = re.findall(r"^\| ([^|]*) \| ([\d,]+) \| ([\d,]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _, _ in lines] == list(CLASSES), "run `make trust`"
    for name, tried, survived in lines:
        assert tried == survived != "0", name
