"""The exit code and the words of each error: what a job manager and a person go by."""

from __future__ import annotations

import pickle

import pytest

import unbroken
from unbroken import errors

EXIT_CODES = {
    "UnbrokenError": 1,
    "ConfigError": 78,
    "NotFoundError": 10,
    "FencedError": 11,
    "DamagedError": 12,
    "FormatError": 13,
    "MismatchError": 14,
    "StoreError": 74,
    "AccessError": 77,
    "DeadlineError": 75,
}
DEFINED = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.UnbrokenError)
}


@pytest.mark.parametrize(("name", "code"), EXIT_CODES.items())
def test_the_exit_code_of_each_error_stays(name: str, code: int) -> None:
    assert DEFINED[name].exit_code == code
    assert DEFINED[name]("x").exit_code == code


def test_no_error_is_left_out_above() -> None:
    assert set(DEFINED) == {*EXIT_CODES, "ChildError"}


@pytest.mark.parametrize("name", [*DEFINED, "Interrupted"])
def test_every_error_is_importable_from_the_package(name: str) -> None:
    assert getattr(unbroken, name) is getattr(errors, name)
    assert name in unbroken.__all__


@pytest.mark.parametrize(
    ("error", "builtin"),
    [(errors.ConfigError, ValueError), (errors.NotFoundError, LookupError), (errors.AccessError, errors.StoreError)],
)
def test_errors_are_also_what_python_calls_them(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, builtin)


def test_an_error_says_its_hint_and_keeps_its_message_apart() -> None:
    error = errors.ConfigError("'x' is no URI", kind="uri", hint="Write s3://bucket/path")
    assert str(error) == "'x' is no URI. Write s3://bucket/path"
    assert (error.message, error.kind, error.hint) == ("'x' is no URI", "uri", "Write s3://bucket/path")


def test_an_error_without_a_hint_is_its_message() -> None:
    assert str(errors.StoreError("the disk is full")) == "the disk is full"


def test_a_child_error_carries_the_childs_status() -> None:
    error = errors.ChildError("train.py was killed", returncode=-9)
    assert (error.returncode, error.exit_code) == (-9, 1)


def test_an_interruption_is_no_exception_that_a_script_swallows() -> None:
    assert not issubclass(errors.Interrupted, Exception)
    with pytest.raises(SystemExit) as caught:
        raise errors.Interrupted("saved at step 7")
    assert caught.value.code == 75
    assert str(caught.value) == "saved at step 7"


def test_an_error_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(errors.DamagedError("bad", kind="digest", hint="restore")))
    assert (error.message, error.kind, error.hint) == ("bad", "digest", "restore")
