import os

os.environ.setdefault('LIVERDIS_BUGS', 'raise')  # a bug of ours in a reader is no damaged file: see cohort/door

LONGEST = ["test_run.py", "test_ingest.py", "test_phantom.py", "test_two_classes.py"]


def pytest_collection_modifyitems(items):
    "The longest files first, so that at the end no worker waits for another (with --no-loadscope-reorder)"
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
