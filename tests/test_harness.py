"""lm-evaluation-harness on the steered model: the plain model's numbers at multiplier 0, a hand-made hook's at 1."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import tiny_lora, tiny_model, tiny_tokenizer

from caa import Intervention, SteeringVector, SteeringWrapper
from caa.data.chat import ChatFormat
from caa.evals.lm_eval import _of_first_filter, _row, _task_manager, continuation_scores, harness_rows, steered_lm
from caa.reports.tables import finetune_tables
from caa.runs.rows import Cell
from caa.vectors.vector import Provenance

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
pytestmark = pytest.mark.slow

WORDS = ["cat", "dog", "cow", "hen", "owl", "bat", "ant", "bee"]
# Choices of one length, so that the model's likings and not their lengths decide.
DOCS = [
    {"question": f"{n}. {WORDS[n % 8]}?", "choices": [WORDS[(n + k) % 8] for k in (1, 2, 4)], "answer": n % 3}
    for n in range(24)
]
YAML = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
STEER = SteeringVector({2: torch.randn(32, generator=torch.Generator().manual_seed(1))}, Provenance())


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join(map(json.dumps, DOCS)), encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny_choice.yaml").write_text(YAML.format(path=path), encoding="utf-8")
    return tmp_path / "tasks"


@torch.no_grad()
def slow_score(model, tokenizer, context: str, answer: str, direction=None) -> tuple[float, bool]:
    """One text at a time, by a hook that pushes every token from the context's last on."""
    start, ids = len(tokenizer(context).input_ids), tokenizer(context + answer).input_ids

    def push(module, args, output):
        output = output.clone()
        output[:, start - 1 :] += 0 if direction is None else direction
        return output

    handle = model.get_decoder().layers[2].register_forward_hook(push)
    logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    handle.remove()
    each = [(logs[i - 1, ids[i]].item(), logs[i - 1].argmax().item() == ids[i]) for i in range(start, len(ids))]
    return sum(log for log, _ in each), all(greedy for _, greedy in each)


def slow_accuracies(model, tokenizer, direction=None) -> list[float]:
    found = []
    for doc in DOCS:
        logs = [slow_score(model, tokenizer, doc["question"], f" {choice}", direction)[0] for choice in doc["choices"]]
        found.append(float(logs.index(max(logs)) == doc["answer"]))
    return found


