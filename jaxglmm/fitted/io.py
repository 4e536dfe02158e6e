"""Save and load a fit: a folder of JSON and arrays, without pickle, without training rows, replaced as a whole.

`model.json` holds the length and SHA-256 of every other file, type and shape of every array, and its own SHA-256 (of
its content without that entry, as JSON with sorted keys and no blanks).
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

import jaxglmm
from jaxglmm.arguments import path as paths, takes
from jaxglmm.design.design import Scaling
from jaxglmm.errors import DataError
from jaxglmm.fitted import folders
from jaxglmm.fitted.arrays import check_shapes, read_arrays, write_arrays
from jaxglmm.fitted.effects import Effects, Kept
from jaxglmm.fitted.fit import Fit
from jaxglmm.fitted.history import History
from jaxglmm.fitted.joint import Joint
from jaxglmm.fitted.rules import Rule
from jaxglmm.fitted.state import State, terms_of
from jaxglmm.formula.saved import spec_from_json, spec_to_json
from jaxglmm.model.families import family_from_json
from jaxglmm.ops.files import open_regular, path_of, reason, sha256
from jaxglmm.optimise.estimate import Convergence, Estimate, Posterior


FORMAT, VERSION = "jaxglmm-fit", 3
MODEL, ARRAYS = folders.OURS[:2]
_LONGEST = 1 << 30  # bytes of model.json, in which there is nothing as long as the data
_ESTIMATE = ("beta", "covariance", "boundary", "vcov_jacobian")


def save(fit: Fit, path, *, rows: bool = False) -> None:
    """Write a fit to the folder `path`.

    Without training rows, unless `rows` asks for what posteriors of groups need of them (level, fixed part of eta,
    response and weight of each row).

    The folder appears, or replaces the fit that was there, only when it is complete and on disk: a process that is
    killed leaves what was there.

    Raises
    ------
    DataError
        When something else is at `path`, another process is writing there, or it cannot be written. In a process that
        was forked from one in which JAX ran, for a fit that was never saved before.
    """
    with replacing(path) as folder:
        write_model(fit, folder, rows=rows)


def replacing(path) -> AbstractContextManager[Path]:
    """A new folder to write a fit into, which takes its place when the block ends; see `folders.replacing`."""
    return folders.replacing(path, lambda folder: (folder / MODEL).is_file() and _is_ours(folder))


@takes(path=paths)
def load(path) -> Fit:
    """Read a fit that `Fit.save` wrote; predictions are those of the saved one, bit for bit.

    Every file is compared with its digest, so that what is loaded is what was saved. Methods that need the rows of the
    fit (residuals, simulate, profiles) raise a DataError.

    Raises
    ------
    DataError
        When there is no saved fit at `path`, it is damaged, or another version wrote it.
    """
    path_of(path)
    for _ in range(10):
        folder = folders.found(path)
        seen = _identity(folder)
        try:
            return _load(folder, str(path))
        except DataError:
            if _identity(folder) == seen:  # else it was replaced meanwhile
                raise
    return _load(folders.found(path), str(path))


def _load(folder: Path, path: str) -> Fit:
    saved = _header(folder, path)
    try:
        files = saved["files"]
        with _as_saved(folder, ARRAYS, files) as raw:
            raw.seek(0)
            arrays = read_arrays(raw, saved["arrays"])
        for name in files:
            if name != ARRAYS and os.path.lexists(folder / name):  # what was taken away since is not needed
                _as_saved(folder, name, files).close()
        state = _state(saved, arrays)
        return Fit(state, kept=_kept(state, arrays))
    except MemoryError:
        raise
    except OSError as error:
        raise DataError(f"the saved fit {path!r} is damaged ({reason(error)}): save it again") from error
    except DataError as error:
        raise DataError(f"the saved fit {path!r} is damaged ({error}): save it again") from error
    except Exception as error:  # whatever else does not fit together
        raise DataError(f"the saved fit {path!r} is damaged ({type(error).__name__}): save it again") from error


def _header(folder: Path, path: str) -> dict[str, Any]:
    """What is in model.json, as it was saved."""
    try:
        saved = _parsed(folder)
    except FileNotFoundError:
        missing = "no such folder" if not folder.exists() else f"no {MODEL} of a saved fit in it"
        raise DataError(f"{path!r} is not a saved fit ({missing}): expected a folder written by Fit.save") from None
    except OSError as error:
        raise DataError(
            f"{path!r} is not a saved fit ({reason(error)}): expected a folder written by Fit.save"
        ) from error
    except DataError as error:
        raise DataError(f"the saved fit {path!r} is damaged ({error}), or save it again") from error
    if saved is None:
        raise DataError(f"{path!r} is not a saved fit ({MODEL} is not one's): expected a folder written by Fit.save")
    version = saved.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DataError(f"the saved fit {path!r} is damaged (its version is {version!r}): save it again")
    if version != VERSION:
        remedy = (
            "update jaxglmm, or save it with this version" if version > VERSION else "fit the model and save it again"
        )
        raise DataError(f"{path!r} was written in format version {version}; this one reads version {VERSION}: {remedy}")
    if saved.pop("sha256", None) != _digest(saved):
        raise DataError(f"the saved fit {path!r} is damaged ({MODEL} is not what was saved): save it again")
    return saved


def _parsed(folder: Path) -> dict[str, Any] | None:
    """The content of model.json; None where that is no fit's."""
    with open_regular(folder / MODEL) as file:
        if os.fstat(file.fileno()).st_size > _LONGEST:
            return None
        try:
            saved = json.loads(file.read().decode())
        except (ValueError, RecursionError):
            return None
    return saved if isinstance(saved, dict) and saved.get("format") == FORMAT else None


