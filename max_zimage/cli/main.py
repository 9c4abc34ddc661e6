"""The command `max-zimage`: what can be asked for, and how its errors are told.

Exit codes: 0 done, 1 failed, 2 something wrong with what was asked for, 130 interrupted. The commands themselves are in
the modules of their names; nothing heavy is imported before the arguments are known to be right.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from max_zimage.cli.command_flags import (
    DTYPES,
    add_attention,
    add_batch,
    add_cache,
    add_completion,
    add_config,
    add_configuration,
    add_convert,
    add_doctor,
    add_encode,
    add_enhancing,
    add_model,
    add_others,
    add_profile,
    add_saving,
    add_serve,
    add_verify,
    add_write,
)
from max_zimage.cli.commands import run as _run
from max_zimage.cli.commands import show
from max_zimage.cli.common import DEFAULT_PROMPT, QUANTIZE_HELP, at_least_one
from max_zimage.cli.completion import script
from max_zimage.cli.errors import BadInput, check_texts, error_line
from max_zimage.cli.examples import add_examples
from max_zimage.cli.field_flags import add_flag, add_group, with_values
from max_zimage.cli.given import command_of, given_by, split
from max_zimage.cli.parser import Parser
from max_zimage.cli.unknown import said
from max_zimage.host.lifeline import end_with_named_parent
from max_zimage.host.without_torch import leave_out, leave_out_if_told
from max_zimage.version import __version__

# A server's worker imports this module long before it is told what it is, and before MAX.
end_with_named_parent()
leave_out_if_told()


def start() -> int:
    """Run the command line in a process that is there for it.

    Returns:
        The exit code.
    """
    if sys.argv[1:2] != ["verify"]:  # which looks for it
        leave_out()
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code.

    Raises:
        SystemExit: From argparse, after --help and --version (0) and for arguments that cannot be parsed (2).
    """
    words, shown = split(with_values(sys.argv[1:] if argv is None else argv))
    parser = _parser()
    arguments, others = parser.parse_known_args(words)
    if others:
        command = parser if arguments.command is None else command_of(parser, arguments.command)
        command.error(said(others, command))
    if arguments.verbose and not arguments.version:
        parser.error("--verbose goes with --version, or behind a command; give both, or leave it out")
    if arguments.version:
        return _version(verbose=arguments.verbose)
    if arguments.command is None:
        parser.print_help()
        return 0
    try:
        check_texts(arguments)
        if arguments.command == "completion":
            print(script(parser, arguments.shell))
            return 0
        if arguments.command == "config":
            return show(arguments, shown, _parser)
        if arguments.command == "serve":
            arguments.words = tuple(words)  # replicas read them again
        if hasattr(arguments, "config"):
            from max_zimage.cli.configuring import configure

            configure(arguments, given_by(_parser(), words), command_of(parser, "serve"))
        return _run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("max-zimage: interrupted\n")
        sys.stderr.flush()
        # The usual way out waits for threads that compile, which can take minutes and cannot be stopped.
        os._exit(130)
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        print(error_line(error), file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1


def _version(*, verbose: bool) -> int:
    print(f"max-zimage {__version__}")
    if verbose:
        from max_zimage.diagnosis.system import REFERENCE, machine, versions

        for name, found in (versions(*REFERENCE) | machine()).items():
            print(f"{name}: {'not installed' if found is None else found}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="max-zimage", description="Pictures from prompts with Z-Image, compiled by Modular MAX.")
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parser.add_argument("--verbose", action="store_true", help="with --version: of all that computes, and the machine")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    shared = Parser(add_help=False, allow_abbrev=False)
    shared.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    help = "show tracebacks, warnings and the libraries' logs"
    shared.add_argument("--debug", "--verbose", "-v", action="store_true", help=help)
    _add_generate(commands, shared)
    add_batch(commands, shared)
    add_encode(commands, shared)
    add_write(commands, shared)
    _add_info(commands, shared)
    _add_compile(commands, shared)
    add_convert(commands, shared)
    add_profile(commands, shared)
    add_doctor(commands, shared)
    add_verify(commands, shared)
    add_serve(commands)
    add_config(commands, shared)
    add_completion(commands)
    add_examples(commands)
    return parser


def _add_generate(commands: argparse._SubParsersAction[Parser], shared: Parser) -> None:
    parser = commands.add_parser(
        "generate",
        parents=[shared],
        allow_abbrev=False,
        help="draw pictures",
        description="Draw pictures. What is not given comes from --from, or else from the checkpoint's defaults.",
    )
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help=f'what to show; "{DEFAULT_PROMPT}" if not given')
    parser.add_argument("--from", dest="source", metavar="PICTURE", help="repeat a picture from the parameters in it")
    parser.add_argument("--output", metavar="FILE", help=".png, .jpg or .webp; zimage-SEED.png if not given")
    alone = "save pixels alone: no prompt, no parameters, and not that a model made them"
    parser.add_argument("--no-metadata", action="store_true", help=alone)
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")
    picture = add_group(parser, "the picture")
    picture.add_argument("--count", type=at_least_one, metavar="N", default=1, help="pictures, with seeds N, N+1, ...")
    add_enhancing(parser)
    add_group(parser, "image-to-image")
    add_group(parser, "passes")
    add_group(parser, "guidance")
    tuning = add_group(parser, "fine tuning")
    tuning.add_argument("--templates-dir", metavar="DIR", help="templates of your own, before the shipped ones")
    tuning.add_argument("--latents-out", metavar="FILE", help="save the latents, as .npy, in place of a picture")
    add_saving(parser)
    add_cache(tuning, None)
    add_model(parser)
    add_others(parser)


def _add_info(commands: argparse._SubParsersAction[Parser], shared: Parser) -> None:
    parser = commands.add_parser(
        "info",
        parents=[shared],
        allow_abbrev=False,
        help="versions, devices, a checkpoint and the memory it needs",
        description="Versions, devices, a checkpoint and the memory it needs. No weight is read unless asked for.",
    )
    for name in ("height", "width"):
        add_flag(parser, name, help="of the picture that memory is estimated for")
    parser.add_argument(
        "--check-weights",
        action="store_true",
        help="read all weights; name tensors with NaN, infinity or overflow",
    )
    parser.add_argument(
        "--memory",
        nargs="*",
        metavar="SIZE",
        help="where components would go on GPUs of these sizes, such as 16GiB; of 24 to 4 GiB if none is named. Of the "
        "published models if --model is not given; what --quantize has in 4 bits is on the CPU",
    )
    parser.add_argument("--templates", action="store_true", help="list the prompt templates, and nothing else")
    parser.add_argument("--templates-dir", metavar="DIR", help="templates of your own, before the shipped ones")
    add_model(parser)
    add_others(parser)


def _add_compile(commands: argparse._SubParsersAction[Parser], shared: Parser) -> None:
    parser = commands.add_parser(
        "compile",
        parents=[shared],
        allow_abbrev=False,
        help="compile every graph for a target, which need not be there",
        description="Compile every graph for a target. A GPU need not be there, and no weights are read.",
    )
    parser.add_argument("--target", required=True, help="cpu, cuda:sm_90a, cuda:sm_100a or hip:gfx942")
    help = "a checkpoint whose shapes are compiled; those of Z-Image if not given"
    parser.add_argument("--model", "--model-path", metavar="MODEL", help=help)
    parser.add_argument("--dtype", "--torch-dtype", choices=DTYPES, default="auto")
    add_attention(parser)
    parser.add_argument("--quantize", metavar="WHAT", help=QUANTIZE_HELP)
    parser.add_argument("--graphs", nargs="+", default=[], metavar="NAME", help="some of the graphs only")
    count = "GPUs only: that the transformer runs on together; its graphs for several are compiled, too"
    parser.add_argument("--device-count", type=int, default=1, metavar="N", help=count)
    split = "with --device-count: what the devices share; if not given, what they do when the model draws"
    parser.add_argument("--split", choices=("tokens", "branches"), help=split)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--keep", action="store_true", help="GPUs only: keep the graphs in MAX_ZIMAGE_CACHE")
    instead.add_argument("--list-kernels", action="store_true", help="GPUs only: list the launches, compile nothing")
    symbols = "CUDA only, with --list-kernels: compile all the same, and add the kernels of the machine code"
    parser.add_argument("--symbols", action="store_true", help=symbols)
    add_configuration(parser)
    add_others(parser)
