"""Who is who, and what is what: labels, names and identifiers on the shapes of data that once went wrong in silence."""

import csv
import re
import shutil

import formats
import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

import liverdis.cohort.ingest as module
from liverdis.cohort.case_files import IngestOptions, PatientFolder
from liverdis.cohort.deidentify import Pseudonymizer, load_key
from liverdis.cohort.example import write_example
from liverdis.cohort.ingest import ingest
from liverdis.cohort.labels import LabelRules, load_labels
from liverdis.cohort.phantom.cohort import write_phantom
from liverdis.core import InputError
from liverdis.use.cli import app

N, SIZE = 16, 160


def rules(*lines):
    return LabelRules(tuple((*line.split(','), '*')[:3] for line in lines))


def measured(out):
    return pd.read_csv(out / 'measurements.csv')


def called(*args, cwd):
    "The command in this process, which has imported everything. One job: workers of an earlier test are elsewhere"
    with pytest.MonkeyPatch.context() as m:
        m.chdir(cwd)
        return CliRunner().invoke(app, list(map(str, args)), env={'COLUMNS': '200'})


def slices(folder):
    "The CT of a made-up patient as data sets, from foot to head"
    read = [pydicom.dcmread(f) for f in folder.iterdir()]
    return sorted(read, key=lambda d: float(d.ImagePositionPatient[2]))


def ball(rank, row, col, radius):
    k, y, x = np.mgrid[:N, :SIZE, :SIZE]
    return (y - row) ** 2 + (x - col) ** 2 + (2 * (k - rank)) ** 2 < radius**2


def volumes(folder, number, mm=1.0, mask='segmentation-{}'):
    "A CT as NIfTI and a map with 1 for the liver and 2 for a tumour in it, called as in LiTS"
    folder.mkdir(parents=True, exist_ok=True)
    liver, tumour = ball(8, 76, 62, 40), ball(8, 76, 40, 7)
    rng = np.random.default_rng(number)
    hu = np.select([tumour, liver], [60, 110], -200) + rng.normal(0, 20, liver.shape)
    affine = np.diag([-mm, -mm, 2 * mm, 1])
    save = lambda values, name: nib.Nifti1Image(values.transpose(2, 1, 0), affine).to_filename(
        folder / f'{name}.nii.gz'
    )
    save(hu.astype(np.int16), f'volume-{number}')
    save(np.select([tumour, liver], [2, 1], 0).astype(np.uint8), mask.format(number))


# labels are matched on the names that the source has


def test_values_of_a_map_that_has_its_patients_number(tmp_path):
    "segmentation-1 of volume-1: once segmentation-*:*, one name for liver and tumour"
    for number in (1, 2):
        volumes(tmp_path / 'src', number)
    done = ingest(tmp_path / 'src', tmp_path / 'out')
    assert sorted(done.lacking.name) == [f'segmentation-{p}:{v}' for p in (1, 2) for v in (1, 2)]
    labels = rules('segmentation-*:1,liver', 'segmentation-*:2,metastasis')
    done = ingest(tmp_path / 'src', tmp_path / 'out', labels, options=IngestOptions(healthy=1))
    m = measured(tmp_path / 'out')
    assert m.groupby('label').size().to_dict() == dict(healthy=2, metastasis=2)
    assert m.diameter_mm.max() < 20 and not done.unmatched


def test_a_name_that_ends_with_the_patients_number(tmp_path):
    write_example(tmp_path / 'src', 'Doe^Jane', '1', 1)
    ct = slices(tmp_path / 'src/PATIENT_DICOM')
    for name, row in (('Tumor 1', 60), ('Tumor 2', 90)):
        formats.dicom_mask(tmp_path / 'src', ct, ball(8, row, 60, 8), name)
    done = ingest(tmp_path / 'src', tmp_path / 'out', rules('Tumor 1,cyst', 'Tumor 2,metastasis'))
    named = measured(tmp_path / 'out').set_index('label').structure.map(done.names)
    assert named.to_dict() == dict(cyst='Tumor 1', metastasis='Tumor 2')


