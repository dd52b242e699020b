import io

from rich.console import Console
from rich.progress import Progress

from segbatch.console import Bar


def test_a_line_above_the_bar_is_shown_as_it_is_whatever_a_user_calls_things() -> None:
    shown = io.StringIO()
    bar = Bar("images", 3)
    bar._bar = Progress(console=Console(file=shown, force_terminal=True, width=200))
    line = "run=s3://b/runs [/old] event=lost reason=[red]no such[/] class [/b]"
    bar.line(line, "time=now ")
    assert line in shown.getvalue()
