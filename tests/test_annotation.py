"""Outlines of every kind on real CT: published volumes, densities and boxes."""

import os
from dataclasses import replace
from pathlib import Path

import formats
import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image

from liverdis.cohort.annotation.readers import (
    ANNOTATION_KINDS,
    given_labels,
    list_structures,
    read_mask,
    read_structures,
)
from liverdis.cohort.ct import (
    SliceHeader,
    read_headers,
    read_hu,
    read_slice,
    sort_slices,
    volume_headers,
    write_slice,
)
from liverdis.cohort.manifest import file_checksum, save_manifest
from liverdis.cohort.roi import load_rois
from liverdis.cohort.scan import scan_folder
from liverdis.core import InputError

REALDATA = Path(os.environ.get('LIVERDIS_REALDATA', Path(__file__).parents[1] / '../shared/realdata')).resolve()
real = pytest.mark.skipif(
    not REALDATA.is_dir(), reason=f"no real CT at {REALDATA}: set LIVERDIS_REALDATA to the folder that holds it"
)


def series(folder):
    return sort_slices(h for f in sorted((REALDATA / folder).iterdir()) for h in read_headers(f))


def hounsfield(slices, masks):
    return np.concatenate([read_hu(slices[k]).hu[m] for k, m in masks.items()])


def one_line(f, *args, **kw):
    with pytest.raises(InputError) as e:
        f(*args, **kw)
    assert '\n' not in str(e.value)
    return str(e.value)


@real
def test_rtstruct_fill_is_the_published_mask():
    slices, rt = series('rtstruct_ibsi/dicom/image'), REALDATA / 'rtstruct_ibsi/dicom/mask/DCM_RS_00060.dcm'
    assert [name for _, name in list_structures([rt], 'rtstruct')] == ['GTV-1']
    (roi,) = read_structures([rt], 'rtstruct', slices)
    (published,) = read_structures([REALDATA / 'rtstruct_ibsi/nifti/mask/mask.nii.gz'], 'nifti', slices)
    assert sum(m.sum() for m in roi.masks.values()) == 125_256 and not published.notes
    assert roi.notes == ('26 contours matched by position',)  # the images that they name are not these
    assert roi.masks.keys() == published.masks.keys() and all(
        (roi.masks[k] == published.masks[k]).all() for k in roi.masks
    )


@real
def test_nifti_labels_lie_on_the_patient():
    slices, file = series('ts_dicom_nifti/example_ct_dicom'), REALDATA / 'ts_dicom_nifti/example_seg_dicom.nii.gz'
    (liver,) = read_structures([file], 'nifti', slices, ['5'])
    hu = hounsfield(slices, liver.masks)
    assert hu.mean() == pytest.approx(89.3, abs=0.1) and hu.std() == pytest.approx(21.7, abs=0.1) and not liver.notes
    assert ('5', 'example_seg_dicom:5') in list_structures([file], 'nifti')


@real
@pytest.mark.parametrize('axes', ['RAS', 'LPS', 'IPR', 'ASL'])
def test_nifti_axes_in_any_order(axes, tmp_path):
    slices = series('ts_dicom_nifti/example_ct_dicom')
    image = nib.load(REALDATA / 'ts_dicom_nifti/example_seg_dicom.nii.gz')
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    image.as_reoriented(turn).to_filename(tmp_path / 'turned.nii')
    (a,) = read_structures([tmp_path / 'turned.nii'], 'nifti', slices, ['5'])
    (b,) = read_structures([REALDATA / 'ts_dicom_nifti/example_seg_dicom.nii.gz'], 'nifti', slices, ['5'])
    assert a.masks.keys() == b.masks.keys() and all((a.masks[k] == b.masks[k]).all() for k in a.masks)


@real
def test_nifti_of_another_grid_is_resampled(tmp_path):
    "Every third voxel of the label map"
    slices = series('ts_dicom_nifti/example_ct_dicom')
    image = nib.load(REALDATA / 'ts_dicom_nifti/example_seg_dicom.nii.gz')
    coarse = nib.Nifti1Image(np.asarray(image.dataobj)[::3, ::3], image.affine @ np.diag([3, 3, 1, 1]))
    coarse.to_filename(tmp_path / 'coarse.nii')
    (liver,) = read_structures([tmp_path / 'coarse.nii'], 'nifti', slices, ['5'])
    assert 'resampled' in liver.notes[0]
    assert hounsfield(slices, liver.masks).mean() == pytest.approx(89.3, abs=2)


