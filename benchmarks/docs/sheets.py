"""The commands that draw the pictures of docs/: `benchmarks.docs.pictures` runs them and writes them into the pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

MASK_FILE = "mask.png"
"""There is one in the folder that commands run in: white where a picture of 128x128 pixels is drawn anew."""
MASK_BOX = (20, 20, 108, 108)

_STAR = '"a red star on a blue background"'
_CIRCLE = "a green circle on a black background"
_SMALL = "--height 128 --width 128"


@dataclass(frozen=True)
class Sheet:
    """Pictures beside each other.

    Attributes:
        page: Of docs/, that shows them.
        columns: Pictures in a row.
        commands: What is behind `max-zimage generate`, one picture each, in the order in which they are drawn.
        files: What is shown, row by row.
    """

    page: str
    columns: int
    commands: tuple[str, ...]
    files: tuple[str, ...]


def _sheet(page: str, columns: int, asked: Iterable[tuple[str, str]], files: tuple[str, ...] = ()) -> Sheet:
    """A sheet of (flags, name of the file); all files if it does not say which."""
    pairs = list(asked)
    commands = tuple(f"{flags} --output {name}.png" for flags, name in pairs)
    return Sheet(page, columns, commands, files or tuple(f"{name}.png" for _, name in pairs))


def _samplers() -> Iterable[tuple[str, str]]:
    common = f"{_STAR} {_SMALL} --steps 4 --guidance 2 --seed 4"
    for name in ("euler", "dpmpp_2m", "unipc", "heun", "euler_ancestral", "lcm"):
        yield f"{common} --sampler {name}", name
    for name in ("karras", "beta", "normal", "kl_optimal", "bong_tangent", "comfy_karras"):
        yield f"{common} --sigma-shape {name}", name


def _guidance() -> Iterable[tuple[str, str]]:
    common = f'"a yellow triangle on a purple background" {_SMALL} --steps 8 --seed 2'
    for name, flags in {
        "off": "--guidance 0",
        "skipped-layers": "--guidance 0 --slg",
        "guided": "--guidance 12",
        "first-half": "--guidance 12 --guidance-interval 0 0.5",
        "apg": "--guidance 12 --guidance-variant apg --apg-eta 0",
        "rescaled": "--guidance 12 --guidance-rescale 0.7",
    }.items():
        yield f"{common} {flags}", name


def _nag() -> Iterable[tuple[str, str]]:
    asked = (("a circle on a black background", "green", 1), ("a red star", "a blue background", 3))
    for index, (prompt, negative, seed) in enumerate(asked):
        common = f'"{prompt}" {_SMALL} --steps 8 --guidance 0 --seed {seed}'
        yield common, f"plain-{index + 1}"
        yield f'{common} --negative "{negative}" --nag 5', f"nag-{index + 1}"


def _inpainting() -> Iterable[tuple[str, str]]:
    circle = f'"a green circle on a blue background" {_SMALL} --steps 9 --guidance 2 --seed 2 --image star.png'
    yield f"{_STAR} {_SMALL} --steps 9 --guidance 2 --seed 4", "star"
    yield f"{circle} --mask {MASK_FILE}", "circle"
    yield f"{circle} --mask {MASK_FILE} --strength 0.6", "less-far"
    yield f"{_STAR} --steps 9 --guidance 2 --seed 2 --image star.png --outpaint 32,32,32,32", "around"


def _dype() -> Iterable[tuple[str, str]]:
    prompts = ("a red star on a blue background", _CIRCLE)
    for flags, suffix in (("", "plain"), (" --dype --dype-base-resolution 128", "dype")):
        for index, prompt in enumerate(prompts):
            yield f'"{prompt}" --height 256 --width 256 --steps 9 --guidance 2 --seed 4{flags}', f"{suffix}-{index + 1}"


def _passes() -> Iterable[tuple[str, str]]:
    for index, prompt in enumerate(("a red star on a blue background", _CIRCLE)):
        common = f'"{prompt}" {_SMALL} --guidance 2 --seed 4'
        yield f"{common} --steps 9", f"one-run-{index + 1}"
        yield f"{common} --passes 0.75x9,1.0x9:0.5", f"passes-{index + 1}"
        yield f"{common} --passes 0.75x9,1.0x9:0.5 --upscale bicubic", f"latents-{index + 1}"
        yield f"{common} --steps 9 --progressive 0.3", f"progressive-{index + 1}"


def _variations() -> Iterable[tuple[str, str]]:
    common = f'"a star" {_SMALL} --steps 8 --guidance 0'
    for seed in (1, 2, 3, 4):
        yield f"{common} --seed {seed}", f"seed-{seed}"
    for seed in (1, 2, 3, 4):
        yield f"{common} --seed {seed} --seed-variance 1", f"variance-{seed}"
    for strength in ("0.25", "0.5", "0.75", "1"):
        yield f"{common} --seed 1 --variation-seed 2 --variation-strength {strength}", f"to-seed-2-{strength}"


def _hidden() -> Iterable[tuple[str, str]]:
    common = f"{_STAR} {_SMALL} --steps 8 --guidance 2 --seed 4"
    for layer, name in (("-2", "usual"), ("-1", "last"), ("-3", "before"), ("-2:0.5,-3:0.5", "both")):
        yield f"{common} --hidden-layer {layer}", name


def _tiles() -> Iterable[tuple[str, str]]:
    common = f"{_STAR} --height 256 --width 256 --steps 8 --guidance 2 --seed 4"
    yield common, "whole"
    yield f"{common} --tiled-vae blend --tile-size 64 --tile-overlap 16", "blend"
    yield f"{common} --tiled-vae exact --tile-size 64", "exact"


SHEETS: Mapping[str, Sheet] = {
    "samplers": _sheet("samplers.md", 6, _samplers()),
    "guidance": _sheet("guidance.md", 6, _guidance()),
    "nag": _sheet("guidance.md", 4, _nag()),
    "inpainting": _sheet(
        "inpainting.md", 5, _inpainting(), ("star.png", MASK_FILE, "circle.png", "less-far.png", "around.png")
    ),
    "dype": _sheet("dype.md", 2, _dype()),
    "passes": _sheet("passes.md", 4, _passes()),
    "variations": _sheet("python.md", 4, _variations()),
    "hidden-layers": _sheet("hidden-layers.md", 4, _hidden()),
    "tiled-vae": _sheet("tiled-vae.md", 3, _tiles()),
}
"""Name of the file -> what it shows."""


def rendered(text: str, page: str) -> str:
    """A page with the commands of its sheets made anew.

    Raises:
        ValueError: If a sheet has no place in its page.
    """
    for name, sheet in SHEETS.items():
        if sheet.page != page:
            continue
        begin, end = f"<!-- commands: {name} -->\n", f"<!-- end of {name} -->\n"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"docs/{page} needs the lines {begin.strip()!r} and {end.strip()!r}")
        text = f"{before}{begin}\n```sh\n{script(sheet.commands)}```\n\n{end}{after}"
    return text


def script(commands: Sequence[str]) -> str:
    """The commands for a shell, what they have in common in a function.

    >>> print(script(['"a star" --seed 1 --nag 5', '"a star" --seed 2']), end="")
    draw() { max-zimage generate "a star" "$@"; }
    draw --seed 1 --nag 5
    draw --seed 2
    """
    columns = zip(*(command.split() for command in commands), strict=False)
    shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    while shared and shared[-1].startswith("--"):  # its values differ
        shared.pop()
    common = " ".join(shared)
    if len(commands) == 1 or not common or common.count('"') % 2:
        return "".join(f"max-zimage generate {command}\n" for command in commands)
    rest = [command.removeprefix(f"{common} ") for command in commands]
    return f'draw() {{ max-zimage generate {common} "$@"; }}\n' + "".join(f"draw {words}\n" for words in rest)
