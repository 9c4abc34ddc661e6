"""The project's ops. What each computes is said by its twin in `graphs/ops.py`; the README here has the table."""

from .attention import Attention
from .convolution import Convolution
from .group_norm import GroupNorm
from .linear import GatedLinear, Linear
