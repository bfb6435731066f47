"""CAAModule: a frozen model in; its vector, scores or steered texts out, whatever devices a Trainer gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain, product
from typing import Any

import torch
from jaxtyping import Float
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from caa.data.behaviors import ContrastPair, Question, letter
from caa.data.chat import ChatFormat
from caa.evals.plan import Case, GridPlan
from caa.evals.tasks import answer_open, score_choices
from caa.extraction.extract import Everything, pair_texts, provenance, read_into
from caa.extraction.reader import ReadConfig, Text
from caa.hashing import lines_digest
from caa.lightning.asking import answers_by_setting, gathered, scored
from caa.lightning.data import Batch, CAADataModule
from caa.lightning.metrics import ChoiceTable, RunningMean, choice_score
from caa.models.blocks import check_layer, decoder_blocks, model_width
from caa.reports.naming import cell_fields, logged_name
from caa.runs.rows import Cell, Row
from caa.steering.operators import Operator, add
from caa.steering.scopes import Scope, after_prompt
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.activations import method_name
from caa.vectors.letters import letter_weights
from caa.vectors.methods import balanced_mean
from caa.vectors.vector import Provenance, SteeringVector


class CAAModule(LightningModule):
    """Contrastive Activation Addition under a Lightning Trainer. Nothing is trained.

    `trainer.fit` finds the vector (`module.vector`), `extract`'s own. `trainer.test` asks A/B questions and facts under
    every finetune, layer and multiplier, with `EvalGrid`'s scores. `trainer.predict` lets the steered model answer open
    questions. The last two leave their rows in `module.rows`, all rows in every process. All of them read a
    `CAADataModule`, and the numbers do not depend on how many processes share the work.

    The vector is the module's one parameter. The model is kept beside the module, not in it: its weights are in no
    checkpoint, and no strategy wraps, casts or trains them.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        layers: Sequence[int] | None = None,
        multipliers: Sequence[float] = (-1.0, 0.0, 1.0),
        finetunes: Sequence[str | None] = (None,),
        *,
        vector: SteeringVector | None = None,
        random_controls: int = 0,
        also: Mapping[str, SteeringVector] | None = None,
        reread: Mapping[str, SteeringVector] | None = None,
        operator: Operator = add,
        where: Scope = after_prompt,
        system_prompts: Sequence[str] = ("",),
        system: str | None = None,
        template: str | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        max_new_tokens: int = 48,
    ) -> None:
        """`layers` (default: all) are read by `fit`; `test` and `predict` steer them, one at a time.

        `model` may be a `SteeringWrapper` with finetunes, which `finetunes` names; None is the base, and full
        checkpoints stay loaded while there are batches. `vector`
        serves `test` and `predict` where nothing was fitted. The options from `random_controls` on are `EvalGrid`'s:
        more vectors, how and where they act, system prompts. Like `model`, vectors and functions are in no checkpoint's
        hyperparameters. ValueError for a layer that the model does not have.
        """
        super().__init__()
        self.automatic_optimization = False
        wrapper = model if isinstance(model, SteeringWrapper) else SteeringWrapper(model)
        self._beside = (wrapper, tokenizer)  # in a tuple, for as an attribute it would become a part of this module
        self.layers = sorted(set(range(len(decoder_blocks(wrapper.model))) if layers is None else layers))
        for layer in self.layers:
            check_layer(wrapper.model, layer)
        self.save_hyperparameters(
            {
                "layers": self.layers,
                "multipliers": [float(m) for m in dict.fromkeys(multipliers)],
                "finetunes": list(dict.fromkeys(finetunes)),
                "random_controls": random_controls,
                "system_prompts": list(dict.fromkeys(system_prompts)),
                "system": system,
                "template": template,
                "template_arguments": dict(template_arguments or {}),
                "max_new_tokens": max_new_tokens,
            }
        )
        shape = len(self.layers), model_width(wrapper.model)
        self.directions = nn.Parameter(torch.zeros(shape))
        self.source: Provenance | None = None
        self.mean, self.tables = RunningMean(*shape), nn.ModuleDict()
        self.rows: list[Row] = []
        self._digests: dict[int, str] = {}
        self._also, self._reread = dict(also or {}), dict(reread or {})
        self._operator, self._where = operator, where
        self._plan: GridPlan
        if vector is not None:
            self._keep(vector)

    @property
    def wrapper(self) -> SteeringWrapper:
        return self._beside[0]

    @property
    def tokenizer(self) -> Any:
        return self._beside[1]

    @property
    def chat(self) -> ChatFormat:
        """How every question is put."""
        chosen = self.hparams
        return ChatFormat(self.tokenizer, chosen["system"], chosen["template"], chosen["template_arguments"])

    @property
    def data(self) -> CAADataModule:
        """What the Trainer was given to read."""
        data: CAADataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    @property
    def vector(self) -> SteeringVector:
        """What `fit` found, a checkpoint held, or the caller gave; RuntimeError if there is none yet."""
        if self.source is None:
            raise RuntimeError("there is no vector yet: call trainer.fit(module, data), or give CAAModule(vector=...)")
        directions = self.directions.detach().clone()
        return SteeringVector(dict(zip(self.layers, directions, strict=True)), self.source)

    def _keep(self, vector: SteeringVector) -> None:
        with torch.no_grad():
            self.directions.copy_(torch.stack([vector.at(layer) for layer in self.layers]))
        self.source = vector.source

    def get_extra_state(self) -> dict[str, Any]:
        """The vector's history, which travels with it: into a checkpoint, and back from processes that were spawned."""
        return asdict(self.source) if self.source else {}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.source = Provenance(**{**state, "history": tuple(state["history"])}) if state else None

    def setup(self, stage: str) -> None:
        """Refuse what would give other numbers, and bring the model to this process's device."""
        self._check()
        if not getattr(self.wrapper.model, "hf_device_map", None):  # a model that was put somewhere stays there
            self.wrapper.to(self.trainer.strategy.root_device)

    def _check(self) -> None:
        if not isinstance(getattr(self.trainer, "datamodule", None), CAADataModule):
            raise TypeError("CAAModule reads a CAADataModule: trainer.fit(module, datamodule=CAADataModule(behavior))")
        if not isinstance(self.trainer.strategy, (DDPStrategy, SingleDeviceStrategy)):
            raise ValueError(
                f"{type(self.trainer.strategy).__name__} shards what is trained, and here nothing is. Use "
                "strategy='ddp' (a whole model for each process), or devices=1 and load_model(name, device='auto') "
                "(one model over all devices of a machine)."
            )
        if self.trainer.precision != "32-true":
            raise ValueError(
                f"precision={self.trainer.precision!r} would round the vector. Leave it out of the Trainer and load "
                "the model in the precision that you want: load_model(name, dtype='bfloat16')."
            )
        if self.wrapper.interventions:
            raise ValueError("the model is being steered already, so nothing would be unsteered: call unsteer() first")

    # fit

    def configure_optimizers(self) -> Optimizer:
        """One that moves nothing: Lightning counts its steps, and writes no checkpoint before the first."""
        return SGD([self.directions], lr=0.0)

    def on_train_epoch_start(self) -> None:
        self.mean.reset()
        self.mean.update(torch.zeros_like(self.directions), 0)  # a process that gets no pair has added nothing
        self._digests = {}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        if batch.items:
            texts = list(pair_texts(self.chat, batch.items))
            self.mean.update(self._read(texts, batch.items).to(self.device), len(texts))
            self._digests.update((place, text.digest()) for place, text in zip(batch.places, texts, strict=True))
        if self.trainer.is_last_batch:  # every process's last, for they all take equally many
            self._find()

    def _read(self, texts: Sequence[Text], pairs: Sequence[ContrastPair]) -> Float[Tensor, "layer d_model"]:
        """The mean difference of a few pairs, which are these texts.

        Each counts as in the whole, where every letter counts alike.
        """
        letters = self._letters()
        weights, config = letter_weights(letters), ReadConfig(batch_size=2 * len(pairs))
        counts = torch.tensor(
            [len(letters) * weights[letter(pair.positive) or ""] for pair in pairs], dtype=torch.float64
        )
        read = Everything()
        read_into(read, self.wrapper.model, self.tokenizer, texts, self.layers, config, len(texts))
        activations = read.stacked()
        sides = (activations[layer].double().unbind(1) for layer in self.layers)
        return torch.stack([(counts @ (up - down) / len(pairs)).float() for up, down in sides])

    def _letters(self) -> list[str]:
        return [letter(pair.positive) or "" for pair in self.data.items("pairs")]

    def _find(self) -> None:
        """Add up what all processes read."""
        result, digests = self.mean.compute(), sorted(gathered([*self._digests.items()]))
        about = self.wrapper.model, self.data.behavior.name, int(result["n"])
        source = provenance(*about, ReadConfig(), lines_digest(digest for _, digest in digests))
        directions = dict(zip(self.layers, result["mean"], strict=True))
        source = replace(source, method=method_name(balanced_mean, self._letters()))
        self._keep(SteeringVector(directions, source))
        self.optimizers().step()  # type: ignore[union-attr]

    def on_train_epoch_end(self) -> None:
        for layer, norm in self.vector.norms().items():
            self._note(f"norm/layer_{layer}", norm)
        self.trainer.should_stop = True  # a second epoch would find the same

    def _note(self, name: str, value: float) -> None:
        """Log a number that every process has: the maximum of equal numbers is that number, to the last bit."""
        self.log(name, torch.tensor(value, dtype=torch.float64), reduce_fx="max", sync_dist=True)

    # test and predict

    def _plan_of(self, tasks: Sequence[str]) -> GridPlan:
        """What `EvalGrid` would ask of these tasks."""
        chosen: Any = self.hparams
        return GridPlan(
            self.data.behavior,
            self.vector,
            self.layers,
            chosen.multipliers,
            chosen.finetunes,
            tasks,
            facts=self.data.facts,
            random_controls=chosen.random_controls,
            also=self._also,
            reread=self._reread,
            operator=self._operator,
            where=self._where,
            system_prompts=chosen.system_prompts,
            system=chosen.system,
            template=chosen.template,
            template_arguments=chosen.template_arguments,
        )

    def _answers(self, ask: Callable[..., Any], batch: Batch, **sizes: int) -> list[list[Any]]:
        """What `ask` answers to this batch, [case][question], in the order of the plan's cases."""
        answers: list[list[Any]] = []
        for asked_together in self._plan.rounds(batch.task) if batch.items else ():
            chat = self._plan.chat(self.tokenizer, asked_together.system_prompt)
            settings = [case.setting for case in asked_together.cases]
            with self.wrapper.finetune(asked_together.finetune):
                answers += answers_by_setting(ask, self.wrapper, chat, batch.items, settings, **sizes)
        return answers

    def _cases(self, task: str) -> list[Case]:
        return list(chain.from_iterable(asked_together.cases for asked_together in self._plan.rounds(task)))

    def on_test_epoch_start(self) -> None:
        self._plan = self._plan_of(self.data.tested)
        self.wrapper.keep_checkpoints()  # every batch asks all finetunes
        self.tables = nn.ModuleDict()
        for task in self.data.tested:
            table = ChoiceTable(len(self._cases(task)), len(self.data.items(task)))
            table.update((), torch.zeros(len(self._cases(task)), 0, 2))
            self.tables[task] = table
        self.tables.to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        answers = self._answers(score_choices, batch, batch_size=len(batch.items))
        if answers:
            p = [[(choice.p_matching, choice.p_opposite) for choice in choices] for choices in answers]
            self.tables[batch.task].update(batch.places, torch.tensor(p, dtype=torch.float64))  # type: ignore[operator]

    def on_test_epoch_end(self) -> None:
        self.wrapper.keep_checkpoints(False)
        self.rows = []
        for task, table in self.tables.items():
            p = table.compute().cpu()  # type: ignore[operator]
            for case, p_of_case in zip(self._cases(task), p, strict=True):
                self._report(case.cells, self.data.items(task), p_of_case)

    def _report(self, cells: Sequence[Cell], questions: Sequence[Question], p: Tensor) -> None:
        """Keep the rows of these cells, which share their answers, and log the mean score of what was asked."""
        pairs = [(question, pair) for question, pair in zip(questions, p.tolist(), strict=True) if pair[0] == pair[0]]
        for cell in cells:
            self.rows += [scored(cell, *pair) for pair in pairs]
            self._note(logged_name(cell), choice_score(p[:, 0], p[:, 1]).nanmean().item())

    def on_predict_epoch_start(self) -> None:
        self._plan, self.rows = self._plan_of(["open"]), []
        self.wrapper.keep_checkpoints()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """This batch's answers: the cell of each, the question's id, what was asked, and the text, not judged."""
        answers = self._answers(answer_open, batch, max_new_tokens=self.hparams["max_new_tokens"])
        rows: list[Row] = []
        for case, texts in zip(self._cases("open") if answers else (), answers, strict=True):
            for cell, (question, text) in product(case.cells, zip(batch.items, texts, strict=True)):
                rows.append(Row(cell, question.id, None, {"asked": question.text, "text": text}))
        self.rows += rows
        return [cell_fields(row.cell) | {"question": row.question} | row.evidence for row in rows]

    def on_predict_epoch_end(self) -> None:
        """Put every process's rows together, in the order of the cells and of the questions."""
        self.wrapper.keep_checkpoints(False)
        rows = {row.key: row for row in gathered(self.rows)}
        keys = [(cell, question.id) for cell, question in product(self._plan.cells(), self.data.items("open"))]
        self.rows = [rows[key] for key in keys if key in rows]
