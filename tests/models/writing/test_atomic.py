"""A file or folder that appears when it is complete, or not at all."""

import pytest

from ffncore.models.writing.atomic import complete


@pytest.mark.parametrize("folder", [False, True])
def test_it_appears_at_the_end(tmp_path, folder):
    out = tmp_path / "out.file"
    with complete(out, folder=folder) as path:
        inner = path / "a" if folder else path
        inner.write_bytes(b"abc")
        assert path.name == "out.file"
        assert not out.exists()
    assert (out / "a" if folder else out).read_bytes() == b"abc"
    assert [path.name for path in tmp_path.iterdir()] == ["out.file"]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_after_an_error_there_is_nothing(tmp_path, folder, error):
    def write():
        with complete(tmp_path / "out", folder=folder) as path:
            (path / "a" if folder else path).write_bytes(b"abc")
            raise error

    with pytest.raises(type(error)):
        write()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path):
    (tmp_path / "there").write_bytes(b"kept")
    with pytest.raises(ValueError, match="there exists; expected a name that is not in use"):
        complete(tmp_path / "there", folder=False).__enter__()
    assert (tmp_path / "there").read_bytes() == b"kept"
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ValueError, match="link exists"):
        complete(tmp_path / "link", folder=True).__enter__()
    with pytest.raises(ValueError, match="absent is not a folder; expected one to write"):
        complete(tmp_path / "absent" / "out", folder=False).__enter__()


def test_errors_of_the_system_are_sentences(tmp_path):
    out = tmp_path / "out"
    full = OSError(28, "No space left on device")
    with pytest.raises(ValueError, match="out cannot be written: No space left on device"):  # noqa: SIM117
        with complete(out, folder=False):
            raise full
    with pytest.raises(FileNotFoundError, match="shard 3"), complete(out, folder=False):
        raise FileNotFoundError("shard 3 does not exist")
    long = tmp_path / ("x" * 300)
    with pytest.raises(ValueError, match="cannot be written: File name too long"):
        complete(long, folder=False).__enter__()
