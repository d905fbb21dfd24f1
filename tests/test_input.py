"""What does not read well in a notebook: bad tables in bulk, folds of many cohorts, and real CT where it is at hand."""

import os
import unicodedata
from collections import Counter
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from liverdis.cohort import ct, decoding, roi, volumes
from liverdis.cohort.annotation.readers import read_mask
from liverdis.cohort.annotation.seg import _mentions
from liverdis.cohort.annotation.tables import read_table
from liverdis.cohort.ct import AIR, SliceHeader, read_series, read_slice, write_slice
from liverdis.cohort.folds import make_folds
from liverdis.cohort.headers import problem_of
from liverdis.cohort.healthy import GAP_MM, Liver, OutlinedPlane, _Square, near_lesions, place_healthy
from liverdis.cohort.labels import LabelRules, Named, load_labels, shared_names, write_labels
from liverdis.cohort.manifest import MANIFEST_COLUMNS, file_checksum, load_manifest, save_manifest, verify_files
from liverdis.cohort.roi import (
    Box,
    bounding_box,
    cached_rois,
    crop,
    extract_roi,
    lesion_box,
    load_rois,
    save_cached_rois,
)
from liverdis.core import CLASSES, InputError

REALDATA = Path(os.environ.get('LIVERDIS_REALDATA', Path(__file__).parents[1] / '../shared/realdata')).resolve()
real = pytest.mark.skipif(
    not REALDATA.is_dir(), reason=f"no real CT at {REALDATA}: set LIVERDIS_REALDATA to the folder that holds it"
)


def one_line(f, *args, **kw):
    "Text of the `InputError` of a call, which must be one line"
    with pytest.raises(InputError) as e:
        f(*args, **kw)
    assert '\n' not in str(e.value)
    return str(e.value)


@pytest.fixture
def cohort(tmp_path):
    "Three rows over one CT slice with a cyst, as dictionaries; the files are in `tmp_path`"
    y, x = np.mgrid[:64, :64]
    lesion = np.hypot(y - 30, x - 34) < 8
    write_slice(tmp_path / 'ct.dcm', np.where(lesion, 10, 110))
    Image.fromarray(lesion).save(tmp_path / 'lesion.png')
    row = dict(
        patient_id='007',
        series_uid='',
        image_path='ct.dcm',
        annotation_path='lesion.png',
        annotation_kind='png-mask',
        segment='',
        label='cyst',
        phase='portal',
        row_spacing_mm=1,
        col_spacing_mm=1,
        slice_thickness_mm=1,
        sha256=file_checksum(tmp_path / 'ct.dcm', tmp_path / 'lesion.png'),
    )
    return [dict(case_id=f'c{i}', **row) for i in range(3)]


# the manifest


@pytest.mark.parametrize(
    'field,value,expected',
    [
        ('label', 'Cyst', "'cyst', 'metastasis', 'hemangioma' or 'healthy'"),
        ('phase', 'venous', "'portal'"),
        ('annotation_kind', 'stl', "'seg'"),
        ('image_path', '/data/ct.dcm', 'absolute'),
        ('image_path', '../ct.dcm', '..'),
        ('annotation_path', 'a/../../b.png', '..'),
        ('image_path', 'C:/ct.dcm', 'POSIX'),
        ('image_path', 'a\\ct.dcm', 'POSIX'),
        ('image_path', '', "''"),
        ('patient_id', '', 'patient'),
        ('row_spacing_mm', '0', 'greater than 0'),
        ('row_spacing_mm', 'inf', 'finite'),
        ('col_spacing_mm', 'wide', 'number'),
        ('slice_thickness_mm', '-1', 'greater than 0'),
        ('sha256', 'ABC', 'pattern'),
        ('case_id', 'c0', 'already in row 2'),
    ],
)
def test_bad_cell(cohort, tmp_path, field, value, expected):
    cohort[1][field] = value
    pd.DataFrame(cohort).to_csv(tmp_path / 'bad.csv', index=False)
    for message in (
        one_line(load_manifest, tmp_path / 'bad.csv'),
        one_line(save_manifest, cohort, tmp_path / 'new.csv'),
    ):
        assert 'csv row 3, ' + field in message and expected in message
    assert not (tmp_path / 'new.csv').exists() and not list(tmp_path.glob('.*'))


