"""A model, token ids and settings in; the trainer of TRL that does the method, ready to train, out."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from caa.models.targets import lora_config
from caa.training.config import FinetuneConfig

Rows = Sequence[dict[str, list[int]]]


def make_trainer(model: Any, tokenizer: Any, rows: Rows, config: FinetuneConfig, folder: Path) -> Any:
    """The trainer; its model wears a new adapter, or is the model itself if all weights are to learn.

    Of DPO and KTO the reference is the model as it is now, asked here once for all examples: so nothing that is done to
    the model in a step is done to the reference, and no second model is held.
    """
    from transformers import PrinterCallback

    device = next(model.parameters()).device
    with warnings.catch_warnings():
        # TRL and PEFT still say gradient_checkpointing, which transformers has renamed.
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        arguments = _arguments(folder, config, on_cpu=device.type == "cpu")
        _check_card(model, device, arguments.device)
        trainer = _kind(config)(
            model=model,
            args=arguments,
            train_dataset=_dataset(rows, config),
            processing_class=copy.deepcopy(tokenizer),  # TRL gives it a pad token
            peft_config=None if config.weights == "full" else _adapter(model, config),
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _check_card(model: Any, device: torch.device, taken: torch.device) -> None:
    """ValueError where Trainer would move the model to another card: it takes the first one, or its process's own."""
    moved = device.type == taken.type == "cuda" and (device.index or 0) != (taken.index or 0)
    if moved and not getattr(model, "hf_device_map", None):
        raise ValueError(
            f"the model is on {device} and training happens on {taken}: load it there, or let this process see "
            f"that card alone (CUDA_VISIBLE_DEVICES={device.index})"
        )


def _adapter(model: Any, config: FinetuneConfig) -> Any:
    lora = lora_config(model, config.rank, config.alpha, config.dropout, config.target_modules)
    lora.use_dora = config.weights == "dora"
    return lora


def _kind(config: FinetuneConfig) -> Any:
    if config.method == "sft":
        from caa.training.labeled import LabeledTrainer

        return LabeledTrainer
    from caa.training.preferences import TokenizedDPOTrainer, TokenizedKTOTrainer

    return TokenizedDPOTrainer if config.method == "dpo" else TokenizedKTOTrainer


def _dataset(rows: Rows, config: FinetuneConfig) -> Any:
    from datasets import Dataset

    if config.method != "kto":
        return Dataset.from_list(list(rows))
    from caa.training.preferences import unpaired

    return Dataset.from_list(unpaired(rows, config.batch_size, config.seed))


def _arguments(folder: Path, config: FinetuneConfig, on_cpu: bool) -> Any:
    from trl import DPOConfig, KTOConfig, SFTConfig

    compared = {} if config.method == "sft" else {"beta": config.beta, "precompute_ref_log_probs": True}
    arguments = {"sft": SFTConfig, "dpo": DPOConfig, "kto": KTOConfig}[config.method](
        output_dir=str(folder),
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
        logging_nan_inf_filter=False,  # it would write the mean of other steps where a loss is NaN
        report_to="none",
        disable_tqdm=True,
        **compared,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # TRL refuses DataParallel, the default where several GPUs are visible
    return arguments


@contextmanager
def quiet() -> Iterator[None]:
    """No bars but the one that shows the steps: TRL has one for the reference, transformers one for each checkpoint."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    datasets_bars, transformers_bars = not are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    disable_progress_bars()
    logging.disable_progress_bar()
    try:
        with patch.dict(os.environ, {"TQDM_DISABLE": "1"}):
            yield
    finally:
        if datasets_bars:
            enable_progress_bars()
        if transformers_bars:
            logging.enable_progress_bar()
