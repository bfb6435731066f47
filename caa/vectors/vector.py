"""SteeringVector: one direction per layer, and where they came from. Algebra, norms, a safetensors file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from operator import index
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from caa.files import replacing
from caa.hashing import tensors_digest
from caa.hub import VECTOR, VECTOR_FILE, address_of, local_path
from caa.untrusted import as_dataclass, parse_json

FORMAT = "caa.vector.v1"


@dataclass(frozen=True)
class Provenance:
    """Where a vector came from. Whatever is not known is left empty, nothing is read from a file's name."""

    model: str = ""
    adapter: str = ""
    """The adapters that were active while the activations were read, empty for none."""
    behavior: str = ""
    method: str = ""
    n_pairs: int = 0
    token: str = ""
    """The token whose activations were read, e.g. "parting": the first at which the two answers differ."""
    site: str = "block output"
    model_fingerprint: str = ""
    """16 hex digits that tell the base model from others of its name."""
    data_hash: str = ""
    """16 hex digits of the token ids that were read."""
    history: tuple[str, ...] = ()
    """What was done to the vector afterwards, oldest first."""
    checks: Mapping[str, float] = field(default_factory=dict)
    """Whether it is the right direction, in numbers: "layer 13: held-out accuracy" -> 0.97 (`caa.vectors.checks`)."""
    adapter_hash: str = ""
    """16 hex digits of what each active adapter does, joined by "+"."""

    @classmethod
    def from_json(cls, stated: str) -> Provenance:
        """What `asdict` and json made of one; ValueError for anything else, such as the fields of a later version."""
        try:
            source: Provenance = as_dataclass(cls, parse_json(stated, "it"), "it")
        except ValueError as error:
            raise ValueError(f"its provenance cannot be read ({error}); perhaps a later caa wrote it") from error
        return source

    def then(self, step: str) -> Provenance:
        return replace(self, history=(*self.history, step))


def described(source: Provenance, layers: Sequence[int], width: int) -> str:
    """What a short name of a vector or of activations says."""
    whole = len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1))
    numbers = f"layers {layers[0]} to {layers[-1]}" if whole else f"layers {', '.join(map(str, layers))}"
    known = [f"model {source.model!r}" if source.model else "", source.method]
    return f"{source.behavior or 'unnamed'!r}: {', '.join([numbers, f'width {width}', *filter(None, known)])}"