def test_a_map_called_liver_that_holds_tumours(tmp_path):
    "liver_seg.nii.gz with 1 and 2: once both were liver, and healthy squares lay in the tumour"
    volumes(tmp_path / 'src', 1, mask='liver_seg')
    done = ingest(tmp_path / 'src', tmp_path / 'out', options=IngestOptions(healthy=3))
    assert done.manifest is None and sorted(done.lacking.name) == ['liver_seg:1', 'liver_seg:2']
    labels = rules('liver_seg:1,liver', 'liver_seg:2,cyst')
    ingest(tmp_path / 'src', tmp_path / 'out', labels, options=IngestOptions(healthy=3))
    m = measured(tmp_path / 'out')
    assert set(m.label) == {'cyst', 'healthy'} and m.hu_mean[m.label == 'healthy'].min() > 100


@pytest.mark.parametrize('pattern', ['*', '*liver*', 'liver*seg:*'])
def test_a_pattern_that_takes_in_a_liver_is_refused(tmp_path, pattern):
    volumes(tmp_path / 'src', 1, mask='liver_seg')
    with pytest.raises(InputError, match='would make a whole liver metastasis'):
        ingest(tmp_path / 'src', tmp_path / 'out', rules(f'{pattern},metastasis'))


def test_liver_is_offered_for_what_is_as_large(tmp_path):
    volumes(tmp_path / 'src', 1, mm=2.0)
    done = ingest(tmp_path / 'src', tmp_path / 'out')
    offered = {done.named(row.what): 'liver' in row.todo.split(',')[1].split('|') for row in done.skipped.itertuples()}
    assert offered == {'segmentation-1:1': True, 'segmentation-1:2': False}


def test_a_pattern_that_takes_in_something_as_large_as_a_liver(tmp_path):
    "No name says which value is the liver; its size does. A line that names it is believed."
    volumes(tmp_path / 'src', 1, mm=2.0)
    done = ingest(tmp_path / 'src', tmp_path / 'out', rules('segmentation*,metastasis'))
    assert measured(tmp_path / 'out').diameter_mm.max() < 40 and done.failed
    (lost,) = done.skipped[done.skipped.failed].itertuples()
    assert done.named(lost.what).startswith('segmentation-1:1') and 'as large as a liver' in lost.reason
    assert "'segmentation*'" in done.details[lost.detail]
    done = ingest(tmp_path / 'src', tmp_path / 'out', rules('segmentation*,metastasis', 'segmentation-1:1,cyst'))
    assert len(done.manifest) == 2 and not done.failed


# one lesion, outlined several times


@pytest.fixture
def outlined(tmp_path):
    "A patient whose lesion is outlined in two mask folders and an RTSTRUCT"
    write_example(tmp_path / 'src', 'Doe^Jane', 'MRN-4711', 1)
    ct = slices(tmp_path / 'src/PATIENT_DICOM')
    lesion = ball(8, 76, 62, 10)
    for name in ('reader A', 'reader B'):
        formats.dicom_mask(tmp_path / 'src', ct, lesion, name)
    formats.rtstruct(tmp_path / 'src', ct, lesion, 'GTV')
    return tmp_path / 'src'


def test_a_lesion_outlined_three_times_is_one_case(outlined, tmp_path):
    done = ingest(outlined, tmp_path / 'out', rules('reader*,cyst', 'GTV,cyst'))
    assert len(done.manifest) == 1
    again = done.skipped[done.skipped.reason.str.contains('outlined again')]
    assert len(again) == 2 and set(done.manifest.df.label) == {'cyst'}


def test_two_labels_for_one_lesion_are_not_believed(outlined, tmp_path):
    done = ingest(outlined, tmp_path / 'out', rules('reader*,cyst', 'GTV,metastasis'))
    assert done.manifest is None and done.failed
    assert 'as cyst and as metastasis' in ' '.join(done.skipped.reason)


# nothing of the source gets into a cohort

PLANTED = (
    'Planted TesterAnna MRN778812 77881234 19610315 ACC998877 Radiologist Saint-Elsewhere Hallway Mueller '
    'GTV2 Zacharias Kirchheim Somename'
).split()