@pytest.mark.parametrize(
    'kind,segment,said',
    [
        ('seg', '', 'segment number'),
        ('seg', '0', 'segment number'),
        ('rtstruct', 'GTV-1', 'ROI number'),
        ('boxes', '', 'id of a lesion'),
        ('polygons', '', 'id of a lesion'),
    ],
)
def test_files_of_many_outlines_need_to_say_which(cohort, tmp_path, kind, segment, said):
    cohort[2].update(annotation_kind=kind, segment=segment)
    message = one_line(save_manifest, cohort, tmp_path / 'm.csv')
    assert 'row 4, segment' in message and said in message
    cohort[2].update(segment='1')
    save_manifest(cohort, tmp_path / 'm.csv')


@pytest.mark.parametrize('sign', ['\u2028', '\x85', '\x0c', '\x1c'])
def test_a_cell_with_a_sign_that_ends_lines_elsewhere_is_one_cell(cohort, tmp_path, sign):
    cohort[0].update(patient_id=f'P{sign}1')
    save_manifest(cohort, tmp_path / 'm.csv')
    assert load_manifest(tmp_path / 'm.csv').df.patient_id[0] == f'P{sign}1'


def test_several_errors_are_counted(cohort, tmp_path):
    for r in cohort:
        r['label'] = 'unknown'
    message = one_line(save_manifest, cohort, tmp_path / 'm.csv')
    assert 'row 2, label' in message and 'and 2 more' in message


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'\n',
        b'case_id,label\n',
        b'\xff\xfe\x00',
        b'PK\x03\x04\x00\x00',
        (','.join(MANIFEST_COLUMNS) + '\n').encode(),
        (','.join(MANIFEST_COLUMNS) + '\n\n').encode(),
        (','.join(MANIFEST_COLUMNS) + '\nc1\n').encode(),
        (','.join(MANIFEST_COLUMNS) + '\n' + ',' * 20 + '\n').encode(),
    ],
)
def test_no_table(tmp_path, content):
    (tmp_path / 'm.csv').write_bytes(content)
    assert 'm.csv' in one_line(load_manifest, tmp_path / 'm.csv')


def test_unreadable_manifest(tmp_path):
    assert 'No such file' in one_line(load_manifest, tmp_path / 'm.csv')
    assert 'directory' in one_line(load_manifest, tmp_path)


def test_excel_writes_a_byte_order_mark(cohort, tmp_path):
    m = save_manifest(cohort, tmp_path / 'm.csv')
    (tmp_path / 'bom.csv').write_bytes(b'\xef\xbb\xbf' + (tmp_path / 'm.csv').read_bytes().replace(b'\n', b'\r\n'))
    assert load_manifest(tmp_path / 'bom.csv').checksum == m.checksum and m.df.patient_id[0] == '007'


def test_a_failed_save_keeps_the_old_file(cohort, tmp_path):
    save_manifest(cohort, tmp_path / 'm.csv')
    old = (tmp_path / 'm.csv').read_bytes()
    one_line(save_manifest, [cohort[0], cohort[0]], tmp_path / 'm.csv')
    assert (tmp_path / 'm.csv').read_bytes() == old


def test_verify_names_the_row(cohort, tmp_path):
    cohort[1]['annotation_path'] = 'gone.png'
    message = one_line(verify_files, save_manifest(cohort, tmp_path / 'm.csv'))
    assert 'row 3' in message and 'gone.png' in message
    cohort[1].update(annotation_path='lesion.png', sha256='0' * 64)
    message = one_line(verify_files, save_manifest(cohort, tmp_path / 'm.csv'))
    assert 'row 3' in message and 'changed' in message


# labels


def filled_in(path, labels, patient='8165c3565f35'):
    "The rules of a form that was written for structures of a patient and filled in with these labels, by name"
    write_labels(path, pd.DataFrame(dict(name=list(labels), patient=patient)))
    form = pd.read_csv(path, dtype=str, keep_default_na=False)
    form.assign(label=form.name.map(labels)).to_csv(path, index=False)
    return load_labels(path)


@pytest.mark.parametrize('names', [('Tumor', 'TUMOR'), ('TUMOR', 'Tumor'), ('Tumor#2', 'tumor#2')])
def test_structures_that_differ_in_case_have_the_labels_of_their_lines(tmp_path, names):
    labels = dict(zip(names, ('metastasis', 'cyst')))
    rules = filled_in(tmp_path / 'labels.csv', labels)
    for name, label in labels.items():
        assert rules.of(Named(name.partition('#')[0], number=2), ('8165c3565f35',)) == label
    last = LabelRules((*rules.rules, ('*', 'ignore', '8165c3565f35')))
    assert {last.of(Named(name, number=2), ('8165c3565f35',)) for name in names} == {'ignore'}


