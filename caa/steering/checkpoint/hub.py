"""The Hugging Face Hub: a folder goes up in one commit, a name comes down as a folder, without any pickle."""

from __future__ import annotations

from pathlib import Path

from caa.steering.checkpoint.manifest import CARD


def upload(folder: Path, name: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Put a folder into the repository `name` ("you/steered"), made if it is not there; the address of the commit.

    What an older version had there and the folder does not is removed in the same commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(name, private=private, exist_ok=True)
    stale = ["*.safetensors", "*.json", "adapters/*"]
    commit = api.upload_folder(
        repo_id=name, folder_path=folder, delete_patterns=stale, commit_message="Upload a steered adapter"
    )
    return str(commit.commit_url)


def download(name: str) -> Path:
    """The folder that the Hub has under a name; FileNotFoundError, with the reason, if it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", CARD]))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{name} is no steered adapter: neither a folder nor on the Hub ({reason})") from error
