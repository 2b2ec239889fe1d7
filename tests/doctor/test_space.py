from __future__ import annotations

from pathlib import Path

from unbroken.doctor import Place
from unbroken.doctor.space import check_scratch, check_shm

_MORE_THAN_ANY_DISK = 1 << 60


def test_shm_is_held_against_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "dev/shm").mkdir(parents=True)
    assert check_shm(Place(root=tmp_path, shm=1))[0].severity == "ok"
    (found,) = check_shm(Place(root=tmp_path, shm=_MORE_THAN_ANY_DISK))
    assert found.severity == "warning"
    assert "1153 PB are wanted" in found.found


def test_a_missing_shm_is_a_warning(tmp_path: Path) -> None:
    (found,) = check_shm(Place(root=tmp_path))
    assert found.severity == "warning"
    assert "No such file" in found.found


def test_scratch_is_held_against_what_is_wanted(tmp_path: Path) -> None:
    assert check_scratch(Place(folder=tmp_path, scratch=1))[0].severity == "ok"
    assert check_scratch(Place(folder=tmp_path, scratch=_MORE_THAN_ANY_DISK))[0].severity == "warning"
    assert not list(tmp_path.iterdir())


def test_a_scratch_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (found,) = check_scratch(Place(folder=tmp_path / "missing"))
    assert (found.severity, found.exit_code) == ("error", 78)
