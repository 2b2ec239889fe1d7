from __future__ import annotations

import resource

import pytest

from unbroken.doctor import Place
from unbroken.doctor.limits import check_limits, judged_files, judged_locked


def test_few_open_files_are_a_warning_with_the_limit_to_set() -> None:
    found = judged_files(1024, 4096)
    assert found.severity == "warning"
    assert "ulimit -n 4096" in found.todo
    assert judged_files(65536, 65536).severity == judged_files(-1, -1).severity == "ok"


def test_locked_memory_matters_to_a_gang_alone() -> None:
    assert judged_locked(64 << 10, gang=True).severity == "note"
    assert judged_locked(64 << 10, gang=False).severity == "ok"
    assert judged_locked(resource.RLIM_INFINITY, gang=True).severity == "ok"


def test_the_limits_of_this_process_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_NOFILE: (77, 99), resource.RLIMIT_MEMLOCK: (5, 5)}.get)
    assert [one.found for one in check_limits(Place())] == [
        "only 77 files may be open at a time", "5 B of memory may be locked",
    ]  # fmt: skip
