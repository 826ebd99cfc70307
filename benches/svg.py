"""A picture as SVG: boxes, lines, text and dots, whose colours follow the reader's light or dark background.

Some 60 lines in place of a plotting library: what is drawn here are bars and a few lines, and a picture made of text
can be compared in a review. The background is part of the picture, so that it can be read wherever it is shown.
"""

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--ink) }
.title { font-size: 16px; font-weight: 600 } .head { font-weight: 600 } .note { fill: var(--soft); font-size: 12px }
.end { text-anchor: end } .middle { text-anchor: middle }
.paper { fill: var(--paper) } .grid { stroke: var(--grid) } .axis { stroke: var(--soft) }
.bar-ours { fill: var(--ours) } .bar-handler { fill: var(--handler) }
.bar-bun { fill: var(--bun) } .bar-other { fill: var(--other) }
.line { fill: none; stroke-width: 2.5 } .dashed { stroke-dasharray: 5 4; stroke-width: 1.5 }
.line-ours { stroke: var(--ours) } .line-handler { stroke: var(--handler) } .line-bun { stroke: var(--bun) }
.line-other { stroke: var(--other) } .cut { stroke: var(--paper); stroke-width: 3 }
svg { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --grid: #d8dee4;
  --ours: #0969da; --handler: #1a7f64; --bun: #d4680b; --other: #9aa4af }
@media (prefers-color-scheme: dark) { svg { --paper: #0d1117; --ink: #e6edf3; --soft: #9198a1; --grid: #30363d;
  --ours: #58a6ff; --handler: #3fb99a; --bun: #f0883e; --other: #6e7681 } }
"""


class Picture:
    """Shapes in the order in which they are painted; units are pixels, y grows downwards."""

    def __init__(self, width: float, height: float, title: str, description: str) -> None:
        self._width, self._height = width, height
        self._title, self._description = title, description
        self._shapes: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, style: str) -> None:
        """A filled rectangle."""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self._shapes.append(f"<rect {place} class={quoteattr(style)}/>")

    def line(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """A line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._shapes.append(f'<polyline points="{path}" class={quoteattr(style)}/>')

    def dot(self, x: float, y: float, style: str) -> None:
        """A small disc."""
        self._shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class={quoteattr(style)}/>')

    def text(self, x: float, y: float, words: str, style: str = "") -> None:
        """Words whose baseline begins, or by style is centred or ends, at a point."""
        self._shapes.append(f'<text x="{x:.1f}" y="{y:.1f}" class={quoteattr(style)}>{escape(words)}</text>')

    def __str__(self) -> str:
        """The file."""
        size = f'width="{self._width:g}" height="{self._height:g}" viewBox="0 0 {self._width:g} {self._height:g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title description">'
        names = (
            f'<title id="title">{escape(self._title)}</title><desc id="description">{escape(self._description)}</desc>'
        )
        paper = '<rect width="100%" height="100%" class="paper"/>'
        return "\n".join([head, names, f"<style>{STYLE}</style>", paper, *self._shapes, "</svg>", ""])
