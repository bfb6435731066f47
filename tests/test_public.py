"""What a user and a type checker see of `caa`, and that names and modules of version 0.1 still lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import caa
from caa import _moved

ROOT = Path(__file__).parents[1]
PACKAGES = ["caa", "caa.judges", "caa.vectors.formats"]
"""Packages whose names are imported when they are first used."""
MODULES_0_1 = (Path(__file__).parent / "modules-0.1.txt").read_text().split()
NAMES_0_1 = {
    *("Behavior", "ContrastPair", "Question", "CAADataModule", "CAAModule", "EvalGrid", "ExemplarJudge", "Experiment"),
    *("FinetuneConfig", "JudgeConfig", "make_judge", "Provenance", "SteeringVector", "random_like", "import_vector"),
    *("set_mean_normalize", "Intervention", "SteeringCallback", "SteeringWrapper", "record", "spread", "stream_norms"),
    *("extract", "extract_from_texts", "logistic_probe", "mean_difference", "pca", "prompt_difference", "read_pairs"),
    *("read_texts", "Readings", "download_caa", "fitting", "load_behavior", "load_facts", "pairs_from_dataset"),
    "load_model",
}


def stub(package: str) -> dict[str, str]:
    """Name -> the module that type checkers import it from: in the stub, or under `if TYPE_CHECKING`."""
    folder = ROOT / package.replace(".", "/")
    files = [path for path in (folder / "__init__.pyi", folder / "__init__.py") if path.exists()]
    nodes = ast.walk(ast.parse(files[0].read_text(encoding="utf-8")))
    names = [(alias, node.module) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    return {alias.name: module for alias, module in names if alias.asname == alias.name}  # mypy hides others


def in_python(*lines: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *flags, "-c", "\n".join(lines)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# Names and types.


@pytest.mark.parametrize("package", PACKAGES)
def test_the_stub_has_the_lazy_names_at_their_places(package):
    module, places = import_module(package), stub(package)
    assert sorted(places) == module.__all__ == dir(module)
    for name, place in places.items():
        expected = getattr(import_module(place), name, None) or import_module(f"{place}.{name}")
        assert getattr(module, name) is expected, f"{package}.{name}"


def test_the_public_names_are_fifteen_and_five_namespaces():
    spaces = [name for name in caa.__all__ if isinstance(getattr(caa, name), type(caa))]
    assert spaces == ["formats", "judges", "methods", "operators", "scopes"]
    assert len(caa.__all__) - len(spaces) == 15


def test_namespaces_give_what_is_in_them_without_an_import_of_ones_own():
    script = "print(caa.operators.ablate.__name__, caa.scopes.everywhere.__name__, caa.formats.read_gguf.__name__)"
    assert in_python("import caa", script).stdout.split() == ["ablate", "everywhere", "read_gguf"]
    assert in_python("from caa import scopes, judges", "print(scopes, judges.JudgeConfig)").returncode == 0


def test_a_grid_is_there_before_compilers_trainers_and_metrics_are():
    heavy = "{'torch._dynamo', 'torchmetrics', 'lightning', 'trl', 'datasets', 'pandas', 'peft'}"
    assert (
        in_python("import sys, caa", "caa.EvalGrid, caa.finetune", f"print({heavy} & set(sys.modules))").stdout
        == "set()\n"
    )


def test_finetune_is_the_function():
    assert in_python("from caa import finetune", "print(finetune.__name__)").stdout.strip() == "finetune"


def test_a_name_that_is_not_there_says_which_are():
    with pytest.raises(AttributeError, match=r"caa has no 'steer'; it has Behavior, .*write_report"):
        caa.steer  # noqa: B018
    with pytest.raises(AttributeError, match=r"caa\.judges has no 'Judging'; it has .*EmbeddingJudge, "):
        caa.judges.Judging  # noqa: B018


@pytest.mark.slow
def test_a_type_checker_sees_what_a_user_gets_wrong(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import caa\n"
        "from caa import Intervention, SteeringVector, extract, judges, load_behavior, load_model\n"
        "reveal_type(extract)\n"
        "model, tokenizer = load_model('tiny-chat')\n"
        "vector: SteeringVector = extract(model, tokenizer, load_behavior('refusal').pairs)\n"
        "Intervention(vector, 2, 0.3, caa.operators.ablate, caa.scopes.everywhere)\n"
        "judges.JudgeConfig('endpoint', model='m', base_url='http://localhost:1')\n"
        "extract(model, tokenizer, 3)\n"
        "Intervention(vector, '2')\n"
        "caa.finetune(model, tokenizer, 'refusal', 'positive', 'out')\n"
        "caa.formats.read_gguff('x.gguf')\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", program]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    (revealed,) = re.findall(r"program\.py:3: note: Revealed type is \"(.*)\"", output)
    assert re.match(r"def \(.*\) -> caa\.vectors\.vector\.SteeringVector", revealed), revealed
    wrong = {int(line) for line in re.findall(r"program\.py:(\d+): error", output)}
    assert wrong == {8, 9, 10, 11}, output


# Version 0.1.


@pytest.mark.parametrize("name", sorted(NAMES_0_1))
def test_a_name_of_0_1_is_there_and_warns_if_it_moved(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = getattr(caa, name)
    caught = [warning for warning in caught if "old name" in str(warning.message)]  # libraries warn of their own
    if name in caa.__all__:
        assert name not in _moved.NAMES
        assert not caught
        return
    (warning,) = caught
    assert warning.category is FutureWarning
    assert str(warning.message).startswith(f"caa.{name} is now {_moved.NAMES[name]};")
    module, _, new = _moved.NAMES[name].rpartition(".")
    space = module.removeprefix("caa.")
    assert value is getattr(getattr(caa, space) if space in caa.__all__ else import_module(module), new)


@pytest.mark.parametrize("old", MODULES_0_1)
def test_a_module_of_0_1_is_there_and_is_the_new_one(old):
    """The very module, not a second copy of it: its classes are the classes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sys.modules.pop(old, None) if old in _moved.MODULES else None
        module = import_module(old)
    moved = [warning for warning in caught if warning.category is FutureWarning and "old path" in str(warning.message)]
    assert len(moved) == (old in _moved.MODULES)
    if moved:
        new = _moved.MODULES[old]
        assert module is import_module(new)
        assert module.__name__ == module.__spec__.name == new
        assert str(moved[0].message).startswith(f"{old} is now {new};")
    elif old not in _moved.PACKAGES:
        assert Path(module.__file__).is_relative_to(ROOT)


