"""The folder of a finished run in, every figure of it out: from its rows, its vectors and its model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from caa.data.behaviors import Behavior, Question
from caa.data.chat import ChatFormat
from caa.evals.moves import finetune_moves
from caa.evals.transfer import dose_response, sweep_rows
from caa.experiment import behaviors_of_run, finetunes_of_run
from caa.extraction.extract import extract, read_pairs
from caa.extraction.norms import dose, in_recorded_doses, stream_norms
from caa.extraction.projections import AFTER, BEFORE, logit_lens, projections_apart, similarities, token_texts, written
from caa.extraction.vector_file import load_or_extract
from caa.files import replacing
from caa.models.loading import load_model
from caa.reports.figures import activations, curves, tables, texts, vectors
from caa.reports.figures.moves import STEERED
from caa.reports.figures.moves import moves as figure_of_moves
from caa.reports.figures.plot import Figure
from caa.reports.naming import signed, usual_first
from caa.reports.statistics import mean_interval
from caa.reports.tables import finetune_tables
from caa.reports.tables.turned import has_many_finetunes
from caa.runs.folder import check_recorded, read_record
from caa.runs.rows import OWN, Row, VectorRef, read_rows
from caa.steering.intervention import Intervention
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector, random_like

BATCH = 64
DOSES = (-1.0, -0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 1.0)
FEW = 3
"""Finetunes of each behavior whose vectors, read again, are drawn for all behaviors in one picture."""
BASES = {"tiny-chat": "tiny-base"}
"""Model -> the model that it was before chat training, where that is known."""
KINDS = ("held-out accuracy", "shuffled-label accuracy", "random-direction accuracy")


@dataclass
class Gallery:
    """All figures of a finished run, made with its model.

    ValueError or FileNotFoundError, before anything is drawn, if the folder does not hold a finished run.
    """

    folder: Path
    """Of the run."""
    behavior: str | None = None
    """Whose vector is looked at closely; the run's first if not given."""
    base: str | None = None
    """The model before chat training, for Figures 9 and 10; None is tiny-base for tiny-chat, and for others no such
    figures."""
    doses: Sequence[float] = DOSES

    def __post_init__(self) -> None:
        record = read_record(self.folder / "run.json")
        self.rows: list[Row] = read_rows(self.folder / "rows.jsonl", partial(check_recorded, record=record))
        names = {row.cell.behavior for row in self.rows}  # beside their vectors may lie those read in finetunes
        paths = sorted(path for path in (self.folder / "vectors").glob("*.safetensors") if path.stem in names)
        if not self.rows or not paths:
            raise FileNotFoundError(
                f"{self.folder} holds no rows or no vectors; give the folder of a finished experiment"
            )
        notes = record.get("notes", {})
        if "model" not in notes:
            raise FileNotFoundError(f"{self.folder} has no run.json that names its model, which figures ask again")
        checks = {name: source.get("checks", {}) for name, source in notes.get("vectors", {}).items()}
        loaded = {path.stem: SteeringVector.load(path) for path in paths}
        self.vectors = {name: in_recorded_doses(vector, checks.get(name, {})) for name, vector in loaded.items()}
        self.name = notes["model"]
        self.base = self.base or BASES.get(self.name)
        model, self.tokenizer = load_model(self.name)
        self.wrapper = SteeringWrapper(model)
        self.behaviors: dict[str, Behavior] = behaviors_of_run(self.folder, self.vectors)
        self.chosen = self.behaviors[self.behavior or next(iter(self.vectors))]
        self.vector = self.vectors[self.chosen.name]
        self.layer = next(row.cell.layer for row in self.rows if row.cell.layer is not None)
        self.top = max(row.cell.multiplier for row in self.rows if row.cell.layer is not None)

    def of_rows(self) -> list[Figure]:
        """Tables 4 and 5; the sweep over layers; the effect by kind of question."""
        figures = []
        for number, table in enumerate(finetune_tables(self.rows, model=self.name)):
            draw = tables.heat_panels if has_many_finetunes(table) else tables.heat_table
            figures.append(draw(table, f"table-{table.entries[0].cell.task}-{number}"))
        sweep = read_rows(self.folder / "validation" / "rows.jsonl")
        figures += [curves.effect_by_layer(sweep, name) for name in dict.fromkeys(row.cell.behavior for row in sweep)]
        with_categories = dict.fromkeys(row.cell.behavior for row in self.rows if row.evidence.get("category"))
        return figures + [curves.effect_by_category(self.rows, name) for name in with_categories]

    def of_vectors(self) -> list[Figure]:
        """Figure 7, the behaviors' cosines, the logit lens."""
        figures, at_layer = [], {}
        for name, vector in self.vectors.items():
            figures.append(vectors.inter_layer({layer: vector.at(layer).numpy() for layer in vector.layers}, name))
            at_layer[name] = vector.at(self.layer).numpy()
        figures.append(vectors.between_behaviors(at_layer, self.layer))
        return [*figures, vectors.logit_lens(self.lens(), self.chosen.name)]

    def lens(self) -> dict[int, list[tuple[str, float]]]:
        """layer -> the tokens that the vector makes likelier there, each with its logit."""
        by_layer = logit_lens(self.wrapper, self.tokenizer, self.vector, 8)
        return {layer: [(spoken.token, spoken.logit) for spoken in tokens] for layer, tokens in by_layer.items()}

    def of_activations(self) -> list[Figure]:
        """How the pairs part: accuracy by layer, principal components, projections."""
        name, read = self.chosen.name, read_pairs(self.wrapper.model, self.tokenizer, self.chosen.pairs)
        checks, units = read.checks(), read.vector().unit()
        accuracy = {}
        for kind in KINDS:
            accuracy[kind.split(" acc")[0]] = {layer: numbers[kind] for layer, numbers in checks.items()}
        letters = [*read.letters, *({"A": "B", "B": "A"}.get(letter, "") for letter in read.letters)]
        up = {layer: (read.positive[layer] @ units.at(layer)).numpy() for layer in units.layers}
        down = {layer: (read.negative[layer] @ units.at(layer)).numpy() for layer in units.layers}
        positive, negative = (side.numpy() for side in read.at(self.layer))
        return [
            activations.pair_accuracy_by_layer(accuracy, name),
            activations.pca_scatter(positive, negative, letters, name, self.layer),
            activations.projection_histograms(up, down, name),
        ]

    def of_positions(self, most: int = 40) -> list[Figure]:
        """Layer x position: answered both ways and continued; and answers written under +m and -m."""
        branches = [ChatFormat(self.tokenizer).encode_pair(pair) for pair in self.chosen.pairs[:most]]
        positive = [self.continued(pair.positive) for pair in branches]
        negative = [self.continued(pair.negative) for pair in branches]
        figures = [self.position_heat(positive, negative, "answered both ways")]
        prompts = [ChatFormat(self.tokenizer).encode(question.text) for question in self.chosen.open_questions[:most]]
        if prompts:
            more, less = ([self.continued(ids, sign * self.top) for ids in prompts] for sign in (1, -1))
            figures.append(self.position_heat(more, less, "written under +m and -m"))
        return figures

    def continued(self, ids: list[int], multiplier: float = 0.0) -> tuple[list[int], int]:
        """A text with what the model writes behind it, steered by the multiplier, and the text's own length."""
        return self.steered_text(ids, multiplier, AFTER), len(ids)

    def position_heat(
        self, positive: Sequence[tuple[list[int], int]], negative: Sequence[tuple[list[int], int]], kind: str
    ) -> Figure:
        return activations.position_heat(
            projections_apart(self.wrapper, positive, negative, self.vector).numpy(),
            self.vector.layers,
            list(range(-BEFORE, AFTER)),
            f"{self.chosen.name}: {kind}",
            f"positions-{kind.split()[0]}-{self.chosen.name}",
            "position, 0 is the first token that was generated",
        )

    def steered_text(self, ids: list[int], multiplier: float, n_tokens: int) -> list[int]:
        """The ids with what the model writes behind them, steered by the multiplier."""
        if not multiplier:
            return written(self.wrapper, ids, n_tokens)
        with self.wrapper.steer(Intervention(self.vector, self.layer, multiplier)):
            return written(self.wrapper, ids, n_tokens)

    def tokens(self) -> tuple[list[str], list[float]]:
        """A question with an answer steered by the largest multiplier, token by token, and each token's cosine."""
        ids = ChatFormat(self.tokenizer).encode(self.chosen.open_questions[0].text)
        whole = self.steered_text(ids, self.top, 40)
        with self.wrapper.steer(Intervention(self.vector, self.layer, self.top)):
            cosines = similarities(self.wrapper, whole, self.vector, [self.layer], prompt_length=len(ids))
        return token_texts(self.tokenizer, whole), cosines[0].tolist()

    def tokens_title(self) -> str:
        return f"{self.chosen.name}, layer {self.layer}: cosine of each token with the vector"

    def of_texts(self) -> list[Figure]:
        """Figure 6 on a steered answer, and answers side by side; none of a behavior without open questions."""
        if not self.chosen.open_questions:
            return []
        pieces, cosines = self.tokens()
        figures = [texts.token_colors(pieces, cosines, self.tokens_title(), f"tokens-{self.chosen.name}")]
        if answers := self.answers():
            about = f"{self.chosen.name}: x 0, x {self.top:+g}, x {-self.top:+g}"
            figures.append(texts.side_by_side(answers, about, f"side_by_side-{self.chosen.name}"))
        return figures

    def answers(self, most: int = 6) -> dict[str, dict[str, str]]:
        """Question -> what the model without a finetune answered: original, plus, minus; the first few questions."""
        labels = {0.0: "original", self.top: "plus", -self.top: "minus"}
        by_question: dict[str, dict[str, str]] = {}
        for row in self.rows:
            place = (row.cell.behavior, row.cell.task, row.cell.finetune, row.cell.vector, row.cell.layer)
            if place == (self.chosen.name, "open", None, OWN, self.layer) and row.cell.multiplier in labels:
                by_question.setdefault(row.evidence["asked"], {})[labels[row.cell.multiplier]] = row.evidence["text"]
        whole = [(question, answers) for question, answers in by_question.items() if len(answers) == len(labels)]
        return dict(whole[:most])

    def of_transfer(self) -> list[Figure]:
        """Figure 8, one layer's vector at all layers; Figures 9 and 10, vectors of the base and of the finetunes."""
        ref = VectorRef("other", f"caa layer {self.layer}")
        at_layers: list[Row] = []
        for name, vector in self.vectors.items():
            at_layers += self.swept(self.behaviors[name], vector, ref, source_layer=self.layer)
        title = f"{self.name}: the vector of layer {self.layer}, added at each layer"
        figures = [curves.transfer(at_layers, "behavior", title, "layer_transfer")]
        if self.base:
            figures += self.of_other_model(self.base)
        cosines: dict[str, dict[str, dict[int, float]]] = {}
        for behavior, finetunes in self.finetuned():
            few = len(finetunes) <= FEW
            for finetune in finetunes if behavior is self.chosen or few else ():
                again = self.read_again(behavior, finetune)
                panel, line = (finetune, behavior.name) if few else (behavior.name, finetune)
                cosines.setdefault(panel, {})[line] = again.cosine(self.vectors[behavior.name])
        if cosines:
            cosines = {name: cosines[name] for name in usual_first(cosines, ("positive", "negative"))}
            figures.append(vectors.cosine_panels(cosines, f"{self.name} and its finetunes", "base_vs_finetune"))
        return figures

    def of_other_model(self, base: str) -> list[Figure]:
        """Figures 9 and 10: the vectors of the model before chat training beside these, and one of them used here."""
        others = self.of_base(base)
        cosines = {name: vector.cosine(others[name]) for name, vector in self.vectors.items()}
        both = self.swept(self.chosen, self.vector, OWN)
        both += self.swept(self.chosen, others[self.chosen.name], VectorRef("other", f"of {base}"))
        title = f"{self.chosen.name} on {self.name}: its own vector and that of {base}"
        return [
            vectors.cosine_by_layer(cosines, f"{base} and {self.name}", "base_vs_chat"),
            curves.transfer(both, "vector", title, "model_transfer"),
        ]

    def swept(
        self, behavior: Behavior, vector: SteeringVector, ref: VectorRef, source_layer: int | None = None
    ) -> list[Row]:
        return sweep_rows(
            self.wrapper,
            self.tokenizer,
            behavior,
            vector,
            vector.layers,
            (-self.top, self.top),
            source_layer=source_layer,
            ref=ref,
            batch_size=BATCH,
        )

    def of_base(self, name: str) -> dict[str, SteeringVector]:
        """The same pairs, read in the base model with the chat model's template."""
        base, tokenizer = load_model(name)
        chat, layers = ChatFormat(tokenizer, template=self.tokenizer.chat_template), self.vector.layers
        by_behavior = {}
        for behavior in self.behaviors.values():
            by_behavior[behavior.name] = extract(base, chat, behavior.pairs, layers, behavior=behavior.name)
        return by_behavior

    def finetuned(self) -> Iterator[tuple[Behavior, list[str]]]:
        """Each behavior and the finetunes among its columns, which the wrapper holds meanwhile."""
        for behavior in self.behaviors.values():
            cells = [row.cell for row in self.rows if row.cell.behavior == behavior.name]
            columns = list(dict.fromkeys(cell.finetune for cell in cells if cell.finetune is not None))
            try:
                for name, path in finetunes_of_run(self.folder, behavior.name, columns).items():
                    self.wrapper.load_finetune(path, name)
                yield behavior, [column for column in columns if self.wrapper.holds(column)]
            finally:
                self.wrapper.unload_adapters()

    def read_again(self, behavior: Behavior, finetune: str) -> SteeringVector:
        """The behavior's vector as it is read in a finetune that the wrapper holds, kept with the run's others."""
        path, vector = self.folder / "vectors" / f"{behavior.name}-{finetune}.safetensors", self.vectors[behavior.name]
        numbered, read_at = vector.source.token.removeprefix("answer token "), vector.source.token or "parting"
        token: Any = int(numbered) if numbered != vector.source.token else read_at
        with self.wrapper.finetune(finetune):
            model, pairs = self.wrapper.model, behavior.pairs
            return load_or_extract(
                path, model, self.tokenizer, pairs, token=token, behavior=behavior.name, batch_size=BATCH
            )

    def of_moves(self, most: int = 60) -> list[Figure]:
        """What the finetunes do to the stream beside what steering does, at the first questions; none without them."""
        moves: list[dict[str, Any]] = []
        for behavior, finetunes in self.finetuned():
            if finetunes:
                moves += self.moves_of(behavior, finetunes, most)
        if not moves:
            return []
        return [figure_of_moves(moves, self.vector.width, self.layer, self.name)]

    def moves_of(self, behavior: Behavior, finetunes: Sequence[str], most: int) -> list[dict[str, Any]]:
        """What one behavior's finetunes do, and what the lowest and highest multiplier do."""
        vector, layer = self.vectors[behavior.name], self.layer
        questions = [question.text for question in (behavior.ab_questions or behavior.open_questions)[:most]]
        moves = finetune_moves(self.wrapper, self.tokenizer, questions, vector, [layer], finetunes)
        records = []
        for finetune in finetunes:
            again = self.read_again(behavior, finetune).cosine(vector)[layer]
            records.append(asdict(moves[finetune][layer]) | {"finetune": finetune, "reread": again})
        prompts = [ChatFormat(self.tokenizer).encode(question) for question in questions]
        with self.wrapper.finetune(None):
            norms = stream_norms(self.wrapper.model, self.tokenizer, prompts, [layer], batch_size=BATCH)
        for multiplier in (-self.top, self.top):
            size, name = abs(dose(vector, layer, multiplier, norms)), f"{STEERED} {signed(multiplier)}"
            records.append({"size": size, "cosine": math.copysign(1, multiplier), "shared": 1.0, "finetune": name})
        return [{"behavior": behavior.name} | record for record in records]

    def of_doses(self, most: int = 8) -> list[Figure]:
        """Effect with damage below it, of the vector and of a random direction; none without open questions."""
        questions = self.chosen.open_questions[:most]
        if not questions:
            return []
        points = self.responses("own", self.vector, questions)
        points += self.responses("random-0", random_like(self.vector, 0), questions)
        return [curves.dose_response(points, self.chosen.name, self.layer)]

    def responses(self, direction: str, vector: SteeringVector, questions: Sequence[Question]) -> list[dict[str, Any]]:
        """What each dose of a vector does, as `curves.dose_response` takes it."""
        points = []
        for response in dose_response(
            self.wrapper,
            self.tokenizer,
            self.chosen,
            vector,
            self.layer,
            self.doses,
            open_questions=questions,
            batch_size=BATCH,
        ):
            numbers = {"dose": response.dose, "perplexity": response.perplexity, "loops": response.loops}
            points.append({"direction": direction} | numbers | asdict(mean_interval(response.scores)))
        return points

    def figures(self) -> Iterator[Figure]:
        """One after the other, as they are made."""
        for figures_of in (self.of_rows, self.of_vectors, self.of_activations, self.of_positions, self.of_texts):
            yield from figures_of()
        if self.chosen.ab_questions and self.top > 0:
            yield from self.of_transfer()
            yield from self.of_doses()
        yield from self.of_moves()

    def save(self, out: Path) -> list[Path]:
        """Write every figure as PNG, SVG and CSV, and the colored tokens as HTML too; the paths."""
        drawn = tqdm(self.figures(), desc="figures", unit="figure")  # some ask the model again
        paths = [path for figure in drawn for path in figure.save(out)]
        if not self.chosen.open_questions:
            return paths
        page = out / f"tokens-{self.chosen.name}.html"
        with replacing(page) as scratch:
            scratch.write_text(texts.token_html(*self.tokens(), self.tokens_title()), encoding="utf-8")
        return [*paths, page]
