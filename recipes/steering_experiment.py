"""python recipes/steering_experiment.py --behavior myopic_reward --limit 12

The exercise of many lessons on steering: a vector at several layers, the effect at each, the best coefficient, side
effects, the best (layer, coefficient) pair; then whether it holds over other prompts.
"""

from __future__ import annotations

from jsonargparse import auto_cli
from rich.console import Console

from caa import Intervention, SteeringWrapper, extract, load_behavior, load_model, search
from caa.studies.prompts import prompt_families
from caa.studies.robustness import robustness


def steering_experiment(behavior: str = "myopic_reward", model: str = "tiny-chat", limit: int | None = None) -> None:
    """Print what was found; on another model `--model smollm2 --behavior past_tense`, for instance."""
    network, tokenizer = load_model(model)
    wrapper, asked_about = SteeringWrapper(network), load_behavior(behavior).first_questions(limit)
    lettered = any(pair.positive.startswith("(") for pair in asked_about.pairs)
    vector = extract(network, tokenizer, asked_about, token="parting" if lettered else "mean")  # 1. at all layers
    result = search(wrapper, tokenizer, asked_about, vector, batch_size=64)  # 2. and 3.
    show = Console(soft_wrap=True).print
    for trial in result.front:
        spent = result.budget.spent(trial.damage)
        show(f"{trial.candidate}: effect {trial.gain:+.2f}, {spent:.0%} of the damage budget")
    show(result.verdict)
    if not result.works or result.chosen is None or result.confirmation is None or result.multiplier is None:
        return
    show({name: round(effect.mean, 2) for name, effect in result.confirmation.side_effects.items()})  # 4.
    best = Intervention(vector, result.chosen.layer, result.multiplier)  # 5.
    [held] = robustness(wrapper, tokenizer, prompt_families(asked_about, asked_about.ab_questions[:10]), best)
    how = f"robustness {held.consistency:.2f}, wrong way {held.wrong.mean:.0%}"
    show(f"{how}, fails first: {held.worst_first[0].text!r}")


if __name__ == "__main__":
    auto_cli(steering_experiment)
