"""Outlines as hospitals have them: the shapes of data that once gave a wrong answer, or none, without a word.

What ITK, 3D Slicer and rt-utils write was taken from these programs; the rest is written by the libraries that others
use. Real CT is used where it is at hand.
"""

import base64
import os
from dataclasses import replace
from pathlib import Path

import formats
import nibabel as nib
import nrrd
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

from liverdis.cohort.annotation.labelmaps import MOST_VALUES, is_label_map
from liverdis.cohort.annotation.readers import (
    given_labels,
    list_structures,
    read_mask,
    read_structure,
    read_structures,
)
from liverdis.cohort.annotation.tables import table_kind
from liverdis.cohort.cases import split_lesions
from liverdis.cohort.ct import read_headers, read_hu, read_slice, sort_slices, volume_headers, write_slice
from liverdis.cohort.duplicates import overlapping
from liverdis.cohort.headers import ct_slices
from liverdis.cohort.joining import check_patients, join_manifests
from liverdis.cohort.manifest import file_checksum, load_manifest, save_manifest
from liverdis.cohort.roi import extract_roi
from liverdis.cohort.scan import scan_folder
from liverdis.cohort.volumes import open_volume
from liverdis.core import InputError
from liverdis.use.cli import app

REALDATA = Path(os.environ.get('LIVERDIS_REALDATA', Path(__file__).parents[1] / '../shared/realdata')).resolve()
real = pytest.mark.skipif(
    not REALDATA.is_dir(), reason=f"no real CT at {REALDATA}: set LIVERDIS_REALDATA to the folder that holds it"
)
Y, X = np.mgrid[:64, :80]
LIVER = np.stack([np.hypot(Y - 32, X - 40) < 26] * 8)
TUMOUR = np.stack([np.hypot(Y - 30, X - 44) < 6 + k / 2 for k in range(8)])
SPACING = 0.743  # mm; no round number, as scanners have it


def one_line(f, *args, **kw):
    with pytest.raises(InputError) as e:
        f(*args, **kw)
    assert '\n' not in str(e.value)
    return str(e.value)


def write_series(folder, patient='p1', spacing=SPACING, name='{}.dcm', n=8):
    "A series of slices: liver with a tumour"
    folder.mkdir(parents=True, exist_ok=True)
    uids = {k: f'1.2.{sum(patient.encode())}.{i}' for i, k in enumerate(('Series', 'Study'), 1)}
    for k in range(n):
        hu = np.where(TUMOUR[k], 60, np.where(LIVER[k], 110, -80)) + np.random.default_rng(k).normal(0, 10, Y.shape)
        same = dict(FrameOfReferenceUID=uids['Series'] + '.9', PatientID=patient, PatientName=patient)
        same |= {f'{k}InstanceUID': uid for k, uid in uids.items()}
        place = (-172.9, -179.297, 30 + 2 * k)
        write_slice(folder / name.format(k + 1), hu.round(), (spacing, spacing), place, InstanceNumber=8 - k, **same)
    return [pydicom.dcmread(folder / name.format(k + 1)) for k in range(n)]


@pytest.fixture
def ct(tmp_path):
    return write_series(tmp_path / 'ct')


@pytest.fixture
def slices(ct, tmp_path):
    return sort_slices(h for f in sorted((tmp_path / 'ct').glob('*.dcm')) for h in read_headers(f))


def same(found, mask):
    return list(found.masks) == list(np.flatnonzero(mask.any((1, 2)))) and all(
        (found.masks[k] == mask[k]).all() for k in found.masks
    )


# volumes: NRRD, MetaImage, and NIfTI that is no map


def slicer(path, ct, layers, names, cut=np.s_[:, 12:, 10:]):
    "A `.seg.nrrd` as 3D Slicer saves it: cropped, with the names in its header, in layers where segments overlap"
    d, (_, rows, cols) = ct[0], (s.start or 0 for s in cut)
    steps, origin = formats.steps(ct), np.array(d.ImagePositionPatient, float)
    origin = origin + rows * steps[1] + cols * steps[0]
    header = {'space': 'left-posterior-superior', 'space origin': origin, 'kinds': ['domain'] * 3}
    header |= {'space directions': steps}
    data = [np.uint8(layer[cut]).transpose(2, 1, 0) for layer in layers]
    if len(layers) > 1:
        header['kinds'] = ['list', *header['kinds']]
        header['space directions'] = np.vstack([[np.nan] * 3, steps])
    for k, (name, value, layer) in enumerate(names):
        about = {'ID': f'Segment_{k + 1}', 'Name': name, 'LabelValue': value, 'Layer': layer, 'Color': '1 0 0'}
        header |= {f'Segment{k}_{what}': str(v) for what, v in about.items()}
    nrrd.write(str(path), np.stack(data) if len(data) > 1 else data[0], header)


