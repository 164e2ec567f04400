"""Latent domains: proposed from the stain of training rows alone, told against the center, and discouraged like it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.errors import InputError
from conceptkit.guide.goals import read_goals
from conceptkit.guide.latent import with_latent
from conceptkit.options.guide import run_guide
from conceptkit.pathology.domains import REFERENCES, STAIN_PROFILE, propose_domains, stain_profile
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study


def stained(n_groups=30, per=8, seed=0, within=3.0):
    """Three stains by group, 5 apart, whose patches vary by more than half of that within each group."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), per)
    true = (np.arange(n_groups) % 3)[groups]
    middle = 5.0 * np.eye(3, 4)
    return middle[true] + within * rng.normal(size=(len(groups), 4)), true, groups


def test_domains_are_of_groups_and_found_where_patches_vary_more():
    X, true, groups = stained()
    fitted = groups < 15
    by_group = propose_domains(X, fitted, groups, 3).codes
    assert adjusted_rand_score(true, by_group) == 1.0
    by_row = propose_domains(X, fitted, None, 3).codes
    assert adjusted_rand_score(true, by_row) < 0.8
    assert (np.diff(np.bincount(by_group[fitted])) <= 0).all()


def test_nothing_of_other_rows_enters_the_fit():
    X, _, groups = stained()
    fitted = groups < 15
    first = propose_domains(X, fitted, groups, 3).codes
    elsewhere = np.where(fitted[:, None], X, 1e4 * np.random.default_rng(1).normal(size=X.shape))
    np.testing.assert_array_equal(propose_domains(elsewhere, fitted, groups, 3).codes[fitted], first[fitted])
    # The control: rows that are fitted do change what is found.
    moved = np.where(fitted[:, None], elsewhere[::-1] * 1e4, X)
    assert (propose_domains(moved, fitted, groups, 3).codes[fitted] != first[fitted]).any()
    # One row at a time gives what all together give: a row's domain depends on its own group alone.
    alone = np.flatnonzero((groups == 20) | fitted)
    np.testing.assert_array_equal(propose_domains(X[alone], fitted[alone], groups[alone], 3).codes, first[alone])


def test_rows_without_tissue_take_the_domain_of_their_group_or_none():
    X, _, groups = stained()
    first = propose_domains(X, groups < 15, groups, 3).codes
    X = X.copy()
    X[0], X[groups == 29] = np.nan, np.nan
    codes = propose_domains(X, groups < 15, groups, 3).codes
    assert codes[0] == first[0]
    assert (codes[groups == 29] == -1).all()
    assert not np.isfinite(stain_profile(np.full((32, 32, 3), 255, np.uint8))).any()


