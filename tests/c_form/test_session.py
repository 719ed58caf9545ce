"""Sessions of C libraries: the bits of Python's sessions, prompts in parts, copies, and states of every kind."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import onnx.parser
import pytest

import moec
from moec.common.dtypes import dtype_of
from moec.common.errors import InputError
from moec.compiling.compile_options import CompileOptions

from .building import SANITIZERS, built, run
from .library import ARGUMENT, INPUT, UNSUPPORTED, CError, CLibrary, CSession, same_bits

HEADER = '<ir_version: 10, opset_import: ["" : 24, "moec" : 1]>\ngraph '
WORDS = 5
TABLE = ",".join(str(round(np.sin(3 * n), 3)) for n in range(4 * WORDS))
BODY = "e = Gather (table, ids) x = Unsqueeze (e, one) "
CACHE = "{0}[B,1,P,4] k, {0}[B,1,P,4] v"
GROWN = "{0}[B,1,R,4] pk, {0}[B,1,R,4] pv"
MODELS = {
    "attending": (
        f"int64[B,S] ids, int64[B,M] attention_mask, {CACHE.format('float')}",
        f"float[B,S,4] logits, {GROWN.format('float')}",
        BODY + "seen = Cast <to = 9> (attention_mask) mask = Unsqueeze (seen, places) "
        "y, pk, pv = Attention <is_causal = 1> (x, x, x, mask, k, v) logits = Squeeze (y, one)",
    ),
    "recurrent": (
        "int64[B,S] ids, float[B,1,4] kept",
        "float[B,S,4] logits, float[B,1,4] next",
        "e = Gather (table, ids) sum = ReduceSum <keepdims = 1> (e, one) next = Add (kept, sum) "
        "so_far = CumSum (e, axis) logits = Add (so_far, kept)",
    ),
    "stateless": (
        "int64[B,S] ids, int64[B,S] position_ids",
        "float[B,S,4] logits",
        "e = Gather (table, ids) p = Cast <to = 1> (position_ids) q = Unsqueeze (p, two) "
        "so_far = CumSum (e, axis) logits = Add (so_far, q)",
    ),
    "masked": (
        "int64[B,S] ids, float[B,S] attention_mask, int64[B,S] position_ids",
        "float[B,S,4] logits",
        "e = Gather (table, ids) p = Cast <to = 1> (position_ids) q = Unsqueeze (p, two) "
        "m = Unsqueeze (attention_mask, two) kept = Mul (e, m) so_far = CumSum (kept, axis) logits = Add (so_far, q)",
    ),
    "narrow": (
        "int64[B,S] ids, bfloat16[B,P,4] past",
        "float[B,S,4] logits, bfloat16[B,R,4] present",
        "e = Gather (table, ids) narrow = Cast <to = 16> (e) present = Concat <axis = 1> (past, narrow) "
        "wide = Cast <to = 1> (present) total = ReduceSum <keepdims = 1> (wide, one) logits = Add (e, total)",
    ),
    "room": (
        "int64[B,S] ids, int64[B] write_indices, float[B,C,4] cache",
        "float[B,S,4] logits, float[B,C,4] next",
        "e = Gather (table, ids) next = TensorScatter <axis = 1> (cache, e, write_indices) "
        "s = ReduceSum <keepdims = 1> (next, one) logits = Add (e, s)",
    ),
}
STATES = ["attending", "recurrent", "stateless", pytest.param("narrow", marks=pytest.mark.nightly)]


def graph(name: str) -> onnx.ModelProto:
    inputs, outputs, body = MODELS[name]
    constants = f"float[{WORDS},4] table = {{{TABLE}}}, int64[1] one = {{1}}, int64[2] places = {{1, 2}}, "
    text = f"{HEADER}({inputs}) => ({outputs}) <{constants}int64[1] two = {{2}}, int64 axis = {{1}}> {{{body}}}"
    return onnx.parser.parse_model(text)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], tuple[CLibrary, moec.CompiledModel]]:
    """``made(name)``: a model of :data:`MODELS` as a library and in Python, compiled when it is first asked for."""
    folder, models = tmp_path_factory.mktemp("c"), {}

    def make(name: str, passes: str | None = None) -> tuple[CLibrary, moec.CompiledModel]:
        key, place = (name, passes), folder / str(len(models)) / name
        if key not in models:
            place.parent.mkdir()
            moec.compile(graph(name), output=place, form="c", passes=passes)
            models[key] = CLibrary(place), moec.load(place)
        return models[key]

    return make


def ids_of(batch: int, count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, WORDS, (batch, count))


@pytest.mark.parametrize("name", STATES)
def test_a_prompt_in_parts_and_tokens_one_by_one_have_the_bits_of_python(made, name):
    library, python = made(name)
    for batch, threads in ((1, 2), (2, 1)):
        ids, expected = ids_of(batch, 600), python.session(batch=batch)
        with library.loaded(threads) as model, model.session(batch=batch) as session:
            for start, end in ((0, 300), (300, 301), (301, 302), (302, 600)):
                part = ids[:, start:end]
                assert same_bits(session.run(part, last=2), expected.run(part, last=2))
            assert session.length == expected.length == 600
            assert same_bits(session.run(part, last=0), expected.run(part, last=None))


@pytest.mark.parametrize("name", STATES)
def test_copies_go_their_own_ways(made, name):
    library, python = made(name)
    with library.loaded() as model, model.session() as session:
        session.run([1, 2])
        with session.fork() as other:
            first, second = session.run([3]), other.run([4])
            assert session.length == other.length == 3
        assert same_bits(first, session_of(python, [1, 2]).run([3]))
        assert same_bits(second, session_of(python, [1, 2]).run([4]))


def session_of(python: moec.CompiledModel, ids: list[int], **options: int) -> moec.Session:
    session = python.session(**options)
    session.run(ids)
    return session


@pytest.mark.parametrize("name", STATES)
def test_tokens_are_forgotten_where_they_can_be(made, name):
    library, python = made(name)
    with library.loaded() as model, model.session() as session:
        session.run([1, 2, 3])
        if name == "recurrent":
            with pytest.raises(CError, match="cannot be truncated: each run replaces state 'kept'") as refused:
                session.truncate(1)
            assert refused.value.number == UNSUPPORTED and session.length == 3
            return
        session.truncate(1)
        assert same_bits(session.run([4]), session_of(python, [1]).run([4]))
        with pytest.raises(CError, match="truncate to 3 tokens; expected 0 to 2"):
            session.truncate(3)
        session.truncate(0)
        assert same_bits(session.run([4, 0]), python.session().run([4, 0]))


def test_states_with_room(made):
    library, python = made("room")
    with library.loaded() as model:
        with pytest.raises(CError, match="as many tokens as it is told; give max_tokens") as refused:
            model.session().__enter__()
        assert refused.value.number == ARGUMENT
        with model.session(max_tokens=3) as session:
            session.run([1, 2])
            with session.fork() as other:
                other.truncate(1)
                expected = session_of(python, [1], max_tokens=3)
                assert same_bits(other.run([2, 3], last=0), expected.run([2, 3], last=None))
            assert same_bits(session.run([3]), session_of(python, [1, 2], max_tokens=3).run([3]))
            with pytest.raises(CError, match=r"hold 4 tokens \(3 and 1 new ones\), and its max_tokens is 3"):
                session.run([1])


@pytest.mark.parametrize(
    ("name", "passes", "stored"),
    [
        ("attending", None, "float32"),
        pytest.param("attending", "O2,cast-states{dtype=int8}", "int8", marks=pytest.mark.nightly),
        pytest.param("narrow", None, "bfloat16", marks=pytest.mark.nightly),
        pytest.param("attending", "O2,cast-states{dtype=fp16}", "float16", marks=pytest.mark.nightly),
    ],
)
def test_runs_that_are_given_states_return_them(made, name, passes, stored):
    """States in pages, in other types than the pages have, and in int8 with a scale per row."""
    library, python = made(name, passes)
    assert {state.dtype for state in python._executor.held} == {stored}
    values: dict[str, np.ndarray] = {}
    for spec in python.inputs:
        shape = [{"B": 2, "P": 7, "S": 3, "M": 10}.get(str(size), size) for size in spec.shape]
        values[spec.name] = np.random.default_rng(1).normal(size=shape).astype(dtype_of(spec.dtype))
    ordinary = {"ids": ids_of(2, 3), "attention_mask": np.ones((2, 10), np.int64)}
    values |= {key: array for key, array in ordinary.items() if key in values}
    with library.loaded() as model:
        found, expected = model.run(values), python.run(values)
    assert all(same_bits(found[output], expected[output]) for output in expected)


@pytest.mark.parametrize("name", STATES)
def test_what_cannot_be_run_leaves_the_session_as_it_was(made, name):
    library, python = made(name)
    with library.loaded() as model, model.session(max_tokens=4) as session:
        session.run([1, 2])
        for ids, message in (
            ([1, 2, 3], "would hold 5 tokens"),
            ([WORDS], f"token id {WORDS} is outside of the vocabulary; expected 0 to {WORDS - 1}"),
            ([-1], "token id -1 is outside"),
            ([], "0 token ids are given; expected 1 or more"),
        ):
            with pytest.raises(CError, match=message) as refused:
                session.run(ids)
            assert refused.value.number == INPUT
        assert session.length == 2
        assert same_bits(session.run([3]), session_of(python, [1, 2], max_tokens=4).run([3]))


PADDED = [
    ([[1, 2, 3, 4], [0, 0, 3, 1]], [[1, 1, 1, 1], [0, 0, 1, 1]]),
    ([[2, 1], [4, 3]], None),
    ([[0, 1, 3], [1, 2, 4]], [[0, 1, 1], [0, 0, 1]]),
]
"""Token ids and masks of runs that follow one another."""


@pytest.mark.parametrize("name", ["attending", pytest.param("masked", marks=pytest.mark.nightly)])
def test_rows_of_different_lengths(made, name):
    """Padding of earlier runs is kept, forgotten with its tokens, and copied."""
    library, python = made(name)
    with library.loaded() as model, model.session(batch=2) as session:
        expected = python.session(batch=2)

        def check_run(actual: CSession, ids: list[list[int]], mask: list[list[int]] | None, last: int) -> None:
            inputs = {} if mask is None else {"attention_mask": np.array(mask)}
            assert same_bits(actual.run(np.array(ids), last, mask), expected.run(ids, last=last or None, **inputs))

        for ids, mask in PADDED:
            check_run(session, ids, mask, 0)
        with session.fork() as other:
            for each in (other, expected):
                each.truncate(5)
            check_run(other, *PADDED[2], 1)
        expected = python.session(batch=2)
        for each in (session, expected):
            each.truncate(0)
        check_run(session, *PADDED[1], 1)


def test_padding_that_a_model_cannot_leave_out(made):
    library, _ = made("stateless")
    with library.loaded() as model, model.session() as session:
        with pytest.raises(CError, match="takes no attention mask; give each row a session") as refused:
            session.run([1, 2], mask=[[0, 1]])
        assert refused.value.number == UNSUPPORTED and session.length == 0


@pytest.mark.nightly
def test_masks_whose_ones_are_counted(tmp_path):
    """A model of onnxruntime's GroupQueryAttention takes padding on the right, in the first run alone."""
    text = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
    g (int64[B,S] input_ids, int64[B,M] attention_mask, float[B,1,P,8] past_k, float[B,1,P,8] past_v)
        => (float[B,S,8] logits, float[B,1,R,8] present_k, float[B,1,R,8] present_v) <
        float[5,8] table = {VALUES}, int64[1] axis = {1}, int64 one = {1}, int64 length = {1}> {
        e = Gather (table, input_ids)
        sums = ReduceSum <keepdims = 1> (attention_mask, axis)  less = Sub (sums, one)  lengths = Cast <to = 6> (less)
        shape = Shape (attention_mask)  size = Gather (shape, length)  total = Cast <to = 6> (size)
        logits, present_k, present_v = com.microsoft.GroupQueryAttention <num_heads = 1, kv_num_heads = 1>
            (e, e, e, past_k, past_v, lengths, total)
    }""".replace("VALUES", ", ".join(str(at % 7 / 4) for at in range(40)))
    moec.compile(onnx.parser.parse_model(text), output=tmp_path / "counted", form="c")
    python, library = moec.load(tmp_path / "counted"), CLibrary(tmp_path / "counted")
    ids, right, left = [[1, 2, 3], [4, 0, 0]], [[1, 1, 1], [1, 0, 0]], [[1, 1, 1], [0, 0, 1]]
    with library.loaded() as model, model.session(batch=2) as session:
        expected = python.session(batch=2)
        with pytest.raises(InputError, match="pad on the right"):
            expected.run(ids, attention_mask=np.array(left))
        with pytest.raises(CError, match="pad on the right and in the first run alone") as refused:
            session.run(np.array(ids), mask=left)
        assert refused.value.number == INPUT
        first = expected.run(ids, last=None, attention_mask=np.array(right))
        assert same_bits(session.run(np.array(ids), 0, right), first)
        with pytest.raises(CError, match="pad on the right and in the first run alone"):
            session.run(np.array([[1, 2], [3, 0]]), mask=[[1, 1], [1, 0]])
        assert same_bits(session.run(np.array([[1], [3]])), expected.run([[1], [3]]))


EXAMPLES = pathlib.Path(__file__).parent.parent.parent / "examples"
PROMPT = [1, 2, 3]


def generated(python: moec.CompiledModel, count: int) -> list[int]:
    """The tokens with the largest logits, one after the other."""
    session, tokens, new = python.session(), [], PROMPT
    for _ in range(count):
        new = [int(session.run(new)[0, -1].argmax())]
        tokens += new
    return tokens


def test_the_example_generates_what_a_session_of_python_does(made, tmp_path):
    library, python = made("attending")
    text = (EXAMPLES / "c" / "generate.c").read_text().replace("char_lm", "attending")
    program = built(tmp_path, text, library.weights.parent)
    said = run([program, library.weights, "300", *map(str, PROMPT)])
    assert list(map(int, said.split())) == generated(python, 300)
    refused = subprocess.run([program, library.weights, "3", "77"], capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "error: token id 77 is outside of the vocabulary; expected 0 to 4\n"


ARM = ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objcopy", "qemu-aarch64")


@pytest.mark.skipif(any(shutil.which(tool) is None for tool in ARM), reason=f"needs {', '.join(ARM)}")
def test_a_library_for_aarch64_generates_the_same_where_it_can_run(made, tmp_path):
    _, python = made("attending")
    place = tmp_path / "attending"
    moec.compiling.compiler.write(graph("attending"), place, CompileOptions(target="cpu:neondotprod", form="c"))
    text = (EXAMPLES / "c" / "generate.c").read_text().replace("char_lm", "attending")
    program = built(tmp_path, text, place, compiler=ARM[0], options=["-static"])
    arguments = [program, place / "weights.bin", "20", *map(str, PROMPT)]
    said = run([ARM[2], *arguments])
    assert list(map(int, said.split())) == generated(python, 20)
    refused = subprocess.run([ARM[2], "-cpu", "cortex-a53", *arguments], capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "was compiled for a processor with asimddp, which this one lacks" in refused.stderr


@pytest.mark.parametrize("watched", [None, *(pytest.param(name, marks=pytest.mark.nightly) for name in SANITIZERS)])
def test_calls_that_are_wrong_or_at_the_edge(made, tmp_path, watched):
    """``attack.c``; with sanitizers, the runtime is compiled with them, too."""
    library, _ = made("attending")
    (tmp_path / "cut.bin").write_bytes(library.weights.read_bytes()[:-1])
    (tmp_path / "other.bin").write_bytes(library.weights.read_bytes()[::-1])
    text = (pathlib.Path(__file__).with_name("attack.c")).read_text()
    options = [] if watched is None else SANITIZERS[watched]
    program = built(tmp_path, text, library.weights.parent, options=options, from_sources=bool(options))
    run([program, library.weights, tmp_path / "cut.bin", tmp_path / "other.bin", "1000"])


@pytest.mark.nightly
def test_the_commands_of_the_example(tmp_path):
    """README.md of examples/c, as a reader would run it, and its CMake file."""
    place = shutil.copytree(EXAMPLES, tmp_path / "examples") / "c"
    blocks: Sequence[str] = re.findall(r"```bash\n(.*?)```", (place / "README.md").read_text(), re.DOTALL)
    commands = "\n".join(["set -e", *blocks, "cmake -B build && cmake --build build"])
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", commands], cwd=place, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    first = run([place / "generate", place / "char_lm" / "weights.bin", "20", "5", "17", "42"])
    again = run([place / "build" / "generate", place / "char_lm" / "weights.bin", "20", "5", "17", "42"])
    assert first == again and done.stdout.count(first) == 2  # on AArch64, too
