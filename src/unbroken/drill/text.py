"""What a drill prints: its progress while it runs, and its findings at the end."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from unbroken.clock import Clock, format_duration
from unbroken.drill.compare import Comparison
from unbroken.drill.drill import DrillResult
from unbroken.drill.schedule import Strike
from unbroken.report.cost import money
from unbroken.report.text import attempts_table, format_size, make_table

_LINE_SECONDS = 10.0
_DIFFERENCES_SHOWN = 20


class Narrator:
    """A :class:`~unbroken.drill.Listener` that writes to a console: a live bar on a terminal, otherwise plain lines.

    A context manager: leaving it ends the bar.

    Args:
        nodes: of the training; where there are several, each interruption names its own.
    """

    def __init__(self, console: Console, clock: Clock, nodes: int = 1) -> None:
        self._console = console
        self._clock = clock
        self._nodes = nodes
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._line_at = 0.0

    def __enter__(self) -> Narrator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def phase(self, title: str) -> None:
        self._say(f"[bold]{title}[/bold]")
        self._line_at = self._clock.monotonic()
        if self._console.is_terminal:
            columns = (
                TextColumn("  step {task.completed:.0f}/{task.total:.0f}"), BarColumn(),
                TextColumn("{task.description}"), TimeElapsedColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()

    def launched(self, number: int) -> None:
        if number > 1:
            who = "the agent is" if self._nodes == 1 else f"the agents of all {self._nodes} nodes are"
            self._say(f"  start {number}: {who} started again")

    def progress(self, step: int, until: int, attempt: int) -> None:
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("", total=until)
            self._bar.update(self._task, completed=step, total=until, description=f"attempt {attempt}")
            return
        now = self._clock.monotonic()
        if now - self._line_at >= _LINE_SECONDS:
            self._line_at = now
            self._say(f"  step {step} of {until}")

    def struck(self, strike: Strike, step: int, number: int, count: int) -> None:
        self._say(f"  interruption {number} of {count} at step {step}: {strike.describe(self._nodes)}")

    def phase_ended(self, seconds: float) -> None:
        self._end_bar()
        self._say(f"  finished after {format_duration(seconds)}")

    def comparing(self) -> None:
        self._say("[bold]Comparing the final states[/bold]")

    def _say(self, text: str) -> None:
        self._console.print(text)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._task = None, None


def print_result(console: Console, result: DrillResult, *, assumed_prices: bool) -> None:
    """Print what a drill found. ``assumed_prices`` says that nobody named prices."""
    console.print()
    if result.attempts:
        console.print("[bold]Attempts of the interrupted training[/bold]")
        console.print(attempts_table(result.attempts))
    pair = "interrupted against undisturbed" if result.attempts else "two undisturbed trainings"
    console.print(f"[bold]Final states, {pair}[/bold]")
    console.print(_comparison_table(result.comparison))
    if result.attempts:
        _print_cost(console, result, assumed_prices)
    _print_differences(console, result)
    for strike in result.missed:
        what = strike.describe(result.layout.nodes)
        console.print(f"[red]not interrupted:[/red] {what} at step {strike.step} had no effect")
    if result.missed:
        console.print("  The training reached its end first. Train for more steps, or try another --seed")
    if result.comparison.identical:
        console.print(f"[green]{_identical(result.comparison)}[/green]")


def _identical(found: Comparison) -> str:
    return f"identical: {found.tensors} tensors, {found.bytes} bytes, {found.logged} logged values, bit for bit"


def _comparison_table(found: Comparison) -> object:
    table = make_table("state", "tensors", "values", "bytes", "identical", right=("tensors", "values", "bytes"))
    for group in found.groups:
        table.add_row(
            escape(group.name),
            str(group.tensors),
            str(group.values),
            format_size(group.bytes),
            f"[red]no: {group.differences} differ[/red]" if group.differences else "[green]yes[/green]",
        )
    return table


def _print_cost(console: Console, result: DrillResult, assumed_prices: bool) -> None:
    on_demand, spot = result.on_demand, result.spot
    title = "Cost of this training"
    if assumed_prices:
        title += " at assumed prices (--on-demand and --spot set yours)"
    console.print(f"[bold]{title}[/bold]")
    table = make_table("market", "paid time", "an hour", "cost", right=("paid time", "an hour", "cost"))
    for market, cost in (("on-demand, undisturbed", on_demand), ("spot, interrupted", spot)):
        table.add_row(market, format_duration(cost.seconds), money(cost.price, cost.currency), str(cost))
    console.print(table)
    added = spot.seconds - on_demand.seconds
    price = money(added / 3600 * spot.price, spot.currency)
    console.print(
        f"The interruptions added {format_duration(added)} of paid time, {price}; "
        f"{result.steps_repeated} steps were done twice; {format_duration(result.lost_seconds)} passed between last "
        "steps and new work"
    )
    console.print()


def _print_differences(console: Console, result: DrillResult) -> None:
    differences = result.comparison.differences
    for difference in differences[:_DIFFERENCES_SHOWN]:
        name = "/".join(part for part in (difference.group, difference.name) if part)
        console.print(f"[red]differs:[/red] {escape(name)}: {escape(difference.text)}")
    if len(differences) > _DIFFERENCES_SHOWN:
        console.print(f"  and {len(differences) - _DIFFERENCES_SHOWN} more (--json lists all)")
    if differences:
        console.print(_advice(result.deterministic))
    for name in result.comparison.unseeded:
        console.print(
            f"note: the generator rng/{name} was never seeded and never used; its state came through every interruption"
        )
    if result.comparison.left_out:
        names, sizes = ", ".join(result.comparison.left_out), " and ".join(map(str, result.comparison.world_sizes))
        console.print(
            f"note: not compared, since the trainings ended with {sizes} ranks: {names}, which each rank has alone",
            markup=False,
        )


def _advice(deterministic: bool | None) -> str:
    if deterministic is None:
        return (
            "Either something that the next step depends on is missing from the run's state, or the training is not "
            "deterministic by itself: --check-determinism trains undisturbed twice and tells which"
        )
    if deterministic:
        return (
            "Two undisturbed trainings ended alike, so it is the resume: something that the next step depends on is "
            "missing from the run's state. The first logged value that differs says from which step on"
        )
    return (
        "Two undisturbed trainings differ already, so no resume could be exact. Seed every generator, fix the number "
        "of threads, and see torch.use_deterministic_algorithms"
    )
