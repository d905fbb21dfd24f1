"""Studies and runs that must be refused, or must go on, whatever somebody changed between two commands."""

import gzip
from pathlib import Path

import pytest

from liverdis.core import InputError
from liverdis.study.studies import POOL_SEED, Study, check_seeds, load_study, run_study, study_predictions, variants

STUDIES = sorted((Path(__file__).parents[1] / "studies").glob("*.toml"))
RESULTS = STUDIES[0].parents[1] / "nbs" / "results"
TINY = {"cohort": (8, 8, 8, 8), "classifier_epochs": 1, "disentangle_epochs": 1, "n_folds": 2}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_of_ours_can_be_run(path):
    study = load_study(path)
    check_seeds(study)
    assert variants(study) and study.about.endswith((".", "?"))


@pytest.mark.parametrize("trains", [{"oracle": True}, {"train_cases": (20,)}])
@pytest.mark.parametrize("tests", [{"phantom_seed": POOL_SEED}, {"more_cohorts": (POOL_SEED,)}])
def test_no_study_trains_on_the_patients_that_it_tests(tmp_path, trains, tests):
    with pytest.raises(InputError, match=f"{POOL_SEED} is the seed of the lesions that oracle"):
        run_study(Study("?", "smoke", settings=TINY, **trains, **tests), tmp_path / "out", 1, device="cpu")
    assert not (tmp_path / "out").exists()


def test_sizes_are_checked_before_a_phantom_is_painted(tmp_path):
    with pytest.raises(InputError, match="roi_size 7 cannot be halved"):
        run_study(Study("?", "smoke", settings={**TINY, "roi_size": 7}), tmp_path / "out", 1, device="cpu")
    assert not (tmp_path / "out").exists()


def test_edited_study_does_not_keep_its_old_cohort(tmp_path):
    "The phantom of another seed, or with other counts, lies there"
    from liverdis.cohort.phantom.cohort import write_phantom

    write_phantom(tmp_path / "cohort", dict.fromkeys(("cyst", "metastasis", "hemangioma", "healthy"), 2), seed=7)
    before = (tmp_path / "cohort" / "manifest.csv").read_bytes()
    for other in ({"phantom_seed": 16, "settings": {**TINY, "cohort": (2, 2, 2, 2)}}, {"phantom_seed": 7}):
        with pytest.raises(InputError, match="holds another phantom than is asked for.*--out"):
            run_study(Study("?", "smoke", **other), tmp_path, 1, device="cpu")
    assert (tmp_path / "cohort" / "manifest.csv").read_bytes() == before


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/predictions.csv.gz")), ids=lambda path: path.parent.name)
def test_stored_studies_are_read_back_whole(path):
    "The study itself is the variant without a name"
    header, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    if not header.startswith("variant,"):
        pytest.skip("older than variants")
    assert list(study_predictions(path.parent)) == list(dict.fromkeys(line.split(",")[0] for line in lines))