@dataclass(frozen=True, eq=False, repr=False)
class SteeringVector:
    """One direction per layer. Vectors add, subtract and scale; every step is kept in `source.history`.

    >>> v = SteeringVector({13: torch.tensor([3.0, 4.0])})
    >>> (2 * v).norms(), v.unit().at(13), (v - v).norms()
    ({13: 10.0}, tensor([0.6000, 0.8000]), {13: 0.0})
    """

    directions: Mapping[int, Tensor]
    """layer -> float32 [d_model], in residual-stream units. Layer i is the output of block i, counted from 0."""
    source: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        if not self.directions:
            raise ValueError("a steering vector needs at least one layer")
        clean = {_number(layer): _clean(layer, self.directions[layer]) for layer in sorted(self.directions)}
        widths = {layer: direction.shape[0] for layer, direction in clean.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"all layers of a vector have one width, these have {widths}")
        object.__setattr__(self, "directions", clean)

    @property
    def layers(self) -> list[int]:
        return list(self.directions)

    @property
    def width(self) -> int:
        """d_model of the network that the vector was read in."""
        return next(iter(self.directions.values())).shape[0]

    def __repr__(self) -> str:
        """On one line, without numbers.

        >>> SteeringVector({13: torch.ones(2), 14: torch.ones(2)}, Provenance("gpt2", behavior="waiting", method="pca"))
        <SteeringVector 'waiting': layers 13 to 14, width 2, model 'gpt2', pca>
        """
        return f"<{type(self).__name__} {described(self.source, self.layers, self.width)}>"

    def at(self, layer: int) -> Float[Tensor, " d_model"]:
        """The direction of one layer; KeyError, with the layers there are, if it has none."""
        if layer not in self.directions:
            raise KeyError(
                f"no direction for layer {layer}: this {self.source.behavior or 'unnamed'!r} vector holds layers "
                f"{self.layers}. Extract again with layers=[..., {layer}]."
            )
        return self.directions[layer]

    def norms(self) -> dict[int, float]:
        """layer -> Euclidean norm, in residual-stream units."""
        return {layer: direction.norm().item() for layer, direction in self.directions.items()}

    def cosine(self, other: SteeringVector) -> dict[int, float]:
        """layer -> cosine with the other vector's direction, for the layers that both have."""
        shared = [layer for layer in self.layers if layer in other.directions]
        return {i: torch.cosine_similarity(self.at(i), other.at(i), dim=0).item() for i in shared}

    def checked(self, checks: Mapping[int, Mapping[str, float]]) -> SteeringVector:
        """The same vector, with what was found about it, layer -> name -> number, in its provenance."""
        flat: dict[str, float] = {}
        for layer, numbers in checks.items():
            flat |= {f"layer {layer}: {name}": value for name, value in numbers.items()}
        return SteeringVector(self.directions, replace(self.source, checks={**self.source.checks, **flat}))

    def unit(self) -> SteeringVector:
        """The same directions, each of norm 1."""
        return self._each({layer: v / v.norm() for layer, v in self.directions.items()}, "unit norm")

    def __mul__(self, factor: float) -> SteeringVector:
        return self._each({layer: factor * v for layer, v in self.directions.items()}, f"times {factor:g}")

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> SteeringVector:
        return self * (1 / divisor)

    def __neg__(self) -> SteeringVector:
        return self * -1

    def __add__(self, other: SteeringVector) -> SteeringVector:
        return self._with(other, 1)

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        return self._with(other, -1)

    def _with(self, other: SteeringVector, sign: int) -> SteeringVector:
        if self.layers != other.layers or self.width != other.width:
            raise ValueError(
                f"vectors add layer by layer: one holds layers {self.layers} of width {self.width}, "
                f"the other {other.layers} of width {other.width}"
            )
        verb = "plus" if sign > 0 else "minus"
        summed = {layer: v + sign * other.at(layer) for layer, v in self.directions.items()}
        return self._each(summed, f"{verb} {other.source.behavior or 'another vector'}")

    def _each(self, directions: Mapping[int, Tensor], step: str) -> SteeringVector:
        return SteeringVector(directions, self.source.then(step))

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, atomically; its metadata holds the provenance as JSON."""
        tensors = {f"layer.{layer}": v.contiguous() for layer, v in self.directions.items()}
        metadata = {"format": FORMAT, "source": json.dumps(asdict(self.source))}
        with replacing(path) as scratch:
            save_file(tensors, scratch, metadata=metadata)
            scratch.write_bytes(_in_order(scratch.read_bytes()))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> SteeringVector:
        """Read a file that `save` wrote, by its path or its name on the Hub ("you/vector", "you/vector@revision").

        ValueError for anything else.
        """
        if address_of(path):
            path = local_path(path, VECTOR) / VECTOR_FILE
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no steering vector at {path}; `caa extract` writes one")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file, or a damaged one ({error})") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not a {FORMAT} file; it says its format is {metadata.get('format')!r}")
        try:
            source = Provenance.from_json(metadata.get("source", ""))
            return cls({_layer(name): v for name, v in tensors.items()}, source)
        except ValueError as error:
            raise ValueError(f"{path} is a damaged steering vector: {error}") from error


def _in_order(data: bytes) -> bytes:
    """The same safetensors content with its header sorted, for the library writes metadata in random order."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def _number(layer: Any) -> int:
    try:
        number = index(layer)
    except TypeError:
        raise ValueError(f"layers are whole numbers counted from 0, this is {layer!r}") from None
    if number < 0 or isinstance(layer, bool):
        raise ValueError(f"layers are counted from 0, so there is no layer {layer}")
    return number


def _clean(layer: int, direction: Tensor) -> Tensor:
    """float32 on the CPU; ValueError for what no such numbers can be, or cannot hold."""
    if direction.ndim != 1 or not direction.numel() or direction.is_complex():
        kind = f"{list(direction.shape)} of {str(direction.dtype).removeprefix('torch.')}"
        raise ValueError(f"layer {layer} needs real, finite numbers of shape [d_model], this has {kind}")
    numbers = direction.detach().to("cpu", torch.float32, copy=True)  # the caller may go on writing into its own
    if not torch.isfinite(numbers).all():
        worst = direction.detach().double().abs().amax().item()
        reason = f"up to {worst:.1e}, more than float32 holds" if math.isfinite(worst) else "not all of them are finite"
        raise ValueError(f"layer {layer} needs real, finite numbers of shape [d_model], and {reason}")
    return numbers


