"""What ingest must never do: lose what is not its own, give a patient away, stop half way, hand on what was typed."""

import csv
import errno
import hashlib
import multiprocessing.forkserver
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import formats
import large_manifest
import numpy as np
import pandas as pd
import psutil
import pydicom
import pytest
from typer.testing import CliRunner

import liverdis.cohort.ingest as module
from liverdis.cohort import patient, scan
from liverdis.cohort.case_files import IngestOptions
from liverdis.cohort.deidentify import load_key, read_private, write_private
from liverdis.cohort.example import write_example, write_mct_example
from liverdis.cohort.ingest import ingest
from liverdis.cohort.labels import LabelRules, load_labels, write_labels
from liverdis.cohort.manifest import load_manifest, verify_files
from liverdis.cohort.phantom.cohort import write_phantom
from liverdis.cohort.recipes import mct_ltdiag
from liverdis.core import InputError, write_atomic
from liverdis.study import experiment
from liverdis.use import cli

TUMOUR = LabelRules((('livertumor', 'metastasis', '*'),))
HEALTHY = IngestOptions(healthy=1)


def hospital(folder):
    "Two made-up patients; the second one has no lesion"
    write_example(folder / 'a', 'Doe^Jane', 'MRN-4711', 1, [(6, 62, 46, 9)])
    write_example(folder / 'b', 'Roe^John', 'MRN-0815', 2)
    return folder


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A source, a key, and the cohort that comes of them undisturbed"
    home = tmp_path_factory.mktemp('made')
    hospital(home / 'src')
    load_key(home / 'key')
    ingest(home / 'src', home / 'out', TUMOUR, options=HEALTHY, key=home / 'key')
    return home


@pytest.fixture
def cohort(made, tmp_path):
    "A copy of it that may be spoiled"
    shutil.copytree(made / 'out', tmp_path / 'out')
    shutil.copy(made / 'out.private.csv', tmp_path)
    return tmp_path / 'out'


def again(made, out, **changes):
    return ingest(made / 'src', out, **dict(labels=TUMOUR, options=HEALTHY, key=made / 'key') | changes)


def contents(folder):
    "All files and their bytes, but the lock"
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != '.lock'}


def refusal(f, *args, **kwargs):
    "The one line with which something is refused"
    with pytest.raises(InputError) as e:
        f(*args, **kwargs)
    assert '\n' not in str(e.value)
    return str(e.value)


# what is not its own


@pytest.mark.parametrize('src, out', [('h/cases', 'h'), ('h/cases', 'h/cases'), ('h', 'h/out'), ('h/cases', 'link')])
def test_source_and_cohort_lie_apart(tmp_path, src, out):
    "`liverdis ingest h/cases --out h` once deleted every CT of the source"
    hospital(tmp_path / 'h/cases')
    (tmp_path / 'link').symlink_to('h')
    before = contents(tmp_path)
    assert 'outside of the source' in refusal(ingest, tmp_path / src, tmp_path / out, TUMOUR)
    assert contents(tmp_path) == before


@pytest.mark.parametrize('theirs', ['cases/scan/1.dcm', 'manifest.csv', 'qc.html', 'rois.npy', 'cohort.json'])
def test_a_folder_of_somebody_elses_is_left_alone(made, tmp_path, theirs):
    (tmp_path / 'study' / theirs).parent.mkdir(parents=True)
    (tmp_path / 'study' / theirs).write_text('{"years of": "work"}')
    before = contents(tmp_path)
    assert 'give another --out' in refusal(again, made, tmp_path / 'study')
    assert contents(tmp_path) == before


def test_what_lies_beside_a_cohort_stays(made, cohort):
    "Files and folders that no ingest made, while patients are made again and removed"
    others = [
        'notes.txt',
        'cases/notes.txt',
        'cases/atlas/1.dcm',
        'cases/b123456789ab/scan.dcm',
        'figures/manifest.csv',
    ]
    for name in others:
        (cohort / name).parent.mkdir(exist_ok=True)
        (cohort / name).write_text('theirs')
    again(made, cohort, options=IngestOptions(healthy=1, margin=0.5))
    done = ingest(made / 'src/a', cohort, TUMOUR, key=made / 'key')
    assert done.manifest.df.patient_id.nunique() == 1 and len(list(cohort.glob('cases/*/record.json'))) == 1
    assert all((cohort / name).read_text() == 'theirs' for name in others)


