"""What is made of the figures: goals and tables for docs/performance.md, and its drawing. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

Report = dict[str, Any]

#: Which version is measured.
NODE_RED = "4.1"


@dataclass(frozen=True)
class Goal:
    """A figure that is to be reached.

    Attributes:
        about: In words.
        case, figure: Which one, of the bridge's side.
        peer: The ratio to this side; None: the figure itself.
        least, aim: It is to be at least this much, and better that.
        unit: Behind the figure.
        is_most: At most this much, that is: less is better.
    """

    about: str
    case: str
    figure: str
    peer: str | None
    least: float
    aim: float
    unit: str = " times"
    is_most: bool = False

    def measured(self, report: Report) -> dict[str, float] | None:
        """Median, smallest and largest; None if it was not measured."""
        case = report["cases"].get(self.case)
        if case is None:
            return None
        figures = case["ratios"].get(self.peer) if self.peer else next(iter(case["sides"].values()))
        found: dict[str, float] | None = (figures or {}).get(self.figure)
        return found

    def reached(self, value: float) -> str:
        """`aim`, `least` or `missed`."""
        for word, bound in (("aim", self.aim), ("least", self.least)):
            if value <= bound if self.is_most else value >= bound:
                return word
        return "missed"


GOALS = (
    Goal("updates a second, durable, 32 connections; Node-RED keeps none", "closed-32", "rate", "node-red", 1.5, 2.2),
    Goal("POST → subscriber at that load, p50; Node-RED", "closed-32", "sub_p50", "node-red", 0.6, 0.4, is_most=True),
    Goal("updates a second, durable; Bottle on granian that answers at once", "closed-32", "rate", "bare", 0.3, 0.5),
    Goal("POST → subscriber at 300 a second, p50; Node-RED", "open-300", "sub_p50", "node-red", 1.5, 1.0, is_most=True),
    Goal("POST → subscriber at 300 a second, p99; Node-RED", "open-300", "sub_p99", "node-red", 1.0, 1.0, is_most=True),
    Goal("a backlog's updates a second; raw paho", "drain", "rate", "raw paho", 0.5, 0.8),
    Goal("updates a second at 100 a POST; one a POST", "hundred", "rate", "one a POST", 3, 8),
    Goal(
        "updates a second on a disk with 20 ms for an fsync; no group commit",
        "slow-disk",
        "rate",
        "no group commit",
        8,
        20,
    ),
    Goal("updates a second with 1,000,000 in the journal; an empty one", "journal", "rate", "empty", 0.9, 1.0),
    Goal("memory at rest, all processes", "idle", "memory_mb", None, 90, 60, " MB", is_most=True),
    Goal("processor at rest, of one core", "idle", "idle_cpu_percent", None, 0.5, 0.1, " %", is_most=True),
    Goal("start to the first 200", "idle", "start_ms", None, 1500, 600, " ms", is_most=True),
)


def number(value: float) -> str:
    """With as many digits as mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def goals(report: Report) -> list[dict[str, str]]:
    """A row for each goal."""
    rows = []
    for goal in GOALS:
        found = goal.measured(report)
        sign = "≤" if goal.is_most else "≥"
        rows.append(
            {
                "about": goal.about,
                "least": f"{sign} {goal.least:g}{goal.unit}",
                "aim": f"{goal.aim:g}{goal.unit}",
                "measured": f"{number(found['median'])}{goal.unit}" if found else "",
                "spread": f"{number(found['min'])} to {number(found['max'])}" if found else "",
                "reached": goal.reached(found["median"]) if found else "",
            }
        )
    return rows


def page(report: Report) -> dict[str, Any]:
    """What the template of docs/performance.md is given."""
    machine = report["machine"]
    cases = report["cases"]
    compared = [name for name, case in cases.items() if "post_p50" in next(iter(case["sides"].values()))]
    others = [name for name, case in cases.items() if name not in compared and name != "idle"]
    idle = cases["idle"]["sides"]["bridge"]
    return {
        "machine": f"Python {machine['python']} on {machine['cores']} cores, {machine['kind']}",
        "node_red": NODE_RED,
        "goals": goals(report),
        "rates": [
            (f"{name}: {side}", _figure(figures, "rate"), *_losses(figures))
            for name in [*compared, *others]
            for side, figures in cases[name]["sides"].items()
        ],
        "latencies": [
            (f"{name}: {side}", _pair(figures, "post"), _pair(figures, "sub"))
            for name in compared
            for side, figures in cases[name]["sides"].items()
        ],
        "costs": [
            (f"{name}: {side}", *(_figure(figures, f"cpu_{which}") for which in PROCESSES))
            for name in compared
            for side, figures in cases[name]["sides"].items()
            if "cpu_broker" in figures
        ],
        "processes": PROCESSES,
        "idle": {name: number(one["median"]) for name, one in idle.items()},
        "cases": [{"name": name, **case} for name, case in cases.items()],
    }


