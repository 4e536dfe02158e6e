"""What `jaxglmm fit`, `predict`, `rank` and `score` do, from their parsed options."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

from jaxglmm.errors import DataError


def fit(options) -> int:
    """`jaxglmm fit`: fit, write the folder, print the summary or the JSON."""
    from jaxglmm.fitted.io import replacing, write_model

    # The place to write to is made before the fit: a long fit must not end in "permission denied".
    with contextlib.nullcontext() if options.out is None else replacing(options.out) as folder:
        model = _fitted(options)
        text = json.dumps(model.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        if folder is not None:
            (folder / "fit.json").write_text(text + "\n", encoding="utf-8")
            _write_ranef(model, folder / "ranef.parquet")
            write_model(model, folder)  # last: it holds the digests of the others
    if options.json:
        print(text)
    else:
        print(model.summary())
        if options.out is not None:
            print(f"written: {options.out}")
    return 0


def _fitted(options):
    from jaxglmm.fitting import fit
    from jaxglmm.model.families import get_family

    family = get_family(options.family)
    if options.link is not None:
        family = dataclasses.replace(family, link=options.link)
    levels = dict(options.levels) | dict.fromkeys(options.categorical, "categorical")
    try:
        return fit(
            options.formula, options.data, family=family, method=options.method, n_agq=options.nodes,
            reml=options.reml, weights=options.weights, offset=options.offset, theta=dict(options.theta) or None,
            levels=levels or None,
        )  # fmt: skip
    except OSError as error:  # not to be taken for a failure to write
        raise DataError(f"{options.data!r} cannot be read: {error.strerror or error}") from error


def _write_ranef(model, path: Path) -> None:
    """One row a level and effect, all grouping factors in one table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from jaxglmm.plots import columns_of

    tables = []
    for group in model.groups:
        columns = columns_of(model.ranef(group))
        names = pa.array([group] * len(columns["level"]))
        tables.append(pa.table({"group": names, **{name: pa.array(v) for name, v in columns.items()}}))
    if len({table.schema.field("level").type for table in tables}) > 1:  # one column holds one type
        tables = [table.set_column(1, "level", table["level"].cast(pa.string())) for table in tables]
    pq.write_table(pa.concat_tables(tables) if tables else pa.table({"group": pa.array([], pa.string())}), path)


def predict(options) -> int:
    """`jaxglmm predict`: the rows of a file with a column of predictions, and their intervals where asked for."""
    out = None if options.out is None else _table_path(options.out)
    from jaxglmm.fitted.io import load

    model = load(options.model)
    found = model.predict(
        options.data, kind=options.kind, effects=options.effects, new_levels=options.new_levels,
        interval=options.interval, uncertainty=not options.given_parameters,
    )  # fmt: skip
    if options.interval is None:
        columns = {"prediction": found}
    else:
        from jaxglmm.plots import columns_of

        columns = columns_of(found)
    return _write_table(_with_columns(options.data, columns), out)


def rank(options) -> int:
    """`jaxglmm rank`: the members of a file in order of their effects."""
    out = None if options.out is None else _table_path(options.out)
    from jaxglmm.fitted.io import load

    table = load(options.model).rank(
        term=options.term, top=options.top, alpha=options.alpha, order=options.order, threshold=options.threshold,
        interval=options.interval, r_values=options.r_values, data=options.data,
    )  # fmt: skip
    return _write_table(table, out)


def score(options) -> int:
    """`jaxglmm score`: the posteriors of the members of a file."""
    _table_path(options.out)
    from jaxglmm.fitted.io import load
    from jaxglmm.fitted.posterior import check_level

    if options.interval is not None:
        check_level(options.interval)
    load(options.model).score(options.data, interval=options.interval, out=options.out)
    print(f"written: {options.out}", file=sys.stderr)
    return 0


def _write_table(table, out: Path | None) -> int:
    """A pandas table to a file, or as CSV to standard output."""
    if out is None:
        table.to_csv(sys.stdout, index=False)
        return 0
    from jaxglmm.ops.files import replacing_file

    with replacing_file(out) as fresh:
        if out.suffix == ".csv":
            table.to_csv(fresh, index=False)
        else:
            table.to_parquet(fresh, index=False)
    print(f"written: {out}", file=sys.stderr)
    return 0


def _table_path(name: str) -> Path:
    path = Path(name)
    if path.suffix not in (".csv", ".parquet"):
        raise DataError(f"--out {name}: expected a name that ends in .csv or .parquet")
    if not path.parent.is_dir():
        raise DataError(f"--out {name}: there is no folder {str(path.parent)!r}; make it first")
    return path


def _with_columns(path: str, columns):
    """The table of the file, CSV values as they are written there, with the predictions as last columns."""
    from jaxglmm.formula.files import whole_table

    table = whole_table(path)
    for name, values in columns.items():
        if name in table.columns:
            raise DataError(f"{path!r} has a column {name!r} already; rename it, so that nothing is overwritten")
        table[name] = values
    return table