def plant(folder):
    "A patient with identifiers in every text that DICOM headers, outlines, tables and paths have"
    patient = folder / 'Planted Anna 77881234'
    write_example(patient, 'Planted^TesterAnna', 'MRN778812', 1)
    texts = dict(
        AccessionNumber='ACC998877',
        StudyDate='19610315',
        StudyID='77881234',
        InstitutionName='Saint-Elsewhere',
        ReferringPhysicianName='Radiologist^Zacharias',
        OperatorsName='Mueller',
        StationName='Hallway',
        SeriesDescription='portal venous Planted',
        StudyDescription='Somename',
        ImageComments='met of Planted TesterAnna',
        PatientComments='Kirchheim',
        OtherPatientIDs='77881234',
    )
    for f in (patient / 'PATIENT_DICOM').iterdir():
        ds = pydicom.dcmread(f)
        for tag, text in texts.items():
            setattr(ds, tag, text)
        ds.private_block(0x0011, 'Somename', create=True).add_new(1, 'LO', 'TesterAnna 77881234')
        ds.save_as(f)
    ct = slices(patient / 'PATIENT_DICOM')
    for k, name in enumerate(('TesterAnna_GTV2', 'MRN778812 seg IV', 'met 19610315', 'ACC998877-5')):
        formats.dicom_mask(patient, ct, ball(3 + 3 * k, 76, 62, 8), name)
    formats.rtstruct(patient, ct, ball(8, 50, 40, 6), 'Planted GTV2')
    ds = pydicom.dcmread(patient / 'rtstruct.dcm')
    ds.StructureSetLabel = ds.PatientName = 'Planted'
    ds.save_as(patient / 'rtstruct.dcm')


def plant_faults(folder):
    "Files that cannot be used, each with identifiers in what its error says"
    patient = folder / 'Planted Anna 77881234'
    (patient / 'TesterAnna 19610315.dcm').write_bytes(b'no dicom')
    (patient / 'masks of Planted').mkdir()
    Image.fromarray(np.eye(40) > 0).save(patient / 'masks of Planted/Mueller_007.png')
    table = 'lesion,image,row_min,row_max,col_min,col_max\n'
    (patient / 'Somename.csv').write_text(table + 'TesterAnna,Planted_Anna_19610315.dcm,1,9,1,9\n')
    (patient / 'boxes.csv').write_text(
        table + f'Kirchheim,{slices(patient / "PATIENT_DICOM")[8].SOPInstanceUID},20,30,20,30\n'
    )
    whole = (patient / 'MASKS_DICOM/ACC998877-5/image_7').read_bytes()
    (patient / 'MASKS_DICOM/Zacharias').mkdir()
    (patient / 'MASKS_DICOM/Zacharias/Radiologist_1').write_bytes(whole[:-5000])


def plant_volumes(folder):
    volumes(folder / 'Planted', 77881234, mask='TesterAnna-{}-Mueller')
    for f in (folder / 'Planted').iterdir():
        image = nib.load(f)
        image.header['descrip'] = b'Planted TesterAnna'
        nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header).to_filename(f)


def leaks(out):
    "(file, word) of every planted word in the contents or names of a cohort"
    found = []
    for f in out.rglob('*'):
        content = str(f.relative_to(out)).encode() + (f.read_bytes() if f.is_file() else b'')
        found += [(f.name, w) for w in PLANTED if w.lower().encode() in content.lower()]
    return found


@pytest.mark.parametrize('labelled', [False, True])
def test_identifiers_planted_everywhere(tmp_path, labelled):
    plant(tmp_path / 'src')
    plant_faults(tmp_path / 'src')
    plant_volumes(tmp_path / 'src')
    lines = [
        'TesterAnna_GTV2,cyst',
        'MRN778812*,metastasis',
        'ACC*,avoid',
        'TesterAnna-*:2,hemangioma',
        'TesterAnna-*:1,liver',
    ]
    labels = rules(*lines) if labelled else None
    done = ingest(tmp_path / 'src', tmp_path / 'out', labels, options=IngestOptions(healthy=1, slices='all'))
    assert (done.manifest is not None) == labelled and done.failed and len(done.skipped) > 4
    assert (tmp_path / 'out/qc.html').exists() and not leaks(tmp_path / 'out')
    told = ' '.join([*done.names.values(), *(f'{p.path} {p.reason}' for p in done.problems), *done.details.values()])
    assert all(
        w in told for w in ('TesterAnna_GTV2', 'met 19610315', 'Planted', 'Radiologist_1')
    )  # its owner sees them
    private = tmp_path / 'out.private.csv'
    assert 'met 19610315' in private.read_text() and private.stat().st_mode & 0o777 == 0o600


def test_ids_of_cases_are_class_and_number(tmp_path):
    plant(tmp_path / 'src')
    done = ingest(tmp_path / 'src', tmp_path / 'out', rules('*,ignore', '*GTV2,cyst', 'met*,metastasis'))
    assert all(re.fullmatch(r'[a-p][0-9a-f]{11}-(cyst|metastasis)-\d', c) for c in done.manifest.df.case_id)
    assert all(re.fullmatch(r's-[a-p][0-9a-f]{9}', s) for s in measured(tmp_path / 'out').structure)


