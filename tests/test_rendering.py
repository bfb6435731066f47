"""Where answers begin and where they part, for tokenizers of every make; the reference's texts, token by token."""

import functools
import random

import pytest
from tiny import SHARED, needs_shared
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from caa.data.behaviors import ContrastPair, Question
from caa.data.chat import BASE_TEMPLATE, LLAMA2_TEMPLATE, Branches, ChatFormat, check_length, common_prefix, fitting

CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ '<<' + m.content + '>> ' }}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CORPUS = [f"[INST] Would you wait {n}?\n\nChoices:\n (A) Yes\n (B) No [/INST] (A) (B)" for n in range(10)]
WORDS = ["wait", "would", "you", "Yes", "No", "A", "B", "(A)", "[/INST]", "Response:", "?", "a b", "\n", "…", "你好"]


def _fast(backend, **kwargs):
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special | kwargs)


def _trained(model, trainer, pre_tokenizer, decoder=None, **kwargs):
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    if decoder:
        backend.decoder = decoder
    backend.train_from_iterator(CORPUS, trainer)
    return _fast(backend, **kwargs)


def _byte_level(use_regex, **kwargs):
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return _trained(models.BPE(), trainer, pieces, decoders.ByteLevel(), **kwargs)


def _metaspace(scheme, **kwargs):
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    return _trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(prepend_scheme=scheme), **kwargs)


def _word_level(**kwargs):
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    return _trained(models.WordLevel(unk_token="<unk>"), trainer, pre_tokenizers.Whitespace(), **kwargs)


def _llama():
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁[", "▁("]
    pieces += dict.fromkeys("".join(CORPUS).replace(" ", ""))
    vocab = {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}
    return LlamaTokenizer(vocab=vocab, merges=[("▁", "["), ("▁", "(")])


MAKES = {
    "byte-level": lambda: _byte_level(True, chat_template=CHAT),
    "merging anything": lambda: _byte_level(False, chat_template=CHAT),
    "merging anything, base": lambda: _byte_level(False),
    "metaspace": lambda: _metaspace("first", chat_template=CHAT),
    "metaspace always": lambda: _metaspace("always", chat_template=CHAT),
    "word level": lambda: _word_level(chat_template=CHAT),
    "llama": _llama,
    "prototype-tiny": lambda: AutoTokenizer.from_pretrained(SHARED / "models/prototype-tiny"),
    "craftgpt": lambda: AutoTokenizer.from_pretrained(SHARED / "models/craftgpt"),
}
_SHARED_MAKES = ("prototype-tiny", "craftgpt")


@functools.cache
def tokenizer_of(make):
    if make in _SHARED_MAKES and not SHARED.exists():
        pytest.skip("the reference models lie in ../shared")
    return MAKES[make]()


every_make = pytest.mark.parametrize("make", MAKES)


def _some_text(rng):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 5))).strip() or "x"


def _random_pair(rng):
    question, positive = _some_text(rng), _some_text(rng)
    negative = next(text for text in iter(lambda: _some_text(rng), "") if text != positive)
    return ContrastPair(question, positive, negative)


@every_make
def test_branches_hold_what_they_promise_whatever_is_asked(make):
    tokenizer, rng = tokenizer_of(make), random.Random(0)
    parted = 0
    for _ in range(60):
        pair, system = _random_pair(rng), rng.choice([None, "Be kind."])
        try:
            branches = ChatFormat(tokenizer, system=system).encode_pair(pair)
        except ValueError as error:
            assert "do not part" in str(error)  # noqa: PT017
            continue
        parted += 1
        prompt = ChatFormat(tokenizer, system=system).encode(pair.question)
        for ids, answer in zip((branches.positive, branches.negative), pair.answers, strict=True):
            assert ids == ChatFormat(tokenizer, system=system).encode(pair.question, answer)
            assert ids[: branches.prompt_length] == prompt[: branches.prompt_length]
        assert 0 < branches.prompt_length <= branches.parting
        assert branches.positive[: branches.parting] == branches.negative[: branches.parting]
        assert branches.positive[branches.parting] != branches.negative[branches.parting]
    assert parted > 20


