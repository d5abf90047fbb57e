"""Interruption, resuming, executors: nothing lost, nothing counted twice."""

import functools
import os
import pickle
import signal
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import study_models
import tiny
import torch

from tl_norms import studies

CORPUS = [f"w{7 + n % 50} w{7 + 3 * n % 50} , w{7 + 7 * n % 50} ." for n in range(20)]


def same(left, right) -> bool:
    """To the last bit: chunks are merged in the order of the corpus, wherever they were measured."""
    return (
        left.mean == right.mean
        and np.array_equal(left.by_layer, right.by_layer)
        and left.frequency == right.frequency
        and left.corpus == right.corpus
    )


@pytest.fixture(scope="module")
def wanted():
    return studies.mixing_ratio(study_models.bert(), CORPUS, chunk=4)


class Interrupted(Exception):
    pass


def stopping(n: int):
    yield from CORPUS[:n]
    raise Interrupted


@pytest.mark.parametrize("stop", [1, 9, 16])
def test_an_interrupted_run_goes_on_where_it_was(bert, wanted, tmp_path, stop):
    file = tmp_path / "state.npz"
    with pytest.raises(Interrupted):
        studies.mixing_ratio(bert, stopping(stop), chunk=4, resume=file)
    assert file.exists() == (stop >= 4)
    assert not list(tmp_path.glob("*.part"))
    read = []
    rest = studies.mixing_ratio(bert, (read.append(text) or text for text in CORPUS), chunk=4, resume=file)
    assert same(rest, wanted) and len(read) == len(CORPUS)
    measured = studies.mixing_ratio(study_models.bert, CORPUS, chunk=4, resume=file)  # all of it is there already
    assert same(measured, wanted)


def test_a_longer_corpus_extends_a_finished_run(bert, wanted, tmp_path):
    file = tmp_path / "state.npz"
    studies.mixing_ratio(bert, CORPUS, limit=8, chunk=4, resume=file)
    assert same(studies.mixing_ratio(bert, CORPUS, chunk=4, resume=file), wanted)


EVERY = pytest.mark.parametrize(
    "study",
    [
        studies.value_norm_dispersion,
        functools.partial(studies.weight_against_norm, exact_pairs=50),
        studies.frequency,
        studies.mixing_ratio,
        studies.contextualization_change,
        studies.amplified_pairs,
        studies.cancellation,
    ],
)


@EVERY
def test_every_study_resumes(bert, tmp_path, study):
    file = tmp_path / "state.npz"
    with pytest.raises(Interrupted):
        study(bert, stopping(6), chunk=3, resume=file)
    with np.load(file, allow_pickle=False) as arrays:
        assert "partial" in arrays
    resumed, whole = study(bert, CORPUS[:8], chunk=3, resume=file), study(bert, CORPUS[:8], chunk=3)
    assert resumed.corpus == whole.corpus and resumed.to_dataframe().equals(whole.to_dataframe())


