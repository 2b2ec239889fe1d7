"""``unbroken.CheckpointManager``: checkpoints for programs that own their loop."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from unbroken.checkpoint import Policy, keep_policy
from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import ConfigError, DeadlineError, FencedError, StoreError
from unbroken.link.messages import RUN_VARIABLE, SOCKET_VARIABLE, Bye
from unbroken.store import parse_uri
from unbroken.training.agent_link import AgentLink, StopRequest
from unbroken.training.attempt import Attempt
from unbroken.training.bucket_growth import keeps_everything
from unbroken.training.cadence import Cadence, parse_every
from unbroken.training.farewell import farewell
from unbroken.training.link import Link
from unbroken.training.objects import StateObject, adapt, check_names, random_generators
from unbroken.training.run_reader import Loaded, RunReader
from unbroken.training.saver import PendingSave
from unbroken.training.solo_link import SoloLink
from unbroken.training.which_rank import which_rank

_CLOSE_SECONDS = 120.0
_FINAL_SAVE_SECONDS = 1800.0
_UNKNOWN = -1


class Pending:
    """A save on its way to the store. ``step`` says which."""

    def __init__(self, step: int, save: PendingSave | None, error: Exception | None, clock: Clock) -> None:
        self.step = step
        self._save = save
        self._error = error
        self._clock = clock
        self.seen = False
        """Whether somebody was told of its end."""

    @property
    def staged(self) -> bool:
        """Whether the state was copied; if not, the save has failed already."""
        return self._save is not None

    @property
    def done(self) -> bool:
        """Whether it is durable, or was given up."""
        return self._save is None or self._save.done.is_set()

    @property
    def error(self) -> Exception | None:
        """Why it was given up; None while it is under way, and when it is durable."""
        return self._error if self._save is None else self._save.error

    def wait(self, timeout: float | None = None) -> None:
        """Return when the checkpoint is durable.

        Args:
            timeout: seconds; None: until the save ends, which the storage's own retries bound.

        Raises:
            DeadlineError: it was not durable within ``timeout``; it goes on.
            FencedError: another attempt owns the run.
            StoreError: the storage failed; the checkpoint before stands.
        """
        if self._save is not None and timeout is None:
            self._save.done.wait()
        elif self._save is not None and not self._clock.wait(self._save.done, timeout or 0.0):
            raise DeadlineError(
                f"the save of step {self.step} was not durable within {timeout:g} s", kind="wait",
                hint="It goes on; the checkpoint before stands until then",
            )  # fmt: skip
        self.seen = True
        if self.error is not None:
            raise self.error


class CheckpointManager:
    """Saves and restores a run's checkpoints where and when the program says so.

    Reading (:meth:`restore`, :meth:`read`, :meth:`steps`, :meth:`latest_step`) disturbs nobody. The first :meth:`save`
    makes this process the run's next attempt, which fences every earlier one: through the agent below ``unbroken run``,
    by itself elsewhere. One thread may use a manager.

    Of several ranks only rank 0 may save, and what it saves is what it has; the others wait for it, with a bound: see
    ``docs/many-ranks.md``. :class:`unbroken.Run` saves on all ranks. Every rank may read.

    Args:
        uri: as of :class:`unbroken.Run`; ``UNBROKEN_RUN`` outranks it.
        every: what :meth:`due` goes by: a number of steps, or a duration such as ``"10min"``; None: always due.
        rng: keep the global random number generators of Python, NumPy and torch, too, as ``Run`` does.
        keep: which checkpoints to keep, as of :class:`unbroken.Run`; not by a logged value, as nothing is logged here.
        clock: for tests.

    Raises:
        ConfigError: the URI, the cadence or the retention cannot be used.
    """

    def __init__(
        self,
        uri: str,
        *,
        every: int | str | None = None,
        rng: bool = False,
        keep: str | Policy | Iterable[Policy] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._keep = keep_policy(keep)
        if self._keep is not None and self._keep.metrics:
            raise ConfigError(
                f"keep={keep!r} goes by logged values, and a manager logs none", kind="keep",
                hint="Keep by steps or hours, or use unbroken.Run",
            )  # fmt: skip
        self.uri = str(parse_uri(os.environ.get(RUN_VARIABLE) or uri))
        self._every = None if every is None else parse_every(every)
        self._rng = rng
        self._clock = clock
        self._reader = RunReader(self.uri, clock=clock)
        self._attempt: Attempt | None = None
        self._restored: Loaded | None = None
        self._newest: Pending | None = None
        self._cadence: Cadence | None = None
        self._finished = False
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(error)

    @property
    def notice(self) -> StopRequest | None:
        """The interruption that the agent announced, once this process saves below ``unbroken run``; else None."""
        return self._attempt.link.stop if self._attempt is not None else None

    def due(self, step: int) -> bool:
        """Whether ``every`` asks for a save after ``step`` completed steps; False while a save is under way.

        Raises:
            FencedError: another attempt owns the run.
        """
        busy = self._attempt is not None and self._attempt.busy
        if self._every is None:
            return not busy
        if self._cadence is None:
            begin = self._restored.record.step if self._restored is not None else 0
            self._cadence = Cadence(self._every, step=begin, clock=self._clock)
        if self._attempt is not None:
            self._attempt.attend(self._cadence)
        return not busy and self._cadence.due(step, self._clock.monotonic())

    def save(self, step: int, state: dict[str, Any]) -> Pending:
        """Copy the state into host memory and hand it to a thread that makes it durable.

        It does not wait for an upload, but where host memory holds no copy of the state: then it returns when the
        state is uploaded, after a warning that says so. The first save claims the run, which takes a few requests to
        the store.

        Args:
            step: completed steps; greater than that of the checkpoint that this manager saved or restored last, or
                else of the run's newest.
            state: by name: anything with ``state_dict`` and ``load_state_dict``, tensors, generators, and plain values:
                numbers, strings, and containers of these and of tensors.

        Returns:
            the save on its way. While two saves are under way, or where memory is short, it has failed already.

        Raises:
            ConfigError: the step is not greater, a value cannot be kept, or this is another rank than 0; names it.
            FencedError: another attempt owns the run.
            StoreError: the run could not be claimed.
        """
        self._demand_open()
        self._demand_first_rank()
        objects = self._objects(state)
        self._demand_progress(step)
        attempt = self._claimed(objects)
        attempt.raise_fatal()
        self._demand_progress(step)  # another attempt may have committed before the claim
        if isinstance(attempt.link, AgentLink):
            now = self._clock.now()
            attempt.link.progress.write(step, _UNKNOWN, now, 0.0, _UNKNOWN, now)
        pending = self._stage(attempt, objects, step)
        if pending.staged:
            self._newest = pending
        if self._cadence is not None:
            self._cadence.saved(step)
        return pending

    def restore(self, state: dict[str, Any], step: int | None = None) -> int | None:
        """Load a checkpoint into ``state``: objects in place, plain values by replacing them in the dictionary.

        What the checkpoint holds under other names is left alone. Saves under way are waited for.

        Args:
            state: some or all of what was saved, by the same names.
            step: which; by default the newest sound checkpoint, passing over damaged ones.

        Returns:
            the step; None, with ``state`` as it was, for a run without checkpoints.

        Raises:
            NotFoundError: there is no checkpoint of that step.
            MismatchError: the checkpoint does not fit; names objects or tensors. Nothing was loaded.
            DamagedError: that checkpoint, or every one, is damaged.
        """
        self._demand_open()
        objects = self._objects(state)
        self._settle()
        found = self._reader.load_into(objects, step)
        if found is None:
            return None
        self._restored, self._newest, self._cadence = found, None, None
        if self._attempt is not None:
            self._attempt.continue_from(found.record, found.manifest, seconds=found.seconds)
        return found.record.step

    def read(self, step: int | None = None) -> dict[str, Any]:
        """All that a checkpoint holds, by name, with tensors on the CPU; the newest sound one by default.

        Raises:
            NotFoundError: there is no checkpoint, or none of that step.
            DamagedError: that checkpoint, or every one, is damaged.
        """
        return self._reader.read(step)

    def steps(self) -> list[int]:
        """The steps of the kept checkpoints, rising; another process's, too."""
        return sorted({record.step for record in self._reader.records()})

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, which is the latest committed, not always the highest; None if there is
        none."""
        records = self._reader.records()
        return records[-1].step if records else None

    def finish(self) -> None:
        """Wait until the newest save is durable, and journal that training is complete: ``unbroken run`` ends with 0.

        Raises:
            ConfigError: nothing was saved or restored, or this is another rank than 0.
            DeadlineError, StoreError, FencedError: as of :meth:`Pending.wait`.
        """
        self._demand_open()
        self._demand_first_rank()
        if self._newest is not None:
            self._newest.wait(_FINAL_SAVE_SECONDS)
        attempt = self._claimed([])
        if attempt.durable_step < 0:
            raise ConfigError(
                f"nothing was saved to {self.uri} or restored from it by this process", kind="finish",
                hint="Save the final state first",
            )  # fmt: skip
        attempt.finish(attempt.durable_step)
        self._finished = True

    def close(self) -> None:
        """Wait for saves under way, at most two minutes, and end the attempt.

        Raises:
            DeadlineError, StoreError, FencedError: the newest save did not become durable, and nobody was told.
        """
        self._close(None)

    def _close(self, error: BaseException | None) -> None:
        if self._closed:
            return
        self._closed = True
        if self._attempt is not None:
            bye = farewell(error, step=self._last_step) if error is not None else self._goodbye()
            seconds = 0.0 if isinstance(error, FencedError) else _CLOSE_SECONDS
            self._attempt.close(bye, seconds=seconds)
        if error is None and self._newest is not None and not self._newest.seen:
            self._newest.wait(0.0)

    def _goodbye(self) -> Bye:
        return Bye("finished" if self._finished else "left", self._last_step)

    @property
    def _last_step(self) -> int:
        if self._newest is not None:
            return self._newest.step
        return self._restored.record.step if self._restored is not None else -1

    def _objects(self, state: dict[str, Any]) -> list[StateObject]:
        check_names(state)
        objects = [adapt(name, value) or _plain(name, state) for name, value in state.items()]
        return [*objects, random_generators()] if self._rng else objects

    def _demand_open(self) -> None:
        if self._closed:
            raise ConfigError(f"the manager of {self.uri} is closed", kind="closed", hint="Make another one")

    def _demand_first_rank(self) -> None:
        rank, world_size = which_rank()
        if rank != 0:
            raise ConfigError(
                f"this is rank {rank} of {world_size}, and a CheckpointManager saves on rank 0 alone", kind="ranks",
                hint="Let rank 0 save and the others wait for it with a bound, as docs/many-ranks.md shows, or save on "
                "all ranks with unbroken.Run",
            )  # fmt: skip

    def _demand_progress(self, step: int) -> None:
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ConfigError(f"{step!r} is no number of steps", kind="step", hint="Write a whole number")
        before, whose = self._step_before()
        if before is not None and step <= before:
            raise ConfigError(
                f"step {step} is not after step {before}, {whose} of {self.uri}", kind="step",
                hint="Count on from there, or restore an older checkpoint first: manager.restore(state, step=...)",
            )  # fmt: skip

    def _step_before(self) -> tuple[int | None, str]:
        """The step after which the next one must come, and what it is."""
        if self._newest is not None and self._newest.error is None:
            return self._newest.step, "the newest save"
        if self._attempt is not None and self._attempt.durable_step >= 0:
            return self._attempt.durable_step, "the newest checkpoint"
        if self._restored is not None:
            return self._restored.record.step, "the restored checkpoint"
        return self.latest_step(), "the newest checkpoint"

    def _claimed(self, objects: list[StateObject]) -> Attempt:
        """The attempt, which begins here."""
        if self._attempt is None:
            link: Link = (AgentLink if os.environ.get(SOCKET_VARIABLE) else SoloLink)(self.uri, clock=self._clock)
            self._attempt = attempt = Attempt.open(link, objects, keep=self._keep, overlap=False, clock=self._clock)
            attempt.prepare(objects)
            self._reader.share(attempt)
            if self._restored is not None:
                found = self._restored
                attempt.continue_from(found.record, found.manifest, seconds=found.seconds)
            if self._every is not None and (unkept := keeps_everything(self._every, kept=self._keep is not None)):
                attempt.warn("retention", unkept)
        return self._attempt

    def _stage(self, attempt: Attempt, objects: list[StateObject], step: int) -> Pending:
        error: Exception
        try:
            save = attempt.stage(objects, step, {})
            if save is not None:
                return Pending(step, save, None, self._clock)
            error = StoreError(
                f"step {step} was not saved: two saves are still under way", kind="busy",
                hint="Save less often: due(step) is False while a save is under way",
            )  # fmt: skip
        except MemoryError as short:
            error = StoreError(f"step {step} was not saved: {short}", kind="memory", hint="Free host memory")
        attempt.report_failure(step, error)
        return Pending(step, None, error, self._clock)

    def _settle(self) -> None:
        """Let the save under way end, whatever becomes of it: it has been said where it failed."""
        newest = self._newest
        if newest is not None and not newest.done:
            with contextlib.suppress(StoreError):
                newest.wait(_CLOSE_SECONDS)


def _plain(name: str, state: dict[str, Any]) -> StateObject:
    """A value without a state of its own: read as it is, and replaced in the dictionary."""
    return StateObject(name, None, lambda: state[name], lambda saved: state.__setitem__(name, saved))