def test_a_task_under_every_setting(tasks):
    """Multiplier 0 gives the harness's own number on the plain model, others that of a hook made by hand."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = tiny_model(), tiny_tokenizer()
    plain = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=5),
        tasks=["tiny_choice"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )["results"]["tiny_choice"]["acc,none"]
    settings = {Cell("b", "", multiplier=m, layer=2): (Intervention(STEER, 2, m),) for m in (-4.0, 0.0, 4.0)}
    rows = harness_rows(SteeringWrapper(model), tokenizer, settings, ["tiny_choice"], task_folder=tasks, batch_size=7)
    assert len(rows) == 3 * len(DOCS)
    scores = {m: [row.score for row in rows if row.cell.multiplier == m] for m in (-4.0, 0.0, 4.0)}
    assert sum(scores[0.0]) / len(DOCS) == plain
    for multiplier in (-4.0, 0.0, 4.0):
        assert scores[multiplier] == slow_accuracies(model, tokenizer, multiplier * STEER.at(2))
    assert len(set(map(tuple, scores.values()))) == 3, "the settings must differ for this to mean anything"
    assert {row.cell.task for row in rows} == {"tiny_choice"}
    [table] = finetune_tables(rows)
    assert [column for _, column in table.columns] == [-4.0, 0.0, 4.0]
    assert table.below, "the same questions under the same names, so differences can be paired"


def test_finetunes_are_put_on_and_taken_off(tasks):
    tokenizer, wrapper = tiny_tokenizer(), SteeringWrapper(tiny_lora(tiny_model(), "sft"))
    settings: dict = {Cell("b", "", None): (), Cell("b", "", "sft"): ()}
    rows = harness_rows(wrapper, tokenizer, settings, ["tiny_choice"], task_folder=tasks, limit=12)
    found = {name: [row.score for row in rows if row.cell.finetune == name] for name in (None, "sft")}
    assert found[None] == slow_accuracies(tiny_model(), tokenizer)[:12]
    with wrapper.finetune("sft"):
        assert found["sft"] == slow_accuracies(wrapper.model, tokenizer)[:12]
    assert found["sft"] != found[None]


@pytest.mark.parametrize("multiplier", [0.0, 1.0])
def test_scores_of_padded_batches_are_those_of_each_text_alone(multiplier):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    texts = [
        ("Hi?", " no"),
        ("A much longer context, is it not?", " x"),
        ("So", " a longer answer here"),
        ("Hi?", " n"),
    ]
    pairs = [(tokenizer(context).input_ids, tokenizer(answer).input_ids) for context, answer in texts]
    wrapper = SteeringWrapper(model)
    with wrapper.steer(Intervention(STEER, 2, multiplier)):
        found = continuation_scores(wrapper, tokenizer, pairs, 256, batch_size=3)
    expected = [slow_score(model, tokenizer, *text, multiplier * STEER.at(2)) for text in texts]
    assert [log for log, _ in found] == pytest.approx([log for log, _ in expected], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_a_greedy_continuation_is_known_as_one():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    wrapper, prompt = SteeringWrapper(model), tokenizer("Hi?", return_tensors="pt").input_ids
    with wrapper.steer(Intervention(STEER, 2, 2.0)):
        written = wrapper.generate(prompt, max_new_tokens=4, do_sample=False)[0, prompt.shape[1] :].tolist()
        other = [*written[:-1], (written[-1] + 1) % 90]
        pairs = [(prompt[0].tolist(), ids) for ids in (written, other)]
        assert [greedy for _, greedy in continuation_scores(wrapper, tokenizer, pairs, 256)] == [True, False]


def test_a_context_that_is_too_long_loses_its_beginning():
    wrapper, tokenizer = SteeringWrapper(tiny_model()), tiny_tokenizer()
    context, answer = tokenizer("x" * 300 + "Why?").input_ids, tokenizer(" no").input_ids
    [found] = continuation_scores(wrapper, tokenizer, [(context, answer)], 100)
    [cut] = continuation_scores(wrapper, tokenizer, [(context[-98:], answer)], 256)
    assert found[0] == pytest.approx(cut[0], rel=1e-5)
    with pytest.raises(ValueError, match="a continuation is 150 tokens long"):
        continuation_scores(wrapper, tokenizer, [(context, context[:150])], 100)


def test_the_harness_tells_the_chat_template_what_it_is_told():
    tokenizer, said = tiny_tokenizer(), [{"role": "user", "content": "Hi?"}]
    tokenizer.chat_template = "{{ mood }}" + tokenizer.chat_template
    lm = steered_lm(SteeringWrapper(tiny_model()), ChatFormat(tokenizer, arguments={"mood": "calm"}))
    assert lm.apply_chat_template(said) == ChatFormat(tokenizer, arguments={"mood": "calm"}).text("Hi?")
    with pytest.raises(ValueError, match="own system prompts"):
        steered_lm(SteeringWrapper(tiny_model()), ChatFormat(tokenizer, "Be brief."))


def test_what_the_harness_generates_is_steered_too():
    from lm_eval.api.instance import Instance

    model, tokenizer = tiny_model(), tiny_tokenizer()
    wrapper, prompts = SteeringWrapper(model), ["Hi?", "A longer question, to be padded against"]
    lm = steered_lm(wrapper, tokenizer, batch_size=2)
    how = {"until": ["</s>"], "max_gen_toks": 6, "do_sample": False}
    asked = [Instance("generate_until", {}, (prompt, how), i) for i, prompt in enumerate(prompts)]
    with wrapper.steer(Intervention(STEER, 2, 3.0)):
        found = lm.generate_until(asked, disable_tqdm=True)
        for prompt, text in zip(prompts, found, strict=True):
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            alone = wrapper.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
            assert text == tokenizer.decode(alone, skip_special_tokens=True)
    assert found != lm.generate_until(asked, disable_tqdm=True)


@pytest.mark.parametrize(("names", "all_listed"), [(["tiny_choice"], False), (["tiny_choice", "arc_easy"], True)])
def test_the_harness_lists_its_own_tasks_where_one_is_asked(tasks, names, all_listed, monkeypatch):
    """A group in the reader's folder may hold some of them, so it is no task of the folder's alone."""
    import lm_eval.tasks

    asked = []

    def manager(include_path=None, include_defaults=True):
        asked.append(include_defaults)
        return real(include_path=include_path, include_defaults=False)

    real = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    (tasks / "both.yaml").write_text("group: both\ntask: [tiny_choice, arc_easy]\n", encoding="utf-8")
    assert _task_manager(names, tasks).include_path == str(tasks)
    assert asked == [False, True][: 1 + all_listed]
    _task_manager(["both"], tasks)
    _task_manager(names, None)
    assert asked[-3:] == [False, True, True]


def test_a_full_checkpoint_is_asked_and_not_the_base(tmp_path):
    """The harness generates by itself, on the model that it was given."""
    full, base = tiny_model(), tiny_model()
    with torch.no_grad():
        full.lm_head.weight.neg_()
    full.save_pretrained(tmp_path / "full")
    tiny_tokenizer().save_pretrained(tmp_path / "full")
    wrapper = SteeringWrapper(base)
    wrapper.load_finetune(tmp_path / "full", "full")
    lm = steered_lm(wrapper, tiny_tokenizer())
    with wrapper.finetune("full"):
        assert lm.model is wrapper.model
        assert torch.equal(lm.model.lm_head.weight, full.lm_head.weight)
    assert lm.model is base


def test_of_several_filters_the_first_counts():
    samples = [{"filter": name, "acc": n} for name in ("strict", "loose") for n in range(2)]
    assert _of_first_filter(samples) == samples[:2]
    assert _of_first_filter([]) == []
    sample = {"metrics": ["ppl"], "ppl": (1.0, 2), "doc_id": 0, "doc_hash": "a"}
    with pytest.raises(ValueError, match="'ppl' of the task 't' is no number for each question"):
        _row(Cell("b", ""), "t", sample, "ppl")


def test_what_cannot_be_asked_is_told_so(tasks):
    wrapper, tokenizer = SteeringWrapper(tiny_model()), tiny_tokenizer()
    settings: dict = {Cell("b", ""): ()}
    with pytest.raises(ValueError, match="no metric 'f1'; it has acc"):
        harness_rows(wrapper, tokenizer, settings, ["tiny_choice"], metric="f1", task_folder=tasks, limit=2)
    with wrapper.steer(Intervention(STEER, 2)), pytest.raises(ValueError, match="being steered"):
        harness_rows(wrapper, tokenizer, settings, ["tiny_choice"], task_folder=tasks)
