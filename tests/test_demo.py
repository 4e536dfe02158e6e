"""`jaxglmm demo`: the bundled data, what is printed, what is written."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import jaxglmm
from jaxglmm import demo


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Run the demonstration once: (what was printed, the folder)."""
    text = io.StringIO()
    folder = demo.run(tmp_path_factory.mktemp("demo") / "report", Console(file=text, width=100))
    return text.getvalue(), folder


def test_it_prints_data_fits_and_patients(done):
    text, _ = done
    for piece in ("1,908 visits of 294 patients", "Visits per patient", "quadrature", "Laplace", "Ranked patients"):
        assert piece in text, piece
    assert "\x1b[" not in text  # plain outside a terminal
    assert "4.0066" in text and "4.5709" in text  # MATH: 4.01 by quadrature, 4.57 by Laplace


def test_the_fits_are_those_of_other_programs(done, reference_dir):
    stored = json.loads((reference_dir / "toenail.json").read_text())
    wanted = next(fit for fit in stored["fits"] if fit["id"] == "intercept_own_aghq101")
    found = json.loads((done[1] / "fit.json").read_text())
    assert found["loglik"] == pytest.approx(wanted["logLik"], abs=2e-3)  # 79 nodes against 101
    assert found["varcorr"][0]["sd"] == pytest.approx(4.0066, abs=2e-3)


def test_the_report_shows_its_pictures(done):
    folder = done[1]
    page = (folder / "report.html").read_text()
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == ["calibration.png", "course.png", "patients.png", "shrinkage.png"]
    for name in pictures:
        assert f'src="{name}"' in page
        assert (folder / name).stat().st_size > 10_000
    assert page.count("<table>") >= 5


def test_every_patient_is_ranked_once(done):
    columns = {name: values.to_numpy() for name, values in pd.read_csv(done[1] / "patients.csv").items()}
    assert len(set(columns["patientID"])) == len(columns["patientID"]) == 294
    assert (np.diff(columns["mean"]) <= 0).all()
    assert columns["visits"].sum() == 1908
    # The most ill at the top: the response's levels are in the right order.
    assert (columns["ill"][:8] == columns["visits"][:8]).all()
    assert (columns["ill"][-8:] == 0).all()
    assert 0.001 < columns["shrunken"].min() < columns["shrunken"].max() < 0.999  # the raw shares reach 0 and 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(jaxglmm.DataError, match=r"file/report.*name another folder"):
        demo.run(tmp_path / "file" / "report")
