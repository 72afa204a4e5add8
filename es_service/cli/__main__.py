"""`python -m es_service.cli`: the command, where its script is not on the path."""

import sys

from es_service.cli import main

sys.exit(main())
