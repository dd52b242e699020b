"""Images that harm the process that opens them, as a bug in a decoder does.

:func:`install` runs in every worker of the tests' Ray: it teaches Pillow there to obey what a
picture's comment says. The driver's Pillow is left as it is.
"""

import os
import signal
import time
from typing import Any

from PIL import Image

MARK = b"segbatch-test:"
KILL = MARK + b"kill the process;"
WAIT = MARK + b"wait a little;"
EAT = MARK + b"eat all memory;"


def install() -> None:
    harmless = Image.open

    def harmful(fp: Any, *args: Any, **kwargs: Any) -> Any:
        data = fp.getvalue() if hasattr(fp, "getvalue") else b""
        if KILL in data:
            os.kill(os.getpid(), signal.SIGKILL)
        if WAIT in data:
            time.sleep(0.3)
        if EAT in data:
            eaten = []
            for _ in range(80):  # at most 8 GB, and all of it touched
                eaten.append(bytearray(os.urandom(1)) * 100_000_000)
                time.sleep(0.02)
        return harmless(fp, *args, **kwargs)

    Image.open = harmful
