"""What is drawn, what it is called, and what is in doubt: small made-up CT whose outlines are not as one would wish."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from liverdis.cohort.case_files import IngestOptions
from liverdis.cohort.ct import write_slice
from liverdis.cohort.healthy import GAP_MM
from liverdis.cohort.ingest import ingest
from liverdis.cohort.labels import LabelRules

SLICES, SIDE, PIXEL_MM, STEP_MM = 16, 64, 0.8, 2.5
TUMOUR = LabelRules((('tumor', 'cyst', '*'),))


def ct(folder, patient, series, frame='1.9'):
    "A series of noise"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(patient))
    uids = dict(PatientID=patient, StudyInstanceUID='1.2', SeriesInstanceUID=series, FrameOfReferenceUID=frame)
    for k in range(SLICES):
        hu, at = rng.normal(50, 60, (SIDE, SIDE)).round(), (0.0, 0.0, STEP_MM * k)
        write_slice(folder / f's{k}.dcm', hu, (PIXEL_MM, PIXEL_MM), at, SOPInstanceUID=f'{series}.{k + 1}', **uids)


def box(rows, columns, slices=(0, SLICES)):
    "A mask of all slices: columns, rows, slices"
    mask = np.zeros((SIDE, SIDE, SLICES), np.uint8)
    mask[slice(*columns), slice(*rows), slice(*slices)] = 1
    return mask


def nifti(path, mask, z_mm=0.0):
    "A mask on the grid of the series, or as many mm above it"
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-PIXEL_MM, -PIXEL_MM, STEP_MM, 1.0])
    affine[2, 3] = z_mm
    nib.Nifti1Image(mask, affine).to_filename(path)


LIVER, GROWTH = box((4, 60), (4, 60)), box((20, 32), (20, 32), (5, 9))


def healthy(src, labels=TUMOUR, n=3):
    "The healthy squares of a source, and why there are none"
    done = ingest(src, src.with_name('out'), labels, options=IngestOptions(healthy=n))
    measured = pd.read_csv(src.with_name('out') / 'measurements.csv')
    reasons = done.skipped.reason[done.skipped.what == 'healthy parenchyma']
    return measured[measured.label == 'healthy'], reasons.tolist()


@pytest.fixture
def source(tmp_path):
    "Anna, with a liver and a cyst"
    ct(tmp_path / 'src/anna/ct', 'A', '1.3.1')
    nifti(tmp_path / 'src/anna/liver.nii.gz', LIVER)
    nifti(tmp_path / 'src/anna/tumor.nii.gz', GROWTH)
    return tmp_path / 'src'


def berta(source):
    "A second patient, with a liver"
    ct(source / 'berta/ct', 'B', '1.3.2')
    nifti(source / 'berta/liver.nii.gz', LIVER)


# one lesion is one case


@pytest.mark.parametrize('step', [1, 2, 3])
def test_a_growth_outlined_on_every_few_slices_is_one_case(source, step):
    drawn = box((20, 32), (20, 32), (3, 10))
    drawn[:, :, np.arange(SLICES) % step != 0] = 0
    nifti(source / 'anna/tumor.nii.gz', drawn)
    done = ingest(source, source.with_name('out'), TUMOUR, options=IngestOptions(healthy=0))
    (case,) = pd.read_csv(source.with_name('out') / 'measurements.csv').itertuples()
    outlined = np.flatnonzero(drawn.any((0, 1)))
    assert case.n_slices == outlined[-1] - outlined[0] + 1 and len(done.manifest.df) == 1
    assert (f'one slice in {step}' in str(case.notes)) == (step > 1)


def test_a_slice_that_nobody_outlined_makes_no_case(source):
    drawn = box((20, 32), (20, 32), (3, 10))
    drawn[:, :, np.arange(SLICES) % 2 != 0] = 0
    nifti(source / 'anna/tumor.nii.gz', drawn)
    for slices, ranks in (('all', [4, 6, 8]), ('step:2', [4, 8])):
        ingest(source, out := source.with_name(slices), TUMOUR, options=IngestOptions(healthy=0, slices=slices))
        m = pd.read_csv(out / 'measurements.csv')
        assert [c[-5:] for c in m.case_id] == [f'z{r:04d}' for r in ranks] and set(m.n_slices) == {5}


def test_a_number_means_the_patient_and_not_a_series(source):
    "Patient B lies in folder 2, and the series of patient A in folder 7/2"
    (source / 'anna/ct').rename(source / 'anna/2')
    (source / 'anna').rename(source / '7')
    ct(source / '2/ct', 'B', '1.3.2')
    nifti(source / '2/tumor.nii.gz', GROWTH)
    labels = LabelRules((*TUMOUR.rules, ('tumor', 'hemangioma', '2')))
    done = ingest(source, source.with_name('out'), labels, options=IngestOptions(healthy=0))
    assert sorted(done.manifest.df.label) == ['cyst', 'hemangioma']


# healthy is only what is known to be


def test_a_liver_without_lesions_has_healthy_squares(source):
    berta(source)
    squares, reasons = healthy(source)
    assert squares.patient_id.nunique() == 2 and len(squares) == 6 and not reasons


@pytest.mark.parametrize('fault', ['fractions', 'elsewhere', 'damaged'])
def test_no_square_is_healthy_where_an_outline_was_refused(source, fault):
    berta(source)
    if fault == 'damaged':
        (source / 'berta/tumor.nii.gz').write_bytes(b'damaged')
    else:
        values = (0.9 * GROWTH).astype('f4') if fault == 'fractions' else GROWTH
        nifti(source / 'berta/tumor.nii.gz', values, z_mm=1000.0 if fault == 'elsewhere' else 0.0)
    squares, reasons = healthy(source)
    assert squares.patient_id.nunique() == 1 and len(squares) == 3
    assert len(reasons) == 1 and 'could not be read or placed' in reasons[0]


def test_a_file_that_was_refused_and_is_gone_is_forgotten(source):
    berta(source)
    nifti(source / 'berta/tumor.nii.gz', GROWTH, z_mm=1000.0)
    assert healthy(source)[1]
    (source / 'berta/tumor.nii.gz').unlink()
    squares, reasons = healthy(source)
    assert squares.patient_id.nunique() == 2 and not reasons


@pytest.mark.parametrize('frame', ['1.9', '1.8', ''])
def test_squares_keep_away_from_what_another_series_shows(source, frame):
    ct(source / 'berta/portal', 'B', '1.3.2')
    ct(source / 'berta/arterial', 'B', '1.3.3', frame)
    nifti(source / 'berta/portal/liver.nii.gz', LIVER)
    nifti(source / 'berta/arterial/scar.nii.gz', box((4, 60), (4, 28)))
    labels = LabelRules((('tumor', 'cyst', '*'), ('scar', 'avoid', '*')))
    squares, reasons = healthy(source, labels, n=1)
    mine = squares[squares.case_id.str.contains('-[12]-healthy')]  # of the patient with two series
    if frame == '1.9':
        assert len(mine) == 1 and not reasons
        assert (mine.col_min - 27).item() * PIXEL_MM > GAP_MM
    else:
        assert len(mine) == 0 and len(reasons) == 1 and 'another frame of reference' in reasons[0]
