"""Models of the judge's tests, made once."""

import judge_models
import pytest
import tiny


def _made(family: str):
    if "bridge" not in tiny.KINDS:
        pytest.skip("these models are bridges")
    return judge_models.boot(family)


@pytest.fixture(scope="session")
def gpt2():
    return _made("gpt2")


@pytest.fixture(scope="session")
def llama():
    return _made("llama")


@pytest.fixture(scope="session")
def bert():
    return _made("bert")
