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
    assert (cohort.df.groupby('series_uid').patient_id.nunique() == 1).all()
    assert (cohort.df.groupby('patient_id').series_uid.nunique() == 1).all()


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
    patients = [draw_patient(8, number) for number in range(1, 99)]
    one_of_each = [next(p for p in patients if p.scanner == scanner) for scanner in SCANNERS]
    for i, (patient, label) in enumerate(itertools.product(one_of_each, CLASSES), 1):
        row = write_case(Case(patient, i, 0.04 * i + 0.1, label), Appearance(), tmp_path, 'test')
        for path in (row['image_path'], row['annotation_path']):
            said = subprocess.run(['dciodvfy', tmp_path / path], capture_output=True, text=True).stderr
            assert 'Error' not in said and 'Warning' not in said, f'{path}: {said}'


def read_all(cohort):
    "The files of each case: the manifest's row, CT and SEG"
    for _, row in cohort.df.iterrows():
        yield row, pydicom.dcmread(cohort.root / row.image_path), pydicom.dcmread(cohort.root / row.annotation_path)


def test_headers(cohort):
    uids, vendors = set(), set()
    for row, ct, seg in read_all(cohort):
        assert (ct.Rows, ct.Columns, ct.BitsStored, ct.PixelRepresentation, ct.KVP) == (512, 512, 12, 1, 120)
        assert 120 <= ct.Exposure <= 630 and 0.9 <= ct.SliceThickness <= 5
        assert list(ct.PixelSpacing) == [row.row_spacing_mm, row.col_spacing_mm]
        assert ct.SeriesInstanceUID == row.series_uid
        assert -2048 <= ct.pixel_array.min() and ct.pixel_array.max() <= 2047
        source = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
        assert source.ReferencedSOPInstanceUID == ct.SOPInstanceUID
        assert {ct.ContentDate, seg.ContentDate, seg.InstanceCreationDate} == {'20180101'}
        uids |= {ct.SOPInstanceUID, seg.SOPInstanceUID}
        vendors.add(ct.Manufacturer)
    assert len(uids) == 2 * len(cohort)
    assert vendors == {s.manufacturer for s in SCANNERS}


def test_headers_name_nobody_and_no_diagnosis(cohort):
    for _, ct, seg in read_all(cohort):
        assert ct.PatientIdentityRemoved == 'YES' and ct.BurnedInAnnotation == 'NO'
        assert str(ct.PatientName).startswith('Phantom^')
        headers = (str(ct) + str(seg)).lower()
        assert not any(diagnosis in headers for diagnosis in ('cyst', 'metast', 'hemang'))


def side_data(cohort, i, row):
    "What the files of a case tell without the CT pixels"
    ct, seg = (pydicom.dcmread(cohort.root / path) for path in (row.image_path, row.annotation_path))
    liver, lesion = seg.pixel_array.astype(bool)
    r, c = np.nonzero(lesion)
    area, uid = lesion.sum(), int(str(ct.SOPInstanceUID)[-6:])
    order = i, ct.InstanceNumber, float(ct.ImagePositionPatient[2]), uid, (cohort.df.patient_id == row.patient_id).sum()
    scan = ct.Exposure, ct.SliceThickness, ct.PixelSpacing[0], *(ct.Manufacturer == s.manufacturer for s in SCANNERS)
    person = int(ct.PatientAge[:3]), ct.PatientSex == 'F', liver.sum()
    size = np.ptp(r), np.ptp(c), area * row.row_spacing_mm**2
    upper_edge = area - (lesion[1:] * lesion[:-1]).sum()  # pixels
    shape = area / (np.ptp(r) + 1) / (np.ptp(c) + 1), upper_edge**2 / area
    return *order, *scan, *person, *size, *shape, r.mean(), c.mean()


def test_nothing_but_pixels_tells_the_class(cohort):
    """Size, place, shape of the outline, scanner, dose and order do not tell the class.

    A forest and a logistic regression on them are no better than always saying the largest class.
    """
    rows = [side_data(cohort, i, row) for i, row in cohort.df.iterrows()]
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