def unseen_by_stain(seed=0, apart=2.0):
    """Profiles that know nothing of three planted domains, and features that are shifted by them; by group."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(36), 8)
    true = (np.arange(36) % 3)[groups]

    def drawn(columns):
        return rng.normal(size=(36, columns))[groups] + rng.normal(size=(len(groups), columns))

    shifts = apart * rng.normal(size=(3, 40))
    return drawn(STAIN_PROFILE), drawn(40) + shifts[true], true, groups


@pytest.mark.parametrize("seed", range(3))
def test_features_find_domains_that_stain_does_not_see(seed):
    profiles, features, true, groups = unseen_by_stain(seed)
    fitted = groups < 24
    by_stain = propose_domains(profiles, fitted, groups, 3, seed=seed)
    both = propose_domains(profiles, fitted, groups, 3, features=features, seed=seed)
    for rows in (fitted, ~fitted):
        assert adjusted_rand_score(true[rows], by_stain.codes[rows]) < 0.3
        assert adjusted_rand_score(true[rows], both.codes[rows]) > 0.9
    assert by_stain.p > 0.05
    assert both.p == 1 / (1 + REFERENCES)
    assert both.explained > both.by_chance
    again = propose_domains(profiles, fitted, groups, 3, features=features, seed=seed)
    np.testing.assert_array_equal(again.codes, both.codes)
    # The control: where there are no domains, none are found in the features either.
    profiles, features, true, groups = unseen_by_stain(seed, apart=0.0)
    none = propose_domains(profiles, fitted, groups, 3, features=features, seed=seed)
    assert adjusted_rand_score(true, none.codes) < 0.3
    assert none.p > 0.05


def test_nothing_of_other_rows_enters_the_components():
    profiles, features, _, groups = unseen_by_stain()
    fitted = groups < 24
    first = propose_domains(profiles, fitted, groups, 3, features=features)
    elsewhere = np.where(fitted[:, None], features, 1e3 * features[::-1])
    second = propose_domains(profiles, fitted, groups, 3, features=elsewhere)
    np.testing.assert_array_equal(first.codes[fitted], second.codes[fitted])
    assert (first.explained, first.by_chance, first.p) == (second.explained, second.by_chance, second.p)
    assert (first.codes != second.codes).any()  # the control: the others are sorted by what they are


@pytest.mark.long
def test_p_is_small_by_chance_no_more_often_than_it_says():
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(24, 22)) * np.linspace(1, 0.3, 22)  # one cloud, with hardly more groups than numbers
        found.append(propose_domains(X, np.ones(24, bool), None, 3, seed=seed).p)
    # Some two and a half standard errors of 40 sets; against fresh Gaussian draws the first share is above 0.4.
    assert np.mean(np.array(found) <= 0.1) <= 0.225
    assert 0.3 <= np.mean(np.array(found) <= 0.5) <= 0.7


def test_too_few_stains_are_refused():
    X, _, groups = stained()
    with pytest.raises(InputError, match=r"latent: 16 domains need as many groups .* there are 15"):
        propose_domains(X, groups < 15, groups, 16)
    with pytest.raises(InputError, match="at least 2"):
        propose_domains(X, groups < 15, groups, 1)


@pytest.fixture(scope="module")
def proposed(embedded):
    return with_latent(embedded.load_table(), embedded, read_goals(["count"], ["latent:4"]))


def test_on_the_embedded_study_they_agree_with_the_center(proposed):
    data, wishes, latent = proposed
    assert [wish.concept for wish in wishes] == ["count", "latent"]
    assert data.concept("latent").kind == "categorical"
    frame = data.frame
    assert latent.agreement["training"] > 0.9
    internal = frame[frame.split == "internal"]
    found = adjusted_rand_score(internal.center, internal.latent)
    patients = internal.groupby("patient")[["center", "latent"]].first()
    rng = np.random.default_rng(0)
    chance = [adjusted_rand_score(patients.center, rng.permutation(patients.latent)) for _ in range(200)]
    assert found > 0.8 > max(chance)
    assert (frame.groupby("patient").latent.nunique() == 1).all()
    assert sum(sum(rows.values()) for rows in latent.rows.values()) == len(data) - latent.unknown
    assert "adjusted Rand index with center" in latent.note()
    assert latent.p <= 0.05
    assert "no evidence" not in latent.note()
    assert "no evidence of such domains" in dataclasses.replace(latent, p=0.4).note()


def test_a_profile_says_stain(embedded):
    data = embedded.load_table()
    assert np.isfinite(stain_profile(data.pixels(0))).all()
    assert stain_profile(data.pixels(0)).shape == (STAIN_PROFILE,)


def test_guide_discourages_them(study, tmp_path):
    options = {"unfreeze": (), "trunk": (8,), "epochs": 2, "warmup": 1}
    outline = ck.Guide(encourage=["count"], discourage=["latent:2"], **options, dry_run=True).run(study)
    assert [b.task for b in outline.branches] == ["main", "count", "latent"]
    assert any("2 latent domains" in note for note in outline.notes)
    outline = ck.Guide(encourage=["count"], discourage=["latent:2+mixed0"], **options, dry_run=True).run(study)
    assert [b.task for b in outline.branches] == ["main", "count", "latent"]
    assert any("from the features of mini_inception at mixed0" in note for note in outline.notes)
    record = run_guide(study, encourage=["count"], discourage=["latent:2"], **options, out=tmp_path / "run")
    assert record.discourage == ("latent",)
    assert record.settings["latent"]["domains"] == 2
    assert set(record.settings["latent"]["agreement"]) == {"training", "other"}
    guided = next(run for run in record.runs if run.name == "guided")
    assert "auc_within_latent" in guided.metrics["internal"]
    assert (
        run_guide(study, discourage=[], encourage=["count"], **options, out=tmp_path / "other").settings["latent"]
        is None
    )


MISTAKES = {
    "no number": (["--discourage", "latent:many"], "latent: needs a number of domains of at least 2"),
    "one domain": (["--discourage", "latent:1"], "latent: needs a number of domains of at least 2"),
    "no layer": (["--discourage", "latent:2+"], "latent: a layer must follow the plus"),
    "another layer": (["--discourage", "latent:2+mixed99"], "mixed99"),
    "twice": (["--discourage", "latent:2,latent:3"], "domains are proposed once"),
    "to be known": (["--encourage", "latent:3"], "can only be discouraged"),
    "too many": (["--discourage", "latent:99"], "99 domains need as many groups"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(study, name, tmp_path):
    args, words = MISTAKES[name]
    result = CliRunner().invoke(app, ["guide", "--study", str(study), *args, "--dry-run"])
    assert result.exit_code == 2, result.output
    assert words in result.output


def test_a_table_with_such_a_column_or_without_pixels_is_refused(embedded):
    data = embedded.load_table()
    wishes = read_goals(None, ["latent:2"])
    with pytest.raises(InputError, match="already has a column latent"):
        with_latent(dataclasses.replace(data, frame=data.frame.assign(latent="a")), embedded, wishes)
    bare = PatchTable(pd.DataFrame({"patch_id": ["a", "b"], "split": ["train", "train"]}), None)
    with pytest.raises(InputError, match="read from pixels"):
        with_latent(bare, Study(name="s", table="t.csv"), wishes)
