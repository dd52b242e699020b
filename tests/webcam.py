"""A camera on the network: Motion JPEG over HTTP, as webcams send it, which OpenCV opens as one."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from tests.model.conftest import picture


@contextmanager
def webcam(size: tuple[int, int] = (240, 320), num_frames: int | None = None) -> Iterator[str]:
    """The address of a camera of ``(height, width)``, twenty frames a second, endless or not."""
    ended = threading.Event()

    class Stream(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            number = 0
            try:
                while number != num_frames and not ended.wait(0.05):
                    buffer = io.BytesIO()
                    Image.fromarray(picture(*size, number % 20)).save(buffer, "JPEG")
                    data = buffer.getvalue()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}"
                    self.wfile.write(f"{head}\r\n\r\n".encode() + data + b"\r\n")
                    number += 1
            except (BrokenPipeError, ConnectionResetError):
                pass  # whoever looked has left

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Stream) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/stream.mjpg"
        finally:
            ended.set()
            server.shutdown()
