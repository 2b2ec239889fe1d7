"""Iterations over batches that count what they hand out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from unbroken.errors import ConfigError
from unbroken.training.data_workers import RepeatableDataset, WorkerShield, held_back

if TYPE_CHECKING:
    from unbroken.training.sampler import ResumableSampler

_DECIDED = ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", "generator")
"""Options of DataLoader that decide about the order, which is decided."""


class Batches(Iterator[Any]):
    """An endless iteration that begins where its sampler stands, and again wherever that is put by ``load_state_dict``.

    What raised is not consumed: the next ``next()`` begins at the same batch.
    """

    def __init__(self, sampler: ResumableSampler) -> None:
        self._sampler = sampler
        self._source: Iterator[Any] | None = None
        self._restarts = -1
        self._samples = 0
        sampler.take_over(self)

    def __next__(self) -> Any:
        """The next batch; counts it.

        Raises:
            ConfigError: a newer iteration of the same sampler took over.
        """
        sampler = self._sampler
        if sampler.current is not self:
            raise ConfigError(
                "this iteration has ended: a newer one of the same sampler hands out the same samples", kind="sampler",
                hint="Keep one iter(loader) for the whole training",
            )  # fmt: skip
        try:
            if self._source is None or self._restarts != sampler.restarts:
                self._begin()
            batch = next(self._source)  # type: ignore[arg-type]
        except BaseException:
            self.close()  # torch would go on with the batch after the one that failed
            raise
        sampler.advance(self._samples)
        return batch

    def close(self) -> None:
        """End what loads ahead. The next ``next()`` begins anew."""
        self._source = None

    def _begin(self) -> None:
        self.close()
        sampler = self._sampler
        rank, world_size = sampler.place()
        self._restarts, self._samples = sampler.restarts, sampler.batch_size * world_size
        self._source = self._open(rank, world_size)

    @abstractmethod
    def _open(self, rank: int, world_size: int) -> Iterator[Any]:
        """This rank's batches from ``consumed`` on."""


class IndexBatches(Batches):
    """Lists of sample numbers."""

    def _open(self, rank: int, world_size: int) -> Iterator[list[int]]:
        return map(list, self._sampler.batches_from(self._sampler.consumed, rank, world_size))


class LoadedBatches(Batches):
    """What a DataLoader makes of the samples of a dataset."""

    def __init__(self, sampler: ResumableSampler, dataset: Any, options: Mapping[str, Any]) -> None:
        self._dataset, self._options = dataset, options
        self._shield: WorkerShield | None = None
        super().__init__(sampler)

    def close(self) -> None:
        """End the workers, and wait for them."""
        if self._shield is not None:
            self._shield.release()
            self._shield = None
        self._source = None  # the last reference to torch's iterator, which ends its workers as it goes

    def _open(self, rank: int, world_size: int) -> Iterator[Any]:
        options = dict(self._options)
        dataset = self._dataset
        if options.get("num_workers"):
            self._shield = WorkerShield(options.get("worker_init_fn"))
            self._shield.release_with(self)
            dataset, options["worker_init_fn"] = RepeatableDataset(dataset, self._sampler.seed), self._shield
        batches = self._sampler.batches_from(self._sampler.consumed, rank, world_size)
        # With a generator of its own torch draws no seed for workers from the global one, which the training uses.
        own = torch.Generator().manual_seed(0)
        with held_back():
            return iter(DataLoader(dataset, batch_sampler=batches, generator=own, **options))


class Loader:
    """Batches of a dataset, in the order of a :class:`~unbroken.data.ResumableSampler`, which makes it."""

    def __init__(self, sampler: ResumableSampler, dataset: Any, options: Mapping[str, Any]) -> None:
        self.sampler = sampler
        self.dataset = dataset
        self._options = options

    def __iter__(self) -> Iterator[Any]:
        """Begin at ``sampler.consumed``; an iteration before this one ends."""
        return LoadedBatches(self.sampler, self.dataset, self._options)


def make_loader(sampler: ResumableSampler, dataset: Any, options: dict[str, Any]) -> Loader:
    """Check the options as far as they can be before workers start.

    Raises:
        ConfigError: names the option, or says what torch says.
    """
    decided = [name for name in _DECIDED if name in options]
    if decided or not options.get("in_order", True):
        raise ConfigError(
            f"{', '.join(decided) or 'in_order=False'} cannot be given to a loader whose sampler decides about it",
            kind="loader", hint="Give batch_size, seed and shuffle to ResumableSampler(...)",
        )  # fmt: skip
    if isinstance(dataset, IterableDataset):
        raise ConfigError(
            "an IterableDataset decides about its order itself", kind="dataset",
            hint="Use a dataset with len() and [number], or torchdata's StatefulDataLoader",
        )  # fmt: skip
    # They live as long as the iteration, which does not end with an epoch.
    options = {name: value for name, value in options.items() if name != "persistent_workers"}
    try:
        DataLoader(dataset, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"torch's DataLoader refuses the options: {error}", kind="loader") from error
    return Loader(sampler, dataset, options)
