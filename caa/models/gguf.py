"""A GGUF file of llama.cpp in, what it says of itself and what transformers needs to hear about it out. No weights.

The header is read here and not by the `gguf` package, which takes seconds for a vocabulary that nobody asks for.
"""

from __future__ import annotations

import logging
import struct
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_SIMPLE = dict(enumerate(["<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"])) | {10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
"""Types of values as the specification numbers them (ggml, docs/gguf.md)."""
_LIKE_GPT2 = {"", "gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "mellum"}
"""Names of splittings (`tokenizer.ggml.pre`) that are GPT-2's own, which a byte-level tokenizer has by itself."""
_DIGIT_BY_DIGIT = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""Those that take each digit alone and then split as GPT-2 does (llama.cpp, llama-vocab.cpp)."""


@dataclass(frozen=True)
class GgufTensor:
    """One line of the table of tensors."""

    name: str
    shape: tuple[int, ...]
    kind: int
    """ggml's number of how its numbers are stored, such as 0 for F32."""


@dataclass(frozen=True, repr=False)
class GgufHeader:
    """All that stands before the numbers."""

    fields: Mapping[str, Any]
    """Of an array of strings, such as a vocabulary, only how many there are."""
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture", ""))

    def of_architecture(self, name: str) -> Any:
        """A field that each architecture has under its own name, such as `llama.block_count`; None if it has none."""
        return self.fields.get(f"{self.architecture}.{name}")

    def kinds(self) -> dict[str, int]:
        """How numbers are stored, by ggml's names -> how many numbers are stored so, the most frequent first."""
        from gguf import GGMLQuantizationType

        counted: Counter[str] = Counter()
        for tensor in self.tensors:
            counted[GGMLQuantizationType(tensor.kind).name] += prod(tensor.shape)
        return dict(counted.most_common())


def require_gguf() -> None:
    """ImportError, with the words that install it, where the `gguf` package is missing."""
    if not find_spec("gguf"):
        raise ImportError("models in GGUF files need gguf: pip install 'caa[gguf]'")


def read_header(path: str | Path) -> GgufHeader:
    """The header of a GGUF file of version 2 or 3; ValueError for any other file, and for one that ends too early."""
    with Path(path).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        if content[:4] != b"GGUF" or content[4:8] not in (b"\x02\0\0\0", b"\x03\0\0\0"):
            raise ValueError(f"{path} is no GGUF file of version 2 or 3")
        cursor = _Cursor(content)
        try:
            n_tensors, n_fields = cursor.number("<Q"), cursor.number("<Q")
            fields = {cursor.string(): cursor.value(cursor.number("<I")) for _ in range(n_fields)}
            return GgufHeader(fields, tuple(cursor.tensor() for _ in range(n_tensors)))
        except (struct.error, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is a damaged GGUF file, or not all of one: download it again") from error


class _Cursor:
    """A place in a header, and what is read from there on."""

    def __init__(self, content: mmap) -> None:
        self.content, self.place = content, 8

    def number(self, layout: str) -> Any:
        (number,) = struct.unpack_from(layout, self.content, self.place)
        self.place += struct.calcsize(layout)
        return number

    def string(self) -> str:
        length = self.number("<Q")
        if length > len(self.content) - self.place:
            raise struct.error("a text is longer than the file")
        self.place += length
        return self.content[self.place - length : self.place].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        return self.array() if kind == _ARRAY else self.number(_SIMPLE[kind])

    def array(self) -> Any:
        kind, length = self.number("<I"), self.number("<Q")
        if kind != _STRING:
            layout = _SIMPLE[kind]  # the specification has arrays of arrays, and no file of a model
            if length * struct.calcsize(layout) > len(self.content) - self.place:
                raise struct.error("an array is longer than the file")
            return [self.number(layout) for _ in range(length)]
        for _ in range(length):
            n_bytes = self.number("<Q")
            self.place += n_bytes
        return length

    def tensor(self) -> GgufTensor:
        name, n_dimensions = self.string(), self.number("<I")
        shape = tuple(self.number("<Q") for _ in range(n_dimensions))
        kind, _ = self.number("<I"), self.number("<Q")
        return GgufTensor(name, shape[::-1], kind)


# What transformers makes of such a file, and what it gets wrong.


def load_gguf_config(folder: str, file: str) -> Any:
    """The config that transformers makes of a file in a folder or a repository of the Hub, without weights."""
    require_gguf()
    path = Path(folder) / file
    return deepcopy(_config(folder, file, path.stat().st_mtime_ns if path.is_file() else 0))


@lru_cache(maxsize=8)
def _config(folder: str, file: str, modified: int) -> Any:
    """Reading it takes seconds, so a file that did not change is read once."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, gguf_file=file)


def mend_model(model: Any, header: GgufHeader, missing: Collection[str]) -> None:
    """Take back what transformers says of a model of plain numbers: that it is quantized.

    ValueError if the file lacks parameters of the model, or has biases that the model has not.
    """
    if missing:
        raise ValueError(
            f"the file has no {', '.join(sorted(missing)[:3])} (of {len(missing)} that are missing), which would be "
            "random numbers: it is no whole model, or not one that transformers knows"
        )
    model.hf_quantizer = model.quantization_method = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    _check_biases(model, header)


def _check_biases(model: Any, header: GgufHeader) -> None:
    """Transformers leaves out in silence what its own modules have no place for; llama.cpp adds it up."""
    stated = [tensor for tensor in header.tensors if tensor.name.endswith("bias")]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    held = sum(tensor.numel() for name, tensor in tensors if name.endswith("bias"))
    if sum(prod(tensor.shape) for tensor in stated) > held:
        raise ValueError(
            f"the file has biases ({stated[0].name}, ...) that transformers' {type(model).__name__} has no place for, "
            "so this would be another model: load it from a checkpoint of transformers"
        )


def mend_tokenizer(tokenizer: Any, splitting: str) -> None:
    """Split texts before they become tokens as the file says (`tokenizer.ggml.pre`) where transformers does not.

    A splitting that neither knows is warned of.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.pre_tokenizer, ByteLevel) or splitting in _LIKE_GPT2:
        return
    if splitting in _DIGIT_BY_DIGIT:
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        return
    logger.warning(
        "The file says that its texts are split as %r, which is not known here: they are split as GPT-2's, and the "
        "tokens of some may be others than the model's own.",
        splitting,
    )


def describe(header: GgufHeader) -> Iterator[tuple[str, str]]:
    """What a header says of a model, under names that people know."""
    wanted = {
        "name": header.fields.get("general.name"),
        "architecture": header.architecture,
        "layers": header.of_architecture("block_count"),
        "width": header.of_architecture("embedding_length"),
        "context": header.of_architecture("context_length"),
        "vocabulary": header.fields.get("tokenizer.ggml.tokens"),
        "license": header.fields.get("general.license"),
    }
    yield from ((name, str(value)) for name, value in wanted.items() if value is not None)
    total = sum(prod(tensor.shape) for tensor in header.tensors)
    yield "numbers", f"{total:,} in {len(header.tensors)} tensors"
    yield "stored as", ", ".join(f"{kind} {number / total:.2%}" for kind, number in header.kinds().items())
    tokenizer = header.fields.get("tokenizer.ggml.model", "none"), header.fields.get("tokenizer.ggml.pre")
    yield "tokenizer", ", split as ".join(filter(None, tokenizer))
    yield "chat template", "yes" if header.fields.get("tokenizer.chat_template") else "no"
