"""The transformer as an NVIDIA GPU gets it, on a CPU in float32: fused blocks, ragged attention, folded norms.

Rows of unequal captions and a padded image, against a CPU's own graphs with the same weights.
"""

from __future__ import annotations

import numpy as np
import pytest
from max.driver import CPU, Buffer
from max.engine import Model

from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import download, upload
from max_zimage.pipeline.batch import Captions, caption_arguments
from max_zimage.pipeline.items import Items, make_items
from max_zimage.pipeline.step_inputs import euler_step_inputs
from max_zimage.sampling.positions import sequence_offsets
from tests.references.diffusers_runs import Pair, relative_l2
from tests.references.fused_steps import compile_fused
from tests.references.meshes import FUSED, PLAIN, Case, Variant, arguments, compiled_fused, run
from tests.tolerances import MESHED_L2, TRANSFORMER_L2

LENGTHS = (20, 50)
"""Tokens of the captions: rows of 32 and of 64."""
ROWS, COLUMNS = 3, 7  # 21 image tokens, padded to 32


@pytest.fixture(scope="module")
def plain(embedded: Pair) -> ZImageTransformerModel:
    return embedded.ours.transformer


@pytest.fixture(scope="module")
def fused(plain: ZImageTransformerModel) -> dict[str, Model]:
    return compile_fused(plain)


@pytest.fixture(scope="module")
def items(plain: ZImageTransformerModel) -> Items:
    return make_items(plain.rope_spec, ROWS, COLUMNS, LENGTHS, 2, CPU())


def numbers(*shape: int, seed: int = 0) -> Buffer:
    return upload(np.random.default_rng(seed).standard_normal(shape, np.float32), CPU())


def distance(ours: Buffer, theirs: Buffer, item: int | None = None) -> float:
    a, b = (download(each) if item is None else download(each)[item] for each in (ours, theirs))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_captions(fused: dict[str, Model], plain: ZImageTransformerModel) -> None:
    captions = Captions(tokens=tuple(np.arange(n) for n in LENGTHS), features=(), rows=(0, 1))
    features = numbers(2, 64, plain.spec.caption_dim)
    inputs = features, *caption_arguments(plain.rope_spec, captions, CPU())
    ours, theirs = fused["conditioning"].execute(*inputs)[0], plain.conditioning(*inputs)[0]
    assert distance(ours, theirs, 1) < TRANSFORMER_L2
    assert distance(ours[:1, :32, :], theirs[:1, :32, :]) < TRANSFORMER_L2  # rows beyond are the batch's padding
    assert np.isfinite(download(ours)).all()


def tables(fused: dict[str, Model], plain: ZImageTransformerModel) -> tuple[list[Buffer], list[Buffer]]:
    timesteps = upload(np.array([0.1, 0.7], np.float32), CPU())
    kept = upload(np.ones((1, plain.spec.num_blocks), np.float32), CPU())
    return list(fused["modulation"].execute(timesteps, kept)), plain.modulation(timesteps, kept)


def test_the_norms_are_in_the_table(fused: dict[str, Model], plain: ZImageTransformerModel) -> None:
    ours, theirs = tables(fused, plain)
    assert np.array_equal(download(ours[1]), download(theirs[1]))
    ratio = download(ours[0]) / download(theirs[0])
    np.testing.assert_allclose(ratio[0], ratio[1], rtol=1e-5)  # the norms' weights, whatever the timestep
    assert np.std(ratio[0]) > 0.01


def step_inputs(table: list[Buffer], items: Items, plain: ZImageTransformerModel) -> list[Buffer]:
    latents = numbers(2, ROWS * COLUMNS, plain.spec.patch_dim, seed=2)
    rows = upload(download(table[0])[1], CPU()), upload(download(table[1])[1], CPU())
    captions = numbers(2, 64, plain.spec.dim, seed=1)
    made = euler_step_inputs(items, captions, latents, *rows, guidance_scale=1.5, cfg_normalization=0.9, delta=-0.1)
    return [*made.arguments]


def test_a_step(fused: dict[str, Model], plain: ZImageTransformerModel, items: Items) -> None:
    ours, theirs = (step_inputs(table, items, plain) for table in tables(fused, plain))
    results = zip(fused["denoise"].execute(*ours), plain.model(*theirs), strict=True)
    for place, (mine, right) in enumerate(results):
        assert place == 1 or distance(mine, right) < TRANSFORMER_L2  # Euler has no history


