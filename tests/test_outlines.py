"""What is drawn, what it is called, and what is in doubt: small made-up CT whose outlines are not as one would wish."""

import formats
import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest

from liverdis.cohort.annotation.contours import fill_region
from liverdis.cohort.annotation.readers import read_structures
from liverdis.cohort.case_files import IngestOptions
from liverdis.cohort.ct import read_headers, sort_slices, write_slice
from liverdis.cohort.healthy import GAP_MM
from liverdis.cohort.ingest import ingest
from liverdis.cohort.labels import LabelRules, Named, load_labels, write_labels
from liverdis.cohort.manifest import load_manifest, save_manifest
from liverdis.cohort.outlines import Place
from liverdis.cohort.roi import load_rois
from liverdis.core import InputError

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


def healthy(src, labels=TUMOUR, n=3, **how):
    "The healthy squares of a source, and why there are none"
    done = ingest(src, src.with_name('out'), labels, options=IngestOptions(healthy=n), **how)
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


def test_lesions_that_begin_on_even_and_odd_slices_are_two(source):
    drawn = box((10, 20), (10, 20), (3, 10)) + box((36, 50), (36, 50), (4, 11))
    drawn[:32, :, 0::2] = drawn[32:, :, 1::2] = 0
    nifti(source / 'anna/tumor.nii.gz', drawn)
    ingest(source, out := source.with_name('out'), TUMOUR, options=IngestOptions(healthy=0, slices='all'))
    m = pd.read_csv(out / 'measurements.csv')
    assert sorted(c[-5:] for c in m.case_id) == [f'z{r:04d}' for r in range(3, 11)] and set(m.n_slices) == {7}


def test_a_slice_that_nobody_outlined_makes_no_case(source):
    drawn = box((20, 32), (20, 32), (3, 10))
    drawn[:, :, np.arange(SLICES) % 2 != 0] = 0
    nifti(source / 'anna/tumor.nii.gz', drawn)
    for slices, ranks in (('all', [4, 6, 8]), ('step:2', [6])):
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


def test_one_name_on_two_series_is_asked_for_once(source):
    "One label holds for both; the form has one line, and says so; two lines that differ are refused"
    ct(source / 'anna/later', 'A', '1.3.9')
    (source / 'anna/tumor.nii.gz').rename(source / 'anna/ct/tumor.nii.gz')
    nifti(source / 'anna/later/tumor.nii.gz', GROWTH)
    done = ingest(source, source.with_name('out'), options=IngestOptions(healthy=0))
    asked = done.lacking[done.lacking.name == 'tumor']
    assert len(asked) == 1 and 'the first of 2 so called' in asked.reason.item()
    form = source.with_name('labels.csv')
    write_labels(form, asked)
    assert len(form.read_text().splitlines()) == 2
    line = form.read_text().splitlines()[1]
    form.write_text(form.read_text() + line.replace('tumor,', 'tumor,cyst', 1) + '\n')
    with pytest.raises(InputError, match='line 3'):
        load_labels(form)


def test_two_people_with_one_patient_id_do_not_share_a_label(source):
    "Two lines for two folders of one PatientID are refused, and that it goes with two names is told"
    ct(source / 'berta/ct', 'A', '1.3.2')
    nifti(source / 'berta/tumor.nii.gz', box((40, 52), (40, 52), (5, 9)))
    retag(source / 'berta/ct', PatientName='Berta')
    rules = LabelRules((('tumor', 'cyst', 'anna'), ('tumor', 'metastasis', 'berta')))
    with pytest.raises(InputError, match='one patient of the source'):
        ingest(source, source.with_name('out'), rules, options=IngestOptions(healthy=0))
    done = ingest(source, source.with_name('out'), TUMOUR, options=IngestOptions(healthy=0))
    assert any('another PatientName' in p.reason and not p.failed for p in done.problems)


def retag(folder, **values):
    "Give all slices of a series other values of some attributes"
    for path in folder.glob('s*.dcm'):
        ds = pydicom.dcmread(path)
        ds.update(values)
        ds.save_as(path)