@pytest.mark.parametrize('other, patterned', [('Tumor1', 'Tumor*'), ('Lesion', 'Lesion#1'), ('a*b', 'a*')])
def test_a_name_that_reads_as_a_pattern_does_not_overrule_in_silence(tmp_path, other, patterned):
    "Below the line that it overrules it is refused; above, or named by its code, each line is about its structure"
    structures = Named(other, 's-0000000001', 1), Named(patterned, 's-0000000002')
    patient, wanted = ('8165c3565f35',), ['metastasis', 'cyst']
    rules = filled_in(tmp_path / 'below.csv', {other: 'metastasis', patterned: 'cyst'})
    assert f'put the line of {patterned!r} above' in one_line(rules.of, structures[1], patient)
    rules = filled_in(tmp_path / 'above.csv', {patterned: 'cyst', other: 'metastasis'})
    assert [rules.of(s, patient) for s in structures] == wanted
    rules = filled_in(tmp_path / 'code.csv', {other: 'metastasis', 's-0000000002': 'cyst'})
    assert [rules.of(s, patient) for s in structures] == wanted
    rules = filled_in(tmp_path / 'alike.csv', dict.fromkeys((other, patterned), 'cyst'))
    assert [rules.of(s, patient) for s in structures] == ['cyst', 'cyst']


@pytest.mark.parametrize('source, typed', [('NFD', 'NFC'), ('NFC', 'NFD')])
def test_accents_are_compared_however_they_are_stored(tmp_path, source, typed):
    of_source, by_hand = (
        [unicodedata.normalize(form, name) for name in ('L\u00e4sion', 'Andr\u00e9')] for form in (source, typed)
    )
    path = tmp_path / 'labels.csv'
    path.write_text('name,label,patient\n' + ','.join((by_hand[0], 'cyst', by_hand[1])) + '\n', encoding='utf-8')
    assert load_labels(path).of(Named(of_source[0]), (of_source[1],)) == 'cyst'
    assert write_labels(path, pd.DataFrame(dict(name=of_source[:1], patient=of_source[1:]))) == 0
    with path.open('a', encoding='utf-8') as f:
        f.write(','.join((of_source[0], 'metastasis', of_source[1])) + '\n')
    assert 'line 3: gives' in one_line(load_labels, path)


def test_a_number_that_two_sites_give_is_told():
    patients = [('siteA/001/ct', 'A1', '001', 'siteA', 'ct'), ('siteB/001/ct', 'B7', '001', 'siteB', 'ct')]
    rules = [('livertumor', 'cyst', patient) for patient in ('001', 'siteA', 'B7', '00?', 'siteB/001/ct', '*')]
    assert shared_names(LabelRules(tuple(rules)), patients) == {rules[0]: ('siteA/001', 'siteB/001')}
    batch = [('batch/001', 'A1', '001', 'batch'), ('batch/002', 'B7', '002', 'batch')]
    assert not shared_names(LabelRules((('livertumor', 'cyst', 'batch'),)), batch)


# folds


def random_cohort(counts, seed):
    "Lesions in random order over patients with one to four of them"
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat(CLASSES, counts))
    patient = np.repeat(np.arange(len(label)), rng.integers(1, 5, len(label)))[: len(label)]
    return pd.DataFrame(
        dict(case_id=[f'{i:03}' for i in range(len(label))], patient_id=patient.astype(str), label=label)
    )


@pytest.mark.parametrize('counts', [(6, 6, 6, 6), (7, 8, 6, 3), (12, 12, 12, 12), (66, 81, 65, 27)])
@pytest.mark.parametrize('n_folds', [2, 3, 5])
def test_folds_of_any_cohort(counts, n_folds):
    for seed in range(8):
        df = random_cohort(counts, seed)
        if df.groupby('label').patient_id.nunique().min() < n_folds:
            assert 'fewer than' in one_line(make_folds, df, n_folds, 0.3, seed)
            continue
        folds = make_folds(df, n_folds, 0.3, seed)
        assert list(folds.case_id) == list(df.case_id)
        for k in range(1, n_folds + 1):
            role = folds[f'fold_{k}']
            assert ((role == 'test') == (folds.fold == k)).all()
            parts = [set(folds.patient_id[role == r]) for r in ('train', 'valid', 'test')]
            assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
            assert set(folds.label[role == 'train']) == set(CLASSES)
            assert 0.1 < (role == 'valid').sum() / (role != 'test').sum() < 0.5


