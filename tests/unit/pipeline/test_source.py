import re

from compress.pipeline.source import package_source


def test_the_commit_is_that_of_this_checkout_or_unknown():
    source = package_source()
    assert source.commit is None or re.fullmatch(r"[0-9a-f]{40}", source.commit)
    assert (source.commit is None) == (source.dirty is None)
