"""Replies by request, in one jsonl file of the run's folder: what was paid for once is not asked again. Asks nobody."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from caa.files import append_lines, read_lines
from caa.hashing import json_digest
from caa.untrusted import check_fields, parse_json

_REPLY = {"first": dict[str, float] | None, "after_one": dict[str, float] | None, "refused": str}
CACHE = "judge.jsonl"
"""The file's name in a run's folder."""


def request_key(*parts: Any) -> str:
    """32 hex digits of the hash of whatever decides a reply: server, model, prompt, settings.

    >>> request_key({"model": "m", "temperature": 0}) == request_key({"temperature": 0, "model": "m"})
    True
    """
    return json_digest(parts, sort_keys=True, digits=32)


class ReplyCache:
    """A mapping from a request's key to the record of its reply, safe to use from several threads of one process.

    Every record is on the disk before `put` returns. A last line that a killed job left half written is not read,
    and is cut off by the next `put`; a broken line anywhere else is a ValueError.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._records = dict(read_lines(self.path, _reply, "a judge's reply"))

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def get(self, key: str) -> dict[str, Any]:
        """The record of this request; KeyError if it has none."""
        return self._records[key]

    def records(self) -> list[dict[str, Any]]:
        """All of them, in the order in which they came."""
        return list(self._records.values())

    def put(self, key: str, record: dict[str, Any]) -> None:
        line = json.dumps({"key": key, **record})
        with self._lock:
            append_lines(self.path, [line])
            self._records[key] = record


def _reply(line: bytes) -> tuple[str, dict[str, Any]]:
    record = check_fields(parse_json(line, "it"), {"key": str}, "it")
    check_fields(record, {"reply": dict, "vector": str, "retries": int}, "it", required=False)
    if "reply" in record:
        check_fields(record["reply"], {"text": str}, "its reply")
        check_fields(record["reply"], _REPLY, "its reply", required=False)
    return record.pop("key"), record
