"""Models of the studies' tests, made once, and their texts."""

import pytest
import study_models

TEXTS = [
    "w7 w8 , w9 .",
    "w10 w11 w12 w13 w9 w7 .",
    "w20 w7",
    "w30 , , w31 . w7 w8 w9 w10 w41 , w7",
    "w50 w51 w52 w7 w7 w8",
    "w21 . w22 , w23 w24 w25 w26 w27",
    "w12 w13 w14",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def bert():
    return study_models.bert()


@pytest.fixture(scope="session")
def gpt2():
    return study_models.gpt2()


@pytest.fixture(scope="session", params=["bert", "gpt2"])
def model(request):
    return request.getfixturevalue(request.param)
