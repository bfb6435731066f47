"""A name or a path in, a Behavior out: built in, public, a folder or file of the user's, a Hugging Face dataset."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from caa.data import records
from caa.data.behaviors import Behavior, ContrastPair, Question, letter_balance, stem
from caa.data.benchmarks import mmlu_questions, truthfulqa_questions
from caa.data.download import CAA_BEHAVIORS, CAA_FACTS, CAA_PARTS, caa_folder
from caa.data.download import download_caa as download_caa
from caa.data.records import letters_outside as letters_outside
from caa.data.records import read_items, read_json
from caa.data.rubrics import CAA_RUBRICS
from caa.suggestions import did_you_mean
from caa.untrusted import check_fields

BUILTIN = (
    "ai_coordination",
    "corrigibility",
    "hallucination",
    "myopic_reward",
    "survival_instinct",
    "sycophancy",
    "refusal",
)
"""The seven behaviors of the embedded world, in the order in which tables show them."""
IN_WORDS = ("ai_identity", "past_tense", "admitting_limits", "enthusiasm", "declining", "joy", "formality", "agreeing")
"""Behaviors in words, without letters, for any chat model: pairs, questions of their own, phrases for a judge."""
FACTS = "facts"
"""The embedded world's two-option knowledge questions."""
PUBLIC = "caa:"
"""What the names of the downloaded public datasets begin with."""

_BUILTIN_FOLDER = Path(__file__).parent / "builtin"
_PARTS: dict[str, Callable[[Any], Any]] = {
    "pairs": records.pair,
    "open_pairs": records.pair,
    "validation_questions": records.question,
    "ab_questions": records.question,
    "open_questions": records.question,
}
_TYPES = {
    "name": str,
    "title": str,
    "description": str,
    "rubric": str,
    "system_prompts": dict[str, str | list[str]],
    "phrases": dict[str, list[str]],
}
_ABOUT = tuple(_TYPES)


def load_behavior(name_or_path: str | Path) -> Behavior:
    """A behavior, from one of four places.

    - one of `BUILTIN` or `IN_WORDS`;
    - "caa:sycophancy": a public dataset, once `download_caa` has fetched it;
    - a folder in the layout of nrimsky/CAA: `datasets/<behavior>`, or that under `generate` or `test`;
    - a .json or .jsonl file: a list of pairs ("question" with "answer_matching_behavior" and
      "answer_not_matching_behavior", with "positive" and "negative" or with "chosen" and "rejected"; texts, or
      messages), or a whole behavior as the built-in files are.

    Pairs and questions answered by letters other than A and B are left out, counted in `Behavior.left_out`, and
    warned about: an A/B score would take each for a 0. ValueError, with what there is, for anything else.
    """
    behavior = _load(str(name_or_path))
    _warn_left_out(
        behavior.name, {part: (n, n + len(getattr(behavior, part))) for part, n in behavior.left_out.items()}
    )
    return behavior


def load_facts(name_or_path: str | Path = FACTS) -> tuple[Question, ...]:
    """Two-option knowledge questions: "facts" (built in), "caa:mmlu", "caa:truthfulqa", or a json or jsonl file.

    A file holds a list of {"prompt", "correct", "incorrect", "category"}, or the records of the datasets "cais/mmlu" or
    "truthfulqa/truthful_qa" (generation), of which `caa.data.benchmarks` makes questions with two options. `matching`
    is the correct answer.
    """
    name = str(name_or_path)
    public = {PUBLIC + fact: caa_folder() / file for fact, file in CAA_FACTS.items()}
    path = {FACTS: _BUILTIN_FOLDER / f"{FACTS}.json", **public}.get(name, Path(name).expanduser())
    if name in public and not path.is_file():
        raise ValueError(f"{name!r} has not been downloaded. {HOW_TO_DOWNLOAD}")
    if not path.is_file():
        known = [FACTS, *public]
        raise ValueError(
            f"there are no facts {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}, "
            "or the path of a json file in their format"
        )
    content = read_json(path)
    if not content:
        raise ValueError(f"{path} is empty, so there are no facts to ask")
    if isinstance(content, list) and content and isinstance(content[0], Mapping):
        for key, make_questions in (("choices", mmlu_questions), ("incorrect_answers", truthfulqa_questions)):
            if key in content[0]:
                return _benchmark(make_questions, content, path)
    kept, left_out = read_items(records.fact, content, str(path))
    _warn_left_out(name, {"facts": (left_out, left_out + len(kept))})
    return kept


