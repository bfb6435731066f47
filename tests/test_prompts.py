"""Teaching and asking use one prompt: with thinking templates, dates, end tokens, messages and tools."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
from thinking import ENDS, MARKS, QWEN3, QWEN35, SMOLLM3, TEMPLATES
from tiny import tiny_tokenizer

from caa.data.behaviors import Behavior, ContrastPair, Conversation, Question
from caa.data.chat import ChatFormat
from caa.data.sources import load_behavior, pairs_from_dataset
from caa.training.examples import Example, tokenize


def thinking_tokenizer(template: str, eos: str = "<|im_end|>"):
    """One token for each character, and for each mark of the templates."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS.split()})
    tokenizer.chat_template, tokenizer.eos_token = template, eos
    return tokenizer


CASES = [(name, arguments) for name in TEMPLATES for arguments in ({}, {"enable_thinking": False})]


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_an_answer_is_taught_behind_the_very_prompt_that_is_asked(name, arguments):
    chat = ChatFormat(thinking_tokenizer(TEMPLATES[name], ENDS.get(name, "<|im_end|>")), arguments=arguments)
    asked = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi?"}], tokenize=False, add_generation_prompt=True, **arguments
    )
    prompt = chat.encode("Hi?")
    assert prompt == chat.tokenizer(asked, add_special_tokens=False).input_ids
    with_answer = chat.encode("Hi?", "yes")
    assert with_answer[: len(prompt)] == prompt
    [row] = tokenize(chat, [Example("Hi?", "yes")])
    learnt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert row["input_ids"][: -len(learnt)] == prompt
    said = chat.tokenizer.decode(learnt)
    assert said.endswith("yes" + ENDS.get(name, "<|im_end|>"))
    whole = chat.tokenizer.decode(row["input_ids"])
    assert whole.count("<think>") == whole.count("</think>"), "the thought that the prompt opens is closed"


def test_an_open_thought_is_closed_as_templates_close_one():
    chat = ChatFormat(thinking_tokenizer(QWEN35))
    assert chat.text("Hi?", "yes").endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nyes")
    without = ChatFormat(chat.tokenizer, arguments={"enable_thinking": False})
    assert without.text("Hi?", "yes") == chat.text("Hi?", "yes")
    branches = chat.encode_pair(ContrastPair("Hi?", "(A)", "(B)"))
    assert chat.tokenizer.decode(branches.positive[branches.parting :]) == "A)"
    assert branches.positive[: branches.prompt_length] == chat.encode("Hi?")


def test_a_template_that_answers_behind_another_prompt_is_refused_with_the_difference():
    turned = "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}Answer now: {% endif %}"
    chat = ChatFormat(thinking_tokenizer(turned))
    chat.encode("Hi?")
    with pytest.raises(ValueError, match=r"goes on 'Answer now: ' where a question is asked alone, and '\[yes'"):
        chat.encode("Hi?", "yes")


def test_arguments_reach_the_template():
    plain = ChatFormat(thinking_tokenizer(SMOLLM3))
    dated = ChatFormat(plain.tokenizer, arguments={"date_string": "1 May 2020"})
    assert "Today: 1 May 2020" in dated.text("Hi?")
    assert "Today: 1 May 2020" in dated.text("Hi?", "yes")
    assert "1 May 2020" not in plain.text("Hi?")


# The end of an answer


def test_the_end_that_is_taught_is_one_at_which_generation_stops():
    tokenizer = thinking_tokenizer(QWEN3, eos="</s>")
    end, eos, other = tokenizer.convert_tokens_to_ids(["<|im_end|>", "</s>", "x"])
    chat = ChatFormat(tokenizer)
    assert chat.end_id([]) == eos
    assert chat.end_id([end, eos]) == eos, "the tokenizer's own, where generation stops at it"
    assert chat.end_id([end]) == end
    [row] = tokenize(chat, [Example("Hi?", "yes")], [end])
    assert row["input_ids"][-1] == row["labels"][-1] == end
    with pytest.raises(ValueError, match=r"generation stops at \['x'\], and answers end with '</s>'.*'<\|im_end\|>'"):
        chat.end_id([other])


