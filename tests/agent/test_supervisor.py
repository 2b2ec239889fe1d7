"""The agent with real processes, real signals and a store in a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from unbroken.journal import Origin
from unbroken.testing.metadata import EC2MetadataService


def test_finished_run_ends_with_0_and_the_journal_says_so(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=3))
    assert agent.wait() == 0, agent.output
    record = launcher.journal().state.attempts[1]
    assert record.ended is not None
    assert (record.ended.cause, record.ended.last_step) == ("finished", 3)
    assert not list(launcher.folder.glob("agent.*"))


def test_sigterm_becomes_a_stop_with_the_grace_as_deadline_and_ends_with_75(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=0), grace=25)
    agent.until("trainer: step 1")
    sent_at = time.time()
    agent.signal(signal.SIGTERM)
    _, _, source, deadline = agent.until("trainer: stop").split()
    assert agent.wait() == 75, agent.output
    assert source == "sigterm"
    assert sent_at + 25 <= float(deadline) <= time.time() + 25
    record = launcher.journal().state.attempts[1]
    assert record.ended is not None
    assert (record.ended.cause, record.ended.last_step) == ("interrupted", 2)
    assert [notice.source for notice in record.notices] == ["sigterm"]
    assert "SIGTERM to the command" not in agent.output


def test_interrupted_run_goes_on_as_the_next_attempt(launcher: Any) -> None:
    first = launcher.agent(launcher.trainer(until=0))
    first.until("trainer: step 1")
    first.signal(signal.SIGTERM)
    assert first.wait() == 75
    second = launcher.agent(launcher.trainer(until=4))
    assert second.wait() == 0, second.output
    assert "trainer: welcome 2" in second.output
    assert "trainer: step 3" in second.output
    assert "trainer: step 1" not in second.output


def test_child_that_leaves_with_0_on_a_stop_is_interrupted_not_finished(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=0, on_stop="exit-0"))
    agent.until("trainer: step 1")
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 75, agent.output
    assert "interrupted; step 1 is durable" in agent.output


def test_child_that_leaves_with_0_before_the_end_has_failed_and_is_not_restarted(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=5, leave=True))
    assert agent.wait() == 1, agent.output
    assert "run.finish()" in agent.output
    state = launcher.journal().state
    assert len(state.attempts) == 1
    assert state.attempts[1].ended.cause == "left"


def test_failure_after_the_last_step_ends_with_1_without_a_restart(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=2, exit_code=4))
    assert agent.wait() == 1, agent.output
    assert "training is finished at step 2 and durable, but the command failed afterwards (exit code 4)" in agent.output
    assert len(launcher.journal().state.attempts) == 1


def test_notice_during_the_work_after_the_loop_ends_with_75(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=2, after=30))
    agent.until("trainer: after")
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 75, agent.output
    assert "training is finished at step 2" in agent.output


def test_crashed_trainer_is_restarted_in_place_as_a_new_attempt(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=4, crash_at=2))
    assert agent.wait() == 0, agent.output
    assert "killed by signal 9 (SIGKILL)" in agent.output
    state = launcher.journal().state
    assert [state.attempts[n].ended.cause for n in (1, 2)] == ["crashed", "finished"]
    assert state.attempts[1].ended.last_step == 2


def test_restart_that_ends_with_0_without_a_word_is_not_finished(launcher: Any) -> None:
    mark = launcher.folder / "mark"
    command = ["sh", "-c", 'test -e "$0" && exit 0; touch "$0"; exec "$@"', str(mark), *launcher.trainer(crash_at=2)]
    agent = launcher.agent(command, max_restarts=2)
    assert agent.wait() == 1, agent.output
    assert "no Run was opened (exit code 0)" in agent.output


def test_wrapper_that_ends_with_0_does_not_hide_the_trainers_death(launcher: Any) -> None:
    agent = launcher.agent(["sh", "-c", '"$@" | cat', "sh", *launcher.trainer(until=4, crash_at=2)])
    assert agent.wait() == 0, agent.output
    state = launcher.journal().state
    assert [state.attempts[n].ended.cause for n in (1, 2)] == ["crashed", "finished"]


def test_finished_run_that_is_extended_is_not_finished_before_its_new_end(launcher: Any) -> None:
    assert launcher.agent(launcher.trainer(until=2)).wait() == 0
    early = launcher.agent(launcher.trainer(until=9, commits=False, leave=True))
    assert early.wait() == 1, early.output
    assert launcher.journal().state.attempts[2].ended.cause == "left"


def test_finished_run_that_does_not_fit_the_program_ends_with_14(launcher: Any) -> None:
    assert launcher.agent(launcher.trainer(until=2)).wait() == 0
    agent = launcher.agent(launcher.trainer(until=2, fail="MismatchError"))
    assert agent.wait() == 14, agent.output


def test_trainer_that_never_commits_stops_after_the_limit_and_counting_begins_anew(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(fail="RuntimeError"), no_progress_limit=3)
    assert agent.wait() == 1, agent.output
    assert "3 attempts in a row committed no checkpoint" in agent.output
    assert "RuntimeError: made to fail (exit code 3)" in agent.output
    state = launcher.journal().state
    assert [state.attempts[n].ended.cause for n in (1, 2, 3)] == ["failed", "failed", "stopped-no-progress"]
    again = launcher.agent(launcher.trainer(until=2), no_progress_limit=3)
    assert again.wait() == 0, again.output


def test_attempts_that_died_with_their_agents_count_as_no_progress(launcher: Any) -> None:
    from unbroken.journal import Journal
    from unbroken.store import open_store

    journal = Journal.create(open_store(launcher.uri, create=True))
    for pid in (1, 2):
        journal.claim(Origin("elsewhere", pid))
    agent = launcher.agent(launcher.trainer(until=2), no_progress_limit=2)
    assert agent.wait() == 1, agent.output
    assert "trainer: refused UnbrokenError stopped-no-progress" in agent.output
    assert launcher.journal().state.attempts[3].ended.cause == "stopped-no-progress"
    again = launcher.agent(launcher.trainer(until=2), no_progress_limit=2)
    assert again.wait() == 0, again.output


def test_command_that_always_crashes_before_hello_stops_after_the_limit(launcher: Any) -> None:
    agent = launcher.agent(["sh", "-c", "exit 3"], no_progress_limit=3)
    assert agent.wait() == 1
    assert agent.output.count("restart ") == 2
    assert "3 attempts in a row committed no checkpoint; the last one: exit code 3" in agent.output


def test_restarts_are_bounded(launcher: Any) -> None:
    agent = launcher.agent(["sh", "-c", "kill -9 $$"], max_restarts=1)
    assert agent.wait() == 1
    assert "stopped after 1 restarts; the last end: killed by signal 9 (SIGKILL)" in agent.output


def test_error_that_would_come_again_ends_with_its_own_code(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(fail="MismatchError"))
    assert agent.wait() == 14, agent.output
    assert len(launcher.journal().state.attempts) == 1


def test_run_that_cannot_be_opened_refuses_the_trainer_and_ends_with_78(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(uri="ftp://nowhere/run"))
    assert agent.wait() == 78, agent.output
    assert "trainer: refused ConfigError uri" in agent.output
    assert "unknown scheme 'ftp'" in agent.output


def block_store(launcher: Any) -> Path:
    """A file where the run's journal should be: the store fails until it is removed."""
    obstacle = Path(launcher.uri) / "journal"
    obstacle.parent.mkdir()
    obstacle.write_text("")
    return obstacle


