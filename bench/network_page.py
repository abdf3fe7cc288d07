"""docs/performance.md, made of what bench/networks.py measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from network_results import OURS, Race, Result, mean, peers_of, races_on, thread_counts

from convwright.cli.race import Row

# What the project sets itself. Ratios are the best peer's time over ours.
RATIOS = {
    "mobilenet_v1": 1.3,
    "mobilenet_v2": 1.5,
    "resnet50": 1.5,
    "shufflenet_v1": 1.6,
    "squeezenet1_0": 1.5,
    "vgg16": 1.8,
}
MEAN, LEAST, THROUGHPUT, SPREAD = 1.5, 1.1, 1.3, 1.3
UNTUNED_MEAN, UNTUNED_LEAST = 1.3, 1.0  # of networks that no kernel or plan was measured with before
ERRORS = {"default": 1e-5, "strict": 1e-6}
COMPILE = {"resnet50": (2.0, 0.2), "mobilenet_v2": (1.5, 0.1)}  # seconds with an empty and with a full cache
DISTURBED = 0.15  # cores that others kept busy during a race, above which its figures are in doubt

ORIGIN = (
    "`{command}` writes this page; `bench/export_networks.py` writes the networks, with random weights and random "
    "batch-norm statistics."
)
TARGETS = (
    "Ratios are the best peer's time over convwright's, so more is better; the best peer is chosen anew for each "
    "network and number of threads."
)
SPEED = (
    "Median milliseconds of one inference of batch 1, the runtimes in turns, a process each, from the caller's "
    "row-major arrays to row-major arrays. 'ratio' is the best peer's time over convwright's, the median over "
    "the rounds; the last line has geometric means of each peer's time over convwright's. torch runs the file's "
    "operators eagerly, channels last; ncnn and MNN run what their converters make of the file. Rounds in which "
    "the host had moved the cores apart, so that they shared no cache (bench/quiet.py), were repeated: they "
    "slow everyone, and us the least."
)
UNTUNED = (
    "Six networks that played no part while kernels and plans were made (`bench/export_others.py` says what they are), "
    "raced once, before products were summed in pairs; but kernels for volumes were made with a residual network much "
    "like r3d_18 (tests/volume_networks.py). The columns are those of the tables above."
)
LATENCY = (
    "The 99th percentile of an inference's time over the median: of convwright alone, inferences one after "
    "another, and how many there were; and, so as to see what is the machine's, of each runtime over the turns "
    "of the race, which are only some tens of inferences of the heavy networks."
)
SCALING = (
    "convwright's median milliseconds on each number of threads, up to the machine's cores, in turns, and how "
    "many times as fast as on one thread that is."
)
BATCHES = (
    "Images a second in batches of {batch} on {threads} threads; the ratio is the better of ours over the best peer's."
)
FIRST = (
    "Milliseconds in a fresh process. compile: `cw.compile` alone, from the graph in memory to a model ready to "
    "run: its plan, its kernels (cold: none compiled before; warm: all in the cache on disk) and its weights in "
    "the kernels' order. The medians of {starts} starts each. Apart from it, of a warm start: import of the "
    'package, reading the file, the first inference; "pack" is the weights\' share of compile; total: from the '
    "first import to the first answer."
)
MEMORY = (
    "Megabytes of a process beyond what it held when the runtime had been imported, weights included, at its peak "
    "(from reading the file on; kernels came from the cache, and ncnn and MNN were given converted files) and "
    "between inferences; {threads} threads. torch's peak includes reading ONNX. The last column is the least of "
    "the peers' peaks over ours."
)
PLAN = (
    "What convwright's memory goes into, megabytes. The liveness bound is the most that is alive at one step of "
    "the plan."
)
ACCURACY = "Largest deviation from a float64 run of the same file, over its largest absolute value."
ACCURACY_SIZES = (
    'Odd size: 225 x 225 where 224 x 224 is usual and 283 x 283 where 299 x 299 is. "strict" is `numerics="strict"`.'
)
PEERS_ERRORS = "Deviation of all runtimes from float64, at the usual size:"

Cells = Callable[[Result], list[str]]


def page(
    results: Sequence[Result],
    command: str,
    *,
    starts: int,
    chart: str | None,
    batches: Sequence[Any],
    untuned: Sequence[Result] = (),
) -> str:
    """The whole page.

    - `command`: what reproduces it.
    - `starts`: starts of a process that "first answer" is the median of.
    - `chart`: the picture's name beside the page, where there is one.
    - `batches`: what bench/throughput.py wrote.
    - `untuned`: networks that have a section of their own.
    """
    peers, counts = peers_of(results), thread_counts(results)
    machines = "; ".join(dict.fromkeys(result.machine for result in results))
    parts = [
        "# Performance",
        f"Measured {dates(results)} on {machines}; float32. Versions: {versions(results) or 'not recorded'}.",
        ORIGIN.format(command=command),
    ]
    if chart and counts:
        parts.append(f"![Speed of each runtime relative to the fastest peer, network by network]({chart})")
    if verdicts := against_targets(results, batches) + untuned_targets(untuned):
        parts += ["## Against the targets", TARGETS, table(["what", "target", "measured", "met"], verdicts)]
    for threads in counts:
        races = races_on(results, threads)
        if races:
            parts += [f"## Speed, {counted(threads)}", SPEED if threads == counts[0] else "As above."]
            parts.append(table(["network", OURS, *peers, "ratio", "target", "met"], speed_lines(races, peers)))
    parts += untuned_parts(untuned)
    if any(race.rows and race.rows[0].spread for result in results for race in result.races):
        parts += ["## Latency", LATENCY, latency_table(results, counts, peers)]
    if any(result.scaling for result in results):
        parts += ["## Scaling", SCALING, scaling_table(results)]
    if batches:
        said = BATCHES.format(batch=batches[0]["batch"], threads=batches[0]["threads"])
        parts += ["## Throughput", said, throughput_table(batches)]
    if any(result.cold for result in results):
        headings = [
            "network",
            "cold compile",
            "warm compile",
            "pack",
            "import",
            "read",
            "run",
            "cold total",
            "warm total",
        ]
        parts += ["## Compile and first answer", FIRST.format(starts=starts), lines_of(headings, results, first_cells)]
    if counts and (memory := memory_parts(results, counts[-1], peers)):
        parts += ["## Memory", *memory]
    parts += accuracy_parts(results, peers)
    if found := remarks([*results, *untuned]):
        parts += ["## Remarks", "\n".join(f"- {remark}" for remark in found)]
    return "\n\n".join(parts) + "\n"


# -- sections ----------------------------------------------------------------------------------------------------------


def against_targets(results: Sequence[Result], batches: Sequence[Any]) -> list[list[str]]:
    """A line a target: what, how much, what was measured, and whether it is met."""
    lines = []

    def add(what: str, target: str, value: float | None, form: str, met: bool, note: str = "") -> None:
        if value is not None:
            lines.append([what, target, form.format(value) + note, yes(met)])

    for threads in thread_counts(results):
        races, on = races_on(results, threads), f", {counted(threads)}"
        ratios = {name: race.ratio for name, race in races.items() if race.ratio is not None}
        if not ratios:
            continue
        middle, least = mean(ratios.values()) or 0.0, min(ratios, key=lambda name: ratios[name])
        add(f"geometric mean of {len(ratios)} networks{on}", f">= {MEAN}", middle, "{:.2f}", middle >= MEAN)
        add(f"least{on}", f">= {LEAST}", ratios[least], "{:.2f}", ratios[least] >= LEAST, f" ({least})")
        for name, target in RATIOS.items():
            if name in ratios:
                add(f"{name}{on}", f">= {target}", ratios[name], "{:.2f}", ratios[name] >= target)
        spreads = {name: race.rows[0].spread for name, race in races.items() if race.rows[0].spread}
        if spreads:
            widest = max(spreads, key=lambda name: spreads[name] or 0.0)
            worst = spreads[widest] or 0.0
            add(f"p99 over median, worst{on}", f"<= {SPREAD}", worst, "{:.2f}", worst <= SPREAD, f" ({widest})")
    middle_batches = mean(entry.get("ratio") for entry in batches)
    if middle_batches is not None:
        met = middle_batches >= THROUGHPUT
        add(f"throughput, batch {batches[0]['batch']}, mean", f">= {THROUGHPUT}", middle_batches, "{:.2f}", met)
    for result in results:
        for kind, bound, start in zip(
            ("cold", "warm"), COMPILE.get(result.name, ()), (result.cold, result.warm), strict=False
        ):
            seconds = start.get("compile")
            add(f"{kind} compile of {result.name}, s", f"<= {bound}", seconds, "{:.2f}", (seconds or 0) <= bound)
    for numerics, bound in ERRORS.items():
        errors = {r.name: max(v) for r in results if (v := list(numbers(r.errors.get(numerics, {}))))}
        if errors:
            worst_name = max(errors, key=lambda name: errors[name])
            met = errors[worst_name] <= bound
            add(f"error, {numerics}, worst", f"<= {bound:.0e}", errors[worst_name], "{:.1e}", met, f" ({worst_name})")
    counts = thread_counts(results)
    shares = {name: memory_ratio(race) for name, race in (races_on(results, counts[-1]) if counts else {}).items()}
    known = {name: share for name, share in shares.items() if share is not None}
    if known:
        tightest = min(known, key=lambda name: known[name])
        met = known[tightest] >= 1
        add("least peer's peak memory over ours, worst", ">= 1", known[tightest], "{:.2f}", met, f" ({tightest})")
    return lines


def untuned_targets(results: Sequence[Result]) -> list[list[str]]:
    """The same for the networks nobody tuned for."""
    lines = []
    for threads in thread_counts(results):
        ratios = {name: ratio for name, race in races_on(results, threads).items() if (ratio := race.ratio) is not None}
        if not ratios:
            continue
        middle, least = mean(ratios.values()) or 0.0, min(ratios, key=lambda name: ratios[name])
        of = f"{len(ratios)} networks nobody tuned for, {counted(threads)}"
        lines += [
            [f"geometric mean of {of}", f">= {UNTUNED_MEAN}", f"{middle:.2f}", yes(middle >= UNTUNED_MEAN)],
            [f"least of {of}", f">= {UNTUNED_LEAST}", f"{ratios[least]:.2f} ({least})",
             yes(ratios[least] >= UNTUNED_LEAST)],
        ]  # fmt: skip
    return lines


def untuned_parts(results: Sequence[Result]) -> list[str]:
    """The section about networks nobody tuned for: speed on each number of threads, memory and errors."""
    peers, parts = peers_of(results), []
    for threads in thread_counts(results):
        races = races_on(results, threads)
        if races:
            parts += [f"{counted(threads).capitalize()}:"]
            parts.append(
                table(
                    ["network", OURS, *peers, "ratio", "target", "met"],
                    speed_lines(races, peers, {}, UNTUNED_LEAST, UNTUNED_MEAN),
                )
            )
    if not parts:
        return []
    return ["## Networks nobody tuned for", UNTUNED, *parts, *peers_errors(results, peers)]


def speed_lines(
    races: Mapping[str, Race],
    peers: Sequence[str],
    targets: Mapping[str, float] = RATIOS,
    least: float = LEAST,
    middle: float = MEAN,
) -> list[list[str]]:
    """A line a network and one of means; `targets` of single networks, `least` of the others, `middle` of the mean."""
    lines = []
    for name, race in races.items():
        times = [milliseconds(race.row(peer), 2) for peer in (OURS, *peers)]
        target = targets.get(name, least)
        met = "-" if race.ratio is None else yes(race.ratio >= target)
        lines.append([name, *times, number(race.ratio, 1, 2), f"{target:g}", met])
    means = [mean(row.ratio for race in races.values() if (row := race.row(peer)) is not None) for peer in peers]
    whole = mean(race.ratio for race in races.values())
    met = "-" if whole is None else yes(whole >= middle)
    return [
        *lines,
        ["geometric mean", "1.00", *(number(m, 1, 2) for m in means), number(whole, 1, 2), f"{middle:g}", met],
    ]


def latency_table(results: Sequence[Result], counts: Sequence[int], peers: Sequence[str]) -> str:
    lines = []
    for threads in counts:
        for name, race in races_on(results, threads).items():
            ours = race.row(OURS)
            alone = [number(ours.spread, 1, 2), str(ours.runs)] if ours is not None else ["-"] * 2
            lines.append([name, str(threads), *alone, *(in_turns(race.row(peer)) for peer in (OURS, *peers))])
    return table(["network", "threads", "alone", "runs", *(f"{peer}, in turns" for peer in (OURS, *peers))], lines)


def in_turns(row: Row | None) -> str:
    return "-" if row is None or not row.p99_s or not row.median_s else number(row.p99_s / row.median_s, 1, 2)


def scaling_table(results: Sequence[Result]) -> str:
    measured = [result for result in results if result.scaling]
    counts = sorted({threads for result in measured for threads in result.scaling})

    def cells(result: Result) -> list[str]:
        known = [result.scaling.get(threads) for threads in counts]
        return [
            *(number(figures[0] if figures else None, 1e3, 2) for figures in known),
            *(number(figures[1] if figures else None, 1, 2) for figures in known[1:]),
        ]

    headings = ["network", *map(counted, counts), *(f"{n} threads' gain" for n in counts[1:])]
    lines = [[result.name, *cells(result)] for result in measured]
    gains = [mean(r.scaling[n][1] for r in measured if n in r.scaling) for n in counts[1:]]
    lines.append(["geometric mean", *["-"] * len(counts), *(number(gain, 1, 2) for gain in gains)])
    return table(headings, lines)


def throughput_table(batches: Sequence[Any]) -> str:
    peers = list(batches[0]["images_per_second"])
    lines = []
    for entry in batches:
        rates = (number(entry["images_per_second"].get(peer), 1, 1) for peer in peers)
        lines.append([entry["network"], *rates, number(entry["ratio"], 1, 2)])
    lines.append(["geometric mean", *["-"] * len(peers), number(mean(entry["ratio"] for entry in batches), 1, 2)])
    return table(["network", *peers, "ratio"], lines)


def first_cells(result: Result) -> list[str]:
    warm = [result.warm.get(key) for key in ("compile", "pack", "import", "read", "run")]
    values = [result.cold.get("compile"), *warm, result.cold.get("total"), result.warm.get("total")]
    return [number(value, 1e3, 0) for value in values]


def memory_parts(results: Sequence[Result], threads: int, peers: Sequence[str]) -> list[str]:
    races = races_on(results, threads)
    if not races:
        return []
    runtimes = (OURS, *peers)
    lines, plans = [], []
    for name, race in races.items():
        rows = [race.row(peer) for peer in runtimes]
        shown = [f"{number(r.beyond, 1e-6, 1)} / {number(r.resident, 1e-6, 1)}" if r else "-" for r in rows]
        lines.append([name, *shown, number(memory_ratio(race), 1, 2)])
        account = rows[0].account if rows[0] else {}
        arena, bound = account.get("arena"), account.get("liveness_bound")
        of_bound = number(arena / bound if arena and bound else None, 1, 2)
        plans.append(
            [name, *(number(account.get(k), 1e-6, 1) for k in ("weights", "arena", "liveness_bound")), of_bound]
        )
    return [
        MEMORY.format(threads=threads),
        table(["network", *(f"{peer}, peak / at rest" for peer in runtimes), "least peer / ours"], lines),
        PLAN,
        table(["network", "weights", "arena", "liveness bound", "arena / bound"], plans),
    ]


def memory_ratio(race: Race) -> float | None:
    """The least of the peers' peaks over ours."""
    ours = race.row(OURS)
    peaks = [row.beyond for row in race.rows if row.peer != OURS and row.reason is None and row.beyond]
    return min(peaks) / ours.beyond if ours is not None and ours.beyond and peaks else None