@pytest.mark.parametrize('study, told', [('1.2', 0), ('1.2.9', 1)])
def test_a_patient_id_that_is_nobodys(source, study, told):
    "All who have it count as one patient, which is said if they have several studies"
    ct(source / 'berta/ct', 'Berta', '1.3.2')
    for who, of in (('anna', '1.2'), ('berta', study)):
        retag(source / who / 'ct', PatientID='NO_NAME', StudyInstanceUID=of)
    done = ingest(source, source.with_name('out'), TUMOUR, options=IngestOptions(healthy=0))
    assert sum("is nobody's" in p.reason and p.doubt for p in done.problems) == told


def test_squares_have_the_sizes_of_lesions_that_became_cases(source):
    "And not of specks that are too thin for a region"
    drawn = GROWTH.copy()
    for k in range(10):
        drawn[44:45, 6 + 4 * k : 8 + 4 * k, 2] = 1
    nifti(source / 'anna/tumor.nii.gz', drawn)
    squares, _ = healthy(source, n=4)
    assert len(squares) == 4 and squares.diameter_mm.min() > 8


def test_volume_where_the_distance_of_slices_changes(tmp_path):
    src = tmp_path / 'src/anna'
    places = [*np.arange(0.0, 40, 5), *np.arange(36.25, 61, 1.25)]
    for k, z in enumerate(places):
        ids = dict(PatientID='A', StudyInstanceUID='1.2', SeriesInstanceUID='1.3', SOPInstanceUID=f'1.3.{k}')
        noise = np.random.default_rng(k).normal(50, 60, (SIDE, SIDE)).round()
        (src / 'ct').mkdir(parents=True, exist_ok=True)
        write_slice(src / f'ct/{k:02}.dcm', noise, (PIXEL_MM, PIXEL_MM), (0.0, 0.0, z), **ids)
    masks = np.zeros((len(places), SIDE, SIDE), bool)
    masks[2:6, 10:30, 10:30] = True
    formats.rtstruct(src, [pydicom.dcmread(src / f'ct/{k:02}.dcm') for k in range(len(places))], masks)
    ingest(src, out := tmp_path / 'out', LabelRules((('*', 'cyst', '*'),)), options=IngestOptions(healthy=0))
    (case,) = pd.read_csv(out / 'measurements.csv').itertuples()
    true_ml = masks.sum() * PIXEL_MM**2 * 5 / 1000
    assert case.volume_ml == pytest.approx(true_ml, rel=0.01) and 'slices lie 1.25 to 5 mm apart' in case.notes


@pytest.mark.parametrize('layout', ['{p}/{p}_{s}', '{p}_{s}', 'volume-{i}'])
def test_sessions_of_one_person_are_told(tmp_path, layout):
    "In names of files they count as patients, since a name proves nothing; plain numbers are not sessions"
    affine = np.diag([-PIXEL_MM, -PIXEL_MM, STEP_MM, 1.0])
    names = [(f'sub-0{p}', f'ses-{s}') for p in (1, 2) for s in (1, 2)]
    for i, (p, s) in enumerate(names):
        image = tmp_path / 'src' / f'{layout.format(p=p, s=s, i=i)}.nii.gz'
        image.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).normal(50, 60, GROWTH.shape).astype(np.int16)
        nib.Nifti1Image(noise, affine).to_filename(image)
        nib.Nifti1Image(GROWTH, affine).to_filename(image.with_name(image.name.replace('.nii', '_tumor.nii')))
    labels = LabelRules((('*tumor', 'cyst', '*'),))
    done = ingest(tmp_path / 'src', tmp_path / 'out', labels, options=IngestOptions(healthy=0))
    told = [p.path for p in done.problems if 'visits of one' in p.reason]
    assert done.manifest.df.patient_id.nunique() == 4 and len(told) == (0 if 'volume' in layout else 2)


def test_the_order_of_a_manifest_is_that_of_its_regions(source):
    berta(source)
    nifti(source / 'berta/tumor.nii.gz', box((24, 50), (24, 50), (5, 9)))
    ingest(source, out := source.with_name('out'), TUMOUR, options=IngestOptions(healthy=0))
    whole = load_manifest(out / 'manifest.csv')
    turned = save_manifest(whole.df[::-1], out / 'manifest.csv')
    margin, size = IngestOptions().margin, IngestOptions().size
    assert np.array_equal(load_rois(turned, margin, size), load_rois(whole, margin, size)[::-1])


