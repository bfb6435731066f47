"""Commands that use a steered model: `caa generate`, `caa play`, `caa serve`, `caa export`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from caa.cli.console import Dtype, load_wrapper, print_answer, say


def generate(
    prompt: str,
    vector: Path | None = None,
    layer: int | None = None,
    multiplier: float | None = None,
    dose: float | None = None,
    operator: Literal["add", "add_keeping_norm", "ablate"] = "add",
    where: Literal["after_prompt", "everywhere", "prompt_only", "last_prompt_token"] = "after_prompt",
    model: str = "tiny-chat",
    adapter: Path | None = None,
    steered: Path | None = None,
    system: str | None = None,
    max_new_tokens: int = 128,
    template_arguments: dict[str, Any] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> None:
    """Answer a prompt unsteered and steered, side by side.

    Args:
        prompt: what the user says.
        vector: a file that `caa extract` wrote; needs a layer.
        layer: the layer to steer (output of that block, counted from 0).
        multiplier: how often the vector is added, in place of a dose; of ablate, the share taken out, 1 if not given.
        dose: the push beside the length of the residual stream, by sign, negative for less of the behavior; 0.25 if
            neither is given.
        operator: what is done with the vector; see docs/applying.md.
        where: which tokens are steered.
        model: an embedded model, a folder, a GGUF file, smollm2, or a name on the Hub.
        adapter: a LoRA adapter to wear.
        steered: a steered adapter, in place of vector, layer, multiplier, model and adapter.
        system: a system prompt.
        max_new_tokens: longest answer.
        template_arguments: what the chat template is told by name, e.g. --template_arguments.enable_thinking false.
        dtype: of the weights: auto, float32, bfloat16, float16.
        device: auto, cpu, cuda, ...
    """
    from caa import Intervention, SteeringVector, SteeringWrapper
    from caa import preflight as check
    from caa.cli.doses import multiplier_for
    from caa.data.chat import ChatFormat
    from caa.models.loading import load_tokenizer
    from caa.models.names import adapter_name, model_name
    from caa.steering.operators import OPERATORS
    from caa.steering.scopes import SCOPES

    check.refuse(check.unit_problems(multiplier, dose))
    if operator == "ablate" and dose is not None:
        raise ValueError("ablate takes a share of the direction out and knows no dose: give --multiplier, 1 for all")
    if (steered is None) == (vector is None) or (vector is not None and layer is None):
        raise ValueError("say how to steer: --steered FOLDER, or --vector FILE with --layer N")
    arguments = template_arguments or {}
    if steered:
        wrapper = SteeringWrapper.from_pretrained(steered, dtype=dtype, device=device)
        chat = ChatFormat(load_tokenizer(model_name(wrapper.model)), system, arguments=arguments)
        interventions = wrapper.interventions
        wrapper.unsteer()
    elif vector and layer is not None:
        direction, adapters = SteeringVector.load(vector), {adapter_name(adapter): adapter} if adapter else {}
        check.refuse([*check.vector_problems(direction, [layer], model), *check.adapter_problems(adapters, model)])
        wrapper, tokenizer = load_wrapper(model, adapters, dtype, device)
        chat = ChatFormat(tokenizer, system, arguments=arguments)
        if multiplier is None:
            amount = check.DOSES[-1] if dose is None else dose
            ablating = operator == "ablate"
            multiplier = 1.0 if ablating else multiplier_for(wrapper, chat, direction, layer, amount, prompt)
        interventions = (Intervention(direction, layer, multiplier, OPERATORS[operator], SCOPES[where]),)
    with wrapper.finetune(None):
        print_answer("the model as it is", wrapper, chat, prompt, max_new_tokens)
    with wrapper.steer(*interventions):
        title = " + ".join([*wrapper.adapters, *map(str, interventions)])
        print_answer(title, wrapper, chat, prompt, max_new_tokens)


def play(
    model: str = "tiny-chat",
    vectors: list[Path] | None = None,
    adapters: dict[str, Path] | None = None,
    dose: float | None = None,
    layer: int | None = None,
    steered: Path | None = None,
    out: Path = Path("runs/playground"),
    port: int = 7860,
    max_new_tokens: int = 512,
    template_arguments: dict[str, Any] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> None:
    """Talk to the unsteered and the steered model side by side, on a page that only this machine can open.

    Args:
        model: an embedded model, a folder, a GGUF file, smollm2, or a name on the Hub.
        vectors: files that `caa extract` wrote; without any, those of the built-in behaviors, found when they are
            picked.
        adapters: finetunes by name, e.g. --adapters.positive runs/x/positive: adapters or full checkpoints of the same
            base.
        dose: where the slider of a vector begins, the push beside the length of the residual stream; if not given, 0.2,
            or what suits an embedded model.
        layer: where the slider of the layer begins (output of that block, counted from 0).
        steered: a steered adapter (folder or Hub name), at whose setting all controls begin, in place of model, layer
            and dose.
        out: the folder in which settings are saved as steered adapters.
        port: where the page is, on 127.0.0.1.
        max_new_tokens: the longest answer that can be asked for.
        template_arguments: what the chat template is told by name, e.g. --template_arguments.enable_thinking false.
        dtype: of the weights: auto, float32, bfloat16, float16.
        device: auto, cpu, cuda, ...
    """
    from threading import Event

    from caa import preflight as check
    from caa.data.chat import ChatFormat
    from caa.playground.server import serving
    from caa.playground.session import Session

    if not 0 <= port < 2**16:
        raise ValueError(f"there is no port {port}; ports are numbers from 0 (any free one) to 65535, such as 7860")
    directions, start = _by_name(vectors or ()), None
    if steered is not None:
        wrapper, tokenizer, own, start = _steered(steered, adapters or {}, dtype, device)
        directions = own | directions
    else:
        layers = [] if layer is None else [layer]
        check.refuse(
            check.model_problems(model, dtype, device, layers),
            *(check.vector_problems(vector, [], model, name) for name, vector in directions.items()),
        )
        wrapper, tokenizer = load_wrapper(model, adapters or {}, dtype, device)
    chat = ChatFormat(tokenizer, arguments=template_arguments or {})
    with serving(Session(wrapper, chat, directions, out, dose, layer, start), port, max_new_tokens) as address:
        say(f"The playground is at {address} until Ctrl+C")
        Event().wait()


def _steered(folder: Path, adapters: dict[str, Path], dtype: str, device: str) -> tuple[Any, Any, dict[str, Any], Any]:
    """A steered adapter's wrapper, tokenizer, vectors by name, and setting."""
    from caa import SteeringWrapper
    from caa.models.loading import load_tokenizer
    from caa.models.names import model_name
    from caa.playground.session import start_from

    wrapper = SteeringWrapper.from_pretrained(folder, dtype=dtype, device=device)
    vectors, start = start_from(wrapper.interventions, wrapper.finetunes)
    wrapper.unsteer()
    for name, path in adapters.items():
        wrapper.load_finetune(path, name)
    return wrapper, load_tokenizer(model_name(wrapper.model)), vectors, start


