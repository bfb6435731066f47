"""A behavior taught for or against: TRL trains, PEFT saves, and beside it stands what was taught on what, and how."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from caa.callables import lasting_name
from caa.comparing import differences
from caa.data.behaviors import Behavior
from caa.data.chat import ChatFormat
from caa.files import only_maker, replacing
from caa.hashing import json_digest
from caa.models.adapters import PROVENANCE, make_portable, read_record
from caa.models.blocks import context_length, end_tokens
from caa.models.fingerprint import fingerprint, has_fingerprint
from caa.models.names import model_name
from caa.models.restore import borrowed
from caa.steering.intervention import Intervention
from caa.steering.scopes import everywhere
from caa.steering.state import check_unsteered
from caa.training.config import FinetuneConfig, Method, Weights, default_config
from caa.training.examples import (
    FEWEST,
    Direction,
    Example,
    check_lengths,
    tokenize,
    tokenize_preferences,
    training_examples,
)
from caa.training.reporting import ReportTo, check_installed, report
from caa.training.trainers import Rows, make_trainer, quiet
from caa.untrusted import plain, read_json
from caa.vectors.vector import SteeringVector, vector_hash

logger = logging.getLogger(__name__)

Steering = Sequence[Intervention]
FINISHED = "finished"
"""Where a finetune lies, in its `.partial` folder, before it is put in place."""
DECISIVE = ("base_fingerprint", "behavior", "direction", "data_hash")
"""Two finetunes that agree in these and in their settings are the same; the versions may differ."""


def finetune(
    model: nn.Module,
    chat: ChatFormat | Any,
    behavior: Behavior,
    direction: Direction,
    out: str | Path,
    config: FinetuneConfig | None = None,
    *,
    steered_by: Steering = (),
    progress: bool = True,
    report_to: ReportTo = "none",
) -> Path:
    """Train an adapter that makes the model answer with the behavior ("positive") or against it ("negative").

    The examples are those of `training_examples`; everything else is as in `finetune_on`.
    """
    _check_plain(model)
    config = config or config_for(model, training_examples(behavior, direction))
    examples = training_examples(behavior, direction, config.open_share, config.seed)
    taught = {"behavior": behavior.name, "direction": direction}
    return _finetune(model, ChatFormat.of(chat), examples, Path(out), config, taught, steered_by, progress, report_to)


def finetune_on(
    model: nn.Module,
    chat: ChatFormat | Any,
    examples: Sequence[Example],
    out: str | Path,
    config: FinetuneConfig | None = None,
    *,
    name: str = "own data",
    steered_by: Steering = (),
    progress: bool = True,
    report_to: ReportTo = "none",
) -> Path:
    """Train a LoRA adapter, or with `config.weights` a DoRA or all weights, on examples of any kind.

    The loss counts the answer and its end only. With `steered_by` each step is steered by these interventions (see
    `SteeringCallback`), and the result is not. Training happens where the model is, CPU or accelerator, and the model
    itself is left as it was found. On a CPU the same call gives the same adapter, bit for bit.

    `out` becomes a folder that plain PEFT loads (`PeftModel.from_pretrained(model, out)`), or plain transformers if all
    weights learn, with `caa.json` beside the weights: base, data, settings. It appears when it is complete; until then
    checkpoints are kept in `<out>.partial`, and a killed finetune called again goes on from the last one. If `out`
    holds this very finetune, nothing is done. `report_to` shows each step's loss elsewhere, by Trainer's integrations.

    ValueError for a model that wears adapters already, too few examples or too long ones, DPO or KTO of examples
    without a rejected answer or steered at other tokens than all, a model on another card than Trainer's, and
    (`DivergedError`) where the loss is no number any more, of which nothing is kept; FileExistsError if `out` holds
    something else, BlockingIOError while another process trains it.
    """
    _check_plain(model)
    if len(examples) < FEWEST:
        raise ValueError(f"these are {len(examples)} examples; a finetune needs {FEWEST} or more")
    config = config or config_for(model, examples)
    taught = {"behavior": name, "direction": ""}
    return _finetune(model, ChatFormat.of(chat), examples, Path(out), config, taught, steered_by, progress, report_to)


def config_for(
    model: nn.Module, examples: Sequence[Example], method: Method = "sft", weights: Weights = "lora"
) -> FinetuneConfig:
    """The settings that suit the model's size and the number of examples."""
    return default_config(sum(p.numel() for p in model.parameters()), len(examples), method, weights)


def _finetune(
    model: nn.Module,
    chat: ChatFormat,
    examples: Sequence[Example],
    out: Path,
    config: FinetuneConfig,
    taught: dict[str, str],
    steered_by: Steering,
    progress: bool,
    report_to: ReportTo,
) -> Path:
    check_installed(report_to)
    rows = (tokenize if config.method == "sft" else tokenize_preferences)(chat, examples, end_tokens(model))
    check_lengths(rows, min(config.max_length, context_length(model, chat.tokenizer)))
    _check_scopes(config, steered_by)
    record = _record(model, taught, rows, config, steered_by)
    partial = out.with_name(out.name + ".partial")
    with only_maker(out):
        if _holds(out, record, model):
            logger.info("%s holds this finetune already", out)
        else:
            if not _holds(partial, record, model):
                _start(partial, record)
            title = plain(", ".join(filter(None, taught.values()))) if progress else ""
            with borrowed(model), quiet(), _dropped_if_diverged(partial):
                trained = _train(model, chat.tokenizer, rows, config, partial, steered_by, title, report_to)
            _write_record(trained, record)
            os.replace(trained, out)
        shutil.rmtree(partial, ignore_errors=True)
    return out


