"""Named settings as yaml in, interventions out: what `caa grid --settings` and `caa run` ask. Knows no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from caa.callables import from_record
from caa.steering.gates import Gate
from caa.steering.intervention import Intervention, Setting
from caa.steering.operators import OPERATORS, add
from caa.steering.scopes import SCOPES
from caa.suggestions import did_you_mean
from caa.untrusted import read_yaml
from caa.vectors.vector import SteeringVector

KEYS = ("layer", "layers", "multiplier", "dose", "operator", "where", "source_layer", "vector", "gate", "site")
"""What an intervention of a file may say."""


def load_settings(
    path: str | Path, vector: SteeringVector, norms: Mapping[int, float] | None = None
) -> dict[str, Setting]:
    """What `read_settings` makes of a file; the files of other vectors lie beside it."""
    try:
        content = read_yaml(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as yaml: {error}") from error
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} {_SHAPE}")
    return read_settings(content, vector, str(path), Path(path).parent, norms=norms)


def read_settings(
    content: Any,
    vector: SteeringVector,
    place: str = "settings",
    folder: Path = Path(),
    *,
    layer: int | None = None,
    norms: Mapping[int, float] | None = None,
) -> dict[str, Setting]:
    """Name -> interventions, each a mapping or a list of mappings with some of `KEYS`.

    `layers` gives the same edit at each of them; `vector` is a file in the folder, and the given vector where it is not
    said; operators and scopes are written by name, or as `{name: clamp, value: 3}`; `gate` is like
    `{layer: 5, above: 0.3}`, with a `vector` of its own where it has one; `dose` stands in place of a multiplier.
    ValueError, with the setting's name, for anything that cannot be read.

    Args:
        content: as yaml gives it.
        vector: of the settings that name none.
        place: where they stand, for errors.
        folder: of the files of other vectors.
        layer: of the interventions that say none; None refuses them.
        norms: layer -> the length of the residual stream, of which a dose is a share; None refuses doses.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{place} {_SHAPE}")
    reader = _Reader(folder, vector, layer, norms)
    return {_text(place, name): reader.setting(f"{place}, {name!r}", records) for name, records in content.items()}


_SHAPE = "should hold settings by name, such as `zero-out: {layer: 13, operator: ablate}`"


def says_doses(content: Any) -> bool:
    """Whether an intervention of settings, as yaml gives them, has a dose in place of a multiplier.

    >>> says_doses({"+": {"dose": 0.2}}), says_doses({"+": [{"multiplier": 2}]})
    (True, False)
    """
    settings = content.values() if isinstance(content, Mapping) else ()
    records = [record for setting in settings for record in (setting if isinstance(setting, list) else [setting])]
    return any(isinstance(record, Mapping) and "dose" in record for record in records)


def _text(place: str, name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{place}: a setting's name is text, so write {name!r} in quotes")
    return name


@dataclass(frozen=True, eq=False)
class _Reader:
    folder: Path
    vector: SteeringVector
    layer: int | None
    norms: Mapping[int, float] | None

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
        vector, gate = self._vector(record), record.get("gate")
        for layer in self._layers(record):
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
            yield self._at_dose(intervention, record) if "dose" in record else intervention

    def _layers(self, record: Mapping[str, Any]) -> Iterable[int]:
        if "layer" in record and "layers" in record:
            raise ValueError("say where, by layer or by layers")
        if "layers" in record:
            return list(record["layers"])
        if "layer" not in record and self.layer is None:
            raise ValueError("say where, by layer or by layers")
        return [record.get("layer", self.layer)]

    def _at_dose(self, edit: Intervention, record: Mapping[str, Any]) -> Intervention:
        """The multiplier, to four digits, whose push is this share of the residual stream."""
        if "multiplier" in record or edit.operator is not add or edit.place == "attention heads":
            raise ValueError("a dose is for what is added to the stream, and stands in place of a multiplier")
        if self.norms is None or edit.layer not in self.norms:
            raise ValueError("a dose is a share of the residual stream, whose length is not known here")
        if not (length := float(edit.direction.norm())):
            raise ValueError(f"the vector is zero at layer {edit.layer}, so no multiplier gives a dose")
        return replace(edit, multiplier=float(f"{float(record['dose']) * self.norms[edit.layer] / length:.4g}"))

    def _vector(self, record: Mapping[str, Any]) -> SteeringVector:
        return SteeringVector.load(self.folder / record["vector"]) if "vector" in record else self.vector
