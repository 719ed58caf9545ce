"""The ``.moeprof`` file is read back as written; any other file is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import zipfile

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.profiles import Profile
from moec.profiles.file import Head, LayerEntry, held_arrays, merge, write_profile
from moec.profiles.measures import packed, unpacked

LAYER = LayerEntry(
    "0123456789abcdef", "experts", "moe", inner=2, tokens=3, experts=2, k=1, hidden=2, parts=("up", "down")
)
HEAD = Head({"name": "m.onnx", "sha256": "00"}, [{"name": "d", "tokens": 3}], "O2", ["int8"], [LAYER])
ARRAYS = [("0123456789abcdef/count", np.array([1, 2])), ("0123456789abcdef/rows/0", np.array([[1.0, 2.0]]))]


def written(path, head=HEAD, arrays=ARRAYS):
    write_profile(path, head, arrays)
    return Profile.read(path)


def test_what_was_written_is_read(tmp_path):
    profile = written(tmp_path / "p")
    (layer,) = profile.all_experts()
    assert profile.head == HEAD
    assert layer.count.tolist() == [1, 2]
    assert layer.rows(0).tolist() == [[1, 2]]
    assert layer.error("int8") is None


def test_a_number_alone_stays_one(tmp_path):
    name = "input0/measured"
    head = dataclasses.replace(HEAD, layers=[LayerEntry("0" * 16, "linear", "product", inner=2, tokens=3, input=0)])
    profiles = [written(tmp_path / str(number), head, [(name, np.array(number))]) for number in (3, 4)]
    merge(tmp_path / "both", profiles)
    for profile, number in zip([*profiles, Profile.read(tmp_path / "both")], (3, 4, 7), strict=True):
        actual = profile.array(name)
        assert actual is not None and (actual.shape, int(actual)) == ((), number)


BATCHES = [{"ids": np.array([[number]]), "mask": np.ones((1, 1))} for number in (3, 4)]


def with_held_back(path, batches):
    head = dataclasses.replace(HEAD, inputs=["ids", "mask"], output="logits")
    return written(path, head, [*ARRAYS, *held_arrays(batches, head.inputs)])


def test_data_that_was_held_back_is_read_and_merged_whole(tmp_path):
    first, two = with_held_back(tmp_path / "one", BATCHES[:1]), with_held_back(tmp_path / "two", BATCHES[1:])
    merge(tmp_path / "both", [first, two])
    both = Profile.read(tmp_path / "both")
    assert (both.head.output, both.head.inputs) == ("logits", ["ids", "mask"])
    for actual, expected in zip(both.held_back(), BATCHES, strict=True):
        assert {name: array.tolist() for name, array in actual.items()} == {
            name: array.tolist() for name, array in expected.items()
        }
    assert written(tmp_path / "none").held_back() == []


def test_data_that_was_held_back_of_other_inputs_is_refused(tmp_path):
    profile = with_held_back(tmp_path / "one", BATCHES[:1])
    head = dataclasses.replace(HEAD, inputs=["ids", "mask", "more"])
    arrays = [(name, array) for name in profile.names() if (array := profile.array(name)) is not None]
    with pytest.raises(
        MoecError, match=r"held/0 is not of the inputs \['ids', 'mask', 'more'\]; make the profile anew"
    ):
        written(tmp_path / "two", head, arrays).held_back()


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("held/0/2", np.array([[1]]), "belongs to no input of its head"),
        ("held/0/x", np.array([[1]]), "belongs to no input of its head"),
        ("held/0/0", np.array([["a"]]), "is of the type <U1; expected numbers"),
        ("held/0/0", np.array([[np.inf]]), "holds numbers that are not finite"),
        (f"{LAYER.key}/sensitivity", np.ones(3), r"is \[3\]; expected \[2\]"),
        (f"{LAYER.key}/sensitivity", -np.ones(2), "holds numbers below 0"),
    ],
)
def test_what_no_profile_holds_is_refused(name, array, message, tmp_path):
    head = dataclasses.replace(HEAD, inputs=["ids", "mask"], output="logits")
    with pytest.raises(MoecError, match=message):
        written(tmp_path / "p", head, [(name, array)]).array(name)


def test_sensitivities_of_merged_profiles_are_means_over_their_tokens(tmp_path):
    """300 tokens of 1 and 100 of 2."""
    profiles = []
    for name, tokens, sensitivity in (("one", 300, 1.0), ("two", 100, 2.0)):
        head = dataclasses.replace(HEAD, layers=[dataclasses.replace(LAYER, tokens=tokens)])
        arrays = [*ARRAYS, (f"{LAYER.key}/sensitivity", np.full(2, sensitivity))]
        profiles.append(written(tmp_path / name, head, arrays))
    merge(tmp_path / "both", profiles)
    (layer,) = Profile.read(tmp_path / "both").all_experts()
    assert layer.sensitivity.tolist() == [1.25, 1.25]


def test_merging_adds_counts_and_selects_rows(tmp_path):
    first = written(tmp_path / "one")
    two = written(tmp_path / "two", arrays=[(name, array + 4) for name, array in ARRAYS])
    merge(tmp_path / "both", [first, two])
    both = Profile.read(tmp_path / "both")
    (layer,) = both.all_experts()
    assert layer.tokens == 6
    assert layer.count.tolist() == [6, 8]
    assert len(layer.rows(0)) == 1
    assert [piece["tokens"] for piece in both.head.data] == [3, 3]


def test_errors_of_merged_profiles_are_of_the_rows_that_are_kept(tmp_path):
    """400 tokens with 2 rows kept, and 100 with 1 kept: the mean error of all is 0.8 of the first and 0.2 of the
    other."""
    profiles = []
    for name, count, kept, error in (("one", 400, 2, 6.0), ("two", 100, 1, 8.0)):
        arrays = {
            "count": np.array([count, 0]), "error/int4": np.array([[error, 0], [0, 0]]), "rows/0": np.zeros((kept, 2)),
            "rows/1": np.zeros((0, 2)), "energy": np.array([error, 0]),
        }  # fmt: skip
        keyed = [(f"{LAYER.key}/{name}", array) for name, array in arrays.items()]
        profiles.append(written(tmp_path / name, arrays=keyed))
    merge(tmp_path / "both", profiles)
    (layer,) = Profile.read(tmp_path / "both").all_experts()
    assert len(layer.rows(0)) == 2
    assert layer.error("int4").tolist() == [[2 * (0.8 * 3 + 0.2 * 8), 0], [0, 0]]
    assert layer.array("energy").tolist() == [8, 0]


def test_a_profile_of_the_version_before_is_read(tmp_path):
    head = dataclasses.replace(HEAD, version=1)
    assert written(tmp_path / "one", head).head == head
    merge(tmp_path / "both", [Profile.read(tmp_path / "one"), written(tmp_path / "two", head)])
    assert Profile.read(tmp_path / "both").head.version == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passes": "O1"}, r"two: its passes are 'O1', those of .*one are 'O2'"),
        (
            {"model": {"name": "n.onnx", "sha256": "22"}},
            r"two: was measured on n\.onnx of SHA-256 22, .*one on .*; merge profiles of one model",
        ),
        ({"version": 1}, r"two: is of version 1, .*one of version 3; make the older anew"),
        ({"layers": []}, r"two: has other layers than"),
    ],
)
def test_profiles_of_something_else_do_not_merge(changes, message, tmp_path):
    first = written(tmp_path / "one")
    two = written(tmp_path / "two", Head(**{**HEAD.__dict__, **changes}), [])
    with pytest.raises(MoecError, match=message):
        merge(tmp_path / "both", [first, two])
    assert not (tmp_path / "both").exists()


def test_no_file_of_another_is_replaced(tmp_path):
    (tmp_path / "p").write_text("mine")
    with pytest.raises(MoecError, match="did not write"):
        write_profile(tmp_path / "p", HEAD, ARRAYS)
    assert (tmp_path / "p").read_text() == "mine"
    written(tmp_path / "q")
    written(tmp_path / "q")


def archive(path, head, compression=zipfile.ZIP_STORED, **entries):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("profile.json", head if isinstance(head, str) else json.dumps(head))
        for name, data in entries.items():
            file.writestr(f"0123456789abcdef/{name}.npy", data)


def head_of(**changes):
    return {**dataclasses.asdict(HEAD), "layers": [{**dataclasses.asdict(LAYER), **changes}]}


def test_what_is_no_profile_is_refused(tmp_path):
    path = tmp_path / "p"
    with pytest.raises(MoecError, match="cannot be read: No such file"):
        Profile.read(path)
    path.write_text("text")
    with pytest.raises(MoecError, match="is not a profile; make one with moec profile"):
        Profile.read(path)
    for head, message in [
        ("{", "is not a profile"),
        ([], "is not a profile"),
        ({"version": 0}, "version 0; this moec reads versions 1 to 3"),
        ({"version": True, "layers": []}, "is not a profile"),
        (
            {**dataclasses.asdict(HEAD), "layers": [{**dataclasses.asdict(LAYER), "of": 1}]},
            r"layers\[0\] has the unknown field 'of'",
        ),
        (
            {**dataclasses.asdict(HEAD), "layers": [{**dataclasses.asdict(LAYER), "kind": "?"}]},
            "kind is .*; expected experts or linear",
        ),
        (head_of(kind="linear"), "a linear without"),
    ]:
        archive(path, head)
        with pytest.raises(MoecError, match=message):
            Profile.read(path)
    archive(path, "{}", zipfile.ZIP_DEFLATED)
    with pytest.raises(MoecError, match="compressed"):
        Profile.read(path)


def test_damaged_arrays_are_named(tmp_path):
    head = json.loads(zipfile.ZipFile(written(tmp_path / "good").path).read("profile.json"))
    archive(tmp_path / "p", head, count=b"\x93NUMPY\x01\x00")
    (layer,) = Profile.read(tmp_path / "p").all_experts()
    with pytest.raises(MoecError, match="the array 0123456789abcdef/count is damaged"):
        _ = layer.count


def test_triangles():
    matrix = np.array([[1.0, 2, 4], [2, 3, 5], [4, 5, 6]])
    assert packed(matrix).tolist() == [1, 2, 3, 4, 5, 6]
    assert unpacked(packed(matrix), 3).tolist() == matrix.tolist()