def test_class_with_too_few_patients():
    df = random_cohort((12, 12, 12, 12), 0)
    df.loc[df.label == 'healthy', 'patient_id'] = '0'
    assert "'healthy' has 1 patient" in one_line(make_folds, df, 3, 0.3, 0)
    without = df[df.label != 'healthy']  # a class that is absent is no error
    assert set(make_folds(without, 3, 0.3, 0).label) == set(CLASSES) - {'healthy'}
    assert "every lesion is of class 'cyst'" in one_line(make_folds, df[df.label == 'cyst'], 3, 0.3, 0)


# slices, masks, squares


def test_every_cut_of_a_file_is_one_line(cohort, tmp_path):
    whole = (tmp_path / 'ct.dcm').read_bytes()
    for n in (0, 50, 130, 300, 500, 900, len(whole) - 4000, len(whole) - 1):
        (tmp_path / 'cut.dcm').write_bytes(whole[:n])
        assert 'cut.dcm' in one_line(read_slice, tmp_path / 'cut.dcm')


def test_all_lesions_of_a_cohort(cohort, tmp_path):
    m = save_manifest(cohort, tmp_path / 'm.csv')
    rois = load_rois(m, 0.25, 32)
    assert rois.shape == (3, 1, 32, 32) and rois.dtype == np.float32 and list(m.df.case_id) == ['c0', 'c1', 'c2']
    assert np.array_equal(rois[:, 0], [extract_roi(row, tmp_path, 0.25, 32) for row in m.df.itertuples()])
    Image.fromarray(np.zeros((64, 64), bool)).save(tmp_path / 'lesion.png')
    message = one_line(load_rois, m, 0.25, 32)
    assert 'm.csv row 2 (case c0)' in message and 'empty' in message


@pytest.mark.parametrize(
    'box', [Box(-0.5, -0.5, 3), Box(62.5, 62.5, 3), Box(-40, -40, 200), Box(5.25, 7.75, 11.5, 0.7), Box(1e3, 0, 5)]
)
def test_crop_stays_in_the_range_of_its_input(box):
    hu = np.random.default_rng(0).uniform(-200, 300, (64, 64)).astype(np.float32)
    for size in (8, 128):
        out = crop(hu, box, size)
        assert out.shape == (size, size) and out.dtype == np.float32 and AIR <= out.min() and out.max() <= 300


# healthy squares


@pytest.mark.parametrize('spacing', [(1.0, 1.0), (0.7, 0.9), (0.9, 0.6)])
def test_healthy_squares_lie_in_the_liver_and_apart(spacing):
    y, x = np.mgrid[:200, :240]
    liver = {k: ((y - 100) / 80) ** 2 + ((x - 120) / (60 + 5 * k)) ** 2 < 1 for k in range(8)}
    z = [5.0 * k for k in range(8)]
    lesions = [OutlinedPlane(z[3], (y - 100) ** 2 + (x - 100) ** 2 < 15**2)]
    where = Liver(liver, lesions, z, spacing), [12, 25], 20, 0.25
    placed, missed, _ = place_healthy(*where, np.random.default_rng(0))
    again = place_healthy(*where, np.random.default_rng(0))
    assert (placed, missed) == again[:2] and len(placed) + len(missed) == 20 and len(placed) > 4
    used = {k: np.zeros(y.shape, int) for k in liver}
    for rank, at in placed:
        near = near_lesions(lesions, z[rank], GAP_MM, spacing)
        assert liver[rank][at].all() and (near is None or not near[at].any())
        used[rank][at] += 1
    assert max(u.max() for u in used.values()) == 1


def test_near_a_lesion_is_within_ten_mm_however_long_a_pixel_is():
    lesion = np.zeros((41, 41), bool)
    lesion[20, 20] = True
    rows, cols = np.nonzero(near_lesions([OutlinedPlane(0.0, lesion)], 0.0, GAP_MM, (2.0, 1.0)))
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (15, 25, 10, 30)


