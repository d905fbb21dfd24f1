"""The phantom's files: valid DICOM, the same bytes again, the frozen manifest, nothing that gives the class away."""

import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from liverdis.cohort.folds import make_folds
from liverdis.cohort.manifest import load_manifest, verify_files
from liverdis.cohort.phantom.cohort import plan_cohort, write_case, write_phantom
from liverdis.cohort.phantom.lesions import COUNTS, Appearance
from liverdis.cohort.phantom.rendering import Case
from liverdis.cohort.phantom.scanner import SCANNERS, draw_patient
from liverdis.core import CLASSES

FROZEN = Path(__file__).parents[1] / 'data_manifest' / 'phantom.csv'


@pytest.fixture(scope='module')
def cohort(tmp_path_factory):
    "The whole default cohort, written once"
    return write_phantom(tmp_path_factory.mktemp('phantom'))


def test_counts_and_patients(cohort):
    assert cohort.df.label.value_counts().to_dict() == COUNTS
    assert cohort.df.patient_id.value_counts().between(1, 4).all()
    assert (
        not cohort.df.series_uid.duplicated()
        .where(cohort.df.groupby('series_uid').patient_id.transform('nunique') > 1)
        .any()
    )


def test_manifest_is_the_frozen_one(cohort):
    verify_files(cohort)
    assert cohort.checksum == load_manifest(FROZEN).checksum, (
        "the phantom has changed: renew data_manifest/phantom.csv as nbs/cohort/phantom/cohort.ipynb says"
    )


def test_folds_can_be_made(cohort):
    make_folds(cohort.df, n_folds=3, valid_share=0.3, seed=0)
    small = plan_cohort(dict.fromkeys(CLASSES, 6), seed=5)
    for label in CLASSES:
        assert len({c.patient_id for c in small if c.label == label}) == 6


def test_a_case_does_not_depend_on_the_cohort(tmp_path):
    case = plan_cohort()[10]
    first = write_case(case, Appearance(), tmp_path / 'a', 'x')
    write_case(plan_cohort()[3], Appearance(), tmp_path / 'b', 'x')
    assert write_case(case, Appearance(), tmp_path / 'b', 'x') == first


@pytest.mark.skipif(shutil.which('dciodvfy') is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
def test_dciodvfy_finds_nothing(tmp_path):
    "One case of each vendor and class: not an error, not even a warning"
    vendors = {
        s.manufacturer: next(p for n in range(1, 99) if (p := draw_patient(8, n)).scanner == s) for s in SCANNERS
    }
    for i, (patient, label) in enumerate(itertools.product(vendors.values(), CLASSES), 1):
        row = write_case(Case(patient, i, 0.04 * i + 0.1, label), Appearance(), tmp_path, 'test')
        for path in (row['image_path'], row['annotation_path']):
            said = subprocess.run(['dciodvfy', tmp_path / path], capture_output=True, text=True).stderr
            assert not [l for l in said.splitlines() if 'Error' in l or 'Warning' in l], f'{path}: {said}'


def test_headers(cohort):
    sop, times = set(), set()
    for _, row in cohort.df.iterrows():
        ct, seg = (pydicom.dcmread(cohort.root / p) for p in (row.image_path, row.annotation_path))
        assert (ct.Rows, ct.Columns, ct.BitsStored, ct.PixelRepresentation, ct.KVP) == (512, 512, 12, 1, 120)
        assert 120 <= ct.Exposure <= 630 and 0.9 <= ct.SliceThickness <= 5
        assert (
            list(ct.PixelSpacing) == [row.row_spacing_mm, row.col_spacing_mm] and ct.SeriesInstanceUID == row.series_uid
        )
        assert -2048 <= ct.pixel_array.min() and ct.pixel_array.max() <= 2047
        assert (
            seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == ct.SOPInstanceUID
        )
        assert (
            ct.PatientIdentityRemoved == 'YES'
            and str(ct.PatientName).startswith('Phantom^')
            and ct.BurnedInAnnotation == 'NO'
        )
        assert not any(k in (str(ct) + str(seg)).lower() for k in ('cyst', 'metast', 'hemang'))
        sop |= {ct.SOPInstanceUID, seg.SOPInstanceUID}
        times |= {ct.ContentDate, seg.ContentDate, seg.InstanceCreationDate}
    assert len(sop) == 2 * len(cohort) and times == {'20180101'}
    assert {pydicom.dcmread(cohort.root / p, stop_before_pixels=True).Manufacturer for p in cohort.df.image_path} == {
        s.manufacturer for s in SCANNERS
    }


def test_nothing_but_pixels_tells_the_class(cohort):
    "Size, place, shape of the outline, scanner, dose, order: by forest and by logistic regression no better than always saying the largest class"
    rows = []
    for i, row in cohort.df.iterrows():
        ct, seg = (pydicom.dcmread(cohort.root / p) for p in (row.image_path, row.annotation_path))
        liver, lesion = seg.pixel_array.astype(bool)
        r, c = np.nonzero(lesion)
        rows.append(
            [
                i,
                ct.InstanceNumber,
                float(ct.ImagePositionPatient[2]),
                ct.Exposure,
                ct.SliceThickness,
                ct.PixelSpacing[0],
                int(ct.PatientAge[:3]),
                ct.PatientSex == 'F',
                *(ct.Manufacturer == s.manufacturer for s in SCANNERS),
                (cohort.df.patient_id == row.patient_id).sum(),
                int(str(ct.SOPInstanceUID)[-6:]),
                np.ptp(r),
                np.ptp(c),
                lesion.sum() * row.row_spacing_mm**2,
                lesion.sum() / (np.ptp(r) + 1) / (np.ptp(c) + 1),
                r.mean(),
                c.mean(),
                liver.sum(),
                (lesion.sum() - (lesion[1:] * lesion[:-1]).sum()) ** 2 / lesion.sum(),
            ]
        )
    x, y, groups = np.array(rows, float), cohort.df.label.to_numpy(), cohort.df.patient_id
    chance = max(COUNTS.values()) / len(y)
    for model in (
        RandomForestClassifier(300, min_samples_leaf=3, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)),
    ):
        guess = cross_val_predict(model, x, y, groups=groups, cv=StratifiedGroupKFold(5, shuffle=True, random_state=0))
        assert (guess == y).mean() < chance + 0.08, model


def test_interrupted_cohort_has_no_manifest(tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    write_phantom(tmp_path, {'cyst': 3})
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path, {'cyst': 3}, progress=stop)
    assert not (tmp_path / 'manifest.csv').exists()
