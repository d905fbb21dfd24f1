import os
import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a background job; what it starts would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # with more, sums come in another order each time
os.environ.setdefault('LIVERDIS_BUGS', 'raise')  # a bug of ours in a reader is no damaged file: see cohort/door

LONGEST = [
    f"test_{name}.py"
    for name in "run ingest cluster explore benchmarks phantom public_sets fuzz cli identity two_classes".split()
]


def pytest_collection_modifyitems(items):
    "The longest files first, so that at the end no worker waits for another (with --no-loadscope-reorder)"
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
