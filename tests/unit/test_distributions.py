from __future__ import annotations

from importlib import metadata

from compress.distributions import ALTERNATIVES, find_distribution
from compress.engines.availability import LIBRARIES
from compress.stages import STAGES


def test_what_is_installed_under_its_own_name() -> None:
    assert find_distribution("pydantic") == ("pydantic", metadata.version("pydantic"))
    assert find_distribution("no-such-distribution") is None


def test_every_library_with_alternatives_is_one_that_stages_and_sessions_name() -> None:
    in_keys = {name for stage in STAGES.values() for name in stage.libraries}
    assert set(ALTERNATIVES) <= in_keys
    assert set(ALTERNATIVES) <= {library.distribution for library in LIBRARIES.values()}
