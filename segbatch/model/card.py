"""The model card: front matter as model hubs read it, then what a person wants to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from segbatch.model.bundle import ModelConfig


def card(name: str, uri: str, config: ModelConfig) -> str:
    """Markdown: the network, its scores, its classes with the IoU of each, where it comes from."""
    scores = {key: value for key, value in config.metrics.items() if isinstance(value, int | float)}
    iou = config.metrics.get("iou", {})
    lines = [
        "---",
        "library_name: segbatch",
        "pipeline_tag: image-segmentation",
        "---",
        f"# {name}",
        "",
        f"Semantic segmentation: {config.arch} with {config.backbone}, output stride"
        f" {config.output_stride}, {len(config.classes)} classes.",
        "",
        f"- Images are brought to: {_side(config.long_side)}",
        f"- Normalisation: mean {list(config.mean)}, standard deviation {list(config.std)}",
        *(f"- {key}: {value:.4g}" for key, value in scores.items()),
        "",
        "| id | class | colour | IoU |",
        "|---|---|---|---|",
        *(
            f"| {c.id} | {c.name} | #{bytes(c.color).hex()} | {_score(iou.get(c.name))} |"
            for c in config.classes
        ),
        "",
        *_provenance(config.provenance),
        "```python",
        "import segbatch",
        f'prediction = segbatch.load_model("{uri}").predict(image)  # RGB, HWC uint8',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _provenance(facts: dict[str, Any]) -> list[str]:
    if not facts:
        return []
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return ["Where it comes from:", "", "```yaml", *text.splitlines(), "```", ""]


def _score(iou: float | None) -> str:
    return "" if iou is None else f"{iou:.3f}"


def _side(long_side: int | None) -> str:
    return "nothing, they are predicted as they are" if long_side is None else f"{long_side} pixels"
