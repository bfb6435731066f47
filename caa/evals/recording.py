"""A plan and the model that it is carried out on in, what run.json says of them out. Asks no question of the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from caa.callables import lasting_name
from caa.data.behaviors import Question
from caa.data.chat import ChatFormat
from caa.evals.plan import GridPlan
from caa.extraction.norms import dose, stream_norms
from caa.hashing import lines_digest
from caa.judges.base import Judge
from caa.models.fingerprint import fingerprint
from caa.models.names import model_name
from caa.runs.manifest import questions_hash, versions
from caa.steering.intervention import Intervention
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector, vector_hash


def settings_of(plan: GridPlan, judge: Judge | None, wrapper: SteeringWrapper, tokenizer: Any) -> dict[str, Any]:
    """All that a row depends on and does not say itself; rows that differ in it cannot stand in one table."""
    model = wrapper.model
    return {
        "model": {"fingerprint": fingerprint(model), "dtype": str(model.dtype).removeprefix("torch.")},
        "system": plan.system,
        "template": plan.template or tokenizer.chat_template,
        "template_arguments": dict(plan.template_arguments),
        "behaviors": {
            plan.behavior.name: {
                "vector": vector_hash(plan.vector),
                "reread": _hashes(plan.reread),
                "also": _hashes(plan.also),
                "settings": {name: [_edit_settings(edit) for edit in edits] for name, edits in plan.settings.items()},
                "finetunes": {name: wrapper.finetune_hash(name) for name in plan.finetunes if name is not None},
                "prompts": {prompt: plan.system_of(prompt) for prompt in plan.system_prompts if prompt},
                "site": plan.vector.source.site,
                "operator": lasting_name(plan.operator),
                "where": lasting_name(plan.where),
                **{task: _task_settings(plan, judge, tokenizer, task) for task in plan.tasks},
            },
        },
    }


def _edit_settings(edit: Intervention) -> dict[str, Any]:
    """One intervention of a named setting, as far as rows depend on it."""
    gate = edit.gate and {"vector": vector_hash(edit.gate.vector), **edit.gate.bounds}
    return {
        "vector": vector_hash(edit.vector) if isinstance(edit.vector, SteeringVector) else "",
        "layer": edit.layer,
        "source_layer": edit.source_layer,
        "multiplier": edit.strengths.tolist(),
        "operator": lasting_name(edit.operator),
        "where": lasting_name(edit.where),
        "gate": gate,
        "site": edit.place,
    }


def notes_of(plan: GridPlan, wrapper: SteeringWrapper, tokenizer: Any, batch_size: int) -> dict[str, Any]:
    """What reports say of a run, and rows may differ in."""
    name = plan.behavior.name
    return {
        "model": model_name(wrapper.model),
        "versions": versions(),
        "batch_size": batch_size,
        "vectors": {name: asdict(plan.vector.source)},
        "doses": {name: _doses(plan, wrapper, tokenizer, batch_size)},
        "finetunes": {name: {finetune: _made(wrapper, finetune) for finetune in plan.finetunes if finetune}},
    }


def _made(wrapper: SteeringWrapper, finetune: str) -> str:
    """In words how a finetune was made, of each one that the name names."""
    return " and ".join(map(training_in_words, wrapper.finetune_records(finetune)))


def training_in_words(record: Mapping[str, Any]) -> str:
    """What `finetune` wrote beside its weights, in a few words.

    >>> config = {"method": "dpo", "weights": "full"}
    >>> training_in_words({"direction": "positive", "config": config, "steered_by": [{"multiplier": [0.3]}]})
    'positive by DPO (all weights), trained while steered x +0.3'
    >>> training_in_words({"direction": "negative", "config": {"rank": 8}}), training_in_words({})
    ('negative by SFT (LoRA)', 'made elsewhere')
    """
    if not record:
        return "made elsewhere"
    config = {"method": "sft", "weights": "lora"} | record.get("config", {})
    weights = {"lora": "LoRA", "dora": "DoRA", "full": "all weights"}.get(config["weights"], str(config["weights"]))
    taught = record.get("direction") or record.get("behavior")
    pushes = [f"{amount:+.3g}" for push in record.get("steered_by", ()) for amount in push["multiplier"]]
    steered = f", trained while steered x {' and '.join(pushes)}" if pushes else ""
    return f"{taught} by {str(config['method']).upper()} ({weights}){steered}"


def _task_settings(plan: GridPlan, judge: Judge | None, tokenizer: Any, task: str) -> dict[str, Any]:
    shown = {prompt: shown_hash(plan.chat(tokenizer, prompt), plan.questions(task)) for prompt in plan.system_prompts}
    questions: dict[str, Any] = {"questions": questions_hash(plan.questions(task)), "shown": shown}
    if task != "open":
        return questions
    return {**questions, "max_new_tokens": plan.max_new_tokens, "judge": _judge_settings(judge)}


def shown_hash(chat: ChatFormat, questions: Sequence[Question]) -> str:
    """16 hex digits of what a model is shown of questions, as token ids, in any order.

    It differs where the template writes another date, and by tokenizer, template and template arguments.
    """
    shown = [[chat.encode(question.text, answer) for answer in (None, *question.answers)] for question in questions]
    return lines_digest(sorted(shown))


def _hashes(vectors: Mapping[str, SteeringVector]) -> dict[str, str]:
    return {name: vector_hash(vector) for name, vector in vectors.items()}


def _judge_settings(judge: Any) -> dict[str, Any]:
    """A judge's name, its accuracy where it knows it, and how it asks; no key is among its settings."""
    name = getattr(judge, "__name__", type(judge).__name__)
    return {"name": name, "accuracy": getattr(judge, "accuracy", None), **getattr(judge, "settings", {})}


def _doses(plan: GridPlan, wrapper: SteeringWrapper, tokenizer: Any, batch_size: int) -> dict[int, float]:
    """layer -> relative dose of multiplier 1, beside the residual stream of the model without a finetune."""
    if not plan.layers:
        return {}
    chat = plan.chat(tokenizer, "")
    prompts = [chat.encode(question.text) for question in plan.questions(plan.tasks[0])]
    with wrapper.finetune(None):
        norms = stream_norms(wrapper.model, tokenizer, prompts, plan.layers, batch_size=batch_size)
    return {layer: dose(plan.vector, layer, 1.0, norms) for layer in plan.layers}
