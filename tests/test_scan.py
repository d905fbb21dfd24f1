"""What lies in a folder, on the shapes of data that once gave a wrong patient, a wrong image, or silence."""

import os
import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import formats
import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from liverdis.cohort.annotation.readers import read_structures
from liverdis.cohort.archives import source_folder
from liverdis.cohort.case_files import IngestOptions
from liverdis.cohort.ct import CTSlice, Plane, read_hu, read_slice, upright, volume_headers, write_slice
from liverdis.cohort.deidentify import identifying_words, load_key, public_text
from liverdis.cohort.ingest import ingest
from liverdis.cohort.labels import LabelRules
from liverdis.cohort.manifest import load_manifest
from liverdis.cohort.roi import cached_rois, extract_roi, load_rois
from liverdis.cohort.scan import scan_folder
from liverdis.core import InputError

REALDATA = Path(os.environ.get('LIVERDIS_REALDATA', Path(__file__).parents[1] / '../shared/realdata')).resolve()
real = pytest.mark.skipif(
    not REALDATA.is_dir(), reason=f"no real CT at {REALDATA}: set LIVERDIS_REALDATA to the folder that holds it"
)
BOX = 'lesion,image,row_min,row_max,col_min,col_max\n'
LIVER = np.hypot(*np.mgrid[-32:32, -32:32]) < 15


def body(value=60, seed=0):
    "A slice of noise around `value` in fat and air, (64,64) HU"
    y, x = np.mgrid[:64, :64]
    tissue = np.random.default_rng(seed).normal(0, 12, (64, 64)) + np.where(np.hypot(y - 32, x - 32) < 22, value, -100)
    return np.where(np.hypot(y - 32, x - 32) < 28, tissue, -1000).round()


def series(folder, patient, value=60, n=3, **tags):
    "CT slices numbered as TCIA numbers them, whose tissue has this value"
    folder.mkdir(parents=True, exist_ok=True)
    shared = dict(PatientID=patient, SeriesInstanceUID=f'1.2.{value}', StudyInstanceUID='1.3.' + patient[1:], **tags)
    for k in range(n):
        place = dict(position_mm=(0, 0, 5 * k), InstanceNumber=k + 1)
        write_slice(folder / f'1-{k + 1:02d}.dcm', body(value, k), **place, FrameOfReferenceUID='1.4', **shared)


def found(src):
    "Patient, kind and folder of the series of each annotation, and the reasons of all problems"
    patients, problems = scan_folder(src)
    return [(p.key, a.kind, a.series.folder) for p in patients for a in p.annotations], [p.reason for p in problems]


# the right patient


@pytest.fixture
def two_patients(tmp_path):
    "Two patients, each with `image/1-01.dcm` and so on; the second in two phases"
    series(tmp_path / 'P1/image', 'P1', 50)
    series(tmp_path / 'P2/portal/image', 'P2', 110, SeriesDescription='portal venous')
    series(tmp_path / 'P2/arterial/image', 'P2', 80, SeriesDescription='arterial')
    return tmp_path


@pytest.mark.parametrize(
    'where,image,expected',
    [
        ('P1', '1-02.dcm', 50),
        ('P1', '1-02', 50),
        ('P1/image', '1-02.dcm', 50),
        ('P2/portal', '1-02.dcm', 110),
        ('P2/arterial/image', '1-02.dcm', 80),
        ('.', 'P1/image/1-02.dcm', 50),
        ('.', 'portal\\image\\1-02.dcm', 110),
        ('P1', 'UID of P2, arterial', 80),
    ],
)
def test_a_table_lands_on_the_patient_that_it_means(two_patients, where, image, expected):
    if image.startswith('UID'):
        image = pydicom.dcmread(two_patients / 'P2/arterial/image/1-02.dcm').SOPInstanceUID
    (two_patients / where / 'boxes.csv').write_text(BOX + f'a,{image},28,36,28,36\n')
    (patient,), problems = scan_folder(two_patients)
    (annotation,) = patient.annotations
    slices = annotation.series.slices
    (lesion,) = read_structures(annotation.paths, annotation.kind, slices, annotation.keys)
    ((rank, mask),) = lesion.masks.items()
    assert rank == 1 and abs(read_hu(slices[rank]).hu[mask].mean() - expected) < 5
    assert not [p for p in problems if p.failed]


@pytest.mark.parametrize('where,image', [('.', '1-02.dcm'), ('P2', '1-02.dcm'), ('.', 'image/1-02.dcm')])
def test_a_name_that_may_be_two_slices_is_refused(two_patients, where, image):
    (two_patients / where / 'boxes.csv').write_text(BOX + f'a,{image},28,36,28,36\n')
    annotations, reasons = found(two_patients)
    assert not annotations and any('lie in several CT series' in r and 'SOPInstanceUID' in r for r in reasons)


@pytest.mark.parametrize('image', ['P7/image/1-02.dcm', 'P2/portal/image/1-02.dcm', '1-09.dcm', 'image/1-09.dcm'])
def test_a_table_beside_one_patient_never_means_another(two_patients, image):
    "The second patient has more slices, so `1-09.dcm` lies there alone"
    series(two_patients / 'P3/image', 'P3', 90, n=9)
    (two_patients / 'P1/boxes.csv').write_text(BOX + f'a,{image},28,36,28,36\n')
    patients, problems = scan_folder(two_patients)
    assert not patients and [p.reason for p in problems if p.failed][0].startswith('names 1 images that are not here')


def test_one_lesion_id_in_two_patients(two_patients):
    "Each patient's rows count for that patient alone, though both lesions are called 1"
    rows = '1,P1/image/1-01.dcm,28,36,28,36\n1,P2/portal/image/1-03.dcm,30,31,30,31\n'
    (two_patients / 'boxes.csv').write_text(BOX + rows)
    patients, _ = scan_folder(two_patients)
    drawn = {}
    for p in patients:
        for a in p.annotations:
            (lesion,) = read_structures(a.paths, a.kind, a.series.slices, a.keys)
            drawn[p.key] = {rank: int(m.sum()) for rank, m in lesion.masks.items()}
    assert drawn == {'P1': {0: 81}, 'P2': {2: 4}}


def test_a_mask_above_two_patients_goes_to_neither(tmp_path):
    "Both lie on one grid; that one lies nearer in the tree says nothing"
    series(tmp_path / 'P1', 'P1', 50)
    series(tmp_path / 'P2/a/b', 'P2', 110)
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[28:36, 28:36] = 1
    nib.Nifti1Image(mask, np.diag([-1, -1, 5, 1])).to_filename(tmp_path / 'tumour.nii.gz')
    (tmp_path / 'boxes.csv').write_text('lesion,z_mm,row_min,row_max,col_min,col_max\na,5,28,36,28,36\n')
    annotations, reasons = found(tmp_path)
    assert not annotations and sum('CT series of 2 patients' in r for r in reasons) == 2


@pytest.mark.parametrize('kind', ['png', 'nifti', 'boxes'])
def test_the_mask_of_a_patient_without_ct_does_not_go_to_another(tmp_path, kind):
    "P2's CT is the only one, and lies on the grid of P1's"
    series(tmp_path / 'P2/ct', 'P2', n=1)
    for patient in ('P1', 'P2'):
        (tmp_path / patient / 'masks').mkdir(parents=True)
        if kind == 'png':
            Image.fromarray(LIVER).save(tmp_path / patient / 'masks/tumour.png')
        elif kind == 'nifti':
            to_nifti(LIVER[None].astype(np.uint8), tmp_path / patient / 'masks/tumour.nii.gz')
        else:
            text = 'lesion,z_mm,row_min,row_max,col_min,col_max\na,0,28,36,28,36\n'
            (tmp_path / patient / 'masks/boxes.csv').write_text(text)
    patients, problems = scan_folder(tmp_path)
    (annotation,) = patients[0].annotations
    assert annotation.paths[0].is_relative_to(tmp_path / 'P2')
    (problem,) = problems
    assert problem.failed and problem.path.is_relative_to(tmp_path / 'P1') and 'lies apart' in problem.reason


def test_images_and_masks_in_folders_of_their_own(tmp_path):
    "`images/P1` and `masks/P1`, and a mask beside the images"
    series(tmp_path / 'images/P1', 'P1', n=1)
    (tmp_path / 'masks/P1').mkdir(parents=True)
    for where in ('masks/P1/tumour.png', 'images/P1/liver.png'):
        Image.fromarray(LIVER).save(tmp_path / where)
    annotations, reasons = found(tmp_path)
    assert len(annotations) == 2 and not reasons


COARSE = np.diag([-2, -2, 5, 1])  # another grid in the place of `series`


def lay(src, images, masks):
    "NIfTI images on the grid of `series`, and masks of another grid; a name that ends in / is a folder of DICOM"
    for seed, name in enumerate(images):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith('/'):
            series(src / name, f'P{seed}', 60 + seed)
        else:
            to_nifti(np.stack([body(60, seed + k) for k in range(3)]).astype(np.int16), src / name)
    for name in masks:
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        nib.Nifti1Image(np.ones((24, 24, 3), np.uint8), COARSE).to_filename(src / name)