@real
def test_chaos_pictures_on_their_slices():
    slices, pictures = series('chaos03/DICOM_anon'), sorted((REALDATA / 'chaos03/Ground').iterdir())
    (liver,) = read_structures(pictures, 'png-mask', slices)
    expected = pd.read_csv(REALDATA / 'expected_lesions.csv').query("case == 'chaos03'").iloc[0]
    hu = hounsfield(slices, liver.masks)
    assert (
        hu.mean() == pytest.approx(141.0, abs=0.2)
        and hu.std() == pytest.approx(34.1, abs=0.2)
        and len(hu) == expected.voxels
    )
    assert (min(liver.masks), max(liver.masks)) == (expected.z_min, expected.z_max)
    largest = max(liver.masks, key=lambda k: liver.masks[k].sum())
    rows, cols = np.nonzero(liver.masks[largest])
    assert (largest, rows.min(), rows.max(), cols.min(), cols.max()) == (
        expected.z_maxarea,
        expected.row_min,
        expected.row_max,
        expected.col_min,
        expected.col_max,
    )
    assert 'one picture a slice' in one_line(
        read_structures, pictures[:50], 'png-mask', slices
    )  # 000 is no InstanceNumber there: they begin at 1


@real
def test_mask_folders_of_ircadb():
    slices = series('ircad17/PATIENT_DICOM')
    expected = pd.read_csv(REALDATA / 'expected_lesions.csv').query("case == 'ircad17'").set_index('name')
    for name in ('livertumor1', 'livertumor2'):
        (s,) = read_structures(sorted((REALDATA / 'ircad17/MASKS_DICOM' / name).iterdir()), 'dicom-mask', slices)
        assert s.name == name and sum(m.sum() for m in s.masks.values()) == expected.voxels[name]
        assert hounsfield(slices, s.masks).mean() == pytest.approx(expected.hu_mean[name], abs=0.01)


@real
def test_segmentations_of_dcmqi():
    slices = series('dcmqi_liver_seg/ct-3slice')
    parts = read_structures([REALDATA / 'dcmqi_liver_seg/partial_overlaps.dcm'], 'seg', slices)
    assert [p.name for p in parts] == ['GREEN', 'ORANGE', 'PURPLE', 'LIGHT_BLUE', 'DARK_BLUE'] and sum(
        len(p.masks) for p in parts
    ) == 7  # frames in the file: sparse
    stored = pydicom.dcmread(REALDATA / 'dcmqi_liver_seg/partial_overlaps.dcm').pixel_array
    assert sum(m.sum() for p in parts for m in p.masks.values()) == stored.sum()
    pairs = [(a, b) for i, a in enumerate(parts) for b in parts[:i]]
    assert any(
        (a.masks[k] & b.masks[k]).any() for a, b in pairs for k in a.masks.keys() & b.masks.keys()
    )  # they overlap, and both keep the pixel
    small, frames = (
        series('dcmqi_liver_seg/24x38x3/image'),
        read_headers(REALDATA / 'dcmqi_liver_seg/24x38x3/multiframe/mf.dcm'),
    )
    (a,) = read_structures([REALDATA / 'dcmqi_liver_seg/24x38x3/seg/label.seg'], 'seg', small)
    (b,) = read_structures(
        [REALDATA / 'dcmqi_liver_seg/24x38x3/seg/label.seg'], 'seg', frames
    )  # the same space in one enhanced file
    assert a.masks and all((a.masks[k] == b.masks[k]).all() for k in a.masks)


@real
def test_fractional_is_cut_at_half_and_says_so():
    "highdicom's own test file; its source, a 16x16 CT, is not here, so the slices are made from what the file says"
    file = REALDATA / 'seg_small/seg_image_ct_true_fractional.dcm'
    ds = pydicom.dcmread(file)
    plane = ds.SharedFunctionalGroupsSequence[0]
    slices = sort_slices(
        SliceHeader(
            shape=(16, 16),
            spacing_mm=tuple(plane.PixelMeasuresSequence[0].PixelSpacing),
            orientation=tuple(plane.PlaneOrientationSequence[0].ImageOrientationPatient),
            position_mm=tuple(g.PlanePositionSequence[0].ImagePositionPatient),
            frame_of_reference=ds.FrameOfReferenceUID,
            path=file,
        )
        for g in ds.PerFrameFunctionalGroupsSequence
    )
    (found,) = read_structures([file], 'seg', slices)
    assert found.notes == ('probability of at least one half',)
    assert sum(m.sum() for m in found.masks.values()) == (ds.pixel_array >= 127.5).sum() > 0


