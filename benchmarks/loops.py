"""Every way but ours to score A/B questions under many settings: the same model, questions and numbers, other loops.

Each returns the probabilities of the matching and of the opposite answer's token, float64 [question, setting, 2].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.batches import batches, rendered
from benchmarks.subjects import Subject
from caa import Intervention, Question, SteeringWrapper
from caa.steering.intervention import Setting


def probabilities(logits: Tensor, answers: Tensor) -> Tensor:
    """float64 [row, 2], of the two answers' tokens after the last one of each row."""
    return logits[:, -1].float().log_softmax(-1).gather(1, answers).double().exp().cpu()


@torch.no_grad()
def unsteered(subject: Subject, questions: Sequence[Question], batch_size: int) -> Tensor:
    """One scoring by the plain model: batches sorted by length, logits of the last token alone, no cache."""
    found = torch.zeros(len(questions), 1, 2).double()
    for batch in batches(subject, questions, batch_size):
        output = subject.model(**batch.inputs, logits_to_keep=1, use_cache=False)
        found[batch.rows, 0] = probabilities(output.logits, batch.answers)
    return found


@torch.no_grad()
def cell_by_cell(
    subject: Subject, questions: Sequence[Question], settings: Sequence[Setting], batch_size: int
) -> Tensor:
    """Our own wrapper, one setting after the other, batched: a good implementation of the usual loop."""
    found = torch.zeros(len(questions), len(settings), 2).double()
    wrapper, ready = SteeringWrapper(subject.model), batches(subject, questions, batch_size)
    for cell, setting in enumerate(settings):
        with wrapper.steer(*setting):
            for batch in ready:
                asked = batch.inputs | {"prompt_lengths": batch.prompt_lengths}
                output = wrapper(**asked, logits_to_keep=1, use_cache=False)
                found[batch.rows, cell] = probabilities(output.logits, batch.answers)
    return found


@torch.no_grad()
def by_steering_vectors(
    subject: Subject, questions: Sequence[Question], settings: Sequence[Setting], batch_size: int
) -> Tensor:
    """steering-vectors (PyPI), one setting after the other, batched as above.

    Left-padded rows whose answers begin with equally many tokens are steered by one slice, applied once per setting.
    """
    from steering_vectors import SteeringVector

    (tail,) = {len(each.ids) - each.prompt_length for each in rendered(subject.tokenizer, questions)}
    where: dict[str, Any] = {"min_token_index": None, "token_indices": slice(-tail - 1, None)}
    found = torch.zeros(len(questions), len(settings), 2).double()
    ready = batches(subject, questions, batch_size)
    for cell, (edit,) in enumerate(settings):
        vector = SteeringVector({edit.layer: edit.direction.to(subject.device, subject.model.dtype)})
        with vector.apply(subject.model, multiplier=edit.strengths.item(), **where):
            for batch in ready:
                output = subject.model(**batch.inputs, logits_to_keep=1, use_cache=False)
                found[batch.rows, cell] = probabilities(output.logits, batch.answers)
    return found


@torch.no_grad()
def by_steering_vectors_with_cache(
    subject: Subject, questions: Sequence[Question], settings: Sequence[Setting], batch_size: int
) -> Tensor:
    """steering-vectors with a dozen lines more of a user's own: what no setting steers is read once for each batch.

    The rest, from the prompt's last token on, is read behind that cache under each setting and taken off again. All of
    its tokens are steered, so its hook needs no slice.
    """
    from steering_vectors import SteeringVector

    (tail,) = {len(each.ids) - each.prompt_length for each in rendered(subject.tokenizer, questions)}
    found = torch.zeros(len(questions), len(settings), 2).double()
    vectors = {
        edit.layer: SteeringVector({edit.layer: edit.direction.to(subject.device, subject.model.dtype)})
        for (edit,) in settings
    }
    for batch in batches(subject, questions, batch_size):
        stem = {name: tensor[:, : -tail - 1] for name, tensor in batch.inputs.items()}
        rest = {name: tensor[:, -tail - 1 :] for name, tensor in batch.inputs.items()}
        rest["attention_mask"] = batch.inputs["attention_mask"]
        cache = subject.model(**stem, logits_to_keep=1, use_cache=True).past_key_values
        for cell, (edit,) in enumerate(settings):
            with vectors[edit.layer].apply(subject.model, multiplier=edit.strengths.item()):
                output = subject.model(**rest, past_key_values=cache, logits_to_keep=1, use_cache=True)
            found[batch.rows, cell] = probabilities(output.logits, batch.answers)
            cache.crop(-tail - 1)
    return found


@torch.no_grad()
def reference(subject: Subject, questions: Sequence[Question], settings: Sequence[Setting]) -> Tensor:
    """What nrimsky/CAA does, and the slow definition: cell by cell, one question at a time, tokenized each time.

    No padding, all logits, the vector added where `position_ids` is at least the prompt's last. Ours is not involved.
    """
    found = torch.zeros(len(questions), len(settings), 2).double()
    for cell, (edit,) in enumerate(settings):
        for row, question in enumerate(questions):
            (asked,) = rendered(subject.tokenizer, [question])
            with _added(subject.model, edit, asked.prompt_length - 1):
                output = subject.model(torch.tensor([asked.ids], device=subject.device))
            found[row, cell] = probabilities(output.logits, torch.tensor([asked.answers], device=subject.device))
    return found


@contextmanager
def _added(model: Any, edit: Intervention, start: int) -> Iterator[None]:
    push = (edit.strengths.item() * edit.direction).to(model.device, model.dtype)

    def hook(block: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        return output + push * (kwargs["position_ids"] >= start)[..., None]

    handle = model.get_decoder().layers[edit.layer].register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
