"""The folder of a finished run in, every figure of it out: from its rows, its vectors and its model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from caa.data.behaviors import Behavior
from caa.data.chat import ChatFormat
from caa.data.sources import load_behavior
from caa.evals.transfer import dose_response, sweep_rows
from caa.extraction.extract import extract, read_pairs
from caa.extraction.projections import Spoken, logit_lens, projections_around, similarities, token_texts, written
from caa.files import replacing
from caa.models.loading import load_model
from caa.reports.figures import activations, curves, tables, texts, vectors
from caa.reports.figures.plot import Figure
from caa.reports.statistics import mean_interval
from caa.reports.tables import finetune_tables
from caa.runs.rows import OWN, Row, VectorRef, read_rows
from caa.steering.intervention import Intervention
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector

DOSES = (-1.0, -0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 1.0)
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
        self.rows: list[Row] = read_rows(self.folder / "rows.jsonl")
        asked = {row.cell.behavior for row in self.rows}  # beside their vectors may lie those read in finetunes
        paths = sorted(path for path in (self.folder / "vectors").glob("*.safetensors") if path.stem in asked)
        if not self.rows or not paths:
            raise FileNotFoundError(
                f"{self.folder} holds no rows or no vectors; give the folder of a finished experiment"
            )
        self.vectors = {path.stem: SteeringVector.load(path) for path in paths}
        self.name = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))["notes"]["model"]
        self.base = self.base or BASES.get(self.name)
        model, self.tokenizer = load_model(self.name)
        self.wrapper = SteeringWrapper(model)
        self.behaviors: dict[str, Behavior] = {name: load_behavior(name) for name in self.vectors}
        self.chosen = self.behaviors[self.behavior or next(iter(self.vectors))]
        self.vector = self.vectors[self.chosen.name]
        self.layer, self.top = self.rows[0].cell.layer, max(row.cell.multiplier for row in self.rows)

    def of_rows(self) -> list[Figure]:
        """Tables 4 and 5; the sweep over layers; the effect by kind of question."""
        made = finetune_tables(self.rows, model=self.name)
        drawn = [tables.heat_table(table, f"table-{table.entries[0].cell.task}-{n}") for n, table in enumerate(made)]
        swept = read_rows(self.folder / "validation" / "rows.jsonl")
        drawn += [curves.effect_by_layer(swept, name) for name in dict.fromkeys(row.cell.behavior for row in swept)]
        sorts = dict.fromkeys(row.cell.behavior for row in self.rows if row.evidence.get("category"))
        return drawn + [curves.effect_by_category(self.rows, name) for name in sorts]

    def of_vectors(self) -> list[Figure]:
        """Figure 7, the behaviors' cosines, the logit lens."""
        each = {name: {i: v.at(i).numpy() for i in v.layers} for name, v in self.vectors.items()}
        lens = {i: [(s.token, s.logit) for s in line] for i, line in self.lens().items()}
        drawn = [vectors.inter_layer(v, name) for name, v in each.items()]
        drawn.append(vectors.between_behaviors({name: v[self.layer] for name, v in each.items()}, self.layer))
        return [*drawn, vectors.logit_lens(lens, self.chosen.name)]

    def lens(self) -> dict[int, list[Spoken]]:
        return logit_lens(self.wrapper, self.tokenizer, self.vector, 8)

    def of_activations(self) -> list[Figure]:
        """How the pairs part: accuracy by layer, principal components, projections."""
        name, read = self.chosen.name, read_pairs(self.wrapper.model, self.tokenizer, self.chosen.pairs)
        checks, units = read.checks(), read.vector().unit()
        accuracy = {kind.split(" acc")[0]: {i: each[kind] for i, each in checks.items()} for kind in KINDS}
        letters = [*read.letters, *({"A": "B", "B": "A"}.get(letter, "") for letter in read.letters)]
        up, down = (
            {i: (side[i] @ units.at(i)).numpy() for i in units.layers} for side in (read.positive, read.negative)
        )
        positive, negative = (side.numpy() for side in read.at(self.layer))
        return [
            activations.pair_accuracy_by_layer(accuracy, name),
            activations.pca_scatter(positive, negative, letters, name, self.layer),
            activations.projection_histograms(up, down, name),
        ]

    def of_positions(self, before: int = 5, after: int = 6) -> list[Figure]:
        """Layer x position: answered both ways and continued; and answers written under +m and -m."""
        parted = [ChatFormat(self.tokenizer).encode_pair(pair) for pair in self.chosen.pairs[:40]]
        sides = ([b.positive for b in parted], [b.negative for b in parted])
        answered = [[(written(self.wrapper, ids, after), len(ids)) for ids in side] for side in sides]
        prompts = [ChatFormat(self.tokenizer).encode(question.text) for question in self.chosen.open_questions[:40]]
        free = [[(self.said(ids, sign * self.top, after), len(ids)) for ids in prompts] for sign in (1, -1)]
        drawn = []
        for kind, both in (("answered both ways", answered), ("written under +m and -m", free)):
            difference = torch.sub(
                *(projections_around(self.wrapper, some, self.vector, before, after) for some in both)
            )
            places, title = list(range(-before, after)), f"{self.chosen.name}: {kind}"
            across = "position, 0 is the first token that was generated"
            name = f"positions-{kind.split()[0]}-{self.chosen.name}"
            drawn.append(activations.position_heat(difference.numpy(), self.vector.layers, places, title, name, across))
        return drawn

    def said(self, ids: list[int], multiplier: float, n_tokens: int) -> list[int]:
        with self.wrapper.steer(Intervention(self.vector, self.layer, multiplier)):
            return written(self.wrapper, ids, n_tokens)

    def tokens(self) -> tuple[list[str], list[float]]:
        """A question with an answer steered by the largest multiplier, token by token, and each token's cosine."""
        ids = ChatFormat(self.tokenizer).encode(self.chosen.open_questions[0].text)
        whole = self.said(ids, self.top, 40)
        with self.wrapper.steer(Intervention(self.vector, self.layer, self.top)):
            found = similarities(self.wrapper, whole, self.vector, [self.layer], prompt_length=len(ids))
        return token_texts(self.tokenizer, whole), found[0].tolist()

    def tokens_title(self) -> str:
        return f"{self.chosen.name}, layer {self.layer}: cosine of each token with the vector"

    def of_texts(self) -> list[Figure]:
        """Figure 6 on a steered answer, and answers side by side."""
        pieces, values = self.tokens()
        name, title = f"tokens-{self.chosen.name}", self.tokens_title()
        drawn = [texts.token_colors(pieces, values, title, name)]
        if said := self.answers():
            about = f"{self.chosen.name}: x 0, x {self.top:+g}, x {-self.top:+g}"
            drawn.append(texts.side_by_side(said, about, f"side_by_side-{self.chosen.name}"))
        return drawn

    def answers(self, most: int = 6) -> dict[str, dict[str, str]]:
        """Question -> what the model without a finetune answered: original, plus, minus; the first few questions."""
        labels = {0.0: "original", self.top: "plus", -self.top: "minus"}
        said: dict[str, dict[float, str]] = {}
        for row in self.rows:
            place = (row.cell.behavior, row.cell.task, row.cell.finetune, row.cell.vector, row.cell.layer)
            if place == (self.chosen.name, "open", None, OWN, self.layer):
                said.setdefault(row.evidence["asked"], {})[row.cell.multiplier] = row.evidence["text"]
        whole = ((asked, each) for asked, each in said.items() if labels.keys() <= each.keys())
        return {asked: {label: each[m] for m, label in labels.items()} for asked, each in islice(whole, most)}

    def of_transfer(self) -> list[Figure]:
        """Figure 8, one layer's vector at all layers; Figures 9 and 10, vectors of the base and of the finetunes."""
        model, of_layer = self.name, VectorRef("other", f"caa layer {self.layer}")
        at_layers = [
            row
            for name, vector in self.vectors.items()
            for row in self.swept(self.behaviors[name], vector, source_layer=self.layer, ref=of_layer)
        ]
        title = f"{model}: the vector of layer {self.layer}, added at each layer"
        drawn = [curves.transfer(at_layers, "behavior", title, "layer_transfer")]
        if self.base:
            drawn += self.of_other_model(self.base)
        finetuned = {
            name: vector.cosine(self.vectors[name.rsplit(":", 1)[0]]) for name, vector in self.of_finetunes().items()
        }
        if finetuned:
            drawn.append(vectors.cosine_by_layer(finetuned, f"{model} and its finetunes", "base_vs_finetune"))
        return drawn

    def of_other_model(self, base: str) -> list[Figure]:
        """Figures 9 and 10: the vectors of the model before chat training beside these, and one of them used here."""
        others = self.of_base(base)
        cosines = {name: vector.cosine(others[name]) for name, vector in self.vectors.items()}
        own, other = self.vector, others[self.chosen.name]
        rows_of_both = [
            *self.swept(self.chosen, own),
            *self.swept(self.chosen, other, ref=VectorRef("other", f"of {base}")),
        ]
        title = f"{self.chosen.name} on {self.name}: its own vector and that of {base}"
        return [
            vectors.cosine_by_layer(cosines, f"{base} and {self.name}", "base_vs_chat"),
            curves.transfer(rows_of_both, "vector", title, "model_transfer"),
        ]

    def swept(self, behavior: Behavior, vector: SteeringVector, **how: Any) -> list[Row]:
        multipliers = (-self.top, self.top)
        return sweep_rows(
            self.wrapper, self.tokenizer, behavior, vector, vector.layers, multipliers, batch_size=64, **how
        )

    def of_base(self, name: str) -> dict[str, SteeringVector]:
        """The same pairs, read in the base model with the chat model's template."""
        base, tokenizer = load_model(name)
        said = self.tokenizer.chat_template
        return {
            name: extract(base, ChatFormat(tokenizer, template=said), b.pairs, self.vector.layers, behavior=name)
            for name, b in self.behaviors.items()
        }

    def of_finetunes(self) -> dict[str, SteeringVector]:
        """ "behavior: finetune" -> its vector, read in the finetuned model."""
        found = {}
        for path in sorted((self.folder / "adapters").glob("*/adapter_config.json")):
            name, finetune = path.parent.name.rsplit("-", 1)
            if name in self.behaviors:
                self.wrapper.load_adapter(path.parent, path.parent.name)
                vector = extract(self.wrapper.model, self.tokenizer, self.behaviors[name].pairs, self.vector.layers)
                found[f"{name}: {finetune}"] = vector
        self.wrapper.unload_adapters()
        return found

    def of_doses(self) -> list[Figure]:
        """Effect with damage below it."""
        asked = self.chosen.open_questions[:8]
        how: dict[str, Any] = {"open_questions": asked, "batch_size": 64}
        found = dose_response(self.wrapper, self.tokenizer, self.chosen, self.vector, self.layer, self.doses, **how)
        each = [{"dose": r.dose, "perplexity": r.perplexity, **asdict(mean_interval(r.scores))} for r in found]
        return [curves.dose_response(each, self.chosen.name, self.layer)]

    def figures(self) -> Iterator[Figure]:
        """One after the other, as they are made."""
        for some in (self.of_rows, self.of_vectors, self.of_activations, self.of_positions, self.of_texts):
            yield from some()
        yield from self.of_transfer()
        yield from self.of_doses()

    def save(self, out: Path) -> list[Path]:
        """Write every figure as PNG, SVG and CSV, and the colored tokens as HTML too; the paths."""
        paths = [path for figure in self.figures() for path in figure.save(out)]
        page = out / f"tokens-{self.chosen.name}.html"
        with replacing(page) as scratch:
            scratch.write_text(texts.token_html(*self.tokens(), self.tokens_title()), encoding="utf-8")
        return [*paths, page]