def test_what_was_put_into_a_patients_folder_stops_it(made, cohort):
    patient = next(p for p in cohort.glob('cases/*'))
    (patient / 'second opinion.txt').write_text('cyst')
    before = contents(cohort)
    assert 'second opinion.txt' in refusal(again, made, cohort, options=IngestOptions(margin=0.5))
    assert contents(cohort) == before
    (patient / 'second opinion.txt').unlink()
    (patient / '.DS_Store').touch()  # no work of anybody's
    assert again(made, cohort).redone == 0


def test_a_manifest_changed_by_hand_is_not_written_over(made, cohort):
    text = (cohort / 'manifest.csv').read_text().replace('metastasis', 'cyst')
    (cohort / 'manifest.csv').write_text(text)
    assert 'not as ingest left it' in refusal(again, made, cohort)
    assert (cohort / 'manifest.csv').read_text() == text
    (cohort / 'manifest.csv').rename(cohort.with_name('mine.csv'))
    assert again(made, cohort).redone == 0 and contents(cohort) == contents(made / 'out')


def test_a_private_table_of_somebody_elses(made, tmp_path):
    (tmp_path / 'out.private.csv').write_text('item,price\nbread,2\n')
    assert 'is not the private table' in refusal(again, made, tmp_path / 'out')
    assert (tmp_path / 'out.private.csv').read_text() == 'item,price\nbread,2\n'


def test_a_recipe_replaces_what_a_recipe_made(tmp_path):
    "Once `liverdis recipe ... --out hosp` removed the folder hosp/source, whosever it was"
    write_mct_example(tmp_path / 'MCT', ['HH', 'CRLM'])
    (tmp_path / 'hosp/source').mkdir(parents=True)
    (tmp_path / 'hosp/source/1.dcm').write_text('a scan')
    assert 'is not empty' in refusal(mct_ltdiag, tmp_path / 'MCT', tmp_path / 'hosp')
    assert (tmp_path / 'hosp/source/1.dcm').read_text() == 'a scan'
    first, again = (contents(mct_ltdiag(tmp_path / 'MCT', tmp_path / 'new').source) for _ in '12')
    assert first == again and first


def test_a_phantom_does_not_take_the_place_of_a_cohort(cohort):
    before = contents(cohort)
    assert 'is not of this phantom' in refusal(write_phantom, cohort, dict(cyst=1))
    assert contents(cohort) == before


def test_another_key_would_remove_every_patient(made, cohort):
    before = contents(cohort)
    load_key(cohort.with_name('other.key'))
    assert 'another key' in refusal(again, made, cohort, key=cohort.with_name('other.key'))
    assert 'no key of liverdis' in refusal(again, made, cohort, key=cohort.with_name('lost.key'))
    assert contents(cohort) == before and not cohort.with_name('lost.key').exists()


# who a patient is


def test_nobody_can_repeat_healthy_squares_without_the_key(made, tmp_path, monkeypatch):
    "With a seed of the patient's number alone, two keys gave the same squares, so numbers could be tried out"

    def squares(out, **keys):
        ingest(made / 'src', out, TUMOUR, options=IngestOptions(healthy=3), **keys)
        m = pd.read_csv(out / 'measurements.csv').query("label == 'healthy'")
        return sorted(m[['slice_index', 'row_min', 'col_min', 'row_max']].itertuples(index=False, name=None))

    keyed = [squares(tmp_path / name) for name in 'ab']
    shared = [squares(tmp_path / f'shared {name}', key=made / 'key') for name in 'ab']
    assert len(keyed[0]) == 6 and keyed[0] != keyed[1] and shared[0] == shared[1]
    unkeyed = lambda name, ids: np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    monkeypatch.setattr(patient, '_rng', unkeyed)
    leaking = [squares(tmp_path / f'unkeyed {name}') for name in 'ab']
    assert leaking[0] == leaking[1] and leaking[0] not in (*keyed, *shared)


