"""The dashboard as an SVG: panels where the JSON puts them, with what Prometheus gave for them.

Not Grafana's own drawing, but its layout, its units and its colours. Dashed lines are the run's
events, numbered, with a key on top.
"""

import math
from xml.sax.saxutils import escape

WIDTH, UNIT, GAP, MARGIN = 1440, 27, 4, 12
HEAD = 96
COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#37872d")
RED, GREEN, BLUE = "#f2495c", "#73bf69", "#5794f2"
PAGE, FACE, EDGE, GRID, TEXT, FAINT = "#111217", "#181b1f", "#2b2e35", "#2a2d33", "#d8d9e3", "#8e909c"


def draw(path, panels, events, begin, end):
    height = HEAD + max(panel.place["y"] + panel.place["h"] for panel in panels) * UNIT + MARGIN
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
           f'font-family="Inter,Helvetica,Arial,DejaVu Sans,sans-serif" font-size="11">',
           f'<rect width="{WIDTH}" height="{height}" fill="{PAGE}"/>', *heading(events, begin)]
    for panel in panels:
        out += drawn(panel, box(panel.place), marks(events, begin), begin, end)
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(out + ["</svg>", ""]))


def marks(events, begin):
    """What is worth a number: all but the beginning and the end."""
    return [(at, what) for at, what in events if at > begin + 1][:-1]


def heading(events, begin):
    yield text(MARGIN + 4, 30, "FusionCap workers", size=19, weight=600)
    yield text(WIDTH - MARGIN - 4, 30, "namespace captions, workers cap-fusioncap, group fusioncap", fill=FAINT,
               anchor="end", size=12)
    # In rows of five.
    for index, (at, what) in enumerate(marks(events, begin)):
        x, y = MARGIN + 14 + index % 5 * 282, 54 + index // 5 * 21
        yield badge(x, y, index + 1)
        yield text(x + 15, y + 4, f"{clock(at - begin)}  {what}", size=12)


def badge(x, y, number, radius=8):
    size = radius + 2.5
    return (f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{radius}" fill="#3d4250"/>'
            + text(x, y + size * 0.36, str(number), size=size, anchor="middle", fill="#fff"))


def box(place):
    column = (WIDTH - 2 * MARGIN) / 24
    return (MARGIN + place["x"] * column + GAP / 2, HEAD + place["y"] * UNIT + GAP / 2,
            place["w"] * column - GAP, place["h"] * UNIT - GAP)


def drawn(panel, frame, events, begin, end):
    x, y, width, height = frame
    if panel.kind == "row":
        return [text(x + 6, y + height - 6, panel.title, size=14, weight=600)]
    out = [f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3" fill="{FACE}" '
           f'stroke="{EDGE}"/>', text(x + 10, y + 19, panel.title, size=12.5, weight=600)]
    if not panel.series:
        return [*out, text(x + width / 2, y + height / 2, "No data", anchor="middle", fill=FAINT, size=16)]
    if panel.kind == "stat":
        return [*out, *stat(panel, frame)]
    return [*out, *chart(panel, frame, events, begin, end)]


def stat(panel, frame):
    x, y, width, height = frame
    points = [value for _, value in panel.series[0].points if math.isfinite(value)]
    colour = GREEN
    for step in panel.thresholds:
        if step["value"] is None or points[-1] >= step["value"]:
            colour = {"green": GREEN, "red": RED}.get(step["color"], BLUE)
    top = max(points) or 1
    scale = [(x + 8 + (width - 16) * index / max(1, len(points) - 1), y + height - 8 - value / top * height * 0.3)
             for index, value in enumerate(points)]
    floor = y + height - 8
    yield (f'<path d="{line(scale)}L{x + width - 8:.1f} {floor:.1f}L{x + 8:.1f} {floor:.1f}Z" '
           f'fill="{colour}" fill-opacity=".14"/>')
    yield f'<path d="{line(scale)}" fill="none" stroke="{colour}" stroke-width="1.2" stroke-opacity=".6"/>'
    yield text(x + width / 2, y + height * 0.56, amount(points[-1], panel.unit) if panel.decimals is None
               else f"{points[-1]:.{panel.decimals}f}", size=46, weight=600, fill=colour,
               anchor="middle")