def test_store_that_is_away_at_the_start_is_waited_for(launcher: Any) -> None:
    obstacle = block_store(launcher)
    agent = launcher.agent(launcher.trainer(until=2))
    agent.until("no attempt yet, asking again for")
    obstacle.unlink()
    assert agent.wait() == 0, agent.output
    assert "restart" not in agent.output


def test_notice_ends_the_wait_for_the_store(launcher: Any) -> None:
    block_store(launcher)
    agent = launcher.agent(launcher.trainer(until=2), grace=20)
    agent.until("no attempt yet, asking again for")
    agent.signal(signal.SIGTERM)
    agent.until("trainer: refused StoreError")
    assert agent.wait() == 75, agent.output


def test_starts_that_the_store_kept_out_do_not_count_as_without_progress(launcher: Any) -> None:
    obstacle = block_store(launcher)
    agent = launcher.agent(launcher.trainer(until=2), store_patience_at_start=0.0, no_progress_limit=1)
    agent.until("restart 2 of")
    obstacle.unlink()
    assert agent.wait() == 0, agent.output


def test_fenced_attempt_ends_with_11(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=0))
    agent.until("trainer: step 1")
    launcher.journal().claim(Origin("elsewhere", 1))
    # The trainer's next append meets the claim; so does the agent's when it looks.
    os.kill(agent.status().trainers[0].pid, signal.SIGKILL)
    assert agent.wait() == 11, agent.output
    assert launcher.journal().state.attempts[1].ended is None


def test_notice_of_a_fenced_attempt_ends_the_command_at_once(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=0, on_stop="ignore"), grace=60)
    agent.until("trainer: step 1")
    launcher.journal().claim(Origin("elsewhere", 1))
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 11, agent.output


def test_notice_during_the_backoff_ends_with_75(launcher: Any) -> None:
    agent = launcher.agent(["sh", "-c", "exit 3"], first_backoff=60, longest_backoff=60)
    agent.until("restart 1 of at most 100 in 1m00s")
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 75, agent.output


def test_command_without_a_trainer_gets_sigterm_itself(launcher: Any) -> None:
    agent = launcher.agent(["sh", "-c", "trap 'echo heard; exit 0' TERM; echo ready; sleep 60 & wait"])
    agent.until("ready")
    agent.signal(signal.SIGTERM)
    agent.until("heard")
    assert agent.wait() == 75, agent.output


