"""Any finetune as a column: a full checkpoint, several adapters at once, a merged one; asked as if alone."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from slow import hooked

from caa import Behavior, Question, SteeringVector, SteeringWrapper
from caa.data.chat import ChatFormat, common_prefix
from caa.evals.grid import EvalGrid
from caa.lightning.data import CAADataModule
from caa.lightning.module import CAAModule
from caa.models.checkpoints import load_alike
from caa.playground.session import Session, Setting
from caa.preflight import finetune_problems
from caa.runs.rows import Row, VectorRef, read_rows
from caa.steering.intervention import Intervention
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
QUESTIONS = tuple(Question(f"Wait {i * 11}?\n (A) Yes\n (B) No", *("(A)", "(B)")[:: (-1) ** i]) for i in range(3))
BEHAVIOR = Behavior("myopia", ab_questions=QUESTIONS)
OWN = SteeringVector({1: torch.randn(32, generator=torch.Generator().manual_seed(1))})
REREAD = SteeringVector({1: torch.randn(32, generator=torch.Generator().manual_seed(2))})


def saved_lora(folder: Path, seed: int) -> Path:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(tiny_model(), config).save_pretrained(folder, save_embedding_layers=False)
    return folder


def save_model(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def moved_model(seed: int = 3) -> Any:
    """The tiny model, all of whose weights are other ones."""
    torch.manual_seed(seed)
    model = tiny_model()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) / 20
    return model


@pytest.fixture(scope="module")
def finetunes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from peft import PeftModel

    folder = tmp_path_factory.mktemp("finetunes")
    adapters = {name: saved_lora(folder / name, seed) for seed, name in enumerate(("helpful", "positive"))}
    merged = PeftModel.from_pretrained(tiny_model(), str(adapters["helpful"])).merge_and_unload()
    checkpoints = {"full": moved_model(), "merged": merged}
    return adapters | {name: save_model(model, folder / name) for name, model in checkpoints.items()}


def slow_model(name: str | None, finetunes: dict[str, Path]) -> Any:
    """The model of one column, alone in memory, of plain weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if name in ("full", "merged"):
        return AutoModelForCausalLM.from_pretrained(finetunes[name]).eval()
    model = tiny_model()
    for part in name.split("+") if name else ():
        model = PeftModel.from_pretrained(model, str(finetunes[part])).merge_and_unload()
    return model.eval()


@torch.no_grad()
def slow_score(model: Any, question: Question, multiplier: float, direction: torch.Tensor) -> float:
    """p(match) / (p(A) + p(B)) at the letter, one text, hooked from the last prompt token on."""
    chat = ChatFormat(TOKENIZER)
    right, wrong = (chat.encode(question.text, answer) for answer in (question.matching, question.opposite))
    letter = common_prefix(right, wrong)
    places = range(len(chat.encode(question.text)) - 1, letter)
    with hooked(model, 1, lambda resid: resid + multiplier * direction, places):
        odds = model(input_ids=torch.tensor([right[:letter]])).logits[0, -1].softmax(-1)
    return float(odds[right[letter]] / (odds[right[letter]] + odds[wrong[letter]]))


COLUMNS = [None, "helpful", "helpful+positive", "full", "merged"]


def grid(**changes: Any) -> EvalGrid:
    return replace(EvalGrid(BEHAVIOR, OWN, [1], (-1.0, 0.0, 1.0), COLUMNS, ["ab"], reread={"full": REREAD}), **changes)


def wrapper_of(finetunes: dict[str, Path]) -> SteeringWrapper:
    wrapper = SteeringWrapper(tiny_model())
    for name, path in finetunes.items():
        wrapper.load_finetune(path, name)
    return wrapper


def test_every_cell_is_that_model_alone(finetunes: dict[str, Path], tmp_path: Path) -> None:
    """A killed run goes on, and loads no checkpoint whose rows are there."""
    wrapper = wrapper_of(finetunes)
    assert grid().run(wrapper, TOKENIZER, tmp_path, progress=False) == (5 * 3 + 2) * 3
    rows = read_rows(tmp_path / "rows.jsonl")
    asked = {question.id: question for question in QUESTIONS}
    models = {name: slow_model(name, finetunes) for name in COLUMNS}
    for row in rows:
        vector = REREAD if row.cell.vector == VectorRef("reread") else OWN
        expected = slow_score(models[row.cell.finetune], asked[row.question], row.cell.multiplier, vector.at(1))
        assert row.score == pytest.approx(expected, abs=1e-5), row.cell
    assert len({round(row.score or 0, 4) for row in rows if row.cell.finetune != "merged"}) == (4 * 3 + 2) * 3
    known = json.loads((tmp_path / "run.json").read_text())["settings"]["behaviors"]["myopia"]["finetunes"]
    assert len(set(known.values())) == 4
    assert known["helpful+positive"].startswith(known["helpful"] + "+")
    kept = [row.to_json() for row in rows if row.cell.finetune != "helpful+positive"]
    (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in kept))
    wrapper._checkpoints["full"] = replace(wrapper._checkpoints["full"], path="not there")
    assert grid().run(wrapper, TOKENIZER, tmp_path, progress=False) == 9
    again = {row.key: row for row in read_rows(tmp_path / "rows.jsonl")}
    assert again == {row.key: row for row in rows}


