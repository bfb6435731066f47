"""A behavior taught for or against by LoRA: TRL trains, PEFT saves, and beside it stands what was taught on what."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from caa.comparing import differences
from caa.data.behaviors import Behavior
from caa.data.chat import ChatFormat
from caa.files import replacing
from caa.hashing import json_digest
from caa.models.adapters import PROVENANCE, make_portable
from caa.models.blocks import context_length
from caa.models.fingerprint import fingerprint, has_fingerprint
from caa.models.names import model_name
from caa.models.restore import borrowed
from caa.models.targets import lora_config
from caa.training.config import FinetuneConfig, default_config
from caa.training.examples import Direction, check_lengths, tokenize, training_examples

logger = logging.getLogger(__name__)

Rows = Sequence[dict[str, list[int]]]
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
    progress: bool = True,
) -> Path:
    """Train a LoRA adapter that makes the model answer with the behavior ("positive") or against it ("negative").

    The examples are those of `training_examples`; the loss counts the answer and its end only. Training happens where
    the model is, CPU or accelerator, and the model itself is left as it was found. On a CPU the same call gives the
    same adapter, bit for bit.

    `out` becomes a folder that plain PEFT loads (`PeftModel.from_pretrained(model, out)`), with `caa.json` beside the
    weights: base, behavior, direction, data and settings. It appears when it is complete; until then checkpoints are
    kept in `<out>.partial`, and a killed finetune called again goes on from the last one. If `out` holds this very
    finetune, nothing is done.

    ValueError for a model that wears adapters already, an unknown direction, too few examples or too long ones;
    FileExistsError if `out` holds something else.
    """
    _check_plain(model)
    if config is None:
        n_examples = len(training_examples(behavior, direction))
        config = default_config(sum(p.numel() for p in model.parameters()), n_examples)
    chat = ChatFormat.of(chat)
    tokenizer = chat.tokenizer
    rows = tokenize(chat, training_examples(behavior, direction, config.open_share, config.seed), stops(model))
    check_lengths(rows, min(config.max_length, context_length(model, tokenizer)))
    record = _record(model, behavior, direction, rows, config)
    out = Path(out)
    partial = out.with_name(out.name + ".partial")
    if _holds(out, record, model):
        logger.info("%s holds this finetune already", out)
    else:
        if not _holds(partial, record, model):
            _start(partial, record)
        with borrowed(model):
            trained = _train(
                model, tokenizer, rows, config, partial, f"{behavior.name}, {direction}" if progress else ""
            )
        _write_record(trained, record)
        os.replace(trained, out)
    shutil.rmtree(partial, ignore_errors=True)
    return out


def stops(model: Any) -> list[int]:
    """The tokens at which the model's generation stops; none where its generation config does not say."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [ends] if isinstance(ends, int) else list(ends or ())


def _check_plain(model: Any) -> None:
    if getattr(model, "peft_config", None):
        raise ValueError(
            f"this model already wears adapters ({', '.join(model.peft_config)}), and a finetune starts from a plain "
            "one. Load the base again, or merge them first (`merge_and_unload`)."
        )


# What is recorded, and what is found there already


def _record(model: nn.Module, behavior: Behavior, direction: str, rows: Rows, config: FinetuneConfig) -> dict[str, Any]:
    return {
        "base": model_name(model),
        "base_fingerprint": fingerprint(model),
        "behavior": behavior.name,
        "direction": direction,
        "n_examples": len(rows),
        "data_hash": json_digest(rows),
        "config": asdict(config),
        "versions": {name: version(name) for name in ("caa", "torch", "transformers", "peft", "trl")},
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
    recorded = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    if has_fingerprint(model, recorded.get("base_fingerprint", "")):  # those of the first kind are written otherwise
        recorded["base_fingerprint"] = record["base_fingerprint"]
    if different := list(differences(_decisive(recorded), _decisive(record))):
        raise FileExistsError(f"{folder} holds another finetune: {'; '.join(different)}. Choose another folder.")
    return True


def _decisive(record: dict[str, Any]) -> dict[str, Any]:
    """What two records of the same finetune agree in, settings by their own names."""
    return {**{key: record.get(key) for key in DECISIVE}, **record.get("config", {})}


# Training


def _train(model: Any, tokenizer: Any, rows: Rows, config: FinetuneConfig, partial: Path, title: str) -> Path:
    """Train, from the last checkpoint in `partial` if there is one; the folder with the adapter. No title, no bar."""
    from caa.training.progress import StepBar

    with warnings.catch_warnings():  # TRL and PEFT still say gradient_checkpointing, which transformers has renamed
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        trainer = _trainer(model, tokenizer, rows, config, partial)
    with tqdm(desc=title, unit="step", disable=not title) as bar:
        trainer.add_callback(StepBar(bar))
        trainer.train(resume_from_checkpoint=_last_checkpoint(partial))
    # "auto" would look on the Hub whether the embeddings were resized; a LoRA on linear layers does not.
    trainer.model.save_pretrained(partial / "adapter", save_embedding_layers=False)
    make_portable(partial / "adapter", trainer.model)
    return partial / "adapter"


def _trainer(model: Any, tokenizer: Any, rows: Rows, config: FinetuneConfig, partial: Path) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTTrainer

    trainer = SFTTrainer(
        model=model,
        args=_arguments(partial, config, on_cpu=next(model.parameters()).device.type == "cpu"),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=copy.deepcopy(tokenizer),  # TRL gives it a pad token
        peft_config=lora_config(model, config.rank, config.alpha, config.dropout, config.target_modules),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(partial: Path, config: FinetuneConfig, on_cpu: bool) -> Any:
    from trl import SFTConfig

    arguments = SFTConfig(
        output_dir=str(partial),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup,
        max_length=None,  # checked already: TRL would cut
        router_aux_loss_coef=0.0,  # the routers of a mixture stay as they are
        seed=config.seed,
        use_cpu=on_cpu,
        bf16=config.bf16 and not on_cpu,
        gradient_checkpointing=config.gradient_checkpointing and not on_cpu,
        dataloader_pin_memory=not on_cpu,
        save_strategy="steps",
        save_steps=0.1,  # of all steps
        save_total_limit=2,  # one whole, should the job be killed while it writes the other
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # TRL refuses DataParallel, the default where several GPUs are visible
    return arguments


def _last_checkpoint(partial: Path) -> str | None:
    """The newest whole checkpoint: one whose state, which the trainer writes last, can be read."""
    states = sorted(partial.glob("checkpoint-*/trainer_state.json"), key=lambda p: int(p.parent.name.split("-")[1]))
    return next((str(state.parent) for state in reversed(states) if _is_json(state)), None)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
