"""The table of step caches, from `benchmarks/results/quality.csv`: one row a setting, 20 and 50 steps abreast.

The file has every setting; the table has those that a reader chooses between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_WARMUPS = {"20": 4, "50": 9}
"""Number of steps -> the warm-up of rows that say "short"."""
_FIRST = "first_block:threshold={},warmup_steps=0,block={}"
_TAYLOR = "taylorseer:cache_interval={},warmup_steps={},max_order={}"
_THEIR_TAYLOR = "TaylorSeerCacheConfig(cache_interval={}, disable_cache_before_step=WARMUP, max_order=1)"
_CACHE_DIT = "cache-dit DBCacheConfig(Fn=1, Bn=0, residual_diff_threshold={}, max_warmup_steps=WARMUP)"
ROWS: Mapping[str, str] = {
    "none": "uncached",
    "first_block 0.04": _FIRST.format(0.04, "noise_refiner"),
    "first_block 0.06 (default)": _FIRST.format(0.06, "noise_refiner"),
    "first_block 0.1": _FIRST.format(0.1, "noise_refiner"),
    "first_block 0.15": _FIRST.format(0.15, "noise_refiner"),
    "first_block 0.2": _FIRST.format(0.2, "noise_refiner"),
    "first_block 0.06, block=layers": _FIRST.format(0.06, "layers"),
    "first_block 0.15, block=layers": _FIRST.format(0.15, "layers"),
    **{
        f"taylorseer {interval}, order {order}, warm-up 4 / 9": _TAYLOR.format(interval, "WARMUP", order)
        for interval, order in ((2, 1), (3, 1), (4, 1), (5, 1), (3, 2), (5, 2))
    },
    "taylorseer 5, order 1, warm-up 9 (default)": _TAYLOR.format(5, 9, 1),
}
"""What the table calls a setting -> its variant in the file, with WARMUP for the number of steps' own."""
PEERS: Mapping[str, str] = {
    "diffusers, none": "uncached",
    "diffusers FirstBlockCache 0.06": "FirstBlockCacheConfig(threshold=0.06)",
    "diffusers FirstBlockCache 0.15": "FirstBlockCacheConfig(threshold=0.15)",
    "diffusers TaylorSeer 3, order 1, warm-up 4 / 9": _THEIR_TAYLOR.format(3),
    "diffusers TaylorSeer 5, order 1, warm-up 4 / 9": _THEIR_TAYLOR.format(5),
    "cache-dit 0.08, warm-up 4 / 9": _CACHE_DIT.format(0.08),
    "cache-dit 0.2, warm-up 4 / 9": _CACHE_DIT.format(0.2),
}
"""The same of diffusers and cache-dit, whose speeds are against diffusers without a cache."""


def table(lines: Sequence[Mapping[str, str]], names: Sequence[str] = (*ROWS, *PEERS)) -> str:
    """Markdown.

    Args:
        lines: Of the CSV file, by column.
        names: Settings to show, of `ROWS` and `PEERS`.

    Raises:
        ValueError: If the file lacks one of the settings.
    """
    sides = [f"{steps} steps: left out | speed | PSNR / SSIM | right" for steps in _WARMUPS]
    heading = f"| step cache | {' | '.join(sides)} |\n|---|{'---|' * 4 * len(sides)}"
    named = [(name, variant, "") for name, variant in ROWS.items() if name in names]
    named += [(name, variant, ", diffusers") for name, variant in PEERS.items() if name in names]
    rows = [
        f"| {name} | {' | '.join(_cells(lines, steps, variant, engine) for steps in _WARMUPS)} |"
        for name, variant, engine in named
    ]
    return "\n".join([heading, *rows])


def _cells(lines: Sequence[Mapping[str, str]], steps: str, variant: str, engine: str) -> str:
    wanted = variant.replace("WARMUP", str(_WARMUPS[steps]))
    case = f"{steps} steps, guidance 4{engine}"
    found = [line for line in lines if line["case"] == case and line["variant"] == wanted]
    if not found:
        raise ValueError(f'quality.csv has no "{wanted}" under "{case}"; measure it: make quality')
    line = found[0]
    near = "equal" if line["psnr_db"] == "inf" else f"{float(line['psnr_db']):.0f} / {float(line['ssim']):.3f}"
    shares = [f"{float(line[name]):.0%}".replace("%", " %") for name in ("skipped", "all_right")]
    return f"{shares[0]} | {float(line['speedup']):.2f}x | {near} | {shares[1]}"