def test_slicer_segments_that_overlap(ct, slices, tmp_path):
    "Before, .seg.nrrd was passed over in silence"
    names = [('Liver', 1, 0), ('met in segment 8', 1, 1), ('empty', 2, 1)]
    slicer(tmp_path / 'ct/Segmentation.seg.nrrd', ct, [LIVER, TUMOUR], names)
    (patient,), problems = scan_folder(tmp_path)
    (a,) = patient.annotations
    assert (a.kind, problems) == ('nrrd', [])
    assert list_structures(a.paths, 'nrrd') == [('0:1', 'Liver'), ('1:1', 'met in segment 8'), ('1:2', 'empty')]
    liver, met, empty = read_structures(a.paths, 'nrrd', slices)
    kept = np.zeros_like(LIVER)
    kept[:, 12:, 10:] = True
    assert same(liver, LIVER & kept) and same(met, TUMOUR) and not empty.masks and met.notes == ()
    (by_name,) = read_structures(a.paths, 'nrrd', slices, ['Met in Segment 8'])
    assert same(by_name, TUMOUR)


def test_slicer_segments_side_by_side(ct, slices, tmp_path):
    values = np.where(TUMOUR, 7, np.where(LIVER, 3, 0))
    slicer(tmp_path / 's.seg.nrrd', ct, [values], [('liver', 3, 0), ('tumour', 7, 0)])
    liver, tumour = read_structures([tmp_path / 's.seg.nrrd'], 'nrrd', slices)
    assert (liver.name, tumour.name, liver.key, tumour.key) == ('liver', 'tumour', '3', '7')
    assert same(tumour, TUMOUR)


ITK = {  # written by SimpleITK 2.5.7: 5 x 4 x 3 voxels of 0.7 x 0.9 x 2.5 mm, oblique
    'mha': 'T2JqZWN0VHlwZSA9IEltYWdlCk5EaW1zID0gMwpCaW5hcnlEYXRhID0gVHJ1ZQpCaW5hcnlEYXRhQnl0ZU9yZGVyTVNCID0gRmFs'
    'c2UKQ29tcHJlc3NlZERhdGEgPSBUcnVlCkNvbXByZXNzZWREYXRhU2l6ZSA9IDIzClRyYW5zZm9ybU1hdHJpeCA9IDAuODAwMDAw'
    'MDAwMDAwMDAwMDQgMC41OTk5OTk5OTk5OTk5OTk5OCAwIC0wLjU5OTk5OTk5OTk5OTk5OTk4IDAuODAwMDAwMDAwMDAwMDAwMDQg'
    'MCAwIDAgMQpPZmZzZXQgPSAtMyA4IDEyLjUKQ2VudGVyT2ZSb3RhdGlvbiA9IDAgMCAwCkFuYXRvbWljYWxPcmllbnRhdGlvbiA9'
    'IFJBSQpFbGVtZW50U3BhY2luZyA9IDAuNjk5OTk5OTk5OTk5OTk5OTYgMC45MDAwMDAwMDAwMDAwMDAwMiAyLjUKRGltU2l6ZSA9'
    'IDUgNCAzCkVsZW1lbnRUeXBlID0gTUVUX1VDSEFSCkVsZW1lbnREYXRhRmlsZSA9IExPQ0FMCnheY2DACRgZGRkgBAMDAxMWZQAB'
    'FQAJ',
    'nrrd': 'TlJSRDAwMDQKIyBDb21wbGV0ZSBOUlJEIGZpbGUgZm9ybWF0IHNwZWNpZmljYXRpb24gYXQ6CiMgaHR0cDovL3RlZW0uc291cmNl'
    'Zm9yZ2UubmV0L25ycmQvZm9ybWF0Lmh0bWwKdHlwZTogdW5zaWduZWQgY2hhcgpkaW1lbnNpb246IDMKc3BhY2U6IGxlZnQtcG9z'
    'dGVyaW9yLXN1cGVyaW9yCnNpemVzOiA1IDQgMwpzcGFjZSBkaXJlY3Rpb25zOiAoMC41NTk5OTk5OTk5OTk5OTk5NCwwLjQxOTk5'
    'OTk5OTk5OTk5OTk4LDApICgtMC41NDAwMDAwMDAwMDAwMDAwNCwwLjcyMDAwMDAwMDAwMDAwMDA4LDApICgwLDAsMi41KQpraW5k'
    'czogZG9tYWluIGRvbWFpbiBkb21haW4KZW5jb2Rpbmc6IGd6aXAKc3BhY2Ugb3JpZ2luOiAoLTMsOCwxMi41KQoKH4sIAAAAAAAA'
    'A2NgwAkYGRkZIAQDAwMTFmUAx8I3jzwAAAA=',
}


