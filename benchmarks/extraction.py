"""Reading all layers: `extract` beside the floor, one pass over the unique tokens, and beside the peers' own loops."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Contender, alternate, fastest
from benchmarks.machine import installed
from benchmarks.report import Claim, Report
from benchmarks.subjects import Size, Subject
from caa import SteeringVector, extract
from caa.data.chat import ChatFormat

FLOOR, OURS = "floor: the backbone over the unique tokens", "caa, extract"
VECTORS, REPENG = "steering-vectors, train_steering_vector", "repeng, batched_get_hiddens"


def extraction(subject: Subject, size: Size) -> Report:
    texts = parted(subject)
    unique = unique_tokens(subject)
    batch = fastest(partial(floor, subject, unique), size.batch_sizes)
    note = f"batches of {batch}, tokenized beforehand, no hooks"
    work = [
        Contender(FLOOR, partial(floor, subject, unique, batch), note=note),
        Contender(OURS, lambda: extract(subject.model, subject.tokenizer, subject.pairs), note="as a user calls it"),
    ]
    report = Report("Extraction, all layers", f"{subject.name}, {len(subject.pairs)} pairs")
    for name, package, read in ((VECTORS, "steering-vectors", by_steering_vectors), (REPENG, "repeng", by_repeng)):
        if installed(package) == "not installed":
            report.notes.append(f"{package} is not installed here, so it was left out")
            continue
        batch = fastest(partial(read, subject, texts), size.batch_sizes)
        note = f"batches of {batch}, sorted by length, texts cut at the letter beforehand"
        work.append(Contender(name, partial(read, subject, texts, batch), note=note))
    report.timings, found = alternate(work, size.repeats)
    report.ratio("extract / floor", OURS, FLOOR, 1.05)
    report.ratio("steering-vectors / extract", VECTORS, OURS, 2, at_least=True)
    report.ratio("repeng / extract", REPENG, OURS, 2, at_least=True)
    _compare(report, found, subject)
    return report


def _compare(report: Report, found: dict[str, Any], subject: Subject) -> None:
    """Largest relative difference of any layer's mean difference to the same in float64, ours and the peers'."""
    ours: SteeringVector = found[OURS]
    in_float32 = subject.model.dtype == torch.float32
    exact = extract(copy.deepcopy(subject.model).double(), subject.tokenizer, subject.pairs) if in_float32 else ours
    off = {name: _differences(found[name], exact) for name in (VECTORS, REPENG) if name in found}
    if in_float32:
        text = "extract, difference to float64; 1e-5 or no more than steering-vectors'"
        known = max([1e-5, *off.get(VECTORS, [])])
        report.claims.append(Claim(text, max(_differences(ours.directions, exact)), known))
    else:
        report.notes.append("nothing was compared with float64: the peers' differences are to what extract read")
    report.claims += [Claim(f"{name}, all layers but the last", max(each[:-1]), None) for name, each in off.items()]
    report.claims += [Claim(f"{name}, last layer", each[-1], None) for name, each in off.items()]
    if REPENG in found:
        report.notes.append("repeng reads `hidden_states`, whose last entry is behind the model's final norm")


def _differences(found: Mapping[int, Tensor], exact: SteeringVector) -> list[float]:
    return [_relative(found[layer], exact.at(layer)) for layer in exact.layers]


def _relative(theirs: Tensor, ours: Tensor) -> float:
    return ((theirs.float().cpu() - ours.cpu()).norm() / ours.cpu().norm()).item()


def parted(subject: Subject) -> list[tuple[str, str]]:
    """Both sides of each pair up to the letter, shortest first, as texts that tokenize into just these ids."""
    tokenizer = subject.tokenizer
    sides = []
    for pair in subject.pairs:
        found = ChatFormat(tokenizer).encode_pair(pair)
        ids = [side[: found.parting + 1] for side in (found.positive, found.negative)]
        texts = tuple(tokenizer.decode(each) for each in ids)
        if [tokenizer(text).input_ids for text in texts] != ids:
            raise ValueError(f"the peers' tokenization of {texts[0][-60:]!r} would not be the same as ours")
        sides.append((len(ids[0]), texts))
    return [texts for _, texts in sorted(sides)]


def unique_tokens(subject: Subject) -> list[list[int]]:
    """Each pair's prompt once and both letters, as if they were one text, shortest first."""
    branches = (ChatFormat(subject.tokenizer).encode_pair(pair) for pair in subject.pairs)
    return sorted(([*b.positive[: b.parting + 1], b.negative[b.parting]] for b in branches), key=len)


@torch.no_grad()
def floor(subject: Subject, texts: Sequence[list[int]], batch_size: int) -> None:
    """One plain causal pass of the backbone; padding on the right needs no mask."""
    backbone = subject.model.get_decoder()
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        longest = len(batch[-1])
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in batch], device=subject.device)
        backbone(input_ids=ids, use_cache=False)


def by_steering_vectors(subject: Subject, texts: Sequence[tuple[str, str]], batch_size: int) -> dict[int, Tensor]:
    """layer -> mean difference, by steering-vectors (PyPI)."""
    from steering_vectors import train_steering_vector

    found = train_steering_vector(subject.model, subject.tokenizer, list(texts), batch_size=batch_size)
    return found.layer_activations


def by_repeng(subject: Subject, texts: Sequence[tuple[str, str]], batch_size: int) -> dict[int, Tensor]:
    """layer -> mean difference, from what repeng's (PyPI) own loop reads; its PCA is left out."""
    # repeng 0.4.0 names np.float_, which numpy 2 does not have any more, in type annotations.
    vars(np).setdefault("float_", np.float64)
    from repeng.extract import batched_get_hiddens

    both = [text for pair in texts for text in pair]
    layers = list(range(subject.model.config.num_hidden_layers))
    with redirect_stderr(StringIO()):  # its progress bar
        read = batched_get_hiddens(subject.model, subject.tokenizer, both, layers, 2 * batch_size)
    return {layer: torch.from_numpy((h[::2] - h[1::2]).mean(0)) for layer, h in read.items()}