def thin_and_thick(folder):
    "A cyst with a hole, outlined on planes 2.5 mm apart, and slices 5 mm apart"
    y, x = np.mgrid[:64, :64]
    r = np.hypot(y - 32, x - 32)
    region = lambda z: (r < 16 - abs(z - 20) / 2) & (r > 4)
    for uid, step in (('1.3', 2.5), ('1.4', 5.0)):
        for i, z in enumerate(np.arange(0, 41, step)):
            place = dict(position_mm=(0.0, 0.0, float(z)), SOPInstanceUID=f'{uid}.{i}')
            ids = dict(PatientID='P', SeriesInstanceUID=uid, FrameOfReferenceUID='1.9')
            write_slice(folder / f'{uid}-{i:02}.dcm', np.where(region(z), 10.0, 110.0), **place, **ids)
    thin = [pydicom.dcmread(f) for f in sorted(folder.glob('1.3-*'))]
    thick = sort_slices(h for f in folder.glob('1.4-*') for h in read_headers(f))
    return thin, np.array([region(float(d.ImagePositionPatient[2])) for d in thin]), thick


@pytest.mark.parametrize('named', [False, True])
def test_contours_between_the_slices_do_not_cancel_those_on_them(tmp_path, named):
    "Whether they name slices of another series, or the slice at hand that lies below"
    thin, masks, thick = thin_and_thick(tmp_path)
    if named:
        for d in thin:
            d.SOPInstanceUID, d.SeriesInstanceUID = f'1.4.{int(d.ImagePositionPatient[2] // 5)}', '1.4'
    formats.rtstruct(tmp_path, thin, masks)
    check_thin(read_structures([tmp_path / 'rtstruct.dcm'], 'rtstruct', thick), thick, masks)


def check_thin(structures, thick, masks):
    "What is outlined on a thick slice is what is outlined on the thin one there, and it is said what is not"
    (found,) = structures
    assert sorted(found.masks) == list(range(len(thick)))
    assert all((found.masks[k] != masks[2 * k]).mean() < 0.01 for k in found.masks)
    assert any('between the slices left out' in note for note in found.notes)


def test_polygons_between_the_slices_do_not_cancel_those_on_them(tmp_path):
    thin, masks, thick = thin_and_thick(tmp_path)
    points = [
        dict(lesion='1', z_mm=float(d.ImagePositionPatient[2]), contour=k, x_mm=c, y_mm=r)
        for d, mask in zip(thin, masks)
        for k, line in enumerate(formats.contours(mask))
        for r, c in line
    ]
    pd.DataFrame(points).to_csv(tmp_path / 'polygons.csv', index=False)
    check_thin(read_structures([tmp_path / 'polygons.csv'], 'polygons', thick), thick, masks)


def test_boxes_between_the_slices_do_not_widen_those_on_them(tmp_path):
    thin, masks, thick = thin_and_thick(tmp_path)
    boxes = np.zeros_like(masks)
    for mask, box in zip(masks, boxes):
        at = np.argwhere(mask)
        box[tuple(slice(low, high + 1) for low, high in zip(at.min(0), at.max(0)))] = True
    rows = [
        dict(lesion='1', z_mm=float(d.ImagePositionPatient[2]), x_min_mm=c0, x_max_mm=c1, y_min_mm=r0, y_max_mm=r1)
        for d, mask in zip(thin, masks)
        for (r0, c0), (r1, c1) in [(np.argwhere(mask).min(0), np.argwhere(mask).max(0))]
    ]
    pd.DataFrame(rows).to_csv(tmp_path / 'boxes.csv', index=False)
    check_thin(read_structures([tmp_path / 'boxes.csv'], 'boxes', thick), thick, boxes)


# a number is a lesion


NUMBERED = LabelRules(
    tuple((f'tumor#{n}', label, '*') for n, label in enumerate(('hemangioma', 'cyst', 'metastasis'), 1))
)
SPOTS = [box((8 + 12 * i, 16 + 12 * i), (20, 30), (3 * i, 3 * i + 2)) for i in range(4)]  # from foot to head


def numbered(source, spots, labels=NUMBERED, n=0):
    "A second run with other growths: the labels of its lesions by their first rows, and why there are fewer"
    nifti(source / 'anna/tumor.nii.gz', sum(SPOTS[i] for i in spots))
    done = ingest(source, out := source.with_name('out'), labels, options=IngestOptions(healthy=n))
    m = pd.read_csv(out / 'measurements.csv') if done.manifest else pd.DataFrame(columns=['row_min', 'label'])
    m = m.sort_values('label', key=lambda label: label != 'healthy')  # whose square may begin in a lesion's row
    return dict(zip(m.row_min, m.label)), done.skipped.reason[done.skipped.failed].tolist()


