"""A run's folder in, one line out: what its judge was asked, what that took, and what has no score and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from caa.judges.clients.cache import CACHE, ReplyCache
from caa.runs.rows import Row, read_rows


def judge_summary(folder: str | Path) -> str:
    """For the end of a run, from its `judge.jsonl` and `rows.jsonl`; "" if there is neither.

    Requests that were sent again are counted as retries, whether they failed or their reply was broken.
    """
    records = ReplyCache(Path(folder) / CACHE).records()
    usage: Counter[str] = Counter()
    for record in records:
        usage.update({name: n for name, n in (record.get("usage") or {}).items() if isinstance(n, int)})
    retries = sum(record["retries"] for record in records)
    tokens = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens (prompts + replies)"
    requests = [f"{len(records)} replies from a server, {retries} retries, {tokens}"] if records else []
    unjudged = unjudged_reasons(read_rows(Path(folder) / "rows.jsonl"))
    reasons = ", ".join(f"{count} {reason}" for reason, count in unjudged.most_common())
    without = [f"{unjudged.total()} answers without a score: {reasons}"] if reasons else []
    return "; ".join([*requests, *without])


def unjudged_reasons(rows: Iterable[Row]) -> Counter[str]:
    """Why open answers have no score -> how many; what a judge said is left out.

    >>> from caa.runs.rows import Cell
    >>> reasons = ["unparsable reply 'Well'", "unparsable reply 'No'", "empty"]
    >>> rows = [Row(Cell("b", "open"), str(i), None, {"reason": reason}) for i, reason in enumerate(reasons)]
    >>> unjudged_reasons(rows)
    Counter({'unparsable reply': 2, 'empty': 1})
    """
    reasons = (row.evidence.get("reason") or "" for row in rows if row.score is None)
    return Counter(reason.split(" '")[0].split(' "')[0] or "no reason given" for reason in reasons)
