# What type checkers and editors see of the names that __init__.py imports when they are first used.

from caa import judges as judges
from caa.data.behaviors import Behavior as Behavior
from caa.data.behaviors import ContrastPair as ContrastPair
from caa.data.behaviors import Question as Question
from caa.data.chat import ChatFormat as ChatFormat
from caa.data.sources import load_behavior as load_behavior
from caa.evals.grid import EvalGrid as EvalGrid
from caa.experiment import Experiment as Experiment
from caa.extraction.extract import extract as extract
from caa.models.loading import load_model as load_model
from caa.reports.tables.report import write_report as write_report
from caa.steering import operators as operators
from caa.steering import scopes as scopes
from caa.steering.intervention import Intervention as Intervention
from caa.steering.wrapper import SteeringWrapper as SteeringWrapper
from caa.studies.search import search as search
from caa.training.sft import finetune as finetune
from caa.vectors import formats as formats
from caa.vectors import methods as methods
from caa.vectors.vector import SteeringVector as SteeringVector

__version__: str
