"""The progress page: what a reader in another process sees while the loop writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from unbroken.link.progress import Progress, ProgressPage

_WRITES = 300_000
_LAST = -7

# Every field follows from the step, so a page mixed of two writes shows.
_READER = """
import json, sys
from pathlib import Path
from unbroken.link.progress import ProgressPage

page = ProgressPage(Path(sys.argv[1]))
print("ready", flush=True)
seen = mixed = vanished = backwards = newest = 0
while True:
    progress = page.read()
    if progress is None:
        vanished += newest > 0
        continue
    step = progress.step
    if step == -7:
        break
    expected = (step + 1, step + 2.0, step + 3.0, step + 4, step + 5.0)
    found = (progress.until, progress.at, progress.next_save_at, progress.next_save_step, progress.started_at)
    seen += 1
    mixed += found != expected
    backwards += step < newest
    newest = step
page.close()
print(json.dumps({"seen": seen, "mixed": mixed, "vanished": vanished, "backwards": backwards}))
"""


@pytest.fixture
def page(tmp_path: Path):
    page = ProgressPage(tmp_path / "progress", create=True)
    yield page
    page.close()


def write(page: ProgressPage, step: int) -> None:
    page.write(step, step + 1, step + 2.0, step + 3.0, step + 4, step + 5.0)


def test_another_process_never_sees_a_mixed_vanished_or_older_page(page: ProgressPage) -> None:
    reader = subprocess.Popen(
        [sys.executable, "-c", _READER, str(page.path)], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for step in range(1, _WRITES + 1):
            write(page, step)
        page.write(_LAST, 0, 0.0, 0.0, 0, 0.0)
        found = json.loads(reader.communicate(timeout=60)[0])
    finally:
        reader.kill()
        reader.wait(timeout=10)
        reader.stdout.close()
    assert found.pop("seen") > 100
    assert found == {"mixed": 0, "vanished": 0, "backwards": 0}


def test_a_fresh_page_says_nothing(page: ProgressPage) -> None:
    assert page.read() is None


def test_what_is_written_is_read(page: ProgressPage) -> None:
    page.write(7, 100, 1.5, 2.5, -1, 0.5)
    assert page.read() == Progress(7, 100, 1.5, 2.5, -1, 0.5)


def test_a_page_opened_again_keeps_what_it_said_and_newer_writes_win(page: ProgressPage) -> None:
    for step in (1, 2, 3):
        write(page, step)
    again = ProgressPage(page.path)
    before = again.read()
    write(again, 4)
    after = page.read()
    again.close()
    assert before is not None
    assert after is not None
    assert (before.step, after.step) == (3, 4)


def test_create_clears_what_an_earlier_attempt_wrote(page: ProgressPage) -> None:
    write(page, 3)
    cleared = ProgressPage(page.path, create=True)
    found = cleared.read()
    cleared.close()
    assert found is None


@pytest.mark.parametrize("torn_at", range(1, 64))
def test_a_writer_killed_in_the_middle_leaves_the_write_before_it(tmp_path: Path, torn_at: int) -> None:
    pages = [tmp_path / "before", tmp_path / "after"]
    for path, last in zip(pages, (2, 3), strict=True):
        page = ProgressPage(path, create=True)
        for step in range(1, last + 1):
            write(page, step)
        page.close()
    before, after = (path.read_bytes() for path in pages)
    start = next(at for at in range(len(before)) if before[at] != after[at]) // 64 * 64
    pages[0].write_bytes(after[: start + torn_at] + before[start + torn_at :])
    torn = ProgressPage(pages[0])
    found = torn.read()
    write(torn, 9)
    healed = torn.read()
    torn.close()
    assert found is not None
    assert found.step in (2, 3)
    assert found.at == found.step + 2.0
    assert healed is not None
    assert healed.step == 9


def test_a_reader_waits_for_a_slot_that_is_being_written(page: ProgressPage, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        write(page, step)
    sound, reads = page._map, []

    class BeingWritten:
        """The page as it looks while the slot of step 3 is copied, and then sound."""

        def __getitem__(self, part: slice) -> bytes:
            reads.append(part)
            found = sound[part]
            newest = found[:8] == (3).to_bytes(8, "little")
            return found[:-1] + b"?" if newest and len(reads) <= 4 else found

    monkeypatch.setattr(page, "_map", BeingWritten())
    found = page.read()
    monkeypatch.undo()
    assert found is not None
    assert found.step == 3
