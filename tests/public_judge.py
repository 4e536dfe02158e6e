"""Calls made and judged: a right result, or one of the package's own errors; everything else is a fault."""

import collections
import contextlib
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from public_calls import Call, Made, family_of
from public_tables import Recipe
from public_truth import CHECKS, Wrong, check_anova, check_fit, check_fits, check_loglik, check_path, close

import jaxglmm as jg


OURS = (jg.DataError, jg.FormulaError, jg.ConvergenceError)
OUR_WARNINGS = (jg.DataWarning, jg.ConvergenceWarning)


@contextlib.contextmanager
def terminal():
    """Whatever is written to the process's output, by other languages too, as a list of one text."""
    text, kept = [], [os.dup(1), os.dup(2)]
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        for at in (1, 2):
            os.dup2(file.fileno(), at)
        try:
            yield text
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for at, old in zip((1, 2), kept, strict=True):
                os.dup2(old, at)
                os.close(old)
            file.seek(0)
            text.append(file.read().decode(errors="replace"))


class Judge:
    """Makes calls in a folder, and keeps the counts of what came of them."""

    def __init__(self, folder: Path):
        self.folder, self.counts, self.faults, self.refusals = folder, collections.Counter(), [], []

    def judge(self, call: Call) -> list[str]:
        """The faults of a call, none as a rule."""
        before = len(self.faults)
        with terminal() as text, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if call.function == "command line":
                self._command_line(call)
            else:
                self._function(call)
        for warning in told:
            other = issubclass(warning.category, (DeprecationWarning, PendingDeprecationWarning))
            if not issubclass(warning.category, OUR_WARNINGS) and not other:
                where = f"{Path(warning.filename).name}:{warning.lineno}"
                self.faults.append(f"{warning.category.__name__} at {where}: {warning.message}")
        if text[0].strip():
            self.faults.append(f"on the terminal: {text[0].strip()[:200]}")
        return [f"{fault}\n    {call}" for fault in self.faults[before:]]

    def ask(self, name: str, function, *args, **kwargs):
        """The result, or None where the package refused."""
        try:
            found = function(*args, **kwargs)
        except OURS as error:
            self.counts[f"{name}: {type(error).__name__}"] += 1
            self.refusals.append(f"{name}: {error}")
            if not str(error).strip():
                self.faults.append(f"{name}: an empty message")
            return None
        except Wrong as wrong:
            self.faults.append(f"{name}: {wrong}")
        except Exception as error:
            self.faults.append(f"{name}: {type(error).__name__}: {str(error)[:300]} [{_place(error)}]")
        else:
            self.counts[f"{name}: answered"] += 1
            return found
        return None

    def check(self, name: str, function, *args) -> None:
        """A check of a result, in which a refusal is a fault too."""
        try:
            function(*args)
        except Wrong as wrong:
            self.faults.append(f"{name}: {wrong}")
        except Exception as error:
            self.faults.append(f"{name}, checked: {type(error).__name__}: {str(error)[:300]} [{_place(error)}]")

    # --- Functions and verbs -------------------------------------------------------------------------------

    def _function(self, call: Call) -> None:
        data, columns = call.recipe.make(self.folder), call.recipe.columns()
        given = call.given(columns)
        given["family"] = family_of(given["family"])
        found = self.ask(call.function, getattr(jg, call.function), call.formula, data, progress=False, **given)
        if found is None:
            return
        if call.function == "fit":
            self._fit(call, found, data, given)
        elif call.function == "fit_path":
            self.check("fit_path", check_path, found)
        else:
            self.check(call.function, check_fits, found)
            for i in range(min(len(found), 2)):
                self.ask("fits[i]", self._one_of, found, i)

    def _one_of(self, fits, i):
        fit = fits[i]
        if np.isfinite(fit.loglik) and fit.convergence.converged:
            close(fit.loglik, fits.loglik[i], "loglik of one fit of many", rtol=1e-5, atol=1e-5)

    def _fit(self, call, fit, data, given):
        self.check("fit", check_fit, fit)
        plain = not set(given) - {"family", "method", "n_agq", "reml", "weights", "offset"}
        if fit.convergence.converged and plain and given.get("method") != "joint":
            self.check("loglik", check_loglik, fit)
            if "weights" not in given and "offset" not in given and call.recipe.damage is None:
                self.ask("fit in another order", self._other_order, call, fit, given)
        loaded = None
        for verb, arguments in call.verbs:
            arguments = dict(arguments)
            for name in ("new", "history", "rows", "data"):
                if name in arguments and (verb, name) != ("save", "rows"):
                    arguments[name] = self._table_again(call, data, arguments[name])
            if verb == "score" and "history" not in arguments:
                arguments["history"] = data
            if verb == "update" and "rows" not in arguments:
                arguments["rows"] = data
            if verb == "save":
                loaded = self.ask("save and load", self._save, fit, arguments) or loaded
                continue
            if verb == "test":
                arguments = {"contrasts": "x"} | arguments
            for which in (fit, loaded):
                if which is not None:
                    self._verb(which, verb, arguments)

    def _verb(self, fit, verb, arguments):
        if verb == "anova":
            self.ask("anova", lambda: check_anova(jg.anova(fit, fit)))
        elif verb == "overdispersion":
            self.ask(verb, lambda: fit.overdispersion)
        elif verb in ("bootstrap", "jackknife", "cross_validate", "multistart"):
            more = {"progress": False} if verb in ("bootstrap", "jackknife") else {}
            more |= {"n": 2} if verb in ("bootstrap", "multistart") and "n" not in arguments else {}
            found = self.ask(verb, getattr(fit, verb), **{**more, **arguments})
            if found is not None:
                self.check(verb, lambda: found.table())
        else:
            found = self.ask(verb, getattr(fit, verb), **arguments)
            if found is not None and verb in CHECKS:
                self.check(verb, CHECKS[verb], fit, found, arguments)

    def _table_again(self, call, data, which):
        recipe = call.recipe
        if which == "same":
            return data
        if which == "file":
            return Recipe(recipe.rows, recipe.seed, recipe.changes, "csv", recipe.damage).make(self.folder)
        if which == "changed":
            return Recipe(24, recipe.seed, (("x", "text"), ("z", "None")), "dict").make(self.folder)
        other = Recipe(24, recipe.seed + 2, (), recipe.kind if recipe.kind != "csv.gz" else "csv")
        if which == "other":
            return other.make(self.folder)
        columns = {name: np.asarray(v) for name, v in other.columns().items()}
        if which == "new levels":
            return columns | {"g": np.array(["new"] * 24, object)}
        left = {"no group": "g", "no response": "y"}.get(which)
        return None if which is None else {name: v for name, v in columns.items() if name != left}

    def _other_order(self, call, fit, given):
        """The same rows in another order, as another kind of table."""
        recipe = call.recipe
        columns = {name: np.asarray(v) for name, v in recipe.columns().items()}
        if recipe.kind in ("csv", "csv.gz") and recipe.changes:
            return  # text of a file is read anew, so that the columns may be others
        order = np.random.default_rng(1).permutation(recipe.rows)
        other = jg.fit(call.formula, {name: v[order] for name, v in columns.items()}, progress=False, **given)
        if other.convergence.converged:
            # The ladder of nodes may end on another rung, each within its criterion of the next, 1e-3.
            most = 1e-6 * max(1.0, abs(fit.loglik)) if other.n_agq == fit.n_agq else 2e-3
            close(other.loglik, fit.loglik, "loglik in another order of rows", rtol=0, atol=most)

    def _save(self, fit, arguments):
        place = self.folder / "model"
        fit.save(place, **arguments)
        loaded = jg.load(place)
        close(loaded.loglik, fit.loglik, "loglik of a loaded model", rtol=0, atol=0)
        close(list(loaded.fixef.values()), list(fit.fixef.values()), "effects of a loaded model", rtol=0, atol=0)
        return loaded

    # --- The command line ----------------------------------------------------------------------------------

    def _command_line(self, call: Call) -> None:
        data, model = call.recipe.make(self.folder), self.folder / "written"
        formula = call.formula if isinstance(call.formula, str) else repr(call.formula)
        if not isinstance(data, str):
            return
        words = ["fit", formula, data, "--out", str(model)]
        for name, value in call.options:
            words += _words(name, value)
        status = self._run(words)
        if status != 0:
            return
        for verb, arguments in call.verbs:
            if verb in ("predict", "rank", "score"):
                words = [verb, str(model), data]
                for name, value in arguments:
                    words += _words(name, value) if name not in ("new", "data", "history", "group") else []
                self._run([*words, "--out", str(self.folder / "out.csv")])

    def _run(self, words) -> int:
        import io

        from jaxglmm.cli import main

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main([str(word) for word in words])
            except SystemExit as end:
                status = int(end.code or 0)
            except Exception as error:
                self.faults.append(f"{words[:2]}: {type(error).__name__}: {error} [{_place(error)}]")
                return 2
        self.counts[f"command {words[0]}: status {status}"] += 1
        told = [line for line in err.getvalue().splitlines() if not line.startswith(("jaxglmm: note:", "written:"))]
        if status not in (0, 1, 2) or (status and len(told) != 1) or (not status and told):
            self.faults.append(f"{words}: status {status} and {len(told)} lines: {told[:2]}")
        if any(re.match(r"jaxglmm: [A-Z]\w*(Error|Exception|Interrupt|Warning|Iteration)\b", line) for line in told):
            self.faults.append(f"{words}: {told[0][:300]}")
        return status


def _words(name, value) -> list[str]:
    elsewhere = "penalty,prior,full_rank,precision,solver,tol,max_iterations,throw"
    if value is None or isinstance(value, Made) or name in elsewhere.split(","):
        return []
    if name == "family":
        family, _, link = value.partition(" ")
        return ["--family", family] + (["--link", link] if link else [])
    if name == "theta":
        pairs = value.items() if isinstance(value, dict) else [("g", value)]
        return [w for g, v in pairs for w in ("--theta", f"{g}={','.join(map(str, np.ravel(v)))}")]
    if name == "levels":
        pairs = [(c, v) for c, v in value.items() if isinstance(v, list)]
        return [w for c, v in pairs for w in ("--levels", f"{c}={','.join(v)}")]
    if name == "uncertainty":
        return [] if value else ["--given-parameters"]
    option = "nodes" if name == "n_agq" else name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}"] if value else []
    return [f"--{option}", str(value)]


def _place(error) -> str:
    """Where of ours, and where at all, an error comes from."""
    places, trace = [], error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        places.append(f"{file.name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " > ".join(places[-4:])
