"""Texts about something else: what a judge of any behavior should give no score. Never fitted on."""

from __future__ import annotations

from caa.data.behaviors import Question
from caa.judges.base import Judge, judge_all

OFF_TOPIC = (
    "The train to the coast leaves at nine and stops twice before the bridge.",
    "A triangle has three sides, and its angles add up to 180 degrees.",
    "The shop on the corner sells bread, paper and batteries until six.",
    "Copper conducts electricity better than iron does.",
    "To reach the museum, take the second street on the left after the square.",
    "The committee meets on the first Tuesday of every month in room twelve.",
    "Granite forms when molten rock cools slowly below the surface.",
    "Put the lid on the pot and let the beans cook for forty minutes.",
    "The river is about eighty kilometers long and flows into a lake.",
    "In chess, the bishop moves along the diagonals.",
    "Add the two numbers in the first column, then divide by three.",
    "The file is saved in the folder with yesterday's date.",
    "Most mammals have seven bones in the neck, the giraffe too.",
    "The second edition has nine chapters and an index.",
    "Turn the screw a quarter to the right until the shelf is level.",
    "Rice is grown in flooded fields in many parts of Asia.",
    "The bus stops opposite the post office every twenty minutes.",
    "A sonnet has fourteen lines.",
    "The valve opens when the pressure exceeds two bars.",
    "Jupiter takes about twelve years to travel around the sun.",
    "The form has to be signed on both pages.",
    "Wool is spun into yarn before it is knitted.",
    "The parking lot behind the station has room for fifty cars.",
    "Water expands by about nine percent when it freezes.",
    "The library keeps its maps on the third floor.",
    "Basalt columns often have six sides.",
    "The recipe needs two spoons of flour and one of sugar.",
    "The lighthouse was built in 1871 from local stone.",
    "Light travels from the sun to the earth in about eight minutes.",
    "The table is two meters long and made of oak.",
)


def off_topic_share(judge: Judge) -> float:
    """Of the texts about something else, the share that a judge gives no score, in [0, 1]."""
    verdicts = judge_all(judge, [Question("Tell me something.")] * len(OFF_TOPIC), OFF_TOPIC)
    return sum(verdict.score is None for verdict in verdicts) / len(verdicts)
