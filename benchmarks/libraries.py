"""What the libraries under the data path cost alone, on the very bytes that it works on.

Each function gives tasks by the name of the library; where several can do it, the fastest counts.
"""

from __future__ import annotations

import asyncio
import io
import struct
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from zlib_ng import zlib_ng

from segbatch.images.scaling import downscale
from segbatch.masks import SIGNATURE
from segbatch.storage import ReadLimits, is_local
from segbatch.storage.clients import obstore_client

Tasks = dict[str, Callable[[], Any]]


def fetch(uris: Sequence[str]) -> Tasks:
    """The bytes of objects, as many at a time as ours; of local files, one after the other."""
    if is_local(uris[0]):
        return {"read": lambda: [Path(uri).read_bytes() for uri in uris]}
    return {
        "obstore": lambda: asyncio.run(_get_all(uris, _whole)),
        "obstore, streamed": lambda: asyncio.run(_get_all(uris, _streamed)),
    }


async def _get_all(uris: Sequence[str], receive: Callable[[Any], Awaitable[Any]]) -> list[Any]:
    slots = asyncio.Semaphore(ReadLimits().concurrency)

    async def get(uri: str) -> Any:
        client = obstore_client(uri)
        assert client is not None
        async with slots:
            return await receive(await obstore.get_async(*client))

    return await asyncio.gather(*(get(uri) for uri in uris))


async def _whole(answer: Any) -> Any:
    return await answer.bytes_async()


async def _streamed(answer: Any) -> list[bytes]:
    return [bytes(part) async for part in answer.stream(min_chunk_size=1 << 20)]


def decode(files: Sequence[bytes], long_side: int | None) -> Tasks:
    """JPEG → RGB. torchvision cannot decode at a fraction of the size."""
    tasks: Tasks = {"Pillow": lambda: [_pillow(data, long_side) for data in files]}
    if long_side is None:
        tasks["torchvision"] = lambda: [_torchvision(data) for data in files]
        tasks["simplejpeg"] = lambda: [simplejpeg.decode_jpeg(data) for data in files]
    return tasks


def _pillow(data: bytes, long_side: int | None) -> bytes:
    image: Image.Image = Image.open(io.BytesIO(data))
    if long_side is not None:
        image.draft("RGB", (2 * long_side, 2 * long_side))
        image = downscale(image, long_side)
    return image.tobytes()


def _torchvision(data: bytes) -> torch.Tensor:
    encoded = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    return decode_jpeg(encoded, mode=ImageReadMode.RGB)


def encode(masks: Sequence[bytes]) -> Tasks:
    """What deflate and the checksum cost, on rows that are packed and filtered already."""
    filtered = [zlib_ng.decompress(_pixel_data(mask)) for mask in masks]
    return {"zlib-ng": lambda: [_deflated(rows) for rows in filtered]}


def _deflated(rows: bytes) -> int:
    deflate = zlib_ng.compressobj(level=6, strategy=zlib_ng.Z_RLE)
    return zlib_ng.crc32(deflate.compress(rows) + deflate.flush())


def _pixel_data(png: bytes) -> bytes:
    position, parts = len(SIGNATURE), b""
    while position < len(png):
        length, kind = struct.unpack(">I4s", png[position : position + 8])
        if kind == b"IDAT":
            parts += png[position + 8 : position + 8 + length]
        position += length + 12
    return parts


def write(rows: pa.Table, folder: Path) -> Tasks:
    """One Parquet file of the rows, on local disk."""
    return {"pyarrow": partial(pq.write_table, rows, folder / "rows.parquet", compression="zstd")}
