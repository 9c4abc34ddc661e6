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
