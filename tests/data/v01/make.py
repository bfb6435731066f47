"""Makes the files beside it, with caa 0.1: PYTHONPATH=<a checkout of version 0.1> python make.py <an empty folder>."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from caa.evals.judges import Verdict
from peft import LoraConfig, get_peft_model

from caa import Behavior, EvalGrid, Intervention, SteeringWrapper, extract, load_behavior, load_model

LAYERS = [1, 2]


def by_length(question, answer: str) -> Verdict:
    return Verdict(float(len(answer) % 11)) if len(answer) % 4 else Verdict(None, "a multiple of four")


def main(out: Path) -> None:
    whole, other = load_behavior("myopic_reward"), load_behavior("refusal")
    behavior = Behavior(
        "few", pairs=whole.pairs[:12], ab_questions=whole.ab_questions[:4], open_questions=whole.open_questions[:2]
    )
    model, tokenizer = load_model("tiny-chat")
    vector = extract(model, tokenizer, behavior.pairs, LAYERS, behavior="few")
    stranger = extract(model, tokenizer, other.pairs[:12], LAYERS, behavior="refusal")
    torch.manual_seed(0)
    config = LoraConfig(r=1, lora_alpha=8, target_modules=["v_proj"], layers_to_transform=[2], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config, adapter_name="sft")
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(std=0.1)
    adapted.save_pretrained(out / "adapter")
    adapted.unload()
    model, tokenizer = load_model("tiny-chat")
    wrapper = SteeringWrapper(model)
    wrapper.load_adapter(out / "adapter" / "sft", "sft")
    with wrapper.finetune("sft"):
        reread = extract(wrapper.model, tokenizer, behavior.pairs, LAYERS, behavior="few")
    for name, saved in (("vector", vector), ("refusal", stranger), ("reread", reread)):
        saved.save(out / f"{name}.safetensors")
    grid = EvalGrid(
        behavior, vector, LAYERS, (-0.3, 0.0, 0.3), ("none", "sft"), ("ab", "open"), judge=by_length, random_controls=1,
        also={"refusal": stranger}, own={"sft": reread}, max_new_tokens=8,
    )  # fmt: skip
    grid.run(wrapper, tokenizer, out / "run", progress=False)
    with wrapper.finetune("sft"), wrapper.steer(Intervention(vector, 2, 0.3)):
        wrapper.save_pretrained(out / "steered", tokenizer)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
