"""PyTorch's checkpoint files: read as torch reads them, and nothing in them is ever run."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import write_checkpoint

from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.checkpoint.lazy import read_all
from edgekit.checkpoint.pytorch_pickle import MAX_PICKLE_BYTES, read_views
from edgekit.checkpoint.pytorch_zip import read_pytorch
from edgekit.checkpoint.shards import read_shards
from edgekit.errors import CheckpointError

# A pickle of {"a": one float32 tensor of two elements}, to be taken apart.
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQK\x00K\x02\x85K\x01\x85\x89"
    b"ccollections\nOrderedDict\n)RtR"
)
KEY = b"X\x01\x00\x00\x00a"
PICKLE = b"\x80\x02}" + KEY + TENSOR + b"s."
BYTES = np.array([1, 2], np.float32).tobytes()


def archive(path: Path, data: bytes = PICKLE, **entries: Any) -> Path:
    """Write an archive as torch lays it out; entries are by name, without the root."""
    storages = {"data/0": BYTES, "byteorder": b"little", **entries}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", data)
        for name, content in storages.items():
            if content is not None:
                file.writestr(f"m/{name}", content)
    return path


def refusal(tmp_path: Path, data: bytes = PICKLE, **entries: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_pytorch(archive(tmp_path / "x.bin", data, **entries))
    assert caught.value.remedy
    assert "x.bin" in caught.value.message
    return caught.value.message


def test_the_plain_archive_is_read(tmp_path: Path) -> None:
    """The archive that the other tests damage is whole."""
    tensor = read_pytorch(archive(tmp_path / "x.bin"))["a"]
    assert (tensor.dtype, tensor.shape, tensor.size_bytes) == ("F32", (2,), 8)


@pytest.mark.calibrate
def test_reads_what_torch_writes(tmp_path: Path) -> None:
    """Every dtype, parameters, tied tensors, views of a storage and metadata, as torch has them."""
    import torch

    linear = torch.nn.Linear(3, 2)
    whole = torch.arange(12.0).reshape(4, 3)
    wanted = {
        **linear.state_dict(),
        "bf16": torch.randn(3, 5).bfloat16(),
        "f16": torch.randn(7).half(),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "i64": torch.arange(3),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "tied": whole,
        "head": whole,
    }
    state = linear.state_dict()
    state.update(wanted)
    torch.save(state, tmp_path / "x.bin")
    found = read_pytorch(tmp_path / "x.bin")
    assert set(found) == set(wanted)
    for name, tensor in found.items():
        assert tensor.shape == tuple(wanted[name].shape)
        if tensor.size_bytes:
            array = wanted[name].detach()
            expected = array.view(torch.int16).numpy().view(np.uint16) if name == "bf16" else array
            np.testing.assert_array_equal(tensor.mapped(), np.asarray(expected))
    torch.save({"rows": whole[1:3], "rest": whole[3:]}, tmp_path / "views.bin")
    views = read_pytorch(tmp_path / "views.bin")
    np.testing.assert_array_equal(views["rows"].mapped(), whole[1:3].numpy())
    np.testing.assert_array_equal(views["rest"].mapped(), whole[3:].numpy())


@pytest.mark.calibrate
def test_what_torch_can_write_and_is_not_read(tmp_path: Path) -> None:
    """Transposed and overlapping tensors, other types, other things, the old format: refused."""
    import torch

    whole = torch.arange(12.0).reshape(4, 3)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ({"a": whole.t()}, {}, "it is not contiguous"),
        ({"a": whole[:2], "b": whole[1:]}, {}, "two of its tensors overlap"),
        ({"a": whole.double()}, {}, "it names torch.DoubleStorage"),
        ({"a": whole, "step": 3}, {}, "it holds 'step', which is not a tensor"),
        ({"state_dict": {"a": whole}}, {}, "it holds 'state_dict', which is not a tensor"),
        (torch.nn.Linear(2, 2), {}, "it names torch.nn.modules.linear.Linear"),
        ({"a": whole}, {"_use_new_zipfile_serialization": False}, "from before 1.6"),
    ]
    for state, options, message in cases:
        torch.save(state, tmp_path / "x.bin", **options)
        with pytest.raises(CheckpointError) as caught:
            read_pytorch(tmp_path / "x.bin")
        assert message in caught.value.message
        assert "where you trust it" in caught.value.remedy or "download" in caught.value.remedy


class Evil:
    """What unpickling would run."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("echo owned",)


