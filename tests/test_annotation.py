"""Outlines of every kind on real CT: published volumes, densities and boxes."""
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image

from liverdis.annotation import KINDS, list_structures, read_mask, read_structures
from liverdis.ct import read_headers, read_hu, read_slice, stack, write_slice
from liverdis.manifest import InputError
from liverdis.scan import find

REALDATA = Path(os.environ.get('LIVERDIS_REALDATA', Path(__file__).parents[1]/'../shared/realdata')).resolve()
real = pytest.mark.skipif(not REALDATA.is_dir(), reason=f"no real CT at {REALDATA}: set LIVERDIS_REALDATA to the folder that holds it")

def series(folder): return stack(h for f in sorted((REALDATA/folder).iterdir()) for h in read_headers(f))

def hounsfield(slices, masks): return np.concatenate([read_hu(slices[k]).hu[m] for k, m in masks.items()])

def one_line(f, *args, **kw):
    with pytest.raises(InputError) as e: f(*args, **kw)
    assert '\n' not in str(e.value)
    return str(e.value)


@real
def test_rtstruct_fill_is_the_published_mask():
    slices, rt = series('rtstruct_ibsi/dicom/image'), REALDATA/'rtstruct_ibsi/dicom/mask/DCM_RS_00060.dcm'
    assert [name for _, name in list_structures([rt], 'rtstruct')] == ['GTV-1']
    roi, = read_structures([rt], 'rtstruct', slices)
    published, = read_structures([REALDATA/'rtstruct_ibsi/nifti/mask/mask.nii.gz'], 'nifti', slices)
    assert sum(m.sum() for m in roi.masks.values()) == 125_256 and not published.notes
    assert roi.notes == ('26 contours matched by position',)   # the images that they name are not these
    assert roi.masks.keys() == published.masks.keys() and all((roi.masks[k] == published.masks[k]).all() for k in roi.masks)

@real
def test_nifti_labels_lie_on_the_patient():
    slices, file = series('ts_dicom_nifti/example_ct_dicom'), REALDATA/'ts_dicom_nifti/example_seg_dicom.nii.gz'
    liver, = read_structures([file], 'nifti', slices, ['5'])
    hu = hounsfield(slices, liver.masks)
    assert hu.mean() == pytest.approx(89.3, abs=.1) and hu.std() == pytest.approx(21.7, abs=.1) and not liver.notes
    assert ('5', 'example_seg_dicom:5') in list_structures([file], 'nifti')

@real
@pytest.mark.parametrize('axes', ['RAS', 'LPS', 'IPR', 'ASL'])
def test_nifti_axes_in_any_order(axes, tmp_path):
    slices = series('ts_dicom_nifti/example_ct_dicom')
    image = nib.load(REALDATA/'ts_dicom_nifti/example_seg_dicom.nii.gz')
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    image.as_reoriented(turn).to_filename(tmp_path/'turned.nii')
    a, = read_structures([tmp_path/'turned.nii'], 'nifti', slices, ['5'])
    b, = read_structures([REALDATA/'ts_dicom_nifti/example_seg_dicom.nii.gz'], 'nifti', slices, ['5'])
    assert a.masks.keys() == b.masks.keys() and all((a.masks[k] == b.masks[k]).all() for k in a.masks)

@real
def test_nifti_of_another_grid_is_resampled(tmp_path):
    "Every third voxel of the label map"
    slices = series('ts_dicom_nifti/example_ct_dicom')
    image = nib.load(REALDATA/'ts_dicom_nifti/example_seg_dicom.nii.gz')
    coarse = nib.Nifti1Image(np.asarray(image.dataobj)[::3, ::3], image.affine @ np.diag([3, 3, 1, 1]))
    coarse.to_filename(tmp_path/'coarse.nii')
    liver, = read_structures([tmp_path/'coarse.nii'], 'nifti', slices, ['5'])
    assert 'resampled' in liver.notes[0]
    assert hounsfield(slices, liver.masks).mean() == pytest.approx(89.3, abs=2)

