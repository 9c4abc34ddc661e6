"""What the command line says of itself: help, examples, versions, and completion in a shell."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from max_zimage.cli.completion import SHELLS, script
from max_zimage.cli.examples import EXAMPLES
from max_zimage.cli.given import split
from max_zimage.cli.main import _parser, main
from max_zimage.cli.unknown import ELSEWHERE
from max_zimage.version import __version__


def commands() -> dict[str, argparse.ArgumentParser]:
    found = next(action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def test_alone_it_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: max-zimage")
    assert all(re.search(rf"^    {name}\b", said, re.MULTILINE) for name in commands())


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"max-zimage {__version__}\n"
    assert main(["--version", "--verbose"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"modular: {version('modular')}" in said
    assert any(line.startswith("processor: ") for line in said)
    for words in (["--verbose"], ["--verbose", "info"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
    assert main(["--version", "info"]) == 0
    assert capsys.readouterr().out == f"max-zimage {__version__}\n"


def test_every_help_ends_with_examples() -> None:
    assert set(EXAMPLES) == set(commands())
    for name, parser in commands().items():
        below = parser.format_help().partition("\nexamples:\n")[2]
        assert below.splitlines() == [f"  {line}" for line in EXAMPLES[name]]


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_examples_can_be_parsed(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0])
    assert words[0] == "max-zimage"
    own, shown = split(words[1:])  # of `config show`, which has the words of another command behind it
    assert _parser().parse_args(own).command == words[1]
    assert not shown or _parser().parse_args(shown).command == shown[0]


def completed(folder: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    (folder / "script").write_text(script(_parser(), "bash"))
    given = " ".join(map(shlex.quote, words))
    program = (
        f"source ./script; COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; "
        'name=$(complete -p max-zimage | sed "s/.*-F \\([^ ]*\\).*/\\1/"); "$name"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_flags_words_and_files(tmp_path: Path) -> None:
    (tmp_path / "picture.png").touch()
    (tmp_path / "model").mkdir()
    assert completed(tmp_path, "max-zimage", "ver") == ["verify"]
    assert "--sampler" in completed(tmp_path, "max-zimage", "generate", "--sa")
    assert set(completed(tmp_path, "max-zimage", "generate", "--sampler", "dpm")) >= {"dpmpp_2m"}
    assert completed(tmp_path, "max-zimage", "generate", "--device", "c") == ["cpu"]
    assert completed(tmp_path, "max-zimage", "compile", "--target", "hip") == ["hip:gfx942"]
    assert completed(tmp_path, "max-zimage", "generate", "--from", "pic") == ["picture.png"]
    assert completed(tmp_path, "max-zimage", "generate", "--model", "mo") == ["model"]
    assert completed(tmp_path, "max-zimage", "completion", "z") == ["zsh"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert all(f"{word}" in said for word in ("max-zimage", "verify", "sampler", "dpmpp_2m"))
    if (program := shutil.which(shell)) and shell in ("bash", "zsh"):
        assert subprocess.run([program, "-n"], input=said, text=True, capture_output=True).stderr == ""


ASKED = {
    "another program's": ("generate x --cfg 2", "--cfg is not known; here it is --guidance (the CFG scale - 1, so"),
    "with its value": ("generate x --denoise=0.5", "--denoise is not known; here it is --strength (with --image) (see"),
    "several": (
        "generate x --sampler_name euler --lowvram",
        "--sampler_name is not known; here it is --sampler; --lowvram is not known; here it is --placement sequential",
    ),
    "of another command": ("serve --listen 0.0.0.0", "--listen is not known; here it is --host (see max-zimage serve"),
    "not of this command": ("info --cfg 2", "--cfg is not known (see max-zimage info --help)"),
    "a slip": ("generate x --seeed 3", "--seeed is not known; did you mean --seed? (see max-zimage generate --help)"),
    "underscores": ("generate x --sigma_shape karras", "--sigma_shape is not known; did you mean --sigma-shape?"),
    "nothing like it": ("generate x --zzz", "error: --zzz is not known (see"),
    "no quotes": ("generate a red star", "red star is not understood; put a prompt of several words in quotes (see"),
    "no command": ("--foo", "error: --foo is not known (see max-zimage --help)"),
}


@pytest.mark.parametrize(("line", "said"), ASKED.values(), ids=ASKED)
def test_a_flag_that_is_not_known_has_its_name_here(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_names_of_other_programs_lead_to_flags_that_there_are() -> None:
    parsers = commands()
    flags = {flag for parser in parsers.values() for action in parser._actions for flag in action.option_strings}
    assert not set(parsers["generate"]._option_string_actions) & set(ELSEWHERE)
    for told in ELSEWHERE.values():
        assert set(re.findall(r"--[a-z-]+", told)) <= flags, told
