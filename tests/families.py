"""Every causal language model of transformers, tiny and random, against a plain forward hook: `make families`.

Each type runs in a process of its own with a time limit. Whatever is padded, cached, branched, repeated or saved has to
equal one unpadded row at a time with a hook of torch's own, or the model has to be refused with a reason. Writes the
table of docs/families.md.

    python tests/families.py [--only llama,mamba] [--write docs/families.md]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_tokenizer
from tiny_configs import model_types, tiny

from caa import ContrastPair, Intervention, SteeringVector, SteeringWrapper, extract
from caa.models.batching import pad
from caa.models.blocks import decoder_blocks, model_width
from caa.models.capabilities import can_branch, can_expand, can_pad, ignores_pads
from caa.models.targets import lora_config
from caa.steering.generation import generate_settings
from caa.steering.intervention import Setting, sweep
from caa.steering.scopes import everywhere
from caa.steering.scoring import Continued, log_probabilities

SECONDS = 120
PROMPTS = [[30, 41, 52, 63, 34, 45, 56, 67, 38], [71, 32, 43, 54, 65], [48, 59, 70]]
PAD = 0
"""Never written: some families count positions by what is no pad token."""
TOLERANCE = 1e-3
"""Of a token's logits, beside how far they lie apart."""


REFUSED = {
    "blt": "write [[2, 5, 32], [2, 6, 32]]",
    "cpmant": "write [[2, 37, 32]]",
    "deepseek_v4": "writes [2, 5, 4, 32] and not one residual stream",
    "gemma3n_text": "writes [4, 2, 5, 32] and not one residual stream",
    "hy_v4": "writes [2, 5, 4, 32] and not one residual stream",
    "gemma4_assistant": "inputs_embeds and shared_kv_states cannot be None",
    "gemma4_unified_assistant": "inputs_embeds and shared_kv_states cannot be None",
    "musicgen": "a pass over plain text fails",
    "musicgen_melody": "a pass over plain text fails",
    "prophetnet": "write [[2, 15, 32]]",
    "reformer": "hand on several residual streams",
    "xlm": "no list of its modules is a chain in which each is fed what the one before wrote",
    "xlnet": "write [[5, 2, 32]]",
}
"""What the refusal of a type says. Every other type has to be right, those of a new release too."""
_DRAFTER = (
    "The set of layer types producing a cache",
    "a drafter without keys and values of its own: transformers builds it beside another model only",
)
UNBUILT = {
    "gemma3n": ("requires the timm library", "its vision tower needs timm; its language model is gemma3n_text"),
    "gemma4_assistant": _DRAFTER,
    "gemma4_unified_assistant": _DRAFTER,
}
"""What the error of a type says that no tiny model can be made of, and why."""


@dataclass(frozen=True)
class Verdict:
    """What came of one model type."""

    model_type: str
    verdict: str
    """right, refused, wrong, crash, not built"""
    manner: str = ""
    """How it is asked: branches, rows, one at a time."""
    reason: str = ""


# The slow definition.


