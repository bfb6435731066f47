"""The model card of a steered adapter: its manifest and vectors go in, Markdown for the Hub comes out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from caa.vectors.vector import SteeringVector

_USE = """```python
from caa import SteeringWrapper

wrapper = SteeringWrapper.from_pretrained({where})  # the base, wearing the finetune, steered
```"""
_PLAIN = (
    """The finetune alone is a plain PEFT adapter: `PeftModel.from_pretrained(base, {where})` loads it unsteered."""
)
_HUB_NAME = r"[\w.-]+/[\w.-]+"


def steered_card(
    manifest: dict[str, Any], vectors: Sequence[SteeringVector], results: str = "", where: str = ""
) -> str:
    """Markdown with the front matter that the Hub reads. Names are data and are shown as code.

    `results` is Markdown with what was measured, `where` the folder or Hub id to load from.
    """
    place = json.dumps(where or "this folder")
    parts = [
        _front_matter(manifest),
        f"# {_code(manifest['base']['name'])}, steered",
        "Made with `caa`: Contrastive Activation Addition ([Rimsky et al. 2024](https://arxiv.org/abs/2312.06681)). "
        "A vector is added to what a block writes while the model answers.",
        _interventions(manifest["interventions"], vectors),
        _finetunes(manifest["adapters"], manifest["active"]),
        "## Use",
        _USE.format(where=place) + ("\n\n" + _PLAIN.format(where=place) if manifest["adapters"] else ""),
        "## What was measured",
        results.strip() or "Nothing was measured when this card was written.",
        f"The base has the fingerprint `{manifest['base']['fingerprint']}`. The hashes of all files are in "
        "`steering.json`, and a folder that does not agree with them is refused.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(manifest: dict[str, Any]) -> str:
    name = manifest["base"]["name"]
    fields: dict[str, Any] = {"library_name": "peft" if manifest["adapters"] else "caa"}
    if re.fullmatch(_HUB_NAME, name):
        fields["base_model"] = name
    fields |= {"pipeline_tag": "text-generation", "tags": ["caa", "activation-steering"]}
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---"])


def _interventions(records: Sequence[dict[str, Any]], vectors: Sequence[SteeringVector]) -> str:
    lines = [_intervention(record, vector) for record, vector in zip(records, vectors, strict=True)]
    if not lines:
        return "It is not steered."
    header = ["behavior", "layer", "multiplier", "norm", "operator", "tokens", "method", "pairs", "data"]
    note = "Layer L is the output of block L, counted from 0. The norm is the vector's, before the multiplier."
    return f"{_table(header, lines)}\n\n{note}"


def _intervention(record: dict[str, Any], vector: SteeringVector) -> list[str]:
    source, layer = vector.source, record["layer"]
    taken = layer if record["source_layer"] is None else record["source_layer"]
    strengths = ", ".join(f"{multiplier:+g}" for multiplier in record["multiplier"])
    gate = record.get("gate")
    names = [_code(record["operator"]), _code(record["where"]) + (f" if {_code(gate)}" if gate else "")]
    made = [_code(source.method), str(source.n_pairs), _code(source.data_hash)]
    layer_and_site = f"{layer}, {record['site']}" if "site" in record else str(layer)
    return [_code(source.behavior), layer_and_site, strengths, f"{vector.norms()[taken]:.3g}", *names, *made]


def _finetunes(adapters: Sequence[dict[str, Any]], active: Sequence[str]) -> str:
    lines = [
        [
            _code(adapter["name"]) + (" (worn)" if adapter["name"] in active else ""),
            _code(adapter["folder"]),
            *(_code(adapter["record"].get(key)) for key in ("behavior", "direction", "n_examples", "data_hash")),
        ]
        for adapter in adapters
    ]
    header = ["finetune", "folder", "behavior", "direction", "examples", "data"]
    return _table(header, lines) if lines else ""


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])


def _code(value: Any) -> str:
    """Shown as it is, whatever it holds; "-" for what is not known.

    >>> _code("a|b `c` <d>"), _code(None)
    ("`a/b 'c' <d>`", '-')
    """
    text = " ".join(str("" if value is None else value).split()).replace("`", "'").replace("|", "/")
    return f"`{text}`" if text else "-"
