"""`--from search.json`: what a search has chosen in, the words that say it to another command out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from caa.cli.parsing import UsageError
from caa.studies.findings import Search

FROM = "a file of caa search: behavior, vector, layer, strength and model are what it chose; options override it"
TAKE_FROM = ("run", "grid", "generate", "play", "robustness", "redteam")
"""The commands that take it."""
_UNITS = {"--multiplier": "--dose", "--multipliers": "--doses"}
"""An option and the one that says the same in another unit."""


def with_search(name: str, words: Sequence[str]) -> list[str]:
    """The words of a command, `--from FILE` replaced by what the search in that file has chosen.

    ValueError for a search that found nothing that works, and for a choice that the command cannot carry out.
    """
    place = next((n for n, word in enumerate(words) if word.partition("=")[0] == "--from"), None)
    if place is None or name not in TAKE_FROM:
        return list(words)
    _, equals, file = words[place].partition("=")
    rest = [*words[:place], *words[place + (1 if equals else 2) :]]
    if not equals:
        if len(words) == place + 1:
            raise UsageError("--from needs a value, such as runs/search/search.json")
        file = words[place + 1]
    path = Path(file) / "search.json" if Path(file).is_dir() else Path(file)
    search = Search.load(path)
    if not search.works or search.chosen is None:
        raise ValueError(f"{path}: {search.verdict}. Say yourself how to steer, if you want to go on.")
    _refuse_what_it_cannot_do(name, search)
    positionals, options = _words(name, search, search.vector_file(path))
    given = {word.partition("=")[0].replace("-", "_").replace("__", "--", 1) for word in rest if word[:2] == "--"}
    kept = {key: text for key, text in options.items() if not given & {key, _UNITS.get(key, key)}}
    return [*positionals, *(f"{key}={text}" for key, text in kept.items()), *rest]


def _refuse_what_it_cannot_do(name: str, search: Search) -> None:
    unusual = (search.operator, search.where) != ("add", "after_prompt")
    if name != "generate" and unusual:
        raise ValueError(
            f"this search is of the operator {search.operator} on the tokens {search.where}, which `caa {name}` does "
            "not offer; `caa generate --from` does"
        )
    if name == "run" and search.adapter:
        raise ValueError(f"this search was made in the finetune {search.adapter}, and `caa run` makes its own")


def _words(name: str, search: Search, vector: Path) -> tuple[list[str], dict[str, str]]:
    """Positional words and options: the command's own names for what was chosen."""
    if search.chosen is None or search.multiplier is None:
        raise ValueError("this search has chosen nothing")
    behavior, layer = search.loaded_as or search.behavior, str(search.chosen.layer)
    both = ",".join(repr(number) for number in (-search.multiplier, 0.0, search.multiplier))
    worn = {f"--adapters.{Path(search.adapter).name}": search.adapter} if search.adapter else {}
    model = {"--model": search.model}
    if name == "run":
        amount = {"--layer": layer, "--multipliers": both, "--token": _token(vector)}
        return [], {"--behaviors": behavior, **amount, **model}
    if name == "grid":
        return [behavior, str(vector), layer], {"--multipliers": both, **model, **worn}
    if name == "robustness":
        return [behavior, str(vector), layer], {"--multiplier": repr(search.multiplier), **model, **worn}
    if name == "redteam":
        return [behavior, str(vector), layer], {"--most": repr(math.copysign(1, search.chosen.dose)), **model, **worn}
    if name == "play":
        return [], {"--vectors": str(vector), "--layer": layer, "--dose": repr(search.chosen.dose), **model, **worn}
    adapter = {"--adapter": search.adapter} if search.adapter else {}
    ways = {"--operator": search.operator, "--where": search.where}
    amount = {"--vector": str(vector), "--layer": layer, "--multiplier": repr(search.multiplier)}
    return [], {**amount, **ways, **model, **adapter}


def _token(vector: Path) -> str:
    """Where `caa run`, which reads its vectors itself, reads the same one; ValueError if it cannot."""
    from caa import SteeringVector
    from caa.vectors.letters import letter_counts

    source = SteeringVector.load(vector).source
    even = len(set(letter_counts(source.checks).values())) <= 1
    if source.method != ("mean difference" if even else "balanced mean") or source.history or source.adapter:
        read = ", ".join([source.method or "an unknown method", *source.history])
        raise ValueError(
            f"`caa run` reads vectors by balanced_mean; this one is by {read}. `caa grid --from` takes any"
        )
    return source.token