def test_deeplesion_table(tmp_path):
    "DL_info.csv's columns, two lesions on one key slice; 16-bit PNG written by Pillow"
    folder = tmp_path / 'Images_png/000001_01_01'
    folder.mkdir(parents=True)
    hu = np.random.default_rng(0).normal(60, 20, (64, 80)).round()
    for k in (108, 109):
        Image.fromarray((hu + 32768).astype(np.uint16)).save(folder / f'{k}.png')
    row = dict(
        File_name='000001_01_01_109.png',
        Patient_index=1,
        Key_slice_index=109,
        Coarse_lesion_type=4,
        Spacing_mm_px_='0.8, 0.8, 5',
        Image_size='80, 64',
        Patient_age='60',
    )
    pd.DataFrame(
        [
            row | {'Bounding_boxes': '10.2, 20.4, 30.9, 40.1'},
            row | {'Bounding_boxes': '50, 5, 60, 15', 'Coarse_lesion_type': 2},
            row | {'File_name': '000002_01_01_001.png', 'Bounding_boxes': '1, 1, 5, 5'},
        ]
    ).to_csv(tmp_path / 'DL_info.csv', index=False)
    (patient,), problems = scan_folder(tmp_path)
    (annotation,) = patient.annotations
    assert annotation.kind == 'boxes' and annotation.keys == (
        '000001_01_01_109.png:1 type4',
        '000001_01_01_109.png:2 type2',
    )
    a, b = read_structures(annotation.paths, 'boxes', annotation.series.slices, annotation.keys)
    rows, cols = np.nonzero(a.masks[0])
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (21, 40, 11, 30) and b.masks[0].sum() == 11 * 11
    np.testing.assert_array_equal(read_hu(annotation.series.slices[0]).hu, hu)
    assert ['1 images' in p.reason for p in problems] == [True]


def test_tables_in_millimetres(tmp_path):
    hu = np.zeros((40, 50))
    for k in range(3):
        write_slice(
            tmp_path / f'{k}.dcm', hu, (2, 1), (-10, 5, 3 * k), SeriesInstanceUID='1.2', FrameOfReferenceUID='1.3'
        )
    slices = sort_slices(h for k in range(3) for h in read_headers(tmp_path / f'{k}.dcm'))
    pd.DataFrame([dict(lesion='a', x_min_mm=0, x_max_mm=10, y_min_mm=15, y_max_mm=25, z_mm=3.4)]).to_csv(
        tmp_path / 'boxes.csv', index=False
    )
    (box,) = read_structures([tmp_path / 'boxes.csv'], 'boxes', slices)
    rows, cols = np.nonzero(box.masks[1])
    assert list(box.masks) == [1] and (rows.min(), rows.max(), cols.min(), cols.max()) == (5, 10, 10, 20)
    square = [(-0.5, 14), (10.5, 14), (10.5, 26), (-0.5, 26)]
    hole = [(3.5, 18), (6.5, 18), (6.5, 22), (3.5, 22)]
    pd.DataFrame(
        [dict(lesion='a', contour=k, x_mm=x, y_mm=y, z_mm=3) for k, c in enumerate((square, hole)) for x, y in c]
    ).to_csv(tmp_path / 'polygons.csv', index=False)
    (shape,) = read_structures([tmp_path / 'polygons.csv'], 'polygons', slices)
    assert list(shape.masks) == [1] and shape.masks[1].sum() == 11 * 6 - 3 * 2


@pytest.mark.parametrize(
    'content,said',
    [
        ('lesion,image,row_min,row_max,col_min\na,x,1,2,3\n', 'no column col_max'),
        ('image,row_min\nx,1\n', 'no column col_min'),
        ('image,row,col\nx,1,2\n', 'no column lesion'),
        ('lesion,image,row_min,row_max,col_min,col_max\na,0.dcm,1,two,3,4\n', 'give numbers'),
    ],
)
def test_bad_tables(tmp_path, content, said):
    write_slice(tmp_path / '0.dcm', np.zeros((8, 8)))
    (tmp_path / 't.csv').write_text(content)
    assert said in one_line(read_structures, [tmp_path / 't.csv'], 'boxes', read_headers(tmp_path / '0.dcm'))


@pytest.mark.parametrize('kind', ANNOTATION_KINDS)
def test_rubbish_is_refused_in_one_line(tmp_path, kind):
    write_slice(tmp_path / '0.dcm', np.arange(64).reshape(8, 8))
    for content in (b'', b'rubbish', b'\0' * 128 + b'DICM' + b'\x08\0', (tmp_path / '0.dcm').read_bytes()):
        (tmp_path / 'file.nii').write_bytes(content)
        assert str(tmp_path / 'file.nii') in one_line(
            read_mask, tmp_path / 'file.nii', kind, '1', read_slice(tmp_path / '0.dcm')
        )
    assert 'nowhere' in one_line(read_mask, tmp_path / 'nowhere', kind, '1', read_slice(tmp_path / '0.dcm'))


# one mask, every format, and the ways in which it may end on the wrong slice