@contextmanager
def _dropped_if_diverged(partial: Path) -> Iterator[None]:
    """A run without numbers leaves no checkpoint: whoever trains again with other settings begins anew."""
    from caa.training.finite import DivergedError

    try:
        yield
    except DivergedError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_plain(model: Any) -> None:
    check_unsteered(model, "a finetune")
    if getattr(model, "peft_config", None):
        raise ValueError(
            f"this model already wears adapters ({', '.join(model.peft_config)}), and a finetune starts from a plain "
            "one. Load the base again, or merge them first (`merge_and_unload`)."
        )


def _check_scopes(config: FinetuneConfig, steered_by: Steering) -> None:
    """Only labels say where a prompt ends, and trainers of preferences give the model none."""
    for intervention in steered_by if config.method != "sft" else ():
        if intervention.where is not everywhere:
            raise ValueError(
                f"{config.method} does not say where prompts end, so that it is steered at all tokens or at none: "
                f"give where=caa.scopes.everywhere ({intervention})"
            )


# What is recorded, and what is found there already


def _record(
    model: nn.Module, taught: dict[str, str], rows: Rows, config: FinetuneConfig, steered_by: Steering
) -> dict[str, Any]:
    return {
        "base": model_name(model),
        "base_fingerprint": fingerprint(model),
        **taught,
        "n_examples": len(rows),
        "data_hash": json_digest(rows),
        "steered_by": [_pushed(intervention) for intervention in steered_by],
        "config": asdict(config),
        "versions": {name: version(name) for name in ("caa", "torch", "transformers", "peft", "trl")},
    }


def _pushed(intervention: Intervention) -> dict[str, Any]:
    """An intervention in words, and what they leave open."""
    if not isinstance(intervention.vector, SteeringVector):
        raise ValueError("a recording belongs to the prompts that it was made of, so no training can be steered by it")
    return {
        "words": str(intervention),
        "vector": vector_hash(intervention.vector),
        "source_layer": intervention.source_layer,
        "multiplier": intervention.strengths.flatten().tolist(),
        "operator": lasting_name(intervention.operator),
        "where": lasting_name(intervention.where),
    }


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / PROVENANCE).write_text(json.dumps(record, indent=2), encoding="utf-8")


def _start(partial: Path, record: dict[str, Any]) -> None:
    with replacing(partial) as scratch:  # so that there is never a partial finetune that does not say which it is
        _write_record(scratch, record)


def _holds(folder: Path, record: dict[str, Any], model: nn.Module) -> bool:
    """Whether this very finetune is there already; False for an empty place, FileExistsError for anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / PROVENANCE).is_file():
        raise FileExistsError(f"{folder} holds something that is no finetune of this project; choose another folder")
    recorded = read_record(folder)
    if has_fingerprint(model, recorded.get("base_fingerprint", "")):  # those of the first kind are written otherwise
        recorded["base_fingerprint"] = record["base_fingerprint"]
    if different := list(differences(_decisive(recorded), _decisive(record))):
        raise FileExistsError(f"{folder} holds another finetune: {'; '.join(different)}. Choose another folder.")
    return True


def _decisive(record: dict[str, Any]) -> dict[str, Any]:
    """What two records of the same finetune agree in, settings by their own names; earlier versions wrote fewer."""
    known = {key: record.get(key) for key in DECISIVE}
    return {**known, "steered_by": record.get("steered_by", []), **asdict(FinetuneConfig()), **record.get("config", {})}


# Training


def _train(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    config: FinetuneConfig,
    partial: Path,
    steered_by: Steering,
    title: str,
    report_to: ReportTo,
) -> Path:
    """Train, from the last checkpoint in `partial` if there is one; the folder with the result. No title, no bar."""
    from caa.training.finite import FiniteSteps, check_learned
    from caa.training.progress import StepBar

    learner = copy.deepcopy(model).float().requires_grad_(True) if config.weights == "full" else model
    trainer = make_trainer(learner, tokenizer, rows, config, partial)
    report(trainer, report_to, partial.with_suffix(""))
    with tqdm(desc=title, unit="step", disable=not title) as bar, _steered(trainer, steered_by):
        trainer.add_callback(StepBar(bar))
        trainer.add_callback(FiniteSteps())
        trainer.train(resume_from_checkpoint=_last_checkpoint(partial))
        check_learned(trainer.model, config.learning_rate)
    finished = partial / FINISHED
    if config.weights == "full":
        trainer.model.to(model.dtype).save_pretrained(finished)
        tokenizer.save_pretrained(finished)
        return finished
    # "auto" would look on the Hub whether the embeddings were resized; a LoRA on linear layers does not.
    trainer.model.save_pretrained(finished, save_embedding_layers=False)
    make_portable(finished, trainer.model)
    return finished


@contextmanager
def _steered(trainer: Any, steered_by: Steering) -> Iterator[None]:
    """Each step of the trainer is steered, and nothing else."""
    if not steered_by:
        yield
        return
    from caa.training.callback import SteeringCallback

    with SteeringCallback(*steered_by) as steering:
        trainer.add_callback(steering)
        yield


def _last_checkpoint(partial: Path) -> str | None:
    """The newest whole checkpoint: one whose state, which the trainer writes last, can be read."""
    states = sorted(partial.glob("checkpoint-*/trainer_state.json"), key=lambda p: int(p.parent.name.split("-")[1]))
    return next((str(state.parent) for state in reversed(states) if _is_json(state)), None)


def _is_json(path: Path) -> bool:
    try:
        read_json(path)
    except ValueError:
        return False
    return True
