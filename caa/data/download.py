"""The public CAA datasets, fetched from their home at the user's request into a cache folder. Reads none of them."""

from __future__ import annotations

import json
import os
import time
from http.client import HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path
from urllib.request import urlopen

from tqdm import tqdm

from caa.files import replacing

CAA_URL = "https://raw.githubusercontent.com/nrimsky/CAA"
CAA_COMMIT = "5dabbbd9a0bca5f25e174501e959de378806aa48"
CAA_BEHAVIORS = (
    "coordinate-other-ais",
    "corrigible-neutral-HHH",
    "hallucination",
    "myopic-reward",
    "survival-instinct",
    "sycophancy",
    "refusal",
)
LARGEST_FILE = 32 * 2**20
"""Bytes that one file may have; the largest that there is has about 2 million."""
LONGEST = 300.0
"""Seconds that one file may take."""
CAA_FACTS = {"mmlu": "test/mmlu/mmlu.json", "truthfulqa": "test/truthfulqa/truthful_qa.json"}
"""Two-option knowledge questions: name -> file."""
CAA_PARTS = {
    "pairs": "generate/{}/generate_dataset.json",
    "ab_questions": "test/{}/test_dataset_ab.json",
    "open_questions": "test/{}/test_dataset_open_ended.json",
}
"""Part of a behavior -> its file in a `datasets` folder, with the behavior's name in place of {}."""


def cache_folder() -> Path:
    """Where downloads are kept: the environment's CAA_CACHE, else ~/.cache/caa."""
    return Path(os.environ.get("CAA_CACHE") or Path.home() / ".cache" / "caa")


def caa_folder(cache: str | Path | None = None, ref: str = CAA_COMMIT) -> Path:
    """Where the `datasets` folder of nrimsky/CAA at that commit is, or will be."""
    return Path(cache or cache_folder()) / f"nrimsky-CAA-{ref[:7]}" / "datasets"


def download_caa(cache: str | Path | None = None, ref: str = CAA_COMMIT) -> Path:
    """Fetch the datasets of Rimsky et al. (2024), MIT-licensed: 23 files, about 4 MB; those already there are kept.

    Returns the `datasets` folder, which `load_behavior` and `load_facts` know as "caa:<name>". ConnectionError if a
    file cannot be had; run it again and it goes on where it stopped.
    """
    folder = caa_folder(cache, ref)
    files = [part.format(behavior) for behavior in CAA_BEHAVIORS for part in CAA_PARTS.values()]
    missing = [file for file in (*files, *CAA_FACTS.values()) if not (folder / file).exists()]
    for file in tqdm(missing, desc="downloading nrimsky/CAA", unit="file", disable=None):
        with replacing(folder / file) as scratch:
            scratch.write_bytes(_fetch(f"{CAA_URL}/{ref}/datasets/{file}"))
    return folder


def _fetch(url: str) -> bytes:
    try:
        with urlopen(url, timeout=30) as response:
            content = _body(response)
        json.loads(content)  # a proxy's login page also arrives with "200 OK"
    except (OSError, HTTPException, ValueError) as error:
        raise ConnectionError(
            f"could not fetch {url}: {error}. Files that came before are kept: run this again when it can be reached, "
            "or clone github.com/nrimsky/CAA elsewhere and give the path of its datasets/<behavior>."
        ) from error
    return content


def _body(response: HTTPResponse) -> bytes:
    """What a server sends; ValueError for more than a file may have, said or sent, or for longer than it may take.

    Nothing is unpacked: what comes packed is no json.
    """
    until, content = time.monotonic() + LONGEST, bytearray()
    if (response.length or 0) > LARGEST_FILE:
        raise ValueError(f"it says that it has {response.length:,} bytes, and may have {LARGEST_FILE:,}")
    while piece := response.read1(2**16):
        content += piece
        if len(content) > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
        if time.monotonic() > until:
            raise ValueError(f"it has not come within {LONGEST:g} seconds")
    if response.length:
        raise IncompleteRead(bytes(content), response.length)
    return bytes(content)
