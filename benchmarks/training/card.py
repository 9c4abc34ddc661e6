"""The model's card: what it is, what it draws, how well, and how it was made, with the numbers of one evaluation."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import product
from pathlib import Path

from safetensors import safe_open

from benchmarks.training import recipe
from benchmarks.training.evaluation import SETTINGS
from benchmarks.training.scenes import RELATIONS, held_out
from benchmarks.training.sheets import sheet_name
from benchmarks.training.tokenizer import ENTRIES
from tests.references.scenes import COLORS, SHAPES, SIZES

SHEETS = "sheets"
"""Folder of the sheets in that of the training."""
SAMPLES = "samples"
"""Folder of the sheets beside the card."""
_COMPONENTS = ("transformer", "text_encoder", "vae")

_CARD = """# tiny-zimage: the embedded model

A Z-Image checkpoint in the layout of diffusers, small enough to ship, trained from nothing on captioned pictures of
coloured shapes. The architecture is Z-Image's in every detail that an engine can get wrong: pad tokens that were
trained, because some training sizes need image padding; adaLN with tanh gates; RoPE over three axes with head dim 128;
noise and context refiners; Qwen3's hidden state -2 through its chat template; an autoencoder of 16 channels and eight
pixels a latent with scale and shift; flow matching with shift {shift:g}.

| component | shape | parameters |
|---|---|---|
| transformer | {transformer} | {transformer_parameters} |
| text encoder | {text_encoder} | {text_encoder_parameters} |
| autoencoder | {vae} | {vae_parameters} |
| tokenizer | byte-level BPE of {entries} entries, Qwen's special tokens and chat template | |

Weights are bfloat16, {megabytes:.1f} MB in all. Sizes in training: {sizes}.

## What it draws

{color_count} colours ({colors}),
{shape_count} shapes ({shapes}),
{size_count} sizes (small, none said, large); one object in the middle, or two ({relations}):

    a red star on a blue background
    a large yellow heart on black
    a picture of a small pink cross on a white background
    a cyan crescent to the left of an orange hexagon on a purple background
    a white ring above a green square, black background

{held_out} of the {combinations:,} combinations of colour, shape and ground were kept out of training. The pictures
below and the numbers are of those alone: every object in them is of a combination that training never showed.

| setting | drawn by | pictures | colours right | shapes right | ground right | all right |
|---|---|---|---|---|---|---|
{rows}

All right: besides, these objects and no other, in their places, and one object in the size that its caption says.
128x128, float32, from noise that is always the same; {machine}.
The autoencoder gives fresh scenes back at {psnr:.1f} dB.

{sheets}

## How it was made

In the project's source, `make embedded-model ARGS="train DIR"` makes one like it, from fixed seeds:

- {pictures:,} pictures, half of one object and half of two, painted by a program, as soft as through a lens.
- The autoencoder: {crops.steps:,} steps of {crops.batch} crops of 64x64, then {decoder.steps} of its decoder alone
  on {decoder.batch} whole pictures, from latents with noise; absolute, squared and slope errors and a small KL loss.
- Text encoder and transformer together: {flow.steps:,} steps of {flow.batch} pictures, flow matching, a tenth of
  the captions empty, for guidance. Nothing reaches the text encoder's last layer, whose result Z-Image does not read:
  it is as it was at the start.
- Matrices and convolutions by Muon, everything else by AdamW; learning rates that stay and then fall to nothing;
  running averages of all weights.

