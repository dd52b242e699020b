"""Pictures: what a model sees in images and videos, one or a folder of them, as overlays.

Without Ray.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from segbatch import storage
from segbatch.config.images import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from segbatch.config.job import Limits
from segbatch.console import say
from segbatch.errors import InputError, JobFailed, SourceError
from segbatch.images.decode import decode_image
from segbatch.images.faults import Undecodable
from segbatch.masks import with_legend
from segbatch.model.predict import Model, load_model
from segbatch.review.predict.film import ENCODERS
from segbatch.review.predict.video import predict_video
from segbatch.storage.uris import shown

_VIDEOS = {f".{extension}" for extension in VIDEO_EXTENSIONS}
_EXTENSIONS = _VIDEOS | {f".{extension}" for extension in IMAGE_EXTENSIONS}


def predict_pictures(source: str, model_uri: str, output: str) -> int:
    """Write an overlay with a legend for each image and video in ``source``; returns their number.

    ``output`` is a file for one image or video, its extension the format; a folder for a folder,
    or where it ends in ``/`` or is one already. Raises :class:`~segbatch.errors.InputError` for a
    source or model that cannot be used, :class:`~segbatch.errors.JobFailed` if something could not
    be read; the others are written all the same.
    """
    names = dict(_names(source, output))
    if not names:
        is_file = _extension(source) in _EXTENSIONS
        raise SourceError(
            f"{shown(source)}: " + ("no such file" if is_file else "no image and no video there")
        )
    for uri, target in names.items():
        _check_extension(uri, target)
    _refuse_overwriting(names)
    model = load_model(model_uri)
    failed = 0
    for uri, target in names.items():
        reason = _predict_one(model, uri, target)
        if reason:
            failed += 1
            say(f"{shown(uri)}: {reason}")
    if failed:
        raise JobFailed(f"{failed} of {len(names)} could not be read")
    return len(names)


def _refuse_overwriting(names: Mapping[str, str]) -> None:
    """Raises :class:`~segbatch.errors.InputError` for a picture in the place of an original."""
    originals = {storage.normalize(uri) for uri in names}
    for target in names.values():
        if storage.normalize(target) in originals:
            raise InputError(f"{target}: is one of the originals; choose another output")


def _check_extension(source: str, target: str) -> None:
    extension = _extension(target)
    if extension in ENCODERS:
        return
    if _extension(source) in _VIDEOS:
        raise InputError(f"{target}: a video is written as {', '.join(ENCODERS)}")
    if extension not in Image.registered_extensions():
        raise InputError(f"{target}: no picture's extension; use .png or .jpg")


def _extension(uri: str) -> str:
    """In lower case, with its dot."""
    return PurePosixPath(uri).suffix.lower()


def _predict_one(model: Model, uri: str, target: str) -> str | None:
    """Write one picture or video; returns why not, where it cannot be read."""
    if _extension(target) in ENCODERS:
        return _predict_video(model, uri, target)
    limits = Limits()
    [data] = storage.read_many([uri], limits.of_reading())
    if isinstance(data, storage.Unreadable):
        return f"{data.kind}: {data.message}"
    image = decode_image(data, max_pixels=limits.max_pixels, long_side=None)
    if isinstance(image, Undecodable):
        return f"{image.kind}: {image.message}"
    prediction = model.predict(image.pixels)
    shares = np.array(list(prediction.coverage.values()))
    picture = with_legend(prediction.overlay(), model.classes, shares)
    buffer = io.BytesIO()
    picture.save(buffer, format=Image.registered_extensions()[_extension(target)])
    with storage.writing_output():
        storage.write_bytes(target, buffer.getvalue())
    return None


def _predict_video(model: Model, uri: str, target: str) -> str | None:
    try:
        predict_video(uri, model, target)
    except (JobFailed, SourceError) as error:
        return str(error).removeprefix(f"{uri}: ")
    return None


def _names(source: str, output: str) -> Iterator[tuple[str, str]]:
    """Each image of the source, and the picture that is made of it."""
    try:
        files = [file.uri for file in storage.list_files(source)]
        inside = storage.is_local(output) and storage.local_path(output).is_dir()
        one = not files and storage.exists(source)
    except OSError as error:
        raise SourceError(f"cannot read {error}") from error
    if one or files == [source]:
        name = _written_as(PurePosixPath(storage.name_of(source)))
        yield source, storage.join(output, name) if inside or output.endswith("/") else output
        return
    root = storage.normalize(source)
    taken: set[str] = set()
    for uri in files:
        relative = PurePosixPath(uri.removeprefix(root).lstrip("/"))
        if relative.suffix.lower() not in _EXTENSIONS:
            continue
        name = _written_as(relative)
        if name in taken:  # a.jpg beside a.png
            name = f"{relative}{_extension(name)}"
        taken.add(name)
        yield uri, storage.join(output, name)


def _written_as(source: PurePosixPath) -> str:
    is_video = source.suffix.lower() in _VIDEOS
    return str(source.with_suffix(".mp4" if is_video else ".png"))
