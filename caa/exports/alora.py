"""A steered model in, an aLoRA adapter of PEFT out, which steers from the last token of the prompt on, as CAA does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from caa.data.chat import ChatFormat
from caa.exports.biases import biases
from caa.exports.folder import describe_export, new_export
from caa.exports.interventions import check_interventions
from caa.exports.parity import Parity, check_parity, probe
from caa.exports.peft import bias_config, bias_tensors, load_quietly, write_adapter
from caa.models.adapter_state import active_adapters
from caa.models.adapters import save_adapter
from caa.models.blocks import text_config
from caa.models.copies import plain_shell, shell
from caa.steering.scopes import after_prompt
from caa.steering.wrapper import SteeringWrapper

FINETUNE = "finetune"
"""The folder of the LoRA: an aLoRA is active after the prompt only, so the LoRA needs an adapter of its own."""
QUESTIONS = ("Would you wait?", "Count: 1 2", "Say yes")
_INSTEAD = "Nearest: `--to peft` and `--to merged` steer every token; `--scope after_prompt` makes another model"
_LOAD = 'model = PeftModel.from_pretrained(base, "this folder", adapter_name="steering")'
_LOAD_BOTH = f"""{_LOAD}
model.load_adapter("this folder/{FINETUNE}", "{FINETUNE}")
model.base_model.set_adapter(["steering", "{FINETUNE}"])  # PEFT looks for the token in the one loaded first"""


def to_alora(wrapper: SteeringWrapper, chat: ChatFormat | Any, out: str | Path) -> Path:
    """Write the vector as an aLoRA whose invocation token is the one that ends the prompts of the chat template.

    A LoRA that the wrapper wears is saved beside it, in `finetune`. ValueError, before anything is written, for what
    `to_peft` refuses, for other scopes than after the prompt, and for templates without such a token.
    """
    interventions = check_interventions(wrapper.interventions, [after_prompt], "peft-alora", _INSTEAD)
    wanted = biases(wrapper.model, interventions)
    if text_config(wrapper.model).model_type == "opt":
        raise ValueError(
            "this opt model lines the tokens of all rows up, and PEFT's aLoRA then loses them. " + _INSTEAD
        )
    chat = ChatFormat.of(chat)
    token = last_prompt_token(chat)
    active = active_adapters(wrapper.model)
    if len(active) > 1:
        raise ValueError(f"peft-alora takes one finetune, and these are active: {', '.join(active)}")
    with new_export(out) as scratch, torch.no_grad():
        config = bias_config(wrapper.model, wanted, alora_invocation_tokens=[token])
        write_adapter(scratch, wrapper.model, config, bias_tensors(wrapper.model, wanted))
        for name in active:
            (scratch / FINETUNE).mkdir()
            save_adapter(wrapper.model, name, scratch / FINETUNE)
        parity = _compare(wrapper, chat, token, scratch)
        describe_export(scratch, "peft-alora", wrapper.model, interventions, parity, _use(chat, token, active))
    return Path(out)


def last_prompt_token(chat: ChatFormat | Any) -> int:
    """The token that ends every prompt of the chat template, whatever was asked; ValueError if there is none."""
    ends = {ChatFormat.of(chat).encode(question)[-1] for question in QUESTIONS}
    if len(ends) > 1:
        raise ValueError(
            "peft-alora starts at a token of the chat template, and the prompts of this one end with the words of the "
            "question. Nearest: `--to peft --scope everywhere`"
        )
    return ends.pop()


def is_reserved(tokenizer: Any, token: int) -> bool:
    """Whether no answer holds this token by chance: it was added to the vocabulary, and is no piece of a word."""
    return token in tokenizer.get_added_vocab().values()


def _use(chat: ChatFormat, token: int, active: list[str]) -> str:
    tokenizer, arguments = chat.tokenizer, ", ".join(f"{name}={value!r}" for name, value in chat.arguments.items())
    told = f" Prompts are made with `apply_chat_template(..., {arguments})`." if arguments else ""
    last = repr(tokenizer.convert_ids_to_tokens(token))
    caution = (
        f"It steers from the last {last} on. Only the prompt's end holds that token, so it does so in `generate` and "
        "when whole texts are scored."
        if is_reserved(tokenizer, token)
        else f"It steers from the last {last} on, which answers may hold too. In `generate` that is the prompt's end, "
        "exactly; do not score whole texts with it."
    )
    load = _LOAD_BOTH if active else _LOAD
    return (
        f"```python\nfrom peft import PeftModel\n\n{load}\n```\n\n{caution}{told} PEFT has no beam search with aLoRA."
    )


def load_exported(model: Any, folder: Path) -> Any:
    """What the card tells the reader to do."""
    exported = load_quietly(model, folder, "steering")
    if (folder / FINETUNE).is_dir():
        exported = load_quietly(exported, folder / FINETUNE, FINETUNE)
        exported.base_model.set_adapter(["steering", FINETUNE])
    return exported.eval()


def _compare(wrapper: SteeringWrapper, chat: ChatFormat, token: int, folder: Path) -> Parity:
    """On prompts with answers behind them, token by token."""
    answers = probe(wrapper.model, 8)
    answers = torch.where(answers == token, (token + 1) % wrapper.model.config.vocab_size, answers)
    exported = load_exported(plain_shell(wrapper.model), folder)
    unsteered: Any = shell(wrapper.model)
    logits_of_prompts = []
    for question, answer in zip(QUESTIONS, answers, strict=False):
        prompt = torch.tensor(chat.encode(question), device=answers.device)
        ids = torch.cat([prompt, answer])[None]
        hook = wrapper(ids, prompt_lengths=torch.tensor([len(prompt)], device=ids.device))
        logits_of_prompts.append([output.logits[0] for output in (hook, exported(ids), unsteered(ids))])
    return check_parity(*(torch.cat(logits) for logits in zip(*logits_of_prompts, strict=True)))
