"""Every kind of adapter that PEFT has for causal language models: what happens to it here, beside plain PEFT alone."""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from slow import vector
from tiny import random_ids, tiny_model, tiny_tokenizer

from caa import Intervention, SteeringWrapper
from caa.exports.merged import to_merged
from caa.models.adapters import save_adapter
from caa.models.fingerprint import fingerprint
from caa.steering.patching import record_activations
from caa.steering.scopes import everywhere

IDS = random_ids(2, 9)
IDS[:, 3] = 5  # the invocation token of the aLoRA, one of the trained tokens
COLUMNS = ("alone", "second of its kind", "behind a LoRA", "read", "saved", "merged export")
EXACT, REFUSED = "exact", "refused"
DOCS = Path(__file__).parents[1] / "docs" / "adapters.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


@dataclass(frozen=True)
class Kind:
    """One row of the table."""

    config: str
    """The name of PEFT's config class."""
    settings: dict[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] | None = ("q_proj", "v_proj")


KINDS: dict[str, Kind] = {
    "LoRA": Kind("LoraConfig", {"r": 4}),
    "LoRA, rsLoRA and patterns": Kind(
        "LoraConfig", {"r": 4, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}}
    ),
    "LoRA, DoRA": Kind("LoraConfig", {"r": 4, "use_dora": True}),
    "LoRA, lora_bias": Kind("LoraConfig", {"r": 4, "lora_bias": True}),
    "LoRA, aLoRA": Kind("LoraConfig", {"r": 4, "alora_invocation_tokens": [5]}),
    "LoRA on the embeddings": Kind("LoraConfig", {"r": 4}, ("embed_tokens",)),
    "LoRA on the head": Kind("LoraConfig", {"r": 4}, ("lm_head", "q_proj")),
    "LoRA, modules_to_save": Kind("LoraConfig", {"r": 4, "modules_to_save": ["norm", "lm_head"]}),
    "LoRA, trainable_token_indices": Kind("LoraConfig", {"r": 4, "trainable_token_indices": [5, 6]}),
    "LoRA, EVA": Kind("LoraConfig", {"r": 4, "init_lora_weights": "eva"}),
    "LoRA, MiCA": Kind("LoraConfig", {"r": 4, "init_lora_weights": "mica"}),
    "LoRA, orthogonal": Kind("LoraConfig", {"r": 4, "init_lora_weights": "orthogonal"}),
    "LoRA, PiSSA": Kind("LoraConfig", {"r": 4, "init_lora_weights": "pissa"}),
    "LoRA, PiSSA (fast SVD)": Kind("LoraConfig", {"r": 4, "init_lora_weights": "pissa_niter_4"}),
    "LoRA, OLoRA": Kind("LoraConfig", {"r": 4, "init_lora_weights": "olora"}),
    "LoRA, layer_replication": Kind("LoraConfig", {"r": 4, "layer_replication": [[0, 2], [1, 2]]}),
    "LoRA, bias": Kind("LoraConfig", {"r": 4, "bias": "all"}),
    "AdaLoRA": Kind("AdaLoraConfig", {"total_step": 10}),
    "AdaMSS": Kind("AdamssConfig"),
    "Adaption prompt": Kind("AdaptionPromptConfig", {"adapter_len": 4, "adapter_layers": 2}, None),
    "BEFT": Kind("BeftConfig"),
    "BOFT": Kind("BOFTConfig", {"boft_block_size": 4}),
    "C3A": Kind("C3AConfig", {"block_size": 8}),
    "Cartridge": Kind("CartridgeConfig", {"num_virtual_tokens": 4}, None),
    "CPT": Kind("CPTConfig", {"cpt_token_ids": [5, 6, 7, 8], "cpt_tokens_type_mask": [1, 2, 3, 4]}, None),
    "DEFT": Kind("DeftConfig"),
    "DeLoRA": Kind("DeloraConfig"),
    "FourierFT": Kind("FourierFTConfig", {"n_frequency": 20}),
    "FRoD": Kind("FrodConfig"),
    "GLoRA": Kind("GloraConfig"),
    "GraLoRA": Kind("GraloraConfig"),
    "HiRA": Kind("HiraConfig"),
    "HRA": Kind("HRAConfig"),
    "IA3": Kind("IA3Config", {"feedforward_modules": ["down_proj"]}, ("k_proj", "down_proj")),
    "Lily": Kind("LilyConfig"),
    "LN tuning": Kind("LNTuningConfig", {}, ("input_layernorm",)),
    "LoHa": Kind("LoHaConfig"),
    "LoKr": Kind("LoKrConfig"),
    "MiSS": Kind("MissConfig", {"r": 4}),
    "Multitask prompt tuning": Kind("MultitaskPromptTuningConfig", {"num_virtual_tokens": 4}, None),
    "OFT": Kind("OFTConfig", {"oft_block_size": 4}),
    "OSF": Kind("OSFConfig"),
    "P-tuning": Kind("PromptEncoderConfig", {"num_virtual_tokens": 4, "encoder_hidden_size": 8}, None),
    "PEANuT": Kind("PeanutConfig"),
    "Poly": Kind("PolyConfig"),
    "Prefix tuning": Kind("PrefixTuningConfig", {"num_virtual_tokens": 4}, None),
    "Prompt tuning": Kind("PromptTuningConfig", {"num_virtual_tokens": 4}, None),
    "PSOFT": Kind("PsoftConfig", {"r": 4}),
    "PVeRA": Kind("PveraConfig"),
    "RandLoRA": Kind("RandLoraConfig", {"r": 4}),
    "RoAd": Kind("RoadConfig", {"group_size": 8}),
    "Shadow": Kind("ShadowConfig", {}, None),
    "SHiRA": Kind("ShiraConfig", {"r": 2}),
    "Supertuning": Kind("SupertuningConfig"),
    "TinyLoRA": Kind("TinyLoraConfig"),
    "Trainable tokens": Kind("TrainableTokensConfig", {"token_indices": [5, 6]}, ("embed_tokens",)),
    "Uni-LoRA": Kind("UniLoraConfig"),
    "VB-LoRA": Kind("VBLoRAConfig", {"num_vectors": 8, "vector_length": 8, "topk": 2}),
    "VeRA": Kind("VeraConfig"),
    "WaveFT": Kind("WaveFTConfig", {"n_frequency": 20}),
}