@real
def test_chaos_pictures_on_their_slices():
    slices, pictures = series('chaos03/DICOM_anon'), sorted((REALDATA/'chaos03/Ground').iterdir())
    liver, = read_structures(pictures, 'png-mask', slices)
    expected = pd.read_csv(REALDATA/'expected_lesions.csv').query("case == 'chaos03'").iloc[0]
    hu = hounsfield(slices, liver.masks)
    assert hu.mean() == pytest.approx(141.0, abs=.2) and hu.std() == pytest.approx(34.1, abs=.2) and len(hu) == expected.voxels
    assert (min(liver.masks), max(liver.masks)) == (expected.z_min, expected.z_max)
    largest = max(liver.masks, key=lambda k: liver.masks[k].sum())
    rows, cols = np.nonzero(liver.masks[largest])
    assert (largest, rows.min(), rows.max(), cols.min(), cols.max()) == (expected.z_maxarea, expected.row_min, expected.row_max, expected.col_min, expected.col_max)
    assert 'one picture a slice' in one_line(read_structures, pictures[:50], 'png-mask', slices)   # 000 is no InstanceNumber there: they begin at 1

@real
def test_mask_folders_of_ircadb():
    slices = series('ircad17/PATIENT_DICOM')
    expected = pd.read_csv(REALDATA/'expected_lesions.csv').query("case == 'ircad17'").set_index('name')
    for name in ('livertumor1', 'livertumor2'):
        s, = read_structures(sorted((REALDATA/'ircad17/MASKS_DICOM'/name).iterdir()), 'dicom-mask', slices)
        assert s.name == name and sum(m.sum() for m in s.masks.values()) == expected.voxels[name]
        assert hounsfield(slices, s.masks).mean() == pytest.approx(expected.hu_mean[name], abs=.01)

@real
def test_segmentations_of_dcmqi():
    slices = series('dcmqi_liver_seg/ct-3slice')
    parts = read_structures([REALDATA/'dcmqi_liver_seg/partial_overlaps.dcm'], 'seg', slices)
    assert [p.name for p in parts] == ['GREEN', 'ORANGE', 'PURPLE', 'LIGHT_BLUE', 'DARK_BLUE'] and sum(len(p.masks) for p in parts) == 7   # frames in the file: sparse
    stored = pydicom.dcmread(REALDATA/'dcmqi_liver_seg/partial_overlaps.dcm').pixel_array
    assert sum(m.sum() for p in parts for m in p.masks.values()) == stored.sum()
    pairs = [(a, b) for i, a in enumerate(parts) for b in parts[:i]]
    assert any((a.masks[k] & b.masks[k]).any() for a, b in pairs for k in a.masks.keys() & b.masks.keys())   # they overlap, and both keep the pixel
    small, frames = series('dcmqi_liver_seg/24x38x3/image'), read_headers(REALDATA/'dcmqi_liver_seg/24x38x3/multiframe/mf.dcm')
    a, = read_structures([REALDATA/'dcmqi_liver_seg/24x38x3/seg/label.seg'], 'seg', small)
    b, = read_structures([REALDATA/'dcmqi_liver_seg/24x38x3/seg/label.seg'], 'seg', frames)   # the same space in one enhanced file
    assert a.masks and all((a.masks[k] == b.masks[k]).all() for k in a.masks)

@real
def test_fractional_is_cut_at_half_and_says_so():
    "highdicom's own test file; its source is a 16x16 CT that is not here, so the slices are made from what the file says"
    file = REALDATA/'seg_small/seg_image_ct_true_fractional.dcm'
    ds = pydicom.dcmread(file)
    from liverdis.annotation import _frame_header
    from dataclasses import replace
    slices = stack(replace(_frame_header(ds, g, file), frame_of_reference=ds.FrameOfReferenceUID) for g in ds.PerFrameFunctionalGroupsSequence)
    found, = read_structures([file], 'seg', slices)
    assert found.notes == ('probability of at least one half',)
    assert sum(m.sum() for m in found.masks.values()) == (ds.pixel_array >= 127.5).sum() > 0