def shares_of(n: int, study, model, folder, corpus=CORPUS, chunk=3):
    """The jobs of an array, each with a file of its own."""
    files = [folder / f"share{k}.npz" for k in range(n)]
    for k, file in enumerate(files):
        found = study(model, iter(corpus), chunk=chunk, share=(k, n), resume=file)
        assert found.corpus.n_texts == sum(number // chunk % n == k for number in range(len(corpus)))
    return files


def alike(left, right) -> bool:
    """The same tables, in whatever order sums were formed."""
    columns = list(left)
    keys = [name for name in columns if left[name].dtype.kind not in "f"]
    left, right = (one.sort_values(keys, ignore_index=True) for one in (left, right))
    return all(
        np.allclose(left[name], right[name], rtol=1e-9, equal_nan=True)
        if left[name].dtype.kind == "f"
        else left[name].equals(right[name])
        for name in columns
    )


@EVERY
def test_shares_of_every_study_give_the_whole(bert, tmp_path, study):
    """In any order; and what a job that never ran should have measured, the last call measures itself."""
    whole = study(bert, CORPUS, chunk=3)
    files = shares_of(3, study, bert, tmp_path)
    for parts in (files, files[::-1], files[1:], [files[0], *files]):
        found = study(bert, CORPUS, chunk=3, parts=parts)
        assert found.corpus == whole.corpus and alike(found.to_dataframe(), whole.to_dataframe())


def test_an_interrupted_share_goes_on_and_measures_nothing_else(bert, tmp_path):
    file, wanted = tmp_path / "share.npz", studies.frequency(bert, CORPUS, chunk=3, share=(1, 3))
    with pytest.raises(Interrupted):
        studies.frequency(bert, stopping(10), chunk=3, share=(1, 3), resume=file)
    found = studies.frequency(bert, CORPUS, chunk=3, share=(1, 3), resume=file)
    assert found.corpus == wanted.corpus and found.to_dataframe().equals(wanted.to_dataframe())


def test_all_shares_are_there_and_nothing_is_measured_again(bert, tmp_path, monkeypatch):
    whole, files = studies.frequency(bert, CORPUS, chunk=3), shares_of(4, studies.frequency, bert, tmp_path)
    monkeypatch.setattr("tl_norms.studies.engine.run.measure_chunk", lambda *given: pytest.fail("measured"))
    found = studies.frequency(bert, CORPUS, parts=(file for file in files), resume=tmp_path / "all.npz")
    assert alike(found.to_dataframe(), whole.to_dataframe())
    again = studies.frequency(bert, CORPUS, parts=tmp_path / "all.npz")
    assert again.to_dataframe().equals(found.to_dataframe())


def test_parts_of_something_else_are_refused(bert, tmp_path):
    first, second = shares_of(2, studies.frequency, bert, tmp_path)
    kept = second.read_bytes()
    with pytest.raises(studies.ResumeError, match="there is no file .*gone.npz"):
        studies.frequency(bert, CORPUS, parts=[first, tmp_path / "gone.npz"])
    with pytest.raises(studies.ResumeError, match="share0.npz.* another study"):
        studies.value_norm_dispersion(bert, CORPUS, parts=[first])
    studies.frequency(bert, CORPUS[::-1], chunk=3, share=(1, 2), resume=tmp_path / "reversed.npz")
    with pytest.raises(studies.ResumeError, match="another corpus: these are others"):
        studies.frequency(bert, CORPUS, parts=[first, tmp_path / "reversed.npz"])
    studies.frequency(bert, CORPUS, chunk=2, share=(1, 2), resume=tmp_path / "other_chunks.npz")
    with pytest.raises(studies.StudyInputError, match="share some of their texts"):
        studies.frequency(bert, CORPUS, parts=[first, tmp_path / "other_chunks.npz"])
    assert second.read_bytes() == kept  # parts are read only


@pytest.mark.parametrize("share", [(2, 2), (-1, 2), (0, 0)])
def test_shares_that_do_not_exist(bert, share):
    with pytest.raises(studies.StudyInputError, match="expected .k, n."):
        studies.frequency(bert, CORPUS, share=share)


def test_a_share_without_texts_says_so(bert):
    with pytest.raises(studies.StudyInputError, match="share 1 of 2 holds no text"):
        studies.frequency(bert, CORPUS, share=(1, 2))


@pytest.mark.parametrize(("part", "counts"), [("mlm_head", False), ("pos_embed", True), ("blocks.1.mlp", True)])
def test_a_random_head_is_no_other_model(tmp_path, part, counts):
    """A checkpoint without a head gets a random one from each loading; the blocks are the same."""
    file, model = tmp_path / "state.npz", study_models.bert()
    studies.frequency(model, CORPUS, resume=file)
    changed = [weight for name, weight in model.state_dict().items() if part in name and weight.is_floating_point()]
    assert changed
    with torch.no_grad():
        for weight in changed:
            weight.add_(1)
    if counts:
        with pytest.raises(studies.ResumeError, match="another model"):
            studies.frequency(model, CORPUS, resume=file)
    else:
        studies.frequency(model, CORPUS, resume=file)


def test_functions_with_bound_arguments_are_told_apart(bert, tmp_path):
    def types(word, tokenizer, ids):
        return [word] * len(ids)

    file = tmp_path / "state.npz"
    studies.mixing_ratio(bert, CORPUS, types=functools.partial(types, "a"), resume=file)
    with pytest.raises(studies.ResumeError, match="another study"):
        studies.mixing_ratio(bert, CORPUS, types=functools.partial(types, "b"), resume=file)


def test_a_file_of_something_else_is_refused(bert, gpt2, tmp_path):
    file = tmp_path / "state.npz"
    studies.mixing_ratio(bert, CORPUS[:4], resume=file)
    before = file.read_bytes()
    with pytest.raises(studies.ResumeError, match="another study"):
        studies.frequency(bert, CORPUS, resume=file)
    with pytest.raises(studies.ResumeError, match="another options"):
        studies.mixing_ratio(bert, CORPUS, max_length=9, resume=file)
    with pytest.raises(studies.ResumeError, match="another study|another options"):
        studies.mixing_ratio(bert, CORPUS, mask_tokens=0.12, resume=file)
    with pytest.raises(studies.ResumeError, match="another model"):
        studies.mixing_ratio(gpt2, CORPUS, resume=file)
    with pytest.raises(studies.ResumeError, match="texts of another corpus: these are others"):
        studies.mixing_ratio(bert, [CORPUS[1], *CORPUS[1:]], resume=file)
    with pytest.raises(studies.ResumeError, match="fewer"):
        studies.mixing_ratio(bert, CORPUS[:2], resume=file)
    assert file.read_bytes() == before
    for content in (b"", b"no archive", pickle.dumps({"a": 1})):
        file.write_bytes(content)
        with pytest.raises(studies.ResumeError, match="is no file of a study"):
            studies.mixing_ratio(bert, CORPUS, resume=file)


def test_threads_share_a_model(bert, wanted):
    with ThreadPoolExecutor(3) as executor:
        assert same(studies.mixing_ratio(bert, CORPUS, chunk=4, executor=executor), wanted)


class Flaky(Executor):
    """Runs in place; fails as asked, call by call, and can hand out results of chunks twice."""

    def __init__(self, failures):
        self.failures, self.calls = list(failures), 0

    def submit(self, function, /, *args, **kwargs) -> Future:
        self.calls += 1
        failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, RuntimeError):
            raise failure
        future: Future = Future()
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(args)), **kwargs))))
        return future


