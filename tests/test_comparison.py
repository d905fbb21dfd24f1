"""What the statistics say of cohorts that would fool a test over cases, and of the stored runs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from liverdis.core import CLASSES
from liverdis.study.comparison import (
    BETTER,
    TOO_FEW,
    compare,
    compare_cohorts,
    difference,
    paired_hits,
    sign_flip,
    summary,
)
from liverdis.study.evaluate import PREDICTION_COLUMNS, PROBABILITIES, check_predictions, read_predictions
from liverdis.study.report import comparisons

RESULTS = Path(__file__).parent.parent / "nbs" / "results"


def cohort(n_patients, slices, right):
    """Predictions of two arms. right(patient, arm, rng): the share of a patient's slices that are right"""
    rng = np.random.default_rng(0)
    rows = []
    for arm in ("baseline", "proposed"):
        for patient in range(n_patients):
            hits = rng.random(slices) < right(patient, arm, rng)
            for i, hit in enumerate(hits):
                label = i % 4
                predicted = label if hit else (label + 1) % 4
                p = np.full(4, 0.1) + 0.6 * np.eye(4)[predicted]
                case = f"P{patient:03d}-{i}"
                names = CLASSES[label], CLASSES[predicted]
                rows.append((0, 1 + patient % 3, arm, case, f"P{patient:03d}", *names, *p))
    return check_predictions(pd.DataFrame(rows, columns=list(PREDICTION_COLUMNS)))


def mcnemar(df):
    "The exact test that takes cases for independent"
    d = paired_hits(df, "proposed", "baseline").difference
    return binomtest(int((d > 0).sum()), int((d != 0).sum())).pvalue


def test_five_patients_of_many_slices_give_no_verdict():
    df = cohort(5, 40, lambda patient, arm, rng: 0.9 if arm == "proposed" else 0.6)
    assert mcnemar(df) < 1e-5  # what such a table used to be reported with
    row = difference(df, "proposed", "baseline")
    assert row["difference"] > 0.2 and row["n_patients"] == 5
    assert all(np.isnan(v) for k, v in row.items() if k.startswith(("p_", "low", "high", "patients")))
    assert compare(df, "baseline").verdict["proposed"] == TOO_FEW
    results = {"summary": summary(df)}
    text = " ".join(comparisons(results))
    assert "no verdict" in text and "better" not in text and "p =" not in text
    json.dumps(results, allow_nan=False)


def test_slices_of_one_patient_are_one_witness():
    "Each patient suits one arm or the other, by the toss of a coin: McNemar's test is sure, that over patients is not"
    alarms = []
    for seed in range(40):
        suits = np.random.default_rng(seed).integers(0, 2, 30)
        wins = {"proposed": suits, "baseline": 1 - suits}
        df = cohort(30, 12, lambda patient, arm, rng, wins=wins: 0.4 + 0.4 * wins[arm][patient])
        sums = paired_hits(df, "proposed", "baseline").groupby("patient_id").difference.sum()
        alarms.append((mcnemar(df) < 0.05, sign_flip(sums) < 0.05))
    by_case, by_patient = np.mean(alarms, axis=0)
    assert by_case > 0.2 and by_patient <= 0.125  # at most 5 of 40: binomial with p = 0.05, 1 % of the tail


def test_a_large_difference_of_many_patients_is_a_verdict():
    df = cohort(60, 4, lambda patient, arm, rng: 0.95 if arm == "proposed" else 0.5)
    table = pd.concat([df.assign(repeat=r) for r in range(3)])
    assert compare(table, "baseline").verdict["proposed"] == BETTER
    assert "proposed is better here" in " ".join(comparisons({"summary": summary(table)}))


def test_a_table_of_two_classes_and_one_arm():
    df = cohort(30, 4, lambda patient, arm, rng: 0.8)
    df = df[df.label.isin(("cyst", "healthy")) & (df.arm == "baseline")]
    df = df.assign(predicted=df.label, p_cyst=(df.label == "cyst") * 1.0, p_healthy=(df.label == "healthy") * 1.0)
    s = summary(df.drop(columns=[p for p in PROBABILITIES if p not in ("p_cyst", "p_healthy")]))
    assert s["classes"] == ["cyst", "healthy"] and s["comparisons"] == {} and comparisons({"summary": s}) == []
    assert s["arms"]["baseline"]["confusion"] == [[30, 0], [0, 30]] and s["arms"]["baseline"]["brier"] == 0


@pytest.mark.parametrize("folder", sorted(p.parent for p in RESULTS.glob("*/results.json")), ids=lambda p: p.name)
def test_stored_results_follow_from_stored_predictions(folder):
    stored = json.loads((folder / "results.json").read_text())["summary"]
    counted = summary(read_predictions(folder / "predictions.csv"))

    def numbers(x):
        return (
            [v for y in (x.values() if isinstance(x, dict) else x) for v in numbers(y)]
            if isinstance(x, dict | list)
            else [x]
        )

    assert json.dumps(stored, default=str).count(":") == json.dumps(counted, default=str).count(":")
    for a, b in zip(numbers(stored), numbers(counted), strict=True):
        assert a == pytest.approx(b, abs=1e-6)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_one_cohort_has_no_interval():
    alone = compare_cohorts({"a": cohort(40, 3, lambda patient, arm, rng: 0.6)}, "baseline").loc["proposed"]
    assert alone.n_cohorts == 1 and alone[["low", "high", "p_corrected", "patients_low"]].isna().all()
