from __future__ import annotations

from pathlib import Path

import pytest

from unbroken.agent.runtime import AgentStatus, RuntimeFolder, TrainerStatus, read_status
from unbroken.errors import ConfigError, NotFoundError


def test_temporary_folder_is_private_and_goes_away() -> None:
    folder = RuntimeFolder()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.write(AgentStatus(1, 2))
    folder.close()
    assert not folder.path.exists()


def test_chosen_folder_stays_without_the_agents_files(tmp_path: Path) -> None:
    folder = RuntimeFolder(tmp_path / "a" / "b")
    status = AgentStatus(1, 2, "/run", 3, [TrainerStatus(0, 4, "/page")])
    folder.write(status)
    assert read_status(folder.path) == status
    folder.close()
    assert list(folder.path.iterdir()) == []


def test_status_that_cannot_be_written_is_said_once_and_written_when_there_is_room_again(tmp_path: Path) -> None:
    said: list[str] = []
    folder = RuntimeFolder(tmp_path, said.append)
    obstacle = tmp_path / ".agent.json"
    obstacle.mkdir()
    folder.write(AgentStatus(1, 2))
    folder.write(AgentStatus(1, 3))
    assert len(said) == 1
    assert "agent.json cannot be written, training goes on" in said[0]
    obstacle.rmdir()
    folder.write(AgentStatus(1, 3))
    assert read_status(folder.path) == AgentStatus(1, 3)


def test_same_status_is_not_written_again(tmp_path: Path) -> None:
    folder = RuntimeFolder(tmp_path)
    folder.write(AgentStatus(1, 2))
    written = (tmp_path / "agent.json").stat().st_ino
    folder.write(AgentStatus(1, 2))
    assert (tmp_path / "agent.json").stat().st_ino == written


def test_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long for a Unix socket") as caught:
        RuntimeFolder(tmp_path / ("x" * 120))
    assert caught.value.kind == "runtime-dir"


def test_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        RuntimeFolder(tmp_path / "file")


def test_no_agent_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no agent"):
        read_status(tmp_path)
