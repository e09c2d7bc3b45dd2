"""Rows of varying length: what a model may declare, how rows share a batch, and what is cut off again."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from broker_builders import Bench, put, source
from hypothesis import given
from hypothesis import strategies as st
from padded_models import EACH, KINDS, MASK, OUTPUTS, POOLED, SPECS, TOKENS, answers, layout, model, tokens
from worker_builders import item

from broker.batcher import BATCH_BYTES_MAX, VariantQueue
from broker.catalog import Candidate, Catalog, Matched, Target, match_inputs
from broker.core import Reply, Send
from broker.gathering import fitting
from broker.ledger import Address, Entry
from broker.prices import PriceRange, Prices
from broker.profiles import LatencyTable
from broker.selector import Chosen, Selector
from modelless import frames
from modelless.catalog import digest_of, read_model
from modelless.codec import decode_reply, encode_record
from modelless.errors import ConfigurationError, DecodeError
from modelless.frame_codec import decode_frame, encode_frame
from modelless.frames import BatchTensor
from modelless.messages import BatchTime, Labels, LengthTimes, ModelVersion, Profile, Query
from modelless.padding import PADDED_BYTES_MAX, layout_of
from modelless.tensors import NUMPY_DTYPES, Padding, Tensor, TensorSpec
from workers import replies, rows
from workers.device_queue import Part, Run

VARIANT = "m:1/onnx-fp32"
TASK: dict[str, Any] = {"task": "t", "latency_ms_max": 1000.0}


def profile(of: ModelVersion, builder: str = "onnx-fp32", scale: float = 1.0) -> Profile:
    """A row of 16 takes 8 ms, one of 8 takes 4, one of 4 takes 2; up to eight of them no longer."""

    def times(ms: float) -> tuple[BatchTime, ...]:
        return BatchTime(1, scale * ms, 2 * scale * ms), BatchTime(8, scale * ms, 2 * scale * ms)

    lengths = (LengthTimes(4, times(2.0)), LengthTimes(8, times(4.0)))
    return Profile(f"{of.key}/{builder}", "cpu", "ready", of.digest, accuracy=0.9, batches=times(8.0), lengths=lengths)


class Padded(Bench):
    """A core with the padded model, and a worker that has it."""

    def __init__(self, of: ModelVersion | None = None, described: Profile | None = None) -> None:
        of = of or model()
        super().__init__((of, [described or profile(of)]))
        self.loaded = self.worker(VARIANT)
        self._offset = 0

    def ask(self, *inputs: Tensor, now_ms: float = 0.0, name: str = "q", **asked: Any) -> Entry:
        self._offset += 1
        query = Query(id=name, inputs=inputs, **(asked or TASK))
        latency_ms = query.latency_ms_max or 1000.0
        deadline_ms = now_ms + latency_ms
        rows = inputs[0].shape[0]
        address = Address(query.id, "modelless.replies", None, "msgpack")
        record = source(b"", 1000 + self._offset, now_ms)
        made = Entry(record, query, address, rows, 100, deadline_ms, deadline_ms, deadline_ms)
        assert self.core.ledger.arrived(made.record)
        self.core.admit(made, now_ms)
        return made

    def batches(self, now_ms: float = 0.0) -> list[frames.Batch]:
        return [each.batch for each in self.poll(now_ms) if isinstance(each, Send)]

    def refusal(self) -> str:
        (told,) = [each for each in self.poll() if isinstance(each, Reply)]
        assert told.status == "INVALID_ARGUMENT"
        return told.message


def array(tensor: BatchTensor | Tensor) -> np.ndarray[Any, Any]:
    return np.frombuffer(tensor.data, NUMPY_DTYPES[tensor.datatype]).reshape(tensor.shape)


# --- what may be declared -----------------------------------------------------------------------------------------


def test_without_padding_there_is_no_layout() -> None:
    assert layout_of((TensorSpec("x", "FP32", (-1, -1)),), (POOLED,)) is None


def of(spec: TensorSpec, **changes: Any) -> TensorSpec:
    assert spec.padding is not None
    return replace(spec, padding=replace(spec.padding, **changes))


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ((of(TOKENS, lengths=(8, 4)), MASK), (), r"inputs\.tokens\.padding\.lengths: must be ascending"),
        ((of(TOKENS, lengths=(4, 4)), MASK), (), "must be ascending"),
        ((of(TOKENS, lengths=(0, 4)), MASK), (), "from 1 to"),
        ((of(TOKENS, lengths=(4, 2**30)), MASK), (), "from 1 to"),
        ((of(TOKENS, lengths=tuple(range(1, 40))), MASK), (), "at most 32, got 39; each is measured"),
        ((of(TOKENS, lengths=()), MASK), (), "give either lengths or follows"),
        ((of(TOKENS, follows="tokens"), MASK), (), "give either lengths or follows"),
        ((of(TOKENS, axis=0), MASK), (), r"padding\.axis: must be that of a free dimension \(-1\) after the batch"),
        ((of(TOKENS, axis=2), MASK), (), "padding.axis: .*got 2"),
        ((replace(TOKENS, shape=(-1, 16)), MASK), (), "free dimension"),
        ((of(TOKENS, value=0.5), MASK), (), r"padding\.value: must be a finite number that INT64 can hold, got 0\.5"),
        ((of(TOKENS, value=float("nan")), MASK), (), "finite number"),
        ((of(TOKENS, value=2.0**60), MASK), (), "that INT64 can hold"),
        ((TOKENS, MASK, of(KINDS, value=200.0)), (), r"inputs\.kinds\.padding\.value: .*INT8"),
        ((TOKENS, MASK, of(KINDS, follows="mask")), (), r"kinds\.padding\.follows: must be an input whose padding has"),
        ((TOKENS, MASK, of(KINDS, mask="mask")), (), "mask and own_lengths go with lengths"),
        ((TOKENS, MASK, of(KINDS, follows=None, lengths=(4,))), (), "inputs.tokens has lengths already"),
        ((TOKENS,), (), r"padding\.mask: must be one of the inputs, tokens, got 'mask'"),
        ((TOKENS, replace(MASK, shape=(-1, 1, -1))), (), r"'mask' must have shape \[-1, -1\]"),
        ((TOKENS, replace(MASK, padding=KINDS.padding)), (), "remove its own padding"),
        ((of(TOKENS, mask="tokens"),), (), "remove its own padding"),
        ((of(TOKENS, own_lengths="mask"), MASK), (), r"own_lengths: 'mask' must have shape \[-1\]"),
        (
            (of(TOKENS, mask=None, own_lengths="n", lengths=(4, 200)), TensorSpec("n", "INT8", (-1,))),
            (),
            "INT8 of 'n' cannot hold 200",
        ),
        (SPECS, (of(EACH, follows="mask"),), r"outputs\.each\.padding\.follows"),
        (SPECS, (of(EACH, follows=None, lengths=(4,)),), r"outputs\.each\.padding: give follows"),
        (SPECS, (of(EACH, value=1.0),), "an output is only cut"),
        (SPECS, (of(EACH, axis=2),), r"outputs\.each\.padding\.axis"),
        ((MASK,), (EACH,), "must be an input whose padding has lengths, got 'tokens'"),
    ],
)
def test_what_does_not_go_together_is_refused_by_the_field(inputs: Any, outputs: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        layout_of(inputs, outputs)


# --- rows of one batch --------------------------------------------------------------------------------------------


@st.composite
def padded_inputs(draw: st.DrawFn) -> tuple[TensorSpec, list[np.ndarray[Any, Any]]]:
    """An input of any datatype with a padded axis anywhere, and what several queries send."""
    ndim = draw(st.integers(2, 4))
    axis = draw(st.integers(1, ndim - 1))
    shape = [-1, *(draw(st.integers(1, 3)) for _ in range(ndim - 1))]
    shape[axis] = -1
    datatype = draw(st.sampled_from(sorted(NUMPY_DTYPES)))
    value = draw(st.integers(0, 1))
    spec = TensorSpec("x", datatype, tuple(shape), Padding(axis, (2, 5, 9), float(value)))
    arrays = []
    for seed in range(draw(st.integers(1, 4))):
        own = (draw(st.integers(1, 3)), *shape[1:axis], draw(st.integers(1, 9)), *shape[axis + 1 :])
        arrays.append(np.random.default_rng(seed).integers(0, 2, own).astype(NUMPY_DTYPES[datatype]))
    return spec, arrays


@given(padded_inputs())
def test_rows_are_padded_behind_their_own_and_nothing_else_changes(given_inputs: Any) -> None:
    spec, arrays = given_inputs
    axis, found = spec.padding.axis, layout((spec,), ())
    queries = [(Tensor.from_numpy("x", each),) for each in arrays]
    length = max(found.padded_length(found.own_length(query)) for query in queries)
    (joined,) = found.join(queries, sum(map(len, arrays)), length)
    padded = array(joined)
    assert padded.shape[axis] == length
    start = 0
    for own in arrays:
        part = np.moveaxis(padded[start : start + len(own)], axis, -1)
        assert np.array_equal(part[..., : own.shape[axis]], np.moveaxis(own, axis, -1))
        assert (part[..., own.shape[axis] :] == spec.padding.value).all()
        start += len(own)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 16)), min_size=1, max_size=6))
def test_an_answer_with_padding_is_that_of_the_rows_alone(queries: list[tuple[int, int]]) -> None:
    """From the query to its reply, through batches of two brokers that run as one, with a masked model between."""
    benches = Padded(), Padded()
    alone, told = dict[str, Any](), dict[str, Any]()
    for seed, (count, length) in enumerate(queries):
        sent = tokens(length, count, seed)
        asked = benches[seed % 2].ask(sent, name=f"q{seed}")
        alone[asked.query.id] = answers(array(sent), np.ones(sent.shape, "f4"))
    while parts := [arrived(link, batch) for link, bench in enumerate(benches) for batch in bench.batches()]:
        parts.sort(key=lambda part: part.batch.length)
        for _, shared in groupby(parts, key=lambda part: rows.kind(part.batch)):
            run = Run(tuple(shared), 0.0)
            pooled, each = answers(*map(array, run.inputs))
            outputs = [
                BatchTensor("pooled", "FP32", pooled.shape, pooled.tobytes()),
                BatchTensor("each", "FP32", each.shape, each.tobytes()),
            ]
            for own in replies.of_run(run, outputs, 1.0, replies.Author("cpu", 0.0), 0.0):
                told |= {reply.item.id: decode_reply(reply.value) for reply in own}
        for part in parts:
            bench = benches[part.link]
            bench.answer(bench.loaded, part.batch, 0.0)
    assert told.keys() == alone.keys()
    for name, (pooled, each) in alone.items():
        assert np.allclose(array(told[name].outputs[0]), pooled, atol=1e-5)
        assert told[name].outputs[1].shape == each.shape
        assert np.array_equal(array(told[name].outputs[1]), each)


def arrived(link: int, sent: frames.Batch) -> Part:
    batch = decode_frame(encode_frame(sent))
    assert isinstance(batch, frames.Batch)
    assert rows.check(batch) is None
    return Part(link, batch, tuple(range(len(batch.items))))


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 8)), min_size=2, max_size=6), st.data())
def test_a_piece_of_a_padded_batch_is_cut_as_the_whole_is(counts: list[tuple[int, int]], data: st.DataObject) -> None:
    """What quarantine and bisection run again: each item keeps its own length."""
    items = tuple(item(i, rows=count)._replace(length=length) for i, (count, length) in enumerate(counts))
    total = sum(count for count, _ in counts)
    each = np.arange(total * 8 * 3, dtype="f4").reshape(total, 8, 3)
    batch = frames.Batch(1, VARIANT, 0.9, 1.0, items, (BatchTensor("each", "FP32", each.shape, each.tobytes()),),
                         length=8, cuts=((0, 1),))  # fmt: skip
    chosen = sorted(data.draw(st.sets(st.integers(0, len(counts) - 1), min_size=1)))
    piece = [items[index] for index in chosen]
    gathered = rows.gather(batch, chosen)
    starts = np.cumsum([0, *(count for count, _ in counts)])
    for index, (part,) in zip(chosen, rows.split(gathered, piece, batch.cuts), strict=True):
        count, length = counts[index]
        expected = each[starts[index] : starts[index] + count, :length]
        assert np.array_equal(np.frombuffer(part, "f4").reshape(count, length, 3), expected)
    classes = rows.predictions(gathered, piece, batch.cuts)
    assert [len(own) for own in classes] == [counts[index][0] * counts[index][1] for index in chosen]


# --- queues -------------------------------------------------------------------------------------------------------


def test_rows_that_are_padded_to_one_length_share_a_batch() -> None:
    bench = Padded()
    bench.ask(tokens(8))
    assert len(bench.batches()) == 1  # nothing waited
    for length in (5, 8, 6, 3, 4):
        bench.ask(tokens(length))
    bench.answer(bench.loaded, first_sent(bench), 0.0)
    shared = bench.batches()[0]
    assert [one.length for one in shared.items] == [5, 8, 6]
    assert (shared.length, shared.cuts) == (8, ((1, 1),))
    assert [(tensor.name, tensor.shape) for tensor in shared.inputs] == [("tokens", (3, 8)), ("mask", (3, 8))]
    assert array(shared.inputs[1]).sum(axis=1).tolist() == [5, 8, 6]
    assert (array(shared.inputs[0])[0, 5:] == 0).all()


def first_sent(bench: Padded) -> frames.Batch:
    (number,) = bench.loaded.sent
    items = tuple(item(0)._replace(record=record) for record in bench.loaded.sent[number].entries)
    return frames.Batch(number, VARIANT, 0.9, 1.0, items, ())


def test_a_mask_that_is_sent_is_kept_and_padded() -> None:
    bench = Padded()
    own = Tensor.from_numpy("mask", np.array([[1, 0, 1]], "f4"))
    bench.ask(tokens(3), own)
    (batch,) = bench.batches()
    assert array(batch.inputs[1]).tolist() == [[1, 0, 1, 0]]


def test_own_lengths_and_followers_are_made_and_padded() -> None:
    inputs = (of(TOKENS, mask=None, own_lengths="n"), KINDS, TensorSpec("n", "INT32", (-1,)))
    bench = Padded(model(inputs=inputs))
    bench.ask(Tensor.from_numpy("kinds", np.array([[1, 2, 3]] * 2, "i1")), tokens(3, 2))
    (batch,) = bench.batches()
    assert [tensor.name for tensor in batch.inputs] == ["tokens", "kinds", "n"]
    assert array(batch.inputs[1]).tolist() == [[1, 2, 3, -1]] * 2
    assert array(batch.inputs[2]).tolist() == [3, 3]


def test_lat_is_that_of_the_length() -> None:
    for length, cost_ms in ((3, 2.0), (8, 4.0), (9, 8.0)):
        bench = Padded()
        bench.ask(tokens(length))
        (batch,) = bench.batches()
        assert batch.cost_ms == cost_ms


def test_one_length_slower_than_profiled_is_believed_of_all() -> None:
    bench = Padded()
    slow = frames.VariantState(VARIANT, "ready", 0, ((8, 12.0),) * 100, 800, 1200.0, (8,) * 100)
    bench.core.frame(bench.loaded, frames.State((slow,), 0, 0.0, 1), 0.0)
    candidate = bench.core.catalog.candidate(VARIANT, "cpu")
    assert candidate is not None
    assert candidate.table.scale == pytest.approx(3.0, rel=0.1)
    assert candidate.table_of(4).p50_ms(1) == pytest.approx(6.0, rel=0.1)
    assert candidate.table_of(16) is candidate.table


def test_a_profile_of_the_same_times_keeps_what_was_learned() -> None:
    catalog, of = Catalog(), model()
    put(catalog, of, profile(of))
    before = catalog.candidate(VARIANT, "cpu")
    assert before is not None
    before.table_of(8).observe(1, 8.0, 0.0)
    put(catalog, of, replace(profile(of), accuracy=0.5))
    after = catalog.candidate(VARIANT, "cpu")
    assert after is not None and after.table_of(4).scale == before.table.scale > 1
    put(catalog, of, replace(profile(of), lengths=()))
    fresh = catalog.candidate(VARIANT, "cpu")
    assert fresh is not None and fresh.table.scale == 1.0 and not fresh.tables


# --- what is sent to harm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((tokens(17),), "input 'tokens' has length 17 in dimension 1; at most 16 is taken"),
        (
            (tokens(3), Tensor.from_numpy("mask", np.ones((1, 4), "f4"))),
            "'mask' has length 4 .* which it follows, has 3",
        ),
        ((tokens(3), Tensor.from_numpy("mask", np.ones((1, 3), "f8"))), "datatype FP64"),
        ((tokens(3), Tensor.from_numpy("mask", np.ones((1, 3, 1), "f4"))), r"'mask' has shape \[1, 3, 1\]"),
        ((Tensor.from_numpy("mask", np.ones((1, 3), "f4")),), "'tokens' is missing"),
        ((Tensor.from_numpy("tokens", np.ones(3, "i8")),), r"'tokens' has shape \[3\]"),
        ((tokens(3), Tensor.from_numpy("masc", np.ones((1, 3), "f4"))), "'masc' is unknown"),
    ],
)
def test_a_query_that_does_not_fit_is_refused_with_what_is_wrong(inputs: tuple[Tensor, ...], words: str) -> None:
    bench = Padded()
    bench.ask(*inputs)
    assert re.search(words, bench.refusal())


def test_short_rows_do_not_become_any_number_of_bytes() -> None:
    wide = model(inputs=(TensorSpec("x", "UINT8", (-1, -1), Padding(1, (1_000_000,))),), outputs=(POOLED,))
    bench = Padded(wide, replace(profile(wide), batches=(BatchTime(64, 1.0, 1.0),), lengths=()))
    count = PADDED_BYTES_MAX // 1_000_000
    bench.ask(Tensor("x", "UINT8", (count + 1, 1), bytes(count + 1)))
    assert "send fewer rows in one query" in bench.refusal()
    for _ in range(4):
        bench.ask(Tensor("x", "UINT8", (count, 1), bytes(count)))
    batch = bench.batches()[0]
    assert len(batch.inputs[0].data) <= BATCH_BYTES_MAX
    assert len(batch.items) == 2


def test_a_batch_that_lies_about_lengths_is_noticed() -> None:
    inputs = (BatchTensor("x", "FP32", (2, 4), bytes(32)),)
    items = (item(1)._replace(length=4), item(2)._replace(length=2))
    good = frames.Batch(1, VARIANT, 0.9, 1.0, items, inputs, length=4, cuts=((0, 1),))
    assert rows.check(good) is None
    assert rows.check(replace(good, items=(items[0], item(2)))) is not None
    assert rows.check(replace(good, length=3)) is not None
    assert rows.check(replace(good, cuts=((0, 0),))) is not None
    assert rows.check(replace(good, cuts=((-1, 1),))) is not None
    flat = [BatchTensor("y", "INT64", (2,), bytes(16))]
    assert [len(part) for (part,) in rows.split(flat, items, ((0, 1), (7, 1)))] == [8, 8], "nothing to cut"


def test_unpadded_and_padded_siblings_share_no_queue() -> None:
    """Rows of 8 for a model that takes any length as it is, and rows of 5 that are padded to 8, look alike."""
    padded = model()
    plain = model("n", inputs=(TensorSpec("tokens", "INT64", (-1, -1)),), outputs=(POOLED,))
    catalog = Catalog()
    for each in (padded, plain):
        put(catalog, each, profile(each))
    one, other = (catalog.candidate(f"{name}:1/onnx-fp32", "cpu") for name in "mn")
    assert one is not None and other is not None
    a, b = one.match((tokens(5),)), other.match((tokens(8),))
    assert isinstance(a, Matched) and isinstance(b, Matched)
    assert a.signature != b.signature
    assert match_inputs((tokens(5),), plain.inputs) == (tokens(5),)


def test_nobody_joins_a_batch_of_another_shape() -> None:
    """Two models of a task that pad different inputs: their queues look alike, and a query may fit into one only."""
    a, b = TensorSpec("a", "FP32", (-1, -1)), TensorSpec("b", "FP32", (-1, -1))
    padding = Padding(1, (8,))
    bench = Bench()
    for name, inputs in (("m", (replace(a, padding=padding), b)), ("n", (a, replace(b, padding=padding)))):
        made = model(name, inputs, (POOLED,))
        put(bench.core.catalog, made, profile(made))
    one, other = (bench.core.catalog.candidate(f"{name}:1/onnx-fp32", "cpu") for name in "mn")
    assert one is not None and other is not None

    def inputs(a_length: int, b_length: int) -> tuple[Tensor, ...]:
        return tuple(Tensor.from_numpy(*each) for each in (("a", ones(a_length)), ("b", ones(b_length))))

    mine, theirs = one.match(inputs(5, 8)), other.match(inputs(8, 5))
    assert isinstance(mine, Matched) and isinstance(theirs, Matched)
    assert mine.signature == theirs.signature
    entry = Entry(
        source(b""), Query("q", inputs(5, 8), task="t"), Address("q", "r", None, "msgpack"), 1, 1, *[None] * 3
    )
    assert fitting(entry, VariantQueue(one, mine.signature)) == mine
    assert fitting(entry, VariantQueue(other, theirs.signature)) is None


def ones(length: int) -> Any:
    return np.ones((1, length), "f4")


def test_the_outputs_that_follow_are_known() -> None:
    found = layout(SPECS, OUTPUTS)
    assert found.cuts == ((1, 1),)
    assert not found.answers_each
    assert layout(SPECS, (EACH,)).answers_each
    assert not layout(SPECS, (TensorSpec("starts", "FP32", (-1, -1), Padding(1, follows="tokens")),)).answers_each


def test_short_rows_are_not_refused_for_what_long_ones_take() -> None:
    """A row of 16 takes 8 ms, of 4 takes 2."""
    bench = Padded()
    bench.ask(tokens(4), task="t", latency_ms_max=3.0)
    assert [batch.cost_ms for batch in bench.batches()] == [2.0]
    bench.answer(bench.loaded, first_sent(bench), 0.0)
    bench.ask(tokens(16), task="t", latency_ms_max=3.0)
    (told,) = [each for each in bench.poll() if isinstance(each, Reply)]
    assert (told.status, told.message) == (
        "FAILED_PRECONDITION",
        "the fastest variant with accuracy >= 0.88, m:1/onnx-fp32, needs 8 ms for 1 row(s)",
    )
    bench.ask(tokens(8), task="t", latency_ms_max=3.0)
    (told,) = [each for each in bench.poll() if isinstance(each, Reply)]
    assert "needs 4 ms" in told.message


@pytest.mark.parametrize("asked", [{}, {"prefer": "accuracy"}, {"prefer": "latency"}])
@pytest.mark.parametrize("rows", [1, 6])
def test_short_rows_are_chosen_for_as_if_there_were_no_longer_ones(rows: int, asked: dict[str, Any]) -> None:
    """Of a quick and an accurate variant, the longer the queue, whatever device time is worth."""

    def target(length: int) -> Target:
        """Of rows of 4 that take a quarter of the time of 16, or with the profiles of rows of ``length`` alone."""
        found = []
        for name, accuracy, ms in (("quick", 0.8, 10.0), ("accurate", 0.9, 100.0)):
            long, short = [(BatchTime(1, t, t), BatchTime(8, 4 * t, 4 * t)) for t in (ms, ms / 4)]
            table = LatencyTable(short if length else long)
            tables = {} if length else {4: LatencyTable(short, table)}
            of = model(name) if not length else replace(model(name), inputs=(replace(TOKENS, padding=None), MASK),
                                                        outputs=(POOLED,))  # fmt: skip
            found.append(Candidate(of.key, "cpu", of, accuracy, accuracy, table, 1.0, frozenset("w"), tables=tables))
        return Target("t", found)

    query = Query("q", (tokens(4, rows),), task="t", on_miss="degrade", accuracy_min=0.7, **asked)
    entry = Entry(source(b""), query, Address("q", "r", None, "msgpack"), rows, 1, 500.0, 500.0, 500.0)
    both = []
    for of in (target(0), target(4)):
        selector = Selector(0.02, Prices({"cpu": PriceRange(1e-4, 6.0)}))
        choices = [
            selector.choose(entry, of, 0.0, lambda *_, wait_ms=wait_ms: [wait_ms]) for wait_ms in range(0, 600, 5)
        ]
        both.append([each.candidate.variant if isinstance(each, Chosen) else type(each) for each in choices])
    assert both[0] == both[1]
    assert len(set(both[0])) > 1


def test_only_what_is_padded_to_the_same_length_joins_another_brokers_batch() -> None:
    bench = Padded()
    bench.core.frame(bench.loaded, frames.Backlog(100.0, 0, 0.0, True), 0.0)
    for length in (9, 3, 4):
        bench.ask(tokens(length))
    assert bench.batches() == []
    for length, joining in ((8, []), (4, [3, 4]), (16, [9])):
        bench.core.frame(bench.loaded, frames.Call(VARIANT, 8, length), 0.0)
        assert [one.length for batch in bench.batches() for one in batch.items] == joining


def test_a_target_is_as_much_quicker_as_all_of_it() -> None:
    """Where one candidate knows no lengths, or pads nothing, nothing is assumed of any."""
    catalog, padded = Catalog(), model()
    put(catalog, padded, profile(padded), profile(padded, "other", 2.0))
    target = catalog.of_version("m:1")
    assert target is not None
    assert target.stretch((tokens(4),), 1) == 4.0
    assert target.stretch((tokens(16),), 1) == target.stretch((tokens(99),), 1) == 1.0
    assert target.stretch((Tensor.from_numpy("x", np.ones((1, 2))),), 1) == 1.0
    put(catalog, padded, replace(profile(padded, "other", 2.0), lengths=()))
    assert target.stretch((tokens(4),), 1) == 1.0


def test_predictions_of_each_element_are_compared_query_by_query() -> None:
    """A shadow that pads to other lengths than what answered is compared by what was sent."""
    one = model(outputs=(EACH,))
    two = replace(one, version=2, digest="m:2", inputs=(of(TOKENS, lengths=(16,)), MASK))
    bench = Padded(one)
    put(bench.core.catalog, two, replace(profile(two), lengths=()))
    bench.core.labels("m", Labels("m", stable=1, shadow="2", shadow_weight=1.0), 0.0)
    bench.ready(bench.loaded, VARIANT, "m:2/onnx-fp32")
    bench.core.frame(bench.loaded, frames.Credit(1e6), 0.0)
    for length in (2, 3, 4):
        bench.ask(tokens(length))
    (real,) = bench.batches()
    assert (real.variant, real.length, real.predicts) == (VARIANT, 4, True)
    outcome(bench, real, *(0, 0), *(1, 1, 1), *(2, 2, 2, 2))
    (copies,) = bench.batches()
    assert (copies.shadow, copies.length, copies.cuts) == (True, 16, ((0, 1),))
    assert [one.length for one in copies.items] == [2, 3, 4]
    assert copies.inputs[0].shape == (3, 16)
    outcome(bench, copies, *(0, 0), *(1, 1, 0), *(2, 2, 2, 2))
    (served,) = [each for each in bench.core.counts.served() if each.model == "m:2/onnx-fp32"]
    assert (served.shadowed, served.agreed) == (3, 2)


def outcome(bench: Padded, batch: frames.Batch, *predictions: int) -> None:
    rows_run = len(batch.items)
    bench.core.frame(bench.loaded, frames.Outcome(batch.batch, True, 1.0, rows_run, (), True, predictions), 0.0)


# --- the registry -------------------------------------------------------------------------------------------------


def test_padding_is_part_of_what_a_version_is() -> None:
    plain = replace(model(), inputs=(replace(TOKENS, padding=None), MASK), outputs=(POOLED,))
    padded = replace(plain, inputs=SPECS)
    assert digest_of(plain) != digest_of(padded) != digest_of(replace(padded, inputs=(of(TOKENS, value=1.0), MASK)))


def test_a_record_of_what_cannot_be_padded_is_refused() -> None:
    """Its digest is right: whoever writes the registry may write anything."""
    good = replace(model(), digest=digest_of(model()))
    assert read_model("m:1", encode_record(good)) == good
    bad = replace(good, inputs=(of(TOKENS, lengths=(8, 4)), MASK))
    with pytest.raises(DecodeError, match="must be ascending"):
        read_model("m:1", encode_record(replace(bad, digest=digest_of(bad))))