@pytest.mark.parametrize('suffix', ITK)
def test_what_itk_writes(suffix, tmp_path):
    (tmp_path / f'g.{suffix}').write_bytes(base64.b64decode(ITK[suffix]))
    image = open_volume(tmp_path / f'g.{suffix}')
    expected = np.zeros((5, 4, 3), int)
    expected[2:5, 1:3, 1], expected[0, 0, 2] = 1, 2
    assert (np.asarray(image.dataobj) == expected).all()
    x, y, z, _ = image.affine @ (4, 2, 1, 1)
    assert (-x, -y, z) == pytest.approx((-1.84, 11.12, 15))  # as SimpleITK says of this voxel, in LPS


@pytest.mark.parametrize('write', [formats.nrrd, formats.metaimage], ids=['nrrd', 'metaimage'])
def test_a_ct_in_the_same_format(ct, tmp_path, write):
    "A CT saved beside the mask, as Slicer's scenes have it"
    hu = np.stack([read_hu(h).hu for h in sort_slices(h for d in ct for h in read_headers(d.filename))])
    folder = tmp_path / 'scene'
    folder.mkdir()
    write(folder, ct, TUMOUR, 'ct-seg')
    image = folder / ('ct.nrrd' if write is formats.nrrd else 'ct.mha')
    if write is formats.nrrd:
        space = {'space': 'LPS', 'space directions': formats.steps(ct), 'space origin': ct[0].ImagePositionPatient}
        nrrd.write(
            str(image), hu.astype(np.int16).transpose(2, 1, 0), {**space, 'space origin': list(space['space origin'])}
        )
    else:
        header, _ = (folder / 'ct-seg.mha').read_bytes().split(b'LOCAL\n')
        header = header.replace(b'UCHAR', b'SHORT').replace(b'CompressedData = True', b'CompressedData = False')
        image.write_bytes(header + b'LOCAL\n' + hu.astype('<i2').tobytes())
    (patient,), problems = scan_folder(folder)
    (a,) = patient.annotations
    assert not problems and len(a.series.slices) == 8
    np.testing.assert_array_equal(read_hu(a.series.slices[3]).hu, hu[3].clip(-1024))
    (found,) = read_structures(a.paths, a.kind, a.series.slices)
    assert same(found, TUMOUR)


def as_nifti(path, ct, values):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = formats.steps(ct).T, ct[0].ImagePositionPatient
    nib.Nifti1Image(values.transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine).to_filename(path)


IMAGES = {
    'offset': lambda hu: hu + 1024,
    'window of 8 bits': lambda hu: ((hu + 110) / 400 * 255).clip(0, 255),
    'zero outside the liver': lambda hu: np.where(hu > 30, hu + 1024, 0),
}


@pytest.mark.parametrize('likeness', IMAGES)
def test_an_image_is_no_label_map(ct, slices, tmp_path, likeness):
    "Before, HU + 1024 gave a structure for each of its values"
    hu = np.stack([read_hu(s).hu for s in slices])
    as_nifti(tmp_path / 'image.nii', ct, np.rint(IMAGES[likeness](hu)).astype(np.uint16))
    for read in (lambda p: list_structures([p], 'nifti'), lambda p: read_structures([p], 'nifti', slices)):
        assert 'it is an image and no mask' in one_line(read, tmp_path / 'image.nii')


@real
@pytest.mark.parametrize('likeness', IMAGES)
@pytest.mark.parametrize('folder', ['ircad17/PATIENT_DICOM', 'chaos03/DICOM_anon'])
def test_a_real_image_is_no_label_map(likeness, folder):
    headers = sort_slices(h for f in sorted((REALDATA / folder).iterdir()) for h in read_headers(f))[:3]
    assert not any(is_label_map(np.rint(IMAGES[likeness](read_hu(h).hu)).astype(int)) for h in headers)


@real
def test_a_real_label_map_of_many_organs_is_one():
    volume = np.asarray(nib.load(REALDATA / 'ts_dicom_nifti/example_seg_dicom.nii.gz').dataobj).astype(int)
    assert is_label_map(volume)


