"""``segbatch predict`` on an image, a video, or a folder of them: overlays, without Ray.

An image may be a part of an object, by its URI; a tar shard or a Parquet file stands for the images
in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import PurePosixPath

import numpy as np

from segbatch import storage
from segbatch.config.images import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    Shards,
    Table,
    is_shard_name,
)
from segbatch.config.job import Limits
from segbatch.console import say
from segbatch.errors import InputError, JobFailed, SourceError
from segbatch.images.decode import decode_image
from segbatch.images.faults import Undecodable
from segbatch.images.parts import part_kind, read_images
from segbatch.images.sources import stream_images
from segbatch.masks import FILL, encode_picture, picture_format, with_legend
from segbatch.model.predict import Model, load_model
from segbatch.review.names import safe_name
from segbatch.review.predict.film import ENCODERS
from segbatch.review.predict.videos import predict_video
from segbatch.storage.uris import is_inside, without_query

_VIDEOS = {f".{extension}" for extension in VIDEO_EXTENSIONS}
_EXTENSIONS = _VIDEOS | {f".{extension}" for extension in IMAGE_EXTENSIONS}


def predict_files(source: str, model_uri: str, output: str, fill: float = FILL) -> int:
    """Write an overlay with a legend for each image and video in ``source``; returns their number.

    ``fill`` is the opacity of the class colours, 0 to 1; with 0 there are only outlines.

    ``output`` is a file for one image or video, in the format of its extension. It is a folder if
    ``source`` is one, or if ``output`` ends in ``/`` or is a folder already; below ``source``, it
    is left out of what is predicted. Raises
    :class:`~segbatch.errors.InputError` for a source, model or output that cannot be used, and
    :class:`~segbatch.errors.JobFailed` at the end if some files could not be read.
    """
    outputs = dict(_outputs(source, output))
    if not outputs:
        is_file = _extension(source) in _EXTENSIONS
        raise SourceError(
            f"{without_query(source)}: "
            + ("no such file" if is_file else "no image and no video there")
        )
    _check_extensions(outputs)
    _refuse_overwriting(outputs)
    model = load_model(model_uri)
    failed = 0
    for uri, target in outputs.items():
        is_video = _extension(target) in ENCODERS
        try:
            (predict_video if is_video else _predict_image)(uri, model, target, fill)
        except (JobFailed, SourceError) as error:
            if isinstance(error, JobFailed) and not is_video:
                raise  # the image is too large for the device: so are others, and the key is named
            failed += 1
            say(str(error))
    if failed:
        raise JobFailed(f"{failed} of {len(outputs)} could not be read")
    return len(outputs)


def _outputs(source: str, output: str) -> Iterator[tuple[str, str]]:
    """Each image and video of the source, and the URI of its overlay."""
    if part_kind(source) is not None:
        name = f"{safe_name(source, source.rpartition('/')[0])}.png"
        into_folder = output.endswith("/") or _is_folder(output)
        yield source, storage.join(output, name) if into_folder else output
        return
    if is_shard_name(source) or source.lower().endswith(".parquet"):
        yield from _outputs_of_parts(source, output)
        return
    files: list[str] = []
    # A web server is not asked: many refuse HEAD, as signed addresses do.
    is_file = storage.scheme_of(source) in storage.HTTP_SCHEMES and not source.endswith("/")
    if not is_file:
        try:
            files = [file.uri for file in storage.list_files(source)]
            is_file = files == [source] or (not files and storage.exists(source))
        except OSError as error:
            raise SourceError(f"cannot read {error}") from error
    if is_file:
        name = _overlay_name(PurePosixPath(storage.name_of(without_query(source))))
        into_folder = output.endswith("/") or _is_folder(output)
        yield source, storage.join(output, name) if into_folder else output
        return
    taken: set[str] = set()
    if is_inside(output, source) and not is_inside(source, output):  # earlier overlays
        files = [uri for uri in files if not is_inside(uri, output)]
    system = storage.SystemFiles()
    for uri in system.left_out(files, partial(storage.path_below, folder=source)):
        relative = PurePosixPath(storage.path_below(uri, source))
        if relative.suffix.lower() not in _EXTENSIONS:
            continue
        name = _overlay_name(relative)
        for number in count(1):  # a.jpg and a.png in one folder; names that are not UTF-8
            if name not in taken:
                break
            name = f"{relative}{f'_{number}' if number > 1 else ''}{_extension(name)}"
        taken.add(name)
        yield uri, storage.join(output, name)
    if system.counts:
        say(f"left out {system}")


def _outputs_of_parts(source: str, output: str) -> Iterator[tuple[str, str]]:
    """Each image in shards or in tables, and the URI of its overlay."""
    parts = Shards(shards=source) if is_shard_name(source) else Table(table=source)
    folder = source.rpartition("/")[0]
    taken: Counter[str] = Counter()
    with stream_images([parts], reserved=(), leave_out=output) as stream:
        for batch in stream.batches:
            for uri in batch.column("uri").to_pylist():
                name = safe_name(uri, folder)
                taken[name] += 1
                name += f"@{taken[name]}" if taken[name] > 1 else ""
                yield uri, storage.join(output, f"{name}.png")


def _is_folder(output: str) -> bool:
    return storage.is_local(output) and storage.local_path(output).is_dir()


def _overlay_name(source: PurePosixPath) -> str:
    is_video = source.suffix.lower() in _VIDEOS
    return str(source.with_suffix(".mp4" if is_video else ".png"))


def _extension(uri: str) -> str:
    """The extension in lower case, with its dot."""
    return PurePosixPath(uri).suffix.lower()


def _check_extensions(outputs: Mapping[str, str]) -> None:
    """Raises :class:`~segbatch.errors.InputError` for a format that cannot be written."""
    for source, target in outputs.items():
        extension = _extension(target)
        if extension in ENCODERS:
            continue
        if _extension(source) in _VIDEOS:
            raise InputError(f"{target}: a video is written as {', '.join(ENCODERS)}")
        picture_format(target)


def _refuse_overwriting(outputs: Mapping[str, str]) -> None:
    """Raises :class:`~segbatch.errors.InputError` if an overlay would replace an original."""
    originals = {storage.normalize(uri) for uri in outputs}
    for target in outputs.values():
        if storage.normalize(target) in originals:
            raise InputError(f"{target}: is one of the originals; choose another output")


def _predict_image(uri: str, model: Model, target: str, fill: float) -> None:
    """Write the overlay of one image. Raises ``SourceError`` if the image cannot be read."""
    limits = Limits()
    [data] = read_images([uri], limits.read_limits())
    if not isinstance(data, bytes):
        raise SourceError(f"{without_query(uri)}: {data.kind}: {data.message}")
    image = decode_image(data, max_pixels=limits.max_pixels, long_side=None)
    if isinstance(image, Undecodable):
        raise SourceError(f"{without_query(uri)}: {image.kind}: {image.message}")
    prediction = model.predict(image.pixels)
    shares = np.array(list(prediction.coverage.values()))
    picture = with_legend(prediction.overlay(fill), model.classes, shares)
    with storage.translate_errors("cannot write", InputError):
        storage.write_bytes(target, encode_picture(picture, target))
