"""Written answers: steered `generate` beside unsteered, and a 3 x 3 table beside nine runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, product
from typing import Any

import torch

from benchmarks.harness import Contender, alternate
from benchmarks.ours import texts
from benchmarks.report import Claim, Report
from benchmarks.subjects import Size, Subject
from caa import Intervention, Question, SteeringWrapper
from caa.data.chat import ChatFormat
from caa.steering.intervention import Setting

PLAIN, STEERED = "model.generate", "wrapper.generate, steered"
TABLE, NINE, ONE_BY_ONE = "caa, multipliers as rows", "nine runs, batched", "nine runs, one question at a time"
EAGER, COMPILED = "caa, the model as it is", "caa, torch.compile(model, dynamic=True)"
FINETUNES = (None, "positive", "negative")
TURNS = 3
"""Times as many repeats where five in a hundred are to be told apart."""


def overhead(subject: Subject, size: Size) -> Report:
    """What steering adds to `generate`: the same prompts, as many new tokens."""
    prompts = [ChatFormat(subject.tokenizer).encode(question.text) for question in subject.questions]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts], device=subject.device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=subject.device)
    length = {"max_new_tokens": size.new_tokens, "min_new_tokens": size.new_tokens}
    asked: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "do_sample": False, "pad_token_id": 0, **length}
    middle = subject.vector.layers[len(subject.vector.layers) // 2]

    def steered() -> torch.Tensor:
        wrapper = SteeringWrapper(subject.model)
        with wrapper.steer(Intervention(subject.vector, middle, 1.0)):
            return wrapper.generate(**asked)

    work = [Contender(PLAIN, lambda: subject.model.generate(**asked)), Contender(STEERED, steered)]
    timings, found = alternate(work, TURNS * size.repeats)
    what = f"{len(prompts)} prompts, {size.new_tokens} new tokens each"
    report = Report("Steered generation", f"{subject.name}, {what}", timings)
    report.ratio("steered / unsteered", STEERED, PLAIN, 1.01)
    changed = (found[PLAIN] != found[STEERED]).any(1).float().mean().item()
    report.claims.append(Claim("share of the answers that steering changes", changed))
    return report


def compiled(subject: Subject, size: Size, backend: str = "inductor") -> Report:
    """Open answers under three multipliers, of the model as it is and compiled; compiling is done in the warm-up."""
    middle = subject.vector.layers[len(subject.vector.layers) // 2]
    settings = [(Intervention(subject.vector, middle, m),) for m in (-1.0, 1.0, 2.0)]

    def writer(model: Any) -> Callable[[], list[str]]:
        return lambda: texts(SteeringWrapper(model), subject.tokenizer, subject.questions, settings, size.new_tokens)

    fast = torch.compile(subject.model, dynamic=True, backend=backend)
    work = [Contender(EAGER, writer(subject.model)), Contender(COMPILED, writer(fast))]
    timings, answers = alternate(work, size.repeats)
    what = f"{len(subject.questions)} questions x 3 settings, at most {size.new_tokens} new tokens each"
    report = Report("Open answers of a compiled model", f"{subject.name}, {what}", timings)
    report.ratio("as it is / compiled", EAGER, COMPILED)
    equal = sum(one == other for one, other in zip(*answers.values(), strict=True)) / len(answers[EAGER])
    report.claims.append(Claim("share of equal answers", equal))
    return report


def table(subject: Subject, size: Size) -> Report:
    """Three finetunes x three multipliers, answered openly."""
    middle = subject.vector.layers[len(subject.vector.layers) // 2]
    settings = [(Intervention(subject.vector, middle, m),) for m in (-1.0, 1.0, 2.0)]
    questions, few = subject.questions, subject.questions[: size.reference_questions]
    with finetuned(subject.model) as wrapper:

        def ask(finetune: str | None, some: Sequence[Question], cells: Sequence[Setting]) -> list[str]:
            with wrapper.finetune(finetune):
                return texts(wrapper, subject.tokenizer, some, cells, size.new_tokens)

        def at_once() -> list[str]:
            """Answers by finetune, question, setting."""
            return list(chain(*(ask(name, questions, settings) for name in FINETUNES)))

        def nine_runs() -> list[str]:
            """Answers by finetune, setting, question."""
            return list(chain(*(ask(name, questions, [setting]) for name, setting in product(FINETUNES, settings))))

        def one_by_one() -> None:
            for name, setting, question in product(FINETUNES, settings, few):
                ask(name, [question], [setting])

        note = f"{len(few)} of {len(questions)} questions timed, scaled"
        work = [
            Contender(TABLE, at_once),
            Contender(NINE, nine_runs),
            Contender(ONE_BY_ONE, one_by_one, len(few) / len(questions), note),
        ]
        timings, found = alternate(work, size.repeats)
    what = f"{len(questions)} questions, at most {size.new_tokens} new tokens each"
    report = Report("Open-ended table, 3 finetunes x 3 multipliers", f"{subject.name}, {what}", timings)
    report.ratio("nine runs, batched / at once", NINE, TABLE, 3, at_least=True)
    report.ratio("nine runs, one question at a time / at once", ONE_BY_ONE, TABLE, 3, at_least=True)
    share = same(found[TABLE], found[NINE], len(questions), len(settings))
    report.claims.append(Claim("share of the answers that nine runs give to the letter, too", share))
    return report


def same(table: Sequence[str], nine: Sequence[str], questions: int, settings: int) -> float:
    """The share of equal texts: `table` is ordered by finetune, question, setting, `nine` by the last two exchanged.

    >>> same(["q0s0", "q0s1", "q1s0", "q1s1"], ["q0s0", "q1s0", "q0s1", "q1s1"], questions=2, settings=2)
    1.0
    """
    finetunes = len(nine) // (questions * settings)
    places = [
        (finetune * questions + question) * settings + setting
        for finetune, setting, question in product(range(finetunes), range(settings), range(questions))
    ]
    return sum(table[place] == text for place, text in zip(places, nine, strict=True)) / len(nine)


@contextmanager
def finetuned(model: Any) -> Iterator[SteeringWrapper]:
    """The model wearing two random LoRA adapters, and plain again afterwards."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    wearing = get_peft_model(model, config, adapter_name="positive")
    wearing.add_adapter("negative", config)
    wrapper = SteeringWrapper(wearing.eval())
    try:
        yield wrapper
    finally:
        wrapper.unload_adapters()
