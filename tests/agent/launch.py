"""Runs an agent with any options: launch.py OPTIONS-AS-JSON COMMAND... The verb leaves out some that tests need."""

import json
import sys
from pathlib import Path

from unbroken.agent.options import AgentOptions
from unbroken.agent.supervisor import supervise

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    given["runtime_dir"] = Path(given["runtime_dir"])
    sys.exit(supervise(AgentOptions(**given), sys.argv[2:]))
