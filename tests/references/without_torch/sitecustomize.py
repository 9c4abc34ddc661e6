"""What Python imports by itself at its start: processes that have this folder on PYTHONPATH find no PyTorch.

max_zimage does not depend on it. Where it is installed, as for the tests, MAX's tokenizers import it by way of
transformers, in a server's process and in its worker's: half of the seconds of their start.
"""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]  # which import takes for a module that is not there
