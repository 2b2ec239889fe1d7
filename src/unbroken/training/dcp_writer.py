"""``unbroken.dcp.Writer``: what ``dcp.save`` and ``dcp.async_save`` write to, as checkpoints of a run."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import msgspec
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from unbroken.checkpoint import HostState, RankDurable, RankRef, TensorRef, commit_ranks, decode_tree, encode_tree
from unbroken.checkpoint.digest import sha256
from unbroken.checkpoint.rank_records import decode_rank_record
from unbroken.checkpoint.rank_writer import put_record, record_key
from unbroken.clock import SYSTEM_CLOCK
from unbroken.errors import ConfigError
from unbroken.store import parse_uri
from unbroken.training.dcp_items import Resolved, resolve
from unbroken.training.dcp_session import Session, Share, session_of_copy
from unbroken.training.dcp_step import step_of
from unbroken.training.dcp_tree import Leaf, nested, path_of, tensor_name


@dataclass(frozen=True)
class _Written:
    """What a rank has done, for the coordinator: it travels in the results of ``write_data``."""

    record: bytes
    """The rank record, where there are several. Rank 0's is not durable yet: it lacks the tree that all share."""
    values: dict[str, Any]
    """Encoded values that are no tensors."""


@dataclass
class _Save:
    """A save on its way through this rank. All of it happens in one thread."""

    step: int
    began_at: float
    rank: int
    whole: Resolved | None = None
    """What the only rank is about to write."""


