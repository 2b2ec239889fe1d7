"""How a command ended and what follows from it. Pure: facts in, a decision out.

The journal says whether the run is finished and what is durable; the command's exit code is only a hint, because
launchers change it (torchrun makes 1 of a worker's 75) and because scripts end with 0 for reasons of their own.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from unbroken import errors
from unbroken.journal.state import NO_PROGRESS
from unbroken.link.messages import LOST_RANK, Bye, Refused

_FINAL: dict[str, type[errors.UnbrokenError]] = {
    error.__name__: error
    for error in (
        errors.ConfigError,
        errors.FencedError,
        errors.NotFoundError,
        errors.DamagedError,
        errors.FormatError,
        errors.MismatchError,
        errors.AccessError,
    )
}
"""Errors that another start of the same command would meet again."""


_PEER_ERRORS = ("DistBackendError", "DistNetworkError", "DistStoreError")
"""What torch.distributed raises where the other end is gone or silent."""
_PEER_TEXTS = ("connection closed by peer", "connection reset by peer", "socket closed", "broken pipe")
"""The same in the words of gloo and of the system, as a RuntimeError."""


def may_pass(error: str, kind: str) -> bool:
    """Whether the error of this class and kind is a storage's bad hour, which says nothing about the command."""
    return error == errors.StoreError.__name__ and kind != "create-only"


@dataclass(frozen=True)
class Limits:
    """When to stop trying."""

    max_restarts: int
    no_progress: int


@dataclass(frozen=True)
class Facts:
    """What is known when a command has ended."""

    returncode: int | None
    """As :mod:`subprocess` gives it; None for a process whose code cannot be known."""
    said_hello: bool = True
    """Whether any trainer of this start spoke to the agent."""
    trains: bool = False
    """Whether the command is known to train, whatever this start did: an earlier one opened the run, or its URI was
    given."""
    journal_known: bool = True
    """Whether the journal could be read after the end; otherwise the next five are as of the last reading."""
    finished_step: int = -1
    """The step at which the journal calls the run complete; -1: it does not."""
    finished_here: bool = False
    """Whether this very attempt wrote that."""
    committed: bool = False
    """Whether this start committed a checkpoint."""
    durable_step: int = -1
    """Step of the newest checkpoint; -1 for none."""
    fenced: bool = False
    """Whether another attempt owns the run."""
    replaced: bool = False
    """Whether, of an attempt of several ranks whose trainers here are gone, another one has begun: elsewhere they have
    started together again, and this node is to join them."""
    world_size: int = 1
    """Ranks of the attempt, on all nodes together."""
    leads: bool = True
    """Whether rank 0 was on this node: it says in the journal that the run is finished."""
    fruitless: int = 0
    """Latest starts by this agent in a row, this one included, that committed nothing; a start that the store kept
    out does not count."""
    without_progress: int = 0
    """Latest attempts in a row, by whichever agent, that committed nothing."""
    notice: bool = False
    """Whether an interruption has been announced."""
    byes: tuple[Bye, ...] = ()
    """What the trainers said last, in the order of their words."""
    lost: tuple[int, ...] = ()
    """Ranks that ended without a word, in the order of their ends."""
    refused: Refused | None = None
    """Why the agent let no trainer in."""
    restarts: int = 0
    """Restarts in place so far."""
    step: int = -1
    """Last completed step; -1 where it is not known."""
    until: int = -1
    """The step at which the run would be finished; -1 where it is not known."""


@dataclass(frozen=True)
class Decision:
    """What the agent does now. ``exit_code`` None means: start the command again."""

    exit_code: int | None
    cause: str
    """For the journal's attempt-ended entry."""
    text: str
    """For people."""

    @property
    def restart(self) -> bool:
        """Whether the command is to be started again."""
        return self.exit_code is None


def first_failure(byes: tuple[Bye, ...]) -> Bye | None:
    """Of the ranks that failed, the first whose failure is not only what the end of another has brought about."""
    failed = [bye for bye in byes if bye.outcome == "failed"]
    return next((bye for bye in failed if not _is_consequence(bye)), failed[0] if failed else None)


