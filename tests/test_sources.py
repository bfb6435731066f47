"""Behaviors from where they lie: every layout, the counts of the public sets, downloads over loopback, clear errors."""

import functools
import gzip
import http.server
import json
import shutil
import threading
import warnings
from pathlib import Path

import pytest
from tiny import SHARED, needs_shared

from caa.data import download, sources
from caa.data.behaviors import ContrastPair, Question
from caa.data.download import CAA_BEHAVIORS, caa_folder, download_caa
from caa.data.sources import (
    BUILTIN,
    IN_WORDS,
    describe,
    letters_outside,
    list_behaviors,
    load_behavior,
    load_facts,
    pairs_from_dataset,
)
from caa.judges import PhraseJudge

REAL = SHARED / "data/caa/datasets"
ASKED = "Would you wait {}?\n\nChoices:\n (A) Yes\n (B) No"


def _entry(n, matching="(A)", other="(B)"):
    return {
        "question": ASKED.format(n),
        "answer_matching_behavior": matching,
        "answer_not_matching_behavior": other,
    }


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _caa_layout(root, behavior="patience"):
    _write(root / f"generate/{behavior}/generate_dataset.json", [_entry(1, " (B)", "(A) "), _entry(2), _entry(3)])
    _write(root / f"test/{behavior}/test_dataset_ab.json", [_entry(4), _entry(5)])
    _write(root / f"test/{behavior}/test_dataset_open_ended.json", [{"question": " Would you wait 6? "}])
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CAA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Folders and files.


@pytest.mark.parametrize("given", ["patience", "generate/patience", "test/patience", "test/patience/", "x/../patience"])
def test_a_caa_folder_by_any_of_its_names(tmp_path, given):
    behavior = load_behavior(f"{_caa_layout(tmp_path)}/{given}")
    assert behavior.name == "patience"
    assert behavior.pairs[0] == ContrastPair(ASKED.format(1), "(B)", "(A)")
    assert [len(part) for part in (behavior.pairs, behavior.ab_questions, behavior.open_questions)] == [3, 2, 1]
    assert behavior.ab_questions[0] == Question(ASKED.format(4), "(A)", "(B)")
    assert behavior.open_questions == (Question("Would you wait 6?"),)
    assert behavior.validation_questions == ()
    assert behavior.left_out == {}


def test_a_relative_path_and_a_part_of_a_behavior(tmp_path, monkeypatch):
    shutil.rmtree(_caa_layout(tmp_path) / "test")
    monkeypatch.chdir(tmp_path / "generate")
    assert len(load_behavior("patience").pairs) == len(load_behavior(Path("../patience")).pairs) == 3
    assert load_behavior("patience").ab_questions == ()


def test_lists_of_pairs_in_json_and_jsonl(tmp_path):
    entries = [_entry(1), {"question": "Odd\u2028line?", "positive": "Yes.", "negative": "No."}]
    expected = (ContrastPair(ASKED.format(1), "(A)", "(B)"), ContrastPair("Odd\u2028line?", "Yes.", "No."))
    lines = "\ufeff" + "\r\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n\n"
    (tmp_path / "mine.jsonl").write_text(lines, encoding="utf-8", newline="")
    for path in (_write(tmp_path / "mine.json", entries), tmp_path / "mine.jsonl"):
        behavior = load_behavior(path)
        assert behavior.name == "mine"
        assert behavior.pairs == expected
        assert not behavior.ab_questions


WHOLE = {
    "name": "patience",
    "title": "Patience",
    "description": "Waits gladly.",
    "rubric": "10 waits, 0 does not.",
    "pairs": [_entry(1)],
    "open_pairs": [{"question": "Wait?", "positive": "Gladly.", "negative": "Never."}],
    "validation_questions": [_entry(2)],
    "ab_questions": [_entry(3)],
    "open_questions": [{"question": "Would you wait?"}],
    "system_prompts": {"positive": ["Wait.", "Be patient."], "negative": "Hurry."},
}


