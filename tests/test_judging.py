"""A local model as judge, pairs of answers, embeddings: each against a slow definition or a planted signal."""

from __future__ import annotations

import hashlib
import math
import random
import re
from typing import Any

import numpy as np
import pytest
import torch

from caa.data.behaviors import Behavior, ContrastPair, Question
from caa.data.download import CAA_BEHAVIORS
from caa.data.rubrics import CAA_RUBRICS
from caa.data.sources import BUILTIN, load_behavior
from caa.evals.grid import EvalGrid
from caa.judges.base import Judge, Verdict
from caa.judges.build import make_embedder, make_judge
from caa.judges.clients.local import LocalModel
from caa.judges.clients.protocol import Reply
from caa.judges.config import JudgeConfig
from caa.judges.embedding import EmbeddingJudge, difference_cosine, exemplar_cosines
from caa.judges.pairwise import PairwiseJudge, against_unsteered
from caa.judges.prompts import rating_prompt, read_choice, read_score
from caa.judges.rating import RatingJudge
from caa.runs.rows import OWN, Cell, Row, VectorRef, read_rows
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector
from tests.judge_server import said, serving
from tests.tiny import tiny_model, tiny_tokenizer

BEHAVIOR = Behavior("patience", rubric="How patient is it? 0: not at all. 10: fully.")
WORDS = [
    "wait",
    "spend",
    "save",
    "take",
    "hold",
    "keep",
    "ask",
    "leave",
    "now",
    "later",
    "soon",
    "never",
    "coins",
    "cake",
]


def answers(n: int, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return [f"I would {' '.join(chance.sample(WORDS, 4))}." for _ in range(n)]


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("7", 7),
        (" 10\n", 10),
        ("**8**", 8),
        ("Score: 3 out of 10.", 3),
        ("6.5 / 10", 6.5),
        ("7, that is, 7", 7),
        ("<think>2 or 3?</think>4", 4),
        ("10.5", None),
        ("-3", None),
        ("7,5", None),
        ("3 or 4", None),
        ("B2B", None),
        ("seven", None),
        ("", None),
    ],
)
def test_what_a_written_reply_says(reply, score):
    assert read_score(reply) == score


@pytest.mark.parametrize(
    ("reply", "choice"), [("1", 1), ("Answer 2", 2), ("12", None), ("1 beats 2", None), ("no", None)]
)
def test_what_a_written_choice_says(reply, choice):
    assert read_choice(reply) == choice


@pytest.mark.parametrize("thought", ["<think>The rubric says that 2 is", "<think>So: 2", "<think>1?</think><think>2"])
def test_a_thought_that_was_cut_off_says_nothing(thought):
    assert read_score(thought) is None
    assert read_choice(thought) is None
    assert read_score(f"{thought}</think>7") == 7
    assert read_choice(f"{thought}</think>1") == 1


def numerate(family: str = "Llama", before_blank: str | None = None) -> Any:
    """A tiny model that mostly says digits; where it would say `before_blank`, it says a blank before its digit."""
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    model.config.max_position_embeddings = 2048
    with torch.no_grad():
        wanted = tokenizer.convert_tokens_to_ids([*"0123456789 "])
        scale = torch.full((104, 1), 0.1)
        scale[wanted] = 4.0
        head = model.get_output_embeddings().weight.mul_(scale)
        if before_blank:
            head[tokenizer.convert_tokens_to_ids(" ")] = 1.2 * head[tokenizer.convert_tokens_to_ids(before_blank)]
    return model


def slow_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    return torch.where(found >= found.topk(20).values[-1], found, 0)


def slow_score(model: Any, tokenizer: Any, prompt: str) -> float:
    """Every number spelled out, one forward pass for each of its digits, of 20 tokens in each place; no batch."""
    ids = tokenizer(f"<s>[{prompt}]", add_special_tokens=False).input_ids
    blank, *digits = tokenizer.convert_tokens_to_ids([*" 0123456789"])
    while slow_probabilities(model, ids).argmax() == blank:
        ids.append(blank)
    first = slow_probabilities(model, ids)
    then = slow_probabilities(model, [*ids, digits[1]])
    masses = {number: first[digits[number]].item() for number in range(10)}
    masses[10] = masses[1] * then[digits[0]].item()
    masses[1] *= 1 - then[digits].sum().item()
    return sum(number * mass for number, mass in masses.items()) / sum(masses.values())