def test_a_map_of_a_hundred_organs_passes(ct, slices, tmp_path):
    organs = np.kron(np.arange(1, 121).reshape(8, 15), np.ones((8, 6), int))[:, :80]
    values = np.pad(np.stack([organs] * 8), ((0, 0), (0, 0), (0, 80 - organs.shape[1]))).astype(np.uint8)
    as_nifti(tmp_path / 'organs.nii', ct, values)
    assert len(list_structures([tmp_path / 'organs.nii'], 'nifti')) > 5 * MOST_VALUES


def test_all_of_a_map_of_several_is_refused_and_a_name_accepted(ct, slices, tmp_path):
    "Before, `predict` without --segment took the liver and the tumour for one lesion"
    as_nifti(tmp_path / 'liver_seg.nii.gz', ct, (LIVER.astype(np.uint8) + TUMOUR))
    picture = Image.fromarray(LIVER[3].astype(np.uint8) + TUMOUR[3])
    picture.save(tmp_path / 'liver_seg.png')
    here = read_hu(slices[3])
    for name, kind in (('liver_seg.nii.gz', 'nifti'), ('liver_seg.png', 'png-mask')):
        said = one_line(read_mask, tmp_path / name, kind, '', here)
        assert 'outlines 2 structures' in said and '1 (liver_seg:1), 2 (liver_seg:2)' in said
        for which in ('2', 'liver_seg:2', 'LIVER_SEG:2'):
            assert (read_mask(tmp_path / name, kind, which, here) == TUMOUR[3]).all()
    formats.seg(tmp_path, ct, TUMOUR, label='Tumour 1')
    for which in ('1', 'Tumour 1', 'tumour 1', ''):
        assert (read_mask(tmp_path / 'seg.dcm', 'seg', which, here) == TUMOUR[3]).all()
    assert "no segment 'Tumour 2'; it has 1 (Tumour 1)" in one_line(
        read_mask, tmp_path / 'seg.dcm', 'seg', 'Tumour 2', here
    )


def test_a_volume_without_an_affine(ct, slices, tmp_path):
    "Before, nibabel's default place was taken for the place, beside a NIfTI CT that had one"
    hu = np.stack([read_hu(s).hu for s in slices]).astype(np.int16)
    as_nifti(tmp_path / 'ct.nii', ct, hu)
    for name, values in (('bare_ct.nii', hu), ('bare_mask.nii', TUMOUR.astype(np.uint8))):
        nib.Nifti1Image(values.transpose(2, 1, 0), None).to_filename(tmp_path / name)
    placed, bare = volume_headers(tmp_path / 'ct.nii'), volume_headers(tmp_path / 'bare_ct.nii')
    assert 'save it with the affine of the CT' in one_line(
        read_structures, [tmp_path / 'bare_mask.nii'], 'nifti', placed
    )
    as_nifti(tmp_path / 'mask.nii', ct, TUMOUR.astype(np.uint8))
    assert 'save it with the affine of the mask' in one_line(read_structures, [tmp_path / 'mask.nii'], 'nifti', bare)
    (found,) = read_structures([tmp_path / 'bare_mask.nii'], 'nifti', bare)
    assert found.notes == ('neither mask nor CT says where it lies: paired voxel by voxel',)
    lesion = np.concatenate([read_hu(bare[k]).hu[m] for k, m in found.masks.items()])
    assert len(lesion) == TUMOUR.sum() and lesion.mean() == pytest.approx(60, abs=1)  # it lies on the tumour


@pytest.mark.parametrize('kind', ['nifti', 'nrrd', 'metaimage', 'seg', 'dicom-mask'])
def test_a_mask_longer_than_the_ct_says_so(ct, slices, tmp_path, kind):
    "Before, three quarters of an outline could go without a word, or the whole of it"
    formats.ALL[kind](tmp_path, ct, TUMOUR)
    files = {'seg': 'seg.dcm', 'nifti': 'tumour.nii.gz', 'nrrd': 'tumour.nrrd', 'metaimage': 'tumour.mha'}
    paths = sorted(tmp_path.glob(files.get(kind, 'MASKS_DICOM/tumour/*')))
    (found,) = read_structures(paths, kind, slices[2:5])
    assert [(found.masks[k] == TUMOUR[k + 2]).all() for k in found.masks] == [True] * 3
    assert found.notes == ('5 slices of the outline lie beyond the ends of the CT series and are left out',)


# pictures


