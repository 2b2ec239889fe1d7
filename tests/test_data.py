"""``unbroken.data`` is found when it is used, and not before."""

from __future__ import annotations

import subprocess
import sys


def test_the_sampler_is_found_from_the_package_alone_and_torch_only_then():
    code = (
        "import sys, unbroken; assert 'torch' not in sys.modules; found = unbroken.data.ResumableSampler; "
        "from unbroken.data import ResumableSampler; assert found is ResumableSampler; assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