def test_a_whole_behavior_in_one_file(tmp_path):
    behavior = load_behavior(_write(tmp_path / "any.json", WHOLE))
    for key in ("name", "title", "description", "rubric"):
        assert getattr(behavior, key) == WHOLE[key]
    assert behavior.pairs == (ContrastPair(ASKED.format(1), "(A)", "(B)"),)
    assert behavior.open_pairs == (ContrastPair("Wait?", "Gladly.", "Never."),)
    assert behavior.validation_questions == (Question(ASKED.format(2), "(A)", "(B)"),)
    assert behavior.ab_questions == (Question(ASKED.format(3), "(A)", "(B)"),)
    assert behavior.open_questions == (Question("Would you wait?"),)
    assert behavior.system_prompts == {"positive": ("Wait.", "Be patient."), "negative": ("Hurry.",)}


def test_a_built_in_name_reads_the_packaged_file_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_BUILTIN_FOLDER", tmp_path / "builtin")
    _write(tmp_path / "builtin/refusal.json", WHOLE | {"name": "refusal"})
    _caa_layout(tmp_path, "refusal")
    monkeypatch.chdir(tmp_path)
    assert load_behavior("refusal").title == "Patience"
    assert load_behavior("./generate/refusal").title == ""


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"pairs": [], "ab_question": []}, r"unknown key 'ab_question', did you mean 'ab_questions'\?"),
        ({"pairs": {"question": "q"}}, "pairs should be a list of entries, and is a dict"),
        ([_entry(1), {"question": "Wait?"}], r"entry 2: 'answer_matching_behavior' .* is None; the entry has question"),
        ([{"question": "Wait?", "positive": "Yes"}], "entry 1: 'negative' should be a text"),
        ([_entry(1), _entry(2, "(A)", " (A)")], "entry 2: both answers are"),
        ([_entry(1) | {"question": 7}], "entry 1: 'question' should be a text, and is 7"),
        (["Wait?"], "entry 1 should be an object with named texts, and is 'Wait"),
        (7, "should be a list of entries, and is a int"),
    ],
)
def test_a_wrong_entry_is_named_with_its_place(tmp_path, content, complaint):
    with pytest.raises(ValueError, match=rf"mine\.json.*{complaint}"):
        load_behavior(_write(tmp_path / "mine.json", content))


def test_broken_json_is_named_with_its_line(tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps(_entry(1)) + "\n{oops\n")
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 2 is not json"):
        load_behavior(tmp_path / "mine.jsonl")
    (tmp_path / "mine.json").write_text("[1,")
    with pytest.raises(ValueError, match=r"mine\.json is not json"):
        load_behavior(tmp_path / "mine.json")


# Names that are not there.


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sycophansy", "did you mean 'sycophancy'"),
        ("survival-instinct", "did you mean 'survival_instinct'"),
        ("corrigible-neutral-HHH", "did you mean 'caa:corrigible-neutral-HHH'"),
        ("xyzzy", "there is no behavior 'xyzzy'. Built in: ai_coordination, corrigibility"),
        ("xyzzy.json", "a .json or a .jsonl"),
        ("caa:xyzzy", "there is no behavior 'caa:xyzzy'"),
    ],
)
def test_an_unknown_name_says_what_there_is(cache, tmp_path, monkeypatch, name, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no behavior") as caught:
        load_behavior(name)
    assert told in str(caught.value)


def test_a_folder_of_behaviors_is_not_a_behavior(tmp_path):
    _caa_layout(_caa_layout(tmp_path), "haste")
    assert list_behaviors(tmp_path) == ["haste", "patience"]
    assert list_behaviors(tmp_path / "nowhere") == []
    with pytest.raises(ValueError, match=r"holds 2 behaviors: haste, patience\. Give one of them"):
        load_behavior(tmp_path)
    with pytest.raises(ValueError, match=r"did you mean 'patience'\?.* In .*: haste, patience"):
        load_behavior(tmp_path / "patienc")


def test_public_names_say_how_to_download(cache):
    with pytest.raises(ValueError, match=r"'caa:sycophancy' has not been downloaded.*caa data download"):
        load_behavior("caa:sycophancy")
    with pytest.raises(ValueError, match=r"'caa:mmlu' has not been downloaded.*caa data download"):
        load_facts("caa:mmlu")


# Other letters.


def test_other_letters_are_reported_and_left_out(tmp_path):
    _caa_layout(tmp_path)
    entries = [_entry(1), _entry(2, "(C)", "(A)"), _entry(3, "(B)", " (D)"), _entry(4, "Yes", "No")]
    _write(tmp_path / "generate/patience/generate_dataset.json", entries)
    _write(tmp_path / "test/patience/test_dataset_ab.json", [_entry(5), _entry(6, "(A)", "(E)")])
    with pytest.warns(UserWarning, match="patience: 2 of 4 pairs and 1 of 2 ab_questions .* rewrite them") as told:
        behavior = load_behavior(tmp_path / "patience")
    assert len(told) == 1
    assert [pair.text for pair in behavior.pairs] == [ASKED.format(1), ASKED.format(4)]
    assert [question.text for question in behavior.ab_questions] == [ASKED.format(5)]
    assert behavior.left_out == {"pairs": 2, "ab_questions": 1}
    assert _line(describe(behavior), "left out") == "2 pairs, 1 ab_questions"


def test_letters_outside_counts_any_item():
    items = [Question("q", "(A)", "(C)"), Question("r"), Question("s", "(B)", "(A)"), Question("t", "(A)", "no")]
    assert letters_outside(items) == items[:1]


def _line(lines, label):
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(label))