@pytest.mark.parametrize('again', [(1, 2, 3), (1, 2), (0, 2, 3), (0, 1)])
def test_labels_by_number_stay_with_their_lesions(source, again):
    "Where a number is another lesion's now, nothing is labelled by it, not even in a run for another reason"
    before, _ = numbered(source, (0, 1, 2))
    assert before == {8: 'hemangioma', 20: 'cyst', 32: 'metastasis'}
    for n in (0, 1):
        labelled, reasons = numbered(source, again, n=n)
        if again == (0, 1):
            assert {k: v for k, v in labelled.items() if v != 'healthy'} == {
                8: 'hemangioma',
                20: 'cyst',
            } and not reasons
        else:
            assert not labelled and len(reasons) == 1 and 'numbered anew' in reasons[0]
    if again == (1, 2, 3):
        corrected = LabelRules(
            (('tumor#1', 'cyst', '*'), ('tumor#2', 'metastasis', '*'), ('tumor#3', 'hemangioma', '*'))
        )
        assert numbered(source, again, corrected) == ({20: 'cyst', 32: 'metastasis', 44: 'hemangioma'}, [])
        assert numbered(source, again, corrected, 1)[1] == []


def test_one_corrected_number_does_not_excuse_the_others(source):
    "Only #3 is corrected, while #1 and #2 are the lesions that were #2 and #3"
    numbered(source, (0, 1, 2))
    half = LabelRules((*NUMBERED.rules[:2], ('tumor#3', 'hemangioma', '*')))
    labelled, reasons = numbered(source, (1, 2, 3), half)
    assert not labelled and 'numbered anew' in reasons[0]


def test_a_number_in_addition_does_not_excuse_the_others(source):
    numbered(source, (1, 2), LabelRules(NUMBERED.rules[:2]))
    numbered(source, (0, 1, 2), LabelRules(NUMBERED.rules[:2]))
    labelled, reasons = numbered(source, (0, 1, 2))
    assert not labelled and 'numbered anew' in reasons[0]


def test_lesions_of_one_label_may_move(source):
    numbered(source, (0, 1), TUMOUR)
    assert numbered(source, (1, 2, 3), TUMOUR) == ({20: 'cyst', 32: 'cyst', 44: 'cyst'}, [])


def further_series(source, spots, frame, name='tumor'):
    "A later series of Anna with growths of its own"
    ct(source / 'anna/later', 'A', '1.3.9', frame)
    nifti(source / f'anna/later/{name}.nii.gz', sum(SPOTS[i] for i in spots))


def by_series(source, out='out', labels=NUMBERED):
    "The labels by first row on each series, and what failed"
    done = ingest(source, source.with_name(out), labels, options=IngestOptions(healthy=0))
    m = pd.read_csv(source.with_name(out) / 'measurements.csv') if done.manifest else pd.DataFrame()
    labelled = sorted(zip(m.case_id.str.split('-').str[1], m.row_min, m.label)) if len(m) else []
    return labelled, done.skipped.reason[done.skipped.failed].tolist()


@pytest.mark.parametrize(
    'later, frame, said',
    [((0, 1, 2), '1.9', ''), ((1, 2), '1.9', 'not one lesion on all series'), ((0, 1, 2), '1.8', 'is not known')],
)
def test_a_number_is_one_lesion_on_all_series(source, later, frame, said):
    "Where it is not, or nobody knows, the growths need other names; a series that came later makes no difference"
    anna = source / 'anna'
    (anna / 'liver.nii.gz').unlink()
    (anna / 'tumor.nii.gz').unlink()
    nifti(anna / 'ct/tumor.nii.gz', sum(SPOTS[:3]))
    assert len(by_series(source)[0]) == 3
    further_series(source, later, frame)
    on_both = [(s, row, label) for s in '12' for row, label in ((8, 'hemangioma'), (20, 'cyst'), (32, 'metastasis'))]
    for out in ('out', 'fresh'):
        labelled, reasons = by_series(source, out)
        assert labelled == ([] if said else on_both) and [said in reason for reason in reasons] == [True] * bool(said)
    if said:
        (anna / 'later/tumor.nii.gz').rename(anna / 'later/later.nii.gz')
        own = [(f'later#{n}', NUMBERED.rules[i][1], '*') for n, i in enumerate(later, 1)]
        labelled, reasons = by_series(source, labels=LabelRules((*NUMBERED.rules, *own)))
        assert labelled == on_both[:3] + [on_both[3 + i] for i in later] and not reasons


