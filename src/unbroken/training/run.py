"""``unbroken.Run``: the loop of a training that survives its machine."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from types import TracebackType
from typing import Any, NoReturn, Self

from unbroken.checkpoint import Metrics, Policy, keep_policy
from unbroken.clock import SYSTEM_CLOCK, Clock, format_duration
from unbroken.errors import (
    EXIT_FAILED,
    ChildError,
    ConfigError,
    DeadlineError,
    FencedError,
    Interrupted,
    MismatchError,
    StoreError,
)
from unbroken.link.messages import (
    EVERY_VARIABLE,
    KEEP_VARIABLE,
    LOST_RANK,
    RUN_VARIABLE,
    Bye,
    SignalReceived,
    StopAgreed,
    Stopping,
)
from unbroken.notice.grace import grace_from, warning_from
from unbroken.policy.observed_hazard import observed_hazard
from unbroken.store import parse_uri
from unbroken.training.agent_link import AgentLink, StopRequest
from unbroken.training.agreement import STOP, Outcome
from unbroken.training.attempt import Attempt
from unbroken.training.bucket_growth import growth, keeps_everything
from unbroken.training.cadence import Cadence, parse_every
from unbroken.training.farewell import farewell
from unbroken.training.launcher import PATIENCE, TORCHRUN, Launcher
from unbroken.training.logbook import Logbook
from unbroken.training.many_ranks import form_team
from unbroken.training.notice_fit import notice_too_short
from unbroken.training.objects import state_objects
from unbroken.training.process_end import StopSignals, install_exit_codes
from unbroken.training.ranks import Ranks
from unbroken.training.saver import PendingSave
from unbroken.training.team import Team

_log = logging.getLogger("unbroken")

_FINAL_SAVE_SECONDS = 1800.0
_CLOSE_SECONDS = 120.0
_POLL_SECONDS = 0.05
_LONGEST_PAUSE = 10.0
_PROPOSAL_SECONDS = 30.0
"""After which rank 0 asks again for a save that came to nothing."""
_ALONE_SECONDS = 30.0
_REASON_LIMIT = 500
_PARTING_SECONDS = 4.0
"""What a rank that failed is given to end before the others: launchers take the first to end for the cause, and rank 0,
which tells the others, needs three of them. It is a small part of the 30 s after which torchrun kills ranks."""
_EXIT_SECONDS = 5.0
_EXIT_SHARE = 0.1
"""What is kept back of the time to the deadline for leaving: at most so many seconds, at most this share."""


class Run:
    """One attempt of a run: restores the newest sound checkpoint, saves on a cadence, stops in time.

    Args:
        uri: where the run lives: ``s3://bucket/run``, ``gs://bucket/run``, ``az://account/container/run``, or a folder.
            The environment variable ``UNBROKEN_RUN`` outranks it.
        state: what makes up the training, by name: anything with ``state_dict`` and ``load_state_dict`` (model,
            optimizer, scheduler, scaler, stateful loader), generators of torch, NumPy and Python, tensors. The global
            random number generators and the step are kept without being asked for.
        every: when to save: a number of steps, a duration such as ``"10min"``, or ``"auto"``: as soon as the last save
            is durable and saving costs less than 1 % of the training time, at most once a minute and often enough to
            lose no more than 30 minutes of work (``"auto,cap=1%,loss=30min"``). A run that was interrupted three times
            saves no more often than what loses the least time then. ``UNBROKEN_EVERY`` outranks it.
        keep: which checkpoints to keep: ``"last=3,every=10000,best=loss"``, or policies (:class:`~unbroken.KeepLast`,
            :class:`~unbroken.KeepEvery`, :class:`~unbroken.KeepBest`), of which any may keep one. The two newest are
            always kept; the others are deleted after each save. None keeps all. ``UNBROKEN_KEEP`` outranks it.
        overlap: copy what only the optimizers change (their parameters and their state) while the next forward and
            backward run; an optimizer's step waits for the copy. Turn it off where the training writes to parameters
            behind torch's back between a step's beginning and ``optimizer.step()`` (through ``.data``, a NumPy view, a
            kernel of its own, another process): nothing can notice that.
        per_rank: names in ``state`` of what is another on each of several ranks, such as a loader of each rank's own
            part of the data: it is kept for each rank, and comes back to the rank of the same number. Generators and
            torchdata's ``StatefulDataLoader`` are such without being named; everything else must be alike on all ranks.
        clock: for tests.

    Raises:
        ConfigError: the URI, the cadence, the retention or an object of the state cannot be used; names it.
    """

    def __init__(
        self,
        uri: str,
        *,
        state: dict[str, Any],
        every: int | str = "10min",
        keep: str | Policy | Iterable[Policy] | None = None,
        overlap: bool = True,
        per_rank: Collection[str] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        install_exit_codes()
        self.uri = str(parse_uri(os.environ.get(RUN_VARIABLE) or uri))
        self._every = parse_every(os.environ.get(EVERY_VARIABLE) or every)
        self._keep = keep_policy(os.environ.get(KEEP_VARIABLE) or keep)
        self._overlap = overlap
        self._grace = grace_from()
        self._launcher = Launcher.here()
        self._objects = state_objects(state, per_rank)
        self._clock = clock
        self._signals = StopSignals()
        self._logbook = Logbook()
        self._team: Team = Team(Ranks(), clock=clock)
        self._link: AgentLink | None = None
        self._attempt: Attempt | None = None
        self._step = 0
        self._looping = False
        self._finish = False
        self._complete = False
        self._fit_looked_at = False
        """Whether the first save was compared with the notice that there may be."""
        self._began_step = 0
        self._began_at = 0.0
        self._stop_proposed = False
        self._save_proposed_at = -_PROPOSAL_SECONDS

    @property
    def step(self) -> int:
        """Completed steps."""
        return self._step

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1.

        Raises:
            ConfigError: outside ``with run:``.
        """
        return self._opened.link.attempt

    def __enter__(self) -> Self:
        """Become an attempt of the run and restore the newest sound checkpoint.

        Raises:
            UnbrokenError: the run cannot be opened or restored; the class says why.
        """
        if self._attempt is not None:
            raise ConfigError("the run is open already", kind="loop", hint="Use one `with run:` for each Run")
        self._signals.install()
        try:
            self._team = form_team(Ranks.here(), clock=self._clock)
            self._link = AgentLink(self.uri, ranks=self._team.ranks, clock=self._clock)
            self._attempt = Attempt.open(
                self._link, self._objects, team=self._team, keep=self._keep, overlap=self._overlap, clock=self._clock
            )
            self._step = self._attempt.restore(self._objects)
            self._attempt.prepare(self._objects)
            self._team.watch(self._step, self._lost)
            self._link.on_stop = self._heard_stop
        except BaseException as error:
            self._end(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let a save of completed steps finish, and leave; the unfinished step of a ``break`` or error is not saved."""
        self._end(error)

    def steps(self, *, until: int) -> Iterator[int]:
        """Yield the number of completed steps before each step: ``range(until)``, from where the run stands.

        Each turn of the loop must be one whole step. Between turns the run saves when a save is due, and stops when an
        interruption was announced. After the last one the final checkpoint is durable and the run is finished.

        Args:
            until: the step at which training is complete.

        Raises:
            Interrupted: the machine will be taken; the state is saved, and the process leaves with 75.
            FencedError: another attempt owns the run.
            StoreError: the final checkpoint could not be made durable.
        """
        attempt, link = self._opened, self._linked
        if self._looping:
            raise ConfigError("run.steps is in use already", kind="loop", hint="Use one loop in each `with run:`")
        if isinstance(until, bool) or not isinstance(until, int) or until < 0:
            raise ConfigError(f"until={until!r} is no number of steps", kind="until", hint="Write a whole number")
        self._looping = True
        attempt.rewind_generators()
        # Everything that the loop touches each step is a local name: a step without a save costs a microsecond or two.
        page, signals, clock, gate = link.progress, self._signals, self._clock, self._team.gate
        hazard = observed_hazard(attempt.journal.state)
        cadence = Cadence(self._every, step=self._step, clock=clock, hazard=hazard)
        if unkept := keeps_everything(self._every, kept=self._keep is not None):
            attempt.warn("retention", unkept)
        started = clock.now()
        self._began_step, self._began_at = self._step, clock.monotonic()
        page.write(self._step, until, started, cadence.next_save_at, cadence.next_save_step, started)
        if self._step < until and (link.stop is not None or signals.received):
            self._stop()
        while self._step < until and not self._finish:
            gate.begun = self._step + 1  # before the flag is looked at: another thread does it the other way round
            while gate.flag and self._act_together(cadence):
                gate.begun = self._step + 1
            yield self._step
            self._step += 1
            page.write(self._step, until, clock.now(), cadence.next_save_at, cadence.next_save_step, started)
            if self._step >= until or self._finish:
                break  # completion outranks interruption
            if link.stop is not None or signals.received:
                self._stop()
            if attempt.needs_attention or cadence.due(self._step, clock.monotonic()):
                self._save_if_due(cadence)
        self._complete_run()

    def log(self, **values: Any) -> None:
        """Keep numbers (or tensors of one element) of the step under way; the next checkpoint makes them durable.

        Raises:
            ConfigError: a value is no single number; names it.
        """
        self._logbook.log(self._step + 1, values)

    def finish(self) -> None:
        """Say that training is complete with the step under way: the loop ends after it, and the run is finished."""
        self._finish = True

    @property
    def _opened(self) -> Attempt:
        if self._attempt is None:
            raise ConfigError("the run is not open", kind="loop", hint="Put the loop inside `with run:`")
        return self._attempt

    @property
    def _linked(self) -> AgentLink:
        if self._link is None:
            raise ConfigError("the run is not open", kind="loop", hint="Put the loop inside `with run:`")
        return self._link

    def _save_if_due(self, cadence: Cadence) -> None:
        """At a step boundary: act on what other threads reported, and save if a save is due."""
        attempt = self._opened
        self._attend(cadence)
        if not cadence.due(self._step, self._clock.monotonic()):
            return
        if self._team.several:
            self._save_if_due_for_all(cadence)
        # While a save is under way the next one waits: the loop never does, and no third copy of the state is needed.
        elif not attempt.busy:
            attempt.save(self._objects, self._step, self._metrics())
            cadence.saved(self._step)

    def _save_if_due_for_all(self, cadence: Cadence) -> None:
        """A cadence in steps is the same on all ranks; for any other save, rank 0 asks them to agree on the step."""
        if self._step == cadence.next_save_step:
            self._save_with_others(cadence)
        elif self._team.chief and not self._opened.busy:
            now = self._clock.monotonic()
            if now - self._save_proposed_at >= _PROPOSAL_SECONDS:
                self._save_proposed_at = now
                self._team.propose_save()

    def _save_with_others(self, cadence: Cadence) -> None:
        self._opened.save_with_others(self._objects, self._step, self._metrics())
        cadence.saved(self._step)
        self._save_proposed_at = -_PROPOSAL_SECONDS

    def _act_together(self, cadence: Cadence) -> bool:
        """Do what all ranks have agreed to do at this boundary; False where that is nothing, or nothing more."""
        outcome = self._team.gate.enter(self._step)
        if outcome is None:
            return False
        if outcome.kind == STOP:
            self._leave(self._stop_agreed(outcome), agreed=outcome.agreed)
        newest = self._opened.newest_save
        if newest is None or newest.step != self._step:
            self._save_with_others(cadence)
        return True

    def _stop(self) -> None:
        """An interruption was announced to this process: leave, after the others agreed where there are any."""
        if not self._team.several:
            self._leave(self._stop_request())
        if not self._stop_proposed:
            self._stop_proposed = True
            self._team.propose_stop(self._own_stop())

    def _attend(self, cadence: Cadence) -> None:
        """Pass on what other threads reported, and say once what the first save has shown."""
        attempt = self._opened
        event = attempt.committed
        attempt.attend(cadence)
        if cadence.advice:
            attempt.warn("cadence", cadence.advice)
            cadence.advice = ""
        if event is not None and not self._fit_looked_at and self._team.chief:
            self._fit_looked_at = True
            text = notice_too_short(event.written, event.seconds, self._grace, self._every, step_seconds=self._pace())
            if text is not None:
                attempt.warn("notice-too-short", text)
            if keeps_everything(self._every, kept=self._keep is not None):
                attempt.warn("retention", growth(event.written, cadence.interval))

    def _pace(self) -> float:
        """Seconds a step took so far in this loop; 0 before the first."""
        steps = self._step - self._began_step
        return (self._clock.monotonic() - self._began_at) / steps if steps > 0 else 0.0

    def _metrics(self) -> Metrics:
        """What was logged up to this boundary and is not durable yet."""
        self._logbook.forget(self._opened.durable_step)
        return self._logbook.until(self._step)

    def _leave(self, stop: StopRequest, *, agreed: bool = True) -> NoReturn:
        """Save this boundary within the time that is left, and end the process with 75.

        Args:
            agreed: whether all ranks stop at this step; else only luck makes the save whole, and it is not waited for
                as long.
        """
        attempt = self._opened
        attempt.tell(Stopping(self._step))
        left = max(0.0, stop.until - self._clock.monotonic())
        if not agreed:
            left = min(left, _ALONE_SECONDS)
        if self._step == 0:
            raise Interrupted(f"interrupted ({stop.reason}) before the first step was complete")
        try:
            saved = self._save_within(left - min(_EXIT_SECONDS, left * _EXIT_SHARE))
        except ConfigError as error:
            raise Interrupted(
                f"interrupted ({stop.reason}) at step {self._step}; durable is {_durable(attempt)}"
            ) from error
        if saved:
            raise Interrupted(f"interrupted ({stop.reason}); step {self._step} is durable")
        stands = _durable(attempt)
        raise Interrupted(
            f"interrupted ({stop.reason}) at step {self._step}; durable is {stands}"
        ) from DeadlineError(
            f"{format_duration(left)} were too short to save step {self._step}; {stands} stands", kind="deadline",
            hint="Save more often, or give a longer grace period",
        )  # fmt: skip

    def _stop_request(self) -> StopRequest:
        """Why to stop. A signal that this process received itself goes to the agent, which knows the grace period."""
        if self._signals.received and not self._launcher.signals:
            self._linked.send(SignalReceived(self._signals.received, self._signals.received_at))
        return self._own_stop()

    def _own_stop(self) -> StopRequest:
        """What this process heard, from its agent or by a signal: the earlier deadline."""
        link, signals, clock = self._linked, self._signals, self._clock
        if not signals.received and link.stop is not None:
            return link.stop
        source, reason, seconds = signals.received, signals.received, self._grace
        if signals.received == "SIGUSR1":
            seconds = warning_from()
        elif self._launcher.signals:
            source, reason, seconds = TORCHRUN, f"torchrun ends its ranks by {reason}", min(PATIENCE, seconds)
        deadline = signals.received_at + seconds  # the grace period runs from the signal, not from the boundary
        own = StopRequest(source, reason, deadline, clock.monotonic() + deadline - clock.now())
        return own if link.stop is None else min(link.stop, own, key=lambda stop: stop.until)

    def _stop_agreed(self, outcome: Outcome) -> StopRequest:
        """Why all ranks stop; the agent of a rank that heard nothing itself is told, where its node must leave as well:
        not where torchrun ends its ranks to start others, nor where it starts those of this node again.

        Raises:
            ChildError: a rank is gone, and the signal that this one received came of that.
        """
        link, clock = self._linked, self._clock
        if not outcome.agreed and link.stop is None:
            raise ChildError(
                f"rank {self._team.ranks.rank} received {self._signals.received or 'a request to stop'} after step "
                f"{self._step}, and not all ranks answered: one of them is gone",
                returncode=EXIT_FAILED, kind=LOST_RANK, hint="Look at the messages of the other ranks for the cause",
            )  # fmt: skip
        if link.stop is not None or self._signals.received:
            return self._stop_request()
        data = outcome.data
        stop = StopRequest(
            data["source"], data["reason"], data["until"], clock.monotonic() + data["until"] - clock.now()
        )
        if stop.source != TORCHRUN and not self._launcher.restarts:
            link.send(StopAgreed(stop.source, stop.reason, stop.deadline))
        return stop

    def _heard_stop(self, stop: StopRequest) -> None:
        """In the link's thread: the others need not wait for this rank's next boundary."""
        self._stop_proposed = True
        self._team.propose_stop(stop)

    def _lost(self, text: str) -> None:
        """In the team's thread: a rank is gone without a word, and the loop may wait for it in a collective."""
        if self._linked.connected:  # the agent says it, once for all ranks of a node
            self._linked.send(farewell(ChildError(text, returncode=EXIT_FAILED, kind=LOST_RANK), step=self._step))
        else:
            _log.error("unbroken: %s: ending this rank, too", text)
        self._clock.sleep(_PARTING_SECONDS)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_FAILED)

    def _complete_run(self) -> None:
        """Make the last step durable and journal that the run is finished."""
        attempt, clock = self._opened, self._clock
        self._team.gate.finished(self._step)
        attempt.raise_fatal()
        deadline = clock.monotonic() + _FINAL_SAVE_SECONDS
        if not self._save_within(_FINAL_SAVE_SECONDS, final=True):
            raise StoreError(
                f"the final checkpoint of step {self._step} did not become durable; durable is {_durable(attempt)}",
                kind="final-save", hint="Start the command again: it goes on from there",
            )  # fmt: skip
        while True:
            try:
                attempt.finish(self._step)
                break
            except StoreError:
                if clock.monotonic() >= deadline:
                    raise
                clock.sleep(_LONGEST_PAUSE)
        self._complete = True

    def _save_within(self, seconds: float, *, final: bool = False) -> bool:
        """Make this boundary durable, trying again for as long as there is time. The loop stands still.

        Raises:
            FencedError: another attempt owns the run.
            ConfigError: the state can be no checkpoint: it is not one on all ranks, or, where ``final``, it has come to
                hold a value that none can; names it.
        """
        attempt, clock = self._opened, self._clock
        began = clock.monotonic()
        deadline = began + seconds
        pause = _POLL_SECONDS
        while attempt.durable_step != self._step:
            attempt.raise_fatal()
            if clock.monotonic() >= deadline:
                return False
            pending = attempt.pending(self._step) or self._begin_last_save(began, strict=final)
            if pending is None:
                clock.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            elif not attempt.wait(pending, deadline - clock.monotonic()):
                _demand_hope(pending)
                clock.sleep(min(pause, max(0.0, deadline - clock.monotonic())))
                pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    def _begin_last_save(self, began: float, *, strict: bool) -> PendingSave | None:
        """Begin a save of this boundary, behind which the loop stands still since ``began``.

        Args:
            strict: raise what makes it impossible, for there is no later one.
        """
        attempt = self._opened
        try:
            return attempt.stage(self._objects, self._step, self._metrics(), since=began, standing=True)
        except (MemoryError, ConfigError) as error:
            if strict:
                raise
            attempt.report_failure(self._step, error)
            return None

    def _end(self, error: BaseException | None) -> None:
        """Close the attempt and say how it ended."""
        failed = error is not None and not isinstance(error, Interrupted)
        # Nothing under way can or need be saved any more; of several ranks, nothing that the others would complete.
        quick = isinstance(error, FencedError | Interrupted) or (failed and self._team.several)
        try:
            if failed:  # first: the others may wait for this rank in a collective
                self._team.close(_why_not_finished(error))
            if self._attempt is not None:
                self._attempt.close(self._farewell(error), seconds=0.0 if quick else _CLOSE_SECONDS)
        finally:
            self._team.close()
            self._signals.remove()

    def _farewell(self, error: BaseException | None) -> Bye:
        if error is None:
            return Bye("finished" if self._complete else "left", self._step)
        return farewell(error, step=self._step)


def _why_not_finished(error: BaseException | None) -> str:
    """For the other ranks: why this one ends though they do not."""
    return f"{type(error).__name__}: {error}"[:_REASON_LIMIT]


def _demand_hope(pending: PendingSave) -> None:
    """Refuse to try again what fails for what the state is.

    Raises:
        ConfigError: it does.
    """
    error = pending.error
    if isinstance(error, MismatchError):
        raise ConfigError(error.message, kind=error.kind, hint=error.hint) from error


def _durable(attempt: Attempt) -> str:
    return f"step {attempt.durable_step}" if attempt.durable_step >= 0 else "nothing"