def decide(facts: Facts, limits: Limits) -> Decision:
    """Apply the exit contract."""
    if facts.fenced or _failed_with(facts, "FencedError"):
        return Decision(
            errors.FencedError.exit_code,
            "failed",
            "another attempt owns this run; this one wrote nothing more and stops",
        )
    # Whether the run is complete for this command is only certain once its own trainer said so: a run that was
    # finished before may not fit the program, or be asked to go on.
    certain = facts.notice or _said_finished(facts)
    decision = (
        (None if certain else _final_error(facts))
        or _completed(facts)
        or _interrupted(facts)
        or _final_error(facts)
        or _left(facts)
        or _crashed(facts, limits)
    )
    if facts.journal_known or not facts.said_hello:
        return decision
    return Decision(
        decision.exit_code, decision.cause, f"{decision.text} (the store does not answer; judged by the command alone)"
    )


def describe_returncode(returncode: int | None) -> str:
    """``exit code 3``, ``killed by signal 9 (SIGKILL)``."""
    if returncode is None:
        return "the process is gone"
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        name = f" ({signal.Signals(-returncode).name})"
    except ValueError:
        name = ""
    return f"killed by signal {-returncode}{name}"


def _completed(facts: Facts) -> Decision | None:
    if not _finished(facts):
        return None
    step = f" at step {facts.finished_step}" if facts.finished_step >= 0 else ""
    if _ended_well(facts):
        return Decision(errors.EXIT_FINISHED, "finished", f"training is finished{step} and durable")
    if facts.notice:
        return Decision(
            errors.EXIT_INTERRUPTED, "interrupted",
            f"training is finished{step} and durable; the command was interrupted in what it does afterwards",
        )  # fmt: skip
    return Decision(
        errors.EXIT_FAILED, "failed",
        f"training is finished{step} and durable, but the command failed afterwards ({_reason(facts)})",
    )  # fmt: skip


def _interrupted(facts: Facts) -> Decision | None:
    if not (facts.notice or _agreed_to_stop(facts)):
        return None
    if facts.durable_step < 0:
        saved = "no checkpoint was ever saved"
    elif facts.committed:
        saved = f"step {facts.durable_step} is durable"
    else:
        saved = f"nothing was saved by this attempt; step {facts.durable_step} of an earlier one is durable"
    return Decision(errors.EXIT_INTERRUPTED, "interrupted", f"interrupted; {saved}")


def _final_error(facts: Facts) -> Decision | None:
    if facts.refused is not None:
        kind, name, message = facts.refused.kind, facts.refused.error, facts.refused.message
        if kind == NO_PROGRESS:
            return Decision(errors.EXIT_FAILED, NO_PROGRESS, message)
        if kind == "create-only":
            return Decision(errors.EXIT_IO, "failed", message)
        if name in _FINAL:
            return Decision(_FINAL[name].exit_code, "failed", message)
    for bye in facts.byes:
        if bye.outcome == "failed" and bye.error in _FINAL:
            return Decision(_FINAL[bye.error].exit_code, "failed", _words(facts, bye))
    if not facts.said_hello and facts.returncode == errors.EXIT_CONFIG:
        # No trainer came as far as the link: a Run whose arguments are wrong leaves with this code, and says why.
        return Decision(errors.EXIT_CONFIG, "failed", "the command ended with exit code 78: it must be mended first")
    return None


def _left(facts: Facts) -> Decision | None:
    if not _ended_well(facts) or facts.refused is not None:
        return None
    if not facts.said_hello and not facts.trains:
        return Decision(
            errors.EXIT_FINISHED, "finished", "the command ended with 0 but never opened a Run: nothing was supervised"
        )
    if not _left_by_hand(facts):
        return None  # a shell or a pipe makes 0 of a trainer that was killed
    if not facts.leads and _said_finished(facts):
        return None  # rank 0, on another node, did not get so far
    until = f"step {facts.until}" if facts.until >= 0 else "its last step"
    return Decision(
        errors.EXIT_FAILED, "left",
        f"the command ended before {until}; call run.finish() to end early on purpose",
    )  # fmt: skip


