"""The detached agent: serves a trainer that was started without ``unbroken run``.

The same code as for a supervised command, but the process is another's: it is watched and not started again, its exit
code is not known, and signals of the terminal are for it, not for the agent.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from unbroken.agent.claims import Claims
from unbroken.agent.ending import Ending
from unbroken.agent.events import signals_to
from unbroken.agent.options import AgentOptions
from unbroken.agent.outcome import Limits, decide
from unbroken.agent.process_tree import WatchedTree
from unbroken.agent.runtime import SOCKET
from unbroken.agent.session import JOIN_SECONDS
from unbroken.agent.supervisor import open_session, surroundings
from unbroken.agent.watch import Surroundings, Watch
from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import EXIT_FAILED, ConfigError
from unbroken.notice.grace import grace_from


def attach(options: AgentOptions, pid: int, *, clear: Path | None = None, clock: Clock = SYSTEM_CLOCK) -> int:
    """Serve the trainer ``pid`` in ``options.runtime_dir`` until it has gone, or has said good-bye.

    Args:
        clear: a folder of the trainer's, which is removed once nobody needs it.

    Returns:
        0 after an attempt whose end is in the journal, 1 where no trainer ever spoke.
    """
    try:
        tree = WatchedTree(pid, clock)
    except ProcessLookupError:
        return EXIT_FAILED
    try:
        with (
            surroundings(options, clock, attached=True) as around,
            signals_to(around.mailbox, ignore_stops=True),
            around.interruption,
        ):
            code, parted = _serve(around, tree)
        if clear is not None and (parted or tree.ended()):
            shutil.rmtree(clear, ignore_errors=True)
        return code
    finally:
        tree.close()


def _serve(around: Surroundings, tree: WatchedTree) -> tuple[int, bool]:
    """The exit code, and whether the trainer has said good-bye."""
    claims = Claims(around.origin, _command_line(tree.pid), around.options.no_progress_limit, around.clock)
    session = open_session(around, claims)
    try:
        watch = Watch(around, tree, session, forward_signal=False)
        silent_until = around.clock.monotonic() + around.options.hello_patience

        def over() -> bool:
            if session.heard().hellos:
                return tree.ended() or not session.connected()
            return tree.ended() or around.clock.monotonic() >= silent_until

        watch.follow(over)
        ending = Ending(around, tree, session, watch)
        ending.settle()
        facts = ending.facts()
        if not facts.said_hello:
            return EXIT_FAILED, False
        # No restart in place here, so no count of attempts can end it; the next hello is refused instead.
        limits = Limits(max_restarts=0, no_progress=1 << 30)
        ending.conclude(decide(facts, limits), facts)
        return 0, bool(session.heard().byes)
    finally:
        session.close(around.interruption.bounded(JOIN_SECONDS))


def _command_line(pid: int) -> list[str]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode("utf-8", "replace") for part in raw.rstrip(b"\0").split(b"\0")]


def main(arguments: list[str] | None = None) -> int:
    """``python -m unbroken.agent --socket PATH --watch PID``: started by a trainer that has no agent."""
    parser = argparse.ArgumentParser(prog="python -m unbroken.agent", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="where to listen; named agent.sock")
    parser.add_argument("--watch", type=int, required=True, metavar="PID", help="the trainer's process")
    parser.add_argument("--grace", help="seconds, or a duration, from a stop signal to the kill")
    parser.add_argument("--hello-patience", type=float, default=AgentOptions.hello_patience, metavar="SECONDS")
    parser.add_argument("--clear", type=Path, metavar="DIR", help="folder of the trainer, removed after its end")
    given = parser.parse_args(arguments)
    if given.socket.name != SOCKET:
        raise ConfigError(f"the socket must be named {SOCKET}, not {given.socket.name}", kind="socket")
    options = AgentOptions(
        grace=grace_from(given.grace), runtime_dir=given.socket.parent, hello_patience=given.hello_patience
    )
    return attach(options, given.watch, clear=given.clear)