def _by_name(vectors: Sequence[Path]) -> dict[str, Any]:
    """Files of vectors, by the names that they are chosen by."""
    from caa import SteeringVector

    directions = {path.stem: SteeringVector.load(path) for path in vectors}
    if len(directions) < len(vectors):
        raise ValueError("two of the vectors have files of the same name, and would be the same choice; rename one")
    return directions


def serve(
    model: str = "tiny-chat",
    adapters: dict[str, Path] | None = None,
    vectors: list[Path] | None = None,
    steered: dict[str, str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    rows: int = 64,
    waiting: int = 256,
    max_prompt: int = 4096,
    max_new_tokens: int = 1024,
    max_dose: float = 1.0,
    over_dose: Literal["refuse", "clamp"] = "refuse",
    template_arguments: dict[str, Any] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> None:
    """Serve the model with OpenAI's interface: each request picks its finetune and how it is steered.

    A key, if CAA_SERVE_KEY in the environment names one, is wanted of every request. Needs the extra: caa[serve].

    Args:
        model: an embedded model, a folder, a GGUF file, smollm2, or a name on the Hub.
        adapters: finetunes by name, e.g. --adapters.positive runs/x/positive; each is a model that requests may name.
        vectors: files that `caa extract` wrote; requests name them by the files' names.
        steered: steered adapters by name (folders or Hub names); each is a model that requests may name.
        host: the address to listen at; of another than this machine's own, others can ask.
        port: the port to listen at.
        rows: texts that are written at once.
        waiting: requests that may wait for a row; more are refused (429).
        max_prompt: the longest prompt, in tokens.
        max_new_tokens: the longest answer that can be asked for.
        max_dose: how far a request may push in all, beside the length of the residual stream.
        over_dose: refuse what goes further, or clamp it and say so in the answer.
        template_arguments: what the chat template is told by name, e.g. --template_arguments.enable_thinking false.
        dtype: of the weights: auto, float32, bfloat16, float16.
        device: auto, cpu, cuda, ...
    """
    try:
        from caa.serve.server import listening, server_of, start
    except ImportError as error:
        raise ImportError("the server needs fastapi: pip install 'caa[serve]'") from error
    from caa.data.chat import ChatFormat
    from caa.serve.catalog import DoseLimit
    from caa.serve.engine import Limits

    directions, key = _by_name(vectors or ()), os.environ.get("CAA_SERVE_KEY") or None
    with listening(host, port) as socket:
        wrapper, tokenizer = load_wrapper(model, adapters or {}, dtype, device)
        chat = ChatFormat(tokenizer, arguments=template_arguments or {})
        limits, dose_limit = Limits(rows, waiting, max_prompt, max_new_tokens), DoseLimit(max_dose, over_dose)
        serving = start(wrapper, chat, directions, steered, limits=limits, dose_limit=dose_limit, key=key)
        address, port = socket.getsockname()
        say(f"The server is at http://{address}:{port}/v1 until Ctrl+C; {'with a key' if key else 'without a key'}")
        server_of(serving, host).run(sockets=[socket])


def export(
    source: Path,
    to: Literal["peft", "peft-alora", "merged", "gguf", "repeng", "lm-eval", "easysteer", "vllm-lens"] | None = None,
    out: Path | None = None,
    scope: Literal["everywhere", "after_prompt"] | None = None,
    without_finetune: bool = False,
    template_arguments: dict[str, Any] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> None:
    """Write a steered model in a form that needs no caa, after comparing it with the steering hook.

    Args:
        source: a steered adapter (folder or Hub name), or the folder of a run that made one.
        to: peft (one PEFT adapter), peft-alora (one that starts after the prompt), merged (a stock checkpoint), gguf
            (llama.cpp), repeng, lm-eval (its steered model), easysteer (a fork of vLLM), vllm-lens (a plugin of vLLM).
        out: the folder to write.
        scope: which tokens to steer, in place of what the adapter says; another scope is another model.
        without_finetune: leave its finetune out, so that it can be put on the export, and taken off, where that runs.
        template_arguments: what the chat template is told by name, for peft-alora, which starts where prompts end.
        dtype: of the weights: auto, float32, bfloat16, float16.
        device: auto, cpu, cuda, ...
    """
    from caa.exports.targets import TARGETS, rescoped, steered_folder

    if to is None or out is None:
        raise ValueError(f"say what to write and where: --to {'|'.join(TARGETS)} --out FOLDER")
    from caa import SteeringWrapper
    from caa.data.chat import ChatFormat
    from caa.models.loading import load_tokenizer
    from caa.models.names import model_name

    wrapper = SteeringWrapper.from_pretrained(steered_folder(source), dtype=dtype, device=device)
    chat = ChatFormat(load_tokenizer(model_name(wrapper.model)), arguments=template_arguments or {})
    wrapper = rescoped(wrapper, scope)
    with wrapper.finetune(None) if without_finetune else nullcontext():
        TARGETS[to](wrapper, chat, out)
    say(f"{out} holds a {to} export; README.md there says how to load it")
