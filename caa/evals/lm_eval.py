"""Tasks of lm-evaluation-harness in, rows out: any of its benchmarks on the live steered, finetuned model, loaded once.

Needs the extra: pip install 'caa[lm-eval]'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

import torch
from torch import Tensor

from caa.data.behaviors import question_id
from caa.data.chat import ChatFormat, check_length
from caa.models.batching import by_length, pad
from caa.models.blocks import evaluating
from caa.models.tensors import check_logits
from caa.runs.rows import Cell, Row
from caa.steering.intervention import Intervention
from caa.steering.wrapper import SteeringWrapper

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM


def harness_rows(
    wrapper: SteeringWrapper,
    chat_format: ChatFormat | Any,
    settings: Mapping[Cell, tuple[Intervention, ...]],
    tasks: Sequence[str],
    *,
    metric: str = "acc",
    task_folder: str | Path | None = None,
    chat: bool = False,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
) -> list[Row]:
    """Run tasks of the harness under every setting: one row for each of their questions, `cell.task` being the task.

    Steering begins at the last token of a question's context, as everywhere in this library. The harness's own seeds
    hold, so every setting is asked the same. Of a task with several filters (gsm8k's "strict-match" and
    "flexible-extract") the first one counts.

    Args:
        wrapper: unsteered, with the adapters that the cells' finetunes name.
        chat_format: the model's tokenizer, or a `ChatFormat` with what its chat template is told; the harness has the
            system prompts, so one of the format's is a ValueError.
        settings: cell -> what is done to the model for it; () is the unsteered model. A cell's finetune is put on.
        tasks: names, as `lm-eval ls tasks` lists them.
        metric: the number that a row's score is; a task that has none of this name for each question is a ValueError.
        task_folder: where tasks of your own are described (yaml).
        chat: whether the model's chat template is put around the questions.
        shots: solved examples in front of each question; None for the task's own number.
        limit: ask only the first questions of each task; None for all.
        batch_size: rows in a forward pass.
    """
    if wrapper.interventions:
        raise ValueError("the wrapper is being steered already, so nothing would be unsteered: call unsteer() first")
    lm, evaluate, manager = _harness(wrapper, chat_format, batch_size, tasks, task_folder)
    rows: list[Row] = []
    for cell, setting in settings.items():
        with wrapper.finetune(cell.finetune), wrapper.steer(*setting), evaluating(wrapper):
            results = evaluate(
                lm,
                tasks=list(tasks),
                task_manager=manager,
                num_fewshot=shots,
                limit=limit,
                apply_chat_template=chat,
                bootstrap_iters=0,
            )
        for task, samples in results["samples"].items():
            rows += [_row(cell, task, sample, metric) for sample in _of_first_filter(samples)]
    return rows


def _of_first_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One sample for each question: the harness has one for each of a task's filters, ways to read the same answer."""
    return [sample for sample in samples if sample.get("filter") == samples[0].get("filter")]


def _row(cell: Cell, task: str, sample: Mapping[str, Any], metric: str) -> Row:
    if metric not in sample:
        known = ", ".join(sample["metrics"])
        raise ValueError(f"the task {task!r} has no metric {metric!r}; it has {known}")
    name = question_id(task, str(sample["doc_id"]), sample["doc_hash"])
    if not isinstance(sample[metric], SupportsFloat):
        raise ValueError(f"{metric!r} of the task {task!r} is no number for each question; choose another metric")
    score = float(sample[metric])
    return Row(replace(cell, task=task), name, score if isfinite(score) else None, {"metric": metric})


def _harness(
    wrapper: SteeringWrapper,
    chat_format: Any,
    batch_size: int,
    tasks: Sequence[str],
    task_folder: str | Path | None,
) -> tuple[Any, Any, Any]:
    try:
        from lm_eval import simple_evaluate
    except ImportError as error:
        raise ImportError("this needs lm-evaluation-harness: pip install 'caa[lm-eval]'") from error
    return steered_lm(wrapper, chat_format, batch_size), simple_evaluate, _task_manager(tasks, task_folder)