def chart(panel, frame, events, begin, end):
    x, y, width, height = frame
    series = stacked(panel.series) if panel.stacked else [
        (one.legend, one.points, None) for one in panel.series]
    named = legend(series, width - 24)
    left, right, top, bottom = x + 56, x + width - 14, y + 36, y + height - 29 - 15 * len(named)
    values = [value for _, points, _ in series for _, value in points if math.isfinite(value)]
    ticks = scale_of(min(values + ([panel.least] if panel.least is not None else [])), max(values), panel.unit)
    low, high = ticks[0], ticks[-1]

    def place(at, value):
        return (left + (at - begin) / (end - begin) * (right - left),
                bottom - (value - low) / (high - low) * (bottom - top))

    for tick in ticks:
        level = place(begin, tick)[1]
        yield f'<path d="M{left:.1f} {level:.1f}H{right:.1f}" stroke="{GRID}"/>'
        yield text(left - 6, level + 4, amount(tick, panel.unit, high), fill=FAINT, anchor="end")
    for minute in range(int((end - begin) // 60) + 1):
        yield text(place(begin + 60 * minute, 0)[0], bottom + 15, clock(60 * minute), fill=FAINT, anchor="middle")
    for index, (at, _) in enumerate(events):
        across = place(at, 0)[0]
        yield (f'<path d="M{across:.1f} {top:.1f}V{bottom:.1f}" stroke="#5a5f6e" stroke-dasharray="3 3" '
               f'stroke-width=".8"/>')
        yield text(across, top - 3, str(index + 1), size=8.5, fill=FAINT, anchor="middle")
    # The topmost of a stack first, so that those below lie over it.
    coloured = [(one, COLOURS[index % len(COLOURS)]) for index, one in enumerate(series)]
    for (_, points, floor), colour in reversed(coloured):
        yield from curve(points, floor, colour, place)
    for up, entries in enumerate(reversed(named)):
        across = x + 12
        for index, name in entries:
            colour = COLOURS[index % len(COLOURS)]
            yield (f'<path d="M{across:.0f} {y + height - 15 - 15 * up:.0f}h11" stroke="{colour}" stroke-width="3" '
                   f'stroke-linecap="round"/>')
            yield text(across + 16, y + height - 11 - 15 * up, name, fill="#b8bac4", size=10.5)
            across += wide(name)


def curve(points, floor, colour, place):
    for piece in pieces(points):
        path = [place(at, value) for at, value in piece]
        if floor is not None:
            under = [place(at, floor[at]) for at, _ in reversed(piece)]
            yield f'<path d="{line(path)}L{line(under)[1:]}Z" fill="{colour}" fill-opacity=".32"/>'
        if len(path) == 1:
            yield f'<circle cx="{path[0][0]:.1f}" cy="{path[0][1]:.1f}" r="1.6" fill="{colour}"/>'
        else:
            yield f'<path d="{line(path)}" fill="none" stroke="{colour}" stroke-width="1.4" stroke-linejoin="round"/>'


def stacked(series):
    """Each on top of those before it: (legend, points, what lies below by time)."""
    below, out = {}, []
    for one in series:
        floor = {at: below.get(at, 0.0) for at, _ in one.points}
        raised = [(at, floor[at] + (value if math.isfinite(value) else 0.0)) for at, value in one.points]
        below.update(raised)
        out.append((one.legend, raised, floor))
    return out


def pieces(points):
    """Runs without a gap: a query gives no point, or none that is a number, where there was nothing."""
    step = min((b[0] - a[0] for a, b in zip(points, points[1:])), default=1)
    found = []
    for at, value in points:
        if not math.isfinite(value):
            continue
        if found and at - found[-1][-1][0] <= step * 1.5:
            found[-1].append((at, value))
        else:
            found.append([(at, value)])
    return found


def wide(name):
    """Room of a name in the legend, for any font."""
    return 26 + 5.9 * len(name)


def legend(series, room):
    """Rows of (index, name) that fit."""
    rows, left = [[]], room
    for index, (name, _, _) in enumerate(series):
        if left < wide(name):
            rows.append([])
            left = room
        rows[-1].append((index, name))
        left -= wide(name)
    return rows


def line(points):
    """Relative steps in tenths of a pixel: half as long as the plain way to write it."""
    at = [(round(x * 10), round(y * 10)) for x, y in points]
    out = [f"M{tenths(at[0][0])} {tenths(at[0][1])}"]
    for (x0, y0), (x1, y1) in zip(at, at[1:]):
        out.append(f"l{tenths(x1 - x0)} {tenths(y1 - y0)}")
    return "".join(out)


def tenths(number):
    return f"{number / 10:g}"


def text(x, y, words, size=11, fill=TEXT, anchor="start", weight=400):
    more = f' font-weight="{weight}"' if weight != 400 else ""
    more += f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}"{more}>{escape(words)}</text>'


def clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def scale_of(low, high, unit):
    """Four or so round numbers from below `low` to above `high`."""
    base = 1.0
    if unit == "bytes":
        base = 2.0 ** (10 * math.floor(math.log2(max(high, 1)) / 10))
    elif unit == "s" and high >= 120:
        base = 60.0
    low, high = low / base, (high if high > low else low + base) / base
    raw = (high - low) / 4 or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [number * step * base for number in range(first, last + 1)]


def amount(value, unit, greatest=None):
    """A number in a panel's unit; `greatest` of an axis sets the same prefix for all of it."""
    size = abs(greatest if greatest is not None else value)
    if unit == "s":
        if size < 1 and value:
            return f"{value * 1000:.3g} ms"
        return f"{value:.3g} s" if size < 120 else f"{value / 60:.3g} min"
    if unit == "bytes":
        step, name = next((s for s in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")) if size >= s[0]), (1, "B"))
        return f"{value / step:.3g} {name}"
    prefixes = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
    step, name = next((s for s in prefixes if size >= s[0]), (1, ""))
    ending = {"ops": "/s", "Bps": "B/s"}.get(unit, "")
    return f"{value / step:.3g}{' ' if name + ending and unit == 'Bps' else ''}{name}{ending}"
