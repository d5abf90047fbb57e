"""The parts of a plotly figure, handed over at once: plotly checks all of them again with each that is added."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Parts:
    """Traces, shapes, annotations and the rest of a layout, added by the names that a go.Figure has for it."""

    traces: list[Any] = field(default_factory=list)
    shapes: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)

    def add_trace(self, trace: Any) -> None:
        self.traces.append(trace)

    def add_shape(self, **shape: Any) -> None:
        self.shapes.append(shape)

    def add_annotation(self, **annotation: Any) -> None:
        self.annotations.append(annotation)

    def update_layout(self, parts: dict[str, Any] | None = None, **more: Any) -> None:
        """Parts are named once each: an axis, a scale of colours, the legend."""
        self.layout |= (parts or {}) | more

    def figure(self, go: Any) -> Any:
        """A go.Figure of them."""
        return go.Figure(self.traces, self.layout | {"shapes": self.shapes, "annotations": self.annotations})
