"""``unbroken.data.ResumableSampler``: a data order that goes on where the checkpoint stands, on any number of ranks."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sized
from typing import Any, NoReturn

import torch

from unbroken.errors import ConfigError, MismatchError
from unbroken.training.batches import Batches, IndexBatches, Loader, make_loader
from unbroken.training.data_workers import PlacedBatch
from unbroken.training.sample_order import LONGEST, ORDER_VERSION, samples_at
from unbroken.training.which_rank import which_rank

_COMPUTED = 4096
"""About how many positions of the order are computed at once, in the end; one by one, each would cost as much."""


class ResumableSampler:
    """The order in which a training sees its samples, as a function of seed and samples consumed.

    The samples of all epochs make one endless stream, each epoch in its own order (see
    :mod:`unbroken.training.sample_order`). A *global batch* is the next ``batch_size * world_size`` samples of it, of
    which rank ``r`` takes the ``r``-th ``batch_size``. A global batch may begin in one epoch and end in the next: all
    have the same size, all ranks make the same number of steps, and each epoch has each sample exactly once; none is
    dropped, none is padded. On another number of ranks, or with another batch size, the stream goes on from
    ``consumed``.

    ``consumed`` counts what was handed to the loop, whatever workers have loaded ahead::

        sampler = ResumableSampler(dataset, batch_size=32, seed=1)
        loader = sampler.loader(dataset, num_workers=4)
        with unbroken.Run(uri, state={"model": model, "optimizer": optimizer, "data": sampler}) as run:
            batches = iter(loader)                    # endless
            for step in run.steps(until=100_000):
                train_step(next(batches))             # take the batches of a step inside the step

    It is a shared object: its state is the same on all ranks.

    Args:
        data: the dataset, or how many samples it has.
        batch_size: samples that this rank takes at a time; the same on all ranks.
        seed: of the order.
        shuffle: False: in each epoch the samples come as they are numbered.
        rank: of those ranks that see different data; by default of all (the process group, or the launcher's
            environment). With tensor parallelism pass that of the data-parallel dimension of the mesh.
        world_size: how many such ranks there are; given together with ``rank``.

    Raises:
        ConfigError: one of them cannot be used; names it.
    """

    def __init__(
        self,
        data: Sized | int,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.length = data if isinstance(data, int) else _length_of(data)
        """Samples in an epoch."""
        self.batch_size = batch_size
        """Samples that this rank takes at a time."""
        self.seed = seed
        """Of the order."""
        self.shuffle = shuffle
        """Whether each epoch has an order of its own."""
        _demand_number("the length of the dataset", self.length, 1, LONGEST)
        _demand_number("batch_size", batch_size, 1, LONGEST)
        _demand_number("seed", seed, None, None)
        self._given = _place(rank, world_size)
        self._consumed = 0
        self._restarts = 0
        self._current: weakref.ref[Batches] | None = None

    @property
    def consumed(self) -> int:
        """Samples that all ranks together were handed since the run began, in all epochs."""
        return self._consumed

    @property
    def epoch(self) -> int:
        """The epoch, from 0, of the next sample."""
        return self._consumed // self.length

    def loader(self, dataset: Any, **options: Any) -> Loader:
        """An iterable of batches, as a ``torch.utils.data.DataLoader`` makes them.

        Each ``iter()`` of it begins at ``consumed`` and never ends; it ends the iteration before it, for the two would
        hand out the same samples. The worker processes survive signals to their process group. In them the global
        generators of ``random``, torch and NumPy are seeded for each batch by its place in the stream, so that what a
        dataset draws from them is the same after a restart.

        Args:
            dataset: with ``len`` and ``[number]`` (or ``__getitems__``).
            options: as of ``DataLoader`` (``num_workers``, ``collate_fn``, ``pin_memory``, ...), without what decides
                about the order. ``persistent_workers`` has no effect: workers live as long as the iteration.

        Raises:
            ConfigError: an option, or a dataset of another length.
        """
        length = _length_of(dataset)
        if length != self.length:
            raise ConfigError(
                f"the dataset has {length} samples, and the sampler orders {self.length}", kind="dataset",
                hint="Make the sampler with this dataset: ResumableSampler(dataset, ...)",
            )  # fmt: skip
        return make_loader(self, dataset, options)

    def indices(self) -> Iterator[list[int]]:
        """Batches as lists of sample numbers, for programs that read samples themselves; otherwise as :meth:`loader`.

        Whoever reads ahead with these must not: what is handed out counts as consumed.
        """
        return IndexBatches(self)

    def __iter__(self) -> NoReturn:
        """Refused: torch's DataLoader takes batches from a sampler long before the loop trains on them.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a ResumableSampler counts what the loop was handed, and whoever iterates it reads ahead", kind="sampler",
            hint="Write sampler.loader(dataset, num_workers=...) in place of DataLoader(dataset, sampler=sampler), "
            "or sampler.indices()",
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Numbers only; the same on all ranks at a step boundary."""
        return {**self._identity(), "consumed": self._consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; an iteration under way goes on from there, too.

        Raises:
            MismatchError: it is of another dataset length, seed or order; names them. Nothing was changed.
        """
        own = self._identity()
        differing = [name for name in own if name not in state or state[name] != own[name]]
        consumed = state.get("consumed")
        if differing or isinstance(consumed, bool) or not isinstance(consumed, int) or consumed < 0:
            there = ", ".join(f"{name} {state.get(name)!r}" for name in differing or ["consumed"])
            here = ", ".join(f"{name} {own[name]!r}" for name in differing) or "a number of samples"
            raise MismatchError(
                f"the checkpoint's data order has {there}, and the program's {here}", kind="sampler",
                hint="Use the same dataset and seed as the attempts before, or begin a new run at another URI",
            )  # fmt: skip
        self._consumed = consumed
        self._restarts += 1

    def _identity(self) -> dict[str, Any]:
        """What must not change between attempts."""
        return {"length": self.length, "seed": self.seed, "shuffle": self.shuffle, "order": ORDER_VERSION}

    # What follows is for the iterations of batches.py.

    def place(self) -> tuple[int, int]:
        """Rank and world size, as of now."""
        return self._given or which_rank()

    @property
    def restarts(self) -> int:
        """How often a state was loaded."""
        return self._restarts

    def take_over(self, batches: Batches) -> None:
        """Make this the iteration that counts, and close the one before."""
        before, self._current = self.current, weakref.ref(batches)
        if before is not None:
            before.close()

    @property
    def current(self) -> Batches | None:
        """The iteration that counts."""
        return self._current() if self._current is not None else None

    def advance(self, samples: int) -> None:
        """Count samples of all ranks as consumed."""
        self._consumed += samples

    def batches_from(self, position: int, rank: int, world_size: int) -> Iterator[PlacedBatch]:
        """This rank's batches from a position of the stream on, without end; counts nothing."""
        size, stride = self.batch_size, self.batch_size * world_size
        first, together, most = position + rank * size, 1, max(1, _COMPUTED // size)
        while True:
            begins = first + torch.arange(together) * stride
            positions = (begins[:, None] + torch.arange(size)).flatten()
            samples = samples_at(positions, length=self.length, seed=self.seed, shuffle=self.shuffle)
            yield from map(PlacedBatch, samples.view(together, size).tolist(), begins.tolist())
            first += together * stride
            together = min(2 * together, most)


def _length_of(data: Sized) -> int:
    try:
        return len(data)
    except TypeError as error:
        raise ConfigError(
            f"a {type(data).__qualname__} has no length, and the order of its samples is its own", kind="dataset",
            hint="Use a dataset with len() and [number], or torchdata's StatefulDataLoader",
        ) from error  # fmt: skip


def _place(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None:
        raise ConfigError(
            f"rank={rank} and world_size={world_size}: one without the other", kind="ranks", hint="Give both or neither"
        )
    _demand_number("world_size", world_size, 1, None)
    _demand_number("rank", rank, 0, world_size - 1)
    return rank, world_size


def _demand_number(name: str, value: object, least: int | None, most: int | None) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or (least is not None and value < least)
        or (most is not None and value > most)
    ):
        limits = "" if least is None else f" of {least} or more" if most is None else f" from {least} to {most}"
        raise ConfigError(f"{name} is {value!r}, and should be a whole number{limits}", kind="sampler")