def test_colours_are_not_one_structure(slices, tmp_path):
    "Before, all colours of a picture were one mask"
    colours = np.zeros((64, 80, 3), np.uint8)
    colours[LIVER[0]], colours[TUMOUR[0]] = (0, 255, 0), (255, 0, 0)
    Image.fromarray(colours).save(tmp_path / 'both.png')
    assert '2 colours besides black' in one_line(list_structures, [tmp_path / 'both.png'], 'png-mask')
    Image.fromarray(np.where(colours == 255, colours, 0)[..., :1].repeat(3, -1)).save(tmp_path / 'one.png')
    assert (read_mask(tmp_path / 'one.png', 'png-mask', '', read_hu(slices[0])) == TUMOUR[0]).all()
    grey = (LIVER[0].astype(np.uint8) + TUMOUR[0])[..., None].repeat(3, -1)
    Image.fromarray(grey).save(tmp_path / 'grey.png')
    assert [key for key, _ in list_structures([tmp_path / 'grey.png'], 'png-mask')] == ['1', '2']


def test_black_on_white_is_not_the_rest_of_the_slice(slices, tmp_path):
    "Before, everything but the lesion was the lesion"
    Image.fromarray(np.where(TUMOUR[0], 0, 255).astype(np.uint8)).save(tmp_path / 'm.png')
    assert 'drawn on white' in one_line(read_mask, tmp_path / 'm.png', 'png-mask', '', read_hu(slices[0]))
    Image.fromarray((255 * TUMOUR[0]).astype(np.uint8)).convert('CMYK').save(tmp_path / 'm.jpg')
    mask = read_mask(tmp_path / 'm.jpg', 'jpeg-mask', '', read_hu(slices[0]))
    assert (mask ^ TUMOUR[0]).sum() < 0.02 * TUMOUR[0].sum()


@pytest.mark.parametrize('write,kind', [(formats.tiff_mask, 'tiff-mask'), (formats.jpeg_mask, 'jpeg-mask')])
def test_pictures_other_than_png(ct, tmp_path, write, kind):
    "Before, they were passed over in silence"
    write(tmp_path / 'ct', ct, TUMOUR)
    (patient,), problems = scan_folder(tmp_path)
    (a,) = patient.annotations
    assert (a.kind, len(a.paths), problems) == (kind, 8, [])
    (found,) = read_structures(a.paths, a.kind, a.series.slices)
    assert list(found.masks) == list(range(8))
    wrong = sum((found.masks[k] ^ TUMOUR[k]).sum() for k in range(8))
    assert wrong == 0 if kind == 'tiff-mask' else wrong < 0.02 * TUMOUR.sum() and 'JPEG' in found.notes[-1]


# tables

BOX = 'row_min,row_max,col_min,col_max'
DIALECTS = {
    'ours': ('lesion,image,' + BOX + '\nt,1.dcm,20,31,10,24\n', 'utf-8'),
    'semicolons': ('Lesion;Image;Row_Min;Row_Max;Col_Min;Col_Max\nt;1.dcm;19,6;31,4;9,5;24,2\n', 'utf-8'),
    'tabs of Excel': ('Lesion\tImage\tY1\tY2\tX1\tX2\nt\t1.dcm\t20\t31\t10\t24\n', 'utf-16'),
    'corner and size': ('Lesion,File_Name,X,Y,Width,Height\nt,1.dcm,10,20,15,12\n', 'utf-8'),
    'short names': ('lesion_id,filename,x,y,w,h\nt,1.dcm,10,20,15,12\n', 'utf-8'),
    'corners': ('lesion,SOPInstanceUID,XMin,YMin,XMax,YMax\nt,{uid},10,20,24,31\n', 'utf-8'),
    'Windows': ('Läsion;lesion;image;xmin;ymin;xmax;ymax\nä;t;1.dcm;10;20;24;31\n', 'cp1252'),
    'no id': ('image,x,y,width,height,class\n1.dcm,10,20,15,12,Cyst\n', 'utf-8'),
}


@pytest.mark.parametrize('dialect', DIALECTS)
def test_boxes_in_any_dialect(ct, slices, tmp_path, dialect):
    text, encoding = DIALECTS[dialect]
    (tmp_path / 't.csv').write_bytes(text.replace('{uid}', ct[0].SOPInstanceUID).encode(encoding))
    assert table_kind(tmp_path / 't.csv') == 'boxes'
    (found,) = read_structures([tmp_path / 't.csv'], 'boxes', slices)
    expected = np.zeros((8, 64, 80), bool)
    expected[0, 20:32, 10:25] = True
    assert same(found, expected) and found.name == ('row 2' if dialect == 'no id' else 't')


