"""A whole run with a request's own shift, against diffusers' pipeline whose scheduler is configured to do the same."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.references.diffusers_runs import Call, Pair, relative_l2
from tests.tolerances import SAMPLED_L2


def test_latents_are_those_of_diffusers(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call(height=96, width=128, steps=8)
    plain, config = embedded.run_theirs(call).latents[-1], embedded.theirs.scheduler.config
    grown = FlowMatchEulerDiscreteScheduler.from_config(config, use_dynamic_shifting=True, shift_terminal=0.1)
    monkeypatch.setattr(embedded.theirs, "scheduler", grown)
    theirs = embedded.run_theirs(call).latents[-1]
    asked = embedded.arguments(call)
    ours = embedded.ours(**asked, dynamic_shift=True, shift_terminal=0.1, output_type="latent")
    assert relative_l2(np.asarray(ours), theirs) <= SAMPLED_L2
    assert relative_l2(plain, theirs) > 100 * SAMPLED_L2, "the shift shows"
