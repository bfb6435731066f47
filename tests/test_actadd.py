"""ActAdd against a slow definition: one prompt at a time, a full forward pass for every token, no cache, no pads."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import FAMILIES, SHARED, needs_shared, tiny_model, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from caa import Intervention, SteeringWrapper, load_model
from caa.extraction.actadd import _space, prompt_difference, prompt_ids
from caa.models.batching import pad
from caa.models.blocks import decoder_blocks
from caa.steering.scopes import prompt_only

LAYER = 1


@torch.no_grad()
def stream(model, ids, layer=LAYER) -> torch.Tensor:
    return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]


@torch.no_grad()
def continued_slowly(model, ids, push, tokens) -> list[int]:
    """Greedy: every token from the whole text so far, the block's output edited by hand at the first places."""

    def hook(module, args, output):
        resid = output if isinstance(output, torch.Tensor) else output[0]
        resid = resid.clone()
        n = min(len(push), len(ids))
        resid[:, :n] += push[:n]
        return resid if isinstance(output, torch.Tensor) else (resid, *output[1:])

    text = list(ids)
    with decoder_blocks(model)[LAYER].register_forward_hook(hook):
        for _ in range(tokens):
            logits = model(torch.tensor([text]), use_cache=False).logits[0, -1]
            text.append(logits[:103].argmax().item())  # 103 ends the text, and `generated` may not end
    return text[len(ids) :]


def steering(model, difference, layer, coefficient):
    return SteeringWrapper(model).steer(Intervention(difference, layer, coefficient, where=prompt_only))


def generated(model, ids, tokens) -> list[int]:
    given = torch.tensor([ids])
    out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, min_new_tokens=tokens,
                         do_sample=False, pad_token_id=0, eos_token_id=103)  # fmt: skip
    return out[0, len(ids) :].tolist()


def test_differences_are_front_aligned_and_padded_with_spaces():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    found = prompt_difference(model, tokenizer, "I love you", "Hate", [LAYER, 2])
    space = tokenizer(" ", add_special_tokens=False).input_ids
    love, hate = prompt_ids(tokenizer, "I love you"), prompt_ids(tokenizer, "Hate") + space * 6
    assert love[0] == hate[0] == tokenizer.bos_token_id
    for layer in (LAYER, 2):
        expected = stream(model, love, layer) - stream(model, hate, layer)
        torch.testing.assert_close(found.at(layer)[0], expected, atol=1e-5, rtol=1e-4)
        assert not found.at(layer)[0][0].any(), "both begin with the same token"
        assert (found.at(layer)[0][1:].norm(dim=1) > 1e-3).all()
    there_and_back = prompt_difference(model, tokenizer, "Hate", "I love you", [LAYER])
    torch.testing.assert_close(there_and_back.at(LAYER), -found.at(LAYER))
    assert found.source.behavior == "'I love you' minus 'Hate'"


def test_a_prompt_begins_with_one_bos_whatever_its_tokenizer_adds():
    plain, habitual = tiny_tokenizer(), tiny_tokenizer()
    marks = [("<s>", plain.bos_token_id), ("</s>", plain.eos_token_id)]
    habitual.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    assert len(habitual("Hate").input_ids) == 6
    assert prompt_ids(habitual, "Hate") == prompt_ids(plain, "Hate")
    with pytest.raises(ValueError, match="contrast with a single space"):
        prompt_ids(habitual, "")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", ["What do you think of me?", "We"])
def test_generation_equals_the_slow_definition(family, prompt):
    """ "We" is shorter than the difference: what is generated at the places that are left is not edited."""
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    difference = prompt_difference(model, tokenizer, "I love you", "Hate", [LAYER])
    ids = prompt_ids(tokenizer, prompt)
    before = generated(model, ids, 8)
    with steering(model, difference, LAYER, 3.0):
        found = generated(model, ids, 8)
    assert found == continued_slowly(model, ids, 3.0 * difference.at(LAYER)[0], 8)
    assert generated(model, ids, 8) == before, "the model is left as it was"
    assert not any(module._forward_pre_hooks for module in model.modules())
    with steering(model, difference, LAYER, 0.0):
        assert generated(model, ids, 8) == before


def test_pads_on_the_left_and_beams():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    difference = prompt_difference(model, tokenizer, "I love you", "Hate", [LAYER])
    prompts = [prompt_ids(tokenizer, text) for text in ("What do you think of me?", "We")]
    ids, mask = pad(prompts, 0, side="left")
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": 103}
    wrapper = SteeringWrapper(model)
    with steering(model, difference, LAYER, 3.0):
        together = wrapper.generate(ids, mask, **how)[:, ids.shape[1] :].tolist()
        alone = [generated(model, prompt, 6) for prompt in prompts]
        beams = model.generate(ids, attention_mask=mask, num_beams=2, **how)[:, ids.shape[1] :].tolist()
        beam = [model.generate(torch.tensor([p]), num_beams=2, **how)[0, len(p) :].tolist() for p in prompts]
    assert together == alone
    assert beams == beam
    assert together[0] != generated(model, prompts[0], 6)


def test_the_stream_of_the_first_pass_only():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    difference = prompt_difference(model, tokenizer, "I love you", "Hate", [LAYER])
    ids = prompt_ids(tokenizer, "Who are you")
    plain = stream(model, ids)
    written = []
    with steering(model, difference, LAYER, 2.0):
        keep = decoder_blocks(model)[LAYER].register_forward_hook(lambda m, a, out: written.append(out))
        cache = model(torch.tensor([ids])).past_key_values
        model(torch.tensor([[7, 8]]), past_key_values=cache)
    keep.remove()
    expected = plain.clone()
    n = min(len(ids), len(difference.at(LAYER)[0]))
    expected[:n] += 2.0 * difference.at(LAYER)[0][:n]
    torch.testing.assert_close(written[0][0], expected, atol=1e-5, rtol=1e-4)
    assert written[1].shape[1] == 2


def test_clear_errors():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with pytest.raises(ValueError, match="contrast with a single space"):
        prompt_difference(model, tokenizer, "Love", "")
    assert _space(lambda text, **options: SimpleNamespace(input_ids=[5, 7])) == 7, "the token behind a prefix"
    found = prompt_difference(model, tokenizer, "Love", " ", [LAYER])
    with pytest.raises(KeyError, match=r"layer 2 was not recorded, these were: \[1\]"):
        found.at(2)
    with pytest.raises(ValueError, match="no layer 9"), steering(model, found, 9, 1.0):
        pass
    with pytest.raises(RuntimeError, match="stop"), steering(model, found, LAYER, 1.0):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@needs_shared
def test_two_prompts_on_a_real_model():
    model, tokenizer = load_model(str(SHARED / "models" / "craftgpt"))
    difference = prompt_difference(model, tokenizer, "i love you", "i hate you", [2])
    ids = prompt_ids(tokenizer, "i think that you are")
    before = generated(model, ids, 12)
    with steering(model, difference, 2, 5.0):
        steered = generated(model, ids, 12)
    assert steered != before
    assert generated(model, ids, 12) == before
    with pytest.raises(ValueError, match="no token for a space, so give two prompts of as many tokens"):
        prompt_difference(model, tokenizer, "i love you", "i", [2])
