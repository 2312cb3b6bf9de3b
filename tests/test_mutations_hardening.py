"""The tests of hardening have teeth: a guard taken away makes a named one fail."""

import miniature
import pytest
import test_hardening_data as hd
import test_hardening_main as hm
import test_hardening_runs as hr
from swaps import swap
from test_mutations import Mutation

from diffbook_lib import files
from diffbook_lib.data import cifar, picture_files, pictures, unpacking
from diffbook_lib.runs import checkpoint, folder, origin, presets, results
from diffbook_lib.specs import plain


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that holds the miniatures, and data and cache of its own."""
    monkeypatch.setenv("DIFFBOOK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("DIFFBOOK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "repository").mkdir()
    with miniature.opened(tmp_path / "repository") as root:
        yield root
    for held in list(folder._locks):
        folder.unlock(held)


def fresh(root, number):
    """A folder for one call of a test."""
    (made := root.parent / f"call-{number}").mkdir()
    (root.parent / "data").mkdir(exist_ok=True)
    return made


def bomb(name):
    return lambda root, made, patch: hd.test_archives_that_would_fill_the_memory_are_refused(
        made, name
    )


def hostile(name):
    return lambda root, made, patch: hd.test_pickles_tell_nothing_to_numpy(name)


def other(name):
    def check(root, made, patch):
        hr.test_checkpoints_of_another_version_are_named_with_what_differs(
            made / "run", presets.resolve("counts", "tiny"), *hr.OTHERS[name]
        )

    return check


def preset(name):
    return lambda root, made, patch: hm.test_presets_that_are_not_what_they_look_like_are_refused(
        root, name
    )


def kept(root, made, patch):
    with miniature.opened(made) as repository:
        hm.test_only_a_regular_picture_is_kept(repository, "folder")


def folders(root, made, patch):
    with miniature.opened(made) as repository:
        hm.test_changed_data_of_ones_own_stop_their_run(repository)


def every_start(root, made, patch):
    run = made / "run"
    hr.test_a_record_names_every_start(root, run, presets.resolve("counts", "tiny"), patch)


def stale(root, made, patch):
    with pytest.MonkeyPatch.context() as inner:
        inner.setenv("DIFFBOOK_CACHE", str(made / "cache"))
        hd.test_stale_decoded_pictures_are_made_anew(made, made)


def celeba(root, made, patch):
    with pytest.MonkeyPatch.context() as inner:
        inner.setenv("DIFFBOOK_DATA", str(made))
        inner.setenv("DIFFBOOK_CACHE", str(made / "cache"))
        hd.test_a_corrected_partition_of_celeba_counts(made)


MUTATIONS = [
    Mutation(unpacking._tar, "member.issparse()", "False", bomb("sparse.tar")),
    Mutation(unpacking._check_total, "total > most", "False", bomb("members.zip")),
    Mutation(unpacking._check_size, "size > MOST", "False", bomb("member.tar.gz")),
    Mutation(cifar._Array.array, "min(n, k) >= 0 and ", "", hostile("negative")),
    Mutation(
        cifar._Array.array, 'whole and _text(name) == "u1"', "whole", hostile("objects of bytes")
    ),
    Mutation(
        picture_files._eight_bits,
        "values / 257",
        "values / 255",
        lambda root, made, patch: hd.test_sixteen_bits_become_eight("PNG", 127),
    ),
    Mutation(pictures.celeba, "repr(sorted(answers.items()))", "attribute", celeba),
    Mutation(files.cached_tensors, "{*needed} - {*found}", "()", stale),
    Mutation(checkpoint._check_moments, "moments.keys() != wanted", "False", other("no moments")),
    Mutation(origin.together, "one.seconds", "0.0", every_start),
    Mutation(results.keep, "picture != picture.resolve() or ", "", kept),
    Mutation(folder.default_folder, 'changed.pop("data_hash", None)', "pass", folders),
    Mutation(
        plain.PlainLoader.construct_yaml_float, '":" in node.value', "False",
        preset("a fraction in sixties"),
    ),
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: " ".join(str(m).split())[:100])
def test_a_guard_that_is_taken_away_is_noticed(mutation, place, monkeypatch):
    mutation.check(place, fresh(place, 1), monkeypatch)
    swap(monkeypatch, mutation.function, mutation.old, mutation.new)
    with pytest.raises((AssertionError, pytest.fail.Exception, KeyError, TypeError)):
        mutation.check(place, fresh(place, 2), monkeypatch)