def test_the_order_of_patients_says_nothing_of_their_numbers(made):
    ids = pd.read_csv(made / 'out/manifest.csv').patient_id.tolist()
    assert ids == sorted(ids)


def test_a_key_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    link = os.link

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'link', stop)
    with pytest.raises(KeyboardInterrupt):
        load_key(tmp_path / 'key')
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(os, 'link', link)
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(load_key, [tmp_path / 'key'] * 32))
    assert len(keys) == 1 and len(keys.pop().key) == 32 and [p.name for p in tmp_path.iterdir()] == ['key']


@pytest.mark.parametrize(
    'write', [load_key, lambda path: write_private(path, [dict(id='s', what='structure', source='x')])]
)
def test_secrets_are_private_from_their_first_byte(tmp_path, monkeypatch, write):
    modes, sync = [], os.fsync

    def look(handle):
        modes.extend(stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir())
        sync(handle)

    monkeypatch.setattr(os, 'fsync', look)
    before = os.umask(0)
    try:
        write(tmp_path / 'secret')
    finally:
        os.umask(before)
    assert modes and {*modes, stat.S_IMODE((tmp_path / 'secret').stat().st_mode)} == {0o600}


@pytest.mark.parametrize(
    'text, said', [('', '0 bits'), ('00', '8 bits'), ('00' * 31, '248 bits'), ('key', 'is no key')]
)
def test_a_key_that_is_none(tmp_path, text, said):
    (tmp_path / 'key').write_text(text)
    (tmp_path / 'key').chmod(0o600)
    assert said in refusal(load_key, tmp_path / 'key')


def test_the_key_does_not_travel_with_the_cohort(made, tmp_path):
    assert 'keep the key elsewhere' in refusal(again, made, tmp_path / 'out', key=tmp_path / 'out/key')


# what the system refuses


def in_child(f):
    "What `f` raises in a process of its own, as text"
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            said = f'{f()}'
        except BaseException as e:
            said = f'{type(e).__name__}: {e}'
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize('room', [0, 300, 20_000, 60_000, 150_000])
def test_no_file_may_grow(made, tmp_path, room):
    "Whichever file is the first for which there is no room: one line, and then the same command makes the same cohort"

    def starved():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        return again(made, tmp_path / 'out')

    said = in_child(starved)
    assert said.startswith('InputError') and 'put that right' in said and '\n' not in said, said
    assert not list(tmp_path.glob('out/cases/.*')) and not list(tmp_path.rglob('.*.part'))
    again(made, tmp_path / 'out')
    assert contents(tmp_path / 'out') == contents(made / 'out')


def test_a_private_table_is_added_to_whole_or_not_at_all(tmp_path):
    path, row = tmp_path / 'private.csv', lambda name: dict(id=name, what='structure', source=name)
    write_private(path, [row('a')])
    before = path.read_bytes()

    def starved():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9,) * 2)
        write_private(path, [row('b'), row('c')], add=True)

    assert in_child(starved).startswith('InputError') and path.read_bytes() == before
    write_private(path, [row('b')], add=True)
    assert read_private(path)['structure'] == dict(a='a', b='b')


def nobody(f):
    "What comes of `f` for a user who is not root"

    def dropped():
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        return f()

    return in_child(dropped)


@pytest.mark.parametrize('half', [False, True])
def test_a_folder_that_may_not_be_written(made, half):
    home = Path(tempfile.mkdtemp())
    try:
        shutil.copytree(made / 'src', home / 'src')
        shutil.copy(made / 'key', home / 'key')
        if half:
            again(made, home / 'out')
            (home / 'out/manifest.csv').unlink()
        for p in (home, *home.rglob('*')):
            p.chmod(0o555 if p.is_dir() else 0o444)
        said = nobody(lambda: ingest(home / 'src', home / 'out', TUMOUR, options=HEALTHY, key=home / 'key'))
        assert said.startswith('InputError') and 'denied' in said and '\n' not in said, said
    finally:
        for p in (home, *home.rglob('*')):
            p.chmod(0o700)
        shutil.rmtree(home)


