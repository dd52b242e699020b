"""The help of the command line: headings by task, and examples to type."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

SEGMENT = "Segment images"
RESULTS = "Use the results"
MODELS = "Models and labels"
CLUSTER = "On a Ray cluster"
FIRST = "First steps"

# In the order in which they are shown.
EXAMPLES = {
    FIRST: "segbatch demo tour --photos photos/",
    SEGMENT: "segbatch init segment > job.yaml; $EDITOR job.yaml; segbatch run job.yaml",
    RESULTS: 'segbatch query RUN "SELECT uri FROM images WHERE coverage.window > 0.4"',
    MODELS: "segbatch labels import annotations/ labels/facades --from labelme",
    CLUSTER: "segbatch submit job.yaml --address http://head:8265",
}


def example(command: str) -> str:
    """The last line of the help of a command."""
    return f"Example: {command}"


class CommandsByTask(TyperGroup):
    """Shows the commands under the heading that each names as its ``rich_help_panel``."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        width = max(len(name) for name, _ in commands)
        for heading, command in EXAMPLES.items():
            rows = [
                (name.ljust(width), entry.get_short_help_str(formatter.width - 6 - width))
                for name, entry in commands
                if getattr(entry, "rich_help_panel", None) == heading
            ]
            with formatter.section(heading):
                formatter.write_dl(rows)
                # Not write_text, which would break a long line.
                formatter.write(f"{'':{formatter.current_indent}}Example: {command}\n")
