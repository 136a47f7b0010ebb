"""What a long-running node shows while it works: one bounded state a node, safe between threads."""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from threading import Lock
from typing import Any, NamedTuple

MOST_SERIES = 8
MOST_POINTS = 2000  # of a series; more are thinned
MOST_PICTURES = 8  # shown; twice as many can be asked for, by a page that is late
MOST_PANELS = 8  # the last ones that ran

Point = tuple[float, float]


class PanelKey(NamedTuple):
    """Which run of which node a panel is of.

    Attributes:
        workflow: Id of the workflow on the canvas; empty when the run came without one.
        prompt: Id of the run.
        node: Id in the run, such as ``12:5`` for node 5 in the subgraph of node 12.
    """

    workflow: str
    prompt: str
    node: str


class Picture(NamedTuple):
    """A picture as a browser reads it."""

    number: int
    caption: str
    kind: str
    data: bytes


def thinned(points: list[Point]) -> list[Point]:
    """Half as many points: of each four, the lowest and the highest, so that peaks stay."""
    kept: list[Point] = []
    for start in range(0, len(points), 4):
        group = points[start : start + 4]
        ends = {min(group, key=lambda point: point[1]), max(group, key=lambda point: point[1])}
        kept += [point for point in group if point in ends]
    return kept


def _append(points: list[Point], new: list[Point]) -> None:
    points += new
    while len(points) > MOST_POINTS:
        points[:] = thinned(points)


class Panel:
    """The state of one node's panel. Changes stand in line until ``take`` sends them out."""

    def __init__(self, key: PanelKey) -> None:
        self.key = key
        self._lock = Lock()
        self._number = 0  # of the last event that was taken
        self._progress: dict[str, Any] = {}
        self._series: dict[str, list[Point]] = {}
        self._pictures: deque[Picture] = deque(maxlen=2 * MOST_PICTURES)
        self._drawn = 0
        self._state = "running"
        self._keep = False
        self._waiting: dict[str, Any] = {"state": self._state}
        self._began: tuple[float, int] | None = None

    def progress(self, step: int, total: int, text: str) -> None:
        """Say how far the node is."""
        with self._lock:
            now = time.monotonic()
            self._began = self._began or (now, step)
            since, first = self._began
            self._progress = {
                "step": step,
                "total": total,
                "text": text,
                "first": first,
                "seconds": round(now - since, 3),
            }
            self._waiting["progress"] = self._progress

    def point(self, series: str, x: float, y: float) -> None:
        """Add a point to a curve; one that is not finite is left out.

        Raises:
            ValueError: there are more curves than a chart can show.
        """
        if not (math.isfinite(x) and math.isfinite(y)):
            return
        with self._lock:
            waiting = self._waiting.setdefault("points", {})
            if series not in waiting and len({*self._series, *waiting, series}) > MOST_SERIES:
                raise ValueError(f"A live chart has at most {MOST_SERIES} series.")
            _append(waiting.setdefault(series, []), [(float(x), float(y))])

    def picture(self, data: bytes, kind: str, caption: str) -> None:
        """Add a picture; the oldest goes."""
        with self._lock:
            self._drawn += 1
            self._pictures.append(Picture(self._drawn, caption, kind, data))
            self._waiting["pictures"] = self._strip()

    def picture_of(self, number: str) -> Picture | None:
        """One of the last pictures, by its number as text."""
        with self._lock:
            return next((shown for shown in self._pictures if str(shown.number) == number), None)

    def ask_to_keep(self) -> bool:
        """Note the wish to stop and keep; False when the node runs no more."""
        with self._lock:
            if self._state != "running":
                return False
            self._keep = self._waiting["keep"] = True
            return True

    def is_asked_to_keep(self) -> bool:
        """Whether somebody wishes to stop and keep."""
        with self._lock:
            return self._keep

    def end(self, state: str) -> None:
        """The node runs no more; the wish goes with it."""
        with self._lock:
            self._state = self._waiting["state"] = state
            self._keep = self._waiting["keep"] = False

    def take(self) -> dict[str, Any] | None:
        """What changed since the last call, as the next event; None when nothing did."""
        with self._lock:
            if not self._waiting:
                return None
            changes, self._waiting = self._waiting, {}
            self._number += 1
            for series, points in changes.get("points", {}).items():
                _append(self._series.setdefault(series, []), points)
            return {**self.key._asdict(), "number": self._number, **changes}

    def snapshot(self) -> dict[str, Any]:
        """The whole state; the next event adds to it, so points in line are left to that one."""
        with self._lock:
            return {
                **self.key._asdict(),
                "number": self._number,
                "state": self._state,
                "keep": self._keep,
                "progress": self._progress,
                "points": {name: list(points) for name, points in self._series.items()},
                "pictures": self._strip(),
            }

    def _strip(self) -> list[dict[str, Any]]:
        last = list(self._pictures)[-MOST_PICTURES:]
        return [{"number": shown.number, "caption": shown.caption} for shown in last]


class Panels:
    """The panels of the last runs, ended ones too."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._panels: OrderedDict[PanelKey, Panel] = OrderedDict()

    def open(self, key: PanelKey) -> Panel:
        """A new panel for a node that begins; it takes the place of the node's last one."""
        panel = Panel(key)
        with self._lock:
            for known in [known for known in self._panels if _is_same_node(known, key)]:
                del self._panels[known]
            while len(self._panels) >= MOST_PANELS:
                self._panels.popitem(last=False)
            self._panels[key] = panel
        return panel

    def get(self, prompt: str, node: str) -> Panel | None:
        """The panel of a node in a run."""
        with self._lock:
            keys: Iterator[PanelKey] = iter(self._panels)
            found = next((key for key in keys if key[1:] == (prompt, node)), None)
            return self._panels[found] if found else None

    def of_workflow(self, workflow: str | None) -> list[Panel]:
        """The panels of a workflow; of all when it is None."""
        with self._lock:
            items = self._panels.items()
            return [panel for key, panel in items if workflow in (None, key.workflow)]


def _is_same_node(key: PanelKey, other: PanelKey) -> bool:
    return (key.workflow, key.node) == (other.workflow, other.node)