# healthy is only what is known to be


@pytest.mark.parametrize('refused, left', [('fractions', {'miller'}), ('mesh', set())])
def test_files_refused_for_one_reason_keep_squares_from_all_their_patients(tmp_path, refused, left):
    "They are told in one line, of which the first file's patient alone once went without. A mesh may be anybody's."
    src = tmp_path / 'src'
    for name in ('jones', 'smith', 'miller'):
        hu = np.random.default_rng(len(name)).normal(50, 60, LIVER.shape).round().astype(np.int16)
        nifti(src / f'{name}.nii.gz', hu)
        nifti(src / f'{name}_liver.nii.gz', LIVER)
        nifti(src / f'{name}_tumor.nii.gz', GROWTH)
    for name in ('jones', 'smith'):
        if refused == 'fractions':
            nifti(src / f'{name}_tumor.nii.gz', 0.7 * GROWTH)
        else:
            (src / f'{name}_tumor.nii.gz').unlink()
            (src / f'{name}_tumor.stl').write_text('solid')
    labels = LabelRules((('*liver', 'liver', '*'), ('*tumor', 'cyst', '*')))
    done = ingest(src, tmp_path / 'out', labels, options=IngestOptions(healthy=2))
    called = {pid: names for pid, *names in done.patients}
    with_squares = set(done.manifest.df.patient_id[done.manifest.df.label == 'healthy'])
    assert {name for pid in with_squares for name in called[pid] if name != '.'} == left


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


DRAWN = '{"shapes": [{"label": "tumour", "points": [[20, 20], [20, 32], [32, 32]]}]}'
BOX = 'lesion,image,row_min,row_max,col_min,col_max,label\n1,s6.dcm,20,32,20,32,'


@pytest.mark.parametrize(
    'name,text,kind,patients',
    [
        ('tumour.json', DRAWN, 'auto', 1),
        ('tumour.npy', 'numbers', 'auto', 1),
        ('tumour.csv', BOX + 'cyst', 'nifti', 1),
        ('ct.json', '{"Modality": "CT", "SliceThickness": 2.5}', 'auto', 2),  # as dcm2niix writes one beside each CT
        ('report.pdf', 'no lesion', 'auto', 2),
    ],
)
def test_no_square_is_healthy_where_outlines_are_left_out(source, name, text, kind, patients):
    berta(source)
    (source / 'berta' / name).write_text(text)
    squares, reasons = healthy(source, kind=kind)
    assert squares.patient_id.nunique() == patients and len(reasons) == 2 - patients


def test_no_square_is_healthy_where_a_lesion_is_empty_for_its_reader(source):
    "Points, which outline nothing: what else the file says of that lesion is told"
    berta(source)
    slices = [pydicom.dcmread(source / f'berta/ct/s{k}.dcm') for k in range(SLICES)]
    formats.rtstruct(source / 'berta', slices, GROWTH.T.astype(bool), 'tumor')
    ds = pydicom.dcmread(path := source / 'berta/rtstruct.dcm')
    for contour in ds.ROIContourSequence[0].ContourSequence:
        contour.ContourGeometricType = 'POINT'
    ds.save_as(path)
    squares, reasons = healthy(source)
    assert squares.patient_id.nunique() == 1 and len(reasons) == 1
    told = pd.read_csv(source.with_name('out') / 'skipped.csv').reason
    assert told.str.contains('is empty on the slices of its series; .* points').any()


