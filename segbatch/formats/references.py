"""How the tasks of Label Studio name photographs.

    /data/upload/1/3f9a1c04-front.jpg          uploaded: with eight digits before its name
    /data/local-files/?d=to-label/front.jpg    local storage: a path below the document root
    s3://bucket/front.jpg, gs://…, azure-blob://…, https://…
    front.jpg, street/front.jpg                a path

Label Studio reads local files below ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT``. Those that segbatch
writes are named from the folder that they were written to, whose parent is the root.

Source: ``_extensions/label_studio_tools/core/utils/io.py`` of label-studio-sdk 2.1.2, and
``io_storages/localfiles`` and ``data_import/models.py`` of Label Studio 1.23.
"""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from functools import cached_property
from urllib.parse import parse_qs, quote, unquote

from segbatch import storage
from segbatch.config.images import IMAGE_EXTENSIONS
from segbatch.formats.folder import ImageFiles, folded
from segbatch.images.parts import part_kind
from segbatch.masks.classes import CONTROL
from segbatch.storage.labelstudio import server_url

LOCAL_FILES = "/data/local-files/"
AZURE = "azure-blob://"
READABLE_SCHEMES = frozenset({"s3", "gs", "az"}) | storage.HTTP_SCHEMES  # by Label Studio
SHOWN = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp"})  # by browsers

SERVER_PATH = re.compile(
    r"/?(data/(local-files|upload)|storage-data|(tasks|projects)/\d+)(?=[/?]|$)"
)
# Of a web address: any other server may have such folders, but not such paths.
SERVER_ADDRESS = re.compile(
    r"/(data/upload/\d+/[^/]+|data/local-files/?|storage-data/uploaded/?"
    r"|(tasks|projects)/\d+/(presign|resolve)/?)"
)
UPLOAD = re.compile(r"/?(data/)?upload/(\d+/)?(?P<name>[^/]+)")
UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")
NOT_IN_UPLOADS = re.compile(r"[^-\w.]")  # Django leaves these characters out of names
MAX_REFERENCE = 4096


# ----------------------------------------------------------------------------------------- writing


def has_address(uri: str) -> bool:
    """Whether Label Studio can show the photograph where it is."""
    return (
        storage.scheme_of(uri) in READABLE_SCHEMES
        and _path_of(uri).rpartition(".")[2].lower() in SHOWN
        and part_kind(uri) is None
    )


def to_reference(uri: str, folder: str) -> str:
    """The reference to a file that is in ``folder``, or that has an address."""
    if not storage.is_local(uri):
        return re.sub(r"^az://", AZURE, uri)
    path = storage.path_below(uri, folder)
    return f"{LOCAL_FILES}?d={quote(f'{storage.name_of(storage.normalize(folder))}/{path}')}"


# ----------------------------------------------------------------------------------------- reading


def is_reference(value: object) -> bool:
    """Whether a value of a task's data looks like the reference to a photograph."""
    if not isinstance(value, str):
        return False
    path = _path_of(value)
    is_named = path.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
    return is_named or value.startswith("data:image/") or _is_on_server(value)


def to_address(reference: str) -> str:
    """The URI at which a reference can be read: its own, or that on Label Studio's server
    (:mod:`segbatch.storage.labelstudio`).

    Raises ``ValueError`` with the reason for anything else; paths on this machine are never read.
    """
    place = _resolve(reference)
    for uri in (place, reference):
        if storage.scheme_of(uri) in READABLE_SCHEMES:
            return uri
    shown = reference.partition("?")[0]  # the rest may be a signature
    if not SERVER_PATH.match(reference):
        raise ValueError(f"refers to {shown}, which is no web address and no URI")
    server = server_url()
    if server is None:
        raise ValueError(
            f"refers to {shown} on Label Studio's server: set LABEL_STUDIO_URL and"
            " LABEL_STUDIO_API_KEY"
        )
    return f"{server}/{reference.lstrip('/')}"