def test_write_atomic_names_the_file_and_the_reason(tmp_path):
    starved = lambda: (resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)), write_atomic(tmp_path / 'a.csv', 'x' * 11))
    assert in_child(starved).startswith(f'InputError: {tmp_path}/a.csv: File too large')
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_while_a_slice_is_written(monkeypatch):
    "pydicom words the error anew and drops its number: a traceback of 60 lines"

    def write(*_):
        with pydicom.tag.tag_in_exception(pydicom.tag.Tag('PixelData')):
            raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(cli, '_phantom', write)
    done = CliRunner().invoke(cli.app, ['phantom', 'out'])
    assert done.exit_code == 2 and done.stderr.count('\n') == 1 and 'No space left' in done.stderr


@pytest.mark.skipif(sys.platform != 'linux', reason='workers are forks on Linux only')
def test_ctrl_c_reaches_no_worker(monkeypatch):
    "Not even the process that imports the library for them; it once printed a traceback beside the parent's line"
    here = multiprocessing.forkserver.ForkServer()
    monkeypatch.setattr(experiment.forkserver, 'ensure_running', here.ensure_running)
    experiment._start_deaf_forkserver()
    status = Path(f'/proc/{here._forkserver_pid}/status').read_text()
    blocked = int(re.search(r'SigBlk:\s*(\w+)', status)[1], 16)
    here._stop()
    assert blocked >> (signal.SIGINT - 1) & 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


# two at once, and none any more


def test_the_folder_is_its_own_until_the_last_file(made, tmp_path, monkeypatch):
    "Once the tables were written after the lock was given back"
    said = []

    def meanwhile(*args):
        said.append(refusal(again, made, tmp_path / 'out'))

    monkeypatch.setattr(module, 'write_qc', meanwhile)
    again(made, tmp_path / 'out')
    assert len(said) == 1 and 'another process is working there' in said[0]


SCRIPT = """
import sys
import liverdis.cohort.ingest as module
from liverdis.cohort.labels import LabelRules

if __name__ == '__main__':
    src, out, key = sys.argv[1:]
    options = module.IngestOptions(healthy=1)
    module.ingest(src, out, LabelRules((('livertumor', 'metastasis', '*'),)), options=options, key=key, jobs=2)
"""


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.005)


def check_workers_end_with(parent):
    "Kill a process; its workers must end by themselves"
    workers = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert len(gone) >= 2 and not alive


def test_workers_end_with_a_killed_parent(made, tmp_path):
    "Once four processes went on reading and writing for minutes"
    args = [sys.executable, '-c', SCRIPT, made / 'src', tmp_path / 'out', made / 'key']
    parent = subprocess.Popen(args, stderr=subprocess.PIPE)
    wait_for(lambda: list(tmp_path.glob('out/cases/.*.part')))
    check_workers_end_with(parent)
    assert not (tmp_path / 'out/manifest.csv').exists()
    again(made, tmp_path / 'out')
    assert contents(tmp_path / 'out') == contents(made / 'out')
    assert not list(tmp_path.rglob('.*.part'))


def test_painters_end_with_a_killed_parent(tmp_path):
    "Those of `study` waited for five minutes before they ended"
    program = 'import sys; from liverdis.cohort.phantom.cohort import write_phantom as w; w(sys.argv[1], jobs=2)'
    parent = subprocess.Popen([sys.executable, '-c', program, tmp_path], stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob('images/*/*.dcm')))
    check_workers_end_with(parent)