@pytest.mark.parametrize('label', ['cyst', 'avoid', None, 'ignore'])
@pytest.mark.parametrize('n_open', [4, 2])
def test_no_square_is_healthy_where_a_structure_is_drawn_in_open_lines(source, label, n_open):
    "All of it, or half"
    berta(source)
    slices = [pydicom.dcmread(source / f'berta/ct/s{k}.dcm') for k in range(SLICES)]
    formats.rtstruct(source / 'berta', slices, GROWTH.T.astype(bool), 'mass')
    ds = pydicom.dcmread(path := source / 'berta/rtstruct.dcm')
    for contour in ds.ROIContourSequence[0].ContourSequence[:n_open]:
        contour.ContourGeometricType = 'OPEN_PLANAR'
    ds.save_as(path)
    labels = LabelRules((*TUMOUR.rules, *([('mass', label, '*')] if label else [])))
    squares, reasons = healthy(source, labels)
    assert squares.patient_id.nunique() == (2 if label == 'ignore' else 1) and len(reasons) == (label != 'ignore')
    told = pd.read_csv(source.with_name('out') / 'skipped.csv').reason
    what = 'empty' if n_open == 4 else 'not whole'
    assert told.str.startswith(f'is {what} on the slices of its series').any() == (label != 'ignore')


@pytest.mark.parametrize('gap, near', [(2.5, True), (7.5, True), (15.0, False)])
@pytest.mark.parametrize('kind', ['nifti', 'rtstruct', 'seg'])
def test_no_square_is_healthy_beside_what_begins_beyond_the_series(source, gap, near, kind):
    "The growth lies above the last slice, which is 37.5 mm high"
    berta(source)
    first = SLICES - 1 + int(gap / STEP_MM)
    mask = np.zeros((first + 4, SIDE, SIDE), bool)
    mask[first:, 10:50, 10:50] = True
    ct_of = [pydicom.dcmread(source / 'berta/ct/s0.dcm') for _ in mask]
    for k, d in enumerate(ct_of):
        d.ImagePositionPatient, d.SOPInstanceUID = [0, 0, STEP_MM * k], f'1.3.2.{k + 1}'
        d.filename = source.with_name(f'{k}.dcm')
        d.save_as(d.filename)
    if kind == 'nifti':
        nifti(source / 'berta/scar.nii.gz', mask.T.astype(np.uint8))
    else:
        getattr(formats, kind)(source / 'berta', ct_of, mask, 'scar')
    squares, reasons = healthy(source, LabelRules((*TUMOUR.rules, ('scar', 'avoid', '*'))))
    assert squares.patient_id.nunique() == (1 if near else 2) and len(reasons) == near


def test_squares_lie_where_a_liver_is_outlined(source):
    "On every third slice, and smaller from one to the next: between them it is not known where it ends"
    cone = np.zeros_like(LIVER)
    for k in range(0, SLICES, 3):
        cone[4:60, 4 : 60 - 2 * k, k] = 1
    nifti(source / 'anna/liver.nii.gz', cone)
    nifti(source / 'anna/tumor.nii.gz', box((4, 8), (4, 8), (0, 4)))
    squares, _ = healthy(source, n=12)
    assert len(squares) and (squares.slice_index % 3 == 0).all()


@pytest.mark.parametrize('value', [1, 2, 255])
def test_the_one_value_of_a_map_called_liver_may_be_the_tumour(source, value):
    "Anna's has both; a line for the value counts, and the name alone makes no liver of value 2"
    (source / 'anna/liver.nii.gz').unlink()
    (source / 'anna/tumor.nii.gz').unlink()
    berta(source)
    nifti(source / 'anna/liver.nii.gz', LIVER + GROWTH)
    nifti(source / 'berta/liver.nii.gz', value * GROWTH)
    labels = LabelRules((('liver:1', 'liver', '*'), ('liver:2', 'cyst', '*')))
    for rules, label in ((labels, 'cyst'), (LabelRules(labels.rules[:1]), None)):
        done = ingest(source, source.with_name('out'), rules, options=IngestOptions(healthy=0))
        n = done.manifest.df.label.value_counts().to_dict() if done.manifest else {}
        assert n.get('cyst', 0) == (0 if label is None else 1 + (value == 2))
        assert ('liver' in done.lacking.name.tolist()) == (value == 2 and label is None) and not done.unmatched
        again = ingest(source, source.with_name('out'), rules, options=IngestOptions(healthy=0))
        assert again.redone == 0


@pytest.mark.parametrize('z_mm', ['15', '150'])
def test_no_square_is_healthy_where_a_row_may_lie_wrong(source, z_mm):
    "One of two rows of a lesion, ten times too high"
    berta(source)
    rows = [f'1,{z},20,32,20,32,cyst\n' for z in ('12.5', z_mm)]
    (source / 'berta/t.csv').write_text('lesion,z_mm,row_min,row_max,col_min,col_max,label\n' + ''.join(rows))
    squares, reasons = healthy(source)
    assert squares.patient_id.nunique() == (2 if z_mm == '15' else 1) and len(reasons) == (z_mm == '150')


