"""``unbroken.dcp.Reader``: what ``dcp.load`` reads a run's checkpoints from."""

from __future__ import annotations

import os
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from unbroken.errors import ConfigError, MismatchError, NotFoundError, UnbrokenError
from unbroken.journal import Journal
from unbroken.store import open_store, parse_uri
from unbroken.training.dcp_metadata import Unreadable
from unbroken.training.dcp_opened import Opened, open_checkpoint
from unbroken.training.dcp_step import step_of


class Reader(StorageReader):
    """A ``StorageReader`` of ``torch.distributed.checkpoint`` over a run's store.

    ``dcp.load(state, storage_reader=Reader(uri))`` loads the newest checkpoint that can be opened, whoever wrote it;
    each rank reads the chunks that it needs, and every byte is checked before it is used.

    An error of any rank reaches all of them as torch's ``CheckpointException``, whose ``failures`` has the error itself
    by rank: ``NotFoundError`` (no run, no checkpoint), ``DamagedError`` (then tensors may have been changed),
    ``MismatchError``, ``StoreError``.

    Args:
        uri: of the run, as of :class:`unbroken.Run`.
        step: which checkpoint; the newest by default. ``checkpoint_id="step-100"`` outranks it.

    Raises:
        ConfigError: the URI cannot be used.
    """

    def __init__(self, uri: str, step: int | None = None) -> None:
        super().__init__()
        self.uri = str(parse_uri(uri))
        self._given = step
        self._id: str | os.PathLike[str] | None = None
        self._opened: Opened | None = None
        self._error: UnbrokenError | None = None

    def steps(self) -> list[int]:
        """The steps that :class:`Reader` can load, oldest commit first; none of a run that does not exist."""
        try:
            journal = Journal.open(open_store(self.uri))
        except NotFoundError:
            return []
        return [record.step for record in journal.state.checkpoints]

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Called before each load that names an id."""
        self._id = checkpoint_id

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether the id ends with a step."""
        try:
            return step_of(checkpoint_id) is not None
        except ConfigError:
            return False

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Choose a checkpoint and say what it holds.

        What goes wrong is raised when something is looked up in the answer, or by :meth:`set_up_storage_reader`.
        """
        self._opened = self._error = None
        try:
            step = step_of(self._id)
            self._opened = open_checkpoint(self.uri, self._given if step is None else step)
        except UnbrokenError as error:
            self._error = error
            return Metadata(Unreadable(error))
        return self._opened.contents.metadata()

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:  # noqa: ARG002
        """Called on each rank as a load begins.

        Raises:
            UnbrokenError: the checkpoint could not be opened.
        """
        if self._error is not None:
            raise self._error

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Say in the plan which checkpoint this rank is about to read."""
        plan.storage_data = self._found.record.event.manifest
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """On the coordinator: refuse a load of two checkpoints at once.

        Raises:
            MismatchError: ranks have chosen differently, because one was committed meanwhile.
        """
        chosen = {str(plan.storage_data): rank for rank, plan in enumerate(plans)}
        if len(chosen) > 1:
            (first, one), (second, other) = list(chosen.items())[:2]
            raise MismatchError(
                f"rank {one} found {first} to be the newest checkpoint, and rank {other} {second}", kind="newest",
                hint="Load again, or name the step",
            )  # fmt: skip
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what the plan asks of this rank, verified.

        Raises:
            DamagedError: names tensor and pack, and in its hint the checkpoint before.
        """
        self._found.read(plan.items, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @property
    def _found(self) -> Opened:
        if self._opened is None:
            raise ConfigError("no checkpoint was chosen: read_metadata comes first", kind="order")
        return self._opened