@pytest.mark.parametrize(
    "failures",
    [
        [],
        [OSError("worker gone")],
        [OSError("worker gone")] * 6,
        [None, RuntimeError("pool is broken"), RuntimeError("pool is broken")],
    ],
)
def test_a_failed_chunk_is_run_again(wanted, failures):
    executor = Flaky(failures)
    assert same(studies.mixing_ratio(study_models.bert, CORPUS, chunk=4, executor=executor), wanted)
    assert executor.calls >= 5


def test_a_chunk_that_fails_everywhere_is_named(bert):
    def broken(tokenizer, ids):
        if 9 in ids:
            raise ZeroDivisionError("my own function is wrong")
        return ["any"] * len(ids)

    with ThreadPoolExecutor(1) as executor, pytest.raises(studies.StudyFailedError, match="texts 4 to 7 .*my own"):
        studies.mixing_ratio(
            bert, [*["w8"] * 4, "w8", "w9", "w8", "w8", "w8"], types=broken, chunk=4, executor=executor
        )


def test_a_bridge_cannot_be_sent_and_the_error_says_what_can(bert):
    if "bridge" not in tiny.KINDS:
        pytest.skip("this TransformerLens has no bridges")
    with pytest.raises(studies.StudyInputError, match="Give a function"):
        studies.mixing_ratio(bert, CORPUS, executor=Flaky([]))


def test_a_model_that_can_be_pickled_is_sent():
    if "hooked" not in tiny.KINDS:
        pytest.skip("this TransformerLens has no HookedTransformer")
    model = study_models.hooked_gpt2()
    found = studies.mixing_ratio(model, CORPUS, chunk=4, executor=Flaky([]))
    assert same(found, studies.mixing_ratio(model, CORPUS, chunk=4))


def killing(marker: str):
    """A loader that kills its worker, once."""
    if not os.path.exists(marker) and os.getpid() != int(os.environ["TL_NORMS_TEST_PARENT"]):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return study_models.bert()


@pytest.mark.parametrize("die", [pytest.param(False, marks=pytest.mark.slow), True])
def test_processes_and_a_worker_that_dies(wanted, tmp_path, monkeypatch, die):
    """A broken process pool takes no more work: the rest runs in this process."""
    monkeypatch.setenv("TL_NORMS_TEST_PARENT", str(os.getpid()))
    loader = functools.partial(killing, str(tmp_path / "died")) if die else study_models.bert
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        found = studies.mixing_ratio(loader, CORPUS, chunk=4, executor=executor)
    assert same(found, wanted) and (tmp_path / "died").exists() == die