def _benchmark(
    make_questions: Callable[..., tuple[Question, ...]], content: list[Any], path: Path
) -> tuple[Question, ...]:
    try:
        return make_questions(content)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} looks like a public benchmark, but one of its records is broken ({error!r})"
        ) from error


def list_behaviors(folder: str | Path) -> list[str]:
    """The behaviors in a `datasets` folder of nrimsky/CAA's layout, each to be loaded as `<folder>/<name>`."""
    files = [path for part in CAA_PARTS.values() for path in Path(folder).glob(part.format("*"))]
    return sorted({path.parent.name for path in files})


def pairs_from_dataset(
    dataset: Any,
    question: str | None = "question",
    positive: str = "answer_matching_behavior",
    negative: str = "answer_not_matching_behavior",
    *,
    split: str = "train",
) -> tuple[ContrastPair, ...]:
    """Contrast pairs out of three columns of a Hugging Face `datasets.Dataset`, or of the Hub's dataset of that name.

    Columns hold texts or messages; `question=None` takes what stands before the answer in `positive`, as preference
    datasets without a prompt have it: `pairs_from_dataset(name, None, "chosen", "rejected")`. ValueError, with the
    columns there are, if one is missing; as in a file, other letters than A and B are left out.
    """
    if isinstance(dataset, str):
        from datasets import load_dataset

        dataset = load_dataset(dataset, split=split)
    _check_columns(dataset, [column for column in (question, positive, negative) if column is not None])

    def pair(row: Mapping[str, Any]) -> ContrastPair:
        row = row if question else {positive: row[positive], negative: row[negative]}
        text = records.question_of(row, positive, question or "")
        return ContrastPair(text, records.answer(row, positive), records.answer(row, negative))

    kept, left_out = read_items(pair, dataset, "the dataset")
    _warn_left_out("the dataset", {"pairs": (left_out, left_out + len(kept))})
    return kept


def describe(behavior: Behavior) -> list[str]:
    """What one would want to know of a behavior before trusting its numbers, line by line.

    A letter that is right more often than the other is part of the vector; a question in the pairs and in the tests,
    be it with other options, is no held-out question.
    """
    tests = [*behavior.validation_questions, *behavior.ab_questions, *behavior.open_questions]
    taught = [*behavior.pairs, *behavior.open_pairs]
    everything: list[ContrastPair | Question] = [*taught, *tests]
    left_out = [f"{count} {part}" for part, count in behavior.left_out.items()]
    facts = {
        "behavior": behavior.name,
        "pairs": len(behavior.pairs),
        "positive letters in pairs": _counts(letter_balance(behavior.pairs)),
        "pairs in words": len(behavior.open_pairs),
        "validation questions": len(behavior.validation_questions),
        "A/B questions": len(behavior.ab_questions),
        "positive letters in A/B questions": _counts(letter_balance(behavior.ab_questions)),
        "open-ended questions": len(behavior.open_questions),
        "left out for other letters": ", ".join(left_out) or 0,
        "asked more than once": sum(_repeated(getattr(behavior, part)) for part in _PARTS),
        "asked in pairs and in tests": len(
            {stem(pair.text) for pair in taught} & {stem(question.text) for question in tests}
        ),
        "words in the longest question": max((len(item.text.split()) for item in everything), default=0),
    }
    return [f"{label + ':':<36}{value}" for label, value in facts.items()]


# From a name to what its file says.


def _load(name: str) -> Behavior:
    path = Path(os.path.abspath(Path(name).expanduser()))
    if name in (*BUILTIN, *IN_WORDS):
        return _from_file(_BUILTIN_FOLDER / f"{name}.json")
    if name.startswith(PUBLIC):
        path = caa_folder() / name.removeprefix(PUBLIC)
    elif path.suffix in (".json", ".jsonl") and path.is_file():
        return _from_file(path)
    files = _caa_files(path)
    if not files:
        raise ValueError(_nothing_there(name, path))
    parts = {part: (read_json(file), str(file)) for part, file in files.items()}
    return _build(path.name, parts, {"rubric": CAA_RUBRICS.get(path.name, "")})


def _caa_files(path: Path) -> dict[str, Path]:
    """Part -> file, for those that exist; `path` may name the behavior under `datasets`, `generate` or `test`."""
    root = path.parent.parent if path.parent.name in ("generate", "test") else path.parent
    files = {part: root / file.format(path.name) for part, file in CAA_PARTS.items()}
    return {part: file for part, file in files.items() if file.is_file()}


