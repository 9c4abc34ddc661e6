"""The engine with adapters against diffusers whose weights had them added, and against itself without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from max_zimage import ZImagePipeline
from max_zimage.checkpoint.adapters import Adapter, AdapterError, added
from max_zimage.compile import modules
from max_zimage.embedded import PATH
from tests.recording import RecordProperty
from tests.references.adapters import AB, Factors, factors, opened, random, spelled, state, written
from tests.references.diffusers_runs import (
    Call,
    Pair,
    load_reference,
    noise,
    packed,
    reference_features,
    reference_prediction,
    relative_l2,
)
from tests.references.engine_runs import OpenTransformer, features_of, inputs_of, request_of
from tests.references.recorded import draw
from tests.tolerances import FEATURES_L2, TRANSFORMER_L2

SCALE = 0.6
REQUEST = "one step"
CALL = Call(prompts=(12, 75), negatives=(40, 9), height=80, width=112)


@pytest.fixture(scope="module")
def pair() -> Pair:
    """One of this file's own: what is bound here is to reach no other test."""
    return Pair(ZImagePipeline.from_pretrained(PATH, device="cpu", dtype="float32"), load_reference(PATH))


def one_dimensional() -> dict[str, torch.Tensor]:
    """A difference for every bias and every norm of the transformer, by the tensor it is added to."""
    vectors = {name: values for name, values in state().items() if values.ndim == 1 or name.endswith("pad_token")}
    return {name: random(*values.shape, seed=i, size=0.05) for i, (name, values) in enumerate(vectors.items())}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """Over everything that there is in the transformer and in the text encoder."""
    tensors = spelled(factors(rank=3), "transformer.", AB, alpha=2.0)
    for name, values in one_dimensional().items():
        stem, _, member = name.rpartition(".")
        module = name if member not in ("weight", "bias") else stem
        tensors[f"transformer.{module}.{'diff_b' if member == 'bias' else 'diff'}"] = values
    encoder = factors(rank=2, seed=4, component="text_encoder")
    plain = Factors(
        *({name.removeprefix("model."): each[name] for name in each} for each in (encoder.down, encoder.up))
    )
    tensors |= spelled(plain, "text_encoder.", AB)
    return written(tmp_path_factory.mktemp("adapter") / "all.safetensors", tensors)


@torch.no_grad()
def add_to_reference(pair: Pair, scale: float) -> None:
    """The same by hand, in float64, rounded once."""
    parameters = dict(pair.theirs.transformer.named_parameters())
    changes = {f"{name}.weight": delta for name, delta in factors(rank=3).deltas(2 / 3).items()}
    changes |= {name: values.double().numpy() for name, values in one_dimensional().items()}
    assert changes.keys() == parameters.keys()
    for name, delta in changes.items():
        parameters[name].copy_(parameters[name].double() + scale * torch.from_numpy(delta))
    encoder = dict(pair.theirs.text_encoder.named_parameters())
    prefix = "" if "model.layers.0.mlp.up_proj.weight" in encoder else "model."
    for name, delta in factors(rank=2, seed=4, component="text_encoder").deltas().items():
        values = encoder[f"{name}.weight".removeprefix(prefix)]
        values.copy_(values.double() + scale * torch.from_numpy(delta))


def test_predictions_are_those_of_diffusers(pair: Pair, adapter: Adapter, record_property: RecordProperty) -> None:
    """As near as without an adapter: only the weights differ, and they are rounded once on both sides."""
    base, compiled = draw(pair.ours, REQUEST), dict(modules.counts)
    plain = features_of(pair.ours, inputs_of(pair.ours, request_of(pair, CALL)))
    for component in (pair.ours.transformer, pair.ours.text_encoder):
        component.bind([added([(adapter, SCALE)], component.names().component)])
    add_to_reference(pair, SCALE)
    positive, negative = reference_features(pair, CALL)
    ours = features_of(pair.ours, inputs_of(pair.ours, request_of(pair, CALL)))
    wanted = [item.numpy() for item in (*positive, *negative)]
    features = [relative_l2(*items) for items in zip(ours, wanted, strict=True)]
    assert min(relative_l2(*items) for items in zip(ours, plain, strict=True)) > 1e-2
    inputs = inputs_of(pair.ours, request_of(pair, CALL, (positive, negative)))
    transformer, latents, errors = OpenTransformer.of(pair.ours, inputs), noise(pair, CALL), []
    for step in (0, 3):
        found = transformer.predict(latents, step)
        timestep = float(inputs.schedule.timesteps[step])
        theirs = reference_prediction(pair, np.concatenate([latents] * 2), timestep, [*positive, *negative])
        errors += [relative_l2(*items) for items in zip(found, packed(theirs), strict=True)]
    record_property("features_l2", max(features))
    record_property("relative_l2", max(errors))
    assert max(features) <= FEATURES_L2
    assert max(errors) <= TRANSFORMER_L2
    assert relative_l2(draw(pair.ours, REQUEST).latents, base.latents) > 1e-2
    for component in (pair.ours.transformer, pair.ours.text_encoder):
        assert component.bind()
    assert draw(pair.ours, REQUEST).digests == base.digests
    assert dict(modules.counts) == compiled


def test_what_cancels_changes_no_bit(pair: Pair, adapter: Adapter) -> None:
    base, transformer = draw(pair.ours, REQUEST), pair.ours.transformer
    for adapters in ([(adapter, 0.0)], [], [(adapter, 1.0), (adapter, -1.0)]):
        assert transformer.bind([added(adapters, "transformer")]) == frozenset()
        assert draw(pair.ours, REQUEST).digests == base.digests
    changed = transformer.bind([added([(adapter, 0.25)], "transformer")])
    assert len(changed) == len(transformer.plan().recipes)
    again = draw(pair.ours, REQUEST)
    assert transformer.bind([added([(adapter, 0.5), (adapter, -0.25)], "transformer")]) == frozenset()
    assert draw(pair.ours, REQUEST).digests == again.digests != base.digests
    assert transformer.bind([added([], "transformer")]) == changed
    assert draw(pair.ours, REQUEST).digests == base.digests


def test_weights_stay_where_an_adapter_cannot_be_added(pair: Pair, tmp_path: Path) -> None:
    """That a product is infinite is seen when it is made; the weights that were there are there still."""
    base, transformer = draw(pair.ours, REQUEST), pair.ours.transformer
    parts = {"lora_A.weight": random(4, 256) * 1e30, "lora_B.weight": random(256, 4) * 1e30}
    overflowing = opened(tmp_path, "layers.0.attention.to_q", parts)
    with pytest.raises(AdapterError, match="some weights are infinite or no numbers"):
        transformer.bind([added([(overflowing, 1.0)], "transformer")])
    assert draw(pair.ours, REQUEST).digests == base.digests
    assert transformer.bind() == frozenset()
