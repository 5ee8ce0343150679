"""The config.json of a model on the Hugging Face hub: from the local cache if it is there, else downloaded.

huggingface_hub is imported only when a hub model is asked for. It brings its own settings: HF_HOME,
HF_TOKEN or `hf auth login`, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re

from lorafa_prof.catalog.json_files import LARGEST_FILE
from lorafa_prof.errors import BadInputError, LorafaProfError, MissingComponentError

CONFIG = "config.json"

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")

#: The hub's own limit on the length of an id.
_LONGEST_ID = 96

_OR_PATH = "or give the path of its config.json"


def looks_like_hub_id(name: str) -> bool:
    """Say whether `name` has the form of a hub model, "owner/name"."""
    return len(name) <= _LONGEST_ID and _HUB_ID.fullmatch(name) is not None


def hub_config_path(repo_id: str, *, offline: bool | None = None) -> str:
    """Return the path, in the local cache, of the config.json of `repo_id`.

    Args:
        repo_id: "owner/name".
        offline: do not touch the network; None for what HF_HUB_OFFLINE says.

    Raises:
        BadInputError: no such model, no config.json in it, gated, or not cached while offline.
        MissingComponentError: huggingface_hub is not installed.
        LorafaProfError: the hub cannot be reached.
    """
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError:
        raise MissingComponentError(
            f"{repo_id}: models of the Hugging Face hub need huggingface_hub: pip install huggingface_hub"
        ) from None
    if offline is None:
        offline = bool(constants.HF_HUB_OFFLINE)
    try:
        cached = huggingface_hub.try_to_load_from_cache(repo_id, CONFIG)
        if isinstance(cached, str):  # otherwise None, or a marker that the file is known not to exist
            return cached
        if offline:
            raise BadInputError(
                f"{repo_id}: not in the catalog, and not in the Hugging Face cache while offline; "
                f"go online (unset HF_HUB_OFFLINE) {_OR_PATH}"
            )
        # Asked before the download, which would repeat itself for half a minute where there is no network, and which
        # has no limit on the size.
        size = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repo_id, CONFIG)).size
        if size is not None and size > LARGEST_FILE:
            raise BadInputError(f"{repo_id}: its {CONFIG} of {size} bytes is too large for a configuration")
        return str(huggingface_hub.hf_hub_download(repo_id, CONFIG))
    except LorafaProfError:
        raise
    except Exception as error:  # the network stack below, and so its exceptions, differ between releases
        raise _explained(repo_id, error) from error


def _explained(repo_id: str, error: Exception) -> LorafaProfError:
    """Return the error that says what to do about `error`.

    Told apart by class name, the most special first: where the classes live differs between releases.
    """
    names = {cls.__name__ for cls in type(error).__mro__}
    for name, kind, advice in _ADVICE:
        if name in names:
            return kind(f"{repo_id}: {advice.format(repo_id=repo_id)}, {_OR_PATH}")
    what = type(error).__name__
    return LorafaProfError(
        f"{repo_id}: the Hugging Face hub could not be asked ({what}); check the network, {_OR_PATH}"
    )


_ADVICE: tuple[tuple[str, type[LorafaProfError], str], ...] = (
    (
        "GatedRepoError",
        BadInputError,
        "gated: accept its terms at https://huggingface.co/{repo_id} and set HF_TOKEN",
    ),
    (
        "RepositoryNotFoundError",
        BadInputError,
        "not in the catalog nor on the Hugging Face hub (a private model needs HF_TOKEN); check the name",
    ),
    ("LocalEntryNotFoundError", LorafaProfError, "the Hugging Face hub was not reached; check the network"),
    ("OfflineModeIsEnabled", BadInputError, "HF_HUB_OFFLINE is set; unset it"),
    (
        "EntryNotFoundError",
        BadInputError,
        "its repository has no config.json; name the model it was made from",
    ),
    ("HFValidationError", BadInputError, "not a valid Hugging Face model id; check the name"),
)