@pytest.fixture
def drawn(tmp_path):
    "A series of eight slices, its headers, and a disc that grows from foot to head"
    for k in range(8):
        write_slice(
            tmp_path / f'c{k}.dcm',
            np.random.default_rng(k).normal(60, 20, (64, 80)).round(),
            (1, 1),
            (-40, -30, 2 * k),
            SeriesInstanceUID='1.2',
            FrameOfReferenceUID='1.3',
            StudyInstanceUID='1.4',
            InstanceNumber=8 - k,
        )
    y, x = np.mgrid[:64, :80]
    return (
        [pydicom.dcmread(tmp_path / f'c{k}.dcm') for k in range(8)],
        sort_slices(h for k in range(8) for h in read_headers(tmp_path / f'c{k}.dcm')),
        np.stack([np.hypot(y - 30, x - 40) < 10 + k for k in range(8)]),
    )


def same(found, mask):
    return list(found.masks) == list(np.flatnonzero(mask.any((1, 2)))) and all(
        (found.masks[k] == mask[k]).all() for k in found.masks
    )


FILES = {
    'seg': ('seg.dcm', '1'),
    'rtstruct': ('rtstruct.dcm', '1'),
    'nifti': ('tumour.nii.gz', ''),
    'nrrd': ('tumour.nrrd', ''),
    'metaimage': ('tumour.mha', ''),
    'polygons': ('polygons.csv', 'tumour'),
    'boxes': ('boxes.csv', 'tumour'),
    'dicom-mask': ('MASKS_DICOM/tumour/*', ''),
    'png-mask': ('Ground/*', ''),
    'tiff-mask': ('Tiff/*', ''),
    'jpeg-mask': ('Jpeg/*', ''),
}
ONE_VALUE = dict.fromkeys(('nifti', 'nrrd', 'metaimage', 'png-mask'), ':1') | {'tiff-mask': ':255', 'jpeg-mask': ':255'}


@pytest.fixture
def written(drawn, tmp_path):
    for write in formats.ALL.values():
        write(tmp_path, drawn[0], drawn[2])
    return {kind: (sorted(tmp_path.glob(name)), key) for kind, (name, key) in FILES.items()}


@pytest.mark.parametrize('kind', ANNOTATION_KINDS)
def test_one_mask_in_every_format(drawn, written, kind):
    _, slices, mask = drawn
    files, key = written[kind]
    (found,) = read_structures(files, kind, slices)
    assert (found.key, found.name) == (ONE_VALUE.get(kind, key), 'tumour')
    if kind == 'boxes':
        mask = np.stack([np.outer(m.any(1), m.any(0)) for m in mask])
    assert same(found, mask)
    for rank, header in enumerate(slices):  # and slice by slice, as a manifest reads it
        own = (
            files
            if len(files) == 1
            else [
                f
                for f in files
                if kind in ('png-mask', 'tiff-mask', 'jpeg-mask')
                and f.stem.endswith(f'_{7 - rank:03}')
                or kind == 'dicom-mask'
                and f.name == f'image_{8 - rank}'
            ]
        )
        assert (read_mask(own[0], kind, key, read_hu(header)) == mask[rank]).all()


def test_a_manifest_of_all_formats(drawn, written, tmp_path):
    "Rows of all kinds over one slice give one region"
    rows = []
    for kind, (files, key) in written.items():
        file = files[0] if len(files) == 1 else next(f for f in files if f.stem in ('tumour_004', 'image_5'))
        rows.append(
            dict(
                case_id=kind,
                patient_id='1',
                series_uid='1.2',
                image_path='c3.dcm',
                annotation_path=str(file.relative_to(tmp_path)),
                annotation_kind=kind,
                segment=key,
                label='cyst',
                phase='portal',
                row_spacing_mm=1,
                col_spacing_mm=1,
                slice_thickness_mm=1,
                sha256=file_checksum(tmp_path / 'c3.dcm', file),
            )
        )
    rois = load_rois(save_manifest(rows, tmp_path / 'm.csv'), 0.25, 32)
    assert len(rois) == len(ANNOTATION_KINDS) and all((r == rois[0]).all() for r in rois)


def test_missing_frames_of_another_grid_stay_missing(drawn, tmp_path):
    ct, slices, mask = drawn
    mask[[1, 2, 3, 4, 5, 7]] = False
    formats.seg(tmp_path, ct, mask)
    for named in (True, False):
        ds = pydicom.dcmread(tmp_path / 'seg.dcm')
        for g in ds.PerFrameFunctionalGroupsSequence:
            g.PlanePositionSequence[0].ImagePositionPatient[0] += 3.4
            if not named:
                del g.DerivationImageSequence
        ds.save_as(tmp_path / 'shifted.dcm')
        (found,) = read_structures([tmp_path / 'shifted.dcm'], 'seg', slices)
        assert same(found, np.roll(mask, 3, 2)) and 'resampled' in found.notes[0]


