"""Changes one place of the code at a time and asks whether a test notices: `make mutants`, outside of CI.

Cosmic Ray's operators change the code. All happens in a copy of the tree, inside of one session of pytest, which
imports and collects once. For each mutant it forks, puts the changed code into the functions that live there, and runs
the nearest tests until one fails: the doctests of the file, then tests that name what was changed or who calls it,
those of the file's own name first. So the score is a lower bound: tests further away may notice, too. Places are drawn
with a seed, those of files that differ from main first. What annotations say is not changed. Tests that start a Python
of their own are left out.
"""

from __future__ import annotations

import argparse
import ast
import gc
import inspect
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import unified_diff
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from _pytest.runner import runtestprotocol
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
ROOMS = ("caa/steering", "caa/extraction", "caa/evals", "caa/vectors", "caa/exports", "caa/reports/statistics.py")
TESTS = """actadd answers applying checks columns damage effects exports extract formats gates grid imports knowledge
methods moves norms numbers operators own_answers patching planted pool projections properties reader saving scopes
scoring settings significance sites statistics steering_state tasks tool_steering tools vector vector_file
vector_letters wrapper"""
SECONDS = 6.0
"""Of the CPU, for the tests of one mutant; one that nobody has noticed until then has survived."""
SAME = re.compile("_(Is_Eq|IsNot_NotEq|Eq_Is|NotEq_IsNot)$")
"""Operators that change nothing for the names and constants that are compared here."""


class Mutant(NamedTuple):
    file: str
    line: int
    change: str
    source: str


class NotTriedError(Exception):
    """A change that cannot be made in a process that has imported the module."""


# Mutants.


def drawn(root: Path, files: Sequence[str], seed: int) -> Iterator[Mutant]:
    """One mutant at each place, in files that differ from main before others."""
    command = ["git", "diff", "--merge-base", "main", "--name-only"]
    changed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    places = [(file, place, spots) for file in files for place, spots in _places(root / file).items()]
    random.Random(seed).shuffle(places)
    for file, (line, column), spots in sorted(places, key=lambda place: place[0] not in changed):
        name, occurrence = random.Random(f"{seed} {file} {line} {column}").choice(spots)
        source = (root / file).read_text(encoding="utf-8")
        mutated = mutate_code(source, get_operator(name)(), occurrence)
        with suppress(SyntaxError):  # of a star that is no product
            if mutated and _without_annotations(mutated) != _without_annotations(source):
                yield Mutant(file, line, name.partition("/")[2], mutated)


def _places(path: Path) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """(line, column) -> the operators that change something there, each with the number of its occurrence."""
    nodes = list(ast_nodes(get_ast(path.read_text(encoding="utf-8"))))
    compared = [node for node in nodes if node.type == "comparison"]
    places, binary = defaultdict(list), {}
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or SAME.search(name):
            continue
        family = name.rpartition("_")[0] if "Binary" in name else name  # all that replace "+" do so in the same places
        if family not in binary:
            some = compared if "Comparison" in name else nodes
            binary[family] = [start for node in some for start, _ in operator().mutation_positions(node)]
        for occurrence, start in enumerate(binary[family]):
            places[start].append((name, occurrence))
    return places


