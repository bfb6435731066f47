"""python recipes/any_finetune.py --out runs/any-finetune

One table of whatever finetunes there are: those of `caa run finetunes`, which are SFT and DPO for and against a
behavior, all weights, and one trained while steered, beside a LoRA that plain PEFT made in a loop of its own; each
asked unsteered, steered both ways, and with the direction zeroed out. Then what each does to the residual stream at
the last prompt token. For a real chat model: --experiment finetunes-smollm2.
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from jsonargparse import auto_cli
from peft import LoraConfig, get_peft_model

from caa import load_behavior, load_model
from caa.cli import main
from caa.cli.runs import config_path
from caa.data.sources import BUILTIN
from caa.gallery import Gallery
from caa.training.examples import tokenize, training_examples

GIVEN = "plain-peft"


def plain_peft(behavior: str, model: str, folder: Path, examples: int) -> None:
    """A LoRA as anybody makes one: PEFT, AdamW, one text after the other."""
    out = folder / load_behavior(behavior).name
    if (out / "adapter_config.json").exists():
        return
    base, tokenizer = load_model(model)
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    worn = get_peft_model(base, config).train()
    rate = 2e-3 if base.num_parameters() < 50_000_000 else 5e-4
    optimizer = torch.optim.AdamW((p for p in worn.parameters() if p.requires_grad), lr=rate)
    rows = tokenize(tokenizer, training_examples(load_behavior(behavior), "positive"))
    for place in torch.randperm(len(rows))[:examples].tolist():
        row = rows[place]
        worn(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    worn.save_pretrained(str(out), save_embedding_layers=False)


def run(
    out: Path,
    experiment: str = "finetunes",
    behaviors: list[str] | None = None,
    steps: int | None = None,
    limit: int | None = None,
) -> None:
    """Make what is missing, ask, print the tables, and draw them and the moves.

    Args:
        out: the run's folder; a stopped run goes on.
        experiment: of `caa run`, by name, or a file of yours: the model, the finetunes, the multipliers, the settings.
        behaviors: in place of the experiment's.
        steps: optimizer steps of each finetune, in place of the experiment's.
        limit: ask only the first questions, as a trial.
    """
    settings = yaml.safe_load(config_path(experiment).read_text(encoding="utf-8"))
    behaviors = behaviors or settings.get("behaviors", list(BUILTIN))
    steps = steps or settings["training"]["max_steps"]
    examples = steps * settings["training"]["batch_size"]
    for behavior in behaviors:
        plain_peft(behavior, settings["model"], out / GIVEN, examples)
    settings |= {"out": str(out), "behaviors": behaviors, "limit": limit, "figures": False}
    settings |= {"finetunes": [*settings["finetunes"], GIVEN], "given": {GIVEN: f"{out / GIVEN}/{{behavior}}"}}
    settings["training"]["max_steps"] = steps
    path = out / "any_finetune.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    if main(["run", str(path)]):
        raise SystemExit(1)
    gallery = Gallery(out)
    for figure in (*gallery.of_rows(), *gallery.of_moves()):
        print(*figure.save(out / "figures"), sep="\n")


if __name__ == "__main__":
    auto_cli(run, as_positional=False)
