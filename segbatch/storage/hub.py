"""The Hugging Face Hub: ``hf://datasets/owner/name@revision/path``, ``hf://owner/name`` for models.

``huggingface_hub`` does the work, so that endpoint, token and cache are those of its own variables
(``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HOME``). It is imported where it is used, as it takes time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segbatch.storage.uris import scheme_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi, HfUri

SCHEME = "hf"


def is_on_hub(uri: str) -> bool:
    """Whether ``uri`` is one of the Hub's."""
    return scheme_of(uri) == SCHEME


def pinned(uri: str) -> str:
    """``uri`` with the commit that its revision is now. Raises as :func:`hub_errors`."""
    place = _parsed(uri)
    with hub_errors(uri):
        info = _api().repo_info(place.id, repo_type=place.type, revision=place.revision)
    kind = "" if place.type == "model" else f"{place.type}s/"
    path = f"/{place.path_in_repo}" if place.path_in_repo else ""
    return f"{SCHEME}://{kind}{place.id}@{info.sha}{path}"


def commit_of(uri: str) -> str:
    """The commit of a URI's revision: the version of its files. Raises as :func:`hub_errors`."""
    revision = _parsed(uri).revision or ""
    is_commit = re.fullmatch("[0-9a-f]{40}", revision)
    return revision if is_commit else str(_parsed(pinned(uri)).revision)


def file_url(uri: str) -> str:
    """The web address of a file on the Hub. Raises ``FileNotFoundError`` for no such URI."""
    from huggingface_hub import hf_hub_url

    place = _parsed(uri)
    return hf_hub_url(
        place.id,
        place.path_in_repo,
        repo_type=place.type,
        revision=place.revision,
        endpoint=endpoint(),
    )


def headers() -> dict[str, str]:
    """What a request to the Hub has to carry: the token, if there is one."""
    from huggingface_hub import get_token

    token = get_token()
    return {"authorization": f"Bearer {token}"} if token else {}


def cached_file(uri: str) -> Path:
    """The path of a file in the Hub's cache, downloaded if it is not there yet.

    Raises as :func:`hub_errors`.
    """
    from huggingface_hub import hf_hub_download

    place = _parsed(uri)
    with hub_errors(uri):
        path = hf_hub_download(
            place.id,
            place.path_in_repo,
            repo_type=place.type,
            revision=place.revision,
            endpoint=endpoint(),
        )
    return Path(str(path))


def push_folder(folder: Path, uri: str, message: str) -> str:
    """Commit the files in ``folder`` to a repository, which is made if there is none.

    Returns the repository's URI with the new commit. Raises as :func:`hub_errors`.
    """
    place = _parsed(uri)
    if place.path_in_repo:
        raise FileNotFoundError(f"{uri}: must be hf://owner/name, without a path behind it")
    api = _api()
    with hub_errors(uri):
        api.create_repo(place.id, repo_type=place.type, exist_ok=True)
        commit = api.upload_folder(
            repo_id=place.id,
            repo_type=place.type,
            folder_path=folder,
            revision=place.revision,
            commit_message=message,
        )
    return f"{SCHEME}://{place.id}@{commit.oid}"


def endpoint() -> str | None:
    """The Hub's address if it is another than the public one."""
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def hub_errors(uri: str) -> Iterator[None]:
    """Turn the errors of ``huggingface_hub`` in the block into those of storage.

    Raises ``FileNotFoundError``, ``PermissionError`` or ``OSError``, with one line.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{uri}: is gated: accept its conditions on the Hub, and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{uri}: no such repository, or a private one that HF_TOKEN does not open"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{uri}: no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        raise OSError(f"{uri}: the Hub does not answer, and it is not in its cache") from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"{uri}: no such file in the repository") from error
    except (errors.HFValidationError, errors.HfUriError) as error:
        raise FileNotFoundError(f"{uri}: {_first_line(error)}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reason = {401: "HF_TOKEN is refused", 403: "HF_TOKEN does not allow it"}.get(status)
        if reason:
            raise PermissionError(f"{uri}: {reason}") from error
        raise OSError(f"{uri}: the Hub answers {status or _first_line(error)}") from error
    except OSError:
        raise
    except Exception as error:  # that of its HTTP client
        raise OSError(f"{uri}: the Hub does not answer: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _parsed(uri: str) -> HfUri:
    from huggingface_hub import parse_hf_uri

    with hub_errors(uri):
        return parse_hf_uri(uri)


def _api() -> HfApi:
    from huggingface_hub import HfApi

    options: dict[str, Any] = {"endpoint": endpoint()}
    return HfApi(**options)
