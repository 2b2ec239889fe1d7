"""One repetition of one method: a process that saves, another that restores, on an empty store."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from process_costs import MARK, MemoryWatch, leftovers
from servers import BUCKET, running_server, s3_client

_PROCESS_SECONDS = 1800.0
_ROOM = 1.3
"""States' worth of memory of the byte server that forgets: one whole one, and the objects beside it."""
_PASSED_OVER = re.compile(
    r"^Exception ignored in.*\n(?:Traceback.*\n)?(?:[ \t].*\n)*\S*(?:Error|Exception).*\n?", re.MULTILINE
)
_SOCKETS = Path("/tmp/ckpt_sock")
"""Where DLRover puts its sockets, in a folder of its own for each mark."""


class TornError(Exception):
    """What was restored is not what was saved."""


class MethodFailedError(Exception):
    """A measured process ended with an error. ``reason`` is its last line, but for errors that Python passed over."""

    def __init__(self, what: str, log: str) -> None:
        lines = [line for line in _PASSED_OVER.sub("", log).splitlines() if line.strip()]
        self.reason = lines[-1].strip()[:200] if lines else "no output"
        super().__init__(f"{what}:\n{log[-5000:]}")


class Repetition:
    """Runs measured processes as the options of the command say."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options

    def probe(self) -> dict[str, Any]:
        """What this machine does with such a state, without any method."""
        result, _ = self._trainer({"role": "probe", "method": ""}, {})
        return result

    def run(self, method: str, *, every: int, rows: int, device_s: float, watched: bool) -> dict[str, Any]:
        """Save and restore.

        Args:
            method: its name.
            every: steps from save to save.
            rows: of the batch.
            device_s: seconds of a forward and backward beside the cores.
            watched: sample memory; times are not to be used then.

        Returns:
            what the two processes measured; ``torn``: how the restored state differs, or ""; ``left`` behind.

        Raises:
            MethodFailedError: one of them failed.
        """
        plan = {"method": method, "every": every, "rows": rows, "device_s": device_s, "watched": watched}
        with self._empty_store() as (folder, environment):
            plan["folder"] = folder
            saved, after = self._trainer({**plan, "role": "save", "seed": 1}, environment)
            after["uploads"] = 0 if folder else _unfinished_uploads(environment)
            if method == "nothing":
                return {"saved": saved, "restored": {}, "torn": "", "left": after, "memory": _peaks(saved, {})}
            restored, _ = self._trainer({**plan, "role": "restore", "seed": 2}, environment)
        return {
            "saved": saved, "restored": restored, "left": after, "memory": _peaks(saved, restored),
            "torn": difference(saved.pop("digests"), restored.pop("digests")),
        }  # fmt: skip

    @contextlib.contextmanager
    def _empty_store(self) -> Iterator[tuple[str, dict[str, str]]]:
        """A store that nothing was written to: its folder or "", and the environment that leads to it."""
        options = self._options
        if options.store == "folder":
            with tempfile.TemporaryDirectory(prefix="unbroken-benchmark-", dir=options.folder or None) as folder:
                yield folder, {}
            return
        # Of several saves only the newest is read; but where layers are frozen it needs what the first one wrote.
        keep = options.saves + 1 if options.frozen else _ROOM
        capacity = round(options.size * keep)
        with running_server(options.server, capacity, forget=not options.frozen, far=options.far) as environment:
            yield "", {**environment, "AWS_UNSIGNED_PAYLOAD": "false" if options.signed else "true"}

    def _trainer(self, plan: dict[str, Any], environment: dict[str, str]) -> tuple[dict[str, Any], dict[str, int]]:
        """Run a measured process of its own; returns its result and what it left behind."""
        options, mark = self._options, secrets.token_hex(8)
        whole = {
            "seed": 0, "size": options.size, "saves": options.saves, "signed": options.signed, "loop": options.loop,
            "frozen": options.frozen, "folder": "", "watched": False, **plan,
        }  # fmt: skip
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "UNBROKEN_"))}
        os.sync()  # what was written before must not be on its way to the disk now
        with tempfile.TemporaryDirectory(prefix="unbroken-benchmark-") as name:
            folder, scratch = Path(name), Path(name, "tmp")
            scratch.mkdir()
            (folder / "plan.json").write_text(json.dumps(whole))
            marked = {
                **kept, **environment, MARK: mark, "TMPDIR": str(scratch), "AWS_EC2_METADATA_DISABLED": "true",
            }  # fmt: skip
            watch = MemoryWatch(mark)
            with watch if whole["watched"] else contextlib.nullcontext():
                log = _run(folder, marked)
            left = leftovers(mark, [scratch, _SOCKETS / mark])
            if log:
                raise MethodFailedError(f"{plan['method']} could not {plan['role']}", log)
            result: dict[str, Any] = json.loads((folder / "result.json").read_text())
            if whole["watched"]:
                result["peak"] = watch.peak_over(result["opened"], result["ended"]) - result.get("grew", 0)
        return result, left


def _run(folder: Path, environment: dict[str, str]) -> str:
    """Returns what a trainer said, if it failed."""
    command = [sys.executable, str(Path(__file__).with_name("trainer.py")), "plan.json", "result.json"]
    with (folder / "log.txt").open("w+") as log:
        try:
            done = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                timeout=_PROCESS_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"did not end within {_PROCESS_SECONDS:.0f} s"
        if not done.returncode:
            return ""
        log.seek(0)
        return f"{log.read()}\nended with {done.returncode}" if done.returncode < 0 else log.read() or "no output"


def _unfinished_uploads(environment: dict[str, str]) -> int:
    with contextlib.closing(s3_client(environment)) as client:
        return len(client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))


def _peaks(saved: dict[str, Any], restored: dict[str, Any]) -> dict[str, int]:
    """Bytes of memory over the state, where it was watched."""
    peaks = {"save": saved.get("peak"), "restore": restored.get("peak")}
    return {name: peak for name, peak in peaks.items() if peak is not None}


def difference(saved: list[str], restored: list[str]) -> str:
    """How the digests of every tensor at the last save's boundary differ from those after the restore; "" if not."""
    wrong = [number for number, pair in enumerate(zip(saved, restored, strict=False)) if pair[0] != pair[1]]
    if wrong or len(saved) != len(restored) or not saved:
        return f"{len(saved)} tensors were saved, {len(restored)} restored; differing: {wrong}"
    return ""