@pytest.mark.parametrize('above', ['', 'export/'])
@pytest.mark.parametrize(
    'images,own,stray',
    [
        (['anna_ct.nii.gz'], ['anna_tumor.nii.gz'], 'berta_tumor.nii.gz'),
        (['anna/ct.nii.gz'], ['anna/tumor.nii.gz'], 'berta/tumor.nii.gz'),
        (['anna/ct/'], [], 'berta/tumor.nii.gz'),
        (['anna/ct/'], [], 'berta/ct/tumor.nii.gz'),
        (['volume-3.nii'], ['segmentation-3.nii'], 'segmentation-4.nii'),
        (['imagesTr/liver_3.nii.gz'], ['labelsTr/liver_3.nii.gz'], 'labelsTr/liver_4.nii.gz'),
        (['anna/ct/', 'carl/ct/'], ['anna/tumor.nii.gz', 'carl/tumor.nii.gz'], 'berta/tumor.nii.gz'),
    ],
)
def test_a_mask_of_another_grid_needs_a_tie(tmp_path, above, images, own, stray):
    "Berta's CT is not here, and her mask lies within Anna's"
    lay(tmp_path, [above + i for i in images], [above + m for m in (*own, stray)])
    patients, problems = scan_folder(tmp_path)
    assert [a.paths[0] for p in patients for a in p.annotations] == [tmp_path / above / m for m in own]
    (problem,) = (p for p in problems if p.failed)
    assert problem.path == tmp_path / above / stray and 'on another grid, and neither folder nor name' in problem.reason


@pytest.mark.parametrize(
    'images,masks',
    [
        (['ct/'], ['tumor.nii.gz', 'masks/liver.nii.gz']),
        (['PATIENT_DICOM/'], ['MASKS/tumor.nii.gz']),
        (['a/1.2.840/', 'b/1.2.841/'], ['a/GTV_left.nii.gz', 'b/Slicer/GTV_left.nii.gz']),
        (['a/ct/', 'b/ct/'], ['a/ct/x.nii.gz', 'a/masks/y.nii.gz', 'b/z.nii.gz']),
        (['images/P1/', 'images/P2/'], ['masks/P1/GTV.nii.gz', 'masks/P2/GTV.nii.gz']),
        (['volume-3.nii', 'volume-4.nii'], ['segmentation-03.nii', 'segmentation-4.nii']),
        (
            ['imagesTr/liver_3.nii.gz', 'imagesTr/liver_4.nii.gz'],
            ['labelsTr/liver_3.nii.gz', 'labelsTr/liver_4.nii.gz'],
        ),
        (
            ['imagesTr/L_003_0000.nii.gz', 'imagesTr/L_004_0000.nii.gz'],
            ['labelsTr/L_003.nii.gz', 'labelsTr/L_004.nii.gz'],
        ),
        (
            ['s0001/ct.nii.gz', 's0002/ct.nii.gz'],
            ['s0001/segmentations/liver.nii.gz', 's0002/segmentations/colon.nii.gz'],
        ),
        (['anna_ct.nii.gz'], ['anna_gtv.nii.gz', 'tumor.nii.gz']),
    ],
)
def test_a_mask_of_another_grid_that_has_one(tmp_path, images, masks):
    lay(tmp_path, images, masks)
    patients, problems = scan_folder(tmp_path)
    assert {a.paths[0] for p in patients for a in p.annotations} == {tmp_path / m for m in masks}
    assert not [p for p in problems if p.failed] and len(patients) == len(images)


def test_a_mask_of_the_same_grid_and_another_name(tmp_path):
    "Sets are often resampled to one grid; Berta's CT is not here"
    lay(tmp_path, ['anna_ct.nii.gz'], [])
    for name in ('anna_tumor', 'berta_tumor', 'liver'):
        to_nifti(np.stack([LIVER] * 3).astype(np.uint8), tmp_path / f'{name}.nii.gz')
    (patient,), (problem,) = scan_folder(tmp_path)
    assert [a.paths[0].name for a in patient.annotations] == ['anna_tumor.nii.gz', 'liver.nii.gz']
    assert problem.path.name == 'berta_tumor.nii.gz' and 'lies apart' in problem.reason


def test_phases_in_one_folder_are_told(tmp_path):
    "Two patients to us, and one line for each pair; under the same names in folders they are one"
    for name in ('P001_art', 'P001_pv', 'P002_pv'):
        lay(tmp_path / 'flat', [f'{name}.nii.gz'], [f'{name}_tumor.nii.gz'])
    patients, (problem,) = scan_folder(tmp_path / 'flat')
    assert [p.key for p in patients] == ['P001_art', 'P001_pv', 'P002_pv']
    assert problem.path.name == 'P001_pv.nii.gz' and not problem.failed and 'count as two patients' in problem.reason
    assert 'P001' not in problem.reason
    for name in ('P001/art', 'P001/pv', 'P002/art', 'P002/pv'):
        lay(tmp_path / 'folders', [f'{name}.nii.gz'], [f'{name}_tumor.nii.gz'])
    patients, problems = scan_folder(tmp_path / 'folders')
    assert [(p.key, len(p.annotations)) for p in patients] == [('P001', 2), ('P002', 2)] and not problems


