"""A job that is kept and read again is the same job."""

from __future__ import annotations

import json
from pathlib import Path

from unbroken.job import load_job, read_job, store_job, stored_job

ROOT = Path(__file__).parents[2]


def test_a_stored_job_is_the_same_job() -> None:
    text = """
name: full
run: s3://bucket/run
script: train.py --lr 3e-4
grace: 100s
resources: {memory: 1.5TB, state: 123.457GB}
pools: [{instance_type: p4d.24xlarge, zone: us-east-1a, price: 9}, {instance_type: p4d.24xlarge, market: on-demand}]
prices: {on_demand: 32.77, spot: 10.92, currency: EUR}
deadline: 60h
expected_hours: 48
steps: 100000
env: {A: "no"}
"""
    for job in (read_job(text), load_job(ROOT / "examples" / "kubernetes" / "job.yaml")):
        assert stored_job(json.loads(json.dumps(store_job(job)))) == job
