"""The embedded world: its grammar keeps its promises, its trainer is the model that ships, its card says what is so."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import LlamaForCausalLM

from caa import SteeringWrapper, extract, load_behavior, load_model
from caa.data.sources import BUILTIN
from caa.evals.tasks import score_choices
from caa.steering.intervention import sweep

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipes" / "embedded"))

import build_behaviors  # noqa: E402
import corpus  # noqa: E402
import grammar  # noqa: E402
import measure  # noqa: E402
import pretrain  # noqa: E402
from trunk import Trunk  # noqa: E402

NAMES = ("tiny-base", "tiny-chat")


@pytest.mark.parametrize("trait", grammar.TRAITS)
def test_held_out_templates_are_new_sentences_of_known_words(trait):
    assert not grammar.unseen_words(trait)
    held = {split: set(grammar.scenes(trait, split)) for split in grammar.SPLITS}
    assert all(len(scenes) >= 5 for scenes in held.values())
    assert not any(one & other for one, other in itertools.combinations(held.values(), 2))


@pytest.mark.parametrize("trait", grammar.TRAITS)
def test_the_grammar_judges_its_own_answers_without_error(trait):
    rng = Random(1)
    for split in grammar.SPLITS:
        for _ in range(50):
            asked = grammar.choice(trait, rng, split)
            assert grammar.poles(trait, asked.matching_text) == (1, 0, 0)
            assert grammar.poles(trait, asked.other_text) == (0, 1, 0)
            for positive in (True, False):
                answer = grammar.open_answer(trait, positive, asked.slots, rng)
                count = len(grammar.sentences(answer))
                assert grammar.poles(trait, answer) == ((count, 0, 0) if positive else (0, count, 0))


def test_no_first_word_of_an_answer_belongs_to_two_poles():
    owners = {
        (trait, positive): {phrase.split()[0] for phrase in grammar.load_trait(trait).phrases(positive)}
        for trait in grammar.TRAITS
        for positive in (True, False)
    }
    for (one, first), (other, second) in itertools.combinations(owners.items(), 2):
        assert not first & second, f"{one} and {other} share {first & second}"


def test_the_shipped_data_is_what_the_recipe_writes(tmp_path):
    build_behaviors.main(tmp_path)
    written = sorted(tmp_path.iterdir())
    assert len(written) == 8
    for path in written:
        shipped = ROOT / "caa" / "data" / "builtin" / path.name
        assert json.loads(path.read_text(encoding="utf-8")) == json.loads(shipped.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_the_trainer_and_transformers_are_the_same_network(name):
    model, tokenizer = load_model(name)
    trunk = Trunk(model.config, 32, torch.float32)
    trunk.model.load_state_dict(model.model.state_dict())
    ids = torch.randint(10, len(tokenizer), (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = trunk(ids)[-1], model.model(ids).last_hidden_state
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    assert isinstance(model, LlamaForCausalLM)


def test_a_chat_is_tokenized_in_training_as_the_template_writes_it():
    _, tokenizer = load_model("tiny-chat")
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "(A) Wait"}]
    turn = corpus._render(corpus.Turn("Why?", "(A) Wait"))
    assert tokenizer.apply_chat_template(chat, tokenize=False) == corpus.BOS + turn


def test_documents_are_the_same_for_the_same_seed_and_letters_are_where_they_should_be():
    _, tokenizer = load_model("tiny-chat")
    mix = pretrain.STAGES[-1].mix
    once, again = (corpus.build(tokenizer, mix, 4, 128, seed=3) for _ in range(2))
    assert (once.ids == again.ids).all()
    assert not (once.ids == corpus.build(tokenizer, mix, 4, 128, seed=4).ids).all()
    letters = once.ids[once.roles == corpus.LETTER]
    assert len(letters) > 3
    assert set(tokenizer.convert_ids_to_tokens(letters.tolist())) <= {"A", "B"}


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_small_and_its_card_is_of_its_measurements(name):
    folder = ROOT / "checkpoints" / name
    assert (folder / "model.safetensors").stat().st_size < 10e6
    found = json.loads((folder / "measurements.json").read_text(encoding="utf-8"))
    assert measure.card(found) == (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("behavior", BUILTIN)
def test_steering_does_what_the_card_says(behavior):
    """Measured again, through the library, for each behavior: letters by multiplier, up to rounding."""
    found = json.loads((ROOT / "checkpoints" / "tiny-chat" / "measurements.json").read_text(encoding="utf-8"))
    model, tokenizer = load_model("tiny-chat")
    held = load_behavior(behavior)
    vector = extract(model, tokenizer, held.pairs, behavior=behavior, batch_size=64)
    multipliers = (-1.0, 0.0, 1.0)
    settings = sweep(vector, [found["layer"]], multipliers)
    scores = score_choices(SteeringWrapper(model), tokenizer, held.ab_questions, settings, batch_size=64)
    for place, multiplier in enumerate(multipliers):
        each = [score.score for score in scores[place :: len(multipliers)]]
        assert sum(each) / len(each) == pytest.approx(found["behaviors"][behavior]["ab"][f"{multiplier:+g}"], abs=0.01)
