import io
import os
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from segbatch.console import Bar
from segbatch.jobs.progress import Progress as RunProgress


def test_a_line_above_the_bar_is_shown_as_it_is_whatever_a_user_calls_things() -> None:
    shown = io.StringIO()
    bar = Bar("images", 3)
    bar._bar = Progress(console=Console(file=shown, force_terminal=True, width=200))
    line = "run=s3://b/runs [/old] event=lost reason=[red]no such[/] class [/b]"
    bar.line(line, "time=now ")
    assert line in shown.getvalue()


def test_a_terminal_sees_what_is_committed_and_only_events_that_are_no_routine() -> None:
    shown = io.StringIO()
    progress = RunProgress("s3://bucket/runs/first", 100, 20)
    console = Console(file=shown, force_terminal=True, width=200)
    progress._bar.live.console = console
    progress._bar.disable = False
    with progress:
        progress.event("pass", remaining=80)
        progress.commit(30, version=4)
        progress.event("crashed", image_ids=[7], reason="killed by SIGSEGV")
        progress._bar.refresh()
    text = shown.getvalue()
    assert "50 committed" in text
    assert "crashed: image ids [7], reason killed by SIGSEGV" in text
    assert "pass" not in text
    assert "version" not in text


@pytest.mark.parametrize(("term", "is_bar"), [("dumb", False), ("xterm", True)])
def test_a_dumb_terminal_gets_lines_as_the_job_goes_on(
    monkeypatch: pytest.MonkeyPatch, term: str, is_bar: bool
) -> None:
    read, write = os.openpty()
    monkeypatch.setenv("TERM", term)
    with os.fdopen(write, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with RunProgress("s3://bucket/runs/first", 100, 20) as progress:
            progress.event("pass", remaining=80)
            progress.commit(30, version=4)
            terminal.flush()
            shown = os.read(read, 65536)
    os.close(read)
    assert (b"event=pass pass=0" in shown) == (not is_bar)
