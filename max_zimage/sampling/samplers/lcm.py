"""LCM: what latent consistency models are sampled with, for flow models the same as stochastic Euler.

Reference: diffusers schedulers/scheduling_flow_match_lcm.py.
"""

from __future__ import annotations

from max_zimage.sampling.samplers.euler_stochastic import plan

__all__ = ["plan"]
