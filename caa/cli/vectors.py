"""Commands about steering vectors and other files: `caa extract`, `caa import`, `caa push`, `caa inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from caa.cli.console import Dtype, load_wrapper, refuse_to_overwrite, say, show


def extract_(
    behavior: str,
    out: Path,
    model: str = "tiny-chat",
    layers: list[int] | None = None,
    adapter: Path | None = None,
    method: Literal["balanced_mean", "mean_difference", "pca", "repe", "logistic_probe"] = "balanced_mean",
    token: Literal["parting", "last", "mean"] = "parting",
    site: Literal["block output", "block input", "attention output", "MLP output"] = "block output",
    batch_size: int = 8,
    template_arguments: dict[str, Any] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> None:
    """Find a behavior's steering vector and save it.

    Args:
        behavior: a built-in behavior, or a path to one of your own.
        out: the file to write (safetensors).
        model: an embedded model, a folder, a GGUF file, smollm2, or a name on the Hub.
        layers: the layers to keep (outputs of these blocks, counted from 0); all if not given.
        adapter: a LoRA adapter that the model wears while it is read.
        method: how the direction is found; balanced_mean weighs letters alike, mean_difference is the paper's plain
            mean; see docs/finding.md.
        token: which token of the answers is read: where they part (the letter), the last, or the mean over all.
        site: where in the blocks it is read.
        batch_size: texts in one forward pass.
        template_arguments: what the chat template is told by name, e.g. --template_arguments.enable_thinking false.
        dtype: of the weights: auto, float32, bfloat16, float16.
        device: auto, cpu, cuda, ...
    """
    from caa import extract as find
    from caa import load_behavior
    from caa.cli.doses import profiles_of
    from caa.data.chat import ChatFormat
    from caa.models.names import adapter_name
    from caa.preflight import adapter_problems, refuse
    from caa.vectors import methods
    from caa.vectors.letters import letter_counts

    refuse_to_overwrite(out)
    subject = load_behavior(behavior)
    worn = {adapter_name(adapter): adapter} if adapter else {}
    refuse(adapter_problems(worn, model))
    wrapper, tokenizer = load_wrapper(model, worn, dtype, device)
    pairs = subject.require("pairs")
    options: dict[str, Any] = {
        "method": getattr(methods, method),
        "token": token,
        "site": site,
        "batch_size": batch_size,
    }
    chat = ChatFormat(tokenizer, arguments=template_arguments or {})
    vector = find(wrapper.model, chat, pairs, layers, behavior=subject.name, progress=True, **options)
    vector.save(out)
    letters = ", ".join(f"{number} ({name})" for name, number in letter_counts(vector.source.checks).items())
    say(f"{out}: {subject.name}, {vector.source.method} of {len(pairs)} pairs{letters and f': {letters}'}")
    _print_layers(vector, profiles_of(wrapper, chat, vector.layers, [pair.text for pair in pairs[:_MEASURED]]))


_MEASURED = 32
"""Prompts by which the length of the stream is taken."""
_CHECKS = ("letter norm", "letter cosine", "rounding share")


def _print_layers(vector: Any, profiles: Any) -> None:
    """Layer by layer: how long the vector is, what of it is letter or rounding, which dose multiplier 1 is."""
    from rich import box
    from rich.table import Table

    from caa.cli.doses import say_peaks
    from caa.extraction.norms import dose

    known = vector.source.checks
    columns = [name for name in _CHECKS if f"layer {vector.layers[0]}: {name}" in known]
    table = Table("layer", box=box.SIMPLE_HEAD)
    names = ("norm", *columns, "dose of multiplier 1")
    lines: list[dict[str, Any]] = []
    for name in names:
        table.add_column(name, justify="right")
    norms = {layer: profile.norm for layer, profile in profiles.items()}
    for layer, norm in vector.norms().items():
        numbers = [norm, *(known[f"layer {layer}: {name}"] for name in columns), dose(vector, layer, 1.0, norms)]
        table.add_row(str(layer), *(f"{number:.3g}" for number in numbers))
        lines.append({"layer": layer, **dict(zip(names, numbers, strict=True))})
    show(table, lines)
    say_peaks(profiles)


def import_(
    file: Path, out: Path, layer: int | None = None, blocks: int | None = None, behavior: str = "", model: str = ""
) -> None:
    """Read a vector of another tool, a file or a folder, and save it as one of ours (docs/formats.md lists the tools).

    Args:
        file: the other tool's file; it is read as tensors only, nothing in it is run.
        out: the file to write (safetensors).
        layer: the layer of a file that holds a bare tensor (output of that block, counted from 0).
        blocks: how many blocks the base has, for files that count layers from the end or hold a row for each.
        behavior: what it steers, to be noted.
        model: the model that it was made for, to be noted.
    """
    from caa.vectors.formats import import_vector

    refuse_to_overwrite(out)
    vector = import_vector(file, layer, blocks=blocks, behavior=behavior, model=model)
    vector.save(out)
    norms = "  ".join(f"{layer}: {norm:.2f}" for layer, norm in vector.norms().items())
    message = f"{out}: {vector.source.history[-1]}, norm by layer  {norms}"
    say(message)


def push(source: Path, name: str, private: bool = False, update: bool = False) -> None:
    """Put a vector, an adapter or a steered adapter on the Hugging Face Hub; its name there then serves as its path.

    Needs a login of huggingface_hub: `hf auth login`, or HF_TOKEN in the environment.

    Args:
        source: a vector's file, or the folder of an adapter or a steered adapter.
        name: the repository, "you/name", or "name" for one of your own; it is made.
        private: nobody else may see it; without this it is public, as the Hub has it for your account.
        update: add a commit to a repository that is there already; what it holds now keeps its revision.
    """
    from caa.steering.checkpoint.publish import publish

    say(f"{source} is on the Hub: {publish(source, name, private=private or None, update=update)}")


def inspect(path: Path, model: str | None = None) -> None:
    """Say what a file or folder is, what is in it, where it came from, and whether it fits a base.

    Args:
        path: a vector of ours or of another tool, a steered adapter, a PEFT adapter, or a run's folder; the first
            three also by their names on the Hub, "you/name" or "you/name@revision".
        model: a base to compare it with: an embedded model, a folder, a GGUF file, smollm2, or a name on the Hub.
    """
    from rich.table import Table as Grid
    from rich.text import Text

    from caa.inspection import inspect as look

    finding = look(path, model)
    facts = Grid(show_header=False, title=Text(f"{path}: {finding.kind}"), title_justify="left")
    for name, value in finding.facts.items():
        facts.add_row(Text(name), Text(value))  # Text: what a file says is data, not markup
    lines: list[dict[str, Any]] = []
    for name, value in finding.facts.items():
        lines.append({"name": name, "value": int(value) if value.isdecimal() else value})
    for name, norms in finding.norms.items():
        lines += [{"vector": name, "layer": layer, "norm": norm} for layer, norm in norms.items()]
    lines += [{"fits": fits, "reason": reason} for fits, reason in finding.verdicts]
    show(facts, lines)
    for name, norms in finding.norms.items():
        shown = "  ".join(f"{layer}: {norm:.3f}" for layer, norm in norms.items())
        say(f"{name} by layer  {shown}")
    for fits, why in finding.verdicts:
        say(f"{'fits' if fits else 'does NOT fit'}: {why}")
