"""Save and load a fit: a folder of JSON and arrays, without pickle, without training rows, replaced as a whole."""

import contextlib
import json
import math
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.fitted.effects import Effects, Kept
from jaxglmm.fitted.fit import Fit
from jaxglmm.fitted.history import History
from jaxglmm.fitted.joint import Joint
from jaxglmm.fitted.state import State, terms_of
from jaxglmm.formula.spec import ModelSpec
from jaxglmm.model.families import family_from_json
from jaxglmm.optimise.estimate import Convergence, Estimate, Posterior


FORMAT, VERSION = "jaxglmm-fit", 1
MODEL, ARRAYS = "model.json", "arrays.npz"
# What a replaced fit takes with it; other files of its folder stay.
_OURS = {MODEL, ARRAYS, "fit.json", "ranef.parquet"}
_ESTIMATE = ("beta", "covariance", "boundary", "vcov_jacobian")


def save(fit: Fit, path, *, rows: bool = False) -> None:
    """Write a fit to the folder `path`.

    Without training rows, unless `rows` asks for what posteriors of groups need of them (level, fixed part of eta,
    response and weight of each row).

    The folder appears, or replaces the fit that was there, only when it is complete.

    Raises
    ------
    DataError
        When something else is at `path`, or it cannot be written.
    """
    with replacing(path) as folder:
        write_model(fit, folder, rows=rows)


def load(path) -> Fit:
    """Read a fit that `Fit.save` wrote; predictions are those of the saved one, bit for bit.

    Methods that need the rows of the fit (residuals, simulate, profiles) raise a DataError.

    Raises
    ------
    DataError
        When there is no saved fit at `path`, it is damaged, or a later version wrote it.
    """
    folder = Path(path)
    saved = _read_header(folder)
    if saved is None:
        found = "no such folder" if not folder.exists() else f"no {MODEL} of a saved fit in it"
        raise DataError(f"{str(path)!r} is not a saved fit ({found}): expected a folder written by Fit.save")
    if saved["version"] > VERSION:
        raise DataError(
            f"{str(path)!r} was written in format version {saved['version']}; this version reads up to {VERSION}: "
            "update jaxglmm"
        )
    try:
        with open(folder / ARRAYS, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = dict(file)
        state = _state(saved, arrays)
        return Fit(state, kept=_kept(state, arrays))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the saved fit {str(path)!r} is damaged ({error}): save it again") from error


def write_model(fit: Fit, folder: Path, *, rows: bool = False) -> None:
    """Write a fit's two files into an existing folder; `rows` as in `save`."""
    state, estimate = fit.state, fit.state.estimate
    arrays = {f"estimate.{name}": getattr(estimate, name) for name in _ESTIMATE}
    for i, factor in enumerate(estimate.factors):
        arrays[f"estimate.factor{i}"] = factor
        arrays[f"effect_squares{i}"] = state.effect_squares[i]
    for i, posterior in enumerate(state.posteriors):
        for field in fields(posterior):
            arrays[f"posterior{i}.{field.name}"] = getattr(posterior, field.name)
        arrays |= {f"effects{i}.{name}": v for name, v in fit._effects(i).arrays().items()}
    if len(state.terms) > 1:
        arrays |= {f"joint.{name}": v for name, v in fit._joint().arrays().items()}
    if rows:
        history = fit._history("save(rows=True)")[0]
        arrays |= {f"rows.{field.name}": np.asarray(getattr(history, field.name)) for field in fields(history)}
    saved = {
        "format": FORMAT,
        "version": VERSION,
        "spec": state.spec.to_json(arrays),
        "family": state.family.to_json(),
        "estimate": {
            "dispersion": estimate.dispersion,
            "loglik": estimate.loglik,
            "method": estimate.method,
            "n_agq": estimate.n_agq,
            "parameters": list(estimate.parameters),
            "penalised": estimate.penalised,
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
    with open(folder / ARRAYS, "wb") as file:
        np.savez(file, allow_pickle=False, **{k: v for k, v in arrays.items() if v is not None})
        _flush(file)
    with open(folder / MODEL, "w", encoding="utf-8") as file:
        json.dump(saved, file, indent=1, allow_nan=False)
        _flush(file)


def _state(saved, arrays) -> State:
    spec = ModelSpec.from_json(saved["spec"], arrays)
    terms = terms_of(spec)
    kept = dict(saved["estimate"])
    kept["parameters"] = tuple(kept["parameters"])
    kept["convergence"] = Convergence(**{k: _unnumber(v) for k, v in kept["convergence"].items()})
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
    return Kept(effects, history, joint)


def _number(value):
    """Numbers that JSON does not have become text."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _unnumber(value):
    return float(value) if value in ("inf", "-inf", "nan") else value


def _flush(file):
    file.flush()
    os.fsync(file.fileno())


def _read_header(folder: Path):
    try:
        saved = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return saved if isinstance(saved, dict) and saved.get("format") == FORMAT else None


@contextlib.contextmanager
def replacing(path) -> Iterator[Path]:
    """A new folder beside `path` to write into, which takes its place when the block ends without an error.

    A saved fit that is there is replaced; files in its folder that are not ours are carried over.

    Raises
    ------
    DataError
        When something other than a saved fit or an empty folder is at `path`, or nothing can be written there.
    """
    target = Path(path).absolute()
    occupied = target.exists() or target.is_symlink()
    if occupied and not (target.is_dir() and (_read_header(target) is not None or not any(target.iterdir()))):
        raise DataError(f"{str(path)!r} exists and is not a saved fit; choose another path, or move it away")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = _neighbour(target, "new")
    except OSError as error:
        raise DataError(f"cannot write {str(path)!r}: {error.strerror or error}; choose a writable folder") from error
    try:
        yield fresh
        if occupied:
            _swap(fresh, target)
        else:
            fresh.rename(target)
    except OSError as error:
        raise DataError(
            f"cannot write {str(path)!r}: {error.strerror or error}; what was there is unchanged"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _swap(fresh: Path, target: Path) -> None:
    old = _neighbour(target, "old")
    kept = old / "fit"
    target.rename(kept)
    try:
        fresh.rename(target)
    except OSError:
        kept.rename(target)
        old.rmdir()
        raise
    for entry in kept.iterdir():
        if entry.name not in _OURS and not (target / entry.name).exists():
            entry.rename(target / entry.name)
    shutil.rmtree(old, ignore_errors=True)


def _neighbour(target: Path, what: str) -> Path:
    """A new hidden folder in the same file system, so that renaming is one step."""
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.{what}")
    folder.mkdir()
    return folder