def test_another_checkpoint_under_the_same_name_is_not_mixed_in(finetunes: dict[str, Path], tmp_path: Path) -> None:
    grid(finetunes=["full"]).run(wrapper_of(finetunes), TOKENIZER, tmp_path / "out", progress=False)
    others = finetunes | {"full": save_model(moved_model(seed=9), tmp_path / "other")}
    with pytest.raises(FileExistsError, match=r"finetunes\.full was"):
        grid(finetunes=["full"]).run(wrapper_of(others), TOKENIZER, tmp_path / "out", progress=False)


def test_a_checkpoint_takes_the_models_place_and_gives_it_back(finetunes: dict[str, Path]) -> None:
    wrapper, ids = wrapper_of(finetunes), torch.tensor([[1, 20, 21, 22]])
    home, names = wrapper.model, list(wrapper.state_dict())
    assert wrapper.finetunes == ["helpful", "positive", "full", "merged"]
    with wrapper.steer(Intervention(OWN, 1, 2.0)):
        with wrapper.finetune(None):
            plain = wrapper(ids).logits
        with pytest.raises(RuntimeError, match="on the way"), wrapper.finetune("full"):
            full = slow_model("full", finetunes)
            full.model.layers[1].register_forward_hook(lambda *call: add_from_last(call[2]))
            assert torch.allclose(wrapper(ids).logits, full(ids).logits, atol=1e-5)
            assert wrapper.adapters == ["helpful", "positive"]
            with wrapper.finetune(None):
                assert torch.equal(wrapper(ids).logits, plain)
            inner = wrapper.model
            raise RuntimeError("on the way")
    assert wrapper.model is home
    assert list(wrapper.state_dict()) == names
    assert not any(module._forward_hooks for module in (*inner.modules(), *home.modules()))
    wrapper.unload_adapters()
    assert wrapper.finetunes == []