Nothing was taken from another model. Licence: Apache 2.0, as the project.
"""


def write_card(checkpoint: Path, results: Path, work: Path, share: float) -> None:
    """Write README.md into a checkpoint, and sheets of samples beside it.

    Args:
        checkpoint: Finished.
        results: The CSV file of its evaluation.
        work: Folder of its training, with the sheets of its evaluation.
        share: Of the recipe's pictures and steps that it was trained with.
    """
    with results.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    scored = [line for line in lines if line["all_right"]]
    (autoencoder,) = [line for line in lines if line["case"].startswith("autoencoder")]
    configs = {name: _config(checkpoint, name) for name in (*_COMPONENTS, "scheduler")}
    folder = checkpoint / SAMPLES
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    kept = [folder / sheet_name(setting.name) for setting in SETTINGS]
    for path in kept:
        shutil.copyfile(work / SHEETS / path.name, path)
    looks = [(*look, ground) for look in product(COLORS, SHAPES) for ground in COLORS if ground != look[0]]
    text = _CARD.format(
        shift=configs["scheduler"]["shift"],
        **_shapes(configs),
        **{f"{name}_parameters": f"{_parameters(checkpoint / name) / 1e6:.2f} M" for name in _COMPONENTS},
        entries=ENTRIES,
        megabytes=sum(path.stat().st_size for path in checkpoint.rglob("*.safetensors")) / 1e6,
        sizes=", ".join("x".join(map(str, size)) for size in recipe.pictures.SIZES),
        color_count=len(COLORS),
        colors=", ".join(COLORS),
        shape_count=len(SHAPES),
        shapes=", ".join(SHAPES),
        size_count=len(SIZES),
        held_out=sum(held_out(*look) for look in looks),
        combinations=len(looks),
        relations=", ".join(f'"{relation}"' for relation in RELATIONS),
        rows="\n".join(map(_row, scored)),
        machine=_machine(scored),
        psnr=float(autoencoder["psnr_db"]),
        sheets="\n\n".join(_sheet(path) for path in kept),
        pictures=sum(len(some.captions) for some in recipe.pictures.open_pictures(work / "pictures").values()),
        crops=recipe.scaled(recipe.CROPS, share),
        decoder=recipe.scaled(recipe.DECODER, share),
        flow=recipe.scaled(recipe.FLOW, share),
    )
    (checkpoint / "README.md").write_text(text, encoding="utf-8")


def _machine(scored: list[dict[str, str]]) -> str:
    """Processor, versions of what computed the numbers, and when; the autoencoder is always diffusers'."""
    first = scored[0]
    engine = [f"MAX {first['max']}"] if any(line["variant"] == "engine" for line in scored) else []
    return ", ".join([first["cpu"], f"diffusers {first['diffusers']}", *engine, first["date"]])


def _config(checkpoint: Path, component: str) -> dict[str, object]:
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    loaded: dict[str, object] = json.loads((checkpoint / component / name).read_text(encoding="utf-8"))
    return loaded


def _shapes(configs: dict[str, dict[str, object]]) -> dict[str, str]:
    model, text, vae = configs["transformer"], configs["text_encoder"], configs["vae"]
    return {
        "transformer": "dim {dim}, {n_heads} heads of 128, {n_layers} layers, {n_refiner_layers} noise and as many "
        "context refiners, cap_feat_dim {cap_feat_dim}".format(**model),
        "text_encoder": "Qwen3, hidden {hidden_size}, {num_hidden_layers} layers, {num_attention_heads} heads of "
        "{head_dim}, vocabulary {vocab_size}".format(**text),
        "vae": "AutoencoderKL, channels {block_out_channels}, {layers_per_block} layer a block, {latent_channels} "
        "latent channels".format(**vae),
    }


def _parameters(component: Path) -> int:
    count = 0
    for file in component.glob("*.safetensors"):
        with safe_open(file, "numpy") as weights:
            for name in weights.keys():  # noqa: SIM118  (not a dictionary)
                size = 1
                for side in weights.get_slice(name).get_shape():
                    size *= side
                count += size
    return count


def _sheet(path: Path) -> str:
    name = path.stem.replace("-", " ")
    return f"{name[0].upper()}{name[1:]}:\n\n![{name}]({SAMPLES}/{path.name})"


def _row(line: dict[str, str]) -> str:
    shares = [line[f"{part}_right"] for part in ("color", "shape", "background", "all")]
    count = line["sizes"].partition(", ")[2].partition(" ")[0]
    cells = [line["case"], line["variant"], count, *(f"{100 * float(share):.1f} %" for share in shares)]
    return f"| {' | '.join(cells)} |"
