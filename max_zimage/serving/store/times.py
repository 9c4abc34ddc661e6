"""How often replicas look at what they share, and how long they wait for each other; in seconds."""

from __future__ import annotations

TICK = 1.0
"""Between two looks at requests that are on their way."""

BEAT = 5.0
"""After which a request is written down again though nothing has changed."""

LOST = 30.0
"""Without that, and its replica is gone; as far as clocks of replicas may differ."""

ASK = 0.2
"""Between two looks whether a replica has obeyed."""

ASKS = 25
"""How many of those looks."""
