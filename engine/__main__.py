"""Command line: ``python -m engine check|plan|run|evaluate SPEC [section.field=value ...]``.

``python -m engine report OUTPUT_DIR [OUTPUT_DIR ...]`` takes the output folders of runs instead.

Exit codes: 0 done, 1 the run failed or was stopped (Ctrl-C, SIGTERM), 2 the spec or the command line is wrong.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import get_args

import engine
from engine.errors import FusionError, PreflightError, SpecError, StoreError
from engine.spec import AlignmentSpec
from engine.spec.loading import dump_spec

VERBS = {
    "check": "check the spec and its files on this machine, print it with all defaults; loads no model",
    "plan": "read models, tokenizers and a sample of the corpus; show what the run would do and need",
    "run": "run it: score, align, fuse, train, export, report",
    "evaluate": "held-out bits per byte and tasks of the target, the sources, the export and evaluation.models",
}

REPORT_HELP = "write the page of a run from its output folder, or one page that compares several runs"

#: Values of alignment.vocabulary.
MAPPINGS = get_args(AlignmentSpec.model_fields["vocabulary"].annotation)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one verb; returns the exit code."""
    parsed = _parse(arguments)
    # A scheduler stops a run by SIGTERM; it ends as by Ctrl-C, which a script's background would have us ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack characters of a plan
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if parsed.verb == "report":
            print(engine.report(parsed.output_dirs, parsed.output))
        else:
            _carry_out(parsed, engine.load_spec(parsed.spec, parsed.overrides))
        sys.stdout.flush()
    except SpecError as error:
        print(error, file=sys.stderr)
        return 2
    except (FusionError, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # a reader such as head has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; overrides may follow a flag, where argparse alone accepts none."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if any(argument.startswith("-") for argument in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if parsed.verb == "report":
        parsed.output_dirs += rest
        return parsed
    if parsed.verb == "plan" and parsed.mappings and not parsed.compare:
        parser.error("--mappings is of --compare; add that")
    if parsed.verb == "plan" and parsed.compare and parsed.without_scoring:
        parser.error("--compare needs the models' scores; leave out --without-scoring")
    parsed.overrides += rest
    return parsed


def _mappings(text: str) -> tuple[str, ...]:
    """The mappings in ``A,B``."""
    names = tuple(text.split(","))
    for name in names:
        if name not in MAPPINGS:
            raise argparse.ArgumentTypeError(f"{name!r} is no mapping; allowed: {', '.join(MAPPINGS)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine", description="Streaming knowledge fusion.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, help_text in VERBS.items():
        command = verbs.add_parser(verb, help=help_text, description=help_text)
        command.add_argument("spec", help="path of a YAML spec")
        command.add_argument("overrides", nargs="*", metavar="section.field=value", help="overrides, the value in YAML")
        if verb == "plan":
            command.add_argument(
                "--without-scoring", action="store_true", help="load no model: no nats per byte, no mass lost"
            )
            command.add_argument(
                "--html", metavar="FILE", default="", help="path or URL of a page to write, with tokens of the sample"
            )
            command.add_argument(
                "--compare",
                action="store_true",
                help="compare fusion rules and each source alone, under bytes and byte_offset, without training",
            )
            command.add_argument(
                "--mappings",
                metavar="A,B",
                type=_mappings,
                default=(),
                help=f"with --compare: values of alignment.vocabulary ({', '.join(MAPPINGS)}); default: the spec's",
            )
    command = verbs.add_parser("report", help=REPORT_HELP, description=REPORT_HELP)
    command.add_argument("output_dirs", nargs="+", metavar="OUTPUT_DIR", help="run.output_dir of a run, path or URL")
    command.add_argument(
        "--output",
        metavar="FILE",
        default="",
        help="path or URL of the page (report-from-checkpoint.html there; comparison.html here)",
    )
    return parser


def _carry_out(parsed: argparse.Namespace, spec: engine.FusionSpec) -> None:
    # Takes a second; the libraries of the other verbs take ten to import.
    engine.check(spec, may_be_elsewhere=parsed.verb == "check", needs_ray=parsed.verb in ("run", "evaluate"))
    if parsed.verb == "check":
        print(dump_spec(spec), end="")
    elif parsed.verb == "plan":
        plan = engine.plan(spec, score=not parsed.without_scoring, mappings=parsed.mappings if parsed.compare else None)
        print(plan)
        if parsed.html:
            plan.write_page(parsed.html)
        if plan.refusals:
            raise PreflightError(plan.refusals)
    elif parsed.verb == "run":
        engine.run(spec)
    else:
        engine.evaluate(spec)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # else Python would take torch and Ray apart object by object, for one to three seconds
