"""Failing stores fail exactly where they were told to."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from unbroken.errors import ConfigError, NotFoundError, StoreError
from unbroken.store import Store, open_store
from unbroken.testing import Call, Crash, FaultyStore, flip_bit, truncate


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "run"), create=True)
    store.put("a", [b"0123456789"])
    return store


def use_everything(store: Store) -> list[object]:
    """One call of each method, as a save and a restore make them."""
    return [
        store.create("b", b"bb"),
        store.put("packs/c", [b"c", b"c"]),
        store.get("a"),
        bytes(store.get_range("a", 2, 3)),
        [info.key for info in store.list("")],
        store.delete(["b", "packs/c"]),
    ]


CALLS = [
    Call(1, "create", "b"),
    Call(2, "put", "packs/c"),
    Call(3, "get", "a"),
    Call(4, "get_range", "a"),
    Call(5, "list", ""),
    Call(6, "delete", "b"),
    Call(7, "delete", "packs/c"),
]


def test_without_a_fault_it_is_the_store_and_counts(store: Store) -> None:
    faulty: Store = (inner := FaultyStore(store))
    assert faulty.uri == store.uri
    assert use_everything(faulty) == [True, None, b"0123456789", b"234", ["a", "b", "packs/c"], None]
    assert inner.calls == CALLS


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("failing", CALLS, ids=lambda call: f"{call.method}-{call.number}")
def test_each_call_in_turn_can_fail_and_only_that_one(store: Store, failing: Call, moment: str) -> None:
    faulty = FaultyStore(store, fail_call=failing.number, moment=moment)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=moment) as caught:
        use_everything(faulty)
    assert caught.value.kind == "injected"
    assert faulty.calls == CALLS[: failing.number]
    assert faulty.get("a") == b"0123456789"
    assert not faulty.crashed


@pytest.mark.parametrize(("moment", "there"), [("before", False), ("after", True)])
def test_the_moment_decides_whether_the_call_took_effect(store: Store, moment: str, there: bool) -> None:
    for key, write in {
        "created": lambda to: to.create("created", b"x"),
        "put": lambda to: to.put("put", [b"x"]),
    }.items():
        with pytest.raises(StoreError):
            write(FaultyStore(store, fail_call=1, moment=moment))  # type: ignore[arg-type]
        assert (key in [info.key for info in store.list("")]) is there


@pytest.mark.parametrize("moment", ["before", "after", "retried"])
def test_a_listener_to_pieces_hears_of_a_put_that_takes_effect_and_may_end_it(store: Store, moment: str) -> None:
    told: list[int] = []
    faulty = FaultyStore(store, fail_call=1, moment=moment)  # type: ignore[arg-type]
    with pytest.raises(StoreError) if moment != "retried" else contextlib.nullcontext():
        faulty.put("b", [b"x", b"yz"], on_piece=told.append)
    assert sum(told) == (0 if moment == "before" else 3)
    error = ValueError("enough")

    def stop(_: int) -> None:
        raise error

    with pytest.raises(ValueError, match="enough") as caught:
        faulty.put("c", [b"x"], on_piece=stop)
    assert caught.value is error
    assert "c" not in [info.key for info in store.list("")]


def test_a_delete_can_fail_between_two_keys(store: Store) -> None:
    store.put("b", [b""])
    with pytest.raises(StoreError):
        FaultyStore(store, fail_call=2, moment="before").delete(["a", "b"])
    assert [info.key for info in store.list("")] == ["b"]


def test_a_retried_create_says_no_although_it_created(store: Store) -> None:
    faulty = FaultyStore(store, fail_call=1, moment="retried")
    assert faulty.create("new", b"mine") is False
    assert store.get("new") == b"mine"


def test_a_create_that_finds_an_object_says_no(store: Store) -> None:
    assert FaultyStore(store).create("a", b"other") is False
    assert store.get("a") == b"0123456789"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_after_a_crash_nothing_works_any_more(store: Store, moment: str) -> None:
    faulty = FaultyStore(store, fail_call=2, moment=moment, crash=True)  # type: ignore[arg-type]
    faulty.get("a")
    with pytest.raises(Crash):
        faulty.put("b", [b"x"])
    assert faulty.crashed
    with pytest.raises(Crash):
        faulty.get("a")
    with pytest.raises(Crash):
        faulty.put("c", [b"x"])
    assert {info.key for info in store.list("")} == ({"a"} if moment == "before" else {"a", "b"})


def test_a_crash_passes_through_handlers_of_exceptions(store: Store) -> None:
    assert not issubclass(Crash, Exception)


def test_arming_counts_from_one_again_and_ends_a_crash(store: Store) -> None:
    faulty = FaultyStore(store, fail_call=1, crash=True)
    with pytest.raises(Crash):
        faulty.get("a")
    faulty.arm(2)
    faulty.get("a")
    with pytest.raises(StoreError):
        faulty.get("a")
    assert [call.number for call in faulty.calls] == [1, 2]


def test_only_the_named_methods_are_counted(store: Store) -> None:
    faulty = FaultyStore(store, fail_call=1, methods={"put"})
    faulty.get("a")
    with pytest.raises(StoreError):
        faulty.put("b", [b""])
    assert faulty.calls == [Call(1, "put", "b")]


@pytest.mark.parametrize(
    "wrong",
    [{"fail_call": 0}, {"fail_call": 1, "moment": "never"}, {"fail_call": 1, "moment": "retried", "crash": True}],
)
def test_a_fault_that_cannot_happen_is_refused(store: Store, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        FaultyStore(store, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("byte", "found"), [(0, b"1123456789"), (-1, b"0123456788")])
def test_flip_bit_changes_one_bit(store: Store, byte: int, found: bytes) -> None:
    flip_bit(store, "a", byte)
    assert store.get("a") == found
    flip_bit(store, "a", byte)
    assert store.get("a") == b"0123456789"


def test_truncate_keeps_the_beginning(store: Store) -> None:
    truncate(store, "a", 4)
    assert store.get("a") == b"0123"


@pytest.mark.parametrize(
    "damage", [lambda s: flip_bit(s, "a", 10), lambda s: truncate(s, "a", 10), lambda s: truncate(s, "a", -1)]
)
def test_damage_that_changes_nothing_is_refused(store: Store, damage) -> None:
    with pytest.raises(ConfigError, match="10 bytes"):
        damage(store)


def test_damage_to_nothing_is_an_error(store: Store) -> None:
    with pytest.raises(NotFoundError):
        flip_bit(store, "nowhere", 0)