class Photographs:
    """Finds the photographs that tasks refer to, among ``files``.

    ``only_files``: the user has named their folder, and nothing else is read.
    """

    def __init__(self, files: ImageFiles, *, only_files: bool) -> None:
        self._files = files
        self._only_files = only_files

    def find(self, reference: str, labels_uri: str) -> str:
        """The URI of the photograph that a task in the file ``labels_uri`` refers to.

        A web address or a URI is the photograph, unless only files count. Of a path, the longest
        end counts that :meth:`~segbatch.formats.folder.ImageFiles.find` finds; of an upload, the
        name without the digits before it, too. Raises ``ValueError`` with the reason if there is
        none, or several.
        """
        place = _resolve(reference)
        is_path = not storage.scheme_of(place)
        if not self._only_files and (not is_path or _is_on_this_machine(place)):
            return place
        path = _path_of(place)
        upload = UPLOAD.fullmatch(path)
        path = upload["name"] if upload else path
        steps = [s for s in re.split(r"^[A-Za-z]:|[/\\]", path) if s.strip(".")]
        for start in range(len(steps)):
            if (found := self._files.find("/".join(steps[start:]), labels_uri)) is not None:
                return found
        if steps and (found := self._find_upload(steps[-1])) is not None:
            return found
        where = (
            "below --images"
            if self._only_files
            else "next to the labels: name the folder of the photographs with --images"
        )
        raise ValueError(f"its image {reference} is not {where}")

    def _find_upload(self, name: str) -> str | None:
        """The file that was uploaded under ``name``."""
        for stored in (name, UPLOAD_PREFIX.sub("", name)):
            matches = self._by_upload_name.get(_upload_name(stored), [])
            if len(matches) > 1:
                raise ValueError(f"{name} may be {matches[0]} or {matches[1]}")
            if matches:
                return matches[0]
        return None

    @cached_property
    def _by_upload_name(self) -> dict[str, list[str]]:
        uris: dict[str, list[str]] = defaultdict(list)
        for uri in self._files.uris:
            uris[_upload_name(storage.name_of(uri))].append(uri)
        return uris


def _upload_name(name: str) -> str:
    """The name that Label Studio gives to an uploaded file, without its case."""
    return NOT_IN_UPLOADS.sub("", folded(name).strip().replace(" ", "_"))


def _resolve(reference: str) -> str:
    """The URI that a reference means, or a path below a folder that it does not say."""
    if reference.startswith("data:"):
        raise ValueError("has its image in the task itself, as a data URI, which is not read")
    if len(reference) > MAX_REFERENCE or CONTROL.search(reference):
        raise ValueError("refers to its image by what is no path")
    if reference.startswith(AZURE):
        return f"az://{reference.removeprefix(AZURE)}"
    path = _path_of(reference)
    if not _is_on_server(reference):
        return reference
    query = parse_qs(reference.partition("?")[2])
    if "fileuri" in query:
        return _resolve(_from_base64(query["fileuri"][-1]))
    return (query.get("d") or query.get("filepath") or [path])[-1]


def _from_base64(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except ValueError as error:
        raise ValueError("refers to its image by a damaged address") from error


def _is_on_server(reference: str) -> bool:
    """Whether a reference is to a file on Label Studio's server."""
    path = _path_of(reference)
    if storage.scheme_of(reference) in storage.HTTP_SCHEMES:
        return SERVER_ADDRESS.fullmatch(path) is not None
    return SERVER_PATH.match(path) is not None


def _path_of(reference: str) -> str:
    """The path of a web address, or of a reference to Label Studio's server, without escapes;
    other references as they are.
    """
    is_web = storage.scheme_of(reference) in storage.HTTP_SCHEMES
    if not is_web and not SERVER_PATH.match(reference):
        return reference
    path = re.sub(r"[?#].*", "", reference, flags=re.DOTALL)
    return unquote(f"/{path.split('/', 3)[3]}" if is_web and path.count("/") > 2 else path)


def _is_on_this_machine(path: str) -> bool:
    return path.startswith("/") and storage.local_path(path).is_file()