@pytest.mark.slow
def test_weights_in_eight_bits(plain: ZImageTransformerModel, items: Items) -> None:
    """Widened in front of each product they make what decoded ones make, and not what whole ones do."""
    narrow, decoded = compile_fused(plain, in_eight_bits=True), compile_fused(plain, decoded=True)
    inputs = step_inputs(tables(decoded, plain)[0], items, plain)
    ours, theirs = narrow["denoise"].execute(*inputs), decoded["denoise"].execute(*inputs)
    for place in (0, 2, 3):
        assert distance(ours[place], theirs[place]) < TRANSFORMER_L2
    assert distance(ours[3], plain.model(*step_inputs(tables(decoded, plain)[1], items, plain))[3]) > 1e-3


def test_padding_that_is_attended_is_seen(fused: dict[str, Model], plain: ZImageTransformerModel, items: Items) -> None:
    """The comparison above can fail: with a row as one sequence the shorter item's velocity is another."""
    inputs = step_inputs(tables(fused, plain)[0], items, plain)
    right = fused["denoise"].execute(*inputs)[3]
    inputs[5] = upload(sequence_offsets([96, 96], 96), CPU())
    wrong = fused["denoise"].execute(*inputs)[3]
    assert distance(wrong, right, 0) > 1e-3
    assert distance(wrong, right, 1) < TRANSFORMER_L2


@pytest.mark.parametrize(
    ("lengths", "row", "offsets"),
    [
        ((64,), 64, (0, 64)),
        ((64, 64), 64, (0, 64, 128)),
        ((32,), 64, (0, 32, 64)),
        ((64, 96), 96, (0, 64, 96, 192)),
        ((96, 64), 96, (0, 96, 160, 192)),
        ((1, 2, 3), 3, (0, 1, 3, 5, 6, 9)),
    ],
)
def test_offsets(lengths: tuple[int, ...], row: int, offsets: tuple[int, ...]) -> None:
    made = sequence_offsets(lengths, row)
    assert (made.dtype, tuple(made.tolist())) == (np.uint32, offsets)
    assert max(np.diff(made.astype(int))) <= row


@pytest.mark.parametrize("lengths", [(0,), (65,), (64, -1)])
def test_rows_that_do_not_fit(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"rows of 64 tokens hold 1 to 64, got \["):
        sequence_offsets(lengths, 64)


MESHES = [Variant(3, 1, False), Variant(3, 1, True), Variant(2, 2, False), Variant(4, 2, True)]
CASES = {
    "two pictures": Case(image_tokens=36, captions=(40, 60), batch=2, guidance=0.0),
    "guided, unequal": Case(image_tokens=35, captions=(70, 9), batch=1, guidance=4.0),
    "three rows": Case(image_tokens=36, captions=(12, 75, 40), batch=3, guidance=0.0),
}


@pytest.fixture(scope="module")
def meshed() -> dict[str, Model]:
    return compiled_fused(MESHES)


@pytest.mark.slow
@pytest.mark.parametrize("variant", MESHES, ids=lambda variant: variant.name)
@pytest.mark.parametrize("name", CASES, ids=lambda name: name.replace(" ", "_").replace(",", ""))
def test_several_devices(variant: Variant, name: str, meshed: dict[str, Model]) -> None:
    """Beside the fused step of one device, with the table's rows read as it reads them; attention is a CPU's.

    Rows of unequal length are for the graphs that tell them apart.
    """
    case = CASES[name]
    if not (case.is_full or variant.is_padded):
        pytest.skip("a graph for rows of equal length")
    given = arguments(case, spec=FUSED)
    ours, plain = run(meshed[variant.name], given), run(meshed[PLAIN], given)
    for key in plain:
        for pair in zip(ours[key], plain[key], strict=True):
            assert relative_l2(*pair) <= MESHED_L2


@pytest.mark.slow
def test_several_devices_with_padding_that_is_attended(meshed: dict[str, Model]) -> None:
    """The comparison above can fail."""
    given = arguments(CASES["guided, unequal"], spec=FUSED)
    right = run(meshed[PLAIN], given)["velocity"]
    wrong = run(meshed[Variant(3, 1, False).name], given)["velocity"]
    assert relative_l2(wrong[1], right[1]) > 1e-3
    assert relative_l2(wrong[0], right[0]) <= MESHED_L2
