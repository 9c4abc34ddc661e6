"""What the measurement of shared weights says of a CPU, where it can be told what is right."""

from __future__ import annotations

from pathlib import Path

import pytest
from max.driver import CPU

from benchmarks.shared_weights import findings


@pytest.mark.slow
def test_models_on_a_cpu_share_what_they_are_given(tmp_path: Path) -> None:
    found = list(findings(CPU(), tmp_path, small=True))
    assert [(each.way.name, each.shared) for each in found] == [("host", True), ("host_together", True)]
    size = found[0].weights_mib
    assert size == 64
    assert found[0].loaded_mib[1] < size / 4
    assert all(each.binding_mib < size / 4 for each in found)
    assert len(list(tmp_path.glob("*.mef"))) == 3
    again = list(findings(CPU(), tmp_path, small=True))
    assert [each.shared for each in again] == [True, True]
