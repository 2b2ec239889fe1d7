"""What a save and a restore cost: Unbroken beside torch.save and boto3, on the same server in the same run.

    python benchmarks/save_restore.py --size 1GB --repetitions 5 --store s3 --out results.json

README.md beside this file says what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from results import host_facts, print_table, samples_of, summary
from servers import BUCKET, running_server

_PROCESS_SECONDS = 900.0
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_METHODS = {"s3": ["unbroken", "naive", "naive-tuned"], "folder": ["unbroken", "naive"]}


class TornError(Exception):
    """What was restored is not what was saved."""


def main() -> None:
    """Measure, print, write."""
    options = _options()
    result = measure(options)
    print_table(result)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=parse_size, default="1GB", help="of the state; tensors have 64 MiB")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--saves", type=int, default=3, help="in each repetition; at least 2")
    parser.add_argument("--store", choices=sorted(_METHODS), default="s3")
    parser.add_argument("--server", choices=["memory", "weed"], default="memory", help="which S3 server to start")
    parser.add_argument("--signed", action="store_true", help="sign the bodies of puts, on both sides")
    parser.add_argument("--folder", default="", help="where the folder store is made; the temporary folder by default")
    parser.add_argument("--out", default="", help="write every sample here, as JSON")
    options = parser.parse_args()
    if options.saves < 2 or options.repetitions < 1:
        parser.error("at least 2 saves and 1 repetition")
    return options


def parse_size(text: str) -> int:
    """Bytes: ``1GB`` is 10^9, ``1GiB`` 2^30."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write a number and MB, GB, MiB or GiB")
    return round(float(match[1]) * _UNITS[match[2].upper()])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the repetitions, each with every method in turn, so that a noisy minute falls on all of them."""
    methods = _METHODS[options.store]
    begun, before = datetime.now(UTC), host_facts()
    copies: list[dict[str, Any]] = []
    saved: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    restored: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for repetition in range(options.repetitions):
        copies.append(_run_trainer(options, {"role": "memcpy"}, {}))
        for method in methods[repetition % len(methods) :] + methods[: repetition % len(methods)]:
            print(f"repetition {repetition + 1} of {options.repetitions}: {method}", file=sys.stderr, flush=True)
            one_saved, one_restored = _save_and_restore(options, method)
            saved[method].append(one_saved)
            restored[method].append(one_restored)
    warm = statistics.median(copy["warm"] for copy in copies)
    return {
        "date": begun.isoformat(timespec="seconds"),
        "host": before,
        "setup": _setup(options, copies[0]),
        "memcpy": {
            "warm_s": round(warm, 4), "fresh_s": round(statistics.median(copy["fresh"] for copy in copies), 4),
        },
        "methods": {method: _about(saved[method], restored[method], warm) for method in methods},
    }  # fmt: skip


def _about(saved: list[dict[str, Any]], restored: list[dict[str, Any]], memcpy: float) -> dict[str, Any]:
    """One method's part of the result."""
    saves = [save for repetition in saved for save in repetition["saves"]]
    return {
        "summary": summary(samples_of(saved, restored), memcpy),
        "stored_bytes": statistics.median_low([save["stored"] for save in saves]),
        "baseline_step_s": round(statistics.median(repetition["baseline_step"] for repetition in saved), 4),
        "saves": [repetition["saves"] for repetition in saved],
        "restores": restored,
    }


def _setup(options: argparse.Namespace, facts: dict[str, Any]) -> dict[str, Any]:
    s3 = options.store == "s3"
    payload = f"plain http, bodies {'signed' if options.signed else 'not signed'} on both sides" if s3 else "fsync"
    return {
        "store": f"S3 ({options.server} server)" if s3 else "a folder",
        "payload": payload,
        "repetitions": options.repetitions,
        "saves": options.saves,
        "state_bytes": facts["bytes"],
        "torch": facts["torch"],
        "torch_threads": facts["torch_threads"],
        "boto3": boto3.__version__,
    }


def _save_and_restore(options: argparse.Namespace, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """One repetition of a method: a process that saves, another that restores, on an empty store."""
    with _empty_store(options) as (where, environment):
        plan = {"method": method, **where}
        saved = _run_trainer(options, {**plan, "role": "save", "seed": 1}, environment)
        restored = _run_trainer(options, {**plan, "role": "restore", "seed": 2}, environment)
    check_restored(method, saved.pop("digests"), restored.pop("digests"))
    return saved, restored


def check_restored(method: str, saved: list[str], restored: list[str]) -> None:
    """Compare the digests of every tensor at the save's step boundary with those after the restore.

    Raises:
        TornError: they differ: the snapshot was torn, or the wrong one was loaded.
    """
    wrong = [number for number, pair in enumerate(zip(saved, restored, strict=False)) if pair[0] != pair[1]]
    if wrong or len(saved) != len(restored) or not saved:
        raise TornError(f"{method}: {len(saved)} tensors were saved, {len(restored)} restored; differing: {wrong}")


@contextlib.contextmanager
def _empty_store(options: argparse.Namespace) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """A store that nothing was written to: where it is, and the environment that leads to it."""
    if options.store == "folder":
        with tempfile.TemporaryDirectory(prefix="unbroken-benchmark-", dir=options.folder or None) as folder:
            yield {"uri": str(Path(folder, "run")), "folder": folder}, {}
    else:
        capacity = options.size * (options.saves + 1)
        with running_server(options.server, capacity) as environment:
            unsigned = "false" if options.signed else "true"
            yield {"uri": f"s3://{BUCKET}/run", "folder": ""}, {**environment, "AWS_UNSIGNED_PAYLOAD": unsigned}


def _run_trainer(options: argparse.Namespace, plan: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Run a measured process of its own."""
    whole = {"method": "", "seed": 0, "size": options.size, "saves": options.saves, "signed": options.signed, **plan}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "UNBROKEN_"))}
    with tempfile.TemporaryDirectory(prefix="unbroken-benchmark-") as name:
        folder = Path(name)
        (folder / "plan.json").write_text(json.dumps(whole))
        with (folder / "log.txt").open("w+") as log:
            done = subprocess.run(
                [sys.executable, str(Path(__file__).with_name("trainer.py")), "plan.json", "result.json"],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=_PROCESS_SECONDS, check=False,
                env={**kept, **environment, "AWS_EC2_METADATA_DISABLED": "true"},
            )  # fmt: skip
            if done.returncode:
                log.seek(0)
                raise RuntimeError(f"{plan} ended with {done.returncode}:\n{log.read()[-5000:]}")
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


if __name__ == "__main__":
    main()