def test_squares_share_tissue_as_far_across_slices_as_they_are_long():
    "Ten rows are 20 mm"
    square = _Square(10.0, 0, Box(0, 0, 10, 2.0), 10)
    liver = Liver({}, [], [0.0, 15.0, 25.0], (2.0, 1.0))
    assert liver.overlapping([square], 1, 10) == [square.box] and liver.overlapping([square], 2, 10) == []


# real CT


@real
def test_chaos_order_and_intercept():
    series = read_series(REALDATA / 'chaos03/DICOM_anon')
    z = [s.position_mm[2] for s in series]
    assert len(series) == 78 and np.allclose(np.diff(z), 2)
    assert series[0].thickness_mm == 3.2  # the step is not the thickness
    assert series[0].path.name > series[-1].path.name  # z falls as names rise
    masks = sorted((REALDATA / 'chaos03/Ground').glob('*.png'))
    hu = [s.hu[read_mask(m, 'png-mask', '', s)] for s, m in zip(series[20:60], masks[::-1][20:60])]
    assert abs(np.concatenate(hu).mean() - 141) < 3


@real
@pytest.mark.parametrize('name', ['livertumor1', 'livertumor2'])
def test_ircad_lesions_to_the_pixel(name):
    lesion = pd.read_csv(REALDATA / 'expected_lesions.csv').set_index('name').loc[name]
    ct = read_slice(REALDATA / f'ircad17/PATIENT_DICOM/image_{lesion.z_maxarea}')
    path = REALDATA / f'ircad17/MASKS_DICOM/{name}/image_{lesion.z_maxarea}'
    mask = read_mask(path, 'dicom-mask', '', ct)
    assert mask.sum() == lesion.area_px
    assert bounding_box(mask) == (lesion.row_min, lesion.row_max, lesion.col_min, lesion.col_max)
    h, w = lesion.row_max - lesion.row_min + 1, lesion.col_max - lesion.col_min + 1
    box = lesion_box(mask, 0, ct.spacing_mm)
    assert box == (lesion.row_min + (h - box.side) / 2, lesion.col_min + (w - box.side) / 2, max(h, w), 1)
    assert crop(ct.hu, lesion_box(mask, 0.25, ct.spacing_mm)).shape == (128, 128)
    assert 'pair files' in one_line(read_mask, path.with_name('image_90'), 'dicom-mask', '', ct)


@real
def test_ircad_series_without_extensions():
    series = read_series(REALDATA / 'ircad17/PATIENT_DICOM')
    assert [s.path.name for s in series] == [f'image_{i}' for i in range(78, 114)]
    assert series[0].frame_of_reference == ''
    largest = pd.read_csv(REALDATA / 'expected_lesions.csv').set_index('name').z_maxarea
    for name in ('livertumor1', 'livertumor2'):
        masks = REALDATA / f'ircad17/MASKS_DICOM/{name}'
        area = {s.path.name: read_mask(masks / s.path.name, 'dicom-mask', '', s).sum() for s in series[8:28]}
        assert max(area, key=area.get) == f'image_{largest[name]}'


@real
def test_padding_is_air():
    series = read_series(REALDATA / 'dcmqi_liver_seg/ct-3slice')
    assert [s.path.name for s in series] == ['03.dcm', '02.dcm', '01.dcm'] and all(s.hu.min() == AIR for s in series)
    liver = REALDATA / 'dcmqi_liver_seg/liver.dcm'
    assert [read_mask(liver, 'seg', '1', s).sum() for s in series] == [36233, 35645, 35220]
    assert 'empty' in one_line(read_mask, REALDATA / 'dcmqi_liver_seg/partial_overlaps.dcm', 'seg', '1', series[0])


@real
def test_transfer_syntaxes_read_alike():
    files = sorted((REALDATA / 'transfer_syntaxes').glob('*.dcm'))
    broken = [f for f in files if 'JPEGProcess10_12' in f.name]
    first, *others = [read_slice(f).hu for f in files if f not in broken]
    assert len(others) == 4 and all(np.array_equal(first, hu) for hu in others)
    assert 'uncompressed' in one_line(read_slice, broken[0])