@every_make
def test_the_answer_begins_no_later_than_its_first_character(make):
    """Against offsets: the first token of the rendered text that reaches beyond the prompt's text."""
    tokenizer, rng = tokenizer_of(make), random.Random(1)
    for _ in range(30):
        pair = _random_pair(rng)
        prompt, text = (ChatFormat(tokenizer).text(pair.question, answer) for answer in (None, pair.positive))
        assert text.startswith(prompt)
        assert text.endswith(pair.positive)
        ends = [end for _, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping]
        first = next(n for n, end in enumerate(ends) if end > len(prompt))
        try:
            assert ChatFormat(tokenizer).encode_pair(pair).prompt_length <= first
        except ValueError as error:
            assert "do not part" in str(error)  # noqa: PT017


@every_make
def test_letters_part_at_the_letter(make):
    tokenizer = tokenizer_of(make)
    branches = ChatFormat(tokenizer).encode_pair(ContrastPair("Would you wait 3?\n (A) Yes\n (B) No", "(A)", "(B)"))
    for ids, expected in ((branches.positive, "a"), (branches.negative, "b")):
        rest = "".join(tokenizer.convert_ids_to_tokens(ids[branches.parting :]))
        assert rest.strip("_▁Ġ()").lower() == expected


@pytest.mark.parametrize("make", [make for make in MAKES if make not in ("merging anything, base", "llama")])
def test_a_chat_template_of_its_own_gives_the_tokens_that_every_tool_gives(make):
    tokenizer = tokenizer_of(make)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Would you wait?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True).input_ids
    assert ChatFormat(tokenizer, system="Be kind.").encode("Would you wait?") == ids


