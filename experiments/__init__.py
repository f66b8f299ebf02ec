"""Claims of the course and of its papers, each measured by one file. Experiments never import each other."""

import sys

from dlc import process
from dlc.errors import UserError

if sys.argv[0] == "-m":  # Python is looking for the experiment that it was started with; `launch` obeys signals later
    process.exit_at_signals()

# Before JAX is imported: malloc, the compilation cache and XLA's flags cannot be set later.
process.prepare()

try:
    import dlc.run  # noqa: F401, which checks that what runs need is installed
except UserError as error:
    sys.exit(f"error: {error}")
