"""From what a person typed after --model to a directory."""

from __future__ import annotations

import re
from pathlib import Path

from model.weights.errors import CheckpointError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ["*.json", "*.safetensors", "*.jinja"]


def resolve_model(model: str) -> Path:
    """A directory as it is, or the local snapshot of a Hugging Face hub id (org/name).

    Downloads what is not cached yet. Raises CheckpointError when neither is found.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if not _HUB_ID.fullmatch(model) or model.startswith("."):
        raise CheckpointError(f"{model}: no such directory, and not a hub id of the form org/name")
    # Imported here: a served directory needs no hub client.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=_WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{model}: no such directory, and the hub says: {error}") from error
