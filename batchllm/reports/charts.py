"""Charts as SVG of flexible width: x positions are shares of the width, and text keeps its size."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10

from jinja2 import Environment
from markupsafe import Markup

PLOT_WIDTH, PLOT_HEIGHT = 1000, 100  # of a curve's own coordinates, which stretch
TOP, BOTTOM = 18, 20  # px above and below the curve, for letters
MAX_TICKS = 6
TIME_STEPS = [m * 10.0**p for p in (-3, -2, -1) for m in (1, 2, 5)]  # s
TIME_STEPS += [
    1,
    2,
    5,
    10,
    15,
    30,
    *(m * 60 for m in (1, 2, 5, 10, 15, 30)),
    *(h * 3600 for h in (1, 2, 4, 6, 12, 24, 48)),
]
SVG = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
CURVE = SVG.from_string(
    """<svg class="curve {{ name }}" role="img" width="100%" height="{{ height }}" aria-label="{{ label }}">
{% for tick in y_ticks %}
<line class="grid" x1="0" x2="100%" y1="{{ tick.y }}" y2="{{ tick.y }}"/>
<text class="tick" x="0" y="{{ tick.y - 4 }}">{{ tick.text }}</text>
{% endfor %}
<svg x="0" y="{{ top }}" width="100%" height="{{ plot }}" viewBox="0 0 {{ width }} {{ plot }}"
 preserveAspectRatio="none"><path d="{{ path }}"/></svg>
{% if limit is not none %}
<line class="limit" x1="0" x2="100%" y1="{{ limit }}" y2="{{ limit }}"/>
{% endif %}
{% for tick in x_ticks %}
<line class="grid" x1="{{ tick.x }}%" x2="{{ tick.x }}%" y1="{{ top + plot }}" y2="{{ top + plot + 4 }}"/>
<text class="tick" x="{{ tick.x }}%" y="{{ height - 4 }}" text-anchor="{{ tick.anchor }}">{{ tick.text }}</text>
{% endfor %}
<line class="cursor" y1="{{ top }}" y2="{{ top + plot }}" visibility="hidden"/>
</svg>"""
)
BAR = SVG.from_string(
    """<svg class="bar" width="100%" height="8" aria-hidden="true"><rect class="track" width="100%" height="8" rx="2"/>
<rect width="{{ percent }}%" height="8" rx="2"/></svg>"""
)


def curve(
    name: str,
    label: str,
    edges_s: Sequence[float],
    values: Sequence[float],
    *,
    limit: float | None = None,
    has_time: bool = False,
) -> Markup:
    """Values between times, as steps over time.

    name: its class. label: for screen readers. edges_s: [len(values) + 1], ascending, in seconds. limit: a line.
    has_time: whether the times are written below.
    """
    highest = nice_ceiling(max([*values, limit or 0, 1]))
    span_s = max(edges_s[-1], 1e-9)

    def y(value: float) -> float:
        return round(PLOT_HEIGHT * (1 - value / highest), 1)

    path = [f"M0 {PLOT_HEIGHT}"]
    for end_s, value in zip(edges_s[1:], values, strict=True):
        path.append(f"V{y(value):g}H{PLOT_WIDTH * end_s / span_s:.1f}")
    path.append(f"V{PLOT_HEIGHT}Z")
    text = CURVE.render(
        name=name,
        label=label,
        height=TOP + PLOT_HEIGHT + (BOTTOM if has_time else 2),
        top=TOP,
        plot=PLOT_HEIGHT,
        width=PLOT_WIDTH,
        path="".join(path),
        limit=None if limit is None else TOP + y(limit),
        y_ticks=[{"y": TOP + y(value), "text": f"{value:,g}"} for value in (highest / 2, highest)],
        x_ticks=[
            {
                "x": round(100 * tick / span_s, 2),
                "text": time_text(tick),
                "anchor": "start" if tick == 0 else "end" if tick > 0.96 * span_s else "middle",
            }
            for tick in (time_ticks(span_s) if has_time else ())
        ],
    )
    return Markup(text)


def bar(share: float) -> Markup:
    """A bar as long as that share of the width."""
    return Markup(BAR.render(percent=round(100 * min(max(share, 0.0), 1.0), 2)))


def nice_ceiling(value: float) -> float:
    """The next round number whose half is also round."""
    power: float = 10 ** floor(log10(value))
    return next(step for step in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10) if step * power >= value - 1e-9) * power


def time_ticks(span_s: float) -> list[float]:
    step = next((step for step in TIME_STEPS if span_s / step <= MAX_TICKS), ceil(span_s / MAX_TICKS))
    return [i * step for i in range(floor(span_s / step + 1e-9) + 1)]


def time_text(seconds: float) -> str:
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s and seconds % (unit_s / 2) == 0:
            return f"{seconds / unit_s:g} {unit}"
    return f"{seconds:g} s" if seconds >= 1 or seconds == 0 else f"{1000 * seconds:g} ms"
