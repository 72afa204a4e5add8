"""What all tests share: numpy does the work unless ES_SERVICE_COMPILED=1 is set: machine code takes time to load."""

from __future__ import annotations

import os

os.environ.setdefault("ES_SERVICE_COMPILED", "0")
