"""The roofline as a picture: every op's flop rate against its flops a byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.gpu.measurements import OURS, OURS_GRAPHED

# Marker and face, None: filled.
MARKERS: dict[str, tuple[str, str | None]] = {OURS: ("o", None), OURS_GRAPHED: ("o", "white")}


def draw_roofline(result: dict[str, Any], path: Path) -> Path:
    """Draw what :func:`bench.gpu.measurements.as_json` gave to ``path`` (PNG); returns it."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ceilings = result["ceilings"]
    copy, rate = ceilings["copy"], ceilings["float32"]
    points = [
        (op["work"]["flops"] / op["work"]["bytes"], op["work"]["flops"], op)
        for op in result["ops"]
        if op["work"]["flops"] and op["work"]["bytes"]
    ]
    intensities = [x for x, _, _ in points] + [rate / copy]
    low, high = min(intensities) / 3, max(intensities) * 3
    figure = Figure(figsize=(8, 5.5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([low, rate / copy, high], [low * copy, rate, rate], color="black", lw=1.5)
    for i, (x, flops, op) in enumerate(points):
        colour = colormaps["turbo"](i / len(points))
        for j, row in enumerate(op["rows"]):
            label = f"{op['op']} ({op['case']})" if j == 0 else None
            marker, face = MARKERS.get(row["contestant"], ("x", None))
            y = flops / (1e-3 * row["median_ms"])
            axes.plot([x], [y], marker, color=colour, mfc=face or colour, label=label, ls="none")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="flops a byte of DRAM traffic (model)",
        ylabel="float32 flops a second",
        title=f"{result['machine'].get('gpu', '')}: ● hfcore, ○ from a CUDA graph, × others",
    )
    axes.grid(True, which="both", alpha=0.2)
    if points:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    return path