def test_trainer_that_ignores_stop_is_terminated_then_killed_before_the_deadline(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=0, on_stop="ignore"), grace=4)
    agent.until("trainer: step 1")
    sent_at = time.time()
    agent.signal(signal.SIGTERM)
    agent.until("trainer: SIGTERM")
    assert time.time() >= sent_at + 4 * 0.85
    assert agent.wait() == 75, agent.output
    assert "the deadline is here: killing the command" in agent.output
    assert "interrupted; step 1 is durable" in agent.output
    assert launcher.journal().state.attempts[1].ended.cause == "interrupted"


def test_second_sigint_ends_the_command_at_once(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=0, on_stop="ignore"), grace=600)
    agent.until("trainer: step 1")
    agent.signal(signal.SIGINT)
    agent.until("trainer: stop sigint")
    agent.signal(signal.SIGINT)
    assert agent.wait() == 75, agent.output


def test_signal_of_a_trainer_becomes_a_stop(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=0, signal_self=True))
    agent.until("trainer: stop sigterm")
    assert agent.wait() == 75, agent.output
    assert "rank 0 received SIGTERM" in agent.output


def test_stop_that_another_rank_brought_about_is_a_notice_that_others_journal(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=0, agree=60.0))
    agent.until("notice from ec2: terminate (heard by another rank)")
    assert agent.wait() == 75, agent.output
    assert "interrupted; step 2 is durable" in agent.output
    assert launcher.journal().state.attempts[1].notices == []


def test_deadline_of_a_notice_that_another_rank_heard_is_enforced(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=0, agree=3.0, on_stop="ignore"))
    assert agent.wait() == 75, agent.output
    assert "the deadline is here: killing the command" in agent.output


def test_ec2_notice_reaches_the_trainer_with_its_deadline(launcher: Any) -> None:
    with EC2MetadataService() as service:
        launcher.environment |= {
            "AWS_EC2_METADATA_DISABLED": "false",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": service.endpoint,
            "UNBROKEN_NOTICE_POLL": "0.05",
        }
        agent = launcher.agent(launcher.trainer(until=0))
        agent.until("trainer: step 1")
        deadline = service.interrupt(seconds=120)
        assert agent.until("trainer: stop") == f"trainer: stop ec2 {deadline!r}"
        assert agent.wait() == 75, agent.output
    assert launcher.journal().state.attempts[1].notices[0].deadline == deadline


def test_orphans_are_killed_with_the_command(launcher: Any) -> None:
    # A grandchild in a session of its own whose parent is gone; it shuts its ears to SIGTERM.
    grandchild = "import os,signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('orphan', os.getpid(), flush=True); time.sleep(60)"  # noqa: E501
    script = f'(setsid {sys.executable} -c "{grandchild}" &) ; read line < "$0"; exit 0'
    fifo = launcher.folder / "fifo"
    os.mkfifo(fifo)
    agent = launcher.agent(["sh", "-c", script, str(fifo)], leftover_grace=0.2)
    pid = int(agent.until("orphan").split()[1])
    assert psutil.Process(pid).ppid() == agent.process.pid
    fifo.write_text("go\n")
    assert agent.wait() == 0, agent.output
    assert not psutil.pid_exists(pid)


def test_dead_orphans_are_reaped_while_the_command_runs(launcher: Any) -> None:
    fifo = launcher.folder / "fifo"
    os.mkfifo(fifo)
    script = '(sh -c "exit 0" & sh -c "exit 1" &) ; echo spawned; read line < "$0"'
    agent = launcher.agent(["sh", "-c", script, str(fifo)])
    agent.until("spawned")
    me, deadline = psutil.Process(agent.process.pid), time.monotonic() + 10
    while len(children := me.children()) > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [child.pid for child in children] == [agent.status().child_pid]
    fifo.write_text("go\n")
    assert agent.wait() == 0


def test_trainer_outlives_an_agent_that_is_killed(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=0))
    agent.until("trainer: step 1")
    trainer = psutil.Process(agent.status().trainers[0].pid)
    agent.signal(signal.SIGKILL)
    agent.process.wait(10)
    assert trainer.is_running()
    assert trainer.status() != psutil.STATUS_ZOMBIE
    trainer.kill()


def test_agent_json_tells_whom_to_kill(launcher: Any) -> None:
    agent = launcher.agent(launcher.trainer(until=0))
    agent.until("trainer: step 1")
    status = agent.status()
    assert (status.agent_pid, status.uri, status.attempt) == (agent.process.pid, launcher.uri, 1)
    assert [(trainer.rank, trainer.pid) for trainer in status.trainers] == [(0, status.child_pid)]
    assert status.trainers[0].progress.startswith(str(launcher.folder))
    assert launcher.folder.stat().st_mode & 0o777 == 0o700
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 75


def test_works_as_pid_1(launcher: Any) -> None:
    prefix = ("unshare", "-fp", "--kill-child", "--mount-proc")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("unshare may make no PID namespace here")
    agent = launcher.agent(launcher.trainer(until=0), prefix=prefix)
    agent.until("trainer: step 1")
    assert agent.status().agent_pid == 1
    (inner,) = psutil.Process(agent.process.pid).children()
    inner.send_signal(signal.SIGTERM)
    assert agent.wait() == 75, agent.output
