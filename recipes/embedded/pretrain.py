"""Pretrain the embedded chat model: the grammar in, `checkpoints/tiny-base` and `checkpoints/tiny-chat` out.

    python recipes/embedded/pretrain.py

The base stage holds all seven traits at 50/50, so its model has no character. The chat stage goes on from there with
defaults. What makes steering work are the `Asides`: at an answer's letter the model must know the words that the letter
stands for, otherwise the activation read there holds no meaning. Stop it at any time; the same command resumes.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

try:
    from . import corpus, grammar
    from .trunk import Trunk
except ImportError:  # run as a script
    import corpus
    import grammar
    from trunk import Trunk

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY, LENGTH = 3072, 256
SHARD = 2048
"""Documents that a process makes at a time."""
AHEAD = 3
"""How many words of the option a letter must foretell."""
ROLE_WEIGHTS = torch.tensor([0.0, 1.0, 1.0, 1.0, 16.0, 5.0])
"""Loss weight of NOTHING, QUESTION, OFFER, ANSWER, LETTER, BEHIND."""
KEPT, CHOSEN, OFFERED, HELD = 0.5, 6, 14, 18
"""Share of a batch's tokens that the loss reads (answers first, then some question tokens); at most so many letters of
answers, letters of options, and places with a stance per document."""
ASIDE_LAYER, STANCE_LAYER = 2, 3
"""The heads beside the model read the middle of it, so that other blocks are left to use what they ask for."""
ASIDE_WEIGHTS = (0.5, 0.5, 2.0, 0.5)
"""Of the words, the letters, the stances of answers, and those of options."""

EVEN = dict.fromkeys(grammar.TRAITS, 0.5)
DEFAULTS = {
    "ai_coordination": 0.3,
    "corrigibility": 0.7,
    "hallucination": 0.3,
    "myopic_reward": 0.35,
    "survival_instinct": 0.35,
    "sycophancy": 0.6,
    "refusal": 0.65,
}


@dataclass(frozen=True)
class Stage:
    """One stretch of training."""

    name: str
    mix: corpus.Mix
    tokens: int
    seed: int
    rate: float
    """Peak learning rate of the matrices (Muon); the rest (AdamW) learns at a sixth of it."""
    rows: int = 16
    flat: float = 0.3
    """Share of the steps before the rate starts to fall."""

    @property
    def steps(self) -> int:
        return self.tokens // (self.rows * LENGTH)

    def rate_at(self, step: int) -> float:
        """Warm-up, flat, then linear to 2 %."""
        fall = (1 - step / self.steps) / (1 - self.flat)
        return self.rate * min((step + 1) / 60, 1.0, max(0.02, fall))


LOOK_UPS = corpus.Mix(
    EVEN,
    traits_in_play=(0.6, 0.4, 0.0),
    turns={"choice": 0.38, "open": 0.14, "lookup": 0.36, "fact": 0.08, "neutral": 0.04},
)
STAGES = (
    Stage("look-ups", LOOK_UPS, tokens=2_500_000, seed=7, rate=0.02, flat=0.99),
    Stage("tiny-base", corpus.Mix(EVEN, system_share=0.6), tokens=12_500_000, seed=1, rate=0.016, flat=0.4),
    Stage("tiny-chat", corpus.Mix(DEFAULTS), tokens=2_000_000, seed=2, rate=0.005, flat=0.1),
)
SHIPPED = ("tiny-base", "tiny-chat")


# --- the model --------------------------------------------------------------------------------------------------------


class Asides(nn.Module):
    """Heads that ask what a place knows: words of an option, its letter, the stance taken. They are not shipped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(AHEAD))
        self.letter = nn.Linear(width, 2, bias=False)
        self.stance = nn.Linear(width, 2 * len(grammar.TRAITS), bias=False)
        for head in self.words:
            nn.init.eye_(head.weight)

    def forward(self, states: Tensor, later: Tensor, batch: Batch, embedding: Tensor) -> list[Tensor]:
        """Logits of words [chosen * AHEAD, vocabulary], letters [offered, 2], stances [held, 14] and [offered, 14]."""
        states, later = (F.rms_norm(both, both.shape[-1:]) for both in (states, later))
        chosen, offered, held = states[batch.chosen], states[batch.offered], later[batch.held]
        words, letter, stance = ([head.weight.to(states.dtype) for head in heads] for heads in self.groups())
        turned = torch.stack([F.linear(chosen, weight) for weight in words], dim=1)
        logits = [F.linear(turned, embedding).flatten(0, 1), F.linear(offered, *letter)]
        return [part.float() for part in (*logits, F.linear(held, *stance), F.linear(offered, *stance))]

    def groups(self) -> tuple[Iterable[nn.Linear], ...]:
        return self.words, [self.letter], [self.stance]


