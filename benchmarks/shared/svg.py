"""A figure with a logarithmic axis as SVG text: predictions are lines, measurements dots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, log10

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 24, 56


@dataclass(frozen=True)
class Curve:
    """`line`: what was predicted; `dots`: what was measured."""

    name: str
    colour: str
    line: Points
    dots: Points


def figure(curves: Sequence[Curve], across: str, up: str) -> str:
    """The curves with axes named `across`, which is logarithmic, and `up`, which begins at 0."""
    points = [point for curve in curves for point in (*curve.line, *curve.dots)]
    least, most = min(x for x, _ in points), max(x for x, _ in points)
    top, span = nice(max(y for _, y in points)), log10(most / least) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + log10(x / least) / span * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (
            HEIGHT - TOP - BOTTOM
        )

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        ' font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for x in sorted({x for x, _ in points}):
        at, bottom = place(x, 0)
        lines.append(f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom:.1f}" stroke="#eee"/>')
        lines.append(f'<text x="{at:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{x:g}</text>')
    for step in range(5):
        start, at = place(least, top * step / 4)
        lines.append(f'<line x1="{start}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="{start - 8}" y="{at + 4:.1f}" text-anchor="end">{top * step / 4:g}</text>')
    lines.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 14}" text-anchor="middle">{across}</text>')
    middle = (HEIGHT - BOTTOM + TOP) / 2
    lines.append(f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">{up}</text>')
    for number, curve in enumerate(curves):
        lines += _drawn(curve, [place(*p) for p in curve.line], [place(*p) for p in curve.dots])
        lines.append(
            f'<rect x="{LEFT + 16}" y="{TOP + 8 + 20 * number}" width="12" height="12" fill="{curve.colour}"/>'
        )
        lines.append(f'<text x="{LEFT + 36}" y="{TOP + 19 + 20 * number}">{curve.name}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _drawn(curve: Curve, line: Points, dots: Points) -> Iterator[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
    yield f'<polyline points="{path}" fill="none" stroke="{curve.colour}" stroke-width="2"/>'
    for x, y in dots:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{curve.colour}"/>'


def nice(value: float) -> float:
    """The least of 1, 2, 4, 6, 8 and 10 times a power of ten that is not below `value`."""
    power = 10.0 ** floor(log10(value))
    return next(times * power for times in (1, 2, 4, 6, 8, 10) if times * power >= value)
