"""What quantized weights are compared by: pictures beside a file in Q8_0; errors of weights, a model and a block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from benchmarks import report, storage_errors, storage_table, storages
from benchmarks.measure import Row
from benchmarks.quality.cases import scene_prompts
from benchmarks.quality.scores import Scorer
from benchmarks.storage_errors import FILES, MEMORY, WRITTEN
from max_zimage.checkpoint.derived import STORED
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.tensors import Files
from max_zimage.checkpoint.transforms import transformed
from tests.benchmarks.test_bench_report import write as write_rows
from tests.references import gguf_files
from tests.references.quantized import FORMATS, write


def test_files_stand_beside_whole_weights(tmp_path: Path) -> None:
    """Their weights are moved, and are scored by what is given; in Q8_0 they take the memory of whole ones."""
    loaders = storages.ways(tmp_path, storages.STORAGES)
    assert list(loaders) == [storages.WHOLE, storages.FILE, storages.OF_A_GPU, *storages.STORAGES]
    three = {name: loaders[name] for name in (storages.WHOLE, storages.FILE, storages.OF_A_GPU)}
    scorer = Scorer(lpips=lambda one, other: float(np.abs(one - other.astype(float)).mean()))
    whole, file, decoded = storages.drawn_by(three, scene_prompts(1), scorer)
    assert (whole.variant, file.variant, decoded.variant) == tuple(three)
    assert (whole.psnr_db, whole.quality.lpips, whole.reference) == (float("inf"), 0, True)
    assert file.psnr_db is not None
    assert 45 < file.psnr_db < 80
    assert file.quality.lpips is not None
    assert 0 < file.quality.lpips < 1
    assert file.peak_mib == whole.peak_mib
    assert decoded.psnr_db is not None
    assert 40 < decoded.psnr_db < file.psnr_db
    assert decoded.peak_mib is not None
    assert whole.peak_mib is not None
    assert decoded.peak_mib < 0.7 * whole.peak_mib


def test_errors_of_weights_are_those_of_a_survey() -> None:
    found = dict(storage_errors.weight_errors())
    assert found.keys() == {*MEMORY, *FILES}
    assert set(FILES) <= {each.name for each in STORED}
    for name, said in storage_table.SURVEY.items():
        assert found[name] == pytest.approx(float(said), rel=0.05), name
    assert found["Q8_0"] < found["int8, in memory"] < found["int8 by row"]
    assert found["q4, in memory"] == pytest.approx(found["Q4_0"], rel=0.01)


@pytest.mark.parametrize("name", sorted({*FILES} - {"bfloat16"}))
def test_decoding_is_the_loaders(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, also where the benchmark decodes a few rows at a time and the loader others."""
    monkeypatch.setattr(storage_errors, "_SLICE", 7 * 256)
    values = storage_errors.normal(40, 256, seed=3)
    tensor = "layers.0.attention.to_q.weight"
    if name in WRITTEN:
        write(FORMATS[WRITTEN[name]], {tensor: values}, tmp_path / "w")
    else:
        gguf_files.write(tmp_path / "w", {tensor: values}, GGMLQuantizationType[name])
    loaded = transformed(open_source([tmp_path / "w"]), ()).tensors[tensor].rows(0, 40, Files())
    np.testing.assert_array_equal(FILES[name](values).numpy(), loaded)


def test_errors_of_the_embedded_transformer() -> None:
    """The coarser a weight, the further the velocity; the embedded model's own files are bfloat16."""
    found = dict(storage_errors.model_errors(()))
    assert found.pop("bfloat16") == 0
    assert 1e-4 < found["Q8_0"] < found["int8 by row"] < found["fp8"] < found["Q5_0"] < found["Q4_0"] < 0.5


@pytest.mark.slow
def test_errors_of_a_small_block() -> None:
    found = dict(storage_errors.block_errors(storage_errors.QUICK.block))
    assert found.keys() == {*MEMORY, *FILES}
    assert 1e-4 < found["bfloat16"] < found["Q8_0"] < found["fp8"] < found["Q5_0"] < found["Q4_0"] < 0.5
    # Tokens are rounded, too.
    assert found["Q8_0"] < found["int8, in memory"] < found["fp8"]
    assert found["Q4_0"] / 2 < found["q4, in memory"] < 2 * found["Q4_0"]


def test_the_table_has_a_row_for_each_storage(tmp_path: Path) -> None:
    def row(case: str, name: str, error: float, note: str = "") -> Row:
        return Row(case=case, variant=name, dtype="float32", sizes="1x1", relative_l2=error, note=note)

    rows = [row(storage_table.WEIGHTS, "Q8_0", 0.00531, "5.4e-03"), row(storage_table.WEIGHTS, "q4", 0.0871)]
    rows += [row(storage_table.MODELS, "Q8_0", 0.0), row(storage_table.BLOCKS, "q4", 0.25)]
    write_rows(tmp_path, "storage_errors", rows)
    said = report.section("storage_errors", report.lines_of(tmp_path, "storage_errors"))
    assert said.splitlines()[2:5] == [
        "| --- | ---: | ---: | ---: | ---: |",
        "| Q8_0 | 5.3e-03 | 5.4e-03 | 0 |  |",
        "| q4 | 8.7e-02 |  |  | 2.5e-01 |",
    ]
