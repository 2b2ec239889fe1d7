import sys

from unbroken.agent.attached import main
from unbroken.errors import UnbrokenError

try:
    sys.exit(main())
except UnbrokenError as error:
    sys.stderr.write(f"unbroken: {error}\n")
    sys.exit(error.exit_code)