@pytest.mark.parametrize(
    'images,keys',
    [
        (['{}/arterial/ct', '{}/portal venous/ct'], ['P1', 'P2']),
        (['{}/NIFTI/art/ct', '{}/NIFTI/non-contrast/ct'], ['P1/NIFTI', 'P2/NIFTI']),
        (['arterial/{}', 'portal/{}'], ['P1', 'P2']),
        (['sub-{0}/ses-1/ct/sub-{0}_ses-1_ct', 'sub-{0}/ses-2/ct/sub-{0}_ses-2_ct'], ['sub-P1', 'sub-P2']),
        (['{}/visit1/ct', '{}/visit2/ct'], ['P1/visit1', 'P1/visit2', 'P2/visit1', 'P2/visit2']),
    ],
)
def test_folders_of_phases_and_sessions_are_no_patients(tmp_path, images, keys):
    "Once the phases of one patient were two, and fell on both sides of a split"
    for patient in ('P1', 'P2'):
        for image in images:
            name = image.format(patient)
            lay(tmp_path, [f'{name}.nii.gz'], [f'{name}_tumor.nii.gz'])
    patients, problems = scan_folder(tmp_path)
    assert [p.key for p in patients] == keys and all(len(p.annotations) == 4 // (len(keys) // 2) // 2 for p in patients)
    assert bool(problems) == ('visit' in images[0]) and all(p.doubt for p in problems)


def test_a_note_says_ct_where_the_file_is_called_ct(tmp_path):
    "The words of file names that may be a patient's are kept out, and no others; a patient may be called Mask"
    lay(tmp_path / 'src', ['anna_ct.nii.gz'], ['anna_tumor.nii.gz'])
    done = ingest(tmp_path / 'src', tmp_path / 'out', LabelRules((('*', 'cyst', '*'),)))
    notes = ' '.join(done.manifest.df.case_id.map(pd.read_csv(tmp_path / 'out/measurements.csv', index_col=0).notes))
    assert 'resampled to that of the CT' in notes and 'anna' not in notes
    series(tmp_path / 'dicom', 'P1', PatientName='Mask^CT')
    (tmp_path / 'dicom/boxes.csv').write_text(BOX + 'a,1-02.dcm,28,36,28,36\n')
    (patient,), _ = scan_folder(tmp_path / 'dicom')
    known = identifying_words(patient.annotations[0].series.identifiers)
    assert public_text('the mask of the CT', known=known) == 'the … of the …'


@pytest.mark.parametrize('where', ['ct.nii.gz', 'nifti/ct.nii.gz'])
def test_a_ct_that_is_there_twice_is_one_patient(tmp_path, where):
    "DICOM, and the same slices as NIfTI beside the mask, which once made the patient two"
    series(tmp_path / 'P1/dicom', 'P1')
    (tmp_path / 'P1/nifti').mkdir()
    to_nifti(np.stack([body(60, k) for k in range(3)]).astype(np.int16), tmp_path / 'P1' / where)
    to_nifti(np.stack([LIVER] * 3).astype(np.uint8), tmp_path / 'P1/nifti/tumour.nii.gz')
    (tmp_path / 'P1/boxes.csv').write_text(BOX + 'a,1-02.dcm,28,36,28,36\n')
    annotations, reasons = found(tmp_path)
    assert annotations == [('P1', kind, tmp_path / 'P1/dicom') for kind in ('nifti', 'boxes')]
    assert reasons == ['a copy of a DICOM series, which is used']
    to_nifti(np.stack([body(60, k + 9) for k in range(3)]).astype(np.int16), tmp_path / 'P1' / where)  # another phase
    assert 'a copy of a DICOM series, which is used' not in found(tmp_path)[1]


def test_folders_name_patients_alike_wherever_they_lie(tmp_path):
    "Without PatientID and study; the key of a patient must not depend on where a zip file is unpacked"
    for where in ('here', 'there/further'):
        series(tmp_path / where / 'export/p1', 'P1', 50)
        for f in (tmp_path / where / 'export/p1').iterdir():
            ds = pydicom.dcmread(f)
            ds.PatientID = ds.StudyInstanceUID = ''
            ds.save_as(f)
        (tmp_path / where / 'export/p1/boxes.csv').write_text(BOX + 'a,1-01.dcm,28,36,28,36\n')
    keys = [scan_folder(tmp_path / where / 'export')[0][0].key for where in ('here', 'there/further')]
    assert keys == ['export/p1', 'export/p1']


@pytest.mark.parametrize('uid', ['1.2.3', None])
def test_two_patients_that_share_a_series_uid_or_have_none(tmp_path, uid):
    "Their slices lie between one another in one folder, which once made one series of one patient"
    for patient, low in (('ANNA', 0), ('BERTA', 1.3)):
        tags = dict(PatientID=patient, PatientName=f'{patient}^DOE', SeriesInstanceUID=uid, StudyInstanceUID='1.2')
        tags['FrameOfReferenceUID'] = None
        for k in range(4):
            write_slice(tmp_path / f'{patient}{k}', body(60, k), position_mm=(0, 0, 5 * k + low), **tags)
    (tmp_path / 'boxes.csv').write_text(BOX + 'a,ANNA1,28,36,28,36\nb,BERTA1,28,36,28,36\n')
    patients, problems = scan_folder(tmp_path)
    assert [(p.key, len(p.annotations[0].series.slices)) for p in patients] == [('ANNA', 4), ('BERTA', 4)]
    assert all(p.key in p.annotations[0].series.identifiers for p in patients) and not problems


@pytest.mark.parametrize('uid', ['1.2.3', None])
@pytest.mark.parametrize('tag,values', [('SeriesNumber', '12'), ('SeriesDescription', ('arterial', 'portal'))])
@pytest.mark.parametrize('low,parted', [(0, True), (2.5, True), (20, False)])
def test_phases_that_reach_into_one_another_are_two_series(tmp_path, uid, tag, values, low, parted):
    "They share a folder and a UID, or have none, and no acquisition number. One after the other, they are one series"
    shared = dict(PatientID='G', SeriesInstanceUID=uid, StudyInstanceUID='1.2', FrameOfReferenceUID='1.4')
    for value, first in zip(values, (0, low)):
        for k in range(4):
            path = tmp_path / f'{value}{k}'
            write_slice(path, body(60, k), position_mm=(0, 0, 5 * k + first), **{tag: value}, **shared)
    (tmp_path / 'boxes.csv').write_text(BOX + f'a,{values[1]}1,28,36,28,36\n')
    (patient,), problems = scan_folder(tmp_path)
    (series,) = {a.series for a in patient.annotations}
    assert len(series.slices) == (4 if parted else 8) and not any(p.failed for p in problems)
    if parted and tag == 'SeriesDescription':
        assert series.phase == 'portal'


def test_copies_under_another_description_are_no_second_series(tmp_path):
    series(tmp_path / 'a', 'P1', n=4, SeriesDescription='portal')
    (tmp_path / 'b').mkdir()
    for f in (tmp_path / 'a').iterdir():
        ds = pydicom.dcmread(f)
        ds.SeriesDescription = 'renamed'
        ds.save_as(tmp_path / 'b' / f.name)
    (tmp_path / 'boxes.csv').write_text(BOX + 'a,a/1-01.dcm,28,36,28,36\n')
    (patient,), _ = scan_folder(tmp_path)
    assert patient.annotations[0].series.notes == ('4 copies of slices left out',)


def test_slices_without_patient_in_many_folders_are_one_series(tmp_path):
    "Anonymised, and spread over folders as some systems export them; the UID alone ties them"
    for k in range(4):
        (tmp_path / f'S{k}').mkdir()
        uids = dict(SeriesInstanceUID='1.2.3', StudyInstanceUID=None, FrameOfReferenceUID=None)
        write_slice(tmp_path / f'S{k}/IM1', body(60, k), position_mm=(0, 0, 5 * k), **uids)
    (tmp_path / 'boxes.csv').write_text('lesion,z_mm,row_min,row_max,col_min,col_max\na,5,28,36,28,36\n')
    (patient,), _ = scan_folder(tmp_path)
    assert len(patient.annotations[0].series.slices) == 4


def test_an_outline_of_another_phase_is_noted(tmp_path):
    "The SEG's own series is not here, but one in the same space is"
    series(tmp_path, 'P1')
    ds = pydicom.dcmread(tmp_path / '1-01.dcm')
    ds.Modality, ds.SOPClassUID = 'SEG', '1.2.840.10008.5.1.4.1.1.66.4'
    ds.ReferencedSeriesSequence = [pydicom.Dataset()]
    for uid, notes in (('1.2.60', ()), ('1.2.99', ('drawn on another series of the same space, which is not here',))):
        ds.ReferencedSeriesSequence[0].SeriesInstanceUID = uid
        ds.save_as(tmp_path / 'seg.dcm')
        (patient,), _ = scan_folder(tmp_path)
        assert patient.annotations[0].notes == notes


# images that are no CT in Hounsfield units


def to_nifti(values, path):
    "Slices (N,64,64) on the grid of `series`"
    nib.Nifti1Image(np.transpose(values, (2, 1, 0)), np.diag([-1, -1, 5, 1])).to_filename(path)


@pytest.mark.parametrize(
    'change,said',
    [
        (lambda hu: (hu + 1024).astype(np.int16), 'HU + 1024'),
        (lambda hu: np.uint8(255 * ((hu + 90) / 300).clip(0, 1)), 'a window of greys'),
        (lambda hu: np.float32((hu + 90) / 300).clip(0, 1), 'a scale or a probability'),
        (lambda hu: np.where(LIVER, hu.clip(0), 0).astype(np.int16), 'masked with 0'),
    ],
)
def test_a_nifti_that_is_no_ct_in_hounsfield_units(tmp_path, change, said):
    "Beside the DICOM: once read as a label map of hundreds of structures"
    series(tmp_path / 'src', 'P1')
    to_nifti(change(np.stack([body(60, k) for k in range(3)])), tmp_path / 'src/ct.nii.gz')
    annotations, reasons = found(tmp_path / 'src')
    assert not annotations and any(said in r and 'save it in Hounsfield units' in r for r in reasons)


@pytest.mark.parametrize(
    'change,note',
    [
        (lambda hu: np.where(hu > -500, hu, 0), 'pixels outside a mask are 0 HU'),
        (lambda hu: hu.clip(-160, 240), 'values below -160 HU are cut off'),
        (lambda hu: hu, None),
    ],
)
def test_a_nifti_ct_that_was_changed_is_noted(tmp_path, change, note):
    to_nifti(change(np.stack([body(60, k) for k in range(3)])).astype(np.int16), tmp_path / 'volume-1.nii.gz')
    to_nifti(np.stack([LIVER] * 3).astype(np.uint8), tmp_path / 'segmentation-1.nii.gz')
    (patient,), _ = scan_folder(tmp_path)
    notes = patient.annotations[0].series.notes
    assert (note in notes) if note else not notes


def test_a_picture_of_a_ct_is_no_mask(tmp_path):
    "8-bit JPEG in DICOM: once a mask folder"
    series(tmp_path / 'ct', 'P1')
    series(tmp_path / 'key images', 'P1', 61)
    for f in (tmp_path / 'key images').iterdir():
        ds, jpeg = pydicom.dcmread(f), BytesIO()
        Image.fromarray(np.uint8(((body() + 90) / 300).clip(0, 1) * 255)).save(jpeg, 'JPEG')
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit, ds.PixelRepresentation = 7, 0
        ds.PixelData = encapsulate([jpeg.getvalue()])
        ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        ds.save_as(f)
    _, reasons = found(tmp_path)
    assert [r for r in reasons if '8 bits compressed with loss' in r and r.startswith('3 x ')]
    shutil.rmtree(tmp_path / 'ct')
    with pytest.raises(InputError, match='3 x DICOM slice of 8 bits compressed with loss'):
        scan_folder(tmp_path)


@pytest.mark.parametrize(
    'tags,note',
    [
        ({'ImageType': ['DERIVED', 'SECONDARY', 'MPR']}, 'images derived from others, not as the scanner made them'),
        ({'LossyImageCompression': '01'}, 'pixels compressed with loss'),
        ({'ImageOrientationPatient': [1, 0, 0, 0, -1, 0]}, 'slices lay turned or mirrored, and are turned upright'),
        ({'ImageOrientationPatient': [1, 0, 0, 0, 0, -1]}, 'slices are not axial'),
    ],
)
def test_what_was_done_to_a_series_is_noted(tmp_path, tags, note):
    series(tmp_path / 'ct', 'P1', n=1, **tags)
    (tmp_path / 'boxes.csv').write_text(BOX + 'a,1-01.dcm,28,36,28,36\n')
    (patient,), _ = scan_folder(tmp_path)
    assert patient.annotations[0].series.notes == (note,)


@pytest.mark.parametrize(
    'tags', [{'RescaleType': 'MGML'}, {'ImageType': ['DERIVED', 'SECONDARY', 'AXIAL', 'PERFUSION', 'CBF']}]
)
def test_maps_are_not_taken_for_ct(tmp_path, tags):
    series(tmp_path / 'ct', 'P1')
    series(tmp_path / 'flow', 'P1', 61, **tags)
    _, reasons = found(tmp_path)
    assert any(r.startswith('3 x DICOM map') for r in reasons)
    assert sum('without an annotation' in r for r in reasons) == 1  # of the CT


@real
def test_lossy_syntaxes_of_real_files_are_noted(tmp_path):
    for i, f in enumerate((REALDATA / 'transfer_syntaxes').iterdir()):
        (tmp_path / f.name).mkdir()
        ds = pydicom.dcmread(f)
        ds.PatientID = ds.SeriesInstanceUID = f'1.{i}'
        ds.save_as(tmp_path / f.name / 'slice.dcm')
        Image.fromarray(np.eye(512, dtype=bool)).save(tmp_path / f.name / 'tumour.png')
    patients, _ = scan_folder(tmp_path)
    lossy = {a.series.folder.name for p in patients for a in p.annotations if 'with loss' in ' '.join(a.series.notes)}
    assert {name.split('_')[1] for name in lossy} == {'JPEGProcess10'}


# masks in DICOM


@pytest.fixture
def segmentation(tmp_path):
    "3D-IRCADb's masks as 16 bits with the series UID of the CT, in a folder called Segmentation; the first ones empty"
    if not REALDATA.is_dir():
        pytest.skip(f"no real CT at {REALDATA}: set LIVERDIS_REALDATA to the folder that holds it")
    (tmp_path / 'ct').mkdir()
    (tmp_path / 'Segmentation').mkdir()
    for f in (REALDATA / 'ircad17/PATIENT_DICOM').iterdir():
        (tmp_path / 'ct' / f.name).symlink_to(f)
        ct, mask = pydicom.dcmread(f), pydicom.dcmread(REALDATA / 'ircad17/MASKS_DICOM/livertumor1' / f.name)
        ct.PixelData = (mask.pixel_array > 0).astype(np.int16).tobytes()
        ct.save_as(tmp_path / 'Segmentation' / f.name)
    return tmp_path


def test_masks_of_16_bits(segmentation):
    (patient,), problems = scan_folder(segmentation)
    (annotation,) = patient.annotations
    assert (annotation.kind, annotation.series.folder.name, len(annotation.series.slices)) == ('dicom-mask', 'ct', 36)
    assert not problems
    (lesion,) = read_structures(annotation.paths, 'dicom-mask', annotation.series.slices, None, annotation.headers)
    drawn = [(pydicom.dcmread(p).pixel_array > 0).sum() for p in annotation.paths]
    assert lesion.name == 'Segmentation' and sum(m.sum() for m in lesion.masks.values()) == sum(drawn) > 1000


def test_masks_longer_than_a_trimmed_ct(segmentation):
    "The CT has only its lower half; the mask goes on above it"
    heights = {f: pydicom.dcmread(f).ImagePositionPatient[2] for f in (segmentation / 'ct').iterdir()}
    for f in sorted(heights, key=heights.get)[12:]:
        f.unlink()
    shutil.copytree(REALDATA / 'ircad17/MASKS_DICOM', segmentation / 'MASKS_DICOM')
    patients, problems = scan_folder(segmentation)
    assert len(patients[0].annotations) == 4  # three folders of 8 bits, one of 16
    assert {len(a.series.slices) for a in patients[0].annotations} == {12}
    assert not [p for p in problems if p.failed]


def test_a_ct_in_a_folder_named_after_masks(tmp_path):
    series(tmp_path / 'segmentation challenge/case 1/masked ct', 'P1')
    (tmp_path / 'segmentation challenge/case 1/boxes.csv').write_text(BOX + 'a,1-02.dcm,28,36,28,36\n')
    annotations, reasons = found(tmp_path)
    assert [a[:2] for a in annotations] == [('P1', 'boxes')] and not reasons


# upright


@pytest.mark.parametrize('swap', [False, True])
@pytest.mark.parametrize('rows,columns', [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_every_way_to_lie_is_turned_upright(swap, rows, columns):
    "Pixels that are not square, on an image that is not square, tilted a little"
    tilt = np.array([[1, 0, 0], [0, np.cos(0.2), np.sin(0.2)]])
    hu, mask = np.random.default_rng(0).normal(60, 20, (7, 5)).astype(np.float32), np.zeros((7, 5), bool)
    mask[1, 3] = True
    known = dict(sop_uid='1.2', path=Path('a.dcm'))
    upright_slice = CTSlice(
        shape=(7, 5),
        spacing_mm=(0.5, 0.8),
        position_mm=(-9.0, 3.0, 2.0),
        orientation=tuple(tilt.ravel()),
        hu=hu,
        **known,
    )
    corner = np.where([rows < 0, columns < 0], [6, 4], 0)
    directions, step = np.stack([tilt[0] * columns, tilt[1] * rows]), slice(None, None, -1 if swap else 1)
    lying = lambda image: (lambda flipped: flipped.T if swap else flipped)(image[::rows, ::columns])
    stored = CTSlice(
        shape=(7, 5)[step],
        spacing_mm=(0.5, 0.8)[step],
        position_mm=tuple(upright_slice.position_mm + upright_slice.axes[:, :2] @ corner),
        orientation=tuple(directions[step].ravel()),
        hu=lying(hu),
        **known,
    )
    turned, its_mask = upright(stored, lying(mask))
    np.testing.assert_array_equal(turned.hu, hu)
    np.testing.assert_array_equal(its_mask, mask)
    assert (turned.shape, turned.spacing_mm, turned.sop_uid) == ((7, 5), (0.5, 0.8), '1.2')
    np.testing.assert_allclose(turned.position_mm, upright_slice.position_mm)
    np.testing.assert_allclose(turned.orientation, tilt.ravel())


def test_slices_across_the_body_stay(tmp_path):
    write_slice(tmp_path / 'coronal.dcm', body(), ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    ct = read_slice(tmp_path / 'coronal.dcm')
    mask = ct.hu > 0
    same, its_mask = upright(ct, mask)
    assert same is ct and its_mask is mask


# files that are not read, and zip files


def test_every_unread_file_is_counted(tmp_path):
    series(tmp_path / 'ct', 'P1')
    (tmp_path / 'DICOMDIR').write_text('an index that is none')
    for name in (
        'a.iso',
        'b.iso',
        'c.rar',
        'd.stl',
        'report.pdf',
        'e.mat',
        'Smith.jane',
        'f.mrb',
        'g.xlsx',
        'note.csv',
    ):
        (tmp_path / name).write_text('x')
    (tmp_path / 'coco.json').write_text('{"images": [], "annotations": [], "categories": []}')
    Image.new('RGB', (16, 16)).save(tmp_path / 'icon.png')
    across = dict(ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    write_slice(tmp_path / 'scout.dcm', body(), **across)
    write_slice(tmp_path / 'mr.dcm', body(), Modality='MR')
    write_slice(tmp_path / 'sr.dcm', body(), Modality='SR')
    patients, problems = scan_folder(tmp_path)
    counts = [p.reason.split(':')[0] for p in problems if ' x ' in p.reason]
    assert sorted(counts) == sorted(
        [
            '2 x CD image',
            '1 x archive',
            '1 x surface',
            '1 x document',
            '1 x array without geometry',
            '2 x file of unknown kind',
            '1 x scene of a viewer',
            '1 x spreadsheet',
            '1 x table without boxes or polygons',
            '1 x COCO annotation (.json)',
            '1 x DICOM image of another modality',
            '1 x DICOM structured report',
            '1 x DICOM scout image',
            '1 x picture of another size than the slices',
        ]
    )
    assert not any(p.failed for p in problems) and not any('Smith' in p.reason for p in problems)
    assert all(p.path.is_file() for p in problems)


def test_a_folder_without_ct_says_what_is_there(tmp_path):
    for k in range(12):
        (tmp_path / f'{k}.stl').write_text('solid')
    with pytest.raises(InputError, match='12 x surface: not read; save it as a label map'):
        scan_folder(tmp_path)


def test_many_broken_files_give_one_line(tmp_path):
    series(tmp_path / 'ct', 'P1')
    series(tmp_path / 'old', 'P1', 61, n=40, RescaleSlope=None)
    _, problems = scan_folder(tmp_path)
    (problem,) = [p for p in problems if p.failed]
    assert 'RescaleSlope' in problem.reason and '39 more files of this folder' in problem.reason


def test_half_a_cd(tmp_path):
    "DICOMDIR names two files; one was not copied"
    series(tmp_path / 'CT', 'P1', n=2)
    (tmp_path / 'CT/1-01.dcm').rename(tmp_path / 'CT/IM1')
    records = [pydicom.Dataset(), pydicom.Dataset()]
    for record, name in zip(records, ('IM1', 'IM9')):
        record.ReferencedFileID = ['CT', name]
    directory = pydicom.dcmread(tmp_path / 'CT/IM1', stop_before_pixels=True)
    directory.DirectoryRecordSequence = records
    directory.save_as(tmp_path / 'DICOMDIR')
    _, problems = scan_folder(tmp_path)
    assert [p.reason for p in problems if p.failed] == ['names 1 of 2 files that are not here; copy the whole CD']


def test_zip_files_are_searched_like_folders(two_patients):
    (two_patients / 'P1/boxes.csv').write_text(BOX + 'a,1-02.dcm,28,36,28,36\n')
    (two_patients / 'P2/boxes.csv').write_text(BOX + 'a,portal/image/1-02.dcm,28,36,28,36\n')
    plain = [(patient, kind, folder.relative_to(two_patients)) for patient, kind, folder in found(two_patients)[0]]
    shutil.make_archive(two_patients / 'all', 'zip', two_patients)
    shutil.make_archive(two_patients / 'second', 'zip', two_patients / 'P2')
    shutil.rmtree(two_patients / 'P2')
    with source_folder(two_patients / 'all.zip') as source:
        zipped = [
            (patient, kind, folder.relative_to(source.folder)) for patient, kind, folder in found(source.folder)[0]
        ]
    assert zipped == plain and len(plain) == 2
    (two_patients / 'all.zip').unlink()
    with source_folder(two_patients) as source:
        (_, (_, _, folder)), _ = found(source.folder)
        assert source.shown(folder) == two_patients / 'second.zip/portal/image' and folder.is_dir()
    assert not folder.exists() and not (two_patients / 'second').exists()


def test_a_slice_in_a_coding_that_is_none(tmp_path):
    "Costs its lesion, in one line; the search for masks of 16 bits once ended in a traceback"
    series(tmp_path / 'in/P1', 'P1')
    (tmp_path / 'in/P1/boxes.csv').write_text(BOX + 'a,1-01.dcm,28,36,28,36\nb,1-02.dcm,28,36,28,36\n')
    path = tmp_path / 'in/P1/1-02.dcm'
    path.write_bytes(path.read_bytes().replace(b'1.2.840.10008.1.2.1\0', b'1.2.840.10008.9.9.9\0', 1))
    done = ingest(tmp_path / 'in', tmp_path / 'out', LabelRules((('*', 'cyst', '*'),)))
    assert len(done.manifest) == 1 and ['no transfer syntax' in reason for reason in done.skipped.reason] == [True]


def test_a_zip_file_that_leads_out_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'bad.zip', 'w') as made:
        made.writestr('../../outside.dcm', 'x')
    with pytest.raises(InputError, match='bad.zip: holds a path that leads out'), source_folder(tmp_path):
        pass


def test_a_cohort_from_a_zip_file(two_patients, tmp_path_factory):
    "As from the folder; a second run finds nothing to do, though the scratch folder is another"
    (two_patients / 'P1/boxes.csv').write_text(BOX + 'a,1-02.dcm,28,36,28,36\n')
    (two_patients / 'P2/boxes.csv').write_text(BOX + 'b,portal/image/1-02.dcm,28,36,28,36\n')
    out, rules = tmp_path_factory.mktemp('out'), LabelRules((('*', 'cyst', '*'),))
    load_key(out / 'key')
    zipped = Path(shutil.make_archive(out / 'all', 'zip', two_patients))
    for src, to in ((two_patients, 'plain'), (zipped, 'zipped')):
        done = ingest(src, out / to, rules, key=out / 'key')
        assert len(done.manifest) == 2 and not done.failed and done.redone == 2
    assert ingest(zipped, out / 'zipped', rules, key=out / 'key').redone == 0
    tables = [pd.read_csv(out / to / 'measurements.csv') for to in ('plain', 'zipped')]
    pd.testing.assert_frame_equal(*tables)
    assert sorted(tables[0].hu_mean.round(-1)) == [50, 110]  # each on its own patient, in the right phase
    rois = [load_rois(load_manifest(out / to / 'manifest.csv'), 0.25, 32) for to in ('plain', 'zipped')]
    np.testing.assert_array_equal(*rois)
    text = ' '.join(f.read_text() for f in (out / 'zipped').rglob('*') if f.suffix in ('.csv', '.json', '.html'))
    assert 'liverdis-' not in text and 'all.zip' not in text


# what was silently wrong, or wrongly refused, for other reasons


def measured(src, rules=(('*', 'metastasis', '*'),), **how):
    "The cohort of a folder as `measurements.csv` has it, and what ingest says of it"
    done = ingest(src, src.with_name('out'), LabelRules(rules), **how)
    table = src.with_name('out') / 'measurements.csv'
    return (pd.read_csv(table) if done.manifest else None), done


def why_not(done):
    "All that was left out, in words"
    return ' '.join([*done.skipped.reason, *done.details.values(), *(p.reason for p in done.problems)])


def outline(rows=slice(28, 36), columns=slice(26, 36)):
    "A mask on one slice, (64,64)"
    mask = np.zeros((64, 64), np.uint8)
    mask[rows, columns] = 255
    return mask


def volume_pair(folder, ct, mask):
    "A CT of three slices and a mask of its middle one, as NIfTI"
    folder.mkdir(parents=True)
    to_nifti(np.stack([body(60, k) for k in range(3)]).astype(np.int16), folder / ct)
    to_nifti(np.stack([0 * outline(), outline(), 0 * outline()]), folder / mask)


def test_folder_that_the_system_does_not_list_is_told(tmp_path, monkeypatch):
    "It may hold a lesion, so no healthy square is cut from this liver either"
    series(tmp_path / 'src/P1/ct', 'P1')
    (tmp_path / 'src/P1/hidden').mkdir()
    scandir = os.scandir

    def refusing(path='.'):
        if Path(path).name == 'hidden':
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refusing)
    _, problems = scan_folder(tmp_path / 'src')
    assert [(p.path.name, p.failed) for p in problems if 'Permission denied' in p.reason] == [('hidden', True)]


@pytest.mark.parametrize('z,said', [('5', ''), ('6', ''), ('20', 'lies 10 mm off'), ('999', 'lies 989 mm off')])
def test_row_with_image_and_z_lies_where_that_image_has_a_slice(tmp_path, z, said):
    series(tmp_path / 'src/P1', 'P1')
    name = read_slice(tmp_path / 'src/P1/1-02.dcm').sop_uid if not said else '1-03.dcm'
    text = f'lesion,image,z_mm,row_min,row_max,col_min,col_max\na,{name},{z},28,35,26,35\n'
    (tmp_path / 'src/P1/boxes.csv').write_text(text)
    table, done = measured(tmp_path / 'src')
    if said:
        assert table is None and said in why_not(done)
    else:
        assert list(table.slice_index) == [1]


def test_box_on_another_slice_of_a_volume_is_not_on_this_one(tmp_path):
    volume_pair(tmp_path / 'P', 'ct.nii.gz', 'mask.nii.gz')
    slices = volume_headers(tmp_path / 'P/ct.nii.gz')
    z = slices[1].position_mm[2]
    text = f'lesion,image,z_mm,row_min,row_max,col_min,col_max\na,ct.nii.gz,{z},28,35,26,35\n'
    (tmp_path / 'boxes.csv').write_text(text)
    on = [read_structures([tmp_path / 'boxes.csv'], 'boxes', [s])[0].masks for s in slices]
    assert [bool(masks) for masks in on] == [False, True, False]


def test_pictures_do_not_say_how_a_volume_is_turned(tmp_path):
    volume_pair(tmp_path / 'src/P1', 'ct.nii.gz', 'mask.nii.gz')
    (tmp_path / 'src/P1/mask.nii.gz').unlink()
    for k in range(3):
        Image.fromarray(outline() * (k == 1)).save(tmp_path / f'src/P1/mask_{k + 1}.png')
    table, done = measured(tmp_path / 'src')
    assert table is None and 'save the mask as NIfTI' in why_not(done)
    one = volume_headers(tmp_path / 'src/P1/ct.nii.gz')[1:2]
    (found_there,) = read_structures([tmp_path / 'src/P1/mask_2.png'], 'png-mask', one)
    assert 'front up' in found_there.notes[0] and (found_there.masks[0] == (outline() > 0)).all()


@pytest.mark.parametrize('kind', formats.ALL)
@pytest.mark.parametrize('down', [1, -1], ids=['upright', 'mirrored'])
def test_lesions_are_counted_from_the_foot_up(tmp_path, kind, down):
    "Also where the rows of axial slices run to the front, so that their normal points to the foot"
    series(tmp_path / 'src/ct', 'P1', n=7, ImageOrientationPatient=[1, 0, 0, 0, down, 0])
    ct = [pydicom.dcmread(f) for f in sorted((tmp_path / 'src/ct').iterdir())]
    masks = np.zeros((7, 64, 64), bool)
    masks[1, 20:29, 20:29] = masks[4, 36:45, 30:39] = True
    formats.ALL[kind](tmp_path / 'src', ct, masks)
    table, _ = measured(tmp_path / 'src', rules=(('*#1', 'cyst', '*'), ('*#2', 'metastasis', '*')))
    upper, lower = (table[table.label == label].iloc[0] for label in ('metastasis', 'cyst'))
    assert (lower.slice_index, upper.slice_index) == (1, 4)
    rows = (20, 36) if down == 1 else (63 - 28, 63 - 44)  # of the slices when they are turned upright
    assert abs(lower.row_min - rows[0]) <= 1 and abs(upper.row_min - rows[1]) <= 1


@pytest.mark.parametrize('name', ['slice_{:03}_mask.png', 'mask_{:03}.png', '{:03}_tumour_mask.png'])
def test_number_of_a_picture_may_stand_anywhere_in_its_name(tmp_path, name):
    "And a folder that counts from 0 is paired in order"
    series(tmp_path / 'src/P1/ct', 'P1')
    (tmp_path / 'src/P1/masks').mkdir()
    for k in range(3):
        Image.fromarray(outline() * (k >= 1)).save(tmp_path / 'src/P1/masks' / name.format(k))
    table, _ = measured(tmp_path / 'src')
    assert (list(table.n_slices), list(table.slice_index)) == ([2], [1])


@pytest.mark.parametrize('name,in_a_folder', [('lesion1.nii.gz', True), ('lesion2.nii.gz', False)])
def test_numbers_choose_among_volumes_and_refuse_none_that_is_alone(tmp_path, name, in_a_folder):
    volume_pair(tmp_path / 'src/P1', 'ct_20230115.nii.gz', name)
    if not in_a_folder:
        shutil.copy(tmp_path / 'src/P1/ct_20230115.nii.gz', tmp_path / 'src/P1/ct_20230116.nii.gz')
    table, done = measured(tmp_path / 'src')
    if in_a_folder:
        assert list(table.slice_index) == [1]
        assert 'other numbers than that of its CT' in table.notes[0]
    else:
        assert table is None and 'other numbers' in why_not(done)


@pytest.mark.parametrize(
    'ct,masks',
    [
        ('{}/CT_20200315.nii.gz', ['{}/seg/tumor_1.nii.gz', '{}/seg/tumor_2.nii.gz']),
        ('{}/case_007.nii.gz', ['{}/segmentations/rib_left_1.nii.gz', '{}/segmentations/vertebrae_L5.nii.gz']),
        ('{}/images/CT_20200315.nii.gz', ['{}/masks/tumor_1.nii.gz', '{}/totalseg/tumor_2.nii.gz']),
    ],
)
def test_numbers_of_masks_in_a_patients_folder(tmp_path, ct, masks):
    "They count the masks, and are not those of the only CT there"
    for patient in ('P3', 'P4'):
        lay(tmp_path, [ct.format(patient)], [])
        for mask in masks:
            (tmp_path / mask.format(patient)).parent.mkdir(exist_ok=True)
            to_nifti(np.stack([0 * outline(), outline(), 0 * outline()]), tmp_path / mask.format(patient))
    patients, problems = scan_folder(tmp_path)
    drawn = [[a.paths[0].relative_to(tmp_path).parts[0] for a in p.annotations] for p in patients]
    assert sorted(drawn) == [['P3', 'P3'], ['P4', 'P4']] and not problems
    assert all('other numbers' in a.notes[0] for p in patients for a in p.annotations)


@pytest.mark.parametrize('stray', ['A/P8/mask_8.nii.gz', 'mask_8.nii.gz', 'masks/mask_8.nii.gz', 'C/mask_8.nii.gz'])
def test_a_numbered_mask_of_a_patient_whose_ct_is_missing(tmp_path, stray):
    "One CT of the same grid is near it, or several are, and none of them is its own"
    lay(tmp_path, ['A/P7/ct_7.nii.gz', 'B/P9/ct_9.nii.gz'], [])
    (tmp_path / stray).parent.mkdir(exist_ok=True)
    to_nifti(np.stack([0 * outline(), outline(), 0 * outline()]), tmp_path / stray)
    patients, problems = scan_folder(tmp_path)
    (problem,) = [p for p in problems if p.failed]
    assert not patients and 'other numbers' in problem.reason


@pytest.mark.parametrize('cts,masks', [(['{}_ct'], ['{}_mask', '{}_vessels']), (['{}_ct_pv'], ['{}_pv_mask'])])
def test_words_that_all_names_have_keep_no_mask_from_its_ct(tmp_path, cts, masks):
    for patient in ('anna', 'bob'):
        lay(tmp_path, [f'{ct.format(patient)}.nii.gz' for ct in cts], [])
        for mask in masks:
            to_nifti(np.stack([LIVER] * 3).astype(np.uint8), tmp_path / f'{mask.format(patient)}.nii.gz')
    patients, problems = scan_folder(tmp_path)
    whose = {p.key.split('_')[0]: {a.paths[0].name.split('_')[0] for a in p.annotations} for p in patients}
    assert whose == {'anna': {'anna'}, 'bob': {'bob'}} and not problems
    to_nifti(np.stack([LIVER] * 3).astype(np.uint8), tmp_path / 'mask.nii.gz')
    assert [p.path.name for p in scan_folder(tmp_path)[1] if 'of 2 patients' in p.reason] == ['mask.nii.gz']


def item(**attributes):
    "An item of a DICOM sequence"
    ds = pydicom.Dataset()
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


@pytest.mark.parametrize(
    'holds,hinders',
    [
        (dict(Modality='SR', ContentSequence=[item(ValueType='NUM'), item(ValueType='CONTAINER')]), False),
        (dict(Modality='SR', ContentSequence=[item(ContentSequence=[item(ValueType='SCOORD')])]), True),
        (dict(Modality='SR', ContentSequence=[item(ContentSequence=[item(ValueType='SCOORD3D')])]), True),
        (
            dict(Modality='PR', GraphicAnnotationSequence=[item(TextObjectSequence=[item(UnformattedTextValue='L')])]),
            False,
        ),
        (
            dict(Modality='PR', GraphicAnnotationSequence=[item(GraphicObjectSequence=[item(GraphicType='CIRCLE')])]),
            True,
        ),
        (dict(Modality='PR', OverlayRows=64), True),
    ],
)
def test_what_a_report_or_a_presentation_draws_may_be_a_lesion(tmp_path, holds, hinders):
    "Healthy squares wait until somebody has looked at it; a dose report hinders nothing"
    folder = tmp_path / 'src/P1'
    series(folder / 'ct', 'P1')
    to_nifti(np.stack([LIVER] * 3).astype(np.uint8), folder / 'liver.nii.gz')
    ds = pydicom.dcmread(folder / 'ct/1-01.dcm')
    for name, value in ((name, v) for name, v in holds.items() if name != 'OverlayRows'):
        setattr(ds, name, value)
    if 'OverlayRows' in holds:
        ds.add_new(0x60000010, 'US', holds['OverlayRows'])
    ds.save_as(folder / 'other.dcm')
    _, problems = scan_folder(tmp_path / 'src')
    (problem,) = [p for p in problems if p.path.name == 'other.dcm']
    assert problem.unseen == hinders and ('as DICOM SEG' in problem.reason) == hinders


@pytest.mark.skipif(os.name != 'posix', reason='other systems keep no such names')
@pytest.mark.parametrize('was,named', [('P1', b'J\xf6rg'), ('P1/mask.nii.gz', b'P1/L\xe4sion.nii.gz')])
def test_name_in_no_known_encoding(tmp_path, was, named):
    "As old CDs, FAT sticks and unzip leave them; twice, since the private table is read again"
    volume_pair(tmp_path / 'src/P1', 'ct.nii.gz', 'mask.nii.gz')
    os.rename(os.fsencode(tmp_path / 'src' / was), os.fsencode(tmp_path / 'src/') + b'/' + named)
    (Path(os.fsdecode(os.fsencode(tmp_path / 'src') + b'/Gr\xf6\xdfe.foo'))).write_text('x')
    for redone in (1, 0):
        table, done = measured(tmp_path / 'src')
        assert (list(table.slice_index), done.redone) == ([1], redone)
    (tmp_path / 'out.private.csv').read_text(encoding='utf-8')


def test_patients_of_a_table_may_have_lesions_of_one_name(tmp_path):
    for patient, value in (('P1', 50), ('P2', 110)):
        series(tmp_path / 'src' / patient, patient, value)
    rows = [('cyst', 'P1'), ('metastasis', 'P2')]
    uids = [read_slice(tmp_path / f'src/{patient}/1-02.dcm').sop_uid for _, patient in rows]
    lines = [f'1,{uid},{label},28,35,26,35' for uid, (label, _) in zip(uids, rows)]
    (tmp_path / 'src/t.csv').write_text('\n'.join(['lesion,image,label,row_min,row_max,col_min,col_max', *lines]))
    table, _ = measured(tmp_path / 'src', rules=())
    assert sorted(table.label) == ['cyst', 'metastasis']


def test_stored_regions_of_pixels_that_are_not_square_are_those_cut_anew(tmp_path):
    "15: `ingest` stores what `extract_roi` cuts"
    series(tmp_path / "src", "P1", spacing_mm=(0.8, 0.6))
    (tmp_path / "src/boxes.csv").write_text(BOX + "a,1-02.dcm,26,37,28,45\n")
    m = ingest(tmp_path / "src", tmp_path / "out", LabelRules((('*', 'cyst', '*'),))).manifest
    o = IngestOptions()
    assert m.df.row_spacing_mm[0] == 0.8 and m.df.col_spacing_mm[0] == 0.6
    stored = cached_rois(m, o.margin, o.size)[0, 0]
    np.testing.assert_array_equal(stored, extract_roi(m.df.iloc[0], m.root, o.margin, o.size))


def test_numbers_of_pictures_that_run_against_the_body_are_told(tmp_path):
    "InstanceNumber from the head, pictures perhaps from the feet: one for each slice, and nothing to tell"
    series(tmp_path / 'src/P1/ct', 'P1')
    for k in range(3):
        ds = pydicom.dcmread(f := tmp_path / f'src/P1/ct/1-{k + 1:02d}.dcm')
        ds.InstanceNumber = 3 - k
        ds.save_as(f)
        Image.fromarray(outline() * (k == 0)).save(tmp_path / f'src/P1/mask_{k + 1}.png')
    table, _ = measured(tmp_path / 'src')
    assert list(table.slice_index) == [2] and 'by InstanceNumber' in table.notes[0]


def test_compressed_masks_of_16_bits_are_masks(tmp_path):
    "In a folder whose name does not say so"
    series(tmp_path / 'src/P1/ct', 'P1')
    for k in range(3):
        f = tmp_path / f'src/P1/tumor1/{k}.dcm'
        f.parent.mkdir(exist_ok=True)
        tags = dict(PatientID='P1', SeriesInstanceUID='1.9', StudyInstanceUID='1.31', FrameOfReferenceUID='1.4')
        write_slice(f, outline() * (k == 1) - 0.0, position_mm=(0, 0, 5 * k), InstanceNumber=k + 1, **tags)
        ds = pydicom.dcmread(f)
        ds.RescaleIntercept, ds.PixelData = 0, (outline().astype('i2') * (k == 1)).tobytes()
        ds.compress(pydicom.uid.RLELossless)
        ds.save_as(f)
    assert [kind for _, kind, _ in found(tmp_path / 'src')[0]] == ['dicom-mask']


@pytest.mark.parametrize('suffix', ['mhd', 'nhdr'])
def test_mask_whose_numbers_lie_apart_is_read_again_when_they_change(tmp_path, suffix):
    volume_pair(tmp_path / 'src/P1', 'ct.nii.gz', 'mask.nii.gz')
    (tmp_path / 'src/P1/mask.nii.gz').unlink()
    said = {
        'mhd': 'ObjectType = Image\nNDims = 3\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n'
        'ElementSpacing = 1 1 5\nDimSize = 64 64 3\nElementType = MET_UCHAR\nElementDataFile = mask.raw\n',
        'nhdr': 'NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 64 64 3\n'
        'space directions: (1,0,0) (0,1,0) (0,0,5)\nspace origin: (0,0,0)\nencoding: raw\ndata file: mask.raw\n',
    }
    (tmp_path / f'src/P1/mask.{suffix}').write_text(said[suffix])
    sizes = []
    for side in (8, 12):
        mask = outline(slice(20, 20 + side), slice(20, 20 + side)) // 255
        (tmp_path / 'src/P1/mask.raw').write_bytes(np.stack([0 * mask, mask, 0 * mask]).tobytes())
        sizes.append(measured(tmp_path / 'src')[0].area_mm2[0])
    assert sizes == [64, 144]


@pytest.mark.parametrize('drawn', [('1-02', '1-02'), ('1-01', '1-03')], ids=['same slice', 'another lesion'])
@pytest.mark.parametrize('values', [(60, 60), (60, 70)])
def test_one_scan_under_two_patient_ids_is_told(tmp_path, drawn, values):
    for patient, name, value in zip(('P1', 'P2'), drawn, values):
        series(tmp_path / 'src' / patient, patient, value)
        Image.fromarray(outline()).save(tmp_path / 'src' / patient / f'{name}.png')
    _, done = measured(tmp_path / 'src')
    told = 'one person would count as two' in why_not(done)
    assert len(done.manifest) == 2 and told == (values[0] == values[1])


def test_patients_that_are_removed_are_told(tmp_path):
    for patient, value in (('P1', 60), ('P2', 80)):
        series(tmp_path / patient / 'ct', patient, value)
        Image.fromarray(outline()).save(tmp_path / patient / 'ct/1-02.png')
    rules = LabelRules((('*', 'metastasis', '*'),))
    first, then = (ingest(tmp_path / patient, tmp_path / 'out', rules) for patient in ('P1', 'P2'))
    assert not first.problems and '1 patient(s) of an earlier run' in why_not(then)


@pytest.mark.parametrize('name', ['Doe^Jane', ''])
def test_studies_of_one_name_without_an_id_are_told(tmp_path, name):
    for k, value in enumerate((60, 80)):
        series(tmp_path / f'src/{k}', 'P1', value, PatientName=name)
        for f in (tmp_path / f'src/{k}').iterdir():
            ds = pydicom.dcmread(f)
            ds.PatientID, ds.StudyInstanceUID = '', f'1.7.{k}'
            ds.save_as(f)
    told = [p.reason for p in scan_folder(tmp_path / 'src')[1] if 'counts as another patient' in p.reason]
    assert len(told) == bool(name)


def test_volumes_of_one_folder_that_differ_by_a_date_are_told(tmp_path):
    for patient, dates in (('P1', ('20190301', '20200214')), ('P2', ('20180711',))):
        for date in dates:
            volume_pair(tmp_path / f'{patient}_{date}', f'ct_{date}.nii.gz', f'ct_{date}_mask.nii.gz')
            shutil.copytree(tmp_path / f'{patient}_{date}', tmp_path / 'src' / patient, dirs_exist_ok=True)
    told = [p.path.name for p in scan_folder(tmp_path / 'src')[1] if 'but for a date' in p.reason]
    assert told == ['ct_20200214.nii.gz']


def test_one_id_with_two_birth_dates_is_told(tmp_path):
    for k, value in enumerate((60, 80)):
        series(tmp_path / f'src/{k}', 'P1', value, PatientName='ANON', PatientBirthDate=f'19{k}00101')
    told = [p.reason for p in scan_folder(tmp_path / 'src')[1]]
    assert sum('another PatientName or birth date' in reason for reason in told) == 1


@pytest.mark.parametrize('names,told', [(['Doe^Jane', 'DOE JANE'], 1), (['Anonymous'] * 2, 0), (['Doe^Jane'] * 6, 0)])
def test_one_person_under_two_patient_ids_is_told(tmp_path, names, told):
    "Name and birth date agree; a name that all have, or that anonymisers give, says nothing"
    for k, name in enumerate(names):
        series(tmp_path / f'src/{k}', f'P{k}', 50 + k, PatientName=name, PatientBirthDate='19570713')
    problems = [p for p in scan_folder(tmp_path / 'src')[1] if 'counts as another patient' in p.reason]
    assert len(problems) == told and all(p.doubt and 'PatientName, and the birth date' in p.reason for p in problems)


def test_two_people_of_one_name_are_two(tmp_path):
    for k, born in enumerate(('19570713', '19610102', '')):
        series(tmp_path / f'src/{k}', f'P{k}', 50 + k, PatientName='Doe^Jane', PatientBirthDate=born)
    assert not [p for p in scan_folder(tmp_path / 'src')[1] if p.doubt]


@pytest.mark.parametrize('patient,fits', [('P1', True), ('', True), ('4711', False)])
def test_outlines_of_another_patient_in_the_same_space_are_refused(tmp_path, patient, fits):
    "After an anonymiser gave all scans one FrameOfReferenceUID"
    series(tmp_path / 'src/P1/ct', 'P1')
    slices = [pydicom.dcmread(f) for f in sorted((tmp_path / 'src/P1/ct').iterdir())]
    formats.rtstruct(tmp_path / 'src', slices, np.stack([outline() > 0] * 3), references=False)
    ds = pydicom.dcmread(f := tmp_path / 'src/rtstruct.dcm')
    ds.PatientID = patient
    frame = ds.ReferencedFrameOfReferenceSequence[0]
    frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID = '1.99'
    ds.save_as(f)
    annotations, told = found(tmp_path / 'src')
    assert bool(annotations) == fits and any('another PatientID' in reason for reason in told) != fits


def test_what_a_network_proposed_in_monai_label_gives_way_to_what_was_approved(tmp_path):
    "P1's proposal has a second lesion, which the expert deleted; P2 was never looked at"
    src, apart = tmp_path / 'src', outline() + outline(slice(40, 48), slice(30, 38))
    stack = lambda mask: np.stack([0 * mask, mask, 0 * mask])
    (src / 'labels/final').mkdir(parents=True)
    (src / 'labels/original').mkdir()
    for seed, name in enumerate(['P1', 'P2']):
        to_nifti(np.stack([body(60, 3 * seed + k) for k in range(3)]).astype(np.int16), src / f'{name}.nii.gz')
        to_nifti(stack(apart), src / f'labels/original/{name}.nii.gz')
    to_nifti(stack(outline()), src / 'labels/final/P1.nii.gz')
    table, done = measured(src)
    assert len(table) == 1 and sum('proposed in MONAI Label' in p.reason for p in done.problems) == 2
    for path in (src / 'labels/final').iterdir():
        path.unlink()
    table, done = measured(src)
    assert len(table) == 4 and 'MONAI' not in why_not(done)


def masks_apart(folder, **tags):
    "A DICOM mask of the middle of three slices of `series`, each file with a series and a study of its own"
    for k in range(3):
        uids = dict(SeriesInstanceUID=f'1.7.{k}', StudyInstanceUID=f'1.8.{k}')
        folder.mkdir(parents=True, exist_ok=True)
        write_slice(folder / f'{k}.dcm', outline() * (k > 0) - 0.0, position_mm=(0, 0, 5 * k), **(uids | tags))
        ds = pydicom.dcmread(folder / f'{k}.dcm')
        ds.RescaleIntercept, ds.PixelData = 0, (outline().astype('i2') * (k > 0)).tobytes()
        ds.save_as(folder / f'{k}.dcm')


def test_a_mask_whose_files_are_a_series_each_is_one_lesion(tmp_path):
    series(tmp_path / 'src/P1/ct', 'P1')
    masks_apart(tmp_path / 'src/P1/masks/tumour', PatientID='P1')
    table, _ = measured(tmp_path / 'src')
    assert list(table.n_slices) == [2]


@pytest.mark.parametrize('gone', [1, 2])
def test_a_mask_made_of_a_series_with_missing_slices_is_refused(tmp_path, gone):
    "A volume has one distance of slices, so it lies elsewhere than the DICOM slices that it was converted with"
    series(tmp_path / 'src/P1/ct', 'P1', n=8)
    for k in range(3, 3 + gone):
        (tmp_path / f'src/P1/ct/1-{k + 1:02d}.dcm').unlink()
    mask = np.stack([outline() * (k == 5) for k in range(8 - gone)])
    to_nifti(mask, tmp_path / 'src/P1/tumour.nii.gz')
    table, done = measured(tmp_path / 'src')
    assert table is None and 'has as many slices as a CT, and begins with it, but lies elsewhere' in why_not(done)


def test_a_series_that_jumps_sideways_is_not_the_grid_of_a_volume(tmp_path):
    series(tmp_path / 'src/P1/ct', 'P1')
    ds = pydicom.dcmread(f := tmp_path / 'src/P1/ct/1-03.dcm')
    ds.ImagePositionPatient = [10, 0, 10]
    ds.save_as(f)
    to_nifti(np.stack([0 * outline(), outline(), 0 * outline()]), tmp_path / 'src/P1/tumour.nii.gz')
    table, done = measured(tmp_path / 'src')
    assert table is None and 'lies elsewhere' in why_not(done)


def test_a_mask_called_after_another_patient_is_refused_where_others_have_names(tmp_path):
    for k, name in enumerate(['smith', 'garcia']):
        (tmp_path / 'src/images').mkdir(parents=True, exist_ok=True)
        slices = np.stack([body(60, 3 * k + i) for i in range(3)]).astype(np.int16)
        nib.Nifti1Image(np.transpose(slices, (2, 1, 0)), np.diag([-1, -1, 5 + k, 1])).to_filename(
            tmp_path / f'src/images/{name}.nii.gz'
        )
    (tmp_path / 'src/labels').mkdir()
    for k, name in enumerate(['jones', 'garcia']):
        mask = np.transpose(np.stack([0 * outline(), outline(), 0 * outline()]), (2, 1, 0))
        nib.Nifti1Image(mask, np.diag([-1, -1, 5 + k, 1])).to_filename(tmp_path / f'src/labels/{name}.nii.gz')
    table, done = measured(tmp_path / 'src')
    assert len(table) == 1 and 'is called otherwise' in why_not(done)


@pytest.mark.parametrize('changed', [(0, 1, 2), (2,)])
def test_copies_with_other_pixels_are_refused(tmp_path, changed):
    "A processed copy that kept its UIDs, in a folder that comes first; the message names a slice that differs"
    series(tmp_path / 'src/P1/ct', 'P1')
    (tmp_path / 'src/P1/a').mkdir()
    for f in (tmp_path / 'src/P1/ct').iterdir():
        ds = pydicom.dcmread(f)
        if int(f.stem[-1]) - 1 in changed:
            ds.PixelData = (np.frombuffer(ds.PixelData, 'i2') // 2).astype('i2').tobytes()
        ds.save_as(tmp_path / 'src/P1/a' / f.name)
    to_nifti(np.stack([0 * outline(), outline(), 0 * outline()]), tmp_path / 'src/P1/tumour.nii.gz')
    with pytest.raises(InputError, match=f'0{changed[0] + 1}.dcm: has the UID and place of .* and other pixels'):
        measured(tmp_path / 'src')


def test_a_study_under_two_patient_ids_is_told(tmp_path):
    for k, patient in enumerate(['a17', 'A17']):  # `series` gives both one study
        series(tmp_path / f'src/{k}', patient, 60 + k)
        series(tmp_path / f'src/{k}/again', patient, 70 + k)
    series(tmp_path / 'src/3', 'a18', 80)
    _, problems = scan_folder(tmp_path / 'src')
    assert sum('is of a study that has another PatientID, too' in p.reason for p in problems) == 1


@pytest.mark.parametrize('step, taken', [(5.05, True), (9.0, False)])
def test_a_mask_whose_affine_is_rounded_is_taken(tmp_path, step, taken):
    series(tmp_path / 'src/P1/ct', 'P1')
    mask = np.transpose(np.stack([0 * outline(), outline(), 0 * outline()]), (2, 1, 0))
    nib.Nifti1Image(mask, np.diag([-1, -1, step, 1])).to_filename(tmp_path / 'src/P1/tumour.nii.gz')
    table, done = measured(tmp_path / 'src')
    assert (table is not None) == taken and ('lies elsewhere' in why_not(done)) != taken


def test_copies_of_the_same_hounsfield_units_are_copies_however_they_are_stored(tmp_path):
    series(tmp_path / 'src/P1/ct', 'P1')
    (tmp_path / 'src/P1/a').mkdir()
    for f in (tmp_path / 'src/P1/ct').iterdir():
        ds = pydicom.dcmread(f)
        stored, shift = np.frombuffer(ds.PixelData, 'i2'), 100
        ds.PixelData, ds.RescaleIntercept = (stored + shift).astype('i2').tobytes(), ds.RescaleIntercept - shift
        ds.save_as(tmp_path / 'src/P1/a' / f.name)
    to_nifti(np.stack([0 * outline(), outline(), 0 * outline()]), tmp_path / 'src/P1/tumour.nii.gz')
    table, _ = measured(tmp_path / 'src')
    assert len(table) == 1 and 'copies of slices left out' in table.notes[0]


def test_a_sheared_volume_may_have_both_of_its_forms(tmp_path):
    affine = np.array([[-1, 0, 0, 0], [0, -1, -1.5, 0], [0, 0, 5, 0], [0, 0, 0, 1.0]])
    (tmp_path / 'src').mkdir()
    ct, mask = [body(60, k) for k in range(3)], [0 * outline(), outline(), 0 * outline()]
    for name, values in (('a_ct', np.stack(ct).astype('i2')), ('a_seg', np.stack(mask))):
        image = nib.Nifti1Image(np.transpose(values, (2, 1, 0)), affine)
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        image.to_filename(tmp_path / f'src/{name}.nii')
    table, _ = measured(tmp_path / 'src')
    assert len(table) == 1


def test_noise_at_45_degrees_turns_no_slice_around():
    "The normal of a slice is turned to the head for axial series; slices of one stack must not differ in that"
    tilted = [(1, 0, 0, 0, -y, z) for y, z in ((0.70711, 0.70710), (0.70710, 0.70711))]
    normals = [Plane(shape=(4, 4), spacing_mm=(1, 1), orientation=o).axes[:, 2] for o in tilted]
    assert np.dot(*normals) > 0.99
    mirrored = Plane(shape=(4, 4), spacing_mm=(1, 1), orientation=(1, 0, 0, 0, -1, 0)).axes[:, 2]
    assert mirrored.tolist() == [0, 0, 1]
