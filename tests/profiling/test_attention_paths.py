"""Ways to compute attention side by side: the figures against formulas, the paths against float64."""

from __future__ import annotations

import json

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from max_zimage.profiling import attention_paths
from max_zimage.profiling.attention_paths import psnr, ssim
from tests.profiling.test_profile import Profiled, run

__all__ = ["run"]


def test_figures() -> None:
    random = np.random.default_rng(0)
    reference = random.standard_normal((12, 20)).astype(np.float32)
    found = reference + np.float32(0.1) * random.standard_normal((12, 20)).astype(np.float32)
    wanted = structural_similarity(found, reference, data_range=float(np.ptp(reference)), use_sample_covariance=False)
    assert ssim(found, reference) == pytest.approx(float(wanted), abs=1e-6)
    assert ssim(reference, reference) == pytest.approx(1)
    error = np.mean((found.astype(np.float64) - reference) ** 2)
    assert psnr(found, reference) == pytest.approx(10 * np.log10(np.ptp(reference).astype(np.float64) ** 2 / error))
    assert psnr(reference, reference) is None


def test_paths_agree(run: Profiled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every path is near to the plain one, and that one to float64; tokens that fill no block included."""
    seen = {}
    nearness = attention_paths._nearness

    def kept(name: str, results: dict[str, np.ndarray]) -> dict[str, float | None]:
        seen.update(results)
        return nearness(name, results)

    monkeypatch.setattr(attention_paths, "_nearness", kept)
    code, out, err = run(
        "--attention", "--tokens", "45", "--repeat", "2", "--dtype", "float32", "--device", "cpu", "--json"
    )
    assert code == 0, err
    facts = json.loads(out)
    rows = {row["path"]: row for row in facts["attention"]}
    assert list(rows) == ["max_zimage", "max", "plain"]
    tokens, heads, width = facts["sizes"].split()[0], facts["sizes"].split()[2], facts["sizes"].split()[-1]
    qkv = np.random.default_rng(0).standard_normal((1, int(tokens), 3 * int(heads), int(width)), np.float32)
    query, key, value = (each.transpose(1, 0, 2).astype(np.float64) for each in np.split(qkv[0], 3, axis=1))
    weights = np.exp(query @ key.transpose(0, 2, 1) * int(width) ** -0.5)
    exact = (weights / weights.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(int(tokens), -1)
    for name in rows:
        assert np.abs(seen[name] - exact).max() < 1e-5, name
        assert rows[name]["ms"] > 0
    for name in ("max_zimage", "max"):
        assert rows[name]["max_abs"] < 1e-5
        assert rows[name]["psnr_db"] is None or rows[name]["psnr_db"] > 100
        assert rows[name]["ssim"] > 0.999999
        assert rows[name]["speedup"] == pytest.approx(rows["plain"]["ms"] / rows[name]["ms"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tests", "encode"), "--attention is alone; leave --tests out"),
        (("--steps", "3"), "--steps has no meaning with --attention"),
        (("--tokens", "0"), "--tokens must be at least 1, got 0"),
    ],
)
def test_bad_input(run: Profiled, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = run("--attention", *arguments)
    assert code == 2
    assert message in err
