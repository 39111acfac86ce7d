"""The roofline as a picture: every op's flop rate against its flops a byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw_roofline(result: dict[str, Any], path: Path) -> Path:
    """Draw what :func:`bench.gpu.measurements.as_json` gave to ``path`` (PNG); returns it."""
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
        colour = f"C{i % 10}"
        for j, row in enumerate(op["rows"]):
            label = f"{op['op']} ({op['case']})" if j == 0 else None
            marker = "o" if j == 0 else "x"  # ours first
            y = flops / (1e-3 * row["median_ms"])
            axes.plot([x], [y], marker, color=colour, label=label, ls="none")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="flops a byte of DRAM traffic (model)",
        ylabel="float32 flops a second",
        title=f"{result['machine'].get('gpu', '')}: o hfcore, x others",
    )
    axes.grid(True, which="both", alpha=0.2)
    if points:
        axes.legend(fontsize=7, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    return path
