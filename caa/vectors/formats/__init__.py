"""Vector files: ours, those of llama.cpp and repeng (GGUF), those of other tools. `from caa import formats`.

The names of the room, imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from caa.lazy import lazy_names

if TYPE_CHECKING:
    from caa.vectors.formats.detect import file_kind as file_kind
    from caa.vectors.formats.detect import import_vector as import_vector
    from caa.vectors.formats.gguf import read_gguf as read_gguf
    from caa.vectors.formats.gguf import write_gguf as write_gguf
    from caa.vectors.formats.torch_files import write_lm_eval as write_lm_eval

_HOME = {
    "file_kind": "detect",
    "import_vector": "detect",
    "read_gguf": "gguf",
    "write_gguf": "gguf",
    "write_lm_eval": "torch_files",
}
__all__ = sorted(_HOME)

if not TYPE_CHECKING:  # else a type checker would take any name for one of these
    __getattr__, __dir__ = lazy_names(__name__, _HOME)