def _task_manager(tasks: Sequence[str], folder: str | Path | None) -> Any:
    """Of the folder alone if all that are wanted are there: listing the harness's own takes ten seconds and more."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if set(tasks) <= set(own.all_subtasks):
            return own
    return TaskManager(include_path=None if folder is None else str(folder))


def steered_lm(wrapper: SteeringWrapper, chat_format: ChatFormat | Any, batch_size: int = 16) -> HFLM:
    """The wrapper as a model of the harness, for `lm_eval.simple_evaluate(model=...)`, as steered as it is then.

    What the harness generates goes through its own code, on the hooked model. What it scores goes through the wrapper,
    which is told where each context ends: the harness's own code does not say, and steering could not begin there.
    """
    from lm_eval.models.huggingface import HFLM

    chat = ChatFormat.of(chat_format)
    if chat.system or chat.template:
        raise ValueError("the harness puts its tasks' own system prompts; give the tokenizer, or its arguments alone")
    tokenizer, told = chat.tokenizer, {"chat_template_args": dict(chat.arguments)} if chat.arguments else {}

    class SteeredLM(HFLM):
        @property
        def model(self) -> Any:
            """The wrapper's, now: while a full checkpoint is asked, it runs in the base's place."""
            return wrapper.model

        def _loglikelihood_tokens(
            self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            pairs = [(context, continuation) for _, context, continuation in requests]
            return continuation_scores(wrapper, tokenizer, pairs, self.max_length, batch_size)

    return SteeredLM(pretrained=wrapper.model, tokenizer=tokenizer, batch_size=batch_size, **told)


@torch.no_grad()
def continuation_scores(
    wrapper: SteeringWrapper,
    tokenizer: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    limit: int,
    batch_size: int = 16,
) -> list[tuple[float, bool]]:
    """For ids of contexts and continuations: the continuation's log-probability, and whether greedy would write it.

    Contexts too long for the model lose their beginning, as the harness has it: `limit` + 1 ids are kept, of which the
    last is only predicted. Log-probabilities are sums in nats from a float32 softmax. ValueError for a continuation
    that is too long by itself.
    """
    for _, continuation in pairs:
        check_length(continuation, limit, "a continuation")
    kept = [[*context, *continuation][-(limit + 1) :] for context, continuation in pairs]
    score_of: dict[int, tuple[float, bool]] = {}
    for rows in by_length(kept, batch_size):
        answers = [len(pairs[row][1]) for row in rows]
        score_of.update(zip(rows, _batch_scores(wrapper, tokenizer, [kept[row] for row in rows], answers), strict=True))
    return [score_of[row] for row in range(len(pairs))]


def _batch_scores(
    wrapper: SteeringWrapper, tokenizer: Any, sequences: Sequence[Sequence[int]], answers: Sequence[int]
) -> list[tuple[float, bool]]:
    device = wrapper.model.get_input_embeddings().weight.device
    ids, mask = (tensor.to(device) for tensor in pad([ids[:-1] for ids in sequences], tokenizer.pad_token_id or 0))
    prompts = torch.tensor([len(s) - n for s, n in zip(sequences, answers, strict=True)], device=device)
    logs = wrapper(ids, mask, prompt_lengths=prompts, use_cache=False).logits.float().log_softmax(-1)
    for i, s in enumerate(sequences):
        check_logits(logs[i, : len(s) - 1], "in a scored text")
    return [_score(logs[i, : len(s) - 1][-n:], s[-n:]) for i, (s, n) in enumerate(zip(sequences, answers, strict=True))]


def _score(logs: Tensor, answer: Sequence[int]) -> tuple[float, bool]:
    """Of log-probabilities [token, vocabulary] and the tokens that came: their sum; whether each was the likeliest."""
    came = torch.tensor(answer, device=logs.device)
    total = logs.gather(1, came[:, None]).sum().item()
    return total, bool((logs.argmax(-1) == came).all())
