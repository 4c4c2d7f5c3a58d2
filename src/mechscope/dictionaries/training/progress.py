"""Progress: a bar on the terminal with tokens/s, L0, FVU, dead latents and the time left."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

from mechscope.dictionaries.training.trainer import Report


@contextmanager
def showing_progress() -> Generator[Callable[[Report], None], None, None]:
    """Yield a reporter that moves a bar; the time left comes from the steps done since the run began or resumed.

    The bar is on standard error, and is not there before the first report: a run that is refused shows none.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("", total=None)
    with ExitStack() as shown:

        def report(now: Report) -> None:
            if not bar.live.is_started:
                shown.enter_context(bar)
            bar.update(task, completed=now.step, total=now.n_steps, description=describe(now))

        yield report


def describe(now: Report) -> str:
    """One line: "12,300 tok/s · topk at resid_post.2: FVU 0.081, L0 32.0, dead 1.2%"."""
    each = [f"{one.name}: FVU {one.fvu:.3f}, L0 {one.l0:.1f}, dead {one.dead:.1%}" for one in now.figures]
    more = f" (+{len(each) - 2} more)" if len(each) > 2 else ""
    return " · ".join([f"{now.tokens_per_second:,.0f} tok/s", *each[:2]]) + more