def test_a_message_about_two_files_names_neither(tmp_path):
    "Once the folder was taken out first, and the bare name of the second file stayed"
    folder = tmp_path / 'Planted'
    to = PatientFolder(tmp_path, 'p', Pseudonymizer(b'a secret'), IngestOptions(), tmp_path)
    reason = f'{folder}/Kirchheim_3.png: is 40 x 40 and the slice {folder}/Mueller 7.dcm 160 x 160; give its own mask'
    to.skip('a file', folder / 'Kirchheim_3.png', reason)
    (row,) = to.skipped
    assert row['reason'] == 'is 40 x 40 and the slice … 160 x 160; give its own mask'
    assert to.details[row['detail']] == reason


def test_the_key_is_long_and_private(tmp_path):
    key = tmp_path / 'key'
    load_key(key)
    assert len(bytes.fromhex(key.read_text())) >= 16 and key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o640)
    with pytest.raises(InputError, match='chmod 600'):
        load_key(key)
    (tmp_path / 'short').write_text('0123456789abcdef')
    (tmp_path / 'short').chmod(0o600)
    with pytest.raises(InputError, match='64 bits'):
        load_key(tmp_path / 'short')


# a person labels


def test_from_a_template_to_a_cohort(tmp_path):
    "ingest asks, writes the table, shows pictures; filled in, in any capitals, it makes the cohort"
    write_example(tmp_path / 'src/a', 'Doe^Jane', 'MRN-4711', 1, [(6, 62, 46, 9), (10, 92, 74, 7)])
    write_example(tmp_path / 'src/b', 'Roe^John', 'MRN-0815', 2, [(8, 62, 46, 9)])
    r = called('ingest', 'src', '--out', 'out', '--write-labels', 'labels.csv', '--jobs', 1, cwd=tmp_path)
    assert r.exit_code == 2 and 'livertumor,cyst|metastasis' in r.stderr and '2 line(s) to fill in' in r.stdout
    page = (tmp_path / 'out/qc.html').read_text()
    rows = list(csv.DictReader((tmp_path / 'labels.csv').open()))
    assert [r['name'] for r in rows] == ['livertumor'] * 2 and len({r['patient'] for r in rows}) == 2
    for row in rows:
        assert (tmp_path / 'out' / row['picture']).exists() and row['picture'] in page and 'mm across' in row['reason']
    assert 'livertumor' not in page
    text = (tmp_path / 'labels.csv').read_text().replace('livertumor,,', 'livertumor,Cyst,')
    (tmp_path / 'labels.csv').write_text(text + 'livertumour,cyst,,,\n')
    r = called('ingest', 'src', '--out', 'out', '--labels', 'labels.csv', '--jobs', 1, cwd=tmp_path)
    assert r.exit_code == 0 and '3 cases' in r.stdout
    assert r.stderr.strip() == (
        'the line livertumour,cyst of the labels file fits no structure; the first ones here are liver, livertumor'
    )


def test_what_is_used_in_doubt_is_not_called_left_out(tmp_path):
    for k in ('0012', '12'):
        write_example(tmp_path / 'src' / k, 'Doe^Jane', k, int(k), [(6, 62, 46, 9)])
        for f in (tmp_path / 'src' / k / 'PATIENT_DICOM').iterdir():
            ds = pydicom.dcmread(f)
            ds.PatientBirthDate = '19570713'
            ds.save_as(f)
    (tmp_path / 'src/letter.txt').write_text('Thank you')
    (tmp_path / 'labels.csv').write_text('name,label\nlivertumor,cyst\n')
    r = called('ingest', 'src', '--out', 'out', '--labels', 'labels.csv', '--jobs', 1, cwd=tmp_path)
    assert r.exit_code == 0 and 'in doubt: has the PatientName' in r.stdout
    assert 'left out: 1 x document' in r.stdout and 'left out: has' not in r.stdout


def test_a_line_of_the_page_can_be_pasted(tmp_path):
    write_example(tmp_path / 'src', 'Doe^Jane', 'MRN-4711', 1, [(6, 62, 46, 9)])
    ingest(tmp_path / 'src', tmp_path / 'out')
    line = re.search(r's-[a-p][0-9a-f]{9},cyst', (tmp_path / 'out/qc.html').read_text())[0]
    (tmp_path / 'labels.csv').write_text(f'name,label\n{line}\n')
    assert len(ingest(tmp_path / 'src', tmp_path / 'out', load_labels(tmp_path / 'labels.csv')).manifest) == 1