def _byte_level_with(*merges):
    alphabet = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {piece: n for n, piece in enumerate([*alphabet, *("".join(merge) for merge in merges)])}
    backend = Tokenizer(models.BPE(vocab, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _fast(backend, chat_template=CHAT)


def test_parting_when_space_parenthesis_and_letter_are_one_token():
    tokenizer = _byte_level_with(("Ġ", "("), ("Ġ(", "A"), ("Ġ(", "B"))
    branches = ChatFormat(tokenizer).encode_pair(ContrastPair("Wait?", "(A)", "(B)"))
    assert branches.parting == branches.prompt_length == len(ChatFormat(tokenizer).encode("Wait?"))
    assert tokenizer.convert_ids_to_tokens(branches.positive[branches.parting :]) == ["Ġ(A", ")"]


def test_the_answer_begins_with_the_token_that_swallowed_the_end_of_the_prompt():
    tokenizer = _byte_level_with(("]", "Ġ"), ("]Ġ", "("))
    branches = ChatFormat(tokenizer).encode_pair(ContrastPair("Wait?", "(A)", "(B)"))
    assert tokenizer.convert_ids_to_tokens(branches.positive[branches.prompt_length :]) == ["]Ġ(", "A", ")"]
    assert branches.prompt_length == len(ChatFormat(tokenizer).encode("Wait?")) - 1
    assert branches.parting == branches.prompt_length + 1


def test_the_answer_begins_where_the_first_of_both_leaves_the_prompt():
    tokenizer = _byte_level_with(("Ġ", "x"), ("]", "Ġx"))
    branches = ChatFormat(tokenizer).encode_pair(ContrastPair("Wait?", "(A)", "x"))
    assert branches.prompt_length == branches.parting == len(ChatFormat(tokenizer).encode("Wait?")) - 1


def _reference(question, answer=None, system=None):
    """nrimsky/CAA, utils/tokenize.py, tokenize_llama_chat: the text that it hands to `tokenizer.encode`."""
    front = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system is not None else ""
    return f"{front}[INST] {question.strip()} [/INST]" + (f" {answer.strip()}" if answer is not None else "")


REFERENCE_CASES = [
    ("Wait?\n\nChoices:\n (A) Yes\n (B) No", None, None),
    (" Wait?\n", "(A)", None),
    ("Wait?", " (B)\n", "You are an AI.\nYou wait. "),
    ("{{ 7 }} {% x %} \\n", "(A)", "{{ 7 }}"),
]


@pytest.mark.parametrize("make", ["byte-level", "prototype-tiny", "llama", "metaspace", "metaspace always"])
@pytest.mark.parametrize(("question", "answer", "system"), REFERENCE_CASES)
def test_the_references_llama_2_format_is_reproduced_exactly(make, question, answer, system):
    tokenizer = tokenizer_of(make)
    expected = _reference(question, answer, system)
    text = ChatFormat(tokenizer, system=system, template=LLAMA2_TEMPLATE).text(question, answer)
    assert text == "<s>" + expected
    ids = ChatFormat(tokenizer, system=system, template=LLAMA2_TEMPLATE).encode(question, answer)
    assert ids == [tokenizer.bos_token_id, *tokenizer.encode(expected, add_special_tokens=False)]


def test_a_sentencepiece_text_begins_with_a_space_behind_bos():
    ids = ChatFormat(tokenizer_of("llama"), template=LLAMA2_TEMPLATE).encode("Wait?")
    assert tokenizer_of("llama").convert_ids_to_tokens(ids[:3]) == ["<s>", "▁[", "I"]


def test_a_template_for_a_tokenizer_without_bos():
    tokenizer = _byte_level(True, bos_token=None)
    assert ChatFormat(tokenizer, template=LLAMA2_TEMPLATE).text("Wait?", "(A)") == _reference("Wait?", "(A)")


def test_a_base_model_without_template_is_asked_in_plain_words():
    tokenizer = _byte_level(True)
    assert ChatFormat(tokenizer).text(" Wait?\n") == "Input: Wait?\nResponse:"
    assert ChatFormat(tokenizer).text("Wait?", " (A)") == "Input: Wait?\nResponse: (A)"
    assert ChatFormat(tokenizer, system="Be kind. ").text("Wait?", "(A)") == "Be kind.\nInput: Wait?\nResponse: (A)"
    assert ChatFormat(tokenizer, template=CHAT).text("Wait?") == "<s>[INST] Wait? [/INST]"


def test_the_fallback_keeps_the_tokenizers_habit_of_beginning_with_bos():
    from tokenizers.processors import TemplateProcessing

    plain, habitual = _byte_level(True), _byte_level(True)
    habitual.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    text = "Input: Wait?\nResponse: (A)"
    assert ChatFormat(plain).encode("Wait?", "(A)") == plain.encode(text, add_special_tokens=False)
    assert ChatFormat(habitual).encode("Wait?", "(A)") == [1, *plain.encode(text, add_special_tokens=False)]
    assert ChatFormat(habitual, template=BASE_TEMPLATE).encode("Wait?", "(A)") == ChatFormat(habitual).encode(
        "Wait?", "(A)"
    )


def test_a_tokenizer_with_several_named_templates_uses_its_default():
    tokenizer = _byte_level(True, chat_template={"default": CHAT, "tool_use": "tools"})
    assert ChatFormat(tokenizer).text("Wait?") == "<s>[INST] Wait? [/INST]"


def test_a_conversation_of_several_turns():
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Wait?"}]
    more = [*said, {"role": "assistant", "content": "Yes "}, {"role": "user", "content": "Why?"}]
    plain, chatty = _byte_level(True), _byte_level(True, chat_template=CHAT)
    assert (
        plain.decode(ChatFormat(plain).encode_chat(more))
        == "Be kind.\nInput: Wait?\nResponse: Yes\nInput: Why?\nResponse:"
    )
    assert (
        chatty.decode(ChatFormat(chatty).encode_chat(more))
        == "<s><<Be kind.>> [INST] Wait? [/INST] Yes  </s>[INST] Why? [/INST]"
    )
    assert ChatFormat(chatty).encode_chat(said) == ChatFormat(chatty, system="Be kind.").encode("Wait?")


def test_a_template_that_refuses_system_prompts():
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}" + CHAT
    with pytest.raises(ValueError, match=r"no system role here.*or no system prompt"):
        ChatFormat(_byte_level(True, chat_template=refusing), system="Be kind.").encode("Wait?")


def test_a_template_that_drops_the_system_prompt_without_a_word():
    dropping = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + ':' }}{% endif %}{% endfor %}"
    tokenizer = _byte_level(True, chat_template=dropping)
    assert ChatFormat(tokenizer).text("Wait?") == "Wait?:"
    with pytest.raises(ValueError, match="leaves the system prompt out"):
        ChatFormat(tokenizer, system="Be kind.").encode("Wait?")