def test_deeplesion_table(tmp_path):
    "DL_info.csv's columns, two lesions on one key slice; 16-bit PNG written by Pillow"
    folder = tmp_path/'Images_png/000001_01_01'
    folder.mkdir(parents=True)
    hu = np.random.default_rng(0).normal(60, 20, (64, 80)).round()
    for k in (108, 109): Image.fromarray((hu + 32768).astype(np.uint16)).save(folder/f'{k}.png')
    row = dict(File_name='000001_01_01_109.png', Patient_index=1, Key_slice_index=109, Coarse_lesion_type=5, Spacing_mm_px_='0.8, 0.8, 5', Image_size='80, 64', Patient_age='60')
    pd.DataFrame([row | {'Bounding_boxes': '10.2, 20.4, 30.9, 40.1'}, row | {'Bounding_boxes': '50, 5, 60, 15', 'Coarse_lesion_type': 2}, row | {'File_name': '000002_01_01_001.png', 'Bounding_boxes': '1, 1, 5, 5'}]).to_csv(tmp_path/'DL_info.csv', index=False)
    (patient,), problems = find(tmp_path)
    (annotation,) = patient.annotations
    assert annotation.kind == 'boxes' and annotation.keys == ('000001_01_01_109.png:1 type5', '000001_01_01_109.png:2 type2')
    a, b = read_structures(annotation.paths, 'boxes', annotation.series.slices, annotation.keys)
    rows, cols = np.nonzero(a.masks[0])
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (21, 40, 11, 30) and b.masks[0].sum() == 11*11
    np.testing.assert_array_equal(read_hu(annotation.series.slices[0]).hu, hu)
    assert ['1 images' in p.reason for p in problems] == [True]

def test_tables_in_millimetres(tmp_path):
    hu = np.zeros((40, 50))
    for k in range(3): write_slice(tmp_path/f'{k}.dcm', hu, (2, 1), (-10, 5, 3*k), SeriesInstanceUID='1.2', FrameOfReferenceUID='1.3')
    slices = stack(h for k in range(3) for h in read_headers(tmp_path/f'{k}.dcm'))
    pd.DataFrame([dict(lesion='a', x_min_mm=0, x_max_mm=10, y_min_mm=15, y_max_mm=25, z_mm=3.4)]).to_csv(tmp_path/'boxes.csv', index=False)
    box, = read_structures([tmp_path/'boxes.csv'], 'boxes', slices)
    rows, cols = np.nonzero(box.masks[1])
    assert list(box.masks) == [1] and (rows.min(), rows.max(), cols.min(), cols.max()) == (5, 10, 10, 20)
    square = [(-.5, 14), (10.5, 14), (10.5, 26), (-.5, 26)]
    hole = [(3.5, 18), (6.5, 18), (6.5, 22), (3.5, 22)]
    pd.DataFrame([dict(lesion='a', contour=k, x_mm=x, y_mm=y, z_mm=3) for k, c in enumerate((square, hole)) for x, y in c]).to_csv(tmp_path/'polygons.csv', index=False)
    shape, = read_structures([tmp_path/'polygons.csv'], 'polygons', slices)
    assert list(shape.masks) == [1] and shape.masks[1].sum() == 11*6 - 3*2

@pytest.mark.parametrize('content,said', [('lesion,image,row_min,row_max,col_min\na,x,1,2,3\n', 'no column col_max'), ('image,row_min\nx,1\n', 'no column lesion'),
                                         ('lesion,image,row_min,row_max,col_min,col_max\na,0.dcm,1,two,3,4\n', 'give numbers')])
def test_bad_tables(tmp_path, content, said):
    write_slice(tmp_path/'0.dcm', np.zeros((8, 8)))
    (tmp_path/'t.csv').write_text(content)
    assert said in one_line(read_structures, [tmp_path/'t.csv'], 'boxes', read_headers(tmp_path/'0.dcm'))

@pytest.mark.parametrize('kind', KINDS)
def test_rubbish_is_refused_in_one_line(tmp_path, kind):
    write_slice(tmp_path/'0.dcm', np.arange(64).reshape(8, 8))
    for content in (b'', b'rubbish', b'\0'*128 + b'DICM' + b'\x08\0', (tmp_path/'0.dcm').read_bytes()):
        (tmp_path/'file.nii').write_bytes(content)
        assert str(tmp_path/'file.nii') in one_line(read_mask, tmp_path/'file.nii', kind, '1', read_slice(tmp_path/'0.dcm'))
    assert 'nowhere' in one_line(read_mask, tmp_path/'nowhere', kind, '1', read_slice(tmp_path/'0.dcm'))