def test_a_checkpoint_that_is_kept_is_loaded_once_and_answers_alike(
    finetunes: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The playground's answers and Lightning's batches ask all finetunes by turns."""
    loads: list[str] = []

    def counted(path: str, base: Any) -> Any:
        loads.append(path)
        return load_alike(path, base)

    monkeypatch.setattr("caa.steering.wrapper.load_alike", counted)
    wrapper, ids = wrapper_of(finetunes), torch.tensor([[1, 20, 21, 22]])
    with wrapper.steer(Intervention(OWN, 1, 2.0)):
        with wrapper.finetune("full"):
            alone = wrapper(ids).logits
        wrapper.keep_checkpoints()
        for name in ("full", None, "helpful", "full", "full"):
            with wrapper.finetune(name):
                assert (name == "full") == torch.equal(wrapper(ids).logits, alone)
        assert len(loads) == 2
    wrapper.keep_checkpoints(False)
    with wrapper.finetune("full"):
        assert len(loads) == 3
    loads.clear()
    data = CAADataModule(BEHAVIOR, batch_size=1)
    module = CAAModule(wrapper, TOKENIZER, [1], (0.0, 1.0), ["full", None], vector=OWN)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.test(module, data, verbose=False)
    assert len(loads) == 1
    expected = grid(finetunes=["full", None], multipliers=(0.0, 1.0), reread={})
    expected.run(wrapper, TOKENIZER, tmp_path, progress=False)
    scores = {row.key: row.score for row in read_rows(tmp_path / "rows.jsonl")}
    assert {row.key: row.score for row in module.rows} == pytest.approx(scores, abs=1e-5)
    loads.clear()
    session = Session(wrapper, TOKENIZER, {"own": OWN}, tmp_path)
    for _ in range(2):
        history = [{"role": "user", "content": "Wait?"}]
        *_, answers = session.answer([history] * 2, Setting(1, {"own": 1.0}, finetune="full", max_new_tokens=2))
        assert all(len(answer.ids) <= 2 for answer in answers)
    assert len(loads) == 1


def test_adapters_come_and_go_under_names_of_their_own_and_only_on_the_base(finetunes: dict[str, Path]) -> None:
    wrapper = wrapper_of({name: finetunes[name] for name in ("helpful", "full")})
    home, ids = wrapper.model, torch.tensor([[1, 20, 21, 22]])
    worn = wrapper(ids).logits
    with pytest.raises(ValueError, match="already holds a finetune 'full'"):
        wrapper.load_adapter(finetunes["positive"], "full")
    with wrapper.finetune("full"), wrapper.finetune(None):
        for act in (wrapper.unload_adapters, lambda: wrapper.load_adapter(finetunes["positive"], "positive")):
            with pytest.raises(RuntimeError, match="a full checkpoint runs in the base's place"):
                act()
    assert wrapper.model is home
    assert wrapper.finetunes == ["helpful", "full"]
    assert torch.equal(wrapper(ids).logits, worn)
    wrapper.unload_adapters()
    assert wrapper.finetunes == []
    assert torch.equal(wrapper(ids).logits, tiny_model()(ids).logits)


def test_a_checkpoint_is_gone_when_the_base_comes_back(finetunes: dict[str, Path], monkeypatch: Any) -> None:
    """An accelerator has room for one of them."""
    alive: list[bool] = []

    @contextmanager
    def watched(base: Any) -> Iterator[None]:
        try:
            yield
        finally:
            alive.append(checkpoint() is not None)

    monkeypatch.setattr("caa.steering.wrapper.aside", watched)
    wrapper = wrapper_of({"full": finetunes["full"]})
    wrapper.steer(Intervention(OWN, 1, 2.0))
    with wrapper.finetune("full"):
        checkpoint = weakref.ref(wrapper.model)
        wrapper.generate(torch.tensor([[1, 20, 21, 22]]), max_new_tokens=2)
        assert checkpoint() is not wrapper._worn
    with pytest.raises(KeyError), wrapper.finetune("full"):
        checkpoint = weakref.ref(wrapper.model)
        raise KeyError
    assert alive == [False, False]


def add_from_last(resid: torch.Tensor) -> torch.Tensor:
    return torch.cat([resid[:, :-1], resid[:, -1:] + 2 * OWN.at(1)], dim=1)


def test_what_is_no_finetune_of_the_base_is_refused(finetunes: dict[str, Path], tmp_path: Path) -> None:
    wrapper = wrapper_of({"helpful": finetunes["helpful"]})
    other = save_model(tiny_model("Qwen3"), tmp_path / "qwen")
    with pytest.raises(ValueError, match=r"no finetune of this base: .* parameters differ"):
        wrapper.load_finetune(other, "full")
    with pytest.raises(ValueError, match="already holds a finetune 'helpful'"):
        wrapper.load_finetune(finetunes["full"], "helpful")
    (finetunes["full"] / "caa.json").write_text(json.dumps({"base": "another", "base_fingerprint": "0" * 16}))
    with pytest.raises(ValueError, match="was trained on 'another'"):
        wrapper.load_finetune(finetunes["full"], "full")
    (finetunes["full"] / "caa.json").unlink()
    for names, reason in (("helpful+sad", "holds no adapter 'sad'"), ("helpful+helpful", "names an adapter twice")):
        with pytest.raises(ValueError, match=reason), wrapper.finetune(names):
            pass
    with pytest.raises(ValueError, match=r"holds no finetune 'helpful\+full'"):
        grid(finetunes=["helpful+full"]).run(wrapper_of(finetunes), TOKENIZER, tmp_path, progress=False)
    base = save_model(tiny_model(), tmp_path / "base")
    given = finetunes | {"qwen": other, "none": tmp_path}
    problems = list(finetune_problems(given, str(base)))
    assert [problem for problem in problems if problem.startswith(f"{other} is no finetune of {base}: its model_type")]
    assert [problem for problem in problems if problem.startswith(f"{tmp_path} is neither an adapter nor a checkpoint")]
    assert len(problems) == 2


def test_rows_of_a_combination_say_so(finetunes: dict[str, Path], tmp_path: Path) -> None:
    wrapper = wrapper_of({name: finetunes[name] for name in ("helpful", "positive")})
    grid(finetunes=[None, "helpful+positive"], reread={}).run(wrapper, TOKENIZER, tmp_path, progress=False)
    rows: list[Row] = read_rows(tmp_path / "rows.jsonl")
    assert {row.cell.finetune for row in rows} == {None, "helpful+positive"}
    assert wrapper.model.base_model.active_adapters == ["positive"], "what was active before is active again"