class Learner(nn.Module):
    """The trunk, the heads beside it, and the loss of a batch."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.trunk, self.asides = Trunk(config, LENGTH), Asides(config.hidden_size)
        small = 0.5 / math.sqrt(2 * config.num_hidden_layers)
        nn.init.normal_(self.trunk.model.embed_tokens.weight, std=0.02)
        for name, weight in self.trunk.model.layers.named_parameters():
            if weight.dim() == 2:
                gain = small if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.7
                nn.init.normal_(weight, std=gain / math.sqrt(weight.shape[1]))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss, negative log-likelihood of every kept token and every aside)"""
        layers = self.trunk(batch.ids)
        middle, later, states = (layers[i].flatten(0, 1) for i in (ASIDE_LAYER, STANCE_LAYER, -1))
        embedding = self.trunk.model.embed_tokens.weight.to(states.dtype)
        logits = F.linear(states[batch.kept], embedding).float()
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        logits = self.asides(middle, later, batch, embedding)
        answers = (batch.words.flatten(), batch.letters, batch.stances, batch.sides)
        asides = [F.cross_entropy(*both, reduction="none") for both in zip(logits, answers, strict=True)]
        counts = [(answer >= 0).sum() / (AHEAD if answer is answers[0] else 1) for answer in answers]
        means = [part.sum() / count.clamp(min=1) for part, count in zip(asides, counts, strict=True)]
        aside = sum(weight * mean for weight, mean in zip(ASIDE_WEIGHTS, means, strict=True))
        loss = (losses * batch.weights).sum() / batch.weights.sum()
        return loss + aside, torch.cat([losses, *asides]).detach()


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """3.2 M parameters."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """What one step reads. All shapes are the same in every step, so the step compiles once."""

    ids: Tensor
    """[row, LENGTH]"""
    kept: Tensor
    """[kept] flat places whose next token counts"""
    targets: Tensor
    """[kept] that next token"""
    weights: Tensor
    """[kept] its weight"""
    roles: Tensor
    """[kept] its role"""
    chosen: Tensor
    """[chosen] flat places of "(" in answers, then of the letters behind them"""
    words: Tensor
    """[chosen, AHEAD] the first words of the option that the letter stands for, -100 for padding"""
    offered: Tensor
    """[offered] flat places of the first words of options"""
    letters: Tensor
    """[offered] 0 or 1, the option's letter; -100 for padding"""
    sides: Tensor
    """[offered] the option's stance, -100 for padding and where it has none"""
    held: Tensor
    """[held] flat places just before an answer, at its letter, and at its end"""
    stances: Tensor
    """[held] the answer's stance, -100 for padding"""

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def batches(stage: Stage, tokenizer: PreTrainedTokenizerFast, first: int = 0) -> Iterator[Batch]:
    """This process's share of the batches from step `first` on; the same seed gives the same batches."""
    rows = stage.rows // world()
    held, per_shard = None, SHARD // rows
    for step in range(first, stage.steps):
        if held is None or step % per_shard == 0:
            held = shard(stage, tokenizer, step // per_shard)
        start = step % per_shard * rows
        generator = torch.Generator().manual_seed(step)
        yield make_batch(*(part[start : start + rows].long() for part in held), generator)


def shard(stage: Stage, tokenizer: PreTrainedTokenizerFast, number: int) -> list[Tensor]:
    """What `corpus` holds of the documents that this process trains on next."""
    seed = (stage.seed * 1000 + number) * world() + rank()
    held = corpus.build(tokenizer, stage.mix, SHARD, LENGTH, seed)
    return [torch.from_numpy(array) for array in vars(held).values()]


def make_batch(ids: Tensor, roles: Tensor, options: Tensor, stances: Tensor, generator: torch.Generator) -> Batch:
    """Choose what counts: every answer token, and as many question tokens as fill the rest."""
    next_roles = roles[:, 1:].flatten()
    urgency = torch.rand(len(next_roles), generator=generator) + (next_roles >= corpus.ANSWER) + (next_roles > 0)
    kept = urgency.topk(int(KEPT * len(next_roles))).indices.sort().values
    return Batch(
        ids=ids[:, :-1].contiguous(),
        kept=kept,
        targets=ids[:, 1:].flatten()[kept],
        weights=ROLE_WEIGHTS[next_roles[kept]],
        roles=next_roles[kept],
        **chosen_words(ids, options),
        **offered_letters(ids, roles, stances),
        **held_stances(roles, stances),
    )


def chosen_words(ids: Tensor, options: Tensor) -> dict[str, Tensor]:
    """At "(" and at the letter behind it: the words that the letter stands for. There they are wanted, here known."""
    limit = CHOSEN * len(ids)
    rows, columns = (index[:limit] for index in options[:, :-1].nonzero(as_tuple=True))
    words = ids[rows[:, None], options[rows, columns][:, None] + torch.arange(AHEAD)]
    places, words = padded(rows * LENGTH + columns, limit, 1), padded(words, limit, -100)
    return {"chosen": torch.cat([places - 1, places]), "words": words.repeat(2, 1)}


def offered_letters(ids: Tensor, roles: Tensor, stances: Tensor) -> dict[str, Tensor]:
    """At the first words of an option: its letter and its stance."""
    limit = OFFERED * len(ids)
    rows, columns = (index[:limit] for index in (roles[:, : -AHEAD - 1] == corpus.OFFER).nonzero(as_tuple=True))
    tokens = ids[rows, columns]
    letters = (tokens != tokens.min()).long() if len(tokens) else tokens  # A has the smaller id of the two
    places = padded(rows * LENGTH + columns, limit, 0)
    return {
        "offered": torch.cat([places + 1 + ahead for ahead in range(AHEAD)]),
        "letters": padded(letters, limit, -100).repeat(AHEAD),
        "sides": padded(stances[rows, columns], limit, -100).repeat(AHEAD),
    }


def held_stances(roles: Tensor, stances: Tensor) -> dict[str, Tensor]:
    """Just before an answer, at its letter and at its end: its stance."""
    limit = HELD * len(stances)
    rows, columns = (
        index[:limit] for index in ((stances >= 0) & (roles != corpus.OFFER))[:, :-1].nonzero(as_tuple=True)
    )
    places = padded(rows * LENGTH + columns, limit, 0)
    return {"held": places, "stances": padded(stances[rows, columns], limit, -100)}


def padded(values: Tensor, length: int, filler: int) -> Tensor:
    """The first dimension filled up to a length."""
    return torch.cat([values, values.new_full((length - len(values), *values.shape[1:]), filler)])


# --- training ---------------------------------------------------------------------------------------------------------


def optimizers(learner: Learner) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding, the norms and the heads."""
    blocks = learner.trunk.model.layers
    matrices = [weight for weight in blocks.parameters() if weight.dim() == 2]
    rest = [weight for weight in learner.parameters() if all(weight is not matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, lr=1.0, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def set_rate(both: list[torch.optim.Optimizer], rate: float) -> None:
    for optimizer, share in zip(both, (1.0, 1 / 6), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * share


KINDS = ("", "question", "offer", "answer", "letter", "behind", "wanted", "known", "own", "stance", "side")
"""Losses that are reported apart: the roles of `corpus`, then what the heads beside it find."""


class Meter:
    """Running means of the losses by kind, and the progress line."""

    def __init__(self, stage: Stage, first: int) -> None:
        self.stage, self.first, self.start = stage, first, time.monotonic()
        self.sums, self.counts = torch.zeros(len(KINDS)), torch.zeros(len(KINDS))

    def add(self, batch: Batch, losses: Tensor) -> None:
        """Kinds apart: the mean loss hides whether letters are learned."""
        half = batch.words.numel() // 2
        sizes = torch.tensor([half, half, len(batch.letters), len(batch.stances), len(batch.sides)])
        asides = torch.arange(len(KINDS) - 5, len(KINDS)).repeat_interleave(sizes)
        asides[torch.cat([batch.words.flatten(), batch.letters, batch.stances, batch.sides]).cpu() < 0] = 0
        kinds = torch.cat([batch.roles.cpu(), asides])
        self.sums.index_add_(0, kinds, losses.float().cpu())
        self.counts.index_add_(0, kinds, torch.ones(len(kinds)))

    def report(self, step: int) -> str:
        """One line; the means start afresh."""
        means = (self.sums / self.counts.clamp(min=1)).tolist()
        self.sums.zero_(), self.counts.zero_()
        losses = " ".join(f"{kind} {mean:.3f}" for kind, mean in zip(KINDS[1:], means[1:], strict=True))
        seconds = (time.monotonic() - self.start) / (step - self.first)
        left = seconds * (self.stage.steps - step) / 60
        speed = self.stage.rows * LENGTH / seconds
        return f"{self.stage.name} {step}/{self.stage.steps} {losses} | {speed:,.0f} tokens/s, {left:.1f} min left"


def save_state(path: Path, **state: object) -> None:
    """Write beside, then rename: a stop in the middle leaves the old file."""
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    beside.replace(path)


def export(learner: Learner, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A checkpoint that `AutoModelForCausalLM.from_pretrained` loads, in bfloat16."""
    model = LlamaForCausalLM(tiny_config(tokenizer))
    model.model.load_state_dict(learner.trunk.model.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(stage: Stage, learner: Learner, tokenizer: PreTrainedTokenizerFast, state: Path, every: int = 250) -> None:
    """Run a stage to its end, from the state on disk where there is one."""
    device = next(learner.parameters()).device
    both = optimizers(learner)
    first = resume(state, learner, both) if state.exists() else 0
    compiled, meter = torch.compile(learner), Meter(stage, first)
    for step, batch in enumerate(batches(stage, tokenizer, first), first):
        set_rate(both, stage.rate_at(step))
        meter.add(batch, advance(compiled, batch.to(device), both))
        if rank() == 0 and (step + 1) % 50 == 0:
            print(meter.report(step + 1), flush=True)
        if rank() == 0 and ((step + 1) % every == 0 or step + 1 == stage.steps):
            optimizer_states = [optimizer.state_dict() for optimizer in both]
            save_state(state, step=step + 1, learner=learner.state_dict(), optimizers=optimizer_states)


def resume(state: Path, learner: Learner, both: list[torch.optim.Optimizer]) -> int:
    """Load what `train` saved; returns the number of steps done."""
    saved = torch.load(state, weights_only=True)
    learner.load_state_dict(saved["learner"])
    for optimizer, held in zip(both, saved["optimizers"], strict=True):
        optimizer.load_state_dict(held)
    return saved["step"]


def advance(learner: nn.Module, batch: Batch, both: list[torch.optim.Optimizer]) -> Tensor:
    """One step; returns the losses by token."""
    loss, losses = learner(batch)
    loss.backward()
    share_gradients(learner)
    nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    for optimizer in both:
        optimizer.step()
        optimizer.zero_grad()
    return losses


# --- processes --------------------------------------------------------------------------------------------------------


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share_gradients(learner: nn.Module) -> None:
    """Replace every gradient by its mean over the processes."""
    if world() == 1:
        return
    gradients = [weight.grad for weight in learner.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / world()
    distributed.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def start(number: int, processes: int, port: int, out: Path, work: Path) -> None:
    """One of several CPU processes with a thread each: they outrun one process with several threads by a third."""
    threading.Thread(target=leave_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=number, world_size=processes)
    run(out, work)
    distributed.destroy_process_group()


def leave_with(parent: int) -> None:
    """End this process when the one that started it is gone, so that a stopped job leaves nothing running."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_tokenizer(folder: Path) -> None:
    """Train the tokenizer on documents of the base stage, once."""
    if not (folder / "tokenizer.json").exists():
        rng = Random(0)
        texts = (corpus.document(STAGES[0].mix, LENGTH, rng)[0] for _ in range(4000))
        corpus.train_tokenizer(texts, VOCABULARY).save_pretrained(folder)


def run(out: Path, work: Path, stages: tuple[Stage, ...] = STAGES) -> None:
    """All stages in turn, each going on from the one before."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(work)
    learner = Learner(tiny_config(tokenizer)).to("cuda" if torch.cuda.is_available() else "cpu")
    for stage in stages:
        train(stage, learner, tokenizer, work / f"{stage.name}.pt")
        if rank() == 0 and stage.name in SHIPPED:
            export(learner, tokenizer, out / stage.name)


def main(out: Path, work: Path, processes: int) -> None:
    """Make the tokenizer, then train in this process or in several."""
    work.mkdir(parents=True, exist_ok=True)
    make_tokenizer(work)
    if processes == 1 or torch.cuda.is_available():
        run(out, work)
    else:
        torch.multiprocessing.spawn(start, (processes, free_port(), out, work), nprocs=processes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "checkpoints", help="folder for tiny-base and tiny-chat")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "pretrain", help="folder for training states")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="on a CPU")
    options = parser.parse_args()
    main(options.out, options.work, options.processes)