def test_a_patient_that_kills_its_process_costs_only_itself(made, tmp_path, monkeypatch):
    "As when memory runs out, or a library aborts"
    make = module.ingest_patient

    def dies(context, patient, *args):
        if 'b' in patient.names:
            (context.out / f'cases/.{patient.pid}.1.part').mkdir(parents=True, exist_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return make(context, patient, *args)

    monkeypatch.setattr(module, 'ingest_patient', dies)
    done = again(made, tmp_path / 'out', jobs=2)
    (problem,) = [p for p in done.problems if p.failed]
    assert problem.path.is_relative_to(made / 'src/b') and 'was killed' in problem.reason and done.redone == 1
    assert set(done.manifest.df.label) == {'metastasis', 'healthy'} and not list(tmp_path.rglob('.*.part'))
    monkeypatch.undo()
    assert again(made, tmp_path / 'out').redone == 1 and contents(tmp_path / 'out') == contents(made / 'out')


def test_a_killed_worker_is_one_line(made, tmp_path, monkeypatch):
    "While headers are read"
    monkeypatch.setattr(scan, 'index_files', lambda *args: os.kill(os.getpid(), signal.SIGKILL))
    assert 'fewer --jobs' in refusal(again, made, tmp_path / 'out', jobs=2)


def test_a_killed_worker_of_a_run_is_one_line(monkeypatch):
    "The system ends one for lack of memory: a traceback of 40 lines"
    monkeypatch.setattr(experiment, '_work_off', lambda run, pool, *_: pool.submit(os._exit, 1).result())
    said = refusal(experiment.run_tasks, [SimpleNamespace(folder='runs/night')], 2, lambda *_: None)
    assert said.startswith('runs/night: a worker was killed') and '--jobs 1' in said


def test_20_000_rows(tmp_path):
    "Ten times the rows may take ten times as long to read and check, not a hundred times; see tools/large_manifest.py"

    def took(n):
        (tmp_path / str(n)).mkdir()
        path = large_manifest.write_rows(tmp_path / str(n), n)
        began = time.process_time()
        verify_files(load_manifest(path))
        return time.process_time() - began

    took(10)
    assert took(20_000) < 30 * took(2_000)


# what somebody typed

TYPED = [
    '=HYPERLINK("http://x.org","x")',
    '@SUM(1)',
    '+1',
    '-1+1',
    '<script>alert(1)</script>',
    '"><img src=x onerror=y>',
]


class Tags(HTMLParser):
    "Tags and attributes of a page"

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def formulas(path):
    "Cells of a table that a spreadsheet would work out; numbers are none"
    with open(path, newline='') as f:
        cells = [cell for row in csv.reader(f) for cell in row]
    number = lambda cell: cell.lstrip('-').replace('.', '', 1).isdecimal()
    return [cell for cell in cells if cell[:1] and cell[0] in '=+-@\t\r' and not number(cell)]


@pytest.mark.parametrize('labelled', [False, True])
def test_names_that_are_formulas_or_tags(tmp_path, labelled):
    write_example(tmp_path / 'src', '=1+1<script>', '<img src=x onerror=y>', 1)
    ct = [pydicom.dcmread(f) for f in (tmp_path / 'src/PATIENT_DICOM').iterdir()]
    ct.sort(key=lambda d: float(d.ImagePositionPatient[2]))
    k, y, x = np.mgrid[:16, :160, :160]
    for i, name in enumerate(TYPED):
        ball = (y - 70) ** 2 + (x - 62) ** 2 + 9 * (k - 2 * i - 2) ** 2 < 49
        formats.rtstruct(tmp_path / 'src', ct, ball, name)
        (tmp_path / 'src/rtstruct.dcm').rename(tmp_path / f'src/{i}.dcm')
    done = ingest(tmp_path / 'src', tmp_path / 'out')
    write_labels(tmp_path / 'labels.csv', done.lacking)
    if labelled:
        pd.read_csv(tmp_path / 'labels.csv').assign(label='cyst').to_csv(tmp_path / 'labels.csv', index=False)
        rules = load_labels(tmp_path / 'labels.csv')
        done = ingest(tmp_path / 'src', tmp_path / 'out', rules)
        assert sorted(name for name, *_ in rules.rules) == sorted(TYPED) and not done.unmatched
        assert len(done.manifest) == len(TYPED)
    tables = [*(tmp_path / 'out').glob('*.csv'), tmp_path / 'labels.csv', tmp_path / 'out.private.csv']
    assert len(tables) == 4 + labelled and not [cell for t in tables for cell in formulas(t)]
    page = Tags((tmp_path / 'out/qc.html').read_text())
    assert 'table' in page.tags and 'script' not in page.tags
    assert not [name for name in page.attributes if name.startswith('on')]
