"""Pictures: what a model sees in an image or a folder of them, as overlays. Without Ray."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from segbatch import storage
from segbatch.errors import InputError, JobFailed, SourceError
from segbatch.images.decode import decode_image
from segbatch.images.diagnose import Undecodable
from segbatch.job import Limits
from segbatch.jobimages import IMAGE_EXTENSIONS
from segbatch.masks import with_legend
from segbatch.model.predict import Model, load_model
from segbatch.progress import say


def predict_pictures(source: str, model_uri: str, output: str) -> int:
    """Write an overlay with a legend for each image in ``source``; returns their number.

    ``output`` is a file for one image, its extension the format; a folder for a folder, or where
    it ends in ``/`` or is one already. Raises :class:`~segbatch.errors.InputError` for a source
    or model that cannot be used, :class:`~segbatch.errors.JobFailed` if some image could not be
    read; the others are written all the same.
    """
    names = dict(_names(source, output))
    if not names:
        raise SourceError(f"{source}: no image there")
    extensions = Image.registered_extensions()
    for target in names.values():
        if PurePosixPath(target).suffix.lower() not in extensions:
            raise InputError(f"{target}: no picture's extension; use .png or .jpg")
    model = load_model(model_uri)
    failed = 0
    for uri, target in names.items():
        reason = _predict_one(model, uri, target)
        if reason:
            failed += 1
            say(f"{uri}: {reason}")
    if failed:
        raise JobFailed(f"{failed} of {len(names)} images could not be read")
    return len(names)


def _predict_one(model: Model, uri: str, target: str) -> str | None:
    """Write one picture; returns why not, where the image cannot be read."""
    limits = Limits()
    read_limits = storage.ReadLimits(limits.max_bytes, limits.timeout_s, limits.retries)
    [data] = storage.read_many([uri], read_limits)
    if isinstance(data, storage.Unreadable):
        return f"{data.kind}: {data.message}"
    image = decode_image(data, max_pixels=limits.max_pixels, long_side=None)
    if isinstance(image, Undecodable):
        return f"{image.kind}: {image.message}"
    prediction = model.predict(image.pixels)
    shares = np.array(list(prediction.coverage.values()))
    picture = with_legend(prediction.overlay(), model.classes, shares)
    buffer = io.BytesIO()
    extension = PurePosixPath(target).suffix.lower()
    picture.save(buffer, format=Image.registered_extensions()[extension])
    try:
        storage.write_bytes(target, buffer.getvalue())
    except OSError as error:
        raise InputError(f"cannot write {error}") from error
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
        name = f"{PurePosixPath(storage.name_of(source)).stem}.png"
        yield source, storage.join(output, name) if inside or output.endswith("/") else output
        return
    root = storage.normalize(source)
    taken: set[str] = set()
    for uri in files:
        relative = PurePosixPath(uri.removeprefix(root).lstrip("/"))
        if relative.suffix.lower().lstrip(".") not in IMAGE_EXTENSIONS:
            continue
        name = str(relative.with_suffix(".png"))
        if name in taken:  # a.jpg beside a.png
            name = f"{relative}.png"
        taken.add(name)
        yield uri, storage.join(output, name)