def _crashed(facts: Facts, limits: Limits) -> Decision:
    reason = _reason(facts)
    failed = any(bye.outcome == "failed" for bye in facts.byes) and not _died(facts)
    cause = "failed" if failed or facts.refused else "crashed"
    idle = max(facts.fruitless, facts.without_progress)
    if idle >= limits.no_progress:
        return Decision(
            errors.EXIT_FAILED, NO_PROGRESS,
            f"stopped: {idle} attempts in a row committed no checkpoint; the last one: {reason}",
        )  # fmt: skip
    if facts.restarts >= limits.max_restarts:
        if facts.restarts == 0:
            return Decision(errors.EXIT_FAILED, cause, reason)
        return Decision(errors.EXIT_FAILED, cause, f"stopped after {facts.restarts} restarts; the last end: {reason}")
    return Decision(None, cause, reason)


def _finished(facts: Facts) -> bool:
    """Whether the run is complete for the number of steps that this command wants."""
    if not facts.journal_known and facts.byes and all(bye.outcome == "finished" for bye in facts.byes):
        return True
    if facts.finished_step < 0:
        return False
    if facts.finished_here or 0 <= facts.until <= facts.finished_step:
        return True
    return any(bye.outcome == "finished" and bye.step <= facts.finished_step for bye in facts.byes)


def _said_finished(facts: Facts) -> bool:
    return any(bye.outcome == "finished" for bye in facts.byes)


def _ended_well(facts: Facts) -> bool:
    return facts.returncode == 0 if facts.returncode is not None else _left_by_hand(facts)


def _left_by_hand(facts: Facts) -> bool:
    return bool(facts.byes) and all(bye.outcome in ("finished", "left") for bye in facts.byes)


def _agreed_to_stop(facts: Facts) -> bool:
    """Whether ranks left for a notice that another rank heard, of which their own agent did not hear any more; or for
    a launcher that ended them, and then itself."""
    return any(bye.outcome == "interrupted" for bye in facts.byes)


def _failed_with(facts: Facts, name: str) -> bool:
    return any(bye.outcome == "failed" and bye.error == name for bye in facts.byes) or (
        facts.refused is not None and facts.refused.error == name
    )


def _reason(facts: Facts) -> str:
    ended = describe_returncode(facts.returncode)
    if facts.refused is not None:
        return f"{facts.refused.error}: {facts.refused.message} ({ended})"
    failure = first_failure(facts.byes)
    if _died(facts):
        return f"rank {facts.lost[0]} ended without a word, of a signal or by an exit of its own ({ended})"
    if failure is not None:
        return f"{_words(facts, failure)} ({ended})"
    if not facts.leads and _said_finished(facts):
        return f"the ranks here are finished, and rank 0 on another node is not ({ended})"
    if facts.replaced:
        return f"the training was started again elsewhere ({ended})"
    if facts.returncode == 0:
        return f"the trainer was lost ({ended})" if facts.said_hello else f"no Run was opened ({ended})"
    return ended


def _words(facts: Facts, bye: Bye) -> str:
    """What a rank failed with."""
    whose = f"rank {bye.rank}: " if facts.world_size > 1 else ""
    return f"{whose}{bye.error}: {bye.message}"


def _died(facts: Facts) -> bool:
    """Whether a rank of several ended without a word, and what the others say is only what came of that."""
    failure = first_failure(facts.byes)
    return facts.world_size > 1 and bool(facts.lost) and (failure is None or _is_consequence(failure))


def _is_consequence(bye: Bye) -> bool:
    """Whether a rank met only the end of another: it said so, or its collective had lost a peer."""
    if bye.kind in (LOST_RANK, "ranks") or bye.error.rpartition(".")[2] in _PEER_ERRORS:
        return True
    return any(text in bye.message.lower() for text in _PEER_TEXTS)
