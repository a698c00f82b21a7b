"""Pieces of HTML that the tabs are made of; everything that is shown is inside, nothing is fetched."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

escape = html.escape


def img(picture: Image.Image, alt: str, smooth: bool = False) -> str:
    """Returns a picture as an ``<img>``; pixels of small ones stay squares unless it is ``smooth``."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    kind = "vs-smooth" if smooth else "vs-pixels"
    return f'<img class="{kind}" alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def figure(body: str, title: str, caption: str = "") -> str:
    """Returns a body under a title, with a caption below."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="vs-figure"><h3>{escape(title)}</h3>{body}{below}</figure>'


def row(*parts: str) -> str:
    """Returns parts side by side, below each other on a narrow screen."""
    return f'<div class="vs-row">{"".join(parts)}</div>'


def chips(figures: Sequence[tuple[str, str]]) -> str:
    """Returns figures, each as its value and what it is."""
    items = "".join(f"<li><b>{escape(value)}</b> {escape(name)}</li>" for value, name in figures)
    return f'<ul class="vs-chips">{items}</ul>'


def note(text: str) -> str:
    """Returns a remark."""
    return f'<p class="vs-note">{escape(text)}</p>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Returns a table of text; the first cell of a row is its heading.

    Args:
        head: headings of the columns.
        rows: of cells.
        caption: what the table shows.
    """
    heading = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="vs-scroll"><table class="vs-table"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{heading}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def bars(values: Sequence[int], title: str) -> str:
    """Returns a bar chart of whole numbers, one bar each, as SVG."""
    top, width, height = max(values, default=1), 100 / max(1, len(values)), 40
    drawn = "".join(
        f'<rect x="{i * width:.3f}" y="{height - height * value / top:.2f}" width="{width * 0.82:.3f}" '
        f'height="{height * value / top:.2f}"><title>step {i + 1}: {value}</title></rect>'
        for i, value in enumerate(values)
    )
    return (
        f'<figure class="vs-bars"><h3>{escape(title)}</h3><svg viewBox="0 0 100 {height}" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(title)}: {len(values)} steps, at most {top}">{drawn}</svg>'
        f"<figcaption>step 1 to {len(values)}, at most {top}</figcaption></figure>"
    )
