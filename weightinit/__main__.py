"""``python -m weightinit`` is the ``weightinit`` command."""

import sys

from weightinit.cli import main

sys.exit(main())
