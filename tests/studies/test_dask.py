"""A study on a real Dask cluster: two worker processes, one of which is killed on the way."""

import functools
import os
import signal

import pytest
import study_models
from test_run import CORPUS, same

from tl_norms import studies

distributed = pytest.importorskip("distributed", reason="the dask extra is not installed: pip install 'tl_norms[dask]'")


def dying_types(marker: str, tokenizer, ids):
    """Token types; the first process that is not the test's own and sees w28 is killed in the middle of its chunk."""
    if 28 in ids and os.getpid() != int(os.path.basename(marker)) and not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return studies.token_types(tokenizer, ids)


@pytest.mark.filterwarnings("ignore")  # Dask's own, about ports, closed streams and the worker we kill
@pytest.mark.slow
def test_a_cluster_gives_what_one_process_gives_and_survives_a_killed_worker(tmp_path):
    types = functools.partial(dying_types, str(tmp_path / str(os.getpid())))
    wanted = studies.mixing_ratio(study_models.bert(), CORPUS, chunk=2)
    options = dict(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        assert len(client.scheduler_info()["workers"]) == 2
        executor = client.get_executor()
        plain = studies.mixing_ratio(study_models.bert, CORPUS, chunk=2, executor=executor)
        killed = studies.mixing_ratio(study_models.bert, CORPUS, types=types, chunk=2, executor=executor)
    assert same(plain, wanted)
    assert (tmp_path / str(os.getpid())).exists(), "no worker died"
    assert same(killed, wanted)
