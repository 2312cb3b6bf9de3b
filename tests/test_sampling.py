"""Samples are drawn by number, kept as they come, continued after a kill, drawn once."""

import time

import miniature
import pytest
import torch

from diffbook_lib.runs import (
    cells,
    checkpoint,
    folder,
    jobs,
    presets,
    restoring,
    sampling,
)
from diffbook_lib.runs.checkpoint import CheckpointError
from diffbook_lib.runs.sweeps import Member
from diffbook_lib.specs import SpecError


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    with miniature.opened(tmp_path_factory.mktemp("sampling")) as root:
        yield root


@pytest.fixture
def make(repository, tmp_path):
    """make(method, changes) -> a trained member that has drawn nothing yet."""

    def make(method="counts", **changes):
        spec = presets.resolve(method, "tiny", changes)
        run = folder.open_run(tmp_path / "run", spec)
        jobs.train_folder(run)
        return Member(spec, run, {}, cells.execute(spec, "build", "sample"))

    yield make
    folder.unlock(tmp_path / "run")


def files(member):
    return sorted((member.folder / "samples").rglob("*.safetensors"))


def times(member):
    return {path.name: path.stat().st_mtime_ns for path in files(member)}


def count(member):
    """Let the member's `draw` say which images it was asked for."""
    draw, asked = member.names["draw"], []

    def counted(numbers, **at):
        asked.extend((number, *at.values()) for number in numbers)
        return draw(numbers, **at)

    member.names["draw"] = counted
    return asked


def test_every_cell_of_the_table_is_drawn_by_number(make):
    member = make("ladder", table={"nfe": [3, 5, 7]}, samples=10, sample_batch=4)
    asked = count(member)
    own, three, seven = sampling.sample(member)
    assert asked == [(n, nfe) for nfe in (5, 3, 7) for n in range(10)]
    assert [drawn.at for drawn in (own, three, seven)] == [{"nfe": 5}, {"nfe": 3}, {"nfe": 7}]
    assert [drawn.nfe for drawn in (own, three, seven)] == [5, 3, 7]
    x, nfe = member.names["draw"](range(10), nfe=7)
    torch.testing.assert_close(seven.x, x, rtol=1e-5, atol=1e-6)
    assert nfe == 7 and seven.x.shape == (10, 2) and seven.seconds > 0
    names = [f"{path.parent.name}/{path.stem}" for path in files(member)]
    assert names == [f"nfe-{n}/{first:012d}" for n in (3, 5, 7) for first in (0, 4, 8)]


def test_the_average_of_the_weights_draws_and_not_the_last_weights(make):
    member = make("ladder")
    trained = cells.execute(member.spec, "build", "sample")
    net = restoring.restore(trained["net"], member.folder, member.spec)
    last = checkpoint.part(checkpoint.newest(member.folder / "checkpoints"), "net")
    x, _ = trained["draw"](range(10), nfe=5)
    torch.testing.assert_close(sampling.sample(member)[0].x, x)
    net.load_state_dict(last)
    assert not torch.allclose(trained["draw"](range(10), nfe=5)[0], x, atol=1e-4)


def test_what_is_there_is_not_drawn_again(make):
    member = make()
    (first,) = sampling.sample(member)
    before = times(member)
    files(member)[1].unlink()
    del before[files(member)[-1].parent.joinpath(f"{4:012d}.safetensors").name]
    asked = count(member)
    (again,) = sampling.sample(member)
    assert [number for number, *_ in asked] == [4, 5, 6, 7]
    assert torch.equal(again.x, first.x) and again.x.dtype == torch.uint8
    assert before.items() <= times(member).items()
    assert again.seconds == pytest.approx(
        sum(checkpoint.load(path).info["seconds"] for path in files(member))
    )


def test_a_damaged_file_is_reported_and_drawn_anew(make):
    member = make()
    (first,) = sampling.sample(member)
    damaged, before = files(member)[0], times(member)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    asked = count(member)
    with pytest.warns(UserWarning, match=f"{damaged} is damaged.*drawn anew"):
        (again,) = sampling.sample(member)
    assert [number for number, *_ in asked] == [0, 1, 2, 3]
    assert torch.equal(again.x, first.x)
    assert {n: t for n, t in times(member).items() if n != damaged.name} == {
        n: t for n, t in before.items() if n != damaged.name
    }


def test_what_other_weights_have_drawn_is_drawn_anew(make):
    """As when a run was trained over from an earlier checkpoint."""
    member = make("ladder")
    (first,) = sampling.sample(member)
    newest = checkpoint.newest(member.folder / "checkpoints")
    moved = {
        name: value * 1.5 if name.startswith("ema/") and value.is_floating_point() else value
        for name, value in newest.tensors.items()
    }
    checkpoint.write(newest.path, moved, newest.info)
    asked = count(member)
    (again,) = sampling.sample(member)
    assert len(asked) == 10 and not torch.equal(again.x, first.x)


def test_the_batch_size_does_not_change_the_images(make, tmp_path):
    """With keyed noise; the levels exactly."""
    member = make(sample_batch=4)
    (small,) = sampling.sample(member)
    for path in files(member):
        path.unlink()
    whole = Member(
        type(member.spec)(**{**dict(member.spec), "sample_batch": 10}),
        *(member.folder, {}, member.names),
    )
    (large,) = sampling.sample(whole)
    assert len(files(member)) == 1 and torch.equal(small.x, large.x)
    more = type(member.spec)(**{**dict(member.spec), "noise_seed": 1})
    names = cells.execute(more, "build", "sample")
    for path in files(member):
        path.unlink()
    (other,) = sampling.sample(Member(more, member.folder, {}, names))
    assert not torch.equal(other.x, small.x)


def test_sampling_in_the_precision_of_the_run(make):
    member = make("ladder", precision="bf16")
    seen = set()
    member.names["net"].stem.register_forward_hook(
        lambda module, inputs, output: seen.add(torch.is_autocast_enabled("cpu"))
    )
    assert sampling.sample(member)[0].x.dtype == torch.float32 and seen == {True}


def test_sampling_before_training_is_refused(repository, tmp_path):
    spec = presets.resolve("counts", "tiny")
    run = folder.open_run(tmp_path / "run", spec)
    with pytest.raises(CheckpointError, match="train the run first"):
        sampling.sample(Member(spec, run, {}, cells.execute(spec, "build", "sample")))
    folder.unlock(run)


def test_cells_without_draw_are_refused(make):
    member = make()
    del member.names["draw"]
    with pytest.raises(SpecError, match="define no draw"):
        sampling.sample(member)


def test_sampling_killed_half_way_continues_where_it_was(make, repository):
    """What was there is not touched, and the images are those of an undisturbed start."""
    member = make(samples=240, sample_batch=2)
    folder.unlock(member.folder)
    for kill in (1, 2):
        before = times(member)
        process = miniature.start(repository, "sample", member.folder)
        while len(files(member)) < 30 * kill:
            assert process.is_alive(), (repository / "log").read_text()
            time.sleep(0.001)
        miniature.kill(process)
        assert before.items() <= times(member).items()
    assert 60 <= len(files(member)) < 120
    before = times(member)
    miniature.finish(repository, miniature.start(repository, "sample", member.folder))
    assert before.items() <= times(member).items() and len(files(member)) == 120
    (killed,) = sampling.sample(member)
    for path in files(member):
        path.unlink()
    (whole,) = sampling.sample(member)
    assert torch.equal(killed.x, whole.x)
    assert not list(member.folder.rglob("samples/*/.*"))  # no half files are left behind