def test_a_box_is_no_outline_of_a_liver(source):
    (source / 'anna/liver.nii.gz').unlink()
    (source / 'anna/boxes.csv').write_text(BOX + 'liver')
    squares, reasons = healthy(source)
    assert len(squares) == 0 and reasons == ['no outline of the liver']


def test_no_square_is_healthy_beside_a_volume_that_counts_as_another_patient(source):
    "Half of the scan as NIfTI, with the lesion that the DICOM series lacks"
    berta(source)
    half = np.random.default_rng(0).normal(50, 60, GROWTH.shape).astype(np.int16)[..., :10]
    nifti(source / 'berta/scan.nii.gz', half)
    nifti(source / 'berta/scan_tumor.nii.gz', GROWTH[..., :10])
    squares, reasons = healthy(source)
    assert squares.patient_id.nunique() == 1 and any('could not be read or placed' in reason for reason in reasons)
    told = pd.read_csv(source.with_name('out') / 'skipped.csv').reason
    assert told.str.startswith('is a volume beside the DICOM series of one patient').any()


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


@pytest.mark.parametrize('how', ['box', 'tumor', 'unlabelled', 'vessels'])
@pytest.mark.parametrize('elsewhere', [False, True])
def test_squares_keep_away_above_and_below_a_single_outline(source, how, elsewhere):
    "One of 19 mm reaches half of that up and down, on its own series and on another one of the same space"
    anna = source / 'anna'
    (anna / 'tumor.nii.gz').unlink()
    (anna / 'liver.nii.gz').rename(anna / 'ct/liver.nii.gz')
    ct(folder := anna / ('key' if elsewhere else 'ct'), 'A', '1.3.9' if elsewhere else '1.3.1')
    if how == 'box':
        (folder / 'boxes.csv').write_text(BOX.replace('20,32,20,32', '20,43,20,43') + 'cyst')
    else:
        nifti(folder / f'{how}.nii.gz', box((20, 44), (20, 44), (6, 7)))
    ct(source / 'berta/ct', 'B', '1.3.2')
    nifti(source / 'berta/tumor.nii.gz', box((20, 26), (20, 26), (5, 9)))  # lends its size
    squares, _ = healthy(source, LabelRules((*TUMOUR.rules, ('vessels', 'avoid', '*'))), n=30)
    beyond = (STEP_MM * (squares.slice_index - 6).abs() - 12 * PIXEL_MM).clip(0)
    sides = (
        pd.concat([20 - squares[f'{x}_max'], squares[f'{x}_min'] - 43], axis=1).max(axis=1) for x in ('row', 'col')
    )
    beside = [PIXEL_MM * side.clip(0) for side in sides]
    assert len(squares) and (np.hypot(np.hypot(*beside), beyond) > GAP_MM).all()


@pytest.mark.parametrize('named', [True, False])
def test_a_broken_outline_among_several_patients(tmp_path, named):
    "It is of the patient in its name, or else may be anybody's"
    src = tmp_path / 'src'
    for x_mm, patient in enumerate(('smith', 'jones')):
        affine = np.diag([-PIXEL_MM, -PIXEL_MM, STEP_MM, 1.0])
        affine[0, 3] = 7 * x_mm
        noise = np.random.default_rng(x_mm).normal(50, 60, LIVER.shape).astype(np.int16)
        src.mkdir(exist_ok=True)
        for what, voxels in (('', noise), ('_liver', LIVER), ('_tumor', GROWTH)):
            nib.Nifti1Image(voxels, affine).to_filename(src / f'{patient}{what}.nii.gz')
    broken = src / ('jones_tumor.nii.gz' if named else 'other_tumor.nii.gz')
    content = (src / 'jones_tumor.nii.gz').read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    labels = LabelRules((('*_tumor', 'cyst', '*'), ('*_liver', 'liver', '*')))
    done = ingest(src, tmp_path / 'out', labels, options=IngestOptions(healthy=1))
    without = done.skipped[done.skipped.what == 'healthy parenchyma']
    assert len(without) == (1 if named else 2) and without.reason.str.contains('could not be read').all()
    assert (done.manifest.df.label == 'healthy').sum() == (1 if named else 0)