def test_a_table_may_say_what_its_lesions_are(tmp_path):
    text = 'image;x;y;width;height;Diagnosis\n1.dcm;1;2;8;9;Cyst\n2.dcm;1;2;8;9; METASTASIS\n'
    (tmp_path / 't.csv').write_text(text)
    assert given_labels([tmp_path / 't.csv'], 'boxes') == {'row 2': 'cyst', 'row 3': 'metastasis'}
    (tmp_path / 't.csv').write_text('lesion,image,label,' + BOX + '\na,1.dcm,cyst,1,9,1,9\na,2.dcm,healthy,1,9,1,9\n')
    assert 'lesion a has the labels cyst and healthy' in one_line(given_labels, [tmp_path / 't.csv'], 'boxes')
    assert given_labels([tmp_path / 'seg.dcm'], 'seg') == {}


@pytest.mark.parametrize('other', ['p2/image/1-21.dcm', r'p2\image\1-21.dcm', 'p2/image/1-21'])
def test_a_folder_that_is_not_this_one_means_another_patient(tmp_path, other):
    "Before, `p2/image/1-21.dcm` was taken for any `1-21.dcm`, so patient 1 got the tumour of patient 2"
    write_series(tmp_path / 'p1/image', name='1-2{}.dcm')
    here = sort_slices(h for f in sorted((tmp_path / 'p1/image').iterdir()) for h in read_headers(f))
    own = other.replace('p2', 'p1')
    (tmp_path / 't.csv').write_text(f'lesion,image,{BOX}\na,{other},40,50,40,50\na,{own},20,31,10,24\n')
    (found,) = read_structures([tmp_path / 't.csv'], 'boxes', here)
    assert list(found.masks) == [0] and found.masks[0].sum() == 12 * 15


# contours through pixel centres


def chain(mask):
    "The border pixels of a round region, once around: what OpenCV's findContours gives"
    inner = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
    rim = np.argwhere(mask & ~inner)
    return rim[np.argsort(np.arctan2(*(rim - rim.mean(0)).T))]


def rtutils(folder, ct, masks, holes):
    "An RTSTRUCT whose contours run through pixel centres, as rt-utils writes it: also around the pixels beside a hole"
    formats.rtstruct(folder, ct, masks)
    ds = pydicom.dcmread(folder / 'rtstruct.dcm')
    outlines = [(d, chain(m)) for d, m in zip(ct, masks | holes)] + [(ct[0], chain(around(holes[0])))]
    ds.ROIContourSequence[0].ContourSequence = [formats.planar_contour(d, points, True) for d, points in outlines]
    ds.save_as(folder / 'rtstruct.dcm')


def around(hole):
    return hole | np.roll(hole, 1, 0) | np.roll(hole, -1, 0) | np.roll(hole, 1, 1) | np.roll(hole, -1, 1)


def test_contours_through_pixel_centres_keep_their_outermost_ring(ct, slices, tmp_path):
    "Before, they lost it: 12 % of this tumour"
    holes = np.zeros_like(TUMOUR)
    holes[0] = np.hypot(Y - 30, X - 44) < 2.5
    solid = TUMOUR & ~holes
    rtutils(tmp_path, ct, solid, holes)
    (found,) = read_structures([tmp_path / 'rtstruct.dcm'], 'rtstruct', slices)
    assert same(found, solid)
    assert found.notes == (
        '9 contours run through pixel centres, as rt-utils draws them: the pixels on the line are counted in',
    )


# values that are no Hounsfield units

CIRCLE = np.hypot(Y - 32, X - 40) < 31
BODY = np.where(TUMOUR[3], 60, np.where(LIVER[3], 110, -80)) + np.random.default_rng(0).normal(0, 10, Y.shape).round()
BODY[:8] = -1000
UNSIGNED = dict(RescaleIntercept=0, PixelRepresentation=0)
GREYS = 255 * ((BODY + 160) / 400).clip(0, 1)
ONLY_LIVER = np.where(LIVER[3], BODY.clip(20), 0)