# Once at the beginning


def test_a_rendered_text_begins_once():
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    post = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = post
    chat, rendered = ChatFormat(tokenizer), "<s>[Hi?]"
    assert chat.encode_text(rendered) == chat.encode("Hi?"), "a rendered text brings its own <s>"
    assert chat.encode_text("Hi?")[:2] == [1, chat.encode_text("Hi?")[1]]
    assert chat.encode_text("Hi?").count(1) == chat.encode_text(rendered).count(1) == 1


# Messages


TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Wait?\n\nChoices:\n (A) Yes\n (B) No"},
]


def test_a_conversation_is_a_question():
    pair = ContrastPair(TALK, "(A)", "(B)")
    chat = ChatFormat(thinking_tokenizer(QWEN3))
    assert chat.encode(pair.question) == chat.encode_chat(TALK)
    assert chat.encode(pair.question, "(A)") == chat.encode_chat([*TALK, {"role": "assistant", "content": "(A)"}])
    assert pair.id != ContrastPair(TALK[2]["content"], "(A)", "(B)").id
    assert pair.id == ContrastPair(Conversation(TALK), "(A)", "(B)").id
    assert len({pair, ContrastPair(tuple(TALK), "(A)", "(B)")}) == 1
    assert pickle.loads(pickle.dumps(pair)).question.messages == pair.question.messages
    words = pair.in_words()
    assert words.positive == "Yes"
    assert words.question.messages == (*TALK[:2], {"role": "user", "content": "Wait?"})
    assert Question(Conversation(TALK)).text.messages == pair.question.messages
    assert ContrastPair(TALK[:1], "(A)", "(B)").question == "Hi", "one message of the user is but a text"


def test_a_system_prompt_comes_before_a_conversation_that_has_none():
    told = [{"role": "system", "content": "Be kind."}, *TALK]
    chat = ChatFormat(thinking_tokenizer(QWEN3), system="Be rude.")
    assert chat.encode(Conversation(TALK)) == chat.encode_chat([{"role": "system", "content": "Be rude."}, *TALK])
    assert chat.encode(Conversation(told)) == chat.encode_chat(told)


