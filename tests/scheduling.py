"""Which test files go to one process, and in which order: what is dear is made once, and few tests wait for the end.

`pytest -n 2 --dist loadfile` gives a process one file after the other. Here files that stand together in `TOGETHER` go
to the same process, so that the server they ask, or the module they compile, is there once. What takes longest of all
comes first, then the thousands of tests that take little, then what takes long, the longest before the others: in the
end neither process waits long for the other, and where time is over before (`tests.time_limit`), few tests are missing.
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadFileScheduling

TOGETHER: dict[str, tuple[str, ...]] = {
    # `server` of tests/conftest.py
    "one server": (
        "tests/request/test_repeat.py",
        "tests/request/test_repeat_masks.py",
        "tests/serving/test_a1111.py",
        "tests/serving/test_a1111_part.py",
        "tests/serving/test_a1111_refusals.py",
        "tests/serving/test_capabilities.py",
        "tests/serving/test_comfyui_node.py",
        "tests/serving/test_enhanced_served.py",
        "tests/serving/test_every_route.py",
        "tests/serving/test_features_served.py",
        "tests/serving/test_llm_dit.py",
        "tests/serving/test_openai_fields.py",
        "tests/serving/test_parameters_served.py",
        "tests/serving/test_served_metadata.py",
        "tests/serving/test_server.py",
        "tests/serving/test_server_life.py",
        "tests/serving/test_server_limits.py",
        "tests/serving/test_static_files.py",
    ),
    # `compiled_ops` of tests/graphs/conftest.py
    "ops of a CPU": (
        "tests/graphs/test_adapted_linear.py",
        "tests/graphs/test_attention_backends.py",
        "tests/graphs/test_convolution.py",
        "tests/graphs/test_kernels.py",
        "tests/graphs/test_normalized_attention.py",
        "tests/graphs/test_quantized.py",
        "tests/graphs/test_text_attention.py",
        "tests/graphs/test_text_ops.py",
        "tests/graphs/test_tiles.py",
        "tests/graphs/test_widened.py",
        "tests/graphs/test_widened_weights.py",
    ),
    # `served` of tests/serving/page/conftest.py, and its browser
    "the page": (
        "tests/serving/page/test_drawing.py",
        "tests/serving/page/test_editing.py",
        "tests/serving/page/test_enhancing.py",
        "tests/serving/page/test_looks.py",
        "tests/serving/page/test_masks.py",
    ),
    # `narrow` of tests/serving/conftest.py
    "bodies by chance": ("tests/serving/test_dialects_fuzz.py", "tests/serving/test_server_fuzz.py"),
}

SECONDS: dict[str, int] = {
    "one server": 1000,
    "the page": 400,
    "ops of a CPU": 300,
    "tests/pipeline/test_quantized_pictures.py": 390,
    "tests/diagnosis/test_verify.py": 360,
    "tests/graphs/test_meshed.py": 290,
    "tests/pipeline/test_step_cache_pictures.py": 290,
    "tests/pipeline/test_samplers_pictures.py": 290,
    "tests/compile/test_launches.py": 260,
    "tests/graphs/test_fused_steps.py": 185,
    "tests/compile/test_ahead_of_time.py": 180,
    "tests/profiling/test_attention_paths.py": 155,
    "tests/pipeline/test_dype_pictures.py": 150,
    "tests/pipeline/test_guidance_pictures.py": 150,
    "tests/graphs/test_vae.py": 130,
    "tests/compile/test_shared_folder.py": 125,
    "tests/compile/test_disk_fuzz.py": 125,
    "tests/diffusion_gemma/test_engine_texts.py": 120,
    "tests/serving/test_replicas.py": 110,
    "tests/compile/test_sent.py": 105,
    "tests/benchmarks/test_gpu_run_small.py": 90,
    "tests/training/test_embedded_model_command.py": 85,
    "tests/pipeline/test_parity_images.py": 80,
    "tests/serving/test_serve.py": 75,
    "tests/compile/test_cubins.py": 70,
    "tests/training/test_training.py": 70,
    "tests/batch/test_local.py": 70,
    "tests/batch/test_ray_data.py": 70,
    "bodies by chance": 55,
    "tests/enhancer/test_embedded.py": 50,
    "tests/training/test_text_model.py": 45,
    "tests/benchmarks/test_bench.py": 35,
    "tests/cli/test_cli.py": 28,
    "tests/serving/test_connections.py": 25,
}
"""Of what takes longest, in round numbers, as the end of `make test` prints it on a slow machine that has compiled
nothing yet; what is not here takes little."""

FIRST = ("one server", "the page", "ops of a CPU")
"""Longer than the end of a run may be."""


def group_of(test: str) -> str:
    """What a test is given to a process together with: its file, or files that share something."""
    file = test.partition("::")[0]
    return next((group for group, files in TOGETHER.items() if file in files), file)


def place_of(test: str) -> tuple[int, int, str]:
    """Where a test stands: its part of the run, by the seconds of its group, and tests of a group beside each other."""
    group = group_of(test)
    part = 0 if group in FIRST else 2 if group in SECONDS else 1
    return part, -SECONDS.get(group, 0), group if group in TOGETHER else ""


class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives groups of files to processes, in the order of the tests, which are sorted by `place_of` before."""

    def __init__(self, config: Any, log: Any = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