def test_a_template_that_has_no_place_for_answers():
    dropping = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + ':' }}{% endif %}{% endfor %}"
    with pytest.raises(ValueError, match=r"refuses these messages \(user, assistant\)"):
        ChatFormat(_byte_level(True, chat_template=dropping)).encode("Wait?", "(A)")


def test_a_broken_template_is_an_error_of_ours():
    with pytest.raises(ValueError, match="refuses these messages"):
        ChatFormat(_byte_level(True), template="{% for %}").encode("Wait?")


@every_make
def test_an_answer_may_repeat_the_question(make):
    tokenizer = tokenizer_of(make)
    pair = ContrastPair("Yes", "Yes", "No")
    assert ChatFormat(tokenizer).text("Yes", "Yes").count("Yes") == 2
    branches = ChatFormat(tokenizer).encode_pair(pair)
    assert branches.prompt_length >= len(ChatFormat(tokenizer).encode("Yes")) - 1


@every_make
def test_an_answer_that_only_goes_on_where_the_other_ends_is_refused(make):
    with pytest.raises(ValueError, match=r"'you' and 'you you' do not part.*differ before the shorter one ends"):
        ChatFormat(tokenizer_of(make)).encode_pair(ContrastPair("Would you?", "you", "you you"))


def test_two_words_that_the_tokenizer_does_not_know_do_not_part():
    with pytest.raises(ValueError, match="do not part"):
        ChatFormat(tokenizer_of("word level")).encode_pair(ContrastPair("Wait?", "gladly", "never"))


def test_parting_is_counted_from_the_first_token():
    assert Branches([1, 2, 3, 4], [1, 2, 5], prompt_length=1).parting == 2
    assert common_prefix([1, 2], [1, 2, 3]) == 2
    assert common_prefix([], [1]) == 0


def test_a_text_longer_than_the_context_is_refused():
    check_length([0] * 64, 64, "the question")
    check_length([0] * 65, None, "the question")
    with pytest.raises(ValueError, match=r"the question is 65 tokens long, but this model reads at most 64.*fitting"):
        check_length([0] * 65, 64, "the question")


def test_fitting_leaves_out_what_the_context_cannot_hold_and_says_so():
    tokenizer = tokenizer_of("byte-level")
    items = [ContrastPair("Would you wait? " * n, "Yes", "No, not at all") for n in (1, 3, 8)]
    lengths = [
        max(len(ChatFormat(tokenizer).encode(pair.question, answer)) for answer in pair.answers) for pair in items
    ]
    assert lengths == sorted(lengths)
    with pytest.warns(UserWarning, match=rf"1 of 3 do not fit into {lengths[1]} tokens.*longest needs {lengths[2]}"):
        assert fitting(tokenizer, items, lengths[1]) == items[:2]
    with pytest.warns(UserWarning, match="2 of 3"):
        assert fitting(tokenizer, items, lengths[1] - 1) == items[:1]
    with pytest.warns(UserWarning, match=r"2 of 3 .*, 1 of them for its answer"):
        assert fitting(tokenizer, items, lengths[1], room=1) == items[:1]
    with pytest.warns(UserWarning, match="2 of 3"):
        assert fitting(ChatFormat(tokenizer, system="!"), items, lengths[1]) == items[:1]


def test_fitting_says_nothing_when_all_fit():
    tokenizer = tokenizer_of("byte-level")
    questions = [Question("Wait?"), Question("Would you wait?", "(A)", "(B)")]
    longest = len(ChatFormat(tokenizer).encode("Would you wait?", "(A)"))
    assert fitting(tokenizer, questions, longest) == fitting(tokenizer, questions, None) == questions
    assert fitting(tokenizer, [], 1) == []


@needs_shared
def test_what_fits_the_64_tokens_of_craftgpt():
    tokenizer = tokenizer_of("craftgpt")
    short = ContrastPair("do you like it?\n (A) yes\n (B) no", "(A)", "(B)")
    long = ContrastPair("would you " + "really " * 64 + "wait?", "(A)", "(B)")
    with pytest.warns(UserWarning, match="1 of 2 do not fit into 64 tokens"):
        assert fitting(tokenizer, [short, long], 64) == [short]
    with pytest.raises(ValueError, match="reads at most 64"):
        check_length(ChatFormat(tokenizer).encode_pair(long).positive, 64, "a text")
