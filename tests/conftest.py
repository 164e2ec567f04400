"""What all tests share: a cache folder of their own, the embedded study, and the real data beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

import conceptkit as ck

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"

# Derandomised, so that a failure of today is one of tomorrow; without a deadline, as the machine may be busy.
settings.register_profile("conceptkit", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("conceptkit")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Keep the user's cache folder out of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONCEPTKIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def embedded(cache):
    """The embedded study, generated once."""
    return ck.embedded_study()


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data (../shared/data) is not beside the repository")
    return SHARED_DATA