def _layer(name: str) -> int:
    match = re.fullmatch(r"layer\.(0|[1-9][0-9]*)", name)
    if not match:
        raise ValueError(f"it has a tensor {name!r}, and those of a vector are named layer.N, N counted from 0")
    return int(match[1])


def set_mean_normalize(vectors: Mapping[str, SteeringVector]) -> dict[str, SteeringVector]:
    """Rescale each vector, layer by layer, to the mean norm of the set (nrimsky/CAA, normalize_vectors.py).

    "Multiplier 1" then means the same push for every behavior of the set, and nothing outside the set. ValueError for a
    direction of norm 0, which no factor makes longer.

    >>> pair = {"a": SteeringVector({0: torch.tensor([1.0, 0.0])}), "b": SteeringVector({0: torch.tensor([0.0, 3.0])})}
    >>> {name: v.at(0).tolist() for name, v in set_mean_normalize(pair).items()}
    {'a': [2.0, 0.0], 'b': [0.0, 2.0]}
    """
    if not vectors:
        raise ValueError("there are no vectors to normalize")
    layers = reduce(
        lambda shared, v: shared & set(v.layers), vectors.values(), set(next(iter(vectors.values())).layers)
    )
    norms = {name: v.norms() for name, v in vectors.items()}
    if zeros := [f"{name} at layer {layer}" for name in vectors for layer in sorted(layers) if not norms[name][layer]]:
        raise ValueError(f"a direction of norm 0 cannot be rescaled, and these are: {', '.join(zeros)}; leave them out")
    means = {layer: sum(norms[name][layer] for name in vectors) / len(vectors) for layer in layers}
    step = f"rescaled to the mean norm of {', '.join(vectors)}"
    return {
        name: v._each({layer: v.at(layer) * (means[layer] / norms[name][layer]) for layer in sorted(layers)}, step)
        for name, v in vectors.items()
    }


def rescaled_alike(vector: SteeringVector, before: SteeringVector, after: SteeringVector) -> SteeringVector:
    """The vector times what made `after` of `before`, at each layer that `after` has.

    >>> v, w = SteeringVector({0: torch.tensor([3.0, 0.0])}), SteeringVector({0: torch.tensor([0.0, 1.0])})
    >>> rescaled_alike(w, v, 2 * v).at(0)
    tensor([0., 2.])
    """
    old, new = before.norms(), after.norms()
    scaled = {layer: vector.at(layer) * (new[layer] / old[layer]) for layer in after.layers}
    return vector._each(scaled, f"rescaled as {after.source.behavior or 'another vector'} was")


def random_like(vector: SteeringVector, seed: int) -> SteeringVector:
    """A control: at each layer a direction drawn uniformly from the sphere, of the same norm as the vector's.

    >>> v = SteeringVector({0: torch.tensor([3.0, 4.0])})
    >>> round(random_like(v, seed=0).norms()[0], 4)
    5.0
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {layer: torch.randn(vector.width, generator=generator) for layer in vector.layers}
    scaled = {layer: drawn[layer] * (vector.at(layer).norm() / drawn[layer].norm()) for layer in vector.layers}
    return vector._each(scaled, f"replaced by a random direction of the same norm, seed {seed}")


def only_head(vector: SteeringVector, head: int, heads: int) -> SteeringVector:
    """Of a vector that was read at the attention heads, what one of them has; the others get zeros.

    >>> only_head(SteeringVector({0: torch.arange(1.0, 5.0)}), head=1, heads=2).at(0)
    tensor([0., 0., 3., 4.])
    """
    if not 0 <= head < heads or vector.width % heads:
        raise ValueError(f"there is no head {head} of {heads}, counted from 0, in a width of {vector.width}")
    size = vector.width // heads
    kept = torch.zeros(vector.width)
    kept[head * size : (head + 1) * size] = 1.0
    return vector._each({layer: kept * vector.at(layer) for layer in vector.layers}, f"head {head} of {heads} alone")


def vector_hash(vector: SteeringVector) -> str:
    """16 hex digits of a vector's layers and numbers."""
    return tensors_digest((str(layer), vector.at(layer)) for layer in vector.layers)