def accuracy_parts(results: Sequence[Result], peers: Sequence[str]) -> list[str]:
    parts = []
    if any(result.errors for result in results):

        def cells(result: Result) -> list[str]:
            found = []
            for numerics in ERRORS:
                shown = [e if isinstance(e, str) else f"{e:.1e}" for e in result.errors.get(numerics, {}).values()]
                found += (shown + ["-"] * 3)[:3]
            return found

        sizes = ("usual", "batch 3", "odd size")
        headings = ["network", *(f"{numerics}, {size}" for numerics in ERRORS for size in sizes)]
        parts += [ACCURACY_SIZES, lines_of(headings, results, cells)]
    parts += peers_errors(results, peers)
    return ["## Accuracy", ACCURACY, *parts] if parts else []


def peers_errors(results: Sequence[Result], peers: Sequence[str]) -> list[str]:
    """Each runtime's error in the races."""
    rows = {r.name: {row.peer: row for race in r.races for row in race.rows if row.error is not None} for r in results}
    if not any(rows.values()):
        return []
    lines = [[name, *(error(found.get(peer)) for peer in (OURS, *peers))] for name, found in rows.items()]
    return [PEERS_ERRORS, table(["network", OURS, *peers], lines)]


def remarks(results: Sequence[Result]) -> list[str]:
    """What has no figures, and why; which races others disturbed; who kept cores busy in others' turns."""
    found = [f"{result.name}, {part}: {brief(why)}" for result in results for part, why in result.failed.items()]
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for race in result.races:
            for row in race.rows:
                if row.reason is not None:
                    reasons.setdefault((row.peer, brief(row.reason)), []).append(f"{result.name} ({race.threads})")
            turns = sum(row.disturbed for row in race.rows if row.peer == OURS)
            if turns:
                on = counted(race.threads)
                found.append(f"{result.name}, {on}: {turns} rounds were timed although the cores had moved apart")
            if race.others >= DISTURBED:
                on = counted(race.threads)
                found.append(f"{result.name}, {on}: others kept {race.others:.1f} cores busy during the race")
    found += [f"{peer}: {why}: {', '.join(where)}" for (peer, why), where in reasons.items()]
    return found


# -- cells -------------------------------------------------------------------------------------------------------------


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [headings, ["---", *["---:"] * (len(headings) - 1)], *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def lines_of(headings: Sequence[str], results: Sequence[Result], cells: Cells) -> str:
    return table(headings, [[result.name, *cells(result)] for result in results])


def yes(met: bool) -> str:
    return "yes" if met else "no"


def number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


def milliseconds(row: Row | None, digits: int) -> str:
    return number(row.median_s if row is not None else None, 1e3, digits)


def error(row: Row | None) -> str:
    return "-" if row is None or row.error is None else f"{row.error:.1e}"


def numbers(errors: Mapping[str, float | str]) -> list[float]:
    return [value for value in errors.values() if not isinstance(value, str)]


def counted(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def brief(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= 160 else f"{line[:157]}..."


def dates(results: Sequence[Result]) -> str:
    days = [result.when[:10] for result in results if result.when]
    return " to ".join(dict.fromkeys((min(days), max(days)))) if days else "at no recorded time"


def versions(results: Sequence[Result]) -> str:
    known = {row.peer: row.version for r in results for race in r.races for row in race.rows if row.version}
    return ", ".join(f"{name} {version}" for name, version in known.items())