def _is_ours(folder: Path) -> bool:
    try:
        return _parsed(folder) is not None
    except (OSError, DataError):
        return False


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _digest(saved: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in saved.items() if k != "sha256"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _as_saved(folder: Path, name: str, files: Mapping[str, Any]):
    """A file of the folder, open, once its length and digest are known to be right.

    Raises
    ------
    DataError, OSError
    """
    path, told = folder / name, files[name]
    if path.is_symlink():  # within the folder a link does no harm
        path = Path(os.path.realpath(path))
        if path.parent != Path(os.path.realpath(folder)):
            raise DataError(f"{name} is a link to {str(path)!r}: put a copy of the file itself there")
    file = open_regular(path)
    if os.fstat(file.fileno()).st_size != told["bytes"] or sha256(file) != told["sha256"]:
        file.close()
        raise DataError(f"{name} is not what was saved")
    return file


def write_model(fit: Fit, folder: Path, *, rows: bool = False) -> None:
    """Write a fit's two files into an existing folder, behind what else there is to be in it; `rows` as in `save`."""
    _work_out(fit)
    state, estimate = fit.state, fit.state.estimate
    arrays = {f"estimate.{name}": getattr(estimate, name) for name in _ESTIMATE}
    arrays |= {
        f"scaling.{name}": getattr(estimate.scaling, name) for name in ("center", "scale", "z_scale", "constant")
    }
    for i, factor in enumerate(estimate.factors):
        arrays[f"estimate.factor{i}"] = factor
        arrays[f"effect_squares{i}"] = state.effect_squares[i]
    for i, posterior in enumerate(state.posteriors):
        for field in fields(posterior):
            arrays[f"posterior{i}.{field.name}"] = getattr(posterior, field.name)
        arrays |= {f"effects{i}.{name}": v for name, v in fit._effects(i).arrays().items()}
    if len(state.terms) == 1 and (rule := fit._rule()) is not None:
        arrays |= {f"rule0.{name}": v for name, v in rule.arrays().items()}
    if len(state.terms) > 1:
        arrays |= {f"joint.{name}": v for name, v in fit._joint().arrays().items()}
    if rows:
        history = fit._history("save(rows=True)")[0]
        arrays |= {f"rows.{field.name}": np.asarray(getattr(history, field.name)) for field in fields(history)}
    saved = {
        "format": FORMAT,
        "version": VERSION,
        "spec": spec_to_json(state.spec, arrays),
        "family": state.family.to_json(),
        "estimate": {
            "dispersion": estimate.dispersion,
            "loglik": estimate.loglik,
            "method": estimate.method,
            "n_agq": estimate.n_agq,
            "parameters": list(estimate.parameters),
            "penalised": estimate.penalised,
            "intercept": estimate.scaling.intercept,
            "convergence": {k: _number(v) for k, v in asdict(estimate.convergence).items()},
        },
        "n": state.n,
        "n_dropped": state.n_dropped,
        "dropped_by": state.dropped_by,
        "modelled": state.modelled,
        "native": state.native,
        "fingerprint": state.fingerprint,
        "mean_response": state.mean_response,
    }
    told = write_arrays(folder / ARRAYS, {name: values for name, values in arrays.items() if values is not None})
    files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())}
    saved |= {"arrays": told, "files": files}
    saved["sha256"] = _digest(saved)
    with open(folder / MODEL, "w", encoding="utf-8") as file:
        json.dump(saved, file, indent=1, allow_nan=False)