@real
def test_seg_encodings():
    ct = read_series(REALDATA / 'dcmqi_liver_seg/ct-3slice')[0]
    outcome = {}
    for f in sorted((REALDATA / 'seg_encodings').glob('*.dcm')):
        try:
            outcome[f.stem] = int(read_mask(f, 'seg', '1', ct).sum())
        except InputError as e:
            outcome[f.stem] = str(e).split(': ')[1].split(' (')[0].split(' and ')[0]
    assert outcome == {
        'liver': 36233,
        'liver_1frame': 36233,
        'liver_j2k': 36233,
        'liver_nonbyte_aligned': 36233,
        'liver_rle': 'frames cannot be decoded',
    }  # the third is 510 x 510, put where it lies


@real
def test_seg_small_and_label_maps():
    ct, folder = read_slice(REALDATA / 'seg_small/ct_image.dcm'), REALDATA / 'seg_small'
    assert read_mask(folder / 'seg_image_ct_binary_single_frame.dcm', 'seg', '1', ct).sum() == 1832
    assert 'another image' in one_line(read_mask, folder / 'seg_image_ct_binary.dcm', 'seg', '1', ct)
    assert 'another image' in one_line(read_mask, folder / 'seg_image_ct_true_fractional.dcm', 'seg', '1', ct)
    series = read_series(REALDATA / 'dcmqi_liver_seg/24x38x3/image')
    for name in ('noppv', 'ppv5'):
        seg = REALDATA / f'dcmqi_liver_seg/sparse-labelmap-{name}.dcm'
        assert Counter(read_mask(seg, 'seg', '1', series[i]).sum() for i in (0, 2)) == {315: 2}
        assert 'empty' in one_line(read_mask, seg, 'seg', '1', series[1])


@real
def test_refused_real_files():
    assert 'give the frame, 0 to 2' in one_line(read_slice, REALDATA / 'dcmqi_liver_seg/24x38x3/multiframe/mf.dcm')
    assert 'not CT' in one_line(read_slice, REALDATA / 'dcmqi_liver_seg/liver.dcm')
    assert len(read_series(REALDATA / 'ts_dicom_nifti/example_ct_dicom')) == 20  # empty UIDs, JPEG 2000


def test_a_bug_of_ours_is_no_damaged_file(tmp_path, monkeypatch):
    write_slice(tmp_path / '1.dcm', np.zeros((8, 8)))
    monkeypatch.setattr(ct, '_hounsfield', lambda: None)  # called with arguments: a TypeError in ct.py
    with pytest.raises(TypeError):
        read_slice(tmp_path / '1.dcm')
    monkeypatch.delenv('LIVERDIS_BUGS')
    with pytest.raises(InputError, match='1.dcm: damaged file'):  # a user sees no traceback all the same
        read_slice(tmp_path / '1.dcm')


@pytest.mark.parametrize(
    'module, name, reader, file',
    [
        (ct, '_require_syntax', ct.read_headers, '1.dcm'),
        (ct, '_require_bits', read_slice, '1.dcm'),
        (ct, '_turn', ct.read_volume, '1.nii'),
        (volumes, '_require_near', volumes.open_volume, '1.nii'),
    ],
)
def test_no_reader_hides_a_bug(tmp_path, monkeypatch, module, name, reader, file):
    "Where a reader has words of its own, too: a name that is gone"
    write_slice(tmp_path / '1.dcm', np.zeros((8, 8)))
    nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_filename(tmp_path / '1.nii')
    monkeypatch.delattr(module, name)
    with pytest.raises(NameError):
        reader(tmp_path / file)
    monkeypatch.delenv('LIVERDIS_BUGS')
    assert name in one_line(reader, tmp_path / file)
    monkeypatch.undo()
    assert reader(tmp_path / file) is not None


def test_no_memory_is_no_damaged_file(tmp_path, monkeypatch):
    def no_memory(*args, **kwargs):
        raise MemoryError

    write_slice(tmp_path / '1.dcm', np.zeros((8, 8)))
    monkeypatch.setattr(ct, 'parse_dicom', no_memory)
    assert 'needs more memory than there is' in one_line(read_slice, tmp_path / '1.dcm')
    assert 'needs more memory than there is' in problem_of(tmp_path / '1.dcm', MemoryError()).reason


# what a second maintainer found


def test_a_column_that_occurs_twice(cohort, tmp_path):
    save_manifest(cohort, tmp_path / 'manifest.csv')
    lines = (tmp_path / 'manifest.csv').read_text().splitlines()
    twice = [lines[0] + ',label', *(line + ',metastasis' for line in lines[1:])]
    (tmp_path / 'manifest.csv').write_text('\n'.join(twice))
    assert 'two columns label; keep one' in one_line(load_manifest, tmp_path / 'manifest.csv')


