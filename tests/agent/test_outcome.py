"""The exit contract, row by row."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from unbroken.agent.outcome import Decision, Facts, Limits, decide, describe_returncode, first_failure
from unbroken.link.messages import LOST_RANK, Bye, Refused

LEFT = (Bye("left", 8),)
LIMITS = Limits(max_restarts=100, no_progress=5)
FINISHED = Facts(returncode=0, finished_step=10, durable_step=10, committed=True, step=10, until=10)
RUNNING = Facts(returncode=0, durable_step=7, committed=True, step=8, until=10)
SILENT = Facts(returncode=0, said_hello=False, without_progress=1)


def failed(error: str) -> tuple[Bye, ...]:
    return (Bye("failed", 3, error, "made to fail", 1),)


def replace_error(bye: Bye, error: str) -> Bye:
    return msgspec.structs.replace(bye, error=error)


@pytest.mark.parametrize(
    ("facts", "code", "cause", "text"),
    [
        (FINISHED, 0, "finished", "finished at step 10 and durable"),
        (replace(FINISHED, notice=True), 0, "finished", "finished at step 10"),
        (replace(FINISHED, returncode=3), 1, "failed", "but the command failed afterwards (exit code 3)"),
        (replace(FINISHED, returncode=3, notice=True), 75, "interrupted", "in what it does afterwards"),
        (replace(FINISHED, returncode=None, byes=(Bye("finished", 10),)), 0, "finished", "finished"),
        (replace(FINISHED, fenced=True), 11, "failed", "another attempt owns this run"),
        (replace(RUNNING, notice=True), 75, "interrupted", "step 7 is durable"),
        (replace(RUNNING, notice=True, returncode=1), 75, "interrupted", "step 7 is durable"),
        (replace(RUNNING, notice=True, returncode=-9), 75, "interrupted", "step 7 is durable"),
        (replace(RUNNING, notice=True, committed=False), 75, "interrupted", "saved by this attempt; step 7"),
        (replace(RUNNING, notice=True, durable_step=-1), 75, "interrupted", "no checkpoint was ever saved"),
        (replace(RUNNING, notice=True, fenced=True), 11, "failed", "another attempt owns this run"),
        (replace(FINISHED, step=11, until=20, returncode=-9), None, "crashed", "SIGKILL"),
        (replace(FINISHED, step=10, until=20, byes=LEFT), 1, "left", "before step 20"),
        (replace(FINISHED, step=-1, until=-1, returncode=-9), None, "crashed", "SIGKILL"),
        (replace(FINISHED, until=-1, finished_here=True), 0, "finished", "finished at step 10"),
        (replace(FINISHED, until=20, byes=(Bye("finished", 10),)), 0, "finished", "finished at step 10"),
        (replace(FINISHED, returncode=14, byes=failed("MismatchError")), 14, "failed", "made to fail"),
        (
            replace(FINISHED, returncode=1, byes=(Bye("finished", 10), *failed("MismatchError"))), 1, "failed",
            "but the command failed afterwards",
        ),
        (replace(RUNNING, byes=LEFT), 1, "left", "before step 10; call run.finish()"),
        (RUNNING, None, "crashed", "the trainer was lost (exit code 0)"),
        (replace(RUNNING, byes=failed("RuntimeError")), None, "failed", "RuntimeError: made to fail"),
        (replace(RUNNING, returncode=75), None, "crashed", "exit code 75"),
        (replace(RUNNING, returncode=3), None, "crashed", "exit code 3"),
        (replace(RUNNING, returncode=127), None, "crashed", "exit code 127"),
        (replace(RUNNING, returncode=-9), None, "crashed", "killed by signal 9 (SIGKILL)"),
        (replace(RUNNING, returncode=None), None, "crashed", "the process is gone"),
        (replace(RUNNING, returncode=None, byes=(Bye("left", 8),)), 1, "left", "before step 10"),
        (replace(RUNNING, returncode=1, byes=failed("RuntimeError")), None, "failed", "RuntimeError: made to fail"),
        (replace(RUNNING, returncode=1, byes=failed("StoreError")), None, "failed", "StoreError: made to fail"),
        (replace(RUNNING, returncode=1, byes=failed("ConfigError")), 78, "failed", "ConfigError: made to fail"),
        (replace(RUNNING, returncode=1, byes=failed("NotFoundError")), 10, "failed", "made to fail"),
        (replace(RUNNING, returncode=1, byes=failed("FencedError")), 11, "failed", "another attempt"),
        (replace(RUNNING, returncode=1, byes=failed("DamagedError")), 12, "failed", "made to fail"),
        (replace(RUNNING, returncode=1, byes=failed("FormatError")), 13, "failed", "made to fail"),
        (replace(RUNNING, returncode=1, byes=failed("MismatchError")), 14, "failed", "made to fail"),
        (replace(RUNNING, returncode=1, byes=failed("AccessError")), 77, "failed", "made to fail"),
        (replace(RUNNING, returncode=1, byes=failed("MismatchError"), notice=True), 75, "interrupted", "durable"),
        (SILENT, 0, "finished", "never opened a Run"),
        (replace(SILENT, trains=True), None, "crashed", "no Run was opened (exit code 0)"),
        (replace(SILENT, returncode=78), 78, "failed", "must be mended first"),
        (replace(SILENT, returncode=3), None, "crashed", "exit code 3"),
        (replace(SILENT, notice=True), 75, "interrupted", "no checkpoint was ever saved"),
        (replace(RUNNING, returncode=1, without_progress=4), None, "crashed", "exit code 1"),
        (
            replace(RUNNING, returncode=1, without_progress=5), 1, "stopped-no-progress",
            "5 attempts in a row committed no checkpoint; the last one: exit code 1",
        ),
        (replace(RUNNING, returncode=1, restarts=99), None, "crashed", "exit code 1"),
        (replace(RUNNING, returncode=1, restarts=100), 1, "crashed", "stopped after 100 restarts"),
    ],
)  # fmt: skip
def test_exit_contract(facts: Facts, code: int | None, cause: str, text: str) -> None:
    decision = decide(facts, LIMITS)
    assert (decision.exit_code, decision.cause) == (code, cause)
    assert text in decision.text
    assert decision.restart == (code is None)


RANKS = replace(RUNNING, returncode=1, world_size=4)
STOPPED = (Bye("interrupted", 8, exit_code=75), Bye("interrupted", 8, exit_code=75, rank=1))
LOST = Bye("failed", 8, "ChildError", "rank 2 is silent", 1, 1, LOST_RANK)
GLOO = Bye("failed", 8, "RuntimeError", "[gloo/tcp/pair.cc:547] Connection closed by peer [::1]:40", 1)
NCCL = Bye("failed", 8, "torch.distributed.DistBackendError", "NCCL error", 1)
CAUSE = Bye("failed", 8, "ValueError", "made to fail", 1, 2)


@pytest.mark.parametrize(
    ("facts", "code", "text"),
    [
        # torchrun makes 1 of workers that leave with 75, or with 0 after its SIGTERM.
        (replace(RANKS, notice=True, byes=STOPPED), 75, "step 7 is durable"),
        # It kills a worker 30 s after that, which says nothing then.
        (replace(RANKS, notice=True, byes=STOPPED[:1]), 75, "step 7 is durable"),
        (replace(RANKS, notice=True), 75, "step 7 is durable"),
        (replace(RANKS, notice=True, returncode=-9), 75, "step 7 is durable"),
        (replace(RANKS, notice=True, byes=(STOPPED[0], LOST)), 75, "step 7 is durable"),
        # The notice was another node's, and its word did not reach the agent.
        (replace(RANKS, byes=STOPPED), 75, "step 7 is durable"),
        (replace(RANKS, byes=STOPPED[:1]), 75, "step 7 is durable"),
        # Workers fail, and those that wait for them after them, or first.
        (replace(RANKS, byes=(LOST, GLOO, NCCL, CAUSE)), None, "rank 2: ValueError: made to fail (exit code 1)"),
        (replace(RANKS, byes=(CAUSE, LOST)), None, "rank 2: ValueError: made to fail (exit code 1)"),
        (replace(RANKS, byes=(LOST,)), None, "rank 1: ChildError: rank 2 is silent (exit code 1)"),
        (replace(RANKS, byes=(GLOO,)), None, "rank 0: RuntimeError: [gloo"),
        (replace(RANKS, byes=(LOST, replace_error(CAUSE, "MismatchError"))), 14, "rank 2: MismatchError: made to fail"),
        (RANKS, None, "exit code 1"),
        (replace(RANKS, returncode=-9), None, "killed by signal 9"),
        # Rank 0 is on another node.
        (replace(FINISHED, world_size=4, leads=False, byes=(Bye("finished", 10),)), 0, "finished at step 10"),
        (
            replace(RUNNING, world_size=4, leads=False, byes=(Bye("finished", 10),)), None,
            "the ranks here are finished, and rank 0 on another node is not",
        ),
        (replace(RUNNING, world_size=4, leads=False, byes=LEFT), 1, "before step 10"),
        # The others have started together again already.
        (replace(RANKS, replaced=True), None, "the training was started again elsewhere"),
        (replace(RANKS, replaced=True, byes=(LOST,)), None, "rank 2 is silent"),
        (replace(RANKS, fenced=True), 11, "another attempt owns this run"),
    ],
)  # fmt: skip
def test_exit_contract_of_several_ranks(facts: Facts, code: int | None, text: str) -> None:
    decision = decide(facts, LIMITS)
    assert decision.exit_code == code
    assert text in decision.text


def test_word_of_the_only_rank_that_it_was_interrupted_counts_though_the_agent_heard_of_nothing() -> None:
    # torchrun was ended by somebody, and ended it.
    assert decide(replace(RUNNING, returncode=1, byes=STOPPED[:1]), LIMITS).exit_code == 75


@pytest.mark.parametrize(
    ("byes", "lost", "cause", "text"),
    [
        ((), (2,), "crashed", "rank 2 ended without a word, of a signal or by an exit of its own (exit code 1)"),
        ((LOST, GLOO), (2,), "crashed", "rank 2 ended without a word"),
        # Torchrun kills those that hang half a minute later.
        ((GLOO,), (2, 3), "crashed", "rank 2 ended without a word"),
        ((LOST, CAUSE), (3,), "failed", "rank 2: ValueError: made to fail"),
        ((LOST,), (), "failed", "rank 1: ChildError: rank 2 is silent"),
    ],
)
def test_rank_that_died_is_named_as_the_cause_and_not_what_the_others_made_of_it(
    byes: tuple[Bye, ...], lost: tuple[int, ...], cause: str, text: str
) -> None:
    decision = decide(replace(RANKS, byes=byes, lost=lost), LIMITS)
    assert (decision.exit_code, decision.cause) == (None, cause)
    assert text in decision.text


def test_end_of_the_agreement_is_what_the_end_of_a_rank_brought_about() -> None:
    leaderless = Bye("failed", 8, "StoreError", "rank 0, which leads the agreement, is lost", 1, 1, "ranks")
    assert first_failure((leaderless, CAUSE)) == CAUSE


@pytest.mark.parametrize(
    ("refused", "code", "cause"),
    [
        (Refused("ConfigError", "no such scheme", "uri"), 78, "failed"),
        (Refused("AccessError", "denied"), 77, "failed"),
        (Refused("FencedError", "replaced"), 11, "failed"),
        (Refused("StoreError", "ignores conditions", "create-only"), 74, "failed"),
        (Refused("UnbrokenError", "stopped", "stopped-no-progress"), 1, "stopped-no-progress"),
        (Refused("StoreError", "the storage is away", "unavailable"), None, "failed"),
    ],
)
@pytest.mark.parametrize("returncode", [0, 1])
def test_refusal_decides_whatever_the_command_made_of_it(
    refused: Refused, code: int | None, cause: str, returncode: int
) -> None:
    decision = decide(Facts(returncode=returncode, refused=refused, without_progress=1), LIMITS)
    assert (decision.exit_code, decision.cause) == (code, cause)


def test_first_failure_of_several_ranks_decides() -> None:
    byes = failed("MismatchError") + failed("ConfigError")
    assert decide(replace(RUNNING, returncode=1, byes=byes), LIMITS).exit_code == 14


def test_without_the_store_the_command_is_believed_and_that_is_said() -> None:
    unknown = replace(RUNNING, journal_known=False)
    assert decide(replace(unknown, byes=(Bye("finished", 10),)), LIMITS) == Decision(
        0, "finished", "training is finished and durable (the store does not answer; judged by the command alone)"
    )
    assert decide(replace(unknown, byes=LEFT), LIMITS).exit_code == 1
    assert decide(replace(unknown, notice=True), LIMITS).exit_code == 75
    assert decide(replace(unknown, returncode=3), LIMITS).restart


def test_end_that_could_not_be_followed_by_a_restart_speaks_of_none() -> None:
    alone = Limits(max_restarts=0, no_progress=5)
    assert decide(replace(RUNNING, returncode=None), alone) == Decision(1, "crashed", "the process is gone")


def test_returncodes_are_named() -> None:
    assert describe_returncode(3) == "exit code 3"
    assert describe_returncode(-15) == "killed by signal 15 (SIGTERM)"
    assert describe_returncode(-99) == "killed by signal 99"
    assert describe_returncode(None) == "the process is gone"