def _work_out(fit: Fit) -> None:
    """Have all that is saved of the groups, which takes JAX the first time only."""
    several = len(fit.state.terms) > 1
    try:
        fit.state.posteriors[:]
        for i in range(len(fit.state.terms)):
            fit._effects(i)
        if several:
            fit._joint()
        elif fit.state.terms:
            fit._rule()
    except DataError as error:
        if not jaxglmm._forked:
            raise
        raise DataError(
            "what is saved of the groups (posteriors, with the uncertainty of the parameters) is worked out when a "
            f"fit is first saved, which takes JAX, and {error}; a fit that was saved once, such as by fit.save(path) "
            "before forking, is saved again in any process"
        ) from error


def _state(saved, arrays) -> State:
    spec = spec_from_json(saved["spec"], arrays)
    terms = terms_of(spec)
    kept = dict(saved["estimate"])
    check_shapes(arrays, len(kept["parameters"]), len(spec.fixed.names), terms)
    kept["parameters"] = tuple(kept["parameters"])
    kept["convergence"] = Convergence(**{k: _unnumber(v) for k, v in kept["convergence"].items()})
    intercept = kept.pop("intercept")
    scaling = {name: arrays[f"scaling.{name}"] for name in ("center", "scale", "z_scale")}
    kept["scaling"] = Scaling(intercept=intercept, constant=arrays.get("scaling.constant"), **scaling)
    factors = tuple(arrays[f"estimate.factor{i}"] for i in range(len(terms)))
    estimate = Estimate(factors=factors, **kept, **{name: arrays.get(f"estimate.{name}") for name in _ESTIMATE})
    posteriors = tuple(
        Posterior(**{field.name: arrays.get(f"posterior{i}.{field.name}") for field in fields(Posterior)})
        for i in range(len(terms))
    )
    return State(
        spec=spec,
        family=family_from_json(saved["family"]),
        estimate=estimate,
        posteriors=posteriors,
        terms=terms,
        effect_squares=tuple(arrays[f"effect_squares{i}"] for i in range(len(terms))),
        **{
            name: saved[name]
            for name in ("n", "n_dropped", "dropped_by", "modelled", "native", "fingerprint", "mean_response")
        },
    )


def _kept(state: State, arrays) -> Kept:
    """Effects and rows that were saved."""
    effects = {}
    while f"effects{len(effects)}.how" in arrays:
        own = f"effects{len(effects)}."
        effects[len(effects)] = Effects.from_arrays(
            {k.removeprefix(own): v for k, v in arrays.items() if k.startswith(own)}
        )
    history = None
    if "rows.codes" in arrays:
        parts = {field.name: arrays[f"rows.{field.name}"] for field in fields(History)}
        history = History(**parts | {"n_groups": int(parts["n_groups"])})
    joint = None
    if len(state.terms) > 1:
        joint = Joint.from_arrays(
            state, {k.removeprefix("joint."): v for k, v in arrays.items() if k.startswith("joint.")}
        )
    rule = (
        Rule(**{field.name: arrays[f"rule0.{field.name}"] for field in fields(Rule)})
        if "rule0.points" in arrays
        else None
    )
    return Kept(effects, history, joint, rule)


def _number(value):
    """Numbers that JSON does not have become text."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _unnumber(value):
    return float(value) if value in ("inf", "-inf", "nan") else value