def test_regions_of_another_version_are_cut_anew(cohort, tmp_path, monkeypatch):
    m = save_manifest(cohort, tmp_path / 'manifest.csv')
    save_cached_rois(m, 0.25, 32, (np.full((1, 1, 32, 32), 7.0) for _ in range(3)))
    assert (np.asarray(load_rois(m, 0.25, 32)) == 7).all()
    monkeypatch.setattr(roi, '__version__', 'another')
    assert cached_rois(m, 0.25, 32) is None and not (np.asarray(load_rois(m, 0.25, 32)) == 7).any()


def test_values_that_do_not_fit_into_16_bits_are_not_written(tmp_path):
    assert '40000 HU do not fit' in one_line(write_slice, tmp_path / 'ct.dcm', np.full((4, 4), 40000.0))
    assert not (tmp_path / 'ct.dcm').exists()


def test_signed_12_bits_with_zeros_above_them(tmp_path):
    "DICOM leaves open what stands in the bits that are not stored"
    hu = np.linspace(-1000, 1000, 64 * 64).reshape(64, 64).round()
    ds = write_slice(tmp_path / 'ct.dcm', hu, RescaleIntercept=0, BitsStored=12, HighBit=11)
    ds.PixelData = (np.frombuffer(ds.PixelData, '<u2') & 0xFFF).tobytes()
    ds.save_as(tmp_path / 'ct.dcm')
    np.testing.assert_array_equal(read_slice(tmp_path / 'ct.dcm').hu, hu)
    ds.PixelData = (np.frombuffer(ds.PixelData, '<u2') | 0x1000).tobytes()
    ds.save_as(tmp_path / 'ct.dcm')
    assert 'more than BitsStored 12' in one_line(read_slice, tmp_path / 'ct.dcm')


def test_a_system_that_sets_no_limit_of_memory_decodes_all_the_same(monkeypatch):
    "macOS"
    asked = []

    def refuse(*limit):
        asked.append(limit)
        raise ValueError('current limit exceeds maximum limit')

    monkeypatch.setattr('resource.setrlimit', refuse)
    decoding._limit_memory()
    assert len(asked) == 1


@pytest.mark.parametrize('uid, said', [('1.2.3.10', True), ('1.2.3.1', False), ('1.2.3', False), ('2.3.10', False)])
def test_a_frame_names_a_whole_uid(uid, said):
    source, derivation, group, file = Dataset(), Dataset(), Dataset(), BytesIO()
    source.ReferencedSOPInstanceUID = '1.2.3.10'
    derivation.SourceImageSequence = [source]
    group.DerivationImageSequence = [derivation]
    group.file_meta = pydicom.dataset.FileMetaDataset()
    group.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    group.save_as(file, enforce_file_format=False)
    read = pydicom.dcmread(BytesIO(file.getvalue()), force=True)
    header = SliceHeader(shape=(4, 4), spacing_mm=(1, 1), sop_uid=uid, path=Path('x'))
    assert _mentions(read, header) is said


@pytest.mark.parametrize('end', ['', '\n'])
def test_a_table_of_windows_that_ends_in_an_accent(tmp_path, end):
    (tmp_path / 'labels.csv').write_bytes(f'label,name\nignore,café{end}'.encode('cp1252'))
    assert list(read_table(tmp_path / 'labels.csv').name) == ['café']


@pytest.mark.parametrize('share', [0.01, 0.05, 0.3, 0.9])
def test_any_share_leaves_something_for_training_and_for_validation(share):
    df = random_cohort([15] * len(CLASSES), 3)
    folds = make_folds(df, 3, share, seed=0)
    for k in (1, 2, 3):
        assert {'train', 'valid', 'test'} == set(folds[f'fold_{k}'])


def test_a_nifti_of_two_dimensions_with_both_codes_says_so(tmp_path):
    image = nib.Nifti1Image(np.zeros((8, 8), np.int16), np.eye(4))
    image.set_sform(np.eye(4), 1)
    image.set_qform(np.diag([3, 3, 3, 1.0]), 1)
    image.to_filename(tmp_path / 'flat.nii')
    assert '2 dimensions' in one_line(ct.volume_headers, tmp_path / 'flat.nii')