def test_the_table_has_nothing_that_0_1_had_not():
    assert set(_moved.MODULES) | _moved.PACKAGES <= set(MODULES_0_1)
    assert set(_moved.NAMES) | set(caa.__all__) >= NAMES_0_1 >= set(_moved.NAMES)
    assert len(NAMES_0_1) == 37
    assert not {old for old in _moved.MODULES if (ROOT / f"{old.replace('.', '/')}.py").exists()}


@pytest.mark.parametrize("old", _moved.RENAMED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_name_that_changed_in_a_moved_module_is_there_under_the_old_one(old):
    module = import_module(old)
    for name, new in _moved.RENAMED[old].items():
        home, _, attribute = new.rpartition(".")
        assert getattr(module, name) is getattr(import_module(home), attribute)


def test_the_package_that_finetune_was_may_be_called_as_the_function():
    checked = in_python(
        "import warnings, caa.finetune.lora, caa.finetune.config",
        "from caa import finetune",
        "from caa.training import sft",
        "assert caa.finetune.lora is sft and finetune.config.FinetuneConfig",
        "sft.finetune = lambda *args: args",
        "print(finetune(1, 2))",
        flags=("-Wignore::FutureWarning",),
    )
    assert checked.stdout.strip() == "(1, 2)", checked.stderr


def test_a_warning_points_at_the_line_that_uses_the_old_name():
    checked = in_python(
        "from caa import load_facts",
        "from caa.evals.rows import Row",
        "from caa.evals.judging.config import JudgeConfig",
    )
    assert re.findall(r"<string>:(\d): FutureWarning: (\S+) is now (\S+);", checked.stderr) == [
        ("1", "caa.load_facts", "caa.data.sources.load_facts"),
        ("2", "caa.evals.rows", "caa.runs.rows"),
        ("3", "caa.evals.judging.config", "caa.judges.config"),
    ]


def imports(path: Path) -> set[str]:
    """Every module and `module.name` that a file imports or, in its code on pages, says to import."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        lines = re.findall(r"^\s*(?:from caa[\w.]* import (?:\([^)]*\)|.*)|import caa.*)", text, re.MULTILINE)
        text = "\n".join(line.strip().split("#")[0] for line in lines)
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "caa":
            names.add(f"caa.{node.attr}")
    return names


def test_nothing_here_uses_an_old_name():
    old = {*_moved.MODULES, *_moved.PACKAGES, *(f"caa.{name}" for name in _moved.NAMES)} - {"caa.finetune"}
    folders = ("caa", "recipes", "tests", "docs", "benchmarks", "checkpoints")
    files = [path for folder in folders for kind in ("py", "md") for path in (ROOT / folder).rglob(f"*.{kind}")]
    files = [path for path in files if "v01" not in path.parts]  # run with version 0.1, to make its data
    assert len(files) > 200
    used = {str(path.relative_to(ROOT)): imports(path) & old for path in [*files, ROOT / "README.md"]}
    assert not {path: sorted(names) for path, names in used.items() if names}


def test_an_old_name_in_a_file_or_on_a_page_would_be_seen(tmp_path):
    (tmp_path / "a.py").write_text("from caa import (\n    extract, pca\n)\nimport caa\ncaa.spread")
    (tmp_path / "a.md").write_text("text\n```python\nfrom caa.evals.rows import Row\nfrom caa import record # x\n```")
    assert {"caa.pca", "caa.spread"} <= imports(tmp_path / "a.py")
    assert {"caa.evals.rows", "caa.record"} <= imports(tmp_path / "a.md")