@pytest.mark.slow
@pytest.mark.parametrize(("family", "before_blank"), [("Llama", "9"), ("Qwen3", None)])
def test_a_local_judge_gives_the_expected_number(family, before_blank):
    model, tokenizer = numerate(family, before_blank), tiny_tokenizer()
    questions, texts = [Question(f"What do you do on day {i}?") for i in range(6)], answers(6)
    judge = RatingJudge(BEHAVIOR, LocalModel(model, tokenizer, batch_size=3))
    assert isinstance(judge, Judge)
    scores = [verdict.score for verdict in judge.judge_all(questions, texts)]
    given = [i for i, score in enumerate(scores) if score is not None]
    assert len(given) >= 3
    assert max(scores[i] for i in given) - min(scores[i] for i in given) > 0.2, "a constant would agree with anything"
    for i in given:
        slow = slow_score(model, tokenizer, rating_prompt(BEHAVIOR, questions[i], texts[i]))
        assert scores[i] == pytest.approx(slow, abs=1e-3)
    assert judge(questions[given[0]], texts[given[0]]).score == pytest.approx(scores[given[0]], abs=1e-4)


class Served:
    """The model as a server would answer: token by token, with 20 alternatives each."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        text = self.tokenizer.apply_chat_template(
            request["messages"],
            tokenize=False,
            add_generation_prompt=request.get("add_generation_prompt", True),
            continue_final_message=request.get("continue_final_message", False),
        )
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        start, places = len(ids), []
        while len(ids) < start + 4:
            top = slow_probabilities(self.model, ids).topk(request["top_logprobs"])
            tokens = [self.tokenizer.decode([token]) for token in top.indices.tolist()]
            likely = [
                {"token": token, "logprob": math.log(p)} for token, p in zip(tokens, top.values.tolist(), strict=True)
            ]
            places.append({**likely[0], "top_logprobs": likely})
            ids.append(top.indices[0].item())
        return said(self.tokenizer.decode(ids[start:]), places)


# A server that is asked to go on with "1" renders it by the chat template. Where that sets a blank in front, it goes on
# with " 1", which is not what it would have written; then scores differ by some thousandths.
NO_BLANK = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '[' + message.content + ']' }}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
)


def served_and_local(model: Any, tokenizer: Any, behavior: Behavior, tmp_path: Any, n: int) -> list[list[Verdict]]:
    pytest.importorskip("openai")
    questions, texts = [Question(f"What do you do on day {i}?") for i in range(n)], answers(n)
    with serving(Served(model, tokenizer)) as server:
        asked = JudgeConfig(
            "endpoint", "m", server.url, reply="expected", prefill=True, concurrency=1, retries=0, timeout=60
        )
        served = make_judge(asked, behavior, tmp_path)
        local = RatingJudge(behavior, LocalModel(model, tokenizer, batch_size=4))
        return [judge.judge_all(questions, texts) for judge in (served, local)]


@pytest.mark.slow
def test_a_served_model_and_the_same_one_here_give_the_same_scores(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = NO_BLANK
    served, local = served_and_local(numerate(), tokenizer, BEHAVIOR, tmp_path, 6)
    assert sum(verdict.score is not None for verdict in local) >= 3
    for a, b in zip(served, local, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-3)


@pytest.mark.slow
def test_the_embedded_model_is_the_same_judge_served_and_here(tmp_path):
    from caa import load_model

    model, tokenizer = load_model("tiny-chat")
    bias = torch.zeros(model.config.vocab_size)  # it knows no rubrics, and would talk of other things
    bias[tokenizer.convert_tokens_to_ids([*"0123456789"])] = 20
    model.lm_head.bias = torch.nn.Parameter(bias)
    tokenizer.chat_template = NO_BLANK
    served, local = served_and_local(model, tokenizer, load_behavior("myopic_reward"), tmp_path, 6)
    assert len({round(verdict.score, 2) for verdict in local}) > 3
    assert [v.score for v in served] == pytest.approx([v.score for v in local], abs=1e-3)


def test_a_prompt_longer_than_the_context_is_refused_alone():
    model, tokenizer = numerate(), tiny_tokenizer()
    model.config.max_position_embeddings = 800
    judge = RatingJudge(BEHAVIOR, LocalModel(model, tokenizer))
    texts = ["I would wait.", "I would wait. " + " ".join(map(str, range(200)))]
    short, long = judge.judge_all([Question("Wait?")] * 2, texts)
    assert "refused" not in short.reason
    assert long == Verdict(None, "refused: context_length_exceeded")


# Pairs.


class Chooser:
    """A model that prefers the answer with more of a word in it, and leans to one place."""

    def __init__(self, lean: float = 0.0, written: str | None = None) -> None:
        self.lean, self.written, self.prompts, self.settings = lean, written, [], {}

    def __call__(self, prompts: list[str]) -> list[Reply]:
        self.prompts += prompts
        return [self._reply(prompt) for prompt in prompts]

    def _reply(self, prompt: str) -> Reply:
        first, second = re.findall(r"<answer-\d>\n(.*?)\n</answer", prompt, re.DOTALL)
        wish = second.count("wait") - first.count("wait") + self.lean
        second_place = 1 / (1 + math.exp(-wish))
        return Reply(self.written or str(1 + (wish > 0)), {"1": 1 - second_place, "2": second_place})


PATIENT, HASTY = "I would wait, and then wait longer.", "I would take it now."


def test_the_better_answer_wins_in_either_place():
    judge = PairwiseJudge(BEHAVIOR, Chooser(), {Question("What?").id: HASTY})
    assert isinstance(judge, Judge)
    sure = 10 / (1 + math.exp(-2))
    assert judge(Question("What?"), PATIENT).score == pytest.approx(sure)
    assert PairwiseJudge(BEHAVIOR, Chooser(), {Question("What?").id: PATIENT})(
        Question("What?"), HASTY
    ).score == pytest.approx(10 - sure)


def test_both_orders_take_out_a_leaning_to_one_place_and_show_it():
    questions = [Question(f"{i}?") for i in range(4)]
    texts, others = [f"I would go to {i}." for i in range(4)], [f"I would stay at {i}." for i in range(4)]
    for lean in (-3.0, 3.0):
        found = PairwiseJudge(BEHAVIOR, Chooser(lean), {}).compare_all(questions, texts, others)
        assert [comparison.preference for comparison in found] == pytest.approx([0.5] * 4)
        towards_first = 2 / (1 + math.exp(lean)) - 1
        assert [comparison.first_bias for comparison in found] == pytest.approx([towards_first] * 4)
    chooser = Chooser(-9, written=None)
    by_turns = PairwiseJudge(BEHAVIOR, chooser, {}, both_orders=False, reply="written")
    found = by_turns.compare_all(questions, texts, others)
    assert [comparison.preference for comparison in found] == [0, 1, 0, 1], "the order is balanced over the questions"
    assert len(chooser.prompts) == 4


def test_pairs_that_need_no_judge_and_replies_that_say_nothing():
    chooser = Chooser(written="both")
    judge = PairwiseJudge(BEHAVIOR, chooser, {}, reply="written")
    found = judge.compare_all([Question("?")] * 3, [PATIENT, "", PATIENT], [PATIENT, HASTY, HASTY])
    assert [(f.preference, f.reason) for f in found] == [
        (0.5, "the same answer"),
        (None, "empty"),
        (None, "unparsable reply 'both'"),
    ]
    assert len(chooser.prompts) == 2
    with pytest.raises(KeyError, match="no answer to compare with"):
        judge(Question("?"), HASTY)


def test_steered_answers_are_compared_with_their_own_unsteered_ones():
    def row(
        finetune: str | None, multiplier: float, text: str, vector: VectorRef = OWN, behavior: str = "patience"
    ) -> Row:
        cell = Cell(behavior, "open", finetune, 2, multiplier, vector=vector)
        return Row(cell, Question("What?").id, 5.0, {"asked": "What?", "text": text, "reason": ""})

    rows = [
        row(None, 0, HASTY),
        row(None, 1, PATIENT),
        row(None, 1, "I would wait.", VectorRef("random", "0")),
        row("positive", 0, PATIENT),
        row("positive", -1, HASTY),
        row("negative", 1, PATIENT),
        row(None, 1, PATIENT, behavior="other"),
    ]
    found = against_unsteered(rows, BEHAVIOR, Chooser(), "written")
    assert [(r.cell.task, r.cell.finetune, r.cell.vector, r.score, r.evidence["other"]) for r in found] == [
        ("pairwise", None, OWN, 10.0, HASTY),
        ("pairwise", None, VectorRef("random", "0"), 10.0, HASTY),
        ("pairwise", "positive", OWN, 0.0, PATIENT),
    ]


# Embeddings.


def bag(texts: list[str]) -> np.ndarray:
    """Each word a fixed random direction, a text their sum."""

    def direction(word: str) -> np.ndarray:
        seed = int(hashlib.sha256(word.encode()).hexdigest()[:8], 16)
        return np.random.default_rng(seed).normal(size=64)

    return np.stack([sum(map(direction, re.findall(r"\w+", text))) for text in texts])


def pairs(n: int = 40) -> tuple[ContrastPair, ...]:
    chance = random.Random(0)

    def say(words: list[str]) -> str:
        return f"I would {chance.choice(words)} {' '.join(chance.sample(WORDS, 3))}."

    return tuple(
        ContrastPair(f"Question {i}?", say(["stay patient", "linger calmly"]), say(["rush", "grab it", "hurry"]))
        for i in range(n)
    )


@pytest.mark.parametrize("measure", [exemplar_cosines, difference_cosine])
def test_an_embedding_judge_finds_what_was_planted(measure):
    behavior = Behavior("patience", open_pairs=pairs())
    judge = EmbeddingJudge.fit(behavior, bag, measure)
    assert isinstance(judge, Judge)
    assert judge.accuracy > 0.9
    assert 0.25 < judge.control < 0.75
    scores = [judge(Question("?"), f"I would {word} at home.").score for word in ("stay patient", "rush")]
    assert scores[0] > 6.5
    assert scores[1] < 3.5
    assert judge(Question("?"), "") == Verdict(None, "empty")
    texts = [p.positive for p in pairs()] + ["BBBBBBBB"]
    together = judge.judge_all([Question("?")] * len(texts), texts)
    alone = [judge(Question("?"), text).score for text in texts[:-1]]
    assert [verdict.score for verdict in together[:-1]] == pytest.approx(alone)
    assert together[-1].score is None


def test_measures_against_loops():
    chance = np.random.default_rng(0)
    texts, matching, opposite = (chance.normal(size=(n, 5)) + 1 for n in (3, 4, 4))

    def cosine(a, b):
        return a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)

    slow = [np.mean([cosine(t, m) for m in matching]) - np.mean([cosine(t, o) for o in opposite]) for t in texts]
    np.testing.assert_allclose(exemplar_cosines(texts, matching, opposite), slow)
    middle, difference = np.vstack([matching, opposite]).mean(0), (matching - opposite).mean(0)
    np.testing.assert_allclose(
        difference_cosine(texts, matching, opposite), [cosine(t - middle, difference) for t in texts]
    )


def test_an_embedding_that_tells_nothing_is_refused():
    same = tuple(ContrastPair(f"{i}?", "I would wait.", "I would go.") for i in range(10))
    with pytest.raises(ValueError, match="no closer to each other"):
        EmbeddingJudge.fit(Behavior("flat", open_pairs=same), lambda texts: np.ones((len(texts), 3)))


def test_embeddings_of_a_server_are_paid_for_once(tmp_path):
    pytest.importorskip("openai")

    def answer(request):
        vectors = bag(request["input"]).tolist()
        items = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        return {"data": items[::-1], "model": "e"}  # in whatever order

    def fault(number):
        return ("500", "garbage", "empty")[number // 2 % 3] if number % 2 else None

    asked = JudgeConfig("embedding", "e", retries=9, batch_size=7, request={"dimensions": 64})
    with serving(answer, fault) as server:
        asked = JudgeConfig(**{**vars(asked), "base_url": server.url})
        behavior = Behavior("patience", open_pairs=pairs(20))
        judge = make_judge(asked, behavior, tmp_path)
        plain = EmbeddingJudge.fit(behavior, bag)
        assert judge.ends == pytest.approx(plain.ends, abs=1e-5)
        texts = ["I would rush.", "I would linger calmly.", "I would rush."]
        scores = [v.score for v in judge.judge_all([Question("?")] * 3, texts)]
        assert scores == pytest.approx([v.score for v in plain.judge_all([Question("?")] * 3, texts)], abs=1e-3)
        before = len(server.requests)
        assert make_embedder(asked, tmp_path)(texts).shape == (3, 64)
        assert len(server.requests) == before
        assert all(request["dimensions"] == 64 for request in server.requests)
        sent = [text for request in server.requests for text in request["input"]]
        assert len(set(sent)) == len(sent) - sum(
            len(request["input"]) for number, request in enumerate(server.requests) if fault(number)
        )


@pytest.mark.slow
def test_a_model_of_sentence_transformers(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "i", "would", "stay", "linger", "rush"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(tmp_path / "bert")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    sentence_transformers.SentenceTransformer(str(tmp_path / "bert"), device="cpu").save(str(tmp_path / "embedder"))
    embed = make_embedder(JudgeConfig("embedding", str(tmp_path / "embedder")), tmp_path)
    vectors = embed(["I would rush", "I would linger", "I would rush"])
    assert vectors.shape == (3, 32)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


# In a run.


def test_a_grid_with_a_failing_judge_ends_complete_and_asks_nothing_twice(tmp_path):
    pytest.importorskip("openai")
    behavior = Behavior("patience", open_questions=tuple(Question(f"Day {i}?") for i in range(4)), rubric="Patient?")
    wrapper, tokenizer = SteeringWrapper(tiny_model()), tiny_tokenizer()
    vector = SteeringVector({1: torch.randn(32, generator=torch.Generator().manual_seed(0))})

    def fault(number):
        return ("429", "garbage")[number // 2 % 2] if number % 2 else None

    with serving(lambda request: said("6"), fault) as server:
        asked = JudgeConfig("endpoint", "m", server.url, retries=9)
        judge = make_judge(asked, behavior, tmp_path)
        grid = EvalGrid(behavior, vector, [1], (0.0, 1.0), tasks=("open",), judge=judge, max_new_tokens=8)
        assert grid.run(wrapper, tokenizer, tmp_path, progress=False) == 8
        rows = read_rows(tmp_path / "rows.jsonl")
        assert {row.score for row in rows} <= {6.0, None}
        assert sum(row.score == 6.0 for row in rows) >= 2
        texts = {(row.question, row.evidence["text"]) for row in rows if row.score is not None}
        assert len(server.requests) - len(server.faults) == len(texts)
        assert server.faults
        (tmp_path / "rows.jsonl").unlink()
        (tmp_path / "run.json").unlink()
        before = len(server.requests)
        assert grid.run(wrapper, tokenizer, tmp_path, progress=False) == 8
        assert len(server.requests) == before, "the same answers, judged before"


def test_every_behavior_has_a_rubric():
    assert set(CAA_RUBRICS) == set(CAA_BEHAVIORS)
    for rubric in [*CAA_RUBRICS.values(), *(load_behavior(name).rubric for name in BUILTIN)]:
        assert all(mark in rubric for mark in ("0:", "5:", "10:"))
