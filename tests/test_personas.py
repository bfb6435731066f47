"""Personas and dialogues: what is contrasted, and that nothing else is."""

from __future__ import annotations

import pytest

from caa.data.personas import PRESETS, dialogue_pairs, dialogue_texts


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
