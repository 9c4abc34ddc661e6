"""What quantized weights are compared by: pictures beside a file in Q8_0, and errors of weights, a model and a block."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import storages
from benchmarks.quality.cases import scene_prompts
from benchmarks.quality.scores import Scorer


def test_a_file_in_q8_0_stands_beside_whole_weights(tmp_path: Path) -> None:
    """Its weights are moved, take the memory of whole ones, and are scored by what is given."""
    loaders = storages.ways(tmp_path, storages.STORAGES)
    assert list(loaders) == [storages.WHOLE, storages.FILE, *storages.STORAGES]
    two = {name: loaders[name] for name in (storages.WHOLE, storages.FILE)}
    scorer = Scorer(lpips=lambda one, other: float(np.abs(one - other.astype(float)).mean()))
    whole, file = storages.drawn_by(two, scene_prompts(1), scorer)
    assert (whole.variant, file.variant) == tuple(two)
    assert (whole.psnr_db, whole.quality.lpips, whole.reference) == (float("inf"), 0, True)
    assert file.psnr_db is not None
    assert 45 < file.psnr_db < 80
    assert file.quality.lpips is not None
    assert 0 < file.quality.lpips < 1
    assert file.peak_mib == whole.peak_mib
