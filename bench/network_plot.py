"""The chart of docs/performance.md: each runtime's speed relative to the fastest peer, network by network."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from network_results import OURS, Race, Result, mean, peers_of, races_on, thread_counts

COLOURS = {
    OURS: "#c2410c", "onnxruntime": "#1d4ed8", "openvino": "#6d28d9", "torch": "#64748b", "ncnn": "#0f766e",
    "mnn": "#94a3b8",
}  # fmt: skip


def draw(results: Sequence[Result], path: Path) -> None:
    """Write an SVG: a row of charts, one a number of threads; a group of bars a network, a bar a runtime.

    A bar's height is the best peer's time over the runtime's, ours the median ratio of the rounds, as in the tables.
    """
    counts = [threads for threads in thread_counts(results) if races_on(results, threads)]
    # The same figures give the same file, whose text stays text.
    style = {"svg.hashsalt": "convwright", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    with rc_context(style):
        figure = Figure(figsize=(11, 3.2 * len(counts)))
        axes = figure.subplots(len(counts), 1, squeeze=False)
        for threads, axis in zip(counts, axes[:, 0], strict=True):
            races = races_on(results, threads)
            runtimes = [OURS, *peers_of(results)]
            width = 0.85 / len(runtimes)
            for place, runtime in enumerate(runtimes):
                heights = [relative(race, runtime) for race in races.values()]
                left = [index + (place - (len(runtimes) - 1) / 2) * width for index in range(len(races))]
                colour = COLOURS.get(runtime, "#cbd5e1")
                bars = axis.bar(left, heights, width, label=runtime, color=colour)
                if runtime == OURS:
                    axis.bar_label(bars, [f"{height:.2f}" for height in heights], padding=1, fontsize=8)
            axis.axhline(1, color="black", linewidth=0.6)
            axis.set_xticks(range(len(races)), list(races))
            axis.set_xlim(-0.6, len(races) - 0.4)
            axis.margins(y=0.12)
            axis.set_ylabel("speed, best peer = 1")
            middle = mean(race.ratio for race in races.values())
            on = f"{threads} thread{'s' * (threads > 1)}"
            axis.set_title(f"{on}, batch 1, float32: geometric mean {middle or 0:.2f}", loc="left")
            for side in "top", "right":
                axis.spines[side].set_visible(False)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=len(labels), frameon=False, loc="lower center")
        figure.tight_layout(rect=(0, 0.05, 1, 1))
        figure.savefig(path, metadata={"Date": None})


def relative(race: Race, runtime: str) -> float:
    """The best peer's time over this runtime's; 0 where it has none."""
    row = race.row(runtime)
    if row is None or row.ratio is None or race.ratio is None:
        return 0.0
    return race.ratio / row.ratio