@pytest.mark.parametrize(
    'values, tags',
    [
        (BODY + 1024, UNSIGNED),
        (BODY + 1024, dict(RescaleIntercept=0)),
        (np.where(CIRCLE, BODY + 1024, 0), UNSIGNED | dict(PixelPaddingValue=0)),
        (np.where(CIRCLE, BODY + 1024, -2000), dict(RescaleIntercept=0)),
        (GREYS, UNSIGNED),
        (ONLY_LIVER, UNSIGNED),
    ],
    ids=['offset', 'offset, signed', 'and declared padding', 'and padding', 'greys', 'zero outside the liver'],
)
def test_a_dicom_slice_that_is_not_in_hounsfield_units(tmp_path, values, tags):
    "Before, a lesion of 60 HU was measured as 1084"
    write_slice(tmp_path / 'ct.dcm', values, **tags)
    assert 'not in Hounsfield units' in one_line(read_slice, tmp_path / 'ct.dcm')


@pytest.mark.parametrize(
    'values, tags',
    [
        (BODY, dict(RescaleIntercept=0)),
        (BODY, dict(PixelRepresentation=0)),
        (np.where(CIRCLE, BODY, -3024), dict(PixelPaddingValue=-2000)),
        (np.where(CIRCLE, BODY, -2000), {}),
        (ONLY_LIVER, {}),
        (np.where(LIVER[3], BODY.clip(20), -1024), {}),
        (np.where(CIRCLE, BODY.clip(0), -3024), {}),
        (np.zeros(Y.shape), UNSIGNED),
    ],
    ids=[
        *('signed', 'unsigned', 'declared padding', 'padding'),
        *('liver in 0', 'liver in air', 'cut off in padding', 'blank'),
    ],
)
def test_a_dicom_slice_in_hounsfield_units(tmp_path, values, tags):
    write_slice(tmp_path / 'ct.dcm', values, **tags)
    assert (read_slice(tmp_path / 'ct.dcm').hu == np.maximum(values, -1024)).all()


def test_padding_makes_no_hounsfield_units_of_a_volume(ct, tmp_path):
    "Raw values of a GE scanner in a circle of -2000; a body cut off at 0 in such a circle is taken"
    for name, values in ('raw', BODY + 1024), ('cut', BODY.clip(0)):
        volume = np.stack([np.where(CIRCLE, values, -2000)] * 8).astype(np.int16)
        as_nifti(tmp_path / f'{name}.nii', ct, volume)
    assert 'HU + 1024' in one_line(ct_slices, tmp_path / 'raw.nii')
    assert len(ct_slices(tmp_path / 'cut.nii')) == 8


