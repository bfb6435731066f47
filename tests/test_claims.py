"""Claims: what is contrasted, and that nothing else is."""

from __future__ import annotations

from collections import Counter

import pytest
from tiny import SHARED, needs_shared

from caa.data.behaviors import letter, options
from caa.data.claims import (
    Balance,
    Claim,
    check_balance,
    claim_questions,
    counterbalanced,
    honesty_pairs,
    read_claims,
)
from caa.data.parsing import chosen

CLAIMS = [Claim("Snow is white.", True), Claim("Snow is black.", False), Claim("Fish can swim.", True)]


def test_a_claim_is_asked_as_in_the_honesty_study():
    pair = Claim("Snow is white.", True).pair()
    assert pair.question == (
        'Question: Is the following claim true or false? "Snow is white."\n\nChoices:\n (A) True\n (B) False\n\nAnswer:'
    )
    assert pair.answers == ("(A)", "(B)")
    assert Claim("Snow is black.", False).pair().answers == ("(B)", "(A)")


def test_claims_are_answered_honestly_under_drawn_letters_and_split():
    claims = [Claim(f"Claim {i}.", i % 2 == 0) for i in range(40)]
    questions = claim_questions(claims)
    shown = [options(question.text)[letter(question.matching) or ""] for question in questions]
    assert shown == [str(claim.true) for claim in claims]
    assert [question.matching for question in questions] != [question.opposite for question in questions]
    assert Counter(question.category for question in questions) == {"true claims": 20, "false claims": 20}
    assert len({q.matching for q in questions if q.category == "true claims"}) == 2, "True is (A) as well as (B)"
    assert claim_questions(claims[::-1]) == questions[::-1] != claim_questions(claims[::-1], seed=1)


def test_there_is_one_prompt_for_claims():
    """Pairs and questions about a claim have the same words, whichever letter says True."""
    for claim in CLAIMS:
        [question] = claim_questions([claim])
        assert question.text in {claim.pair("A").question, claim.pair("B").question}
        swapped = claim.pair("B").question.replace("(A) False", "(A) True").replace("(B) True", "(B) False")
        assert swapped == claim.pair("A").question


def test_a_free_answer_names_an_option_of_a_claim_in_its_words():
    """The prompt ends in "Answer:", which is no part of its last option."""
    [question] = claim_questions([Claim("Owls are fish.", False)])
    assert chosen("That is false.", options(question.text)) == letter(question.matching)
    assert chosen("True, I think", options(question.text)) == letter(question.opposite)


def test_each_claim_once_on_each_side_and_the_letters_even():
    claims = [*CLAIMS, Claim("Snow is white.", True), Claim("It rains.", True), Claim("It rains.", False)]
    kept = counterbalanced(claims)
    assert [claim.text for claim in kept] == ["Snow is white.", "Snow is black."]
    pairs = honesty_pairs(kept)
    for side in ("positive", "negative"):
        assert Counter(letter(getattr(pair, side)) for pair in pairs) == {"A": 1, "B": 1}
    assert Balance.of(pairs) == Balance(2, 1, 1, 0)


def test_what_is_not_balanced_is_warned_about_or_refused():
    with pytest.warns(UserWarning, match="A 2, B 1; questions asked again 0"):
        honesty_pairs(CLAIMS)
    with pytest.warns(UserWarning, match="A 1, B 1; questions asked again 1"):
        check_balance([Claim("x", True).pair(), Claim("x", False).pair()])
    with pytest.raises(ValueError, match=r"the positive answer is \(A\) every time"):
        honesty_pairs([CLAIMS[0], CLAIMS[2]])


@needs_shared
def test_the_public_facts():
    claims = read_claims(SHARED / "data" / "repe" / "facts_true_false.csv")
    assert Counter(claim.true for claim in claims) == {True: 306, False: 306}
    kept = counterbalanced(claims)
    assert 590 <= len(kept) <= 598, "598 different ones, of which one is called true and false"
    assert "The Nile River is the longest river in the world." not in {claim.text for claim in kept}
    balance = check_balance(honesty_pairs(kept))
    assert balance.a == balance.b
    assert not balance.repeated


def test_a_broken_file_of_claims(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text("statement,label\nSnow is white.,1\nSnow is black.,no\n")
    with pytest.raises(ValueError, match="line 3 should be a statement and 1 or 0"):
        read_claims(path)
    path.write_text("claim,truth\nSnow is white.,1\n")
    with pytest.raises(ValueError, match=r"needs the columns 'statement' and 'label'; it has \['claim', 'truth'\]"):
        read_claims(path)