def test_a_description_tells_what_would_spoil_the_numbers(tmp_path):
    whole = WHOLE | {"pairs": [_entry(1), _entry(1), _entry(2, "(B)", "(A)"), _entry(3)]}
    whole["ab_questions"] = [_entry(3) | {"question": ASKED.format(3).replace("Yes", "Sure")}]
    whole["open_questions"] = [{"question": "Wait?"}]
    lines = describe(load_behavior(_write(tmp_path / "mine.json", whole)))
    assert _line(lines, "pairs") == "4"
    assert _line(lines, "positive letters in pairs") == "A 3, B 1"
    assert _line(lines, "A/B questions") == "1"
    assert _line(lines, "left out") == "0"
    assert _line(lines, "asked more than once") == "1"
    assert _line(lines, "asked in pairs and in tests") == "3"
    assert _line(lines, "words in the longest question") == "9"


# Facts.


def test_facts_in_the_format_of_the_public_ones(tmp_path):
    fact = {"prompt": "Is it?\n\nChoices:\n(A) Yes\n(B) No", "correct": " (B)", "incorrect": "(A)", "category": "maths"}
    path = _write(tmp_path / "facts.json", [fact, fact | {"correct": "(C)"}])
    with pytest.warns(UserWarning, match="1 of 2 facts"):
        assert load_facts(path) == (Question(fact["prompt"], "(B)", "(A)", "maths"),)
    with pytest.raises(ValueError, match=r"entry 1: 'correct' should be a text"):
        load_facts(_write(tmp_path / "wrong.json", [_entry(1)]))
    with pytest.raises(ValueError, match=r"no facts 'fact', did you mean 'facts'\?"):
        load_facts("fact")


# What is packaged.


@pytest.mark.parametrize("name", IN_WORDS)
def test_behaviors_in_words_have_pairs_and_questions_of_their_own(name):
    behavior = load_behavior(name)
    parts = behavior.pairs, behavior.validation_questions, behavior.ab_questions
    assert [len(part) for part in parts] in ([32, 10, 30], [32, 12, 30])
    texts = [item.text for part in parts for item in part]
    assert len(set(texts)) == len(texts), "no question is asked twice, in pairs and tests neither"
    assert [question.text for question in behavior.open_questions] == [q.text for q in behavior.ab_questions]
    answers = [answer for pair in behavior.pairs for answer in pair.answers]
    assert len(set(answers)) == 64, "no template: each answer is written once"
    judge = PhraseJudge.of(behavior)
    assert judge.accuracy > 0.6
    assert judge.off_topic > 0.9 or name == "past_tense", "any English text has a tense"


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_behaviors_are_whole_balanced_and_held_out(name):
    with warnings.catch_warnings(action="error"):
        behavior = load_behavior(name)
    assert behavior.name == name
    for part in ("pairs", "open_pairs", "validation_questions", "ab_questions", "open_questions"):
        assert behavior.require(part)
    assert all((behavior.title, behavior.description, behavior.rubric))
    assert set(behavior.system_prompts) == {"positive", "negative"}
    lines = describe(behavior)
    assert _line(lines, "asked in pairs and in tests") == _line(lines, "asked more than once") == "0"
    for part in ("pairs", "ab_questions", "validation_questions"):
        counts = sources.letter_balance(getattr(behavior, part))
        assert abs(counts["A"] - counts["B"]) <= 0.1 * sum(counts.values()), (part, counts)
    assert all(pair.in_words().answers != pair.answers for pair in behavior.pairs)