def test_a_stop_in_the_middle_costs_no_finished_patient(tmp_path, monkeypatch):
    for name in 'abc':
        write_example(tmp_path / 'src' / name, name, name, ord(name), [(6, 62, 46, 9)])
    make, calls = module.ingest_patient, []

    def stops(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return make(*args)

    monkeypatch.setattr(module, 'ingest_patient', stops)
    with pytest.raises(KeyboardInterrupt):
        ingest(tmp_path / 'src', tmp_path / 'out', rules('livertumor,cyst'))
    monkeypatch.undo()
    assert ingest(tmp_path / 'src', tmp_path / 'out', rules('livertumor,cyst')).redone == 1
    (tmp_path / 'out.private.csv').unlink()  # nothing is known any more: all are made again
    assert ingest(tmp_path / 'src', tmp_path / 'out', rules('livertumor,cyst')).redone == 3


def test_a_zip_holds_the_same_patients_again(tmp_path):
    "It is unpacked to another folder each time, which neither ids nor codes may depend on"
    for name, pid in (('a', ''), ('b', 'MRN-0815')):
        write_example(tmp_path / 'src' / name, '', pid, ord(name), [(6, 62, 46, 9)])
    (tmp_path / 'src/b/PATIENT_DICOM/broken.dcm').write_bytes(b'no dicom')
    shutil.make_archive(str(tmp_path / 'export'), 'zip', tmp_path / 'src')
    first, again = (ingest(tmp_path / 'export.zip', tmp_path / 'out', rules('livertumor,cyst')) for _ in '12')
    assert (first.redone, again.redone) == (2, 0) and first.skipped.equals(again.skipped)
    assert [str(p) for p in again.sources.values()] == [f'{tmp_path}/export.zip/b/PATIENT_DICOM/broken.dcm']
    assert 'liverdis-' not in (tmp_path / 'out.private.csv').read_text()


# healthy squares are as large as lesions


def hospital(folder):
    "Three patients whose livers have no room for squares of their own size, and three that have"
    for k in range(3):
        write_example(folder / f'large{k}', f'L{k}', f'L{k}', k, [(8, 76, 62, 16)])
        write_example(folder / f'small{k}', f'S{k}', f'S{k}', 10 + k, [(8, 70 + 5 * k, 30, 6)])
    return folder


def test_healthy_squares_are_as_large_as_lesions(tmp_path):
    "Once those without room were just left out: all healthy squares were small"
    src, options = hospital(tmp_path / 'src'), IngestOptions(healthy=1)
    done = ingest(src, tmp_path / 'out', rules('livertumor,metastasis'), options=options)
    sizes = {label: sorted(m.diameter_mm) for label, m in measured(tmp_path / 'out').groupby('label')}
    assert len(sizes['healthy']) == 6 and np.allclose(sizes['healthy'], sizes['metastasis'], atol=0.9)
    assert 'no room' in ' '.join(done.skipped.reason)
    assert ingest(src, tmp_path / 'out', rules('livertumor,metastasis'), options=options).redone == 0
    assert 'the lesion is the larger in 50 % of pairs' in (tmp_path / 'out/qc.html').read_text()


# few patients, few classes


def test_folds_and_classes_of_a_run(tmp_path, monkeypatch):
    "What the two options hand on to the experiment"
    from liverdis.study import experiment

    write_phantom(tmp_path / 'p', dict(cyst=2, metastasis=2, hemangioma=1))
    given = []
    monkeypatch.setattr(experiment, 'reproduce', lambda *a, **k: given.append(a) or 1 / 0)
    run = lambda *args: CliRunner().invoke(app, ['reproduce', '--manifest', f'{tmp_path}/p/manifest.csv', *args])
    run('--folds', '2', '--classes', 'Cyst, metastasis', '--out', f'{tmp_path}/run')
    (_, lesions, settings, *_) = given[0]
    assert set(lesions.df.label) == {'cyst', 'metastasis'} and len(lesions) == 4 and settings.n_folds == 2
    assert list(lesions.df.index) == [0, 1, 2, 3] and 'without other classes' in lesions.where(0)
    for wrong, said in (('cyst', 'is one class'), ('cyst,abscess', 'no lesion of class abscess')):
        r = run('--classes', wrong, '--out', f'{tmp_path}/run')
        assert r.exit_code == 2 and said in r.output
