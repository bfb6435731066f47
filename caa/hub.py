"""The Hugging Face Hub: a name comes down as files, no pickle; a folder goes up in one commit. Knows no room."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

CARD = "README.md"
VECTOR_FILE = "vector.safetensors"
"""What a steering vector's file is called on the Hub."""
_NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)
_FILES = (".safetensors", ".json", ".yaml", ".gguf", ".pt", ".bin")
"""How names end that are those of files, for which the Hub is not asked."""


@dataclass(frozen=True)
class Kind:
    """Something that has a name on the Hub."""

    noun: str
    key: str
    """The file that makes a repository one."""
    files: tuple[str, ...]
    """Patterns of all files that are downloaded: safetensors, json and Markdown."""
    maker: str


VECTOR = Kind("steering vector", VECTOR_FILE, (VECTOR_FILE,), "`caa extract` writes one")
ADAPTER = Kind(
    "adapter",
    "adapter_config.json",
    ("adapter_config.json", "adapter_model.safetensors", "caa.json"),
    "`caa finetune` writes one",
)
STEERED = Kind("steered adapter", "steering.json", ("*.json", "*.safetensors", CARD), "`save_pretrained` writes one")


class Address(NamedTuple):
    """A repository on the Hub, and a branch, tag or commit of it; None is its main branch."""

    repository: str
    revision: str | None = None


def address_of(name: str | Path) -> Address | None:
    """What the Hub would be asked for; None for a path that is here, and for what can only be a path.

    >>> address_of("you/steered"), address_of("you/steered@v1.0")
    (Address(repository='you/steered', revision=None), Address(repository='you/steered', revision='v1.0'))
    >>> [address_of(name) for name in ("./you/steered", "steered", "runs/x/steered", "runs/waiting.safetensors")]
    [None, None, None, None]
    """
    text = name.as_posix() if isinstance(name, Path) else name
    match = _NAME.fullmatch(text)
    if match is None or text.endswith(_FILES) or Path(name).exists():
        return None
    return Address(match["repository"], match["revision"])


def local_path(name: str | Path, kind: Kind) -> Path:
    """The path itself, or the folder into which the Hub's files of that name ("you/name", "you/name@revision") came.

    A path that is here wins. FileNotFoundError, with what was tried, for a name that neither this machine nor the Hub
    knows; a name that can only be a path is given back, be it there or not.
    """
    address = address_of(name)
    return Path(name) if address is None else _download(str(name), address, kind)


def _download(name: str, address: Address, kind: Kind) -> Path:
    from huggingface_hub import snapshot_download

    try:
        files = list(kind.files)
        folder = Path(snapshot_download(address.repository, revision=address.revision, allow_patterns=files))
    except Exception as error:  # of the Hub, of what leads to it, or of a name that it cannot have
        raise FileNotFoundError(
            f"{name} is no {kind.noun}: neither a path here nor on the Hub ({_reason(error, address)}); {kind.maker}"
        ) from error
    if not (folder / kind.key).is_file():
        raise FileNotFoundError(
            f"{name} is no {kind.noun}: it is no path here, and what the Hub has under that name holds no {kind.key}"
        )
    return folder


def holds(name: str | Path, file: str) -> bool:
    """Whether a folder holds a file, or the repository of that name on the Hub, of which this file alone is loaded."""
    return local_file(name, file) is not None


def local_file(name: str | Path, file: str) -> Path | None:
    """A file of a folder, or of the repository of that name on the Hub, of which it alone is loaded; None if it holds
    no such file."""
    address = address_of(name)
    if address is None:
        return Path(name) / file if (Path(name) / file).is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(address.repository, file, revision=address.revision))
    except Exception:  # whatever is wrong is said when it is loaded
        return None


def upload(
    folder: Path, name: str, *, private: bool | None = None, token: str | None = None, update: bool = True
) -> str:
    """Put a folder into the repository `name` ("you/steered"), made if it is not there; the address of the commit.

    What an older version had there and the folder does not is removed in the same commit. FileExistsError, without
    `update`, for a repository that is there; OSError, in one line, for what the Hub refuses.
    """
    from huggingface_hub import HfApi

    api, stale = HfApi(token=token), ["*.safetensors", "*.json", "adapters/*"]
    try:
        repository = api.create_repo(name, private=private, exist_ok=update).repo_id
        if private and not api.model_info(repository).private:
            raise _PublicError
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, delete_patterns=stale, commit_message="Upload with caa"
        )
    except _PublicError as error:
        raise ValueError(f"{name} is a public repository, so nothing was put there; choose another name") from error
    except Exception as error:  # of the Hub, of what leads to it, or of a name that it cannot have
        if _status(error) == 409 and not update:
            raise FileExistsError(
                f"the Hub has a repository {name} already: choose another name, or say --update to add a commit to it "
                "(what it holds now can still be had by its revision)"
            ) from error
        raise OSError(f"{folder.name} was not put on the Hub as {name}: {_reason(error, Address(name))}") from error
    return str(commit.commit_url)


class _PublicError(Exception):
    """A repository that was to be private is not."""


def _status(error: Exception) -> int | None:
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def _reason(error: Exception, address: Address) -> str:
    """One line about what went wrong, with what to do where that is known."""
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so the Hub was not asked, and its cache lacks it: unset HF_HUB_OFFLINE"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{address.repository} has no revision {address.revision!r}"
    if isinstance(error, errors.LocalTokenNotFoundError) or _status(error) in (401, 403):
        return "you are not logged in, or have no right to it: `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "it has no such repository, or a private one: `hf auth login`"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
