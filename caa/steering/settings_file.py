"""A yaml file of named settings in, interventions out: what `caa grid --settings` asks. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from caa.callables import from_record
from caa.steering.gates import Gate
from caa.steering.intervention import Intervention, Setting
from caa.steering.operators import OPERATORS
from caa.steering.scopes import SCOPES
from caa.suggestions import did_you_mean
from caa.vectors.vector import SteeringVector

KEYS = ("layer", "layers", "multiplier", "operator", "where", "source_layer", "vector", "gate", "site")
"""What an intervention of a file may say."""


def load_settings(path: str | Path, vector: SteeringVector) -> dict[str, Setting]:
    """Name -> interventions, each a mapping or a list of mappings with some of `KEYS`.

    `layers` gives the same edit at each of them; `vector` is a file beside this one, and the given vector where it is
    not said; operators and scopes are written by name, or as `{name: clamp, value: 3}`; `gate` is like
    `{layer: 5, above: 0.3}`, with a `vector` of its own where it has one.
    ValueError, with the setting's name, for anything that cannot be read.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as yaml: {error}") from error
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} should hold settings by name, such as `zero-out: {{layer: 13, operator: ablate}}`")
    reader = _Reader(Path(path).parent, vector)
    return {_text(path, name): reader.setting(f"{path}, {name!r}", records) for name, records in content.items()}


def _text(path: str | Path, name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{path}: a setting's name is text, so write {name!r} in quotes")
    return name


@dataclass(frozen=True, eq=False)
class _Reader:
    folder: Path
    vector: SteeringVector

    def setting(self, place: str, records: Any) -> Setting:
        records = [records] if isinstance(records, Mapping) else records
        if not isinstance(records, list) or not all(isinstance(record, Mapping) for record in records):
            raise ValueError(f"{place}: a setting is one intervention or a list of them, such as {{layer: 13}}")
        try:
            return tuple(edit for record in records for edit in self._interventions(record))
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise ValueError(f"{place}: {error.args[0] if isinstance(error, KeyError) else error}") from error

    def _interventions(self, record: Mapping[str, Any]) -> Iterator[Intervention]:
        if unknown := [key for key in record if key not in KEYS]:
            raise ValueError(f"unknown key {unknown[0]!r}{did_you_mean(str(unknown[0]), KEYS)}")
        if ("layer" in record) == ("layers" in record):
            raise ValueError("say where, by layer or by layers")
        vector, gate = self._vector(record), record.get("gate")
        for layer in record.get("layers", [record.get("layer")]):
            intervention = Intervention(
                vector,
                layer,
                record.get("multiplier", 1.0),
                from_record(record.get("operator", "add"), OPERATORS, "operator"),
                from_record(record.get("where", "after_prompt"), SCOPES, "scope"),
                record.get("source_layer"),
                gate and Gate(self._vector(gate), **{key: gate[key] for key in gate if key != "vector"}),
                record.get("site"),
            )
            intervention.direction  # noqa: B018 - KeyError, with the layers there are
            yield intervention

    def _vector(self, record: Mapping[str, Any]) -> SteeringVector:
        return SteeringVector.load(self.folder / record["vector"]) if "vector" in record else self.vector
