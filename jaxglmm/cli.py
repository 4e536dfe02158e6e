"""The command line: `jaxglmm fit`, `predict`, `rank`, `score`, `demo` and `doctor`.

Nothing heavy is imported before a command needs it, and a mistake of the caller's is one line on standard error.
"""

import argparse
import gc
import os
import sys
import warnings


BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130  # exit statuses; 0 also for a fit with a variance at zero


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        self.exit(BAD_INPUT, f"jaxglmm: {message} (see `{self.prog} --help`)\n")


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    from jaxglmm import __version__

    top = _Parser(prog="jaxglmm", description="Generalized linear mixed models for very many groups.")
    top.add_argument("--version", action="version", version=f"jaxglmm {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    fit = commands.add_parser("fit", help="fit a model to a CSV or Parquet file", description=FIT)
    fit.add_argument("formula", metavar="FORMULA", help='in the syntax of lme4: "y ~ x + (1 | g)"')
    fit.add_argument("data", metavar="DATA", help=".csv, .csv.gz or .parquet file")
    fit.add_argument("--family", default="gaussian", help="gaussian (default), binomial, poisson, ...")
    fit.add_argument("--link", help="link function, where it is not the family's own")
    fit.add_argument("--method", default="auto", choices=("auto", "laplace", "agq", "joint"))
    fit.add_argument("--nodes", type=int, metavar="K", help="quadrature nodes per effect")
    fit.add_argument("--weights", metavar="COLUMN", help="prior weights; for proportions the numbers of trials")
    fit.add_argument("--offset", metavar="COLUMN", help="added to the linear predictor")
    fit.add_argument("--reml", action="store_true", help="restricted maximum likelihood (gaussian)")
    fit.add_argument(
        "--levels", metavar="COLUMN=A,B,C", action="append", default=[], type=levels_of,
        help="order of a column's levels, the reference first; may be repeated",
    )  # fmt: skip
    fit.add_argument(
        "--categorical", metavar="COLUMN", action="append", default=[],
        help="take the numbers of a column as labels; may be repeated",
    )  # fmt: skip
    fit.add_argument(
        "--theta", metavar="GROUP=SD", action="append", default=[], type=theta_of,
        help="hold a group's standard deviation(s) instead of estimating them: herd=0.6, subject=24,6",
    )  # fmt: skip
    fit.add_argument("--out", metavar="DIR", help="folder for fit.json, ranef.parquet and the model itself")
    fit.add_argument("--json", action="store_true", help="print the contents of fit.json, and nothing else")

    predict = commands.add_parser("predict", help="predict with a fitted model", description=PREDICT)
    predict.add_argument("model", metavar="DIR", help="folder that `jaxglmm fit --out DIR` wrote")
    predict.add_argument("data", metavar="DATA", help=".csv, .csv.gz or .parquet file")
    predict.add_argument("--kind", default="response", choices=("response", "link"))
    predict.add_argument("--effects", default="conditional", choices=("conditional", "mode", "marginal", "population"))
    predict.add_argument("--new-levels", default="integrate", choices=("integrate", "population", "error"))
    predict.add_argument(
        "--interval", type=float, metavar="L", help="level of intervals `lower`, `upper`, such as 0.95"
    )
    predict.add_argument(
        "--given-parameters", action="store_true", help="leave the parameters' uncertainty out of the intervals"
    )
    predict.add_argument("--out", metavar="FILE", help=".csv or .parquet; by default CSV on standard output")

    rank = commands.add_parser("rank", help="rank the members of a file by a fitted model", description=RANK)
    rank.add_argument("model", metavar="DIR", help="folder that `jaxglmm fit --out DIR` wrote")
    rank.add_argument("data", metavar="DATA", help=".csv, .csv.gz or .parquet file with the members' rows")
    rank.add_argument("--top", type=float, metavar="T", help="the first only: a share such as 0.1, or a number")
    rank.add_argument("--alpha", type=float, default=0.1, help="share of the members that p_top is about (0.1)")
    rank.add_argument("--order", default="rank", choices=("rank", "top", "r_value", "mean", "threshold"))
    rank.add_argument("--threshold", type=float, metavar="C", help="effect on the link scale that p_above is about")
    rank.add_argument("--term", metavar="NAME", help="effect to rank by, by default the first")
    rank.add_argument("--interval", type=float, default=0.95, metavar="L", help="level of the percentiles' intervals")
    rank.add_argument("--r-values", action="store_true", help="add the column r_value")
    rank.add_argument("--out", metavar="FILE", help=".csv or .parquet; by default CSV on standard output")

    score = commands.add_parser("score", help="posteriors of the members of a file, of any length", description=SCORE)
    score.add_argument("model", metavar="DIR", help="folder that `jaxglmm fit --out DIR` wrote")
    score.add_argument("data", metavar="DATA", help=".csv, .csv.gz or .parquet file with the members' rows")
    score.add_argument("--interval", type=float, metavar="L", help="level of posterior intervals, such as 0.95")
    score.add_argument("--out", metavar="FILE", required=True, help=".csv or .parquet")

    demo = commands.add_parser("demo", help="a real data set from the raw table to a report", description=DEMO)
    demo.add_argument("--out", metavar="DIR", default="jaxglmm-demo", help="folder of the report")

    doctor = commands.add_parser("doctor", help="what this installation is, and what ails it")
    doctor.add_argument("--json", action="store_true")
    return top


FIT = """Fits a generalized linear mixed model and prints its summary. Exit status: 0 for a fit, also where a
variance is zero; 1 where the optimiser did not converge; 2 where the input is at fault, with one line that says what
to do."""
PREDICT = """Writes the rows of DATA with a column `prediction`. "conditional" uses what is known of each group,
"mode" plugs in its conditional mode, "marginal" averages over groups in every row, "population" sets the group
effects to zero. With --interval the columns `lower` and `upper` come beside it."""
RANK = """Ranks the members of DATA by their effects, the parameters of the model frozen and each member judged by its
rows in DATA: expected rank and percentile with interval, probability of the top, r-values. The largest come first."""
SCORE = """Writes the posterior of every member in DATA given its rows there, the parameters of the model frozen. The
file may be longer than memory and a member's rows need not lie together; a run that was killed goes on where it was."""
DEMO = """Fits the bundled toenail trial by quadrature and by Laplace's approximation, ranks the patients, and writes a
report with pictures."""


def levels_of(text: str) -> tuple[str, list[str]]:
    """ "trt=placebo,drug" -> ("trt", ["placebo", "drug"]); a level with a comma is quoted as in CSV."""
    import csv

    column, equals, values = text.partition("=")
    levels = next(csv.reader([values]), [])
    if not column or not equals or len(levels) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form COLUMN=LEVEL,LEVEL,... with two levels or more")
    return column, levels


def theta_of(text: str) -> tuple[str, float | list[float]]:
    """ "herd=0.6" -> ("herd", 0.6); "subject=24,6" -> ("subject", [24.0, 6.0])."""
    group, equals, values = text.rpartition("=")
    try:
        numbers = [float(value) for value in values.split(",")]
    except ValueError:
        numbers = []
    if not group or not equals or not numbers:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form GROUP=SD or GROUP=SD,SD, with sds as numbers")
    return group, numbers[0] if len(numbers) == 1 else numbers


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        Arguments. By default those of the process, which then ends here.

    Returns
    -------
    int
        Exit status: 0 done, 1 not converged, 2 bad input, 130 interrupted.
    """
    if argv is not None:
        return _run(argv)
    gc.set_threshold(200_000, 20, 20)  # imports make a million objects that stay
    status = _run(None)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:  # nobody reads any more
        pass
    except OSError as error:
        status = _fail(f"cannot write the output: {error.strerror}; free some space, or use --out", BAD_INPUT)
    os._exit(status)  # taking JAX and pandas apart would take a fifth of a small fit's time


def _run(argv) -> int:
    options = parser().parse_args(argv)
    from jaxglmm.errors import ConvergenceError, DataError, FormulaError

    with warnings.catch_warnings():
        warnings.showwarning = _one_line
        try:
            return _COMMANDS[options.command](options)
        except BrokenPipeError:  # `| head`: the reader has what it wants
            return 0
        except (DataError, FormulaError, OSError) as error:
            return _fail(error, BAD_INPUT)
        except ConvergenceError as error:
            return _fail(error, FAILED)
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return INTERRUPTED
        except Exception as error:  # a setting that JAX refuses, a device that is not there, or a fault of ours
            return _fail(f"{type(error).__name__}: {error}", BAD_INPUT)


def _compute(options) -> int:
    """A command of `commands`, with compiled programs kept for the next one."""
    from jaxglmm import commands
    from jaxglmm.cache import kept_programs

    with kept_programs():
        return getattr(commands, options.command)(options)


def _demo(options) -> int:
    from jaxglmm.cache import kept_programs
    from jaxglmm.demo import run

    with kept_programs():
        run(options.out)
    return 0


def _doctor(options) -> int:
    from jaxglmm.doctor import main as doctor

    return doctor(json=options.json)


_COMMANDS = dict.fromkeys(("fit", "predict", "rank", "score"), _compute) | {"demo": _demo, "doctor": _doctor}


def _fail(error: BaseException | str, status: int) -> int:
    lines = (line.strip() for line in str(error).splitlines())
    print("jaxglmm:", " ".join(line for line in lines if line.strip("^")), file=sys.stderr)  # a marker needs its line
    return status


def _one_line(message, category, filename, lineno, file=None, line=None):
    print(f"jaxglmm: note: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    main()