def _without_annotations(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if getattr(node, field, None):
                setattr(node, field, ast.Constant(0))
    return ast.dump(tree)


# Tests.


class Session:
    """The plugin of pytest that does it all in place of running the tests."""

    def __init__(self, root: Path, files: Sequence[str], number: int, seed: int) -> None:
        self.root, self.files, self.number, self.seed = root, files, number, seed
        self.results: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}

    def pytest_runtestloop(self, session: Any) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self.words = {test: _words(item) for test, item in self.items.items()}
        self.texts = {str(item.path): item.path.read_text(encoding="utf-8") for item in session.items}
        runtestprotocol(session.items[0], nextitem=None, log=False)  # what libraries import late
        gc.collect()
        self.functions = [thing for thing in gc.get_objects() if isinstance(thing, types.FunctionType)]
        gc.freeze()
        killers: set[str] = set()
        for mutant, _ in zip(drawn(self.root, self.files, self.seed), range(self.number), strict=False):
            result, killer = self.fate(mutant)
            self.results[result] += 1
            killers |= {*self.known(killer)}
            say(f"{result:15}{mutant.file}:{mutant.line} {mutant.change} {killer}")
            if result in ("survived", "without a test"):
                before = (self.root / mutant.file).read_text(encoding="utf-8").splitlines()
                changes = [*unified_diff(before, mutant.source.splitlines(), n=0)][2:]
                say(
                    "\n".join(
                        f"  {line[0]} {line[1:].strip()}" for line in changes if line[0] in "-+" and line[1:].strip()
                    )
                )
        code, killer = self.child(lambda: None, sorted(killers), 3600)
        say(f"{dict(self.results)}; all tests that noticed pass on what is unchanged: {code == 0} {killer}")
        return True

    def fate(self, mutant: Mutant) -> tuple[str, str]:
        """What became of a mutant, and which test killed it."""
        tests = self.nearest(mutant)
        code, killer = self.child(lambda: self.put_in(mutant), tests, SECONDS)
        unchanged = mutant._replace(source=(self.root / mutant.file).read_text(encoding="utf-8"))
        if code and not _in_function(mutant, self.root):
            code = 2 if self.child(lambda: self.put_in(unchanged), self.known(killer), 60)[0] else code
        if code == 2:
            return "not tried", ""  # its module cannot be run again beside what lives
        if code:
            return ("killed" if code > 0 else "out of time"), killer
        return ("survived" if tests else "without a test"), ""

    def known(self, killer: str) -> list[str]:
        return [killer] if killer in self.items else []

    def nearest(self, mutant: Mutant) -> list[str]:
        names, module = _names(mutant, self.root), mutant.file.removesuffix(".py").replace("/", ".")
        own = re.compile(rf"tests/test_{Path(mutant.file).stem}")
        ranks: dict[str, tuple[Any, ...]] = {}
        for test, words in self.words.items():
            if test.startswith("caa/"):
                if test.startswith(mutant.file):
                    ranks[test] = (0, 0, 0, test)
            elif "subprocess" in words:  # the change does not reach a Python that a test starts
                continue
            elif names & words or own.match(test) or module in self.texts[str(self.items[test].path)]:
                ranks[test] = (1, -min(len(names & words), 2), not own.match(test), self.seconds.get(test, 0.3), test)
        return sorted(ranks, key=ranks.__getitem__)

    def put_in(self, mutant: Mutant) -> None:
        """Give the functions that live in this process their changed code; what runs at import is run again."""
        path = str(self.root / mutant.file)
        code = compile(mutant.source, path, "exec", dont_inherit=True)
        new = {(inner.co_qualname, inner.co_firstlineno): inner for inner in _codes(code)}
        for function in self.functions:
            key = function.__code__.co_qualname, function.__code__.co_firstlineno
            if function.__code__.co_filename == path and key in new:
                if len(function.__code__.co_freevars) != len(new[key].co_freevars):
                    raise NotTriedError(key)
                function.__code__ = new[key]
        if not _in_function(mutant, self.root):
            _run_again(mutant.file.removesuffix(".py").replace("/", "."), code)

    def child(self, change: Any, tests: Sequence[str], seconds: float) -> tuple[int, str]:
        """Whether one of the tests fails after a change, in a process of its own, and which: 0 if none does."""
        reading, writing = os.pipe()
        if not (process := os.fork()):
            os._exit(self.failure(change, tests, seconds, writing))
        os.close(writing)
        with open(reading, "rb") as pipe:
            *took, killer = pipe.read().decode().split("\n")
        self.seconds |= {test: float(seconds) for seconds, test in (line.split(" ", 1) for line in took)}
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), killer

    def failure(self, change: Any, tests: Sequence[str], seconds: float, writing: int) -> int:
        limit = int(3 * seconds) + 20
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        signal.alarm(20 * limit)
        start, test = time.process_time(), "at import"
        try:
            change()
            for test in tests:
                began = time.process_time()
                reports = runtestprotocol(self.items[test], nextitem=None, log=False)
                if any(report.failed for report in reports):
                    break
                os.write(writing, f"{time.process_time() - began:.3f} {test}\n".encode())
                if time.process_time() - start > seconds:
                    return 0
            else:
                return 0
        except NotTriedError:
            return 2
        except BaseException as error:
            say(f"    {error!r}")
        os.write(writing, test.encode())
        return 1


def _words(item: Any) -> set[str]:
    function = getattr(item, "function", None)
    return set(re.findall(r"\w+", inspect.getsource(function) if function else ""))


def _names(mutant: Mutant, root: Path) -> set[str]:
    """The functions and classes around a place, and those of the file that call them, however far."""
    tree = ast.parse((root / mutant.file).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    words = {
        node: {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        | {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    }
    starts = {node: min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) for node in words}
    names = {node.name for node in words if starts[node] <= mutant.line <= (node.end_lineno or 0)}
    names = names or {
        word.id
        for node in tree.body
        if node.lineno <= mutant.line <= (node.end_lineno or 0)
        for word in ast.walk(node)
        if isinstance(word, ast.Name)
    }
    size = 0
    while size < len(names):
        size = len(names)
        names |= {node.name for node, inside in words.items() if inside & names}
    return {name for name in names if not name.startswith("_")} or names


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield inner
            yield from _codes(inner)


def _in_function(mutant: Mutant, root: Path) -> bool:
    tree = ast.parse((root / mutant.file).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return any(node.body[0].lineno <= mutant.line <= (node.end_lineno or 0) for node in functions)


def _run_again(name: str, code: types.CodeType) -> None:
    """Run a module's changed code, and give what came of it to all who imported it by name."""
    module = sys.modules[name]
    before = dict(vars(module))
    exec(code, vars(module))
    for other in list(sys.modules.values()):
        for key, value in list(vars(other).items()) if isinstance(other, types.ModuleType) else ():
            for own, old in before.items():
                if value is old and key == own and vars(module)[own] is not old and not own.startswith("__"):
                    setattr(other, key, vars(module)[own])


def say(text: str) -> None:
    os.write(SAID, (text + "\n").encode())


SAID = os.dup(1)


def copied(root: Path) -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", default=ROOMS, help=f"files or folders to change ({', '.join(ROOMS)})")
    parser.add_argument("--number", type=int, default=150, help="of mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", nargs="*", default=TESTS.split(), help="names of test files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "copy"
        copied(root)
        os.chdir(root)
        os.environ["PYTHONPATH"] = sys.path[0] = str(root)
        rooms = [root / name for name in options.paths]
        paths = [path for room in rooms for path in ([room] if room.is_file() else room.rglob("*.py"))]
        files = sorted(str(path.relative_to(root)) for path in paths)
        with open(Path(folder) / "log", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        session = Session(root, files, options.number, options.seed)
        tests = [f"tests/test_{name}.py" for name in options.tests]
        arguments = ["-q", "-s", "-p", "no:cacheprovider", "--timeout=0", "-m", "not slow", *tests, *files]
        if pytest.main(arguments, plugins=[session]):
            say((Path(folder) / "log").read_text()[-5000:])


if __name__ == "__main__":
    main()