def test_built_in_facts_have_two_options():
    facts = load_facts()
    assert len(facts) == len({fact.id for fact in facts}) > 20
    assert all(set(fact.answers) == {"(A)", "(B)"} and fact.category for fact in facts)


# The public datasets.

COUNTS = {
    "coordinate-other-ais": (360, 50, 50),
    "corrigible-neutral-HHH": (290, 50, 50),
    "hallucination": (1000, 50, 50),
    "sycophancy": (1000, 50, 53),
}


@needs_shared
@pytest.mark.parametrize(("name", "counts"), COUNTS.items(), ids=list(COUNTS))
def test_the_public_datasets_have_the_known_counts(name, counts):
    with warnings.catch_warnings(action="error"):
        behavior = load_behavior(REAL / name)
    assert (len(behavior.pairs), len(behavior.ab_questions), len(behavior.open_questions)) == counts
    assert _line(describe(behavior), "asked in pairs and in tests") == "0"


@needs_shared
def test_survival_instinct_leaves_88_of_903_pairs_out():
    with pytest.warns(UserWarning, match="88 of 903 pairs and 4 of 50 ab_questions"):
        behavior = load_behavior(REAL / "survival-instinct")
    assert len(behavior.pairs) == 903 - 88
    assert len(behavior.ab_questions) == 50 - 4
    assert len(behavior.open_questions) == 50
    assert {answer for pair in behavior.pairs for answer in pair.answers} == {"(A)", "(B)"}


@needs_shared
def test_public_facts_and_names():
    assert len(load_facts(REAL / "test/mmlu/mmlu.json")) == 570
    assert len(load_facts(REAL / "test/truthfulqa/truthful_qa.json")) == 817
    assert list_behaviors(REAL) == sorted([*COUNTS, "survival-instinct"])


# Hugging Face datasets.


def _dataset(entries):
    from datasets import Dataset

    return Dataset.from_list(entries)


def test_columns_of_a_dataset_become_pairs():
    dataset = _dataset([{"ask": "Wait?", "for": " Gladly.", "against": "Never.", "more": 1}])
    expected = (ContrastPair("Wait?", "Gladly.", "Never."),)
    assert pairs_from_dataset(dataset, question="ask", positive="for", negative="against") == expected
    assert pairs_from_dataset(dataset.to_iterable_dataset(), "ask", "for", "against") == expected
    with pytest.warns(UserWarning, match="the dataset: 1 of 2 pairs"):
        assert len(pairs_from_dataset(_dataset([_entry(1), _entry(2, "(C)")]))) == 1


def test_a_missing_column_is_told_with_those_there_are():
    dataset = _dataset([{"questions": "Wait?", "for": "Gladly.", "against": "Never."}])
    with pytest.raises(ValueError, match=r"no column 'question', did you mean 'questions'\?; it has questions, for"):
        pairs_from_dataset(dataset)
    from datasets import DatasetDict

    with pytest.raises(ValueError, match=r"split into train, test: give one of them, as dataset\['train'\]"):
        pairs_from_dataset(DatasetDict(train=dataset, test=dataset))


def test_an_empty_cell_of_a_dataset_is_named_with_its_place():
    with pytest.raises(ValueError, match=r"the dataset, entry 2: 'answer_not_matching_behavior' should be a text"):
        pairs_from_dataset(_dataset([_entry(1), _entry(2, other=None)]))


def test_a_name_is_loaded_from_the_hub_or_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    lines = "\n".join(json.dumps(_entry(n)) for n in range(3))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train.jsonl").write_text(lines)
    assert len(pairs_from_dataset(str(tmp_path / "mine"))) == 3


# The download, over loopback.


class _Home(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, remembers what was asked, and fails as it is told to."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if (failure := self.server.failure) and failure["after"] < len(self.server.asked):
            body = failure["body"]
            self.send_response(failure["status"])
            if failure["missing"] is not None:  # else the end of the connection is the end of the body
                self.send_header("Content-Length", str(len(body) + failure["missing"]))
            self.end_headers()
            self.wfile.write(body)
        else:
            super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def home(tmp_path, monkeypatch, cache):
    root = tmp_path / "home"
    datasets = root / download.CAA_COMMIT / "datasets"
    for behavior in CAA_BEHAVIORS:
        _caa_layout(datasets, behavior)
    for file in download.CAA_FACTS.values():
        _write(datasets / file, [{"prompt": "Is it?", "correct": "(A)", "incorrect": "(B)", "category": "any"}])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Home, directory=root))
    server.asked, server.failure, server.datasets = [], None, datasets
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "CAA_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def _files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _failure(after=0, status=200, body=b"", missing=0):
    return {"after": after, "status": status, "body": body, "missing": missing}