@cache
def _two_blocks() -> Any:
    config = copy.copy(tiny_model().config)
    config.num_hidden_layers = 2
    torch.manual_seed(0)
    return type(tiny_model())(config).eval()


def base() -> Any:
    """A fresh copy of a tiny Llama of two blocks."""
    return copy.deepcopy(_two_blocks())


def trained(kind: Kind, folder: str | Path, seed: int, model: Callable[[], Any] = tiny_model) -> Any:
    """What plain PEFT gives for an adapter of this kind whose parameters all do something; saved in `folder`."""
    import peft

    settings = {"task_type": "CAUSAL_LM", **kind.settings}
    if kind.modules is not None:
        settings["target_modules"] = list(kind.modules)
    torch.manual_seed(seed)
    worn = peft.get_peft_model(model(), getattr(peft, kind.config)(**settings))
    with torch.no_grad():
        for parameter in worn.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter += 0.1 * torch.randn_like(parameter)
    worn.save_pretrained(folder, save_embedding_layers=False)
    return worn.eval()


@contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Of the real tokens; virtual ones stand before them."""
    return model(IDS).logits[:, -IDS.shape[1] :]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


@dataclass(frozen=True)
class Alone:
    """What plain PEFT computes with one adapter."""

    logits: torch.Tensor
    stream: torch.Tensor
    """In front of the last norm."""


@torch.no_grad()
def alone(kind: Kind, folder: Path, seed: int) -> Alone:
    """Of an adapter that is then saved in `folder`; NaN for kinds that need to be told a task as well."""
    model = trained(kind, folder, seed, base)
    if kind.config in ("MultitaskPromptTuningConfig", "PolyConfig"):
        return Alone(torch.full(IDS.shape, torch.nan), torch.full(IDS.shape, torch.nan))
    seen: list[torch.Tensor] = []
    model.get_decoder().norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    return Alone(logits(model), seen[0])


@cache
def lora() -> tuple[tempfile.TemporaryDirectory[str], Path, Alone]:
    """One LoRA for all kinds to be loaded behind; its folder lasts as long as the process."""
    scratch = tempfile.TemporaryDirectory()
    return scratch, Path(scratch.name), alone(KINDS["LoRA"], Path(scratch.name), 3)


def outcomes(kind: Kind) -> dict[str, str]:
    """Column -> "exact", or "refused: " and why. AssertionError where it is neither."""
    with quietly(), tempfile.TemporaryDirectory() as scratch:
        first, second = (Path(scratch) / name for name in ("first", "second"))
        expected = {first: alone(kind, first, 1), second: alone(kind, second, 2)}
        _, behind, plain_lora = lora()
        wrapper, one, both = (SteeringWrapper(base()) for _ in range(3))
        acts: dict[str, Callable[[], None]] = {
            "alone": lambda: _switches(wrapper, {first: expected[first]}),
            "second of its kind": lambda: _switches(wrapper, expected),
            "behind a LoRA": lambda: _switches(both, {behind: plain_lora, first: expected[first]}),
            "read": lambda: _reads(_wearing(one, first), expected[first]),
            "saved": lambda: _saves(_wearing(one, first), expected[first]),
            "merged export": lambda: _merges(_wearing(one, first)),
        }
        done = {column: _outcome(act).replace(scratch, "") for column, act in acts.items()}
        for worn in (wrapper, one, both):
            _check_unloaded(worn)
        return done


def _outcome(act: Callable[[], None]) -> str:
    try:
        act()
    except ValueError as error:
        return f"{REFUSED}: {error}"
    return EXACT


def _wearing(wrapper: SteeringWrapper, *folders: Path) -> SteeringWrapper:
    """The same wrapper with these adapters, called as their folders."""
    for folder in folders:
        if folder.name not in wrapper.adapters:
            wrapper.load_adapter(folder, folder.name)
    return wrapper


def _switches(wrapper: SteeringWrapper, expected: dict[Path, Alone]) -> None:
    """Each adapter, none, and back."""
    _wearing(wrapper, *expected)
    reference = logits(base().requires_grad_(False))
    for folder in (*expected, None, *reversed(expected)):
        with wrapper.finetune(folder and folder.name):
            if folder is None:
                assert torch.equal(logits(wrapper), reference), "with none active the model is not the base"
            else:
                assert close(logits(wrapper), expected[folder].logits), f"{folder.name} is not what plain PEFT has"
    assert fingerprint(wrapper.model) == fingerprint(base()), "the base is not known under the adapter"


def _check_unloaded(wrapper: SteeringWrapper) -> None:
    """The base, bit for bit, when all are off."""
    wrapper.unload_adapters()
    assert torch.equal(logits(wrapper), logits(base().requires_grad_(False))), "another base when the adapters are off"
    for name, tensor in base().state_dict().items():
        assert torch.equal(wrapper.model.state_dict()[name], tensor), name


@torch.no_grad()
def _reads(wrapper: SteeringWrapper, expected: Alone) -> None:
    """What is read, from the decoder alone, is what stands there in a whole pass of plain PEFT."""
    assert close(record_activations(wrapper.model, IDS, layers=[1]).at(1), expected.stream)


def _saves(wrapper: SteeringWrapper, expected: Alone) -> None:
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as scratch:
        save_adapter(wrapper.model, "first", Path(scratch))
        assert close(logits(PeftModel.from_pretrained(base(), scratch).eval()), expected.logits)


def _merges(wrapper: SteeringWrapper) -> None:
    before = copy.deepcopy(wrapper.model.state_dict())
    with tempfile.TemporaryDirectory() as scratch, wrapper.steer(Intervention(vector(), 1, 1.0, where=everywhere)):
        try:
            to_merged(wrapper, tiny_tokenizer(), Path(scratch) / "merged")  # compares what it wrote with the hook
        finally:
            after = wrapper.model.state_dict()
            assert all(torch.equal(after[key], tensor) for key, tensor in before.items()), "the model was changed"


# The table in docs/adapters.md


def line(name: str, row: dict[str, str]) -> str:
    """One line of the table: the outcomes, and the reason of the first refusal that is not of a mixture of kinds."""
    cells = [outcome.split(":")[0] for outcome in row.values()]
    reasons = [row[column] for column in COLUMNS if column != "behind a LoRA" and row[column] != EXACT]
    return f"| {name} | {' | '.join(cells)} | {_short(reasons[0]) if reasons else ''} |"


def _short(outcome: str) -> str:
    """The part of an error that names the reason."""
    reason = outcome.removeprefix(f"{REFUSED}: ").removeprefix("the adapter at /first ")
    return re.split(r"[;:.,](?: |$)| \(", reason.removeprefix("PEFT cannot merge this finetune ("))[0].strip("() ")


def table(rows: dict[str, dict[str, str]]) -> str:
    """The whole table, in Markdown."""
    header = ["kind of adapter", *COLUMNS, "why refused"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(line(name, row) for name, row in rows.items())])


def written() -> list[str]:
    """The lines of the table as docs/adapters.md has it."""
    return DOCS.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip().splitlines()


def main() -> None:
    """Write the table: `python tests/adapter_kinds.py`."""
    text = DOCS.read_text(encoding="utf-8")
    rows = {name: outcomes(kind) for name, kind in KINDS.items()}
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    DOCS.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