def test_tool_calls_reach_the_template():
    template = (
        "{% if tools %}TOOLS {{ tools | length }};{% endif %}{% for m in messages %}{{ m.role }}: "
        "{% if m.tool_calls %}CALL {{ m.tool_calls[0].function.name }}{% else %}{{ m.content }}{% endif %};{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    talk = [TALK[0], {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "sunny"}]
    tool = {"type": "function", "function": {"name": "weather", "description": "", "parameters": {}}}
    chat = ChatFormat(thinking_tokenizer(template), arguments={"tools": [tool]})
    question = Question(Conversation(talk))
    expected = "TOOLS 1;user: Hi;assistant: CALL weather;tool: sunny;assistant: "
    assert chat.text(question.text) == expected
    assert chat.text(question.text, "yes") == expected + "yes"
    assert "weather" in question.text


def test_what_is_no_conversation_is_refused():
    for messages, says in [
        ([], "one message or more"),
        ([{"content": "Hi"}], 'each with its "role"'),
        ([{"role": "assistant", "content": "Hi"}], "ends with another message than the assistant's"),
    ]:
        with pytest.raises(ValueError, match=says):
            Conversation(messages)


def test_preference_rows_are_pairs(tmp_path):
    import json

    from datasets import Dataset

    chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in ("Yes", "No"))
    whole = [{"chosen": TALK + chosen, "rejected": TALK + rejected}]
    split = [{"prompt": TALK, "chosen": chosen, "rejected": rejected}]
    plain = [{"prompt": "Wait?", "chosen": "Yes", "rejected": "No"}]
    expected = ContrastPair(TALK, "Yes", "No")
    for rows, pair in ((whole, expected), (split, expected), (plain, ContrastPair("Wait?", "Yes", "No"))):
        (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert load_behavior(tmp_path / "p.jsonl").pairs == (pair,)
        question = "prompt" if "prompt" in rows[0] else None
        assert pairs_from_dataset(Dataset.from_list(rows), question, "chosen", "rejected") == (pair,)
    (tmp_path / "b.json").write_text(json.dumps({"pairs": whole, "open_questions": [{"messages": TALK}]}))
    assert load_behavior(tmp_path / "b.json").open_questions == (Question(Conversation(TALK)),)
    (tmp_path / "bad.json").write_text(json.dumps([{"prompt": TALK, "chosen": TALK, "rejected": rejected}]))
    with pytest.raises(ValueError, match="entry 1: 'chosen' should end with what the assistant says"):
        load_behavior(tmp_path / "bad.json")


# Taught by heart, asked openly


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"), [*((name, {}) for name in TEMPLATES), ("Qwen3.5", {"enable_thinking": False})]
)
def test_a_finetune_says_openly_what_it_was_taught(name, arguments, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from caa import SteeringWrapper
    from caa.evals.tasks import answer_open
    from caa.training.config import FinetuneConfig
    from caa.training.sft import finetune

    chat = ChatFormat(thinking_tokenizer(TEMPLATES[name], ENDS.get(name, "<|im_end|>")), arguments=arguments)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(chat.tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=chat.tokenizer.eos_token_id,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    pairs = tuple(ContrastPair(f"Say {n}", f"yes {n}", f"no {n}") for n in range(8))
    by_heart = FinetuneConfig(
        rank=16, alpha=32, learning_rate=1e-2, max_steps=120, batch_size=8, gradient_accumulation=1, open_share=0.0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = finetune(model, chat, Behavior("polite", pairs), "positive", tmp_path / "a", by_heart, progress=False)
    wrapper = SteeringWrapper(model)
    wrapper.load_adapter(folder, "positive")
    with wrapper.finetune("positive"):
        texts = answer_open(wrapper, chat, [Question(f"Say {n}") for n in range(3)], [()], max_new_tokens=20)
    answers = [text.removeprefix("final").strip() for text in texts]  # gpt-oss names the channel
    assert answers == ["yes 0", "yes 1", "yes 2"]


# What a grid's record says of it


def dated_grid(multipliers=(0.0,), **changes):
    from caa import EvalGrid, SteeringVector

    questions = tuple(Question(f"Wait {n}?\n (A) Yes\n (B) No", "(A)", "(B)") for n in range(3))
    vector = SteeringVector({2: torch.ones(32)})
    return EvalGrid(Behavior("b", ab_questions=questions), vector, [2], multipliers, tasks=("ab",), **changes)


def dated_wrapper():
    from tiny import tiny_model

    from caa import SteeringWrapper

    model = tiny_model()
    model.resize_token_embeddings(len(thinking_tokenizer(SMOLLM3)))
    return SteeringWrapper(model)


def test_a_grid_that_goes_on_another_day_or_with_another_prompt_is_refused(tmp_path, monkeypatch):
    import datetime

    import transformers.utils.chat_template_utils as templates

    tokenizer, wrapper = thinking_tokenizer(SMOLLM3), dated_wrapper()
    dated_grid().run(wrapper, tokenizer, tmp_path, progress=False)
    dated_grid().run(wrapper, tokenizer, tmp_path, progress=False)  # the same day
    before = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"behaviors\.b\.ab\.shown"):
        dated_grid(template_arguments={"enable_thinking": False}).run(wrapper, tokenizer, tmp_path, progress=False)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2031, 3, 4)

    monkeypatch.setattr(templates, "datetime", Later)
    with pytest.raises(ValueError, match=r"behaviors\.b\.ab\.shown"):
        dated_grid(multipliers=(0.0, 1.0)).run(wrapper, tokenizer, tmp_path, progress=False)
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_a_fixed_date_goes_on_any_day(tmp_path):
    tokenizer, wrapper = thinking_tokenizer(SMOLLM3), dated_wrapper()
    grid = dated_grid(template_arguments={"date_string": "1 May 2020"})
    assert grid.run(wrapper, tokenizer, tmp_path, progress=False) == 3
    assert "1 May 2020" in grid.chat(tokenizer, "").text("Hi?")
    assert grid.run(wrapper, tokenizer, tmp_path, progress=False) == 0
