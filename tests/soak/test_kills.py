"""Trainers and agents that are killed at seeded random moments of real trainings.

``UNBROKEN_KILL_TRIALS=200 pytest tests/soak`` makes more trials than the dozen of a usual run, and
``UNBROKEN_KILL_SEED=17`` begins with that seed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pytest
from trials import HERE, Trial, make_plan

DOZEN = 12
FEW, MANY = 3, 8
"""Kills in a trial of the first dozen, and of the others."""
LAST = 400
FIRST_SEED = int(os.environ.get("UNBROKEN_KILL_SEED", "0"))
TRIALS = int(os.environ.get("UNBROKEN_KILL_TRIALS", DOZEN if not FIRST_SEED else 1))


@pytest.fixture(scope="session")
def truth() -> list[dict[str, str]]:
    """The digests of the state after each step of a training that nobody interrupts."""
    command = [sys.executable, str(HERE / "small_training.py"), str(LAST)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120, env=environment).stdout)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + TRIALS))
def test_killed_training_resumes_from_the_right_step_and_ends_with_the_right_bits(
    seed: int, truth: list[dict[str, str]], request: pytest.FixtureRequest
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ub-kill-"))  # tmp_path may be too long for a socket
    uri, slow = str(folder / "run"), seed % 6 == 5
    if slow:
        server: Any = request.getfixturevalue("s3_environment")
        uri = f"s3://{server.bucket}/{uuid.uuid4().hex}/run"
    trial = Trial(make_plan(seed, folder, uri, slow=slow, most=FEW if seed < DOZEN else MANY), truth)
    try:
        trial.run()
    except AssertionError as error:
        error.add_note(f"repeat: UNBROKEN_KILL_SEED={seed} pytest tests/soak\n{trial.report()}")
        raise
    finally:
        trial.close()
        shutil.rmtree(folder)
