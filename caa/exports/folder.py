"""The folder of an export: it appears when it is whole, and says what it is, where it came from and how exact it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from caa.callables import name_of
from caa.exports.parity import Parity
from caa.files import only_maker, replacing_folder
from caa.hub import CARD
from caa.models.adapter_state import active_adapters
from caa.models.adapters import adapter_record
from caa.models.fingerprint import describe
from caa.models.restore import same_randomness
from caa.steering.checkpoint.manifest import seal
from caa.steering.intervention import Intervention

FORMAT = "caa.export.v1"
RECORD = "export.json"


@contextmanager
def new_export(out: str | Path) -> Iterator[Path]:
    """Yields a scratch folder that becomes `out` at the end, or vanishes; FileExistsError if something is there,
    BlockingIOError if another process is writing it."""
    out = Path(out)
    with only_maker(out):
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise FileExistsError(f"{out} is there already; choose another name or remove it first")
        with replacing_folder(out) as scratch, same_randomness():  # what is loaded back draws its first numbers
            yield scratch


def describe_export(
    folder: Path, target: str, model: Any, interventions: Sequence[Intervention], parity: Parity | None, use: str
) -> None:
    """Write the record, with a hash of every file, and the model card with the way to use it.

    Without `parity` the export is a vector that another tool adds: it was read back, and no logits were compared.
    """
    record = {
        "format": FORMAT,
        "target": target,
        "base": describe(model),
        "finetunes": {name: adapter_record(model, name) for name in active_adapters(model)},
        "interventions": [_origin(intervention) for intervention in interventions],
        "parity": parity and asdict(parity),
        "versions": {name: version(name) for name in ("caa", "torch", "transformers", "peft")},
    }
    (folder / CARD).write_text(_card(record, interventions, parity, use), encoding="utf-8")
    seal(folder, record, RECORD)


def _origin(intervention: Intervention) -> dict[str, Any]:
    return {
        "layer": intervention.layer,
        "multiplier": intervention.strengths.item(),
        "where": name_of(intervention.where),
        "norm": intervention.direction.norm().item(),
        "vector": asdict(intervention.vector.source),
    }


_COMPARED = "it was loaded back and compared with the\nsteering hook, logit by logit: they differ by {}."
_READ_BACK = "its vector was read back: it is, to the\nbit, what the steering hook adds. The other tool was not run."


def _card(record: dict[str, Any], interventions: Sequence[Intervention], parity: Parity | None, use: str) -> str:
    library = {"merged": "transformers", "peft-alora": "peft"}.get(record["target"], record["target"])
    worn = ", ".join(record["finetunes"]) or "none"
    checked = _COMPARED.format(parity) if parity else _READ_BACK
    done = "\n".join([f"base:     {record['base']['name']}", f"finetune: {worn}", *map(str, interventions)])
    return f"""---
library_name: {library}
pipeline_tag: text-generation
tags: {json.dumps(["caa", "activation-steering"])}
---

# A steered model, exported to {record["target"]}

{_indented(done)}

Layer L is the output of block L, counted from 0. Before it was written {checked}

{use.strip()}

`export.json` says where everything came from and holds the hash of every file.
"""


def _indented(text: str) -> str:
    """As a block of code, in which nothing is markup."""
    return "\n".join(f"    {line}" for line in text.splitlines())