def headline(report: Report) -> str:
    """What the README says of it."""
    cases = report["cases"]
    against = cases["closed-32"]["ratios"]["node-red"]["rate"]["median"]
    idle = cases["idle"]["sides"]["bridge"]
    return (
        f"It stores and publishes {number(against)} times as many updates a second as Node-RED, which keeps none of "
        f"them, holds {idle['memory_mb']['median']:.0f} MB at rest, and answers "
        f"{idle['start_ms']['median'] / 1000:.1f} s after its start"
    )


PROCESSES = ("receiver", "main", "node", "broker")


def _figure(figures: dict[str, Any], name: str) -> str:
    one = figures.get(name)
    return f"{number(one['median'])} ({number(one['min'])} to {number(one['max'])})" if one else ""


def _pair(figures: dict[str, Any], name: str) -> str:
    if f"{name}_p50" not in figures:
        return ""
    return " / ".join(number(figures[f"{name}_{which}"]["median"]) for which in ("p50", "p99"))


def _losses(figures: dict[str, Any]) -> tuple[str, str]:
    """The most of all rounds."""
    return tuple(f"{figures[name]['max']:.0f}" if name in figures else "" for name in ("missing", "doubled"))  # type: ignore[return-value]


# --- the drawing ---------------------------------------------------------------------------------------------------

#: Cases whose updates a second are drawn, with what stands beside their bars.
DRAWN = {
    "closed-1": "1 connection",
    "closed-32": "32 connections",
    "closed-128": "128 connections",
    "new-32": "32, a new connection each POST",
    "hundred": "100 updates a POST",
}
COLOURS = {"bridge": "#00796b", "node-red": "#b0413e"}
WORDS = {"bridge": "whatsapp2mqtt (on disk)", "node-red": "Node-RED (in memory)"}
WIDTH, LEFT, RIGHT, BAR = 760, 230, 90, 16


def drawing(report: Report) -> str:
    """An SVG: updates a second of the bridge and of Node-RED, with the spread of the rounds."""
    rows = [(name, words) for name, words in DRAWN.items() if name in report["cases"]]
    bars: list[str] = []
    y = 64
    for name, words in rows:
        sides = report["cases"][name]["sides"]
        drawn = {side: sides[side]["rate"] for side in COLOURS if side in sides}
        # Each group has its own scale: what is compared stands beside one another.
        scale = (WIDTH - LEFT - RIGHT) / max(rate["max"] for rate in drawn.values())
        bars.append(f'<text x="{LEFT - 12}" y="{y + BAR + 2}" text-anchor="end">{escape(words)}</text>')
        for side, rate in drawn.items():
            width, low, high = (rate[which] * scale for which in ("median", "min", "max"))
            middle = y + BAR / 2
            bars.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 3}" fill="{COLOURS[side]}"/>')
            bars.append(f'<path d="M{LEFT + low:.1f} {middle - 1.5:.1f}H{LEFT + high:.1f}" stroke="#222"/>')
            bars.append(f'<text x="{LEFT + max(width, high) + 6:.1f}" y="{y + 11}">{rate["median"]:,.0f}</text>')
            y += BAR
        y += 14
    key = "".join(
        f'<rect x="{LEFT + 210 * place}" y="34" width="12" height="12" fill="{COLOURS[side]}"/>'
        f'<text x="{LEFT + 210 * place + 18}" y="45">{WORDS[side]}</text>'
        for place, side in enumerate(COLOURS)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#222" role="img">\n'
        "<title>Updates a second, the bridge beside Node-RED</title>\n"
        f'<rect width="{WIDTH}" height="{y}" fill="#fff"/>\n'
        '<text x="12" y="22" font-weight="bold">Updates a second: medians, and by a line the slowest and the '
        f"fastest round</text>\n{key}\n" + "\n".join(bars) + "\n</svg>\n"
    )
