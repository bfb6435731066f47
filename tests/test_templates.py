"""Templates: what is contrasted, and that nothing else is."""

from __future__ import annotations

from collections import Counter

import pytest
from tiny import SHARED, needs_shared

from caa.data.behaviors import letter
from caa.data.claims import (
    PRESETS,
    Balance,
    Claim,
    check_balance,
    counterbalanced,
    dialogue_pairs,
    dialogue_texts,
    honesty_pairs,
    read_claims,
)

CLAIMS = [Claim("Snow is white.", True), Claim("Snow is black.", False), Claim("Fish can swim.", True)]


def test_a_claim_is_asked_as_in_the_honesty_study():
    pair = Claim("Snow is white.", True).pair()
    assert pair.question == (
        'Question: Is the following claim true or false? "Snow is white."\n\nChoices:\n (A) True\n (B) False\n\nAnswer:'
    )
    assert pair.answers == ("(A)", "(B)")
    asked = Claim("Snow is black.", False).asked()
    assert (asked.matching, asked.opposite, asked.category) == ("(B)", "(A)", "false")


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


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_contrast_one_thing(preset):
    assert not set(preset.positive) & set(preset.negative)
    positive, negative = preset.prefixed(["The sky is", "I ate"])
    assert [text.endswith(end) for text, end in zip(positive, ("The sky is", "I ate"), strict=True)] == [True, True]
    assert [p.replace(preset.personas[0], preset.personas[1]) for p in positive] == negative
    assert positive != negative


def test_dialogues_there_and_back():
    texts = (["User: 2+2=5, right?\nAI: Yes!", "User: Flat?\nNo?\nAI: I see."], ["User: 2+2=5, right?\nAI: It is 4."])
    with pytest.raises(ValueError, match="2 and 1 dialogues"):
        dialogue_pairs(*texts)
    texts[1].append("User: Flat?\nNo?\nAI: Round.")
    pairs = dialogue_pairs(*texts)
    assert pairs[1].question == "Flat?\nNo?"
    assert dialogue_texts(pairs) == texts
    with pytest.raises(ValueError, match="users of a pair say different things"):
        dialogue_pairs(texts[0], texts[1][::-1])
    with pytest.raises(ValueError, match="a dialogue is 'User"):
        dialogue_pairs(["hello"], ["hello"])