def empty_slice(folder, k):
    "One of a series of slices that lie 2 mm apart"
    uids = dict(FrameOfReferenceUID='1.5', SeriesInstanceUID='1.6', StudyInstanceUID='1.7')
    return write_slice(folder / f'{k}.dcm', np.zeros((64, 64)), position_mm=(0, 0, 2 * k), **uids)


@pytest.mark.parametrize(
    'stated, named, found',
    [
        (None, True, [2, 6]),
        (2, True, [2, 6]),
        (8, True, [2, 6]),  # drawn on these slices, and on none between
        (8, False, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_a_segmentation_of_two_frames_goes_as_far_as_the_step_that_it_states(tmp_path, stated, named, found):
    masks = np.zeros((8, 64, 64), bool)
    masks[[2, 6], 20:30, 20:30] = True
    formats.seg(tmp_path, [empty_slice(tmp_path, k) for k in range(8)], masks)
    ds = pydicom.dcmread(tmp_path / 'seg.dcm')
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = stated
    for g in () if named else ds.PerFrameFunctionalGroupsSequence:
        del g.DerivationImageSequence
    ds.save_as(tmp_path / 'seg.dcm')
    slices = sort_slices(h for k in range(8) for h in read_headers(tmp_path / f'{k}.dcm'))
    (structure,) = read_structures([tmp_path / 'seg.dcm'], 'seg', slices)
    assert list(structure.masks) == found


def test_a_segmentation_meets_a_series_that_lacks_a_slice(tmp_path):
    masks = np.zeros((8, 64, 64), bool)
    masks[[2, 3], 20:30, 20:30] = True
    formats.seg(tmp_path, [empty_slice(tmp_path, k) for k in range(8)], masks)
    slices = sort_slices(h for k in range(8) if k != 3 for h in read_headers(tmp_path / f'{k}.dcm'))
    (structure,) = read_structures([tmp_path / 'seg.dcm'], 'seg', slices)
    assert list(structure.masks) == [2]  # the next slice lies 2 mm off, and its own frame is empty


def test_segments_of_one_label_and_a_source_in_one_file(drawn, tmp_path):
    ct, slices, mask = drawn
    formats.seg(tmp_path, ct, mask)
    ds = pydicom.dcmread(tmp_path / 'seg.dcm')
    ds.SegmentSequence.append(pydicom.dataset.Dataset())
    ds.SegmentSequence[1].SegmentNumber, ds.SegmentSequence[1].SegmentLabel = 2, 'tumour'
    for g in ds.PerFrameFunctionalGroupsSequence:  # as if drawn on one enhanced file
        source = g.DerivationImageSequence[0].SourceImageSequence[0]
        source.ReferencedSOPInstanceUID, source.ReferencedFrameNumber = (
            '1.5',
            next(i for i, d in enumerate(ct) if d.SOPInstanceUID == source.ReferencedSOPInstanceUID) + 1,
        )
    ds.save_as(tmp_path / 'enhanced.dcm')
    frames = [replace(s, sop_uid='1.5', frame=k) for k, s in enumerate(slices)]
    assert list_structures([tmp_path / 'enhanced.dcm'], 'seg') == [('1', 'tumour:1'), ('2', 'tumour:2')]
    first, second = read_structures([tmp_path / 'enhanced.dcm'], 'seg', frames)
    assert same(first, mask) and not second.masks
    ds.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = 8
    ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient[2] = 0
    ds.save_as(tmp_path / 'enhanced.dcm')
    assert 'elsewhere' in one_line(read_structures, [tmp_path / 'enhanced.dcm'], 'seg', frames)


def test_contours_that_cannot_be_trusted(drawn, tmp_path):
    ct, slices, mask = drawn
    formats.rtstruct(tmp_path, ct, mask)

    def changed(change, headers=slices):
        ds = pydicom.dcmread(tmp_path / 'rtstruct.dcm')
        for c in ds.ROIContourSequence[0].ContourSequence:
            c.ContourData = [
                f'{v:.4f}' for v in change(np.reshape(np.array(c.ContourData, float), (-1, 3)), c, ds).ravel()
            ]
        ds.save_as(tmp_path / 'changed.dcm')
        return [tmp_path / 'changed.dcm'], 'rtstruct', headers

    def unnamed(points, c, ds):
        c.pop('ContourImageSequence', None)
        return points

    def elsewhere(points, c, ds):
        frame = ds.ReferencedFrameOfReferenceSequence[0]
        frame.FrameOfReferenceUID = ds.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = '9.9'
        frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID = '9.8'
        return unnamed(points, c, ds)

    assert '4.0 mm off the slice' in one_line(read_structures, *changed(lambda p, c, ds: p + [0, 0, 4]))
    assert 'another image' in one_line(read_structures, *changed(elsewhere))
    assert 'list of x, y, z' in one_line(read_structures, *changed(lambda p, c, ds: p.ravel()[:-1]))
    (found,) = read_structures(*changed(lambda p, c, ds: unnamed(p, c, ds)))
    assert same(found, mask) and found.notes == ('8 contours matched by position',)
    (found,) = read_structures(*changed(lambda p, c, ds: unnamed(p, c, ds)[:, [2, 0, 1]]))  # upright in the patient
    assert not found.masks and sum(int(n.split()[0]) for n in found.notes) == 8
    (found,) = read_structures(
        [tmp_path / 'rtstruct.dcm'], 'rtstruct', [replace(s, sop_uid='1.9') for s in slices]
    )  # a careless anonymiser: one UID for all
    assert same(found, mask)
    thick = replace(
        read_hu(slices[3]), thickness_mm=5.0
    )  # slices of 5 mm every 2 mm: the neighbours' contours are within half a thickness
    assert (read_mask(changed(unnamed)[0][0], 'rtstruct', '1', thick) == mask[3]).all()


def test_mask_files_of_another_place(drawn, tmp_path):
    ct, slices, mask = drawn
    formats.dicom_mask(tmp_path, ct, mask)
    files = sorted((tmp_path / 'MASKS_DICOM/tumour').iterdir())
    for tag, value, said in (
        ('ImagePositionPatient', [-20, -30, 14], 'pair files'),
        ('ImageOrientationPatient', [-1, 0, 0, 0, 1, 0], 'is turned'),
        ('ImagePositionPatient', [-40, -30, 12], 'one structure'),
    ):
        changed = pydicom.dcmread(files[0])
        setattr(changed, tag, value)
        changed.save_as(tmp_path / 'changed')
        assert said in one_line(read_structures, [*files[1:], tmp_path / 'changed'], 'dicom-mask', slices)


def test_pictures_named_as_slices(drawn, tmp_path):
    "Whatever the InstanceNumbers say"
    _, slices, mask = drawn
    for k in range(8):
        Image.fromarray(mask[k]).save(tmp_path / f'c{k}.png')
    pictures = sorted(tmp_path.glob('*.png'))
    assert same(*read_structures(pictures, 'png-mask', slices), mask)
    (some,) = read_structures(pictures[2:5], 'png-mask', slices)
    assert list(some.masks) == [2, 3, 4] and (some.masks[2] == mask[2]).all() and not some.notes
    for k in range(8):
        (tmp_path / f'c{k}.png').rename(tmp_path / f'm{k}.png')
    (some,) = read_structures(sorted(tmp_path.glob('m*.png'))[1:4], 'png-mask', slices)
    assert list(some.masks) == [5, 6, 7] and some.notes == ('pictures paired with slices by InstanceNumber',)
    Image.fromarray(np.uint8(mask[0]) * 63 + np.uint8(mask[0] & (np.arange(80) > 40)) * 63).save(tmp_path / 'grey.png')
    grey = read_structures([tmp_path / 'grey.png'], 'png-mask', slices[:1])
    assert [(g.key, g.name) for g in grey] == [('63', 'grey:63'), ('126', 'grey:126')] and sum(
        g.masks[0].sum() for g in grey
    ) == mask[0].sum()


def test_nifti_that_lies_nowhere_or_elsewhere(drawn, tmp_path):
    _, slices, mask = drawn
    values = (5 * mask).astype(np.uint64).transpose(2, 1, 0)
    affine = np.array([[-1, 0, 0, 40], [0, -1, 0, 30], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    nib.Nifti1Image(values, affine, dtype=np.uint64).to_filename(tmp_path / 'm.nii')
    (found,) = read_structures(
        [tmp_path / 'm.nii'], 'nifti', slices, ['5']
    )  # a value may be asked for where it is the only one
    assert same(found, mask) and "no value '7'" in one_line(
        read_structures, [tmp_path / 'm.nii'], 'nifti', slices, ['7']
    )
    for axis in (0, 2):
        transform = affine.copy()
        transform[axis, 3] += 500
        nib.Nifti1Image(values.astype(np.uint8), transform).to_filename(tmp_path / 'far.nii')
        assert 'lies elsewhere' in one_line(read_structures, [tmp_path / 'far.nii'], 'nifti', slices)
    nib.Nifti1Image(values.astype(np.uint8), None).to_filename(tmp_path / 'bare.nii')
    assert 'where it lies' in one_line(read_structures, [tmp_path / 'bare.nii'], 'nifti', slices)


@pytest.mark.parametrize('signs', [(1, 1, 1), (-1, -1, 1)])
def test_a_mask_whose_affine_was_lost_is_refused(drawn, tmp_path, signs):
    _, slices, mask = drawn
    affine, path = np.diag([*signs, 1.0]), tmp_path / 'm.nii'
    nib.Nifti1Image(mask.astype(np.uint8).transpose(2, 1, 0), affine).to_filename(path)
    assert 'its affine was lost; save it with the CT' in one_line(read_structures, [path], 'nifti', slices)
    nib.Nifti1Image(np.zeros(mask.shape[::-1], np.int16), affine).to_filename(tmp_path / 'ct.nii')
    (found,) = read_structures([path], 'nifti', volume_headers(tmp_path / 'ct.nii'))  # of 1 mm from 0, as the mask
    assert sum(m.sum() for m in found.masks.values()) == mask.sum()


H = 'lesion,image,row_min,row_max,col_min,col_max\n'


@pytest.mark.parametrize(
    'text,expected',
    [
        (H + 'a,c1.dcm,1,3,4,5\n', (1, 1, 3, 4, 5)),
        ('lesion,z_mm,row_min,row_max,col_min,col_max\na,2,1,3,4,5\n', (1, 1, 3, 4, 5)),
        ('lesion,image,x_min_mm,x_max_mm,y_min_mm,y_max_mm\na,c1.dcm,-36,-35,-29,-27\n', (1, 1, 3, 4, 5)),
        (H + 'a,c1.dcm,-5,3,4,500\n', (1, 0, 3, 4, 79)),
        (H + 'a,c1.dcm,9,3,4,5\n', 'row 2'),
        (H + 'a,c1.dcm,900,930,4,5\n', 'row 2'),
        (H + 'a,c1.dcm,1,3,4,5\na,c1.dcm,nan,3,4,5\n', 'row 3, row_min'),
        (H + ',c1.dcm,1,3,4,5\n', 'row 2 has no lesion'),
        (H, 'no rows'),
        (H + 'a,c1.dcm,1,2,3,4,5\n', 'more cells'),
        ('File_name,Bounding_boxes\nc1.dcm,"1,2,3"\n', 'four numbers'),
    ],
)
def test_boxes_right_and_wrong(drawn, tmp_path, text, expected):
    (tmp_path / 't.csv').write_text(text)
    if isinstance(expected, str):
        assert expected in one_line(read_structures, [tmp_path / 't.csv'], 'boxes', drawn[1])
        return
    (box,) = read_structures([tmp_path / 't.csv'], 'boxes', drawn[1])
    rank, (rows, cols) = next(iter(box.masks)), np.nonzero(next(iter(box.masks.values())))
    assert (rank, rows.min(), rows.max(), cols.min(), cols.max()) == expected


def test_a_name_that_two_slices_share(drawn, tmp_path):
    "An enhanced file has one name for all its slices; z tells them apart"
    frames = [replace(s, path=tmp_path / 'many.dcm', sop_uid='1.5', frame=k) for k, s in enumerate(drawn[1])]
    for text, said in (
        (H + 'a,many.dcm,1,3,4,5\n', 'any of 8 slices'),
        (H.replace('image', 'image,z_mm') + 'a,many.dcm,6,1,3,4,5\n', None),
    ):
        (tmp_path / 't.csv').write_text(text)
        if said:
            assert said in one_line(read_structures, [tmp_path / 't.csv'], 'boxes', frames)
        else:
            assert list(read_structures([tmp_path / 't.csv'], 'boxes', frames)[0].masks) == [3]


Z = H.replace('image', 'z_mm')


def read_table_of(folder, kind, text, slices):
    (folder / 't.csv').write_text(text)
    return read_structures([folder / 't.csv'], kind, slices)


def test_boxes_that_meet_no_slice_are_in_the_notes(drawn, tmp_path):
    "z of the slices is 0 to 14; a lesion outside altogether has notes in place of masks"
    text = (
        Z + 'a,2,1,3,4,5\na,320,1,3,4,5\n' + ''.join(f'b,{z},1,3,4,5\n' for z in (60, 20, 40, 80, 80)) + 'c,4,1,3,4,5\n'
    )
    some, none, whole = read_table_of(tmp_path, 'boxes', text, drawn[1])
    assert list(some.masks) == [1] and some.notes[1:] == ('1 boxes at z_mm 320 lie on no slice of the series',)
    assert not none.masks and none.notes[1:] == ('5 boxes at z_mm 20 to 80 lie on no slice of the series',)
    assert list(whole.masks) == [2] and whole.notes == ('a box, no outline',)
    of_many = H + 'a,c1.dcm,1,3,4,5\na,another.dcm,1,3,4,5\n'  # patients, who may have lesions of one id
    of_many_z = H.replace('image', 'image,z_mm') + 'a,c1.dcm,2,1,3,4,5\na,another.dcm,99,1,3,4,5\n'
    for text in (of_many, of_many_z):
        assert read_table_of(tmp_path, 'boxes', text, drawn[1])[0].notes == ('a box, no outline',)


def test_points_that_meet_no_slice_are_in_the_notes(drawn, tmp_path):
    text = 'lesion,z_mm,row,col\n' + ''.join(
        f'a,{z},{p}\n' for z, p in zip((2, 2, 200, 2), ('1,1', '1,9', '5,5', '9,9'))
    )
    (found,) = read_table_of(tmp_path, 'polygons', text, drawn[1])
    assert list(found.masks) == [1] and found.notes == ('1 points at z_mm 200 lie on no slice of the series',)


def test_a_lesion_on_no_slice_keeps_its_label(drawn, tmp_path):
    (tmp_path / 't.csv').write_text(Z.replace('max\n', 'max,label\n') + 'a,320,1,3,4,5,cyst\nb,2,1,3,4,5,metastasis\n')
    assert given_labels([tmp_path / 't.csv'], 'boxes', drawn[1]) == {'a': 'cyst', 'b': 'metastasis'}


def turned(slices, along, down):
    "The same slices in another orientation, 2 mm apart along z where that is possible"
    return [replace(s, orientation=(*along, *down)) for s in slices]


@pytest.mark.parametrize('along, down', [((0, 1, 0), (0, 0, -1)), ((1, 0, 0), (0, 0, -1)), ((0, 1, 0), (0.6, 0, -0.8))])
def test_z_picks_no_slice_that_is_not_axial(drawn, tmp_path, along, down):
    "Sagittal, coronal, and oblique sagittal"
    slices = turned(drawn[1], along, down)
    said = one_line(read_table_of, tmp_path, 'boxes', Z + 'a,2,1,3,4,5\n', slices)
    assert 'not axial' in said and 'name the image' in said
    assert list(read_table_of(tmp_path, 'boxes', H + 'a,c1.dcm,1,3,4,5\n', slices)[0].masks) == [1]


@pytest.mark.parametrize('degrees', [-30, 3, 30])
def test_z_picks_tilted_slices(drawn, tmp_path, degrees):
    "Of a tilted gantry: 2 mm apart along z, less along the normal, so half-way is 1 mm all the same"
    a = np.deg2rad(degrees)
    slices = turned(drawn[1], (1, 0, 0), (0, np.cos(a), np.sin(a)))
    for z, rank in ((2, 1), (4.95, 2), (5.05, 3), (-0.98, 0), (14.98, 7)):
        (found,) = read_table_of(tmp_path, 'boxes', Z + f'a,{z},1,3,4,5\n', slices)
        assert list(found.masks) == [rank]
    assert not read_table_of(tmp_path, 'boxes', Z + 'a,15.1,1,3,4,5\n', slices)[0].masks


SQUARE = [(10.5, 10.5), (10.5, 20.5), (20.5, 20.5), (20.5, 10.5)]


def vertices(image, points):
    return ''.join(f'a,{image},{row},{col}\n' for row, col in points)


def test_polygons_that_enclose_nothing_are_in_the_notes(drawn, tmp_path):
    "One beside the picture, of 60 rows, and one between four pixel centres"
    beside = [(row + 100, col) for row, col in SQUARE]
    tiny = [(5.2, 5.2), (5.2, 5.8), (5.8, 5.8)]
    text = 'lesion,image,row,col\n' + vertices('c1', SQUARE) + vertices('c2', beside) + vertices('c3', tiny)
    (found,) = read_table_of(tmp_path, 'polygons', text, drawn[1])
    assert {k: m.sum() for k, m in found.masks.items()} == {1: 100}
    assert found.notes == ('2 contours enclose no pixel',)


@pytest.mark.parametrize('times', [2, 3, 4])
def test_a_polygon_in_a_table_appended_to_itself(drawn, tmp_path, times):
    (found,) = read_table_of(tmp_path, 'polygons', 'lesion,image,row,col\n' + vertices('c1', SQUARE) * times, drawn[1])
    assert found.masks[1].sum() == 100 and not found.notes


def test_spaces_after_an_id_make_no_other_lesion(drawn, tmp_path):
    (found,) = read_table_of(tmp_path, 'boxes', H + 'a,c1.dcm,1,3,4,5\na ,c2.dcm ,1,3,4,5 \n', drawn[1])
    assert found.key == 'a' and list(found.masks) == [1, 2]