def swap(old: bytes, new: bytes) -> bytes:
    assert old in PICKLE
    return PICKLE.replace(old, new)


MALICIOUS: list[tuple[str, bytes, str]] = [
    ("system", pickle.dumps({"a": Evil()}, 2), "it names posix.system"),
    ("system, protocol 4", pickle.dumps({"a": Evil()}, 4), "it names posix.system"),
    ("stack global", b"\x80\x04\x8c\x02os\x8c\x06system\x93N\x85R.", "it names os.system"),
    ("dotted", b"\x80\x04\x8c\x05torch\x8c\x0b_utils.load\x93.", "it names torch._utils.load"),
    ("computed", b"\x80\x04}\x8c\x06system\x93.", "STACK_GLOBAL requires str"),
    ("builtins", b"\x80\x02cbuiltins\neval\n(X\x01\x00\x00\x001tR.", "it names builtins.eval"),
    ("torch load", b"\x80\x02ctorch\nload\n)R.", "it names torch.load"),
    ("inst", b"(X\x04\x00\x00\x00trueios\nsystem\n.", "the opcode INST at byte"),
    ("obj", b"(ctorch\nFloatStorage\no.", "the opcode OBJ at byte"),
    ("newobj", b"\x80\x02ccollections\nOrderedDict\n)\x81.", "the opcode NEWOBJ at byte"),
    ("extension", b"\x80\x02\x82\x01.", "the opcode EXT1 at byte"),
    ("text persistent id", b"Pfile\n.", "the opcode PERSID at byte"),
    ("duplicate", b"\x80\x02}2.", "the opcode DUP at byte"),
    ("decimal", b"I" + b"9" * 5000 + b"\n.", ""),
    ("huge memo", b"\x80\x02}r\xff\xff\xff\xff.", "it memoizes entry 4294967295 after 0 others"),
    ("memo not there", b"\x80\x02h\x07.", "its stack or memo is empty"),
    ("huge string", b"\x80\x02X\xff\xff\xff\x7fa.", "expected 2147483647 bytes"),
    ("long list", b"\x80\x02" + b"N" * MAX_PICKLE_BYTES + b".", "compressed or larger than"),
    ("deep tuples", b"\x80\x02}N" + b"\x85" * 100_000 + b"Ns.", "nests tuples more than 8 deep"),
    ("shared tuples", b"\x80\x02}N\x85q\x00" + b"h\x00\x86q\x01Ns.", "it shares a tuple"),
    ("list as a key", b"\x80\x02}]Ns.", "unhashable"),
    ("trailing", PICKLE + b"cos\nsystem\n.", "bytes follow its end"),
    ("cut", PICKLE[:-20], ""),
    ("no stop", PICKLE[:-1], "exhausted before seeing STOP"),
    ("not a dictionary", b"\x80\x02]" + TENSOR + b"a.", "does not hold a dictionary"),
    ("number as a name", b"\x80\x02}K\x01" + TENSOR + b"s.", "it holds 1, which is not a tensor"),
    ("filled dictionary", swap(b")RtR", b"]\x85RtR"), "fills an OrderedDict by its constructor"),
    ("state of a function", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.", "sets the state of"),
    ("state of a class", b"\x80\x02ctorch\nFloatStorage\n}b.", "sets the state of"),
    ("storage called", b"\x80\x02ctorch\nFloatStorage\nK\x08\x85R.", "it calls a storage class"),
    ("tensor of nothing", swap(b")RtR", b")Rt)R"), ""),
    ("too few", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "other things than a storage"),
    ("parameter", b"\x80\x02ctorch._utils\n_rebuild_parameter\nNNN\x87R.", "is not a tensor"),
    ("negative offset", swap(b"QK\x00", b"QJ\xff\xff\xff\xff"), "offset -1"),
    ("huge size", swap(b"K\x02\x85K", b"\x8a\x09" + b"\xff" * 8 + b"\x7f\x85K"), "has size"),
    ("size is a list", swap(b"K\x02\x85K", b"]K"), "a tensor has size []"),
    ("size and stride", swap(b"K\x01\x85\x89", b")\x89"), "stride ()"),
    ("boolean size", swap(b"K\x02\x85K", b"\x88\x85K"), "a tensor has size (True,)"),
    ("stride", swap(b"K\x01\x85\x89", b"K\x02\x85\x89"), "it is not contiguous"),
    ("another persistent id", swap(b"storagec", b"modulesc"), "which is not a storage"),
    ("key is a number", swap(b"X\x01\x00\x00\x000X", b"K\x00X"), "which is not a storage"),
    ("device storage", swap(b"FloatStorage", b"DoubleStorage"), "it names torch.DoubleStorage"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"), [c[1:] for c in MALICIOUS], ids=[c[0] for c in MALICIOUS]
)
@pytest.mark.timeout(20)
def test_malicious_pickle(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], data: bytes, message: str
) -> None:
    """Whatever a pickle asks for, nothing is run, imported or filled, and the reason is said."""
    assert message in refusal(tmp_path, data)
    assert not capfd.readouterr().out


def test_recorders_keep_nothing(tmp_path: Path) -> None:
    """A refused pickle leaves the reader as it was."""
    for _, data, _ in MALICIOUS:
        refusal(tmp_path, data)
    assert set(read_views(PICKLE)) == {"a"}


ARCHIVES: list[tuple[dict[str, Any], str]] = [
    ({"data/0": BYTES[:4]}, "m/data/0 has 4 bytes, its 2 elements of F32 take 8"),
    ({"data/0": None}, "lacks the storage '0'"),
    ({"byteorder": b"big"}, "in another byte order"),
    ({"data": swap(b"K\x02\x85K", b"K\x03\x85K")}, "takes elements 0 to 3 of a storage of 2"),
    ({"data": swap(b"QK\x00K\x02", b"QK\x01K\x02")}, "takes elements 1 to 3 of a storage of 2"),
    ({"data": swap(b"cpuK\x02", b"cpuK\x7f")}, "its 127 elements of F32 take 508"),
]


@pytest.mark.parametrize(("change", "message"), ARCHIVES, ids=[case[1][:30] for case in ARCHIVES])
def test_lying_archive(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Storages that are missing, short or stepped over are named before a byte is mapped."""
    assert message in refusal(tmp_path, **change)


def test_damaged_archives(tmp_path: Path) -> None:
    """Compressed, cut, doubled or foreign files are refused, with a remedy."""
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/data.pkl", PICKLE)
    with pytest.raises(CheckpointError, match="compressed or larger"):
        read_pytorch(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", PICKLE)
        file.writestr("m/data/0", BYTES, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="m/data/0 is compressed"):
        read_pytorch(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/other", b"")
    with pytest.raises(CheckpointError, match="without data"):
        read_pytorch(path)
    whole = archive(path).read_bytes()
    path.write_bytes(whole[: len(whole) - 30])
    with pytest.raises(CheckpointError, match="is a damaged archive"):
        read_pytorch(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="is not a PyTorch checkpoint"):
        read_pytorch(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", PICKLE)
        file.writestr("m/data_pkl", PICKLE)
    path.write_bytes(path.read_bytes().replace(b"m/data_pkl", b"m/data.pkl"))
    with pytest.raises(CheckpointError, match="two entries of one name"):
        read_pytorch(path)


def test_an_offset_that_leaves_the_file(tmp_path: Path) -> None:
    """A directory that points a storage elsewhere is found out by the header that stands there."""
    path = archive(tmp_path / "x.bin")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"m/data/0") - 4  # the entry's offset, before its name
    struct.pack_into("<I", data, at, len(data))
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged archive|has no header"):
        read_pytorch(path)


@pytest.mark.calibrate
@pytest.mark.parametrize("shards", [1, 3])
def test_a_checkpoint_and_its_safetensors_twin_are_one(tmp_path: Path, shards: int) -> None:
    """The same weights as .bin and as safetensors open to the same tensors, bit by bit."""
    import torch

    twin = write_checkpoint(tmp_path / "twin", shards=shards)
    pickled = write_pickled(torch, tmp_path / "pickled", twin, shards)
    first, second = open_checkpoint(twin), open_checkpoint(pickled)
    assert first.names == second.names
    assert first.stored_bytes == second.stored_bytes
    assert {path.suffix for path in second.shards} == {".bin"}
    for name in first.names:
        np.testing.assert_array_equal(read_all(first.tensor(name)), read_all(second.tensor(name)))


def write_pickled(torch: Any, path: Path, twin: Path, shards: int) -> Path:
    """Write a checkpoint's copy whose weights are in PyTorch's files."""
    stored, _ = read_shards(twin)
    path.mkdir()
    for file in twin.glob("*.json"):
        if "index" not in file.name:
            (path / file.name).write_bytes(file.read_bytes())
    state = {
        name: torch.from_numpy(np.array(tensor.mapped()).view(np.int16)).view(torch.bfloat16)
        for name, tensor in stored.items()
    }
    if shards == 1:
        torch.save(state, path / "pytorch_model.bin")
        return path
    weight_map = {}
    for index in range(shards):
        name = f"pytorch_model-{index + 1:05d}-of-{shards:05d}.bin"
        part = {key: state[key] for key in sorted(state)[index::shards]}
        torch.save(part, path / name)
        weight_map.update(dict.fromkeys(part, name))
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.calibrate
def test_both_build_to_the_same_blobs(tmp_path: Path) -> None:
    """A bundle's tensors do not depend on which of the two formats the weights came in."""
    import torch

    from edgekit.bundle.reader import open_bundle
    from edgekit.pipeline.build import build
    from edgekit.pipeline.request import BuildRequest
    from edgekit.recipe import load_recipe
    from edgekit.targets import TARGETS

    twin = write_checkpoint(tmp_path / "twin")
    pickled = write_pickled(torch, tmp_path / "pickled", twin, 2)
    digests = []
    for model in (twin, pickled):
        out = tmp_path / f"{model.name}.bundle"
        recipe = load_recipe("w4a16-g64")
        build(BuildRequest(str(model), TARGETS["cpu"], recipe, out, check=False))
        manifest = open_bundle(out).manifest
        digests.append({entry.name: entry.sha256 for entry in manifest.tensors})
    assert digests[0] == digests[1]


def test_safetensors_go_first(tmp_path: Path) -> None:
    """Where both formats are, safetensors are read and the pickle is not opened."""
    path = write_checkpoint(tmp_path / "c", tokenizer=False)
    (path / "pytorch_model.bin").write_bytes(b"not read")
    assert [shard.name for shard in open_checkpoint(path).shards] == ["model.safetensors"]


def test_an_exporter_that_unpickles_gets_no_pickle(tmp_path: Path) -> None:
    """Optimum would unpickle the file itself, so it is not offered one."""
    archive(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not read by itself"):
        read_shards(tmp_path, pickled=False)
    assert set(read_shards(tmp_path)[0]) == {"a"}
