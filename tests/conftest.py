"""What all tests share: numpy does the work, unless a test asks for machine code, which takes its time to load."""

from __future__ import annotations

import os

os.environ["ES_SERVICE_COMPILED"] = "0"
