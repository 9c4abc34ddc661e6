"""What holds for every test."""

from __future__ import annotations

import os

# Tests draw with the embedded model and with checkpoints they make: nothing is to be looked up elsewhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OTEL_SDK_DISABLED"] = "true"
