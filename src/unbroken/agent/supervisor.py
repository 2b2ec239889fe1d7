"""``unbroken run``: start a command, keep it going, and leave with the code that the exit contract wants."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from unbroken.agent.arena import Arena
from unbroken.agent.claims import Claims
from unbroken.agent.deadline import backoff
from unbroken.agent.display import choose_display
from unbroken.agent.ending import Ending
from unbroken.agent.events import Mailbox, NoticeHeard, SignalHeard, signals_to
from unbroken.agent.interruption import Interruption
from unbroken.agent.options import AgentOptions
from unbroken.agent.outcome import Decision, Limits, decide
from unbroken.agent.process_tree import ChildTree
from unbroken.agent.runtime import AgentStatus, RuntimeFolder
from unbroken.agent.session import JOIN_SECONDS, Session
from unbroken.agent.torchrun import OWN_STORE, restarts_ranks
from unbroken.agent.view import View
from unbroken.agent.watch import TICK, Surroundings, Watch
from unbroken.clock import SYSTEM_CLOCK, Clock, format_duration
from unbroken.errors import EXIT_INTERRUPTED
from unbroken.journal import Origin
from unbroken.link.messages import EVERY_VARIABLE, KEEP_VARIABLE, RUN_VARIABLE, SOCKET_VARIABLE
from unbroken.notice import default_sources


def supervise(options: AgentOptions, command: Sequence[str], *, clock: Clock = SYSTEM_CLOCK) -> int:
    """Run ``command`` until it is finished, interrupted or given up. For a process's main thread.

    Returns:
        the exit code of the contract: 0 finished, 75 interrupted, 1 failed, or that of an error that a new start would
        meet again.

    Raises:
        ConfigError: the command cannot be executed, or an option or the environment cannot be used.
    """
    with surroundings(options, clock) as around, signals_to(around.mailbox), around.interruption:
        return _Supervisor(around, list(command)).run()


@contextmanager
def surroundings(options: AgentOptions, clock: Clock, *, attached: bool = False) -> Iterator[Surroundings]:
    """What an agent needs besides a command; display, runtime folder and arena are closed at the end of the block."""
    origin = Origin(socket.gethostname(), os.getpid(), options.pool, options.price, options.currency)
    mailbox = Mailbox()
    interruption = Interruption(default_sources(clock=clock), mailbox, options.grace, clock)
    with ExitStack() as stack:
        display = choose_display(clock, attached=attached)
        stack.callback(display.close)
        folder = RuntimeFolder(options.runtime_dir, display.say)
        stack.callback(folder.close)
        arena = Arena()
        stack.callback(arena.close)
        yield Surroundings(options, origin, clock, mailbox, interruption, display, folder, arena)


def open_session(around: Surroundings, claims: Claims) -> Session:
    """The session of one start, to be closed by the caller."""
    options = around.options
    return Session(
        around.folder.socket, claims, around.arena, around.mailbox.post, around.clock,
        patience=options.store_patience_at_start, upload_patience=options.upload_patience, nice=options.upload_nice,
    )  # fmt: skip


class _Supervisor:
    def __init__(self, around: Surroundings, command: list[str]) -> None:
        self._around = around
        self._command = command
        self._restarts = 0
        self._fruitless = 0
        """Starts in a row that committed nothing."""
        self._trains = bool(around.options.uri)
        """Whether the command is known to open a run."""

    def run(self) -> int:
        while True:
            decision = self._start()
            if decision.restart and not self._around.interruption.announced:
                decision = self._back_off(decision)
            elif decision.restart:
                decision = Decision(EXIT_INTERRUPTED, decision.cause, decision.text)
            if decision.exit_code is not None:
                self._around.display.say(f"exit {decision.exit_code}")
                return decision.exit_code
            self._restarts += 1

    def _start(self) -> Decision:
        """One start of the command, to its end."""
        around, options = self._around, self._around.options
        claims = Claims(around.origin, self._command, options.no_progress_limit, around.clock)
        session = open_session(around, claims)
        try:
            tree = ChildTree(self._command, self._environment(), around.clock)
            try:
                watch = Watch(around, tree, session)
                watch.follow(tree.ended)
                ending = Ending(around, tree, session, watch)
                ending.settle()
                facts = ending.facts(restarts=self._restarts, fruitless=self._fruitless, trains=self._trains)
                decision = decide(facts, Limits(options.max_restarts, options.no_progress_limit))
                self._fruitless = facts.fruitless
                self._trains = self._trains or facts.said_hello
                return ending.conclude(decision, facts)
            finally:
                tree.clear(0.0 if tree.ended() else options.leftover_grace)
        finally:
            session.close(around.interruption.bounded(JOIN_SECONDS))

    def _back_off(self, decision: Decision) -> Decision:
        """Wait before the restart; a notice meanwhile ends the agent."""
        options, clock = self._around.options, self._around.clock
        seconds = backoff(self._fruitless, options.first_backoff, options.longest_backoff)
        self._around.display.say(
            f"restart {self._restarts + 1} of at most {options.max_restarts} in {format_duration(seconds)}"
        )
        self._around.folder.write(AgentStatus(self._around.origin.pid, child_pid=0, uri=options.uri))
        deadline = clock.monotonic() + seconds
        while (left := deadline - clock.monotonic()) > 0:
            self._around.display.show(View(phase=f"restart in {format_duration(left)}"))
            event = self._around.mailbox.take(min(left, TICK))
            if isinstance(event, SignalHeard | NoticeHeard):
                text = "interrupted while waiting for a restart"
                self._around.display.say(text)
                return Decision(EXIT_INTERRUPTED, "interrupted", text)
        return decision

    def _environment(self) -> dict[str, str]:
        options = self._around.options
        environment = {**os.environ, SOCKET_VARIABLE: str(self._around.folder.socket)}
        if restarts_ranks(self._command):
            environment.setdefault(*OWN_STORE)
        if options.uri:
            environment[RUN_VARIABLE] = options.uri
        if options.every:
            environment[EVERY_VARIABLE] = options.every
        if options.keep:
            environment[KEEP_VARIABLE] = options.keep
        return environment
