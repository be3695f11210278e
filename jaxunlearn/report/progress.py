"""A run's progress: a bar on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0


@contextlib.contextmanager
def progress(
    console: Console, title: str, alive: Callable[[], None]
) -> Iterator[Callable[[float, int, float, float], None]]:
    """Yields `update(share done, images since the last call, loss, accuracy)`; it calls `alive`.

    No images: so much was done before, by a run that this one resumes.
    """
    line_at = time.monotonic()
    first: float | None = None  # when the first images were done; until then it compiled
    seen = 0

    def describe(images: int, loss: float, accuracy: float) -> str:
        nonlocal seen, first
        alive()
        now = time.monotonic()
        if first is None:
            first = now if images else None
        else:
            seen += images
        rate = (
            f"{seen / (now - first):6.0f} images/s" if first and seen and now > first else "started"
        )
        return f"{rate:>15}  loss {loss:.3f}  accuracy {100 * accuracy:5.1f}%"

    if console.is_terminal:
        columns = (
            TextColumn("{task.description:<32}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=1.0, state="compiling")
            yield lambda share, images, loss, accuracy: bar.update(
                task, completed=share, state=describe(images, loss, accuracy)
            )
        return

    last = f"{title}: nothing to do"
    # Where the clock of what is left began: anew where a run was resumed, and where the share
    # falls, as a second stage has made the whole longer.
    since, highest = (0.0, line_at), 0.0

    def plain(share: float, images: int, loss: float, accuracy: float) -> None:
        nonlocal line_at, last, since, highest
        now = time.monotonic()
        state = describe(images, loss, accuracy)
        if not images or share < highest:
            since, highest = (share, now), share
            return
        highest, (share_then, then) = share, since
        left = (now - then) / max(share - share_then, 1e-9) * (1 - share)
        last = f"{title}: {100 * share:3.0f}%  {left:4.0f} s left  {state}"
        if now - line_at > SECONDS_BETWEEN_LINES and share < 1:
            console.print(last, highlight=False, soft_wrap=True, markup=False)
            line_at = now

    yield plain
    console.print(last, highlight=False, soft_wrap=True, markup=False)
