"""python recipes/any_finetune.py --out runs/any-finetune

One table of whatever finetunes there are: SFT and DPO for and against a behavior, all weights, a LoRA that plain PEFT
made in a loop of its own, trained while steered towards and away, and two adapters at once; each asked unsteered and
steered. Below it, what each finetune does to the residual stream at the last prompt token, beside the vector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from caa import Experiment, SteeringVector, SteeringWrapper, load_behavior, load_model
from caa.evals.moves import finetune_moves
from caa.training.config import FinetuneConfig, Training
from caa.training.examples import tokenize, training_examples

COLUMNS = {
    "dpo_for": Training("positive", method="dpo"),
    "dpo_against": Training("negative", method="dpo"),
    "full": Training("positive", weights="full"),
    "pushed": Training("positive", steered=0.3),
    "pulled": Training("positive", steered=-0.3),
}
GIVEN = "plain_peft"


def plain_peft(behavior: str, model: str, out: Path, steps: int) -> Path:
    """A LoRA as anybody makes one: PEFT, AdamW, one text after the other."""
    from peft import LoraConfig, get_peft_model

    if (out / "adapter_config.json").exists():
        return out
    base, tokenizer = load_model(model)
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    worn = get_peft_model(base, config).train()
    optimizer = torch.optim.AdamW((p for p in worn.parameters() if p.requires_grad), lr=2e-3)
    rows = tokenize(tokenizer, training_examples(load_behavior(behavior), "positive"))
    for place in torch.randperm(len(rows))[: steps * 4].tolist():
        row = rows[place]
        worn(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    worn.save_pretrained(str(out), save_embedding_layers=False)
    return out


def moves_of(experiment: Experiment, behavior: str, layer: int) -> str:
    """Markdown: what each finetune does to the stream at the last prompt token of the behavior's questions."""
    model, tokenizer = load_model(experiment.model)
    wrapper, name = SteeringWrapper(model), load_behavior(behavior).name
    folders = {column: experiment.out / "adapters" / f"{name}-{column}" for column in experiment.made}
    for column, folder in (folders | dict(experiment.given)).items():
        wrapper.load_finetune(folder, column)
    vector = SteeringVector.load(experiment.out / "vectors" / f"{name}.safetensors")
    questions = [question.text for question in load_behavior(behavior).ab_questions][: experiment.limit]
    columns = [column for column in experiment.finetunes if column != "none"]
    moves = finetune_moves(wrapper, tokenizer, questions, vector, [layer], columns)
    lines = ["| finetune | size of its move | cosine with the vector | shared by all prompts | vector re-read |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for column in columns:
        move = moves[column][layer]
        again = SteeringVector.load(experiment.out / "vectors" / f"{name}-{column}.safetensors").cosine(vector)[layer]
        lines.append(f"| {column} | {move.size:.3f} | {move.cosine:+.2f} | {move.shared:.2f} | {again:.3f} |")
    return "\n".join(lines)


def run(
    out: Path,
    behavior: str = "myopic_reward",
    model: str = "tiny-chat",
    layer: int = 2,
    multipliers: tuple[float, ...] = (-0.3, 0.0, 0.3),
    steps: int = 24,
    limit: int | None = None,
) -> None:
    """Make what is missing, ask, and print both tables.

    Args:
        out: the run's folder; a stopped run goes on.
        behavior: a built-in behavior, or a path to one of your own.
        model: an embedded model, a folder, or a name on the Hub.
        layer: the layer to steer (output of that block, counted from 0).
        multipliers: how often the vector is added.
        steps: optimizer steps of each finetune.
        limit: ask only the first questions, as a trial.
    """
    training: dict[str, Any] = {"rank": 8, "alpha": 16, "batch_size": 8, "gradient_accumulation": 1}
    experiment = Experiment(
        out,
        [behavior],
        model,
        layer,
        multipliers,
        finetunes=["none", "positive", "negative", *COLUMNS, GIVEN, f"dpo_for+{GIVEN}"],
        trainings=COLUMNS,
        given={GIVEN: str(plain_peft(behavior, model, out / GIVEN, steps))},
        tasks=["ab"],
        reread=True,
        training=FinetuneConfig(learning_rate=2e-3, max_steps=steps, bf16=False, **training),
        limit=limit,
        batch_size=64,
    )
    experiment.run()
    moves = moves_of(experiment, behavior, layer)
    (out / "moves.md").write_text(moves + "\n", encoding="utf-8")
    print((out / "tables.md").read_text(encoding="utf-8"), moves, sep="\n")


if __name__ == "__main__":
    auto_cli(run, as_positional=False)
