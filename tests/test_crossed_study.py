"""Bias and coverage of crossed logistic fits against the truth that was simulated; the whole study is in bench/."""

import numpy as np

from bench.studies.crossed import replicate, summarise


def test_fifty_replicates_find_the_truth():
    found = summarise([replicate(200, seed, each=20) for seed in range(50)])
    bias, bias_se = (np.array(found["bias of slopes"][part]) for part in ("value", "se"))
    assert bias.shape == (5,) and (np.abs(bias) < 3 * bias_se).all()
    assert 0.92 < found["coverage of slopes"]["value"] < 0.98  # 250 intervals
    sds = found["relative bias of sds"]
    assert (np.abs(sds["value"]) < 0.03 + 3 * np.array(sds["se"])).all()  # Laplace's own is about 0.03 here
    assert 0.9 <= found["coverage of log sds"]["value"] <= 1.0