@torch.no_grad()
def by_hand(model: Any, ids: Sequence[int], pushes: dict[int, torch.Tensor], start: int) -> torch.Tensor:
    """Logits [position, vocab] of one row with each push added to its block's output from token `start` on."""

    def hooked(push: torch.Tensor) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            resid = output if isinstance(output, torch.Tensor) else output[0]
            resid = torch.cat([resid[:, :start], resid[:, start:] + push], dim=1)
            return resid if isinstance(output, torch.Tensor) else (resid, *output[1:])

        return hook

    handles = [decoder_blocks(model)[layer].register_forward_hook(hooked(push)) for layer, push in pushes.items()]
    try:
        return model(torch.tensor([list(ids)]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def pushes_of(setting: Setting) -> dict[int, torch.Tensor]:
    return {edit.layer: float(edit.strengths) * edit.direction for edit in setting}


def check_logits(logits: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    error = ((logits - expected).norm(dim=-1) / spread).max().item()
    assert error < TOLERANCE, f"{what} off by {error:.1g}"


def check_greedy(model: Any, prompt: list[int], answer: list[int], setting: Setting, what: str) -> None:
    """Each token is the likeliest, or as likely, in one pass over the whole text without a cache."""
    start = 0 if setting and setting[0].where is everywhere else len(prompt) - 1
    logits = by_hand(model, [*prompt, *answer[:-1]], pushes_of(setting), start)[len(prompt) - 1 :]
    logits[:, PAD] = -torch.inf
    missing = logits.max(-1).values - logits[range(len(answer)), answer]
    assert missing.max() < TOLERANCE * logits[:, PAD + 1 :].std(), (
        f"{what} writes other tokens (short by {missing.max():.2g})"
    )


# What is checked.


def check_padded_rows(model: Any, vector: SteeringVector) -> None:
    """Left- and right-padded logits of every layer."""
    layers = [0, len(vector.layers) - 1]
    sides = ["right", "left"] if ignores_pads(model) else ["right"]
    for layer, side in product(layers, sides):
        ids, mask = pad(PROMPTS, 0, side)
        wrapper = SteeringWrapper(model, Intervention(vector, layer, 2.0))
        with torch.no_grad():
            logits = wrapper(ids, mask, use_cache=False).logits
        wrapper.unsteer()
        for row, prompt in enumerate(PROMPTS):
            expected = by_hand(model, prompt, {layer: 2.0 * vector.at(layer)}, len(prompt) - 1)[-1]
            check_logits(logits[row, -1 if side == "left" else len(prompt) - 1], expected, f"a {side}-padded row")
    plain = by_hand(model, PROMPTS[0], {}, 0)[-1]
    steered = by_hand(model, PROMPTS[0], {layers[-1]: 2.0 * vector.at(layers[-1])}, len(PROMPTS[0]) - 1)[-1]
    assert (steered - plain).norm() > 10 * TOLERANCE * plain.norm(), "steering does nothing here"


def check_pads_are_said(model: Any, vector: SteeringVector) -> None:
    if ignores_pads(model):
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SteeringWrapper(model)(*pad(PROMPTS, 0, "left"))
    assert any("reads pads on the left" in str(warning.message) for warning in caught), "nothing is said of pads"


def check_multiplier_0(model: Any, vector: SteeringVector) -> None:
    ids, mask = pad(PROMPTS, 0, "right")
    wrapper = SteeringWrapper(model)
    with torch.no_grad():
        plain = wrapper(ids, mask, use_cache=False).logits
        with wrapper.steer(Intervention(vector, 1, 0.0)):
            assert torch.equal(wrapper(ids, mask, use_cache=False).logits, plain), "multiplier 0 changes something"
        with wrapper.steer(Intervention(vector, 1, [0.0, 2.0, 0.0])):
            mixed = wrapper(ids, mask, use_cache=False).logits
    check_logits(mixed[[0, 2], 0], plain[[0, 2], 0], "multiplier 0 in a batch")


def check_generated(model: Any, vector: SteeringVector) -> None:
    """With the model's own cache, padded where it can be."""
    wrapper, setting = SteeringWrapper(model), (Intervention(vector, 1, 2.0),)
    batches = [PROMPTS] if ignores_pads(model) else [[prompt] for prompt in PROMPTS]
    for prompts in batches:
        ids, mask = pad(prompts, 0, "left")
        with wrapper.steer(*setting):
            written = wrapper.generate(
                ids, mask, max_new_tokens=4, min_new_tokens=4, do_sample=False, suppress_tokens=[PAD]
            )
        for prompt, row in zip(prompts, written[:, ids.shape[1] :].tolist(), strict=True):
            check_greedy(model, prompt, row, setting, "generate")


def check_extraction(model: Any, vector: SteeringVector) -> None:
    pairs = [ContrastPair(f"{n}?", "(A) yes", "(B) no") for n in ("who", "where", "is it so")]
    tokenizer = tiny_tokenizer()
    read = extract(model, tokenizer, pairs)
    from caa.data.chat import ChatFormat

    encoded = [ChatFormat.of(tokenizer).encode_pair(pair) for pair in pairs]
    kept: list[torch.Tensor] = []
    for layer in (0, len(read.layers) - 1):
        differences = []
        for pair in encoded:
            sides = []
            for ids in (pair.positive, pair.negative):
                kept.clear()
                handle = decoder_blocks(model)[layer].register_forward_hook(
                    lambda m, a, out: kept.append(out if isinstance(out, torch.Tensor) else out[0])
                )
                with torch.no_grad():
                    model(torch.tensor([ids[: pair.parting + 1]]), use_cache=False)
                handle.remove()
                sides.append(kept[-1][0, -1])
            differences.append(sides[0] - sides[1])
        expected = torch.stack(differences).mean(0)
        error = (read.at(layer) - expected).norm() / expected.norm()
        assert error < TOLERANCE, f"extraction off by {error:.1g} at layer {layer}"


def settings_of(vector: SteeringVector) -> list[Setting]:
    last = len(vector.layers) - 1
    return [
        *sweep(vector, [0, last], [-1.0, 2.0]),
        (),
        (Intervention(vector, 1, 1.0, where=everywhere),),
        (Intervention(vector, 1, 2.0, where=everywhere),),
    ]


def check_sweep(model: Any, vector: SteeringVector) -> None:
    texts = [Continued(prompt, ([80, 81], [82, 83]), 1) for prompt in PROMPTS]
    settings = settings_of(vector)
    scored = log_probabilities(SteeringWrapper(model), texts, settings)
    for (row, text), (place, setting) in product(enumerate(texts), enumerate(settings)):
        start = 0 if setting and setting[0].where is everywhere else len(text.prompt) - 1
        for number, tokens in enumerate(text.continuations):
            logs = by_hand(model, [*text.prompt, tokens[0]], pushes_of(setting), start)[-1].double().log_softmax(-1)
            error = abs(scored[row, place, number].item() - logs[tokens[1]].item())
            assert error < 2e-3, f"the sweep is off by {error:.1g}"


def check_open_answers(model: Any, vector: SteeringVector) -> None:
    settings = [*settings_of(vector)[:5]]
    model.generation_config.update(max_new_tokens=4, min_new_tokens=4, do_sample=False, suppress_tokens=[PAD])
    for some in (settings, settings_of(vector)[-2:]):
        written = generate_settings(SteeringWrapper(model), *pad(PROMPTS, 0, "left"), some)[:, len(PROMPTS[0]) :]
        for answer, (prompt, setting) in zip(written.tolist(), product(PROMPTS, some), strict=True):
            check_greedy(model, prompt, answer, setting, "an open answer")


def check_lora(model: Any, vector: SteeringVector) -> None:
    """By the default targets: trained, saved and loaded, the logits come back."""
    from peft import PeftModel, get_peft_model

    ids = torch.tensor(PROMPTS[:1])
    fresh = tiny(model.config.model_type if model.config.model_type in model_types() else CURRENT[0])
    state = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    trained = get_peft_model(fresh, lora_config(fresh, rank=2, alpha=2))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    trained.eval()
    logits = trained(input_ids=ids, use_cache=False).logits
    logits.logsumexp(-1).sum().backward()
    assert (logits - model(input_ids=ids, use_cache=False).logits).abs().max() > 1e-2, "the LoRA does nothing"
    wrapped = SteeringWrapper(trained, Intervention(vector, 1, 1.0))
    assert not torch.equal(wrapped(ids, use_cache=False).logits, logits)
    wrapped.unsteer()
    with tempfile.TemporaryDirectory() as folder:
        trained.save_pretrained(folder)
        again = tiny(CURRENT[0])
        again.load_state_dict(state)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            loaded = PeftModel.from_pretrained(again, folder).eval()
        check_logits(loaded(input_ids=ids, use_cache=False).logits[0], logits[0].detach(), "a loaded LoRA")


CHECKS = [
    check_padded_rows,
    check_pads_are_said,
    check_multiplier_0,
    check_generated,
    check_extraction,
    check_sweep,
    check_open_answers,
    check_lora,
]
CURRENT: list[str] = []
"""The type that this process is about."""


def manner_of(model: Any) -> str:
    """How its questions are asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if can_branch(model, 16):
            return "branches"
        padded = "rows" if can_pad(model) else "one at a time"
        return padded if can_expand(model) else f"{padded}, each setting alone"


def verdict_of(model_type: str) -> Verdict:
    """Build the model, try all checks, and say what came of it."""
    CURRENT[:] = [model_type]
    try:
        model = tiny(model_type)
    except Exception as error:
        return Verdict(model_type, "not built", reason=_line(error))
    try:
        SteeringWrapper(model)
    except TypeError as error:
        return Verdict(model_type, "refused", reason=str(error))
    if not by_hand(model, PROMPTS[0], {}, 0).isfinite().all():
        return Verdict(model_type, "not built", reason="its logits are not finite")
    width, depth = model_width(model), len(decoder_blocks(model))
    draw = torch.Generator().manual_seed(5)
    vector = SteeringVector({layer: torch.randn(width, generator=draw) for layer in range(depth)})
    problems = []
    for check in CHECKS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check(model, vector)
        except AssertionError as error:
            problems.append(("wrong", f"{check.__name__}: {error}"))
        except Exception as error:
            problems.append(("crash", f"{check.__name__}: {_line(error)}"))
    if any(module._forward_hooks or module._forward_pre_hooks for module in decoder_blocks(model)):
        problems.append(("wrong", "hooks are left behind"))
    if problems:
        return Verdict(
            model_type, min(kind for kind, _ in problems), manner_of(model), "; ".join(p for _, p in problems)
        )
    return Verdict(model_type, "right", manner_of(model))


def is_expected(verdict: Verdict) -> bool:
    """Right, or refused or not built with the words that were looked at."""
    if verdict.verdict == "not built":
        return UNBUILT.get(verdict.model_type, ("?",))[0] in verdict.reason
    if verdict.model_type in REFUSED:
        return verdict.verdict == "refused" and REFUSED[verdict.model_type] in verdict.reason
    return verdict.verdict == "right"


def _line(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]} ({place})"


def in_a_process(model_type: str) -> Verdict:
    """The verdict of a child process, which is ended after SECONDS."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(SECONDS)
        with os.fdopen(writer, "w") as out:
            json.dump(asdict(verdict_of(model_type)), out)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as source:
        text = source.read()
    _, status = os.waitpid(child, 0)
    return Verdict(**json.loads(text)) if text else Verdict(model_type, "crash", reason=f"ended with status {status}")


def table(verdicts: Sequence[Verdict]) -> str:
    reasons = [UNBUILT.get(v.model_type, ("", v.reason))[1].replace("|", "/")[:240] for v in verdicts]
    rows = [
        f"| {v.model_type} | {v.verdict} | {v.manner} | {reason} |" for v, reason in zip(verdicts, reasons, strict=True)
    ]
    return "\n".join(["| model type | verdict | asked by | reason |", "|---|---|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="model types, separated by commas")
    parser.add_argument("--write", help="the Markdown file whose table is to be replaced")
    parser.add_argument("--skip", default="", help="a file of verdicts, one json object a line, to go on from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    verdict_of("llama")  # imports what all share before the first fork
    wanted = arguments.only.split(",") if arguments.only else model_types()
    done = {}
    if arguments.skip and Path(arguments.skip).exists():
        lines = Path(arguments.skip).read_text().splitlines()
        done = {record["model_type"]: Verdict(**record) for record in map(json.loads, lines)}
    for model_type in wanted:
        if model_type not in done:
            done[model_type] = in_a_process(model_type)
            print(json.dumps(asdict(done[model_type])), flush=True)
    verdicts = [done[model_type] for model_type in wanted]
    if arguments.write:
        write(Path(arguments.write), verdicts)
    unexpected = [verdict for verdict in verdicts if not is_expected(verdict)]
    for verdict in unexpected:
        print(f"not expected: {verdict.model_type} is {verdict.verdict}. {verdict.reason}", file=sys.stderr)
    return min(len(unexpected), 1)


def write(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Replace what stands below the page's mark."""
    import peft
    import transformers

    counts = {kind: sum(v.verdict == kind for v in verdicts) for kind in dict.fromkeys(v.verdict for v in verdicts)}
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, peft {peft.__version__}"
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    head, mark, _ = path.read_text(encoding="utf-8").partition("<!-- table -->\n")
    text = f"{head}{mark}\n{len(verdicts)} model types with {versions}: {summary}.\n\n{table(verdicts)}\n"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
