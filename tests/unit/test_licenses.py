"""A license is written as its SPDX identifier, or with the clause that says what it allows."""

import pytest

from histill.config.load import load_config
from histill.config.promote_model import PromoteConfig
from histill.config.train_teacher import TeacherConfig
from histill.errors import InputError
from histill.licenses import License

pytestmark = pytest.mark.unit

CLAUSE = "https://example.org/terms"


def stated(text: str) -> License | None:
    """The license of published weights, as somebody types it."""
    keys = ["name=a", "runs=r", "data.tiles=t", "network.weights=w.safetensors", f"network.weights_license={text}"]
    return load_config(TeacherConfig, None, keys).network.weights_license


@pytest.mark.parametrize(
    ("text", "name", "commercial"),
    [
        ("MIT", "MIT", True),
        ("apache-2.0", "Apache-2.0", True),
        ("CC BY 4.0", "CC-BY-4.0", True),
        ("CC-BY-NC-ND-4.0", "CC-BY-NC-ND-4.0", False),
    ],
)
def test_an_identifier_is_enough(text: str, name: str, commercial: bool) -> None:
    assert stated(text) == License(name=name, commercial=commercial, source=f"https://spdx.org/licenses/{name}.html")


@pytest.mark.parametrize(
    ("name", "more", "commercial"),
    [
        ("mit", "", True),
        ("CC-BY-NC-4.0", "", False),
        ("MIT", ", commercial: null", None),
        ("CC-BY-NC-4.0", ", commercial: true", True),  # bought
        ("terms of the hospital", "", None),
    ],
)
def test_a_clause_says_what_its_name_does_not(name: str, more: str, commercial: bool | None) -> None:
    assert stated(f"{{name: {name}, source: '{CLAUSE}'{more}}}") == License(
        name=name, commercial=commercial, source=CLAUSE
    )


def test_unknown_terms_need_their_clause() -> None:
    with pytest.raises(InputError) as caught:
        stated("hospital")
    assert "the terms of 'hospital' are not known here, only those of MIT, " in str(caught.value)
    assert "write {name: 'hospital', commercial: true or false, source: <URL of the clause>}" in str(caught.value)
    with pytest.raises(InputError, match="weights_license is that of weights, which are null"):
        load_config(TeacherConfig, None, ["name=a", "runs=r", "data.tiles=t", "network.weights_license=MIT"])


def test_the_key_of_the_gate_is_told_from_the_license_of_the_weights() -> None:
    """`license.allow` is what many will type."""
    for key in ("license.allow=[MIT]", "license.commercial=true"):
        with pytest.raises(InputError, match=r"is said by gates\.license\.commercial and gates\.license\.allow"):
            load_config(PromoteConfig, None, ["registered_name=x", "rollback=true", key])


def test_what_taught_a_model_is_named_by_its_place() -> None:
    keys = ["registered_name=x", "rollback=true", 'gates.license.stated={"onnx teacher s3://b/n.onnx": MIT}']
    stated = load_config(PromoteConfig, None, keys).gates.license.stated
    assert stated == {"onnx teacher s3://b/n.onnx": License.model_validate("MIT")}