class Writer(StorageWriter):
    """A ``StorageWriter`` of ``torch.distributed.checkpoint`` over a run's store.

    ``dcp.save(state, storage_writer=writer, checkpoint_id="step-100")`` commits a checkpoint of step 100 that all of
    Unbroken reads: whole or not at all, with digests, without a pickle. One writer serves all saves of a training; the
    first makes it the run's next attempt, which fences every earlier one. Nothing is sent between ranks but what torch
    sends itself.

    An error of any rank reaches all of them as torch's ``CheckpointException``, whose ``failures`` has the error itself
    by rank: ``ConfigError`` (a value that only a pickle could hold, no step, a step that was saved already),
    ``FencedError`` (a later attempt owns the run), ``StoreError``. The checkpoint before stands then.

    Args:
        uri: of the run, as of :class:`unbroken.Run`; it is made where it is new.
        step: the step to save, where ``checkpoint_id`` says none.

    Raises:
        ConfigError: the URI cannot be used.
    """

    def __init__(self, uri: str, step: int | None = None) -> None:
        super().__init__()
        self.uri = str(parse_uri(uri))
        self._given = step
        self._token = secrets.token_hex(8)
        self._session = Session(self.uri, self._token, clock=SYSTEM_CLOCK)
        # DCP does all of a save in one thread; async_save in one of its own, and nothing keeps two saves apart.
        self._thread = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "_given": self._given, "_token": self._token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy in the process that writes for ``async_save``, which gets one for each save."""
        self.__dict__.update(state)
        self._session = session_of_copy(self.uri, self._token, clock=SYSTEM_CLOCK)
        # DCP does all of a save in one thread; async_save in one of its own, and nothing keeps two saves apart.
        self._thread = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Journal that the attempt is over. Not needed: the next attempt fences this one in any case."""
        self._session.close()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Called before each save that names an id."""
        self._thread.checkpoint_id = checkpoint_id

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether the id ends with a step."""
        try:
            return step_of(checkpoint_id) is not None
        except ConfigError:
            return False

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **kwargs: Any) -> None:
        """Called on each rank as a save begins; the coordinator claims the attempt, or makes sure of it."""
        if not kwargs.get("use_collectives", True):
            raise ConfigError(
                "use_collectives=False leaves nobody to commit what the ranks write", kind="collectives",
                hint="Leave it out; or use unbroken.Run, which saves without collectives",
            )  # fmt: skip
        rank = kwargs.get("rank", 0)
        self._thread.save = _Save(self._step(), SYSTEM_CLOCK.monotonic(), rank if isinstance(rank, int) else 0)
        if is_coordinator:
            self._session.begin(self._save.step)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the coordinator: tell each rank which one it is, and of which attempt."""
        save, lease = self._save, self._session.lease
        self._session.share = Share(save.step, save.rank, len(plans), lease)
        return [
            replace(plan, storage_data=Share(save.step, rank, len(plans), lease)) for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Make this rank's part durable. The only rank writes as it finishes, when the names of all are known."""
        save = self._save
        share = self._share(plan)
        part = resolve(plan, planner)
        if share.world_size == 1:
            save.whole = part
            written = _Written(b"", part.values)
        else:
            written = _Written(self._write_rank(save, share, part), part.values)
        size = sum(len(tensor.data) for tensor in part.tensors)
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(MetadataIndex(f"rank{share.rank}"), size, written)])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator: commit what all ranks have written."""
        save = self._save
        written: list[_Written] = [result.storage_data for each in results for result in each]
        tree = encode_tree(nested(_leaves(metadata, written)))
        with self._session.lock:
            if save.whole is None:
                self._commit(tree, written, save)
                return
            self._session.demand_later(save.step)  # another save may have overtaken this one
            state = HostState(save.step, tree, save.whole.tensors, began_at=save.began_at)
            self._session.whole_writer().write(state)
            self._session.written()
            save.whole = None

    def _commit(self, tree: Any, written: list[_Written], save: _Save) -> None:
        session, durable = self._session, dict[int, RankDurable]()
        for rank, each in enumerate(written):
            record = decode_rank_record(each.record, f"the record of rank {rank}")
            durable[rank] = RankDurable(rank, RankRef(record_key(record), sha256(each.record)), record)
        first = msgspec.structs.replace(durable[0].record, state=tree)
        durable[0] = put_record(session.journal.store, first)
        commit_ranks(
            session.journal, session.lease, session.origin, durable, clock=SYSTEM_CLOCK, began_at=save.began_at
        )

    def _write_rank(self, save: _Save, share: Share, part: Resolved) -> bytes:
        state = HostState(
            save.step, {}, part.tensors, began_at=save.began_at, rank=share.rank, world_size=share.world_size
        )
        with self._session.lock:
            writer = self._session.rank_writer(share.lease, share.rank, share.world_size)
            record = writer.write_packs(state)
            if share.rank:
                put_record(self._session.journal.store, record)
        return msgspec.json.encode(record)

    @property
    def _save(self) -> _Save:
        save: _Save | None = getattr(self._thread, "save", None)
        if save is None:
            raise ConfigError("no save was begun in this thread", kind="order")
        return save

    def _step(self) -> int:
        step = step_of(getattr(self._thread, "checkpoint_id", None))
        step = self._given if step is None else step
        if step is None:
            raise ConfigError(
                "nothing says which step is to be saved", kind="checkpoint-id",
                hint="Pass checkpoint_id='step-100' to dcp.save, or step= to the writer",
            )  # fmt: skip
        return step

    def _share(self, plan: SavePlan) -> Share:
        """What the coordinator said, now or, where the planner has kept its plan of an earlier save, then."""
        share, session = plan.storage_data, self._session
        if isinstance(share, Share) and not share.taken:
            share.taken = True
            if share.step != self._save.step:
                raise ConfigError(
                    f"this rank is about to save step {self._save.step}, and the coordinator step {share.step}",
                    kind="step", hint="Pass the same checkpoint_id on all ranks",
                )  # fmt: skip
            session.share = share
        if session.share is None:
            raise ConfigError(
                "the planner kept the plan of an earlier writer, and so nobody says which attempt this is",
                kind="planner", hint="Keep one writer for all saves, or plan without enable_plan_caching",
            )  # fmt: skip
        return session.share


def _leaves(metadata: Metadata, written: Iterable[_Written]) -> Iterator[Leaf]:
    """The state, as the planner took it apart."""
    values = {name: value for each in written for name, value in each.values.items()}
    for name in metadata.state_dict_metadata:
        path = path_of(name, metadata.planner_data)
        yield Leaf(path, decode_tree(values[name]) if name in values else TensorRef(tensor_name(path)))
