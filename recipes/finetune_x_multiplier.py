"""python recipes/finetune_x_multiplier.py --config recipes/configs/embedded.yaml

Reproduces Tables 4 and 5 of Rimsky et al. (2024), "Steering Llama 2 via Contrastive Activation Addition": every
behavior, three finetunes by three multipliers, letter probabilities, open-ended scores and facts. A stopped run goes on
when it is run again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from jsonargparse import ArgumentParser
from rich.console import Console

from caa.experiment import Experiment
from caa.reports.tables import to_terminal


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="config", help="a file with any of the settings below")
    parser.add_class_arguments(Experiment)
    settings = parser.instantiate_classes(parser.parse_args(arguments)).as_dict()
    del settings["config"]
    logging.basicConfig(format="%(message)s")
    logging.getLogger("caa").setLevel(logging.INFO)
    for table in Experiment(**settings).run():
        Console().print(to_terminal(table))


if __name__ == "__main__":
    main()
