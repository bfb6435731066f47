"""python -m caa.cli: the `caa` command."""

import sys

from caa.cli import main

sys.exit(main())