@pytest.mark.parametrize('below', ['', 'ct'])
def test_no_square_is_healthy_where_studies_without_an_id_may_be_visits(tmp_path, below):
    "A lesion of Anna's liver may be outlined on her second visit; Berta has but one"
    for n, visit in enumerate(('anna/1', 'anna/2', 'berta/1'), 1):
        folder = tmp_path / 'src' / visit
        ct(folder / below, 'A' * n, f'1.3.{n}', f'1.9.{n}')
        retag(folder / below, PatientID='', PatientName='', StudyInstanceUID=f'1.2.{n}')
        what, mask = ('tumor', GROWTH) if visit == 'anna/2' else ('liver', LIVER)
        nifti(folder / f'{what}.nii.gz', mask)
    squares, reasons = healthy(tmp_path / 'src', n=1)
    assert squares.patient_id.nunique() == 1 and sum('or was left out' in reason for reason in reasons) == 1
    told = pd.read_csv(tmp_path / 'out/skipped.csv').reason.str.startswith('has no PatientID')
    assert told.sum() == 1


def test_folders_of_visits_are_told(tmp_path):
    "They cannot be told from folders of patients, and count as such"
    for i, visit in enumerate(('P1/visit1', 'P1/visit2', 'P2/visit1')):
        affine = np.diag([-PIXEL_MM, -PIXEL_MM, STEP_MM, 1.0])
        folder = tmp_path / 'src' / visit
        folder.mkdir(parents=True)
        noise = np.random.default_rng(i).normal(50, 60, LIVER.shape).astype(np.int16)
        nib.Nifti1Image(noise, affine).to_filename(folder / 'ct.nii.gz')
        nib.Nifti1Image(GROWTH, affine).to_filename(folder / 'tumor.nii.gz')
    told = lambda done: [p.reason for p in done.problems if 'visits of one patient' in p.reason]
    done = ingest(tmp_path / 'src', tmp_path / 'out', TUMOUR, options=IngestOptions(healthy=0))
    assert done.manifest.df.patient_id.nunique() == 3 and len(told(done)) == 1 and not done.failed
    for visit in ('P1/visit1', 'P1/visit2', 'P2/visit1'):  # as the note says
        patient, number = visit.split('/')
        for old, new in (('ct', ''), ('tumor', '_tumor')):
            (tmp_path / 'src' / visit / f'{old}.nii.gz').rename(tmp_path / 'src' / patient / f'{number}{new}.nii.gz')
        (tmp_path / 'src' / visit).rmdir()
    labels = LabelRules((('*tumor', 'cyst', '*'),))
    done = ingest(tmp_path / 'src', tmp_path / 'again', labels, options=IngestOptions(healthy=0))
    assert done.manifest.df.patient_id.nunique() == 2 and not told(done) and len(done.manifest.df) == 3


def test_a_hole_that_reaches_over_the_rim_by_a_little_is_a_hole():
    angle = np.linspace(0, 2 * np.pi, 60)
    circle = lambda row, radius: np.stack([row + radius * np.sin(angle), 30 + radius * np.cos(angle)], 1)
    whole, hole, part = (
        fill_region([circle(30, 12), c], (60, 60)) for c in (circle(90, 3), circle(38.5, 4), circle(42, 6))
    )
    assert 40 < whole.sum() - hole.sum() < 60  # a hole of 50 pixels, a few of them beyond
    assert part.sum() > whole.sum()  # and one that crosses is united


@pytest.mark.parametrize('value, liver', [('', True), ('1', True), ('5', False), ('2', False)])
def test_a_map_of_the_usual_tumour_value_is_no_liver_by_its_name(value, liver):
    assert (LabelRules().of(Named('liver', value=value), ()) == 'liver') == liver


def test_a_lesion_that_lost_a_part_is_the_same_lesion():
    with_vessel, mended = Place((0, 0, 0), 40), Place((18, 0, 0), 6)
    assert mended.is_that(with_vessel) and with_vessel.is_that(mended) and not Place((50, 0, 0), 6).is_that(mended)


def test_a_contour_that_crosses_two_others_is_united_with_them():
    square = lambda r, c, n=9: np.array([(r, c), (r, c + n), (r + n, c + n), (r + n, c)], float) + 0.5
    a, b, across = square(10, 10), square(10, 17), square(13, 14, 6)
    assert fill_region([a, b, across], (40, 40)).sum() == fill_region([a, b], (40, 40)).sum()