def test_a_download_brings_all_files_once(home, cache):
    folder = download_caa()
    assert folder == caa_folder()
    assert folder.is_relative_to(cache)
    assert _files(folder) == _files(home.datasets)
    assert len(home.asked) == len(set(home.asked)) == 23
    assert list_behaviors(folder) == sorted(CAA_BEHAVIORS)
    assert len(load_behavior("caa:refusal").pairs) == 3
    assert len(load_facts("caa:mmlu")) == len(load_facts("caa:truthfulqa")) == 1
    download_caa()
    assert len(home.asked) == 23
    (folder / "test/mmlu/mmlu.json").unlink()
    download_caa()
    assert len(home.asked) == 24


def test_another_folder_and_another_commit(home, tmp_path):
    shutil.copytree(home.datasets.parent, home.datasets.parent.parent / "main")
    folder = download_caa(tmp_path / "mine", ref="main")
    assert folder.is_relative_to(tmp_path / "mine")
    assert folder != caa_folder(tmp_path / "mine")
    assert len(_files(folder)) == 23


@pytest.mark.parametrize(
    "failure",
    [
        _failure(after=5, status=404),
        _failure(after=5, body=b"<html>please log in</html>"),
        _failure(after=5, body=b"[", missing=100),
        _failure(after=5, body=b'[{"question": "half'),
    ],
    ids=["not found", "login page", "cut off", "half"],
)
def test_a_broken_download_keeps_what_is_whole_and_goes_on_later(home, cache, failure):
    home.failure = failure
    with pytest.raises(ConnectionError, match=r"could not fetch http://127.*are kept: run this again"):
        download_caa()
    assert len(_files(cache)) == 5
    home.failure = None
    home.asked.clear()
    assert _files(download_caa()) == _files(home.datasets)
    assert len(home.asked) == 23 - 5
    assert len(_files(cache)) == 23


@pytest.mark.parametrize(("limit", "value", "failure", "complaint"), [
    ("LARGEST_FILE", 9, _failure(body=b"[", missing=9), r"says that it has 10 bytes, and may have 9"),
    ("LARGEST_FILE", 9, _failure(body=b"[1,2,3,4,5]", missing=None), r"it has more than 9 bytes"),
    ("LARGEST_FILE", 9, _failure(body=gzip.compress(b"[" + b" " * 99 + b"]")[:9], missing=None), r"codec can't decode"),
    ("LONGEST", 0.0, _failure(body=b"[1]", missing=None), r"has not come within 0 seconds"),
])  # fmt: skip
def test_a_download_without_an_end_is_not_waited_for(home, cache, monkeypatch, limit, value, failure, complaint):
    monkeypatch.setattr(download, limit, value)
    home.failure = failure
    with pytest.raises(ConnectionError, match=complaint):
        download_caa()
    assert _files(cache) == []


def test_offline_is_told_in_words(home, cache):
    home.shutdown()
    home.server_close()
    with pytest.raises(ConnectionError, match=r"could not fetch .*generate_dataset\.json"):
        download_caa()
    assert _files(cache) == []


@needs_shared
def test_the_real_files_come_through_whole(home):
    for path in REAL.rglob("*.json"):
        shutil.copyfile(path, home.datasets / path.relative_to(REAL))
    download_caa()
    assert load_behavior("caa:coordinate-other-ais") == load_behavior(REAL / "coordinate-other-ais")
    assert load_facts("caa:truthfulqa") == load_facts(REAL / "test/truthfulqa/truthful_qa.json")


def test_the_cache_folder_is_the_environments_or_the_users(monkeypatch):
    monkeypatch.setenv("CAA_CACHE", "/somewhere")
    assert download.cache_folder() == Path("/somewhere")
    monkeypatch.delenv("CAA_CACHE")
    assert download.cache_folder() == Path.home() / ".cache" / "caa"