@real
def test_real_sets_are_in_hounsfield_units():
    folders = 'ircad17/PATIENT_DICOM', 'chaos03/DICOM_anon', 'dcmqi_liver_seg/ct-3slice', 'rtstruct_ibsi/dicom/image'
    for folder in (*folders, 'ts_dicom_nifti/example_ct_dicom'):
        files = sorted(f for f in (REALDATA / folder).iterdir() if f.is_file())
        for file in files[:: max(1, len(files) // 3)]:
            assert read_hu(ct_slices(file)[0].header).hu.min() < -10, file
    assert ct_slices(REALDATA / 'ts_dicom_nifti/example_ct_sm.nii.gz')


def test_a_structure_on_one_slice_says_nothing_of_the_others(ct, slices, tmp_path):
    "The contours of the other slices are no fault; a note on the outline itself stays"
    holes = np.zeros_like(TUMOUR)
    holes[0] = np.hypot(Y - 30, X - 44) < 2.5
    rtutils(tmp_path, ct, TUMOUR & ~holes, holes)
    found = read_structure(tmp_path / 'rtstruct.dcm', 'rtstruct', '1', read_hu(slices[3]))
    assert (found.masks[0] == TUMOUR[3]).all()
    assert [note[:30] for note in found.notes] == ['1 contours run through pixel c']


# the same lesion, or the same person, twice


def test_one_lesion_in_three_files(ct, slices, tmp_path):
    "A SEG, a NIfTI copy, and the RTSTRUCT made of it; the fourth is another lesion"
    other = np.roll(TUMOUR, 20, 2)
    formats.seg(tmp_path, ct, TUMOUR)
    formats.rtstruct(tmp_path, ct, TUMOUR)
    formats.nifti(tmp_path, ct, TUMOUR)
    formats.nrrd(tmp_path, ct, other)
    files = {'seg': 'seg.dcm', 'rtstruct': 'rtstruct.dcm', 'nifti': 'tumour.nii.gz', 'nrrd': 'tumour.nrrd'}
    lesions = []
    for kind, name in files.items():
        (structure,) = read_structures([tmp_path / name], kind, slices)
        lesions += split_lesions(structure.masks)
    assert [(o.first, o.second) for o in overlapping(lesions)] == [(0, 1), (0, 2), (1, 2)]
    assert all(o.dice == 1 for o in overlapping(lesions))


def cohort(folder, ct, pid, spacing=SPACING):
    "A manifest of one case over one slice of the series"
    folder.mkdir()
    image, outline = folder / f'{pid}.dcm', folder / f'{pid}.png'
    ds = pydicom.dcmread(ct[3].filename)
    ds.PatientID = ds.PatientName = pid
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f'1.2.3.{len(pid)}'
    ds.save_as(image)
    Image.fromarray(TUMOUR[3]).save(outline)
    row = dict(case_id=f'{pid}-1', patient_id=pid, series_uid='', image_path=image.name, annotation_path=outline.name)
    row |= dict(annotation_kind='png-mask', segment='', label='cyst', phase='portal', slice_thickness_mm=1)
    row |= dict(row_spacing_mm=spacing, col_spacing_mm=spacing, sha256=file_checksum(image, outline))
    save_manifest([row], folder / 'manifest.csv')
    return folder / 'manifest.csv'


def test_one_person_with_two_keys_is_refused(ct, tmp_path):
    "Before, join counted two patients, who could be in training and test"
    manifests = [cohort(tmp_path / f'c{pid}', ct, pid) for pid in ('1a2b', '99ffe')]
    said = one_line(join_manifests, manifests, tmp_path / 'all.csv')
    assert 'of patients 1a2b and 99ffe' in said and not (tmp_path / 'all.csv').exists()
    result = CliRunner().invoke(app, ['join', *map(str, manifests), '--out', str(tmp_path / 'all.csv')])
    assert result.exit_code == 2 and 'show the same slice' in result.stderr
    rows = [load_manifest(m).df.assign(where=m.parent.name) for m in manifests]  # put together by hand
    df = pd.concat(rows, ignore_index=True)
    for column in ('image_path', 'annotation_path'):
        df[column] = df['where'] + '/' + df[column]
    by_hand = save_manifest(df.drop(columns='where'), tmp_path / 'hand.csv')
    assert 'show the same slice' in one_line(check_patients, by_hand)
    result = CliRunner().invoke(app, ['check', str(tmp_path / 'hand.csv')])
    assert result.exit_code == 2 and 'show the same slice' in result.stderr


def test_one_person_with_one_key_is_joined(ct, tmp_path):
    other = write_series(tmp_path / 'other', 'p2', spacing=0.8)
    ds = other[3]
    ds.PixelData = np.roll(ds.pixel_array, 1).tobytes()
    ds.save_as(ds.filename)
    manifests = [cohort(tmp_path / 'a', ct, '1a2b'), cohort(tmp_path / 'b', other, '99ffe', 0.8)]
    assert len(join_manifests(manifests, tmp_path / 'all.csv')) == 2
    result = CliRunner().invoke(app, ['check', str(tmp_path / 'all.csv')])
    assert result.exit_code == 0, result.stderr


def test_a_slice_that_lies_on_its_side_gives_the_same_region(ct, tmp_path):
    "A manifest over slices that were scanned mirrored and turned: the network sees them upright"
    straight = cohort(tmp_path / 'straight', ct, 'a')
    m = load_manifest(straight)
    ds = pydicom.dcmread(tmp_path / 'straight/a.dcm')
    turned = ds.pixel_array[::-1].T.copy()  # row k runs up along column k
    ds.Rows, ds.Columns = turned.shape
    ds.ImageOrientationPatient = [0, -1, 0, 1, 0, 0]
    x, y, z = ds.ImagePositionPatient
    ds.ImagePositionPatient = [x, y + 63 * SPACING, z]
    ds.PixelData = turned.tobytes()
    ds.save_as(tmp_path / 'straight/turned.dcm')
    Image.fromarray(TUMOUR[3][::-1].T).save(tmp_path / 'straight/turned.png')
    row = m.df.iloc[0]
    other = row.copy()
    other['image_path'], other['annotation_path'] = 'turned.dcm', 'turned.png'
    a, b = (extract_roi(r, m.root, 0.25, 64) for r in (row, other))
    assert np.allclose(a, b, atol=1e-3)


def test_names_and_frames_still_find_their_slices(slices, tmp_path):
    "One enhanced file has one name for all its slices, and z tells them apart"
    frames = [replace(s, path=tmp_path / 'many.dcm', sop_uid='1.5', frame=k) for k, s in enumerate(slices)]
    (tmp_path / 't.csv').write_text(f'lesion,image,z_mm,{BOX}\na,many.dcm,36,1,3,4,5\n')
    assert list(read_structures([tmp_path / 't.csv'], 'boxes', frames)[0].masks) == [3]