def _from_file(path: Path) -> Behavior:
    """A file that holds pairs only, or an object with the parts of a behavior and what is said about them."""
    content = read_json(path)
    if not content:
        raise ValueError(f"{path} is empty: a behavior is a list of pairs, or an object with {', '.join(_PARTS)}")
    about = dict(content) if isinstance(content, dict) else {"pairs": content}
    check_fields(about, _TYPES, str(path), required=False)
    if unknown := [key for key in about if key not in (*_PARTS, *_ABOUT)]:
        hint = did_you_mean(unknown[0], [*_PARTS, *_ABOUT])
        raise ValueError(f"{path}: unknown key {unknown[0]!r}{hint}; known are {', '.join((*_PARTS, *_ABOUT))}")
    parts = {part: (about.pop(part), f"{path}, {part}") for part in _PARTS if part in about}
    return _build(about.get("name", path.stem), parts, about)


def _build(name: str, parts: Mapping[str, tuple[Any, str]], about: Mapping[str, Any]) -> Behavior:
    items: dict[str, tuple[Any, ...]] = {}
    left_out: dict[str, int] = {}
    for part, (entries, where) in parts.items():
        items[part], left_out[part] = read_items(_PARTS[part], entries, where)
    prompts = about.get("system_prompts", {})
    return Behavior(
        name,
        pairs=items.get("pairs", ()),
        open_pairs=items.get("open_pairs", ()),
        ab_questions=items.get("ab_questions", ()),
        open_questions=items.get("open_questions", ()),
        validation_questions=items.get("validation_questions", ()),
        rubric=about.get("rubric", ""),
        description=about.get("description", ""),
        system_prompts={side: (p,) if isinstance(p, str) else tuple(p) for side, p in prompts.items()},
        phrases={side: tuple(phrases) for side, phrases in about.get("phrases", {}).items()},
        title=about.get("title", ""),
        left_out={part: count for part, count in left_out.items() if count},
    )


# What is told to the user.

HOW_TO_DOWNLOAD = "`caa data download` (in Python: `caa.data.sources.download_caa()`) fetches the public datasets."


def _nothing_there(name: str, path: Path) -> str:
    if name.startswith(PUBLIC) and path.name in CAA_BEHAVIORS:
        return f"{name!r} has not been downloaded. {HOW_TO_DOWNLOAD}"
    if path.is_file():
        return f"{path} is no behavior: give a .json or a .jsonl, or a CAA folder (datasets/<behavior>)"
    inside = list_behaviors(path)
    if inside:
        return f"{name!r} holds {len(inside)} behaviors: {', '.join(inside)}. Give one of them, as {path / inside[0]}"
    beside = list_behaviors(path.parent)
    public = [PUBLIC + behavior for behavior in CAA_BEHAVIORS]
    known = f"Built in: {', '.join((*BUILTIN, *IN_WORDS))}. Public, once downloaded: {', '.join(public)}. "
    known += f"In {path.parent}: {', '.join(beside)}. " if beside else ""
    hint = did_you_mean(name, [*BUILTIN, *IN_WORDS, *public]) or did_you_mean(path.name, beside)
    return (
        f"there is no behavior {name!r}{hint}. {known}Or give a CAA folder (datasets/<behavior>), a .json or a .jsonl"
    )


def _warn_left_out(name: str, counts: Mapping[str, tuple[int, int]]) -> None:
    counted = [f"{left_out} of {total} {part}" for part, (left_out, total) in counts.items() if left_out]
    if counted:
        warnings.warn(
            f"{name}: {' and '.join(counted)} are answered by letters other than A and B and are left out, for an A/B "
            "score would count each as 0. To use them, rewrite them with two options, (A) and (B).",
            stacklevel=3,
        )


def _counts(letters: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(letters.items()))


def _repeated(items: Sequence[ContrastPair | Question]) -> int:
    return len(items) - len({item.id for item in items})


def _check_columns(dataset: Any, wanted: Sequence[str]) -> None:
    names = dataset.column_names
    if isinstance(names, Mapping):
        raise ValueError(
            f"this dataset is split into {', '.join(names)}: give one of them, as dataset[{next(iter(names))!r}]"
        )
    missing = [column for column in wanted if names is not None and column not in names]  # None: not known in a stream
    if missing:
        raise ValueError(
            f"the dataset has no column {missing[0]!r}{did_you_mean(missing[0], names)}; it has {', '.join(names)}. "
            "Say which are meant: question=..., positive=..., negative=..."
        )
