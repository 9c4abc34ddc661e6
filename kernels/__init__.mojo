"""The project's ops. What each computes is said by its twin in `graphs/ops.py` or `graphs/gpu_ops.py`; the README here has
the table."""

from .attention import Attention
from .convolution import Convolution
from .gpu_gated import SwiGLU
from .gpu_group_moments import GroupMoments
from .gpu_group_norm import GroupNormApplied
from .gpu_heads import RotaryHeads
from .gpu_norms import GatedNorms, ScaledNorm
from .gpu_wide_attention import WideAttention
from .group_norm import GroupNorm
from .linear import GatedLinear, Linear
from .quantized import QuantizedLinear
